"""Confirmation of depths: what one view shows enters a mesh if other views do not deny it."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from nerf.meshes.options import DEFAULTS, MeshSettings
from nerf.meshes.views import SeenFrom, onto_pixels, stacked
from nerf.space import Space


def confirmed(views: list[SeenFrom], space: Space, step: float, settings: MeshSettings = DEFAULTS) -> list[SeenFrom]:
    """Views in which depths that too few views confirm are NaN, unknown: fog, and mixtures at edges.

    A view confirms a point if it shows something at the point's depth, within `confirmed_share` of this depth or
    `confirmed_steps` grid steps, and denies it if it shows something farther away. A depth needs `confirming_views`,
    its own view among them. Where fewer views than that confirm or deny it, all of them must confirm it, because a
    place that few views see may not become a hole.
    """
    depth, sizes, to_pixels = stacked(views, space)
    within = settings.confirmed_steps * step
    found = []
    for own, view in enumerate(views):
        confirming, denying = np.ones(view.depth.shape, np.uint16), np.zeros(view.depth.shape, np.uint16)
        _count(view.points, view.depth, own, depth, sizes, to_pixels, settings.confirmed_share, within, confirming,
               denying)
        unknown = confirming < np.minimum(settings.confirming_views, confirming + denying)
        found.append(view._replace(depth=np.where(unknown, np.float32(np.nan), view.depth)))
    return found


@njit(parallel=True, cache=True, error_model='numpy')
def _count(points, seen, own, depth, sizes, to_pixels, share, within, confirming, denying):
    """Adds to the numbers [H, W] of views that confirm and that deny the points [H, W, 3] of view `own`. Depths
    [V, H', W'] of all views are those of `stacked`."""
    for row in prange(seen.shape[0]):
        for column in range(seen.shape[1]):
            if not np.isfinite(seen[row, column]):
                continue
            x, y, z = points[row, column]
            for v in range(len(depth)):
                verdict = 0 if v == own else _verdict(x, y, z, depth[v], sizes[v], to_pixels[v], share, within)
                confirming[row, column] += verdict > 0
                denying[row, column] += verdict < 0


@njit(cache=True, error_model='numpy')
def _verdict(x, y, z, depth, size, to_pixels, share, within):
    """1 if a view confirms a point, -1 if it denies the point, and 0 if it does not see the place. Of the four pixels
    around the point one must confirm it, or all must deny it."""
    row, column, away, over, under = onto_pixels(to_pixels, x, y, z, 1.0)
    row, column, measured = row / away, column / away, over / under
    if not (away > 0.0 and 0.0 <= row < size[0] - 1 and 0.0 <= column < size[1] - 1):
        return 0
    top, left, farther = int(row), int(column), 0
    tolerance = max(share * abs(measured), within)
    for i in range(2):
        for j in range(2):
            behind = depth[top + i, left + j] - measured
            if abs(behind) <= tolerance:
                return 1
            farther += behind > 0.0
    return -1 if farther == 4 else 0
