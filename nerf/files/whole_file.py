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
    is removed if it does not. If it cannot be written, a UserError says so, with the `needed` bytes if known."""
    path = Path(path)
    partial = path.with_name(PARTIAL + path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        with suppress(OSError):  # some systems cannot sync folders, so that a rename outlasts a power cut
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        size = f', which needs {needed:,} bytes,' if needed else ''
        raise UserError(f'{path}{size} cannot be written ({error}); free some space or write to another '
                        'place') from error
    finally:
        with suppress(OSError):
            partial.unlink()
