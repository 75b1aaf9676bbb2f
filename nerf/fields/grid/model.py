"""A sparse voxel grid that is trained coarse to fine, with a small network for what depends on the view direction."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from nerf.fields.grid import torch_backend as grid_torch
from nerf.fields.paper.dead_networks import ONE_COLOUR
from nerf.fields.grid.torch_backend import (
    CHANNELS, FIRST_RATE, MOST, SECOND_RATE, STRAIGHT, Ball, Marched, Room, channels, optical_depth,
)
from nerf.fields.interface import Changes, Field, Losses, Numbers, Sampler, Target, Training, exposed, pieces
from nerf.fields.grid.sparse_grid import MOST_VERTICES, SparseGrid, cells_around, dilated, interpolated, trilinear
from nerf.files.packing import packed, unpacked
from nerf.optimiser import is_real
from nerf.runtime.devices import constant
from nerf.runtime.errors import UserError
from nerf.space import Space, Unbounded
from run_nerf_helpers import Composite, Rays, RenderResult, Sampling, coarse_depths, disparity, img2mse, ray_points

STAGES = {  # share of the run at which a stage begins: cells along the longest side of the scene's box
    0.0: 89, 0.08: 178, 0.25: 320}
NDC_STAGES = {0.0: 120, 0.15: 240, 0.4: 480}  # in normalised device coordinates
LONG_RUN = 4000  # steps from which a run has one stage more
LONG_STAGES = {0.0: 89, 0.06: 178, 0.20: 320, 0.45: 471}
PRUNINGS = 0.12  # share of the run between prunings
FEWEST_PRUNE = 8  # steps between prunings, and before the second stage, at least
HIDDEN = 0.2  # weight; rows around which all samples have less are pruned
THIN = 0.05  # optical depth of a voxel; cells whose corners are all thinner are pruned
SAMPLES = 65000  # kept samples that a step aims at, by its number of rays
RAYS = 256, 9000  # fewest and most rays of a step
ROOM = Room(2 ** 19, 2 ** 16)  # samples of a captured step
CAPTURED_RAYS = {False: 9000, True: 4096}  # its rays, by whether they all end on something; those with room are used
LEAST = 1e-4, 1e-3  # weight below which a sample is skipped, in the first stage and after it
RATES = [20.0] + 3 * [20.0] + 12 * [10.0]  # of a row's channels, as multiples of the network's rate
SMOOTHNESS = {False: (1e-9, 4.5e-9), True: (6e-8, 6e-8)}  # weights in the loss of half the squared differences of
# neighbours' densities and of their other channels, by whether rays all end on something. A step looks along one axis:
# x, y and z take turns
SLOW_START = 0.02  # share of density's rate at first; it rises through the first stage, so that colours come first.
# Not where rays end on the pictures' own background: fog of its colour would cost nothing, and stay
SEEN_BY = 2  # views that see a cell of the unit ball, at least, where a scene has no bounds
MOST_ROWS = 4_000_000
SMALLEST = 1e-5  # voxel in a checkpoint, as a share of the box's longest side: steps through smaller ones round to 0
NOTHING = np.float32(-1e9)  # raw density where there is no row
WIDTH = 64  # of the network behind the grid
HALF = torch.finfo(torch.float16).max


class GridModel(Field):
    """Density and colour in a sparse grid.

    A ray's samples are composited channel by channel: the first three are a colour that does not depend on the view
    direction, to which a network adds once per ray what the composited channels and the direction tell it.

    Args:
        box: [2, 3] corners of the scene, in the coordinates of rays; contracted, where there is a contraction.
        n_iters: steps of the run, over which the stages are spread.
        white_bkgd: rays end on white.
        seed: of the network's initial weights.
        device: where it trains.
        dtype: precision of the network's products.
        view_chunk: most rays of a view at once.
        compiled: by Numba's kernels, on a CPU; else in plain PyTorch.
        space: of the scene. Where all rays end on something, a step shows them on random colours: else darkness would
            become holes.
        finest: the smallest voxel, in units of the box.
    """

    has_slim_weights, supersample = True, 1

    def __init__(self, box: np.ndarray, n_iters: int, white_bkgd: bool, seed: int, device: torch.device,
                 dtype: torch.dtype, view_chunk: int, compiled: bool,
                 space: Space, finest: float = 0.0):
        super().__init__()
        self.axes = 1.0 / torch.tensor(space.voxel_shape, device=device)
        box = box * self.axes.double().cpu().numpy()
        self.longest, self.n_iters = float((box[1] - box[0]).max()), n_iters
        self.white_bkgd, self.dtype, self.space = white_bkgd, dtype, space
        self.opaque = space.closed
        self.captured = device.type == 'cuda'
        self.chunk, self.compiled, self.stage = RAYS[1], compiled, 0
        self.view_chunk = view_chunk if self.captured and not isinstance(space, Unbounded) else min(view_chunk, RAYS[1])
        stages = NDC_STAGES if space.name == 'ndc' else STAGES if n_iters < LONG_RUN else LONG_STAGES
        self.stages = [(share, cells) for share, cells in stages.items()
                       if not share or self.longest / cells >= finest]
        self.network = _view_network(torch.Generator().manual_seed(seed)).to(device)
        self.rates = torch.tensor(RATES, device=device)
        self.smoothness = torch.tensor(SMOOTHNESS[self.opaque], device=device)[[0] + (CHANNELS - 1) * [1]]
        self.n_rays_of_step, self.kernels = 1024, None
        self.last_step = {}  # rays, and samples that a ray kept, of the last step
        self.slow_start = False  # SLOW_START holds: the last step's rays ended on random colours
        self.last_errors = None  # mean squared error of the last step, and what the mean colour's would have been
        self._take(SparseGrid.filled(box, self.longest / self.stages[0][1], device))

    def _take(self, grid: SparseGrid, rows: Tensor | None = None, means: Tensor | None = None,
              squares: Tensor | None = None, strongest: Tensor | None = None, adam_steps: int = 0) -> None:
        """Goes on with a grid and the rows of its vertices; without running means Adam begins anew."""
        self.grid, self.adam_steps = grid, torch.tensor(adam_steps, device=grid.cells.device)
        rows, self.means, self.squares = (_large(part, (grid.n_rows, CHANNELS), grid.cells.device)
                                          for part in (rows, means, squares))
        self.strongest = _large(strongest, (grid.n_rows,), grid.cells.device)  # weight around a row since Adam began
        self.rows = nn.Parameter(rows)
        self.ball = STRAIGHT
        if isinstance(self.space, Unbounded):
            self.ball = Ball(True, *(-grid.low / grid.voxel).tolist(), 1.0 / grid.voxel)  # the space's, in the grid
        self.kernels = _Kernels(self, self.kernels) if self.compiled else None

    def rows_changed(self) -> None:
        """To be called by whoever writes into `rows`."""
        if self.kernels:
            self.kernels.take_densities()

    def __getstate__(self) -> dict:
        return vars(self) | {'kernels': None}

    def __setstate__(self, state: dict) -> None:
        """A copy's kernels work on its own rows."""
        super().__setstate__(state)
        self.kernels = _Kernels(self, None) if self.compiled else None

    def keep(self, cells: Tensor) -> None:
        """Drops all cells but those of a mask [X, Y, Z]. Rows stay; Adam begins anew, which trains better.

        Raises:
            UserError: none would be left.
        """
        if not (cells & self.grid.cells).any():
            raise UserError('the grid is empty: nothing in the scene is dense enough to be seen; try another seed, and '
                            'check that the images are not empty and that the cameras look at one scene')
        grid, rows = self.grid.keeping(cells)
        self._take(grid, self.rows.detach()[rows])

    @torch.no_grad()
    def keep_seen(self, views: Iterable[Rays]) -> None:
        """Drops the cells that no view sees from its near bound on, and those in the unit ball that fewer than SEEN_BY
        views do: what they show could be any fog in front of a camera.

        Args:
            views: rays spread over each view, at most two cells apart.
        """
        count = torch.zeros(self.grid.cells.shape, dtype=torch.int16, device=self.device)
        in_ball = torch.zeros_like(self.grid.cells)
        in_ball[self.grid.cells] = self.grid.centres().norm(dim=-1) < 1.0
        for rays in views:
            origins, directions, *bounds = self._straight(rays)
            ray, t = grid_torch.samples(self.grid, origins, directions, *bounds, torch.full_like(bounds[0], 0.5),
                                        self.ball, self.captured)
            seen, points = torch.zeros_like(in_ball), origins[ray] + t[:, None] * directions[ray]
            seen.view(-1)[self.grid.cell_of(self.ball.contract(points))] = True
            count += dilated(seen)
        self.keep((count >= min(SEEN_BY, int(count.max()))) | ((count > 0) & ~in_ball))

    # A training step

    def rays_per_step(self, n_rays: int) -> int:
        return min(CAPTURED_RAYS[self.opaque] if self.captured else self.n_rays_of_step, n_rays)

    def random_numbers(self, n_rays: int, generator: torch.Generator) -> Numbers:
        """Where in a step each ray's first sample lies [R], and a background's colour [R, 3]."""
        where = {'generator': generator, 'device': generator.device}
        return torch.rand(n_rays, **where), torch.rand(n_rays, 3, **where)

    def losses(self, rays: Rays, numbers: Numbers, target: Target) -> Losses:
        """The mean squared error of the rays.

        Pixels whose coverage is known are shown and compared on random colours: a fog that looks like the background
        then costs as much as one of any other colour.
        """
        jitter, background = numbers
        target, covered, gains = target
        own = torch.full_like(background, float(self.white_bkgd))
        self.slow_start = self.opaque or covered is not None
        if covered is not None:
            covered = covered[:, None]
            background = torch.where(covered < 0.0, own, background)
            target = target + (1.0 - covered) * (background - own)
        elif not self.slow_start:
            background = own
        marched = self._march(rays, jitter, ROOM if self.captured else None)
        rgb = exposed(self._coloured(marched, rays.viewdirs, background), marched.rest[:, None] * background, gains)
        n_rays = len(jitter)
        if marched.n_whole is None:
            mse, kept = img2mse(rgb, target), max(marched.n_samples, 1)
            wanted = self.n_rays_of_step * min(max(SAMPLES / kept, 0.8), 1.25)
            self.n_rays_of_step = int(min(max(wanted, RAYS[0]), RAYS[1]))
        else:
            whole = torch.arange(n_rays, device=rgb.device)[:, None] < marched.n_whole
            n_rays, kept = marched.n_whole, marched.n_samples
            mse = torch.where(whole, (rgb - target) ** 2, 0.0).sum() / (3 * n_rays)
        self.last_step = {'rays_per_step': n_rays, 'samples_per_ray': kept / n_rays}
        self.last_errors = mse.detach(), img2mse(target.mean(0), target)
        return Losses({'mse': mse}, {})

    def parameter_groups(self) -> list[dict]:
        return [{'params': list(self.network.parameters()), 'rate': 1.0, 'betas': (FIRST_RATE, SECOND_RATE)}]

    @torch.no_grad()
    def apply_gradients(self, rate: Tensor, finite: Tensor, scale: Tensor) -> None:
        """Adam's step on the rows that the rays touched, which also pulls them towards their neighbours."""
        self.adam_steps += 1
        rates = self.rates * rate
        if self.slow_start and self.stage == 0 and len(self.stages) > 1:
            in_stage = self.adam_steps / max(self.stages[1][0] * self.n_iters, FEWEST_PRUNE)
            rates[0] *= (SLOW_START + in_stage).clamp(max=1.0)
        axis = self.adam_steps % 3
        if self.kernels:
            self.kernels.smooth(self.smoothness.numpy(), int(axis))
            self.kernels.adam(rates.numpy(), int(self.adam_steps), bool(finite))
        elif self.rows.grad is not None:
            gradient = self.rows.grad / scale
            grid_torch.smooth(self.rows, gradient, self.grid, self.smoothness, axis)
            grid_torch.adam(self.rows, gradient, self.means, self.squares, rates, self.adam_steps,
                            finite & torch.isfinite(gradient.sum()))
            self.rows.grad = None

    @torch.no_grad()
    def after_step(self, step: int) -> Changes:
        """Prunes at intervals and between the stages, each of which has smaller voxels."""
        every = max(int(PRUNINGS * self.n_iters), FEWEST_PRUNE)
        next_stage = (self.stage + 1 < len(self.stages)
                      and step >= max(self.stages[self.stage + 1][0] * self.n_iters, FEWEST_PRUNE))
        if step >= self.n_iters or (step % every and not next_stage):
            return Changes([])
        before, lines = len(self.rows), self._fog_note(step)
        dense = self._dense_cells()
        if step > 2 * FEWEST_PRUNE or dense.any():  # after a few steps nothing need be dense yet
            self.keep(dense)
        if not next_stage:
            return Changes([*lines, f'step {step}: pruned {before:,} to {len(self.rows):,} vertices'], True)
        self.stage += 1
        self._refine(self.longest / self.stages[self.stage][1])
        return Changes([*lines, f'step {step}: {self.describe().strip()}'], True)

    def _fog_note(self, step: int) -> list[str]:
        """A line where the last step's rays were shown no better than by one colour: a grid of fog, or background."""
        error, of_mean = map(float, self.last_errors or (0.0, 0.0))
        if error < of_mean or of_mean < ONE_COLOUR ** 2:  # where all targets have one colour, a good grid shows it too
            return []
        return [f'step {step}: the grid shows no more than fog: its error is {error:.4f}, that of one colour for all '
                f'pixels {of_mean:.4f}; if this stays so, try a lower lrate or another seed, and check the cameras']

    def _dense_cells(self) -> Tensor:
        """[X, Y, Z] bool: cells with a dense corner that was not HIDDEN from all rays since Adam began anew: what is
        behind surfaces or in no view would be seen from elsewhere. (Scenes that end on something everywhere stay foggy
        for too long for this.) Before the last stage their neighbours too.
        """
        dense = torch.zeros_like(self.grid.cells)
        is_dense = optical_depth(self.rows.detach()[:, 0]) > THIN
        if not self.opaque and self.adam_steps >= 0.5 * PRUNINGS * self.n_iters:  # rays have met all that can be seen
            is_dense &= self.strongest > HIDDEN
        dense[self.grid.index >= 0] = is_dense
        around = cells_around(dense)
        return around if self.stage + 1 == len(self.stages) else dilated(around)

    def _refine(self, voxel: float) -> None:
        """Goes on with voxels of a smaller size, but no more than MOST_ROWS vertices."""
        n_cells = int(self.grid.cells.sum())
        voxel = max(voxel, self.grid.voxel * (1.3 * n_cells / MOST_ROWS) ** (1 / 3))
        grid = self.grid.refined(voxel)
        points, rows = self.grid.scaled(grid.vertex_points()), []
        for part in pieces(len(points), 2 ** 16):
            rows.append(interpolated(self.grid.index, self.rows.detach(), points[part])[0])
        self._take(grid, torch.cat(rows))

    # What it shows

    def _straight(self, rays: Rays) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Origins and directions [R, 3] in voxels, not contracted, and the bounds [R]. Where there is a contraction,
        rays end at most a quarter of a voxel from where infinity is."""
        near, far = rays.near[:, 0], rays.far[:, 0]
        if not isinstance(self.space, Unbounded):
            return self.grid.scaled(rays.origins * self.axes), rays.directions * self.axes / self.grid.voxel, near, far
        origins, directions = self.space.from_centre(rays.origins), rays.directions / self.space.radius
        ends = origins.norm(dim=-1) + 4.0 / self.grid.voxel  # lengths of rays; u is at least 4 / voxel there
        return self.grid.scaled(origins), directions / self.grid.voxel, near, ends / directions.norm(dim=-1)

    def _scaled(self, points: Tensor) -> Tensor:
        """Scene points [..., 3] in voxels of the grid."""
        return self.grid.scaled(self.space.to_field(points) * self.axes)

    def _march(self, rays: Rays, jitter: Tensor, room: Room | None = None) -> Marched:
        inputs = *self._straight(rays), jitter, LEAST[min(self.stage, 1)], self.ball
        if self.kernels is None:
            strongest = self.strongest if torch.is_grad_enabled() else None
            return grid_torch.march(self.grid, self.rows, *inputs, strongest, self.captured, room)
        return Marched(*_MarchKernels.apply(self.rows, self.kernels, torch.is_grad_enabled(), *inputs))

    def _coloured(self, marched: Marched, viewdirs: Tensor, background: Tensor | float) -> Tensor:
        """Colours [R, 3] of R rays on a background [R, 3]."""
        rgb = marched.features[:, :3] + marched.rest[:, None] * background
        if torch.is_grad_enabled():  # a step, which may be captured, cannot wait for how many rays met something
            change = self._view_dependent(marched.features, viewdirs)
            return rgb + torch.where(marched.count[:, None] > 0, change, 0.0)
        hit = marched.count.nonzero()[:, 0]  # the other rays are half of many views
        rgb[hit] += self._view_dependent(marched.features[hit], viewdirs[hit])
        return rgb

    def _view_dependent(self, features: Tensor, viewdirs: Tensor) -> Tensor:
        """What the network adds to colours [R, 3], from composited channels [R, 15] and directions [R, 3]."""
        x = torch.cat([features, direction_polynomials(viewdirs)], -1)
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.network(x).float()

    def sampler(self) -> Sampler:
        return GridSampler(self, self.view_chunk, self.supersample)

    def render(self, rays: Rays) -> Composite:
        with torch.no_grad():
            marched = self._march(rays, torch.full_like(rays.near[:, 0], 0.5))
            rgb = self._coloured(marched, rays.viewdirs, float(self.white_bkgd)).clamp(0.0, 1.0)
            acc = 1.0 - marched.rest
        return Composite(rgb, disparity(marched.depth, acc), acc, acc[:, None], marched.depth)

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        flat, dirs = points.reshape(-1, 3), viewdirs[:, None].expand(points.shape).reshape(-1, 3)
        corner, weights = trilinear(self.grid.index, self._scaled(flat))
        _, features = channels(self.rows.detach(), corner.clamp(min=0), weights)
        rgb = features[:, :3] + self._view_dependent(features, dirs)
        return rgb.clamp(0.0, 1.0).reshape(points.shape), self.density(flat).reshape(points.shape[:-1])

    def density(self, points: Tensor) -> Tensor:
        """The interface's; in contracted or stretched space that of the mean over directions (`Space.field_scale`)."""
        scaled = self._scaled(points)
        raw, weight = interpolated(self.grid.index, self.rows.detach()[:, :1], scaled)
        last = constant(self.grid.index.shape, points.device) - 1
        inside = ((scaled >= 0) & (scaled <= last)).all(-1) & (weight > 1.0 - 1e-4)
        scale = self.space.field_scale(points)
        return torch.where(inside, optical_depth(raw[:, 0]) / self.grid.voxel * scale, 0.0)

    @torch.inference_mode()
    def histograms(self, rays: Rays) -> dict[str, Tensor]:
        """Densities evenly along the rays, where there is any, and colours where a voxel is not thin."""
        colours, density = self.radiance(ray_points(rays, coarse_depths(rays, Sampling(64))), rays.viewdirs)
        seen = colours[density * self.grid.voxel > THIN]
        return {'density': density[density > 0], **dict(zip(('red', 'green', 'blue'), seen.unbind(-1)))}

    def scalars(self) -> dict[str, float]:
        """Rows, the occupied share of the box's cells, the voxels' size in scene units, and the last step's samples."""
        inner = math.prod(size - 1 for size in self.grid.cells.shape)
        return {'rows': len(self.rows), 'occupied_share': int(self.grid.cells.sum()) / inner,
                'voxel': self.grid.voxel, **{name: float(number) for name, number in self.last_step.items()}}

    # What checkpoints hold

    def weights(self) -> dict:
        cells = np.packbits(self.grid.cells.cpu().numpy().reshape(-1))
        return {'grid_state_dict': {
            'rows': self.rows.detach().cpu(), 'cells': packed(torch.from_numpy(cells)),
            'shape': list(self.grid.cells.shape), 'low': self.grid.low, 'voxel': self.grid.voxel, 'stage': self.stage,
            'contraction': self.space.ball_numbers() if isinstance(self.space, Unbounded) else None,
            'network': {name: part.cpu() for name, part in self.network.state_dict().items()}}}

    def slim_weights(self) -> dict:
        """The rows in half precision."""
        state = self.weights()['grid_state_dict']
        return {'grid_state_dict': state | {'rows': packed(state['rows'].clamp(-HALF, HALF).half())}}

    def load_weights(self, checkpoint: dict) -> None:
        state = checkpoint.get('grid_state_dict')
        if not isinstance(state, dict):
            raise UserError('it has no grid_state_dict; set field = mlp or use another checkpoint')
        try:
            grid = self._grid_of(state)
            rows = unpacked(state['rows'], (grid.n_rows, CHANNELS), torch.float16)
            if not is_real(rows) or not grid.n_rows:
                raise ValueError('rows that are no real numbers, or none')
            contraction = state.get('contraction')  # none in checkpoints of before
            space = self.space if contraction is None else self.space.with_ball(contraction)
            self.network.load_state_dict(state['network'])
            self.stage = min(max(int(state['stage']), 0), len(self.stages) - 1)
        except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f'its grid_state_dict is broken ({error!r}); remove it or use another checkpoint') from None
        if space != self.space:  # of an older run, or of another scene's
            self.space, self.longest = space, grid.voxel * self.stages[self.stage][1]
        self._take(grid, rows)

    def _grid_of(self, state: dict) -> SparseGrid:
        """The grid of a checkpoint; ValueError and others where it is broken."""
        shape = [int(size) for size in state['shape']]
        if len(shape) != 3 or min(shape) < 2 or math.prod(shape) > MOST_VERTICES:
            raise ValueError(f'cells of shape {shape}')
        low, voxel, most = state['low'].double().reshape(3), float(state['voxel']), self.longest / SMALLEST
        if not ((low.abs() < most).all() and SMALLEST * self.longest < voxel < most):
            raise ValueError(f'voxels of {voxel} from {low.tolist()}')
        cells, rows = _bits(state['cells'], shape), state['rows']
        n_cells = np.count_nonzero(cells)  # Tensor.sum makes int64 of each first
        n_rows = len(rows) if isinstance(rows, Tensor) else len(rows['low']) // CHANNELS
        if n_cells > n_rows:  # each has a lowest corner; a small file can claim to have a huge grid
            raise ValueError(f'{n_cells} cells but {n_rows} rows')
        return SparseGrid.of_cells(low, voxel, cells.to(self.device))

    def training_state(self) -> dict:
        """Rows that no ray touched since Adam began anew have no running means; after a skipped step some have but a
        weight."""
        touched = ((self.means != 0) | (self.squares != 0)).any(-1) | (self.strongest != 0)
        means, squares, strongest = (packed(part[touched].cpu()) for part in (
            self.means, self.squares, self.strongest))
        return {'grid': {'means': means, 'squares': squares, 'strongest': strongest, 'touched': packed(touched.cpu()),
                         'adam_steps': int(self.adam_steps), 'n_rays': self.n_rays_of_step}}

    def load_training_state(self, state: dict) -> None:
        state = state['grid']
        touched = unpacked(state['touched'], (len(self.rows),), torch.uint8).to(self.device) != 0
        means, squares = (_of_touched(state[name], touched, (CHANNELS,)) for name in ('means', 'squares'))
        strongest = _of_touched(state['strongest'], touched, ())
        if not (0 <= state['adam_steps'] < 2 ** 31 and RAYS[0] <= state['n_rays'] <= RAYS[1]):
            raise ValueError(f"{state['adam_steps']} steps, {state['n_rays']} rays")
        self.n_rays_of_step = int(state['n_rays'])
        self._take(self.grid, self.rows.detach(), means, squares, strongest, int(state['adam_steps']))

    def describe(self) -> str:
        shape, kind = 'x'.join(map(str, self.grid.cells.shape)), 'kernels' if self.compiled else 'plain PyTorch'
        return f'grid      {len(self.rows):,} of {shape} vertices, {self.grid.voxel:.4g} apart, {kind}'


