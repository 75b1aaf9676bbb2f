"""Files of COLMAP's sparse models, binary and text: cameras, images and points.

Both formats are described at https://colmap.github.io/format.html. Files are read record by record, so that a broken
count of records cannot allocate memory. Text is read as other programs write it, too: with a byte order mark, with
empty lines, without the lines of features, or with points of which only place and colour are known.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nerf.captures.lenses import PARAMETERS, Lens, lens_of
from nerf.runtime.errors import UserError

CAMERA, IMAGE, POINT, COUNT = map(struct.Struct, ('<IiQQ', '<I7dI', '<Q3d3xdQ', '<Q'))
FEATURE = np.dtype([('place', '<f8', 2), ('point_id', '<i8')])
IMAGE_WORDS = 10  # of an image in text: id, quaternion, translation, camera, name, which can have several words
POINT_WORDS = 8  # of a point in text before its track: id, place, colour, error

# Models by their number in binary files
NUMBERS = ('SIMPLE_PINHOLE', 'PINHOLE', 'SIMPLE_RADIAL', 'RADIAL', 'OPENCV', 'OPENCV_FISHEYE', 'FULL_OPENCV', 'FOV',
           'SIMPLE_RADIAL_FISHEYE', 'RADIAL_FISHEYE', 'THIN_PRISM_FISHEYE', 'RAD_TAN_THIN_PRISM_FISHEYE',
           'SIMPLE_DIVISION', 'DIVISION', 'SIMPLE_FISHEYE', 'FISHEYE', 'EUCM', 'EQUIRECTANGULAR')


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
    tracks: np.ndarray  # [P] int64: features that observe the point; 0: unknown, as other programs write it


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


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file that are no comments; some are empty."""
    text = _read(path).removeprefix(b'\xef\xbb\xbf').decode('utf-8', 'surrogateescape')
    return (line for line in re.split('\r\n|\r|\n', text) if not line.lstrip().startswith('#'))


def _records(path: Path, lines: Iterator[str], read: Callable[[str], Any]) -> list:
    """Results of `read` for each line that is not empty."""
    results = []
    for line in lines:
        try:
            if line.strip():
                results.append(read(line))
        except (ValueError, IndexError, OverflowError):
            raise _damaged(path, f'it has a line {line[:80]!r}') from None
    return results


def _text_cameras(path: Path) -> dict[int, Lens]:
    def camera(line: str) -> tuple[int, Lens]:
        camera_id, model, width, height, *numbers = line.split()
        width, height, *numbers = map(float, (width, height, *numbers))  # some programs write sizes as 1920.0
        return int(camera_id), _lens(path, int(camera_id), model.upper(), int(width), int(height), numbers)
    return dict(_records(path, _lines(path), camera))


def _text_images(path: Path) -> list[ColmapImage]:
    """Images of a text file. The line after an image has its features, unless it has the next image."""
    images, lines = [], _lines(path)

    def image(line: str) -> ColmapImage:
        _, *pose, camera_id, name = line.split(maxsplit=IMAGE_WORDS - 1)
        w, i, j, k, x, y, z = map(float, pose)
        return ColmapImage(name.rstrip(), int(camera_id), np.array([w, i, j, k]), np.array([x, y, z]),
                           np.zeros(0, np.int64))

    def either(line: str) -> None:
        point_ids = _observed(line) if images and not len(images[-1].point_ids) else None
        if point_ids is None:
            images.append(image(line))
        else:
            images[-1] = images[-1]._replace(point_ids=point_ids)
    _records(path, lines, either)
    return images


def _observed(line: str) -> np.ndarray | None:
    """Ids [K] of points that a line of features (x, y, id, ...) observes; None: it is no such line."""
    words = line.split()
    try:
        if len(words) % 3:
            return None
        list(map(float, words[:IMAGE_WORDS + 2]))  # of an image, the name is among them
        return np.array(list(map(int, words[2::3])), np.int64)
    except (ValueError, OverflowError):
        return None


def _text_points(path: Path) -> ColmapPoints:
    def point(line: str) -> tuple | None:
        words = line.split()
        if len(words) < POINT_WORDS:
            return None
        return int(words[0]), *map(float, words[1:4]), float(words[7]), (len(words) - POINT_WORDS) // 2
    rows = _records(path, _lines(path), point)
    if short := rows.count(None):
        print(f'warning: {path}: {short} of {len(rows)} points are left out, as their lines have less than the '
              f'{POINT_WORDS} columns of COLMAP (id, x, y, z, r, g, b, error)', file=sys.stderr)
    return _points(path, [row for row in rows if row is not None])


BINARY = (_binary_cameras, _binary_images, _binary_points)
TEXT = (_text_cameras, _text_images, _text_points)
