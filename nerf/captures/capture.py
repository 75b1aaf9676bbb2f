"""Captures: photographs and their cameras, in the coordinates of the file that holds the cameras."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nerf.cameras import Cameras
from nerf.captures.lenses import Lens
from nerf.captures.reduced_folder import reduced_paths
from nerf.files.images import read_images_of_any_size, read_mask, same_proportions
from nerf.files.scene_files import check_all_there
from nerf.runtime.errors import UserError


class PosedPhotograph(NamedTuple):
    """One photograph and its camera, as a file has them."""

    name: str  # in the file; photographs are sorted by it
    path: Path
    pose: np.ndarray  # [3, 4] float64 camera-to-world, OpenGL axes, orthonormal
    lens: Lens
    size: tuple[float, float]  # width and height in pixels of the picture that the lens belongs to
    mask: Path | None = None


@dataclass(frozen=True)
class Capture:
    """Photographs of a scene and their cameras."""

    paths: list[Path]  # of the photographs, in the order of their names
    images: list[np.ndarray]  # [H, W, 3 or 4] uint8, all of one number of channels, already reduced by `factor`
    masks: list[np.ndarray] | None  # [H, W] bool, True: pixel to train on; None: all pixels
    cameras: Cameras  # of `images`; poses are float64, as coordinates can be far from the origin
    i_train: np.ndarray
    i_val: np.ndarray
    i_test: np.ndarray
    points: np.ndarray | None = None  # [P, 3] float64 sparse points on surfaces; None: unknown
    seen: list[np.ndarray] | None = None  # for each image, indices of the points that it observes; None: unknown


def read_capture(photographs: Sequence[PosedPhotograph], datadir: Path, factor: int, splits: Sequence[np.ndarray],
                 upright: bool = True, points: np.ndarray | None = None,
                 seen: list[np.ndarray] | None = None) -> Capture:
    """Reads photographs at 1/factor of their size.

    Args:
        photographs: photographs in the order of their names.
        datadir: folder of the scene; its images_<factor>/ has the reduced photographs, and is made if it is missing.
        factor: divisor of the photographs' sides.
        splits: indices of training, validation and test images.
        upright: as for `read_image`.
        points, seen: as in `Capture`.

    Raises:
        UserError: a picture is missing or broken, or has other proportions than its camera.
    """
    paths = [photograph.path for photograph in photographs]
    for path, count in Counter(paths).most_common(1):
        if count > 1:
            raise UserError(f'{datadir}: the photograph {str(path)!r} has {count} cameras; each must have one')
    if factor > 1:
        paths = reduced_paths(paths, datadir, factor, upright)
    check_all_there(paths, 'photographs')
    images = read_images_of_any_size(paths, upright)
    cameras = _cameras(photographs, paths, images)
    return Capture(paths, images, _read_masks(photographs, images, upright), cameras, *splits, points=points, seen=seen)


def _cameras(photographs: Sequence[PosedPhotograph], paths: Sequence[Path], images: Sequence[np.ndarray]) -> Cameras:
    """Cameras of photographs, for images [H, W, C] of other sizes than the lenses are for."""
    intrinsics = []
    for photograph, path, image in zip(photographs, paths, images):
        size = np.array(image.shape[1::-1], np.float64)
        if not same_proportions(photograph.size, size):
            raise UserError(f'{path} is {size[0]:g}x{size[1]:g} pixels, but its camera is for '
                            f'{photograph.size[0]:g}x{photograph.size[1]:g}; was it rotated or cropped afterwards?')
        intrinsics.append(photograph.lens.intrinsics * np.tile(size / photograph.size, 2))
    distortion, fisheye = (np.array([getattr(photograph.lens, part) for photograph in photographs])
                           for part in ('distortion', 'fisheye'))
    bends = distortion.any() or fisheye.any()  # a fisheye without coefficients bends rays too
    return Cameras(poses=torch.from_numpy(np.stack([photograph.pose for photograph in photographs])),
                   intrinsics=torch.from_numpy(np.array(intrinsics)),
                   sizes=torch.tensor([image.shape[:2] for image in images]),
                   distortion=torch.from_numpy(distortion).float() if bends else None,
                   fisheye=torch.from_numpy(fisheye) if fisheye.any() else None)


def _read_masks(photographs: Sequence[PosedPhotograph], images: Sequence[np.ndarray],
                upright: bool) -> list[np.ndarray] | None:
    """Masks [H, W] of images, all True for a photograph without one; None if no photograph has one."""
    if all(photograph.mask is None for photograph in photographs):
        return None
    check_all_there([photograph.mask for photograph in photographs if photograph.mask], 'masks')
    return [np.ones(image.shape[:2], bool) if photograph.mask is None
            else read_mask(photograph.mask, *image.shape[:2], upright)
            for photograph, image in zip(photographs, images)]
