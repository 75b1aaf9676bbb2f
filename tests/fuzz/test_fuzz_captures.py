"""Photographs with hostile cameras, masks and points: they are read, or refused in one line."""

from __future__ import annotations

import json
import shutil
import struct
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import trimesh
from conftest import look_at_origin
from hostile import (
    CHANGES, EDITS, JSON_VALUES, MEGABYTES, ODD_NUMBERS, PLACES, WHOLE_NUMBERS, WORDS, assert_refused, changed, edited,
    fuzzed, huge_png, megabytes, read_or_refused, replaced,
)
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from load_photos import load_colmap, load_transforms
from nerf.captures.lenses import LARGEST, Lens, one_to_one_share
from nerf.scene import photographs_scene

pytestmark = pytest.mark.fuzz


def read_capture(folder: Path, load, *options) -> None:
    capture = read_or_refused(folder, lambda: load(folder, *options))
    if capture:
        cameras = capture.cameras
        for numbers in (cameras.poses, cameras.intrinsics, cameras.distortion, capture.points):
            assert numbers is None or np.isfinite(np.asarray(numbers)).all()
        axes = cameras.poses[:, :, :3].numpy()
        np.testing.assert_allclose(axes.transpose(0, 2, 1) @ axes, np.tile(np.eye(3), (len(axes), 1, 1)), atol=1e-9)
        assert (cameras.intrinsics[:, :2] > 0).all()
        assert all(0 <= index < len(capture.points) for seen in capture.seen or [] for index in seen)
        assert len(capture.i_train)
        assert len(capture.i_test)
        read_or_refused(folder, lambda: photographs_scene(capture, False, True))


@pytest.fixture(scope='module')
def transforms(tiny_transforms, tmp_path_factory):
    """Folder of a scene with a mask, points and lists of images."""
    folder = tiny_transforms(
        tmp_path_factory.mktemp('transforms'), 3, (12, 16), k1=0.1, k2=0.01, camera_model='OPENCV',
        train_filenames=['images/c_0.png', 'images/c_2.png'], test_filenames=['images/c_1.png'], is_fisheye=False,
        ply_file_path='points.ply', camera_angle_x=0.8)
    path = folder / 'transforms.json'
    meta = json.loads(path.read_text())
    meta['frames'][1] |= {'mask_path': 'images/c_2.png', 'fl_x': 20.0, 'k1': 0.0}
    path.write_text(json.dumps(meta))
    points = trimesh.PointCloud(np.random.default_rng(0).normal(size=(9, 3)), np.full((9, 4), 9, np.uint8))
    points.export(folder / 'points.ply', encoding='ascii')
    return folder


@fuzzed
@given(changes=CHANGES, outside_files=st.booleans())
def test_one_transforms_with_other_values(transforms, changes, outside_files):
    path = transforms / 'transforms.json'
    text = json.dumps(changed(json.loads(path.read_text()), changes))
    with replaced(path, text.encode()):
        read_capture(transforms, load_transforms, 1, 8, outside_files)


@fuzzed
@given(edits=EDITS)
def test_edited_one_transforms(transforms, edits):
    path = transforms / 'transforms.json'
    with replaced(path, edited(path.read_bytes(), edits)):
        read_capture(transforms, load_transforms)


@fuzzed
@given(key=st.sampled_from(['file_path', 'mask_path', 'ply_file_path', 'camera_model', 'k1', 'w', 'fl_x',
                            'test_filenames', 'transform_matrix', 'K', 'estimated_from']),
       value=JSON_VALUES, in_frame=st.booleans(), outside_files=st.booleans())
def test_a_value_of_one_transforms_of_anything(transforms, key, value, in_frame, outside_files):
    path = transforms / 'transforms.json'
    meta = json.loads(path.read_text())
    (meta['frames'][0] if in_frame else meta)[key] = value
    with replaced(path, json.dumps(meta).encode()):
        read_capture(transforms, load_transforms, 1, 8, outside_files)


