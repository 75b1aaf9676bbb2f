"""How far a mesh is from the true one: python tests/benchmarks/compare_meshes.py MESH TRUE_MESH; prints a line of JSON.

The Chamfer distance is the mean, over both directions, of the distance from 30,000 points on one surface to the nearest
of as many on the other. The colour error is the mean absolute difference, over vertices and channels in [0, 1], between
a vertex and the nearest point of the true surface.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import trimesh
from scipy.spatial import cKDTree

SAMPLES = 30000


def surface_points(mesh: trimesh.Trimesh, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points on the surface [count, 3], evenly spread, and their colours [count, 3] in [0, 1]."""
    points, face = trimesh.sample.sample_surface(mesh, count, seed=seed)
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[face], points)
    corners = np.asarray(mesh.visual.vertex_colors)[mesh.faces[face], :3] / 255.0  # [count, 3 corners, 3]
    return points, (weights[..., None] * corners).sum(1)


def compare(mesh: trimesh.Trimesh, truth: trimesh.Trimesh) -> dict[str, float]:
    """Chamfer distance, also in percent of the true mesh's diagonal, and colour error."""
    ours, theirs = (surface_points(each, SAMPLES, seed) for seed, each in enumerate((mesh, truth)))
    there = cKDTree(theirs[0])
    chamfer = 0.5 * (there.query(ours[0])[0].mean() + cKDTree(ours[0]).query(theirs[0])[0].mean())
    colours = np.asarray(mesh.visual.vertex_colors)[:, :3] / 255.0
    error = np.abs(colours - theirs[1][there.query(mesh.vertices)[1]]).mean()
    diagonal = float(np.linalg.norm(truth.extents))
    return {'chamfer': float(chamfer), 'diagonal': diagonal, 'chamfer_percent': 100.0 * float(chamfer) / diagonal,
            'colour_error': float(error)}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('mesh')
    parser.add_argument('truth')
    files = parser.parse_args()
    print(json.dumps(compare(trimesh.load(files.mesh, process=False), trimesh.load(files.truth, process=False))))
