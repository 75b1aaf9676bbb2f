"""Errors of cameras: python tests/benchmarks/compare_cameras.py TRANSFORMS TRUE_TRANSFORMS; prints a line of JSON.

Both files are transforms.json. Frames of the same file name (without its ending) are compared, after the similarity
that fits the first file's positions to the second's with the least squared error. Rotations are in degrees, positions
in percent of the mean distance between the cameras and their mean position, and the first frame's focal length in
percent.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np


def read_cameras(path: Path) -> tuple[dict[str, np.ndarray], float]:
    """Poses [3, 4] by file name, and the focal length in pixels."""
    meta = json.loads(Path(path).read_text())
    poses = {Path(frame['file_path']).stem: np.array(frame['transform_matrix'], np.float64)[:3]
             for frame in meta['frames']}
    return poses, meta.get('fl_x') or meta['frames'][0]['fl_x']


def similarity(points: np.ndarray, goals: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation [3, 3] and shift [3] that fit points to goals, [N, 3] each (Umeyama 1991, equations 40 to 42)."""
    middle, goal = points.mean(0), goals.mean(0)
    u, sizes, vt = np.linalg.svd((goals - goal).T @ (points - middle))
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u * signs @ vt
    scale = (sizes * signs).sum() / ((points - middle) ** 2).sum()
    return scale, rotation, goal - scale * rotation @ middle


def compare(path: Path, true_path: Path) -> dict[str, float]:
    """Figures that the script prints."""
    (poses, focal), (true_poses, true_focal) = read_cameras(path), read_cameras(true_path)
    names = sorted(poses.keys() & true_poses.keys())
    ours, truth = (np.stack([each[name] for name in names]) for each in (poses, true_poses))
    scale, rotation, shift = similarity(ours[:, :, 3], truth[:, :, 3])
    turned = rotation @ ours[:, :, :3]
    cosine = (np.einsum('nij,nij->n', turned, truth[:, :, :3]) - 1.0) / 2.0
    degrees = np.degrees(np.arccos(cosine.clip(-1.0, 1.0)))
    off = np.linalg.norm(scale * ours[:, :, 3] @ rotation.T + shift - truth[:, :, 3], axis=-1)
    off *= 100.0 / np.linalg.norm(truth[:, :, 3] - truth[:, :, 3].mean(0), axis=-1).mean()
    return {'frames': len(names), 'only_here': len(poses) - len(names), 'only_there': len(true_poses) - len(names),
            'rotation_mean': float(degrees.mean()), 'rotation_max': float(degrees.max()),
            'position_mean': float(off.mean()), 'position_max': float(off.max()),
            'focal': 100.0 * (focal / true_focal - 1.0)}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('transforms', type=Path)
    parser.add_argument('truth', type=Path)
    files = parser.parse_args()
    print(json.dumps(compare(files.transforms, files.truth)))
