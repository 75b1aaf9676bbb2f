"""Conventions of camera poses, each written once.

A pose [3, 4] is camera-to-world in OpenGL axes: its columns are the camera's right, up and backward axis, and its
position. COLMAP, OpenCV, DeepVoxels and viser have OpenCV axes: y points down, and the camera looks along +z.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np

from nerf.cameras import Cameras
from nerf.robust import axes_crossing, axes_missed_by

FLIP = np.array([1.0, -1.0, -1.0])  # factors of a camera's axes between OpenGL and OpenCV
AXES_OFF = 1e-3  # largest deviation from axes of one length and at right angles, as a share, in a pose of a file
FARTHEST = 1e10  # largest coordinate in a file
MIRRORED = ('the axes of the camera or the world are left-handed. Try to negate one row of every matrix, for a '
            'left-handed world, or one column, or apply the negative scale in Blender')
UPRIGHT = 0.95  # cosine between the cameras' mean up axis and an axis of the scene above which the latter is up


def flip_axes(poses: np.ndarray) -> np.ndarray:
    """Poses [..., 3 or 4, 4] in OpenGL axes of poses in OpenCV axes, and the other way round."""
    return poses * np.append(FLIP, 1.0)


def rotation_matrix(quaternion: np.ndarray) -> np.ndarray:
    """Rotation [3, 3] of a quaternion (w, x, y, z) of any length; NaN where that is 0."""
    w, x, y, z = np.asarray(quaternion, np.float64) / (np.linalg.norm(quaternion) or math.nan)
    return np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                     [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                     [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]])


def colmap_pose(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Pose [3, 4] of COLMAP's rotation [3, 3] and translation [3] from world to camera."""
    with np.errstate(invalid='ignore'):  # infinite translations become NaN, which `rigid` refuses
        return np.column_stack([rotation.T * FLIP, -rotation.T @ translation])


