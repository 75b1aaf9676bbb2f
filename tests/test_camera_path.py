"""nerf/camera_path.py: frames between key frames, the file, and --render_path."""

import json
import math

import numpy as np
import pytest

from conftest import look_at_origin, turn
from nerf.camera_path import CameraPath, KeyFrame
from nerf.runtime.errors import UserError
from run_nerf import main


def key(degrees: float, position, fov: float = 0.8) -> KeyFrame:
    return KeyFrame(np.column_stack([turn([0, 1, 0], degrees), position]), fov)


def test_a_path_of_two_key_frames_is_straight_and_turns_evenly():
    path = CameraPath([key(0, [0, 0, 0], 0.6), key(90, [3, 0, -6], 1.0)], seconds=0.1)
    frames = path.frames()
    assert len(frames) == 4  # three steps of a thirtieth of a second
    for frame, share in zip(frames, (0, 1 / 3, 2 / 3, 1)):
        expected = key(90 * share, [3 * share, 0, -6 * share])
        np.testing.assert_allclose(frame.pose, expected.pose, atol=1e-6)
    assert frames[0].fov == pytest.approx(0.6)
    assert frames[-1].fov == pytest.approx(1.0)


def test_a_path_goes_through_its_key_frames_without_jumps():
    keys = [key(0, [0, 0, 0]), key(40, [1, 2, 0]), key(30, [4, 1, 1]), key(-80, [5, 0, 2], 1.1)]
    frames = CameraPath(keys, seconds=1.0).frames()
    assert len(frames) == 91
    for i, wanted in enumerate(keys):
        np.testing.assert_allclose(frames[30 * i].pose, wanted.pose, atol=1e-6)
        assert frames[30 * i].fov == pytest.approx(wanted.fov)
    poses = np.stack([frame.pose for frame in frames])
    assert np.abs(np.diff(poses[:, :, 3], n=2, axis=0)).max() < 0.02  # a corner at a key frame would be 0.06 or more
    turns = poses[:, :, :3]
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.tile(np.eye(3), (91, 1, 1)), atol=1e-9)


def test_one_key_frame_is_one_picture():
    assert len(CameraPath([key(10, [1, 2, 3])]).frames()) == 1


def test_cameras_have_the_size_and_the_vertical_field_of_view_of_the_path():
    cameras = CameraPath([key(0, [0, 0, 0], math.pi / 2)], height=40, width=60).cameras()
    assert cameras.size(0) == (40, 60)
    np.testing.assert_allclose(cameras.intrinsics[0], [20, 20, 30, 20])  # tan(45 degrees) = 1 = 20 / 20
    assert cameras.within == 0.5


def test_a_saved_path_is_read_as_it_was(tmp_path):
    path = CameraPath([key(20, [0.1, 2, 3], 0.7), key(50, [1, 2, 4])], seconds=1.5, height=30, width=50)
    path.save(tmp_path / 'path.json')
    again = CameraPath.read(tmp_path / 'path.json')
    assert (again.seconds, again.height, again.width) == (1.5, 30, 50)
    for old, new in zip(path.keys, again.keys):
        np.testing.assert_array_equal(old.pose, new.pose)
        assert new.fov == pytest.approx(old.fov)


GOOD = {'width': 8, 'height': 6, 'seconds': 1, 'key_frames': [{'pose': np.eye(4)[:3].tolist(), 'fov': 40}] * 2}
BROKEN = {
    'nothing': ('', 'cannot be read as JSON'),
    'a list': ('[]', 'no key_frames'),
    'no key frame': (GOOD | {'key_frames': []}, 'no key_frames'),
    'a scaled pose': (GOOD | {'key_frames': [{'pose': (2 * np.eye(4)[:3]).tolist(), 'fov': 40}]},
                      'key frame 0 has no pose'),
    'a mirrored pose': (GOOD | {'key_frames': [{'pose': np.diag([1, 1, -1, 1])[:3].tolist(), 'fov': 40}]},
                        'key frame 0 has no pose'),
    'a ragged pose': (GOOD | {'key_frames': [{'pose': [[1, 2], [3]], 'fov': 40}]}, 'key frame 0 has no pose'),
    'a word': (GOOD | {'key_frames': ['here']}, 'key frame 0 has no pose'),
    'no fov': (GOOD | {'key_frames': [{'pose': np.eye(4)[:3].tolist()}]}, 'fov is None'),
    'a size of a half': (GOOD | {'width': 7.5}, 'width is 7.5; it must be a whole number'),
    'no size': (GOOD | {'height': 0}, 'height is 0'),
    'an endless path': (GOOD | {'seconds': 3600.0}, 'more than 100000 frames'),
    'no number': ('{"key_frames": [1], "seconds": NaN}', 'key frame 0 has no pose'),
}


@pytest.mark.parametrize('name', BROKEN)
def test_a_broken_file_is_one_line_that_names_it(name, tmp_path):
    content, message = BROKEN[name]
    path = tmp_path / 'path.json'
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding='utf-8')
    with pytest.raises(UserError, match=message) as error:
        CameraPath.read(path)
    assert 'path.json' in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r'nowhere\.json does not exist'):
        CameraPath.read(tmp_path / 'nowhere.json')


@pytest.mark.slow
def test_render_path_draws_the_frames_of_the_file(flags, tmp_path):
    assert main(flags('--N_iters', '2', '--i_weights', '2')) == 0
    keys = [KeyFrame(look_at_origin(angle, 0.4, 4.0)[:3], 0.7) for angle in (0.0, 0.5)]
    CameraPath(keys, seconds=0.1, height=12, width=16).save(tmp_path / 'mine.json')
    assert main(flags('--N_iters', '2', '--render_only', '--render_path', str(tmp_path / 'mine.json'))) == 0
    folder = tmp_path / 'run' / 'renderonly_camera_path_000002'
    assert sorted(path.name for path in folder.glob('0*.png')) == [f'{i:03d}.png' for i in range(4)]
    assert (folder / 'video.mp4').exists()


def test_a_render_path_that_is_missing_is_an_error(flags, tmp_path, capsys):
    assert main(flags('--render_only', '--render_path', str(tmp_path / 'none.json'))) == 1
    assert 'none.json does not exist' in capsys.readouterr().err
