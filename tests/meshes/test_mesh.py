"""nerf/meshes/mesh.py and --mesh_only: surfaces, colours, NDC and files against known shapes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from skimage.measure import marching_cubes
from torch import nn

import run_nerf
from load_blender import pose_spherical
from nerf.meshes import mesh as mesh_module
from nerf.cameras import Cameras
from nerf.fields.paper.mlp import FastMLPField
from nerf.fields.interface import Model
from nerf.fields.paper.model import PaperModel
from nerf.meshes.mesh import (
    coarsened, coloured_mesh, describe_mesh, export_mesh, extract_surface, grid_axes, tighten, vertex_normals,
    write_mesh,
)
from nerf.meshes.topology import closedness, without_floaters
from nerf.runtime.errors import UserError
from nerf.scene import Images, Scene, centred_intrinsics
from run_nerf_helpers import NeRF, Sampling, bundle_rays, get_embedder, ndc_points, world_points

THRESHOLD = 25.0
BOX = np.array([[-1.5, -1.5, -1.5], [1.5, 1.5, 1.5]])
RED, BLUE = (0.8, 0.2, 0.1), (0.1, 0.3, 0.7)


def ball_distance(points: np.ndarray) -> np.ndarray:
    """Signed distance to a ball of radius 0.5 around (0.7, 0.2, 0.1)."""
    return np.linalg.norm(points - [0.7, 0.2, 0.1], axis=-1) - 0.5


def block_distance(points: np.ndarray) -> np.ndarray:
    """Signed distance to a block with edges 0.6, 1.0 and 0.8, rounded by 0.15, around (-0.6, 0, 0)."""
    q = np.abs(points - [-0.6, 0.0, 0.0]) - [0.15, 0.35, 0.25]
    return np.linalg.norm(np.maximum(q, 0.0), axis=-1) + np.minimum(q.max(-1), 0.0) - 0.15


def distance(points: np.ndarray) -> np.ndarray:
    return np.minimum(ball_distance(points), block_distance(points))


def density_of(shape):
    """A field that is THRESHOLD at the surface of a signed distance and 0 or twice that 0.05 away from it."""
    def density(points: np.ndarray) -> np.ndarray:
        return (THRESHOLD * np.clip(1.0 - shape(points) / 0.05, 0.0, 2.0)).astype(np.float32)
    return density


class Counted:
    """A density that counts the points it was asked for."""

    def __init__(self, density):
        self.density, self.points = density, 0

    def __call__(self, points: np.ndarray) -> np.ndarray:
        self.points += len(points)
        return self.density(points)


def whole_grid(density, box: np.ndarray, grid_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Marching cubes on all points of the grid."""
    axes = grid_axes(box, grid_size)
    points = np.stack(np.meshgrid(*axes, indexing='ij'), -1)
    values = density(points.reshape(-1, 3).astype(np.float32)).reshape(points.shape[:3])
    vertices, faces, _, _ = marching_cubes(values, THRESHOLD, gradient_direction='ascent')
    return (box[0] + [axis[1] - axis[0] for axis in axes] * vertices).astype(np.float32), faces


# The surface


def test_vertices_lie_on_the_surface_and_faces_look_outwards():
    vertices, faces = extract_surface(density_of(distance), BOX, 64, THRESHOLD)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert np.abs(distance(vertices)).max() < 0.3 * 3.0 / 63
    assert mesh.is_watertight
    block = 0.105 + 0.15 * 1.42 + np.pi * 0.15 ** 2 * 1.5 + 4 / 3 * np.pi * 0.15 ** 3  # Steiner's formula
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.5 ** 3 + block, rel=0.01)
    np.testing.assert_allclose(mesh.bounds, [[-0.9, -0.5, -0.4], [1.2, 0.7, 0.6]], atol=0.02)


def sheet(points: np.ndarray) -> np.ndarray:
    """A tilted round sheet, thinner than a block of the coarse pass."""
    height = points @ np.array([0.36, 0.48, 0.8])
    return np.maximum(np.abs(height) - 0.03, np.linalg.norm(points, axis=-1) - 1.2)


