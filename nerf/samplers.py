"""Samplers of the paper's networks: both passes of section 5.2, or few samples in cells with surveyed density."""

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
from run_nerf_helpers import (BEYOND, NO_DRAWS, Composite, Draws, Rays, RenderResult, Sampling, raw2density,
                              render_pass, render_rays)

# Numbers that decide pictures, tuned on test views of the toy chair, lego and fern
HIDDEN = 9.2  # optical depth behind which samples are skipped: transmittance is 1e-4 there
TRUST = 0.5  # factor on surveyed densities: samples remain behind a surveyed density that is too high
EVENLY = 0.3  # share of the guided samples that are spread evenly over a ray's steps
DARK = 1e-3  # transmittance, by the survey, below which a ray gets no samples

# Numbers that decide speed alone
STRETCHES = 3  # parts of a ray that go through the field one after the other, front to back
RAYS = 8  # lit rays are padded to a multiple of this number: see ROWS in mlp.py
MARCHED = 2 ** 14  # rays that march at once
MULTIPLE = 64  # rays for the network are padded to a multiple of this number: see ROWS in mlp.py


class HierarchicalSampler(Sampler):
    """Sampler with stratified samples of a coarse network, then samples of a fine network by the coarse weights; fine
    None: one pass. With skip_hidden, pictures skip hidden samples of the fine pass."""

    def __init__(self, field: Field, coarse: MLPField, fine: MLPField | None, sampling: Sampling, tile: int,
                 supersample: int = 1, skip_hidden: bool = True):
        super().__init__(field, tile, supersample)
        self.coarse, self.fine, self.sampling, self.skip_hidden = coarse, fine, sampling, skip_hidden
        self.name, self.passes = ('stratified', ()) if fine is None else ('hierarchical', ('coarse',))

    def render(self, rays: Rays, draws: Draws = NO_DRAWS, generator: torch.Generator | None = None) -> RenderResult:
        """Composites of R rays; draws and generator as for `render_rays`. If gradients are recorded, as in training, no
        sample is skipped."""
        fine = None if self.fine is None else self.fine.raw
        if fine and self.skip_hidden and not torch.is_grad_enabled():
            fine = front_to_back(fine)
        return render_rays(rays, self.coarse.raw, fine, self.sampling, draws, generator)


def front_to_back(field: Callable) -> Callable:
    """Field, as a function (see `render_rays`), without density at samples behind an optical depth of HIDDEN. Colours
    of rays change by at most 1e-4. With noise, as in training, the field gets all samples."""
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
    """Sampler with few samples, in cells with density by `grid`, a survey of the network's density. At most `at_once`
    rays go through the network at once."""
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
    """Samples of a guided ray: fewer than those of both passes, because a survey is finer than a coarse pass."""
    return 8 + 4 * math.ceil((sampling.N_samples + sampling.N_importance) / 32)


def sample_depths(grid: DensityGrid, rays: Rays, n_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Samples of rays as in section 5.2, but by the grid's densities, and in occupied cells alone: indices [H] int64 of
    the rays through occupied cells, depths [H, S] of their samples, and lengths [H, S] of the samples in depth, without
    the gaps between occupied cells."""
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
    """Shares [N] float64 of N steps in the samples of their ray, with a sum of 1 for each ray, by the steps' optical
    depths [N]. Weights are blurred over neighbouring steps, because surveyed densities are coarse."""
    ray, light = steps.ray, torch.exp(-steps.sum_before(optical.clamp(max=100.0).double()))
    weights = light * (1.0 - torch.exp(-optical))
    weights = 0.5 * weights + 0.25 * (steps.shifted(weights, 1) + steps.shifted(weights, -1))
    lit = (light > DARK).double()
    seen = steps.total(weights)[ray]
    evenly = lit / steps.total(lit)[ray]
    return torch.where(seen > 1e-9, (1.0 - EVENLY) * weights / seen.clamp(min=1e-9) + EVENLY * evenly, evenly)


def divided(steps: Steps, shares: Tensor, n_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Samples, as `sample_depths` returns them, in the middles of n_samples parts of each ray's N steps. All parts of a
    ray have the same sum of shares [N]."""
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
