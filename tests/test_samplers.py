"""guided_view.py: where samples lie, by hand, and that few of them show what many evenly spaced ones do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from known_fields import Balls, Field, scene_of

from nerf.fields.paper import guided_view
from nerf.fields.paper.guided_view import divided, draw, likely, sample_depths
from nerf.fields.occupancy import Steps
from nerf.fields.paper.survey import DensityGrid, survey
from nerf.rendering import view_rays
from run_nerf_helpers import BEYOND, Rays, render_pass, stratified_z

CPU = torch.device('cpu')


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


class Haze(Field):
    """A ball of soft edge, half transparent, with colours that change from place to place."""

    def raw(self, points):
        density = 6.0 * (1.0 - points.norm(dim=-1)).clamp(min=0.0)
        return torch.cat([3.0 * torch.sin(4.0 * points), density[..., None] - 1e-3], -1)


@pytest.mark.parametrize('field', [Balls(), Haze()])
@pytest.mark.parametrize('white', [True, False])
def test_a_view_of_few_samples_is_that_of_very_many_even_ones(field, white, monkeypatch):
    monkeypatch.setattr(guided_view, 'RAYS', 400)
    scene = scene_of(30, 36, white_bkgd=white)
    rays = view_rays(type('M', (), {'device': CPU}), scene, scene.cameras)
    grid = survey(field.density, scene.seen_box(), CPU)
    *_, picture = draw(field, grid, rays, 24, 200, white)
    expected = render_pass(field, rays, stratified_z(rays.near, rays.far, 3000), white)
    assert (picture.rgb - expected.rgb).abs().mean() < 2e-3
    assert (picture.rgb - expected.rgb).abs().max() < 0.06
    assert (picture.acc - expected.acc).abs().max() < 0.05
    torch.testing.assert_close(picture.depth, expected.depth, atol=0.15, rtol=0)
    assert picture.final.all()


def test_the_field_is_asked_for_rays_that_meet_something_and_for_so_many_at_once(monkeypatch):
    monkeypatch.setattr(guided_view, 'RAYS', 400)
    asked = []

    def field(points, viewdirs):
        asked.append(points.shape[0])
        return Balls()(points, viewdirs)
    scene = scene_of(30, 36)
    rays = view_rays(type('M', (), {'device': CPU}), scene, scene.cameras)
    grid = survey(Balls().density, scene.seen_box(), CPU)
    pictures = list(draw(field, grid, rays, 8, 50, True))
    assert len(pictures) == 3
    assert max(asked) == 50
    hit = [int((grid.steps(rays.part(tile)).count > 0).sum()) for tile in (slice(0, 400), slice(400, 800))]
    assert 0 < sum(hit) < 300
    assert sum(asked) <= sum(-(-n // 50) * 50 for n in hit) + 50
