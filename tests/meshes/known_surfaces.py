"""Shapes whose surface is known, as densities, as fields, as scenes and as views, for tests of meshes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import trimesh
from known_fields import Solid
from torch import Tensor

from load_blender import pose_spherical
from nerf.cameras import Cameras
from nerf.meshes.extraction import Density
from nerf.meshes.views import SeenFrom, pixel_matrix
from nerf.scene import Images, Scene, centred_intrinsics
from nerf.space import NDC, Bounded

RED, BLUE = (0.8, 0.2, 0.1), (0.1, 0.3, 0.7)

# A ball and a block, in a box of side 3

THRESHOLD = 25.0
BOX = np.array([[-1.5, -1.5, -1.5], [1.5, 1.5, 1.5]])


def ball_distance(points: np.ndarray) -> np.ndarray:
    """Signed distance to a ball of radius 0.5 around (0.7, 0.2, 0.1)."""
    return np.linalg.norm(points - [0.7, 0.2, 0.1], axis=-1) - 0.5


def block_distance(points: np.ndarray) -> np.ndarray:
    """Signed distance to a block with edges 0.6, 1.0 and 0.8, rounded by 0.15, around (-0.6, 0, 0)."""
    q = np.abs(points - [-0.6, 0.0, 0.0]) - [0.15, 0.35, 0.25]
    return np.linalg.norm(np.maximum(q, 0.0), axis=-1) + np.minimum(q.max(-1), 0.0) - 0.15


def distance(points: np.ndarray) -> np.ndarray:
    """Signed distance to the ball and the block."""
    return np.minimum(ball_distance(points), block_distance(points))


def density_of(shape: Callable[[np.ndarray], np.ndarray]) -> Density:
    """Density that is THRESHOLD at the surface of a signed distance, and 0 or twice THRESHOLD 0.05 away from it."""
    def density(points: np.ndarray) -> np.ndarray:
        return (THRESHOLD * np.clip(1.0 - shape(points) / 0.05, 0.0, 2.0)).astype(np.float32)
    return density


def red_ball() -> Solid:
    """Field of the ball of `ball_distance` in red."""
    return Solid(lambda points: torch.from_numpy(density_of(ball_distance)(points.numpy())),
                 lambda points, viewdirs: torch.tensor(RED).expand_as(points))


def three_cameras() -> Scene:
    """Three cameras around the origin, two of which are training cameras."""
    cameras = Cameras.of_one_kind(np.stack([pose_spherical(angle, -30.0, 4.0)[:3] for angle in (0, 120, 240)]),
                                  centred_intrinsics(60, 80, 50.0), 60, 80)
    return Scene(Images.of_one_size(np.zeros((3, 60, 80, 3), np.uint8)), cameras, cameras, Bounded(2.0, 6.0), False,
                 np.array([0, 1]), np.array([2]), np.array([2]))


# A ball around the origin, in a box of side 1.6

SMALL_BOX = np.array([[-0.8, -0.8, -0.8], [0.8, 0.8, 0.8]])
RADIUS = 0.5
FOCAL = 0.9  # widths of a picture
LEVEL = 50.0  # of `steep_ball`
AROUND = Bounded(1.2, 2.8)  # space of `scene_around`


def steep_ball(points: np.ndarray) -> np.ndarray:
    """Density that is LEVEL at the ball's surface and falls exponentially: far from linear between grid points."""
    return (LEVEL * np.exp((RADIUS - np.linalg.norm(points, axis=-1)) / 0.03)).astype(np.float32)


def red_and_blue(points: Tensor, viewdirs: Tensor) -> Tensor:
    """Red where x > 0, and else blue."""
    red = (points[..., :1] > 0).float()
    return torch.cat([red, torch.zeros_like(red), 1.0 - red], -1)


def shell(density: float = 400.0) -> Solid:
    """Hollow ball, red where x > 0 and else blue, whose wall reaches from radius 0.4 to 0.5."""
    def wall(points: Tensor) -> Tensor:
        radius = points.norm(dim=-1)
        return torch.where((radius > 0.4) & (radius < RADIUS), density, 0.0)
    return Solid(wall, red_and_blue)


def scene_around(count: int = 20, size: int = 40) -> Scene:
    """Cameras 2 units from the origin, on all sides, also above and below."""
    poses = np.stack([pose_spherical(137.5 * i, 80.0 - 160.0 * i / (count - 1), 2.0)[:3] for i in range(count)])
    cameras = Cameras.of_one_kind(poses, centred_intrinsics(size, size, FOCAL * size), size, size)
    index = np.arange(count)
    return Scene(Images.of_one_size(np.zeros((count, size, size, 3), np.uint8)), cameras, cameras.take([0, 1, 2, 3]),
                 AROUND, False, index, index[:1], index[:1])


