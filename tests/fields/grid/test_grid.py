"""nerf/fields/grid/model.py: the sparse voxel grid as a model, compiled and in plain PyTorch."""

from __future__ import annotations

import copy
import io
import math

import numpy as np
import pytest
import torch
from conftest import assert_same, trainer_of
from torch import Tensor

import run_nerf
from nerf.contraction import Contraction, shrinkage
from nerf.fields.grid import model as grid
from nerf.fields.grid.model import GridModel, direction_polynomials
from nerf.fields.grid.torch_backend import OFFSET, SHARPNESS, Room
from nerf.files.packing import packed
from nerf.flags import parse_flags
from nerf.optimiser import Optimiser
from nerf.rendering import render_view
from nerf.runtime.errors import UserError
from run_nerf_helpers import Rays, composite, ray_points, stratified_z

pytest.importorskip('numba')

COLOUR = torch.tensor([0.7, 0.4, 0.2])
CELLS = 8  # along each side of the first stage's cube, of side 2
N = CELLS + 1  # vertices
STAGES = {0.0: CELLS, 0.3: 12, 0.6: 16}
BOTH = pytest.mark.parametrize('compiled', [True, False], ids=['kernels', 'plain'])


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Grids of a few cells in the first, second and third part of a run."""
    monkeypatch.setattr(grid, 'STAGES', STAGES)
    monkeypatch.setattr(grid, 'NDC_STAGES', STAGES)


def a_model(compiled: bool = True, n_iters: int = 20, white: bool = True, seed: int = 0, dtype=torch.float32,
            view_chunk: int = 10000, half: float = 1.0) -> GridModel:
    """A model of the cube from -half to half."""
    box = np.array([[-half] * 3, [half] * 3])
    return GridModel(box, n_iters, white, seed, torch.device('cpu'), dtype, view_chunk, compiled)


def unbounded(compiled: bool = True, n_iters: int = 20, seed: int = 0) -> GridModel:
    """A model of all of space, whose unit ball has radius 1.5 around (0.2, -0.1, 0.3)."""
    return GridModel(np.array([[-2.0] * 3, [2.0] * 3]), n_iters, True, seed, torch.device('cpu'), torch.float32, 10000,
                     compiled, Contraction((0.2, -0.1, 0.3), 1.5))


def in_ndc(compiled: bool = True) -> GridModel:
    """A model of the cube from -1 to 1 in normalised device coordinates."""
    box = np.array([[-1.0] * 3, [1.0] * 3])
    return GridModel(box, 20, True, 0, torch.device('cpu'), torch.float32, 10000, compiled, ndc=True)


def raw_of(density: Tensor, voxel: float) -> Tensor:
    """Raw values of densities above 0 in 1/scene unit: the inverse of what the model makes of them."""
    return (torch.log(torch.expm1((density * voxel).double())).float() - OFFSET) / SHARPNESS


@torch.no_grad()
def fill(model: GridModel, density, colour: Tensor = COLOUR, plain: bool = True) -> GridModel:
    """Gives each vertex a density, by a function of points [M, 3], and one colour; plain: in all directions."""
    points = model.grid.vertex_points()
    model.rows.zero_()
    model.rows[:, 0] = raw_of(density(points), model.grid.voxel)
    model.rows[:, 1:4] = torch.logit(colour)
    model.rows_changed()
    if plain:
        for parameter in model.network[-1].parameters():
            parameter.zero_()
    return model


def ball(points: Tensor, radius: float = 0.6, inside: float = 200.0, outside: float = 1e-6) -> Tensor:
    return torch.where(points.norm(dim=-1) < radius, inside, outside)


@torch.no_grad()
def scramble(model: GridModel, seed: int = 1) -> GridModel:
    """Random values in all rows, half of the vertices dense."""
    model.rows.normal_(generator=torch.Generator().manual_seed(seed))
    model.rows_changed()
    return model


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


def numbers(n_rays: int, jitter: float = 0.0) -> tuple[Tensor, Tensor]:
    """Random numbers of a step that are not random."""
    return torch.full((n_rays,), jitter), torch.full((n_rays, 3), 0.5)


def trained(model: GridModel, steps: int, target: Tensor | None = None) -> list[float]:
    """Takes steps towards targets, grey where there are none; the losses."""
    optimiser, losses = Optimiser(model), []
    generator = torch.Generator().manual_seed(3)
    for step in range(1, steps + 1):
        rays = some_rays(seed=step)
        optimiser.prepare(step, 1e-3)
        optimiser.zero_grad()
        loss = model(rays, model.random_numbers(len(rays.near), generator),
                     torch.full((len(rays.near), 3), 0.5) if target is None else target)
        optimiser.backward(loss['mse'])
        optimiser.step({name: value.detach() for name, value in loss.items()})
        losses.append(loss['mse'].item())
    return losses


# What it shows


@BOTH
@pytest.mark.parametrize('white', [True, False])
def test_a_ray_that_meets_nothing_shows_the_background(compiled, white):
    model = fill(a_model(compiled, white=white), ball)
    shown = model.render(one_ray([3.0, 3.0, 3.0], [0.0, 0.0, -1.0]))
    assert torch.equal(shown.rgb, torch.full((1, 3), float(white)))
    assert [shown.acc.item(), shown.depth.item(), shown.disp.item()] == [0.0, 0.0, 0.0]


@BOTH
@pytest.mark.parametrize('white', [True, False])
@pytest.mark.parametrize('scale', [1.0, 4.0])
def test_opacity_through_a_box_of_even_density_is_what_beer_and_lambert_say(compiled, white, scale):
    density = 0.8
    model = fill(a_model(compiled, white=white), lambda points: torch.full((len(points),), density))
    shown = model.render(one_ray([0.3, 0.2, 3.0], [0.0, 0.0, -scale]))  # two scene units long, whatever the scale
    acc = 1.0 - math.exp(-2.0 * density)
    assert shown.acc.item() == pytest.approx(acc, rel=1e-5)
    torch.testing.assert_close(shown.rgb[0], acc * COLOUR + (1.0 - acc) * white, rtol=1e-5, atol=1e-6)
    inside = np.linspace(0.0, 2.0, 20001)
    mean = np.trapezoid(density * np.exp(-density * inside) * (2.0 + inside), inside)
    assert scale * shown.depth.item() == pytest.approx(mean, abs=0.02)


@BOTH
def test_near_and_far_bound_what_a_ray_meets(compiled):
    model = fill(a_model(compiled), lambda points: torch.full((len(points),), 0.8))
    shown = model.render(one_ray([0.3, 0.2, 3.0], [0.0, 0.0, -1.0], near=2.5, far=3.0))
    assert shown.acc.item() == pytest.approx(1.0 - math.exp(-0.8 * 0.5), rel=1e-5)


@BOTH
def test_an_opaque_ball_has_its_colour_and_its_distance(compiled, monkeypatch):
    monkeypatch.setattr(grid, 'STAGES', {0.0: 24})
    model = fill(a_model(compiled), ball)
    rays = some_rays()
    nearest = torch.linalg.cross(rays.origins, rays.viewdirs).norm(dim=-1)  # of the ray to the centre
    hit, missed = nearest < 0.4, nearest > 0.6 + model.grid.voxel * 3 ** 0.5
    assert hit.sum() > 20
    assert missed.sum() > 5
    shown = model.render(rays)
    torch.testing.assert_close(shown.rgb[hit], COLOUR.expand(int(hit.sum()), 3), rtol=0, atol=2e-3)
    surface = (rays.directions.norm(dim=-1) * shown.depth)[hit]
    exact = ((rays.origins * -rays.viewdirs).sum(-1) - (0.6 ** 2 - nearest ** 2).clamp(min=0.0).sqrt())[hit]
    assert (surface - exact).abs().max() < 1.5 * model.grid.voxel
    assert shown.acc[hit].min() > 0.998
    assert shown.acc[missed].max() < 1e-3


@BOTH
def test_density_and_radiance_are_what_rays_show(compiled, monkeypatch):
    monkeypatch.setattr(grid, 'STAGES', {0.0: 24})
    model = fill(a_model(compiled), lambda points: 0.2 + (1.0 + points[:, 0]) ** 2 + torch.rand(
        len(points), generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        model.rows[:, 1:4].normal_(generator=torch.Generator().manual_seed(4))
    rays = some_rays(60)
    z = stratified_z(rays.near, rays.far, 3000)
    points = ray_points(rays, z)
    rgb, density = model.radiance(points, rays.viewdirs)
    torch.testing.assert_close(model.density(points.reshape(-1, 3)).reshape(density.shape), density)
    expected, shown = composite(rgb.detach(), density, z, rays.directions, white_bkgd=True), model.render(rays)
    torch.testing.assert_close(shown.acc, expected.acc, rtol=0, atol=5e-3)
    torch.testing.assert_close(shown.rgb, expected.rgb, rtol=0, atol=1e-2)
    torch.testing.assert_close(shown.depth, expected.depth, rtol=0, atol=2e-2)
    assert shown.acc.max() > 0.8


@BOTH
def test_colour_depends_on_the_direction_through_the_network_for_points_as_for_rays(compiled):
    model = fill(a_model(compiled), lambda points: torch.full((len(points),), 500.0), plain=False)
    with torch.no_grad():
        model.network[-1].weight.mul_(5.0)
        model.rows[:, 4:] = torch.linspace(-1.0, 1.0, 12)
    rays = some_rays(50)
    shown = model.render(rays)
    colours = model.radiance(torch.zeros(50, 1, 3), rays.viewdirs)[0][:, 0].detach()
    torch.testing.assert_close(shown.rgb, colours, rtol=0, atol=5e-3)  # a ray ends before all of its light is gone
    assert colours.std(0).min() > 0.01
    assert (colours != COLOUR).all(-1).any()


@BOTH
def test_density_and_radiance_of_a_scene_without_bounds_are_what_rays_show(compiled, monkeypatch):
    monkeypatch.setattr(grid, 'STAGES', {0.0: 48})
    monkeypatch.setattr(grid, 'LEAST', (1e-6, 1e-6))
    model = fill(unbounded(compiled), lambda points: torch.where(points.norm(dim=-1) > 1.7, 1e-6, 0.3 + 0.2 * (
        2.0 + points[:, 0])))
    with torch.no_grad():
        model.rows[:, 1:4] = model.grid.vertex_points()  # colours change slowly
    directions = some_rays(60).directions
    origins = torch.tensor([0.2, -0.1, 0.3]).expand(60, 3)  # density has no direction away from the centre or across
    rays = Rays(origins, directions, torch.nn.functional.normalize(directions, dim=-1), torch.full((60, 1), 0.1),
                torch.full((60, 1), 9.0))
    z = 0.1 + torch.logspace(-3.0, 1.3, 4000).expand(60, 4000)
    rgb, density = model.radiance(ray_points(rays, z), rays.viewdirs)
    torch.testing.assert_close(model.density(ray_points(rays, z).reshape(-1, 3)).reshape(density.shape), density)
    x = model.contraction.from_centre(ray_points(rays, z))
    turned = shrinkage(x, rays.directions[:, None].expand_as(x)) / 1.5 / model.contraction.scale(ray_points(rays, z))
    density[:, -1] = 0.0  # composite takes the last interval for endless
    expected = composite(rgb.detach(), density * turned, z, rays.directions, white_bkgd=True)
    shown = model.render(rays)
    torch.testing.assert_close(shown.acc, expected.acc, rtol=0, atol=2e-2)  # steps far away are a little short
    torch.testing.assert_close(shown.rgb, expected.rgb, rtol=0, atol=2e-2)
    torch.testing.assert_close(shown.depth, expected.depth, rtol=0.05, atol=2e-2)
    assert 0.3 < shown.acc.min() < shown.acc.max() < 1.0
    near = x.norm(dim=-1) < 1.0
    assert torch.allclose(turned[near], torch.ones(()))  # in the ball density is that of a box
    assert turned.min() < 0.2


@BOTH
def test_rays_of_a_scene_without_bounds_go_on_behind_their_far_bound(compiled, monkeypatch):
    monkeypatch.setattr(grid, 'STAGES', {0.0: 24})
    model = fill(unbounded(compiled), lambda points: torch.where(points.norm(dim=-1) > 1.8, 200.0, 1e-6))
    shown = model.render(one_ray([0.2, -0.1, 0.3], [0.0, 0.0, -2.0], far=1.0))
    assert shown.acc.item() > 0.99
    u = 2.0 * shown.depth.item() / 1.5  # the shell at 1.8, give or take a voxel of 1/6, is at 1 / (2 - 1.8)
    assert 1.0 / (2.0 - 1.8 + 1 / 6) < u < 1.0 / (2.0 - 1.8 - 1 / 12)


def test_there_is_no_density_outside_the_box_nor_in_cells_that_were_dropped():
    model = fill(a_model(), lambda points: torch.full((len(points),), 3.0))
    cells = model.grid.cells.clone()
    cells[: CELLS // 2] = False
    model.keep(cells)
    points = torch.tensor([[0.5, 0.5, 0.5], [0.999, -0.999, 0.999], [-0.5, 0.5, 0.5], [1.001, 0.5, 0.5],
                           [0.5, 7.0, 0.0], [0.5, 0.5, -1.1]])
    expected = torch.tensor([3.0, 3.0, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(model.density(points), expected)
    torch.testing.assert_close(model.radiance(points[None], torch.tensor([[0.0, 0.0, 1.0]]))[1][0], expected)
    array = model.density_array(points.numpy())
    assert (array.dtype, array.tolist()) == (np.float32, model.density(points).tolist())


@BOTH
def test_a_view_is_drawn_tile_by_tile_and_is_what_its_rays_show(compiled):
    model = fill(a_model(compiled, view_chunk=70), ball)
    rays = some_rays(200)
    done = [int(picture.final.sum()) for picture in model.show(rays, 20, 10)]
    assert done == [70, 140, 200]
    *_, picture = model.show(rays, 20, 10)
    shown = model.render(rays)
    for name in ('rgb', 'depth', 'acc'):
        torch.testing.assert_close(getattr(picture, name), getattr(shown, name), rtol=0, atol=1e-6)


def test_histograms_are_of_densities_where_there_are_any():
    model = fill(a_model(), ball)
    density = model.histograms(some_rays())['density']
    assert density.min() > 0
    assert density.max() == pytest.approx(200.0, rel=1e-4)
    assert [len(part) for part in model.histograms(one_ray([9.0, 9.0, 9.0], [1.0, 0.0, 0.0])).values()] == [0] * 4


def test_histograms_of_colours_are_of_what_is_dense():
    model = fill(a_model(), ball)
    values = model.histograms(some_rays())
    assert [*values] == ['density', 'red', 'green', 'blue']
    n_dense = int((values['density'] > grid.THIN / model.grid.voxel).sum())
    assert 0 < n_dense < len(values['density'])
    for name, colour in zip(('red', 'green', 'blue'), COLOUR):
        torch.testing.assert_close(values[name], colour.expand(n_dense))


@BOTH
def test_scalars_are_the_grids_size_its_occupied_share_and_the_last_steps_samples(compiled):
    model = fill(a_model(compiled), lambda points: torch.full((len(points),), 0.5))
    assert model.scalars() == {'rows': N ** 3, 'occupied_share': 1.0, 'voxel': 0.25}
    model.keep(torch.arange(N)[:, None, None].expand(N, N, N) < 2)  # a slab of two cells
    rays = Rays(*(part.expand(3, -1) for part in one_ray([-0.7, 0.1, 3.0], [0.0, 0.0, -1.0])))
    model(rays, numbers(3, 0.5), torch.zeros(3, 3))
    assert model.scalars() == {'rows': 3 * N ** 2, 'occupied_share': 0.25, 'voxel': 0.25, 'rays_per_step': 3,
                               'samples_per_ray': 2 * CELLS}


def test_direction_polynomials_are_orthogonal_over_the_sphere():
    cosine, weight = np.polynomial.legendre.leggauss(8)
    angle = 2 * np.pi * (np.arange(16) + 0.5) / 16
    z, phi = np.broadcast_arrays(cosine[:, None], angle)
    sine = np.sqrt(1.0 - z ** 2)
    directions = torch.from_numpy(np.stack([sine * np.cos(phi), sine * np.sin(phi), z], -1).reshape(-1, 3))
    values = direction_polynomials(directions).numpy()
    products = np.einsum('n,ni,nj->ij', np.repeat(weight, 16) / 32, values, values)
    assert values.shape == (128, 16)
    np.testing.assert_allclose(products, np.diag(products.diagonal()), atol=1e-12)
    assert products.diagonal().min() > 5e-3
    assert products[0, 0] == pytest.approx(1.0)


# A training step


@BOTH
def test_the_loss_is_the_error_of_what_rays_show(compiled):
    model = fill(a_model(compiled), ball)
    rays, target = some_rays(), torch.rand(200, 3, generator=torch.Generator().manual_seed(5))
    losses = model(rays, numbers(200, 0.5), target)
    assert [*losses] == [*model.loss_names] == ['mse']
    assert losses['mse'].item() == pytest.approx((model.render(rays).rgb - target).square().mean().item(), rel=1e-5)


@BOTH
def test_training_lowers_the_loss(compiled):
    losses = trained(a_model(compiled), 12)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize('white', [True, False])
def test_kernels_and_plain_pytorch_train_the_same_grid(white):
    fast, plain = a_model(True, white=white), a_model(False, white=white)
    for model in (fast, plain):
        scramble(model)
    losses = [trained(model, 5) for model in (fast, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    apart = (fast.rows - plain.rows).abs().amax(-1)
    assert apart.median() < 1e-5
    assert apart.max() < 2e-2  # Adam makes a full step of a gradient that is all rounding
    torch.testing.assert_close(fast.render(some_rays()).rgb, plain.render(some_rays()).rgb, rtol=0, atol=2e-3)
    for ours, theirs in zip(fast.network.parameters(), plain.network.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
    assert fast.n_rays_of_step == plain.n_rays_of_step


@BOTH
def test_only_rows_that_rays_touch_change(compiled):
    model = fill(a_model(compiled), lambda points: torch.full((len(points),), 0.5))
    before, points = model.rows.detach().clone(), model.grid.vertex_points()
    optimiser, rays = Optimiser(model), one_ray([0.1, 0.1, 3.0], [0.0, 0.0, -1.0])
    optimiser.prepare(1, 1e-3)
    optimiser.backward(model(rays, numbers(1), torch.zeros(1, 3))['mse'])
    optimiser.step({'mse': torch.zeros(())})
    changed = (model.rows != before).any(-1)
    beside = ((points[:, :2] - 0.125).abs() < 0.126).all(-1)  # the corners of cells from 0 to 0.25 in x and y
    assert torch.equal(changed, beside)
    assert torch.equal((model.squares > 0).any(-1), beside)
    assert torch.equal(model.means[~beside], torch.zeros_like(model.means[~beside]))


@BOTH
@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_a_step_with_a_loss_that_is_not_finite_changes_nothing(compiled, bad):
    model = scramble(a_model(compiled))
    trained(model, 2)
    before = copy.deepcopy([model.rows.detach(), model.means, model.squares, *model.network.parameters()])
    trained(model, 1, torch.full((200, 3), bad))
    assert_same(before, [model.rows.detach(), model.means, model.squares, *model.network.parameters()])
    assert math.isfinite(trained(model, 2)[-1])  # and nothing of its gradient is left
    assert model.rows.isfinite().all()


@BOTH
def test_rays_of_a_scene_without_bounds_and_in_ndc_are_shown_on_the_drawn_background_without_alpha_too(compiled):
    background = torch.tensor([[0.1, 0.5, 0.9], [1.0, 0.0, 0.3]])
    for make, opaque in ((unbounded, True), (in_ndc, True), (a_model, False)):
        model = fill(make(compiled), lambda points: torch.full((len(points),), 1e-6))
        rays = Rays(*(torch.cat([part, part]) for part in one_ray([0.1, 0.1, 0.5], [0.0, 0.0, -1.0], far=1.0)))
        loss = model(rays, (torch.full((2,), 0.5), background), torch.ones(2, 3))['mse']
        torch.testing.assert_close(loss, ((background - 1.0) ** 2).mean() if opaque else torch.zeros(()), atol=1e-4,
                                   rtol=0)


@BOTH
def test_in_ndc_depth_has_a_quarter_of_the_cells_and_things_are_where_they_are(compiled, monkeypatch):
    monkeypatch.setattr(grid, 'NDC_STAGES', {0.0: 80})
    model = in_ndc(compiled)
    assert model.grid.cells.shape == (81, 81, 21)
    model = fill(model, lambda points: torch.where(points[:, 2] < 0.25 * 0.3, 300.0, 1e-6))  # stretched places
    x, y = torch.linspace(-0.9, 0.9, 30), torch.linspace(0.9, -0.9, 30)
    ahead = torch.stack([0.3 * y, 0.2 * x, -torch.ones(30)], -1)
    rays = Rays(torch.stack([x, y, torch.ones(30)], -1), ahead, torch.nn.functional.normalize(ahead, dim=-1),
                torch.zeros(30, 1), torch.full((30, 1), 2.0))
    shown = model.render(rays)
    torch.testing.assert_close(shown.acc, torch.ones(30), rtol=0, atol=2e-3)
    torch.testing.assert_close(shown.depth, torch.full((30,), 0.7), rtol=0, atol=0.12)  # a cell is 0.1 deep
    here = torch.tensor([[0.3, -0.4, 0.5], [0.3, -0.4, 0.1], [0.3, -0.4, -0.9], [0.3, -0.4, -1.1]])
    density = model.density(here)
    assert (density > 50.0).tolist() == [False, True, True, False]
    torch.testing.assert_close(density[1], torch.tensor(300.0 * 0.25 ** (1 / 3)), rtol=1e-3, atol=0)


@BOTH
@pytest.mark.parametrize('covered', [True, False])
def test_density_starts_slowly_only_before_random_backgrounds(compiled, covered):
    model = a_model(compiled, white=True)
    jitter, background = numbers(1, 0.5)
    ray = one_ray([0.3, 0.2, 3.0], [0.0, 0.0, -1.0])
    target = torch.tensor([[0.1, 0.1, 0.1, 1.0]]) if covered else torch.tensor([[0.1, 0.1, 0.1]])
    before = model.rows.detach().clone()
    model(ray, (jitter, background), target)['mse'].backward()
    model.apply_gradients(torch.tensor(1e-3), torch.tensor(True), torch.ones(()))
    change = (model.rows.detach() - before).abs().amax(0)
    share = change[0] / change[1]  # of density's and of a colour's first step by Adam, whose full rates are equal
    assert share.item() == pytest.approx(grid.SLOW_START + 1.0 / grid.FEWEST_PRUNE if covered else 1.0, rel=1e-3)


@BOTH
@pytest.mark.parametrize('steps', [1, 2, 3])
def test_touched_rows_are_pulled_towards_their_neighbours_along_one_axis(compiled, steps, monkeypatch):
    """As strongly as here, whatever the ray should show. Axes take turns: y, z, x."""
    monkeypatch.setattr(grid, 'SMOOTHNESS', {False: (1e4, 1e4)})
    model = fill(a_model(compiled), lambda points: torch.full((len(points),), 0.8))
    model.adam_steps.fill_(steps - 1)
    axis, points = steps % 3, model.grid.vertex_points()
    with torch.no_grad():
        model.rows[:, 5] = points[:, axis] ** 2  # curved along this axis alone
    model.rows_changed()
    before = model.rows.detach().clone()
    ray = one_ray([0.3, 0.2, 3.0], [0.0, 0.0, -1.0])
    model(ray, numbers(1, 0.5), torch.zeros(1, 3))['mse'].backward()
    model.apply_gradients(torch.tensor(1e-3), torch.tensor(True), torch.ones(()))
    change = (model.rows.detach() - before)[:, 5]
    changed = change != 0
    assert changed.sum() >= 4
    assert (change[changed & (points[:, axis].abs() < 0.9)] > 0.0).all()  # up, in a valley


def test_scenes_that_end_on_something_everywhere_are_smoothed_more():
    for model, (density, others) in ((a_model(), grid.SMOOTHNESS[False]), (unbounded(), grid.SMOOTHNESS[True]),
                                     (in_ndc(), grid.SMOOTHNESS[True])):
        torch.testing.assert_close(model.smoothness, torch.tensor([density] + 15 * [others]))
    assert grid.SMOOTHNESS[True] > grid.SMOOTHNESS[False]


def test_in_plain_pytorch_gradients_are_divided_by_their_scale_and_skipped_where_infinite():
    changes = []
    for factor, scale in ((1.0, 1.0), (2.0 ** 16, 2.0 ** 16), (torch.inf, 2.0 ** 16)):
        model = fill(a_model(False), lambda points: torch.full((len(points),), 0.8))
        before = model.rows.detach().clone()
        loss = model(one_ray([0.3, 0.2, 3.0], [0.0, 0.0, -1.0]), numbers(1, 0.5), torch.zeros(1, 3))['mse']
        (factor * loss).backward()
        model.apply_gradients(torch.tensor(1e-3), torch.tensor(True), torch.tensor(scale))
        changes.append(model.rows.detach() - before)
        assert torch.isfinite(model.means).all()
    torch.testing.assert_close(changes[0], changes[1])
    assert changes[0].any()
    assert not changes[2].any()


@BOTH
def test_pixels_whose_covered_share_is_known_are_compared_on_the_drawn_background(compiled):
    model = fill(a_model(compiled, white=True), lambda points: torch.full((len(points),), 0.8))
    jitter, background = numbers(4, 0.5)
    background[:] = torch.tensor([[0.1, 0.5, 0.9], [1.0, 0.0, 0.3], [0.2, 0.2, 0.2], [0.1, 0.5, 0.9]])
    ray = one_ray([0.3, 0.2, 3.0], [0.0, 0.0, -1.0])
    rays = Rays(*(part.expand(4, -1) for part in ray))
    straight = torch.tensor([0.2, 0.4, 0.6])
    target = torch.tensor([[0.2, 0.4, 0.6, -0.1], [1.0, 1.0, 1.0, 0.0], [0.3, 0.2, 0.1, 1.0],
                           [*(0.25 * straight + 0.75), 0.25]])  # unknown, empty, opaque, and a quarter of it covered
    acc = 1.0 - math.exp(-1.6)
    behind = torch.stack([torch.ones(3), *background[1:]])
    wanted = torch.stack([straight, background[1], target[2, :3], 0.25 * straight + 0.75 * background[3]])
    loss = model(rays, (jitter, background), target)['mse']
    assert loss.item() == pytest.approx((acc * COLOUR + (1.0 - acc) * behind - wanted).square().mean().item(), rel=1e-4)


def test_the_optimiser_has_the_network_in_one_group_and_no_rows():
    model = a_model()
    group, = model.parameter_groups()
    assert group['rate'] == 1.0
    assert [*map(id, group['params'])] == [*map(id, model.network.parameters())]
    assert id(model.rows) in map(id, model.parameters())


def test_random_numbers_follow_from_the_generator():
    model = a_model()
    one, two = (model.random_numbers(9, torch.Generator().manual_seed(4)) for _ in range(2))
    assert_same(one, two)
    assert [part.shape for part in one] == [(9,), (9, 3)]
    assert all(((part >= 0) & (part < 1)).all() for part in one)


@BOTH
def test_a_step_gets_more_rays_where_they_keep_few_samples_and_fewer_where_many(compiled, monkeypatch):
    model = scramble(a_model(compiled))
    rays, target = some_rays(1024), torch.zeros(1024, 3)

    def next_step(samples: float) -> int:
        monkeypatch.setattr(grid, 'SAMPLES', samples)
        model.n_rays_of_step = 1024
        model(rays, numbers(1024), target)
        return model.rays_per_step(10 ** 6)
    assert next_step(1e9) == 1280
    assert next_step(1.0) == 819
    kept = int(model._march(rays, torch.zeros(1024)).count.sum())
    assert next_step(1.1 * kept) == pytest.approx(1.1 * 1024, abs=1)
    assert model.rays_per_step(100) == 100
    for _ in range(40):
        monkeypatch.setattr(grid, 'SAMPLES', 1e9)
        model(rays, numbers(1024), target)
    assert model.rays_per_step(10 ** 6) == grid.RAYS[1]


def as_captured(model: GridModel, in_cells: int, kept: int, monkeypatch) -> GridModel:
    """The model with a step like a GPU's."""
    monkeypatch.setattr(grid, 'ROOM', Room(in_cells, kept))
    model.captured = True
    return model


