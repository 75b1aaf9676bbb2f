"""Photographs with cameras of their own: transforms.json of nerfstudio or instant-ngp, phones' exports, and models of
COLMAP. What is missing or cannot be used is left out, with a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nerf.captures.capture import Capture, every_nth, named_splits, points_or_none, read_capture, usable_photographs
from nerf.captures.colmap import posed_photographs, read_model, reliable_points
from nerf.captures.transforms import read_ply, read_transforms
from nerf.poses import say_unusual
from nerf.runtime.errors import UserError


def load_transforms(datadir: str | Path, factor: int = 1, llffhold: int = 8, outside_files: bool = False) -> Capture:
    """Loads the photographs of datadir/transforms.json, or of a raw export of Polycam or Record3D; a UserError names a
    missing or broken file.

    Args:
        factor: images at 1/factor of their size, from images_<factor>/, which is made if it is missing.
        llffhold: every llffhold-th image is a test image, unless the file has lists of images; 0: only the image
            nearest to the mean camera position.
        outside_files: the file may name files outside datadir.
    """
    datadir = _folder(datadir)
    transforms = read_transforms(datadir / 'transforms.json', outside_files)
    photographs, _ = usable_photographs(transforms.photographs, datadir, factor)
    gone = {photograph.name for photograph in transforms.photographs} - {photograph.name for photograph in photographs}
    splits = named_splits(transforms.path, [photograph.name for photograph in photographs], transforms.splits, gone)
    splits = every_nth(datadir, photographs, llffhold) if splits is None else splits
    points = transforms.points and points_or_none(read_ply, transforms.points)
    return read_capture(photographs, datadir, factor, splits, transforms.upright, points)


def load_colmap(datadir: str | Path, factor: int = 1, llffhold: int = 8, outside_files: bool = False) -> Capture:
    """Loads the photographs of the largest COLMAP model of a scene, from datadir/images/ usually, with the masks that
    are in masks/ beside that folder; a UserError names a missing or broken file. Models are looked for in sparse/,
    sparse/0/ and other folders; arguments are as for `load_transforms`."""
    datadir = _folder(datadir)
    model = read_model(datadir)
    photographs, kept = usable_photographs(posed_photographs(datadir, model, outside_files), datadir, factor)
    say_unusual(model.folder, np.stack([photograph.pose for photograph in photographs]))
    points, seen = reliable_points(model.points, [model.images[i] for i in kept])
    return read_capture(photographs, datadir, factor, every_nth(datadir, photographs, llffhold), points=points,
                        seen=seen)


def _folder(datadir: str | Path) -> Path:
    """Path of a scene's folder; a UserError if there is no such folder."""
    if not Path(datadir).is_dir():
        raise UserError(f'datadir {datadir} is not a folder')
    return Path(datadir)
