"""Free space of a capture: nothing is between a camera and the nearest sparse points in its picture.

Fog grows where few views look, in front of cameras most of all. A field that leaves free space out has none there.
Whether a view observes a point does not matter: hidden points are not the nearest ones, and a surface in which a view
matched no point must not count as free because of points behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn import functional as F

from nerf.cameras import Cameras
from nerf.captures.placement import in_view


@dataclass(frozen=True)
class FreeSpaceRules:
    """Numbers that decide how much space is free. They were chosen on views of the fox, beer and alexander that were
    held out from training."""

    tiles: int = 24  # along the longer side of a picture, each with a depth up to which it shows nothing
    around: int = 2  # tiles on each side of a tile whose points count for it
    share: float = 0.9  # of the depth of a tile's nearest point, up to which space is free


RULES = FreeSpaceRules()


@dataclass(frozen=True)
class FreeSpace:
    """Free space of V views of sparse points [P, 3]."""

    cameras: Cameras  # with near bounds
    points: np.ndarray
    rules: FreeSpaceRules = RULES

    @cached_property
    def depths(self) -> list[np.ndarray]:
        """Depth [rows, columns] up to which each tile of a view shows nothing: along the camera's axis, or a distance
        from a fisheye. The view's near bound counts where no points are around."""
        return [self._tile_depths(view) for view in range(len(self.cameras))]

    def _tile_depths(self, view: int) -> np.ndarray:
        _, depth, column, row = in_view(self.cameras, view, self.points)
        tile = self._tile(view, column, row)
        nearest = np.full(np.array(self._tile(view, *self.cameras.size(view)[::-1])) + 1, np.inf)
        np.minimum.at(nearest, tile, depth)
        around = self.rules.around
        nearest = -F.max_pool2d(-torch.from_numpy(nearest)[None], 2 * around + 1, 1, around)[0].numpy()
        return np.where(np.isinf(nearest), self._near(view), self.rules.share * nearest)

    def _tile(self, view: int, column: np.ndarray | int, row: np.ndarray | int) -> tuple:
        """Row and column of the tile around a pixel."""
        side = max(self.cameras.size(view)) / self.rules.tiles
        return np.asarray(row / side, int), np.asarray(column / side, int)

    def _near(self, view: int) -> float:
        return float(self.cameras.bounds[view, 0])

    def views_through(self, places: np.ndarray, radii: np.ndarray, views: Sequence[int]) -> np.ndarray:
        """Number [N] int64 of some of the views that show nothing in the balls around places [N, 3], of radii [N]."""
        count = np.zeros(len(places), np.int64)
        for view in map(int, views):
            index, depth, column, row = in_view(self.cameras, view, places)
            count[index] += depth + radii[index] < self.depths[view][self._tile(view, column, row)]
        return count
