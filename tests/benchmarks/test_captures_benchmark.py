"""The yardstick of captures: choice of the arc, splits, fog and depth of known fields, right halves, the table."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

import captures
import field_figures
from captured import ball_of_points, capture_of, change, ring
from known_fields import Solid
from load_photos import load_transforms
from nerf.cameras import Cameras
from nerf.captures.placement import place
from nerf.fields.grid.build import build_field
from nerf.fields.grid.schedule import GridSchedule
from nerf.metrics import psnr
from nerf.scene import Images, Scene
from nerf.space import NDC, Bounded, Unbounded

CPU = torch.device('cpu')
SIDE = 64  # pixels of a view


def cameras_at(poses: np.ndarray, focal: float = 80.0) -> Cameras:
    K = np.array([[focal, 0.0, SIDE / 2], [0.0, focal, SIDE / 2], [0.0, 0.0, 1.0]])
    return replace(Cameras.of_one_kind(poses, K, SIDE, SIDE), within=0.5)


def grey(points, viewdirs):
    return torch.full_like(points, 0.5)


def ball_in_fog(fog: float) -> Solid:
    """Opaque unit ball around the origin, and fog of a density in 1/scene unit everywhere else."""
    return Solid(lambda points: torch.where(points.norm(dim=-1) < 1.0, 300.0, fog), grey)


# The arc


def test_arc_loses_the_fewest_photographs_and_has_others_close_by_on_both_sides():
    azimuth = np.concatenate([np.arange(0.0, 180.0, 4.0), np.arange(180.0, 360.0, 10.0)])
    chosen = azimuth[captures.choose_arc(azimuth)]
    assert len(chosen) == 3
    assert np.ptp(chosen) <= 25.0
    assert chosen.mean() > 176.0


def test_arc_is_not_at_the_end_of_an_open_range():
    azimuth = np.concatenate([[0.0, 1.0, 2.0], np.arange(10.0, 100.0, 5.0), [110.0, 115.0, 120.0]])
    chosen = azimuth[captures.choose_arc(azimuth)]
    assert chosen.min() > 2.0
    assert chosen.max() < 110.0


def test_arc_crosses_the_turn_from_360_to_0_degrees():
    azimuth = np.concatenate([np.arange(20.0, 341.0, 2.0), [352.0, 0.0, 8.0]])
    assert {352.0, 0.0} <= set(azimuth[captures.choose_arc(azimuth)])


def test_arc_has_two_photographs_if_none_has_three_and_none_if_all_are_alone():
    assert len(captures.choose_arc(np.arange(20) * 18.0)) == 2
    assert len(captures.choose_arc(np.arange(12) * 30.0)) == 0


def test_arc_shares_no_photograph_with_another_one():
    azimuth = np.arange(0.0, 360.0, 8.0)
    first = captures.choose_arc(azimuth)
    second = captures.choose_arc(azimuth, first.tolist())
    assert len(second) == 3
    assert not set(first) & set(second)


def test_cameras_above_the_scene_have_no_azimuth():
    poses = ring([0, 40, 80, 120, 160, 200, 240, 280, 320], [20.0] * 8 + [88.0])
    azimuth = captures.azimuths(place(capture_of(poses, points=ball_of_points())))
    assert np.isfinite(azimuth[:8]).all()
    assert np.isnan(azimuth[8])
    np.testing.assert_allclose(np.diff(azimuth[:8]) % 360.0, 40.0, atol=2.0)


# Splits


@pytest.fixture
def ring_folder(tmp_path, tiny_transforms):
    """Folder of a transforms.json with 24 photographs from all around a ball, and points on it."""
    folder = tiny_transforms(tmp_path / 'scene', count=24, ply_file_path='points.ply')
    captures.write_points(folder / 'points.ply', ball_of_points())
    poses = [{'transform_matrix': [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]} for pose in ring(np.arange(24) * 15.0)]
    change(folder, *poses)
    return folder


@pytest.fixture
def split_folders(tmp_path, ring_folder):
    """Function from `validation` to the whole capture, its splits by name, and their captures as loaded."""
    def written(validation: bool):
        out = tmp_path / f'out_{validation}'
        out.mkdir()
        options = Namespace(validation=validation, no_arc=False, factor=None)
        splits = captures.splits_of('ring', ring_folder, out, options)
        loaded = {split.name: load_transforms(out / f'ring_{split.name}', outside_files=True) for split in splits}
        return load_transforms(ring_folder), {split.name: split for split in splits}, loaded
    return written


def names(capture, index) -> set[str]:
    return {capture.paths[i].name for i in index}


def test_test_views_and_the_arc_do_not_train(split_folders):
    source, splits, loaded = split_folders(False)
    assert set(loaded) == {'test', 'arc'}
    assert names(loaded['test'], loaded['test'].i_test) == names(source, source.i_test)
    for name, part in loaded.items():
        assert all(map(np.array_equal, splits[name].targets, (part.images[i] for i in part.i_test)))
        assert [part.paths[i].name for i in part.i_test] == splits[name].tested
        assert len(part.i_train) + len(part.i_test) == 24
    azimuth = 15.0 * np.array(splits['arc'].photographs)
    assert len(azimuth) >= 2
    assert np.ptp(np.unwrap(azimuth, period=360.0)) <= 25.0


def test_tuning_sees_no_test_view_and_another_arc(split_folders):
    source, tests, _ = split_folders(False)
    _, tuned, loaded = split_folders(True)
    assert set(loaded) == {'validation', 'arc'}
    for part in loaded.values():
        assert not names(part, range(len(part.paths))) & names(source, source.i_test)
    assert not set(tuned['arc'].tested) & set(tests['arc'].tested)


def test_split_keeps_cameras_and_most_points(tmp_path, tiny_transforms):
    source = load_transforms(tiny_transforms(tmp_path / 'scene', k1=0.1, k2=-0.02, p1=1e-3))
    source = replace(source, points=np.random.default_rng(0).normal(size=(50, 3)))
    captures.write_split(tmp_path / 'split', source, source.i_train, source.i_test, 1)
    copy = load_transforms(tmp_path / 'split', outside_files=True)
    for part in ('poses', 'intrinsics', 'distortion', 'sizes'):
        torch.testing.assert_close(getattr(copy.cameras, part), getattr(source.cameras, part))
    held = captures.is_held(source.points)
    assert 5 <= held.sum() <= 15
    np.testing.assert_allclose(copy.points, source.points[~held])


@pytest.mark.parametrize('fisheye', [False, True])
def test_points_are_projected_where_rays_of_the_lens_meet_them(fisheye):
    lens = [0.08, -0.02, 0.0, 0.0, 0.01, 0.003, 0.0, 0.0] if fisheye else [0.1, -0.03, 1e-3, -2e-3, 0.01, 0.0, 0.0, 0.0]
    cameras = replace(capture_of(ring([30.0]), distortion=[lens], fisheye=[fisheye]).cameras, within=0.5)
    row, column = torch.tensor([2, 15, 27]), torch.tensor([3, 20, 36])
    view = torch.zeros_like(row)
    origins, directions = replace(cameras, poses=cameras.poses.float()).rays(view, row, column)
    places, _ = captures.projected(cameras, 0, (origins + 3.0 * directions).double().numpy())
    np.testing.assert_allclose(places, np.stack([column + 0.5, row + 0.5], 1), atol=1e-2)


def test_photographs_without_tracks_observe_the_points_that_they_show():
    """A wall of noise at x = 0, and a second one that hides half of it from the last camera."""
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(2, 400, 400)), (0, 3, 3))
    noise = (128.0 + 60.0 * noise / noise.std()).clip(0.0, 255.0)
    poses, images = ring([-12.0, -4.0, 4.0, 12.0], elevation=0.0), []
    cameras = replace(capture_of(poses, focal=110.0, images=[np.zeros((90, 120, 3), np.uint8)] * 4).cameras, within=0.5)
    for view in range(4):
        origins, directions = replace(cameras, poses=cameras.poses.float()).view_rays(view)
        grey = np.zeros((90, 120))
        for wall, x in ((0, 0.0), (1, 2.0)):
            places = (origins + ((x - origins[..., :1]) / directions[..., :1]) * directions).numpy()
            seen = (places[..., 1] > 0.45) if wall and view == 3 else np.full(grey.shape, wall == 0)
            at = np.stack([places[..., 1], places[..., 2]]) * 60.0 + 200.0
            grey = np.where(seen, map_coordinates(noise[wall], at, order=1), grey)
        images.append(np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, -1))
    y, z = np.meshgrid(np.linspace(-1.2, 1.2, 9), np.linspace(-0.9, 0.9, 7))
    points = np.stack([np.zeros(63), y.ravel(), z.ravel()], 1)
    seen = captures.alike(capture_of(poses, images, focal=110.0, points=points))
    crossed = points[:, 1] + (poses[3, 1, 3] - points[:, 1]) * 2.0 / poses[3, 0, 3]  # y where rays meet the second wall
    assert min(len(one) for one in seen[:3]) > 50
    assert np.isin(np.flatnonzero(crossed < 0.25), seen[3]).mean() > 0.7
    assert np.isin(np.flatnonzero(crossed > 0.65), seen[3]).mean() < 0.05


# Figures of a field


@pytest.mark.parametrize('density', [0.0, 0.05, 0.4])
def test_fog_is_the_weight_in_front_of_the_points(density):
    """A ray through fog of density s over a length d has the weight 1 - exp(-s d) there."""
    cameras, space = cameras_at(ring([0.0])), Bounded(0.5, 6.0)
    sampler = ball_in_fog(density).sampler()
    shown, opened = field_figures.fog(sampler, space, cameras, 0, np.array([[math.cos(math.pi / 6), 0.0, 0.5]]))
    length = 0.85 * 3.0  # the point is 3 in front of the camera
    np.testing.assert_allclose(shown, [1.0 - math.exp(-density * (length - 0.5))], atol=5e-3)
    np.testing.assert_allclose(opened, [1.0 - math.exp(-density * (length - 0.05 * 3.0))], atol=5e-3)


def test_fog_is_looked_for_before_points_that_a_view_shows():
    camera = cameras_at(ring([0.0], elevation=0.0))
    sampler, space = ball_in_fog(0.0).sampler(), Bounded(0.1, 30.0)
    both = np.array([[1.0, 0.0, 0.0], [-20.0, 0.0, 0.0]])  # the second is hidden by the first
    np.testing.assert_allclose(field_figures.fog(sampler, space, camera, 0, both), 0.0, atol=1e-3)
    assert field_figures.fog(sampler, space, camera, 0, both[1:]).min() > 0.99  # the ball itself is in front
    assert field_figures.fog(sampler, space, camera, 0, np.array([[9.0, 0.0, 0.0]])).size == 0  # behind the camera
    assert field_figures.fog(sampler, space, camera, 0, np.array([[0.0, 4.0, 0.0]])).size == 0  # beside the picture


def test_a_heap_of_points_counts_once():
    camera = cameras_at(ring([0.0], elevation=0.0))
    heap = np.array([[1.0, 0.1, 0.1]]) + 1e-3 * np.random.default_rng(0).random((50, 3))
    points = np.concatenate([heap, [[0.8, -0.5, 0.0], [0.8, 0.5, 0.0]]])
    assert field_figures.fog(ball_in_fog(0.0).sampler(), Bounded(0.1, 6.0), camera, 0, points).shape == (2, 3)


def grid_in(space, optical: float):
    """Grid whose every voxel has one optical depth, over a scene of cameras around the origin."""
    poses = ring([0.0, 90.0, 180.0, 270.0], elevation=10.0)
    cameras, index = cameras_at(poses), np.arange(4)
    scene = Scene(Images.of_one_size(np.zeros((4, SIDE, SIDE, 3), np.uint8)), cameras, cameras, space, False, index,
                  index, index)
    schedule = replace(GridSchedule.defaults(space, 100), stages='0:60', seen_by=0)
    field = build_field(scene, schedule, 0, CPU, torch.float32, 4096)
    with torch.no_grad():
        field.rows[:, 0] = (math.log(math.expm1(optical)) - schedule.offset) / schedule.sharpness
    return scene, field


def test_fog_ends_at_the_points_in_space_without_bounds():
    scene, field = grid_in(Unbounded(0.5, 8.0, radius=4.2), 0.02)
    camera, point = scene.cameras.take([0]), np.zeros((1, 3))
    shown, _ = field_figures.fog(field.sampler(), scene.space, camera, 0, point)
    depth = 0.85 * 4.0 - 0.5  # all of it inside the unit ball, where a voxel has one size
    expected = 1.0 - math.exp(-0.02 * depth / (4.2 * field.grid.voxel))
    assert len(shown) > 0
    np.testing.assert_allclose(shown.mean(), expected, rtol=0.03)
    whole = field_figures.rendered(field.sampler(), field_figures.bundled(
        scene.space, camera, 0, *field_figures.world_rays(camera, 0, *field_figures.lattice(camera, 0, 50)[:2])))
    assert whole.acc.mean() > 1.5 * expected  # the space is as it was


def test_depths_of_points_are_compared_where_a_view_sees_them():
    sampler, space, camera = ball_in_fog(0.0).sampler(), Bounded(2.0, 6.0), cameras_at(ring([0.0], elevation=0.0))
    points = np.array([[1.0, 0.0, 0.0], [1.25, 0.0, 0.4], [-1.0, 0.0, 0.0], [0.0, 9.0, 0.0]])
    asked = np.array([True, False, True, True])
    errors = field_figures.depth_errors(sampler, space, camera, 0, points, asked)
    np.testing.assert_allclose(errors, [0.0], atol=0.01)  # the third is hidden, the fourth outside the picture
    errors = field_figures.depth_errors(sampler, space, camera, 0, 1.1 * points[:1], asked[:1])
    np.testing.assert_allclose(errors, [0.1 / 2.9], atol=0.01)


def test_depth_along_rays_in_normalised_device_coordinates():
    space = NDC(height=SIDE, width=SIDE, focal=80.0, farthest=50.0)
    origins = torch.tensor([[0.1, -0.2, 0.3]]).double().expand(3, 3)
    directions = torch.tensor([[0.1, 0.2, -1.0], [0.0, 0.0, -1.0], [-0.3, 0.1, -1.0]]).double()
    rays = space.rays(origins.float(), directions.float())
    points = origins + torch.tensor([[2.0], [5.0], [30.0]]) * directions
    places = rays.origins + field_figures.depth_at(space, rays, points) * rays.directions
    torch.testing.assert_close(space.to_world(places).double(), points, rtol=1e-3, atol=1e-3)


def test_voxels_are_as_wide_as_their_pixels_say():
    """A voxel of edge e at depth z is e f / z pixels wide; in contracted space e is larger by the contraction."""
    camera = cameras_at(ring([0.0], elevation=0.0))

    def plane(x: float) -> Solid:
        return Solid(lambda points: torch.where(points[..., 0] < x, 1e4, 0.0), grey, samples=2048)
    widths = field_figures.voxel_pixels(plane(0.0).sampler(), Bounded(1.0, 6.0), 0.05, camera, 0)
    assert np.median(widths) == pytest.approx(0.05 * 80.0 / 4.0, rel=0.02)
    space = Unbounded(1.0, 20.0, radius=4.0)
    widths = field_figures.voxel_pixels(plane(-8.0).sampler(), space, 0.05, camera, 0, field_figures.Rules(pixels=1))
    across = (2.0 - 0.5) / 2.0  # of the contraction, at twice the ball's radius
    assert np.median(widths) == pytest.approx(0.05 * 4.0 / across * 80.0 / 12.0, rel=0.05)


# Pictures and the table


def test_right_halves_after_a_gain_forgive_brightness_alone():
    photograph = np.random.default_rng(0).integers(0, 250, (SIDE, SIDE, 3), np.uint8)
    darker = captures.view_metrics(np.rint([0.5, 0.7, 0.9] * photograph).astype(np.uint8), photograph)
    assert darker['psnr'] < 20.0
    assert darker['right_psnr'] > 50.0
    grey = photograph.copy()
    grey[:, SIDE // 2:] = 128
    noisy = captures.view_metrics(grey, photograph)
    assert noisy['right_psnr'] == pytest.approx(psnr(grey[:, 32:] / 255.0, photograph[:, 32:] / 255.0), abs=0.01)


def test_pictures_are_compared_with_the_photographs_that_they_show(tmp_path):
    photographs = [np.full((SIDE, SIDE, 3), level, np.uint8) for level in (0, 100, 200)]
    split = captures.Split('test', [], ['a.png', 'b.png', 'c.png'], photographs)
    for i, level in enumerate((0, 200)):
        Image.fromarray(np.full((SIDE, SIDE, 3), level, np.uint8)).save(tmp_path / f'{i:03d}.png')
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(tmp_path / f'disp_{i:03d}.png')
    assert captures.picture_metrics(split, tmp_path) == {}
    found = captures.picture_metrics(split, tmp_path, [0, 2])
    assert [view['photograph'] for view in found['views']] == ['a.png', 'c.png']
    assert found['psnr'] == 100.0


def test_table_has_means_over_seeds_and_differences_of_versions():
    rows = [{'capture': 'fox', 'version': version, 'seed': seed, 'psnr': psnr, 'arc_fog': fog}
            for version, seed, psnr, fog in (('here', 0, 24.0, 0.01), ('here', 1, 25.0, 0.03),
                                             ('against', 0, 23.0, None), ('against', 1, 23.5, None))]
    lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in captures.table(rows).splitlines()]
    assert lines[0] == ['capture', 'version', 'PSNR', 'arc fog %']
    assert lines[2:] == [['fox', 'here', '24.50', '2.00'], ['fox', 'against', '23.25', ''],
                         ['fox', 'difference', '+1.25', '']]


@pytest.mark.slow
def test_whole_program_compares_two_versions(ring_folder, tmp_path):
    command = [sys.executable, captures.__file__, '--captures', f'ring={ring_folder}', '--steps', '10', '--seeds', '3',
               '--against', str(captures.ROOT), '--out', str(tmp_path / 'out')]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 'left out' not in done.stdout
    here, against = json.loads((tmp_path / 'out' / 'captures.json').read_text())['rows']
    assert (here['version'], against['version'], here['seed']) == ('here', 'against', 3)
    for key in (column.key for column in captures.COLUMNS if column.key != 'lpips_alex'):
        assert math.isfinite(here[key])
    assert here['arc_psnr'] == against['arc_psnr']
    assert here['path_fog'] == against['path_fog']
    assert {view['split'] for view in here['views']} == {'test', 'arc'}
    assert f'| {here["psnr"]:.2f} |' in done.stdout
    assert not list((tmp_path / 'out').rglob('*.tar'))
