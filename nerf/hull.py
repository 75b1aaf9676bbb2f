"""The visual hull: where something can be that no camera sees only background behind (Laurentini 1994)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nerf.coverage import EMPTY, covered
from nerf.scene import Scene


def has_hull(scene: Scene) -> bool:
    """Whether the training images, on white, have pixels that show nothing, and cameras that points can be projected
    into simply."""
    return (not scene.space.closed and scene.cameras.distortion is None
            and any((covered(scene.images[int(i)]) == EMPTY).any() for i in scene.i_train))


def inside_hull(scene: Scene, points: Tensor, radius: float) -> Tensor:
    """[N] bool: balls are outside where some training camera sees their centre, and of them only empty pixels.

    Args:
        scene: one with `has_hull`.
        points: [N, 3], centres of balls.
        radius: of the balls, in scene units.
    """
    points, left = points.cpu(), torch.arange(len(points))  # left: balls that are not known to be outside
    for i in map(int, scene.i_train):
        opaque = torch.from_numpy(covered(scene.images[i]) != EMPTY)
        (height, width), pose = opaque.shape, scene.cameras.poses[i]
        fx, fy, cx, cy = scene.cameras.intrinsics[i].tolist()
        seen = (points[left] - pose[:, 3]) @ pose[:, :3]
        x, y, z = seen.unbind(-1)
        column, row = ((value - scene.cameras.within).round() for value in (fx * x / -z + cx, fy * y / z + cy))
        in_view = (z < -1.01 * radius) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        # A point at (x, y, z) that moves by the radius moves by no more than this in the image.
        reach = (max(fx, fy) * radius * seen.norm(dim=-1) / (z * (z + radius))).ceil() + 1
        x0, x1, y0, y1 = (side[in_view].long() for side in (
            (column - reach).clamp(min=0), (column + reach + 1).clamp(max=width),
            (row - reach).clamp(min=0), (row + reach + 1).clamp(max=height)))
        before = F.pad(opaque.long().cumsum(0).cumsum(1), (1, 0, 1, 0))  # opaque pixels above and left of each
        kept = ~in_view
        kept[in_view] = before[y1, x1] - before[y0, x1] - before[y1, x0] + before[y0, x0] > 0
        left = left[kept]
    return torch.zeros(len(points), dtype=torch.bool).index_fill(0, left, True)
