"""Export of a field's surface as a mesh. Its libraries are imported here alone, because most runs need none of them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nerf.fields.interface import Sampler
from nerf.meshes.options import MeshOptions
from nerf.runtime.errors import UserError
from nerf.scene import Scene

if TYPE_CHECKING:
    import trimesh

LIBRARIES = ('fast_simplification', 'numba', 'scipy', 'skimage', 'trimesh')


def export_mesh(sampler: Sampler, scene: Scene, path: Path, options: MeshOptions,
                to_file: np.ndarray | None = None) -> trimesh.Trimesh:
    """Writes a field's surface as a coloured mesh, and a picture of the mesh beside it.

    Args:
        sampler: shows the trained field.
        scene: scene of the field. Its training cameras say where the surface is looked for.
        path: .ply, .obj or .glb file to write. The picture's name ends in _views.png.
        options: flags of the mesh.
        to_file: [4, 4] matrix from world coordinates to coordinates of the file; None: both are the same, and a .glb
            or .obj is turned upright.

    Returns:
        A coarse copy of the mesh with vertex colours, in world coordinates, for a log.

    Raises:
        UserError: a library is missing, there is no surface, or a file cannot be written.
    """
    need_libraries(*LIBRARIES, *(('xatlas',) if options.texture else ()))
    from nerf.meshes.pipeline import make_mesh

    return make_mesh(sampler, scene, path, options, to_file)


def need_libraries(*names: str) -> None:
    """Imports libraries that a mesh needs.

    Args:
        names: names of modules.

    Raises:
        UserError: a module cannot be imported.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f'this mesh needs {name}, which cannot be imported ({error}); '
                            'pip install -r requirements.txt') from None
