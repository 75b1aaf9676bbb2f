"""load_blender.py: scenes in the Blender format."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

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


def edit_all(folder, edit) -> None:
    """Changes each transforms file: edit(content) works on its JSON."""
    for path in folder.glob('transforms_*.json'):
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))


@pytest.mark.parametrize(('name', 'saved'), [
    ('r_{}', 'r_{}.jpg'), ('r_{}.jpg', 'r_{}.jpg'), ('r_{}', 'r_{}.PNG'), ('r_{}.png', 'r_{}.png.png'),
    ('.\\train\\r_{}.webp', 'r_{}.webp'), ('C:\\me\\train\\r_{}.png', 'r_{}.bmp'), ('/home/me/train/R_{}', 'r_{}.tif')])
def test_pictures_are_found_by_the_names_that_other_programs_write(tiny_scene, tmp_path, name, saved):
    folder = tiny_scene(tmp_path)
    number_images(folder, (4, 2, 2))
    content = json.loads((folder / 'transforms_train.json').read_text())
    for i, frame in enumerate(content['frames']):
        path = folder / f'train/r_{i}.png'
        with Image.open(path) as picture:
            picture = picture.convert('RGB')
        path.unlink()
        picture.save(folder / 'train' / saved.format(i))
        frame['file_path'] = name.format(i) if '\\' in name or '/' in name else f'./train/{name.format(i)}'
    (folder / 'transforms_train.json').write_text(json.dumps(content), encoding='utf-8-sig')
    assert load_blender_data(folder)[0][:4, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_pictures_stay_as_they_are_stored_whatever_their_exif_orientation(tiny_scene, tmp_path):
    folder = tiny_scene(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = np.zeros((16, 16, 4), np.uint8)
    picture[:4] = 200
    Image.fromarray(picture).save(folder / 'train/r_0.png', exif=exif)
    assert np.array_equal(load_blender_data(folder)[0][0], picture)


# Splits


def test_without_pictures_to_validate_every_8th_training_view_is_held_out(tiny_scene, tmp_path, capsys):
    folder = tiny_scene(tmp_path, counts=(17, 1, 3))
    (folder / 'transforms_val.json').write_text('{"camera_angle_x": 0.69, "frames": []}')
    *_, i_split = load_blender_data(folder)
    assert [part.tolist() for part in i_split] == [
        [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15], [0, 8, 16], [17, 18, 19]]
    assert capsys.readouterr().err == (f'warning: {folder}: no pictures for validation; every 8th training view, 3 of '
                                       '17, is held out\n')
    (folder / 'transforms_val.json').unlink()
    (folder / 'transforms_test.json').unlink()
    *_, (train, val, test) = load_blender_data(folder, testskip=2)
    assert (len(train), val.tolist(), test.tolist()) == (14, [0, 8, 16], [0, 8, 16])
    assert 'no pictures for validation and testing; every 8th' in capsys.readouterr().err


def test_without_pictures_to_test_those_for_validation_do(tiny_scene, tmp_path, capsys):
    folder = tiny_scene(tmp_path)
    (folder / 'transforms_test.json').unlink()
    *_, i_split = load_blender_data(folder)
    assert [part.tolist() for part in i_split] == [[0, 1, 2, 3], [4, 5], [4, 5]]
    assert 'no pictures for testing; those for validation are used' in capsys.readouterr().err


@pytest.mark.parametrize('first', [0, 2])
def test_pictures_that_testskip_leaves_out_need_not_be_there(tiny_scene, tmp_path, capsys, first):
    folder = tiny_scene(tmp_path, counts=(4, 1, 9))
    number_images(folder, (4, 1, 9))
    for i in set(range(9)) - set(range(first, 9, 4)):
        (folder / f'test/r_{i}.png').unlink()
    images, *_, i_split = load_blender_data(folder, testskip=4)
    expected = [5, 9, 13] if first == 0 else [7]  # of pictures 2 and 6, every 4th
    assert images[i_split[2], 0, 0, 0].tolist() == expected
    assert capsys.readouterr().err == ''


def test_one_training_view_alone_is_all_there_is_to_test(tiny_scene, tmp_path):
    folder = tiny_scene(tmp_path, counts=(1, 1, 1))
    for split in ('val', 'test'):
        (folder / f'transforms_{split}.json').unlink()
    assert [part.tolist() for part in load_blender_data(folder)[-1]] == [[0], [0], [0]]


def test_test_poses_without_pictures_are_the_path_to_render(tiny_scene, tmp_path, capsys):
    folder = tiny_scene(tmp_path, counts=(4, 2, 3))
    shutil.rmtree(folder / 'test')
    _, _, path, _, i_split = load_blender_data(folder, testskip=2)
    frames = json.loads((folder / 'transforms_test.json').read_text())['frames']
    assert np.array_equal(path, np.float32([frame['transform_matrix'] for frame in frames]))
    assert [part.tolist() for part in i_split] == [[0, 1, 2, 3], [4], [4]]
    assert 'none of its 3 pictures exists' in capsys.readouterr().err
    scene = blender_scene(str(folder), False, False, testskip=2)
    assert np.array_equal(scene.render_cameras.poses, path[:, :3])


# Lenses


LENS = {'fl_x': 20.0, 'fl_y': 18.0, 'cx': 9.0, 'cy': 11.0, 'k1': -0.03, 'p1': 0.001}


@pytest.mark.parametrize('sized', [{}, {'w': 32, 'h': 48}, {'w': 16, 'h': 24}])
@pytest.mark.parametrize('of_frames', [False, True])
@pytest.mark.parametrize('half_res', [False, True])
def test_the_lens_is_that_of_the_frame_or_of_the_file(tiny_scene, tmp_path, sized, of_frames, half_res):
    folder = tiny_scene(tmp_path, size=(24, 16))

    def edit(content):
        del content['camera_angle_x']
        for target in content['frames'] if of_frames else [content]:
            target.update(LENS | sized)
    edit_all(folder, edit)
    scene = blender_scene(str(folder), False, half_res, testskip=1)
    scale = (8 if half_res else 16) / sized.get('w', 16)
    expected = scale * np.float64([20, 18, 9, 11])
    np.testing.assert_allclose(scene.cameras.intrinsics, np.tile(expected, (8, 1)))
    np.testing.assert_allclose(scene.cameras.distortion[3], np.float32([-0.03, 0, 0.001, 0, 0, 0, 0, 0]))
    assert scene.cameras.one_size() == ((12, 8) if half_res else (24, 16))
    assert scene.render_cameras.distortion is None


def test_a_lens_that_folds_the_picture_is_left_out_and_one_for_another_size_gets_a_line(tiny_scene, tmp_path, capsys):
    folder = tiny_scene(tmp_path)
    change(folder, 'train', {}, {'k1': -45.0})
    change(folder, 'test', {'cx': 16.0}, {})
    images, *_, i_split = load_blender_data(folder, testskip=1)
    counts = [len(part) for part in i_split]
    folded, unusual = capsys.readouterr().err.splitlines()
    assert folded.startswith(f"warning: {folder / 'transforms_train.json'}: the lens of 1 of 4 photographs, ")
    assert 'k1 -45' in folded
    assert 'left out' in folded
    assert unusual.startswith(f"warning: {folder / 'transforms_test.json'}: the focal length or principal point of 2 ")
    assert (len(images), counts) == (7, [3, 2, 2])
    change(folder, 'val', {'k1': -45.0}, {})
    assert_refused(tmp_path, 'transforms_val.json: the lens of 2 of 2 photographs', 'estimated wrong')


def test_fields_of_view_may_differ_between_files(tiny_scene, tmp_path):
    folder = tiny_scene(tmp_path, angle=math.pi / 2)
    change(folder, 'test', {'camera_angle_x': 2 * math.atan(0.5)}, {})
    scene = blender_scene(str(folder), False, False, testskip=1)
    assert scene.cameras.intrinsics[:, 0].tolist() == pytest.approx([8.0] * 6 + [16.0] * 2)


def test_a_lens_for_a_picture_of_other_proportions_is_an_error(tiny_scene, tmp_path):
    change(tiny_scene(tmp_path), 'val', {'w': 32, 'h': 24}, {})
    assert_refused(tmp_path, 'val/r_0.png is 16x16 pixels', 'transforms_val.json is for 32x24')


# Other sizes and places


def moved_scene(folder, scale: float = 1.0, shift=(0.0, 0.0, 0.0), of_axes: float = 1.0):
    """Scales the positions of a scene's cameras, and their axes, and shifts the positions."""
    def edit(content):
        for frame in content['frames']:
            pose = np.array(frame['transform_matrix'])
            pose[:3, 3] = scale * pose[:3, 3] + shift
            pose[:3, :3] *= of_axes
            frame['transform_matrix'] = pose.tolist()
    edit_all(folder, edit)
    return folder


