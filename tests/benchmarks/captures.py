"""Yardstick of captures: trains photographs of real scenes, and prints one table of what they came to.

    python tests/benchmarks/captures.py --captures fox beer --steps 600
    python tests/benchmarks/captures.py --against ../older_checkout --seeds 0 1 2
    python tests/benchmarks/captures.py --captures fox --validation --flags "--least 1e-4"   # for tuning

Columns, protocol and captures are explained in docs/measurements.md ("Captures").
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from PIL import Image
from scipy.ndimage import map_coordinates

from load_photos import load_colmap, load_transforms
from make_capture import make_capture, surface_points
from nerf.cameras import Cameras
from nerf.captures.capture import Capture, held_out
from nerf.captures.colmap import model_files
from nerf.captures.placement import Placement, place
from nerf.exposure import right_halves
from nerf.files.images import read_image
from nerf.metrics import compare
from nerf.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / 'shared' / 'data'
CAPTURES = {'fox': DATA / 'captures' / 'fox_pinhole', 'beer': DATA / 'captures' / 'beer',
            'alexander': DATA / 'captures' / 'alexander', 'fern': DATA / 'nerf_llff_data' / 'fern', 'made': None}
NEVER = 10 ** 9  # steps between outputs that are not wanted


@dataclass(frozen=True)
class Protocol:
    """Numbers that decide what is trained on and what is measured."""

    hold: int = 8  # every hold-th photograph is a test view
    hold_again: int = 8  # with validation, every hold_again-th photograph of the rest is held out
    arc: float = 25.0  # degrees of azimuth that no training view lies in
    fewest: int = 3  # photographs in the arc, if possible
    widest: float = 2.0  # largest gap between the training views on both sides, in arcs, if possible
    overhead: float = 0.3  # a camera nearer to the vertical axis than this share of the median has no azimuth
    points_held: int = 5  # every points_held-th sparse point is kept from training
    # Points without tracks
    patch: int = 9  # samples along the side of a patch around a point
    patch_scale: float = 480.0  # distances between these samples, at least a pixel, that make the longer side
    contrast: float = 4.0  # grey levels of standard deviation below which a patch tells nothing
    alike: float = 0.9  # correlation from which on two patches show the same thing; at 0.8, some points of the fox
    # were found where its head hides them
    # Size of the photographs
    longest: int = 640  # without --factor, photographs are reduced until their longer side has at most so many pixels


PROTOCOL = Protocol()


@dataclass(frozen=True)
class Column:
    """Column of the table."""

    title: str
    key: str  # in a row of the JSON
    form: str = '.2f'
    factor: float = 1.0  # from the value in the JSON to that in the table


COLUMNS = (
    Column('PSNR', 'psnr'), Column('SSIM', 'ssim', '.3f'), Column('LPIPS', 'lpips_alex', '.3f'),
    Column('right PSNR', 'right_psnr'), Column('right SSIM', 'right_ssim', '.3f'),
    Column('arc PSNR', 'arc_psnr'), Column('arc SSIM', 'arc_ssim', '.3f'),
    Column('arc fog %', 'arc_fog', factor=100.0), Column('opened', 'arc_fog_opened', factor=100.0),
    Column('path fog %', 'path_fog', factor=100.0), Column('opened', 'path_fog_opened', factor=100.0),
    Column('depth %', 'depth_error', factor=100.0), Column('train s', 'seconds', '.0f'),
    Column('CPU s', 'cpu_seconds', '.0f'), Column('MB', 'peak_mb', '.0f'), Column('rows', 'rows', '.0f'),
    Column('voxel px', 'voxel_pixels'))


@dataclass(frozen=True)
class Split:
    """Photographs of a capture, parted into those that train and those that are tested."""

    name: str  # 'test', 'validation' or 'arc'
    flags: list[str]  # of run_nerf.py: where the data are
    tested: list[str]  # names of the photographs
    targets: list[np.ndarray]  # [H, W, 3 or 4] uint8 each, at the size of training
    points: Path | None = None  # file of the known points; None: there are none
    photographs: list[int] = field(default_factory=list)  # indices of the tested photographs in that file


# The arc


def azimuths(placement: Placement, protocol: Protocol = PROTOCOL) -> np.ndarray:
    """Azimuths [N] of photographs around the vertical axis of the scene, in degrees; NaN near that axis."""
    x, y = placement.poses[:, 0, 3], placement.poses[:, 1, 3]
    radius = np.hypot(x, y)
    return np.where(radius < protocol.overhead * np.median(radius), np.nan, np.degrees(np.arctan2(y, x)))


def choose_arc(azimuth: np.ndarray, avoided: Iterable[int] = (), protocol: Protocol = PROTOCOL) -> np.ndarray:
    """Indices of the photographs in an arc of azimuth that begins at a photograph, or just behind one.

    Of the arcs with at least `fewest` photographs, and with others close by on both sides, it is the one with the
    fewest photographs, or of those the one in the smallest gap between others. If no arc is like that, photographs may
    be fewer, or else the gap may be wide; without an arc of two photographs the result is empty.

    Args:
        azimuth: [N] in degrees; NaN: the photograph has none, and is in no arc.
        avoided: indices of photographs that must not be in the arc.
    """
    known, avoided = np.isfinite(azimuth), set(avoided)
    best, found = None, np.zeros(0, np.int64)
    for start in np.concatenate([azimuth[known], azimuth[known] + 1e-6]):
        ahead = (azimuth - start + 1e-9) % 360.0
        inside, outside = np.flatnonzero(ahead <= protocol.arc), ahead[ahead > protocol.arc]
        if len(inside) < 2 or not len(outside) or avoided & set(inside.tolist()):
            continue
        gap = 360.0 - outside.max() + outside.min()
        rank = gap > protocol.widest * protocol.arc, max(protocol.fewest - len(inside), 0), len(inside), round(gap, 6)
        if best is None or rank < best:
            best, found = rank, inside
    return found


# Captures and their splits


def named_folder(text: str) -> tuple[str, Path | None]:
    """Name and folder of a capture, from a name in CAPTURES, 'NAME=FOLDER' or a folder."""
    name, equals, folder = text.partition('=')
    if equals:
        return name, Path(folder)
    return (text, CAPTURES[text]) if text in CAPTURES else (Path(text).resolve().name, Path(text))


def made_capture(folder: Path) -> Path:
    """Writes the synthetic capture of the tests with its true cameras and points; returns its folder."""
    made = make_capture(folder)
    write_points(made / 'sparse_points.ply', surface_points())
    transforms = json.loads((made / 'true_transforms.json').read_text(encoding='utf-8'))
    text = json.dumps(transforms | {'ply_file_path': 'sparse_points.ply'})
    (made / 'transforms.json').write_text(text, encoding='utf-8')
    return made


def write_points(path: Path, points: np.ndarray) -> None:
    """Writes points [P, 3] as a PLY file."""
    header = ['ply', 'format ascii 1.0', f'element vertex {len(points)}',
              *(f'property double {axis}' for axis in 'xyz'), 'end_header']
    path.write_text('\n'.join(header + ['{:.12g} {:.12g} {:.12g}'.format(*point) for point in points]) + '\n')


def read_capture(folder: Path, protocol: Protocol = PROTOCOL) -> Capture | None:
    """Capture of a folder at its full size; None: it is in the LLFF format, for which there are no points. UserError:
    the folder has no cameras."""
    if (folder / 'transforms.json').is_file():
        return load_transforms(folder, 1, protocol.hold)
    if model_files(folder)[1]:
        return load_colmap(folder, 1, protocol.hold)
    if (folder / 'poses_bounds.npy').is_file():
        return None
    raise UserError(f'{folder} has no cameras; estimate them in a copy of the folder (python run_nerf.py '
                    '--dataset_type photos --estimate_only --datadir COPY), and give it as NAME=COPY')


def splits_of(name: str, folder: Path | None, out: Path, options: argparse.Namespace,
              protocol: Protocol = PROTOCOL) -> list[Split]:
    """Splits of a capture, written to `out`, that the options ask for."""
    folder = made_capture(out / name) if folder is None else folder
    capture = read_capture(folder, protocol)
    if capture is None:
        return [llff_split(folder, out / f'{name}_llff', options, protocol)]
    everything, placement = np.arange(len(capture.paths)), place(capture)
    kept = np.setdiff1d(everything, capture.i_test)
    again = kept[protocol.hold_again // 2::protocol.hold_again]
    parts = {'validation': (np.setdiff1d(kept, again), again)} if options.validation else {
        'test': (capture.i_train, capture.i_test)}
    azimuth = azimuths(placement, protocol)
    arc = np.zeros(0, np.int64) if placement.forward_facing or options.no_arc else choose_arc(
        azimuth, protocol=protocol)
    if options.validation and len(arc):
        azimuth[capture.i_test] = np.nan
        arc = choose_arc(azimuth, arc.tolist(), protocol)
    if len(arc):
        parts['arc'] = np.setdiff1d(kept if options.validation else everything, arc), arc
    points = write_known(out / f'{name}_points.npz', capture, protocol)
    factor = options.factor or math.ceil(max(max(image.shape[:2]) for image in capture.images) / protocol.longest)
    return [replace(write_split(out / f'{name}_{part}', capture, *indices, factor, protocol), name=part, points=points)
            for part, indices in parts.items()]


def write_known(path: Path, capture: Capture, protocol: Protocol = PROTOCOL) -> Path | None:
    """Writes the points of a capture, and the photographs that observe them, for `field_figures.py`; returns the path,
    or None without points."""
    if capture.points is None:
        return None
    seen = alike(capture, protocol) if capture.seen is None else capture.seen
    np.savez(path, points=capture.points, held=is_held(capture.points, protocol),
             positions=capture.cameras.poses[:, :, 3].numpy(), seen=np.concatenate(seen),
             ends=np.cumsum([len(one) for one in seen]))
    return path


def alike(capture: Capture, protocol: Protocol = PROTOCOL) -> list[np.ndarray]:
    """For each photograph of a capture without tracks, indices of the points that it observes: those around which it
    looks like the photograph that most others look like there. A point behind something looks different.

    Patches of the photographs around a point have one size in the scene, and are compared by normalised
    cross-correlation.
    """
    n, side = len(capture.images), protocol.patch
    patches = np.zeros((n, len(capture.points), side * side), np.float32)
    unit = max(1.0, max(max(image.shape[:2]) for image in capture.images) / protocol.patch_scale)
    places, depths = zip(*(projected(capture.cameras, view, capture.points) for view in range(n)))
    sharpness = capture.cameras.intrinsics[:, :2].mean(1).numpy()[:, None] / np.abs(np.stack(depths))
    spacing = unit * sharpness / np.median(sharpness, 0)  # [n, P] pixels between the samples of a patch
    steps = np.stack(np.meshgrid(*2 * [np.arange(side) - side // 2]), -1).reshape(-1, 2)
    for view, image in enumerate(capture.images):
        grey = image[..., :3].mean(-1)
        at = places[view][:, None] + spacing[view][:, None, None] * steps - 0.5  # pixel centres are at 0.5
        values = map_coordinates(grey, at[..., ::-1].reshape(-1, 2).T, order=1, mode='nearest').reshape(at.shape[:2])
        values -= values.mean(1, keepdims=True)
        height, width = grey.shape
        good = (depths[view] > 0) & (values.std(1) > protocol.contrast) & (
            (places[view] >= 0) & (places[view] < [width, height])).all(1)
        patches[view] = np.where(good[:, None], values, 0.0) / np.maximum(
            np.linalg.norm(values, axis=1, keepdims=True), 1e-6)
    same = np.einsum('ipk,jpk->pij', patches, patches, optimize=True) > protocol.alike  # [P, n, n]
    best = same[np.arange(len(same)), same.sum(2).argmax(1)]  # [P, n]
    best &= best.sum(1, keepdims=True) > 1
    return [np.flatnonzero(best[:, view]) for view in range(n)]


def projected(cameras: Cameras, view: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places [P, 2] of points [P, 3] in a view, column and row in pixels, through OpenCV's lenses; and their depths [P]
    along the axis. Places mean nothing for a depth that is not positive."""
    pose = cameras.poses[view].numpy()
    fx, fy, cx, cy = cameras.intrinsics[view].tolist()
    right, up, back = ((points - pose[:, 3]) @ pose[:, :3]).T
    depth = np.where(back == 0.0, 1e-12, -back)
    x, y = right / depth, -up / depth
    k1, k2, p1, p2, k3, k4, k5, k6 = np.zeros(8) if cameras.distortion is None else cameras.distortion[view].tolist()
    if cameras.fisheye is not None and cameras.fisheye[view]:
        t = np.arctan(np.hypot(x, y))
        bent = t * (1 + t ** 2 * (k1 + t ** 2 * (k2 + t ** 2 * (k3 + t ** 2 * k4)))) / np.maximum(np.hypot(x, y), 1e-12)
        x, y = bent * x, bent * y
    else:
        r2 = x * x + y * y
        radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
        x, y = (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
                y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y))
    return np.stack([cx + fx * x, cy + fy * y], 1), depth


