"""transforms.py: lenses, poses and paths of transforms.json, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from captured import change, refused
from conftest import turn
from PIL import Image

from nerf.captures.capture import PosedPhotograph
from nerf.captures.transforms import read_transforms


def first(folder: Path, **options) -> PosedPhotograph:
    """The first photograph."""
    return read_transforms(folder / 'transforms.json', **options).photographs[0]


@pytest.fixture
def folder(tiny_transforms, tmp_path) -> Path:
    """A scene of two photographs."""
    return tiny_transforms(tmp_path / 'scene', count=2)


# Lenses


def test_a_focal_length_can_be_a_field_of_view_and_what_is_missing_follows(folder):
    change(folder, fl_x=None, fl_y=None, cx=None, cy=None, camera_angle_x=math.pi / 2)
    assert first(folder).lens.intrinsics == pytest.approx([16, 16, 16, 12])
    change(folder, camera_angle_y=2 * math.atan(12 / 20))
    assert first(folder).lens.intrinsics == pytest.approx([16, 20, 16, 12])
    change(folder, fl_x=50)  # it is what counts, and the field of view is that of a lens without distortion
    assert first(folder).lens.intrinsics == pytest.approx([50, 50, 16, 12])
    change(folder, fl_x=None, camera_angle_x=None, camera_angle_y=None)
    refused(lambda: first(folder), 'frame 0', 'neither fl_x nor camera_angle_x')


def test_sizes_that_the_file_does_not_have_are_the_pictures(folder):
    change(folder, w=None, h=None, cx=None, cy=None)
    assert first(folder).lens.size == (32, 24)
    assert first(folder).lens.intrinsics.tolist()[2:] == [16, 12]


def test_a_frame_can_have_a_lens_of_its_own(folder):
    change(folder, {'fl_x': 77.0, 'k1': 0.5, 'w': 64.0})
    photographs = read_transforms(folder / 'transforms.json').photographs
    assert [photograph.lens.intrinsics[0] for photograph in photographs] == [77.0, 38.4]
    assert [photograph.lens.distortion[0] for photograph in photographs] == [0.5, 0.0]
    assert photographs[0].lens.size == (64, 24)


@pytest.mark.parametrize(('top', 'distortion', 'fisheye'), [
    ({'camera_model': 'OPENCV', 'k1': 1, 'k2': 2, 'p1': 3, 'p2': 4, 'k3': 5, 'k4': 0.0}, [1, 2, 3, 4, 5, 0, 0, 0],
     False),
    ({'k1': 1, 'p2': 4}, [1, 0, 0, 4, 0, 0, 0, 0], False),
    ({'camera_model': 'OPENCV_FISHEYE', 'k1': 1, 'k2': 2, 'k3': 3, 'k4': 4}, [1, 2, 0, 0, 3, 4, 0, 0], True),
    ({'is_fisheye': True, 'k1': 1, 'k2': 2, 'k3': 3, 'k4': 4, 'p1': 0}, [1, 2, 0, 0, 3, 4, 0, 0], True),
    ({'is_fisheye': False, 'k1': 1}, [1, 0, 0, 0, 0, 0, 0, 0], False),
    ({'camera_model': 'FULL_OPENCV', 'k4': 1, 'k5': 2, 'k6': 3}, [0, 0, 0, 0, 0, 1, 2, 3], False),
    ({'camera_model': 'RADIAL', 'k1': 1, 'k2': 2}, [1, 2, 0, 0, 0, 0, 0, 0], False),
    ({'camera_model': 'SIMPLE_PINHOLE', 'k1': 0}, [0] * 8, False)])
def test_coefficients_are_those_of_the_model(folder, top, distortion, fisheye):
    change(folder, **top)
    assert first(folder).lens.distortion.tolist() == distortion
    assert first(folder).lens.fisheye is fisheye


K = [[50.0, 0.0, 15.0], [0.0, 60.0, 11.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize(('frame', 'top', 'expected'), [
    ({'K': K}, {}, [50, 60, 15, 11]),
    ({}, {'K': K, 'fl_x': None, 'fl_y': None, 'cx': None, 'cy': None}, [50, 60, 15, 11]),
    ({}, {'K': K}, [38.4, 35.2, 17, 11]), ({'K': K, 'fl_x': 70.0, 'fl_y': 71.0}, {}, [70, 71, 15, 11]),
    ({'K': K}, {'fl_x': None, 'camera_angle_x': 1.0}, [50, 60, 15, 11])])
def test_a_frame_can_have_its_intrinsics_as_a_matrix(folder, frame, top, expected):
    change(folder, frame, **top)
    assert first(folder).lens.intrinsics == pytest.approx(expected)


@pytest.mark.parametrize('value', [3, [], [[1, 2, 3]], [[1, 0], [0, 1]], [[50, 9, 15], [0, 60, 11], [0, 0, 1]],
                                   [['a', 0, 15], [0, 60, 11], [0, 0, 1]], [[50, None, 15], [0, 60, 11], [0, 0, 1]]])
def test_a_matrix_of_something_else_is_refused(folder, value):
    change(folder, {'K': value})
    refused(lambda: first(folder), 'frame 0 has K', '3x3 numbers')


@pytest.mark.parametrize(('top', 'words'), [
    ({'k4': 0.1}, ['k4 = 0.1', 'OPENCV']), ({'camera_model': 'PINHOLE', 'k1': 0.1}, ['k1 = 0.1', 'PINHOLE']),
    ({'camera_model': 'OPENCV_FISHEYE', 'p1': 0.1}, ['p1 = 0.1', 'OPENCV_FISHEYE']),
    ({'camera_model': 'SIMPLE_RADIAL', 'k2': 0.1}, ['k2 = 0.1', 'SIMPLE_RADIAL']),
    ({'camera_model': 'EQUIRECTANGULAR'}, ['"EQUIRECTANGULAR"', 'OPENCV_FISHEYE']), ({'camera_model': 3}, ['3']),
    ({'ftheta_p0': 0.3}, ['ftheta_p0']), ({'fl_x': 0}, ['fl_x 0']), ({'fl_x': -3}, ['fl_x -3']),
    ({'fl_y': 'x'}, ['fl_y "x"']), ({'cx': math.nan}, ['cx NaN']), ({'k1': math.inf}, ['k1 Infinity']),
    ({'w': 0}, ['w 0']), ({'h': True}, ['h true']), ({'fl_x': None, 'camera_angle_x': 3.2}, ['camera_angle_x 3.2'])])
def test_a_lens_that_cannot_be_held_is_named(folder, top, words):
    change(folder, **top)
    refused(lambda: first(folder), 'transforms.json', 'frame 0', *words)


# Poses


def test_a_scale_of_a_camera_is_divided_out_and_told(folder, capsys):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = 2.5 * turn([1, 2, 3], 40.0), [5, 6, 7]
    change(folder, {'transform_matrix': matrix.tolist()})
    np.testing.assert_allclose(first(folder).pose, np.column_stack([turn([1, 2, 3], 40.0), [5, 6, 7]]), atol=1e-12)
    assert 'have axes of length 1 to 2.5 instead of 1; this scale was divided out' in capsys.readouterr().err


def test_a_nearly_rigid_pose_is_made_rigid(folder):
    rotation = turn([1, 2, 3], 40.0)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = 1.0005 * rotation, [5, 6, 7]
    change(folder, {'transform_matrix': matrix.tolist()})
    np.testing.assert_allclose(first(folder).pose[:, :3], rotation, atol=1e-12)
    assert first(folder).pose[:, 3].tolist() == [5, 6, 7]
    change(folder, {'transform_matrix': matrix[:3].tolist()})
    np.testing.assert_allclose(first(folder).pose[:, :3], rotation, atol=1e-12)


@pytest.mark.parametrize(('place', 'value', 'words'), [
    ((0, 0), 2.0, 'not of length 1'), ((0, 1), 0.3, 'not of length 1'), ((0, 0), -1.0, 'mirrored'),
    ((0, 0), 0.0, 'not of length 1'), ((1, 3), math.nan, 'not finite'), ((1, 1), math.inf, 'not finite'),
    ((2, 3), 1e12, 'above 1e+10'), ((3, 0), 0.5, 'last row'), ((2, 3), '4', 'not 4x4 numbers'),
    ((2, 3), 10 ** 400, 'transform_matrix'), ((2, 3), None, 'not 4x4 numbers')])
def test_a_pose_of_no_camera_is_named(folder, place, value, words):
    matrix = np.eye(4).tolist()
    matrix[place[0]][place[1]] = value
    change(folder, {}, {'transform_matrix': matrix})
    refused(lambda: first(folder), 'transforms.json', 'frame 1', words)


# Files


@pytest.mark.parametrize('ending', ['.png', '.jpg', '.jpeg', '.PNG', '.JPG', '.JPEG'])
def test_a_photographs_ending_can_be_left_out(tiny_transforms, tmp_path, ending):
    folder = tiny_transforms(tmp_path, 2, ending=ending)
    change(folder, {'file_path': './images/c_0'}, {'file_path': 'images\\c_1'})
    photographs = read_transforms(folder / 'transforms.json').photographs
    assert [photograph.path for photograph in photographs] == [folder / f'images/c_{i}{ending}' for i in range(2)]
    assert [photograph.name for photograph in photographs] == ['images/c_0', 'images/c_1']


def test_files_outside_the_folder_are_refused_unless_they_are_wanted(folder):
    Image.new('RGB', (32, 24)).save(folder.parent / 'secret.png')
    (folder / 'images/link.png').symlink_to(folder.parent / 'secret.png')
    for name, why in (('../secret.png', 'leaves the folder'), (str(folder.parent / 'secret.png'), 'leaves the folder'),
                      ('images/../../secret.png', 'leaves the folder'),
                      ('images/link.png', f"is a link to '{folder.parent / 'secret.png'}'")):
        for key in ('file_path', 'mask_path'):
            change(folder, {'file_path': 'images/c_0.png', 'mask_path': None} | {key: name})
            refused(lambda: first(folder), 'frame 0', key, why, '--outside_files')
            assert first(folder, outside_files=True).path.is_file()
    change(folder, {'file_path': 'images/c_0.png', 'mask_path': None}, ply_file_path='../secret.png')
    refused(lambda: first(folder), 'ply_file_path', 'leaves the folder', '--outside_files')


def test_links_of_photographs_are_followed_in_a_file_of_this_program(folder):
    (folder / 'images').rename(folder.parent / 'store')
    (folder / 'images').symlink_to(folder.parent / 'store')
    refused(lambda: first(folder), 'images/c_0.png', f"is a link to '{folder.parent / 'store/c_0.png'}'")
    change(folder, estimated_from=['images/c_0.png', 'images/c_1.png'])
    assert first(folder).path.is_file()
    Image.new('RGB', (32, 24)).save(folder.parent / 'secret.png')
    change(folder, {'file_path': '../secret.png'})
    refused(lambda: first(folder), 'leaves the folder')


def test_a_file_is_not_taken_for_what_another_name_means(folder, capsys):
    change(folder, {'file_path': 'left/c_0.png'}, {'file_path': 'images/c_0.png', 'mask_path': 'masks/c_0.png'})
    gone, there = read_transforms(folder / 'transforms.json').photographs[::-1]
    assert (gone.path, there.path) == (folder / 'left/c_0.png', folder / 'images/c_0.png')
    assert there.mask == folder / 'masks/c_0.png'
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize(('text', 'words'), [
    ('', 'JSON'), ('{', 'JSON'), ('[' * 100000, 'JSON'), ('[]', 'not a JSON object'), ('{}', '"frames"'),
    ('{"frames": []}', 'at least one frame'), ('{"frames": {"a": 1}}', '"frames"'), ('{"frames": [3]}', 'frame 0 is 3'),
    ('{"frames": [{}]}', 'frame 0 has file_path null'), ('{"frames": [{"file_path": 3}]}', 'file_path 3'),
    ('{"frames": [{"file_path": ""}]}', 'file_path ""')])
def test_a_file_of_something_else_is_refused(folder, text, words):
    (folder / 'transforms.json').write_text(text)
    refused(lambda: first(folder), 'transforms.json', words)


def test_lists_can_name_photographs_in_another_way_than_frames(folder):
    change(folder, {'file_path': '/home/somebody/scene/images/c_0.png'}, {'file_path': 'images/c_1'},
           test_filenames=['images\\c_0.png'], train_filenames=['/elsewhere/images/c_1.png'], val_filenames=['x.png'])
    assert read_transforms(folder / 'transforms.json').splits == {
        'test': ['/home/somebody/scene/images/c_0.png'], 'train': ['images/c_1'], 'val': ['x.png']}


def test_photographs_of_another_machine_are_found_by_the_end_of_their_paths(folder, capsys):
    (folder / 'images/c_1.png').rename(folder / 'images/c_1.jpg')
    change(folder, {'file_path': '/home/somebody/scene/images/c_0.png'}, {'file_path': 'C:\\scene\\images\\c_1.png'})
    photographs = read_transforms(folder / 'transforms.json').photographs
    assert [each.path for each in photographs] == [folder / 'images/c_0.png', folder / 'images/c_1.jpg']
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert 'by the end of their path' in lines[0]


def test_a_missing_photograph_without_a_size_does_not_stop_the_others(folder):
    change(folder, {'file_path': 'images/gone.png'}, w=None, h=None)
    there, gone = read_transforms(folder / 'transforms.json').photographs
    assert there.lens.size == gone.lens.size == (32, 24)


def test_an_empty_name_of_points_or_masks_is_none(folder):
    change(folder, {'mask_path': ''}, ply_file_path='')
    content = read_transforms(folder / 'transforms.json')
    assert content.points is content.photographs[0].mask is None


def test_lists_of_something_else_are_refused(folder):
    for value in (3, 'images/c_0.png', [3]):
        change(folder, test_filenames=value)
        refused(lambda: first(folder), 'test_filenames must be a list of names')


def test_a_missing_file_is_an_error_that_names_what_is_there(tiny_scene, tmp_path):
    refused(lambda: first(tiny_scene(tmp_path / 'a')), 'transforms.json does not exist', 'it has test, train, ')
    refused(lambda: first(tmp_path / 'b'), 'transforms.json does not exist', 'it has nothing')


def test_what_instant_ngp_says_about_its_own_scale_changes_nothing(folder):
    expected = first(folder)
    change(folder, aabb_scale=16, scale=0.3, offset=[1, 2, 3], applied_transform=np.eye(4)[:3].tolist())
    assert json.dumps(first(folder).pose.tolist()) == json.dumps(expected.pose.tolist())
