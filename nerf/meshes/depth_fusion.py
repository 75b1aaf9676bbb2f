"""A field's surface as the training cameras see it: their depths fused into signed distances (Curless & Levoy 1996).

What no camera sees, the inner walls of a hollow thing above all, is no surface of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit, prange
from scipy import ndimage

from nerf.meshes.projection import pixel_of
from nerf.meshes.views import SOLID, SeenFrom
from nerf.runtime.errors import UserError

BAND = 4.0  # steps of the grid to which distances are cut off
HIDDEN_FROM = 3  # views, at least, that a point inside is hidden from
CLEAR = 6  # views that see far past a point, after which it is asked of no others
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

    What all cameras that look there see something in front of is inside, unless it reaches the grid's border.

    Raises:
        UserError: no camera sees anything in the grid.
    """
    low, shape = np.array([axis[0] for axis in axes]), [len(axis) for axis in axes]
    steps = np.array([axis[1] - axis[0] for axis in axes])
    total, count, behind = (np.zeros(shape, kind) for kind in (np.float32, np.uint16, np.uint16))
    for view in views:
        _fuse(total, count, behind, low, steps, view.depth, view.rotation, view.place, view.focal, BAND * steps.max())
    hidden, _ = ndimage.label((count == 0) & (behind >= HIDDEN_FROM))
    at_border = np.unique(np.concatenate([np.unique(np.take(hidden, end, axis)) for axis in range(3)
                                          for end in (0, -1)]))
    values = np.where(count > 0, -total / np.maximum(count, 1), np.where(np.isin(hidden, [0, *at_border]), -1.0, 1.0))
    if not (values > 0).any() or not (values < 0).any():
        raise UserError('the training cameras see no surface in the box of the mesh; train longer')
    return FusedDepths(low, steps, values.astype(np.float32))


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


@njit(parallel=True, cache=True)
def _fuse(total, count, behind, low, steps, depth, rotation, place, focal, band):
    """Adds what one camera sees, depth [H, W] along its axis, to the sums of distances and their numbers [X, Y, Z], or
    counts where points are behind it."""
    height, width = depth.shape
    for i in prange(total.shape[0]):
        for j in range(total.shape[1]):
            for k in range(total.shape[2]):
                if count[i, j, k] >= CLEAR and total[i, j, k] >= count[i, j, k]:
                    continue  # far in front of all that was seen
                row, column, away = pixel_of(
                    low[0] + steps[0] * i - place[0], low[1] + steps[1] * j - place[1],
                    low[2] + steps[2] * k - place[2], rotation, focal, height, width)
                if not (away > 0.0 and 0.0 <= row <= height - 1 and 0.0 <= column <= width - 1):
                    continue
                top, left = min(int(row), height - 2), min(int(column), width - 2)
                down, right = row - top, column - left
                a, b, c, d = depth[top, left], depth[top, left + 1], depth[top + 1, left], depth[top + 1, left + 1]
                if max(a, b, c, d) - min(a, b, c, d) < band:  # a surface, and no edge
                    seen = (1 - down) * ((1 - right) * a + right * b) + down * ((1 - right) * c + right * d)
                else:
                    seen = depth[int(row + 0.5), int(column + 0.5)]
                if seen - away >= -band:  # not hidden
                    total[i, j, k] += min((seen - away) / band, 1.0)
                    count[i, j, k] += 1
                else:
                    behind[i, j, k] += 1
