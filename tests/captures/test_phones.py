"""phones.py: raw exports of Polycam and Record3D, made here as these programs write them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from captured import refused, ring
from PIL import Image
from scipy.spatial.transform import Rotation

from load_photos import load_transforms
from nerf.captures.capture import Capture
from nerf.captures.phones import phone_export

POSES = ring([0.0, 72.0, 144.0, 216.0, 288.0])


def pictures(folder: Path, ending: str = '.jpg') -> None:
    """Writes five pictures, 0.jpg to 4.jpg, of 16x12 pixels."""
    folder.mkdir(parents=True)
    for i in range(len(POSES)):
        Image.new('RGB', (16, 12), (10 * i, 0, 0)).save(folder / f'{i}{ending}')


def polycam(folder: Path, corrected: bool = False) -> Path:
    keyframes = folder / 'keyframes'
    pictures(keyframes / ('corrected_images' if corrected else 'images'))
    cameras = keyframes / ('corrected_cameras' if corrected else 'cameras')
    cameras.mkdir()
    for i, pose in enumerate(POSES):
        camera = {f't_{row}{column}': pose[row, column] for row in range(3) for column in range(4)}
        (cameras / f'{i}.json').write_text(json.dumps(camera | {
            'fx': 20.0 + i, 'fy': 21.0, 'cx': 8.5, 'cy': 6.5, 'width': 16, 'height': 12, 'blur_score': 100.0}))
    return folder


def record3d(folder: Path, name: str = 'metadata.json', pictures_in: str = 'rgb', **more) -> Path:
    pictures((folder / name).parent / pictures_in)
    poses = [[*Rotation.from_matrix(pose[:, :3]).as_quat(), *pose[:, 3]] for pose in POSES]
    top = {'w': 16, 'h': 12, 'fps': 60, 'poses': poses, 'K': [20.0, 0.0, 0.0, 0.0, 21.0, 0.0, 8.5, 6.5, 1.0]} | more
    (folder / name).write_text(json.dumps(top))
    return folder


def assert_cameras(capture: Capture, focal: list[float]) -> None:
    """Asserts that a capture has the POSES, and the pictures that belong to them."""
    np.testing.assert_allclose(capture.cameras.poses, POSES, atol=1e-9)
    assert np.abs([image.mean((0, 1))[0] for image in capture.images] - 10.0 * np.arange(5)).max() < 2.0
    assert capture.cameras.intrinsics[:, 0].tolist() == focal
    assert capture.cameras.intrinsics[0, 1:].tolist() == [21.0, 8.5, 6.5]


@pytest.mark.parametrize('corrected', [False, True])
def test_keyframes_of_polycam_are_a_capture(tmp_path, corrected):
    assert_cameras(load_transforms(polycam(tmp_path, corrected)), [20, 21, 22, 23, 24])


def test_cameras_that_polycam_has_corrected_come_first(tmp_path):
    polycam(polycam(tmp_path), corrected=True)
    path, content = phone_export(tmp_path)
    assert path == tmp_path / 'keyframes/corrected_cameras'
    assert content['frames'][0]['file_path'] == 'keyframes/corrected_images/0'


@pytest.mark.parametrize(('name', 'pictures_in'), [
    ('metadata.json', 'rgb'), ('metadata', 'rgbd'), ('EXR_RGBD/metadata.json', 'rgb')])
def test_metadata_of_record3d_are_a_capture(tmp_path, name, pictures_in):
    assert_cameras(load_transforms(record3d(tmp_path, name, pictures_in)), [20] * 5)


def test_record3d_knows_intrinsics_of_each_frame(tmp_path):
    each = [[30.0 + i, 21.0, 8.5, 6.5] for i in range(5)]
    assert_cameras(load_transforms(record3d(tmp_path, perFrameIntrinsicCoeffs=each)), [30, 31, 32, 33, 34])


def test_a_picture_that_is_gone_takes_its_pose_with_it(tmp_path, capsys):
    (record3d(tmp_path) / 'rgb/1.jpg').unlink()
    capture = load_transforms(tmp_path)
    np.testing.assert_allclose(capture.cameras.poses, POSES[[0, 2, 3, 4]], atol=1e-9)
    assert '1 of 5 photographs are missing' in capsys.readouterr().err


def test_a_transforms_json_beside_an_export_is_what_counts(tiny_transforms, tmp_path):
    polycam(tiny_transforms(tmp_path))
    assert len(load_transforms(tmp_path).images) == 6


def test_other_folders_are_no_export(tmp_path):
    (tmp_path / 'metadata.json').write_text('{"a": 1}')
    (tmp_path / 'images').mkdir()
    assert phone_export(tmp_path) is None


@pytest.mark.parametrize(('change', 'words'), [
    ({'poses': [[0, 0, 0, 1, 0, 0]] * 5}, 'pose 0 has not 7 numbers'), ({'poses': 3}, 'Record3D'),
    ({'poses': [[0, 0, 0, 0, 1, 2, 3]] * 5}, 'not finite'), ({'K': None}, 'Record3D'), ({'K': [1, 2]}, 'Record3D'),
    ({'perFrameIntrinsicCoeffs': [[1, 2, 3, 4]]}, 'Record3D'), ({'w': None, 'h': 0}, 'h 0'), ({'poses': []}, 'frames')])
def test_a_broken_export_is_refused(tmp_path, change, words):
    refused(lambda: load_transforms(record3d(tmp_path, **change)), 'metadata.json', words)


def test_a_recording_that_is_not_unpacked_is_named(tmp_path):
    (tmp_path / 'scan.r3d').write_bytes(b'PK')
    refused(lambda: load_transforms(tmp_path), 'scan.r3d is a recording of Record3D', 'unpack it')


def test_a_broken_camera_of_polycam_is_named(tmp_path):
    (polycam(tmp_path) / 'keyframes/cameras/3.json').write_text('{"fx": 3}')
    refused(lambda: load_transforms(tmp_path), 'cameras/3.json is no camera of Polycam')
