"""That the code for CUDA does there what it does on a CPU: training steps, pictures, meshes and checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import SMALL_RUN, assert_same, trainer_of

import run_nerf
from nerf.fields.grid import model as grid
from nerf.fields.paper import occupied_rays
from nerf.fields.grid.torch_backend import Room
from nerf.files.checkpoints import read_checkpoint, save_checkpoint
from nerf.meshes.mesh import coloured_mesh
from nerf.rendering import View, render_view, surveyed
from nerf.training import Trainer

pytestmark = pytest.mark.gpu
SCENES = {  # flags of a run on it
    'blender': ['--dataset_type', 'blender', '--white_bkgd', '--testskip', '1'],
    'black': ['--dataset_type', 'blender', '--testskip', '1', '--no_batching'],
    'ndc': ['--dataset_type', 'llff', '--factor', '2', '--llffhold', '3'],
    'lens': ['--dataset_type', 'transforms', '--llffhold', '3'],
    'fisheye': ['--dataset_type', 'transforms', '--llffhold', '3'],
}
FIELDS = {
    'two networks': ['--use_viewdirs'],
    'one network': ['--N_importance', '0', '--raw_noise_std', '1'],
    'gains': ['--use_viewdirs', '--exposure', 'on', '--ema_decay', '0.9'],
    'occupancy': ['--occupancy'],
    'grid': ['--field', 'grid'],
    'grid and gains': ['--field', 'grid', '--exposure', 'on'],
}
KINDS = [(scene, 'two networks') for scene in SCENES] + [
    *((scene, 'grid') for scene in ('blender', 'black', 'ndc', 'lens')),
    ('blender', 'one network'), ('blender', 'gains'), ('blender', 'occupancy'), ('ndc', 'occupancy'),
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
def twins(folders, monkeypatch):
    """Makes one trainer on the CPU and the same one on CUDA; small and without Numba, so that both take one path."""
    monkeypatch.setattr(run_nerf, 'has_kernels', lambda: False)
    for name in ('STAGES', 'NDC_STAGES'):
        monkeypatch.setattr(grid, name, {0.0: 12, 0.2: 20})
    monkeypatch.setattr(grid, 'ROOM', Room(2 ** 16, 2 ** 13))
    for name, value in {'WARM_UP': 2, 'EVERY': 2, 'CELLS': 16}.items():
        monkeypatch.setattr(occupied_rays, name, value)

    def make(scene: str, field: str) -> list[Trainer]:
        flags = [*SCENES[scene], *COMMON, *FIELDS[field], '--datadir', str(folders[scene])]
        return [trainer_of([*flags, '--device', device]) for device in ('cpu', 'cuda')]
    return make


def same_steps(trainers: list[Trainer], steps: range) -> None:
    """Steps of both with the CPU's pixels and random numbers, whose losses must be the same."""
    first = trainers[0]
    for step in steps:
        n_rays = first.model.rays_per_step(first.batcher.n_rays)
        drawn = [*first.batcher.pixels(step, n_rays), *first.model.random_numbers(n_rays, first.batcher.generator)]
        losses = []
        for trainer in trainers:
            trainer.model.seed_of_step = getattr(first.model, 'seed_of_step', 0)
            trainer.optimiser.prepare(step, trainer.learning_rate(step))
            device = trainer.model.device
            losses.append(trainer._update(*(None if part is None else part.to(device) for part in drawn)))
            trainer.after_step(step)
        torch.testing.assert_close(*({name: loss.cpu() for name, loss in part.items()} for part in losses), rtol=1e-3,
                                   atol=1e-5)


def same_views(ours: View, theirs: View) -> None:
    for a, b in ((ours.rgb, theirs.rgb), (ours.acc, theirs.acc)):
        assert np.abs(a - b).max() < 0.02


