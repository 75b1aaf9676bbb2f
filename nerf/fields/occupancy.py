"""Occupancy: the cells of a box in which something can be, and the steps of rays in them, for both kinds of field."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nerf.runtime.devices import constant
from run_nerf_helpers import Rays

LEAP, LEAP_CELLS = 8, 4  # cells along a leap of a ray, where nothing is near, and along a coarse cell of its mask


class Steps(NamedTuple):
    """Steps of R rays in occupied cells, in one list: ray after ray, front to back."""
    ray: Tensor  # [N] int64, ascending
    t: Tensor  # [N] depth of the middle of each step
    length: Tensor  # [R] length of each step of a ray, in depth
    cell: Tensor  # [N] int64, flat index of the cell around the middle of the step

    @property
    def count(self) -> Tensor:
        """Number of steps [R] of each ray."""
        return torch.bincount(self.ray, minlength=len(self.length))

    @property
    def first(self) -> Tensor:
        """Index [R] of the first step of each ray."""
        return (count := self.count).cumsum(0) - count

    def total(self, values: Tensor) -> Tensor:
        """Sums [R] of each ray's values [N]."""
        return values.new_zeros(len(self.length)).index_add(0, self.ray, values)

    def sum_before(self, values: Tensor) -> Tensor:
        """Sums [N] of a ray's values [N] before each step. Values should be float64: one sum runs over all rays."""
        before = values.cumsum(0) - values
        return before - before[self.first[self.ray]]

    def shifted(self, values: Tensor, by: int) -> Tensor:
        """Values [N] of the step `by` steps before; 0 if that step is on another ray."""
        return torch.where(self.ray.roll(by) == self.ray, values.roll(by), 0.0)


@dataclass(frozen=True)
class Occupancy:
    """Box of X x Y x Z cubic cells, some of them occupied. A cell has the index of its lowest corner."""
    low: Tensor  # [3] float64, point of corner (0, 0, 0), on the CPU
    voxel: float  # edge of a cell
    cells: Tensor  # [X, Y, Z] bool, True: occupied

    def scaled(self, points: Tensor) -> Tensor:
        """Points [..., 3] in cells from corner (0, 0, 0)."""
        return (points - constant(tuple(self.low.tolist()), points.device, points.dtype)) / self.voxel

    def centres(self) -> Tensor:
        """Centres [K, 3] float32 of the occupied cells, in the order of their flat indices."""
        return ((self.cells.nonzero() + 0.5) * self.voxel + self.low.to(self.cells.device)).float()

    def cell_of(self, scaled: Tensor) -> Tensor:
        """Flat index [...] of the cell around each scaled point [..., 3]; outside of the box, of the nearest cell."""
        return _flat_index(scaled, self.cells.shape)

    def holds(self, points: Tensor) -> Tensor:
        """[N] bool: whether a point [N, 3] is in an occupied cell."""
        scaled = self.scaled(points)
        inside = ((scaled >= 0) & (scaled <= constant(self.cells.shape, points.device))).all(-1)
        return self.cells.flatten()[self.cell_of(scaled)] & inside

    @cached_property
    def _near(self) -> Tensor:
        """[X', Y', Z'] bool: coarse cells, of LEAP_CELLS cells along an edge, with an occupied cell at most LEAP / 2
        cells away. Leaps with their middles in other coarse cells meet nothing."""
        near, ends = self.cells[None].float(), LEAP // 2
        for axis in range(3):  # one axis after the other: a cube at once is many times slower
            near = F.max_pool3d(near, [LEAP + 1 if i == axis else 1 for i in range(3)], 1,
                                [ends if i == axis else 0 for i in range(3)])
        padding = [part for size in reversed(self.cells.shape) for part in (0, -size % LEAP_CELLS)]
        return F.max_pool3d(F.pad(near, padding), LEAP_CELLS)[0] > 0

    def steps(self, rays: Rays) -> Steps:
        """Steps, one cell long, of rays through the box. Steps are in the cells around their middles, so corners of
        cells can be missed. This waits for the device."""
        origins, directions = self.scaled(rays.origins), rays.directions / self.voxel
        length = 1.0 / directions.norm(dim=-1)
        start, end = crossed(self.cells.shape, origins, directions, rays.near[:, 0], rays.far[:, 0])
        leaps = ((end - start) / (LEAP * length)).clamp(min=0.0).ceil()
        n = torch.arange(int(leaps.max()), device=leaps.device)
        middles = start[:, None] + (n + 0.5) * (LEAP * length)[:, None]  # [R, L]
        points = (origins[:, None] + middles[..., None] * directions[:, None]) / LEAP_CELLS
        near = self._near.flatten()[_flat_index(points, self._near.shape)] & (n < leaps[:, None])
        ray, leap = near.nonzero(as_tuple=True)
        ray, step = ray.repeat_interleave(LEAP), (LEAP * leap[:, None] + torch.arange(LEAP, device=n.device)).flatten()
        t = start[ray] + (step + 0.5) * length[ray]
        cell = self.cell_of(origins[ray] + t[:, None] * directions[ray])
        kept = (self.cells.flatten()[cell] & (t < end[ray])).nonzero()[:, 0]
        return Steps(ray[kept], t[kept], length, cell[kept])


def crossed(size: Sequence[int], origins: Tensor, directions: Tensor, near: Tensor, far: Tensor) -> tuple[Tensor, ...]:
    """Depths [R] at which rays, in cells, enter and leave a box from (0, 0, 0) to `size`, within bounds [R]. Rays that
    miss leave before they enter."""
    inverse = torch.where(directions.abs() > 1e-9, 1.0 / directions, 1e9)
    a = -origins * inverse
    b = torch.stack([side - part for side, part in zip(size, origins.unbind(-1))], -1) * inverse
    return torch.maximum(torch.minimum(a, b).amax(-1), near), torch.minimum(torch.maximum(a, b).amin(-1), far)


def _flat_index(points: Tensor, shape: torch.Size) -> Tensor:
    """Flat indices [...] of the unit cells around points [..., 3]; outside of the box, of the nearest cell."""
    x, y, z = (points[..., axis].clamp(0, size - 1).to(torch.int32) for axis, size in enumerate(shape))
    return ((x * shape[1] + y) * shape[2] + z).long()
