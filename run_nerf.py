"""Trains and renders a neural radiance field from posed images.

    python run_nerf.py --config configs/toy_chair.txt
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable
from contextlib import closing, contextmanager, nullcontext
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from nerf.files import checkpoints
from nerf.runtime import ranks
from nerf.runtime import stop_signals
from nerf.runtime.cuda_graph import CapturedStep
from nerf.fields.dead_networks import DeadNetworkGuard
from nerf.runtime.devices import choose_device, choose_precision, keep_freed_memory
from nerf.runtime.errors import UserError
from nerf.mesh import (
    coarsened, coloured_mesh, describe_mesh, draw_views, extract_surface, seen_box, tighten, without_floaters,
    write_mesh,
)
from nerf.flags import config_parser, config_text, parse_flags, uses_ndc  # noqa: F401 (config_parser is looked for here)
from nerf.files.images import compare, disparity_pictures
from nerf.fields.radiance_field import RadianceField
from nerf.ray_batcher import RayBatcher
from nerf.rendering import (
    Model, View, render_path, render_view, save_metrics, save_png, save_video, view_rays,
)
from nerf.files.run_folder import locked, record_flags, set_aside
from run_nerf_helpers import (
    Draws, NeRF, Rays, Sampling, coarse_depths, draw, get_embedder, img2mse, to8b,
)
from nerf.scene import Scene, blender_scene, deepvoxels_scene, llff_scene
from nerf.train_log import TrainLog, draw_summary, error_map, log_mesh, peak_memory

CPU_TILE = 24576 * 256  # points times channels through a layer at once on a CPU: more is no faster and takes memory
VIEW_TILES = 4  # times as many rays of a view, for which no activations are kept, at once
HISTOGRAM_RAYS = 1000  # rays of a held-out view that TensorBoard's histograms are taken from
SHARED = ('test_set', 'video')  # outputs that several processes have a part in
BROKEN_STEPS = 10  # steps in a row with a loss or gradient that is not finite, at which a run ends
DATA_FLAGS = ('dataset_type', 'datadir', 'shape', 'half_res', 'factor', 'no_ndc', 'spherify', 'llffhold', 'white_bkgd')

# Scene


def load_scene(args: argparse.Namespace) -> Scene:
    """Reads the scene that the flags name.

    Raises:
        UserError: it is missing or broken.
    """
    if args.dataset_type == 'blender':
        scene = blender_scene(args.datadir, args.white_bkgd, args.half_res, args.testskip)
    elif args.dataset_type == 'llff':
        scene = llff_scene(args.datadir, args.white_bkgd, args.factor, args.spherify, args.llffhold, uses_ndc(args))
    else:
        scene = deepvoxels_scene(args.datadir, args.white_bkgd, args.shape, args.testskip)
    if min(scene.H, scene.W) < 11:
        raise UserError(f"{args.datadir}: images are {scene.W}x{scene.H} pixels; SSIM's window needs at least 11x11")
    return scene


# Networks


def create_nerf(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Model:
    """Builds the coarse and, where N_importance > 0, the fine network, with weights drawn from the seed."""
    embed_points, input_ch = get_embedder(args.multires, args.i_embed)
    embed_dirs, input_ch_views = get_embedder(args.multires_views, args.i_embed) if args.use_viewdirs else (None, 0)
    generator = torch.Generator().manual_seed(args.seed)

    def field(depth: int, width: int) -> RadianceField:
        network = NeRF(D=depth, W=width, input_ch=input_ch, input_ch_views=input_ch_views,
                       output_ch=5 if args.N_importance else 4, skips=[4], use_viewdirs=args.use_viewdirs,
                       generator=generator)
        return RadianceField(network.to(device), embed_points, embed_dirs, args.netchunk, dtype)

    return Model(
        coarse=field(args.netdepth, args.netwidth),
        fine=field(args.netdepth_fine, args.netwidth_fine) if args.N_importance else None,
        sampling=Sampling(args.N_samples, args.N_importance, bool(args.perturb),
                          args.lindisp and not uses_ndc(args), args.raw_noise_std, args.white_bkgd),
        chunk=rays_at_once(args, device), view_chunk=min(args.chunk, VIEW_TILES * rays_at_once(args, device)))


def rays_at_once(args: argparse.Namespace, device: torch.device) -> int:
    """Rays in a tile: `chunk`, and on a CPU no more than make good use of it."""
    if device.type != 'cpu':
        return args.chunk
    channels = max(args.netwidth, args.netwidth_fine if args.N_importance else 0)
    return min(args.chunk, max(1, CPU_TILE // (channels * (args.N_samples + args.N_importance))))


def restore_model(args: argparse.Namespace, run_dir: Path, model: Model) -> tuple[int | None, dict | None]:
    """Loads the weights to start from: the run's newest checkpoint, else ft_path, else none.

    Returns:
        the step that the weights are from (None: there are none), and the whole checkpoint where it is this run's own.

    Raises:
        UserError: they do not fit the flags; the message names those that changed.
    """
    afresh = args.no_reload and not (args.render_only or args.mesh_only)
    own = None if afresh else checkpoints.read_newest(run_dir)
    if own and args.ft_path:
        print(f'ft_path {args.ft_path} is not used: the run has a checkpoint of its own', file=sys.stderr)
    if own is None and not args.ft_path:
        return None, None
    path, checkpoint = own or (Path(args.ft_path).expanduser(), None)
    checkpoint = checkpoint or checkpoints.read_checkpoint(path)
    with naming_changes(args, checkpoint):
        checkpoints.load_networks(checkpoint, path, model.coarse.network, model.fine and model.fine.network)
    print(f"weights from {path} (step {checkpoint['global_step']})")
    return checkpoint['global_step'], checkpoint if own else None


@contextmanager
def naming_changes(args: argparse.Namespace, checkpoint: dict):
    """Adds to errors about a checkpoint's networks which of their flags have changed since it was saved."""
    try:
        yield
    except UserError as error:
        changed = changed_flags(args, checkpoint, checkpoints.SHAPE_FLAGS)
        raise UserError(f'{error} (changed since then: {changed})' if changed else str(error)) from None


