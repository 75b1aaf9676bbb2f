"""Weights of the original TensorFlow code: .npy files of Keras, read without running the pickles inside."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy

from nerf.runtime.errors import UserError


def read_keras_checkpoint(path: Path) -> dict:
    """Checkpoint of model_NNNNNN.npy and, if it exists, its sibling model_fine_NNNNNN.npy."""
    step = re.search(r'(\d+)$', path.stem)
    sibling = path.with_name(path.name.replace('model_', 'model_fine_', 1))
    has_fine = sibling != path and sibling.is_file()
    return {'global_step': int(step.group()) if step else 0, 'network_fn_state_dict': _keras_to_state_dict(path),
            'network_fine_state_dict': _keras_to_state_dict(sibling) if has_fine else None}


def _keras_to_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Parameters of `NeRF` from a file of kernel, bias, kernel, bias, ... in Keras' order."""
    arrays = _read_array_list(path)
    n_layers = len(arrays) // 2
    # With view directions the last layer gives density alone: one output.
    heads = (['feature_linear', 'views_linears.0', 'rgb_linear', 'alpha_linear'] if arrays[-1].shape == (1,)
             else ['output_linear'])
    if n_layers <= len(heads):
        raise UserError(f'{path} has {n_layers} layers, too few for a NeRF; replace it')
    layers = [f'pts_linears.{i}' for i in range(n_layers - len(heads))] + heads
    names = [f'{layer}.{part}' for layer in layers for part in ('weight', 'bias')]
    return {name: torch.tensor(array.T, dtype=torch.float32) for name, array in zip(names, arrays)}


def _read_array_list(path: Path) -> list[np.ndarray]:
    """Float arrays in the .npy file of an object array, which is a pickle; all but arrays of numbers is refused."""
    try:
        with open(path, 'rb') as file:
            is_first = npy.read_magic(file) == (1, 0)
            dtype = (npy.read_array_header_1_0 if is_first else npy.read_array_header_2_0)(file)[2]
            arrays = list(_ArrayUnpickler(file).load().value) if dtype.hasobject else []
    except Exception as error:  # a broken pickle can raise nearly anything
        raise UserError(f'{path} cannot be read as Keras weights ({error}); replace it') from error
    if len(arrays) < 4 or len(arrays) % 2 or not all(
            isinstance(a, np.ndarray) and a.dtype.kind == 'f' and a.ndim == 2 - i % 2 for i, a in enumerate(arrays)):
        raise UserError(f'{path} is not a list of kernels and biases as Keras saves it; replace it')
    return arrays


class _ArrayUnpickler(pickle._Unpickler):
    """Unpickler of float arrays and lists of float arrays; anything else in a pickle is refused before it runs. The
    unpickler written in C would allocate memory for any memo index that a file claims."""

    def find_class(self, module: str, name: str):
        if name == '_reconstruct' and module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
            return lambda *_: _PickledArray()  # the array's state follows
        known = {('numpy', 'ndarray'): None,  # an argument of _reconstruct
                 ('numpy', 'dtype'): _PickledType,
                 ('_codecs', 'encode'): lambda text, _: text.encode('latin1')}  # how protocol 2 spells bytes
        if (module, name) not in known:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}, which is no array of numbers')
        return known[module, name]


class _PickledType:
    """Number type of an array. NumPy's dtype would take sizes and flags from the file unchecked."""

    def __init__(self, name: str, *_):
        self.name, self.order = name, ''

    def __setstate__(self, state: tuple):
        self.order = state[1]


class _PickledArray:
    """Array: `value` has its numbers, or the list of an object array."""

    value = None

    def __setstate__(self, state: tuple):
        _, shape, dtype, fortran, content = state
        if dtype.name in ('f2', 'f4', 'f8'):
            self.value = np.frombuffer(content, dtype.order + dtype.name).reshape(shape, order='F' if fortran else 'C')
        elif isinstance(content, list):
            self.value = [part.value if isinstance(part, _PickledArray) else part for part in content]
