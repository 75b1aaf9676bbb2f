"""Scenes in the Blender format of the NeRF paper: transforms_{train,val,test}.json and PNGs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from nerf.files.images import read_images
from nerf.runtime.errors import UserError

SPLITS = ('train', 'val', 'test')
WHERE_FROM = ('the Blender scenes come in nerf_synthetic.zip, linked at https://www.matthewtancik.com/nerf; '
              'configs/toy_chair.txt needs no download')


def load_blender_data(basedir: str | Path, half_res: bool = False, testskip: int = 1):
    """Loads the three splits of a scene, one after the other.

    Args:
        basedir: the folder that holds transforms_train.json, transforms_val.json and transforms_test.json.
        half_res: shrink images to half their height and width by area averaging.
        testskip: keep every Nth validation and test image; 0 or 1 keeps all.

    Returns:
        images: [N, H, W, 3 or 4] uint8, alpha not premultiplied.
        poses: [N, 4, 4] float32 camera-to-world, OpenGL axes.
        render_poses: [40, 4, 4] float32, a turntable 30 degrees above the equator.
        hwf: [H, W, focal], the focal length in pixels.
        i_split: three integer arrays, the indices of the training, validation and test images.

    Raises:
        UserError: the scene is missing, incomplete or broken; the message names the file.
    """
    basedir = Path(basedir)
    if not basedir.is_dir():
        raise UserError(f'datadir {basedir} is not a folder; {WHERE_FROM}')

    paths, poses, angles, counts = [], [], [], []
    for split in SPLITS:
        angle, frames = _read_transforms(basedir / f'transforms_{split}.json')
        frames = frames[::1 if split == 'train' else max(testskip, 1)]
        paths += [path for path, _ in frames]
        poses += [pose for _, pose in frames]
        counts.append(len(frames))
        angles.append(angle)
    if max(angles) - min(angles) > 1e-6:
        raise UserError(f'{basedir}: camera_angle_x differs between the three transforms files '
                        f'({", ".join(map(str, angles))}); one camera is expected')

    images = read_images(paths, half_res)
    H, W = images.shape[1:3]
    focal = 0.5 * W / math.tan(0.5 * angles[0])
    i_split = np.split(np.arange(len(images)), np.cumsum(counts)[:-1])
    render_poses = np.stack([pose_spherical(theta, -30.0, 4.0) for theta in np.linspace(-180, 180, 40, endpoint=False)])
    return images, np.stack(poses), render_poses, [H, W, focal], i_split


def pose_spherical(theta: float, phi: float, radius: float) -> np.ndarray:
    """[4, 4] float32 camera-to-world of a camera on a sphere that looks at the origin, with z up.

    Args:
        theta: azimuth in degrees.
        phi: elevation in degrees, negative above the equator.
        radius: distance from the origin.
    """
    theta, phi = math.radians(theta), math.radians(phi)
    backward = np.array([math.sin(theta) * math.cos(phi), math.cos(theta) * math.cos(phi), -math.sin(phi)])
    right = np.array([-math.cos(theta), math.sin(theta), 0.0])
    up = np.cross(backward, right)
    pose = np.eye(4, dtype=np.float32)
    pose[:3] = np.stack([right, up, backward, radius * backward], 1)
    return pose


def _read_transforms(path: Path) -> tuple[float, list[tuple[Path, np.ndarray]]]:
    """The horizontal field of view in radians, and image path and pose [4, 4] of each frame."""
    try:
        meta = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise UserError(f'{path} does not exist; datadir must hold transforms_train.json, transforms_val.json and '
                        f'transforms_test.json ({WHERE_FROM})') from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path} cannot be read as JSON ({error}); download or export it again') from None
    angle = meta.get('camera_angle_x') if isinstance(meta, dict) else None
    if type(angle) not in (int, float) or not 1e-6 < angle < math.pi:
        raise UserError(f'{path}: camera_angle_x is {angle!r}; it must be an angle in radians between 0 and pi')
    frames = meta.get('frames')
    if not isinstance(frames, list) or not frames:
        raise UserError(f'{path}: "frames" must be a list with at least one frame')
    return angle, [_read_frame(path, i, frame) for i, frame in enumerate(frames)]


def _read_frame(path: Path, i: int, frame: dict) -> tuple[Path, np.ndarray]:
    """Image path and pose [4, 4] float32 of frame i of the transforms file at `path`."""
    if not isinstance(frame, dict) or not isinstance(frame.get('file_path'), str):
        raise UserError(f'{path}: frame {i} has no file_path; it must name the image')
    name = frame['file_path']
    if Path(name).is_absolute() or '..' in Path(name).parts:
        raise UserError(f'{path}: frame {i} has file_path {name!r}, which leaves the scene folder')
    rows = frame.get('transform_matrix')
    if not (isinstance(rows, list) and len(rows) == 4 and all(isinstance(row, list) and len(row) == 4 for row in rows)
            and all(type(number) in (int, float) and abs(number) < 1e30 for row in rows for number in row)):
        raise UserError(f'{path}: frame {i} ({name}) has a transform_matrix that is not a finite 4x4 matrix; '
                        f'export the scene again')
    return path.parent / (name if name.lower().endswith('.png') else name + '.png'), np.array(rows, np.float32)
