"""Figures of a trained field that pictures do not tell: fog, depth at sparse points, and the size of its voxels.

    python tests/benchmarks/field_figures.py CHECKOUT JOB

`captures.py` starts this script with a checkout of the project, of any version whose fields have this interface, and a
JSON file that names a run and the known points of its capture. The figures are printed as a line of JSON.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, fields
from pathlib import Path

if __name__ == '__main__':
    sys.path.insert(0, sys.argv[1])

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from nerf.cameras import Cameras
from nerf.fields.interface import Sampler
from nerf.scene import Scene
from nerf.space import Space, Unbounded
from run_nerf_helpers import Composite, Rays


@dataclass(frozen=True)
class Rules:
    """Numbers that decide the figures, set by hand."""

    margin: float = 0.15  # share of a surface's distance in which weight in front of it is no fog yet
    around: float = 0.02  # radius in which the nearest point hides others, in longer sides of the picture
    opened: float = 0.05  # beginning of rays without the view's own near bound, as a share of the surface's distance
    pixels: int = 4000  # pixels of a view, spread evenly
    path_views: int = 12  # views of the render path, spread evenly
    neighbours: int = 4  # photographs nearest to a view of the render path; it sees the points that all of them observe


RULES = Rules()


@dataclass(frozen=True)
class Known:
    """Sparse points of a capture, in scene coordinates, and the photographs that observe them."""

    points: np.ndarray  # [P, 3] float64
    held: np.ndarray  # [P] bool: points that no training step saw
    positions: np.ndarray  # [N, 3] float64 of the photographs
    seen: list[np.ndarray]  # [N] indices of the points that each photograph observes

    @classmethod
    def read(cls, path: Path, to_scene: np.ndarray) -> Known:
        """Content of a file of `captures.py`, moved by a similarity [4, 4] from the capture to the scene."""
        with np.load(path) as file:
            points, positions = (file[name] @ to_scene[:3, :3].T + to_scene[:3, 3] for name in ('points', 'positions'))
            return cls(points, file['held'], positions, np.split(file['seen'], file['ends'][:-1]))

    def near(self, position: np.ndarray, rules: Rules = RULES) -> np.ndarray:
        """Indices of the points that all of the photographs nearest to a position [3] observe, so that hardly any is
        hidden from between them."""
        nearest = np.linalg.norm(self.positions - position, axis=-1).argsort()[:rules.neighbours]
        counts = np.bincount(np.concatenate([self.seen[i] for i in nearest]), minlength=len(self.points))
        return np.flatnonzero(counts == len(nearest))


class Ending(Unbounded):
    """Space without bounds in which rays end at their far bound."""

    def grid_rays(self, rays: Rays, voxel: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        origins, directions, near, far = super().grid_rays(rays, voxel)
        return origins, directions, near, far.minimum(rays.far[:, 0])


def ended(space: Space) -> Space:
    """The same space, in which rays end at their far bound."""
    if not isinstance(space, Unbounded):
        return space
    return Ending(**{field.name: getattr(space, field.name) for field in fields(space)})


@torch.inference_mode()
def rendered(sampler: Sampler, rays: Rays, end: bool = False) -> Composite:
    """Composites of any number of rays; with `end`, of their part before the far bound. The last sample of a ray does
    not count there, as it stands for everything behind. A ray whose bounds leave nothing between them is empty."""
    field = sampler.field
    before = getattr(field, 'space', None)
    try:
        if end and before is not None:
            field.space = ended(before)
        parts = [sampler.render(rays.part(slice(start, start + sampler.tile))).final
                 for start in range(0, len(rays.near), sampler.tile)]
    finally:
        if end and before is not None:
            field.space = before
    whole = Composite(*map(torch.cat, zip(*parts)))
    if end and whole.weights.shape[1] > 1:
        whole = whole._replace(acc=whole.weights[:, :-1].sum(-1))
    return whole._replace(acc=torch.where(rays.far[:, 0] > rays.near[:, 0], whole.acc, 0.0))


def lattice(cameras: Cameras, view: int, most: int) -> tuple[Tensor, Tensor, int]:
    """Rows and columns [K] of at most about `most` pixels, spread evenly over a view, and the pixels between them."""
    height, width = cameras.size(view)
    step = max(math.ceil(math.sqrt(height * width / most)), 1)
    row, column = torch.meshgrid(torch.arange(step // 2, height, step), torch.arange(step // 2, width - 1, step),
                                 indexing='ij')
    return row.flatten(), column.flatten(), step


def world_rays(cameras: Cameras, view: int, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Origins and directions [K, 3] float64 of pixels of a view, in the world."""
    origins, directions = cameras.rays(torch.full_like(row, view), row, column)
    return origins.double(), directions.double()


def bundled(space: Space, cameras: Cameras, view: int, origins: Tensor, directions: Tensor) -> Rays:
    """Rays of a view in the space, with the view's bounds."""
    bounds = None if cameras.bounds is None else cameras.bounds[view]
    return space.rays(origins.float(), directions.float(), bounds)


