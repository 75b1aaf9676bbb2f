"""nerf/meshes/depth_fusion.py: signed distances from depths, near what is seen and where nobody sees anything."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from known_surfaces import LEVEL, RADIUS, SMALL_BOX, scene_around, shell, steep_ball, view_of_ball

from nerf.meshes.depth_fusion import FusedDepths, fused_depths, with_hidden
from nerf.meshes.extraction import extract_surface, grid_axes, marching_cubes
from nerf.meshes.options import DEFAULTS, MeshSettings
from nerf.meshes.views import SeenFrom, drawn_views
from nerf.runtime.errors import UserError
from nerf.space import Unbounded

AXES = grid_axes(SMALL_BOX, 64)


def fused(views: list[SeenFrom]) -> FusedDepths:
    """Distances from views of `scene_around`, with the density of `shell` for hidden points."""
    return fused_depths(views, scene_around().space, AXES, shell().sampler().density_array, 100.0)


@pytest.mark.slow
def test_the_inner_wall_of_a_hollow_ball_is_no_surface():
    distances = fused(drawn_views(shell().sampler(), scene_around(), 1.6 / 63, 2_000_000))
    vertices, faces = marching_cubes(distances.values, AXES, 0.0)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * RADIUS ** 3, rel=0.05)
    assert np.abs(np.linalg.norm(vertices, axis=1) - RADIUS).max() < 0.03
    of_density = extract_surface(shell().sampler().density_array, AXES, 200.0)
    assert np.linalg.norm(of_density[0], axis=1).min() < 0.42  # a surface of the density has an inner wall
    assert (distances(np.float32([[0, 0, 0], [0.46, 0, 0]])) > 0).all()
    assert (distances(np.float32([[0.56, 0, 0], [0.7, 0.7, 0]])) < 0).all()


def test_hidden_points_are_outside_if_they_reach_the_border_of_a_scene_with_bounds():
    poses = scene_around().cameras.poses.double().numpy()
    views = [view_of_ball(pose, RADIUS, RADIUS) for pose in poses if pose[2, 3] > 1.0]  # from above alone
    distances = fused(views)
    assert distances(np.float32([[0, 0, -0.75]])) < 0
    assert distances(np.float32([[0, 0, 0.47]])) > 0
    endless = fused_depths(views, Unbounded(1.2, 2.8), AXES, shell().sampler().density_array, 100.0)
    assert (endless(np.float32([[0, 0, -0.75], [0, 0, 0], [0, 0, 0.47]])) > 0).all()
    assert endless(np.float32([[0, 0, 0.7]])) < 0


def test_unknown_depths_say_nothing():
    """Half of the cameras know no depth: the ball is that of the others."""
    poses = scene_around(24).cameras.poses.double().numpy()
    views = [view_of_ball(pose, RADIUS, RADIUS) for pose in poses]
    unknown = [view._replace(depth=np.full_like(view.depth, np.nan)) if i % 2 else view for i, view in enumerate(views)]
    np.testing.assert_allclose(fused(unknown).values, fused(views[::2]).values)


@pytest.mark.parametrize('opening', ['none', 'into what is seen', 'to the border'])
def test_hidden_points_are_inside_near_walls_and_where_the_field_is_dense(opening):
    """A hidden room with walls that are seen, whose half x < 32 is dense."""
    values, count, behind = np.full((64, 64, 64), -1.0, np.float32), np.full((64, 64, 64), 9), np.zeros((64, 64, 64))
    values[8:56, 8:56, 8:56] = 1.0
    room = np.zeros(values.shape, bool)
    room[12:52, 12:52, 12:52] = True
    if opening != 'none':
        room[36:48, 26:38, 0 if opening == 'to the border' else 8:12] = True
    count[room], behind[room], values[room] = 0, 5, -1.0
    dense = LEVEL * np.array([1.5, 2.5])  # not enough, and enough
    assert dense[0] < DEFAULTS.denser * LEVEL < dense[1]
    found = with_hidden(values, count, behind, np.zeros(3), np.ones(3),
                        lambda points: dense[(points[:, 0] < 32).astype(int)], LEVEL)
    np.testing.assert_array_equal(found[~room], values[~room])
    at = {'dense': (24, 32, 32), 'thin': (40, 32, 32), 'near a wall': (32 + 8, 50, 32)}
    inside = {'none': 'dense thin near', 'into what is seen': 'dense near', 'to the border': ''}[opening]
    for name, where in at.items():
        assert (found[where] > 0) == (name.split()[0] in inside), name


def test_nothing_seen_is_an_error():
    with pytest.raises(UserError, match='see no surface'):
        fused([view_of_ball(pose, 0.0, 0.0) for pose in scene_around(4).cameras.poses.double().numpy()])


@pytest.mark.parametrize('beside', [0.0, 0.5])
def test_distances_far_from_the_surface_are_those_of_the_whole_grid(beside):
    """Two balls, one of which hides a part of the other. A block of the whole grid is fused point by point."""
    views = []
    for i, pose in enumerate(scene_around(24).cameras.poses.double().numpy()):
        aside = np.array([0.0, beside, 0.0]) * (i % 2)
        moved = np.column_stack([pose[:, :3], pose[:, 3] + aside])
        view = view_of_ball(pose, RADIUS, RADIUS)
        views.append(view._replace(place=moved[:, 3], to_pixels=view_of_ball(moved, RADIUS, RADIUS).to_pixels,
                                   points=view.points + aside.astype(np.float32)))
    space = scene_around().space
    near_alone, whole = (fused_depths(views, space, AXES, steep_ball, LEVEL, settings).values
                         for settings in (DEFAULTS, MeshSettings(block=64)))
    margin, in_band = DEFAULTS.margin / DEFAULTS.band, np.abs(whole) < 0.9
    near = np.abs(whole) < margin
    assert in_band.mean() > 0.05
    assert near.mean() > 0.02
    np.testing.assert_allclose(near_alone[near], whole[near], rtol=0.0, atol=2e-5)  # float32 sums begin elsewhere
    assert np.isclose(near_alone, whole, rtol=0.0, atol=2e-5)[in_band].mean() > 0.9
    assert np.abs(near_alone[~near]).min() >= margin  # no other surface
    assert (np.sign(near_alone) == np.sign(whole)).mean() > 0.999
    assert (near_alone != whole).any()  # blocks far from the surface have one value
