"""Kinds of space of a scene: between two bounds, in normalised device coordinates (NDC), or without bounds.

Coordinate systems are three: world coordinates of the scene's cameras; ray coordinates of `Rays` (world coordinates, or
NDC); field coordinates (ray coordinates, or contracted ones without bounds). A grid divides field coordinates by the
shape of a voxel. A further kind of space is a further class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nerf.cameras import Cameras
from nerf.robust import middle_of
from nerf.runtime.devices import constant
from nerf.runtime.errors import UserError
from run_nerf_helpers import (Rays, bundle_rays, disparity, ndc_disparity, ndc_points, ndc_rays, stratified_z,
                              world_points)

BOX_RAYS = 17  # rays along both sides of each view for the box of a scene without bounds
INFINITY = 1e5  # near bounds to the last sample of a ray without a far bound
BEYOND_NEAR = 1.0  # near bounds from the outermost forward-facing camera to the surface of the unit ball
OUTERMOST = 2.0  # median distances of cameras from the ball's centre, up to which it holds them; 1.75 holds alexander's


@dataclass(frozen=True)
class Space:
    """Base of all kinds of space. Its methods are right for world coordinates without contraction."""
    near: float  # near bound of the rays in ray coordinates, for cameras without their own
    far: float  # far bound, likewise
    surrounded: bool = True  # cameras surround the origin; else they look at the scene from outside
    name = ''  # name of the kind, for defaults of flags
    note = ''  # text after the bounds at the start of a run
    unit = ''  # unit of bounds in the viewer
    closed = False  # every ray ends on something, so there is no background
    has_far = True  # rays end at their far bound; else they reach infinity
    contracts = False  # field coordinates are contracted outside the unit ball around their origin
    projective = False  # ray coordinates are a projection and a mirror image of the world
    voxel_shape = (1.0, 1.0, 1.0)  # edges of a voxel in field coordinates
    depth_measure = ((1.0, 0.0), (0.0, 1.0))  # see `projection`
    horizon = 0.0  # near bounds to the last of samples even in disparity; 0: samples end at the far bound

    def rays(self, origins: Tensor, directions: Tensor, bounds: Tensor | None = None) -> Rays:
        """Rays of world origins and directions [..., 3], with near and far bounds [..., 2]; None: the space's."""
        if bounds is None:
            return bundle_rays(origins, directions, self.near, self.far)
        near, far = bounds.expand(*origins.shape[:-1], 2).reshape(-1, 2).split(1, -1)
        return bundle_rays(origins, directions, near, far)

    def has_rays(self, directions: Tensor) -> Tensor:
        """[...] bool: rays exist in world directions [..., 3]."""
        return torch.ones_like(directions[..., 0], dtype=torch.bool)

    def from_world(self, points: Tensor) -> Tensor:
        """Ray coordinates [..., 3] of world points."""
        return points

    def to_world(self, points: Tensor) -> Tensor:
        """World points [..., 3] of ray coordinates."""
        return points

    def projection(self) -> np.ndarray:
        """Matrix [4, 4] from ray coordinates to the world: (x, y, z, 1) becomes (q X, q Y, q Z, q). Depth d along the
        axis, as (q d, q) times `depth_measure` [2, 2], becomes (r D, r): D rises with d, evenly in ray coordinates."""
        return np.eye(4)

    def to_field(self, points: Tensor) -> Tensor:
        """Field coordinates [..., 3] of points in ray coordinates."""
        return points

    def to_grid(self, points: Tensor) -> Tensor:
        """Grid coordinates [..., 3] of points in ray coordinates."""
        return self._as_cubes(self.to_field(points))

    def from_grid(self, points: Tensor) -> Tensor:
        """Ray coordinates [..., 3] of points in grid coordinates."""
        return points * constant(self.voxel_shape, points.device, points.dtype)

    def _as_cubes(self, vectors: Tensor) -> Tensor:
        """Points or directions [..., 3] in field coordinates, divided by the shape of a voxel."""
        return vectors / constant(self.voxel_shape, vectors.device, vectors.dtype)

    def grid_scale(self, points: Tensor) -> Tensor:
        """Grid units per unit of ray coordinates [...] at points [..., 3], in the mean over directions."""
        return torch.ones_like(points[..., 0]) / math.prod(self.voxel_shape) ** (1 / 3)

    @property
    def scale_at_centre(self) -> float:
        """Grid units per unit of ray coordinates at the centre of the scene, across the views."""
        return 1.0

    def grid_rays(self, rays: Rays, voxel: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Straight rays for marching a grid: origins and directions [R, 3] in grid coordinates before contraction, near
        and far bounds [R]. Rays to infinity end by the voxel's edge, in grid units."""
        return self._as_cubes(rays.origins), self._as_cubes(rays.directions), rays.near[:, 0], rays.far[:, 0]

    def distances(self, rays: Rays) -> Tensor:
        """Depths [R] at which rays are as far away as the scene: as the origin, if cameras surround it, else the depth
        of the mean of the nearest and the farthest disparity."""
        if not self.surrounded:
            return torch.full_like(rays.near[:, 0], self._middle_depth)
        return rays.origins.norm(dim=-1) / rays.directions.norm(dim=-1)

    def disparity(self, depth: Tensor, acc: Tensor) -> Tensor:
        """Disparity [R] in the world, from expected depth and opacity [R] of rays; 0 for empty rays."""
        return disparity(depth, acc)

    def even_depths(self, rays: Rays, count: int) -> Tensor:
        """Depths [R, count] spread evenly between the bounds of rays."""
        return stratified_z(rays.near, rays.far, count)

    def looking_distance(self, pose: np.ndarray) -> float:
        """Distance from a camera [3, 4] to the point around which it turns: the origin, if cameras surround it, else
        the depth of the mean of the nearest and the farthest disparity."""
        if self.surrounded:
            return max(float(np.linalg.norm(pose[:, 3])), 1e-3)
        return self._middle_depth

    @property
    def _middle_depth(self) -> float:
        """Depth of the mean of the nearest and the farthest disparity."""
        return 2.0 / sum(1.0 / bound for bound in self.world_bounds)

    @property
    def world_bounds(self) -> tuple[float, float]:
        """Depths of the nearest and the farthest thing in scene units."""
        return self.near, self.far

    @property
    def farthest_clip(self) -> float:
        """Largest bound in the viewer."""
        return 2.0 * self.far

    def seen_from(self, pose: np.ndarray, closest: float, farthest: float) -> Space:
        """Space with the bounds of a camera [3, 4]. Training cameras are closest to farthest away from the origin."""
        return self

    # Boxes: [2, 3] float64, the lowest and the highest corner

    def box(self, cameras: Cameras) -> np.ndarray:
        """Box of the scene in ray coordinates: a cube inside the cameras, half as wide as from the origin to their near
        bound, if they surround the origin; else the box around their views from near to far."""
        half = np.linalg.norm(cameras.poses[:, :, 3].numpy(), axis=-1).mean() - self.near
        return np.array([[-half] * 3, [half] * 3]) if self.surrounded and half > 0 else self.seen_box(cameras)

    def seen_box(self, *cameras: Cameras) -> np.ndarray:
        """Box around the views of cameras from near to far, in ray coordinates. Points outside it are in no view."""
        views = [self.rays(*some.corner_rays()) for some in cameras]
        return _holding(torch.cat([r.origins + t * r.directions for r in views for t in (r.near, r.far)]))

    def grid_box(self, cameras: Cameras) -> np.ndarray:
        """Box of a grid in grid coordinates."""
        return self.box(cameras) / self.voxel_shape

    def box_within(self, bounds: np.ndarray, cameras: Cameras) -> np.ndarray:
        """Box [2, 3] of the world in ray coordinates, cut to the views of cameras. UserError: it is in no view."""
        return bounds

    def pixel_sides(self, cameras: Cameras) -> Tensor:
        """Side of a pixel [V] float64 in ray coordinates: at the origin if cameras surround it, else at far."""
        distance = cameras.poses[:, :, 3].double().norm(dim=-1) if self.surrounded else self.far
        return distance / cameras.intrinsics[:, :2].mean(1)

    def describe(self) -> str:
        """Bounds in words."""
        return f'near {self.near:g}, far {self.far:g}{self.note}'

    def ball_numbers(self) -> list[float] | None:
        """Numbers of the unit ball for a checkpoint; None: the space does not contract."""
        return None

    def with_ball(self, numbers: list[float] | None) -> Space:
        """Space of a checkpoint with these `ball_numbers`. TypeError, ValueError: they do not fit."""
        if numbers is not None:
            raise ValueError('a contraction, which this space does not have')
        return self

    def numbers(self) -> list[float]:
        """Numbers for a scene's fingerprint, as in the first checkpoints."""
        return [self.near, self.far, self.projective]


@dataclass(frozen=True)
class Bounded(Space):
    """Space between two bounds. Empty rays show the background."""
    name = 'bounded'

    def seen_from(self, pose: np.ndarray, closest: float, farthest: float) -> Space:
        """A camera inside the others sees closer things, and a camera outside them does not lose the scene."""
        if not self.surrounded:
            return self
        distance = float(np.linalg.norm(pose[:, 3]))
        return replace(self, near=min(self.near, max(distance - (closest - self.near), 0.01 * self.near)),
                       far=max(self.far, distance + self.far - farthest))

    def with_ball(self, numbers: list[float] | None) -> Space:
        """A checkpoint with a unit ball brings space without bounds along."""
        return self if numbers is None else Unbounded(self.near, self.far, self.surrounded).with_ball(numbers)


@dataclass(frozen=True)
class NDC(Space):
    """Normalised device coordinates of a forward-facing scene (appendix C), with the near plane at depth 1. Rays reach
    infinity. Voxels are longer along depth, because pixels tell less of it."""
    near: float = 0.0
    far: float = 1.0
    surrounded: bool = False
    height: int = 0  # height of the defining camera in pixels
    width: int = 0  # width of the defining camera in pixels
    focal: float = 1.0  # focal length of the defining camera in pixels
    farthest: float = math.inf  # depth of the farthest known thing in scene units
    name, note, unit, closed, projective, farthest_clip = 'ndc', ' (NDC)', ' (NDC)', True, True, 1.0
    voxel_shape = (1.0, 1.0, 4.0)
    depth_measure = ((0.0, -2.0), (1.0, 0.0))  # -2 / d

    def rays(self, origins: Tensor, directions: Tensor, bounds: Tensor | None = None) -> Rays:
        """Rays in NDC. View directions stay in the world, and bounds of single views do not apply."""
        viewdirs = F.normalize(directions, dim=-1)
        return bundle_rays(*ndc_rays(*self.camera, 1.0, origins, directions), self.near, self.far, viewdirs)

    @property
    def camera(self) -> tuple[int, int, float]:
        """Height, width and focal length, as `ndc_rays` takes them."""
        return self.height, self.width, self.focal

    def has_rays(self, directions: Tensor) -> Tensor:
        """Rays exist in forward directions, to -z."""
        return directions[..., 2] < -1e-3

    def from_world(self, points: Tensor) -> Tensor:
        """Points before the near plane are moved onto it."""
        return ndc_points(*self.camera, 1.0, torch.cat([points[..., :2], points[..., 2:].clamp(max=-1.0)], -1))

    def to_world(self, points: Tensor) -> Tensor:
        return world_points(*self.camera, 1.0, points)

    def from_grid(self, points: Tensor) -> Tensor:
        """Points at infinity, z = 1, or beyond it are moved near it."""
        points = super().from_grid(points)
        return torch.cat([points[..., :2], points[..., 2:].clamp(max=1.0 - 1e-6)], -1)

    def projection(self) -> np.ndarray:
        """Matrix of `world_points`, with q = (1 - z) / 2."""
        x, y = 0.5 * self.width / self.focal, 0.5 * self.height / self.focal
        return np.array([[x, 0.0, 0.0, 0.0], [0.0, y, 0.0, 0.0], [0.0, 0.0, 0.0, -1.0], [0.0, 0.0, -0.5, 0.5]])

    def distances(self, rays: Rays) -> Tensor:
        return torch.full_like(rays.near[:, 0], 1.0 - 1.0 / self._middle_depth)

    def disparity(self, depth: Tensor, acc: Tensor) -> Tensor:
        return ndc_disparity(depth, acc)

    @property
    def world_bounds(self) -> tuple[float, float]:
        return 1.0, self.farthest

    def box(self, cameras: Cameras) -> np.ndarray:
        """The box ends at the farthest known thing."""
        return replace(self, far=1.0 - 1.0 / self.farthest).seen_box(cameras)

    def seen_box(self, *cameras: Cameras) -> np.ndarray:
        """Cameras with sideways rays are left out."""
        return super().seen_box(*(some.take(np.setdiff1d(np.arange(len(some)), looking_sideways(some)))
                                  for some in cameras))

    def grid_box(self, cameras: Cameras) -> np.ndarray:
        return self.seen_box(cameras) / self.voxel_shape

    def box_within(self, bounds: np.ndarray, cameras: Cameras) -> np.ndarray:
        corners = torch.from_numpy(np.stack(np.meshgrid(*bounds.T), -1).reshape(8, 3))
        places, box = self.from_world(corners).numpy(), self.box(cameras)
        low, high = np.maximum(box[0], places.min(0)), np.minimum(box[1], places.max(0))
        if not (low < high).all():
            raise UserError(f'mesh_bounds {corners_in_words(bounds)} is in no training view; these look along -z, and '
                            'see nothing nearer than z = -1')
        return np.stack([low, high])

    def pixel_sides(self, cameras: Cameras) -> Tensor:
        """A picture is 2 wide."""
        return 2.0 / cameras.sizes[:, 1].double()


@dataclass(frozen=True)
class Unbounded(Space):
    """Space without bounds. Fields see it contracted, as in mip-NeRF 360 (arXiv:2111.12077, equation 10): a point x, in
    radii of a unit ball from its centre, stays in place inside; outside it becomes (2 - 1/|x|) x/|x|."""
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)  # centre of the unit ball in scene units
    radius: float = 1.0  # radius of the unit ball in scene units
    name, closed, has_far, contracts, horizon = 'unbounded', True, False, True, INFINITY

    @classmethod
    def around(cls, cameras: Cameras, near: float, far: float, surrounded: bool) -> Unbounded:
        """Space of training cameras. Surrounding cameras lie just inside the unit ball around the origin; the ball of
        others is around their middle, and reaches BEYOND_NEAR near bounds beyond the farthest camera. Cameras farther
        away than OUTERMOST times the median do not count, and may lie outside the ball."""
        positions = cameras.poses[:, :, 3].double().numpy()
        centre = np.zeros(3) if surrounded else middle_of(positions)
        distances = np.linalg.norm(positions - centre, axis=-1)
        farthest = float(min(distances.max(), OUTERMOST * np.median(distances)))
        radius = max(1.01 * farthest, near) if surrounded else farthest + BEYOND_NEAR * near
        return cls(near, far, surrounded, tuple(centre.tolist()), radius)

    def from_centre(self, points: Tensor) -> Tensor:
        """World points [..., 3] in radii from the centre, before contraction."""
        return (points - constant(self.centre, points.device, points.dtype)) / self.radius

    def to_field(self, points: Tensor) -> Tensor:
        """Contracted points, at most 2 long."""
        return contracted(self.from_centre(points))

    def from_grid(self, points: Tensor) -> Tensor:
        """Points beyond infinity, 2 from the origin, are moved near it."""
        distance = points.norm(dim=-1, keepdim=True)
        stretched = points / (distance * (2.0 - distance).clamp(min=1e-6))
        return torch.where(distance < 1.0, points, stretched) * self.radius + constant(
            self.centre, points.device, points.dtype)

    def grid_scale(self, points: Tensor) -> Tensor:
        """Cube root of the determinant of the contraction's Jacobian. Steps along a ray shrink more, across it less."""
        over = _over_distance(self.from_centre(points))[..., 0]
        return (over ** 4 * (2.0 - over) ** 2) ** (1 / 3) / self.radius

    @property
    def scale_at_centre(self) -> float:
        return 1.0 / self.radius

    def grid_rays(self, rays: Rays, voxel: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rays end at most a quarter of a voxel before infinity."""
        origins, directions = self.from_centre(rays.origins), rays.directions / self.radius
        ends = origins.norm(dim=-1) + 4.0 / voxel  # length of a ray with its last point 4 / voxel from the centre
        return origins, directions, rays.near[:, 0], ends / directions.norm(dim=-1)

    def grid_box(self, cameras: Cameras) -> np.ndarray:
        """Box around the views from near to infinity."""
        rays = self.rays(*cameras.spread_rays(BOX_RAYS), None if cameras.bounds is None else cameras.bounds[:, None])
        depths = rays.near + torch.cat([torch.zeros(1), self.radius * torch.logspace(-1.0, 6.0, 100)])
        ends = self.to_field(rays.origins[:, None] + depths[..., None] * rays.viewdirs[:, None])
        return _holding(ends.flatten(0, 1))

    def ball_numbers(self) -> list[float]:
        """Coordinates of the centre, and the radius."""
        return [*self.centre, self.radius]

    def with_ball(self, numbers: list[float] | None) -> Space:
        """A checkpoint without numbers is of a box up to the far bound, as in the first versions."""
        if numbers is None:
            return Bounded(self.near, self.far, self.surrounded)
        *centre, radius = map(float, numbers)
        if len(centre) != 3 or not (radius > 0 and all(map(math.isfinite, numbers))):
            raise ValueError(f'a contraction of {numbers}')
        return replace(self, centre=tuple(centre), radius=radius)


def _holding(points: Tensor) -> np.ndarray:
    """Box [2, 3] float64 around points [N, 3]."""
    return torch.stack([points.amin(0), points.amax(0)]).double().numpy()


def looking_sideways(cameras: Cameras) -> np.ndarray:
    """Indices of cameras with a corner ray, the most oblique of all pixels, that does not go to -z."""
    return np.flatnonzero((cameras.corner_rays()[1][..., 2] > -1e-6).any(-1))


def corners_in_words(box: np.ndarray) -> str:
    """Corners of a box [2, 3] for a message."""
    return ' to '.join(' '.join(f'{part:.4g}' for part in corner) for corner in box)


def contracted(x: Tensor) -> Tensor:
    """Contraction of points [..., 3], in radii from its centre (equation 10)."""
    over = _over_distance(x)
    return (2.0 - over) * over * x


def shrinkage(x: Tensor, directions: Tensor) -> Tensor:
    """Factor |J d| / |d| [...] by which the contraction shortens a small step from points x along d [..., 3]. Its
    Jacobian J shortens by 1/u^2 away from the centre and by (2 - 1/u)/u across, with u = |x|."""
    along = (x * directions).sum(-1) ** 2 / ((x ** 2).sum(-1) * (directions ** 2).sum(-1)).clamp(min=1e-30)
    return _shrinkage(_over_distance(x)[..., 0], along.clamp(max=1.0))


def _shrinkage(over: Tensor, along: Tensor) -> Tensor:
    """Factor `shrinkage` at distance 1 / over, for the squared cosine `along` between direction and radius."""
    return torch.where(over < 1.0, (along * over ** 4 + (1.0 - along) * ((2.0 - over) * over) ** 2).sqrt(), 1.0)


def even_depths(origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, lengths: Tensor) -> Tensor:
    """Depths [R, S] at which rays have ascending contracted lengths [R, S] from near on. Origins and directions [R, 3]
    are in radii from the centre, bounds [R] finite. Lengths beyond the ray's give far. Contracted length is summed
    over S points of a ray, even in w = `_drawn_in(x)`, where x is the distance from the point nearest to the centre."""
    speed = directions.norm(dim=-1, keepdim=True)
    nearest = (origins * directions).sum(-1, keepdim=True) / speed
    aside = ((origins ** 2).sum(-1, keepdim=True) - nearest ** 2).clamp(min=0.0)  # squared distance from the centre
    first, last = (_drawn_in(nearest + speed * bound[:, None]) for bound in (near, far))
    n = lengths.shape[1]
    x = _drawn_out(first + (last - first) * torch.linspace(0.0, 1.0, n, dtype=first.dtype, device=first.device))
    square = aside + x ** 2
    pace = _shrinkage(square.clamp(min=1.0).rsqrt(), x ** 2 / square.clamp(min=1e-30)) * x.abs().clamp(min=1.0) ** 2
    sums = F.pad((0.5 * (pace[:, 1:] + pace[:, :-1])).cumsum(1), (1, 0)) * (last - first) / (n - 1)
    place = torch.searchsorted(sums, lengths).clamp(1, n - 1)
    before, behind = sums.gather(1, place - 1), sums.gather(1, place)
    share = (place - 1 + ((lengths - before) / (behind - before).clamp(min=1e-30)).clamp(0.0, 1.0)) / (n - 1)
    depths = (_drawn_out(first + (last - first) * share) - nearest) / speed
    return torch.where(lengths < sums[:, -1:], depths.clamp(max=far[:, None]), far[:, None])


def _drawn_in(x: Tensor) -> Tensor:
    """Contraction w of a place x on a line through the centre: x for |x| < 1, else 2 - 1/|x| with the sign of x."""
    return torch.where(x.abs() < 1.0, x, x.sign() * (2.0 - 1.0 / x.abs().clamp(min=1.0)))


def _drawn_out(w: Tensor) -> Tensor:
    """Inverse of `_drawn_in`."""
    return torch.where(w.abs() < 1.0, w, w.sign() / (2.0 - w.abs()).clamp(min=1e-6))


def _over_distance(x: Tensor) -> Tensor:
    """1/|x| [..., 1] of points [..., 3]; 1 inside the unit ball."""
    return 1.0 / x.norm(dim=-1, keepdim=True).clamp(min=1.0)
