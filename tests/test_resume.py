"""nerf/resume.py: what a run starts from and goes on with, and what it says where it cannot."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SMALL_RUN, assert_same, state_of_run, trainer_of
from kill_harness import command, differences, finish, kill_until_done
from PIL import Image

import run_nerf
from nerf.fields.interface import Field
from nerf.fields.kinds import FIELDS
from nerf.files import checkpoints
from nerf.flags import parse_flags
from nerf.formats import load_scene
from nerf.resume import Origin, restore_trained, restore_weights, resume
from nerf.runtime.errors import UserError
from nerf.training import Trainer

RAW = ('network_fn_state_dict', 'network_fine_state_dict')


# Changed flags


@pytest.mark.parametrize(('before', 'names', 'expected'), [
    ({'a': 1, 'b': 'x'}, 'ab', 'a 1 -> 2, b x -> y'), ({'a': 1, 'b': 'y'}, 'ab', 'a 1 -> 2'), ({'a': 1}, 'b', ''),
    ({'a': [1], 'c': 3}, 'abc', ''), (None, 'ab', ''), (5, 'ab', '')])
def test_changed_flags_are_told_with_both_values(before, names, expected):
    origin = Origin(Path('run'), {'a': 2, 'b': 'y'}, frozenset(), True)
    assert origin.changed({'run_state': {'flags': before}}, names) == expected


@pytest.mark.parametrize('checkpoint', [{}, {'run_state': None}, {'run_state': [1]}])
def test_a_checkpoint_without_flags_has_no_changed_ones(checkpoint):
    assert Origin(Path('run'), {'a': 2}, frozenset(), True).changed(checkpoint, 'a') == ''


# Weights to start from


@pytest.fixture(scope='module')
def averaged_run(scene_dir, tmp_path_factory) -> Path:
    """The folder of a run of 30 steps with averaged weights and a test set by them."""
    logs = tmp_path_factory.mktemp('averaged')
    assert run_nerf.main([*SMALL_RUN, '--datadir', str(scene_dir), '--basedir', str(logs), '--expname', 'run',
                          '--ema_decay', '0.9', '--N_iters', '30', '--i_testset', '30']) == 0
    return logs / 'run'


def field_of(flags: list[str]) -> Field:
    """A fresh field, and the flags."""
    args = parse_flags(flags)
    return FIELDS[args.field].build(args, load_scene(args), torch.device('cpu'), torch.float32)


def restored(flags: list[str], run_dir: Path) -> tuple[Field, int | None, dict | None]:
    """A field with what `restore_weights` gives it, and what that returns."""
    field = field_of(flags)
    return field, *restore_weights(run_nerf.origin_of(parse_flags(flags), run_dir), field)


def resumed(flags: list[str], run_dir: Path) -> tuple[Trainer, tuple[int, int]]:
    """A trainer that goes on from a run's checkpoint, and what `resume` returns."""
    trainer, origin = trainer_of(flags), run_nerf.origin_of(parse_flags(flags), run_dir)
    _, checkpoint = restore_weights(origin, trainer.field)
    return trainer, resume(origin, trainer.batcher.scene, trainer, checkpoint)


def assert_weights(field: Field, wanted: dict) -> None:
    for key in RAW:
        assert_same(dict(field.weights()[key]), dict(wanted[key]))


@pytest.mark.parametrize(('extra', 'averaged'), [
    ((), False), (('--ema_decay', '0.9'), False), (('--render_only',), True), (('--mesh_only',), True),
    (('--render_only', '--no_reload'), True)])
def test_training_goes_on_from_the_raw_weights_and_all_else_takes_the_averaged_ones(flags, averaged_run, extra,
                                                                                   averaged):
    there = torch.load(averaged_run / '000030.tar', weights_only=True)
    assert not torch.equal(there['averaged'][RAW[1]]['rgb_linear.bias'], there[RAW[1]]['rgb_linear.bias'])
    field, step, own = restored(flags(*extra), averaged_run)
    assert step == 30
    assert own['global_step'] == 30
    assert_weights(field, there['averaged'] if averaged else there)


