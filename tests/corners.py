"""A made scene with exact depths: the corner of a room, whose three walls have waves of colour on them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nerf.cameras import Cameras
from nerf.fields.interface import Sampler
from run_nerf_helpers import Composite, Rays, RenderResult

WALLS = ((2, 0.0), (0, -2.0), (1, 2.0))  # axis across each wall, and its place on it
WAVES = torch.tensor([[3.0, 1.0, 2.0], [-2.0, 4.0, 1.0], [1.0, -3.0, 3.5]])


def depths(origins: Tensor, directions: Tensor) -> Tensor:
    """Depths [...] at which rays meet a wall."""
    met = torch.stack([(place - origins[..., axis]) / directions[..., axis] for axis, place in WALLS], -1)
    return torch.where(met > 0.0, met, torch.inf).amin(-1)


def colours(points: Tensor) -> Tensor:
    """Colours [..., 3] at points [..., 3]."""
    return 0.5 + 0.25 * torch.sin(2.0 * points @ WAVES.T) + 0.2 * torch.sin(5.0 * points @ WAVES.flip(0).T)


def picture(camera: Cameras) -> tuple[Tensor, Tensor]:
    """Colours [H, W, 3] and disparities [H, W] of one camera's view."""
    origins, directions = camera.view_rays(0)
    depth = depths(origins, directions)
    return colours(origins + depth[..., None] * directions), 1.0 / depth


class CornerSampler(Sampler):
    """Shows the corner exactly, in colours times `brightness`."""

    name, device, white_bkgd = 'corner', torch.device('cpu'), False

    def __init__(self, brightness: float = 1.0):
        self.tile, self.supersample, self.brightness = 4096, 1, brightness

    def render(self, rays: Rays) -> RenderResult:
        depth = depths(rays.origins, rays.directions)
        rgb = self.brightness * colours(rays.origins + depth[:, None] * rays.directions)
        opaque = torch.ones_like(depth)
        return RenderResult(Composite(rgb, 1.0 / depth, opaque, opaque[:, None], depth), None, None)


def cameras_around(count: int = 5, height: int = 60, width: int = 80, focal: float = 70.0,
                   lens: list[float] | None = None, fisheye: bool = False) -> Cameras:
    """Cameras on an arc before the corner, which look at its middle."""
    poses = []
    for i in range(count):
        azimuth = 1.2 * i / (count - 1) - 0.6
        position = np.array([2.5 * np.cos(azimuth) + 0.5, -2.5 * np.sin(azimuth) - 1.5, 2.0 + 0.2 * (i % 3)])
        back = position - [-1.0, 1.0, 0.3]
        back /= np.linalg.norm(back)
        right = np.cross([0.0, 0.0, 1.0], back)
        right /= np.linalg.norm(right)
        poses.append(np.stack([right, np.cross(back, right), back, position], 1))
    return Cameras(torch.tensor(np.array(poses)).float(),
                   torch.tensor([[focal, focal, width / 2, height / 2]], dtype=torch.float64).repeat(count, 1),
                   torch.tensor([[height, width]]).repeat(count, 1),
                   None if lens is None else torch.tensor([lens]).repeat(count, 1),
                   torch.ones(count, dtype=torch.bool) if fisheye else None, within=0.5)
