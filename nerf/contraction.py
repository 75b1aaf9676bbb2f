"""Space without bounds drawn together into a ball: the contraction of mip-NeRF 360 (arXiv:2111.12077).

A point x, in radii of a unit ball from its centre, stays where it is inside that ball. Outside it becomes
(2 - 1/|x|) x/|x| (equation 10), so that infinity is at distance 2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nerf.runtime.devices import constant


class Contraction(NamedTuple):
    """Where the unit ball lies in a scene."""

    centre: tuple[float, float, float]  # in scene units
    radius: float  # in scene units

    @classmethod
    def of_numbers(cls, numbers: list[float]) -> Contraction:
        """Of the centre's coordinates and the radius, as in a checkpoint.

        Raises:
            TypeError, ValueError: they are broken.
        """
        *centre, radius = map(float, numbers)
        if len(centre) != 3 or not (radius > 0 and all(map(math.isfinite, numbers))):
            raise ValueError(f'a contraction of {numbers}')
        return cls(tuple(centre), radius)

    def numbers(self) -> list[float]:
        """What `of_numbers` takes."""
        return [*self.centre, self.radius]

    def from_centre(self, points: Tensor) -> Tensor:
        """Scene points [..., 3] in radii from the centre, not contracted."""
        return (points - constant(self.centre, points.device, points.dtype)) / self.radius

    def __call__(self, points: Tensor) -> Tensor:
        """Scene points [..., 3], contracted: at most 2 long."""
        return contracted(self.from_centre(points))

    def scale(self, points: Tensor) -> Tensor:
        """[...] contracted length per scene unit at scene points [..., 3]: the mean over directions, which is the cube
        root of the Jacobian's determinant. Along a ray away from the centre it is less, across it more."""
        over = _over_distance(self.from_centre(points))[..., 0]
        return (over ** 4 * (2.0 - over) ** 2) ** (1 / 3) / self.radius


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
