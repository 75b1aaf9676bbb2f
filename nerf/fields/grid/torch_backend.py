"""A sparse grid in plain PyTorch: on CUDA, without Numba, and as what the kernels are tested against.

Shapes: R rays, N samples that were kept, M rows of 16 channels: raw density, three of diffuse colour, and twelve that
only the network behind them understands. Rays are in voxels: vertex (i, j, k) is at the point (i, j, k).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nerf.fields.occupancy import crossed
from nerf.fields.grid.sparse_grid import SparseGrid, trilinear
from nerf.runtime.devices import constant
from nerf.space import contracted, even_depths, shrinkage
from run_nerf_helpers import composite_packed

CHANNELS = 16  # of a row: a cache line
MOST = 128  # samples that a ray can keep; it ends behind them
STEP = 0.5  # voxels between samples; the kernels know no other
LEAST_STEP = 1e-5  # of a contracted ray, as a share of its depth: shorter ones could round to 0, and never end
CHECK = 64  # steps of contracted rays that are taken without looking whether all have ended
DARK = 1e-3  # light at which a ray ends
ROUNDS = 8  # in which it is decided which samples are kept
SPARE = 256  # rays among which a captured step's unused room is shared: sums over one would hold a GPU up
SHARPNESS, OFFSET = 10.0, -5.0  # the optical depth of a voxel is softplus(SHARPNESS * raw + OFFSET)
FIRST_RATE, SECOND_RATE = 0.9, 0.99  # Adam's betas
EPSILON = 1e-12  # Adam's


class Ball(NamedTuple):
    """The unit ball of a contraction (nerf/contraction.py), in voxels; inside it, contracted points are where they are.
    """

    contracted: bool = False  # False: there is none, and rays are straight in the grid
    x: float = 0.0  # of its centre
    y: float = 0.0
    z: float = 0.0
    radius: float = 1.0

    def of(self, points: Tensor) -> Tensor:
        """Points [..., 3] in voxels as radii from the centre."""
        return (points - self._centre(points)) / self.radius

    def contract(self, points: Tensor) -> Tensor:
        """Points [..., 3] on a straight ray to where they are in the grid."""
        if not self.contracted:
            return points
        return contracted(self.of(points)) * self.radius + self._centre(points)

    def _centre(self, points: Tensor) -> Tensor:
        """[3], like points."""
        return constant((self.x, self.y, self.z), points.device, points.dtype)


STRAIGHT = Ball()


class Rules(NamedTuple):
    """What the kernels must know of all this: compiled code on disk would not notice that a constant was edited."""

    least: float  # weight below which a sample is skipped
    dark: float = DARK
    sharpness: float = SHARPNESS
    offset: float = OFFSET
    ball: Ball = STRAIGHT
    least_step: float = LEAST_STEP


class Room(NamedTuple):
    """The samples for which a captured step has room: its tensors keep their sizes, whatever rays meet."""

    in_cells: int  # at which the density is asked for
    kept: int


class Marched(NamedTuple):
    """What R rays met."""

    features: Tensor  # [R, 15] composited channels, the first three as colours
    rest: Tensor  # [R] light that is left
    depth: Tensor  # [R] expected depth, not divided by opacity
    count: Tensor  # [R] kept samples
    n_samples: int | Tensor  # their sum
    n_whole: Tensor | None = None  # [] the first rays, whose samples all had room; None: all had


def optical_depth(raw: Tensor) -> Tensor:
    """Optical depth of a voxel of some raw density: non-negative."""
    return torch.nn.functional.softplus(SHARPNESS * raw + OFFSET)


def channels(rows: Tensor, corner: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Optical depth of a voxel [N] and the 15 channels behind density [N, 15] at points of which `trilinear` gave the
    corners and weights [N, 8]; the first three channels as colours in [0, 1]."""
    values = (rows[corner] * weights[..., None]).sum(1)
    return optical_depth(values[:, 0]), torch.cat([torch.sigmoid(values[:, 1:4]), values[:, 4:]], -1)


