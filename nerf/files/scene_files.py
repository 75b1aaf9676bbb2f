"""Files of a scene: JSON, and files that a scene's JSON or another program's model names."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from nerf.files.images import ENDINGS, HEIF_ENDINGS
from nerf.runtime.errors import UserError

LONGEST_NAME = 4096  # characters of a path; no system allows more
PLACES = ('', 'images', 'input')  # folders of a scene in which the end of a path is looked for
NOTHING = 'nothing'  # in a folder that is empty or missing
BY_THE_END, ENDING, SPELLING = 'by the end of their path', 'under another ending', 'in another spelling'


def read_json(path: Path, missing: str) -> Any:
    """Content of a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark; `missing` is advice for the
    message if the file does not exist."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f'{path} does not exist; {missing}') from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path} cannot be read as JSON ({error}); download or export it again') from None


class Found(NamedTuple):
    """Outcome of the search for a file."""

    name: str  # as another program has it
    path: Path  # of the file or, if there is none, as it is named
    assumed: str = ''  # how a file was found that is not just as it is named: `BY_THE_END`, for example
    missing: bool = False
    outside: bool = False  # the file exists, but leaves the scene's folder and must not be read


class SceneFolder:
    """Folder of a scene, and the search for files in it by the names that other programs gave them.

    Args:
        folder: folder that names are relative to.
        outside_files: files outside the folder may be used.
        links: links in the folder may lead out of it, though names may not.
    """

    def __init__(self, folder: Path, outside_files: bool = False, links: bool = False):
        self.folder, self.outside_files, self.links = folder, outside_files, links
        self._names: dict[Path, dict[str, list[str]]] = {}

    def find(self, name: Any, endings: Sequence[str] = ENDINGS) -> Found:
        """File that a name means. ValueError, with a predicate: it is no name.

        The file is looked for as named, and then with slashes for backslashes, with one of the `endings` behind the
        name or instead of its own, and in another case or Unicode form. Then the longest end of the path is looked for
        likewise in the `PLACES` of the folder, because paths of another machine begin with folders of that machine.
        """
        clean, barred = clean_name(name), None
        for path, assumed in self._candidates(name, clean, endings):
            if self.outside_files or is_inside(path, self.folder, follow_links=not self.links):
                return Found(name, path, assumed)
            barred = barred or path
        return Found(name, barred or self.folder / clean, missing=barred is None, outside=barred is not None)

    def _candidates(self, name: str, clean: str, endings: Sequence[str]) -> Iterator[tuple[Path, str]]:
        """Existing files that a name can mean, best first, and how each was found."""
        yield from ((path, '') for path in (self.folder / name, self.folder / clean) if is_file(path))
        parts = PurePosixPath(clean).parts
        steps = [part for part in parts if part not in ('/', '//', '..')]
        for start in range(len(steps)):
            for place in PLACES:
                if (found := self._below(self.folder / place, steps[start:], endings)) is not None:
                    whole = steps == list(parts) and not (start or place)
                    yield found[0], ', '.join(([] if whole else [BY_THE_END]) + found[1])

    def _below(self, folder: Path, parts: Sequence[str], endings: Sequence[str]) -> tuple[Path, list[str]] | None:
        """File of a relative path, given by its parts, and what was assumed; None if there is none."""
        assumed = set()
        for part in parts[:-1]:
            if (there := self._spelled(folder, part)) is None:
                return None
            assumed |= {SPELLING} if there != part else set()
            folder /= there
        for name, ending in _with_endings(parts[-1], endings):
            if (there := self._spelled(folder, name)) is not None and is_file(folder / there):
                return folder / there, sorted(assumed | ending | ({SPELLING} if there != name else set()))
        return None

    def _spelled(self, folder: Path, name: str) -> str | None:
        """Name in a folder which equals `name`, or else the only one which equals it but for case and Unicode form."""
        if folder not in self._names:
            self._names[folder] = names = {}
            for entry in _listed(folder):
                names.setdefault(_folded(entry), []).append(entry)
        same = self._names[folder].get(_folded(name), [])
        return name if name in same else same[0] if len(same) == 1 else None


def told_apart(folder: SceneFolder, found: Sequence[Found], taken: Collection[Path] = ()) -> list[Found]:
    """Files found in a folder, without guesses that cannot be right: a file that was found not just as it is named is
    missing if another name means it too, or if it is `taken` by something else."""
    names: dict[Path, set[str]] = {}
    for each in found:
        names.setdefault(each.path, set()).add(each.name)
    return [Found(each.name, folder.folder / clean_name(each.name), missing=True)
            if each.assumed and (len(names[each.path]) > 1 or each.path in taken) else each for each in found]


