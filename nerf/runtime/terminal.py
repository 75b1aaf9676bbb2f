"""Standard output and standard error of a run that outlives its terminal."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TextIO


def as_text(text: str, page: str = 'utf-8') -> str:
    """Text with numbers for letters that a code page lacks, and for bytes of file names that are no text."""
    return text.encode(page, 'backslashreplace').decode(page)


class Lasting:
    """Text stream whose writes never raise. The terminal or the reader of a pipe can be gone, a disk full: the text is
    lost then."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes text if that is possible."""
        with suppress(Exception):
            try:
                self.stream.write(text)
            except UnicodeError:
                self.stream.write(as_text(text, getattr(self.stream, 'encoding', None) or 'ascii'))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream if that is possible."""
        with suppress(Exception):
            self.stream.flush()

    def end(self) -> None:
        """Flushes the stream. If that fails, what is left goes nowhere, as the interpreter's own flush would end the
        process with code 120."""
        try:
            self.stream.flush()
        except Exception:
            with suppress(Exception), open(os.devnull, 'w', encoding='utf-8') as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def open_missing() -> None:
    """Opens standard streams that the process was started without, to nowhere. Otherwise the next file that is opened
    would get the number of one of them, and with it what libraries print."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number, this one
    for name in ('stdout', 'stderr'):
        if (stream := getattr(sys, name)) is None or getattr(stream, 'closed', False):
            setattr(sys, name, open(os.devnull, 'w', encoding='utf-8'))  # noqa: SIM115 (open until the end)


@contextmanager
def lasting_streams():
    """Context in which no print raises."""
    open_missing()
    streams = Lasting(sys.stdout), Lasting(sys.stderr)
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        try:
            yield
        finally:
            for stream in streams:
                stream.end()
