"""Triangle meshes: normals, area, components, edges, and sheets that touch. trimesh has most of it too, but needs
gigabytes for a mesh of millions of faces."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import trimesh
from trimesh.graph import connected_component_labels

from nerf.fields.interface import pieces
from nerf.meshes.options import DEFAULTS

FACES_AT_ONCE = 2 ** 19


def vertex_normals(vertices: np.ndarray, faces: np.ndarray, at_once: int = FACES_AT_ONCE) -> np.ndarray:
    """Unit normals [V, 3] float32 of vertices: means of the normals of the faces around, weighted by area. A vertex
    without an area around it has the normal 0. `at_once` faces are in memory at once."""
    sums = np.zeros((len(vertices), 3))
    for part in pieces(len(faces), at_once):
        a, b, c = (np.float64(vertices[faces[part, corner]]) for corner in range(3))
        across = np.cross(b - a, c - a)
        for corner in range(3):
            for axis in range(3):
                sums[:, axis] += np.bincount(faces[part, corner], across[:, axis], len(vertices))
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.divide(sums, length, out=np.zeros_like(sums), where=length > 0).astype(np.float32)


def surface_area(vertices: np.ndarray, faces: np.ndarray, at_once: int = FACES_AT_ONCE) -> float:
    """Area of a mesh, with `at_once` faces in memory at once."""
    return float(sum(trimesh.triangles.area(vertices[faces[part]]).sum() for part in pieces(len(faces), at_once)))


def without_floaters(vertices: np.ndarray, faces: np.ndarray,
                     least: float = DEFAULTS.floater_share) -> tuple[np.ndarray, np.ndarray, int]:
    """Mesh without components of fewer faces than a share of the largest component's, and the number of the dropped."""
    label = connected_component_labels(faces[:, [0, 1, 1, 2]].reshape(-1, 2), node_count=len(vertices))
    sizes = np.bincount(label[faces[:, 0]], minlength=label.max() + 1)
    keep = sizes >= least * sizes.max()
    return *without_others(vertices, faces[keep[label[faces[:, 0]]]]), int((~keep).sum())


def without_others(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mesh without the vertices that are in no face."""
    used = np.zeros(len(vertices), bool)
    used[faces] = True
    return vertices[used], (np.cumsum(used) - 1)[faces]


def without_flaps(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mesh without pairs of faces with the same three corners, and without vertices that are in no face. Simplification
    leaves such a pair where a bump collapsed. Its edges would have four faces."""
    corners = np.sort(faces, 1)
    order = np.lexsort(corners.T)
    first = np.append(True, (np.diff(corners[order], axis=0) != 0).any(1))  # first of equal faces
    copies = np.diff(np.append(np.flatnonzero(first), len(faces)))
    kept = np.zeros(len(faces), bool)
    kept[order[first][copies % 2 == 1]] = True
    return without_others(vertices, faces[kept])


def closedness(faces: np.ndarray) -> str:
    """Words about faces [F, 3]: a mesh is closed if each edge has two faces, or four where the mesh touches itself."""
    edges = _edges(faces)
    edges.sort()
    if len(edges) % 2 or (edges[::2] != edges[1::2]).any():
        return 'not watertight'
    touching = np.count_nonzero(edges[1:-1:2] == edges[2::2])
    return f'closed, but it touches itself at {touching} edges' if touching else 'watertight'


def _edges(faces: np.ndarray) -> np.ndarray:
    """Number [3 F] of the edge at each side of each face."""
    count, edges = int(faces.max()) + 1, np.empty(3 * len(faces), np.int64)
    for i in range(3):
        a, b = faces[:, i], faces[:, (i + 1) % 3]
        edges[i::3] = np.minimum(a, b).astype(np.int64) * count + np.maximum(a, b)
    return edges


def neighbours(faces: np.ndarray) -> np.ndarray:
    """Pairs [N, 2] of faces with a common edge."""
    edges = _edges(faces)
    order = np.argsort(edges, kind='stable')
    same = np.flatnonzero(edges[order][1:] == edges[order][:-1])
    return np.stack([order[same], order[same + 1]], 1) // 3  # a face has three sides


def parted(vertices: np.ndarray, faces: np.ndarray,
           apart: float = DEFAULTS.parted_share) -> tuple[np.ndarray, np.ndarray]:
    """Mesh whose sheets do not touch along edges, so that each edge has two faces. Faces at an edge with four or more
    of them are pairs with a wedge of the solid in between. Each wedge except the widest gets a new vertex at the middle
    of the edge, moved into the wedge by a share `apart` of the faces' height. Vertices at the same place become one, as
    programs that read the mesh would join them."""
    vertices, faces = _merged(vertices, faces)
    edges = _edges(faces)
    unique, first, count = np.unique(edges, return_index=True, return_counts=True)
    if (count <= 2).all():
        return vertices, faces
    crowded = np.unique(np.flatnonzero(np.isin(edges, unique[count > 2])) // 3)
    some, points, sides = faces[crowded].tolist(), [*vertices], defaultdict(list)
    for i, (a, b, c) in enumerate(some):
        for side in ((a, b), (b, c), (c, a)):
            sides[side].append(i)
    for side in first[count > 2].tolist():
        a, b = int(faces[side // 3, side % 3]), int(faces[side // 3, (side + 1) % 3])
        there, back = ([(i, *way, sum(some[i]) - a - b) for i in sides[way]] for way in ((a, b), (b, a)))
        for wedge in _wedges(there, back, points)[1:]:
            middle, new = 0.5 * (points[a] + points[b]), len(points)
            points.append(middle + apart * (np.mean([points[tip] for *_, tip in wedge], 0) - middle))
            for i, start, end, tip in wedge:
                some[i] = [start, new, tip]
                sides[end, tip] = [len(some) if other == i else other for other in sides[end, tip]]
                some.append([new, end, tip])
    return np.array(points, vertices.dtype), np.concatenate([np.delete(faces, crowded, 0), np.array(some, faces.dtype)])


def _merged(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Joins vertices at the same place, and drops faces that lose their area by it."""
    _, first, same = np.unique(vertices, axis=0, return_index=True, return_inverse=True)
    if len(first) == len(vertices):
        return vertices, faces
    faces = first[same.reshape(-1)][faces]
    return without_flaps(vertices, faces[(faces != np.roll(faces, 1, 1)).all(1)])


Side = tuple[int, int, int, int]  # side of a face: index of the face, of its two points in order, and of the third


def _wedges(there: list[Side], back: list[Side], points: list[np.ndarray]) -> list[list[Side]]:
    """Pairs of faces' sides at an edge with a wedge of the solid in between, the widest wedge first. Sides `there` go
    along the edge, and sides `back` go the other way."""
    a, b = (there or back)[0][1:3]
    axis = points[b] - points[a]
    across = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])

    def angle(side: Side) -> float:
        tip = points[side[-1]] - points[a]
        return np.arctan2(np.cross(axis, across) @ tip, np.linalg.norm(axis) * (across @ tip))
    wedges = []
    while there and back:  # the solid is behind each face
        widths = [(angle(there[0]) - angle(other)) % (2.0 * np.pi) for other in back]
        nearest = int(np.argmin(widths))
        wedges.append((widths[nearest], [there.pop(0), back.pop(nearest)]))
    wedges.sort(key=lambda wedge: -wedge[0])
    rest = there + back  # faces that look the wrong way have no partner
    return [wedge for _, wedge in wedges] + [rest[i:i + 2] for i in range(0, len(rest), 2)]
