"""What a field looks like from training cameras, for whoever makes a mesh of it: depth and colour."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from nerf.cameras import Cameras
from nerf.fields.model import Model
from nerf.rendering import draw_view
from nerf.scene import Scene

VIEWS, RAYS = 64, 4_000_000  # that are drawn at most, in all
SOLID = 0.5  # opacity of a ray that is stopped


class SeenFrom(NamedTuple):
    """A pinhole's picture of a field. Pixel (row, column) is at (row + 0.5, column + 0.5)."""

    rotation: np.ndarray  # [3, 3] of the camera to the world, OpenGL axes
    place: np.ndarray  # [3]
    focal: float  # in pixels, as the centre, which is that of the picture
    depth: np.ndarray  # [H, W] float32 along the camera's axis; infinite where nothing stops a ray
    rgb: np.ndarray  # [H, W, 3] float32
    opacity: np.ndarray  # [H, W] float32


def drawn_views(model: Model, scene: Scene, step: float) -> list[SeenFrom]:
    """The field from training cameras spread over all of them, in pixels as wide as a length `step` at the scene's
    centre, or wider where these would be too many."""
    views, cameras = [], _pinholes(scene, step)
    for i in tqdm(range(len(cameras)), 'drawing views', disable=None, leave=False):
        camera = cameras.take([i])
        *_, picture = draw_view(model, scene, camera)
        depth = torch.where(picture.acc >= SOLID, picture.depth / picture.acc, torch.inf)
        pose = camera.poses[0].double().numpy()
        depth, rgb, opacity = (part.float().cpu().numpy().reshape(*camera.size(0), *part.shape[1:])
                               for part in (depth, picture.rgb, picture.acc))
        views.append(SeenFrom(pose[:, :3].copy(), pose[:, 3].copy(), float(camera.intrinsics[0, 0]), depth, rgb,
                              opacity))
    return views


def _pinholes(scene: Scene, step: float) -> Cameras:
    views = scene.i_train[np.linspace(0, len(scene.i_train) - 1, min(VIEWS, len(scene.i_train))).astype(int)]
    cameras = scene.cameras.take(views)
    sizes, focal = cameras.sizes.double(), cameras.intrinsics[:, :2].mean(1)
    distance = cameras.poses[:, :, 3].double().norm(dim=-1) if scene.around else torch.full_like(focal, scene.far)
    factor = distance / (focal * step)  # of the picture's size
    factor *= (RAYS / (factor[:, None] * sizes).prod(1).sum()).sqrt().clamp(max=1.0)
    sizes, focal = (sizes * factor[:, None]).ceil().long().clamp(min=2), focal * factor
    intrinsics = torch.stack([focal, focal, 0.5 * sizes[:, 1], 0.5 * sizes[:, 0]], 1)
    return Cameras(cameras.poses, intrinsics, sizes, bounds=cameras.bounds, within=0.5)