@pytest.mark.parametrize('extra', [(), ('--render_only',), ('--no_reload',)])
def test_ft_path_takes_the_averaged_weights(flags, averaged_run, tmp_path, extra):
    path = averaged_run / '000030.tar'
    field, step, own = restored(flags('--ft_path', str(path), *extra), tmp_path / 'new')
    assert (step, own) == (30, None)
    assert_weights(field, torch.load(path, weights_only=True)['averaged'])


def test_no_reload_gives_training_no_weights_of_its_own_run(flags, averaged_run):
    field, *nothing = restored(flags('--no_reload'), averaged_run)
    assert nothing == [None, None]
    assert_weights(field, field_of(flags()).weights())


def test_a_run_that_turns_the_average_on_starts_it_from_its_weights(flags, tmp_path):
    assert run_nerf.main(flags('--N_iters', '3')) == 0
    assert 'averaged' not in torch.load(tmp_path / 'run' / '000003.tar', weights_only=True)
    trainer, steps = resumed(flags('--ema_decay', '0.9'), tmp_path / 'run')
    assert steps == (3, 0)
    assert len(trainer.optimiser.averages) == len([*trainer.field.parameters()])
    for average, weight in zip(trainer.optimiser.averages, trainer.field.parameters()):
        assert torch.equal(average, weight)


def test_a_run_that_turns_the_average_off_leaves_none_in_its_checkpoints(flags, averaged_run, tmp_path):
    shutil.copytree(averaged_run, tmp_path / 'run')
    assert run_nerf.main(flags('--N_iters', '31')) == 0
    assert 'averaged' not in torch.load(tmp_path / 'run' / '000031.tar', weights_only=True)


@pytest.mark.parametrize('averaged', [None, 5, [torch.zeros(3)]])
def test_an_average_that_is_no_dictionary_is_as_good_as_none(flags, averaged_run, tmp_path, averaged):
    checkpoint = torch.load(averaged_run / '000030.tar', weights_only=True)
    (tmp_path / 'run').mkdir()
    torch.save(checkpoint | {'averaged': averaged}, tmp_path / 'run' / '000030.tar')
    assert_weights(restored(flags('--render_only'), tmp_path / 'run')[0], checkpoint)


@pytest.mark.parametrize('extra', [('--render_only',), ('--ema_decay', '0.9', '--N_iters', '40')])
@pytest.mark.parametrize(('averaged', 'message'), [
    ({}, 'it has no network_fn_state_dict'), ({'network_fn_state_dict': 3}, 'it has no network_fn_state_dict'),
    ({'network_fn_state_dict': {}}, 'pts_linears.0.weight is absent there and (16, 27) here')])
def test_a_broken_average_is_one_line(flags, averaged_run, tmp_path, capsys, extra, averaged, message):
    checkpoint = torch.load(averaged_run / '000030.tar', weights_only=True)
    path = tmp_path / 'run' / '000030.tar'
    path.parent.mkdir()
    torch.save(checkpoint | {'averaged': averaged}, path)
    assert run_nerf.main(flags(*extra)) == 1
    error = capsys.readouterr().err
    assert error.startswith(f'error: {path}: it ')
    assert message in error
    assert error.count('\n') == 1
    assert [file.name for file in path.parent.iterdir()] == ['000030.tar']


@pytest.mark.parametrize('job', ['--render_only', '--mesh_only'])
def test_rendering_and_meshing_take_slim_weights_of_a_run_without_a_checkpoint_and_training_does_not(
        flags, averaged_run, tmp_path, capsys, job):
    checkpoint = torch.load(averaged_run / '000030.tar', weights_only=True)
    slim = {'global_step': 30, **{key: checkpoint[key] for key in RAW}}
    (tmp_path / 'run').mkdir()
    torch.save(slim, tmp_path / 'run' / '000030_slim.tar')
    field, step, own = restored(flags(job), tmp_path / 'run')
    assert (step, own['global_step']) == (30, 30)
    assert_weights(field, slim)
    capsys.readouterr()
    assert restored(flags(), tmp_path / 'run')[1:] == (None, None)
    assert 'has no checkpoint to go on from; to start from its slim weights, give them as ft_path' in (
        capsys.readouterr().err)
    assert restored(flags('--ft_path', str(tmp_path / 'run' / '000030_slim.tar')), tmp_path / 'run')[1:] == (30, None)


