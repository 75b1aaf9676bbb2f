"""The plain program in the benchmarks computes the same as this one, and the benchmarks run."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

import run_nerf
from conftest import trainer_of
from fake_cuda.gpu_tests import pretended_library
from nerf.fields.interface import Target
from nerf.flags import parse_flags
from nerf.rendering import view_rays
from nerf.training import Trainer
from rivals import Plain, Reference
from run_nerf_helpers import Rays, img2mse

BENCHMARKS = Path(__file__).parent
FLAGS = ['--dataset_type', 'blender', '--expname', 'run', '--white_bkgd', '--use_viewdirs', '--netwidth', '32',
         '--netwidth_fine', '32', '--N_samples', '8', '--N_importance', '16', '--testskip', '1', '--precision', 'fp32',
         '--device', 'cpu', '--N_rand', '64']


# A checkout with the functions of nerf-pytorch that the benchmarks call, with the same names and arguments; all rays
# show the colour of the origin.
CHECKOUT = {
    'run_nerf_helpers.py': f"""
import importlib.util
spec = importlib.util.spec_from_file_location('ours', {str(BENCHMARKS.parents[1] / 'run_nerf_helpers.py')!r})
ours = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ours)
NeRF = ours.NeRF
""",
    'run_nerf.py': """
import os
import cv2
import torch
from run_nerf_helpers import *

device = 'unset'

def create_nerf(args):
    assert os.listdir(os.path.join(args.basedir, args.expname)) == []
    nets = [NeRF(args.netdepth, args.netwidth, 63, 27, 5, [4], args.use_viewdirs).to(device) for _ in range(2)]
    weights = [weight for net in nets for weight in net.parameters()]
    test = {'network_fn': nets[0], 'network_fine': nets[1], 'perturb': False, 'use_viewdirs': args.use_viewdirs}
    return test | {'perturb': args.perturb}, test, 0, weights, torch.optim.Adam(params=weights, lr=args.lrate)

def render(H, W, K, chunk=1024 * 32, rays=None, c2w=None, ndc=True, near=0., far=1., use_viewdirs=False, **kwargs):
    assert (ndc, near, far, use_viewdirs) == (False, 2.0, 6.0, True)
    coarse, fine = (net(torch.zeros(len(rays[0]), 90))[:, :3].sigmoid() + kwargs['perturb']
                    for net in (kwargs['network_fn'], kwargs['network_fine']))
    return [fine, None, None, {'rgb0': coarse}]
