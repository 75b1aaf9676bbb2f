"""Texture of a mesh: the colours that training cameras see on it, without highlights that move with the cameras."""

from __future__ import annotations

import numpy as np
import trimesh
from numba import njit, prange
from PIL import Image
from scipy import ndimage
from trimesh.visual.material import PBRMaterial

from nerf.fields.interface import pieces
from nerf.meshes.geometry import vertex_normals
from nerf.meshes.options import DEFAULTS, MeshSettings
from nerf.meshes.unwrapping import laid_out
from nerf.meshes.views import SeenFrom, onto_pixels
from run_nerf_helpers import to8b

TEXELS_AT_ONCE = 2 ** 19


def textured(mesh: trimesh.Trimesh, flat: np.ndarray, size: int, views: list[SeenFrom], within: float,
             settings: MeshSettings = DEFAULTS) -> trimesh.Trimesh:
    """Copy of a mesh with a texture instead of vertex colours. Vertices are doubled where charts of the texture meet.

    A texel has the median colour of the views that see it. If fewer than `texel_views` do, it has the colour that its
    face's vertices have.

    Args:
        mesh: mesh with vertex colours, in world coordinates.
        flat: [V, 3] its vertices in ray coordinates: faces have texels in proportion to their size there.
        size: texels along a side of the texture.
        views: views of the field from training cameras.
        within: difference of measured depth up to which a texel is the surface that a view shows.
    """
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
    """Median colours of points on a surface over the views that see them.

    Args:
        points, normals: [N, 3] in world coordinates, the normals of length 1.
        views: views of the field from training cameras.
        within: difference of measured depth up to which a point is the surface that a view shows.

    Returns:
        Colours [N, 3] float32, 0 for points that no view sees, and the number [N] of views that see each point.
    """
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
