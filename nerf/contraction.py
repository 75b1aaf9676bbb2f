"""Space without bounds drawn together into a ball: the contraction of mip-NeRF 360 (arXiv:2111.12077).

A point x, in radii of a unit ball from its centre, stays where it is inside that ball. Outside it becomes
(2 - 1/|x|) x/|x| (equation 10), so that infinity is at distance 2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


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
        return (points - points.new_tensor(self.centre)) / self.radius

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
    over = _over_distance(x)[..., 0]
    along = (x * directions).sum(-1) ** 2 / ((x ** 2).sum(-1) * (directions ** 2).sum(-1)).clamp(min=1e-30)
    along = along.clamp(max=1.0)  # the squared cosine
    shorter = (along * over ** 4 + (1.0 - along) * ((2.0 - over) * over) ** 2).sqrt()
    return torch.where(over < 1.0, shorter, 1.0)


def _over_distance(x: Tensor) -> Tensor:
    """[..., 1]: 1/|x|, and 1 inside the unit ball."""
    return 1.0 / x.norm(dim=-1, keepdim=True).clamp(min=1.0)
