"""nerf/samplers.py: both passes and skipped samples; where guided samples lie, by hand, and what few of them show."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fields.paper.analytic import Balls, Haze, Slab, field_of, scene_of
from test_run_nerf_helpers import seeded, small_field, some_rays

from nerf.fields.occupancy import Steps
from nerf.fields.paper.field import PaperField
from nerf.fields.paper.survey import DensityGrid, survey
from nerf.rendering import view_rays
from nerf.samplers import (
    GuidedSampler, HierarchicalSampler, divided, front_to_back, likely, sample_depths, samples_of_view,
)
from run_nerf_helpers import BEYOND, Rays, Sampling, draw, ray_points, render_pass, render_rays, stratified_z

CPU = torch.device('cpu')
SAMPLING = Sampling(8, 9, perturb=True, raw_noise_std=1.0, white_bkgd=True)


# Both passes


def hierarchical(skip_hidden: bool = True, sampling: Sampling = SAMPLING) -> HierarchicalSampler:
    coarse, fine = small_field(0), small_field(1) if sampling.N_importance else None
    return HierarchicalSampler(PaperField(coarse, fine, sampling, 10), coarse, fine, sampling, 10, 1, skip_hidden)


@pytest.mark.parametrize('sampling', [SAMPLING, Sampling(8)])
def test_training_and_pictures_are_those_of_render_rays(sampling):
    sampler, rays = hierarchical(sampling=sampling), some_rays(12)
    assert (sampler.name, sampler.passes) == (('hierarchical', ('coarse',)) if sampling.N_importance
                                              else ('stratified', ()))
    fine = sampler.fine and sampler.fine.raw
    draws = draw(12, sampling, seeded())
    shown, expected = sampler.render(rays, draws), render_rays(rays, sampler.coarse.raw, fine, sampling, draws)
    assert shown.final.rgb.requires_grad
    for part, wanted in zip(shown.final, expected.final):
        assert torch.equal(part, wanted)
    with torch.no_grad():
        picture, expected = sampler.render(rays), render_rays(rays, sampler.coarse.raw, fine, sampling)
    for part, wanted in zip(picture.final, expected.final):
        torch.testing.assert_close(part, wanted, rtol=1e-5, atol=1e-5)
    if fine:
        assert torch.equal(picture.coarse.rgb, expected.coarse.rgb)
        assert torch.equal(picture.z_std, expected.z_std)


@pytest.mark.parametrize(('density', 'last'), [(45.0, 5.5), (47.0, 3.5 + 2.0 / 3)])  # optical depths of 9.0, and of 9.4
@pytest.mark.parametrize('length', [1.0, 2.0])
def test_hidden_samples_are_not_asked_for_however_long_directions_are(density, last, length):
    field = Slab(np.ones((20, 24), bool), density)
    ahead = torch.tensor([[0.0, 1.0, 0.0]])
    rays = Rays(-4.0 * ahead, length * ahead, ahead, torch.zeros(1, 1), torch.ones(1, 1))
    z = torch.linspace(3.5, 5.5, 3001)[None] / length  # in three parts, of which the second begins behind the slab
    front_to_back(field.raw)(ray_points(rays, z), rays.viewdirs)
    whole = Slab(np.ones((20, 24), bool), density)
    whole.raw(ray_points(rays, z), rays.viewdirs)
    assert whole.deepest + 4.0 == pytest.approx(5.5)
    assert field.deepest + 4.0 == pytest.approx(last, abs=0.01)


def test_skipped_samples_have_no_density_and_change_no_colour():
    rays, field = some_rays(20), small_field()
    field.network.lift_density(8.0)
    z = 40.0 * stratified_z(rays.near, rays.far, 30)
    raw = front_to_back(field.raw)(ray_points(rays, z), rays.viewdirs)
    whole = field.raw(ray_points(rays, z), rays.viewdirs)
    skipped = raw[..., 3] == 0
    assert 0.1 < skipped.float().mean() < 0.9
    torch.testing.assert_close(raw[~skipped], whole[~skipped], rtol=1e-4, atol=1e-5)
    for ours, expected in zip(render_pass(front_to_back(field.raw), rays, z, SAMPLING),
                              render_pass(field.raw, rays, z, SAMPLING)):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize('skip', [True, False])
def test_a_sampler_skips_samples_in_pictures_alone_and_only_where_it_may(skip):
    field = field_of(*(Slab(np.ones((20, 24), bool), 1000.0) for _ in range(2)))
    sampler = HierarchicalSampler(field, field.coarse, field.fine, field.sampling, 10, 1, skip)
    scene = scene_of(20, 24)
    rays, every = view_rays(sampler, scene.space, scene.cameras), 480 * 128
    sampler.render(rays)
    assert field.fine.asked == every
    with torch.no_grad():
        sampler.render(rays)
    assert (field.fine.asked == 2 * every) == (not skip)


# Guided samples


def steps_of(rays: list[int], n_rays: int, length: float = 0.5) -> Steps:
    """Steps on the rays of a list; those of a ray follow each other from depth 2, with a gap of 1 after the second."""
    ray = torch.tensor(rays)
    place = torch.arange(len(rays)) - torch.searchsorted(ray, ray)
    t = 2.0 + (place + 0.5) * length + (place >= 2).float()
    return Steps(ray, t, torch.full((n_rays,), length), torch.zeros_like(ray))


def test_shares_of_an_even_haze_fall_as_light_does():
    steps = steps_of([0] * 6 + [2] * 3, 3)
    shares = likely(steps, torch.full((9,), 0.5))
    assert steps.total(shares).tolist() == pytest.approx([1.0, 0.0, 1.0])
    weights = np.exp(-0.5 * np.arange(3)) * (1 - math.exp(-0.5))
    blurred = 0.5 * weights + 0.25 * np.append(weights[1:], 0.0) + 0.25 * np.append(0.0, weights[:-1])
    np.testing.assert_allclose(shares[6:], 0.7 * blurred / blurred.sum() + 0.3 / 3, rtol=1e-6)


def test_nothing_is_spent_behind_a_wall_and_rays_without_density_are_sampled_evenly():
    shares = likely(steps_of([0] * 5 + [1] * 4, 2), torch.tensor([0.0, 0.0, 50.0, 0.0, 3.0] + 4 * [0.0]))
    assert shares[4] < 1e-20
    assert shares[2] > 0.35  # and its neighbours get a quarter each
    np.testing.assert_allclose(shares[5:], 0.25)


def test_parts_have_equal_shares_and_gaps_have_no_length():
    steps = steps_of([1, 1, 1, 1], 3)  # at depths 2 to 3 and 4 to 5
    hit, z, deltas = divided(steps, torch.tensor([0.25, 0.25, 0.5, 0.0], dtype=torch.float64), 4)
    assert hit.tolist() == [1]
    # Edges in steps: 0, 1, 2, 2.5 and 4. The last part is from 4.25 to 5.
    np.testing.assert_allclose(z, [[2.25, 2.75, 4.125, 4.625]])
    np.testing.assert_allclose(deltas, [[0.5, 0.5, 0.25, 0.75]])


def test_parts_of_many_rays_are_those_of_each_alone():
    generator = torch.Generator().manual_seed(0)
    count = torch.randint(0, 9, (50,), generator=generator)
    steps = steps_of(torch.arange(50).repeat_interleave(count).tolist(), 50)
    shares = torch.rand(len(steps.ray), generator=generator, dtype=torch.float64)
    shares = shares / steps.total(shares)[steps.ray]
    hit, z, deltas = divided(steps, shares, 7)
    assert hit.tolist() == count.nonzero()[:, 0].tolist()
    for n, ray in enumerate(hit.tolist()):
        mine = steps.ray == ray
        cdf = np.concatenate([[0.0], shares[mine].cumsum(0).numpy()])
        edges = np.interp(np.linspace(0, 1, 8), cdf, np.arange(len(cdf)))
        np.testing.assert_allclose(deltas[n], 0.5 * np.diff(edges), atol=1e-5)
        middle = 0.5 * (edges[1:] + edges[:-1])
        np.testing.assert_allclose(z[n], 2.0 + 0.5 * middle + (middle >= 2), atol=1e-5)
        assert deltas[n].sum() == pytest.approx(0.5 * count[ray].item())


def whole_box(density: float) -> DensityGrid:
    return DensityGrid(torch.zeros(3, dtype=torch.float64), 0.5, torch.ones(8, 8, 8, dtype=torch.bool),
                       torch.tensor([[0.0] * 3, [4.0] * 3], dtype=torch.float64),
                       torch.full((8, 8, 8), density, dtype=torch.float16))


def test_the_sample_at_the_far_bound_reaches_to_infinity_where_that_is_occupied():
    along = torch.tensor([[1.0, 0.0, 0.0]])
    for far, ends in ((3.0, True), (9.0, False)):  # the box ends at 4
        rays = Rays(torch.tensor([[0.0, 2.0, 2.0]]), along, along, torch.zeros(1, 1), torch.full((1, 1), far))
        _, z, deltas = sample_depths(whole_box(0.1), rays, 5)
        assert (deltas[0, -1] == BEYOND) == ends
        assert (z[0, -1] == far) == ends
        assert (deltas[0, :-1] < 1.0).all()


def guided(network, white: bool = True, at_once: int = 200) -> tuple[GuidedSampler, Rays]:
    """A guided sampler of a known network, and the rays of the camera of `scene_of`."""
    scene = scene_of(30, 36, white_bkgd=white)
    sampling = Sampling(64, 64, white_bkgd=white)
    field = PaperField(network, None, sampling, 100)
    sampler = GuidedSampler(field, network, survey(network.density, scene.seen_box(), CPU), sampling, at_once)
    return sampler, view_rays(sampler, scene.space, scene.cameras)


@pytest.mark.parametrize('network', [Balls(), Haze()])
@pytest.mark.parametrize('white', [True, False])
def test_a_view_of_few_samples_is_that_of_very_many_even_ones(network, white):
    sampler, rays = guided(network, white)
    shown = sampler.render(rays)
    assert shown.coarse is None
    assert shown.z_std is None
    expected = render_pass(network.raw, rays, stratified_z(rays.near, rays.far, 3000), sampler.sampling)
    assert (shown.final.rgb - expected.rgb).abs().mean() < 2e-3
    assert (shown.final.rgb - expected.rgb).abs().max() < 0.06
    assert (shown.final.acc - expected.acc).abs().max() < 0.05
    torch.testing.assert_close(shown.final.depth, expected.depth, atol=0.15, rtol=0)


def test_the_network_is_asked_for_rays_that_meet_something_and_for_so_many_at_once():
    network = Balls()
    sampler, rays = guided(network, at_once=50)
    network.calls.clear()
    sampler.render(rays)
    assert max(network.calls) == 50
    hit = int((sampler.grid.steps(rays).count > 0).sum())
    assert 0 < hit < 300
    assert sum(network.calls) <= hit + 50


@pytest.mark.parametrize(('sampling', 'expected'), [
    (Sampling(64, 128), 32), (Sampling(64, 64), 24), (Sampling(32, 33), 20), (Sampling(64), 16), (Sampling(3), 12)])
def test_samples_of_a_view_follow_from_those_of_training(sampling, expected):
    assert samples_of_view(sampling) == expected
