"""Files of a scene: JSON, and files that a scene's JSON names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from nerf.runtime.errors import UserError

LONGEST_NAME = 4096  # characters of a path; no system allows more


def read_json(path: Path, missing: str) -> Any:
    """Content of a JSON file; `missing` is advice for the message if the file does not exist."""
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise UserError(f'{path} does not exist; {missing}') from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path} cannot be read as JSON ({error}); download or export it again') from None


def clean_name(name: Any) -> str:
    """Name of a file as a scene's JSON has it, with slashes for backslashes and without "./"; else a ValueError."""
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        raise ValueError('it must be the name of a file')
    return str(PurePosixPath(name.replace('\\', '/')))


def is_inside(path: Path, folder: Path, follow_links: bool = True) -> bool:
    """Whether a path is in a folder, with links followed or by its name alone."""
    try:
        if follow_links:
            return path.resolve().is_relative_to(folder.resolve())
        return '..' not in path.relative_to(folder).parts
    except (OSError, ValueError, RuntimeError):  # a name too long, with a NUL, a loop of links, or not in the folder
        return False


def is_file(path: Path) -> bool:
    """Whether a path is that of an existing file, whatever characters it has."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def first_file(*paths: Path) -> Path:
    """The first existing file of some paths, or else the first path."""
    return next((path for path in paths if is_file(path)), paths[0])


def check_all_there(paths: Sequence[Path], what: str) -> None:
    """Raises UserError if a file is missing; `what` names the files in the plural."""
    if missing := [path for path in paths if not is_file(path)]:
        raise UserError(f'{len(missing)} of {len(paths)} {what} are missing, the first is {str(missing[0])!r}; copy '
                        'them there, or remove them from the file that names them')
