"""Render path around the centre of a capture."""

from __future__ import annotations

import numpy as np

from nerf.captures.rules import PLACEMENT, PlacementRules
from nerf.poses import viewmatrix


def render_path_orbit(poses: np.ndarray, rules: PlacementRules = PLACEMENT) -> np.ndarray:
    """Upright orbit around the z axis, as far away and as high as the cameras nearby.

    The orbit is closed if the cameras surround the origin. Otherwise it goes to and fro over the largest arc that was
    photographed. It looks at the origin or, if most cameras look outwards, as they do.

    Args:
        poses: [N, 3, 4] of the photographs, z up.
        rules: number of views, and how the orbit follows the cameras.

    Returns:
        [path_views, 3, 4] poses.
    """
    radius = np.hypot(poses[:, 0, 3], poses[:, 1, 3])
    poses = poses[radius >= rules.overhead * np.median(radius)]
    radius, azimuth = np.hypot(poses[:, 0, 3], poses[:, 1, 3]), np.arctan2(poses[:, 1, 3], poses[:, 0, 3])
    start, length = covered_arc(azimuth, rules.open_gap)
    share = np.arange(rules.path_views) / rules.path_views
    angles = start + (2.0 * np.pi * share if length is None else length * (0.5 - 0.5 * np.cos(2.0 * np.pi * share)))
    turn = np.angle(np.exp(1j * (angles[:, None] - azimuth)))  # [path_views, N] in (-pi, pi]
    weight = np.exp(-0.5 * (turn / np.radians(rules.smooth)) ** 2)
    weight /= weight.sum(1, keepdims=True)
    around, height = weight @ radius, weight @ poses[:, 2, 3]
    positions = np.stack([around * np.cos(angles), around * np.sin(angles), height], 1)
    inwards = (poses[:, :, 2] * poses[:, :, 3]).sum(-1) > 0.0
    backwards = positions if inwards.mean() > 0.5 else weight @ poses[:, :, 2]
    return np.stack([viewmatrix(backward, np.array([0.0, 0.0, 1.0]), position)
                     for backward, position in zip(backwards, positions)])


def covered_arc(azimuth: np.ndarray, open_gap: float = PLACEMENT.open_gap) -> tuple[float, float | None]:
    """Arc of the largest group of azimuths without a gap of `open_gap` degrees.

    Args:
        azimuth: [N] in radians.
        open_gap: in degrees.

    Returns:
        beginning and length of the arc in radians; the length is None if there is no gap.
    """
    first, azimuth = azimuth[0], np.sort((azimuth - azimuth[0]) % (2.0 * np.pi))
    after = np.diff(azimuth, append=azimuth[0] + 2.0 * np.pi)  # gap after each
    ends = np.flatnonzero(after > np.radians(open_gap))
    if not len(ends):
        return float(first), None
    begins, counts = np.roll(ends, 1) + 1, np.diff(ends, prepend=ends[-1] - len(azimuth))
    largest = counts.argmax()
    start, end = azimuth[begins[largest] % len(azimuth)], azimuth[ends[largest]]
    return float(first + start), float((end - start) % (2.0 * np.pi))