def depth_at(space: Space, rays: Rays, points: Tensor) -> Tensor:
    """Depths [K, 1] float32 along rays of the places nearest to world points [K, 3]."""
    there, directions = space.from_world(points), rays.directions.double()
    along = ((there - rays.origins.double()) * directions).sum(-1, keepdim=True)
    return (along / (directions ** 2).sum(-1, keepdim=True)).float()


def nearest_around(directions: np.ndarray, position: np.ndarray, points: np.ndarray, angle: float) -> np.ndarray:
    """Distances [K] from a position [3] to the nearest of points [P, 3] within an angle, in radians, of directions
    [K, 3]; infinite where there is none."""
    to_points = points - position
    distance = np.linalg.norm(to_points, axis=-1)
    tree = cKDTree(to_points / np.maximum(distance, 1e-12)[:, None])
    found = tree.query_ball_point(directions / np.linalg.norm(directions, axis=-1, keepdims=True), angle)
    return np.array([distance[some].min() if len(some) else np.inf for some in found])


def pixel_angle(cameras: Cameras, view: int) -> float:
    """Angle of a pixel in the middle of a view, in radians."""
    return 1.0 / float(cameras.intrinsics[view, :2].mean())


def shown_points(cameras: Cameras, view: int, points: np.ndarray, rules: Rules = RULES) -> np.ndarray:
    """[P] bool: points [P, 3] of the world in the picture of a view that are not behind other ones of them, by the
    margin and in a neighbourhood."""
    row, column, step = lattice(cameras, view, rules.pixels)
    pixels = torch.nn.functional.normalize(world_rays(cameras, view, row, column)[1], dim=-1).numpy()
    position, angle = cameras.poses[view, :, 3].double().numpy(), pixel_angle(cameras, view)
    to_points = points - position
    distance = np.maximum(np.linalg.norm(to_points, axis=-1), 1e-12)
    off, _ = cKDTree(pixels).query(to_points / distance[:, None])
    front = nearest_around(to_points, position, points, rules.around * angle * max(cameras.size(view)))
    inside = off <= 0.75 * step * angle  # half of the lattice's diagonal is 0.71 steps
    return inside & (distance <= (1.0 + rules.margin) * front)


def rays_to(space: Space, cameras: Cameras, view: int, points: np.ndarray) -> Rays:
    """Rays of a view through points [K, 3] of the world, with the view's bounds."""
    pose = cameras.poses[view].double().numpy()
    to_points = points - pose[:, 3]
    wide = cameras.fisheye is not None and bool(cameras.fisheye[view])
    measure = np.linalg.norm(to_points, axis=-1) if wide else -to_points @ pose[:, 2]  # of a view's depths
    directions = torch.from_numpy(to_points / measure[:, None])
    return bundled(space, cameras, view, torch.from_numpy(pose[:, 3]).expand_as(directions), directions)


def spread(cameras: Cameras, view: int, points: np.ndarray, rules: Rules = RULES) -> np.ndarray:
    """Indices of the nearest of points [K, 3] in each square of a view, as large as a neighbourhood."""
    pose, size = cameras.poses[view].double().numpy(), rules.around * max(cameras.size(view))
    local = (points - pose[:, 3]) @ pose[:, :3]
    distance = np.linalg.norm(local, axis=-1)
    square = np.floor(local[:, :2] / distance[:, None] / (size * pixel_angle(cameras, view)))
    order = np.argsort(distance, kind='stable')
    return order[np.unique(square[order], axis=0, return_index=True)[1]]


def fog(sampler: Sampler, space: Space, cameras: Cameras, view: int, points: np.ndarray, rules: Rules = RULES
        ) -> np.ndarray:
    """Fog of a view before sparse points that it sees: the weight of the ray to a point in front of it, less the
    margin. Points are spread evenly over the picture.

    Args:
        points: [P, 3] world points that are seen from there, if they are in the picture.

    Returns:
        [2, K] for K points: from the near bound of the view on, and from `Rules.opened` on, where a near bound hides
        nothing.
    """
    if not len(points):
        return np.zeros((2, 0))
    points = points[shown_points(cameras, view, points, rules)]
    points = points[spread(cameras, view, points, rules)]
    if not len(points):
        return np.zeros((2, 0))
    rays, position = rays_to(space, cameras, view, points), cameras.poses[view, :, 3].double()
    ends, begins = (depth_at(space, rays, position + share * (torch.from_numpy(points) - position))
                    for share in (1.0 - rules.margin, rules.opened))
    rays = rays._replace(far=ends)
    return np.stack([rendered(sampler, some, end=True).acc.double().numpy()
                     for some in (rays, rays._replace(near=begins))])


