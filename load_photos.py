"""Photographs with cameras of their own: transforms.json, as nerfstudio and instant-ngp write it, and COLMAP models."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from load_llff import held_out
from nerf.captures.colmap import Image, Model, Points, read_model
from nerf.captures.photographs import Photograph, is_inside, read_pictures, rigid
from nerf.captures.transforms import read_transforms
from nerf.runtime.errors import UserError

FARTHEST_POINT = 1e10  # sparse points with larger coordinates are left out
POINT_ERRORS = 3.0  # and those whose reprojection error is so many times the median, if it is above LEAST_ERROR
LEAST_ERROR = 1.0  # pixel


@dataclass(frozen=True)
class Capture:
    """Photographs of a scene and their cameras, in the coordinates of the file that they come from."""

    paths: list[Path]  # of the photographs, in the order of their names
    images: list[np.ndarray]  # [H, W, 3 or 4] uint8, all of one number of channels, already reduced by `factor`
    masks: list[np.ndarray] | None  # [H, W] bool, True: pixels to train on; None: all
    poses: np.ndarray  # [N, 3, 4] float64 camera-to-world, OpenGL axes: x right, y up, looking along -z; orthonormal
    intrinsics: np.ndarray  # [N, 4] float64: fx, fy, cx, cy in pixels of `images`; a pixel's centre is at +0.5
    distortion: np.ndarray | None  # [N, 8] float64, in the order of nerf.cameras.COEFFICIENTS; None: no camera has any
    fisheye: np.ndarray | None  # [N] bool; None: no camera is one
    i_train: np.ndarray
    i_val: np.ndarray
    i_test: np.ndarray
    points: np.ndarray | None = None  # [P, 3] float64 sparse points of the surfaces, same coordinates; None: not known
    seen: list[np.ndarray] | None = None  # for each image the indices of the points that it observes; None: not known


def load_transforms(datadir: str | Path, factor: int = 1, llffhold: int = 8, outside_files: bool = False) -> Capture:
    """Loads the photographs that datadir/transforms.json names.

    Args:
        datadir: the folder of the scene.
        factor: images at 1/factor of their size, from images_<factor>/, which is made where it is missing.
        llffhold: every so many images one is a test image, where the file does not say which are; 0: only that nearest
            to the mean camera position.
        outside_files: the file may name files outside datadir.

    Raises:
        UserError: the scene is missing, incomplete or broken; the message names the file.
    """
    datadir = Path(datadir)
    path = datadir / 'transforms.json'
    transforms = read_transforms(path, outside_files)
    photographs = sorted(transforms.photographs, key=lambda photograph: photograph.name)
    points = None if transforms.points is None else _read_ply(transforms.points)
    i_split = _named_splits(path, [photograph.name for photograph in photographs], transforms.splits)
    return _capture(photographs, datadir, factor, i_split or _held_out(datadir, photographs, llffhold), points=points)


def load_colmap(datadir: str | Path, factor: int = 1, llffhold: int = 8) -> Capture:
    """Loads the photographs of a COLMAP model, from datadir/images/.

    Args:
        datadir: the folder of the scene; the model is in its sparse/0/, sparse/ or itself.
        factor, llffhold: as for `load_transforms`.

    Raises:
        UserError: the scene is missing, incomplete or broken; the message names the file.
    """
    datadir = Path(datadir)
    model = read_model(datadir)
    if not model.images:
        raise UserError(f'{model.folder} has no images; run COLMAP again')
    images = sorted(model.images, key=lambda image: image.name)
    photographs = [_colmap_photograph(datadir, model, image) for image in images]
    points, seen = (None, None) if model.points is None else _good_points(model.points, images)
    # COLMAP knows the pixels as they are stored
    return _capture(photographs, datadir, factor, _held_out(datadir, photographs, llffhold), upright=False,
                    points=points, seen=seen)


def _capture(photographs: Sequence[Photograph], datadir: Path, factor: int, i_split: Sequence[np.ndarray],
             upright: bool = True, points: np.ndarray | None = None, seen: list[np.ndarray] | None = None) -> Capture:
    pictures = read_pictures(photographs, datadir, factor, upright)
    distortion = np.array([photograph.lens.distortion for photograph in photographs])
    fisheye = np.array([photograph.lens.fisheye for photograph in photographs])
    bends = distortion.any() or fisheye.any()  # a fisheye without coefficients does, too
    return Capture(pictures.paths, pictures.images, pictures.masks, np.stack([each.pose for each in photographs]),
                   pictures.intrinsics, distortion if bends else None, fisheye if fisheye.any() else None, *i_split,
                   points=points, seen=seen)


# Training, validation and test images


def _held_out(datadir: Path, photographs: Sequence[Photograph], llffhold: int) -> list[np.ndarray]:
    """Indices of training, validation and test images; the latter two are the same."""
    positions = np.stack([each.pose[:, 3] for each in photographs])
    central = np.linalg.norm(positions - positions.mean(0), axis=-1).argmin()
    i_train, i_test = held_out(datadir, len(photographs), llffhold, int(central))
    return [i_train, i_test, i_test]


def _named_splits(path: Path, names: Sequence[str], splits: Mapping[str, Sequence[str]]) -> list[np.ndarray] | None:
    """Indices of training, validation and test images as a file lists them; None where it does not.

    A list that is missing or empty has the images of no other one; of validation and test images, those of the other.
    """
    index = {name: i for i, name in enumerate(names)}
    for split, listed in splits.items():
        if unknown := [name for name in listed if name not in index]:
            raise UserError(f'{path}: {split}_filenames has {len(unknown)} names that no frame has, the first is '
                            f'{unknown[0]!r}')
    train, val, test = (np.array(sorted({index[name] for name in splits.get(split, ())}), np.int64)
                        for split in ('train', 'val', 'test'))
    if not any(map(len, (train, val, test))):
        return None
    rest = np.setdiff1d(np.arange(len(names)), np.concatenate([train, val, test]))
    train, test = train if len(train) else rest, test if len(test) else val if len(val) else rest
    if not (len(train) and len(test)):
        raise UserError(f'{path}: its lists of file names leave no image to {"test" if len(train) else "train"} on')
    return [train, val if len(val) else test, test]


# COLMAP


def _colmap_photograph(datadir: Path, model: Model, image: Image) -> Photograph:
    where = f'{model.folder}: image {image.name!r}'
    folder = datadir / 'images'
    path = folder / image.name
    if '..' in Path(image.name).parts or path == folder or not is_inside(path, folder):
        raise UserError(f'{where} is not in the folder {folder}')
    if image.camera_id not in model.cameras:
        raise UserError(f'{where} has camera {image.camera_id}, which the model does not have; export it again')
    camera = model.cameras[image.camera_id]
    try:
        return Photograph(image.name, path, rigid(_camera_to_world(image.quaternion, image.translation)), camera.lens,
                          camera.size)
    except ValueError as error:
        raise UserError(f'{where} has a pose that {error}; run COLMAP again') from None


def _camera_to_world(quaternion: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """[3, 4] in OpenGL axes, of COLMAP's rotation and translation from world to camera in OpenCV axes (y down, looking
    along z)."""
    with np.errstate(over='ignore'):
        length = np.linalg.norm(quaternion)
    if not 1e-6 < length < 1e6:
        raise ValueError(f'has a quaternion of length {length:g}')
    w, x, y, z = quaternion / length
    rotation = np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                         [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                         [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]])
    with np.errstate(invalid='ignore'):  # of infinity, which `rigid` refuses
        return np.column_stack([rotation.T * [1, -1, -1], -rotation.T @ translation])


# Sparse points


def _good_points(points: Points,
                 images: Sequence[Image]) -> tuple[np.ndarray, list[np.ndarray]] | tuple[None, None]:
    """Points [P, 3] that several features show and whose error is not far above the others', and for each image the
    indices of those that it shows; None where there are no such points."""
    good = (points.tracks >= 2) & (np.abs(points.places) < FARTHEST_POINT).all(1)
    known = good & (points.errors >= 0)
    if known.any():
        good &= ~(points.errors > max(POINT_ERRORS * np.median(points.errors[known]), LEAST_ERROR))
    if not good.any():
        return None, None
    order = np.argsort(points.ids[good], kind='stable')
    ids = points.ids[good][order]

    def shown(point_ids: np.ndarray) -> np.ndarray:
        place = np.searchsorted(ids[:-1], point_ids)  # if it is there
        return np.unique(order[place[ids[place] == point_ids]])
    return points.places[good], [shown(image.point_ids) for image in images]


def _read_ply(path: Path) -> np.ndarray:
    """Points [P, 3] of a PLY file."""
    import trimesh

    try:
        content = io.BytesIO(path.read_bytes())  # without a name, beside which trimesh would look for textures
        points = np.asarray(trimesh.load(content, file_type='ply', process=False).vertices, np.float64).reshape(-1, 3)
    except Exception as error:  # trimesh raises what its parsers run into
        raise UserError(f'{path} cannot be read as a PLY file of points ({error}); export the scene again, or remove '
                        'ply_file_path from transforms.json') from None
    return points[(np.abs(points) < FARTHEST_POINT).all(1)]
