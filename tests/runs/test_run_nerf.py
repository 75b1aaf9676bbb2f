"""run_nerf.py: what a run starts from and goes on with, what its flags lead to, and how it ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from conftest import SMALL_RUN, assert_same, state_of_run, trainer_of
from PIL import Image

import run_nerf
from nerf.meshes import mesh
from nerf.files import checkpoints
from nerf.flags import parse_flags
from nerf.runtime.errors import UserError

RAW = ('network_fn_state_dict', 'network_fine_state_dict')


# Scene and model


def test_images_too_small_to_measure_are_an_error_before_training(tiny_scene, tmp_path, capsys):
    scene = tiny_scene(tmp_path / 'scene', size=(12, 10))
    assert run_nerf.main([*SMALL_RUN, '--datadir', str(scene), '--basedir', str(tmp_path), '--expname', 'run']) == 1
    assert capsys.readouterr().err == (
        f"error: {scene}: images are 10x12 pixels; SSIM's window needs at least 11x11\n")
    assert not (tmp_path / 'run').exists()


def test_a_tile_on_a_cpu_has_no_more_rays_than_it_works_well_with(flags):
    cpu, cuda = torch.device('cpu'), torch.device('cuda')
    wide = parse_flags(flags('--netwidth', '256', '--N_samples', '64', '--N_importance', '128'))
    assert run_nerf.rays_at_once(wide, cpu) == 24576 // 192
    assert run_nerf.rays_at_once(wide, cuda) == 32768
    assert run_nerf.rays_at_once(parse_flags(flags('--chunk', '7')), cpu) == 7
    endless = parse_flags(flags('--netwidth', '4096', '--N_samples', '100000'))
    assert run_nerf.rays_at_once(endless, cpu) == 1


def test_a_run_is_described_by_scene_networks_and_device(flags):
    args = parse_flags(flags('--seed', '7'))
    scene, model = run_nerf.load_scene(args), run_nerf.create_nerf(args, torch.device('cpu'), torch.bfloat16)
    counts = [sum(p.numel() for p in network.parameters()) for network in model.networks().values()]
    assert run_nerf.describe(args, scene, model).splitlines() == [
        f'scene     {args.datadir}: 8 images of 16x16, 4 train / 2 val / 2 test, near 2, far 6',
        f'networks  coarse {counts[0]:,} parameters, fine {counts[1]:,} parameters',
        'device    cpu, bfloat16, seed 7']


# Photographs


@pytest.fixture
def photographs(tiny_transforms, tmp_path):
    """Flags of a short run on photographs around a ball, and the run's folder."""
    folder = tiny_transforms(tmp_path / 'scene', count=8)
    small = [*SMALL_RUN, '--dataset_type', 'transforms', '--exposure', 'off']
    small.remove('--white_bkgd')
    return [*small, '--datadir', str(folder), '--basedir', str(tmp_path), '--expname', 'run'], tmp_path / 'run'


def test_a_run_on_photographs_says_where_they_are_and_leaves_their_placement(photographs, capsys):
    flags, run_dir = photographs
    assert run_nerf.main([*flags, '--N_iters', '3']) == 0
    said = capsys.readouterr().out
    assert 'capture   around a centre; one scene unit is ' in said
    assert ', of contracted space' in said
    saved = json.loads((run_dir / 'placement.json').read_text(encoding='utf-8'))
    scene = run_nerf.load_scene(parse_flags(flags))
    assert saved == {'scene_from_capture': scene.placement.matrix.tolist(), 'forward_facing': False}


def test_the_render_path_of_photographs_is_small_unless_a_size_is_asked_for(photographs, monkeypatch):
    monkeypatch.setattr(run_nerf, 'LONGEST_PREVIEW', 11)

    def size(*more: str) -> tuple[int, int]:
        return run_nerf.load_scene(parse_flags([*photographs[0], *more])).render_cameras.one_size()
    assert size('--render_factor', '0') == (8, 10)  # photographs have 24x32: a third
    assert size('--render_factor', '1') == size('--render_factor', '2') == (24, 32)  # scaled where it is rendered


def test_a_mesh_is_written_in_the_coordinates_of_the_scene_or_of_the_capture(photographs, monkeypatch):
    monkeypatch.setattr(mesh, 'SURVEY', 33)
    flags, run_dir = photographs
    assert run_nerf.main([*flags, '--N_iters', '3']) == 0
    args = parse_flags(flags)
    scene = run_nerf.load_scene(args)
    model = run_nerf.create_model(args, scene, torch.device('cpu'), torch.float32)
    run_nerf.restore_model(parse_flags([*flags, '--mesh_only']), run_dir, model)
    densities = model.density_array(np.random.default_rng(0).uniform(-2, 2, (2000, 3)).astype(np.float32))
    small = ['--mesh_only', '--mesh_grid_size', '24', '--mesh_threshold', str(float(np.median(densities)))]
    for name in ('scene', 'capture'):
        path = run_dir / f'{name}.ply'
        assert run_nerf.main([*flags, *small, '--mesh_coordinates', name, '--mesh_file', str(path)]) == 0
    ours, theirs = (trimesh.load(run_dir / f'{name}.ply', process=False) for name in ('scene', 'capture'))
    assert np.array_equal(ours.faces, theirs.faces)
    matrix = scene.placement.matrix
    np.testing.assert_allclose(theirs.vertices @ matrix[:3, :3].T + matrix[:3, 3], ours.vertices, atol=1e-4)
    assert np.abs(theirs.vertices - ours.vertices).max() > 0.1


