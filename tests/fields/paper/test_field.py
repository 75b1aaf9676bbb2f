"""field.py: the paper's field: what it shows, its samplers, and its part of a checkpoint."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from fields.paper.analytic import Balls, Slab, field_of, mask_of, scene_of
from torch.nn import functional as F

from nerf.fields.paper.field import PaperField, Shortcuts
from nerf.fields.paper.mlp import FastMLPField
from nerf.fields.paper.survey import DensityGrid
from nerf.rendering import render_view, view_rays
from nerf.runtime.errors import UserError
from nerf.samplers import GuidedSampler, samples_of_view
from nerf.space import Bounded, Unbounded
from run_nerf_helpers import NeRF, Sampling, get_embedder, render_rays

SAMPLING = Sampling(6, 4, perturb=True, raw_noise_std=1.0, white_bkgd=True)
BALL = Unbounded(2.0, 6.0, centre=(0.0, 0.0, 0.0), radius=1.0)


def a_field(fine: bool = True, use_viewdirs: bool = True, D: int = 2, seed: int = 0, chunk: int = 100,
            space=None, **changes) -> PaperField:
    generator = torch.Generator().manual_seed(seed)
    (embed, channels), (embed_dirs, channels_views) = get_embedder(3), get_embedder(2)

    def mlp() -> FastMLPField:
        network = NeRF(D, 16, channels, channels_views, 5, (), use_viewdirs, generator)
        network.lift_density(0.5)
        return FastMLPField(network, embed, embed_dirs if use_viewdirs else None, space=space)
    sampling = SAMPLING._replace(N_importance=SAMPLING.N_importance if fine else 0, **changes)
    return PaperField(mlp(), mlp() if fine else None, sampling, chunk)


# What it shows


def test_colour_and_density_are_those_of_the_fine_network_or_of_the_only_one():
    points, viewdirs = 2.0 * torch.rand(5, 3, 3) - 1.0, F.normalize(torch.randn(5, 3), dim=-1)
    for field in (a_field(), a_field(fine=False)):
        best = field.coarse if field.fine is None else field.fine
        assert field.best is best
        for a, b in zip(field.radiance(points, viewdirs), best.radiance(points, viewdirs)):
            assert torch.equal(a, b)
        assert torch.equal(field.density(points[:, 0]), best.density(points[:, 0]))


def test_density_of_an_array_is_that_of_its_points_whatever_its_length():
    field = field_of(Balls(), Balls())
    centres = np.float32([centre for centre, _ in Balls.balls])
    points = np.tile(np.concatenate([centres, centres + 0.25]), (2 ** 16, 1))  # more than go through at once
    density = field.density_array(points)
    assert density.dtype == np.float32
    np.testing.assert_array_equal(density, np.tile(np.float32([300, 300, 300, 0, 0, 0]), 2 ** 16))


def test_histograms_are_of_densities_evenly_along_the_rays_and_of_the_weights():
    mask = mask_of(range(20), range(12, 24))
    field, scene = field_of(Slab(mask), Slab(mask)), scene_of(20, 24)
    values = field.histograms(view_rays(field.sampler(), scene.space, scene.cameras))
    assert values['density'].shape == (480 * 64,)
    z = torch.linspace(2.0, 6.0, 64)
    inside = ((z - 4.0).abs() < 0.1).sum()  # samples of each ray in the slab
    assert inside > 0
    assert values['density'].unique().tolist() == [0.0, 100.0]
    assert (values['density'] > 0).sum() == 240 * inside
    assert values['weights'].shape == (480, 128)
    torch.testing.assert_close(values['weights'].sum(-1), torch.from_numpy(mask.ravel()).float(), atol=1e-4, rtol=0)


def test_a_view_of_its_sampler_shows_both_passes_of_all_rays():
    field, scene = a_field(chunk=70), scene_of(12, 16)
    sampler = field.sampler()
    assert sampler.tile == 70
    view = render_view(sampler, scene.space, scene.cameras)
    whole = render_rays(view_rays(sampler, scene.space, scene.cameras), field.coarse.raw, field.fine.raw,
                        field.sampling)
    for ours, theirs in ((view, whole.final), (view.passes['coarse'], whole.coarse)):
        for name in ('rgb', 'disp', 'acc'):
            np.testing.assert_allclose(getattr(ours, name).reshape(192, -1),
                                       getattr(theirs, name).detach().reshape(192, -1), atol=2e-4, err_msg=name)
    np.testing.assert_allclose(view.spread.ravel(), whole.z_std, atol=1e-5)


def test_the_background_of_a_view_to_infinity_is_what_its_rays_show_there():
    field, scene = a_field(space=replace(BALL, radius=4.1), horizon=BALL.horizon), scene_of(4, 5)
    sampler = field.sampler()
    view, rays = (render_view(sampler, scene.space, scene.cameras), view_rays(sampler, scene.space, scene.cameras))
    shown = render_rays(rays, field.coarse.raw, field.fine.raw, field.sampling)
    torch.testing.assert_close(torch.from_numpy(view.rgb).reshape(-1, 3), shown.final.rgb, rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.from_numpy(view.spread).flatten(), shown.z_std, rtol=1e-3, atol=0)
    far = rays.origins + 1e9 * rays.directions
    far_rgb, _ = field.radiance(far[:, None], rays.viewdirs)
    z = torch.full_like(rays.near, 1e5 * 2.0)
    near_rgb, _ = field.radiance((rays.origins + z * rays.directions)[:, None], rays.viewdirs)
    torch.testing.assert_close(near_rgb, far_rgb, rtol=0, atol=1e-3)  # samples end where infinity is


# The guided sampler


@pytest.mark.parametrize('fine', [True, False])
def test_a_guided_view_is_drawn_by_the_better_network_alone(fine):
    mask = mask_of(range(5, 15), range(4, 12))
    best, scene = Slab(mask), scene_of(20, 24)
    field = field_of(Slab(np.zeros_like(mask)), best) if fine else field_of(best, None)
    sampler = field.guided(scene.seen_box())
    surveyed = best.asked
    view = render_view(sampler, scene.space, scene.cameras)
    assert view.passes == {}
    np.testing.assert_array_equal(view.acc > 0.5, mask)
    np.testing.assert_allclose(view.acc[mask], 1.0, atol=1e-3)
    assert best.asked - surveyed < 300 * samples_of_view(field.sampling)  # of 480 rays, of which 80 hit
    assert not fine or field.coarse.asked == 0


@pytest.mark.parametrize('changes', [{'lindisp': True}, {'horizon': 1e5}])
def test_samples_even_in_disparity_get_no_survey(changes):
    scene = scene_of(20, 24)
    assert field_of(Balls(), Balls(), **changes).guided(scene.seen_box()).name == 'hierarchical'


def test_edited_compositing_gets_no_survey_and_skips_nothing():
    scene, shipped = scene_of(20, 24), field_of(Balls(), Balls())
    field = PaperField(Balls(), Balls(), shipped.sampling, 100, shortcuts=Shortcuts(fast=False))
    assert field.guided(scene.seen_box()).name == 'hierarchical'
    assert not field.sampler().skip_hidden
    assert shipped.guided(scene.seen_box()).name == 'guided'
    assert shipped.sampler().skip_hidden


@pytest.mark.slow
def test_a_survey_is_read_back_for_the_same_weights_and_made_again_for_others(tmp_path):
    scene, path, times = scene_of(12, 16), tmp_path / '000007_occupancy.npz', []

    def grid_of(seed: int, box: np.ndarray) -> DensityGrid:
        sampler = a_field(seed=seed).guided(box, path)
        assert isinstance(sampler, GuidedSampler)
        times.append(path.stat().st_mtime_ns)
        return sampler.grid

    box = scene.seen_box()
    grids = [grid_of(seed, box) for seed in (0, 0, 1, 1)]
    assert times[0] == times[1] < times[2] == times[3]
    assert torch.equal(grids[0].cells, grids[1].cells)
    assert torch.equal(grids[0].density[grids[0].cells], grids[1].density[grids[0].cells])
    assert not torch.equal(grids[1].density, grids[2].density)
    path.write_bytes(path.read_bytes()[:-50])
    assert torch.equal(grid_of(1, box).density, grids[2].density)
    grid_of(1, 1.1 * box)
    assert times[5] > times[4] > times[3]


def test_guided_densities_of_an_array_are_the_same_where_they_reach_the_least():
    field, scene = field_of(Balls(), Balls()), scene_of(20, 24)
    low, high = scene.seen_box()
    points = np.float32(np.random.default_rng(0).uniform(low, high + 0.1 * (high - low), (50_000, 3)))
    expected = field.density_array(points)
    assert (expected > 0).sum() > 5
    outside, sampler = (points > high).any(1).sum(), field.guided(scene.seen_box())
    before = field.fine.asked
    np.testing.assert_array_equal(sampler.density_array(points, least=1.0), expected)
    assert outside < field.fine.asked - before < outside + 0.05 * len(points)
    before = field.fine.asked
    sampler.density_array(points)  # smaller ones are wanted too
    assert field.fine.asked - before == len(points)


@pytest.mark.slow
@pytest.mark.parametrize('where', ['grid', 'view'])
def test_a_broken_field_does_not_show_an_empty_view(where):
    field, scene = field_of(*(Slab(np.ones((20, 24), bool)) for _ in range(2))), scene_of(20, 24)
    field.fine.inside = math.nan if where == 'grid' else 100.0
    sampler = field.guided(scene.seen_box())
    field.fine.inside = math.nan
    assert np.isnan(render_view(sampler, scene.space, scene.cameras).acc).any()


# Checkpoints


def test_weights_are_the_reference_codes_entries_and_load_back():
    field, other = a_field(seed=0), a_field(seed=1)
    weights = field.weights()
    assert sorted(weights) == ['network_fine_state_dict', 'network_fn_state_dict']
    assert torch.equal(weights['network_fn_state_dict']['alpha_linear.bias'], field.coarse.network.alpha_linear.bias)
    assert torch.equal(weights['network_fine_state_dict']['alpha_linear.bias'], field.fine.network.alpha_linear.bias)
    other.load_weights(weights)
    for name, weight in field.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight), name


def test_a_field_of_one_network_has_no_fine_weights_and_takes_the_coarse_ones_of_two():
    alone, both = a_field(fine=False, seed=0), a_field(seed=1)
    assert alone.weights()['network_fine_state_dict'] is None
    alone.load_weights(both.weights())
    assert torch.equal(alone.coarse.network.rgb_linear.weight, both.coarse.network.rgb_linear.weight)


def test_weights_without_a_fine_network_do_not_fit_a_field_that_has_one():
    with pytest.raises(UserError, match='it has no network_fine_state_dict; set N_importance = 0'):
        a_field().load_weights(a_field(fine=False).weights())


@pytest.mark.parametrize('broken', [None, 7, 'text', torch.zeros(1)])
def test_a_checkpoint_without_a_networks_weights_is_an_error(broken):
    field = a_field()
    with pytest.raises(UserError, match='it has no network_fn_state_dict; '):
        field.load_weights(field.weights() | {'network_fn_state_dict': broken})


@pytest.mark.parametrize('broken', [None, 'text', torch.tensor([1]), torch.ones(1).to_sparse(), torch.ones(1) + 1j])
def test_a_weight_that_is_no_plain_tensor_of_real_numbers_is_an_error(broken):
    field = a_field()
    before = {name: weight.clone() for name, weight in field.state_dict().items()}
    weights = field.weights()
    with pytest.raises(UserError, match='it has no network_fn_state_dict; '):
        field.load_weights(weights | {
            'network_fn_state_dict': weights['network_fn_state_dict'] | {'alpha_linear.bias': broken}})
    assert all(torch.equal(weight, before[name]) for name, weight in field.state_dict().items())


@pytest.mark.parametrize(('ours', 'theirs', 'message'), [
    ({'D': 2}, {'D': 3}, 'pts_linears.2.weight is (16, 16) there and absent here'),
    ({'D': 3}, {'D': 2}, 'pts_linears.2.weight is absent there and (16, 16) here'),
    ({'use_viewdirs': True}, {'use_viewdirs': False}, 'feature_linear.weight is absent there and (16, 16) here')])
def test_weights_of_another_shape_are_an_error_that_names_the_first_and_the_flags(ours, theirs, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        a_field(**ours).load_weights(a_field(**theirs).weights())
    for flag in ('netdepth', 'netwidth', 'multires', 'use_viewdirs', 'N_importance'):
        assert flag in str(error.value)
        assert flag in PaperField.shape_flags


def test_the_layer_without_use_need_not_be_there_without_view_directions():
    field, other = a_field(use_viewdirs=False, seed=0), a_field(use_viewdirs=False, seed=1)
    weights = field.weights()
    for part in weights.values():
        for key in [key for key in part if key.startswith('views_linears')]:
            del part[key]
    other.load_weights(weights)
    assert torch.equal(other.fine.network.output_linear.weight, field.fine.network.output_linear.weight)
    weights['network_fn_state_dict'].pop('output_linear.bias')
    with pytest.raises(UserError, match=r'output_linear\.bias is absent there'):
        other.load_weights(weights)


def test_weights_of_contracted_space_hold_its_ball_which_both_networks_take():
    theirs = replace(BALL, centre=(0.5, 1.0, -2.0), radius=3.0)
    field, weights = a_field(space=BALL), a_field(space=theirs).weights()
    assert weights['contraction'] == [0.5, 1.0, -2.0, 3.0]
    field.load_weights(weights)
    assert field.space == field.coarse.space == field.fine.space == theirs
    for space in (None, Bounded(2.0, 6.0)):
        assert 'contraction' not in a_field(space=space).weights()


@pytest.mark.parametrize(('ours', 'theirs', 'message'), [
    (None, [0.0, 0.0, 0.0, 1.0], 'its networks see space contracted; set contract = on'),
    (Bounded(2.0, 6.0), [0.0, 0.0, 0.0, 1.0], 'its networks see space contracted; set contract = on'),
    (BALL, None, 'its networks see space not contracted; set contract = off'),
    (BALL, [0.0, 0.0, 1.0], 'its contraction is broken'), (BALL, 'text', 'its contraction is broken')])
def test_weights_of_space_that_is_contracted_or_not_do_not_fit_the_other(ours, theirs, message):
    with pytest.raises(UserError, match=message):
        a_field(space=ours).load_weights(a_field().weights() | {'contraction': theirs})


def test_describe_counts_the_parameters_of_each_network():
    # 21 -> 16 -> 16; density 16 -> 1; feature 16 -> 16; (16 + 15) -> 8; 8 -> 3
    count = 21 * 16 + 16 + 16 * 16 + 16 + 17 + 16 * 16 + 16 + 31 * 8 + 8 + 8 * 3 + 3
    assert a_field().describe() == f'networks  coarse {count:,} parameters, fine {count:,} parameters'
    assert a_field(fine=False).describe() == f'networks  coarse {count:,} parameters'
    assert a_field(space=BALL).describe().endswith('parameters, of contracted space')
