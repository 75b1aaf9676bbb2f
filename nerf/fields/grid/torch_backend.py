"""Backend of a grid in plain PyTorch: on CUDA, without Numba, and for testing the kernels.

Shapes: R rays, N samples, M rows of 16 channels. Rays are in voxels (see backend.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nerf.fields.grid.backend import (
    LEAST_STEP, STEP, STRAIGHT, Backend, Ball, Capacity, Marched, Rules, VoxelRays,
)
from nerf.fields.grid.sparse_grid import SparseGrid, trilinear
from nerf.fields.occupancy import crossed
from nerf.runtime.devices import constant
from nerf.space import even_depths, shrinkage
from run_nerf_helpers import composite_packed

CHECK = 64  # steps of contracted rays between two looks whether all have ended
ROUNDS = 8  # in which it is decided which samples are kept
SPARE = 256  # rays among which the unused capacity of a captured step is shared: sums over one would hold a GPU up
EVERYTHING = 2 ** 31  # rays


class TorchBackend(Backend):
    """A grid and its rows in plain PyTorch."""

    name = 'plain PyTorch'

    def __init__(self, grid: SparseGrid, rows: nn.Parameter, rules: Rules, most_rays: int):
        self.on_gpu = rows.device.type == 'cuda'
        roomy = self.on_gpu and not rules.ball.contracted  # steps of contracted rays, all at once, take much memory
        super().__init__(grid, rows, rules, EVERYTHING if roomy else most_rays)

    def march(self, rays: VoxelRays, capacity: Capacity | None = None) -> Marched:
        heaviest = self.heaviest if torch.is_grad_enabled() else None
        return march(self.grid, self.rows, rays, self.rules, heaviest, self.on_gpu, capacity)

    @torch.no_grad()
    def smooth(self, weights: Tensor, axis: Tensor) -> Tensor:
        smooth(self.rows, self.rows.grad, self.grid, weights, axis)
        return self.rows.grad.sum()

    @torch.no_grad()
    def adam(self, state: dict[str, Tensor], rates: Tensor, betas: tuple[float, float], epsilon: float,
             skip: Tensor) -> None:
        state['strongest'].copy_(torch.maximum(state['strongest'], self.heaviest))
        adam(self.rows, self.rows.grad, state, rates, betas, epsilon, skip)
        self.clear_gradient()

    def clear_gradient(self) -> None:
        self.rows.grad = None
        self.heaviest.zero_()


# Marching


def march(grid: SparseGrid, rows: Tensor, rays: VoxelRays, rules: Rules, heaviest: Tensor | None = None,
          at_once: bool = False, capacity: Capacity | None = None) -> Marched:
    """`Backend.march`.

    Args:
        heaviest: [M], gets the largest weight of a sample around each row, if it was smaller.
        at_once: as of `samples`.
    """
    n_rays, n_whole = len(rays.near), None
    origins, directions = rays.origins, rays.directions
    with torch.no_grad():
        ray, t = samples(grid, rays, rules.ball, at_once, capacity and capacity.in_cells)
        if capacity:  # unused capacity is on rays that nobody sees
            origins, directions = (torch.cat([part, part[:1].expand(SPARE, 3)]) for part in (origins, directions))
        corner, weights = trilinear(grid.index, rules.ball.contract(origins[ray] + t[:, None] * directions[ray]))
        optical = STEP * rules.optical_depth((rows[corner, 0] * weights).sum(-1))
        kept = _kept(ray, optical, len(origins), rules) & (ray < n_rays)
        place, found = _places(kept, capacity and capacity.kept)
        last, ray = ray[-1:], _or_spare(ray[place], found, n_rays)
        t, corner, weights = (part.index_select(0, place) for part in (t, corner, weights))
        if capacity:
            n_whole = torch.cat([last, ray[-1:]]).amin().clamp(max=n_rays)
            corner = torch.where(found[:, None], corner, torch.arange(len(t), device=t.device)[:, None] % len(rows))
    optical, features = channels(rows, corner, weights, rules)
    length = directions.norm(dim=-1)
    shown = composite_packed(features, optical, t, ray, directions / length[:, None], deltas=torch.full_like(t, STEP))
    if heaviest is not None:
        weights = torch.where(ray < n_rays, shown.weights.detach(), 0.0)
        heaviest.scatter_reduce_(0, corner.flatten(), weights.repeat_interleave(8, output_size=corner.numel()), 'amax')
    count = ray.new_zeros(len(origins)).index_add_(0, ray, torch.ones_like(ray))[:n_rays]
    return Marched(shown.rgb[:n_rays], 1.0 - shown.acc[:n_rays], shown.depth[:n_rays], count,
                   count.sum() if capacity else len(ray), n_whole)


def channels(rows: Tensor, corner: Tensor, weights: Tensor, rules: Rules) -> tuple[Tensor, Tensor]:
    """Optical depth of a voxel [N] and the 15 channels behind density [N, 15] at some points; the first three channels
    as colours in [0, 1].

    Args:
        rows: [M, 16].
        corner, weights: [N, 8] rows around each point and their weights, by `trilinear`.
    """
    values = (rows[corner] * weights[..., None]).sum(1)
    return rules.optical_depth(values[:, 0]), torch.cat([torch.sigmoid(values[:, 1:4]), values[:, 4:]], -1)


def _places(mask: Tensor, capacity: int | None) -> tuple[Tensor, Tensor]:
    """Places at which a mask [N] is set, and True for each. This waits for the device.

    With a capacity it does not wait: there are always `capacity` places, and those beyond the mask's have False.
    """
    if capacity is None:
        place = mask.nonzero()[:, 0]
        return place, torch.ones_like(place, dtype=torch.bool)
    number = torch.arange(1, capacity + 1, dtype=torch.int32, device=mask.device)
    place = torch.searchsorted(mask.cumsum(0, dtype=torch.int32), number)
    return place.clamp(max=len(mask) - 1), place < len(mask)


def _or_spare(ray: Tensor, found: Tensor, n_rays: int) -> Tensor:
    """Rays [N], ascending; where no sample was found, one of the SPARE rays behind all."""
    spare = torch.arange(len(ray), device=ray.device) * SPARE // max(len(ray), 1)
    return torch.where(found, ray, n_rays + spare)


def samples(grid: SparseGrid, rays: VoxelRays, ball: Ball = STRAIGHT, at_once: bool = False,
            capacity: int | None = None) -> tuple[Tensor, Tensor]:
    """Ray and depth of each sample in a kept cell, in order along each ray. This waits for the device, unless there is
    a capacity.

    Args:
        at_once: all steps of contracted rays are taken at once, evenly long, as suits a GPU; else one after the other,
            as in the kernels. With a capacity they always are.
        capacity: length of the list. Entries beyond the samples are on rays from R on, at depths without meaning.
    """
    if ball.contracted and not at_once and capacity is None:
        return _contracted_samples(grid, rays, ball)
    t, kept = _contracted_steps(grid, rays, ball) if ball.contracted else _straight_steps(grid, rays)
    place, found = _places(kept.flatten(), capacity)
    return _or_spare(place // t.shape[1], found, len(t)), t.flatten()[place]


def _straight_steps(grid: SparseGrid, rays: VoxelRays) -> tuple[Tensor, Tensor]:
    """Depths [R, S] of all steps in the box, and whether they are in a kept cell."""
    shape, (origins, directions, near, far, jitter) = grid.index.shape, rays
    start, end = crossed([size - 1 for size in shape], origins, directions, near, far)
    dt = STEP / directions.norm(dim=-1)
    n_steps = math.ceil(math.hypot(*shape) / STEP) + 1  # along the diagonal
    t = start[:, None] + (jitter[:, None] + torch.arange(n_steps, device=origins.device)) * dt[:, None]
    at = ((origins[:, None, axis] + t * directions[:, None, axis]).long().clamp(0, size - 2)
          for axis, size in enumerate(shape))
    return t, grid.cells[tuple(at)] & (t < end[:, None])


def _contracted_steps(grid: SparseGrid, rays: VoxelRays, ball: Ball) -> tuple[Tensor, Tensor]:
    """`_straight_steps` STEP apart in contracted space, at once."""
    origins, directions, near, far, jitter = rays
    numbers = torch.arange(math.ceil(math.tau * ball.radius / STEP), device=near.device)  # no line is longer there
    t = even_depths(ball.from_centre(origins), directions / ball.radius, near, far,
                    (jitter[:, None] + numbers) * (STEP / ball.radius))
    points = ball.contract(origins[:, None] + t[..., None] * directions[:, None])
    return t, _in_kept_cells(grid, points) & (t < far[:, None])


def _in_kept_cells(grid: SparseGrid, points: Tensor) -> Tensor:
    """[...] bool: points [..., 3] in voxels, inside the box or not, that are in kept cells."""
    last = constant(grid.index.shape, points.device) - 1
    at = points.long().clamp(min=0).minimum(last - 1)
    return ((points >= 0) & (points <= last)).all(-1) & grid.cells[at[..., 0], at[..., 1], at[..., 2]]


def _contracted_samples(grid: SparseGrid, rays: VoxelRays, ball: Ball) -> tuple[Tensor, Tensor]:
    """`samples` in steps that are STEP voxels long in contracted space, and so grow with the distance.

    Their length is that at their start, so the last two or three voxels before infinity get too short steps. Every
    CHECK steps this waits for the device, to see whether all rays have ended.
    """
    origins, directions, near, far, jitter = rays
    dt = STEP / directions.norm(dim=-1)
    t = near + jitter * dt / shrinkage(ball.from_centre(origins + near[:, None] * directions), directions)
    kept, depths = [], []
    while len(kept) % CHECK or bool((t < far).any()):
        straight = origins + t[:, None] * directions
        kept.append(_in_kept_cells(grid, ball.contract(straight)) & (t < far))
        depths.append(t)
        step = torch.maximum(dt / shrinkage(ball.from_centre(straight), directions), LEAST_STEP * t)
        t = torch.where(t < far, t + step, t)
    if not kept:
        return torch.zeros_like(far[:0], dtype=torch.long), far[:0]
    ray, step = torch.stack(kept, 1).nonzero(as_tuple=True)
    return ray, torch.stack(depths, 1)[ray, step]


def _kept(ray: Tensor, optical: Tensor, n_rays: int, rules: Rules) -> Tensor:
    """[N] bool: samples of enough weight, up to the one at which a ray ends.

    Others take no light, so each decision needs those before it. All decisions are made at once, again and again: each
    round is right for one sample more of a ray at least, and ROUNDS for nearly all.

    Args:
        ray: [N] ascending.
        optical: [N] optical depth of the samples.
    """
    first = torch.searchsorted(ray, torch.arange(n_rays, device=ray.device))[ray]

    def before(values: Tensor) -> Tensor:
        """Sums of values [N] over a ray's earlier samples."""
        total = F.pad(values.cumsum(0), (1, 0))
        return total[:-1] - total[first]
    depth, alpha = optical.double().clamp(max=100.0), 1.0 - torch.exp(-optical)  # a sum over all rays stays precise
    kept = alpha >= rules.least
    for _ in range(ROUNDS):
        light = torch.exp(-before(torch.where(kept, depth, 0.0)))
        kept = (light * alpha >= rules.least) & (light >= rules.dark) & (before(kept.long()) < rules.most)
    return kept


