"""Interface of the two backends of a grid, which march rays through it and train its rows: Numba and PyTorch.

Shapes: R rays, M rows of 16 channels: raw density, three of diffuse colour, and twelve features that only the network
behind the grid understands. Rays are in voxels: vertex (i, j, k) is at the point (i, j, k).
"""

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
        """The ball of a grid in contracted space: radius 1 around the origin."""
        return cls(True, *(-grid.low / grid.voxel).tolist(), 1.0 / grid.voxel)

    def from_centre(self, points: Tensor) -> Tensor:
        """Points [..., 3] in voxels as radii from the centre."""
        return (points - self._centre(points)) / self.radius

    def contract(self, points: Tensor) -> Tensor:
        """Points [..., 3] on a straight ray, contracted."""
        if not self.contracted:
            return points
        return contracted(self.from_centre(points)) * self.radius + self._centre(points)

    def _centre(self, points: Tensor) -> Tensor:
        """[3], like points."""
        return constant((self.x, self.y, self.z), points.device, points.dtype)


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
        """Optical depth of a voxel of some raw density: non-negative."""
        return nn.functional.softplus(self.sharpness * raw + self.offset)


class VoxelRays(NamedTuple):
    """R straight rays in voxels; a backend contracts them."""

    origins: Tensor  # [R, 3]
    directions: Tensor  # [R, 3]
    near: Tensor  # [R] bounds
    far: Tensor  # [R]
    jitter: Tensor  # [R] in [0, 1), place of the first sample in a step


class Capacity(NamedTuple):
    """Samples for which a captured step has memory: its tensors keep their sizes, whatever rays meet."""

    in_cells: int  # samples in kept cells, whose density is looked up
    kept: int


class Marched(NamedTuple):
    """Result of marching R rays."""

    features: Tensor  # [R, 15] composited channels, the first three as colours
    rest: Tensor  # [R] transmittance behind all samples
    depth: Tensor  # [R] expected depth, not divided by opacity
    count: Tensor  # [R] kept samples
    n_samples: int | Tensor  # their sum
    n_whole: Tensor | None = None  # [] number of first rays that were within capacity; None: all


class Backend:
    """A grid and its rows, made ready for marching and training. A changed grid needs another backend.

    Gradients of rows are in `rows.grad`. A backend may keep the memory of `rows.grad` for all steps.

    Args:
        grid: the grid.
        rows: [M, 16], contiguous float32, as `row_tensor` makes them.
        rules: numbers of a march.
        most_rays: most rays of a tile; a backend may take more.
    """

    name: str  # in words

    def __init__(self, grid: SparseGrid, rows: nn.Parameter, rules: Rules, most_rays: int):
        self.grid, self.rows, self.rules, self.most_rays = grid, rows, rules, most_rays
        self.heaviest = row_tensor(None, (grid.n_rows,), rows.device)  # weight around each row in this training step

    def march(self, rays: VoxelRays, capacity: Capacity | None = None) -> Marched:
        """Marches rays through the kept cells and composites their samples; differentiable by `rows`.

        If gradients are enabled, `heaviest` gets the largest weight of a sample around each row, after the backward
        pass at the latest.

        Args:
            rays: R rays.
            capacity: of a captured step, which does not wait for the device. The last rays get nothing if it is too
                small.
        """
        raise NotImplementedError

    def smooth(self, weights: Tensor, axis: Tensor) -> Tensor:
        """Adds to the gradient of each touched row that of half the squared differences to its neighbours.

        Args:
            weights: [16], of the channels' differences.
            axis: scalar, 0, 1 or 2: neighbours along it.

        Returns:
            a scalar that is finite if all gradients are.
        """
        raise NotImplementedError

    def adam(self, state: dict[str, Tensor], rates: Tensor, betas: tuple[float, float], epsilon: float,
             skip: Tensor) -> None:
        """Adam's step on the touched rows, in place. Running means of other rows stay. Gradients and `heaviest` are
        clear afterwards.

        Args:
            state: 'step' (scalar, counted from 1), 'exp_avg', 'exp_avg_sq' ([M, 16]) and 'strongest' ([M], the largest
                `heaviest` of all steps).
            rates: [16], of each channel.
            betas, epsilon: Adam's.
            skip: scalar; other than 0: rows and running means stay.
        """
        raise NotImplementedError

    def clear_gradient(self) -> None:
        """Forgets the gradients of a backward pass that no step followed."""
        raise NotImplementedError


def row_tensor(values: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A contiguous float32 copy of some values (None: zeros). On a CPU NumPy allocates it: in huge pages if the system
    has them, as rows are read here and there."""
    if device.type != 'cpu':
        return torch.zeros(shape, device=device) if values is None else values.float().to(device).contiguous().clone()
    return torch.from_numpy(np.zeros(shape, np.float32) if values is None
                            else np.array(values.float().numpy(), order='C'))
