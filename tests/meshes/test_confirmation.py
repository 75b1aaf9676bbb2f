"""nerf/meshes/confirmation.py: which depths other views confirm or deny."""

from __future__ import annotations

import numpy as np
import pytest
from known_surfaces import AROUND, RADIUS, SMALL_BOX, scene_around, steep_ball, view_of_ball

from nerf.meshes.confirmation import confirmed
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


@pytest.mark.parametrize('showing, passing, elsewhere, stays', [
    (1, 3, 0, False),  # a floater before one camera
    (2, 2, 0, False),
    (3, 1, 0, True),
    (2, 0, 2, True),  # a thin wall that two cameras see, and no other one looks at
    (1, 0, 3, True),
    (2, 1, 1, False)])
def test_a_plate_needs_three_views_or_all_that_look_at_it(showing, passing, elsewhere, stays):
    """Cameras show the plate, look past it at the wall, or look at another part of the wall."""
    places = [*0.05 * np.arange(showing + passing), *10.0 + 0.05 * np.arange(elsewhere)]
    views = [wall_with_plate(x, 2.0 if i < showing else None) for i, x in enumerate(places)]
    found = confirmed(views, AROUND, STEP)
    plate = views[0].depth == 2.0
    assert plate.sum() > 20
    assert np.isnan(found[0].depth[plate]).all() != stays
    assert (found[0].depth[plate] == 2.0).all() == stays
    np.testing.assert_array_equal(found[-1].depth, views[-1].depth)  # three views and more see the wall, or one alone


@pytest.mark.parametrize('apart, steps, stays', [(0.015, 0.0, True), (0.03, 0.0, False), (0.03, 2.0, True)])
def test_depths_agree_within_a_share_of_them_or_grid_steps(apart, steps, stays):
    """Depth is 2, of which 1% are 0.02; two grid steps are 0.04."""
    views = [wall_with_plate(0.05 * i, None, 2.0 if i == 2 else 2.0 + apart) for i in range(4)]
    found = confirmed(views, AROUND, 0.02, MeshSettings(confirmed_steps=steps))
    inner = np.s_[4:-4, 4:-4]  # other views see the place too
    assert np.isfinite(found[2].depth[inner]).all() == stays
    assert np.isnan(found[2].depth[inner]).all() != stays


def test_a_floater_of_one_view_is_no_surface():
    """One of few cameras around a ball sees a thing 0.2 before it."""
    poses, axes = scene_around(12).cameras.poses.double().numpy(), grid_axes(SMALL_BOX, 64)
    views = [view_of_ball(pose, RADIUS, RADIUS) for pose in poses]
    view, middle = views[5], np.s_[55:65, 55:65]
    nearer = view.depth.copy()
    nearer[middle] -= 0.2
    points = view.place + (nearer / view.depth)[..., None] * (view.points - view.place)
    views[5] = view._replace(depth=nearer, points=np.where(np.isfinite(nearer)[..., None], points, view.points
                                                           ).astype(np.float32))
    found = confirmed(views, AROUND, 1.6 / 63)
    assert np.isnan(found[5].depth[middle]).all()
    for before, after in zip(views, found):
        shown = np.isfinite(before.depth) & (np.abs(before.depth - np.median(before.depth[middle])) < 0.2)
        shown[middle] &= before is not views[5]
        np.testing.assert_array_equal(after.depth[shown], before.depth[shown])
    distances = fused_depths(found, AROUND, axes, steep_ball, 50.0)
    behind = points[60, 60] + 0.06 * (points[60, 60] - view.place) / np.linalg.norm(points[60, 60] - view.place)
    assert distances(np.float32([behind])) < 0
    assert distances(np.float32([points[60, 60] * 0.45 / np.linalg.norm(points[60, 60])])) > 0
