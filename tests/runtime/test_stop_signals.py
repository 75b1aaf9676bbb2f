"""nerf/runtime/stop_signals.py: SIGINT and SIGTERM stop the program, at once or where that waits, after a step."""

import os
import signal
import threading
import time

import pytest

from nerf.runtime import ranks, stop_signals


def test_a_signal_waits_for_what_is_deferred():
    done = []
    with stop_signals.handled(), pytest.raises(stop_signals.Stopped) as stopped:  # noqa: PT012
        with stop_signals.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            done.append('the step')
        done.append('not this')
    assert done == ['the step']
    assert stopped.value.exit_code == 130
    with stop_signals.handled(), pytest.raises(stop_signals.Stopped):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.0)


def test_of_several_processes_the_first_alone_stops_at_once_at_a_signal(as_rank, monkeypatch):
    monkeypatch.setattr(ranks, 'maximum', int)
    before, step = signal.getsignal(signal.SIGTERM), 'not done'
    as_rank(1, 2)
    with stop_signals.handled(), pytest.raises(stop_signals.Stopped):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        step = 'done'
        with stop_signals.deferred():
            pass
    assert step == 'done'
    as_rank(0, 2)
    with stop_signals.handled(), pytest.raises(stop_signals.Stopped):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        step = 'not done'
    assert step == 'done'
    assert signal.getsignal(signal.SIGTERM) == before


def test_only_the_main_thread_takes_signals():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def elsewhere():
        with stop_signals.handled():
            seen.append(signal.getsignal(signal.SIGTERM))
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]
