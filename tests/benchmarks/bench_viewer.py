"""Times of the viewer, as a page measures them: python tests/benchmarks/bench_viewer.py [flags of a trained run]

Default flags: the toy chair's grid, which must have been trained. A page without a browser asks for SIZE pixels.
Results:

- of a trained field: seconds from opening the page to the first picture, seconds from the end of a movement to the
  sharp picture, frames per second and their size while the camera turns, and the program's peak memory;
- of a fresh run of STEPS steps in a folder of its own, from a third of the steps on: steps per second without a page,
  with a page whose camera rests, and with a page whose camera turns. The three take turns of PHASE seconds each, and
  the medians are given.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests' / 'viewer')]

from nerf.flags import parse_flags  # noqa: E402
from run_nerf import load_scene  # noqa: E402
from viewer_client import Page, wait_until  # noqa: E402

SIZE = 720, 960  # height and width
TURNING = 6.0  # seconds
STEPS, PHASE = 3600, 8.0
SETTLING = 1.5  # seconds at the start of each phase that do not count


@contextmanager
def program(flags: list[str]):
    """run_nerf.py with a viewer: yields its process and its port, and stops it at the end."""
    command = [sys.executable, '-u', str(ROOT / 'run_nerf.py'), *flags, '--view', '--view_port', '0']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process, next(int(found[1]) for line in process.stdout
                            if (found := re.search(r'^viewer .*:(\d+)', line)))
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)


def turned(pose: np.ndarray, angle: float) -> np.ndarray:
    """Pose [3, 4] after a turn about the world's z axis by an angle in radians."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]) @ pose


def turn(page: Page, pose: np.ndarray, seconds: float) -> np.ndarray:
    """Turns a page's camera by 30 degrees a second, sixty times a second; returns the last pose."""
    began = time.perf_counter()
    while (t := time.perf_counter() - began) < seconds:
        page.look(turned(pose, math.radians(30.0) * t))
        time.sleep(1 / 60)
    return turned(pose, math.radians(30.0) * seconds)


def of_a_trained_field(flags: list[str], pose: np.ndarray) -> dict:
    """Seconds, frame rate and memory of a page that looks at a trained field from a pose [3, 4]."""
    with program([*flags, '--render_only']) as (process, port):
        time.sleep(3.0)  # for other work at the start
        began = time.perf_counter()
        page = Page(port, pose, SIZE)
        wait_until(lambda: page.frames, 'a picture', 120.0)
        first = page.frames[0][0] - began
        wait_until(lambda: 'sharp' in page.text(), 'the sharp picture', 1200.0)
        began = time.perf_counter()
        pose = turn(page, pose, TURNING)
        ended = time.perf_counter()
        page.look(pose)
        moving = [(at, picture.shape[1::-1]) for at, picture in page.frames if began + 1.0 < at <= ended]
        wait_until(lambda: page.frames[-1][0] > ended + 0.15 and page.frames[-1][1].shape[:2] == SIZE
                   and 'sharp' in page.text(), 'the sharp picture', 1200.0)
        sharp = time.perf_counter() - ended
        memory = re.search(r'VmHWM:\s+(\d+)', Path(f'/proc/{process.pid}/status').read_text())
        page.close()
    return {'first_picture_s': round(first, 2), 'frames_per_s': round(len(moving) / (TURNING - 1.0), 1),
            'moving_size': moving[len(moving) // 2][1] if moving else None, 'sharp_s': round(sharp, 2),
            'memory_mb': int(memory[1]) // 1024}


def of_a_run_that_trains(flags: list[str], pose: np.ndarray) -> dict[str, float]:
    """Steps per second of training, by what a page does meanwhile."""
    speeds, printed = {'alone': [], 'rests': [], 'turns': []}, []
    with tempfile.TemporaryDirectory() as logs, program(
            [*flags, '--basedir', logs, '--N_iters', str(STEPS), '--i_print', '2', '--i_img', '10000000',
             '--i_testset', '10000000', '--i_video', '10000000']) as (process, port):
        threading.Thread(target=note_steps, args=(process.stdout, printed), daemon=True).start()
        wait_until(lambda: printed and printed[-1][1] > STEPS // 3, 'the last stage', 600.0)
        for name in itertools.cycle(speeds):
            page = None if name == 'alone' else Page(port, pose, SIZE)
            began = time.perf_counter() + SETTLING
            turn(page, pose, PHASE) if name == 'turns' else time.sleep(PHASE)
            if page:
                page.close()
            if printed[-1][1] == STEPS:
                break
            (first, at), *_, (last, end) = [(step, at) for at, step in printed if at > began]
            speeds[name].append((last - first) / (end - at))
    return {name: round(median(all_), 2) for name, all_ in speeds.items()} | {'phases': len(speeds['turns'])}


def note_steps(lines, printed: list[tuple[float, int]]) -> None:
    """Notes the time at which a run prints each step."""
    for line in lines:
        if found := re.match(r'step (\d+)/', line):
            printed.append((time.perf_counter(), int(found[1])))


def main() -> None:
    flags = sys.argv[1:] or ['--config', str(ROOT / 'configs' / 'toy_chair_grid.txt')]
    scene = load_scene(parse_flags(flags))
    pose = scene.cameras.poses[int(scene.i_train[0])].double().numpy()
    result = of_a_trained_field(flags, pose)
    print(json.dumps({'benchmark': 'viewer', 'pixels': SIZE[::-1], **result,
                      'steps_per_s': of_a_run_that_trains(flags, pose)}))


if __name__ == '__main__':
    main()
