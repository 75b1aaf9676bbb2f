"""Lenses: the camera models of COLMAP and nerfstudio, and how far from its middle a lens is one-to-one."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nerf.cameras import COEFFICIENTS
from nerf.runtime.errors import UserError

# Parameters of each model in COLMAP's order (src/colmap/sensor/models.h). f is fx and fy; a radial k is k1.
PERSPECTIVE = {'SIMPLE_PINHOLE': 'f cx cy',
               'PINHOLE': 'fx fy cx cy',
               'SIMPLE_RADIAL': 'f cx cy k1',
               'RADIAL': 'f cx cy k1 k2',
               'OPENCV': 'fx fy cx cy k1 k2 p1 p2',
               'FULL_OPENCV': 'fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6'}
FISHEYE = {'OPENCV_FISHEYE': 'fx fy cx cy k1 k2 k3 k4',
           'SIMPLE_RADIAL_FISHEYE': 'f cx cy k1',
           'RADIAL_FISHEYE': 'f cx cy k1 k2',
           'SIMPLE_FISHEYE': 'f cx cy',
           'FISHEYE': 'fx fy cx cy'}
PARAMETERS = {name: tuple(text.split()) for name, text in (PERSPECTIVE | FISHEYE).items()}
LARGEST = 1e7  # largest value of any parameter


class Lens(NamedTuple):
    """Intrinsics and distortion of one camera, as in `Cameras`."""

    intrinsics: np.ndarray  # [4] float64: fx, fy, cx, cy in pixels
    distortion: np.ndarray  # [8] float64, in the order of COEFFICIENTS
    fisheye: bool
    size: tuple[float, float]  # width and height in pixels of the picture that the intrinsics are for


@dataclass(frozen=True)
class LensRules:
    """Numbers that decide which lenses are usable, set by hand."""

    least_share: float = 0.5  # of the way from a picture's middle to its border along which a lens must be one-to-one
    places: int = 8  # at which each side of the border is looked at
    steps: int = 500  # on the way to each place and beyond
    nearest: float = 1e-3  # first step, as a share of the way to the farthest place
    widest: float = 89.0  # degrees from the axis: the farthest that a lens which is no fisheye can see
    usual_view: float = 150.0  # degrees: widest usual field of view, across a picture, of a lens which is no fisheye
    usual_offset: float = 0.2  # of a picture's sides: farthest usual distance of the principal point from its middle


LENS_RULES = LensRules()


def lens_of(model: str, size: tuple[float, float], values: dict[str, float]) -> Lens:
    """Lens of a model in PARAMETERS for pictures of a size, from its parameters by name; missing distortion is 0. An
    impossible value is a ValueError with its name."""
    values = dict.fromkeys(('fx', 'fy'), values.get('f')) | values
    for name, value in values.items():
        if value is not None and not (1e-3 if name in ('fx', 'fy') else -LARGEST) <= value <= LARGEST:
            raise ValueError(f'{name} is {value:g}')
    return Lens(np.array([values[name] for name in ('fx', 'fy', 'cx', 'cy')], np.float64),
                np.array([values.get(name, 0.0) for name in COEFFICIENTS], np.float64), model in FISHEYE, size)


def with_sound_lenses(source: Path, names: Sequence[str], lenses: Sequence[Lens],
                      rules: LensRules = LENS_RULES) -> list[int]:
    """Indices of the photographs whose lens is one-to-one in most of the picture; a line says so of lenses that are not
    in all of it, and another of unusual focal lengths or principal points. If no photograph is left, it is a UserError.
    `names` are those of the photographs."""
    keys = [(lens.intrinsics.tobytes(), lens.distortion.tobytes(), lens.fisheye, lens.size) for lens in lenses]
    each = {key: one_to_one_share(lens, rules) for key, lens in dict(zip(keys, lenses)).items()}
    shares = np.array([each[key] for key in keys])

    def message(of: np.ndarray) -> str:
        worst = of[shares[of].argmin()]
        values = ', '.join(f'{name} {value:g}' for name, value in zip(COEFFICIENTS, lenses[worst].distortion) if value)
        return (f'{source}: the lens of {len(of)} of {len(names)} photographs, {names[worst]} for one ({values}), is '
                f'one-to-one only up to {100 * shares[worst]:.0f}% of the way from the middle to the border')

    advice = 'estimate the cameras again with a simpler camera model, or undistort the photographs'
    sound, folded = np.flatnonzero(shares >= rules.least_share), np.flatnonzero(shares < rules.least_share)
    if not len(sound):
        raise UserError(f'{message(folded)}, so it was estimated wrong; {advice}')
    if len(folded):
        print(f'warning: {message(folded)}; they are left out. {advice[0].upper()}{advice[1:]}', file=sys.stderr)
    if len(bent := np.flatnonzero((shares >= rules.least_share) & (shares < 1.0))):
        print(f'warning: {message(bent)}; pixels beyond get wrong rays. If the border stays blurred, {advice}',
              file=sys.stderr)
    _say_unusual(source, [names[i] for i in sound], [lenses[i] for i in sound], rules)
    return sound.tolist()


def _say_unusual(source: Path, names: Sequence[str], lenses: Sequence[Lens], rules: LensRules) -> None:
    """Prints a line if lenses have a focal length or principal point that is unusual for their pictures' size."""
    def unusual(lens: Lens) -> bool:
        (fx, fy, *middle), size = lens.intrinsics, np.array(lens.size)
        view = 0.0 if lens.fisheye else 2.0 * np.degrees(np.arctan(size / (2.0 * fx, 2.0 * fy))).max()
        return view > rules.usual_view or np.abs(middle / size - 0.5).max() > rules.usual_offset

    if some := [i for i, lens in enumerate(lenses) if unusual(lens)]:
        lens = lenses[some[0]]
        values = ', '.join(f'{name} {value:g}' for name, value in zip(('fx', 'fy', 'cx', 'cy'), lens.intrinsics))
        print(f'warning: {source}: the focal length or principal point of {len(some)} of {len(names)} photographs, '
              f'{names[some[0]]} for one, is unusual for its size, {lens.size[0]:g}x{lens.size[1]:g}: {values}. If the '
              'scene stays blurred, see whether they are for another size, or shares of a side', file=sys.stderr)


