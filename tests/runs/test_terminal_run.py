"""What happens to a run whose terminal goes, whose names are no text, or whose training loop fails."""

from __future__ import annotations

import ctypes
import os
import pty
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from kill_harness import FLAGS
from PIL import Image

import run_nerf
from nerf.files import checkpoints
from nerf.outputs import Intervals
from nerf.runtime import stop_signals
from nerf.runtime.errors import UserError
from nerf.train_log import TrainLog
from nerf.training import Losses

ENDLESS = ['--N_iters', '1000000', '--i_weights', '1000000']
NOT_TEXT = os.fsdecode(b'\xe9t\xe9')
ONE_THREAD = {'OMP_NUM_THREADS': '1', 'NUMBA_NUM_THREADS': '1'}


@pytest.fixture
def command(tiny_scene, tmp_path):
    """Makes the command of a run on a tiny scene; of flags given twice the later ones win."""
    scene = tiny_scene(tmp_path / 'scene')

    def make(*flags: str) -> list[str]:
        return [sys.executable, str(ROOT / 'run_nerf.py'), *FLAGS, '--datadir', str(scene), '--basedir',
                str(tmp_path / 'logs'), '--expname', 'run', *flags]
    return make


def newest_step(run_dir: Path) -> int:
    return checkpoints.read_newest(run_dir)[1]['global_step']


def own_terminal(terminal: int, hangup: Callable | int) -> Callable[[], None]:
    """Preparation of a process that is to lead a session in a terminal, with a handler of SIGHUP."""
    def prepare() -> None:
        import fcntl
        import termios
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, hangup)
    return prepare


