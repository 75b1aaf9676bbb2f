"""Fusion of the depths that training cameras see into signed distances on a grid (Curless & Levoy 1996)."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from numba import njit, prange
from scipy import ndimage

from nerf.meshes.extraction import Density
from nerf.meshes.options import DEFAULTS, MeshSettings
from nerf.meshes.views import SeenFrom, onto_pixels, stacked
from nerf.runtime.errors import UserError
from nerf.space import Space

F = np.float32


class Lattice(NamedTuple):
    """Points of a regular grid in ray coordinates."""
    low: np.ndarray  # [3] first point
    steps: np.ndarray  # [3] steps between points
    shape: tuple[int, ...]  # number of points along each axis

    def middles(self, edge: int) -> Lattice:
        """Middles of blocks of `edge` points along each axis."""
        shape = tuple(math.ceil(size / edge) for size in self.shape)
        return Lattice(self.low + 0.5 * (edge - 1) * self.steps, edge * self.steps, shape)


class FusedDepths(NamedTuple):
    """Signed distances on a grid, positive inside, in units of the band at which they are cut off."""
    grid: Lattice
    values: np.ndarray  # [X, Y, Z] float32 in [-1, 1]

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Distances [N] float32 at points [N, 3], interpolated linearly."""
        places = ((points - self.grid.low) / self.grid.steps).T
        return ndimage.map_coordinates(self.values, places, order=1, mode='nearest').astype(np.float32)


def fused_depths(views: list[SeenFrom], space: Space, axes: list[np.ndarray], density: Density, level: float,
                 settings: MeshSettings = DEFAULTS) -> FusedDepths:
    """Signed distances, at grid points with coordinates `axes`, from the surface that views show. Blocks of the grid
    near a seen point are fused point by point. All points of another block have the distance of the block's middle. A
    hidden point is one that no camera sees and in front of which several cameras see something. It is inside close
    behind a seen surface, since objects have some thickness; where the field's density is `denser` than the surface's
    level; and in a cavity that is closed on all sides, whose walls nobody needs. A group of hidden points that reaches
    the grid's border is outside. In a projective space cameras see objects from the front alone, and in one without
    bounds things go on behind the grid's border, so all hidden points are inside. Unknown depths, NaN, say nothing.
    UserError: the views show no surface in the grid."""
    grid = Lattice(np.array([axis[0] for axis in axes]), np.array([axis[1] - axis[0] for axis in axes]),
                   tuple(len(axis) for axis in axes))
    edge, coarse, band = settings.block, settings.hidden_step, settings.band * grid.steps.max()
    near = _blocks_near(views, grid, settings)
    of_blocks = _sums(views, space, grid.middles(edge), np.argwhere(~near), 1, band, settings)
    for axis, size in enumerate(grid.shape):
        of_blocks = [part.repeat(edge, axis).take(np.arange(size), axis) for part in of_blocks]
    total, count, behind = _sums(views, space, grid, np.argwhere(near), edge, band, settings, of_blocks)
    values = np.where(count > 0, -total / np.maximum(count, F(1.0)), F(-1.0))
    hidden = np.nonzero((count == 0) & (behind >= settings.hidden_views))
    if space.projective or not space.has_far:
        values[hidden] = 1.0
    else:
        decided = with_hidden(*(part[::coarse, ::coarse, ::coarse] for part in (values, count, behind)), grid.low,
                              coarse * grid.steps, density, level, settings)
        places = np.stack(hidden).astype(np.float32) / coarse
        values[hidden] = ndimage.map_coordinates(decided, places, order=1, mode='nearest')
    if not (values > 0).any() or not (values < 0).any():
        raise UserError('the training cameras see no surface in the box of the mesh; train longer')
    return FusedDepths(grid, values)