def test_lindisp_is_off_in_ndc_whatever_the_dataset_type(photographs):
    args = parse_flags([*photographs[0], '--lindisp'])
    for ndc in (False, True):
        model = run_nerf.create_nerf(args, torch.device('cpu'), torch.float32, ndc=ndc)
        assert model.sampling.lindisp is not ndc


def test_occupancy_that_a_capture_without_bounds_cannot_use_gets_a_warning(photographs, capsys):
    args = parse_flags([*photographs[0], '--occupancy'])
    assert 'occupancy' not in capsys.readouterr().err
    run_nerf.create_model(args, run_nerf.load_scene(args), torch.device('cpu'), torch.float32)
    assert 'occupancy has no effect' in capsys.readouterr().err


# Weights to start from


@pytest.fixture(scope='module')
def averaged_run(scene_dir, tmp_path_factory) -> Path:
    """The folder of a run of 30 steps with averaged weights and a test set by them."""
    logs = tmp_path_factory.mktemp('averaged')
    assert run_nerf.main([*SMALL_RUN, '--datadir', str(scene_dir), '--basedir', str(logs), '--expname', 'run',
                          '--ema_decay', '0.9', '--N_iters', '30', '--i_testset', '30']) == 0
    return logs / 'run'


def restored(flags: list[str], run_dir: Path) -> tuple[run_nerf.Model, int | None, dict | None]:
    """A model with what `restore_model` gives it, and what that returns."""
    args = parse_flags(flags)
    model = run_nerf.create_nerf(args, torch.device('cpu'), torch.float32)
    return model, *run_nerf.restore_model(args, run_dir, model)


def assert_weights(model: run_nerf.Model, wanted: dict) -> None:
    for key in RAW:
        assert_same(dict(model.weights()[key]), dict(wanted[key]))


@pytest.mark.parametrize(('extra', 'averaged'), [
    ((), False), (('--ema_decay', '0.9'), False), (('--render_only',), True), (('--mesh_only',), True),
    (('--render_only', '--no_reload'), True)])
def test_training_goes_on_from_the_raw_weights_and_all_else_takes_the_averaged_ones(flags, averaged_run, extra,
                                                                                   averaged):
    there = torch.load(averaged_run / '000030.tar', weights_only=True)
    assert not torch.equal(there['averaged'][RAW[1]]['rgb_linear.bias'], there[RAW[1]]['rgb_linear.bias'])
    model, step, own = restored(flags(*extra), averaged_run)
    assert step == 30
    assert own['global_step'] == 30
    assert_weights(model, there['averaged'] if averaged else there)


@pytest.mark.parametrize('extra', [(), ('--render_only',), ('--no_reload',)])
def test_ft_path_takes_the_averaged_weights(flags, averaged_run, tmp_path, extra):
    path = averaged_run / '000030.tar'
    model, step, own = restored(flags('--ft_path', str(path), *extra), tmp_path / 'new')
    assert (step, own) == (30, None)
    assert_weights(model, torch.load(path, weights_only=True)['averaged'])


def test_no_reload_gives_training_no_weights_of_its_own_run(flags, averaged_run):
    model, *nothing = restored(flags('--no_reload'), averaged_run)
    assert nothing == [None, None]
    fresh = run_nerf.create_nerf(parse_flags(flags()), torch.device('cpu'), torch.float32)
    assert_weights(model, fresh.weights())


def test_views_and_test_sets_of_a_run_with_an_average_are_those_that_render_only_gives(flags, averaged_run, tmp_path):
    shutil.copytree(averaged_run, tmp_path / 'run')
    render = flags('--render_only', '--render_test')
    pictures = [tmp_path / 'run' / folder / '001.png' for folder in ('testset_000030', 'renderonly_test_000030')]
    assert run_nerf.main(render) == 0
    test_set, shown = (np.asarray(Image.open(path), int) for path in pictures)
    assert abs(shown - test_set).max() == 0
    path = tmp_path / 'run' / '000030.tar'
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint['averaged']
    torch.save(checkpoint, path)
    assert run_nerf.main(render) == 0
    assert abs(np.asarray(Image.open(pictures[1]), int) - test_set).max() > 2


