"""nerf/poses.py: conventions by hand-worked poses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import forward_cameras, look_at_origin, turn

from nerf.cameras import Cameras
from nerf.poses import (
    axes_length, colmap_pose, flip_axes, in_frame, into_frame, opencv_quaternion, opengl_pose, poses_avg,
    recenter_poses, rigid, rotation_matrix, say_unusual, scale_of, transform_poses, up_direction, vertical_fov,
    viewmatrix,
)

SIMILARITY = np.eye(4)
SIMILARITY[:3] = np.column_stack([0.037 * turn([2.0, -1.0, 0.5], 130.0), [50.0, -7.0, 3.0]])


def cameras_at(poses) -> Cameras:
    K = np.array([[45.0, 0.0, 15.0], [0.0, 45.0, 10.0], [0.0, 0.0, 1.0]])
    return Cameras.of_one_kind(np.asarray(poses), K, 20, 30)


# viser


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


# COLMAP and OpenCV


def test_a_quaternion_turns_about_its_axis_by_twice_its_angle():
    axis = np.array([1.0, -2.0, 0.5]) / np.linalg.norm([1.0, -2.0, 0.5])
    half = np.radians(25.0)
    np.testing.assert_allclose(rotation_matrix([np.cos(half), *(np.sin(half) * axis)]), turn(axis, 50.0), atol=1e-12)


def test_colmaps_camera_looks_where_colmap_has_it():
    """The rotation turns world to camera, so that the camera's axes are its rows."""
    rotation, translation = turn([1.0, -2.0, 0.5], 50.0), np.array([0.5, -1.0, 2.0])
    pose = colmap_pose(rotation, translation)
    np.testing.assert_allclose(pose[:, 0], rotation[0], atol=1e-12)  # right
    np.testing.assert_allclose(pose[:, 1], -rotation[1], atol=1e-12)  # up, where COLMAP has down
    np.testing.assert_allclose(pose[:, 2], -rotation[2], atol=1e-12)  # backwards, where COLMAP has forwards
    np.testing.assert_allclose(rotation @ pose[:, 3] + translation, 0, atol=1e-12)


def test_axes_are_flipped_there_and_back():
    poses = np.stack([look_at_origin(i, 0.3, 2.0) for i in range(3)])
    for some in (poses, poses[:, :3], poses[0]):
        flipped = flip_axes(some)
        np.testing.assert_array_equal(flipped[..., [0, 3]], some[..., [0, 3]])
        np.testing.assert_array_equal(flipped[..., 1:3], -some[..., 1:3])
        np.testing.assert_array_equal(flip_axes(flipped), some)


def test_a_nearly_rigid_pose_is_made_rigid():
    pose = np.column_stack([1.0005 * turn([1, 2, 3], 40.0), [5, 6, 7]])
    np.testing.assert_allclose(rigid(pose)[:, :3], turn([1, 2, 3], 40.0), atol=1e-12)
    assert rigid(pose)[:, 3].tolist() == [5, 6, 7]


def test_a_scale_that_all_axes_share_is_divided_out():
    pose = np.column_stack([0.01 * turn([1, 2, 3], 40.0), [5, 6, 7]])
    np.testing.assert_allclose(rigid(pose), np.column_stack([turn([1, 2, 3], 40.0), [5, 6, 7]]), atol=1e-12)
    assert axes_length(pose) == pytest.approx(0.01)


def ring(count: int = 12, distance: float = 3.0) -> np.ndarray:
    """Poses [count, 3, 4] that look at (5, -2, 1) from two heights."""
    poses = np.stack([look_at_origin(2.0 * np.pi * i / count, 0.3 + 0.4 * (i % 2), distance)[:3] for i in range(count)])
    return poses + np.float64([5, -2, 1])[:, None] * [0, 0, 0, 1]


def outwards(poses: np.ndarray) -> np.ndarray:
    return poses * [1, -1, -1, 1]


@pytest.mark.parametrize(('poses', 'words'), [
    (ring(), []),
    (outwards(ring()), ['look away from one another', 'negate the second and the third column']),
    (outwards(ring(40)[:8]), ['look away from one another']),  # an arc of 70 degrees
    (forward_cameras(7), []), (outwards(forward_cameras(7)), []),
    (np.concatenate([outwards(ring())[:3], ring()[3:]]), []),
    (ring() * [2, 2, 2, 1], ['12 of 12 cameras have axes of length 2 to 2 instead of 1']),
    (ring() * [1, 1, -1, 1], ['12 of 12 cameras are mirrored', 'negate one row', 'look away']),
    (ring()[:1], [])])