@pytest.mark.parametrize(('shape', 'grid_size', 'share'), [
    (distance, 64, 0.4), (distance, 101, 0.3), (distance, 150, 0.25), (sheet, 90, 0.5)])
def test_the_result_is_that_of_the_whole_grid_from_a_part_of_its_points(shape, grid_size, share):
    density = Counted(density_of(shape))
    box = BOX * [1.0, 0.9, 0.83]  # of unequal sides
    ours, whole = extract_surface(density, box, grid_size, THRESHOLD), whole_grid(density_of(shape), box, grid_size)
    for a, b in zip(ours, whole):
        np.testing.assert_array_equal(a, b)
    assert density.points < share * np.prod([len(axis) for axis in grid_axes(box, grid_size)])


def test_a_thin_thing_that_the_coarse_pass_sees_at_one_end_is_followed_to_the_other():
    def spike(points):  # a ball with a thorn of a third of a block's width
        along = points[:, 0].clip(0.0, 1.3)
        thorn = np.linalg.norm(points - np.stack([along, 0.21 * along, 0.37 * along], -1), axis=-1) - 0.03
        return np.minimum(np.linalg.norm(points, axis=-1) - 0.3, thorn)

    def density(points):
        return np.where(spike(points) < 0, 50.0, 0.0).astype(np.float32)  # no blur that would give it away
    for a, b in zip(extract_surface(density, BOX, 100, THRESHOLD), whole_grid(density, BOX, 100)):
        np.testing.assert_array_equal(a, b)


def test_work_grows_with_the_surface_not_the_volume():
    counts = []
    for grid_size in (131, 261):
        density = Counted(density_of(ball_distance))
        extract_surface(density, BOX, grid_size, THRESHOLD)
        counts.append(density.points)
    assert counts[1] < 6.0 * counts[0]  # eight times the volume


def test_a_small_thing_far_from_the_rest_is_found_where_a_coarse_point_meets_it():
    def pair(points):
        small = np.linalg.norm(points - [1.2, 1.2, 1.2], axis=-1) - 2.1 * 3.0 / 127
        return np.minimum(ball_distance(points), small)

    def density(points):
        return np.where(pair(points) < 0, 50.0, 0.0).astype(np.float32)
    for a, b in zip(extract_surface(density, BOX, 128, THRESHOLD), whole_grid(density, BOX, 128)):
        np.testing.assert_array_equal(a, b)


def test_fog_below_the_threshold_does_not_need_memory_for_all_blocks_at_once(monkeypatch):
    most = []
    points_of = mesh_module._points_of
    monkeypatch.setattr(mesh_module, 'BLOCKS_AT_ONCE', 1000)
    monkeypatch.setattr(mesh_module, '_points_of', lambda blocks, *rest: most.append(len(blocks)) or points_of(
        blocks, *rest))

    def foggy(points):
        return np.maximum(density_of(ball_distance)(points), 18.0)
    for a, b in zip(extract_surface(foggy, BOX, 64, THRESHOLD), whole_grid(foggy, BOX, 64)):
        np.testing.assert_array_equal(a, b)
    assert max(most) <= 1000
    assert sum(most) > 20000


def test_densities_at_the_threshold_itself_leave_no_cracks():
    def steps(points):  # as of few bits
        return np.round(density_of(ball_distance)(points) / 12.5) * np.float32(12.5)
    vertices, faces = extract_surface(steps, BOX, 40, THRESHOLD)
    assert trimesh.Trimesh(vertices, faces, process=False).is_watertight


def test_grid_axes_end_at_the_box_and_have_grid_size_points_along_the_longest_side():
    axes = grid_axes(np.array([[0.0, 1.0, -1.0], [2.0, 1.9, 3.0]]), 9)
    assert [len(axis) for axis in axes] == [5, 3, 9]
    assert [(axis[0], axis[-1]) for axis in axes] == [(0.0, 2.0), (1.0, 1.9), (-1.0, 3.0)]
    for axis, step in zip(axes, (0.5, 0.45, 0.5)):
        assert np.diff(axis) == pytest.approx(step)


