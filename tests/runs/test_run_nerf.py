"""run_nerf.py: what its flags lead to, what it says, and what a run leaves behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from conftest import SMALL_RUN, assert_same, state_of_run
from PIL import Image

import run_nerf
from nerf.fields.kinds import FIELDS
from nerf.flags import parse_flags
from nerf.formats import load_scene

RAW = ('network_fn_state_dict', 'network_fine_state_dict')


@pytest.fixture(scope='module')
def averaged_run(scene_dir, tmp_path_factory) -> Path:
    """Folder of a run of 30 steps with averaged weights and a test set by them."""
    logs = tmp_path_factory.mktemp('averaged')
    assert run_nerf.main([*SMALL_RUN, '--datadir', str(scene_dir), '--basedir', str(logs), '--expname', 'run',
                          '--ema_decay', '0.9', '--N_iters', '30', '--i_testset', '30']) == 0
    return logs / 'run'


# What a run says


def test_a_run_is_described_by_scene_networks_and_device(flags):
    args = parse_flags(flags('--seed', '7'))
    scene = load_scene(args)
    field = FIELDS['mlp'].build(args, scene, torch.device('cpu'), torch.bfloat16)
    counts = [sum(part.numel() for part in weights.values()) for weights in map(field.weights().get, RAW)]
    assert run_nerf.describe(args, scene, field).splitlines() == [
        f'scene     {args.datadir}: 8 images of 16x16, 4 train / 2 val / 2 test, near 2, far 6',
        f'networks  coarse {counts[0]:,} parameters, fine {counts[1]:,} parameters',
        'device    cpu, bfloat16, seed 7']


def test_a_finished_run_says_so_and_changes_nothing(flags, tmp_path, capsys):
    assert run_nerf.main(flags('--N_iters', '2')) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'run').iterdir()}
    capsys.readouterr()
    assert run_nerf.main(flags('--N_iters', '2')) == 0
    assert 'has all 2 steps already' in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / 'run').iterdir()}


def test_dead_networks_get_one_line_of_advice_each_and_are_left_as_they_are(flags, tmp_path, capsys):
    assert run_nerf.main(flags('--N_iters', '1')) == 0
    dead = torch.load(tmp_path / 'run' / '000001.tar', weights_only=True)
    for key in RAW:
        for weight in dead[key].values():
            weight.zero_()  # no density anywhere, and no gradient
    torch.save(dead, tmp_path / 'dead.tar')
    capsys.readouterr()
    assert run_nerf.main(flags('--N_iters', '110', '--ft_path', str(tmp_path / 'dead.tar'), expname='dead')) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if 'is dead' in line]
    assert lines == [f'warning: step 25: the {name} network is dead: it shows one colour and cannot learn; start again '
                     'with another seed or a lower lrate, and check that the images are not empty'
                     for name in ('coarse', 'fine')]
    end = state_of_run(tmp_path / 'dead', 110)
    assert not any(weight.any() for key in RAW for weight in end[key].values())


# Samplers of test views


@pytest.mark.parametrize(('extra', 'name'), [
    ((), 'hierarchical'), (('--N_importance', '0'), 'stratified'), (('--guided_test',), 'guided'),
    pytest.param(('--field', 'grid'), 'grid', marks=pytest.mark.slow)])
def test_metrics_name_the_sampler_of_the_test_views(flags, tmp_path, extra, name):
    wanted = flags('--N_iters', '3', '--i_testset', '3', *extra)
    assert run_nerf.main(wanted) == 0
    assert run_nerf.main([*wanted, '--render_only', '--render_test']) == 0
    made = [json.loads((tmp_path / 'run' / folder / 'metrics.json').read_text())
            for folder in ('testset_000003', 'renderonly_test_000003')]
    assert [metrics['sampler'] for metrics in made] == [name, name]
    assert made[0] == made[1]


# Other ways to look at a run


def test_test_sets_of_a_run_with_an_average_are_those_that_render_only_gives(flags, averaged_run, tmp_path):
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


def test_the_recorded_flags_of_a_fresh_start_render_what_it_trained(flags, tmp_path):
    assert run_nerf.main(flags('--N_iters', '2', '--no_reload')) == 0
    args = str(tmp_path / 'run' / 'args.txt')
    assert run_nerf.main(['--config', args, '--render_only', '--render_factor', '8']) == 0
    assert run_nerf.main(['--config', args, '--N_iters', '3']) == 0
    assert not (tmp_path / 'run' / 'previous_1').exists()


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


def test_another_seed_is_another_run_and_the_same_seed_the_same(flags, tmp_path):
    for expname, seed in (('one', '1'), ('again', '1'), ('two', '2')):
        assert run_nerf.main(flags('--N_iters', '2', '--seed', seed, expname=expname)) == 0
    one, again, two = (state_of_run(tmp_path / expname, 2) for expname in ('one', 'again', 'two'))
    assert_same(one, again)
    assert not torch.equal(one[RAW[0]]['pts_linears.0.weight'], two[RAW[0]]['pts_linears.0.weight'])


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
    scene = load_scene(parse_flags(flags))
    assert saved == {'scene_from_capture': scene.placement.matrix.tolist(), 'forward_facing': False}


@pytest.mark.slow
def test_a_mesh_is_written_in_the_coordinates_of_the_scene_or_of_the_capture(photographs):
    flags, run_dir = photographs
    assert run_nerf.main([*flags, '--N_iters', '3']) == 0
    args = parse_flags(flags)
    scene = load_scene(args)
    field = FIELDS['mlp'].build(args, scene, torch.device('cpu'), torch.float32)
    field.load_weights(torch.load(run_dir / '000003.tar', weights_only=True))
    densities = field.density_array(np.random.default_rng(0).uniform(-2, 2, (2000, 3)).astype(np.float32))
    small = ['--mesh_only', '--mesh_grid_size', '24', '--mesh_threshold', str(float(np.median(densities)))]
    for name in ('scene', 'capture'):
        path = run_dir / f'{name}.ply'
        assert run_nerf.main([*flags, *small, '--mesh_coordinates', name, '--mesh_file', str(path)]) == 0
    ours, theirs = (trimesh.load(run_dir / f'{name}.ply', process=False) for name in ('scene', 'capture'))
    assert np.array_equal(ours.faces, theirs.faces)
    matrix = scene.placement.matrix
    np.testing.assert_allclose(theirs.vertices @ matrix[:3, :3].T + matrix[:3, 3], ours.vertices, atol=1e-4)
    assert np.abs(theirs.vertices - ours.vertices).max() > 0.1


@pytest.mark.slow
def test_a_mesh_is_that_of_the_averaged_weights(flags, averaged_run, tmp_path, capsys):
    (tmp_path / 'run').mkdir()
    checkpoint = torch.load(averaged_run / '000030.tar', weights_only=True)
    for key in RAW:
        for weight in checkpoint[key].values():
            weight.zero_()  # no density, so no mesh
    torch.save(checkpoint, tmp_path / 'run' / '000030.tar')
    assert run_nerf.main(flags('--mesh_only', '--mesh_grid_size', '16', '--mesh_threshold', '0.5')) == 0
    assert len(trimesh.load(tmp_path / 'run' / 'mesh_000030.ply', process=False).faces) > 0
    del checkpoint['averaged']
    torch.save(checkpoint, tmp_path / 'run' / '000030.tar')
    assert run_nerf.main(flags('--mesh_only', '--mesh_grid_size', '16', '--mesh_threshold', '0.5')) == 1
    assert capsys.readouterr().err.count('\n') == 1
