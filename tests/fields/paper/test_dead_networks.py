"""dead_networks.py: what counts as dead, when it is said, and what checkpoints hold."""

from __future__ import annotations

import pytest
import torch
from conftest import trainer_of

from nerf.fields.paper.dead_networks import CHECK_STEPS, DeadNetworks, seen
from run_nerf_helpers import NeRF

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


# Checkpoints


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
