"""nerf/files/video_frames.py: frames of video files as they are meant to be seen, each once."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from make_video import HEIGHT, WIDTH, blurred, ffmpeg, moving, shown, write_video

from nerf.files.video_frames import full_frames, read_header, small_frames
from nerf.runtime.errors import UserError

FRAMES = moving(20)


def all_frames(video: Path, count: int = 20) -> list[np.ndarray]:
    """All frames of a video of `count` frames, at their size."""
    return list(full_frames(video, read_header(video), list(range(count))))


def numbers(pictures: list[np.ndarray], frames: list[np.ndarray] = FRAMES) -> list[int]:
    return [shown(picture, frames) for picture in pictures]


@pytest.mark.parametrize(('name', 'options'), [
    ('clip.mp4', ()), ('clip.mkv', ()), ('clip.webm', ('-c:v', 'libvpx-vp9', '-b:v', '4M', '-deadline', 'realtime')),
    ('clip.mov', ('-c:v', 'prores_ks', '-pix_fmt', 'yuv422p10le')), ('clip.avi', ('-c:v', 'mjpeg', '-q:v', '2')),
    ('clip.mp4', ('-c:v', 'libx265', '-pix_fmt', 'yuv420p10le', '-x265-params', 'log-level=error'))])
def test_all_frames_or_some_by_their_numbers(tmp_path, name, options):
    video = write_video(tmp_path / name, FRAMES, *options)
    header = read_header(video)
    assert (header.frames, header.hdr, header.interlaced) == (20, None, False)
    assert header.seconds == pytest.approx(20 / 30, abs=0.05)
    assert numbers(full_frames(video, header, [0, 3, 4, 11, 19])) == [0, 3, 4, 11, 19]
    assert numbers(small_frames(video, header, 640)) == list(range(20))


def test_many_numbers(tmp_path):
    """ffmpeg refuses expressions that are nested 100 times."""
    video = write_video(tmp_path / 'clip.mp4', [frame[:16, :16] for frame in moving(700, 1)])
    assert len(list(full_frames(video, read_header(video), list(range(0, 700, 2))))) == 350


def test_small_frames_are_means_of_areas(tmp_path):
    video = write_video(tmp_path / 'clip.mp4', FRAMES)
    small = next(small_frames(video, read_header(video), WIDTH // 4))
    assert small.shape == (HEIGHT // 4, WIDTH // 4)
    grey = FRAMES[0] @ [0.299, 0.587, 0.114]
    assert np.abs(small - grey.reshape(HEIGHT // 4, 4, WIDTH // 4, 4).mean((1, 3))).mean() < 2.0


@pytest.mark.parametrize('turns', [1, 2, 3])
def test_frames_are_upright(tmp_path, turns):
    write_video(tmp_path / 'stored.mp4', FRAMES)
    ffmpeg('-display_rotation', str(90 * turns), '-i', str(tmp_path / 'stored.mp4'), '-c', 'copy',
           str(tmp_path / 'clip.mov'))
    upright = [np.rot90(frame, turns) for frame in FRAMES]
    assert numbers(all_frames(tmp_path / 'clip.mov'), upright) == list(range(20))
    assert numbers(small_frames(tmp_path / 'clip.mov', read_header(tmp_path / 'clip.mov'), 640), upright) == list(
        range(20))


@pytest.mark.parametrize('name', ['clip.mp4', 'clip.mkv'])
def test_frames_of_a_changing_rate_come_once_each(tmp_path, name):
    timing = "setpts='if(lt(N,10),N,10+10*(N-10))/30/TB'"  # thirty a second, then three
    video = write_video(tmp_path / name, FRAMES, '-vf', timing, '-fps_mode', 'vfr')
    assert numbers(all_frames(video)) == list(range(20))
    assert numbers(small_frames(video, read_header(video), 640)) == list(range(20))


def test_pixels_that_are_not_square_become_square(tmp_path):
    video = write_video(tmp_path / 'clip.mp4', FRAMES, '-vf', 'setsar=2')
    assert all_frames(video)[0].shape == (HEIGHT, 2 * WIDTH, 3)


def test_key_frames_alone(tmp_path):
    video = write_video(tmp_path / 'clip.mp4', FRAMES, '-g', '5', '-sc_threshold', '0')
    header = read_header(video)
    assert numbers(small_frames(video, header, 640, keys=True)) == [0, 5, 10, 15]
    assert numbers(full_frames(video, header, [1, 3], keys=True)) == [5, 15]


def combs(picture: np.ndarray) -> float:
    """Mean difference of each row from the rows above and below it."""
    rows = picture.mean(-1)
    return np.abs(rows[1:-1] - 0.5 * (rows[:-2] + rows[2:])).mean()


def test_interlaced_frames_are_woven_without_combs(tmp_path):
    frames = [blurred(frame, 3.0) for frame in moving(20, 8)]
    fields = [frame.copy() for frame in frames[:19]]
    for frame, later in zip(fields, frames[1:]):
        frame[1::2] = later[1::2]  # half a frame's time later, and eight pixels on
    video = write_video(tmp_path / 'clip.mp4', fields, '-vf', 'setfield=tff', '-flags', '+ilme+ildct', '-pix_fmt',
                        'yuv420p')
    assert read_header(video).interlaced
    pictures = all_frames(video)
    assert numbers(pictures, frames) == list(range(19))
    assert combs(pictures[9]) < 0.2 * combs(fields[9])


@pytest.mark.parametrize(('transfer', 'white'), [('arib-std-b67', 0.75), ('smpte2084', 0.58)])
def test_high_dynamic_range_is_mapped_to_the_usual_one(tmp_path, transfer, white):
    """Diffuse white, 203 cd/m2, and signals above and below it, in 10 bits."""
    signal = np.zeros((HEIGHT, WIDTH, 3))
    for i, level in enumerate((0.0, 0.3, white, 1.0)):
        signal[:, 40 * i:40 * i + 40] = level
    video = tmp_path / 'clip.mp4'
    ffmpeg('-f', 'rawvideo', '-pix_fmt', 'rgb48le', '-s', f'{WIDTH}x{HEIGHT}', '-r', '30', '-i', '-', '-vf',
           'scale=out_color_matrix=bt2020:out_range=limited,format=yuv420p10le,'
           f'setparams=color_primaries=bt2020:color_trc={transfer}:colorspace=bt2020nc', '-c:v', 'libx265', '-crf', '6',
           '-x265-params', 'log-level=error', str(video), given=(signal * 65535).astype('<u2').tobytes() * 3)
    assert read_header(video).hdr == transfer
    black, dark, bright, brightest = (all_frames(video, 3)[1][20:100, 40 * i + 10:40 * i + 30].mean() for i in range(4))
    assert black < 3.0
    assert 30.0 < dark < 120.0
    assert bright == pytest.approx(195.0, abs=6.0)  # 147 if PQ's signal were taken for the usual one
    assert brightest > 250.0


def test_what_is_before_and_after_damage_is_used_and_the_damage_is_said(tmp_path, capsys):
    content = write_video(tmp_path / 'whole.mp4', FRAMES, '-movflags', 'faststart', '-g', '1').read_bytes()
    video = tmp_path / 'clip.mp4'
    video.write_bytes(content[:len(content) * 3 // 4])
    found = numbers(small_frames(video, read_header(video), 640))
    assert 10 < len(found) < 18
    assert found == list(range(len(found)))
    assert re.search(r'clip\.mp4 is damaged \(.*\); what can be decoded is used', capsys.readouterr().err)


def test_a_video_without_frames_is_one_line(tmp_path):
    video = write_video(tmp_path / 'clip.mp4', FRAMES, '-movflags', 'faststart')
    header = read_header(video)
    content = bytearray(video.read_bytes())
    content[content.index(b'mdat') + 4:] = bytes(len(content) - content.index(b'mdat') - 4)
    video.write_bytes(content)
    with pytest.raises(UserError, match=r'clip\.mp4 has no frames that can be decoded \(.*\); copy it again'):
        list(small_frames(video, header, 640))


def test_names_that_ffmpeg_could_take_for_something_else(tmp_path):
    video = write_video(tmp_path / 'clip.mp4', FRAMES).rename(tmp_path / "concat:it's [a];b,%04d.mp4")
    assert numbers(all_frames(video)) == list(range(20))
