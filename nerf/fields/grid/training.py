"""Training of a grid from coarse to fine: losses, number of rays, pruning, and smaller voxels stage by stage."""

import math

import torch
from torch import Tensor

from nerf.fields.grid.backend import CHANNELS, Capacity, row_tensor
from nerf.fields.grid.field import GridField
from nerf.fields.grid.row_adam import RowAdam
from nerf.fields.grid.sparse_grid import cells_around, dilated, vertices_of
from nerf.fields.interface import Changes, Losses, Numbers, Target, Training, exposed
from nerf.fields.paper.training import ONE_COLOUR
from nerf.runtime.errors import UserError
from run_nerf_helpers import Rays, img2mse

ROWS = 2 ** 16  # rows that are interpolated at once, as memory allows


class GridTraining(Training):
    """Training of a grid by its field's schedule, whose stages are spread over n_iters steps. Captured steps have
    tensors of constant sizes; None: on CUDA."""
    field: GridField

    def __init__(self, field: GridField, n_iters: int, captured: bool | None = None):
        super().__init__(field)
        self.n_iters, self.schedule = n_iters, field.schedule
        self.captured = field.device.type == 'cuda' if captured is None else captured
        self.chunk, self.n_rays = self.schedule.most_rays, self.schedule.first_rays
        self.lrate_decay = self.schedule.lrate_decay(n_iters)
        self.row_adam = RowAdam(field.backend, self.schedule, self._rise())
        self.last_notes = {}  # of the last step

    def _rise(self) -> float:
        """Steps in which the rate of densities rises: those of the first stage, if another one follows."""
        is_first = self.field.stage == 0 and len(self.field.voxels) > 1 and self.schedule.slow_start < 1.0
        return self.schedule.begins(1, self.n_iters) if is_first else 0.0

    def rays_per_step(self, n_rays: int) -> int:
        return min(self.schedule.captured_rays if self.captured else self.n_rays, n_rays)

    def pixels_per_ray(self) -> int:
        return self.schedule.pixels_per_ray(self.field.grid.voxel, self.field.pixel)

    def random_numbers(self, n_rays: int, generator: torch.Generator) -> Numbers:
        """Place of each ray's first sample in a step [R], and colour of its background [R, 3]."""
        where = {'generator': generator, 'device': generator.device}
        return torch.rand(n_rays, **where), torch.rand(n_rays, 3, **where)

    def losses(self, rays: Rays, numbers: Numbers, target: Target) -> Losses:
        """Mean squared error of the rays and, after the first stage, their distortion. Notes for `after_step` are sums:
        rays, their kept samples, squared errors of the rays and of the targets' mean colour.

        Pixels of known coverage are compared on random colours: fog of the background's colour then costs as much as
        other fog. In closed spaces all rays end on random colours: else darkness would become holes."""
        jitter, background = numbers
        wanted, own = target.rgb, torch.full_like(background, float(self.field.white_bkgd))
        if target.coverage is not None:
            covered = target.coverage[:, None]
            background = torch.where(covered < 0.0, own, background)
            wanted = wanted + (1.0 - covered) * (background - own)
        elif not self.field.space.closed:
            background = own
        capacity = Capacity(self.schedule.captured_in_cells, self.schedule.captured_kept) if self.captured else None
        marched = self.field.march(rays, jitter, capacity)
        rgb = exposed(self.field.coloured(marched, rays.viewdirs, background), marched.rest[:, None] * background,
                      target.gains)
        n_rays, distortion = marched.n_whole, marched.distortion
        if n_rays is None:
            n_rays, mse = torch.tensor(len(jitter), device=rgb.device), img2mse(rgb, wanted)
        else:
            whole = torch.arange(len(jitter), device=rgb.device) < n_rays
            mse = torch.where(whole[:, None], (rgb - wanted) ** 2, 0.0).sum() / (3 * n_rays)
            distortion = torch.where(whole, distortion, 0.0)
        terms = {'mse': mse}
        if self.schedule.distortion:
            terms['distortion'] = (self.schedule.distortion if self.field.stage else 0.0) * distortion.sum() / n_rays
        return Losses(terms, {
            'rays': n_rays, 'samples': torch.as_tensor(marched.n_samples, device=rgb.device),
            'error': mse.detach() * n_rays, 'error_of_mean': img2mse(wanted.mean(0), wanted) * n_rays})

    def parameter_groups(self) -> list[dict]:
        """The network; rows have an Adam of their own."""
        betas = self.schedule.beta_mean, self.schedule.beta_square
        return [{'params': list(self.field.network.parameters()), 'rate': 1.0, 'betas': betas}]

    def more_optimisers(self) -> list[torch.optim.Optimizer]:
        return [self.row_adam]

    @torch.no_grad()
    def after_step(self, step: int, notes: dict[str, Tensor]) -> Changes:
        """Prunes at intervals and between the stages, each of which has smaller voxels."""
        field, schedule, self.last_notes = self.field, self.schedule, notes
        if not self.captured:  # the kept samples of this step decide the rays of the next
            factor = schedule.samples / max(int(notes['samples']), 1)
            n_rays = self.n_rays * min(max(factor, 1.0 / schedule.rays_change), schedule.rays_change)
            self.n_rays = int(min(max(n_rays, schedule.fewest_rays), schedule.most_rays))
        has_next = field.stage + 1 < len(field.voxels) and step >= schedule.begins(field.stage + 1, self.n_iters)
        if step >= self.n_iters or (step % schedule.pruning_interval(self.n_iters) and not has_next):
            return Changes([])
        before, lines, dense = len(field.rows), self._fog_note(step), self._dense_cells()
        prunes = step > 2 * schedule.pruning_steps or bool(dense.any())  # after a few steps all can be thin still
        if prunes:
            need_cells(field, dense)  # before anything changes, so that the last step can be saved
        if prunes or has_next:
            self.row_adam.release()
            field.release()
        if prunes:
            prune(field, dense)
        if has_next:
            field.stage += 1
            refine(field, field.voxels[field.stage])
        if prunes or has_next:
            self.row_adam.take(field.backend, self._rise())  # Adam begins anew, which trains better
        done = field.describe().strip() if has_next else f'pruned {before:,} to {len(field.rows):,} vertices'
        return Changes([*lines, f'step {step}: {done}'], prunes or has_next)

    def _fog_note(self, step: int) -> list[str]:
        """Line for a grid of fog: one colour for all pixels is as near to the last step's targets as its rays are."""
        rays, error, of_mean = (float(self.last_notes[name]) for name in ('rays', 'error', 'error_of_mean'))
        error, of_mean = error / rays, of_mean / rays
        if error < of_mean or of_mean < ONE_COLOUR ** 2:  # targets of one colour say nothing about the grid
            return []
        return [f'step {step}: the grid shows no more than fog: its error is {error:.4f}, that of one colour for all '
                f'pixels {of_mean:.4f}; if this stays so, try a lower lrate or another seed, and check the cameras']

    def _dense_cells(self) -> Tensor:
        """[X, Y, Z] bool: cells with a dense corner, not hidden from all rays since Adam began anew. Matter behind
        surfaces or in no view would be seen from elsewhere. Before the last stage, their neighbours too (`margin`)."""
        grid, schedule = self.field.grid, self.schedule
        dense = grid.mask_of(self.field.backend.rules.optical_depth(self.field.rows.detach()[:, 0]) > schedule.thin)
        running = self.row_adam.running
        if schedule.hidden and running['step'] >= schedule.hidden_after * schedule.pruning * self.n_iters:
            visible = grid.mask_of(running['strongest'] > schedule.hidden)
            for _ in range(schedule.hidden_margin):
                visible = vertices_of(cells_around(visible))
            dense &= visible
        around = cells_around(dense)
        if self.field.stage + 1 < len(self.field.voxels):
            for _ in range(schedule.margin):
                around = dilated(around)
        return around

    def scalars(self) -> dict[str, float]:
        """Size of the grid, rays of the last step, and samples per ray."""
        grid = self.field.grid
        share = int(grid.cells.sum()) / math.prod(size - 1 for size in grid.cells.shape)  # of the cells; waits
        size = {'rows': len(self.field.rows), 'occupied_share': share, 'voxel': grid.voxel}
        if not self.last_notes:
            return size
        rays, samples = (float(self.last_notes[name]) for name in ('rays', 'samples'))
        return {**size, 'rays_per_step': rays, 'samples_per_ray': samples / rays}

    def state(self) -> dict:
        return {'grid': {**self.row_adam.packed_state(), 'n_rays': self.n_rays}}

    def load_state(self, state: dict) -> None:
        state = state['grid']
        if not self.schedule.fewest_rays <= state['n_rays'] <= self.schedule.most_rays:
            raise ValueError(f"{state['n_rays']} rays")
        self.row_adam.take(self.field.backend, self._rise())
        self.row_adam.load_packed_state(state)
        self.n_rays = int(state['n_rays'])


