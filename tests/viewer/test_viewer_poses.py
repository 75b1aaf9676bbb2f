"""nerf/viewer/poses.py: viser's cameras and the scene's."""

from dataclasses import replace

import numpy as np
import pytest

from conftest import turn
from nerf.viewer.poses import camera_at, opencv_quaternion, opengl_pose, up_direction, vertical_fov
from viewer_scene import sky_scene


def test_visers_camera_without_a_turn_looks_along_z_with_y_down():
    pose = opengl_pose(np.array([1.0, 0.0, 0.0, 0.0]), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(pose[:, 0], [1, 0, 0])  # right
    np.testing.assert_array_equal(pose[:, 1], [0, -1, 0])  # up
    np.testing.assert_array_equal(pose[:, 2], [0, 0, -1])  # backward
    np.testing.assert_array_equal(pose[:, 3], [1, 2, 3])


def test_a_quarter_turn_about_z_takes_right_to_y():
    half = np.sqrt(0.5)
    pose = opengl_pose(np.array([half, 0.0, 0.0, half]), np.zeros(3))
    np.testing.assert_allclose(pose[:, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(pose[:, 1], [1, 0, 0], atol=1e-12)


@pytest.mark.parametrize('degrees', [0.0, 33.0, 120.0, 180.0, -77.0])
def test_quaternion_and_pose_are_inverse(degrees):
    pose = np.column_stack([turn([1, -2, 0.5], degrees), [1, 2, 3]])
    np.testing.assert_allclose(opengl_pose(3.0 * opencv_quaternion(pose), pose[:, 3]), pose, atol=1e-9)


def test_a_quaternion_of_nothing_is_no_pose():
    assert np.isnan(opengl_pose(np.zeros(4), np.zeros(3))[:, :3]).all()


def test_the_field_of_view_is_the_vertical_one():
    camera = sky_scene(height=20, width=30).cameras.take([0])  # focal length 45
    assert vertical_fov(camera) == pytest.approx(2 * np.arctan(10 / 45))


def test_up_is_the_axis_that_cameras_call_up():
    np.testing.assert_array_equal(up_direction(sky_scene(12)), [0, 0, 1])
    np.testing.assert_array_equal(up_direction(sky_scene(ndc=True)), [0, 1, 0])
    scene = sky_scene(ndc=True)
    poses = scene.cameras.poses.clone()
    poses[:, :, :3] = poses.new_tensor(turn([0, 0, 1], 30.0))
    tilted = replace(scene, cameras=replace(scene.cameras, poses=poses))
    np.testing.assert_allclose(up_direction(tilted), [-0.5, np.sqrt(0.75), 0], atol=1e-6)


def test_a_pose_is_that_of_a_training_camera_up_to_rounding():
    scene = replace(sky_scene(), i_train=np.array([0, 2]))
    pose = scene.cameras.poses[2].double().numpy()
    assert camera_at(scene, pose + 1e-5) == 2
    assert camera_at(scene, scene.cameras.poses[1].double().numpy()) is None  # not one to train on
    assert camera_at(scene, np.column_stack([turn([0, 0, 1], 1.0) @ pose[:, :3], pose[:, 3]])) is None
    assert camera_at(scene, pose + np.column_stack([np.zeros((3, 3)), [0.02, 0, 0]])) is None
