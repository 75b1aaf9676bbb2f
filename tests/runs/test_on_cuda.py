"""Code for CUDA does there what it does on a CPU: training steps, pictures, meshes and checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import SMALL_RUN, assert_same, trainer_of

import run_nerf
from nerf.files.checkpoints import read_checkpoint, save_checkpoint
from nerf.rendering import View, render_view
from nerf.training import Trainer

pytestmark = pytest.mark.gpu
SCENES = {  # flags of a run on it
    'blender': ['--dataset_type', 'blender', '--white_bkgd', '--testskip', '1'],
    'black': ['--dataset_type', 'blender', '--testskip', '1', '--no_batching'],
    'ndc': ['--dataset_type', 'llff', '--factor', '2', '--llffhold', '3'],
    'lens': ['--dataset_type', 'transforms', '--llffhold', '3', '--field', 'mlp'],
    'fisheye': ['--dataset_type', 'transforms', '--llffhold', '3', '--field', 'mlp'],
}
FIELDS = {
    'two networks': ['--use_viewdirs'],
    'one network': ['--N_importance', '0', '--raw_noise_std', '1'],
    'gains': ['--use_viewdirs', '--exposure', 'on', '--ema_decay', '0.9'],
}
KINDS = [(scene, 'two networks') for scene in SCENES] + [
    ('blender', 'one network'), ('blender', 'gains'), ('lens', 'one network')]
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
    """Makes one trainer on the CPU and the same one on CUDA."""
    def make(scene: str, field: str, captured: bool = False) -> list[Trainer]:
        flags = [*SCENES[scene], *COMMON, *FIELDS[field], '--datadir', str(folders[scene])]
        return [trainer_of([*flags, '--device', device], captured=captured) for device in ('cpu', 'cuda')]
    return make


def same_steps(trainers: list[Trainer], steps: range) -> None:
    """Steps of both with the CPU's pixels and random numbers, whose losses and notes must be the same."""
    first = trainers[0]
    for step in steps:
        n_rays = first.training.rays_per_step(first.batcher.n_rays)
        drawn = [*first.batcher.pixels(step, n_rays), *first.training.random_numbers(n_rays, first.batcher.generator)]
        results = []
        for trainer in trainers:
            trainer.optimiser.prepare(step, trainer.learning_rate(step))
            device = trainer.field.device
            results.append(trainer.update(*(None if part is None else part.to(device) for part in drawn)))
        torch.testing.assert_close(*({name: part.cpu() for name, part in each.items()} for each in results), rtol=1e-3,
                                   atol=1e-5)


def same_views(ours: View, theirs: View) -> None:
    for a, b in ((ours.rgb, theirs.rgb), (ours.acc, theirs.acc)):
        assert np.abs(a - b).max() < 0.02


@pytest.mark.parametrize(('scene', 'field'), KINDS)
def test_steps_views_and_densities_are_those_of_the_cpu(twins, scene, field):
    trainers = twins(scene, field)
    same_steps(trainers, range(1, 10))
    fields, scene = [trainer.optimiser.averaged_field() for trainer in trainers], trainers[0].batcher.scene
    for a, b in zip(*(each.parameters() for each in fields)):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-2, atol=2e-3)
    camera = scene.cameras.take([0])
    same_views(*(render_view(each.sampler(), scene.space, camera) for each in fields))
    if not scene.space.projective:  # a survey of a deep box takes its time
        same_views(*(render_view(each.guided(scene.seen_box()), scene.space, camera) for each in fields))
    points = np.random.default_rng(0).uniform(-0.9, 0.9, (1000, 3)).astype(np.float32)
    ours, theirs = (each.density_array(points) for each in fields)
    np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(('scene', 'field'), KINDS)
def test_captured_steps_are_the_eager_ones(twins, scene, field):
    captured, eager = twins(scene, field, captured=True)[1], twins(scene, field)[1]
    for step in range(1, 9):  # three eager ones, a capture and replays
        losses = [trainer.step(step) for trainer in (captured, eager)]
        torch.testing.assert_close(*(each.terms for each in losses), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(*(each.notes for each in losses), rtol=1e-3, atol=1e-3)
        assert [trainer.after_step(step, each) for trainer, each in zip((captured, eager), losses)] == [[], []]
        assert (captured.update.graph is None) == (captured.update.calls <= 3)
    for a, b in zip(captured.field.parameters(), eager.field.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize('way', [1, -1])
def test_a_run_goes_on_on_the_other_device(twins, tmp_path, way):
    trainers = twins('blender', 'gains')[::way]
    for step in range(1, 5):
        trainers[0].after_step(step, trainers[0].step(step))
    save_checkpoint(tmp_path / '000004.tar', trainers[0].checkpoint(4))
    checkpoint, second = read_checkpoint(tmp_path / '000004.tar'), trainers[1]
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
