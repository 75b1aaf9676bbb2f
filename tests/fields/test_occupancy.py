"""nerf/fields/occupancy.py: which steps of rays are in occupied cells, against a plain loop."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from nerf.fields.occupancy import Occupancy, Steps
from run_nerf_helpers import Rays

LOW = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)


def rays_of(origins, directions, near: float = 0.0, far: float = 100.0) -> Rays:
    origins, directions = torch.as_tensor(origins), torch.as_tensor(directions)
    bound = torch.ones(len(origins), 1)
    return Rays(origins, directions, F.normalize(directions, dim=-1), near * bound, far * bound)


def looped(grid: Occupancy, rays: Rays) -> list[tuple[int, float, tuple[int, ...]]]:
    """(ray, depth, cell) of each step, by the definition: one cell long, from where the ray enters the box."""
    size, found = torch.tensor(grid.cells.shape), []
    for ray in range(len(rays.near)):
        origin, direction = (rays.origins[ray] - grid.low.float()) / grid.voxel, rays.directions[ray] / grid.voxel
        bounds = torch.stack([-origin / direction, (size - origin) / direction]).sort(0).values
        start = max(bounds[0].max().item(), rays.near[ray].item())
        end = min(bounds[1].min().item(), rays.far[ray].item())
        t = start + 0.5 / direction.norm().item()
        while t < end:
            cell = tuple((origin + t * direction).long().minimum(size - 1).tolist())
            if grid.cells[cell]:
                found.append((ray, t, cell))
            t += 1.0 / direction.norm().item()
    return found


@pytest.mark.parametrize('share', [0.003, 0.1, 1.0])
def test_steps_are_those_of_a_plain_loop(share):
    generator = torch.Generator().manual_seed(0)
    grid = Occupancy(LOW, 0.25, torch.rand(21, 34, 9, generator=generator) < share)
    directions = torch.randn(200, 3, generator=generator)
    towards = LOW.float() + 0.25 * torch.tensor([21.0, 34.0, 9.0]) * torch.rand(200, 3, generator=generator)
    rays = rays_of(towards - 3.0 * directions, directions, near=1.5, far=4.0)
    steps, expected = grid.steps(rays), looped(grid, rays)
    assert len(expected) > 5
    assert steps.ray.tolist() == [ray for ray, _, _ in expected]
    torch.testing.assert_close(steps.t, torch.tensor([t for _, t, _ in expected]), atol=1e-4, rtol=0)
    assert steps.cell.tolist() == [(x * 34 + y) * 9 + z for _, _, (x, y, z) in expected]
    torch.testing.assert_close(steps.length, 0.25 / directions.norm(dim=-1))


def test_rays_that_miss_the_box_or_end_before_it_have_no_steps():
    grid = Occupancy(LOW, 0.25, torch.ones(4, 4, 4, dtype=torch.bool))
    origins = [[-5.0, 1.0, 2.5], [-5.0, 9.0, 2.5], [-5.0, 1.0, 2.5], [9.0, 1.0, 2.5]]
    rays = rays_of(origins, [[1.0, 0.0, 0.0]] * 4)
    rays.far[2] = 3.9
    steps = grid.steps(rays)
    assert steps.count.tolist() == [4, 0, 0, 0]
    assert steps.t.tolist() == pytest.approx([4.125, 4.375, 4.625, 4.875])
    nothing = grid.steps(rays.part(slice(1, 4)))
    assert nothing.count.tolist() == [0, 0, 0]


def test_points_in_occupied_cells_are_held():
    cells = torch.zeros(3, 4, 5, dtype=torch.bool)
    cells[1, 2, 3] = cells[2, 3, 4] = True
    grid = Occupancy(LOW, 0.5, cells)
    places = torch.tensor([[1.01, 2.01, 3.01], [1.99, 2.99, 3.99], [2.01, 2.5, 3.5], [2.99, 3.99, 4.99],
                           [0.5, 0.5, 0.5], [-0.1, 0.5, 0.5], [0.5, 0.5, 5.1]])
    points = LOW.float() + 0.5 * places
    assert grid.holds(points).tolist() == [True, True, False, True, False, False, False]
    torch.testing.assert_close(grid.centres(), LOW.float() + 0.5 * torch.tensor([[1.5, 2.5, 3.5], [2.5, 3.5, 4.5]]))


def test_sums_along_rays_by_hand():
    steps = Steps(torch.tensor([0, 0, 2, 2, 2]), torch.zeros(5), torch.ones(4), torch.zeros(5, dtype=torch.long))
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert steps.count.tolist() == [2, 0, 3, 0]
    assert steps.first.tolist() == [0, 2, 2, 5]
    assert steps.total(values).tolist() == [3.0, 0.0, 12.0, 0.0]
    assert steps.sum_before(values).tolist() == [0.0, 1.0, 0.0, 3.0, 7.0]
    assert steps.shifted(values, 1).tolist() == [0.0, 1.0, 0.0, 3.0, 4.0]
    assert steps.shifted(values, -1).tolist() == [2.0, 0.0, 4.0, 5.0, 0.0]