def test_rendering_needs_weights(flags, averaged_run, tmp_path):
    field = field_of(flags())
    assert restore_trained(run_nerf.origin_of(parse_flags(flags('--render_only')), averaged_run), field) == 30
    with pytest.raises(UserError, match='has no checkpoint; train first'):
        restore_trained(run_nerf.origin_of(parse_flags(flags('--render_only')), tmp_path / 'none'), field)


def test_a_missing_ft_path_and_a_run_without_a_checkpoint_are_errors(flags, tmp_path, capsys):
    assert run_nerf.main(flags('--ft_path', 'no_such.tar', '--N_iters', '1')) == 1
    assert capsys.readouterr().err == 'error: checkpoint no_such.tar does not exist; check ft_path\n'
    for job in ('--render_only', '--mesh_only'):
        assert run_nerf.main(flags(job)) == 1
        assert f'{tmp_path / "run"} has no checkpoint; train first' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


# Resuming


@pytest.mark.parametrize('extra', [(), ('--no_batching', '--precrop_iters', '15'), ('--precision', 'bf16'),
                                   ('--ema_decay', '0.9')])
def test_a_resumed_run_is_the_run_it_would_have_been(flags, tmp_path, capsys, extra):
    extra = (*extra, '--raw_noise_std', '0.1', '--N_rand', '60', '--i_print', '5', '--i_img', '1000')
    assert run_nerf.main(flags(*extra, '--N_iters', '24', expname='whole')) == 0  # its epoch ends in step 18
    assert run_nerf.main(flags(*extra, '--N_iters', '12', expname='parts')) == 0
    capsys.readouterr()
    assert run_nerf.main(flags(*extra, '--N_iters', '24', expname='parts')) == 0
    assert f"weights from {tmp_path / 'parts' / '000012.tar'} (step 12)" in capsys.readouterr().out
    assert_same(state_of_run(tmp_path / 'whole', 24), state_of_run(tmp_path / 'parts', 24))


def test_no_reload_starts_afresh_and_sets_the_old_run_aside(flags, tmp_path, capsys):
    assert run_nerf.main(flags('--N_iters', '4', '--i_weights', '2')) == 0
    assert run_nerf.main(flags('--N_iters', '2', '--no_reload')) == 0
    run = tmp_path / 'run'
    assert sorted(path.name for path in run.glob('*.tar')) == ['000002.tar']
    assert sorted(path.name for path in run.glob('previous_1/*.tar')) == ['000002.tar', '000004.tar']
    assert 'is now in' in capsys.readouterr().out
    assert_same(state_of_run(run, 2), state_of_run(run / 'previous_1', 2))


def test_ft_path_gives_a_fresh_run_its_weights_and_loses_to_the_runs_own_checkpoint(flags, tmp_path, capsys):
    assert run_nerf.main(flags('--N_iters', '3')) == 0
    tuned = flags('--ft_path', str(tmp_path / 'run' / '000003.tar'), '--lrate', '1e-9', expname='tuned')
    assert run_nerf.main([*tuned, '--N_iters', '2']) == 0
    old, new = state_of_run(tmp_path / 'run', 3), state_of_run(tmp_path / 'tuned', 2)
    for key in ('network_fn_state_dict', 'network_fine_state_dict'):
        for name, weight in old[key].items():
            torch.testing.assert_close(new[key][name], weight, rtol=0, atol=1e-8)
    capsys.readouterr()
    assert run_nerf.main([*tuned, '--N_iters', '3']) == 0
    assert f"weights from {tmp_path / 'tuned' / '000002.tar'} (step 2)" in capsys.readouterr().out


def test_another_precision_may_go_on_with_a_run(flags, tmp_path):
    assert run_nerf.main(flags('--N_iters', '2')) == 0
    assert run_nerf.main(flags('--N_iters', '3', '--precision', 'bf16')) == 0
    assert (tmp_path / 'run' / '000003.tar').is_file()


def test_resuming_under_another_network_names_the_flags(flags, capsys):
    assert run_nerf.main(flags('--N_iters', '2')) == 0
    assert run_nerf.main(flags('--N_iters', '4', '--netwidth', '8')) == 1
    error = capsys.readouterr().err
    assert 'pts_linears.0.weight is (16, 27) there and (8, 27) here' in error
    assert '(changed since then: netwidth 16 -> 8)' in error
    assert run_nerf.main(flags('--N_iters', '4', '--N_importance', '0')) == 1
    assert '(changed since then: N_importance 8 -> 0)' in capsys.readouterr().err


