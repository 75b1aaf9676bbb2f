"""Adam's rates and skipped steps, parameters that are forgotten or replaced, the average, and what is restored."""

import itertools
import json

import pytest
import torch
from conftest import assert_same, trainer_of
from torch import nn

import run_nerf
from nerf.fields.paper import model as paper
from nerf.fields.interface import Model
from nerf.optimiser import BROKEN_STEPS, Optimiser, is_real
from nerf.runtime.errors import UserError
from run_nerf_helpers import img2mse

RATE = 0.01


class Springs(Model):
    """Two parameters, each drawn to a target by a loss of its own; the second is trained at ten times the rate."""

    dtype, device, loss_names = torch.float32, torch.device('cpu'), ('mse0', 'mse')

    def __init__(self, target: torch.Tensor | None = None):
        super().__init__()
        self.target = torch.arange(6.0) if target is None else target
        self.slow = nn.Parameter(torch.zeros_like(self.target))
        self.quick = nn.Parameter(torch.zeros(2))
        self.fixed = nn.Parameter(torch.ones(3))  # in no group

    def parameter_groups(self) -> list[dict]:
        return [{'params': [self.slow], 'rate': 1.0}, {'params': [self.quick], 'rate': 10.0}]

    def losses(self) -> dict[str, torch.Tensor]:
        # Sums: copies of a number then have the gradient that it has alone.
        return {'mse0': ((self.slow - self.target) ** 2).sum(), 'mse': ((self.quick - 50.0) ** 2).sum()}

    def weights(self) -> dict:
        return {'springs': self.state_dict()}

    def load_weights(self, checkpoint: dict) -> None:
        self.load_state_dict(checkpoint['springs'])


def take_step(optimiser: Optimiser, step: int, rate: float = RATE, spoil: dict[str, float] | None = None) -> None:
    """One step; `spoil` has factors for losses by name."""
    optimiser.prepare(step, rate)
    optimiser.zero_grad()
    losses = optimiser.model.losses()
    losses = {name: loss * (spoil or {}).get(name, 1.0) for name, loss in losses.items()}
    optimiser.backward(sum(losses.values()))
    optimiser.step({name: loss.detach() for name, loss in losses.items()})


def take_steps(optimiser: Optimiser, steps: range) -> None:
    for step in steps:
        take_step(optimiser, step)


def copies(parameters) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


# Steps and rates


def test_a_step_is_adams_with_the_rate_of_the_step_times_that_of_the_group():
    ours, theirs = Springs(), Springs()
    optimiser = Optimiser(ours)
    adam = torch.optim.Adam([{'params': [theirs.slow]}, {'params': [theirs.quick]}], betas=(0.9, 0.999), eps=1e-8)
    for step in range(1, 21):
        rate = RATE * 0.8 ** step
        take_step(optimiser, step, rate)
        adam.param_groups[0]['lr'], adam.param_groups[1]['lr'] = rate, 10.0 * rate
        adam.zero_grad()
        sum(theirs.losses().values()).backward()
        adam.step()
        torch.testing.assert_close(ours.slow, theirs.slow)
        torch.testing.assert_close(ours.quick, theirs.quick)
    assert torch.equal(ours.fixed, torch.ones(3))


@pytest.mark.parametrize(('spoilt', 'said'), [
    ({'mse0': float('nan')}, 'the loss mse0'), ({'mse': float('inf')}, 'the loss mse')])
def test_a_loss_that_is_not_finite_skips_the_step_which_is_reported(spoilt, said):
    optimiser = Optimiser(Springs())
    take_steps(optimiser, range(1, 4))
    weights, state = copies(optimiser.model.parameters()), optimiser.state_dict()
    state = {key: {name: value.clone() for name, value in one.items()} for key, one in state['state'].items()}
    take_step(optimiser, 4, spoil=spoilt)
    assert optimiser.check(4) == [f'step 4: {said} is not finite; the step was skipped']
    assert_same(copies(optimiser.model.parameters()), weights)
    assert_same(optimiser.state_dict()['state'], state)
    take_step(optimiser, 5)
    assert optimiser.check(5) == []
    assert not torch.equal(optimiser.model.slow, weights[0])


