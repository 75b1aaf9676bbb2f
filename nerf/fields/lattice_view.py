"""A view of coarse and fine field in which rays that show nothing are skipped."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from nerf.fields.mlp import MLPField, padded_rows
from nerf.fields.model import Picture, pieces
from run_nerf_helpers import (
    Composite, Rays, Sampling, coarse_depths, composite, fine_depths, ray_points, render_pass,
)

MARGIN = 2  # pixels around what was seen in which more of it is looked for
STRETCHES = 3  # parts of a ray that are asked one after the other, front to back
HIDDEN = 9.2  # optical depth behind which samples are skipped: 1e-4 of the light gets there
RAYS = 8  # rays are padded to a multiple of this: see ROWS in mlp.py


class LatticeView:
    """Draws a view of N = height * width rays, background at first.

    The fields are asked for density at the coarse depths of one ray in five, and what is found is followed until MARGIN
    pixels around it are empty. Only what is thinner than the coarse depths are apart, or has no five pixels in a line
    and lies between the asked rays away from all else, can be lost.

    Args:
        coarse, fine: the fields.
        sampling: how a ray is sampled and composited.
        chunk: most rays at once.
        rays: row by row.
    """

    def __init__(self, coarse: MLPField, fine: MLPField, sampling: Sampling, chunk: int, rays: Rays, height: int,
                 width: int):
        self.coarse, self.fine, self.sampling, self.chunk = coarse, fine, sampling, chunk
        self.rays, self.height, self.width = rays, height, width
        n_rays, device = height * width, rays.near.device
        self.seen = torch.zeros(n_rays, dtype=torch.bool, device=device)  # rays on which something was found
        self.weights = torch.zeros(n_rays, sampling.N_samples, device=device)  # of the coarse pass
        z = coarse_depths(rays.part(slice(0, 1)), sampling)
        unguided = fine_depths(z, torch.zeros_like(z), sampling.N_importance)
        self.picture = Picture.background(n_rays, sampling.white_bkgd, device, ('coarse',))._replace(
            spread=unguided.std(-1, unbiased=False).repeat(n_rays))

    @torch.inference_mode()
    def draw(self) -> Iterator[Picture]:
        """Yields the picture after each tile of rays, the last time when it is whole."""
        asked = lattice(self.height, self.width).to(self.seen.device)
        for _ in self._draw_coarse(asked):
            yield self.picture
        self._look_closer(asked & ~self.seen)
        while (rest := around(self.seen, self.height, self.width) & ~self.picture.final).any():
            for _ in self._draw_coarse(rest & ~asked):
                yield self.picture
            for _ in self._draw_fine(rest):
                yield self.picture
        self.picture.final.fill_(True)
        yield self.picture

    def _draw_coarse(self, mask: Tensor) -> Iterator[None]:
        """The coarse pass of the rays of a mask [N]. All three methods mark rays on which they find something."""
        for rows, rays, z in self._tiles(mask):
            shown = render_pass(self.coarse, rays, z, self.sampling.white_bkgd)
            self.weights[rows] = shown.weights
            self.picture.passes['coarse'].put(rows, shown)
            self._mark(rows, shown)
            yield

    def _look_closer(self, mask: Tensor) -> None:
        """Asks the fine field at the coarse depths, and draws nothing."""
        for rows, rays, z in self._tiles(mask):
            self._mark(rows, render_pass(self.fine, rays, z, False))

    def _draw_fine(self, mask: Tensor) -> Iterator[None]:
        """The fine pass, guided by the coarse pass."""
        sampling = self.sampling
        for rows, rays, z in self._tiles(mask):
            z_fine = fine_depths(z, self.weights[rows], sampling.N_importance)
            z = torch.cat([z, z_fine], -1).sort(-1).values
            shown = front_to_back(self.fine, rays, z, sampling.white_bkgd)
            self.picture.put(rows, shown)
            self.picture.spread[rows] = z_fine.std(-1, unbiased=False)
            self.picture.final[rows] |= mask[rows]  # padding may lack its coarse pass
            self._mark(rows, shown)
            yield

    def _tiles(self, mask: Tensor) -> Iterator[tuple[Tensor, Rays, Tensor]]:
        """(indices, rays, coarse depths) of a mask's rays, tile by tile."""
        rows = padded_rows(mask, RAYS)
        for tile in pieces(len(rows), self.chunk):
            rays = self.rays.part(rows[tile])
            yield rows[tile], rays, coarse_depths(rays, self.sampling)

    def _mark(self, rows: Tensor, shown: Composite) -> None:
        self.seen[rows] |= shown.acc != 0  # NaN is to be seen too


def lattice(height: int, width: int) -> Tensor:
    """[H * W]: one pixel in five, a knight's move apart: one in any five of a row, a column or a diagonal."""
    return ((torch.arange(height)[:, None] + 2 * torch.arange(width)) % 5 == 0).flatten()


def around(pixels: Tensor, height: int, width: int) -> Tensor:
    """Those of a mask [H * W] and their neighbours up to MARGIN away."""
    return F.max_pool2d(pixels.float().reshape(1, height, width), 2 * MARGIN + 1, 1, MARGIN).flatten() > 0


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
