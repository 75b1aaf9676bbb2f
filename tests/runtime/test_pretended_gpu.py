"""tests/fake_cuda: the pretended GPU refuses what a GPU refuses, and replays captured operations."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from conftest import SMALL_RUN, trainer_of

from nerf.fields.interface import Training
from nerf.runtime.cuda_graph import EAGER_CALLS, CapturedStep
from nerf.training import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
FAULTS = {  # colours [R, 3] to the same colours, by a way that is not fit for a captured step
    'linspace of the CPU': lambda x: x + 0.0 * torch.linspace(0.0, 1.0, 3),
    'any in an if': lambda x: x if x.isnan().any() else 1.0 * x,
    'mask': lambda x: x[x[:, 0] > -1.0],
    'list to CUDA': lambda x: 0.5 * x * torch.tensor([2.0], device='cuda'),
    'scalar of the CPU': lambda x: 0.5 * x * torch.tensor(2.0),
    'random number': lambda x: x + 0.0 * torch.rand(3, generator=torch.Generator('cuda'), device='cuda'),
}


@pytest.fixture
def pretended():
    if torch.version.cuda is not None:
        pytest.skip('this is about the pretended GPU')
    from fake_cuda import pretended

    return pretended


class Changed(Training):
    """A training with a change of the colours that rays should show."""

    def __init__(self, training: Training, change: Callable):
        super().__init__(training.field)
        self.training, self.change = training, change

    def random_numbers(self, n_rays, generator):
        return self.training.random_numbers(n_rays, generator)

    def losses(self, rays, numbers, target):
        return self.training.losses(rays, numbers, target._replace(rgb=self.change(target.rgb)))


@pytest.fixture
def reason_of(scene_dir, capsys):
    """Finds the reason for which a step with a change is refused or not captured; None: it is captured."""
    def reason(change: Callable) -> str | None:
        plain = trainer_of([*SMALL_RUN, '--datadir', str(scene_dir), '--expname', 'run', '--device', 'cuda'])
        trainer = Trainer(Changed(plain.training, change), plain.batcher, plain.lrate, plain.lrate_decay)
        capsys.readouterr()
        try:
            for step in range(1, 6):
                trainer.step(step)
        except RuntimeError as error:
            return str(error)
        failed = re.match(r'CUDA graph capture failed \((.*)\); training continues', capsys.readouterr().out)
        assert bool(failed) == (trainer.update.graph is None)
        return failed and failed[1]
    return reason


@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_in_a_step_is_noticed(pretended, reason_of, fault):
    assert {'linspace of the CPU': 'tensors of the CPU and of CUDA', 'any in an if': 'waits', 'mask': 'waits',
            'list to CUDA': 'a tensor of the CPU', 'scalar of the CPU': 'a tensor of the CPU',
            'random number': 'a random number in a capture'}[fault] in reason_of(FAULTS[fault])


def test_the_step_itself_has_none(pretended, reason_of):
    assert reason_of(lambda x: x) is None


def test_a_number_that_is_no_tensor_stays_that_of_the_capture(pretended):
    rate = []
    step = CapturedStep(lambda x: {'y': len(rate) * x}, print)
    for _ in range(7):
        rate.append(1)
        answer = step(torch.ones(1, device='cuda'))
    assert answer['y'].tolist() == [EAGER_CALLS + 1.0]


def test_a_capture_changes_nothing_and_replays_work_on_new_values(pretended):
    x, total = torch.tensor([1.0, 2.0], device='cuda'), torch.zeros(2, device='cuda')
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
        total += 2.0 * x
        shown = total.clone()
    assert total.tolist() == [0.0, 0.0]
    graph.replay()
    x.fill_(10.0)
    graph.replay()
    assert total.tolist() == shown.tolist() == [22.0, 24.0]


@pytest.mark.parametrize('waits', [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x[x > 0],
                                   lambda x: x.cpu(), lambda x: x.unique(),
                                   lambda x: torch.zeros(3).to('cuda'), lambda x: float(x[0]),
                                   lambda x: x[torch.tensor([0])]])
def test_waiting_is_an_error_where_it_is_forbidden(pretended, waits):
    x = torch.arange(3.0, device='cuda')
    waits(x)
    torch.cuda.set_sync_debug_mode('error')
    try:
        with pytest.raises(pretended.Forbidden, match='waits'):
            waits(x)
    finally:
        torch.cuda.set_sync_debug_mode('default')


def test_devices_do_not_mix(pretended):
    x = torch.arange(3.0, device='cuda')
    assert (x * torch.tensor(2.0)).tolist() == [0.0, 2.0, 4.0]  # a GPU takes a scalar
    for wrong in (lambda: x + torch.ones(3), lambda: torch.cat([x, torch.ones(3)]), lambda: torch.ones(3).add_(x)):
        with pytest.raises(RuntimeError, match='of the CPU and of CUDA'):
            wrong()
    with pytest.raises(TypeError, match='cpu'):
        x.numpy()


def test_random_numbers_follow_the_generator_and_its_state(pretended):
    draw = {'generator': torch.Generator('cuda').manual_seed(5), 'device': 'cuda'}
    first, state = torch.rand(3, **draw), draw['generator'].get_state()
    second = torch.rand(3, **draw)
    assert not torch.equal(first, second)
    draw['generator'].set_state(state)
    assert torch.equal(torch.rand(3, **draw), second)
