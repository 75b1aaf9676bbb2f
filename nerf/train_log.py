"""Log of a training run: progress bar, console lines, metrics.jsonl and TensorBoard."""

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

from nerf.files.whole_file import whole_file
from nerf.runtime.terminal import as_text
from run_nerf_helpers import mse2psnr

SHOW_SECONDS = 1.0  # seconds between updates of the bar's numbers. Each update waits for the GPU
SMOOTHING = 0.02  # share of the newest step in the PSNR, or the loss, of the bar
TAGS = {'psnr0': 'psnr_coarse', 'rays_per_s': 'rays_per_second'}  # names in TensorBoard that differ from the JSON's


class TrainLog:
    """Log of one run, from `start`, the number of steps done, to step `n_iters`, with lines every `i_print` steps.
    Lines of later steps than `start`, left by an interrupted run, are dropped. Without `run_dir` nothing is printed or
    written, as in processes of rank 1 and above. `scalars` returns further numbers, by name, for each line; `clock`
    returns the time in seconds."""

    def __init__(self, run_dir: Path | None, start: int, n_iters: int, i_print: int, device: torch.device,
                 scalars: Callable[[], dict[str, float]] = dict, clock: Callable[[], float] = time.perf_counter):
        from tqdm import tqdm

        self.start, self.device, self.i_print, self.n_iters = start, device, i_print, n_iters
        self.scalars, self.clock = scalars, clock
        self.metrics_path, self.board, self.seconds = None, None, 0.0
        if run_dir is not None:
            self.metrics_path = run_dir / 'metrics.jsonl'
            self.seconds = self._drop_lines_after(start)  # seconds of training, those of earlier starts included
            self.board = open_board(run_dir, purge_step=start + 1)  # hides later steps of a run that was killed
        self.bar = tqdm(total=n_iters, initial=start, desc='training', unit='step', dynamic_ncols=True,
                        disable=None if run_dir else True)
        self.latest, self.rays, self.smooth, self.has_mse = start, 0, None, False
        self.mark, self.shown, self.since = clock(), -math.inf, None

    def step(self, step: int, losses: dict[str, torch.Tensor], lr: float, n_rays: int) -> None:
        """Counts a step, from 1, and logs it every i_print steps. Losses are scalars by name: 'mse' is logged as psnr,
        'mse0' as psnr0, any other by its name."""
        self.bar.update()
        self.latest, self.has_mse = step, 'mse' in losses
        self.rays += n_rays
        newest = losses['mse'] if self.has_mse else sum(losses.values())
        if self.smooth is not None:
            before = torch.where(self.smooth.isfinite(), self.smooth, newest)
            newest = torch.lerp(before, torch.where(newest.isfinite(), newest, before), SMOOTHING)
        self.smooth = newest
        if step % self.i_print == 0 or step == self.n_iters:
            self._write(step, losses, lr)
        if not self.bar.disable and self.clock() - self.shown > SHOW_SECONDS:
            self.shown = self.clock()
            self.bar.set_postfix_str(f'{self._quality()}, {n_rays * (self.bar.format_dict["rate"] or 0):.0f} rays/s, '
                                     f'lr {lr:.1e}', False)

    def training_psnr(self) -> float | None:
        """Smoothed PSNR of training in dB; None before the first step and without 'mse'. This waits for the GPU."""
        return _psnr(self.smooth.item()) if self.smooth is not None and self.has_mse else None

    def _quality(self) -> str:
        """Smoothed PSNR, or smoothed loss of a training without 'mse'; this waits for the GPU."""
        value = self.smooth.item()
        return f'PSNR {_psnr(value):.2f} dB' if self.has_mse else f'loss {value:.5f}'

    def _write(self, step: int, losses: dict[str, torch.Tensor], lr: float) -> None:
        """Writes a line to the console and one to metrics.jsonl, and the scalars of training to TensorBoard."""
        values = dict(zip(losses, torch.stack([*losses.values()]).tolist()))  # waits for the GPU
        loss = sum(values.values())
        if not math.isfinite(loss):  # the step was skipped
            return
        now = self.clock()
        speed, self.seconds = self.rays / (now - self.mark), self.seconds + now - self.mark
        psnrs = {name: _psnr(values.pop(key)) for key, name in (('mse', 'psnr'), ('mse0', 'psnr0')) if key in values}
        metrics = {'loss': loss, **psnrs, **values, 'lr': lr, 'rays_per_s': speed, 'seconds': self.seconds}
        of_field = self.scalars()
        self._append(json.dumps({'step': step, **metrics, **of_field}) + '\n')
        for name, value in of_field.items():
            self.scalar(f'field/{name}', value, step)
        for key in (key for key in metrics if key != 'seconds'):
            self.scalar(f'train/{TAGS.get(key, key)}', metrics[key], step)
        self.scalar('memory/peak_mb', peak_memory(self.device), step)
        fits = f"psnr {psnrs['psnr']:.2f} dB" if 'psnr' in psnrs else ''
        fits += f" (coarse {psnrs['psnr0']:.2f})" if 'psnr0' in psnrs else ''
        self.say('  '.join(filter(None, [f'step {step}/{self.n_iters}', f'loss {loss:.5f}', fits, f'lr {lr:.2e}',
                                         f'{speed:.0f} rays/s', f'{self.seconds:.0f} s'])))
        self.rays, self.mark = 0, self.clock()

    @contextmanager
    def paused(self):
        """Context for work, as rendering or saving, that does not count as training time."""
        self.since = self.clock()
        yield
        self.mark, self.since = self.mark + self.clock() - self.since, None

    def status(self) -> str:
        """Line about the newest step, for the viewer; this waits for the GPU."""
        elapsed = (self.clock() if self.since is None else self.since) - self.mark
        return ', '.join(filter(None, [
            f'step {self.latest} of {self.n_iters}', self.smooth is not None and self._quality(),
            self.rays and f'{self.rays / elapsed:,.0f} rays/s', f'{self.seconds + elapsed:.0f} s']))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Adds a number to TensorBoard."""
        self._to_board(lambda board: board.add_scalar(tag, value, step))

    def picture(self, tag: str, picture, step: int) -> None:
        """Adds a picture [H, W] or [H, W, 3], uint8 or float in [0, 1], to TensorBoard."""
        self._to_board(lambda board: board.add_image(tag, picture, step, dataformats='HWC'[:picture.ndim]))

    def histogram(self, tag: str, values: torch.Tensor, step: int) -> None:
        """Adds a histogram of the finite values of a tensor to TensorBoard."""
        values = values[values.isfinite()]
        if len(values):
            self._to_board(lambda board: board.add_histogram(tag, values, step))

    def table(self, tag: str, rows: dict) -> None:
        """Adds names and values to TensorBoard, as a markdown table at the first step of this start."""
        lines = ['| flag | value |', '| --- | --- |', *(f'| {name} | {value} |' for name, value in rows.items())]
        self._to_board(lambda board: board.add_text(tag, as_text('\n'.join(lines)), self.start))

    def say(self, message: str) -> None:
        """Prints a line without breaking the progress bar."""
        if self.metrics_path is not None:
            self.bar.write(message, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Ends the progress bar and writes the last of TensorBoard's data."""
        self.bar.close()
        self._to_board(lambda board: board.close())

    def _append(self, line: str) -> None:
        """Writes a line to metrics.jsonl, whole or not at all."""
        if self.metrics_path is None:
            return
        try:
            with open(self.metrics_path, 'ab', buffering=0) as file:
                size = file.tell()
                if file.write(line.encode()) < len(line):
                    file.truncate(size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.say(f'warning: {self.metrics_path} cannot be written ({error}); training goes on')

    def _to_board(self, write: Callable) -> None:
        """Calls `write` with TensorBoard's writer, up to the writer's first error."""
        try:
            if self.board is not None:
                write(self.board)
        except OSError as error:
            self.board = None
            self.say(f'warning: TensorBoard cannot be written to any more ({error}); training goes on')

    def _drop_lines_after(self, start: int) -> float:
        """Drops lines of steps after `start` from metrics.jsonl; returns the seconds of training in the last line."""
        kept, seconds = [], 0.0
        if self.metrics_path.is_file():
            for line in self.metrics_path.read_text(encoding='utf-8').splitlines():
                try:
                    metrics = json.loads(line)
                    if metrics['step'] <= start:
                        kept, seconds = kept + [line + '\n'], metrics['seconds']
                except (ValueError, KeyError, TypeError):
                    continue  # a line cut short by a crash
        with whole_file(self.metrics_path) as partial:
            partial.write_text(''.join(kept), encoding='utf-8')
        return seconds


def open_board(run_dir: Path, **options):
    """SummaryWriter of TensorBoard in a folder. TensorBoard refuses a path that is no text, so it gets that of the
    folder's open file; Linux is the system with such names."""
    from torch.utils.tensorboard import SummaryWriter

    try:
        str(run_dir).encode()
    except UnicodeEncodeError:
        run_dir = f'/proc/self/fd/{os.open(run_dir, os.O_RDONLY)}'
    return SummaryWriter(run_dir, **options)


def _psnr(mse: float) -> float:
    """PSNR in dB of a mean squared error; at most 100, because JSON has no infinity."""
    return float(mse2psnr(torch.tensor(max(mse, 1e-10), dtype=torch.float64)))


def peak_memory(device: torch.device) -> float:
    """Peak memory of this process in MB: of the GPU if `device` is one, else of RAM."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2 ** 20
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 20 if sys.platform == 'darwin' else 2 ** 10)


def log_mesh(run_dir: Path, mesh, step: int) -> None:
    """Adds a trimesh.Trimesh with vertex colours to the TensorBoard data of a run."""
    vertices, colours, faces = (torch.from_numpy(np.array(part)[None]) for part in (
        mesh.vertices, mesh.visual.vertex_colors[:, :3], mesh.faces))
    with open_board(run_dir) as board:
        board.add_mesh('mesh', vertices.float(), colours, faces.int(), global_step=step)
