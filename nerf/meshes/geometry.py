"""Geometry of triangle meshes: normals, area and size, computed in parts, as millions of faces need much memory."""

from __future__ import annotations

import numpy as np
import trimesh

from nerf.fields.interface import pieces

FACES_AT_ONCE = 2 ** 19


def vertex_normals(vertices: np.ndarray, faces: np.ndarray, at_once: int = FACES_AT_ONCE) -> np.ndarray:
    """Unit normals of vertices: means of the normals of the faces around each vertex, weighted by area.

    trimesh has normals too, but keeps arrays of gigabytes for a mesh of millions of faces.

    Args:
        vertices, faces: [V, 3] and [F, 3], counterclockwise seen from outside.
        at_once: faces in memory at once.

    Returns:
        [V, 3] float32; 0 at vertices without an area around them.
    """
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
    """Area of the faces [F, 3] of vertices [V, 3], `at_once` faces in memory at once."""
    return float(sum(trimesh.triangles.area(vertices[faces[part]]).sum() for part in pieces(len(faces), at_once)))


def describe_mesh(mesh: trimesh.Trimesh, closed: str, count: int, dropped: int) -> str:
    """Describes a mesh on two lines: counts, closedness, bounds and area.

    Args:
        mesh: finished mesh.
        closed: words of `closedness`.
        count: number of faces before simplification.
        dropped: number of components that were dropped.
    """
    (x, y, z), (X, Y, Z) = mesh.bounds
    return (f'mesh      {len(mesh.vertices):,} vertices, {len(mesh.faces):,} of {count:,} faces, '
            f'{closed}, {dropped} floaters dropped\n'
            f'bounds    {x:.3f} {y:.3f} {z:.3f} to {X:.3f} {Y:.3f} {Z:.3f}, '
            f'area {surface_area(mesh.vertices, mesh.faces):.4g}')
