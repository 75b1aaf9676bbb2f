"""Where the outlines of a surface are in what the training cameras see."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from nerf.meshes.projection import pixel_of
from nerf.meshes.views import SOLID, SeenFrom

POINTS = 20_000  # of the surface that are looked at
TANGENT = 0.1  # cosine between a normal and a line of sight, up to which a point is at an outline
FEWEST = 100  # points at outlines that tell


def outline_shift(views: list[SeenFrom], vertices: np.ndarray, normals: np.ndarray, step: float) -> float:
    """How far a surface is to be moved outwards to have the outlines that the views show, where half of the light
    passes.

    Where rays meet a blurred surface head on, they are stopped deeper in it than where they pass along it; and pictures
    tell most clearly where outlines are.

    Args:
        vertices, normals: [V, 3] of the surface, the normals outwards.
        step: of the grid; it is moved by two at most.
    """
    some = np.random.default_rng(0).permutation(len(vertices))[:POINTS]
    points, normals = vertices[some].astype(np.float64), normals[some].astype(np.float64)
    shifts, opacities = np.append(np.linspace(-2.0, 2.0, 17), 4.0) * step, []
    for view in views:
        away = points - view.place
        along = np.abs((away * normals).sum(1)) < TANGENT * np.linalg.norm(away, axis=1)
        places = points[along] + shifts[:, None, None] * normals[along]
        shown = _opacity(view, places.reshape(-1, 3)).reshape(len(shifts), -1)
        opacities.append(shown[:-1, (shown[-1] < 0.02) & (shown[0] > SOLID)])  # nothing is behind its outline
    means = np.concatenate(opacities, 1)
    if means.shape[1] < FEWEST:
        return 0.0
    return float(np.interp(0.5, means.mean(1)[::-1], shifts[-2::-1]))  # opacity falls outwards


def _opacity(view: SeenFrom, points: np.ndarray) -> np.ndarray:
    """The opacity [N] that a view shows where points [N, 3] are; 0 outside it."""
    row, column, _ = pixel_of(*(points - view.place).T.copy(), view.rotation, view.focal, *view.opacity.shape)
    return ndimage.map_coordinates(view.opacity, np.stack([row, column]), order=1, mode='constant')
