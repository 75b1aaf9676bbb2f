"""nerf/meshes/colours.py: colours of vertices, of painted fields and of a fitted network; colours of a texture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from known_fields import Solid
from known_surfaces import (
    AROUND, BLUE, BOX, FAR_BALL, NDC_SPACE, NEAR_BALL, RADIUS, RED, THRESHOLD, assert_red_and_blue, ball_distance,
    balls_in_ndc, block_distance, distance, nine_cameras_in_ndc, scene_around, shell, two_coloured_ball_in_ndc,
    view_of_ball,
)
from torch import nn

from nerf.meshes.colours import coloured_mesh, seen_colours, textured
from nerf.meshes.extraction import extract_surface, grid_axes, tighten
from nerf.meshes.options import MeshSettings
from nerf.meshes.triangles import without_floaters
from nerf.meshes.views import SeenFrom, drawn_views
from nerf.space import Bounded
from run_nerf_helpers import NeRF, get_embedder

SPACE = Bounded(2.0, 6.0)


def painted() -> Solid:
    """Field whose colour is that of the view: red where it looks to +x, green to +y, blue to +z."""
    return Solid(lambda points: torch.full_like(points[..., 0], 30.0),
                 lambda points, viewdirs: viewdirs.clamp(0.01, 0.99)[:, None].expand_as(points))


def test_a_vertex_is_seen_along_its_inward_normal():
    ball = trimesh.creation.icosphere(subdivisions=3)
    mesh = coloured_mesh(painted().sampler(), np.float32(ball.vertices), ball.faces, 0.05, SPACE)
    expected = (-ball.vertices).clip(0.01, 0.99)  # inwards is to -x on the side of +x
    np.testing.assert_allclose(mesh.visual.vertex_colors[:, :3] / 255.0, expected, atol=0.02)
    assert (mesh.visual.vertex_colors[:, 3] == 255).all()


def test_a_vertex_without_a_normal_has_the_mean_colour_over_views():
    vertices = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5], [5, 5, 5], [5, 5, 5]])
    mesh = coloured_mesh(painted().sampler(), vertices, np.array([[0, 1, 2], [3, 4, 5]]), 0.05, SPACE)
    np.testing.assert_allclose(mesh.visual.vertex_colors[3, :3] / 255.0, (0.99 + 5 * 0.01) / 6, atol=0.01)


@pytest.mark.slow
def test_a_surface_goes_through_ndc_and_back_within_a_grid_step_near_and_far():
    box = np.array([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0 - 2.0 / 30.0]])
    grid_size, sampler = 160, balls_in_ndc().sampler()
    box = tighten(sampler.density_array, box, THRESHOLD)
    vertices, faces = extract_surface(sampler.density_array, grid_axes(box, grid_size), THRESHOLD)
    mesh = coloured_mesh(sampler, vertices, faces, 0.02, NDC_SPACE)
    assert mesh.is_watertight
    assert mesh.body_count == 2
    parts = sorted(mesh.split(), key=lambda part: part.volume)
    for part, (centre, radius, colour) in zip(parts, (NEAR_BALL, FAR_BALL)):
        assert part.volume == pytest.approx(4 / 3 * np.pi * radius ** 3, rel=0.05)  # not inside out
        off = np.abs(np.linalg.norm(part.vertices - centre, axis=1) - radius)
        depth = -part.vertices[:, 2]
        step = 2.0 / (grid_size - 1) * depth ** 2 / 2.0  # |dz / dz'| of a grid step
        assert (off < step).all()
        np.testing.assert_allclose(part.visual.vertex_colors[:, :3] / 255.0, np.tile(colour, (len(depth), 1)),
                                   atol=0.01)


def fitted_field(use_viewdirs: bool) -> Solid:
    """Field of a small network, fitted to the ball in red and the block in blue."""
    torch.manual_seed(0)
    embed, channels = get_embedder(4)
    embed_dirs, channels_views = get_embedder(1)
    network = NeRF(D=4, W=64, input_ch=channels, input_ch_views=channels_views, use_viewdirs=use_viewdirs)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    rng = np.random.default_rng(0)

    def raw(points: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        """Raw colour and density [N, 4] at points [N, 3]."""
        return network(torch.cat([embed(points), embed_dirs(views)], -1))
    for step in range(1200):
        points = rng.uniform(-1.5, 1.5, (2048, 3)).astype(np.float32)
        blue = 1.0 / (1.0 + np.exp(((block_distance(points) - ball_distance(points)) / 0.05).clip(-9.0, 9.0)))
        colour = np.float32(RED + blue[:, None] * np.subtract(BLUE, RED))  # they change in between
        density = THRESHOLD * (1.0 - distance(points) / 0.1).clip(-3.0, 3.0)
        views = nn.functional.normalize(torch.from_numpy(rng.normal(size=(2048, 3)).astype(np.float32)), dim=-1)
        found = raw(torch.from_numpy(points), views)
        loss = (((found[:, 3] - torch.from_numpy(density).float()) / THRESHOLD) ** 2).mean()
        loss = loss + 3.0 * ((found[:, :3].sigmoid() - torch.from_numpy(colour)) ** 2).mean()
        optimizer.param_groups[0]['lr'] = 2e-3 * (1 - step / 1200)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.requires_grad_(False)

    def density_at(points: torch.Tensor) -> torch.Tensor:
        flat = points.reshape(-1, 3)
        return raw(flat, torch.zeros_like(flat))[:, 3].relu().reshape(points.shape[:-1])

    def colour_at(points: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        along = views[:, None].expand_as(points).reshape(-1, 3)
        return raw(points.reshape(-1, 3), along)[:, :3].sigmoid().reshape(points.shape)
    return Solid(density_at, colour_at)


@pytest.mark.slow
@pytest.mark.parametrize('use_viewdirs', [True, False])
def test_the_mesh_of_a_fitted_network_has_the_shape_and_colours_that_it_was_fitted_to(use_viewdirs):
    sampler = fitted_field(use_viewdirs).sampler()
    box = tighten(sampler.density_array, BOX, THRESHOLD, MeshSettings(survey=97))
    vertices, faces, _ = without_floaters(*extract_surface(sampler.density_array, grid_axes(box, 40), THRESHOLD))
    step = (box[1] - box[0]).max() / 39
    mesh = coloured_mesh(sampler, vertices, faces, 2 * step, SPACE)
    assert np.abs(distance(mesh.vertices)).max() < step
    on_ball = ball_distance(mesh.vertices) < block_distance(mesh.vertices)
    assert 0.2 < on_ball.mean() < 0.8
    error = np.abs(mesh.visual.vertex_colors[:, :3] / 255.0 - np.where(on_ball[:, None], RED, BLUE))
    assert np.quantile(error, 0.99) < 0.05
    assert mesh.volume > 0


# Texture


@pytest.fixture(scope='module')
def views() -> list[SeenFrom]:
    """Views of a ball, red where x > 0 and else blue."""
    found = [view_of_ball(pose, RADIUS, RADIUS) for pose in scene_around().cameras.poses.double().numpy()]
    return [view._replace(rgb=np.where(view.points[..., :1] > 0, np.float32([1, 0, 0]), np.float32([0, 0, 1])))
            for view in found]


def test_a_point_has_the_median_colour_of_the_views_that_see_it(views):
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


def test_colours_in_ndc_are_those_at_the_depth_that_is_seen():
    scene = nine_cameras_in_ndc()
    views = drawn_views(two_coloured_ball_in_ndc().sampler(), scene, 0.05, 100_000, MeshSettings(views=3))
    normals = np.float32([[0.3, 0.0, 1.0], [-0.3, 0.0, 1.0]])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    for centre, seen in ((-3.0, True), (-3.5, False)):
        colours, count = seen_colours(0.8 * normals + np.float32([0.0, 0.0, centre]), normals, views, 0.05)
        assert ((count > 0) == seen).all()
        if seen:
            np.testing.assert_allclose(colours, [[1, 0, 0], [0, 0, 1]], atol=0.02)


@pytest.fixture(scope='module')
def ball(views) -> trimesh.Trimesh:
    """Textured ball of few faces."""
    plain = trimesh.creation.icosphere(subdivisions=3, radius=RADIUS)
    mesh = coloured_mesh(shell().sampler(), np.float32(plain.vertices), plain.faces, 0.05, AROUND)
    return textured(mesh, np.float32(plain.vertices), 256, views, 0.06)


def test_a_texture_is_where_its_faces_are(ball):
    image = np.asarray(ball.visual.material.baseColorTexture)
    assert image.shape[:2] == (256, 256)
    assert_red_and_blue(ball, np.ones(len(ball.faces), bool), 300)
    assert not image[..., 1].any()  # neither red nor blue has green, also between charts


def test_texels_that_no_view_sees_have_the_colour_of_the_vertices():
    plain = trimesh.creation.icosphere(subdivisions=3, radius=RADIUS)
    plain.visual.vertex_colors = [10, 200, 30, 255]
    mesh = textured(plain, np.float32(plain.vertices), 128, [], 0.06)
    np.testing.assert_array_equal(np.asarray(mesh.visual.material.baseColorTexture)[..., :3].reshape(-1, 3),
                                  np.tile([10, 200, 30], (128 * 128, 1)))
