"""Grids of a few cells, with known densities and colours, and rays through them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nerf.fields.grid.backend import Backend
from nerf.fields.grid.field import GridField
from nerf.fields.grid.schedule import GridSchedule
from nerf.fields.grid.torch_backend import TorchBackend
from nerf.fields.grid.training import GridTraining
from nerf.fields.interface import Target
from nerf.optimiser import Optimiser
from nerf.space import NDC, Bounded, Space, Unbounded
from run_nerf_helpers import Composite, Rays

COLOUR = torch.tensor([0.7, 0.4, 0.2])
CELLS = 8  # along each side of the first stage's cube, of side 2
N = CELLS + 1  # vertices
STAGES = f'0:{CELLS} 0.3:12 0.6:16'
BOX = Bounded(0.1, 2.0)
OPEN = Unbounded(0.1, 2.0, True, (0.2, -0.1, 0.3), 1.5)
FORWARD = NDC(height=10, width=10, focal=10.0)


def schedule_of(space: Space = BOX, **numbers) -> GridSchedule:
    """The default schedule of a space, with stages of a few cells."""
    return replace(GridSchedule.defaults(space, 20), **{'stages': STAGES} | numbers)


def kernels() -> type[Backend]:
    """Numba's backend; where it is absent, tests of it skip."""
    import pytest

    pytest.importorskip('numba')
    from nerf.fields.grid.numba_backend import NumbaBackend

    return NumbaBackend


def a_field(compiled: bool = True, space: Space = BOX, white: bool = True, seed: int = 0,
            dtype: torch.dtype = torch.float32, view_chunk: int = 10000, **numbers) -> GridField:
    """A field of the cube from -1 to 1 in ray coordinates; without bounds, of all of space."""
    half = 2.0 if space.contracts else 1.0
    box = np.array([[-half] * 3, [half] * 3]) / space.voxel_shape
    schedule = schedule_of(space, **numbers)
    return GridField(box, schedule.voxels(2.0 * half, 0.0), schedule, space, kernels() if compiled else TorchBackend,
                     white, seed, torch.device('cpu'), dtype, view_chunk)


def raw_of(density: Tensor, field: GridField) -> Tensor:
    """Raw values of densities above 0, in 1/grid unit: the inverse of the optical depth of a voxel."""
    optical = (density * field.grid.voxel).double()
    return ((torch.log(torch.expm1(optical)) - field.schedule.offset) / field.schedule.sharpness).float()


@torch.no_grad()
def fill(field: GridField, density, colour: Tensor = COLOUR, plain: bool = True) -> GridField:
    """Gives each vertex a density, by a function of points [M, 3], and one colour; plain: in all directions."""
    field.rows.zero_()
    field.rows[:, 0] = raw_of(density(field.grid.vertex_points()), field)
    field.rows[:, 1:4] = torch.logit(colour)
    if plain:
        for parameter in field.network[-1].parameters():
            parameter.zero_()
    return field


def even(density: float):
    """The same density at all points."""
    return lambda points: torch.full((len(points),), density)


def ball(points: Tensor, radius: float = 0.6, inside: float = 200.0, outside: float = 1e-6) -> Tensor:
    return torch.where(points.norm(dim=-1) < radius, inside, outside)


@torch.no_grad()
def scramble(field: GridField, seed: int = 1) -> GridField:
    """Random values in all rows, half of the vertices dense."""
    field.rows.normal_(generator=torch.Generator().manual_seed(seed))
    return field


def some_rays(count: int = 200, seed: int = 0) -> Rays:
    """Rays from a sphere of radius 3 to points near its centre."""
    generator = torch.Generator().manual_seed(seed)
    origins = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1) * 3.0
    directions = 1.2 * torch.rand(count, 3, generator=generator) - 0.6 - origins
    bound = torch.ones(count, 1)
    return Rays(origins, directions, torch.nn.functional.normalize(directions, dim=-1), 0.1 * bound, 2.0 * bound)


def one_ray(origin, direction, near: float = 0.0, far: float = 10.0) -> Rays:
    origins, directions = torch.tensor([origin]).float(), torch.tensor([direction]).float()
    return Rays(origins, directions, torch.nn.functional.normalize(directions, dim=-1), torch.tensor([[near]]),
                torch.tensor([[far]]))


def repeated(ray: Rays, count: int) -> Rays:
    return Rays(*(part.expand(count, -1) for part in ray))


def shown(field: GridField, rays: Rays) -> Composite:
    """The picture that the field's sampler makes of rays."""
    return field.sampler().render(rays).final


def numbers(n_rays: int, jitter: float = 0.0) -> tuple[Tensor, Tensor]:
    """Random numbers of a step, which are not random here."""
    return torch.full((n_rays,), jitter), torch.full((n_rays, 3), 0.5)


def take_step(training: GridTraining, rays: Rays, drawn: tuple[Tensor, Tensor], target: Target,
              rate: float = 1e-3, step: int = 1, optimiser: Optimiser | None = None) -> float:
    """One step of a training, by an optimiser of its own unless one is given; the loss."""
    optimiser = optimiser or Optimiser(training)
    optimiser.prepare(step, rate)
    optimiser.zero_grad()
    losses = training.losses(rays, drawn, target)
    optimiser.backward(losses.terms['mse'])
    optimiser.step({name: value.detach() for name, value in losses.terms.items()})
    return losses.terms['mse'].item()


def trained(training: GridTraining, steps: int, target: Tensor | None = None) -> list[float]:
    """Takes steps towards targets [200, 3], grey by default, with a fresh Adam for the network; the losses."""
    optimiser, generator = Optimiser(training), torch.Generator().manual_seed(3)
    target = Target(torch.full((200, 3), 0.5) if target is None else target)
    return [take_step(training, some_rays(seed=step), training.random_numbers(200, generator), target, 1e-3, step,
                      optimiser) for step in range(1, steps + 1)]