def with_hidden(values: np.ndarray, count: np.ndarray, behind: np.ndarray, low: np.ndarray, steps: np.ndarray,
                density: Density, level: float, settings: MeshSettings = DEFAULTS) -> np.ndarray:
    """Signed distances [X, Y, Z] of `FusedDepths`, completed at hidden points as `fused_depths` describes, smoothly.
    Numbers [X, Y, Z] of views see each point (`count`), or see something in front of it (`behind`). The grid's first
    point and its steps are `low` and `steps` [3]."""
    border = np.ones(values.shape, bool)
    border[1:-1, 1:-1, 1:-1] = False
    hidden = _apart_from(border, (count == 0) & (behind >= settings.hidden_views))
    wall = 2 * round(settings.wall_share * max(values.shape)) + 1
    deep = hidden & ~ndimage.maximum_filter((count > 0) & (values > 0), wall)
    filled = np.where(hidden, F(1.0), values)
    densities = density((low + steps * np.argwhere(deep)).astype(np.float32))
    filled[deep] = np.clip(densities / (settings.denser * level) - 1.0, -1.0, 1.0)
    values = np.where(hidden, ndimage.gaussian_filter(filled, settings.hidden_blur), values)
    values[_apart_from(~hidden, values < 0)] = 1.0
    return values


