"""nerf/fields/grid/training.py: losses, number of rays, pruning and stages, with the kernels and in plain PyTorch."""

from __future__ import annotations

import copy
import io
import math
from dataclasses import replace

import pytest
import torch
from conftest import assert_same
from small_grids import (
    CELLS, COLOUR, FORWARD, OPEN, N, a_field, ball, even, fill, numbers, one_ray, repeated, scramble, shown, some_rays,
    take_step, trained,
)
from torch import Tensor

from nerf.fields.grid.field import GridField
from nerf.fields.grid.training import GridTraining, prune, refine
from nerf.fields.interface import Target
from nerf.runtime.errors import UserError
from run_nerf_helpers import Rays

BOTH = pytest.mark.parametrize('compiled', [True, False], ids=['kernels', 'plain'])
DOWN = one_ray([0.3, 0.2, 3.0], [0.0, 0.0, -1.0])  # through the whole box of side 2


def training_of(field: GridField, n_iters: int = 20, **numbers) -> GridTraining:
    """The training of a field, whose schedule may have other numbers."""
    field.schedule = replace(field.schedule, **numbers)
    return GridTraining(field, n_iters)


def noted(training: GridTraining, rays: Rays, target: Tensor) -> dict[str, Tensor]:
    """Notes of a step's losses, for `after_step`."""
    return training.losses(rays, numbers(len(target), 0.5), Target(target)).notes


def some_notes(training: GridTraining) -> dict[str, Tensor]:
    """Notes of rays that meet nothing."""
    return noted(training, one_ray([3.0, 3.0, 3.0], [0.0, 0.0, -1.0]), torch.ones(1, 3))


# Losses


@BOTH
def test_the_loss_is_the_error_of_what_rays_show(compiled):
    field = fill(a_field(compiled), ball)
    rays, target = some_rays(), torch.rand(200, 3, generator=torch.Generator().manual_seed(5))
    losses = GridTraining(field, 20).losses(rays, numbers(200, 0.5), Target(target))
    assert [*losses.terms] == ['mse']
    expected = (shown(field, rays).rgb - target).square().mean().item()
    assert losses.terms['mse'].item() == pytest.approx(expected, rel=1e-5)
    assert losses.notes['rays'] == 200
    assert losses.notes['error'].item() == pytest.approx(200 * expected, rel=1e-5)
    of_mean = (target.mean(0) - target).square().mean().item()
    assert losses.notes['error_of_mean'].item() == pytest.approx(200 * of_mean, rel=1e-5)


@BOTH
def test_training_lowers_the_loss(compiled):
    losses = trained(GridTraining(a_field(compiled), 20), 12)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize('white', [True, False])
