"""load_llff.py and the scenes that are made of its data: holdout, bounds, normalised device coordinates."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same, forward_cameras, look_at_origin, state_of_run, turn
from PIL import Image

import run_nerf
from load_llff import load_llff_data
from nerf.cameras import Cameras
from nerf.fields.interface import Field, Sampler
from nerf.rendering import render_path
from nerf.runtime.errors import UserError
from nerf.scene import Images, Scene, centred_intrinsics, check_forward_facing, llff_scene
from nerf.space import NDC, Bounded, Unbounded
from run_nerf_helpers import (
    Rays, RenderResult, composite, get_rays, ndc_rays, pixel_rays, ray_points, stratified_z,
)

# Against the reference code


@pytest.mark.parametrize(('prefix', 'spherify'), [('fern', False), ('fern_spherify', True)])
def test_fern_agrees_with_the_reference(golden, shared, capsys, prefix, spherify):
    folder = shared / 'data' / 'nerf_llff_data' / 'fern'
    if not folder.is_dir():
        pytest.skip(f'needs {folder}')
    images, poses, bds, render_poses, i_test = load_llff_data(folder, 8, spherify=spherify)
    for name, ours in {'poses': poses, 'bds': bds, 'render_poses': render_poses}.items():
        np.testing.assert_allclose(ours, golden[f'{prefix}_{name}'], rtol=0, atol=1e-5, err_msg=name)
        assert ours.dtype == np.float32
    assert i_test == golden[f'{prefix}_i_test']
    assert images.dtype == np.uint8
    assert images.shape == (20, 378, 504, 3)
    means = [image.mean(dtype=np.float64) / 255 for image in images]
    # The reference's means were summed naively in float32, which alone is off by up to 2.2e-4.
    np.testing.assert_allclose(means, golden[f'{prefix}_image_means'], rtol=0, atol=3e-4)
    assert capsys.readouterr().err == ''


# Cameras whose geometry is known


def seen(points: np.ndarray, camera: np.ndarray, H: int, W: int, focal: float) -> np.ndarray:
    """[3, M]: row, column and depth at which a camera [3, 4] sees points [M, 3]."""
    x, y, z = ((points - camera[:, 3]) @ camera[:, :3]).T
    return np.stack([H / 2 + focal * y / z, W / 2 - focal * x / z, -z])


def rms(vectors: np.ndarray) -> float:
    return np.sqrt((vectors ** 2).sum(-1).mean())


@pytest.mark.parametrize('options', [{}, {'recenter': False}, {'bd_factor': None}, {'spherify': True},
                                     {'spherify': True, 'recenter': False}])
def test_points_show_in_the_pixels_where_the_original_cameras_see_them(tiny_llff, tmp_path, options):
    original = forward_cameras()
    folder = tiny_llff(tmp_path, original, size=(20, 30), focal=25.0)
    _, poses, bds, _, _ = load_llff_data(folder, 2, **options)
    K = torch.from_numpy(centred_intrinsics(20, 30, poses[0, 2, 4]))
    # The one similarity that carries the first camera to where it was loaded carries all else there too.
    scale = np.linalg.norm(poses[4, :, 3] - poses[0, :, 3]) / np.linalg.norm(original[4, :, 3] - original[0, :, 3])
    axes = poses[0, :, :3] @ original[0, :, :3].T
    places = np.random.default_rng(0).uniform([-1, -1, -9], [1, 1, -4], (50, 3))  # in front of the first camera
    points = places @ original[0, :, :3].T + original[0, :, 3]
    moved = scale * (points - original[0, :, 3]) @ axes.T + poses[0, :, 3]
    for camera, pose in zip(original, poses):
        row, column, depth = seen(points, camera, 20, 30, 25.0)
        origins, directions = pixel_rays(torch.from_numpy(row), torch.from_numpy(column), K, torch.from_numpy(pose))
        reached = origins + scale * torch.from_numpy(depth)[:, None] * directions
        np.testing.assert_allclose(reached, moved, atol=1e-5)
    np.testing.assert_allclose(bds, np.broadcast_to(scale * np.array([2.0, 20.0]), (5, 2)), rtol=1e-5)


@pytest.mark.parametrize(('bd_factor', 'scale'), [(0.75, 2 / 3), (0.5, 1.0), (None, 1.0)])
def test_the_nearest_bound_decides_the_scale(tiny_llff, tmp_path, bd_factor, scale):
    original = forward_cameras(3)
    bounds = np.array([[4.0, 30.0], [2.0, 25.0], [3.0, 40.0]])
    folder = tiny_llff(tmp_path, original, bounds=bounds)
    for recenter in (True, False):
        _, poses, bds, _, _ = load_llff_data(folder, 2, recenter=recenter, bd_factor=bd_factor)
        np.testing.assert_allclose(bds, scale * bounds, rtol=1e-6)
        apart, were = (cameras[:, None, :, 3] - cameras[:, :, 3] for cameras in (poses, original))
        np.testing.assert_allclose(np.linalg.norm(apart, axis=-1), scale * np.linalg.norm(were, axis=-1), atol=1e-5)


def test_without_recenter_axes_stay_and_positions_only_scale(tiny_llff, tmp_path):
    original = forward_cameras()
    _, poses, _, _, _ = load_llff_data(tiny_llff(tmp_path, original), 2, recenter=False)
    np.testing.assert_allclose(poses[:, :, :3], original[:, :, :3], atol=1e-6)
    np.testing.assert_allclose(poses[:, :, 3], original[:, :, 3] * 2 / 3, atol=1e-6)


def test_recentring_makes_the_mean_camera_the_world(tiny_llff, tmp_path):
    _, poses, _, render_poses, i_test = load_llff_data(tiny_llff(tmp_path), 2)
    assert poses.dtype == render_poses.dtype == np.float32
    np.testing.assert_allclose(poses[:, :, 3].mean(0), 0.0, atol=1e-6)
    backward, up = poses[:, :, 2].mean(0), poses[:, :, 1].mean(0)
    np.testing.assert_allclose(backward, [0, 0, np.linalg.norm(backward)], atol=1e-6)
    assert up[0] == pytest.approx(0.0, abs=1e-6)
    assert up[1] > 0.9
    np.testing.assert_allclose(poses[:, :, :3].transpose(0, 2, 1) @ poses[:, :, :3], np.tile(np.eye(3), (5, 1, 1)),
                               atol=1e-6)
    assert (np.linalg.det(poses[:, :, :3]) > 0).all()
    assert i_test == np.linalg.norm(poses[:, :, 3], axis=-1).argmin()


def test_the_view_nearest_to_the_mean_camera_is_the_test_view(tiny_llff, tmp_path):
    places = [[-3, 0, 0], [1, 4, 0], [2, -4, 0], [0.2, 0.1, 0.3], [0, 0, 5]]  # the fourth
    cameras = [np.column_stack([np.eye(3), np.add(place, 7.0)]) for place in places]
    for recenter in (True, False):
        folder = tiny_llff(tmp_path / str(recenter), cameras)
        assert load_llff_data(folder, 2, recenter=recenter)[4] == 3


def test_the_spiral_turns_twice_around_the_mean_camera_and_looks_at_one_point(tiny_llff, tmp_path):
    rng = np.random.default_rng(0)
    cameras = np.stack([np.column_stack([np.eye(3), rng.normal(size=3) * [1.0, 0.6, 0.3]]) for _ in range(11)])
    _, poses, _, path, _ = load_llff_data(tiny_llff(tmp_path, cameras, bounds=(2.0, 20.0)), 2)
    assert path.shape == (120, 3, 5)
    right, up, backward, position, hwf = np.moveaxis(path, -1, 0)
    assert (hwf == [12, 16, 20]).all()
    # At 0.75 of the nearest bounds lie at 4/3 and 40/3; between 0.9 and 5 times them, three quarters of the way in 1/z:
    focus = 1 / (0.25 / 1.2 + 0.75 / (200 / 3))
    towards = position - [0.0, 0.0, -focus]
    np.testing.assert_allclose(backward, towards / np.linalg.norm(towards, axis=-1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(right[:, 1], 0.0, atol=1e-6)  # level
    assert (up[:, 1] > 0.5).all()
    np.testing.assert_allclose(np.cross(right, up), backward, atol=1e-6)

    x, y, z = np.sort(np.abs(poses[:, :, 3]), 0)[9]  # of 11, the 90th percentile
    half = np.sqrt(0.5)
    np.testing.assert_allclose(position[[0, 15, 30, 45]], [
        [x, 0, 0], [0, -y, -z * half], [-x, 0, -z], [0, y, -z * half]], atol=1e-5)  # the first turn, clockwise
    np.testing.assert_allclose(position[60:], position[:60] * [1, 1, -1], atol=1e-5)


def ring(count: int = 7, look_at=(3.0, -2.0, 5.0), up=((1, 2, 0), 40.0)) -> np.ndarray:
    """[count, 3, 4] cameras around and above a point, all looking at it, in a world whose z axis is not up."""
    rotation = turn(*up)
    poses = [look_at_origin(2 * np.pi * i / count, 0.4 + 0.1 * (i % 3), 3.0 + 0.3 * i)[:3] for i in range(count)]
    return np.stack([np.column_stack([rotation @ pose[:, :3], rotation @ pose[:, 3] + look_at]) for pose in poses])


@pytest.mark.parametrize('recenter', [True, False])
def test_spherified_cameras_look_at_the_origin_from_1_away_with_z_up(tiny_llff, tmp_path, recenter):
    original = ring()
    bounds = np.stack([np.arange(2.0, 9.0), np.arange(12.0, 19.0)], -1)
    _, poses, bds, _, i_test = load_llff_data(tiny_llff(tmp_path, original, bounds=bounds), 2, recenter, spherify=True)
    position, backward = poses[:, :, 3], poses[:, :, 2]
    assert rms(position) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(position, backward * np.linalg.norm(position, axis=-1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(position.mean(0)[:2], 0.0, atol=1e-5)
    assert (position[:, 2] > 0.2).all()
    assert (poses[:, 2, 1] > 0.5).all()  # up in the pictures is up in the world
    np.testing.assert_allclose(bds, bounds / rms(original[:, :, 3] - [3.0, -2.0, 5.0]), rtol=1e-5)
    assert i_test == np.linalg.norm(position - position.mean(0), axis=-1).argmin()


def test_the_circle_looks_at_the_origin_from_1_away_at_the_cameras_mean_height(tiny_llff, tmp_path):
    _, poses, _, path, _ = load_llff_data(tiny_llff(tmp_path, ring()), 2, spherify=True)
    assert path.shape == (120, 3, 5)
    right, up, backward, position, hwf = np.moveaxis(path, -1, 0)
    assert (hwf == [12, 16, 20]).all()
    height = poses[:, 2, 3].mean()
    assert 0.3 < height < 0.9
    np.testing.assert_allclose(position[:, 2], height, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(position, axis=-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(backward, position, atol=1e-6)
    np.testing.assert_allclose(right[:, 2], 0.0, atol=1e-6)
    assert (up[:, 2] > 0.3).all()
    np.testing.assert_allclose(np.cross(right, up), backward, atol=1e-6)
    azimuth = np.unwrap(np.arctan2(position[:, 1], position[:, 0]))
    np.testing.assert_allclose(azimuth, np.linspace(0, 2 * np.pi, 120), atol=1e-5)  # the last view is the first


# Images


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_size_is_that_of_the_images_and_the_focal_length_goes_down_with_the_factor(tiny_llff, tmp_path, capsys):
    folder = tiny_llff(tmp_path, size=(19, 25), factor=4, focal=30.0)
    change(folder, 0, {4: 78.0, 9: 101.0})  # 19.5 and 25.25: the images were rounded down
    images, poses, _, render_poses, _ = load_llff_data(folder, 4)
    assert images.shape == (5, 19, 25, 3)
    assert (poses[:, :, 4] == [19, 25, 30]).all()
    assert (render_poses[:, :, 4] == [19, 25, 30]).all()
    assert capsys.readouterr().err == ''


def test_images_come_in_the_order_of_their_names_without_alpha(tiny_llff, tmp_path):
    folder = tiny_llff(tmp_path, forward_cameras(4)) / 'images_2'
    expected = np.stack([np.asarray(Image.open(folder / f'{i:03d}.png')) for i in range(4)])
    with Image.open(folder / '002.png') as picture:
        picture.putalpha(7)
        picture.save(folder / '002.png')
    for old, new in (('003', 'a.JPEG'), ('002', 'Z.PNG'), ('001', '10.jpg'), ('000', '1.jpg')):
        (folder / f'{old}.png').rename(folder / new)
    (folder / '.thumbnail.png').write_bytes(b'')
    (folder / 'notes.txt').write_text('not a picture')
    images = load_llff_data(tmp_path, 2)[0]
    assert images.dtype == np.uint8
    assert np.array_equal(images, expected)  # 1, 10, Z, a


def checkerboard(means: np.ndarray, factor: int) -> np.ndarray:
    """[H * factor, W * factor, 3] uint8 in blocks of the means [H, W, 3], each of pixels 40 above and 40 below it."""
    blocks = np.repeat(np.repeat(means.astype(int), factor, 0), factor, 1)
    row, column = np.mgrid[:blocks.shape[0], :blocks.shape[1]]
    return np.uint8(blocks + np.where((row + column) % 2, 40, -40)[..., None])


@pytest.mark.parametrize('factor', [2, 4])
def test_missing_reduced_images_are_made_by_area_averaging(tiny_llff, tmp_path, capsys, factor):
    folder = tiny_llff(tmp_path, forward_cameras(3), size=(11, 13), factor=factor, reduced=False)
    means = np.random.default_rng(0).integers(40, 216, (3, 11, 13, 3))
    for i, name in enumerate(['b.png', 'c.old.PNG', 'd.png']):
        (folder / 'images' / f'{i:03d}.png').unlink()
        Image.fromarray(checkerboard(means[i], factor)).save(folder / 'images' / name)
    images = load_llff_data(folder, factor)[0]
    assert np.array_equal(images, means)
    reduced = folder / f'images_{factor}'
    assert names(reduced) == ['b.png', 'c.old.png', 'd.png']
    assert np.array_equal(np.asarray(Image.open(reduced / 'c.old.png')), means[1])
    assert names(folder) == ['images', reduced.name, 'poses_bounds.npy']
    assert capsys.readouterr().err == ''


def test_sides_that_the_factor_does_not_divide_are_rounded_and_every_pixel_counts(tiny_llff, tmp_path):
    folder = tiny_llff(tmp_path, forward_cameras(2), size=(2, 3), factor=4, reduced=False)
    picture = np.zeros((11, 14, 3), np.uint8)  # 2.75 and 3.5 times 4: 3 rows, 4 columns, each 3.667 x 3.5 pixels
    picture[0, 13] = 200
    picture[10, :] = 110
    for path in (folder / 'images').iterdir():
        Image.fromarray(picture).save(path)
    image = load_llff_data(folder, 4)[0][0, ..., 0]
    expected = [[0, 0, 0, 200 / (11 / 3 * 3.5)], [0, 0, 0, 0], [30, 30, 30, 30]]
    np.testing.assert_allclose(image, expected, atol=2.5)  # Pillow counts whole pixels, by where their middles are


def test_reduced_images_are_made_once_and_then_used_as_they_are(tiny_llff, tmp_path):
    folder = tiny_llff(tmp_path, forward_cameras(3), size=(11, 13), factor=2, reduced=False)
    first = load_llff_data(folder, 2)[0]
    Image.new('RGB', (13, 11), (1, 2, 3)).save(folder / 'images_2' / '001.png')
    (folder / 'images' / '002.png').unlink()  # nobody looks here now
    second = load_llff_data(folder, 2)[0]
    assert np.array_equal(second[[0, 2]], first[[0, 2]])
    assert (second[1] == [1, 2, 3]).all()
    assert load_llff_data(tiny_llff(tmp_path / 'other', factor=3), 3)[0].shape == (5, 12, 16, 3)
    assert names(tmp_path / 'other') == ['images_3', 'poses_bounds.npy']


def test_names_that_would_sort_otherwise_once_reduced_are_an_error(tiny_llff, tmp_path):
    folder = tiny_llff(tmp_path, forward_cameras(3), reduced=False)
    for old, new in (('000.png', 'IMG_1.JPG'), ('001.png', 'IMG_1.MP.JPG'), ('002.png', 'IMG_2.JPG')):
        (folder / 'images' / old).rename(folder / 'images' / new)
    assert_refused(folder, str(folder / 'images'), 'rename')  # .JPG comes before .MP, and .png behind it
    assert not (folder / 'images_2').exists()


@pytest.mark.parametrize('ending', ['.png', '.jpg'])
@pytest.mark.parametrize('factor', [1, 2])
def test_images_stay_as_they_are_stored_whatever_their_exif_orientation(tiny_llff, tmp_path, capsys, ending, factor):
    folder = tiny_llff(tmp_path, forward_cameras(2), size=(16 // factor, 24 // factor), factor=factor, reduced=False)
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:8, :8], stored[:8, 8:], stored[8:] = [240, 30, 30], [30, 240, 30], [30, 30, 240]
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in list((folder / 'images').iterdir()):
        path.unlink()
        Image.fromarray(stored).save(path.with_suffix(ending), exif=exif, quality=98, subsampling=0)
    for _ in range(2):  # images_2 is made, and then read
        images = load_llff_data(folder, factor)[0]
        expected = stored[::factor, ::factor].astype(int)
        assert images.shape == (2, *expected.shape)
        assert np.abs(images - expected).max() <= (0 if ending == '.png' else 6)
    assert names(folder) == ['images', *(['images_2'] if factor == 2 else []), 'poses_bounds.npy']
    assert capsys.readouterr().err == ''


def test_factor_1_reads_the_images_themselves(tiny_llff, tmp_path):
    folder = tiny_llff(tmp_path, forward_cameras(2), factor=1)
    (folder / 'images_1').mkdir()  # what the reference code would read
    images, poses, _, _, _ = load_llff_data(folder, 1)
    assert np.array_equal(images[1], np.asarray(Image.open(folder / 'images' / '001.png')))
    assert (poses[:, :, 4] == [12, 16, 20]).all()


def test_colours_under_transparency_stay_as_they_are_in_both_ways_of_reading(tiny_llff, tmp_path):
    folder = tiny_llff(tmp_path, forward_cameras(2), size=(12, 16), factor=2, reduced=False)
    picture = np.zeros((24, 32, 4), np.uint8)
    picture[:, ::2], picture[:, 1::2] = [200, 0, 0, 255], [100, 0, 0, 0]
    for path in (folder / 'images').iterdir():
        Image.fromarray(picture).save(path)
    assert (load_llff_data(folder, 2)[0][..., 0] == 150).all()
    assert (load_llff_data(folder, None)[0][..., 0] == picture[..., 0]).all()  # None: at full size


def test_a_run_that_finds_the_reduced_folder_made_by_another_meanwhile_uses_it(tiny_llff, tmp_path, monkeypatch):
    folder = tiny_llff(tmp_path, forward_cameras(2), size=(12, 16), factor=2, reduced=False)
    expected = load_llff_data(tiny_llff(tmp_path / 'other', forward_cameras(2), reduced=False), 2)[0]

    save = Image.Image.save

    def slow(picture, path, *args, **options):
        save(picture, path, *args, **options)
        if not (folder / 'images_2').exists():
            shutil.copytree(tmp_path / 'other' / 'images_2', folder / 'images_2', dirs_exist_ok=True)
    monkeypatch.setattr(Image.Image, 'save', slow)
    assert np.array_equal(load_llff_data(folder, 2)[0], expected)
    assert names(folder) == ['images', 'images_2', 'other', 'poses_bounds.npy']


def test_a_factor_that_leaves_nothing_is_an_error_and_leaves_no_folder(tiny_llff, tmp_path):
    folder = tiny_llff(tmp_path, forward_cameras(2), reduced=False)
    assert_refused(folder, '000.png is 32x24 pixels', 'factor 100 leaves 0x0', factor=100)
    assert names(folder) == ['images', 'poses_bounds.npy']


def assert_reduces_nothing(folder: Path, error: type[BaseException], *words: str) -> None:
    """Loading fails, and neither half a folder nor a temporary one is left."""
    with pytest.raises(error) as raised:
        load_llff_data(folder, 2)
    for word in words:
        assert word in str(raised.value)
    assert '\n' not in str(raised.value)
    assert names(folder) == ['images', 'poses_bounds.npy']


def test_a_broken_image_among_others_leaves_no_reduced_folder(tiny_llff, tmp_path):
    folder = tiny_llff(tmp_path, reduced=False)
    path = folder / 'images' / '002.png'
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    assert_reduces_nothing(folder, UserError, str(path), 'cannot be read as a picture')
    path.write_bytes(whole)
    assert len(load_llff_data(folder, 2)[0]) == 5


@pytest.mark.parametrize('moment', ['save', 'rename'])
@pytest.mark.parametrize(('cause', 'error', 'words'), [
    (OSError(28, 'No space left on device'), UserError, ['No space left on device', 'images_2 cannot be written']),
    (KeyboardInterrupt(), KeyboardInterrupt, [])])
def test_a_failure_half_way_leaves_no_reduced_folder(tiny_llff, tmp_path, monkeypatch, moment, cause, error, words):
    folder = tiny_llff(tmp_path, reduced=False)
    calls = []

    def fail(*args, **options):
        if moment == 'save':
            args[1].write_bytes(b'half a picture')
        calls.append(args)
        if moment == 'rename' or len(calls) > 2:
            raise cause

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image if moment == 'save' else Path, moment, fail)
        assert_reduces_nothing(folder, error, *words)
    assert calls
    assert len(load_llff_data(folder, 2)[0]) == 5


def test_images_that_differ_only_in_their_ending_are_an_error(tiny_llff, tmp_path):
    folder = tiny_llff(tmp_path, reduced=False)
    (folder / 'images' / '004.png').rename(folder / 'images' / '001.jpg')
    assert_reduces_nothing(folder, UserError, str(folder / 'images'), 'coincide')


@pytest.mark.parametrize('size', [(48, 24), (32, 25)])  # the second is as large as the others once it is reduced
def test_images_of_several_sizes_are_an_error_and_leave_no_reduced_folder(tiny_llff, tmp_path, size):
    folder = tiny_llff(tmp_path, reduced=False)
    path = folder / 'images' / '003.png'
    Image.new('RGB', size).save(path)
    assert_reduces_nothing(folder, UserError, f'{path} is {size[0]}x{size[1]} pixels', '000.png is 32x24')


# Warnings


def test_images_that_do_not_fit_poses_bounds_are_warned_of(tiny_llff, tmp_path, capsys):
    folder = tiny_llff(tmp_path, size=(24, 16))
    for row in range(5):
        change(folder, row, {4: 32.0, 9: 48.0})  # 16x24: those of a camera held upright
    load_llff_data(folder, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'warning: {folder}')
    for word in ('16x24', '24x16', 'factor 2'):
        assert word in line


@pytest.mark.parametrize(('column', 'size'), [(4, '16x12'), (9, '16x12')])
def test_one_side_that_does_not_fit_is_warned_of(tiny_llff, tmp_path, capsys, column, size):
    folder = tiny_llff(tmp_path)
    change(folder, 0, {column: 48.0})
    load_llff_data(folder, 2)
    assert f'the images are {size} pixels' in capsys.readouterr().err


@pytest.mark.parametrize(('focal', 'warned'), [(41.0, True), (39.0, True), (40.3, False), (39.7, False)])
def test_focal_lengths_more_than_a_hundredth_apart_are_warned_of(tiny_llff, tmp_path, capsys, focal, warned):
    folder = tiny_llff(tmp_path)
    change(folder, 3, {14: focal})
    assert (load_llff_data(folder, 2)[1][:, 2, 4] == 20).all()  # the first one's
    err = capsys.readouterr().err
    assert (f'{folder}: focal lengths from {min(focal, 40):g} to {max(focal, 40):g}' in err) == warned
    assert len(err.splitlines()) == warned


# Errors


def change(folder: Path, row: int, values: dict[int, float]) -> None:
    """Sets columns of a row of poses_bounds.npy."""
    rows = np.load(folder / 'poses_bounds.npy')
    for column, value in values.items():
        rows[row, column] = value
    np.save(folder / 'poses_bounds.npy', rows)


def assert_refused(folder: Path, *words: str, factor: int = 2, **options) -> None:
    with pytest.raises(UserError) as error:
        load_llff_data(folder, factor, **options)
    for word in words:
        assert word in str(error.value)
    assert '\n' not in str(error.value)


def test_a_missing_datadir_is_an_error_that_says_where_scenes_come_from(tmp_path):
    assert_refused(tmp_path / 'fern', str(tmp_path / 'fern'), 'is not a folder', 'nerf_llff_data.zip', 'https://')


def test_a_missing_poses_bounds_is_an_error_that_says_where_scenes_come_from(tiny_llff, tmp_path):
    (tiny_llff(tmp_path) / 'poses_bounds.npy').unlink()
    assert_refused(tmp_path, str(tmp_path / 'poses_bounds.npy'), 'does not exist', 'it has images_2')


def test_reduced_images_that_are_missing_are_added_and_old_ones_are_refused(tiny_llff, tmp_path):
    folder = tiny_llff(tmp_path, forward_cameras(4), reduced=False)
    expected = load_llff_data(folder, factor=2)[0]
    (folder / 'images_2/001.png').unlink()
    assert np.array_equal(load_llff_data(folder, factor=2)[0], expected)
    Image.new('RGB', (32, 24), (255, 255, 255)).save(folder / 'images/001.png')
    os.utime(folder / 'images_2/001.png', (1e9, 1e9))
    assert_refused(folder, 'images_2/001.png is older than', 'images/001.png', f"delete {folder / 'images_2'}")


@pytest.mark.parametrize(('factor', 'wanted'), [(8, 'images_8'), (1, 'images')])
def test_missing_images_are_an_error(tiny_llff, tmp_path, factor, wanted):
    assert_refused(tiny_llff(tmp_path), str(tmp_path), f'no folder {wanted},', factor=factor)
    assert names(tmp_path) == ['images_2', 'poses_bounds.npy']


@pytest.mark.parametrize(('reduced', 'images'), [(True, 'images_2'), (False, 'images')])
@pytest.mark.parametrize('kept', [0, 4, 6])
def test_another_number_of_images_than_of_poses_is_an_error(tiny_llff, tmp_path, reduced, images, kept):
    folder = tiny_llff(tmp_path, forward_cameras(max(kept, 5)), reduced=reduced)
    for i in range(kept, 5):
        (folder / images / f'{i:03d}.png').unlink()
    np.save(folder / 'poses_bounds.npy', np.load(folder / 'poses_bounds.npy')[:5])
    assert_refused(folder, f'{folder / images} has {kept} images', f"{folder / 'poses_bounds.npy'} has 5 poses",
                   'COLMAP')
    assert names(folder) == [images, 'poses_bounds.npy']


@pytest.mark.parametrize('array', [
    np.ones((5, 16)), np.ones((5, 18)), np.ones(17), np.ones((0, 17)), np.ones((5, 3, 5)), np.ones((1, 5, 17)),
    np.float64(3.0), np.full((5, 17), '1.0'), np.ones((5, 17), bool), np.ones((5, 17), complex)])
def test_poses_bounds_of_another_shape_or_type_is_an_error(tiny_llff, tmp_path, array):
    path = tiny_llff(tmp_path) / 'poses_bounds.npy'
    np.save(path, array)
    assert_refused(tmp_path, str(path), *([str(array.shape), str(array.dtype), '17'] if array.ndim else []))


class Marker:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('shape', [(5, 17), (1,)])
def test_a_pickle_in_poses_bounds_is_an_error_and_is_never_run(tiny_llff, tmp_path, shape):
    path, marker = tiny_llff(tmp_path) / 'poses_bounds.npy', tmp_path / 'marker'
    array = np.zeros(shape, object)
    array.flat[0] = Marker(marker)
    np.save(path, array, allow_pickle=True)
    assert_refused(tmp_path, str(path), 'cannot be read as an array of numbers')
    assert not marker.exists()
    np.load(path, allow_pickle=True)
    assert marker.exists()  # so it would have run


@pytest.mark.parametrize('spoil', [
    lambda data: b'', lambda data: b'0.1 0.2 0.3\n' * 85, lambda data: data[:-8], lambda data: data[:100],
    lambda data: data.replace(b'(5, 17)', b'(5, \n 7'), lambda data: b'PK\x03\x04' + data,
    lambda data: data.replace(b'(5, 17), }', b'(5000000000000, 17)}'), lambda data: data.replace(b"'<f8'", b"'|O8'"),
    lambda data: data[:8] + b'\xff\xff' + data * 90])  # a long header
def test_a_poses_bounds_that_is_no_array_is_an_error(tiny_llff, tmp_path, spoil):
    path = tiny_llff(tmp_path) / 'poses_bounds.npy'
    path.write_bytes(spoil(path.read_bytes()))
    assert_refused(tmp_path, str(path), 'cannot be read as an array of numbers')


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('column', [0, 14, 15, 16])
def test_values_that_are_not_finite_are_an_error(tiny_llff, tmp_path, column, value):
    change(tiny_llff(tmp_path), 3, {column: value})
    assert_refused(tmp_path, str(tmp_path / 'poses_bounds.npy'), 'row 3', 'not finite')


@pytest.mark.parametrize(('near', 'far'), [(5.0, 5.0), (6.0, 5.0), (0.0, 5.0), (-1.5, 5.0), (-5.0, -1.5)])
def test_impossible_bounds_are_an_error(tiny_llff, tmp_path, near, far):
    change(tiny_llff(tmp_path), 4, {15: near, 16: far})
    assert_refused(tmp_path, str(tmp_path / 'poses_bounds.npy'), 'row 4', f'near {near:g}', f'far {far:g}')


@pytest.mark.parametrize('focal', [0.0, -40.0])
def test_an_impossible_focal_length_is_an_error(tiny_llff, tmp_path, focal):
    change(tiny_llff(tmp_path), 0, {14: focal})
    assert_refused(tmp_path, str(tmp_path / 'poses_bounds.npy'), f'{focal:g}')


@pytest.mark.parametrize('axes', [np.zeros((3, 3)), np.ones((3, 3)), np.diag([3.0, 3.0, 3.0]), np.diag([-1, 1, 1])])
def test_camera_axes_that_are_no_rotation_are_an_error(tiny_llff, tmp_path, axes):
    cameras = forward_cameras()
    cameras[2, :, :3] = axes @ cameras[2, :, :3]
    assert_refused(tiny_llff(tmp_path, cameras), str(tmp_path / 'poses_bounds.npy'), 'row 2')


def test_an_unreadable_image_is_an_error(tiny_llff, tmp_path):
    path = tiny_llff(tmp_path) / 'images_2' / '003.png'
    path.write_bytes(path.read_bytes()[:60])
    assert_refused(tmp_path, str(path), 'cannot be read as a picture')


def test_an_image_of_another_size_is_an_error(tiny_llff, tmp_path):
    path = tiny_llff(tmp_path) / 'images_2' / '003.png'
    Image.new('RGB', (16, 13)).save(path)
    assert_refused(tmp_path, f'{path} is 16x13 pixels', '000.png is 16x12')


@pytest.mark.parametrize('spherify', [False, True])
def test_cameras_that_look_in_opposite_directions_have_no_mean(tiny_llff, tmp_path, spherify):
    cameras = [np.column_stack([np.diag([sign, 1.0, sign]), [i, 0.0, 0.0]]) for i in range(2) for sign in (1.0, -1.0)]
    words = ['parallel'] if spherify else ['no mean', 'spherify', 'no_ndc']
    assert_refused(tiny_llff(tmp_path, cameras), str(tmp_path / 'poses_bounds.npy'), *words, spherify=spherify)


@pytest.mark.parametrize('degrees', [0.0, 20.0])
def test_spherify_needs_cameras_that_do_not_all_look_in_one_direction(tiny_llff, tmp_path, degrees):
    axes = turn([1, 2, 3], degrees)
    cameras = [np.column_stack([axes, [i, 0.3 * i ** 2, 0.1]]) for i in range(5)]
    folder = tiny_llff(tmp_path, cameras)
    assert np.isfinite(load_llff_data(folder, 2)[1]).all()
    assert_refused(folder, str(folder), 'parallel', 'spherify', spherify=True)


@pytest.mark.parametrize('flaw', ['bounds', 'count', 'holdout', 'sideways'])
def test_the_program_says_in_one_line_what_is_wrong_and_leaves_no_run_behind(tiny_llff, tmp_path, capsys, flaw):
    cameras = forward_cameras()
    if flaw == 'sideways':
        cameras[3, :, :3] = cameras[3, :, :3] @ turn([0, 1, 0], 120.0)
    folder = tiny_llff(tmp_path / 'scene', cameras)
    if flaw == 'bounds':
        change(folder, 1, {15: 30.0})
    if flaw == 'count':
        (folder / 'images_2' / '001.png').unlink()
    flags = ['--llffhold', '1' if flaw == 'holdout' else '8']
    assert run_nerf.main(flags_of(folder, tmp_path / 'logs', '--N_iters', '1', *flags)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: ')
    words = {'bounds': ['poses_bounds.npy', 'row 1', 'near 30', 'far 20'], 'count': ['4 images', '5 poses', 'COLMAP'],
             'holdout': [str(folder), 'llffhold 1', '5 images'], 'sideways': [str(folder), 'image 3', 'no_ndc']}
    for word in words[flaw]:
        assert word in line
    assert names(tmp_path) == ['scene']


# The scene


FLAGS = ['--dataset_type', 'llff', '--factor', '2', '--use_viewdirs', '--netdepth', '2', '--netwidth', '16',
         '--netdepth_fine', '2', '--netwidth_fine', '16', '--multires', '4', '--multires_views', '2',
         '--N_samples', '8', '--N_importance', '8', '--N_rand', '32', '--lrate', '1e-2',
         '--device', 'cpu', '--precision', 'fp32']


def flags_of(folder: Path, logs: Path, *extra: str) -> list[str]:
    return [*FLAGS, '--datadir', str(folder), '--basedir', str(logs), '--expname', 'run', *extra]


def scene_of(folder: Path, **changes) -> Scene:
    values = dict(white_bkgd=False, factor=2, spherify=False, llffhold=8, ndc=True, unbounded=False)
    return llff_scene(str(folder), **values | changes)


@pytest.mark.parametrize(('llffhold', 'held_out'), [(8, [0, 8]), (3, [0, 3, 6, 9]), (10, [0]), (0, [6])])
def test_every_nth_image_is_held_out_or_the_one_nearest_to_the_mean(tiny_llff, tmp_path, llffhold, held_out):
    cameras = forward_cameras(10)
    cameras[6, :, 3] = cameras[:, :, 3].mean(0)
    scene = scene_of(tiny_llff(tmp_path, cameras), llffhold=llffhold)
    assert scene.i_test.tolist() == held_out
    assert scene.i_val.tolist() == held_out
    assert scene.i_train.tolist() == [i for i in range(10) if i not in held_out]


def test_bounds_follow_the_kind_of_space(tiny_llff, tmp_path):
    folder = tiny_llff(tmp_path, bounds=[[3.0, 20.0], [2.0, 25.0], [2.5, 30.0], [3.5, 10.0], [4.0, 12.0]])
    space = scene_of(folder).space
    assert isinstance(space, NDC)
    assert (space.camera, space.near, space.far) == ((12, 16, 20.0), 0.0, 1.0)
    assert space.farthest == pytest.approx(30 * 2 / 3)
    for unbounded, kind in ((False, Bounded), (True, Unbounded)):
        space = scene_of(folder, ndc=False, unbounded=unbounded).space
        assert isinstance(space, kind)
        assert not space.surrounded
        assert (space.near, space.far) == pytest.approx((0.9 * 4 / 3, 30 * 2 / 3), rel=1e-6)
    assert isinstance(scene_of(folder, unbounded=True).space, NDC)


def test_the_scene_has_the_loaders_cameras_and_a_principal_point_in_the_middle(tiny_llff, tmp_path):
    folder = tiny_llff(tmp_path)
    images, poses, _, render_poses, _ = load_llff_data(folder, 2)
    scene = scene_of(folder, white_bkgd=True)
    assert scene.white_bkgd
    assert len(scene.images) == len(images)
    assert all(np.array_equal(scene.images[i], image) for i, image in enumerate(images))
    for cameras, expected in ((scene.cameras, poses), (scene.render_cameras, render_poses)):
        assert cameras.intrinsics.tolist() == [[20, 20, 8, 6]] * len(expected)
        assert cameras.one_size() == (12, 16)
        assert np.array_equal(cameras.poses, expected[:, :, :4])


def test_spherify_reaches_the_scene(tiny_llff, tmp_path):
    scene = scene_of(tiny_llff(tmp_path, ring(), bounds=(2.0, 9.0)), ndc=False, spherify=True)
    size = rms(ring()[:, :, 3] - [3.0, -2.0, 5.0])
    assert rms(scene.cameras.poses[:, :, 3].numpy()) == pytest.approx(1.0, abs=1e-6)
    assert scene.space.surrounded
    assert (scene.space.near, scene.space.far) == pytest.approx((0.9 * 2.0 / size, 9.0 / size), rel=1e-5)


# Normalised device coordinates


def test_a_camera_that_looks_sideways_is_refused_unless_no_ndc_is_set(tiny_llff, tmp_path):
    cameras = forward_cameras(9)
    cameras[5, :, :3] = cameras[5, :, :3] @ turn([0, 1, 0], 80.0)  # 73 from the mean, and sees 22 to either side
    folder = tiny_llff(tmp_path, cameras)
    with pytest.raises(UserError) as error:
        scene_of(folder)
    for word in (str(folder), 'image 5', 'no_ndc', 'spherify'):
        assert word in str(error.value)
    assert '\n' not in str(error.value)
    assert len(scene_of(folder, ndc=False).images) == 9


def test_spherify_without_no_ndc_is_refused(tiny_llff, tmp_path):
    folder = tiny_llff(tmp_path, ring())
    with pytest.raises(UserError, match=f'{folder}: spherify .* set no_ndc'):
        scene_of(folder, spherify=True)


@pytest.mark.parametrize(('bounds', 'backwards', 'warned'), [
    ((2.0, 20.0), 0.0, False), ((0.9, 20.0), 0.0, True), ((2.0, 20.0), 3.0, True)])
def test_cameras_that_spread_far_against_the_nearest_depth_are_warned_of(
        tiny_llff, tmp_path, capsys, bounds, backwards, warned):
    row = np.tile(np.eye(4)[:3], (9, 1, 1))
    row[:, 0, 3], row[4, 2, 3] = np.linspace(-1.0, 1.0, 9), backwards
    folder = tiny_llff(tmp_path, row, bounds=bounds)
    scene_of(folder)
    said = capsys.readouterr().err
    assert ('set no_ndc' in said) == warned
    assert said.count('\n') == warned
    scene_of(folder, ndc=False)
    assert not capsys.readouterr().err


def test_views_of_the_path_that_look_sideways_are_warned_of(tiny_llff, tmp_path, capsys):
    row = np.stack([np.column_stack([np.eye(3), [x, 0.0, 0.0]]) for x in np.linspace(-20, 20, 9)])
    scene = scene_of(tiny_llff(tmp_path, row, focal=12.0))
    views = [scene.render_cameras.view_rays(view)[1] for view in range(120)]
    count = sum(bool((directions[..., 2] >= 0).any()) for directions in views)
    assert count > 0
    assert f'{count} views of the render path look sideways' in capsys.readouterr().err
    scene_of(tiny_llff(tmp_path / 'narrow'))
    assert capsys.readouterr().err == ''


def ndc_scene(poses, H: int, W: int, focal: float) -> Scene:
    cameras, index = Cameras.of_one_kind(poses, centred_intrinsics(H, W, focal), H, W), np.arange(len(poses))
    return Scene(images=Images.of_one_size(np.zeros((len(poses), H, W, 3), np.uint8)), cameras=cameras,
                 render_cameras=cameras, space=NDC(height=H, width=W, focal=focal), white_bkgd=False, i_train=index,
                 i_val=index, i_test=index)


@pytest.mark.parametrize('axis', [(1, 1, 0), (1, -1, 0), (-1, 1, 0), (-1, -1, 0)])
def test_a_camera_is_sideways_where_one_corner_of_its_picture_is(axis):
    def scene_turned(degrees: float) -> Scene:
        cameras = [np.column_stack([turn(axis, angle), np.zeros(3)]) for angle in (0.0, 20.0, degrees)]
        return ndc_scene(cameras, 200, 200, 100 * np.sqrt(2.0))  # the corners are 45 degrees off the axis

    check_forward_facing(scene_turned(44.5), 'here')
    with pytest.raises(UserError, match='here: image 2 looks sideways'):
        check_forward_facing(scene_turned(45.5), 'here')


class Walls(Field):
    """Two opaque walls across the world's z axis, in NDC: at depth 1.5 left of x = -0.15 z, at depth 10 elsewhere."""

    device = torch.device('cpu')

    def __init__(self, W: int, focal: float):
        super().__init__()
        self.edge = -0.15 * focal / (W / 2)

    def radiance(self, points, viewdirs):
        return torch.ones_like(points), self.density(points)

    def density(self, points):
        x, _, z = points.unbind(-1)
        behind = 2.0 / (1.0 - z).clamp(min=1e-6) > torch.where(x < self.edge, 1.5, 10.0)
        return torch.where(behind, 500.0, 0.0)


