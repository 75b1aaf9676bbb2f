"""Kinds of space in which a scene lies: between two bounds, in normalised device coordinates, or without bounds.

All that differs between them is here: how a camera's rays look, which coordinates a field has, where disparity comes
from, which box holds what is seen, how density changes with the coordinates. Four kinds of coordinates occur:

    world   those of the scene's cameras;
    ray     those of `Rays`: the world's or, in NDC, NDC;
    field   those in which a field stores what is there: the rays', or contracted ones where a scene has no bounds;
    grid    those of the field, divided by `voxel_shape`, so that voxels are cubes.

A further kind of space is a further class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nerf.cameras import Cameras
from nerf.runtime.devices import constant
from nerf.runtime.errors import UserError
from run_nerf_helpers import (
    Rays, bundle_rays, disparity, ndc_disparity, ndc_points, ndc_rays, stratified_z, world_points,
)

BOX_RAYS = 17  # along both sides of each view, that find the box of what is seen without bounds
INFINITY = 1e5  # near bounds to the last sample on a ray that reaches to infinity
BEYOND_NEAR = 1.0  # near bounds from the outermost camera to the unit ball's surface, for cameras that look forward


@dataclass(frozen=True)
class Space:
    """What all kinds of space have; where a kind says nothing else, that of a space between two bounds."""

    near: float  # bounds of the rays, in ray coordinates, of cameras that have none of their own
    far: float
    surrounded: bool = True  # the cameras surround the origin; else they look at what is in front of them

    name = ''  # by which defaults of flags are told apart
    note = ''  # behind the bounds of a scene, in the text at the start of a run
    unit = ''  # of bounds in the viewer
    closed = False  # every ray ends on something: there is no background
    has_far = True  # rays end at their far bound; else they go on to infinity, whatever it is
    contracts = False  # field coordinates are contracted outside of the unit ball around their origin
    projective = False  # ray coordinates are a projection of the world, and a mirror image
    voxel_shape = (1.0, 1.0, 1.0)  # edges of a voxel in ray coordinates: pixels tell less of depth in NDC
    depth_measure = ((1.0, 0.0), (0.0, 1.0))  # see `projection`
    horizon = 0.0  # near bounds to the last sample of a ray that is sampled evenly in disparity; 0: up to its far bound

    # Rays and points

    def rays(self, origins: Tensor, directions: Tensor, bounds: Tensor | None = None) -> Rays:
        """World origins and directions [..., 3] as rays.

        Args:
            bounds: [..., 2] near and far bound of each, broadcast over the rays; None: the space's.
        """
        if bounds is None:
            return bundle_rays(origins, directions, self.near, self.far)
        near, far = bounds.expand(*origins.shape[:-1], 2).reshape(-1, 2).split(1, -1)
        return bundle_rays(origins, directions, near, far)

    def has_rays(self, directions: Tensor) -> Tensor:
        """[...] bool: world directions [..., 3] in which rays can look."""
        return torch.ones_like(directions[..., 0], dtype=torch.bool)

    def from_world(self, points: Tensor) -> Tensor:
        """World points [..., 3] in ray coordinates."""
        return points

    def to_world(self, points: Tensor) -> Tensor:
        """Points [..., 3] in ray coordinates back to the world."""
        return points

    def projection(self) -> np.ndarray:
        """Matrix [4, 4] from ray coordinates to the world: (x, y, z, 1) becomes (q X, q Y, q Z, q).

        The matrix [2, 2] `depth_measure` belongs to it. Depth d along a camera's axis, as (q d, q), becomes (r D, r).
        Measured depth D rises with d, and its steps are even in ray coordinates.
        """
        return np.eye(4)

    def to_field(self, points: Tensor) -> Tensor:
        """Points [..., 3] in ray coordinates as a field stores them."""
        return points

    def to_grid(self, points: Tensor) -> Tensor:
        """Points [..., 3] in ray coordinates as a grid stores them."""
        return self._as_cubes(self.to_field(points))

    def _as_cubes(self, vectors: Tensor) -> Tensor:
        """Points or directions [..., 3] in field coordinates, divided by the shape of a voxel."""
        return vectors / constant(self.voxel_shape, vectors.device, vectors.dtype)

    def grid_scale(self, points: Tensor) -> Tensor:
        """[...] grid units per unit of ray coordinates at points [..., 3], in the mean over directions."""
        return torch.ones_like(points[..., 0]) / math.prod(self.voxel_shape) ** (1 / 3)

    def grid_rays(self, rays: Rays, voxel: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Straight rays for marching through a grid: they are not contracted yet if the space contracts.

        Args:
            rays: R rays.
            voxel: edge of the grid's voxels, in grid units. It decides where rays to infinity end.

        Returns:
            origins and directions [R, 3] in grid coordinates, near and far bounds [R].
        """
        return self._as_cubes(rays.origins), self._as_cubes(rays.directions), rays.near[:, 0], rays.far[:, 0]

    def disparity(self, depth: Tensor, acc: Tensor) -> Tensor:
        """1 / depth [R] of what rays hit, from expected depth and opacity [R]; 0 where nothing was hit."""
        return disparity(depth, acc)

    def even_depths(self, rays: Rays, count: int) -> Tensor:
        """Depths [R, count], ascending and spread evenly over what is seen."""
        return stratified_z(rays.near, rays.far, count)

    # Bounds for a camera anywhere

    def looking_distance(self, pose: np.ndarray) -> float:
        """Distance from a camera with pose [3, 4] to what it turns around: the origin, where cameras surround it; else
        a depth whose disparity is halfway between the nearest and the farthest."""
        if self.surrounded:
            return max(float(np.linalg.norm(pose[:, 3])), 1e-3)
        near, far = self.world_bounds
        return 2.0 / (1.0 / near + 1.0 / far)

    @property
    def world_bounds(self) -> tuple[float, float]:
        """Depths, in scene units, of the nearest and the farthest thing; the latter can be infinite."""
        return self.near, self.far

    @property
    def farthest_clip(self) -> float:
        """The largest bound that the viewer offers."""
        return 2.0 * self.far

    def seen_from(self, pose: np.ndarray, closest: float, farthest: float) -> Space:
        """The space with the bounds of a camera at a pose [3, 4].

        Args:
            closest, farthest: distances of the training cameras from the origin.
        """
        return self

    # Boxes: [2, 3] float64, the lowest and the highest corner

    def box(self, cameras: Cameras) -> np.ndarray:
        """What training cameras see from near to far, in ray coordinates.

        Where they surround the origin it is the cube inside them, half as wide as from the origin to their near bound;
        else it holds the ends of all corners' rays.
        """
        half = np.linalg.norm(cameras.poses[:, :, 3].numpy(), axis=-1).mean() - self.near
        return np.array([[-half] * 3, [half] * 3]) if self.surrounded and half > 0 else self.seen_box(cameras)

    def seen_box(self, *cameras: Cameras) -> np.ndarray:
        """All that the corners of cameras' pictures see from near to far, in ray coordinates: what is outside is in no
        picture of theirs."""
        return _holding(torch.cat([_ends(self.rays(*some.corner_rays())) for some in cameras]))

    def grid_box(self, cameras: Cameras) -> np.ndarray:
        """The box that a grid has to fill, in grid coordinates."""
        return self.box(cameras) / self.voxel_shape

    def box_within(self, bounds: np.ndarray, cameras: Cameras) -> np.ndarray:
        """A box [2, 3] of the world in ray coordinates, as far as `cameras` see it.

        Raises:
            UserError: they see nothing of it.
        """
        return bounds

    def pixel_sides(self, cameras: Cameras) -> Tensor:
        """[V] float64 side of a pixel of each camera, in ray coordinates: at the origin, where cameras surround it, or
        at the far bound."""
        distance = cameras.poses[:, :, 3].double().norm(dim=-1) if self.surrounded else self.far
        return distance / cameras.intrinsics[:, :2].mean(1)

    # Files and text

    def describe(self) -> str:
        """Bounds in words."""
        return f'near {self.near:g}, far {self.far:g}{self.note}'

    def ball_numbers(self) -> list[float] | None:
        """Numbers of the unit ball for a checkpoint; None: the space does not contract."""
        return None

    def with_ball(self, numbers: list[float] | None) -> Space:
        """The space of a checkpoint, which `ball_numbers` describes.

        Raises:
            TypeError, ValueError: the numbers are broken, or of another kind of space.
        """
        if numbers is not None:
            raise ValueError('a contraction, which this space does not have')
        return self

    def numbers(self) -> list[float]:
        """The numbers of a scene's fingerprint, which are those of the first checkpoints."""
        return [self.near, self.far, False]


