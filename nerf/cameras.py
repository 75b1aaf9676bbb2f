"""Cameras, each with its intrinsics, lens, size and pose, and the rays through their pixels.

Rays of whole views come from `get_rays`, of single pixels from `pixel_rays` (from whole views if an edit parts them).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from nerf.runtime.errors import UserError
from run_nerf_helpers import get_rays, pixel_rays, to_world

NEWTON_STEPS = 12  # of the undistortion; strong lenses need six for float32's precision
COEFFICIENTS = ('k1', 'k2', 'p1', 'p2', 'k3', 'k4', 'k5', 'k6')  # in OpenCV's order


@dataclass(frozen=True)
class Cameras:
    """V cameras, all tensors on one device. Lenses are OpenCV's: k1 to k6 radial, p1 and p2 tangential. Fisheyes have
    its equidistant model with k1 to k4."""
    poses: Tensor  # [V, 3, 4] float32 camera-to-world, OpenGL axes: x right, y up, looking along -z
    intrinsics: Tensor  # [V, 4] float64: fx, fy, cx, cy in pixels
    sizes: Tensor  # [V, 2] int64: height, width in pixels
    distortion: Tensor | None = None  # [V, 8] float32 in the order of COEFFICIENTS; None: lenses distort nothing
    fisheye: Tensor | None = None  # [V] bool; None: no camera is a fisheye
    bounds: Tensor | None = None  # [V, 2] float32 near and far bound of each view's rays; None: the space's
    within: float = 0.0  # place of a ray in its pixel, along both sides: 0.0 the upper left corner, 0.5 the centre

    @classmethod
    def of_one_kind(cls, poses: np.ndarray, K: np.ndarray, H: int, W: int) -> Cameras:
        """Cameras at poses [V, 3, 4] with the same intrinsics K [3, 3] and size, without distortion."""
        intrinsics = torch.tensor([K[0, 0], K[1, 1], K[0, 2], K[1, 2]], dtype=torch.float64)
        return cls(torch.as_tensor(np.asarray(poses, np.float32)), intrinsics.repeat(len(poses), 1),
                   torch.tensor([H, W]).repeat(len(poses), 1))

    def __len__(self) -> int:
        return len(self.poses)

    @property
    def device(self) -> torch.device:
        return self.poses.device

    def size(self, view: int) -> tuple[int, int]:
        """Height and width of a view. This waits for the device."""
        return tuple(self.sizes[view].tolist())

    def one_size(self) -> tuple[int, int] | None:
        """Height and width of all views; None: views differ in size. This waits for the device."""
        return self.size(0) if len(self) and bool((self.sizes == self.sizes[0]).all()) else None

    def to(self, device: torch.device) -> Cameras:
        return self._each(lambda part: part.to(device))

    def take(self, views: np.ndarray | Tensor | list[int]) -> Cameras:
        """Cameras of some views, in that order."""
        views = torch.as_tensor(views, dtype=torch.int64, device=self.device)
        return self._each(lambda part: part[views])

    def posed(self, poses: np.ndarray) -> Cameras:
        """Cameras of the first view's intrinsics, lens and size at poses [M, 3, 4], with the scene's bounds."""
        cameras = self.take([0] * len(poses))
        return replace(cameras, poses=torch.as_tensor(np.asarray(poses, np.float32), device=self.device), bounds=None)

    def scaled(self, factor: int) -> Cameras:
        """Views at 1/factor of their size, rounded down (0 or 1: full size). A view without pixels is a UserError."""
        sizes = self.sizes // max(factor, 1)
        if not sizes.all():
            height, width = self.size(int((sizes == 0).any(1).nonzero()[0, 0]))
            raise UserError(f'render_factor {factor} leaves nothing of {width}x{height} pixels; choose a smaller one')
        across = (sizes.double() / self.sizes.double()).flip(1)  # [V, 2]: of x and of y
        return replace(self, sizes=sizes, intrinsics=torch.cat([across, across], 1) * self.intrinsics)

    def rays(self, view: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """World rays, origins and directions [..., 3], through places [...] in pixels of views [...], on the cameras'
        device. Directions have length 1 along the camera's axis; fisheyes, which see sideways, have unit directions."""
        return self.single_rays(view, row, column) if single_rays_agree() else self._looked_up(view, row, column)

    def single_rays(self, view: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """`rays` by `pixel_rays`, also after an edit to `get_rays`."""
        K, poses = self.matrix(view), self.poses[view]
        if self.distortion is None:
            return pixel_rays(row, column, K, poses)
        fx, cx, fy, cy = K[..., 0, 0], K[..., 0, 2], K[..., 1, 1], K[..., 1, 2]
        bent = ((column - cx) / fx).double(), ((row - cy) / fy).double()
        lens = self.distortion[view].double().unbind(-1)
        x, y = undistorted(*bent, lens)  # a pinhole has the ray at these places
        origins, directions = pixel_rays(y * fy + cy, x * fx + cx, K, poses)
        if self.fisheye is not None:
            right, down, ahead = (part.float() for part in fisheye_direction(*bent, lens))
            wide = to_world(torch.stack([right, -down, -ahead], -1), poses)[1]
            directions = torch.where(self.fisheye[view][..., None], wide, directions)
        return origins, directions

    def view_rays(self, view: int) -> tuple[Tensor, Tensor]:
        """Rays of all pixels of a view: origins and directions, [H, W, 3] each."""
        height, width = self.size(view)
        if self.is_pinhole(view):
            return get_rays(height, width, self.matrix(view), self.poses[view])
        row, column = torch.meshgrid(*(torch.arange(n, device=self.device) for n in (height, width)), indexing='ij')
        return self.single_rays(torch.full_like(row, view), row, column)

    def is_pinhole(self, view: int) -> bool:
        """Whether a view's lens distorts nothing. This waits for the device."""
        fisheye = self.fisheye is not None and bool(self.fisheye[view])
        return self.distortion is None or not (fisheye or self.distortion[view].any())

    def matrix(self, view: int | Tensor) -> Tensor:
        """Intrinsics K [..., 3, 3] float32 of views [...], with the principal point shifted by `within`."""
        fx, fy, cx, cy = self.intrinsics[view].float().unbind(-1)
        zero, one = torch.zeros_like(fx), torch.ones_like(fx)
        rows = [fx, zero, cx - self.within], [zero, fy, cy - self.within], [zero, zero, one]
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    def _looked_up(self, view: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """`rays` of the nearest pixels in whole views."""
        found = torch.empty(2, *view.shape, 3, device=self.device)
        for one in view.unique().tolist():
            here, (height, width) = view == one, self.size(one)
            places = [part[here].round().long().clamp(0, side - 1) for part, side in ((row, height), (column, width))]
            found[:, here] = torch.stack([part[tuple(places)] for part in self.view_rays(one)])
        return tuple(found)

    def corner_rays(self) -> tuple[Tensor, Tensor]:
        """Rays of each view's four corner pixels: origins and directions, [V, 4, 3] each."""
        return self.spread_rays(2)

    def spread_rays(self, side: int) -> tuple[Tensor, Tensor]:
        """Rays spread evenly over each view, side x side, from corner pixel to corner pixel; most go between pixels:
        origins and directions, [V, side * side, 3] each."""
        share = torch.linspace(0.0, 1.0, side, device=self.device)
        places = (self.sizes - 1)[:, None] * torch.cartesian_prod(share, share)  # [V, side * side, 2]
        view = torch.arange(len(self), device=self.device)[:, None].expand(-1, side * side)
        return self.rays(view, places[..., 0], places[..., 1])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Cameras:
        return Cameras(*(None if part is None else change(part) for part in (
            self.poses, self.intrinsics, self.sizes, self.distortion, self.fisheye, self.bounds)), within=self.within)


@cache
def single_rays_agree() -> bool:
    """Whether `pixel_rays` gives single pixels the rays that `get_rays` gives a whole view; an edit can end that."""
    K = torch.tensor([[9.0, 0.0, 3.2], [0.0, 8.0, 2.1], [0.0, 0.0, 1.0]])
    c2w = torch.tensor([[0.36, 0.48, -0.8, 1.0], [-0.8, 0.6, 0.0, -2.0], [0.48, 0.64, 0.6, 3.0]])
    row, column = torch.meshgrid(torch.arange(5), torch.arange(7), indexing='ij')
    return same_rays(get_rays(5, 7, K, c2w), pixel_rays(row, column, K.expand(5, 7, 3, 3), c2w.expand(5, 7, 3, 4)))


def same_rays(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> bool:
    """Whether origins and directions differ by rounding alone."""
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(ours, theirs))


def undistorted(x: Tensor, y: Tensor, lens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pinhole's coordinates of distorted ones [...], both in focal lengths from the principal point, by coefficients
    [...] as COEFFICIENTS: OpenCV's model, inverted by Newton's method. They mean nothing where it is not one-to-one."""
    (k1, k2, p1, p2, k3, k4, k5, k6), goal_x, goal_y = lens, x, y
    for _ in range(NEWTON_STEPS):
        r2 = x * x + y * y
        over, under = 1 + r2 * (k1 + r2 * (k2 + r2 * k3)), 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
        radial = over / under
        slope = (k1 + r2 * (2 * k2 + r2 * 3 * k3) - radial * (k4 + r2 * (2 * k5 + r2 * 3 * k6))) / under  # by r2
        miss_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x) - goal_x
        miss_y = y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y) - goal_y
        xx = radial + 2 * x * x * slope + 2 * p1 * y + 6 * p2 * x
        yy = radial + 2 * y * y * slope + 2 * p2 * x + 6 * p1 * y
        xy = 2 * x * y * slope + 2 * p1 * x + 2 * p2 * y
        area = xx * yy - xy * xy
        area = torch.where(area.abs() < 1e-9, 1e-9, area)
        x, y = x - (yy * miss_x - xy * miss_y) / area, y - (xx * miss_y - xy * miss_x) / area
    return x, y


def fisheye_direction(x: Tensor, y: Tensor, lens: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Parts [...] of a fisheye's unit direction, to the right, down and ahead; arguments as for `undistorted`. OpenCV's
    lens bends an angle t to t (1 + k1 t^2 + k2 t^4 + k3 t^6 + k4 t^8), inverted by Newton's method."""
    k1, k2, _, _, k3, k4, _, _ = lens
    bent = t = torch.sqrt(x * x + y * y)
    for _ in range(NEWTON_STEPS):
        t2 = t * t
        value = t * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))
        slope = 1 + t2 * (3 * k1 + t2 * (5 * k2 + t2 * (7 * k3 + t2 * 9 * k4)))
        t = t - (value - bent) / torch.where(slope.abs() < 1e-9, 1e-9, slope)
    across = torch.where(bent < 1e-9, 1.0, torch.sin(t) / bent.clamp(min=1e-9))
    return across * x, across * y, torch.cos(t)
