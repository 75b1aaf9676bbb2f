"""Placement of a capture in its scene: a similarity that makes it upright and of a known size, bounds and a path.

A forward-facing capture has the frame of the LLFF scenes: the mean camera's, with the nearest depth at 1 / bd_factor.
Any other capture is one around a centre: z is up, the origin is the point that the cameras look at, and their mean
distance from it is that of the Blender scenes. A few wrong cameras decide none of it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from load_blender import turntable
from load_llff import render_path_spiral
from nerf.cameras import Cameras
from nerf.captures.agreement import disagreeing
from nerf.captures.capture import Capture
from nerf.files.whole_file import whole_file
from nerf.poses import into_frame, poses_avg, recenter_poses, scale_of, transform_poses, unit, viewmatrix
from nerf.robust import USUAL, axes_crossing, axes_missed_by, farthest_usual
from nerf.runtime.errors import UserError


@dataclass(frozen=True)
class PlacementRules:
    """Numbers that decide a placement, set by hand; their results were looked at on fern, fox_small and beer."""

    distance: float = 4.0  # mean distance of cameras around a centre from it, in scene units, as in Blender scenes
    bd_factor: float = 0.75  # the nearest depth of forward-facing captures is at 1 / bd_factor, as load_llff's
    widest: float = 40.0  # degrees between a camera's axis and the mean axis, at most, in a forward-facing capture
    aside: float = 1.0  # distance of its cameras from the mean axis, at most, as a share of the nearest depth
    along: float = 0.5  # distance of its cameras from their mean along that axis, likewise
    usual: float = USUAL  # views count whose distances and depths are within this factor of the median
    level: float = 0.15  # right axes lie in a level plane if their variance across it is below this share of the next

    # Depths of a view
    extremes: tuple[float, float] = (1.0, 99.0)  # percentiles of the points' depths: nearest and farthest thing
    fewest_points: int = 20  # points that a view needs for its own percentiles
    most_points: int = 50_000  # points that are projected into views; of more, every n-th
    margin: tuple[float, float] = (0.9, 1.1)  # near and far bound, as shares of nearest and farthest depth
    guessed_ahead: tuple[float, float] = (0.4, 4.0)  # nearest and farthest without points: shares of the axes' crossing
    guessed_around: tuple[float, float] = (0.3, 3.0)  # around a centre: shares of a camera's distance from it
    closest: float = 0.2  # least distance for guessed_around, as a share of the mean distance

    # Orbit around a centre
    path_views: int = 120
    overhead: float = 0.3  # cameras nearer to the vertical axis than this share of the median have no azimuth
    open_gap: float = 60.0  # degrees of azimuth without a camera that the orbit does not cross
    smooth: float = 15.0  # degrees of azimuth over which the orbit's radius and height are averaged


@dataclass(frozen=True)
class ObjectRules:
    """Numbers that decide the placement of a Blender scene, set by hand; results were looked at on the toy chair, moved
    and scaled."""

    distance: float = 4.0  # of the NeRF paper's cameras from the origin, in scene units
    half: float = 2.0  # half the depth of their bounds, 2 to 6
    as_in_paper: float = 0.15  # deviation of centre and distance, as a share of `distance`, that changes nothing
    fills: float = 1.4  # half depth, at most, as a multiple of half of what a view shows at the centre; 1.39 there
    looks_past: float = 0.25  # median distance of axes from the centre, at most, as a share of the cameras' distance
    turned: float = 5.0  # degrees between an axis and the mean axis, at least, as nearly parallel axes have no centre
    closest: float = 0.05  # near bound, at least, as a share of a camera's distance


RULES, OBJECT_RULES = PlacementRules(), ObjectRules()


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


def leave_out_strays(capture: Capture, rules: PlacementRules = RULES) -> Capture:
    """Capture without cameras that do not agree with the others; a line names them. UserError: none is left to test or
    to train on."""
    poses = capture.cameras.poses.numpy()
    far, blind = disagreeing(poses[:, :, 3], axes_crossing(poses), seen_depths(
        capture.cameras, capture.points, capture.seen, rules))
    folder = capture.paths[0].parent
    for strays, why in ((far, 'stands far from all others'), (blind, 'sees hardly any sparse point')):
        if len(strays):
            names = ', '.join(capture.paths[i].name for i in strays)
            print(f'warning: {folder}: left out of training and testing: {names}; the camera {why}, so its pose is '
                  'probably wrong', file=sys.stderr)
    left_out = np.concatenate([far, blind])
    kept = capture.take(np.setdiff1d(np.arange(len(poses)), left_out)) if len(left_out) else capture
    for split, purpose in ((kept.i_train, 'train'), (kept.i_test, 'test')):
        if not len(split):
            raise UserError(f'{folder}: no photograph is left to {purpose} on')
    return kept if len(kept.i_val) else replace(kept, i_val=kept.i_test)


def place(capture: Capture, rules: PlacementRules = RULES) -> Placement:
    """Placement of a capture by rules; a UserError if all photographs have one position, as no depth is known then."""
    cameras, poses = capture.cameras, capture.cameras.poses.numpy()
    positions = poses[:, :, 3]
    spread = np.linalg.norm(positions - positions.mean(0), axis=-1).max()
    if spread <= 1e-9 * np.abs(positions).max():
        raise UserError(f'{capture.paths[0].parent}: all {len(positions)} photographs have the same camera position; '
                        'take them from different places, as depth is seen by parallax')
    crossing = axes_crossing(poses)
    ranges = depth_ranges(cameras, capture.points, capture.seen, rules)
    has_points = ranges is not None
    ahead = ranges if has_points else np.tile(
        _depth_ahead(poses, crossing) * np.array(rules.guessed_ahead), (len(positions), 1))
    if forward_facing := _faces_forward(cameras, ahead, rules):
        frame, ranges = poses_avg(poses), ahead
        scale = 1.0 / (rules.bd_factor * nearest_and_farthest(ranges, rules)[0])
    else:
        frame = _upright_frame(poses, crossing, rules.level)
        distances = np.linalg.norm(positions - crossing, axis=-1)
        mean_distance = distances[distances <= rules.usual * np.median(distances)].mean()
        if not has_points:
            ranges = np.outer(np.maximum(distances, rules.closest * mean_distance), rules.guessed_around)
        scale = rules.distance / mean_distance
    matrix, ranges = into_frame(frame, scale), scale * ranges
    placed = transform_poses(matrix, poses)
    path = render_path_spiral(placed, ranges, rules.path_views) if forward_facing else render_path_orbit(placed, rules)
    path_cameras = path_of(capture, transform_poses(np.linalg.inv(matrix), path))
    path_ranges = depth_ranges(path_cameras, capture.points, rules=rules)
    return Placement(matrix, forward_facing, placed, ranges * rules.margin, path,
                     None if path_ranges is None else scale * path_ranges * rules.margin, has_points)


def place_object(datadir: str, cameras: Cameras, i_train: np.ndarray, path: np.ndarray | None,
                 rules: ObjectRules = OBJECT_RULES) -> Placement | None:
    """Placement of cameras around an object elsewhere, or of another size, than in the NeRF paper's scenes. The point
    that training cameras look at comes to the origin, and the object gets the depth of the paper's bounds; no axis is
    turned. None: the cameras are as the paper's, or look at no one point, which a line says.

    Args:
        datadir: folder of the scene.
        cameras, i_train: of all images, and indices of the training images.
        path: [M, 3, 4] poses to render; None: a turntable.
    """
    poses = cameras.poses.double().numpy()
    centre = axes_crossing(poses[i_train])
    depth, missed = axes_missed_by(centre, poses[i_train])
    distance, backward = float(np.median(depth)), poses[i_train, :, 2]
    turned = (backward @ backward.mean(0)).min() < np.cos(np.radians(rules.turned)) * np.linalg.norm(backward.mean(0))
    if max(np.linalg.norm(centre), abs(distance - rules.distance)) < rules.as_in_paper * rules.distance or not turned:
        return None
    if not np.median(missed) < rules.looks_past * distance:
        print(f'warning: {datadir}: the cameras do not look at one point, so rays have the bounds of the NeRF paper\'s '
              'scenes, from 2 to 6. For a scene without bounds, put all frames into one transforms.json, and set '
              'dataset_type transforms', file=sys.stderr)
        return None
    seen = distance * float((cameras.sizes.flip(1) / (2.0 * cameras.intrinsics[:, :2])).amax(1).median())
    scale = rules.half / min(rules.half / rules.distance * distance, rules.fills * seen)
    matrix = into_frame(np.column_stack([np.eye(3), centre]), scale)
    print(f'{datadir}: the cameras look at {" ".join(f"{part:.4g}" for part in centre)} from {distance:.4g} away; the '
          f'scene is moved there and scaled by {scale:.4g}, to the proportions of the NeRF paper\'s scenes')
    placed = transform_poses(matrix, poses)
    path = turntable(scale * distance)[:, :3] if path is None else transform_poses(matrix, path)
    return Placement(matrix, False, placed, _around(placed, rules), path, _around(path, rules), has_points=False)


def _around(poses: np.ndarray, rules: ObjectRules) -> np.ndarray:
    """Near and far bounds [N, 2] of cameras [N, 3, 4] for the object at the origin."""
    distances = np.linalg.norm(poses[:, :, 3], axis=-1)
    return np.stack([np.maximum(distances - rules.half, rules.closest * distances), distances + rules.half], 1)


def path_of(capture: Capture, poses: np.ndarray) -> Cameras:
    """Pinholes at poses [M, 3, 4], with intrinsics and size of the first training camera."""
    cameras = capture.cameras.take([int(capture.i_train[0])] * len(poses))
    return replace(cameras, poses=torch.from_numpy(poses), distortion=None, fisheye=None)


def at_poses(cameras: Cameras, poses: np.ndarray, bounds: np.ndarray | None = None) -> Cameras:
    """Cameras of a capture at poses [N, 3, 4] of the scene, as float32, with bounds [N, 2] if they are known."""
    return replace(cameras, poses=torch.from_numpy(poses).float(),
                   bounds=None if bounds is None else torch.from_numpy(bounds).float())


def nearest_and_farthest(ranges: np.ndarray, rules: PlacementRules = RULES) -> tuple[float, float]:
    """Nearest and farthest depth of views' depths or bounds [N, 2], without views that are unlike the median view."""
    near, far = ranges.T
    return float(near[near >= np.median(near) / rules.usual].min()), farthest_usual(far, rules.usual)


