"""Pictures that a page shows of a frame, and their comparison with a photograph."""

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

FAR = 1e4  # depth of pixels that show nothing, in scene units: behind everything


def picture_of(frame: Frame, scene: Scene) -> np.ndarray:
    """Picture [H, W, 3] uint8 of a frame, in the proportions of the page's window."""
    view, wanted = frame.view, frame.wanted
    if wanted.compares:
        target = photograph_of(scene, wanted.photograph, *view.acc.shape)
        return fitted(to8b(error_map(view.rgb, target)), wanted.width / wanted.height)
    if wanted.kind == 'nothing':
        return np.full((2, 2, 3), 255 if wanted.white else 0, np.uint8)
    if wanted.kind in ('colour', 'error'):
        other = float(wanted.white) - float(scene.white_bkgd)
        return to8b(view.rgb + other * (1.0 - view.acc[..., None]))
    grey = disparity_pictures([view.disp], [view.acc])[0] if wanted.kind == 'disparity' else to8b(view.acc)
    return np.repeat(grey[..., None], 3, -1)


def compared(frame: Frame, scene: Scene) -> tuple[float, tuple[int, int]]:
    """PSNR in dB of a frame that a photograph's own camera sees, and the height and width at which it is measured."""
    size = frame.view.acc.shape
    target = photograph_of(scene, frame.wanted.photograph, *size)
    return psnr(to8b(frame.view.rgb).astype(np.float32) / 255.0, target), size


def photograph_of(scene: Scene, i: int, height: int, width: int) -> np.ndarray:
    """Image i, shrunk: [height, width, 3] float32 in [0, 1]."""
    image = scene.images[i]
    small = image if image.shape[:2] == (height, width) else area_resize(image, height, width)
    return target_colours(torch.from_numpy(small), scene.white_bkgd).numpy()


def fitted(grey: np.ndarray, aspect: float) -> np.ndarray:
    """Picture [H, aspect * H, 3] uint8 with `grey` [H, W] in its middle, which gets black sides or loses its own."""
    height, width = grey.shape
    wide = max(round(aspect * height), 1)
    left, kept = (wide - width) // 2, min(width, wide)
    picture = np.zeros((height, wide, 3), np.uint8)
    picture[:, max(left, 0):max(left, 0) + kept] = grey[:, max(-left, 0):max(-left, 0) + kept, None]
    return picture


def depth_of(view: View) -> np.ndarray:
    """Depth [H, W] float32 along the camera's axis, in scene units; FAR where opacity is at most a half."""
    hit = (view.acc > 0.5) & (view.disp > 1.0 / FAR)
    return np.where(hit, 1.0 / np.where(hit, view.disp, 1.0), FAR).astype(np.float32)
