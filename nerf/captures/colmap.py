"""Sparse models of COLMAP: the largest one of a scene, its photographs with their masks, and its reliable points."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nerf.captures.capture import PosedPhotograph, points_or_none
from nerf.captures.colmap_files import BINARY, TEXT, ColmapImage, ColmapPoints
from nerf.captures.lenses import Lens
from nerf.files.scene_files import BY_THE_END, Found, SceneFolder, is_file, leaves, say_assumed, told_apart
from nerf.poses import FARTHEST, colmap_pose, rigid, rotation_matrix
from nerf.runtime.errors import UserError

# Folders of a scene with models, or with folders of one model each, and folder with the photographs of these models:
# COLMAP's own, then those of image_undistorter, instant-ngp and 3D Gaussian Splatting
PLACES = {'sparse': 'images', 'colmap/sparse': 'images', 'dense/sparse': 'dense/images',
          'dense/0/sparse': 'dense/0/images', 'colmap_sparse': 'images', 'colmap_text': 'images',
          'distorted/sparse': 'input', '.': 'images'}
OTHER_PICTURES = ('images', 'input', '.')  # folders of a scene in which photographs can be instead
MASKS = 'masks'  # folder beside that of the photographs


@dataclass(frozen=True)
class PointRules:
    """Numbers that decide which points are reliable, set by hand; results were looked at on fox_small and beer."""

    fewest_observations: int = 2  # features of a point, if they are known
    error_ratio: float = 3.0  # largest reprojection error of a point, as a multiple of the median
    least_error: float = 1.0  # pixels of reprojection error that are always accepted


RULES = PointRules()


class ColmapModel(NamedTuple):
    """Content of a model's folder."""

    folder: Path
    pictures: Path  # folder that the names of images are relative to
    cameras: dict[int, Lens]
    images: list[ColmapImage]  # by name
    points: ColmapPoints | None  # None: the folder has no points that can be read


class ModelFiles(NamedTuple):
    """Files of a model, of which that of the points can be missing."""

    cameras: Path
    images: Path
    points: Path

    @property
    def readers(self) -> tuple[Callable[[Path], Any], ...]:
        """Readers of these files."""
        return BINARY if self.images.suffix == '.bin' else TEXT


def model_files(datadir: Path) -> tuple[str, list[ModelFiles]]:
    """Files of all COLMAP models of a scene in the first of PLACES that has any, and that place."""
    for place in PLACES:
        top = datadir / place
        folders = {path.parent for pattern in ('images.*', '*/images.*') for path in top.glob(pattern)}
        models = [files for folder in sorted(folders, key=lambda folder: (folder == top, len(folder.name), folder.name))
                  if (files := _files_in(folder))]
        if models:
            return place, models
    return '.', []


def _files_in(folder: Path) -> ModelFiles | None:
    """Files of the model in a folder: binary ones, or else text."""
    both = (ModelFiles(*(folder / f'{part}.{ending}' for part in ('cameras', 'images', 'points3D')))
            for ending in ('bin', 'txt'))
    return next((files for files in both if is_file(files.cameras) and is_file(files.images)), None)


def read_model(datadir: Path) -> ColmapModel:
    """Largest sparse model of the scene in the folder `datadir`; a UserError if it is missing, broken or has another
    lens. One line names the other models."""
    place, models = model_files(datadir)
    if not models:
        places = ', '.join(place for place in PLACES if place != '.')
        raise UserError(f'{datadir} has no COLMAP model: cameras.bin and images.bin, or cameras.txt and images.txt, '
                        f'are looked for in it, in {places}, and in their subfolders, such as sparse/0')
    files, images = _largest(datadir, models)
    if not images:
        raise UserError(f'{files.images.parent} has no images; run COLMAP again')
    read_cameras, _, read_points = files.readers
    return ColmapModel(files.images.parent, _pictures(datadir, PLACES[place], images), read_cameras(files.cameras),
                       sorted(images, key=lambda image: image.name),
                       points_or_none(read_points, files.points) if is_file(files.points) else None)


def _largest(datadir: Path, models: Sequence[ModelFiles]) -> tuple[ModelFiles, list[ColmapImage]]:
    """The model with most images, and these. A line names the others, and damaged ones unless all are."""
    found, errors = [], []
    for files in models:
        try:
            found.append((files, files.readers[1](files.images)))
        except UserError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    best = max(found, key=lambda one: len(one[1]))
    for error in errors:
        print(f'warning: {error}; that model is left out', file=sys.stderr)
    if len(found) > 1:
        used, *others = (f'{files.images.parent.relative_to(datadir)} with {len(images)} images'
                         for files, images in (best, *(one for one in found if one is not best)))
        print(f'warning: {datadir} has {len(found)} COLMAP models, and the largest is used, {used}; left out: '
              f'{", ".join(others)}', file=sys.stderr)
    return best


