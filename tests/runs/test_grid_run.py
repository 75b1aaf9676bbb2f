"""Whole runs of run_nerf.py with --field grid, on scenes of a few pixels and grids of a few cells."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from conftest import ROOT, SMALL_RUN, SMALL_SCENE, assert_same, state_of_run
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import run_nerf
from nerf.files import checkpoints
from nerf.files.whole_file import PARTIAL

pytest.importorskip('numba')

STEPS = 24  # the second stage begins after step 8, the third after step 15
GRID = ['--field', 'grid', '--grid_stages', '0:12 0.3:16 0.6:24', '--N_iters', str(STEPS), '--N_rand', '300', '--lrate',
        '5e-3', '--i_print', '4']
SLOW = pytest.mark.slow
OTHERS = 'import sys; {}; import run_nerf; sys.exit(run_nerf.main())'


@pytest.fixture
def flags(scene_dir, tmp_path):
    """Makes the flags of a run on the tiny scene, those of networks for another field alone; later ones win."""
    def make(*extra: str, expname: str = 'run') -> list[str]:
        return [*(SMALL_SCENE if 'grid' in extra else SMALL_RUN), '--datadir', str(scene_dir), '--basedir',
                str(tmp_path), '--expname', expname, *extra]
    return make


@pytest.fixture(scope='module')
def whole(scene_dir, tmp_path_factory) -> Path:
    """The folder of a run with a checkpoint after every second step, a held-out view, test set and videos."""
    logs = tmp_path_factory.mktemp('whole')
    assert run_nerf.main([*SMALL_SCENE, '--datadir', str(scene_dir), '--basedir', str(logs), '--expname', 'run', *GRID,
                          '--i_weights', '2', '--i_img', '12']) == 0
    return logs / 'run'


@pytest.fixture
def started_from(whole, tmp_path):
    """started_from(step): the run's folder in tmp_path, with the checkpoint of that step alone."""
    def make(step: int) -> Path:
        (tmp_path / 'run').mkdir()
        shutil.copy(whole / f'{step:06d}.tar', tmp_path / 'run')
        return tmp_path / 'run'
    return make


