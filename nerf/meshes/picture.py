"""Pictures of a mesh as cameras see it, and a coarse copy of it for a log."""

from __future__ import annotations

import numpy as np
import trimesh

from nerf.cameras import Cameras
from nerf.meshes.geometry import vertex_normals
from nerf.meshes.raster import rasterised
from run_nerf_helpers import to8b

WIDTH = 400  # pixels of each view
RAYS = 2  # rays along a pixel's side
DARKEST = 0.35  # light on a face seen edge on, as a share of that on one which faces the camera
CELLS = 200  # cells of the coarse copy along its longest side: finer ones would be finer than the log's pixels


def mesh_views(mesh: trimesh.Trimesh, cameras: Cameras) -> np.ndarray:
    """Draws a mesh on white as cameras see it, with light from the camera. Faces show from outside alone.

    Args:
        mesh: mesh with vertex colours.
        cameras: N cameras of one size. Their lenses are taken for pinholes.

    Returns:
        [H, N * WIDTH, 3] uint8: views side by side.
    """
    height, width = cameras.size(0)
    shape = round(WIDTH * height / width), WIDTH
    intrinsics = cameras.intrinsics.double().numpy() * WIDTH / width
    views = [_view(mesh, *camera, shape) for camera in zip(cameras.poses.double().numpy(), intrinsics)]
    return to8b(np.concatenate(views, 1))


def coarsened(mesh: trimesh.Trimesh, vertices: np.ndarray, cells: int = CELLS) -> trimesh.Trimesh:
    """Coarse copy of a mesh by vertex clustering: all vertices in a cell of a grid become one.

    Args:
        mesh: mesh with vertex colours.
        vertices: [V, 3] its vertices in the coordinates of the grid.
        cells: cells of the grid along the longest side.
    """
    cell = np.ptp(vertices, axis=0).max() / cells
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
