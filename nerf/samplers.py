"""Samplers of the paper's networks: both passes as the flags say, or few samples where a survey found density.

Source: section 5.2 for hierarchical sampling. The grid has a sampler of its own (nerf/fields/grid).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nerf.fields.interface import Field, Sampler, pieces
from nerf.fields.occupancy import Steps
from nerf.fields.paper.mlp import MLPField, padded_rows
from nerf.fields.paper.survey import DensityGrid
from run_nerf_helpers import (
    BEYOND, NO_DRAWS, Composite, Draws, Rays, RenderResult, Sampling, raw2density, render_pass, render_rays,
)

# Of both samplers, numbers that decide pictures. They were tuned on test views of the toy chair, lego and fern.
HIDDEN = 9.2  # optical depth behind which samples are skipped: 1e-4 of the light gets there
TRUST = 0.5  # factor on surveyed densities: behind a density that is too high in the survey, samples remain
EVENLY = 0.3  # share of the guided samples that are spread evenly over a ray's steps
DARK = 1e-3  # light, by the survey, behind which there are no samples

# Numbers that decide speed alone
STRETCHES = 3  # parts of a ray that the field is asked for one after the other, front to back
RAYS = 8  # lit rays are padded to a multiple of this number: see ROWS in mlp.py
MARCHED = 2 ** 14  # rays that march at once
MULTIPLE = 64  # rays for the network are padded to a multiple of this number: see ROWS in mlp.py


class HierarchicalSampler(Sampler):
    """Stratified samples of a coarse field, then samples of a fine field where the coarse one saw something.

    Args:
        field: what is shown.
        coarse, fine: the fields of the two passes; fine None: there is one pass.
        sampling: how rays are sampled and composited.
        tile, supersample: as for `Sampler`.
        skip_hidden: pictures skip hidden samples of the fine pass.
    """

    def __init__(self, field: Field, coarse: MLPField, fine: MLPField | None, sampling: Sampling, tile: int,
                 supersample: int = 1, skip_hidden: bool = True):
        super().__init__(field, tile, supersample)
        self.coarse, self.fine, self.sampling, self.skip_hidden = coarse, fine, sampling, skip_hidden
        self.name, self.passes = ('stratified', ()) if fine is None else ('hierarchical', ('coarse',))

    def render(self, rays: Rays, draws: Draws = NO_DRAWS, generator: torch.Generator | None = None) -> RenderResult:
        """What R rays show.

        Where gradients are recorded, as in training, no sample is skipped.

        Args:
            rays: R rays.
            draws: the random numbers of a training step.
            generator: as for `render_rays`.
        """
        fine = None if self.fine is None else self.fine.raw
        if fine and self.skip_hidden and not torch.is_grad_enabled():
            fine = front_to_back(fine)
        return render_rays(rays, self.coarse.raw, fine, self.sampling, draws, generator)


def front_to_back(field: Callable) -> Callable:
    """A field, as a function, without its hidden samples: they have no density, and `field` is not asked for them.

    Samples are hidden behind an optical depth of HIDDEN, so a ray's colour changes by at most 1e-4. With noise, which
    training alone has, all samples are asked for.

    Args:
        field: as for `render_rays`.
    """
    def raw(points: Tensor, viewdirs: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is not None:
            return field(points, viewdirs, noise)
        n_rays, n_samples = points.shape[:2]
        raw, optical = points.new_zeros(n_rays, n_samples, 4), points.new_zeros(n_rays)
        spans = F.pad(points.diff(dim=1).norm(dim=-1), (0, 1))
        for samples in pieces(n_samples, math.ceil(n_samples / STRETCHES)):
            lit = optical < HIDDEN
            rows = padded_rows(lit, RAYS)
            if len(rows) == 0:
                break
            asked = field(points[rows, samples], viewdirs[rows], None)
            raw[rows, samples] = asked[..., :4]
            raw[rows, samples, 3] = torch.where(lit[rows, None], asked[..., 3], 0.0)  # padding adds nothing
            optical += (raw2density(raw[:, samples, 3]) * spans[:, samples]).sum(-1)
        return raw
    return raw


class GuidedSampler(Sampler):
    """Few samples, where a survey says that a field has density.

    Args:
        field: what is shown.
        network: gives raw colour and raw density.
        grid: the survey of its density.
        sampling: how rays are composited, and sampled without a survey.
        at_once: most rays through the network at once.
        supersample: as for `Sampler`.
    """

    name = 'guided'

    def __init__(self, field: Field, network: MLPField, grid: DensityGrid, sampling: Sampling, at_once: int,
                 supersample: int = 1):
        super().__init__(field, MARCHED, supersample)
        self.network, self.grid, self.sampling, self.at_once = network, grid, sampling, at_once
        self.n_samples = samples_of_view(sampling)

    def render(self, rays: Rays) -> RenderResult:
        background = torch.full_like(rays.origins, float(self.white_bkgd))
        picture = Composite(background, *background.new_zeros(4, len(background)))
        hit, z, deltas = sample_depths(self.grid, rays, self.n_samples)
        multiple = min(MULTIPLE, self.at_once)
        for piece in pieces(len(hit), self.at_once - self.at_once % multiple):
            rows = hit[piece]
            places = torch.arange(piece.start, piece.stop + -len(rows) % multiple, device=hit.device)
            places = places.clamp(max=piece.stop - 1)  # the last ray pads the piece
            shown = render_pass(self.network.raw, rays.part(hit[places]), z[places], self.sampling,
                                deltas=deltas[places])
            for whole, part in zip(picture, shown._replace(weights=shown.acc)):
                whole[rows] = part[:len(rows)]
        return RenderResult(picture._replace(weights=picture.acc[:, None]), None, None)

    def density_array(self, points: np.ndarray, least: float = 0.0) -> np.ndarray:
        if least < self.grid.least:
            return super().density_array(points)
        kept = self.grid.may_hold(torch.from_numpy(points).to(self.device)).cpu().numpy()
        density = np.zeros(len(points), np.float32)
        if kept.any():
            density[kept] = super().density_array(points[kept])
        return density


def samples_of_view(sampling: Sampling) -> int:
    """Samples of a guided ray: fewer than those of both passes, as a survey knows better where density is."""
    return 8 + 4 * math.ceil((sampling.N_samples + sampling.N_importance) / 32)


def sample_depths(grid: DensityGrid, rays: Rays, n_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Samples of rays: as in section 5.2, but by the grid's densities, and in occupied cells alone.

    Returns:
        the H rays [H] int64 that pass through occupied cells, depths [H, S] of their samples, and the samples' lengths
        [H, S] in depth, in which gaps between occupied cells do not count.
    """
    steps = grid.steps(rays)
    spans = (steps.length * rays.directions.norm(dim=-1))[steps.ray]
    shares = likely(steps, TRUST * grid.density.flatten()[steps.cell].float() * spans)
    hit, z, deltas = divided(steps, shares, n_samples)
    far, last = rays.far[hit, 0], (steps.first + steps.count - 1)[hit]
    # By equation 3 the sample at the far bound stands for everything behind it.
    to_infinity = steps.t[last] + steps.length[hit] > far
    z[:, -1] = torch.where(to_infinity, far, z[:, -1])
    deltas[:, -1] = torch.where(to_infinity, BEYOND, deltas[:, -1])
    return hit, z, deltas


