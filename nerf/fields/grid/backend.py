"""Interface of the two backends of a grid, which march rays through it and train its rows: Numba and PyTorch.

Shapes: R rays, M rows of 16 channels: raw density, three of diffuse colour, and twelve features for the network behind
the grid. Rays are in voxels: vertex (i, j, k) is at the point (i, j, k)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nerf.fields.grid.sparse_grid import SparseGrid
from nerf.runtime.devices import constant
from nerf.space import contracted

CHANNELS = 16  # of a row: a cache line
STEP = 0.5  # voxels between samples; the kernels know no other
LEAST_STEP = 1e-5  # of a contracted ray, as a share of its depth: shorter steps could round to 0, and never end


class Ball(NamedTuple):
    """Unit ball of a contraction (nerf/space.py) in voxels. Points inside it stay where they are."""
    contracted: bool = False  # False: there is no contraction, and rays are straight in the grid
    x: float = 0.0  # of its centre
    y: float = 0.0
    z: float = 0.0
    radius: float = 1.0

    @classmethod
    def of(cls, grid: SparseGrid) -> Ball:
        """Ball of a grid in contracted space: radius 1 around the origin."""
        return cls(True, *(-grid.low / grid.voxel).tolist(), 1.0 / grid.voxel)

    def from_centre(self, points: Tensor) -> Tensor:
        """Points [..., 3] in voxels as radii from the centre."""
        return (points - constant(self[1:4], points.device, points.dtype)) / self.radius

    def contract(self, points: Tensor) -> Tensor:
        """Points [..., 3] on a straight ray, contracted."""
        if not self.contracted:
            return points
        centre = constant(self[1:4], points.device, points.dtype)
        return contracted(self.from_centre(points)) * self.radius + centre


STRAIGHT = Ball()


class Rules(NamedTuple):
    """Numbers of a march. Kernels get them as arguments, because Numba's cache does not notice edited constants."""
    least: float  # weight below which a sample is skipped; it takes no light either
    dark: float  # transmittance at which a ray ends
    sharpness: float  # the optical depth of a voxel is softplus(sharpness * raw + offset)
    offset: float
    most: int  # kept samples of a ray
    ball: Ball = STRAIGHT
    least_step: float = LEAST_STEP

    def optical_depth(self, raw: Tensor) -> Tensor:
        """Optical depth of a voxel by its raw density: non-negative."""
        return nn.functional.softplus(self.sharpness * raw + self.offset)


class VoxelRays(NamedTuple):
    """R straight rays in voxels; a backend contracts them."""
    origins: Tensor  # [R, 3]
    directions: Tensor  # [R, 3]
    near: Tensor  # [R] bounds
    far: Tensor  # [R]
    jitter: Tensor  # [R] in [0, 1), place of the first sample in a step
    fade: Tensor  # [R] depth f: gradients of samples at depths t < f are multiplied by (t / f)^2; 0: all are whole


class Capacity(NamedTuple):
    """Samples for which a captured step has memory: its tensors keep their sizes, whatever rays meet."""
    in_cells: int  # samples in kept cells, whose density is looked up
    kept: int


class Marched(NamedTuple):
    """Result of marching R rays. `distortion` is that of mip-NeRF 360 (arXiv:2111.12077, equation 15), without its
    term for the lengths of samples, which are half a voxel. Normalised distances are 1 - near / depth of contracted
    rays; else distances from near, as shares of the box's longest side."""
    features: Tensor  # [R, 15] composited channels behind density, the first three as colours
    rest: Tensor  # [R] transmittance behind all samples
    depth: Tensor  # [R] expected depth, not divided by opacity
    distortion: Tensor  # [R] sum of w v |s - t| over pairs of samples, of weights w, v at normalised distances s, t
    count: Tensor  # [R] kept samples
    n_samples: int | Tensor  # their sum
    n_whole: Tensor | None = None  # [] number of first rays that were within capacity; None: all


class Backend:
    """Grid and its rows [M, 16], made by `row_tensor`, ready for marching and training. A changed grid needs another
    backend. Gradients of rows are in `rows.grad`, whose memory a backend may keep for all steps. A tile has `most_rays`
    rays at most; a backend may take more."""
    name: str  # in words

    def __init__(self, grid: SparseGrid, rows: nn.Parameter, rules: Rules, most_rays: int):
        self.grid, self.rows, self.rules, self.most_rays = grid, rows, rules, most_rays
        self.heaviest = row_tensor(None, (grid.n_rows,), rows.device)  # weight around each row in this training step

    def march(self, rays: VoxelRays, capacity: Capacity | None = None) -> Marched:
        """Marches rays through the kept cells and composites their samples. The result, except depth and count, is
        differentiable by `rows`. If gradients are enabled, `heaviest` gets the largest weight of a sample around each
        row, after the backward pass at the latest.

        With a capacity, this does not wait for the device. The last rays get nothing if the capacity is too small."""
        raise NotImplementedError

    def smooth(self, weights: Tensor, axis: Tensor) -> Tensor:
        """Adds the gradient of half the squared differences of neighbours along an axis, a scalar tensor, times weights
        [16] of the channels, to the gradients of touched rows. Returns a scalar that is finite if all gradients are."""
        raise NotImplementedError

    def adam(self, state: dict[str, Tensor], rates: Tensor, betas: tuple[float, float], epsilon: float,
             skip: Tensor) -> None:
        """Takes Adam's step on the touched rows, in place, at rates [16] of the channels. Running means of other rows
        stay. Gradients and `heaviest` are clear afterwards. Where the scalar `skip` is not 0, nothing else changes.
        The state has 'step' (scalar, counted from 1), 'exp_avg', 'exp_avg_sq' ([M, 16]) and 'strongest' ([M], the
        largest `heaviest` of all steps)."""
        raise NotImplementedError

    def clear_gradient(self) -> None:
        """Clears the gradients of a backward pass that no step followed."""
        raise NotImplementedError


def row_tensor(values: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Contiguous float32 copy of values (None: zeros). On a CPU NumPy allocates it, if possible in huge pages."""
    if device.type != 'cpu':
        return torch.zeros(shape, device=device) if values is None else values.float().to(device).contiguous().clone()
    return torch.from_numpy(np.zeros(shape, np.float32) if values is None
                            else np.array(values.float().numpy(), order='C'))
