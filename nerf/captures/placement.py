"""Where a scene of photographs is: the similarity that carries a capture's coordinates to the scene's, upright and of a
known size; how near and far each view sees; and the path along which it is shown.

A forward-facing capture has the frame of the LLFF scenes: the mean camera's, with the nearest depth at 1 / BD_FACTOR.
Any other is taken as one around a centre: z is up, the origin is what the cameras look at, and their mean distance from
it is DISTANCE, as in the Blender scenes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from load_llff import poses_avg, recenter_poses, render_path_spiral, viewmatrix
from load_photos import Capture
from nerf.cameras import COEFFICIENTS, Cameras
from nerf.files.whole_file import whole_file
from nerf.runtime.errors import UserError

DISTANCE = 4.0  # of the cameras from the centre, in the mean, in scene units
BD_FACTOR = 0.75  # as load_llff's
WIDEST = 40.0  # degrees between a camera's axis and their mean, in a forward-facing capture at most
LEVEL = 0.15  # cameras are held level if their right axes' least spread (variance) is below this share of the next
EXTREMES = 1.0, 99.0  # percentiles of the depths of a view's points that are its nearest and farthest
FEWEST_POINTS = 20  # that a view needs for that
MOST_POINTS = 50_000  # that are projected into views
MARGIN = 0.9, 1.1  # near and far bounds, as shares of those
GUESSED_AHEAD = 0.4, 4.0  # without points, in front of the cameras: nearest and farthest, as shares of where axes cross
GUESSED_AROUND = 0.3, 3.0  # around a centre: as shares of a camera's distance from it, or of CLOSEST if that is more
CLOSEST = 0.2  # of the mean distance
OPEN = 60.0  # degrees of azimuth without a camera, where the orbit does not go
SMOOTH = 15.0  # degrees of azimuth over which the orbit's radius and height are averaged
PATH_VIEWS = 120


@dataclass(frozen=True)
class Placement:
    """A capture in its scene."""

    matrix: np.ndarray  # [4, 4] float64: a point of the capture to scene coordinates, a similarity
    forward_facing: bool  # else around the origin
    poses: np.ndarray  # [N, 3, 4] float64 of the photographs, as in Capture, in scene coordinates
    bounds: np.ndarray  # [N, 2] near and far of each photograph, in scene units
    render_poses: np.ndarray  # [PATH_VIEWS, 3, 4]
    render_bounds: np.ndarray | None  # [PATH_VIEWS, 2]; None: not known
    has_points: bool  # the bounds are from sparse points, not guessed

    def to_capture(self) -> np.ndarray:
        """[4, 4]: a point of the scene to the capture's coordinates."""
        return np.linalg.inv(self.matrix)

    def save(self, path: Path) -> None:
        """Writes the similarity as JSON, for programs that put a scene and its capture together."""
        with whole_file(path) as partial:
            partial.write_text(json.dumps({'scene_from_capture': self.matrix.tolist(),
                                           'forward_facing': self.forward_facing}, indent=1) + '\n', encoding='utf-8')

    def describe(self) -> str:
        """One line about the capture."""
        kind = 'forward-facing' if self.forward_facing else 'around a centre'
        known = 'from sparse points' if self.has_points else 'guessed, as there are no sparse points'
        return (f'capture   {kind}; one scene unit is {1.0 / _scale_of(self.matrix):.4g} of its own; '
                f'near from {self.bounds[:, 0].min():.3g} to {self.bounds[:, 0].max():.3g}, {known}')


