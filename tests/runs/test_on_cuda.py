"""That the code for CUDA does there what it does on a CPU: training steps, pictures, meshes and checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import SMALL_RUN, assert_same, trainer_of

import run_nerf
from nerf.files.checkpoints import read_checkpoint, save_checkpoint
from nerf.meshes.colours import coloured_mesh
from nerf.rendering import View, render_view
from nerf.training import Trainer

pytestmark = pytest.mark.gpu
SCENES = {  # flags of a run on it
    'blender': ['--dataset_type', 'blender', '--white_bkgd', '--testskip', '1'],
    'black': ['--dataset_type', 'blender', '--testskip', '1', '--no_batching'],
    'ndc': ['--dataset_type', 'llff', '--factor', '2', '--llffhold', '3'],
    'lens': ['--dataset_type', 'transforms', '--llffhold', '3'],
    'fisheye': ['--dataset_type', 'transforms', '--llffhold', '3'],
}
GRID = ['--kernels', 'torch', '--grid_stages', '0:12 0.2:20', '--grid_captured_in_cells', '65536',
        '--grid_captured_kept', '8192']  # small, and without Numba, so that CPU and GPU take one path
FIELDS = {
    'two networks': ['--use_viewdirs'],
    'one network': ['--N_importance', '0', '--raw_noise_std', '1'],
    'gains': ['--use_viewdirs', '--exposure', 'on', '--ema_decay', '0.9'],
    'grid': ['--field', 'grid', *GRID],
    'grid and gains': ['--field', 'grid', *GRID, '--exposure', 'on'],
}
KINDS = [(scene, 'two networks') for scene in SCENES] + [
    *((scene, 'grid') for scene in ('blender', 'black', 'ndc', 'lens')),
    ('blender', 'one network'), ('blender', 'gains'),
    ('lens', 'one network'), ('blender', 'grid and gains')]
COMMON = ['--netdepth', '3', '--netwidth', '16', '--netdepth_fine', '2', '--netwidth_fine', '16', '--multires', '4',
          '--multires_views', '2', '--N_samples', '8', '--N_importance', '8', '--N_rand', '256', '--precision', 'fp32',
          '--expname', 'run', '--N_iters', '40']


@pytest.fixture(scope='module')
def folders(tiny_scene, tiny_llff, tiny_transforms, tmp_path_factory):
    """The folder of each scene."""
    root = tmp_path_factory.mktemp('scenes')
    lens = {'k1': 0.05, 'k2': -0.02, 'p1': 0.01, 'p2': 0.005}
    blender = tiny_scene(root / 'blender', size=(16, 22))
    return {'blender': blender, 'black': blender, 'ndc': tiny_llff(root / 'ndc'),
            'lens': tiny_transforms(root / 'lens', camera_model='OPENCV', **lens),
            'fisheye': tiny_transforms(root / 'fisheye', camera_model='OPENCV_FISHEYE', k1=0.05, k2=0.01)}


@pytest.fixture
def twins(folders):
    """Makes trainers of one run: on the CPU, on CUDA, and on CUDA without captured steps."""
    def make(scene: str, field: str) -> list[Trainer]:
        flags = [*SCENES[scene], *COMMON, *FIELDS[field], '--datadir', str(folders[scene])]
        return [trainer_of([*flags, '--device', device], captured=captured)
                for device, captured in (('cpu', True), ('cuda', True), ('cuda', False))]
    return make


def same_steps(trainers: list[Trainer], steps: range) -> None:
    """Steps of all trainers with the CPU's pixels and random numbers, whose losses must be the same."""
    for step in steps:
        drawn, losses = trainers[0].draw(step), []
        for trainer in trainers:
            part = trainer.take(step, *(None if part is None else part.to(trainer.field.device) for part in drawn))
            trainer.after_step(step, part)
            losses.append({name: loss.cpu() for name, loss in part.terms.items()})
        torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-5)


def same_views(ours: View, theirs: View) -> None:
    for a, b in ((ours.rgb, theirs.rgb), (ours.acc, theirs.acc)):
        assert np.abs(a - b).max() < 0.02