def test_resuming_on_other_data_is_an_error_that_names_the_flags_or_the_files(flags, scene_dir, tmp_path, capsys):
    assert run_nerf.main(flags('--N_iters', '2')) == 0
    without_white = [flag for flag in flags('--N_iters', '4') if flag != '--white_bkgd']
    assert run_nerf.main(without_white) == 1
    assert '(changed since then: white_bkgd True -> False)' in capsys.readouterr().err
    elsewhere = tmp_path / 'elsewhere'
    shutil.copytree(scene_dir, elsewhere)
    assert run_nerf.main(flags('--N_iters', '4', '--datadir', str(elsewhere))) == 0  # the same scene in another place
    assert f'datadir {scene_dir} -> {elsewhere}' in capsys.readouterr().out
    (elsewhere / 'train' / 'r_0.png').write_bytes((elsewhere / 'train' / 'r_0.png').read_bytes())
    Image.new('RGBA', (16, 16)).save(elsewhere / 'train' / 'r_0.png')
    before = sorted((tmp_path / 'run').iterdir())
    assert run_nerf.main(flags('--N_iters', '6', '--datadir', str(elsewhere))) == 1
    assert f'(changed since then: the files in {elsewhere})' in capsys.readouterr().err
    assert sorted((tmp_path / 'run').iterdir()) == before


def test_harmless_changes_are_allowed_and_said(flags, capsys):
    assert run_nerf.main(flags('--N_iters', '2')) == 0
    capsys.readouterr()
    assert run_nerf.main(flags('--N_iters', '4', '--i_print', '2', '--chunk', '10', '--lrate', '2e-3')) == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith('changed since the checkpoint: '))
    for change in ('N_iters 2 -> 4', 'i_print 100 -> 2', 'chunk 32768 -> 10', 'lrate 0.01 -> 0.002'):
        assert change in line
    capsys.readouterr()
    assert run_nerf.main(flags('--N_iters', '6', '--i_print', '2', '--chunk', '10', '--lrate', '2e-3')) == 0
    assert 'changed since the checkpoint: N_iters 4 -> 6\n' in capsys.readouterr().out


@pytest.mark.parametrize('state', [5, [], {}, {'scaler': 1}, {'scaler': {}, 'batcher': {}},
                                   {'scaler': {}, 'batcher': None, 'flags': None}])
def test_a_checkpoint_with_a_broken_state_is_one_line(flags, tmp_path, capsys, state):
    assert run_nerf.main(flags('--N_iters', '2')) == 0
    path = tmp_path / 'run' / '000002.tar'
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint | {'run_state': state}, path)
    capsys.readouterr()
    assert run_nerf.main(flags('--N_iters', '4')) == 1
    error = capsys.readouterr().err
    assert error.startswith(f'error: {path}: its run_state is broken')
    assert error.count('\n') == 1


def test_an_optimiser_of_other_weights_is_one_line(flags, tmp_path, capsys):
    assert run_nerf.main(flags('--N_iters', '2')) == 0
    path = tmp_path / 'run' / '000002.tar'
    checkpoint = torch.load(path, weights_only=True)
    checkpoint['optimizer_state_dict']['param_groups'][0]['params'].pop()
    torch.save(checkpoint, path)
    capsys.readouterr()
    assert run_nerf.main(flags('--N_iters', '4')) == 1
    error = capsys.readouterr().err
    assert error.startswith(f'error: {path}: its optimiser does not fit the flags ')
    assert 'it has 25 parameters, not 26' in error
    assert error.count('\n') == 1


def test_a_checkpoint_of_the_reference_code_is_gone_on_with_from_another_draw(flags, tmp_path, capsys):
    """It has weights and optimiser, and no state of ours."""
    assert run_nerf.main(flags('--N_iters', '4')) == 0
    path = tmp_path / 'run' / '000004.tar'
    checkpoint = torch.load(path, weights_only=True)
    theirs = {key: checkpoint[key] for key in ('global_step', *RAW, 'optimizer_state_dict')}
    torch.save(theirs, path)
    trainer, steps = resumed(flags('--seed', '5'), tmp_path / 'run')
    assert steps == (4, 4)
    assert 'going on at step 4' in capsys.readouterr().out
    assert_same(trainer.checkpoint(4)['optimizer_state_dict']['state'], theirs['optimizer_state_dict']['state'])
    assert trainer.batcher.generator.initial_seed() == 5 + 4


