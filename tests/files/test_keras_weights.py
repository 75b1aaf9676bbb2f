"""nerf/files/keras_weights.py: weights of the original TensorFlow code, read without running their pickles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_checkpoints import keras_arrays, network, save_keras, tiny_trainer
from test_checkpoints import Bomb

from nerf.files import checkpoints
from nerf.runtime.errors import UserError


@pytest.mark.parametrize('more', [[], ['--no_viewdirs']])
@pytest.mark.parametrize('protocol', [2, 3, 4])
def test_keras_weights_load_with_their_fine_sibling(tmp_path, more, protocol):
    pair, keys = [network(1, *more), network(2, *more)], ('network_fn_state_dict', 'network_fine_state_dict')
    for name, state in zip(('model_200000.npy', 'model_fine_200000.npy'), pair):
        save_keras(tmp_path / name, keras_arrays(state), protocol)
    checkpoint = checkpoints.read_checkpoint(tmp_path / 'model_200000.npy')
    assert checkpoint['global_step'] == 200000
    field = tiny_trainer('--seed', '3', *more).field
    field.load_weights(checkpoint)
    for key, state in zip(keys, pair):
        used = {name for name in state if not more or not name.startswith('views')}
        assert set(checkpoint[key]) == used  # a layer without use is the field's own
        for name in used:
            assert torch.equal(checkpoint[key][name], state[name])
            assert torch.equal(field.weights()[key][name], state[name])


def test_keras_weights_of_a_coarse_network_alone_have_no_fine_one(tmp_path):
    save_keras(tmp_path / 'model_000050.npy', keras_arrays(network()))
    assert checkpoints.read_checkpoint(tmp_path / 'model_000050.npy')['network_fine_state_dict'] is None


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    arrays = keras_arrays(network())
    save_keras(tmp_path / 'model_1.npy', [*arrays, Bomb(tmp_path / 'boom')])
    with pytest.raises(UserError, match=r'model_1\.npy cannot be read as Keras weights.*\.open, which is no array'):
        checkpoints.read_checkpoint(tmp_path / 'model_1.npy')
    assert not (tmp_path / 'boom').exists()


@pytest.mark.parametrize('arrays', [[], [np.zeros((3, 4))], [np.zeros((3, 4)), np.zeros((3, 4))] * 4,
                                    [np.zeros((3, 4)), np.zeros(4, int)] * 4,
                                    [np.zeros((3, 1)), np.zeros(1)] * 2, [1.0, 2.0, 3.0, 4.0]])
def test_a_file_that_is_no_list_of_kernels_and_biases_is_an_error(tmp_path, arrays):
    save_keras(tmp_path / 'model_1.npy', arrays)
    with pytest.raises(UserError, match=r'model_1\.npy'):
        checkpoints.read_checkpoint(tmp_path / 'model_1.npy')


@pytest.mark.parametrize('content', [b'', b'text', b'PK\x03\x04 not a zip', b'\x93NUMPY\x01\x00'])
def test_a_broken_file_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / 'model_1.npy').write_bytes(content)
    with pytest.raises(UserError, match=r'model_1\.npy'):
        checkpoints.read_checkpoint(tmp_path / 'model_1.npy')
