"""Files that are there in whole or not at all."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from pathlib import Path

from nerf.runtime.errors import UserError

PARTIAL = '.partial-'  # names of files that are being written begin with this


@contextmanager
def whole_file(path: Path, needed: int | None = None):
    """Yields a name beside `path` to write to; it replaces `path` when the block ends well, else it is removed.

    Args:
        needed: bytes that the file will have, where that is known, for the message.

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
    """Makes a rename in a folder outlast a power cut, where folders can be synced."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
