"""Training run that is killed with SIGKILL again and again, compared with a run that is not killed.

    python tests/kill_harness.py --kills 200
    python tests/kill_harness.py --kills 50 --field grid

The real script trains a small scene; each start is killed at a random moment: during start-up, training, saving,
rendering or logging. The last start ends by itself. Prints a line of JSON; the exit code is 1 if the two differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
FLAGS = ['--dataset_type', 'blender', '--white_bkgd', '--use_viewdirs', '--netdepth', '2', '--netwidth', '16',
         '--netdepth_fine', '2', '--netwidth_fine', '16', '--multires', '3', '--multires_views', '2',
         '--N_samples', '8', '--N_importance', '8', '--N_rand', '64', '--testskip', '1', '--device', 'cpu',
         '--seed', '3', '--i_print', '10', '--i_img', '40', '--i_weights', '20', '--i_testset', '100',
         '--i_video', '300', '--render_factor', '2']
SMALL_GRID = ['--field', 'grid', '--grid_stages', '0:8 0.3:12 0.6:16']
LINES = 8  # of progress, at most, that a start may print before it is killed


def command(scene: Path, logs: Path, steps: int, field: str = 'mlp') -> list[str]:
    """A run of the mlp, or of a grid of a few cells."""
    flags = [*FLAGS, *SMALL_GRID] if field == 'grid' else FLAGS
    return [sys.executable, '-u', str(ROOT / 'run_nerf.py'), *flags, '--datadir', str(scene), '--basedir', str(logs),
            '--expname', 'run', '--N_iters', str(steps)]


def start(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=os.environ | {'OMP_NUM_THREADS': '1'})


def kill_until_done(arguments: list[str], kills: int, rng: random.Random) -> int:
    """Starts a run and kills it, `kills` times, then starts it once more to its end; the number of starts that were
    killed before they ended.

    A quarter of the starts die within seconds, the others after a random line of progress, at any step, because
    training goes on meanwhile.
    """
    killed = 0
    for _ in range(kills):
        process = start(arguments)
        if rng.random() < 0.25:
            time.sleep(rng.uniform(0.0, 4.0))
        else:
            lines = rng.randint(1, LINES)
            while lines and (line := process.stdout.readline()):
                lines -= line.startswith(b'step ')
            time.sleep(rng.uniform(0.0, 0.1))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        _, error = process.communicate()
        if process.returncode not in (0, -signal.SIGKILL):
            raise AssertionError(f'exit code {process.returncode}: {error.decode()}')
    finish(arguments)
    return killed


def finish(arguments: list[str]) -> None:
    """Starts a run and waits for its end."""
    process = start(arguments)
    _, error = process.communicate()
    assert process.returncode == 0, error.decode()


def same(a, b) -> bool:
    """Whether values of two checkpoints are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def differences(killed: Path, whole: Path, steps: int) -> list[str]:
    """Differences between the folders of a killed run and of a whole one."""
    found = []
    a, b = (torch.load(folder / f'{steps:06d}.tar', weights_only=True) for folder in (killed, whole))
    for checkpoint in (a, b):
        checkpoint['run_state']['flags'].pop('basedir')
    found += [f'checkpoint: {key}' for key in b if not same(a.get(key), b[key])]
    lines = [[json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
             for folder in (killed, whole)]
    timeless = [[{key: value for key, value in line.items() if key not in ('seconds', 'rays_per_s')} for line in part]
                for part in lines]
    if timeless[0] != timeless[1]:
        found.append('metrics.jsonl')
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob('*')
                    if path.is_file() and not path.name.startswith('events.')) for folder in (killed, whole)]
    if names[0] != names[1]:
        found.append(f'files: {sorted(set(names[0]) ^ set(names[1]))}')
    for path in whole.rglob('testset_*/*.png'):
        if not np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(killed / path.relative_to(whole)))):
            found.append(str(path.relative_to(whole)))
    return found


def compare_runs(scene: Path, folder: Path, kills: int, steps: int, seed: int, field: str = 'mlp') -> dict:
    """Trains a scene once whole and once with kills; their differences, and figures."""
    began = time.perf_counter()
    finish(command(scene, folder / 'whole', steps, field))
    killed = kill_until_done(command(scene, folder / 'killed', steps, field), kills, random.Random(seed))
    return {'kills': killed, 'steps': steps,
            'differences': differences(folder / 'killed' / 'run', folder / 'whole' / 'run', steps),
            'seconds': round(time.perf_counter() - began)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=30)
    parser.add_argument('--steps', type=int, default=3000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--field', choices=('mlp', 'grid'), default='mlp')
    parser.add_argument('--scene', type=Path, default=ROOT / 'data' / 'toy_chair')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = compare_runs(options.scene, Path(folder), options.kills, options.steps, options.seed,
                              options.field)
    print(json.dumps(result))
    return bool(result['differences'])


if __name__ == '__main__':
    sys.exit(main())
