"""SIGINT, SIGTERM and SIGHUP stop the program, after the training step if one is running. A second SIGINT or SIGTERM
kills it. SIGHUP, the end of the terminal, can come several times and before or after another signal, so it never does.
"""

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


HANGUP = getattr(signal, 'SIGHUP', None)  # Windows has none
_requested: int | None = None  # number of the signal that arrived
_deferred = False


@contextmanager
def handled():
    """Context in which the signals raise `Stopped`; inside `deferred` they do so at its end. SIGHUP stays ignored if it
    was, as after nohup."""
    global _requested
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers in the main thread only
        yield
        return
    _requested = None
    numbers = [signal.SIGINT, signal.SIGTERM]
    if HANGUP and signal.getsignal(HANGUP) != signal.SIG_IGN:
        numbers.append(HANGUP)
    before = {number: signal.signal(number, _handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held():
    """Context in which a signal is only noted. It is for work after which the program ends anyway."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False


@contextmanager
def deferred():
    """Context at whose end a signal that arrived inside raises `Stopped`, in all processes that share the run. Ranks
    other than 0 stop only here, because rank 0 needs them to finish its step and save."""
    global _requested
    with held():
        yield
    if requested := ranks.maximum(_requested or 0):
        if ranks.count() > 1:  # sent by torchrun, once a process has ended, to one still saving
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _requested = requested
        raise Stopped(requested)


def _handle(number: int, frame) -> None:
    global _requested
    before = _requested
    if before in (None, HANGUP):
        _requested = number
    elif number != HANGUP:
        os._exit(128 + number)
    if before is not None:
        return
    if not _deferred and ranks.first():
        raise Stopped(number)
    print(f'{signal.Signals(number).name}: finishing the step and saving; a second signal ends the program at once',
          file=sys.stderr, flush=True)
