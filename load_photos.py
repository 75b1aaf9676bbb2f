"""Photographs with cameras of their own: transforms.json, as nerfstudio and instant-ngp write it, and COLMAP models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Capture:
    """Photographs of a scene and their cameras, in the coordinates of the file that they come from."""

    paths: list[Path]  # of the photographs, in the order of their names
    images: list[np.ndarray]  # [H, W, 3 or 4] uint8, all of one number of channels, already reduced by `factor`
    masks: list[np.ndarray] | None  # [H, W] bool, True: pixels to train on; None: all
    poses: np.ndarray  # [N, 3, 4] float64 camera-to-world, OpenGL axes: x right, y up, looking along -z; orthonormal
    intrinsics: np.ndarray  # [N, 4] float64: fx, fy, cx, cy in pixels of `images`; a pixel's centre is at +0.5
    distortion: np.ndarray | None  # [N, 8] float64, in the order of nerf.cameras.COEFFICIENTS; None: no camera has any
    fisheye: np.ndarray | None  # [N] bool; None: no camera is one
    i_train: np.ndarray
    i_val: np.ndarray
    i_test: np.ndarray
    points: np.ndarray | None = None  # [P, 3] float64 sparse points of the surfaces, same coordinates; None: not known
    seen: list[np.ndarray] | None = None  # for each image the indices of the points that it observes; None: not known


def load_transforms(datadir: str | Path, factor: int = 1, llffhold: int = 8, outside_files: bool = False) -> Capture:
    """Loads the photographs that datadir/transforms.json names."""
    raise NotImplementedError


def load_colmap(datadir: str | Path, factor: int = 1, llffhold: int = 8) -> Capture:
    """Loads the photographs of a COLMAP model."""
    raise NotImplementedError
