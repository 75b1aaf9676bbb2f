"""nerf/exposure.py: gains that are learned, what they do to a step, and how held-out views are measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same, state_of_run, trainer_of
from known_pictures import Painted, scene_of
from PIL import Image
from skimage.metrics import structural_similarity

import run_nerf
from nerf.exposure import MEASURED, Exposure, ExposureSettings, right_halves
from nerf.fields.interface import Target, exposed
from nerf.flags import parse_flags
from nerf.formats import learns_exposure
from nerf.outputs import Intervals, Outputs
from nerf.rendering import save_metrics

LOGS = np.log(np.random.default_rng(0).uniform(0.5, 1.0, (24, 3)))  # of the training images' gains


@pytest.fixture(scope='session')
def gained_dir(tiny_scene, tmp_path_factory) -> Path:
    """Folder of a scene, a bright ball on black (alpha is ignored), whose images have gains: LOGS in training, 0.6 in
    the others."""
    folder = tiny_scene(tmp_path_factory.mktemp('gained') / 'scene', size=24, counts=(24, 2, 2))
    for path in folder.glob('*/*.png'):
        gain = np.exp(LOGS[int(path.stem[2:])]) if path.parent.name == 'train' else 0.6
        image = np.asarray(Image.open(path)).astype(float)
        image[..., :3] = 240.0 * gain * (image[..., 3:] > 0)
        Image.fromarray(np.rint(image).astype(np.uint8)).save(path)
    return folder


@pytest.fixture
def gained(flags, gained_dir):
    """Makes the flags of a run on that scene."""
    def make(*extra: str, **kwargs) -> list[str]:
        return flags('--datadir', str(gained_dir), *extra, **kwargs)
    return make


def some_exposure(logs: np.ndarray = LOGS, *settings: ExposureSettings) -> Exposure:
    exposure = Exposure(len(logs), torch.device('cpu'), *settings)
    exposure.load_state(torch.from_numpy(logs).float())
    return exposure


# Gains


def test_gains_are_1_at_first_and_their_logarithms_have_mean_0():
    image = torch.tensor([3, 0, 0, 2])
    assert torch.equal(Exposure(24, torch.device('cpu')).gains(image), torch.ones(4, 3))
    expected = np.exp(LOGS - LOGS.mean(0))[image]
    torch.testing.assert_close(some_exposure().gains(image), torch.from_numpy(expected).float())


def test_a_common_change_of_all_gains_changes_nothing_and_has_no_gradient():
    exposure, brighter = some_exposure(), some_exposure(LOGS + [1.0, -2.0, 0.5])
    image = torch.arange(24)
    torch.testing.assert_close(exposure.gains(image), brighter.gains(image))
    exposure.gains(image[:1]).sum().backward()
    torch.testing.assert_close(exposure.raw.grad.sum(0), torch.zeros(3), rtol=0, atol=1e-6)
    assert (exposure.raw.grad[0] > 0.1).all()


def test_the_penalty_pulls_gains_to_1():
    exposure = some_exposure(LOGS, ExposureSettings(rate=0.25, penalty=0.024))
    group = exposure.parameter_group()
    assert group.pop('rate') == 0.25
    adam = torch.optim.Adam([group], lr=0.01)
    (0.0 * exposure.gains(torch.tensor([0])).sum()).backward()
    adam.step()
    mean = adam.state[exposure.raw]['exp_avg']  # a tenth of the gradient, which is the penalty's alone
    torch.testing.assert_close(mean, 0.1 * 0.001 * torch.from_numpy(LOGS).float())
    assert (exposure.raw[LOGS < 0] > torch.from_numpy(LOGS).float()[LOGS < 0]).all()


@pytest.mark.parametrize('state', [torch.zeros(3, 3), torch.zeros(24), torch.zeros(24, 3, dtype=torch.int32), None])
def test_gains_that_do_not_fit_are_an_error(state):
    with pytest.raises(ValueError, match='do not fit'):
        some_exposure().load_state(state)


@pytest.mark.parametrize(('extra', 'expected'), [
    ([], False), (['--exposure', 'on'], True), (['--exposure', 'off'], False)])
def test_it_is_off_by_default_for_scenes_that_do_not_need_it(flags, extra, expected):
    args = parse_flags(flags(*extra))
    assert learns_exposure(args) == expected
    args.dataset_type = 'photos'
    assert learns_exposure(args) == ('off' not in extra)


# Training


@pytest.mark.parametrize('more', [
    [], ['--N_importance', '0'], pytest.param(['--field', 'grid'], marks=pytest.mark.slow)])
def test_a_step_compares_what_rays_show_times_the_gain_of_their_image(gained, more):
    trainer = trainer_of(gained(*more, '--exposure', 'on', '--seed', '3'))
    training, batcher = trainer.training, trainer.batcher
    numbers = training.random_numbers(32, batcher.generator)
    rays, target = batcher.rays(*batcher.pixels(1, 32))
    gains = torch.rand(32, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    plain, ones, losses = (training.losses(rays, numbers, target._replace(gains=part)).terms
                           for part in (None, torch.ones(32, 3), gains))
    for name, loss in plain.items():
        torch.testing.assert_close(ones[name], loss)
    sum(losses.values()).backward()
    assert losses['mse'] != plain['mse']
    assert (gains.grad != 0).any(0).all()


def test_a_background_has_no_gain():
    """Half of a pixel is a background of 0.8, half shows 0.2, which is twice as bright in the photograph."""
    rgb, background = torch.full((1, 3), 0.5 * 0.8 + 0.5 * 0.2), torch.full((1, 1), 0.5 * 0.8)
    assert torch.equal(exposed(rgb, background, None), rgb)
    torch.testing.assert_close(exposed(rgb, background, torch.full((1, 3), 2.0)), torch.full((1, 3), 0.6))


def test_a_ray_that_meets_nothing_shows_a_white_background_in_any_exposure(gained):
    trainer = trainer_of(gained('--exposure', 'on'))
    field, batcher, checkpoint = trainer.field, trainer.batcher, trainer.field.weights()
    for network in ('network_fn_state_dict', 'network_fine_state_dict'):
        checkpoint[network]['alpha_linear.weight'].zero_()
        checkpoint[network]['alpha_linear.bias'].fill_(-1.0)
    field.load_weights(checkpoint)
    rays, _ = batcher.next(1)
    white = Target(torch.ones(32, 3), gains=torch.full((32, 3), 0.5))
    losses = trainer.training.losses(rays, trainer.training.random_numbers(32, batcher.generator), white)
    assert losses.terms == {'mse0': 0.0, 'mse': 0.0}


def test_without_the_flag_nothing_is_learned_or_saved(gained):
    trainer = trainer_of(gained())
    trainer.step(1)
    assert trainer.exposure is None
    assert 'exposure' not in trainer.checkpoint(1)['run_state']
    assert len(trainer.checkpoint(1)['optimizer_state_dict']['param_groups']) == 1


LEARNING = {'mlp': ('--N_rand', '256', '--N_iters', '400', '--lrate_decay', '1'),
            'grid': ('--field', 'grid', '--N_iters', '300', '--N_rand', '1000', '--lrate', '2e-2')}


@pytest.mark.slow
@pytest.mark.parametrize('field', LEARNING)
def test_gains_approach_those_of_the_images_and_held_out_views_are_better_than_without(gained, tmp_path, field):
    n_iters = LEARNING[field][LEARNING[field].index('--N_iters') + 1]
    psnr = {}
    for exposure in ('on', 'off'):
        extra = (*LEARNING[field], '--exposure', exposure, '--i_testset', n_iters, '--i_img', '1000')
        assert run_nerf.main(learning(gained(*extra, expname=exposure))) == 0
        metrics = tmp_path / exposure / f'testset_{int(n_iters):06d}' / 'metrics.json'
        psnr[exposure] = json.loads(metrics.read_text())['mean']['psnr']
    raw = state_of_run(tmp_path / 'on', int(n_iters))['run_state']['exposure'].numpy()
    error = (raw - raw.mean(0)) - (LOGS - LOGS.mean(0))
    assert np.abs(error).max() < 0.12
    assert np.sqrt((error ** 2).mean()) < 0.05  # it was 0.2 at first
    assert psnr['on'] > psnr['off'] + 1.0, psnr


def learning(flags: list[str]) -> list[str]:
    """Flags without view directions and a white background: few views could explain their gains by colours that depend
    on the direction, or by thin fog before white."""
    return [flag for flag in flags if flag not in ('--use_viewdirs', '--white_bkgd')]


@pytest.mark.slow
@pytest.mark.parametrize('more', [(), ('--ema_decay', '0.9'), ('--field', 'grid', '--N_iters', '24')])
def test_a_run_that_goes_on_ends_bit_for_bit_like_one_that_never_stopped(gained, tmp_path, more):
    extra = ('--exposure', 'on', '--N_iters', '24', '--i_img', '100', '--i_testset', '100', '--i_weights', '10', *more)
    assert run_nerf.main(gained(*extra)) == 0
    whole = state_of_run(tmp_path / 'run', 24)
    for step in (20, 24):
        (tmp_path / 'run' / f'{step:06d}.tar').unlink()
    assert run_nerf.main(gained(*extra)) == 0
    assert_same(state_of_run(tmp_path / 'run', 24), whole)
    assert (whole['run_state']['exposure'] != 0).all()


@pytest.mark.slow
def test_a_run_cannot_begin_or_end_to_learn_gains_when_it_goes_on_and_the_error_names_the_flag(gained, capsys):
    assert run_nerf.main(gained('--N_iters', '2', '--exposure', 'on')) == 0
    assert run_nerf.main(gained('--N_iters', '4', '--exposure', 'off')) == 1
    assert 'changed since then: exposure on -> off' in capsys.readouterr().err


# Measuring


def halves(gain=(0.5, 0.8, 1.2), size=(16, 23)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A rendered picture, an image that is brighter by a gain, and the background of both."""
    rng = np.random.default_rng(0)
    background = rng.random((*size, 1), np.float32) * (rng.random((*size, 1)) < 0.5)
    shown = 0.8 * rng.random((*size, 3), np.float32) * (1.0 - background)
    return shown + background, np.float32(gain) * shown + background, background


