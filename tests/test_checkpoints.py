"""Checkpoints: whole or absent, in the reference code's format, and unable to run code."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nerf.files import checkpoints
from nerf.runtime.errors import UserError
from run_nerf_helpers import NeRF

SHAPE = {'D': 6, 'W': 8, 'input_ch': 9, 'input_ch_views': 9, 'skips': [4]}


def networks(use_viewdirs: bool = True) -> tuple[NeRF, NeRF]:
    shape = SHAPE if use_viewdirs else SHAPE | {'input_ch_views': 0, 'output_ch': 5}
    return tuple(NeRF(**shape, use_viewdirs=use_viewdirs, generator=torch.Generator().manual_seed(seed))
                 for seed in (1, 2))


def saved(path, use_viewdirs: bool = True, fine: bool = True, step: int = 123):
    pair = networks(use_viewdirs)
    parameters = [p for network in pair[:1 + fine] for p in network.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    sum((p ** 2).sum() for p in parameters).backward()
    optimizer.step()
    checkpoints.save_checkpoint(path, step, pair[0], pair[1] if fine else None, optimizer, {'anything': 1})
    return pair, optimizer


def same(a: NeRF, b: NeRF) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


# Writing


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / 'new' / 'file.txt'
    with checkpoints.whole_file(path) as partial:
        partial.write_text('one')
        assert not path.exists()
        assert partial.suffix == '.txt'
    assert path.read_text() == 'one'

    def crash():
        with checkpoints.whole_file(path) as partial:
            partial.write_text('tw')
            raise RuntimeError('crash')
    with pytest.raises(RuntimeError):
        crash()
    assert path.read_text() == 'one'
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_a_users_error(tmp_path):
    (tmp_path / 'occupied').write_text('a file where a folder is needed')
    with pytest.raises(UserError, match='cannot be written'), checkpoints.whole_file(tmp_path / 'occupied' / 'x.txt'):
        pass


def test_a_disk_that_fills_up_is_a_users_error_and_keeps_the_old_checkpoint(tmp_path):
    """In a process of its own, whose files may not grow past 64 KiB."""
    saved(tmp_path / 'x.tar')
    before = (tmp_path / 'x.tar').read_bytes()
    script = """
import resource, signal, sys, torch
from nerf.files import checkpoints
from nerf.runtime.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
big = torch.nn.Linear(300, 300)
try:
    checkpoints.save_checkpoint(sys.argv[1], 5, big, None, torch.optim.Adam(big.parameters()), {})
except UserError as error:
    print(error)
