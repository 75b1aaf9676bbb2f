"""nerf/outputs.py: what a run makes at which step, what an interrupted one lacks, and what it shows."""

from __future__ import annotations

import errno
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from known_fields import Shown, balls_model, scene_of
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nerf import outputs as outputs_module
from nerf.fields.paper.model import PaperModel
from nerf.outputs import Intervals, Outputs, attempt
from nerf.plots import LARGEST_ERROR
from nerf.rendering import render_view
from nerf.runtime import ranks
from nerf.runtime.errors import UserError
from nerf.scene import Scene
from nerf.train_log import TrainLog
from run_nerf_helpers import Sampling

EVERY = Intervals(view=10, test_set=20, video=30, n_iters=70)


class Log:
    """Stands in for TrainLog and notes what it gets."""

    def __init__(self):
        self.said, self.scalars, self.pictures, self.histograms, self.pauses = [], {}, {}, {}, 0

    def say(self, message):
        self.said.append(message)

    def scalar(self, tag, value, step):
        self.scalars[tag, step] = value

    def picture(self, tag, picture, step):
        self.pictures[tag, step] = picture

    def histogram(self, tag, values, step):
        self.histograms[tag, step] = values

    def paused(self):
        self.pauses += 1
        return io.StringIO()  # a context manager


def outputs_of(run_dir: Path, model: PaperModel | None = None, scene: Scene | None = None, **kwargs) -> Outputs:
    return Outputs(scene or scene_of(16, 20), lambda: model, run_dir, Log(), kwargs.pop('intervals', EVERY), **kwargs)


def pictures(board: EventAccumulator, name: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(event.encoded_image_string))).astype(float)
            for event in board.Images(f'val/{name}')]


# Which outputs at which step


@pytest.mark.parametrize(('step', 'names'), [
    (0, []), (1, []), (9, []), (10, ['view']), (20, ['view', 'test_set', 'summary']), (30, ['view', 'video']),
    (60, ['view', 'test_set', 'video', 'summary']), (65, []), (70, ['view', 'summary'])])
def test_outputs_are_due_at_multiples_of_their_intervals_and_the_summary_also_at_the_end(tmp_path, step, names):
    assert outputs_of(tmp_path).due(step) == names


def test_a_run_that_ends_between_its_intervals_has_its_summary_due_then(tmp_path):
    outputs = outputs_of(tmp_path, intervals=Intervals(view=10, test_set=20, video=30, n_iters=7))
    assert outputs.due(7) == ['summary']


def test_slim_weights_of_a_model_that_has_them_are_due_at_the_end_and_missing_until_they_are_written(tmp_path):
    class Slim:
        def slim_weights(self):
            return {'some_state_dict': {'weight': torch.ones(2).half()}}
    outputs = outputs_of(tmp_path, Slim(), has_slim_weights=True)
    assert [outputs.due(step) for step in (10, 65, 70)] == [['view'], [], ['view', 'slim', 'summary']]
    assert 'slim' in outputs.missing(70)
    outputs.make(['slim'], 70)
    assert 'slim' not in outputs.missing(70)
    content = torch.load(tmp_path / '000070_slim.tar', weights_only=True)
    assert (content['global_step'], content['some_state_dict']['weight'].dtype) == (70, torch.float16)


def test_missing_is_what_is_due_and_has_left_no_file(tmp_path):
    run_dir = tmp_path / 'name'
    outputs = outputs_of(run_dir, viewed=50)
    assert outputs.missing(60) == ['view', 'test_set', 'video', 'summary']
    (run_dir / 'testset_000060').mkdir(parents=True)
    (run_dir / 'testset_000060' / '000.png').write_bytes(b'')
    (run_dir / 'name_spiral_000060_rgb.mp4').write_bytes(b'')
    assert outputs.missing(60) == ['view', 'test_set', 'video', 'summary']  # both were broken off
    (run_dir / 'testset_000060' / 'metrics.json').write_text('{}')
    assert outputs.missing(60) == ['view', 'video', 'summary']
    (run_dir / 'name_spiral_000060_disp.mp4').write_bytes(b'')
    assert outputs.missing(60) == ['view', 'summary']
    (run_dir / 'summary.png').write_bytes(b'')
    assert outputs.missing(60) == ['view']
    outputs.viewed = 60
    assert outputs.missing(60) == []
    assert outputs.missing(20) == ['test_set']  # files of another step do not stand for it


