"""Sparse models of COLMAP: lenses, images and points of a folder, in COLMAP's binary and text format.

Both formats are described at https://colmap.github.io/format.html. Files are read record by record, so that a broken
count of records cannot allocate memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nerf.cameras import COEFFICIENTS
from nerf.captures.capture import Lens, PosedPhotograph
from nerf.files.scene_files import is_inside
from nerf.poses import FARTHEST, colmap_pose, rigid, rotation_matrix
from nerf.runtime.errors import UserError

FOLDERS = ('sparse/0', 'sparse', 'colmap/sparse/0', '.')  # of a scene, in which a model is looked for
CAMERA, IMAGE, POINT, COUNT = map(struct.Struct, ('<IiQQ', '<I7dI', '<Q3d3xdQ', '<Q'))
FEATURE = np.dtype([('place', '<f8', 2), ('point_id', '<i8')])

# Parameters of each model in COLMAP's order (src/colmap/sensor/models.h). f is fx and fy; a radial k is k1.
PERSPECTIVE = {'SIMPLE_PINHOLE': 'f cx cy',
               'PINHOLE': 'fx fy cx cy',
               'SIMPLE_RADIAL': 'f cx cy k1',
               'RADIAL': 'f cx cy k1 k2',
               'OPENCV': 'fx fy cx cy k1 k2 p1 p2',
               'FULL_OPENCV': 'fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6'}
FISHEYE = {'OPENCV_FISHEYE': 'fx fy cx cy k1 k2 k3 k4',
           'SIMPLE_RADIAL_FISHEYE': 'f cx cy k1',
           'RADIAL_FISHEYE': 'f cx cy k1 k2',
           'SIMPLE_FISHEYE': 'f cx cy',
           'FISHEYE': 'fx fy cx cy'}
PARAMETERS = {name: tuple(text.split()) for name, text in (PERSPECTIVE | FISHEYE).items()}
# Models by their number in binary files
NUMBERS = ('SIMPLE_PINHOLE', 'PINHOLE', 'SIMPLE_RADIAL', 'RADIAL', 'OPENCV', 'OPENCV_FISHEYE', 'FULL_OPENCV', 'FOV',
           'SIMPLE_RADIAL_FISHEYE', 'RADIAL_FISHEYE', 'THIN_PRISM_FISHEYE', 'RAD_TAN_THIN_PRISM_FISHEYE',
           'SIMPLE_DIVISION', 'DIVISION', 'SIMPLE_FISHEYE', 'FISHEYE', 'EUCM', 'EQUIRECTANGULAR')
LARGEST = 1e7  # largest value of any parameter


@dataclass(frozen=True)
class PointRules:
    """Numbers that decide which points are reliable, set by hand; results were looked at on fox_small and beer."""

    fewest_observations: int = 2  # features of a point
    error_ratio: float = 3.0  # largest reprojection error of a point, as a multiple of the median
    least_error: float = 1.0  # pixels of reprojection error that are always accepted


RULES = PointRules()


class ColmapImage(NamedTuple):
    """Pose of an image and the points that it observes."""

    name: str  # relative to the folder of the images
    camera_id: int
    quaternion: np.ndarray  # [4] float64: w, x, y, z of the rotation from world to camera, OpenCV axes
    translation: np.ndarray  # [3] float64 from world to camera
    point_ids: np.ndarray  # [K] int64, of the point that each feature observes; -1: no point


class ColmapPoints(NamedTuple):
    """Sparse points of a model."""

    ids: np.ndarray  # [P] int64
    places: np.ndarray  # [P, 3] float64
    errors: np.ndarray  # [P] float64 mean reprojection error in pixels; -1: unknown
    tracks: np.ndarray  # [P] int64: features that observe the point


class ColmapModel(NamedTuple):
    """Content of a model's folder."""

    folder: Path
    cameras: dict[int, Lens]
    images: list[ColmapImage]
    points: ColmapPoints | None  # None: the folder has no file of points


def lens_of(model: str, size: tuple[float, float], values: dict[str, float]) -> Lens:
    """Lens of a model in PARAMETERS for pictures of a size, from its parameters by name; missing distortion is 0. An
    impossible value is a ValueError with its name."""
    values = dict.fromkeys(('fx', 'fy'), values.get('f')) | values
    for name, value in values.items():
        if value is not None and not (1e-3 if name in ('fx', 'fy') else -LARGEST) <= value <= LARGEST:
            raise ValueError(f'{name} is {value:g}')
    return Lens(np.array([values[name] for name in ('fx', 'fy', 'cx', 'cy')], np.float64),
                np.array([values.get(name, 0.0) for name in COEFFICIENTS], np.float64), model in FISHEYE, size)


