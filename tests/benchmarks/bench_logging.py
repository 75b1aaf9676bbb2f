"""Cost of logging: python tests/benchmarks/bench_logging.py [flags of a run]; prints a line of JSON.

Trains by the flags (without flags: the toy chair for 2,000 steps at the default intervals) into a temporary folder,
under Python's profiler. Time in TrainLog's methods, in histograms, in metrics and in summary.png is given as a share of
the time in training steps, and so is the time in rendering held-out views. Measure on a CPU: on a GPU, queued work is
counted where the program waits for it.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import run_nerf
from nerf.fields.paper.field import PaperField
from nerf.files.images import disparity_pictures
from nerf.metrics import compare, psnr
from nerf.plots import draw_summary, error_map
from nerf.rendering import render_view
from nerf.train_log import TrainLog
from nerf.training import Trainer

LOGGING = [TrainLog.step, TrainLog.scalar, TrainLog.picture, TrainLog.histogram, TrainLog.table, TrainLog.say,
           draw_summary, psnr, error_map, disparity_pictures, compare, PaperField.histograms]


def seconds_in(profile: cProfile.Profile, functions: Iterable[Callable]) -> float:
    """Seconds spent in functions, without calls of one from another."""
    stats, codes = pstats.Stats(profile).stats, [getattr(one, '__wrapped__', one).__code__ for one in functions]
    keys = {(code.co_filename, code.co_firstlineno, code.co_name) for code in codes}
    return sum(cumulative for key in keys & stats.keys() for caller, (_, _, _, cumulative) in stats[key][4].items()
               if caller not in keys)


def main() -> None:
    """Trains and measures."""
    flags = sys.argv[1:] or ['--config', str(Path(__file__).parents[2] / 'configs' / 'toy_chair.txt'), '--N_iters',
                             '2000', '--i_testset', '50000', '--i_video', '50000']
    profile = cProfile.Profile()
    with tempfile.TemporaryDirectory() as logs:
        if code := profile.runcall(run_nerf.main, [*flags, '--basedir', logs]):
            sys.exit(code)
    training = seconds_in(profile, [Trainer.step])
    print(json.dumps({'training_s': round(training, 1),
                      'logging_share': round(seconds_in(profile, LOGGING) / training, 4),
                      'views_share': round(seconds_in(profile, [render_view]) / training, 4)}))


if __name__ == '__main__':
    main()
