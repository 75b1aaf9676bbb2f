"""nerf/meshes: where a field's surface is, few faces on it, what the cameras see of it, and textures."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from conftest import ROOT
from PIL import Image
from torch import nn

from load_blender import pose_spherical
from nerf.cameras import Cameras
from nerf.fields.interface import Model
from nerf.meshes.mesh import (
    _fused_surface, coloured_mesh, export_mesh, extract_surface, grid_axes, marching_cubes, write_mesh,
)
from nerf.meshes import depth_fusion
from nerf.meshes.depth_fusion import fused_depths
from nerf.meshes.faces import fewer_faces, onto_level, simplified, vertex_normals
from nerf.meshes.level import surface_level
from nerf.meshes.outlines import outline_shift
from nerf.meshes.raster import rasterised
from nerf.meshes.texture import seen_colours, textured
from nerf.meshes.topology import closedness, parted, without_flaps
from nerf.meshes.unwrapping import Layout, laid_out
from nerf.meshes.views import SeenFrom, drawn_views
from nerf.runtime.errors import UserError
from nerf.scene import Images, Scene, centred_intrinsics
from run_nerf_helpers import Composite, composite, disparity, ray_points, stratified_z, world_points

BOX = np.array([[-0.8, -0.8, -0.8], [0.8, 0.8, 0.8]])
RADIUS = 0.5
FOCAL = 0.9  # widths of a picture


def ball_density(points: np.ndarray) -> np.ndarray:
    """50 at the surface of a ball; it falls off exponentially, so that it is far from linear between grid points."""
    return (50.0 * np.exp((RADIUS - np.linalg.norm(points, axis=-1)) / 0.03)).astype(np.float32)


class Shell(Model):
    """A hollow ball, red where x > 0 and else blue, whose wall from radius 0.4 to 0.5 has some density."""

    def __init__(self, density: float = 400.0):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.wall, self.view_chunk = density, 4096

    def density(self, points):
        radius = points.norm(dim=-1)
        return torch.where((radius > 0.4) & (radius < RADIUS), self.wall, 0.0)

    def radiance(self, points, viewdirs):
        red = (points[..., :1] > 0).float()
        return torch.cat([red, torch.zeros_like(red), 1.0 - red], -1), self.density(points)

    def render(self, rays):
        z = stratified_z(rays.near, rays.far, 400)
        shown = composite(*self.radiance(ray_points(rays, z), rays.viewdirs), z, rays.directions)
        return Composite(shown.rgb, disparity(shown.depth, shown.acc), shown.acc, shown.weights[:, :1], shown.depth)


def scene_around(count: int = 20, size: int = 40) -> Scene:
    """Cameras 2 units from the origin, all around it and above and below."""
    poses = np.stack([pose_spherical(137.5 * i, 80.0 - 160.0 * i / (count - 1), 2.0)[:3] for i in range(count)])
    cameras = Cameras.of_one_kind(poses, centred_intrinsics(size, size, FOCAL * size), size, size)
    index = np.arange(count)
    return Scene(images=Images.of_one_size(np.zeros((count, size, size, 3), np.uint8)), cameras=cameras,
                 render_cameras=cameras.take([0, 1, 2, 3]), near=1.2, far=2.8, ndc=False, white_bkgd=False,
                 i_train=index, i_val=index[:1], i_test=index[:1], around=True)


# Where it is


@pytest.mark.parametrize('density', [20.0, 400.0])
def test_the_level_is_the_one_that_rays_reach_where_half_of_their_light_has_stopped(density):
    class Rising(Shell):
        """Density rises evenly inwards, by `density` a unit."""

        def density(self, points):
            return self.wall * (RADIUS - points.norm(dim=-1)).clamp(min=0.0) * 20.0
    level = surface_level(Rising(density), scene_around())
    straight = np.sqrt(2.0 * np.log(2.0) / (20.0 * density))  # how deep a ray towards the middle gets: a t^2 / 2 = ln 2
    assert level == pytest.approx(0.82 * 20.0 * density * straight, rel=0.05)  # most rays come aslant


def test_a_field_without_a_surface_is_an_error():
    with pytest.raises(UserError, match='stops no training ray'):
        surface_level(Shell(0.1), scene_around())


def test_vertices_are_moved_to_where_the_density_crosses_the_threshold():
    vertices, faces = extract_surface(ball_density, BOX, 24, 50.0)
    step = 1.6 / 23
    moved = onto_level(ball_density, vertices, vertex_normals(vertices, faces), step, 50.0)
    before, after = (np.abs(np.linalg.norm(part, axis=1) - RADIUS) for part in (vertices, moved))
    assert after.max() < 0.05 * step
    assert after.mean() < 0.3 * before.mean()
    aside = onto_level(lambda points: np.zeros(len(points), np.float32), vertices, vertices, step, 50.0)
    np.testing.assert_array_equal(aside, vertices)  # nothing crosses there


# Few faces


def test_faces_are_fewer_where_the_surface_stays_within_a_quarter_of_a_step():
    vertices, faces = extract_surface(ball_density, BOX, 80, 50.0)
    step = 1.6 / 79
    vertices = onto_level(ball_density, vertices, vertex_normals(vertices, faces), step, 50.0)
    few = trimesh.Trimesh(*fewer_faces(ball_density, vertices, faces, step, 50.0), process=False)
    assert len(few.faces) < len(faces) / 8
    points, _ = trimesh.sample.sample_surface(few, 5000, seed=1)
    assert np.quantile(np.abs(np.linalg.norm(points, axis=1) - RADIUS), 0.97) < 0.25 * step
    assert few.is_watertight
    assert few.volume == pytest.approx(4 / 3 * np.pi * RADIUS ** 3, rel=0.02)


@pytest.mark.parametrize('most', [500, 10 ** 9])
def test_the_number_of_faces_can_be_chosen(most):
    vertices, faces = extract_surface(ball_density, BOX, 40, 50.0)
    _, few = fewer_faces(ball_density, vertices, faces, 0.04, 50.0, most)
    assert len(few) == len(faces) if most > len(faces) else 0.9 * most < len(few) <= most


def test_a_simplified_mesh_looks_outwards():
    vertices, faces = extract_surface(ball_density, BOX, 40, 50.0)
    few = trimesh.Trimesh(*simplified(vertices, faces, 400), process=False)
    assert few.volume > 0
    assert few.is_watertight


def test_faces_that_lie_on_one_another_go():
    ball = trimesh.creation.icosphere(subdivisions=1)
    vertices = np.concatenate([ball.vertices, [[5, 5, 5]]]).astype(np.float32)
    flap = np.array([[0, 1, 42], [0, 42, 1]])
    without = without_flaps(vertices, np.concatenate([ball.faces, flap]))
    np.testing.assert_array_equal(without[0], vertices[:42])
    np.testing.assert_array_equal(without[1], ball.faces)
    a, b, c = ball.faces[-1]  # of three, one stays: without it there would be a hole
    of_three = without_flaps(vertices, np.concatenate([ball.faces, [[b, c, a], [c, b, a]]]))
    assert closedness(of_three[1]) == 'watertight'
    assert len(of_three[1]) == len(ball.faces)


@pytest.mark.parametrize('places', [[(0, 0, 0), (1, 1, 0), (2, 2, 0)], [(0, 0, 0), (1, 1, 0), (1, 0, 1)]])
def test_sheets_that_touch_along_an_edge_are_parted(places):
    """Three unit blocks in a row, or around a corner, of which each meets the next one in an edge."""
    blocks = [trimesh.creation.box(bounds=np.array([place, np.add(place, 1)], float)) for place in places]
    meshes = trimesh.util.concatenate(blocks)
    meshes.merge_vertices()
    assert 'touches itself at' in closedness(meshes.faces)
    vertices, faces = parted(np.float32(meshes.vertices), meshes.faces)
    assert closedness(faces) == 'watertight'
    again = trimesh.Trimesh(vertices, faces)  # which merges equal vertices
    assert again.is_watertight
    assert len(again.split(only_watertight=True)) == 3
    assert again.volume < meshes.volume  # the blocks lose a little where they met
    assert again.volume == pytest.approx(3.0, rel=0.05)


def test_vertices_at_the_same_place_become_one():
    """A triangle of a ball is split by a sliver whose two ends are at the same place."""
    ball = trimesh.creation.icosphere(subdivisions=1)
    a, b, c = ball.faces[0]
    sliver = len(ball.vertices)  # at vertex b
    vertices = np.float32([*ball.vertices, ball.vertices[b]])
    faces = np.concatenate([[[a, sliver, c], [a, b, sliver], [sliver, b, c]], ball.faces[1:]])
    assert closedness(faces) == 'watertight'
    merged = parted(vertices, faces)
    np.testing.assert_array_equal(merged[0], np.float32(ball.vertices))
    np.testing.assert_array_equal(merged[1], ball.faces)


def test_a_mesh_that_does_not_touch_itself_stays_as_it_is():
    ball = trimesh.creation.icosphere(subdivisions=2)
    vertices, faces = parted(np.float32(ball.vertices), ball.faces)
    np.testing.assert_array_equal(vertices, np.float32(ball.vertices))
    np.testing.assert_array_equal(faces, ball.faces)


# What cameras see


@pytest.fixture(scope='module')
def seen():
    """A hollow ball's views, and the surface that they show."""
    scene, step = scene_around(), 1.6 / 63
    with torch.inference_mode():
        views = drawn_views(Shell(), scene, step)
    fused = fused_depths(views, grid_axes(BOX, 64), Shell().density_array, 100.0)
    return views, fused, marching_cubes(fused.values, grid_axes(BOX, 64), 0.0)


