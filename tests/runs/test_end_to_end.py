"""The real script, started as a user would, with a tiny budget."""

import json
import os
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.slow  # each start takes seconds

ROOT = Path(__file__).parents[2]
CONFIG = """
expname = tiny
basedir = {folder}/logs
datadir = {folder}/scene
dataset_type = blender
testskip = 1
device = cpu

no_batching = True
use_viewdirs = True
white_bkgd = True
precrop_iters = 4

netdepth = 2
netwidth = 16
netdepth_fine = 2
netwidth_fine = 16
N_samples = 8
N_importance = 8
N_rand = 32

N_iters = 12
i_print = 4
i_img = 6
i_weights = 6
i_testset = 12
i_video = 12
"""


def run(folder: Path, *flags: str, check: bool = True) -> subprocess.CompletedProcess:
    """Starts the script from another working directory than the repository's."""
    done = subprocess.run([sys.executable, ROOT / 'run_nerf.py', '--config', folder / 'tiny.txt', *flags], cwd=folder,
                          capture_output=True, text=True, timeout=300, check=False,
                          env=os.environ | {'OMP_NUM_THREADS': '1'})
    if check:
        assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope='module')
def folder(tiny_scene, tmp_path_factory):
    """Folder with a scene, a config, and the output of a run of 12 steps and of its next start, of 6 more steps."""
    folder = tmp_path_factory.mktemp('user')
    tiny_scene(folder / 'scene')
    (folder / 'tiny.txt').write_text(CONFIG.format(folder=folder), encoding='utf-8')
    for name, flags in (('first', []), ('second', ['--N_iters', '18'])):
        done = run(folder, *flags)
        (folder / f'{name}.out').write_text(done.stdout, encoding='utf-8')
        (folder / f'{name}.err').write_text(done.stderr, encoding='utf-8')
    return folder


@pytest.fixture
def log(folder):
    return folder / 'logs' / 'tiny'


def frames(path: Path) -> np.ndarray:
    return np.stack(imageio.mimread(path, memtest=False))


def test_training_leaves_behind_what_users_look_for(log):
    names = {path.name for path in log.iterdir()}
    expected = {'args.txt', 'config.txt', 'metrics.jsonl', '000006.tar', '000012.tar', '000018.tar', 'testset_000012',
                'tiny_spiral_000012_rgb.mp4', 'tiny_spiral_000012_disp.mp4'}
    assert expected <= names
    assert any(name.startswith('events.out.tfevents.') for name in names)
    assert not any('partial' in name for name in names)
    assert sorted(path.name for path in (log / 'testset_000012').iterdir()) == ['000.png', '001.png', 'metrics.json']