def test_kernels_and_plain_pytorch_train_the_same_grid(white):
    fields = [scramble(a_field(compiled, white=white)) for compiled in (True, False)]
    losses = [trained(GridTraining(field, 20), 5) for field in fields]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    apart = (fields[0].rows - fields[1].rows).abs().amax(-1)
    assert apart.median() < 1e-5
    assert apart.max() < 2e-2  # Adam makes a full step of a gradient that is all rounding
    ours, theirs = (shown(field, some_rays()).rgb for field in fields)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)
    for ours, theirs in zip(*(field.network.parameters() for field in fields)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


@BOTH
def test_rays_of_closed_spaces_end_on_the_drawn_background_without_coverage_too(compiled):
    background = torch.tensor([[0.1, 0.5, 0.9], [1.0, 0.0, 0.3]])
    rays = repeated(one_ray([0.1, 0.1, 0.5], [0.0, 0.0, -1.0], far=1.0), 2)
    for make in ({'space': OPEN}, {'space': FORWARD}, {}):
        field = fill(a_field(compiled, **make), even(1e-6))
        loss = GridTraining(field, 20).losses(rays, (torch.full((2,), 0.5), background), Target(torch.ones(2, 3)))
        expected = ((background - 1.0) ** 2).mean() if make else torch.zeros(())
        torch.testing.assert_close(loss.terms['mse'], expected, atol=1e-4, rtol=0)


@BOTH
def test_pixels_of_known_coverage_are_compared_on_the_drawn_background(compiled):
    field = fill(a_field(compiled), even(0.8))
    jitter, background = numbers(4, 0.5)
    background[:] = torch.tensor([[0.1, 0.5, 0.9], [1.0, 0.0, 0.3], [0.2, 0.2, 0.2], [0.1, 0.5, 0.9]])
    straight = torch.tensor([0.2, 0.4, 0.6])
    target = torch.stack([straight, torch.ones(3), torch.tensor([0.3, 0.2, 0.1]), 0.25 * straight + 0.75])
    coverage = torch.tensor([-0.1, 0.0, 1.0, 0.25])  # unknown, empty, opaque, and a quarter of it covered
    acc = 1.0 - math.exp(-1.6)
    behind = torch.stack([torch.ones(3), *background[1:]])
    wanted = torch.stack([straight, background[1], target[2], 0.25 * straight + 0.75 * background[3]])
    loss = GridTraining(field, 20).losses(repeated(DOWN, 4), (jitter, background), Target(target, coverage))
    expected = (acc * COLOUR + (1.0 - acc) * behind - wanted).square().mean().item()
    assert loss.terms['mse'].item() == pytest.approx(expected, rel=1e-4)


@BOTH
def test_gains_multiply_what_the_grid_shows_and_not_the_background(compiled):
    field, gains = fill(a_field(compiled), even(0.8)), torch.tensor([[0.5, 1.0, 2.0]])
    acc = 1.0 - math.exp(-1.6)
    wanted = gains * acc * COLOUR + (1.0 - acc)
    loss = GridTraining(field, 20).losses(DOWN, numbers(1, 0.5), Target(wanted, gains=gains))
    assert loss.terms['mse'].item() < 1e-9


def test_random_numbers_follow_from_the_generator():
    training = GridTraining(a_field(False), 20)
    one, two = (training.random_numbers(9, torch.Generator().manual_seed(4)) for _ in range(2))
    assert_same(one, two)
    assert [part.shape for part in one] == [(9,), (9, 3)]
    assert all(((part >= 0) & (part < 1)).all() for part in one)


def test_the_network_is_in_adams_one_group_and_rows_have_an_optimiser_of_their_own():
    field = a_field(False, beta_mean=0.8, beta_square=0.95)
    training = GridTraining(field, 20)
    group, = training.parameter_groups()
    assert (group['rate'], group['betas']) == (1.0, (0.8, 0.95))
    assert [*map(id, group['params'])] == [*map(id, field.network.parameters())]
    rows, = training.more_optimisers()
    assert [*map(id, rows.param_groups[0]['params'])] == [id(field.rows)]
    assert id(field.rows) in map(id, field.parameters())


def test_the_learning_rate_falls_by_the_schedules_decay_over_the_run():
    training = training_of(a_field(False), 3000, decay=50.0)
    assert 0.1 ** (3.0 / training.lrate_decay) == pytest.approx(1 / 50)


# Rays of a step


@BOTH
def test_a_step_gets_more_rays_where_they_keep_few_samples_and_fewer_where_many(compiled):
    field = scramble(a_field(compiled))
    rays, target = some_rays(1024), torch.zeros(1024, 3)
    kept = int(noted(GridTraining(field, 20), rays, target)['samples'])

    def next_step(**numbers) -> int:
        training = training_of(field, **numbers)
        training.after_step(1, noted(training, rays, target))
        return training.rays_per_step(10 ** 6)
    assert next_step(samples=10 ** 9) == 1280
    assert next_step(samples=1) == 819
    assert next_step(samples=1, rays_change=2.0) == 512
    assert next_step(samples=round(1.1 * kept), rays_change=1.25) == pytest.approx(1.1 * 1024, abs=1)
    assert next_step(samples=kept, first_rays=300) == 300
    training = training_of(field, samples=10 ** 9, first_rays=1024)
    assert training.rays_per_step(100) == 100
    notes = noted(training, rays, target)
    for _ in range(40):
        training.after_step(1, notes)
    assert training.rays_per_step(10 ** 6) == field.schedule.most_rays
    training = training_of(field, samples=1)
    for _ in range(40):
        training.after_step(1, notes)
    assert training.rays_per_step(10 ** 6) == field.schedule.fewest_rays


def test_captured_steps_have_the_rays_of_the_schedule():
    training = GridTraining(a_field(False, captured_rays=77), 20, captured=True)
    assert training.rays_per_step(10 ** 6) == 77
    training.after_step(1, some_notes(training))
    assert training.rays_per_step(10 ** 6) == 77


def loss_and_gradient(field: GridField, captured: bool, rays: Rays, target: Tensor) -> tuple:
    """Loss, notes, gradient of the rows and largest weights around them, of a step."""
    field.take(field.grid, field.rows.detach())
    losses = GridTraining(field, 20, captured).losses(rays, numbers(len(target), 0.3), Target(target))
    losses.terms['mse'].backward()
    return losses.terms['mse'].item(), losses.notes, field.rows.grad, field.backend.heaviest


def test_a_captured_step_within_capacity_is_that_of_lists_as_long_as_needed():
    field, rays, target = scramble(a_field(False)), some_rays(300), torch.rand(300, 3)
    loss, notes, gradient, heaviest = loss_and_gradient(field, False, rays, target)
    field.schedule = replace(field.schedule, captured_in_cells=20000, captured_kept=int(notes['samples']) + 1)
    found = loss_and_gradient(field, True, rays, target)
    assert found[0] == pytest.approx(loss, rel=1e-6)
    assert [found[1][name].item() for name in ('rays', 'samples')] == [300, notes['samples'].item()]
    torch.testing.assert_close(found[2], gradient, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(found[3], heaviest, rtol=1e-5, atol=0)


@pytest.mark.parametrize('scarce', ['captured_in_cells', 'captured_kept'])
def test_a_captured_step_beyond_capacity_is_that_of_its_first_rays_alone(scarce):
    field, rays, target = scramble(a_field(False)), some_rays(300), torch.rand(300, 3)
    field.schedule = replace(field.schedule, **{'captured_in_cells': 20000, 'captured_kept': 20000} | {scarce: 1500})
    loss, notes, gradient, heaviest = loss_and_gradient(field, True, rays, target)
    n_whole = int(notes['rays'])
    assert 20 < n_whole < 250
    first = loss_and_gradient(field, False, rays.part(slice(n_whole)), target[:n_whole])
    assert first[0] == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(first[2], gradient, rtol=1e-4, atol=1e-8)
    assert (heaviest >= first[3] - 1e-6).all()  # a part of one more ray was marched


def test_evenly_long_samples_of_plain_pytorch_in_contracted_space_are_near_to_those_of_the_kernels():
    field, plain = (fill(a_field(compiled, OPEN, captured_in_cells=60000, captured_kept=30000),
                         lambda points: 3.2 + torch.sin(3.0 * points).sum(-1)) for compiled in (True, False))
    rays, target = some_rays(300), torch.rand(300, 3)
    loss, notes, gradient, _ = loss_and_gradient(field, False, rays, target)
    found = loss_and_gradient(plain, True, rays, target)
    assert found[0] == pytest.approx(loss, rel=0.01)
    assert found[1]['samples'].item() == pytest.approx(notes['samples'].item(), rel=0.08)
    assert torch.cosine_similarity(found[2].flatten(), gradient.flatten(), 0) > 0.98


@BOTH
def test_scalars_are_the_grids_size_its_occupied_share_and_the_last_steps_samples(compiled):
    field = fill(a_field(compiled), even(0.5))
    assert GridTraining(field, 20).scalars() == {'rows': N ** 3, 'occupied_share': 1.0, 'voxel': 0.25}
    prune(field, torch.arange(N)[:, None, None].expand(N, N, N) < 2)  # a slab of two cells
    training = GridTraining(field, 20)
    training.after_step(1, noted(training, repeated(one_ray([-0.7, 0.1, 3.0], [0.0, 0.0, -1.0]), 3), torch.zeros(3, 3)))
    assert training.scalars() == {'rows': 3 * N ** 2, 'occupied_share': 0.25, 'voxel': 0.25, 'rays_per_step': 3,
                                  'samples_per_ray': 2 * CELLS}


# Slow start


@BOTH
@pytest.mark.parametrize(('slow', 'stages'), [(0.02, '0:8 0.3:12'), (0.5, '0:8 0.3:12'), (1.0, '0:8 0.3:12'),
                                              (0.02, '0:8')])
def test_densities_start_slowly_in_the_first_of_several_stages(compiled, slow, stages):
    field = a_field(compiled, slow_start=slow, stages=stages, rate_density=7.0, rate_colour=7.0)
    before = field.rows.detach().clone()
    take_step(GridTraining(field, 20), DOWN, numbers(1, 0.5), Target(torch.full((1, 3), 0.1)))
    change = (field.rows.detach() - before).abs().amax(0)
    expected = min(slow + 1.0 / field.schedule.pruning_steps, 1.0) if len(field.voxels) > 1 else 1.0
    assert change[1].item() == pytest.approx(7.0 * 1e-3, rel=1e-3)  # a first step of Adam
    assert (change[0] / change[1]).item() == pytest.approx(expected, rel=1e-3)


# Pruning and stages


def test_dropping_all_cells_is_one_line_and_changes_nothing():
    field = a_field(False)
    with pytest.raises(UserError, match='the grid is empty') as error:
        prune(field, torch.zeros_like(field.grid.cells))
    assert '\n' not in str(error.value)
    assert len(field.rows) == N ** 3


@BOTH
def test_rows_stay_with_their_vertices(compiled):
    field = scramble(a_field(compiled))
    trained(GridTraining(field, 20), 2)
    before = dict(zip(map(tuple, field.grid.vertex_points().tolist()), field.rows.detach().clone()))
    prune(field, torch.rand(field.grid.cells.shape, generator=torch.Generator().manual_seed(6)) < 0.1)
    assert 8 < len(field.rows) < len(before)
    for point, row in zip(field.grid.vertex_points().tolist(), field.rows.detach()):
        assert torch.equal(row, before[tuple(point)])
    assert math.isfinite(trained(GridTraining(field, 20), 1)[0])


@BOTH
def test_pruning_drops_thin_cells_changes_no_view_and_adam_begins_anew(compiled):
    field = fill(a_field(compiled), lambda points: ball(points, radius=0.4))
    training = training_of(field, pruning_steps=5)
    training.row_adam.running['exp_avg'].fill_(1.0)
    before, notes = shown(field, some_rays()), some_notes(training)
    assert training.after_step(4, notes) == ([], False)
    lines, replaced = training.after_step(5, notes)
    assert lines == [f'step 5: pruned {N ** 3} to {len(field.rows)} vertices']
    assert replaced
    assert len(field.rows) < 0.8 * N ** 3
    assert not training.row_adam.running['exp_avg'].any()
    points = field.grid.vertex_points()
    dense = (points.norm(dim=-1) < 0.4).nonzero()
    assert len(dense) == 19  # of 3 x 3 x 3, 0.25 apart: the corners are 0.433 from the centre
    after = shown(field, some_rays())
    for name in ('rgb', 'acc', 'depth'):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=0, atol=1e-5)


@BOTH
def test_a_stage_has_smaller_voxels_of_the_same_optical_depth_and_colour_and_adam_begins_anew(compiled):
    field = scramble(a_field(compiled, stages='0:8 0.5:16', thin=0.0))
    training = training_of(field)
    trained(training, 2)
    points = 2.0 * torch.rand(500, 3, generator=torch.Generator().manual_seed(7)) - 1.0
    before, colours = field.density(points), field.radiance(points[None], torch.tensor([[0.0, 0.0, 1.0]]))[0]
    (line,), replaced = training.after_step(10, some_notes(training))
    assert line.startswith('step 10: grid      4,913 of 17x17x17 vertices, 0.125 apart')
    assert replaced
    assert (field.stage, len(field.rows)) == (1, 17 ** 3)
    assert [bool(part.any()) for part in training.row_adam.running.values()] == [False] * 4
    torch.testing.assert_close(field.density(points) * 0.125, before * 0.25, rtol=1e-3, atol=1e-4)  # of a voxel
    torch.testing.assert_close(field.radiance(points[None], torch.tensor([[0.0, 0.0, 1.0]]))[0], colours,
                               rtol=0, atol=1e-4)
    assert math.isfinite(trained(training, 1)[0])


def test_stages_follow_each_other_over_the_run_and_none_comes_after_its_last_step():
    field = fill(a_field(False), ball)
    training = GridTraining(field, 30)
    notes = some_notes(training)
    said = {step: lines for step in range(1, 31) if (lines := training.after_step(step, notes).lines)}
    stages = {step: lines for step, lines in said.items() if 'grid' in lines[0]}
    assert [*stages] == [9, 18]
    assert '0.1667 apart' in stages[9][0]
    assert '0.125 apart' in stages[18][0]
    assert len(said) > 2
    assert all(lines[0].startswith(f'step {step}: ') and len(lines) == 1 for step, lines in said.items())
    assert 30 not in said
    assert field.stage == 2
    short = GridTraining(a_field(False), 1)
    assert short.after_step(1, some_notes(short)) == ([], False)


def test_a_short_run_keeps_its_first_grid():
    training = GridTraining(a_field(False), 3)  # all of it is still thin
    assert [training.after_step(step, some_notes(training)) for step in (1, 2, 3)] == [([], False)] * 3
    assert len(training.field.rows) == N ** 3


def test_a_pruning_that_finds_nothing_dense_in_the_first_steps_changes_nothing():
    field = fill(a_field(False, stages='0:8'), even(1e-6))
    training = training_of(field, 100, pruning=0.12)
    (line,), replaced = training.after_step(12, some_notes(training))
    assert line == 'step 12: pruned 729 to 729 vertices'
    assert not replaced


def test_a_grid_has_no_more_rows_than_it_may():
    field = fill(a_field(False, most_rows=20000, rows_per_cell=1.3), even(5.0))
    refine(field, 2.0 / 80)
    assert 15000 < len(field.rows) <= 20000


@BOTH
@pytest.mark.parametrize(('hidden', 'margin', 'lowest'), [
    (0.2, 0, (0.2, 0.8)), (0.2, 1, (-0.1, 0.5)), (0.2, 8, (-1.1, -0.9)), (0.0, 0, (-1.1, -0.9))])
def test_rows_hidden_from_all_rays_are_pruned_but_for_a_margin_unless_the_schedule_says_not_to(
        compiled, hidden, margin, lowest):
    """Matter of which rays from above meet the upper side alone. Cells are a quarter wide."""
    field = fill(a_field(compiled, hidden=hidden, hidden_margin=margin), even(400.0))
    training = GridTraining(field, 20)
    x, y = (part.flatten() for part in torch.meshgrid(torch.linspace(-0.95, 0.95, 40), torch.linspace(-0.95, 0.95, 40),
                                                      indexing='ij'))
    down = torch.tensor([[0.0, 0.0, -1.0]]).expand(1600, 3)
    rays = Rays(torch.stack([x, y, torch.full_like(x, 3.0)], -1), down, down, torch.zeros(1600, 1),
                torch.full((1600, 1), 10.0))
    take_step(training, rays, numbers(1600, 0.5), Target(torch.zeros(1600, 3)), rate=0.0)
    assert 0.5 < training.row_adam.running['strongest'].max() <= 1.0
    assert field.grid.vertex_points()[:, 2].min() < -0.9
    training.row_adam.running['step'].fill_(20)
    training.after_step(19, some_notes(training))
    kept = field.grid.vertex_points()[:, 2]
    assert kept.max() > 0.9
    assert lowest[0] < kept.min() < lowest[1]


def test_the_spread_is_a_loss_after_the_first_stage_if_the_schedule_has_a_weight():
    field, rays = fill(a_field(False, distortion=0.5), even(0.2)), one_ray([0.1, 0.1, 3.0], [0.0, 0.0, -1.0])
    training, target = GridTraining(field, 20), Target(torch.zeros(1, 3))
    assert training.losses(rays, numbers(1, 0.5), target).terms['distortion'] == 0.0
    field.stage = 1
    terms = training.losses(rays, numbers(1, 0.5), target).terms
    distortion = field.march(rays, torch.full((1,), 0.5)).distortion
    assert float(terms['distortion'].detach()) == pytest.approx(0.5 * float(distortion.detach()))
    assert terms['distortion'] > 1e-3
    field.schedule = training.schedule = replace(field.schedule, distortion=0.0)
    assert training.losses(rays, numbers(1, 0.5), target).terms.keys() == {'mse'}


def test_gradients_fade_within_a_share_of_the_distance_to_the_scene():
    rays = one_ray([3.0, 0.0, 4.0], [0.0, 0.0, -1.0])
    assert a_field(False, fade=0.5).voxel_rays(rays).fade.tolist() == pytest.approx([2.5])
    assert a_field(False, fade=0.0).voxel_rays(rays).fade.tolist() == [0.0]


@BOTH
def test_a_scene_without_anything_dense_is_one_line(compiled):
    training = GridTraining(fill(a_field(compiled), even(1e-6)), 20)
    with pytest.raises(UserError, match='the grid is empty: nothing in the scene is dense enough') as error:
        training.after_step(19, some_notes(training))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('target', 'of_mean'), [((0.1, 0.5), '0.0400'), ((0.8, 1.0), None), ((0.2, 0.2), None)])
