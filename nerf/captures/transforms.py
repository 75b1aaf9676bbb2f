"""transforms.json of nerfstudio, instant-ngp, Polycam, Record3D and Luma: a whole capture in one file.

Formats: https://docs.nerf.studio/quickstart/data_conventions.html and nerf_dataset_tips.md of instant-ngp. Both have
OpenGL axes. They differ in how they move and scale the scene afterwards, which this module does not do.
"""

from __future__ import annotations

import io
import json
import math
from collections import ChainMap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nerf.cameras import COEFFICIENTS, Cameras
from nerf.captures.capture import SPLITS, PosedPhotograph
from nerf.captures.lenses import LARGEST, PARAMETERS, Lens, lens_of
from nerf.captures.phones import phone_export
from nerf.files.images import ENDINGS, image_size
from nerf.files.scene_files import (
    Found, SceneFolder, clean_name, contents, is_file, is_there, leaves, none_there, read_json, say_assumed, told_apart,
)
from nerf.files.whole_file import whole_file
from nerf.poses import FARTHEST, rigid, say_unusual
from nerf.runtime.errors import UserError

# nerfstudio's OPENCV has two more radial terms, k3 and k4; nerf/cameras.py has no k4 of that meaning (degree 8).
LENSES = PARAMETERS | {'OPENCV': (*PARAMETERS['OPENCV'], 'k3')}
OTHER_LENSES = ('ftheta_p0', 'latlong', 'equirectangular', 'orthographic')  # keys of instant-ngp
ESTIMATED = 'estimated_from'  # key of files that nerf/captures/estimation.py wrote
SKEW = 1e-3  # largest entry of K beside the focal length, as a share of it


class Transforms(NamedTuple):
    """Content of a file."""

    path: Path  # of the file, or of what a phone app's export has instead
    photographs: list[PosedPhotograph]  # by name; some can be missing
    splits: dict[str, list[str]]  # names of photographs, for the SPLITS that the file has
    points: Path | None  # a PLY file of sparse points in the same coordinates, which can be missing
    upright: bool  # its cameras are for pictures turned as EXIF says: those that this program estimated


def read_transforms(path: Path, outside_files: bool = False) -> Transforms:
    """Content of a scene's transforms.json or, without that file, of a phone app's export; sizes of pictures are from
    their files if it does not have them. With `outside_files`, the file may name files outside its folder."""
    scene, (path, top) = path.parent, _content(path)
    frames = top.get('frames')
    if not isinstance(frames, list) or not frames:
        raise UserError(f'{path}: "frames" must be a list with at least one frame')
    ours = ESTIMATED in top  # then links are those through which the photographs were found
    folder = SceneFolder(scene, outside_files, links=ours)
    entries = [_Entry(path, f'frame {i}', frame, top, folder) for i, frame in enumerate(frames)]
    pictures = told_apart(folder, [entry.picture() for entry in entries])
    masks = _masks(folder, [entry.file('mask_path') for entry in entries], pictures)
    say_unusual(path, np.stack([entry.matrix() for entry in entries]))
    say_assumed(path, pictures)
    say_assumed(path, [mask for mask in masks if mask], 'masks')
    there = [picture.path for picture in pictures if is_there(picture.path)]
    sizes = [entry.size() for entry in entries]
    if not there and None in sizes:
        raise UserError(none_there([picture.path for picture in pictures]))
    photographs = [  # a missing one without a size is as large as another
        entry.photograph(picture.path, mask and mask.path,
                         size or image_size(picture.path if is_there(picture.path) else there[0], ours)[::-1])
        for entry, picture, mask, size in zip(entries, pictures, masks, sizes)]
    points = _Entry(path, 'the file', top, {}, folder).file('ply_file_path', endings=())
    say_assumed(path, [points] if points else [], 'files of points')
    splits = {split: _names(path, key, top[key], folder, photographs)
              for split in SPLITS if (key := f'{split}_filenames') in top}
    return Transforms(path, sorted(photographs, key=lambda photograph: photograph.name), splits,
                      points and points.path, ours)


def _content(path: Path) -> tuple[Path, dict[str, Any]]:
    """Content of a transforms.json, or what a phone app's export has instead, and the path of it."""
    if not is_file(path) and (export := phone_export(path.parent)):
        return export
    top = read_json(path, f'datadir must hold it; it has {contents(path.parent)}')
    if not isinstance(top, dict):
        raise UserError(f'{path} is not a JSON object with "frames"; download or export it again')
    return path, top


def _masks(folder: SceneFolder, masks: Sequence[Found | None], pictures: Sequence[Found]) -> list[Found | None]:
    """Masks of pictures, if they have any, of which no picture itself was taken for one."""
    rest = iter(told_apart(folder, [mask for mask in masks if mask], {picture.path for picture in pictures}))
    return [mask and next(rest) for mask in masks]


