"""Visitor of the viewer: one page in a browser, its camera, its panels and its live view."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nerf.camera_path import CameraPath
from nerf.viewer.drawing import Frame, ShownField
from nerf.viewer.landmarks import Landmarks, newest_mesh
from nerf.viewer.live_view import LiveView
from nerf.viewer.panel import Actions, ChoicePanel, SavingPanel
from nerf.viewer.pictures import depth_of, picture_of
from nerf.poses import opencv_quaternion, opengl_pose
from nerf.scene import camera_at
from nerf.viewer.saving import Job, save_film, save_view
from nerf.viewer.wanted import Wanted

SHARP_QUALITY, QUALITY = 95, 75  # of the JPEG of a sharp picture, and of all others


class Reading:
    """Value that is read again after each change, once, by the thread that asks first. Others wait for it.

    Args:
        read: returns the value; None: there is no valid one now, and the one before is kept.
    """

    def __init__(self, read: Callable[[], Wanted | None]):
        self.read, self.changed, self.value, self.lock = read, False, None, threading.Lock()

    def change(self) -> None:
        """Notes that the value has changed. Nothing is read yet."""
        self.changed = True

    def now(self) -> Wanted | None:
        """Value after all changes so far; None: there has been no valid one."""
        with self.lock:
            if self.changed:
                self.changed = False
                value = self.read()
                self.value = self.value if value is None else value
            return self.value

    def forget(self) -> None:
        """Has no value until the next change."""
        self.value = None


class Visitor:
    """One page in a browser.

    Args:
        client: viser's, of the page.
        shown: field to draw.
        run_dir: the run's folder. Names of files in it are never taken from the page.
        wake: is called when there may be something to draw.
        ask: takes a job.
    """

    def __init__(self, client, shown: ShownField, run_dir: Path, wake: Callable[[], None],
                 ask: Callable[[Job], None]):
        self.client, self.shown, self.run_dir, self.wake, self.ask = client, shown, run_dir, wake, ask
        self.served, self.view, self.reading = 0.0, LiveView(shown), Reading(self._read)
        actions = Actions(redraw=self.redraw, wanted=self.reading.now, place=self.place, save_view=self._save_view,
                          film=self._film, say=self.say)
        self.choices = ChoicePanel(client.gui, shown.scene, self.redraw)
        self.landmarks = Landmarks(client, shown.scene, newest_mesh(run_dir), actions)
        self.saving = SavingPanel(client.gui, actions, run_dir / 'camera_path.json')
        self.said = client.gui.add_markdown('')
        client.camera.on_update(self._moved)
        self._look()

    # In viser's threads: nothing is drawn here, because training would wait for it

    async def _moved(self, camera) -> None:
        """Notes a camera, which a page sends sixty times a second. viser would run a plain function in a thread of its
        own."""
        self._look()

    def _look(self) -> None:
        self.view.move()
        self.redraw()

    def redraw(self) -> None:
        """Notes that the page's camera or choices have changed."""
        self.reading.change()
        self.wake()

    def place(self, pose: np.ndarray, fov: float) -> None:
        """Moves the page's camera to a pose [3, 4], in OpenGL axes, with a vertical field of view in radians."""
        camera = self.client.camera
        with self.client.atomic():
            camera.position, camera.wxyz, camera.fov = pose[:, 3], opencv_quaternion(pose), fov
        self._look()

    def say(self, line: str) -> None:
        """Shows a line about the last button that was pressed."""
        self.said.content = line

    def _save_view(self, width: float) -> None:
        work = save_view(self.shown, self.reading.now(), width, self.run_dir / 'views',
                         self.client.send_file_download)
        self.ask(Job(work, self.say))

    def _film(self, path: CameraPath) -> None:
        white = self.reading.now().white
        self.ask(Job(save_film(self.shown, path.frames(), path.cameras(), white, self.run_dir), self.say))

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
        self.say(f'this cannot be drawn: {error}')
        self.view = LiveView(self.shown)
        self.reading.forget()

    def _read(self) -> Wanted | None:
        """View by the page's camera and choices as they are now; None: the page has sent a broken camera."""
        camera, choices = self.client.camera, self.choices
        height, width, pose = camera.image_height, camera.image_width, opengl_pose(camera.wxyz, camera.position)
        if not (np.isfinite(pose).all() and 1e-3 < camera.fov < 3.1 and min(height, width) > 0
                and 0.01 < width / height < 100.0):
            return None
        photograph = camera_at(self.shown.scene, pose)
        self.landmarks.hide_at(photograph)
        return Wanted(pose, camera.fov, height, width, choices.kind.value, choices.white, choices.near.value,
                      choices.far_bound, photograph)

    def _send(self, frame: Frame) -> None:
        picture, depth = picture_of(frame, self.shown.scene), None
        if self.landmarks.visible and frame.view.acc.shape == picture.shape[:2]:
            depth = depth_of(frame.view)
        quality = SHARP_QUALITY if frame.sharp else QUALITY
        self.client.scene.set_background_image(picture, 'jpeg', jpeg_quality=quality, depth=depth)
        self.client.flush()
