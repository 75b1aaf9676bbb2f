"""cuda_graph.py, and that a training step is fit for it; what needs a GPU is skipped without one."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nerf.runtime import cuda_graph
from nerf.fields import radiance_field
import run_nerf
from nerf.flags import parse_flags

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
FLAGS = ['--dataset_type', 'blender', '--expname', 'run', '--white_bkgd', '--use_viewdirs', '--netdepth', '6',
         '--netwidth', '16', '--netdepth_fine', '6', '--netwidth_fine', '16', '--multires', '3',
         '--multires_views', '2', '--N_samples', '8', '--N_importance', '8', '--N_rand', '64', '--testskip', '1',
         '--lrate', '1e-3']
WAYS = [[], ['--no_batching', '--precrop_iters', '4'], ['--raw_noise_std', '1'], ['--N_importance', '0'],
        ['--perturb', '0']]


@pytest.fixture
def trainer_of(tiny_scene, tmp_path):
    """A trainer of the tiny scene by some more flags."""
    def make(*more: str) -> run_nerf.Trainer:
        args = parse_flags([*FLAGS, '--datadir', str(tiny_scene(tmp_path / 'scene')), *more])
        device = run_nerf.choose_device(args.device)
        model = run_nerf.create_nerf(args, device, run_nerf.choose_precision(args.precision, device))
        return run_nerf.Trainer(args, run_nerf.load_scene(args), model)
    return make


# On any machine


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Leaves out what the CPU alone does: looking at values to save work."""
    monkeypatch.setattr(radiance_field, '_needed_rows', lambda mask: None)
    monkeypatch.setattr(radiance_field, 'FUSED', ())


def fake(mode: FakeTensorMode, x):
    return x if x is None else mode.from_tensor(x)


@pytest.mark.parametrize('more', WAYS)
def test_a_step_has_static_shapes_and_decides_nothing_by_values(trainer_of, as_on_a_gpu, more):
    trainer = trainer_of('--device', 'cpu', '--precision', 'fp32', *more)
    for step in (1, 2):  # Adam takes its memory in the first
        pixels = trainer.batcher.pixels(step)
        draws = run_nerf.draw(64, trainer.model.sampling, trainer.generator)
        trainer.descend(*pixels, *draws)
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # tensors without values: asking for one is an error
    with mode:
        for network in trainer.model.networks().values():
            for module in network.modules():
                for name, parameter in list(module._parameters.items()):
                    module._parameters[name] = torch.nn.Parameter(fake(mode, parameter.detach()),
                                                                  parameter.requires_grad)
        batcher = trainer.batcher
        batcher.images, batcher.poses, batcher.K = (fake(mode, x) for x in (batcher.images, batcher.poses, batcher.K))
        trainer.optimizer = torch.optim.Adam(trainer.model.parameters(), fused=True)
        trainer.broken, trainer.rate = fake(mode, trainer.broken), 1e-3
        mse, ranges = trainer.descend(*(fake(mode, x) for x in (*pixels, *draws)))
        n_passes = len(trainer.model.networks())
        assert mse.shape == (n_passes,)
        assert ranges.shape == (2, n_passes + 1, 3)
        with pytest.raises(RuntimeError):  # what such a mode is for
            mse.sum().item()