def test_the_far_end_in_ndc_stays_in_front_of_infinity():
    box = np.array([[-1.3, -1.2, -1.0], [1.3, 1.2, 1.0 - 2.0 / 100.0]])
    seen = []

    def density(points):
        seen.append(points[:, 2].max())
        return (50.0 * (points[:, 2] > 0.5)).astype(np.float32)  # up to the far end
    vertices, _ = extract_surface(density, tighten(density, box, THRESHOLD), 24, THRESHOLD)
    assert max(seen) <= np.float32(0.98)
    assert world_points(H, W, FOCAL, 1.0, torch.from_numpy(vertices))[:, 2].min() >= -100.1


def test_the_box_is_tightened_to_the_density_with_a_margin():
    box = tighten(density_of(ball_distance), 2 * BOX, THRESHOLD)
    step = 6.0 / (mesh_module.SURVEY - 1)
    assert (box[0] <= [0.2, -0.3, -0.4]).all()
    assert (box[1] >= [1.2, 0.7, 0.6]).all()
    assert (np.abs(box - [[0.2, -0.3, -0.4], [1.2, 0.7, 0.6]]) < 3.01 * step).all()
    quarter = np.array([[0.7, 0.2, 0.1], [0.9, 1.0, 1.2]])  # reaches out of the ball on two sides alone
    tight = tighten(density_of(ball_distance), quarter, THRESHOLD)
    np.testing.assert_array_equal(tight[0], quarter[0])
    np.testing.assert_allclose(tight[1], [0.9, 0.7, 0.6], atol=0.02)


def test_the_tightened_box_holds_what_is_thinner_than_the_surveys_coarse_steps():
    box = tighten(density_of(sheet), 2 * BOX, THRESHOLD)
    reach = 1.2 * np.sqrt(1 - np.array([0.36, 0.48, 0.8]) ** 2)  # of a disc across that normal
    assert (box[0] < -reach).all()
    assert (box[1] > reach).all()


@pytest.mark.parametrize('find', [lambda density: tighten(density, BOX, THRESHOLD),
                                  lambda density: extract_surface(density, BOX, 33, THRESHOLD)])
def test_no_surface_is_an_error_with_the_range_and_a_threshold_to_try(find):
    def thin(points):
        return (8.0 - np.linalg.norm(points, axis=-1)).clip(0.0).astype(np.float32)
    with pytest.raises(UserError, match=r'threshold 25: it is from 5\.4 to 8 .*; try --mesh_threshold 6\.7') as error:
        find(thin)
    assert '\n' not in str(error.value)
    with pytest.raises(UserError, match='train longer'):
        find(lambda points: np.zeros(len(points), np.float32))
    with pytest.raises(UserError, match=r'from 45\.4 to 48 .*; try --mesh_threshold 47'):
        find(lambda points: thin(points) + 40)


def test_floaters_are_dropped_and_counted():
    ball, small = (trimesh.creation.icosphere(subdivisions=n) for n in (3, 0))  # 1280 and 20 faces
    tiny = trimesh.creation.box()  # 12 faces: less than 1%
    meshes = [tiny, small, ball, tiny.copy()]
    offsets = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes])
    vertices = np.concatenate([mesh.vertices + 5 * i for i, mesh in enumerate(meshes)])
    faces = np.concatenate([mesh.faces + offset for mesh, offset in zip(meshes, offsets)])
    kept, faces, dropped = without_floaters(vertices, faces)
    assert dropped == 2
    np.testing.assert_array_equal(kept, np.concatenate([small.vertices + 5, ball.vertices + 10]))
    np.testing.assert_array_equal(faces, np.concatenate([small.faces, ball.faces + len(small.vertices)]))


# Colours, on a network


