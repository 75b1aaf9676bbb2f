"""training.py of the paper's field: losses, random numbers of a step, and the watch for dead networks."""

from __future__ import annotations

import pytest
import torch
from conftest import trainer_of
from fields.paper.test_field import a_field
from test_run_nerf_helpers import rand, seeded, some_rays

from nerf.fields.interface import Target
from nerf.fields.paper.field import Shortcuts
from nerf.fields.paper.training import CHECK_STEPS, DeadNetworks, PaperTraining, seen
from run_nerf_helpers import Draws, NeRF, draw, img2mse, raw2outputs, ray_points, render_rays, stratified_z

RAYS = some_rays(12)
TARGET = Target(rand(12, 3, seed=2))


def training_of(fine: bool = True, chunk: int = 100, shortcuts: Shortcuts = Shortcuts(), **changes) -> PaperTraining:  # noqa: B008
    field = a_field(fine, **changes)
    field.shortcuts = shortcuts
    return PaperTraining(field, chunk)


def numbers_of(training: PaperTraining, seed: int = 3):
    return training.random_numbers(12, seeded(seed))


@pytest.mark.parametrize('fine', [True, False])
def test_losses_are_those_of_render_rays(fine):
    training = training_of(fine)
    field, numbers = training.field, numbers_of(training)
    terms, notes = training.losses(RAYS, numbers, TARGET)
    assert tuple(terms) == (('mse0', 'mse') if fine else ('mse',))
    shown = render_rays(RAYS, field.coarse.raw, (fine and field.fine.raw) or None, field.sampling, Draws(*numbers[:4]))
    assert torch.equal(terms['mse'], img2mse(shown.final.rgb, TARGET.rgb))
    colours = [shown.final.rgb, TARGET.rgb]
    if fine:
        assert torch.equal(terms['mse0'], img2mse(shown.coarse.rgb, TARGET.rgb))
        assert terms['mse0'] != terms['mse']
        colours = [shown.coarse.rgb, *colours]
    assert torch.equal(notes['seen'], seen(colours))


def test_the_loss_of_one_pass_is_the_compositors_error():
    training = training_of(fine=False)
    numbers, sampling, network = numbers_of(training), training.field.sampling, training.field.coarse
    z = stratified_z(RAYS.near, RAYS.far, sampling.N_samples, jitter=numbers[0])
    raw = network.raw(ray_points(RAYS, z), RAYS.viewdirs, numbers[2])
    shown = raw2outputs(raw, z, RAYS.directions, sampling.raw_noise_std, True, noise=numbers[2])
    assert torch.equal(training.losses(RAYS, numbers, TARGET).terms['mse'], img2mse(shown.rgb, TARGET.rgb))


def test_gains_multiply_what_the_field_shows_but_not_the_white_background():
    training = training_of(fine=False)
    numbers, gains = numbers_of(training), rand(12, 3, low=0.5, high=2.0)
    shown = training.sampler.render(RAYS, Draws(*numbers[:4])).final
    white = 1.0 - shown.acc[:, None]
    expected = img2mse(white + gains * (shown.rgb - white), TARGET.rgb)
    torch.testing.assert_close(training.losses(RAYS, numbers, TARGET._replace(gains=gains)).terms['mse'], expected)


@pytest.mark.parametrize('fine', [True, False])
def test_each_loss_trains_its_own_network(fine):
    training = training_of(fine)
    numbers = numbers_of(training)
    for name, trained in (('mse0', 'coarse'), ('mse', 'fine')) if fine else (('mse', 'coarse'),):
        training.field.zero_grad()
        training.losses(RAYS, numbers, TARGET).terms[name].backward()
        changed = {key.split('.')[0] for key, weight in training.field.named_parameters()
                   if weight.grad is not None and weight.grad.abs().sum() > 0}
        assert changed == {trained}


