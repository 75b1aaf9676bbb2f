"""Level of a field's surface: the density at which half of the light of training rays has stopped."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from nerf.fields.interface import Sampler, pieces
from nerf.meshes.extraction import Density
from nerf.meshes.options import DEFAULTS, MeshSettings
from nerf.runtime.errors import UserError
from nerf.scene import Scene
from run_nerf_helpers import Rays

RAYS_AT_ONCE = 256
HALF = math.log(2.0)  # optical depth at which half of the light has stopped
ROUNDS = 30  # rounds of bisection: far more than float32 has digits
MOVES = 4  # steps of the search for the level along a normal


def surface_level(sampler: Sampler, scene: Scene, settings: MeshSettings = DEFAULTS) -> float:
    """Density that training rays reach where half of their light has stopped, in the median over the rays.

    Rays that end on the surface of this density end neither too early, where a field is blurred, nor behind objects.

    Args:
        sampler: shows the field.
        scene: scene of the field.

    Returns:
        Density in 1/scene unit; in NDC in 1/NDC unit.

    Raises:
        UserError: no training ray is stopped.
    """
    rays = _training_rays(scene, settings.level_rays)
    depths, lengths = scene.space.even_depths(rays, settings.level_samples), rays.directions.norm(dim=-1, keepdim=True)
    densities = _densities(sampler, rays, depths)
    optical = torch.nn.functional.pad((0.5 * (densities[:, 1:] + densities[:, :-1]) * depths.diff(dim=1)
                                       * lengths).cumsum(1), (1, 0))
    stopped = optical[:, -1] > HALF
    if not stopped.any():
        raise UserError('the field stops no training ray, so it has no surface; train longer')
    depths, densities = depths[stopped], densities[stopped]
    half = _first_crossing(optical[stopped], depths, HALF)
    low, high = 1e-3 * float(densities.amax()), float(densities.amax())
    for _ in range(ROUNDS):  # rays reach a higher level later
        level = math.sqrt(low * high)
        if _first_crossing(densities, depths, level).sub(half).median() > 0:
            high = level
        else:
            low = level
    return low


def onto_level(density: Density, vertices: np.ndarray, normals: np.ndarray, step: float,
               threshold: float) -> np.ndarray:
    """Moves vertices along their normals to where the density crosses a threshold.

    Marching cubes takes the density between grid points to be linear, so its vertices are a little off.

    Args:
        density: density of the field.
        vertices: [V, 3] on a surface.
        normals: [V, 3] outward unit normals.
        step: grid step. A vertex moves by half a step at most; a vertex without a crossing so near stays.
        threshold: density at the surface.

    Returns:
        [V, 3] float32.
    """
    low, high = (np.full(len(vertices), part, np.float32) for part in (-0.5 * step, 0.5 * step))  # inside, outside

    def excess(shift: np.ndarray) -> np.ndarray:
        return density(vertices + shift[:, None] * normals) - threshold
    at_low, at_high = excess(low), excess(high)
    crosses = (at_low > 0) & (at_high <= 0)
    shift = np.zeros(len(vertices), np.float32)
    for move in range(MOVES):  # chords and halves by turns: a chord alone can stay near one end
        middle = 0.5 * (low + high) if move % 2 else low + (high - low) * np.clip(
            at_low / np.maximum(at_low - at_high, 1e-12), 0.05, 0.95)
        shift = np.where(crosses, middle, 0.0).astype(np.float32)
        here = excess(shift)
        inside = here > 0
        low, at_low = np.where(inside, shift, low), np.where(inside, here, at_low)
        high, at_high = np.where(inside, high, shift), np.where(inside, at_high, here)
    return (vertices + shift[:, None] * normals).astype(np.float32)


def _training_rays(scene: Scene, count: int) -> Rays:
    """At most `count` rays, spread evenly over the training views."""
    side = max(int(math.sqrt(count / len(scene.i_train))), 2)
    rays = scene.spread_rays(scene.i_train, side)
    chosen = np.linspace(0, len(rays.near) - 1, min(count, len(rays.near))).astype(np.int64)
    return rays.part(torch.from_numpy(chosen))


@torch.inference_mode()
def _densities(sampler: Sampler, rays: Rays, depths: Tensor) -> Tensor:
    """Densities [R, S] at depths [R, S] on rays, on the CPU."""
    densities = []
    for tile in pieces(len(depths), RAYS_AT_ONCE):
        part = rays.part(tile)
        points = part.origins[:, None] + depths[tile][..., None] * part.directions[:, None]
        densities.append(torch.from_numpy(sampler.density_array(points.reshape(-1, 3).numpy())))
    return torch.cat(densities).reshape(depths.shape)


def _first_crossing(values: Tensor, depths: Tensor, level: float) -> Tensor:
    """Depths [R] at which values [R, S] first reach a level, interpolated linearly; infinite if they never do."""
    reached = values >= level
    at = reached.int().argmax(1, keepdim=True)  # the first one
    before = (at - 1).clamp(min=0)
    low, high = values.gather(1, before), values.gather(1, at)
    share = torch.where(at > 0, (level - low) / (high - low).clamp(min=1e-12), 1.0).clamp(0.0, 1.0)
    depth = torch.lerp(depths.gather(1, before), depths.gather(1, at), share)
    return torch.where(reached.any(1), depth[:, 0], torch.inf)
