"""Visitor of the viewer: one page in a browser, its camera, its panels and its live view."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nerf.plots import LARGEST_ERROR
from nerf.poses import opencv_quaternion, opengl_pose
from nerf.scene import Scene, camera_at
from nerf.viewer.drawing import Frame, ShownField, depth_of, picture_of
from nerf.viewer.landmarks import Landmarks, newest_mesh
from nerf.viewer.live_view import LiveView
from nerf.viewer.saving import Job, SavingPanel
from nerf.viewer.wanted import KINDS, Wanted

SHARP_QUALITY, QUALITY = 95, 75  # of the JPEG of a sharp picture, and of all others


class Reading:
    """Value that `read` returns. When it is marked as changed, the thread that asks first reads it again, once; others
    wait for it. If `read` returns None, the value before is kept."""

    def __init__(self, read: Callable[[], Wanted | None]):
        self.read, self.changed, self.value, self.lock = read, False, None, threading.Lock()

    def now(self) -> Wanted | None:
        """Value after all changes so far; None: there has been no valid one."""
        with self.lock:
            if self.changed:
                self.changed = False
                value = self.read()
                self.value = self.value if value is None else value
            return self.value


class ChoicePanel:
    """Choices of one page: quantity, background and clips; and text about its picture. `redraw` is called when one
    changes."""

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

    def wanted(self, pose: np.ndarray, fov: float, height: int, width: int, photograph: int | None) -> Wanted:
        """View by these choices. The slider's end stands for an infinite far clip."""
        far = self.far.value if self.far.value < self.scene.space.farthest_clip else math.inf
        return Wanted(pose, fov, height, width, self.kind.value, self.background.value == 'white', self.near.value, far,
                      photograph)

    def note(self, frame: Frame | None, photograph: int | None, measured: tuple[float, tuple[int, int]] | None,
             rays_per_second: float) -> None:
        """Shows text about a picture (None: the one before), its photograph, its PSNR (`compared`), and the speed."""
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


class Visitor:
    """One page in a browser. `wake` is called when there may be something to draw, and `ask` takes a job."""

    def __init__(self, client, shown: ShownField, run_dir: Path, wake: Callable[[], None], ask: Callable[[Job], None]):
        self.client, self.shown, self.wake = client, shown, wake
        self.served, self.view, self.reading = 0.0, LiveView(shown), Reading(self._read)
        self.choices = ChoicePanel(client.gui, shown.scene, self.redraw)
        self.landmarks = Landmarks(client, shown.scene, newest_mesh(run_dir), self._place, self.redraw)
        self.saving = SavingPanel(client, shown, run_dir, self.reading.now, self._place, ask)
        client.camera.on_update(self._moved)
        self._look()

    # In viser's threads: nothing is drawn here, because training would wait for it

    async def _moved(self, camera) -> None:
        """Notes a camera, sixty times a second. viser would run a plain function in a thread of its own."""
        self._look()

    def _look(self) -> None:
        self.view.move()
        self.redraw()

    def redraw(self) -> None:
        """Notes that the page's camera or choices have changed."""
        self.reading.changed = True
        self.wake()

    def _place(self, pose: np.ndarray, fov: float) -> None:
        """Moves the page's camera to a pose [3, 4], in OpenGL axes, with a vertical field of view in radians."""
        camera = self.client.camera
        with self.client.atomic():
            camera.position, camera.wxyz, camera.fov = pose[:, 3], opencv_quaternion(pose), fov
        self._look()

    # In the thread that draws

    @property
    def moving(self) -> bool:
        """Whether the page's camera moves."""
        return self.view.moving

    def advance(self) -> bool:
        """Draws a tile and sends a picture if one is due; returns whether there was a tile to draw."""
        measured, wanted = self.view.measured, self.reading.now()
        drew, frame = self.view.advance(wanted)
        if frame is not None:
            self._send(frame)
        if frame is not None or self.view.measured is not measured:
            speed = self.shown.speed.rays_per_second(self.shown.pace.tile)
            self.choices.note(frame, wanted.photograph, self.view.measured, speed)
        return drew

    def failed(self, error: Exception) -> None:
        """Says that a view could not be drawn. It is not drawn again until the page wants another one."""
        print(f'warning: a view cannot be drawn ({error!r})', file=sys.stderr)
        self.saving.say(f'this cannot be drawn: {error}')
        self.view, self.reading.value = LiveView(self.shown), None

    def _read(self) -> Wanted | None:
        """View by the page's camera and choices as they are now; None: the page has sent a broken camera."""
        camera = self.client.camera
        height, width, pose = camera.image_height, camera.image_width, opengl_pose(camera.wxyz, camera.position)
        if not (np.isfinite(pose).all() and 1e-3 < camera.fov < 3.1 and min(height, width) > 0
                and 0.01 < width / height < 100.0):
            return None
        photograph = camera_at(self.shown.scene, pose)
        self.landmarks.hide_at(photograph)
        return self.choices.wanted(pose, camera.fov, height, width, photograph)

    def _send(self, frame: Frame) -> None:
        picture, depth = picture_of(frame, self.shown.scene), None
        if self.landmarks.visible and frame.view.acc.shape == picture.shape[:2]:
            depth = depth_of(frame.view)
        quality = SHARP_QUALITY if frame.sharp else QUALITY
        self.client.scene.set_background_image(picture, 'jpeg', jpeg_quality=quality, depth=depth)
        self.client.flush()
