"""nerf/outputs.py: what a run makes at which step, what an interrupted one lacks, and what it shows."""

from __future__ import annotations

import io
import json
import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from third_kind import DEPTH, PlainField, PlainSampler

from nerf.cameras import Cameras
from nerf.fields.interface import Field, Sampler
from nerf.outputs import Intervals, Outputs, attempt, video_path
from nerf.outputs import test_folder as folder_of_tests
from nerf.plots import LARGEST_ERROR
from nerf.scene import Images, Scene, centred_intrinsics
from nerf.space import Bounded
from nerf.train_log import TrainLog
from run_nerf_helpers import Rays, RenderResult

EVERY = Intervals(view=10, test_set=20, video=30, n_iters=70)


class Log:
    """Stands in for TrainLog and notes what it gets; `full` makes TensorBoard's pictures fail."""

    def __init__(self):
        self.said, self.scalars, self.pictures, self.histograms, self.pauses, self.full = [], {}, {}, {}, 0, False
        self.training = None

    def training_psnr(self):
        return self.training

    def say(self, message):
        self.said.append(message)

    def scalar(self, tag, value, step):
        self.scalars[tag, step] = value

    def picture(self, tag, picture, step):
        if self.full:
            raise OSError(28, 'No space left on device')
        self.pictures[tag, step] = picture

    def histogram(self, tag, values, step):
        self.histograms[tag, step] = values

    def paused(self):
        self.pauses += 1
        return nullcontext()


class Wall(PlainField):
    """A grey wall at one depth. Its guided sampler shows another grey, and it has slim weights."""

    has_slim_weights = True

    def __init__(self, grey: float = 0.5, guided_grey: float = 0.25):
        super().__init__(grey)
        self.guided_grey, self.boxes = guided_grey, []

    def guided(self, box: np.ndarray, cache: Path | None = None) -> Sampler:
        self.boxes.append(box)
        sampler = PlainSampler(PlainField(self.guided_grey), 50)
        sampler.name = 'guided'
        return sampler

    def histograms(self, rays: Rays) -> dict[str, torch.Tensor]:
        return {'rays': rays.origins[:, 2]}

    def slim_weights(self) -> dict:
        return {'plain_state_dict': {'colour': self.colour.detach().half()}}


class TwoPasses(Wall):
    """The wall, of which a coarse pass shows half the brightness."""

    def sampler(self) -> Sampler:
        return TwoPassSampler(self, 50)


class TwoPassSampler(PlainSampler):
    passes = ('coarse',)

    def render(self, rays: Rays) -> RenderResult:
        shown = super().render(rays).final
        return RenderResult(shown, shown._replace(rgb=0.5 * shown.rgb, acc=0.5 * shown.acc), 0.1 * shown.acc)


def scene_of(levels: tuple[int, ...] = (0,), size: tuple[int, int] = (16, 20)) -> Scene:
    """Grey images, seen from one place; each is a training, validation and test image."""
    images = np.stack([np.full((*size, 3), level, np.uint8) for level in levels])
    pose = torch.eye(4)[:3].numpy() + DEPTH * np.float32([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    cameras = Cameras.of_one_kind(np.tile(pose, (len(levels), 1, 1)), centred_intrinsics(*size, 30.0), *size)
    index = np.arange(len(levels))
    return Scene(Images.of_one_size(images), cameras, cameras.take([0]), Bounded(2.0, 6.0, surrounded=True), True,
                 index, index, index)


def outputs_of(run_dir: Path, field: Field | None = None, scene: Scene | None = None, **kwargs) -> Outputs:
    field = field or Wall()
    return Outputs(scene or scene_of(), lambda: field, run_dir, Log(), kwargs.pop('intervals', EVERY), **kwargs)


def grey_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)) / 255.0


def psnr_of(shown: float, wanted: float) -> float:
    return -10 * math.log10((shown - wanted) ** 2)


# Which outputs at which step


@pytest.mark.parametrize(('step', 'names'), [
    (0, []), (1, []), (9, []), (10, ['view']), (20, ['view', 'test_set', 'summary']), (30, ['view', 'video']),
    (60, ['view', 'test_set', 'video', 'summary']), (65, []), (70, ['view', 'summary'])])
def test_outputs_are_due_at_multiples_of_their_intervals_and_the_summary_also_at_the_end(step, names):
    assert EVERY.due(step) == names