def read_model(datadir: Path) -> ColmapModel:
    """Sparse model of the scene in the folder `datadir`; a UserError if it is missing, broken or has another lens."""
    for folder in (datadir / name for name in FOLDERS):
        for ending, readers in (('bin', BINARY), ('txt', TEXT)):
            files = [folder / f'{part}.{ending}' for part in ('cameras', 'images', 'points3D')]
            if files[0].is_file() and files[1].is_file():
                return ColmapModel(folder, *(read(file) if file.is_file() else None
                                             for file, read in zip(files, readers)))
    raise UserError(f'{datadir} has no COLMAP model: cameras.bin and images.bin, or cameras.txt and images.txt, are '
                    f'looked for in {", ".join(FOLDERS[:-1])} and the folder itself')


def posed_photograph(datadir: Path, model: ColmapModel, image: ColmapImage) -> PosedPhotograph:
    """Photograph datadir/images/<name> of an image of a model."""
    where, folder = f'{model.folder}: image {image.name!r}', datadir / 'images'
    path = folder / image.name
    if path == folder or not is_inside(path, folder):
        raise UserError(f'{where} is not in the folder {folder}')
    if image.camera_id not in model.cameras:
        raise UserError(f'{where} has camera {image.camera_id}, which the model does not have; export it again')
    try:
        with np.errstate(over='ignore'):
            length = np.linalg.norm(image.quaternion)
        if not 1e-6 < length < 1e6:
            raise ValueError(f'has a quaternion of length {length:g}')
        pose = rigid(colmap_pose(rotation_matrix(image.quaternion), image.translation))
    except ValueError as error:
        raise UserError(f'{where} has a pose that {error}; run COLMAP again') from None
    return PosedPhotograph(image.name, path, pose, model.cameras[image.camera_id])


def reliable_points(points: ColmapPoints | None, images: Sequence[ColmapImage], rules: PointRules = RULES
                    ) -> tuple[np.ndarray, list[np.ndarray]] | tuple[None, None]:
    """Points [P, 3] of a model with several observations and a usual reprojection error, and for each image the indices
    of the points that it observes; None, None if no point is left."""
    if points is None:
        return None, None
    good = (points.tracks >= rules.fewest_observations) & (np.abs(points.places) < FARTHEST).all(1)
    known = good & (points.errors >= 0)
    if known.any():
        good &= ~(points.errors > max(rules.error_ratio * np.median(points.errors[known]), rules.least_error))
    if not good.any():
        return None, None
    order = np.argsort(points.ids[good], kind='stable')
    ids = points.ids[good][order]
    observed = []
    for image in images:
        place = np.searchsorted(ids[:-1], image.point_ids)  # at which each id is, if it is known
        observed.append(np.unique(order[place[ids[place] == image.point_ids]]))
    return points.places[good], observed


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f'{path} is damaged ({why}); copy it again, or export the model again with COLMAP')


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error})') from None


def _lens(path: Path, camera_id: int, model: str, width: int, height: int, numbers: list[float]) -> Lens:
    """Lens of a camera; a UserError if it cannot be held."""
    if model not in PARAMETERS:
        raise UserError(f'{path}: camera {camera_id} has the model {model}, which is not supported (supported are '
                        f'{", ".join(PARAMETERS)}); run COLMAP\'s image_undistorter and use the scene that it writes')
    if not (0 < width < 2 ** 20 and 0 < height < 2 ** 20):
        raise _damaged(path, f'camera {camera_id} has {width}x{height} pixels')
    if len(numbers) != len(PARAMETERS[model]):
        raise _damaged(path, f'camera {camera_id} has {len(numbers)} parameters, but {model} has '
                             f'{len(PARAMETERS[model])}')
    try:
        return lens_of(model, (width, height), dict(zip(PARAMETERS[model], numbers)))
    except ValueError as error:
        raise _damaged(path, f'{error} of camera {camera_id}') from None


