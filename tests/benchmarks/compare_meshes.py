"""Compares a mesh with the true one: python tests/benchmarks/compare_meshes.py MESH TRUE_MESH [--views DATADIR]

The result is a line of JSON.

- The Chamfer distance is the mean, over both directions, of the distance from 30,000 points on one surface to the
  nearest of 500,000 points on the other: in scene units, and in percent of the true mesh's diagonal.
- The F-score is the harmonic mean of two shares: of our points within 0.5% of the diagonal from the true surface, and
  of true points within the same distance from our surface.
- The normals' consistency is the mean cosine between the normal at a point and the normal at the nearest point.
- The colour error, of meshes with vertex colours, is the mean absolute difference, over vertices and channels in
  [0, 1], between a vertex and the nearest point of the true surface.
- With --views the mesh is drawn on white from the test cameras of a scene in the Blender format, with 3x3 rays per
  pixel. The PSNR against the test pictures is what a user sees who opens the file. The distances are also given for the
  parts that training cameras see, because no method can know the rest ("seen"), and for an ideal mesh of exactly these
  parts of the true surface, against the whole true surface ("perfect").
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import trimesh
from scipy.spatial import cKDTree

sys.path.insert(0, str(Path(__file__).parents[2]))
from nerf.meshes.picture import rasterised
from nerf.metrics import psnr
from nerf.scene import Scene, blender_scene

SAMPLES, DENSE = 30000, 500_000  # points from which, and points to which distances are measured
NEAR = 0.005  # share of the diagonal up to which a point is right
RAYS = 3  # rays along a pixel's side
SEEN_SIZE = 400  # pixels of a z-buffer's longer side


def compare(mesh: trimesh.Trimesh, truth: trimesh.Trimesh, scene: Scene | None = None) -> dict[str, float]:
    """Compares two meshes.

    Args:
        mesh, truth: our mesh and the true one.
        scene: scene to whose training cameras the comparison is limited; None: all of both surfaces.

    Returns:
        The numbers of the module's docstring by name; the colour error only if both meshes have vertex colours.
    """
    samples = [trimesh.sample.sample_surface(each, DENSE, seed=seed) for seed, each in enumerate((mesh, truth))]
    if scene:
        samples = [(points[kept], face[kept]) for each, (points, face) in zip((mesh, truth), samples)
                   if (kept := seen_points(each, points, scene)) is not None]
    (ours, our_face), (theirs, their_face) = samples
    there = cKDTree(theirs)
    (to_theirs, nearest), (to_ours, back) = there.query(ours[:SAMPLES]), cKDTree(ours).query(theirs[:SAMPLES])
    diagonal = float(np.linalg.norm(truth.extents))
    precision, recall = ((part <= NEAR * diagonal).mean() for part in (to_theirs, to_ours))
    normals, true_normals = mesh.face_normals[our_face], truth.face_normals[their_face]
    agreement = [(normals[:SAMPLES] * true_normals[nearest]).sum(1).mean(),
                 (true_normals[:SAMPLES] * normals[back]).sum(1).mean()]
    chamfer = 0.5 * (to_theirs.mean() + to_ours.mean())
    found = {'faces': len(mesh.faces), 'watertight': bool(mesh.is_watertight), 'chamfer': chamfer, 'diagonal': diagonal,
             'chamfer_percent': 100.0 * chamfer / diagonal, 'normals': np.mean(agreement),
             'f_score': 2.0 * precision * recall / max(precision + recall, 1e-9)}
    if mesh.visual.kind == truth.visual.kind == 'vertex':
        colours = np.asarray(mesh.visual.vertex_colors)[:, :3] / 255.0
        true_colours = colours_at(truth, theirs, their_face)[there.query(mesh.vertices)[1]]
        found['colour_error'] = np.abs(colours - true_colours).mean()
    return {key: value if isinstance(value, (bool, int)) else float(value) for key, value in found.items()}


def perfect(truth: trimesh.Trimesh, scene: Scene) -> dict[str, float]:
    """Chamfer distance and F-score of an ideal mesh: exactly the parts of the true one that training cameras see."""
    points, _ = trimesh.sample.sample_surface(truth, DENSE, seed=1)
    distances = cKDTree(points[seen_points(truth, points, scene)]).query(points[:SAMPLES])[0]
    diagonal = np.linalg.norm(truth.extents)
    recall = float((distances <= NEAR * diagonal).mean())
    return {'chamfer_percent': float(50.0 * distances.mean() / diagonal), 'f_score': 2.0 * recall / (1.0 + recall)}


def colours_at(mesh: trimesh.Trimesh, points: np.ndarray, face: np.ndarray) -> np.ndarray:
    """Colours [N, 3] in [0, 1] at points [N, 3] on faces [N]."""
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[face], points)
    return shaded(mesh, face, weights)


def shaded(mesh: trimesh.Trimesh, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Colours [N, 3] in [0, 1] at barycentric weights [N, 3] of faces [N], from the texture or the vertices."""
    corners = mesh.faces[face]
    if mesh.visual.kind == 'vertex':
        colours = np.asarray(mesh.visual.vertex_colors)[corners, :3] / 255.0
        return (weights[..., None] * colours).sum(1)
    material = mesh.visual.material
    image = np.asarray((getattr(material, 'baseColorTexture', None) or material.image).convert('RGB')) / 255.0
    uv = (weights[..., None] * np.asarray(mesh.visual.uv)[corners]).sum(1)
    x, y = uv[:, 0] * image.shape[1] - 0.5, (1.0 - uv[:, 1]) * image.shape[0] - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    colour = np.zeros((len(uv), 3))
    for i in (0, 1):
        for j in (0, 1):
            share = np.abs(1 - i - (x - left)) * np.abs(1 - j - (y - top))
            colour += share[:, None] * image[np.clip(top + j, 0, image.shape[0] - 1),
                                             np.clip(left + i, 0, image.shape[1] - 1)]
    return colour