@pytest.mark.parametrize(('scale', 'shift'), [
    (3.0, (0, 0, 0)), (0.3, (0, 0, 0)), (1.0, (20, -3, 5)), (40.0, (500, 7, 9))])
def test_a_scene_elsewhere_is_brought_to_the_proportions_of_the_papers(tiny_scene, tmp_path, capsys, scale, shift):
    expected = blender_scene(str(tiny_scene(tmp_path / 'a', counts=(9, 2, 2))), True, False, 1)
    assert (expected.space, expected.placement) == (Bounded(2.0, 6.0), None)
    assert capsys.readouterr().out == ''
    folder = moved_scene(tiny_scene(tmp_path / 'b', counts=(9, 2, 2)), scale, shift)
    scene = blender_scene(str(folder), True, False, 1)
    np.testing.assert_allclose(scene.cameras.poses, expected.cameras.poses, atol=1e-4)
    np.testing.assert_allclose(scene.render_cameras.poses, expected.render_cameras.poses, atol=1e-4)
    np.testing.assert_allclose(scene.cameras.bounds, [[2.0, 6.0]] * 13, atol=1e-4)
    np.testing.assert_allclose(scene.render_cameras.bounds, [[2.0, 6.0]] * 40, atol=1e-4)
    np.testing.assert_allclose(scene.space.box(scene.cameras), [[-2.0] * 3, [2.0] * 3], atol=1e-4)
    np.testing.assert_allclose(scene.placement.to_capture() @ [1.0, 2.0, 3.0, 1.0],
                               [*(scale * np.float64([1, 2, 3]) + shift), 1.0], rtol=1e-4)
    assert f'from {4 * scale:.4g} away' in capsys.readouterr().out


