"""Trains and renders a neural radiance field from posed images.

    python run_nerf.py --config configs/toy_chair.txt
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import torch

from nerf.camera_path import CameraPath
from nerf.captures.estimation import estimate_cameras
from nerf.captures.refining import CameraRefinement
from nerf.exposure import MEASURED
from nerf.fields.interface import Field, Sampler
from nerf.fields.kinds import FIELDS
from nerf.files import checkpoints
from nerf.files.images import disparity_pictures, save_png, save_video
from nerf.files.run_folder import locked, record_flags
from nerf.flag_types import box_of
from nerf.flags import config_parser, config_text, parse_flags  # noqa: F401 (config_parser is looked for here)
from nerf.formats import data_flags, load_scene, refines_cameras
from nerf.meshes.options import MeshOptions
from nerf.metrics import in_words
from nerf.outputs import Intervals, Outputs, attempt
from nerf.ray_batcher import RayBatcher
from nerf.rendering import render_path, save_metrics
from nerf.resume import Origin, checkpoint_writer, restore_trained, restore_weights, resume
from nerf.runtime import ranks, stop_signals
from nerf.runtime.devices import choose_device, choose_precision, keep_freed_memory
from nerf.runtime.errors import UserError, returns_exit_code
from nerf.scene import Scene
from nerf.train_log import TrainLog, log_mesh, peak_memory
from nerf.training import Trainer
from nerf.viewer.drawing import ShownField
from nerf.viewer.server import Address
from nerf.viewer.viewer import Viewer


@returns_exit_code
def main(argv: list[str] | None = None) -> None:
    """Does what the flags say: trains, renders, extracts a mesh or shows the scene."""
    with ranks.one_voice():
        args = parse_flags(argv)
        with stop_signals.handled():
            if args.estimate_only:
                estimate_cameras(args.datadir, frames=args.frames)
                return
            keep_freed_memory()
            scene, device = load_scene(args), choose_device(args.device)
            field = FIELDS[args.field].build(args, scene, device, choose_precision(args.precision, device))
            print(describe(args, scene, field))
            job = mesh_only if args.mesh_only else train
            if args.render_only:
                job = view_only if args.view else render_only
            with ranks.joined(device):
                job(args, scene, field, Path(args.basedir) / args.expname)


def describe(args: argparse.Namespace, scene: Scene, field: Field) -> str:
    """Text at the start of a run."""
    sizes = [f'{width}x{height}' for width, height in sorted({(w, h) for h, w in scene.images.sizes.tolist()})]
    size = ' and '.join(sizes[:2] + (['more'] if len(sizes) > 2 else []))
    counts = f'{len(scene.i_train)} train / {len(scene.i_val)} val / {len(scene.i_test)} test'
    dtype = str(field.dtype).removeprefix('torch.')
    return '\n'.join(filter(None, [
        f'scene     {args.datadir}: {len(scene.images)} images of {size}, {counts}, {scene.space.describe()}',
        scene.placement and scene.placement.describe(),
        scene.exposure and f'exposure  learned for each training image; metrics are of the {MEASURED}',
        field.describe(), f'device    {field.device}, {dtype}, seed {args.seed}']))


def origin_of(args: argparse.Namespace, run_dir: Path) -> Origin:
    """Place of the run's weights, and its flags."""
    return Origin(run_dir, vars(args), data_flags(), trains=not (args.render_only or args.mesh_only))


def guided(scene: Scene, field: Field, run_dir: Path, step: int) -> Sampler:
    """Fastest sampler for pictures of a field that does not change any more."""
    return field.guided(scene.seen_box(), checkpoints.survey_path(run_dir, step) if ranks.first() else None)


