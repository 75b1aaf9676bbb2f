"""Fields whose look is known, in place of trained networks, and the scene and model that show them."""

from __future__ import annotations

import math

import numpy as np
import torch

from load_blender import pose_spherical
from nerf.cameras import Cameras
from nerf.fields.paper.model import PaperModel
from nerf.scene import Images, Scene, centred_intrinsics
from run_nerf_helpers import Sampling


class Field(torch.nn.Module):
    """A field whose subclasses have `raw`."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.network = torch.nn.Linear(1, 1)  # unused, but a model's device is its parameters'

    def forward(self, points, viewdirs, noise=None):
        raw = self.raw(points)
        return torch.sigmoid(raw[..., :3]), raw[..., 3].relu()

    def density(self, points):
        return self.raw(points)[..., 3].relu()


class Balls(Field):
    """Opaque balls of radius 0.2: red at the origin's left (-x), green up (+z), blue nearer to the camera (-y)."""

    balls = (((-0.7, 0.0, 0.0), 0), ((0.0, 0.0, 0.7), 1), ((0.6, -0.9, -0.4), 2))

    def raw(self, points):
        raw = torch.full((*points.shape[:-1], 4), -20.0)
        for centre, channel in self.balls:
            inside = (points - torch.tensor(centre)).norm(dim=-1) < 0.2
            raw[..., channel] = torch.where(inside, 20.0, raw[..., channel])
            raw[..., 3] = torch.where(inside, 300.0, raw[..., 3])
        return raw


class Shown(Field):
    """A slab, y = -0.1 to 0.1, that shows the pixels of a mask [H, W] to the camera of `scene_of`; counts points."""

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
    return Scene(images=Images.of_one_size(images), cameras=cameras, render_cameras=cameras.take([0]), near=2.0,
                 far=6.0, ndc=False, white_bkgd=white_bkgd, i_train=index, i_val=index, i_test=index)


def balls_model(chunk: int = 100) -> PaperModel:
    return PaperModel(Balls(), Balls(), Sampling(64, 64, white_bkgd=True), chunk)


def mask_of(*pixels: tuple[int, int], shape=(20, 24)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(np.transpose(pixels))] = True
    return mask


def shown_model(coarse: np.ndarray, fine: np.ndarray | None = None, chunk: int = 100, view_chunk: int | None = None,
                **kwargs) -> PaperModel:
    """A model whose fields show masks [H, W]; the fine one shows the coarse one's where it has none of its own."""
    return PaperModel(Shown(coarse, **kwargs), Shown(coarse if fine is None else fine, **kwargs),
                      Sampling(64, 64, white_bkgd=True), chunk, view_chunk)
