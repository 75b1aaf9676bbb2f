"""Rays and targets of each training step, made on the device from the pixels of the step."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nerf.cameras import Cameras, same_rays, single_rays_agree
from nerf.coverage import EMPTY, OPAQUE, covered
from nerf.fields.interface import Target
from nerf.runtime.errors import UserError
from nerf.scene import Images, Scene, target_colours
from run_nerf_helpers import Rays, get_rays_np

ANYWHERE = 5  # with `foreground`, each ANYWHERE-th ray of a step goes through any pixel, empty pixels included


class RayBatcher:
    """Rays of each training step, and their targets. Rays are stored only if `get_rays` or `get_rays_np` was edited.

    Args:
        scene: the training images, kept as uint8 on the device, and their cameras.
        n_rays: rays per step. A step with too few pixels for them is a UserError.
        no_batching: the rays of a step come from one image, each pixel at most once (images of several sizes or with
            masks: pixels may repeat). Else each pixel of all images has one ray per epoch, in shuffled order.
        precrop_iters, precrop_frac: with no_batching, steps whose rays come from an image's centre, its share of sides.
        generator: source of all draws; rays are made on its device.
        foreground: most rays go through pixels that are not empty (nerf/coverage.py), also with no_batching. It has no
            effect on images without empty pixels or with masks.
    """

    def __init__(self, scene: Scene, n_rays: int, no_batching: bool, precrop_iters: int, precrop_frac: float,
                 generator: torch.Generator, foreground: bool = False):
        device = generator.device
        self.scene, self.n_rays, self.no_batching, self.generator = scene, n_rays, no_batching, generator
        images = scene.images.take(scene.i_train)
        self.cameras = scene.cameras.take(scene.i_train).to(device)
        self.colours = torch.from_numpy(images.pixels).to(device)
        self.starts = torch.from_numpy(images.starts).to(device)
        self.precrop_iters = precrop_iters if no_batching else 0
        self.precrop_frac = precrop_frac if self.precrop_iters else 1.0
        self.where = {'generator': generator, 'device': device}
        self.size = self.cameras.one_size() if images.masks is None else None  # None: pixels are drawn from lists
        shares = {1.0, self.precrop_frac} if self.size is None else ()
        self.lists = {share: [torch.from_numpy(a).to(device) for a in _pixel_lists(images, share)] for share in shares}
        self.foreground = self.covered = None  # flat indices of pixels that are not empty; coverage of each pixel
        if foreground and images.masks is None:
            shown = np.concatenate([covered(images[i]).ravel() for i in range(len(images))])
            if (shown == EMPTY).any() and shown.any():
                self.foreground = torch.from_numpy(np.flatnonzero(shown)).to(device)
                self.covered = torch.from_numpy(shown).to(device)
        if self.foreground is None:
            self._check_enough()
        self.epoch_seed, self.order, self.used = 0, None, 0
        self.squares: Squares | None = None  # of the last side that was asked for
        self.stored = None  # origins and directions [P, 3] of all pixels, after an edit
        if rays_were_edited(self.cameras):
            print('get_rays or get_rays_np was edited: training looks its rays up in those of whole images'
                  + ('' if single_rays_agree() else ', and smooth edges are off'))
            whole = (_whole_image(self.cameras, i) for i in range(len(self.cameras)))
            self.stored = [torch.cat(parts) for parts in zip(*whole)]

    def _check_enough(self) -> None:
        """Raises a UserError if a step has too few pixels."""
        if self.size:
            height, width = _centre(*self.size, self.precrop_frac)
            available = height * width * (1 if self.no_batching else len(self.cameras))
        elif self.no_batching:
            if (empty := (self.lists[self.precrop_frac][1].diff() == 0).nonzero()).numel():
                advice = ' at its centre; set precrop_iters = 0' if self.precrop_iters else '; remove it'
                raise UserError(f'training image {int(empty[0, 0])} has no pixel to train on, as its mask is empty'
                                f'{advice}')
            return  # pixels may repeat
        else:
            available = len(self.lists[1.0][0])
        if self.n_rays > available:
            raise UserError(f'N_rand is {self.n_rays} but a step can draw only {available} pixels; lower N_rand'
                            + (', raise precrop_frac' if self.precrop_iters else '')
                            + (' or leave no_batching off' if self.no_batching else ''))

    def pixels(self, step: int, n_rays: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Image, row and column, [n_rays] each, of the pixels of a step, counted from 1 (n_rays None: self.n_rays)."""
        n_rays = n_rays or self.n_rays
        if self.foreground is not None:
            return self._mostly_foreground(n_rays)
        return self._from_one_image(step, n_rays) if self.no_batching else self._from_all_images(n_rays)

    def next(self, step: int) -> tuple[Rays, Target]:
        """Rays of a step, counted from 1, and their targets."""
        return self.rays(*self.pixels(step))

    def rays(self, image: Tensor, row: Tensor, column: Tensor, side: int = 1) -> tuple[Rays, Target]:
        """Rays through R pixels, and their targets, whose coverage is known with `foreground` alone. With a side, rays
        go through the middle of the square of side x side pixels around each pixel, and have its mean colour; not with
        known coverage or edited rays."""
        pixel = self.starts[image] + row * self.cameras.sizes[image, 1] + column
        bounds = None if self.cameras.bounds is None else self.cameras.bounds[image]
        if side > 1 and not self.stored and self.covered is None:
            colours, row, column = self._square(image, row, column, side)
        else:
            colours = target_colours(self.colours[pixel], self.scene.white_bkgd)
        target = Target(colours, None if self.covered is None else self.covered[pixel] / OPAQUE)
        rays = [part[pixel] for part in self.stored] if self.stored else self.cameras.single_rays(image, row, column)
        return self.scene.rays(*rays, bounds), target

    def _square(self, image: Tensor, row: Tensor, column: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean colour [R, 3] and middle, row and column [R], of the square around each pixel; squares end at edges."""
        if self.squares is None or self.squares.side != side:
            self.squares = Squares.of(self.scene.images.take(self.scene.i_train), side, self.scene.white_bkgd)
            self.squares = self.squares._replace(colours=self.squares.colours.to(self.starts.device),
                                                 starts=self.squares.starts.to(self.starts.device))
        height, width = self.cameras.sizes[image].unbind(-1)
        across = (width + side - 1) // side
        square = self.squares.starts[image] + row // side * across + column // side
        middles = (0.5 * (part // side * side + torch.minimum(part // side * side + side, size) - 1)
                   for part, size in ((row, height), (column, width)))
        return self.squares.colours[square], *middles

    def _from_one_image(self, step: int, n_rays: int) -> tuple[Tensor, Tensor, Tensor]:
        frac = self.precrop_frac if step <= self.precrop_iters else 1.0
        image = torch.randint(len(self.cameras), (1,), **self.where).expand(n_rays)
        if self.size is None:
            pixels, starts = self.lists[frac]
            share = torch.rand(n_rays, dtype=torch.float64, **self.where)
            return self._places(pixels[starts[image] + (share * (starts[image + 1] - starts[image])).long()])
        (H, W), (height, width) = self.size, _centre(*self.size, frac)
        pixel = torch.randperm(height * width, **self.where)[:n_rays]
        return image, (H - height) // 2 + pixel // width, (W - width) // 2 + pixel % width

    def _from_all_images(self, n_rays: int) -> tuple[Tensor, Tensor, Tensor]:
        if self.order is None:
            self._shuffle()
        pixel = self.order[self.used:self.used + n_rays]
        self.used += n_rays
        if len(pixel) < n_rays:  # the epoch ends within this step
            self._shuffle()
            self.used = n_rays - len(pixel)
            pixel = torch.cat([pixel, self.order[:self.used]])
        return self._places(pixel.long() if self.size else self.lists[1.0][0][pixel.long()])

    def _mostly_foreground(self, n_rays: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels of the foreground, and each ANYWHERE-th any pixel; pixels may repeat."""
        front = self.foreground[torch.randint(len(self.foreground), (n_rays,), **self.where)]
        anywhere = torch.randint(len(self.colours), (n_rays,), **self.where)
        chosen = torch.arange(n_rays, device=front.device) % ANYWHERE == 0
        return self._places(torch.where(chosen, anywhere, front))

    def _places(self, pixel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image, row and column of pixels, from their flat indices [R]."""
        image = torch.searchsorted(self.starts[1:], pixel, right=True)
        width, within = self.cameras.sizes[image, 1], pixel - self.starts[image]
        return image, within // width, within % width

    def _shuffle(self, epoch_seed: int | None = None) -> None:
        """Shuffles all pixels by a seed (None: from the generator); a checkpoint holds the seed alone."""
        if epoch_seed is None:
            epoch_seed = torch.randint(2 ** 62, (), **self.where).item()
        self.epoch_seed, self.used = epoch_seed, 0
        n_pixels = len(self.colours) if self.size else len(self.lists[1.0][0])
        order = torch.randperm(n_pixels, generator=torch.Generator().manual_seed(epoch_seed),
                               dtype=torch.int32 if n_pixels < 2 ** 31 else torch.int64)
        self.order = order.to(self.generator.device)

    def state_dict(self) -> dict:
        """State that decides the pixels of the next steps."""
        return {'device': self.generator.device.type, 'generator': self.generator.get_state(),
                'epoch_seed': self.epoch_seed, 'used': self.used, 'shuffled': self.order is not None}

    def load_state_dict(self, state: dict, step: int) -> None:
        """Takes a `state_dict`, with a new seed on another kind of device. A broken state is a ValueError, LookupError,
        TypeError or RuntimeError."""
        if state['device'] == self.generator.device.type:
            self.generator.set_state(state['generator'])
        else:
            self.generator.manual_seed(self.generator.initial_seed() + step)
        if state['shuffled']:
            self._shuffle(state['epoch_seed'])
            if type(state['used']) is not int or not 0 <= state['used'] <= len(self.order):
                raise ValueError(f"{state['used']} pixels used of {len(self.order)}")
            self.used = state['used']


class Squares(NamedTuple):
    """Mean colours of squares of pixels, of all images."""
    side: int  # pixels along a side of a square
    colours: Tensor  # [Q, 3] float32, image after image, row after row
    starts: Tensor  # [N] int64, index of each image's first square

    @classmethod
    def of(cls, images: Images, side: int, white_bkgd: bool) -> Squares:
        """Squares of all images. Pixels outside of masks have no part in a mean, unless the whole square is masked."""
        colours, starts = [], [0]
        for i, (start, end) in enumerate(pairwise(images.starts)):
            shown = target_colours(torch.from_numpy(images[i]), white_bkgd).numpy()
            weight = np.ones(shown.shape[:2], np.float32)
            if images.masks is not None:
                weight = np.maximum(images.masks[start:end].reshape(weight.shape), np.float32(1e-6))
            sums = (_sums_of_squares(part, side) for part in (shown * weight[..., None], weight[..., None]))
            colours.append(np.divide(*sums).reshape(-1, 3))
            starts.append(starts[-1] + len(colours[-1]))
        return cls(side, torch.from_numpy(np.concatenate(colours)), torch.tensor(starts[:-1]))


def _sums_of_squares(values: np.ndarray, side: int) -> np.ndarray:
    """Sums [H', W', C] of values [H, W, C] in squares of side x side pixels."""
    for axis in range(2):
        values = np.add.reduceat(values, np.arange(0, values.shape[axis], side), axis)
    return values


def rays_were_edited(cameras: Cameras) -> bool:
    """Whether `get_rays` or `get_rays_np` differs from `pixel_rays`, for the first camera without distortion."""
    if not single_rays_agree():
        return True
    first = next((i for i in range(len(cameras)) if cameras.is_pinhole(i)), None)
    return first is not None and not same_rays(
        _whole_image(cameras, first), tuple(part.flatten(0, 1) for part in cameras.view_rays(first)))


def _whole_image(cameras: Cameras, i: int) -> tuple[Tensor, Tensor]:
    """Origins and directions [P, 3] of all pixels of image i: by `get_rays_np`, or if its lens distorts, the camera."""
    if cameras.is_pinhole(i):
        rays = get_rays_np(*cameras.size(i), cameras.matrix(i).cpu().numpy(), cameras.poses[i].cpu().numpy())
        rays = (torch.from_numpy(np.asarray(part, np.float32)).to(cameras.device) for part in rays)
    else:
        rays = cameras.view_rays(i)
    return tuple(part.reshape(-1, 3) for part in rays)


def _centre(height: int, width: int, frac: float) -> tuple[int, int]:
    """Height and width of an image's centre."""
    return max(1, int(height * frac)), max(1, int(width * frac))


def _pixel_lists(images: Images, frac: float) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of pixels inside masks and the centre `frac` of images, and each image's first place [N + 1]."""
    parts = []
    for (height, width), start, end in zip(images.sizes, images.starts, images.starts[1:]):
        inside, (rows, columns) = np.zeros((height, width), bool), _centre(height, width, frac)
        top, left = (height - rows) // 2, (width - columns) // 2
        inside[top:top + rows, left:left + columns] = True
        allowed = inside.ravel() if images.masks is None else inside.ravel() & images.masks[start:end]
        parts.append(start + np.flatnonzero(allowed))
    return np.concatenate(parts), np.concatenate([[0], np.cumsum([len(part) for part in parts])])