def test_views_have_depths_along_the_cameras_axis_and_pixels_as_wide_as_a_step(seen):
    views, _, _ = seen
    assert len(views) == 20
    depth, side = views[3].depth, len(views[3].depth)
    assert side == pytest.approx(2.0 / FOCAL / (1.6 / 63), abs=1.0)  # the picture's width at the origin, in steps
    assert depth[side // 2, side // 2] == pytest.approx(1.5, abs=0.02)
    assert np.isinf(depth[0, 0])
    radius = np.linalg.norm(views[3].points[np.isfinite(depth)], axis=-1)
    assert np.median(radius) == pytest.approx(RADIUS, abs=0.01)
    assert np.isinf(depth).mean() == pytest.approx(1.0 - np.pi * 0.25 / (1 - 0.25 / 4) / (2.0 / FOCAL) ** 2, abs=0.03)


def test_the_inner_wall_of_a_hollow_ball_is_no_surface(seen):
    _, fused, (vertices, faces) = seen
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * RADIUS ** 3, rel=0.05)
    assert np.abs(np.linalg.norm(vertices, axis=1) - RADIUS).max() < 0.03
    of_density = extract_surface(lambda p: Shell().density_array(p), BOX, 64, 200.0)
    assert np.linalg.norm(of_density[0], axis=1).min() < 0.42  # that has one
    inside, outside = fused(np.float32([[0, 0, 0], [0.46, 0, 0]])), fused(np.float32([[0.56, 0, 0], [0.7, 0.7, 0]]))
    assert (inside > 0).all()
    assert (outside < 0).all()