@pytest.mark.parametrize('more', WAYS)
def test_what_a_step_changes_is_changed_in_place(trainer_of, more):
    trainer = trainer_of('--device', 'cpu', '--precision', 'fp32', *more)

    def places() -> list[int]:
        state = [value for state in trainer.optimizer.state.values() for value in state.values()]
        return [x.data_ptr() for x in [*trainer.model.parameters(), *state, trainer.broken, trainer.rate]]
    trainer.step(1)
    before, weights = places(), [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.step(2)
    trainer.guard._revive('coarse', 2)
    trainer.step(3)
    assert places() == before
    assert any(not torch.equal(a, b) for a, b in zip(weights, trainer.model.parameters()))


@pytest.fixture
def pretended_cuda(monkeypatch):
    """CUDA graphs in Python: a captured function is called again at each replay, and what it returns copied over."""
    class Graph:
        def replay(self):
            step, = self.steps
            for kept, new in zip(step.outputs, step.function(*step.inputs)):
                kept.copy_(new)

    class Stream:
        def wait_stream(self, other):
            pass

    @contextmanager
    def capturing(graph, stream):
        yield

    @contextmanager
    def on(stream):
        yield

    streams_set = []

    class Captured(cuda_graph.CapturedStep):
        def _capture(self, inputs):
            super()._capture(inputs)
            if self.graph is not None:
                self.graph.steps = [self]
                self.graph.replay()  # a capture launches nothing: the replay behind it is the first
                for part in self.outputs:
                    part.zero_()
    for name, value in {'Stream': Stream, 'current_stream': Stream, 'stream': on, 'graph': capturing,
                        'CUDAGraph': Graph, 'set_stream': streams_set.append}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    Captured.streams_set = streams_set
    return Captured


def test_every_call_is_answered_for_its_own_inputs_and_old_answers_stay(pretended_cuda):
    step = pretended_cuda(lambda x, nothing, y: (x + y, x * y), print)
    answers = [step(torch.tensor([float(n)]), None, torch.tensor([2.0])) for n in range(8)]
    assert step.graph is not None
    assert [tuple(map(float, answer)) for answer in answers] == [(n + 2.0, 2.0 * n) for n in range(8)]


def test_where_no_capture_is_possible_the_reason_is_said_once_and_steps_are_taken_all_the_same(pretended_cuda):
    said, calls = [], []

    def function(x):
        calls.append(x)
        if len(calls) == cuda_graph.EAGER_CALLS + 1:
            raise RuntimeError('operation not permitted when stream is capturing\nmore of it')
        return (2 * x,)
    step = pretended_cuda(function, said.append)
    assert [float(step(torch.tensor(float(n)))[0]) for n in range(7)] == [2.0 * n for n in range(7)]
    assert said == ['operation not permitted when stream is capturing']
    assert len(step.streams_set) == 1


def test_the_reason_is_what_broke_a_capture_off_rather_than_that_it_could_not_be_ended(pretended_cuda, monkeypatch):
    @contextmanager
    def capturing(graph, stream):
        try:
            yield
        finally:
            raise RuntimeError('operation failed due to a previous error during capture')
    monkeypatch.setattr(torch.cuda, 'graph', capturing)
    said, calls = [], []

    def function(x):
        calls.append(x)
        if len(calls) > cuda_graph.EAGER_CALLS:
            raise RuntimeError('the cause')
        return (x,)
    step = pretended_cuda(function, said.append)
    for _ in range(cuda_graph.EAGER_CALLS):
        step(torch.zeros(1))
    with pytest.raises(RuntimeError, match='the cause'):  # of the step that is taken instead
        step(torch.zeros(1))
    assert said == ['the cause']


def test_a_step_broken_off_in_the_optimiser_leaves_the_scaler_as_it_was(trainer_of, monkeypatch, capsys):
    trainer = trainer_of('--device', 'cpu', '--precision', 'fp32')
    trainer.scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    trainer.step(1)

    def broken(*args, **kwargs):
        raise RuntimeError('in the middle')
    with monkeypatch.context() as patch:
        patch.setattr(trainer.optimizer, 'step', broken)
        with pytest.raises(RuntimeError, match='in the middle'):
            trainer.step(2)
    assert trainer.optimizer.grad_scale == 1024.0  # which the next step would take for its own
    trainer.not_captured('in the middle')
    assert 'not captured in a CUDA graph (in the middle)' in capsys.readouterr().out
    assert 'grad_scale' not in vars(trainer.optimizer)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.step(3)
    assert trainer.scaler.get_scale() == 1024.0
    assert all(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters()))


# On a GPU


@needs_cuda
@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'fp16'])
@pytest.mark.parametrize('more', WAYS)
def test_captured_steps_are_the_eager_ones(trainer_of, precision, more):
    captured, eager = (trainer_of('--device', 'cuda', '--precision', precision, *more) for _ in range(2))
    eager.apply = eager.descend
    for step in range(1, 13):
        one, other = captured.step(step)[0], eager.step(step)[0]
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert captured.apply.graph is not None
    for a, b in zip(captured.model.parameters(), eager.model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=2e-3)


@needs_cuda
def test_no_step_waits_for_the_gpu(trainer_of):
    trainer = trainer_of('--device', 'cuda', '--no_batching')
    for step in range(1, 6):
        trainer.step(step)
    torch.cuda.set_sync_debug_mode('error')
    try:
        for step in range(6, 9):
            trainer.step(step)
    finally:
        torch.cuda.set_sync_debug_mode('default')


@needs_cuda
def test_a_view_on_cuda_is_that_on_the_cpu(trainer_of):
    trainers = [trainer_of('--device', device, '--precision', 'fp32') for device in ('cuda', 'cpu')]
    scene = run_nerf.load_scene(trainers[0].args)
    views = [run_nerf.render_view(trainer.model, scene, scene.poses[0]) for trainer in trainers]
    assert abs(views[0].rgb - views[1].rgb).max() < 1e-3


@needs_cuda
def test_a_run_on_cuda_ends_and_goes_on(tiny_scene, tmp_path):
    flags = [*FLAGS, '--datadir', str(tiny_scene(tmp_path / 'scene')), '--basedir', str(tmp_path), '--device', 'cuda']
    assert run_nerf.main([*flags, '--N_iters', '20']) == 0
    assert run_nerf.main([*flags, '--N_iters', '30']) == 0
    assert (tmp_path / 'run' / '000030.tar').is_file()