def _pictures(datadir: Path, usual: str, images: Sequence[ColmapImage]) -> Path:
    """Folder that has most of the photographs: the usual one, or another of OTHER_PICTURES."""
    def count(folder: Path) -> int:
        return sum(is_file(folder / image.name.replace('\\', '/')) for image in images)
    return max((datadir / name for name in (usual, *OTHER_PICTURES)), key=count)


def posed_photographs(datadir: Path, model: ColmapModel, outside_files: bool = False) -> list[PosedPhotograph]:
    """Photographs of a model's images and, where the scene has MASKS, their masks, all of which can be missing."""
    found = _found(model.folder, SceneFolder(model.pictures, outside_files), [image.name for image in model.images])
    say_assumed(model.folder, found)
    paths = [each.path for each in found]
    return [PosedPhotograph(image.name, path, _pose(model, image), _lens(model, image), mask)
            for image, path, mask in zip(model.images, paths, _masks(datadir, model, paths, outside_files))]


def _found(source: Path, folder: SceneFolder, names: Sequence[str]) -> list[Found]:
    """Files of a folder that the names mean which `source` has."""
    results = []
    for name in names:
        try:
            results.append(folder.find(name))
        except ValueError as error:
            raise UserError(f'{source}: image {name!r}: {error}') from None
        if results[-1].outside:
            raise UserError(f'{source}: image {name!r} {leaves(results[-1].path, folder.folder)}; if you trust the '
                            'model, add --outside_files')
    return told_apart(folder, results)


def _masks(datadir: Path, model: ColmapModel, photographs: Sequence[Path], outside_files: bool) -> list[Path | None]:
    """Path of each photograph's mask in MASKS beside the folder of the photographs, which need not be there: a.jpg.png,
    as COLMAP has it, or a.png for a.jpg. None: the scene has no masks."""
    folder = (datadir if model.pictures == datadir else model.pictures.parent) / MASKS
    if not folder.is_dir():
        return [None] * len(photographs)
    names = [str(path.relative_to(model.pictures)) if path.is_relative_to(model.pictures) else path.name
             for path in photographs]
    found = _found(folder, SceneFolder(folder, outside_files), names)
    masks = [folder / f'{name}.png' if mask.missing or BY_THE_END in mask.assumed else mask.path
             for name, mask in zip(names, found)]
    if count := sum(map(is_file, masks)):
        print(f'{folder}: masks of {count} photographs; pixels are trained on where they are white')
        return masks
    print(f'warning: {folder} has no masks of the photographs, {names[0]}.png for one; all pixels are used',
          file=sys.stderr)
    return [None] * len(photographs)


def _pose(model: ColmapModel, image: ColmapImage) -> np.ndarray:
    """Pose [3, 4] camera-to-world of an image, OpenGL axes."""
    try:
        with np.errstate(over='ignore'):
            length = np.linalg.norm(image.quaternion)
        if not 1e-6 < length < 1e6:
            raise ValueError(f'has a quaternion of length {length:g}')
        return rigid(colmap_pose(rotation_matrix(image.quaternion), image.translation))
    except ValueError as error:
        raise UserError(f'{model.folder}: image {image.name!r} has a pose that {error}; run COLMAP again') from None


def _lens(model: ColmapModel, image: ColmapImage) -> Lens:
    if image.camera_id not in model.cameras:
        raise UserError(f'{model.folder}: image {image.name!r} has camera {image.camera_id}, which the model does not '
                        'have; export it again')
    return model.cameras[image.camera_id]


def reliable_points(points: ColmapPoints | None, images: Sequence[ColmapImage], rules: PointRules = RULES
                    ) -> tuple[np.ndarray | None, list[np.ndarray] | None]:
    """Points [P, 3] of a model with several observations, or none at all, and a usual reprojection error, and for each
    image the indices of the points that it observes; None, None if no point is left. Other programs write no
    observations; then the second result is None."""
    if points is None:
        return None, None
    good = (points.tracks == 0) | (points.tracks >= rules.fewest_observations)
    good &= (np.abs(points.places) < FARTHEST).all(1)
    known = good & (points.errors >= 0)
    if known.any():
        good &= ~(points.errors > max(rules.error_ratio * np.median(points.errors[known]), rules.least_error))
    if not good.any():
        return None, None
    order = np.argsort(points.ids[good], kind='stable')
    ids = points.ids[good][order]
    observed = []
    for image in images:
        place = np.searchsorted(ids[:-1], image.point_ids)  # at which each id is, if it is known
        observed.append(np.unique(order[place[ids[place] == image.point_ids]]))
    return points.places[good], observed if any(map(len, observed)) else None