def view_of_ball(pose: np.ndarray, stops: float, outline: float, size: int = 120) -> SeenFrom:
    """A camera's view of a ball that rays get into as far as one radius, and whose outline is at another."""
    focal = FOCAL * size
    row, column = np.mgrid[:size, :size] + 0.5 - 0.5 * size
    local = np.stack([column / focal, -row / focal, -np.ones_like(row)], -1)
    along = -(pose[:, 3] @ pose[:, :3] * local).sum(-1) / (local ** 2).sum(-1)  # where a ray is closest to the origin
    beside2 = pose[:, 3] @ pose[:, 3] - along ** 2 * (local ** 2).sum(-1)
    half = np.sqrt(np.maximum(stops ** 2 - beside2, 0.0)) / np.linalg.norm(local, axis=-1)
    depth = np.where(beside2 < stops ** 2, along - half, np.inf).astype(np.float32)
    opacity = np.clip(0.5 + (outline - np.sqrt(beside2)) / 0.02, 0.0, 1.0).astype(np.float32)
    points = (pose[:, 3] + depth[..., None] * (local @ pose[:, :3].T)).astype(np.float32)
    return SeenFrom(pose[:, :3], pose[:, 3], focal, depth, points, np.zeros((size, size, 3), np.float32), opacity)


