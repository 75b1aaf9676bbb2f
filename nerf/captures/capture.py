"""Captures: photographs and their cameras, in the coordinates of the file that holds the cameras."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nerf.cameras import Cameras
from nerf.files.images import ENDINGS, in_parallel, read_images_of_any_size, read_mask, same_proportions, write_reduced
from nerf.files.scene_files import check_all_there, first_file
from nerf.robust import middle_of
from nerf.runtime.errors import UserError

SPLITS = ('train', 'val', 'test')
ANY_ENDING = tuple(ending for lower in ENDINGS for ending in (lower, lower.upper()))


class Lens(NamedTuple):
    """Intrinsics and distortion of one camera, as in `Cameras`."""

    intrinsics: np.ndarray  # [4] float64: fx, fy, cx, cy in pixels
    distortion: np.ndarray  # [8] float64, in the order of COEFFICIENTS
    fisheye: bool
    size: tuple[float, float]  # width and height in pixels of the picture that the intrinsics are for


class PosedPhotograph(NamedTuple):
    """One photograph and its camera, as a file has them."""

    name: str  # in the file; photographs are sorted by it
    path: Path
    pose: np.ndarray  # [3, 4] float64 camera-to-world, OpenGL axes, orthonormal
    lens: Lens
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

    def take(self, kept: np.ndarray) -> Capture:
        """Some of the photographs, by ascending indices. Each stays a training, validation or test image."""
        def chosen(parts: list | None) -> list | None:
            return None if parts is None else [parts[i] for i in kept]

        splits = (np.searchsorted(kept, np.intersect1d(split, kept)) for split in (
            self.i_train, self.i_val, self.i_test))
        return Capture(chosen(self.paths), chosen(self.images), chosen(self.masks), self.cameras.take(kept), *splits,
                       points=self.points, seen=chosen(self.seen))


def read_capture(photographs: Sequence[PosedPhotograph], datadir: Path, factor: int, splits: Sequence[np.ndarray],
                 upright: bool = False, points: np.ndarray | None = None,
                 seen: list[np.ndarray] | None = None) -> Capture:
    """Reads photographs, in the order of their names, at 1/factor of their size. A picture that is missing or broken,
    or has other proportions than its camera, is a UserError.

    Args:
        datadir: folder of the scene; its images_<factor>/ has the reduced photographs, and is made if it is missing.
        splits: indices of training, validation and test images.
        upright, points, seen: as for `read_image` and in `Capture`.
    """
    paths = [photograph.path for photograph in photographs]
    for path, count in Counter(paths).most_common(1):
        if count > 1:
            raise UserError(f'{datadir}: the photograph {str(path)!r} has {count} cameras; each must have one')
    if factor > 1:
        paths = reduced_paths(paths, datadir, factor)
    check_all_there(paths, 'photographs')
    images = read_images_of_any_size(paths, upright)
    cameras = _cameras(photographs, paths, images)
    return Capture(paths, images, _read_masks(photographs, images, upright), cameras, *splits, points=points, seen=seen)


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


def _read_masks(photographs: Sequence[PosedPhotograph], images: Sequence[np.ndarray],
                upright: bool) -> list[np.ndarray] | None:
    """Masks [H, W] of images, all True for a photograph without one; None if no photograph has one."""
    paths = [photograph.mask for photograph in photographs]
    if not any(paths):
        return None
    check_all_there([path for path in paths if path], 'masks')
    return [read_mask(path, *image.shape[:2], upright) if path else np.ones(image.shape[:2], bool)
            for path, image in zip(paths, images)]


def reduced_paths(paths: Sequence[Path], datadir: Path, factor: int) -> list[Path]:
    """Paths of photographs at 1/factor of their size, in datadir/images_<factor>/, which is made if it is missing.

    Args:
        paths: paths of the photographs. Their names in the folder are relative to datadir/images or, if a photograph
            is elsewhere, to the folder that all photographs share.
        datadir: folder of the scene.
    """
    folder, root = datadir / f'images_{factor}', Path(os.path.abspath(datadir / 'images'))
    full = [Path(os.path.abspath(path)) for path in paths]
    if not all(path.is_relative_to(root) for path in full):
        root = Path(os.path.commonpath([path.parent for path in full]))
    names = [path.relative_to(root) for path in full]
    if folder.is_dir():
        return [first_file(folder / name, *((folder / name).with_suffix(ending) for ending in ANY_ENDING))
                for name in names]
    check_all_there(paths, 'photographs')
    names = [name.with_suffix('.png') for name in names]
    if len(set(names)) < len(names):
        raise UserError(f'{root} has photographs whose names would coincide with the ending .png; rename them, or make '
                        f'{folder} yourself')
    return make_reduced(paths, names, folder, factor)


def make_reduced(paths: Sequence[Path], names: Sequence[Path | str], folder: Path, factor: int, alpha: bool = True
                 ) -> list[Path]:
    """Writes photographs at 1/factor of their size into `folder`, by `write_reduced`; the folder appears only when it
    is complete. `names` of the reduced photographs in it end in .png; the result has their paths."""
    def reduce(path: Path, name: Path | str) -> None:
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        write_reduced(path, partial / name, factor, alpha)

    try:
        with tempfile.TemporaryDirectory(prefix=f'.partial-{folder.name}-', dir=folder.parent) as temporary:
            partial = Path(temporary) / folder.name
            partial.mkdir()
            in_parallel(f'writing {folder}', reduce, paths, names)
            try:
                partial.rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another run has made it meanwhile
                    raise
    except OSError as error:
        raise UserError(f'{folder} cannot be written ({error}); free some space, or copy the scene to a folder that '
                        'can be written to') from None
    return [folder / name for name in names]


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


def named_splits(path: Path, names: Sequence[str], splits: Mapping[str, Sequence[str]]) -> list[np.ndarray] | None:
    """Indices of training, validation and test images as a file lists them; None if all its lists are empty.

    An empty list of training images stands for all images that no other list has. Of validation and test images, an
    empty list stands for the other one, or else for all images that are not trained on. `names` has all images in
    their order, `splits` the lists of names for some of SPLITS; `path`, that of the file, is for messages.
    """
    index = {name: i for i, name in enumerate(names)}
    for split, listed in splits.items():
        if unknown := [name for name in listed if name not in index]:
            raise UserError(f'{path}: {split}_filenames has {len(unknown)} names that no frame has, the first is '
                            f'{unknown[0]!r}')
    train, val, test = (np.array(sorted({index[name] for name in splits.get(split, ())}), np.int64) for split in SPLITS)
    if not any(map(len, (train, val, test))):
        return None
    rest = np.setdiff1d(np.arange(len(names)), np.concatenate([train, val, test]))
    train, test = train if len(train) else rest, test if len(test) else val if len(val) else rest
    if not (len(train) and len(test)):
        raise UserError(f'{path}: its lists of file names leave no image to {"test" if len(train) else "train"} on')
    return [train, val if len(val) else test, test]
