"""Sparse points on the surfaces that photographs show."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nerf.captures.colmap import ColmapImage, ColmapPoints
from nerf.captures.rules import POINTS, PointRules
from nerf.runtime.errors import UserError

FARTHEST = 1e10  # largest coordinate of a point; others are ignored


def read_ply(path: Path) -> np.ndarray:
    """Points [P, 3] float64 of a PLY file.

    Raises:
        UserError: the file is missing or broken.
    """
    import trimesh

    try:
        content = io.BytesIO(path.read_bytes())  # without a path, beside which trimesh would look for textures
        points = np.asarray(trimesh.load(content, file_type='ply', process=False).vertices, np.float64).reshape(-1, 3)
    except Exception as error:  # trimesh passes on whatever its parsers raise
        raise UserError(f'{path} cannot be read as a PLY file of points ({error}); export the scene again, or remove '
                        'ply_file_path from transforms.json') from None
    return points[(np.abs(points) < FARTHEST).all(1)]


def reliable_points(points: ColmapPoints | None, images: Sequence[ColmapImage], rules: PointRules = POINTS
                    ) -> tuple[np.ndarray, list[np.ndarray]] | tuple[None, None]:
    """Points of a COLMAP model with several observations and a usual reprojection error.

    Args:
        points: points of the model, if known.
        images: images of the model.
        rules: limits of observations and errors.

    Returns:
        points [P, 3], and for each image the indices of the points that it observes; None, None if no point is left.
    """
    if points is None:
        return None, None
    good = (points.tracks >= rules.fewest_observations) & (np.abs(points.places) < FARTHEST).all(1)
    known = good & (points.errors >= 0)
    if known.any():
        good &= ~(points.errors > max(rules.error_ratio * np.median(points.errors[known]), rules.least_error))
    if not good.any():
        return None, None
    order = np.argsort(points.ids[good], kind='stable')
    ids = points.ids[good][order]

    def observed(point_ids: np.ndarray) -> np.ndarray:
        place = np.searchsorted(ids[:-1], point_ids)  # at which each id is, if it is known
        return np.unique(order[place[ids[place] == point_ids]])
    return points.places[good], [observed(image.point_ids) for image in images]