def _faces_forward(cameras: Cameras, ranges: np.ndarray, rules: PlacementRules) -> bool:
    """Whether all cameras look one way within `widest` degrees of their mean axis, spread little against the nearest of
    the depths [N, 2] of their views, and see only what is before the plane across that axis."""
    poses = cameras.poses.numpy()
    backwards = poses[:, :, 2]
    mean = backwards.mean(0)
    if (backwards @ mean < np.cos(np.radians(rules.widest)) * max(np.linalg.norm(mean), 1e-6)).any():
        return False
    if np.median(ranges[:, 0]) <= 0.0:  # the axes cross behind the cameras, which look outwards
        return False
    poses = recenter_poses(poses)
    _, directions = at_poses(cameras, poses).corner_rays()
    return spreads_little(poses, nearest_and_farthest(ranges, rules)[0], rules) and bool(
        (directions[..., 2] < -1e-6).all())


def spreads_little(poses: np.ndarray, nearest: float, rules: PlacementRules = RULES) -> bool:
    """Whether cameras at poses [N, 3, 4], in the frame of their mean, spread so little against the nearest depth that
    normalised device coordinates hold what they see."""
    aside, along = np.linalg.norm(poses[:, :2, 3], axis=-1).max(), np.abs(poses[:, 2, 3]).max()
    return bool(aside < rules.aside * nearest and along < rules.along * nearest)


