"""Photographs with cameras of their own: transforms.json of nerfstudio or instant-ngp, and models of COLMAP."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nerf.captures.capture import Capture, every_nth, named_splits, read_capture
from nerf.captures.colmap import posed_photograph, read_model, reliable_points
from nerf.captures.transforms import read_ply, read_transforms
from nerf.poses import say_unusual
from nerf.runtime.errors import UserError


def load_transforms(datadir: str | Path, factor: int = 1, llffhold: int = 8, outside_files: bool = False) -> Capture:
    """Loads the photographs of datadir/transforms.json; a UserError names a missing or broken file.

    Args:
        factor: images at 1/factor of their size, from images_<factor>/, which is made if it is missing.
        llffhold: every llffhold-th image is a test image, unless the file has lists of images; 0: only the image
            nearest to the mean camera position.
        outside_files: the file may name files outside datadir.
    """
    datadir = Path(datadir)
    path = datadir / 'transforms.json'
    transforms = read_transforms(path, outside_files)
    photographs = sorted(transforms.photographs, key=lambda photograph: photograph.name)
    points = None if transforms.points is None else read_ply(transforms.points)
    splits = named_splits(path, [photograph.name for photograph in photographs], transforms.splits)
    splits = every_nth(datadir, photographs, llffhold) if splits is None else splits
    return read_capture(photographs, datadir, factor, splits, transforms.upright, points)


def load_colmap(datadir: str | Path, factor: int = 1, llffhold: int = 8) -> Capture:
    """Loads the photographs of a COLMAP model from datadir/images/; a UserError names a missing or broken file. The
    model is in sparse/0/, sparse/, colmap/sparse/0/ or datadir itself; other arguments are as for `load_transforms`.
    """
    datadir = Path(datadir)
    model = read_model(datadir)
    if not model.images:
        raise UserError(f'{model.folder} has no images; run COLMAP again')
    images = sorted(model.images, key=lambda image: image.name)
    photographs = [posed_photograph(datadir, model, image) for image in images]
    say_unusual(model.folder, np.stack([photograph.pose for photograph in photographs]))
    points, seen = reliable_points(model.points, images)
    return read_capture(photographs, datadir, factor, every_nth(datadir, photographs, llffhold), points=points,
                        seen=seen)
