"""--mesh_only: whole runs that make a mesh from a checkpoint."""

from __future__ import annotations

import re
import sys

import pytest
import trimesh
from PIL import Image

import run_nerf

SMALL = ['--dataset_type', 'blender', '--white_bkgd', '--netdepth', '2', '--netwidth', '16', '--multires', '2',
         '--N_samples', '8', '--N_rand', '32', '--testskip', '1', '--device', 'cpu', '--expname', 'run']
MESH = ['--mesh_only', '--mesh_grid_size', '24', '--mesh_threshold']


@pytest.fixture
def trained(tiny_scene, tmp_path):
    """Flags of a run with a checkpoint at step 5, and the run's folder."""
    flags = [*SMALL, '--datadir', str(tiny_scene(tmp_path / 'scene')), '--basedir', str(tmp_path / 'logs')]
    assert run_nerf.main([*flags, '--N_iters', '5']) == 0
    return flags, tmp_path / 'logs' / 'run'


def test_a_density_that_is_never_reached_is_one_line_and_leaves_no_file(trained, capsys):
    flags, run_dir = trained
    before = sorted(run_dir.iterdir())
    assert run_nerf.main([*flags, *MESH, '1e9']) == 1
    error = capsys.readouterr().err
    assert error.startswith('error: the density has no surface at mesh_threshold 1e+09')
    assert error.count('\n') == 1
    assert sorted(path for path in run_dir.iterdir() if not path.name.endswith('_occupancy.npz')) == before


def test_a_missing_library_is_one_line_and_leaves_no_file(trained, capsys, monkeypatch):
    flags, run_dir = trained
    before = sorted(run_dir.iterdir())
    monkeypatch.setitem(sys.modules, 'xatlas', None)
    assert run_nerf.main([*flags, *MESH, '5', '--mesh_texture', '64']) == 1
    error = capsys.readouterr().err
    assert error.startswith('error: this mesh needs xatlas, ')
    assert error.count('\n') == 1
    assert sorted(run_dir.iterdir()) == before


@pytest.mark.slow
def test_a_mesh_and_its_picture_are_written_at_the_threshold_that_an_error_recommends(trained, capsys, tmp_path):
    flags, run_dir = trained
    assert run_nerf.main([*flags, *MESH, '1e9']) == 1
    threshold = re.search(r'try --mesh_threshold (\S+)', capsys.readouterr().err)[1]
    assert run_nerf.main([*flags, *MESH, threshold]) == 0
    said = capsys.readouterr().out
    mesh = trimesh.load(run_dir / 'mesh_000005.ply', process=False)
    assert f'{len(mesh.vertices):,} vertices' in said
    assert 'box ' in said
    assert str(run_dir / 'mesh_000005.ply') in said
    assert Image.open(run_dir / 'mesh_000005_views.png').size == (1600, 400)
    assert run_nerf.main([*flags, *MESH, threshold, '--mesh_file', str(tmp_path / 'elsewhere' / 'm.glb')]) == 0
    again = trimesh.load(tmp_path / 'elsewhere' / 'm.glb', force='mesh', process=False)
    assert len(again.vertices) == len(mesh.vertices)
    assert (tmp_path / 'elsewhere' / 'm_views.png').is_file()


def test_mesh_only_without_a_checkpoint_says_how_to_get_one(tiny_scene, tmp_path, capsys):
    flags = [*SMALL, '--datadir', str(tiny_scene(tmp_path / 'scene')), '--basedir', str(tmp_path / 'logs')]
    assert run_nerf.main([*flags, *MESH, '5']) == 1
    error = capsys.readouterr().err
    assert 'has no checkpoint; train first' in error
    assert error.count('\n') == 1
    assert not (tmp_path / 'logs').exists()
