"""Sparse grid: a box of cubic cells of which some are kept, with a row of values for each vertex of a kept cell.

Rows are found through bricks of 8 x 8 x 8 vertices, of which only those with a row are stored: an index of all vertices
of a box would take more memory than the rows."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nerf.fields.occupancy import Occupancy
from nerf.runtime.devices import constant
from nerf.runtime.errors import UserError

MOST_VERTICES = 2 ** 29  # vertices of a box, with rows or without: each needs a byte
BRICK_BITS = 3  # bricks have 8 vertices along an edge
BRICK = 1 << BRICK_BITS


class Bricks(NamedTuple):
    """Index from vertices to rows, in B bricks. The slot of a vertex is its brick's number times 512, plus its index in
    the brick."""
    number: Tensor  # [X', Y', Z'] int32 of each brick; -1: it has no row
    origin: Tensor  # [B] int32, flat index of each brick in `number`
    index: Tensor  # [512 B] int32, row in each slot; -1: none
    slots: Tensor  # [M] int32, slot of each row

    @classmethod
    def of(cls, vertices: Tensor, shape: Sequence[int]) -> Bricks:
        """Bricks of vertices (x, y, z) [3, M] int64, in ascending order, in a box of `shape` vertices. ValueError: too
        many bricks for slots of int32."""
        size, device, (x, y, z) = [-(size // -BRICK) for size in shape], vertices.device, vertices
        brick = ((x >> BRICK_BITS) * size[1] + (y >> BRICK_BITS)) * size[2] + (z >> BRICK_BITS)
        number = torch.full([math.prod(size)], -1, dtype=torch.int32, device=device)
        number[brick] = 0
        origin = (number == 0).nonzero()[:, 0].int()
        number[origin.long()] = torch.arange(len(origin), dtype=torch.int32, device=device)
        if len(origin) >= 2 ** (31 - 3 * BRICK_BITS):
            raise ValueError(f'{len(origin)} bricks')
        slots = (number[brick] << 3 * BRICK_BITS) + _within_brick(x, y, z).int()
        index = torch.full([len(origin) << 3 * BRICK_BITS], -1, dtype=torch.int32, device=device)
        index[slots.long()] = torch.arange(len(slots), dtype=torch.int32, device=device)
        return cls(number.reshape(size), origin, index, slots)

    def row_at(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Rows [...] int64 of vertices (x, y, z) in the box, int64 each; -1: none."""
        number = self.number[x >> BRICK_BITS, y >> BRICK_BITS, z >> BRICK_BITS].long()
        rows = self.index[(number.clamp(min=0) << 3 * BRICK_BITS) + _within_brick(x, y, z)].long()
        return torch.where(number < 0, -1, rows)


def _within_brick(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Index of a vertex in its brick."""
    return (((x & BRICK - 1) << BRICK_BITS | y & BRICK - 1) << BRICK_BITS) | z & BRICK - 1


@dataclass(frozen=True)
class SparseGrid(Occupancy):
    """Grid of X x Y x Z vertices, M of them with rows, and of the cells between them. Kept cells are the occupied ones;
    no cell begins at the last vertex along an axis. Rows are in the order of their vertices' flat indices."""
    vertices: Tensor  # [M] int64, flat indices of the vertices with rows

    @classmethod
    def of_cells(cls, low: Tensor, voxel: float, cells: Tensor) -> SparseGrid:
        """Grid whose kept cells are the cells of a mask [X, Y, Z]."""
        cells = cells.clone()
        for axis in range(3):
            cells.narrow(axis, cells.shape[axis] - 1, 1).zero_()
        return cls(low, voxel, cells, vertices_of(cells).view(-1).nonzero()[:, 0])

    @classmethod
    def filled(cls, box: np.ndarray, voxel: float, device: torch.device) -> SparseGrid:
        """Grid of all cells of a box [2, 3]."""
        shape = [int(np.ceil(side / voxel - 1e-6)) + 1 for side in box[1] - box[0]]
        return cls.of_cells(torch.from_numpy(box[0].astype(np.float64)), voxel,
                            torch.ones(shape, dtype=torch.bool, device=device))

    @functools.cached_property
    def bricks(self) -> Bricks:
        """Index from vertices to rows."""
        return Bricks.of(self.places, self.cells.shape)

    @functools.cached_property
    def places(self) -> Tensor:
        """Vertices with rows as (x, y, z) [3, M] int64."""
        _, y, z = self.cells.shape
        return torch.stack([self.vertices // (y * z), self.vertices // z % y, self.vertices % z])

    @property
    def n_rows(self) -> int:
        return len(self.vertices)

    def mask_of(self, rows: Tensor) -> Tensor:
        """[X, Y, Z] bool: vertices whose rows are set in a mask [M]."""
        mask = torch.zeros_like(self.cells)
        mask.view(-1)[self.vertices] = rows
        return mask

    def trilinear(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [N, 8] int64 and trilinear weights [N, 8] of the corners around points [N, 3] in voxels, in the order of
        the last bits of x, y and z; row -1: none. Points outside the box are moved to its surface."""
        last = constant(self.cells.shape, points.device) - 1
        points = points.clamp(min=0.0).minimum(last.to(points.dtype))
        lowest = points.long().minimum(last - 1)
        share = points - lowest
        corners = torch.arange(8, device=points.device)[:, None] >> torch.arange(2, -1, -1, device=points.device) & 1
        weights = torch.where(corners.bool(), share[:, None], 1.0 - share[:, None]).prod(-1)
        return self.bricks.row_at(*(lowest[:, None] + corners).unbind(-1)), weights

    def interpolated(self, rows: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Values [N, C] of rows [M, C] at points [N, 3] in voxels: means over the corners with a row, and the weight
        [N] of these corners."""
        corner, weights = self.trilinear(points)
        weights = torch.where(corner >= 0, weights, 0.0)
        total = weights.sum(-1)
        values = (rows[corner.clamp(min=0)] * weights[..., None]).sum(1)
        return values / total.clamp(min=1e-6)[:, None], total

    def keeping(self, cells: Tensor) -> tuple[SparseGrid, Tensor]:
        """Grid of the kept cells in a mask [X, Y, Z], and the rows [M'] of this grid that it keeps."""
        grid = SparseGrid.of_cells(self.low, self.voxel, cells & self.cells)
        return grid, torch.searchsorted(self.vertices, grid.vertices)

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
        return (self.places.t() * self.voxel + self.low.to(self.places.device)).float()


def vertices_of(cells: Tensor) -> Tensor:
    """[X, Y, Z] bool: corners of the cells [X, Y, Z] of a mask, none of them at the last vertex along an axis."""
    return _with_moved(cells, 1)


def cells_around(vertices: Tensor) -> Tensor:
    """[X, Y, Z] bool: cells with a corner in a mask of vertices [X, Y, Z]."""
    return _with_moved(vertices, -1)


def dilated(cells: Tensor) -> Tensor:
    """Cells of a mask [X, Y, Z] and their neighbours, diagonal ones too."""
    return _with_moved(_with_moved(cells, 1), -1)


def _with_moved(mask: Tensor, by: int) -> Tensor:
    """A mask [X, Y, Z] and itself moved by one along any of the axes."""
    for axis in range(3):
        before, size = mask, mask.shape[axis] - 1
        mask = before.clone()
        mask.narrow(axis, max(by, 0), size).logical_or_(before.narrow(axis, max(-by, 0), size))
    return mask
