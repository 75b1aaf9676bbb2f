"""The paper's two passes over the occupied parts of rays alone, and the occupancy that follows networks in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nerf.fields.occupancy import Occupancy, Steps
from nerf.fields.grid.sparse_grid import dilated
from nerf.optimiser import is_real
from run_nerf_helpers import (
    BEYOND, Composite, Draws, Rays, RenderResult, Sampling, composite, fine_depths, ray_points, stratified_z,
)

CELLS = 64  # along the longest side of the box
SHARE = 2  # samples of a ray are divided by this: its occupied parts are short
MULTIPLE = 32  # rays at once: see ROWS in mlp.py
WARM_UP = 500  # steps in which all cells are occupied
EVERY, PARTS = 16, 8  # steps between updates, each of which asks one in so many cells
DECAY = 0.7  # of a cell's running maximum, each time that it is asked
THIN = 0.01  # optical depth of a cell; thinner ones are empty


class Paths(NamedTuple):
    """The occupied parts of R rays, each of which has some; `s` counts depth along these parts only. The last ray is
    repeated until R is a multiple of MULTIPLE."""

    steps: Steps
    rows: Tensor  # [R] which of the steps' rays they are
    n_rays: int  # without the repeated ones
    ends: Tensor  # [R, 1] s at the end
    beyond: Tensor  # [R, 1] length of a sample at the end: to infinity where the far bound is occupied, else 0

    @classmethod
    def of(cls, steps: Steps, rays: Rays) -> Paths:
        """Those of all rays that have some."""
        rows = (steps.count > 0).nonzero()[:, 0]
        n_rays = len(rows)
        rows = torch.cat([rows, rows[-1:].expand(-n_rays % MULTIPLE)])
        last, length = (steps.first + steps.count - 1)[rows], steps.length[rows]
        open_end = steps.t[last] + length > rays.far[rows, 0]
        return cls(steps, rows, n_rays, (steps.count[rows] * length)[:, None], (BEYOND * open_end)[:, None])

    def depths(self, s: Tensor) -> Tensor:
        """Depths [R, S] at s [R, S]."""
        length, count = self.steps.length[self.rows, None], self.steps.count[self.rows, None]
        step = (s / length).long().clamp(min=0).minimum(count - 1)
        return self.steps.t[self.steps.first[self.rows, None] + step] + s - (step + 0.5) * length

    def show(self, field: Callable, rays: Rays, s: Tensor, white_bkgd: bool, noise: Tensor | None) -> Composite:
        """What a field shows of the rays at ascending s [R, S]."""
        z, deltas = self.depths(s), torch.cat([s.diff(dim=-1), self.beyond], -1)
        rgb, density = field(ray_points(rays, z), rays.viewdirs, noise)
        return composite(rgb, density, z, rays.directions, white_bkgd, deltas)


def render_occupied(rays: Rays, paths: Paths, coarse: Callable, fine: Callable | None, sampling: Sampling,
                    draws: Draws) -> RenderResult:
    """`render_rays`, but samples are spread over the occupied parts of rays; `rays` and `draws` are those of paths."""
    n_coarse, n_fine = max(sampling.N_samples // SHARE, 3), -(-sampling.N_importance // SHARE)
    draws = Draws(*(part if part is None else part[:, :n] for part, n in zip(
        draws, (n_coarse, n_fine, n_coarse, n_coarse + n_fine))))
    s = stratified_z(torch.zeros_like(paths.ends), paths.ends, n_coarse, False, draws.jitter)
    first = paths.show(coarse, rays, s, sampling.white_bkgd, draws.noise)
    if fine is None:
        return RenderResult(first, None, None)
    s_fine = fine_depths(s, first.weights, n_fine, draws.u)
    s = torch.cat([s, s_fine], -1).sort(-1).values
    return RenderResult(paths.show(fine, rays, s, sampling.white_bkgd, draws.noise_fine), first, None)


class FollowedOccupancy:
    """Which cells of a box are occupied while networks train: those whose density was large enough not long ago.

    Args:
        box: [2, 3] corners.
        device: where the networks are.
    """

    def __init__(self, box: np.ndarray, device: torch.device):
        self.low, self.voxel = torch.from_numpy(box[0].astype(np.float64)), float((box[1] - box[0]).max()) / CELLS
        shape = [max(int(np.ceil(side / self.voxel - 1e-6)), 1) for side in box[1] - box[0]]
        self.depth = torch.zeros(shape, device=device)  # running maximum of each cell's optical depth
        self.begin = -1  # first step after which not all cells are occupied; -1: not decided yet
        self.occupied: Occupancy | None = None  # None: all is

    def begin_anew(self) -> None:
        """Forgets everything, as when a network starts afresh."""
        self.begin, self.occupied = -1, None

    @torch.no_grad()
    def after_step(self, step: int, density: Callable, seed: int) -> None:
        """Asks some cells for the density at a random point, at the steps when that is due."""
        if self.begin < 0:
            self.begin = step + WARM_UP - 1
        if step < self.begin or (step > self.begin and step % EVERY):
            return
        generator = torch.Generator().manual_seed(seed)
        if step == self.begin:
            self.depth.zero_()
            for part in range(PARTS):
                self._ask(part, density, generator)
        self._ask(step // EVERY % PARTS, density, generator)
        self._decide()

    def _ask(self, part: int, density: Callable, generator: torch.Generator) -> None:
        index = torch.arange(part, self.depth.numel(), PARTS)
        places = torch.stack(torch.unravel_index(index, self.depth.shape), -1)
        points = (places + torch.rand(places.shape, generator=generator)) * self.voxel + self.low
        found = self.voxel * torch.cat([density(some) for some in points.float().to(self.depth.device).split(2 ** 13)])
        running = self.depth.view(-1)[part::PARTS]
        running.copy_(torch.maximum(DECAY * running, found))

    def _decide(self) -> None:
        self.occupied = Occupancy(self.low, self.voxel, dilated(~(self.depth <= THIN)))

    def state_dict(self) -> dict:
        return {'depth': self.depth.cpu(), 'begin': self.begin, 'decided': self.occupied is not None}

    def load_state_dict(self, state: dict) -> None:
        """Takes what `state_dict` gave.

        Raises:
            ValueError, LookupError, TypeError: it is broken.
        """
        depth, begin = state['depth'], int(state['begin'])
        if not is_real(depth) or depth.shape != self.depth.shape or not -1 <= begin < 2 ** 31:
            raise ValueError('an occupancy that does not fit the scene')
        self.depth.copy_(depth)
        self.begin = begin
        if state['decided']:
            self._decide()