"""}


@pytest.fixture
def both(tiny_scene, tmp_path) -> tuple[Plain, Trainer, Rays]:
    """The plain program, a trainer of this one with the same weights, and the rays of a view."""
    flags = [*FLAGS, '--datadir', str(tiny_scene(tmp_path / 'scene')), '--perturb', '0']
    trainer = trainer_of(flags)
    networks, scene = trainer.field.networks(), trainer.batcher.scene
    for network in networks.values():
        network.reset_parameters(torch.Generator().manual_seed(1))
        network.lift_density(0.5)  # fog, which shows something
    plain = Plain(networks['coarse'], networks['fine'], parse_flags(flags), scene.space.near, scene.space.far)
    return plain, trainer, view_rays(trainer.field.sampler(), scene.space, scene.cameras.take([0]))


def test_both_show_the_same_colours(both):
    plain, trainer, rays = both
    with torch.no_grad():
        theirs = plain.render(rays.origins, rays.directions, rays.viewdirs, False)
        ours = trainer.field.sampler().render(rays)
    for a, b in zip(theirs, (ours.coarse, ours.final), strict=True):
        assert b.rgb.std() > 0.01
        torch.testing.assert_close(a, b.rgb, rtol=0, atol=1e-4)


def test_both_have_the_same_gradient(both):
    plain, trainer, rays = both
    target = torch.rand(len(rays.near), 3, generator=torch.Generator().manual_seed(0))
    numbers = trainer.training.random_numbers(len(target), trainer.batcher.generator)
    ours = trainer.training.losses(rays, numbers, Target(target)).terms.values()
    theirs = [img2mse(rgb, target) for rgb in plain.render(rays.origins, rays.directions, rays.viewdirs, False)]
    theirs, ours = (torch.cat([part.flatten() for part in torch.autograd.grad(sum(losses), trainer.field.parameters())])
                    for losses in (theirs, ours))
    assert (theirs - ours).norm() <= 1e-3 * theirs.norm()


@pytest.mark.slow
def test_the_plain_program_learns(both):
    plain, _, rays = both
    rays = rays.part(slice(0, 64))
    args = Namespace(origins=rays.origins, directions=rays.directions, dirs=rays.viewdirs,
                     target=torch.full((64, 3), 0.25))

    def error() -> float:
        with torch.no_grad():
            return float(img2mse(plain.render(args.origins, args.directions, args.dirs, False)[1], args.target))
    before = error()
    torch.manual_seed(0)
    for _ in range(60):
        plain.step(**vars(args))
    assert error() < 0.5 * before


def test_a_checkout_works_on_our_weights_and_rays(both, tmp_path, monkeypatch):
    plain, _, rays = both
    args = Namespace(**vars(plain.args) | {'perturb': 0.5})
    for name, text in CHECKOUT.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setenv('REFERENCE', str(tmp_path))
    theirs = Reference(plain.coarse, plain.fine, args, plain.near, plain.far)
    with torch.no_grad():
        expected = [net(torch.zeros(1, 90))[0, :3].sigmoid() for net in (plain.coarse, plain.fine)]
    ray = (rays.origins, rays.directions, rays.viewdirs)
    for shown, colour, trained in zip(theirs.render(*ray, False), expected, theirs.render(*ray, True)):
        assert shown.shape == (len(rays.near), 3)
        torch.testing.assert_close(shown[7], colour)
        torch.testing.assert_close(trained[7], colour + 0.5)
    theirs.step(*ray, torch.zeros(len(rays.near), 3))
    assert (theirs.render(*ray, False)[1][7] < expected[1]).all()
    assert sys.modules['run_nerf'] is run_nerf
    assert 'cv2' not in sys.modules or hasattr(sys.modules['cv2'], 'imread')  # the stand-in is gone
    assert importlib.import_module('run_nerf_helpers').__file__ == str(BENCHMARKS.parents[1] / 'run_nerf_helpers.py')


@pytest.mark.slow
def test_a_benchmark_prints_a_line_for_each_setting(tiny_scene, tmp_path):
    flags = [*FLAGS[:2], '--datadir', str(tiny_scene(tmp_path / 'scene')), '--N_rand', '32', *FLAGS[6:14]]
    answer = subprocess.run([sys.executable, str(BENCHMARKS / 'bench_train.py'), '--turns', '1', '--after', '0',
                             '--settings', 'fp32', 'plain', *flags], capture_output=True, text=True, check=True)
    ours, plain = map(json.loads, answer.stdout.splitlines())
    assert (ours['setting'], plain['setting'], plain['times_plain']) == ('fp32', 'plain', 1.0)
    assert min(ours['rays_per_s'], ours['peak_mb'], ours['product_gflops'], ours['times_plain']) > 0


@pytest.mark.slow
def test_what_is_measured_on_a_gpu_runs_on_a_pretended_one(tmp_path):
    try:
        pretended_library()
    except NotImplementedError as reason:
        pytest.skip(str(reason))
    command = [sys.executable, BENCHMARKS / 'on_gpu.py', '--pretend', '--parts', 'ceilings', 'training', 'several',
               '--out', tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / 'on_gpu.json').read_text())
    assert [(row['precision'], row['captured']) for row in found['training'][:-1]] == [
        (precision, captured) for precision in ('bf16', 'fp16', 'fp32') for captured in (True, False)]
    assert 'these figures mean nothing' in (tmp_path / 'on_gpu.md').read_text()
