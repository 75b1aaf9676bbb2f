"""Synthetic capture with known cameras: PYTHONPATH=. python tests/make_capture.py FOLDER

A camera with a strong lens photographs the toy chair from all around, in a room with noise on its walls. The script
writes FOLDER/images/000.jpg, ... with EXIF, and FOLDER/true_transforms.json with the true lens and poses. Its results
are the same each time. COLMAP finds features on walls and floor, and few on the chair.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
import trimesh
from PIL import Image

from nerf.cameras import Cameras

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT, FOCAL = 400, 300, 340.0
LENS = {'k1': -0.16, 'k2': 0.05, 'p1': 0.001, 'p2': -0.001}
FOCAL_35 = 28  # mm by EXIF: 320 pixels, 6% off
SUPER = 2  # rays per pixel along both sides
ROOM = np.array([[-4.0, -4.0, -0.9], [4.0, 4.0, 4.0]])  # the chair stands on its floor
TEXELS = 128  # along the side of a wall


def make_capture(folder: Path, count: int = 20) -> Path:
    """Writes a capture of `count` photographs into `folder`, which it returns."""
    (folder / 'images').mkdir(parents=True)
    mesh = trimesh.load(ROOT / 'data' / 'toy_chair' / 'toy_chair.ply', process=False)
    triangles, colours = mesh.triangles, mesh.visual.vertex_colors[mesh.faces][..., :3].astype(np.float64)
    poses, walls, directions = [pose_of(i, count) for i in range(count)], noise(), ray_directions()
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = 'Toys', 'Toy camera'
    exif.get_ifd(0x8769)[0xA405] = FOCAL_35
    for i, pose in enumerate(poses):
        picture = photograph(pose, directions, triangles, colours, walls)
        Image.fromarray(picture).save(folder / 'images' / f'{i:03d}.jpg', quality=95, exif=exif)
    frames = [{'file_path': f'images/{i:03d}.jpg', 'transform_matrix': [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]}
              for i, pose in enumerate(poses)]
    lens = {'w': WIDTH, 'h': HEIGHT, 'fl_x': FOCAL, 'fl_y': FOCAL, 'cx': WIDTH / 2, 'cy': HEIGHT / 2} | LENS
    text = json.dumps({'camera_model': 'OPENCV', **lens, 'frames': frames}, indent=1)
    (folder / 'true_transforms.json').write_text(text + '\n')
    return folder


def ray_directions() -> np.ndarray:
    """Directions [R, 3] of all rays of a photograph, in the camera's axes."""
    camera = Cameras(poses=torch.zeros(1, 3, 4), sizes=torch.tensor([[HEIGHT * SUPER, WIDTH * SUPER]]),
                     intrinsics=SUPER * torch.tensor([[FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2]], dtype=torch.float64),
                     distortion=torch.tensor([[*LENS.values(), 0.0, 0.0, 0.0, 0.0]]), within=0.5)
    camera.poses[:, :, :3] = torch.eye(3)
    return camera.view_rays(0)[1].reshape(-1, 3).numpy()


def surface_points(count: int = 20, of_each: int = 200) -> np.ndarray:
    """Points [count * of_each, 3] on the surfaces that random rays of the photographs of `make_capture` meet."""
    mesh = trimesh.load(ROOT / 'data' / 'toy_chair' / 'toy_chair.ply', process=False)
    generator, directions, points = np.random.default_rng(0), ray_directions(), []
    for pose in (pose_of(i, count) for i in range(count)):
        ahead = directions @ pose[:, :3].T
        places = pose[:, 3] + wall_distance(pose[:, 3], ahead).min(1, keepdims=True) * ahead
        triangles = (mesh.triangles - pose[:, 3]) @ pose[:, :3]
        ray, face, weights = nearest_hits(triangles, directions)
        places[ray] = pose[:, 3] + np.einsum('nk,nkc->nc', weights, triangles[face]) @ pose[:, :3].T
        points.append(places[generator.choice(len(places), of_each, replace=False)])
    return np.concatenate(points)


def pose_of(i: int, count: int) -> np.ndarray:
    """Pose [3, 4] of photograph i: on a circle, by turns higher and lower, looking at the chair."""
    azimuth, elevation = 2.0 * math.pi * i / count, math.radians((20.0, 35.0)[i % 2])
    away = np.array([math.cos(azimuth) * math.cos(elevation), math.sin(azimuth) * math.cos(elevation),
                     math.sin(elevation)])
    right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
    return np.stack([right, np.cross(away, right), away, (2.6 + 0.4 * (i % 3)) * away + [0.0, 0.0, -0.2]], 1)