def fitted_field(use_viewdirs: bool) -> FastMLPField:
    """A small network fitted to the ball in red and the block in blue."""
    torch.manual_seed(0)
    embed, channels = get_embedder(4)
    embed_dirs, channels_views = get_embedder(1)
    network = NeRF(D=4, W=64, input_ch=channels, input_ch_views=channels_views, use_viewdirs=use_viewdirs)
    field = FastMLPField(network, embed, embed_dirs if use_viewdirs else None)
    optimizer = torch.optim.Adam(field.parameters(), lr=2e-3)
    rng = np.random.default_rng(0)
    steps = 1200
    for step in range(steps):
        points = rng.uniform(-1.5, 1.5, (2048, 3)).astype(np.float32)
        blue = 1.0 / (1.0 + np.exp(((block_distance(points) - ball_distance(points)) / 0.05).clip(-9.0, 9.0)))
        colour = np.float32(RED + blue[:, None] * np.subtract(BLUE, RED))  # they change in between
        density = THRESHOLD * (1.0 - distance(points) / 0.1).clip(-3.0, 3.0)
        views = nn.functional.normalize(torch.from_numpy(rng.normal(size=(2048, 3)).astype(np.float32)), dim=-1)
        raw = network(torch.cat([embed(torch.from_numpy(points)), embed_dirs(views)], -1))
        loss = (((raw[:, 3] - torch.from_numpy(density).float()) / THRESHOLD) ** 2).mean()
        loss = loss + 3.0 * ((raw[:, :3].sigmoid() - torch.from_numpy(colour)) ** 2).mean()
        optimizer.param_groups[0]['lr'] = 2e-3 * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return field.requires_grad_(False)


@pytest.mark.parametrize('use_viewdirs', [True, False])
def test_the_mesh_of_a_fitted_network_has_the_shape_and_colours_that_it_was_fitted_to(use_viewdirs):
    model = PaperModel(fitted_field(use_viewdirs), None, Sampling(8), chunk=1000)
    box = tighten(model.density_array, BOX, THRESHOLD)
    vertices, faces, _ = without_floaters(*extract_surface(model.density_array, box, 40, THRESHOLD))
    step = (box[1] - box[0]).max() / 39
    mesh = coloured_mesh(model, vertices, faces, 2 * step)
    assert np.abs(distance(mesh.vertices)).max() < step
    on_ball = ball_distance(mesh.vertices) < block_distance(mesh.vertices)
    assert 0.2 < on_ball.mean() < 0.8
    error = np.abs(mesh.visual.vertex_colors[:, :3] / 255.0 - np.where(on_ball[:, None], RED, BLUE))
    assert np.quantile(error, 0.99) < 0.05
    assert mesh.volume > 0


