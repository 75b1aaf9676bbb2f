"""Structure from motion: cameras of photographs, and sparse points, by COLMAP (the package pycolmap).

COLMAP runs as a program, python -m nerf.captures.structure_from_motion FOLDER, because it logs to standard error, can
crash in native code, and cannot be interrupted. The program reads FOLDER/job.json, finds the cameras of the photographs
FOLDER/images/0000.jpg, 0001.jpg, ..., prints lines `stage, done, total` separated by tabs, and writes
FOLDER/result.npz. It needs no torch, and so this module imports none.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from nerf.captures.agreement import MappedCameras, MappingRules, agreeing, best_mapping

JOB, RESULT, IMAGES = 'job.json', 'result.npz', 'images'
LOG = 'log.txt'  # of COLMAP, in the folder
COMMAND = (sys.executable, '-m', 'nerf.captures.structure_from_motion')  # to which the folder is added
LAST_LINES = 4  # of the log, for a message
ONE_BLAS_THREAD = {'OPENBLAS_NUM_THREADS': '1'}  # in each of the program's threads; more would wait for one another


@dataclass(frozen=True)
class EstimationRules(MappingRules):
    """Numbers that decide how cameras are estimated, set by hand; results were looked at on fox_small and beer."""

    fewest_photographs: int = 8  # with a camera, for a scene to be trained on
    longest_side: int = 1200  # pixels of a copy in which features are found; more takes time, for no better cameras
    all_pairs: int = 300  # photographs up to which every pair is a candidate; 300 have 44,850 pairs, 50 s of one core
    neighbours: int = 10  # photographs on either side with which each of more photographs is a candidate
    anchors: int = 20  # photographs, spread evenly, that are candidates with all others; they find closed loops
    strong_features: int = 400  # the largest of each photograph, compared first; time grows with the square
    strong_ratio: float = 0.7  # largest distance to the nearest descriptor, over that to the second
    rivals: int = 4  # a pair is matched if fewer photographs fit both of it better; 6 instead of 4: 2% more points
    always: int = 2  # neighbours on either side, by name, that are matched whatever the strong features say
    fewest_in_model: int = 3  # photographs of a COLMAP model
    seed: int = 0  # of COLMAP


RULES = EstimationRules()


@dataclass(frozen=True)
class EstimatedCameras:
    """Cameras of N photographs and P sparse points, in COLMAP's coordinates: of unknown scale, origin and axes."""

    index: np.ndarray  # [N] int64: number of each photograph, ascending
    world_to_camera: np.ndarray  # [N, 3, 4] float64, OpenCV axes
    lenses: np.ndarray  # [N, 8] float64: fx, fy, cx, cy in pixels, and OpenCV's k1, k2, p1, p2
    points: np.ndarray  # [P, 3] float64
    colours: np.ndarray  # [P, 3] uint8
    error: float  # mean reprojection error in pixels
    sizes: np.ndarray  # [M] int64: photographs in this group, and in further groups without a connection to it
    disagreeing: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # numbers of photographs left out


def structure_from_motion(folder: Path, groups: Sequence[int], rules: EstimationRules = RULES,
                          command: Sequence[str] = COMMAND) -> EstimatedCameras | None:
    """Largest group of connected photographs among 0000.jpg, 0001.jpg, ... in folder/images; None if there is none. A
    ChildProcessError says if pycolmap is not installed, or its process failed.

    Args:
        folder: temporary folder; COLMAP's files in it take about 1 MB for each photograph.
        groups: a number for each photograph, equal for photographs of one camera at one size and zoom.
        command: program to run, without its folder.
    """
    if importlib.util.find_spec('pycolmap') is None:
        raise ChildProcessError('estimating cameras needs the package pycolmap; run: pip install pycolmap')
    (folder / JOB).write_text(json.dumps({'groups': list(groups), 'rules': asdict(rules)}))
    _follow(folder, command)
    with np.load(folder / RESULT) as result:
        return EstimatedCameras(**result) if len(result['sizes']) else None


