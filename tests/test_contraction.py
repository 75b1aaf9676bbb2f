"""nerf/contraction.py: where points go, and how lengths and volumes shrink, by hand and by autograd."""

from __future__ import annotations

import math

import pytest
import torch

from nerf.contraction import Contraction, contracted, even_depths, shrinkage


def some_points(n: int = 200, seed: int = 0) -> torch.Tensor:
    """[n, 3] float64, some of them in the unit ball and some far away."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator, dtype=torch.float64), dim=-1)
    return directions * torch.logspace(-1, 2, n, dtype=torch.float64)[:, None]


def jacobians(x: torch.Tensor) -> torch.Tensor:
    """[n, 3, 3] of `contracted` at points x [n, 3]."""
    return torch.stack([torch.autograd.functional.jacobian(contracted, point) for point in x])


@pytest.mark.parametrize(('point', 'expected'), [
    ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)), ((0.3, -0.4, 0.5), (0.3, -0.4, 0.5)), ((0.0, 1.0, 0.0), (0.0, 1.0, 0.0)),
    ((0.0, 0.0, -4.0), (0.0, 0.0, -1.75)), ((3.0, 4.0, 0.0), (1.08, 1.44, 0.0)), ((1e6, 0.0, 0.0), (2.0, 0.0, 0.0))])
def test_points_go_where_equation_10_says(point, expected):
    torch.testing.assert_close(contracted(torch.tensor(point)), torch.tensor(expected), rtol=0, atol=2e-6)
    moved = 2.5 * torch.tensor(point) + torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(Contraction((1.0, 2.0, 3.0), 2.5)(moved), torch.tensor(expected), rtol=0, atol=2e-6)


def test_a_step_shrinks_as_the_jacobian_says():
    x, directions = some_points(), 3.0 * some_points(seed=1).flip(0)
    expected = (jacobians(x) @ directions[..., None])[..., 0].norm(dim=-1) / directions.norm(dim=-1)
    torch.testing.assert_close(shrinkage(x, directions), expected)
    assert (expected[x.norm(dim=-1) < 1] == 1.0).all()
    assert expected.min() < 0.01
    torch.testing.assert_close(shrinkage(x, x)[-1], torch.tensor(1e-4, dtype=torch.float64))  # away from the centre
    assert shrinkage(torch.zeros(3), torch.ones(3)) == 1.0


def test_even_depths_are_a_step_apart_in_contracted_space():
    generator = torch.Generator().manual_seed(0)
    origins, directions = (torch.randn(300, 3, generator=generator) for _ in range(2))
    near = 0.2 * torch.rand(300, generator=generator)
    far, jitter, step = 400.0 / directions.norm(dim=-1), torch.rand(300, 1, generator=generator), math.tau / 1000
    t = even_depths(origins, directions, near, far, step * (jitter + torch.arange(1000)))
    points = contracted(origins[:, None] + t[..., None] * directions[:, None])
    steps, beyond = points.diff(dim=1).norm(dim=-1) / step, t == far[:, None]
    first = (points[:, 0] - contracted(origins + near[:, None] * directions)).norm(dim=-1) / step
    torch.testing.assert_close(first, jitter[:, 0], rtol=0, atol=0.01)
    torch.testing.assert_close(steps[~beyond[:, 1:]], torch.ones(int((~beyond[:, 1:]).sum())), rtol=0, atol=0.01)
    assert beyond[:, -1].all()
    ends = contracted(origins + far[:, None] * directions)
    last = torch.stack([row[~out][-1] for row, out in zip(points, beyond)])
    assert ((ends - last).norm(dim=-1) < 1.01 * step).all()
    inside = torch.tensor([[0.1, 0.0, 0.0]]), torch.tensor([[0.0, 2.0, 0.0]])  # nothing is contracted
    t = even_depths(*inside, torch.tensor([0.05]), torch.tensor([0.3]), torch.tensor([[0.1, 0.2, 0.4, 0.6]]))
    torch.testing.assert_close(t, torch.tensor([[0.1, 0.15, 0.25, 0.3]]))


def test_the_scale_is_the_cube_root_of_the_determinant_per_scene_unit():
    x, contraction = some_points(), Contraction((0.5, -1.0, 2.0), 4.0)
    expected = torch.linalg.det(jacobians(x)) ** (1 / 3) / 4.0
    points = 4.0 * x + torch.tensor(contraction.centre, dtype=torch.float64)
    torch.testing.assert_close(contraction.scale(points), expected)


@pytest.mark.parametrize('numbers', [[], [1.0, 2.0, 3.0], [0.0] * 4, [0.0, math.nan, 0.0, 1.0], ['x'] * 4, 3, None,
                                     [0.0, 0.0, 0.0, math.inf], [0.0, 0.0, 0.0, -1.0], [0.0] * 4 + [1.0]])
def test_numbers_that_are_no_contraction_are_an_error(numbers):
    with pytest.raises((TypeError, ValueError)):
        Contraction.of_numbers(numbers)


def test_numbers_of_a_contraction_give_it_back():
    contraction = Contraction((0.1, 0.2, -3.0), 1.7)
    assert Contraction.of_numbers(contraction.numbers()) == contraction