class Painted(Model):
    """A model whose colour is of the view: red where it goes to +x, green to +y, blue to +z."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))  # a model's device is its parameters'

    def radiance(self, points, viewdirs):
        return viewdirs.clamp(0.01, 0.99)[:, None].expand_as(points), torch.full_like(points[..., 0], 30.0)


def test_a_vertex_is_seen_along_its_inward_normal():
    ball = trimesh.creation.icosphere(subdivisions=3)
    mesh = coloured_mesh(Painted(), np.float32(ball.vertices), ball.faces, 0.05)
    expected = (-ball.vertices).clip(0.01, 0.99)  # inwards is to -x on the side of +x
    np.testing.assert_allclose(mesh.visual.vertex_colors[:, :3] / 255.0, expected, atol=0.02)
    assert (mesh.visual.vertex_colors[:, 3] == 255).all()


def test_a_vertex_without_a_normal_has_the_mean_colour_over_views():
    vertices = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5], [5, 5, 5], [5, 5, 5]])
    mesh = coloured_mesh(Painted(), vertices, np.array([[0, 1, 2], [3, 4, 5]]), 0.05)
    np.testing.assert_allclose(mesh.visual.vertex_colors[3, :3] / 255.0, (0.99 + 5 * 0.01) / 6, atol=0.01)


def test_the_copy_for_pictures_is_small_and_like_the_mesh():
    ball = trimesh.creation.icosphere(subdivisions=7)
    ball.visual.vertex_colors = np.uint8(255 * (0.5 + 0.5 * ball.vertices))
    small = coarsened(ball, ball.vertices)
    assert len(small.vertices) < 0.8 * len(ball.vertices)
    assert small.volume == pytest.approx(ball.volume, rel=0.02)
    np.testing.assert_allclose(small.visual.vertex_colors[:, :3] / 255.0, 0.5 + 0.5 * small.vertices, atol=0.02)


# NDC

H, W, FOCAL = 60, 80, 70.0


def test_ndc_and_back_is_the_identity():
    points = torch.tensor([[0.3, -0.2, -1.0], [-2.0, 1.5, -3.0], [0.0, 0.0, -1.5], [40.0, -30.0, -200.0]]).double()
    there = ndc_points(H, W, FOCAL, 1.0, points)
    torch.testing.assert_close(world_points(H, W, FOCAL, 1.0, there), points)
    torch.testing.assert_close(there[0], torch.tensor([2 * 70 / 80 * 0.3, 2 * 70 / 60 * -0.2, -1.0]).double())
    torch.testing.assert_close(there[3, 2], torch.tensor(1 - 2 / 200).double())


def test_ndc_points_lie_on_ndc_rays():
    torch.manual_seed(0)
    origins, directions = torch.randn(50, 3).double() * 0.1, torch.randn(50, 3).double() * 0.3
    directions[:, 2] = -1.0
    rays = bundle_rays(origins, directions, 0.0, 1.0, (H, W, FOCAL))
    for depth in (1.2, 4.0, 90.0):
        world = origins + directions * (depth + origins[:, 2:])  # z = -depth
        t = 1.0 - 1.0 / depth
        torch.testing.assert_close(ndc_points(H, W, FOCAL, 1.0, world), rays.origins + t * rays.directions)


BALLS = [(np.array([0.2, 0.1, -1.8]), 0.3, RED), (np.array([-6.0, 2.0, -18.0]), 3.0, BLUE)]  # centre, radius, colour


class BallsInNDC(Model):
    """The BALLS in normalised device coordinates."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def depths(self, points: torch.Tensor) -> torch.Tensor:
        """How deep inside each ball, in radii [..., 2]."""
        world = world_points(H, W, FOCAL, 1.0, points.double())
        return torch.stack([1.0 - (world - torch.from_numpy(centre)).norm(dim=-1) / radius
                            for centre, radius, _ in BALLS], -1)

    def density(self, points: torch.Tensor) -> torch.Tensor:
        return (THRESHOLD * (1.0 + self.depths(points).amax(-1) / 0.2)).clamp(0.0, 100.0).float()

    def radiance(self, points, viewdirs):
        return torch.tensor([RED, BLUE])[self.depths(points).argmax(-1)], self.density(points)


def test_a_surface_goes_through_ndc_and_back_within_a_grid_step_near_and_far():
    model = BallsInNDC()
    box = np.array([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0 - 2.0 / 30.0]])
    grid_size, density = 160, model.density_array
    vertices, faces = extract_surface(density, tighten(density, box, THRESHOLD), grid_size, THRESHOLD)
    mesh = coloured_mesh(model, vertices, faces, 0.02, (H, W, FOCAL))
    assert mesh.is_watertight
    assert mesh.body_count == 2
    for part, (centre, radius, colour) in zip(sorted(mesh.split(), key=lambda part: part.volume), BALLS):
        assert part.volume == pytest.approx(4 / 3 * np.pi * radius ** 3, rel=0.05)  # not inside out
        off = np.abs(np.linalg.norm(part.vertices - centre, axis=1) - radius)
        depth = -part.vertices[:, 2]
        step = 2.0 / (grid_size - 1) * depth ** 2 / 2.0  # |dz / dz'| of a grid step
        assert (off < step).all()
        np.testing.assert_allclose(part.visual.vertex_colors[:, :3] / 255.0, np.tile(colour, (len(depth), 1)),
                                   atol=0.01)


@pytest.fixture
def two_balls(monkeypatch) -> Scene:
    """The scene of BallsInNDC, looked at from the origin."""
    monkeypatch.setattr(mesh_module, 'SURVEY', 65)
    pose = np.eye(4)[None, :3]
    cameras = Cameras.of_one_kind(pose, centred_intrinsics(H, W, FOCAL), H, W)
    return replace(scene_of(), images=Images.of_one_size(np.zeros((1, H, W, 3), np.uint8)), cameras=cameras,
                   render_cameras=cameras, near=0.0, far=1.0, ndc=True, around=False, farthest=30.0,
                   i_train=np.array([0]), i_val=np.array([0]), i_test=np.array([0]))


