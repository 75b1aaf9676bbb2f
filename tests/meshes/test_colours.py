"""nerf/meshes/colours.py: colours of vertices, of painted fields and of a network that was fitted to shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from known_fields import Solid
from known_surfaces import (
    BLUE, BOX, FAR_BALL, NDC_SPACE, NEAR_BALL, RED, THRESHOLD, ball_distance, balls_in_ndc, block_distance, distance,
)
from torch import nn

from nerf.meshes.colours import coloured_mesh
from nerf.meshes.extraction import extract_surface, grid_axes, tighten
from nerf.meshes.options import MeshSettings
from nerf.meshes.topology import without_floaters
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
