"""Poses of cameras: conventions and directions."""

from __future__ import annotations

import numpy as np

from nerf.cameras import Cameras

UPRIGHT = 0.95  # cosine between an axis of the scene and the cameras' mean up direction, from which the axis is up


def up_direction(cameras: Cameras) -> np.ndarray:
    """Up direction of a scene: the mean of the cameras' up directions, or the axis of the scene that is close to it.

    Args:
        cameras: training cameras.

    Returns:
        [3] unit vector in world coordinates.
    """
    mean = cameras.poses[:, :, 1].double().mean(0).numpy()
    mean /= max(np.linalg.norm(mean), 1e-9)
    axis = np.abs(mean).argmax()
    if abs(mean[axis]) < 1e-6:
        return np.array([0.0, 0.0, 1.0])
    return np.eye(3)[axis] * np.sign(mean[axis]) if abs(mean[axis]) > UPRIGHT else mean
