"""Checkpoint files in the reference code's format: written whole, and read without running code."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import torch

from nerf.files.keras_weights import read_keras_checkpoint
from nerf.files.whole_file import whole_file
from nerf.runtime.errors import UserError

SLIM = '_slim'


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """File of the checkpoint of a step."""
    return Path(run_dir) / f'{step:06d}.tar'


def survey_path(run_dir: Path, step: int) -> Path:
    """File of the survey of a checkpoint's density."""
    return Path(run_dir) / f'{step:06d}_occupancy.npz'


def slim_path(run_dir: Path, step: int) -> Path:
    """File of the weights alone, much smaller than the checkpoint."""
    return Path(run_dir) / f'{step:06d}{SLIM}.tar'


def read_newest(run_dir: Path, slim: bool = False) -> tuple[Path, dict] | None:
    """Path and content of the readable checkpoint, or file of `slim_path`, with the most steps; None: there is none.
    A checkpoint that cannot be read is reported, and the one before it is read. If none can be read, it is a UserError.
    """
    steps = {path: path.stem.removesuffix(SLIM) for path in Path(run_dir).glob('*.tar')
             if path.stem.endswith(SLIM) == slim}
    found = [path for path, step in steps.items() if step.isdecimal()]
    for path in sorted(found, key=lambda path: int(steps[path]), reverse=True):
        try:
            return path, read_checkpoint(path)
        except UserError as error:
            print(f'warning: {error}; the checkpoint before it is tried', file=sys.stderr)
    if found:
        raise UserError(f'{run_dir}: none of its {len(found)} checkpoints can be read; start afresh with no_reload')
    return None


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Writes nested dictionaries and lists of tensors, numbers and strings. Nothing else loads without running code."""
    with whole_file(path, _bytes_of(checkpoint)) as partial:
        try:
            torch.save(checkpoint, partial)
        except RuntimeError as error:  # raised by torch when a disk is full
            raise OSError(f'disk full or quota reached: {error}') from error


def _bytes_of(value) -> int:
    """Size in bytes of all tensors in nested dictionaries and lists."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(_bytes_of(part) for part in parts)


def read_checkpoint(path: Path) -> dict:
    """Content of a checkpoint, on the CPU: a .tar of this or the reference code, or a .npy of the original TensorFlow
    code, which has the networks and the step alone. A missing or broken file is a UserError, and so is one that holds
    more than numbers."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f'checkpoint {path} does not exist; check ft_path')
    if path.suffix == '.npy':
        return read_keras_checkpoint(path)
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # a broken file can raise nearly any error
        reason = ('damaged, or holding more than numbers, which could run code' if isinstance(
            error, pickle.UnpicklingError) else str(error).partition('\n')[0][:200] or type(error).__name__)
        raise UserError(f'{path} cannot be read as a checkpoint ({reason}); remove or replace it') from error
    if not isinstance(checkpoint, dict) or type(checkpoint.get('global_step')) is not int or not any(
            isinstance(key, str) and key.endswith('_state_dict') and key != 'optimizer_state_dict'
            for key in checkpoint):
        raise UserError(f'{path} is not a checkpoint of a NeRF: global_step or network_fn_state_dict is missing')
    if not 0 <= checkpoint['global_step'] < 2 ** 31:
        raise UserError(f'{path} has a global_step that is not a number of steps; remove or replace it')
    return checkpoint