def place(capture: Capture) -> Placement:
    """Finds where the scene of a capture is.

    Raises:
        UserError: all photographs were taken from one place, so that nothing has a depth.
    """
    positions = capture.poses[:, :, 3]
    spread = np.linalg.norm(positions - positions.mean(0), axis=-1).max()
    if spread <= 1e-9 * np.abs(positions).max():
        raise UserError(f'{capture.paths[0].parent}: all {len(positions)} photographs have the same camera position; '
                        'take them from different places, as depth is seen by parallax')
    ranges, crossing = depth_ranges(capture), axes_crossing(capture.poses)
    has_points, forward_facing = ranges is not None, faces_forward(capture, crossing)
    if forward_facing:
        frame = poses_avg(capture.poses)
        if not has_points:
            ranges = np.tile(depth_ahead(capture, crossing) * np.array(GUESSED_AHEAD), (len(positions), 1))
        scale = 1.0 / (BD_FACTOR * ranges[:, 0].min())
    else:
        frame = upright_frame(capture.poses, crossing)
        distances = np.linalg.norm(positions - crossing, axis=-1)
        if not has_points:
            ranges = np.outer(np.maximum(distances, CLOSEST * distances.mean()), GUESSED_AROUND)
        scale = DISTANCE / distances.mean()
    matrix = np.eye(4)
    matrix[:3] = scale * np.column_stack([frame[:, :3].T, -frame[:, :3].T @ frame[:, 3]])
    poses = moved(matrix, capture.poses)
    path = render_path_spiral(poses, scale * ranges, PATH_VIEWS) if forward_facing else render_path_orbit(poses)
    shown = depth_ranges(path_capture(capture, moved(np.linalg.inv(matrix), path)))
    return Placement(matrix, forward_facing, poses, scale * ranges * MARGIN, path,
                     None if shown is None else scale * shown * MARGIN, has_points)


