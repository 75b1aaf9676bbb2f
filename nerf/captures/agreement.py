"""Agreement of cameras: which cameras of a capture fit to the others. It needs no torch, and so imports none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nerf.robust import middle_of


@dataclass(frozen=True)
class AgreementRules:
    """Numbers that decide which cameras agree, set by hand; results were looked at on alexander (near and far rings),
    beer, fox_small and fern, with and without cameras moved away."""

    widest_gap: float = 5.0  # between two groups of cameras of one scene, in distances of a camera from its subject
    fewest_together: int = 5  # cameras of a capture that stay however far away; wrong ones hardly stand together
    fewest_seen: int = 4  # sparse points that a camera sees; fewer do not hold it in its place
    most_left_out: float = 0.25  # share of a capture's cameras; if more disagree, the rules do not fit and all stay


RULES = AgreementRules()


@dataclass(frozen=True)
class MappedCameras:
    """Cameras of N photographs by one mapping of structure from motion, in coordinates of any scale."""

    index: np.ndarray  # [N] int64: number of each photograph
    positions: np.ndarray  # [N, 3] float64
    depths: np.ndarray  # [N] float64: median depth of the points that each camera observes
    points: np.ndarray  # [N] int64: points that each camera observes
    errors: np.ndarray  # [N] float64: mean reprojection error of these points in pixels


@dataclass(frozen=True)
class MappingRules(AgreementRules):
    """Numbers that decide between mappings."""

    fewest_seen: int = 20  # sparse points that a camera observes; COLMAP asks for 30 matches when it adds a photograph
    error_ratio: float = 3.0  # largest mean error of a camera, as a multiple of the median camera's
    least_error: float = 1.0  # pixels of mean error that are always accepted
    similar_size: float = 0.9  # share of the most cameras from which on a mapping can be better by its error
    worse_error: float = 1.25  # mean error, as a multiple of the least, that a mapping may have for more cameras


def agreeing(mapped: MappedCameras, rules: MappingRules) -> np.ndarray:
    """[N] bool: cameras of a mapping with enough points and a usual error, in the largest group or in one of many
    cameras."""
    good = mapped.points >= rules.fewest_seen
    good &= mapped.errors <= max(rules.least_error, rules.error_ratio * np.median(mapped.errors))
    if good.any():
        subject = subject_distance(mapped.positions[good], mapped.depths[good])
        sizes = group_sizes(mapped.positions[good], rules.widest_gap * subject)
        good[good] = (sizes == sizes.max()) | (sizes >= rules.fewest_together)
    return good


def best_mapping(several: Sequence[MappedCameras], rules: MappingRules) -> int:
    """Number of the mapping with the most agreeing cameras. A mapping that has nearly as many is better if the error of
    the larger one is much worse; of equals, the first is."""
    good = [agreeing(mapped, rules) for mapped in several]
    counts = np.array([part.sum() for part in good])
    errors = np.array([mapped.errors[part].mean() if part.any() else np.inf for mapped, part in zip(several, good)])
    similar = counts >= rules.similar_size * counts.max()
    exact = similar & (errors <= rules.worse_error * errors[similar].min())
    return int(np.where(exact, counts, -1).argmax())


def disagreeing(positions: np.ndarray, crossing: np.ndarray, depths: Sequence[np.ndarray] | None,
                rules: AgreementRules = RULES) -> tuple[np.ndarray, np.ndarray]:
    """Indices of cameras that are far from all others, and of those that see no points though most cameras do.

    Args:
        positions: [N, 3] of the cameras.
        crossing: [3] point at which their axes cross.
        depths: for each camera, depths of the sparse points that it sees; None: points are unknown.
    """
    distances, blind = np.linalg.norm(positions - crossing, axis=-1), np.zeros(len(positions), bool)
    if depths is not None:
        few = np.array([len(part) < rules.fewest_seen for part in depths])
        blind = few & (few.mean() <= rules.most_left_out)
        if known := [np.median(part) for part, unknown in zip(depths, few) if not unknown]:
            distances = np.maximum(distances, np.median(known))
    sizes = group_sizes(positions, rules.widest_gap * subject_distance(positions, distances))
    far = (sizes < sizes.max()) & (sizes < rules.fewest_together)
    far &= far.mean() <= rules.most_left_out
    return np.flatnonzero(far), np.flatnonzero(blind & ~far)


def subject_distance(positions: np.ndarray, distances: np.ndarray) -> float:
    """Median of the distances [N] of cameras from what they look at, or of their distances from their middle, if these
    are larger."""
    spreads = np.linalg.norm(positions - middle_of(positions), axis=-1)
    return float(max(np.median(distances), np.median(spreads)))


def group_sizes(positions: np.ndarray, gap: float) -> np.ndarray:
    """Number [N] of positions in the group of each of the positions [N, 3]. Members have a neighbour within `gap`."""
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial.distance import cdist
    group = connected_components(cdist(positions, positions) <= gap, directed=False)[1]
    return np.bincount(group)[group]