@pytest.mark.parametrize(('scene', 'field'), KINDS)
def test_steps_views_and_densities_are_those_of_the_cpu(twins, scene, field):
    ours, _, theirs = twins(scene, field)
    same_steps([ours, theirs], range(1, 10))  # the grid is pruned and refined in between
    fields, scene = [trainer.shown_field() for trainer in (ours, theirs)], ours.batcher.scene
    for a, b in zip(*(field.parameters() for field in fields)):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-2, atol=2e-3)
    camera = scene.cameras.take([0])
    same_views(*(render_view(field.sampler(), scene.space, camera) for field in fields))
    if not scene.space.projective:  # a survey of a deep box takes its time
        box = scene.seen_box()
        same_views(*(render_view(field.guided(box), scene.space, camera) for field in fields))
    points = np.random.default_rng(0).uniform(-0.9, 0.9, (1000, 3)).astype(np.float32)
    np.testing.assert_allclose(*(field.density_array(points) for field in fields), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(('scene', 'field'), KINDS)
def test_captured_steps_are_the_eager_ones(twins, scene, field):
    _, captured, eager = twins(scene, field)
    changes = 0
    for step in range(1, 16):  # three eager steps, a capture and replays; after eight the grid changes
        losses = [trainer.step(step) for trainer in (captured, eager)]
        torch.testing.assert_close(*(part.terms for part in losses), rtol=1e-3, atol=1e-4)
        lines = [trainer.after_step(step, part) for trainer, part in zip((captured, eager), losses)]
        assert lines[0] == lines[1]
        changes += bool(lines[0])
        assert captured.is_captured == (step > 3 and not (changes and step < 12))
    assert ('grid' in field) == bool(changes)
    for a, b in zip(captured.field.parameters(), eager.field.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=2e-3)


def test_a_captured_step_of_the_grid_does_not_wait(twins):
    trainer = twins('blender', 'grid')[1]
    for step in range(1, 5):
        trainer.step(step)
    torch.cuda.set_sync_debug_mode('error')
    try:
        for step in range(5, 8):
            assert trainer.after_step(step, trainer.step(step)) == []
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('field', ['two networks', 'grid'])
def test_the_colours_of_a_mesh_are_those_of_the_cpu(twins, field):
    ours, theirs, _ = twins('blender', field)
    vertices = np.float32([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5], [1, 1, 1]])  # the last one has no face
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    ours, theirs = (coloured_mesh(trainer.field.sampler(), vertices, faces, 0.1, trainer.batcher.scene.space
                                  ).visual.vertex_colors for trainer in (ours, theirs))
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 2


@pytest.mark.parametrize('field', ['gains', 'grid'])
@pytest.mark.parametrize('way', [1, -1])
def test_a_run_goes_on_on_the_other_device(twins, tmp_path, field, way):
    first, second = twins('blender', field)[:2][::way]
    for step in range(1, 5):
        first.after_step(step, first.step(step))
    save_checkpoint(tmp_path / '000004.tar', first.checkpoint(4))
    checkpoint = read_checkpoint(tmp_path / '000004.tar')
    second.field.load_weights(checkpoint)
    second = Trainer(second.training, second.batcher, second.lrate, second.lrate_decay, second.optimiser.ema_decay)
    second.optimiser.load_state_dict(checkpoint['optimizer_state_dict'])
    second.optimiser.load_average(checkpoint)
    second.load_state(checkpoint['run_state'], 4)
    save_checkpoint(tmp_path / 'again.tar', second.checkpoint(4))
    again = read_checkpoint(tmp_path / 'again.tar')
    for each in (checkpoint, again):
        del each['run_state']['batcher']  # another device has another generator
        each['optimizer_state_dict'] = each['optimizer_state_dict']['state']  # each step sets its rates
    assert_same(again, checkpoint)
    second.step(5)
    assert all(parameter.isfinite().all() for parameter in second.field.parameters())


def test_the_mesh_of_a_run_is_written(scene_dir, tmp_path):
    flags = [*SMALL_RUN, '--datadir', str(scene_dir), '--basedir', str(tmp_path), '--expname', 'run', '--device',
             'cuda', '--precision', 'auto', '--render_factor', '4', '--N_iters', '4']
    assert run_nerf.main(flags) == 0
    assert run_nerf.main([*flags, '--mesh_only', '--mesh_grid_size', '16', '--mesh_threshold', '0.48']) == 0
    assert (tmp_path / 'run' / 'mesh_000004.ply').is_file()