def noise() -> np.ndarray:
    """Coloured noise of several sizes for each wall: [6, TEXELS, TEXELS, 3] in [0, 255]."""
    generator, total = np.random.default_rng(0), 0.0
    for cells, weight in ((16, 0.2), (64, 0.25), (128, 0.1)):
        grid = generator.random((6, cells, cells, 3), dtype=np.float32) - 0.5
        total = total + weight * grid.repeat(TEXELS // cells, 1).repeat(TEXELS // cells, 2)
    return (127.0 + 255.0 * total).clip(0.0, 255.0)


def photograph(pose: np.ndarray, directions: np.ndarray, triangles: np.ndarray, colours: np.ndarray,
               walls: np.ndarray) -> np.ndarray:
    """Picture [HEIGHT, WIDTH, 3] uint8 of rays `directions` [R, 3] in the axes of a camera at `pose`."""
    colour = wall_colours(pose[:, 3], directions @ pose[:, :3].T, walls)
    ray, face, weights = nearest_hits((triangles - pose[:, 3]) @ pose[:, :3], directions)
    colour[ray] = np.einsum('nk,nkc->nc', weights, colours[face])
    means = colour.reshape(HEIGHT, SUPER, WIDTH, SUPER, 3).mean((1, 3))
    return np.rint(means).astype(np.uint8)


def wall_colours(origin: np.ndarray, directions: np.ndarray, walls: np.ndarray) -> np.ndarray:
    """Colours [R, 3] of the walls where rays from inside the room leave it."""
    distance = wall_distance(origin, directions)
    axis = distance.argmin(1)
    points = origin + distance.min(1, keepdims=True) * directions
    wall = 2 * axis + (np.take_along_axis(directions, axis[:, None], 1)[:, 0] > 0)
    share = (points - ROOM[0]) / (ROOM[1] - ROOM[0]).max()
    across = np.array([[1, 2], [0, 2], [0, 1]])[axis]  # the two axes of a wall
    u, v = (np.take_along_axis(share, across, 1) * TEXELS).clip(0, TEXELS - 1).astype(int).T
    return walls[wall, u, v].astype(np.float64)


def wall_distance(origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Distances [R, 3 axes] along rays from inside the room to the wall across each axis."""
    with np.errstate(divide='ignore'):
        return np.where(directions > 0, ROOM[1] - origin, ROOM[0] - origin) / directions


def nearest_hits(triangles: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First hits of rays from the origin with closed meshes.

    Args:
        triangles: [F, 3 corners, 3] in the camera's axes, small enough that the lens hardly bends their sides.
        directions: [R, 3], row by row.

    Returns:
        ray: [N] rays that hit a face; face: [N] faces; weights: [N, 3] of their corners.
    """
    a, b, c = triangles.transpose(1, 0, 2)
    planes = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], 1)
    volume = (a * planes[:, 0]).sum(1)
    front = np.flatnonzero(volume < -1e-12)
    place = SUPER * project(triangles[front])
    first = np.floor(place.min(1) - 0.5).clip(0).astype(int)
    last = np.ceil(place.max(1)).clip(None, [WIDTH * SUPER - 1, HEIGHT * SUPER - 1]).astype(int)
    width, height = (last - first + 1).clip(0).T
    face = np.repeat(np.arange(len(front)), width * height)
    within = np.arange(len(face)) - np.repeat(np.cumsum(width * height) - width * height, width * height)
    ray = (first[face, 1] + within // width[face]) * WIDTH * SUPER + first[face, 0] + within % width[face]
    planes = (planes[front] / volume[front, None, None]).astype(np.float32)
    weights = np.einsum('pij,pj->pi', planes[face], directions[ray])
    inside = np.flatnonzero((weights >= 0).all(1))
    order = inside[np.argsort(weights[inside].sum(1), kind='stable')]  # by 1 / depth
    nearest = np.full(len(directions), -1)
    nearest[ray[order]] = order  # the last value stays, which is the nearest
    hit = nearest[nearest >= 0]
    return ray[hit], front[face[hit]], weights[hit] / weights[hit].sum(1, keepdims=True)


def project(points: np.ndarray) -> np.ndarray:
    """Pixels [..., 2] of points [..., 3] in the camera's axes, through the lens."""
    k1, k2, p1, p2 = LENS.values()
    x, y = points[..., 0] / -points[..., 2], points[..., 1] / points[..., 2]
    r2 = x * x + y * y
    radial = 1.0 + r2 * (k1 + r2 * k2)
    bent = np.stack([x * radial + 2.0 * p1 * x * y + p2 * (r2 + 2.0 * x * x),
                     y * radial + p1 * (r2 + 2.0 * y * y) + 2.0 * p2 * x * y], -1)
    return FOCAL * bent + [WIDTH / 2, HEIGHT / 2]


if __name__ == '__main__':
    make_capture(Path(sys.argv[1]))
