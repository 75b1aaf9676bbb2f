"""What a training run says while it runs: progress bar, console lines, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import math
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from checkpoints import whole_file
from errors import UserError
from run_nerf_helpers import mse2psnr


class TrainLog:
    """The log of one run, from the step it starts or goes on at.

    Args:
        run_dir: the run's folder.
        start: steps done before; what an interrupted run logged past them is dropped.
        n_iters: the step at which training ends.
        i_print: steps between lines.
    """

    def __init__(self, run_dir: Path, start: int, n_iters: int, i_print: int):
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        self.metrics_path, self.i_print, self.n_iters = run_dir / 'metrics.jsonl', i_print, n_iters
        self.seconds = self._drop_lines_after(start)  # of training so far, earlier sessions included
        self.board = SummaryWriter(run_dir, purge_step=start + 1)  # also what a run left that died before it saved
        self.bar = tqdm(total=n_iters, initial=start, desc='training', unit='step', disable=None, dynamic_ncols=True)
        self.rays = 0
        self.mark = time.perf_counter()

    def step(self, step: int, mse: torch.Tensor, lr: float, n_rays: int) -> None:
        """Counts a step of n_rays; every i_print steps reads and writes its errors.

        Args:
            mse: [P] mean squared error of each pass, coarse first.
        """
        self.bar.update()
        self.rays += n_rays
        if step % self.i_print and step != self.n_iters:
            return
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
