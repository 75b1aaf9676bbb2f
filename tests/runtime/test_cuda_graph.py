"""nerf/runtime/cuda_graph.py: captured calls are those of the function, and a training step is fit for a capture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import SMALL_RUN, trainer_of

import run_nerf
from nerf.rendering import render_view
from nerf.runtime.cuda_graph import EAGER_CALLS, CapturedStep
from nerf.training import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
FLAGS = [*(flag for flag in SMALL_RUN if flag != '--use_viewdirs'), '--device', 'cuda', '--expname', 'run', '--lrate',
         '1e-3', '--N_rand', '64']
WAYS = [['--use_viewdirs', *more] for more in (
    [], ['--no_batching', '--precrop_iters', '4'], ['--raw_noise_std', '1'], ['--N_importance', '0'],
    ['--perturb', '0'], ['--ema_decay', '0.9'], ['--exposure', 'on', '--ema_decay', '0.9'], ['--i_embed', '-1'],
    ['--lindisp', '--N_importance', '0'])] + [[]]


# A function


def scalar(x: float) -> torch.Tensor:
    return torch.tensor([x], device='cuda')


def open_pools() -> set:
    """Memory pools that a pretended GPU's captures left open; a real GPU does not tell."""
    if torch.version.cuda is not None:
        return set()
    from fake_cuda import pretended

    return pretended.STATE.open_pools


def test_every_call_is_answered_for_its_own_inputs_and_old_answers_stay():
    step = CapturedStep(lambda x, nothing, y: {'sum': x + y, 'product': x * y}, print)
    answers = [step(scalar(n), None, scalar(2.0)) for n in range(8)]
    assert step.graph is not None
    assert [{name: x.tolist() for name, x in answer.items()} for answer in answers] == [
        {'sum': [n + 2.0], 'product': [2.0 * n]} for n in range(8)]


def test_replays_do_not_call_the_function():
    calls = []
    step = CapturedStep(lambda x: calls.append(1) or {'x': x}, print)
    for n in range(8):
        step(scalar(n))
    assert len(calls) == EAGER_CALLS + 1


def test_a_function_that_waits_is_not_captured_the_reason_is_said_once_and_calls_are_answered():
    """Ending a broken capture fails too; the reason is the first error."""
    said, stream = [], torch.cuda.current_stream()
    step = CapturedStep(lambda x: {'twice': x + x.item()}, said.append)
    assert [step(scalar(n))['twice'].tolist() for n in range(7)] == [[2.0 * n] for n in range(7)]
    assert step.graph is None
    assert len(said) == 1
    assert 'previous error' not in said[0]
    assert '\n' not in said[0]
    assert torch.cuda.current_stream() == stream
    assert open_pools() == set()


def test_an_error_of_the_function_in_the_capture_is_the_reason():
    said, calls, stream = [], [], torch.cuda.current_stream()

    def function(x):
        calls.append(x)
        if len(calls) == EAGER_CALLS + 1:
            raise RuntimeError('the cause\nmore of it')
        return {'x': 2 * x}
    step = CapturedStep(function, said.append)
    assert [step(scalar(n))['x'].tolist() for n in range(7)] == [[2.0 * n] for n in range(7)]
    assert said == ['the cause']
    assert torch.cuda.current_stream() == stream
    assert open_pools() == set()


# Training steps


@pytest.fixture(scope='module')
def wide_dir(tiny_scene, tmp_path_factory) -> Path:
    """Folder of a scene that is wide enough for exposure."""
    return tiny_scene(tmp_path_factory.mktemp('wide') / 'scene', size=(16, 22))


@pytest.fixture
def trainer_by(wide_dir):
    """Makes a trainer of the tiny scene by some more flags."""
    def make(*more: str, captured: bool = True) -> Trainer:
        return trainer_of([*FLAGS, '--datadir', str(wide_dir), *more], captured=captured)
    return make