def test_losses_and_notes_of_tiles_add_up_to_those_of_all_rays_at_once():
    training = training_of(chunk=5)
    numbers, tiles = numbers_of(training), training.tiles(12)
    assert [(tile.start, tile.stop) for tile in tiles] == [(0, 5), (5, 10), (10, 12)]
    whole = training.losses(RAYS, numbers, TARGET)
    parts = [training.losses(RAYS.part(tile), tuple(part if part is None else part[tile] for part in numbers),
                             TARGET.part(tile)) for tile in tiles]
    for name, loss in whole.terms.items():
        mean = sum(part.terms[name] * (tile.stop - tile.start) for part, tile in zip(parts, tiles)) / 12
        torch.testing.assert_close(mean, loss)
    torch.testing.assert_close(sum(part.notes['seen'] for part in parts), whole.notes['seen'])


def test_random_numbers_are_draws_and_follow_from_the_generator():
    training = training_of()
    first, again, other = (numbers_of(training, seed) for seed in (4, 4, 5))
    assert first[4] is None
    assert [part.shape for part in first[:4]] == [(12, 6), (12, 4), (12, 6), (12, 10)]
    for part, same, different, drawn in zip(first[:4], again, other, draw(12, training.field.sampling, seeded(4))):
        assert torch.equal(part, same)
        assert torch.equal(part, drawn)
        assert not torch.equal(part, different)


@pytest.mark.parametrize(('shortcuts', 'absent'), [
    (Shortcuts(u_ahead=False), [False, True, False, False]),
    (Shortcuts(fast=False, noise_ahead=False), [False, False, True, True])])
def test_numbers_that_edited_functions_draw_come_from_seeds_and_repeat(shortcuts, absent):
    training = training_of(shortcuts=shortcuts)
    assert not training.captured
    numbers = numbers_of(training)
    assert [part is None for part in numbers[:4]] == absent
    assert numbers[4].shape == (12,)
    first, again = (training.losses(RAYS, numbers, TARGET).terms['mse'] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, training.losses(RAYS, (*numbers[:4], numbers[4] + 1), TARGET).terms['mse'])


def test_all_parameters_are_in_one_group_at_the_learning_rate_coarse_first():
    training = training_of()
    (group,) = training.parameter_groups()
    assert group['rate'] == 1.0
    expected = [*training.field.coarse.network.parameters(), *training.field.fine.network.parameters()]
    assert [id(each) for each in group['params']] == [id(each) for each in expected]


def test_the_state_is_that_of_the_watch_for_dead_networks():
    training, other = training_of(), training_of()
    training.after_step(1, training.losses(RAYS, numbers_of(training), TARGET).notes)
    other.load_state(training.state())
    assert torch.equal(other.state()['guard']['sums'], training.state()['guard']['sums'])
    assert (other.state()['guard']['sums'] != 0).any()
    with pytest.raises(LookupError):
        other.load_state({})


# Watch for dead networks

CPU = torch.device('cpu')


def empty(network: NeRF) -> None:
    """Makes density zero everywhere."""
    with torch.no_grad():
        network.alpha_linear.weight.zero_()
        network.alpha_linear.bias.fill_(-1.0)


def whiten(network: NeRF) -> None:
    """Makes a white fog in front of the white background: saturated colours, whose density does not matter."""
    with torch.no_grad():
        network.rgb_linear.bias.fill_(30.0)
        network.alpha_linear.bias.fill_(1.0)


@pytest.mark.parametrize('kill', [empty, whiten])
@pytest.mark.parametrize(('name', 'other'), [('coarse', 'fine'), ('fine', 'coarse')])
def test_a_dead_network_is_named_once_and_a_live_one_is_not(flags, name, other, kill):
    trainer = trainer_of(flags('--lrate', '1e-3'))
    networks = trainer.field.networks()
    kill(networks[name])
    with torch.no_grad():
        networks[other].alpha_linear.bias.fill_(1.0)
    said = []
    for step in range(1, 2 * CHECK_STEPS + 1):
        losses = trainer.step(step)
        lines = trainer.after_step(step, losses)
        said += [(step, line) for line in lines]
    ((step, line),) = said
    assert step == CHECK_STEPS
    assert line.startswith(f'warning: step {CHECK_STEPS}: the {name} network is dead')
    assert 'start again with another seed or a lower lrate' in line