class Even(Sampler):
    """Samples spread evenly over the rays."""

    def render(self, rays: Rays) -> RenderResult:
        z = stratified_z(rays.near, rays.far, 1024)
        rgb, density = self.field.radiance(ray_points(rays, z), rays.viewdirs)
        return RenderResult(composite(rgb, density, z, rays.directions, False), None, None)


@pytest.mark.parametrize('factor', [0, 2])
def test_views_in_ndc_have_the_disparity_of_the_world_near_and_far(factor):
    H, W, focal = 12, 18, 16.0
    scene = ndc_scene([np.column_stack([turn([0.2, 1.0, 0.1], 3.0), [0.0, -0.1, 0.4]])], H, W, focal)
    cameras = scene.cameras.scaled(factor)
    _, disps, accs = render_path(Even(Walls(W, focal), tile=100), scene.space, cameras)

    origins, directions = cameras.view_rays(0)
    assert disps[0].shape == origins.shape[:2] == ((12, 18) if factor == 0 else (6, 9))
    x = (origins + (-1.5 - origins[..., 2:]) / directions[..., 2:] * directions)[..., 0]  # where depth is 1.5
    left = (x < -0.15 * 1.5).numpy()
    assert 0.2 < left.mean() < 0.8
    np.testing.assert_allclose(disps[0], np.where(left, 1 / 1.5, 1 / 10), atol=0.01)
    np.testing.assert_allclose(accs, 1.0, atol=1e-3)