@pytest.mark.parametrize('nth', [0, 1])
def test_a_mesh_from_ndc_is_cut_to_a_box_of_the_world(two_balls, tmp_path, nth):
    centre, radius, colour = BALLS[nth]
    box = np.stack([centre - 2.0 * radius, centre + 2.0 * radius])
    box[1, 0] = centre[0]  # a half of it
    export_mesh(BallsInNDC(), two_balls, tmp_path / 'part.ply', 160, THRESHOLD, bounds=box)
    mesh = trimesh.load(tmp_path / 'part.ply', force='mesh', process=False)
    assert (mesh.vertices >= box[0]).all()
    assert (mesh.vertices <= box[1]).all()
    np.testing.assert_allclose(mesh.bounds[0], centre - radius, atol=0.1 * radius)
    np.testing.assert_allclose(mesh.bounds[1], [centre[0], *(centre + radius)[1:]], atol=0.1 * radius)
    np.testing.assert_allclose(mesh.visual.vertex_colors[:, :3].mean(0) / 255.0, colour, atol=0.01)


def test_bounds_that_hold_nothing_are_one_line(two_balls, tmp_path):
    behind = np.array([[-1.0, -1.0, 1.0], [1.0, 1.0, 2.0]])
    with pytest.raises(UserError, match='mesh_bounds -1 -1 1 to 1 1 2 is not in what the training cameras see'):
        export_mesh(BallsInNDC(), two_balls, tmp_path / 'part.ply', 40, THRESHOLD, bounds=behind)
    assert not list(tmp_path.iterdir())


# Files


def scene_of() -> Scene:
    """Three cameras around the origin."""
    cameras = Cameras.of_one_kind(np.stack([pose_spherical(angle, -30.0, 4.0)[:3] for angle in (0, 120, 240)]),
                                  centred_intrinsics(60, 80, 50.0), 60, 80)
    return Scene(images=Images.of_one_size(np.zeros((3, 60, 80, 3), np.uint8)), cameras=cameras, render_cameras=cameras,
                 near=2.0, far=6.0, ndc=False, white_bkgd=False, i_train=np.array([0, 1]), i_val=np.array([2]),
                 i_test=np.array([2]))