def changed_flags(args: argparse.Namespace, checkpoint: dict, names: Iterable[str]) -> str:
    """'name old -> new, ...' of the flags among `names` that are not what they were when the checkpoint was saved."""
    state = checkpoint.get('run_state')
    before = state.get('flags') if isinstance(state, dict) else None
    before = {name: value for name, value in before.items()
              if isinstance(value, (str, int, float, type(None)))} if isinstance(before, dict) else {}
    return ', '.join(f'{name} {before[name]} -> {value}' for name, value in vars(args).items()
                     if name in names and name in before and before[name] != value)


def restore_trained(args: argparse.Namespace, run_dir: Path, model: Model) -> int:
    """`restore_model` where there is nothing to do without weights; their step."""
    step, _ = restore_model(args, run_dir, model)
    if step is None:
        raise UserError(f'{run_dir} has no checkpoint; train first (the same command without render_only or mesh_only) '
                        'or give ft_path')
    return step


# Rendering


def render_only(args: argparse.Namespace, scene: Scene, model: Model, run_dir: Path) -> None:
    """Renders the path or the test views: pictures, disparity pictures, videos and, at full size, test metrics."""
    step = restore_trained(args, run_dir, model)
    kind, poses = ('test', scene.poses[scene.i_test]) if args.render_test else ('path', scene.render_poses)
    folder = run_dir / f'renderonly_{kind}_{step:06d}'
    rgbs, disps, accs = render_path(model, scene, poses, args.render_factor, folder, folder / 'video.mp4')
    if not ranks.first():
        return
    grey = disparity_pictures(disps, accs)
    for i, picture in enumerate(grey):
        save_png(folder / f'disp_{i:03d}.png', picture)
    save_video(folder / 'video_disp.mp4', grey)
    if args.render_test and args.render_factor <= 1:
        mean = save_metrics(folder, step, scene, rgbs)
        print(f"{len(rgbs)} test views: psnr {mean['psnr']:.2f} dB, ssim {mean['ssim']:.4f}")
    print(f'{len(rgbs)} views and their videos are in {folder}')


# Mesh


