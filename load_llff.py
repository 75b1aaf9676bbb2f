"""Scenes in the LLFF format: photographs, and their poses and depth bounds by COLMAP in poses_bounds.npy."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from nerf.captures.reduced import check_fit, make_missing, make_reduced, reduced_places
from nerf.files.images import ENDINGS, check_one_size, image_size, read_images
from nerf.files.scene_files import contents
from nerf.poses import in_frame, poses_avg, recenter_poses, say_unusual, unit, viewmatrix
from nerf.runtime.errors import UserError

OF_THE_PAPER = ('fern', 'flower', 'fortress', 'horns', 'leaves', 'orchids', 'room', 'trex')
WHERE_FROM = ('the forward-facing scenes come in nerf_llff_data.zip, linked at https://www.matthewtancik.com/nerf; '
              'dataset_type photos is for photographs of your own')


def load_llff_data(basedir: str | Path, factor: int | None = 8, recenter: bool = True, bd_factor: float | None = 0.75,
                   spherify: bool = False):
    """Loads a capture, moved and scaled, and a path to render; a UserError names a missing or broken file.

    Args:
        basedir: folder of poses_bounds.npy and images_<factor>/, which is made from images/ if it is missing.
        factor: images at 1/factor of their size; None is 1.
        recenter: move the world's origin and axes to those of the mean camera.
        bd_factor: scale the world so that the nearest bound is at 1 / bd_factor; None leaves its scale.
        spherify: for captures all around an object: origin at the point that the cameras look at, z up, cameras at a
            root mean square distance of 1, and a circle instead of a spiral as path.

    Returns:
        images: [N, H, W, 3] uint8; an alpha channel is dropped.
        poses: [N, 3, 5] float32 camera-to-world, OpenGL axes, with (H, W, focal in pixels) as the last column.
        bds: [N, 2] float32 depths of the nearest and the farthest point that each camera sees.
        render_poses: [120, 3, 5] float32.
        i_test: index of the view nearest to the mean camera.
    """
    basedir, factor = Path(basedir), factor or 1
    if not basedir.is_dir():
        known = f'; {WHERE_FROM}' if basedir.name in OF_THE_PAPER else ''
        raise UserError(f'datadir {basedir} is not a folder{known}')
    poses, bds, cameras = _read_poses_bounds(basedir / 'poses_bounds.npy')
    images = read_images(_image_paths(basedir, factor, len(poses)))[..., :3]
    H, W = images.shape[1:3]
    _check_rotations(basedir, poses)
    say_unusual(basedir / 'poses_bounds.npy', poses)
    _warn_of_other_cameras(basedir, cameras, factor, H, W)
    scale = 1.0 if bd_factor is None else 1.0 / (bds.min() * bd_factor)
    poses[:, :, 3] *= scale
    bds *= scale
    try:
        with np.errstate(divide='ignore', invalid='ignore'):
            if recenter:
                poses = recenter_poses(poses)
            if spherify:
                poses, bds = spherify_poses(poses, bds)
            render_poses = render_path_circle(poses) if spherify else render_path_spiral(poses, bds)
            distances = np.linalg.norm(poses[:, :, 3] - poses_avg(poses)[:, 3], axis=-1)
    except np.linalg.LinAlgError:
        raise UserError(f"{basedir / 'poses_bounds.npy'}: the cameras' axes are parallel, so there is no point that "
                        'they look at; leave spherify off') from None
    if not (np.isfinite(poses).all() and np.isfinite(render_poses).all()):
        raise UserError(f"{basedir / 'poses_bounds.npy'}: the cameras' axes have no mean; run COLMAP again"
                        + ('' if spherify else ', or set spherify and no_ndc for a capture all around an object'))
    hwf = H, W, cameras[0, 2] / factor
    return images, _with_hwf(poses, *hwf), bds.astype(np.float32), _with_hwf(render_poses, *hwf), int(
        distances.argmin())


def _with_hwf(poses: np.ndarray, H: int, W: int, focal: float) -> np.ndarray:
    """Poses [N, 3, 5] float32 of poses [N, 3, 4], with (H, W, focal) as the last column."""
    return np.concatenate([poses, np.broadcast_to([[H], [W], [focal]], (len(poses), 3, 1))], -1).astype(np.float32)


def spherify_poses(poses: np.ndarray, bds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Poses [N, 3, 4] and bounds [N, 2] of cameras around an object, moved and scaled.

    The origin becomes the point nearest to all optical axes in the least squares sense; if the axes are parallel, it is
    a LinAlgError. z is up, towards the mean camera, and the root mean square distance of the cameras is 1.
    """
    across = np.eye(3) - poses[:, :, 2, None] * poses[:, None, :, 2]  # [N, 3, 3], projects onto a plane across an axis
    if np.linalg.eigvalsh(across.mean(0))[0] < 1e-6:  # by a tenth of a degree
        raise np.linalg.LinAlgError('parallel axes')
    centre = np.linalg.solve(across.sum(0), (across @ poses[:, :, 3:]).sum(0))[:, 0]
    up = unit((poses[:, :, 3] - centre).mean(0))
    x = unit(np.cross([0.1, 0.2, 0.3], up))  # any direction across `up`; this is the reference code's
    poses = in_frame(poses, np.stack([x, np.cross(up, x), up, centre], 1))
    scale = 1.0 / np.sqrt(np.mean(np.sum(poses[:, :, 3] ** 2, -1)))
    poses[:, :, 3] *= scale
    return poses, bds * scale