class Ball(Model):
    """The ball of `ball_distance` in red."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def density(self, points):
        return torch.from_numpy(density_of(ball_distance)(points.numpy()))

    def radiance(self, points, viewdirs):
        return torch.tensor(RED).expand_as(points), torch.full_like(points[..., 0], 30.0)


def test_an_exported_mesh_is_the_surface_in_its_colours_with_four_views_beside_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mesh_module, 'SURVEY', 33)
    small = export_mesh(Ball(), scene_of(), tmp_path / 'deep' / 'ball.ply', 40, THRESHOLD)
    assert sorted(path.name for path in (tmp_path / 'deep').iterdir()) == ['ball.ply', 'ball_views.png']
    mesh = trimesh.load(tmp_path / 'deep' / 'ball.ply', force='mesh', process=False)
    assert np.abs(ball_distance(mesh.vertices)).max() < 0.01
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.5 ** 3, rel=0.02)
    np.testing.assert_allclose(np.asarray(mesh.visual.vertex_colors)[:, :3] / 255.0,
                               np.tile(RED, (len(mesh.vertices), 1)), atol=0.01)
    assert small.volume == pytest.approx(mesh.volume, rel=0.02)
    picture = np.asarray(Image.open(tmp_path / 'deep' / 'ball_views.png').convert('RGB')).astype(int)
    assert picture.shape == (300, 1600, 3)
    assert all((view[..., 0] - view[..., 2] > 60).sum() > 500 for view in np.split(picture, 4, axis=1))
    said = capsys.readouterr().out
    assert f'{len(mesh.vertices):,} vertices, {len(mesh.faces):,} of ' in said
    assert 'faces, watertight, 0 floaters dropped' in said
    assert f"mesh in {tmp_path / 'deep' / 'ball.ply'}, four views of it in" in said


def test_a_mesh_is_cut_to_bounds(tmp_path):
    box = np.array([[-1.0, -1.0, -1.0], [0.8, 1.0, 1.0]])
    export_mesh(Ball(), scene_of(), tmp_path / 'part.ply', 40, THRESHOLD, bounds=box)
    mesh = trimesh.load(tmp_path / 'part.ply', force='mesh', process=False)
    np.testing.assert_allclose(mesh.bounds, [[0.2, -0.3, -0.4], [0.8, 0.7, 0.6]], atol=0.03)
    assert not mesh.is_watertight


def test_bounds_are_recommended_where_the_scene_has_none(tmp_path, capsys):
    endless, path = replace(scene_of(), bounded=False), tmp_path / 'ball.ply'
    export_mesh(Ball(), endless, path, 20, THRESHOLD)
    assert 'the scene goes on: --mesh_bounds' in capsys.readouterr().out
    for scene, bounds in ((scene_of(), None), (endless, BOX)):
        export_mesh(Ball(), scene, path, 20, THRESHOLD, bounds=bounds)
        assert 'mesh_bounds' not in capsys.readouterr().out


def painted_ball() -> trimesh.Trimesh:
    ball = trimesh.creation.icosphere(subdivisions=2)
    ball.visual.vertex_colors = np.uint8(255 * (0.5 + 0.5 * ball.vertices))
    return ball


@pytest.mark.parametrize('name', ['mesh.ply', 'mesh.obj', 'mesh.glb', 'MESH.PLY'])
def test_a_written_mesh_reads_back_with_its_colours(tmp_path, name):
    ball = painted_ball()
    write_mesh(tmp_path / 'deep' / name, ball)
    assert [path.name for path in (tmp_path / 'deep').iterdir()] == [name]
    again = trimesh.load(tmp_path / 'deep' / name, force='mesh', process=False)
    np.testing.assert_allclose(again.vertices, ball.vertices, atol=1e-6)
    np.testing.assert_array_equal(again.faces, ball.faces)
    np.testing.assert_array_equal(again.visual.vertex_colors, ball.visual.vertex_colors)


def test_an_interrupted_write_leaves_the_earlier_mesh(tmp_path, monkeypatch):
    path = tmp_path / 'mesh.ply'
    path.write_text('earlier')

    def interrupted(self, file, **_):
        file.write_text('half')
        raise KeyboardInterrupt
    monkeypatch.setattr(trimesh.Trimesh, 'export', interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_mesh(path, painted_ball())
    assert path.read_text() == 'earlier'
    assert [path.name for path in tmp_path.iterdir()] == ['mesh.ply']


def test_what_is_said_of_a_mesh():
    text = describe_mesh(trimesh.creation.box((1, 2, 4)), 'watertight', 24, 3)
    assert '8 vertices, 12 of 24 faces, watertight, 3 floaters dropped' in text
    assert '-0.500 -1.000 -2.000 to 0.500 1.000 2.000, area 28' in text


@pytest.mark.parametrize('mesh', [trimesh.creation.icosphere(2), trimesh.creation.box((1, 2, 3)),
                                  trimesh.creation.annulus(0.5, 1.0, 2.0)])
def test_closedness_normals_and_area_are_trimeshs(mesh, monkeypatch):
    monkeypatch.setattr(mesh_module, 'FACES_AT_ONCE', 7)
    faces = mesh.faces[np.random.default_rng(0).permutation(len(mesh.faces))]
    assert closedness(faces) == 'watertight'
    for broken in (faces[1:], np.concatenate([faces, faces[:1]]), np.concatenate([faces, faces[:2]])):
        assert closedness(broken) == 'not watertight'
    assert closedness(np.concatenate([faces, faces])) == f'closed, but it touches itself at {len(faces) * 3 // 2} edges'
    ours, theirs = vertex_normals(mesh.vertices, faces), mesh.vertex_normals
    assert ((ours * theirs).sum(1) > 0.7).all()  # trimesh weighs by angle
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1.0, atol=1e-6)
    assert f'area {mesh.area:.4g}' in describe_mesh(trimesh.Trimesh(mesh.vertices, faces, process=False), '', 0, 0)


# The program

SMALL = ['--dataset_type', 'blender', '--white_bkgd', '--netdepth', '2', '--netwidth', '16', '--multires', '2',
         '--N_samples', '8', '--N_rand', '32', '--testskip', '1', '--device', 'cpu', '--expname', 'run']


@pytest.fixture
def trained(tiny_scene, tmp_path):
    """Flags of a run with a checkpoint at step 5, and the run's folder."""
    flags = [*SMALL, '--datadir', str(tiny_scene(tmp_path / 'scene')), '--basedir', str(tmp_path / 'logs')]
    assert run_nerf.main([*flags, '--N_iters', '5']) == 0
    return flags, tmp_path / 'logs' / 'run'


