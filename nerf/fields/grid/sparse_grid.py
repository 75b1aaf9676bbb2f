"""Sparse grid: a box of cubic cells of which some are kept, with a row of values for each vertex of a kept cell."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nerf.fields.occupancy import Occupancy
from nerf.runtime.devices import constant
from nerf.runtime.errors import UserError

MOST_VERTICES = 2 ** 28  # vertices of a box, with rows or without: each needs 5 bytes


@dataclass(frozen=True)
class SparseGrid(Occupancy):
    """Grid of X x Y x Z vertices, M of them with rows, and of the cells between them. Kept cells are the occupied ones;
    no cell begins at the last vertex along an axis. Rows are in the order of their vertices' flat indices."""
    index: Tensor  # [X, Y, Z] int32, row of each vertex; -1: it has none

    @classmethod
    def of_cells(cls, low: Tensor, voxel: float, cells: Tensor) -> SparseGrid:
        """Grid whose kept cells are the cells of a mask [X, Y, Z]."""
        cells = cells.clone()
        for axis in range(3):
            cells.narrow(axis, cells.shape[axis] - 1, 1).zero_()
        vertices = vertices_of(cells)
        index = torch.full(cells.shape, -1, dtype=torch.int32, device=cells.device)
        index[vertices] = torch.arange(int(vertices.sum()), dtype=torch.int32, device=cells.device)
        return cls(low, voxel, cells, index)

    @classmethod
    def filled(cls, box: np.ndarray, voxel: float, device: torch.device) -> SparseGrid:
        """Grid of all cells of a box [2, 3]."""
        shape = [int(np.ceil(side / voxel - 1e-6)) + 1 for side in box[1] - box[0]]
        return cls.of_cells(torch.from_numpy(box[0].astype(np.float64)), voxel,
                            torch.ones(shape, dtype=torch.bool, device=device))

    @functools.cached_property
    def vertices(self) -> Tensor:
        """Flat indices [M] int64 of the vertices with rows."""
        return (self.index.view(-1) >= 0).nonzero()[:, 0]

    @property
    def n_rows(self) -> int:
        return int(self.index.max()) + 1

    def keeping(self, cells: Tensor) -> tuple[SparseGrid, Tensor]:
        """Grid of the kept cells in a mask [X, Y, Z], and the rows [M'] of this grid that it keeps."""
        grid = SparseGrid.of_cells(self.low, self.voxel, cells & self.cells)
        return grid, self.index[grid.index >= 0].long()

    def refined(self, voxel: float, most: int = MOST_VERTICES) -> SparseGrid:
        """Grid of smaller voxels over the same kept cells, in the smallest box. UserError: the box would have more than
        `most` vertices."""
        kept = self.cells.nonzero()
        first, end = kept.amin(0).cpu(), kept.amax(0).cpu() + 1
        low = self.low + first * self.voxel
        shape = (torch.ceil((end - first) * self.voxel / voxel - 1e-6).long() + 1).tolist()
        if np.prod(shape, dtype=float) > most:
            raise UserError(f'a grid of {"x".join(map(str, shape))} vertices is too large; the scene has no bounds '
                            'that a grid could fill')
        places = [((low[axis] - self.low[axis] + (torch.arange(size) + 0.5) * voxel) / self.voxel).long().clamp(
            max=self.cells.shape[axis] - 1).to(self.cells.device) for axis, size in enumerate(shape)]
        cells = self.cells[places[0]][:, places[1]][:, :, places[2]]
        return SparseGrid.of_cells(low, voxel, cells)

    def vertex_points(self) -> Tensor:
        """Points [M, 3] float32 of the vertices with rows."""
        return ((self.index >= 0).nonzero() * self.voxel + self.low.to(self.index.device)).float()


def vertices_of(cells: Tensor) -> Tensor:
    """[X, Y, Z] bool: corners of the cells [X, Y, Z] of a mask, none of them at the last vertex along an axis."""
    return _spread(cells, 1)


def cells_around(vertices: Tensor) -> Tensor:
    """[X, Y, Z] bool: cells with a corner in a mask of vertices [X, Y, Z]."""
    return _spread(vertices, -1)


def dilated(cells: Tensor) -> Tensor:
    """Cells of a mask [X, Y, Z] and their neighbours, diagonal ones too."""
    return _spread(_spread(cells, 1), -1)


def _spread(mask: Tensor, by: int) -> Tensor:
    """A mask [X, Y, Z] and itself moved by one along any of the axes."""
    for axis in range(3):
        moved = torch.zeros_like(mask)
        size = mask.shape[axis] - 1
        moved.narrow(axis, max(by, 0), size).copy_(mask.narrow(axis, max(-by, 0), size))
        mask = mask | moved
    return mask


def trilinear(index: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N, 8] int64 and trilinear weights [N, 8] of the corners around points [N, 3] in voxels, in the order of the
    last bits of x, y and z. The index [X, Y, Z] has the rows of vertices; -1: none. Points outside the box are moved to
    its surface."""
    shape = constant(index.shape, points.device)
    points = points.clamp(min=0.0).minimum((shape - 1).to(points.dtype))
    lowest = points.long().minimum(shape - 2)
    share = points - lowest
    corners = torch.arange(8, device=points.device)[:, None] >> torch.arange(2, -1, -1, device=points.device) & 1
    at = lowest[:, None] + corners
    weights = torch.where(corners.bool(), share[:, None], 1.0 - share[:, None]).prod(-1)
    return index[at[..., 0], at[..., 1], at[..., 2]].long(), weights


def interpolated(index: Tensor, rows: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Values [N, C] of rows [M, C] at points [N, 3] in voxels: means over the corners with a row, and the weight [N] of
    these corners."""
    corner, weights = trilinear(index, points)
    weights = torch.where(corner >= 0, weights, 0.0)
    total = weights.sum(-1)
    values = (rows[corner.clamp(min=0)] * weights[..., None]).sum(1)
    return values / total.clamp(min=1e-6)[:, None], total