def processes(commands: list[tuple[list[str], dict[str, str]]], before: str = 'pass') -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of runs in processes of their own, all at once, of flags and environments."""
    running = [subprocess.Popen([sys.executable, '-c', OTHERS.format(before), *flags], cwd=ROOT, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                env=os.environ | {'OMP_NUM_THREADS': '1'} | variables)
               for flags, variables in commands]
    ended = [process.communicate() for process in running]
    return [(process.returncode, *streams) for process, streams in zip(running, ended)]


# A whole run


def test_a_run_trains_logs_and_makes_test_set_videos_and_summary(whole):
    lines = [json.loads(line) for line in (whole / 'metrics.jsonl').read_text().splitlines()]
    losses = [line['loss'] for line in lines if 'loss' in line]
    assert len(losses) == STEPS // 4
    assert losses[-1] < 0.5 * losses[0]
    metrics = json.loads((whole / f'testset_{STEPS:06d}' / 'metrics.json').read_text())
    assert len(metrics['images']) == 2
    assert metrics['mean']['psnr'] > 8.0
    for name in ('summary.png', f'run_spiral_{STEPS:06d}_rgb.mp4', f'run_spiral_{STEPS:06d}_disp.mp4', 'args.txt'):
        assert (whole / name).is_file()


def test_its_log_has_the_grids_size_its_samples_and_histograms(whole):
    lines = [json.loads(line) for line in (whole / 'metrics.jsonl').read_text().splitlines()]
    board = EventAccumulator(str(whole), size_guidance={'scalars': 0}).Reload()
    names = ['rows', 'occupied_share', 'voxel', 'rays_per_step', 'samples_per_ray']
    assert sorted(tag for tag in board.Tags()['scalars'] if tag.startswith('field/')) == sorted(
        f'field/{name}' for name in names)
    for name in names:
        assert [event.value for event in board.Scalars(f'field/{name}')] == pytest.approx(
            [line[name] for line in lines])
    assert [line['voxel'] for line in lines] == pytest.approx([4.0 / cells for cells in (12, 12, 16, 24, 24, 24)])
    assert sorted(board.Tags()['histograms']) == ['val/blue', 'val/density', 'val/green', 'val/red']


def test_its_checkpoints_hold_the_grid_of_their_stage(whole):
    stages = {step: torch.load(whole / f'{step:06d}.tar', weights_only=True) for step in (6, 8, 14, 16, STEPS)}
    assert [part['grid_state_dict']['stage'] for part in stages.values()] == [0, 1, 1, 2, 2]
    voxels = [part['grid_state_dict']['voxel'] for part in stages.values()]
    assert voxels == pytest.approx([4.0 / cells for cells in (12, 16, 16, 24, 24)])
    last = stages[STEPS]
    assert set(last) == {'global_step', 'grid_state_dict', 'optimizer_state_dict', 'run_state'}
    assert set(last['run_state']['grid']) == {
        'means', 'squares', 'strongest', 'touched', 'adam_steps', 'n_rays'}
    assert last['run_state']['flags']['field'] == 'grid'


@SLOW
@pytest.mark.parametrize('step', [6, 8, 14, 16])  # after step 8 the second stage begins, after 15 the third
def test_a_resumed_run_is_the_run_it_would_have_been(flags, whole, started_from, tmp_path, capsys, step):
    started_from(step)
    assert run_nerf.main(flags(*GRID, '--i_img', '12')) == 0
    assert f'going on at step {step}' in capsys.readouterr().out
    assert_same(state_of_run(tmp_path / 'run', STEPS), state_of_run(whole, STEPS))


@SLOW
def test_a_run_is_the_same_bits_on_any_number_of_threads(flags, tmp_path):
    commands = [(flags(*GRID, '--i_testset', '1000', '--i_video', '1000', '--i_img', '1000', expname=threads),
                 {'NUMBA_NUM_THREADS': threads}) for threads in ('1', '2')]
    for code, _, error in processes(commands):
        assert (code, error) == (0, '')
    one, two = (state_of_run(tmp_path / threads, STEPS) for threads in ('1', '2'))
    assert_same(one, two)


@SLOW
def test_without_numba_a_run_goes_on_in_plain_pytorch_and_says_so(flags, started_from):
    run_dir = started_from(22)
    (code, out, error), = processes([(flags(*GRID, '--i_img', '1000'), {})], "sys.modules['numba'] = None")
    assert code == 0, error
    line, = error.splitlines()
    assert line.startswith('the grid runs in plain PyTorch, many times slower: Numba cannot be used (')
    assert line.endswith('; pip install numba')
    assert 'plain PyTorch' in out
    assert f'{STEPS} steps done' in out
    assert (run_dir / f'{STEPS:06d}.tar').is_file()


@SLOW
def test_compiled_loops_are_kept_and_the_log_says_when_there_are_none(flags, tmp_path):
    for times in (1, 0):
        (code, out, error), = processes([(flags(*GRID, '--N_iters', '1', '--no_reload'),
                                          {'NUMBA_CACHE_DIR': str(tmp_path / 'cache')})])
        assert (code, error) == (0, '')
        assert out.count("compiling the grid's loops, once; this takes about 10 s\n") == times


@SLOW
def test_where_compiled_loops_cannot_be_kept_they_are_used_all_the_same(flags, tmp_path):
    code = tmp_path / 'code'
    shutil.copytree(ROOT / 'nerf', code / 'nerf', ignore=shutil.ignore_patterns('__pycache__'))
    for path in ROOT.glob('*.py'):
        shutil.copy(path, code)
    file = code / 'nerf' / 'fields' / 'grid' / '__pycache__'
    file.touch()  # no folder can be made below a file
    below = {name: str(file / 'x') for name in ('NUMBA_CACHE_DIR', 'HOME', 'XDG_CACHE_HOME')}
    done = subprocess.run([sys.executable, code / 'run_nerf.py', *flags(*GRID, '--N_iters', '1')], cwd=code, text=True,
                          capture_output=True, env=os.environ | below | {
                              'OMP_NUM_THREADS': '1', 'MPLCONFIGDIR': str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, '')
    assert "compiling the grid's loops; this takes about 10 s in each run" in done.stdout
    assert 'vertices, 0.3333 apart, kernels' in done.stdout  # the first stage of a box of side 4


@SLOW
def test_an_average_of_the_weights_is_not_kept_and_a_line_says_so(flags, whole, tmp_path, capsys):
    assert run_nerf.main(flags(*GRID, '--ema_decay', '0.9', '--i_img', '12')) == 0
    assert capsys.readouterr().err.startswith('warning: ema_decay = 0.9 has no effect unless field is mlp')
    assert_same(state_of_run(tmp_path / 'run', STEPS), state_of_run(whole, STEPS))


@SLOW
@pytest.mark.parametrize('steps', ['1', '2', '5', '9'])
def test_a_very_short_run_ends_well(flags, tmp_path, steps):
    assert run_nerf.main(flags(*GRID, '--N_iters', steps)) == 0
    assert checkpoints.read_newest(tmp_path / 'run')[1]['global_step'] == int(steps)


@SLOW
def test_a_run_that_is_to_go_on_for_longer_does(flags, started_from, capsys):
    run_dir = started_from(STEPS)
    assert run_nerf.main(flags(*GRID, '--N_iters', str(STEPS + 3), '--i_img', '1000')) == 0
    assert f'N_iters {STEPS} -> {STEPS + 3}' in capsys.readouterr().out
    assert (run_dir / f'{STEPS + 3:06d}.tar').is_file()


# Rendering, mesh and weights of other runs


@SLOW
def test_rendered_test_views_are_those_of_the_run_and_the_path_has_a_video(flags, whole, started_from, capsys):
    run_dir = started_from(STEPS)
    assert run_nerf.main(flags(*GRID, '--render_only', '--render_test')) == 0
    assert '2 test views: psnr ' in capsys.readouterr().out
    for name in ('000.png', '001.png'):
        ours, theirs = (np.asarray(Image.open(folder / name)) for folder in (
            run_dir / f'renderonly_test_{STEPS:06d}', whole / f'testset_{STEPS:06d}'))
        np.testing.assert_array_equal(ours, theirs)
    assert run_nerf.main(flags(*GRID, '--render_only', '--render_factor', '4')) == 0
    path = run_dir / f'renderonly_path_{STEPS:06d}'
    assert (path / 'video.mp4').is_file()
    assert np.asarray(Image.open(path / '000.png')).shape == (4, 4, 3)


def test_a_run_ends_with_its_weights_alone_in_half_precision(whole):
    path, full = whole / f'{STEPS:06d}_slim.tar', whole / f'{STEPS:06d}.tar'
    slim = torch.load(path, weights_only=True)
    assert set(slim) == {'global_step', 'grid_state_dict'}
    assert slim['global_step'] == STEPS
    assert [*whole.glob('*_slim.tar')] == [path]
    assert path.stat().st_size < 0.3 * full.stat().st_size


@SLOW
@pytest.mark.parametrize('shared', ['folder', 'ft_path'])
def test_slim_weights_show_and_mesh_what_the_checkpoint_does(flags, whole, tmp_path, capsys, shared):
    (tmp_path / 'run').mkdir()
    slim, extra = whole / f'{STEPS:06d}_slim.tar', []
    if shared == 'folder':
        slim = Path(shutil.copy(slim, tmp_path / 'run'))
    else:
        extra = ['--ft_path', str(slim)]
    assert run_nerf.main(flags(*GRID, *extra, '--render_only', '--render_test')) == 0
    assert f'weights from {slim} (step {STEPS})' in capsys.readouterr().out
    means = [json.loads((folder / 'metrics.json').read_text())['mean']['psnr'] for folder in (
        tmp_path / 'run' / f'renderonly_test_{STEPS:06d}', whole / f'testset_{STEPS:06d}')]
    assert means[0] == pytest.approx(means[1], abs=0.05)
    assert run_nerf.main(flags(*GRID, *extra, '--mesh_only', '--mesh_threshold', '1', '--mesh_grid_size', '32')) == 0
    assert len(trimesh.load(tmp_path / 'run' / f'mesh_{STEPS:06d}.ply', process=False).faces) > 100


@SLOW
def test_training_starts_from_slim_weights_if_they_are_ft_path_and_says_so_if_not(flags, whole, tmp_path, capsys):
    (tmp_path / 'run').mkdir()
    slim = Path(shutil.copy(whole / f'{STEPS:06d}_slim.tar', tmp_path / 'run'))
    assert run_nerf.main(flags(*GRID, '--N_iters', '1')) == 0
    out, error = capsys.readouterr()
    assert error == f'{slim.parent} has no checkpoint to go on from; to start from its slim weights, give them as ' \
                    'ft_path\n'
    assert 'starting at step 0' in out
    assert run_nerf.main(flags(*GRID, '--N_iters', '1', '--lrate', '1e-9', '--ft_path', str(slim), expname='new')) == 0
    assert f'weights from {slim} (step {STEPS})' in capsys.readouterr().out
    assert state_of_run(tmp_path / 'new', 1)['grid_state_dict']['stage'] == 2


def test_slim_weights_are_no_checkpoint_to_go_on_from_and_are_made_where_they_are_missing(
        flags, whole, started_from, capsys):
    run_dir = started_from(STEPS)
    shutil.copy(whole / f'{STEPS:06d}_slim.tar', run_dir / f'{STEPS + 9:06d}_slim.tar')
    assert checkpoints.read_newest(run_dir)[0] == run_dir / f'{STEPS:06d}.tar'
    assert run_nerf.main(flags(*GRID)) == 0
    slim = run_dir / f'{STEPS:06d}_slim.tar'
    assert_same(*(torch.load(folder / slim.name, weights_only=True) for folder in (run_dir, whole)))
    said = capsys.readouterr().out
    assert f'share it: {slim} has the weights alone, {slim.stat().st_size / 1e6:.1f} MB\n' in said


def test_slim_weights_that_cannot_be_written_are_one_line_and_the_run_ends_well(flags, started_from, capsys):
    run_dir = started_from(STEPS - 2)
    (run_dir / f'{PARTIAL}{STEPS:06d}_slim.tar').mkdir()  # in the way
    assert run_nerf.main(flags(*GRID, '--i_img', '1000')) == 0
    out = capsys.readouterr().out
    assert len(re.findall(rf'warning: .*{STEPS:06d}_slim\.tar.*; training goes', out)) == 1
    assert 'share it' not in out
    assert (run_dir / f'{STEPS:06d}.tar').is_file()


@SLOW
def test_a_mesh_is_the_surface_of_what_was_trained(flags, started_from):
    run_dir = started_from(STEPS)
    assert run_nerf.main(flags(*GRID, '--mesh_only', '--mesh_threshold', '1', '--mesh_grid_size', '32')) == 0
    mesh = trimesh.load(run_dir / f'mesh_{STEPS:06d}.ply', process=False)
    assert len(mesh.faces) > 100
    assert np.abs(mesh.vertices).max() <= 2.1  # the scene's box
    assert (run_dir / f'mesh_{STEPS:06d}_views.png').is_file()


@SLOW
def test_ft_path_gives_a_fresh_run_the_grid_of_another(flags, whole, tmp_path, capsys):
    path = whole / f'{STEPS:06d}.tar'
    tuned = flags(*GRID, '--N_iters', '1', '--lrate', '1e-9', '--ft_path', str(path), expname='tuned')
    assert run_nerf.main(tuned) == 0
    ours, theirs = (state_of_run(*run)['grid_state_dict'] for run in ((tmp_path / 'tuned', 1), (whole, STEPS)))
    assert ours['stage'] == 2
    assert_same(ours['cells'], theirs['cells'])
    torch.testing.assert_close(ours['rows'], theirs['rows'], rtol=0, atol=1e-6)
    assert f'weights from {path} (step {STEPS})' in capsys.readouterr().out


@SLOW
def test_a_checkpoint_of_the_other_field_is_one_line_that_names_the_flag(flags, whole, tmp_path, capsys):
    path = whole / f'{STEPS:06d}.tar'
    assert run_nerf.main(flags('--ft_path', str(path), '--N_iters', '1')) == 1
    error = capsys.readouterr().err
    assert error.startswith(f'error: {path}: it has no network_fn_state_dict')
    assert error.count('\n') == 1
    assert run_nerf.main(flags('--N_iters', '1', expname='mlp')) == 0
    capsys.readouterr()
    mlp = tmp_path / 'mlp' / '000001.tar'
    assert run_nerf.main(flags(*GRID, '--ft_path', str(mlp), expname='new')) == 1
    assert capsys.readouterr().err == (f'error: {mlp}: it has no grid_state_dict; set field = mlp or use another '
                                       'checkpoint\n')


def test_several_processes_are_refused(flags, as_rank, capsys):
    as_rank(0, 2)
    assert run_nerf.main(flags(*GRID)) == 1
    assert 'field grid trains in one process; start it without torchrun' in capsys.readouterr().err


# Other scenes


@SLOW
def test_a_resumed_run_without_bounds_is_the_run_it_would_have_been(tiny_llff, tmp_path):
    common = ['--dataset_type', 'llff', '--factor', '2', '--datadir', str(tiny_llff(tmp_path / 'scene')), '--basedir',
              str(tmp_path), '--device', 'cpu', '--precision', 'fp32', '--expname', 'run', *GRID, '--no_ndc',
              '--i_img', '1000', '--i_video', '1000']
    assert run_nerf.main([*common, '--i_weights', '10']) == 0
    whole = state_of_run(tmp_path / 'run', STEPS)
    assert whole['grid_state_dict']['contraction'][3] > 1.0
    for step in (20, STEPS):
        (tmp_path / 'run' / f'{step:06d}.tar').unlink()
    assert run_nerf.main(common) == 0
    assert_same(state_of_run(tmp_path / 'run', STEPS), whole)


@SLOW
@pytest.mark.parametrize('extra', [(), ('--no_ndc',)], ids=['NDC', 'world'])
def test_a_forward_facing_scene(tiny_llff, tmp_path, extra):
    scene = tiny_llff(tmp_path / 'scene')
    common = ['--dataset_type', 'llff', '--factor', '2', '--datadir', str(scene), '--basedir', str(tmp_path),
              '--device', 'cpu', '--precision', 'fp32', '--expname', 'run', *GRID, *extra]
    assert run_nerf.main([*common, '--i_img', '12', '--render_factor', '2']) == 0
    run_dir = tmp_path / 'run'
    metrics = json.loads((run_dir / f'testset_{STEPS:06d}' / 'metrics.json').read_text())
    assert metrics['mean']['psnr'] > 12.0
    assert (run_dir / f'run_spiral_{STEPS:06d}_rgb.mp4').is_file()
    assert run_nerf.main([*common, '--mesh_only', '--mesh_threshold', '0.3', '--mesh_grid_size', '24']) == 0
    assert len(trimesh.load(run_dir / f'mesh_{STEPS:06d}.ply', process=False).faces) > 10


@SLOW
@pytest.mark.parametrize('channels', [4, 3])
@pytest.mark.parametrize('white', [True, False])
def test_any_background_with_and_without_alpha(tiny_scene, tmp_path, channels, white):
    scene = tiny_scene(tmp_path / 'scene', channels=channels)
    flags = [flag for flag in SMALL_SCENE if white or flag != '--white_bkgd']
    assert run_nerf.main([*flags, '--datadir', str(scene), '--basedir', str(tmp_path), '--expname', 'run', *GRID,
                          '--i_img', '1000', '--i_video', '1000']) == 0
    lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    losses = [line['loss'] for line in lines if 'loss' in line]
    assert losses[-1] < 0.5 * losses[0]
    if channels == 4 and white:
        picture = np.asarray(Image.open(tmp_path / 'run' / f'testset_{STEPS:06d}' / '000.png')).astype(int)
        assert abs(picture[0, 0] - 255).mean() < 100
        assert abs(picture[7, 7] - [230, 120, 40]).max() < 120


@SLOW
def test_without_white_bkgd_a_scene_with_alpha_is_the_same_without(tiny_scene, tmp_path):
    flags = [flag for flag in SMALL_SCENE if flag != '--white_bkgd']
    for name, channels in (('alpha', 4), ('plain', 3)):
        scene = tiny_scene(tmp_path / f'scene_{name}', channels=channels)
        assert run_nerf.main([*flags, '--datadir', str(scene), '--basedir', str(tmp_path), '--expname', name, *GRID,
                              '--i_img', '1000', '--i_video', '1000', '--i_testset', '1000']) == 0
    one, two = (state_of_run(tmp_path / name, STEPS) for name in ('alpha', 'plain'))
    assert_same(one['grid_state_dict'], two['grid_state_dict'])


@SLOW
def test_bf16_trains(flags, tmp_path):
    assert run_nerf.main(flags(*GRID, '--precision', 'bf16', '--i_img', '1000', '--i_video', '1000')) == 0
    rows = state_of_run(tmp_path / 'run', STEPS)['grid_state_dict']['rows']
    assert rows.dtype == torch.float32
    assert rows.isfinite().all()
