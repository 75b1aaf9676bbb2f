"""Alignment of cameras with pictures: by how much each camera must move, and each lens grow, to see what was taken.

Pictures drawn from a scene, with their depths, are compared with taken ones. Robust Gauss-Newton steps (Lucas and
Kanade 1981) find a twist of each camera: turns (radians) and shifts (scene units) along its right, up and backward
axes. All cameras of a lens share one change of the logarithm of its focal length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nerf.cameras import Cameras


@dataclass(frozen=True)
class AlignmentRules:
    """Numbers that decide an alignment; tried on 5 views of fox_pinhole that were held out of 21."""

    steps: int = 6  # Gauss-Newton steps between two drawings
    robust: float = 3.0  # multiple of the median difference at which a pixel's weight is half
    blur: float = 1.0  # pixels, standard deviation of the filter on both pictures, for gradients that reach further
    opaque: float = 0.5  # least opacity of a drawn pixel that counts
    alike: float = 25.0  # neighbouring pixels whose differences tell no more than one's
    # Standard deviations of what is expected before pictures are seen; blank walls leave a camera where it is
    turn: float = 0.01  # radians
    shift: float = 0.003  # in median depths of the view
    focal: float = 0.005  # of the logarithm of the focal length


RULES = AlignmentRules()


class Pair(NamedTuple):
    """Taken and drawn picture of one camera, filtered, with everything that does not change while it is aligned."""
    taken: Tensor  # [3, H, W]
    drawn: Tensor  # [3, H, W]
    counts: Tensor  # [H, W] bool: pixels that decide
    motion: Tensor  # [H, W, 2, 7] of `pixel_motion`
    unit: Tensor  # [7] standard deviations expected of a twist and of the focal length's logarithm

    @classmethod
    def of(cls, taken: Tensor, drawn: Tensor, disparity: Tensor, counts: Tensor, camera: Cameras,
           rules: AlignmentRules = RULES) -> Pair:
        """Pair of pictures [H, W, 3] of one camera, from the disparities [H, W] of the drawn one (1 / depth, 0 for
        infinity). `counts` [H, W] excludes what is masked, transparent or kept back."""
        seen = disparity[counts & (disparity > 0)]
        depth = 1.0 / seen.median() if len(seen) else disparity.new_ones(())
        expected = [rules.turn] * 3 + [rules.shift * float(depth)] * 3 + [rules.focal]
        return cls(*(blurred(picture.permute(2, 0, 1), rules.blur) for picture in (taken, drawn)), counts,
                   pixel_motion(camera, disparity), torch.tensor(expected))

    def normal_equations(self, change: Tensor, rules: AlignmentRules = RULES) -> tuple[Tensor, Tensor]:
        """Matrix [7, 7] and right side [7] float64 of the step that follows a change [7], all in `unit`. The expected
        deviations have no part in them."""
        place = self.motion @ (change * self.unit).float()  # [H, W, 2] pixels to the right and down
        at, inside = sampled(torch.cat([self.taken, gradients(self.taken).flatten(0, 1)]), place)
        difference = self.drawn - at[:3]
        # The mean of both pictures' gradients makes a step's error of third order (Benhimane and Malis 2004).
        slope = 0.5 * (at[3:].unflatten(0, (3, 2)) + gradients(self.drawn))  # [3, 2, H, W]
        counts = self.counts & inside
        difference, slope = difference[:, counts], slope[:, :, counts]  # [3, P], [3, 2, P]
        if not difference.numel():
            return torch.zeros(7, 7, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)
        scale = rules.robust * difference.abs().median().clamp(min=1e-4)
        weight = 1.0 / (1.0 + (difference / scale) ** 2) / (rules.alike * scale ** 2)
        jacobian = torch.einsum('cxp,pxk->cpk', slope, self.motion[counts]) * self.unit
        matrix = torch.einsum('cp,cpk,cpl->kl', weight, jacobian, jacobian)
        return matrix.double(), torch.einsum('cp,cp,cpk->k', weight, difference, jacobian).double()


def pixel_motion(camera: Cameras, disparity: Tensor) -> Tensor:
    """Motion [H, W, 2, 7] of what one camera sees, in pixels to the right and down, by a small change of the camera:
    its twist (radians, scene units; see `moved`) and its focal length's logarithm. Any lens will do, as its derivatives
    are differences of rays. Disparities [H, W] are 1 / depth along rays of `Cameras.single_rays`."""
    still = replace(camera, poses=torch.eye(3, 4)[None])
    row, column = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in disparity.shape), indexing='ij')

    def ahead(down: float, right: float) -> Tensor:
        return still.single_rays(torch.zeros_like(row, dtype=torch.long), row + down, column + right)[1].double()
    rays = ahead(0.0, 0.0)
    unit = F.normalize(rays, dim=-1)
    across = torch.stack([F.normalize(ahead(*half), dim=-1) - F.normalize(ahead(*(-part for part in half)), dim=-1)
                          for half in ((0.0, 0.5), (0.5, 0.0))], -1)  # [H, W, 3, 2] of a unit direction by pixels
    shifted = -torch.eye(3, dtype=torch.float64) * (disparity / rays.norm(dim=-1))[..., None, None]
    moves = torch.linalg.lstsq(across, torch.cat([cross_matrix(unit), shifted], -1)).solution  # [H, W, 2, 6]
    cx, cy = (camera.intrinsics[0, 2:] - camera.within).tolist()
    grows = torch.stack([column - cx, row - cy], -1)[..., None]
    return torch.cat([moves, grows], -1).float()


def aligned(pairs: Sequence[Pair], lens: Tensor | None, rules: AlignmentRules = RULES) -> Tensor:
    """Changes [V, 7] float64 of V cameras, twist and logarithm of the focal length, that align their pairs. Cameras of
    one lens [V] int64 share the last one; None: it is 0."""
    change = torch.zeros(len(pairs), 7, dtype=torch.float64)
    for _ in range(rules.steps):
        equations = [pair.normal_equations(part, rules) for pair, part in zip(pairs, change)]
        change += solved(*map(torch.stack, zip(*equations)), change, lens)
    return change * torch.stack([pair.unit for pair in pairs]).double()


def solved(matrix: Tensor, right: Tensor, change: Tensor, lens: Tensor | None) -> Tensor:
    """Step [V, 7] from a change [V, 7] by normal equations [V, 7, 7] and [V, 7] of V views, in units of the expected
    deviations from no change, which each view's twist and each lens's focal length have once."""
    expected = torch.tensor([1.0] * 6 + [0.0], dtype=matrix.dtype)
    matrix, right = matrix + expected.diag(), right - expected * change
    twist = torch.linalg.solve(matrix[:, :6, :6], torch.stack([right[:, :6], matrix[:, :6, 6]], -1))  # [V, 6, 2]
    if lens is None:
        return F.pad(twist[..., 0], (0, 1))
    # Schur complement: equations of the focal lengths alone, added up for each lens
    rest = torch.stack([right[:, 6], matrix[:, 6, 6]], -1) - (matrix[:, 6:, :6] @ twist)[:, 0]
    force, stiff = rest.new_zeros(int(lens.max()) + 1, 2).index_add_(0, lens, rest)[lens].unbind(-1)
    focal = ((force - change[:, 6]) / (stiff + 1.0))[:, None]
    return torch.cat([twist[..., 0] - focal * twist[..., 1], focal], -1)


def without_drift(poses: Tensor, twists: Tensor) -> Tensor:
    """Twists [V, 6] without their means: together the cameras neither turn, shift nor grow apart. Pictures of the scene
    cannot tell such a change of all poses [V, 3, 4] from one of the scene."""
    axes, positions = poses[:, :, :3], poses[:, :, 3]
    turn, shift = (axes @ twists[:, :3, None])[..., 0], (axes @ twists[:, 3:, None])[..., 0]
    around = positions - positions.mean(0)
    common = turn.mean(0)
    turn, shift = turn - common, shift - shift.mean(0) - torch.linalg.cross(common.expand_as(around), around)
    shift = shift - (shift * around).sum() / (around ** 2).sum().clamp(min=1e-12) * around
    back = axes.transpose(1, 2)
    return torch.cat([(back @ turn[..., None])[..., 0], (back @ shift[..., None])[..., 0]], -1)


def moved(poses: Tensor, twists: Tensor) -> Tensor:
    """Poses [V, 3, 4] after twists [V, 6]: turns as rotation vectors in radians, and shifts, both along the axes of the
    cameras before."""
    axes = poses[:, :, :3]
    turn = torch.linalg.matrix_exp(cross_matrix(twists[:, :3]))
    return torch.cat([axes @ turn, poses[:, :, 3:] + axes @ twists[:, 3:, None]], -1)


def cross_matrix(vectors: Tensor) -> Tensor:
    """Matrices [..., 3, 3] of the cross product, with vectors [..., 3] as its left factor."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def blurred(picture: Tensor, deviation: float) -> Tensor:
    """Picture [C, H, W] after a Gaussian filter of some standard deviation in pixels; edges repeat. 0: no filter."""
    if not deviation:
        return picture
    reach = min(int(3.0 * deviation + 0.5), min(picture.shape[1:]) - 1)
    places = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (places / deviation) ** 2)
    weights = (weights / weights.sum()).to(picture.dtype)
    padded = F.pad(picture[None], [reach] * 4, 'replicate')[0][:, None]
    return F.conv2d(F.conv2d(padded, weights[None, None, None]), weights[None, None, :, None])[:, 0]


def gradients(picture: Tensor) -> Tensor:
    """Central differences [C, 2, H, W] of a picture [C, H, W], to the right and down, per pixel."""
    padded = F.pad(picture[None], [1] * 4, 'replicate')[0]
    return 0.5 * torch.stack([padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]],
                             1)


def sampled(picture: Tensor, move: Tensor) -> tuple[Tensor, Tensor]:
    """Values [C, H, W] of a picture [C, H, W] at its pixels moved by [H, W, 2] pixels to the right and down, between
    pixels by linear interpolation, and whether these places are inside [H, W]."""
    height, width = picture.shape[1:]
    row, column = torch.meshgrid(*(torch.arange(n) for n in (height, width)), indexing='ij')
    share = 2.0 * (torch.stack([column, row], -1) + move) / torch.tensor([width - 1, height - 1]) - 1.0
    values = F.grid_sample(picture[None], share[None], align_corners=True, padding_mode='border')[0]
    return values, (share.abs() <= 1.0).all(-1)
