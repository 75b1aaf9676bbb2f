"""What is wanted of a field, and its picture while it is drawn, in tiles of about the same time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter as clock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nerf.cameras import Cameras
from nerf.fields.interface import Sampler
from nerf.rendering import Picture, View, as_view, draw_pixels, edges
from nerf.scene import Scene
from nerf.space import Space

KINDS = 'colour', 'disparity', 'opacity', 'error', 'nothing'  # what can be shown of a field
TILE = 0.025  # seconds that a tile should take: a movement waits no longer
PROBE = 16  # rays of a tile that is drawn for its time alone
SMALLEST, LARGEST = 32, 1280  # pixels of a picture's longer side
MOST_PIXELS = 2 ** 25  # of a picture that somebody asks for
FINER = 3  # a camera at rest gets pictures so many times as high, one after the other


@dataclass(frozen=True, eq=False)
class Wanted:
    """What a person wants to see."""

    pose: np.ndarray  # [3, 4] camera-to-world, OpenGL axes
    fov: float  # vertical, in radians
    height: int  # of the whole picture, in pixels
    width: int
    kind: str = 'colour'  # of KINDS
    white: bool = False  # the background
    near: float = 0.0  # nothing closer is shown, nor anything beyond far; in the units of the scene's bounds
    far: float = math.inf
    photograph: int | None = None  # the training image whose camera is at the same place

    @property
    def compares(self) -> bool:
        """Whether it is drawn through the pixels of the photograph, to be compared with it."""
        return self.kind == 'error' and self.photograph is not None

    def clip(self, near: float, far: float) -> tuple[float, float]:
        """The part that is wanted of the rays between two bounds; some of it is always left."""
        near = max(near, self.near)
        return near, max(min(far, self.far), near + 1e-3)


class Speed:
    """What drawing costs, from the time of the latest tiles: seconds for each ray, and for each tile however small."""

    def __init__(self):
        self.per_ray, self.per_tile, self.probed, self.started = 5e-5, 1e-3, -math.inf, False

    def took(self, rays: int, seconds: float) -> None:
        """Notes a tile. The first one of all may have compiled something, and does not count."""
        if not self.started:
            self.started = True
        elif rays <= PROBE:  # what else runs on the machine makes it longer, and nothing shorter
            self.per_tile += (1.0 if seconds < self.per_tile else 0.3) * (seconds - self.per_tile)
        else:
            now = max(seconds - self.per_tile, 0.2 * seconds) / rays
            self.per_ray += (0.5 if now > self.per_ray else 0.2) * (now - self.per_ray)

    def rays_in(self, seconds: float) -> int:
        """Rays that a tile of some seconds has, but no fewer than take as long as there is no getting around."""
        return max(int(max(seconds - self.per_tile, self.per_tile) / self.per_ray), 1)

    @property
    def rays_per_second(self) -> float:
        """In tiles of TILE seconds."""
        rays = self.rays_in(TILE)
        return rays / (self.per_tile + rays * self.per_ray)

    def probe_due(self) -> bool:
        """Whether a tile of PROBE rays is to be drawn, to see what a tile costs that has no rays."""
        if clock() < self.probed + 1.0:
            return False
        self.probed = clock()
        return True


class Field:
    """What everybody looks at.

    Args:
        scene: its bounds and photographs.
        sampler: gives the sampler of the field to show.
        training: the field is about to change.
    """

    def __init__(self, scene: Scene, sampler: Callable[[], Sampler], training: bool = False):
        self.scene, self.sampler, self.training = scene, sampler, training
        self.step = 0  # changes with the field
        self.speed = Speed()
        distances = scene.cameras.take(scene.i_train).poses[:, :, 3].norm(dim=-1)
        self.closest, self.farthest = float(distances.min()), float(distances.max())  # cameras, from the origin

    def clipped(self, wanted: Wanted) -> Space:
        """The scene's space with the bounds of what is wanted."""
        space = self.scene.space.seen_from(wanted.pose, self.closest, self.farthest)
        near, far = wanted.clip(space.near, space.far)
        return replace(space, near=near, far=far)


class Frame(NamedTuple):
    """A picture of what is wanted, whole or unfinished."""

    view: View
    wanted: Wanted
    sharp: bool  # it is whole, and of full size