def _follow(folder: Path, command: Sequence[str]) -> None:
    """Runs the process to its end, with a bar of each stage and a line with the seconds that the stage took."""
    from tqdm import tqdm
    stage = 'start'
    with open(folder / LOG, 'wb') as log, subprocess.Popen(
            [*command, str(folder.resolve())], stdout=subprocess.PIPE, stderr=log, text=True,
            cwd=Path(__file__).parents[2], env=os.environ | ONE_BLAS_THREAD, start_new_session=True) as process:
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
        raise ChildProcessError(f'COLMAP failed at its stage "{stage}" ({how}); its last lines: '
                                f'{" | ".join(last) or "none"}')


def image_name(i: int) -> str:
    """Name of the copy of photograph i."""
    return f'{i:04d}.jpg'


def candidate_pairs(count: int, rules: EstimationRules = RULES) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of `count` photographs whose strong features are compared.

    Of few photographs these are all pairs. Of many, each photograph is paired with its neighbours in the order of
    names, and with anchors spread evenly, which connect places that a walk comes back to.
    """
    few = count <= rules.all_pairs
    anchors = {count * k // rules.anchors for k in range(rules.anchors)}
    return [(i, j) for i in range(count) for j in range(i + 1, count)
            if few or j - i <= rules.neighbours or i in anchors or j in anchors]


def strong_matches(one: np.ndarray, other: np.ndarray, ratio: float) -> int:
    """Number of descriptors of two photographs that are nearest to each other, and clearly nearer than the second.

    Args:
        one: [A, 128] float32, whole numbers up to 255. Distances are exact in float32, so that the result does not
            depend on the number of threads.
        other: [B, 128] float32, the same of the other photograph.
        ratio: distance to the nearest over distance to the second, at most.
    """
    if len(one) == 0 or len(other) < 2:
        return 0
    apart = one @ other.T  # [A, B]
    apart *= -2.0
    apart += (other ** 2).sum(1)
    apart += (one ** 2).sum(1)[:, None]  # squared distances
    rows, nearest, back = np.arange(len(one)), apart.argmin(1), apart.argmin(0)
    first = apart[rows, nearest]
    apart[rows, nearest] = np.inf
    return int(((back[nearest] == rows) & (first < ratio ** 2 * apart.min(1))).sum())


def pairs_to_match(count: int, candidates: Sequence[tuple[int, int]], matches: Sequence[int],
                   rules: EstimationRules = RULES) -> list[tuple[int, int]]:
    """Candidates whose features are all compared, in the candidates' order.

    A pair is left out if at least `rules.rivals` other photographs match both of its photographs better than these
    match each other (a relative neighbourhood graph, Toussaint 1980, with more than one rival). So the best `rivals`
    pairs of each photograph stay; so do the best `rivals` pairs that connect any two groups; and so does a pair that
    closes a loop, since no photograph is near both. Of equal pairs the one closer in the order of names is better.

    Args:
        candidates: pairs (i, j), i < j, of `count` photographs.
        matches: number of strong matches of each candidate.
    """
    if not candidates:
        return []
    i, j = np.array(candidates).T
    worth = np.full((count, count), -np.inf)  # of pairs that are no candidates, and of a photograph with itself
    worth[i, j] = worth[j, i] = np.array(matches) - (j - i) / count
    rivals = np.zeros(len(i), np.int64)
    for row in worth:
        rivals += np.minimum(row[i], row[j]) > worth[i, j]
    return [pair for pair, few in zip(candidates, (rivals < rules.rivals) | (j - i <= rules.always)) if few]


def new_in_each(groups: Sequence[Iterable[int]], least: int) -> list[int]:
    """Numbers of members of each group that no group before it has. A group with fewer than `least` of them does not
    count."""
    known, counts = set(), []
    for group in groups:
        new = set(group) - known
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
    threads = int(os.environ.get('OMP_NUM_THREADS', '').partition(',')[0] or os.cpu_count())
    database = folder / 'database.db'
    pycolmap.Database.open(database).close()
    pycolmap.set_random_seed(rules.seed)
    names = [image_name(i) for i in range(len(groups))]
    _find_features(database, folder / IMAGES, names, groups, threads)
    _match_features(database, folder, names, _overlapping(database, names, rules, threads), rules, threads)
    _save(folder / RESULT, _models(database, folder, len(groups), rules, threads), rules)


def _find_features(database: Path, images: Path, names: list[str], groups: list[int], threads: int) -> None:
    """Finds features of the photographs, with one camera for each group."""
    import pycolmap
    reader = pycolmap.ImageReaderOptions(camera_model='OPENCV')
    for group in sorted(set(groups)):
        of_group = [name for name, other in zip(names, groups) if other == group]
        pycolmap.import_images(database, images, pycolmap.CameraMode.SINGLE, of_group, reader)
    extraction = pycolmap.FeatureExtractionOptions(num_threads=threads, use_gpu=False)
    for some in _in_parts('features', names, 4 * threads):
        pycolmap.extract_features(database, images, some, extraction_options=extraction)


def _overlapping(database: Path, names: list[str], rules: EstimationRules, threads: int) -> list[tuple[int, int]]:
    """Pairs of photographs to match, chosen by their strong features."""
    strong = _strong_descriptors(database, names, rules.strong_features)
    candidates, matches = candidate_pairs(len(names), rules), []
    with ThreadPoolExecutor(threads) as pool:
        for some in _in_parts('overlaps', candidates, 200 * threads):
            matches += pool.map(lambda pair: strong_matches(strong[pair[0]], strong[pair[1]], rules.strong_ratio), some)
    return pairs_to_match(len(names), candidates, matches, rules)


def _strong_descriptors(database: Path, names: list[str], count: int) -> list[np.ndarray]:
    """Descriptors, [`count`, 128] float32, of the largest features of each photograph. Large features survive blur and
    a change of distance."""
    import pycolmap
    opened, strong = pycolmap.Database.open(database), []
    for name in names:
        image = opened.read_image_with_name(name).image_id
        shapes = opened.read_keypoints(image)[:, 2:].reshape(-1, 2, 2)  # of a feature: a 2x2 matrix
        largest = np.argsort(-np.abs(np.linalg.det(shapes)), kind='stable')[:count]
        strong.append(opened.read_descriptors(image).data[largest].astype(np.float32))
    opened.close()
    return strong


def _match_features(database: Path, folder: Path, names: list[str], pairs: list[tuple[int, int]],
                    rules: EstimationRules, threads: int) -> None:
    """Compares all features of each pair, and keeps matches that two cameras explain. COLMAP builds an index of each
    photograph's features anew in each call, so calls of few pairs take longer."""
    import pycolmap
    listed = folder / 'pairs.txt'
    matching = pycolmap.FeatureMatchingOptions(num_threads=threads, use_gpu=False)
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = rules.seed
    for some in _in_parts('pairs', pairs, 60 * threads):
        listed.write_text(''.join(f'{names[i]} {names[j]}\n' for i, j in some))
        pycolmap.match_image_pairs(database, matching, pycolmap.ImportedPairingOptions(match_list_path=listed),
                                   verification)


