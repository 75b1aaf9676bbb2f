"""nerf/meshes/export.py: whole meshes of known fields, as files and pictures, read back by trimesh."""

from __future__ import annotations

import re

import numpy as np
import pytest
import trimesh
from known_fields import Solid
from known_surfaces import (
    AROUND, FAR_BALL, NEAR_BALL, RADIUS, RED, THRESHOLD, assert_red_and_blue, ball_distance, balls_in_ndc,
    nine_cameras_in_ndc, one_camera_in_ndc, painted_ball, red_and_blue, red_ball, scene_around, shell, three_cameras,
    two_coloured_ball_in_ndc,
)
from PIL import Image

from nerf.meshes.colours import coloured_mesh, textured
from nerf.meshes.export import export_mesh, write_mesh
from nerf.meshes.options import MeshOptions, MeshSettings

FAST = MeshSettings(survey=49, views=8, checked_points=5000)


def test_a_mesh_is_the_surface_in_its_colours_with_four_views_beside_it(tmp_path, capsys):
    path = tmp_path / 'deep' / 'ball.ply'
    small = export_mesh(red_ball().sampler(), three_cameras(), path, MeshOptions(40, THRESHOLD, settings=FAST))
    assert sorted(path.name for path in path.parent.iterdir()) == ['ball.ply', 'ball_views.png']
    mesh = trimesh.load(path, force='mesh', process=False)
    assert np.abs(ball_distance(mesh.vertices)).max() < 0.01
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.5 ** 3, rel=0.02)
    np.testing.assert_allclose(np.asarray(mesh.visual.vertex_colors)[:, :3] / 255.0,
                               np.tile(RED, (len(mesh.vertices), 1)), atol=0.01)
    assert small.volume == pytest.approx(mesh.volume, rel=0.02)
    picture = np.asarray(Image.open(path.with_name('ball_views.png')).convert('RGB')).astype(int)
    assert picture.shape == (300, 1600, 3)
    assert all((view[..., 0] - view[..., 2] > 60).sum() > 500 for view in np.split(picture, 4, axis=1))
    said = capsys.readouterr().out
    assert f'{len(mesh.vertices):,} vertices, {len(mesh.faces):,} of ' in said
    assert 'faces, watertight, 0 floaters dropped' in said
    bounds = re.search(r'bounds    (\S+) (\S+) (\S+) to (\S+) (\S+) (\S+), area (\S+)\n', said)
    np.testing.assert_allclose(np.float64(bounds.groups()), [*mesh.bounds.ravel(), mesh.area], atol=1e-3)
    assert f'mesh in {path}, four views of it in' in said


def test_a_mesh_is_cut_to_bounds(tmp_path):
    box = np.array([[-1.0, -1.0, -1.0], [0.8, 1.0, 1.0]])
    export_mesh(red_ball().sampler(), three_cameras(), tmp_path / 'part.ply',
                MeshOptions(40, THRESHOLD, bounds=box, settings=FAST))
    mesh = trimesh.load(tmp_path / 'part.ply', force='mesh', process=False)
    np.testing.assert_allclose(mesh.bounds, [[0.2, -0.3, -0.4], [0.8, 0.7, 0.6]], atol=0.03)
    assert not mesh.is_watertight


@pytest.mark.parametrize('ball', [NEAR_BALL, FAR_BALL], ids=['near', 'far'])
def test_a_mesh_from_ndc_is_cut_to_a_box_of_the_world(tmp_path, ball):
    centre, radius, colour = ball
    box = np.stack([centre - 2.0 * radius, centre + 2.0 * radius])
    box[1, 0] = centre[0]  # a half of it
    export_mesh(balls_in_ndc().sampler(), one_camera_in_ndc(), tmp_path / 'part.ply',
                MeshOptions(120, THRESHOLD, bounds=box, settings=FAST))
    mesh = trimesh.load(tmp_path / 'part.ply', force='mesh', process=False)
    assert (mesh.vertices >= box[0]).all()
    assert (mesh.vertices <= box[1]).all()
    np.testing.assert_allclose(mesh.bounds[0], centre - radius, atol=0.1 * radius)
    np.testing.assert_allclose(mesh.bounds[1], [centre[0], *(centre + radius)[1:]], atol=0.1 * radius)
    np.testing.assert_allclose(mesh.visual.vertex_colors[:, :3].mean(0) / 255.0, colour, atol=0.01)