def _depth_ahead(poses: np.ndarray, crossing: np.ndarray) -> float:
    """Depth of `crossing` [3] before the mean camera of poses [N, 3, 4]."""
    middle = poses_avg(poses)
    return float((middle[:, 3] - crossing) @ middle[:, 2])


def up_axis(poses: np.ndarray, level: float = RULES.level) -> np.ndarray:
    """Unit vector [3] upwards in a capture with poses [N, 3, 4]; `level` is that of `PlacementRules`.

    Cameras that are held level have their right axes in one plane, however far they look down; up is its normal. If the
    right axes lie in no plane, as in a narrow arc, or in one that is far from level, up is the mean of the up axes.
    """
    spreads, directions = np.linalg.eigh(poses[:, :, 0].T @ poses[:, :, 0])
    hint = (poses[:, :, 1] + 0.5 * poses[:, :, 2]).mean(0)  # cameras that look straight down have their backs upwards
    normal, mean = directions[:, 0] * np.copysign(1.0, directions[:, 0] @ hint), poses[:, :, 1].mean(0)
    length = np.linalg.norm(mean)
    agrees = normal @ mean > 0.5 * length or length < 0.5  # within 60 degrees; looking down, up axes point anywhere
    return normal if (agrees and spreads[0] < level * spreads[1]) or length < 1e-6 else mean / length


