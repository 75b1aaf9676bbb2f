"""What a run says: progress bar, console lines, metrics.jsonl, TensorBoard and summary.png."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from nerf.files.checkpoints import whole_file
from nerf.files.images import read_image
from run_nerf_helpers import mse2psnr

SHOW_SECONDS = 1.0  # between updates of the bar's numbers, each of which waits for the GPU
SMOOTHING = 0.02  # share of the newest step in the bar's PSNR
SUMMARY_VIEWS = 4  # test views in summary.png
LARGEST_ERROR = 0.25  # mean over the channels, that an error map can show


class TrainLog:
    """The log of one run, from the step it starts or goes on at.

    Args:
        run_dir: the run's folder; None: nothing is said or written (of several processes the first alone speaks).
        start: steps done before; what an interrupted run logged past them is dropped.
        n_iters: the step at which training ends.
        i_print: steps between lines.
        device: where the run trains.
    """

    def __init__(self, run_dir: Path | None, start: int, n_iters: int, i_print: int, device: torch.device):
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        self.start, self.device, self.i_print, self.n_iters = start, device, i_print, n_iters
        self.metrics_path, self.board, self.seconds = None, None, 0.0
        if run_dir is not None:
            self.metrics_path = run_dir / 'metrics.jsonl'
            self.seconds = self._drop_lines_after(start)  # of training so far, earlier sessions included
            self.board = SummaryWriter(run_dir, purge_step=start + 1)  # also what a run left that died before it saved
        self.bar = tqdm(total=n_iters, initial=start, desc='training', unit='step', dynamic_ncols=True,
                        disable=None if run_dir else True)
        self.rays, self.smooth_mse = 0, None
        self.mark, self.shown = time.perf_counter(), -math.inf

    def step(self, step: int, mse: torch.Tensor, lr: float, n_rays: int) -> None:
        """Counts a step of n_rays; every i_print steps reads and writes its errors.

        Args:
            mse: [P] mean squared error of each pass, coarse first.
        """
        self.bar.update()
        self.rays += n_rays
        fine = mse[-1]
        if self.smooth_mse is not None:
            before = torch.where(self.smooth_mse.isfinite(), self.smooth_mse, fine)
            fine = torch.lerp(before, torch.where(fine.isfinite(), fine, before), SMOOTHING)
        self.smooth_mse = fine
        if step % self.i_print == 0 or step == self.n_iters:
            self._write(step, mse, lr)
        if not self.bar.disable and time.perf_counter() - self.shown > SHOW_SECONDS:
            self.shown = time.perf_counter()
            self.bar.set_postfix_str(f'psnr {mse2psnr(self.smooth_mse).item():.2f} dB, '  # waits for the GPU
                                     f'{n_rays * (self.bar.format_dict["rate"] or 0):.0f} rays/s, lr {lr:.1e}', False)

    def _write(self, step: int, mse: torch.Tensor, lr: float) -> None:
        """A line each for the console and metrics.jsonl, and the scalars of training."""
        errors = mse.tolist()  # waits for the GPU
        if not math.isfinite(sum(errors)):  # of a step that was not applied
            return
        psnrs = mse2psnr(mse.clamp(min=1e-10)).tolist()  # 100 dB at most: JSON has no infinity
        metrics = {'loss': sum(errors), 'psnr': psnrs[-1]}
        if len(psnrs) > 1:
            metrics['psnr0'] = psnrs[0]
        elapsed = time.perf_counter() - self.mark
        self.seconds += elapsed
        metrics |= {'lr': lr, 'rays_per_s': self.rays / elapsed, 'seconds': self.seconds}
        self._append(json.dumps({'step': step, **metrics}) + '\n')
        tags = {'loss': 'train/loss', 'psnr': 'train/psnr', 'psnr0': 'train/psnr_coarse', 'lr': 'train/lr',
                'rays_per_s': 'train/rays_per_second'}
        for key, tag in tags.items():
            if key in metrics:
                self.scalar(tag, metrics[key], step)
        self.scalar('memory/peak_mb', peak_memory(self.device), step)
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
        self._to_board('add_scalar', tag, value, step)

    def picture(self, tag: str, picture, step: int) -> None:
        """A [H, W] or [H, W, 3] picture, uint8 or float in [0, 1], to TensorBoard."""
        self._to_board('add_image', tag, picture, step, dataformats='HWC' if picture.ndim == 3 else 'HW')

    def histogram(self, tag: str, values: torch.Tensor, step: int) -> None:
        values = values[values.isfinite()]
        if not len(values):  # of networks that are no numbers
            return
        self._to_board('add_histogram', tag, values, step)

    def table(self, tag: str, rows: dict) -> None:
        """Names and values as a markdown table in TensorBoard, at the step where this session begins."""
        lines = [f'| {name} | {value} |' for name, value in rows.items()]
        self._to_board('add_text', tag, '\n'.join(['| flag | value |', '| --- | --- |', *lines]), self.start)

    def say(self, message: str) -> None:
        """Prints a line without breaking the progress bar."""
        self.bar.write(message, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        self.bar.close()
        self._to_board('close')

    def _append(self, line: str) -> None:
        """A whole line to metrics.jsonl, or nothing."""
        if self.metrics_path is None:
            return
        try:
            self._write_line(line)
        except OSError as error:
            self.say(f'warning: {self.metrics_path} cannot be written ({error}); training goes on')

    def _write_line(self, line: str) -> None:
        with open(self.metrics_path, 'ab', buffering=0) as file:
            size = file.tell()
            if file.write(line.encode()) < len(line):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _to_board(self, method: str, *args, **kwargs) -> None:
        """Calls the TensorBoard writer, until it cannot write any more."""
        if self.board is None:
            return
        try:
            getattr(self.board, method)(*args, **kwargs)
        except OSError as error:
            self.board = None
            self.say(f'warning: TensorBoard cannot be written to any more ({error}); training goes on')

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


def draw_summary(run_dir: Path, step: int, n_views: int, target: Callable[[int], np.ndarray]) -> None:
    """Draws summary.png from the files of a run: PSNR over steps and over time, and views of the newest test set.

    Args:
        run_dir: its metrics.jsonl and testset_NNNNNN folders are read.
        step: test sets of later steps, which a run that started again from before them left, are not shown.
        n_views: test views that the run has now.
        target: what the nth of them should be, [H, W, 3] in [0, 1].
    """
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in (run_dir / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()]
    tests = [json.loads(path.read_text(encoding='utf-8')) for path in run_dir.glob('testset_*/metrics.json')]
    tests = sorted((test for test in tests if test['step'] <= step), key=lambda test: test['step'])
    views = _test_views(run_dir, tests[-1], n_views, target) if tests else []
    figure = Figure(figsize=(12, 12 if views else 4), layout='constrained')
    top, *below = figure.subfigures(2, 1, height_ratios=(1, 2)) if views else [figure]
    _draw_curves(top, lines, tests)
    if views:
        below[0].suptitle(f"test set of step {tests[-1]['step']}: rendered, target, and error (white: {LARGEST_ERROR} "
                          'or more)')
        grid = below[0].subplots(3, len(views), squeeze=False)
        for column, (psnr, *pictures) in zip(grid.T, views):
            column[0].set_title(f'{psnr:.2f} dB')
            for axes, picture in zip(column, pictures):
                axes.imshow(picture, cmap='magma', vmin=0.0, vmax=1.0)
                axes.axis('off')
    with whole_file(run_dir / 'summary.png') as partial:
        figure.savefig(partial, format='png', dpi=100)


def _draw_curves(figure, lines: list[dict], tests: list[dict]) -> None:
    """PSNR over steps and over time, from the lines of metrics.jsonl and the test sets' metrics."""
    steps, minutes = [line['step'] for line in lines], [line['seconds'] / 60.0 for line in lines]
    for axes, x, label in zip(figure.subplots(1, 2, sharey=True), (steps, minutes), ('step', 'minutes of training')):
        if any('psnr0' in line for line in lines):
            axes.plot(x, [line.get('psnr0', math.nan) for line in lines], ':', label='training, coarse', linewidth=1)
        axes.plot(x, [line['psnr'] for line in lines], label='training', linewidth=1)
        if tests and lines:
            axes.plot(np.interp([test['step'] for test in tests], steps, x),
                      [test['mean']['psnr'] for test in tests], 'o', label='test views, mean')
        axes.set(xlabel=label, ylabel='PSNR in dB')
        axes.grid(alpha=0.3)
        axes.legend()


def _test_views(run_dir: Path, test: dict, n_views: int, target: Callable[[int], np.ndarray]) -> list[tuple]:
    """(PSNR, rendered, target, error map) of the first views of a test set; none where it is of other images."""
    if len(test['images']) != n_views:
        return []
    views = []
    for n, row in enumerate(test['images'][:SUMMARY_VIEWS]):
        rendered = read_image(run_dir / f"testset_{test['step']:06d}" / row['file'])[..., :3] / 255.0
        wanted = target(n)
        if rendered.shape != wanted.shape:
            return []
        views.append((row['psnr'], rendered, wanted, error_map(rendered, wanted)))
    return views