def test_a_mesh_is_moved_to_the_coordinates_of_its_file(tmp_path):
    to_file = np.array([[0.0, -2.0, 0.0, 1.0], [2.0, 0.0, 0.0, 2.0], [0.0, 0.0, 2.0, 3.0], [0.0, 0.0, 0.0, 1.0]])
    meshes = []
    for name, matrix in (('scene.ply', None), ('capture.ply', to_file)):
        export_mesh(red_ball().sampler(), three_cameras(), tmp_path / name, MeshOptions(24, THRESHOLD, settings=FAST),
                    matrix)
        meshes.append(trimesh.load(tmp_path / name, process=False))
    np.testing.assert_allclose(meshes[1].vertices, trimesh.transform_points(meshes[0].vertices, to_file), atol=1e-5)
    np.testing.assert_array_equal(meshes[0].faces, meshes[1].faces)


def test_a_glb_stands_upright_unless_it_has_a_captures_coordinates(tmp_path):
    """The ball's highest point has z = 0.6; in a file that is upright, y is up."""
    for matrix, axis in ((None, 1), (np.eye(4), 2)):
        export_mesh(red_ball().sampler(), three_cameras(), tmp_path / 'm.glb',
                    MeshOptions(24, THRESHOLD, settings=FAST), matrix)
        assert trimesh.load(tmp_path / 'm.glb', process=False).bounds[1, axis] == pytest.approx(0.6, abs=0.02)


@pytest.mark.slow
def test_a_forward_facing_ball_is_seen_from_the_front_in_world_coordinates(tmp_path, capsys):
    export_mesh(two_coloured_ball_in_ndc().sampler(), nine_cameras_in_ndc(), tmp_path / 'm.glb',
                MeshOptions(100, fused=True, texture=256))
    assert 'surface   as the training cameras see it\n' in capsys.readouterr().out
    mesh = trimesh.load(tmp_path / 'm.glb', process=False).to_geometry()
    front = mesh.vertices[mesh.vertices[:, 2] > -2.6]
    assert len(front) > 100
    np.testing.assert_allclose(np.linalg.norm(front - [0.0, 0.0, -3.0], axis=1), 0.8, atol=0.03)
    in_front = mesh.triangles_center[:, 2] > -2.6
    facing = (mesh.face_normals * (mesh.triangles_center - [0.0, 0.0, -3.0])).sum(1)[in_front]
    assert (facing > 0.0).mean() > 0.99  # not inside out
    assert_red_and_blue(mesh, in_front, 50)


@pytest.mark.slow
@pytest.mark.parametrize('fused', [True, False])
def test_a_textured_mesh_says_what_it_is(tmp_path, capsys, fused):
    export_mesh(shell().sampler(), scene_around(), tmp_path / 'm.glb', MeshOptions(48, fused=fused, texture=128))
    said = capsys.readouterr().out
    mesh = trimesh.load(tmp_path / 'm.glb', process=False).to_geometry()
    assert ('as the training cameras see it' in said) == fused
    assert (', where half of the light of the training rays has stopped\n' in said) != fused
    np.testing.assert_allclose(mesh.extents, 1.0, atol=0.05)
    assert f'{len(mesh.faces):,} of ' in said
    assert Image.open(tmp_path / 'm_views.png').size == (1600, 400)


