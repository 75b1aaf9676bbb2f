"""nerf/meshes/raster.py: the face that a pixel shows."""

from __future__ import annotations

import numpy as np

from nerf.meshes.raster import rasterised


def test_pixels_have_the_nearest_face_and_weights_in_space():
    points = np.array([[0.0, 0.0, 1.0], [10.0, 0.0, 1.0], [0.0, 10.0, 3.0],  # tilted away
                       [0.0, 0.0, 2.0], [9.0, 0.0, 2.0], [0.0, 9.0, 2.0], [20.0, 20.0, -1.0]])
    face, weights = rasterised(points, np.array([[0, 1, 2], [3, 5, 4], [0, 1, 6]]), 12, 12)
    assert face[0, 0] == 0
    assert face[8, 1] == 1  # there the tilted one is behind
    assert face[11, 11] == -1
    np.testing.assert_allclose(weights.sum(-1)[face >= 0], 1.0)
    share = 5 / 3 / (5 / 3 + 5)  # halfway up the picture, at depths 1 and 3
    np.testing.assert_allclose(weights[5, 0], [1 - share, 0.0, share], atol=1e-9)