"""
    pytest.importorskip('resource')
    done = subprocess.run([sys.executable, '-c', script, tmp_path / 'x.tar'], cwd=Path(__file__).parents[1], check=True,
                          capture_output=True, text=True)
    assert 'x.tar, which needs 361,200 bytes, cannot be written (disk full or quota reached' in done.stdout
    assert (tmp_path / 'x.tar').read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / 'x.tar']


def test_the_newest_checkpoint_is_the_one_with_the_most_steps(tmp_path):
    assert checkpoints.read_newest(tmp_path) is None
    for step in (900, 1000, 1000000, 950):
        saved(tmp_path / f'{step:06d}.tar', step=step)
    for name in ('notes.tar', '.partial-2000000.tar'):
        (tmp_path / name).touch()
    path, checkpoint = checkpoints.read_newest(tmp_path)
    assert path.name == '1000000.tar'
    assert checkpoint['global_step'] == 1000000
    assert checkpoints.checkpoint_path(tmp_path, 42).name == '000042.tar'


@pytest.mark.parametrize('spoil', [lambda data: b'', lambda data: data[:len(data) // 2], lambda data: b'x' * 1000,
                                   lambda data: data[:200] + bytes(100) + data[300:]])
def test_a_newest_checkpoint_that_is_broken_is_reported_and_the_one_before_it_taken(tmp_path, capsys, spoil):
    for step in (10, 20, 30):
        saved(tmp_path / f'{step:06d}.tar', step=step)
    for name in ('000020.tar', '000030.tar'):
        (tmp_path / name).write_bytes(spoil((tmp_path / name).read_bytes()))
    assert checkpoints.read_newest(tmp_path)[1]['global_step'] == 10
    warnings = capsys.readouterr().err.splitlines()
    assert [line.startswith(f'warning: {tmp_path / name} cannot be read') for line, name in zip(
        warnings, ('000030.tar', '000020.tar'))] == [True, True]
    (tmp_path / '000010.tar').unlink()
    with pytest.raises(UserError, match=f'{tmp_path}: none of its 2 checkpoints can be read'):
        checkpoints.read_newest(tmp_path)


# The format


def test_a_checkpoint_has_the_keys_and_names_that_the_reference_code_reads(tmp_path):
    (coarse, fine), optimizer = saved(tmp_path / 'x.tar')
    there = torch.load(tmp_path / 'x.tar', weights_only=True)
    assert there['global_step'] == 123
    assert list(there['network_fn_state_dict']) == list(coarse.state_dict())
    assert list(there['network_fine_state_dict']) == list(fine.state_dict())
    # As the reference code has it: one Adam over both networks' parameters, coarse first, in the order of their names.
    groups = there['optimizer_state_dict']['param_groups']
    assert [group['params'] for group in groups] == [list(range(2 * len(coarse.state_dict())))]
    theirs = torch.optim.Adam([*coarse.parameters(), *fine.parameters()], lr=5e-4, betas=(0.9, 0.999))
    theirs.load_state_dict(there['optimizer_state_dict'])
    for name, p in coarse.named_parameters():
        assert torch.equal(theirs.state[p]['exp_avg'], optimizer.state[p]['exp_avg']), name


@pytest.mark.parametrize('use_viewdirs', [True, False])
@pytest.mark.parametrize('fine', [True, False])
def test_networks_and_optimiser_come_back_as_they_were(tmp_path, use_viewdirs, fine):
    pair, optimizer = saved(tmp_path / 'x.tar', use_viewdirs, fine)
    checkpoint = checkpoints.read_checkpoint(tmp_path / 'x.tar')
    assert checkpoint['run_state'] == {'anything': 1}
    others = [NeRF(**(SHAPE if use_viewdirs else SHAPE | {'input_ch_views': 0, 'output_ch': 5}),
                   use_viewdirs=use_viewdirs) for _ in pair]
    checkpoints.load_networks(checkpoint, tmp_path / 'x.tar', others[0], others[1] if fine else None)
    assert same(others[0], pair[0])
    assert same(others[1], pair[1]) == fine
    again = torch.optim.Adam([p for network in others[:1 + fine] for p in network.parameters()])
    checkpoints.load_optimizer(checkpoint, again)
    assert again.state_dict()['param_groups'][0]['lr'] == 1e-3
    assert torch.equal(again.state_dict()['state'][0]['exp_avg'], optimizer.state_dict()['state'][0]['exp_avg'])


def test_the_reference_codes_optimiser_loads(shared):
    path = shared / 'interop' / 'nerf_pytorch_small' / '003000.tar'
    if not path.is_file():
        pytest.skip(f'needs {path}')
    pair = [NeRF(W=64, input_ch=63, input_ch_views=27, use_viewdirs=True) for _ in range(2)]
    checkpoint = checkpoints.read_checkpoint(path)
    checkpoints.load_networks(checkpoint, path, *pair)
    optimizer = torch.optim.Adam([p for network in pair for p in network.parameters()])
    checkpoints.load_optimizer(checkpoint, optimizer)
    assert optimizer.state[pair[1].rgb_linear.bias]['exp_avg'].shape == (3,)


@pytest.mark.parametrize(('change', 'message'), [
    ({'W': 16}, r'pts_linears.0.weight is \(8, 9\) there and \(16, 9\) here'),
    ({'D': 4}, r'pts_linears.4.weight is \(8, 8\) there and absent here'),
    ({'use_viewdirs': False}, r'output_linear.weight is absent there and \(4, 8\) here'),
])
def test_weights_of_another_shape_are_an_error_that_names_the_flags(tmp_path, change, message):
    saved(tmp_path / 'x.tar')
    network = NeRF(**(SHAPE | {'use_viewdirs': True} | change))
    with pytest.raises(UserError, match=f'x.tar does not fit the flags: {message}; check netdepth, netwidth'):
        checkpoints.load_networks(checkpoints.read_checkpoint(tmp_path / 'x.tar'), tmp_path / 'x.tar', network, None)


def test_a_missing_fine_network_is_an_error(tmp_path):
    pair, _ = saved(tmp_path / 'x.tar', fine=False)
    with pytest.raises(UserError, match=r'x\.tar has no network_fine_state_dict; set N_importance = 0'):
        checkpoints.load_networks(checkpoints.read_checkpoint(tmp_path / 'x.tar'), tmp_path / 'x.tar', *pair)


# Keras weights


def keras_arrays(network: NeRF) -> list[np.ndarray]:
    """The order in which the original code's Keras model lists its weights; kernels are transposed there."""
    heads = [network.feature_linear, network.views_linears[0], network.rgb_linear, network.alpha_linear] if (
        network.use_viewdirs) else [network.output_linear]
    return [array for layer in [*network.pts_linears, *heads]
            for array in (layer.weight.detach().numpy().T, layer.bias.detach().numpy())]


