"""nerf/meshes/faces.py: fewer faces on the same surface."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from known_surfaces import LEVEL, RADIUS, SMALL_BOX, steep_ball

from nerf.meshes.extraction import extract_surface, grid_axes, onto_level
from nerf.meshes.faces import fewer_faces, simplified
from nerf.meshes.triangles import vertex_normals


@pytest.fixture(scope='module')
def many_faces() -> tuple[np.ndarray, np.ndarray]:
    """Surface of the ball on a grid of 40 points along a side."""
    return extract_surface(steep_ball, grid_axes(SMALL_BOX, 40), LEVEL)


def test_faces_are_fewer_if_the_surface_stays_within_a_quarter_of_a_step():
    vertices, faces = extract_surface(steep_ball, grid_axes(SMALL_BOX, 80), LEVEL)
    step = 1.6 / 79
    vertices = onto_level(steep_ball, vertices, vertex_normals(vertices, faces), step, LEVEL)
    few = trimesh.Trimesh(*fewer_faces(steep_ball, vertices, faces, step, LEVEL), process=False)
    assert len(few.faces) < len(faces) / 8
    points, _ = trimesh.sample.sample_surface(few, 5000, seed=1)
    assert np.quantile(np.abs(np.linalg.norm(points, axis=1) - RADIUS), 0.97) < 0.25 * step
    assert few.is_watertight
    assert few.volume == pytest.approx(4 / 3 * np.pi * RADIUS ** 3, rel=0.02)


@pytest.mark.parametrize('most', [500, 10 ** 9])
def test_the_number_of_faces_can_be_chosen(many_faces, most):
    _, few = fewer_faces(steep_ball, *many_faces, 0.04, LEVEL, most)
    assert len(few) == len(many_faces[1]) if most > len(many_faces[1]) else 0.9 * most < len(few) <= most


def test_the_number_of_faces_has_a_limit_only_if_none_is_chosen(many_faces):
    free, limited, chosen = (len(fewer_faces(steep_ball, *many_faces, 0.04, LEVEL, most, limit)[1])
                             for most, limit in ((0, 0), (0, 200), (300, 200)))
    assert 150 < limited <= 200 < free
    assert 250 < chosen <= 300


def test_a_simplified_mesh_looks_outwards(many_faces):
    few = trimesh.Trimesh(*simplified(*many_faces, 400), process=False)
    assert few.volume > 0
    assert few.is_watertight
