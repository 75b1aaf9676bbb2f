"""nerf/files/checkpoints.py: whole or absent, in the reference code's format, and unable to run code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import assert_same, trainer_of
from known_pictures import scene_of
from small_checkpoints import saved, tiny_trainer

from nerf.files import checkpoints
from nerf.runtime.errors import UserError
from run_nerf_helpers import NeRF

SHAPE = {'D': 6, 'W': 8, 'input_ch': 9, 'input_ch_views': 9, 'output_ch': 5, 'skips': [4], 'use_viewdirs': True}


def write_steps(folder: Path, *names: str) -> None:
    """Writes checkpoints without a field, of the step in the name."""
    for name in names:
        step = name.partition('.')[0].partition('_')[0]
        checkpoints.save_checkpoint(folder / name, {'global_step': int(step) if step.isdecimal() else 0,
                                                       'network_fn_state_dict': {'weight': torch.arange(100.0)}})


# Writing


@pytest.mark.slow
def test_a_disk_that_fills_up_is_a_users_error_and_keeps_the_old_checkpoint(tmp_path):
    """In a process of its own, whose files may not grow past 64 KiB."""
    write_steps(tmp_path, 'x.tar')
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
    write_steps(tmp_path, '000900.tar', '001000.tar', '1000000.tar', '000950.tar')
    for name in ('notes.tar', '.partial-2000000.tar'):
        (tmp_path / name).touch()
    path, checkpoint = checkpoints.read_newest(tmp_path)
    assert path.name == '1000000.tar'
    assert checkpoint['global_step'] == 1000000
    assert checkpoints.checkpoint_path(tmp_path, 42).name == '000042.tar'


def test_slim_weights_are_read_where_they_are_asked_for_and_are_no_checkpoints(tmp_path):
    write_steps(tmp_path, '000900_slim.tar', '001000_slim.tar', '_slim.tar')
    assert checkpoints.slim_path(tmp_path, 900).name == '000900_slim.tar'
    assert checkpoints.read_newest(tmp_path) is None
    path, content = checkpoints.read_newest(tmp_path, slim=True)
    assert (path.name, content['global_step']) == ('001000_slim.tar', 1000)
    write_steps(tmp_path, '000800.tar')
    assert checkpoints.read_newest(tmp_path)[0].name == '000800.tar'
    assert checkpoints.read_newest(tmp_path, slim=True)[0] == path


@pytest.mark.parametrize('spoil', [lambda data: b'', lambda data: data[:len(data) // 2], lambda data: b'x' * 1000,
                                   lambda data: data[:200] + bytes(100) + data[300:]])
def test_a_newest_checkpoint_that_is_broken_is_reported_and_the_one_before_it_taken(tmp_path, capsys, spoil):
    write_steps(tmp_path, '000010.tar', '000020.tar', '000030.tar')
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
    saved(tmp_path / 'x.tar')
    coarse, fine = NeRF(**SHAPE), NeRF(**SHAPE)
    there = torch.load(tmp_path / 'x.tar', weights_only=True)
    assert there['global_step'] == 123
    coarse.load_state_dict(there['network_fn_state_dict'])
    fine.load_state_dict(there['network_fine_state_dict'])
    assert list(there['network_fn_state_dict']) == list(coarse.state_dict())
    # As the reference code has it: one Adam over both networks' parameters, coarse first, in the order of their names.
    groups = there['optimizer_state_dict']['param_groups']
    assert [group['params'] for group in groups] == [list(range(2 * len(coarse.state_dict())))]
    theirs = torch.optim.Adam([*coarse.parameters(), *fine.parameters()], lr=5e-4, betas=(0.9, 0.999))
    theirs.load_state_dict(there['optimizer_state_dict'])
    for n, parameter in enumerate([*coarse.parameters(), *fine.parameters()]):
        mean = there['optimizer_state_dict']['state'][n]['exp_avg']
        assert torch.equal(theirs.state[parameter]['exp_avg'], mean)
        assert mean.shape == parameter.shape


@pytest.mark.parametrize('more', [[], ['--no_viewdirs'], ['--N_importance', '0'], ['--ema_decay', '0.99'],
                                  ['--no_viewdirs', '--N_importance', '0', '--ema_decay', '0.99']])
def test_networks_optimiser_and_average_come_back_as_they_were(tmp_path, more):
    first = saved(tmp_path / 'x.tar', *more)
    checkpoint, other = checkpoints.read_checkpoint(tmp_path / 'x.tar'), tiny_trainer(*more, '--seed', '9')
    assert ('averaged' in checkpoint) == ('--ema_decay' in more)
    with pytest.raises(AssertionError):
        assert_same(other.checkpoint(123), first.checkpoint(123))
    other.field.load_weights(checkpoint)
    other.optimiser.load_state_dict(checkpoint['optimizer_state_dict'])
    other.optimiser.load_average(checkpoint)
    other.load_state(checkpoint['run_state'], 123)
    other.optimiser.prepare(1, other.learning_rate(1))
    ours, theirs = (trainer.checkpoint(123) for trainer in (other, first))
    for part in (ours, theirs):  # the rate of a step is set in the step
        for group in part['optimizer_state_dict']['param_groups']:
            del group['lr']
    assert_same(ours, theirs)
    if 'averaged' in checkpoint:  # it is not the newest weights
        assert not torch.equal(checkpoint['averaged']['network_fn_state_dict']['pts_linears.0.weight'],
                               checkpoint['network_fn_state_dict']['pts_linears.0.weight'])


def test_the_reference_codes_optimiser_loads(shared):
    folder = shared / 'interop' / 'nerf_pytorch_small'
    if not folder.is_dir():
        pytest.skip(f'needs {folder}')
    checkpoint = checkpoints.read_checkpoint(folder / '003000.tar')
    flags = ['--config', str(folder / 'config.txt'), '--precision', 'fp32', '--device', 'cpu', '--N_rand', '32']
    trainer = trainer_of(flags, scene_of(50, 50))
    trainer.field.load_weights(checkpoint)
    trainer.optimiser.load_state_dict(checkpoint['optimizer_state_dict'])
    ours, theirs = (one['state'] for one in (trainer.optimiser.state_dict(), checkpoint['optimizer_state_dict']))
    assert len(ours) == len(theirs)
    for state, expected in zip(ours.values(), theirs.values()):
        assert torch.equal(state['exp_avg'], expected['exp_avg'])


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
    write_steps(tmp_path, 'x.tar')
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