def test_a_run_that_ends_between_its_intervals_has_its_summary_due_then():
    assert Intervals(view=10, test_set=20, video=30, n_iters=7).due(7) == ['summary']


def test_slim_weights_are_due_at_the_end_and_missing_until_they_are_written(tmp_path):
    intervals = Intervals(view=10, test_set=20, video=30, n_iters=70, slim=True)
    assert [intervals.due(step) for step in (10, 65, 70)] == [['view'], [], ['view', 'slim', 'summary']]
    assert 'slim' in intervals.missing(tmp_path, 70, 70)
    outputs_of(tmp_path).make(['slim'], 70)
    assert 'slim' not in intervals.missing(tmp_path, 70, 70)
    content = torch.load(tmp_path / '000070_slim.tar', weights_only=True)
    assert (content['global_step'], content['plain_state_dict']['colour'].dtype) == (70, torch.float16)


def test_missing_is_what_is_due_and_has_left_no_file(tmp_path):
    run_dir = tmp_path / 'name'
    assert EVERY.missing(run_dir, 60, 50) == ['view', 'test_set', 'video', 'summary']
    folder_of_tests(run_dir, 60).mkdir(parents=True)
    (folder_of_tests(run_dir, 60) / '000.png').write_bytes(b'')
    video_path(run_dir, 60, 'rgb').write_bytes(b'')
    assert EVERY.missing(run_dir, 60, 50) == ['view', 'test_set', 'video', 'summary']  # both were broken off
    (folder_of_tests(run_dir, 60) / 'metrics.json').write_text('{}')
    assert EVERY.missing(run_dir, 60, 50) == ['view', 'video', 'summary']
    video_path(run_dir, 60, 'disp').write_bytes(b'')
    assert EVERY.missing(run_dir, 60, 50) == ['view', 'summary']
    (run_dir / 'summary.png').write_bytes(b'')
    assert EVERY.missing(run_dir, 60, 50) == ['view']
    assert EVERY.missing(run_dir, 60, 60) == []
    assert EVERY.missing(run_dir, 20, 60) == ['test_set']  # files of another step do not stand for it


@pytest.mark.parametrize(('viewed', 'missing'), [(0, ['view']), (29, ['view']), (30, []), (40, [])])
def test_a_view_is_missing_unless_the_checkpoint_says_that_it_was_logged(tmp_path, viewed, missing):
    assert [name for name in EVERY.missing(tmp_path, 30, viewed) if name == 'view'] == missing


def test_files_bear_the_names_that_users_know(tmp_path):
    assert folder_of_tests(tmp_path / 'chair', 60) == tmp_path / 'chair' / 'testset_000060'
    assert video_path(tmp_path / 'chair', 60, 'rgb') == tmp_path / 'chair' / 'chair_spiral_000060_rgb.mp4'


# Making them


def test_the_field_is_asked_for_once_and_only_if_something_is_made_while_the_log_is_paused(tmp_path):
    asked = []
    outputs = Outputs(scene_of(), lambda: asked.append(1) or Wall(), tmp_path, Log(), EVERY)
    outputs.make([], 5)  # averaging the weights would cost time at every step
    assert (asked, outputs.log.pauses) == ([], 0)
    outputs.make(['view', 'slim'], 70)
    assert (asked, outputs.log.pauses) == ([1], 1)


def test_processes_of_other_ranks_make_no_view_slim_weights_or_summary(tmp_path, as_rank):
    """Test sets and videos are shared by all processes: tests/runtime/test_ranks.py."""
    as_rank(1, 2)
    outputs = outputs_of(tmp_path)
    outputs.make(['view', 'slim', 'summary'], 70)
    assert (outputs.viewed, outputs.log.pauses) == (0, 0)
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_reported_and_stays_missing_and_the_rest_is_made(tmp_path):
    (tmp_path / 'testset_000020').write_text('in the way')
    outputs = outputs_of(tmp_path)
    outputs.log.full = True
    outputs.make(['view', 'test_set', 'slim'], 20)
    view, test_set = outputs.log.said
    assert view == 'warning: [Errno 28] No space left on device; training goes on'
    assert test_set.startswith(f'warning: {tmp_path}/testset_000020/000.png cannot be written (')
    assert test_set.endswith('; training goes on')
    assert (tmp_path / '000020_slim.tar').is_file()
    assert EVERY.missing(tmp_path, 20, outputs.viewed)[:2] == ['view', 'test_set']
    (tmp_path / 'testset_000020').unlink()
    outputs.log.full = False
    outputs.make(['view', 'test_set'], 20)
    assert EVERY.missing(tmp_path, 20, outputs.viewed) == ['summary']


