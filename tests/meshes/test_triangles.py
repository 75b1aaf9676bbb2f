"""nerf/meshes/triangles.py: normals, area, components, closedness, and sheets that touch, against trimesh."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from nerf.meshes.triangles import closedness, parted, surface_area, vertex_normals, without_flaps, without_floaters


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


def test_floaters_are_dropped_and_counted():
    ball, small = (trimesh.creation.icosphere(subdivisions=n) for n in (3, 0))  # 1280 and 20 faces
    tiny = trimesh.creation.box()  # 12 faces: less than 1%
    meshes = [tiny, small, ball, tiny.copy()]
    offsets = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes])
    vertices = np.concatenate([mesh.vertices + 5 * i for i, mesh in enumerate(meshes)])
    faces = np.concatenate([mesh.faces + offset for mesh, offset in zip(meshes, offsets)])
    kept, faces, dropped = without_floaters(vertices, faces)
    assert dropped == 2
    np.testing.assert_array_equal(kept, np.concatenate([small.vertices + 5, ball.vertices + 10]))
    np.testing.assert_array_equal(faces, np.concatenate([small.faces, ball.faces + len(small.vertices)]))


def test_faces_that_lie_on_one_another_are_dropped():
    ball = trimesh.creation.icosphere(subdivisions=1)
    vertices = np.concatenate([ball.vertices, [[5, 5, 5]]]).astype(np.float32)
    flap = np.array([[0, 1, 42], [0, 42, 1]])
    without = without_flaps(vertices, np.concatenate([ball.faces, flap]))
    np.testing.assert_array_equal(without[0], vertices[:42])
    np.testing.assert_array_equal(without[1], ball.faces)
    a, b, c = ball.faces[-1]  # one of three stays: without it there would be a hole
    of_three = without_flaps(vertices, np.concatenate([ball.faces, [[b, c, a], [c, b, a]]]))
    assert closedness(of_three[1]) == 'watertight'
    assert len(of_three[1]) == len(ball.faces)


@pytest.mark.parametrize('mesh', [trimesh.creation.icosphere(2), trimesh.creation.box((1, 2, 3)),
                                  trimesh.creation.annulus(0.5, 1.0, 2.0)])
def test_a_mesh_is_closed_if_each_edge_has_two_faces(mesh):
    faces = mesh.faces[np.random.default_rng(0).permutation(len(mesh.faces))]
    assert closedness(faces) == 'watertight'
    for broken in (faces[1:], np.concatenate([faces, faces[:1]]), np.concatenate([faces, faces[:2]])):
        assert closedness(broken) == 'not watertight'
    assert closedness(np.concatenate([faces, faces])) == f'closed, but it touches itself at {len(faces) * 3 // 2} edges'


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