def march(grid: SparseGrid, rows: Tensor, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor,
          jitter: Tensor, least: float, ball: Ball = STRAIGHT, strongest: Tensor | None = None,
          at_once: bool = False, room: Room | None = None) -> Marched:
    """Marches rays through the kept cells and composites what they meet; differentiable by `rows`.

    Args:
        rows: [M, 16].
        origins, directions: [R, 3] in voxels.
        near, far: [R] bounds.
        jitter: [R] in [0, 1), where in a step the first sample lies.
        least: weight below which a sample is skipped: it takes no light either.
        ball: where it is contracted; origins and directions are those of straight rays.
        strongest: [M], gets the largest weight of a sample around each row, where it was smaller.
        at_once: as of `samples`.
        room: for a captured step, which does not wait for the device. The last rays get nothing where it is too small.
    """
    n_rays, n_whole = len(origins), None
    with torch.no_grad():
        ray, t = samples(grid, origins, directions, near, far, jitter, ball, at_once, room and room.in_cells)
        if room:  # what is left of it is on rays that nobody sees
            origins, directions = (torch.cat([part, part[:1].expand(SPARE, 3)]) for part in (origins, directions))
        corner, weights = trilinear(grid.index, ball.contract(origins[ray] + t[:, None] * directions[ray]))
        optical = STEP * optical_depth((rows[corner, 0] * weights).sum(-1))
        kept = _kept(ray, optical, len(origins), least) & (ray < n_rays)
        place, found = _places(kept, room and room.kept)
        last, ray = ray[-1:], _or_spare(ray[place], found, n_rays)
        t, corner, weights = (part.index_select(0, place) for part in (t, corner, weights))
        if room:
            n_whole = torch.cat([last, ray[-1:]]).amin().clamp(max=n_rays)
            corner = torch.where(found[:, None], corner, torch.arange(len(t), device=t.device)[:, None] % len(rows))
    optical, features = channels(rows, corner, weights)
    length = directions.norm(dim=-1)
    shown = composite_packed(features, optical, t, ray, directions / length[:, None], deltas=torch.full_like(t, STEP))
    if strongest is not None:
        weights = torch.where(ray < n_rays, shown.weights.detach(), 0.0)
        strongest.scatter_reduce_(0, corner.flatten(), weights.repeat_interleave(8, output_size=corner.numel()), 'amax')
    count = ray.new_zeros(len(origins)).index_add_(0, ray, torch.ones_like(ray))[:n_rays]
    return Marched(shown.rgb[:n_rays], 1.0 - shown.acc[:n_rays], shown.depth[:n_rays], count,
                   count.sum() if room else len(ray), n_whole)


def _places(mask: Tensor, room: int | None) -> tuple[Tensor, Tensor]:
    """Where a mask [N] is set, and whether that is so: True. This waits for the device, but not with room: then there
    are so many, of which those that the mask has not are False."""
    if room is None:
        place = mask.nonzero()[:, 0]
        return place, torch.ones_like(place, dtype=torch.bool)
    number = torch.arange(1, room + 1, dtype=torch.int32, device=mask.device)
    place = torch.searchsorted(mask.cumsum(0, dtype=torch.int32), number)
    return place.clamp(max=len(mask) - 1), place < len(mask)


def _or_spare(ray: Tensor, found: Tensor, n_rays: int) -> Tensor:
    """Rays [N], ascending, or where no sample was found one of the SPARE rays behind all."""
    spare = torch.arange(len(ray), device=ray.device) * SPARE // max(len(ray), 1)
    return torch.where(found, ray, n_rays + spare)


