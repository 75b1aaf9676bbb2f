"""What a run says: the terminal, TensorBoard, metrics.jsonl, summary.png and args.txt."""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nerf.files import run_folder
from nerf.train_log import LARGEST_ERROR, TrainLog, draw_summary, error_map, log_mesh

ROOT = Path(__file__).parents[1]
STEPS, MORE = 30, 44

SCALARS = ['train/loss', 'train/psnr', 'train/psnr_coarse', 'train/lr', 'train/rays_per_second', 'memory/peak_mb',
           'val/psnr', 'test/psnr', 'test/ssim']
IMAGES = [f'val/{name}' for name in ('rgb', 'disparity', 'opacity', 'target', 'error', 'rgb_coarse', 'disparity_coarse',
                                     'z_std')]
HISTOGRAMS = ['val/density', 'val/weights']

FLAGS = ['--dataset_type', 'blender', '--white_bkgd', '--use_viewdirs', '--netdepth', '2', '--netwidth', '16',
         '--netdepth_fine', '2', '--netwidth_fine', '16', '--multires', '3', '--multires_views', '2',
         '--N_samples', '8', '--N_importance', '8', '--N_rand', '64', '--lrate', '5e-3', '--testskip', '1',
         '--device', 'cpu', '--i_print', '4', '--i_img', '10', '--i_weights', '10', '--i_testset', '20', '--i_video',
         '1000', '--seed', '3']


@pytest.fixture(scope='module')
def run(tiny_scene, tmp_path_factory):
    """The folder of a run that was cut off behind step 34, whose newest checkpoint is of step 30, and went on to 44;
    what its two starts printed is beside it."""
    folder = tmp_path_factory.mktemp('user')
    scene = tiny_scene(folder / 'scene')
    command = [sys.executable, ROOT / 'run_nerf.py', *FLAGS, '--datadir', scene, '--basedir', folder / 'logs',
               '--expname', 'run']
    for name, steps in (('first', 34), ('second', MORE)):
        with open(folder / f'{name}.txt', 'wb') as out:  # as in: python run_nerf.py ... > first.txt 2>&1
            subprocess.run([*command, '--N_iters', str(steps)], stdout=out, stderr=subprocess.STDOUT, check=True,
                           env=os.environ | {'OMP_NUM_THREADS': '1'})
        if name == 'first':
            (folder / 'logs' / 'run' / '000034.tar').unlink()
    return folder / 'logs' / 'run'


@pytest.fixture(scope='module')
def board(run) -> EventAccumulator:
    events = EventAccumulator(str(run), size_guidance={'images': 0, 'scalars': 0, 'histograms': 0})
    return events.Reload()


# TensorBoard


def test_every_tag_is_there(board):
    tags = board.Tags()
    assert sorted(tags['scalars']) == sorted(SCALARS)
    assert sorted(tags['images']) == sorted(IMAGES)
    assert sorted(tags['histograms']) == sorted(HISTOGRAMS)
    assert tags['tensors'] == ['flags/text_summary']


def test_curves_are_unbroken_where_a_run_was_cut_off_and_went_on(board, run):
    logged = [4 * i for i in range(1, 12)]
    for tag in ('train/loss', 'train/psnr', 'train/psnr_coarse', 'train/lr', 'memory/peak_mb'):
        assert [event.step for event in board.Scalars(tag)] == logged, tag
    assert [event.step for event in board.Scalars('val/psnr')] == [10, 20, 30, 40]
    assert [event.step for event in board.Scalars('test/psnr')] == [20, 40]
    for tag in IMAGES:
        assert [event.step for event in board.Images(tag)] == [10, 20, 30, 40]
    assert [json.loads(line)['step'] for line in (run / 'metrics.jsonl').read_text().splitlines()] == logged


def test_scalars_are_those_of_metrics_jsonl(board, run):
    lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    for key, tag in (('loss', 'train/loss'), ('psnr', 'train/psnr'), ('psnr0', 'train/psnr_coarse'),
                     ('lr', 'train/lr'), ('rays_per_s', 'train/rays_per_second')):
        assert [event.value for event in board.Scalars(tag)] == pytest.approx([line[key] for line in lines])
    for line in lines:
        fine, coarse = (10 ** (-0.1 * line[key]) for key in ('psnr', 'psnr0'))
        assert line['loss'] == pytest.approx(fine + coarse, rel=1e-4)
        assert line['lr'] == pytest.approx(5e-3 * 0.1 ** (line['step'] / 250000))
        assert line['rays_per_s'] > 0
    assert np.all(np.diff([line['seconds'] for line in lines]) > 0)
    assert all(event.value > 0 for event in board.Scalars('memory/peak_mb'))
    test = json.loads((run / 'testset_000040' / 'metrics.json').read_text())['mean']
    for key in ('psnr', 'ssim'):
        assert board.Scalars(f'test/{key}')[-1].value == pytest.approx(test[key])