def _apart_from(others: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Connected components of `points` [X, Y, Z] bool in which none of the points of `others` lies."""
    label, count = ndimage.label(points)
    apart = np.ones(count + 1, bool)
    apart[label[others]] = apart[0] = False
    return apart[label]


def _blocks_near(views: list[SeenFrom], grid: Lattice, settings: MeshSettings) -> np.ndarray:
    """Blocks [X', Y', Z'] bool of a grid with a point within `margin` steps of a point that a view shows. A pixel whose
    neighbours have other depths is left out: its depth is a mean over both sides of an edge."""
    edge, margin = settings.block, settings.margin
    shape = grid.middles(edge).shape
    near, last = np.zeros([size + 2 for size in shape], bool), np.array(shape)[:, None]  # with blocks around the grid
    for view in views:
        around = np.lib.stride_tricks.sliding_window_view(np.pad(view.depth, 1, constant_values=np.inf), (3, 3))
        with np.errstate(invalid='ignore'):  # infinity minus infinity
            same = np.abs(around - view.depth[..., None, None]) < settings.band * grid.steps.max()
        places = ((view.points[same.sum((2, 3)) > settings.support] - grid.low) / grid.steps).T
        ends = [np.clip(np.floor((places + shift) / edge), -1, last).astype(np.int64) + 1
                for shift in (-margin, margin)]
        for x, y, z in itertools.product((0, 1), repeat=3):
            near[ends[x][0], ends[y][1], ends[z][2]] = True
    return near[1:-1, 1:-1, 1:-1]


def _sums(views: list[SeenFrom], space: Space, grid: Lattice, blocks: np.ndarray, edge: int, band: float,
          settings: MeshSettings, sums: list[np.ndarray] | None = None) -> list[np.ndarray]:
    """Sums [X, Y, Z] over views at points of blocks [N, 3] with `edge` points along an edge; at others, `sums` or 0.
    Sums are those of distances in bands, positive outside, of 1 for each distance, and of 1 for each view that sees
    something in front of a point. The band is a measured depth."""
    sums = sums or [np.zeros(grid.shape, kind) for kind in (np.float32, np.uint16, np.uint16)]
    # Balls around blocks make no sense in a projective space; an infinite one is never hidden as a whole.
    radius = math.inf if space.projective else 0.5 * math.sqrt(3.0) * (edge - 1) * grid.steps.max()
    depth, sizes, to_pixels = stacked(views, space)
    reached = 2 * settings.reach + 1
    farthest = ndimage.maximum_filter(np.nan_to_num(depth, nan=np.inf, posinf=np.inf), (1, reached, reached),
                                      mode='constant', cval=np.inf)
    from_grid = np.diag([*grid.steps, 1.0])
    from_grid[:3, 3] = grid.low
    to_pixels = to_pixels @ from_grid
    focal = np.array([view.focal for view in views])
    _fuse(blocks, edge, *sums, depth, farthest, sizes, to_pixels, focal, radius, band, settings.reach,
          settings.clear_views)
    return sums


@njit(parallel=True, cache=True, error_model='numpy')
def _fuse(blocks, edge, total, count, behind, depth, farthest, sizes, to_pixels, focal, radius, band, reach, clear):
    """Adds views to the sums of `_sums` at the points of blocks [N, 3]. Numbers that decide the result are arguments,
    because Numba's cache does not notice edited globals. Measured depths, and the largest ones within `reach` pixels,
    are [V, H, W], in pictures of sizes [V, 2]. Matrices `to_pixels` [V, 5, 4] are those of `pixel_matrix`, from grid
    points (i, j, k, 1)."""
    for n in prange(len(blocks)):
        i, j, k = edge * blocks[n, 0], edge * blocks[n, 1], edge * blocks[n, 2]
        totals, counts = total[i:i + edge, j:j + edge, k:k + edge], count[i:i + edge, j:j + edge, k:k + edge]
        behinds = behind[i:i + edge, j:j + edge, k:k + edge]
        for v in range(len(depth)):
            if not _fuse_view(totals, counts, behinds, i, j, k, 0.5 * (edge - 1), depth[v], farthest[v], sizes[v],
                              to_pixels[v], focal[v], radius, F(band), reach, clear):
                break


@njit(cache=True, error_model='numpy')
def _fuse_view(totals, counts, behinds, i, j, k, half, depth, farthest, size, to_pixels, focal, radius, band, reach,
               clear):
    """Adds one view to the points of the block whose first point is (i, j, k) and whose middle is `half` points further
    along each axis. Returns False if all points are far in front of what `clear` views saw."""
    needed = False
    zero, one, last_row, last_column = F(0.0), F(1.0), F(size[0] - 1), F(size[1] - 1)
    row_by_k, column_by_k, away_by_k, over_by_k, under_by_k = _onto_pixels(to_pixels, 0.0, 0.0, 1.0, 0.0)
    hidden = _is_behind(i + half, j + half, k + half, farthest, size, to_pixels, focal, radius, band, reach)
    for di in range(totals.shape[0]):
        for dj in range(totals.shape[1]):
            row_at_k, column_at_k, away_at_k, over_at_k, under_at_k = _onto_pixels(to_pixels, i + di, j + dj, k, 1.0)
            for dk in range(totals.shape[2]):
                if counts[di, dj, dk] >= clear and totals[di, dj, dk] >= F(counts[di, dj, dk]):
                    continue
                needed = True
                if hidden:
                    behinds[di, dj, dk] += 1
                    continue
                away = away_at_k + F(dk) * away_by_k
                row, column = (row_at_k + F(dk) * row_by_k) / away, (column_at_k + F(dk) * column_by_k) / away
                if not (away > zero and zero <= row <= last_row and zero <= column <= last_column):
                    continue
                measured = (over_at_k + F(dk) * over_by_k) / (under_at_k + F(dk) * under_by_k)
                in_front = _seen_at(row, column, depth, size, band) - measured
                if in_front >= -band:  # not hidden
                    totals[di, dj, dk] += min(in_front / band, one)
                    counts[di, dj, dk] += 1
                elif in_front < zero:
                    behinds[di, dj, dk] += 1
    return needed


@njit(cache=True, error_model='numpy')
def _onto_pixels(matrix, i, j, k, one):
    """`onto_pixels` in float32."""
    row, column, away, over, under = onto_pixels(matrix, i, j, k, one)
    return F(row), F(column), F(away), F(over), F(under)


@njit(cache=True, error_model='numpy')
def _is_behind(i, j, k, farthest, size, to_pixels, focal, radius, band, reach):
    """Whether all of a ball around a point of the grid is hidden in a view."""
    row, column, away, _, _ = _onto_pixels(to_pixels, i, j, k, 1.0)
    row, column = row / away, column / away
    if not (away > radius and focal * radius < (reach - 1) * (away - radius) and 0.0 <= row <= size[0] - 1
            and 0.0 <= column <= size[1] - 1):
        return False
    return farthest[int(row + 0.5), int(column + 0.5)] - (away - radius) < -band


@njit(cache=True, error_model='numpy')
def _seen_at(row, column, depth, size, band):
    """Measured depth at a place of a picture: interpolated if four pixels see one surface, else that of the nearest."""
    top, left = min(int(row), size[0] - 2), min(int(column), size[1] - 2)
    a, b, c, d = depth[top, left], depth[top, left + 1], depth[top + 1, left], depth[top + 1, left + 1]
    if max(a, b, c, d) - min(a, b, c, d) < band:
        down, right = row - F(top), column - F(left)
        above, below = a + right * (b - a), c + right * (d - c)
        mixed = above + down * (below - above)
        if not math.isnan(mixed):
            return mixed
    return depth[int(row + F(0.5)), int(column + F(0.5))]
