"""Trains and renders a neural radiance field from posed images.

    python run_nerf.py --config configs/toy_chair.txt
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Iterable
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from load_photos import load_colmap, load_transforms
from nerf.camera_path import CameraPath
from nerf.captures.estimation import estimate_cameras
from nerf.exposure import MEASURED
from nerf.fields.paper.dead_networks import FOG
from nerf.fields.grid.model import GridModel, GridTraining, has_kernels
from nerf.fields.paper.mlp import FastMLPField, MLPField, fast_where_equal
from nerf.fields.paper.mlp_gpu import GpuMLPField
from nerf.fields.interface import Field, Sampler, Training
from nerf.fields.paper.field import PaperField
from nerf.fields.paper.training import PaperTraining
from nerf.files import checkpoints
from nerf.files.images import disparity_pictures, save_png, save_video
from nerf.files.run_folder import locked, record_flags, set_aside
from nerf.flags import (  # noqa: F401 (config_parser is looked for here)
    RAYS_THROUGH, box_of, config_parser, config_text, learns_exposure, parse_flags, sees_beyond, uses_ndc,
)
from nerf.hull import has_hull, inside_hull
from nerf.meshes.mesh import export_mesh
from nerf.metrics import in_words
from nerf.outputs import Intervals, Outputs, attempt
from nerf.ray_batcher import RayBatcher
from nerf.rendering import render_path, save_metrics
from nerf.runtime import ranks, stop_signals
from nerf.runtime.devices import choose_device, choose_precision, keep_freed_memory
from nerf.runtime.errors import UserError
from nerf.runtime.exit_codes import returns_exit_code
from nerf.scene import Scene, blender_scene, deepvoxels_scene, llff_scene, photographs_scene
from nerf.space import Space
from nerf.train_log import TrainLog, log_mesh, peak_memory
from nerf.training import Trainer
from nerf.viewer.drawing import ShownField
from nerf.viewer.viewer import Viewer
from run_nerf_helpers import NeRF, Rays, Sampling, get_embedder

CPU_TILE = 24576 * 256  # points times channels through a layer at once on a CPU: more is no faster and takes memory
GRID_DECAY = 20  # the grid's learning rate falls by this factor over a run
VOXEL_PIXELS = 0.8  # sides of a pixel, at the scene's centre, that a voxel has at least
SEEN_RAYS = 65  # along both sides of each view, that find the cells which are seen
VIEW_TILES = 4  # a tile of a view has so many times more rays, as no activations are kept for it
LONGEST_PREVIEW = 640  # pixels; larger videos of photographs would take longer than the grid's training
FOR_ONE_START = ('config', 'no_reload', 'view', 'view_host', 'view_port', 'render_path')  # flags that may always differ
DATA_FLAGS = ('dataset_type', 'datadir', 'shape', 'half_res', 'factor', 'no_ndc', 'spherify', 'llffhold', 'white_bkgd',
              'rays_through')


@returns_exit_code
def main(argv: list[str] | None = None) -> None:
    """Does what the flags say: trains, renders, extracts a mesh or shows the scene."""
    with ranks.one_voice():
        args = parse_flags(argv)
        with stop_signals.handled():
            if args.estimate_only:
                estimate_cameras(args.datadir)
                return
            keep_freed_memory()
            scene = load_scene(args)
            device = choose_device(args.device)
            field = create_field(args, scene, device, choose_precision(args.precision, device))
            print(describe(args, scene, field))
            job = view_only if args.render_only and args.view else render_only if args.render_only else (
                mesh_only if args.mesh_only else train)
            with ranks.joined(device):
                job(args, scene, field, Path(args.basedir) / args.expname)


# Scene and model


def load_scene(args: argparse.Namespace) -> Scene:
    """Reads the scene that the flags name.

    Raises:
        UserError: it is missing or broken.
    """
    if args.dataset_type == 'blender':
        scene = blender_scene(args.datadir, args.white_bkgd, args.half_res, args.testskip)
    elif args.dataset_type == 'llff':
        scene = llff_scene(args.datadir, args.white_bkgd, args.factor, args.spherify, args.llffhold, uses_ndc(args),
                           sees_beyond(args))
    elif args.dataset_type in ('transforms', 'photos'):
        if args.dataset_type == 'photos':
            estimate_cameras(args.datadir)
        capture = load_transforms(args.datadir, args.factor, args.llffhold, args.outside_files)
        scene = photographs_scene(capture, args.white_bkgd, not args.no_ndc, sees_beyond(args))
    elif args.dataset_type == 'colmap':
        capture = load_colmap(args.datadir, args.factor, args.llffhold)
        scene = photographs_scene(capture, args.white_bkgd, not args.no_ndc, sees_beyond(args))
    else:
        scene = deepvoxels_scene(args.datadir, args.white_bkgd, args.shape, args.testskip)
    scene = replace(scene.rays_within(RAYS_THROUGH[args.rays_through]), exposure=learns_exposure(args))
    height, width = scene.images.sizes.min(0)
    least = 22 if scene.exposure else 11  # of the width: with exposure half of it is measured
    if height < 11 or width < least:
        raise UserError(f"{args.datadir}: images are {width}x{height} pixels; SSIM's window needs at least {least}x11")
    scene.render_cameras.scaled(args.render_factor)  # an error now rather than at the first video
    if scene.placement and not args.render_factor:
        factor = math.ceil(int(scene.render_cameras.sizes.max()) / LONGEST_PREVIEW)
        scene = replace(scene, render_cameras=scene.render_cameras.scaled(factor))
    return scene


def create_field(args: argparse.Namespace, scene: Scene, device: torch.device, dtype: torch.dtype) -> Field:
    """Builds what the flag `field` names."""
    field = create_grid(args, scene, device, dtype) if args.field == 'grid' else create_nerf(
        args, device, dtype, scene.space)
    field.supersample = args.supersample
    return field


def create_training(args: argparse.Namespace, field: Field) -> Training:
    """How the field is trained."""
    return GridTraining(field) if args.field == 'grid' else PaperTraining(field, rays_at_once(args, field.device))


def create_nerf(args: argparse.Namespace, device: torch.device, dtype: torch.dtype, space: Space) -> Field:
    """Builds the coarse and, where N_importance > 0, the fine network, with weights drawn from the seed.
