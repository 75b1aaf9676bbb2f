"""nerf/meshes/writing.py: files of a mesh, read back by trimesh."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from known_surfaces import AROUND, RADIUS, assert_red_and_blue, painted_ball, shell

from nerf.meshes.colours import coloured_mesh
from nerf.meshes.texture import textured
from nerf.meshes.writing import write_mesh


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