def save_keras(path, arrays: list[np.ndarray], protocol: int = 3) -> None:
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
    checkpoints.load_networks(checkpoint, tmp_path, *others)
    for network, other in zip(pair, others):
        names = checkpoint['network_fn_state_dict']
        assert all(torch.equal(other.state_dict()[name], network.state_dict()[name]) for name in names)


def test_keras_weights_of_a_coarse_network_alone_have_no_fine_one(tmp_path):
    save_keras(tmp_path / 'model_000050.npy', keras_arrays(networks()[0]))
    assert checkpoints.read_checkpoint(tmp_path / 'model_000050.npy')['network_fine_state_dict'] is None


# Broken and hostile files


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def test_a_pickle_that_would_run_code_is_refused_in_a_tar(tmp_path):
    torch.save({'global_step': 1, 'network_fn_state_dict': Bomb(tmp_path / 'boom')}, tmp_path / 'x.tar')
    with pytest.raises(UserError, match=r'x\.tar cannot be read as a checkpoint'):
        checkpoints.read_checkpoint(tmp_path / 'x.tar')
    assert not (tmp_path / 'boom').exists()


def test_a_pickle_that_would_run_code_is_refused_in_a_npy(tmp_path):
    arrays = keras_arrays(networks()[0])
    save_keras(tmp_path / 'model_1.npy', [*arrays, Bomb(tmp_path / 'boom')])
    with pytest.raises(UserError, match=r'model_1\.npy cannot be read as Keras weights.*\.open, which is no array'):
        checkpoints.read_checkpoint(tmp_path / 'model_1.npy')
    assert not (tmp_path / 'boom').exists()


@pytest.mark.parametrize('arrays', [[], [np.zeros((3, 4))], [np.zeros((3, 4)), np.zeros((3, 4))] * 4,
                                    [np.zeros((3, 4)), np.zeros(4, int)] * 4,
                                    [np.zeros((3, 1)), np.zeros(1)] * 2, [1.0, 2.0, 3.0, 4.0]])
def test_a_npy_that_is_no_list_of_kernels_and_biases_is_an_error(tmp_path, arrays):
    save_keras(tmp_path / 'model_1.npy', arrays)
    with pytest.raises(UserError, match=r'model_1\.npy'):
        checkpoints.read_checkpoint(tmp_path / 'model_1.npy')


@pytest.mark.parametrize('name', ['x.tar', 'model_1.npy'])
@pytest.mark.parametrize('content', [b'', b'text', b'PK\x03\x04 not a zip', b'\x93NUMPY\x01\x00'])
def test_a_broken_file_is_an_error_that_names_it(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        checkpoints.read_checkpoint(tmp_path / name)


def test_a_truncated_checkpoint_is_an_error(tmp_path):
    saved(tmp_path / 'x.tar')
    whole = (tmp_path / 'x.tar').read_bytes()
    (tmp_path / 'x.tar').write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError, match=r'x\.tar cannot be read as a checkpoint'):
        checkpoints.read_checkpoint(tmp_path / 'x.tar')


@pytest.mark.parametrize('content', [[1, 2], {'global_step': 1}, {'weights': torch.zeros(2)},
                                     {'global_step': '7', 'network_fn_state_dict': {}}])
def test_a_file_that_is_no_checkpoint_is_an_error(tmp_path, content):
    torch.save(content, tmp_path / 'x.tar')
    with pytest.raises(UserError, match='is not a checkpoint of a NeRF'):
        checkpoints.read_checkpoint(tmp_path / 'x.tar')


def test_a_missing_file_is_an_error():
    with pytest.raises(UserError, match=r'no_such\.tar does not exist; check ft_path'):
        checkpoints.read_checkpoint('no_such.tar')
