"""Trains and renders a neural radiance field from posed images.

    python run_nerf.py --config configs/toy_chair.txt
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import checkpoints
from dead_networks import DeadNetworkGuard
from errors import UserError
from extract_mesh import (
    coarsened, coloured_mesh, describe_mesh, draw_views, extract_surface, seen_box, tighten, without_floaters,
    write_mesh,
)
from flags import config_parser, config_text, parse_flags, uses_ndc  # noqa: F401 (config_parser is looked for here)
from images import compare, disparity_pictures, write_png, write_video
from run_nerf_helpers import (
    NO_DRAWS, Draws, NeRF, RadianceField, Rays, RenderResult, Sampling, bundle_rays, draw, get_embedder, get_rays,
    img2mse, ndc_disparity, pixel_rays, render_rays, stratified_z, to8b,
)
from scene import Scene, blender_scene, deepvoxels_scene, llff_scene, target_colours
from train_log import TrainLog, draw_summary, error_map, log_mesh, peak_memory

CPU_TILE = 12288 * 256  # points times channels through a layer at once on a CPU: larger activations leave the cache
HISTOGRAM_RAYS = 1000  # rays of a held-out view that TensorBoard's histograms are taken from
SUMMARY_VIEWS = 4  # test views in summary.png

# Device and scene


def choose_device(name: str) -> torch.device:
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the MLP's products; auto is bf16 only where it is multiplied natively, as emulation is slow."""
    if name == 'auto':
        if device.type == 'cuda':
            native = torch.cuda.get_device_capability(device) >= (8, 0)
        else:
            found = torch.cpu.get_capabilities()
            native = found.get('avx512_bf16') or found.get('amx_bf16')
        name = 'bf16' if native else 'fp32'
    return {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}[name]


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


