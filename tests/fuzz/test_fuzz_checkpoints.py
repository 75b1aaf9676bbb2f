"""Checkpoints and Keras weights with hostile content: they are loaded and can be used, or refused in one line."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hostile import (
    EDITS, PLAIN_CHANGES, as_tar, assert_refused, changed, edited, fuzzed, read_or_refused, replaced,
)
from hypothesis import given
from hypothesis import strategies as st
from small_checkpoints import keras_arrays, network, save_keras, saved, tiny_trainer

from nerf.files import checkpoints
from nerf.resume import broken

pytestmark = pytest.mark.fuzz


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Path of a checkpoint with averaged weights."""
    path = tmp_path_factory.mktemp('checkpoint') / '000123.tar'
    saved(path, '--ema_decay', '0.9')
    return path


def use(path: Path) -> None:
    """Does with a checkpoint all that a run's start does, without a scene, and a training step."""
    def job():
        content = checkpoints.read_checkpoint(path)
        trainer = tiny_trainer('--ema_decay', '0.9')
        trainer.field.load_weights(content)
        if path.suffix == '.tar':
            with broken('optimiser does not fit the flags'):
                trainer.optimiser.load_state_dict(content['optimizer_state_dict'])
            trainer.optimiser.load_average(content)
        return trainer
    if trainer := read_or_refused(path.parent, job):
        trainer.step(1)
        for field in (trainer.field, trainer.optimiser.averaged_field()):
            field.radiance(torch.zeros(2, 3, 3), torch.ones(2, 3))


@fuzzed
@given(edits=EDITS)
def test_an_edited_checkpoint(checkpoint, edits):
    with replaced(checkpoint, edited(checkpoint.read_bytes(), edits)):
        use(checkpoint)


@fuzzed
@given(edits=EDITS)
def test_an_edited_pickle_in_a_checkpoint(checkpoint, edits):
    """The edits are in the pickle alone; the zip file around it is whole."""
    file = io.BytesIO()
    with zipfile.ZipFile(checkpoint) as before, zipfile.ZipFile(file, 'w') as after:
        for name in before.namelist():
            content = before.read(name)
            after.writestr(name, edited(content, edits) if name.endswith('data.pkl') else content)
    with replaced(checkpoint, file.getvalue()):
        use(checkpoint)


@fuzzed
@given(changes=PLAIN_CHANGES)
def test_a_checkpoint_with_other_values(checkpoint, changes):
    content = torch.load(checkpoint, weights_only=True)
    with replaced(checkpoint, as_tar(changed(content, changes))):
        use(checkpoint)


@fuzzed
@given(changes=PLAIN_CHANGES)
def test_an_optimiser_with_other_values(checkpoint, changes):
    content = torch.load(checkpoint, weights_only=True)
    content['optimizer_state_dict'] = changed(content['optimizer_state_dict'], changes)
    with replaced(checkpoint, as_tar(content)):
        use(checkpoint)


@pytest.fixture(scope='module')
def keras(tmp_path_factory):
    folder = tmp_path_factory.mktemp('keras')
    for seed, name in enumerate(('model_000050.npy', 'model_fine_000050.npy')):
        save_keras(folder / name, keras_arrays(network(seed)))
    return folder / 'model_000050.npy'


@fuzzed
@given(edits=EDITS, fine=st.booleans())
def test_edited_keras_weights(keras, edits, fine):
    path = keras.with_name('model_fine_000050.npy') if fine else keras
    with replaced(path, edited(path.read_bytes(), edits)):
        use(keras)


# Files made to do harm; test_checkpoints.py and test_keras_weights.py have those that would run code


def test_keras_weights_that_claim_a_huge_memo_are_refused(tmp_path):
    """An object's memo index for which the unpickler in C would allocate 64 GiB."""
    save_keras(path := tmp_path / 'model_1.npy', [])
    data = path.read_bytes()
    path.write_bytes(data[:data.index(b'\n') + 1] + b'\x80\x02Nr' + struct.pack('<I', 2 ** 31) + b'.')
    assert_refused(tmp_path, lambda: checkpoints.read_checkpoint(path), f'{path} cannot be read as Keras weights')


def test_keras_weights_of_a_made_up_dtype_are_refused(tmp_path):
    save_keras(path := tmp_path / 'model_1.npy', keras_arrays(network()))
    whole = path.read_bytes()
    for old, new in ((b'f4', b'V4'), (b'f4', b'O8'), (b'f4', b'f9'), (b'<', b'x')):
        at = whole.index(b'\n') + 1
        assert old in whole[at:]
        path.write_bytes(whole[:at] + whole[at:].replace(old, new))
        assert_refused(tmp_path, lambda: checkpoints.read_checkpoint(path), str(path))


@pytest.mark.parametrize('shape', [(1,), (0,), (8, 9, 1), (9, 8), (1000, 1000)])
@pytest.mark.parametrize('name', ['exp_avg', 'exp_avg_sq'])
def test_running_means_of_another_shape_are_refused(checkpoint, name, shape):
    """Fused Adam would write past their end."""
    content = torch.load(checkpoint, weights_only=True)
    content['optimizer_state_dict']['state'][0][name] = torch.zeros(shape)
    optimiser = tiny_trainer().optimiser

    def load():
        with broken('optimiser does not fit the flags'):
            optimiser.load_state_dict(content['optimizer_state_dict'])
    assert_refused(checkpoint.parent, load, 'does not fit the flags', 'parameter 0 is not of shape (8, 9)')
