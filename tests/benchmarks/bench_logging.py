"""What logging costs: python tests/benchmarks/bench_logging.py [flags of a run]; prints a line of JSON.

Trains by the given flags (where there are none, the toy chair for 2,000 steps at the default intervals) into a folder
that is removed again. The time in TrainLog's methods, in taking histograms and in drawing summary.png is given as a
share of the time in training steps; so is, by itself, the time in rendering views.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import run_nerf
from nerf import outputs, rendering
from nerf.fields.paper.model import PaperModel
from nerf.train_log import TrainLog
from nerf.training import Trainer

SPENT = Counter()
INSIDE = []  # names of the measured calls under way: only the outermost counts


def measured(function, name: str):
    """The function, with the time that it takes added to what is spent under a name. (On a GPU work that waits in its
    queue would count where it is waited for: measure on a CPU.)"""
    @functools.wraps(function)
    def call(*args, **kwargs):
        INSIDE.append(name)
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            INSIDE.pop()
            if not INSIDE:
                SPENT[name] += time.perf_counter() - began
    return call


def main() -> None:
    """Runs run_nerf.main with its functions measured."""
    for method in ('step', 'scalar', 'picture', 'histogram', 'table', 'say'):
        setattr(TrainLog, method, measured(getattr(TrainLog, method), 'logging'))
    for function in ('draw_summary', 'psnr', 'error_map', 'disparity_pictures'):
        setattr(outputs, function, measured(getattr(outputs, function), 'logging'))
    rendering.compare = measured(rendering.compare, 'logging')
    PaperModel.histograms = measured(PaperModel.histograms, 'logging')
    outputs.render_view = measured(outputs.render_view, 'views')
    Trainer.step = measured(Trainer.step, 'training')
    flags = sys.argv[1:] or ['--config', str(Path(__file__).parents[2] / 'configs' / 'toy_chair.txt'), '--N_iters',
                             '2000', '--i_testset', '50000', '--i_video', '50000']
    with tempfile.TemporaryDirectory() as logs:
        code = run_nerf.main([*flags, '--basedir', logs])
    if code:
        sys.exit(code)
    share = {name: round(SPENT[name] / SPENT['training'], 4) for name in ('logging', 'views')}
    print(json.dumps({'training_s': round(SPENT['training'], 1), 'logging_share': share['logging'],
                      'views_share': share['views']}))


if __name__ == '__main__':
    main()
