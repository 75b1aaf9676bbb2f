"""One person's view of a field: small while the camera moves, finer and finer while it rests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from time import perf_counter as clock

from nerf.cameras import Cameras
from nerf.viewer.drawing import Drawing, Field, Frame, Wanted, camera_of, finer
from nerf.viewer.pictures import compared

MOVING = 0.15  # seconds for which a camera counts as moving after its last change
FRAME = {False: 0.05, True: 0.0075}  # seconds for a picture of a moving camera, by whether the field trains
REFRESH = 1.0  # seconds from one picture of a field that trains to the next
RESTING = 0.05  # seconds for each of those
SHOWN = 0.3  # seconds between showings of an unfinished picture

Steps = Iterator[tuple[bool, Frame | None]]  # whether there was anything to draw, and a picture to be shown now


class LiveView:
    """Draws what one person wants to see of a field: `wanted`, which may be set at any time."""

    def __init__(self, field: Field):
        self.field, self.wanted, self.moved = field, None, -math.inf
        self.measured = None  # PSNR of the photograph under the camera, and the size [H, W] at which it was measured
        self.steps = self._steps()

    def move(self) -> None:
        """Notes that the camera moves."""
        self.moved = clock()

    @property
    def moving(self) -> bool:
        return clock() < self.moved + MOVING

    def advance(self) -> tuple[bool, Frame | None]:
        """Draws a tile: whether there was anything to draw, and a picture that is to be shown now."""
        return next(self.steps)

    def _steps(self) -> Steps:
        """Without end: a small picture of each new camera, then finer ones until the camera moves or the field has
        changed; at last the photograph under the camera is measured."""
        while True:
            wanted, step, began = self.wanted, self.field.step, clock()
            if wanted is None:
                yield False, None
                continue

            def current(wanted=wanted, step=step, began=began) -> bool:
                is_old = self.field.step != step and clock() > began + REFRESH
                return self.wanted is wanted and not is_old

            self.measured, before, camera = None, None, self._first(wanted)
            while camera is not None and current():
                if before and (self.moving or self.field.training):
                    yield False, None
                    continue
                next_one = finer(wanted, self.field.scene, camera)
                drawing = Drawing(self.field, wanted, camera, before, last=next_one is None)
                before, camera = (yield from self._shown(drawing, not before)), next_one
            if current() and wanted.photograph is not None and not self.measured:
                yield from self._measure(wanted, current)
            while current():
                yield False, None

    def _first(self, wanted: Wanted) -> Cameras:
        """The camera of the first picture, which is soon drawn."""
        training = self.field.training
        seconds = RESTING if training and not self.moving else FRAME[training]
        return camera_of(wanted, self.field.scene, self.field.speed.rays_in(seconds))

    def _shown(self, drawing: Drawing, first: bool) -> Steps:
        """Makes a drawing and shows it, until something else is wanted; returns it. The first one of a camera is
        finished in any case: while a camera moves, there would be none."""
        shown_at = clock()
        for share in drawing:
            if not first and self.wanted is not drawing.wanted:
                return drawing
            unfinished = not first and share < 1.0 and clock() > shown_at + SHOWN
            yield True, drawing.frame(False) if unfinished else None
            shown_at = clock() if unfinished else shown_at
        frame = drawing.frame(drawing.last)
        if drawing.wanted.compares:
            self.measured = compared(frame, self.field.scene)
        yield True, frame
        return drawing

    def _measure(self, wanted: Wanted, current: Callable[[], bool]) -> Steps:
        """Compares the photograph under the camera with what its own camera sees, unless something else is wanted."""
        drawing = Drawing(self.field, wanted, self.field.scene.cameras.take([wanted.photograph]))
        for _ in drawing:
            if not current() or self.field.training:
                return
            yield True, None
        self.measured = compared(drawing.frame(True), self.field.scene)
        yield True, None
