"""Quality in bf16 and fp32: python tests/benchmarks/compare_precision.py --factor 4 -- <flags of a run>

Trains the run of these flags once in fp32 and once in bf16, from the same seed, each to N_iters, and renders the test
views of each in its own precision, at every `factor`-th pixel of every `factor`-th row (the pixels of render_factor).
Prints a line of JSON: the PSNR in dB over all those pixels of each, and the difference.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import run_nerf  # noqa: E402
from conftest import trainer_of  # noqa: E402
from nerf.files.checkpoints import read_newest  # noqa: E402
from nerf.flags import parse_flags  # noqa: E402
from nerf.rendering import render_view  # noqa: E402


def held_out_psnr(flags: list[str], factor: int) -> float:
    """Trains, and compares the test views with the images: PSNR in dB of the mean error of all pixels of all views."""
    never = ['--i_img', '1000000', '--i_testset', '1000000', '--i_video', '1000000']
    if run_nerf.main([*flags, *never]):
        sys.exit(1)
    args, trainer = parse_flags(flags), trainer_of(flags)
    _, checkpoint = read_newest(Path(args.basedir) / args.expname)
    trainer.field.load_weights(checkpoint.get('averaged', checkpoint))
    scene, errors = trainer.batcher.scene, []
    for i in scene.i_test:
        camera = scene.cameras.take([i])
        height, width = (side // factor * factor for side in camera.size(0))
        shown = render_view(trainer.field.sampler(), scene.space, camera.scaled(factor)).rgb
        errors.append(np.mean((shown - scene.target(i)[:height:factor, :width:factor]) ** 2))
    return -10.0 * float(np.log10(np.mean(errors)))


def main() -> None:
    """Measures both precisions, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--factor', type=int, default=4)
    parser.add_argument('flags', nargs='+', help='of the run')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as logs:
        psnr = {precision: held_out_psnr([*options.flags, '--precision', precision, '--basedir', logs, '--expname',
                                          precision], options.factor) for precision in ('bf16', 'fp32')}
    print(json.dumps({name: round(value, 3) for name, value in psnr.items()}
                     | {'difference': round(psnr['bf16'] - psnr['fp32'], 3)}))


if __name__ == '__main__':
    main()