def moved(matrix: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Poses [N, 3, 4] carried by a similarity [4, 4]; rotations stay orthonormal."""
    linear, shift = matrix[:3, :3], matrix[:3, 3:]
    return np.concatenate([linear @ poses[:, :, :3] / _scale_of(matrix), linear @ poses[:, :, 3:] + shift], -1)


def _scale_of(matrix: np.ndarray) -> float:
    """The length that a similarity [4, 4] gives to one unit."""
    return float(np.cbrt(np.linalg.det(matrix[:3, :3])))


def cameras_of(capture: Capture, poses: np.ndarray, bounds: np.ndarray | None = None) -> Cameras:
    """The cameras of the photographs, with their own lens and size, at poses [N, 3, 4]."""
    lens = capture.distortion
    if lens is None and capture.fisheye is not None:  # `Cameras` looks for fisheyes among lenses
        lens = np.zeros((len(poses), len(COEFFICIENTS)))
    return Cameras(poses=torch.from_numpy(poses).float(), intrinsics=torch.from_numpy(capture.intrinsics).double(),
                   sizes=torch.tensor([image.shape[:2] for image in capture.images]),
                   distortion=None if lens is None else torch.from_numpy(lens).float(),
                   fisheye=None if capture.fisheye is None else torch.from_numpy(capture.fisheye),
                   bounds=None if bounds is None else torch.from_numpy(bounds).float())


def path_capture(capture: Capture, poses: np.ndarray) -> Capture:
    """A capture of the points alone, by pinholes at poses [M, 3, 4] that are else like the first training camera."""
    first, count = capture.i_train[0], len(poses)
    return replace(capture, poses=poses, images=[capture.images[first]] * count, distortion=None, fisheye=None,
                   intrinsics=np.tile(capture.intrinsics[first], (count, 1)), seen=None)


# Depths


def depth_ranges(capture: Capture) -> np.ndarray | None:
    """[N, 2] depth of the nearest and the farthest thing in each view by the sparse points, without the extreme 1%. A
    view of few points gets the extremes of all others; None where no view has enough."""
    if capture.points is None:
        return None
    if capture.seen is None:
        capture = replace(capture, points=capture.points[::len(capture.points) // MOST_POINTS + 1])
    depths = [seen_depths(capture, i) for i in range(len(capture.images))]
    if max(map(len, depths)) < FEWEST_POINTS:
        return None
    known = np.array([len(part) >= FEWEST_POINTS for part in depths])
    ranges = np.array([np.percentile(part, EXTREMES) if enough else (0.0, 0.0) for part, enough in zip(depths, known)])
    ranges[~known] = ranges[known, 0].min(), ranges[known, 1].max()
    return ranges


def seen_depths(capture: Capture, i: int) -> np.ndarray:
    """[K] depths of the points that view i observes or, where that is not known, that project into it without the
    lens's distortion. A fisheye's depths are distances, as along its rays."""
    points = capture.points if capture.seen is None else capture.points[capture.seen[i]]
    x, y, z = ((points - capture.poses[i, :, 3]) @ capture.poses[i, :, :3]).T
    fisheye = capture.fisheye is not None and capture.fisheye[i]
    depth = np.sqrt(x * x + y * y + z * z) if fisheye else -z
    inside = depth > 0.0
    if capture.seen is None:
        across = np.hypot(x, y)
        with np.errstate(divide='ignore', invalid='ignore'):
            per_length = np.arctan2(across, -z) / across if fisheye else 1.0 / depth
            column, row = (centre + focal * along * per_length for along, focal, centre in (
                (x, capture.intrinsics[i, 0], capture.intrinsics[i, 2]),
                (-y, capture.intrinsics[i, 1], capture.intrinsics[i, 3])))
        height, width = capture.images[i].shape[:2]
        inside &= (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return depth[inside]


def depth_ahead(capture: Capture, crossing: np.ndarray) -> float:
    """How far what is seen lies before the mean camera: the median of the sparse points or, without them, where the
    axes cross."""
    middle = poses_avg(capture.poses)
    seen = crossing[None] if capture.points is None or not len(capture.points) else capture.points
    return float(np.median((middle[:, 3] - seen) @ middle[:, 2]))


# Frames


def faces_forward(capture: Capture, crossing: np.ndarray) -> bool:
    """Whether all cameras look roughly one way, from places that spread less than what they see is away, and every
    pixel's ray goes forward from the plane across their mean axis."""
    backwards = capture.poses[:, :, 2]
    mean = backwards.mean(0)
    if (backwards @ mean < np.cos(np.radians(WIDEST)) * max(np.linalg.norm(mean), 1e-6)).any():
        return False
    poses = recenter_poses(capture.poses)
    spread = np.linalg.norm(poses[:, :2, 3], axis=-1).max()
    _, directions = cameras_of(capture, poses).corner_rays()
    return bool(spread < depth_ahead(capture, crossing) and (directions[..., 2] < -1e-6).all())


def axes_crossing(poses: np.ndarray) -> np.ndarray:
    """[3] the point nearest to the optical axes: of the least sum of distances, so that a camera that looks elsewhere
    has little weight. (Least squares, again and again, weighted by 1 / distance.)

    Where the axes are nearly parallel it is drawn to as far before the mean camera as the cameras spread.
    """
    axes, positions = poses[:, :, 2], poses[:, :, 3]
    middle = positions.mean(0)
    spread = np.linalg.norm(positions - middle, axis=-1).max()
    prior, little = middle - spread * axes.mean(0), 1e-4 * np.eye(3)
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]  # [N, 3, 3], projects onto the plane across an axis
    weight = np.full(len(poses), 1.0 / len(poses))
    for _ in range(50):
        parts = weight[:, None, None] * across
        point = np.linalg.solve(parts.sum(0) + little, (parts @ positions[..., None]).sum(0)[:, 0] + little @ prior)
        distance = np.linalg.norm((across @ (point - positions)[..., None])[..., 0], axis=-1)
        weight = 1.0 / np.maximum(distance, 1e-3 * spread)
        weight /= weight.sum()
    return point


