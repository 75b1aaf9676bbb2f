"""Camera paths: key frames, the smooth curve through them, and their JSON file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from nerf.cameras import Cameras
from nerf.files.images import VIDEO_FPS
from nerf.files.whole_file import whole_file
from nerf.runtime.errors import UserError

MOST_FRAMES, LONGEST_SIDE = 100_000, 2 ** 15  # of a path; the side in pixels


@dataclass(frozen=True, eq=False)
class KeyFrame:
    """Camera at one point of a path, of any size."""
    pose: np.ndarray  # [3, 4] camera-to-world, OpenGL axes
    fov: float  # vertical, in radians


@dataclass
class CameraPath:
    """Path of a camera through key frames."""
    keys: list[KeyFrame] = field(default_factory=list)
    seconds: float = 2.0  # from each key frame to the next
    height: int = 720  # of the pictures, in pixels
    width: int = 960

    def frames(self) -> list[KeyFrame]:
        """Cameras at VIDEO_FPS frames per second through all key frames. Positions and rotations follow cubic splines;
        the field of view never leaves the range of its neighbours."""
        from scipy.interpolate import CubicSpline, PchipInterpolator
        from scipy.spatial.transform import Rotation, RotationSpline
        if len(self.keys) < 2:
            return list(self.keys)
        poses, times = np.stack([key.pose for key in self.keys]), np.arange(len(self.keys))
        t = np.linspace(0.0, times[-1], max(round(times[-1] * self.seconds * VIDEO_FPS), 1) + 1)
        turns = RotationSpline(times, Rotation.from_matrix(poses[:, :, :3]))(t).as_matrix()
        places = CubicSpline(times, poses[:, :, 3], bc_type='natural')(t)
        fovs = PchipInterpolator(times, [key.fov for key in self.keys])(t)
        return [KeyFrame(np.column_stack([turn, place]), float(fov)) for turn, place, fov in zip(turns, places, fovs)]

    def cameras(self) -> Cameras:
        """Cameras of `frames`."""
        return pinholes(self.frames(), self.height, self.width)

    def save(self, path: Path) -> None:
        """Writes the path as JSON, with fields of view in degrees."""
        keys = [{'pose': key.pose.tolist(), 'fov': math.degrees(key.fov)} for key in self.keys]
        values = {'width': self.width, 'height': self.height, 'seconds': self.seconds, 'key_frames': keys}
        with whole_file(path) as partial:
            partial.write_text(json.dumps(values, indent=1) + '\n', encoding='utf-8')

    @classmethod
    def read(cls, path: Path) -> CameraPath:
        """Path that `save` wrote. A missing or wrong file is a UserError, which says what is wrong."""
        try:
            values = json.loads(Path(path).read_text(encoding='utf-8'))
        except FileNotFoundError:
            raise UserError(f'{path} does not exist; render_path is a camera path that the viewer saved') from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f'{path} cannot be read as JSON ({error}); save the camera path again') from None
        if not isinstance(values, dict) or not isinstance(values.get('key_frames'), list) or not values['key_frames']:
            raise UserError(f'{path} has no key_frames, so it is not a camera path; save one with the viewer')
        keys = [_key_frame(path, i, key) for i, key in enumerate(values['key_frames'])]
        height, width = (_number(path, values, name, 1, LONGEST_SIDE, whole=True) for name in ('height', 'width'))
        seconds = _number(path, values, 'seconds', 1e-3, 3600.0)
        if (len(keys) - 1) * seconds * VIDEO_FPS > MOST_FRAMES:
            raise UserError(f'{path}: {len(keys)} key frames with {seconds:g} seconds between them are more than '
                            f'{MOST_FRAMES} frames; lower seconds')
        return cls(keys, seconds, height, width)


def pinholes(frames: list[KeyFrame], height: int, width: int) -> Cameras:
    """Cameras of one size; rays go through the centres of pixels."""
    focal = [0.5 * height / math.tan(0.5 * frame.fov) for frame in frames]
    return Cameras(poses=torch.as_tensor(np.array([frame.pose for frame in frames], np.float32)),
                   intrinsics=torch.tensor([[f, f, 0.5 * width, 0.5 * height] for f in focal], dtype=torch.float64),
                   sizes=torch.tensor([[height, width]]).repeat(len(frames), 1), within=0.5)


def _key_frame(path: Path, i: int, key) -> KeyFrame:
    """Key frame i of a file, from its JSON value."""
    try:
        pose = np.array(key['pose'], np.float64)
        turn = pose[:, :3]
        proper = (pose.shape == (3, 4) and np.abs(pose).max() < 1e30 and np.linalg.det(turn) > 0
                  and np.abs(turn @ turn.T - np.eye(3)).max() < 1e-3)
    except (LookupError, OverflowError, TypeError, ValueError):
        proper = False
    if not proper:
        raise UserError(f'{path}: key frame {i} has no pose of 3 rows of 4 numbers, a rotation and a position; save '
                        'the camera path again')
    return KeyFrame(pose, math.radians(_number(f'{path}: key frame {i}', key, 'fov', 0.1, 179.0)))


def _number(where, values: dict, name: str, low: float, high: float, whole: bool = False):
    """Number values[name] between two bounds; `where` names its place in errors."""
    value = values.get(name)
    if type(value) not in ((int,) if whole else (int, float)) or not low <= value <= high:
        raise UserError(f'{where}: {name} is {value!r}; it must be a {"whole " if whole else ""}number from {low:g} to '
                        f'{high:g}')
    return value
