"""Points to pixels, for compiled loops."""

from __future__ import annotations

from numba import njit


@njit(cache=True, error_model='numpy')
def pixel_of(x, y, z, rotation, focal, height, width):
    """Where a point, seen from a camera's place, is in its picture, and how far away along its axis: row, column and
    distance. It is in front of the camera where that is above 0."""
    away = -(rotation[0, 2] * x + rotation[1, 2] * y + rotation[2, 2] * z)
    across = rotation[0, 0] * x + rotation[1, 0] * y + rotation[2, 0] * z
    up = rotation[0, 1] * x + rotation[1, 1] * y + rotation[2, 1] * z
    return 0.5 * height - 0.5 - focal * up / away, 0.5 * width - 0.5 + focal * across / away, away
