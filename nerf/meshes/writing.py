"""Files of a mesh: .ply, .obj or .glb, upright where programs take y for up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh
from trimesh.exchange.obj import export_obj
from trimesh.transformations import rotation_matrix

from nerf.files.whole_file import whole_file


def write_mesh(path: Path, mesh: trimesh.Trimesh, up: np.ndarray | None = None) -> None:
    """Writes a mesh with vertex colours or a texture, in the format of the name's ending.

    A .glb keeps its coordinates and has a node that turns it. An .obj has no nodes, so its vertices are turned; its
    texture is a .png beside it, with an .mtl.

    Args:
        path: .ply, .obj or .glb file to write.
        mesh: mesh to write.
        up: [3] unit vector that is up in the mesh's coordinates; None: nothing is turned.
    """
    kind = path.suffix[1:].lower()
    turned = np.eye(4) if up is None else _upright(up)
    if kind == 'glb':
        scene = trimesh.Scene()
        scene.add_geometry(mesh, geom_name=path.stem, node_name=path.stem, transform=turned)
        mesh = scene
    elif kind == 'obj':
        mesh = mesh.copy()
        mesh.apply_transform(turned)
        if mesh.visual.kind == 'texture':
            _write_textured_obj(path, mesh)
            return
    with whole_file(path) as partial:
        mesh.export(partial, file_type=kind)


def _write_textured_obj(path: Path, mesh: trimesh.Trimesh) -> None:
    """Writes an .obj, its .mtl and its .png; the .obj comes last, because it names the others."""
    mesh.visual.material.name = path.stem
    text, assets = export_obj(mesh, return_texture=True, mtl_name=f'{path.stem}.mtl')
    for name, content in [*assets.items(), (path.name, text.encode())]:
        with whole_file(path.with_name(name)) as partial:
            partial.write_bytes(content)


def _upright(up: np.ndarray) -> np.ndarray:
    """Shortest rotation [4, 4] that turns a unit vector to y; z is turned about x."""
    axis = np.cross(up, [0.0, 1.0, 0.0])
    length = np.linalg.norm(axis)
    return rotation_matrix(np.arctan2(length, up[1]), axis if length > 1e-9 else [1.0, 0.0, 0.0])
