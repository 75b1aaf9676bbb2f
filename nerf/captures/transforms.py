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
from nerf.captures.capture import ANY_ENDING, SPLITS, Lens, PosedPhotograph
from nerf.captures.colmap import LARGEST, PARAMETERS, lens_of
from nerf.files.images import image_size
from nerf.files.scene_files import check_all_there, clean_name, first_file, is_file, is_inside, read_json
from nerf.files.whole_file import whole_file
from nerf.poses import FARTHEST, rigid
from nerf.runtime.errors import UserError

# nerfstudio's OPENCV has two more radial terms, k3 and k4; nerf/cameras.py has no k4 of that meaning (degree 8).
LENSES = PARAMETERS | {'OPENCV': (*PARAMETERS['OPENCV'], 'k3')}
OTHER_LENSES = ('ftheta_p0', 'latlong', 'equirectangular', 'orthographic')  # keys of instant-ngp
OTHER_FORMATS = {'blender': 'transforms_train.json', 'llff': 'poses_bounds.npy'}  # files that tell them


class Transforms(NamedTuple):
    """Content of a file."""

    photographs: list[PosedPhotograph]
    splits: dict[str, list[str]]  # names of photographs, for the SPLITS that the file has
    points: Path | None  # a PLY file of sparse points in the same coordinates


def read_transforms(path: Path, outside_files: bool = False) -> Transforms:
    """Content of a scene's transforms.json, and the sizes of pictures from their files if it does not have them. With
    `outside_files`, the file may name files outside its folder."""
    hint = next((f'this looks like dataset_type {other}' for other, name in OTHER_FORMATS.items()
                 if is_file(path.parent / name)), 'datadir must hold it')
    top = read_json(path, hint)
    if not isinstance(top, dict):
        raise UserError(f'{path} is not a JSON object with "frames"; download or export it again')
    frames = top.get('frames')
    if not isinstance(frames, list) or not frames:
        raise UserError(f'{path}: "frames" must be a list with at least one frame')
    entries = [_Entry(path, f'frame {i}', frame, top, outside_files) for i, frame in enumerate(frames)]
    pictures = [entry.picture() for entry in entries]
    check_all_there(pictures, 'photographs')
    points = _Entry(path, 'the file', top, {}, outside_files).file('ply_file_path')
    splits = {split: _names(path, key, top[key]) for split in SPLITS if (key := f'{split}_filenames') in top}
    return Transforms([entry.photograph(picture) for entry, picture in zip(entries, pictures)], splits, points)


def _names(path: Path, key: str, names: Any) -> list[str]:
    try:
        if isinstance(names, list):
            return [clean_name(name) for name in names]
    except ValueError:
        pass
    raise UserError(f'{path}: {key} must be a list of names')


def read_ply(path: Path) -> np.ndarray:
    """Points [P, 3] float64 of a PLY file."""
    import trimesh
    try:
        content = io.BytesIO(path.read_bytes())  # without a path, beside which trimesh would look for textures
        points = np.asarray(trimesh.load(content, file_type='ply', process=False).vertices, np.float64).reshape(-1, 3)
    except Exception as error:  # trimesh passes on whatever its parsers raise
        raise UserError(f'{path} cannot be read as a PLY file of points ({error}); export the scene again, or remove '
                        'ply_file_path from transforms.json') from None
    return points[(np.abs(points) < FARTHEST).all(1)]


class _Entry:
    """One frame of a file; missing values are looked up at the top of the file."""

    def __init__(self, path: Path, where: str, frame: Any, top: dict, outside_files: bool):
        self.path, self.where, self.outside_files = path, where, outside_files
        if not isinstance(frame, dict):
            raise UserError(f'{path}: {where} is {_short(frame)}, but must be a JSON object')
        self.values = ChainMap(frame, top)

    def error(self, message: str) -> UserError:
        return UserError(f'{self.path}: {self.where} {message}')

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float | None:
        """Number of that name in [low, high]; `default` if it is missing."""
        if (value := self.values.get(name)) is None:
            return default
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.error(f'has {name} {_short(value)}; it must be a number from {low:g} to {high:g}')
        return float(value)

    def file(self, key: str) -> Path | None:
        """Path of a file that the entry names, which need not exist; None if it names none."""
        if (name := self.values.get(key)) is None:
            return None
        try:
            path = self.path.parent / clean_name(name)
        except ValueError as error:
            raise self.error(f'has {key} {_short(name)}; {error}') from None
        if not self.outside_files and not is_inside(path, self.path.parent):
            raise self.error(f'has {key} {_short(name)}, which leaves the folder of the scene; if you trust the file, '
                             'add --outside_files')
        return path

    def picture(self) -> Path:
        """Path of the photograph, whose ending the file may leave out."""
        if (path := self.file('file_path')) is None:
            raise self.error('has no file_path; it must name the photograph')
        return first_file(path, *(path.parent / (path.name + ending) for ending in ANY_ENDING))

    def photograph(self, path: Path) -> PosedPhotograph:
        """Photograph at a path, with its camera."""
        size = self.number('w', 1, 1e6), self.number('h', 1, 1e6)
        if None in size:
            size = image_size(path)[::-1]
        return PosedPhotograph(clean_name(self.values['file_path']), path, self.pose(), self.lens(*size),
                               self.file('mask_path'))

    def pose(self) -> np.ndarray:
        """Pose [3, 4] camera-to-world."""
        rows = self.values.get('transform_matrix')
        if not (isinstance(rows, list) and len(rows) in (3, 4)
                and all(isinstance(row, list) and len(row) == 4 for row in rows)
                and all(type(value) in (int, float) for row in rows for value in row)):
            raise self.error('has a transform_matrix that is not 4x4 numbers')
        try:
            matrix = np.array(rows, np.float64)
            if len(matrix) == 4 and np.abs(matrix[3] - [0, 0, 0, 1]).max() > 1e-6:
                raise ValueError('has a last row that is not 0 0 0 1')
            return rigid(matrix[:3])
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
