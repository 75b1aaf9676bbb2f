"""A field's surface as training cameras see it: their depths fused into signed distances (Curless & Levoy 1996)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numba import njit, prange
from scipy import ndimage

from nerf.meshes.faces import Density
from nerf.meshes.views import SeenFrom
from nerf.runtime.errors import UserError

F = np.float32
BAND = 4.0  # steps of the grid to which distances are cut off
HIDDEN_FROM = 3  # views, at least, that see something in front of a hidden point
COARSE = 2  # steps between the hidden points that are looked at
WALL = 0.02  # of the grid's longest side: so far behind what is seen, along its axes, all is inside
DENSER = 2.0  # times the density at the surface, which a point has that is inside farther behind
SMOOTH = 1.25  # coarse steps: the standard deviation of a Gaussian filter over hidden points
CLEAR = 6  # views that see far past a point, after which it is asked of no others
BLOCK = 4  # steps along the edges of the blocks that are looked at closely, near what is seen
MARGIN = 2.0  # steps around what is seen that are near it; half a block at most
REACH = 4  # pixels around the middle of a block that can show it
SUPPORT = 3  # of a pixel's eight neighbours that show the same surface


@dataclass(frozen=True)
class FusedDepths:
    """Distances on a grid, positive inside, in bands."""

    low: np.ndarray  # [3] of its first point
    steps: np.ndarray  # [3] between points
    values: np.ndarray  # [X, Y, Z] float32 in [-1, 1]

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """The distances [N] at points [N, 3], linearly in between."""
        places = ((points - self.low) / self.steps).T
        return ndimage.map_coordinates(self.values, places, order=1, mode='nearest').astype(np.float32)


def fused_depths(views: list[SeenFrom], axes: list[np.ndarray], density: Density, level: float) -> FusedDepths:
    """The distances from what the training cameras see, at the points of a grid with these coordinates along its axes.
    Far from what they see, all points of a block have that of its middle.

    A hidden point, which no camera sees and several see something in front of, is inside close behind what they see, as
    things have some thickness, and where the field is dense; and in a cavity that is closed all around, whose walls
    nobody needs. But what is hidden as far as the grid's border is outside. In normalised device coordinates, where
    cameras see things from the front alone, all hidden points are inside.

    Args:
        density: of the field.
        level: at its surface.

    Raises:
        UserError: no camera sees anything in the grid.
    """
    low, shape = np.array([axis[0] for axis in axes]), tuple(len(axis) for axis in axes)
    steps = np.array([axis[1] - axis[0] for axis in axes])
    band = BAND * steps.max()
    near = _blocks_near(views, low, steps, tuple(-(-size // BLOCK) for size in shape), band)
    middles = _sums(views, low + 0.5 * (BLOCK - 1) * steps, BLOCK * steps, near.shape, band, np.argwhere(~near), 1)
    total, count, behind = _sums(views, low, steps, shape, band, np.argwhere(near), BLOCK,
                                 [_spread(part, shape) for part in middles])
    values = np.where(count > 0, -total / np.maximum(count, F(1.0)), F(-1.0))
    hidden = np.nonzero((count == 0) & (behind >= HIDDEN_FROM))
    if views[0].in_ndc:
        values[hidden] = 1.0
    else:
        coarse = _with_hidden(*(part[::COARSE, ::COARSE, ::COARSE] for part in (values, count, behind)), low,
                              COARSE * steps, density, level)
        places = np.stack(hidden).astype(np.float32) / COARSE
        values[hidden] = ndimage.map_coordinates(coarse, places, order=1, mode='nearest')
    if not (values > 0).any() or not (values < 0).any():
        raise UserError('the training cameras see no surface in the box of the mesh; train longer')
    return FusedDepths(low, steps, values)


def _with_hidden(values: np.ndarray, count: np.ndarray, behind: np.ndarray, low: np.ndarray, steps: np.ndarray,
                 density: Density, level: float) -> np.ndarray:
    """The values [X, Y, Z] of a grid with those of its hidden points, which are smooth."""
    border = np.ones(values.shape, bool)
    border[1:-1, 1:-1, 1:-1] = False
    hidden = _apart_from(border, (count == 0) & (behind >= HIDDEN_FROM))
    behind_seen = ndimage.maximum_filter((count > 0) & (values > 0), 2 * round(WALL * max(values.shape)) + 1)
    deep = hidden & ~behind_seen
    filled = np.where(hidden, F(1.0), values)
    densities = density((low + steps * np.argwhere(deep)).astype(np.float32))
    filled[deep] = np.clip(densities / (DENSER * level) - 1.0, -1.0, 1.0)
    values = np.where(hidden, ndimage.gaussian_filter(filled, SMOOTH), values)
    values[_apart_from(~hidden, values < 0)] = 1.0
    return values


def _apart_from(others: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The components of some points of a grid [X, Y, Z] that hold none of some others."""
    label, count = ndimage.label(points)
    apart = np.ones(count + 1, bool)
    apart[label[others]] = apart[0] = False
    return apart[label]