@fuzzed
@given(edits=EDITS)
@example(edits=[('set', 35, b'99999999')])
def test_edited_sparse_points(transforms, edits):
    path = transforms / 'points.ply'
    with replaced(path, edited(path.read_bytes(), edits)):
        read_capture(transforms, load_transforms)


@pytest.fixture(scope='module')
def colmap(tiny_colmap, tmp_path_factory):
    """Folders of a scene with a binary model and of a scene with a text model, by the ending of the files."""
    return {ending: tiny_colmap(tmp_path_factory.mktemp('colmap'), ending == 'txt', 3, (12, 16))[0]
            for ending in ('bin', 'txt')}


PARTS = st.sampled_from(['cameras', 'images', 'points3D'])


@fuzzed
@given(part=PARTS, ending=st.sampled_from(['bin', 'txt']), edits=EDITS)
def test_an_edited_colmap_model(colmap, part, ending, edits):
    path = colmap[ending] / 'sparse/0' / f'{part}.{ending}'
    with replaced(path, edited(path.read_bytes(), edits)):
        read_capture(colmap[ending], load_colmap)


@fuzzed
@given(part=PARTS, place=PLACES, value=ODD_NUMBERS.map(lambda value: struct.pack('<d', value)) | st.sampled_from(
    [0, 1, 255, 2 ** 31, 2 ** 32 - 1, 2 ** 61, 2 ** 63 - 1, 2 ** 64 - 1]).map(lambda value: struct.pack('<Q', value)))
def test_a_colmap_model_with_other_numbers(colmap, part, place, value):
    path = colmap['bin'] / 'sparse/0' / f'{part}.bin'
    data = path.read_bytes()
    at = place % (len(data) - 7)
    with replaced(path, data[:at] + value + data[at + 8:]):
        read_capture(colmap['bin'], load_colmap)


@fuzzed
@given(part=PARTS, place=PLACES, word=ODD_NUMBERS.map(repr) | WORDS | WHOLE_NUMBERS.map(
    lambda value: '9' * 400 if value == 10 ** 400 else str(value)))
