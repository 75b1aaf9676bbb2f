"""The rays of each training step: pixels drawn, rays made from them, colours looked up, all on the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nerf.coverage import EMPTY, OPAQUE, covered
from nerf.fields.interface import Target
from nerf.runtime.errors import UserError
from nerf.scene import Images, Scene, target_colours
from run_nerf_helpers import Rays

ANYWHERE = 5  # one pixel in so many comes from all, where the others come from those that are not empty


class RayBatcher:
    """Draws each step's rays and the colours they should have; rays are made from sampled pixels and never stored.

    Args:
        scene: the training images and cameras, kept as uint8 on the device.
        n_rays: rays per step.
        no_batching: a step's rays from one image, each pixel at most once (where images have several sizes or masks,
            with repeats); else each pixel of all images once per epoch, in shuffled order.
        precrop_iters: with no_batching, steps that sample only the central precrop_frac of both sides.
        generator: decides all draws; its device is where the rays are made.
        foreground: of images on white that have empty pixels (nerf/coverage.py) and no masks, most pixels come from
            the others, and neither of the above holds.
    """

    def __init__(self, scene: Scene, n_rays: int, no_batching: bool, precrop_iters: int, precrop_frac: float,
                 generator: torch.Generator, foreground: bool = False):
        device = generator.device
        self.scene, self.n_rays, self.no_batching, self.generator = scene, n_rays, no_batching, generator
        images = scene.images.take(scene.i_train)
        self.cameras = scene.cameras.take(scene.i_train).to(device)
        self.colours = torch.from_numpy(images.pixels).to(device)
        self.starts = torch.from_numpy(images.starts).to(device)
        self.precrop_iters, self.precrop_frac = precrop_iters if no_batching else 0, precrop_frac
        self.size = self.cameras.one_size() if images.masks is None else None  # None: pixels are drawn from lists
        self.lists = {}
        if self.size is None:
            for frac in {1.0, precrop_frac if self.precrop_iters else 1.0}:
                self.lists[frac] = [torch.from_numpy(part).to(device) for part in _pixel_lists(images, frac)]
        self.foreground = self.covered = None  # indices of pixels that are not empty; of each, how much is covered
        if foreground and images.masks is None:
            self._look_for_background(images)
        self._check_enough()
        self.epoch_seed, self.order, self.used = 0, None, 0

    def _look_for_background(self, images: Images) -> None:
        """Sets what `foreground` needs, where there are pixels of both kinds."""
        shown = np.concatenate([covered(images[i]).ravel() for i in range(len(images))])
        if (shown == EMPTY).any() and shown.any():
            self.foreground = torch.from_numpy(np.flatnonzero(shown)).to(self.generator.device)
            self.covered = torch.from_numpy(shown).to(self.generator.device)

    def _check_enough(self) -> None:
        """Raises UserError where a step cannot draw its pixels."""
        if self.foreground is not None:
            return
        if self.size is None:
            first = self.lists[self.precrop_frac if self.precrop_iters else 1.0]
            if self.no_batching and (empty := (first[1].diff() == 0).nonzero()).numel():
                raise UserError(f'training image {int(empty[0, 0])} has no pixel to train on, as its mask is empty'
                                + (' at its centre; set precrop_iters = 0' if self.precrop_iters else '; remove it'))
            available = max(len(first[0]), self.n_rays * self.no_batching)
        else:
            height, width = self._crop(self.precrop_frac if self.precrop_iters else 1.0)
            available = height * width * (1 if self.no_batching else len(self.cameras))
        if self.n_rays > available:
            raise UserError(f'N_rand is {self.n_rays} but a step can draw only {available} pixels; lower N_rand'
                            + (', raise precrop_frac' if self.precrop_iters else '')
                            + (' or leave no_batching off' if self.no_batching else ''))

    def _crop(self, frac: float) -> tuple[int, int]:
        """Height and width of the central part of the images' one size."""
        height, width = self.size
        return max(1, int(height * frac)), max(1, int(width * frac))

    def pixels(self, step: int, n_rays: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Image, row and column [n_rays] of the pixels of a step, counted from 1; None: as many as are set."""
        n_rays = n_rays or self.n_rays
        if self.foreground is not None:
            return self._mostly_foreground(n_rays)
        return self._from_one_image(step, n_rays) if self.no_batching else self._from_all_images(n_rays)

    def next(self, step: int) -> tuple[Rays, Target]:
        """The rays of a step, and what they should show."""
        return self.rays(*self.pixels(step))

    def rays(self, image: Tensor, row: Tensor, column: Tensor) -> tuple[Rays, Target]:
        """The rays through R pixels, and what they should show; coverage is known with `foreground` alone."""
        pixel = self.starts[image] + row * self.cameras.sizes[image, 1] + column
        target = Target(target_colours(self.colours[pixel], self.scene.white_bkgd),
                        None if self.covered is None else self.covered[pixel] / OPAQUE)
        bounds = None if self.cameras.bounds is None else self.cameras.bounds[image]
        return self.scene.rays(*self.cameras.rays(image, row, column), bounds), target

    def _from_one_image(self, step: int, n_rays: int) -> tuple[Tensor, Tensor, Tensor]:
        where = {'generator': self.generator, 'device': self.generator.device}
        frac = self.precrop_frac if step <= self.precrop_iters else 1.0
        image = torch.randint(len(self.cameras), (1,), **where).expand(n_rays)
        if self.size is None:
            pixels, starts = self.lists[frac]
            share = torch.rand(n_rays, dtype=torch.float64, **where)
            return self._places(pixels[starts[image] + (share * (starts[image + 1] - starts[image])).long()])
        (H, W), (height, width) = self.size, self._crop(frac)
        pixel = torch.randperm(height * width, **where)[:n_rays]
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
        """Every ANYWHERE-th pixel from all, the others from those that are not empty, with repeats."""
        where = {'generator': self.generator, 'device': self.generator.device}
        front = self.foreground[torch.randint(len(self.foreground), (n_rays,), **where)]
        anywhere = torch.randint(len(self.colours), (n_rays,), **where)
        chosen = torch.arange(n_rays, device=front.device) % ANYWHERE == 0
        return self._places(torch.where(chosen, anywhere, front))

    def _places(self, pixel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image, row and column of indices [R] into the flat list of pixels."""
        image = torch.searchsorted(self.starts[1:], pixel, right=True)
        width, within = self.cameras.sizes[image, 1], pixel - self.starts[image]
        return image, within // width, within % width

    def _shuffle(self, epoch_seed: int | None = None) -> None:
        """A new order of all pixels, from a seed that alone goes into the checkpoint."""
        if epoch_seed is None:
            epoch_seed = torch.randint(2 ** 62, (), generator=self.generator, device=self.generator.device).item()
        self.epoch_seed, self.used = epoch_seed, 0
        n_pixels = len(self.colours) if self.size else len(self.lists[1.0][0])
        order = torch.randperm(n_pixels, generator=torch.Generator().manual_seed(epoch_seed),
                               dtype=torch.int32 if n_pixels < 2 ** 31 else torch.int64)
        self.order = order.to(self.generator.device)

    def state_dict(self) -> dict:
        return {'device': self.generator.device.type, 'generator': self.generator.get_state(),
                'epoch_seed': self.epoch_seed, 'used': self.used, 'shuffled': self.order is not None}

    def load_state_dict(self, state: dict, step: int) -> None:
        """Goes on where `state_dict` was taken; on another kind of device, whose generator differs, from a new seed."""
        if state['device'] == self.generator.device.type:
            self.generator.set_state(state['generator'])
        else:
            self.generator.manual_seed(self.generator.initial_seed() + step)
        if state['shuffled']:
            self._shuffle(state['epoch_seed'])
            if type(state['used']) is not int or not 0 <= state['used'] <= len(self.order):
                raise ValueError(f"{state['used']} pixels used of {len(self.order)}")
            self.used = state['used']


def _pixel_lists(images: Images, frac: float) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of the pixels that can be drawn, image after image, and where each image's begin [N + 1].

    Args:
        images: with or without masks.
        frac: share of both sides that the central part has, outside of which no pixel is drawn.
    """
    parts = []
    for (height, width), start, end in zip(images.sizes, images.starts, images.starts[1:]):
        allowed = np.ones((height, width), bool) if images.masks is None else (
            images.masks[start:end].reshape(height, width))
        inside = np.zeros_like(allowed)
        rows, columns = max(1, int(height * frac)), max(1, int(width * frac))
        top, left = (height - rows) // 2, (width - columns) // 2
        inside[top:top + rows, left:left + columns] = True
        parts.append(start + np.flatnonzero(allowed & inside))
    return np.concatenate(parts), np.concatenate([[0], np.cumsum([len(part) for part in parts])])
