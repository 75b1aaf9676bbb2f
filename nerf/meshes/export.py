"""Export of a field's surface as the file of a mesh: .ply, .obj or .glb."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh
from trimesh.exchange.obj import export_obj
from trimesh.transformations import rotation_matrix

from nerf.fields.interface import Sampler
from nerf.files.images import save_png
from nerf.files.whole_file import whole_file
from nerf.meshes.box import box_of_surface
from nerf.meshes.colours import coloured_mesh, textured
from nerf.meshes.extraction import grid_axes
from nerf.meshes.faces import fewer_faces
from nerf.meshes.options import MeshOptions
from nerf.meshes.picture import coarsened, mesh_views
from nerf.meshes.surface import density_surface, fused_surface, surface_level
from nerf.meshes.triangles import closedness, parted, surface_area
from nerf.meshes.views import drawn_views
from nerf.poses import up_direction
from nerf.scene import Scene


def export_mesh(sampler: Sampler, scene: Scene, path: Path, options: MeshOptions,
                to_file: np.ndarray | None = None) -> trimesh.Trimesh:
    """Writes a field's surface as a coloured mesh, and a picture of the mesh beside it, whose name ends in _views.png.
    A matrix `to_file` [4, 4] leads from world coordinates to coordinates of the file. Without it both are the same, and
    a .glb or .obj is turned upright. A coarse copy of the mesh in world coordinates, for a log, is returned. UserError:
    there is no surface, or a file cannot be written."""
    settings, texture, cameras = options.settings, options.texture, scene.render_cameras
    level = options.threshold or surface_level(sampler, scene, settings)
    box = box_of_surface(sampler, scene, level, options.bounds, settings)
    axes, step = grid_axes(box, options.grid_size), (box[1] - box[0]).max() / (options.grid_size - 1)
    views = []
    if options.fused or texture:
        views = drawn_views(sampler, scene, step, settings.texture_rays if texture else settings.view_rays, settings)
    if options.fused:
        surface = fused_surface(views, scene.space, axes, step, sampler.density_array, level, settings)
    else:
        surface = density_surface(sampler, axes, step, level, settings)
    why = '' if options.fused or options.threshold else ', where half of the light of the training rays has stopped'
    print(f'surface   {surface.words}{why}')
    if scene.space.projective and options.bounds is not None:  # a box of the world is no box in ray coordinates
        surface = surface.within(options.bounds, scene.space)
    vertices, faces = parted(*fewer_faces(surface.values, surface.vertices, surface.faces, step, surface.level,
                                          options.faces, settings.textured_faces if texture else 0, settings),
                             settings.parted_share)
    mesh = coloured_mesh(sampler, vertices, faces, settings.colour_reach * step, scene.space, settings.colour_samples)
    small, drawn = coarsened(mesh, vertices), mesh_views(mesh, cameras.take(np.arange(4) * len(cameras) // 4))
    closed = closedness(mesh.faces)  # before charts of a texture cut the mesh open
    if texture:
        mesh = textured(mesh, vertices, texture, views, settings.texel_reach * step, settings)
    if to_file is not None:
        mesh.apply_transform(to_file)
    write_mesh(path, mesh, up_direction(scene.training_cameras) if to_file is None else None)
    save_png(picture := path.with_name(f'{path.stem}_views.png'), drawn)
    (x, y, z), (X, Y, Z) = mesh.bounds
    print(f'mesh      {len(mesh.vertices):,} vertices, {len(mesh.faces):,} of {len(surface.faces):,} faces, '
          f'{closed}, {surface.dropped} floaters dropped\n'
          f'bounds    {x:.3f} {y:.3f} {z:.3f} to {X:.3f} {Y:.3f} {Z:.3f}, '
          f'area {surface_area(mesh.vertices, mesh.faces):.4g}\n'
          f'mesh in {path}, four views of it in {picture}')
    return small


def write_mesh(path: Path, mesh: trimesh.Trimesh, up: np.ndarray | None = None) -> None:
    """Writes a mesh with vertex colours or a texture, in the format of the name's ending. A unit vector `up` [3] of the
    mesh's coordinates becomes y in a .glb or .obj. A .glb keeps its coordinates and has a node that turns it. An .obj
    has no nodes, so its vertices are turned; its texture is a .png beside it, with an .mtl."""
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
