"""Make the toy chair: a procedural scene in the Blender ("nerf_synthetic") format, plus its true mesh.

    python data/toy_chair/make_toy_chair.py

writes transforms_{train,val,test}.json, the RGBA pictures (straight alpha, anti-aliased edges) and
toy_chair.ply beside this file. Nothing is random, so a second run gives the same pixels.

Lengths are in scene units; z is up, the chair faces -y and its bounding box is centred at the origin.
A picture shows matte shading (ambient + wrapped diffuse, independent of the view) plus a Blinn-Phong
highlight. The vertex colours of toy_chair.ply are the matte shading alone. Vertices are doubled along
sharp edges and carry normals; load the file with trimesh.load(path, process=False) to keep them apart.
"""
import itertools
import json
from collections import namedtuple
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image

OUT = Path(__file__).resolve().parent
SPLIT_SIZES = {'train': 60, 'val': 8, 'test': 12}
SIZE = 128  # pixels per picture side
SUPER = 6  # rays per pixel side
GRID = SIZE * SUPER  # rays per picture side
CAMERA_ANGLE_X = 0.6911112070083618  # radians, the horizontal field of view
FOCAL = 0.5 * SIZE / np.tan(0.5 * CAMERA_ANGLE_X)  # pixels
CAMERA_DISTANCE = 4.0
ELEVATION_RANGE = np.radians([5, 75])
LIGHT = np.array([-6, -6, 7]) / 11  # unit vector towards the light
AMBIENT = 0.35
CREASE_COSINE = np.cos(np.radians(40))  # faces that meet more sharply than this keep a hard edge
MATERIALS = {  # albedo, strength of the highlight, its Blinn-Phong exponent
    'seat': ((0.62, 0.36, 0.17), 0.40, 25), 'cushion': ((0.85, 0.16, 0.20), 0.25, 12),
    'button': ((0.95, 0.93, 0.85), 0.40, 30), 'slat': ((0.95, 0.75, 0.20), 0.50, 25),
    'leg': ((0.18, 0.34, 0.76), 0.60, 30), 'arm': ((0.50, 0.25, 0.64), 0.60, 30),
    'knob': ((0.10, 0.65, 0.38), 0.80, 40)}

# corners, normals, colors (matte): (F, 3, 3) for each face's three corners; gloss: (F, 2) strength, exponent
Scene = namedtuple('Scene', 'corners normals colors gloss')


def turned(start, end, stations, radii):
    """Round rod from start to end (3,), as off a lathe: radii at the given fractions of its length."""
    axis = np.subtract(end, start)
    profile = [(0, stations[0]), *zip(radii, stations), (0, stations[-1])]
    rod = trimesh.creation.revolve(np.array(profile, float), sections=20)
    right = np.cross(np.eye(3)[np.argmin(np.abs(axis))], axis)
    right /= np.linalg.norm(right)
    up = np.cross(axis, right) / np.linalg.norm(axis)
    rod.vertices = rod.vertices @ np.stack([right, up, axis]) + start
    return rod


def pillow(center, half_sizes, power=2, subdivisions=2):
    """Ball of the power-norm stretched to half_sizes (3,): a sphere for 2, boxier the higher the power."""
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions)
    mesh.vertices /= (np.abs(mesh.vertices) ** power).sum(1, keepdims=True) ** (1 / power)
    mesh.vertices = mesh.vertices * half_sizes + center
    return mesh


def board(center, up, sizes, bow, arch=0.0):
    """Board of sizes (3,), its height along the unit vector up (3,), bent back by bow and up by arch."""
    mesh = trimesh.creation.box(sizes).subdivide().subdivide().subdivide()
    x, y, z = mesh.vertices.T
    bend = 1 - (2 * x / sizes[0]) ** 2
    frame = np.stack([[1, 0, 0], np.cross(up, [1, 0, 0]), up])
    mesh.vertices = np.stack([x, y + bow * bend, z + arch * bend], 1) @ frame + center
    return mesh


def right_parts(post_foot, post_top, rung):
    """The parts on the right: back post, armrest and its support, legs and the rung between them."""
    front = np.array([0.64, -0.56, 0.40])
    parts = [('leg', turned(post_foot, post_top, [0, 0.15, 0.5, 1], [0.07, 0.075, 0.06, 0.05])),
             ('knob', pillow(post_top, 0.095)),
             ('arm', turned(front, [0.53, 0.66, 0.40], [0, 0.2, 0.6, 1], [0.06, 0.075, 0.065, 0.045])),
             ('leg', turned([0.60, -0.48, -0.04], [0.63, -0.48, 0.40], [0, 0.5, 1], [0.045, 0.065, 0.04])),
             ('knob', pillow(front, 0.09)),
             ('slat', turned(rung * [1, -1, 1], rung, [0, 0.5, 1], [0.03, 0.05, 0.03]))]
    for y in (-1, 1):
        foot = [0.60, 0.54 * y, -0.69]
        parts.append(('leg', turned(foot, [0.52, 0.48 * y, -0.10], [0, 0.3, 0.62, 0.72, 0.78, 0.84, 1],
                                    [0.045, 0.06, 0.075, 0.10, 0.105, 0.08, 0.08])))
        parts.append(('knob', pillow(foot, 0.08)))
    return parts