@pytest.mark.parametrize(('precision', 'more'), [*(('fp32', more) for more in WAYS),
                                                 *(('bf16', more) for more in WAYS[:2]),
                                                 *(('fp16', more) for more in WAYS[:2])])
def test_captured_steps_are_the_eager_ones(trainer_by, precision, more):
    captured, eager = (trainer_by('--precision', precision, *more, captured=way) for way in (True, False))
    for step in range(1, 7):  # three eager ones, a capture and three replays
        one, other = captured.step(step), eager.step(step)
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert captured.update.graph is not None
    assert_same_weights(captured, eager)


def assert_same_weights(ours: Trainer, theirs: Trainer) -> None:
    for a, b in zip(*([*trainer.field.parameters(), *trainer.optimiser.averages] for trainer in (ours, theirs))):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=2e-3)


def test_what_is_done_between_steps_reaches_the_captured_ones(trainer_by):
    """The check for dead networks looks at colours every 25 steps, and forgets them."""
    captured, eager = (trainer_by('--precision', 'fp32', captured=way) for way in (True, False))
    for step in range(1, 28):
        said = [trainer.after_step(step, trainer.step(step)) for trainer in (captured, eager)]
        assert said[0] == said[1]
    assert captured.update.graph is not None
    torch.testing.assert_close(captured.training.state(), eager.training.state(), rtol=1e-3, atol=1e-4)
    assert_same_weights(captured, eager)


def test_a_capture_broken_off_in_the_optimiser_leaves_the_scaler_as_it_was(trainer_by, capsys):
    captured, eager = (trainer_by('--precision', 'fp16', '--use_viewdirs', captured=way) for way in (True, False))
    calls = []

    def broken_once(*args) -> None:
        calls.append(args)
        if len(calls) == EAGER_CALLS + 1:
            raise RuntimeError('in the middle')
    captured.optimiser.adam.register_step_pre_hook(broken_once)
    for step in range(1, EAGER_CALLS + 1):
        captured.step(step)
        eager.step(step)
    scale = captured.optimiser.scaler.get_scale()
    captured.step(EAGER_CALLS + 1)
    eager.step(EAGER_CALLS + 1)
    assert capsys.readouterr().out == ('CUDA graph capture failed (in the middle); training continues without it: same '
                                       'results, slower\n')
    assert captured.optimiser.scaler.get_scale() == eager.optimiser.scaler.get_scale() == scale
    captured.step(EAGER_CALLS + 2)
    eager.step(EAGER_CALLS + 2)
    assert_same_weights(captured, eager)


@pytest.mark.parametrize('more', [['--no_batching'], ['--ema_decay', '0.9']])
def test_no_step_waits_for_the_gpu(trainer_by, more):
    trainer = trainer_by(*more)
    for step in range(1, 6):
        trainer.step(step)
    torch.cuda.set_sync_debug_mode('error')
    try:
        for step in range(6, 9):
            assert trainer.after_step(step, trainer.step(step)) == []  # values are looked at every few steps only
    finally:
        torch.cuda.set_sync_debug_mode('default')


def test_a_view_on_cuda_is_that_on_the_cpu(trainer_by):
    trainers = [trainer_by('--device', device, '--precision', 'fp32') for device in ('cuda', 'cpu')]
    scene = trainers[0].batcher.scene
    views = [render_view(trainer.field.sampler(), scene.space, scene.cameras.take([0])) for trainer in trainers]
    assert abs(views[0].rgb - views[1].rgb).max() < 1e-3


def test_a_run_on_cuda_ends_and_goes_on(scene_dir, tmp_path):
    flags = [*FLAGS, '--datadir', str(scene_dir), '--basedir', str(tmp_path)]
    assert run_nerf.main([*flags, '--N_iters', '20']) == 0
    assert run_nerf.main([*flags, '--N_iters', '30']) == 0
    assert (tmp_path / 'run' / '000030.tar').is_file()
