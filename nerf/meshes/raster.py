"""Rasterisation of triangles: which face a pixel shows."""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(cache=True)
def rasterised(points, faces, height, width):
    """Rasterises faces with a depth buffer.

    Args:
        points: [V, 3] float64: x and y in pixels, whose centres are at whole numbers, and depth, above 0.
        faces: [F, 3] indices of the faces' corners.
        height, width: size of the picture in pixels.

    Returns:
        The nearest face [H, W] int64 at each pixel, -1 where there is none, and its barycentric weights [H, W, 3]
        float64 in space, not in the picture.
    """
    depth = np.full((height, width), np.inf)
    shown, weights = np.full((height, width), -1), np.zeros((height, width, 3))
    for f in range(len(faces)):
        a, b, c = points[faces[f, 0]], points[faces[f, 1]], points[faces[f, 2]]
        area = (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])
        if min(a[2], b[2], c[2]) <= 1e-6 or area == 0.0:
            continue
        top, bottom = max(math.ceil(min(a[1], b[1], c[1])), 0), min(math.floor(max(a[1], b[1], c[1])), height - 1)
        left, right = max(math.ceil(min(a[0], b[0], c[0])), 0), min(math.floor(max(a[0], b[0], c[0])), width - 1)
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                u = ((b[0] - column) * (c[1] - row) - (c[0] - column) * (b[1] - row)) / area
                v = ((c[0] - column) * (a[1] - row) - (a[0] - column) * (c[1] - row)) / area
                w = 1.0 - u - v
                if u < 0.0 or v < 0.0 or w < 0.0:
                    continue
                inverse = u / a[2] + v / b[2] + w / c[2]
                if 1.0 / inverse < depth[row, column]:
                    depth[row, column], shown[row, column] = 1.0 / inverse, f
                    weights[row, column] = u / a[2] / inverse, v / b[2] / inverse, w / c[2] / inverse
    return shown, weights
