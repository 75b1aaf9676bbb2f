"""Time of a start: python tests/benchmarks/bench_startup.py [flags of a run]

Seconds for importing torch alone, for --help, and from the start to the end of the first step by the flags (without
flags: the toy chair's config). Each is started five times, in turns; medians are printed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]


def seconds(command: list[str], until: str | None = None) -> float:
    """Seconds from the start of a command to its end, or to its first line that begins with `until`."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, '-u', *command], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if until and line.startswith(until):
            taken = time.perf_counter() - began
            process.kill()
            process.wait()
            return taken
    if process.wait() or until:
        raise SystemExit(f'{command} ended with {process.returncode}')
    return time.perf_counter() - began


def main() -> None:
    """Measures the three in turns."""
    flags, script = sys.argv[1:] or ['--config', str(ROOT / 'configs' / 'toy_chair.txt')], str(ROOT / 'run_nerf.py')
    taken = {'torch': [], 'help': [], 'first_step': []}
    for _ in range(5):
        with tempfile.TemporaryDirectory() as logs:
            taken['torch'].append(seconds(['-c', 'import torch']))
            taken['help'].append(seconds([script, '--help']))
            taken['first_step'].append(seconds([script, *flags, '--basedir', logs, '--i_print', '1'], 'step 1/'))
    print(json.dumps({'benchmark': 'startup', **{name: round(median(all_), 2) for name, all_ in taken.items()}}))


if __name__ == '__main__':
    main()
