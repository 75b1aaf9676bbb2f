"""Pictures, videos and camera paths that a page saves: jobs drawn tile by tile while no camera moves, and a panel."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import numpy as np

from nerf.camera_path import CameraPath, KeyFrame, pinholes
from nerf.files.images import VIDEO_FPS, save_png, video_file
from nerf.runtime.errors import UserError
from nerf.runtime.terminal import as_text
from nerf.viewer.drawing import Drawing, ShownField, picture_of
from nerf.viewer.wanted import Wanted, camera_of, size_of

PROGRESS = 0.5  # seconds between two lines about the progress of a job


class Job:
    """Work that a page has asked for, finished even if the page closes meanwhile. Each step draws a tile and yields a
    line about the progress; the work returns its last line. `say` shows a line on the page."""
    moving = False

    def __init__(self, work: Iterator[str], say: Callable[[str], None]):
        self.work, self.say = work, say
        self.served, self.said, self.ended = 0.0, -math.inf, False

    def advance(self) -> bool:
        """Draws a tile. Always True: there was one to draw."""
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
    """Work that draws a view, `width` pixels wide, and saves it as the next view_NNNN.png of a folder; an error is
    drawn at the photograph's own size. `offer` offers a file to the page for download, by name and content."""
    camera = camera_of(wanted, shown.scene) if wanted.compares else pinholes([wanted], *size_of(wanted, width))
    drawing = Drawing(shown, wanted, camera)
    for share in drawing:
        yield f'drawing: {share:.0%}'
    path = free_name(folder)
    save_png(path, picture_of(drawing.frame(True), shown.scene))
    offer(path.name, path.read_bytes())
    return f'{path.name} is in {path.parent}'


def save_film(shown: ShownField, frames: list[Wanted], folder: Path) -> Iterator[str]:
    """Work that draws views and saves them in a folder as the video camera_path_NNNNNN.mp4, with the field's step."""
    path = folder / f'camera_path_{shown.step:06d}.mp4'
    with video_file(path) as append:
        for i, frame in enumerate(frames):
            drawing = Drawing(shown, frame, pinholes([frame], frame.height, frame.width))
            for share in drawing:
                yield f'drawing frame {i + 1} of {len(frames)}: {share:.0%}'
            append(picture_of(drawing.frame(True), shown.scene))
    return f'{path.name} is in {path.parent}'


def free_name(folder: Path) -> Path:
    """Path of the next file view_NNNN.png in a folder."""
    taken = [int(path.stem[5:]) for path in folder.glob('view_*.png') if path.stem[5:].isdecimal()]
    return folder / f'view_{max(taken, default=-1) + 1:04d}.png'


class SavingPanel:
    """Buttons of one page that save its view, and record, play, save and film a camera path. File names are never taken
    from the page. `wanted` returns its view, `place` moves its camera as in `Landmarks`, and `ask` takes a job."""

    def __init__(self, client, shown: ShownField, run_dir: Path, wanted: Callable[[], Wanted],
                 place: Callable[[np.ndarray, float], None], ask: Callable[[Job], None]):
        self.client, self.shown, self.run_dir, gui = client, shown, run_dir, client.gui
        self.wanted, self.place, self.ask = wanted, place, ask
        self.path, self.playing = CameraPath(), False
        with gui.add_folder('Picture', expand_by_default=False):
            width = gui.add_number('Width', 1920, min=16, max=8192, step=1)
            gui.add_button('Save this view').on_click(lambda _: self._save_view(width.value))
        with gui.add_folder('Camera path', expand_by_default=False):
            self.seconds = gui.add_number('Seconds between', 2.0, min=0.1, max=60.0, step=0.1)
            self.width = gui.add_number('Video width', 960, min=16, max=4096, step=1)
            for label, action in {'Add key frame': self._add, 'Clear': self._clear,
                                  'Preview': lambda: self._with_path(self._play),
                                  'Save path': lambda: self._with_path(self._save_path),
                                  'Render video': lambda: self._with_path(self._film)}.items():
                gui.add_button(label).on_click(lambda _, action=action: action())
        self.line = gui.add_markdown('')

    def say(self, line: str) -> None:
        """Shows a line about the last button that was pressed."""
        self.line.content = as_text(line)  # it can name the run's folder

    def _save_view(self, width: float) -> None:
        work = save_view(self.shown, self.wanted(), width, self.run_dir / 'views', self.client.send_file_download)
        self.ask(Job(work, self.say))

    def _add(self) -> None:
        wanted = self.wanted()
        self.path.keys.append(KeyFrame(wanted.pose, wanted.fov))
        self.say(f'key frames: {len(self.path.keys)}')

    def _clear(self) -> None:
        self.path.keys.clear()
        self.say('no key frames')

    def _with_path(self, action: Callable[[], None]) -> None:
        """Calls `action` once the path has the speed and size that the page says."""
        if not self.path.keys:
            self.say('add key frames first')
            return
        self.path.seconds = min(max(float(self.seconds.value), 0.1), 60.0)
        self.path.height, self.path.width = size_of(self.wanted(), self.width.value)
        action()

    def _save_path(self) -> None:
        try:
            self.path.save(self.run_dir / 'camera_path.json')
            self.say(f'camera_path.json is in {self.run_dir}')
        except UserError as error:
            self.say(str(error))

    def _film(self) -> None:
        size, white = (self.path.height, self.path.width), self.wanted().white
        frames = [Wanted(frame.pose, frame.fov, *size, white=white) for frame in self.path.frames()]
        self.ask(Job(save_film(self.shown, frames, self.run_dir), self.say))

    def _play(self) -> None:
        """Moves the page's camera along the path while `playing`; stops if it is moving already."""
        self.playing = not self.playing
        began, frames = perf_counter(), self.path.frames()
        while frames and self.playing:
            i = min(int((perf_counter() - began) * VIDEO_FPS), len(frames) - 1)
            self.place(frames[i].pose, frames[i].fov)
            if i + 1 == len(frames):
                break
            threading.Event().wait(1.0 / VIDEO_FPS)
        self.playing = False