def test_an_error_that_is_no_full_disk_is_not_swallowed():
    log = Log()
    with pytest.raises(ZeroDivisionError):
        attempt(log, lambda: 1 / 0)
    assert attempt(log, lambda a, b: None, 1, 2)
    assert not attempt(log, open, '/no such folder/file')
    assert len(log.said) == 1


# Held-out views


def test_held_out_views_take_turns(tmp_path):
    outputs = outputs_of(tmp_path, scene=scene_of((0, 100, 200)))
    for step, level in ((10, 100), (20, 200), (30, 0), (40, 100)):
        outputs.make(['view'], step)
        np.testing.assert_allclose(outputs.log.pictures['val/target', step], level / 255)
        assert outputs.viewed == step


def test_a_held_out_view_of_a_field_with_one_pass(tmp_path):
    outputs = outputs_of(tmp_path, Wall(0.4), scene_of((51,)))
    outputs.make(['view'], 10)
    shown = {tag.removeprefix('val/'): picture for (tag, _), picture in outputs.log.pictures.items()}
    assert shown.keys() == {'rgb', 'disparity', 'opacity', 'target', 'error'}
    assert (shown['rgb'] == 102).all()
    np.testing.assert_allclose(shown['opacity'], 1.0)
    np.testing.assert_allclose(shown['error'], 0.2 / LARGEST_ERROR, atol=1e-6)
    assert outputs.log.scalars['val/psnr', 10] == pytest.approx(psnr_of(0.4, 0.2), abs=1e-4)
    assert outputs.log.histograms['val/rays', 10].shape == (320,)


def test_a_held_out_view_of_a_field_with_two_passes_has_the_coarse_one_and_the_spread_too(tmp_path):
    outputs = outputs_of(tmp_path, TwoPasses(0.4), scene_of((51,)))
    outputs.make(['view'], 10)
    shown = {tag.removeprefix('val/'): picture for (tag, _), picture in outputs.log.pictures.items()}
    assert shown.keys() == {'rgb', 'disparity', 'opacity', 'target', 'error', 'rgb_coarse', 'disparity_coarse', 'z_std'}
    assert (shown['rgb'] == 102).all()
    assert (shown['rgb_coarse'] == 51).all()
    np.testing.assert_allclose(shown['z_std'], 1.0)


def test_a_held_out_view_whose_brightness_nobody_knows_is_measured_after_a_gain_was_fitted(tmp_path):
    scene = scene_of((51,), (16, 24))
    bright = Scene(**vars(scene) | {'exposure': True})
    for part, expected in ((scene, psnr_of(0.4, 0.2)), (bright, 100.0)):
        outputs = outputs_of(tmp_path, Wall(0.4), part)
        outputs.make(['view'], 10)
        assert outputs.log.scalars['val/psnr', 10] == pytest.approx(expected, abs=1e-3)


def test_histograms_are_of_a_thousand_rays_or_a_few_more(tmp_path):
    outputs = outputs_of(tmp_path, scene=scene_of(size=(50, 60)))
    outputs.make(['view'], 10)
    assert outputs.log.histograms['val/rays', 10].shape == (1000,)


def pictures(board: EventAccumulator, name: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(event.encoded_image_string))).astype(float)
            for event in board.Images(f'val/{name}')]


@pytest.mark.slow
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


@pytest.mark.slow
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
    outputs = outputs_of(tmp_path, Wall(0.4), scene_of((0, 255)), render_factor=4)
    outputs.make(['test_set'], 40)
    folder = tmp_path / 'testset_000040'
    assert sorted(path.name for path in folder.iterdir()) == ['000.png', '001.png', 'metrics.json']
    assert grey_of(folder / '000.png').shape == (16, 20, 3)
    written = json.loads((folder / 'metrics.json').read_text())
    expected = [psnr_of(0.4, 0.0), psnr_of(0.4, 1.0)]
    assert [row['psnr'] for row in written['images']] == pytest.approx(expected, abs=1e-4)
    assert (written['step'], written['sampler']) == (40, 'wall')
    for name in ('psnr', 'ssim'):
        assert outputs.log.scalars[f'test/{name}', 40] == written['mean'][name]
    assert outputs.log.said == [f"step 40: 2 test views, psnr {np.mean(expected):.2f} dB, "
                                f"ssim {written['mean']['ssim']:.4f}"]