def render_path_spiral(poses: np.ndarray, bds: np.ndarray, n_views: int = 120) -> np.ndarray:
    """Spiral [n_views, 3, 4] of two turns around the mean camera, looking at a point at the scene's middle disparity.
    Its radii are the 90th percentiles of the coordinates of poses [N, 3, 4]; `bds` [N, 2] are depths of the nearest and
    the farthest point."""
    middle = poses_avg(poses)
    nearest, farthest = 0.9 * bds.min(), 5.0 * bds.max()
    target = middle @ [0.0, 0.0, -1.0 / (0.25 / nearest + 0.75 / farthest), 1.0]
    radii, up, path = np.percentile(np.abs(poses[:, :, 3]), 90, 0), poses[:, :, 1].sum(0), []
    for angle in np.linspace(0.0, 4.0 * np.pi, n_views, endpoint=False):
        offset = radii * [np.cos(angle), -np.sin(angle), -np.sin(0.5 * angle)]
        position = middle @ [*offset, 1.0]
        path.append(viewmatrix(position - target, up, position))
    return np.stack(path)


def render_path_circle(poses: np.ndarray, n_views: int = 120) -> np.ndarray:
    """Circle [n_views, 3, 4] around the z axis at the mean height of spherified cameras, looking at the origin."""
    height = poses[:, 2, 3].mean()
    radius = np.sqrt(1.0 - height ** 2)
    positions = [np.array([radius * np.cos(angle), radius * np.sin(angle), height])
                 for angle in np.linspace(0.0, 2.0 * np.pi, n_views)]
    return np.stack([viewmatrix(position, np.array([0.0, 0.0, 1.0]), position) for position in positions])