@pytest.mark.parametrize('outline', [0.46, 0.5, 0.53])
def test_the_surface_is_moved_to_where_the_outlines_are(outline):
    poses = scene_around(24).cameras.poses.double().numpy()
    views, axes = [view_of_ball(pose, RADIUS, outline) for pose in poses], grid_axes(BOX, 64)
    vertices, faces = marching_cubes(fused_depths(views, axes, ball_density, 50.0).values, axes, 0.0)
    assert np.median(np.linalg.norm(vertices, axis=1)) == pytest.approx(RADIUS, abs=0.01)
    shift = outline_shift(views, vertices, vertex_normals(vertices, faces), 1.6 / 63)
    assert shift == pytest.approx(outline - RADIUS, abs=0.01)
    moved = _fused_surface(views, axes, 1.6 / 63, ball_density, 50.0)
    assert np.median(np.linalg.norm(moved.vertices, axis=1)) == pytest.approx(outline, abs=0.01)


def test_what_no_camera_sees_is_outside_where_it_reaches_the_border():
    scene = scene_around()
    views = [view for view in drawn_views(Shell(), scene, 0.03) if view.place[2] > 1.0]  # from above alone
    fused = fused_depths(views, grid_axes(BOX, 50), Shell().density_array, 100.0)
    assert fused(np.float32([[0, 0, -0.75]])) < 0
    assert fused(np.float32([[0, 0, 0.47]])) > 0


@pytest.mark.parametrize('opening', ['none', 'into what is seen', 'to the border'])
def test_what_no_camera_sees_is_inside_near_walls_and_where_the_field_is_dense(opening):
    """A hidden room with walls that are seen, whose half x < 32 is dense."""
    values, count, behind = np.full((64, 64, 64), -1.0, np.float32), np.full((64, 64, 64), 9), np.zeros((64, 64, 64))
    values[8:56, 8:56, 8:56] = 1.0
    room = np.zeros(values.shape, bool)
    room[12:52, 12:52, 12:52] = True
    if opening != 'none':
        room[36:48, 26:38, 0 if opening == 'to the border' else 8:12] = True
    count[room], behind[room], values[room] = 0, 5, -1.0
    dense = 50.0 * np.array([1.5, 2.5])  # times the level: not enough, and enough
    assert dense[0] < depth_fusion.DENSER * 50.0 < dense[1]
    found = depth_fusion._with_hidden(
        values, count, behind, np.zeros(3), np.ones(3), lambda points: dense[(points[:, 0] < 32).astype(int)], 50.0)
    np.testing.assert_array_equal(found[~room], values[~room])
    at = {'dense': (24, 32, 32), 'thin': (40, 32, 32), 'near a wall': (32 + 8, 50, 32)}
    inside = {'none': 'dense thin near', 'into what is seen': 'dense near', 'to the border': ''}[opening]
    for name, where in at.items():
        assert (found[where] > 0) == (name.split()[0] in inside), name


def test_nothing_seen_is_an_error():
    with pytest.raises(UserError, match='see no surface'):
        fused_depths(drawn_views(Shell(0.0), scene_around(4), 0.05), grid_axes(BOX, 20), ball_density, 50.0)


