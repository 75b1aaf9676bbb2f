"""Captures of known cameras, made in memory."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import look_at_origin

from nerf.cameras import Cameras
from nerf.captures.capture import Capture
from nerf.runtime.errors import UserError


def capture_of(poses: np.ndarray, images: list[np.ndarray] | None = None, intrinsics: np.ndarray | None = None,
               distortion: np.ndarray | None = None, fisheye: list[bool] | None = None,
               points: np.ndarray | None = None, seen: list[np.ndarray] | None = None,
               masks: list[np.ndarray] | None = None, focal: float = 40.0) -> Capture:
    """Photographs at poses [N, 3, 4], of 40x30 pixels unless `images` are given; all but the first are trained on."""
    everything = np.arange(len(poses))
    images = [np.full((30, 40, 3), 10 * i, np.uint8) for i in everything] if images is None else images
    if intrinsics is None:
        intrinsics = np.array([[focal, focal, image.shape[1] / 2, image.shape[0] / 2] for image in images])
    cameras = Cameras(poses=torch.tensor(np.asarray(poses), dtype=torch.float64),
                      intrinsics=torch.tensor(intrinsics, dtype=torch.float64),
                      sizes=torch.tensor([image.shape[:2] for image in images]),
                      distortion=None if distortion is None else torch.tensor(distortion, dtype=torch.float32),
                      fisheye=None if fisheye is None else torch.tensor(fisheye))
    return Capture([Path('photos') / f'{i:03d}.png' for i in everything], images, masks, cameras, everything[1:],
                   everything[:1], everything[:1], points=points, seen=seen)


def ring(azimuths, elevation: float = 30.0, distance=4.0) -> np.ndarray:
    """[N, 3, 4] cameras that look at the origin, z up; angles in degrees."""
    azimuths, elevation, distance = np.broadcast_arrays(azimuths, elevation, distance)
    return np.stack([look_at_origin(math.radians(a), math.radians(e), d)[:3]
                     for a, e, d in zip(azimuths, elevation, distance)])


def ball_of_points(count: int = 300) -> np.ndarray:
    """[count, 3] on the unit sphere around the origin."""
    points = np.random.default_rng(0).normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def change(folder: Path, *frames: dict, **top) -> None:
    """Changes values of transforms.json, and of its first frames; None removes one."""
    path = folder / 'transforms.json'
    meta = json.loads(path.read_text()) | top
    for frame, values in zip(meta['frames'], frames):
        frame |= values
    for part in (meta, *meta['frames']):
        for key in [key for key, value in part.items() if value is None]:
            del part[key]
    path.write_text(json.dumps(meta))


def refused(job, *words: str) -> None:
    """Asserts that a job raises a UserError with some words."""
    with pytest.raises(UserError) as error:
        job()
    for word in words:
        assert word in str(error.value)
