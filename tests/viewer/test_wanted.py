"""nerf/viewer/wanted.py: cameras that draw a view at several sizes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from nerf.camera_path import pinholes
from nerf.viewer.wanted import MOST_PIXELS, camera_of, finer, size_of
from viewer_scene import SCENE, wanted_of


def test_the_middle_of_a_picture_looks_along_the_axis_and_its_edges_along_the_field_of_view():
    wanted = wanted_of(SCENE)
    camera = pinholes([wanted], 40, 60)
    row, column = torch.tensor([19.5, -0.5]), torch.tensor([29.5, 29.5])  # the middle, and the top edge
    _, directions = camera.rays(torch.zeros(2, dtype=torch.int64), row, column)
    forward, up = -wanted.pose[:, 2], wanted.pose[:, 1]
    np.testing.assert_allclose(directions[0], forward, atol=1e-6)
    np.testing.assert_allclose(directions[1], forward + math.tan(0.35) * up, atol=1e-6)


def test_pictures_have_the_shape_of_the_window_and_grow_to_its_size():
    wanted = wanted_of(SCENE, height=600, width=800)
    camera, sizes = camera_of(wanted, SCENE, 3000), []
    while camera is not None:
        sizes.append(camera.size(0))
        camera = finer(wanted, SCENE, camera)
    assert sizes == [(47, 63), (141, 188), (600, 800)]
    assert camera_of(wanted, SCENE, 1).size(0) == (24, 32)  # no smaller
    assert camera_of(wanted_of(SCENE, height=3000, width=1500), SCENE).size(0) == (1280, 640)  # no larger


def test_an_error_is_drawn_through_the_pixels_of_the_photograph():
    wanted = wanted_of(SCENE, 2, kind='error', photograph=2)
    camera = camera_of(wanted, SCENE)
    assert camera.size(0) == (20, 30)
    np.testing.assert_array_equal(camera.intrinsics[0], SCENE.cameras.intrinsics[2])
    assert camera_of(wanted, SCENE, 160).size(0) == (10, 15)
    assert finer(wanted, SCENE, camera) is None
    assert camera_of(wanted_of(SCENE, kind='error'), SCENE).size(0) == (60, 80)  # no photograph


def test_a_picture_through_a_photographs_own_pixels_is_clipped_too():
    """Views of photographs have bounds of their own."""
    own = torch.tensor([[2.0 + i, 50.0] for i in range(len(SCENE.cameras))])
    scene = replace(SCENE, cameras=replace(SCENE.cameras, bounds=own))

    def bounds(**more) -> list[float]:
        return camera_of(wanted_of(scene, kind='error', photograph=2, **more), scene, 160).bounds.tolist()
    assert bounds() == [[4.0, 50.0]]
    assert bounds(near=1.0, far=60.0) == [[4.0, 50.0]]
    assert bounds(near=5.0, far=7.0) == [[5.0, 7.0]]
    np.testing.assert_allclose(bounds(near=5.0, far=1.0), [[5.0, 5.001]])


def test_a_saved_picture_has_limited_pixels():
    assert size_of(wanted_of(SCENE), 1000) == (750, 1000)
    height, width = size_of(wanted_of(SCENE, height=1000, width=10), 8192)
    assert height * width <= 1.01 * MOST_PIXELS
    assert height / width == pytest.approx(100, rel=0.01)
