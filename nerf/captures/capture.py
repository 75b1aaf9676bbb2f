"""Captures: photographs and their cameras, in the coordinates of the file that holds the cameras."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from nerf.cameras import Cameras
from nerf.captures.lenses import Lens, with_sound_lenses
from nerf.captures.reduced import make_missing, reduced_places
from nerf.files.images import read_images_of_any_size, read_mask, same_proportions
from nerf.files.scene_files import is_there, none_there, say_left_out, some_of
from nerf.robust import middle_of
from nerf.runtime.errors import UserError

SPLITS = ('train', 'val', 'test')
Points = TypeVar('Points')


class PosedPhotograph(NamedTuple):
    """One photograph and its camera, as a file has them."""

    name: str  # in the file; photographs are sorted by it
    path: Path
    pose: np.ndarray  # [3, 4] float64 camera-to-world, OpenGL axes, orthonormal
    lens: Lens
    mask: Path | None = None  # the file need not be there
    reduced: Path | None = None  # at 1/factor of its size, to be made if it is missing; None: factor is 1


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

    def take(self, kept: np.ndarray) -> Capture:
        """Some of the photographs, by ascending indices. Each stays a training, validation or test image."""
        def chosen(parts: list | None) -> list | None:
            return None if parts is None else [parts[i] for i in kept]

        splits = (np.searchsorted(kept, np.intersect1d(split, kept)) for split in (
            self.i_train, self.i_val, self.i_test))
        return Capture(chosen(self.paths), chosen(self.images), chosen(self.masks), self.cameras.take(kept), *splits,
                       points=self.points, seen=chosen(self.seen))


def usable_photographs(photographs: Sequence[PosedPhotograph], datadir: Path,
                       factor: int) -> tuple[list[PosedPhotograph], list[int]]:
    """Photographs that can be used, with `reduced` set, and their indices among all. Those that are missing, or whose
    lens is no lens, are left out with a line; if none is left, it is a UserError."""
    if factor > 1:
        places = reduced_places([photograph.path for photograph in photographs], datadir, factor)
        photographs = [photograph._replace(reduced=place) for photograph, place in zip(photographs, places)]
    there = [is_there(photograph.path) or (factor > 1 and is_there(photograph.reduced)) for photograph in photographs]
    if not any(there):
        others = ', '.join(sorted(path.name for path in datadir.glob('images_*')))
        raise UserError(none_there([photograph.path for photograph in photographs])
                        + (f'. {datadir} has {others}; factor N reads images_N' if others else ''))
    say_left_out(datadir, [photograph.name for photograph, here in zip(photographs, there) if not here],
                 f'of {len(photographs)} photographs are missing and left out')
    kept = _once(datadir, photographs, [i for i, here in enumerate(there) if here])
    sound = with_sound_lenses(datadir, [photographs[i].name for i in kept], [photographs[i].lens for i in kept])
    kept = [kept[i] for i in sound]
    return [photographs[i] for i in kept], kept


def _once(datadir: Path, photographs: Sequence[PosedPhotograph], kept: Sequence[int]) -> list[int]:
    """Indices, of those `kept`, without photographs that are named again with the same pose. A line counts these."""
    first = {}
    for i in kept:
        first.setdefault((photographs[i].path, photographs[i].pose.tobytes()), i)
    once = sorted(first.values())
    say_left_out(datadir, [photographs[i].name for i in sorted({*kept} - {*once})],
                 f'of {len(photographs)} photographs are named again with the same camera, and are used once')
    return once


def read_capture(photographs: Sequence[PosedPhotograph], datadir: Path, factor: int, splits: Sequence[np.ndarray],
                 upright: bool = False, points: np.ndarray | None = None,
                 seen: list[np.ndarray] | None = None) -> Capture:
    """Reads photographs, in the order of their names, at 1/factor of their size. A picture that is missing or broken,
    or has other proportions than its camera, is a UserError.

    Args:
        photographs: those of `usable_photographs`.
        datadir: folder of the scene; its images_<factor>/ has the reduced photographs, and is made if it is missing.
        splits: indices of training, validation and test images.
        upright, points, seen: as for `read_image` and in `Capture`.
    """
    paths = [photograph.path for photograph in photographs]
    for path, count in Counter(paths).most_common(1):
        if count > 1:
            raise UserError(f'{datadir}: the photograph {str(path)!r} has {count} cameras; each must have one')
    if factor > 1:
        paths = make_missing(paths, [photograph.reduced for photograph in photographs], datadir, factor, upright)
    images = read_images_of_any_size(paths, upright)
    cameras = _cameras(photographs, paths, images)
    masks = _read_masks(datadir, photographs, images, upright)
    return Capture(paths, images, masks, cameras, *splits, points=points, seen=seen)


def _cameras(photographs: Sequence[PosedPhotograph], paths: Sequence[Path], images: Sequence[np.ndarray]) -> Cameras:
    """Cameras of photographs, for images [H, W, C] of other sizes than the lenses are for."""
    for photograph, path, image in zip(photographs, paths, images):
        (height, width), size = image.shape[:2], photograph.lens.size
        if not same_proportions(size, (width, height)):
            raise UserError(f'{path} is {width}x{height} pixels, but its camera is for {size[0]:g}x{size[1]:g}; was it '
                            'rotated or cropped afterwards?')
    intrinsics, distortion, fisheye, lens_sizes = map(np.array, zip(*(photograph.lens for photograph in photographs)))
    sizes = np.array([image.shape[:2] for image in images])
    bends = distortion.any() or fisheye.any()  # a fisheye without coefficients bends rays too
    return Cameras(poses=torch.from_numpy(np.stack([photograph.pose for photograph in photographs])),
                   intrinsics=torch.from_numpy(intrinsics * np.tile(sizes[:, ::-1] / lens_sizes, 2)),
                   sizes=torch.from_numpy(sizes),
                   distortion=torch.from_numpy(distortion).float() if bends else None,
                   fisheye=torch.from_numpy(fisheye) if fisheye.any() else None)


def _read_masks(datadir: Path, photographs: Sequence[PosedPhotograph], images: Sequence[np.ndarray],
                upright: bool) -> list[np.ndarray] | None:
    """Masks [H, W] of images, all True for a photograph without one; None if no photograph has one."""
    named = [photograph for photograph in photographs if photograph.mask]
    if not named:
        return None
    missing = [photograph for photograph in named if not is_there(photograph.mask)]
    if len(missing) == len(named):
        raise UserError(f'{none_there([photograph.mask for photograph in missing], "masks")}, or remove them from the '
                        'file that names them')
    say_left_out(datadir, [photograph.mask.name for photograph in missing],
                 f'of {len(named)} masks are missing; all pixels of their photographs are used')
    masks = [read_mask(photograph.mask, *image.shape[:2], upright) if is_there(photograph.mask)
             else np.ones(image.shape[:2], bool) for photograph, image in zip(photographs, images)]
    if not any(mask.any() for mask in masks):
        raise UserError(f'{datadir}: all {len(named)} masks are black, {named[0].mask.name} for one, but pixels are '
                        'trained on where a mask is white')
    return masks


def points_or_none(read: Callable[[Path], Points], path: Path) -> Points | None:
    """Points that `read` has of a file; None, with a line, if it cannot, because a capture can do without."""
    try:
        return read(path)
    except UserError as error:
        print(f'warning: {error}. The capture is used without sparse points', file=sys.stderr)
        return None


def held_out(datadir: str | Path, count: int, llffhold: int, central: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and the test images of `count` images. Every llffhold-th image is a test image. If
    llffhold is 0, only the image `central` is a test image."""
    i_test = np.arange(count)[::llffhold] if llffhold else np.arange(count)[[central]]
    i_train = np.setdiff1d(np.arange(count), i_test)
    if not len(i_train):
        raise UserError(f'{datadir}: llffhold {llffhold} takes all {count} images for testing and leaves none to train '
                        'on; raise llffhold or add images')
    return i_train, i_test


