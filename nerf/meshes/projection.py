"""Points to pixels, for compiled loops.

`ndc` is (2 focal / W, 2 focal / H) where a field is in normalised device coordinates with the near plane at 1, else
(0, 0).
"""

from __future__ import annotations

from numba import njit


@njit(cache=True, error_model='numpy')
def pixel_of(x, y, z, rotation, focal, height, width):
    """Where a point, seen from a camera's place, is in its picture, and how far away along its axis: row, column and
    distance. It is in front of the camera where that is above 0."""
    away = -(rotation[0, 2] * x + rotation[1, 2] * y + rotation[2, 2] * z)
    across = rotation[0, 0] * x + rotation[1, 0] * y + rotation[2, 0] * z
    up = rotation[0, 1] * x + rotation[1, 1] * y + rotation[2, 1] * z
    scale = focal / away
    return 0.5 * height - 0.5 - scale * up, 0.5 * width - 0.5 + scale * across, away


@njit(cache=True, error_model='numpy')
def measured(away, ndc):
    """A distance along a camera's axis as the field measures it: in NDC, where depth is even in disparity, as
    -2 / away, which grows with it."""
    return away if ndc[0] == 0.0 else -2.0 / away
