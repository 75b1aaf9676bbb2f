"""What a run says: progress bar, console lines, metrics.jsonl, TensorBoard and summary.png."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from checkpoints import whole_file
from errors import UserError
from run_nerf_helpers import mse2psnr

SHOW_SECONDS = 1.0  # between updates of the bar's numbers, each of which waits for the GPU
SMOOTHING = 0.02  # share of the newest step in the bar's PSNR
LARGEST_ERROR = 0.25  # mean over the channels, that an error map can show


class TrainLog:
    """The log of one run, from the step it starts or goes on at.

    Args:
        run_dir: the run's folder.
        start: steps done before; what an interrupted run logged past them is dropped.
        n_iters: the step at which training ends.
        i_print: steps between lines.
        device: where the run trains.
    """

    def __init__(self, run_dir: Path, start: int, n_iters: int, i_print: int, device: torch.device):
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        self.metrics_path, self.i_print, self.n_iters = run_dir / 'metrics.jsonl', i_print, n_iters
        self.start, self.device = start, device
        self.seconds = self._drop_lines_after(start)  # of training so far, earlier sessions included
        self.board = SummaryWriter(run_dir, purge_step=start + 1)  # also what a run left that died before it saved
        self.bar = tqdm(total=n_iters, initial=start, desc='training', unit='step', disable=None, dynamic_ncols=True)
        self.rays, self.smooth_mse = 0, None
        self.mark = self.shown = time.perf_counter()

    def step(self, step: int, mse: torch.Tensor, lr: float, n_rays: int) -> None:
        """Counts a step of n_rays; every i_print steps reads and writes its errors.

        Args:
            mse: [P] mean squared error of each pass, coarse first.
        """
        self.bar.update()
        self.rays += n_rays
        fine = mse[-1]
        self.smooth_mse = fine if self.smooth_mse is None else torch.lerp(self.smooth_mse, fine, SMOOTHING)
        if step % self.i_print == 0 or step == self.n_iters:
            self._write(step, mse, lr)
        if not self.bar.disable and time.perf_counter() - self.shown > SHOW_SECONDS:
            self.shown = time.perf_counter()
            self.bar.set_postfix_str(f'psnr {mse2psnr(self.smooth_mse).item():.2f} dB, '  # waits for the GPU
                                     f'{n_rays * (self.bar.format_dict["rate"] or 0):.0f} rays/s, lr {lr:.1e}', False)

    def _write(self, step: int, mse: torch.Tensor, lr: float) -> None:
        """A line each for the console and metrics.jsonl, and the scalars of training."""
        errors = mse.tolist()  # waits for the GPU
        if not math.isfinite(sum(errors)):
            raise UserError(f'step {step}: the loss is {sum(errors)}; lower lrate (now {lr:g}) and start the same '
                            'command again, which goes on from the newest checkpoint')
        psnrs = mse2psnr(mse.clamp(min=1e-10)).tolist()  # 100 dB at most: JSON has no infinity
        metrics = {'loss': sum(errors), 'psnr': psnrs[-1]}
        if len(psnrs) > 1:
            metrics['psnr0'] = psnrs[0]
        elapsed = time.perf_counter() - self.mark
        self.seconds += elapsed
        metrics |= {'lr': lr, 'rays_per_s': self.rays / elapsed, 'seconds': self.seconds}
        with open(self.metrics_path, 'a', encoding='utf-8') as file:
            file.write(json.dumps({'step': step, **metrics}) + '\n')
        tags = {'loss': 'train/loss', 'psnr': 'train/psnr', 'psnr0': 'train/psnr_coarse', 'lr': 'train/lr',
                'rays_per_s': 'train/rays_per_second'}
        for key, tag in tags.items():
            if key in metrics:
                self.board.add_scalar(tag, metrics[key], step)
        self.board.add_scalar('memory/peak_mb', peak_memory(self.device), step)
        coarse = f" (coarse {metrics['psnr0']:.2f})" if len(psnrs) > 1 else ''
        self.say(f"step {step}/{self.n_iters}  loss {metrics['loss']:.5f}  psnr {metrics['psnr']:.2f} dB{coarse}  "
                 f"lr {lr:.2e}  {metrics['rays_per_s']:.0f} rays/s  {self.seconds:.0f} s")
        self.rays, self.mark = 0, time.perf_counter()

    @contextmanager
    def paused(self):
        """What is done inside (rendering, saving) does not count as training time."""
        began = time.perf_counter()
        yield
        self.mark += time.perf_counter() - began

    def scalar(self, tag: str, value: float, step: int) -> None:
        self.board.add_scalar(tag, value, step)

    def picture(self, tag: str, picture, step: int) -> None:
        """A [H, W] or [H, W, 3] picture, uint8 or float in [0, 1], to TensorBoard."""
        self.board.add_image(tag, picture, step, dataformats='HWC' if picture.ndim == 3 else 'HW')

    def histogram(self, tag: str, values: torch.Tensor, step: int) -> None:
        self.board.add_histogram(tag, values, step)

    def table(self, tag: str, rows: dict) -> None:
        """Names and values as a markdown table in TensorBoard, at the step where this session begins."""
        lines = [f'| {name} | {value} |' for name, value in rows.items()]
        self.board.add_text(tag, '\n'.join(['| flag | value |', '| --- | --- |', *lines]), self.start)

    def say(self, message: str) -> None:
        """Prints a line without breaking the progress bar."""
        self.bar.write(message, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        self.bar.close()
        self.board.close()

    def _drop_lines_after(self, start: int) -> float:
        """Keeps the metrics of the steps up to `start`; the seconds of training that the last of them counts."""
        kept, seconds = [], 0.0
        if self.metrics_path.is_file():
            for line in self.metrics_path.read_text(encoding='utf-8').splitlines():
                try:
                    metrics = json.loads(line)
                    if metrics['step'] <= start:
                        kept, seconds = kept + [line + '\n'], metrics['seconds']
                except (ValueError, KeyError, TypeError):
                    continue  # a line that a crash cut short
        with whole_file(self.metrics_path) as partial:
            partial.write_text(''.join(kept), encoding='utf-8')
        return seconds


def peak_memory(device: torch.device) -> float:
    """The most memory in MB that this process held so far: on the GPU where it trains there, else in RAM."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2 ** 20
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 20 if sys.platform == 'darwin' else 2 ** 10)


