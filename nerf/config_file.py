"""Config files as people and other programs write them: lines "key = value" to the text of flags, and notes about what
was left out or assumed."""

from __future__ import annotations

import argparse
import codecs
import difflib
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import configargparse

from nerf.flag_types import Flag
from nerf.runtime.errors import UserError, one_line

OTHER_NAMES = {'N_iter': 'N_iters'}  # flags of other programs with another name here: D-NeRF's steps
OTHER_VALUES = {('dataset_type', 'colmap_llff'): 'llff'}  # DS-NeRF reads depths beside the same files
LONG_NAME = 8  # letters of a flag from which two edits are a misspelling of it; of a shorter flag one edit is
NEAR = 0.66  # likeness from which a key has a nearest flag, from 0 to 1
LONGEST_NOTE = 4000  # letters of a warning

RULE = (f'A key that differs from a flag by one letter (by two, if the flag has {LONG_NAME} or more), by capitals or '
        'by "-" for "_" is a misspelling and stops the run; keys of other programs are ignored with one warning')
LINE = re.compile(r'(?:--)?(?P<key>[^:=;#\s]+)\s*(?P<sign>[:=\s]?)\s*(?P<rest>.*)')
QUOTED = re.compile(r'''(["'])(?P<value>.*?)\1\s*(?:\s[;#].*)?''')
BEFORE_COMMENT = re.compile(r'(?P<value>[-+]?[\d.]+(?:e[-+]?\d+)?|true|false|none)\s*[;#].*', re.IGNORECASE)


def open_config(path: str) -> io.StringIO:
    """Text of a config: UTF-16 with its mark, as PowerShell writes it, or the encoding of file names, mostly UTF-8.
    Bytes that are no text stay as they are in names of files."""
    data = Path(path).read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode('utf-16', 'replace')
    else:
        text = data.removeprefix(codecs.BOM_UTF8).decode(sys.getfilesystemencoding(), 'surrogateescape')
    stream = io.StringIO(text, newline=None)
    stream.name = path
    return stream


def split_lines(stream: io.StringIO) -> Iterator[tuple[str, str | None]]:
    """Keys of a config and their text, without quotes and comments; None: the key stands alone."""
    for number, line in enumerate(stream, 1):
        line = line.strip()
        if not line or line[0] in '#;[' or line.startswith('---'):
            continue
        parts = None if '\0' in line else LINE.fullmatch(line)
        if parts is None:
            raise UserError(f'the config file {stream.name} is not a text file of "key = value" lines; its line '
                            f'{number} is {line!r}')
        text = value_of(parts['rest'])
        yield parts['key'], text if text or parts['sign'].strip() else None


def value_of(text: str) -> str:
    """Value at the start of a text that can have a comment behind it. The comment begins with # or ; after a space, or
    directly after a number, True, False or None."""
    if found := QUOTED.fullmatch(text) or BEFORE_COMMENT.fullmatch(text):
        return found['value']
    return re.split(r'(?:^|\s+)[;#]', text, maxsplit=1)[0]


def edits_between(one: str, other: str) -> int:
    """Number of letters to add, leave out or replace, and of neighbours to swap, to get from one name to another."""
    before, last = [], list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (a != b)))
            if i > 1 and j > 1 and (a, b) == (other[j - 2], one[i - 2]):
                row[-1] = min(row[-1], before[j - 2] + 1)
        before, last = last, row
    return last[-1]


def misspelt(key: str, names: list[str]) -> str | None:
    """Flag of which a key is a misspelling by `RULE`; None: there is none, so it is a key of another program."""
    def edits(name: str) -> int:
        written, meant = (text.lower().replace('-', '_') for text in (key, name))
        return edits_between(written, meant) if abs(len(written) - len(meant)) <= 2 else 3
    nearest = min(names, key=edits)
    return nearest if edits(nearest) <= (2 if len(nearest) >= LONG_NAME else 1) else None


