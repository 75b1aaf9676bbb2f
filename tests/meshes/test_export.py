"""nerf/meshes/export.py: libraries of a mesh are needed for meshes alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import trimesh
from conftest import ROOT
from known_surfaces import THRESHOLD, red_ball, three_cameras

from nerf.meshes.export import export_mesh
from nerf.meshes.options import MeshOptions, MeshSettings
from nerf.runtime.errors import UserError


def test_a_mesh_is_written_without_the_library_of_textures(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'xatlas', None)
    small = export_mesh(red_ball().sampler(), three_cameras(), tmp_path / 'm.ply',
                        MeshOptions(24, THRESHOLD, settings=MeshSettings(survey=33)))
    assert small.volume == pytest.approx(trimesh.load(tmp_path / 'm.ply', process=False).volume, rel=0.02)


@pytest.mark.parametrize(('missing', 'texture'), [('fast_simplification', 0), ('numba', 0), ('xatlas', 128)])
def test_a_missing_library_is_an_error_before_any_work(tmp_path, monkeypatch, missing, texture):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=f'needs {missing}, .*pip install -r requirements.txt'):
        export_mesh(red_ball().sampler(), three_cameras(), tmp_path / 'm.glb', MeshOptions(48, texture=texture))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_other_runs_need_none_of_the_libraries():
    code = ("import sys; sys.modules.update(dict.fromkeys(['numba', 'scipy', 'xatlas', 'fast_simplification', 'viser', "
            "'pycolmap', 'trimesh'])); import run_nerf")
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
