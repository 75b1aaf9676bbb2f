"""Colours of a mesh's vertices, from the field."""

from __future__ import annotations

import numpy as np
import torch
import trimesh
from torch import Tensor
from tqdm import tqdm

from nerf.fields.interface import Field, Sampler, pieces
from nerf.meshes.geometry import vertex_normals
from nerf.meshes.options import DEFAULTS
from nerf.space import Space
from run_nerf_helpers import Rays, composite, ray_points, stratified_z, to8b

RAYS_AT_ONCE = 2048
NOTHING = 1e-6  # opacity below which a short ray shows nothing


@torch.inference_mode()
def coloured_mesh(sampler: Sampler, vertices: np.ndarray, faces: np.ndarray, reach: float, space: Space,
                  samples: int = DEFAULTS.colour_samples) -> trimesh.Trimesh:
    """Mesh in world coordinates whose vertices have the colours that a view along the inward normal shows.

    The view is composited along a short ray through the vertex. At the vertex itself density only begins, and the
    field's colour has hardly been trained.

    Args:
        sampler: shows the field.
        vertices, faces: [V, 3] in ray coordinates, and [F, 3].
        reach: distance from the vertex to both ends of its ray, in ray coordinates.
        space: space of the scene.
        samples: samples on the ray.
    """
    normals = torch.from_numpy(vertex_normals(vertices, faces))
    carried = space.to_world(torch.from_numpy(vertices)).numpy()
    mesh = trimesh.Trimesh(carried, faces[:, ::-1] if space.projective else faces, process=False)
    outward = torch.from_numpy(vertex_normals(mesh.vertices, mesh.faces))
    step = reach * normals
    ends = torch.zeros(len(vertices), 1), torch.ones(len(vertices), 1)
    rays = Rays(torch.from_numpy(vertices) + step, -2.0 * step, -outward, *ends)
    tiles = tqdm(pieces(len(vertices), RAYS_AT_ONCE), 'colouring', disable=None, leave=False)
    colours = [_colours(sampler.field, Rays(*(part.to(sampler.device) for part in rays.part(tile))), samples)
               for tile in tiles]
    mesh.visual.vertex_colors = to8b(torch.cat(colours).cpu())
    return mesh


def _colours(field: Field, rays: Rays, samples: int) -> Tensor:
    """Colours [R, 3] that short rays show, as if they were opaque."""
    z = stratified_z(rays.near, rays.far, samples)
    seen = composite(*field.radiance(ray_points(rays, z), rays.viewdirs), z, rays.directions)
    rgb, lost = seen.rgb / seen.acc[:, None].clamp(min=NOTHING), seen.acc < NOTHING
    if lost.any():  # a vertex of faces without area has no normal, and its ray no length
        rgb[lost] = _mean_colours(field, (rays.origins + 0.5 * rays.directions)[lost])
    return rgb


def _mean_colours(field: Field, points: Tensor) -> Tensor:
    """Colours [N, 3] of points [N, 3]: means over views along the axes, in both directions."""
    axes = torch.eye(3, device=points.device)
    views = torch.cat([axes, -axes])  # [6, 3]
    rgb, _ = field.radiance(points[:, None].repeat_interleave(6, 0), views.repeat(len(points), 1))
    return rgb[:, 0].reshape(-1, 6, 3).mean(1)
