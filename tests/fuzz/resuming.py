"""Starts of a run from a checkpoint: to go on with training, or to show its weights."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from conftest import trainer_of
from hostile import as_tar, changed, read_or_refused, replaced

import run_nerf
from nerf.flags import parse_flags
from nerf.resume import restore_weights
from nerf.resume import resume as resume_run
from nerf.rendering import render_view
from nerf.scene import Scene


class Run(NamedTuple):
    """A run that has one checkpoint."""

    flags: list[str]
    scene: Scene
    path: Path  # of the checkpoint


def short_run(flags: list[str], folder: Path) -> Run:
    """Trains three steps into a folder, of which the checkpoint alone is kept; slim weights are moved to ../slim."""
    flags = [*flags, '--expname', folder.name, '--basedir', str(folder.parent), '--N_iters', '3']
    assert run_nerf.main(flags) == 0
    path, slim = folder / '000003.tar', folder / '000003_slim.tar'
    if slim.exists():
        (folder.parent / 'slim').mkdir()
        slim.rename(folder.parent / 'slim' / slim.name)
    for other in sorted(set(folder.rglob('*')) - {path}, reverse=True):  # files before their folder
        other.rmdir() if other.is_dir() else other.unlink()
    return Run(flags, run_nerf.load_scene(parse_flags(flags)), path)


def resume(run: Run) -> None:
    """Resumes and, if the checkpoint is accepted, takes the next step and that of the guard's next check."""
    folder, args, trainer = run.path.parent, parse_flags(run.flags), trainer_of(run.flags, run.scene)

    def job():
        origin = run_nerf.origin_of(args, folder)
        return resume_run(origin, run.scene, trainer, restore_weights(origin, trainer.field)[1])
    if result := read_or_refused(folder, job):
        step, viewed = result
        for number in (step + 1, step + 25 - step % 25):
            read_or_refused(folder, lambda number=number: trainer.after_step(number, trainer.step(number)))
        assert viewed % args.i_img >= 0
        trainer.checkpoint(step + 25)


def restore(run: Run, folder: Path | None = None) -> None:
    """Loads the weights of a folder (None: the run's) to show them and, if they are accepted, renders a view."""
    folder = folder or run.path.parent
    flags = [*run.flags, '--render_only']
    args, field = parse_flags(flags), trainer_of(flags, run.scene).field
    if read_or_refused(folder, lambda: restore_weights(run_nerf.origin_of(args, folder), field)):
        field.radiance(torch.zeros(2, 3, 3), torch.ones(2, 3))
        field.density(torch.zeros(2, 3))
        render_view(field.sampler(), run.scene.space, run.scene.cameras.take([0]))


def start(run: Run, content: dict) -> None:
    """Resumes and renders with other content of the checkpoint."""
    with replaced(run.path, as_tar(content)):
        resume(run)
        restore(run)


def start_with_other_values(run: Run, changes: list, part: str) -> None:
    """Resumes and renders with changes in a part of the checkpoint, or in all of it."""
    content = torch.load(run.path, weights_only=True)
    if part == 'all':
        content = changed(content, changes)
    else:
        holder = content if part in content else content['run_state']
        holder[part] = changed(holder[part], changes)
    start(run, content)
