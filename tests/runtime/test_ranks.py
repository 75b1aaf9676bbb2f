"""nerf/runtime/ranks.py: processes that torchrun starts share a run, whose results are those of one process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from kill_harness import FLAGS, same
from PIL import Image

import run_nerf
from nerf.files import checkpoints
from nerf.runtime import ranks

ROOT = Path(__file__).parents[2]
# Shares of 16 and 17 rays, in 2 and 3 tiles; 3 test views, so that the last has no other beside it.
PLAIN = [*FLAGS, '--precision', 'fp32', '--N_rand', '33', '--chunk', '8', '--N_iters', '40', '--i_img', '20',
         '--i_testset', '20', '--i_video', '40', '--expname', 'run']
NO_VIDEO = ['--i_video', '1000', '--i_testset', '1000', '--i_img', '1000']
# Notes the files that rank 1 writes and the threads of gloo that its interpreter's shutdown meets; makes rank 0 slow at
# writing a checkpoint.
WATCH = """
import atexit, glob, os, sys, time
def note(*words):
    os.write(notes, ' '.join([*map(str, words), '\\n']).encode())
def note_threads():
    for path in glob.glob('/proc/self/task/*/comm'):
        with open(path) as name:
            if 'gloo' in (name := name.read()):
                note('thread', name)
def watch(event, args):
    if event in ('os.mkdir', 'os.rename', 'os.remove') or event == 'open' and set(str(args[1])) & set('wax+'):
        if os.environ.get('RANK') == '0' and event == 'os.rename' and str(args[1]).endswith('.tar'):
            time.sleep(float(os.environ.get('SLOW', 0)))
        if os.environ.get('RANK') == '1' and os.environ['WATCHED'] in str(args[0]):
            note(event, args[0])
if 'RANK' in os.environ and 'WATCHED' in os.environ:
    notes = os.open(os.path.join(os.path.dirname(__file__), 'notes'), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.addaudithook(watch)
    if os.environ.get('RANK') == '1':
        atexit.register(note_threads)
"""


@pytest.fixture(scope='module')
def folder(tiny_scene, tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    tiny_scene(folder / 'scene', counts=(4, 2, 3))
    (folder / 'hook').mkdir()
    (folder / 'hook' / 'sitecustomize.py').write_text(WATCH)
    return folder


@pytest.fixture(scope='module')
def two(folder):
    """Starts the script as two processes; their output goes through pipes."""
    started = []

    def start(logs: str, *extra: str, flags=PLAIN, **env: str) -> subprocess.Popen:
        command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
                   str(ROOT / 'run_nerf.py'), *flags, *where(folder, logs), *extra]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env=os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': '1'} | env)
        started.append(process)
        return process
    yield start
    for process in started:
        process.terminate()
        process.communicate(timeout=60)


def where(folder: Path, logs: str) -> list[str]:
    return ['--datadir', str(folder / 'scene'), '--basedir', str(folder / logs)]


def one(folder: Path, logs: str, *extra: str, flags=PLAIN) -> Path:
    """Does in this process what the flags say; the run's folder."""
    assert run_nerf.main([*flags, *where(folder, logs), *extra]) == 0
    return folder / logs / 'run'


def finish(process: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    """What it says."""
    out, error = process.communicate(timeout=120)
    assert process.returncode == code, error
    return out, error


def await_line(process: subprocess.Popen, beginning: str) -> None:
    assert any(line.startswith(beginning) for line in process.stdout), process.stderr.read()


def workers(process: subprocess.Popen) -> dict[int, int]:
    """Process ids by rank."""
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    env = {pid: Path(f'/proc/{pid}/environ').read_bytes().split(b'\0') for pid in children}
    return {int(part[5:]): int(pid) for pid in children for part in env[pid] if part.startswith(b'RANK=')}


def alive(pid: int) -> bool:
    status = Path(f'/proc/{pid}/stat')
    return status.exists() and status.read_text().rpartition(')')[2].split()[0] != 'Z'


def begin_at(folder: Path, logs: str, checkpoint: Path) -> None:
    """Gives a new run a checkpoint to go on from."""
    (folder / logs / 'run').mkdir(parents=True)
    shutil.copy(checkpoint, folder / logs / 'run')


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / 'metrics.jsonl').read_text().splitlines()]


def files(run_dir: Path) -> list[str]:
    return sorted(str(path.relative_to(run_dir)) for path in run_dir.rglob('*') if not path.name.startswith('events.'))


