"""Edits to run_nerf_helpers.py change the program: a run of an edited copy of the code, against one as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import ROOT, SMALL_RUN
from PIL import Image

pytestmark = pytest.mark.slow
QUIET = ['--i_video', '1000', '--i_img', '1000', '--i_weights', '1000', '--raw_noise_std', '0.5']
# Edited code goes on from trained weights, and hardly changes them: pictures differ where the edit acts on them.
FLAGS = [*SMALL_RUN, *QUIET, '--N_iters', '2', '--lrate', '1e-9', '--i_print', '1', '--i_testset', '2']
TRAINING = [*SMALL_RUN, *QUIET, '--N_iters', '200', '--i_print', '100', '--i_testset', '1000']


class Edit(NamedTuple):
    """An edit, and what a run of the edited code is like."""

    old: str  # text that occurs once in run_nerf_helpers.py
    new: str
    says: str  # part of the one line that the run prints about the edit; '': there is none
    in_pictures: bool = True  # pictures change too


EDITS = {
    'raw2density': Edit('return raw.relu()', 'return torch.nn.functional.softplus(raw)', 'raw2outputs was edited'),
    'raw2outputs': Edit('raw2density(density), z_vals', 'torch.nn.functional.softplus(density), z_vals',
                        'raw2outputs was edited'),
    'colours of raw2outputs': Edit('return composite(raw2colour(rgb),',
                                   'return composite(0.5 * raw2colour(rgb),', ''),
    'noise of raw2outputs': Edit('torch.randn(density.shape, generator=generator, device=raw.device) if',
                                 'torch.rand(density.shape, generator=generator, device=raw.device) if',
                                 'the random branch of raw2outputs was edited', in_pictures=False),
    'sample_pdf': Edit('weights = weights + 1e-5', 'weights = weights.flip(-1) + 1e-5', ''),
    'u of sample_pdf': Edit('u = torch.rand(shape, generator=generator, device=bins.device)',
                            'u = 0.1 * torch.rand(shape, generator=generator, device=bins.device)',
                            'the random branch of sample_pdf was edited', in_pictures=False),
    'pixel_rays': Edit('x = (columns - K[..., 0, 2])', 'x = (columns + 5.0 - K[..., 0, 2])', ''),
    'get_rays': Edit('return pixel_rays(rows, columns, K, c2w)', 'return pixel_rays(rows, columns + 5, K, c2w)',
                     'get_rays or get_rays_np was edited'),
    'get_rays_np': Edit('return origins.numpy(), directions.numpy()',
                        'return origins.numpy() + 0.5, directions.numpy()',
                        'get_rays or get_rays_np was edited', in_pictures=False),
    'render_rays': Edit('z_all = torch.cat([z, z_fine], -1)', 'z_all = torch.cat([z, z], -1)', ''),
    'NeRF.forward': Edit('density = self.alpha_linear(h)', 'density = 3.0 * self.alpha_linear(h)',
                         'NeRF.forward or raw2outputs was edited'),
}


class Result(NamedTuple):
    """What a run printed, its loss at each step, and its test views."""

    said: str
    losses: list[float]
    pictures: np.ndarray


def run(folder: Path, scene: Path, flags: list[str], edit: Edit | None = None) -> str:
    """What a run of a copy of the code in a folder prints."""
    text = (ROOT / 'run_nerf_helpers.py').read_text(encoding='utf-8')
    if edit:
        assert text.count(edit.old) == 1
        text = text.replace(edit.old, edit.new)
    for path in ROOT.glob('*.py'):
        (folder / path.name).write_text(path.read_text(encoding='utf-8'), encoding='utf-8')
    (folder / 'run_nerf_helpers.py').write_text(text, encoding='utf-8')
    (folder / 'nerf').symlink_to(ROOT / 'nerf')
    done = subprocess.run([sys.executable, 'run_nerf.py', *flags, '--datadir', scene, '--basedir', 'logs', '--expname',
                           'run'], cwd=folder, capture_output=True, text=True,
                          env=os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONDONTWRITEBYTECODE': '1'}, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def result_of(folder: Path, scene: Path, weights: Path, edit: Edit | None = None) -> Result:
    """The result of a run from trained weights."""
    said, written = run(folder, scene, [*FLAGS, '--ft_path', str(weights)], edit), folder / 'logs' / 'run'
    lines = (written / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
    pictures = [np.asarray(Image.open(path)) for path in sorted((written / 'testset_000002').glob('*.png'))]
    return Result(said, [json.loads(line)['loss'] for line in lines], np.stack(pictures).astype(int))


@pytest.fixture(scope='module')
def weights(tmp_path_factory, scene_dir) -> Path:
    """A checkpoint of the code as shipped."""
    folder = tmp_path_factory.mktemp('trained')
    run(folder, scene_dir, TRAINING)
    return folder / 'logs' / 'run' / '000200.tar'


@pytest.fixture(scope='module')
def as_shipped(tmp_path_factory, scene_dir, weights) -> Result:
    return result_of(tmp_path_factory.mktemp('shipped'), scene_dir, weights)


def test_code_as_shipped_says_nothing_of_edits(as_shipped):
    assert 'edited' not in as_shipped.said
    assert len(as_shipped.losses) == 2


@pytest.mark.parametrize('edit', EDITS.values(), ids=EDITS)
def test_an_edit_changes_training_and_pictures(edit, as_shipped, weights, tmp_path, scene_dir):
    result = result_of(tmp_path, scene_dir, weights, edit)
    assert abs(result.losses[0] / as_shipped.losses[0] - 1.0) > 1e-4  # of the first step, with the same weights
    change = np.abs(result.pictures - as_shipped.pictures).max()
    assert change > 1 if edit.in_pictures else change <= 1
    said = [line for line in result.said.splitlines() if 'edited' in line]
    if edit.says:
        (line,) = said
        assert edit.says in line
    else:
        assert said == []