def test_a_loss_that_is_not_finite_skips_the_step_also_where_its_gradient_is():
    optimiser = Optimiser(Springs())
    optimiser.prepare(1, RATE)
    optimiser.backward(sum(optimiser.model.losses().values()))
    optimiser.step({'mse0': torch.tensor(float('inf')), 'mse': torch.tensor(1.0)})
    assert not optimiser.model.slow.any()
    assert optimiser.broken.tolist() == [1, 0, 0]


def test_broken_steps_are_counted_in_a_row_for_each_loss_and_for_the_gradient():
    optimiser = Optimiser(Springs())
    counts = []
    for step, spoilt in enumerate([{}, {'mse0': float('nan')}, {'mse0': float('nan')}, {'mse': float('nan')}, {}], 1):
        take_step(optimiser, step, spoil=spoilt)
        counts.append(optimiser.broken.tolist())
    assert counts == [[0, 0, 0], [1, 0, 1], [2, 0, 2], [0, 1, 3], [0, 0, 0]]  # mse0, mse, gradient


def test_a_run_ends_at_the_tenth_broken_step_in_a_row():
    optimiser = Optimiser(Springs())
    for step in range(1, BROKEN_STEPS):
        take_step(optimiser, step, spoil={'mse0': float('nan')})
        assert len(optimiser.check(step)) == 1
    take_step(optimiser, BROKEN_STEPS, spoil={'mse0': float('nan')})
    with pytest.raises(UserError, match=r'step 10: the loss mse0 was not finite 10 times in a row; .* lower lrate'):
        optimiser.check(BROKEN_STEPS)


