"""occupied_rays.py and --occupancy: samples lie in occupied cells, follow the networks, and runs resume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import assert_same, state_of_run
from known_fields import Balls, scene_of
from torch.nn import functional as F

import run_nerf
from nerf.fields.paper import occupied_rays
from nerf.fields.occupancy import Occupancy
from nerf.fields.paper.occupied_rays import FollowedOccupancy, Paths, render_occupied
from nerf.fields.paper.model import PaperModel
from nerf.rendering import view_rays
from run_nerf_helpers import BEYOND, NO_DRAWS, Draws, Rays, Sampling, render_pass, stratified_z

CPU = torch.device('cpu')
BOX = np.array([[-1.0, -1.0, -1.0], [1.0, 1.0, 0.0]])


def two_slabs() -> Occupancy:
    """Cells of edge 0.5 along x from 0 to 4, of which those from 1 to 1.5 and from 3 to 4 are occupied."""
    cells = torch.zeros(8, 2, 2, dtype=torch.bool)
    cells[2] = cells[6] = cells[7] = True
    return Occupancy(torch.zeros(3, dtype=torch.float64), 0.5, cells)


def along_x(far: float, n_rays: int = 1) -> Rays:
    ahead = torch.tensor([[2.0, 0.0, 0.0]]).repeat(n_rays, 1)
    bound = torch.ones(n_rays, 1)
    return Rays(torch.tensor([[0.0, 0.5, 0.5]]).repeat(n_rays, 1), ahead, F.normalize(ahead, dim=-1), 0 * bound,
                far * bound)


def test_depth_along_a_path_leaves_out_what_is_empty():
    rays = along_x(9.0)
    paths = Paths.of(two_slabs().steps(rays), rays)
    assert (paths.n_rays, paths.rows.tolist()) == (1, 32 * [0])
    assert paths.ends.tolist() == 32 * [[0.75]]  # directions are twice as long as unit ones
    assert (paths.beyond == 0.0).all()
    s = torch.tensor([[0.0, 0.1, 0.24, 0.26, 0.5, 0.75]])
    np.testing.assert_allclose(paths.depths(s)[7], [0.5, 0.6, 0.74, 1.51, 1.75, 2.0], atol=1e-6)


@pytest.mark.parametrize(('far', 'beyond'), [(1.0, 0.0), (1.8, BEYOND), (2.5, 0.0)])
def test_a_path_reaches_to_infinity_where_the_far_bound_is_occupied(far, beyond):
    rays = along_x(far)
    assert Paths.of(two_slabs().steps(rays), rays).beyond[0] == np.float32(beyond)


class Recorded(Balls):
    """Balls that keep the points that they were asked for."""

    def __init__(self):
        super().__init__()
        self.points = []

    def raw(self, points):
        self.points.append(points.reshape(-1, 3))
        return super().raw(points)


def test_rays_in_occupied_cells_show_what_very_many_samples_everywhere_show():
    scene = scene_of(20, 24)
    rays = view_rays(type('M', (), {'device': CPU}), scene, scene.cameras)
    followed = FollowedOccupancy(scene.seen_box(), CPU)
    coarse, fine = Recorded(), Recorded()
    for step in range(1, 501):
        followed.after_step(step, fine.density, seed=step)
    paths = Paths.of(followed.occupied.steps(rays), rays)
    assert 10 < paths.n_rays < 150  # of 480
    some = rays.part(paths.rows)
    fine.points.clear()
    shown = render_occupied(some, paths, coarse, fine, Sampling(128, 128, white_bkgd=True), NO_DRAWS)
    expected = render_pass(Balls(), some, stratified_z(some.near, some.far, 4000), True)
    assert (shown.final.rgb - expected.rgb).abs().mean() < 0.02
    assert ((shown.final.acc > 0.5) == (expected.acc > 0.5)).float().mean() > 0.97
    for field, count in ((coarse, 64), (fine, 128)):  # half of the samples
        points = torch.cat(field.points)
        assert len(points) == count * len(paths.rows)
        inner = followed.occupied.holds(points) | followed.occupied.holds(points + 1e-4) | followed.occupied.holds(
            points - 1e-4)
        assert inner.float().mean() > 0.9  # a step may leave its cell by half its length
    everywhere = rays.part(torch.tensor([i for i in range(480) if i not in set(paths.rows.tolist())]))
    assert (render_pass(Balls(), everywhere, stratified_z(everywhere.near, everywhere.far, 1000), True).acc == 0).all()


def test_random_numbers_are_rows_of_the_steps_draws():
    rays = along_x(9.0, 32)
    paths = Paths.of(two_slabs().steps(rays), rays)
    sampling, fields = Sampling(8, 8), [Recorded(), Recorded()]
    draws = Draws(torch.full((32, 8), 0.5), torch.full((32, 8), 0.999), None, None)
    render_occupied(rays, paths, *fields, sampling, draws)
    first = fields[0].points[0].reshape(32, 4, 3)[..., 0] / 2.0
    edges = np.array([0.0, 0.125, 0.375, 0.625, 0.75])
    middles = 0.5 * (edges[1:] + edges[:-1])
    np.testing.assert_allclose(first[0], np.where(middles < 0.25, 0.5 + middles, 1.25 + middles), atol=1e-6)


# The running maximum


def only(where: torch.Tensor):
    """A density of 100 in one half of the box."""
    return lambda points: 100.0 * where(points)


def test_all_is_occupied_until_the_warm_up_ends_and_what_is_dense_after_it():
    followed = FollowedOccupancy(BOX, CPU)
    field = only(lambda points: points[:, 0] > 0.5)
    for step in range(11, 510):
        followed.after_step(step, field, seed=step)
        assert followed.occupied is None
    followed.after_step(510, field, seed=510)
    points = torch.rand(2000, 3) * 2.0 - 1.0
    points[:, 2] = -points[:, 2].abs()
    held = followed.occupied.holds(points)
    assert held[points[:, 0] > 0.5].all()
    assert not held[points[:, 0] < 0.5 - 2 * followed.voxel].any()


def test_what_gets_dense_is_occupied_soon_and_what_gets_empty_is_forgotten(monkeypatch):
    monkeypatch.setattr(occupied_rays, 'WARM_UP', 1)
    followed = FollowedOccupancy(BOX, CPU)
    left, right = (only(lambda points, sign=sign: sign * points[:, 0] > 0.1) for sign in (-1, 1))
    probe = torch.tensor([[-0.9, 0.0, -0.5], [0.9, 0.0, -0.5]])
    followed.after_step(1, left, 1)
    assert followed.occupied.holds(probe).tolist() == [True, False]
    for step in range(2, 2 + 16 * 8):  # each cell is asked once
        followed.after_step(step, right, step)
    assert followed.occupied.holds(probe).tolist() == [True, True]
    for step in range(130, 130 + 16 * 8 * 20):
        followed.after_step(step, right, step)
    assert followed.occupied.holds(probe).tolist() == [False, True]


def test_the_state_comes_back_and_a_broken_one_is_an_error():
    followed, other = FollowedOccupancy(BOX, CPU), FollowedOccupancy(BOX, CPU)
    for step in range(1, 600):
        followed.after_step(step, only(lambda points: points[:, 0] > 0.5), step)
    other.load_state_dict(followed.state_dict())
    assert torch.equal(other.depth, followed.depth)
    assert torch.equal(other.occupied.cells, followed.occupied.cells)
    assert other.begin == 500
    state = followed.state_dict()
    for broken in ({}, state | {'depth': torch.zeros(2, 2, 2)}, state | {'begin': -7}, state | {'depth': None},
                   state | {'begin': None}):
        with pytest.raises((ValueError, LookupError, TypeError)):
            FollowedOccupancy(BOX, CPU).load_state_dict(broken)


# In the model, and in a run


def test_a_ray_that_meets_nothing_shows_the_background_and_each_loss_has_a_gradient():
    scene = scene_of(20, 24)
    model = PaperModel(Balls(), Balls(), Sampling(16, 16, white_bkgd=True), 100)
    model.follow_occupancy(scene.seen_box())
    rays, target = view_rays(model, scene, scene.cameras), torch.zeros(480, 3)
    numbers = model.random_numbers(480, torch.Generator().manual_seed(0))
    assert not model.captured
    for step in range(1, 501):
        model.followed.after_step(step, model.density, step)
    shown = model._shown(rays, Draws(*numbers))
    hit = torch.zeros(480, dtype=torch.bool)
    hit[model.followed.occupied.steps(rays).ray.unique()] = True
    assert (shown.final.rgb[~hit] == 1.0).all()
    assert (shown.coarse.rgb[~hit] == 1.0).all()
    assert (shown.final.rgb[hit] < 0.9).any()
    losses = model(rays, numbers, target)
    assert losses['mse'].item() == pytest.approx(float((shown.final.rgb ** 2).mean()))
    empty = rays.part((~hit).nonzero()[:5, 0])
    few = model._shown(empty, Draws(*(part if part is None else part[:5] for part in numbers)))
    assert few.final.weights.shape == (5, 32)  # where no ray meets anything all samples are taken


OCCUPANCY = ['--occupancy', '--i_weights', '10', '--i_img', '1000', '--i_testset', '1000', '--i_video', '1000']


def test_a_resumed_run_with_occupancy_ends_like_one_that_never_stopped(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(occupied_rays, 'WARM_UP', 7)
    monkeypatch.setattr(occupied_rays, 'EVERY', 4)
    assert run_nerf.main(flags(*OCCUPANCY, '--N_iters', '30', expname='whole')) == 0
    assert run_nerf.main(flags(*OCCUPANCY, '--N_iters', '10', expname='parts')) == 0
    assert run_nerf.main(flags(*OCCUPANCY, '--N_iters', '30', expname='parts')) == 0
    whole, parts = (state_of_run(tmp_path / name, 30) for name in ('whole', 'parts'))
    assert whole['run_state']['occupancy']['decided']
    assert (whole['run_state']['occupancy']['depth'] > 0).sum() > 0
    assert_same(whole, parts)


def test_the_flag_can_be_turned_on_and_off_between_starts_and_changes_the_run(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(occupied_rays, 'WARM_UP', 3)
    assert run_nerf.main(flags(*OCCUPANCY[1:], '--N_iters', '10')) == 0
    assert 'occupancy' not in state_of_run(tmp_path / 'run', 10)['run_state']
    assert run_nerf.main(flags(*OCCUPANCY, '--N_iters', '20')) == 0
    assert state_of_run(tmp_path / 'run', 20)['run_state']['occupancy']['begin'] == 13
    assert 'changed since the checkpoint: ' in capsys.readouterr().out
    assert run_nerf.main(flags(*OCCUPANCY[1:], '--N_iters', '30')) == 0
    assert 'occupancy' not in state_of_run(tmp_path / 'run', 30)['run_state']


def test_a_network_that_starts_afresh_opens_all_cells_again(monkeypatch):
    scene = scene_of(20, 24)
    model = PaperModel(Balls(), Balls(), Sampling(16, 16, white_bkgd=True), 100)
    model.follow_occupancy(scene.seen_box())

    def revive(step, optimiser):
        model.guard.tries['fine'] += step == 600
        return []
    monkeypatch.setattr(model.guard, 'watch', revive)
    for step in range(1, 600):
        model.after_step(step, None)
    assert model.followed.occupied is not None
    model.after_step(600, None)
    assert model.followed.occupied is None
    assert model.followed.begin == 1099