def one_to_one_share(lens: Lens, rules: LensRules = LENS_RULES) -> float:
    """Share of the way from the principal point to the picture's border along which the lens is one-to-one, where it is
    least; 1: in the whole picture.

    Rays of growing angle to the axis are followed, in the direction of each of some places on the border, up to where
    they leave the picture. The lens folds the picture where the Jacobian determinant of its distortion is no longer
    positive; beyond the fold, pixels have several rays or none.
    """
    if not lens.distortion.any():
        return 1.0
    border = _border(lens, rules.places)  # [B, 2]
    length = np.maximum(np.linalg.norm(border, axis=1), 1e-9)
    end = math.pi if lens.fisheye else max(math.tan(math.radians(rules.widest)), 2.0 * length.max())
    radius = np.geomspace(rules.nearest * length.max(), end, rules.steps)  # [S], of a fisheye the angle to the axis
    with np.errstate(all='ignore'):
        across = border / length[:, None]
        place, determinant = (_fisheye if lens.fisheye else _perspective)(
            lens.distortion, across[:, None] * radius[:, None])
        share = (place * across[:, None]).sum(-1) / length[:, None]  # [B, S] of the way to the border
        folds = ~(determinant > 0) if lens.fisheye else ~(determinant > 0) | (radius == radius[-1])
        first = np.where(folds.any(1), folds.argmax(1), len(radius) - 1)
    before = np.arange(len(radius)) < first[:, None]
    reached = np.where(before & np.isfinite(share), share, 0.0).max(1)
    return float(np.where(folds.any(1), np.minimum(reached, 1.0), 1.0).min())


def _border(lens: Lens, count: int) -> np.ndarray:
    """Places [4 * count, 2] on the border of a lens's picture, corners among them, in focal lengths from the principal
    point."""
    fx, fy, cx, cy = lens.intrinsics
    (width, height), way = lens.size, np.linspace(0.0, 1.0, count, endpoint=False)
    sides = [(way, 0.0), (1.0, way), (1.0 - way, 1.0), (0.0, 1.0 - way)]
    shares = np.concatenate([np.stack(np.broadcast_arrays(*side), -1) for side in sides])
    return (shares * [width, height] - [cx, cy]) / [fx, fy]


def _perspective(distortion: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distorted places [..., 2] of a pinhole's points [..., 2], and the determinant [...] of the distortion's Jacobian,
    by OpenCV's model; see `nerf.cameras.undistorted`."""
    (k1, k2, p1, p2, k3, k4, k5, k6), (x, y) = distortion, np.moveaxis(points, -1, 0)
    r2 = x * x + y * y
    over, under = 1 + r2 * (k1 + r2 * (k2 + r2 * k3)), 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
    radial = over / under
    slope = (k1 + r2 * (2 * k2 + r2 * 3 * k3) - radial * (k4 + r2 * (2 * k5 + r2 * 3 * k6))) / under  # by r2
    place = np.stack([x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
                      y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y)], -1)
    xx = radial + 2 * x * x * slope + 2 * p1 * y + 6 * p2 * x
    yy = radial + 2 * y * y * slope + 2 * p2 * x + 6 * p1 * y
    xy = 2 * x * y * slope + 2 * p1 * x + 2 * p2 * y
    return place, xx * yy - xy * xy


def _fisheye(distortion: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`_perspective` of a fisheye, for points whose distance from 0 is the angle to the axis: only the radial slope
    decides, as such a lens turns nothing; see `nerf.cameras.fisheye_direction`."""
    k1, k2, _, _, k3, k4, _, _ = distortion
    t2 = (points ** 2).sum(-1)
    place = points * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))[..., None]
    return place, 1 + t2 * (3 * k1 + t2 * (5 * k2 + t2 * (7 * k3 + t2 * 9 * k4)))
