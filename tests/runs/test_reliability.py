"""What happens to a run from outside: signals, a second run in its folder, full disks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from kill_harness import FLAGS, same
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import run_nerf
from nerf.files import checkpoints
from nerf.files.images import read_image
from nerf.files.run_folder import LOCK
from nerf.files.whole_file import PARTIAL
from nerf.runtime import stop_signals

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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_signal_while_rendering_saves_and_the_next_start_makes_what_is_missing(tiny_scene, flags, started, tmp_path):
    many_views = tiny_scene(tmp_path / 'many', size=48, counts=(4, 2, 60))  # take longer than the wait for the first
    wanted = [*flags, '--datadir', str(many_views), '--N_iters', '90', '--i_img', '30', '--i_weights', '1000',
              '--i_testset', '60']
    process = started(wanted, 'step 60/')
    run_dir = tmp_path / 'run'
    while not (run_dir / 'testset_000060' / '000.png').is_file():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert newest(run_dir)['global_step'] == 60
    assert not (run_dir / 'testset_000060' / 'metrics.json').exists()
    assert run_nerf.main(wanted) == 0
    assert len(list((run_dir / 'testset_000060').glob('*.png'))) == 60
    board = EventAccumulator(str(run_dir)).Reload()
    assert [event.step for event in board.Scalars('val/psnr')] == [30, 60, 90]
    assert [event.step for event in board.Scalars('test/psnr')] == [60]
    assert [event.step for event in board.Scalars('train/psnr')] == list(range(10, 91, 10))


def test_a_signal_that_comes_while_a_file_is_read_is_not_taken_for_a_broken_file(tmp_path):
    os.mkfifo(tmp_path / 'picture.png')  # opening it waits for somebody who writes
    many = {f'part_{i}': torch.zeros(1) for i in range(10000)}  # take longer to read than the wait for the signal
    torch.save({'global_step': 1, 'network_fn_state_dict': many}, tmp_path / 'checkpoint.tar')
    for read, name in ((read_image, 'picture.png'), (checkpoints.read_checkpoint, 'checkpoint.tar')):
        with stop_signals.handled():
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
            with pytest.raises(stop_signals.Stopped):
                read(tmp_path / name)


# One folder, one run


@pytest.mark.slow
def test_a_second_run_in_a_folder_is_refused_with_the_firsts_process_and_host(flags, started, capsys):
    process = started([*flags, '--N_iters', '1000000'], 'step 10/')
    assert run_nerf.main([*flags, '--N_iters', '30']) == 1
    error = capsys.readouterr().err
    assert f'is in use by process {process.pid} on {socket.gethostname()}; wait' in error
    assert error.count('\n') == 1


@pytest.mark.slow
def test_the_lock_of_a_killed_run_is_taken_over_and_its_half_written_files_go(flags, started, tmp_path):
    process = started([*flags, '--N_iters', '1000000'], 'step 10/')
    process.kill()
    process.wait()
    run_dir = tmp_path / 'run'
    assert (run_dir / LOCK).is_file()
    (run_dir / '.partial-000010.tar').write_bytes(b'half')
    assert run_nerf.main([*flags, '--N_iters', '30']) == 0
    assert not [path for path in run_dir.iterdir() if path.name.startswith('.')]


# Files that cannot be written


def block(path: Path) -> None:
    """Puts a folder where `whole_file` would begin to write a file, which therefore cannot be written."""
    path.with_name(PARTIAL + path.name).mkdir(parents=True)


def test_checkpoints_that_cannot_be_written_are_reported_and_training_goes_on(flags, tmp_path, capsys):
    for step in (20, 40):
        block(tmp_path / 'run' / f'{step:06d}.tar')
    assert run_nerf.main([*flags, '--N_iters', '60']) == 0
    said = capsys.readouterr().out
    for step in ('000020', '000040'):
        assert f'warning: {tmp_path / "run" / step}.tar, which needs ' in said
    assert said.count('bytes, cannot be written (') == 2
    assert sorted(path.name for path in (tmp_path / 'run').glob('[0-9]*.tar')) == ['000060.tar']


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(flags, tmp_path, capsys):
    block(tmp_path / 'run' / '000030.tar')
    assert run_nerf.main([*flags, '--N_iters', '30']) == 1
    streams = capsys.readouterr()
    assert streams.err.startswith(f'error: {tmp_path / "run" / "000030.tar"}, which needs ')
    assert streams.err.count('\n') == 1
    assert sorted(path.name for path in (tmp_path / 'run').glob('[0-9]*.tar')) == ['000020.tar']


def test_pictures_and_videos_that_cannot_be_written_do_not_end_a_run(flags, tmp_path, capsys):
    run_dir = tmp_path / 'run'
    block(run_dir / 'run_spiral_000010_rgb.mp4')
    (run_dir / 'testset_000010').write_text('in the way')
    assert run_nerf.main([*flags, '--N_iters', '20', '--i_testset', '10', '--i_video', '10']) == 0
    said = capsys.readouterr().out
    assert '000.png cannot be written' in said
    assert 'run_spiral_000010_rgb.mp4 cannot be written' in said
    assert (run_dir / 'testset_000020' / 'metrics.json').is_file()
    assert (run_dir / 'run_spiral_000020_disp.mp4').is_file()
    assert not (run_dir / 'run_spiral_000010_disp.mp4').exists()


@pytest.mark.slow
def test_files_that_may_not_grow_do_not_end_a_run(flags, tmp_path):
    """No file can be larger than 40 kB, and a checkpoint of this run is."""
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
