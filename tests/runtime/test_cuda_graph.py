"""nerf/runtime/cuda_graph.py, and that a training step is fit for it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import trainer_of
from torch._subclasses.fake_tensor import FakeTensorMode

import run_nerf
from nerf.fields.paper.mlp_gpu import GpuMLPField
from nerf.optimiser import Optimiser
from nerf.rendering import render_view
from nerf.runtime import cuda_graph
from nerf.training import Trainer

FLAGS = ['--dataset_type', 'blender', '--expname', 'run', '--white_bkgd', '--netdepth', '6',
         '--netwidth', '16', '--netdepth_fine', '6', '--netwidth_fine', '16', '--multires', '3',
         '--multires_views', '2', '--N_samples', '8', '--N_importance', '8', '--N_rand', '64', '--testskip', '1',
         '--lrate', '1e-3']
WAYS = [['--use_viewdirs', *more] for more in (
    [], ['--no_batching', '--precrop_iters', '4'], ['--raw_noise_std', '1'], ['--N_importance', '0'],
    ['--perturb', '0'], ['--ema_decay', '0.9'], ['--exposure', 'on', '--ema_decay', '0.9'], ['--i_embed', '-1'],
    ['--lindisp', '--N_importance', '0'])] + [[]]


@pytest.fixture(scope='module')
def wide_dir(tiny_scene, tmp_path_factory) -> Path:
    """The folder of a scene that is wide enough for exposure."""
    return tiny_scene(tmp_path_factory.mktemp('wide') / 'scene', size=(16, 22))


@pytest.fixture
def trainer_by(wide_dir):
    """Makes a trainer of the tiny scene by some more flags."""
    def make(*more: str) -> Trainer:
        return trainer_of([*FLAGS, '--datadir', str(wide_dir), *more])
    return make


# On any machine


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The field of a GPU, which looks at no values to save work."""
    monkeypatch.setattr(run_nerf, 'FastMLPField', GpuMLPField)


@pytest.mark.parametrize('more', WAYS)
def test_a_step_has_static_shapes_and_decides_nothing_by_values(trainer_by, as_on_a_gpu, more):
    trainer = trainer_by('--device', 'cpu', '--precision', 'fp32', *more)
    model, batcher = trainer.model, trainer.batcher
    pixels, numbers = batcher.pixels(1), model.random_numbers(64, batcher.generator)
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # tensors without values: asking for one is an error

    def fake(x):
        return x if x is None else mode.from_tensor(x)
    with mode:
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                module._parameters[name] = torch.nn.Parameter(fake(parameter.detach()), parameter.requires_grad)
        batcher.colours, batcher.starts = fake(batcher.colours), fake(batcher.starts)
        cameras = batcher.cameras
        batcher.cameras = replace(cameras, poses=fake(cameras.poses), intrinsics=fake(cameras.intrinsics),
                                  sizes=fake(cameras.sizes))
        model.guard.ranges = fake(model.guard.ranges)
        exposure, groups = trainer.exposure, []
        if exposure:
            exposure.raw = torch.nn.Parameter(fake(exposure.raw.detach()))
            groups = [exposure.parameter_group()]
        trainer.optimiser = Optimiser(model, trainer.optimiser.ema_decay, groups)
        for _ in range(2):  # Adam takes its memory in the first
            losses = trainer._update(*map(fake, pixels), *map(fake, numbers))
        assert tuple(losses) == model.loss_names
        assert {loss.shape for loss in losses.values()} == {()}
        with pytest.raises(RuntimeError):  # what such a mode is for
            sum(losses.values()).item()


@pytest.mark.parametrize('more', WAYS)
def test_what_a_step_changes_is_changed_in_place(trainer_by, more):
    trainer = trainer_by('--device', 'cpu', '--precision', 'fp32', *more)
    model, optimiser = trainer.model, trainer.optimiser

    def places() -> list[int]:
        state = [value for state in optimiser.adam.state.values() for value in state.values()]
        return [x.data_ptr() for x in [*optimiser._parameters(), *state, *optimiser.rates, *optimiser.averages,
                                       optimiser.broken, optimiser.share, model.guard.ranges]]
    trainer.step(1)
    before, weights = places(), [parameter.clone() for parameter in model.parameters()]
    averages = [average.clone() for average in optimiser.averages]
    trainer.step(2)
    model.guard._revive('coarse', 2, optimiser)
    trainer.step(3)
    trainer.after_step(25)  # the guard looks at what it has seen, and forgets it
    assert places() == before
    assert any(not torch.equal(a, b) for a, b in zip(weights, model.parameters()))
    assert not averages or any(not torch.equal(a, b) for a, b in zip(averages, optimiser.averages))


@pytest.fixture
def pretended_cuda(monkeypatch):
    """CUDA graphs in Python: a captured function is called again at each replay, and what it returns copied over."""
    class Graph:
        def replay(self):
            step, = self.steps
            for name, new in step.function(*step.inputs).items():
                step.outputs[name].copy_(new)

    class Stream:
        def wait_stream(self, other):
            pass

    @contextmanager
    def capturing(graph, pool, stream, mode):
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
                for part in self.outputs.values():
                    part.zero_()
    for name, value in {'Stream': Stream, 'current_stream': Stream, 'stream': on, 'graph': capturing,
                        'CUDAGraph': Graph, 'set_stream': streams_set.append, 'current_device': lambda: 0,
                        'graph_pool_handle': lambda: (0, 7)}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    pools = []
    for name in ('_cuda_endAllocateToPool', '_cuda_releasePool'):
        monkeypatch.setattr(torch._C, name, lambda *where, name=name: pools.append((name, *where)), raising=False)
    Captured.streams_set, Captured.pools = streams_set, pools
    return Captured


