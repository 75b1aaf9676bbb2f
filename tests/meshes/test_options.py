"""nerf/meshes/options.py: libraries of a mesh are needed for meshes alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

from nerf.meshes.options import MeshOptions
from nerf.runtime.errors import UserError


def test_a_mesh_without_a_texture_does_not_need_the_library_of_textures(monkeypatch):
    monkeypatch.setitem(sys.modules, 'xatlas', None)
    MeshOptions(24).need_libraries()


@pytest.mark.parametrize(('missing', 'texture'), [('fast_simplification', 0), ('numba', 0), ('xatlas', 128)])
def test_a_missing_library_is_an_error(monkeypatch, missing, texture):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=f'needs {missing}, .*pip install -r requirements.txt'):
        MeshOptions(48, texture=texture).need_libraries()


@pytest.mark.slow
def test_other_runs_need_none_of_the_libraries():
    code = ("import sys; sys.modules.update(dict.fromkeys(['numba', 'scipy', 'xatlas', 'fast_simplification', 'viser', "
            "'pycolmap', 'trimesh'])); import run_nerf")
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