def pictures(board: EventAccumulator, name: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(event.encoded_image_string))).astype(float)
            for event in board.Images(f'val/{name}')]


def test_held_out_pictures_are_of_the_view_and_its_error(board, run):
    views = {name: pictures(board, name) for name in ('rgb', 'target', 'error', 'opacity', 'z_std', 'rgb_coarse')}
    psnrs = [event.value for event in board.Scalars('val/psnr')]
    for n, psnr in enumerate(psnrs):
        rgb, target = views['rgb'][n], views['target'][n]
        assert rgb.shape == target.shape == (16, 16, 3)
        assert psnr == pytest.approx(-10 * math.log10(np.mean((rgb - target) ** 2) / 255 ** 2), abs=0.05)
        off = np.abs(rgb - target).mean(-1) / 255 / LARGEST_ERROR
        np.testing.assert_allclose(views['error'][n][..., 0] / 255, off.clip(0, 1), atol=0.02)
        assert views['z_std'][n].max() == 255
        assert views['rgb_coarse'][n].shape == (16, 16, 3)
    held_out = Image.open(run.parents[1] / 'scene' / 'val' / 'r_0.png')
    on_white = Image.alpha_composite(Image.new('RGBA', (16, 16), 'white'), held_out).convert('RGB')
    np.testing.assert_allclose(views['target'][0], np.asarray(on_white), atol=1)


def test_histograms_are_of_densities_and_of_weights(board):
    for event in board.Histograms('val/weights'):
        assert 0.0 <= event.histogram_value.min <= event.histogram_value.max <= 1.0
        assert event.histogram_value.num == 256 * 16  # all rays of this small view, coarse and fine samples
    for event in board.Histograms('val/density'):
        assert event.histogram_value.min >= 0.0
        assert event.histogram_value.num == 256 * 8


def test_the_flags_are_a_table(board):
    text = board.Tensors('flags/text_summary')[0].tensor_proto.string_val[0].decode()
    assert text.startswith('| flag | value |\n| --- | --- |\n')
    assert '| N_rand | 64 |' in text
    assert '| lrate | 0.005 |' in text


def test_a_mesh_is_added(tmp_path):
    ball = trimesh.creation.icosphere(subdivisions=1)
    ball.visual.vertex_colors = [200, 100, 50, 255]
    log_mesh(tmp_path, ball, 7)
    events = EventAccumulator(str(tmp_path)).Reload()
    tensors = {tag: events.Tensors(tag)[0] for tag in events.Tags()['tensors']}
    assert {event.step for event in tensors.values()} == {7}
    shapes = {tag: [dim.size for dim in event.tensor_proto.tensor_shape.dim] for tag, event in tensors.items()}
    assert shapes == {'mesh_VERTEX': [1, 42, 3], 'mesh_FACE': [1, 80, 3], 'mesh_COLOR': [1, 42, 3]}


