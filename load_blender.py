"""Scenes in the Blender format of the NeRF paper: transforms_{train,val,test}.json and PNGs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from nerf.captures.capture import SPLITS
from nerf.files.images import read_images
from nerf.files.scene_files import clean_name, is_inside, read_json
from nerf.runtime.errors import UserError

WHERE_FROM = ('the Blender scenes come in nerf_synthetic.zip, linked at https://www.matthewtancik.com/nerf; '
              'configs/toy_chair.txt needs no download')


def load_blender_data(basedir: str | Path, half_res: bool = False, testskip: int = 1):
    """Loads the training, validation and test images of a scene; a UserError names a missing or broken file.

    Args:
        basedir: folder of transforms_train.json, transforms_val.json and transforms_test.json.
        half_res: shrink images to half their height and width by area averaging.
        testskip: keep every testskip-th validation and test image; 0 or 1 keeps all.

    Returns:
        images: [N, H, W, 3 or 4] uint8, alpha not premultiplied.
        poses: [N, 4, 4] float32 camera-to-world, OpenGL axes.
        render_poses: [40, 4, 4] float32, a turntable 30 degrees above the equator.
        hwf: [H, W, focal], focal length in pixels.
        i_split: indices of the training, validation and test images, three arrays.
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
    """Pose [4, 4] float32 of a camera on a sphere, looking at the origin, with z up. Theta and phi are azimuth and
    elevation in degrees, the latter negative above the equator."""
    theta, phi = math.radians(theta), math.radians(phi)
    backward = np.array([math.sin(theta) * math.cos(phi), math.cos(theta) * math.cos(phi), -math.sin(phi)])
    right = np.array([-math.cos(theta), math.sin(theta), 0.0])
    pose = np.eye(4, dtype=np.float32)
    pose[:3] = np.stack([right, np.cross(backward, right), backward, radius * backward], 1)
    return pose


def _read_transforms(path: Path) -> tuple[float, list[tuple[Path, np.ndarray]]]:
    """Horizontal field of view in radians, and image path and pose [4, 4] of each frame."""
    meta = read_json(path, 'datadir must hold transforms_train.json, transforms_val.json and transforms_test.json '
                           f'({WHERE_FROM})')
    angle = meta.get('camera_angle_x') if isinstance(meta, dict) else None
    if type(angle) not in (int, float) or not 1e-6 < angle < math.pi:
        raise UserError(f'{path}: camera_angle_x is {angle!r}; it must be an angle in radians between 0 and pi')
    frames = meta.get('frames')
    if not isinstance(frames, list) or not frames:
        raise UserError(f'{path}: "frames" must be a list with at least one frame')
    return angle, [_read_frame(path, i, frame) for i, frame in enumerate(frames)]


def _read_frame(path: Path, i: int, frame: dict) -> tuple[Path, np.ndarray]:
    """Image path and pose [4, 4] float32 of frame i of the transforms file at `path`."""
    name = frame.get('file_path') if isinstance(frame, dict) else None
    try:
        file = clean_name(name)
    except ValueError as error:
        raise UserError(f'{path}: frame {i} has file_path {name!r}; {error}') from None
    image = path.parent / (file if file.lower().endswith('.png') else file + '.png')
    if not is_inside(image, path.parent, follow_links=False):
        raise UserError(f'{path}: frame {i} has file_path {name!r}, which leaves the scene folder')
    rows = frame.get('transform_matrix')
    if not (isinstance(rows, list) and len(rows) == 4 and all(isinstance(row, list) and len(row) == 4 for row in rows)
            and all(type(number) in (int, float) and abs(number) < 1e30 for row in rows for number in row)):
        raise UserError(f'{path}: frame {i} ({name}) has a transform_matrix that is not a finite 4x4 matrix; '
                        f'export the scene again')
    return image, np.array(rows, np.float32)
