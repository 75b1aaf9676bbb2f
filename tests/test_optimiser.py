"""nerf/optimiser.py: Adam's rates and skipped steps, the average of the weights, and what is restored."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_same
from torch import nn

from nerf.fields.interface import Field, Training
from nerf.optimiser import BROKEN_STEPS, Optimiser, is_real
from nerf.runtime.errors import UserError

RATE = 0.01


class SpringField(Field):
    """Two parameters that are trained, and one that is in no group."""

    def __init__(self):
        super().__init__()
        self.slow = nn.Parameter(torch.zeros(6))
        self.quick = nn.Parameter(torch.zeros(2))
        self.fixed = nn.Parameter(torch.ones(3))

    def weights(self) -> dict:
        return {'springs': self.state_dict()}

    def load_weights(self, checkpoint: dict) -> None:
        self.load_state_dict(checkpoint['springs'])


class Springs(Training):
    """Each parameter is drawn to a target by a loss of its own; the second is trained at ten times the rate."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__(SpringField())
        self.field.dtype = dtype

    def parameter_groups(self) -> list[dict]:
        return [{'params': [self.field.slow], 'rate': 1.0}, {'params': [self.field.quick], 'rate': 10.0}]

    def pulls(self) -> dict[str, torch.Tensor]:
        slow, quick = self.field.slow - torch.arange(6.0), self.field.quick - 50.0
        return {'mse0': slow.square().sum(), 'mse': quick.square().sum()}


def take_step(optimiser: Optimiser, step: int, rate: float = RATE, spoil: dict[str, float] | None = None) -> None:
    """One step; `spoil` has factors for losses by name."""
    optimiser.prepare(step, rate)
    optimiser.zero_grad()
    losses = optimiser.training.pulls()
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
    optimiser, other = Optimiser(Springs()), Springs()
    ours, theirs = optimiser.training.field, other.field
    adam = torch.optim.Adam([{'params': [theirs.slow]}, {'params': [theirs.quick]}], betas=(0.9, 0.999), eps=1e-8)
    for step in range(1, 21):
        rate = RATE * 0.8 ** step
        take_step(optimiser, step, rate)
        adam.param_groups[0]['lr'], adam.param_groups[1]['lr'] = rate, 10.0 * rate
        adam.zero_grad()
        sum(other.pulls().values()).backward()
        adam.step()
        torch.testing.assert_close(ours.slow, theirs.slow)
        torch.testing.assert_close(ours.quick, theirs.quick)
    assert torch.equal(ours.fixed, torch.ones(3))


@pytest.mark.parametrize(('spoilt', 'said'), [
    ({'mse0': float('nan')}, 'the loss mse0'), ({'mse': float('inf')}, 'the loss mse')])
def test_a_loss_that_is_not_finite_skips_the_step_which_is_reported(spoilt, said):
    optimiser = Optimiser(Springs())
    take_steps(optimiser, range(1, 4))
    weights, state = copies(optimiser.training.field.parameters()), optimiser.state_dict()
    state = {key: {name: value.clone() for name, value in one.items()} for key, one in state['state'].items()}
    take_step(optimiser, 4, spoil=spoilt)
    assert optimiser.check(4) == [f'step 4: {said} is not finite; the step was skipped']
    assert_same(copies(optimiser.training.field.parameters()), weights)
    assert_same(optimiser.state_dict()['state'], state)
    take_step(optimiser, 5)
    assert optimiser.check(5) == []
    assert not torch.equal(optimiser.training.field.slow, weights[0])


def test_a_loss_that_is_not_finite_skips_the_step_also_where_its_gradient_is():
    optimiser = Optimiser(Springs())
    optimiser.prepare(1, RATE)
    optimiser.backward(sum(optimiser.training.pulls().values()))
    optimiser.step({'mse0': torch.tensor(float('inf')), 'mse': torch.tensor(1.0)})
    assert not optimiser.training.field.slow.any()
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


def test_nine_broken_steps_do_not_end_a_run():
    optimiser = Optimiser(Springs())
    for step in range(1, 60):
        take_step(optimiser, step, spoil={'mse0': float('nan') if step % BROKEN_STEPS else 1.0})
        optimiser.check(step)
    assert float(optimiser.adam.state[optimiser.training.field.slow]['step']) == 5.0


def test_a_gradient_that_is_not_finite_skips_the_step_too():
    optimiser = Optimiser(Springs())
    field = optimiser.training.field
    take_step(optimiser, 1)
    before = copies(field.parameters())
    hook = field.slow.register_hook(lambda gradient: gradient * float('inf'))
    take_step(optimiser, 2)
    assert optimiser.check(2) == ['step 2: the gradient is not finite; the step was skipped']
    assert_same(copies(field.parameters()), before)
    hook.remove()
    take_step(optimiser, 3)
    assert optimiser.check(3) == []
    assert not torch.equal(field.slow, before[0])


def test_further_groups_are_trained_too_and_are_no_part_of_the_averaged_field():
    gain = nn.Parameter(torch.zeros(2))
    optimiser = Optimiser(Springs(), 0.9, [{'params': [gain], 'rate': 3.0}])
    optimiser.prepare(1, RATE)
    optimiser.backward(sum(optimiser.training.pulls().values()) + (gain - 1.0).square().sum())
    optimiser.step({'mse': torch.zeros(())})
    torch.testing.assert_close(gain.detach(), torch.full((2,), 3 * RATE))  # Adam's first step is the rate
    assert len(optimiser.averages) == 3
    assert torch.equal(optimiser.averaged_field().slow, optimiser.averages[0])


