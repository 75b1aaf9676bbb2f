"""survey.py: known things are found whole, and what is far from them is not asked again."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nerf.fields.paper.survey import DensityGrid, Survey, survey

BOX = np.array([[-2.0, -2.0, -1.0], [2.0, 2.0, 1.0]])
CPU = torch.device('cpu')


class Counted:
    """A density that counts the points it was asked for."""

    def __init__(self, density):
        self.density, self.points = density, 0

    def __call__(self, points):
        self.points += len(points)
        return self.density(points)


def ball(points):
    return 50.0 * ((points - torch.tensor([0.5, 0.3, 0.0])).norm(dim=-1) < 0.4)


def rod(points):
    """A thread of thickness 0.04 along x = -1.9 to 1.9, and a knob at its one end."""
    thread = (points[:, 1].abs() < 0.02) & ((points[:, 2] - 0.2).abs() < 0.02) & (points[:, 0].abs() < 1.9)
    knob = (points - torch.tensor([-1.9, 0.0, 0.2])).norm(dim=-1) < 0.2
    return 100.0 * (thread | knob)


def test_a_ball_is_in_occupied_cells_with_its_density_and_most_of_the_box_is_not():
    field = Counted(ball)
    grid = survey(field, BOX, CPU)
    assert grid.voxel == pytest.approx(4.0 / 64 / 4)
    points = torch.rand(200_000, 3, dtype=torch.float64).float() * 4.0 - 2.0
    inside = ball(points) > 0
    assert grid.may_hold(points[inside]).all()
    assert not grid.may_hold(torch.tensor([[-1.9, -1.9, -0.9], [1.9, 1.9, 0.9]])).any()
    assert grid.may_hold(torch.tensor([[-2.1, 0.0, 0.0], [0.0, 0.0, 1.1]])).all()  # nothing is known there
    volume = grid.cells.sum().item() * grid.voxel ** 3
    assert 4 / 3 * math.pi * 0.4 ** 3 < volume < 4 / 3 * math.pi * 0.45 ** 3
    deep = points[(points - torch.tensor([0.5, 0.3, 0.0])).norm(dim=-1) < 0.37]
    density = grid.density.flatten()[grid.cell_of(grid.scaled(deep))]
    assert (density == 50.0).all()
    assert 2 * 64 * 64 * 32 < field.points < 4 * 64 * 64 * 32  # the first cells, and little more


def test_a_thread_that_the_first_points_miss_is_followed_from_its_knob_to_its_end():
    grid = survey(rod, BOX, CPU, Survey(first_cells=16))  # the points of the last cells alone are in the thread
    x = torch.linspace(-1.89, 1.89, 5000)
    assert grid.low[0] + grid.voxel * grid.cells.shape[0] > 1.89
    assert grid.may_hold(torch.stack([x, torch.zeros(5000), torch.full((5000,), 0.2)], -1)).all()
    assert grid.cells.sum() < 0.1 * np.prod([64, 64, 32])


@pytest.mark.parametrize(('density', 'found'), [(0.0, 0), (0.9e-3, 0), (1.1e-3, 4 * 4 * 2)])
def test_what_is_thinner_than_the_threshold_is_empty(density, found):
    numbers = Survey(first_cells=4, halvings=0)  # cells of edge 1, so that density is optical depth
    grid = survey(lambda points: torch.full_like(points[:, 0], density), BOX, CPU, numbers)
    assert (grid.cells.sum(), grid.least) == (found, 1e-3)


def test_a_haze_that_fills_the_box_is_not_asked_in_smaller_cells():
    field = Counted(lambda points: torch.full_like(points[:, 0], 0.5))
    grid = survey(field, BOX, CPU, Survey(most_asked=8 * 64 * 64 * 32 - 1))
    assert grid.cells.all()
    assert grid.cells.shape == (64, 64, 32)
    assert field.points == 2 * 64 * 64 * 32


def test_a_broken_field_is_not_an_empty_one():
    assert survey(lambda points: torch.full_like(points[:, 0], math.nan), BOX, CPU).cells.all()


def test_a_grid_is_the_same_after_its_way_through_arrays():
    grid = survey(ball, BOX, CPU)
    back = DensityGrid.of_arrays(grid.arrays(), CPU)
    assert torch.equal(back.cells, grid.cells)
    assert torch.equal(back.density[grid.cells], grid.density[grid.cells])
    assert torch.equal(back.low, grid.low)
    assert back.voxel == grid.voxel


@pytest.mark.parametrize('broken', [
    {'shape': np.int64([2 ** 20] * 3)}, {'shape': np.int64([0, 4, 4])}, {'shape': np.int64([4, 4])},
    {'cells': np.zeros(3, np.uint8)}, {'density': np.zeros(7, np.float16)}, {'low': np.zeros(2)},
    {'cells': np.zeros(3)}])
def test_broken_arrays_are_no_grid(broken):
    assert DensityGrid.of_arrays(survey(ball, BOX, CPU).arrays() | broken, CPU) is None
    assert DensityGrid.of_arrays(broken, CPU) is None
    assert DensityGrid.of_arrays(None, CPU) is None
