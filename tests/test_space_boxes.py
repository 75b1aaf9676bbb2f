"""nerf/space.py: boxes of what cameras see, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from load_blender import pose_spherical
from nerf.cameras import Cameras
from nerf.scene import centred_intrinsics
from nerf.space import NDC, Bounded, Unbounded
from run_nerf_helpers import ndc_points

NDC_SPACE = NDC(height=60, width=80, focal=50.0, farthest=10.0)


def cameras_at(poses: np.ndarray) -> Cameras:
    """Cameras of 80x60 pixels, focal length 50: from -0.8 to 0.78 in x / depth and -0.58 to 0.6 in y / depth."""
    return Cameras.of_one_kind(poses, centred_intrinsics(60, 80, 50.0), 60, 80)


def orbit(radii=(4.0, 4.0)) -> Cameras:
    """Cameras around the origin."""
    return cameras_at(np.stack([pose_spherical(120.0 * i, -30.0, radius)[:3] for i, radius in enumerate(radii)]))


def at_the_origin(count: int = 2) -> Cameras:
    return cameras_at(np.eye(4)[None, :3].repeat(count, 0))


def test_the_box_of_cameras_around_the_origin_is_the_cube_inside_them():
    np.testing.assert_allclose(Bounded(2.0, 6.0).box(orbit()), [[-2, -2, -2], [2, 2, 2]], atol=1e-6)


def test_the_cube_ends_where_the_rays_of_a_camera_in_the_mean_begin():
    np.testing.assert_allclose(Bounded(2.5, 6.0).box(orbit((3.0, 5.0))), [[-1.5] * 3, [1.5] * 3], atol=1e-6)


@pytest.mark.parametrize('surrounded', [True, False])
def test_the_box_of_cameras_whose_rays_begin_behind_the_origin_holds_what_they_see(surrounded):
    box = Bounded(2.0, 6.0, surrounded).box(at_the_origin())
    np.testing.assert_allclose(box, [[-4.8, -29 / 50 * 6, -6], [39 / 50 * 6, 3.6, -2]], rtol=1e-6)


def test_the_box_in_front_of_cameras_holds_the_corners_of_what_they_see():
    shifted = np.eye(4)[None, :3].repeat(2, 0)
    shifted[1, 0, 3] = 0.5
    box = Bounded(2.0, 6.0, surrounded=False).box(cameras_at(shifted))
    # From pixel 0 to pixel 79 and 0 to 59, at depth 6.
    np.testing.assert_allclose(box, [[-4.8, -29 / 50 * 6, -6], [0.5 + 39 / 50 * 6, 3.6, -2]], rtol=1e-6)


def test_the_box_holds_what_each_camera_sees_by_its_own_intrinsics_and_size():
    cameras = at_the_origin()
    cameras.sizes[1] = torch.tensor([20, 60])
    cameras.intrinsics[1] = torch.tensor([10.0, 50.0, 20.0, 10.0])  # fx, fy, cx, cy: from -2 to 3.9 in x / depth
    box = Bounded(2.0, 6.0, surrounded=False).box(cameras)
    np.testing.assert_allclose(box, [[-12, -29 / 50 * 6, -6], [3.9 * 6, 3.6, -2]], rtol=1e-6)


def test_the_box_in_ndc_ends_at_the_farthest_thing():
    box = NDC_SPACE.box(at_the_origin())
    expected = ndc_points(60, 80, 50.0, 1.0, torch.tensor([[-8.0, -29 / 5, -10.0], [39 / 5, 6.0, -1.0]]))
    np.testing.assert_allclose(box[:, 2], [-1.0, 0.8], atol=1e-6)
    np.testing.assert_allclose(box[0, :2], expected[0, :2], atol=1e-6)


def test_the_box_of_a_grid_in_ndc_reaches_to_infinity():
    # Seen from the origin a direction has one place in NDC: 2 * 50 / 80 * x / depth and 2 * 50 / 60 * y / depth.
    box = NDC_SPACE.grid_box(at_the_origin())
    np.testing.assert_allclose(box, [[-1.0, -29 / 30, -0.25], [39 / 40, 1.0, 0.25]], atol=1e-6)
    bounded = Bounded(2.0, 6.0, surrounded=False)
    np.testing.assert_array_equal(bounded.grid_box(at_the_origin()), bounded.box(at_the_origin()))


def test_what_cameras_see_is_more_than_the_cube_and_holds_several_groups_of_cameras():
    cameras, space = orbit((4.0, 4.0, 4.0)), Bounded(2.0, 6.0)
    box = space.seen_box(cameras)
    for view in range(3):
        rays = space.rays(*cameras.view_rays(view))
        for t in (2.0, 4.0, 6.0):
            points = (rays.origins + t * rays.directions).numpy()
            assert (points >= box[0] - 1e-5).all()
            assert (points <= box[1] + 1e-5).all()
    moved = space.seen_box(cameras, cameras.posed(cameras.poses + torch.tensor([0, 0, 0, 7.0])))
    np.testing.assert_allclose(moved[1], box[1] + 7.0, atol=1e-5)
    np.testing.assert_allclose(moved[0], box[0], atol=1e-5)


def test_a_pixel_at_the_origin_is_as_large_as_the_cameras_distance_over_the_focal_length():
    assert Bounded(2.0, 6.0).pixel_sides(orbit((3.0, 5.0))).tolist() == pytest.approx([3.0 / 50, 5.0 / 50])
    ahead = Bounded(2.0, 6.0, surrounded=False)
    assert ahead.pixel_sides(orbit((3.0, 5.0))).tolist() == pytest.approx([6.0 / 50] * 2)
    assert NDC_SPACE.pixel_sides(at_the_origin()).tolist() == [2.0 / 80] * 2


def test_a_camera_turns_around_the_origin_or_a_point_in_front_of_it():
    pose = orbit().poses[0].numpy()
    assert Bounded(2.0, 6.0).looking_distance(pose) == pytest.approx(4.0)
    assert NDC_SPACE.looking_distance(np.eye(3, 4)) == pytest.approx(2 / (1 + 1 / 10))
    assert Unbounded(2.0, 6.0, surrounded=False).looking_distance(pose) == pytest.approx(3.0)


# Without bounds


def test_cameras_around_the_origin_are_just_inside_the_unit_ball():
    space = Unbounded.around(orbit((3.0, 5.0)), 2.0, 6.0, surrounded=True)
    assert space.centre == (0.0, 0.0, 0.0)
    assert space.radius == pytest.approx(5.05)


def test_cameras_that_look_forward_have_the_ball_around_their_mean_and_what_is_near_in_it():
    shifted = np.eye(4)[None, :3].repeat(2, 0)
    shifted[:, 0, 3] = 3.0, 4.0
    space = Unbounded.around(cameras_at(shifted), 2.0, 6.0, surrounded=False)
    assert space == Unbounded(2.0, 6.0, False, (3.5, 0.0, 0.0), 2.5)  # 0.5 to a camera, 2 to its near bound


def test_the_contracted_box_holds_what_is_seen_up_to_infinity():
    cameras = at_the_origin()
    box = Unbounded.around(cameras, 2.0, 6.0, surrounded=False).grid_box(cameras)  # the ball reaches to the near bound

    def edge(*direction: float) -> np.ndarray:
        """Where a ray from the centre is at infinity."""
        return 2.0 * np.array(direction) / np.linalg.norm(direction)
    np.testing.assert_allclose(box[:, 0], [edge(-0.8, 0.0, -1.0)[0], edge(0.78, 0.0, -1.0)[0]], atol=0.01)
    np.testing.assert_allclose(box[:, 1], [edge(0.0, -0.58, -1.0)[1], edge(0.0, 0.6, -1.0)[1]], atol=0.01)
    assert box[0, 2] == pytest.approx(-2.0, abs=0.01)
    assert box[1, 2] == pytest.approx(-1.0 / np.sqrt(1.0 + 0.8 ** 2 + 0.6 ** 2), abs=0.01)  # a corner's near bound


def test_the_contracted_box_begins_at_the_bounds_of_each_view():
    cameras = orbit((4.0, 4.0, 4.0))
    space = Unbounded.around(cameras, 2.0, 6.0, surrounded=True)
    far_off = replace(cameras, bounds=torch.tensor([[1e4, 1e6]]).repeat(3, 1))
    whole, beyond = space.grid_box(cameras), space.grid_box(far_off)
    assert (beyond[0] >= whole[0] - 1e-6).all()
    assert np.abs(whole[1] - beyond[1]).max() > 1e-3
