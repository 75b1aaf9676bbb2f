"""Entries of a grid in checkpoints: the grid, its rows and the running means of Adam, packed; checked when read."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from nerf.fields.grid.backend import CHANNELS
from nerf.fields.grid.sparse_grid import MOST_VERTICES, SparseGrid
from nerf.files.packing import packed, unpacked
from nerf.optimiser import is_real

HALF = torch.finfo(torch.float16).max
SMALLEST, LARGEST = 1e-3, 1e7  # voxel in a checkpoint, by that of the first stage: steps through others round to 0


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return (a + b - 1) // b


def grid_state(grid: SparseGrid, rows: Tensor) -> dict:
    """A grid and its rows [M, 16]. Rows are not packed, so that saving is quick."""
    cells = np.packbits(grid.cells.cpu().numpy().reshape(-1))
    return {'rows': rows.detach().cpu(), 'cells': packed(torch.from_numpy(cells)), 'shape': list(grid.cells.shape),
            'low': grid.low, 'voxel': grid.voxel}


def slim_rows(rows: Tensor) -> dict[str, Tensor]:
    """Rows [M, 16] in half precision, packed."""
    return packed(rows.clamp(-HALF, HALF).half())


def read_grid(state: dict, voxel: float, device: torch.device) -> tuple[SparseGrid, Tensor]:
    """The grid and rows [M, 16] of a checkpoint or a slim file.

    Args:
        state: what `grid_state` gave, or the same with `slim_rows`.
        voxel: edge of a voxel of the first stage, in grid units.
        device: of the grid; rows are on the CPU.

    Raises:
        AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError: it is broken.
    """
    shape = [int(size) for size in state['shape']]
    if len(shape) != 3 or min(shape) < 2 or math.prod(shape) > MOST_VERTICES:
        raise ValueError(f'cells of shape {shape}')
    low, edge = state['low'].double().reshape(3), float(state['voxel'])
    if not ((low.abs() < LARGEST * voxel).all() and SMALLEST * voxel < edge < LARGEST * voxel):
        raise ValueError(f'voxels of {edge} from {low.tolist()}')
    cells, rows = _bits(state['cells'], shape), state['rows']
    n_cells = np.count_nonzero(cells)  # Tensor.sum makes int64 of each first
    n_rows = len(rows) if isinstance(rows, Tensor) else len(rows['low']) // CHANNELS
    if n_cells > n_rows:  # each has a lowest corner; a small file can claim to have a huge grid
        raise ValueError(f'{n_cells} cells but {n_rows} rows')
    grid = SparseGrid.of_cells(low, edge, cells.to(device))
    rows = unpacked(rows, (grid.n_rows, CHANNELS), torch.float16)
    if not is_real(rows) or not grid.n_rows:
        raise ValueError('rows that are no real numbers, or none')
    return grid, rows


def _bits(parts: dict | Tensor, shape: list[int]) -> Tensor:
    """The mask of a shape whose bits were packed; ValueError and others: it is broken."""
    count = math.prod(shape)
    flags = np.unpackbits(unpacked(parts, (ceil_div(count, 8),), torch.uint8).numpy())
    return torch.from_numpy(flags[:count].reshape(shape).view(bool))


# Adam


def adam_state(running: dict[str, Tensor]) -> dict:
    """Running means of the rows that a ray touched since they began; they are 0 in all others. After a skipped step
    some rows have a weight alone."""
    means, squares, strongest = (running[name] for name in ('exp_avg', 'exp_avg_sq', 'strongest'))
    touched = ((means != 0) | (squares != 0)).any(-1) | (strongest != 0)
    means, squares, strongest = (packed(part[touched].cpu()) for part in (means, squares, strongest))
    return {'means': means, 'squares': squares, 'strongest': strongest, 'touched': packed(touched.cpu()),
            'adam_steps': int(running['step'])}


def read_adam(state: dict, running: dict[str, Tensor]) -> None:
    """Fills in running means of M rows.

    Raises:
        AttributeError, LookupError, RuntimeError, TypeError, ValueError: the state is broken; nothing was changed.
    """
    strongest = running['strongest']
    touched = unpacked(state['touched'], strongest.shape, torch.uint8).to(strongest.device) != 0
    if not 0 <= state['adam_steps'] < 2 ** 31:
        raise ValueError(f"{state['adam_steps']} steps")
    values = {}
    for ours, theirs in (('exp_avg', 'means'), ('exp_avg_sq', 'squares'), ('strongest', 'strongest')):
        shape = (int(touched.sum()), *running[ours].shape[1:])
        values[ours] = unpacked(state[theirs], shape, torch.float32)
        if not is_real(values[ours]):
            raise ValueError(f'{theirs} that are no real numbers')
    running['step'].fill_(int(state['adam_steps']))
    for name, part in values.items():
        running[name].zero_()
        running[name][touched] = part.to(running[name])
