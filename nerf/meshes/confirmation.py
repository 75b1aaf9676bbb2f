"""Confirmation by views: which depths enter a mesh, and which of its faces are seen."""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from nerf.meshes.options import DEFAULTS, MeshSettings
from nerf.meshes.triangles import neighbours, without_others
from nerf.meshes.views import SeenFrom, onto_pixels, stacked
from nerf.space import Space


def confirmed(views: list[SeenFrom], space: Space, step: float, settings: MeshSettings = DEFAULTS) -> list[SeenFrom]:
    """Views in which depths that too few views confirm are NaN, unknown: fog, and mixtures at edges. A view confirms
    a point at whose depth it shows something, within `confirmed_share` of the depth or `confirmed_steps` grid steps. It
    denies a point behind which it shows something. A depth needs `confirming_views`, its own view among them, and a
    `majority` of the views that confirm or deny it. Where fewer views do, all of them must confirm it, because a place
    that few views see may not become a hole."""
    arrays, within = stacked(views, space), settings.confirmed_steps * step
    found = []
    for own, view in enumerate(views):
        confirming, denying = (part.reshape(view.depth.shape) for part in _verdicts(
            view.points.reshape(-1, 3), *arrays, own, settings.confirmed_share, within))
        asked = 1 + confirming + denying
        needed = np.maximum(np.minimum(settings.confirming_views, asked), settings.majority * asked)
        found.append(view._replace(depth=np.where(1 + confirming < needed, np.float32(np.nan), view.depth)))
    return found


def seen_faces(vertices: np.ndarray, faces: np.ndarray, views: list[SeenFrom], space: Space, step: float,
               settings: MeshSettings = DEFAULTS) -> tuple[np.ndarray, np.ndarray]:
    """Mesh without the faces that no view shows within `seen_steps` grid steps, such as those between what is seen and
    what is hidden. Groups of at most `hole_faces` of them stay, since they would be holes."""
    confirming, _ = _verdicts(vertices, *stacked(views, space), -1, 0.0, settings.seen_steps * step)
    unseen = (confirming[faces] == 0).all(1)
    pairs = neighbours(faces)
    pairs = pairs[unseen[pairs].all(1)]
    shape = (len(faces), len(faces))
    _, label = connected_components(coo_matrix((np.ones(len(pairs), bool), tuple(pairs.T)), shape), directed=False)
    large = np.bincount(label[unseen], minlength=len(faces))[label] > settings.hole_faces
    return without_others(vertices, faces[~(unseen & large)])


@njit(parallel=True, cache=True, error_model='numpy')
def _verdicts(points, depth, sizes, to_pixels, own, share, within):
    """Numbers [N] of views, other than view `own`, that confirm and that deny points [N, 3] in ray coordinates, 0 of
    points that are not finite. Depths [V, H, W] and the rest are those of `stacked`."""
    confirming, denying = np.zeros(len(points), np.int32), np.zeros(len(points), np.int32)
    for n in prange(len(points)):
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        if not np.isfinite(x + y + z):
            continue
        for v in range(len(depth)):
            verdict = 0 if v == own else _verdict(x, y, z, depth[v], sizes[v], to_pixels[v], share, within)
            confirming[n] += verdict > 0
            denying[n] += verdict < 0
    return confirming, denying


@njit(cache=True, error_model='numpy')
def _verdict(x, y, z, depth, size, to_pixels, share, within):
    """1 if a view confirms a point, -1 if it denies the point, and 0 if it does not see the place. Of the four pixels
    around the point one must confirm it, or all must deny it."""
    row, column, away, over, under = onto_pixels(to_pixels, x, y, z, 1.0)
    row, column, measured = row / away, column / away, over / under
    if not (away > 0.0 and 0.0 <= row < size[0] - 1 and 0.0 <= column < size[1] - 1):
        return 0
    top, left, farther = int(row), int(column), 0
    tolerance = max(share * abs(measured), within)
    for i in range(2):
        for j in range(2):
            behind = depth[top + i, left + j] - measured
            if abs(behind) <= tolerance:
                return 1
            farther += behind > 0.0
    return -1 if farther == 4 else 0
