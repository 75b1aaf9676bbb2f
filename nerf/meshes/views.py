"""Views of a field from training cameras: depth and colour, for making a mesh."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from tqdm import tqdm

from nerf.cameras import Cameras
from nerf.fields.interface import Sampler
from nerf.meshes.options import DEFAULTS, MeshSettings
from nerf.rendering import draw, view_rays
from nerf.scene import Scene
from nerf.space import Space


class SeenFrom(NamedTuple):
    """Picture of a field from a pinhole camera. Pixel (row, column) is at (row + 0.5, column + 0.5)."""
    place: np.ndarray  # [3] position of the camera in world coordinates
    focal: float  # focal length in pixels
    to_pixels: np.ndarray  # [5, 4] from world points to pixels: see `pixel_matrix`
    depth: np.ndarray  # [H, W] float32 measured depth; infinite where nothing stops a ray, NaN: unknown
    points: np.ndarray  # [H, W, 3] float32 points that are seen, in ray coordinates
    rgb: np.ndarray  # [H, W, 3] float32
    opacity: np.ndarray  # [H, W] float32


def pixel_matrix(pose: np.ndarray, focal: float, height: int, width: int, space: Space) -> np.ndarray:
    """Matrix [5, 4] from world points to the pixels of a pinhole camera whose axis goes through the picture's centre.
    It maps (q x, q y, q z, q) to (d row, d column, d, r D, r): d is q times the depth along the camera's axis, and D
    the measured depth (`Space.projection`). The factors q and r are free. The pose [3, 4] is camera-to-world, with
    OpenGL axes."""
    right, up, back = np.column_stack([pose[:, :3].T, -pose[:, :3].T @ pose[:, 3]])
    away, scale = -back, np.array([0.0, 0.0, 0.0, 1.0])
    return np.stack([0.5 * (height - 1) * away - focal * up, 0.5 * (width - 1) * away + focal * right, away,
                     *(along * away + fixed * scale for along, fixed in space.depth_measure)])


def stacked(views: list[SeenFrom], space: Space) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views as arrays, for compiled loops: depths [V, H, W] float32, padded with infinity, the views' sizes [V, 2], and
    matrices [V, 5, 4] from ray coordinates to their pixels."""
    sizes = np.array([view.depth.shape for view in views])
    depth = np.full((len(views), *sizes.max(0)), np.inf, np.float32)
    for padded, view, (height, width) in zip(depth, views, sizes):
        padded[:height, :width] = view.depth
    return depth, sizes, np.stack([view.to_pixels @ space.projection() for view in views])


@njit(cache=True, error_model='numpy')
def onto_pixels(matrix, x, y, z, q):
    """Product of a matrix [5, 4] with (x, y, z, q), for compiled loops."""
    return (matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z + matrix[0, 3] * q,
            matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z + matrix[1, 3] * q,
            matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z + matrix[2, 3] * q,
            matrix[3, 0] * x + matrix[3, 1] * y + matrix[3, 2] * z + matrix[3, 3] * q,
            matrix[4, 0] * x + matrix[4, 1] * y + matrix[4, 2] * z + matrix[4, 3] * q)


def drawn_views(sampler: Sampler, scene: Scene, step: float, most: int,
                settings: MeshSettings = DEFAULTS) -> list[SeenFrom]:
    """Views of a field from at most `views` training cameras, spread evenly over all of them. A pixel is `step` wide at
    the scene's centre, in ray coordinates, and wider if there would be more than `most` rays."""
    count = min(settings.views, len(scene.i_train))
    cameras = scene.cameras.take(scene.i_train[np.linspace(0, len(scene.i_train) - 1, count).astype(int)])
    sizes, focal = cameras.sizes.double(), cameras.intrinsics[:, :2].mean(1)
    factor = scene.space.pixel_sides(cameras) / step  # of the picture's size
    factor *= (most / (factor[:, None] * sizes).prod(1).sum()).sqrt().clamp(max=1.0)
    sizes, focal = (sizes * factor[:, None]).ceil().long().clamp(min=2), focal * factor
    intrinsics = torch.stack([focal, focal, 0.5 * sizes[:, 1], 0.5 * sizes[:, 0]], 1)
    pinholes = Cameras(cameras.poses, intrinsics, sizes, bounds=cameras.bounds, within=0.5)
    return [_seen_from(sampler, scene.space, pinholes.take([i]), settings.solid_opacity)
            for i in tqdm(range(count), 'drawing views', disable=None, leave=False)]


@torch.inference_mode()
def _seen_from(sampler: Sampler, space: Space, camera: Cameras, solid: float) -> SeenFrom:
    """View of one pinhole camera. A ray ends where its opacity is at least `solid`."""
    rays, (height, width) = view_rays(sampler, space, camera), camera.size(0)
    *_, picture = draw(sampler, rays)
    stopped = picture.acc >= solid
    depth = torch.where(stopped, picture.depth / picture.acc, torch.inf)
    points = rays.origins + depth[:, None] * rays.directions
    points, stopped, rgb, opacity = (part.cpu().numpy().reshape(height, width, *part.shape[1:]) for part in (
        points.float(), stopped, picture.rgb.float(), picture.acc.float()))
    pose, focal = camera.poses[0].double().cpu().numpy(), float(camera.intrinsics[0, 0])
    to_pixels = pixel_matrix(pose, focal, height, width, space)
    seen = np.column_stack([points[stopped].astype(np.float64), np.ones(stopped.sum())])
    over, under = to_pixels[3:] @ space.projection() @ seen.T
    measured = np.full((height, width), np.inf, np.float32)
    measured[stopped] = over / under
    return SeenFrom(pose[:, 3].copy(), focal, to_pixels, measured, points, rgb, opacity)
