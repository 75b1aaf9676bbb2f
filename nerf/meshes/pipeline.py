"""Pipeline from a field to the files of a mesh."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh

from nerf.fields.interface import Sampler
from nerf.files.images import save_png
from nerf.meshes.colours import coloured_mesh
from nerf.meshes.extraction import grid_axes
from nerf.meshes.faces import fewer_faces
from nerf.meshes.geometry import describe_mesh
from nerf.meshes.level import surface_level
from nerf.meshes.options import MeshOptions
from nerf.meshes.picture import coarsened, mesh_views
from nerf.meshes.surface import box_of_surface, density_surface, fused_surface
from nerf.meshes.texture import textured
from nerf.meshes.topology import closedness, parted
from nerf.meshes.views import drawn_views
from nerf.meshes.writing import write_mesh
from nerf.poses import up_direction
from nerf.scene import Scene


def make_mesh(sampler: Sampler, scene: Scene, path: Path, options: MeshOptions,
              to_file: np.ndarray | None = None) -> trimesh.Trimesh:
    """Makes the mesh of a field and writes it. Arguments, result and errors: see `export_mesh`."""
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
        surface = density_surface(sampler, axes, step, level, options.threshold is None, settings)
    print(f'surface   {surface.words}')
    if scene.space.projective and options.bounds is not None:  # a box of the world is no box in ray coordinates
        surface = surface.within(options.bounds, scene.space)
    vertices, faces = fewer_faces(surface.values, surface.vertices, surface.faces, step, surface.level, options.faces,
                                  settings.textured_faces if texture else 0, settings)
    vertices, faces = parted(vertices, faces, settings.parted_share)
    mesh = coloured_mesh(sampler, vertices, faces, settings.colour_reach * step, scene.space, settings.colour_samples)
    small, drawn = coarsened(mesh, vertices), mesh_views(mesh, cameras.take(np.arange(4) * len(cameras) // 4))
    closed = closedness(mesh.faces)  # before charts of a texture cut the mesh open
    if texture:
        mesh = textured(mesh, vertices, texture, views, settings.texel_reach * step, settings)
    if to_file is not None:
        mesh.apply_transform(to_file)
    write_mesh(path, mesh, up_direction(scene.training_cameras) if to_file is None else None)
    save_png(picture := path.with_name(f'{path.stem}_views.png'), drawn)
    print(f'{describe_mesh(mesh, closed, len(surface.faces), surface.dropped)}\n'
          f'mesh in {path}, four views of it in {picture}')
    return small
