"""Networks that cannot learn any more: what counts as dead, the fresh start, and the end after too many of them."""

import pytest
import torch
from conftest import trainer_of

import run_nerf
from nerf.fields.paper.dead_networks import CHECK_STEPS, FOG, TRIES, DeadNetworkGuard
from run_nerf_helpers import Draws, NeRF, draw, render_rays


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
def test_a_dead_network_is_noticed_started_afresh_from_the_next_seed_and_learns(flags, name, other, kill):
    trainer = trainer_of(flags('--seed', '3', '--lrate', '1e-3', '--ema_decay', '0.9'))
    dead, alive = trainer.model.networks()[name], trainer.model.networks()[other]
    kill(dead)
    with torch.no_grad():
        alive.alpha_linear.bias.fill_(1.0)
    for step in range(1, 500):
        trainer.step(step)
        kept = [p.clone() for p in alive.parameters()]
        said = trainer.after_step(step)
        if said:
            break
    assert len(said) == 1
    assert f'the {name} network is dead' in said[0]
    assert 'from seed 4 (try 1 of 5)' in said[0]
    fresh = trainer_of(flags()).model.networks()[name]
    fresh.reset_parameters(torch.Generator().manual_seed(4))
    fresh.lift_density(FOG)
    assert all(torch.equal(a, b) for a, b in zip(dead.parameters(), fresh.parameters()))
    states = trainer.optimiser.adam.state
    assert not any(value.any() for p in dead.parameters() for value in states[p].values())
    assert all(torch.equal(a, b) for a, b in zip(kept, alive.parameters()))  # the other network is left alone
    assert any(value.any() for p in alive.parameters() for value in states[p].values())
    averaged = trainer.optimiser.averaged_model().networks()
    assert all(torch.equal(a, b) for a, b in zip(averaged[name].parameters(), fresh.parameters()))
    assert not all(torch.equal(a, b) for a, b in zip(averaged[other].parameters(), alive.parameters()))

    loss = dict(zip(trainer.model.networks(), trainer.model.loss_names))[name]
    before = trainer.step(step + 1)[loss]
    for later in range(step + 2, 500):
        losses = trainer.step(later)
        trainer.after_step(later)
    assert losses[loss] < 0.5 * before


def watch_window(trainer, shown: torch.Tensor) -> list[str]:
    """What the guard says about the steps of one ray each whose colours [steps, P + 1, 3] it sees."""
    guard, said = trainer.model.guard, []
    for step, colours in enumerate(shown, 1):
        guard.see(list(colours[:, None]))
        said += guard.watch(step, trainer.optimiser)
    return said


@pytest.mark.parametrize(('pass_changes', 'target_changes', 'revived'), [
    (0.0, 0.5, ['coarse', 'fine']),  # one colour where more was wanted
    (0.002, 0.5, []),  # half a grey level more in one ray of the whole window is life
    (0.0, 0.0, []),  # nothing but background was wanted
])
def test_only_one_colour_where_more_was_wanted_is_death(flags, pass_changes, target_changes, revived):
    shown = torch.full((CHECK_STEPS, 3, 3), 0.5)
    shown[3, 0, 1] += pass_changes
    shown[7, 1, 2] -= pass_changes
    shown[9, 2, 0] += target_changes
    said = watch_window(trainer_of(flags()), shown)
    assert [line.split('the ')[1].split(' ')[0] for line in said] == revived


def test_each_window_is_judged_by_itself(flags):
    trainer = trainer_of(flags())
    shown = torch.full((CHECK_STEPS, 3, 3), 0.5)
    shown[9, 2] += 0.5
    alive = shown.clone()
    alive[3, :2] += 0.25
    assert watch_window(trainer, alive) == []
    assert len(watch_window(trainer, shown)) == 2


