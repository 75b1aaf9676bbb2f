"""Pictures of a field that are drawn in tiles of about the same time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from nerf.cameras import Cameras
from nerf.fields.interface import Sampler
from nerf.rendering import Picture, View, as_view, draw_pixels, edges
from nerf.scene import Scene
from nerf.space import Space
from nerf.viewer.pace import PROBE, Pace, Speed
from nerf.viewer.wanted import Wanted


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

    def finish(self, step: int, sampler: Sampler) -> None:
        """Ends training at a step: from now on one sampler draws the field, which no longer changes."""
        self.step, self.sampler, self.training = step, lambda: sampler, False

    @cached_property
    def distances(self) -> tuple[float, float]:
        """Distances of the closest and the farthest training camera from the origin, in scene units."""
        distances = self.scene.training_cameras.poses[:, :, 3].norm(dim=-1)
        return float(distances.min()), float(distances.max())

    def space_of(self, wanted: Wanted) -> Space:
        """Space of the scene with the bounds of a view."""
        space = self.scene.space.seen_from(wanted.pose, *self.distances)
        near, far = wanted.clip(space.near, space.far)
        return replace(space, near=near, far=far)


class Frame(NamedTuple):
    """Picture of a view, whole or unfinished."""

    view: View
    wanted: Wanted
    sharp: bool  # whole and of full size


class Drawing:
    """Picture of one camera while it is drawn over an earlier drawing, or over the background.

    Each iteration draws a tile, which takes about `Pace.tile` seconds, and yields the share that is done. A tile is
    every nth pixel, so that all tiles of a picture take the same time.

    Args:
        shown: field to draw.
        wanted: view to draw.
        camera: one camera of that view.
        before: drawing of the same view at a smaller size.
        last: there is no finer drawing to come, so edges are smoothed.
    """

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
        rays = self.shown.speed.rays_in(self.shown.pace.tile)
        count = min(math.ceil(len(pixels) * side ** 2 / rays), len(pixels))
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