def depth_errors(sampler: Sampler, space: Space, cameras: Cameras, view: int, points: np.ndarray, asked: np.ndarray,
                 rules: Rules = RULES) -> np.ndarray:
    """Errors [K] of expected depth on the rays to points that a view sees, as shares of their distances.

    Args:
        points: [P, 3] world points that are seen from there, if they are in the picture.
        asked: [P] bool, the points whose depth is compared.
    """
    if not asked.any():
        return np.zeros(0)
    points = points[asked & shown_points(cameras, view, points, rules)]
    if not len(points):
        return np.zeros(0)
    rays, position = rays_to(space, cameras, view, points), cameras.poses[view, :, 3].double().numpy()
    found = rendered(sampler, rays)
    depth = (found.depth / found.acc.clamp(min=1e-6))[:, None]
    places = space.to_world((rays.origins + depth * rays.directions).double()).numpy()
    return np.abs(np.linalg.norm(places - position, axis=-1) / np.linalg.norm(points - position, axis=-1) - 1.0)


def voxel_pixels(sampler: Sampler, space: Space, voxel: float, cameras: Cameras, view: int, rules: Rules = RULES
                 ) -> np.ndarray:
    """Widths [K] of a voxel, `voxel` in grid units, at the surfaces that pixels of a view show, in pixels. Neighbouring
    pixels are compared in grid coordinates, so that the widths hold in contracted space too."""
    row, column, _ = lattice(cameras, view, rules.pixels)
    rays, beside = (bundled(space, cameras, view, *world_rays(cameras, view, row, column + by)) for by in (0, 1))
    found = rendered(sampler, rays)
    hit = found.acc > 0.5
    depth = (found.depth / found.acc.clamp(min=1e-6))[:, None].double()
    here, there = (space.to_grid(some.origins.double() + depth * some.directions.double()) for some in (rays, beside))
    return (voxel / (here - there).norm(dim=-1))[hit].numpy()


def figures(scene: Scene, sampler: Sampler, known: Known | None, photographs: list[int], rules: Rules = RULES
            ) -> dict[str, float]:
    """Figures of a field on the test views, which are photographs of these indices, and on the render path."""
    test, space, field = scene.cameras.take(scene.i_test), scene.space, sampler.field
    found = {}
    if hasattr(field, 'grid'):
        widths = [voxel_pixels(sampler, space, field.grid.voxel, test, view, rules) for view in range(len(test))]
        found = {'rows': len(field.rows), 'voxel_pixels': middle(np.concatenate(widths))}
    if known is None or not (space.has_far or hasattr(field, 'grid')):  # networks' rays go to infinity
        return found
    mine, errors = [], []
    for view, photograph in enumerate(photographs):
        seen = known.seen[photograph]
        mine.append(fog(sampler, space, test, view, known.points[seen], rules))
        errors.append(depth_errors(sampler, space, test, view, known.points[seen], known.held[seen], rules))
    path = scene.render_cameras
    path = path.take(np.linspace(0, len(path) - 1, min(len(path), rules.path_views)).round().astype(int))
    theirs = [fog(sampler, space, path, view, known.points[known.near(pose[:, 3].double().numpy(), rules)], rules)
              for view, pose in enumerate(path.poses)]
    for name, views in (('fog', mine), ('path_fog', theirs)):
        shown, opened = np.concatenate(views, 1)
        found |= {name: mean(shown), f'{name}_opened': mean(opened)}
    return found | {'depth_error': middle(np.concatenate(errors))}


def drawn_views(scene: Scene, tested: list[str]) -> list[int]:
    """Places, in a list of the names of all test photographs, of those that the scene has as test views. Scenes of some
    versions leave out cameras, and know the names of their photographs."""
    if len(scene.i_test) == len(tested):
        return list(range(len(tested)))
    stems = [Path(name).stem for name in tested]
    return [stems.index(Path(scene.names[i]).stem) for i in scene.i_test]


def mean(values: np.ndarray) -> float | None:
    """Mean of values; None if there are none."""
    return float(values.mean()) if len(values) else None


def middle(values: np.ndarray) -> float | None:
    """Median of values; None if there are none."""
    return float(np.median(values)) if len(values) else None


def main(job: dict) -> dict:
    """Figures of a run, and its test views as places in the list of test photographs. The job has the folder of the
    'run', the names of the 'tested' photographs, the file of 'points' (None: unknown), and the 'photographs', as
    indices in that file."""
    from nerf.fields.kinds import FIELDS
    from nerf.flags import parse_flags
    from nerf.formats import load_scene
    from nerf.resume import restore_trained
    from nerf.runtime.devices import choose_device, choose_precision
    from run_nerf import origin_of

    run = Path(job['run'])
    args = parse_flags(['--config', str(run / 'args.txt'), '--render_only'])
    scene, device = load_scene(args), choose_device(args.device)
    field = FIELDS[args.field].build(args, scene, device, choose_precision(args.precision, device))
    restore_trained(origin_of(args, run), field)
    known = None
    if job['points'] and scene.placement:
        known = Known.read(job['points'], scene.placement.matrix)
    drawn = drawn_views(scene, job['tested'])
    photographs = [job['photographs'][i] for i in drawn] if job['photographs'] else []
    return {'drawn': drawn, **figures(scene, field.sampler(), known, photographs)}


if __name__ == '__main__':
    print(json.dumps(main(json.loads(Path(sys.argv[2]).read_text(encoding='utf-8')))))