def test_the_metrics_have_a_line_for_every_i_print_across_the_resume(log):
    lines = [json.loads(line) for line in (log / 'metrics.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines] == [4, 8, 12, 16, 18]
    seconds = [line['seconds'] for line in lines]
    assert seconds == sorted(seconds)
    for line in lines:
        assert set(line) == {'step', 'loss', 'psnr', 'psnr0', 'lr', 'rays_per_s', 'seconds'}
        assert line['loss'] == pytest.approx(10 ** (-line['psnr'] / 10) + 10 ** (-line['psnr0'] / 10), rel=1e-4)
        assert line['lr'] == pytest.approx(5e-4 * 0.1 ** (line['step'] / 250000))
        assert line['rays_per_s'] > 0


def test_the_output_says_what_runs_where_it_goes_on_and_how_to_look_at_it(folder, log):
    first, second = ((folder / f'{name}.out').read_text() for name in ('first', 'second'))
    assert '8 images of 16x16, 4 train / 2 val / 2 test, near 2, far 6' in first
    assert 'cpu' in first
    assert 'weights from' not in first
    assert [line.split()[1] for line in first.splitlines() if line.startswith('step ') and 'loss' in line] == [
        '4/12', '8/12', '12/12']
    assert '2 test views, psnr' in first
    assert f'--config {log / "args.txt"} --render_only' in first
    assert f'weights from {log / "000012.tar"} (step 12)' in second
    assert 'step 16/18' in second
    assert '\r' not in first + second + (folder / 'first.err').read_text()


def test_tensorboard_finds_scalars_and_pictures_of_one_unbroken_run(log):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(log)).Reload()
    for tag in ('train/loss', 'train/psnr', 'train/psnr_coarse', 'train/lr', 'train/rays_per_second'):
        assert [event.step for event in board.Scalars(tag)] == [4, 8, 12, 16, 18]
    assert [event.step for event in board.Scalars('val/psnr')] == [6, 12, 18]
    assert [event.step for event in board.Scalars('test/psnr')] == [12]
    for tag in ('val/rgb', 'val/disparity', 'val/opacity', 'val/target'):
        assert [(event.step, event.width, event.height) for event in board.Images(tag)] == [
            (6, 16, 16), (12, 16, 16), (18, 16, 16)]


def test_the_videos_show_the_forty_views_of_the_turntable(log):
    for kind in ('rgb', 'disp'):
        assert frames(log / f'tiny_spiral_000012_{kind}.mp4').shape == (40, 16, 16, 3)
        reader = imageio.get_reader(log / f'tiny_spiral_000012_{kind}.mp4')
        assert reader.get_meta_data()['fps'] == 30


def test_args_txt_repeats_the_run_bit_by_bit(folder, log):
    run(folder, '--config', str(log / 'args.txt'), '--expname', 'again', '--i_testset', '999', '--i_video', '999')
    again, first = (torch.load(path / '000018.tar', weights_only=True) for path in (log.parent / 'again', log))
    for key in ('network_fn_state_dict', 'network_fine_state_dict'):
        assert all(torch.equal(again[key][name], first[key][name]) for name in first[key])
    assert (log / 'config.txt').read_text() == (folder / 'tiny.txt').read_text()


def test_render_only_writes_pictures_disparity_and_videos_of_the_path(folder, log):
    done = run(folder, '--render_only', '--render_factor', '2')
    out = log / 'renderonly_path_000018'
    assert f'40 views and their videos are in {out}' in done.stdout
    assert {path.name for path in out.iterdir()} == {
        *(f'{i:03d}.png' for i in range(40)), *(f'disp_{i:03d}.png' for i in range(40)), 'video.mp4', 'video_disp.mp4'}
    pictures = np.stack([np.asarray(Image.open(out / f'{i:03d}.png')) for i in range(40)])
    assert pictures.shape == (40, 8, 8, 3)
    assert Image.open(out / 'disp_000.png').size == (8, 8)
    np.testing.assert_allclose(frames(out / 'video.mp4').mean((1, 2, 3)), pictures.mean((1, 2, 3)), atol=12)


def test_render_test_measures_the_test_views_at_full_size_only(folder, log):
    out = log / 'renderonly_test_000018'
    run(folder, '--render_only', '--render_test')
    metrics = json.loads((out / 'metrics.json').read_text())
    assert (metrics['step'], metrics['sampler']) == (18, 'hierarchical')
    for row, i in zip(metrics['images'], range(2)):
        assert row['file'] == f'{i:03d}.png'
        shown = np.asarray(Image.open(out / row['file']), np.float64) / 255
        truth = np.asarray(Image.open(folder / 'scene' / 'test' / f'r_{i}.png'), np.float64) / 255
        truth = truth[..., :3] * truth[..., 3:] + 1 - truth[..., 3:]
        assert row['psnr'] == pytest.approx(-10 * np.log10(((shown - truth) ** 2).mean()), abs=1e-3)

    run(folder, '--render_only', '--render_test', '--render_factor', '2')
    assert Image.open(out / '001.png').size == (8, 8)
    assert not (out / 'metrics.json').exists()  # those of the pictures that were here


@pytest.mark.parametrize(('flags', 'code', 'message'), [
    (['--N_rand', '0'], 2, "run_nerf.py: error: argument --N_rand: '0' is not a whole number from 1"),
    (['--datadir', 'nowhere', '--expname', 'never'], 1, 'error: datadir nowhere is not a folder'),
    (['--render_only', '--expname', 'never'], 1, 'never has no checkpoint; train first'),
    (['--mesh_only', '--expname', 'never'], 1, 'never has no checkpoint; train first'),
    (['--mesh_only', '--mesh_file', 'chair.stl'], 2, 'ending in .ply, .obj or .glb'),
])
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(folder, log, flags, code, message):
    done = run(folder, *flags, check=False)
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (log.parent / 'never').exists()
