"""Statistics of positions and distances that a few wrong ones change little. They need no torch."""

from __future__ import annotations

import numpy as np

USUAL = 4.0  # multiple of the median up to which a distance counts; looked at on alexander, beer, fox_small and fern
MEDIAN_STEPS = 50  # of the iteration that finds a middle, more than it takes to settle


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