def drawn(mesh: trimesh.Trimesh, pose: np.ndarray, focal: float, height: int, width: int,
          within: float) -> np.ndarray:
    """Draws a mesh on white.

    Args:
        mesh: mesh with vertex colours or a texture.
        pose: [3, 4] camera-to-world, OpenGL axes.
        focal: focal length in pixels.
        height, width: size of the picture in pixels.
        within: place in a pixel of the camera's rays: 0 its upper left corner, 0.5 its centre.

    Returns:
        [H, W, 3] in [0, 1].
    """
    corners = projected(np.asarray(mesh.vertices), pose, focal, height, width)
    corners[:, :2] = (corners[:, :2] + 1.0 - within) * RAYS - 0.5
    face, weights = rasterised(corners, np.asarray(mesh.faces), height * RAYS, width * RAYS)
    picture = np.ones((height * RAYS, width * RAYS, 3))
    picture[face >= 0] = shaded(mesh, face[face >= 0], weights[face >= 0])
    return picture.reshape(height, RAYS, width, RAYS, 3).mean((1, 3))


def projected(points: np.ndarray, pose: np.ndarray, focal: float, height: int, width: int) -> np.ndarray:
    """Columns, rows and depths [N, 3] of world points [N, 3]. The middle of the first pixel has row and column 0."""
    local = (points - pose[:, 3]) @ pose[:, :3]
    return np.stack([focal * local[:, 0] / -local[:, 2] + 0.5 * width - 0.5,
                     focal * local[:, 1] / local[:, 2] + 0.5 * height - 0.5, -local[:, 2]], 1)


def seen_points(mesh: trimesh.Trimesh, points: np.ndarray, scene: Scene) -> np.ndarray:
    """Points [N] bool, of points [N, 3] on a mesh, that a training camera sees, by z-buffers of SEEN_SIZE pixels."""
    seen, slack = np.zeros(len(points), bool), 2e-3 * np.linalg.norm(mesh.extents)
    for i in scene.i_train.tolist():
        camera = scene.cameras.take([i])
        pose, (height, width) = camera.poses[0].double().numpy(), camera.size(0)
        size = SEEN_SIZE * height // max(height, width), SEEN_SIZE * width // max(height, width)
        where = pose, float(camera.intrinsics[0, 0]) * size[1] / width, *size
        corners = projected(np.asarray(mesh.vertices), *where)
        face, weights = rasterised(corners, np.asarray(mesh.faces), *size)
        depth = np.where(face >= 0, (weights * corners[mesh.faces[face], 2]).sum(-1), np.inf)
        column, row, away = projected(points, *where).T
        inside = (away > 0) & (column > -0.5) & (column < size[1] - 0.5) & (row > -0.5) & (row < size[0] - 0.5)
        at = np.rint(row[inside]).astype(int), np.rint(column[inside]).astype(int)
        seen[inside] |= away[inside] < depth[at] + slack
    return seen


def view_psnr(mesh: trimesh.Trimesh, scene: Scene, within: float) -> float:
    """Mean PSNR, in dB, of a mesh drawn from the test cameras of a scene; `within` is that of `drawn`."""
    values = []
    for i in scene.i_test.tolist():
        camera = scene.cameras.take([i])
        pose, focal = camera.poses[0].double().numpy(), float(camera.intrinsics[0, 0])
        picture = drawn(mesh, pose, focal, *camera.size(0), within)
        values.append(psnr(picture, scene.target(i)))
    return float(np.mean(values))


def loaded(path: str) -> trimesh.Trimesh:
    """Reads a mesh in its own coordinates, without the rotation that a .glb's node has."""
    found = trimesh.load(path, process=False)
    return next(iter(found.geometry.values())) if isinstance(found, trimesh.Scene) else found


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('mesh')
    parser.add_argument('truth')
    parser.add_argument('--views', metavar='DATADIR')
    parser.add_argument('--rays_through', choices=('corner', 'center'), default='center')
    parser.add_argument('--testskip', type=int, default=1, help='1: all test views; N: every Nth')
    args = parser.parse_args()
    mesh, truth = loaded(args.mesh), loaded(args.truth)
    result = compare(mesh, truth)
    if args.views:
        scene = blender_scene(args.views, white_bkgd=True, half_res=False, testskip=args.testskip)
        result['view_psnr'] = view_psnr(mesh, scene, 0.5 * (args.rays_through == 'center'))
        result['seen'] = {key: value for key, value in compare(mesh, truth, scene).items()
                          if key in ('chamfer_percent', 'f_score', 'normals')}
        result['perfect'] = perfect(truth, scene)
    print(json.dumps(result))