class RayBatcher:
    """Draws each step's rays and the colours they should have; rays are made from sampled pixels and never stored.

    Args:
        scene: the training images and cameras, kept as uint8 on the device.
        n_rays: rays per step.
        no_batching: a step's rays from one image, each pixel at most once; else each pixel of all images once per
            epoch, in shuffled order.
        precrop_iters: with no_batching, steps that sample only the central precrop_frac of both sides.
        generator: decides all draws; its device is where the rays are made.
    """

    def __init__(self, scene: Scene, n_rays: int, no_batching: bool, precrop_iters: int, precrop_frac: float,
                 generator: torch.Generator):
        device = generator.device
        self.scene, self.n_rays, self.no_batching, self.generator = scene, n_rays, no_batching, generator
        self.images = torch.from_numpy(scene.images[scene.i_train]).to(device)
        self.poses = torch.from_numpy(scene.poses[scene.i_train]).to(device)
        self.K = torch.from_numpy(scene.K).float().to(device)
        self.precrop_iters = precrop_iters if no_batching else 0
        self.crop = (max(1, int(scene.H * precrop_frac)), max(1, int(scene.W * precrop_frac)))
        height, width = self.crop if self.precrop_iters else (scene.H, scene.W)
        available = height * width * (1 if no_batching else len(self.images))
        if n_rays > available:
            raise UserError(f'N_rand is {n_rays} but a step can draw only {available} pixels; lower N_rand'
                            + (', raise precrop_frac' if self.precrop_iters else '')
                            + (' or leave no_batching off' if no_batching else ''))
        self.epoch_seed, self.order, self.used = 0, None, 0

    def next(self, step: int) -> tuple[Rays, torch.Tensor]:
        """Rays and target colours [n_rays, 3] of a step, counted from 1."""
        image, row, column = self._from_one_image(step) if self.no_batching else self._from_all_images()
        scene = self.scene
        origins, directions = pixel_rays(row, column, self.K, self.poses[image])
        target = target_colours(self.images[image, row, column], scene.white_bkgd)
        return bundle_rays(origins, directions, scene.near, scene.far, scene.ndc_camera), target

    def _from_one_image(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        device, scene = self.generator.device, self.scene
        height, width = self.crop if step <= self.precrop_iters else (scene.H, scene.W)
        image = torch.randint(len(self.images), (1,), generator=self.generator, device=device).expand(self.n_rays)
        pixel = torch.randperm(height * width, generator=self.generator, device=device)[:self.n_rays]
        return image, (scene.H - height) // 2 + pixel // width, (scene.W - width) // 2 + pixel % width

    def _from_all_images(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.order is None:
            self._shuffle()
        pixel = self.order[self.used:self.used + self.n_rays]
        self.used += self.n_rays
        if len(pixel) < self.n_rays:  # the epoch ends within this step
            self._shuffle()
            self.used = self.n_rays - len(pixel)
            pixel = torch.cat([pixel, self.order[:self.used]])
        pixel = pixel.long()
        return (pixel // (self.scene.H * self.scene.W), pixel // self.scene.W % self.scene.H, pixel % self.scene.W)

    def _shuffle(self, epoch_seed: int | None = None) -> None:
        """A new order of all pixels, from a seed that alone goes into the checkpoint."""
        if epoch_seed is None:
            epoch_seed = torch.randint(2 ** 62, (), generator=self.generator, device=self.generator.device).item()
        self.epoch_seed, self.used = epoch_seed, 0
        n_pixels = len(self.images) * self.scene.H * self.scene.W
        order = torch.randperm(n_pixels, generator=torch.Generator().manual_seed(epoch_seed),
                               dtype=torch.int32 if n_pixels < 2 ** 31 else torch.int64)
        self.order = order.to(self.generator.device)

    def state_dict(self) -> dict:
        return {'device': self.generator.device.type, 'generator': self.generator.get_state(),
                'epoch_seed': self.epoch_seed, 'used': self.used, 'shuffled': self.order is not None}

    def load_state_dict(self, state: dict, step: int) -> None:
        """Goes on where `state_dict` was taken; on another kind of device, whose generator differs, from a new seed."""
        if state['device'] == self.generator.device.type:
            self.generator.set_state(state['generator'])
        else:
            self.generator.manual_seed(self.generator.initial_seed() + step)
        if state['shuffled']:
            self._shuffle(state['epoch_seed'])
            self.used = state['used']


# Networks


@dataclass
class Model:
    """The two fields and how rays go through them."""

    coarse: RadianceField
    fine: RadianceField | None  # None: one pass only
    sampling: Sampling
    chunk: int  # most rays rendered at once

    def networks(self) -> dict[str, NeRF]:
        fields = {'coarse': self.coarse, 'fine': self.fine}
        return {name: field.network for name, field in fields.items() if field is not None}

    def parameters(self) -> list[torch.nn.Parameter]:
        """Coarse first, as the reference code's optimiser counts them."""
        return [parameter for network in self.networks().values() for parameter in network.parameters()]

    @property
    def device(self) -> torch.device:
        return next(self.coarse.parameters()).device

    def tiles(self, n_rays: int) -> list[tuple[int, int]]:
        """(start, end) of the pieces in which n_rays are rendered; how they are cut does not change the result."""
        return [(start, min(start + self.chunk, n_rays)) for start in range(0, n_rays, self.chunk)]

    @property
    def best(self) -> RadianceField:
        return self.coarse if self.fine is None else self.fine

    @torch.inference_mode()
    def density(self, points: np.ndarray) -> np.ndarray:
        """points [N, 3] to the best field's density [N], float32."""
        tile = self.chunk * (self.sampling.N_samples + self.sampling.N_importance)
        parts = torch.from_numpy(points).to(self.device).split(tile)
        return torch.cat([self.best.density(part) for part in parts]).cpu().numpy()

    def render(self, rays: Rays, draws: Draws = NO_DRAWS) -> RenderResult:
        """Renders rays all at once: the caller tiles them."""
        return render_rays(rays, self.coarse, self.fine, self.sampling, draws)


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
        chunk=rays_at_once(args, device))


def rays_at_once(args: argparse.Namespace, device: torch.device) -> int:
    """Rays in a tile: `chunk`, and on a CPU no more than keep a layer's activations in the cache."""
    if device.type != 'cpu':
        return args.chunk
    channels = max(args.netwidth, args.netwidth_fine if args.N_importance else 0)
    return min(args.chunk, max(1, CPU_TILE // (channels * (args.N_samples + args.N_importance))))


def restore_model(args: argparse.Namespace, run_dir: Path, model: Model) -> tuple[int | None, dict | None]:
    """Loads the weights to start from: the run's newest checkpoint, else ft_path, else none.

    Returns:
        the step that the weights are from (None: there are none), and the whole checkpoint where it is this run's own.
    """
    afresh = args.no_reload and not (args.render_only or args.mesh_only)
    newest = None if afresh else checkpoints.newest_checkpoint(run_dir)
    if newest and args.ft_path:
        print(f'ft_path {args.ft_path} is not used: the run has a checkpoint of its own', file=sys.stderr)
    path = newest or (args.ft_path and Path(args.ft_path).expanduser())
    if path is None:
        return None, None
    checkpoint = checkpoints.read_checkpoint(path)
    checkpoints.load_networks(checkpoint, path, model.coarse.network, model.fine and model.fine.network)
    print(f"weights from {path} (step {checkpoint['global_step']})")
    return checkpoint['global_step'], checkpoint if newest else None


def restore_trained(args: argparse.Namespace, run_dir: Path, model: Model) -> int:
    """`restore_model` where there is nothing to do without weights; their step."""
    step, _ = restore_model(args, run_dir, model)
    if step is None:
        raise UserError(f'{run_dir} has no checkpoint; train first (the same command without render_only or mesh_only) '
                        'or give ft_path')
    return step


# Rendering


class View(NamedTuple):
    """What a camera sees: [H, W] or [H, W, 3] float32."""

    rgb: np.ndarray
    disp: np.ndarray  # 1 / depth, in NDC too
    acc: np.ndarray
    coarse: View | None = None  # what the coarse pass alone would have shown; None without a fine pass
    z_std: np.ndarray | None = None  # spread of the fine samples along the ray


def view_rays(model: Model, scene: Scene, pose: np.ndarray, factor: int = 0) -> Rays:
    """The rays of a camera [3, 4], row by row, at 1/factor of the size, on the model's device."""
    origins, directions = get_rays(*scene.scaled(factor), torch.from_numpy(pose).to(model.device))
    return bundle_rays(origins, directions, scene.near, scene.far, scene.ndc_camera)


@torch.inference_mode()
def render_view(model: Model, scene: Scene, pose: np.ndarray, factor: int = 0, bar: tqdm | None = None) -> View:
    """Renders what a camera [3, 4] sees, at 1/factor of the size; `bar` counts its rays."""
    rays = view_rays(model, scene, pose, factor)
    parts = []
    for start, end in model.tiles(len(rays.near)):
        seen = model.render(rays.slice(start, end))
        columns = [part for one in reversed(seen.passes())
                   for part in (one.rgb, (ndc_disparity(one) if scene.ndc else one.disp)[:, None], one.acc[:, None])]
        parts.append(torch.cat(columns if seen.z_std is None else [*columns, seen.z_std[:, None]], -1))
        if bar is not None:
            bar.update(end - start)
    image = torch.cat(parts).reshape(*scene.scaled(factor)[:2], -1).cpu().numpy()

    def view(first: int, *rest) -> View:
        return View(image[..., first:first + 3], image[..., first + 3], image[..., first + 4], *rest)
    return view(0) if image.shape[-1] == 5 else view(0, view(5), image[..., 10])


def render_path(model: Model, scene: Scene, poses: np.ndarray, factor: int = 0,
                savedir: Path | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Renders a view from each pose, with a progress bar.

    Args:
        model: the trained fields.
        scene: its intrinsics and bounds.
        poses: [N, 3, 4] camera-to-world.
        factor: render at 1/factor of the size.
        savedir: where each view is written as 000.png, ... as soon as it is done.

    Returns:
        rgbs [N, h, w, 3] uint8, disparities [N, h, w] and opacities [N, h, w] float32.
    """
    H, W, _ = scene.scaled(factor)
    rgbs = np.empty((len(poses), H, W, 3), np.uint8)
    disps, accs = np.empty((2, len(poses), H, W), np.float32)
    with tqdm(total=len(poses) * H * W, desc='rendering', unit='ray', unit_scale=True, disable=None,
              leave=False) as bar:
        for i, pose in enumerate(poses):
            view = render_view(model, scene, pose, factor, bar)
            rgbs[i], disps[i], accs[i] = to8b(view.rgb), view.disp, view.acc
            if savedir:
                save_png(savedir / f'{i:03d}.png', rgbs[i])
    return rgbs, disps, accs


def emptied(folder: Path) -> Path:
    """The folder without the pictures and numbers of an earlier render, which a smaller one would leave in between."""
    for pattern in ('*.png', '*.mp4', 'metrics.json'):
        for path in folder.glob(pattern):
            path.unlink()
    return folder


def save_png(path: Path, picture: np.ndarray) -> None:
    with checkpoints.whole_file(path) as partial:
        write_png(partial, picture)


def save_video(path: Path, frames: np.ndarray) -> None:
    with checkpoints.whole_file(path) as partial:
        write_video(partial, frames)


def save_metrics(folder: Path, step: int, scene: Scene, rgbs: np.ndarray) -> dict[str, float]:
    """Compares the rendered test views as saved, [N, H, W, 3] uint8, with the images; writes and returns the mean."""
    views = tqdm(zip(rgbs, scene.i_test), 'measuring', len(rgbs), disable=None, leave=False)
    rows = [{'file': f'{n:03d}.png', **compare(rgb.astype(np.float32) / 255.0, scene.target(i))}
            for n, (rgb, i) in enumerate(views)]
    mean = {key: float(np.mean([row[key] for row in rows])) for key in ('psnr', 'ssim')}
    with checkpoints.whole_file(folder / 'metrics.json') as partial:
        partial.write_text(json.dumps({'step': step, 'mean': mean, 'images': rows}, indent=1) + '\n', encoding='utf-8')
    return mean


def render_only(args: argparse.Namespace, scene: Scene, model: Model, run_dir: Path) -> None:
    """Renders the path or the test views: pictures, disparity pictures, videos and, at full size, test metrics."""
    step = restore_trained(args, run_dir, model)
    kind, poses = ('test', scene.poses[scene.i_test]) if args.render_test else ('path', scene.render_poses)
    folder = emptied(run_dir / f'renderonly_{kind}_{step:06d}')
    rgbs, disps, accs = render_path(model, scene, poses, args.render_factor, folder)
    grey = disparity_pictures(disps, accs)
    for i, picture in enumerate(grey):
        save_png(folder / f'disp_{i:03d}.png', picture)
    save_video(folder / 'video.mp4', rgbs)
    save_video(folder / 'video_disp.mp4', grey)
    if args.render_test and args.render_factor <= 1:
        mean = save_metrics(folder, step, scene, rgbs)
        print(f"{len(rgbs)} test views: psnr {mean['psnr']:.2f} dB, ssim {mean['ssim']:.4f}")
    print(f'{len(rgbs)} views and their videos are in {folder}')


# Mesh


def export_mesh(args: argparse.Namespace, scene: Scene, model: Model, run_dir: Path) -> None:
    """Writes the surface at density mesh_threshold as a coloured mesh in world coordinates, and a picture of it."""
    step = restore_trained(args, run_dir, model)
    path = Path(args.mesh_file or run_dir / f'mesh_{step:06d}.ply').expanduser()
    box = tighten(model.density, seen_box(scene), args.mesh_threshold)
    print(f"box       {', '.join(f'{low:.3f} to {high:.3f}' for low, high in box.T)}"
          + (' in normalised device coordinates' if scene.ndc else ''))
    vertices, faces = extract_surface(model.density, box, args.mesh_grid_size, args.mesh_threshold)
    vertices, faces, dropped = without_floaters(vertices, faces)
    reach = 2.0 * (box[1] - box[0]).max() / args.mesh_grid_size
    mesh = coloured_mesh(model.best, vertices, faces, reach, scene.ndc_camera)
    write_mesh(path, mesh)
    picture = path.with_suffix('.png')
    cameras = scene.render_poses[np.arange(4) * len(scene.render_poses) // 4]
    draw_views(picture, mesh, cameras, scene.K, scene.H, scene.W)
    log_mesh(run_dir, coarsened(mesh), step)
    print(f'{describe_mesh(mesh, dropped)}\nmesh in {path}, four views of it in {picture}')


# Training


class Trainer:
    """What a training step changes, and so what a checkpoint holds: networks, optimiser, scaler, random state."""

    def __init__(self, args: argparse.Namespace, scene: Scene, model: Model):
        self.args, self.model = args, model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=args.lrate, betas=(0.9, 0.999))
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=model.coarse.dtype == torch.float16)
        self.generator = torch.Generator(model.device).manual_seed(args.seed)
        self.batcher = RayBatcher(scene, args.N_rand, args.no_batching, args.precrop_iters, args.precrop_frac,
                                  self.generator)
        self.guard = DeadNetworkGuard(model.networks(), self.optimizer, args.seed)

    def learning_rate(self, step: int) -> float:
        """The rate of a step: it decays to a tenth every lrate_decay thousand steps."""
        return self.args.lrate * 0.1 ** (step / (1000 * self.args.lrate_decay))

    def step(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimiser step on the summed squared errors of all passes; gradients add up over tiles of rays.

        Returns:
            mean squared error of each pass [P], coarse first, and the ranges of colours that `DeadNetworkGuard.watch`
            wants [2, P + 1, 3]; without a gradient scaler nothing waits for the GPU.
        """
        rays, target = self.batcher.next(step)
        draws = draw(len(target), self.model.sampling, self.generator)
        self.optimizer.param_groups[0]['lr'] = self.learning_rate(step)
        self.optimizer.zero_grad()
        mse, lows, highs = [], [], []
        for start, end in self.model.tiles(len(target)):
            passes = self.model.render(rays.slice(start, end), draws.slice(start, end)).passes()
            share = (end - start) / len(target)
            errors = share * torch.stack([img2mse(one.rgb, target[start:end]) for one in passes])
            self.scaler.scale(errors.sum()).backward()
            mse.append(errors.detach())
            colours = torch.stack([one.rgb.detach() for one in passes] + [target[start:end]])  # [P + 1, tile, 3]
            lows.append(colours.amin(1))
            highs.append(colours.amax(1))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return torch.stack(mse).sum(0), torch.stack([torch.stack(lows).amin(0), torch.stack(highs).amax(0)])

    def save(self, run_dir: Path, step: int) -> None:
        run_state = {'flags': vars(self.args), 'scaler': self.scaler.state_dict(), 'batcher': self.batcher.state_dict(),
                     'guard': self.guard.state_dict()}
        checkpoints.save_checkpoint(checkpoints.checkpoint_path(run_dir, step), step, self.model.coarse.network,
                                    self.model.fine and self.model.fine.network, self.optimizer, run_state)

    def resume(self, run_dir: Path) -> int:
        """Goes on from the run's newest checkpoint, or starts from ft_path's weights; the steps done so far."""
        _, checkpoint = restore_model(self.args, run_dir, self.model)
        if self.args.no_reload and (aside := checkpoints.set_aside(run_dir)):
            print(f'the earlier run in {run_dir} is now in {aside}')
        if checkpoint is None:
            print('starting at step 0')
            return 0
        checkpoints.load_optimizer(checkpoint, self.optimizer)
        step, state = checkpoint['global_step'], checkpoint.get('run_state')
        if state is None:  # the reference code's: what it does not hold starts from the seed
            self.generator.manual_seed(self.args.seed + step)
        else:
            if state['scaler']:  # empty where the run was not in fp16
                self.scaler.load_state_dict(state['scaler'])
            self.batcher.load_state_dict(state['batcher'], step)
            self.guard.load_state_dict(state['guard'])
        print(f'going on at step {step}')
        return step


def train(args: argparse.Namespace, scene: Scene, model: Model, run_dir: Path) -> None:
    """Trains to N_iters steps, from the newest checkpoint where there is one, logging, saving and rendering."""
    trainer = Trainer(args, scene, model)
    start = trainer.resume(run_dir)
    interrupted = start > 0 and not all(path.exists() for path in renders_due(args, start, run_dir).values())
    if start >= args.N_iters and not interrupted:
        print(f'{run_dir} has all {args.N_iters} steps already; raise N_iters to go on, or use --render_only')
        return
    record_flags(args, run_dir)
    with closing(TrainLog(run_dir, start, args.N_iters, args.i_print, model.device)) as log:
        log.table('flags', vars(args))
        if interrupted:
            render_due(log, start, args, scene, model, run_dir)
        for step in range(start + 1, args.N_iters + 1):
            mse, ranges = trainer.step(step)
            log.step(step, mse, trainer.learning_rate(step), args.N_rand)
            for line in trainer.guard.watch(step, ranges):
                log.say(line)

            with log.paused():
                if step % args.i_weights == 0 or step == args.N_iters:
                    trainer.save(run_dir, step)
                if step % args.i_img == 0:
                    log_view(log, step, scene, model, scene.i_val[step // args.i_img % len(scene.i_val)])
                render_due(log, step, args, scene, model, run_dir)
    draw_summary(run_dir, summary_targets(scene))
    print(f'{args.N_iters} steps done, {log.seconds:.0f} s of training, {peak_memory(model.device):.0f} MB at most\n'
          f'everything is in {run_dir}; look at summary.png, or at the curves: tensorboard --logdir {args.basedir}\n'
          f'preview it: python run_nerf.py --config {run_dir / "args.txt"} --render_only\n'
          f'mesh it: python run_nerf.py --config {run_dir / "args.txt"} --mesh_only')


def summary_targets(scene: Scene) -> list[np.ndarray]:
    return [scene.target(i) for i in scene.i_test[:SUMMARY_VIEWS]]


def renders_due(args: argparse.Namespace, step: int, run_dir: Path) -> dict[str, Path]:
    """What is to be rendered at a step, with the file of each that is written last."""
    due = {}
    if step % args.i_testset == 0:
        due['test set'] = run_dir / f'testset_{step:06d}' / 'metrics.json'
    if step % args.i_video == 0:
        due['path'] = run_dir / f'{args.expname}_spiral_{step:06d}_disp.mp4'
    return due


def render_due(log: TrainLog, step: int, args: argparse.Namespace, scene: Scene, model: Model, run_dir: Path) -> None:
    """Renders and measures the test views, and writes the videos of the render path, where they are due at a step."""
    due = renders_due(args, step, run_dir)
    if 'test set' in due:
        log_test_set(log, step, scene, model, due['test set'].parent)
        draw_summary(run_dir, summary_targets(scene))
    if 'path' in due:
        rgbs, disps, accs = render_path(model, scene, scene.render_poses, args.render_factor)
        save_video(run_dir / f'{args.expname}_spiral_{step:06d}_rgb.mp4', rgbs)
        save_video(due['path'], disparity_pictures(disps, accs))


def log_view(log: TrainLog, step: int, scene: Scene, model: Model, i: int) -> None:
    """Renders held-out image i for TensorBoard."""
    view, target = render_view(model, scene, scene.poses[i]), scene.target(i)
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
        log.picture(f'val/{name}', picture, step)
    log.scalar('val/psnr', compare(shown, target)['psnr'], step)
    log_histograms(log, step, model, view_rays(model, scene, scene.poses[i]))


@torch.inference_mode()
def log_histograms(log: TrainLog, step: int, model: Model, rays: Rays) -> None:
    """Densities along some of a view's rays, evenly from near to far, and the weights of what they show."""
    some = Rays(*(part[::max(1, len(part) // HISTOGRAM_RAYS)] for part in rays))
    z = stratified_z(some.near, some.far, model.sampling.N_samples, model.sampling.lindisp)
    points = some.origins[:, None] + some.directions[:, None] * z[..., None]
    log.histogram('val/density', model.best.density(points.reshape(-1, 3)), step)
    weights = [model.render(some.slice(start, end)).final.weights for start, end in model.tiles(len(some.near))]
    log.histogram('val/weights', torch.cat(weights), step)


def log_test_set(log: TrainLog, step: int, scene: Scene, model: Model, folder: Path) -> None:
    """Renders and measures the test views."""
    rgbs, _, _ = render_path(model, scene, scene.poses[scene.i_test], savedir=emptied(folder))
    mean = save_metrics(folder, step, scene, rgbs)
    log.scalar('test/psnr', mean['psnr'], step)
    log.scalar('test/ssim', mean['ssim'], step)
    log.say(f"step {step}: {len(rgbs)} test views, psnr {mean['psnr']:.2f} dB, ssim {mean['ssim']:.4f}")


def record_flags(args: argparse.Namespace, run_dir: Path) -> None:
    """Writes args.txt, what ran it and every flag's final value, and config.txt, the config file as given."""
    flags = argparse.Namespace(**vars(args) | {'no_reload': False})  # it was for this start, not for those that follow
    ran_by = f'# python {platform.python_version()}\n# torch {torch.__version__}\n# code {code_version()}\n'
    with checkpoints.whole_file(run_dir / 'args.txt') as partial:
        partial.write_text(ran_by + config_text(flags), encoding='utf-8')
    if args.config and Path(args.config).resolve().parent != run_dir.resolve():
        with checkpoints.whole_file(run_dir / 'config.txt') as partial:
            partial.write_bytes(Path(args.config).read_bytes())


def code_version() -> str:
    """The git commit of this code, with '-dirty' behind it where tracked files differ from it; else 'unknown'."""
    command = ['git', '-C', str(Path(__file__).parent), 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or a copy without its history
        return 'unknown'


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
    scene = load_scene(args)
    scene.scaled(args.render_factor)  # an error now rather than at the first video
    device = choose_device(args.device)
    model = create_nerf(args, device, choose_precision(args.precision, device))
    print(describe(args, scene, model))
    job = render_only if args.render_only else export_mesh if args.mesh_only else train
    job(args, scene, model, Path(args.basedir) / args.expname)


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0 done, 1 cannot do it (one line says why); wrong flags exit with 2."""
    args = parse_flags(argv)
    try:
        run(args)
    except (UserError, OSError) as error:
        print('error:', *str(error).split(), file=sys.stderr)  # one line, whatever a file's text brought in
        return 1
    except torch.OutOfMemoryError:
        print('error: out of GPU memory; lower chunk and netchunk, or N_rand', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
