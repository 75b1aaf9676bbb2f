"""model.py: the paper's model behind the interface that trainer, renderer, mesh and checkpoints use."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from known_fields import Balls, Shown, balls_model, mask_of, scene_of, shown_model
from torch.nn import functional as F

from nerf.contraction import Contraction
from nerf.fields.paper import model as paper
from nerf.fields.paper.mlp import FastMLPField
from nerf.fields.paper.model import PaperModel, front_to_back, samples_of_view
from nerf.rendering import render_view, surveyed, view_rays
from nerf.runtime.errors import UserError
from run_nerf_helpers import NeRF, Rays, Sampling, get_embedder, img2mse, render_rays

SAMPLING = Sampling(6, 4, perturb=True, raw_noise_std=1.0, white_bkgd=True)


def a_model(fine: bool = True, use_viewdirs: bool = True, D: int = 2, seed: int = 0, **kwargs) -> PaperModel:
    generator = torch.Generator().manual_seed(seed)
    (embed, channels), (embed_dirs, channels_views) = get_embedder(3), get_embedder(2)

    def field() -> FastMLPField:
        network = NeRF(D, 16, channels, channels_views, 5, (), use_viewdirs, generator)
        network.lift_density(0.5)
        return FastMLPField(network, embed, embed_dirs if use_viewdirs else None)
    sampling = SAMPLING if fine else SAMPLING._replace(N_importance=0)
    return PaperModel(field(), field() if fine else None, sampling, kwargs.pop('chunk', 100), **kwargs)


def some_rays(count: int = 12) -> Rays:
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(count, 3, generator=generator)
    bound = torch.ones(count, 1)
    return Rays(torch.randn(count, 3, generator=generator), directions, F.normalize(directions, dim=-1), 2 * bound,
                6 * bound)


def target_of(rays: Rays) -> torch.Tensor:
    return torch.rand(len(rays.near), 3, generator=torch.Generator().manual_seed(2))


# A training step


@pytest.mark.parametrize('fine', [True, False])
def test_losses_are_named_mse0_where_there_is_a_fine_network_and_mse_always(fine):
    model, rays = a_model(fine), some_rays()
    numbers, target = model.random_numbers(12, torch.Generator().manual_seed(3)), target_of(rays)
    losses = model(rays, numbers, target)
    assert tuple(losses) == model.loss_names == (('mse0', 'mse') if fine else ('mse',))
    shown = render_rays(rays, model.coarse, model.fine, model.sampling, numbers)
    assert torch.equal(losses['mse'], img2mse(shown.final.rgb, target))
    if fine:
        assert torch.equal(losses['mse0'], img2mse(shown.coarse.rgb, target))
        assert losses['mse0'] != losses['mse']


@pytest.mark.parametrize('fine', [True, False])
def test_each_loss_trains_its_own_network(fine):
    model, rays = a_model(fine), some_rays()
    numbers, target = model.random_numbers(12, torch.Generator().manual_seed(3)), target_of(rays)
    for name, trained in (('mse0', 'coarse'), ('mse', 'fine')) if fine else (('mse', 'coarse'),):
        model.zero_grad()
        model(rays, numbers, target)[name].backward()
        changed = {key.split('.')[0] for key, weight in model.named_parameters()
                   if weight.grad is not None and weight.grad.abs().sum() > 0}
        assert changed == {trained}


def test_losses_of_tiles_add_up_to_those_of_all_rays_at_once():
    model, rays = a_model(chunk=5), some_rays()
    numbers, target = model.random_numbers(12, torch.Generator().manual_seed(3)), target_of(rays)
    tiles = model.tiles(12)
    assert [(tile.start, tile.stop) for tile in tiles] == [(0, 5), (5, 10), (10, 12)]
    whole = model(rays, numbers, target)
    parts = [model(rays.part(tile), tuple(part[tile] for part in numbers), target[tile]) for tile in tiles]
    for name, loss in whole.items():
        mean = sum(part[name] * (tile.stop - tile.start) for part, tile in zip(parts, tiles)) / 12
        torch.testing.assert_close(mean, loss)


def test_random_numbers_follow_from_the_generator_and_have_a_row_for_each_ray():
    model = a_model()
    first, again, other = (model.random_numbers(7, torch.Generator().manual_seed(seed)) for seed in (4, 4, 5))
    assert [part.shape for part in first] == [(7, 6), (7, 4), (7, 6), (7, 10)]
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not any(torch.equal(a, b) for a, b in zip(first, other))


def test_all_parameters_are_in_one_group_at_the_learning_rate_coarse_first():
    model = a_model()
    (group,) = model.parameter_groups()
    assert group['rate'] == 1.0
    expected = [*model.coarse.network.parameters(), *model.fine.network.parameters()]
    assert [id(each) for each in group['params']] == [id(each) for each in expected]


def test_the_guard_sees_what_each_pass_shows():
    model, rays = a_model(), some_rays()
    numbers, target = model.random_numbers(12, torch.Generator().manual_seed(3)), target_of(rays)
    model(rays, numbers, target)
    shown = render_rays(rays, model.coarse, model.fine, model.sampling, numbers)
    for n, colours in enumerate((shown.coarse.rgb, shown.final.rgb, target)):
        torch.testing.assert_close(model.guard.ranges[:, n], torch.stack([colours.amin(0), colours.amax(0)]))


# What it shows


def test_colour_and_density_are_those_of_the_fine_field_or_of_the_only_one():
    points, viewdirs = 2.0 * torch.rand(5, 3, 3) - 1.0, F.normalize(torch.randn(5, 3), dim=-1)
    for model in (a_model(), a_model(fine=False)):
        best = model.coarse if model.fine is None else model.fine
        for a, b in zip(model.radiance(points, viewdirs), best(points, viewdirs)):
            assert torch.equal(a, b)
        assert torch.equal(model.density(points[:, 0]), best.density(points[:, 0]))


def test_density_of_an_array_is_that_of_its_points_whatever_its_length():
    model = balls_model()
    centres = np.float32([centre for centre, _ in Balls.balls])
    points = np.tile(np.concatenate([centres, centres + 0.25]), (2 ** 16, 1))  # more than go through at once
    density = model.density_array(points)
    assert density.dtype == np.float32
    np.testing.assert_array_equal(density, np.tile(np.float32([300, 300, 300, 0, 0, 0]), 2 ** 16))


def test_histograms_are_of_densities_evenly_along_the_rays_and_of_the_weights():
    mask = np.zeros((20, 24), bool)
    mask[:, 12:] = True
    model, scene = shown_model(mask), scene_of(20, 24)
    rays = view_rays(model, scene, scene.cameras)
    values = model.histograms(rays)
    assert values['density'].shape == (480 * 64,)
    z = torch.linspace(2.0, 6.0, 64)
    inside = ((z - 4.0).abs() < 0.1).sum()  # samples of each ray in the slab
    assert inside > 0
    assert values['density'].unique().tolist() == [0.0, 100.0]
    assert (values['density'] > 0).sum() == 240 * inside
    assert values['weights'].shape == (480, 128)
    torch.testing.assert_close(values['weights'].sum(-1), torch.from_numpy(mask.ravel()).float(), atol=1e-4, rtol=0)


def test_a_view_without_a_survey_shows_both_passes_of_all_rays():
    model, scene = a_model(chunk=70), scene_of(12, 16)
    view = render_view(model, scene, scene.cameras)
    whole = render_rays(view_rays(model, scene, scene.cameras), model.coarse, model.fine, model.sampling)
    for ours, theirs in ((view, whole.final), (view.passes['coarse'], whole.coarse)):
        for name in ('rgb', 'disp', 'acc'):
            np.testing.assert_allclose(getattr(ours, name).reshape(192, -1),
                                       getattr(theirs, name).detach().reshape(192, -1), atol=2e-4, err_msg=name)
    np.testing.assert_allclose(view.spread.ravel(), whole.z_std, atol=1e-5)


@pytest.mark.parametrize(('density', 'last'), [(25.0, 5.5), (50.0, 4.1)])  # optical depths of 5, and of 10
def test_what_hides_the_rest_does_not_depend_on_how_long_directions_are(monkeypatch, density, last):
    monkeypatch.setattr(paper, 'STRETCHES', 50)
    field = Shown(np.ones((20, 24), bool), density)
    ahead = torch.tensor([[0.0, 1.0, 0.0]])
    rays = Rays(-4.0 * ahead, 2.0 * ahead, viewdirs=ahead, near=torch.tensor([[1.0]]), far=torch.tensor([[3.0]]))
    front_to_back(field, rays, torch.linspace(1.75, 2.75, 400)[None], True)
    assert field.deepest + 4.0 == pytest.approx(last, abs=0.05)


# A survey


@pytest.mark.parametrize('fine', [True, False])
def test_a_surveyed_view_is_drawn_by_the_better_field_and_forgotten_ones_are_not(fine):
    mask = mask_of(*((row, column) for row in range(5, 15) for column in range(4, 12)))
    model, scene = shown_model(np.zeros_like(mask), mask), scene_of(20, 24)
    if not fine:
        model = PaperModel(Shown(mask), None, Sampling(64, white_bkgd=True), 100)
    with surveyed(model, scene):
        asked = model.best.asked
        view = render_view(model, scene, scene.cameras)
        assert view.passes == {}
        np.testing.assert_array_equal(view.acc > 0.5, mask)
        np.testing.assert_allclose(view.acc[mask], 1.0, atol=1e-3)
        assert model.best.asked - asked < 300 * samples_of_view(model.sampling)  # of 480 rays, of which 80 hit
        assert not fine or model.coarse.asked == 0
    assert model.surveyed is None
    assert (render_view(model, scene, scene.cameras).passes != {}) == fine


@pytest.mark.parametrize('name', ['lindisp', 'to_infinity'])
def test_samples_even_in_disparity_are_not_replaced_by_a_survey(name):
    model, scene = balls_model(), scene_of(20, 24)
    model.sampling = model.sampling._replace(**{name: True})
    with surveyed(model, scene):
        assert model.surveyed is None


@pytest.mark.parametrize(('sampling', 'expected'), [
    (Sampling(64, 128), 32), (Sampling(64, 64), 24), (Sampling(32, 33), 20), (Sampling(64), 16), (Sampling(3), 12)])
def test_samples_of_a_view_follow_from_those_of_training(sampling, expected):
    assert samples_of_view(sampling) == expected


def test_a_survey_is_read_back_for_the_same_weights_and_made_again_for_others(tmp_path, monkeypatch):
    made, survey = [], paper.survey
    monkeypatch.setattr(paper, 'survey', lambda *args: made.append(1) or survey(*args))
    scene, path = scene_of(12, 16), tmp_path / '000007_occupancy.npz'
    grids = []
    for seed in (0, 0, 1, 1):
        model = a_model(seed=seed)
        with surveyed(model, scene, path):
            grids.append(model.surveyed)
    assert len(made) == 2
    assert torch.equal(grids[0].cells, grids[1].cells)
    assert torch.equal(grids[0].density[grids[0].cells], grids[1].density[grids[0].cells])
    assert not torch.equal(grids[1].density, grids[2].density)
    path.write_bytes(path.read_bytes()[:-50])
    model = a_model(seed=1)
    with surveyed(model, scene, path):
        assert len(made) == 3
        assert torch.equal(model.surveyed.density, grids[2].density)
    bigger = scene_of(12, 16)
    object.__setattr__(bigger, 'far', 6.5)  # another box
    with surveyed(model, bigger, path):
        assert len(made) == 4


def test_a_surveyed_models_densities_of_an_array_are_the_same_where_they_reach_the_least():
    model, scene = balls_model(), scene_of(20, 24)
    low, high = scene.seen_box()
    points = np.float32(np.random.default_rng(0).uniform(low, high + 0.1 * (high - low), (50_000, 3)))
    expected = model.density_array(points)
    assert (expected > 0).sum() > 5
    outside = (points > high).any(1).sum()
    asked, density = [], model.fine.density
    model.fine.density = lambda points: asked.append(len(points)) or density(points)
    with surveyed(model, scene):
        asked.clear()
        np.testing.assert_array_equal(model.density_array(points, least=1.0), expected)
        assert outside < sum(asked) < outside + 0.05 * len(points)
        asked.clear()
        model.density_array(points)  # smaller ones are wanted too
        assert sum(asked) == len(points)


@pytest.mark.parametrize('where', ['grid', 'view'])
def test_a_broken_field_does_not_show_an_empty_view(where):
    model, scene = shown_model(np.ones((20, 24), bool)), scene_of(20, 24)
    model.fine.inside = math.nan if where == 'grid' else 100.0
    with surveyed(model, scene):
        model.fine.inside = math.nan
        assert np.isnan(render_view(model, scene, scene.cameras).acc).any()


def test_view_chunk_is_chunk_unless_it_is_given():
    assert shown_model(mask_of((0, 0)), chunk=7).view_chunk == 7
    assert shown_model(mask_of((0, 0)), chunk=7, view_chunk=40).view_chunk == 40


# What checkpoints hold


def test_weights_are_the_reference_codes_entries_and_load_back():
    model, other = a_model(seed=0), a_model(seed=1)
    weights = model.weights()
    assert sorted(weights) == ['network_fine_state_dict', 'network_fn_state_dict']
    assert torch.equal(weights['network_fn_state_dict']['alpha_linear.bias'], model.coarse.network.alpha_linear.bias)
    assert torch.equal(weights['network_fine_state_dict']['alpha_linear.bias'], model.fine.network.alpha_linear.bias)
    other.load_weights(weights)
    for name, weight in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight), name


def test_a_model_of_one_network_has_no_fine_weights_and_takes_the_coarse_ones_of_two():
    alone, both = a_model(fine=False, seed=0), a_model(seed=1)
    assert alone.weights()['network_fine_state_dict'] is None
    alone.load_weights(both.weights())
    assert torch.equal(alone.coarse.network.rgb_linear.weight, both.coarse.network.rgb_linear.weight)


def test_weights_without_a_fine_network_do_not_fit_a_model_that_has_one():
    with pytest.raises(UserError, match='it has no network_fine_state_dict; set N_importance = 0'):
        a_model().load_weights(a_model(fine=False).weights())


@pytest.mark.parametrize('broken', [None, 7, 'text', torch.zeros(1)])
def test_a_checkpoint_without_a_networks_weights_is_an_error(broken):
    model = a_model()
    with pytest.raises(UserError, match='it has no network_fn_state_dict; '):
        model.load_weights(model.weights() | {'network_fn_state_dict': broken})


@pytest.mark.parametrize('broken', [None, 'text', torch.tensor([1]), torch.ones(1).to_sparse(), torch.ones(1) + 1j])
def test_a_weight_that_is_no_plain_tensor_of_real_numbers_is_an_error(broken):
    model = a_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    weights = model.weights()
    with pytest.raises(UserError, match='it has no network_fn_state_dict; '):
        model.load_weights(weights | {
            'network_fn_state_dict': weights['network_fn_state_dict'] | {'alpha_linear.bias': broken}})
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(('ours', 'theirs', 'message'), [
    ({'D': 2}, {'D': 3}, 'pts_linears.2.weight is (16, 16) there and absent here'),
    ({'D': 3}, {'D': 2}, 'pts_linears.2.weight is absent there and (16, 16) here'),
    ({'use_viewdirs': True}, {'use_viewdirs': False}, 'feature_linear.weight is absent there and (16, 16) here')])
def test_weights_of_another_shape_are_an_error_that_names_the_first_and_the_flags(ours, theirs, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        a_model(**ours).load_weights(a_model(**theirs).weights())
    for flag in ('netdepth', 'netwidth', 'multires', 'use_viewdirs', 'N_importance'):
        assert flag in str(error.value)
        assert flag in PaperModel.shape_flags


def test_the_layer_without_use_need_not_be_there_without_view_directions():
    model, other = a_model(use_viewdirs=False, seed=0), a_model(use_viewdirs=False, seed=1)
    weights = model.weights()
    for part in weights.values():
        for key in [key for key in part if key.startswith('views_linears')]:
            del part[key]
    other.load_weights(weights)
    assert torch.equal(other.fine.network.output_linear.weight, model.fine.network.output_linear.weight)
    weights['network_fn_state_dict'].pop('output_linear.bias')
    with pytest.raises(UserError, match=r'output_linear\.bias is absent there'):
        other.load_weights(weights)


def contracted_model(contraction: Contraction | None) -> PaperModel:
    model = a_model()
    for field in (model.coarse, model.fine):
        field.contraction = contraction
    model.sampling = model.sampling._replace(to_infinity=contraction is not None)
    return model


def test_weights_of_contracted_space_hold_its_contraction_which_both_networks_take():
    ours, theirs = Contraction((0.0, 0.0, 0.0), 1.0), Contraction((0.5, 1.0, -2.0), 3.0)
    model = contracted_model(ours)
    weights = contracted_model(theirs).weights()
    assert weights['contraction'] == [0.5, 1.0, -2.0, 3.0]
    model.load_weights(weights)
    assert model.coarse.contraction == model.fine.contraction == theirs
    assert 'contraction' not in a_model().weights()


@pytest.mark.parametrize(('ours', 'theirs', 'message'), [
    (None, [0.0, 0.0, 0.0, 1.0], 'its networks see space contracted; set contract = on'),
    (Contraction((0.0, 0.0, 0.0), 1.0), None, 'its networks see space not contracted; set contract = off'),
    (Contraction((0.0, 0.0, 0.0), 1.0), [0.0, 0.0, 1.0], 'its contraction is broken'),
    (Contraction((0.0, 0.0, 0.0), 1.0), 'text', 'its contraction is broken')])
def test_weights_of_space_that_is_contracted_or_not_do_not_fit_the_other(ours, theirs, message):
    with pytest.raises(UserError, match=message):
        contracted_model(ours).load_weights(a_model().weights() | {'contraction': theirs})


def test_the_background_of_a_view_through_both_passes_is_what_its_rays_show_at_infinity():
    model = contracted_model(Contraction((0.0, 0.0, 0.0), 4.1))
    scene = scene_of(4, 5)
    view, rays = render_view(model, scene, scene.cameras), view_rays(model, scene, scene.cameras)
    shown = render_rays(rays, model.coarse, model.fine, model.sampling)
    torch.testing.assert_close(torch.from_numpy(view.rgb).reshape(-1, 3), shown.final.rgb, rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.from_numpy(view.spread).flatten(), shown.z_std, rtol=1e-3, atol=0)
    far = rays.origins + 1e9 * rays.directions
    far_rgb, _ = model.radiance(far[:, None], rays.viewdirs)
    z = torch.full_like(rays.near, 1e5 * 2.0)
    near_rgb, _ = model.radiance((rays.origins + z * rays.directions)[:, None], rays.viewdirs)
    torch.testing.assert_close(near_rgb, far_rgb, rtol=0, atol=1e-3)  # samples end where infinity is
    assert view.rgb.shape == (4, 5, 3)


def test_the_training_state_is_that_of_the_guard():
    model, other = a_model(), a_model()
    rays = some_rays()
    model(rays, model.random_numbers(12, torch.Generator()), target_of(rays))
    model.guard.tries['fine'] = 3
    other.load_training_state(model.training_state())
    assert other.guard.tries == {'coarse': 0, 'fine': 3}
    assert torch.equal(other.guard.ranges, model.guard.ranges)
    with pytest.raises(LookupError):
        other.load_training_state({})


def test_describe_counts_the_parameters_of_each_network():
    # 21 -> 16 -> 16; density 16 -> 1; feature 16 -> 16; (16 + 15) -> 8; 8 -> 3
    count = 21 * 16 + 16 + 16 * 16 + 16 + 17 + 16 * 16 + 16 + 31 * 8 + 8 + 8 * 3 + 3
    assert a_model().describe() == f'networks  coarse {count:,} parameters, fine {count:,} parameters'
    assert a_model(fine=False).describe() == f'networks  coarse {count:,} parameters'
