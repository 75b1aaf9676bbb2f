"""Pictures of a mesh as cameras see it, by rasterisation, beside a coarse copy of it for a log."""

from __future__ import annotations

import math

import numpy as np
import trimesh
from numba import njit

from nerf.cameras import Cameras
from nerf.meshes.triangles import vertex_normals
from run_nerf_helpers import to8b

WIDTH = 400  # pixels of each view
RAYS = 2  # rays along a pixel's side
DARKEST = 0.35  # light on a face seen edge on, as a share of that on one which faces the camera
CELLS = 200  # cells of the coarse copy along its longest side: finer ones would be finer than the log's pixels


def mesh_views(mesh: trimesh.Trimesh, cameras: Cameras) -> np.ndarray:
    """Views [H, N * WIDTH, 3] uint8, side by side, of a mesh with vertex colours on white, with light from the camera.
    The N cameras have one size, and their lenses are taken for pinholes. Faces show from outside alone."""
    height, width = cameras.size(0)
    shape = round(WIDTH * height / width), WIDTH
    intrinsics = cameras.intrinsics.double().numpy() * WIDTH / width
    views = [_view(mesh, *camera, shape) for camera in zip(cameras.poses.double().numpy(), intrinsics)]
    return to8b(np.concatenate(views, 1))


def coarsened(mesh: trimesh.Trimesh, vertices: np.ndarray) -> trimesh.Trimesh:
    """Coarse copy of a mesh with vertex colours: vertices in a cell of a grid, by coordinates [V, 3], become one."""
    cell = np.ptp(vertices, axis=0).max() / CELLS
    _, first, cluster, count = np.unique(np.rint(vertices / cell).astype(np.int64), axis=0, return_index=True,
                                         return_inverse=True, return_counts=True)
    cluster = cluster.reshape(-1)
    means = np.stack([np.bincount(cluster, axis) for axis in mesh.vertices.T], 1) / count[:, None]
    faces = cluster[mesh.faces]
    faces = faces[(faces != np.roll(faces, 1, 1)).all(1)]
    return trimesh.Trimesh(means, faces, vertex_colors=mesh.visual.vertex_colors[first], process=False)


def _view(mesh: trimesh.Trimesh, pose: np.ndarray, intrinsics: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """View [H, W, 3] in [0, 1] from a pose [3, 4], with fx, fy, cx, cy [4] in pixels of a picture of this shape."""
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


@njit(cache=True)
def rasterised(points, faces, height, width):
    """Nearest face [H, W] int64 at each pixel, else -1, and its barycentric weights [H, W, 3] float64 in space. Points
    [V, 3] float64 are x and y in pixels, whose centres are at whole numbers, and depth, above 0."""
    depth = np.full((height, width), np.inf)
    shown, weights = np.full((height, width), -1), np.zeros((height, width, 3))
    for f in range(len(faces)):
        a, b, c = points[faces[f, 0]], points[faces[f, 1]], points[faces[f, 2]]
        area = (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])
        if min(a[2], b[2], c[2]) <= 1e-6 or area == 0.0:
            continue
        top, bottom = max(math.ceil(min(a[1], b[1], c[1])), 0), min(math.floor(max(a[1], b[1], c[1])), height - 1)
        left, right = max(math.ceil(min(a[0], b[0], c[0])), 0), min(math.floor(max(a[0], b[0], c[0])), width - 1)
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                u = ((b[0] - column) * (c[1] - row) - (c[0] - column) * (b[1] - row)) / area
                v = ((c[0] - column) * (a[1] - row) - (a[0] - column) * (c[1] - row)) / area
                w = 1.0 - u - v
                if u < 0.0 or v < 0.0 or w < 0.0:
                    continue
                inverse = u / a[2] + v / b[2] + w / c[2]
                if 1.0 / inverse < depth[row, column]:
                    depth[row, column], shown[row, column] = 1.0 / inverse, f
                    weights[row, column] = u / a[2] / inverse, v / b[2] / inverse, w / c[2] / inverse
    return shown, weights