def chair_parts():
    """List of (material name, closed mesh); the parts overlap a little where they join."""
    post_foot, post_top = np.array([[0.52, 0.54, -0.04], [0.54, 0.77, 0.93]])
    rung = np.array([0.57, 0.517, -0.474])  # its end in the back right leg
    parts = [('seat', board([0, 0.03, -0.065], [0, 0, 1], [1.36, 1.22, 0.13], bow=-0.09)),
             ('cushion', pillow([0, -0.04, 0.09], [0.48, 0.51, 0.11], power=3.5, subdivisions=3)),
             ('slat', turned(rung * [-1, 0, 1], rung * [1, 0, 1], [0, 0.5, 1], [0.03, 0.04, 0.03]))]
    parts += [('button', pillow([x, y - 0.04, 0.19], 0.05)) for x in (-0.21, 0.21) for y in (-0.23, 0.23)]
    up = (post_top - post_foot) * [0, 1, 1]
    centers = [post_foot * [0, 1, 1] + along * up for along in (0.31, 0.50, 0.69, 0.88)]
    up /= np.linalg.norm(up)
    parts += [('slat', board(center, up, [1.06, 0.05, 0.12], bow=0.10)) for center in centers[:-1]]
    parts.append(('seat', board(centers[-1], up, [1.06, 0.05, 0.16], bow=0.10, arch=0.07)))
    for name, mesh in right_parts(post_foot, post_top, rung):
        parts += [(name, mesh), (name, mesh.copy().apply_transform(np.diag([-1, 1, 1, 1])))]
    middle = trimesh.util.concatenate([mesh for _, mesh in parts]).bounds.mean(0)
    return [(name, mesh.apply_translation(-middle)) for name, mesh in parts]


def corner_normals(mesh):
    """(F, 3, 3) unit normals: at each corner the area-weighted mean over the faces in a smooth patch."""
    faces, normals = mesh.faces, mesh.face_normals
    touches = np.zeros((len(mesh.vertices), len(faces)), bool)
    touches[faces, np.arange(len(faces))[:, None]] = True
    smooth = normals @ normals.T > CREASE_COSINE
    means = (touches[faces] & smooth[:, None]) @ (normals * mesh.area_faces[:, None])
    return means / np.linalg.norm(means, axis=-1, keepdims=True)


def build_scene(parts):
    """Scene of all parts; its colours are rounded to 8 bits, so that pictures and ply agree."""
    corners, normals, colors, gloss = [], [], [], []
    for name, mesh in parts:
        albedo, strength, exponent = MATERIALS[name]
        corners.append(mesh.triangles)
        normals.append(corner_normals(mesh))
        # Wrapped diffuse (no clamp at the terminator) keeps form visible on the side away from the light.
        matte = AMBIENT + (1 - AMBIENT) * (0.5 + 0.5 * normals[-1] @ LIGHT)
        colors.append(np.rint(255 * matte[..., None] * albedo) / 255)
        gloss.append(np.tile([strength, exponent], (len(mesh.faces), 1)))
    return Scene(*map(np.concatenate, (corners, normals, colors, gloss)))


def save_mesh(scene, path):
    """Binary ply of the scene; corners become one vertex where place, normal and colour are the same."""
    table = np.concatenate([scene.corners, scene.normals, scene.colors], -1).reshape(-1, 9).round(6)
    rows, index = np.unique(table, axis=0, return_inverse=True)
    mesh = trimesh.Trimesh(rows[:, :3], index.reshape(-1, 3), vertex_normals=rows[:, 3:6],
                           vertex_colors=np.rint(255 * rows[:, 6:]).astype(np.uint8), process=False)
    mesh.export(path, encoding='binary', vertex_normal=True)


def camera_pose(index):
    """(4, 4) camera-to-world matrix, OpenGL axes, of view number index.

    Views follow Roberts' R2 sequence over the upper hemisphere (uniform in area): any run of
    consecutive views is well spread, and no view repeats.
    """
    across, around = np.mod(0.5 + index * np.array([0.7548776662466927, 0.5698402909980532]), 1)
    elevation = np.arcsin(np.interp(across, [0, 1], np.sin(ELEVATION_RANGE)))
    cosine, sine = np.cos(2 * np.pi * around), np.sin(2 * np.pi * around)
    right = np.array([-sine, cosine, 0])
    back = np.cos(elevation) * np.array([cosine, sine, np.tan(elevation)])
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, CAMERA_DISTANCE * back], 1)
    return pose