def is_held(points: np.ndarray, protocol: Protocol = PROTOCOL) -> np.ndarray:
    """[P] bool: points that are kept from training."""
    return np.arange(len(points)) % protocol.points_held == 0


def write_split(folder: Path, capture: Capture, train: np.ndarray, test: np.ndarray, factor: int,
                protocol: Protocol = PROTOCOL) -> Split:
    """Writes a transforms.json of some of a capture's photographs, which stay where they are, and of its points."""
    folder.mkdir(parents=True)
    used = np.union1d(train, test)
    names = {int(i): str(upright_path(folder, capture, int(i))) for i in used}
    top: dict[str, Any] = {'frames': [frame_of(folder, capture, i, name) for i, name in names.items()],
                           'train_filenames': [names[i] for i in train.tolist()],
                           'val_filenames': [names[i] for i in test.tolist()],
                           'test_filenames': [names[i] for i in test.tolist()]}
    if capture.points is not None:
        write_points(folder / 'sparse_points.ply', capture.points[~is_held(capture.points, protocol)])
        top['ply_file_path'] = 'sparse_points.ply'
    (folder / 'transforms.json').write_text(json.dumps(top, indent=1), encoding='utf-8')
    flags = ['--dataset_type', 'transforms', '--datadir', str(folder), '--outside_files', '--factor', str(factor)]
    by_name = sorted(test.tolist(), key=names.get)  # as the loader sorts them
    loaded = load_transforms(folder, factor, outside_files=True)
    return Split('', flags, [capture.paths[i].name for i in by_name], [loaded.images[i] for i in loaded.i_test],
                 photographs=by_name)