def test_a_mesh_is_that_of_the_averaged_weights(flags, averaged_run, tmp_path, monkeypatch):
    shutil.copytree(averaged_run, tmp_path / 'run')
    meshed = []
    monkeypatch.setattr(run_nerf, 'export_mesh', lambda model, *_: meshed.append(model))
    monkeypatch.setattr(run_nerf, 'log_mesh', lambda *_: None)
    assert run_nerf.main(flags('--mesh_only')) == 0
    assert_weights(meshed[0], torch.load(tmp_path / 'run' / '000030.tar', weights_only=True)['averaged'])


def test_a_run_that_turns_the_average_on_starts_it_from_its_weights(flags, tmp_path):
    assert run_nerf.main(flags('--N_iters', '3')) == 0
    assert 'averaged' not in torch.load(tmp_path / 'run' / '000003.tar', weights_only=True)
    args = parse_flags(flags('--ema_decay', '0.9'))
    trainer = trainer_of(flags('--ema_decay', '0.9'))
    checkpoint = run_nerf.restore_model(args, tmp_path / 'run', trainer.model)[1]
    scene = trainer.batcher.scene
    assert run_nerf.resume(args, scene, trainer, tmp_path / 'run', checkpoint) == (3, 0)
    assert len(trainer.optimiser.averages) == len([*trainer.model.parameters()])
    for average, weight in zip(trainer.optimiser.averages, trainer.model.parameters()):
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


def test_a_missing_ft_path_and_a_run_without_a_checkpoint_are_errors(flags, tmp_path, capsys):
    assert run_nerf.main(flags('--ft_path', 'no_such.tar')) == 1
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


def test_another_seed_is_another_run(flags, tmp_path):
    for seed in ('1', '2'):
        assert run_nerf.main(flags('--N_iters', '2', '--seed', seed, expname=seed)) == 0
    one, two = (state_of_run(tmp_path / seed, 2)['network_fn_state_dict'] for seed in ('1', '2'))
    assert not torch.equal(one['pts_linears.0.weight'], two['pts_linears.0.weight'])


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


def test_a_finished_run_says_so_and_changes_nothing(flags, tmp_path, capsys):
    assert run_nerf.main(flags('--N_iters', '2')) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'run').iterdir()}
    capsys.readouterr()
    assert run_nerf.main(flags('--N_iters', '2')) == 0
    assert 'has all 2 steps already' in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / 'run').iterdir()}


def test_another_precision_may_go_on_with_a_run(flags, tmp_path):
    assert run_nerf.main(flags('--N_iters', '2')) == 0
    assert run_nerf.main(flags('--N_iters', '3', '--precision', 'bf16')) == 0
    assert (tmp_path / 'run' / '000003.tar').is_file()


def test_the_recorded_flags_of_a_fresh_start_render_what_it_trained(flags, tmp_path):
    assert run_nerf.main(flags('--N_iters', '2', '--no_reload')) == 0
    args = str(tmp_path / 'run' / 'args.txt')
    assert run_nerf.main(['--config', args, '--render_only', '--render_factor', '8']) == 0
    assert run_nerf.main(['--config', args, '--N_iters', '3']) == 0
    assert not (tmp_path / 'run' / 'previous_1').exists()


def test_a_render_factor_that_leaves_nothing_is_an_error_before_training(flags, tmp_path, capsys):
    assert run_nerf.main(flags('--render_factor', '17')) == 1
    assert 'render_factor 17 leaves nothing of 16x16 pixels' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


def test_a_run_stopped_while_it_rendered_at_the_end_renders_when_started_again(flags, tmp_path, capsys):
    wanted = flags('--N_iters', '2', '--i_testset', '2', '--i_video', '2', '--render_factor', '2')
    assert run_nerf.main(wanted) == 0
    metrics = tmp_path / 'run' / 'testset_000002' / 'metrics.json'
    video = tmp_path / 'run' / 'run_spiral_000002_disp.mp4'
    before = metrics.read_text()
    metrics.unlink()
    video.unlink()
    assert run_nerf.main(wanted) == 0
    assert metrics.read_text() == before
    assert video.is_file()
    assert 'has all' not in capsys.readouterr().out
    assert run_nerf.main(wanted) == 0
    assert 'has all 2 steps already' in capsys.readouterr().out


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


@pytest.mark.parametrize('state', [5, [], {}, {'scaler': 1}, {'scaler': {}, 'batcher': {}, 'guard': {}},
                                   {'scaler': {}, 'batcher': None, 'guard': None, 'flags': None}])
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
    args = parse_flags(flags('--seed', '5'))
    trainer = trainer_of(flags('--seed', '5'))
    own = run_nerf.restore_model(args, tmp_path / 'run', trainer.model)[1]
    assert run_nerf.resume(args, trainer.batcher.scene, trainer, tmp_path / 'run', own) == (4, 4)
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
    assert set(there['run_state']) == {'scaler', 'batcher', 'guard', 'flags', 'scene', 'viewed'}
    assert there['run_state']['flags']['ema_decay'] == 0.9
    assert there['optimizer_state_dict']['param_groups'][0]['lr'] == pytest.approx(1e-2 * 0.1 ** (30 / 250000))
