"""Cameras of their own intrinsics, lens, size and pose, and the rays through their pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nerf.runtime.errors import UserError
from run_nerf_helpers import to_world

NEWTON_STEPS = 12  # of the undistortion; strong lenses need six to be exact in float32
COEFFICIENTS = ('k1', 'k2', 'p1', 'p2', 'k3', 'k4', 'k5', 'k6')  # in OpenCV's order


@dataclass(frozen=True)
class Cameras:
    """V cameras. All tensors are on one device.

    The lens is OpenCV's: k1 to k6 radial, p1 and p2 tangential; or, for a fisheye, its equidistant model with k1 to k4.
    """

    poses: Tensor  # [V, 3, 4] float32 camera-to-world, OpenGL axes: x right, y up, looking along -z
    intrinsics: Tensor  # [V, 4] float64: fx, fy, cx, cy in pixels
    sizes: Tensor  # [V, 2] int64: height, width in pixels
    distortion: Tensor | None = None  # [V, 8] float32, as in COEFFICIENTS; None: no camera has any
    fisheye: Tensor | None = None  # [V] bool; None: no camera is one
    bounds: Tensor | None = None  # [V, 2] float32 near and far bound of each view's rays; None: the scene's
    within: float = 0.0  # where in a pixel its ray goes, along both sides: 0.0 its upper left corner, 0.5 its centre

    @classmethod
    def of_one_kind(cls, poses: np.ndarray, K: np.ndarray, H: int, W: int) -> Cameras:
        """Cameras [V, 3, 4] that share intrinsics K [3, 3] and a size, without distortion."""
        count = len(poses)
        intrinsics = torch.tensor([K[0, 0], K[1, 1], K[0, 2], K[1, 2]], dtype=torch.float64)
        return cls(poses=torch.as_tensor(np.asarray(poses, np.float32)),
                   intrinsics=intrinsics.repeat(count, 1), sizes=torch.tensor([H, W]).repeat(count, 1))

    def __len__(self) -> int:
        return len(self.poses)

    @property
    def device(self) -> torch.device:
        return self.poses.device

    def size(self, view: int) -> tuple[int, int]:
        """Height and width of a view; waits for the device."""
        height, width = self.sizes[view].tolist()
        return height, width

    def one_size(self) -> tuple[int, int] | None:
        """Height and width where all views share them, else None; waits for the device."""
        return self.size(0) if len(self) and bool((self.sizes == self.sizes[0]).all()) else None

    def to(self, device: torch.device) -> Cameras:
        return self._each(lambda part: part.to(device))

    def take(self, views: np.ndarray | Tensor | list[int]) -> Cameras:
        """The cameras of some views, in that order."""
        views = torch.as_tensor(views, dtype=torch.int64, device=self.device)
        return self._each(lambda part: part[views])

    def posed(self, poses: np.ndarray) -> Cameras:
        """Cameras of the first view's intrinsics, lens and size at poses [M, 3, 4], with the scene's bounds."""
        cameras = self.take([0] * len(poses))
        return replace(cameras, poses=torch.as_tensor(np.asarray(poses, np.float32), device=self.device), bounds=None)

    def scaled(self, factor: int) -> Cameras:
        """The same views at 1/factor of the size, rounded down (0 or 1: full size).

        Raises:
            UserError: nothing would be left of a view.
        """
        sizes = self.sizes // max(factor, 1)
        if not sizes.all():
            height, width = self.sizes[int((sizes == 0).any(1).nonzero()[0, 0])].tolist()
            raise UserError(f'render_factor {factor} leaves nothing of {width}x{height} pixels; choose a smaller one')
        across = (sizes.double() / self.sizes.double()).flip(1)  # [V, 2]: of x and of y
        return replace(self, sizes=sizes, intrinsics=torch.cat([across, across], 1) * self.intrinsics)

    def rays(self, view: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """World rays through pixels.

        Args:
            view, row, column: [...] integers on the cameras' device.

        Returns:
            origins, directions: [..., 3] each. Directions have length 1 along the camera's axis; a fisheye's, which can
            look sideways, have length 1.
        """
        fx, fy, cx, cy = self.intrinsics[view].float().unbind(-1)
        x, y = (column + self.within - cx) / fx, (row + self.within - cy) / fy
        axis = torch.ones_like(x)
        if self.distortion is not None:
            lens = self.distortion[view].double().unbind(-1)
            bent, x, y = (x.double(), y.double()), *(part.float() for part in undistorted(x.double(), y.double(), lens))
            if self.fisheye is not None:
                wide = self.fisheye[view]
                x, y, axis = (torch.where(wide, of_fisheye.float(), part)
                              for of_fisheye, part in zip(fisheye_direction(*bent, lens), (x, y, axis)))
        return to_world(torch.stack([x, -y, -axis], -1), self.poses[view])

    def view_rays(self, view: int) -> tuple[Tensor, Tensor]:
        """The rays of all pixels of a view: origins and directions, [H, W, 3] each."""
        height, width = self.size(view)
        row, column = torch.meshgrid(torch.arange(height, device=self.device),
                                     torch.arange(width, device=self.device), indexing='ij')
        return self.rays(torch.full_like(row, view), row, column)

    def corner_rays(self) -> tuple[Tensor, Tensor]:
        """The rays of each view's four corner pixels: origins and directions, [V, 4, 3] each."""
        return self.spread_rays(2)

    def spread_rays(self, side: int) -> tuple[Tensor, Tensor]:
        """Rays spread evenly over each view, side x side, from corner pixel to corner pixel: origins and directions,
        [V, side * side, 3] each. Others go between pixels."""
        last = (self.sizes - 1)[:, None]  # [V, 1, 2]
        share = torch.linspace(0.0, 1.0, side, device=self.device)
        places = last * torch.cartesian_prod(share, share)
        view = torch.arange(len(self), device=self.device)[:, None].expand(-1, side * side)
        return self.rays(view, places[..., 0], places[..., 1])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Cameras:
        return Cameras(*(None if part is None else change(part) for part in (
            self.poses, self.intrinsics, self.sizes, self.distortion, self.fisheye, self.bounds)), within=self.within)


def undistorted(x: Tensor, y: Tensor, lens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Inverts OpenCV's lens model by Newton's method, a fixed number of steps.

    Args:
        x, y: [...] distorted coordinates, in focal lengths from the principal point.
        lens: coefficients in the order of COEFFICIENTS, each [...].

    Returns:
        [...] each: coordinates that a pinhole would have. Where the model is not one-to-one they mean nothing.
    """
    k1, k2, p1, p2, k3, k4, k5, k6 = lens
    goal_x, goal_y = x, y
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
    """Inverts OpenCV's fisheye model: the angle from the axis is bent to t (1 + k1 t^2 + k2 t^4 + k3 t^6 + k4 t^8).

    Args:
        x, y, lens: as for `undistorted`.

    Returns:
        [...] each: the unit direction's parts to the right, down and along the axis.
    """
    k1, k2, _, _, k3, k4, _, _ = lens
    bent = torch.sqrt(x * x + y * y)
    t = bent
    for _ in range(NEWTON_STEPS):
        t2 = t * t
        value = t * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))
        slope = 1 + t2 * (3 * k1 + t2 * (5 * k2 + t2 * (7 * k3 + t2 * 9 * k4)))
        t = t - (value - bent) / torch.where(slope.abs() < 1e-9, 1e-9, slope)
    across = torch.where(bent < 1e-9, 1.0, torch.sin(t) / bent.clamp(min=1e-9))
    return across * x, across * y, torch.cos(t)