def _names(path: Path, key: str, names: Any, folder: SceneFolder, photographs: Sequence[PosedPhotograph]) -> list[str]:
    """Names of photographs in a list of the file, which can name them in another way than the frames do."""
    known, by_path = {each.name for each in photographs}, {each.path: each.name for each in photographs}
    try:
        if isinstance(names, list):
            return [name if name in known else by_path.get(folder.find(name).path, name)
                    for name in map(clean_name, names)]
    except ValueError:
        pass
    raise UserError(f'{path}: {key} must be a list of names')


def read_ply(path: Path) -> np.ndarray:
    """Points [P, 3] float64 of a PLY file, which has at least one."""
    import trimesh
    try:
        content = io.BytesIO(path.read_bytes())  # without a path, beside which trimesh would look for textures
        loaded = trimesh.load(content, file_type='ply', process=False)
        points = np.asarray(getattr(loaded, 'vertices', ()), np.float64).reshape(-1, 3)
    except FileNotFoundError:
        raise UserError(f'{path} does not exist; copy it there') from None
    except Exception as error:  # trimesh passes on whatever its parsers raise
        raise UserError(f'{path} cannot be read as a PLY file of points ({error}); export the scene again') from None
    points = points[(np.abs(points) < FARTHEST).all(1)]
    if not len(points):
        raise UserError(f'{path} has no points; export the scene again')
    return points


def lens_of_frame(path: Path, where: str, frame: Any, top: dict, size: tuple[float, float]) -> Lens:
    """Lens of a frame of a file, or of the file's top, for a picture of a size (width, height) unless they have their
    own. UserError, with `where` in the file: it has none, or an impossible one."""
    entry = _Entry(path, where, frame, top, SceneFolder(path.parent))
    return entry.lens(*(entry.size() or size))