def assert_same_training(ours: Path, wanted: Path, step: int) -> None:
    """Weights and their average, running means, colours that the guard has seen and the next draws."""
    a, b = (torch.load(checkpoints.checkpoint_path(run_dir, step), weights_only=True) for run_dir in (ours, wanted))
    assert a.keys() == b.keys()
    for key in {'network_fn_state_dict', 'network_fine_state_dict', 'averaged'} & b.keys():
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-4)
    means = [{n: state['exp_avg'] for n, state in one['optimizer_state_dict']['state'].items()} for one in (a, b)]
    for n, mean in means[1].items():
        torch.testing.assert_close(means[0][n], mean, rtol=1e-2, atol=1e-3 * mean.abs().max().item() + 1e-7)
    torch.testing.assert_close(a['run_state']['guard'], b['run_state']['guard'], rtol=1e-4, atol=1e-5)
    assert same(a['run_state']['batcher'], b['run_state']['batcher'])


def assert_same_run(ours: Path, wanted: Path) -> None:
    for a, b in zip(lines(ours), lines(wanted), strict=True):
        keys = ('loss', 'psnr', 'psnr0')
        assert [a[key] for key in keys] == pytest.approx([b[key] for key in keys], rel=1e-5, abs=1e-5)
    assert_same_training(ours, wanted, 40)
    assert_same_outputs(ours, wanted)


def assert_same_outputs(ours: Path, wanted: Path) -> None:
    """The same files; pictures within one grey level, videos of as many frames."""
    assert files(ours) == files(wanted)
    for path in [*wanted.rglob('testset_*/*.png'), *wanted.rglob('renderonly_*/*.png')]:
        a, b = (np.asarray(Image.open(one), int) for one in (ours / path.relative_to(wanted), path))
        assert abs(a - b).max() <= 1
    for path in wanted.rglob('*.mp4'):
        a, b = (np.stack(imageio.mimread(one, memtest=False)) for one in (ours / path.relative_to(wanted), path))
        assert a.shape == b.shape
        np.testing.assert_allclose(a.mean((1, 2, 3)), b.mean((1, 2, 3)), atol=2)


@pytest.fixture(scope='module')
def alone(folder):
    return one(folder, 'alone')


@pytest.fixture(scope='module')
def together(folder, two):
    """The run of two processes, its output and what the second wrote."""
    out, error = finish(two('together', PYTHONPATH=str(folder / 'hook'), WATCHED=str(folder / 'together')))
    return folder / 'together' / 'run', out, error, (folder / 'hook' / 'notes').read_text()


@pytest.mark.slow
def test_two_processes_train_and_render_as_one_does(alone, together):
    run_dir, *_ = together
    assert [line['step'] for line in lines(run_dir)] == [10, 20, 30, 40]
    assert_same_run(run_dir, alone)


@pytest.mark.slow
def test_only_the_first_process_prints_and_writes(together):
    run_dir, out, error, notes = together
    printed = [line.split('/')[0] for line in out.splitlines() if '  loss ' in line]
    assert printed == ['step 10', 'step 20', 'step 30', 'step 40']
    assert [out.count(words) for words in ('networks  ', 'starting at step 0', '3 test views', '40 steps done')] == [
        1, 1, 2, 1]
    assert 'rror' not in error
    assert notes == ''
    assert len(list(run_dir.glob('events.*'))) == 1


@pytest.mark.slow
def test_a_test_set_that_cannot_be_written_leaves_two_processes_in_step_in_the_other_ray_mode(folder, two):
    flags = [flag for flag in PLAIN if flag != '--use_viewdirs'] + [
        '--no_batching', '--precrop_iters', '10', '--raw_noise_std', '1', '--chunk', '1000', '--i_video', '1000',
        '--ema_decay', '0.9']
    for logs in ('blocked_alone', 'blocked'):
        (folder / logs / 'run').mkdir(parents=True)
        (folder / logs / 'run' / 'testset_000020').touch()
    alone = one(folder, 'blocked_alone', flags=flags)
    out, _ = finish(two('blocked', flags=flags))
    run_dir = folder / 'blocked' / 'run'
    assert out.count('testset_000020/000.png cannot be written') == 1
    assert [line['step'] for line in lines(run_dir)] == [10, 20, 30, 40]
    assert_same_run(run_dir, alone)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(folder, two, alone, together):
    begin_at(folder, 'two_then_one', checkpoints.checkpoint_path(together[0], 20))
    one(folder, 'two_then_one', *NO_VIDEO)
    assert_same_training(folder / 'two_then_one' / 'run', alone, 40)
    begin_at(folder, 'one_then_two', checkpoints.checkpoint_path(alone, 20))
    out, _ = finish(two('one_then_two', '--i_video', '1000'))
    assert out.count('going on at step 20') == 1
    assert_same_training(folder / 'one_then_two' / 'run', alone, 40)
    assert files(folder / 'one_then_two' / 'run') == [  # what was due at step 20 is made up for
        path for path in files(alone) if not path.endswith('.mp4')]


