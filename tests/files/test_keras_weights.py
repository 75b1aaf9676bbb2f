"""nerf/files/keras_weights.py: weights of the original TensorFlow code, read without running their pickles."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from test_checkpoints import Bomb, model_of, networks

from nerf.files import checkpoints
from nerf.runtime.errors import UserError
from run_nerf_helpers import NeRF


def keras_arrays(network: NeRF) -> list[np.ndarray]:
    """The order in which the original code's Keras model lists its weights; kernels are transposed there."""
    heads = [network.feature_linear, network.views_linears[0], network.rgb_linear, network.alpha_linear] if (
        network.use_viewdirs) else [network.output_linear]
    return [array for layer in [*network.pts_linears, *heads]
            for array in (layer.weight.detach().numpy().T, layer.bias.detach().numpy())]


def save_keras(path: Path, arrays: list[np.ndarray], protocol: int = 3) -> None:
    holder = np.empty(len(arrays), object)
    holder[:] = arrays
    with open(path, 'wb') as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(holder))
        pickle.dump(holder, file, protocol)


@pytest.mark.parametrize('use_viewdirs', [True, False])
@pytest.mark.parametrize('protocol', [2, 3, 4])
def test_keras_weights_load_with_their_fine_sibling(tmp_path, use_viewdirs, protocol):
    pair = networks(use_viewdirs)
    for name, network in zip(('model_200000.npy', 'model_fine_200000.npy'), pair):
        save_keras(tmp_path / name, keras_arrays(network), protocol)
    checkpoint = checkpoints.read_checkpoint(tmp_path / 'model_200000.npy')
    assert checkpoint['global_step'] == 200000
    for key, network in zip(('network_fn_state_dict', 'network_fine_state_dict'), pair):
        used = {name for name in network.state_dict() if use_viewdirs or not name.startswith('views')}
        assert set(checkpoint[key]) == used
        assert all(torch.equal(checkpoint[key][name], network.state_dict()[name]) for name in used)
    others = networks(use_viewdirs)[::-1]  # their unused layer is their own
    model_of(*others).load_weights(checkpoint)
    for network, other in zip(pair, others):
        names = checkpoint['network_fn_state_dict']
        assert all(torch.equal(other.state_dict()[name], network.state_dict()[name]) for name in names)


def test_keras_weights_of_a_coarse_network_alone_have_no_fine_one(tmp_path):
    save_keras(tmp_path / 'model_000050.npy', keras_arrays(networks()[0]))
    assert checkpoints.read_checkpoint(tmp_path / 'model_000050.npy')['network_fine_state_dict'] is None


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    arrays = keras_arrays(networks()[0])
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