def upright_path(folder: Path, capture: Capture, i: int) -> Path:
    """Absolute path of a photograph, or of a copy if its file is turned by EXIF data but its camera is not."""
    path, image = capture.paths[i].resolve(), capture.images[i]
    with Image.open(path) as file:
        turned = file.getexif().get(0x0112, 1) != 1
    if turned and not np.array_equal(read_image(path)[..., :3], image[..., :3]):
        path = folder / 'upright' / f'{i:05d}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return path


def frame_of(folder: Path, capture: Capture, i: int, name: str) -> dict[str, Any]:
    """Frame of a transforms.json for one photograph, whose path is `name`."""
    cameras = capture.cameras
    (height, width), intrinsics = cameras.size(i), cameras.intrinsics[i].tolist()
    lens = np.zeros(8) if cameras.distortion is None else cameras.distortion[i].double().numpy()
    fisheye = cameras.fisheye is not None and bool(cameras.fisheye[i])
    model = 'OPENCV_FISHEYE' if fisheye else 'FULL_OPENCV' if lens[5:].any() else 'OPENCV'
    frame = {'file_path': name, 'camera_model': model, 'w': width, 'h': height,
             **dict(zip(('fl_x', 'fl_y', 'cx', 'cy'), intrinsics)),
             **dict(zip(('k1', 'k2', 'p1', 'p2', 'k3', 'k4', 'k5', 'k6'), lens.tolist())),
             'transform_matrix': [*cameras.poses[i].tolist(), [0.0, 0.0, 0.0, 1.0]]}
    if capture.masks is not None:
        mask = folder / 'masks' / f'{i:05d}.png'
        mask.parent.mkdir(exist_ok=True)
        Image.fromarray(capture.masks[i]).save(mask)
        frame['mask_path'] = f'masks/{mask.name}'
    return frame