def test_the_guard_sees_the_ranges_of_what_each_pass_showed_and_should_have_shown(flags):
    cut, plain = trainer_of(flags('--chunk', '5')), trainer_of(flags())
    place = cut.model.guard.ranges.data_ptr()
    cut.step(1)
    rays, target = plain.batcher.next(1)
    model = plain.model
    draws = draw(len(target), model.sampling, plain.batcher.generator)
    shown = render_rays(rays, model.coarse, model.fine, model.sampling, Draws(*draws))
    colours = torch.stack([shown.coarse.rgb, shown.final.rgb, target]).detach()
    low, high = cut.model.guard.ranges
    torch.testing.assert_close(low, colours.amin(1))
    torch.testing.assert_close(high, colours.amax(1))
    assert cut.model.guard.ranges.data_ptr() == place  # a captured step writes there


def test_fresh_networks_begin_as_fog(flags):
    model = trainer_of(flags('--seed', '8')).model
    generator = torch.Generator().manual_seed(8)
    for network in model.networks().values():
        plain = {name: weight.clone() for name, weight in network.state_dict().items()}
        network.reset_parameters(generator)
        drawn = network.state_dict()
        assert all(torch.equal(drawn[name], plain[name]) for name in plain if name != 'alpha_linear.bias')
        torch.testing.assert_close(plain['alpha_linear.bias'], drawn['alpha_linear.bias'] + FOG)


def test_a_network_that_stays_dead_ends_the_run_with_code_1_and_advice(flags, monkeypatch, capsys):
    original = NeRF.lift_density

    def stillborn(self, by):
        original(self, by)
        empty(self)
    monkeypatch.setattr(NeRF, 'lift_density', stillborn)
    assert run_nerf.main(flags('--N_iters', '1000')) == 1
    out, err = capsys.readouterr()
    assert out.count('started afresh') == 2 * TRIES
    assert 'network shows one colour and nothing else again after 5 fresh starts' in err
    assert 'lower lrate' in err
    assert err.count('error:') == 1


# What checkpoints hold


@pytest.fixture
def guard() -> DeadNetworkGuard:
    return DeadNetworkGuard({name: NeRF(D=1, W=2) for name in ('coarse', 'fine')}, seed=0)


def test_a_restored_guard_knows_the_tries_and_what_was_seen(guard):
    guard.tries['fine'] = 3
    guard.see(list(torch.rand(3, 7, 3, generator=torch.Generator().manual_seed(0))))
    other = DeadNetworkGuard(guard.networks, seed=0)
    place = other.ranges.data_ptr()
    other.load_state_dict(guard.state_dict())
    assert other.tries == {'coarse': 0, 'fine': 3}
    assert torch.equal(other.ranges, guard.ranges)
    assert other.ranges.data_ptr() == place  # a captured step writes there
    other.tries['fine'] = 4
    assert guard.tries['fine'] == 3  # it is a copy


def test_a_state_without_ranges_is_one_that_has_seen_nothing(guard):
    guard.see(list(torch.rand(3, 7, 3, generator=torch.Generator().manual_seed(0))))
    guard.load_state_dict({'tries': {'coarse': 1, 'fine': 0}, 'ranges': None})
    assert guard.tries == {'coarse': 1, 'fine': 0}
    assert (guard.ranges[0] == float('inf')).all()
    assert (guard.ranges[1] == -float('inf')).all()


@pytest.mark.parametrize('state', [
    {'tries': {'coarse': 0}, 'ranges': None}, {'tries': {'coarse': 0, 'fine': TRIES + 1}, 'ranges': None},
    {'tries': {'coarse': 0, 'fine': -1}, 'ranges': None}, {'tries': {'coarse': 0, 'fine': 1.0}, 'ranges': None},
    {'tries': {'coarse': 0, 'fine': 0}, 'ranges': torch.zeros(2, 2, 3)}])
def test_a_broken_state_is_an_error_and_changes_nothing(guard, state):
    guard.tries['coarse'] = 2
    before = guard.ranges.clone()
    with pytest.raises(ValueError, match=r'tries|ranges of shape'):
        guard.load_state_dict(state)
    assert guard.tries == {'coarse': 2, 'fine': 0}
    assert torch.equal(guard.ranges, before)
