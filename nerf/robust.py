"""Statistics of positions, distances and axes that a few wrong ones change little. They need no torch."""

from __future__ import annotations

import numpy as np

USUAL = 4.0  # multiple of the median up to which a distance counts; looked at on alexander, beer, fox_small and fern
MEDIAN_STEPS = 50  # of the iteration that finds a middle, more than it takes to settle
AXES_STEPS = 50  # of the iteration that finds where axes cross, far more than it takes to settle


def middle_of(positions: np.ndarray, usual: float = USUAL) -> np.ndarray:
    """Mean [3] of positions [N, 3] without those that are far from the geometric median (Weiszfeld's iteration)."""
    middle = positions.mean(0)
    if not (least := 1e-6 * np.abs(positions - middle).max()):
        return middle
    for _ in range(MEDIAN_STEPS):
        weight = 1.0 / np.maximum(np.linalg.norm(positions - middle, axis=-1), least)
        middle = weight @ positions / weight.sum()
    distances = np.linalg.norm(positions - middle, axis=-1)
    return positions[distances <= usual * np.median(distances)].mean(0)


def farthest_usual(distances: np.ndarray, usual: float = USUAL) -> float:
    """Largest of the distances [N] that are at most `usual` medians long."""
    return float(distances[distances <= usual * np.median(distances)].max())


def axes_crossing(poses: np.ndarray) -> np.ndarray:
    """Point [3] of the least sum of distances from the optical axes of poses [N, 3, 4], by least squares, repeated with
    weights 1 / distance (iteratively reweighted), so that a camera that looks elsewhere has little weight. For nearly
    parallel axes, a weak prior draws the point to the depth before the cameras' middle that equals their spread.
    """
    axes, positions = poses[:, :, 2], poses[:, :, 3]
    middle = middle_of(positions)
    spreads = np.linalg.norm(positions - middle, axis=-1)
    spread = farthest_usual(spreads) or spreads.max() or 1.0  # 0: most or all cameras stand in one place
    prior, little = middle - spread * axes.mean(0), 1e-4 * np.eye(3)
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]  # [N, 3, 3], projects onto the plane across an axis
    weight = np.full(len(poses), 1.0 / len(poses))
    for _ in range(AXES_STEPS):
        parts = weight[:, None, None] * across
        point = np.linalg.solve(parts.sum(0) + little, (parts @ positions[..., None]).sum(0)[:, 0] + little @ prior)
        distance = np.linalg.norm((across @ (point - positions)[..., None])[..., 0], axis=-1)
        weight = 1.0 / np.maximum(distance, 1e-3 * spread)
        weight /= weight.sum()
    return point


def axes_missed_by(point: np.ndarray, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth [N] of a point [3] before each camera of poses [N, 3, 4], and its distance [N] from each optical axis."""
    away = point - poses[:, :, 3]
    depth = -(away * poses[:, :, 2]).sum(-1)
    return depth, np.linalg.norm(away + depth[:, None] * poses[:, :, 2], axis=-1)