def test_the_scaler_meets_overflows_itself_and_they_do_not_count_as_broken():
    optimiser = Optimiser(Springs(torch.float16))
    field = optimiser.training.field
    take_step(optimiser, 1)
    scale, before = optimiser.scaler.get_scale(), copies(field.parameters())
    hook = field.slow.register_hook(lambda gradient: gradient * float('inf'))
    take_step(optimiser, 2)
    assert optimiser.check(2) == []
    assert optimiser.scaler.get_scale() == 0.5 * scale
    assert_same(copies(field.parameters()), before)
    hook.remove()
    plain = Optimiser(Springs())
    take_steps(plain, range(1, 3))
    take_step(optimiser, 3)
    torch.testing.assert_close(field.slow, plain.training.field.slow)  # steps 1 and 3


def test_a_failed_capture_leaves_nothing_in_the_way_of_the_next_step():
    optimiser, plain = Optimiser(Springs(torch.float16)), Optimiser(Springs())
    take_step(optimiser, 1)
    optimiser.zero_grad()
    optimiser.backward(sum(optimiser.training.pulls().values()))
    optimiser.scaler.unscale_(optimiser.adam)  # where the step was broken off
    optimiser.adam.found_inf = optimiser.adam.grad_scale = torch.ones(())
    optimiser.capture_failed()
    assert not hasattr(optimiser.adam, 'found_inf')
    assert not hasattr(optimiser.adam, 'grad_scale')
    take_step(optimiser, 2)
    take_steps(plain, range(1, 3))
    torch.testing.assert_close(optimiser.training.field.slow, plain.training.field.slow)


# The average


@pytest.mark.parametrize('decay', [0.3, 0.99])
def test_the_average_moves_by_its_share_which_is_larger_in_the_first_steps(decay):
    optimiser = Optimiser(Springs(), ema_decay=decay)
    expected = torch.zeros(6)
    for step in range(1, 41):
        take_step(optimiser, step)
        share = 1.0 - min(decay, step / (step + 9))
        expected = (1.0 - share) * expected + share * optimiser.training.field.slow.detach()
        torch.testing.assert_close(optimiser.averages[0], expected)
    assert not torch.allclose(expected, optimiser.training.field.slow, rtol=1e-3)


def test_the_shares_are_nine_tenths_in_step_1_a_half_in_step_9_and_then_no_less_than_decay_leaves():
    optimiser = Optimiser(Springs(), ema_decay=0.95)
    shares = {}
    for step in (1, 9, 171, 172, 10 ** 6):
        optimiser.prepare(step, RATE)
        shares[step] = float(optimiser.share)
    assert shares == pytest.approx({1: 0.9, 9: 0.5, 171: 0.05, 172: 0.05, 10 ** 6: 0.05}, rel=1e-5)


def test_the_averaged_field_is_a_copy_that_later_steps_do_not_change():
    optimiser = Optimiser(Springs(), ema_decay=0.9)
    take_steps(optimiser, range(1, 5))
    averaged = optimiser.averaged_field()
    assert averaged is not optimiser.training.field
    assert torch.equal(averaged.slow, optimiser.averages[0])
    assert torch.equal(averaged.quick, optimiser.averages[1])
    assert torch.equal(averaged.fixed, optimiser.training.field.fixed)
    assert not torch.equal(averaged.slow, optimiser.training.field.slow)
    before, trained = copies(averaged.parameters()), copies(optimiser.training.field.parameters())
    take_step(optimiser, 5)
    assert_same(copies(averaged.parameters()), before)
    assert not torch.equal(optimiser.training.field.slow, trained[0])


def test_the_average_does_not_change_training():
    plain, averaged = Optimiser(Springs()), Optimiser(Springs(), ema_decay=0.9)
    for optimiser in (plain, averaged):
        take_steps(optimiser, range(1, 10))
    assert_same(copies(plain.training.field.parameters()), copies(averaged.training.field.parameters()))


def test_without_a_decay_the_averaged_field_is_the_field_itself():
    optimiser = Optimiser(Springs())
    take_step(optimiser, 1)
    assert optimiser.averages == []
    assert optimiser.averaged_field() is optimiser.training.field
    optimiser.load_average({'averaged': SpringField().weights()})  # of a run that had one
    assert optimiser.averages == []


def test_an_average_is_taken_from_a_checkpoint_or_begins_from_the_present_weights():
    optimiser, other = Optimiser(Springs(), ema_decay=0.9), Optimiser(Springs(), ema_decay=0.9)
    take_steps(optimiser, range(1, 5))
    take_steps(other, range(1, 3))
    trained = copies(other.training.field.parameters())
    other.load_average({'averaged': optimiser.averaged_field().weights()})
    assert_same(other.averages, optimiser.averages)
    assert_same(copies(other.training.field.parameters()), trained)
    other.load_average({})
    assert_same(other.averages, trained[:2])
    assert other.averages[0].data_ptr() != other.training.field.slow.data_ptr()


# What checkpoints hold


def test_a_restored_optimiser_goes_on_as_the_one_that_was_saved(tmp_path):
    whole = Optimiser(Springs())
    take_steps(whole, range(1, 6))
    torch.save([whole.training.field.state_dict(), whole.state_dict()], tmp_path / 'saved')
    weights, state = torch.load(tmp_path / 'saved', weights_only=True)
    assert [group['lr'] for group in state['param_groups']] == pytest.approx([RATE, 10 * RATE])
    assert all(type(group['lr']) is float for group in state['param_groups'])
    again = Springs()
    again.field.load_state_dict(weights)
    again = Optimiser(again)
    again.load_state_dict(state)
    for optimiser in (whole, again):
        take_steps(optimiser, range(6, 12))
    assert_same(copies(again.training.field.parameters()), copies(whole.training.field.parameters()))
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