def up_axis(poses: np.ndarray) -> np.ndarray:
    """[3] the unit vector upwards: the normal of the plane in which cameras that are held level have their right axes,
    however far they look down. Where the right axes tell of no plane, as in a narrow arc, or of one that is far from
    level, it is the mean of the up axes."""
    spreads, directions = np.linalg.eigh(poses[:, :, 0].T @ poses[:, :, 0])
    hint = (poses[:, :, 1] + 0.5 * poses[:, :, 2]).mean(0)  # cameras that look straight down have their backs upwards
    normal, mean = directions[:, 0] * np.copysign(1.0, directions[:, 0] @ hint), poses[:, :, 1].mean(0)
    length = np.linalg.norm(mean)
    level = normal @ mean > 0.5 * length or length < 0.5  # within 60 degrees; looking down, they point anywhere
    return normal if (level and spreads[0] < LEVEL * spreads[1]) or length < 1e-6 else mean / length


def upright_frame(poses: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """[3, 4] axes and origin of a scene around a centre: z is up, and the first camera's right axis is along x, as far
    as it is level."""
    up = up_axis(poses)
    right, backward = (axis - (axis @ up) * up for axis in (poses[0, :, 0], poses[0, :, 2]))
    x = right if np.linalg.norm(right) > 0.5 else backward
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(up, x), up, centre], 1)


# The render path around a centre


def render_path_orbit(poses: np.ndarray, n_views: int = PATH_VIEWS) -> np.ndarray:
    """[n_views, 3, 4] of an upright orbit around the z axis, as far away and as high as the cameras there are.

    It is closed where the cameras surround the origin; else it goes to and fro over the azimuths that were
    photographed: those of the largest group of cameras without a gap of OPEN degrees. It looks at the origin or, where
    the cameras do not, as they do.
    """
    radius = np.hypot(poses[:, 0, 3], poses[:, 1, 3])
    poses = poses[radius >= 0.3 * np.median(radius)]  # those nearly above the origin have no azimuth to speak of
    radius, azimuth = np.hypot(poses[:, 0, 3], poses[:, 1, 3]), np.arctan2(poses[:, 1, 3], poses[:, 0, 3])
    start, length = covered_arc(azimuth)
    share = np.arange(n_views) / n_views
    angles = start + (2.0 * np.pi * share if length is None else length * (0.5 - 0.5 * np.cos(2.0 * np.pi * share)))
    turn = np.angle(np.exp(1j * (angles[:, None] - azimuth)))  # [n_views, N] in (-pi, pi]
    weight = np.exp(-0.5 * (turn / np.radians(SMOOTH)) ** 2)
    weight /= weight.sum(1, keepdims=True)
    around, height = weight @ radius, weight @ poses[:, 2, 3]
    positions = np.stack([around * np.cos(angles), around * np.sin(angles), height], 1)
    inwards = (poses[:, :, 2] * poses[:, :, 3]).sum(-1) > 0.0
    backwards = positions if inwards.mean() > 0.5 else weight @ poses[:, :, 2]
    return np.stack([viewmatrix(backward, np.array([0.0, 0.0, 1.0]), position)
                     for backward, position in zip(backwards, positions)])


def covered_arc(azimuth: np.ndarray) -> tuple[float, float | None]:
    """Where the azimuths [N] in radians begin and how far they reach: those of the largest group without a gap of OPEN
    degrees. The reach is None where there is no such gap at all."""
    first, azimuth = azimuth[0], np.sort((azimuth - azimuth[0]) % (2.0 * np.pi))
    after = np.diff(azimuth, append=azimuth[0] + 2.0 * np.pi)  # gap after each
    ends = np.flatnonzero(after > np.radians(OPEN))
    if not len(ends):
        return float(first), None
    begins, counts = np.roll(ends, 1) + 1, np.diff(ends, prepend=ends[-1] - len(azimuth))
    largest = counts.argmax()
    start, end = azimuth[begins[largest] % len(azimuth)], azimuth[ends[largest]]
    return float(first + start), float((end - start) % (2.0 * np.pi))
