"""The rays of each training step: pixels drawn, rays made from them, colours looked up, all on the device."""

from __future__ import annotations

import torch

from nerf.runtime.errors import UserError
from run_nerf_helpers import Rays, bundle_rays, pixel_rays
from nerf.scene import Scene, target_colours


class RayBatcher:
    """Draws each step's rays and the colours they should have; rays are made from sampled pixels and never stored.

    Args:
        scene: the training images and cameras, kept as uint8 on the device.
        n_rays: rays per step.
        no_batching: a step's rays from one image, each pixel at most once; else each pixel of all images once per
            epoch, in shuffled order.
        precrop_iters: with no_batching, steps that sample only the central precrop_frac of both sides.
        generator: decides all draws; its device is where the rays are made.
    """

    def __init__(self, scene: Scene, n_rays: int, no_batching: bool, precrop_iters: int, precrop_frac: float,
                 generator: torch.Generator):
        device = generator.device
        self.scene, self.n_rays, self.no_batching, self.generator = scene, n_rays, no_batching, generator
        self.images = torch.from_numpy(scene.images[scene.i_train]).to(device)
        self.poses = torch.from_numpy(scene.poses[scene.i_train]).to(device)
        self.K = torch.from_numpy(scene.K).float().to(device)
        self.precrop_iters = precrop_iters if no_batching else 0
        self.crop = (max(1, int(scene.H * precrop_frac)), max(1, int(scene.W * precrop_frac)))
        height, width = self.crop if self.precrop_iters else (scene.H, scene.W)
        available = height * width * (1 if no_batching else len(self.images))
        if n_rays > available:
            raise UserError(f'N_rand is {n_rays} but a step can draw only {available} pixels; lower N_rand'
                            + (', raise precrop_frac' if self.precrop_iters else '')
                            + (' or leave no_batching off' if no_batching else ''))
        self.epoch_seed, self.order, self.used = 0, None, 0

    def pixels(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Image, row and column [n_rays] of the pixels of a step, counted from 1."""
        return self._from_one_image(step) if self.no_batching else self._from_all_images()

    def next(self, step: int) -> tuple[Rays, torch.Tensor]:
        """The rays and target colours [n_rays, 3] of a step."""
        return self.rays(*self.pixels(step))

    def rays(self, image: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> tuple[Rays, torch.Tensor]:
        """The rays through R pixels, and the colours [R, 3] that they should have."""
        scene = self.scene
        origins, directions = pixel_rays(row, column, self.K, self.poses[image])
        target = target_colours(self.images[image, row, column], scene.white_bkgd)
        return bundle_rays(origins, directions, scene.near, scene.far, scene.ndc_camera), target

    def _from_one_image(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        device, scene = self.generator.device, self.scene
        height, width = self.crop if step <= self.precrop_iters else (scene.H, scene.W)
        image = torch.randint(len(self.images), (1,), generator=self.generator, device=device).expand(self.n_rays)
        pixel = torch.randperm(height * width, generator=self.generator, device=device)[:self.n_rays]
        return image, (scene.H - height) // 2 + pixel // width, (scene.W - width) // 2 + pixel % width

    def _from_all_images(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.order is None:
            self._shuffle()
        pixel = self.order[self.used:self.used + self.n_rays]
        self.used += self.n_rays
        if len(pixel) < self.n_rays:  # the epoch ends within this step
            self._shuffle()
            self.used = self.n_rays - len(pixel)
            pixel = torch.cat([pixel, self.order[:self.used]])
        pixel = pixel.long()
        return (pixel // (self.scene.H * self.scene.W), pixel // self.scene.W % self.scene.H, pixel % self.scene.W)

    def _shuffle(self, epoch_seed: int | None = None) -> None:
        """A new order of all pixels, from a seed that alone goes into the checkpoint."""
        if epoch_seed is None:
            epoch_seed = torch.randint(2 ** 62, (), generator=self.generator, device=self.generator.device).item()
        self.epoch_seed, self.used = epoch_seed, 0
        n_pixels = len(self.images) * self.scene.H * self.scene.W
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