def opengl_pose(wxyz: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Pose [3, 4] of viser's camera; NaN where its quaternion is 0."""
    return np.column_stack([rotation_matrix(wxyz) * FLIP, position])


def opencv_quaternion(pose: np.ndarray) -> np.ndarray:
    """Quaternion (w, x, y, z) of viser's camera with a pose [3, 4]."""
    from scipy.spatial.transform import Rotation
    x, y, z, w = Rotation.from_matrix(pose[:, :3] * FLIP).as_quat()
    return np.array([w, x, y, z])


def rigid(matrix: np.ndarray, off: float = AXES_OFF) -> np.ndarray:
    """Pose [3, 4] float64 of a file, its axes made orthonormal. A scale that all axes share is divided out of them;
    `axes_length` tells it. ValueError, with a predicate: the matrix is no pose, or deviates by more than `off`."""
    if not (np.abs(matrix) < FARTHEST).all():
        raise ValueError(f'has values that are not finite or above {FARTHEST:g}')
    left, lengths, right = np.linalg.svd(matrix[:, :3])
    if np.ptp(lengths) > off * lengths[0] or not 1e-6 < lengths[0] < 1e6:
        raise ValueError('has axes that are not of length 1 and at right angles')
    if np.linalg.det(left @ right) < 0:
        raise ValueError(f'is mirrored: {MIRRORED}')
    return np.column_stack([left @ right, matrix[:, 3]])


def axes_length(matrix: np.ndarray) -> float:
    """Mean length of the axes in a matrix [3, 4] of a file."""
    return float(np.linalg.norm(matrix[:, :3], axis=0).mean())


def say_unusual(source: Path, matrices: np.ndarray, turned: float = 20.0, aside: float = 0.2) -> None:
    """Prints one line for each way in which a file's cameras are unusual.

    Args:
        source: path of the file.
        matrices: [N, 3, 4] camera-to-world, OpenGL axes, as they are in the file.
        turned: degrees between an axis and the mean axis from which on cameras look different ways.
        aside: median distance of the axes from the point where they cross, at most, as a share of the cameras'.
    """
    lengths = np.array([axes_length(matrix) for matrix in matrices])
    if scaled := int((np.abs(lengths - 1.0) > AXES_OFF).sum()):
        print(f'warning: {source}: {scaled} of {len(lengths)} cameras have axes of length {lengths.min():.4g} '
              f'to {lengths.max():.4g} instead of 1; this scale was divided out', file=sys.stderr)
    poses = np.concatenate([matrices[:, :, :3] / lengths[:, None, None], matrices[:, :, 3:]], -1)
    if mirrored := int((np.linalg.det(poses[:, :, :3]) < 0).sum()):
        print(f'warning: {source}: {mirrored} of {len(poses)} cameras are mirrored: {MIRRORED}', file=sys.stderr)
    depth, missed = axes_missed_by(axes_crossing(poses), poses)
    mean = unit(poses[:, :, 2].mean(0) + 1e-9)
    if ((depth < 0.0).mean() > 0.9 and np.median(missed) < aside * np.median(-depth)
            and (poses[:, :, 2] @ mean).min() < math.cos(math.radians(turned))):
        print(f'warning: {source}: all cameras look away from one another. If they should look at one thing, their '
              'axes are those of OpenCV or COLMAP; negate the second and the third column of every matrix',
              file=sys.stderr)


def viewmatrix(backward: np.ndarray, up: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Pose [3, 4] of a camera at `position` [3] that looks against `backward` [3], with `up` [3] upwards."""
    backward = unit(backward)
    right = unit(np.cross(up, backward))
    return np.stack([right, np.cross(backward, right), backward, position], 1)


def poses_avg(poses: np.ndarray) -> np.ndarray:
    """Pose [3, 4] of the mean camera of poses [N, 3, 4]: their mean position and mean axes."""
    return viewmatrix(poses[:, :, 2].sum(0), poses[:, :, 1].sum(0), poses[:, :, 3].mean(0))


def recenter_poses(poses: np.ndarray) -> np.ndarray:
    """Poses [N, 3, 4] in the coordinates of their mean camera."""
    return in_frame(poses, poses_avg(poses))


def in_frame(poses: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Poses [N, 3, 4] in the coordinates of a camera with the pose `frame` [3, 4]."""
    axes, origin = frame[:, :3], frame[:, 3:]
    return np.concatenate([axes.T @ poses[:, :, :3], axes.T @ (poses[:, :, 3:] - origin)], -1)


def into_frame(frame: np.ndarray, scale: float) -> np.ndarray:
    """Similarity [4, 4] from the world to the coordinates of a camera with the pose `frame` [3, 4], times `scale`."""
    similarity = np.eye(4)
    similarity[:3] = scale * np.column_stack([frame[:, :3].T, -frame[:, :3].T @ frame[:, 3]])
    return similarity


def transform_poses(similarity: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Poses [N, 3, 4] carried by a similarity [4, 4]; their axes stay orthonormal."""
    linear, shift = similarity[:3, :3], similarity[:3, 3:]
    return np.concatenate([linear @ poses[:, :, :3] / scale_of(similarity), linear @ poses[:, :, 3:] + shift], -1)


def scale_of(similarity: np.ndarray) -> float:
    """Length of one unit after a similarity [4, 4]."""
    return float(np.cbrt(np.linalg.det(similarity[:3, :3])))


def unit(vector: np.ndarray) -> np.ndarray:
    """Vector [3] at length 1."""
    return vector / np.linalg.norm(vector)


def up_direction(cameras: Cameras) -> np.ndarray:
    """Unit vector [3] of the cameras' mean up axis, or the axis of the world that is close to it (`UPRIGHT`)."""
    mean = cameras.poses[:, :, 1].double().mean(0).numpy()
    mean /= max(np.linalg.norm(mean), 1e-9)
    axis = np.abs(mean).argmax()
    if abs(mean[axis]) < 1e-6:
        return np.array([0.0, 0.0, 1.0])
    return np.eye(3)[axis] * np.sign(mean[axis]) if abs(mean[axis]) > UPRIGHT else mean


def vertical_fov(camera: Cameras) -> float:
    """Vertical field of view of the first camera in radians, as if its axis went through the picture's centre."""
    return 2.0 * math.atan(0.5 * camera.size(0)[0] / float(camera.intrinsics[0, 1]))