@pytest.mark.parametrize('beside', [0.0, 0.5])
def test_distances_far_from_the_surface_are_those_of_the_whole_grid(beside, monkeypatch):
    """Two balls, one of which hides a part of the other."""
    views = [view_of_ball(pose, RADIUS, RADIUS) for pose in scene_around(24).cameras.poses.double().numpy()]
    views = [view._replace(place=view.place + [0.0, beside, 0.0], points=view.points + np.float32([0.0, beside, 0.0]))
             if i % 2 else view for i, view in enumerate(views)]
    fused = fused_depths(views, grid_axes(BOX, 64), ball_density, 50.0)
    monkeypatch.setattr(depth_fusion, '_blocks_near', lambda views, low, edges, shape, band: np.ones(shape, bool))
    monkeypatch.setattr(depth_fusion.ndimage, 'maximum_filter', lambda depth, *_, **__: np.full_like(depth, np.inf))
    whole = fused_depths(views, grid_axes(BOX, 64), ball_density, 50.0)  # no block is behind anything as a whole
    margin, in_band = depth_fusion.MARGIN / depth_fusion.BAND, np.abs(whole.values) < 0.9
    near = np.abs(whole.values) < margin
    assert in_band.mean() > 0.05
    assert near.mean() > 0.02
    np.testing.assert_array_equal(fused.values[near], whole.values[near])
    assert np.isclose(fused.values, whole.values, rtol=0.0, atol=1e-6)[in_band].mean() > 0.9
    assert np.abs(fused.values[~near]).min() >= margin  # no other surface
    assert (np.sign(fused.values) == np.sign(whole.values)).mean() > 0.999


# Normalised device coordinates


class BallInNDC(Shell):
    """A ball of radius 0.8 at (0, 0, -3), red where x > 0 and else blue, in NDC of cameras 60 pixels wide."""

    def density(self, points):
        world = world_points(60, 60, 54.0, 1.0, points.double())
        return torch.where((world - torch.tensor([0.0, 0.0, -3.0])).norm(dim=-1) < 0.8, self.wall, 0.0).float()


def forward_facing() -> Scene:
    """Nine cameras that look along -z."""
    poses = np.tile(np.eye(4)[:3], (9, 1, 1))
    poses[:, :2, 3] = 0.4 * (np.mgrid[:3, :3].reshape(2, 9).T - 1.0)
    cameras = Cameras.of_one_kind(poses, centred_intrinsics(60, 60, 54.0), 60, 60)
    return replace(scene_around(9), images=Images.of_one_size(np.zeros((9, 60, 60, 3), np.uint8)), cameras=cameras,
                   render_cameras=cameras, near=0.0, far=1.0, ndc=True, around=False, farthest=6.0)


def test_a_forward_facing_ball_is_seen_from_the_front_in_world_coordinates(tmp_path, capsys):
    export_mesh(BallInNDC(), forward_facing(), tmp_path / 'm.glb', 100, fused=True, texture=256)
    assert 'surface   as the training cameras see it\n' in capsys.readouterr().out
    mesh = trimesh.load(tmp_path / 'm.glb', process=False).to_geometry()
    front = mesh.vertices[mesh.vertices[:, 2] > -2.6]
    assert len(front) > 100
    np.testing.assert_allclose(np.linalg.norm(front - [0.0, 0.0, -3.0], axis=1), 0.8, atol=0.03)
    facing = (mesh.face_normals * (mesh.triangles_center - [0.0, 0.0, -3.0])).sum(1)[mesh.triangles_center[:, 2] > -2.6]
    assert (facing > 0.0).mean() > 0.99  # not inside out
    image, at = np.asarray(mesh.visual.material.baseColorTexture), np.asarray(mesh.visual.uv)[mesh.faces].mean(1)
    column, row = (np.stack([at[:, 0], 1.0 - at[:, 1]]) * 256).astype(int).clip(0, 255)
    clear = (np.abs(mesh.triangles_center[:, 0]) > 0.1) & (mesh.triangles_center[:, 2] > -2.6)
    expected = np.where(mesh.triangles_center[clear, :1] > 0, [255, 0, 0], [0, 0, 255])
    assert (image[row, column, :3][clear] == expected).all(1).mean() > 0.98


# Textures


