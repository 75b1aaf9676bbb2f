"""Runs of a grid that start from a checkpoint or slim weights with hostile values: they go on, or end in one line."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import pytest
import torch
from conftest import trainer_of
from hostile import (
    EDITS, ODD_NUMBERS, PLACES, PLAIN_VALUES, REMOVED, WHOLE_NUMBERS, as_tar, assert_refused, edited, fuzzed, replaced,
)
from hypothesis import example, given
from hypothesis import strategies as st
from resuming import Run, restore, resume, short_run, start, start_with_other_values

from nerf.files.packing import packed
from nerf.train_log import peak_memory

pytestmark = [pytest.mark.fuzz, pytest.mark.slow]
FLAGS = ['--dataset_type', 'blender', '--device', 'cpu', '--precision', 'fp32', '--field', 'grid', '--N_rand', '20',
         '--i_video', '1000', '--i_testset', '1000']

NONSENSE = PLAIN_VALUES | st.lists(WHOLE_NUMBERS, min_size=3, max_size=3) | st.builds(
    lambda shape, value, dtype: torch.full(shape, value, dtype=torch.float64).to(dtype),
    st.sampled_from([(3,), (125, 16), (64, 16), (64,)]), ODD_NUMBERS, st.sampled_from([torch.float32, torch.float64])
    ) | st.builds(torch.full, st.sampled_from([(8,), (15,), (16,)]), st.integers(0, 255), dtype=st.just(torch.uint8))
PACKED = st.builds(
    lambda shape, value, dtype: packed(torch.full(shape, value, dtype=torch.float64).to(dtype)),
    st.sampled_from([(125, 16), (64, 16), (125,), (16,), (0, 16)]), ODD_NUMBERS,
    st.sampled_from([torch.float32, torch.float16, torch.uint8, torch.bool]))


@pytest.fixture(scope='module')
def grid_run(tiny_scene, tmp_path_factory) -> Run:
    """A run of a small grid."""
    folder = tmp_path_factory.mktemp('grid_run')
    scene = tiny_scene(folder / 'scene', counts=(2, 1, 1))
    return short_run([*FLAGS, '--datadir', str(scene)], folder / 'logs' / 'run')


def slim_of(run: Run) -> Path:
    """Path of the run's slim weights."""
    return run.path.parents[1] / 'slim' / '000003_slim.tar'


@fuzzed
@given(changes=st.lists(st.tuples(PLACES, NONSENSE | st.just(REMOVED)), min_size=1, max_size=3),
       part=st.sampled_from(['grid_state_dict', 'grid']))
def test_a_grid_with_other_values(grid_run, changes, part):
    start_with_other_values(grid_run, changes, part)


@fuzzed
@given(name=st.sampled_from(['means', 'squares', 'strongest', 'touched', 'adam_steps', 'n_rays']),
       value=NONSENSE | PACKED)
@example(name='means', value=torch.zeros(16))
@example(name='touched', value=packed(torch.full((125,), 3, dtype=torch.uint8)))
@example(name='touched', value=torch.full((125,), math.nan))
def test_running_means_of_a_grid_of_anything(grid_run, name, value):
    content = torch.load(grid_run.path, weights_only=True)
    content['run_state']['grid'][name] = value
    with replaced(grid_run.path, as_tar(content)):
        resume(grid_run)


@fuzzed
@given(edits=EDITS)
@example(edits=[('cut', 2000, b'0')])
def test_edited_slim_weights(grid_run, edits):
    slim = slim_of(grid_run)
    with replaced(slim, edited(slim.read_bytes(), edits)):
        restore(grid_run, slim.parent)


@fuzzed
@given(name=st.sampled_from(['rows', 'cells', 'shape', 'low', 'voxel', 'stage', 'network', 'high of rows',
                             'low of rows', 'high of cells', 'low of cells', 'all']), value=NONSENSE | PACKED)
@example(name='rows', value=packed(torch.full((125, 16), math.nan).half()))
@example(name='rows', value=torch.full((125, 16), math.inf).half())
@example(name='rows', value=torch.full((125, 16), 1.0).bfloat16())
@example(name='high of rows', value=torch.frombuffer(bytearray(zlib.compress(bytes(10 ** 8))), dtype=torch.uint8))
@example(name='high of cells', value=torch.frombuffer(bytearray(zlib.compress(bytes(10 ** 8))), dtype=torch.uint8))
@example(name='shape', value=[2 ** 11, 2 ** 11, 2 ** 11])
@example(name='voxel', value=1e30)
@example(name='all', value=None)
def test_an_entry_of_slim_weights_of_anything(grid_run, name, value):
    slim = slim_of(grid_run)
    content = torch.load(slim, weights_only=True)
    part, _, whole = name.partition(' of ')
    if name == 'all':
        content['grid_state_dict'] = value
    else:
        (content['grid_state_dict'][whole] if whole else content['grid_state_dict'])[part] = value
    with replaced(slim, as_tar(content)):
        restore(grid_run, slim.parent)


def test_slim_weights_of_a_huge_grid_in_a_small_file_are_refused_before_they_take_memory(grid_run):
    content = torch.load(slim_of(grid_run), weights_only=True)
    cells = packed(torch.full((600 ** 3 // 8,), 255, dtype=torch.uint8))
    content['grid_state_dict'] |= {'shape': [600] * 3, 'cells': cells}
    field = trainer_of(grid_run.flags, grid_run.scene).field
    before = peak_memory(torch.device('cpu'))
    assert_refused(grid_run.path.parent, lambda: field.load_weights(content), 'cells but')
    assert peak_memory(torch.device('cpu')) < before + 600  # in MB: the masks, and no row numbers


@fuzzed
@given(name=st.sampled_from(['rows', 'cells', 'shape', 'low', 'voxel', 'stage', 'network']), value=NONSENSE | PACKED)
@example(name='voxel', value=1e-7)
@example(name='voxel', value=3e-5)
@example(name='voxel', value=1e30)
@example(name='low', value=torch.full((3,), 1e30))
@example(name='low', value=torch.tensor([-1e6, -2.0, -2.0]))
@example(name='low', value=torch.full((3,), math.nan))
@example(name='cells', value=torch.zeros(16, dtype=torch.uint8))
@example(name='shape', value=[2 ** 32, 2 ** 32, 2])
@example(name='shape', value=[2, 2, 32])
@example(name='rows', value=torch.full((125, 16), math.nan))
@example(name='rows', value=torch.full((125, 16), math.inf))
@example(name='rows', value=torch.full((125, 16), 3e38))
@example(name='network', value={'0.weight': torch.zeros(2), 'x' * 3000: 1})
def test_an_entry_of_a_grid_of_anything(grid_run, name, value):
    content = torch.load(grid_run.path, weights_only=True)
    content['grid_state_dict'][name] = value
    start(grid_run, content)
