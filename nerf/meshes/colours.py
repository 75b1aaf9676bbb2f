"""Colours of a mesh: of its vertices from the field, or a texture from the training cameras."""

from __future__ import annotations

import numpy as np
import torch
import trimesh
from numba import njit, prange
from PIL import Image
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm
from trimesh.visual.material import PBRMaterial

from nerf.fields.interface import Field, Sampler, pieces
from nerf.meshes.options import DEFAULTS, MeshSettings
from nerf.meshes.triangles import vertex_normals
from nerf.meshes.unwrapping import laid_out
from nerf.meshes.views import SeenFrom, onto_pixels
from nerf.space import Space
from run_nerf_helpers import Rays, composite, ray_points, stratified_z, to8b

RAYS_AT_ONCE = 2048
TEXELS_AT_ONCE = 2 ** 19
NOTHING = 1e-6  # opacity below which a short ray shows nothing


@torch.inference_mode()
def coloured_mesh(sampler: Sampler, vertices: np.ndarray, faces: np.ndarray, reach: float, space: Space,
                  samples: int = DEFAULTS.colour_samples) -> trimesh.Trimesh:
    """Mesh in world coordinates whose vertices have the colours that a view along the inward normal shows. The view is
    composited along a ray that reaches `reach` to both sides of the vertex. At the vertex itself density only begins,
    and the field's colour has hardly been trained. Vertices [V, 3] and reach are in ray coordinates."""
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


def textured(mesh: trimesh.Trimesh, flat: np.ndarray, size: int, views: list[SeenFrom], within: float,
             settings: MeshSettings = DEFAULTS) -> trimesh.Trimesh:
    """Copy of a mesh with a texture instead of vertex colours. Vertices are doubled where charts of the texture meet.
    The texture has `size` texels along a side. A face has texels in proportion to its size in ray coordinates, `flat`
    [V, 3]. A texel has the colour of `seen_colours`, because highlights that move with the cameras disappear in a
    median. A texel that fewer than `texel_views` views see has the colour that its face's vertices have."""
    vertices, normals = np.asarray(mesh.vertices, np.float32), vertex_normals(mesh.vertices, mesh.faces)
    of, faces, uv, shown, weights = laid_out(flat, mesh.faces, size, settings)
    covered = shown >= 0
    corners, weights = of[faces[shown[covered]]], weights[covered][..., None].astype(np.float32)
    points, directions = ((weights * part[corners]).sum(1) for part in (vertices, normals))
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-9)
    colours, count = seen_colours(points, directions, views, within, settings)
    of_vertices = np.asarray(mesh.visual.vertex_colors)[:, :3].astype(np.float32) / 255.0
    colours = np.where((count < settings.texel_views)[:, None], (weights * of_vertices[corners]).sum(1), colours)
    image = np.zeros((size, size, 3), np.float32)
    image[covered] = colours
    # Texels outside the charts have the nearest chart's colour, because programs interpolate across borders.
    row, column = ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)
    picture = Image.fromarray(to8b(image[row, column])[::-1])  # v goes upwards
    material = PBRMaterial(baseColorTexture=picture, metallicFactor=0.0, roughnessFactor=1.0, name='field')
    return trimesh.Trimesh(vertices[of], faces, vertex_normals=normals[of], process=False,
                           visual=trimesh.visual.TextureVisuals(uv, material=material))


def seen_colours(points: np.ndarray, normals: np.ndarray, views: list[SeenFrom], within: float,
                 settings: MeshSettings = DEFAULTS) -> tuple[np.ndarray, np.ndarray]:
    """Median colours [N, 3] of points [N, 3] over the views that see them, else 0, and the number [N] of these views.
    Points and unit normals are in world coordinates. Views show a point if depths differ by `within` at most."""
    colours, counts = np.zeros((len(points), 3), np.float32), np.zeros(len(points), np.int64)
    for part in pieces(len(points), TEXELS_AT_ONCE):
        some = points[part]
        found, seen = np.zeros((len(views), len(some), 3), np.uint8), np.zeros((len(views), len(some)), np.bool_)
        for i, view in enumerate(views):
            _colours_in(some, normals[part], view.place, view.to_pixels, view.depth, view.rgb, view.opacity, within,
                        settings.oblique_cosine, settings.whole_opacity, found[i], seen[i])
        colours[part], counts[part] = _medians(found, seen), seen.sum(0)
    return colours, counts


@njit(parallel=True, cache=True)
def _colours_in(points, normals, place, to_pixels, depth, rgb, opacity, within, oblique, whole, found, seen):
    """Notes the colours [N, 3] uint8 of points that a view sees, and which points [N] bool these are."""
    height, width = depth.shape
    for n in prange(len(points)):
        x, y, z = points[n, 0] - place[0], points[n, 1] - place[1], points[n, 2] - place[2]
        cosine = -(normals[n, 0] * x + normals[n, 1] * y + normals[n, 2] * z) / np.sqrt(x * x + y * y + z * z)
        row, column, away, over, under = onto_pixels(to_pixels, points[n, 0], points[n, 1], points[n, 2], 1.0)
        if not (away > 0.0 and cosine >= oblique):
            continue
        row, column, measured = row / away, column / away, over / under
        if not (0.0 <= row < height - 1 and 0.0 <= column < width - 1):
            continue
        top, left = int(row), int(column)
        down, right = row - top, column - left
        tells = True
        for i in range(2):
            for j in range(2):
                if opacity[top + i, left + j] < whole or abs(depth[top + i, left + j] - measured) > within / cosine:
                    tells = False
        if not tells:
            continue
        seen[n] = True
        for channel in range(3):
            above = (1 - right) * rgb[top, left, channel] + right * rgb[top, left + 1, channel]
            below = (1 - right) * rgb[top + 1, left, channel] + right * rgb[top + 1, left + 1, channel]
            found[n, channel] = np.uint8(min(max(255.0 * ((1 - down) * above + down * below), 0.0), 255.0) + 0.5)


@njit(parallel=True, cache=True)
def _medians(found, seen):
    """Medians [N, 3] in [0, 1] of colours [V, N, 3] over the views that saw a point, seen [V, N] bool; else 0."""
    medians = np.zeros((seen.shape[1], 3), np.float32)
    for n in prange(len(medians)):
        if seen[:, n].any():
            for channel in range(3):
                medians[n, channel] = np.median(found[:, n, channel][seen[:, n]]) / 255.0
    return medians
