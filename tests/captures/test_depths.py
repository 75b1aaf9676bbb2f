"""depths.py: nearest and farthest depths by hand-placed points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from captured import ball_of_points, capture_of, ring
from conftest import turn

from nerf.captures.depths import depth_ranges, observed_depths, projected_depths
from nerf.captures.rules import PlacementRules


def test_the_bounds_of_a_view_are_from_the_depths_of_the_points_that_it_observes():
    poses = np.tile(np.eye(4)[None, :3], (3, 1, 1))
    poses[:, 2, 3] = [0.0, 1.0, 2.0]  # each a unit behind the one before
    points = np.zeros((203, 3))
    points[:201, 2] = -np.linspace(10.0, 30.0, 201)
    points[201:, 2] = [-0.1, -500.0]  # not observed, or by a view of few points
    cameras, seen = capture_of(poses).cameras, [np.arange(201), np.arange(101), np.array([201, 202])]
    np.testing.assert_allclose(depth_ranges(cameras, points, seen), [[10.2, 29.8], [11.1, 20.9], [10.2, 29.8]])
    assert np.array_equal(observed_depths(cameras, 2, points[seen[2]]), [2.1, 502.0])
    assert depth_ranges(cameras, points, [np.arange(5)] * 3) is None
    few = depth_ranges(cameras, points, [np.arange(5)] * 3, PlacementRules(fewest_points=5, extremes=(0.0, 100.0)))
    np.testing.assert_allclose(few, [[10.0, 10.4], [11.0, 11.4], [12.0, 12.4]])
    assert depth_ranges(cameras, None) is None
    assert depth_ranges(cameras, np.zeros((0, 3))) is None


def test_points_behind_a_camera_have_no_depth():
    cameras = capture_of(np.eye(4)[None, :3]).cameras
    assert observed_depths(cameras, 0, np.array([[0.0, 0.0, 3.0], [5.0, 0.0, -2.0]])).tolist() == [2.0]


def test_without_tracks_the_points_of_a_view_are_those_that_project_into_it():
    poses = np.eye(4)[None, :3].repeat(2, 0)
    poses[1, :, :3] = turn([0, 1, 0], 180.0)
    points = np.array([[0.0, 0.0, -4.0], [1.99, 0.0, -4.0], [2.01, 0.0, -4.0], [0.0, 1.49, -4.0], [0.0, -1.51, -4.0],
                       [0.0, 0.0, 3.0], [1.0, 1.0, 0.0]])  # 40x30 pixels, focal length 40: up to x = 2 and y = 1.5
    cameras = capture_of(poses).cameras
    assert projected_depths(cameras, 0, points).tolist() == [4.0, 4.0, 4.0]
    assert projected_depths(cameras, 1, points) == pytest.approx([3.0])
    at_the_top = cameras.intrinsics * torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    below = replace(cameras, intrinsics=at_the_top)  # the principal point
    assert projected_depths(below, 0, points[3:4]).tolist() == []
    assert projected_depths(below, 0, points[4:5]).tolist() == [4.0]


def test_the_depth_of_a_fisheye_is_the_distance_along_its_rays():
    points = np.array([[3.0, 0.0, -4.0], [4.0, 0.0, 1.0]])  # at 36.9 and 104 degrees from the axis
    cameras = capture_of(np.eye(4)[None, :3].repeat(2, 0), focal=30.0, fisheye=[True, False]).cameras
    assert projected_depths(cameras, 0, points) == pytest.approx([5.0])  # 30 times 0.64 is 19 of 20 pixels to the right
    assert len(projected_depths(cameras, 1, points)) == 0  # a pinhole has it 22 pixels to the right


def test_of_very_many_points_some_are_projected():
    cameras, points = capture_of(ring(np.linspace(0.0, 330.0, 12))).cameras, ball_of_points()
    everything = depth_ranges(cameras, points)
    some = depth_ranges(cameras, points, rules=PlacementRules(most_points=150))
    assert not np.array_equal(some, everything)
    np.testing.assert_allclose(some, everything, rtol=0.05)