def _blocks_near(views: list[SeenFrom], low: np.ndarray, steps: np.ndarray, shape: tuple[int, ...],
                 band: float) -> np.ndarray:
    """Which blocks [X', Y', Z'] of a grid have a point within MARGIN steps of something that a view shows.

    Where a pixel's depth is that of few around it, it is a mean over what is in front of an edge and behind it.
    """
    near, last = np.zeros([size + 2 for size in shape], bool), np.array(shape)[:, None]  # with blocks around it
    for view in views:
        around = np.lib.stride_tricks.sliding_window_view(np.pad(view.depth, 1, constant_values=np.inf), (3, 3))
        with np.errstate(invalid='ignore'):  # infinity from infinity
            surface = (np.abs(around - view.depth[..., None, None]) < band).sum((2, 3)) > SUPPORT
        places = ((view.points[surface] - low) / steps).T
        ends = [np.clip(np.floor((places + shift) / BLOCK), -1, last).astype(np.int64) + 1
                for shift in (-MARGIN, MARGIN)]
        for x, y, z in itertools.product((0, 1), repeat=3):
            near[ends[x][0], ends[y][1], ends[z][2]] = True
    return near[1:-1, 1:-1, 1:-1]


def _spread(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The values [X', Y', Z'] of blocks as those of their points."""
    for axis, size in enumerate(shape):
        blocks = blocks.repeat(BLOCK, axis).take(np.arange(size), axis)
    return blocks


def _sums(views: list[SeenFrom], low: np.ndarray, steps: np.ndarray, shape: tuple[int, ...], band: float,
          blocks: np.ndarray, edge: int, sums: list[np.ndarray] | None = None) -> list[np.ndarray]:
    """The sums of bounded distances, their numbers, and those of the views that something hides a point from, each
    [X, Y, Z], at the points of some blocks [N, 3] of so many along an edge; elsewhere they are as given, or 0."""
    sums = sums or [np.zeros(shape, kind) for kind in (np.float32, np.uint16, np.uint16)]
    radius = 0.5 * np.sqrt(3.0) * (edge - 1) * steps.max()
    sizes = np.array([view.depth.shape for view in views])
    depth, farthest = np.full((2, len(views), *sizes.max(0)), np.inf, np.float32)
    for i, (view, (height, width)) in enumerate(zip(views, sizes)):
        depth[i, :height, :width] = view.depth
        farthest[i, :height, :width] = ndimage.maximum_filter(view.depth, 2 * REACH + 1, mode='constant', cval=np.inf)
    to_pixels = np.stack([_to_pixels(view, low, steps) for view in views])
    focal = np.array([view.focal for view in views])
    _fuse(blocks, edge, *sums, depth, farthest, sizes, to_pixels, focal, radius, band, views[0].in_ndc)
    return sums


def _to_pixels(view: SeenFrom, low: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """[4, 4], from points (i, j, k, 1) of a grid to (q row, q column, q away, q), where q is 1 but in normalised device
    coordinates, and `away` is along the camera's axis."""
    grid = np.diag([*steps, 1.0])
    grid[:3, 3] = low
    if view.in_ndc:  # to world coordinates times q, and q = (1 - z) / 2
        grid = np.array([[1.0 / view.ndc[0], 0.0, 0.0, 0.0], [0.0, 1.0 / view.ndc[1], 0.0, 0.0], [0.0, 0.0, 0.0, -1.0],
                         [0.0, 0.0, -0.5, 0.5]]) @ grid
    height, width = view.depth.shape
    right, up, back = np.column_stack([view.rotation.T, -view.rotation.T @ view.place])
    axes = [0.5 * (1 - height) * back - view.focal * up, 0.5 * (1 - width) * back + view.focal * right, -back]
    return np.vstack([*axes, [0.0, 0.0, 0.0, 1.0]]) @ grid


@njit(parallel=True, cache=True, error_model='numpy')
def _fuse(blocks, edge, total, count, behind, depth, farthest, sizes, to_pixels, focal, radius, band, in_ndc):
    """Adds what cameras see, measured depths [V, H, W] along their axes in pictures of sizes [V, 2], to the sums of
    distances and their numbers [X, Y, Z] in some blocks of a radius, or counts where points are behind it; `farthest`
    [V, H, W] is that within REACH pixels, `to_pixels` is [V, 4, 4]."""
    for n in prange(len(blocks)):
        i, j, k = edge * blocks[n, 0], edge * blocks[n, 1], edge * blocks[n, 2]
        totals, counts = total[i:i + edge, j:j + edge, k:k + edge], count[i:i + edge, j:j + edge, k:k + edge]
        behinds = behind[i:i + edge, j:j + edge, k:k + edge]
        for v in range(len(depth)):
            if not _fuse_view(totals, counts, behinds, i, j, k, 0.5 * (edge - 1), depth[v], farthest[v], sizes[v],
                              to_pixels[v], focal[v], radius, F(band), in_ndc):
                break


@njit(cache=True, error_model='numpy')
def _fuse_view(totals, counts, behinds, i, j, k, half, depth, farthest, size, to_pixels, focal, radius, band, in_ndc):
    """Adds what one camera sees to the points of one block, of which (i, j, k) is the first one; its middle is `half`
    points further along each axis. Returns whether any point is not far in front of all that was seen."""
    needed = False
    zero, one, last_row, last_column = F(0.0), F(1.0), F(size[0] - 1), F(size[1] - 1)
    row_by_k, column_by_k, away_by_k, q_by_k = _times(to_pixels, 0.0, 0.0, 1.0, 0.0)
    hidden = not in_ndc and _is_behind(i + half, j + half, k + half, farthest, size, to_pixels, focal, radius, band)
    for di in range(totals.shape[0]):
        for dj in range(totals.shape[1]):
            row_at_k, column_at_k, away_at_k, q_at_k = _times(to_pixels, i + di, j + dj, k, 1.0)
            for dk in range(totals.shape[2]):
                if counts[di, dj, dk] >= CLEAR and totals[di, dj, dk] >= F(counts[di, dj, dk]):
                    continue
                needed = True
                if hidden:
                    behinds[di, dj, dk] += 1
                    continue
                away = away_at_k + F(dk) * away_by_k
                row, column = (row_at_k + F(dk) * row_by_k) / away, (column_at_k + F(dk) * column_by_k) / away
                if not (away > zero and zero <= row <= last_row and zero <= column <= last_column):
                    continue
                if in_ndc:  # what depth is even in there: `measured`
                    away = F(-2.0) * (q_at_k + F(dk) * q_by_k) / away
                in_front = _seen_at(row, column, depth, size, band) - away
                if in_front >= -band:  # not hidden
                    totals[di, dj, dk] += min(in_front / band, one)
                    counts[di, dj, dk] += 1
                elif in_front < zero:
                    behinds[di, dj, dk] += 1
    return needed


@njit(cache=True, error_model='numpy')
def _times(matrix, i, j, k, one):
    """A 4x4 matrix times (i, j, k, one), in float32."""
    return (F(matrix[0, 0] * i + matrix[0, 1] * j + matrix[0, 2] * k + matrix[0, 3] * one),
            F(matrix[1, 0] * i + matrix[1, 1] * j + matrix[1, 2] * k + matrix[1, 3] * one),
            F(matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 2] * k + matrix[2, 3] * one),
            F(matrix[3, 0] * i + matrix[3, 1] * j + matrix[3, 2] * k + matrix[3, 3] * one))


@njit(cache=True, error_model='numpy')
def _is_behind(i, j, k, farthest, size, to_pixels, focal, radius, band):
    """Whether all of a ball around a point of the grid is hidden."""
    row, column, away, _ = _times(to_pixels, i, j, k, 1.0)
    row, column = row / away, column / away
    if not (away > radius and focal * radius < (REACH - 1) * (away - radius) and 0.0 <= row <= size[0] - 1
            and 0.0 <= column <= size[1] - 1):
        return False
    return farthest[int(row + 0.5), int(column + 0.5)] - (away - radius) < -band


@njit(cache=True, error_model='numpy')
def _seen_at(row, column, depth, size, band):
    """The measured depth at a place of a picture: linearly between four pixels that see one surface, else the nearest
    pixel's."""
    top, left = min(int(row), size[0] - 2), min(int(column), size[1] - 2)
    a, b, c, d = depth[top, left], depth[top, left + 1], depth[top + 1, left], depth[top + 1, left + 1]
    if max(a, b, c, d) - min(a, b, c, d) < band:
        down, right = row - F(top), column - F(left)
        above, below = a + right * (b - a), c + right * (d - c)
        return above + down * (below - above)
    return depth[int(row + F(0.5)), int(column + F(0.5))]
