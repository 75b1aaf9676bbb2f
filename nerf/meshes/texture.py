"""A mesh's texture: what the training cameras see of it, without the highlights that move with them."""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from scipy import ndimage

from nerf.meshes.faces import vertex_normals
from nerf.meshes.projection import measured, pixel_of
from nerf.meshes.unwrapping import laid_out
from nerf.meshes.views import SeenFrom
from run_nerf_helpers import to8b

OBLIQUE = 0.2  # cosine between a texel's normal and the direction to a camera, from which on the camera tells
WHOLLY = 0.98  # opacity of pixels that tell: at an outline they show the background too
FEWEST = 2  # views of a texel
AT_ONCE = 2 ** 19  # texels


def textured(mesh, flat: np.ndarray, size: int, views: list[SeenFrom], within: float):
    """A copy of a trimesh.Trimesh with vertex colours that has a texture instead; vertices are doubled where its pieces
    meet.

    Args:
        mesh: in world coordinates.
        flat: its vertices [V, 3] in the field's coordinates: what is large in these has many texels.
        size: of the texture, in texels along a side.
        views: of the field. A texel has the median colour over those that see it; where these are fewer than FEWEST,
            that of its face's vertices.
        within: how far before or behind what a view shows a texel can be to be what it shows.
    """
    import trimesh
    from PIL import Image
    from trimesh.visual.material import PBRMaterial

    vertices, normals = np.asarray(mesh.vertices, np.float32), vertex_normals(mesh.vertices, mesh.faces)
    of, faces, uv, shown, weights = laid_out(flat, mesh.faces, size)
    covered = shown >= 0
    corners, weights = of[faces[shown[covered]]], weights[covered][..., None].astype(np.float32)
    points, directions = ((weights * part[corners]).sum(1) for part in (vertices, normals))
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-9)
    colours, count = seen_colours(points, directions, views, within)
    of_vertices = np.asarray(mesh.visual.vertex_colors)[:, :3].astype(np.float32) / 255.0
    colours = np.where((count < FEWEST)[:, None], (weights * of_vertices[corners]).sum(1), colours)
    image = np.zeros((size, size, 3), np.float32)
    image[covered] = colours
    # Beyond its pieces each texel has the colour of the nearest one: a viewer interpolates across their borders.
    row, column = ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)
    picture = Image.fromarray(to8b(image[row, column])[::-1])  # v goes upwards
    material = PBRMaterial(baseColorTexture=picture, metallicFactor=0.0, roughnessFactor=1.0, name='field')
    return trimesh.Trimesh(vertices[of], faces, vertex_normals=normals[of], process=False,
                           visual=trimesh.visual.TextureVisuals(uv, material=material))


def seen_colours(points: np.ndarray, normals: np.ndarray, views: list[SeenFrom],
                 within: float) -> tuple[np.ndarray, np.ndarray]:
    """The median colours [N, 3] float32 of points on a surface over the views that see them, and how many these are."""
    colours, counts = np.zeros((len(points), 3), np.float32), np.zeros(len(points), np.int64)
    for start in range(0, len(points), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        some = points[part]
        found, seen = np.zeros((len(views), len(some), 3), np.uint8), np.zeros((len(views), len(some)), np.bool_)
        for i, view in enumerate(views):
            _colours_in(some, normals[part], view.rotation, view.place, view.focal, view.depth, view.rgb, view.opacity,
                        within, view.ndc, found[i], seen[i])
        colours[part], counts[part] = _medians(found, seen), seen.sum(0)
    return colours, counts


@njit(parallel=True, cache=True)
def _colours_in(points, normals, rotation, place, focal, depth, rgb, opacity, within, ndc, found, seen):
    """Notes the colours [N, 3] of points that a view sees, and which these are [N]."""
    height, width = depth.shape
    for n in prange(len(points)):
        x, y, z = points[n, 0] - place[0], points[n, 1] - place[1], points[n, 2] - place[2]
        cosine = -(normals[n, 0] * x + normals[n, 1] * y + normals[n, 2] * z) / np.sqrt(x * x + y * y + z * z)
        row, column, away = pixel_of(x, y, z, rotation, focal, height, width)
        if not (away > 0.0 and cosine >= OBLIQUE and 0.0 <= row < height - 1 and 0.0 <= column < width - 1):
            continue
        top, left = int(row), int(column)
        down, right = row - top, column - left
        tells, away = True, measured(away, ndc)
        for i in range(2):
            for j in range(2):
                if opacity[top + i, left + j] < WHOLLY or abs(depth[top + i, left + j] - away) > within / cosine:
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
    """Medians [N, 3] in [0, 1] over the views of found [V, N, 3] that saw a point, seen [V, N]; else 0."""
    medians = np.zeros((seen.shape[1], 3), np.float32)
    for n in prange(len(medians)):
        if seen[:, n].any():
            for channel in range(3):
                medians[n, channel] = np.median(found[:, n, channel][seen[:, n]]) / 255.0
    return medians