def _upright_frame(poses: np.ndarray, centre: np.ndarray, level: float) -> np.ndarray:
    """Axes and origin [3, 4] of a scene around a centre [3]: z is up, x along the first camera's level right axis."""
    up = up_axis(poses, level)
    right, backward = (axis - (axis @ up) * up for axis in (poses[0, :, 0], poses[0, :, 2]))
    x = unit(right if np.linalg.norm(right) > 0.5 else backward)
    return np.stack([x, np.cross(up, x), up, centre], 1)


def depth_ranges(cameras: Cameras, points: np.ndarray | None, seen: list[np.ndarray] | None = None,
                 rules: PlacementRules = RULES) -> np.ndarray | None:
    """Depths [N, 2] of the nearest and the farthest point of each view, without the extreme percentiles.

    Depths are along the cameras' axes, or distances for fisheyes. A view of few points gets the extremes of all other
    views. The result is None if no view has enough points.

    Args:
        cameras, points: N cameras with float64 poses, and [P, 3] sparse points, if known.
        seen: for each view, indices of the points that it observes; None: points that project into the view.
    """
    depths = seen_depths(cameras, points, seen, rules)
    if depths is None or max(map(len, depths)) < rules.fewest_points:
        return None
    known = np.array([len(part) >= rules.fewest_points for part in depths])
    ranges = np.array([np.percentile(part, rules.extremes) if enough else (0.0, 0.0)
                       for part, enough in zip(depths, known)])
    ranges[~known] = ranges[known, 0].min(), ranges[known, 1].max()
    return ranges


def seen_depths(cameras: Cameras, points: np.ndarray | None, seen: list[np.ndarray] | None,
                rules: PlacementRules = RULES) -> list[np.ndarray] | None:
    """Depths of the points that each view sees; None if points are unknown. Arguments are those of `depth_ranges`."""
    if points is None:
        return None
    some = points[::len(points) // rules.most_points + 1]
    return [view_depths(cameras, view, some if seen is None else points[seen[view]], inside=seen is None)
            for view in range(len(cameras))]


def view_depths(cameras: Cameras, view: int, points: np.ndarray, inside: bool) -> np.ndarray:
    """Positive depths [K] of points [P, 3] in a view, or distances for a fisheye. With `inside`, points count only if
    they project into the picture by the camera's intrinsics alone."""
    pose, fisheye = cameras.poses[view].numpy(), cameras.fisheye is not None and bool(cameras.fisheye[view])
    x, y, z = ((points - pose[:, 3]) @ pose[:, :3]).T
    depth = np.sqrt(x * x + y * y + z * z) if fisheye else -z
    counted = depth > 0.0
    if inside:
        height, width = cameras.size(view)
        fx, fy, cx, cy = cameras.intrinsics[view].tolist()
        across = np.hypot(x, y)
        with np.errstate(divide='ignore', invalid='ignore'):
            per_length = np.arctan2(across, -z) / across if fisheye else 1.0 / depth
            column, row = cx + fx * x * per_length, cy - fy * y * per_length
        counted &= (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return depth[counted]


def render_path_orbit(poses: np.ndarray, rules: PlacementRules = RULES) -> np.ndarray:
    """Orbit [path_views, 3, 4] that follows the photographs' poses [N, 3, 4], z up.

    The orbit is closed if the cameras surround the origin. Otherwise it goes to and fro over the largest arc that was
    photographed. It looks at the origin or, if most cameras look outwards, as they do.
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


def covered_arc(azimuth: np.ndarray, open_gap: float = RULES.open_gap) -> tuple[float, float | None]:
    """Beginning and length of the arc of the largest group of azimuths [N] without a gap of `open_gap` degrees. All but
    `open_gap` is in radians. The length is None if there is no gap."""
    first, azimuth = azimuth[0], np.sort((azimuth - azimuth[0]) % (2.0 * np.pi))
    after = np.diff(azimuth, append=azimuth[0] + 2.0 * np.pi)  # gap after each
    ends = np.flatnonzero(after > np.radians(open_gap))
    if not len(ends):
        return float(first), None
    begins, counts = np.roll(ends, 1) + 1, np.diff(ends, prepend=ends[-1] - len(azimuth))
    largest = counts.argmax()
    start, end = azimuth[begins[largest] % len(azimuth)], azimuth[ends[largest]]
    return float(first + start), float((end - start) % (2.0 * np.pi))
