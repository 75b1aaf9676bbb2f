"""Survey of a trained field: a grid of cells with density, found coarse to fine."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nerf.fields.grid.sparse_grid import dilated
from nerf.fields.occupancy import Occupancy

Density = Callable[[Tensor], Tensor]  # points [N, 3] to densities [N] in 1/scene unit

MOST_CELLS = 2 ** 28  # of a grid in a file, occupied or not: a broken file cannot fill the memory
AT_ONCE = 2 ** 12  # cells in one request for density
NEIGHBOURS = [offset for offset in itertools.product((-1, 0, 1), repeat=3) if any(offset)]


@dataclass(frozen=True)
class Survey:
    """Numbers of a survey. They were tuned on the toy chair, lego and fern, on pictures and on time."""
    first_cells: int = 64  # cells along the longest side of the box, all asked
    halvings: int = 2  # number of cuts of cells into eight
    most_asked: int = 2 ** 20  # cells; a cut into more cells, as in haze all over the box, is left out
    thin: float = 1e-3  # optical depth of a cell; a thinner cell is empty
    asked: tuple[float, ...] = (0.25, 0.75)  # places of the asked points on a cell's diagonal


SURVEY = Survey()


@dataclass(frozen=True)
class DensityGrid(Occupancy):
    """Occupied cells, and their density."""
    box: Tensor  # [2, 3] float64 corners of the surveyed box, on the CPU; the cells are a part of it
    density: Tensor  # [X, Y, Z] float16, mean density of a cell in 1/scene unit; 0 in cells that were not asked
    thin: float = SURVEY.thin  # optical depth of a cell; a thinner cell is empty

    @property
    def least(self) -> float:
        """Density in 1/scene unit below which cells are empty."""
        return self.thin / self.voxel

    def may_hold(self, points: Tensor) -> Tensor:
        """Whether points [N, 3] can have density, [N] bool: points in occupied cells, and outside of the box."""
        low, high = self.box.to(points)
        return self.holds(points) | ((points < low) | (points > high)).any(-1)

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of the grid for a file."""
        cells = self.cells.cpu().numpy()
        return {'low': self.low.numpy(), 'box': self.box.numpy(), 'voxel': np.float64(self.voxel),
                'shape': np.int64(cells.shape), 'cells': np.packbits(cells.reshape(-1)),
                'density': self.density.cpu().numpy()[cells]}

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray] | None, device: torch.device) -> DensityGrid | None:
        """Grid from the arrays of a file; None if the arrays are missing or broken."""
        if arrays is None:
            return None
        try:
            shape = arrays['shape'].tolist()
            if len(shape) != 3 or not 0 < np.prod(shape, dtype=float) <= MOST_CELLS:
                return None
            cells = np.unpackbits(arrays['cells'], count=int(np.prod(shape))).reshape(shape).astype(bool)
            density = np.zeros(shape, np.float16)
            density[cells] = arrays['density']
            low, box = torch.from_numpy(arrays['low'].reshape(3)), torch.from_numpy(arrays['box'].reshape(2, 3))
            voxel = float(arrays['voxel'])
        except (LookupError, TypeError, ValueError):
            return None
        return cls(low, voxel, torch.from_numpy(cells).to(device), box, torch.from_numpy(density).to(device))


@torch.inference_mode()
def survey(density: Density, box: np.ndarray, device: torch.device, numbers: Survey = SURVEY) -> DensityGrid:
    """Survey of a field's density in a box, from corner to corner [2, 3] in ray coordinates.

    All first cells are asked. Occupied cells and their neighbours are then cut into eight and asked again, and so on.
    Each time, density is followed from cell to cell until all neighbours are empty; at last the neighbours of occupied
    cells count as occupied too. An object is missed only if it has no asked point of the first cells and touches no
    found cell."""
    low, longest = torch.from_numpy(box[0].astype(np.float64)), float((box[1] - box[0]).max())
    voxel = longest / numbers.first_cells
    shape = [max(int(np.ceil(side / voxel - 1e-6)), 1) for side in box[1] - box[0]]
    asked = torch.ones(shape, dtype=torch.bool, device=device)
    for halving in itertools.count():
        occupied, means = _follow(density, low, voxel, asked, numbers)
        kept = dilated(occupied)
        if halving == numbers.halvings or 8 * kept.sum() > numbers.most_asked:
            break
        voxel = 0.5 * voxel
        asked = kept.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    places = kept.nonzero() if kept.any() else torch.zeros(1, 3, dtype=torch.int64)  # no cell: the first one
    first, last = places.amin(0).cpu(), places.amax(0).cpu()
    part = tuple(slice(start, end + 1) for start, end in zip(first.tolist(), last.tolist()))
    return DensityGrid(low + first * voxel, voxel, kept[part].contiguous(), torch.from_numpy(box).double(),
                       means[part].contiguous(), numbers.thin)


def _follow(density: Density, low: Tensor, voxel: float, asked: Tensor, numbers: Survey) -> tuple[Tensor, Tensor]:
    """Occupied cells [X, Y, Z] bool, and mean densities [X, Y, Z] float16 of asked cells: those of a mask, then the
    neighbours of occupied cells, until no new cell is occupied."""
    shape, strides, offsets = (torch.tensor(each, device=asked.device) for each in (
        asked.shape, asked.stride(), NEIGHBOURS))
    occupied, means = torch.zeros_like(asked), torch.zeros(asked.shape, dtype=torch.float16, device=asked.device)
    asked, todo = asked.clone(memory_format=torch.contiguous_format), asked.nonzero()
    while len(todo):
        most, mean = _ask(density, low, voxel, todo, numbers.asked)
        found = ~(most * voxel <= numbers.thin)  # NaN counts as occupied: a broken field does not look empty
        means[tuple(todo.t())] = mean.nan_to_num(0.0).clamp(max=6e4).half()
        todo = todo[found]
        occupied[tuple(todo.t())] = True
        around = (todo[:, None] + offsets).flatten(0, 1)
        around = around[((around >= 0) & (around < shape)).all(-1)]
        index = (around * strides).sum(-1)
        index = index[~asked.view(-1)[index]].unique()
        asked.view(-1)[index] = True
        todo = torch.stack(torch.unravel_index(index, asked.shape), -1)
    return occupied, means


def _ask(density: Density, low: Tensor, voxel: float, cells: Tensor, asked: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Greatest and mean density [K] at some places on the diagonals of cells [K, 3]."""
    places, low = torch.tensor(asked, device=cells.device)[:, None].expand(-1, 3), low.to(cells.device)
    points = (((part[:, None] + places) * voxel + low).float() for part in cells.split(AT_ONCE))
    found = torch.cat([density(part.flatten(0, 1)).reshape(len(part), -1) for part in points])
    return found.amax(1), found.mean(1)