def log_mesh(run_dir: Path, mesh, step: int) -> None:
    """Adds a trimesh.Trimesh with vertex colours to the run's TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(run_dir) as board:
        vertices, colours, faces = (np.array(part)[None] for part in (
            mesh.vertices, mesh.visual.vertex_colors[:, :3], mesh.faces))
        board.add_mesh('mesh', torch.from_numpy(vertices).float(), torch.from_numpy(colours),
                       torch.from_numpy(faces).int(), global_step=step)


def error_map(rendered: np.ndarray, target: np.ndarray) -> np.ndarray:
    """[H, W] in [0, 1]: the mean over channels of the absolute difference of pictures [H, W, 3] in [0, 1], where 1 is
    LARGEST_ERROR or more."""
    return (np.abs(rendered - target).mean(-1) / LARGEST_ERROR).clip(0.0, 1.0)


def draw_summary(run_dir: Path, targets: Sequence[np.ndarray]) -> None:
    """Draws summary.png from the files of a run: PSNR over steps and over time, and views of the newest test set.

    Args:
        run_dir: its metrics.jsonl and testset_NNNNNN folders are read.
        targets: [H, W, 3] in [0, 1], what the first test views should be; one column each.
    """
    import matplotlib.image
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in (run_dir / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()]
    tests = [json.loads(path.read_text(encoding='utf-8')) for path in sorted(run_dir.glob('testset_*/metrics.json'))]
    newest = run_dir / f"testset_{tests[-1]['step']:06d}" if tests else None
    figure = Figure(figsize=(12, 12 if newest else 4), layout='constrained')
    curves, *views = figure.subfigures(2, 1, height_ratios=(1, 2)) if newest else [figure]
    steps, minutes = [line['step'] for line in lines], [line['seconds'] / 60.0 for line in lines]
    for axes, x, label in zip(curves.subplots(1, 2, sharey=True), (steps, minutes), ('step', 'minutes of training')):
        for key, style, name in (('psnr0', ':', 'training, coarse'), ('psnr', '-', 'training, fine')):
            axes.plot(x, [line.get(key, math.nan) for line in lines], style, label=name, linewidth=1)
        if tests and lines:
            axes.plot(np.interp([test['step'] for test in tests], steps, x),
                      [test['mean']['psnr'] for test in tests], 'o', label='test views, mean')
        axes.set(xlabel=label, ylabel='PSNR in dB')
        axes.grid(alpha=0.3)
        axes.legend()
    if newest:
        views[0].suptitle(f"{newest.name}: rendered, target, and error (white: {LARGEST_ERROR} or more)")
        grid = views[0].subplots(3, len(targets), squeeze=False)
        for n, target in enumerate(targets):
            rendered = matplotlib.image.imread(newest / f'{n:03d}.png')[..., :3]
            for axes, picture in zip(grid[:, n], (rendered, target, error_map(rendered, target))):
                axes.imshow(picture, cmap='magma', vmin=0.0, vmax=1.0)
                axes.axis('off')
            grid[0, n].set_title(f"{tests[-1]['images'][n]['psnr']:.2f} dB")
    with whole_file(run_dir / 'summary.png') as partial:
        figure.savefig(partial, format='png', dpi=100)
