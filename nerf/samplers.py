"""Samplers of the paper's networks: both passes as the flags say, or where a survey says that there is density.

Sources: section 5.2 for hierarchical sampling. A grid marches instead (nerf/fields/grid).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nerf.fields.interface import Field, Sampler, pieces
from nerf.fields.occupancy import Steps
from nerf.fields.paper.mlp import MLPField, padded_rows
from nerf.fields.paper.survey import DensityGrid
from run_nerf_helpers import (
    BEYOND, NO_DRAWS, Composite, Draws, Rays, RenderResult, Sampling, coarse_depths, composite, fine_depths, ray_points,
    render_pass, render_rays,
)

STRETCHES = 3  # parts of a ray that are asked one after the other, front to back
HIDDEN = 9.2  # optical depth behind which samples are skipped: 1e-4 of the light gets there
RAYS = 8  # rays are padded to a multiple of this: see ROWS in mlp.py

TRUST = 0.5  # share of the surveyed densities that counts: where one is too high, what is behind it is sampled still
EVENLY = 0.3  # share of the samples that are spread evenly over a ray's steps
DARK = 1e-3  # light, by the survey, behind which nothing is sampled
MARCHED = 2 ** 14  # rays that march at once
MULTIPLE = 64  # rays that the field is asked for are padded to a multiple of this: see ROWS in mlp.py


class HierarchicalSampler(Sampler):
    """Stratified samples of a coarse field, then samples of a fine one where the first saw something.

    Args:
        field: what is shown.
        coarse, fine: of its two passes; fine None: one pass only.
        sampling: how a ray is sampled and composited.
        tile, supersample: as of `Sampler`.
    """

    def __init__(self, field: Field, coarse: MLPField, fine: MLPField | None, sampling: Sampling, tile: int,
                 supersample: int = 1):
        super().__init__(field, tile, supersample)
        self.coarse, self.fine, self.sampling = coarse, fine, sampling
        self.name, self.passes = ('stratified', ()) if fine is None else ('hierarchical', ('coarse',))

    def train(self, rays: Rays, draws: Draws = NO_DRAWS) -> RenderResult:
        """What R training rays show."""
        return render_rays(rays, self.coarse, self.fine, self.sampling, draws)

    def render(self, rays: Rays) -> RenderResult:
        """What R rays show; hidden samples of the fine pass are skipped."""
        if self.fine is None:
            return self.train(rays)
        sampling = self.sampling
        z = coarse_depths(rays, sampling)
        shown = render_pass(self.coarse, rays, z, sampling.white_bkgd)
        z_fine = fine_depths(z, shown.weights, sampling.N_importance, in_disparity=sampling.horizon > 0)
        z = torch.cat([z, z_fine], -1).sort(-1).values
        return RenderResult(front_to_back(self.fine, rays, z, sampling.white_bkgd), shown,
                            z_fine.std(-1, unbiased=False))


def front_to_back(field: MLPField, rays: Rays, z: Tensor, white_bkgd: bool) -> Composite:
    """`render_pass`, but samples that less than 1e-4 of the light gets through to are skipped."""
    n_rays, n_samples = z.shape
    rgb, density = torch.zeros(n_rays, n_samples, 3, device=z.device), torch.zeros_like(z)
    optical = torch.zeros(n_rays, device=z.device)  # in front of the samples to come
    spans = z.diff(append=z[:, -1:]) * rays.directions.norm(dim=-1, keepdim=True)
    step = -(-n_samples // STRETCHES)
    for samples in (slice(start, start + step) for start in range(0, n_samples, step)):
        lit = optical < HIDDEN
        rows = padded_rows(lit, RAYS)
        if len(rows) == 0:
            break
        some = rays.part(rows)
        colours, densities = field(ray_points(some, z[rows, samples]), some.viewdirs)
        rgb[rows, samples] = colours
        density[rows, samples] = torch.where(lit[rows, None], densities, 0.0)  # padding adds nothing
        optical += (density[:, samples] * spans[:, samples]).sum(-1)
    return composite(rgb, density, z, rays.directions, white_bkgd)


class GuidedSampler(Sampler):
    """Samples where a grid says that a field has density.

    Args:
        field: what is shown.
        network: gives colour and density.
        grid: of the network's density.
        sampling: how a ray is sampled otherwise.
        at_once: most rays that the network is asked for at once.
        supersample: as of `Sampler`.
    """

    name = 'guided'

    def __init__(self, field: Field, network: MLPField, grid: DensityGrid, sampling: Sampling, at_once: int,
                 supersample: int = 1):
        super().__init__(field, MARCHED, supersample)
        self.network, self.grid, self.at_once = network, grid, at_once
        self.n_samples = samples_of_view(sampling)

    def render(self, rays: Rays) -> RenderResult:
        background = torch.full_like(rays.origins, float(self.white_bkgd))
        nothing = torch.zeros(4, len(background), device=background.device)
        picture = Composite(background, nothing[0], nothing[1], nothing[2][:, None], nothing[3])
        hit, z, deltas = sample_depths(self.grid, rays, self.n_samples)
        multiple = min(MULTIPLE, self.at_once)
        for piece in pieces(len(hit), self.at_once - self.at_once % multiple):
            rows = hit[piece]
            places = torch.arange(piece.start, piece.stop + -len(rows) % multiple, device=hit.device)
            places = places.clamp(max=piece.stop - 1)
            shown = shown_by(self.network, rays.part(hit[places]), z[places], deltas[places], self.white_bkgd)
            for whole, part in zip(picture, (shown.rgb, shown.disp, shown.acc, shown.acc[:, None], shown.depth)):
                whole[rows] = part[:len(rows)]
        return RenderResult(picture, None, None)

    def density_array(self, points: np.ndarray, least: float = 0.0) -> np.ndarray:
        if least < self.grid.least:
            return super().density_array(points)
        kept = self.grid.may_hold(torch.from_numpy(points).to(self.device)).cpu().numpy()
        density = np.zeros(len(points), np.float32)
        if kept.any():
            density[kept] = super().density_array(points[kept])
        return density


def samples_of_view(sampling: Sampling) -> int:
    """Samples of a ray of a guided view: where they lie is better known than to a coarse pass, so they are fewer."""
    return 8 + 4 * -(-(sampling.N_samples + sampling.N_importance) // 32)


def shown_by(field: Callable, rays: Rays, z: Tensor, deltas: Tensor, white_bkgd: bool) -> Composite:
    """What R rays show that are sampled at depths z [R, S], each for a length of deltas [R, S] in depth."""
    rgb, density = field(ray_points(rays, z), rays.viewdirs)
    return composite(rgb, density, z, rays.directions, white_bkgd, deltas)


def sample_depths(grid: DensityGrid, rays: Rays, n_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays are sampled: as in section 5.2, but by the grid's densities, and in occupied cells alone.

    Returns:
        the H rays [H] int64 that pass through such cells, depths [H, S] of their samples and, in depth, the length
        [H, S] in such cells that each of them stands for.
    """
    steps = grid.steps(rays)
    spans = (steps.length * rays.directions.norm(dim=-1))[steps.ray]
    shares = likely(steps, TRUST * grid.density.flatten()[steps.cell].float() * spans)
    hit, z, deltas = divided(steps, shares, n_samples)
    far, last = rays.far[hit, 0], (steps.first + steps.count - 1)[hit]
    to_infinity = steps.t[last] + steps.length[hit] > far  # equation 3 lets the sample at the far bound stand for all
    z[:, -1] = torch.where(to_infinity, far, z[:, -1])  # that is behind it
    deltas[:, -1] = torch.where(to_infinity, BEYOND, deltas[:, -1])
    return hit, z, deltas