def test_cameras_nearly_as_the_papers_stay_as_they_are(tiny_scene, tmp_path):
    folder = moved_scene(tiny_scene(tmp_path), 1.1, (0.2, 0.1, 0.0))
    assert blender_scene(str(folder), True, False, 1).placement is None


def test_a_distant_object_in_a_narrow_view_fills_the_bounds(tiny_scene, tmp_path):
    angle = 2 * math.atan(0.02)  # an object that fills the view has a radius of 0.02 distances
    folder = moved_scene(tiny_scene(tmp_path, counts=(9, 2, 2), angle=angle), 25.0)
    scene = blender_scene(str(folder), True, False, 1)
    distance = 2.0 / (1.4 * 0.02)  # for a half depth of 2
    np.testing.assert_allclose(scene.cameras.bounds, [[distance - 2.0, distance + 2.0]] * 13, rtol=1e-5)
    np.testing.assert_allclose(scene.space.box(scene.cameras), [[-2.0] * 3, [2.0] * 3], atol=1e-4)


def test_a_path_of_the_file_moves_with_the_scene(tiny_scene, tmp_path):
    folder = moved_scene(tiny_scene(tmp_path, counts=(9, 2, 3)), 3.0, (20, 0, 0))
    poses = blender_scene(str(folder), True, False, 1).cameras.poses[-3:]
    shutil.rmtree(folder / 'test')
    np.testing.assert_allclose(blender_scene(str(folder), True, False, 1).render_cameras.poses, poses, atol=1e-5)


def test_cameras_that_look_at_no_one_point_keep_the_papers_bounds_and_say_so(tiny_scene, tmp_path, capsys):
    folder, rng = tiny_scene(tmp_path, counts=(9, 1, 1)), np.random.default_rng(0)

    def edit(content):
        for frame in content['frames']:
            frame['transform_matrix'] = np.block([
                [Rotation.random(random_state=rng).as_matrix(), rng.normal(size=(3, 1))], [np.zeros(3), 1.0]]).tolist()
    edit_all(folder, edit)
    scene = blender_scene(str(folder), True, False, 1)
    assert (scene.space, scene.placement) == (Bounded(2.0, 6.0), None)
    assert 'do not look at one point' in capsys.readouterr().err


def test_a_scale_of_the_camera_is_divided_out(tiny_scene, tmp_path, capsys):
    expected = load_blender_data(tiny_scene(tmp_path / 'a'))[1]
    poses = load_blender_data(moved_scene(tiny_scene(tmp_path / 'b'), of_axes=0.1))[1]
    np.testing.assert_allclose(poses, expected, atol=1e-6)
    assert '8 of 8 cameras have axes of length 0.1 to 0.1' in capsys.readouterr().err


def test_mirrored_cameras_are_an_error_that_says_what_to_try(tiny_scene, tmp_path):
    assert_refused(moved_scene(tiny_scene(tmp_path), of_axes=-1.0), 'frame 0', 'is mirrored', 'Try to negate one row')


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
