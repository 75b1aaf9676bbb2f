"""Pictures of a field that pages show, drawn in tiles of about the same time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nerf.cameras import Cameras
from nerf.fields.interface import Sampler
from nerf.files.images import area_resize, disparity_pictures
from nerf.metrics import psnr
from nerf.plots import error_map
from nerf.rendering import Picture, View, as_view, draw_pixels, edges
from nerf.scene import Scene, target_colours
from nerf.space import Space
from nerf.viewer.wanted import Wanted
from run_nerf_helpers import to8b

FAR = 1e4  # depth of pixels that show nothing, in scene units: behind everything
PROBE = 16  # most rays of a tile that is drawn only to measure the cost of an empty tile


@dataclass(frozen=True)
class Pace:
    """Times of drawing, in seconds, tuned on two CPU cores by tests/benchmarks/bench_viewer.py (docs/measurements.md,
    "The viewer")."""
    share: float = 0.025  # share of the time for drawing while the field trains; handling messages costs extra
    credit: float = 0.5  # most drawing time that training can owe
    tile: float = 0.025  # for a tile: a movement of the camera waits no longer
    moving: float = 0.15  # after its last change, during which a camera counts as moving
    frame: float = 0.05  # for a picture of a moving camera
    training_frame: float = 0.0075  # the same while the field trains
    training_rest: float = 0.05  # for a picture of a resting camera while the field trains
    refresh: float = 1.0  # between pictures of a field that trains
    unfinished: float = 0.3  # between unfinished states of a picture that are shown
    status: float = 1.0  # between lines about the run


class Speed:
    """Cost of drawing, from the times of the latest tiles: seconds per ray, and seconds per tile without rays."""

    def __init__(self):
        self.per_ray, self.per_tile, self.probed, self.started = 5e-5, 1e-3, -math.inf, False

    def took(self, rays: int, seconds: float) -> None:
        """Notes the time of a tile. The very first tile does not count, because it may have compiled something."""
        if not self.started:
            self.started = True
        elif rays <= PROBE:  # other programs make a tile longer, and nothing makes it shorter
            self.per_tile += (1.0 if seconds < self.per_tile else 0.3) * (seconds - self.per_tile)
        else:
            now = max(seconds - self.per_tile, 0.2 * seconds) / rays
            self.per_ray += (0.5 if now > self.per_ray else 0.2) * (now - self.per_ray)

    def rays_in(self, seconds: float) -> int:
        """Number of rays of a tile that takes some seconds. The rays take at least as long as the empty tile."""
        return max(int(max(seconds - self.per_tile, self.per_tile) / self.per_ray), 1)

    def rays_per_second(self, seconds: float) -> float:
        """Rays per second in tiles of some seconds each."""
        rays = self.rays_in(seconds)
        return rays / (self.per_tile + rays * self.per_ray)

    def probe_due(self, now: float) -> bool:
        """Whether a tile of PROBE rays should be drawn at a time `now` in seconds: once a second."""
        if due := now >= self.probed + 1.0:
            self.probed = now
        return due


@dataclass(eq=False)
class ShownField:
    """Field that all pages see, in its scene."""
    scene: Scene
    sampler: Callable[[], Sampler]  # returns the sampler of the field as it is now
    training: bool = False  # the field is about to change
    pace: Pace = field(default_factory=Pace)
    clock: Callable[[], float] = perf_counter  # in seconds
    step: int = 0  # of training; pictures of an earlier step are out of date
    speed: Speed = field(default_factory=Speed)

    def space_of(self, wanted: Wanted) -> Space:
        """Space of the scene with the bounds of a view."""
        distances = self.scene.training_cameras.poses[:, :, 3].norm(dim=-1)
        space = self.scene.space.seen_from(wanted.pose, float(distances.min()), float(distances.max()))
        near, far = wanted.clip(space.near, space.far)
        return replace(space, near=near, far=far)


class Frame(NamedTuple):
    """Picture of a view, whole or unfinished."""
    view: View
    wanted: Wanted
    sharp: bool  # whole and of full size


class Drawing:
    """Picture of one camera of a view, drawn over `before`, an earlier and smaller drawing, or over the background.
    Each iteration draws a tile, which takes about `Pace.tile` seconds, and yields the share that is done. A tile is
    every nth pixel, so that all tiles of a picture take the same time. Edges of the `last` drawing are smoothed."""

    def __init__(self, shown: ShownField, wanted: Wanted, camera: Cameras, before: Drawing | None = None,
                 last: bool = True):
        self.shown, self.wanted, self.camera, self.last = shown, wanted, camera, last
        self.sampler, self.space, (self.height, self.width) = shown.sampler(), shown.space_of(wanted), camera.size(0)
        self.picture = before.enlarged(self.height, self.width) if before else Picture.background(
            self.height * self.width, self.sampler)

    def __iter__(self) -> Iterator[float]:
        pixels = torch.arange(self.height * self.width, device=self.sampler.device)
        if self.shown.speed.probe_due(self.shown.clock()):
            self._draw(pixels[::math.ceil(len(pixels) / PROBE)])
        side = self.sampler.supersample if self.last else 1
        for share in self._tiles(pixels):
            yield share if side == 1 else 0.5 * share
        if side > 1:
            for share in self._tiles(edges(self.picture, self.height, self.width), side):
                yield 0.5 + 0.5 * share

    def _tiles(self, pixels: Tensor, side: int = 1) -> Iterator[float]:
        count = min(math.ceil(len(pixels) * side ** 2 / self.shown.speed.rays_in(self.shown.pace.tile)), len(pixels))
        for tile in range(count):
            self._draw(pixels[tile::count], side)
            yield (tile + 1) / count

    def _draw(self, pixels: Tensor, side: int = 1) -> None:
        began = self.shown.clock()
        if drawn := draw_pixels(self.sampler, self.space, self.camera, self.picture, pixels, side):
            self.shown.speed.took(drawn, self.shown.clock() - began)

    def enlarged(self, height: int, width: int) -> Picture:
        """Picture at a larger size, by repeating pixels."""
        row, column = torch.arange(height) * self.height // height, torch.arange(width) * self.width // width
        index = (row[:, None] * self.width + column).flatten().to(self.picture.rgb.device)
        return Picture(*(part[index] for part in self.picture[:5]), {})

    def frame(self, sharp: bool) -> Frame:
        """Picture as it is now."""
        return Frame(as_view(self.picture, self.space, self.height, self.width), self.wanted, sharp)


# Pictures of a frame, and their comparison with a photograph


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
