"""Depths of the nearest and the farthest thing in each view of a capture, from its sparse points."""

from __future__ import annotations

import numpy as np

from nerf.cameras import Cameras
from nerf.captures.rules import PLACEMENT, PlacementRules


def depth_ranges(cameras: Cameras, points: np.ndarray | None, seen: list[np.ndarray] | None = None,
                 rules: PlacementRules = PLACEMENT) -> np.ndarray | None:
    """Depths [N, 2] of the nearest and the farthest point of each view, without the extreme percentiles.

    A view of few points gets the extremes of all other views.

    Args:
        cameras: N cameras with float64 poses.
        points: [P, 3] sparse points, if known.
        seen: for each view, indices of the points that it observes; None: points that project into the view.
        rules: numbers of points and percentiles.

    Returns:
        depths along the cameras' axes, or distances for fisheyes; None if no view has enough points.
    """
    if points is None:
        return None
    if seen is None:
        some = points[::len(points) // rules.most_points + 1]
        depths = [projected_depths(cameras, view, some) for view in range(len(cameras))]
    else:
        depths = [observed_depths(cameras, view, points[index]) for view, index in enumerate(seen)]
    if max(map(len, depths)) < rules.fewest_points:
        return None
    known = np.array([len(part) >= rules.fewest_points for part in depths])
    ranges = np.array([np.percentile(part, rules.extremes) if enough else (0.0, 0.0)
                       for part, enough in zip(depths, known)])
    ranges[~known] = ranges[known, 0].min(), ranges[known, 1].max()
    return ranges


def observed_depths(cameras: Cameras, view: int, points: np.ndarray) -> np.ndarray:
    """Positive depths [K] of points [P, 3] in a view; of a fisheye, distances."""
    _, depth = _depths(cameras, view, points)
    return depth[depth > 0.0]


def projected_depths(cameras: Cameras, view: int, points: np.ndarray) -> np.ndarray:
    """Depths [K] of the points [P, 3] that project into a view by its intrinsics alone; of a fisheye, distances."""
    (x, y, z), depth = _depths(cameras, view, points)
    across = np.hypot(x, y)
    with np.errstate(divide='ignore', invalid='ignore'):
        per_length = np.arctan2(across, -z) / across if _is_fisheye(cameras, view) else 1.0 / depth
        fx, fy, cx, cy = cameras.intrinsics[view].tolist()
        column, row = cx + fx * x * per_length, cy - fy * y * per_length
    height, width = cameras.size(view)
    return depth[(depth > 0.0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)]


def _depths(cameras: Cameras, view: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points [3, P] in the camera's axes, and their depths [P]."""
    pose = cameras.poses[view].numpy()
    x, y, z = local = ((points - pose[:, 3]) @ pose[:, :3]).T
    return local, np.sqrt(x * x + y * y + z * z) if _is_fisheye(cameras, view) else -z


def _is_fisheye(cameras: Cameras, view: int) -> bool:
    return cameras.fisheye is not None and bool(cameras.fisheye[view])
