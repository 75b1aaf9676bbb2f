"""What a run reports: progress bar, console lines, metrics.jsonl and TensorBoard."""

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
from run_nerf_helpers import mse2psnr

SHOW_SECONDS = 1.0  # between updates of the bar's numbers, each of which waits for the GPU
SMOOTHING = 0.02  # share of the newest step in the bar's PSNR
TAGS = {'psnr0': 'psnr_coarse', 'rays_per_s': 'rays_per_second'}  # TensorBoard's names where they are not the JSON's


class TrainLog:
    """The log of one run, from the step it starts or goes on at.

    Args:
        run_dir: the run's folder; None: nothing is printed or written (only rank 0 does).
        start: steps done before; what an interrupted run logged after them is dropped.
        n_iters: the step at which training ends.
        i_print: steps between lines.
        device: where the run trains.
        scalars: gives further numbers, by name, for each line.
    """

    def __init__(self, run_dir: Path | None, start: int, n_iters: int, i_print: int, device: torch.device,
                 scalars: Callable[[], dict[str, float]] = dict):
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        self.start, self.device, self.i_print, self.n_iters = start, device, i_print, n_iters
        self.scalars = scalars
        self.metrics_path, self.board, self.seconds = None, None, 0.0
        if run_dir is not None:
            self.metrics_path = run_dir / 'metrics.jsonl'
            self.seconds = self._drop_lines_after(start)  # of training so far, earlier sessions included
            self.board = SummaryWriter(run_dir, purge_step=start + 1)  # also what a run left that died before it saved
        self.bar = tqdm(total=n_iters, initial=start, desc='training', unit='step', dynamic_ncols=True,
                        disable=None if run_dir else True)
        self.latest, self.rays, self.smooth_mse = start, 0, None
        self.mark, self.shown, self.since = time.perf_counter(), -math.inf, None

    def step(self, step: int, losses: dict[str, torch.Tensor], lr: float, n_rays: int) -> None:
        """Counts a step of n_rays; every i_print steps reads and writes its losses.

        Args:
            losses: scalars by name. 'mse' is logged as psnr, 'mse0' as psnr0, others by their names.
        """
        self.bar.update()
        self.latest = step
        self.rays += n_rays
        mse = losses.get('mse', sum(losses.values()))  # a field without it shows the sum of its losses
        if self.smooth_mse is not None:
            before = torch.where(self.smooth_mse.isfinite(), self.smooth_mse, mse)
            mse = torch.lerp(before, torch.where(mse.isfinite(), mse, before), SMOOTHING)
        self.smooth_mse = mse
        if step % self.i_print == 0 or step == self.n_iters:
            self._write(step, losses, lr)
        if not self.bar.disable and time.perf_counter() - self.shown > SHOW_SECONDS:
            self.shown = time.perf_counter()
            self.bar.set_postfix_str(f'psnr {mse2psnr(self.smooth_mse).item():.2f} dB, '  # waits for the GPU
                                     f'{n_rays * (self.bar.format_dict["rate"] or 0):.0f} rays/s, lr {lr:.1e}', False)

    def _write(self, step: int, losses: dict[str, torch.Tensor], lr: float) -> None:
        """A line each for the console and metrics.jsonl, and the scalars of training."""
        values = dict(zip(losses, torch.stack([*losses.values()]).tolist()))  # waits for the GPU
        if not math.isfinite(sum(values.values())):  # the step was skipped
            return
        loss = sum(values.values())
        metrics = {'loss': loss, 'psnr': _psnr(values.pop('mse', loss))}
        if 'mse0' in values:
            metrics['psnr0'] = _psnr(values.pop('mse0'))
        metrics |= values
        elapsed = time.perf_counter() - self.mark
        self.seconds += elapsed
        metrics |= {'lr': lr, 'rays_per_s': self.rays / elapsed, 'seconds': self.seconds}
        of_model = self.scalars()
        self._append(json.dumps({'step': step, **metrics, **of_model}) + '\n')
        for name, value in of_model.items():
            self.scalar(f'field/{name}', value, step)
        for key in (key for key in metrics if key != 'seconds'):
            self.scalar(f'train/{TAGS.get(key, key)}', metrics[key], step)
        self.scalar('memory/peak_mb', peak_memory(self.device), step)
        coarse = f" (coarse {metrics['psnr0']:.2f})" if 'psnr0' in metrics else ''
        self.say(f"step {step}/{self.n_iters}  loss {metrics['loss']:.5f}  psnr {metrics['psnr']:.2f} dB{coarse}  "
                 f"lr {lr:.2e}  {metrics['rays_per_s']:.0f} rays/s  {self.seconds:.0f} s")
        self.rays, self.mark = 0, time.perf_counter()

    @contextmanager
    def paused(self):
        """What is done inside (rendering, saving) does not count as training time."""
        self.since = time.perf_counter()
        yield
        self.mark, self.since = self.mark + time.perf_counter() - self.since, None

    def status(self) -> str:
        """A line about the run as it is now, for the viewer; waits for the GPU."""
        elapsed = (self.since or time.perf_counter()) - self.mark
        parts = [f'step {self.latest} of {self.n_iters}']
        if self.smooth_mse is not None:
            parts.append(f'PSNR {mse2psnr(self.smooth_mse).item():.2f} dB')
        if self.rays:
            parts.append(f'{self.rays / elapsed:,.0f} rays/s')
        return ', '.join([*parts, f'{self.seconds + elapsed:.0f} s'])

    def scalar(self, tag: str, value: float, step: int) -> None:
        self._to_board(lambda board: board.add_scalar(tag, value, step))

    def picture(self, tag: str, picture, step: int) -> None:
        """A [H, W] or [H, W, 3] picture, uint8 or float in [0, 1], to TensorBoard."""
        layout = 'HWC' if picture.ndim == 3 else 'HW'
        self._to_board(lambda board: board.add_image(tag, picture, step, dataformats=layout))

    def histogram(self, tag: str, values: torch.Tensor, step: int) -> None:
        values = values[values.isfinite()]
        if not len(values):  # of networks that are no numbers
            return
        self._to_board(lambda board: board.add_histogram(tag, values, step))

    def table(self, tag: str, rows: dict) -> None:
        """Names and values as a markdown table in TensorBoard, at the step where this session begins."""
        lines = [f'| {name} | {value} |' for name, value in rows.items()]
        text = '\n'.join(['| flag | value |', '| --- | --- |', *lines])
        self._to_board(lambda board: board.add_text(tag, text, self.start))

    def say(self, message: str) -> None:
        """Prints a line without breaking the progress bar."""
        if self.metrics_path is None:
            return
        self.bar.write(message, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        self.bar.close()
        self._to_board(lambda board: board.close())

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

    def _to_board(self, write: Callable) -> None:
        """Calls `write` with TensorBoard's writer, until that cannot write any more."""
        if self.board is None:
            return
        try:
            write(self.board)
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


def _psnr(mse: float) -> float:
    """In dB, 100 at most: JSON has no infinity."""
    return -10.0 * math.log10(max(mse, 1e-10))


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
