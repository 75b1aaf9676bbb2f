"""nerf/meshes/level.py: the density at a field's surface, and vertices moved onto it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from known_fields import Solid
from known_surfaces import (
    LEVEL, RADIUS, SMALL_BOX, nine_cameras_in_ndc, red_and_blue, scene_around, shell, steep_ball,
    two_coloured_ball_in_ndc,
)

from nerf.meshes.extraction import extract_surface, grid_axes
from nerf.meshes.geometry import vertex_normals
from nerf.meshes.level import onto_level, surface_level
from nerf.runtime.errors import UserError


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


def test_vertices_are_moved_to_where_the_density_crosses_the_threshold():
    vertices, faces = extract_surface(steep_ball, grid_axes(SMALL_BOX, 24), LEVEL)
    step = 1.6 / 23
    moved = onto_level(steep_ball, vertices, vertex_normals(vertices, faces), step, LEVEL)
    before, after = (np.abs(np.linalg.norm(part, axis=1) - RADIUS) for part in (vertices, moved))
    assert after.max() < 0.05 * step
    assert after.mean() < 0.3 * before.mean()


def test_vertices_without_a_crossing_within_half_a_step_stay():
    vertices = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    stay = onto_level(lambda points: np.zeros(len(points), np.float32), vertices.numpy(), vertices.numpy(), 0.1, LEVEL)
    np.testing.assert_array_equal(stay, vertices.numpy())