def likely(steps: Steps, optical: Tensor) -> Tensor:
    """Shares of the steps in what their rays show: [N] float64, with a sum of 1 for each ray.

    Weights are blurred over neighbouring steps, as surveyed densities are coarse.

    Args:
        steps: N steps in occupied cells.
        optical: [N] optical depth of each step.
    """
    ray, light = steps.ray, torch.exp(-steps.sum_before(optical.clamp(max=100.0).double()))
    weights = light * (1.0 - torch.exp(-optical))
    weights = 0.5 * weights + 0.25 * (steps.shifted(weights, 1) + steps.shifted(weights, -1))
    lit = (light > DARK).double()
    seen = steps.total(weights)[ray]
    evenly = lit / steps.total(lit)[ray]
    return torch.where(seen > 1e-9, (1.0 - EVENLY) * weights / seen.clamp(min=1e-9) + EVENLY * evenly, evenly)


def divided(steps: Steps, shares: Tensor, n_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Samples in the middles of n_samples parts of each ray's steps; all parts of a ray have the same sum of shares.

    Args:
        steps: N steps in occupied cells.
        shares: [N] with a sum of 1 for each ray.

    Returns:
        as for `sample_depths`.
    """
    hit = (steps.count > 0).nonzero()[:, 0]
    n_hit, (count, first) = len(hit), (part[hit, None] for part in (steps.count, steps.first))
    before = steps.sum_before(shares)  # [N] the ray's CDF at the start of a step
    number = (steps.count > 0).cumsum(0) - 1  # a ray's place among the hit rays
    u = torch.linspace(0.0, 1.0, n_samples + 1, dtype=torch.float64, device=hit.device)[1:-1].expand(n_hit, -1)
    # One search finds the places of all rays: the CDF of hit ray h goes from h to h + 1.
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