def _in_parts(stage: str, work: list, size: int) -> Iterator[list]:
    """Work in parts, with progress. COLMAP reports nothing during a call, and its database must not be read then."""
    for done in range(0, len(work), size):
        _say(stage, done, len(work))
        yield work[done:done + size]
    _say(stage, len(work), len(work))


def _models(database: Path, folder: Path, count: int, rules: EstimationRules, threads: int) -> list:
    """Models that grow from a pair of photographs, one photograph at a time. If cameras are missing or disagree, models
    of all cameras at once can be better, because weak connections matter less to these."""
    import pycolmap
    common = {'num_threads': threads, 'random_seed': rules.seed, 'min_model_size': rules.fewest_in_model}
    registered = 0

    def add(least: int = 0) -> None:
        nonlocal registered
        registered = least or registered + 1
        _say('cameras', registered, count)

    _say('cameras', 0, count)
    grown = list(pycolmap.incremental_mapping(
        database, folder / IMAGES, folder, pycolmap.IncrementalPipelineOptions(**common),
        initial_image_pair_callback=lambda: add(2), next_image_callback=add).values())
    _say('cameras', max((model.num_reg_images() for model in grown), default=0), count)
    if any(agreeing(mapped_cameras(model), rules).sum() == count for model in grown):
        return grown
    _say('cameras, all at once', 0, count)
    options = pycolmap.GlobalPipelineOptions(**common)
    at_once = list(pycolmap.global_mapping(database, folder / IMAGES, folder, options).values())
    _say('cameras, all at once', max((model.num_reg_images() for model in at_once), default=0), count)
    best = best_mapping([mapped_cameras(model) for model in grown + at_once], rules) if grown + at_once else 0
    return at_once if best >= len(grown) else grown


