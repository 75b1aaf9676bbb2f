"""Camera models of COLMAP that nerf/cameras.py can hold exactly, as lenses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nerf.cameras import COEFFICIENTS

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
# Models by their number in binary files
NUMBERS = ('SIMPLE_PINHOLE', 'PINHOLE', 'SIMPLE_RADIAL', 'RADIAL', 'OPENCV', 'OPENCV_FISHEYE', 'FULL_OPENCV', 'FOV',
           'SIMPLE_RADIAL_FISHEYE', 'RADIAL_FISHEYE', 'THIN_PRISM_FISHEYE', 'RAD_TAN_THIN_PRISM_FISHEYE',
           'SIMPLE_DIVISION', 'DIVISION', 'SIMPLE_FISHEYE', 'FISHEYE', 'EUCM', 'EQUIRECTANGULAR')
LARGEST = 1e7  # largest value of any parameter


class Lens(NamedTuple):
    """Intrinsics and distortion of one camera, as in `Cameras`."""

    intrinsics: np.ndarray  # [4] float64: fx, fy, cx, cy in pixels
    distortion: np.ndarray  # [8] float64, in the order of COEFFICIENTS
    fisheye: bool
    size: tuple[float, float]  # width and height in pixels of the picture that the intrinsics are for


def lens_of(model: str, size: tuple[float, float], values: dict[str, float]) -> Lens:
    """Lens of a camera model.

    Args:
        model: name of the model, in PARAMETERS.
        size: width and height in pixels of its picture.
        values: parameters of the camera by name; missing distortion is 0.

    Raises:
        ValueError: a value is impossible; the message has its name.
    """
    values = dict.fromkeys(('fx', 'fy'), values.get('f')) | values
    for name, value in values.items():
        if value is not None and not (1e-3 if name in ('fx', 'fy') else -LARGEST) <= value <= LARGEST:
            raise ValueError(f'{name} is {value:g}')
    return Lens(np.array([values[name] for name in ('fx', 'fy', 'cx', 'cy')], np.float64),
                np.array([values.get(name, 0.0) for name in COEFFICIENTS], np.float64), model in FISHEYE, size)