def say_assumed(source: Path, found: Sequence[Found], what: str = 'photographs') -> None:
    """Prints one line for each way in which files were found that are not just as `source` names them. `what` names the
    files in the plural."""
    for assumed in dict.fromkeys(each.assumed for each in found if each.assumed):
        name, path, *_ = (some := [each for each in found if each.assumed == assumed])[0]
        print(f'warning: {source}: {len(some)} of {len(found)} {what} were found {assumed}; {name!r} is {str(path)!r}',
              file=sys.stderr)


def usable(source: Path, found: Sequence[Found], what: str = 'photographs') -> list[int]:
    """Indices of the files that exist. Lines say what was assumed about them, and how many others are missing. A file
    that was found by an assumption, and that another name means too, counts as missing.

    Args:
        source: path of the file that names them.
        what: word for the files in the plural.

    Raises:
        UserError: none of the files exists, or one is outside the scene's folder.
    """
    if outside := next((each for each in found if each.outside), None):
        raise UserError(f'{source} names {outside.name!r}, which leaves the folder of the scene; copy that file there')
    claims = Counter(path for path, _ in {(each.path, each.name) for each in found})
    missing = [each for each in found if each.missing or (each.assumed and claims[each.path] > 1)]
    names = ', '.join(repr(each.name) for each in missing[:3]) + (' ...' if len(missing) > 3 else '')
    if missing and len(missing) == len(found):
        raise UserError(f'{source}: all {len(found)} {what} that it names are missing: {names}; {source.parent} has '
                        f'{contents(source.parent)}')
    if missing:
        print(f'warning: {source}: {len(missing)} of {len(found)} {what} are missing and left out: {names}',
              file=sys.stderr)
    say_assumed(source, [each for each in found if each not in missing], what)
    return [i for i, each in enumerate(found) if each not in missing]


def contents(folder: Path, most: int = 6) -> str:
    """Names of what is in a folder, for a message; "nothing" stands for an empty one or none."""
    names = [name for name in _listed(folder) if not name.startswith('.')]
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '') or NOTHING


def clean_name(name: Any) -> str:
    """Name of a file as a scene's JSON has it, with slashes for backslashes and without "./"; else a ValueError."""
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        raise ValueError('it must be the name of a file')
    return str(PurePosixPath(name.replace('\\', '/')))


def _with_endings(name: str, endings: Sequence[str]) -> list[tuple[str, set[str]]]:
    """Names that a file's name can mean, best first, and what is assumed. That a name without an ending gets one is
    no assumption, because the Blender format leaves endings out."""
    stem, dot, own = name.rpartition('.')
    has_own = dot + own.lower() in (*endings, *HEIF_ENDINGS)
    cases = [case for ending in endings for case in (ending, ending.upper())]
    names = [(name, set()), *((name + ending, {ENDING} if has_own else set()) for ending in cases)]
    return names + [(stem + ending, {ENDING}) for ending in endings if has_own]


def _folded(name: str) -> str:
    """Key of names that differ only in case and Unicode form."""
    return unicodedata.normalize('NFC', unicodedata.normalize('NFC', name).casefold())


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except (OSError, ValueError):  # missing, not a folder, not to be read, or with a NUL
        return []


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


def has_file(folder: Path, pattern: str) -> bool:
    """Whether a folder has a file whose path in it matches a pattern."""
    try:
        return any(is_file(path) for path in folder.glob(pattern))
    except (OSError, ValueError):
        return False


def first_file(*paths: Path) -> Path:
    """The first existing file of some paths, or else the first path."""
    return next((path for path in paths if is_file(path)), paths[0])


def is_there(path: Path | None) -> bool:
    """Whether a file exists and is not empty."""
    return path is not None and is_file(path) and path.stat().st_size > 0


def say_left_out(source: Path, names: Sequence[str], what: str) -> None:
    """Prints a line with the number of names, what they are, and some of them, if there are any."""
    if names:
        print(f'warning: {source}: {len(names)} {what}: {some_of(names)}', file=sys.stderr)


def some_of(names: Sequence[str], most: int = 3) -> str:
    """Some names, and the number of others."""
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')


def none_there(paths: Sequence[Path], what: str = 'photographs') -> str:
    """Message about files that are all missing or empty: it says what is in the folder instead or, if that is nothing,
    in the folder above."""
    folder = paths[0].parent
    there = f'{str(folder)!r} has {contents(folder)}'
    if contents(folder) == NOTHING:
        there += f', and {str(folder.parent)!r} has {contents(folder.parent)}'
    return (f'{len(paths)} of {len(paths)} {what} are missing, the first is {str(paths[0])!r}, but {there}; copy the '
            f'{what} there')


def leaves(path: Path, folder: Path) -> str:
    """Predicate of a message about a file outside a folder."""
    if is_inside(path, folder, follow_links=False):
        return f'is a link to {str(path.resolve())!r}, outside {folder}'
    return f'leaves the folder {folder}'