MESH = ['--mesh_only', '--mesh_grid_size', '24', '--mesh_threshold']


def threshold_within(flags: list[str]) -> str:
    """A threshold in the middle of the density's range."""
    args = run_nerf.parse_flags(flags)
    model = run_nerf.create_nerf(args, torch.device('cpu'), torch.float32)
    run_nerf.restore_model(args, run_nerf.Path(args.basedir) / 'run', model)
    densities = model.density_array(np.random.default_rng(0).uniform(-2, 2, (2000, 3)).astype(np.float32))
    return str(float(np.median(densities)))


def test_mesh_only_writes_a_mesh_and_its_picture(trained, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(mesh_module, 'SURVEY', 33)
    flags, run_dir = trained
    threshold = threshold_within(flags)
    capsys.readouterr()
    assert run_nerf.main([*flags, *MESH, threshold]) == 0
    said = capsys.readouterr().out
    mesh = trimesh.load(run_dir / 'mesh_000005.ply', process=False)
    assert f'{len(mesh.vertices):,} vertices' in said
    assert 'box ' in said
    assert str(run_dir / 'mesh_000005.ply') in said
    assert Image.open(run_dir / 'mesh_000005_views.png').size == (1600, 400)
    assert run_nerf.main([*flags, *MESH, threshold, '--mesh_file', str(tmp_path / 'elsewhere' / 'm.glb')]) == 0
    again = trimesh.load(tmp_path / 'elsewhere' / 'm.glb', force='mesh', process=False)
    assert len(again.vertices) == len(mesh.vertices)
    assert (tmp_path / 'elsewhere' / 'm_views.png').is_file()


def test_mesh_only_is_one_line_where_nothing_is_there(trained, capsys):
    flags, run_dir = trained
    before = sorted(run_dir.iterdir())
    assert run_nerf.main([*flags, *MESH, '1e9']) == 1
    error = capsys.readouterr().err
    assert error.startswith('error: the density has no surface at mesh_threshold 1e+09')
    assert error.count('\n') == 1
    assert sorted(path for path in run_dir.iterdir() if not path.name.endswith('_occupancy.npz')) == before


def test_mesh_only_without_a_checkpoint_says_how_to_get_one(tiny_scene, tmp_path, capsys):
    flags = [*SMALL, '--datadir', str(tiny_scene(tmp_path / 'scene')), '--basedir', str(tmp_path / 'logs')]
    assert run_nerf.main([*flags, *MESH, '5']) == 1
    error = capsys.readouterr().err
    assert 'has no checkpoint; train first' in error
    assert error.count('\n') == 1
    assert not (tmp_path / 'logs').exists()


def test_ctrl_c_leaves_no_file(trained, monkeypatch):
    flags, run_dir = trained
    before = sorted(run_dir.iterdir())

    def interrupt(self, points, **_):
        raise KeyboardInterrupt
    monkeypatch.setattr(Model, 'density_array', interrupt)
    assert run_nerf.main([*flags, *MESH, '5']) == 130
    assert sorted(path for path in run_dir.iterdir() if not path.name.endswith('_occupancy.npz')) == before
