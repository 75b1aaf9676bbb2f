"""video.py: which frames of a video become photographs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from make_video import blurred, ffmpeg, moving, shown, write_video
from PIL import Image

from nerf.captures.video import RULES, VideoRules, alike, sharpness, take_frames
from nerf.runtime.errors import UserError

FRAMES = moving(40)


def taken(video: Path, frames: list[np.ndarray], count: int | None = None, rules: VideoRules = RULES) -> list[int]:
    """Numbers of the frames that are taken from a video of `frames`, in the order of the files."""
    home = video.parent / 'images'
    take_frames({'clip': video}, home, count, rules)
    files = sorted(home.iterdir())
    assert [path.name for path in files] == [f'clip_{i:04d}.jpg' for i in range(1, len(files) + 1)]
    return [shown(np.asarray(Image.open(path)), frames) for path in files]


# Which frames


def test_each_frame_is_the_sharpest_of_its_stretch(tmp_path):
    sharp = [3, 5, 14, 16, 20, 29, 30, 38]  # one in each five frames
    frames = [frame if i in sharp else blurred(frame) for i, frame in enumerate(FRAMES)]
    assert taken(write_video(tmp_path / 'clip.mp4', frames), frames, 8) == sharp


def test_compression_does_not_hide_the_sharp_frames(tmp_path):
    frames = [frame if i % 5 == 2 else blurred(frame) for i, frame in enumerate(FRAMES)]
    video = write_video(tmp_path / 'clip.mp4', frames, '-crf', '24', '-pix_fmt', 'yuv420p')
    assert taken(video, frames, 8) == list(range(2, 40, 5))


def test_repeated_frames_count_once(tmp_path):
    video = write_video(tmp_path / 'clip.mp4', [frame for frame in FRAMES[:10] for _ in range(3)])
    assert taken(video, FRAMES, 20) == list(range(10))


def test_a_still_camera_gives_one_frame_of_its_rest(tmp_path):
    rng = np.random.default_rng(0)
    still = [(FRAMES[0] + rng.normal(0.0, 3.0, FRAMES[0].shape)).clip(0, 255).astype(np.uint8) for _ in range(30)]
    video = write_video(tmp_path / 'clip.mp4', still + FRAMES[1:10], '-crf', '20')
    assert taken(video, FRAMES, 10) == list(range(10))


def test_a_way_back_gives_no_frame_twice(tmp_path):
    assert taken(write_video(tmp_path / 'clip.mp4', FRAMES[:9] + FRAMES[:8][::-1]), FRAMES, 17) == list(range(9))


@pytest.mark.parametrize(('count', 'expected'), [(12, 12), (60, 40), (129, 43)])
def test_a_short_video_gives_a_third_of_its_frames_but_40_if_it_has_them(tmp_path, count, expected):
    frames = moving(count, 2)
    assert len(taken(write_video(tmp_path / 'clip.mp4', frames), frames)) == expected


def test_as_many_as_asked_for_even_of_a_short_video(tmp_path):
    assert taken(write_video(tmp_path / 'clip.mp4', FRAMES), FRAMES, 40) == list(range(40))


def test_of_a_very_long_video_only_key_frames_are_decoded(tmp_path, capsys):
    sharp = {5, 20, 30, 7, 11}  # the last two are no key frames
    frames = [frame if i in sharp else blurred(frame) for i, frame in enumerate(FRAMES)]
    video = write_video(tmp_path / 'clip.mp4', frames, '-g', '5', '-sc_threshold', '0')
    assert taken(video, frames, 3, VideoRules(longest=39)) == [5, 20, 30]
    assert '3 frames of clip.mp4, chosen from 8 that' in capsys.readouterr().out


def test_key_frames_that_are_too_few_are_not_relied_on(tmp_path, capsys):
    frames = [frame if i % 10 == 7 else blurred(frame) for i, frame in enumerate(FRAMES)]
    video = write_video(tmp_path / 'clip.mp4', frames, '-g', '20', '-sc_threshold', '0')
    assert taken(video, frames, 4, VideoRules(longest=39)) == [7, 17, 27, 37]
    assert '4 frames of clip.mp4, chosen from 40 that' in capsys.readouterr().out


def test_sharpness_is_the_mean_square_of_the_laplacian():
    grey = np.zeros((5, 6), np.uint8)
    grey[2, 2] = 10
    assert sharpness(grey) == pytest.approx((40.0 ** 2 + 4 * 10.0 ** 2) / 12)
    assert sharpness(np.full((5, 6), 77, np.uint8)) == 0.0


def test_pictures_are_alike_below_a_quarter_pixel_of_movement_and_at_another_brightness():
    column = np.arange(60, dtype=np.float32)

    def ramp(moved: float) -> np.ndarray:
        return np.tile(100.0 + 60.0 * np.sin((column - moved) / 5.0), (40, 1)) + 3.0 * np.arange(40)[:, None]
    assert alike(ramp(0.0), ramp(0.1) + 30.0)
    assert not alike(ramp(0.0), ramp(0.6))
    assert not alike(ramp(0.0), ramp(0.0)[:20])


# Files and folders


def test_several_videos_share_the_frames_by_length_in_folders_of_their_own(tmp_path):
    videos = {'a': write_video(tmp_path / 'a.mp4', FRAMES), 'b': write_video(tmp_path / 'b.mp4', FRAMES[:20])}
    long = write_video(tmp_path / 'c.mp4', moving(90))
    take_frames(videos | {'c': long}, tmp_path / 'images', 30)
    home = tmp_path / 'images'
    assert {path.name: len(list(path.iterdir())) for path in home.iterdir()} == {'a': 8, 'b': 4, 'c': 18}
    assert (home / 'b' / 'b_0004.jpg').exists()


def test_frames_go_beside_photographs_that_are_there(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'photo.jpg').touch()
    take_frames({'clip': write_video(tmp_path / 'clip.mp4', FRAMES)}, tmp_path / 'images', 8)
    assert sorted(path.name for path in (tmp_path / 'images').iterdir()) == ['clip', 'photo.jpg']
    assert len(list((tmp_path / 'images' / 'clip').iterdir())) == 8


@pytest.mark.parametrize('before', [[], ['photo.jpg']])
def test_frames_are_taken_once(tmp_path, capsys, before):
    for name in before:
        (tmp_path / 'images').mkdir()
        (tmp_path / 'images' / name).touch()
    video = write_video(tmp_path / 'clip.mp4', FRAMES)
    take_frames({'clip': video}, tmp_path / 'images', 8)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / 'images').rglob('*')}
    capsys.readouterr()
    take_frames({'clip': video}, tmp_path / 'images', 10)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'images').rglob('*')} == files
    assert 'has the frames of clip.mp4; delete them to take them again' in capsys.readouterr().out


def test_without_a_video_nothing_happens(tmp_path, capsys):
    take_frames({}, tmp_path / 'images')
    assert not list(tmp_path.iterdir())
    assert not ''.join(capsys.readouterr())


# Videos that cannot be used


def broken(folder: Path, kind: str) -> Path:
    path = write_video(folder / 'clip.mp4', FRAMES)
    content = path.read_bytes()
    if kind == 'sound':
        ffmpeg('-f', 'lavfi', '-i', 'sine=duration=0.2', str(path))
    elif kind == 'cover':
        ffmpeg('-f', 'lavfi', '-i', 'sine=duration=0.2', '-f', 'lavfi', '-i', 'color=size=64x64:duration=0.1',
               '-map', '0', '-map', '1', '-c:v', 'mjpeg', '-frames:v', '1', '-disposition:v:0', 'attached_pic',
               str(path))
    elif kind == 'still':
        write_video(path, FRAMES[:1] * 20)
    else:
        path.write_bytes({'empty': b'', 'text': b'hello', 'half': content[:len(content) // 2]}[kind])
    return path


@pytest.mark.parametrize(('kind', 'words'), [
    ('empty', 'cannot be read as a video'), ('text', 'cannot be read as a video'),
    ('half', r'cannot be read as a video \(moov atom not found\); copy it again'),
    ('sound', 'it has sound but no pictures'), ('cover', 'it has sound but no pictures'),
    ('still', 'shows only one picture, in 20 frames; move the camera')])
def test_a_video_without_use_is_one_line_and_leaves_nothing(tmp_path, kind, words):
    with pytest.raises(UserError, match=rf'clip\.mp4 .*{words}'):
        take_frames({'clip': broken(tmp_path, kind)}, tmp_path / 'images')
    assert [path.name for path in tmp_path.iterdir()] == ['clip.mp4']


def test_a_video_without_use_is_left_out_where_there_is_another(tmp_path, capsys):
    take_frames({'clip': broken(tmp_path, 'half'), 'good': write_video(tmp_path / 'good.mp4', FRAMES)},
                tmp_path / 'images', 12)
    assert len(list((tmp_path / 'images' / 'good').iterdir())) == 12
    assert re.search(r'warning: .*clip\.mp4 cannot be read .*; it is left out', capsys.readouterr().err)