def lines_of(shown: torch.Tensor, watch: DeadNetworks | None = None) -> list[str]:
    """What is said of steps of some rays each, with colours [steps, P + 1, R, 3]."""
    watch = watch or DeadNetworks(['coarse', 'fine'], CPU)
    return [line for step, colours in enumerate(shown, 1) for line in watch.watch(step, seen(list(colours)))]


def window(rays: int = 1000) -> torch.Tensor:
    """One colour everywhere, but for the targets."""
    shown = torch.full((CHECK_STEPS, 3, rays, 3), 0.3)
    shown[9, 2] += 0.5
    return shown


@pytest.mark.parametrize(('change', 'dead'), [(0.0, ['coarse', 'fine']), (0.002, [])])
def test_half_a_grey_level_more_in_one_ray_of_all_is_life(change, dead):
    shown = window()
    shown[3, 0, 17, 1] += change
    shown[7, 1, 0, 2] -= change
    assert [line.split('the ')[1].split(' ')[0] for line in lines_of(shown)] == dead


def test_one_colour_is_no_death_where_the_targets_have_one_colour_too():
    shown = torch.full((CHECK_STEPS, 3, 5, 3), 0.5)
    assert lines_of(shown) == []
    shown[:, :2] += 1e-7 * torch.rand(CHECK_STEPS, 2, 5, 3, generator=torch.Generator().manual_seed(0))
    shown[9, 2] += 0.5
    assert len(lines_of(shown)) == 2  # rounding is no life


def test_each_window_is_judged_by_itself():
    watch, alive = DeadNetworks(['coarse', 'fine'], CPU), window(5)
    alive[3, :2] += 0.25 * torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert lines_of(alive, watch) == []
    assert len(lines_of(window(5), watch)) == 2


def test_tiles_and_steps_add_up():
    colours = [torch.rand(7, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    parts = [seen([part[rows] for part in colours]) for rows in (slice(0, 4), slice(4, 7))]
    torch.testing.assert_close(parts[0] + parts[1], seen(colours))
    count, total, squares = seen(colours)
    assert (count == 7).all()
    torch.testing.assert_close(total.float(), torch.stack([part.sum(0) for part in colours]))
    torch.testing.assert_close(squares.float(), torch.stack([(part ** 2).sum(0) for part in colours]))


def test_a_restored_watch_goes_on_with_the_colours_of_before():
    shown = window(5)
    shown[3, :2] += 0.25 * torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0))
    first, second = DeadNetworks(['coarse', 'fine'], CPU), DeadNetworks(['coarse', 'fine'], CPU)
    for step in range(1, 6):
        first.watch(step, seen(list(shown[step - 1])))
    second.load_state(first.state())
    said = [line for step in range(6, CHECK_STEPS + 1) for line in second.watch(step, seen(list(shown[step - 1])))]
    assert said == []  # the life of step 4 was not forgotten
    first.watch(6, seen(list(shown[0])))
    assert not torch.equal(first.state()['sums'], second.state()['sums'])


@pytest.mark.parametrize('state', [{'ranges': torch.zeros(2, 3, 3)}, {'tries': {'coarse': 1}, 'ranges': None}])
def test_a_state_of_an_earlier_version_starts_a_new_window(state):
    watch = DeadNetworks(['coarse', 'fine'], CPU)
    watch.watch(1, seen(list(window(5)[9])))
    watch.load_state(state)
    assert (watch.state()['sums'] == 0).all()


def test_a_broken_state_is_an_error_and_changes_nothing():
    watch = DeadNetworks(['coarse', 'fine'], CPU)
    watch.watch(1, seen(list(window(5)[9])))
    before = watch.state()['sums']
    with pytest.raises(ValueError, match='sums of shape'):
        watch.load_state({'sums': torch.zeros(3, 2, 3)})
    assert torch.equal(watch.state()['sums'], before)
