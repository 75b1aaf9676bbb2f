"""Flags as data, types of flags with bounds, and a parser of flags and config files."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import configargparse
import numpy as np

from nerf.runtime.errors import UserError

NEVER = 2 ** 31 - 1  # steps, more than any run has


@dataclass(frozen=True, eq=False)
class Flag:
    """Flag of the program. Entries of a registry can share it. A flag without type and choices is a switch."""
    name: str  # without dashes
    help: str  # one line with the unit and the reason
    type: Callable[[str], Any] | None = None  # converter of the text; None with choices: text
    default: Any = None
    choices: tuple | None = None
    decides_data: bool = False  # a run with another value trains on other data

    def add_to(self, group, readers: str = '') -> None:
        """Adds the flag to a group of a parser. Words about its readers follow its help."""
        options = {'action': 'store_true'} if not (self.type or self.choices) else {
            'type': self.type, 'choices': self.choices, 'default': self.default}
        group.add_argument(f'--{self.name}', help=self.help + readers, **options)


class FlagParser(configargparse.ArgumentParser):
    """Parser whose errors are one line, without the usage before it; exit code 2."""

    def error(self, message: str):
        self.exit(2, f'{self.prog}: error: {UserError(message)}\n')


class ConfigText(configargparse.DefaultConfigFileParser):
    """Parser of a config file. A list is text, because no flag takes a list. Configs do not nest."""

    def __init__(self):
        super().__init__()
        self.values = {}  # text by key, of the newest config

    def parse(self, stream):
        values = {key: str(value) for key, value in super().parse(stream).items()}
        if (other := values.pop('config', None)) is not None:
            if os.path.abspath(other) == os.path.abspath(stream.name):
                raise UserError(f'the config file {stream.name} names itself as its config; remove that line')
            print(f'warning: {stream.name}: its line "config = {other}" has no effect, as configs do not nest; copy '
                  'the lines of that file', file=sys.stderr)
        self.values = values
        return values


def whole(low: int, high: int = 2 ** 31 - 1):
    """Converter to whole numbers from `low` to `high`."""
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from {low} to {high}')
        return value
    return convert


def interval(text: str) -> int:
    """Converter to an interval in steps. 0 stands for never, which is `NEVER` steps."""
    return whole(0)(text) or NEVER


def number(low: float = 0.0, high: float = float('inf'), above: bool = False):
    """Converter to finite numbers from `low` to `high`; with `above`, `low` itself is refused."""
    allowed = f"{'above' if above else 'of at least'} {low:g}{f' and at most {high:g}' if high < 1e300 else ''}"

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float('nan')
        if not low <= value <= high or (above and value == low) or abs(value) == float('inf'):
            raise argparse.ArgumentTypeError(f'{text!r} is not a number {allowed}')
        return value
    return convert


def corners(text: str) -> str:
    """Converter to the text of a box: six numbers, its lowest and its highest corner. `box_of` reads the result."""
    parts = text.replace(',', ' ').split()
    try:
        low, high = np.array(parts, np.float64).reshape(2, 3)
        good = bool(np.isfinite([low, high]).all() and (low < high).all())
    except ValueError:
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f'{text!r} is no box: "X Y Z X Y Z", the lowest corner and the highest one')
    return ' '.join(parts)


def box_of(text: str) -> np.ndarray:
    """Corners [2, 3] float64 of a box, from the result of `corners`."""
    return np.array(text.split(), np.float64).reshape(2, 3)


def optional(convert):
    """Converter that also takes an empty text, and the text None, which args.txt has for a flag without a value."""
    return lambda text: None if text in ('', 'None') else convert(text)


def matching(pattern: str, allowed: str, optional: bool = False):
    """Converter to text that a pattern matches as a whole; the error has `allowed`, the pattern in words. With
    `optional` the texts None and '' mean no value."""
    def convert(text: str) -> str | None:
        if optional and text in ('', 'None'):
            return None
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f'{text!r} is not {allowed}')
        return text
    return convert


def path(text: str) -> str:
    """Converter to a path, with a ~ at its beginning expanded."""
    pattern, allowed = r'[^\[\r\n\0][^\r\n\0]*', 'a path on one line that does not begin with "[", which a config ' \
        'reads as a list'
    return os.path.expanduser(matching(pattern, allowed)(text))