def run_until_the_terminal_goes(command: list[str], after: bytes, hangup=signal.SIG_DFL) -> int:
    """Exit code of a command in a pseudo terminal, which is closed after some output."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | ONE_THREAD,
                               preexec_fn=own_terminal(theirs, hangup))
    try:
        os.close(theirs)
        seen = b''
        while after not in seen:
            seen += os.read(ours, 65536)
        os.close(ours)
        return process.wait(60)
    finally:
        process.kill()


def test_a_closed_terminal_finishes_the_step_and_saves(command, tmp_path):
    code = run_until_the_terminal_goes(command(*ENDLESS), b'step 20/')
    assert code == 129
    assert newest_step(tmp_path / 'logs' / 'run') >= 20
    assert not [path for path in (tmp_path / 'logs' / 'run').iterdir() if path.name.startswith('.')]


@pytest.mark.slow
def test_after_nohup_a_run_goes_on_to_its_end_without_its_terminal(command, tmp_path):
    flags = ['--N_iters', '200', '--i_testset', '200', '--i_video', '200']
    assert run_until_the_terminal_goes(command(*flags), b'step 20/', signal.SIG_IGN) == 0
    assert newest_step(tmp_path / 'logs' / 'run') == 200
    assert (tmp_path / 'logs' / 'run' / 'summary.png').is_file()


def test_a_pipe_whose_reader_has_gone_does_not_end_a_run(command, tmp_path):
    process = subprocess.Popen(command('--N_iters', '100'), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               env=os.environ | ONE_THREAD)
    assert any(line.startswith(b'step 20/') for line in process.stdout)
    process.stdout.close()  # as `| head` does
    assert process.wait(60) == 0
    assert newest_step(tmp_path / 'logs' / 'run') == 100


def test_a_run_without_any_stream_in_folders_whose_names_are_no_text(command, tiny_scene, tmp_path):
    scene, logs = tiny_scene(tmp_path / NOT_TEXT), tmp_path / f'logs_é_{NOT_TEXT}'
    flags = ['--datadir', str(scene), '--basedir', str(logs), '--expname', NOT_TEXT]
    every = ['--i_img', '10', '--i_testset', '20', '--i_video', '20']
    done = subprocess.run(['bash', '-c', 'exec "$@" <&- >&- 2>&-', '-', *command(*flags, *every, '--N_iters', '20')],
                          env=os.environ | ONE_THREAD, check=False)
    assert done.returncode == 0
    run_dir = logs / NOT_TEXT
    assert newest_step(run_dir) == 20
    made = [path.name for path in run_dir.iterdir()]
    assert {'summary.png', 'metrics.jsonl', 'testset_000020', f'{NOT_TEXT}_spiral_000020_rgb.mp4'} <= {*made}
    assert any(name.startswith('events.out.') for name in made)
    assert b'datadir = ' + os.fsencode(scene) + b'\n' in (run_dir / 'args.txt').read_bytes()
    again = [sys.executable, ROOT / 'run_nerf.py', '--config', run_dir / 'args.txt', '--N_iters', '25']
    done = subprocess.run(again, env=os.environ | ONE_THREAD | {'PYTHONIOENCODING': 'ascii'}, capture_output=True,
                          check=False)
    assert (done.returncode, done.stderr) == (0, b'')
    assert b'going on at step 20' in done.stdout
    assert b'logs_\\xe9_\\udce9t\\udce9' in done.stdout
    assert newest_step(run_dir) == 25


# The end of the training loop


class Steps:
    """Stands in for a Trainer and the outputs of its run: `fails` maps (place, step) to an exception."""
    n_rays, viewed, intervals = 5, 0, Intervals(1000, 1000, 1000, 1000)

    def __init__(self, fails: dict):
        self.fails, self.saved, self.log = fails, [], TrainLog(None, 0, 9, 1, torch.device('cpu'))

    def reach(self, place: str, step: int) -> None:
        if (place, step) in self.fails:
            raise self.fails[place, step]

    def step(self, step: int) -> Losses:
        self.reach('step', step)
        return Losses({'mse': torch.tensor(0.5)}, {})

    def after_step(self, step: int, losses: Losses) -> list[str]:
        self.reach('after_step', step)
        return []

    def learning_rate(self, step: int) -> float:
        return 1e-3

    def make(self, names, step: int) -> None:
        self.reach('make', step)

    def save(self, step: int, viewed: int) -> None:
        self.reach('save', step)
        self.saved.append(step)

    def run(self) -> None:
        run_nerf.train_steps(Namespace(N_iters=9, i_weights=4), self, 0, self, self.save, None)


@pytest.mark.parametrize('error', [
    ZeroDivisionError('an edited line'), MemoryError(), torch.OutOfMemoryError('CUDA'), UserError('ten times'),
    KeyboardInterrupt(), SystemExit(3), stop_signals.Stopped(signal.SIGTERM), OSError(5, 'Input/output error')])
@pytest.mark.parametrize(('place', 'step', 'saved'), [
    ('step', 7, [4, 6]), ('after_step', 7, [4, 6]), ('make', 7, [4, 7]), ('make', 4, [4]), ('step', 5, [4]),
    ('step', 1, [])])
def test_whatever_ends_the_training_loop_the_steps_that_are_done_are_saved_once(error, place, step, saved):
    steps = Steps({(place, step): error})
    with pytest.raises(type(error)) as raised:
        steps.run()
    assert raised.value is error
    assert steps.saved == saved


def test_a_save_that_fails_too_does_not_hide_the_first_error():
    steps = Steps({('step', 7): ZeroDivisionError('an edited line'), ('save', 6): UserError('no space')})
    with pytest.raises(ZeroDivisionError, match='an edited line'):
        steps.run()
    assert steps.saved == [4]


def test_a_signal_does_not_break_off_the_save_after_an_error():
    steps = Steps({('step', 7): ZeroDivisionError('an edited line')})
    save = steps.save
    steps.save = lambda step, viewed: (step == 6 and os.kill(os.getpid(), signal.SIGTERM), save(step, viewed))
    with stop_signals.handled(), pytest.raises(ZeroDivisionError):
        steps.run()
    assert steps.saved == [4, 6]


def test_a_grid_that_ends_up_empty_leaves_the_steps_that_were_done(tiny_scene, tmp_path, capsys):
    scene = tiny_scene(tmp_path / 'scene')
    for picture in scene.glob('*/*.png'):
        Image.new('RGBA', (16, 16)).save(picture)
    flags = ['--field', 'grid', '--grid_stages', '0:12 0.3:16', '--N_rand', '300', '--N_iters', '100',
             '--i_weights', '99', '--i_img', '1000', '--datadir', str(scene), '--basedir', str(tmp_path),
             '--expname', 'run']
    assert run_nerf.main([*FLAGS, *flags]) == 1
    out, error = capsys.readouterr()
    assert error.splitlines()[-1].startswith('error: the grid is empty')
    assert 'cannot be saved' not in out
    assert 0 < newest_step(tmp_path / 'run') < 99


# Threads of Numba


def has_tbb() -> bool:
    try:
        ctypes.CDLL('libtbb.so.12')
    except OSError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not has_tbb(), reason='needs libtbb.so.12')
def test_a_grids_run_on_one_core_with_tbb_ends(command, tmp_path):
    """A fork of the thread that writes pictures left such a run waiting for TBB's threads after its last line."""
    flags = ['--field', 'grid', '--grid_stages', '0:12 0.3:16 0.6:24', '--N_rand', '300', '--N_iters', '24',
             '--i_testset', '24', '--i_video', '24']
    one_core = ('import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); '
                'os.execv(sys.argv[1], sys.argv[1:])')
    done = subprocess.run([sys.executable, '-c', one_core, *command(*flags)], capture_output=True, timeout=200,
                          env=os.environ | ONE_THREAD | {'NUMBA_THREADING_LAYER': 'tbb'}, check=False)
    assert (done.returncode, b'fork' in done.stderr) == (0, False)
    assert (tmp_path / 'logs' / 'run' / 'run_spiral_000024_rgb.mp4').is_file()