# Training of rows


@torch.no_grad()
def smooth(rows: Tensor, gradient: Tensor, grid: SparseGrid, weights: Tensor, axis: Tensor) -> None:
    """`Backend.smooth` on a gradient [M, 16]; touched rows are those with a gradient."""
    touched, flat = (gradient != 0).any(-1), grid.index.view(-1)
    stride, size = (constant(part, rows.device).take(axis) for part in (grid.index.stride(), grid.index.shape))
    place = grid.vertices // stride % size
    for step, inside in ((-1, place > 0), (1, place < size - 1)):
        other = flat[(grid.vertices + step * stride).clamp(0, len(flat) - 1)]
        has_other = touched & inside & (other >= 0)
        gradient += torch.where(has_other[:, None], weights * (rows - rows[other.clamp(min=0)]), 0.0)


@torch.no_grad()
def adam(rows: Tensor, gradient: Tensor, state: dict[str, Tensor], rates: Tensor, betas: tuple[float, float],
         epsilon: float, skip: Tensor) -> None:
    """`Backend.adam` with a gradient [M, 16]; touched rows are those with a gradient."""
    means, squares, step = state['exp_avg'], state['exp_avg_sq'], state['step'].double()
    touched = (gradient != 0).any(-1, keepdim=True) & (skip == 0)
    means.copy_(torch.where(touched, torch.lerp(gradient, means, betas[0]), means))
    squares.copy_(torch.where(touched, torch.lerp(gradient ** 2, squares, betas[1]), squares))
    first, second = (1.0 - beta ** step for beta in betas)
    change = rates * means / first / ((squares / second).sqrt() + epsilon)
    rows.sub_(torch.where(touched, change, 0.0))
