"""nerf/fields/grid/field.py: what a grid shows, with Numba's kernels and in plain PyTorch."""

from __future__ import annotations

import copy
import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_same
from small_grids import (
    BOX, CELLS, COLOUR, FORWARD, OPEN, N, a_field, ball, even, fill, one_ray, scramble, shown, some_rays, trained,
)

from nerf.fields.grid.field import direction_polynomials
from nerf.fields.grid.training import GridTraining, prune
from nerf.files.packing import packed
from nerf.rendering import draw
from nerf.runtime.errors import UserError
from nerf.space import Bounded, Unbounded, shrinkage
from run_nerf_helpers import Rays, composite, ray_points, stratified_z

BOTH = pytest.mark.parametrize('compiled', [True, False], ids=['kernels', 'plain'])
BYTES = math.ceil(N ** 3 / 8)  # of the bits of all cells


# Rays


@BOTH
@pytest.mark.parametrize('white', [True, False])
def test_a_ray_that_meets_nothing_shows_the_background(compiled, white):
    field = fill(a_field(compiled, white=white), ball)
    picture = shown(field, one_ray([3.0, 3.0, 3.0], [0.0, 0.0, -1.0]))
    assert torch.equal(picture.rgb, torch.full((1, 3), float(white)))
    assert [picture.acc.item(), picture.depth.item(), picture.disp.item()] == [0.0, 0.0, 0.0]


@BOTH
@pytest.mark.parametrize('white', [True, False])
@pytest.mark.parametrize('scale', [1.0, 4.0])
def test_opacity_through_a_box_of_even_density_is_what_beer_and_lambert_say(compiled, white, scale):
    density = 0.8
    field = fill(a_field(compiled, white=white), even(density))
    picture = shown(field, one_ray([0.3, 0.2, 3.0], [0.0, 0.0, -scale]))  # two scene units long, whatever the scale
    acc = 1.0 - math.exp(-2.0 * density)
    assert picture.acc.item() == pytest.approx(acc, rel=1e-5)
    torch.testing.assert_close(picture.rgb[0], acc * COLOUR + (1.0 - acc) * white, rtol=1e-5, atol=1e-6)
    inside = np.linspace(0.0, 2.0, 20001)
    mean = np.trapezoid(density * np.exp(-density * inside) * (2.0 + inside), inside)
    assert scale * picture.depth.item() == pytest.approx(mean, abs=0.02)


@BOTH
def test_near_and_far_bound_what_a_ray_meets(compiled):
    field = fill(a_field(compiled), even(0.8))
    picture = shown(field, one_ray([0.3, 0.2, 3.0], [0.0, 0.0, -1.0], near=2.5, far=3.0))
    assert picture.acc.item() == pytest.approx(1.0 - math.exp(-0.8 * 0.5), rel=1e-5)


@BOTH
def test_an_opaque_ball_has_its_colour_and_its_distance(compiled):
    field = fill(a_field(compiled, stages='0:24'), ball)
    rays = some_rays()
    nearest = torch.linalg.cross(rays.origins, rays.viewdirs).norm(dim=-1)  # of the ray to the centre
    hit, missed = nearest < 0.4, nearest > 0.6 + field.grid.voxel * 3 ** 0.5
    assert hit.sum() > 20
    assert missed.sum() > 5
    picture = shown(field, rays)
    torch.testing.assert_close(picture.rgb[hit], COLOUR.expand(int(hit.sum()), 3), rtol=0, atol=2e-3)
    surface = (rays.directions.norm(dim=-1) * picture.depth)[hit]
    exact = ((rays.origins * -rays.viewdirs).sum(-1) - (0.6 ** 2 - nearest ** 2).clamp(min=0.0).sqrt())[hit]
    assert (surface - exact).abs().max() < 1.5 * field.grid.voxel
    assert picture.acc[hit].min() > 0.998
    assert picture.acc[missed].max() < 1e-3


@BOTH
def test_rays_end_where_the_schedule_says_that_it_is_dark(compiled):
    for dark in (0.3, 1e-3):
        field = fill(a_field(compiled, dark=dark), even(1.0))
        acc = shown(field, one_ray([0.3, 0.2, 3.0], [0.0, 0.0, -1.0])).acc.item()
        assert acc == pytest.approx(1.0 - math.exp(-1.25) if dark == 0.3 else 1.0 - math.exp(-2.0), rel=1e-5)


