"""A mesh as cameras see it."""

from __future__ import annotations

import numpy as np

from nerf.cameras import Cameras
from nerf.meshes.faces import vertex_normals
from nerf.meshes.raster import rasterised
from run_nerf_helpers import to8b

WIDTH = 400  # pixels of each view
RAYS = 2  # along a pixel's side
DARKEST = 0.35  # what is seen at a right angle to its normal, where what faces the camera has 1


def mesh_views(mesh, cameras: Cameras) -> np.ndarray:
    """A trimesh.Trimesh with vertex colours as cameras of one size see it on white, with light from the camera; lenses
    do not bend, and faces are not seen from behind.

    Returns:
        [H, N * WIDTH, 3] uint8, side by side.
    """
    height, width = cameras.size(0)
    shape = round(WIDTH * height / width), WIDTH
    intrinsics = cameras.intrinsics.double().numpy() * WIDTH / width
    views = [_view(mesh, *camera, shape) for camera in zip(cameras.poses.double().numpy(), intrinsics)]
    return to8b(np.concatenate(views, 1))


def _view(mesh, pose: np.ndarray, intrinsics: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] in [0, 1] from a pose [3, 4] with the fx, fy, cx, cy of a picture of this size."""
    vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces)
    to_camera, (fx, fy, cx, cy) = vertices - pose[:, 3], RAYS * intrinsics
    x, y, z = (to_camera @ pose[:, :3]).T
    depth = np.where(z < 0.0, -z, np.inf)
    a, b, c = (to_camera[faces[:, corner]] for corner in range(3))
    faces = faces[((np.cross(b - a, c - a) * a).sum(1) < 0.0) & (z[faces] < 0.0).all(1)]
    points = np.column_stack([cx + fx * x / depth - 0.5, cy - fy * y / depth - 0.5, np.minimum(depth, 1e9)])
    face, weights = rasterised(points, faces, RAYS * shape[0], RAYS * shape[1])
    facing = (to_camera * vertex_normals(vertices, mesh.faces)).sum(1) / np.linalg.norm(to_camera, axis=1)
    light = DARKEST + (1.0 - DARKEST) * np.abs(facing)
    shaded = np.asarray(mesh.visual.vertex_colors)[:, :3] / 255.0 * light[:, None]
    view, covered = np.ones((*face.shape, 3)), face >= 0
    view[covered] = (weights[covered][..., None] * shaded[faces[face[covered]]]).sum(1)
    return view.reshape(shape[0], RAYS, shape[1], RAYS, 3).mean((1, 3))