def need_cells(field: GridField, cells: Tensor) -> None:
    """Raises UserError if no cell of a field is in a mask [X, Y, Z]."""
    if not (cells & field.grid.cells).any():
        raise UserError('the grid is empty: nothing in the scene is dense enough to be seen; try another seed, and '
                        'check that the images are not empty and that the cameras look at one scene')


def prune(field: GridField, cells: Tensor) -> None:
    """Drops all cells outside a mask [X, Y, Z]. Rows stay with their vertices. UserError: no cell would be left."""
    need_cells(field, cells)
    grid, rows = field.grid.keeping(cells)
    field.take(grid, row_tensor(field.rows.detach()[rows], (grid.n_rows, CHANNELS), field.device))


def refine(field: GridField, voxel: float) -> None:
    """Replaces a field's voxels by smaller ones, as far as the schedule's most rows allow."""
    grid, schedule = field.grid, field.schedule
    rows_expected = schedule.rows_per_cell * int(grid.cells.sum())
    finer = grid.refined(max(voxel, grid.voxel * (rows_expected / schedule.most_rows) ** (1 / 3)))
    rows = row_tensor(None, (finer.n_rows, CHANNELS), field.device)
    for part, points in zip(rows.split(ROWS), grid.scaled(finer.vertex_points()).split(ROWS)):
        part.copy_(grid.interpolated(field.rows.detach(), points)[0])
    field.take(finer, rows)