def samples(grid: SparseGrid, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, jitter: Tensor,
            ball: Ball = STRAIGHT, at_once: bool = False, room: int | None = None) -> tuple[Tensor, Tensor]:
    """Ray and depth of each sample in a kept cell, in order along each ray; this waits for the device, but not with
    room. The list then is so long: behind them all are on rays from R on, at depths that mean nothing.

    Args:
        at_once: contracted rays take evenly long steps, all at once, as suits a GPU; else one after the other, as in
            the kernels.
    """
    if ball.contracted and not at_once:
        return _contracted_samples(grid, origins, directions, near, far, jitter, ball)
    steps = _contracted_steps if ball.contracted else _straight_steps
    t, kept = steps(grid, origins, directions, near, far, jitter, ball)
    place, found = _places(kept.flatten(), room)
    return _or_spare(place // t.shape[1], found, len(t)), t.flatten()[place]


def _straight_steps(grid: SparseGrid, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, jitter: Tensor,
                    ball: Ball) -> tuple[Tensor, Tensor]:
    """Depths [R, S] of all steps in the box, and whether they are in a kept cell."""
    shape = grid.index.shape
    start, end = crossed([size - 1 for size in shape], origins, directions, near, far)
    dt = STEP / directions.norm(dim=-1)
    n_steps = math.ceil(math.hypot(*shape) / STEP) + 1  # along the diagonal
    t = start[:, None] + (jitter[:, None] + torch.arange(n_steps, device=origins.device)) * dt[:, None]
    at = ((origins[:, None, axis] + t * directions[:, None, axis]).long().clamp(0, size - 2)
          for axis, size in enumerate(shape))
    return t, grid.cells[tuple(at)] & (t < end[:, None])


def _contracted_steps(grid: SparseGrid, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, jitter: Tensor,
                      ball: Ball) -> tuple[Tensor, Tensor]:
    """`_straight_steps` STEP apart in contracted space, at once."""
    numbers = torch.arange(math.ceil(math.tau * ball.radius / STEP), device=near.device)  # no line is longer there
    t = even_depths(ball.of(origins), directions / ball.radius, near, far,
                    (jitter[:, None] + numbers) * (STEP / ball.radius))
    points = ball.contract(origins[:, None] + t[..., None] * directions[:, None])
    return t, _in_kept_cells(grid, points) & (t < far[:, None])


def _in_kept_cells(grid: SparseGrid, points: Tensor) -> Tensor:
    """[...] bool: points [..., 3] in voxels, inside the box or not, that are in kept cells."""
    last = constant(grid.index.shape, points.device) - 1
    at = points.long().clamp(min=0).minimum(last - 1)
    return ((points >= 0) & (points <= last)).all(-1) & grid.cells[at[..., 0], at[..., 1], at[..., 2]]


def _contracted_samples(grid: SparseGrid, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor,
                        jitter: Tensor, ball: Ball) -> tuple[Tensor, Tensor]:
    """`samples` in steps that are STEP voxels long in contracted space, so that they grow with the distance. They are
    as long as at their start, which makes those of the last two or three voxels before infinity too short. Every CHECK
    steps this waits for the device, to see whether all rays have ended."""
    dt = STEP / directions.norm(dim=-1)
    t = near + jitter * dt / shrinkage(ball.of(origins + near[:, None] * directions), directions)
    kept, depths = [], []
    while len(kept) % CHECK or bool((t < far).any()):
        straight = origins + t[:, None] * directions
        kept.append(_in_kept_cells(grid, ball.contract(straight)) & (t < far))
        depths.append(t)
        step = torch.maximum(dt / shrinkage(ball.of(straight), directions), LEAST_STEP * t)
        t = torch.where(t < far, t + step, t)
    if not kept:
        return torch.zeros_like(far[:0], dtype=torch.long), far[:0]
    ray, step = torch.stack(kept, 1).nonzero(as_tuple=True)
    return ray, torch.stack(depths, 1)[ray, step]


def _kept(ray: Tensor, optical: Tensor, n_rays: int, least: float) -> Tensor:
    """[N] bool: samples whose weight reaches `least`, as long as more than DARK of the light is left and the ray has
    fewer than MOST. Others take no light, so that each decision needs those before it. They are all made at once, again
    and again: each round is right for one sample more of a ray at least, and ROUNDS for nearly all.

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
    kept = alpha >= least
    for _ in range(ROUNDS):
        light = torch.exp(-before(torch.where(kept, depth, 0.0)))
        kept = (light * alpha >= least) & (light >= DARK) & (before(kept.long()) < MOST)
    return kept


@torch.no_grad()
def smooth(rows: Tensor, gradient: Tensor, grid: SparseGrid, weights: Tensor, axis: Tensor) -> None:
    """Adds to each row's gradient, where there is any, that of half the squared differences to its neighbours along an
    axis.

    Args:
        rows, gradient: [M, 16].
        weights: [16], of the channels' differences.
        axis: scalar, 0, 1 or 2.
    """
    touched, flat = (gradient != 0).any(-1), grid.index.view(-1)
    stride, size = (constant(part, rows.device).take(axis) for part in (grid.index.stride(), grid.index.shape))
    place = grid.vertices // stride % size
    for step, inside in ((-1, place > 0), (1, place < size - 1)):
        other = flat[(grid.vertices + step * stride).clamp(0, len(flat) - 1)]
        has_other = touched & inside & (other >= 0)
        gradient += torch.where(has_other[:, None], weights * (rows - rows[other.clamp(min=0)]), 0.0)


@torch.no_grad()
def adam(rows: Tensor, gradient: Tensor, means: Tensor, squares: Tensor, rates: Tensor, step: Tensor,
         apply: Tensor) -> None:
    """Adam's step on the rows that have a gradient, in place; the running means of the others stay.

    Args:
        rows, gradient, means, squares: [M, 16].
        rates: [16], of each channel.
        step: scalar, counted from 1 since the running means began.
        apply: scalar bool; False changes nothing.
    """
    touched = (gradient != 0).any(-1, keepdim=True) & apply
    means.copy_(torch.where(touched, torch.lerp(gradient, means, FIRST_RATE), means))
    squares.copy_(torch.where(touched, torch.lerp(gradient ** 2, squares, SECOND_RATE), squares))
    first, second = (1.0 - rate ** step.double() for rate in (FIRST_RATE, SECOND_RATE))
    change = rates * means / first / ((squares / second).sqrt() + EPSILON)
    rows.sub_(torch.where(touched, change, 0.0))
