"""The training step, checkpoints, and runs that stop and go on bit for bit."""

import random

import pytest
import torch
from conftest import assert_same, state_of_run, trainer_of
from kill_harness import command, differences, finish, kill_until_done

import run_nerf
from run_nerf_helpers import draw, img2mse, render_rays

# The step


def test_the_rate_falls_to_a_tenth_every_lrate_decay_thousand_steps(flags):
    trainer = trainer_of(flags('--lrate', '2e-3', '--lrate_decay', '3'))
    assert trainer.learning_rate(0) == 2e-3
    assert trainer.learning_rate(1500) == pytest.approx(2e-3 * 0.1 ** 0.5)
    assert trainer.learning_rate(3000) == pytest.approx(2e-4)
    trainer.step(1500)
    rate = torch.tensor(trainer.learning_rate(1500))  # float32, as Adam has it
    assert torch.equal(trainer.optimiser.adam.param_groups[0]['lr'], rate)


def test_a_step_is_adam_on_the_gradient_of_the_summed_errors_of_both_passes(flags):
    tiled, plain = (trainer_of(flags('--raw_noise_std', '0.5')) for _ in range(2))
    tiled.model.chunk = 5
    losses = tiled.step(1)

    (rays, target), model = plain.batcher.next(1), plain.model
    draws = draw(len(target), model.sampling, plain.batcher.generator)
    result = render_rays(rays, model.coarse, model.fine, model.sampling, draws)
    errors = {'mse0': img2mse(result.coarse.rgb, target), 'mse': img2mse(result.final.rgb, target)}
    sum(errors.values()).backward()
    assert list(losses) == list(errors)
    for name, error in errors.items():
        torch.testing.assert_close(losses[name], error.detach())
    for ours, theirs in zip(tiled.model.parameters(), plain.model.parameters()):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)
    # Adam's first step moves every weight by the rate, against the sign of its gradient.
    before = trainer_of(flags()).model.parameters()
    for ours, old in zip(tiled.model.parameters(), before):
        large = ours.grad.abs() > 1e-6
        torch.testing.assert_close((ours - old)[large], -1e-2 * ours.grad.sign()[large], rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize('change', [('--chunk', '7'), ('--netchunk', '13'), ('--chunk', '1', '--netchunk', '1')])
def test_chunk_and_netchunk_do_not_change_training(flags, change):
    whole, cut = trainer_of(flags()), trainer_of(flags(*change))
    for step in range(1, 4):
        torch.testing.assert_close(whole.step(step), cut.step(step), rtol=1e-4, atol=1e-6)
    assert len(cut.model.tiles(32)) == (1 if change[0] == '--netchunk' else -(-32 // int(change[1])))


def test_tiles_cover_all_rays_once_and_stay_within_chunk(flags):
    model = trainer_of(flags('--chunk', '10')).model
    assert model.tiles(32) == [slice(0, 10), slice(10, 20), slice(20, 30), slice(30, 32)]


@pytest.mark.parametrize('extra', [
    ('--N_importance', '0'), ('--precision', 'bf16'), ('--lindisp',), ('--i_embed', '-1'), ('--perturb', '0'),
    ('--raw_noise_std', '1'), ('--ema_decay', '0.99')])
def test_every_way_of_training_learns(flags, extra):
    trainer = trainer_of(flags(*extra, '--seed', '3', '--N_rand', '128'))
    first = [trainer.step(step) for step in range(1, 6)]
    for step in range(6, 150):
        trainer.step(step)
        trainer.after_step(step)
    last = [trainer.step(step) for step in range(150, 155)]
    assert list(first[0]) == (['mse'] if '--N_importance' in extra else ['mse0', 'mse'])
    for name in first[0]:
        assert sum(losses[name] for losses in last) < 0.7 * sum(losses[name] for losses in first)


def test_without_view_directions_a_fine_network_has_five_outputs_as_in_the_reference(flags):
    plain = [flag for flag in flags() if flag != '--use_viewdirs']
    assert trainer_of(plain).model.fine.network.output_linear.out_features == 5
    trainer_of(plain).step(1)
    assert trainer_of([*plain, '--N_importance', '0']).model.coarse.network.output_linear.out_features == 4


# Checkpoints


def test_a_checkpoint_has_the_entries_of_the_reference_code_and_what_the_next_steps_depend_on(flags):
    trainer = trainer_of(flags('--raw_noise_std', '0.1'))
    for step in range(1, 4):
        trainer.step(step)
    checkpoint = trainer.checkpoint(3)
    assert checkpoint.keys() == {'global_step', 'network_fn_state_dict', 'network_fine_state_dict',
                                 'optimizer_state_dict', 'run_state'}
    assert checkpoint['run_state'].keys() == {'scaler', 'batcher', 'guard'}
    assert checkpoint['global_step'] == 3
    assert checkpoint['run_state']['batcher']['used'] == 96
    assert_same(checkpoint['network_fn_state_dict'], trainer.model.coarse.network.state_dict())
    assert_same(checkpoint['network_fine_state_dict'], trainer.model.fine.network.state_dict())
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
    again.model.load_weights(saved)
    again.optimiser.load_state_dict(saved['optimizer_state_dict'])
    again.optimiser.load_average(saved)
    again.load_state(saved['run_state'], 10)
    for step in range(11, 31):
        assert_same(whole.step(step), again.step(step))
    assert_same(again.checkpoint(30), whole.checkpoint(30))


def test_a_checkpoint_with_an_average_has_it_beside_the_weights_that_are_trained(flags):
    trainer = trainer_of(flags('--ema_decay', '0.9'))
    start = trainer.model.fine.network.rgb_linear.bias.detach().clone()
    shown = start.clone()
    for step in range(1, 6):
        trainer.step(step)
        share = 1.0 - min(0.9, step / (step + 9))
        shown = torch.lerp(shown, trainer.model.fine.network.rgb_linear.bias.detach(), share)
    checkpoint = trainer.checkpoint(5)
    assert checkpoint['averaged'].keys() == {'network_fn_state_dict', 'network_fine_state_dict'}
    torch.testing.assert_close(checkpoint['averaged']['network_fine_state_dict']['rgb_linear.bias'], shown)
    assert not torch.equal(checkpoint['network_fine_state_dict']['rgb_linear.bias'], shown)


# Runs that go on


def test_a_killed_run_with_an_average_ends_as_one_that_nobody_killed(scene_dir, tmp_path):
    runs = {name: [*command(scene_dir, tmp_path / name, 120), '--ema_decay', '0.95'] for name in ('whole', 'killed')}
    finish(runs['whole'])
    assert kill_until_done(runs['killed'], 1, random.Random(5)) == 1  # in step 60 or so
    assert differences(tmp_path / 'killed' / 'run', tmp_path / 'whole' / 'run', 120) == []
    averaged = torch.load(tmp_path / 'killed' / 'run' / '000120.tar', weights_only=True)['averaged']
    assert not torch.equal(averaged['network_fine_state_dict']['rgb_linear.bias'],
                           state_of_run(tmp_path / 'whole' / 'run', 120)['network_fine_state_dict']['rgb_linear.bias'])


def test_an_older_checkpoint_which_was_taken_right_after_a_check_goes_on_as_it_would_have(flags, tmp_path):
    assert run_nerf.main(flags('--N_iters', '30', '--i_weights', '25')) == 0
    whole = state_of_run(tmp_path / 'run', 30)
    (tmp_path / 'run' / '000030.tar').unlink()
    path = tmp_path / 'run' / '000025.tar'
    checkpoint = torch.load(path, weights_only=True)
    checkpoint['run_state']['guard']['ranges'] = None
    del checkpoint['run_state']['flags']['ema_decay']  # a flag that it did not know
    torch.save(checkpoint, path)
    assert run_nerf.main(flags('--N_iters', '30')) == 0
    assert_same(state_of_run(tmp_path / 'run', 30), whole)


def test_an_average_may_be_left_off_and_begun_when_a_run_goes_on(flags, tmp_path):
    for steps, decay in ((4, '0.9'), (6, '0'), (8, '0.9')):
        assert run_nerf.main(flags('--N_iters', str(steps), '--ema_decay', decay, '--i_weights', '1')) == 0
    assert run_nerf.main(flags('--N_iters', '8', expname='plain')) == 0

    states = {step: state_of_run(tmp_path / 'run', step) for step in range(1, 9)}
    assert [step for step, state in states.items() if 'averaged' in state] == [1, 2, 3, 4, 7, 8]
    fine = {step: state['network_fine_state_dict']['rgb_linear.bias'] for step, state in states.items()}
    expected = torch.lerp(torch.lerp(fine[6], fine[7], 9 / 16), fine[8], 9 / 17)  # it began at the weights of step 6
    torch.testing.assert_close(states[8]['averaged']['network_fine_state_dict']['rgb_linear.bias'], expected)
    plain = state_of_run(tmp_path / 'plain', 8)
    assert_same({key: states[8][key] for key in plain}, plain)  # the average does not change training
