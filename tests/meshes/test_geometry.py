"""nerf/meshes/geometry.py: normals, area and words, against trimesh."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from nerf.meshes.geometry import describe_mesh, surface_area, vertex_normals


@pytest.mark.parametrize('mesh', [trimesh.creation.icosphere(2), trimesh.creation.box((1, 2, 3)),
                                  trimesh.creation.annulus(0.5, 1.0, 2.0)])
def test_normals_and_area_are_trimeshs_however_many_faces_are_in_memory(mesh):
    faces = mesh.faces[np.random.default_rng(0).permutation(len(mesh.faces))]
    ours = vertex_normals(mesh.vertices, faces, at_once=7)
    assert ((ours * mesh.vertex_normals).sum(1) > 0.7).all()  # trimesh weighs by angle
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(vertex_normals(mesh.vertices, faces), ours, atol=1e-6)
    for at_once in (7, 10 ** 6):
        assert surface_area(mesh.vertices, faces, at_once) == pytest.approx(mesh.area)


def test_a_vertex_without_area_around_it_has_no_normal():
    vertices = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5], [5, 5, 5], [5, 5, 5]])
    normals = vertex_normals(vertices, np.array([[0, 1, 2], [3, 4, 5]]))
    np.testing.assert_array_equal(normals, [[0, 0, 1]] * 3 + [[0, 0, 0]] * 3)


def test_a_mesh_in_words():
    text = describe_mesh(trimesh.creation.box((1, 2, 4)), 'watertight', 24, 3)
    assert '8 vertices, 12 of 24 faces, watertight, 3 floaters dropped' in text
    assert '-0.500 -1.000 -2.000 to 0.500 1.000 2.000, area 28' in text
