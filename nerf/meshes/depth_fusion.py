"""A field's surface as the training cameras see it: their depths fused into signed distances (Curless & Levoy 1996).

What no camera sees, the inner walls of a hollow thing above all, is no surface of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit, prange
from scipy import ndimage

from nerf.meshes.projection import in_world, measured, pixel_of
from nerf.meshes.views import SOLID, SeenFrom
from nerf.runtime.errors import UserError

BAND = 4.0  # steps of the grid to which distances are cut off
HIDDEN_FROM = 3  # views, at least, that a point inside is hidden from
CLEAR = 6  # views that see far past a point, after which it is asked of no others
BLOCK = 4  # steps along the edges of the blocks that are looked at closely, near what is seen; no less than BAND
REACH = 4  # pixels around the middle of a block that can show it
SUPPORT = 3  # of a pixel's eight neighbours that show the same surface
OUTLINE_POINTS = 20_000  # of the surface, whose outlines are looked at
TANGENT = 0.1  # cosine between a normal and a line of sight, up to which a point is at an outline
FEWEST_OUTLINES = 100  # points at outlines that tell


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


def fused_depths(views: list[SeenFrom], axes: list[np.ndarray]) -> FusedDepths:
    """The distances from what the training cameras see, at the points of a grid with these coordinates along its axes.
    Far from what they see, all points of a block have that of its middle.

    What all cameras that look there see something in front of is inside, unless it reaches the grid's border. In
    normalised device coordinates, where cameras see things from the front alone, it is inside there too.

    Raises:
        UserError: no camera sees anything in the grid.
    """
    low, shape = np.array([axis[0] for axis in axes]), tuple(len(axis) for axis in axes)
    steps = np.array([axis[1] - axis[0] for axis in axes])
    band = BAND * steps.max()
    near = _blocks_near(views, low, BLOCK * steps, tuple(-(-size // BLOCK) for size in shape), band)
    middles = _sums(views, low + 0.5 * (BLOCK - 1) * steps, BLOCK * steps, near.shape, band, np.argwhere(~near), 1)
    fine = _sums(views, low, steps, shape, band, np.argwhere(near), BLOCK, [_spread(part, shape) for part in middles])
    total, count, behind = fine
    hidden, n_hidden = ndimage.label((count == 0) & (behind >= HIDDEN_FROM))
    of_hidden = np.ones(n_hidden + 1, np.float32)
    of_hidden[0] = -1.0
    if not views[0].in_ndc:
        of_hidden[np.concatenate([np.take(hidden, end, axis).ravel() for axis in range(3) for end in (0, -1)])] = -1.0
    values = np.where(count > 0, -total / np.maximum(count, np.float32(1.0)), of_hidden[hidden])
    if not (values > 0).any() or not (values < 0).any():
        raise UserError('the training cameras see no surface in the box of the mesh; train longer')
    return FusedDepths(low, steps, values)


def _blocks_near(views: list[SeenFrom], low: np.ndarray, edges: np.ndarray, shape: tuple[int, ...],
                 band: float) -> np.ndarray:
    """Which blocks [X', Y', Z'] hold something that a view shows, or are beside one; `low` is the first one's corner.

    Where a pixel's depth is that of few around it, it is a mean over what is in front of an edge and behind it.
    """
    near = np.zeros(shape, bool)
    for view in views:
        around = np.lib.stride_tricks.sliding_window_view(np.pad(view.depth, 1, constant_values=np.inf), (3, 3))
        with np.errstate(invalid='ignore'):  # infinity from infinity
            surface = (np.abs(around - view.depth[..., None, None]) < band).sum((2, 3)) > SUPPORT
        block = np.floor((view.points[surface] - low) / edges).astype(np.int64)
        near[tuple(block[((block >= 0) & (block < shape)).all(1)].T)] = True
    return ndimage.binary_dilation(near, np.ones((3, 3, 3)))


def _spread(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The values [X', Y', Z'] of blocks as those of their points."""
    for axis, size in enumerate(shape):
        blocks = blocks.repeat(BLOCK, axis).take(np.arange(size), axis)
    return blocks


def _sums(views: list[SeenFrom], low: np.ndarray, steps: np.ndarray, shape: tuple[int, ...], band: float,
          blocks: np.ndarray, edge: int, sums: list[np.ndarray] | None = None) -> list[np.ndarray]:
    """The sums of bounded distances, their numbers, and those of the views that something hides a point from, each
    [X, Y, Z], at the points of some blocks [N, 3] of so many along an edge; elsewhere they are as given, or 0."""
    total, count, behind = sums or [np.zeros(shape, kind) for kind in (np.float32, np.uint16, np.uint16)]
    radius = 0.5 * np.sqrt(3.0) * (edge - 1) * steps.max()
    for view in views:
        farthest = ndimage.maximum_filter(view.depth, 2 * REACH + 1, mode='constant', cval=np.inf)
        _fuse(blocks, edge, total, count, behind, low, steps, view.depth, farthest, radius, view.rotation, view.place,
              view.focal, band, view.ndc)
    return [total, count, behind]


def outline_shift(views: list[SeenFrom], vertices: np.ndarray, normals: np.ndarray, step: float) -> float:
    """How far a surface is to be moved outwards to have the outlines that the views show, where half of the light
    passes.

    Where rays meet a blurred surface head on, they are stopped deeper in it than where they pass along it; and pictures
    tell most clearly where outlines are.

    Args:
        vertices, normals: [V, 3] of the surface, the normals outwards.
        step: of the grid; it is moved by two at most.
    """
    some = np.random.default_rng(0).permutation(len(vertices))[:OUTLINE_POINTS]
    points, normals = vertices[some].astype(np.float64), normals[some].astype(np.float64)
    shifts, opacities = np.linspace(-2.0, 2.0, 17) * step, []
    for view in views:
        away = points - view.place
        along = np.abs((away * normals).sum(1)) < TANGENT * np.linalg.norm(away, axis=1)
        shown = np.stack([_opacity(view, points[along] + shift * normals[along])
                          for shift in (*shifts, 2.0 * shifts[-1])])  # [S + 1, N]
        opacities.append(shown[:-1, (shown[-1] < 0.02) & (shown[0] > SOLID)])  # nothing is behind its outline
    means = np.concatenate(opacities, 1)
    if means.shape[1] < FEWEST_OUTLINES:
        return 0.0
    return float(np.interp(0.5, means.mean(1)[::-1], shifts[::-1]))  # opacity falls outwards


def _opacity(view: SeenFrom, points: np.ndarray) -> np.ndarray:
    """The opacity [N] that a view shows where points [N, 3] are; 0 outside it."""
    row, column, _ = pixel_of(*(points - view.place).T.copy(), view.rotation, view.focal, *view.opacity.shape)
    return ndimage.map_coordinates(view.opacity, np.stack([row, column]), order=1, mode='constant')


@njit(parallel=True, cache=True, error_model='numpy')
def _fuse(blocks, edge, total, count, behind, low, steps, depth, farthest, radius, rotation, place, focal, band, ndc):
    """Adds what one camera sees, measured depths [H, W] along its axis, to the sums of distances and their numbers
    [X, Y, Z] in some blocks of a radius, or counts where points are behind it; `farthest` [H, W] is that within REACH
    pixels."""
    for n in prange(len(blocks)):
        i, j, k = edge * blocks[n, 0], edge * blocks[n, 1], edge * blocks[n, 2]
        totals, counts = total[i:i + edge, j:j + edge, k:k + edge], count[i:i + edge, j:j + edge, k:k + edge]
        behinds, half = behind[i:i + edge, j:j + edge, k:k + edge], 0.5 * (edge - 1)
        hidden = ndc[0] == 0.0 and _is_behind(
                low[0] + steps[0] * (i + half) - place[0], low[1] + steps[1] * (j + half) - place[1],
                low[2] + steps[2] * (k + half) - place[2], radius, farthest, rotation, focal, band)
        for di in range(totals.shape[0]):
            for dj in range(totals.shape[1]):
                for dk in range(totals.shape[2]):
                    if counts[di, dj, dk] >= CLEAR and totals[di, dj, dk] >= counts[di, dj, dk]:
                        continue  # far in front of all that was seen
                    if hidden:
                        behinds[di, dj, dk] += 1
                        continue
                    x, y, z = in_world(low[0] + steps[0] * (i + di), low[1] + steps[1] * (j + dj),
                                       low[2] + steps[2] * (k + dk), ndc)
                    in_front = _in_front(x - place[0], y - place[1], z - place[2], depth, rotation, focal, band, ndc)
                    if in_front >= -band:  # not hidden
                        totals[di, dj, dk] += min(in_front / band, 1.0)
                        counts[di, dj, dk] += 1
                    elif in_front < 0.0:
                        behinds[di, dj, dk] += 1


@njit(cache=True, error_model='numpy')
def _is_behind(x, y, z, radius, farthest, rotation, focal, band):
    """Whether all of a ball is hidden."""
    height, width = farthest.shape
    row, column, away = pixel_of(x, y, z, rotation, focal, height, width)
    if not (away > radius and focal * radius < (REACH - 1) * (away - radius) and 0.0 <= row <= height - 1
            and 0.0 <= column <= width - 1):
        return False
    return farthest[int(row + 0.5), int(column + 0.5)] - (away - radius) < -band


@njit(cache=True, error_model='numpy')
def _in_front(x, y, z, depth, rotation, focal, band, ndc):
    """How far a point is in front of what a camera sees; not a number where it is not in the picture."""
    height, width = depth.shape
    row, column, away = pixel_of(x, y, z, rotation, focal, height, width)
    if not (away > 0.0 and 0.0 <= row <= height - 1 and 0.0 <= column <= width - 1):
        return np.nan
    top, left = min(int(row), height - 2), min(int(column), width - 2)
    down, right = row - top, column - left
    a, b, c, d = depth[top, left], depth[top, left + 1], depth[top + 1, left], depth[top + 1, left + 1]
    if max(a, b, c, d) - min(a, b, c, d) < band:  # a surface, and no edge
        seen = (1 - down) * ((1 - right) * a + right * b) + down * ((1 - right) * c + right * d)
    else:
        seen = depth[int(row + 0.5), int(column + 0.5)]
    return seen - measured(away, ndc)