def layout_of(vertices: np.ndarray, faces: np.ndarray, size: int = 512) -> tuple[Layout, np.ndarray]:
    """A layout, and how many texels across a unit is long at each face."""
    layout = laid_out(vertices.astype(np.float32), faces, size)
    np.testing.assert_array_equal(layout.of[layout.faces], faces)
    corners = np.pad(layout.uv[layout.faces] * size, ((0, 0), (0, 0), (0, 1)))
    flat, true = (np.linalg.norm(np.cross(part[:, 1] - part[:, 0], part[:, 2] - part[:, 0]), axis=1)
                  for part in (corners, vertices[faces]))
    return layout, np.sqrt(flat / true)


def own_texel(layout: Layout) -> np.ndarray:
    """Whether each face has the texel in which its middle is."""
    column, row = (layout.uv[layout.faces].mean(1) * len(layout.shown)).astype(int).T
    return layout.shown[row, column] == np.arange(len(layout.faces))


def test_the_faces_of_a_ball_have_texels_of_their_own_of_much_the_same_size():
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.5)
    layout, scale = layout_of(ball.vertices, ball.faces)
    assert own_texel(layout).all()
    assert scale.max() < 1.8 * scale.min()  # the cosine of what is farthest from all axes is 0.58
    assert 0.5 < (layout.shown >= 0).mean() < 1.0
    assert len(layout.of) < 1.3 * len(ball.vertices)  # charts are few
    assert 0.0 <= layout.uv.min() + 1e-3 < layout.uv.max() <= 1.0


def test_a_ramp_that_winds_above_itself_is_no_chart_that_shows_its_upper_turn_alone():
    angle, across = np.meshgrid(np.linspace(0.0, 5.0 * np.pi, 121), np.linspace(0.4, 1.0, 5), indexing='ij')
    vertices = np.stack([across * np.cos(angle), across * np.sin(angle), 0.1 * angle], -1).reshape(-1, 3)
    corner = np.arange(120)[:, None] * 5 + np.arange(4)
    faces = np.stack([corner, corner + 5, corner + 6, corner, corner + 6, corner + 1], -1).reshape(-1, 3)
    layout, _ = layout_of(vertices, faces)
    assert own_texel(layout).mean() > 0.98


def test_pixels_have_the_nearest_face_and_weights_in_space():
    points = np.array([[0.0, 0.0, 1.0], [10.0, 0.0, 1.0], [0.0, 10.0, 3.0],  # tilted away
                       [0.0, 0.0, 2.0], [9.0, 0.0, 2.0], [0.0, 9.0, 2.0], [20.0, 20.0, -1.0]])
    face, weights = rasterised(points, np.array([[0, 1, 2], [3, 5, 4], [0, 1, 6]]), 12, 12)
    assert face[0, 0] == 0
    assert face[8, 1] == 1  # there the tilted one is behind
    assert face[11, 11] == -1
    np.testing.assert_allclose(weights.sum(-1)[face >= 0], 1.0)
    share = 5 / 3 / (5 / 3 + 5)  # halfway up the picture, at depths 1 and 3
    np.testing.assert_allclose(weights[5, 0], [1 - share, 0.0, share], atol=1e-9)


def test_a_point_has_the_median_colour_of_the_views_that_see_it(seen):
    views, _, _ = seen
    directions = np.float32([[1, 0.2, 0], [-1, 0, 0.3], [0.1, 0, 1], [-0.1, 1, 0]])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    colours, count = seen_colours(RADIUS * directions, directions, views, 0.06)
    assert (count > 2).all()
    np.testing.assert_allclose(colours, [[1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1]], atol=0.02)
    highlight = [view._replace(rgb=np.ones_like(view.rgb)) if i % 7 == 0 else view for i, view in enumerate(views)]
    again, _ = seen_colours(RADIUS * directions, directions, highlight, 0.06)
    np.testing.assert_allclose(again, colours, atol=0.02)
    _, hidden = seen_colours(0.3 * directions, directions, views, 0.06)
    assert (hidden == 0).all()


