"""Fields whose density and colours are known, in place of trained ones, and scenes to show them in."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from load_blender import pose_spherical
from nerf.cameras import Cameras
from nerf.fields.interface import Field, Sampler
from nerf.fields.paper.field import PaperField
from nerf.scene import Images, Scene, centred_intrinsics
from nerf.space import Bounded
from run_nerf_helpers import Composite, Rays, RenderResult, Sampling, composite, disparity, ray_points, stratified_z


class Solid(Field):
    """Field of a known density and colour.

    Args:
        density: from points [..., 3] in ray coordinates to densities [...].
        colour: from points [R, S, 3] and viewing directions [R, 3] to colours [R, S, 3].
        samples: samples along a ray of a picture.
    """

    def __init__(self, density: Callable[[Tensor], Tensor], colour: Callable[[Tensor, Tensor], Tensor],
                 samples: int = 256):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))  # a field's device is that of its parameters
        self.density_at, self.colour_at, self.samples = density, colour, samples

    def density(self, points: Tensor) -> Tensor:
        return self.density_at(points)

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        return self.colour_at(points, viewdirs), self.density_at(points)

    def sampler(self) -> EvenSampler:
        return EvenSampler(self, 4096)


class EvenSampler(Sampler):
    """Shows a `Solid` by samples spread evenly along each ray."""

    name = 'even'

    def render(self, rays: Rays) -> RenderResult:
        z = stratified_z(rays.near, rays.far, self.field.samples)
        shown = composite(*self.field.radiance(ray_points(rays, z), rays.viewdirs), z, rays.directions)
        disp = disparity(shown.depth, shown.acc)
        return RenderResult(Composite(shown.rgb, disp, shown.acc, shown.weights, shown.depth), None, None)


class RawField(torch.nn.Module):
    """Network's stand-in whose subclasses have `raw`."""

    dtype, space = torch.float32, None

    def __init__(self):
        super().__init__()
        self.network = torch.nn.Linear(1, 1)  # unused, but a field's device is that of its parameters

    def forward(self, points, viewdirs, noise=None):
        raw = self.raw(points)
        return torch.sigmoid(raw[..., :3]), raw[..., 3].relu()

    def density(self, points):
        return self.raw(points)[..., 3].relu()


class Balls(RawField):
    """Opaque balls of radius 0.2: red at the origin's left (-x), green up (+z), blue nearer to the camera (-y)."""

    balls = (((-0.7, 0.0, 0.0), 0), ((0.0, 0.0, 0.7), 1), ((0.6, -0.9, -0.4), 2))

    def raw(self, points):
        raw = torch.full((*points.shape[:-1], 4), -20.0)
        for centre, channel in self.balls:
            inside = (points - torch.tensor(centre)).norm(dim=-1) < 0.2
            raw[..., channel] = torch.where(inside, 20.0, raw[..., channel])
            raw[..., 3] = torch.where(inside, 300.0, raw[..., 3])
        return raw


class Shown(RawField):
    """Slab from y = -0.1 to 0.1 that shows the pixels of a mask [H, W] to the camera of `scene_of`; counts points."""

    def __init__(self, mask: np.ndarray, density: float = 100.0):
        super().__init__()
        self.mask, self.inside = torch.from_numpy(mask), density
        self.asked, self.most, self.deepest = 0, 0, -math.inf

    def raw(self, points):
        self.asked += points[..., 0].numel()
        self.most = max(self.most, points[..., 0].numel())
        self.deepest = max(self.deepest, points[..., 1].max().item())
        H, W = self.mask.shape
        x, y, z = points.unbind(-1)
        row, column = (0.5 * side + sign * 1.4 * W * part / (4.0 + y) for side, sign, part in ((H, -1, z), (W, 1, x)))
        shown = self.mask[row.round().long().clamp(0, H - 1), column.round().long().clamp(0, W - 1)] & (y.abs() < 0.1)
        return torch.stack([x, z, y, torch.where(shown, self.inside, -1.0)], -1)


def scene_of(H: int, W: int, images: np.ndarray | None = None, white_bkgd: bool = True) -> Scene:
    """Cameras at y = -4 that look along +y, x to the right; near 2, far 6."""
    images = np.zeros((1, H, W, 3), np.uint8) if images is None else images
    pose = pose_spherical(180.0, 0.0, 4.0)[None, :3]
    cameras = Cameras.of_one_kind(np.repeat(pose, len(images), 0), centred_intrinsics(H, W, 1.4 * W), H, W)
    index = np.arange(len(images))
    return Scene(Images.of_one_size(images), cameras, cameras.take([0]), Bounded(2.0, 6.0), white_bkgd, index, index,
                 index)


def balls_model(tile: int = 100) -> PaperField:
    """Field that shows the balls of `Balls` on white, at most `tile` rays at once."""
    return PaperField(Balls(), Balls(), Sampling(64, 64, white_bkgd=True), tile)


def mask_of(*pixels: tuple[int, int], shape=(20, 24)) -> np.ndarray:
    """Mask of a shape in which some pixels (row, column) are set."""
    mask = np.zeros(shape, bool)
    mask[tuple(np.transpose(pixels))] = True
    return mask


def shown_model(coarse: np.ndarray, fine: np.ndarray | None = None, tile: int = 100,
                density: float = 100.0) -> PaperField:
    """Field whose networks show masks [H, W]; fine None: that of the coarse one."""
    return PaperField(Shown(coarse, density), Shown(coarse if fine is None else fine, density),
                      Sampling(64, 64, white_bkgd=True), tile)
