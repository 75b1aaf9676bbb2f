"""Frames of videos as photographs: of each stretch of a video the sharpest frame, and no two frames alike.

A video is decoded twice: small and grey to choose frames, then to write those. No pass holds more than one frame, and
of a very long video both decode only key frames.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nerf.files.video_frames import Header, full_frames, read_header, small_frames
from nerf.files.whole_file import whole_folder
from nerf.runtime.errors import UserError


@dataclass(frozen=True)
class VideoRules:
    """Numbers that decide which frames are taken from videos, set by hand; results were looked at on beer."""

    usual: int = 120  # frames of all videos together, if no number is asked for
    stretch: int = 3  # pictures that differ, of which one is taken, at least; if no number is asked for
    few: int = 40  # frames of a short video, whose stretches may be shorter
    looked_at: int = 640  # pixels of the longer side at which sharpness is measured
    compared: int = 160  # pixels of the longer side at which frames are compared, half the video's at most. Noise is
    # averaged out
    alike: float = 0.25  # pixels of movement at that size below which two frames show one picture
    faintest: float = 1.0  # grey levels a pixel, the least gradient: noise on a blank wall is no movement
    longest: int = 20_000  # frames of a video up to which all are looked at; of more only key frames
    keys: int = 2  # key frames in a stretch, in the mean, that are enough to choose from
    unknown: float = 10.0  # seconds that a video of unknown length counts as, among others
    quality: int = 95  # of the JPEGs


RULES = VideoRules()


class Choice(NamedTuple):
    """Frames chosen from a video."""

    numbers: list[int]  # among the decoded frames, ascending
    decoded: int
    keys: bool  # only key frames are decoded


def take_frames(videos: dict[str, Path], home: Path, frames: int | None = None, rules: VideoRules = RULES) -> None:
    """Writes frames of videos, by their names, to home/<name>_0001.jpg, ..., or to home/<name>/ if there are several
    videos or `home` exists. The folder appears when it is complete; a later call leaves it as it is. A video without
    usable frames is a UserError if nothing else is in `home`, else a warning.

    Args:
        frames: number of frames of all videos together, shared by length; fewer if the videos have fewer that differ.
            None: `rules.usual`, and fewer of short videos.
    """
    errors: list[UserError] = []
    headers = {name: header for name, video in videos.items() if (header := _tried(errors, read_header, video))}
    lengths = {name: header.seconds or rules.unknown for name, header in headers.items()}
    for name, header in headers.items():
        video = videos[name]
        if folder := frames_folder(name, home):
            print(f'{folder} has the frames of {video.name}; delete them to take them again')
            continue
        most = max(round((frames or rules.usual) * lengths[name] / sum(lengths.values())), 1)
        if choice := _tried(errors, choose_frames, video, header, most, frames is not None, rules):
            folder = home / name if len(videos) > 1 or home.exists() else home
            count = write_frames(video, header, choice, folder, name, rules)
            print(f'{folder}: {count} frames of {video.name}, chosen from {choice.decoded} that were looked at')
    if errors and not (home.is_dir() and any(home.iterdir())):
        raise errors[0]
    for error in errors:
        print(f'warning: {error}; it is left out', file=sys.stderr)


def _tried(errors: list[UserError], work: Callable[..., Any], *args) -> Any:
    """Result of `work`; None if it raises a UserError, which is added to `errors`."""
    try:
        return work(*args)
    except UserError as error:
        errors.append(error)
        return None


def frames_folder(name: str, home: Path) -> Path | None:
    """Folder that has the frames of a video, if they were taken."""
    if (home / name).is_dir():
        return home / name
    return home if _frame(home, name, 1).exists() else None


def _frame(folder: Path, name: str, number: int) -> Path:
    return folder / f'{name}_{number:04d}.jpg'


def choose_frames(video: Path, header: Header, most: int, exactly: bool, rules: VideoRules = RULES) -> Choice:
    """Frames of a video to take: `most`, or fewer if fewer differ or, unless `exactly`, if the video is short.

    A run of frames that show one picture counts as its sharpest frame. The runs are divided into equal stretches, and
    the sharpest frame of each is chosen. UserError: nothing moves in the video.
    """
    keys = header.frames > rules.longest
    runs, decoded = _runs(video, header, keys, rules)
    if keys and len(runs) < rules.keys * most:
        keys = False
        runs, decoded = _runs(video, header, keys, rules)
    if len(runs) < 2:
        raise UserError(f'{video} shows only one picture, in {decoded} frames; move the camera around the scene')
    count = min(most, len(runs) if exactly else max(len(runs) // rules.stretch, rules.few), len(runs))
    numbers, sharpness = map(np.array, zip(*runs))
    stretches = np.array_split(np.arange(len(runs)), count)
    return Choice([int(numbers[stretch[sharpness[stretch].argmax()]]) for stretch in stretches], decoded, keys)


def _runs(video: Path, header: Header, keys: bool, rules: VideoRules) -> tuple[list[tuple[int, float]], int]:
    """Number and sharpness of the sharpest frame of each run of frames that show one picture; and the count of frames.
    """
    from PIL import Image
    from tqdm import tqdm
    runs, first, decoded = [], None, 0
    frames = tqdm(small_frames(video, header, rules.looked_at, keys), f'looking at {video.name}',
                  None if keys else header.frames or None, disable=None, leave=False)
    for decoded, grey in enumerate(frames, 1):
        this, small = (decoded - 1, sharpness(grey)), _small(Image.fromarray(grey), rules)
        if first is None or not alike(small, first, rules):
            first = small
            runs.append(this)
        elif this[1] > runs[-1][1]:
            runs[-1] = this
    return runs, decoded


def sharpness(grey: np.ndarray) -> float:
    """Mean square of the Laplacian of a picture [H, W] uint8."""
    levels = grey.astype(np.float32)
    middle = levels[1:-1, 1:-1]
    return float(np.square(4.0 * middle - levels[:-2, 1:-1] - levels[2:, 1:-1] - levels[1:-1, :-2]
                           - levels[1:-1, 2:]).mean()) if middle.size else 0.0


def alike(one: np.ndarray, other: np.ndarray, rules: VideoRules = RULES) -> bool:
    """Whether two small grey pictures [H, W] float32 show the same. Their difference, without that of their mean
    levels, is divided by the mean gradient, which gives the pixels of a small movement."""
    if one.shape != other.shape:
        return False
    difference = np.abs((one - one.mean()) - (other - other.mean())).mean()
    gradient = 0.5 * sum(np.abs(np.diff(one, axis=axis)).mean() for axis in (0, 1) if one.shape[axis] > 1)
    return bool(difference < rules.alike * max(gradient, rules.faintest))


def _small(picture, rules: VideoRules) -> np.ndarray:
    """Small grey copy [H, W] float32 of one of Pillow's pictures."""
    from PIL import Image
    grey, side = picture.convert('L'), min(rules.compared, max(picture.size) // 2)
    grey.thumbnail((side, side), Image.Resampling.BOX)
    return np.asarray(grey, np.float32)


def write_frames(video: Path, header: Header, choice: Choice, folder: Path, name: str, rules: VideoRules = RULES
                 ) -> int:
    """Writes chosen frames as folder/<name>_0001.jpg, ..., but none that looks like one before it; returns their count.
    The folder appears when it is complete."""
    from PIL import Image
    from tqdm import tqdm
    frames = full_frames(video, header, choice.numbers, choice.keys)
    known = []
    with whole_folder(folder) as partial:
        for frame in tqdm(frames, f'writing {folder}', len(choice.numbers), disable=None, leave=False):
            picture = Image.fromarray(frame)
            small = _small(picture, rules)
            if not any(alike(small, other, rules) for other in known):
                known.append(small)
                picture.save(_frame(partial, name, len(known)), 'JPEG', quality=rules.quality)
    return len(known)