def test_a_gain_is_recovered_exactly_from_the_left_half():
    rendered, target, background = halves()
    shown, wanted, gain = right_halves(rendered, target, background)
    np.testing.assert_allclose(gain, [0.5, 0.8, 1.2], rtol=1e-5)
    assert shown.shape == wanted.shape == (16, 12, 3)
    np.testing.assert_allclose(shown, wanted, atol=1e-6)
    np.testing.assert_array_equal(wanted, target[:, 11:])


def test_the_fit_does_not_look_at_what_is_measured():
    rendered, target, background = halves()
    target[:, 11:] = 0.25
    shown, wanted, gain = right_halves(rendered, target, background)
    np.testing.assert_allclose(gain, [0.5, 0.8, 1.2], rtol=1e-5)
    np.testing.assert_array_equal(wanted, np.full((16, 12, 3), 0.25, np.float32))
    np.testing.assert_allclose(shown, halves()[1][:, 11:], atol=1e-6)


def test_the_gain_has_the_least_squared_error():
    rng = np.random.default_rng(1)
    rendered, target = rng.random((2, 8, 10, 3))
    _, _, gain = right_halves(rendered, target, np.zeros((8, 10, 1)))
    expected = [np.linalg.lstsq(rendered[:, :5, i].reshape(-1, 1), target[:, :5, i].ravel())[0][0] for i in range(3)]
    np.testing.assert_allclose(gain, expected)


