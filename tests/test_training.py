"""nerf/training.py: the training step of any field, and checkpoints from which training goes on bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import third_kind
import torch
from conftest import assert_same, trainer_of

from nerf.ray_batcher import RayBatcher
from nerf.runtime.errors import UserError
from nerf.training import Trainer
from run_nerf_helpers import draw, img2mse, render_rays

# The step


def test_the_rate_falls_to_a_tenth_in_lrate_decay_thousand_steps(flags):
    trainer = trainer_of(flags('--lrate', '2e-3', '--lrate_decay', '3'))
    assert trainer.learning_rate(0) == 2e-3
    assert trainer.learning_rate(1500) == pytest.approx(2e-3 * 0.1 ** 0.5)
    assert trainer.learning_rate(3000) == pytest.approx(2e-4)
    trainer.step(1500)
    rate = torch.tensor(trainer.learning_rate(1500))  # float32, as Adam has it
    assert torch.equal(trainer.optimiser.adam.param_groups[0]['lr'], rate)


def test_a_step_is_adam_on_the_gradient_of_the_summed_errors_of_both_passes(flags):
    tiled, plain = (trainer_of(flags('--raw_noise_std', '0.5', *more)) for more in (('--chunk', '5'), ()))
    before = [weight.detach().clone() for weight in tiled.field.parameters()]
    losses = tiled.step(1)

    (rays, target), field = plain.batcher.next(1), plain.field
    draws = draw(len(target.rgb), field.sampling, plain.batcher.generator)
    result = render_rays(rays, field.coarse.raw, field.fine.raw, field.sampling, draws)
    errors = {'mse0': img2mse(result.coarse.rgb, target.rgb), 'mse': img2mse(result.final.rgb, target.rgb)}
    sum(errors.values()).backward()
    assert list(losses.terms) == list(errors)
    for name, error in errors.items():
        torch.testing.assert_close(losses.terms[name], error.detach())
    for ours, theirs in zip(tiled.field.parameters(), field.parameters()):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)
    # Adam's first step moves every weight by the rate, against the sign of its gradient.
    for ours, old in zip(tiled.field.parameters(), before):
        if ours.grad is not None:
            large = ours.grad.abs() > 1e-6
            torch.testing.assert_close((ours - old)[large], -1e-2 * ours.grad.sign()[large], rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize('change', [('--chunk', '7'), ('--netchunk', '13'), ('--chunk', '1', '--netchunk', '1')])
def test_chunk_and_netchunk_do_not_change_training(flags, change):
    whole, cut = trainer_of(flags()), trainer_of(flags(*change))
    for step in range(1, 4):
        torch.testing.assert_close(whole.step(step).terms, cut.step(step).terms, rtol=1e-4, atol=1e-6)


def test_tiles_cover_all_rays_once_and_stay_within_chunk(flags):
    training = trainer_of(flags('--chunk', '10')).training
    assert training.tiles(32) == [slice(0, 10), slice(10, 20), slice(20, 30), slice(30, 32)]


@pytest.mark.parametrize(('extra', 'rays'), [
    (('--netwidth', '256', '--N_samples', '64', '--N_importance', '128'), 128),
    (('--netwidth', '64', '--netwidth_fine', '128', '--N_samples', '64', '--N_importance', '128'), 256),
    (('--chunk', '7'), 7), (('--netwidth', '256', '--N_samples', '100000'), 1)])
def test_a_tile_on_a_cpu_has_no_more_rays_than_make_good_use_of_it(flags, extra, rays):
    assert trainer_of(flags(*extra)).training.tiles(2000)[0] == slice(0, rays)


@pytest.mark.parametrize('extra', [('--N_importance', '0'), ('--precision', 'bf16'), ('--ema_decay', '0.99')])
def test_training_learns(flags, extra):
    assert_learns(trainer_of(flags(*extra, '--seed', '3', '--N_rand', '128')))


@pytest.mark.slow
@pytest.mark.parametrize('extra', [
    ('--lindisp',), ('--i_embed', '-1'), ('--perturb', '0'), ('--raw_noise_std', '1'), ('--no_batching',)])
def test_every_way_of_training_learns(flags, extra):
    assert_learns(trainer_of(flags(*extra, '--seed', '3', '--N_rand', '128')))


def assert_learns(trainer: Trainer) -> None:
    first, last = {}, {}
    for step in range(1, 121):
        losses = trainer.step(step)
        assert trainer.after_step(step, losses) == []
        for name, loss in losses.terms.items():
            part = first if step <= 5 else last if step > 115 else {}
            part[name] = part.get(name, 0.0) + loss
    assert list(first) == (['mse'] if trainer.field.fine is None else ['mse0', 'mse'])
    assert all(last[name] < 0.7 * first[name] for name in first)


def test_without_view_directions_a_fine_network_has_five_outputs_as_in_the_reference(flags):
    plain = [flag for flag in flags() if flag != '--use_viewdirs']
    assert trainer_of(plain).field.fine.network.output_linear.out_features == 5
    trainer_of(plain).step(1)
    assert trainer_of([*plain, '--N_importance', '0']).field.coarse.network.output_linear.out_features == 4


# Any field


class Tiled(third_kind.PlainTraining):
    """The training of one colour, with rays in tiles, and with fewer rays from step 3 on."""

    chunk = 7

    def rays_per_step(self, n_rays: int) -> int:
        return n_rays if self.steps < 2 else n_rays // 2


def plain_trainer(tmp_path, training=Tiled, **kwargs) -> Trainer:
    """Trainer of a field of one colour on six images, 40 rays a step."""
    path = tmp_path / 'scene'
    args = type('Args', (), {'datadir': path if path.exists() else third_kind.write_scene(path), 'held_out': 2,
                             'white_bkgd': False})
    batcher = RayBatcher(third_kind.load(args), 40, False, 0, 0.5, torch.Generator().manual_seed(0))
    return Trainer(training(third_kind.PlainField(0.5)), batcher, 0.01, **kwargs)


def test_a_loss_is_the_mean_over_all_tiles_and_a_note_is_their_sum(tmp_path):
    losses = plain_trainer(tmp_path).step(1)
    off = np.abs(0.5 - np.rint(255 * np.array(third_kind.BLUE)) / 255).mean()
    assert losses.terms.keys() == {'photometric', 'brightness'}
    assert float(losses.terms['photometric']) == pytest.approx(off, abs=0.01)  # with noise
    assert float(losses.terms['brightness']) == pytest.approx(0.0015)
    assert {name: float(note) for name, note in losses.notes.items()} == {'rays': 40.0}


def test_a_training_says_how_many_rays_the_next_step_has(tmp_path):
    trainer, counts = plain_trainer(tmp_path), []
    for step in range(1, 5):
        losses = trainer.step(step)
        trainer.after_step(step, losses)
        counts.append((trainer.n_rays, int(losses.notes['rays'])))
    assert counts == [(40, 40), (40, 40), (20, 20), (20, 20)]


def test_lines_of_a_training_follow_that_of_a_skipped_step(tmp_path):
    trainer = plain_trainer(tmp_path, lambda field: third_kind.PlainTraining(field, breaks=9))
    said = []
    for step in range(1, 19):
        said.append(trainer.after_step(step, trainer.step(step)))
    assert said[:9] == [[]] * 9
    assert said[9] == ['step 10: the loss photometric is not finite; the step was skipped', 'step 10: 40 rays']
    with pytest.raises(UserError, match='step 19: the loss photometric was not finite 10 times in a row'):
        trainer.after_step(19, trainer.step(19))


@pytest.mark.parametrize(('given', 'expected'), [(None, 1.0), (4.0, 4.0)])
def test_the_decay_of_the_rate_is_the_trainings_own_unless_a_flag_gives_one(tmp_path, given, expected):
    trainer = plain_trainer(tmp_path, lrate_decay=given)
    assert trainer.learning_rate(2000) == pytest.approx(0.01 * 0.1 ** (2 / expected))


# Checkpoints


def test_a_checkpoint_has_the_entries_of_the_reference_code_and_what_the_next_steps_depend_on(flags):
    trainer = trainer_of(flags('--raw_noise_std', '0.1'))
    for step in range(1, 4):
        trainer.step(step)
    checkpoint = trainer.checkpoint(3)
    assert checkpoint.keys() == {'global_step', 'network_fn_state_dict', 'network_fine_state_dict',
                                 'optimizer_state_dict', 'run_state'}
    assert checkpoint['run_state'].keys() == {'scaler', 'batcher', *trainer.training.state()}
    assert checkpoint['global_step'] == 3
    assert checkpoint['run_state']['batcher']['used'] == 96
    assert_same(checkpoint['network_fn_state_dict'], trainer.field.coarse.network.state_dict())
    assert_same(checkpoint['network_fine_state_dict'], trainer.field.fine.network.state_dict())
    group, = checkpoint['optimizer_state_dict']['param_groups']
    assert group['lr'] == pytest.approx(trainer.learning_rate(3))
    assert type(group['lr']) is float


@pytest.mark.parametrize('decay', ['0', '0.9'])
def test_a_trainer_goes_on_from_a_checkpoint_as_the_one_that_made_it(flags, tmp_path, decay):
    extra = ('--raw_noise_std', '0.1', '--no_batching', '--ema_decay', decay)
    whole, again = trainer_of(flags(*extra)), trainer_of(flags(*extra, '--seed', '5'))
    for step in range(1, 11):
        whole.step(step)
    torch.save(whole.checkpoint(10), tmp_path / 'saved')
    saved = torch.load(tmp_path / 'saved', weights_only=True)
    again.field.load_weights(saved)
    again.optimiser.load_state_dict(saved['optimizer_state_dict'])
    again.optimiser.load_average(saved)
    again.load_state(saved['run_state'], 10)
    for step in range(11, 31):
        assert_same(whole.step(step).terms, again.step(step).terms)
    assert_same(again.checkpoint(30), whole.checkpoint(30))


def test_a_checkpoint_with_an_average_has_it_beside_the_weights_that_are_trained(flags):
    trainer = trainer_of(flags('--ema_decay', '0.9'))
    shown = trainer.field.fine.network.rgb_linear.bias.detach().clone()
    for step in range(1, 6):
        trainer.step(step)
        share = 1.0 - min(0.9, step / (step + 9))
        shown = torch.lerp(shown, trainer.field.fine.network.rgb_linear.bias.detach(), share)
    checkpoint = trainer.checkpoint(5)
    assert checkpoint['averaged'].keys() == {'network_fn_state_dict', 'network_fine_state_dict'}
    torch.testing.assert_close(checkpoint['averaged']['network_fine_state_dict']['rgb_linear.bias'], shown)
    assert not torch.equal(checkpoint['network_fine_state_dict']['rgb_linear.bias'], shown)
    torch.testing.assert_close(trainer.shown_field().fine.network.rgb_linear.bias, shown)
