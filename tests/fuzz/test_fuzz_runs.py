"""Runs that start from a checkpoint with hostile values: they go on, or end in one line."""

from __future__ import annotations

import math

import pytest
import torch
from hostile import PLACES, PLAIN_CHANGES, PLAIN_VALUES, fuzzed
from hypothesis import example, given
from hypothesis import strategies as st
from resuming import Run, short_run, start, start_with_other_values

pytestmark = pytest.mark.fuzz
FLAGS = ['--dataset_type', 'blender', '--white_bkgd', '--use_viewdirs', '--netdepth', '2', '--netwidth', '4',
         '--netdepth_fine', '2', '--netwidth_fine', '4', '--multires', '1', '--multires_views', '1', '--N_samples', '4',
         '--N_importance', '2', '--N_rand', '8', '--device', 'cpu', '--precision', 'fp32', '--ema_decay', '0.9']


@pytest.fixture(scope='module')
def run(tiny_scene, tmp_path_factory) -> Run:
    """A run with averaged weights."""
    folder = tmp_path_factory.mktemp('run')
    scene = tiny_scene(folder / 'scene', counts=(2, 1, 1))
    run = short_run([*FLAGS, '--datadir', str(scene)], folder / 'logs' / 'run')
    assert 'averaged' in torch.load(run.path, weights_only=True)
    return run


@fuzzed
@given(changes=PLAIN_CHANGES, part=st.sampled_from(['all', 'run_state', 'batcher', 'guard', 'optimizer_state_dict',
                                                    'averaged']))
def test_resuming_with_other_values(run, changes, part):
    start_with_other_values(run, changes, part)


@fuzzed
@given(part=st.sampled_from(['run_state', 'batcher', 'guard', 'optimizer_state_dict', 'scene', 'scaler', 'flags',
                             'viewed', 'global_step', 'averaged']), value=PLAIN_VALUES)
@example(part='global_step', value=-1)
@example(part='global_step', value=10 ** 400)
@example(part='averaged', value={'network_fn_state_dict': {'': torch.zeros(2)}})
def test_resuming_with_a_part_replaced(run, part, value):
    content = torch.load(run.path, weights_only=True)
    (content if part in content else content['run_state'])[part] = value
    start(run, content)


@fuzzed
@given(network=st.sampled_from(['network_fn_state_dict', 'network_fine_state_dict']), place=PLACES, value=PLAIN_VALUES)
@example(network='network_fine_state_dict', place=0, value=torch.full((4, 9), math.nan))
@example(network='network_fine_state_dict', place=0, value=torch.full((4, 9), 1e300, dtype=torch.float64))
def test_averaged_weights_of_anything(run, network, place, value):
    content = torch.load(run.path, weights_only=True)
    weights = content['averaged'][network]
    weights[sorted(weights)[place % len(weights)]] = value
    start(run, content)
