"""nerf/captures/free_space.py: what hand-placed views of hand-placed points leave free."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from captured import capture_of

from nerf.captures.free_space import FreeSpace, FreeSpaceRules

RULES = FreeSpaceRules(tiles=8, around=0, share=0.9)  # tiles of 5 of the pictures' 40x30 pixels


def space_of(points, near: float = 2.0, shifts=(0.0,), rules: FreeSpaceRules = RULES) -> FreeSpace:
    """Free space of views from (shift, 0, 0) along -z, with a focal length of 40 pixels."""
    poses = np.tile(np.eye(3, 4), (len(shifts), 1, 1))
    poses[:, 0, 3] = shifts
    cameras = replace(capture_of(poses).cameras, bounds=torch.full((len(poses), 2), near))
    return FreeSpace(cameras, np.array(points, float), rules)


def counted(space: FreeSpace, places, radius: float = 0.0, views=None) -> list[int]:
    places = np.array(places, float)
    views = range(len(space.cameras)) if views is None else views
    return space.views_through(places, np.full(len(places), radius), views).tolist()


def test_space_is_free_up_to_a_share_of_the_nearest_points_depth():
    space = space_of([[0.1, -0.1, -10.0], [0.2, -0.2, -20.0]])  # both in the tile right below the centre
    assert counted(space, [[0.05, -0.05, -8.9], [0.05, -0.05, -9.1]]) == [1, 0]
    assert counted(space, [[0.05, -0.05, -8.9]], radius=0.2) == [0]
    assert counted(space, [[0.05, -0.05, 1.0], [5.0, 0.0, -5.0]]) == [0, 0]  # behind the camera, beside the picture


def test_where_no_points_are_around_the_near_bound_counts():
    space = space_of([[0.1, -0.1, -10.0]])
    assert counted(space, [[-0.5, 0.1, -1.9], [-0.5, 0.1, -2.1]]) == [1, 0]
    wider = space_of([[0.1, -0.1, -10.0]], rules=replace(RULES, around=3))  # of 8 x 6 tiles, the point's is (3, 4)
    assert counted(wider, [[-0.5, 0.1, -2.1], [-1.9, 0.1, -4.0]]) == [1, 0]  # tiles 2 and 4 away


def test_views_are_counted_and_only_those_that_are_asked_for():
    space = space_of([[0.1, -0.1, -10.0]], shifts=(0.0, 0.5, 9.0), rules=replace(RULES, around=2))
    place = [[0.1, -0.1, -8.0]]
    assert counted(space, place) == [2]  # the third view does not show it
    assert counted(space, place, views=[1]) == [1]


def test_depth_of_a_fisheye_is_a_distance():
    capture = capture_of(np.eye(3, 4)[None], focal=30.0, fisheye=[True])
    cameras = replace(capture.cameras, bounds=torch.tensor([[2.0, 9.0]]))
    direction = np.array([0.3, 0.0, -0.4]) / 0.5
    space = FreeSpace(cameras, direction[None] * 10.0, RULES)
    assert counted(space, [8.9 * direction, 9.1 * direction]) == [1, 0]
    assert space.depths[0].min() == pytest.approx(2.0)