def test_rays_of_a_forward_facing_scene_are_in_ndc(tiny_llff, tmp_path):
    scene, K = scene_of(tiny_llff(tmp_path)), centred_intrinsics(12, 16, 20.0)
    for view in range(5):
        origins, directions = (part.reshape(-1, 3) for part in get_rays(12, 16, K, scene.cameras.poses[view]))
        rays = scene.rays(*scene.cameras.view_rays(view))
        for ours, expected in zip((rays.origins, rays.directions), ndc_rays(12, 16, 20.0, 1.0, origins, directions)):
            torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(rays.viewdirs, torch.nn.functional.normalize(directions, dim=-1))  # of the world
        assert (rays.near == 0.0).all()
        assert (rays.far == 1.0).all()


# The program


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(run_dir / f'{step:06d}.tar', weights_only=True)
    return {f'{net} {name}': value for net in ('network_fn', 'network_fine')
            for name, value in checkpoint[f'{net}_state_dict'].items()}


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_run_in_ndc_trains_resumes_and_renders(tiny_llff, tmp_path, capsys):
    scene = tiny_llff(tmp_path / 'scene', forward_cameras(6))

    def run(*flags: str, logs: str = 'logs') -> str:
        assert run_nerf.main(flags_of(scene, tmp_path / logs, '--llffhold', '3', '--i_print', '10', *flags)) == 0
        out, err = capsys.readouterr()
        assert err == ''
        return out

    log = tmp_path / 'logs' / 'run'
    assert '6 images of 16x12, 4 train / 2 val / 2 test, near 0, far 1' in run('--N_iters', '20', '--i_img', '20')
    assert 'going on at step 20' in run('--N_iters', '40', '--i_testset', '40')
    assert [line['step'] for line in lines_of(log / 'metrics.jsonl')] == [10, 20, 30, 40]
    loss = [line['loss'] for line in lines_of(log / 'metrics.jsonl')]
    assert np.isfinite(loss).all()
    assert loss[-1] < 0.7 * loss[0]
    assert names(log / 'testset_000040') == ['000.png', '001.png', 'metrics.json']

    run('--N_iters', '40', logs='straight')
    unbroken = weights(tmp_path / 'straight' / 'run', 40)
    assert all(torch.equal(value, unbroken[name]) for name, value in weights(log, 40).items())

    assert '120 views and their videos are in' in run('--render_only', '--render_factor', '2')
    views = log / 'renderonly_path_000040'
    assert names(views) == sorted([*(f'{i:03d}.png' for i in range(120)), *(f'disp_{i:03d}.png' for i in range(120)),
                                   'video.mp4', 'video_disp.mp4'])
    assert Image.open(views / '119.png').size == (8, 6)

    run('--render_only', '--render_test')
    metrics = json.loads((log / 'renderonly_test_000040' / 'metrics.json').read_text())
    assert metrics['step'] == 40
    for row, i in zip(metrics['images'], (0, 3), strict=True):
        pair = (log / 'renderonly_test_000040' / row['file'], scene / 'images_2' / f'{i:03d}.png')
        shown, truth = (np.asarray(Image.open(path), np.float64) / 255 for path in pair)
        assert row['psnr'] == pytest.approx(-10 * np.log10(((shown - truth) ** 2).mean()), abs=1e-3)


