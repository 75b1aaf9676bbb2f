"""A mesh as cameras see it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nerf.cameras import Cameras
from nerf.files.images import save_png
from nerf.meshes.faces import vertex_normals
from nerf.meshes.raster import rasterised
from run_nerf_helpers import to8b

WIDTH = 400  # pixels of each view
RAYS = 2  # along a pixel's side
DARKEST = 0.35  # what is seen at a right angle to its normal, where what faces the camera has 1


def draw_mesh_views(path: Path, mesh, cameras: Cameras) -> None:
    """Draws the mesh as cameras see it on white, side by side into one PNG, with light from the camera; lenses do not
    bend, and faces are not seen from behind.

    Args:
        path: the PNG.
        mesh: a trimesh.Trimesh with vertex colours.
        cameras: of one size.
    """
    vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces)
    colours, normals = np.asarray(mesh.visual.vertex_colors)[:, :3] / 255.0, vertex_normals(vertices, faces)
    H, W = cameras.size(0)
    size = round(WIDTH * H / W) * RAYS, WIDTH * RAYS
    views = []
    for pose, (fx, fy, cx, cy) in zip(cameras.poses.double().numpy(), cameras.intrinsics.tolist()):
        to_camera = vertices - pose[:, 3]
        x, y, z = (to_camera @ pose[:, :3]).T
        depth = np.where(z < 0.0, -z, np.inf)
        columns, rows = ((fx * x / depth + cx) * size[1] / W - 0.5, (-fy * y / depth + cy) * size[0] / H - 0.5)
        corners = to_camera[faces]
        towards = (np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) * corners[:, 0]).sum(1) < 0.0
        some = faces[towards & (z[faces] < 0.0).all(1)]
        face, weights = rasterised(np.column_stack([columns, rows, np.minimum(depth, 1e9)]), some, *size)
        facing = np.abs((to_camera * normals).sum(1) / np.maximum(np.linalg.norm(to_camera, axis=1), 1e-9))
        shaded = colours * (DARKEST + (1.0 - DARKEST) * facing[:, None])
        view = np.ones((*size, 3))
        view[face >= 0] = (weights[face >= 0][..., None] * shaded[some[face[face >= 0]]]).sum(1)
        views.append(view.reshape(size[0] // RAYS, RAYS, WIDTH, RAYS, 3).mean((1, 3)))
    save_png(path, to8b(np.concatenate(views, 1)))