def test_one_line_says_what_is_unusual_about_cameras(capsys, poses, words):
    say_unusual(Path('a.json'), poses)
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith('warning: a.json: ') for line in lines)
    assert bool(lines) == bool(words)
    assert all(word in ' '.join(lines) for word in words)


@pytest.mark.parametrize(('matrix', 'word'), [
    (np.full((3, 4), 1e11), 'above'), (np.full((3, 4), np.nan), 'not finite'),
    (np.diag([1.0, 1, -1, 1])[:3], 'mirrored'),
    (np.diag([1.0, 1, 1.002, 1])[:3], 'length'), (np.zeros((3, 4)), 'length')])
def test_a_matrix_that_is_no_pose_is_refused(matrix, word):
    with pytest.raises(ValueError, match=word):
        rigid(matrix)


# Frames


def test_a_camera_looks_against_backward_with_up_upwards():
    pose = viewmatrix(np.array([0.0, 0.0, 3.0]), np.array([0.2, 5.0, 1.0]), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(pose[:, 2:], [[0, 1], [0, 2], [1, 3]], atol=1e-12)
    np.testing.assert_allclose(pose[:, 0], np.array([5.0, -0.2, 0.0]) / np.hypot(5.0, 0.2), atol=1e-12)
    assert pose[1, 1] > 0.99
    assert np.linalg.det(pose[:, :3]) == pytest.approx(1.0)


def test_the_mean_camera_of_cameras_in_a_row_is_the_middle_one():
    poses = np.stack([np.column_stack([turn([0, 1, 0], angle), [angle, 0.0, 0.0]]) for angle in (-20.0, 0.0, 20.0)])
    np.testing.assert_allclose(poses_avg(poses), np.eye(3, 4), atol=1e-12)
    there = transform_poses(SIMILARITY, poses)
    np.testing.assert_allclose(poses_avg(there), there[1], atol=1e-12)
    np.testing.assert_allclose(recenter_poses(there)[1], np.eye(3, 4), atol=1e-12)
    np.testing.assert_allclose(recenter_poses(there)[0, :, 3], [-20.0 * 0.037, 0, 0], atol=1e-12)


def test_a_frame_and_its_similarity_agree():
    poses, frame = forward_cameras(4), look_at_origin(0.3, 0.4, 5.0)[:3]
    np.testing.assert_allclose(transform_poses(into_frame(frame, 1.0), poses), in_frame(poses, frame), atol=1e-12)
    twice = transform_poses(into_frame(frame, 2.0), poses)
    np.testing.assert_allclose(twice[:, :, 3], 2.0 * in_frame(poses, frame)[:, :, 3], atol=1e-12)
    np.testing.assert_allclose(in_frame(frame[None], frame)[0], np.eye(3, 4), atol=1e-12)


def test_a_similarity_carries_positions_and_keeps_axes_orthonormal():
    poses = forward_cameras(4)
    there = transform_poses(SIMILARITY, poses)
    assert scale_of(SIMILARITY) == pytest.approx(0.037)
    np.testing.assert_allclose(there[:, :, 3], poses[:, :, 3] @ SIMILARITY[:3, :3].T + SIMILARITY[:3, 3], atol=1e-12)
    np.testing.assert_allclose(there[:, :, :3], turn([2.0, -1.0, 0.5], 130.0) @ poses[:, :, :3], atol=1e-12)
    np.testing.assert_allclose(transform_poses(np.linalg.inv(SIMILARITY), there), poses, atol=1e-9)


# Cameras


def test_the_field_of_view_is_the_vertical_one():
    assert vertical_fov(cameras_at([np.eye(4)[:3]])) == pytest.approx(2 * np.arctan(10 / 45))


def test_up_is_the_axis_that_cameras_call_up():
    around = cameras_at([look_at_origin(2.0 * i, 0.4, 4.0)[:3] for i in range(12)])
    np.testing.assert_array_equal(up_direction(around), [0, 0, 1])
    np.testing.assert_array_equal(up_direction(cameras_at([np.eye(3, 4)] * 3)), [0, 1, 0])
    tilted = cameras_at([np.column_stack([turn([0, 0, 1], 30.0), np.zeros(3)])] * 3)
    np.testing.assert_allclose(up_direction(tilted), [-0.5, np.sqrt(0.75), 0], atol=1e-6)
    opposite = cameras_at([np.column_stack([turn([0, 0, 1], angle), np.zeros(3)]) for angle in (0.0, 180.0)])
    np.testing.assert_array_equal(up_direction(opposite), [0, 0, 1])  # their mean is 0