@pytest.mark.slow
def test_a_run_around_an_object_without_ndc_trains_and_renders(tiny_llff, tmp_path, capsys):
    flags = flags_of(tiny_llff(tmp_path / 'scene', ring(), bounds=(2.0, 9.0)), tmp_path, '--no_ndc', '--spherify',
                     '--lindisp', '--N_iters', '20', '--i_print', '10')
    assert run_nerf.main(flags) == 0
    assert run_nerf.main([*flags, '--render_only', '--render_test']) == 0
    out, err = capsys.readouterr()
    assert err == ''
    assert '7 images of 16x12, 6 train / 1 val / 1 test, near 0.4' in out
    assert [line['step'] for line in lines_of(tmp_path / 'run' / 'metrics.jsonl')] == [10, 20]
    metrics = json.loads((tmp_path / 'run' / 'renderonly_test_000020' / 'metrics.json').read_text())
    assert len(metrics['images']) == 1
    assert metrics['mean']['psnr'] > 3.0


@pytest.mark.slow
def test_a_contracted_run_learns_goes_on_bit_for_bit_renders_and_is_meshed(tiny_llff, tmp_path, capsys):
    flags = flags_of(tiny_llff(tmp_path / 'scene', ring(), bounds=(2.0, 9.0)), tmp_path, '--no_ndc', '--spherify',
                     '--contract', 'on', '--N_iters', '60', '--i_print', '10', '--i_weights', '40')
    assert run_nerf.main(flags) == 0
    assert 'of contracted space' in capsys.readouterr().out
    log = tmp_path / 'run'
    losses = [line['loss'] for line in lines_of(log / 'metrics.jsonl')]
    assert losses[-1] < 0.8 * losses[0]
    whole = state_of_run(log, 60)
    assert len(whole['contraction']) == 4
    (log / '000060.tar').unlink()
    assert run_nerf.main(flags) == 0
    assert_same(state_of_run(log, 60), whole)
    assert run_nerf.main([*flags, '--render_only', '--render_test']) == 0
    metrics = json.loads((log / 'renderonly_test_000060' / 'metrics.json').read_text())
    assert metrics['mean']['psnr'] > 3.0
    assert not list(log.glob('*_occupancy.npz'))
    assert run_nerf.main([*flags, '--mesh_only', '--mesh_threshold', '0.01', '--mesh_grid_size', '20']) in (0, 1)
    assert run_nerf.main([*flags, '--contract', 'off', '--render_only']) == 1
    assert 'set contract = on (changed since then: contract on -> off)' in capsys.readouterr().err
