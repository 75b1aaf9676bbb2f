"""Cameras as viser has them (x right, y down, looking along z; quaternions) and as scenes have them (OpenGL axes)."""

from __future__ import annotations

import math

import numpy as np

from nerf.cameras import Cameras
from nerf.scene import Scene

FLIP = np.array([1.0, -1.0, -1.0])  # of a camera's axes, between the two
TURN, SHIFT = 2e-3, 1e-3  # entries of two rotations, and shares of the distance, that count as the same
UPRIGHT = 0.95  # cosine between an axis of the scene and the cameras' mean up from which that axis is up


def opengl_pose(wxyz: np.ndarray, position: np.ndarray) -> np.ndarray:
    """[3, 4] camera-to-world in OpenGL axes of viser's camera; NaN where its quaternion is 0."""
    w, x, y, z = np.asarray(wxyz, np.float64) / (np.linalg.norm(wxyz) or math.nan)
    turn = np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                     [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                     [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]])
    return np.column_stack([turn * FLIP, position])


def opencv_quaternion(pose: np.ndarray) -> np.ndarray:
    """viser's quaternion (w, x, y, z) of a pose [3, 4] in OpenGL axes."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(pose[:, :3] * FLIP).as_quat()
    return np.array([w, x, y, z])


def vertical_fov(camera: Cameras) -> float:
    """Of one camera, in radians, as if its axis went through the middle."""
    return 2.0 * math.atan(0.5 * camera.size(0)[0] / float(camera.intrinsics[0, 1]))


def up_direction(scene: Scene) -> np.ndarray:
    """The unit vector [3] that the training cameras call up in the mean; an axis of the scene where it is near one."""
    mean = scene.cameras.take(scene.i_train).poses[:, :, 1].double().mean(0).numpy()
    mean /= max(np.linalg.norm(mean), 1e-9)
    axis = np.abs(mean).argmax()
    if abs(mean[axis]) < 1e-6:
        return np.array([0.0, 0.0, 1.0])
    return np.eye(3)[axis] * np.sign(mean[axis]) if abs(mean[axis]) > UPRIGHT else mean


def camera_at(scene: Scene, pose: np.ndarray) -> int | None:
    """The training image whose camera has a pose [3, 4]; None: there is none."""
    poses = scene.cameras.poses.double().numpy()[scene.i_train]
    turned = np.abs(poses[:, :, :3] - pose[:, :3]).max((1, 2))
    shifted = np.linalg.norm(poses[:, :, 3] - pose[:, 3], axis=1) / scene.space.looking_distance(pose)
    there = np.flatnonzero((turned < TURN) & (shifted < SHIFT))
    return int(scene.i_train[there[0]]) if len(there) else None
