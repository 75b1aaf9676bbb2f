"""nerf/fields/grid/checkpoint.py: a grid, its rows and running means as entries of a checkpoint, whole and broken."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import assert_same
from small_grids import N, a_field, even, fill, numbers, one_ray, scramble, take_step

from nerf.fields.grid.checkpoint import adam_state, ceil_div, grid_state, read_adam, read_grid, slim_rows
from nerf.fields.grid.training import GridTraining
from nerf.fields.interface import Target
from nerf.files.packing import packed

BYTES = ceil_div(N ** 3, 8)
CPU = torch.device('cpu')


def test_divisions_are_rounded_up():
    assert [ceil_div(a, 8) for a in (0, 1, 8, 9, 729)] == [0, 1, 1, 2, 92]


def test_a_grid_and_its_rows_are_read_as_they_were():
    field = scramble(a_field(False))
    grid, rows = read_grid(grid_state(field.grid, field.rows), 0.25, CPU)
    assert torch.equal(grid.cells, field.grid.cells)
    assert torch.equal(grid.index, field.grid.index)
    assert (grid.low.tolist(), grid.voxel) == (field.grid.low.tolist(), field.grid.voxel)
    assert torch.equal(rows, field.rows)


def test_rows_in_half_precision_or_bfloat16_and_cells_that_were_not_packed_are_taken():
    field = scramble(a_field(False))
    state = grid_state(field.grid, field.rows)
    cells = torch.from_numpy(np.packbits(field.grid.cells.numpy().reshape(-1)))
    grid, rows = read_grid(state | {'rows': state['rows'].bfloat16(), 'cells': cells}, 0.25, CPU)
    assert torch.equal(rows, field.rows.bfloat16())
    assert torch.equal(grid.cells, field.grid.cells)
    assert torch.equal(read_grid(state | {'rows': slim_rows(state['rows'])}, 0.25, CPU)[1], field.rows.half())


@pytest.mark.parametrize(('name', 'value'), [
    ('rows', None), ('rows', torch.zeros(N ** 3, 15)), ('rows', torch.zeros(N ** 3 + 1, 16)),
    ('rows', torch.zeros(N ** 3, 16, dtype=torch.int64)), ('rows', torch.zeros(N ** 3, 16).to_sparse()),
    ('rows', torch.zeros(N ** 3, 16) + 0j), ('rows', {}), ('rows', packed(torch.zeros(N ** 3, 16))),
    ('rows', packed(torch.zeros(N ** 3 - 1, 16).half())), ('rows', {'high': 3, 'low': 4}), ('cells', {}),
    ('cells', packed(torch.zeros(9, dtype=torch.uint8))), ('cells', None), ('cells', torch.zeros(0, dtype=torch.uint8)),
    ('cells', torch.zeros(BYTES)), ('cells', torch.zeros(BYTES, dtype=torch.uint8)),
    ('cells', torch.full((BYTES,), 3, dtype=torch.uint8)), ('shape', None), ('shape', [N, N]),
    ('shape', [N, N, 0]), ('shape', [N, N, -N]), ('shape', [1, 1, N ** 3]), ('shape', [2 ** 40] * 3),
    ('shape', [math.nan] * 3), ('shape', ['x'] * 3), ('shape', [10 ** 400, 2, 2]), ('low', None),
    ('low', torch.zeros(2)), ('low', torch.full((3,), math.nan)), ('low', torch.full((3,), math.inf)),
    ('low', torch.full((3,), 1e300, dtype=torch.float64)), ('low', [0.0, 0.0, 0.0]), ('voxel', None), ('voxel', 0.0),
    ('voxel', -1.0), ('voxel', math.nan), ('voxel', math.inf), ('voxel', 1e-30), ('voxel', 1e-7), ('voxel', 1e300)])
def test_a_broken_grid_is_an_error(name, value):
    field = a_field(False)
    state = grid_state(field.grid, field.rows)
    for change in ({**state, name: value}, {key: part for key, part in state.items() if key != name}):
        with pytest.raises((AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError)):
            read_grid(change, 0.25, CPU)


def test_running_means_are_those_of_the_touched_rows_alone():
    field = fill(a_field(False), even(0.5))
    training = GridTraining(field, 20)
    take_step(training, one_ray([0.1, 0.1, 3.0], [0.0, 0.0, -1.0]), numbers(1), Target(torch.zeros(1, 3)))
    running = training.row_adam.running
    touched = (running['exp_avg_sq'] > 0).any(-1)
    assert touched.sum() == 4 * N  # the corners of a column of cells
    assert (running['strongest'] > 0).sum() == 4 * N
    assert adam_state(running)['means']['low'].shape == (16 * 4 * N, 3)
    running['strongest'][(~touched).nonzero()[0]] = 0.5  # as a step leaves it that is skipped
    other = GridTraining(a_field(False), 20).row_adam.running
    other['exp_avg'].fill_(7.0)
    read_adam(adam_state(running), other)
    assert_same(other, running)


@pytest.mark.parametrize(('name', 'value'), [
    ('means', None), ('means', torch.zeros(4, 16)), ('means', torch.zeros(3, 16, dtype=torch.int64)),
    ('means', torch.zeros(N ** 3, 16)),
    ('squares', torch.zeros(N ** 3)), ('squares', 'text'), ('touched', None), ('touched', torch.ones(N ** 3 - 1)),
    ('touched', packed(torch.ones(N ** 3, dtype=torch.bool))), ('adam_steps', -1), ('adam_steps', 2 ** 40),
    ('adam_steps', math.nan), ('adam_steps', 'x')])
def test_broken_running_means_are_an_error_and_change_nothing(name, value):
    running = GridTraining(a_field(False), 20).row_adam.running
    running['exp_avg'][:3] = 1.0
    state, before = adam_state(running), {key: part.clone() for key, part in running.items()}
    with pytest.raises((ValueError, LookupError, TypeError, AttributeError, RuntimeError)):
        read_adam(state | {name: value}, running)
    with pytest.raises(LookupError):
        read_adam({key: part for key, part in state.items() if key != name}, running)
    assert_same(running, before)
