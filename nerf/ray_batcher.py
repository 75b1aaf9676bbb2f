"""Rays and targets of each training step: pixels are drawn, rays made and colours looked up, all on the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nerf.cameras import Cameras, same_rays, single_rays_agree
from nerf.coverage import EMPTY, OPAQUE, covered
from nerf.fields.interface import Target
from nerf.runtime.errors import UserError
from nerf.scene import Images, Scene, target_colours
from run_nerf_helpers import Rays, get_rays_np

ANYWHERE = 5  # with `foreground`, each ANYWHERE-th ray of a step goes through any pixel, empty ones included


class RayBatcher:
    """Rays of each training step, and their targets. Rays are made from the step's pixels and are not stored.

    An edited `get_rays` or `get_rays_np` is the exception: rays of whole images are then stored, and looked up.

    Args:
        scene: the training images, kept as uint8 on the device, and their cameras.
        n_rays: rays per step.
        no_batching: the rays of a step come from one image, each pixel at most once (images of several sizes or with
            masks: pixels may repeat). Else each pixel of all images has one ray per epoch, in shuffled order.
        precrop_iters: with no_batching, steps whose rays come from the centre of an image.
        precrop_frac: share of both sides that the centre has.
        generator: source of all draws; rays are made on its device.
        foreground: most rays go through pixels that are not empty (nerf/coverage.py), whatever no_batching says. Images
            without empty pixels, or with masks, are not concerned.

    Raises:
        UserError: a step needs more pixels than there are.
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
        self.foreground = self.covered = None  # flat indices of pixels that are not empty; coverage of each pixel
        if foreground and images.masks is None:
            self._find_foreground(images)
        self._check_enough()
        self.epoch_seed, self.order, self.used = 0, None, 0
        self.stored = None  # origins and directions [P, 3] of all pixels, after an edit
        if rays_were_edited(self.cameras):
            print('get_rays or get_rays_np was edited: training looks its rays up in those of whole images'
                  + ('' if single_rays_agree() else ', and smooth edges are off'))
            self.stored = [torch.cat(parts) for parts in zip(*(
                _whole_image(self.cameras, i) for i in range(len(self.cameras))))]

    def _find_foreground(self, images: Images) -> None:
        """Sets `foreground` and `covered` where some pixels are empty and some are not."""
        shown = np.concatenate([covered(images[i]).ravel() for i in range(len(images))])
        if (shown == EMPTY).any() and shown.any():
            self.foreground = torch.from_numpy(np.flatnonzero(shown)).to(self.generator.device)
            self.covered = torch.from_numpy(shown).to(self.generator.device)

    def _check_enough(self) -> None:
        """Raises UserError where a step needs more pixels than there are."""
        if self.foreground is not None:
            return
        if self.size is None:
            pixels, starts = self.lists[self.precrop_frac if self.precrop_iters else 1.0]
            if self.no_batching:
                if (empty := (starts.diff() == 0).nonzero()).numel():
                    where = ' at its centre; set precrop_iters = 0' if self.precrop_iters else '; remove it'
                    raise UserError(f'training image {int(empty[0, 0])} has no pixel to train on, as its mask is empty'
                                    f'{where}')
                return  # pixels may repeat
            available = len(pixels)
        else:
            height, width = self._crop(self.precrop_frac if self.precrop_iters else 1.0)
            available = height * width * (1 if self.no_batching else len(self.cameras))
        if self.n_rays > available:
            raise UserError(f'N_rand is {self.n_rays} but a step can draw only {available} pixels; lower N_rand'
                            + (', raise precrop_frac' if self.precrop_iters else '')
                            + (' or leave no_batching off' if self.no_batching else ''))

    def _crop(self, frac: float) -> tuple[int, int]:
        """Height and width of the centre of images of one size."""
        height, width = self.size
        return max(1, int(height * frac)), max(1, int(width * frac))

    def pixels(self, step: int, n_rays: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Image, row and column, [n_rays] each, of the pixels of a step.

        Args:
            step: counted from 1.
            n_rays: None: the rays per step that the batcher was made with.
        """
        n_rays = n_rays or self.n_rays
        if self.foreground is not None:
            return self._mostly_foreground(n_rays)
        return self._from_one_image(step, n_rays) if self.no_batching else self._from_all_images(n_rays)

    def next(self, step: int) -> tuple[Rays, Target]:
        """The rays of a step, counted from 1, and their targets."""
        return self.rays(*self.pixels(step))

    def rays(self, image: Tensor, row: Tensor, column: Tensor) -> tuple[Rays, Target]:
        """The rays through R pixels, and their targets. Coverage is known with `foreground` alone."""
        pixel = self.starts[image] + row * self.cameras.sizes[image, 1] + column
        target = Target(target_colours(self.colours[pixel], self.scene.white_bkgd),
                        None if self.covered is None else self.covered[pixel] / OPAQUE)
        bounds = None if self.cameras.bounds is None else self.cameras.bounds[image]
        if self.stored:
            return self.scene.rays(*(part[pixel] for part in self.stored), bounds), target
        return self.scene.rays(*self.cameras.single_rays(image, row, column), bounds), target

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
        """Pixels of the foreground, and each ANYWHERE-th any pixel; pixels may repeat."""
        where = {'generator': self.generator, 'device': self.generator.device}
        front = self.foreground[torch.randint(len(self.foreground), (n_rays,), **where)]
        anywhere = torch.randint(len(self.colours), (n_rays,), **where)
        chosen = torch.arange(n_rays, device=front.device) % ANYWHERE == 0
        return self._places(torch.where(chosen, anywhere, front))

    def _places(self, pixel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image, row and column of pixels, from their flat indices [R]."""
        image = torch.searchsorted(self.starts[1:], pixel, right=True)
        width, within = self.cameras.sizes[image, 1], pixel - self.starts[image]
        return image, within // width, within % width

    def _shuffle(self, epoch_seed: int | None = None) -> None:
        """Shuffles all pixels by a seed; a checkpoint holds the seed alone.

        Args:
            epoch_seed: None: from the generator.
        """
        if epoch_seed is None:
            epoch_seed = torch.randint(2 ** 62, (), generator=self.generator, device=self.generator.device).item()
        self.epoch_seed, self.used = epoch_seed, 0
        n_pixels = len(self.colours) if self.size else len(self.lists[1.0][0])
        order = torch.randperm(n_pixels, generator=torch.Generator().manual_seed(epoch_seed),
                               dtype=torch.int32 if n_pixels < 2 ** 31 else torch.int64)
        self.order = order.to(self.generator.device)

    def state_dict(self) -> dict:
        """Everything that decides the pixels of the next steps."""
        return {'device': self.generator.device.type, 'generator': self.generator.get_state(),
                'epoch_seed': self.epoch_seed, 'used': self.used, 'shuffled': self.order is not None}

    def load_state_dict(self, state: dict, step: int) -> None:
        """Goes on where `state_dict` was taken. Another kind of device has another generator: it gets a new seed.

        Raises:
            ValueError, LookupError, TypeError, RuntimeError: the state is broken.
        """
        if state['device'] == self.generator.device.type:
            self.generator.set_state(state['generator'])
        else:
            self.generator.manual_seed(self.generator.initial_seed() + step)
        if state['shuffled']:
            self._shuffle(state['epoch_seed'])
            if type(state['used']) is not int or not 0 <= state['used'] <= len(self.order):
                raise ValueError(f"{state['used']} pixels used of {len(self.order)}")
            self.used = state['used']


def rays_were_edited(cameras: Cameras) -> bool:
    """Whether `get_rays` or `get_rays_np` gives an image other rays than `pixel_rays` gives its pixels.

    Args:
        cameras: of the training images. The first one without distortion is looked at.
    """
    if not single_rays_agree():
        return True
    first = next((i for i in range(len(cameras)) if cameras.is_pinhole(i)), None)
    if first is None:
        return False
    return not same_rays(_whole_image(cameras, first), tuple(part.flatten(0, 1) for part in cameras.view_rays(first)))


def _whole_image(cameras: Cameras, i: int) -> tuple[Tensor, Tensor]:
    """Origins and directions of the rays through all pixels of image i, [P, 3] each: those of `get_rays_np`, or of the
    camera where a lens distorts them."""
    if cameras.is_pinhole(i):
        rays = get_rays_np(*cameras.size(i), cameras.matrix(i).cpu().numpy(), cameras.poses[i].cpu().numpy())
        rays = (torch.from_numpy(np.asarray(part, np.float32)).to(cameras.device) for part in rays)
    else:
        rays = cameras.view_rays(i)
    return tuple(part.reshape(-1, 3) for part in rays)


def _pixel_lists(images: Images, frac: float) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of the pixels that can be drawn, image after image, and each image's first place [N + 1] there.

    Args:
        images: with or without masks.
        frac: share of both sides that an image's centre has; pixels outside of it are left out.
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
