"""SIGINT and SIGTERM stop the program: at once or, during a training step, after it; a second one exits at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager

from nerf.runtime import ranks


class Stopped(BaseException):
    """A signal asked the program to stop. Like KeyboardInterrupt it can be raised anywhere and is not an error."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number  # as shells have it: 130 for SIGINT, 143 for SIGTERM


_requested: int | None = None  # the signal that has come
_deferred = False


@contextmanager
def handled():
    """In this context the two signals raise `Stopped`; during `deferred` they wait for its end."""
    global _requested
    if threading.current_thread() is not threading.main_thread():  # where Python takes no handlers
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
    """A signal that arrives in this context raises `Stopped` at its end.

    Where several processes share a run, a signal to any of them raises it in all. Ranks other than 0 stop only here,
    because rank 0 could not finish its step and save without them.
    """
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False
    if requested := ranks.maximum(_requested or 0):
        if ranks.count() > 1:  # torchrun sends it to those still saving when one has ended
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Stopped(requested)


def _handle(number: int, frame) -> None:
    global _requested
    if _requested is not None:
        os._exit(128 + number)
    _requested = number
    if not _deferred and ranks.first():
        raise Stopped(number)
    print(f'{signal.Signals(number).name}: finishing the step and saving; once more ends at once', file=sys.stderr,
          flush=True)