@BOTH
def test_optical_depths_follow_from_the_schedules_sharpness_and_offset(compiled):
    field = a_field(compiled, sharpness=3.0, offset=-2.0)
    with torch.no_grad():
        field.rows[:, 0] = 0.5
    optical = CELLS * math.log1p(math.exp(3.0 * 0.5 - 2.0))
    assert shown(field, one_ray([0.3, 0.2, 3.0], [0.0, 0.0, -1.0])).acc.item() == pytest.approx(
        1.0 - math.exp(-optical), rel=1e-4)
    assert field.density(torch.zeros(1, 3)).item() == pytest.approx(0.5 * optical, rel=1e-5)


@BOTH
def test_colour_depends_on_the_direction_through_the_network_for_points_as_for_rays(compiled):
    field = fill(a_field(compiled), even(500.0), plain=False)
    with torch.no_grad():
        field.network[-1].weight.mul_(5.0)
        field.rows[:, 4:] = torch.linspace(-1.0, 1.0, 12)
    rays = some_rays(50)
    colours = field.radiance(torch.zeros(50, 1, 3), rays.viewdirs)[0][:, 0].detach()
    torch.testing.assert_close(shown(field, rays).rgb, colours, rtol=0, atol=5e-3)  # a ray ends before all is dark
    assert colours.std(0).min() > 0.01
    assert (colours != COLOUR).all(-1).any()


@BOTH
def test_the_networks_change_of_colours_begins_as_small_as_the_schedule_says(compiled):
    rays, changes = some_rays(50), []
    for start in (0.1, 0.2):
        field = fill(a_field(compiled, view_start=start), even(500.0), plain=False)
        changes.append(field.radiance(torch.zeros(50, 1, 3), rays.viewdirs)[0][:, 0].detach() - COLOUR)
    torch.testing.assert_close(changes[1], 2.0 * changes[0], rtol=1e-3, atol=1e-6)
    assert a_field(compiled, width=5).network[0].weight.shape == (5, 31)


@BOTH
def test_a_view_is_drawn_tile_by_tile_and_is_what_its_rays_show(compiled):
    field, rays = fill(a_field(compiled, view_chunk=70), ball), some_rays(200)
    done = []
    for picture in draw(field.sampler(), rays):
        done.append(int(picture.final.sum()))
    assert done == [70, 140, 200]
    whole = shown(field, rays)
    for name in ('rgb', 'depth', 'acc'):
        torch.testing.assert_close(getattr(picture, name), getattr(whole, name), rtol=0, atol=1e-6)


@BOTH
def test_a_tile_has_no_more_rays_than_the_schedules_most(compiled):
    field = a_field(compiled, most_rays=300)
    assert field.sampler().tile == 300
    assert field.sampler().name == 'grid'


@BOTH
def test_bf16_is_of_the_network_alone_and_near_to_fp32(compiled):
    exact, short = (shown(scramble(a_field(compiled, dtype=dtype)), some_rays())
                    for dtype in (torch.float32, torch.bfloat16))
    assert_same(exact.acc, short.acc)
    assert short.rgb.dtype == torch.float32
    torch.testing.assert_close(short.rgb, exact.rgb, rtol=0, atol=0.02)
    assert not torch.equal(short.rgb, exact.rgb)


