"""nerf/runtime/stop_signals.py: SIGINT, SIGTERM and SIGHUP stop the program at once, or after the step that runs."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nerf.runtime import stop_signals

# One of two processes, which takes steps until it is stopped. An exchange, as that of a run's gradients, keeps both in
# the same step.
SCRIPT = """
import sys, time, torch
from nerf.runtime import ranks, stop_signals
from nerf.runtime.errors import returns_exit_code
@returns_exit_code
def program():
    with stop_signals.handled(), ranks.joined(torch.device('cpu')):
        for step in range(1000):
            with stop_signals.deferred():
                print('begin', step, flush=True)
                time.sleep(0.2)
                ranks.add_up([torch.zeros(1)])
                print('end', step, flush=True)
ranks.leave(program())
"""


@pytest.mark.slow
@pytest.mark.parametrize('target', [0, 1])
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(target):
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    env = os.environ | {'WORLD_SIZE': '2', 'MASTER_ADDR': 'localhost', 'MASTER_PORT': str(port), 'OMP_NUM_THREADS': '1',
                        'PYTHONPATH': str(Path(__file__).parents[2])}
    processes = [subprocess.Popen([sys.executable, '-c', SCRIPT], env=env | {'RANK': str(rank)}, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE) for rank in range(2)]
    try:
        assert any(line == 'begin 5\n' for line in processes[target].stdout)
        processes[target].send_signal(signal.SIGTERM)
        said = [(process.stdout.read(), process.stderr.read()) for process in processes]
        assert [process.wait(60) for process in processes] == [143, 143], said
    finally:
        for process in processes:
            process.kill()
    assert [out.splitlines()[-1] for out, _ in said] == ['end 5', 'end 5']
    assert 'SIGTERM: finishing the step and saving' in said[target][1]
    assert all('stopped by SIGTERM' in error for _, error in said)


def test_a_signal_waits_for_the_end_of_what_is_deferred():
    done = []
    with stop_signals.handled(), pytest.raises(stop_signals.Stopped) as stopped:  # noqa: PT012
        with stop_signals.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            done.append('the step')
        done.append('not this')
    assert done == ['the step']
    assert stopped.value.exit_code == 130


def test_a_signal_stops_the_program_at_once_elsewhere_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals.handled(), pytest.raises(stop_signals.Stopped) as stopped:  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10.0)
        raise AssertionError('it went on')
    assert (str(stopped.value), stopped.value.exit_code) == ('SIGTERM', 143)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_a_second_signal_ends_the_process():
    program = ('import os, signal\nfrom nerf.runtime import stop_signals\n'
               'with stop_signals.handled(), stop_signals.deferred():\n'
               '    os.kill(os.getpid(), signal.SIGINT)\n    os.kill(os.getpid(), signal.SIGINT)\n    print("went on")')
    done = subprocess.run([sys.executable, '-c', program], cwd=Path(__file__).parents[2], capture_output=True,
                          text=True)
    assert (done.returncode, done.stdout) == (130, '')
    assert done.stderr == 'SIGINT: finishing the step and saving; a second signal ends the program at once\n'


@pytest.mark.parametrize(('sent', 'code'), [
    ([signal.SIGHUP], 129), ([signal.SIGHUP] * 3, 129), ([signal.SIGTERM, signal.SIGHUP], 143),
    ([signal.SIGINT, signal.SIGHUP, signal.SIGHUP], 130), ([signal.SIGHUP, signal.SIGTERM, signal.SIGHUP], 143)])
def test_the_end_of_the_terminal_is_no_second_signal(sent, code):
    """A shell and the kernel both send SIGHUP, and a shutdown sends SIGTERM too."""
    done = []
    with stop_signals.handled(), pytest.raises(stop_signals.Stopped) as stopped:  # noqa: PT012
        with stop_signals.deferred():
            for number in sent:
                os.kill(os.getpid(), number)
            done.append('the step')
        done.append('not this')
    assert (done, stopped.value.exit_code) == (['the step'], code)


def test_what_follows_the_end_of_the_terminal_does_not_break_off_the_saving():
    saved = []
    with stop_signals.handled():
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            raise AssertionError('it went on')
        except stop_signals.Stopped:
            for number in (signal.SIGHUP, signal.SIGTERM):
                os.kill(os.getpid(), number)
            saved.append('all')
    assert saved == ['all']


@pytest.mark.slow
def test_a_second_sigterm_after_the_end_of_the_terminal_ends_the_process():
    program = ('import os, signal\nfrom nerf.runtime import stop_signals\n'
               'with stop_signals.handled(), stop_signals.deferred():\n'
               '    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTERM):\n'
               '        os.kill(os.getpid(), number)\n    print("went on")')
    done = subprocess.run([sys.executable, '-c', program], cwd=Path(__file__).parents[2], capture_output=True,
                          text=True)
    assert (done.returncode, done.stdout) == (143, '')


def test_an_ignored_end_of_the_terminal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stop_signals.handled():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


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