@pytest.fixture(scope='module')
def server(run):
    """The address of a TensorBoard on the folder of runs, on a free port of the loopback device."""
    process = subprocess.Popen([sys.executable, '-m', 'tensorboard.main', '--logdir', run.parent, '--host', '127.0.0.1',
                                '--port', '0', '--load_fast', 'false'], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(r'http://127\.0\.0\.1:\d+', line):
                yield found.group()
                return
        assert 'Permission' in said[-1] or 'bind' in said[-1], said[-3:]
        pytest.skip(f'TensorBoard cannot start here: {said[-1]}')
    finally:
        process.kill()
        process.wait()


def get(server: str, path: str, **query) -> bytes:
    with urllib.request.urlopen(f'{server}/data/{path}?{urllib.parse.urlencode(query)}', timeout=30) as answer:
        return answer.read()


def get_when_loaded(server: str, path: str, **query):
    """TensorBoard answers before it has read the files."""
    for _ in range(600):
        with suppress(urllib.error.HTTPError):
            if answer := json.loads(get(server, path, **query)):
                return answer
        time.sleep(0.1)
    raise AssertionError(f'no answer to {path} {query}')


def test_a_browser_gets_scalars_and_pictures_from_tensorboard(server, run):
    assert get_when_loaded(server, 'runs') == ['run']
    get_when_loaded(server, 'plugin/scalars/scalars', run='run', tag='test/ssim')  # written last
    losses = get_when_loaded(server, 'plugin/scalars/scalars', run='run', tag='train/loss')
    lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    assert [step for _, step, _ in losses] == [line['step'] for line in lines]
    assert [value for _, _, value in losses] == pytest.approx([line['loss'] for line in lines])
    listed = get_when_loaded(server, 'plugin/images/images', run='run', tag='val/rgb', sample='0')
    assert [entry['step'] for entry in listed] == [10, 20, 30, 40]
    picture = Image.open(io.BytesIO(get(server, f"plugin/images/individualImage?{listed[-1]['query']}&")))
    assert picture.size == (16, 16)


# The terminal


def test_output_to_a_file_has_one_line_per_i_print_and_no_control_characters(run):
    folder = run.parents[1]
    for name, steps in (('first', [*range(4, 33, 4), 34]), ('second', range(32, 45, 4))):
        text = (folder / f'{name}.txt').read_bytes().decode()
        assert not re.search(r'[^\x20-\x7e\n]', text)
        lines = [line for line in text.splitlines() if re.match(r'step \d+/', line)]
        assert [int(re.match(r'step (\d+)/', line).group(1)) for line in lines] == list(steps)
        for line in lines:
            assert re.search(r'loss \d.*psnr \d.* dB.*coarse.*lr \d.*rays/s', line)


def test_a_run_begins_with_what_it_is_and_ends_with_where_it_is(run):
    folder = run.parents[1]
    first, second = ((folder / f'{name}.txt').read_text() for name in ('first', 'second'))
    for word in (f'{folder / "scene"}: 8 images of 16x16, 4 train / 2 val / 2 test, near 2, far 6', 'coarse ',
                 'fine ', 'parameters', 'device    cpu', 'seed 3'):
        assert word in first
    assert 'starting at step 0' in first
    assert 'going on at step 30' in second
    args = run / 'args.txt'
    for text in (first, second):
        assert f'everything is in {run}' in text
        assert f'python run_nerf.py --config {args} --render_only' in text
        assert f'python run_nerf.py --config {args} --mesh_only' in text


def test_a_terminal_gets_a_bar_with_speed_psnr_and_rate(run, tmp_path):
    folder = run.parents[1]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('4H', 40, 150, 0, 0))
    process = subprocess.Popen([sys.executable, ROOT / 'run_nerf.py', *FLAGS, '--datadir', folder / 'scene',
                                '--basedir', tmp_path, '--expname', 'bar', '--N_iters', '400', '--i_print', '1000',
                                '--i_img', '1000', '--i_weights', '1000', '--i_testset', '1000'],
                               stdout=theirs, stderr=theirs, env=os.environ | {'OMP_NUM_THREADS': '1'})
    os.close(theirs)
    said = b''
    try:
        with suppress(OSError):  # how Linux ends a terminal
            while part := os.read(ours, 65536):
                said += part
        os.close(ours)
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert re.search(rb'training: +\d+%.*/400 .*step/s.*psnr \d+\.\d\d dB, \d+ rays/s, lr 5\.0e-03', said)


def test_the_bars_psnr_is_smoothed_and_read_once_a_second_at_most(tmp_path, monkeypatch):
    log = TrainLog(tmp_path, 0, 1000, 1000, torch.device('cpu'))
    shown = []
    log.bar.close()
    log.bar = SimpleNamespace(disable=False, update=lambda: None, format_dict={'rate': 10.0}, close=lambda: None,
                              set_postfix_str=lambda text, refresh: shown.append(text))
    now = [log.mark]
    monkeypatch.setattr('nerf.train_log.time.perf_counter', lambda: now[0])
    for step in range(1, 101):
        now[0] += 0.1
        error = math.nan if step in (1, 2, 50) else 0.01 if step % 2 else 0.03
        log.step(step, torch.tensor([0.5, error]), 1e-3, 64)
    assert 9 <= len(shown) <= 11
    assert all(re.match(r'psnr 1[78]\.\d\d dB, 640 rays/s, lr 1\.0e-03', text) for text in shown[3:])  # 0.02: 17 dB
    log.close()


# On disk


def test_summary_is_redrawn_with_curves_and_views(run, tmp_path):
    picture = np.asarray(Image.open(run / 'summary.png').convert('RGB')).astype(int)
    assert picture.shape == (1200, 1200, 3)
    assert (picture < 128).any(-1)[:400].mean() > 0.01  # curves
    # The second row of views is the targets': orange discs on white.
    orange = (np.abs(picture - [230, 120, 40]).max(-1) < 12)
    rows = np.nonzero(orange.any(1))[0]
    assert 700 < rows.mean() < 950


