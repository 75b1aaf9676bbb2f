"""Rays of a view through a field, sampled where a grid of its density says that there is something to see."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from nerf.fields.interface import Picture, pieces
from nerf.fields.occupancy import Steps
from nerf.fields.paper.survey import DensityGrid
from run_nerf_helpers import BEYOND, Composite, Rays, composite, ray_points

TRUST = 0.5  # the grid's densities count as this share: where one is too high, what is behind it is sampled still
EVENLY = 0.3  # share of the samples that are spread evenly over a ray's steps
DARK = 1e-3  # light, by the grid, behind which nothing is sampled
RAYS = 2 ** 14  # that march at once
MULTIPLE = 64  # rays that the field is asked for are padded to a multiple of this: see ROWS in mlp.py


def draw(field: Callable, grid: DensityGrid, rays: Rays, n_samples: int, at_once: int,
         white_bkgd: bool) -> Iterator[Picture]:
    """Draws rays on the background and yields the picture after each tile.

    Args:
        field: (points [R, S, 3], viewdirs [R, 3]) to colours and densities.
        grid: of its density.
        rays: N rays.
        n_samples: samples of each ray that passes through an occupied cell.
        at_once: most rays that the field is asked for at once.
        white_bkgd: rays end on white.
    """
    picture = Picture.background(len(rays.near), white_bkgd, rays.near.device)
    multiple = min(MULTIPLE, at_once)
    for tile in pieces(len(rays.near), RAYS):
        marched = rays.part(tile)
        hit, z, deltas = sample_depths(grid, marched, n_samples)
        for piece in pieces(len(hit), at_once - at_once % multiple):
            rows = hit[piece]
            places = torch.arange(piece.start, piece.stop + -len(rows) % multiple, device=hit.device)
            places = places.clamp(max=piece.stop - 1)
            shown = shown_by(field, marched.part(hit[places]), z[places], deltas[places], white_bkgd)
            picture.put(rows + tile.start, Composite(*(part[:len(rows)] for part in shown)))
        picture.final[tile] = True
        yield picture


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
