"""Samplers whose pictures are known, in place of trained fields, and a scene to show them in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from load_blender import pose_spherical
from nerf.cameras import Cameras
from nerf.fields.interface import Field, Sampler
from nerf.scene import Images, Scene, centred_intrinsics
from nerf.space import Bounded, Space
from run_nerf_helpers import Composite, Rays, RenderResult

BALLS = (((-0.7, 0.0, 0.0), 0), ((0.0, 0.0, 0.7), 1), ((0.6, -0.9, -0.4), 2))  # centre, and channel of the colour
RADIUS = 0.2
BETWEEN = Bounded(2.0, 6.0)  # near and far bound of `scene_of`


class Blank(Field):
    """A field that has nothing but a device, a background and a sampler."""

    def __init__(self, shown: Painted, white_bkgd: bool):
        super().__init__()
        self.unused, self.shown, self.white_bkgd = torch.nn.Parameter(torch.zeros(1)), shown, white_bkgd

    def sampler(self) -> Painted:
        return self.shown


class Painted(Sampler):
    """Shows the result of a function of rays.

    Args:
        paint: from R rays to colours [R, 3], opacities [R] and depths [R] of what they hit.
        tile, supersample: as of `Sampler`.
        white_bkgd: rays end on white.
        coarse: `paint` of an earlier pass; None: there is none.
    """

    name = 'painted'

    def __init__(self, paint: Callable[[Rays], tuple[Tensor, Tensor, Tensor]], tile: int = 100, supersample: int = 1,
                 white_bkgd: bool = True, coarse: Callable | None = None):
        super().__init__(Blank(self, white_bkgd), tile, supersample)
        self.paint, self.coarse, self.tiles = paint, coarse, []
        self.passes = () if coarse is None else ('coarse',)

    def render(self, rays: Rays) -> RenderResult:
        assert torch.is_inference_mode_enabled()
        self.tiles.append(len(rays.near))
        if self.coarse is None:
            return RenderResult(self._shown(self.paint, rays), None, None)
        return RenderResult(self._shown(self.paint, rays), self._shown(self.coarse, rays), rays.viewdirs[:, 0].abs())

    def _shown(self, paint: Callable, rays: Rays) -> Composite:
        rgb, acc, depth = paint(rays)
        background = float(self.white_bkgd) * (1.0 - acc[:, None])
        return Composite(acc[:, None] * rgb + background, torch.zeros_like(acc), acc, acc[:, None], acc * depth)


def balls(rays: Rays) -> tuple[Tensor, Tensor, Tensor]:
    """Opaque balls of radius 0.2: red at the origin's left (-x), green up (+z), blue nearer to the camera (-y)."""
    rgb, acc = torch.zeros_like(rays.origins), torch.zeros(len(rays.near))
    depth = torch.full_like(acc, torch.inf)
    squared = (rays.directions ** 2).sum(-1)
    for centre, channel in BALLS:
        to_centre = torch.tensor(centre) - rays.origins
        middle = (to_centre * rays.directions).sum(-1) / squared  # depth of the point nearest to the centre
        aside = (to_centre ** 2).sum(-1) - middle ** 2 * squared
        surface = middle - ((RADIUS ** 2 - aside).clamp(min=0.0) / squared).sqrt()
        hit = (aside < RADIUS ** 2) & (surface < depth)
        rgb[hit] = torch.eye(3)[channel]
        acc, depth = torch.where(hit, 1.0, acc), torch.where(hit, surface, depth)
    return rgb, acc, torch.where(acc > 0, depth, 0.0)


def scene_of(H: int, W: int, images: np.ndarray | None = None, white_bkgd: bool = True,
             space: Space = BETWEEN) -> Scene:
    """Cameras at y = -4 that look along +y, x to the right, with a focal length of 1.4 W."""
    images = np.zeros((1, H, W, 3), np.uint8) if images is None else images
    pose = pose_spherical(180.0, 0.0, 4.0)[None, :3]
    cameras = Cameras.of_one_kind(np.repeat(pose, len(images), 0), centred_intrinsics(H, W, 1.4 * W), H, W)
    index = np.arange(len(images))
    return Scene(Images.of_one_size(images), cameras, cameras.take([0]), space, white_bkgd, index, index, index)