def export_mesh(args: argparse.Namespace, scene: Scene, model: Model, run_dir: Path) -> None:
    """Writes the surface at density mesh_threshold as a coloured mesh in world coordinates, and a picture of it."""
    if not ranks.first():
        return
    step = restore_trained(args, run_dir, model)
    path = Path(args.mesh_file or run_dir / f'mesh_{step:06d}.ply').expanduser()
    if path.is_dir():
        raise UserError(f'mesh_file {path} is a folder; name a file')
    box = tighten(model.density, seen_box(scene), args.mesh_threshold)
    print(f"box       {', '.join(f'{low:.3f} to {high:.3f}' for low, high in box.T)}"
          + (' in normalised device coordinates' if scene.ndc else ''))
    vertices, faces = extract_surface(model.density, box, args.mesh_grid_size, args.mesh_threshold)
    vertices, faces, dropped = without_floaters(vertices, faces)
    reach = 2.0 * (box[1] - box[0]).max() / args.mesh_grid_size
    mesh = coloured_mesh(model.best, vertices, faces, reach, scene.ndc_camera)
    write_mesh(path, mesh)
    picture = path.with_name(f'{path.stem}_views.png')
    cameras = scene.render_poses[np.arange(4) * len(scene.render_poses) // 4]
    small = coarsened(mesh, vertices)
    draw_views(picture, small, cameras, scene.K, scene.H, scene.W)
    log_mesh(run_dir, small, step)
    print(f'{describe_mesh(mesh, dropped)}\nmesh in {path}, four views of it in {picture}')


# Training


class TileErrors(torch.nn.Module):
    """What is asked of the networks in training, as the module that `DistributedDataParallel` wants."""

    def __init__(self, model: Model):
        super().__init__()
        self.model, self.fields = model, torch.nn.ModuleList(filter(None, [model.coarse, model.fine]))

    def forward(self, rays: Rays, draws: Draws, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean squared error of each pass [P], coarse first, and its colours and the target's [P + 1, R, 3]."""
        shown = [one.rgb for one in self.model.render(rays, draws).passes()]
        errors = torch.stack([img2mse(rgb, target) for rgb in shown])
        return errors, torch.stack([*(rgb.detach() for rgb in shown), target])


class Trainer:
    """What a training step changes, and so what a checkpoint holds: networks, optimiser, scaler, random state."""

    def __init__(self, args: argparse.Namespace, scene: Scene, model: Model):
        self.args, self.model, self.fingerprint = args, model, scene.fingerprint()
        # Fused: it leaves a step out by a flag on the device.
        self.optimizer = torch.optim.Adam(model.parameters(), lr=args.lrate, betas=(0.9, 0.999), fused=True,
                                          capturable=model.device.type == 'cuda')
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=model.coarse.dtype == torch.float16)
        self.generator = torch.Generator(model.device).manual_seed(args.seed)
        self.batcher = RayBatcher(scene, args.N_rand, args.no_batching, args.precrop_iters, args.precrop_frac,
                                  self.generator)
        self.guard = DeadNetworkGuard(model.networks(), self.optimizer, args.seed)
        self.broken = torch.zeros(len(model.networks()) + 1, device=model.device)  # steps in a row, per loss, gradient
        self.viewed = 0  # the last step whose held-out view was logged
        self.rate = torch.zeros((), device=model.device)
        self.tile = TileErrors(model)
        if ranks.count() > 1:
            self.tile = DistributedDataParallel(self.tile)
        self.apply = self.descend
        if model.device.type == 'cuda' and ranks.count() > 1:
            print('steps are not captured in a CUDA graph, as several processes share them')
        elif model.device.type == 'cuda':
            self.apply = CapturedStep(self.descend, self.not_captured)

    def learning_rate(self, step: int) -> float:
        """The rate of a step: it decays to a tenth every lrate_decay thousand steps."""
        return self.args.lrate * 0.1 ** (step / (1000 * self.args.lrate_decay))

    def step(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimiser step on the summed squared errors of all passes; gradients add up over tiles of rays.

        Where a loss or the gradient is not finite the step is drawn but not applied, and `broken` counts it. Of
        several processes each draws all, so that the run is the same on any number, and takes its share.

        Returns:
            mean squared error of each pass [P], coarse first, and the ranges of colours that `DeadNetworkGuard.watch`
            wants [2, P + 1, 3]; nothing waits for the GPU.
        """
        pixels = self.batcher.pixels(step)
        draws = draw(self.args.N_rand, self.model.sampling, self.generator)
        self.rate.fill_(self.learning_rate(step))
        return self.apply(*pixels, *draws)

    def descend(self, image: torch.Tensor, row: torch.Tensor, column: torch.Tensor,
                *draws: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """What `step` does once its pixels [N_rand] and the parts of its `Draws` are drawn; fit for a CUDA graph."""
        start, end = ranks.share(len(image))
        rays, target = self.batcher.rays(image[start:end], row[start:end], column[start:end])
        draws = Draws(*draws).slice(start, end)
        self.optimizer.zero_grad()
        mse, lows, highs = [], [], []
        for start, end in (tiles := self.model.tiles(len(target))):
            last = (start, end) == tiles[-1]  # when the processes' gradients meet
            with nullcontext() if last or ranks.count() == 1 else self.tile.no_sync():
                errors, colours = self.tile(rays.slice(start, end), draws.slice(start, end), target[start:end])
                errors = errors * ((end - start) / len(image))
                self.scaler.scale(ranks.count() * errors.sum()).backward()  # DistributedDataParallel takes the mean
            mse.append(errors.detach())
            lows.append(colours.amin(1))
            highs.append(colours.amax(1))
        mse = ranks.summed(torch.stack(mse).sum(0))
        low, high = -ranks.largest(-torch.stack(lows).amin(0)), ranks.largest(torch.stack(highs).amax(0))
        self._apply(mse)
        return mse, torch.stack([low, high])

    def not_captured(self, reason: str) -> None:
        """Says why, and clears what a step that was broken off between scaler and optimiser has left there."""
        print(f'steps are not captured in a CUDA graph ({reason}); they are as right but slower')
        for name in ('grad_scale', 'found_inf'):
            vars(self.optimizer).pop(name, None)
        state = self.scaler.state_dict()
        self.scaler = torch.amp.GradScaler(self.model.device.type, enabled=self.scaler.is_enabled())
        if state:
            self.scaler.load_state_dict(state)

    def _apply(self, mse: torch.Tensor) -> None:
        """The optimiser's step, unless a loss or the gradient is not finite."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        size = torch.stack(torch._foreach_norm(gradients)).sum()
        if self.scaler.is_enabled():  # which meets overflows in the gradient by itself: they are how it finds its scale
            size = torch.zeros_like(size)
        else:
            self.optimizer.found_inf = (~torch.isfinite(mse.sum() + size)).float()
        bad = ~torch.isfinite(torch.cat([mse, size[None]]))
        self.broken.copy_((self.broken + 1) * bad)
        self.optimizer.param_groups[0]['lr'] = self.rate
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def check(self, step: int) -> list[str]:
        """A line where the last step was not applied; on a GPU, which this waits for, only every BROKEN_STEPS steps.

        Raises:
            UserError: it is the BROKEN_STEPS-th in a row.
        """
        if self.model.device.type != 'cpu' and step % BROKEN_STEPS:
            return []
        names = [f'the loss of the {name} network' for name in self.model.networks()] + ['the gradient']
        count, name = max(zip(self.broken.tolist(), names), key=itemgetter(0))  # waits for the GPU
        if count >= BROKEN_STEPS:
            raise UserError(f'step {step}: {name} was not finite {count:.0f} times in a row; the newest checkpoint is '
                            f'good: start again with a lower lrate than {self.args.lrate:g}, or in fp32')
        return [f'step {step}: {name} is not finite; the step was not applied'] if count else []

    def save(self, run_dir: Path, step: int) -> None:
        """Writes the checkpoint of a step; of several processes the first does."""
        if not ranks.first():
            return
        run_state = {'flags': vars(self.args), 'scene': self.fingerprint, 'scaler': self.scaler.state_dict(),
                     'batcher': self.batcher.state_dict(), 'guard': self.guard.state_dict(), 'viewed': self.viewed}
        checkpoints.save_checkpoint(checkpoints.checkpoint_path(run_dir, step), step, self.model.coarse.network,
                                    self.model.fine and self.model.fine.network, self.optimizer, run_state)

    def resume(self, run_dir: Path) -> int:
        """Goes on from the run's newest checkpoint, or starts from ft_path's weights; the steps done so far."""
        _, checkpoint = restore_model(self.args, run_dir, self.model)
        if self.args.no_reload and ranks.first() and (aside := set_aside(run_dir)):
            print(f'the earlier run in {run_dir} is now in {aside}')
        if checkpoint is None:
            print('starting at step 0')
            return 0
        step, self.viewed = checkpoint['global_step'], checkpoint['global_step']
        with naming_changes(self.args, checkpoint):
            checkpoints.load_optimizer(checkpoint, self.optimizer)
        if checkpoint.get('run_state') is None:  # the reference code's: what it does not hold starts from the seed
            self.generator.manual_seed(self.args.seed + step)
        else:
            self._restore(checkpoint, run_dir)
        print(f'going on at step {step}')
        return step

    def _restore(self, checkpoint: dict, run_dir: Path) -> None:
        """What a checkpoint of this code has beyond the reference code's.

        Raises:
            UserError: it is broken, or of another scene.
        """
        step, state = checkpoint['global_step'], checkpoint['run_state']
        try:
            if state.get('scene', self.fingerprint) != self.fingerprint:
                changed = changed_flags(self.args, checkpoint, DATA_FLAGS) or f'the files in {self.args.datadir}'
                raise UserError(f'{run_dir}: its checkpoint was trained on other data (changed since then: {changed}); '
                                'undo that, or take another expname, with ft_path if it is to start from these weights')
            if changed := changed_flags(self.args, checkpoint, vars(self.args).keys() - {'config', 'no_reload'}):
                print(f'changed since the checkpoint: {changed}')
            if state['scaler']:  # empty where the run was not in fp16
                self.scaler.load_state_dict(state['scaler'])
            self.batcher.load_state_dict(state['batcher'], step)
            self.guard.load_state_dict(state['guard'])
            self.viewed = int(state.get('viewed', step))
        except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f'{checkpoints.checkpoint_path(run_dir, step)}: its run_state is broken ({error!r}); '
                            'remove it, or give it as ft_path of a new expname') from error


def train(args: argparse.Namespace, scene: Scene, model: Model, run_dir: Path) -> None:
    """Trains to N_iters steps, from the newest checkpoint where there is one, logging, saving and rendering."""
    if args.N_rand < ranks.count():
        raise UserError(f'N_rand is {args.N_rand}, the rays of all {ranks.count()} processes in a step; raise it')
    with locked(run_dir) if ranks.first() else nullcontext():
        trainer = Trainer(args, scene, model)
        start = trainer.resume(run_dir)
        missing = ranks.told([start, *(name for name, path in due(args, start, run_dir, trainer.viewed).items()
                                       if not path.exists())])
        if missing.pop(0) != start:
            raise UserError(f'{run_dir} does not have the same checkpoints for all processes; let them share a disk')
        if start >= args.N_iters and not missing:
            print(f'{run_dir} has all {args.N_iters} steps already; raise N_iters to go on, or use --render_only')
            return
        if ranks.first():  # no_reload was for this start, not for those that follow
            record_flags(run_dir, config_text(argparse.Namespace(**vars(args) | {'no_reload': False})), args.config)
        with closing(TrainLog(run_dir if ranks.first() else None, start, args.N_iters, args.i_print,
                              model.device)) as log:
            log.table('flags', vars(args))
            outputs = Outputs(args, scene, model, run_dir, log)
            outputs.make(missing, start)
            train_steps(trainer, start, outputs)
    again = f'python run_nerf.py --config {shlex.quote(str(run_dir / "args.txt"))}'
    print(f'{args.N_iters} steps done, {log.seconds:.0f} s of training, {peak_memory(model.device):.0f} MB at most\n'
          f'everything is in {run_dir}; look at summary.png, or at the curves: tensorboard --logdir {args.basedir}\n'
          f'preview it: {again} --render_only\nmesh it: {again} --mesh_only')


def train_steps(trainer: Trainer, start: int, outputs: Outputs) -> None:
    """The steps behind `start`, with all that is due at each; a signal to stop waits for the step's end and saves."""
    args, log, run_dir = trainer.args, outputs.log, outputs.run_dir
    done = saved = start

    def save(step: int) -> None:
        nonlocal saved
        with stop_signals.deferred(), log.paused():
            if attempt(log, trainer.save, run_dir, step):
                saved = step
    try:
        for step in range(start + 1, args.N_iters + 1):
            with stop_signals.deferred():
                mse, ranges = trainer.step(step)
                done = step
                log.step(step, mse, trainer.learning_rate(step), args.N_rand)
                for line in [*trainer.check(step), *trainer.guard.watch(step, ranges)]:
                    log.say(line)
            if step % args.i_img == 0:  # before the checkpoint, whose run will not do it again
                outputs.make(['view'], step)
                trainer.viewed = step
            if step % args.i_weights == 0 or step == args.N_iters:
                save(step)
            outputs.make(due(args, step, run_dir), step)
    except stop_signals.Stopped:
        if saved < done:
            trainer.save(run_dir, done)
        raise
    if saved < args.N_iters:
        trainer.save(run_dir, args.N_iters)  # once more, and now it is an error


def due(args: argparse.Namespace, step: int, run_dir: Path, viewed: int | None = None) -> dict[str, Path]:
    """What is to be made at a step, methods of `Outputs`, with the file of each that is written last.

    With `viewed`, the last step whose held-out view was logged, that view is among them where it is missing; no file
    tells of it.
    """
    if step == 0:
        return {}
    files = {}
    if viewed is not None and viewed < step and step % args.i_img == 0:
        files['view'] = run_dir / 'no such file'
    if step % args.i_testset == 0:
        files['test_set'] = run_dir / f'testset_{step:06d}' / 'metrics.json'
    if step % args.i_video == 0:
        files['video'] = run_dir / f'{args.expname}_spiral_{step:06d}_disp.mp4'
    if step % args.i_testset == 0 or step == args.N_iters:
        files['summary'] = run_dir / 'summary.png'
    return files


def attempt(log: TrainLog, job: Callable, *args) -> bool:
    """Whether a job that writes files could be done: training goes on where a disk is full for a while."""
    try:
        job(*args)
    except (UserError, OSError) as error:
        log.say(f'warning: {error}; training goes on')
        return False
    return True


class Outputs:
    """What a training run makes at its intervals, beside checkpoints and the lines of the log."""

    def __init__(self, args: argparse.Namespace, scene: Scene, model: Model, run_dir: Path, log: TrainLog):
        self.args, self.scene, self.model, self.run_dir, self.log = args, scene, model, run_dir, log

    def make(self, names: Iterable[str], step: int) -> None:
        """Calls the methods of these names; the time does not count as training. Processes other than the first have
        a part in those alone that render many views."""
        with self.log.paused():
            for name in (name for name in names if ranks.first() or name in SHARED):
                attempt(self.log, getattr(self, name), step)

    def view(self, step: int) -> None:
        """Renders a held-out image for TensorBoard."""
        i = self.scene.i_val[step // self.args.i_img % len(self.scene.i_val)]
        view, target = render_view(self.model, self.scene, self.scene.poses[i]), self.scene.target(i)
        rgb = to8b(view.rgb)
        shown = rgb.astype(np.float32) / 255.0

        def disparity(one: View) -> np.ndarray:
            return disparity_pictures(one.disp[None], one.acc[None])[0]
        pictures = {'rgb': rgb, 'disparity': disparity(view), 'opacity': view.acc.clip(0.0, 1.0), 'target': target,
                    'error': error_map(shown, target)}
        if view.coarse is not None:
            pictures |= {'rgb_coarse': to8b(view.coarse.rgb), 'disparity_coarse': disparity(view.coarse),
                         'z_std': view.z_std / max(view.z_std.max(), 1e-10)}
        for name, picture in pictures.items():
            self.log.picture(f'val/{name}', picture, step)
        self.log.scalar('val/psnr', compare(shown, target)['psnr'], step)
        self.histograms(step, view_rays(self.model, self.scene, self.scene.poses[i]))

    @torch.inference_mode()
    def histograms(self, step: int, rays: Rays) -> None:
        """Densities along some of a view's rays, evenly from near to far, and the weights of what they show."""
        model = self.model
        some = Rays(*(part[::max(1, len(part) // HISTOGRAM_RAYS)] for part in rays))
        z = coarse_depths(some, model.sampling)
        points = some.origins[:, None] + some.directions[:, None] * z[..., None]
        self.log.histogram('val/density', model.best.density(points.reshape(-1, 3)), step)
        weights = [model.render(some.slice(start, end)).final.weights for start, end in model.tiles(len(some.near))]
        self.log.histogram('val/weights', torch.cat(weights), step)

    def test_set(self, step: int) -> None:
        """Renders and measures the test views."""
        folder = self.run_dir / f'testset_{step:06d}'
        rgbs, _, _ = render_path(self.model, self.scene, self.scene.poses[self.scene.i_test], savedir=folder)
        if not ranks.first():
            return
        mean = save_metrics(folder, step, self.scene, rgbs)
        self.log.scalar('test/psnr', mean['psnr'], step)
        self.log.scalar('test/ssim', mean['ssim'], step)
        self.log.say(f"step {step}: {len(rgbs)} test views, psnr {mean['psnr']:.2f} dB, ssim {mean['ssim']:.4f}")

    def video(self, step: int) -> None:
        """Renders the path: a video of what is seen and one of disparity."""
        path = self.run_dir / f'{self.args.expname}_spiral_{step:06d}'
        _, disps, accs = render_path(self.model, self.scene, self.scene.render_poses, self.args.render_factor,
                                     video=path.with_name(f'{path.name}_rgb.mp4'))
        if ranks.first():
            save_video(path.with_name(f'{path.name}_disp.mp4'), disparity_pictures(disps, accs))

    def summary(self, step: int) -> None:
        """Draws summary.png of the steps so far."""
        i_test = self.scene.i_test
        draw_summary(self.run_dir, step, len(i_test), lambda n: self.scene.target(i_test[n]))


# The program


def describe(args: argparse.Namespace, scene: Scene, model: Model) -> str:
    """The block that a run starts with."""
    counts = ', '.join(f'{name} {sum(p.numel() for p in network.parameters()):,} parameters'
                       for name, network in model.networks().items())
    return (f'scene     {args.datadir}: {len(scene.images)} images of {scene.W}x{scene.H}, '
            f'{len(scene.i_train)} train / {len(scene.i_val)} val / {len(scene.i_test)} test, '
            f'near {scene.near:g}, far {scene.far:g}{" (NDC)" * scene.ndc}\n'
            f'networks  {counts}\n'
            f'device    {model.device}, {str(model.coarse.dtype).removeprefix("torch.")}, seed {args.seed}')


def run(args: argparse.Namespace) -> None:
    """Does what the flags say: trains, renders or extracts a mesh."""
    keep_freed_memory()
    job = render_only if args.render_only else export_mesh if args.mesh_only else train
    scene = load_scene(args)
    scene.scaled(args.render_factor)  # an error now rather than at the first video
    device = choose_device(args.device)
    model = create_nerf(args, device, choose_precision(args.precision, device))
    print(describe(args, scene, model))
    with ranks.joined(device):
        job(args, scene, model, Path(args.basedir) / args.expname)


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0 done, 1 cannot do it (one line says why), 130 and 143 stopped by SIGINT and SIGTERM; wrong flags
    exit with 2."""
    try:
        with ranks.one_voice():
            args = parse_flags(argv)
            with stop_signals.handled():
                run(args)
    except stop_signals.Stopped as stopped:
        print(f'stopped by {stopped}', file=sys.stderr)
        return stopped.exit_code
    except (UserError, OSError) as error:
        ranks.say_error(' '.join(str(error).split()))  # one line, whatever a file's text brought in
        return 1
    except torch.OutOfMemoryError:
        ranks.say_error('out of GPU memory; lower chunk and netchunk, or N_rand')
        return 1
    except RuntimeError as error:
        if not ranks.lost_one(error):
            raise
        ranks.say_error('another process of this run has ended; start the same command again, and it goes on from the '
                        'newest checkpoint')
        return 1
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    ranks.leave(main())