def test_a_view_is_missing_unless_the_checkpoint_says_that_it_was_logged(tmp_path):
    for viewed, missing in ((0, ['view']), (29, ['view']), (30, []), (40, [])):
        outputs = outputs_of(tmp_path, viewed=viewed)
        assert [name for name in outputs.missing(30) if name == 'view'] == missing


# Making them


def test_outputs_are_made_in_the_order_given_while_the_log_is_paused(tmp_path):
    outputs = outputs_of(tmp_path, model='the model')
    made = []
    outputs.makers = {name: lambda *args, name=name: made.append((name, *args, outputs.log.pauses))
                      for name in outputs.makers}
    outputs.make(outputs.due(60), 60)
    assert made == [(name, 'the model', 60, 1) for name in ('view', 'test_set', 'video', 'summary')]
    outputs.make([], 60)
    assert outputs.log.pauses == 1


def test_the_model_is_asked_for_once_and_only_where_something_is_made(tmp_path):
    asked = []
    outputs = Outputs(scene_of(16, 20), lambda: asked.append(1), tmp_path, Log(), EVERY)
    outputs.makers = dict.fromkeys(outputs.makers, lambda *args: None)
    outputs.make([], 5)  # averaging the weights would cost time at every step
    assert asked == []
    outputs.make(['view', 'summary'], 70)
    assert asked == [1]


def test_ranks_other_than_0_help_with_test_sets_and_videos_only(tmp_path, monkeypatch):
    outputs = outputs_of(tmp_path)
    made = []
    outputs.makers = {name: lambda *args, name=name: made.append(name) for name in outputs.makers}
    monkeypatch.setattr(ranks, 'first', lambda: False)
    outputs.make(outputs.due(60), 60)
    assert made == ['test_set', 'video']


def test_what_cannot_be_written_is_reported_and_the_rest_is_made(tmp_path):
    outputs = outputs_of(tmp_path)
    made = []

    def full(model, step):
        raise OSError(errno.ENOSPC, 'No space left on device')

    def refused(model, step):
        raise UserError('x.png cannot be written')
    outputs.makers = {'view': full, 'test_set': refused, 'video': lambda *args: made.append('video')}
    outputs.make(['view', 'test_set', 'video'], 60)
    assert outputs.log.said == ['warning: [Errno 28] No space left on device; training goes on',
                                'warning: x.png cannot be written; training goes on']
    assert made == ['video']


def test_an_error_that_is_no_full_disk_is_not_swallowed():
    log = Log()
    with pytest.raises(ZeroDivisionError):
        attempt(log, lambda: 1 / 0)
    assert attempt(log, lambda a, b: None, 1, 2)
    assert not attempt(log, open, '/no such folder/file')
    assert len(log.said) == 1


def test_a_view_that_could_not_be_logged_counts_as_missing(tmp_path, monkeypatch):
    outputs = outputs_of(tmp_path, balls_model())

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(outputs_module, 'render_view', full)
    outputs.make(['view'], 10)
    assert outputs.viewed == 0
    monkeypatch.undo()
    outputs.make(['view'], 10)
    assert outputs.viewed == 10


# Held-out views


