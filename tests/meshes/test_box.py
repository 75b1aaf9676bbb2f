"""nerf/meshes/box.py: box around a surface, and around what cameras look at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from known_surfaces import (
    BOX, THRESHOLD, balls_in_ndc, one_camera_in_ndc, red_ball, scene_around, three_cameras,
)

from nerf.cameras import Cameras
from nerf.meshes.box import box_of_surface, looked_at
from nerf.meshes.options import MeshSettings
from nerf.runtime.errors import UserError
from nerf.space import Unbounded

COARSE = MeshSettings(survey=49)  # a survey that is fast


def test_the_box_is_that_of_the_surface_and_is_printed(capsys):
    box = box_of_surface(red_ball().sampler(), three_cameras(), THRESHOLD, settings=COARSE)
    np.testing.assert_allclose(box, [[0.2, -0.3, -0.4], [1.2, 0.7, 0.6]], atol=0.3)
    line = capsys.readouterr().out
    assert line.startswith(f'box       {box[0, 0]:.3f} to {box[1, 0]:.3f}, ')
    assert 'mesh_bounds' not in line


def test_bounds_are_recommended_if_the_scene_has_none(capsys):
    scene = three_cameras()
    endless = replace(scene, space=Unbounded.around(scene.training_cameras, 2.0, 6.0, True))
    box_of_surface(red_ball().sampler(), endless, THRESHOLD, settings=COARSE)
    assert 'the scene goes on: --mesh_bounds' in capsys.readouterr().out
    for each, bounds in ((scene, None), (endless, BOX)):
        box_of_surface(red_ball().sampler(), each, THRESHOLD, bounds, COARSE)
        assert 'mesh_bounds' not in capsys.readouterr().out


def test_bounds_in_which_nothing_is_seen_are_one_line():
    behind = np.array([[-1.0, -1.0, 1.0], [1.0, 1.0, 2.0]])
    with pytest.raises(UserError, match='mesh_bounds -1 -1 1 to 1 1 2 is in no training view'):
        box_of_surface(balls_in_ndc().sampler(), one_camera_in_ndc(), THRESHOLD, behind, COARSE)


# What cameras look at


def test_the_box_is_where_most_pictures_overlap():
    """Five cameras on the z axis look along -z from z = 2, with 90 degrees of view. A sixth looks the other way."""
    cameras = scene_around(6, 80).cameras
    poses = torch.eye(4)[None, :3].repeat(6, 1, 1)
    poses[:, 2, 3] = 2.0
    poses[5, 0, 0] = poses[5, 2, 2] = -1.0
    cameras = replace(cameras, poses=poses, intrinsics=torch.tensor([40.0, 40.0, 40.0, 40.0]).double().repeat(6, 1),
                      bounds=torch.tensor([[1.0, 9.0]]).repeat(6, 1))
    step = 8.0 / 48
    box = looked_at(np.array([[-4.0] * 3, [4.0] * 3]), cameras, 0.1)
    np.testing.assert_allclose(box, [[-4.0, -4.0, -4.0], [4.0, 4.0, 1.0]], atol=2 * step)
    assert box[1, 2] >= 1.0 - 1e-6  # nearest depth of five cameras
    narrow = looked_at(np.array([[-4.0, -4.0, 0.0], [4.0, 4.0, 4.0]]), cameras, 0.1)
    np.testing.assert_allclose(narrow, [[-2.0, -2.0, 0.0], [2.0, 2.0, 1.0]], atol=2 * step)
    without = looked_at(np.array([[-4.0, -4.0, 0.0], [4.0, 4.0, 4.0]]), replace(cameras, bounds=None), 0.5)
    assert without[1, 2] == pytest.approx(1.5, abs=2 * step)


def test_a_fisheye_sees_what_is_beside_it():
    K = np.array([[30.0, 0.0, 45.0], [0.0, 30.0, 45.0], [0.0, 0.0, 1.0]])
    cameras = replace(Cameras.of_one_kind(np.eye(3, 4)[None], K, 90, 90), fisheye=torch.tensor([True]))
    box = looked_at(np.array([[-4.0, -0.1, -0.2], [4.0, 0.1, 0.0]]), cameras, 0.1)  # up to 86 degrees from the axis
    np.testing.assert_allclose(box[:, 0], [-2.8, 2.8], atol=0.2)


def test_cameras_that_look_at_different_places_leave_the_box_as_it_is():
    cameras = scene_around(6).cameras
    turned = cameras.poses.clone()
    turned[:, :, [0, 2]] *= -1.0  # outwards
    np.testing.assert_array_equal(looked_at(BOX, replace(cameras, poses=turned), 0.1), BOX)


def test_only_a_scene_without_bounds_is_cut_to_what_cameras_look_at():
    scene = three_cameras()
    narrow = replace(scene.cameras, intrinsics=scene.cameras.intrinsics * torch.tensor([10.0, 10.0, 1.0, 1.0]))
    scene = replace(scene, cameras=narrow)
    endless = replace(scene, space=Unbounded.around(scene.training_cameras, 2.0, 6.0, True))
    both = MeshSettings(survey=49, looking=1.0)
    small, whole = (box_of_surface(red_ball().sampler(), each, THRESHOLD, settings=both) for each in (endless, scene))
    assert whole[1, 0] > 1.1
    assert small[1, 0] < 0.7  # pictures are 0.64 wide there, and not all of them hold the ball
