"""A field in the browser: people connect, look around and ask for pictures. viser serves the page.

All drawing happens in the thread that trains, between its steps, because the field changes in a step. viser's threads
only note what is wanted.
"""

from __future__ import annotations

import math
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter as clock

import numpy as np

from nerf.camera_path import CameraPath, KeyFrame
from nerf.cameras import Cameras
from nerf.fields.interface import Sampler
from nerf.files.images import VIDEO_FPS, save_png, video_file
from nerf.poses import opencv_quaternion, opengl_pose, up_direction, vertical_fov
from nerf.runtime.errors import UserError
from nerf.scene import camera_at
from nerf.viewer.drawing import Drawing, Field, Frame, Wanted, camera_of, pinhole, size_of
from nerf.viewer.live_view import LiveView
from nerf.viewer.panel import Panel, StatusPanel
from nerf.viewer.pictures import depth_of, shown
from nerf.viewer.server import address_lines, open_server

SHARE = 0.025  # of the time, at most, while the field trains; what a page sends costs more than that
MOST_CREDIT = 0.5  # seconds of drawing that training can owe
QUALITY = {False: 75, True: 95}  # of the JPEG of a frame, by whether it is sharp


class Viewer:
    """Shows a field to everybody who opens its page.

    Args:
        field: what is shown.
        run_dir: the run's folder, the only one that is written to.
        host: the address to listen at.
        port: the first port to try.

    Raises:
        UserError: viser is missing, or the address cannot be listened at.
    """

    def __init__(self, field: Field, run_dir: Path, host: str, port: int):
        self.field, self.run_dir = field, run_dir
        self.status: Callable[[], str] = str  # gives a line about the run
        self.visitors: dict[int, Visitor] = {}
        self.jobs: deque[Job] = deque()
        self.paused, self.wake = False, threading.Event()
        self.credit, self.mark, self.said = 0.0, clock(), -math.inf
        self.server = open_server(host, port)
        self._first_view()
        self.panel = StatusPanel(self.server.gui, field.training, self._pause)
        self.server.on_client_connect(self._welcome)
        self.server.on_client_disconnect(lambda client: self.visitors.pop(client.client_id, None))
        print(address_lines(host, self.server.get_port(), port), flush=True)

    def _first_view(self) -> None:
        """A page begins at the first training camera, and turns around the direction that the cameras call up."""
        scene, first = self.field.scene, self.server.initial_camera
        camera, up = scene.cameras.take(scene.i_train[:1]), up_direction(scene.training_cameras)
        pose = camera.poses[0].double().numpy()
        self.server.scene.set_up_direction(up)
        first.position, first.look_at = pose[:, 3], pose[:, 3] - scene.space.looking_distance(pose) * pose[:, 2]
        first.up, first.fov = up - (up @ pose[:, 0]) * pose[:, 0], vertical_fov(camera)

    def _welcome(self, client) -> None:
        self.visitors[client.client_id] = Visitor(self, client)
        if client.client_id not in self.server.get_clients():  # it has left meanwhile
            self.visitors.pop(client.client_id, None)
        self.wake.set()

    def _pause(self, paused: bool) -> None:
        self.paused = paused
        self.wake.set()

    def ask(self, job: Job) -> None:
        """Puts a job behind those that wait."""
        self.jobs.append(job)
        self.wake.set()

    # In the thread that trains

    def spend(self, step: int) -> None:
        """Draws after a training step, for SHARE of the time at most; while training is paused, until that ends."""
        self.field.step = step
        if self.visitors or self.jobs:
            self.credit = min(self.credit + (clock() - self.mark) * SHARE / (1.0 - SHARE), MOST_CREDIT)
            began = clock()
            while clock() < began + self.credit and self._draw():
                pass
            self.credit -= clock() - began
        if self.paused:
            self._draw_while_paused()
        self.mark = clock()

    def _draw_while_paused(self) -> None:
        """Training goes on as soon as nobody is there who could press the button."""
        self.field.training = False
        while self.paused and self.visitors:
            self._draw_or_wait()
        self.field.training, self.paused, self.credit = True, False, 0.0
        self.panel.paused(False)

    def serve(self, step: int, sampler: Sampler) -> None:
        """Draws without end a field that does not change any more; a signal ends it.

        Args:
            step: of the field.
            sampler: shows it.
        """
        line = self.status() or f'step {step}'
        self.field.sampler, self.field.training, self.status = lambda: sampler, False, lambda: line
        self.panel.trained()
        self.field.step = step
        for visitor in list(self.visitors.values()):  # what another sampler has drawn is drawn again
            visitor.look(moving=False)
        while True:
            self._draw_or_wait()

    def _draw_or_wait(self) -> None:
        if not self._draw():
            self.wake.wait(0.02)
            self.wake.clear()

    def _draw(self) -> bool:
        """Draws a tile for whoever is served next, a moving camera before all others; False: nobody wants any."""
        if clock() > self.said + 1.0:
            self.said = clock()
            self.panel.say(self.status())
        parties = [*list(self.visitors.values()), *list(self.jobs)[:1]]
        for party in sorted(parties, key=lambda party: (not party.moving, party.served)):
            party.served = clock()
            try:
                if party.advance():
                    return True
            except Exception as error:  # whatever a page asks for, training goes on
                party.failed(error)
        return False

    def close(self) -> None:
        """Ends the server, and what is half drawn."""
        for job in self.jobs:
            job.work.close()
        self.server.stop()


