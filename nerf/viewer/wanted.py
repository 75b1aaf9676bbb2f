"""View that a page asks for, and the cameras that draw it at several sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from nerf.camera_path import KeyFrame, pinholes
from nerf.cameras import Cameras
from nerf.scene import Scene

KINDS = 'colour', 'disparity', 'opacity', 'error', 'nothing'  # quantities of a field that can be shown
SMALLEST, LARGEST = 32, 1280  # pixels of the longer side of a live picture
MOST_PIXELS = 2 ** 25  # of a saved picture
FINER = 3  # ratio of the heights of two successive pictures of a resting camera


@dataclass(frozen=True, eq=False)
class Wanted(KeyFrame):
    """View that a page asks for."""
    height: int  # of the page's whole picture, in pixels
    width: int
    kind: str = 'colour'  # of KINDS
    white: bool = False  # the background
    near: float = 0.0  # depths nearer than near or beyond far are not shown; in the units of the scene's bounds
    far: float = math.inf
    photograph: int | None = None  # the training image whose camera has the same pose

    @property
    def compares(self) -> bool:
        """Whether the view is drawn through the pixels of the photograph, to be compared with it."""
        return self.kind == 'error' and self.photograph is not None

    def clip(self, near: float, far: float) -> tuple[float, float]:
        """Bounds of a ray, cut to those of the view. They never become empty."""
        near = max(near, self.near)
        return near, max(min(far, self.far), near + 1e-3)


def camera_of(wanted: Wanted, scene: Scene, rays: float = math.inf) -> Cameras:
    """Camera of a view with about `rays` pixels, and no more than the page's whole picture."""
    if wanted.kind == 'nothing':
        return pinholes([wanted], 1, 1)
    if wanted.compares:
        photograph = scene.cameras.take([wanted.photograph])
        if photograph.bounds is not None:  # of this view alone
            photograph = replace(photograph, bounds=torch.tensor([wanted.clip(*photograph.bounds[0].tolist())]))
        height, width = photograph.size(0)
        return photograph.scaled(min(math.ceil(math.sqrt(height * width / rays)), height, width))
    longest = max(wanted.height, wanted.width)
    share = min(max(math.sqrt(rays / (wanted.height * wanted.width)), SMALLEST / longest), LARGEST / longest, 1.0)
    return pinholes([wanted], max(round(share * wanted.height), 1), max(round(share * wanted.width), 1))


def finer(wanted: Wanted, scene: Scene, camera: Cameras) -> Cameras | None:
    """Camera of the next picture of a resting camera: FINER times as high as `camera`'s picture, or the last one if the
    last has less than 4 times as many pixels; None after the last."""
    last, rays = camera_of(wanted, scene), FINER ** 2 * int(camera.sizes.prod())
    if last.size(0) <= camera.size(0):
        return None
    return last if int(last.sizes.prod()) < 4 * rays else camera_of(wanted, scene, rays)


def size_of(wanted: Wanted, width: float) -> tuple[int, int]:
    """Height and width of a saved picture of some width, in the page's proportions and of at most MOST_PIXELS."""
    aspect = wanted.width / wanted.height
    width = max(min(int(width), int(math.sqrt(MOST_PIXELS * aspect))), 1)
    return max(round(width / aspect), 1), width
