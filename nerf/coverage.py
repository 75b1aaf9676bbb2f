"""Coverage of pixels, in pictures on white, and the visual hull that follows from it (Laurentini 1994)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nerf.scene import Scene

EMPTY, OPAQUE, UNKNOWN = 0, 255, -1
PLAIN, BRIGHT = 250, 225  # all channels of white that noise or JPEG has changed, and of what could be partly white


def covered(image: np.ndarray) -> np.ndarray:
    """Coverage [H, W] int16 of the pixels of a picture [H, W, 3 or 4] uint8: EMPTY to OPAQUE, or UNKNOWN.
    It is the alpha channel, if there is one. Else white at the border is EMPTY; other bright pixels and neighbours of
    white pixels are UNKNOWN, because they can be mixed with white."""
    if image.shape[-1] == 4:
        return image[..., 3].astype(np.int16)
    from skimage.measure import label
    white = (image >= PLAIN).all(-1)
    regions = label(np.pad(white, 1, constant_values=True), connectivity=1)
    background = regions[1:-1, 1:-1] == regions[0, 0]
    framed, (height, width) = np.pad(white, 1), white.shape
    near_white = np.any([framed[i:i + height, j:j + width] for i in range(3) for j in range(3)], axis=0)
    unknown = near_white | (image >= BRIGHT).all(-1)
    return np.where(background, EMPTY, np.where(unknown, UNKNOWN, OPAQUE)).astype(np.int16)


def knows_coverage(scene: Scene) -> bool:
    """Whether the training images, on white, have empty pixels and others. Without `white_bkgd` alpha is ignored:
    transparent pixels can have colours."""
    return scene.white_bkgd and scene.images.masks is None and all(_any_pixel(scene, empty) for empty in (True, False))


def has_hull(scene: Scene) -> bool:
    """Whether the training images, on white, have empty pixels, and cameras without distortion."""
    return (scene.white_bkgd and not scene.space.closed and scene.cameras.distortion is None
            and _any_pixel(scene, empty=True))


def _any_pixel(scene: Scene, empty: bool) -> bool:
    """Whether some pixel of the training images is empty, or not empty."""
    return any(((covered(scene.images[i]) == EMPTY) == empty).any() for i in map(int, scene.i_train))


def inside_hull(scene: Scene, points: Tensor, radius: float) -> Tensor:
    """[N] bool: balls around points [N, 3], by a radius in scene units, that reach into the hull of a scene with
    `has_hull`. A ball is outside if a training camera sees its centre, and only empty pixels of it."""
    points, left = points.cpu(), torch.arange(len(points))  # left: balls not known to be outside
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
