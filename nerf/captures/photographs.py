"""Photographs as files name them, with a camera each, and what is in their pictures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nerf.captures.lenses import Lens
from nerf.files.images import read_image, read_images_of_any_size, read_mask, same_proportions
from nerf.captures.reduced_folder import make_reduced
from nerf.runtime.errors import UserError

ENDINGS = tuple(ending for lower in ('.png', '.jpg', '.jpeg') for ending in (lower, lower.upper()))
AXES_OFF = 1e-3  # that the axes of a camera may be longer or shorter than 1, or off right angles
FARTHEST = 1e10  # of a camera's coordinates


class Photograph(NamedTuple):
    """One photograph and its camera."""

    name: str  # as the file has it, by which photographs are sorted
    path: Path
    pose: np.ndarray  # [3, 4] float64 camera-to-world, OpenGL axes
    lens: Lens
    size: tuple[float, float]  # width and height of the picture that the lens is for
    mask: Path | None = None


class Pictures(NamedTuple):
    """The content of photographs."""

    paths: list[Path]
    images: list[np.ndarray]  # [H, W, 3 or 4] uint8, all of one number of channels
    masks: list[np.ndarray] | None  # [H, W] bool, True: pixels to train on; None: all
    intrinsics: np.ndarray  # [N, 4] float64: fx, fy, cx, cy in pixels of `images`


def rigid(matrix: np.ndarray) -> np.ndarray:
    """[3, 4] float64: a pose with its rotation made orthonormal.

    Raises:
        ValueError: it is no pose; the message says why.
    """
    if not (np.abs(matrix) < FARTHEST).all():
        raise ValueError(f'has values that are not finite or above {FARTHEST:g}')
    left, lengths, right = np.linalg.svd(matrix[:, :3])
    if np.abs(lengths - 1.0).max() > AXES_OFF:
        raise ValueError('has axes that are not of length 1 and at right angles')
    if np.linalg.det(left @ right) < 0:
        raise ValueError('is mirrored')
    return np.column_stack([left @ right, matrix[:, 3]])


def is_file(path: Path) -> bool:
    """Whether a file is there, whatever its name holds."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def first_file(*paths: Path) -> Path:
    """The first of some paths where a file is, or else the first."""
    return next((path for path in paths if is_file(path)), paths[0])


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a file is in a folder once links are followed."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a name too long, one with a NUL, or a loop of links
        return False


def check_all_there(paths: Sequence[Path], what: str) -> None:
    """Raises UserError where files are missing."""
    if missing := [path for path in paths if not is_file(path)]:
        raise UserError(f'{len(missing)} of {len(paths)} {what} are missing, the first is {str(missing[0])!r}; copy '
                        'them there, or remove them from the file that names them')


def read_pictures(photographs: Sequence[Photograph], datadir: Path, factor: int, upright: bool = True) -> Pictures:
    """Reads photographs at 1/factor of their size, with lenses that fit that size.

    Args:
        photographs: as a file names them.
        datadir: whose images_<factor>/ has the reduced ones; it is made where it is missing.
        factor: their sides are divided by it.
        upright: they stand as their EXIF orientation says; else as they are stored.

    Raises:
        UserError: a picture is missing, broken or of other proportions than its camera.
    """
    paths = [photograph.path for photograph in photographs]
    for path, count in Counter(paths).most_common(1):
        if count > 1:
            raise UserError(f'{datadir}: the photograph {str(path)!r} has {count} cameras; each must have one')
    if factor > 1:
        paths = _reduced(paths, datadir, factor, upright)
    check_all_there(paths, 'photographs')
    images = read_images_of_any_size(paths, upright)
    intrinsics = []
    for photograph, path, image in zip(photographs, paths, images):
        size = np.array(image.shape[1::-1], np.float64)
        if not same_proportions(photograph.size, size):
            raise UserError(f'{path} is {size[0]:g}x{size[1]:g} pixels, but its camera is for '
                            f'{photograph.size[0]:g}x{photograph.size[1]:g}; was it rotated or cropped afterwards?')
        intrinsics.append(photograph.lens.intrinsics * np.tile(size / photograph.size, 2))
    return Pictures(paths, images, _read_masks(photographs, images, upright), np.array(intrinsics))


def _reduced(paths: list[Path], datadir: Path, factor: int, upright: bool) -> list[Path]:
    """Where the photographs at 1/factor of their size are, once they are made where their folder is missing."""
    folder, root = datadir / f'images_{factor}', Path(os.path.abspath(datadir / 'images'))
    full = [Path(os.path.abspath(path)) for path in paths]
    if not all(path.is_relative_to(root) for path in full):
        root = Path(os.path.commonpath([path.parent for path in full]))
    names = [path.relative_to(root) for path in full]
    if folder.is_dir():
        return [first_file(folder / name, *((folder / name).with_suffix(ending) for ending in ENDINGS))
                for name in names]
    check_all_there(paths, 'photographs')
    names = [name.with_suffix('.png') for name in names]
    if len(set(names)) < len(names):
        raise UserError(f'{root} has photographs whose names would coincide with the ending .png; rename them, or make '
                        f'{folder} yourself')
    return make_reduced(paths, names, folder, factor, lambda path: read_image(path, upright))


def _read_masks(photographs: Sequence[Photograph], images: list[np.ndarray], upright: bool) -> list[np.ndarray] | None:
    """Masks of the images' sizes, all True where a photograph has none; None where none has one."""
    if all(photograph.mask is None for photograph in photographs):
        return None
    check_all_there([photograph.mask for photograph in photographs if photograph.mask], 'masks')
    return [np.ones(image.shape[:2], bool) if photograph.mask is None
            else read_mask(photograph.mask, *image.shape[:2], upright)
            for photograph, image in zip(photographs, images)]
