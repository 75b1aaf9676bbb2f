"""Viewer: shows a field to all pages that are open in browsers. Drawing happens in the thread that trains, between its
steps, because a step changes the field. Threads of viser, which serves the pages, only note what pages want."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path

from nerf.fields.interface import Sampler
from nerf.poses import up_direction, vertical_fov
from nerf.viewer.drawing import ShownField
from nerf.viewer.saving import Job
from nerf.viewer.server import Address, address_lines, open_server
from nerf.viewer.visitor import Visitor

NAP = 0.02  # seconds to wait when there is nothing to draw


class Viewer:
    """Viewer of a field at an address. Pages write to the run's folder alone. `status` returns a line about the run;
    `spend` and `serve` change `shown`."""

    def __init__(self, shown: ShownField, run_dir: Path, address: Address, status: Callable[[], str]):
        self.shown, self.run_dir, self.status = shown, run_dir, status
        self.visitors: dict[int, Visitor] = {}
        self.jobs: list[Job] = []
        self.paused, self.wake = False, threading.Event()
        self.credit, self.mark, self.said = 0.0, shown.clock(), -math.inf
        self.server = open_server(address)
        self._first_view()
        gui = self.server.gui  # all pages see it
        self.line = gui.add_markdown('')
        self.button = gui.add_button('Pause training', visible=shown.training, hint='Training goes on when you press '
                                     'again, or when no page is connected any more')
        self.button.on_click(lambda _: self._pause(not self.paused))
        self.server.on_client_connect(self._welcome)
        self.server.on_client_disconnect(self._farewell)
        print(address_lines(address.host, self.server.get_port(), address.port), flush=True)

    def _first_view(self) -> None:
        """Lets pages begin at the first training camera, and turn around the up direction of the cameras."""
        scene, first = self.shown.scene, self.server.initial_camera
        camera, up = scene.cameras.take(scene.i_train[:1]), up_direction(scene.training_cameras)
        pose = camera.poses[0].double().numpy()
        self.server.scene.set_up_direction(up)
        first.position, first.look_at = pose[:, 3], pose[:, 3] - scene.space.looking_distance(pose) * pose[:, 2]
        first.up, first.fov = up - (up @ pose[:, 0]) * pose[:, 0], vertical_fov(camera)

    # In viser's threads

    def _welcome(self, client) -> None:
        self.visitors[client.client_id] = Visitor(client, self.shown, self.run_dir, self.wake.set, self.ask)
        if client.client_id not in self.server.get_clients():  # it has left meanwhile
            self._farewell(client)
        self.wake.set()

    def _farewell(self, client) -> None:
        if visitor := self.visitors.pop(client.client_id, None):
            visitor.saving.playing = False

    def _pause(self, paused: bool) -> None:
        self.paused, self.button.label = paused, 'Go on training' if paused else 'Pause training'
        self.wake.set()

    def ask(self, job: Job) -> None:
        """Adds a job behind the waiting ones."""
        self.jobs.append(job)
        self.wake.set()

    # In the thread that trains

    def spend(self, step: int) -> None:
        """Draws after a training step, for `Pace.share` of the time; while training is paused, until the pause ends."""
        self.shown.step, clock, pace = step, self.shown.clock, self.shown.pace
        if self.visitors or self.jobs:
            earned = (clock() - self.mark) * pace.share / (1.0 - pace.share)
            self.credit = min(self.credit + earned, pace.credit)
            began = clock()
            self._say_status()
            while clock() < began + self.credit and self._draw():
                pass
            self.credit -= clock() - began
        if self.paused:
            self._draw_while_paused()
        self.mark = clock()

    def _draw_while_paused(self) -> None:
        """Draws until the button is pressed again, or until no page is left whose button could be pressed."""
        self.shown.training = False
        while self.paused and self.visitors:
            self._say_status()
            self.draw_or_wait()
        self.shown.training, self.credit = True, 0.0
        self._pause(False)

    def serve(self, step: int, sampler: Sampler) -> None:
        """Draws without end the field of a step, which no longer changes, by a sampler; a signal ends it."""
        self.line.content, self.button.visible = self.status(), False
        self.shown.step, self.shown.sampler, self.shown.training = step, lambda: sampler, False
        for visitor in list(self.visitors.values()):  # pictures by another sampler are drawn again
            visitor.redraw()
        while True:
            self.draw_or_wait()

    def draw_or_wait(self) -> None:
        """Draws a tile; waits a little if there is nothing to draw."""
        if not self._draw():
            self.wake.wait(NAP)
            self.wake.clear()

    def _draw(self) -> bool:
        """Draws a tile for a moving camera, or else for the page or job that waits longest. False: there was none."""
        parties = [*list(self.visitors.values()), *self.jobs[:1]]
        for party in sorted(parties, key=lambda party: (not party.moving, party.served)):
            party.served = self.shown.clock()
            try:
                drew = party.advance()
            except Exception as error:  # training goes on whatever a page asks for
                drew = False
                party.failed(error)
            if self.jobs and self.jobs[0].ended:
                self.jobs.pop(0)
            if drew:
                return True
        return False

    def _say_status(self) -> None:
        now = self.shown.clock()
        if now > self.said + self.shown.pace.status:
            self.said, self.line.content = now, self.status()

    def close(self) -> None:
        """Ends the server and the jobs."""
        for job in self.jobs:
            job.work.close()
        self.server.stop()
