"""Files and folders written whole or not at all."""

from __future__ import annotations

import os
import tempfile
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


@contextmanager
def whole_folder(folder: Path):
    """Context that yields an empty folder to write to, which becomes `folder` if the block ends well, and is removed if
    it does not. A folder that another process made meanwhile stays. If it cannot be written, a UserError says so."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f'{PARTIAL}{folder.name}-', dir=folder.parent) as temporary:
            partial = Path(temporary) / folder.name
            partial.mkdir()
            yield partial
            try:
                partial.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    except OSError as error:
        raise UserError(f'{folder} cannot be written ({error}); free some space, or copy the scene to a folder that '
                        'can be written to') from error