def train(args: argparse.Namespace, scene: Scene, field: Field, run_dir: Path) -> None:
    """Trains to N_iters steps, from the newest checkpoint if there is one, logging, saving and rendering."""
    if args.N_rand < ranks.count():
        raise UserError(f'N_rand is {args.N_rand}, the rays of all {ranks.count()} processes in a step; raise it')
    origin = origin_of(args, run_dir)
    with locked(run_dir) if ranks.first() else nullcontext():
        _, checkpoint = restore_weights(origin, field)
        trainer = create_trainer(args, scene, field)
        start, viewed = resume(origin, scene, trainer, checkpoint)
        intervals = Intervals(args.i_img, args.i_testset, args.i_video, args.N_iters, field.has_slim_weights)
        missing = ranks.broadcast(intervals.missing(run_dir, start, viewed))
        if start >= args.N_iters and not missing:
            print(f'{run_dir} has all {args.N_iters} steps already; raise N_iters to go on, or use --render_only')
            show(args, scene, trainer.shown_field(), run_dir, start)
            return
        if ranks.first():
            record(args, scene, run_dir)
        with closing(TrainLog(run_dir if ranks.first() else None, start, args.N_iters, args.i_print, field.device,
                              trainer.training.scalars)) as log, \
                opened_viewer(args, scene, trainer.shown_field, run_dir, log.status, training=True) as viewer:
            log.table('flags', vars(args))
            outputs = Outputs(scene, trainer.shown_field, run_dir, log, intervals, args.render_factor, viewed,
                              args.guided_test, trainer.refinement)
            outputs.make(missing, start)
            train_steps(args, trainer, start, outputs, checkpoint_writer(origin, scene, trainer), viewer)
            print(end_words(args, run_dir, log, field.device))
            if viewer:
                viewer.serve(args.N_iters, guided(scene, trainer.shown_field(), run_dir, args.N_iters))


def create_trainer(args: argparse.Namespace, scene: Scene, field: Field) -> Trainer:
    """Trainer of a field on a scene, whose random draws follow from the seed."""
    kind, generator = FIELDS[args.field], torch.Generator(field.device).manual_seed(args.seed)
    batcher = RayBatcher(scene, args.N_rand, args.no_batching and kind.reads('no_batching'), args.precrop_iters,
                         args.precrop_frac, generator, foreground=kind.finds_foreground and args.white_bkgd)
    refined = refines_cameras(args, scene.space, batcher.stored is not None)
    return Trainer(kind.train(args, field), batcher, args.lrate, args.lrate_decay,
                   args.ema_decay if kind.reads('ema_decay') else 0.0,
                   CameraRefinement(scene, batcher.cameras, args.N_iters) if refined else None)


def train_steps(args: argparse.Namespace, trainer: Trainer, start: int, outputs: Outputs,
                save: Callable[[int, int], None], viewer: Viewer | None) -> None:
    """Steps after `start`, with all that is due at each. A signal to stop waits for the end of the step."""
    log, done, saved = outputs.log, start, start
    try:
        for step in range(start + 1, args.N_iters + 1):
            with stop_signals.deferred():
                losses = trainer.step(step)
                log.step(step, losses.terms, trainer.learning_rate(step), trainer.n_rays)
                for line in trainer.after_step(step, losses):
                    log.say(line)
                done = step
            due = outputs.intervals.due(step)
            outputs.make((name for name in due if name == 'view'), step)  # the checkpoint notes that it was made
            if step % args.i_weights == 0 or step == args.N_iters:
                with stop_signals.deferred(), log.paused():
                    saved = step if attempt(log, save, step, outputs.viewed) else saved
            outputs.make((name for name in due if name != 'view'), step)
            if viewer:
                with log.paused():
                    viewer.spend(step)
    except BaseException:  # a signal, or an error of any kind
        if saved < done:
            save_rest(log, save, done, outputs.viewed)
        raise
    if saved < args.N_iters:
        save(args.N_iters, outputs.viewed)  # once more, and now it is an error


def save_rest(log: TrainLog, save: Callable[[int, int], None], done: int, viewed: int) -> None:
    """Saves the steps that are done when an exception ends training. If that fails, a line says so, and the first
    exception is the one that is raised. After an error within a step, random draws differ from an unbroken run's."""
    try:
        with stop_signals.held():
            save(done, viewed)
    except Exception as error:
        log.say(f'warning: step {done} cannot be saved ({error!r})')


def record(args: argparse.Namespace, scene: Scene, run_dir: Path) -> None:
    """Writes the run's flags and where its scene lies. no_reload and view are for one start, so they are left out."""
    flags = argparse.Namespace(**vars(args) | {'no_reload': False, 'view': False})
    record_flags(run_dir, config_text(flags), args.config)
    if scene.placement:
        scene.placement.save(run_dir / 'placement.json')


