"""nerf/fields/grid/row_adam.py: which rows a step changes and how much, with the kernels and in plain PyTorch."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import assert_same
from small_grids import (
    CELLS, FORWARD, OPEN, N, a_field, even, fill, numbers, one_ray, schedule_of, scramble, shown, some_rays, take_step,
    trained,
)
from torch import nn

from nerf.fields.grid.backend import STRAIGHT, Rules, row_tensor
from nerf.fields.grid.row_adam import RowAdam
from nerf.fields.grid.sparse_grid import SparseGrid
from nerf.fields.grid.torch_backend import TorchBackend
from nerf.fields.grid.training import GridTraining
from nerf.fields.interface import Target
from nerf.files.packing import packed
from nerf.optimiser import Optimiser

BOTH = pytest.mark.parametrize('compiled', [True, False], ids=['kernels', 'plain'])
DOWN = one_ray([0.3, 0.2, 3.0], [0.0, 0.0, -1.0])
BLACK = Target(torch.zeros(1, 3))


def some_rows() -> TorchBackend:
    """The 27 rows of a cube of 2 x 2 x 2 cells, in plain PyTorch."""
    grid = SparseGrid.of_cells(torch.zeros(3, dtype=torch.float64), 1.0, torch.ones(3, 3, 3, dtype=torch.bool))
    rows = torch.randn(27, 16, generator=torch.Generator().manual_seed(0))
    return TorchBackend(grid, nn.Parameter(row_tensor(rows, (27, 16), torch.device('cpu'))),
                        Rules(1e-3, 1e-3, 10.0, -5.0, 128, STRAIGHT), 1000)


def test_rows_that_every_step_touches_move_as_by_pytorchs_adam():
    """Each channel has a rate of its own, as a group of it has there."""
    backend = some_rows()
    schedule = schedule_of(rate_density=3.0, rate_colour=2.0, rate_features=0.5, smooth_density=0.0, smooth_others=0.0,
                           beta_mean=0.8, beta_square=0.95, epsilon=1e-6)
    adam = RowAdam(backend, schedule)
    parts = [nn.Parameter(part.clone()) for part in backend.rows.detach().split([1, 3, 12], 1)]
    theirs = torch.optim.Adam([{'params': [part], 'lr': rate * 1e-2} for part, rate in zip(parts, (3.0, 2.0, 0.5))],
                              betas=(0.8, 0.95), eps=1e-6)
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        gradient = torch.randn(27, 16, generator=generator)
        backend.rows.grad = gradient.clone()
        adam.param_groups[0]['lr'] = torch.tensor(1e-2)
        assert adam.complete_gradients().isfinite()
        adam.step()
        for part, of_part in zip(parts, gradient.split([1, 3, 12], 1)):
            part.grad = of_part
        theirs.step()
        torch.testing.assert_close(backend.rows.detach(), torch.cat([part.detach() for part in parts], 1), rtol=1e-5,
                                   atol=1e-6)


@BOTH
def test_only_rows_that_rays_touch_change(compiled):
    field = fill(a_field(compiled), even(0.5))
    before, points, training = field.rows.detach().clone(), field.grid.vertex_points(), GridTraining(field, 20)
    take_step(training, one_ray([0.1, 0.1, 3.0], [0.0, 0.0, -1.0]), numbers(1), BLACK)
    beside = ((points[:, :2] - 0.125).abs() < 0.126).all(-1)  # the corners of cells from 0 to 0.25 in x and y
    running = training.row_adam.running
    assert torch.equal((field.rows != before).any(-1), beside)
    assert torch.equal((running['exp_avg_sq'] > 0).any(-1), beside)
    assert torch.equal(running['strongest'] > 0, beside)
    assert not running['exp_avg'][~beside].any()


@BOTH
@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_a_step_with_a_loss_that_is_not_finite_changes_nothing(compiled, bad):
    field = scramble(a_field(compiled))
    training = GridTraining(field, 20)
    trained(training, 2)
    kept = [field.rows.detach(), *(training.row_adam.running[name] for name in ('exp_avg', 'exp_avg_sq')),
            *field.network.parameters()]
    before = copy.deepcopy(kept)
    trained(training, 1, torch.full((200, 3), bad))
    assert_same(before, kept)
    assert math.isfinite(trained(training, 2)[-1])  # and nothing of its gradient is left
    assert field.rows.isfinite().all()


@BOTH
def test_a_gradient_of_rows_that_is_not_finite_skips_the_step_of_all_optimisers(compiled):
    """A loss that is finite, and whose gradient by a network that has none is too."""
    field = fill(a_field(compiled), even(0.8))
    training = GridTraining(field, 20)
    optimiser = Optimiser(training)
    before = copy.deepcopy([field.rows.detach(), *field.network.parameters()])
    optimiser.prepare(1, 1e-3)
    marched = field.march(DOWN, torch.tensor([0.5]))
    (marched.features.sum() * torch.tensor(3e38) * 3.0).backward()
    for parameter in field.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step({'mse': torch.tensor(1.0)})
    assert optimiser.check(1) == ['step 1: the gradient is not finite; the step was skipped']
    assert_same([field.rows.detach(), *field.network.parameters()], before)
    take_step(training, DOWN, numbers(1, 0.5), BLACK, optimiser=optimiser)
    assert optimiser.check(2) == []
    assert field.rows.isfinite().all()
    assert not torch.equal(field.rows, before[0])


@BOTH
def test_without_a_step_zero_grad_forgets_the_gradients(compiled):
    fields = [fill(a_field(compiled), even(0.8)) for _ in range(2)]
    trainings = [GridTraining(field, 20) for field in fields]
    trainings[1].losses(DOWN, numbers(1, 0.5), BLACK).terms['mse'].backward()
    trainings[1].row_adam.zero_grad()
    elsewhere = one_ray([-0.6, -0.7, 3.0], [0.0, 0.0, -1.0])
    for training in trainings:
        take_step(training, elsewhere, numbers(1, 0.5), BLACK)
    assert_same(fields[0].rows.detach(), fields[1].rows.detach())
    assert_same(*(training.row_adam.running for training in trainings))


@BOTH
@pytest.mark.parametrize('steps', [1, 2, 3])
def test_touched_rows_are_pulled_towards_their_neighbours_along_one_axis(compiled, steps):
    """As strongly as here, whatever the ray should show. Axes take turns: y, z, x."""
    field = fill(a_field(compiled, smooth_density=1e4, smooth_others=1e4), even(0.8))
    training = GridTraining(field, 20)
    training.row_adam.running['step'].fill_(steps - 1)
    axis, points = steps % 3, field.grid.vertex_points()
    with torch.no_grad():
        field.rows[:, 5] = points[:, axis] ** 2  # curved along this axis alone
    before = field.rows.detach().clone()
    take_step(training, DOWN, numbers(1, 0.5), BLACK)
    change = (field.rows.detach() - before)[:, 5]
    changed = change != 0
    assert changed.sum() >= 4
    assert (change[changed & (points[:, axis].abs() < 0.9)] > 0.0).all()  # up, in a valley


def test_each_channel_has_its_smoothness_and_closed_spaces_more_of_it():
    densities = []
    for space in ({}, {'space': OPEN}, {'space': FORWARD}):
        field = a_field(False, **space)
        smoothness = GridTraining(field, 20).row_adam.smoothness
        torch.testing.assert_close(smoothness, torch.tensor(
            [field.schedule.smooth_density] + 15 * [field.schedule.smooth_others]))
        densities.append(smoothness[0].item())
    assert densities[0] < min(densities[1:])


@pytest.mark.parametrize('factor', [1.0, math.inf])
def test_a_gradient_scaler_unscales_the_rows_and_skips_what_overflows(factor):
    """As in fp16 on CUDA, in plain PyTorch."""
    changes = []
    for dtype in (torch.float32, torch.float16):
        field = fill(a_field(False), even(0.8))
        field.dtype = dtype
        optimiser, training, before = None, GridTraining(field, 20), field.rows.detach().clone()
        optimiser = Optimiser(training)
        assert optimiser.scaler.is_enabled() == (dtype == torch.float16)
        field.dtype = torch.float32  # of the network's products
        optimiser.prepare(1, 1e-3)
        optimiser.backward(factor * training.losses(DOWN, numbers(1, 0.5), BLACK).terms['mse'])
        optimiser.step({'mse': torch.tensor(1.0)})
        changes.append(field.rows.detach() - before)
        assert training.row_adam.running['exp_avg'].isfinite().all()
    torch.testing.assert_close(*changes, rtol=1e-4, atol=1e-7)
    assert changes[0].any() == (factor == 1.0)


@BOTH
def test_another_grid_begins_with_no_running_means_and_takes_steps(compiled):
    field = scramble(a_field(compiled))
    training = GridTraining(field, 20)
    trained(training, 2)
    field.take(field.grid, field.rows.detach() + 0.1)
    training.row_adam.take(field.backend)
    assert [bool(part.any()) for part in training.row_adam.running.values()] == [False] * 4
    assert training.row_adam.param_groups[0]['params'] == [field.rows]
    before = shown(field, some_rays()).rgb
    trained(training, 1)
    assert not torch.equal(shown(field, some_rays()).rgb, before)
    assert CELLS + 1 == N


def test_running_means_are_those_of_the_touched_rows_alone():
    field = fill(a_field(False), even(0.5))
    training = GridTraining(field, 20)
    take_step(training, one_ray([0.1, 0.1, 3.0], [0.0, 0.0, -1.0]), numbers(1), Target(torch.zeros(1, 3)))
    running = training.row_adam.running
    touched = (running['exp_avg_sq'] > 0).any(-1)
    assert touched.sum() == 4 * N  # the corners of a column of cells
    assert (running['strongest'] > 0).sum() == 4 * N
    assert training.row_adam.packed_state()['means']['low'].shape == (16 * 4 * N, 3)
    running['strongest'][(~touched).nonzero()[0]] = 0.5  # as a step leaves it that is skipped
    other = GridTraining(a_field(False), 20).row_adam
    other.running['exp_avg'].fill_(7.0)
    other.load_packed_state(training.row_adam.packed_state())
    assert_same(other.running, running)


@pytest.mark.parametrize(('name', 'value'), [
    ('means', None), ('means', torch.zeros(4, 16)), ('means', torch.zeros(3, 16, dtype=torch.int64)),
    ('means', torch.zeros(N ** 3, 16)),
    ('squares', torch.zeros(N ** 3)), ('squares', 'text'), ('touched', None), ('touched', torch.ones(N ** 3 - 1)),
    ('touched', packed(torch.ones(N ** 3, dtype=torch.bool))), ('adam_steps', -1), ('adam_steps', 2 ** 40),
    ('adam_steps', math.nan), ('adam_steps', 'x')])
def test_broken_running_means_are_an_error_and_change_nothing(name, value):
    adam = GridTraining(a_field(False), 20).row_adam
    adam.running['exp_avg'][:3] = 1.0
    state, before = adam.packed_state(), {key: part.clone() for key, part in adam.running.items()}
    with pytest.raises((ValueError, LookupError, TypeError, AttributeError, RuntimeError)):
        adam.load_packed_state(state | {name: value})
    with pytest.raises(LookupError):
        adam.load_packed_state({key: part for key, part in state.items() if key != name})
    assert_same(adam.running, before)
