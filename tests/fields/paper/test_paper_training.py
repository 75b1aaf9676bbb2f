"""training.py of the paper's field: its losses, and the random numbers of a step."""

from __future__ import annotations

import pytest
import torch
from fields.paper.test_field import a_field
from test_run_nerf_helpers import rand, seeded, some_rays

from nerf.fields.interface import Target
from nerf.fields.paper.dead_networks import seen
from nerf.fields.paper.edited import Shortcuts
from nerf.fields.paper.training import PaperTraining
from run_nerf_helpers import Draws, draw, img2mse, raw2outputs, ray_points, render_rays, stratified_z

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