@dataclass(frozen=True)
class Bounded(Space):
    """Space between two bounds. Rays that meet nothing show the background."""

    name = 'bounded'

    def seen_from(self, pose: np.ndarray, closest: float, farthest: float) -> Space:
        """Where cameras surround the origin, a camera that comes closer than they are sees what is closer, and one that
        goes back does not lose sight of the scene."""
        if not self.surrounded:
            return self
        distance = float(np.linalg.norm(pose[:, 3]))
        return replace(self, near=min(self.near, max(distance - (closest - self.near), 0.01 * self.near)),
                       far=max(self.far, distance + self.far - farthest))

    def with_ball(self, numbers: list[float] | None) -> Space:
        """A checkpoint of a scene without bounds brings its unbounded space along."""
        return self if numbers is None else Unbounded(self.near, self.far, self.surrounded).with_ball(numbers)


@dataclass(frozen=True)
class NDC(Space):
    """Normalised device coordinates of a forward-facing scene (appendix C), with the near plane at depth 1.

    Rays reach to infinity, and each ends on something.
    """

    near: float = 0.0
    far: float = 1.0
    surrounded: bool = False
    height: int = 0  # of the camera that defines them, in pixels
    width: int = 0
    focal: float = 1.0  # in pixels
    farthest: float = math.inf  # depth of the farthest thing that is known of, in scene units

    name, note, unit, closed, projective = 'ndc', ' (NDC)', ' (NDC)', True, True
    voxel_shape = (1.0, 1.0, 4.0)
    depth_measure = ((0.0, -2.0), (1.0, 0.0))  # -2 / d

    def rays(self, origins: Tensor, directions: Tensor, bounds: Tensor | None = None) -> Rays:
        """As `Space.rays`, but bounds of single views do not apply: the viewing directions alone stay in the world."""
        viewdirs = F.normalize(directions, dim=-1)
        return bundle_rays(*ndc_rays(*self.camera, 1.0, origins, directions), self.near, self.far, viewdirs)

    @property
    def camera(self) -> tuple[int, int, float]:
        """Height, width and focal length, as `ndc_rays` takes them."""
        return self.height, self.width, self.focal

    def has_rays(self, directions: Tensor) -> Tensor:
        """Directions that go forward, to -z."""
        return directions[..., 2] < -1e-3

    def from_world(self, points: Tensor) -> Tensor:
        """Points before the near plane count as on it."""
        points = torch.cat([points[..., :2], points[..., 2:].clamp(max=-1.0)], -1)
        return ndc_points(*self.camera, 1.0, points)

    def to_world(self, points: Tensor) -> Tensor:
        return world_points(*self.camera, 1.0, points)

    def projection(self) -> np.ndarray:
        """`world_points` as a matrix, with q = (1 - z) / 2."""
        x, y = 0.5 * self.width / self.focal, 0.5 * self.height / self.focal
        return np.array([[x, 0.0, 0.0, 0.0], [0.0, y, 0.0, 0.0], [0.0, 0.0, 0.0, -1.0], [0.0, 0.0, -0.5, 0.5]])

    def disparity(self, depth: Tensor, acc: Tensor) -> Tensor:
        return ndc_disparity(depth, acc)

    @property
    def world_bounds(self) -> tuple[float, float]:
        return 1.0, self.farthest

    @property
    def farthest_clip(self) -> float:
        return 1.0

    def box(self, cameras: Cameras) -> np.ndarray:
        """It ends at the farthest thing that is known of."""
        return replace(self, far=1.0 - 1.0 / self.farthest).seen_box(cameras)

    def seen_box(self, *cameras: Cameras) -> np.ndarray:
        """Cameras that look sideways are left out."""
        return super().seen_box(*(some.take(np.setdiff1d(np.arange(len(some)), looking_sideways(some)))
                                  for some in cameras))

    def grid_box(self, cameras: Cameras) -> np.ndarray:
        return self.seen_box(cameras) / self.voxel_shape

    def box_within(self, bounds: np.ndarray, cameras: Cameras) -> np.ndarray:
        corners = torch.from_numpy(np.stack(np.meshgrid(*bounds.T), -1).reshape(8, 3))
        places, box = self.from_world(corners).numpy(), self.box(cameras)
        low, high = np.maximum(box[0], places.min(0)), np.minimum(box[1], places.max(0))
        if not (low < high).all():
            raise UserError(f'mesh_bounds {corners_in_words(bounds)} is not in what the training cameras see, which '
                            'look along -z and see nothing nearer than z = -1')
        return np.stack([low, high])

    def pixel_sides(self, cameras: Cameras) -> Tensor:
        """A picture is 2 wide."""
        return 2.0 / cameras.sizes[:, 1].double()

    def numbers(self) -> list[float]:
        return [self.near, self.far, True]


