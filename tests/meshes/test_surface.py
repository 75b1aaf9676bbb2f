"""nerf/meshes/surface.py: level, box and surface of a density, and the surface that cameras see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from known_fields import Solid
from known_surfaces import (
    AROUND, BOX, NEAR_BALL, RADIUS, SMALL_BOX, THRESHOLD, ball_distance, balls_in_ndc, nine_cameras_in_ndc,
    one_camera_in_ndc, red_and_blue, red_ball, scene_around, shell, steep_ball, two_coloured_ball_in_ndc, view_of_ball,
)

from nerf.meshes.box import box_of_surface
from nerf.meshes.depth_fusion import fused_depths
from nerf.meshes.extraction import grid_axes, marching_cubes
from nerf.meshes.options import MeshSettings
from nerf.meshes.surface import density_surface, fused_surface, outline_shift, surface_level
from nerf.meshes.triangles import vertex_normals
from nerf.runtime.errors import UserError
from nerf.space import Unbounded

COARSE = MeshSettings(survey=49)  # a survey that is fast


@pytest.mark.parametrize('density', [400.0, 8000.0])
def test_the_level_is_the_density_that_rays_reach_where_half_of_their_light_has_stopped(density):
    """Density rises evenly inwards, by `density` per unit."""
    rising = Solid(lambda points: density * (RADIUS - points.norm(dim=-1)).clamp(min=0.0), red_and_blue)
    level = surface_level(rising.sampler(), scene_around())
    straight = np.sqrt(2.0 * np.log(2.0) / density)  # how deep a ray towards the middle gets: density t^2 / 2 = ln 2
    assert level == pytest.approx(0.82 * density * straight, rel=0.05)  # most rays come aslant


def test_a_field_without_a_surface_is_an_error():
    with pytest.raises(UserError, match='stops no training ray'):
        surface_level(shell(0.1).sampler(), scene_around())


def test_the_level_of_a_field_in_ndc_lies_between_its_densities_outside_and_inside():
    level = surface_level(two_coloured_ball_in_ndc().sampler(), nine_cameras_in_ndc())
    assert 0.0 < level <= 400.0


def test_the_surface_of_a_density_lies_where_the_density_has_its_level():
    axes = grid_axes(BOX, 40)
    surface = density_surface(red_ball().sampler(), axes, 3.0 / 39, THRESHOLD)
    assert np.abs(ball_distance(surface.vertices)).max() < 0.005
    assert trimesh.Trimesh(surface.vertices, surface.faces, process=False).is_watertight
    assert surface.words == 'at density 25'


def test_floaters_smaller_than_a_share_of_the_surface_are_dropped():
    axes = grid_axes(BOX, 64)
    centres, radii = torch.tensor([[0.0, 0.0, 0.0], [1.1, 1.1, 1.1]]), torch.tensor([0.8, 0.12])

    def density(points):
        depths = radii - (points[:, None] - centres).norm(dim=-1)
        return THRESHOLD * (1.0 + depths.amax(-1) / 0.1).clamp(0.0, 2.0)
    both, large = (density_surface(Solid(density, red_and_blue).sampler(), axes, 3.0 / 63, THRESHOLD, settings=settings)
                   for settings in (MeshSettings(floater_share=0.001), MeshSettings(floater_share=0.1)))
    assert (both.dropped, large.dropped) == (0, 1)
    assert len(both.faces) > len(large.faces)


def test_faces_from_ndc_are_cut_to_a_box_of_the_world():
    scene, (centre, radius, _) = one_camera_in_ndc(), NEAR_BALL
    box = box_of_surface(balls_in_ndc().sampler(), scene, THRESHOLD, settings=COARSE)
    surface = density_surface(balls_in_ndc().sampler(), grid_axes(box, 80), 2.0 / 79, THRESHOLD)
    half = np.stack([centre - 2.0 * radius, centre + [0.0, 2.0 * radius, 2.0 * radius]])
    part = surface.within(half, scene.space)
    assert 0 < len(part.faces) < len(surface.faces)
    with pytest.raises(UserError, match=r'mesh_bounds 5 5 -2 to 6 6 -1\.5 holds no surface; that is from -'):
        surface.within(np.array([[5.0, 5.0, -2.0], [6.0, 6.0, -1.5]]), scene.space)


# What cameras see


@pytest.mark.parametrize('outline', [0.46, 0.5, 0.53])
def test_the_surface_is_moved_to_where_the_outlines_are(outline):
    scene, axes, step = scene_around(24), grid_axes(SMALL_BOX, 64), 1.6 / 63
    views = [view_of_ball(pose, RADIUS, outline) for pose in scene.cameras.poses.double().numpy()]
    vertices, faces = marching_cubes(fused_depths(views, scene.space, axes, steep_ball, 50.0).values, axes, 0.0)
    assert np.median(np.linalg.norm(vertices, axis=1)) == pytest.approx(RADIUS, abs=0.01)
    shift = outline_shift(views, vertices, vertex_normals(vertices, faces), step)
    assert shift == pytest.approx(outline - RADIUS, abs=0.01)
    moved = fused_surface(views, scene.space, axes, step, steep_ball, 50.0)
    assert np.median(np.linalg.norm(moved.vertices, axis=1)) == pytest.approx(outline, abs=0.01)
    assert moved.words.startswith('as the training cameras see it, moved outwards by ')


def test_the_surface_stays_if_too_few_outlines_are_seen():
    scene, axes = scene_around(24), grid_axes(SMALL_BOX, 64)
    views = [view_of_ball(pose, RADIUS, 0.46) for pose in scene.cameras.poses.double().numpy()]
    stays = fused_surface(views, scene.space, axes, 1.6 / 63, shell().sampler().density_array, 50.0,
                          MeshSettings(outline_fewest=10 ** 9))
    assert np.median(np.linalg.norm(stays.vertices, axis=1)) == pytest.approx(RADIUS, abs=0.01)
    assert stays.words == 'as the training cameras see it'


def test_without_bounds_the_surface_is_what_cameras_show_and_has_no_back():
    """Cameras are above a ball."""
    poses = [pose for pose in scene_around(24).cameras.poses.double().numpy() if pose[2, 3] > 1.0]
    views = [view_of_ball(pose, RADIUS, RADIUS) for pose in poses]
    closed, open_below = (fused_surface(views, space, grid_axes(SMALL_BOX, 64), 1.6 / 63, steep_ball, 50.0)
                          for space in (AROUND, Unbounded(1.2, 2.8)))
    assert trimesh.Trimesh(closed.vertices, closed.faces, process=False).is_watertight
    assert not trimesh.Trimesh(open_below.vertices, open_below.faces, process=False).is_watertight
    assert np.abs(np.linalg.norm(open_below.vertices, axis=1) - RADIUS).max() < 3.0 * 1.6 / 63
    assert open_below.vertices[:, 2].max() == pytest.approx(RADIUS, abs=0.02)
    assert open_below.vertices[:, 2].min() > -0.45


def test_without_bounds_a_box_that_nobody_sees_has_no_surface():
    views = [view_of_ball(pose, RADIUS, RADIUS) for pose in scene_around(4).cameras.poses.double().numpy()]
    axes = grid_axes(SMALL_BOX + [0.0, 0.0, 9.0], 32)
    with pytest.raises(UserError, match='see no surface in the box'):
        fused_surface(views, Unbounded(1.2, 2.8), axes, 1.6 / 31, steep_ball, 50.0)


def test_a_pictures_edge_is_no_outline():
    """Pictures end in the middle of a ball, before an opaque background."""
    scene, axes, step = scene_around(24), grid_axes(SMALL_BOX, 64), 1.6 / 63
    views = [view_of_ball(pose, RADIUS, RADIUS) for pose in scene.cameras.poses.double().numpy()]
    vertices, faces = marching_cubes(fused_depths(views, scene.space, axes, steep_ball, 50.0).values, axes, 0.0)
    around = [view._replace(depth=view.depth[:64], points=view.points[:64], opacity=np.ones_like(view.opacity[:64]))
              for view in views]
    assert outline_shift(around, vertices, vertex_normals(vertices, faces), step) == 0.0