def test_summary_of_a_known_run(tmp_path):
    lines = [{'step': 100 * n, 'seconds': 6.0 * n, 'psnr': 10.0 + n} for n in range(1, 11)]
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    targets = [np.full((12, 16, 3), 0.2), np.full((12, 16, 3), 0.6)]
    draw_summary(tmp_path, 1000, 2, targets.__getitem__)  # no test set yet
    assert Image.open(tmp_path / 'summary.png').size == (1200, 400)
    folder = tmp_path / 'testset_001000'
    folder.mkdir()
    for n in range(2):
        Image.new('RGB', (16, 12), (0, 255, 0)).save(folder / f'{n:03d}.png')
    (folder / 'metrics.json').write_text(json.dumps(
        {'step': 1000, 'mean': {'psnr': 18.0}, 'images': [{'file': f'{n:03d}.png', 'psnr': 17.0} for n in range(2)]}))
    draw_summary(tmp_path, 1000, 2, targets.__getitem__)
    picture = np.asarray(Image.open(tmp_path / 'summary.png').convert('RGB')).astype(int)
    for colour, row in (((0, 255, 0), 0), ((51, 51, 51), 1), ((153, 153, 153), 1)):
        where = np.nonzero((np.abs(picture - colour).max(-1) <= 1).sum(1) > 100)[0]
        assert 400 + 260 * row < where.mean() < 400 + 270 * (row + 1), (colour, row)
    assert [path.name for path in tmp_path.glob('*.png')] == ['summary.png']
    for step, count, target in ((900, 2, targets.__getitem__), (1000, 3, targets.__getitem__),
                                (1000, 2, lambda n: np.zeros((6, 8, 3)))):  # later, of other images, of another size
        draw_summary(tmp_path, step, count, target)
        assert Image.open(tmp_path / 'summary.png').size == (1200, 400)


def test_a_histogram_leaves_out_what_is_no_number(tmp_path):
    log = TrainLog(tmp_path, 0, 10, 10, torch.device('cpu'))
    log.histogram('some', torch.tensor([1.0, math.nan, 3.0, math.inf]), 1)
    log.histogram('none', torch.full((5,), math.nan), 1)
    log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()['histograms'] == ['some']
    values = events.Histograms('some')[0].histogram_value
    assert (values.min, values.max, values.num) == (1.0, 3.0, 2)


def test_an_error_map_shows_the_mean_absolute_error():
    target = np.zeros((1, 3, 3))
    rendered = np.array([[[0, 0, 0], [0.3, 0, 0], [0.5, 0.5, 0.5]]])
    np.testing.assert_allclose(error_map(rendered, target), [[0.0, 0.1 / LARGEST_ERROR, 1.0]])


def test_lines_that_a_crash_cut_short_are_dropped(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    whole = [{'step': 4, 'seconds': 1.5, 'loss': 0.5}, {'step': 8, 'seconds': 2.5, 'loss': 0.25}]
    path.write_text(''.join(json.dumps(line) + '\n' for line in whole) + '{"step": 12, "loss": 0.')
    TrainLog(tmp_path, 100, 200, 4, torch.device('cpu')).close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == whole


# args.txt


def test_args_txt_says_what_ran_it(run):
    lines = (run / 'args.txt').read_text().splitlines()
    assert lines[0] == f'# python {sys.version.split()[0]}'
    assert lines[1] == f'# torch {torch.__version__}'
    assert re.fullmatch(r'# code ([0-9a-f]{40}(-dirty)?|unknown)', lines[2])
    assert all(' = ' in line for line in lines[3:])


def test_code_version_tells_a_changed_tree_and_a_copy_without_history(tmp_path, monkeypatch):
    copy = tmp_path / 'run_folder.py'
    copy.write_text('print()\n')
    monkeypatch.setattr(run_folder, '__file__', str(copy))
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
    assert run_folder.code_version() == 'unknown'
    if not shutil.which('git'):
        pytest.skip('needs git')

    def git(*words: str) -> str:
        settings = ['user.name=a', 'user.email=a@b.c', 'commit.gpgsign=false', 'tag.gpgsign=false']
        command = ['git', *[word for setting in settings for word in ('-c', setting)], *words]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()
    git('init', '-q')
    git('add', '.')
    git('commit', '-q', '-m', 'first')
    git('tag', 'v1')
    assert run_folder.code_version() == git('rev-parse', 'HEAD')
    copy.write_text('print(1)\n')
    assert run_folder.code_version() == git('rev-parse', 'HEAD') + '-dirty'
    monkeypatch.setenv('PATH', '')
    assert run_folder.code_version() == 'unknown'
