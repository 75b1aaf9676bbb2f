"""Backend of a grid on a CPU, by Numba's kernels (kernels.py)."""

import functools

import numpy as np
import torch
from torch import Tensor, nn

from nerf.fields.grid import kernels
from nerf.fields.grid.backend import CHANNELS, Backend, Capacity, Marched, Rules, VoxelRays
from nerf.fields.grid.sparse_grid import SparseGrid

NOTHING = np.float32(-1e9)  # raw density in a slot without a row
PARTS = 256  # of the rows, of which `smooth` gives sums


class NumbaBackend(Backend):
    """Grid and its rows as arrays for the kernels. `rows.grad` has the memory of the kernels' gradients in all steps. A
    step touches few of the rows, so only their gradients are cleared."""
    name = 'kernels'

    def __init__(self, grid: SparseGrid, rows: nn.Parameter, rules: Rules, most_rays: int):
        super().__init__(grid, rows, rules, most_rays)
        self.size, self.blocks = tuple(grid.cells.shape), kernels.cells_of_blocks(grid.cells.numpy())
        self.clearance = kernels.clearance_of(self.blocks) if rules.ball.contracted else np.zeros((1, 1, 1), np.uint8)
        bricks = grid.bricks
        self.number, self.origin, self.index = bricks.number.numpy(), bricks.origin.numpy(), bricks.index.numpy()
        self.slots = bricks.slots.numpy()
        self.values, self.gradient = rows.detach().numpy(), np.zeros((len(rows), CHANNELS), np.float32)
        rows.grad = torch.from_numpy(self.gradient)
        self.touched_by = self.heaviest.numpy()
        self.raw, self.version = np.full(self.index.shape, NOTHING), None
        self.is_clear = True  # no row is touched

    def march(self, rays: VoxelRays, capacity: Capacity | None = None) -> Marched:
        if (n_rays := len(rays.near)) > self.most_rays:  # the kernels do not look how long their arrays are
            raise ValueError(f'{n_rays} rays at once; at most {self.most_rays}')
        if self.version != self.rows._version:  # PyTorch has changed rows; `adam` keeps their densities in `raw`
            self.raw[self.slots] = self.values[:, 0]
            self.version = self.rows._version
        return Marched(*_March.apply(self.rows, self, rays, torch.is_grad_enabled()))

    def clear_gradient(self) -> None:
        if not self.is_clear:
            self.gradient[self.touched_by != 0] = 0.0
            self.touched_by[:] = 0.0
            self.is_clear = True

    def smooth(self, weights: Tensor, axis: Tensor) -> Tensor:
        sums = np.empty((PARTS, CHANNELS), np.float32)
        kernels.smooth(self.values, self.number, self.origin, self.index, self.slots, self.gradient, self.touched_by,
                       weights.numpy(), int(axis), sums)
        return torch.from_numpy(sums).sum()

    def adam(self, state: dict[str, Tensor], rates: Tensor, betas: tuple[float, float], epsilon: float,
             skip: Tensor) -> None:
        step = int(state['step'])
        debias = (np.float32(1.0 / (1.0 - beta ** step)) for beta in betas)
        kernels.adam(self.values, self.raw, self.slots, self.gradient, state['exp_avg'].numpy(),
                     state['exp_avg_sq'].numpy(), self.touched_by, state['strongest'].numpy(), rates.numpy(), betas,
                     epsilon, *debias, not skip)
        self.is_clear = True


class _March(torch.autograd.Function):
    """March whose backward pass adds to the gradients that the kernels keep: most rows have none."""
    @staticmethod
    def forward(ctx, rows: Tensor, backend: NumbaBackend, rays: VoxelRays, saved: bool) -> tuple:
        n_rays, buffers = len(rays.near), SampleBuffers(backend.most_rays, backend.rules.most)
        features, count = np.empty((n_rays, CHANNELS - 1), np.float32), np.empty(n_rays, np.int64)
        rest, depth, distortion = np.empty((3, n_rays), np.float32)
        kernels.march(*(np.ascontiguousarray(part.numpy()) for part in rays), backend.values, backend.raw,
                      backend.size, backend.number, backend.index, backend.blocks, backend.clearance,
                      backend.rules, saved, count, rest, depth, distortion, features, buffers.values, buffers.corners,
                      buffers.places)
        buffers.march += 1
        ctx.backend, ctx.count, ctx.rest, ctx.buffers, ctx.march = backend, count, rest, buffers, buffers.march
        marched = Marched(*map(torch.from_numpy, (features, rest, depth, distortion, count)), int(count.sum()))
        ctx.mark_non_differentiable(marched.depth, marched.count)
        return tuple(marched)

    @staticmethod
    def backward(ctx, of_features: Tensor, of_rest: Tensor, _: Tensor, of_distortion: Tensor, *__) -> tuple:
        gradients = [part.contiguous().numpy() for part in (of_features, of_rest, of_distortion)]
        backend, samples = ctx.backend, ctx.buffers
        if samples.march != ctx.march:
            raise RuntimeError('the samples of this march are gone: another march, or its backward pass, came before')
        kernels.raw_gradients(ctx.count, ctx.rest, samples.values, samples.places, *gradients)
        kernels.scatter(ctx.count, samples.values, samples.corners, samples.places, gradients[0], backend.gradient,
                        backend.touched_by)
        samples.march += 1  # `raw_gradients` has overwritten some of them
        backend.is_clear = False
        return None, None, None, None


@functools.lru_cache(1)
class SampleBuffers:
    """Samples of the last march, for its backward pass, with room for `most` samples of each ray. All backends of a
    process share them, because they take about a hundred megabytes. Memory pages exist once they are written to."""

    def __init__(self, n_rays: int, most: int):
        self.values = np.empty((n_rays, most, CHANNELS), np.float32)
        self.corners = np.empty((n_rays, most, 4), np.int32)
        self.places = np.empty((n_rays, most, 7), np.float32)
        self.march = 0  # number of the march that has its samples here
