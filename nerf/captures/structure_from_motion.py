"""Structure from motion: the cameras of photographs, and points of what they show, by COLMAP (the package pycolmap).

COLMAP runs in a process of its own, which is this module as a program: it logs to standard error in a format of its
own, its native code can crash, and it can be stopped at any moment. That process prints a line `stage, done, total` for
each bit of progress, and leaves its result in a file.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nerf.runtime.errors import UserError

SEED = 0
ALL_PAIRS = 80  # photographs; of more, not every pair is matched
NEIGHBOURS, ANCHORS = 10, 20  # that each of many photographs is matched with
LEAST_IN_MODEL = 3  # photographs
LOG, JOB, RESULT = 'log.txt', 'job.json', 'result.npz'  # beside the photographs' folder


@dataclass(frozen=True)
class Model:
    """N registered photographs and P points, in COLMAP's coordinates: of no known scale, origin or axes."""

    index: np.ndarray  # [N] int64: which of the photographs, ascending
    poses: np.ndarray  # [N, 3, 4] float64 camera-to-world, OpenGL axes
    lenses: np.ndarray  # [N, 8] float64: fx, fy, cx, cy in pixels, and OpenCV's k1, k2, p1, p2
    points: np.ndarray  # [P, 3] float64
    colours: np.ndarray  # [P, 3] uint8
    error: float  # mean distance between where a point is and where it was seen, in pixels
    sizes: np.ndarray  # [M] int64: photographs in this model, and in others that do not connect with it


def structure_from_motion(folder: Path, groups: list[int]) -> Model | None:
    """Finds the cameras of the photographs 0000.jpg, 0001.jpg, ... in `folder`/images.

    Args:
        folder: of no use afterwards; it takes about 1 MB for each photograph.
        groups: for each photograph a number; those with the same one were taken by one camera, at one size and zoom.

    Returns:
        the model with most photographs; None where no two photographs fit together.

    Raises:
        UserError: pycolmap is not installed, or its process failed.
    """
    if importlib.util.find_spec('pycolmap') is None:
        raise UserError('estimating cameras needs the package pycolmap; run: pip install pycolmap')
    (folder / JOB).write_text(json.dumps(groups))
    _follow(folder)
    with np.load(folder / RESULT) as result:
        return Model(**result) if len(result['sizes']) else None


