"""load_blender.py: scenes in the Blender format."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

from load_blender import load_blender_data, pose_spherical
from nerf.runtime.errors import UserError
from nerf.scene import blender_scene
from nerf.space import Bounded

# Against the reference code


@pytest.fixture(scope='module')
def lego(shared):
    folder = shared / 'data' / 'nerf_synthetic' / 'lego'
    if not folder.is_dir():
        pytest.skip(f'needs {folder}')
    return load_blender_data(folder, half_res=False, testskip=8)


@pytest.mark.slow
def test_lego_agrees_with_the_reference(golden, lego):
    images, poses, render_poses, hwf, i_split = lego
    np.testing.assert_allclose(poses, golden['lego_poses'], atol=1e-6)
    np.testing.assert_allclose(render_poses, golden['lego_render_poses'], atol=1e-5)
    np.testing.assert_allclose(hwf, golden['lego_hwf'], rtol=1e-7)
    assert [len(part) for part in i_split] == golden['lego_counts'].tolist()
    assert images.dtype == np.uint8
    assert images.shape == (138, 400, 400, 4)
    means = [image.mean(dtype=np.float64) / 255 for image in images]
    np.testing.assert_allclose(means, golden['lego_image_means'], atol=1e-5)


@pytest.mark.slow
def test_half_size_lego_agrees_with_the_reference_to_half_a_level(golden, shared, lego):
    images, poses, _, hwf, _ = load_blender_data(shared / 'data' / 'nerf_synthetic' / 'lego', True, testskip=1000)
    np.testing.assert_allclose(hwf, golden['lego_half_hwf'], rtol=1e-7)
    np.testing.assert_allclose(images[0] / 255.0, golden['lego_half_image0'], rtol=0, atol=0.5 / 255 + 1e-6)
    assert images.shape == (102, 200, 200, 4)
    assert np.array_equal(poses[:100], lego[1][:100])


# A scene of known content


def number_images(folder, counts) -> None:
    """Paints each image in its own grey level, in the order of the splits."""
    names = [f'{split}/r_{i}.png' for split, count in zip(('train', 'val', 'test'), counts) for i in range(count)]
    for level, name in enumerate(names):
        Image.new('RGB', (16, 16), (level,) * 3).save(folder / name)


@pytest.mark.parametrize(('testskip', 'kept'), [
    (0, [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9, 10, 11]]), (1, [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9, 10, 11]]),
    (2, [[0, 1, 2, 3], [4, 6], [7, 9, 11]]), (8, [[0, 1, 2, 3], [4], [7]])])
def test_the_splits_come_in_order_and_testskip_thins_the_last_two(tiny_scene, tmp_path, testskip, kept):
    folder = tiny_scene(tmp_path, counts=(4, 3, 5))
    number_images(folder, (4, 3, 5))
    images, poses, _, _, i_split = load_blender_data(folder, testskip=testskip)
    assert [images[part, 0, 0, 0].tolist() for part in i_split] == kept
    assert np.concatenate(i_split).tolist() == list(range(len(images)))
    frames = [frame for split in ('train', 'val', 'test')
              for frame in json.loads((folder / f'transforms_{split}.json').read_text())['frames']]
    expected = [frames[i]['transform_matrix'] for part in kept for i in part]
    assert poses.dtype == np.float32
    assert np.array_equal(poses, np.float32(expected))


@pytest.mark.parametrize('channels', [3, 4])
def test_size_focal_length_and_channels_by_hand(tiny_scene, tmp_path, channels):
    folder = tiny_scene(tmp_path, size=(12, 20), channels=channels, angle=math.pi / 2)
    images, _, _, hwf, _ = load_blender_data(folder)
    assert hwf == pytest.approx([12, 20, 10.0])  # 90 degrees: as far away as half the width
    assert images.shape == (8, 12, 20, channels)
    assert images[0, 6, 10, :3].tolist() == [230, 120, 40]
    assert images[0, 0, 0].tolist() == [255, 255, 255, 0][:channels]


def test_half_res_halves_size_and_focal_length(tiny_scene, tmp_path):
    folder = tiny_scene(tmp_path, size=(12, 20), angle=math.pi / 2)
    stripes = np.zeros((12, 20, 4), np.uint8)
    stripes[:, ::2] = [200, 100, 0, 255]
    Image.fromarray(stripes).save(folder / 'train' / 'r_0.png')
    images, _, _, hwf, _ = load_blender_data(folder, half_res=True)
    assert hwf == pytest.approx([6, 10, 5.0])
    assert images.shape == (8, 6, 10, 4)
    assert (images[0] == [100, 50, 0, 128]).all()


def test_the_turntable_looks_at_the_origin_from_40_places_4_away(tiny_scene, tmp_path):
    poses = load_blender_data(tiny_scene(tmp_path))[2]
    assert poses.shape == (40, 4, 4)
    assert poses.dtype == np.float32
    right, up, backward, origin = (poses[:, :3, i] for i in range(4))
    np.testing.assert_allclose(np.linalg.norm(origin, axis=-1), 4.0, rtol=1e-6)
    np.testing.assert_allclose(origin, 4.0 * backward, atol=1e-6)  # so -z, along which it looks, goes to the origin
    np.testing.assert_allclose(origin[:, 2], 2.0, atol=1e-6)  # 30 degrees up
    np.testing.assert_allclose(np.cross(right, up), backward, atol=1e-6)
    np.testing.assert_allclose(right[:, 2], 0.0, atol=1e-6)  # level
    assert (up[:, 2] > 0.8).all()
    assert (poses[:, 3] == [0, 0, 0, 1]).all()
    azimuth = np.unwrap(np.arctan2(origin[:, 1], origin[:, 0]))
    np.testing.assert_allclose(np.abs(np.diff(azimuth)), math.radians(9.0), atol=1e-5)


def test_a_camera_on_the_equator_by_hand():
    expected = [[0, 0, 1, 3], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]  # at x = 3, with y to its right
    np.testing.assert_allclose(pose_spherical(90.0, 0.0, 3.0), expected, atol=1e-6)


@pytest.mark.parametrize('ending', ['', '.png', '.PNG'])
def test_file_path_may_have_the_pictures_ending(tiny_scene, tmp_path, ending):
    folder = tiny_scene(tmp_path)
    if ending == '.PNG':
        (folder / 'train' / 'r_1.png').rename(folder / 'train' / 'r_1.PNG')
    change(folder, 'train', {}, {'file_path': f'train/r_1{ending}'})
    assert len(load_blender_data(folder)[0]) == 8


# Scene


@pytest.mark.parametrize('half_res', [False, True])
@pytest.mark.parametrize('white', [False, True])
def test_the_scene_has_the_loaders_images_and_cameras_and_the_papers_bounds(tiny_scene, tmp_path, half_res, white):
    folder = tiny_scene(tmp_path, size=(24, 40), counts=(4, 3, 5))
    images, poses, render_poses, hwf, i_split = load_blender_data(folder, half_res, testskip=2)
    scene = blender_scene(str(folder), white, half_res, testskip=2)
    assert scene.space == Bounded(2.0, 6.0, surrounded=True)
    assert scene.white_bkgd is white
    assert len(scene.images) == len(images) == 9
    assert all(np.array_equal(scene.images[i], image) for i, image in enumerate(images))
    for ours, part in zip((scene.i_train, scene.i_val, scene.i_test), i_split):
        assert ours.tolist() == part.tolist()
    height, width, focal = hwf
    for cameras, expected in ((scene.cameras, poses), (scene.render_cameras, render_poses)):
        assert np.array_equal(cameras.poses, expected[:, :3])
        assert cameras.one_size() == (height, width) == images.shape[1:3]
        assert cameras.intrinsics.tolist() == [[focal, focal, width / 2, height / 2]] * len(expected)
        assert cameras.distortion is None


# Errors

MISSING = object()


def change(folder, split: str, meta: dict, frame: dict) -> None:
    """Sets keys of a transforms file and of its second frame; MISSING takes them away."""
    path = folder / f'transforms_{split}.json'
    content = json.loads(path.read_text())
    for target, values in ((content['frames'][1], frame), (content, meta)):
        target.update(values)
        for key in [key for key, value in values.items() if value is MISSING]:
            del target[key]
    path.write_text(json.dumps(content))


def assert_refused(folder, *words: str) -> None:
    with pytest.raises(UserError) as error:
        load_blender_data(folder)
    for word in words:
        assert word in str(error.value)
    assert '\n' not in str(error.value)


def test_a_missing_datadir_is_an_error_that_says_where_scenes_come_from(tmp_path):
    assert_refused(tmp_path / 'chair', str(tmp_path / 'chair'), 'nerf_synthetic.zip', 'https://',
                   'configs/toy_chair.txt')


def test_a_missing_file_of_training_images_is_an_error_that_names_what_is_there(tiny_scene, tmp_path):
    path = tiny_scene(tmp_path) / 'transforms_train.json'
    path.unlink()
    assert_refused(tmp_path, str(path), 'does not exist', 'it has test, train, transforms_test.json')


@pytest.mark.parametrize('content', [b'', b'{"camera_angle_x": 0.69, "fra', b'\xff\xfe\x00', b'[' * 100000])
def test_a_transforms_file_that_is_not_json_is_an_error(tiny_scene, tmp_path, content):
    path = tiny_scene(tmp_path) / 'transforms_val.json'
    path.write_bytes(content)
    assert_refused(tmp_path, str(path))


@pytest.mark.parametrize('content', ['[]', '3', 'null', '{}'])
def test_json_without_the_fields_is_an_error(tiny_scene, tmp_path, content):
    path = tiny_scene(tmp_path) / 'transforms_val.json'
    path.write_text(content)
    assert_refused(tmp_path, str(path), 'frames')


@pytest.mark.parametrize(('split', 'frames'), [
    ('val', MISSING), ('val', None), ('train', []), ('val', {}), ('val', 'r_0')])
def test_missing_frames_are_an_error(tiny_scene, tmp_path, split, frames):
    change(tiny_scene(tmp_path), split, {'frames': frames}, {})
    assert_refused(tmp_path, str(tmp_path / f'transforms_{split}.json'), 'frames')


@pytest.mark.parametrize('angle', [MISSING, None, '0.69', [0.69], 0, -0.69, 3.2, math.nan, math.inf])
def test_an_impossible_camera_angle_is_an_error(tiny_scene, tmp_path, angle):
    change(tiny_scene(tmp_path), 'test', {'camera_angle_x': angle}, {})
    assert_refused(tmp_path, str(tmp_path / 'transforms_test.json'), 'camera_angle_x')


ROW = [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize('pose', [
    MISSING, None, 7, [], [ROW] * 3, [ROW] * 3 + [ROW[:3]], [ROW[:3]] * 4, [[ROW] * 4], [ROW] * 3 + [[math.nan] * 4],
    [ROW] * 3 + [[math.inf] * 4], [ROW] * 3 + [['a'] * 4], [ROW] * 3 + [[None] * 4], [ROW] * 3 + [[10 ** 400] * 4]])
def test_a_pose_that_is_not_a_finite_4x4_matrix_is_an_error(tiny_scene, tmp_path, pose):
    change(tiny_scene(tmp_path), 'train', {}, {'transform_matrix': pose})
    assert_refused(tmp_path, str(tmp_path / 'transforms_train.json'), 'frame 1', './train/r_1', '4x4')


@pytest.mark.parametrize('name', ['../outside.png', 'train/../../outside.png', '/etc/passwd'])
def test_a_file_path_that_leaves_the_folder_is_an_error(tiny_scene, tmp_path, name):
    change(tiny_scene(tmp_path / 'scene'), 'train', {}, {'file_path': name})
    (tmp_path / 'outside.png').touch()
    assert_refused(tmp_path / 'scene', str(tmp_path / 'scene/transforms_train.json'), repr(name), 'leaves the folder')


@pytest.mark.parametrize('name', [MISSING, None, 3])
def test_a_frame_without_file_path_is_an_error(tiny_scene, tmp_path, name):
    change(tiny_scene(tmp_path), 'train', {}, {'file_path': name})
    assert_refused(tmp_path, str(tmp_path / 'transforms_train.json'), 'frame 1', 'file_path')


def test_a_frame_that_is_no_object_is_an_error(tiny_scene, tmp_path):
    change(tiny_scene(tmp_path), 'train', {'frames': ['r_0']}, {})
    assert_refused(tmp_path, str(tmp_path / 'transforms_train.json'), 'frame 0')


def test_a_missing_image_is_left_out_and_named(tiny_scene, tmp_path, capsys):
    (tiny_scene(tmp_path) / 'train' / 'r_1.png').unlink()
    images, poses, _, _, i_split = load_blender_data(tmp_path)
    assert [len(part) for part in i_split] == [3, 2, 2]
    assert len(images) == len(poses) == 7
    frames = json.loads((tmp_path / 'transforms_train.json').read_text())['frames']
    assert np.array_equal(poses[1], np.float32(frames[2]['transform_matrix']))
    assert capsys.readouterr().err == (f"warning: {tmp_path / 'transforms_train.json'}: 1 of 4 pictures are missing "
                                       "and left out: './train/r_1'\n")


def test_training_images_that_are_all_missing_are_an_error(tiny_scene, tmp_path):
    shutil.rmtree(tiny_scene(tmp_path) / 'train')
    assert_refused(tmp_path, str(tmp_path / 'transforms_train.json'), 'all 4 pictures', './train/r_0', 'has test')


def test_an_unreadable_image_is_an_error(tiny_scene, tmp_path):
    path = tiny_scene(tmp_path) / 'test' / 'r_0.png'
    path.write_bytes(path.read_bytes()[:60])
    assert_refused(tmp_path, str(path), 'cannot be read')


def test_an_image_of_another_size_is_an_error(tiny_scene, tmp_path):
    path = tiny_scene(tmp_path) / 'test' / 'r_1.png'
    Image.new('RGBA', (16, 8)).save(path)
    assert_refused(tmp_path, f'{path} is 16x8', f'{tmp_path / "train" / "r_0.png"} is 16x16')
