"""nerf/fields/grid/numba_backend.py: the memory that the kernels share with PyTorch."""

from __future__ import annotations

import pytest
import torch
from small_grids import a_field, even, fill, numbers, one_ray, scramble, shown, some_rays, take_step

from nerf.fields.grid.training import GridTraining
from nerf.fields.interface import Target

pytest.importorskip('numba')
DOWN = one_ray([0.3, 0.2, 3.0], [0.0, 0.0, -1.0])


def test_gradients_are_in_the_same_memory_in_all_steps_and_clear_after_each():
    field = fill(a_field(), even(0.8))
    training = GridTraining(field, 20)
    gradient = field.rows.grad
    for jitter in (0.2, 0.7):
        training.losses(DOWN, numbers(1, jitter), Target(torch.zeros(1, 3))).terms['mse'].backward()
        assert field.rows.grad is gradient
        assert gradient.any()
        training.row_adam.zero_grad()
        assert not gradient.any()
        take_step(training, DOWN, numbers(1, jitter), Target(torch.zeros(1, 3)))
        assert field.rows.grad is gradient
        assert not gradient.any()
        assert not field.backend.heaviest.any()


def test_gradients_of_several_marches_add_up():
    field = scramble(a_field())
    rays, found = [some_rays(50, seed) for seed in (0, 1)], []
    for some in ([rays[0]], [rays[1]], rays):
        field.take(field.grid, field.rows.detach())
        for part in some:
            field.march(part, torch.full((50,), 0.5)).features.sum().backward()
        found.append(field.backend.rows.grad)
    torch.testing.assert_close(found[0] + found[1], found[2])


def test_rows_that_pytorch_changes_are_shown_as_they_are_now():
    field = fill(a_field(), even(0.8))
    before = shown(field, DOWN).acc.item()
    with torch.no_grad():
        field.rows[:, 0] -= 100.0
    assert before > 0.7
    assert shown(field, DOWN).acc.item() == 0.0


def test_a_backward_pass_whose_samples_are_gone_is_an_error():
    field = fill(a_field(), even(0.8))
    marched = field.march(DOWN, torch.tensor([0.5]))
    shown(field, DOWN)
    with pytest.raises(RuntimeError, match='the samples of this march are gone'):
        marched.features.sum().backward()
    marched = field.march(DOWN, torch.tensor([0.5]))
    marched.features.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match='the samples of this march are gone'):
        marched.features.sum().backward()


def test_more_rays_at_once_than_there_is_memory_for_are_an_error():
    field = a_field(most_rays=100)
    field.march(some_rays(100))
    with pytest.raises(ValueError, match='101 rays at once; at most 100'):
        field.march(some_rays(101))
