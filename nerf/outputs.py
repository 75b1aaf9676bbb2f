"""Outputs of a training run at intervals: held-out views, slim weights, test sets, videos and the summary."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nerf.captures.refining import CameraRefinement
from nerf.exposure import right_halves
from nerf.fields.interface import Field
from nerf.files import checkpoints
from nerf.files.images import disparity_pictures, save_video
from nerf.metrics import in_words, psnr
from nerf.plots import draw_summary, error_map
from nerf.rendering import render_path, render_view, save_metrics, view_rays
from nerf.runtime import ranks
from nerf.runtime.errors import UserError
from nerf.scene import Scene
from nerf.train_log import TrainLog
from nerf.view_checks import ViewChecks
from run_nerf_helpers import to8b

HISTOGRAM_RAYS = 1000  # least number of rays behind the histograms of a held-out view, if the view has as many


@dataclass(frozen=True)
class Intervals:
    """Steps between outputs of each kind."""
    view: int  # steps between held-out views
    test_set: int
    video: int
    n_iters: int  # the last step. The summary is drawn there, and after each test set
    slim: bool = False  # slim weights are written at the last step

    def due(self, step: int) -> list[str]:
        """Names of the outputs due at a step, in the order in which they are made."""
        last = step == self.n_iters
        due = {'view': step % self.view == 0, 'slim': self.slim and last, 'test_set': step % self.test_set == 0,
               'video': step % self.video == 0, 'summary': step % self.test_set == 0 or last}
        return [name for name in due if due[name] and step > 0]

    def missing(self, run_dir: Path, step: int, viewed: int) -> list[str]:
        """Names of the outputs due at a step that an interrupted run did not make. The checkpoint tells the step
        `viewed` of the newest held-out view in TensorBoard, because such a view leaves no file of its own."""
        made = {'view': viewed >= step, 'slim': checkpoints.slim_path(run_dir, step).exists(),
                'test_set': (test_folder(run_dir, step) / 'metrics.json').exists(),
                'video': video_path(run_dir, step, 'disp').exists(), 'summary': (run_dir / 'summary.png').exists()}
        return [name for name in self.due(step) if not made[name]]


def test_folder(run_dir: Path, step: int) -> Path:
    """Folder of the test set of a step."""
    return run_dir / f'testset_{step:06d}'


def video_path(run_dir: Path, step: int, kind: str) -> Path:
    """File of a video of a step, of kind 'rgb' (colours) or 'disp' (disparity)."""
    return run_dir / f'{run_dir.name}_spiral_{step:06d}_{kind}.mp4'


class Outputs:
    """Outputs of one run. Time for them does not count as training time. `shown_field` returns the field to show: with
    averaged weights, if the run averages them. Videos have 1/`render_factor` of the height and width; 0: the full size.
    `viewed` is the step of the newest held-out view in TensorBoard. With `guided_test`, test views are drawn by
    `Field.guided` instead of `Field.sampler`. With a `refinement`, test views are also measured with their cameras
    aligned."""

    def __init__(self, scene: Scene, shown_field: Callable[[], Field], run_dir: Path, log: TrainLog,
                 intervals: Intervals, render_factor: int = 0, viewed: int = 0, guided_test: bool = False,
                 refinement: CameraRefinement | None = None):
        self.refinement = refinement
        self.scene, self.shown_field, self.run_dir, self.log = scene, shown_field, run_dir, log
        self.intervals, self.render_factor, self.viewed = intervals, render_factor, viewed
        self.guided_test, self.checks = guided_test, ViewChecks(scene)

    def make(self, names: Iterable[str], step: int) -> None:
        """Makes outputs by their names in `Intervals.due`. An output that cannot be written is reported, and training
        goes on. Processes of rank 1 and above help with test sets and videos only."""
        makers = {'test_set': self.test_set, 'video': self.video}
        if ranks.first():
            makers |= {'view': self.view, 'slim': self.slim, 'summary': self.summary}
        if names := [name for name in names if name in makers]:
            with self.log.paused():
                field = self.shown_field()
                for name in names:
                    attempt(self.log, makers[name], field, step)

    def view(self, field: Field, step: int) -> None:
        """Adds a held-out view to TensorBoard: pictures, PSNR and histograms. Validation views take turns."""
        scene, sampler = self.scene, field.sampler()
        i = scene.i_val[step // self.intervals.view % len(scene.i_val)]
        camera = scene.cameras.take([i])
        view, target = render_view(sampler, scene.space, camera), scene.target(i)
        shown = to8b(view.rgb).astype(np.float32) / 255.0
        pictures = {'opacity': view.acc.clip(0.0, 1.0), 'target': target, 'error': error_map(shown, target)}
        for ending, one in {'': view, **{f'_{name}': one for name, one in view.passes.items()}}.items():
            pictures[f'rgb{ending}'] = to8b(one.rgb)
            pictures[f'disparity{ending}'] = disparity_pictures([one.disp], [one.acc])[0]
        if view.passes:
            pictures['z_std'] = view.spread / max(view.spread.max(), 1e-10)
        for name, picture in pictures.items():
            self.log.picture(f'val/{name}', picture, step)
        compared = right_halves(shown, target, scene.background(i))[:2] if scene.exposure else (shown, target)
        self.log.scalar('val/psnr', psnr(*compared), step)
        rays = view_rays(sampler, scene.space, camera)
        some = rays.part(slice(None, None, max(1, len(rays.near) // HISTOGRAM_RAYS)))
        for name, values in field.histograms(some).items():
            self.log.histogram(f'val/{name}', values, step)
        self._say(self.checks.view(pictures['rgb'], i, self.log.training_psnr()))
        self.viewed = step

    def slim(self, field: Field, step: int) -> None:
        """Writes the slim weights of a field."""
        checkpoints.save_checkpoint(checkpoints.slim_path(self.run_dir, step),
                                    {'global_step': step, **field.slim_weights()})

    def test_set(self, field: Field, step: int) -> None:
        """Renders and measures the test views at full size. The flags' sampler shows edits of the sampling."""
        folder, scene = test_folder(self.run_dir, step), self.scene
        sampler = field.guided(scene.seen_box()) if self.guided_test else field.sampler()
        rgbs = render_path(sampler, scene.space, scene.cameras.take(scene.i_test), savedir=folder).rgbs
        if not ranks.first():
            return
        aligned = None
        if self.refinement:
            aligned = render_path(sampler, scene.space, self.refinement.test_cameras(sampler)).rgbs
        for name, value in (mean := save_metrics(folder, step, sampler, scene, rgbs, aligned)).items():
            self.log.scalar(f'test/{name}', value, step)
        self.log.say(f'step {step}: {len(rgbs)} test views, {in_words(mean)}')
        self._say(self.checks.test_set(rgbs, self.log.training_psnr()))
        self._say(self.checks.training_views(sampler))

    def _say(self, lines: list[str]) -> None:
        for line in lines:
            self.log.say(line)

    def video(self, field: Field, step: int) -> None:
        """Renders the path to two videos, of colours and of disparity."""
        sampler = field.guided(self.scene.seen_box())
        path = render_path(sampler, self.scene.space, self.scene.render_cameras.scaled(self.render_factor),
                           video=video_path(self.run_dir, step, 'rgb'))
        if ranks.first():
            save_video(video_path(self.run_dir, step, 'disp'), disparity_pictures(path.disps, path.accs))

    def summary(self, field: Field, step: int) -> None:
        """Draws summary.png from the files of the run."""
        i_test = self.scene.i_test
        draw_summary(self.run_dir, step, len(i_test), lambda n: self.scene.target(i_test[n]))


def attempt(log: TrainLog, job: Callable, *args) -> bool:
    """Does a job that writes files; returns whether it was done. An error goes to the log: a disk may be full."""
    try:
        job(*args)
    except (UserError, OSError) as error:
        log.say(f'warning: {error}; training goes on')
        return False
    return True
