"""Backend of a grid in plain PyTorch: on CUDA, without Numba, and for testing the kernels.

Shapes: R rays, N samples, M rows of 16 channels. Rays are in voxels (see backend.py)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nerf.fields.grid.backend import STEP, STRAIGHT, Backend, Ball, Capacity, Marched, Rules, VoxelRays
from nerf.fields.grid.sparse_grid import SparseGrid
from nerf.fields.occupancy import crossed
from nerf.runtime.devices import constant
from nerf.space import even_depths
from run_nerf_helpers import composite_packed

ROUNDS = 8  # in which it is decided which samples are kept
SPARE = 256  # rays among which the unused capacity of a captured step is shared: sums over one would hold a GPU up


class TorchBackend(Backend):
    """A grid and its rows in plain PyTorch."""
    name = 'plain PyTorch'

    def __init__(self, grid: SparseGrid, rows: nn.Parameter, rules: Rules, most_rays: int):
        roomy = rows.device.type == 'cuda' and not rules.ball.contracted  # contracted rays take much memory
        super().__init__(grid, rows, rules, 2 ** 31 if roomy else most_rays)

    def march(self, rays: VoxelRays, capacity: Capacity | None = None) -> Marched:
        with torch.no_grad():
            ray, t = samples(self.grid, rays, self.rules.ball, capacity and capacity.in_cells)
        return self.composited(rays, ray, t, capacity)

    def composited(self, rays: VoxelRays, ray: Tensor, t: Tensor, capacity: Capacity | None = None) -> Marched:
        """`march`, given ray and depth [N] of all samples in kept cells, by `samples`."""
        grid, rows, rules, n_rays, n_whole = self.grid, self.rows, self.rules, len(rays.near), None
        origins, directions = rays.origins, rays.directions
        with torch.no_grad():
            if capacity:  # unused capacity is on rays that nobody sees
                origins, directions = (torch.cat([part, part[:1].expand(SPARE, 3)]) for part in (origins, directions))
            corner, weights = grid.trilinear(rules.ball.contract(origins[ray] + t[:, None] * directions[ray]))
            optical = STEP * rules.optical_depth((rows[corner, 0] * weights).sum(-1))
            kept = _kept(ray, optical, len(origins), rules) & (ray < n_rays)
            place, found = _places(kept, capacity and capacity.kept)
            last, ray = ray[-1:], _or_spare(ray[place], found, n_rays)
            t, corner, weights = (part.index_select(0, place) for part in (t, corner, weights))
            if capacity:
                n_whole = torch.cat([last, ray[-1:]]).amin().clamp(max=n_rays)
                corner = torch.where(found[:, None], corner, torch.arange(len(t), device=t.device)[:, None] % len(rows))
        optical, features = channels(rows, corner, weights, rules)
        fade = F.pad(rays.fade, (0, len(origins) - n_rays))[ray]
        factor = torch.where(t < fade, (t / fade) ** 2, 1.0)
        optical, features = with_gradient(optical, factor), with_gradient(features, factor[:, None])
        units = directions / directions.norm(dim=-1)[:, None]
        shown = composite_packed(features, optical, t, ray, units, deltas=torch.full_like(t, STEP))
        if torch.is_grad_enabled():
            weights = torch.where(ray < n_rays, shown.weights.detach(), 0.0).to(self.heaviest)
            self.heaviest.scatter_reduce_(0, corner.flatten(),
                                          weights.repeat_interleave(8, output_size=corner.numel()), 'amax')
        distortion = _distortion(shown.weights, self._distance(rays, ray, t), ray, len(origins))
        count = ray.new_zeros(len(origins)).index_add_(0, ray, torch.ones_like(ray))[:n_rays]
        return Marched(shown.rgb[:n_rays], 1.0 - shown.acc[:n_rays], shown.depth[:n_rays], distortion[:n_rays],
                       count, count.sum() if capacity else len(ray), n_whole)

    def _distance(self, rays: VoxelRays, ray: Tensor, t: Tensor) -> Tensor:
        """Normalised distances [N] of samples at depths t [N]; see `Marched`."""
        ray = ray.clamp(max=len(rays.near) - 1)  # unused capacity has no meaning
        near = rays.near[ray]
        if self.rules.ball.contracted:
            return 1.0 - near / t
        return (t - near) * (rays.directions.norm(dim=-1) / max(self.grid.cells.shape))[ray]

    @torch.no_grad()
    def smooth(self, weights: Tensor, axis: Tensor) -> Tensor:
        rows, gradient, vertex = self.rows, self.rows.grad, self.grid.places
        touched = (gradient != 0).any(-1)
        along = torch.arange(3, device=rows.device) == axis
        last = constant(self.grid.cells.shape, rows.device)[:, None] - 1
        for step in (-1, 1):
            other = vertex + step * along[:, None]
            inside = ((other >= 0) & (other <= last)).all(0)
            row = self.grid.bricks.row_at(*other.clamp(min=0).minimum(last))
            has_other = touched & inside & (row >= 0)
            gradient += torch.where(has_other[:, None], weights * (rows - rows[row.clamp(min=0)]), 0.0)
        return gradient.sum()

    @torch.no_grad()
    def adam(self, state: dict[str, Tensor], rates: Tensor, betas: tuple[float, float], epsilon: float,
             skip: Tensor) -> None:
        gradient, step, strongest = self.rows.grad, state['step'].double(), state['strongest']
        means, squares = state['exp_avg'], state['exp_avg_sq']
        strongest.copy_(torch.maximum(strongest, self.heaviest))
        touched = (gradient != 0).any(-1, keepdim=True) & (skip == 0)
        means.copy_(torch.where(touched, torch.lerp(gradient, means, betas[0]), means))
        squares.copy_(torch.where(touched, torch.lerp(gradient ** 2, squares, betas[1]), squares))
        first, second = (1.0 - beta ** step for beta in betas)
        change = rates * means / first / ((squares / second).sqrt() + epsilon)
        self.rows.sub_(torch.where(touched, change, 0.0))
        self.clear_gradient()

    def clear_gradient(self) -> None:
        self.rows.grad = None
        self.heaviest.zero_()


def with_gradient(values: Tensor, factor: Tensor) -> Tensor:
    """The same values, whose gradient is multiplied by a factor of their shape."""
    return torch.lerp(values.detach(), values, factor)


def _distortion(weights: Tensor, distance: Tensor, ray: Tensor, n_rays: int) -> Tensor:
    """Distortion [R] of each ray's samples, by weights and ascending distances [N]; see `Marched`."""
    weights, distance = weights.double(), distance.double()  # sums over all rays stay precise
    first = _first_of(ray, n_rays)
    away = distance * _sums_before(weights, first) - _sums_before(weights * distance, first)
    terms = 2.0 * weights * away
    return terms.new_zeros(n_rays).index_add(0, ray, terms).float()