def test_a_grid_that_shows_no_more_than_one_colour_would_is_reported_with_both_errors(target, of_mean):
    """One ray shows 0.9, another passes by and shows white; targets of one colour say nothing about the grid."""
    field = fill(a_field(False), even(50.0), colour=torch.full((3,), 0.9))
    hit, miss = one_ray([0.1, 0.1, 3.0], [0.0, 0.0, -1.0]), one_ray([3.0, 3.0, 3.0], [0.0, 0.0, -1.0])
    rays, training = Rays(*(torch.cat(parts) for parts in zip(hit, miss))), GridTraining(field, 20)
    *fog, last = training.after_step(19, noted(training, rays, torch.tensor(target)[:, None].expand(2, 3))).lines
    assert 'vertices' in last
    assert [line.partition('; ')[0] for line in fog] == [
        f'step 19: the grid shows no more than fog: its error is 0.4450, that of one colour for all pixels {of_mean}'
        ] * (of_mean is not None)


# Checkpoints


def through_a_file(content: dict) -> dict:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@BOTH
def test_weights_and_state_go_into_another_training_bit_for_bit(compiled):
    field = scramble(a_field(compiled))
    training = GridTraining(field, 20)
    trained(training, 2)
    training.after_step(9, noted(training, some_rays(), torch.full((200, 3), 0.5)))
    trained(training, 2)
    other = a_field(compiled, seed=9)
    other.load_weights(through_a_file(field.weights()))
    assert_same(shown(other, some_rays()).rgb, shown(field, some_rays()).rgb)
    again = GridTraining(other, 20)
    again.load_state(through_a_file(training.state()))
    assert (other.stage, again.row_adam.running['step']) == (1, 2)
    assert again.rays_per_step(10 ** 6) == training.rays_per_step(10 ** 6) != field.schedule.first_rays
    assert_same(copy.deepcopy(other.weights()), field.weights())
    assert_same(copy.deepcopy(again.state()), training.state())
    losses = [trained(part, 3) for part in (training, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    if compiled:  # plain PyTorch adds a row's gradients in any order where it has several threads
        assert losses[0] == losses[1]
        assert_same(other.weights(), field.weights())
        assert_same(again.state(), training.state())


@pytest.mark.parametrize(('name', 'value'), [('n_rays', 0), ('n_rays', 10 ** 9), ('n_rays', None),
                                             ('adam_steps', -1), ('means', None)])
def test_a_broken_state_is_an_error(name, value):
    training = GridTraining(a_field(False), 20)
    state = training.state()['grid']
    with pytest.raises((ValueError, LookupError, TypeError, AttributeError, RuntimeError)):
        training.load_state({'grid': state | {name: value}})
    with pytest.raises(LookupError):
        training.load_state({'grid': {key: part for key, part in state.items() if key != name}})
