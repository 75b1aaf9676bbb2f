"""COLMAP's sparse models: cameras, images and points of a folder, in its binary and its text format.

Both formats are described at https://colmap.github.io/format.html. A file is read as it goes on: what it says of
numbers of things takes no memory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nerf.captures.lenses import NUMBERS, PARAMETERS, Lens, lens_of
from nerf.runtime.errors import UserError

FOLDERS = ('sparse/0', 'sparse', 'colmap/sparse/0', '.')  # of a scene, where models are looked for
CAMERA, IMAGE, POINT = struct.Struct('<IiQQ'), struct.Struct('<I7dI'), struct.Struct('<Q3d3xdQ')
COUNT = struct.Struct('<Q')


class Camera(NamedTuple):
    lens: Lens
    size: tuple[int, int]  # width, height in pixels


class Image(NamedTuple):
    name: str  # relative to the folder of the images
    camera_id: int
    quaternion: np.ndarray  # [4] float64: w, x, y, z of the rotation from world to camera, OpenCV axes
    translation: np.ndarray  # [3] float64 from world to camera
    point_ids: np.ndarray  # [K] int64, of the points that its K features show; -1: of none


class Points(NamedTuple):
    ids: np.ndarray  # [P] int64
    places: np.ndarray  # [P, 3] float64
    errors: np.ndarray  # [P] float64 mean reprojection error in pixels; -1: not known
    tracks: np.ndarray  # [P] int64: how many features show it


class Model(NamedTuple):
    folder: Path
    cameras: dict[int, Camera]
    images: list[Image]
    points: Points | None  # None: it has no file of them


def read_model(datadir: Path) -> Model:
    """The sparse model of a scene's folder.

    Raises:
        UserError: there is none, or it is broken or has lenses that nerf/cameras.py cannot hold.
    """
    for folder in (datadir / name for name in FOLDERS):
        for ending, readers in (('bin', BINARY), ('txt', TEXT)):
            files = [folder / f'{part}.{ending}' for part in ('cameras', 'images', 'points3D')]
            if files[0].is_file() and files[1].is_file():
                cameras, images, points = (read(file) if file.is_file() else None
                                           for file, read in zip(files, readers))
                return Model(folder, cameras, images, points)
    raise UserError(f'{datadir} has no COLMAP model: cameras.bin and images.bin, or cameras.txt and images.txt, are '
                    f'looked for in {", ".join(FOLDERS[:-1])} and the folder itself')


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f'{path} is damaged ({why}); copy it again, or export the model again with COLMAP')


def _camera(path: Path, camera_id: int, model: str, width: int, height: int, numbers: list[float]) -> Camera:
    if model not in PARAMETERS:
        raise UserError(f'{path}: camera {camera_id} has the model {model}, which is not supported (supported are '
                        f'{", ".join(PARAMETERS)}); run COLMAP\'s image_undistorter and use the scene that it writes')
    if not (0 < width < 2 ** 20 and 0 < height < 2 ** 20):
        raise _damaged(path, f'camera {camera_id} has {width}x{height} pixels')
    if len(numbers) != len(PARAMETERS[model]):
        raise _damaged(path, f'camera {camera_id} has {len(numbers)} parameters, but {model} has '
                             f'{len(PARAMETERS[model])}')
    try:
        return Camera(lens_of(model, dict(zip(PARAMETERS[model], numbers))), (width, height))
    except ValueError as error:
        raise _damaged(path, f'{error} of camera {camera_id}') from None


# Binary


class _Bytes:
    """The content of a binary file, taken from its beginning to its end."""

    def __init__(self, path: Path):
        self.path, self.at = path, 0
        try:
            self.data = path.read_bytes()
        except OSError as error:
            raise UserError(f'{path} cannot be read ({error})') from None

    def skip(self, length: int) -> int:
        """Where the next `length` bytes begin, which are then behind."""
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
        """Counts up to the number that the file begins with; nothing may be left behind them."""
        yield from range(self.take(COUNT)[0])
        if self.at != len(self.data):
            raise _damaged(self.path, 'something is left at its end')


def _binary_cameras(path: Path) -> dict[int, Camera]:
    file, cameras = _Bytes(path), {}
    for _ in file.records():
        camera_id, number, width, height = file.take(CAMERA)
        model = NUMBERS[number] if 0 <= number < len(NUMBERS) else f'number {number}'
        numbers = file.array('<f8', len(PARAMETERS.get(model, ()))).tolist()
        cameras[camera_id] = _camera(path, camera_id, model, width, height, numbers)
    return cameras


def _binary_images(path: Path) -> list[Image]:
    file, images = _Bytes(path), []
    feature = np.dtype([('place', '<f8', 2), ('point_id', '<i8')])
    for _ in file.records():
        _, *pose, camera_id = file.take(IMAGE)
        name = file.text()
        point_ids = file.array(feature, file.take(COUNT)[0])['point_id']
        images.append(Image(name, camera_id, np.array(pose[:4]), np.array(pose[4:]), point_ids))
    return images


def _binary_points(path: Path) -> Points:
    file, rows = _Bytes(path), []
    for _ in file.records():
        row = file.take(POINT)
        file.skip(8 * row[-1])
        rows.append(row)
    return _points(path, rows)


def _points(path: Path, rows: list[tuple]) -> Points:
    """Points of rows of id, x, y, z, error and track length."""
    ids, x, y, z, errors, tracks = zip(*rows) if rows else [()] * 6
    try:
        return Points(np.array(ids, np.int64), np.array([x, y, z], np.float64).T, np.array(errors, np.float64),
                      np.array(tracks, np.int64))
    except OverflowError:
        raise _damaged(path, 'a point has a number above 2^63') from None


# Text


def _lines(path: Path) -> list[str]:
    """The lines of a text file but for comments."""
    try:
        return [line for line in path.read_text('utf-8', 'surrogateescape').split('\n') if not line.startswith('#')]
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error})') from None


def _read_lines(path: Path, read, lines) -> list:
    """What `read` makes of each line's words; a line of which it makes nothing is a UserError."""
    results = []
    for line in lines:
        try:
            results.append(read(*line))
        except (ValueError, IndexError, OverflowError):
            raise _damaged(path, f'it has a line {" ".join(line)[:80]!r}') from None
    return results