def likely(steps: Steps, optical: Tensor) -> Tensor:
    """What share of what a ray shows is in each step: [N] float64, with a sum of 1 for each ray.

    Args:
        optical: [N] optical depths.
    """
    ray, light = steps.ray, torch.exp(-steps.sum_before(optical.clamp(max=100.0).double()))
    weights = light * (1.0 - torch.exp(-optical))
    weights = 0.5 * weights + 0.25 * (steps.shifted(weights, 1) + steps.shifted(weights, -1))
    lit = (light > DARK).double()
    seen = steps.total(weights)[ray]
    evenly = lit / steps.total(lit)[ray]
    return torch.where(seen > 1e-9, (1.0 - EVENLY) * weights / seen.clamp(min=1e-9) + EVENLY * evenly, evenly)


def divided(steps: Steps, shares: Tensor, n_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cuts what each ray has of steps into n_samples parts with the same sum of shares [N], and puts a sample into the
    middle of each part. Gaps between steps do not count as length; `sample_depths` has what is returned."""
    hit = (steps.count > 0).nonzero()[:, 0]
    n_hit, (count, first) = len(hit), (part[hit, None] for part in (steps.count, steps.first))
    before = steps.sum_before(shares)  # [N] the ray's CDF where a step begins
    number = (steps.count > 0).cumsum(0) - 1  # of a ray among those hit
    u = torch.linspace(0.0, 1.0, n_samples + 1, dtype=torch.float64, device=hit.device)[1:-1].expand(n_hit, -1)
    # One search serves all rays: ray h has the values from h to h + 1.
    where = torch.searchsorted(number[steps.ray] + before, torch.arange(n_hit, device=hit.device)[:, None] + u,
                               right=True) - 1
    where = where.maximum(first).minimum(first + count - 1)
    inside = ((u - before[where]) / shares[where].clamp(min=1e-12)).clamp(0.0, 1.0)
    edges = (where - first) + inside  # in steps from the ray's first
    edges = torch.cat([torch.zeros_like(edges[:, :1]), edges, count.to(edges)], -1)
    middles = 0.5 * (edges[:, 1:] + edges[:, :-1])
    step = middles.long().minimum(count - 1)
    length = steps.length[hit, None]
    z = steps.t[first + step] + (middles - step - 0.5).float() * length
    return hit, z, edges.diff(dim=-1).float() * length