@pytest.mark.parametrize(('guided_test', 'sampler', 'grey'), [(False, 'wall', 0.4), (True, 'guided', 0.8)])
def test_test_views_go_through_the_sampler_of_the_flags_unless_guided_test_is_set(tmp_path, guided_test, sampler, grey):
    """An edit of how rays are sampled in training therefore shows in the test PSNR."""
    field, scene = Wall(0.4, guided_grey=0.8), scene_of((51,))
    outputs_of(tmp_path, field, scene, guided_test=guided_test).make(['test_set'], 40)
    written = json.loads((tmp_path / 'testset_000040' / 'metrics.json').read_text())
    assert written['sampler'] == sampler
    assert written['mean']['psnr'] == pytest.approx(psnr_of(grey, 0.2), abs=1e-4)
    assert len(field.boxes) == guided_test


def test_videos_of_the_path_are_guided_and_at_1_over_render_factor_of_the_size(tmp_path):
    import imageio.v2 as imageio

    run_dir, field, scene = tmp_path / 'name', Wall(0.4, guided_grey=0.8), scene_of(size=(32, 48))
    outputs = outputs_of(run_dir, field, scene, render_factor=2)
    outputs.make(['video'], 30)
    assert sorted(path.name for path in run_dir.iterdir()) == [
        'name_spiral_000030_disp.mp4', 'name_spiral_000030_rgb.mp4']
    frames = np.stack(imageio.mimread(run_dir / 'name_spiral_000030_rgb.mp4'))
    assert frames.shape == (1, 16, 24, 3)
    assert frames.mean() / 255 == pytest.approx(0.8, abs=0.02)
    assert np.shape(imageio.mimread(run_dir / 'name_spiral_000030_disp.mp4')) == (1, 16, 24, 3)
    assert np.array_equal(field.boxes, [scene.seen_box()])
    assert 'video' not in EVERY.missing(run_dir, 30, 30)


@pytest.mark.slow
def test_the_summary_is_drawn_from_the_files_of_the_run(tmp_path):
    outputs = outputs_of(tmp_path, scene=scene_of((0, 0)))
    outputs.scene.images.pixels[:] = 0, 255, 255
    (tmp_path / 'metrics.jsonl').write_text('{"step": 20, "seconds": 1.0, "psnr": 15.0}\n')
    outputs.make(['test_set', 'summary'], 20)
    picture = np.asarray(Image.open(tmp_path / 'summary.png').convert('RGB')).astype(int)
    assert picture.shape == (1200, 1200, 3)
    rows = np.nonzero((np.abs(picture - [0, 255, 255]).max(-1) <= 1).sum(1) > 200)[0]
    assert 670 < rows.mean() < 950  # the targets are the second row of views
    assert 'summary' not in EVERY.missing(tmp_path, 20, 20)


@pytest.mark.slow
@pytest.mark.filterwarnings('error::UserWarning')
@pytest.mark.parametrize('line', ['', '{"step": 20, "seconds": 1.0, "photometric": 0.3}\n'])
def test_a_run_without_psnr_has_a_summary_too(tmp_path, line):
    outputs = outputs_of(tmp_path)
    (tmp_path / 'metrics.jsonl').write_text(line)
    outputs.make(['summary'], 70)
    assert outputs.log.said == []
    with Image.open(tmp_path / 'summary.png') as picture:
        assert picture.size == (1200, 400)


def test_the_real_log_takes_all_that_a_view_and_a_test_set_give_it(tmp_path):
    log = TrainLog(tmp_path, 0, 70, 10, torch.device('cpu'))
    outputs = Outputs(scene_of(), TwoPasses, tmp_path, log, EVERY)
    outputs.make(['view', 'test_set'], 20)
    log.close()
    board = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(board.Tags()['images']) == [f'val/{name}' for name in (
        'disparity', 'disparity_coarse', 'error', 'opacity', 'rgb', 'rgb_coarse', 'target', 'z_std')]
    assert sorted(board.Tags()['scalars']) == ['test/psnr', 'test/ssim', 'val/psnr']
    assert board.Tags()['histograms'] == ['val/rays']