@pytest.fixture(scope='module')
def ball(seen):
    """A textured ball of few faces."""
    views, fused, surface = seen
    vertices, faces = fewer_faces(fused, *surface, 1.6 / 63, 0.0, 600)
    return textured(coloured_mesh(Shell(), vertices, faces, 0.05), vertices, 256, views, 0.06)


def assert_ball(mesh: trimesh.Trimesh, x: int = 0) -> None:
    """Red where the x-axis is positive, blue elsewhere; the texture is the right way round."""
    image = np.asarray(getattr(mesh.visual.material, 'baseColorTexture', None) or mesh.visual.material.image)
    assert image.shape[:2] == (256, 256)
    at = np.asarray(mesh.visual.uv)[mesh.faces].mean(1)  # of the faces' middles
    column, row = (np.stack([at[:, 0], 1.0 - at[:, 1]]) * 256).astype(int).clip(0, 255)
    colour = image[row, column, :3]
    side = mesh.triangles_center[:, x]
    clear = np.abs(side) > 0.1
    assert clear.sum() > 300
    assert (colour[clear] == np.where(side[clear, None] > 0, [255, 0, 0], [0, 0, 255])).all(1).mean() > 0.98


def test_a_texture_is_where_its_faces_are(ball):
    assert_ball(ball)
    assert not np.asarray(ball.visual.material.baseColorTexture)[..., 1].any()  # also between its pieces


@pytest.mark.parametrize('ending', ['glb', 'obj'])
def test_a_textured_file_is_read_again_upright(ball, tmp_path, ending):
    tall = ball.copy()
    tall.vertices *= [1.0, 1.0, 1.5]
    write_mesh(tmp_path / f'm.{ending}', tall, np.array([0.0, 0.0, 1.0]))
    read = trimesh.load(tmp_path / f'm.{ending}', process=False)
    read = read.to_geometry() if isinstance(read, trimesh.Scene) else read
    np.testing.assert_allclose(read.extents, [1.0, 1.5, 1.0], atol=0.03)  # y is up
    assert read.volume > 0
    assert_ball(read)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == (['m.glb'] if ending == 'glb' else ['m.mtl', 'm.obj', 'm.png'])


def test_a_mesh_of_a_capture_is_not_turned(ball, tmp_path):
    tall = ball.copy()
    tall.vertices *= [1.0, 1.0, 1.5]
    write_mesh(tmp_path / 'm.glb', tall)
    np.testing.assert_allclose(trimesh.load(tmp_path / 'm.glb', process=False).extents, [1.0, 1.0, 1.5], atol=0.03)


@pytest.mark.parametrize('fused', [True, False])
def test_an_exported_mesh_says_what_it_is(tmp_path, capsys, fused):
    export_mesh(Shell(), scene_around(), tmp_path / 'm.glb', 48, fused=fused, texture=128)
    said = capsys.readouterr().out
    mesh = trimesh.load(tmp_path / 'm.glb', process=False).to_geometry()
    assert ('as the training cameras see it' in said) == fused
    assert ('where half of the light' in said) != fused
    np.testing.assert_allclose(mesh.extents, 1.0, atol=0.05)
    assert f'{len(mesh.faces):,} of ' in said
    assert Image.open(tmp_path / 'm_views.png').size == (1600, 400)


@pytest.mark.parametrize(('missing', 'more'), [
    ('fast_simplification', {}), ('numba', {}), ('xatlas', {'texture': 128})])
def test_a_missing_library_is_an_error_before_any_work(tmp_path, monkeypatch, missing, more):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=f'needs {missing}, .*pip install -r requirements.txt'):
        export_mesh(Shell(), scene_around(), tmp_path / 'm.glb', 48, **more)
    assert not list(tmp_path.iterdir())


def test_other_runs_need_none_of_the_libraries():
    code = ("import sys; sys.modules.update(dict.fromkeys(['numba', 'scipy', 'xatlas', 'fast_simplification', 'viser', "
            "'pycolmap', 'trimesh'])); import run_nerf")
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