class _Entry:
    """One frame of a file; missing values are looked up at the top of the file."""

    def __init__(self, path: Path, where: str, frame: Any, top: dict, folder: SceneFolder):
        self.path, self.where, self.folder = path, where, folder
        if not isinstance(frame, dict):
            raise UserError(f'{path}: {where} is {_short(frame)}, but must be a JSON object')
        self.values = ChainMap(frame, self.of_matrix(frame), top, self.of_matrix(top))

    def error(self, message: str) -> UserError:
        return UserError(f'{self.path}: {self.where} {message}')

    def of_matrix(self, values: dict) -> dict[str, Any]:
        """Intrinsics of a 3x3 matrix "K" in a frame or at the top of the file."""
        if (rows := values.get('K')) is None:
            return {}
        try:
            (fx, skew, cx), (_, fy, cy), _ = rows
            if abs(skew) <= SKEW * abs(fx):
                return {'fl_x': fx, 'fl_y': fy, 'cx': cx, 'cy': cy}
        except (TypeError, ValueError):
            pass
        raise self.error(f'has K {_short(rows)}; it must be 3x3 numbers, with 0 behind the first')

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float | None:
        """Number of that name in [low, high]; `default` if it is missing."""
        if (value := self.values.get(name)) is None:
            return default
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.error(f'has {name} {_short(value)}; it must be a number from {low:g} to {high:g}')
        return float(value)

    def file(self, key: str, endings: Sequence[str] = ENDINGS) -> Found | None:
        """File that the entry names, which need not exist; None if it names none."""
        if not (name := self.values.get(key)):
            return None
        try:
            found = self.folder.find(name, endings)
        except ValueError as error:
            raise self.error(f'has {key} {_short(name)}; {error}') from None
        if found.outside:
            raise self.error(f'has {key} {_short(name)}, which {leaves(found.path, self.folder.folder)}; if you trust '
                             'the file, add --outside_files')
        return found

    def picture(self) -> Found:
        """The photograph."""
        if (found := self.file('file_path')) is None:
            raise self.error(f'has file_path {_short(self.values.get("file_path"))}; it must name the photograph')
        return found

    def size(self) -> tuple[float, float] | None:
        """Width and height in pixels that the file has for the photograph; None if it has not both."""
        width, height = self.number('w', 1, 1e6), self.number('h', 1, 1e6)
        return None if width is None or height is None else (width, height)

    def photograph(self, path: Path, mask: Path | None, size: tuple[float, float]) -> PosedPhotograph:
        """Photograph at a path, with its camera."""
        return PosedPhotograph(clean_name(self.values['file_path']), path, rigid(self.matrix()), self.lens(*size),
                               mask)

    def matrix(self) -> np.ndarray:
        """Matrix [3, 4] camera-to-world, of which `rigid` makes a pose."""
        rows = self.values.get('transform_matrix')
        if not (isinstance(rows, list) and len(rows) in (3, 4)
                and all(isinstance(row, list) and len(row) == 4 for row in rows)
                and all(type(value) in (int, float) for row in rows for value in row)):
            raise self.error('has a transform_matrix that is not 4x4 numbers')
        try:
            matrix = np.array(rows, np.float64)
            if len(matrix) == 4 and np.abs(matrix[3] - [0, 0, 0, 1]).max() > 1e-6:
                raise ValueError('has a last row that is not 0 0 0 1')
            rigid(matrix[:3])
            return matrix[:3]
        except (ValueError, OverflowError) as error:
            raise self.error(f'has a transform_matrix that is no camera: it {error}; export the scene again') from None

    def lens(self, width: float, height: float) -> Lens:
        """Lens of a picture of some size in pixels."""
        fx = self.number('fl_x', 1e-3, LARGEST) or self.focal('camera_angle_x', width)
        fy = self.number('fl_y', 1e-3, LARGEST) or (
            None if self.values.get('fl_x') is not None else self.focal('camera_angle_y', height)) or fx
        if fx is None:
            raise self.error('has neither fl_x nor camera_angle_x; the focal length must be known')
        model, values = self.model(), {'fx': fx, 'fy': fy, 'cx': self.number('cx', -LARGEST, LARGEST, 0.5 * width),
                                       'cy': self.number('cy', -LARGEST, LARGEST, 0.5 * height)}
        for name in COEFFICIENTS:
            if value := self.number(name, -LARGEST, LARGEST):
                if name not in LENSES[model]:
                    raise self.error(f'has {name} = {value:g}, which a lens of camera_model {model} has not; undistort '
                                     'the photographs, or correct camera_model')
                values[name] = value
        try:
            return lens_of(model, (width, height), values)
        except ValueError as error:
            raise self.error(f'has an impossible camera: {error}') from None

    def focal(self, key: str, side: float) -> float | None:
        """Focal length in pixels of a field of view in radians across a side; None if it is missing."""
        angle = self.number(key, 1e-4, math.pi - 1e-4)
        return None if angle is None else 0.5 * side / math.tan(0.5 * angle)

    def model(self) -> str:
        """Name of the camera model, in LENSES."""
        if other := next((key for key in OTHER_LENSES if self.values.get(key)), None):
            raise self.error(f'has a lens with {other}, which is not supported; undistort the photographs')
        model = self.values.get('camera_model', 'OPENCV_FISHEYE' if self.values.get('is_fisheye') is True else 'OPENCV')
        if not isinstance(model, str) or model not in LENSES:
            raise self.error(f'has camera_model {_short(model)}; known are {", ".join(LENSES)}')
        return model


def write_transforms(path: Path, cameras: Cameras, names: Sequence[str], original: Path) -> None:
    """Writes the cameras of pictures as a file that can take the place of an original one: what that has beside cameras
    is kept, and its paths of pictures, recognised by their names without endings. It may be missing."""
    top = read_json(original, '') if is_file(original) else {}
    known = {Path(frame['file_path']).stem: frame for frame in top.get('frames', ())}
    frames = [{'file_path': f'images/{name}'} | known.get(Path(name).stem, {}) | _camera_values(cameras, i)
              for i, name in enumerate(names)]
    with whole_file(path) as partial:
        partial.write_text(json.dumps(top | {'frames': frames}, indent=1) + '\n', encoding='utf-8')


def _camera_values(cameras: Cameras, i: int) -> dict[str, Any]:
    """Values of a frame that tell camera i, without defaults from the top of the file."""
    fisheye = cameras.fisheye is not None and bool(cameras.fisheye[i])
    bent = [0.0] * len(COEFFICIENTS) if cameras.distortion is None else cameras.distortion[i].tolist()
    model = 'OPENCV_FISHEYE' if fisheye else 'FULL_OPENCV' if any(bent[5:]) else 'OPENCV'
    height, width = cameras.size(i)
    return {'transform_matrix': [*cameras.poses[i].tolist(), [0.0, 0.0, 0.0, 1.0]], 'camera_model': model, 'w': width,
            'h': height, **dict(zip(('fl_x', 'fl_y', 'cx', 'cy'), cameras.intrinsics[i].tolist())),
            **{name: value for name, value in zip(COEFFICIENTS, bent) if name in LENSES[model]}}


def _short(value: Any) -> str:
    """Value of a file, as JSON of at most 100 characters, for a message."""
    text = json.dumps(value)
    return text if len(text) <= 100 else f'{text[:97]}...'