def llff_split(folder: Path, copy: Path, options: argparse.Namespace, protocol: Protocol = PROTOCOL) -> Split:
    """Split of a folder in the LLFF format; with validation, of a copy without the test views."""
    factor, rows = options.factor or 8, np.load(folder / 'poses_bounds.npy')
    images = folder / f'images_{factor}'
    if not images.is_dir():
        raise UserError(f'{folder} has no images_{factor}; make it, or choose another --factor')
    paths, hold = sorted(path for path in images.iterdir() if not path.name.startswith('.')), protocol.hold
    if options.validation:
        kept, _ = held_out(folder, len(paths), hold, 0)
        (copy / images.name).mkdir(parents=True)
        for i in kept:
            (copy / images.name / paths[i].name).symlink_to(paths[i].resolve())
        np.save(copy / 'poses_bounds.npy', rows[kept])
        folder, paths, hold = copy, [paths[i] for i in kept], protocol.hold_again
    flags = ['--dataset_type', 'llff', '--datadir', str(folder), '--factor', str(factor), '--llffhold', str(hold)]
    return Split('validation' if options.validation else 'test', flags, [path.name for path in paths[::hold]],
                 [read_image(path) for path in paths[::hold]])


# Runs


def train(checkout: Path, flags: Sequence[str], run: Path) -> dict[str, float]:
    """Trains by the flags of run_nerf.py into the folder `run`; returns what it cost. UserError: the run failed."""
    command = [sys.executable, 'run_nerf.py', *flags, '--basedir', str(run.parent), '--expname', run.name]
    run.parent.mkdir(parents=True, exist_ok=True)
    log = run.parent / f'{run.name}.log'
    with open(log, 'w', encoding='utf-8') as file:
        process = subprocess.Popen(command, cwd=checkout, stdout=file, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f'training failed: {last_line(log)} ({log})')
    last = json.loads((run / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()[-1])
    return {'seconds': last['seconds'], 'cpu_seconds': used.ru_utime + used.ru_stime, 'peak_mb': used.ru_maxrss / 1024,
            'train_psnr': last.get('psnr')}


def called(checkout: Path, command: Sequence[str], log: Path) -> str | None:
    """Standard output of a Python program in a checkout; None, with a line, if it failed."""
    done = subprocess.run([sys.executable, *command], cwd=checkout, capture_output=True, text=True)
    log.write_text(done.stdout + done.stderr, encoding='utf-8')
    if done.returncode:
        print(f'left out: {Path(command[0]).name} failed: {last_line(log)} ({log})', flush=True)
        return None
    return done.stdout


def last_line(log: Path) -> str:
    return (log.read_text(encoding='utf-8', errors='replace').strip().splitlines() or ['no output'])[-1][:300]


def measure(checkout: Path, split: Split, run: Path) -> dict[str, Any]:
    """Metrics of a run's pictures of the test views, and figures of its field."""
    job = run.parent / f'{run.name}_job.json'
    job.write_text(json.dumps({'run': str(run), 'points': str(split.points) if split.points else None,
                               'tested': split.tested, 'photographs': split.photographs}), encoding='utf-8')
    script = str(Path(__file__).with_name('field_figures.py'))
    answer = called(checkout, [script, str(checkout), str(job)], run.parent / f'{run.name}_figures.log')
    row = json.loads(answer.splitlines()[-1]) if answer else {}
    again = ['run_nerf.py', '--config', str(run / 'args.txt'), '--render_only', '--render_test']
    if called(checkout, again, run.parent / f'{run.name}_pictures.log') is not None:
        row |= picture_metrics(split, next(run.glob('renderonly_test_*')), row.pop('drawn', None))
    return row


def picture_metrics(split: Split, folder: Path, drawn: list[int] | None = None) -> dict[str, Any]:
    """Means of the metrics of pictures 000.png, ... in a folder, which are of the test views `drawn` (None: of all):
    whole, and right halves after a gain; and those of each view."""
    paths = sorted(path for path in folder.glob('*.png') if path.stem.isdigit())
    drawn = list(range(len(split.tested))) if drawn is None else drawn
    if len(drawn) < len(split.tested) or len(paths) != len(drawn):
        print(f'{folder} has {len(paths)} pictures of {len(split.tested)} test views', flush=True)
    if len(paths) != len(drawn):
        return {}
    views = [{'photograph': split.tested[i], **view_metrics(read_image(path), split.targets[i])}
             for path, i in zip(paths, drawn)]
    names = [key for key in views[0] if key != 'photograph']
    return {name: float(np.mean([view[name] for view in views])) for name in names} | {'views': views}


def view_metrics(rendered: np.ndarray, photograph: np.ndarray) -> dict[str, float]:
    """Metrics of a picture of a test view, as a whole and, as 'right_...', of its right half after a gain. Both
    pictures are [H, W, 3 or more] uint8."""
    shown, target = (picture[..., :3].astype(np.float32) / 255.0 for picture in (rendered, photograph))
    halves = right_halves(shown, target, np.zeros_like(target[..., :1]))[:2]
    return compare(shown, target) | {f'right_{name}': value for name, value in compare(*halves).items()}


def trained_row(checkout: Path, splits: list[Split], seed: int, options: argparse.Namespace, folder: Path
                ) -> dict[str, Any]:
    """Row of one version, capture and seed. Figures of the arc are of its own training."""
    row: dict[str, Any] = {}
    for split in splits:
        run = folder / split.name
        flags = ['--field', 'grid', '--exposure', 'off', '--N_iters', str(options.steps), '--seed', str(seed),
                 '--i_testset', str(NEVER), '--i_video', str(NEVER), '--i_img', str(NEVER), '--i_weights', str(NEVER),
                 *split.flags, *shlex.split(options.flags)]
        try:
            cost = train(checkout, flags, run)
            found = measure(checkout, split, run)
        except UserError as error:
            print(f'left out: {error}', flush=True)
            continue
        print(f'{run.parent.name}: {split.name} views {found.get("psnr", math.nan):.2f} dB, {cost["seconds"]:.0f} s of '
              'training', flush=True)
        if not options.keep:
            for checkpoint in run.glob('*.tar'):
                checkpoint.unlink()
        found['views'] = [view | {'split': split.name} for view in found.get('views', [])]
        if split.name == 'arc':
            chosen = {f'arc_{key}': value for key, value in (cost | found).items() if key not in ('views', 'rows')}
            row |= chosen | {'views': row.get('views', []) + found['views']}
        else:
            row |= cost | found
    return row


# The table


def mean_row(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means of the columns over rows; a column that a row lacks is left out."""
    return {column.key: float(np.mean(values)) for column in COLUMNS
            if None not in (values := [row.get(column.key) for row in rows])}


def table(rows: list[dict[str, Any]]) -> str:
    """Table in Markdown of the means over seeds, for each capture and version, and of the differences between the
    versions; columns without a value are left out."""
    lines = []
    for capture in dict.fromkeys(row['capture'] for row in rows):
        means = {version: mean_row([row for row in rows if (row['capture'], row['version']) == (capture, version)])
                 for version in dict.fromkeys(row['version'] for row in rows)}
        lines += [(capture, version, values, '') for version, values in means.items()]
        if len(means) == 2:
            here, there = means.values()
            lines.append((capture, 'difference', {key: here[key] - there[key] for key in here if key in there}, '+'))
    columns = [column for column in COLUMNS if any(column.key in values for *_, values, _ in lines)]

    def text(column: Column, values: dict[str, float], sign: str) -> str:
        return format(column.factor * values[column.key], sign + column.form) if column.key in values else ''
    cells = [['capture', 'version', *(column.title for column in columns)]]
    cells += [[capture, version, *(text(column, values, sign) for column in columns)]
              for capture, version, values, sign in lines]
    widths = [max(map(len, parts)) for parts in zip(*cells)]
    out = ['| ' + ' | '.join(part.rjust(width) for part, width in zip(parts, widths)) + ' |' for parts in cells]
    return '\n'.join([out[0], '|' + '|'.join('-' * (width + 2) for width in widths) + '|', *out[1:]])


def parsed() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--captures', nargs='+', default=list(CAPTURES), metavar='CAPTURE',
        help=f'some of {", ".join(CAPTURES)}, folders of captures with cameras, or NAME=FOLDER')
    add('--steps', type=int, default=600, help='steps of each training')
    add('--seeds', type=int, nargs='+', default=[0], help='seeds; the table has means over them')
    add('--factor', type=int, help='photographs are reduced to 1/N of their size. Default: 8 for LLFF, else until '
        f'their longer side has at most {PROTOCOL.longest} pixels')
    add('--flags', default='', help='further flags of run_nerf.py, as one word: --flags "--lrate 1e-2"')
    add('--validation', action='store_true', help='test views are left out altogether, and views that are held out '
        'from the rest are measured; for tuning')
    add('--no_arc', action='store_true', help='no second training without the photographs of an arc')
    add('--against', type=Path, metavar='CHECKOUT', help='another version of the project, which runs by turns')
    add('--out', type=Path, help='folder of runs, pictures and captures.json. Default: a new one in '
        'logs/captures_benchmark/')
    add('--keep', action='store_true', help='checkpoints stay in that folder')
    return parser.parse_args()


def main() -> None:
    """Trains all captures, prints the table and writes the JSON."""
    options = parsed()
    out = (options.out or ROOT / 'logs' / 'captures_benchmark' / time.strftime('%m%d_%H%M%S')).resolve()
    out.mkdir(parents=True, exist_ok=False)
    versions = {'here': ROOT} | ({'against': options.against.resolve()} if options.against else {})
    rows: list[dict[str, Any]] = []
    settings = {key: value if isinstance(value, (int, list, bool, type(None))) else str(value)
                for key, value in vars(options).items()}
    for name, folder in map(named_folder, options.captures):
        try:
            splits = splits_of(name, folder, out, options)
        except UserError as error:
            print(f'left out: {name}: {error}', flush=True)
            continue
        for split in splits:
            print(f'{name}: {split.name} views are {", ".join(split.tested)}', flush=True)
        for turn, seed in enumerate(options.seeds):
            for version in list(versions)[::-1 if turn % 2 else 1]:
                row = trained_row(versions[version], splits, seed, options, out / f'{name}_{version}_{seed}')
                rows.append({'capture': name, 'version': version, 'seed': seed, **row})
                text = json.dumps({'settings': settings, 'rows': rows}, indent=1)
                (out / 'captures.json').write_text(text + '\n', encoding='utf-8')
    print(table(rows))
    print(f'everything is in {out}, figures of each run and view in captures.json')


if __name__ == '__main__':
    main()