@pytest.mark.parametrize(('extra', 'message'), [
    (('--netwidth_fine', '32'), 'pts_linears.0.weight is (16, 27) there and (32, 27) here'),
    (('--netdepth', '2'), 'pts_linears.2.weight is (16, 16) there and absent here'),
    (('--multires', '5'), 'pts_linears.0.weight is (16, 27) there and (16, 33) here')])
def test_weights_of_another_shape_are_an_error_that_names_path_and_flag(flags, averaged_run, tmp_path, extra, message):
    path = averaged_run / '000030.tar'
    for given in (flags(*extra, '--ft_path', str(path)), flags(*extra, '--render_only')):
        run_dir = averaged_run if '--render_only' in given else tmp_path / 'new'
        with pytest.raises(UserError) as error:
            restored(given, run_dir)
        assert str(error.value).startswith(f'{path}: it does not fit the flags: {message}; check netdepth, netwidth')
        assert f'(changed since then: {extra[0][2:]} ' in str(error.value)


def test_a_run_has_the_keys_of_the_reference_code_and_its_own(averaged_run):
    there = checkpoints.read_checkpoint(averaged_run / '000030.tar')
    assert set(there) == {'global_step', *RAW, 'optimizer_state_dict', 'run_state', 'averaged'}
    assert set(there['averaged']) == set(RAW)
    assert set(there['run_state']) >= {'scaler', 'batcher', 'flags', 'scene', 'viewed'}
    assert there['run_state']['flags']['ema_decay'] == 0.9
    assert there['optimizer_state_dict']['param_groups'][0]['lr'] == pytest.approx(1e-2 * 0.1 ** (30 / 250000))


def test_an_older_checkpoint_without_what_later_versions_note_goes_on_as_it_would_have(flags, tmp_path):
    assert run_nerf.main(flags('--N_iters', '30', '--i_weights', '25')) == 0
    whole = state_of_run(tmp_path / 'run', 30)
    (tmp_path / 'run' / '000030.tar').unlink()
    path = tmp_path / 'run' / '000025.tar'
    checkpoint = torch.load(path, weights_only=True)
    checkpoint['run_state']['guard'] = {'ranges': None}  # of a step after which networks were checked
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


def test_a_view_that_the_checkpoint_does_not_know_of_is_made_when_the_run_goes_on(flags, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def steps_viewed() -> list[int]:
        return [event.step for event in EventAccumulator(str(tmp_path / 'run')).Reload().Scalars('val/psnr')]
    assert run_nerf.main(flags('--i_img', '2', '--N_iters', '4')) == 0
    assert steps_viewed() == [2, 4]
    path = tmp_path / 'run' / '000004.tar'
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint['run_state']['viewed'] == 4
    checkpoint['run_state']['viewed'] = 2  # the run was stopped after step 4, before its view
    torch.save(checkpoint, path)
    for written in (tmp_path / 'run').glob('events*'):
        written.unlink()
    assert run_nerf.main(flags('--i_img', '2', '--N_iters', '6')) == 0
    assert steps_viewed() == [4, 6]


@pytest.mark.slow
def test_a_killed_run_with_an_average_ends_as_one_that_nobody_killed(scene_dir, tmp_path):
    runs = {name: [*command(scene_dir, tmp_path / name, 120), '--ema_decay', '0.95'] for name in ('whole', 'killed')}
    finish(runs['whole'])
    assert kill_until_done(runs['killed'], 1, random.Random(5)) == 1  # in step 60 or so
    assert differences(tmp_path / 'killed' / 'run', tmp_path / 'whole' / 'run', 120) == []
    averaged = torch.load(tmp_path / 'killed' / 'run' / '000120.tar', weights_only=True)['averaged']
    assert not torch.equal(averaged['network_fine_state_dict']['rgb_linear.bias'],
                           state_of_run(tmp_path / 'whole' / 'run', 120)['network_fine_state_dict']['rgb_linear.bias'])