def view_of_ball(pose: np.ndarray, stops: float, outline: float, size: int = 120) -> SeenFrom:
    """View of a ball whose rays end at radius `stops`, and whose outline is at radius `outline`."""
    focal = FOCAL * size
    row, column = np.mgrid[:size, :size] + 0.5 - 0.5 * size
    local = np.stack([column / focal, -row / focal, -np.ones_like(row)], -1)
    along = -(pose[:, 3] @ pose[:, :3] * local).sum(-1) / (local ** 2).sum(-1)  # depth nearest to the origin
    beside2 = pose[:, 3] @ pose[:, 3] - along ** 2 * (local ** 2).sum(-1)
    half = np.sqrt(np.maximum(stops ** 2 - beside2, 0.0)) / np.linalg.norm(local, axis=-1)
    depth = np.where(beside2 < stops ** 2, along - half, np.inf).astype(np.float32)
    opacity = np.clip(0.5 + (outline - np.sqrt(beside2)) / 0.02, 0.0, 1.0).astype(np.float32)
    points = (pose[:, 3] + depth[..., None] * (local @ pose[:, :3].T)).astype(np.float32)
    return SeenFrom(pose[:, 3], focal, pixel_matrix(pose, focal, size, size, AROUND), depth, points,
                    np.zeros((size, size, 3), np.float32), opacity)


# Balls in normalised device coordinates

NEAR_BALL, FAR_BALL = (np.array([0.2, 0.1, -1.8]), 0.3, RED), (np.array([-6.0, 2.0, -18.0]), 3.0, BLUE)
NDC_SPACE = NDC(height=60, width=80, focal=70.0, farthest=30.0)


def balls_in_ndc() -> Solid:
    """Field of NEAR_BALL and FAR_BALL, each a centre, a radius and a colour in the world, in NDC_SPACE."""
    def depths(points: Tensor) -> Tensor:
        """Depths inside each ball, in radii [..., 2]."""
        world = NDC_SPACE.to_world(points.double())
        return torch.stack([1.0 - (world - torch.from_numpy(centre)).norm(dim=-1) / radius
                            for centre, radius, _ in (NEAR_BALL, FAR_BALL)], -1)
    return Solid(lambda points: (THRESHOLD * (1.0 + depths(points).amax(-1) / 0.2)).clamp(0.0, 100.0).float(),
                 lambda points, viewdirs: torch.tensor([RED, BLUE])[depths(points).argmax(-1)])


def one_camera_in_ndc() -> Scene:
    """Camera at the origin that sees both balls."""
    cameras = Cameras.of_one_kind(np.eye(4)[None, :3], centred_intrinsics(60, 80, 70.0), 60, 80)
    return Scene(Images.of_one_size(np.zeros((1, 60, 80, 3), np.uint8)), cameras, cameras, NDC_SPACE, False,
                 *3 * [np.array([0])])


def nine_cameras_in_ndc() -> Scene:
    """Nine cameras that look along -z, in a square."""
    poses = np.tile(np.eye(4)[:3], (9, 1, 1))
    poses[:, :2, 3] = 0.4 * (np.mgrid[:3, :3].reshape(2, 9).T - 1.0)
    cameras = Cameras.of_one_kind(poses, centred_intrinsics(60, 60, 54.0), 60, 60)
    index = np.arange(9)
    return Scene(Images.of_one_size(np.zeros((9, 60, 60, 3), np.uint8)), cameras, cameras,
                 NDC(height=60, width=60, focal=54.0, farthest=6.0), False, index, index[:1], index[:1])


def two_coloured_ball_in_ndc() -> Solid:
    """Field of a ball of radius 0.8 around (0, 0, -3), red where x > 0 and else blue, for `nine_cameras_in_ndc`."""
    space, centre = nine_cameras_in_ndc().space, torch.tensor([0.0, 0.0, -3.0])
    return Solid(lambda points: torch.where(
        (space.to_world(points.double()) - centre).norm(dim=-1) < 0.8, 400.0, 0.0).float(), red_and_blue)


# Meshes


def painted_ball(subdivisions: int = 2) -> trimesh.Trimesh:
    """Unit ball whose colours are its coordinates."""
    ball = trimesh.creation.icosphere(subdivisions=subdivisions)
    ball.visual.vertex_colors = np.uint8(255 * (0.5 + 0.5 * ball.vertices))
    return ball


def texture_at_faces(mesh: trimesh.Trimesh) -> np.ndarray:
    """Colours [F, 3] int that a mesh's texture has at the middles of its faces."""
    image = np.asarray(getattr(mesh.visual.material, 'baseColorTexture', None) or mesh.visual.material.image)
    size, at = len(image), np.asarray(mesh.visual.uv)[mesh.faces].mean(1)
    column, row = (np.stack([at[:, 0], 1.0 - at[:, 1]]) * size).astype(int).clip(0, size - 1)
    return image[row, column, :3].astype(int)


def assert_red_and_blue(mesh: trimesh.Trimesh, some: np.ndarray, least: int) -> None:
    """Asserts that the texture is red on faces with x > 0 and blue on the others, as `red_and_blue` has it.

    Args:
        some: [F] bool faces to look at; faces near x = 0 are left out.
        least: number of faces at least.
    """
    side = mesh.triangles_center[:, :1]
    clear = some & (np.abs(side[:, 0]) > 0.1)
    assert clear.sum() > least
    right = (texture_at_faces(mesh) == np.where(side > 0, [255, 0, 0], [0, 0, 255])).all(1)
    assert right[clear].mean() > 0.98
