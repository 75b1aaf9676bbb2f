"""What a field looks like from training cameras, for whoever makes a mesh of it: depth and colour."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from nerf.cameras import Cameras
from nerf.fields.interface import Sampler
from nerf.rendering import draw, view_rays
from nerf.scene import Scene
from nerf.space import NDC
from run_nerf_helpers import world_points

VIEWS = 64  # that are drawn at most
RAYS, TEXTURE_RAYS = 2_000_000, 4_000_000  # in all of them, at most
SOLID = 0.5  # opacity of a ray that is stopped


class SeenFrom(NamedTuple):
    """A pinhole's picture of a field. Pixel (row, column) is at (row + 0.5, column + 0.5)."""

    rotation: np.ndarray  # [3, 3] of the camera to the world, OpenGL axes
    place: np.ndarray  # [3]
    focal: float  # in pixels, as the centre, which is that of the picture
    depth: np.ndarray  # [H, W] float32 along the camera's axis, `measured`; infinite where nothing stops a ray
    points: np.ndarray  # [H, W, 3] float32 in the field's coordinates, that are seen
    rgb: np.ndarray  # [H, W, 3] float32
    opacity: np.ndarray  # [H, W] float32
    ndc: tuple[float, float] = (0.0, 0.0)  # see projection.py

    @property
    def in_ndc(self) -> bool:
        return self.ndc[0] > 0.0


def drawn_views(sampler: Sampler, scene: Scene, step: float, most: int = RAYS) -> list[SeenFrom]:
    """The field from training cameras spread over all of them, in pixels as wide as a length `step` at the scene's
    centre, or wider where these would be more than `most`."""
    cameras = _pinholes(scene, step, most)
    return [_seen_from(sampler, scene, cameras.take([i]))
            for i in tqdm(range(len(cameras)), 'drawing views', disable=None, leave=False)]


@torch.inference_mode()
def _seen_from(sampler: Sampler, scene: Scene, camera: Cameras) -> SeenFrom:
    rays, pose = view_rays(sampler, scene.space, camera), camera.poses[0].double()
    *_, picture = draw(sampler, rays)
    depth = torch.where(picture.acc >= SOLID, picture.depth / picture.acc, torch.inf)
    points, ndc = rays.origins + depth[:, None] * rays.directions, (0.0, 0.0)
    if isinstance(scene.space, NDC):
        height, width, focal = scene.space.camera
        ndc = 2.0 * focal / width, 2.0 * focal / height
        places = world_points(height, width, focal, 1.0, points.double())
        depth = -2.0 / ((pose[:, 3].to(places) - places) @ pose[:, 2].to(places)).clamp(min=1e-6)
        depth = torch.where(picture.acc >= SOLID, depth.float(), torch.inf)
    depth, points, rgb, opacity = (part.float().cpu().numpy().reshape(*camera.size(0), *part.shape[1:])
                                   for part in (depth, points, picture.rgb, picture.acc))
    pose = pose.numpy()
    return SeenFrom(pose[:, :3].copy(), pose[:, 3].copy(), float(camera.intrinsics[0, 0]), depth, points, rgb, opacity,
                    ndc)


def _pinholes(scene: Scene, step: float, most: int) -> Cameras:
    views = scene.i_train[np.linspace(0, len(scene.i_train) - 1, min(VIEWS, len(scene.i_train))).astype(int)]
    cameras = scene.cameras.take(views)
    sizes, focal = cameras.sizes.double(), cameras.intrinsics[:, :2].mean(1)
    factor = scene.space.pixel_sides(cameras) / step  # of the picture's size
    factor *= (most / (factor[:, None] * sizes).prod(1).sum()).sqrt().clamp(max=1.0)
    sizes, focal = (sizes * factor[:, None]).ceil().long().clamp(min=2), focal * factor
    intrinsics = torch.stack([focal, focal, 0.5 * sizes[:, 1], 0.5 * sizes[:, 0]], 1)
    return Cameras(cameras.poses, intrinsics, sizes, bounds=cameras.bounds, within=0.5)
