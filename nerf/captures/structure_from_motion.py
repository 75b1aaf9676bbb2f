"""Structure from motion: cameras of photographs, and sparse points, by COLMAP in a process of its own."""

from __future__ import annotations

import importlib.util
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nerf.captures.colmap_process import JOB, RESULT, RULES, EstimationRules
from nerf.poses import colmap_pose
from nerf.runtime.errors import UserError

LOG = 'log.txt'  # of COLMAP, in the folder
COMMAND = (sys.executable, '-m', 'nerf.captures.colmap_process')  # to which the folder is added
LAST_LINES = 4  # of the log, for a message


@dataclass(frozen=True)
class EstimatedCameras:
    """Cameras of N photographs and P sparse points, in COLMAP's coordinates: of unknown scale, origin and axes."""

    index: np.ndarray  # [N] int64: number of each photograph, ascending
    poses: np.ndarray  # [N, 3, 4] float64 camera-to-world, OpenGL axes
    lenses: np.ndarray  # [N, 8] float64: fx, fy, cx, cy in pixels, and OpenCV's k1, k2, p1, p2
    points: np.ndarray  # [P, 3] float64
    colours: np.ndarray  # [P, 3] uint8
    error: float  # mean reprojection error in pixels
    sizes: np.ndarray  # [M] int64: photographs in this group, and in further groups without a connection to it


def structure_from_motion(folder: Path, groups: Sequence[int], rules: EstimationRules = RULES,
                          command: Sequence[str] = COMMAND) -> EstimatedCameras | None:
    """Finds the cameras of the photographs 0000.jpg, 0001.jpg, ... in folder/images.

    The result is the largest group of photographs, or None if no two photographs fit together.

    Args:
        folder: temporary folder; COLMAP's files in it take about 1 MB for each photograph.
        groups: a number for each photograph, equal for photographs of one camera at one size and zoom.
        command: program to run, colmap_process.py unless a test replaces it.

    Raises:
        UserError: pycolmap is not installed, or its process failed.
    """
    if importlib.util.find_spec('pycolmap') is None:
        raise UserError('estimating cameras needs the package pycolmap; run: pip install pycolmap')
    (folder / JOB).write_text(json.dumps({'groups': list(groups), 'rules': asdict(rules)}))
    _follow(folder, command)
    with np.load(folder / RESULT) as result:
        values = dict(result)
    if not len(values['sizes']):
        return None
    poses = np.stack([colmap_pose(matrix[:, :3], matrix[:, 3]) for matrix in values.pop('world_to_camera')])
    return EstimatedCameras(poses=poses, **values)


def _follow(folder: Path, command: Sequence[str]) -> None:
    """Runs the process to its end, with a bar of each stage and a line with the seconds that the stage took."""
    from tqdm import tqdm

    stage = 'start'
    with open(folder / LOG, 'wb') as log, subprocess.Popen(
            [*command, str(folder.resolve())], stdout=subprocess.PIPE, stderr=log, text=True,
            cwd=Path(__file__).parents[2], start_new_session=True) as process:
        try:
            reports = (line.rstrip('\n').split('\t') for line in process.stdout)
            for stage, steps in itertools.groupby(reports, lambda report: report[0]):
                began = time.time()
                with tqdm(desc=stage, disable=None, leave=False) as bar:
                    for _, done, total in steps:
                        bar.n, bar.total = int(done), int(total)
                        bar.refresh()
                print(f'{stage}: {bar.n} of {bar.total} in {time.time() - began:.1f} s', flush=True)
        except BaseException:  # Ctrl-C too
            process.kill()
            raise
    if code := process.returncode:
        how = f'exit code {code}' if code > 0 else signal.Signals(-code).name
        last = (folder / LOG).read_text('utf-8', 'replace').splitlines()[-LAST_LINES:]
        raise UserError(f'COLMAP failed at its stage "{stage}" ({how}); its last lines: {" | ".join(last) or "none"}')
