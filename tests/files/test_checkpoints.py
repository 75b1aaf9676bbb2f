"""nerf/files/checkpoints.py: whole or absent, in the reference code's format, and unable to run code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nerf.fields.paper.mlp import MLPField
from nerf.fields.paper.model import PaperModel
from nerf.files import checkpoints
from nerf.optimiser import Optimiser
from nerf.runtime.errors import UserError
from run_nerf_helpers import NeRF, Sampling, get_embedder

SHAPE = {'D': 6, 'W': 8, 'input_ch': 9, 'input_ch_views': 9, 'skips': [4]}  # one frequency each


def networks(use_viewdirs: bool = True) -> tuple[NeRF, NeRF]:
    shape = SHAPE if use_viewdirs else SHAPE | {'input_ch_views': 0, 'output_ch': 5}
    return tuple(NeRF(**shape, use_viewdirs=use_viewdirs, generator=torch.Generator().manual_seed(seed))
                 for seed in (1, 2))


def model_of(coarse: NeRF, fine: NeRF | None = None) -> PaperModel:
    """The paper's model with these networks."""
    embed = get_embedder(1)[0]
    fields = [network and MLPField(network, embed, embed if coarse.use_viewdirs else None)
              for network in (coarse, fine)]
    return PaperModel(*fields, Sampling(8, 8 if fine else 0), chunk=100)


def trained(use_viewdirs: bool = True, fine: bool = True, ema_decay: float = 0.0) -> tuple[PaperModel, Optimiser]:
    """A model and its optimiser behind a step that changes every weight."""
    coarse, other = networks(use_viewdirs)
    model = model_of(coarse, other if fine else None)
    optimiser = Optimiser(model, ema_decay)
    optimiser.prepare(1, 1e-3)
    optimiser.backward(sum((p ** 2).sum() for p in model.parameters()))
    optimiser.step({name: torch.zeros(()) for name in model.loss_names})
    return model, optimiser


def saved(path: Path, *how, step: int = 123) -> tuple[PaperModel, Optimiser]:
    """Writes a checkpoint of `trained(*how)`."""
    model, optimiser = trained(*how)
    checkpoint = {'global_step': step, **model.weights(), 'optimizer_state_dict': optimiser.state_dict(),
                  'run_state': {'anything': 1}}
    if optimiser.averages:
        checkpoint['averaged'] = optimiser.averaged_model().weights()
    checkpoints.save_checkpoint(path, checkpoint)
    return model, optimiser


def same(a: NeRF, b: NeRF) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


# Writing


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
    checkpoints.save_checkpoint(sys.argv[1], {'global_step': 5, 'network_fn_state_dict': big.state_dict()})
except UserError as error:
    print(error)
"""
    pytest.importorskip('resource')
    done = subprocess.run([sys.executable, '-c', script, tmp_path / 'x.tar'], cwd=Path(__file__).parents[2], check=True,
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


def test_slim_weights_are_read_where_they_are_asked_for_and_are_no_checkpoints(tmp_path):
    for step in (900, 1000):
        saved(checkpoints.slim_path(tmp_path, step), step=step)
    saved(tmp_path / '_slim.tar')
    assert checkpoints.read_newest(tmp_path) is None
    path, content = checkpoints.read_newest(tmp_path, slim=True)
    assert (path.name, content['global_step']) == ('001000_slim.tar', 1000)
    saved(tmp_path / '000800.tar', step=800)
    assert checkpoints.read_newest(tmp_path)[0].name == '000800.tar'
    assert checkpoints.read_newest(tmp_path, slim=True)[0] == path


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
    model, optimiser = saved(tmp_path / 'x.tar')
    coarse, fine = model.networks().values()
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
        assert torch.equal(theirs.state[p]['exp_avg'], optimiser.adam.state[p]['exp_avg']), name


@pytest.mark.parametrize('use_viewdirs', [True, False])
@pytest.mark.parametrize('fine', [True, False])
@pytest.mark.parametrize('ema_decay', [0.0, 0.99])
def test_networks_optimiser_and_average_come_back_as_they_were(tmp_path, use_viewdirs, fine, ema_decay):
    model, optimiser = saved(tmp_path / 'x.tar', use_viewdirs, fine, ema_decay)
    checkpoint = checkpoints.read_checkpoint(tmp_path / 'x.tar')
    assert checkpoint['run_state'] == {'anything': 1}
    assert ('averaged' in checkpoint) == bool(ema_decay)
    others = [NeRF(**(SHAPE if use_viewdirs else SHAPE | {'input_ch_views': 0, 'output_ch': 5}),
                   use_viewdirs=use_viewdirs) for _ in range(2)]
    other = model_of(others[0], others[1] if fine else None)
    other.load_weights(checkpoint)
    for name, network in model.networks().items():
        assert same(other.networks()[name], network)
    again = Optimiser(other, ema_decay)
    again.load_state_dict(checkpoint['optimizer_state_dict'])
    again.load_average(checkpoint)
    assert checkpoint['optimizer_state_dict']['param_groups'][0]['lr'] == pytest.approx(1e-3)
    ours, theirs = (one.state_dict()['state'] for one in (again, optimiser))
    assert ours.keys() == theirs.keys()
    for number, state in theirs.items():
        assert all(torch.equal(ours[number][name], value) for name, value in state.items())
    assert len(again.averages) == len(optimiser.averages) == (len([*model.parameters()]) if ema_decay else 0)
    for a, b, now in zip(again.averages, optimiser.averages, other.parameters()):
        assert torch.equal(a, b)
        assert torch.equal(a, now) != now.requires_grad  # the average is not the newest weights


def test_the_reference_codes_optimiser_loads(shared):
    path = shared / 'interop' / 'nerf_pytorch_small' / '003000.tar'
    if not path.is_file():
        pytest.skip(f'needs {path}')
    pair = [NeRF(W=64, input_ch=63, input_ch_views=27, use_viewdirs=True) for _ in range(2)]
    checkpoint, model = checkpoints.read_checkpoint(path), model_of(*pair)
    model.load_weights(checkpoint)
    optimiser = Optimiser(model)
    optimiser.load_state_dict(checkpoint['optimizer_state_dict'])
    assert optimiser.adam.state[pair[1].rgb_linear.bias]['exp_avg'].shape == (3,)


# Broken and hostile files


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    torch.save({'global_step': 1, 'network_fn_state_dict': Bomb(tmp_path / 'boom')}, tmp_path / 'x.tar')
    with pytest.raises(UserError, match=r'x\.tar cannot be read as a checkpoint'):
        checkpoints.read_checkpoint(tmp_path / 'x.tar')
    assert not (tmp_path / 'boom').exists()


@pytest.mark.parametrize('content', [b'', b'text', b'PK\x03\x04 not a zip', b'\x93NUMPY\x01\x00'])
def test_a_broken_file_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / 'x.tar').write_bytes(content)
    with pytest.raises(UserError, match=r'x\.tar'):
        checkpoints.read_checkpoint(tmp_path / 'x.tar')


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
