"""Small networks, and files of their weights."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from conftest import trainer_of
from known_pictures import scene_of

from nerf.files import checkpoints
from nerf.training import Trainer

TINY = ['--expname', 'run', '--netdepth', '6', '--netwidth', '8', '--netdepth_fine', '6', '--netwidth_fine', '8',
        '--multires', '1', '--multires_views', '1', '--N_samples', '8', '--N_importance', '8', '--N_rand', '32',
        '--device', 'cpu', '--precision', 'fp32', '--use_viewdirs', '--lrate', '1e-3']


def tiny_trainer(*more: str) -> Trainer:
    """Trainer of two small networks, by some more flags; --no_viewdirs stands for no --use_viewdirs."""
    flags = [flag for flag in TINY if flag != '--use_viewdirs' or '--no_viewdirs' not in more]
    return trainer_of([*flags, *(flag for flag in more if flag != '--no_viewdirs')], scene_of(12, 16))


def saved(path: Path, *more: str, step: int = 123) -> Trainer:
    """Writes a checkpoint of `tiny_trainer` after a training step."""
    trainer = tiny_trainer(*more)
    trainer.step(1)
    checkpoints.save_checkpoint(path, trainer.checkpoint(step))
    return trainer


def keras_arrays(state: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """Weights of a network in the order in which the original code's Keras model lists them, kernels transposed."""
    heads = ['feature_linear', 'views_linears.0', 'rgb_linear', 'alpha_linear']
    trunk = [f'pts_linears.{i}' for i in range(6)]
    return [array for layer in [*trunk, *(heads if 'rgb_linear.weight' in state else ['output_linear'])]
            for array in (state[f'{layer}.weight'].numpy().T, state[f'{layer}.bias'].numpy())]


def network(seed: int = 0, *more: str) -> dict[str, torch.Tensor]:
    """Weights of a coarse network."""
    return tiny_trainer('--seed', str(seed), *more).field.weights()['network_fn_state_dict']


def save_keras(path: Path, arrays: list[np.ndarray], protocol: int = 3) -> None:
    holder = np.empty(len(arrays), object)
    holder[:] = arrays
    with open(path, 'wb') as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(holder))
        pickle.dump(holder, file, protocol)