def test_held_out_views_take_turns(tmp_path):
    images = np.stack([np.full((16, 20, 3), level, np.uint8) for level in (0, 100, 200)])
    outputs = outputs_of(tmp_path, balls_model(), scene_of(16, 20, images))
    for step, level in ((10, 100), (20, 200), (30, 0), (40, 100)):
        outputs.make(['view'], step)
        np.testing.assert_allclose(outputs.log.pictures['val/target', step], level / 255)
        assert outputs.viewed == step


def test_a_held_out_view_of_a_model_with_one_pass_has_neither_coarse_pictures_nor_a_spread(tmp_path):
    model = PaperModel(Shown(np.ones((16, 20), bool)), None, Sampling(32, 0), 1000)
    outputs = outputs_of(tmp_path, model)
    outputs.make(['view'], 10)
    assert {tag for tag, _ in outputs.log.pictures} == {
        f'val/{name}' for name in ('rgb', 'disparity', 'opacity', 'target', 'error')}
    assert outputs.log.histograms['val/weights', 10].shape == (320, 32)
    shown = outputs.log.pictures['val/rgb', 10] / 255.0
    assert outputs.log.scalars['val/psnr', 10] == pytest.approx(-10 * math.log10((shown ** 2).mean()), abs=1e-4)


def test_histograms_are_of_a_thousand_rays_or_a_few_more(tmp_path):
    outputs = outputs_of(tmp_path, balls_model(), scene_of(50, 60))
    outputs.make(['view'], 10)
    assert outputs.log.histograms['val/weights', 10].shape == (1000, 128)


def test_held_out_pictures_are_of_the_view_and_its_error(board, logged_run):
    views = {name: pictures(board, name) for name in ('rgb', 'target', 'error', 'opacity', 'z_std', 'rgb_coarse')}
    psnrs = [event.value for event in board.Scalars('val/psnr')]
    assert len(psnrs) == 4
    for n, psnr in enumerate(psnrs):
        rgb, target = views['rgb'][n], views['target'][n]
        assert rgb.shape == target.shape == (16, 16, 3)
        assert psnr == pytest.approx(-10 * math.log10(np.mean((rgb - target) ** 2) / 255 ** 2), abs=0.05)
        off = np.abs(rgb - target).mean(-1) / 255 / LARGEST_ERROR
        np.testing.assert_allclose(views['error'][n][..., 0] / 255, off.clip(0, 1), atol=0.02)
        assert views['z_std'][n].max() == 255
        assert views['rgb_coarse'][n].shape == (16, 16, 3)
    held_out = Image.open(logged_run.parents[1] / 'scene' / 'val' / 'r_0.png')
    on_white = Image.alpha_composite(Image.new('RGBA', (16, 16), 'white'), held_out).convert('RGB')
    np.testing.assert_allclose(views['target'][0], np.asarray(on_white), atol=1)


def test_histograms_are_of_densities_and_of_weights(board):
    assert len(board.Histograms('val/weights')) == len(board.Histograms('val/density')) == 4
    for event in board.Histograms('val/weights'):
        assert 0.0 <= event.histogram_value.min <= event.histogram_value.max <= 1.0
        assert event.histogram_value.num == 256 * 16  # all rays of this small view, coarse and fine samples
    for event in board.Histograms('val/density'):
        assert event.histogram_value.min >= 0.0
        assert event.histogram_value.num == 256 * 8


# Test sets, videos and the summary


def test_a_test_set_is_rendered_at_full_size_measured_and_reported(tmp_path):
    images = np.stack([np.full((16, 20, 3), level, np.uint8) for level in (0, 255)])
    outputs = outputs_of(tmp_path, balls_model(), scene_of(16, 20, images), render_factor=4)
    outputs.make(['test_set'], 40)
    folder = tmp_path / 'testset_000040'
    assert sorted(path.name for path in folder.iterdir()) == ['000.png', '001.png', 'metrics.json']
    written = json.loads((folder / 'metrics.json').read_text())
    shown = np.asarray(Image.open(folder / '000.png')) / 255.0
    assert shown.shape == (16, 20, 3)
    expected = [-10 * math.log10(((shown - level) ** 2).mean()) for level in (0.0, 1.0)]
    assert [row['psnr'] for row in written['images']] == pytest.approx(expected, abs=1e-4)
    assert written['step'] == 40
    for name in ('psnr', 'ssim'):
        assert outputs.log.scalars[f'test/{name}', 40] == written['mean'][name]
    assert outputs.log.said == [f"step 40: 2 test views, psnr {np.mean(expected):.2f} dB, "
                                f"ssim {written['mean']['ssim']:.4f}"]
    assert 'test_set' not in outputs.missing(40)