class Drawing:
    """What one camera sees, while it is drawn over the drawing before, or over the background.

    An iteration draws a tile, in about TILE seconds, and gives the share that is done. A tile is every nth pixel, so
    that all tiles of a picture take the same time. Edges of the last drawing of a camera are then made smooth.
    """

    def __init__(self, field: Field, wanted: Wanted, camera: Cameras, before: Drawing | None = None,
                 last: bool = True):
        self.field, self.wanted, self.camera, self.last = field, wanted, camera, last
        self.sampler, self.space, (self.height, self.width) = field.sampler(), field.clipped(wanted), camera.size(0)
        self.picture = before.enlarged(self.height, self.width) if before else Picture.background(
            self.height * self.width, self.sampler)

    def __iter__(self) -> Iterator[float]:
        pixels = torch.arange(self.height * self.width, device=self.sampler.device)
        if self.field.speed.probe_due():
            self._draw(pixels[::-(-len(pixels) // PROBE)])
        side = self.sampler.supersample if self.last else 1
        for share in self._tiles(pixels):
            yield share if side == 1 else 0.5 * share
        if side > 1:
            for share in self._tiles(edges(self.picture, self.height, self.width), side):
                yield 0.5 + 0.5 * share

    def _tiles(self, pixels: Tensor, side: int = 1) -> Iterator[float]:
        count = min(-(-len(pixels) * side ** 2 // self.field.speed.rays_in(TILE)), len(pixels))
        for tile in range(count):
            self._draw(pixels[tile::count], side)
            yield (tile + 1) / count

    def _draw(self, pixels: Tensor, side: int = 1) -> None:
        began = clock()
        if drawn := draw_pixels(self.sampler, self.space, self.camera, self.picture, pixels, side):
            self.field.speed.took(drawn, clock() - began)

    def enlarged(self, height: int, width: int) -> Picture:
        """The picture at a larger size, by repeating pixels."""
        row, column = torch.arange(height) * self.height // height, torch.arange(width) * self.width // width
        index = (row[:, None] * self.width + column).flatten().to(self.picture.rgb.device)
        return Picture(*(part[index] for part in self.picture[:5]), {})

    def frame(self, sharp: bool) -> Frame:
        """The picture as it is now."""
        return Frame(as_view(self.picture, self.space, self.height, self.width), self.wanted, sharp)


# Cameras of what is wanted


def camera_of(wanted: Wanted, scene: Scene, rays: int) -> Cameras:
    """The camera of what is wanted, of about so many pixels but no more than the whole picture."""
    if wanted.kind == 'nothing':
        return pinhole(wanted, 1, 1)
    if wanted.compares:
        photograph = scene.cameras.take([wanted.photograph])
        if photograph.bounds is not None:  # of this view alone
            photograph = replace(photograph, bounds=torch.tensor([wanted.clip(*photograph.bounds[0].tolist())]))
        height, width = photograph.size(0)
        return photograph.scaled(min(math.ceil(math.sqrt(height * width / rays)), height, width))
    longest = max(wanted.height, wanted.width)
    share = max(math.sqrt(rays / (wanted.height * wanted.width)), SMALLEST / longest)
    share = min(share, LARGEST / longest, 1.0)
    return pinhole(wanted, max(round(share * wanted.height), 1), max(round(share * wanted.width), 1))


def finer(wanted: Wanted, scene: Scene, camera: Cameras) -> Cameras | None:
    """The camera of the next picture at rest, which is the last one where it would have a quarter of that one's pixels;
    None after the last."""
    (height, width), last = camera.size(0), camera_of(wanted, scene, 2 ** 62)
    rays = FINER ** 2 * height * width
    if last.size(0) <= (height, width):
        return None
    return last if int(last.sizes.prod()) < 4 * rays else camera_of(wanted, scene, rays)


def size_of(wanted: Wanted, width: float) -> tuple[int, int]:
    """Height and width of a picture of some width; of MOST_PIXELS at most."""
    aspect = wanted.width / wanted.height
    width = max(min(int(width), int(math.sqrt(MOST_PIXELS * aspect))), 1)
    return max(round(width / aspect), 1), width


def pinhole(wanted: Wanted, height: int, width: int) -> Cameras:
    """The camera of what is wanted, at another size; rays go through the centres of pixels."""
    focal = 0.5 * height / math.tan(0.5 * wanted.fov)
    return Cameras(torch.as_tensor(np.array(wanted.pose[None], np.float32)),
                   torch.tensor([[focal, focal, 0.5 * width, 0.5 * height]], dtype=torch.float64),
                   torch.tensor([[height, width]]), within=0.5)
