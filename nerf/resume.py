"""Start of a run: from its newest checkpoint, from initial weights, or afresh."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nerf.fields.interface import Field
from nerf.files import checkpoints
from nerf.files.run_folder import set_aside
from nerf.runtime import ranks
from nerf.runtime.errors import UserError
from nerf.scene import Scene
from nerf.training import Trainer

FOR_ONE_START = frozenset({'config', 'no_reload', 'view', 'view_host', 'view_port', 'view_origin',
                           'render_path'})  # changes not told


@dataclass(frozen=True)
class Origin:
    """Folder and flags of a run that starts."""
    run_dir: Path
    flags: dict[str, Any]  # all flags by name; checkpoints hold them
    data_flags: frozenset[str]  # names of flags that decide what a run trains on
    trains: bool  # the run trains; else it renders or meshes

    def changed(self, checkpoint: dict, names: Iterable[str]) -> str:
        """Flags of some names that have changed since a checkpoint was saved, as 'name old -> new, ...'."""
        state = checkpoint.get('run_state')
        before = state.get('flags') if isinstance(state, dict) else None
        if not isinstance(before, dict):
            return ''
        plain = {name: value for name, value in before.items() if isinstance(value, (str, int, float, type(None)))}
        return ', '.join(f'{name} {plain[name]} -> {value}' for name, value in self.flags.items()
                         if name in names and name in plain and plain[name] != value)


def restore_weights(origin: Origin, field: Field) -> tuple[int | None, dict | None]:
    """Loads the initial weights of a field: of the run's newest checkpoint, else of ft_path, else none. Returns the
    step of the weights, and the content of the run's own checkpoint; None for each that is missing. Rendering and
    meshing also take a slim file of the run. Averaged weights of a checkpoint are preferred, except where training goes
    on. UserError: the weights do not fit the flags; the message names changed flags."""
    run_dir, ft_path, afresh = origin.run_dir, origin.flags['ft_path'], origin.flags['no_reload'] and origin.trains
    own = None if afresh else checkpoints.read_newest(run_dir)
    if own is None and not origin.trains and not ft_path:
        own = checkpoints.read_newest(run_dir, slim=True)
    if own and ft_path:
        print(f'ft_path {ft_path} is not used: the run has a checkpoint of its own', file=sys.stderr)
    if own is None and not ft_path:
        if origin.trains and not afresh and checkpoints.read_newest(run_dir, slim=True):
            print(f'{run_dir} has no checkpoint to go on from; to start from its slim weights, give them as ft_path',
                  file=sys.stderr)
        return None, None
    path, checkpoint = own or (Path(ft_path).expanduser(), None)
    checkpoint = checkpoint or checkpoints.read_checkpoint(path)
    averaged = None if own and origin.trains else checkpoint.get('averaged')
    with errors_of(path, origin, field, checkpoint):
        field.load_weights(averaged if isinstance(averaged, dict) else checkpoint)
    print(f"weights from {path} (step {checkpoint['global_step']})")
    return checkpoint['global_step'], checkpoint if own else None


def restore_trained(origin: Origin, field: Field) -> int:
    """Loads weights by `restore_weights`; returns their step. UserError: the run has no weights."""
    step, _ = restore_weights(origin, field)
    if step is None:
        raise UserError(f'{origin.run_dir} has no checkpoint; train first (the same command without render_only or '
                        'mesh_only) or give ft_path')
    return step


def resume(origin: Origin, scene: Scene, trainer: Trainer, checkpoint: dict | None) -> tuple[int, int]:
    """Restores a training, apart from its weights, from the run's checkpoint; None: training starts at step 0, and with
    no_reload an earlier run is set aside. Returns the number of steps done, and the step of the newest held-out view in
    TensorBoard. UserError: the checkpoint is broken or of another scene, or differs between processes."""
    run_dir = origin.run_dir
    if origin.flags['no_reload'] and ranks.first() and (aside := set_aside(run_dir)):
        print(f'the earlier run in {run_dir} is now in {aside}')
    step, viewed = (0, 0) if checkpoint is None else _resume_from(origin, scene, trainer, checkpoint)
    print(f'going on at step {step}' if checkpoint else 'starting at step 0')
    if ranks.broadcast([step]) != [step]:
        raise UserError(f'{run_dir} does not have the same checkpoints for all processes; let them share a disk')
    return step, viewed


def _resume_from(origin: Origin, scene: Scene, trainer: Trainer, checkpoint: dict) -> tuple[int, int]:
    """Takes optimiser, average and state from a checkpoint; returns the result of `resume`."""
    step, state = checkpoint['global_step'], checkpoint.get('run_state')
    viewed = step
    with errors_of(checkpoints.checkpoint_path(origin.run_dir, step), origin, trainer.field, checkpoint):
        with broken('optimiser does not fit the flags'):
            trainer.optimiser.load_state_dict(checkpoint['optimizer_state_dict'])
        trainer.optimiser.load_average(checkpoint)
        if state is None:  # a checkpoint of the reference code: draws start from the seed
            trainer.batcher.generator.manual_seed(origin.flags['seed'] + step)
        else:
            with broken('run_state is broken'):
                _check_same_data(origin, scene, checkpoint)
                trainer.load_state(state, step)
                viewed = int(state.get('viewed', step))
    return step, viewed


def _check_same_data(origin: Origin, scene: Scene, checkpoint: dict) -> None:
    """Raises UserError if a checkpoint was trained on other data; prints other flags that have changed."""
    if checkpoint['run_state'].get('scene') not in (None, scene.fingerprint()):
        changed = origin.changed(checkpoint, origin.data_flags) or f"the files in {origin.flags['datadir']}"
        raise UserError(f'it was trained on other data (changed since then: {changed}); undo that, or take another '
                        'expname, with ft_path if it is to start from these weights')
    if changed := origin.changed(checkpoint, origin.flags.keys() - FOR_ONE_START):
        print(f'changed since the checkpoint: {changed}')


@contextmanager
def broken(what: str):
    """Context that turns errors about a broken part of a checkpoint into a UserError with advice."""
    try:
        yield
    except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f'its {what} ({error!r}); remove it, or give it as ft_path of a new expname') from error


@contextmanager
def errors_of(path: Path, origin: Origin, field: Field, checkpoint: dict):
    """Context that adds to a UserError the path of the checkpoint, and changed flags about the weights."""
    try:
        yield
    except UserError as error:
        changed = origin.changed(checkpoint, (*field.shape_flags, 'contract', 'exposure'))
        raise UserError(f'{path}: {error}' + (f' (changed since then: {changed})' if changed else '')) from None


def checkpoint_writer(origin: Origin, scene: Scene, trainer: Trainer) -> Callable[[int, int], None]:
    """Function that writes, on rank 0, the checkpoint of a step, with the step of the newest view in TensorBoard."""
    fingerprint = scene.fingerprint()

    def save(step: int, viewed: int) -> None:
        if ranks.first():
            checkpoint = trainer.checkpoint(step)
            checkpoint['run_state'] |= {'flags': origin.flags, 'scene': fingerprint, 'viewed': viewed}
            checkpoints.save_checkpoint(checkpoints.checkpoint_path(origin.run_dir, step), checkpoint)
            if trainer.refinement:
                trainer.refinement.save(origin.run_dir / 'transforms_refined.json', Path(origin.flags['datadir']))
    return save