def mapped_cameras(model) -> MappedCameras:
    """Cameras of one of pycolmap's models."""
    rows, places = [], {i: point.xyz for i, point in model.points3D.items()}
    for image in _images_of(model):
        features = image.get_observation_points2D()
        seen = np.array([places[feature.point3D_id] for feature in features]).reshape(-1, 3)
        local = seen @ image.cam_from_world().rotation.matrix().T + image.cam_from_world().translation
        drawn = model.cameras[image.camera_id].img_from_cam(local, check_cheirality=False)
        off = np.linalg.norm(drawn - np.array([feature.xy for feature in features]).reshape(-1, 2), axis=-1)
        rows.append((int(Path(image.name).stem), image.projection_center(), len(seen),
                     *((np.median(local[:, 2]), off.mean()) if len(seen) else (0.0, np.inf))))
    index, positions, points, depths, errors = map(np.array, zip(*rows))
    return MappedCameras(index, positions, depths, points, errors)


def _save(path: Path, models: list, rules: EstimationRules) -> None:
    """Writes the agreeing cameras of the best model, or no cameras if there is none."""
    if not models:
        np.savez(path, sizes=np.zeros(0, np.int64))
        return
    several = [mapped_cameras(model) for model in models]
    best = best_mapping(several, rules)
    model, mapped = models[best], several.pop(best)
    good = agreeing(mapped, rules)
    if not good.any():
        np.savez(path, sizes=np.zeros(0, np.int64))
        return
    for image, agrees in zip(_images_of(model), good):
        if not agrees:
            model.deregister_frame(image.frame_id)  # a point that fewer than two other cameras see goes with it
    images, points = _images_of(model), [model.points3D[i] for i in sorted(model.points3D)]
    others = sorted((other.index for other in several), key=len, reverse=True)
    sizes = [good.sum(), *new_in_each([mapped.index, *others], rules.fewest_in_model)[1:]]
    np.savez(path, index=np.array([int(Path(image.name).stem) for image in images]),
             world_to_camera=np.stack([image.cam_from_world().matrix() for image in images]),
             lenses=np.stack([model.cameras[image.camera_id].params for image in images]),
             points=np.array([point.xyz for point in points]).reshape(-1, 3),
             colours=np.array([point.color for point in points], np.uint8).reshape(-1, 3),
             error=model.compute_mean_reprojection_error(), sizes=np.array(sizes),
             disagreeing=mapped.index[~good])


def _images_of(model) -> list:
    """Registered images of one of pycolmap's models, by name."""
    return sorted((model.image(i) for i in model.reg_image_ids()), key=lambda image: image.name)


def _say(stage: str, done: int, total: int) -> None:
    try:
        print(stage, done, total, sep='\t', flush=True)
    except BrokenPipeError:  # the process that wanted the result has ended
        os._exit(1)


if __name__ == '__main__':
    estimate(Path(sys.argv[1]))