def test_every_call_is_answered_for_its_own_inputs_and_old_answers_stay(pretended_cuda):
    step = pretended_cuda(lambda x, nothing, y: {'sum': x + y, 'product': x * y}, print)
    answers = [step(torch.tensor([float(n)]), None, torch.tensor([2.0])) for n in range(8)]
    assert step.graph is not None
    assert answers == [{'sum': n + 2.0, 'product': 2.0 * n} for n in range(8)]


def test_where_no_capture_is_possible_the_reason_is_said_once_and_steps_are_taken_all_the_same(pretended_cuda):
    said, calls = [], []

    def function(x):
        calls.append(x)
        if len(calls) == cuda_graph.EAGER_CALLS + 1:
            raise RuntimeError('operation not permitted when stream is capturing\nmore of it')
        return {'twice': 2 * x}
    step = pretended_cuda(function, said.append)
    assert [float(step(torch.tensor(float(n)))['twice']) for n in range(7)] == [2.0 * n for n in range(7)]
    assert said == ['operation not permitted when stream is capturing']
    assert len(step.streams_set) == 1


def test_the_reason_is_what_broke_a_capture_off_rather_than_that_it_could_not_be_ended(pretended_cuda, monkeypatch):
    @contextmanager
    def capturing(graph, pool, stream, mode):
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
        return {'x': x}
    step = pretended_cuda(function, said.append)
    for _ in range(cuda_graph.EAGER_CALLS):
        step(torch.zeros(1))
    with pytest.raises(RuntimeError, match='the cause'):  # of the step that is taken instead
        step(torch.zeros(1))
    assert said == ['the cause']
    assert step.pools == [('_cuda_endAllocateToPool', 0, (0, 7)), ('_cuda_releasePool', 0, (0, 7))]


def test_a_pool_that_the_capture_has_ended_is_left_to_its_graph(pretended_cuda, monkeypatch):
    def ended(device, pool):
        raise RuntimeError('endAllocatePool: not currently recording to mempool_id')
    monkeypatch.setattr(torch._C, '_cuda_endAllocateToPool', ended)
    said = []

    def function(x):
        if step.calls == cuda_graph.EAGER_CALLS + 1 and not said:
            raise RuntimeError('the cause')
        return {'x': x}
    step = pretended_cuda(function, said.append)
    for _ in range(cuda_graph.EAGER_CALLS + 1):
        step(torch.zeros(1))
    assert said == ['the cause']
    assert step.pools == []


def test_a_step_broken_off_in_the_optimiser_leaves_the_scaler_as_it_was(trainer_by, monkeypatch, capsys):
    trainer = trainer_by('--device', 'cpu', '--precision', 'fp32', '--use_viewdirs')
    optimiser = trainer.optimiser
    optimiser.scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    trainer.step(1)

    def broken(*args, **kwargs):
        raise RuntimeError('in the middle')
    with monkeypatch.context() as patch:
        patch.setattr(optimiser.adam, 'step', broken)
        with pytest.raises(RuntimeError, match='in the middle'):
            trainer.step(2)
    assert optimiser.adam.grad_scale == 1024.0  # which the next step would take for its own
    trainer._capture_failed('in the middle')
    assert 'not captured in a CUDA graph (in the middle)' in capsys.readouterr().out
    assert 'grad_scale' not in vars(optimiser.adam)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.step(3)
    assert optimiser.scaler.get_scale() == 1024.0
    assert all(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters()))


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize(('precision', 'more'), [*(('fp32', more) for more in WAYS),
                                                 *(('bf16', more) for more in WAYS[:2]),
                                                 *(('fp16', more) for more in WAYS[:2])])
def test_captured_steps_are_the_eager_ones(trainer_by, precision, more):
    captured, eager = (trainer_by('--device', 'cuda', '--precision', precision, *more) for _ in range(2))
    eager.update = eager._update
    for step in range(1, 7):  # three eager ones, a capture and three replays
        one, other = captured.step(step), eager.step(step)
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert captured.update.graph is not None
    ours, theirs = ([*trainer.model.parameters(), *trainer.optimiser.averages] for trainer in (captured, eager))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=2e-3)


@pytest.mark.gpu
@pytest.mark.parametrize('more', [['--no_batching'], ['--ema_decay', '0.9']])
def test_no_step_waits_for_the_gpu(trainer_by, more):
    trainer = trainer_by('--device', 'cuda', *more)
    for step in range(1, 6):
        trainer.step(step)
    torch.cuda.set_sync_debug_mode('error')
    try:
        for step in range(6, 9):
            trainer.step(step)
            assert trainer.after_step(step) == []  # it looks at values only every so many steps
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.gpu
def test_a_view_on_cuda_is_that_on_the_cpu(trainer_by):
    trainers = [trainer_by('--device', device, '--precision', 'fp32') for device in ('cuda', 'cpu')]
    scene = trainers[0].batcher.scene
    views = [render_view(trainer.model, scene, scene.cameras.take([0])) for trainer in trainers]
    assert abs(views[0].rgb - views[1].rgb).max() < 1e-3


@pytest.mark.gpu
def test_a_run_on_cuda_ends_and_goes_on(scene_dir, tmp_path):
    flags = [*FLAGS, '--datadir', str(scene_dir), '--basedir', str(tmp_path), '--device', 'cuda']
    assert run_nerf.main([*flags, '--N_iters', '20']) == 0
    assert run_nerf.main([*flags, '--N_iters', '30']) == 0
    assert (tmp_path / 'run' / '000030.tar').is_file()
