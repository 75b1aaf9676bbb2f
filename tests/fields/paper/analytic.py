"""Networks whose field is known, in place of trained ones, and the field and the scene that show them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from load_blender import pose_spherical
from nerf.cameras import Cameras
from nerf.fields.paper.field import PaperField
from nerf.scene import Images, Scene, centred_intrinsics
from nerf.space import Bounded
from run_nerf_helpers import Sampling, raw2colour, raw2density


class Analytic(torch.nn.Module):
    """A network whose subclasses have `values`: raw colour and density [..., 4] of points [..., 3]. Counts points."""

    dtype, space = torch.float32, None

    def __init__(self):
        super().__init__()
        self.network = torch.nn.Linear(1, 1)  # unused, but a field's device is its parameters'
        self.asked, self.calls, self.deepest = 0, [], -math.inf

    def raw(self, points: Tensor, viewdirs: Tensor | None, noise: Tensor | None = None) -> Tensor:
        self.asked += points[..., 0].numel()
        self.calls.append(len(points))
        self.deepest = max(self.deepest, points[..., 1].max().item())
        return self.values(points)

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.raw(points, viewdirs)
        return raw2colour(raw[..., :3]), raw2density(raw[..., 3])

    def density(self, points: Tensor) -> Tensor:
        return self.radiance(points, points)[1]


class Balls(Analytic):
    """Opaque balls of radius 0.2: red at the origin's left (-x), green up (+z), blue nearer to the camera (-y)."""

    balls = (((-0.7, 0.0, 0.0), 0), ((0.0, 0.0, 0.7), 1), ((0.6, -0.9, -0.4), 2))

    def values(self, points):
        raw = torch.full((*points.shape[:-1], 4), -20.0)
        for centre, channel in self.balls:
            inside = (points - torch.tensor(centre)).norm(dim=-1) < 0.2
            raw[..., channel] = torch.where(inside, 20.0, raw[..., channel])
            raw[..., 3] = torch.where(inside, 300.0, raw[..., 3])
        return raw


class Haze(Analytic):
    """A ball of soft edge, half transparent, with colours that change from place to place."""

    def values(self, points):
        density = 6.0 * (1.0 - points.norm(dim=-1)).clamp(min=0.0)
        return torch.cat([3.0 * torch.sin(4.0 * points), density[..., None] - 1e-3], -1)


class Slab(Analytic):
    """A slab, y = -0.1 to 0.1, that shows the set pixels of a mask [H, W] to the camera of `scene_of`."""

    def __init__(self, mask: np.ndarray, density: float = 100.0):
        super().__init__()
        self.mask, self.inside = torch.from_numpy(mask), density

    def values(self, points):
        H, W = self.mask.shape
        x, y, z = points.unbind(-1)
        row, column = (0.5 * side + sign * 1.4 * W * part / (4.0 + y) for side, sign, part in ((H, -1, z), (W, 1, x)))
        shown = self.mask[row.round().long().clamp(0, H - 1), column.round().long().clamp(0, W - 1)] & (y.abs() < 0.1)
        return torch.stack([x, z, y, torch.where(shown, self.inside, -1.0)], -1)


def scene_of(H: int, W: int, white_bkgd: bool = True, far: float = 6.0) -> Scene:
    """A camera at y = -4 that looks along +y, x to the right, with a focal length of 1.4 W."""
    pose = pose_spherical(180.0, 0.0, 4.0)[None, :3]
    cameras, index = Cameras.of_one_kind(pose, centred_intrinsics(H, W, 1.4 * W), H, W), np.arange(1)
    return Scene(Images.of_one_size(np.zeros((1, H, W, 3), np.uint8)), cameras, cameras, Bounded(2.0, far), white_bkgd,
                 index, index, index)


def field_of(coarse: Analytic, fine: Analytic | None, chunk: int = 100, **changes) -> PaperField:
    """A field of two such networks on white, with 64 samples in each pass."""
    sampling = Sampling(64, 64 if fine else 0, white_bkgd=True)._replace(**changes)
    return PaperField(coarse, fine, sampling, chunk)


def mask_of(rows: range, columns: range, shape=(20, 24)) -> np.ndarray:
    """A mask [H, W] with one set rectangle."""
    mask = np.zeros(shape, bool)
    mask[rows.start:rows.stop, columns.start:columns.stop] = True
    return mask
