"""nerf/train_log.py: what a run says in the terminal, in metrics.jsonl and in TensorBoard."""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import pty
import re
import resource
import struct
import subprocess
import sys
import termios
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from conftest import LOGGED_RUN, ROOT
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nerf.train_log import TrainLog, log_mesh

CPU = torch.device('cpu')
SCALARS = ['train/loss', 'train/psnr', 'train/psnr_coarse', 'train/lr', 'train/rays_per_second', 'memory/peak_mb',
           'val/psnr', 'test/psnr', 'test/ssim']
IMAGES = [f'val/{name}' for name in ('rgb', 'disparity', 'opacity', 'target', 'error', 'rgb_coarse', 'disparity_coarse',
                                     'z_std')]
HISTOGRAMS = ['val/density', 'val/weights']


def scalars(mse: float, **others: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in (others | {'mse': mse}).items()}


class Now:
    """A clock that tests set."""

    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@contextmanager
def files_end_at(size: int):
    """Context in which no file of this process can be larger than `size` bytes, as if the disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def lines_of(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / 'metrics.jsonl').read_text().splitlines()]


# TensorBoard


@pytest.mark.slow
def test_every_tag_is_there(board):
    tags = board.Tags()
    assert sorted(tags['scalars']) == sorted(SCALARS)
    assert sorted(tags['images']) == sorted(IMAGES)
    assert sorted(tags['histograms']) == sorted(HISTOGRAMS)
    assert tags['tensors'] == ['flags/text_summary']


@pytest.mark.slow
def test_curves_are_unbroken_where_a_run_was_cut_off_and_went_on(board, logged_run):
    logged = [4 * i for i in range(1, 12)]
    for tag in ('train/loss', 'train/psnr', 'train/psnr_coarse', 'train/lr', 'memory/peak_mb'):
        assert [event.step for event in board.Scalars(tag)] == logged, tag
    assert [event.step for event in board.Scalars('val/psnr')] == [10, 20, 30, 40]
    assert [event.step for event in board.Scalars('test/psnr')] == [20, 40]
    for tag in IMAGES:
        assert [event.step for event in board.Images(tag)] == [10, 20, 30, 40]
    assert [json.loads(line)['step'] for line in (logged_run / 'metrics.jsonl').read_text().splitlines()] == logged


@pytest.mark.slow
def test_scalars_are_those_of_metrics_jsonl(board, logged_run):
    lines = [json.loads(line) for line in (logged_run / 'metrics.jsonl').read_text().splitlines()]
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
    test = json.loads((logged_run / 'testset_000040' / 'metrics.json').read_text())['mean']
    for key in ('psnr', 'ssim'):
        assert board.Scalars(f'test/{key}')[-1].value == pytest.approx(test[key])


@pytest.mark.slow
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
def server(logged_run):
    """The address of a TensorBoard on the folder of runs, on a free port of the loopback device."""
    process = subprocess.Popen([sys.executable, '-m', 'tensorboard.main', '--logdir', logged_run.parent, '--host',
                                '127.0.0.1', '--port', '0', '--load_fast', 'false'], stdout=subprocess.PIPE,
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


@pytest.mark.slow
def test_a_browser_gets_scalars_and_pictures_from_tensorboard(server, logged_run):
    assert get_when_loaded(server, 'runs') == ['run']
    get_when_loaded(server, 'plugin/scalars/scalars', run='run', tag='test/ssim')  # written last
    losses = get_when_loaded(server, 'plugin/scalars/scalars', run='run', tag='train/loss')
    lines = [json.loads(line) for line in (logged_run / 'metrics.jsonl').read_text().splitlines()]
    assert [step for _, step, _ in losses] == [line['step'] for line in lines]
    assert [value for _, _, value in losses] == pytest.approx([line['loss'] for line in lines])
    listed = get_when_loaded(server, 'plugin/images/images', run='run', tag='val/rgb', sample='0')
    assert [entry['step'] for entry in listed] == [10, 20, 30, 40]
    picture = Image.open(io.BytesIO(get(server, f"plugin/images/individualImage?{listed[-1]['query']}&")))
    assert picture.size == (16, 16)


# The terminal


@pytest.mark.slow
def test_output_to_a_file_has_one_line_per_i_print_and_no_control_characters(logged_run):
    folder = logged_run.parents[1]
    for name, steps in (('first', [*range(4, 33, 4), 34]), ('second', range(32, 45, 4))):
        text = (folder / f'{name}.txt').read_bytes().decode()
        assert not re.search(r'[^\x20-\x7e\n]', text)
        lines = [line for line in text.splitlines() if re.match(r'step \d+/', line)]
        assert [int(re.match(r'step (\d+)/', line).group(1)) for line in lines] == list(steps)
        for line in lines:
            assert re.search(r'loss \d.*psnr \d.* dB.*coarse.*lr \d.*rays/s', line)


@pytest.mark.slow
def test_a_run_begins_with_what_it_is_and_ends_with_where_it_is(logged_run):
    folder = logged_run.parents[1]
    first, second = ((folder / f'{name}.txt').read_text() for name in ('first', 'second'))
    for word in (f'{folder / "scene"}: 8 images of 16x16, 4 train / 2 val / 2 test, near 2, far 6', 'coarse ',
                 'fine ', 'parameters', 'device    cpu', 'seed 3'):
        assert word in first
    assert 'starting at step 0' in first
    assert 'going on at step 30' in second
    args = logged_run / 'args.txt'
    for text in (first, second):
        assert f'everything is in {logged_run}' in text
        assert f'python run_nerf.py --config {args} --render_only' in text
        assert f'python run_nerf.py --config {args} --mesh_only' in text


@pytest.mark.slow
def test_a_terminal_gets_a_bar_with_speed_psnr_and_rate(logged_run, tmp_path):
    folder = logged_run.parents[1]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('4H', 40, 150, 0, 0))
    process = subprocess.Popen([sys.executable, ROOT / 'run_nerf.py', *LOGGED_RUN, '--datadir', folder / 'scene',
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
    assert re.search(rb'training: +\d+%.*/400 .*step/s.*PSNR \d+\.\d\d dB, \d+ rays/s, lr 5\.0e-03', said)


class Terminal(io.StringIO):
    """Where a progress bar is drawn."""

    def isatty(self) -> bool:
        return True


class Counted(torch.Tensor):
    """A tensor that counts how often its number, or one computed from it, is read."""

    reads = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.reads += function is torch.Tensor.item
        return super().__torch_function__(function, types, args, kwargs)


def test_the_bars_numbers_are_read_once_a_second_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'stderr', Terminal())
    now = Now()
    log = TrainLog(tmp_path, 0, 1000, 1000, CPU, clock=now)
    for step in range(1, 101):
        now.seconds += 0.1
        log.step(step, {'mse': torch.tensor(0.01).as_subclass(Counted)}, 1e-3, 64)
    assert 9 <= Counted.reads <= 11
    log.bar.refresh()
    assert re.search(r'100/1000 .*PSNR 20\.00 dB, \d+ rays/s, lr 1\.0e-03', sys.stderr.getvalue())
    log.close()


def test_the_status_has_a_smoothed_psnr_that_leaves_out_skipped_steps(tmp_path):
    now = Now()
    log = TrainLog(tmp_path, 0, 1000, 1000, CPU, clock=now)
    assert log.status() == 'step 0 of 1000, 0 s'
    assert log.training_psnr() is None
    for step in range(1, 301):
        now.seconds += 0.1
        error = math.nan if step in (1, 2, 50, 300) else 0.01 if step % 2 else 0.03
        log.step(step, scalars(error, mse0=0.5), 1e-3, 64)
    status = re.fullmatch(r'step 300 of 1000, PSNR (\d+\.\d\d) dB, 640 rays/s, 30 s', log.status())
    assert float(status.group(1)) == pytest.approx(-10 * math.log10(0.02), abs=0.1)
    assert log.training_psnr() == pytest.approx(float(status.group(1)), abs=0.01)
    with log.paused():
        now.seconds += 1000.0
        assert log.status().endswith('640 rays/s, 30 s')
    log.step(301, {'other': torch.tensor(0.5)}, 1e-3, 64)
    assert log.training_psnr() is None
    log.close()


# On disk


def test_a_histogram_leaves_out_what_is_no_number(tmp_path):
    log = TrainLog(tmp_path, 0, 10, 10, CPU)
    log.histogram('some', torch.tensor([1.0, math.nan, 3.0, math.inf]), 1)
    log.histogram('none', torch.full((5,), math.nan), 1)
    log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()['histograms'] == ['some']
    values = events.Histograms('some')[0].histogram_value
    assert (values.min, values.max, values.num) == (1.0, 3.0, 2)


def test_lines_that_a_crash_cut_short_are_dropped(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    whole = [{'step': 4, 'seconds': 1.5, 'loss': 0.5}, {'step': 8, 'seconds': 2.5, 'loss': 0.25}]
    path.write_text(''.join(json.dumps(line) + '\n' for line in whole) + '{"step": 12, "loss": 0.')
    TrainLog(tmp_path, 100, 200, 4, CPU).close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == whole


# Losses by name


def logged(tmp_path: Path, losses: dict[str, torch.Tensor]) -> tuple[dict, EventAccumulator]:
    """The line of metrics.jsonl and what TensorBoard shows of one step."""
    log = TrainLog(tmp_path, 0, 4, 4, CPU)
    log.step(4, losses, 2e-3, 64)
    log.close()
    (line,) = lines_of(tmp_path)
    return line, EventAccumulator(str(tmp_path)).Reload()


def test_a_coarse_loss_is_psnr0_and_in_the_line_as_coarse(tmp_path, capsys):
    line, board = logged(tmp_path, scalars(0.01, mse0=0.1))
    assert list(line) == ['step', 'loss', 'psnr', 'psnr0', 'lr', 'rays_per_s', 'seconds']
    assert (line['psnr'], line['psnr0'], line['loss']) == pytest.approx((20.0, 10.0, 0.11), rel=1e-6)
    assert sorted(board.Tags()['scalars']) == sorted(name for name in SCALARS if name[:4] in ('trai', 'memo'))
    assert board.Scalars('train/psnr_coarse')[0].value == pytest.approx(10.0)
    assert 'loss 0.11000  psnr 20.00 dB (coarse 10.00)  lr 2.00e-03' in capsys.readouterr().out


def test_without_a_coarse_loss_there_is_no_psnr0(tmp_path, capsys):
    line, board = logged(tmp_path, scalars(0.01))
    assert list(line) == ['step', 'loss', 'psnr', 'lr', 'rays_per_s', 'seconds']
    assert (line['psnr'], line['loss']) == pytest.approx((20.0, 0.01), rel=1e-6)
    assert 'train/psnr_coarse' not in board.Tags()['scalars']
    assert 'coarse' not in capsys.readouterr().out


def test_any_other_loss_is_logged_under_its_own_name_and_is_part_of_the_sum(tmp_path):
    line, board = logged(tmp_path, scalars(0.01, distortion=0.25, mse0=0.1, total_variation=0.5))
    assert (line['distortion'], line['total_variation']) == (0.25, 0.5)
    assert (line['loss'], line['psnr'], line['psnr0']) == pytest.approx((0.86, 20.0, 10.0), rel=1e-6)
    assert board.Scalars('train/distortion')[0].value == 0.25
    assert board.Scalars('train/total_variation')[0].value == 0.5
    assert 'train/mse' not in board.Tags()['scalars']


def test_a_models_scalars_are_in_the_line_and_on_the_board_under_field(tmp_path):
    rows = iter((7, 9))
    log = TrainLog(tmp_path, 0, 8, 4, CPU, lambda: {'rows': next(rows), 'share': 0.5})
    for step in range(1, 9):
        log.step(step, scalars(0.01), 1e-3, 64)
    log.close()
    assert [(line['rows'], line['share']) for line in lines_of(tmp_path)] == [(7, 0.5), (9, 0.5)]
    assert list(lines_of(tmp_path)[0])[-2:] == ['rows', 'share']
    board = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in board.Scalars('field/rows')] == [(4, 7.0), (8, 9.0)]
    assert {'field/rows', 'field/share'} == {tag for tag in board.Tags()['scalars'] if tag.startswith('field')}


def test_a_perfect_fit_has_a_psnr_of_100_which_json_can_hold(tmp_path):
    line, _ = logged(tmp_path, scalars(0.0, mse0=0.0))
    assert (line['psnr'], line['psnr0'], line['loss']) == (100.0, 100.0, 0.0)


@pytest.mark.parametrize('broken', [{'mse': math.nan}, {'mse0': math.inf}, {'distortion': math.nan}])
def test_a_step_with_a_loss_that_is_no_number_leaves_no_line(tmp_path, broken):
    log = TrainLog(tmp_path, 0, 8, 4, CPU)
    for step in range(1, 9):
        losses = {'mse': 0.01, 'mse0': 0.1, 'distortion': 0.0}
        log.step(step, scalars(**losses | (broken if step == 4 else {})), 1e-3, 64)
    log.close()
    assert [line['step'] for line in lines_of(tmp_path)] == [8]


def test_the_last_step_has_a_line_whatever_i_print(tmp_path):
    log = TrainLog(tmp_path, 0, 7, 5, CPU)
    for step in range(1, 8):
        log.step(step, scalars(0.01), 1e-3, 64)
    log.close()
    assert [line['step'] for line in lines_of(tmp_path)] == [5, 7]


def test_a_training_without_mse_has_no_psnr_and_shows_its_loss(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'stderr', Terminal())
    log = TrainLog(tmp_path, 0, 8, 4, CPU)
    for step in range(1, 9):
        log.step(step, {'photometric': torch.tensor(0.25), 'total': torch.tensor(0.5)}, 2e-3, 64)
    assert 'loss 0.75000, ' in log.status()
    log.close()
    line = lines_of(tmp_path)[1]
    assert list(line) == ['step', 'loss', 'photometric', 'total', 'lr', 'rays_per_s', 'seconds']
    assert (line['loss'], line['photometric'], line['total']) == (0.75, 0.25, 0.5)
    board = EventAccumulator(str(tmp_path)).Reload()
    assert {'train/photometric', 'train/total'} < set(board.Tags()['scalars'])
    assert not [tag for tag in board.Tags()['scalars'] if 'psnr' in tag]
    assert re.search(r'^step 4/8  loss 0\.75000  lr 2\.00e-03  \d+ rays/s', capsys.readouterr().out, re.M)
    assert 'loss 0.75000, ' in sys.stderr.getvalue()


def test_a_paused_log_does_not_count_time_as_training(tmp_path):
    now = Now()
    log = TrainLog(tmp_path, 0, 20, 10, CPU, clock=now)
    for step in range(1, 21):
        now.seconds += 0.5
        log.step(step, scalars(0.01), 1e-3, 64)
        if step in (5, 10):
            with log.paused():
                now.seconds += 1000.0
    log.close()
    assert [line['seconds'] for line in lines_of(tmp_path)] == pytest.approx([5.0, 10.0])
    assert [line['rays_per_s'] for line in lines_of(tmp_path)] == pytest.approx([128.0, 128.0])


def test_a_run_that_goes_on_keeps_its_lines_up_to_there_and_counts_its_seconds_on(tmp_path):
    now = Now()
    for start, end in ((0, 15), (8, 16)):
        log = TrainLog(tmp_path, start, 100, 4, CPU, clock=now)
        for step in range(start + 1, end + 1):
            now.seconds += 1.0
            log.step(step, scalars(0.01), 1e-3, 64)
        log.close()
    assert [(line['step'], line['seconds']) for line in lines_of(tmp_path)] == [(n, float(n)) for n in (4, 8, 12, 16)]


def test_a_log_without_a_folder_prints_and_writes_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    log = TrainLog(None, 0, 4, 4, CPU)
    log.step(4, scalars(0.01), 1e-3, 64)
    log.picture('val/rgb', np.zeros((4, 4, 3), np.uint8), 4)
    log.close()
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ('', '')


# Full disks


def test_a_line_that_finds_the_disk_full_is_reported_and_not_half_written(tmp_path, capsys):
    path, log = tmp_path / 'metrics.jsonl', TrainLog(tmp_path, 0, 12, 4, CPU)
    log.step(4, scalars(0.01), 1e-3, 64)
    long = 200 * path.read_text()  # longer than any other file that is written meanwhile
    path.write_text(long)
    with files_end_at(path.stat().st_size + 20):
        log.step(8, scalars(0.01), 1e-3, 64)
    assert path.read_text() == long
    log.step(12, scalars(0.01), 1e-3, 64)
    log.close()
    assert f'warning: {path} cannot be written ([Errno 28]' in capsys.readouterr().out
    assert [line['step'] for line in lines_of(tmp_path)] == [4] * 200 + [12]


def test_metrics_that_cannot_be_written_at_all_are_reported_each_time(tmp_path, capsys):
    path, log = tmp_path / 'metrics.jsonl', TrainLog(tmp_path, 0, 12, 4, CPU)
    path.unlink()
    path.mkdir()
    for step in (4, 8):
        log.step(step, scalars(0.01), 1e-3, 64)
    path.rmdir()
    log.step(12, scalars(0.01), 1e-3, 64)
    log.close()
    assert capsys.readouterr().out.count(f'warning: {path} cannot be written (') == 2
    assert [line['step'] for line in lines_of(tmp_path)] == [12]


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_a_board_that_finds_the_disk_full_is_given_up_and_training_goes_on(tmp_path, capsys):
    log = TrainLog(tmp_path, 0, 8, 4, CPU)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    said = ''
    with files_end_at(20000):
        for step in range(1000):
            log.picture('val/rgb', noise, step)  # a thread writes it
            said += capsys.readouterr().out
            if said:
                break
            time.sleep(0.01)
        log.picture('val/rgb', noise, 1001)
    log.step(8, scalars(0.01), 1e-3, 64)
    log.close()
    said += capsys.readouterr().out
    assert said.count('TensorBoard cannot be written to any more ([Errno 27]') == 1
    assert [line['step'] for line in lines_of(tmp_path)] == [8]
