"""nerf/fields/grid/kernels.py: the compiled loops against plain PyTorch, by hand, and on several numbers of threads."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nerf.fields.grid.backend import CHANNELS, STEP, STRAIGHT, Ball, Marched, Rules, VoxelRays
from nerf.fields.grid.sparse_grid import SparseGrid
from nerf.fields.grid.torch_backend import TorchBackend
from nerf.space import contracted, shrinkage

numba = pytest.importorskip('numba')
kernels = pytest.importorskip('nerf.fields.grid.kernels')
cells_of_blocks = kernels.cells_of_blocks

SHAPE = (18, 13, 23)  # vertices
LEAST, DARK, MOST = 1e-3, 1e-3, 128
BETAS, EPSILON = (0.9, 0.99), 1e-12
BALL = Ball(True, 8.3, 6.2, 11.4, 5.0)  # of which twice the radius reaches out of the box in y
PER_VOXEL = 3.0  # directions are about so long, so that depths are not in voxels


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


def rules(least: float = LEAST, ball: Ball = STRAIGHT, most: int = MOST) -> Rules:
    return Rules(least, DARK, 10.0, -5.0, most, ball)


def optical_depth(raw) -> Tensor:
    return rules().optical_depth(torch.as_tensor(raw))


def part_of(rays: VoxelRays, rows) -> VoxelRays:
    return VoxelRays(*(part[rows].contiguous() for part in rays))


def a_grid(seed: int = 0) -> tuple[SparseGrid, Tensor]:
    """A grid with empty cells and empty blocks, and rows from thin to dense."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.rand(SHAPE, generator=generator) < 0.6
    full = torch.rand([math.ceil(size / 4) for size in SHAPE], generator=generator) < 0.5
    for axis, size in enumerate(SHAPE):
        full = full.repeat_interleave(4, axis).narrow(axis, 0, size)
    grid = SparseGrid.of_cells(torch.zeros(3, dtype=torch.float64), 1.0, cells & full)
    assert 0.2 < (cells_of_blocks(grid.cells.numpy()) != 0).mean() < 0.8
    rows = torch.randn((grid.n_rows, CHANNELS), generator=generator)
    rows[:, 0] = 0.5 * rows[:, 0] + 0.35
    return grid, rows


