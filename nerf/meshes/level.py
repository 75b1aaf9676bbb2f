"""Where a field's surface is: the density at which, along the training rays, half of the light has stopped."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from nerf.fields.interface import Sampler, pieces
from nerf.runtime.errors import UserError
from nerf.scene import Scene
from run_nerf_helpers import Rays, stratified_z

RAYS, SAMPLES = 2048, 384  # that are looked at, and samples on each
RAYS_AT_ONCE = 256
HALF = math.log(2.0)  # optical depth at which half of the light has stopped
ROUNDS = 30  # of bisection


def surface_level(sampler: Sampler, scene: Scene) -> float:
    """The density in 1/scene unit that the training rays reach where half of their light has stopped, in the median.

    On the surface of this density rays end neither too early, where a field is blurred, nor behind things.

    Raises:
        UserError: no training ray is stopped.
    """
    depths, densities, lengths = _along(sampler, _training_rays(scene))
    optical = torch.nn.functional.pad((0.5 * (densities[:, 1:] + densities[:, :-1]) * depths.diff(dim=1)
                                       * lengths).cumsum(1), (1, 0))
    stopped = optical[:, -1] > HALF
    if not stopped.any():
        raise UserError('the field stops no training ray, so it has no surface; train longer')
    depths, densities = depths[stopped], densities[stopped]
    half = _first_crossing(optical[stopped], depths, HALF)
    low, high = 1e-3 * float(densities.amax()), float(densities.amax())
    for _ in range(ROUNDS):  # a higher level is reached later
        level = math.sqrt(low * high)
        if _first_crossing(densities, depths, level).sub(half).median() > 0:
            high = level
        else:
            low = level
    return low


def _training_rays(scene: Scene) -> Rays:
    """RAYS of the training views, spread evenly over them."""
    side = max(int(math.sqrt(RAYS / len(scene.i_train))), 2)
    rays = scene.spread_rays(scene.i_train, side)
    chosen = torch.from_numpy(np.linspace(0, len(rays.near) - 1, min(RAYS, len(rays.near))).astype(np.int64))
    return rays.part(chosen)


@torch.inference_mode()
def _along(sampler: Sampler, rays: Rays) -> tuple[Tensor, Tensor, Tensor]:
    """Depths [R, S], densities there [R, S], and the rays' lengths [R, 1], on the CPU."""
    depths = stratified_z(rays.near, rays.far, SAMPLES)
    densities = []
    for tile in pieces(len(depths), RAYS_AT_ONCE):
        part = rays.part(tile)
        points = part.origins[:, None] + depths[tile][..., None] * part.directions[:, None]
        densities.append(torch.from_numpy(sampler.density_array(points.reshape(-1, 3).numpy())).reshape(-1, SAMPLES))
    return depths, torch.cat(densities), rays.directions.norm(dim=-1, keepdim=True)


def _first_crossing(values: Tensor, depths: Tensor, level: float) -> Tensor:
    """Depths [R] at which values [R, S] along rays first reach a level, linearly in between; infinite where never."""
    reached = values >= level
    at = reached.int().argmax(1, keepdim=True)  # the first one
    before = (at - 1).clamp(min=0)
    low, high = values.gather(1, before), values.gather(1, at)
    share = torch.where(at > 0, (level - low) / (high - low).clamp(min=1e-12), 1.0).clamp(0.0, 1.0)
    depth = torch.lerp(depths.gather(1, before), depths.gather(1, at), share)
    return torch.where(reached.any(1), depth[:, 0], torch.inf)