@dataclass(frozen=True)
class Unbounded(Space):
    """Space without bounds, which a field sees drawn together into a ball: the contraction of mip-NeRF 360
    (arXiv:2111.12077).

    A point x, in radii of a unit ball from its centre, stays where it is inside that ball. Outside it becomes
    (2 - 1/|x|) x/|x| (equation 10), so that infinity is at distance 2.
    """

    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of the unit ball, in scene units
    radius: float = 1.0  # of the unit ball, in scene units

    name, closed, has_far, contracts, horizon = 'unbounded', True, False, True, INFINITY

    @classmethod
    def around(cls, cameras: Cameras, near: float, far: float, surrounded: bool) -> Unbounded:
        """The space of training cameras.

        Where they surround the origin, they are just inside the unit ball around it. Else the ball is around their mean
        position, and reaches BEYOND_NEAR near bounds beyond the farthest of them: what is near is in it.
        """
        positions = cameras.poses[:, :, 3].double()
        centre = torch.zeros(3) if surrounded else positions.mean(0)
        farthest = float((positions - centre).norm(dim=-1).max())
        radius = max(1.01 * farthest, near) if surrounded else farthest + BEYOND_NEAR * near
        return cls(near, far, surrounded, tuple(centre.tolist()), radius)

    def from_centre(self, points: Tensor) -> Tensor:
        """World points [..., 3] in radii from the centre, not contracted."""
        return (points - constant(self.centre, points.device, points.dtype)) / self.radius

    def to_field(self, points: Tensor) -> Tensor:
        """Contracted: at most 2 long."""
        return contracted(self.from_centre(points))

    def grid_scale(self, points: Tensor) -> Tensor:
        """The cube root of the determinant of the contraction's Jacobian. Along a ray away from the centre a step
        shrinks more than that, across it less."""
        over = _over_distance(self.from_centre(points))[..., 0]
        return (over ** 4 * (2.0 - over) ** 2) ** (1 / 3) / self.radius

    def grid_rays(self, rays: Rays, voxel: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rays end a quarter of a voxel from infinity, or nearer to it."""
        origins, directions = self.from_centre(rays.origins), rays.directions / self.radius
        ends = origins.norm(dim=-1) + 4.0 / voxel  # lengths of rays, whose last point is 4 / voxel from the centre
        return origins, directions, rays.near[:, 0], ends / directions.norm(dim=-1)

    def grid_box(self, cameras: Cameras) -> np.ndarray:
        """What cameras see from near to infinity."""
        rays = self.rays(*cameras.spread_rays(BOX_RAYS), None if cameras.bounds is None else cameras.bounds[:, None])
        far = self.radius * torch.logspace(-1.0, 6.0, 100)
        depths = rays.near + torch.cat([torch.zeros(1), far])
        ends = self.to_field(rays.origins[:, None] + depths[..., None] * rays.viewdirs[:, None])
        return _holding(ends.flatten(0, 1))

    # Checkpoints

    def ball_numbers(self) -> list[float]:
        """The centre's coordinates and the radius."""
        return [*self.centre, self.radius]

    def with_ball(self, numbers: list[float] | None) -> Space:
        """A checkpoint without numbers is of a box up to the far bound, as in runs of the first versions."""
        if numbers is None:
            return Bounded(self.near, self.far, self.surrounded)
        *centre, radius = map(float, numbers)
        if len(centre) != 3 or not (radius > 0 and all(map(math.isfinite, numbers))):
            raise ValueError(f'a contraction of {numbers}')
        return replace(self, centre=tuple(centre), radius=radius)


def _ends(rays: Rays) -> Tensor:
    """Points [2 R, 3] at both bounds of rays."""
    return torch.cat([rays.origins + t * rays.directions for t in (rays.near, rays.far)])


def _holding(points: Tensor) -> np.ndarray:
    """The box [2, 3] float64 of points [N, 3]."""
    return torch.stack([points.amin(0), points.amax(0)]).double().numpy()


def looking_sideways(cameras: Cameras) -> np.ndarray:
    """Indices of the cameras of which a corner's ray, the most oblique of all pixels', does not go to -z."""
    _, directions = cameras.corner_rays()
    return np.flatnonzero((directions[..., 2] > -1e-6).any(-1))


def corners_in_words(box: np.ndarray) -> str:
    """A box [2, 3] for a message."""
    return ' to '.join(' '.join(f'{part:.4g}' for part in corner) for corner in box)


# The contraction, in radii from its centre


def contracted(x: Tensor) -> Tensor:
    """Points [..., 3] in radii, contracted (equation 10)."""
    over = _over_distance(x)
    return (2.0 - over) * over * x


def shrinkage(x: Tensor, directions: Tensor) -> Tensor:
    """[...] by how much the contraction shortens a small step from points x [..., 3] along directions [..., 3]: |J d| /
    |d|. The Jacobian shortens by 1/u^2 away from the centre and by (2 - 1/u)/u across, u = |x|."""
    along = (x * directions).sum(-1) ** 2 / ((x ** 2).sum(-1) * (directions ** 2).sum(-1)).clamp(min=1e-30)
    return _shrinkage(_over_distance(x)[..., 0], along.clamp(max=1.0))


def _shrinkage(over: Tensor, along: Tensor) -> Tensor:
    """`shrinkage` at a distance of 1 / over, in a direction to which the squared cosine is `along`."""
    shorter = (along * over ** 4 + (1.0 - along) * ((2.0 - over) * over) ** 2).sqrt()
    return torch.where(over < 1.0, shorter, 1.0)


def even_depths(origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, lengths: Tensor) -> Tensor:
    """Depths on straight rays, in radii, at which they have some lengths in contracted space.

    The length is summed up between so many places on the whole ray that lie evenly in w: w = x where |x| < 1, else 2 -
    1/|x| with the sign of x, where x is the distance from the place that is nearest to the centre.

    Args:
        origins, directions: [R, 3].
        near, far: [R] bounds, of which far is finite.
        lengths: [R, S], from near on.

    Returns:
        [R, S], far where the whole ray is not so long.
    """
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
    """A place on a line through the centre, contracted."""
    return torch.where(x.abs() < 1.0, x, x.sign() * (2.0 - 1.0 / x.abs().clamp(min=1.0)))


def _drawn_out(w: Tensor) -> Tensor:
    """The inverse of `_drawn_in`."""
    return torch.where(w.abs() < 1.0, w, w.sign() / (2.0 - w.abs()).clamp(min=1e-6))


def _over_distance(x: Tensor) -> Tensor:
    """[..., 1]: 1/|x|, and 1 inside the unit ball."""
    return 1.0 / x.norm(dim=-1, keepdim=True).clamp(min=1.0)
