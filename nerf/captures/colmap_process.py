"""COLMAP (the package pycolmap) as a program: python -m nerf.captures.colmap_process FOLDER

It is a process of its own because COLMAP logs to standard error, can crash in native code, and cannot be interrupted.
It reads FOLDER/job.json, finds the cameras of the photographs FOLDER/images/0000.jpg, 0001.jpg, ..., prints lines
`stage, done, total` separated by tabs, and writes FOLDER/result.npz. It needs no torch.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nerf.captures.rules import ESTIMATION, EstimationRules

JOB, RESULT, IMAGES = 'job.json', 'result.npz', 'images'


def image_name(i: int) -> str:
    """Name of the copy of photograph i."""
    return f'{i:04d}.jpg'


def pairs_to_match(count: int, rules: EstimationRules = ESTIMATION) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of photographs whose features are compared.

    Of few photographs these are all pairs. Of many, each photograph is matched with its neighbours in the order of
    names, and with anchors spread evenly, which connect places that a walk comes back to.

    Args:
        count: number of photographs.
        rules: its all_pairs, neighbours and anchors.
    """
    if count <= rules.all_pairs:
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    anchors = {count * k // rules.anchors for k in range(rules.anchors)}
    return [(i, j) for i in range(count) for j in range(i + 1, count)
            if j - i <= rules.neighbours or i in anchors or j in anchors]


def new_in_each(models: list, least: int) -> list[int]:
    """Numbers of photographs of each model, largest first, without photographs of larger models.

    Args:
        models: pycolmap's reconstructions, which can overlap.
        least: photographs, below which a model does not count.
    """
    known, counts = set(), []
    for model in sorted(models, key=lambda model: model.num_reg_images(), reverse=True):
        new = set(model.reg_image_ids()) - known
        if len(new) >= least:
            known |= new
            counts.append(len(new))
    return counts


def estimate(folder: Path) -> None:
    """Finds the cameras of the photographs in a folder, as the module's docstring says."""
    import pycolmap

    pycolmap.logging.minloglevel = int(pycolmap.logging.WARNING)
    job = json.loads((folder / JOB).read_text())
    groups, rules = job['groups'], EstimationRules(**job['rules'])
    database, images, threads = folder / 'database.db', folder / IMAGES, _threads()
    pycolmap.Database.open(database).close()
    pycolmap.set_random_seed(rules.seed)
    _find_features(database, images, groups, threads)
    _match(database, folder / 'pairs.txt', len(groups), rules, threads)
    models = _map_incrementally(database, images, folder, len(groups), rules, threads)
    if _registered(models) < [len(groups)]:
        others = _map_globally(database, images, folder, len(groups), rules, threads)
        models = max(models, others, key=_registered)
    _save(folder / RESULT, models, rules)


def _find_features(database: Path, images: Path, groups: list[int], threads: int) -> None:
    import pycolmap

    reader = pycolmap.ImageReaderOptions(camera_model='OPENCV')
    for group in sorted(set(groups)):
        names = [image_name(i) for i, other in enumerate(groups) if other == group]
        pycolmap.import_images(database, images, pycolmap.CameraMode.SINGLE, names, reader)
    options = pycolmap.FeatureExtractionOptions(num_threads=threads, use_gpu=False)
    for some in _in_parts('features', [image_name(i) for i in range(len(groups))], 2 * threads):
        pycolmap.extract_features(database, images, some, extraction_options=options)


def _match(database: Path, listed: Path, count: int, rules: EstimationRules, threads: int) -> None:
    import pycolmap

    matching = pycolmap.FeatureMatchingOptions(num_threads=threads, use_gpu=False)
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = rules.seed
    for some in _in_parts('pairs', pairs_to_match(count, rules), 20 * threads):
        listed.write_text(''.join(f'{image_name(i)} {image_name(j)}\n' for i, j in some))
        pycolmap.match_image_pairs(database, matching, pycolmap.ImportedPairingOptions(match_list_path=listed),
                                   verification)


def _in_parts(stage: str, work: list, size: int) -> Iterator[list]:
    """Work in parts, with progress. COLMAP reports nothing during a call, and its database must not be read then."""
    for done in range(0, len(work), size):
        _say(stage, done, len(work))
        yield work[done:done + size]
    _say(stage, len(work), len(work))


def _map_incrementally(database: Path, images: Path, folder: Path, count: int, rules: EstimationRules,
                       threads: int) -> list:
    """Models that grow from a pair of photographs, one photograph at a time."""
    import pycolmap

    options = pycolmap.IncrementalPipelineOptions(num_threads=threads, random_seed=rules.seed,
                                                  min_model_size=rules.fewest_in_model)
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


def _map_globally(database: Path, images: Path, folder: Path, count: int, rules: EstimationRules, threads: int) -> list:
    """Models of all cameras at once: less exact, but weak connections matter less."""
    import pycolmap

    options = pycolmap.GlobalPipelineOptions(num_threads=threads, random_seed=rules.seed,
                                             min_model_size=rules.fewest_in_model)
    _say('cameras, all at once', 0, count)
    models = list(pycolmap.global_mapping(database, images, folder, options).values())
    _say('cameras, all at once', max(_registered(models), default=0), count)
    return models


def _registered(models: list) -> list[int]:
    """Numbers of photographs in each model, largest first; lists compare by their largest model."""
    return sorted((model.num_reg_images() for model in models), reverse=True)


def _save(path: Path, models: list, rules: EstimationRules) -> None:
    """Writes the largest model, or no cameras if there is none."""
    if not models:
        np.savez(path, sizes=np.zeros(0, np.int64))
        return
    model = max(models, key=lambda model: model.num_reg_images())
    images = sorted((model.image(i) for i in model.reg_image_ids()), key=lambda image: image.name)
    points = [model.points3D[i] for i in sorted(model.points3D)]
    np.savez(path, index=np.array([int(Path(image.name).stem) for image in images]),
             world_to_camera=np.stack([image.cam_from_world().matrix() for image in images]),
             lenses=np.stack([model.cameras[image.camera_id].params for image in images]),
             points=np.array([point.xyz for point in points]).reshape(-1, 3),
             colours=np.array([point.color for point in points], np.uint8).reshape(-1, 3),
             error=model.compute_mean_reprojection_error(), sizes=np.array(new_in_each(models, rules.fewest_in_model)))


def _threads() -> int:
    """Number of threads: OMP_NUM_THREADS, or else the number of cores."""
    return int(os.environ.get('OMP_NUM_THREADS', '').partition(',')[0] or os.cpu_count())


def _say(stage: str, done: int, total: int) -> None:
    try:
        print(stage, done, total, sep='\t', flush=True)
    except BrokenPipeError:  # the process that wanted the result has ended
        os._exit(1)


if __name__ == '__main__':
    estimate(Path(sys.argv[1]))
