"""Whole runs of run_nerf.py with --refine_cameras, on photographs of a made corner whose cameras are disturbed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import assert_same, state_of_run
from corners import cameras_around, picture
from PIL import Image

import run_nerf
from nerf.captures.alignment import moved

pytest.importorskip('numba')

STEPS, DISTURBED = 120, [0.01, -0.01, 0.0, 0.02, 0.02, 0.0]  # radians and units, by turns in both directions


@pytest.fixture
def flags(tmp_path):
    """Makes the flags of a run on the scene; later ones win."""
    true, frames = cameras_around(9, 48, 64, 56.0), []
    signs = torch.tensor([1.0, -1.0] * 4 + [0.0], dtype=torch.float64)[:, None]
    poses = moved(true.poses.double(), signs * torch.tensor(DISTURBED, dtype=torch.float64)).numpy()
    (tmp_path / 'scene').mkdir()
    for i, pose in enumerate(poses):
        shown = (255.0 * picture(true.take([i]))[0]).round().byte().numpy()
        Image.fromarray(shown).save(tmp_path / 'scene' / f'{i}.png')
        frames.append({'file_path': f'{i}.png', 'transform_matrix': [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]})
    (tmp_path / 'scene' / 'transforms.json').write_text(json.dumps({'fl_x': 56.0, 'frames': frames}))

    def make(expname: str, *extra: str) -> list[str]:
        return ['--dataset_type', 'transforms', '--datadir', str(tmp_path / 'scene'), '--basedir', str(tmp_path),
                '--expname', expname, '--device', 'cpu', '--field', 'grid', '--grid_stages', '0:30 0.05:60',
                '--grid_samples', '20000', '--N_iters', str(STEPS), '--N_rand', '2000', '--i_video', '1000', '--i_img',
                '1000', '--no_ndc', '--refine_cameras', 'on', *extra]
    return make


@pytest.mark.slow
def test_a_run_with_refined_cameras_goes_on_bit_for_bit_and_measures_test_views_twice(flags, tmp_path, capsys):
    assert run_nerf.main(flags('whole', '--i_weights', '15')) == 0
    out = capsys.readouterr().out
    assert 'cameras aligned with their photographs' in out
    assert ' dB aligned' in out
    (tmp_path / 'run').mkdir()
    shutil.copy(tmp_path / 'whole' / '000015.tar', tmp_path / 'run')
    assert run_nerf.main(flags('run')) == 0
    ours, whole = (state_of_run(tmp_path / name, STEPS) for name in ('run', 'whole'))
    assert_same(ours, whole)
    mean = json.loads((tmp_path / 'run' / f'testset_{STEPS:06d}' / 'metrics.json').read_text())['mean']
    assert {'psnr', 'psnr_aligned', 'ssim', 'ssim_aligned'} <= set(mean)
    assert mean['psnr_aligned'] > mean['psnr']
    given, refined = (np.array([frame['transform_matrix'] for frame in json.loads(path.read_text())['frames']])
                      for path in (tmp_path / 'scene' / 'transforms.json',
                                   tmp_path / 'run' / 'transforms_refined.json'))
    change = np.abs(refined - given).max((1, 2))
    assert (change[[0, 8]] < 1e-6).all()  # test views
    assert (change[1:8] > 1e-3).sum() >= 4
