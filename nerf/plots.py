"""Figures of a run: PSNR over time, and test views with error maps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nerf.files.images import read_image
from nerf.files.whole_file import whole_file

SUMMARY_VIEWS = 4  # test views in summary.png
LARGEST_ERROR = 0.25  # white in an error map


def error_map(rendered: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Error map [H, W] of pictures [H, W, 3] in [0, 1]: mean absolute difference per LARGEST_ERROR, at most 1."""
    return (np.abs(rendered - target).mean(-1) / LARGEST_ERROR).clip(0.0, 1.0)


def draw_summary(run_dir: Path, step: int, n_views: int, target: Callable[[int], np.ndarray]) -> None:
    """Draws `summary_figure` to summary.png in the folder of a run."""
    with whole_file(run_dir / 'summary.png') as partial:
        summary_figure(run_dir, step, n_views, target).savefig(partial, format='png', dpi=100)


def summary_figure(run_dir: Path, step: int, n_views: int, target: Callable[[int], np.ndarray]):
    """Matplotlib figure of a run: PSNR over steps and time, from metrics.jsonl, and views of the newest test set.
    Test sets of later steps, as a run started again can have, or of another number of views are not shown.
    `target` returns the image [H, W, 3] in [0, 1] of test view n."""
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
    return figure


def _draw_curves(figure, lines: list[dict], tests: list[dict]) -> None:
    """Draws PSNR over steps and over time, from the lines of metrics.jsonl and the test sets' metrics."""
    steps, minutes = [line['step'] for line in lines], [line['seconds'] / 60.0 for line in lines]
    for axes, x, label in zip(figure.subplots(1, 2, sharey=True), (steps, minutes), ('step', 'minutes of training')):
        for name, what, style in (('psnr0', 'training, coarse', ':'), ('psnr', 'training', '-')):
            if any(name in line for line in lines):  # a field without the loss 'mse' logs no PSNR
                axes.plot(x, [line.get(name, math.nan) for line in lines], style, label=what, linewidth=1)
        if tests and lines:
            axes.plot(np.interp([test['step'] for test in tests], steps, x),
                      [test['mean']['psnr'] for test in tests], 'o', label='test views, mean')
        axes.set(xlabel=label, ylabel='PSNR in dB')
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()


def _test_views(run_dir: Path, test: dict, n_views: int, target: Callable[[int], np.ndarray]) -> list[tuple]:
    """PSNR, rendered picture, image and error map of the first views of a test set; empty if its images are others."""
    if len(test['images']) != n_views:
        return []
    views = []
    for n, row in enumerate(test['images'][:SUMMARY_VIEWS]):
        rendered = read_image(run_dir / f"testset_{test['step']:06d}" / row['file'])[..., :3] / 255.0
        if rendered.shape != (wanted := target(n)).shape:
            return []
        views.append((row['psnr'], rendered, wanted, error_map(rendered, wanted)))
    return views
