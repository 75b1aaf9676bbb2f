"""SIGINT and SIGTERM: the first stops the program, after the training step if one is running; the second kills it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager

from nerf.runtime import ranks


class Stopped(BaseException):
    """Signal that asked the program to stop. Like KeyboardInterrupt it can be raised anywhere and is no error."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number  # as in shells: 130 for SIGINT, 143 for SIGTERM


_requested: int | None = None  # number of the signal that arrived
_deferred = False


@contextmanager
def handled():
    """Context in which both signals raise `Stopped`; inside `deferred` they do so at its end."""
    global _requested
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers in the main thread only
        yield
        return
    _requested = None
    before = {number: signal.signal(number, _handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred():
    """Context at whose end a signal that arrived inside raises `Stopped`, in all processes that share the run. Ranks
    other than 0 stop only here, because rank 0 needs them to finish its step and save."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False
    if requested := ranks.maximum(_requested or 0):
        if ranks.count() > 1:  # sent by torchrun, once a process has ended, to one still saving
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Stopped(requested)


def _handle(number: int, frame) -> None:
    global _requested
    if _requested is not None:
        os._exit(128 + number)
    _requested = number
    if not _deferred and ranks.first():
        raise Stopped(number)
    print(f'{signal.Signals(number).name}: finishing the step and saving; a second signal ends the program at once',
          file=sys.stderr, flush=True)
