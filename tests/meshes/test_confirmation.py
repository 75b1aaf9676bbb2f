"""nerf/meshes/confirmation.py: which depths other views confirm or deny."""

from __future__ import annotations

import numpy as np
import pytest
from known_surfaces import AROUND, RADIUS, SMALL_BOX, scene_around, steep_ball, view_of_ball

from nerf.meshes.confirmation import confirmed, seen_faces
from nerf.meshes.depth_fusion import fused_depths
from nerf.meshes.extraction import grid_axes
from nerf.meshes.options import MeshSettings
from nerf.meshes.views import SeenFrom, pixel_matrix

SIZE, FOCAL = 40, 40.0
STEP = 1e-3  # of a grid so fine that a share of the depth decides


def wall_with_plate(x: float, plate: float | None, wall: float = 3.0) -> SeenFrom:
    """View along -z from (x, 0, 0) of a wall, and of a plate with |x| and |y| up to 0.2 at another depth before it."""
    pose = np.column_stack([np.eye(3), [x, 0.0, 0.0]])
    row, column = np.mgrid[:SIZE, :SIZE] + 0.5 - 0.5 * SIZE
    depth = np.full((SIZE, SIZE), wall, np.float32)
    if plate is not None:
        there = np.maximum(np.abs(x + plate * column / FOCAL), np.abs(plate * row / FOCAL)) <= 0.2
        depth[there] = plate
    points = pose[:, 3] + depth[..., None] * np.stack([column / FOCAL, -row / FOCAL, -np.ones_like(row)], -1)
    return SeenFrom(pose[:, 3], FOCAL, pixel_matrix(pose, FOCAL, SIZE, SIZE, AROUND), depth, points.astype(np.float32),
                    np.zeros((SIZE, SIZE, 3), np.float32), np.ones((SIZE, SIZE), np.float32))


@pytest.mark.parametrize(('showing', 'passing', 'elsewhere', 'stays'), [
    (1, 3, 0, False),  # a floater before one camera
    (2, 1, 0, False),
    (3, 2, 0, False),  # no majority of 70%
    (3, 1, 0, True),
    (2, 0, 2, True),  # a thin wall that two cameras see, and no other one looks at
    (1, 0, 3, True),
    (2, 1, 1, False)])
def test_a_plate_needs_three_views_and_most_of_those_or_all_if_fewer_look_at_it(showing, passing, elsewhere, stays):
    """Cameras show the plate, look past it at the wall, or look at another part of the wall."""
    places = [*0.05 * np.arange(showing + passing), *10.0 + 0.05 * np.arange(elsewhere)]
    views = [wall_with_plate(x, 2.0 if i < showing else None) for i, x in enumerate(places)]
    found = confirmed(views, AROUND, STEP)
    plate = views[0].depth == 2.0
    assert plate.sum() > 20
    assert np.isnan(found[0].depth[plate]).all() != stays
    assert (found[0].depth[plate] == 2.0).all() == stays
    np.testing.assert_array_equal(found[-1].depth, views[-1].depth)  # three views and more see the wall, or one alone


@pytest.mark.parametrize(('apart', 'steps', 'stays'), [(0.015, 0.0, True), (0.03, 0.0, False), (0.03, 2.0, True)])
def test_depths_agree_within_a_share_of_them_or_grid_steps(apart, steps, stays):
    """Depth is 2, of which 1% are 0.02; two grid steps are 0.04."""
    views = [wall_with_plate(0.05 * i, None, 2.0 if i == 2 else 2.0 + apart) for i in range(4)]
    found = confirmed(views, AROUND, 0.02, MeshSettings(confirmed_steps=steps))
    inner = np.s_[4:-4, 4:-4]  # other views see the place too
    assert np.isfinite(found[2].depth[inner]).all() == stays
    assert np.isnan(found[2].depth[inner]).all() != stays


def test_a_floater_of_one_view_is_no_surface():
    """One of few cameras around a ball sees a thing 0.2 before it."""
    poses, middle = scene_around(12).cameras.poses.double().numpy(), np.s_[55:65, 55:65]
    views = [view_of_ball(pose, RADIUS, RADIUS) for pose in poses]
    points = views[5].points[middle] + 0.1 * poses[5, :, 3].astype(np.float32)  # cameras are 2 away
    views[5].points[middle], views[5].depth[middle] = points, views[5].depth[middle] - 0.2
    found = confirmed(views, AROUND, 1.6 / 63)
    assert np.isnan(found[5].depth[middle]).all()
    lost = [np.isnan(view.depth).sum() / np.isfinite(other.depth).sum() for view, other in zip(found, views)]
    assert max(*lost[:5], *lost[6:]) < 0.02  # a few pixels at outlines
    distances = fused_depths(found, AROUND, grid_axes(SMALL_BOX, 64), steep_ball, 50.0)
    outwards = poses[5, :, 3] / 2.0
    assert distances(np.float32([(RADIUS + 0.15) * outwards])) < 0  # behind the floater
    assert distances(np.float32([(RADIUS - 0.05) * outwards])) > 0  # in the ball


# Faces


def sheet(depth: float, raised: int = 0, cells: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Square with a side of 2 at z = -depth, in cells of two faces, whose raised x raised middle points are 0.5 nearer
    to the cameras."""
    x, y = np.meshgrid(*2 * [np.linspace(-1.0, 1.0, cells + 1)], indexing='ij')
    z = np.full_like(x, -depth)
    middle = slice((cells + 1 - raised) // 2, (cells + 1 + raised) // 2)
    z[middle, middle] += 0.5
    at = np.arange(x.size).reshape(x.shape)
    a, b, c, d = (part.ravel() for part in (at[:-1, :-1], at[1:, :-1], at[1:, 1:], at[:-1, 1:]))
    return np.stack([x, y, z], -1).reshape(-1, 3).astype(np.float32), np.stack([a, b, c, a, c, d], 1).reshape(-1, 3)


def test_faces_that_no_view_shows_are_dropped():
    views = [wall_with_plate(0.05 * i, None) for i in range(3)]
    (wall, wall_faces), (plate, plate_faces) = sheet(3.0), sheet(2.0)
    vertices, faces = np.concatenate([wall, plate]), np.concatenate([wall_faces, plate_faces + len(wall)])
    kept, left = seen_faces(vertices, faces, views, AROUND, STEP)
    np.testing.assert_array_equal(kept, wall)
    np.testing.assert_array_equal(left, wall_faces)


@pytest.mark.parametrize(('hole_faces', 'dropped'), [(8, 0), (7, 8)])
def test_small_groups_of_faces_stay_since_they_would_be_holes(hole_faces, dropped):
    """The raised 3 x 3 points have 8 faces between them. Other faces have a corner that is seen."""
    views = [wall_with_plate(0.05 * i, None) for i in range(3)]
    vertices, faces = sheet(3.0, raised=3)
    _, left = seen_faces(vertices, faces, views, AROUND, STEP, MeshSettings(hole_faces=hole_faces))
    assert len(faces) - len(left) == dropped
