"""A frame of the viewer as the picture that a person sees, and how it compares with a photograph."""

from __future__ import annotations

import numpy as np
import torch

from nerf.files.images import area_resize, disparity_pictures
from nerf.metrics import psnr
from nerf.plots import error_map
from nerf.rendering import View
from nerf.scene import Scene, target_colours
from nerf.viewer.drawing import Frame
from run_nerf_helpers import to8b

FAR = 1e4  # depth of nothing, beyond all things


def shown(frame: Frame, scene: Scene) -> np.ndarray:
    """The picture [H, W, 3] uint8, in the shape of a person's window."""
    view, wanted = frame.view, frame.wanted
    if wanted.compares:
        target = photograph_of(scene, wanted.photograph, *view.acc.shape)
        return fitted(to8b(error_map(view.rgb, target)), wanted.width / wanted.height)
    if wanted.kind == 'nothing':
        return np.full((2, 2, 3), 255 * wanted.white, np.uint8)
    if wanted.kind in ('colour', 'error'):
        other = float(wanted.white) - float(scene.white_bkgd)
        return to8b(view.rgb + other * (1.0 - view.acc[..., None]))
    grey = disparity_pictures([view.disp], [view.acc])[0] if wanted.kind == 'disparity' else to8b(view.acc)
    return np.repeat(grey[..., None], 3, -1)


def compared(frame: Frame, scene: Scene) -> tuple[float, tuple[int, int]]:
    """PSNR in dB of what a photograph's own camera sees, and the height and width at which it was measured."""
    height, width = frame.view.acc.shape
    target = photograph_of(scene, frame.wanted.photograph, height, width)
    return psnr(to8b(frame.view.rgb).astype(np.float32) / 255.0, target), (height, width)


def photograph_of(scene: Scene, i: int, height: int, width: int) -> np.ndarray:
    """Image i at a size that is no larger than its own: [height, width, 3] float32 in [0, 1]."""
    image = scene.images[i]
    small = image if image.shape[:2] == (height, width) else area_resize(image, height, width)
    return target_colours(torch.from_numpy(small), scene.white_bkgd).numpy()


def fitted(grey: np.ndarray, aspect: float) -> np.ndarray:
    """A picture [H, W] in the middle of one of the same height and another aspect, black or cut at the sides:
    [H, aspect * H, 3] uint8."""
    height, width = grey.shape
    wide = max(round(aspect * height), 1)
    left, kept = (wide - width) // 2, min(width, wide)
    picture = np.zeros((height, wide, 3), np.uint8)
    picture[:, max(left, 0):max(left, 0) + kept] = grey[:, max(-left, 0):max(-left, 0) + kept, None]
    return picture


def depth_of(view: View) -> np.ndarray:
    """Depth [H, W] float32 along the camera's axis, in scene units; FAR where little was hit."""
    hit = (view.acc > 0.5) & (view.disp > 1.0 / FAR)
    return np.where(hit, 1.0 / np.where(hit, view.disp, 1.0), FAR).astype(np.float32)