"""
    embed_points, input_ch = get_embedder(args.multires, args.i_embed)
    embed_dirs, input_ch_views = get_embedder(args.multires_views, args.i_embed) if args.use_viewdirs else (None, 0)
    generator = torch.Generator().manual_seed(args.seed)

    def field(depth: int, width: int) -> MLPField:
        network = NeRF(D=depth, W=width, input_ch=input_ch, input_ch_views=input_ch_views,
                       output_ch=5 if args.N_importance else 4, skips=[4], use_viewdirs=args.use_viewdirs,
                       generator=generator)
        network.lift_density(FOG)
        return fast_where_equal(network, embed_points, embed_dirs, args.netchunk, dtype, space,
                                GpuMLPField if device.type == 'cuda' else FastMLPField).to(device)

    model = PaperField(
        coarse=field(args.netdepth, args.netwidth),
        fine=field(args.netdepth_fine, args.netwidth_fine) if args.N_importance else None,
        sampling=Sampling(args.N_samples, args.N_importance, bool(args.perturb),
                          args.lindisp and not space.projective, args.raw_noise_std, args.white_bkgd, space.horizon),
        view_chunk=min(args.chunk, VIEW_TILES * rays_at_once(args, device)))
    if not isinstance(model.best, FastMLPField):
        print('NeRF.forward was edited: the run goes through it, and not through the faster nerf/fields/paper/mlp.py')
    return model


def create_grid(args: argparse.Namespace, scene: Scene, device: torch.device, dtype: torch.dtype) -> Field:
    """Builds the voxel grid over the scene's box; where images show a plain background it begins with the visual hull.
    Without bounds it is over contracted space, and begins with what the training cameras see."""
    if ranks.count() > 1:
        raise UserError('field grid trains in one process; start it without torchrun, or use field mlp')
    space, cameras = scene.space, scene.training_cameras
    model = GridModel(space.field_box(cameras), args.N_iters, args.white_bkgd, args.seed, device, dtype, args.chunk,
                      compiled=device.type == 'cpu' and has_kernels(), space=space,
                      finest=VOXEL_PIXELS * float(space.pixel_sides(cameras).median()) * (not space.closed))
    if not space.has_far:
        views = (scene.spread_rays(scene.i_train[[i]], SEEN_RAYS) for i in range(len(scene.i_train)))
        model.keep_seen(Rays(*(part.to(device) for part in rays)) for rays in views)
    elif scene.white_bkgd and has_hull(scene):  # else alpha is ignored, and there can be colours behind it
        centres, cells = model.grid.centres(), model.grid.cells.clone()
        cells[model.grid.cells] = inside_hull(scene, centres, 0.87 * model.grid.voxel).to(device)
        model.keep(cells)
    return model


def rays_at_once(args: argparse.Namespace, device: torch.device) -> int:
    """Rays in a tile: `chunk`, and on a CPU no more than make good use of it."""
    if device.type != 'cpu':
        return args.chunk
    channels = max(args.netwidth, args.netwidth_fine if args.N_importance else 0)
    return min(args.chunk, max(1, CPU_TILE // (channels * (args.N_samples + args.N_importance))))


def create_batcher(args: argparse.Namespace, scene: Scene, device: torch.device) -> RayBatcher:
    """What draws the rays of each step. The grid learns which pixels are empty where pictures are on white; else alpha
    is ignored, as in nerf-pytorch."""
    grid, generator = args.field == 'grid', torch.Generator(device).manual_seed(args.seed)
    return RayBatcher(scene, args.N_rand, args.no_batching and not grid, args.precrop_iters, args.precrop_frac,
                      generator, foreground=grid and args.white_bkgd)


def describe(args: argparse.Namespace, scene: Scene, field: Field) -> str:
    """The block that a run starts with."""
    sizes = sorted({(int(width), int(height)) for height, width in scene.images.sizes})
    size = ' and '.join(f'{width}x{height}' for width, height in sizes[:2]) + ' and more' * (len(sizes) > 2)
    return (f'scene     {args.datadir}: {len(scene.images)} images of {size}, '
            f'{len(scene.i_train)} train / {len(scene.i_val)} val / {len(scene.i_test)} test, '
            f'near {scene.space.near:g}, far {scene.space.far:g}{scene.space.note}\n'
            + (f'{scene.placement.describe()}\n' if scene.placement else '')
            + f'exposure  learned for each training image; metrics are of the {MEASURED}\n' * scene.exposure
            + f'{field.describe()}\n'
            f'device    {field.device}, {str(field.dtype).removeprefix("torch.")}, seed {args.seed}')


# Training


def train(args: argparse.Namespace, scene: Scene, field: Field, run_dir: Path) -> None:
    """Trains to N_iters steps, from the newest checkpoint where there is one, logging, saving and rendering."""
    if args.N_rand < ranks.count():
        raise UserError(f'N_rand is {args.N_rand}, the rays of all {ranks.count()} processes in a step; raise it')
    with locked(run_dir) if ranks.first() else nullcontext():
        checkpoint = restore_model(args, run_dir, field)[1]
        grid = args.field == 'grid'
        decay = args.N_iters / (1000 * math.log10(GRID_DECAY)) if grid else args.lrate_decay
        trainer = Trainer(create_training(args, field), create_batcher(args, scene, field.device), args.lrate, decay,
                          0.0 if grid else args.ema_decay)
        start, viewed = resume(args, scene, trainer, run_dir, checkpoint)
        if ranks.broadcast([start]) != [start]:
            raise UserError(f'{run_dir} does not have the same checkpoints for all processes; let them share a disk')
        shown_field = trainer.optimiser.averaged_field
        outputs = Outputs(scene, shown_field, run_dir, None,
                          Intervals(args.i_img, args.i_testset, args.i_video, args.N_iters), args.render_factor, viewed,
                          field.has_slim_weights)
        missing = ranks.broadcast(outputs.missing(start))
        if start >= args.N_iters and not missing:
            print(f'{run_dir} has all {args.N_iters} steps already; raise N_iters to go on, or use --render_only')
            with opened_viewer(args, scene, shown_field, run_dir, lambda: f'step {start}') as viewer:
                if viewer:
                    viewer.serve(start, guided(scene, shown_field(), run_dir, start))
            return
        if ranks.first():  # no_reload and view were for this start, not for those that follow
            flags = argparse.Namespace(**vars(args) | {'no_reload': False, 'view': False})
            record_flags(run_dir, config_text(flags), args.config)
            if scene.placement:
                scene.placement.save(run_dir / 'placement.json')
        with opened_viewer(args, scene, shown_field, run_dir, lambda: outputs.log.status(), training=True) as viewer:
            with closing(TrainLog(run_dir if ranks.first() else None, start, args.N_iters, args.i_print,
                                  field.device, trainer.training.scalars)) as log:
                outputs.log = log
                log.table('flags', vars(args))
                outputs.make(missing, start)
                train_steps(args, trainer, start, outputs, saver(args, scene, trainer, outputs, run_dir), viewer)
            print(end_words(args, run_dir, log, field.device))
            if viewer:
                viewer.serve(args.N_iters, guided(scene, shown_field(), run_dir, args.N_iters))


def end_words(args: argparse.Namespace, run_dir: Path, log: TrainLog, device: torch.device) -> str:
    """What a run ends with: where everything is, and what can be done with it."""
    again = f'python run_nerf.py --config {shlex.quote(str(run_dir / "args.txt"))}'
    return (f'{args.N_iters} steps done, {log.seconds:.0f} s of training, {peak_memory(device):.0f} MB at most\n'
            f'everything is in {run_dir}; look at summary.png, or at the curves: tensorboard --logdir {args.basedir}\n'
            f'{slim_words(run_dir, args.N_iters)}preview it: {again} --render_only\n'
            f'look at it: {again} --render_only --view\nmesh it: {again} --mesh_only')


def slim_words(run_dir: Path, step: int) -> str:
    """A line about the file of the weights alone; nothing where there is none."""
    path = checkpoints.slim_path(run_dir, step)
    return f'share it: {path} has the weights alone, {path.stat().st_size / 1e6:.1f} MB\n' if path.exists() else ''


def train_steps(args: argparse.Namespace, trainer: Trainer, start: int, outputs: Outputs,
                save: Callable[[int], None], viewer: Viewer | None) -> None:
    """The steps after `start`, with all that is due at each; a signal to stop waits for the end of the step."""
    log, done, saved = outputs.log, start, start
    try:
        for step in range(start + 1, args.N_iters + 1):
            with stop_signals.deferred():
                losses = trainer.step(step)
                log.step(step, losses.terms, trainer.learning_rate(step), trainer.n_rays)
                for line in trainer.after_step(step, losses):
                    log.say(line)
                done = step
            due = outputs.due(step)
            outputs.make((name for name in due if name == 'view'), step)  # the checkpoint notes that it was made
            if step % args.i_weights == 0 or step == args.N_iters:
                with stop_signals.deferred(), log.paused():
                    saved = step if attempt(log, save, step) else saved
            outputs.make((name for name in due if name != 'view'), step)
            if viewer:
                with log.paused():
                    viewer.spend(step)
    except stop_signals.Stopped:
        if saved < done:
            save(done)
        raise
    if saved < args.N_iters:
        save(args.N_iters)  # once more, and now it is an error


# Checkpoints


def saver(args: argparse.Namespace, scene: Scene, trainer: Trainer, outputs: Outputs,
          run_dir: Path) -> Callable[[int], None]:
    """A function that writes the checkpoint of a step; of several processes rank 0 does."""
    fingerprint = scene.fingerprint()

    def save(step: int) -> None:
        if ranks.first():
            checkpoint = trainer.checkpoint(step)
            checkpoint['run_state'] |= {'flags': vars(args), 'scene': fingerprint, 'viewed': outputs.viewed}
            checkpoints.save_checkpoint(checkpoints.checkpoint_path(run_dir, step), checkpoint)
    return save


def restore_model(args: argparse.Namespace, run_dir: Path, field: Field) -> tuple[int | None, dict | None]:
    """Loads the weights to start from: the run's newest checkpoint, to render or mesh also a slim file where it has
    none, else ft_path, else none.

    Where a checkpoint holds averaged weights, those are taken, unless training goes on from it.

    Returns:
        the step that the weights are from (None: there are none), and the whole checkpoint where it is this run's own.

    Raises:
        UserError: they do not fit the flags; the message names those that changed.
    """
    training = not (args.render_only or args.mesh_only)
    own = None if args.no_reload and training else checkpoints.read_newest(run_dir)
    if own is None and not training and not args.ft_path:
        own = checkpoints.read_newest(run_dir, slim=True)
    if own and args.ft_path:
        print(f'ft_path {args.ft_path} is not used: the run has a checkpoint of its own', file=sys.stderr)
    if own is None and not args.ft_path:
        if training and not args.no_reload and checkpoints.read_newest(run_dir, slim=True):
            print(f'{run_dir} has no checkpoint to go on from; to start from its slim weights, give them as ft_path',
                  file=sys.stderr)
        return None, None
    path, checkpoint = own or (Path(args.ft_path).expanduser(), None)
    checkpoint = checkpoint or checkpoints.read_checkpoint(path)
    averaged = None if own and training else checkpoint.get('averaged')
    with errors_of(path, args, field, checkpoint):
        field.load_weights(averaged if isinstance(averaged, dict) else checkpoint)
    print(f"weights from {path} (step {checkpoint['global_step']})")
    return checkpoint['global_step'], checkpoint if own else None


def restore_trained(args: argparse.Namespace, run_dir: Path, field: Field) -> int:
    """`restore_model` where there is nothing to do without weights; their step."""
    step, _ = restore_model(args, run_dir, field)
    if step is None:
        raise UserError(f'{run_dir} has no checkpoint; train first (the same command without render_only or mesh_only) '
                        'or give ft_path')
    return step


def resume(args: argparse.Namespace, scene: Scene, trainer: Trainer, run_dir: Path,
           checkpoint: dict | None) -> tuple[int, int]:
    """Takes from the run's checkpoint (None: there is none) what training needs beside the weights.

    Returns:
        the steps done so far, and the last one whose held-out view was logged.

    Raises:
        UserError: the checkpoint is broken, or of another scene.
    """
    if args.no_reload and ranks.first() and (aside := set_aside(run_dir)):
        print(f'the earlier run in {run_dir} is now in {aside}')
    if checkpoint is None:
        print('starting at step 0')
        return 0, 0
    step, state = checkpoint['global_step'], checkpoint.get('run_state')
    viewed = step
    with errors_of(checkpoints.checkpoint_path(run_dir, step), args, trainer.field, checkpoint):
        with broken('optimiser does not fit the flags'):
            trainer.optimiser.load_state_dict(checkpoint['optimizer_state_dict'])
        trainer.optimiser.load_average(checkpoint)
        if state is None:  # the reference code's: what it does not hold starts from the seed
            trainer.batcher.generator.manual_seed(args.seed + step)
        else:
            with broken('run_state is broken'):
                check_same_data(args, scene, checkpoint)
                trainer.load_state(state, step)
                viewed = int(state.get('viewed', step))
    print(f'going on at step {step}')
    return step, viewed


def check_same_data(args: argparse.Namespace, scene: Scene, checkpoint: dict) -> None:
    """Prints which flags have changed since the checkpoint was saved; raises UserError where the data have."""
    if checkpoint['run_state'].get('scene') not in (None, scene.fingerprint()):
        changed = changed_flags(args, checkpoint, DATA_FLAGS) or f'the files in {args.datadir}'
        raise UserError(f'it was trained on other data (changed since then: {changed}); undo that, or take another '
                        'expname, with ft_path if it is to start from these weights')
    if changed := changed_flags(args, checkpoint, vars(args).keys() - set(FOR_ONE_START)):
        print(f'changed since the checkpoint: {changed}')


@contextmanager
def broken(what: str):
    """Makes whatever a broken part of a checkpoint raises one line that says what to do."""
    try:
        yield
    except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f'its {what} ({error!r}); remove it, or give it as ft_path of a new expname') from error


@contextmanager
def errors_of(path: Path, args: argparse.Namespace, field: Field, checkpoint: dict):
    """Adds to errors about a checkpoint its path, and which flags about the weights have changed since it was saved."""
    try:
        yield
    except UserError as error:
        changed = changed_flags(args, checkpoint, (*field.shape_flags, 'contract', 'exposure'))
        raise UserError(f'{path}: {error}' + f' (changed since then: {changed})' * bool(changed)) from None


def changed_flags(args: argparse.Namespace, checkpoint: dict, names: Iterable[str]) -> str:
    """'name old -> new, ...' of the flags among `names` that are not what they were when the checkpoint was saved."""
    state = checkpoint.get('run_state')
    before = state.get('flags') if isinstance(state, dict) else None
    before = {name: value for name, value in before.items()
              if isinstance(value, (str, int, float, type(None)))} if isinstance(before, dict) else {}
    return ', '.join(f'{name} {before[name]} -> {value}' for name, value in vars(args).items()
                     if name in names and name in before and before[name] != value)


# Viewer, rendering and mesh


@contextmanager
def opened_viewer(args: argparse.Namespace, scene: Scene, shown_field: Callable[[], Field], run_dir: Path,
                  status: Callable[[], str], training: bool = False):
    """Yields the viewer, where there is to be one; of several processes rank 0 has it."""
    if not args.view or not ranks.first():
        yield None
        return
    shown = ShownField(scene, lambda: shown_field().sampler(), training)
    with closing(Viewer(shown, run_dir, args.view_host, args.view_port, status)) as viewer:
        yield viewer


def view_only(args: argparse.Namespace, scene: Scene, field: Field, run_dir: Path) -> None:
    """Shows the newest checkpoint in the browser until a signal ends it."""
    step = restore_trained(args, run_dir, field)
    with opened_viewer(args, scene, lambda: field, run_dir, lambda: f'step {step}') as viewer:
        if viewer:
            viewer.serve(step, guided(scene, field, run_dir, step))


def guided(scene: Scene, field: Field, run_dir: Path, step: int) -> Sampler:
    """The fastest sampler for pictures of a field that does not change any more."""
    return field.guided(scene.seen_box(), checkpoints.survey_path(run_dir, step) if ranks.first() else None)


def render_only(args: argparse.Namespace, scene: Scene, field: Field, run_dir: Path) -> None:
    """Renders the path or the test views: pictures, disparity pictures, videos and, at full size, test metrics."""
    kind, cameras = ('test', scene.cameras.take(scene.i_test)) if args.render_test else ('path', scene.render_cameras)
    if args.render_path:
        kind, cameras = 'camera_path', CameraPath.read(Path(args.render_path)).cameras()
    cameras = cameras.scaled(args.render_factor)
    step = restore_trained(args, run_dir, field)
    folder = run_dir / f'renderonly_{kind}_{step:06d}'
    has_video = cameras.one_size() is not None
    sampler = field.sampler() if args.render_test else guided(scene, field, run_dir, step)
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
    """Writes the surface as a coloured mesh in the coordinates of the scene or, where asked, of the capture, and a
    picture of it."""
    if not ranks.first():
        return
    step = restore_trained(args, run_dir, field)
    ending = 'glb' if args.mesh_texture else 'ply'
    path = Path(args.mesh_file or run_dir / f'mesh_{step:06d}.{ending}').expanduser()
    if path.is_dir():
        raise UserError(f'mesh_file {path} is a folder; name a file')
    moved = args.mesh_coordinates == 'capture' and scene.placement
    fused = args.mesh_method == 'fused' or (args.mesh_method == 'auto' and args.mesh_threshold is None)
    sampler = guided(scene, field, run_dir, step)
    mesh = export_mesh(sampler, scene, path, args.mesh_grid_size, args.mesh_threshold, fused, args.mesh_faces,
                       args.mesh_texture, scene.placement.to_capture() if moved else None,
                       None if args.mesh_bounds is None else box_of(args.mesh_bounds))
    log_mesh(run_dir, mesh, step)


if __name__ == '__main__':
    ranks.leave(main())