class GridSampler(Sampler):
    """Marches through the grid."""

    name = 'grid'

    def render(self, rays: Rays) -> RenderResult:
        return RenderResult(self.field.render(rays), None, None)


class GridTraining(Training):
    """Training of a grid."""

    def __init__(self, field: GridModel):
        super().__init__(field)
        self.chunk, self.captured = field.chunk, field.captured
        self.lrate_decay = field.n_iters / (1000 * math.log10(20))
        for name in ('rays_per_step', 'random_numbers', 'losses', 'parameter_groups', 'apply_gradients', 'scalars'):
            setattr(self, name, getattr(field, name))
        self.state, self.load_state = field.training_state, field.load_training_state

    def after_step(self, step: int, notes: dict[str, Tensor]) -> Changes:
        return self.field.after_step(step)


def _bits(parts: dict | Tensor, shape: list[int]) -> Tensor:
    """The mask of a shape whose bits were packed; ValueError and others where it is broken."""
    count = math.prod(shape)
    flags = np.unpackbits(unpacked(parts, (-(-count // 8),), torch.uint8).numpy())
    return torch.from_numpy(flags[:count].reshape(shape).view(bool))


def _of_touched(parts: dict, touched: Tensor, shape: tuple[int, ...]) -> Tensor:
    """All rows' values [M, *shape], of which a checkpoint has those of the touched rows [M]; else zeros."""
    values = torch.zeros(len(touched), *shape, device=touched.device)
    values[touched] = unpacked(parts, (int(touched.sum()), *shape), values.dtype).to(touched.device)
    return values


def _large(values: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A contiguous float32 copy of some values (None: zeros). On a CPU NumPy allocates it: in huge pages where the
    system has them, as rows are read here and there."""
    if device.type != 'cpu':
        return torch.zeros(shape, device=device) if values is None else values.float().to(device).contiguous().clone()
    return torch.from_numpy(np.zeros(shape, np.float32) if values is None
                            else np.array(values.float().numpy(), order='C'))


def has_kernels() -> bool:
    """Whether Numba's kernels can be used; where not, a line says why. Another says if they are to be compiled."""
    try:
        from nerf.fields.grid import kernels as grid_kernels
    except Exception as error:  # a missing or broken Numba
        print(f'the grid runs in plain PyTorch, many times slower: Numba cannot be used ({error}); '
              'pip install numba', file=sys.stderr)
        return False
    if note := grid_kernels.compile_note():
        print(note)
    return True


class _Kernels:
    """The compiled loops over one grid, and the arrays that they share."""

    def __init__(self, model: GridModel, before: _Kernels | None):
        from nerf.fields.grid import kernels as grid_kernels

        self.module, grid = grid_kernels, model.grid
        self.index, self.blocks = grid.index.numpy().copy(), grid_kernels.cells_of_blocks(grid.cells.numpy())
        self.rows, self.means, self.squares = model.rows.detach().numpy(), model.means.numpy(), model.squares.numpy()
        self.vertices, self.gradients = np.flatnonzero(self.index >= 0).astype(np.int32), np.zeros_like(self.rows)
        self.strongest = model.strongest.numpy()
        self.raw = np.full(self.index.shape, NOTHING, np.float32)
        self.take_densities()
        self.heaviest, self.saved = np.zeros(len(self.rows), np.float32), None
        self.samples = before.samples if before else (  # memory pages exist once they are written to
            np.empty((RAYS[1], MOST, CHANNELS), np.float32), np.empty((RAYS[1], MOST, 4), np.int32),
            np.empty((RAYS[1], MOST, 5), np.float32))

    def take_densities(self) -> None:
        """Copies the rows' densities to where `march` reads them; `adam` keeps them up to date."""
        self.raw.reshape(-1)[self.vertices] = self.rows[:, 0]

    def march(self, saved: bool, origins, directions, near, far, jitter, least, ball) -> Marched:
        if (n_rays := len(origins)) > RAYS[1]:  # the kernels do not look how long their arrays are
            raise ValueError(f'{n_rays} rays at once; at most {RAYS[1]}')
        features, count = np.empty((n_rays, CHANNELS - 1), np.float32), np.empty(n_rays, np.int64)
        rest, depth = np.empty((2, n_rays), np.float32)
        inputs = (np.ascontiguousarray(part.numpy()) for part in (origins, directions, near, far, jitter))
        self.module.march(*inputs, self.rows, self.raw, self.index, self.blocks, grid_torch.Rules(least, ball=ball),
                          saved, count, rest, depth, features, *self.samples)
        self.saved = count, rest
        return Marched(*map(torch.from_numpy, (features, rest, depth, count)), int(count.sum()))

    def backward(self, of_features: np.ndarray, of_rest: np.ndarray) -> None:
        """Adds the gradients of the last `march`."""
        (count, rest), (values, corners, places) = self.saved, self.samples
        self.module.raw_gradients(count, rest, values, places, of_features, of_rest)
        self.module.scatter(count, values, corners, places, of_features, self.gradients, self.heaviest)

    def smooth(self, weights: np.ndarray, axis: int) -> None:
        self.module.smooth(self.rows, self.index, self.vertices, self.gradients, self.heaviest, weights, axis)

    def adam(self, rates: np.ndarray, step: int, apply: bool) -> None:
        betas = FIRST_RATE, SECOND_RATE
        self.module.adam(self.rows, self.raw.reshape(-1), self.vertices, self.gradients, self.means, self.squares,
                         self.heaviest, self.strongest, rates, betas, grid_torch.EPSILON,
                         *(np.float32(1.0 / (1.0 - beta ** step)) for beta in betas), apply)


class _MarchKernels(torch.autograd.Function):
    """`_Kernels.march`, whose backward pass leaves the rows' gradients with the kernels: most rows have none."""

    @staticmethod
    def forward(ctx, rows: Tensor, kernels: _Kernels, *inputs) -> tuple[Tensor, ...]:
        ctx.kernels = kernels
        marched = kernels.march(*inputs)
        ctx.mark_non_differentiable(marched.depth, marched.count)
        return tuple(marched)

    @staticmethod
    def backward(ctx, of_features: Tensor, of_rest: Tensor, *_):
        ctx.kernels.backward(of_features.contiguous().numpy(), of_rest.contiguous().numpy())
        return (None,) * 10


def _view_network(generator: torch.Generator) -> nn.Sequential:
    """15 composited channels and 16 polynomials of the direction to a change of colour, small at first."""
    network = nn.Sequential(nn.Linear(31, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3))
    with torch.no_grad():
        for layer in network[::2]:
            bound = layer.in_features ** -0.5
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.zero_()
        network[-1].weight.mul_(0.1)
    return network


def direction_polynomials(d: Tensor) -> Tensor:
    """Unit directions [R, 3] to the 16 spherical harmonics up to degree 3, without their constant factors."""
    x, y, z = d.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    return torch.stack([torch.ones_like(x), x, y, z, x * y, y * z, z * x, xx - yy, 3 * zz - 1, y * (3 * xx - yy),
                        x * y * z, y * (5 * zz - 1), z * (5 * zz - 3), x * (5 * zz - 1), z * (xx - yy),
                        x * (xx - 3 * yy)], -1)