def candidate_pairs(corners):
    """Faces (P,) and samples' rows, columns (P,), a pair for each sample in a face's bounds on screen.

    corners: (F, 3, 3) in camera coordinates. Samples form a grid of GRID a side in which those
    of a pixel lie symmetrically around its ray, and pixel (0, 0) has its ray at coordinates (0, 0).
    """
    pixels = SIZE / 2 + FOCAL * corners[..., :2] * [1, -1] / -corners[..., 2:]
    samples = (pixels + 0.5) * SUPER - 0.5
    first = np.ceil(samples.min(1)).clip(0, GRID).astype(int)
    last = np.floor(samples.max(1)).clip(-1, GRID - 1).astype(int)
    width, height = (last - first + 1).clip(0).T
    face = np.repeat(np.arange(len(corners)), width * height)
    place = np.arange(len(face)) - np.repeat(np.cumsum(width * height) - width * height, width * height)
    return face, first[face, 1] + place // width[face], first[face, 0] + place % width[face]


def cast_rays(corners):
    """Nearest hits of the rays from the origin through all samples: face, sample, direction, weights.

    corners: (F, 3, 3) in camera coordinates; returns (N,), (N,) flat index, (N, 3), (N, 3) barycentric.
    All rays share their origin, so Moeller-Trumbore needs only one 3x3 inverse per face.
    """
    a, b, c = corners.transpose(1, 0, 2)
    planes = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], 1)
    volume = (a * planes[:, 0]).sum(1)
    front = np.flatnonzero(volume < -1e-12)  # the parts are closed, so faces turned away are hidden
    face, row, column = candidate_pairs(corners[front])
    x, y = (((index + 0.5) / SUPER - 0.5 - SIZE / 2) / FOCAL for index in (column, row))
    direction = np.stack([x, -y, -np.ones(len(x))], 1)
    weights = np.einsum('pij,pj->pi', (planes[front] / volume[front, None, None])[face], direction)
    inside = np.flatnonzero((weights >= 0).all(1))
    order = inside[np.argsort(weights[inside].sum(1), kind='stable')]  # by 1 / depth
    nearest = np.full(GRID ** 2, -1)
    nearest[(row * GRID + column)[order]] = order  # where faces overlap, the last and nearest stays
    sample = np.flatnonzero(nearest >= 0)
    hit = nearest[sample]
    return front[face[hit]], sample, direction[hit], weights[hit] / weights[hit].sum(1, keepdims=True)


def shade(scene, face, weights, to_viewer):
    """(N, 3) colours seen from unit directions to_viewer (N, 3): interpolated matte colour + highlight."""
    normal = np.einsum('nk,nkc->nc', weights, scene.normals[face])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    halfway = to_viewer + LIGHT
    halfway /= np.linalg.norm(halfway, axis=1, keepdims=True)
    strength, exponent = scene.gloss[face].T
    highlight = strength * (normal * halfway).sum(1).clip(0) ** exponent * (normal @ LIGHT).clip(0)
    return (np.einsum('nk,nkc->nc', weights, scene.colors[face]) + highlight[:, None]).clip(0, 1)


def render(scene, pose):
    """(SIZE, SIZE, 4) uint8 RGBA picture: mean colour of a pixel's covered samples, alpha their share."""
    rotation, origin = pose[:3, :3], pose[:3, 3]
    face, sample, direction, weights = cast_rays((scene.corners - origin) @ rotation)
    to_viewer = -direction @ rotation.T / np.linalg.norm(direction, axis=1, keepdims=True)
    samples = np.zeros((GRID ** 2, 4))
    samples[sample, :3] = shade(scene, face, weights, to_viewer)
    samples[sample, 3] = 1
    mean = samples.reshape(SIZE, SUPER, SIZE, SUPER, 4).mean((1, 3))
    mean[..., :3] /= np.maximum(mean[..., 3:], 1e-9)
    return np.rint(255 * mean).astype(np.uint8)


def main():
    scene = build_scene(chair_parts())
    save_mesh(scene, OUT / 'toy_chair.ply')
    view = itertools.count()
    for split, count in SPLIT_SIZES.items():
        (OUT / split).mkdir(exist_ok=True)
        frames = []
        for number in range(count):
            pose = camera_pose(next(view))
            Image.fromarray(render(scene, pose)).save(OUT / split / f'r_{number}.png', optimize=True)
            frames.append({'file_path': f'./{split}/r_{number}', 'transform_matrix': pose.tolist()})
        text = json.dumps({'camera_angle_x': CAMERA_ANGLE_X, 'frames': frames}, indent=1)
        (OUT / f'transforms_{split}.json').write_text(text + '\n')


if __name__ == '__main__':
    main()
