"""Builds the grid of a scene, with the cells in which something can be."""

import itertools
import sys
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nerf.coverage import has_hull, inside_hull, knows_coverage
from nerf.fields.grid import torch_backend
from nerf.fields.grid.backend import Backend
from nerf.fields.grid.field import GridField
from nerf.fields.grid.schedule import GridSchedule
from nerf.fields.grid.sparse_grid import dilated
from nerf.fields.grid.training import prune
from nerf.scene import Scene
from run_nerf_helpers import Rays

HALF_DIAGONAL = 0.87  # of a cell, in voxels: the ball around it


def build_field(scene: Scene, schedule: GridSchedule, seed: int, device: torch.device, dtype: torch.dtype,
                view_chunk: int, supersample: int = 1, kernels: str = 'auto') -> GridField:
    """Grid over a scene's box. It begins with the visual hull, if images show a plain background, or with the cells in
    enough training views, as the schedule says. UserError: no cell is left."""
    space, cameras = scene.space, scene.training_cameras
    if not (space.closed or knows_coverage(scene)):  # rays end on the pictures' own background
        schedule = replace(schedule, slow_start=1.0)
    box = space.grid_box(cameras)
    pixel = float(space.pixel_sides(cameras).median()) * space.scale_at_centre
    field = GridField(box, schedule.voxels(float((box[1] - box[0]).max()), pixel), schedule, space,
                      choose_backend(device, kernels), scene.white_bkgd, seed, device, dtype, view_chunk, supersample,
                      pixel)
    if space.closed and not knows_coverage(scene):  # a view that meets nothing shows what no training view does
        field.backdrop = mean_colour(scene).to(device)
    if schedule.seen_by:
        views = (scene.spread_rays(scene.i_train[[i]], schedule.seen_rays) for i in range(len(scene.i_train)))
        prune(field, seen_cells(field, views, schedule.seen_by))
    if schedule.free_by and scene.free_space is not None:
        prune(field, ~free_cells(field, scene, schedule.free_by))
    if has_hull(scene):
        grid = field.grid
        cells = grid.cells.clone()
        cells[grid.cells] = inside_hull(scene, grid.centres(), HALF_DIAGONAL * grid.voxel).to(device)
        prune(field, cells)
    return field


def mean_colour(scene: Scene, every: int = 4) -> Tensor:
    """Mean colour [3] in [0, 1] of the training images, of every `every`-th pixel along both sides."""
    means = [scene.images[i][::every, ::every, :3].mean((0, 1)) for i in map(int, scene.i_train)]
    return torch.from_numpy(np.mean(means, 0) / 255.0).float()


@torch.no_grad()
def seen_cells(field: GridField, views: Iterable[Rays], seen_by: int) -> Tensor:
    """[X, Y, Z] bool: cells in views from their near bounds on, given rays spread over each view, at most two cells
    apart. In the unit ball of contracted space, or in a box, seen_by views must see a cell, or all if these are fewer:
    cells in one view alone could hold any fog in front of its camera."""
    grid, ball = field.grid, field.backend.rules.ball
    count = torch.zeros(grid.cells.shape, dtype=torch.int16, device=field.device)
    near = grid.cells.clone()
    if field.space.contracts:
        near[grid.cells] = grid.centres().norm(dim=-1) < 1.0
    for rays in views:
        rays = field.voxel_rays(Rays(*(part.to(field.device) for part in rays)))
        ray, t = torch_backend.samples(grid, rays, ball)
        seen, points = torch.zeros_like(near), rays.origins[ray] + t[:, None] * rays.directions[ray]
        seen.view(-1)[grid.cell_of(ball.contract(points))] = True
        count += dilated(seen)
    return (count > 0) & ((count >= min(seen_by, int(count.max()))) | ~near)


def free_cells(field: GridField, scene: Scene, free_by: int) -> Tensor:
    """[X, Y, Z] bool: kept cells in which `free_by` training views show nothing."""
    def world(points: Tensor) -> Tensor:
        return field.space.to_world(field.space.from_grid(points)).double()

    grid, cells = field.grid, torch.zeros_like(field.grid.cells)
    centres, radii = grid.centres().cpu(), torch.zeros(1)
    places = world(centres)
    for corner in itertools.product((-0.5, 0.5), repeat=3):  # far cells are long in the world, along rays most of all
        radii = torch.maximum(radii, (world(centres + grid.voxel * torch.tensor(corner)) - places).norm(dim=-1))
    through = scene.free_space.views_through(places.numpy(), radii.numpy(), scene.i_train)
    cells[grid.cells] = torch.from_numpy(through >= free_by).to(cells.device)
    return cells


def choose_backend(device: torch.device, kernels: str = 'auto') -> type[Backend]:
    """Fastest backend of a device, or PyTorch's for kernels 'torch'. A line tells that Numba is missing or compiles."""
    if device.type != 'cpu' or kernels == 'torch':
        return torch_backend.TorchBackend
    try:
        from nerf.fields.grid.kernels import compile_note
        from nerf.fields.grid.numba_backend import NumbaBackend
    except Exception as error:  # a missing or broken Numba
        print(f'the grid runs in plain PyTorch, many times slower: Numba cannot be used ({error}); '
              'pip install numba', file=sys.stderr)
        return torch_backend.TorchBackend
    if note := compile_note():
        print(note)
    return NumbaBackend
