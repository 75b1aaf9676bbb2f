"""Scenes in the DeepVoxels format: intrinsics.txt, pose/*.txt and rgb/*.png for each split and shape."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from nerf.files.images import ENDINGS, read_images
from nerf.files.scene_files import contents
from nerf.poses import flip_axes, say_unusual
from nerf.runtime.errors import UserError

SPLITS = ('train', 'validation', 'test')
WHERE_FROM = 'the scenes come from https://drive.google.com/open?id=1ScsRlnzy9Bd_n-xw83SP-0t548v63mPH'


def load_dv_data(scene: str = 'cube', basedir: str | Path = '/data/deepvoxels', testskip: int = 8):
    """Loads the training, validation and test images of a shape; a UserError names a missing or broken file.

    Args:
        scene, basedir: name of the shape, and folder of train/<scene>, validation/<scene> and test/<scene>.
        testskip: keep every testskip-th validation and test image; 0 or 1 keeps all.

    Returns:
        images: [N, H, W, 3 or 4] uint8.
        poses: [N, 3, 4] float32 camera-to-world, OpenGL axes.
        render_poses: [M, 3, 4] float32, the test poses.
        hwf: [H, W, focal], focal length in pixels; `load_intrinsics` has the principal point too.
        i_split: indices of the training, validation and test images, three arrays.
    """
    paths, poses, counts = [], [], []
    for split in SPLITS:
        folder, intrinsics = _split(basedir, split, scene)
        _, world_to_camera = _read_intrinsics(intrinsics)
        pairs = _pairs(folder)[::1 if split == 'train' else max(testskip, 1)]
        paths += [image for _, image in pairs]
        poses += [_read_pose(pose, world_to_camera) for pose, _ in pairs]
        counts.append(len(pairs))
    images = read_images(paths)
    H, W = images.shape[1:3]
    focal = load_intrinsics(scene, basedir, H, W)[1, 1]
    i_split, poses = np.split(np.arange(len(images)), np.cumsum(counts)[:-1]), np.stack(poses)
    say_unusual(Path(basedir), poses)
    return images, poses, poses[i_split[-1]], [H, W, float(focal)], i_split


def load_intrinsics(scene: str, basedir: str | Path, H: int, W: int) -> np.ndarray:
    """Intrinsics [3, 3] of all images in pixels, scaled from the size in intrinsics.txt to images of H x W."""
    paths, cameras = [_split(basedir, split, scene)[1] for split in SPLITS], []
    for path in paths:
        (f, cx, cy, height, width), _ = _read_intrinsics(path)
        cameras.append(np.diag([W / width, H / height, 1.0]) @ [[f, 0.0, cx], [0.0, f, cy], [0.0, 0.0, 1.0]])
        if not np.allclose(cameras[-1], cameras[0], rtol=1e-6):
            raise UserError(f'{path} and {paths[0]} are of different cameras (focal length and centre at {W}x{H}: '
                            f'{cameras[-1][[0, 0, 1], [0, 2, 2]]} and {cameras[0][[0, 0, 1], [0, 2, 2]]} pixels); one '
                            'camera is expected')
    return cameras[0]


def _split(basedir: str | Path, split: str, scene: str) -> tuple[Path, Path]:
    """Folder of a split, and path of its intrinsics.txt or, if that does not exist, of the training images'."""
    folder, of_training = Path(basedir) / split / scene, Path(basedir) / 'train' / scene / 'intrinsics.txt'
    if not folder.is_dir():
        raise UserError(f'{folder} is not a folder; datadir must hold train, validation and test, each with a folder '
                        f'{scene} ({WHERE_FROM}); it has {contents(Path(basedir))}')
    own = folder / 'intrinsics.txt'
    return folder, own if own.exists() else of_training


def _read_intrinsics(path: Path) -> tuple[tuple[float, ...], bool]:
    """Focal length, principal point x and y, height and width in pixels, and whether poses are world-to-camera.

    Lines of the file: focal length, cx and cy (and a zero); centre, near plane and scale of DeepVoxels' grid, which are
    ignored; height and width; and in some files 1 for poses that are world-to-camera, or else 0.
    """
    lines = [line.split() for line in _read_text(path).splitlines() if line.strip()]
    try:
        if len(lines) < 5:
            raise ValueError(f'{len(lines)} lines')
        f, cx, cy = map(float, lines[0][:3])
        height, width = map(float, lines[4][:2])
        flag = float(lines[5][0]) if len(lines) > 5 else 0.0
        sensible = all(1.0 <= size <= 1e6 for size in (f, height, width)) and all(abs(c) <= 1e6 for c in (cx, cy))
        if not sensible or flag not in (0.0, 1.0):
            raise ValueError(f'focal length {f:g}, centre {cx:g} {cy:g}, size {width:g}x{height:g}, flag {flag:g}')
    except ValueError as error:
        raise UserError(f'{path} is not a DeepVoxels camera ({str(error)[:100]}); line 1 must hold focal length, cx '
                        'and cy, line 5 height and width in pixels, an optional line 6 0 or 1') from None
    return (f, cx, cy, height, width), bool(flag)


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Paths of each view's pose and image, in the order of their names. A line names what lacks the other."""
    poses, images = ({path.stem: path for path in folder.glob(pattern)
                      if path.suffix.lower() in endings and not path.name.startswith('.')}
                     for pattern, endings in (('pose/*', ('.txt',)), ('rgb/*', ENDINGS)))
    alone, both = sorted(poses.keys() ^ images.keys()), sorted(poses.keys() & images.keys())
    if not both:
        raise UserError(f'{folder} has {len(poses)} files pose/*.txt and {len(images)} pictures in rgb, but no two of '
                        'one name; each view needs both, so download or export the scene again')
    if alone:
        print(f'warning: {folder}: {len(alone)} views have a pose or a picture only and are left out: '
              f'{", ".join(alone[:3])}{" ..." if len(alone) > 3 else ""}', file=sys.stderr)
    return [(poses[name], images[name]) for name in both]


def _read_pose(path: Path, world_to_camera: bool) -> np.ndarray:
    """Pose [3, 4] float32 camera-to-world in OpenGL axes of a file with OpenCV axes."""
    try:
        pose = np.array(_read_text(path).split(), np.float64).reshape(4, 4)
        if not np.isfinite(pose).all():
            raise ValueError('a value is not finite')
        with np.errstate(all='ignore'):
            pose = np.linalg.inv(pose) if world_to_camera else pose
            off = np.abs([*(pose[:3, :3].T @ pose[:3, :3] - np.eye(3)), pose[3, :3]]).max()
        if not (off < 0.01 and abs(pose[3, 3] - 1.0) < 0.01 and np.abs(pose[:3, 3]).max() < 1e6):
            raise ValueError('it must be a rotation and a position above a row 0 0 0 1')
    except (ValueError, np.linalg.LinAlgError) as error:
        raise UserError(f"{path} is not the 4x4 matrix of a camera ({str(error)[:100]}); download or export it again"
                        ) from None
    return flip_axes(pose[:3]).astype(np.float32)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{path} cannot be read ({error}); download or export the scene again') from None