@pytest.mark.slow
def test_a_signal_to_one_and_the_death_of_one_end_all_and_the_run_can_go_on(folder, two):
    endless = ['--N_iters', '1000000', '--i_weights', '1000000', *NO_VIDEO]
    run_dir = folder / 'stopped' / 'run'
    process = two('stopped', *endless, PYTHONPATH=str(folder / 'hook'), WATCHED='nothing', SLOW='2')
    await_line(process, 'step 20/')
    os.kill(workers(process)[1], signal.SIGTERM)
    finish(process, 1)
    stopped_at = checkpoints.read_newest(run_dir)[1]['global_step']
    assert stopped_at >= 20
    assert_same_training(run_dir, one(folder, 'as_far', '--N_iters', str(stopped_at), *NO_VIDEO), stopped_at)

    process = two('stopped', *endless, '--i_weights', '10')
    await_line(process, f'step {stopped_at // 10 * 10 + 30}/')
    pids = workers(process)
    assert sorted(pids) == [0, 1]
    os.kill(pids[1], signal.SIGKILL)
    _, error = finish(process, 1)
    assert re.search('another process of this run has ended; start the same command again|stopped by SIGTERM', error)
    assert 'run_nerf.py", line' not in error  # the first hears of the gap in the exchange or of torchrun's SIGTERM
    assert not any(map(alive, pids.values()))
    newest = checkpoints.read_newest(run_dir)[1]['global_step']
    assert newest >= stopped_at // 10 * 10 + 20
    one(folder, 'stopped', '--N_iters', str(newest + 10), *NO_VIDEO)
    assert checkpoints.read_newest(run_dir)[1]['global_step'] == newest + 10


@pytest.mark.slow
def test_more_processes_than_rays_are_an_error(folder, two):
    _, error = finish(two('rays', '--N_rand', '1'), 1)
    assert re.search(r'^error( \(process 1\))?: N_rand is 1, the rays of all 2 processes in a step; raise it$', error,
                     re.MULTILINE)  # either may not get to say so: torchrun stops it when the other has ended
    assert 'run_nerf.py", line' not in error  # torchrun's own report has a traceback
    assert not (folder / 'rays').exists()


@pytest.mark.slow
def test_a_mesh_is_written_by_the_first_process_alone(folder, two, together):
    begin_at(folder, 'mesh', checkpoints.checkpoint_path(together[0], 40))
    out, _ = finish(two('mesh', '--mesh_only', '--mesh_grid_size', '16', '--mesh_threshold', '0.1',
                        PYTHONPATH=str(folder / 'hook'), WATCHED=str(folder / 'mesh')))
    assert out.count('weights from') == 1
    assert len(list((folder / 'mesh' / 'run').glob('mesh_*.ply'))) == 1
    assert (folder / 'hook' / 'notes').read_text() == ''


@pytest.mark.slow
def test_two_processes_render_an_odd_number_of_views_as_one_does(folder, two, together):
    for logs in ('render_alone', 'render'):
        begin_at(folder, logs, checkpoints.checkpoint_path(together[0], 40))
    alone = one(folder, 'render_alone', '--render_only', '--render_test', '--render_factor', '0')
    out, _ = finish(two('render', '--render_only', '--render_test', '--render_factor', '0',
                        PYTHONPATH=str(folder / 'hook'), WATCHED=str(folder / 'render')))
    assert_same_outputs(folder / 'render' / 'run', alone)
    assert len(list(alone.rglob('*.png'))) == 6
    assert out.count('3 views and their videos are in') == 1
    assert (folder / 'hook' / 'notes').read_text() == ''


# The functions


@pytest.mark.parametrize('count', [1, 2, 3, 7, 8])
@pytest.mark.parametrize('n', [0, 1, 7, 8, 4096])
def test_shares_follow_each_other_cover_everything_and_differ_by_one_at_most(as_rank, count, n):
    shares = []
    for rank in range(count):
        as_rank(rank, count)
        shares.append(ranks.share(n))
    assert [0, *(share.stop for share in shares)] == [*(share.start for share in shares), n]
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_a_process_that_is_not_told_how_to_find_the_others_is_alone(as_rank, monkeypatch):
    as_rank(1, 2)
    assert (ranks.count(), ranks.rank()) == (2, 1)
    monkeypatch.delenv('MASTER_ADDR')  # as in a cluster's job that knows nothing of torchrun
    assert (ranks.count(), ranks.rank()) == (1, 0)


def test_a_process_that_is_alone_exchanges_nothing():
    x = torch.tensor([3.0, 4.0])
    ranks.add_up([x])
    assert x.tolist() == [3.0, 4.0]
    assert ranks.largest(x) is x
    assert ranks.gathered(x) == [x]
    assert ranks.maximum(5) == 5
    assert ranks.broadcast(['a', 1]) == ['a', 1]
    assert ranks.share(7) == slice(0, 7)
