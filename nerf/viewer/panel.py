"""Panels beside the picture in the browser. What their buttons do is given to them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from nerf.camera_path import CameraPath, KeyFrame
from nerf.files.images import VIDEO_FPS
from nerf.plots import LARGEST_ERROR
from nerf.runtime.errors import UserError
from nerf.scene import Scene
from nerf.viewer.drawing import Frame
from nerf.viewer.wanted import KINDS, Wanted, size_of


@dataclass(frozen=True)
class Actions:
    """Actions of a page that its panels call."""

    redraw: Callable[[], None]  # draws the page's view again, because a choice has changed
    wanted: Callable[[], Wanted | None]  # returns the page's view
    place: Callable[[np.ndarray, float], None]  # moves the camera to a pose [3, 4] and a vertical field of view
    save_view: Callable[[float], None]  # draws and saves the page's view; the width is in pixels
    film: Callable[[CameraPath], None]  # draws and saves a video
    say: Callable[[str], None]  # shows a line below the panels


class StatusPanel:
    """Line about the run, and the button that pauses training; all pages see them.

    Args:
        gui: viser's, of the server.
        training: there is training to be paused.
        pause: is told whether training should pause, when the button is pressed.
    """

    def __init__(self, gui, training: bool, pause: Callable[[bool], None]):
        self.line = gui.add_markdown('')
        self.button = gui.add_button('Pause training', visible=training, hint='Training goes on when you press again, '
                                     'or when no page is connected any more')
        self.is_paused = False

        @self.button.on_click
        def _(_) -> None:
            self.paused(not self.is_paused)
            pause(self.is_paused)

    def say(self, line: str) -> None:
        """Shows a line about the run."""
        if self.line.content != line:
            self.line.content = line

    def paused(self, paused: bool) -> None:
        """Changes the button's label."""
        self.is_paused = paused
        self.button.label = 'Go on training' if paused else 'Pause training'

    def trained(self) -> None:
        """Hides the button, because training is done."""
        self.button.visible = False


class ChoicePanel:
    """Choices of what one page shows, and text about its picture.

    Args:
        gui: viser's, of the page.
        scene: gives the range of the clips.
        redraw: is called when a choice has changed.
    """

    def __init__(self, gui, scene: Scene, redraw: Callable[[], None]):
        self.scene, self.size = scene, ''
        self.kind = gui.add_dropdown('Show', KINDS)
        self.background = gui.add_dropdown('Background', ('white', 'black'),
                                           initial_value='white' if scene.white_bkgd else 'black')
        unit, most = scene.space.unit, scene.space.farthest_clip
        self.near = gui.add_slider('Near clip' + unit, 0.0, most, most / 200, 0.0)
        self.far = gui.add_slider('Far clip' + unit, 0.0, most, most / 200, most, visible=scene.space.has_far)
        for choice in (self.kind, self.background, self.near, self.far):
            choice.on_update(lambda _: redraw())
        self.text = gui.add_markdown('')

    @property
    def white(self) -> bool:
        """Whether the background is white."""
        return self.background.value == 'white'

    @property
    def far_bound(self) -> float:
        """Far clip; infinite at the slider's end."""
        return self.far.value if self.far.value < self.scene.space.farthest_clip else math.inf

    def note(self, frame: Frame | None, photograph: int | None, measured: tuple[float, tuple[int, int]] | None,
             rays_per_second: float) -> None:
        """Shows text about the page's picture.

        Args:
            frame: the picture; None: the same as before.
            photograph: training image at the page's camera.
            measured: as of `LiveView`.
            rays_per_second: speed of drawing.
        """
        if frame is not None:
            height, width = frame.view.acc.shape
            sharp = ', sharp' if frame.sharp else ''
            self.size = f'{width} x {height} pixels{sharp}; {rays_per_second:,.0f} rays/s'
        lines = [self.size]
        if photograph is not None:
            lines.append(f'at training image {photograph}')
        if measured is not None:
            psnr, (height, width) = measured
            exposure = ', without its exposure' if self.scene.exposure else ''
            lines.append(f'PSNR {psnr:.2f} dB at {width} x {height} pixels{exposure}')
        if self.kind.value == 'error':
            lines.append(f'error: white is {LARGEST_ERROR} or more' if photograph is not None else
                         'the error can be seen at a training camera only; this is the colour')
        self.text.content = '  \n'.join(lines)


class SavingPanel:
    """Buttons of one page that save its view, and record, play, save and film a camera path.

    Args:
        gui: viser's, of the page.
        actions: of the page.
        file: path of the JSON file of the camera path.
    """

    def __init__(self, gui, actions: Actions, file: Path):
        self.actions, self.file, self.path, self.playing = actions, file, CameraPath(), False
        with gui.add_folder('Picture', expand_by_default=False):
            width = gui.add_number('Width', 1920, min=16, max=8192, step=1)
            gui.add_button('Save this view').on_click(lambda _: actions.save_view(width.value))
        with gui.add_folder('Camera path', expand_by_default=False):
            self.seconds = gui.add_number('Seconds between', 2.0, min=0.1, max=60.0, step=0.1)
            self.width = gui.add_number('Video width', 960, min=16, max=4096, step=1)
            for label, action in {'Add key frame': self._add, 'Clear': self._clear,
                                  'Preview': lambda: self._with_path(self.play),
                                  'Save path': lambda: self._with_path(self._save),
                                  'Render video': lambda: self._with_path(lambda: actions.film(self.path))}.items():
                gui.add_button(label).on_click(lambda _, action=action: action())

    def _add(self) -> None:
        wanted = self.actions.wanted()
        self.path.keys.append(KeyFrame(wanted.pose, wanted.fov))
        self.actions.say(f'key frames: {len(self.path.keys)}')

    def _clear(self) -> None:
        self.path.keys.clear()
        self.actions.say('no key frames')

    def _with_path(self, action: Callable[[], None]) -> None:
        """Does something with the path at the speed and size that the page says."""
        if not self.path.keys:
            self.actions.say('add key frames first')
            return
        self.path.seconds = min(max(float(self.seconds.value), 0.1), 60.0)
        self.path.height, self.path.width = size_of(self.actions.wanted(), self.width.value)
        action()

    def _save(self) -> None:
        try:
            self.path.save(self.file)
            self.actions.say(f'{self.file.name} is in {self.file.parent}')
        except UserError as error:
            self.actions.say(str(error))

    def play(self) -> None:
        """Moves the page's camera along the path; stops if it is moving already."""
        self.playing = not self.playing
        began, frames = perf_counter(), self.path.frames()
        while frames and self.playing:
            i = min(int((perf_counter() - began) * VIDEO_FPS), len(frames) - 1)
            self.actions.place(frames[i].pose, frames[i].fov)
            if i + 1 == len(frames):
                break
            threading.Event().wait(1.0 / VIDEO_FPS)
        self.playing = False

    def stop(self) -> None:
        """Ends `play`, because the page is closed."""
        self.playing = False