def test_videos_of_the_path_are_at_1_over_render_factor_of_the_size(tmp_path):
    import imageio.v2 as imageio

    run_dir, model, scene = tmp_path / 'name', balls_model(), scene_of(32, 48)
    outputs = outputs_of(run_dir, model, scene, render_factor=2)
    outputs.make(['video'], 30)
    assert sorted(path.name for path in run_dir.iterdir()) == [
        'name_spiral_000030_disp.mp4', 'name_spiral_000030_rgb.mp4']
    frames = np.stack(imageio.mimread(run_dir / 'name_spiral_000030_rgb.mp4'))
    assert frames.shape == (1, 16, 24, 3)
    view = render_view(model, scene, scene.render_cameras.scaled(2))
    assert np.abs(frames[0] / 255.0 - view.rgb).mean() < 0.05
    grey = imageio.mimread(run_dir / 'name_spiral_000030_disp.mp4')[0].mean(-1)
    assert grey[view.acc > 0.99].mean() > 60
    assert grey[0, 0] < 15
    assert 'video' not in outputs.missing(30)


def test_the_summary_is_drawn_from_the_files_of_the_run(tmp_path):
    images = np.full((2, 16, 20, 3), (0, 255, 255), np.uint8)
    outputs = outputs_of(tmp_path, balls_model(), scene_of(16, 20, images))
    (tmp_path / 'metrics.jsonl').write_text('{"step": 20, "seconds": 1.0, "psnr": 15.0}\n')
    outputs.make(['test_set', 'summary'], 20)
    picture = np.asarray(Image.open(tmp_path / 'summary.png').convert('RGB')).astype(int)
    assert picture.shape == (1200, 1200, 3)
    rows = np.nonzero((np.abs(picture - [0, 255, 255]).max(-1) <= 1).sum(1) > 200)[0]
    assert 670 < rows.mean() < 950  # the targets are the second row of views
    assert 'summary' not in outputs.missing(20)


def test_a_disk_that_is_full_while_a_test_set_is_written_is_reported_and_it_stays_missing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, 'No space left on device')
    outputs = outputs_of(tmp_path, balls_model())
    monkeypatch.setattr(Image.Image, 'save', full)
    outputs.make(['test_set'], 20)
    (line,) = outputs.log.said
    assert line.startswith(f'warning: {tmp_path}/testset_000020/000.png cannot be written ([Errno 28] No space left')
    assert line.endswith('; training goes on')
    assert 'test_set' in outputs.missing(20)
    monkeypatch.undo()
    outputs.make(outputs.missing(20), 20)
    assert 'test_set' not in outputs.missing(20)
    assert 'view' not in outputs.missing(20)


def test_the_real_log_takes_all_that_a_view_gives_it(tmp_path):
    log = TrainLog(tmp_path, 0, 70, 10, torch.device('cpu'))
    outputs = Outputs(scene_of(16, 20), balls_model, tmp_path, log, EVERY)
    outputs.make(['view', 'test_set'], 20)
    log.close()
    board = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(board.Tags()['images']) == [f'val/{name}' for name in (
        'disparity', 'disparity_coarse', 'error', 'opacity', 'rgb', 'rgb_coarse', 'target', 'z_std')]
    assert sorted(board.Tags()['scalars']) == ['test/psnr', 'test/ssim', 'val/psnr']
