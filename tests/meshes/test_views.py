"""nerf/meshes/views.py: depths and points that training cameras see, and the way from points to pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from known_surfaces import FOCAL, RADIUS, nine_cameras_in_ndc, scene_around, shell, two_coloured_ball_in_ndc

from nerf.meshes.options import MeshSettings
from nerf.meshes.views import drawn_views, pixel_matrix


@pytest.mark.parametrize('scene', [scene_around(4), nine_cameras_in_ndc()], ids=['bounded', 'ndc'])
def test_points_on_a_rays_way_are_at_its_pixel_and_have_its_depth(scene):
    """Rays are those of the cameras and the space, in double precision."""
    camera, space = scene.cameras.take([2]), scene.space
    row, column = torch.tensor([3, 20, 37]), torch.tensor([5, 21, 11])
    pose, focal = camera.poses[0].double().numpy(), float(camera.intrinsics[0, 0])
    origins, directions = camera.rays(torch.zeros(3, dtype=torch.long), row, column)
    matrix = pixel_matrix(pose, focal, *camera.size(0), space)
    for depth in (1.3, 2.0, 4.0):
        world = (origins + depth * directions).double()
        for points, before in ((world, np.eye(4)), (space.from_world(world), space.projection())):
            product = matrix @ before @ np.vstack([points.numpy().T, np.ones(3)])
            # Pixel (row, column) is at (row + 0.5, column + 0.5), and the cameras' rays go to (row, column).
            np.testing.assert_allclose(product[0] / product[2], row.numpy() - 0.5, atol=1e-4)
            np.testing.assert_allclose(product[1] / product[2], column.numpy() - 0.5, atol=1e-4)
            expected = -2.0 / depth if space.projective else depth
            np.testing.assert_allclose(product[3] / product[4], expected, rtol=1e-5)


def test_a_projection_is_the_way_to_the_world():
    for scene in (scene_around(4), nine_cameras_in_ndc()):
        points = torch.rand(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
        product = scene.space.projection() @ np.vstack([points.numpy().T, np.ones(20)])
        np.testing.assert_allclose((product[:3] / product[3]).T, scene.space.to_world(points).numpy())


def test_views_have_depths_along_the_cameras_axis_and_pixels_as_wide_as_a_step():
    step = 1.6 / 63
    views = drawn_views(shell().sampler(), scene_around(), step, 2_000_000, MeshSettings(views=2))
    assert len(views) == 2
    depth, side = views[1].depth, len(views[1].depth)
    assert side == pytest.approx(2.0 / FOCAL / step, abs=1.0)  # the picture's width at the origin, in steps
    assert depth[side // 2, side // 2] == pytest.approx(1.5, abs=0.02)
    assert np.isinf(depth[0, 0])
    radius = np.linalg.norm(views[1].points[np.isfinite(depth)], axis=-1)
    assert np.median(radius) == pytest.approx(RADIUS, abs=0.01)
    assert np.isinf(depth).mean() == pytest.approx(1.0 - np.pi * 0.25 / (1 - 0.25 / 4) / (2.0 / FOCAL) ** 2, abs=0.03)


def test_views_and_rays_are_no_more_than_asked_for():
    views = drawn_views(shell().sampler(), scene_around(), 1.6 / 63, 5000, MeshSettings(views=4))
    assert len(views) == 4
    assert 4500 < sum(view.depth.size for view in views) < 5800  # sides are rounded up
    poses = scene_around().cameras.poses[[0, 6, 12, 19]].double()
    np.testing.assert_allclose([view.place for view in views], poses[:, :, 3])


def test_depths_in_ndc_are_even_in_disparity():
    sampler, scene = two_coloured_ball_in_ndc().sampler(), nine_cameras_in_ndc()
    view = drawn_views(sampler, scene, 0.05, 100_000, MeshSettings(views=3))[1]  # from the origin
    side = len(view.depth)
    assert view.depth[side // 2, side // 2] == pytest.approx(-2.0 / 2.2, abs=0.01)  # the ball begins at z = -2.2
    assert np.isinf(view.depth[0, 0])