def end_words(args: argparse.Namespace, run_dir: Path, log: TrainLog, device: torch.device) -> str:
    """Text at the end of a run: where everything is, and what can be done with it."""
    again = f'python run_nerf.py --config {shlex.quote(str(run_dir / "args.txt"))}'
    slim = checkpoints.slim_path(run_dir, args.N_iters)
    lines = [f'{args.N_iters} steps done, {log.seconds:.0f} s of training, {peak_memory(device):.0f} MB at most',
             f'everything is in {run_dir}; look at summary.png, or at the curves: tensorboard --logdir {args.basedir}']
    if slim.exists():
        lines.append(f'share it: {slim} has the weights alone, {slim.stat().st_size / 1e6:.1f} MB')
    return '\n'.join([*lines, f'preview it: {again} --render_only', f'look at it: {again} --render_only --view',
                      f'mesh it: {again} --mesh_only'])


@contextmanager
def opened_viewer(args: argparse.Namespace, scene: Scene, shown_field: Callable[[], Field], run_dir: Path,
                  status: Callable[[], str], training: bool = False):
    """Yields the viewer, or None without --view. Of several processes rank 0 has it."""
    if args.view and ranks.first():
        shown = ShownField(scene, lambda: shown_field().sampler(), training)
        address = Address(args.view_host, args.view_port, args.view_origin)
        with closing(Viewer(shown, run_dir, address, status)) as viewer:
            yield viewer
    else:
        yield None


def show(args: argparse.Namespace, scene: Scene, field: Field, run_dir: Path, step: int) -> None:
    """Shows a trained field in the browser until a signal ends it; without --view nothing happens."""
    with opened_viewer(args, scene, lambda: field, run_dir, lambda: f'step {step}') as viewer:
        if viewer:
            viewer.serve(step, guided(scene, field, run_dir, step))


def view_only(args: argparse.Namespace, scene: Scene, field: Field, run_dir: Path) -> None:
    """Shows the newest checkpoint in the browser until a signal ends it."""
    show(args, scene, field, run_dir, restore_trained(origin_of(args, run_dir), field))


def render_only(args: argparse.Namespace, scene: Scene, field: Field, run_dir: Path) -> None:
    """Renders the path or the test views: pictures, disparity pictures, videos and, at full size, test metrics."""
    kind, cameras = ('test', scene.cameras.take(scene.i_test)) if args.render_test else ('path', scene.render_cameras)
    if args.render_path:
        kind, cameras = 'camera_path', CameraPath.read(Path(args.render_path)).cameras()
    cameras = cameras.scaled(args.render_factor)
    step = restore_trained(origin_of(args, run_dir), field)
    sampler = guided(scene, field, run_dir, step) if args.guided_test or not args.render_test else field.sampler()
    folder = run_dir / f'renderonly_{kind}_{step:06d}'
    has_video = cameras.one_size() is not None
    rgbs, disps, accs = render_path(sampler, scene.space, cameras, folder, folder / 'video.mp4' if has_video else None)
    if not ranks.first():
        return
    grey = disparity_pictures(disps, accs)
    for i, picture in enumerate(grey):
        save_png(folder / f'disp_{i:03d}.png', picture)
    if has_video:
        save_video(folder / 'video_disp.mp4', grey)
    if args.render_test and args.render_factor <= 1:
        print(f'{len(rgbs)} test views: {in_words(save_metrics(folder, step, sampler, scene, rgbs))}')
    print(f"{len(rgbs)} views {'and their videos' if has_video else '(of several sizes, so no video)'} are in {folder}")


def mesh_only(args: argparse.Namespace, scene: Scene, field: Field, run_dir: Path) -> None:
    """Writes the surface as a coloured mesh in the coordinates of the scene or of the capture, and a picture of it."""
    if not ranks.first():
        return
    step = restore_trained(origin_of(args, run_dir), field)
    ending = 'glb' if args.mesh_texture else 'ply'
    path = Path(args.mesh_file or run_dir / f'mesh_{step:06d}.{ending}').expanduser()
    if path.is_dir():
        raise UserError(f'mesh_file {path} is a folder; name a file')
    moved = args.mesh_coordinates == 'capture' and scene.placement
    fused = args.mesh_method == 'fused' or (args.mesh_method == 'auto' and args.mesh_threshold is None)
    options = MeshOptions(args.mesh_grid_size, args.mesh_threshold, fused, args.mesh_faces, args.mesh_texture,
                          None if args.mesh_bounds is None else box_of(args.mesh_bounds))
    options.need_libraries()
    from nerf.meshes.export import export_mesh  # other runs need none of these libraries

    sampler = guided(scene, field, run_dir, step)
    mesh = export_mesh(sampler, scene, path, options, scene.placement.to_capture() if moved else None)
    log_mesh(run_dir, mesh, step)


if __name__ == '__main__':
    ranks.leave(main())
