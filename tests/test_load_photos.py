"""load_photos.py: captures of transforms.json and of COLMAP models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from captured import change, refused
from conftest import SMALL_RUN, look_at_origin
from PIL import Image

import run_nerf
from load_photos import load_colmap, load_transforms
from nerf.captures.capture import Capture


def names(capture: Capture) -> list[str]:
    return [path.name for path in capture.paths]


# transforms.json: the whole capture


def test_a_capture_has_what_the_file_says(tiny_transforms, tmp_path):
    capture = load_transforms(tiny_transforms(tmp_path, k1=0.1, k2=-0.02, p1=0.003, p2=-0.004))
    assert names(capture) == [f'c_{i}.png' for i in range(6)]
    assert [image[0, 0].tolist() for image in capture.images] == [[0, 0, 10 * i] for i in range(6)]
    assert capture.images[0].shape == (24, 32, 3)
    assert capture.masks is capture.cameras.fisheye is capture.points is capture.seen is None
    assert capture.cameras.poses.dtype == torch.float64
    np.testing.assert_allclose(capture.cameras.poses[1], look_at_origin(np.pi / 3, 0.4, 4.0)[:3], atol=1e-12)
    np.testing.assert_allclose(capture.cameras.intrinsics, np.tile([38.4, 35.2, 17.0, 11.0], (6, 1)), atol=1e-12)
    np.testing.assert_allclose(capture.cameras.distortion, np.tile([0.1, -0.02, 0.003, -0.004, 0, 0, 0, 0], (6, 1)),
                               rtol=1e-6)
    assert capture.i_train.tolist() == [1, 2, 3, 4, 5]
    assert capture.i_val.tolist() == capture.i_test.tolist() == [0]


def test_the_fox_has_instant_ngps_cameras(shared, tmp_path):
    fox = shared / 'data' / 'photos' / 'fox_small'
    if not fox.is_dir():
        pytest.skip(f'needs {fox}')
    (tmp_path / 'images').symlink_to(fox / 'images')
    shutil.copy(fox / 'instant_ngp_transforms.json', tmp_path / 'transforms.json')
    refused(lambda: load_transforms(tmp_path), 'is a link to', '--outside_files')
    capture = load_transforms(tmp_path, outside_files=True)
    assert len(capture.images) == 25
    assert {image.shape for image in capture.images} == {(960, 540, 3)}
    assert capture.cameras.intrinsics[0].tolist() == [687.76, 687.245, 277.279, 482.634]
    assert capture.i_test.tolist() == [0, 8, 16, 24]
    assert capture.cameras.poses[0, :, 3].tolist() == [3.168359405609479, -5.4794898611466945, -0.9791660699008925]
    poses = capture.cameras.poses.numpy()
    away = -poses[:, :, 2]  # the cameras look at one place, well in front of them
    across = np.eye(3) - away[:, :, None] * away[:, None]
    centre = np.linalg.solve(across.sum(0), (across @ poses[:, :, 3:]).sum(0))[:, 0]
    towards = centre - poses[:, :, 3]
    assert ((towards * away).sum(-1) / np.linalg.norm(towards, axis=-1)).min() > 0.9


# Splits


def test_the_file_can_say_which_images_are_for_what(tiny_transforms, tmp_path):
    folder = tiny_transforms(tmp_path)

    def split(**lists) -> list[list[int]]:
        change(folder, **dict.fromkeys(['train_filenames', 'val_filenames', 'test_filenames']))
        change(folder, **{f'{key}_filenames': [f'./images/c_{i}.png' for i in value] for key, value in lists.items()})
        capture = load_transforms(folder)
        return [part.tolist() for part in (capture.i_train, capture.i_val, capture.i_test)]

    assert split(train=[5, 1], val=[2], test=[3, 0]) == [[1, 5], [2], [0, 3]]
    assert split(train=[0, 1], val=[2]) == [[0, 1], [2], [2]]
    assert split(train=[0, 1, 2], test=[4]) == [[0, 1, 2], [4], [4]]
    assert split(test=[4]) == [[0, 1, 2, 3, 5], [4], [4]]
    assert split(train=[0, 1, 2]) == [[0, 1, 2], [3, 4, 5], [3, 4, 5]]
    assert split(train=[0, 1, 2], val=[], test=[]) == [[0, 1, 2], [3, 4, 5], [3, 4, 5]]
    assert split(train=[], val=[], test=[]) == [[1, 2, 3, 4, 5], [0], [0]]
    assert split(train=range(6), test=[]) == [[1, 2, 3, 4, 5], [0], [0]]
    refused(lambda: split(test=range(6)), 'transforms.json', 'no image to train on')
    assert split(test=[77, 0, 78]) == [[1, 2, 3, 4, 5], [0], [0]]
    refused(lambda: split(test=[77, 78]), 'test_filenames has 2 names', 'images/c_77.png')


def test_every_so_many_photographs_by_name_are_test_images(tiny_transforms, tmp_path):
    folder = tiny_transforms(tmp_path, count=7)
    meta = json.loads((folder / 'transforms.json').read_text())
    change(folder, frames=meta['frames'][::-1])
    capture = load_transforms(folder, llffhold=3)
    assert names(capture) == [f'c_{i}.png' for i in range(7)]
    assert [image[0, 0, 2] for image in capture.images] == [10 * i for i in range(7)]
    assert capture.i_test.tolist() == capture.i_val.tolist() == [0, 3, 6]
    assert capture.i_train.tolist() == [1, 2, 4, 5]
    assert load_transforms(folder, llffhold=100).i_test.tolist() == [0]
    refused(lambda: load_transforms(folder, llffhold=1), 'llffhold 1 takes all 7')


def test_without_llffhold_the_camera_nearest_to_the_mean_position_is_the_test_image(tiny_transforms, tmp_path):
    folder = tiny_transforms(tmp_path)
    change(folder, {}, {}, {}, {'transform_matrix': look_at_origin(0.1, 0.2, 0.5).tolist()})
    capture = load_transforms(folder, llffhold=0)
    assert capture.i_test.tolist() == [3]
    assert capture.i_train.tolist() == [0, 1, 2, 4, 5]


# Sizes


def test_images_of_different_sizes_keep_them_and_each_has_a_lens_for_its_own(tiny_transforms, tmp_path):
    folder = tiny_transforms(tmp_path)
    Image.new('RGB', (64, 48), (1, 2, 3)).save(folder / 'images/c_2.png')  # twice the size that the file has
    Image.new('RGB', (30, 50), (1, 2, 3)).save(folder / 'images/c_4.png')
    change(folder, {}, {}, {}, {}, {'w': 30, 'h': 50, 'fl_x': 40, 'fl_y': 41, 'cx': 16, 'cy': 26, 'k1': 0.2})
    capture = load_transforms(folder)
    assert [image.shape[:2] for image in capture.images][1:5] == [(24, 32), (48, 64), (24, 32), (50, 30)]
    np.testing.assert_allclose(capture.cameras.intrinsics[1:5], [
        [38.4, 35.2, 17, 11], [76.8, 70.4, 34, 22], [38.4, 35.2, 17, 11], [40, 41, 16, 26]])
    assert capture.cameras.distortion[:, 0].tolist() == pytest.approx([0, 0, 0, 0, 0.2, 0])


def test_one_fisheye_among_others_is_one_without_coefficients_too(tiny_transforms, tmp_path):
    folder = tiny_transforms(tmp_path, 3)
    change(folder, {}, {'camera_model': 'OPENCV_FISHEYE'})
    capture = load_transforms(folder)
    assert capture.cameras.fisheye.tolist() == [False, True, False]
    assert not capture.cameras.distortion.any()
    pixel = torch.tensor(0)
    lengths = [float(capture.cameras.rays(torch.tensor(view), pixel, pixel)[1].norm()) for view in range(2)]
    assert lengths[0] > 1.1
    assert lengths[1] == pytest.approx(1.0, rel=1e-5)  # only a fisheye's directions have length 1


def test_a_size_of_other_proportions_than_the_pictures_is_an_error(tiny_transforms, tmp_path):
    folder = tiny_transforms(tmp_path)
    change(folder, w=24, h=32)
    refused(lambda: load_transforms(folder), 'c_0.png is 32x24', 'for 24x32', 'rotated')


@pytest.mark.parametrize('factor', [2, 3])
def test_reduced_images_are_made_once_and_lenses_fit_them(tiny_transforms, tmp_path, factor):
    folder = tiny_transforms(tmp_path, size=(25, 32))
    full = load_transforms(folder)
    for _ in range(2):
        capture = load_transforms(folder, factor)
        height, width = round(25 / factor), round(32 / factor)
        assert {image.shape for image in capture.images} == {(height, width, 3)}
        assert capture.paths[0] == folder / f'images_{factor}/c_0.png'
        share = [width / 32, height / 25] * 2
        np.testing.assert_allclose(capture.cameras.intrinsics, full.cameras.intrinsics.numpy() * share, rtol=1e-12)
    assert np.abs(capture.images[0].mean((0, 1)) - full.images[0].mean((0, 1))).max() < 4
    Image.new('RGB', (width, height), (9, 9, 9)).save(folder / f'images_{factor}/c_1.png')
    assert (load_transforms(folder, factor).images[1] == 9).all()
    (folder / f'images_{factor}/c_1.png').unlink()
    assert (load_transforms(folder, factor).images[1] == capture.images[1]).all()  # it is made again


# What is missing


def gone(folder: Path, *names: str) -> Path:
    """Folder of a scene after files were removed."""
    for name in names:
        (folder / name).unlink()
    return folder


def test_missing_photographs_are_left_out_of_the_capture_and_of_its_lists(tiny_transforms, tmp_path, capsys):
    folder = tiny_transforms(tmp_path, train_filenames=[f'images/c_{i}.png' for i in range(4)],
                             test_filenames=['images/c_4.png', 'images/c_5.png'])
    gone(folder, 'images/c_1.png', 'images/c_5.png')
    (folder / 'images/c_2.png').write_bytes(b'')  # a download that has failed
    capture = load_transforms(folder)
    assert names(capture) == ['c_0.png', 'c_3.png', 'c_4.png']
    assert [image[0, 0, 2] for image in capture.images] == [0, 30, 40]
    np.testing.assert_allclose(capture.cameras.poses[1], look_at_origin(np.pi, 0.4, 4.0)[:3], atol=1e-12)
    assert [part.tolist() for part in (capture.i_train, capture.i_val, capture.i_test)] == [[0, 1], [2], [2]]
    assert capsys.readouterr().err == (f'warning: {folder}: 3 of 6 photographs are missing and left out: '
                                       'images/c_1.png, images/c_2.png, images/c_5.png\n')
    change(folder, train_filenames=None, test_filenames=None)
    assert load_transforms(folder, llffhold=2).i_test.tolist() == [0, 2]  # by those that are there


def test_three_missing_photographs_are_named_and_the_others_counted(tiny_transforms, tmp_path, capsys):
    folder = gone(tiny_transforms(tmp_path, 8), *(f'images/c_{i}.png' for i in range(2, 7)))
    assert len(load_transforms(folder).images) == 3
    assert '5 of 8' in (line := capsys.readouterr().err)
    assert line.endswith('images/c_2.png, images/c_3.png, images/c_4.png and 2 more\n')


def test_if_all_photographs_are_missing_the_error_says_what_is_there(tiny_transforms, tiny_colmap, tmp_path):
    folder = tiny_transforms(tmp_path / 'a')
    for path in (folder / 'images').iterdir():
        path.rename(path.with_name(f'other_{path.name}'))
    refused(lambda: load_transforms(folder), '6 of 6 photographs are missing', 'c_0.png',
            "images' has other_c_0.png, other_c_1.png")
    folder, _ = tiny_colmap(tmp_path / 'b')
    shutil.rmtree(folder / 'images')
    refused(lambda: load_colmap(folder), '6 of 6 photographs are missing', '0.png', "images' has nothing")
    (folder / 'images_4').mkdir()
    refused(lambda: load_colmap(folder), 'has images_4; factor N reads images_N')
    change(tiny_transforms(tmp_path / 'c'), *[{'file_path': '\0'}, {'file_path': 'x' * 3000}] * 3, w=None)
    refused(lambda: load_transforms(tmp_path / 'c', outside_files=True), '6 of 6 photographs are missing')


def test_points_of_a_colmap_model_stay_with_the_images_that_see_them(tiny_colmap, tmp_path, capsys):
    folder, _ = tiny_colmap(tmp_path)
    whole = load_colmap(folder)
    gone(folder, 'images/2.png', 'images/some more/1.png')
    capture = load_colmap(folder)
    kept = [0, 2, 4, 5]
    assert [path.name for path in capture.paths] == [whole.paths[i].name for i in kept]
    assert [seen.tolist() for seen in capture.seen] == [whole.seen[i].tolist() for i in kept]
    assert np.array_equal(capture.points, whole.points)
    assert capture.cameras.intrinsics.tolist() == whole.cameras.intrinsics[kept].tolist()
    assert f'{folder}: 2 of 6 photographs are missing and left out: 2.png, some more/1.png' in capsys.readouterr().err


@pytest.mark.parametrize('reduced', [True, False])
def test_photographs_that_are_there_at_one_size_only_are_used_at_that_size(tiny_transforms, tmp_path, reduced):
    folder = tiny_transforms(tmp_path)
    if reduced:
        load_transforms(folder, 2)
        gone(folder, 'images/c_0.png', 'images_2/c_5.png')
        assert names(load_transforms(folder, 2)) == [f'c_{i}.png' for i in range(6)]  # c_5 is made again
        assert names(load_transforms(folder)) == [f'c_{i}.png' for i in range(1, 6)]
    else:
        gone(folder, 'images/c_0.png')
        assert names(load_transforms(folder, 2)) == [f'c_{i}.png' for i in range(1, 6)]
        assert not (folder / 'images_2/c_0.png').exists()


def test_missing_masks_leave_all_pixels_and_a_line(tiny_transforms, tmp_path, capsys):
    folder = tiny_transforms(tmp_path, 3)
    for i in range(3):
        Image.new('L', (32, 24), 0).save(folder / f'mask_{i}.png')
    change(folder, *({'mask_path': f'mask_{i}.png'} for i in range(3)))
    refused(lambda: load_transforms(folder), 'all 3 masks are black')
    gone(folder, 'mask_1.png')
    assert [mask.mean() for mask in load_transforms(folder).masks] == [0, 1, 0]
    assert '1 of 3 masks are missing; all pixels of their photographs are used: mask_1.png' in capsys.readouterr().err
    gone(folder, 'mask_0.png', 'mask_2.png')
    refused(lambda: load_transforms(folder), '3 of 3 masks are missing', 'mask_0.png')


NO_POINTS = ('ply', 'format ascii 1.0', 'element vertex 0', *(f'property float {name}' for name in 'xyz'), 'end_header')


@pytest.mark.parametrize(('content', 'words'), [
    (None, 'does not exist'), ('', 'cannot be read'), ('ply, or not', 'cannot be read'),
    ('\n'.join(NO_POINTS) + '\n', 'has no points')])
def test_points_that_cannot_be_read_are_done_without(tiny_transforms, tmp_path, capsys, content, words):
    folder = tiny_transforms(tmp_path, ply_file_path='points.ply')
    if content is not None:
        (folder / 'points.ply').write_text(content)
    assert load_transforms(folder).points is None
    line, = capsys.readouterr().err.splitlines()
    for word in ('points.ply', words, 'used without sparse points'):
        assert word in line


def test_a_frame_that_is_there_twice_is_used_once(tiny_transforms, tmp_path, capsys):
    folder = tiny_transforms(tmp_path)
    frames = json.loads((folder / 'transforms.json').read_text())['frames']
    change(folder, frames=[*frames, frames[2], frames[0]], test_filenames=['images/c_2.png'])
    capture = load_transforms(folder)
    assert names(capture) == [f'c_{i}.png' for i in range(6)]
    assert capture.i_test.tolist() == [2]
    line = '2 of 8 photographs are named again with the same camera, and are used once: images/c_0.png, images/c_2.png'
    assert line in capsys.readouterr().err
    change(folder, *[{}] * 6, {'transform_matrix': frames[1]['transform_matrix']})
    refused(lambda: load_transforms(folder), 'c_2.png', 'has 2 cameras')


def test_photographs_of_a_wild_lens_are_left_out(tiny_transforms, tmp_path, capsys):
    folder = tiny_transforms(tmp_path, test_filenames=['images/c_0.png', 'images/c_3.png'])
    change(folder, {}, {'k1': -45.0}, {}, {'k1': -44.85, 'k2': 1017.4, 'p1': 0.62, 'p2': 0.94})
    capture = load_transforms(folder)
    assert names(capture) == [f'c_{i}.png' for i in (0, 2, 4, 5)]
    assert capture.i_test.tolist() == [0]
    assert '2 of 6 photographs, images/c_3.png for one (k1 -44.85, k2 1017.4, p1 0.62' in capsys.readouterr().err


# Masks and points


def test_masks_are_white_where_pixels_are_to_be_trained_on(tiny_transforms, tmp_path):
    folder = tiny_transforms(tmp_path)
    mask = np.zeros((24, 32), np.uint8)
    mask[:12, 8:] = 255
    Image.fromarray(mask).save(folder / 'mask.png')
    change(folder, {}, {'mask_path': 'mask.png'})
    capture = load_transforms(folder)
    assert np.array_equal(capture.masks[1], mask > 0)
    assert capture.masks[0].all()
    assert capture.masks[0].shape == (24, 32)
    assert np.array_equal(load_transforms(folder, 2).masks[1], mask[::2, ::2] > 0)
    Image.fromarray(mask[:, :24]).save(folder / 'mask.png')
    refused(lambda: load_transforms(folder), 'mask.png is 24x24', '32x24')
    (folder / 'mask.png').unlink()
    refused(lambda: load_transforms(folder), '1 of 1 masks are missing')


@pytest.mark.parametrize('binary', [True, False])
def test_sparse_points_are_those_of_the_ply_file(tiny_transforms, tmp_path, binary):
    import trimesh

    folder = tiny_transforms(tmp_path, ply_file_path='points.ply')
    points = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    colours = np.full((50, 4), 9, np.uint8)
    trimesh.PointCloud(points, colours).export(folder / 'points.ply', encoding='binary' if binary else 'ascii')
    np.testing.assert_allclose(load_transforms(folder).points, points, atol=1e-6)


# COLMAP


@pytest.mark.parametrize('text', [False, True])
def test_colmaps_cameras_are_ours(tiny_colmap, tmp_path, text):
    folder, expected = tiny_colmap(tmp_path, text)
    capture = load_colmap(folder, llffhold=4)
    order = ['0.png', '2.png', '4.png', 'some more/1.png', 'some more/3.png', 'some more/5.png']
    assert [str(path.relative_to(folder / 'images')) for path in capture.paths] == order
    for i, name in enumerate(order):
        number = int(name[-5])
        assert capture.images[i][0, 0].tolist() == [10 * number, 100, 100]
        pose = look_at_origin(1.1 * number, 0.2 + 0.1 * (number % 3), 4.0)[:3]
        np.testing.assert_allclose(capture.cameras.poses[i], pose, atol=1e-12)
        image = expected.find_image_with_name(name)
        seen = {tuple(np.round(expected.points3D[point.point3D_id].xyz, 6)) for point in image.points2D
                if point.has_point3D()} - {tuple(np.round(expected.points3D[j + 1].xyz, 6)) for j in (20, 21)}
        assert {tuple(np.round(point, 6)) for point in capture.points[capture.seen[i]]} == seen
        assert len(capture.seen[i]) == 19
    assert len(capture.points) == 20
    assert capture.cameras.intrinsics.tolist() == [[40, 41, 17, 11]] * 3 + [[42, 43, 15, 13]] * 3
    assert capture.cameras.distortion[:, 0].tolist() == pytest.approx([0.05] * 3 + [0] * 3)
    assert capture.cameras.fisheye is None
    assert capture.i_test.tolist() == [0, 4]
    assert capture.i_train.tolist() == [1, 2, 3, 5]


def test_reduced_images_of_a_colmap_scene_are_used_with_lenses_of_their_true_size(tiny_colmap, tmp_path):
    folder, _ = tiny_colmap(tmp_path)
    full = load_colmap(folder)
    for path in full.paths:
        small = (folder / 'images_4' / path.relative_to(folder / 'images')).with_suffix('.JPG')
        small.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (9, 7), (200, 0, 0)).save(small)
    (folder / 'images').rename(folder / 'elsewhere')
    capture = load_colmap(folder, 4)
    assert {image.shape for image in capture.images} == {(7, 9, 3)}
    np.testing.assert_allclose(capture.cameras.intrinsics, full.cameras.intrinsics.numpy() * ([9 / 32, 7 / 24] * 2))
    refused(lambda: load_colmap(folder, 2), '6 of 6 photographs are missing', 'images/0.png')


def test_reduced_images_of_a_colmap_scene_are_made_in_the_same_folders(tiny_colmap, tmp_path):
    folder, _ = tiny_colmap(tmp_path)
    capture = load_colmap(folder, 2)
    assert capture.paths[4] == folder / 'images_2/some more/3.png'
    assert capture.images[4].shape == (12, 16, 3)
    assert (capture.images[4] == [30, 100, 100]).all()


def test_cameras_of_other_programs_are_for_stored_pixels_and_our_own_for_upright_ones(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = np.zeros((24, 32, 3), np.uint8)
    picture[:, :16] = 200
    (tmp_path / 'images').mkdir()
    frames = [{'file_path': f'images/{i}.png', 'transform_matrix': pose.tolist()}
              for i, pose in enumerate(look_at_origin(i, 0.3, 3.0) for i in range(3))]
    for frame in frames:
        Image.fromarray(picture).save(tmp_path / frame['file_path'], exif=exif)
    upright = np.rot90(picture, 3)
    for top, expected in (({}, picture), ({'estimated_from': ['images/0.png']}, upright), ({}, picture)):
        (tmp_path / 'transforms.json').write_text(json.dumps({'fl_x': 30, **top, 'frames': frames}))
        assert np.array_equal(load_transforms(tmp_path).images[0], expected)
        assert np.array_equal(load_transforms(tmp_path, 2).images[0], expected[::2, ::2])  # of one images_2 for both
        assert load_transforms(tmp_path).cameras.size(0) == expected.shape[:2]


def test_colmap_knows_pixels_as_they_are_stored(tiny_colmap, tmp_path):
    folder, _ = tiny_colmap(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = np.zeros((24, 32, 3), np.uint8)
    picture[0] = 200
    Image.fromarray(picture).save(folder / 'images/0.png', exif=exif)
    assert np.array_equal(load_colmap(folder).images[0], picture)
    assert load_colmap(folder, 2).images[0].shape == (12, 16, 3)


def test_points_that_one_image_shows_or_that_fit_badly_are_left_out_and_the_others_are_found_again(tmp_path):
    (tmp_path / 'images').mkdir()
    for name in 'ab':
        Image.new('RGB', (20, 10)).save(tmp_path / f'images/{name}.png')
    (tmp_path / 'cameras.txt').write_text('1 SIMPLE_PINHOLE 20 10 30 10 5\n')
    (tmp_path / 'images.txt').write_text('1 1 0 0 0 1 2 3 1 a.png\n1 1 70 2 2 -1 3 3 9 4 4 70 5 5 1000\n'
                                         '2 1 0 0 0 1 2 3 1 b.png\n1 1 30 2 2 20 3 3 50 4 4 40\n')
    track = '1 0 2 1'
    points = [f'70 7 0 0 9 9 9 0.4 {track}', f'9 0.9 0 0 9 9 9 -1 {track}', f'50 5 0 0 9 9 9 0.4 {track}',
              f'20 2 0 0 9 9 9 1.6 {track}', '30 3 0 0 9 9 9 0.4 1 0', f'40 4 0 0 9 9 9 1.19 {track}',
              f'60 inf 0 0 9 9 9 0.4 {track}']  # the median of the others' errors is 0.8

    def load(*lines: str) -> Capture:
        (tmp_path / 'points3D.txt').write_text('\n'.join(lines) + '\n')
        return load_colmap(tmp_path)

    capture = load(*points)
    assert capture.points[:, 0].tolist() == [7, 0.9, 5, 2, 4]
    assert [seen.tolist() for seen in capture.seen] == [[0, 1], [2, 3, 4]]
    capture = load(*points, *(f'{i} {i} 0 0 9 9 9 0.3 {track}' for i in range(100, 110)))  # now the median is 0.3
    assert capture.points[:5, 0].tolist() == [7, 0.9, 5, 100, 101]
    assert [seen.tolist() for seen in capture.seen] == [[0, 1], [2]]
    assert load(points[4]).points is None
    assert load().seen is None


def test_images_of_a_colmap_model_that_cannot_be_used_are_named(tmp_path):
    Image.new('RGB', (20, 10)).save(tmp_path / 'outside.png')
    (tmp_path / 'images').mkdir()
    for name in 'ab':
        Image.new('RGB', (20, 10)).save(tmp_path / f'images/{name}.png')
    (tmp_path / 'cameras.txt').write_text('1 SIMPLE_PINHOLE 20 10 30 10 5\n')

    def load(*images: str) -> Capture:
        (tmp_path / 'images.txt').write_text(''.join(f'{image}\n\n' for image in images))
        return load_colmap(tmp_path)

    good = '1 1 0 0 0 1 2 3 1 a.png'
    capture = load(good, '2 -2 0 0 0 1 2 3 1 b.png')
    assert capture.cameras.poses[1].tolist() == [[1, 0, 0, -1], [0, -1, 0, -2], [0, 0, -1, -3]]
    assert capture.cameras.distortion is capture.points is capture.seen is None
    refused(lambda: load(good, '2 1 0 0 0 1 2 3 1 ../outside.png'), "'../outside.png' leaves", '--outside_files')
    refused(lambda: load(good, f'2 1 0 0 0 1 2 3 1 {tmp_path}/outside.png'), 'leaves the folder', '--outside_files')
    refused(lambda: load(good, '2 1 0 0 0 1 2 3 7 b.png'), "'b.png' has camera 7")
    refused(lambda: load(good, '2 0 0 0 0 1 2 3 1 b.png'), "'b.png'", 'quaternion of length 0')
    refused(lambda: load(good, '2 nan 0 0 0 1 2 3 1 b.png'), "'b.png'", 'quaternion of length nan')
    refused(lambda: load(good, '2 1 0 0 0 1 inf 3 1 b.png'), "'b.png'", 'not finite')
    refused(lambda: load(good, '2 1 0 0 0 9 2 3 1 a.png'), 'a.png', 'has 2 cameras')
    refused(load, 'no images')
    refused(lambda: load(good), 'llffhold 8 takes all 1')


def test_names_that_lead_out_of_the_scene_and_back_are_inside(tiny_transforms, tmp_path, monkeypatch):
    folder = tiny_transforms(tmp_path / 'scene', count=2)
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    assert len(load_transforms('../scene').images) == 2
    change(folder, {'file_path': '../scene/images/c_0.png'})
    assert len(load_transforms(folder).images) == 2


# Runs


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'field'), [('transforms', 'mlp'), ('colmap', 'grid')])
def test_a_run_trains_on_photographs_of_several_lenses(tiny_transforms, tiny_colmap, tmp_path, capsys, kind, field):
    scene = tmp_path / 'scene'
    if kind == 'transforms':
        change(tiny_transforms(scene), {'camera_model': 'OPENCV_FISHEYE', 'k1': 0.1}, {'k1': -0.1})
    else:
        tiny_colmap(scene)
    small = [flag for flag in SMALL_RUN if flag != '--white_bkgd']
    small[small.index('--testskip') + 1] = '8'
    assert run_nerf.main([*small, '--dataset_type', kind, '--datadir', str(scene), '--basedir', str(tmp_path),
                          '--expname', 'run', '--field', field, '--N_iters', '20', '--i_video', '1000']) == 0
    assert '6 images of 32x24, 5 train / 1 val / 1 test' in capsys.readouterr().out
    assert (tmp_path / 'run/000020.tar').is_file()


@pytest.mark.parametrize('load', [load_transforms, load_colmap])
def test_a_datadir_that_is_no_folder_is_named_as_such(tmp_path, load):
    (tmp_path / 'transforms.json').write_text('{}')
    for name in ('nowhere', 'transforms.json'):
        refused(lambda name=name: load(tmp_path / name), f'datadir {tmp_path / name} is not a folder')