def test_a_colmap_text_model_with_other_words(colmap, part, place, word):
    path = colmap['txt'] / 'sparse/0' / f'{part}.txt'
    lines = [line.split(' ') for line in path.read_text().split('\n')]
    words = lines[place % len(lines)]
    words[place // len(lines) % len(words)] = word
    with replaced(path, '\n'.join(map(' '.join, lines)).encode('utf-8', 'surrogatepass')):
        read_capture(colmap['txt'], load_colmap)


@fuzzed
@given(name=WORDS, ending=st.sampled_from(['bin', 'txt']), outside_files=st.booleans())
@example(name='..\\\\images\\\\0.png', ending='txt', outside_files=False)
def test_images_of_any_name_of_a_colmap_model(colmap, name, ending, outside_files):
    path = colmap[ending] / 'sparse/0' / f'images.{ending}'
    with replaced(path, path.read_bytes().replace(b'0.png', name.encode('utf-8', 'surrogatepass'))):
        read_capture(colmap[ending], load_colmap, 1, 8, outside_files)


@fuzzed
@given(ending=st.sampled_from(['bin', 'txt']), other=st.sampled_from(['bin', 'txt']), edits=EDITS)
def test_a_second_colmap_model_that_was_edited(colmap, ending, other, edits):
    folder = colmap[ending]
    model = folder / 'sparse/1'
    model.mkdir()
    try:
        for part in ('cameras', 'images', 'points3D'):
            data = (colmap[other] / 'sparse/0' / f'{part}.{other}').read_bytes()
            (model / f'{part}.{other}').write_bytes(edited(data, edits) if part == 'images' else data)
        read_capture(folder, load_colmap)
    finally:
        shutil.rmtree(model)


GONE = st.sets(st.integers(0, 2))


@fuzzed
@given(gone=GONE, ending=st.sampled_from(['bin', 'txt', 'json']), empty=st.booleans())
def test_some_photographs_that_are_gone(transforms, colmap, gone, ending, empty):
    folder = colmap.get(ending, transforms)
    paths = sorted((folder / 'images').rglob('*.png'))
    with ExitStack() as changes:
        for i in gone:
            changes.enter_context(replaced(paths[i], b'' if empty else None))
        read_capture(folder, load_transforms if folder == transforms else load_colmap)


@fuzzed
@given(coefficients=st.lists(ODD_NUMBERS.filter(lambda value: abs(value) <= LARGEST), min_size=8, max_size=8),
       fisheye=st.booleans(), focal=st.sampled_from([1e-3, 1.0, 700.0, 1e7]),
       middle=st.sampled_from([-1e7, 0.0, 400.0, 1e7]))
def test_lenses_of_any_numbers_are_one_to_one_up_to_some_place(coefficients, fisheye, focal, middle):
    lens = Lens(np.array([focal, focal, middle, middle]), np.array(coefficients), fisheye, (800.0, 600.0))
    assert 0.0 <= one_to_one_share(lens) <= 1.0


@pytest.fixture(scope='module')
def phones(tmp_path_factory):
    """Files that hold the cameras of phones' exports, whose names are like the files' folders."""
    poses = np.stack([look_at_origin(angle, 0.4, 4.0)[:3] for angle in (0.0, 2.0, 4.0)])
    folders = {name: tmp_path_factory.mktemp(name) for name in ('polycam', 'record3d')}
    for pictures in (folders['polycam'] / 'keyframes/images', folders['record3d'] / 'rgb'):
        pictures.mkdir(parents=True)
        for i in range(len(poses)):
            Image.new('RGB', (16, 12)).save(pictures / f'{i}.png')
    cameras = folders['polycam'] / 'keyframes/cameras'
    cameras.mkdir()
    for i, pose in enumerate(poses):
        camera = {f't_{row}{column}': pose[row, column] for row in range(3) for column in range(4)}
        (cameras / f'{i}.json').write_text(json.dumps(
            {'fx': 20.0, 'fy': 21.0, 'cx': 8.0, 'cy': 6.0, 'width': 16, 'height': 12} | camera))
    rows = [[*Rotation.from_matrix(pose[:, :3]).as_quat(), *pose[:, 3]] for pose in poses]
    (folders['record3d'] / 'metadata.json').write_text(json.dumps(
        {'w': 16, 'h': 12, 'K': [20, 0, 0, 0, 21, 0, 8, 6, 1], 'poses': rows, 'perFrameIntrinsicCoeffs': None}))
    return cameras / '1.json', folders['record3d'] / 'metadata.json'


@fuzzed
@given(which=st.integers(0, 1), changes=CHANGES)
def test_exports_of_phones_with_other_values(phones, which, changes):
    path = phones[which]
    with replaced(path, json.dumps(changed(json.loads(path.read_text()), changes)).encode()):
        read_capture(path.parents[2 - 2 * which], load_transforms)


@fuzzed
@given(which=st.integers(0, 1), edits=EDITS)
def test_edited_exports_of_phones(phones, which, edits):
    path = phones[which]
    with replaced(path, edited(path.read_bytes(), edits)):
        read_capture(path.parents[2 - 2 * which], load_transforms)


def test_a_picture_that_claims_to_be_huge_is_refused_by_each_loader(transforms, colmap):
    for name, folder, job in [
            ('images/c_1.png', transforms, lambda: load_transforms(transforms)),
            ('images/c_2.png', transforms, lambda: load_transforms(transforms, 2)),  # a mask, too
            ('images/0.png', colmap['bin'], lambda: load_colmap(colmap['bin']))]:
        path = folder / name
        with replaced(path, huge_png()):
            assert_refused(folder, job, f'{path} cannot be read as a picture', 'exceed the limit')


@pytest.mark.slow
@pytest.mark.parametrize('kind', MEGABYTES)
def test_one_transforms_of_50_megabytes_of_nothing_is_refused(transforms, kind):
    with replaced(transforms / 'transforms.json', megabytes(kind)):
        assert_refused(transforms, lambda: load_transforms(transforms), 'transforms')
