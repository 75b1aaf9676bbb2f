"""Saving and restoring a run: whole files or none, in the reference code's format, and nothing that can run code."""

from __future__ import annotations

import os
import pickle
import re
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nerf.runtime.errors import UserError

SHAPE_FLAGS = ('netdepth', 'netwidth', 'netdepth_fine', 'netwidth_fine', 'i_embed', 'multires', 'multires_views',
               'use_viewdirs', 'N_importance')
PARTIAL = '.partial-'  # how the names of files begin that are being written


@contextmanager
def whole_file(path: Path, needed: int | None = None):
    """Yields a name beside `path` to write to; it replaces `path` when the block ends well, else it is removed.

    Args:
        needed: bytes that the file will have, where that is known, for the message.

    Raises:
        UserError: the file cannot be written (disk full, read-only folder).
    """
    path = Path(path)
    partial = path.with_name(PARTIAL + path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        size = f', which needs {needed:,} bytes,' if needed else ''
        raise UserError(f'{path}{size} cannot be written ({error}); free some space or write to another '
                        'place') from error
    finally:
        with suppress(OSError):
            partial.unlink()


def _sync_folder(folder: Path) -> None:
    """Makes a rename in a folder outlast a power cut, where folders can be synced."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def checkpoint_path(run_dir: Path, step: int) -> Path:
    return Path(run_dir) / f'{step:06d}.tar'


def read_newest(run_dir: Path) -> tuple[Path, dict] | None:
    """The readable checkpoint with the most steps in a run's folder, and its content; None where there is none at all.

    One that cannot be read is reported, and the one before it taken.

    Raises:
        UserError: none of them can be read.
    """
    found = sorted((path for path in Path(run_dir).glob('*.tar') if path.stem.isdecimal()),
                   key=lambda path: int(path.stem), reverse=True)
    for path in found:
        try:
            return path, read_checkpoint(path)
        except UserError as error:
            print(f'warning: {error}; looking for the one before it', file=sys.stderr)
    if found:
        raise UserError(f'{run_dir}: none of its {len(found)} checkpoints can be read; start afresh with no_reload')
    return None


def save_checkpoint(path: Path, step: int, coarse: nn.Module, fine: nn.Module | None,
                    optimizer: torch.optim.Optimizer, run_state: dict) -> None:
    """Writes the dictionary that the reference code reads, and under 'run_state' what else decides the future.

    Args:
        step: steps done so far.
        coarse, fine: the MLPs (fine None: N_importance is 0).
        run_state: tensors, numbers and strings only, so that it loads without running code.
    """
    optimizer_state = optimizer.state_dict()
    for group in optimizer_state['param_groups']:
        group['lr'] = float(group['lr'])  # a tensor in training
    checkpoint = {
        'global_step': step,
        'network_fn_state_dict': coarse.state_dict(),
        'network_fine_state_dict': fine.state_dict() if fine is not None else None,
        'optimizer_state_dict': optimizer_state,
        'run_state': run_state,
    }
    with whole_file(path, _bytes_of(checkpoint)) as partial:
        try:
            torch.save(checkpoint, partial)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(f'disk full or quota reached: {error}') from error


def _bytes_of(value) -> int:
    """Bytes of all tensors in nested dictionaries and lists."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(_bytes_of(part) for part in parts)


def read_checkpoint(path: Path) -> dict:
    """Reads a .tar of ours or of the reference code, or a Keras .npy of the original TensorFlow code, onto the CPU.

    Returns:
        The checkpoint's dictionary; of a .npy it has the networks and the step alone.

    Raises:
        UserError: missing, broken, or holding more than numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'checkpoint {path} does not exist; check ft_path')
    if path.suffix == '.npy':
        return _read_keras_checkpoint(path)
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # a broken file can raise nearly anything in there
        reason = ('damaged, or holding more than numbers, which could run code' if isinstance(
            error, pickle.UnpicklingError) else str(error).partition('\n')[0][:200] or type(error).__name__)
        raise UserError(f'{path} cannot be read as a checkpoint ({reason}); remove or replace it') from error
    if not isinstance(checkpoint, dict) or type(checkpoint.get('global_step')) is not int or (
            'network_fn_state_dict' not in checkpoint):
        raise UserError(f'{path} is not a checkpoint of a NeRF: global_step or network_fn_state_dict is missing')
    if not 0 <= checkpoint['global_step'] < 2 ** 31:
        raise UserError(f'{path} has a global_step that is no number of steps; remove or replace it')
    return checkpoint


def load_networks(checkpoint: dict, path: Path, coarse: nn.Module, fine: nn.Module | None) -> None:
    """Copies a checkpoint's weights into the MLPs.

    Raises:
        UserError: they have another shape than the flags say; the message names the first that differs.
    """
    networks = [('network_fn_state_dict', coarse)] + ([('network_fine_state_dict', fine)] if fine is not None else [])
    for key, network in networks:
        saved, ours = checkpoint.get(key), network.state_dict()
        if not isinstance(saved, dict) or not all(map(_is_real, saved.values())):
            raise UserError(f'{path} has no {key}; set N_importance = 0 or use another checkpoint')
        if not network.use_viewdirs:  # a layer without use, which a Keras file does not have
            saved = {name: weight for name, weight in ours.items() if name.startswith('views_linears')} | saved
        for name in [*ours, *saved]:
            there, here = (tuple(state[name].shape) if name in state else 'absent' for state in (saved, ours))
            if there != here:
                raise UserError(f'{path} does not fit the flags: {name} is {there} there and {here} here; '
                                f'check {", ".join(SHAPE_FLAGS)}')
        network.load_state_dict(saved)


def _is_real(value) -> bool:
    """Whether it is a plain tensor of real numbers in memory."""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.layout == torch.strided and (
        value.device.type == 'cpu')


def load_optimizer(checkpoint: dict, optimizer: torch.optim.Optimizer) -> None:
    """Restores the optimiser's running means.

    Raises:
        UserError: the checkpoint's optimiser had other networks to look after.
    """
    state, parameters, ours = {}, optimizer.param_groups[0]['params'], optimizer.state_dict()['param_groups'][0]
    try:
        saved = checkpoint['optimizer_state_dict']
        (group,) = saved['param_groups']
        if len(group['params']) != len(parameters):
            raise ValueError(f"it has {len(group['params'])} parameters, not {len(parameters)}")
        for i, (key, parameter) in enumerate(zip(group['params'], parameters)):
            if key not in saved['state']:
                continue
            mean, square, step = (saved['state'][key][name] for name in ('exp_avg', 'exp_avg_sq', 'step'))
            if not all(_is_real(part) and part.shape == parameter.shape for part in (mean, square)):  # fused Adam does
                raise ValueError(f'parameter {i} is not of shape {tuple(parameter.shape)}')  # not look: it overwrites
            if not 0 <= (step := float(step)) < 2 ** 31:  # other memory
                raise ValueError(f'parameter {i} has step {step}')
            state[i] = {'step': torch.tensor(step), 'exp_avg': mean, 'exp_avg_sq': square}
        optimizer.load_state_dict({'state': state, 'param_groups': [ours | {'lr': float(group['lr'])}]})
    except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"step {checkpoint['global_step']}: the checkpoint's optimiser does not fit the flags "
                        f'({error}); check {", ".join(SHAPE_FLAGS)}, or give it as ft_path of a new expname') from error


# Keras weights of the original TensorFlow code


def _read_keras_checkpoint(path: Path) -> dict:
    """model_NNNNNN.npy and, where it is there, its sibling model_fine_NNNNNN.npy."""
    step = re.search(r'(\d+)$', path.stem)
    sibling = path.with_name(path.name.replace('model_', 'model_fine_', 1))
    has_fine = sibling != path and sibling.is_file()
    return {'global_step': int(step.group()) if step else 0,
            'network_fn_state_dict': _keras_to_state_dict(path),
            'network_fine_state_dict': _keras_to_state_dict(sibling) if has_fine else None}


def _keras_to_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """A list [kernel, bias, kernel, bias, ...] in Keras' order to parameters of `NeRF`."""
    arrays = _read_array_list(path)
    n_layers = len(arrays) // 2
    # With view directions the last layer is density alone, one output.
    heads = (['feature_linear', 'views_linears.0', 'rgb_linear', 'alpha_linear'] if arrays[-1].shape == (1,)
             else ['output_linear'])
    if n_layers <= len(heads):
        raise UserError(f'{path} has {n_layers} layers, too few for a NeRF; replace it')
    names = [f'pts_linears.{i}' for i in range(n_layers - len(heads))] + heads
    state = {}
    for i, name in enumerate(names):
        state[f'{name}.weight'] = torch.tensor(arrays[2 * i].T, dtype=torch.float32)
        state[f'{name}.bias'] = torch.tensor(arrays[2 * i + 1], dtype=torch.float32)
    return state


def _read_array_list(path: Path) -> list[np.ndarray]:
    """The float arrays in an object array's .npy, which is a pickle: only arrays of numbers are admitted."""
    try:
        with open(path, 'rb') as file:
            version = np.lib.format.read_magic(file)
            read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else (
                np.lib.format.read_array_header_2_0)
            dtype = read_header(file)[2]
            arrays = list(_ArrayUnpickler(file).load().value) if dtype.hasobject else []
    except Exception as error:  # a broken pickle can raise nearly anything
        raise UserError(f'{path} cannot be read as Keras weights ({error}); replace it') from error
    if len(arrays) < 4 or len(arrays) % 2 or not all(
            isinstance(a, np.ndarray) and a.dtype.kind == 'f' and a.ndim == 2 - i % 2 for i, a in enumerate(arrays)):
        raise UserError(f'{path} is not a list of kernels and biases as Keras saves it; replace it')
    return arrays


class _ArrayUnpickler(pickle._Unpickler):
    """Rebuilds arrays of floats and lists of them; whatever else a pickle asks for is refused before it runs.

    It is the unpickler in Python, as that in C allots memory for whatever memo index a file claims.
    """

    def find_class(self, module: str, name: str):
        if name == '_reconstruct' and module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
            return lambda *_: _PickledArray()  # its state follows
        if (module, name) == ('numpy', 'ndarray'):
            return None  # _reconstruct's argument
        if (module, name) == ('numpy', 'dtype'):
            return _PickledType
        if (module, name) == ('_codecs', 'encode'):
            return lambda text, _: text.encode('latin1')  # how protocol 2 spells bytes
        raise pickle.UnpicklingError(f'it asks for {module}.{name}, which is no array of numbers')


class _PickledType:
    """NumPy's own would take sizes and flags from the file as they are."""

    def __init__(self, name: str, *_):
        self.name, self.order = name, ''

    def __setstate__(self, state: tuple):
        self.order = state[1]


class _PickledArray:
    """An array: `value` is the list that an object array holds, or the numbers."""

    value = None

    def __setstate__(self, state: tuple):
        _, shape, dtype, fortran, content = state
        if dtype.name in ('f2', 'f4', 'f8'):
            self.value = np.frombuffer(content, dtype.order + dtype.name).reshape(shape, order='F' if fortran else 'C')
        elif isinstance(content, list):
            self.value = [part.value if isinstance(part, _PickledArray) else part for part in content]
