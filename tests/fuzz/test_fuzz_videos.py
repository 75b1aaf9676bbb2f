"""Damaged videos: frames are taken, or the video is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile import EDITS, edited, fuzzed, read_or_refused, replaced
from hypothesis import given
from hypothesis import strategies as st
from make_video import moving, write_video
from PIL import Image

from nerf.captures.video import take_frames

pytestmark = pytest.mark.fuzz


@pytest.fixture(scope='module')
def videos(tmp_path_factory) -> dict[str, Path]:
    """Short videos in several containers, by their endings."""
    folder = tmp_path_factory.mktemp('videos')
    return {ending: write_video(folder / f'clip.{ending}', moving(6), '-g', '3') for ending in ('mp4', 'mkv', 'avi')}


@fuzzed
@given(ending=st.sampled_from(['mp4', 'mkv', 'avi']), edits=EDITS)
def test_a_damaged_video(videos, tmp_path_factory, ending, edits):
    path, folder = videos[ending], tmp_path_factory.mktemp('scene')
    with replaced(path, edited(path.read_bytes(), edits)):
        read_or_refused(path.parent, lambda: take_frames({'clip': path}, folder / 'images', 4))
    pictures = list((folder / 'images').iterdir()) if (folder / 'images').exists() else []
    assert len(pictures) <= 4
    for picture in pictures:
        Image.open(picture).load()
    assert [path.name for path in folder.iterdir()] == ['images'][:len(pictures)]