class _Bytes:
    """Content of a binary file, read from beginning to end."""

    def __init__(self, path: Path):
        self.path, self.at, self.data = path, 0, _read(path)

    def skip(self, length: int) -> int:
        """Moves on by `length` bytes; returns where they begin."""
        start, self.at = self.at, self.at + length
        if self.at > len(self.data):
            raise _damaged(self.path, 'it ends too early')
        return start

    def take(self, layout: struct.Struct) -> tuple:
        return layout.unpack_from(self.data, self.skip(layout.size))

    def array(self, dtype: np.dtype | str, count: int) -> np.ndarray:
        return np.frombuffer(self.data, dtype, count, self.skip(np.dtype(dtype).itemsize * count))

    def text(self) -> str:
        end = self.data.find(b'\0', self.at)
        if end < 0:
            raise _damaged(self.path, 'it ends within a name')
        return self.data[self.skip(end + 1 - self.at):end].decode('utf-8', 'surrogateescape')

    def records(self) -> Iterator[int]:
        """Counts to the number of records at the beginning of the file, which must end with the last record."""
        yield from range(self.take(COUNT)[0])
        if self.at != len(self.data):
            raise _damaged(self.path, 'something is left at its end')


def _binary_cameras(path: Path) -> dict[int, Lens]:
    file, cameras = _Bytes(path), {}
    for _ in file.records():
        camera_id, number, width, height = file.take(CAMERA)
        model = NUMBERS[number] if 0 <= number < len(NUMBERS) else f'number {number}'
        numbers = file.array('<f8', len(PARAMETERS.get(model, ()))).tolist()
        cameras[camera_id] = _lens(path, camera_id, model, width, height, numbers)
    return cameras


def _binary_images(path: Path) -> list[ColmapImage]:
    file, images = _Bytes(path), []
    for _ in file.records():
        _, *pose, camera_id = file.take(IMAGE)
        name, point_ids = file.text(), file.array(FEATURE, file.take(COUNT)[0])['point_id']
        images.append(ColmapImage(name, camera_id, np.array(pose[:4]), np.array(pose[4:]), point_ids))
    return images


def _binary_points(path: Path) -> ColmapPoints:
    file, rows = _Bytes(path), []
    for _ in file.records():
        row = file.take(POINT)
        file.skip(8 * row[-1])
        rows.append(row)
    return _points(path, rows)


def _points(path: Path, rows: list[tuple]) -> ColmapPoints:
    """Points of rows (id, x, y, z, error, track length)."""
    ids, x, y, z, errors, tracks = zip(*rows) if rows else [()] * 6
    try:
        return ColmapPoints(np.array(ids, np.int64), np.array([x, y, z], np.float64).T, np.array(errors, np.float64),
                            np.array(tracks, np.int64))
    except OverflowError:
        raise _damaged(path, 'a point has a number above 2^63') from None


def _records(path: Path, read: Callable[..., Any], each: int = 1) -> list:
    """Results of `read` for each line of a text file that is no comment, or for each `each` lines."""
    text = _read(path).decode('utf-8', 'surrogateescape').replace('\r\n', '\n').replace('\r', '\n')
    lines = [line for line in text.split('\n') if not line.startswith('#')]
    while lines and not lines[-1].strip():
        del lines[-1]
    lines += [''] * (-len(lines) % each)  # the last image can have no features
    results = []
    for record in zip(*[iter(lines)] * each):
        try:
            if each > 1 or record[0].strip():
                results.append(read(*record))
        except (ValueError, IndexError, OverflowError):
            raise _damaged(path, f'it has a line {" ".join(record)[:80]!r}') from None
    return results


def _text_cameras(path: Path) -> dict[int, Lens]:
    def camera(line: str) -> tuple[int, Lens]:
        camera_id, model, width, height, *numbers = line.split()
        return int(camera_id), _lens(path, int(camera_id), model, int(width), int(height), list(map(float, numbers)))
    return dict(_records(path, camera))


def _text_images(path: Path) -> list[ColmapImage]:
    def image(line: str, features: str) -> ColmapImage:
        _, *pose, camera_id, name = line.split(maxsplit=9)
        point_ids = np.array(list(map(int, features.split()[2::3])), np.int64)
        w, i, j, k, x, y, z = map(float, pose)
        return ColmapImage(name, int(camera_id), np.array([w, i, j, k]), np.array([x, y, z]), point_ids)
    return _records(path, image, each=2)


def _text_points(path: Path) -> ColmapPoints:
    def point(line: str) -> tuple:
        words = line.split()
        return int(words[0]), *map(float, words[1:4]), float(words[7]), (len(words) - 8) // 2
    return _points(path, _records(path, point))


BINARY = (_binary_cameras, _binary_images, _binary_points)
TEXT = (_text_cameras, _text_images, _text_points)