def loss_and_gradient(model: GridModel, rays: Rays, target: Tensor) -> tuple[float, Tensor, Tensor]:
    model.rows.grad = None
    loss = model(rays, numbers(len(target), 0.3), target)['mse']
    loss.backward()
    return loss.item(), model.rows.grad, model.strongest.clone()


def test_a_step_with_room_for_all_samples_is_that_of_lists_as_long_as_needed(monkeypatch):
    model, rays, target = scramble(a_model(False)), some_rays(300), torch.rand(300, 3)
    loss, gradient, strongest = loss_and_gradient(model, rays, target)
    samples = int(model._march(rays, torch.full((300,), 0.3)).count.sum())
    model.strongest.zero_()
    found = loss_and_gradient(as_captured(model, 20000, samples + 1, monkeypatch), rays, target)
    assert found[0] == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(found[1], gradient, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(found[2], strongest, rtol=1e-5, atol=0)
    assert model.scalars()['rays_per_step'] == 300
    assert model.scalars()['samples_per_ray'] == pytest.approx(samples / 300)
    assert model.rays_per_step(10 ** 6) == grid.RAYS[1]


@pytest.mark.parametrize('scarce', ['in_cells', 'kept'])
def test_a_step_with_too_little_room_is_that_of_its_first_rays_alone(scarce, monkeypatch):
    model, rays, target = scramble(a_model(False)), some_rays(300), torch.rand(300, 3)
    room = {'in_cells': 20000, 'kept': 20000} | {scarce: 1500}
    loss, gradient, strongest = loss_and_gradient(as_captured(model, **room, monkeypatch=monkeypatch), rays, target)
    n_whole = int(model.scalars()['rays_per_step'])
    assert 20 < n_whole < 250
    model.captured = False
    model.strongest.zero_()
    first = loss_and_gradient(model, rays.part(slice(n_whole)), target[:n_whole])
    assert first[0] == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(first[1], gradient, rtol=1e-4, atol=1e-8)
    assert (strongest >= first[2] - 1e-6).all()  # a part of one more ray has been looked at


def test_a_step_with_room_in_contracted_space_is_near_to_that_of_uneven_steps(monkeypatch):
    model = fill(unbounded(False), lambda points: 3.2 + torch.sin(3.0 * points).sum(-1))
    rays, target = some_rays(300), torch.rand(300, 3)
    loss, gradient, _ = loss_and_gradient(model, rays, target)
    samples = model.scalars()['samples_per_ray']
    found = loss_and_gradient(as_captured(model, 60000, 30000, monkeypatch), rays, target)
    assert found[0] == pytest.approx(loss, rel=0.01)
    assert model.scalars()['samples_per_ray'] == pytest.approx(samples, rel=0.08)
    assert torch.cosine_similarity(found[1].flatten(), gradient.flatten(), 0) > 0.98


@BOTH
def test_bf16_is_of_the_network_alone_and_near_to_fp32(compiled):
    exact, short = (scramble(a_model(compiled, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16))
    shown = [model.render(some_rays()) for model in (exact, short)]
    assert_same(shown[0].acc, shown[1].acc)
    assert shown[1].rgb.dtype == torch.float32
    torch.testing.assert_close(shown[1].rgb, shown[0].rgb, rtol=0, atol=0.02)
    assert not torch.equal(*(part.rgb for part in shown))


def test_another_seed_is_another_network():
    first, same, other = (a_model(seed=seed).network[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


# Pruning and stages


@BOTH
def test_cells_that_no_view_sees_are_dropped_and_in_the_ball_those_that_one_alone_does(compiled, monkeypatch):
    monkeypatch.setattr(grid, 'STAGES', {0.0: 24})
    model, spread = unbounded(compiled), torch.linspace(-0.5, 0.5, 33)
    y, z = (part.flatten() for part in torch.meshgrid(spread, spread, indexing='ij'))
    views = []
    for side in (-1.0, 1.0):  # both look to +x, the second from farther right
        origins = torch.tensor([[0.6 * (1.0 + side), 0.0, 0.0]]).expand(len(y), 3)
        directions = torch.stack([torch.ones_like(y), y, z], -1)
        bounds = torch.full((len(y), 1), 0.75), torch.full((len(y), 1), 2.0)
        views.append(Rays(origins, directions, torch.nn.functional.normalize(directions, dim=-1), *bounds))
    model.keep_seen(views)

    def kept(x: float, y: float = 0.0, z: float = 0.0) -> bool:
        return bool(model.grid.holds(model.contraction(torch.tensor([[x, y, z]]))))
    assert [kept(x) for x in (-1.0, 0.3, 1.2)] == [False] * 3  # behind, before a near bound, seen by the first alone
    assert all(kept(x) for x in (2.3, 10.0, 1000.0))
    assert not kept(20.0, 15.0)
    assert kept(20.0, 8.0)
    assert not kept(0.0, 1000.0)
    one = unbounded(compiled)
    one.keep_seen(views[:1])  # there is no second view that could see them
    assert bool(one.grid.holds(one.contraction(torch.tensor([[1.2, 0.0, 0.0]]))))


def test_dropping_all_cells_is_one_line_and_changes_nothing():
    model = a_model()
    with pytest.raises(UserError, match='the grid is empty') as error:
        model.keep(torch.zeros_like(model.grid.cells))
    assert '\n' not in str(error.value)
    assert len(model.rows) == (CELLS + 1) ** 3


@BOTH
def test_rows_stay_with_their_vertices_and_adam_begins_anew(compiled):
    model = scramble(a_model(compiled))
    trained(model, 2)
    before = dict(zip(map(tuple, model.grid.vertex_points().tolist()), model.rows.detach().clone()))
    model.keep(torch.rand(model.grid.cells.shape, generator=torch.Generator().manual_seed(6)) < 0.1)
    assert 8 < len(model.rows) < len(before)
    for point, row in zip(model.grid.vertex_points().tolist(), model.rows.detach()):
        assert torch.equal(row, before[tuple(point)])
    assert [model.adam_steps, bool(model.means.any()), bool(model.squares.any())] == [0, False, False]
    assert math.isfinite(trained(model, 1)[0])


@BOTH
def test_pruning_drops_thin_cells_and_changes_no_view(compiled, monkeypatch):
    monkeypatch.setattr(grid, 'FEWEST_PRUNE', 5)
    model = fill(a_model(compiled), lambda points: ball(points, radius=0.4))
    before = model.render(some_rays())
    assert model.after_step(4, None) == []
    line, = model.after_step(5, None)
    assert line == f'step 5: pruned {(CELLS + 1) ** 3} to {len(model.rows)} vertices'
    assert len(model.rows) < 0.8 * (CELLS + 1) ** 3
    points = model.grid.vertex_points()
    dense = (points.norm(dim=-1) < 0.4).nonzero()
    assert len(dense) == 19  # of 3 x 3 x 3, 0.25 apart: the corners are 0.433 from the centre
    after = model.render(some_rays())
    for name in ('rgb', 'acc', 'depth'):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=0, atol=1e-5)


@BOTH
def test_a_stage_has_smaller_voxels_of_the_same_optical_depth_and_colour_and_adam_begins_anew(compiled, monkeypatch):
    monkeypatch.setattr(grid, 'STAGES', {0.0: CELLS, 0.5: 2 * CELLS})
    monkeypatch.setattr(grid, 'THIN', -1.0)
    model = scramble(a_model(compiled))
    trained(model, 2)
    points = 2.0 * torch.rand(500, 3, generator=torch.Generator().manual_seed(7)) - 1.0
    before, colours = model.density(points), model.radiance(points[None], torch.tensor([[0.0, 0.0, 1.0]]))[0]
    line, = model.after_step(10, None)
    assert line.startswith('step 10: grid      4,913 of 17x17x17 vertices, 0.125 apart')
    assert (model.stage, model.adam_steps, len(model.rows)) == (1, 0, 17 ** 3)
    assert not model.means.any()
    assert not model.squares.any()
    torch.testing.assert_close(model.density(points) * 0.125, before * 0.25, rtol=1e-3, atol=1e-4)  # of a voxel
    torch.testing.assert_close(model.radiance(points[None], torch.tensor([[0.0, 0.0, 1.0]]))[0], colours,
                               rtol=0, atol=1e-4)
    assert math.isfinite(trained(model, 1)[0])


def test_stages_follow_each_other_over_the_run_and_none_comes_after_its_last_step():
    model = fill(a_model(n_iters=30), ball)
    said = {step: lines for step in range(1, 31) if (lines := model.after_step(step, None))}
    stages = {step: lines for step, lines in said.items() if 'grid' in lines[0]}
    assert [*stages] == [9, 18]
    assert '0.1667 apart' in stages[9][0]
    assert '0.125 apart' in stages[18][0]
    assert len(said) > 2
    assert all(lines[0].startswith(f'step {step}: ') and len(lines) == 1 for step, lines in said.items())
    assert 30 not in said
    assert model.stage == 2
    assert a_model(n_iters=1).after_step(1, None) == []


def test_a_short_run_keeps_its_first_grid():
    model = a_model(n_iters=3)  # all of it is still thin
    assert [model.after_step(step, None) for step in (1, 2, 3)] == [[], [], []]
    assert len(model.rows) == (CELLS + 1) ** 3


def test_a_grid_has_no_more_vertices_than_it_may(monkeypatch):
    monkeypatch.setattr(grid, 'STAGES', {0.0: CELLS, 0.5: 10 * CELLS})
    monkeypatch.setattr(grid, 'MOST_ROWS', 20000)
    model = fill(a_model(), lambda points: torch.full((len(points),), 5.0))
    model.after_step(10, None)
    assert 15000 < len(model.rows) <= 20000


@BOTH
def test_what_is_hidden_from_all_rays_is_pruned(compiled):
    """A slab in front of another: rays from above meet the upper one alone."""
    model = fill(a_model(compiled), lambda points: torch.where(points[:, 2].abs() > 0.3, 400.0, 1e-6))
    x, y = (part.flatten() for part in torch.meshgrid(torch.linspace(-0.95, 0.95, 40), torch.linspace(-0.95, 0.95, 40),
                                                      indexing='ij'))
    down = torch.tensor([[0.0, 0.0, -1.0]]).expand(1600, 3)
    rays = Rays(torch.stack([x, y, torch.full_like(x, 3.0)], -1), down, down, torch.zeros(1600, 1),
                torch.full((1600, 1), 10.0))
    model(rays, numbers(1600, 0.5), torch.zeros(1600, 3))['mse'].backward()
    model.apply_gradients(torch.tensor(0.0), torch.tensor(True), torch.ones(()))
    assert 0.5 < model.strongest.max() <= 1.0
    model.adam_steps.fill_(model.n_iters)
    kept = model.grid.vertex_points()[:, 2]
    assert kept.min() < -0.9
    model.after_step(19, None)
    kept = model.grid.vertex_points()[:, 2]
    assert kept.max() > 0.9
    assert kept.min() > -0.3


@BOTH
def test_a_scene_without_anything_dense_is_one_line(compiled):
    model = fill(a_model(compiled), lambda points: torch.full((len(points),), 1e-6))
    with pytest.raises(UserError, match='the grid is empty: nothing in the scene is dense enough') as error:
        model.after_step(19, None)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('target', 'of_mean'), [((0.1, 0.5), '0.0400'), ((0.8, 1.0), None), ((0.2, 0.2), None)])
def test_a_grid_that_shows_no_more_than_one_colour_would_is_reported_with_both_errors(target, of_mean):
    """One ray shows 0.9, another passes by and shows white; targets of one colour say nothing about the grid."""
    model = fill(a_model(), lambda points: torch.full((len(points),), 50.0), colour=torch.full((3,), 0.9))
    hit, miss = one_ray([0.1, 0.1, 3.0], [0.0, 0.0, -1.0]), one_ray([3.0, 3.0, 3.0], [0.0, 0.0, -1.0])
    rays = Rays(*(torch.cat(parts) for parts in zip(hit, miss)))
    model(rays, numbers(2, 0.5), torch.tensor(target)[:, None].expand(2, 3))
    *fog, last = model.after_step(19, None)
    assert 'vertices' in last
    assert [line.partition('; ')[0] for line in fog] == [
        f'step 19: the grid shows no more than fog: its error is 0.4450, that of one colour for all pixels {of_mean}'
        ] * (of_mean is not None)


# What checkpoints hold


def through_a_file(content: dict) -> dict:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@BOTH
def test_weights_and_training_state_go_into_another_model_bit_for_bit(compiled):
    model = scramble(a_model(compiled))
    trained(model, 2)
    model.after_step(9, None)
    trained(model, 2)
    other = a_model(compiled, seed=9)
    other.load_weights(through_a_file(model.weights()))
    assert_same(other.render(some_rays()).rgb, model.render(some_rays()).rgb)
    other.load_training_state(through_a_file(model.training_state()))
    assert (other.stage, other.adam_steps, other.n_rays_of_step) == (1, 2, model.n_rays_of_step)
    assert_same(copy.deepcopy(other.weights()), model.weights())
    assert_same(copy.deepcopy(other.training_state()), model.training_state())
    losses = [trained(part, 3) for part in (model, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    if compiled:  # plain PyTorch adds a row's gradients in any order where it has several threads
        assert losses[0] == losses[1]
        assert_same(other.weights(), model.weights())
        assert_same(other.training_state(), model.training_state())


def test_a_checkpoint_holds_the_contraction_and_one_of_before_has_none():
    model, other = scramble(unbounded()), a_model(seed=9)
    other.load_weights(through_a_file(model.weights()))
    assert other.contraction == model.contraction
    assert other.longest == pytest.approx(4.0)
    assert_same(other.render(some_rays()).rgb, model.render(some_rays()).rgb)
    box = scramble(a_model())
    state = box.weights()['grid_state_dict']
    assert state.pop('contraction') is None
    model.load_weights(through_a_file({'grid_state_dict': state}))
    assert model.contraction is None
    assert model.longest == pytest.approx(2.0)
    assert_same(model.render(some_rays()).rgb, box.render(some_rays()).rgb)


@pytest.mark.parametrize('value', [[], 3, 'text', [0.0] * 4, [math.nan] * 4, [0.0, 0.0, 0.0, math.inf]])
def test_a_broken_contraction_is_one_line(value):
    state = unbounded().weights()['grid_state_dict']
    with pytest.raises(UserError, match='its grid_state_dict is broken ') as error:
        unbounded().load_weights({'grid_state_dict': state | {'contraction': value}})
    assert '\n' not in str(error.value)


def psnr_between(one: Tensor, other: Tensor) -> float:
    return -10.0 * math.log10((one - other).square().mean().item())


@BOTH
def test_slim_weights_are_half_precision_and_show_the_same(compiled):
    model = fill(a_model(compiled, n_iters=40), ball)
    with torch.no_grad():
        model.rows[:, 1:] += 0.3 * torch.randn(model.rows[:, 1:].shape, generator=torch.Generator().manual_seed(2))
    before, other = copy.deepcopy(model.weights()), a_model(compiled, seed=9)
    slim = through_a_file(model.slim_weights())
    assert_same(model.weights(), before)
    other.load_weights(slim)
    assert slim['grid_state_dict']['rows']['low'].shape == (16 * len(other.rows), 1)
    assert other.rows.dtype == torch.float32
    shown, truth = (part.render(some_rays(2000)).rgb for part in (other, model))
    assert psnr_between(shown, truth) > 55.0


def test_values_too_large_for_slim_weights_become_the_largest_of_half_precision():
    model, other = a_model(), a_model()
    with torch.no_grad():
        model.rows[:, 0], model.rows[:, 1], model.rows[:, 2] = -1e6, 1e6, 0.1
    other.load_weights(model.slim_weights())
    expected = torch.zeros(len(model.rows), 16)
    expected[:, :3] = torch.tensor([-65504.0, 65504.0, 0.1]).half().float()
    assert torch.equal(other.rows, expected)


def test_checkpoints_hold_running_means_of_the_rows_that_were_touched_alone():
    model = fill(a_model(), lambda points: torch.full((len(points),), 0.5))
    optimiser = Optimiser(model)
    optimiser.prepare(1, 1e-3)
    optimiser.backward(model(one_ray([0.1, 0.1, 3.0], [0.0, 0.0, -1.0]), numbers(1), torch.zeros(1, 3))['mse'])
    optimiser.step({'mse': torch.zeros(())})
    state, touched = model.training_state()['grid'], (model.squares > 0).any(-1)
    assert touched.sum() == 4 * N  # the corners of a column of cells
    assert state['means']['low'].shape == (16 * 4 * N, 3)
    assert (model.strongest > 0).sum() == 4 * N
    model.strongest[(~touched).nonzero()[0]] = 0.5  # as a step leaves it that is skipped
    other = a_model()
    other.load_weights(model.weights())
    other.load_training_state({'grid': model.training_state()['grid']})
    assert_same([other.means, other.squares, other.strongest], [model.means, model.squares, model.strongest])


def test_weights_of_bfloat16_and_cells_that_were_not_packed_are_taken():
    model, other = scramble(a_model()), a_model()
    state = model.weights()['grid_state_dict']
    cells = torch.from_numpy(np.packbits(model.grid.cells.numpy().reshape(-1)))
    other.load_weights({'grid_state_dict': state | {'rows': state['rows'].bfloat16(), 'cells': cells}})
    assert torch.equal(other.rows, model.rows.bfloat16().float())
    assert torch.equal(other.grid.cells, model.grid.cells)


def test_kernels_and_plain_pytorch_take_each_others_weights():
    fast, plain = scramble(a_model(True)), a_model(False, seed=9)
    plain.load_weights(fast.weights())
    torch.testing.assert_close(plain.render(some_rays()).rgb, fast.render(some_rays()).rgb, rtol=0, atol=1e-4)


@BOTH
def test_a_copy_shows_the_same_and_is_trained_alone(compiled):
    model = scramble(a_model(compiled))
    other, before = copy.deepcopy(model), model.render(some_rays()).rgb
    assert_same(other.render(some_rays()).rgb, before)
    trained(other, 1)
    assert_same(model.render(some_rays()).rgb, before)
    assert not torch.equal(other.render(some_rays()).rgb, before)
    assert not torch.equal(other.rows, model.rows)


@pytest.mark.parametrize('checkpoint', [{}, {'grid_state_dict': None}, {'grid_state_dict': 3},
                                        {'network_fn_state_dict': {}}])
def test_a_checkpoint_without_a_grid_names_the_flag(checkpoint):
    with pytest.raises(UserError, match='it has no grid_state_dict; set field = mlp or use another checkpoint'):
        a_model().load_weights(checkpoint)


@pytest.mark.parametrize(('name', 'value'), [
    ('rows', None), ('rows', torch.zeros(N ** 3, 15)), ('rows', torch.zeros(N ** 3 + 1, 16)),
    ('rows', torch.zeros(N ** 3, 16, dtype=torch.int64)), ('rows', torch.zeros(N ** 3, 16).to_sparse()),
    ('rows', torch.zeros(N ** 3, 16) + 0j), ('rows', {}), ('rows', packed(torch.zeros(N ** 3, 16))),
    ('rows', packed(torch.zeros(N ** 3 - 1, 16).half())), ('rows', {'high': 3, 'low': 4}), ('cells', {}),
    ('cells', packed(torch.zeros(9, dtype=torch.uint8))), ('cells', None), ('cells', torch.zeros(0, dtype=torch.uint8)),
    ('cells', torch.zeros(-(-N ** 3 // 8))), ('cells', torch.zeros(-(-N ** 3 // 8), dtype=torch.uint8)),
    ('cells', torch.full((-(-N ** 3 // 8),), 3, dtype=torch.uint8)), ('shape', None), ('shape', [N, N]),
    ('shape', [N, N, 0]), ('shape', [N, N, -N]), ('shape', [1, 1, N ** 3]), ('shape', [2 ** 40] * 3),
    ('shape', [math.nan] * 3), ('shape', ['x'] * 3), ('shape', [10 ** 400, 2, 2]), ('low', None),
    ('low', torch.zeros(2)), ('low', torch.full((3,), math.nan)), ('low', torch.full((3,), math.inf)),
    ('low', torch.full((3,), 1e300, dtype=torch.float64)), ('voxel', 1e300),
    ('low', [0.0, 0.0, 0.0]), ('voxel', None), ('voxel', 0.0), ('voxel', -1.0), ('voxel', math.nan),
    ('voxel', math.inf), ('voxel', 1e-30), ('voxel', 1e-7), ('stage', None), ('stage', math.nan), ('stage', 'x'),
    ('network', None), ('network', {}), ('network', {'0.weight': torch.zeros(3)}), ('network', 'text')])
def test_a_broken_entry_is_one_line(name, value):
    model = a_model()
    state = copy.deepcopy(model.weights()['grid_state_dict'])
    for change in ({**state, name: value}, {key: part for key, part in state.items() if key != name}):
        with pytest.raises(UserError, match='its grid_state_dict is broken ') as error:
            a_model().load_weights({'grid_state_dict': change})
        assert '\n' not in str(error.value)


@pytest.mark.parametrize(('name', 'value'), [
    ('means', None), ('means', torch.zeros(3, 16)), ('means', torch.zeros(N ** 3, 16, dtype=torch.int64)),
    ('squares', torch.zeros(N ** 3)), ('squares', 'text'), ('touched', None), ('touched', torch.ones(N ** 3 - 1)),
    ('touched', packed(torch.ones(N ** 3, dtype=torch.bool))), ('adam_steps', -1), ('adam_steps', 2 ** 40),
    ('adam_steps', math.nan), ('adam_steps', 'x'), ('n_rays', 0), ('n_rays', 10 ** 9), ('n_rays', None)])
def test_a_broken_training_state_is_an_error(name, value):
    model = a_model()
    state = model.training_state()['grid']
    with pytest.raises((ValueError, LookupError, TypeError, AttributeError, RuntimeError)):
        model.load_training_state({'grid': state | {name: value}})
    with pytest.raises(LookupError):
        model.load_training_state({'grid': {key: part for key, part in state.items() if key != name}})


def test_it_is_described_by_its_size_and_what_computes_it():
    assert a_model(True).describe() == 'grid      729 of 9x9x9 vertices, 0.25 apart, kernels'
    assert a_model(False).describe() == 'grid      729 of 9x9x9 vertices, 0.25 apart, plain PyTorch'


# With a scene


def grid_flags(flags, *extra: str) -> list[str]:
    return flags('--field', 'grid', '--N_iters', '30', '--N_rand', '500', '--lrate', '5e-3', *extra)


def test_it_learns_a_ball(flags):
    trainer = trainer_of(grid_flags(flags, '--N_iters', '40', '--N_rand', '300'))
    model, scene, lines = trainer.model, trainer.batcher.scene, []
    for step in range(1, 41):
        losses = trainer.step(step)
        lines += trainer.after_step(step)
    assert losses['mse'].item() < 0.01
    assert model.stage == 2
    assert any('pruned' in line for line in lines)
    shown = render_view(model, scene, scene.cameras.take(scene.i_val[:1]))
    assert shown.rgb.shape == (16, 16, 3)
    assert np.abs(shown.rgb[7:9, 7:9] - np.array([230, 120, 40]) / 255).max() < 0.15
    assert shown.rgb[0, 0].min() > 0.9


def test_a_grid_on_white_begins_with_its_visual_hull_with_or_without_alpha(flags, tiny_scene, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, 'STAGES', {0.0: 24})
    args = parse_flags(grid_flags(flags))
    scene, device = run_nerf.load_scene(args), torch.device('cpu')
    hulled = run_nerf.create_model(args, scene, device, torch.float32)
    assert 100 < hulled.grid.cells.sum() < 0.7 * 24 ** 3
    no_alpha = parse_flags([*grid_flags(flags), '--datadir', str(tiny_scene(tmp_path / 'no_alpha', channels=3))])
    same = run_nerf.create_model(no_alpha, run_nerf.load_scene(no_alpha), device, torch.float32)
    assert torch.equal(same.grid.cells, hulled.grid.cells)
    assert hulled.compiled
    assert hulled.density(torch.zeros(1, 3)).item() > 0


def test_without_white_bkgd_alpha_is_ignored_as_by_nerf_pytorch(flags, tiny_scene, tmp_path):
    plain = [flag for flag in grid_flags(flags, '--datadir', str(tiny_scene(tmp_path / 'alpha', channels=4)))
             if flag != '--white_bkgd']
    trainer = trainer_of(plain)
    images = trainer.batcher.scene.images
    assert images.pixels.shape[1] == 4
    assert trainer.model.grid.cells.sum() == CELLS ** 3  # no hull either
    image, row, column = trainer.batcher.pixels(1)
    _, target = trainer.batcher.rays(image, row, column)
    pixels = images.pixels.reshape(len(images), 16, 16, 4)[trainer.batcher.scene.i_train[image], row, column]
    np.testing.assert_allclose(target.numpy(), pixels[:, :3] / np.float32(255.0), rtol=1e-6)
    assert (pixels[:, 3] == 0).any()


@pytest.mark.parametrize('extra', [(), ('--no_ndc',), ('--no_ndc', '--spherify')], ids=['NDC', 'forward', 'around'])
def test_photographs_without_ndc_have_no_bounds_and_a_grid_of_what_is_seen(tiny_llff, tmp_path, extra):
    folder = tiny_llff(tmp_path / 'scene')
    args = parse_flags(['--dataset_type', 'llff', '--factor', '2', '--datadir', str(folder), '--expname', 'run',
                        '--field', 'grid', '--device', 'cpu', *extra])
    scene = run_nerf.load_scene(args)
    model = run_nerf.create_model(args, scene, torch.device('cpu'), torch.float32)
    assert scene.bounded == (not extra)
    assert model.contraction == scene.contraction
    if extra:
        centres = model.grid.centres()
        assert centres.norm(dim=-1).max() < 2.0 + 2.0 * model.grid.voxel
        assert model.grid.cells.sum() < 0.9 * model.grid.cells.numel()
        rays = scene.rays(*scene.cameras.view_rays(int(scene.i_train[0])))
        far = rays.origins + 1e4 * rays.viewdirs
        assert model.grid.holds(model.contraction(far)).all()  # all that is far away can be shown
