"""Jobs of the viewer: pictures and videos that pages ask for, drawn tile by tile while no camera moves."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

from nerf.camera_path import KeyFrame
from nerf.cameras import Cameras
from nerf.files.images import save_png, video_file
from nerf.viewer.drawing import Drawing, ShownField
from nerf.viewer.pictures import picture_of
from nerf.viewer.wanted import Wanted, camera_of, pinhole, size_of

PROGRESS = 0.5  # seconds between two lines about the progress of a job


class Job:
    """Work that a page has asked for. It is finished even if the page closes meanwhile.

    Args:
        work: draws a tile at each step and yields a line about its progress; it returns its last line.
        say: shows a line on the page.
    """

    moving = False

    def __init__(self, work: Iterator[str], say: Callable[[str], None]):
        self.work, self.say = work, say
        self.served, self.said, self.ended = 0.0, -math.inf, False

    def advance(self) -> bool:
        """Draws a tile; returns whether there was one to draw, as there always is."""
        try:
            line = next(self.work)
        except StopIteration as done:
            self._end(done.value)
        else:
            if perf_counter() > self.said + PROGRESS:
                self.said = perf_counter()
                self.say(line)
        return True

    def failed(self, error: Exception) -> None:
        """Ends the job, and says why."""
        print(f'warning: a picture or video cannot be made ({error})', file=sys.stderr)
        self._end(str(error))

    def _end(self, line: str) -> None:
        self.ended = True
        self.say(line)


def save_view(shown: ShownField, wanted: Wanted, width: float, folder: Path,
              offer: Callable[[str, bytes], None]) -> Iterator[str]:
    """Work that draws a view and saves it as the next view_NNNN.png of a folder.

    Args:
        shown: field to draw.
        wanted: view to draw.
        width: of the picture, in pixels. An error is drawn at the photograph's own size.
        folder: for the file.
        offer: offers a file to the page for download, by name and content.
    """
    camera = camera_of(wanted, shown.scene) if wanted.compares else pinhole(wanted, *size_of(wanted, width))
    drawing = Drawing(shown, wanted, camera)
    for share in drawing:
        yield f'drawing: {share:.0%}'
    path = free_name(folder)
    save_png(path, picture_of(drawing.frame(True), shown.scene))
    offer(path.name, path.read_bytes())
    return f'{path.name} is in {path.parent}'


def save_film(shown: ShownField, frames: list[KeyFrame], cameras: Cameras, white: bool, folder: Path) -> Iterator[str]:
    """Work that draws the frames of a camera path and saves them as camera_path_NNNNNN.mp4 in a folder.

    Args:
        shown: field to draw; its step is in the file's name.
        frames, cameras: of the path.
        white: the background is white.
        folder: for the file.
    """
    path = folder / f'camera_path_{shown.step:06d}.mp4'
    with video_file(path) as append:
        for i, frame in enumerate(frames):
            camera = cameras.take([i])
            drawing = Drawing(shown, Wanted(frame.pose, frame.fov, *camera.size(0), white=white), camera)
            for share in drawing:
                yield f'drawing frame {i + 1} of {len(frames)}: {share:.0%}'
            append(picture_of(drawing.frame(True), shown.scene))
    return f'{path.name} is in {path.parent}'


def free_name(folder: Path) -> Path:
    """Path of the next file view_NNNN.png in a folder."""
    taken = [int(path.stem[5:]) for path in folder.glob('view_*.png') if path.stem[5:].isdecimal()]
    return folder / f'view_{max(taken, default=-1) + 1:04d}.png'