def spoil_losses(monkeypatch, steps: range) -> None:
    """Makes the losses NaN at some steps, counted from 1; each has one tile and two passes."""
    calls = itertools.count()
    monkeypatch.setattr(paper, 'img2mse', lambda x, y: img2mse(x, y) * (
        float('nan') if next(calls) // 2 + 1 in steps else 1.0))


def test_a_training_step_whose_loss_is_not_finite_is_skipped_and_reported(flags, monkeypatch):
    trainer = trainer_of(flags())
    spoil_losses(monkeypatch, range(3, 5))
    for step in range(1, 7):
        before = {name: value.clone() for name, value in trainer.model.fine.state_dict().items()}
        trainer.step(step)
        bad = step in (3, 4)
        assert trainer.after_step(step) == [f'step {step}: the loss mse0 is not finite; the step was skipped'] * bad
        same = all(torch.equal(value, before[name]) for name, value in trainer.model.fine.state_dict().items())
        assert same == bad
    states = trainer.optimiser.adam.state
    assert {float(state['step']) for state in states.values()} == {4.0}
    assert all(torch.isfinite(state['exp_avg_sq']).all() for state in states.values())


def test_a_gradient_that_is_not_finite_skips_the_step_too(flags):
    trainer = trainer_of(flags())
    bias = trainer.model.fine.network.rgb_linear.bias
    trainer.step(1)
    before = bias.clone()
    hook = bias.register_hook(lambda gradient: gradient * float('inf'))
    trainer.step(2)
    assert trainer.after_step(2) == ['step 2: the gradient is not finite; the step was skipped']
    assert torch.equal(bias, before)
    hook.remove()
    trainer.step(3)
    assert trainer.after_step(3) == []
    assert not torch.equal(bias, before)


def test_ten_such_steps_in_a_row_end_the_run_with_the_last_good_checkpoint(flags, tmp_path, capsys, monkeypatch):
    spoil_losses(monkeypatch, range(8, 100))
    assert run_nerf.main(flags('--N_iters', '30', '--i_print', '1', '--i_weights', '7')) == 1
    streams = capsys.readouterr()
    assert 'error: step 17: the loss mse0 was not finite 10 times in a row' in streams.err
    assert streams.out.count('the step was skipped') == 9
    lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines] == list(range(1, 8))
    newest = torch.load(tmp_path / 'run' / '000014.tar', weights_only=True)  # steps 8 to 14 changed nothing
    good = torch.load(tmp_path / 'run' / '000007.tar', weights_only=True)
    for name, value in good['network_fine_state_dict'].items():
        assert torch.equal(value, newest['network_fine_state_dict'][name])


def test_nine_of_them_do_not(flags, monkeypatch):
    spoil_losses(monkeypatch, range(8, 17))
    assert run_nerf.main(flags('--N_iters', '20')) == 0


def test_the_scaler_meets_overflows_itself_and_they_do_not_count_as_broken():
    model = Springs()
    model.dtype = torch.float16
    optimiser = Optimiser(model)
    take_step(optimiser, 1)
    scale, before = optimiser.scaler.get_scale(), copies(model.parameters())
    hook = model.slow.register_hook(lambda gradient: gradient * float('inf'))
    take_step(optimiser, 2)
    assert optimiser.check(2) == []
    assert optimiser.scaler.get_scale() == 0.5 * scale
    assert_same(copies(model.parameters()), before)
    hook.remove()
    plain = Optimiser(Springs())
    take_steps(plain, range(1, 3))
    take_step(optimiser, 3)
    torch.testing.assert_close(model.slow, plain.model.slow)  # steps 1 and 3


def test_a_failed_capture_leaves_nothing_in_the_way_of_the_next_step():
    model = Springs()
    model.dtype = torch.float16
    optimiser, plain = Optimiser(model), Optimiser(Springs())
    take_step(optimiser, 1)
    optimiser.zero_grad()
    optimiser.backward(sum(model.losses().values()))
    optimiser.scaler.unscale_(optimiser.adam)  # where the step was broken off
    optimiser.adam.found_inf = optimiser.adam.grad_scale = torch.ones(())
    optimiser.capture_failed()
    assert not hasattr(optimiser.adam, 'found_inf')
    assert not hasattr(optimiser.adam, 'grad_scale')
    take_step(optimiser, 2)
    take_steps(plain, range(1, 3))
    torch.testing.assert_close(model.slow, plain.model.slow)


# Parameters that a model changes itself


def test_forgetting_a_module_clears_its_running_means_in_place_and_begins_its_average_anew():
    model = Springs()
    model.part = nn.ParameterList([model.slow])
    optimiser = Optimiser(model, ema_decay=0.9)
    take_steps(optimiser, range(1, 6))
    with torch.no_grad():
        model.slow.fill_(7.0)
    means = optimiser.adam.state[model.slow]
    places = [value.data_ptr() for value in [*means.values(), optimiser.averages[0]]]
    others = copies([*optimiser.adam.state[model.quick].values(), optimiser.averages[1]])
    optimiser.forget(model.part)
    assert not any(value.any() for value in means.values())
    assert torch.equal(optimiser.averages[0], torch.full((6,), 7.0))
    assert [value.data_ptr() for value in [*means.values(), optimiser.averages[0]]] == places
    assert_same(copies([*optimiser.adam.state[model.quick].values(), optimiser.averages[1]]), others)
    assert not optimiser.replaced
    before = model.slow.detach().clone()
    take_step(optimiser, 6)  # Adam's first step again: by the rate, against the gradient
    torch.testing.assert_close(model.slow - before, RATE * (model.target - 7.0).sign())


def test_forgetting_before_the_first_step_does_nothing():
    optimiser = Optimiser(Springs())
    optimiser.forget(optimiser.model)
    take_step(optimiser, 1)
    assert (optimiser.model.slow[1:] != 0).all()


def twice(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(2, 0)


@pytest.mark.parametrize('at', [0, 1, 5])
def test_a_parameter_that_grows_takes_its_running_means_and_its_average_along(at):
    grown, plain = Optimiser(Springs(), ema_decay=0.9), Optimiser(Springs(), ema_decay=0.9)
    take_steps(grown, range(1, at + 1))
    model, old = grown.model, grown.model.slow
    new = nn.Parameter(twice(old.detach()))
    grown.replace(old, new, twice)
    model.slow, model.target = new, twice(model.target)
    assert grown.replaced
    assert old not in grown.adam.state
    take_steps(grown, range(at + 1, 13))
    take_steps(plain, range(1, 13))
    # Each number's copies have its gradient, so they go its way.
    torch.testing.assert_close(new, twice(plain.model.slow))
    torch.testing.assert_close(grown.averaged_model().slow, twice(plain.averaged_model().slow))
    for name, value in plain.adam.state[plain.model.slow].items():
        torch.testing.assert_close(grown.adam.state[new][name], twice(value) if value.dim() else value)
    assert torch.equal(model.quick, plain.model.quick)
    assert torch.equal(grown.averaged_model().quick, plain.averaged_model().quick)


def test_a_run_goes_on_behind_a_replaced_parameter_as_if_it_had_not_stopped(tmp_path):
    def grow(optimiser: Optimiser) -> None:
        model, old = optimiser.model, optimiser.model.slow
        new = nn.Parameter(twice(old.detach()))
        optimiser.replace(old, new, twice)
        model.slow, model.target = new, twice(model.target)

    whole = Optimiser(Springs(), ema_decay=0.9)
    take_steps(whole, range(1, 4))
    grow(whole)
    take_steps(whole, range(4, 6))
    torch.save([whole.model.weights(), whole.state_dict(), whole.averaged_model().weights()], tmp_path / 'saved')
    weights, state, averaged = torch.load(tmp_path / 'saved', weights_only=True)
    again = Springs(twice(torch.arange(6.0)))
    again.load_weights(weights)
    again = Optimiser(again, ema_decay=0.9)
    again.load_state_dict(state)
    again.load_average({'averaged': averaged})
    for optimiser in (whole, again):
        take_steps(optimiser, range(6, 12))
    assert_same(copies(again.model.parameters()), copies(whole.model.parameters()))
    assert_same(again.averages, whole.averages)


# The average


@pytest.mark.parametrize('decay', [0.3, 0.99])
def test_the_average_moves_by_its_share_which_is_larger_in_the_first_steps(decay):
    optimiser = Optimiser(Springs(), ema_decay=decay)
    expected = torch.zeros(6)
    for step in range(1, 41):
        take_step(optimiser, step)
        share = 1.0 - min(decay, step / (step + 9))
        expected = (1.0 - share) * expected + share * optimiser.model.slow.detach()
        torch.testing.assert_close(optimiser.averages[0], expected)
    assert not torch.allclose(expected, optimiser.model.slow, rtol=1e-3)


def test_the_shares_are_nine_tenths_in_step_1_a_half_in_step_9_and_then_no_less_than_decay_leaves():
    optimiser = Optimiser(Springs(), ema_decay=0.95)
    shares = {}
    for step in (1, 9, 171, 172, 10 ** 6):
        optimiser.prepare(step, RATE)
        shares[step] = float(optimiser.share)
    assert shares == pytest.approx({1: 0.9, 9: 0.5, 171: 0.05, 172: 0.05, 10 ** 6: 0.05}, rel=1e-5)


def test_the_averaged_model_is_a_copy_that_later_steps_do_not_change():
    optimiser = Optimiser(Springs(), ema_decay=0.9)
    take_steps(optimiser, range(1, 5))
    averaged = optimiser.averaged_model()
    assert averaged is not optimiser.model
    assert torch.equal(averaged.slow, optimiser.averages[0])
    assert torch.equal(averaged.quick, optimiser.averages[1])
    assert torch.equal(averaged.fixed, optimiser.model.fixed)
    assert not torch.equal(averaged.slow, optimiser.model.slow)
    before, trained = copies(averaged.parameters()), copies(optimiser.model.parameters())
    take_step(optimiser, 5)
    assert_same(copies(averaged.parameters()), before)
    assert not torch.equal(optimiser.model.slow, trained[0])


def test_the_average_does_not_change_training():
    plain, averaged = Optimiser(Springs()), Optimiser(Springs(), ema_decay=0.9)
    for optimiser in (plain, averaged):
        take_steps(optimiser, range(1, 10))
    assert_same(copies(plain.model.parameters()), copies(averaged.model.parameters()))


def test_without_a_decay_the_averaged_model_is_the_model_itself():
    optimiser = Optimiser(Springs())
    take_step(optimiser, 1)
    assert optimiser.averages == []
    assert optimiser.averaged_model() is optimiser.model
    optimiser.load_average({'averaged': Springs().weights()})  # of a run that had one
    assert optimiser.averages == []


def test_an_average_is_taken_from_a_checkpoint_or_begins_from_the_present_weights():
    optimiser, other = Optimiser(Springs(), ema_decay=0.9), Optimiser(Springs(), ema_decay=0.9)
    take_steps(optimiser, range(1, 5))
    take_steps(other, range(1, 3))
    trained = copies(other.model.parameters())
    other.load_average({'averaged': optimiser.averaged_model().weights()})
    assert_same(other.averages, optimiser.averages)
    assert_same(copies(other.model.parameters()), trained)
    other.load_average({})
    assert_same(other.averages, trained[:2])
    assert other.averages[0].data_ptr() != other.model.slow.data_ptr()


# What checkpoints hold


def test_a_restored_optimiser_goes_on_as_the_one_that_was_saved(tmp_path):
    whole = Optimiser(Springs())
    take_steps(whole, range(1, 6))
    torch.save([whole.model.state_dict(), whole.state_dict()], tmp_path / 'saved')
    weights, state = torch.load(tmp_path / 'saved', weights_only=True)
    assert [group['lr'] for group in state['param_groups']] == pytest.approx([RATE, 10 * RATE])
    assert all(type(group['lr']) is float for group in state['param_groups'])
    again = Springs()
    again.load_state_dict(weights)
    again = Optimiser(again)
    again.load_state_dict(state)
    for optimiser in (whole, again):
        take_steps(optimiser, range(6, 12))
    assert_same(copies(again.model.parameters()), copies(whole.model.parameters()))
    assert_same(again.state_dict(), whole.state_dict())


def test_the_running_means_of_other_groups_are_taken_in_order():
    whole, again = Optimiser(Springs()), Optimiser(Springs())
    take_steps(whole, range(1, 6))
    saved = whole.state_dict()
    one_group = {'params': [key for group in saved['param_groups'] for key in group['params']], 'lr': 1e-7}
    again.load_state_dict(saved | {'param_groups': [one_group]})
    assert_same(again.state_dict()['state'], saved['state'])
    assert [group['params'] for group in again.state_dict()['param_groups']] == [[0], [1]]


def broken_states() -> dict[str, dict]:
    """States as `Optimiser(Springs())` saves them, each with something wrong."""
    optimiser = Optimiser(Springs())
    take_steps(optimiser, range(1, 3))
    good = optimiser.state_dict()

    def with_first(**changes) -> dict:
        return good | {'state': good['state'] | {0: good['state'][0] | changes}}
    mean = good['state'][0]['exp_avg']
    return {
        'too few parameters': good | {'param_groups': good['param_groups'][:1]},
        'another shape': with_first(exp_avg=torch.zeros(5)),
        'another shape of the squares': with_first(exp_avg_sq=torch.zeros(6, 1)),
        'whole numbers': with_first(exp_avg=mean.long()),
        'a sparse tensor': with_first(exp_avg=mean.to_sparse()),
        'no tensor': with_first(exp_avg=[0.0] * 6),
        'complex numbers': with_first(exp_avg=mean.to(torch.complex64)),
        'a negative step': with_first(step=torch.tensor(-1.0)),
        'a step that is no number': with_first(step=torch.tensor(float('nan'))),
        'a step without end': with_first(step=torch.tensor(float('inf'))),
        'no step': good | {'state': {0: {'exp_avg': mean, 'exp_avg_sq': mean}}},
        'no groups': {'state': good['state']},
        'no state': {'param_groups': good['param_groups']},
        'a state of nothing': good | {'state': None},
    }


@pytest.mark.parametrize('what', broken_states())
def test_a_broken_state_is_an_error_and_changes_nothing(what):
    optimiser = Optimiser(Springs())
    take_step(optimiser, 1)
    before = {key: {name: value.clone() for name, value in one.items()}
              for key, one in optimiser.state_dict()['state'].items()}
    with pytest.raises((ValueError, LookupError, TypeError)):
        optimiser.load_state_dict(broken_states()[what])
    assert_same(optimiser.state_dict()['state'], before)


def test_real_numbers_in_memory_are_told_from_all_else():
    assert is_real(torch.zeros(2))
    assert is_real(torch.zeros(2, dtype=torch.float64))
    assert not is_real(torch.zeros(2, dtype=torch.int64))
    assert not is_real(torch.zeros(2).to_sparse())
    assert not is_real(torch.zeros(2, device='meta'))
    assert not is_real(0.0)
