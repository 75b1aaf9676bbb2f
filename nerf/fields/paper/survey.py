"""Where a trained field has density, and how much: a grid that is made from the field, coarse to fine."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nerf.fields.occupancy import Occupancy
from nerf.fields.grid.sparse_grid import dilated

Density = Callable[[Tensor], Tensor]  # points [N, 3] to densities [N] in 1/scene unit

FIRST_CELLS = 64  # along the longest side of the box, all of which are asked
HALVINGS = 2  # of the cells, after it
MOST_ASKED = 2 ** 20  # cells; they are not halved where there would be more, as in a haze that fills the box
THIN = 1e-3  # optical depth of a cell; thinner ones are empty
ASKED = (0.25, 0.75)  # places on a cell's diagonal at which the field is asked
MOST_CELLS = 2 ** 28  # of a grid in a file, occupied or not
AT_ONCE = 2 ** 12  # cells that are asked at once
NEIGHBOURS = [offset for offset in itertools.product((-1, 0, 1), repeat=3) if any(offset)]


SETTINGS = f'{FIRST_CELLS} {HALVINGS} {MOST_ASKED} {THIN} {ASKED}'  # a file made with others does not fit


@dataclass(frozen=True)
class DensityGrid(Occupancy):
    """Occupied cells and the density in them."""

    box: Tensor  # [2, 3] float64, what was surveyed, on the CPU; the cells are a part of it
    density: Tensor  # [X, Y, Z] float16, mean density of a cell in 1/scene unit; 0 where it was not asked

    @property
    def least(self) -> float:
        """Density in 1/scene unit below which cells count as empty."""
        return THIN / self.voxel

    def may_hold(self, points: Tensor) -> Tensor:
        """[N] bool: points [N, 3] in occupied cells, or outside the box, where nothing is known."""
        low, high = self.box.to(points)
        return self.holds(points) | ((points < low) | (points > high)).any(-1)

    def arrays(self) -> dict[str, np.ndarray]:
        """The grid as arrays for a file."""
        cells = self.cells.cpu().numpy()
        return {'low': self.low.numpy(), 'box': self.box.numpy(), 'voxel': np.float64(self.voxel),
                'shape': np.int64(cells.shape), 'cells': np.packbits(cells.reshape(-1)),
                'density': self.density.cpu().numpy()[cells]}

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray] | None, device: torch.device) -> DensityGrid | None:
        """The grid of what `arrays` gave; None of None, or where they are broken."""
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
def survey(density: Density, box: np.ndarray, device: torch.device) -> DensityGrid:
    """Finds where a field has density in a box [2, 3].

    The first cells are asked all. Those that are occupied, and their neighbours, are then cut into eight, which are
    asked, and so on. What is found is followed from cell to cell until its neighbours are empty, and at last the
    neighbours of occupied cells count as occupied too. A thing is lost only where no point of the first grid is in it
    and it touches nothing that was found.
    """
    low, voxel = torch.from_numpy(box[0].astype(np.float64)), float((box[1] - box[0]).max()) / FIRST_CELLS
    shape = [max(int(np.ceil(side / voxel - 1e-6)), 1) for side in box[1] - box[0]]
    asked = torch.ones(shape, dtype=torch.bool, device=device)
    for halving in itertools.count():
        occupied, means = _follow(density, low, voxel, asked)
        kept = dilated(occupied)
        if halving == HALVINGS or 8 * kept.sum() > MOST_ASKED:
            break
        voxel = 0.5 * voxel
        asked = kept.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    part, first = _around_what_is_set(kept)
    return DensityGrid(low + first * voxel, voxel, kept[part].contiguous(), torch.from_numpy(box).double(),
                       means[part].contiguous())


def _around_what_is_set(cells: Tensor) -> tuple[tuple[slice, ...], Tensor]:
    """The part of a mask [X, Y, Z] that holds all that is set, or else its first cell; and where [3] it begins."""
    sides = [cells.any(2).any(1), cells.any(2).any(0), cells.any(1).any(0)]
    ends = [(int(side.nonzero()[0]), int(side.nonzero()[-1]) + 1) if side.any() else (0, 1) for side in sides]
    return tuple(slice(*end) for end in ends), torch.tensor([start for start, _ in ends])


def _follow(density: Density, low: Tensor, voxel: float, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Asks the cells of a mask [X, Y, Z], then again and again the neighbours of those that turn out to be occupied.

    Returns:
        occupied [X, Y, Z] bool, and the mean densities [X, Y, Z] float16 of the cells that were asked.
    """
    shape = torch.tensor(asked.shape, device=asked.device)
    offsets = torch.tensor(NEIGHBOURS, device=asked.device)
    strides = torch.tensor(asked.stride(), device=asked.device)
    occupied, means = torch.zeros_like(asked), torch.zeros(asked.shape, dtype=torch.float16, device=asked.device)
    asked, todo = asked.clone(memory_format=torch.contiguous_format), asked.nonzero()
    while len(todo):
        most, mean = _ask(density, low, voxel, todo)
        found = ~(most * voxel <= THIN)  # NaN is to be seen too
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


def _ask(density: Density, low: Tensor, voxel: float, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Greatest and mean density [K] at some points of cells [K, 3]."""
    places = torch.tensor(ASKED, device=cells.device)[:, None].expand(-1, 3)
    found = []
    for part in cells.split(AT_ONCE):
        points = (part[:, None] + places) * voxel + low.to(cells.device)
        found.append(density(points.float().reshape(-1, 3)).reshape(len(part), -1))
    found = torch.cat(found)
    return found.amax(1), found.mean(1)