def test_a_half_without_light_has_gain_1_and_colours_stay_within_0_and_1():
    rendered, target = np.full((4, 8, 3), 0.75), np.full((4, 8, 3), 1.0)
    rendered[:, :4, 0] = 0.0
    rendered[:, 4:, 1] = 1.0
    shown, _, gain = right_halves(rendered, target, np.zeros((4, 8, 1)))
    np.testing.assert_allclose(gain, [1.0, 4 / 3, 4 / 3])
    np.testing.assert_array_equal(shown[0, 0], np.float32([0.75, 1.0, 1.0]))


def test_metrics_json_says_what_was_measured_and_has_the_gains(tmp_path):
    rendered = np.random.default_rng(2).integers(0, 200, (16, 24, 3), dtype=np.uint8)
    target = np.rint(0.5 * rendered).astype(np.uint8)
    scene = replace(scene_of(16, 24, target[None]), exposure=True)
    sampler = Painted(None)
    mean = save_metrics(tmp_path, 3, sampler, scene, [rendered])
    written = json.loads((tmp_path / 'metrics.json').read_text())
    assert list(written) == ['step', 'sampler', 'measured_on', 'mean', 'images']
    assert written['measured_on'] == MEASURED
    assert written['images'][0]['gain'] == pytest.approx([0.5] * 3, abs=0.005)
    shown, wanted, _ = right_halves(rendered / 255.0, target / 255.0, np.zeros((16, 24, 1)))
    assert mean['psnr'] == pytest.approx(-10 * np.log10(np.mean((shown - wanted) ** 2)), abs=0.01)
    assert mean['ssim'] == pytest.approx(structural_similarity(
        shown, wanted, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0))
    save_metrics(tmp_path, 3, sampler, replace(scene, exposure=False), [rendered])
    assert list(json.loads((tmp_path / 'metrics.json').read_text())) == ['step', 'sampler', 'mean', 'images']


def test_the_held_out_psnr_of_the_log_is_measured_in_the_same_way(tmp_path):
    class Log:
        def __init__(self):
            self.scalars = {}

        def scalar(self, tag, value, step):
            self.scalars[tag] = value

        def picture(self, *args):
            pass

        def training_psnr(self):
            return None

        histogram = picture
    grey = Painted(lambda rays: (torch.full_like(rays.origins, 0.5), *torch.ones(2, len(rays.near))))
    psnr = {}
    for exposure in (True, False):
        outputs = Outputs(replace(scene_of(16, 24), exposure=exposure), lambda: grey.field, tmp_path, Log(),
                          Intervals(1, 1, 1, 1))
        outputs.view(grey.field, 1)  # the image is black, so that the gain is 0
        psnr[exposure] = outputs.log.scalars['val/psnr']
    assert psnr[True] == 100.0
    assert psnr[False] < 20.0


def test_images_of_which_a_half_is_too_narrow_for_ssim_are_an_error(flags, capsys):
    assert run_nerf.main(flags('--exposure', 'on')) == 1
    assert "images are 16x16 pixels; SSIM's window needs at least 22x11" in capsys.readouterr().err