def random_rays(n: int, seed: int) -> VoxelRays:
    """Rays through the box of SHAPE in random directions, from outside and inside; some begin or end early."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor(SHAPE) - 1.0
    through = torch.rand((n, 3), generator=generator) * size
    directions = torch.nn.functional.normalize(torch.randn((n, 3), generator=generator), dim=-1)
    away = 40.0 * torch.rand((n, 1), generator=generator)
    lengths = PER_VOXEL * (0.5 + torch.rand((n, 1), generator=generator))
    near = torch.where(torch.arange(n) % 3 == 0, 4.0 * torch.rand(n, generator=generator), 0.0)
    far = torch.where(torch.arange(n) % 4 == 0, near + 8.0 * torch.rand(n, generator=generator), 60.0)
    jitter = torch.rand(n, generator=generator)
    fade = torch.where(torch.arange(n) % 5 == 0, 40.0 * torch.rand(n, generator=generator), 0.0)
    return VoxelRays(through - away * directions, directions * lengths, near, far, jitter, fade)


def plain(grid: SparseGrid, rows: Tensor, **numbers) -> TorchBackend:
    """The grid in plain PyTorch."""
    return TorchBackend(grid, torch.nn.Parameter(rows), rules(**numbers), 10 ** 6)


def uneven_samples(grid: SparseGrid, rays: VoxelRays, ball: Ball) -> tuple[Tensor, Tensor]:
    """Ray and depth of samples in kept cells, whose steps have the length that the contraction has at their start."""
    origins, directions, near, far, jitter, _ = rays
    last, found = torch.tensor(grid.cells.shape) - 1, []

    def step(t: Tensor) -> Tensor:
        return STEP / directions.norm(dim=-1) / shrinkage(ball.from_centre(origins + t[:, None] * directions),
                                                          directions)
    t = near + jitter * step(near)
    while (t < far).any():
        at = ball.contract(origins + t[:, None] * directions)
        inside = ((at >= 0) & (at <= last)).all(-1) & (t < far)
        x, y, z = at.long().clamp(min=0).minimum(last - 1).unbind(-1)
        found += [(ray, t[ray].item()) for ray in (inside & grid.cells[x, y, z]).nonzero()[:, 0].tolist()]
        t = t + torch.maximum(step(t), rules().least_step * t)
    found.sort()
    return torch.tensor([ray for ray, _ in found], dtype=torch.long), near.new_tensor([t for _, t in found])


@torch.no_grad()
def reference(grid: SparseGrid, rows: Tensor, rays: VoxelRays, least: float = LEAST, ball: Ball = STRAIGHT,
              most: int = MOST) -> Marched:
    """The plain form, in float64 but for how composite_packed rounds."""
    return march_plain(plain(grid, rows.double(), least=least, ball=ball, most=most), rays)


def march_plain(backend: TorchBackend, rays: VoxelRays) -> Marched:
    rays = VoxelRays(*(part.double() for part in rays))
    if backend.rules.ball.contracted:
        return backend.composited(rays, *uneven_samples(backend.grid, rays, backend.rules.ball))
    return backend.march(rays)


def certain(grid: SparseGrid, rows: Tensor, rays: VoxelRays, least: float = LEAST, ball: Ball = STRAIGHT) -> VoxelRays:
    """Those of the rays whose number of samples does not depend on rounding: on a thousandth of a step."""
    counts = [reference(grid, rows, rays._replace(jitter=rays.jitter + by), least, ball).count
              for by in (-1e-3, 0.0, 1e-3)]
    same = (counts[0] == counts[1]) & (counts[1] == counts[2])
    assert same.float().mean() > 0.8
    return part_of(rays, same)


class Marching:
    """A march of the kernels, and their arrays."""

    def __init__(self, grid: SparseGrid, rows: np.ndarray, rays: VoxelRays, least: float = LEAST, most: int = MOST,
                 saved: bool = True, ball: Ball = STRAIGHT, jumps: bool = False):
        n = len(rays.near)
        self.grid, self.rows = grid, rows
        self.count = np.full(n, -1, np.int64)
        self.rest, self.depth, self.distortion = np.full((3, n), np.nan, np.float32)
        self.features = np.full((n, CHANNELS - 1), np.nan, np.float32)
        self.samples = (np.full((n, most, CHANNELS), np.nan, np.float32), np.full((n, most, 4), -1, np.int32),
                        np.full((n, most, 7), np.nan, np.float32))
        self.gradients, (self.heaviest, self.strongest) = np.zeros_like(rows), np.zeros((2, len(rows)), np.float32)
        self.number, self.origin, self.index, slots = (part.numpy() for part in grid.bricks)
        self.slots = slots.astype(np.int32)
        self.raw = np.full(len(self.index), -1e9, np.float32)
        self.raw[self.slots] = rows[:, 0]
        blocks = cells_of_blocks(grid.cells.numpy())
        clearance = kernels.clearance_of(blocks) if jumps else np.zeros(blocks.shape, np.uint8)
        kernels.march(*(part.numpy() for part in rays), rows, self.raw, tuple(grid.cells.shape), self.number,
                      self.index, blocks, clearance, rules(least, ball, most), saved, self.count, self.rest,
                      self.depth, self.distortion, self.features, *self.samples)

    def backward(self, of_features: Tensor, of_rest: Tensor, of_distortion: Tensor | None = None) -> Marching:
        values, corners, places = self.samples
        of_distortion = torch.zeros_like(of_rest) if of_distortion is None else of_distortion
        kernels.raw_gradients(self.count, self.rest, values, places, of_features.numpy(), of_rest.numpy(),
                              of_distortion.numpy())
        kernels.scatter(self.count, values, corners, places, of_features.numpy(), self.gradients, self.heaviest)
        return self

    def smooth(self, weights: np.ndarray, axis: int, parts: int = 7) -> np.ndarray:
        """Smooths; the sums of the gradients [16]."""
        sums = np.full((parts, CHANNELS), np.nan, np.float32)
        kernels.smooth(self.rows, self.number, self.origin, self.index, self.slots, self.gradients, self.heaviest,
                       weights, axis, sums)
        return sums.sum(0)

    def adam(self, means: np.ndarray, squares: np.ndarray, rates: np.ndarray, step: int, apply: bool = True) -> None:
        debias = (np.float32(1.0 / (1.0 - beta ** step)) for beta in BETAS)
        kernels.adam(self.rows, self.raw, self.slots, self.gradients, means, squares, self.heaviest,
                     self.strongest, rates, BETAS, EPSILON, *debias, apply)


def assert_agree(marching: Marching, expected: Marched) -> None:
    assert marching.count.tolist() == expected.count.tolist()
    for ours, theirs in ((marching.features, expected.features), (marching.rest, expected.rest),
                         (marching.depth, expected.depth), (marching.distortion, expected.distortion)):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-4)


def gradients_of(grid: SparseGrid, rows: Tensor, rays: VoxelRays, of_features: Tensor, of_rest: Tensor,
                 ball: Ball = STRAIGHT, of_distortion: Tensor | float = 0.0) -> np.ndarray:
    """By autograd, for the rows of a mixture of features, rest and distortion."""
    backend = plain(grid, rows.double(), ball=ball)
    marched = march_plain(backend, rays)
    ((marched.features * of_features).sum() + (marched.rest * of_rest).sum()
     + (marched.distortion * of_distortion).sum()).backward()
    return backend.rows.grad.numpy()


def mixture(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A loss's gradients for the features and the rest of n rays."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((n, CHANNELS - 1), generator=generator), torch.randn(n, generator=generator)


# Blocks


@pytest.mark.parametrize('shape', [(6, 5, 9), (4, 8, 12), (2, 3, 13)])
def test_each_block_has_its_cells_as_bits(shape):
    cells = np.random.default_rng(sum(shape)).random(shape) < 0.05
    cells[-1, -1, -1] = True
    blocks = cells_of_blocks(cells)
    assert blocks.shape == tuple(math.ceil(size / 4) for size in shape)
    found = {(4 * i + x, 4 * j + y, 4 * k + z) for (i, j, k), kept in np.ndenumerate(blocks)
             for x, y, z in np.ndindex(4, 4, 4) if int(kept) >> int(kernels.bit_in_block(x, y, z)) & 1}
    assert found == set(map(tuple, np.argwhere(cells).tolist()))
    assert cells_of_blocks(np.ones((4, 4, 4), bool)).tolist() == [[[-1]]]  # all 64


# What rays meet


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('least', [1e-4, 1e-3, 0.05])
def test_random_rays_meet_what_they_meet_in_plain_pytorch(seed, least):
    grid, rows = a_grid(seed)
    rays = certain(grid, rows, random_rays(300, seed), least)
    marching = Marching(grid, rows.numpy(), rays, least)
    assert_agree(marching, reference(grid, rows, rays, least))
    assert marching.count.min() == 0
    assert marching.count.max() > (8 if least < 0.05 else 6)
    assert marching.rest.min() < max(DARK, 4.0 * least)
    assert marching.rest.max() == 1.0


def test_rays_parallel_to_axes_meet_what_they_meet_in_plain_pytorch():
    grid, rows = a_grid()
    origins, directions = [], []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            for place in np.random.default_rng(axis).uniform(0.0, np.array(SHAPE) - 1.0, (20, 3)):
                place[axis] = -3.0 if sign > 0 else SHAPE[axis] + 2.0
                origins.append(place)
                directions.append(sign * PER_VOXEL * np.eye(3)[axis])
    n = len(origins)
    rays = VoxelRays(torch.tensor(np.array(origins)).float(), torch.tensor(np.array(directions)).float(),
                     torch.zeros(n), torch.full((n,), 60.0), torch.full((n,), 0.3), torch.zeros(n))
    for tilt in (0.0, -0.0, 1e-12, -1e-12):  # of the components that are zero
        tilted = certain(grid, rows, rays._replace(directions=torch.where(
            rays.directions == 0, torch.tensor(tilt), rays.directions)))
        marching = Marching(grid, rows.numpy(), tilted)
        assert_agree(marching, reference(grid, rows, tilted))
        assert marching.count.max() > 10


@pytest.mark.parametrize('direction', [
    (0.0, 0.0, 1.0), (0.0, 0.0, -1.0), (1.0, 0.0, 0.0), (-1.0, -1.0, -1.0), (1.0, 1.0, 0.0)])
def test_rays_that_miss_meet_nothing_and_keep_all_light(direction):
    grid, rows = a_grid()
    n = 2
    origins = torch.tensor([[-1.0, -1.0, 30.0], [18.5, 14.0, -2.0]])
    rays = VoxelRays(origins, torch.tensor(direction).expand(n, 3).contiguous(), torch.zeros(n), torch.full((n,), 60.0),
                     torch.full((n,), 0.5), torch.zeros(n))
    marching = Marching(grid, rows.numpy(), rays)
    assert marching.count.tolist() == [0, 0]
    assert marching.rest.tolist() == [1.0, 1.0]
    assert marching.depth.tolist() == [0.0, 0.0]
    assert (marching.features == 0.0).all()
    assert_agree(marching, reference(grid, rows, rays))


def full_grid(length: int, raw: float) -> tuple[SparseGrid, Tensor]:
    """A grid of length x 4 x 4 cells that all have the same row."""
    grid = SparseGrid.of_cells(torch.zeros(3, dtype=torch.float64), 1.0, torch.ones((length + 1, 5, 5), dtype=bool))
    row = torch.linspace(-1.0, 2.0, CHANNELS)
    row[0] = raw
    return grid, row.expand(grid.n_rows, CHANNELS).contiguous()


def along_x(origin: float, near: float, far: float, jitter: float = 0.5, speed: float = 1.0) -> VoxelRays:
    return VoxelRays(torch.tensor([[origin, 1.3, 2.6]]), torch.tensor([[speed, 0.0, 0.0]]), torch.tensor([near]),
                     torch.tensor([far]), torch.tensor([jitter]), torch.zeros(1))


@pytest.mark.parametrize(('rays', 'first', 'n'), [
    (along_x(-3.0, 0.0, 99.0), 3.0 + 0.5 * STEP, 6.0 / STEP),  # all of it
    (along_x(-3.0, 5.0, 99.0), 5.0 + 0.5 * STEP, 4.0 / STEP),  # from near on
    (along_x(-3.0, 0.0, 7.0), 3.0 + 0.5 * STEP, 4.0 / STEP),  # up to far
    (along_x(2.0, 0.0, 99.0), 0.5 * STEP, 4.0 / STEP),  # from inside
    (along_x(2.0, 1.0, 2.0), 1.0 + 0.5 * STEP, 1.0 / STEP),  # within
    (along_x(-3.0, 0.0, 99.0, jitter=0.25), 3.0 + 0.25 * STEP, 6.0 / STEP),
    (along_x(-6.0, 0.0, 99.0, speed=2.0), 3.0 + 0.25 * STEP, 6.0 / STEP),
    (along_x(9.0, 0.0, 99.0, speed=-1.0), 3.0 + 0.5 * STEP, 6.0 / STEP),
    (along_x(-3.0, 9.5, 99.0), 0.0, 0), (along_x(-3.0, 0.0, 2.5), 0.0, 0), (along_x(7.0, 0.0, 99.0), 0.0, 0)])
def test_samples_in_a_uniform_box_are_those_worked_by_hand(rays, first, n):
    grid, rows = full_grid(6, 0.45)
    marching, n = Marching(grid, rows.numpy(), rays), round(n)
    passed = math.exp(-STEP * float(optical_depth(rows[0, 0].double())))
    weights = passed ** np.arange(n) * (1.0 - passed)
    depths = first + np.arange(n) * STEP / float(rays.directions.norm())
    row = rows[0].double().numpy()
    shown = np.concatenate([1.0 / (1.0 + np.exp(-row[1:4])), row[4:]])
    assert marching.count.tolist() == [n]
    np.testing.assert_allclose(marching.rest, [passed ** n], rtol=1e-5)
    np.testing.assert_allclose(marching.depth, [(weights * depths).sum()], rtol=1e-5)
    np.testing.assert_allclose(marching.features[0], weights.sum() * shown, rtol=1e-5, atol=1e-6)
    assert_agree(marching, reference(grid, rows, rays))


def test_a_ray_ends_where_it_is_dark():
    grid, rows = full_grid(60, 0.6)
    per_sample = STEP * float(optical_depth(rows[0, 0]))
    rays, least = along_x(-1.0, 0.0, 99.0), 1e-3 * DARK
    marching = Marching(grid, rows.numpy(), rays, least)
    assert marching.count.tolist() == [math.ceil(-math.log(DARK) / per_sample)]
    assert DARK * math.exp(-per_sample) < marching.rest[0] < DARK
    assert_agree(marching, reference(grid, rows, rays, least))


def test_a_ray_ends_behind_as_many_samples_as_it_can_keep():
    grid, rows = full_grid(60, 0.3)
    marching = Marching(grid, rows.numpy(), along_x(-1.0, 0.0, 99.0), most=7)
    assert marching.count.tolist() == [7]
    assert_agree(marching, reference(grid, rows, along_x(-1.0, 0.0, 99.0), most=7))


def test_samples_of_little_weight_are_skipped_and_take_no_light():
    grid, rows = full_grid(6, 0.3)
    passed = math.exp(-STEP * float(optical_depth(rows[0, 0].double())))
    rays = along_x(-1.0, 0.0, 99.0)
    for n in (0, 1, 4):
        least = passed ** (n - 0.5) * (1.0 - passed)  # sample n, counted from 0, weighs passed ** n * (1 - passed)
        marching = Marching(grid, rows.numpy(), rays, least)
        assert marching.count.tolist() == [n]
        np.testing.assert_allclose(marching.rest, [passed ** n], rtol=1e-5)
        assert_agree(marching, reference(grid, rows, rays, least))


def test_a_dense_sample_behind_thin_ones_is_kept():
    grid, rows = full_grid(8, 0.0)
    x = grid.places[0]
    rows[x >= 6, 0] = 1.0
    opacity = -math.expm1(-STEP * float(optical_depth(torch.tensor(0.0))))
    rays = along_x(-1.0, 0.0, 99.0)
    marching = Marching(grid, rows.numpy(), rays, 1.01 * opacity)
    assert 1 < marching.count[0] < 3.0 / STEP  # only behind x = 5, where the density begins to rise
    assert marching.depth[0] / (1.0 - marching.rest[0]) > 6.0
    assert_agree(marching, reference(grid, rows, rays, 1.01 * opacity))


def test_density_is_finite_and_right_from_very_thin_to_very_dense():
    for raw in (-20.0, -1.0, 1.9, 2.1, 50.0):
        grid, rows = full_grid(6, raw)
        rays = along_x(-1.0, 0.0, 99.0)
        marching = Marching(grid, rows.numpy(), rays, 0.0)
        assert_agree(marching, reference(grid, rows, rays, 0.0))
        marching.backward(*mixture(1))
        assert np.isfinite(marching.gradients).all()


# Contracted rays


@pytest.mark.parametrize('seed', range(3))
def test_contracted_rays_meet_what_they_meet_in_plain_pytorch(seed):
    grid, rows = a_grid(seed)
    rays = random_rays(300, seed)
    rays = certain(grid, rows, rays._replace(far=torch.where(rays.far == 60.0, 500.0, rays.far)), ball=BALL)
    marching = Marching(grid, rows.numpy(), rays, ball=BALL)
    assert_agree(marching, reference(grid, rows, rays, ball=BALL))
    assert marching.count.min() == 0
    assert marching.count.max() > 8
    assert marching.rest.min() < 0.01
    apart = np.abs(marching.rest - reference(grid, rows, rays).rest.numpy())
    assert np.median(apart) > 1e-2  # as straight rays meet something else


@pytest.mark.parametrize('seed', range(2))
def test_gradients_of_contracted_rays_are_those_of_autograd(seed):
    grid, rows = a_grid(seed)
    rays = certain(grid, rows, random_rays(200, seed), ball=BALL)
    of_features, of_rest = mixture(len(rays.near), seed)
    marching = Marching(grid, rows.numpy(), rays, ball=BALL).backward(of_features, of_rest)
    expected = gradients_of(grid, rows, rays, of_features, of_rest, BALL)
    for channel in range(CHANNELS):
        np.testing.assert_allclose(marching.gradients[:, channel], expected[:, channel], rtol=1e-3,
                                   atol=1e-4 * np.abs(expected[:, channel]).max())


def test_inside_the_ball_contracted_rays_are_those_of_the_box_bit_for_bit():
    grid, rows = a_grid()
    rays = random_rays(200, 0)
    box, ball = (Marching(grid, rows.numpy(), rays._replace(near=torch.zeros(200), far=torch.full((200,), 3.0),
                          origins=torch.tensor([9.0, 6.0, 11.0]).expand(200, 3).contiguous()), ball=ball)
                 for ball in (STRAIGHT, Ball(True, 9.0, 6.0, 11.0, 16.0)))  # 3 long at 1.5 to 4.5 voxels per unit
    assert box.count.max() > 5
    for ours, theirs in zip((box.count, box.rest, box.depth, box.features), (ball.count, ball.rest, ball.depth,
                                                                             ball.features)):
        assert ours.tobytes() == theirs.tobytes()


def test_samples_of_a_contracted_ray_away_from_the_centre_are_those_worked_by_hand():
    grid, rows = full_grid(20, 0.1)
    ball = Ball(True, 0.0, 2.0, 2.0, 10.0)
    rays = VoxelRays(torch.tensor([[4.0, 2.0, 2.0]]), torch.tensor([[2.0, 0.0, 0.0]]), torch.zeros(1),
                     torch.tensor([195.0]), torch.tensor([0.5]), torch.zeros(1))
    u, depths = 0.425, []  # radii from the centre: the ray begins at 0.4 and has samples half a voxel of 0.1 apart
    while u < 0.4 + 0.2 * 195.0:
        depths.append((u - 0.4) / 0.2)
        u += 0.05 * max(u, 1.0) ** 2
    n = len(depths)
    assert 32 < n < 38  # the grid ends 16 voxels from the ray's origin, and steps are too short at its end
    passed = math.exp(-STEP * float(optical_depth(rows[0, 0].double())))
    marching = Marching(grid, rows.numpy(), rays, 0.0, ball=ball)
    assert marching.count.tolist() == [n]
    np.testing.assert_allclose(marching.rest, [passed ** n], rtol=1e-5)
    np.testing.assert_allclose(marching.depth, [(passed ** np.arange(n) * (1.0 - passed) * depths).sum()], rtol=1e-4)
    assert_agree(marching, reference(grid, rows, rays, 0.0, ball))


def test_a_contracted_ray_from_very_far_away_ends():
    grid, rows = full_grid(20, 0.1)
    rays = VoxelRays(torch.tensor([[-3e9, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.0]]), torch.zeros(1),
                     torch.tensor([4e9]), torch.tensor([0.5]), torch.zeros(1))
    assert np.isfinite(Marching(grid, rows.numpy(), rays, ball=Ball(True, 0.0, 2.0, 2.0, 10.0)).rest).all()


@pytest.mark.parametrize('seed', range(2))
def test_a_contracted_ray_ends_where_the_space_contracts_it_to(seed):
    """A dense shell: the depth of a ray is that of the point whose contraction is on the shell."""
    generator = torch.Generator().manual_seed(seed)
    grid = SparseGrid.of_cells(torch.zeros(3, dtype=torch.float64), 1.0, torch.ones(41, 41, 41, dtype=torch.bool))
    ball, centre = Ball(True, 20.0, 20.0, 20.0, 10.0), torch.full((3,), 20.0)
    directions = torch.randn(20, 3, generator=generator)
    rays = VoxelRays(centre + 5.0 * torch.rand(20, 3, generator=generator), directions, torch.zeros(20),
                     torch.full((20,), 1e3), torch.full((20,), 0.5), torch.zeros(20))
    rows = torch.full((grid.n_rows, CHANNELS), -3.0)
    rows[((grid.places.t() - 20.0).norm(dim=-1) > 16.0), 0] = 3.0  # a shell of 1.6 radii
    marching = Marching(grid, rows.numpy(), rays, ball=ball)
    depth = torch.from_numpy(marching.depth / (1.0 - marching.rest))
    points = (rays.origins + depth[:, None] * directions - centre) / 10.0
    assert (marching.rest < 0.01).all()
    assert (contracted(points).norm(dim=-1) - 1.6).abs().max() < 0.15  # a voxel and a half


@pytest.mark.parametrize('outside', [False, True])
def test_contracted_rays_that_jump_over_empty_blocks_see_what_rays_see_that_take_all_steps(outside):
    generator = torch.Generator().manual_seed(3)
    place = torch.stack(torch.meshgrid(*[torch.arange(82) + 0.5] * 3, indexing='ij'), -1)
    distance = (place - 40.0).norm(dim=-1)
    grid = SparseGrid.of_cells(torch.zeros(3, dtype=torch.float64), 1.0, (distance - 28.0).abs() < 2.5)
    ball, centre = Ball(True, 40.0, 40.0, 40.0, 20.0), torch.full((3,), 40.0)
    rows = 0.05 * torch.randn(grid.n_rows, CHANNELS, generator=generator)
    rows[:, 0] += 0.35  # half of the light goes through a shell of 1.4 radii
    starts, directions = torch.randn(2, 300, 3, generator=generator)
    starts = centre + (60.0 if outside else 8.0) * torch.nn.functional.normalize(starts, dim=-1)
    directions = centre + 10.0 * directions - starts if outside else directions
    rays = VoxelRays(starts, directions, torch.zeros(300), torch.full((300,), 1e4), torch.full((300,), 0.5),
                     torch.zeros(300))
    steps, jumps = (Marching(grid, rows.numpy(), rays, ball=ball, jumps=each) for each in (False, True))
    assert 0.02 < steps.rest.mean() < 0.8
    assert np.abs(steps.count - jumps.count).max() <= 4  # a ray meets the shell once or twice, or four times
    np.testing.assert_allclose(jumps.rest, steps.rest, atol=0.1)
    assert abs((jumps.rest - steps.rest).mean()) < 2e-3  # places of samples differ, but none is left out
    np.testing.assert_allclose(jumps.depth, steps.depth, rtol=0.1, atol=0.5)


def test_clearance_is_the_distance_to_the_nearest_block_in_plain_loops():
    blocks = np.zeros((14, 5, 6), np.int64)
    blocks[1, 2, 3], blocks[2, 4, 0] = 8, -1
    clearance, full = kernels.clearance_of(blocks), np.argwhere(blocks)
    for place in np.ndindex(*blocks.shape):
        assert clearance[place] == min(8, np.abs(full - place).max(1).min())


# Gradients


@pytest.mark.parametrize('seed', range(3))
def test_gradients_for_rows_are_those_of_autograd(seed):
    grid, rows = a_grid(seed)
    rays = certain(grid, rows, random_rays(200, seed))
    of_features, of_rest = mixture(len(rays.near), seed)
    marching = Marching(grid, rows.numpy(), rays).backward(of_features, of_rest)
    expected = gradients_of(grid, rows, rays, of_features, of_rest)
    for channel in range(CHANNELS):
        np.testing.assert_allclose(marching.gradients[:, channel], expected[:, channel], rtol=1e-3,
                                   atol=1e-4 * np.abs(expected[:, channel]).max())


@pytest.mark.parametrize('of', ['features', 'rest'])
def test_gradients_of_features_or_rest_alone_are_those_of_autograd(of):
    grid, rows = a_grid(5)
    rays = certain(grid, rows, random_rays(100, 5))
    of_features, of_rest = mixture(len(rays.near))
    (of_features if of == 'rest' else of_rest).zero_()
    marching = Marching(grid, rows.numpy(), rays).backward(of_features, of_rest)
    expected = gradients_of(grid, rows, rays, of_features, of_rest)
    np.testing.assert_allclose(marching.gradients, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert of == 'features' or (marching.gradients[:, 1:] == 0.0).all()


@pytest.mark.parametrize('contracts', [False, True])
def test_gradients_of_the_spread_are_those_of_autograd(contracts):
    grid, rows = a_grid(5)
    ball = Ball(True, 9.0, 6.0, 11.0, 5.0) if contracts else STRAIGHT
    rays = random_rays(100, 5)
    rays = certain(grid, rows, rays._replace(near=rays.near + 0.5), ball=ball)
    nothing, of_distortion = torch.zeros(len(rays.near)), mixture(len(rays.near))[1]
    no_features = torch.zeros(len(nothing), 15)
    marching = Marching(grid, rows.numpy(), rays, ball=ball).backward(no_features, nothing, of_distortion)
    expected = gradients_of(grid, rows, rays, no_features, nothing, ball, of_distortion)
    assert np.abs(expected[:, 0]).max() > 1e-3
    np.testing.assert_allclose(marching.gradients, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())


def test_the_spread_of_a_ray_is_the_sum_over_all_pairs_of_its_samples():
    grid, rows = a_grid(2)
    marching, last = Marching(grid, rows.numpy(), random_rays(50, 2)), max(SHAPE)
    assert (marching.count > 3).sum() > 10
    for r, n in enumerate(marching.count):
        weight, distance = marching.samples[0][r, :n, 0], marching.samples[2][r, :n, 5]
        pairs = weight[:, None] * weight * np.abs(distance[:, None] - distance)
        assert marching.distortion[r] == pytest.approx(pairs.sum(), abs=1e-5)
        assert (np.diff(distance) * last >= 0.499).all()  # samples are half a voxel apart


def test_half_way_to_the_depth_of_whole_gradients_a_sample_has_a_quarter():
    grid, rows = full_grid(20, 0.1)
    rays = along_x(0.0, 4.0, 4.4)  # one sample, in the middle of the step from 4.0 on
    features, rest = torch.ones(1, 15), torch.ones(1)
    whole, quarter = (Marching(grid, rows.numpy(), rays._replace(fade=torch.tensor([fade]))).backward(features, rest)
                      for fade in (0.0, 2.0 * 4.25))
    assert whole.count.tolist() == [1]
    assert np.abs(whole.gradients[:, [0, 1, 8]]).max(0).min() > 0.0
    np.testing.assert_allclose(quarter.gradients, 0.25 * whole.gradients, rtol=1e-5)


def test_rows_have_the_weight_of_the_heaviest_sample_around_them():
    grid, rows = a_grid()
    marching = Marching(grid, rows.numpy(), random_rays(40, 1)).backward(*mixture(40))
    expected = np.zeros(len(rows), np.float32)
    for r, n in enumerate(marching.count):
        for weight, lower in zip(marching.samples[0][r, :n, 0], marching.samples[1][r, :n]):
            for row in (*lower, *lower + 1):
                expected[row] = max(expected[row], weight)
    assert 0 < np.count_nonzero(expected) < len(rows)
    np.testing.assert_array_equal(marching.heaviest, expected)
    assert set(np.flatnonzero((marching.gradients != 0).any(1))) <= set(np.flatnonzero(expected))


# Neighbours


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_touched_rows_get_the_gradient_of_half_the_squared_differences_to_neighbours(axis):
    """That of a loss that autograd knows; rows at the end of the box have no neighbour at its beginning."""
    grid, rows = a_grid()
    weights = torch.linspace(0.5, 2.0, CHANNELS)
    marching = Marching(grid, rows.numpy(), random_rays(200, 0)).backward(*mixture(200))
    before, touched = marching.gradients.copy(), torch.from_numpy(marching.heaviest > 0)
    sums = marching.smooth(weights.numpy(), axis)
    whole = torch.zeros(*SHAPE, CHANNELS, dtype=torch.float64)
    has_row = grid.mask_of(torch.ones(grid.n_rows, dtype=torch.bool))
    whole[has_row] = rows.double()
    whole.requires_grad_()
    size = SHAPE[axis] - 1
    pairs = has_row.narrow(axis, 0, size) & has_row.narrow(axis, 1, size)
    difference = (whole.narrow(axis, 1, size) - whole.narrow(axis, 0, size))[pairs]
    (0.5 * weights * difference ** 2).sum().backward()
    expected = torch.where(touched[:, None], whole.grad[has_row], 0.0)
    assert 0 < touched.sum() < len(rows)
    np.testing.assert_allclose(marching.gradients - before, expected.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sums, marching.gradients.sum(0), rtol=1e-4, atol=1e-3)
    backend = plain(grid, rows)
    backend.rows.grad = torch.from_numpy(before)
    total = backend.smooth(weights, torch.tensor(axis))
    np.testing.assert_allclose(backend.rows.grad.numpy(), marching.gradients, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total, sums.sum(), rtol=1e-3)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_sums_of_gradients_are_not_finite_if_one_is_not(bad):
    grid, rows = a_grid()
    for row in (0, -1):
        marching = Marching(grid, rows.numpy(), random_rays(200, 0)).backward(*mixture(200))
        assert np.isfinite(marching.smooth(np.zeros(CHANNELS, np.float32), 0)).all()
        marching.gradients[np.flatnonzero(marching.heaviest)[row], 3] = bad
        with np.errstate(invalid='ignore'):
            assert np.isfinite(marching.smooth(np.zeros(CHANNELS, np.float32), 0)).tolist() == [
                channel != 3 for channel in range(CHANNELS)]


# Adam


def test_adam_over_several_steps_is_that_of_plain_pytorch_and_leaves_no_gradient():
    grid, rows = a_grid()
    rates = np.linspace(0.001, 0.02, CHANNELS, dtype=np.float32)
    ours = rows.numpy().copy(), np.zeros_like(rows.numpy()), np.zeros_like(rows.numpy())
    theirs = [torch.from_numpy(part).double() for part in (p.copy() for p in ours)]
    backend = plain(grid, theirs[0])
    untouched = np.ones(len(rows), bool)
    for step in range(1, 8):
        marching = Marching(grid, ours[0], random_rays(60, step)).backward(*mixture(60, step))
        backend.rows.grad = gradient = torch.from_numpy(marching.gradients.copy()).double()
        backend.heaviest.copy_(torch.from_numpy(marching.heaviest))
        heaviest, apply = marching.heaviest.copy(), step != 4
        touched, marching.strongest[::2] = heaviest > 0, 0.3
        before_strongest = marching.strongest.copy()
        assert ((gradient != 0).any(1).numpy() == touched).all()
        before = [part.copy() for part in ours]
        marching.adam(*ours[1:], rates, step, apply)
        state = {'step': torch.tensor(step), 'exp_avg': theirs[1], 'exp_avg_sq': theirs[2],
                 'strongest': torch.from_numpy(before_strongest)}
        backend.adam(state, torch.from_numpy(rates).double(), BETAS, EPSILON, torch.tensor(float(not apply)))
        assert (state['strongest'].numpy() == marching.strongest).all()
        assert backend.rows.grad is None
        assert not backend.heaviest.any()
        assert not marching.heaviest.any()
        assert not marching.gradients.any()
        assert (marching.strongest[::2] == np.maximum(heaviest[::2], np.float32(0.3))).all()
        assert (marching.strongest[1::2] == heaviest[1::2]).all()
        for now, then, expected in zip(ours, before, theirs):
            changed = (now != then).any(1)
            assert (changed == (touched & apply)).all()
            np.testing.assert_allclose(now, expected.numpy(), rtol=1e-5, atol=1e-6)
        untouched &= ~(touched & apply)
    assert 0 < untouched.sum() < len(rows)
    np.testing.assert_array_equal(ours[0][untouched], rows.numpy()[untouched])


def test_the_first_step_of_adam_moves_each_channel_by_its_rate_against_the_gradient():
    grid, rows = a_grid()
    rates = np.linspace(0.001, 0.02, CHANNELS, dtype=np.float32)
    marching = Marching(grid, rows.numpy().copy(), random_rays(50, 0)).backward(*mixture(50))
    gradient = marching.gradients.copy()
    marching.adam(np.zeros_like(marching.rows), np.zeros_like(marching.rows), rates, 1)
    clear = np.abs(gradient) > 1e-8
    expected = (rows.numpy() - rates * np.sign(gradient))[clear]
    np.testing.assert_allclose(marching.rows[clear], expected, rtol=0, atol=1e-5)
    assert clear.sum() > 1000


# Threads


def one_run(n_threads: int) -> list[np.ndarray]:
    """All arrays after three steps."""
    numba.set_num_threads(n_threads)
    grid, rows = a_grid()
    rows, rates = rows.numpy().copy(), np.full(CHANNELS, 0.01, np.float32)
    means, squares = np.zeros_like(rows), np.zeros_like(rows)
    arrays = []
    for step in range(1, 4):
        marching = Marching(grid, rows, random_rays(400, step)).backward(*mixture(400, step))
        arrays += [marching.count, marching.rest, marching.depth, marching.features, *marching.samples,
                   marching.gradients.copy(), marching.heaviest.copy()]
        marching.smooth(rates, step % 3)
        marching.adam(means, squares, rates, step)
    return [*arrays, rows, means, squares]


def differing() -> list[int]:
    """Numbers of threads with which some array has other bits than on one, in the first run or the second."""
    first = one_run(1)
    return [n_threads for n_threads in (1, 2, numba.config.NUMBA_NUM_THREADS) for _ in range(2)
            if any(a.tobytes() != b.tobytes() for a, b in zip(first, one_run(n_threads), strict=True))]


@pytest.mark.slow
def test_the_same_bits_come_out_on_any_number_of_threads_and_in_any_run():
    """In a process of its own: in this one there can be fewer threads."""
    done = subprocess.run([sys.executable, '-c', 'import test_grid_kernels; print(test_grid_kernels.differing())'],
                          cwd=Path(__file__).parent, capture_output=True, text=True,
                          env=os.environ | {'NUMBA_NUM_THREADS': '3', 'PYTHONPATH': str(Path(__file__).parents[3])})
    assert (done.stdout, done.stderr) == ('[]\n', '')