def test_another_seed_is_another_network():
    first, same, other = (a_field(False, seed=seed).network[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


# Points


@BOTH
def test_density_and_radiance_are_what_rays_show(compiled):
    field = fill(a_field(compiled, stages='0:24'), lambda points: 0.2 + (1.0 + points[:, 0]) ** 2 + torch.rand(
        len(points), generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        field.rows[:, 1:4].normal_(generator=torch.Generator().manual_seed(4))
    rays = some_rays(30)
    z = stratified_z(rays.near, rays.far, 2000)
    points = ray_points(rays, z)
    rgb, density = field.radiance(points, rays.viewdirs)
    torch.testing.assert_close(field.density(points.reshape(-1, 3)).reshape(density.shape), density)
    expected, picture = composite(rgb.detach(), density, z, rays.directions, white_bkgd=True), shown(field, rays)
    torch.testing.assert_close(picture.acc, expected.acc, rtol=0, atol=5e-3)
    torch.testing.assert_close(picture.rgb, expected.rgb, rtol=0, atol=1e-2)
    torch.testing.assert_close(picture.depth, expected.depth, rtol=0, atol=2e-2)
    assert picture.acc.max() > 0.8


@BOTH
def test_density_and_radiance_of_a_scene_without_bounds_are_what_rays_show(compiled):
    field = fill(a_field(compiled, OPEN, stages='0:48', least_first=1e-6),
                 lambda points: torch.where(points.norm(dim=-1) > 1.7, 1e-6, 0.3 + 0.2 * (2.0 + points[:, 0])))
    with torch.no_grad():
        field.rows[:, 1:4] = field.grid.vertex_points()  # colours change slowly
    directions = some_rays(20).directions
    origins = torch.tensor(OPEN.centre).expand(20, 3)  # density has no direction away from the centre or across
    rays = Rays(origins, directions, torch.nn.functional.normalize(directions, dim=-1), torch.full((20, 1), 0.1),
                torch.full((20, 1), 9.0))
    z = 0.1 + torch.logspace(-3.0, 1.3, 3000).expand(20, 3000)
    points = ray_points(rays, z)
    rgb, density = field.radiance(points, rays.viewdirs)
    torch.testing.assert_close(field.density(points.reshape(-1, 3)).reshape(density.shape), density)
    x = OPEN.from_centre(points)
    turned = shrinkage(x, rays.directions[:, None].expand_as(x)) / 1.5 / OPEN.grid_scale(points)
    density[:, -1] = 0.0  # composite takes the last interval for endless
    expected, picture = composite(rgb.detach(), density * turned, z, rays.directions, white_bkgd=True), shown(
        field, rays)
    torch.testing.assert_close(picture.acc, expected.acc, rtol=0, atol=2e-2)  # steps far away are a little short
    torch.testing.assert_close(picture.rgb, expected.rgb, rtol=0, atol=2e-2)
    torch.testing.assert_close(picture.depth, expected.depth, rtol=0.05, atol=2e-2)
    assert 0.3 < picture.acc.min() < picture.acc.max() < 1.0
    near = x.norm(dim=-1) < 1.0
    assert torch.allclose(turned[near], torch.ones(()))  # in the ball density is that of a box
    assert turned.min() < 0.2


@BOTH
@pytest.mark.parametrize('away', [0.8, 2.0, 6.0])
def test_cameras_outside_the_unit_ball_see_what_is_in_it_as_those_inside_do(compiled, away):
    field = fill(a_field(compiled, OPEN, stages='0:48'),
                 lambda points: torch.where(points.norm(dim=-1) < 0.4, 80.0, 1e-6))
    for direction in ([0.0, 0.0, -1.0], [0.6, -0.8, 0.0], [-2 / 3, 1 / 3, 2 / 3]):
        origin = torch.tensor(OPEN.centre) - away * OPEN.radius * torch.tensor(direction)
        picture = shown(field, one_ray(origin.tolist(), direction, near=0.1, far=1.0))
        assert picture.acc.item() > 0.99
        assert picture.depth.item() / OPEN.radius == pytest.approx(away - 0.4, abs=1.5 * field.grid.voxel)
        torch.testing.assert_close(picture.rgb[0], COLOUR, rtol=0, atol=1e-2)
        aside = origin + 0.7 * OPEN.radius * torch.linalg.cross(torch.tensor(direction), torch.tensor([0.8, 0.0, 0.6]))
        assert shown(field, one_ray(aside.tolist(), direction, near=0.1, far=1.0)).acc.item() < 0.05


@BOTH
def test_rays_of_a_scene_without_bounds_go_on_behind_their_far_bound(compiled):
    field = fill(a_field(compiled, OPEN, stages='0:24'),
                 lambda points: torch.where(points.norm(dim=-1) > 1.8, 200.0, 1e-6))
    picture = shown(field, one_ray(OPEN.centre, [0.0, 0.0, -2.0], far=1.0))
    assert picture.acc.item() > 0.99
    u = 2.0 * picture.depth.item() / 1.5  # the shell at 1.8, give or take a voxel of 1/6, is at 1 / (2 - 1.8)
    assert 1.0 / (2.0 - 1.8 + 1 / 6) < u < 1.0 / (2.0 - 1.8 - 1 / 12)


@BOTH
def test_in_ndc_depth_has_a_quarter_of_the_cells_and_things_are_where_they_are(compiled):
    field = a_field(compiled, FORWARD, stages='0:80')
    assert field.grid.cells.shape == (81, 81, 21)
    field = fill(field, lambda points: torch.where(points[:, 2] < 0.25 * 0.3, 300.0, 1e-6))  # stretched places
    x, y = torch.linspace(-0.9, 0.9, 30), torch.linspace(0.9, -0.9, 30)
    ahead = torch.stack([0.3 * y, 0.2 * x, -torch.ones(30)], -1)
    rays = Rays(torch.stack([x, y, torch.ones(30)], -1), ahead, torch.nn.functional.normalize(ahead, dim=-1),
                torch.zeros(30, 1), torch.full((30, 1), 2.0))
    picture = shown(field, rays)
    torch.testing.assert_close(picture.acc, torch.ones(30), rtol=0, atol=2e-3)
    torch.testing.assert_close(picture.depth, torch.full((30,), 0.7), rtol=0, atol=0.12)  # a cell is 0.1 deep
    here = torch.tensor([[0.3, -0.4, 0.5], [0.3, -0.4, 0.1], [0.3, -0.4, -0.9], [0.3, -0.4, -1.1]])
    density = field.density(here)
    assert (density > 50.0).tolist() == [False, True, True, False]
    torch.testing.assert_close(density[1], torch.tensor(300.0 * 0.25 ** (1 / 3)), rtol=1e-3, atol=0)


def test_there_is_no_density_outside_the_box_nor_in_cells_that_were_dropped():
    field = fill(a_field(False), even(3.0))
    cells = field.grid.cells.clone()
    cells[: CELLS // 2] = False
    prune(field, cells)
    points = torch.tensor([[0.5, 0.5, 0.5], [0.999, -0.999, 0.999], [-0.5, 0.5, 0.5], [1.001, 0.5, 0.5],
                           [0.5, 7.0, 0.0], [0.5, 0.5, -1.1]])
    expected = torch.tensor([3.0, 3.0, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(field.density(points), expected)
    torch.testing.assert_close(field.radiance(points[None], torch.tensor([[0.0, 0.0, 1.0]]))[1][0], expected)
    array = field.density_array(points.numpy())
    assert (array.dtype, array.tolist()) == (np.float32, field.density(points).tolist())


def test_histograms_are_of_densities_above_0():
    field = fill(a_field(False), ball)
    density = field.histograms(some_rays())['density']
    assert density.min() > 0
    assert density.max() == pytest.approx(200.0, rel=1e-4)
    assert [len(part) for part in field.histograms(one_ray([9.0, 9.0, 9.0], [1.0, 0.0, 0.0])).values()] == [0] * 4


def test_histograms_of_colours_are_of_what_is_dense():
    field = fill(a_field(False), ball)
    values = field.histograms(some_rays())
    assert [*values] == ['density', 'red', 'green', 'blue']
    n_dense = int((values['density'] > field.schedule.thin / field.grid.voxel).sum())
    assert 0 < n_dense < len(values['density'])
    for name, colour in zip(('red', 'green', 'blue'), COLOUR):
        torch.testing.assert_close(values[name], colour.expand(n_dense))


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


def test_it_is_described_by_its_size_and_what_computes_it():
    assert a_field(True).describe() == 'grid      729 of 9x9x9 vertices, 0.25 apart, kernels'
    assert a_field(False).describe() == 'grid      729 of 9x9x9 vertices, 0.25 apart, plain PyTorch'


# Weights


def through_a_file(content: dict) -> dict:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_checkpoint_of_a_scene_without_bounds_holds_its_ball():
    field = scramble(a_field(space=OPEN))
    moved = a_field(space=replace(OPEN, centre=(9.0, 0.0, 0.0), radius=7.0), seed=9)
    moved.load_weights(through_a_file(field.weights()))
    assert moved.space == OPEN
    assert moved.voxels == pytest.approx(field.voxels)
    assert_same(shown(moved, some_rays()).rgb, shown(field, some_rays()).rgb)
    box = a_field(seed=9)
    box.load_weights(through_a_file(field.weights()))
    assert isinstance(box.space, Unbounded)
    assert box.voxels == pytest.approx(field.voxels)
    assert_same(shown(box, some_rays()).rgb, shown(field, some_rays()).rgb)


def test_a_checkpoint_of_the_first_versions_has_no_ball_and_is_of_a_box():
    box, field = scramble(a_field()), a_field(space=OPEN)
    state = box.weights()['grid_state_dict']
    assert state.pop('contraction') is None
    field.load_weights(through_a_file({'grid_state_dict': state}))
    assert field.space == Bounded(OPEN.near, OPEN.far, OPEN.surrounded)
    assert field.voxels == pytest.approx(box.voxels)
    assert_same(shown(field, some_rays()).rgb, shown(box, some_rays()).rgb)


@pytest.mark.parametrize('value', [[], 3, 'text', [0.0] * 4, [math.nan] * 4, [0.0, 0.0, 0.0, math.inf]])
def test_a_broken_contraction_is_one_line(value):
    state = a_field(False, OPEN).weights()['grid_state_dict']
    for space in (OPEN, BOX, FORWARD):
        with pytest.raises(UserError, match='its grid_state_dict is broken ') as error:
            a_field(False, space).load_weights({'grid_state_dict': state | {'contraction': value}})
        assert '\n' not in str(error.value)


@BOTH
def test_slim_weights_are_half_precision_and_show_the_same(compiled):
    field = fill(a_field(compiled), ball)
    with torch.no_grad():
        field.rows[:, 1:] += 0.3 * torch.randn(field.rows[:, 1:].shape, generator=torch.Generator().manual_seed(2))
    before, other = copy.deepcopy(field.weights()), a_field(compiled, seed=9)
    slim = through_a_file(field.slim_weights())
    assert_same(field.weights(), before)
    other.load_weights(slim)
    assert slim['grid_state_dict']['rows']['low'].shape == (16 * len(other.rows), 1)
    assert other.rows.dtype == torch.float32
    error = (shown(other, some_rays(2000)).rgb - shown(field, some_rays(2000)).rgb).square().mean()
    assert -10.0 * math.log10(error) > 55.0


def test_values_too_large_for_slim_weights_become_the_largest_of_half_precision():
    field, other = a_field(False), a_field(False)
    with torch.no_grad():
        field.rows[:, 0], field.rows[:, 1], field.rows[:, 2] = -1e6, 1e6, 0.1
    other.load_weights(field.slim_weights())
    expected = torch.zeros(len(field.rows), 16)
    expected[:, :3] = torch.tensor([-65504.0, 65504.0, 0.1]).half().float()
    assert torch.equal(other.rows, expected)


def test_kernels_and_plain_pytorch_take_each_others_weights():
    fast, plain = scramble(a_field(True)), a_field(False, seed=9)
    plain.load_weights(fast.weights())
    torch.testing.assert_close(shown(plain, some_rays()).rgb, shown(fast, some_rays()).rgb, rtol=0, atol=1e-4)


def test_a_grid_and_its_rows_are_read_as_they_were():
    field, other = scramble(a_field(False)), a_field(False, seed=9)
    prune(field, torch.rand(field.grid.cells.shape, generator=torch.Generator().manual_seed(6)) < 0.1)
    other.load_weights(field.weights())
    assert torch.equal(other.grid.cells, field.grid.cells)
    assert torch.equal(other.grid.vertices, field.grid.vertices)
    assert (other.grid.low.tolist(), other.grid.voxel) == (field.grid.low.tolist(), field.grid.voxel)
    assert torch.equal(other.rows, field.rows)


def test_rows_in_bfloat16_and_cells_that_were_not_packed_are_taken():
    field, other = scramble(a_field(False)), a_field(False, seed=9)
    cells = torch.from_numpy(np.packbits(field.grid.cells.numpy().reshape(-1)))
    state = field.weights()['grid_state_dict'] | {'rows': field.rows.detach().bfloat16(), 'cells': cells}
    other.load_weights({'grid_state_dict': state})
    assert torch.equal(other.rows, field.rows.bfloat16().float())
    assert torch.equal(other.grid.cells, field.grid.cells)


@pytest.mark.parametrize(('stage', 'taken'), [(0, 0), (1, 1), (2, 2), (7, 2), (-3, 0)])
def test_the_stage_of_a_checkpoint_is_one_of_the_schedules(stage, taken):
    field = a_field(False)
    state = field.weights()['grid_state_dict'] | {'stage': stage}
    field.load_weights({'grid_state_dict': state})
    assert field.stage == taken


@BOTH
def test_a_copy_shows_the_same_and_is_trained_alone(compiled):
    field = scramble(a_field(compiled))
    before = shown(field, some_rays()).rgb
    other = copy.deepcopy(field)
    assert_same(shown(other, some_rays()).rgb, before)
    trained(GridTraining(other, 20), 1)
    assert_same(shown(field, some_rays()).rgb, before)
    assert not torch.equal(shown(other, some_rays()).rgb, before)
    assert not torch.equal(other.rows, field.rows)


@pytest.mark.parametrize('checkpoint', [{}, {'grid_state_dict': None}, {'grid_state_dict': 3},
                                        {'network_fn_state_dict': {}}])
def test_a_checkpoint_without_a_grid_names_the_flag(checkpoint):
    with pytest.raises(UserError, match='it has no grid_state_dict; set field = mlp or use another checkpoint'):
        a_field(False).load_weights(checkpoint)


@pytest.mark.parametrize(('name', 'value'), [
    ('stage', None), ('stage', math.nan), ('stage', 'x'), ('network', None), ('network', {}),
    ('network', {'0.weight': torch.zeros(3)}), ('network', 'text'), ('rows', torch.zeros(N ** 3, 15)),
    ('rows', None), ('rows', torch.zeros(N ** 3 + 1, 16)),
    ('rows', torch.zeros(N ** 3, 16, dtype=torch.int64)), ('rows', torch.zeros(N ** 3, 16).to_sparse()),
    ('rows', torch.zeros(N ** 3, 16) + 0j), ('rows', {}), ('rows', packed(torch.zeros(N ** 3, 16))),
    ('rows', packed(torch.zeros(N ** 3 - 1, 16).half())), ('rows', {'high': 3, 'low': 4}), ('cells', {}),
    ('cells', packed(torch.zeros(9, dtype=torch.uint8))), ('cells', None), ('cells', torch.zeros(0, dtype=torch.uint8)),
    ('cells', torch.zeros(BYTES)), ('cells', torch.zeros(BYTES, dtype=torch.uint8)),
    ('cells', torch.full((BYTES,), 3, dtype=torch.uint8)), ('shape', None), ('shape', [N, N]),
    ('shape', [N, N, 0]), ('shape', [N, N, -N]), ('shape', [1, 1, N ** 3]), ('shape', [2 ** 40] * 3),
    ('shape', [math.nan] * 3), ('shape', ['x'] * 3), ('shape', [10 ** 400, 2, 2]), ('low', None),
    ('low', torch.zeros(2)), ('low', torch.full((3,), math.nan)), ('low', torch.full((3,), math.inf)),
    ('low', torch.full((3,), 1e300, dtype=torch.float64)), ('low', [0.0, 0.0, 0.0]), ('voxel', None), ('voxel', 0.0),
    ('voxel', -1.0), ('voxel', math.nan), ('voxel', math.inf), ('voxel', 1e-30), ('voxel', 1e-7), ('voxel', 1e300)])
def test_a_broken_entry_is_one_line(name, value):
    state = copy.deepcopy(a_field(False).weights()['grid_state_dict'])
    for change in ({**state, name: value}, {key: part for key, part in state.items() if key != name}):
        with pytest.raises(UserError, match='its grid_state_dict is broken ') as error:
            a_field(False).load_weights({'grid_state_dict': change})
        assert '\n' not in str(error.value)
