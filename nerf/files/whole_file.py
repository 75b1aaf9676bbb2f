"""Files written whole or not at all."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from pathlib import Path

from nerf.runtime.errors import UserError

PARTIAL = '.partial-'  # beginning of the name of a file that is being written


@contextmanager
def whole_file(path: Path, needed: int | None = None):
    """Context that yields a path beside `path` to write to; the file there replaces `path` if the block ends well, and
    is removed if it does not.

    Args:
        needed: size of the file in bytes, for the message; None: not known.

    Raises:
        UserError: the file cannot be written (disk full, read-only folder).
    """
    path = Path(path)
    partial = path.with_name(PARTIAL + path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        size = f', which needs {needed:,} bytes,' if needed else ''
        raise UserError(f'{path}{size} cannot be written ({error}); free some space or write to another '
                        'place') from error
    finally:
        with suppress(OSError):
            partial.unlink()


def _sync_folder(folder: Path) -> None:
    """Makes a rename in a folder outlast a power cut, on systems that can sync folders."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