@pytest.mark.parametrize(('scene', 'field'), KINDS)
def test_steps_views_and_densities_are_those_of_the_cpu(twins, scene, field):
    trainers = twins(scene, field)
    if field == 'grid' and trainers[0].model.contraction:  # captured steps there are evenly long, as no others
        trainers[0].model.captured = True
    same_steps(trainers, range(1, 10))  # the grid is pruned and refined, the occupancy decided in between
    models, scene = [trainer.optimiser.averaged_model() for trainer in trainers], trainers[0].batcher.scene
    for a, b in zip(*(model.parameters() for model in models)):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-2, atol=2e-3)
    camera = scene.cameras.take([0])
    same_views(*(render_view(model, scene, camera) for model in models))
    if not scene.ndc:  # a survey of a deep box takes its time
        with surveyed(models[0], scene), surveyed(models[1], scene):
            same_views(*(render_view(model, scene, camera) for model in models))
    points = np.random.default_rng(0).uniform(-0.9, 0.9, (1000, 3)).astype(np.float32)
    ours, theirs = (model.density_array(points) for model in models)
    np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(('scene', 'field'), KINDS)
def test_captured_steps_are_the_eager_ones(twins, scene, field):
    captured, eager = (twins(scene, field)[1] for _ in range(2))
    for step in range(1, 17):  # three eager ones, a capture and replays; after eight the grid changes
        eager.update = eager._update
        torch.testing.assert_close(captured.step(step), eager.step(step), rtol=1e-3, atol=1e-4)
        lines = [trainer.after_step(step) for trainer in (captured, eager)]
        assert lines[0] == lines[1]
        if captured.model.captured:
            assert (captured.update.graph is None) == (captured.update.calls <= 3)
    assert ('grid' in field and captured.model.captured) == bool(lines[0])
    for a, b in zip(captured.model.parameters(), eager.model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=2e-3)


def test_a_captured_step_of_the_grid_does_not_wait(twins):
    trainer = twins('blender', 'grid')[1]
    for step in range(1, 5):
        trainer.step(step)
    torch.cuda.set_sync_debug_mode('error')
    try:
        for step in range(5, 8):
            trainer.step(step)
            assert trainer.after_step(step) == []
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('field', ['two networks', 'grid'])
def test_the_colours_of_a_mesh_are_those_of_the_cpu(twins, field):
    models = [trainer.model for trainer in twins('blender', field)]
    vertices = np.float32([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5], [1, 1, 1]])  # the last one has no face
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    ours, theirs = (coloured_mesh(model, vertices, faces, 0.1).visual.vertex_colors for model in models)
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 2


@pytest.mark.parametrize('field', ['gains', 'occupancy', 'grid'])
@pytest.mark.parametrize('way', [1, -1])
def test_a_run_goes_on_on_the_other_device(twins, tmp_path, field, way):
    trainers = twins('blender', field)[::way]
    for step in range(1, 5):
        trainers[0].step(step)
        trainers[0].after_step(step)
    save_checkpoint(tmp_path / '000004.tar', trainers[0].checkpoint(4))
    checkpoint, second = read_checkpoint(tmp_path / '000004.tar'), trainers[1]
    second.model.load_weights(checkpoint)
    second = Trainer(second.model, second.batcher, second.lrate, second.lrate_decay, second.optimiser.ema_decay)
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
    assert all(parameter.isfinite().all() for parameter in second.model.parameters())


def test_the_mesh_of_a_run_is_written(scene_dir, tmp_path):
    flags = [*SMALL_RUN, '--datadir', str(scene_dir), '--basedir', str(tmp_path), '--expname', 'run', '--device',
             'cuda', '--precision', 'auto', '--render_factor', '4', '--N_iters', '4']
    assert run_nerf.main(flags) == 0
    assert run_nerf.main([*flags, '--mesh_only', '--mesh_grid_size', '16', '--mesh_threshold', '0.48']) == 0
    assert (tmp_path / 'run' / 'mesh_000004.ply').is_file()
