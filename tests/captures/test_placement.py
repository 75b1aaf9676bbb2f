"""placement.py: known rings, arcs and rows of cameras, wherever they are, come to their place in the scene."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from captured import ball_of_points, capture_of, ring
from conftest import forward_cameras, turn

from load_llff import load_llff_data, poses_avg, recenter_poses, render_path_spiral
from nerf.captures.capture import Capture
from nerf.captures.placement import (
    PlacementRules, ahead_of, axes_crossing, covered_arc, depth_ranges, in_view, leave_out_strays, nearest_and_farthest,
    place, render_path_orbit, up_axis,
)
from nerf.poses import transform_poses, viewmatrix
from nerf.runtime.errors import UserError

SIMILARITY = np.eye(4)  # what some structure from motion may have made of a scene
SIMILARITY[:3] = np.column_stack([0.037 * turn([2.0, -1.0, 0.5], 130.0), [50.0, -7.0, 3.0]])


def with_poses(capture: Capture, poses: np.ndarray, **changes) -> Capture:
    """The same capture with cameras at poses [N, 3, 4]."""
    return replace(capture, cameras=replace(capture.cameras, poses=torch.from_numpy(poses)), **changes)


def poses_of(capture: Capture) -> np.ndarray:
    return capture.cameras.poses.numpy()


def ranges_of(capture: Capture) -> np.ndarray | None:
    return depth_ranges(capture.cameras, capture.points, capture.seen)


def carried(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def captures() -> dict[str, Capture]:
    """Of each kind, with and without points."""
    around, forward = ring(np.linspace(0.0, 330.0, 12), [20.0, 40.0] * 6, [3.0, 5.0, 4.0] * 4), forward_cameras(7)
    wall = forward_points(forward)
    return {'around': capture_of(around, points=ball_of_points()), 'around without points': capture_of(around),
            'an arc': capture_of(ring(np.linspace(-60.0, 50.0, 9)), points=ball_of_points()),
            'forward': capture_of(forward, points=wall),
            'forward without points': capture_of(forward_cameras_that_meet())}


def forward_points(poses: np.ndarray, nearest: float = 5.0, farthest: float = 20.0, count: int = 2000) -> np.ndarray:
    """[count, 3] before the mean of some cameras, evenly from a depth to another."""
    depth, across = np.linspace(nearest, farthest, count), np.random.default_rng(1).uniform(-0.2, 0.2, (count, 2))
    local = np.column_stack([across, -np.ones(count)]) * depth[:, None]
    frame = poses_avg(poses)
    return local @ frame[:, :3].T + frame[:, 3]


def forward_cameras_that_meet(distance: float = 6.0) -> np.ndarray:
    """[9, 3, 4] on a square of side 2, that look at a point before its middle."""
    return np.stack([np.column_stack([_looking_at(np.array([x, y, 0.0]), np.array([0.0, 0.0, -distance])), [x, y, 0.0]])
                     for x in (-1.0, 0.0, 1.0) for y in (-1.0, 0.0, 1.0)])


def _looking_at(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """[3, 3] axes, y up."""
    backward = (position - target) / np.linalg.norm(position - target)
    right = np.cross([0.0, 1.0, 0.0], backward)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(backward, right), backward], 1)


# Where the scene is


@pytest.mark.parametrize('name', captures())
def test_a_capture_that_is_turned_scaled_and_moved_gives_the_same_scene(name):
    capture = captures()[name]
    points = None if capture.points is None else carried(SIMILARITY, capture.points)
    one, other = place(capture), place(with_poses(
        capture, transform_poses(SIMILARITY, poses_of(capture)), points=points))
    assert one.forward_facing == other.forward_facing == name.startswith('forward')
    assert one.has_points == other.has_points == (capture.points is not None)
    np.testing.assert_allclose(other.matrix @ SIMILARITY, one.matrix, atol=1e-9)
    for part in ('poses', 'bounds', 'render_poses', *['render_bounds'] * one.has_points):
        np.testing.assert_allclose(getattr(other, part), getattr(one, part), atol=1e-6, err_msg=part)


@pytest.mark.parametrize('name', captures())
def test_the_placement_carries_the_photographs_and_its_inverse_brings_points_back(name):
    capture = captures()[name]
    placement = place(capture)
    positions = poses_of(capture)[:, :, 3]
    np.testing.assert_allclose(placement.poses[:, :, 3], carried(placement.matrix, positions), atol=1e-9)
    axes = placement.poses[:, :, :3]
    np.testing.assert_allclose(axes.transpose(0, 2, 1) @ axes, np.broadcast_to(np.eye(3), axes.shape), atol=1e-9)
    assert (np.linalg.det(axes) > 0).all()
    points = ball_of_points()
    np.testing.assert_allclose(carried(placement.to_capture(), carried(placement.matrix, points)), points, atol=1e-9)


def test_cameras_around_something_are_upright_around_the_origin_and_4_away_in_the_mean():
    around = captures()['around']
    placement = place(with_poses(around, transform_poses(SIMILARITY, poses_of(around))))
    poses = placement.poses
    distances = np.linalg.norm(poses[:, :, 3], axis=1)
    np.testing.assert_allclose(distances, [3.0, 5.0, 4.0] * 4, rtol=1e-4)  # their mean is 4 already
    np.testing.assert_allclose(poses[:, 2, 3] / distances, np.sin(np.radians([20.0, 40.0] * 6)), atol=1e-4)
    np.testing.assert_allclose(poses[:, 2, 0], 0.0, atol=1e-6)  # right axes are level
    np.testing.assert_allclose(poses[0, :, 0], [1.0, 0.0, 0.0], atol=1e-6)  # the first one along x


def test_forward_facing_cameras_have_the_frame_of_the_llff_scenes_and_the_nearest_depth_at_four_thirds():
    placement = place(captures()['forward'])
    ranges = ranges_of(captures()['forward'])
    scale = 0.75 * ranges[:, 0].min()
    expected = recenter_poses(forward_cameras(7))
    np.testing.assert_allclose(placement.poses[:, :, :3], expected[:, :, :3], atol=1e-9)
    np.testing.assert_allclose(placement.poses[:, :, 3], expected[:, :, 3] / scale, atol=1e-9)
    assert placement.bounds[:, 0].min() == pytest.approx(0.9 / 0.75)


def test_the_fern_is_forward_facing_and_its_poses_are_those_of_its_loader_up_to_scale(shared):
    folder = shared / 'data' / 'nerf_llff_data' / 'fern'
    _, raw, _, _, _ = load_llff_data(folder, 8, recenter=False, bd_factor=None)
    images, poses, _, _, _ = load_llff_data(folder, 8)
    placement = place(capture_of(raw[:, :, :4], list(images), focal=float(raw[0, 2, 4])))
    assert placement.forward_facing
    np.testing.assert_allclose(placement.poses[:, :, :3], poses[:, :, :3], atol=1e-5)
    ratio = placement.poses[:, :, 3] / poses[:, :, 3]
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-2)
    assert 0.3 < np.median(ratio) < 3.0  # without points the nearest depth is guessed


def test_photographs_from_one_place_are_an_error_as_they_have_no_parallax():
    poses = np.stack([np.column_stack([turn([0, 0, 1], 30.0 * i), [1.0, 2.0, 3.0]]) for i in range(5)])
    capture = leave_out_strays(capture_of(poses))
    assert len(capture.paths) == 5
    with pytest.raises(UserError, match='all 5 photographs have the same camera position'):
        place(capture)


# Cameras that do not agree with the others


def with_stray(times: float, points: np.ndarray | None = None, i: int = 5) -> Capture:
    """Twelve cameras around a ball, of which one stands `times` as far away."""
    poses = captures()['around'].cameras.poses.numpy().copy()
    poses[i, :, 3] *= times
    return capture_of(poses, points=points)


@pytest.mark.parametrize('points', [None, ball_of_points()])
def test_a_camera_far_from_all_others_is_left_out_and_named(points, capsys):
    kept = leave_out_strays(with_stray(20.0, points))
    assert [path.name for path in kept.paths] == [f'{i:03d}.png' for i in range(12) if i != 5]
    assert [image[0, 0, 0] for image in kept.images] == [10 * i for i in range(12) if i != 5]
    assert kept.i_train.tolist() == [*range(1, 11)]
    assert kept.i_test.tolist() == kept.i_val.tolist() == [0]
    said = capsys.readouterr().err
    assert said.count('\n') == 1
    assert 'left out of training and testing: 005.png' in said
    assert 'far from all others' in said


@pytest.mark.parametrize('capture', [*captures().values(), with_stray(2.0), with_stray(4.0, ball_of_points())])
def test_honest_captures_keep_all_cameras(capture, capsys):
    assert leave_out_strays(capture) is capture
    assert not capsys.readouterr().err


@pytest.mark.parametrize('points', [True, False])
def test_a_drone_that_looks_straight_down_keeps_all_cameras(points):
    """Axes are parallel, and the last photograph is from twice the height."""
    across = np.stack(np.meshgrid(np.arange(8.0), np.arange(5.0)), -1).reshape(-1, 2)
    poses = np.tile(np.eye(4)[:3], (len(across), 1, 1))
    poses[:, :2, 3], poses[:, 2, 3] = across, 3.0
    poses[-1, 2, 3] = 6.0
    ground = np.column_stack([np.random.default_rng(0).uniform(-2.0, 10.0, (900, 2)), np.zeros(900)])
    capture = capture_of(poses, points=ground if points else None)
    assert leave_out_strays(capture) is capture
    poses[-1, 0, 3] = 500.0
    kept = leave_out_strays(capture_of(poses, points=ground if points else None))
    assert len(kept.paths) == len(poses) - 1


@pytest.mark.parametrize('tracks', [True, False])
def test_a_camera_that_sees_no_point_is_left_out_and_named(tracks, capsys):
    poses = captures()['around'].cameras.poses.numpy().copy()
    seen = [np.arange(30)] * 12
    if tracks:
        seen[5] = np.arange(3)
    else:
        poses[5, :, [0, 2]] *= -1.0  # looks outwards
    kept = leave_out_strays(capture_of(poses, points=ball_of_points(), seen=seen if tracks else None))
    assert '005.png' not in [path.name for path in kept.paths]
    assert len(kept.paths) == 11
    said = capsys.readouterr().err
    assert '005.png' in said
    assert 'sees hardly any sparse point' in said
    assert kept.seen is None or len(kept.seen) == 11


def test_of_a_capture_whose_only_test_view_is_a_stray_nothing_can_be_tested():
    with pytest.raises(UserError, match='no photograph is left to test on'):
        leave_out_strays(with_stray(20.0, i=0))


@pytest.mark.parametrize('name', ['around', 'around without points'])
def test_a_wrong_camera_that_is_not_found_hardly_changes_the_placement(name):
    capture = captures()[name]
    poses = poses_of(capture).copy()
    poses[5, :, 3] = 6.0 * poses[5, :, 3]
    one, other = place(capture), place(with_poses(capture, poses))
    np.testing.assert_allclose(other.matrix, one.matrix, rtol=0.05, atol=0.05)


def test_nearest_and_farthest_are_not_those_of_a_view_that_is_unlike_the_others():
    ranges = np.linspace([2.0, 9.0], [3.0, 8.0], 11)
    assert nearest_and_farthest(ranges) == (2.0, 9.0)
    ranges[3] = 0.7, 30.0
    assert nearest_and_farthest(ranges) == (0.7, 30.0)
    ranges[3] = 0.5, 40.0
    assert nearest_and_farthest(ranges) == (2.0, 9.0)
    assert nearest_and_farthest(ranges, PlacementRules(usual=6.0)) == (0.5, 40.0)


# Of which kind it is


def towards_a_front(distances) -> np.ndarray:
    """[N, 3, 4] cameras at distances [N] from a thing at the origin, which look at it along z within a few degrees."""
    angles = np.linspace(-0.1, 0.1, len(distances))
    places = [[distance * np.sin(angle), 0.0, distance * np.cos(angle)] for angle, distance in zip(angles, distances)]
    return np.stack([np.column_stack([_looking_at(np.array(place), np.zeros(3)), place]) for place in places])


@pytest.mark.parametrize(('distances', 'forward'), [
    ([5.0, 5.5, 4.5, 5.0, 5.2, 4.8, 5.3, 4.6, 5.4, 5.0], True),
    ([4.0, 5.5, 7.0, 9.0, 11.0, 12.0, 14.0, 17.0, 20.0, 24.0], False)])  # as tourists photograph a church
def test_a_capture_from_many_distances_is_not_forward_facing(distances, forward):
    front = ball_of_points() * [2.0, 2.0, 0.5]
    assert place(capture_of(towards_a_front(distances), points=front)).forward_facing == forward


def test_the_nearest_thing_decides_how_far_forward_facing_cameras_may_spread():
    row = np.tile(np.eye(4)[:3], (7, 1, 1))
    row[:, 0, 3] = np.linspace(-1.0, 1.0, 7)
    far, near = forward_points(row, 2.0, 20.0), forward_points(row, 0.6, 1.2, 200)
    assert place(capture_of(row, points=far, focal=20.0)).forward_facing
    mixed = capture_of(row, points=np.concatenate([far, near]), focal=20.0)  # half of it is farther than 10
    assert not place(mixed).forward_facing
    assert place(mixed, PlacementRules(aside=3.0)).forward_facing


def with_turned(poses: np.ndarray, i: int, degrees: float) -> np.ndarray:
    """One camera turned to the right where it stands."""
    poses = poses.copy()
    poses[i, :, :3] = poses[i, :, :3] @ turn([0.0, 1.0, 0.0], -degrees)
    return poses


@pytest.mark.parametrize(('poses', 'points', 'focal', 'forward'), [
    (forward_cameras_that_meet(), None, 40.0, True),
    (forward_cameras_that_meet(1.2), None, 40.0, False),  # they spread more than what they see is away
    (with_turned(forward_cameras(7), 3, 35.0), forward_points(forward_cameras(7)), 40.0, True),
    (with_turned(forward_cameras(7), 3, 55.0), forward_points(forward_cameras(7)), 40.0, False),
    (with_turned(forward_cameras(7), 3, 35.0), forward_points(forward_cameras(7)), 5.0, False),  # rays to the side
    (forward_cameras(7), forward_points(forward_cameras(7), 0.5, 1.5), 40.0, False),  # a wide row of a near thing
    (ring(np.linspace(-30.0, 30.0, 7)), ball_of_points(), 40.0, True),
    (ring(np.linspace(-60.0, 60.0, 7)), ball_of_points(), 40.0, False),
    (ring(np.linspace(0.0, 315.0, 8), 0.0), ball_of_points(), 40.0, False)])  # their mean axis is 0
def test_a_capture_is_forward_facing_where_all_look_one_way_at_what_is_farther_than_they_spread(
        poses, points, focal, forward):
    assert place(capture_of(poses, points=points, focal=focal)).forward_facing == forward


# Centre and up


def test_a_few_cameras_that_look_elsewhere_do_not_move_the_centre():
    poses = ring(np.linspace(0.0, 348.0, 30)) + np.array([0.0, 0.0, 0.0, 1.0]) * np.array([[1.0], [2.0], [3.0]])
    for i in (4, 11, 17):
        poses = with_turned(poses, i, 50.0)
    least_squares = np.eye(3) - poses[:, :, 2, None] * poses[:, None, :, 2]
    far_off = np.linalg.solve(least_squares.sum(0), (least_squares @ poses[:, :, 3:]).sum(0))[:, 0]
    assert np.linalg.norm(far_off - [1.0, 2.0, 3.0]) > 0.1
    assert np.linalg.norm(axes_crossing(poses) - [1.0, 2.0, 3.0]) < 0.02


def test_parallel_axes_cross_as_far_ahead_as_the_cameras_spread():
    poses = np.tile(np.eye(4)[None, :3], (3, 1, 1))
    poses[:, 0, 3] = [-2.0, 0.0, 2.0]
    np.testing.assert_allclose(axes_crossing(poses), [0.0, 0.0, -2.0], atol=1e-6)


def test_up_is_up_where_cameras_look_down_in_an_arc_from_one_side():
    poses = ring(np.linspace(-50.0, 50.0, 11), 40.0)
    mean = poses[:, :, 1].mean(0)
    assert np.degrees(np.arccos(mean[2] / np.linalg.norm(mean))) > 20.0
    np.testing.assert_allclose(up_axis(poses), [0.0, 0.0, 1.0], atol=1e-9)


def test_up_is_the_mean_of_the_up_axes_where_right_axes_tell_of_no_plane():
    poses = np.stack([np.column_stack([turn([0, 0, 1], roll), [i, 0.0, 0.0]]) for i, roll in enumerate((-10, 3, 7))])
    mean = poses[:, :, 1].mean(0)
    np.testing.assert_allclose(up_axis(poses), mean / np.linalg.norm(mean))


@pytest.mark.parametrize('tilt', [-4.0, 0.0, 4.0])
def test_up_is_behind_cameras_that_look_straight_down_with_their_up_axes_anywhere(tilt):
    poses = np.stack([np.column_stack([turn([0, 0, 1], yaw) @ turn([1, 0, 0], tilt), [yaw, 0.0, 9.0]])
                      for yaw in (0, 100, 190, 200, 290)])
    np.testing.assert_allclose(up_axis(poses), [0.0, 0.0, 1.0], atol=1e-9)


def test_up_is_the_side_of_the_cameras_up_axes_where_they_look_up():
    np.testing.assert_allclose(up_axis(ring(np.linspace(-50.0, 50.0, 11), -40.0)), [0.0, 0.0, 1.0], atol=1e-9)


# Bounds


def test_the_path_has_the_bounds_of_the_points_that_its_views_see():
    capture = captures()['around']  # around a ball of radius 1 at the origin, whose poles are out of no view
    placement = place(capture)
    distance = np.linalg.norm(placement.render_poses[:, :, 3], axis=1)
    np.testing.assert_allclose(placement.render_bounds[:, 0], 0.9 * (distance - 1.0), atol=0.1)
    np.testing.assert_allclose(placement.render_bounds[:, 1], 1.1 * (distance + 1.0), atol=0.1)
    assert np.ptp(distance) > 0.2
    assert place(captures()['around without points']).render_bounds is None
    assert place(captures()['forward']).render_bounds[:, 0].min() == pytest.approx(0.9 / 0.75, rel=0.1)


def test_without_points_bounds_are_shares_of_the_distance():
    around, forward = (place(captures()[name]).bounds for name in ('around without points', 'forward without points'))
    distances = np.array([3.0, 5.0, 4.0] * 4)
    np.testing.assert_allclose(around, np.stack([0.9 * 0.3 * distances, 1.1 * 3.0 * distances], 1), rtol=1e-4)
    outwards = ring(np.linspace(0.0, 330.0, 12), 0.0, [4.0] * 11 + [0.1])  # one is nearly at the centre
    near = place(capture_of(outwards)).bounds[:, 0]
    assert near[-1] == pytest.approx(0.2 * 0.9 * 0.3 * 4.0, rel=0.01)
    np.testing.assert_allclose(forward, np.tile([0.9 / 0.75, 1.1 / 0.75 * 4.0 / 0.4], (9, 1)), rtol=1e-6)


def test_a_forward_facing_path_is_the_spiral_of_the_llff_scenes():
    placement = place(captures()['forward'])
    np.testing.assert_allclose(placement.render_poses, render_path_spiral(
        placement.poses, placement.bounds / [0.9, 1.1]))


def test_a_placement_says_what_it_took_the_capture_for():
    assert 'around a centre' in place(captures()['around']).describe()
    assert 'guessed' in place(captures()['around without points']).describe()
    assert 'forward-facing' in place(captures()['forward']).describe()


def test_rules_decide_the_distance_and_what_is_forward_facing():
    capture = captures()['around']
    positions = place(capture, PlacementRules(distance=8.0)).poses[:, :, 3]
    assert np.linalg.norm(positions, axis=1).mean() == pytest.approx(8.0)
    assert not place(captures()['forward'], PlacementRules(widest=1.0)).forward_facing


def test_a_saved_placement_has_the_similarity(tmp_path):
    placement = place(captures()['forward'])
    placement.save(tmp_path / 'placement.json')
    saved = json.loads((tmp_path / 'placement.json').read_text())
    assert np.array_equal(saved['scene_from_capture'], placement.matrix)
    assert saved['forward_facing'] is True


# Nearest and farthest depths, by hand-placed points


def test_the_bounds_of_a_view_are_from_the_depths_of_the_points_that_it_observes():
    poses = np.tile(np.eye(4)[None, :3], (3, 1, 1))
    poses[:, 2, 3] = [0.0, 1.0, 2.0]  # each a unit behind the one before
    points = np.zeros((203, 3))
    points[:201, 2] = -np.linspace(10.0, 30.0, 201)
    points[201:, 2] = [-0.1, -500.0]  # not observed, or by a view of few points
    cameras, seen = capture_of(poses).cameras, [np.arange(201), np.arange(101), np.array([201, 202])]
    np.testing.assert_allclose(depth_ranges(cameras, points, seen), [[10.2, 29.8], [11.1, 20.9], [10.2, 29.8]])
    assert np.array_equal(ahead_of(cameras, 2, points[seen[2]]), [2.1, 502.0])
    assert depth_ranges(cameras, points, [np.arange(5)] * 3) is None
    few = depth_ranges(cameras, points, [np.arange(5)] * 3, PlacementRules(fewest_points=5, extremes=(0.0, 100.0)))
    np.testing.assert_allclose(few, [[10.0, 10.4], [11.0, 11.4], [12.0, 12.4]])
    assert depth_ranges(cameras, None) is None
    assert depth_ranges(cameras, np.zeros((0, 3))) is None


def test_points_behind_a_camera_have_no_depth():
    cameras = capture_of(np.eye(4)[None, :3]).cameras
    assert ahead_of(cameras, 0, np.array([[0.0, 0.0, 3.0], [5.0, 0.0, -2.0]])).tolist() == [2.0]


def test_without_tracks_the_points_of_a_view_are_those_that_project_into_it():
    poses = np.eye(4)[None, :3].repeat(2, 0)
    poses[1, :, :3] = turn([0, 1, 0], 180.0)
    points = np.array([[0.0, 0.0, -4.0], [1.99, 0.0, -4.0], [2.01, 0.0, -4.0], [0.0, 1.49, -4.0], [0.0, -1.51, -4.0],
                       [0.0, 0.0, 3.0], [1.0, 1.0, 0.0]])  # 40x30 pixels, focal length 40: up to x = 2 and y = 1.5
    cameras = capture_of(poses).cameras
    assert in_view(cameras, 0, points).depth.tolist() == [4.0, 4.0, 4.0]
    assert in_view(cameras, 1, points).depth == pytest.approx([3.0])
    at_the_top = cameras.intrinsics * torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    below = replace(cameras, intrinsics=at_the_top)  # the principal point
    assert in_view(below, 0, points[3:4]).depth.tolist() == []
    assert in_view(below, 0, points[4:5]).depth.tolist() == [4.0]


def test_the_depth_of_a_fisheye_is_the_distance_along_its_rays():
    points = np.array([[3.0, 0.0, -4.0], [4.0, 0.0, 1.0]])  # at 36.9 and 104 degrees from the axis
    cameras = capture_of(np.eye(4)[None, :3].repeat(2, 0), focal=30.0, fisheye=[True, False]).cameras
    assert in_view(cameras, 0, points).depth == pytest.approx([5.0])  # 19 of 20 pixels to the right
    assert len(in_view(cameras, 1, points).depth) == 0  # a pinhole has it 22 pixels to the right


def test_of_very_many_points_some_are_projected():
    cameras, points = capture_of(ring(np.linspace(0.0, 330.0, 12))).cameras, ball_of_points()
    everything = depth_ranges(cameras, points)
    some = depth_ranges(cameras, points, rules=PlacementRules(most_points=150))
    assert not np.array_equal(some, everything)
    np.testing.assert_allclose(some, everything, rtol=0.05)


# The path around rings, arcs and groups of cameras


def angle_of(poses: np.ndarray) -> np.ndarray:
    """Azimuths in degrees."""
    return np.degrees(np.arctan2(poses[:, 1, 3], poses[:, 0, 3]))


def check_upright(path: np.ndarray) -> None:
    np.testing.assert_allclose(path[:, 2, 0], 0.0, atol=1e-9)
    assert (path[:, 2, 1] > 0.0).all()


def test_the_orbit_closes_where_cameras_surround_the_origin_and_is_as_far_and_as_high_as_they_are():
    path = render_path_orbit(ring(np.linspace(0.0, 330.0, 12), 30.0, 5.0))
    assert path.shape == (120, 3, 4)
    check_upright(path)
    np.testing.assert_allclose(np.linalg.norm(path[:, :, 3], axis=1), 5.0)
    np.testing.assert_allclose(path[:, 2, 3], 2.5)
    np.testing.assert_allclose(path[:, :, 2], path[:, :, 3] / 5.0, atol=1e-9)  # they look at the origin
    np.testing.assert_allclose(np.diff(np.unwrap(angle_of(path), period=360.0)), 3.0)


def test_the_orbit_goes_to_and_fro_where_an_arc_was_photographed():
    path = render_path_orbit(ring(np.linspace(130.0, 230.0, 11), 10.0))  # across the cut at 180 degrees
    check_upright(path)
    angles = angle_of(path) % 360.0
    assert angles.min() == pytest.approx(130.0)
    assert angles.max() == pytest.approx(230.0)
    assert angles[0] == pytest.approx(130.0)
    assert angles[60] == pytest.approx(230.0)
    assert np.abs(np.diff(angles)).max() < 3.0


def test_the_orbit_follows_cameras_that_are_nearer_on_one_side():
    azimuths = np.linspace(0.0, 345.0, 24)
    path = render_path_orbit(ring(azimuths, 0.0, np.where(azimuths < 180.0, 3.0, 6.0)))
    distance = dict(zip(angle_of(path).round().astype(int) % 360, np.linalg.norm(path[:, :, 3], axis=1)))
    assert distance[90] == pytest.approx(3.0, abs=0.01)
    assert distance[270] == pytest.approx(6.0, abs=0.01)
    assert min(distance.values()) >= 3.0
    assert max(distance.values()) <= 6.0


def test_the_orbit_stays_with_the_largest_group_and_does_not_heed_cameras_overhead():
    poses = np.concatenate([ring(np.linspace(0.0, 40.0, 5), 20.0), ring(np.linspace(170.0, 250.0, 9), 20.0),
                            ring([100.0], 89.0), ring([300.0], 88.0)])
    angles = angle_of(render_path_orbit(poses)) % 360.0
    assert angles.min() == pytest.approx(170.0)
    assert angles.max() == pytest.approx(250.0)


def test_the_orbit_looks_outwards_where_the_cameras_do():
    poses = ring(np.linspace(0.0, 330.0, 12), 0.0, 1.0)
    poses[:, :, [0, 2]] *= -1.0
    path = render_path_orbit(poses)
    check_upright(path)
    np.testing.assert_allclose(path[:, :, 2], -path[:, :, 3] / np.linalg.norm(path[:, :, 3], axis=1)[:, None],
                               atol=0.02)


@pytest.mark.parametrize(('degrees', 'start', 'reach'), [
    ([0, 90, 180, 270], 0, 0), ([0, 59, 118, 177, 236, 301], 301, 236 + 59), ([10, 20, 30], 10, 20), ([5], 5, 0),
    ([0, 10, 100, 110, 120, 200], 100, 20), ([350, 0, 10, 100], -10, 20),
    ([0, 50, 100, 150, 200, 250, 310], None, None)])
def test_the_covered_arc_is_that_of_the_largest_group_without_a_gap(degrees, start, reach):
    first, length = covered_arc(np.radians(degrees))
    if reach is None:
        assert length is None
    else:
        assert np.degrees(first) % 360 == pytest.approx(start % 360)
        assert np.degrees(length) == pytest.approx(reach)


def test_gaps_and_views_are_rules():
    poses = ring([0.0, 50.0, 100.0, 150.0, 200.0, 250.0, 310.0], 10.0)
    assert render_path_orbit(poses, PlacementRules(path_views=7)).shape == (7, 3, 4)
    angles = angle_of(render_path_orbit(poses, PlacementRules(open_gap=55.0))) % 360.0
    assert not ((angles > 251.0) & (angles < 309.0)).any()  # with 60 degrees, the orbit is closed


def test_a_capture_without_points_whose_cameras_look_outwards_is_placed_around_a_centre():
    """The axes cross behind the cameras."""
    angles = np.radians(np.linspace(-25.0, 25.0, 9))
    backwards = -np.stack([np.sin(angles), np.zeros(9), -np.cos(angles)], 1)
    poses = np.stack([viewmatrix(back, np.array([0.0, 1.0, 0.0]), -back) for back in backwards])
    placement = place(capture_of(poses, points=None))
    assert not placement.forward_facing
    assert (placement.bounds[:, 0] > 0.0).all()
