"""Simplification of a mesh: fewer faces on the same surface, by quadric error metrics (Garland & Heckbert 1997)."""

from __future__ import annotations

from itertools import chain, repeat

import fast_simplification
import numpy as np

from nerf.meshes.extraction import Density
from nerf.meshes.options import DEFAULTS, MeshSettings
from nerf.meshes.triangles import without_flaps


def fewer_faces(density: Density, vertices: np.ndarray, faces: np.ndarray, step: float, threshold: float,
                most: int = 0, limit: int = 0, settings: MeshSettings = DEFAULTS) -> tuple[np.ndarray, np.ndarray]:
    """Mesh with at most `most` faces on the surface where a density, or another value, has a threshold. If `most` is 0,
    faces are as few as leave all but `lost_share` of the surface as near as it was, within `near_steps` grid steps of
    the field's, and at most `limit`; 0: no limit."""
    if most:
        return simplified(vertices, faces, int(settings.spare * most)) if len(faces) > most else (vertices, faces)
    kept, within = (vertices, faces), settings.near_steps * step
    least = _share_near(density, *kept, within, threshold, settings.checked_points) - settings.lost_share
    for shrink in chain([settings.first_shrink], repeat(settings.shrink)):
        if len(kept[1]) <= settings.fewest_faces:
            break
        smaller = simplified(*kept, int(shrink * len(kept[1])))
        is_near = _share_near(density, *smaller, within, threshold, settings.checked_points) >= least
        if len(smaller[1]) < len(kept[1]) and is_near:
            kept = smaller
        elif shrink == settings.shrink:
            break
    return simplified(*kept, limit) if limit and len(kept[1]) > limit else kept


def simplified(vertices: np.ndarray, faces: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mesh of vertices [V, 3] and faces [F, 3] with about `count` faces."""
    vertices, faces = fast_simplification.simplify(np.ascontiguousarray(vertices, np.float32),
                                                   np.ascontiguousarray(faces, np.int32), target_count=count)
    return without_flaps(np.asarray(vertices, np.float32), np.asarray(faces, np.int64))


def _share_near(density: Density, vertices: np.ndarray, faces: np.ndarray, within: float, threshold: float,
                count: int) -> float:
    """Share of `count` points on a mesh that have the field's surface within a distance along the normal."""
    rng = np.random.default_rng(0)
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(normals, axis=1)
    face = rng.choice(len(faces), count, p=area / area.sum())
    weights = rng.dirichlet((1.0, 1.0, 1.0), count)
    points = (weights[:, :, None] * corners[face]).sum(1)
    move = within * normals[face] / np.maximum(area[face], 1e-12)[:, None]
    inside, outside = (density((points + way * move).astype(np.float32)) for way in (-1.0, 1.0))
    return float(((inside > threshold) & (outside <= threshold)).mean())