def _text_cameras(path: Path) -> dict[int, Camera]:
    def camera(line: str) -> tuple[int, Camera]:
        camera_id, model, width, height, *numbers = line.split()
        return int(camera_id), _camera(path, int(camera_id), model, int(width), int(height), list(map(float, numbers)))
    return dict(_read_lines(path, camera, ((line,) for line in _lines(path) if line.strip())))


def _text_images(path: Path) -> list[Image]:
    def image(line: str, features: str) -> Image:
        _, w, i, j, k, x, y, z, camera_id, name = line.split(maxsplit=9)
        return Image(name.rstrip('\r'), int(camera_id), np.array([w, i, j, k], np.float64),
                     np.array([x, y, z], np.float64),
                     np.array(list(map(int, features.split()[2::3])), np.int64))

    lines = _lines(path)
    while lines and not lines[-1].strip():
        del lines[-1]
    lines += [''] * (len(lines) % 2)  # the last image's line of features may be empty
    return _read_lines(path, image, zip(lines[::2], lines[1::2]))


def _text_points(path: Path) -> Points:
    def point(line: str) -> tuple:
        words = line.split()
        return int(words[0]), *map(float, words[1:4]), float(words[7]), (len(words) - 8) // 2
    return _points(path, _read_lines(path, point, ((line,) for line in _lines(path) if line.strip())))


BINARY = (_binary_cameras, _binary_images, _binary_points)
TEXT = (_text_cameras, _text_images, _text_points)