def _first_of(ray: Tensor, n_rays: int) -> Tensor:
    """Index [N] of the first sample on each sample's ray, from rays [N], ascending."""
    return torch.searchsorted(ray, torch.arange(n_rays, device=ray.device))[ray]


def _sums_before(values: Tensor, first: Tensor) -> Tensor:
    """Sums [N] of values [N] over the earlier samples of a ray, whose first sample is at an index [N]."""
    total = F.pad(values.cumsum(0), (1, 0))
    return total[:-1] - total[first]


def channels(rows: Tensor, corner: Tensor, weights: Tensor, rules: Rules) -> tuple[Tensor, Tensor]:
    """Optical depth of a voxel [N] and the 15 channels behind density [N, 15] at points, from rows [M, 16] and the
    corners and weights [N, 8] by `SparseGrid.trilinear`. The first three channels are colours in [0, 1]."""
    values = (rows[corner] * weights[..., None]).sum(1)
    return rules.optical_depth(values[:, 0]), torch.cat([torch.sigmoid(values[:, 1:4]), values[:, 4:]], -1)


def samples(grid: SparseGrid, rays: VoxelRays, ball: Ball = STRAIGHT,
            capacity: int | None = None) -> tuple[Tensor, Tensor]:
    """Ray [N] and depth [N] of each sample in a kept cell, in order along each ray. Samples are STEP voxels apart, in
    contracted space too. This waits for the device, unless N is given as a capacity: entries beyond the samples are on
    rays from R on then, at depths without meaning."""
    origins, directions, near, far, jitter, _ = rays
    shape, device = grid.cells.shape, near.device
    longest = math.tau * ball.radius if ball.contracted else math.hypot(*shape) + STEP  # no line is longer
    steps = jitter[:, None] + torch.arange(math.ceil(longest / STEP), device=device)
    if ball.contracted:
        t = even_depths(ball.from_centre(origins), directions / ball.radius, near, far, steps * (STEP / ball.radius))
        points = ball.contract(origins[:, None] + t[..., None] * directions[:, None])
        last = constant(shape, device) - 1
        kept = ((points >= 0) & (points <= last)).all(-1) & (t < far[:, None])
        at = points.long().clamp(min=0).minimum(last - 1).unbind(-1)
    else:
        start, end = crossed([size - 1 for size in shape], origins, directions, near, far)
        t = start[:, None] + steps * (STEP / directions.norm(dim=-1))[:, None]
        kept = t < end[:, None]
        at = ((origins[:, None, axis] + t * directions[:, None, axis]).long().clamp(0, size - 2)
              for axis, size in enumerate(shape))  # one axis after the other takes less memory
    kept &= grid.cells[tuple(at)]
    place, found = _places(kept.flatten(), capacity)
    return _or_spare(place // t.shape[1], found, len(t)), t.flatten()[place]


def _places(mask: Tensor, capacity: int | None) -> tuple[Tensor, Tensor]:
    """Places at which a mask [N] is set, and True for each. It waits for the device, unless a capacity is given as the
    number of places: places beyond the mask's have False then."""
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


def _kept(ray: Tensor, optical: Tensor, n_rays: int, rules: Rules) -> Tensor:
    """[N] bool: samples of enough weight, up to the one at which a ray ends, from rays [N] and optical depths [N].

    Others take no light, so each decision needs the decisions before it. All are made at once, again and again: each
    round is right for one sample more of a ray at least, and ROUNDS for nearly all."""
    first = _first_of(ray, n_rays)
    depth, alpha = optical.double().clamp(max=100.0), 1.0 - torch.exp(-optical)  # a sum over all rays stays precise
    kept = alpha >= rules.least
    for _ in range(ROUNDS):
        light = torch.exp(-_sums_before(torch.where(kept, depth, 0.0), first))
        few = _sums_before(kept.long(), first) < rules.most
        kept = (light * alpha >= rules.least) & (light >= rules.dark) & few
    return kept
