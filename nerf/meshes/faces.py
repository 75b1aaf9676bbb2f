"""From a mesh of many faces to one of few on the same surface."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat

import numpy as np

from nerf.meshes.topology import without_flaps

Density = Callable[[np.ndarray], np.ndarray]  # points [N, 3] to densities [N], both float32

NEAR = 0.25  # steps of the grid within which a surface of few faces is from the field's
LOST = 0.02  # share of its points that may be farther away, beyond that of the surface of many faces
CHECKED = 20_000  # points
SMALLER = 0.7  # by which the number of faces falls at a time
AT_FIRST = SMALLER ** 3  # and at first, if that is not too much
FEWEST = 100  # faces
ROOM = 0.995  # of the faces that may be, as `parted` adds some
FACES_AT_ONCE = 2 ** 19


def onto_level(density: Density, vertices: np.ndarray, normals: np.ndarray, step: float,
               threshold: float) -> np.ndarray:
    """Vertices [V, 3] moved along their outward normals [V, 3] to where the density crosses a threshold, where that is
    within half a step: marching cubes takes the density between grid points to be linear.
    """
    low, high = (np.full(len(vertices), part, np.float32) for part in (-0.5 * step, 0.5 * step))  # inside, outside

    def excess(shift: np.ndarray) -> np.ndarray:
        return density(vertices + shift[:, None] * normals) - threshold
    at_low, at_high = excess(low), excess(high)
    crosses = (at_low > 0) & (at_high <= 0)
    shift = np.zeros(len(vertices), np.float32)
    for turn in range(4):  # halves, and chords between them
        middle = 0.5 * (low + high) if turn % 2 else low + (high - low) * np.clip(
            at_low / np.maximum(at_low - at_high, 1e-12), 0.05, 0.95)
        shift = np.where(crosses, middle, 0.0).astype(np.float32)
        here = excess(shift)
        inside = here > 0
        low, at_low = np.where(inside, shift, low), np.where(inside, here, at_low)
        high, at_high = np.where(inside, high, shift), np.where(inside, at_high, here)
    return (vertices + shift[:, None] * normals).astype(np.float32)


def fewer_faces(density: Density, vertices: np.ndarray, faces: np.ndarray, step: float, threshold: float,
                most: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The mesh with fewer faces, by quadric error metrics (Garland & Heckbert 1997).

    Args:
        density: the field, whose surface at the threshold it is.
        vertices, faces: [V, 3] and [F, 3], counterclockwise seen from outside.
        step: of the grid.
        most: faces that it may have; 0: as few as leave all but a share LOST of the surface within NEAR steps of the
            field's.
    """
    if most:
        return simplified(vertices, faces, int(ROOM * most)) if len(faces) > most else (vertices, faces)
    kept, within = (vertices, faces), NEAR * step
    least = _share_near(density, *kept, within, threshold) - LOST
    for shrink in chain([AT_FIRST], repeat(SMALLER)):
        if len(kept[1]) <= FEWEST:
            break
        smaller = simplified(*kept, int(shrink * len(kept[1])))
        if len(smaller[1]) < len(kept[1]) and _share_near(density, *smaller, within, threshold) >= least:
            kept = smaller
        elif shrink == SMALLER:
            break
    return kept


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """[V, 3] float32 unit normals: the means of the faces around a vertex, weighted by area; 0 where they have none.

    trimesh has its own, which keep arrays of gigabytes for a mesh of millions of faces.
    """
    sums = np.zeros((len(vertices), 3))
    for start in range(0, len(faces), FACES_AT_ONCE):
        part = faces[start:start + FACES_AT_ONCE]
        a, b, c = (np.float64(vertices[part[:, corner]]) for corner in range(3))
        across = np.cross(b - a, c - a)
        for corner in range(3):
            for axis in range(3):
                sums[:, axis] += np.bincount(part[:, corner], across[:, axis], len(vertices))
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.divide(sums, length, out=np.zeros_like(sums), where=length > 0).astype(np.float32)


def simplified(vertices: np.ndarray, faces: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The mesh with about `count` faces."""
    import fast_simplification

    vertices, faces = fast_simplification.simplify(np.ascontiguousarray(vertices, np.float32),
                                                   np.ascontiguousarray(faces, np.int32), target_count=count)
    return without_flaps(np.asarray(vertices, np.float32), np.asarray(faces, np.int64))


def _share_near(density: Density, vertices: np.ndarray, faces: np.ndarray, within: float, threshold: float) -> float:
    """Share of points on a mesh with the field's surface at most so far along the normal."""
    rng = np.random.default_rng(0)
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(normals, axis=1)
    face = rng.choice(len(faces), CHECKED, p=area / area.sum())
    weights = rng.dirichlet((1.0, 1.0, 1.0), CHECKED)
    points = (weights[:, :, None] * corners[face]).sum(1)
    move = within * normals[face] / np.maximum(area[face], 1e-12)[:, None]
    inside, outside = (density((points + way * move).astype(np.float32)) for way in (-1.0, 1.0))
    return float(((inside > threshold) & (outside <= threshold)).mean())
