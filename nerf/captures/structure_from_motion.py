"""Structure from motion: cameras of photographs, and sparse points, by COLMAP in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nerf.captures.colmap_process import JOB, RESULT
from nerf.captures.rules import ESTIMATION, EstimationRules
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


def structure_from_motion(folder: Path, groups: Sequence[int], rules: EstimationRules = ESTIMATION,
                          command: Sequence[str] = COMMAND, progress: Callable[[str, int, int], None] | None = None
                          ) -> EstimatedCameras | None:
    """Finds the cameras of the photographs 0000.jpg, 0001.jpg, ... in folder/images.

    Args:
        folder: temporary folder; COLMAP's files in it take about 1 MB for each photograph.
        groups: a number for each photograph, equal for photographs of one camera at one size and zoom.
        rules: numbers that decide the result.
        command: program to run, colmap_process.py unless a test replaces it.
        progress: called with a stage's name, the work done and its total; None: bars in the terminal.

    Returns:
        the largest group of photographs; None if no two photographs fit together.

    Raises:
        UserError: pycolmap is not installed, or its process failed.
    """
    if importlib.util.find_spec('pycolmap') is None:
        raise UserError('estimating cameras needs the package pycolmap; run: pip install pycolmap')
    (folder / JOB).write_text(json.dumps({'groups': list(groups), 'rules': asdict(rules)}))
    with closing(_Stages()) as stages:
        _follow(folder, command, progress or stages.show)
    with np.load(folder / RESULT) as result:
        values = dict(result)
    if not len(values['sizes']):
        return None
    poses = np.stack([colmap_pose(matrix[:, :3], matrix[:, 3]) for matrix in values.pop('world_to_camera')])
    return EstimatedCameras(poses=poses, **values)


def _follow(folder: Path, command: Sequence[str], progress: Callable[[str, int, int], None]) -> None:
    """Runs the process to its end."""
    stage = 'start'
    with open(folder / LOG, 'wb') as log, subprocess.Popen(
            [*command, str(folder.resolve())], stdout=subprocess.PIPE, stderr=log, text=True,
            cwd=Path(__file__).parents[2], start_new_session=True) as process:
        try:
            for line in process.stdout:
                stage, done, total = line.rstrip('\n').split('\t')
                progress(stage, int(done), int(total))
        except BaseException:  # Ctrl-C too
            process.kill()
            raise
    if process.returncode:
        code = process.returncode
        how = f'exit code {code}' if code > 0 else signal.Signals(-code).name
        last = (folder / LOG).read_text('utf-8', 'replace').splitlines()[-LAST_LINES:]
        raise UserError(f'COLMAP failed at its stage "{stage}" ({how}); its last lines: {" | ".join(last) or "none"}')


class _Stages:
    """Progress bar of the current stage, and a line with the seconds that each stage took."""

    def __init__(self):
        self.stage, self.bar, self.began = None, None, 0.0

    def show(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if stage != self.stage:
            self.close()
            self.stage, self.began = stage, time.time()
            self.bar = tqdm(total=total, desc=stage, disable=None, leave=False)
        self.bar.n = done
        self.bar.refresh()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            print(f'{self.stage}: {self.bar.n} of {self.bar.total} in {time.time() - self.began:.1f} s', flush=True)
