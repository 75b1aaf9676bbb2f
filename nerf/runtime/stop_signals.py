"""SIGINT and SIGTERM: at once or, within a training step, at its end; a second one ends the process there and then."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager

from nerf.runtime import ranks


class Stopped(BaseException):
    """A signal asked the program to stop. As KeyboardInterrupt it can come anywhere, and is no error to be handled."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number  # as shells have it: 130 for SIGINT, 143 for SIGTERM


_requested: int | None = None  # the signal that has come
_deferred = False


@contextmanager
def handled():
    """Within, the two signals raise `Stopped`, or wait for the end of `deferred`."""
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
    """A signal that comes within raises `Stopped` at the end, when what is inside is whole; of several processes that
    share a run in all, whichever it came to. Those behind the first stop only here: it could not save without them."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False
    if requested := ranks.agreed(_requested or 0):
        if ranks.count() > 1:  # torchrun sends one to those that still save when the first of them has ended
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
