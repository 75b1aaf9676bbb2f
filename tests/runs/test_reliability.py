"""What happens to a run from outside: signals, a second run in its folder, full disks."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import imageio.v2 as imageio
import pytest
import torch
from kill_harness import FLAGS, same
from PIL import Image

import run_nerf
from nerf.files import checkpoints
from nerf.files.images import read_image
from nerf.files.run_folder import LOCK
from nerf.outputs import Outputs
from nerf.runtime import stop_signals
from nerf.train_log import TrainLog

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def scene(tiny_scene, tmp_path_factory):
    return tiny_scene(tmp_path_factory.mktemp('scene'))


@pytest.fixture
def flags(scene, tmp_path):
    return [*FLAGS, '--datadir', str(scene), '--basedir', str(tmp_path), '--expname', 'run']


@pytest.fixture
def started():
    """Starts the script; what still runs at the end of a test is killed."""
    processes = []

    def start(flags: list[str], wait_for: str) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, '-u', ROOT / 'run_nerf.py', *flags], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
        processes.append(process)
        for line in process.stdout:
            if line.startswith(wait_for):
                return process
        raise AssertionError(process.stderr.read())
    yield start
    for process in processes:
        process.kill()
        process.communicate()


def newest(run_dir: Path) -> dict:
    return checkpoints.read_newest(run_dir)[1]


# Signals


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_ends_with_its_code(flags, started, tmp_path, number, code):
    process = started([*flags, '--N_iters', '1000000', '--i_weights', '1000000'], 'step 20/')
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert error.splitlines()[-1] == f'stopped by {number.name}'
    run_dir = tmp_path / 'run'
    stopped_at = newest(run_dir)['global_step']
    assert stopped_at >= 20
    assert not [path for path in run_dir.iterdir() if path.name.startswith('.')]
    whole = [*flags, '--basedir', str(tmp_path / 'whole'), '--N_iters', str(stopped_at)]
    assert run_nerf.main(whole) == 0  # the state that was saved is that of a run to this step
    expected = newest(tmp_path / 'whole' / 'run')
    assert same(newest(run_dir)['network_fine_state_dict'], expected['network_fine_state_dict'])
    assert same(newest(run_dir)['optimizer_state_dict'], expected['optimizer_state_dict'])


def test_a_second_signal_ends_at_once(flags, started, tmp_path):
    slow = ['--N_rand', '1024', '--netwidth', '512', '--netdepth', '60', '--N_samples', '2000']  # a step of minutes
    process = started([*flags, '--N_iters', '5', *slow], 'starting')
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 143
    assert 'SIGTERM: finishing the step and saving; a second signal ends' in error


def test_a_signal_while_rendering_saves_and_the_next_start_makes_what_is_missing(flags, tmp_path, monkeypatch):
    wanted = [*flags, '--N_iters', '120', '--i_img', '30', '--i_weights', '1000', '--i_testset', '60']

    def interrupted(self, model, step):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError('the signal comes at once here')
    for name, step in (('view', 30), ('test_set', 60)):
        monkeypatch.setattr(Outputs, name, interrupted)
        assert run_nerf.main(wanted) == 143
        monkeypatch.undo()
        assert newest(tmp_path / 'run')['global_step'] == step
    assert run_nerf.main(wanted) == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    board = EventAccumulator(str(tmp_path / 'run')).Reload()
    assert [event.step for event in board.Scalars('val/psnr')] == [30, 60, 90, 120]
    assert [event.step for event in board.Scalars('test/psnr')] == [60, 120]
    assert [event.step for event in board.Scalars('train/psnr')] == list(range(10, 121, 10))


def test_a_signal_that_comes_while_a_file_is_read_is_not_taken_for_a_broken_file(tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.0)
    monkeypatch.setattr(Image, 'open', stop)
    monkeypatch.setattr(torch, 'load', stop)
    for read in (read_image, checkpoints.read_checkpoint):
        (tmp_path / 'file').write_bytes(b'x')
        with stop_signals.handled(), pytest.raises(stop_signals.Stopped):
            read(tmp_path / 'file')


# One folder, one run


def test_a_second_run_in_a_folder_is_refused_with_the_firsts_process_and_host(flags, started, capsys):
    process = started([*flags, '--N_iters', '1000000'], 'step 10/')
    assert run_nerf.main([*flags, '--N_iters', '30']) == 1
    error = capsys.readouterr().err
    assert f'is in use by process {process.pid} on {socket.gethostname()}; wait' in error
    assert error.count('\n') == 1


def test_the_lock_of_a_killed_run_is_taken_over_and_its_half_written_files_go(flags, started, tmp_path):
    process = started([*flags, '--N_iters', '1000000'], 'step 10/')
    process.kill()
    process.wait()
    run_dir = tmp_path / 'run'
    assert (run_dir / LOCK).is_file()
    (run_dir / '.partial-000010.tar').write_bytes(b'half')
    assert run_nerf.main([*flags, '--N_iters', '30']) == 0
    assert not [path for path in run_dir.iterdir() if path.name.startswith('.')]


# Full disks


def fail_for(monkeypatch, module, name: str, calls: int) -> None:
    """The first calls of a function find the disk full."""
    function, left = getattr(module, name), [calls]

    def once_full(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, 'No space left on device')
        return function(*args, **kwargs)
    monkeypatch.setattr(module, name, once_full)


def test_a_disk_that_is_full_for_a_while_is_reported_and_training_goes_on(flags, tmp_path, capsys, monkeypatch):
    fail_for(monkeypatch, torch, 'save', 2)
    assert run_nerf.main([*flags, '--N_iters', '60']) == 0
    said = capsys.readouterr().out
    for step in ('000020', '000040'):
        assert f'warning: {tmp_path / "run" / step}.tar, which needs ' in said
    assert said.count('bytes, cannot be written ([Errno 28] No space left on device)') == 2
    assert sorted(path.name for path in (tmp_path / 'run').glob('*.tar')) == ['000060.tar']


def test_a_disk_that_is_full_at_the_end_is_an_error(flags, tmp_path, capsys, monkeypatch):
    fail_for(monkeypatch, torch, 'save', 100)
    assert run_nerf.main([*flags, '--N_iters', '30']) == 1
    streams = capsys.readouterr()
    assert streams.err.startswith(f'error: {tmp_path / "run" / "000030.tar"}, which needs ')
    assert streams.err.count('\n') == 1
    assert not list((tmp_path / 'run').glob('*.tar'))


def test_pictures_and_videos_that_cannot_be_written_do_not_end_a_run(flags, tmp_path, capsys, monkeypatch):
    fail_for(monkeypatch, Image.Image, 'save', 1)
    fail_for(monkeypatch, imageio, 'get_writer', 1)
    assert run_nerf.main([*flags, '--N_iters', '20', '--i_testset', '10', '--i_video', '10']) == 0
    said = capsys.readouterr().out
    assert '000.png cannot be written' in said
    assert 'run_spiral_000010_rgb.mp4 cannot be written' in said
    run_dir = tmp_path / 'run'
    assert (run_dir / 'testset_000020' / 'metrics.json').is_file()
    assert not (run_dir / 'testset_000010' / 'metrics.json').exists()


def test_metrics_and_tensorboard_that_cannot_be_written_do_not_end_a_run(flags, tmp_path, capsys, monkeypatch):
    fail_for(monkeypatch, TrainLog, '_write_line', 1)
    from torch.utils.tensorboard import SummaryWriter
    fail_for(monkeypatch, SummaryWriter, 'add_scalar', 1)
    assert run_nerf.main([*flags, '--N_iters', '30']) == 0
    said = capsys.readouterr().out
    assert 'metrics.jsonl cannot be written ([Errno 28] No space left on device); training goes on' in said
    assert 'TensorBoard cannot be written to any more' in said
    lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
    assert len(lines) == 2  # of steps 20 and 30


def test_files_that_may_not_grow_do_not_end_a_run(flags, tmp_path):
    """A real limit instead of a feigned one: no file past 40 kB, which no checkpoint of this run fits in."""
    script = ('import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000)); '
              f'sys.path.insert(0, {str(ROOT)!r}); import run_nerf; sys.exit(run_nerf.main(sys.argv[1:]))')
    done = subprocess.run([sys.executable, '-c', script, *flags, '--N_iters', '50', '--i_img', '1000'], check=False,
                          capture_output=True, text=True, env=os.environ | {'OMP_NUM_THREADS': '1'}, timeout=120)
    assert done.returncode == 1
    assert 'step 50/50' in done.stdout
    assert done.stdout.count('.tar, which needs ') == 3  # at 20, 40 and 50
    assert done.stderr.startswith(f'error: {tmp_path / "run" / "000050.tar"}')
    assert len(done.stderr.splitlines()) == 1
    assert not [path for path in (tmp_path / 'run').iterdir() if 'partial' in path.name or path.suffix == '.tar']