def _read_poses_bounds(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Poses [N, 3, 4] in OpenGL axes, bounds [N, 2], and full height, width and focal length of each camera [N, 3]."""
    try:
        rows = np.lib.format.open_memmap(path, mode='r')  # reads no pickle, and no more than the file holds
    except FileNotFoundError:
        raise UserError(f'{path} does not exist; datadir must hold poses_bounds.npy, which the LLFF script makes, and '
                        f'images; it has {contents(path.parent)}') from None
    except Exception as error:  # a broken header can raise nearly anything
        raise UserError(f'{path} cannot be read as an array of numbers ({str(error)[:200].partition(chr(10))[0]}); '
                        'write it again with the LLFF script') from None
    if rows.ndim != 2 or rows.shape[1] != 17 or not len(rows) or rows.dtype.kind not in 'fiu':
        raise UserError(f'{path} holds {rows.dtype} of shape {rows.shape}; it must be numbers, one row of 17 per image')
    rows = np.array(rows, np.float64)
    for i, row in enumerate(rows):
        if not (np.abs(row) < 1e10).all():
            raise UserError(f'{path}: row {i} has values that are not finite or above 1e10; run COLMAP and the LLFF '
                            'script again')
        if not 1e-10 < row[15] < row[16]:
            raise UserError(f'{path}: row {i} has near {row[15]:g} and far {row[16]:g}; near must be above 0 and '
                            'below far, so run COLMAP and the LLFF script again')
        if row[14] < 1e-3:
            raise UserError(f'{path}: row {i} has a focal length of {row[14]:g} pixels; run COLMAP and the LLFF script '
                            'again')
    down, right, backward, position, cameras = np.moveaxis(rows[:, :15].reshape(-1, 3, 5), -1, 0)
    return np.stack([right, -down, backward, position], -1), rows[:, 15:], cameras


def _image_paths(basedir: Path, factor: int, n_poses: int) -> list[Path]:
    """Paths of the images at 1/factor of their size, made if they are missing, in the order of names and of poses."""
    folder = basedir / ('images' if factor == 1 else f'images_{factor}')
    source = folder if folder.is_dir() else basedir / 'images'
    if not source.is_dir():
        raise UserError(f'{basedir} has no folder {folder.name}, nor images to make it from; it has '
                        f'{contents(basedir)}')
    paths, full = _pictures_in(source), _pictures_in(basedir / 'images')
    if source == folder != basedir / 'images' and len(full) == n_poses:
        if len(paths) != n_poses:  # images were added
            return make_missing(full, reduced_places(full, basedir, factor), basedir, factor, upright=False)
        check_fit(folder, list(zip(full, paths)), factor, upright=False)
    if len(paths) != n_poses:
        raise UserError(f"{source} has {len(paths)} images but {basedir / 'poses_bounds.npy'} has {n_poses} poses; "
                        'COLMAP drops views that it cannot place: move those images away, or take more that overlap')
    if source == folder:
        return paths
    names = [path.stem + '.png' for path in paths]
    if sorted(set(names)) != names:  # poses are in the order of names
        raise UserError(f'{source} has images whose names would coincide or sort otherwise with the ending .png; '
                        f'rename them, or make {folder} yourself')
    check_one_size(paths, [image_size(path) for path in paths])
    return make_reduced(paths, names, folder, factor, alpha=False)


def _pictures_in(folder: Path) -> list[Path]:
    """Paths of the pictures in a folder, by name; none if it does not exist."""
    return sorted(path for path in (folder.iterdir() if folder.is_dir() else ())
                  if path.suffix.lower() in ENDINGS and not path.name.startswith('.'))


def _check_rotations(basedir: Path, poses: np.ndarray) -> None:
    """Raises UserError if a camera's axes are not of length 1, not at right angles, or mirrored unlike the first's."""
    axes = poses[:, :, :3]
    off = np.abs(axes.transpose(0, 2, 1) @ axes - np.eye(3)).max((1, 2))
    broken = np.flatnonzero((off > 0.01) | (np.linalg.det(axes) * np.linalg.det(axes[0]) < 0))
    if len(broken):
        raise UserError(f"{basedir / 'poses_bounds.npy'}: row {broken[0]} is not the pose of a camera: its axes are "
                        'not at right angles and of length 1, or mirrored; run COLMAP and the LLFF script again')


def _warn_of_other_cameras(basedir: Path, cameras: np.ndarray, factor: int, H: int, W: int) -> None:
    """Warns of images of another size or orientation than COLMAP's, and of several focal lengths."""
    height, width, focal = cameras[0]
    if abs(H - height / factor) > 1 + 0.01 * H or abs(W - width / factor) > 1 + 0.01 * W:
        print(f'warning: {basedir}: the images are {W}x{H} pixels, but at factor {factor} poses_bounds.npy is for '
              f'{width / factor:g}x{height / factor:g}; were they rotated, cropped or resized after COLMAP?',
              file=sys.stderr)
    if np.ptp(cameras[:, 2]) > 0.01 * abs(focal):
        print(f'warning: {basedir}: focal lengths from {cameras[:, 2].min():g} to {cameras[:, 2].max():g} pixels, but '
              f'one camera is expected; the first, {focal:g}, is used for all', file=sys.stderr)
