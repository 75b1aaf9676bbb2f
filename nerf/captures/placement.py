"""Placement of a capture in its scene: a similarity that makes it upright and of a known size.

A forward-facing capture has the frame of the LLFF scenes: the mean camera's, with the nearest depth at 1 / bd_factor.
Any other capture is one around a centre: z is up, the origin is the point that the cameras look at, and their mean
distance from it is that of the Blender scenes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from load_llff import render_path_spiral
from nerf.cameras import Cameras
from nerf.captures.capture import Capture
from nerf.captures.depths import depth_ranges
from nerf.captures.orbit import render_path_orbit
from nerf.captures.rules import PLACEMENT, PlacementRules
from nerf.files.whole_file import whole_file
from nerf.poses import into_frame, poses_avg, recenter_poses, scale_of, transform_poses, unit
from nerf.runtime.errors import UserError

AXES_STEPS = 50  # of the iteration that finds where axes cross, far more than it takes to settle


@dataclass(frozen=True)
class Placement:
    """Similarity between a capture and its scene, and poses and bounds in scene coordinates."""

    matrix: np.ndarray  # [4, 4] float64 similarity from the capture's coordinates to the scene's
    forward_facing: bool  # otherwise around the origin
    poses: np.ndarray  # [N, 3, 4] float64 of the photographs
    bounds: np.ndarray  # [N, 2] near and far bound of each photograph, in scene units
    render_poses: np.ndarray  # [M, 3, 4] of the render path
    render_bounds: np.ndarray | None  # [M, 2]; None: unknown
    has_points: bool  # bounds are from sparse points; otherwise they are guessed

    def to_capture(self) -> np.ndarray:
        """Similarity [4, 4] from the scene's coordinates to the capture's."""
        return np.linalg.inv(self.matrix)

    def save(self, path: Path) -> None:
        """Writes the similarity as JSON, for programs that bring a scene and its capture together."""
        with whole_file(path) as partial:
            partial.write_text(json.dumps({'scene_from_capture': self.matrix.tolist(),
                                           'forward_facing': self.forward_facing}, indent=1) + '\n', encoding='utf-8')

    def describe(self) -> str:
        """One line about the capture."""
        kind = 'forward-facing' if self.forward_facing else 'around a centre'
        known = 'from sparse points' if self.has_points else 'guessed, as there are no sparse points'
        return (f'capture   {kind}; one scene unit is {1.0 / scale_of(self.matrix):.4g} of its own; '
                f'near from {self.bounds[:, 0].min():.3g} to {self.bounds[:, 0].max():.3g}, {known}')


def place(capture: Capture, rules: PlacementRules = PLACEMENT) -> Placement:
    """Finds the placement of a capture.

    Args:
        capture: photographs and their cameras.
        rules: numbers that decide the result.

    Raises:
        UserError: all photographs were taken from one position, so that nothing has a known depth.
    """
    cameras, poses = capture.cameras, capture.cameras.poses.numpy()
    positions = poses[:, :, 3]
    spread = np.linalg.norm(positions - positions.mean(0), axis=-1).max()
    if spread <= 1e-9 * np.abs(positions).max():
        raise UserError(f'{capture.paths[0].parent}: all {len(positions)} photographs have the same camera position; '
                        'take them from different places, as depth is seen by parallax')
    crossing = axes_crossing(poses)
    ranges = depth_ranges(cameras, capture.points, capture.seen, rules)
    forward_facing, has_points = faces_forward(capture, crossing, rules.widest), ranges is not None
    if forward_facing:
        frame = poses_avg(poses)
        if not has_points:
            ranges = np.tile(depth_ahead(capture, crossing) * np.array(rules.guessed_ahead), (len(positions), 1))
        scale = 1.0 / (rules.bd_factor * ranges[:, 0].min())
    else:
        frame = upright_frame(poses, crossing, rules.level)
        distances = np.linalg.norm(positions - crossing, axis=-1)
        if not has_points:
            ranges = np.outer(np.maximum(distances, rules.closest * distances.mean()), rules.guessed_around)
        scale = rules.distance / distances.mean()
    matrix, ranges = into_frame(frame, scale), scale * ranges
    placed = transform_poses(matrix, poses)
    path = render_path_spiral(placed, ranges, rules.path_views) if forward_facing else render_path_orbit(placed, rules)
    path_cameras = path_of(capture, transform_poses(np.linalg.inv(matrix), path))
    path_ranges = depth_ranges(path_cameras, capture.points, rules=rules)
    return Placement(matrix, forward_facing, placed, ranges * rules.margin, path,
                     None if path_ranges is None else scale * path_ranges * rules.margin, has_points)


def path_of(capture: Capture, poses: np.ndarray) -> Cameras:
    """Pinholes at poses [M, 3, 4], with intrinsics and size of the first training camera."""
    cameras = capture.cameras.take([int(capture.i_train[0])] * len(poses))
    return replace(cameras, poses=torch.from_numpy(poses), distortion=None, fisheye=None)


def at_poses(cameras: Cameras, poses: np.ndarray, bounds: np.ndarray | None = None) -> Cameras:
    """Cameras of a capture at poses [N, 3, 4] of the scene, as float32, with bounds [N, 2] if they are known."""
    return replace(cameras, poses=torch.from_numpy(poses).float(),
                   bounds=None if bounds is None else torch.from_numpy(bounds).float())


# Kind of capture


def faces_forward(capture: Capture, crossing: np.ndarray, widest: float = PLACEMENT.widest) -> bool:
    """Whether a capture is forward-facing.

    All cameras look roughly one way, spread less than their subject is away, and the rays of all their pixels go
    forward from the plane across their mean axis.

    Args:
        capture: photographs and their cameras.
        crossing: [3] point at which the cameras look.
        widest: degrees between a camera's axis and the mean axis at most.
    """
    poses = capture.cameras.poses.numpy()
    backwards = poses[:, :, 2]
    mean = backwards.mean(0)
    if (backwards @ mean < np.cos(np.radians(widest)) * max(np.linalg.norm(mean), 1e-6)).any():
        return False
    poses = recenter_poses(poses)
    spread = np.linalg.norm(poses[:, :2, 3], axis=-1).max()
    _, directions = at_poses(capture.cameras, poses).corner_rays()
    return bool(spread < depth_ahead(capture, crossing) and (directions[..., 2] < -1e-6).all())


def depth_ahead(capture: Capture, crossing: np.ndarray) -> float:
    """Depth of the subject before the mean camera: the sparse points' median or, without any, that of `crossing` [3].
    """
    middle = poses_avg(capture.cameras.poses.numpy())
    seen = crossing[None] if capture.points is None or not len(capture.points) else capture.points
    return float(np.median((middle[:, 3] - seen) @ middle[:, 2]))


# Frames


def axes_crossing(poses: np.ndarray) -> np.ndarray:
    """Point [3] of the least sum of distances from the optical axes of poses [N, 3, 4].

    A camera that looks elsewhere has little weight. The method is least squares, repeated with weights 1 / distance
    (iteratively reweighted). For nearly parallel axes, a weak prior draws the point to the depth before the mean camera
    that equals the spread of the cameras.
    """
    axes, positions = poses[:, :, 2], poses[:, :, 3]
    middle = positions.mean(0)
    spread = np.linalg.norm(positions - middle, axis=-1).max()
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


def up_axis(poses: np.ndarray, level: float = PLACEMENT.level) -> np.ndarray:
    """Unit vector [3] upwards in a capture.

    Cameras that are held level have their right axes in one plane, however far they look down; up is its normal. If the
    right axes lie in no plane, as in a narrow arc, or in one that is far from level, up is the mean of the up axes.

    Args:
        poses: [N, 3, 4].
        level: the right axes lie in a plane if their variance across it is below this share of the next variance.
    """
    spreads, directions = np.linalg.eigh(poses[:, :, 0].T @ poses[:, :, 0])
    hint = (poses[:, :, 1] + 0.5 * poses[:, :, 2]).mean(0)  # cameras that look straight down have their backs upwards
    normal, mean = directions[:, 0] * np.copysign(1.0, directions[:, 0] @ hint), poses[:, :, 1].mean(0)
    length = np.linalg.norm(mean)
    agrees = normal @ mean > 0.5 * length or length < 0.5  # within 60 degrees; looking down, up axes point anywhere
    return normal if (agrees and spreads[0] < level * spreads[1]) or length < 1e-6 else mean / length


def upright_frame(poses: np.ndarray, centre: np.ndarray, level: float = PLACEMENT.level) -> np.ndarray:
    """Axes and origin [3, 4] of a scene around a centre [3].

    z is up, and the first camera's right axis is along x, as far as it is level.
    """
    up = up_axis(poses, level)
    right, backward = (axis - (axis @ up) * up for axis in (poses[0, :, 0], poses[0, :, 2]))
    x = unit(right if np.linalg.norm(right) > 0.5 else backward)
    return np.stack([x, np.cross(up, x), up, centre], 1)