def every_nth(datadir: Path, photographs: Sequence[PosedPhotograph], llffhold: int) -> list[np.ndarray]:
    """Indices of training, validation and test images by `held_out`; the last two are the same."""
    positions = np.stack([photograph.pose[:, 3] for photograph in photographs])
    central = np.linalg.norm(positions - middle_of(positions), axis=-1).argmin()
    i_train, i_test = held_out(datadir, len(positions), llffhold, int(central))
    return [i_train, i_test, i_test]


def named_splits(path: Path, names: Sequence[str], splits: Mapping[str, Sequence[str]],
                 gone: Collection[str] = ()) -> list[np.ndarray] | None:
    """Indices of training, validation and test images as a file lists them; None if all its lists are empty or, with a
    line, if they have all images for training.

    An empty list of training images stands for all images that no other list has. Of validation and test images, an
    empty list stands for the other one, or else for all images that are not trained on. `names` has all images in
    their order, `splits` the lists of names for some of SPLITS, and `gone` names of images that were left out; `path`,
    that of the file, is for messages. Names of no image are left out with a line, unless a list has no others.
    """
    index = {name: i for i, name in enumerate(names)}
    for split, listed in splits.items():
        unknown = [name for name in listed if name not in index and name not in gone]
        if unknown and len(unknown) == len(listed):
            raise UserError(f'{path}: {split}_filenames has {len(unknown)} names that no frame has: {some_of(unknown)}')
        say_left_out(path, unknown, f'names in {split}_filenames that no frame has are left out')
    train, val, test = (np.array(
        sorted({index[name] for name in splits.get(split, ()) if name in index}), np.int64) for split in SPLITS)
    if not any(map(len, (train, val, test))):
        return None
    rest = np.setdiff1d(np.arange(len(names)), np.concatenate([train, val, test]))
    train, test = train if len(train) else rest, test if len(test) else val if len(val) else rest
    if not len(train):
        raise UserError(f'{path}: its lists of file names leave no image to train on')
    if not len(test):
        print(f'warning: {path}: its lists of file names leave no image to test on; llffhold decides instead',
              file=sys.stderr)
        return None
    return [train, val if len(val) else test, test]