def pairs_to_match(count: int) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of `count` photographs: all, or where they are many those of each photograph with its
    NEIGHBOURS on either side and with ANCHORS photographs that are spread evenly, which finds where a walk closes."""
    if count <= ALL_PAIRS:
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    anchors = {count * k // ANCHORS for k in range(ANCHORS)}
    return [(i, j) for i in range(count) for j in range(i + 1, count)
            if j - i <= NEIGHBOURS or i in anchors or j in anchors]


def image_name(i: int) -> str:
    return f'{i:04d}.jpg'


# In the caller's process


def _follow(folder: Path) -> None:
    """Runs the process to its end, with a progress bar for each stage and a line with the seconds that it took."""
    stage = 'start'
    with open(folder / LOG, 'wb') as log, closing(_Stages()) as stages, subprocess.Popen(
            [sys.executable, '-m', 'nerf.captures.structure_from_motion', str(folder.resolve())],
            stdout=subprocess.PIPE, stderr=log, text=True, cwd=Path(__file__).parents[2],
            start_new_session=True) as process:
        try:
            for line in process.stdout:
                stage, done, total = line.rstrip('\n').split('\t')
                stages.show(stage, int(done), int(total))
        except BaseException:  # Ctrl-C too
            process.kill()
            raise
    if process.returncode:
        code = process.returncode
        how = f'exit code {code}' if code > 0 else signal.Signals(-code).name
        last = (folder / LOG).read_text('utf-8', 'replace').splitlines()[-4:]
        raise UserError(f'COLMAP failed at its stage "{stage}" ({how}); its last lines: {" | ".join(last) or "none"}')


class _Stages:
    """Shows one stage after the other."""

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


# In the process of its own


def _estimate(folder: Path) -> None:
    """Writes `folder`/RESULT."""
    import pycolmap

    pycolmap.logging.minloglevel = int(pycolmap.logging.WARNING)
    groups = json.loads((folder / JOB).read_text())
    database, images, threads = folder / 'database.db', folder / 'images', _threads()
    pycolmap.Database.open(database).close()
    pycolmap.set_random_seed(SEED)
    _find_features(database, images, groups, threads)
    _match(database, folder / 'pairs.txt', len(groups), threads)
    models = _map_one_by_one(database, images, folder, len(groups), threads)
    if _registered(models) < [len(groups)]:
        others = _map_all_at_once(database, images, folder, len(groups), threads)
        models = max(models, others, key=_registered)
    _save(folder / RESULT, models)


def _find_features(database: Path, images: Path, groups: list[int], threads: int) -> None:
    import pycolmap

    reader = pycolmap.ImageReaderOptions(camera_model='OPENCV')
    for group in sorted(set(groups)):
        names = [image_name(i) for i, other in enumerate(groups) if other == group]
        pycolmap.import_images(database, images, pycolmap.CameraMode.SINGLE, names, reader)
    options = pycolmap.FeatureExtractionOptions(num_threads=threads, use_gpu=False)
    for some in _in_parts('features', [image_name(i) for i in range(len(groups))], 2 * threads):
        pycolmap.extract_features(database, images, some, extraction_options=options)


def _match(database: Path, listed: Path, count: int, threads: int) -> None:
    import pycolmap

    matching = pycolmap.FeatureMatchingOptions(num_threads=threads, use_gpu=False)
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = SEED
    for some in _in_parts('pairs', pairs_to_match(count), 20 * threads):
        listed.write_text(''.join(f'{image_name(i)} {image_name(j)}\n' for i, j in some))
        pycolmap.match_image_pairs(database, matching, pycolmap.ImportedPairingOptions(match_list_path=listed),
                                   verification)


def _in_parts(stage: str, work: list, size: int) -> Iterator[list]:
    """The work in parts: COLMAP shows nothing of a call before it ends, and its database must not be read meanwhile."""
    for done in range(0, len(work), size):
        _say(stage, done, len(work))
        yield work[done:done + size]
    _say(stage, len(work), len(work))


def _map_one_by_one(database: Path, images: Path, folder: Path, count: int, threads: int) -> list:
    """The models that grow from a pair of photographs by one photograph at a time."""
    import pycolmap

    options = pycolmap.IncrementalPipelineOptions(num_threads=threads, random_seed=SEED, min_model_size=LEAST_IN_MODEL)
    registered = 0

    def begin() -> None:
        nonlocal registered
        registered = 2
        _say('cameras', registered, count)

    def add() -> None:
        nonlocal registered
        registered += 1
        _say('cameras', registered, count)

    _say('cameras', registered, count)
    models = list(pycolmap.incremental_mapping(database, images, folder, options, initial_image_pair_callback=begin,
                                               next_image_callback=add).values())
    _say('cameras', max(_registered(models), default=0), count)
    return models


def _map_all_at_once(database: Path, images: Path, folder: Path, count: int, threads: int) -> list:
    """The models of which all cameras are found together: less exact, but a weak connection stops it less."""
    import pycolmap

    options = pycolmap.GlobalPipelineOptions(num_threads=threads, random_seed=SEED, min_model_size=LEAST_IN_MODEL)
    _say('cameras, all at once', 0, count)
    models = list(pycolmap.global_mapping(database, images, folder, options).values())
    _say('cameras, all at once', max(_registered(models), default=0), count)
    return models


def _registered(models: list) -> list[int]:
    """Photographs in each model, most first; lists of it compare by the largest model."""
    return sorted((model.num_reg_images() for model in models), reverse=True)


def _new_in_each(models: list) -> list[int]:
    """Photographs of each model that no larger one has, where they are enough for a model: models can overlap."""
    known, counts = set(), []
    for model in sorted(models, key=lambda model: model.num_reg_images(), reverse=True):
        new = set(model.reg_image_ids()) - known
        if len(new) >= LEAST_IN_MODEL:
            known |= new
            counts.append(len(new))
    return counts


def _save(path: Path, models: list) -> None:
    if not models:
        np.savez(path, sizes=np.zeros(0, np.int64))
        return
    model = max(models, key=lambda model: model.num_reg_images())
    images = sorted((model.image(i) for i in model.reg_image_ids()), key=lambda image: image.name)
    points = [model.points3D[i] for i in sorted(model.points3D)]
    np.savez(path, index=np.array([int(Path(image.name).stem) for image in images]),
             poses=np.stack([_pose(image.cam_from_world().matrix()) for image in images]),
             lenses=np.stack([model.cameras[image.camera_id].params for image in images]),
             points=np.array([point.xyz for point in points]).reshape(-1, 3),
             colours=np.array([point.color for point in points], np.uint8).reshape(-1, 3),
             error=model.compute_mean_reprojection_error(), sizes=np.array(_new_in_each(models)))


def _pose(world_to_camera: np.ndarray) -> np.ndarray:
    """[3, 4] camera-to-world with OpenGL axes, of COLMAP's world-to-camera, whose y points down and z forward."""
    rotation, shift = world_to_camera[:, :3].T, world_to_camera[:, 3]
    return np.column_stack([rotation * [1.0, -1.0, -1.0], -rotation @ shift])


def _threads() -> int:
    """As many as OMP_NUM_THREADS says, as for all else, or as there are cores."""
    return int(os.environ.get('OMP_NUM_THREADS', '').partition(',')[0] or os.cpu_count())


def _say(stage: str, done: int, total: int) -> None:
    try:
        print(stage, done, total, sep='\t', flush=True)
    except BrokenPipeError:  # whoever wanted the result is gone
        os._exit(1)


if __name__ == '__main__':
    _estimate(Path(sys.argv[1]))