class Visitor:
    """One page in a browser: its camera, its panel, and what it wants to see."""

    def __init__(self, viewer: Viewer, client):
        self.viewer, self.client, self.served = viewer, client, 0.0
        self.scene, self.view = viewer.field.scene, LiveView(viewer.field)
        self.path, self.playing = CameraPath(), False
        self.changed, self.noted = False, None  # the camera or the panel, since `wanted` was asked for; its answer
        self.reading = threading.Lock()  # the threads that draw and that a button is pressed in both ask for it
        self.panel = Panel(self)
        client.camera.on_update(self._moved)
        self.look()

    async def _moved(self, camera) -> None:
        """A page sends its camera sixty times a second; viser would call a plain function in yet another thread."""
        self.look()

    @property
    def moving(self) -> bool:
        return self.view.moving

    def look(self, moving: bool = True) -> None:
        """Notes that the page's camera has changed, or what its panel says. Nothing is computed here, in viser's
        threads: training would wait for it."""
        self.changed = True
        if moving:
            self.view.move()
        self.viewer.wake.set()

    @property
    def wanted(self) -> Wanted | None:
        """What is to be shown, by the page's camera and panel as they are now."""
        with self.reading:
            if self.changed:
                self.changed = False
                wanted = self._wanted()
                if wanted is not None:
                    self.panel.under(wanted.photograph)
                    self.noted = wanted
            return self.noted

    def _wanted(self) -> Wanted | None:
        """What the page wants to see; None where it sends a camera that is none."""
        camera, panel = self.client.camera, self.panel
        height, width, pose = camera.image_height, camera.image_width, opengl_pose(camera.wxyz, camera.position)
        if not (np.isfinite(pose).all() and 1e-3 < camera.fov < 3.1 and min(height, width) > 0
                and 0.01 < width / height < 100.0):
            return None
        return Wanted(pose, camera.fov, height, width, panel.kind.value, panel.white, panel.near.value,
                      panel.far_bound, camera_at(self.scene, pose))

    def advance(self) -> bool:
        """Draws a tile and sends what is to be shown; False: there is nothing to draw."""
        measured = self.view.measured
        self.view.wanted = self.wanted
        drew, frame = self.view.advance()
        if frame is not None:
            self._send(frame)
        if frame is not None or self.view.measured is not measured:
            self.panel.note(frame, self.view.measured, self.viewer.field.speed.rays_per_second)
        return drew

    def failed(self, error: Exception) -> None:
        """Says that something could not be drawn; it is not tried again until something else is wanted."""
        print(f'warning: a view cannot be drawn ({error!r})', file=sys.stderr)
        self.panel.say(f'this cannot be drawn: {error}')
        self.view, self.noted = LiveView(self.viewer.field), None

    def _send(self, frame: Frame) -> None:
        picture, depth = shown(frame, self.scene), None
        if self.panel.shows_things() and frame.view.acc.shape == picture.shape[:2]:
            depth = depth_of(frame.view)
        self.client.scene.set_background_image(picture, 'jpeg', jpeg_quality=QUALITY[frame.sharp], depth=depth)
        self.client.flush()

    def fly_to(self, i: int) -> None:
        """Takes the page's camera to that of image i."""
        camera = self.scene.cameras.take([i])
        self.place(camera.poses[0].double().numpy(), vertical_fov(camera))

    def place(self, pose: np.ndarray, fov: float) -> None:
        """Puts the page's camera at a pose [3, 4], in OpenGL axes."""
        camera = self.client.camera
        with self.client.atomic():
            camera.position, camera.wxyz, camera.fov = pose[:, 3], opencv_quaternion(pose), fov
        self.look()

    def play(self) -> None:
        """Moves the page's camera along its path; called again meanwhile, it stops."""
        self.playing = not self.playing
        began, frames = clock(), self.path.frames()
        while frames and self.playing and self.client.client_id in self.viewer.visitors:
            i = min(int((clock() - began) * VIDEO_FPS), len(frames) - 1)
            self.place(frames[i].pose, frames[i].fov)
            if i + 1 == len(frames):
                break
            threading.Event().wait(1.0 / VIDEO_FPS)
        self.playing = False

    # What its buttons ask for. The names of files are never taken from the page.

    def save_view(self, width: float) -> None:
        """Asks for a PNG of what the page shows, so many pixels wide."""
        self.viewer.ask(Job(self, self._saved_view(self.wanted, width)))

    def _saved_view(self, wanted: Wanted, width: float) -> Iterator[str]:
        camera = (camera_of(wanted, self.scene, 2 ** 62) if wanted.compares else
                  pinhole(wanted, *size_of(wanted, width)))
        drawing = Drawing(self.viewer.field, wanted, camera)
        for share in drawing:
            yield f'drawing: {share:.0%}'
        path = free_name(self.viewer.run_dir / 'views')
        save_png(path, shown(drawing.frame(True), self.scene))
        self.client.send_file_download(path.name, path.read_bytes())
        return f'{path.name} is in {path.parent}'

    def film(self) -> None:
        """Asks for a video of the camera path."""
        self.viewer.ask(Job(self, self._filmed(self.path.frames(), self.path.cameras(), self.wanted.white)))

    def _filmed(self, frames: list[KeyFrame], cameras: Cameras, white: bool) -> Iterator[str]:
        path = self.viewer.run_dir / f'camera_path_{self.viewer.field.step:06d}.mp4'
        with video_file(path) as append:
            for i, frame in enumerate(frames):
                camera = cameras.take([i])
                wanted = Wanted(frame.pose, frame.fov, *camera.size(0), white=white)
                drawing = Drawing(self.viewer.field, wanted, camera)
                for share in drawing:
                    yield f'drawing frame {i + 1} of {len(frames)}: {share:.0%}'
                append(shown(drawing.frame(True), self.scene))
        return f'{path.name} is in {path.parent}'

    def save_path(self) -> None:
        """Writes camera_path.json."""
        file = self.viewer.run_dir / 'camera_path.json'
        try:
            self.path.save(file)
            self.panel.say(f'{file.name} is in {file.parent}')
        except UserError as error:
            self.panel.say(str(error))


class Job:
    """A picture or video that somebody asked for, drawn while no camera moves. It is finished even if its page is
    closed meanwhile."""

    moving = False

    def __init__(self, visitor: Visitor, work: Iterator[str]):
        self.visitor, self.work, self.served, self.told = visitor, work, 0.0, -math.inf

    def advance(self) -> bool:
        """Draws a tile, and says now and then how far it is."""
        try:
            said = next(self.work)
        except StopIteration as done:
            self._end(done.value)
        else:
            if clock() > self.told + 0.5:
                self.told = clock()
                self.visitor.panel.say(said)
        return True

    def failed(self, error: Exception) -> None:
        """Gives up, and says why."""
        print(f'warning: a picture or video cannot be made ({error})', file=sys.stderr)
        self._end(str(error))

    def _end(self, said: str) -> None:
        self.visitor.viewer.jobs.popleft()
        self.visitor.panel.say(said)


def free_name(folder: Path) -> Path:
    """The next file view_NNNN.png of a folder."""
    taken = [int(path.stem[5:]) for path in folder.glob('view_*.png') if path.stem[5:].isdecimal()]
    return folder / f'view_{max(taken, default=-1) + 1:04d}.png'