def test_a_textured_mesh_has_a_limited_number_of_faces(tmp_path):
    few = MeshSettings(survey=49, views=8, view_rays=20_000, texture_rays=20_000, textured_faces=150)
    export_mesh(red_ball().sampler(), three_cameras(), tmp_path / 'm.glb',
                MeshOptions(40, THRESHOLD, texture=64, settings=few))
    assert 100 < len(trimesh.load(tmp_path / 'm.glb', process=False).to_geometry().faces) <= 160


def test_an_interrupted_mesh_leaves_no_file(tmp_path):
    def interrupt(points):
        raise KeyboardInterrupt
    options = MeshOptions(24, THRESHOLD, settings=FAST)
    with pytest.raises(KeyboardInterrupt):
        export_mesh(Solid(interrupt, red_and_blue).sampler(), three_cameras(), tmp_path / 'm.ply', options)
    assert not list(tmp_path.iterdir())


# Files


@pytest.mark.parametrize('name', ['mesh.ply', 'mesh.obj', 'mesh.glb', 'MESH.PLY'])
def test_a_written_mesh_reads_back_with_its_colours(tmp_path, name):
    ball = painted_ball()
    write_mesh(tmp_path / 'deep' / name, ball)
    assert [path.name for path in (tmp_path / 'deep').iterdir()] == [name]
    again = trimesh.load(tmp_path / 'deep' / name, force='mesh', process=False)
    np.testing.assert_allclose(again.vertices, ball.vertices, atol=1e-6)
    np.testing.assert_array_equal(again.faces, ball.faces)
    np.testing.assert_array_equal(again.visual.vertex_colors, ball.visual.vertex_colors)


class Interrupted(trimesh.Trimesh):
    """Mesh whose export is interrupted halfway."""

    def export(self, file_obj=None, file_type=None, **_):
        file_obj.write_text('half')
        raise KeyboardInterrupt


def test_an_interrupted_write_leaves_the_earlier_mesh(tmp_path):
    path, ball = tmp_path / 'mesh.ply', painted_ball()
    path.write_text('earlier')
    with pytest.raises(KeyboardInterrupt):
        write_mesh(path, Interrupted(ball.vertices, ball.faces))
    assert path.read_text() == 'earlier'
    assert [path.name for path in tmp_path.iterdir()] == ['mesh.ply']


@pytest.fixture(scope='module')
def tall() -> trimesh.Trimesh:
    """Textured ellipsoid, red where x > 0 and else blue, whose longest axis is z."""
    ball = trimesh.creation.icosphere(subdivisions=3, radius=RADIUS)
    mesh = coloured_mesh(shell().sampler(), np.float32(ball.vertices), ball.faces, 0.05, AROUND)
    mesh = textured(mesh, np.float32(ball.vertices), 256, [], 0.06)
    mesh.vertices *= [1.0, 1.0, 1.5]
    return mesh


@pytest.mark.parametrize('ending', ['glb', 'obj'])
def test_a_textured_file_is_read_again_upright(tall, tmp_path, ending):
    write_mesh(tmp_path / f'm.{ending}', tall, np.array([0.0, 0.0, 1.0]))
    read = trimesh.load(tmp_path / f'm.{ending}', process=False)
    read = read.to_geometry() if isinstance(read, trimesh.Scene) else read
    np.testing.assert_allclose(read.extents, [1.0, 1.5, 1.0], atol=0.03)  # y is up
    assert read.volume > 0
    assert_red_and_blue(read, np.ones(len(read.faces), bool), 300)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == (['m.glb'] if ending == 'glb' else ['m.mtl', 'm.obj', 'm.png'])


def test_a_mesh_of_a_capture_is_not_turned(tall, tmp_path):
    write_mesh(tmp_path / 'm.glb', tall)
    np.testing.assert_allclose(trimesh.load(tmp_path / 'm.glb', process=False).extents, [1.0, 1.0, 1.5], atol=0.03)