def takes(flag: Flag, text: str) -> bool:
    """Whether a flag that is no switch has a meaning for a text."""
    if flag.choices:
        return text in flag.choices
    try:
        flag.type(text)
    except argparse.ArgumentTypeError:
        return False
    return True


class ConfigText(configargparse.ConfigFileParser):
    """Parser of a config. Configs do not nest."""

    def __init__(self):
        self.flags: dict[str, Flag] = {}  # flags of the program, by name
        self.values: dict[str, str] = {}  # text by flag, of the newest config
        self.path, self.notes = '', []  # its path, and warnings about it

    def get_syntax_description(self) -> str:
        """Words about configs for the help."""
        return f'Configs have lines "key = value"; # or ; begins a comment. {RULE}.'

    def parse(self, stream: io.StringIO) -> dict[str, str]:
        """Text by flag. UserError: a key is a misspelling, or no key is a flag."""
        self.path, self.notes = stream.name, []
        given = self._keys(stream)
        self._drop_nested(given)
        self._translate(given)
        self._drop_unknown(given)
        empty = [name for name, text in given.items() if self._is_empty(name, text)]
        if empty:
            self._note(f'without a value, so the default counts: {", ".join(empty)}')
        self.values = {name: 'true' if text is None else text for name, text in given.items() if name not in empty}
        return self.values

    def _keys(self, stream: io.StringIO) -> dict[str, str | None]:
        """Text by key. Of a key with several values the last counts."""
        given, twice = {}, {}
        for key, text in split_lines(stream):
            if key in given and given[key] != text:
                twice[key] = [*twice.get(key, [given[key]]), text]
            given[key] = text
        if twice:
            values = (f'{key} ({", ".join(map(str, texts))})' for key, texts in twice.items())
            self._note(f'with several values, of which the last counts: {", ".join(values)}')
        return given

    def _drop_nested(self, given: dict[str, str | None]) -> None:
        """Drops the key config, whose file is not read."""
        other = given.pop('config', None)
        if other in (None, '', 'None'):
            return
        if os.path.abspath(other) == os.path.abspath(self.path):
            raise UserError(f'the config file {self.path} names itself as its config; remove that line')
        self._note(f'its line "config = {other}" has no effect, as configs do not nest; copy the lines of that file')

    def _translate(self, given: dict[str, str | None]) -> None:
        """Gives keys and values of other programs the names that they have here."""
        for other, name in OTHER_NAMES.items():
            if other in given and name not in given:
                given[name] = given.pop(other)
                self._note(f'{other} is read as {name}')
        for (name, other), ours in OTHER_VALUES.items():
            if given.get(name) == other:
                given[name] = ours
                self._note(f'{name} = {other} is read as {ours}')

    def _drop_unknown(self, given: dict[str, str | None]) -> None:
        """Drops the keys of other programs."""
        unknown, words = [key for key in given if key not in self.flags], []
        for key in unknown:
            if name := misspelt(key, [*self.flags]):
                raise UserError(f'{self.path}: {key} = {given[key]}: this key is no flag; did you mean {name}?')
            near = difflib.get_close_matches(key, self.flags, 1, NEAR)
            words.append(f'{key} (nearest flag: {near[0]})' if near else key)
        if unknown and len(unknown) == len(given):
            raise UserError(f'{self.path}: none of its keys is a flag of this program: {", ".join(words)}; '
                            'run_nerf.py --help lists the flags')
        if unknown:
            self._note(f'ignored, as they are no flags of this program: {", ".join(words)}')
        for key in unknown:
            del given[key]

    def _is_empty(self, name: str, text: str | None) -> bool:
        """Whether a flag has no value: its key stands alone, or its text is empty or None and means nothing to it."""
        flag = self.flags[name]
        is_switch = not (flag.type or flag.choices)
        if text is None:
            return not (is_switch or takes(flag, ''))
        return text in ('', 'None') and (is_switch or not takes(flag, text))

    def _note(self, line: str) -> None:
        self.notes.append(one_line(f'{self.path}: {line}', LONGEST_NOTE))
