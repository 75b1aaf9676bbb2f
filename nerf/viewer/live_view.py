"""Live view of one page: small pictures while the camera moves, finer ones while it rests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from nerf.viewer.drawing import Drawing, Frame, ShownField, compared
from nerf.viewer.wanted import Wanted, camera_of, finer

Steps = Iterator[tuple[bool, Frame | None]]  # whether there was a tile to draw, and a picture to show now


class LiveView:
    """Pictures of the view that one page wants, tile by tile."""

    def __init__(self, shown: ShownField):
        self.shown, self.wanted, self.moved = shown, None, -math.inf
        self.measured = None  # PSNR of the photograph at the camera, and the size [H, W] at which it was measured
        self.steps = self._steps()

    def move(self) -> None:
        """Notes that the camera moves."""
        self.moved = self.shown.clock()

    @property
    def moving(self) -> bool:
        """Whether the camera has moved just now."""
        return self.shown.clock() < self.moved + self.shown.pace.moving

    def advance(self, wanted: Wanted | None) -> tuple[bool, Frame | None]:
        """Draws a tile of the view that is wanted now: whether there was one to draw, and a picture to show now."""
        self.wanted = wanted
        return next(self.steps)

    def _steps(self) -> Steps:
        """Steps without end: a small picture of each new view, then finer ones until the view or the field changes, and
        at last the comparison with the photograph at the camera."""
        pace = self.shown.pace
        while True:
            wanted, step, began = self.wanted, self.shown.step, self.shown.clock()
            if wanted is None:
                yield False, None
                continue

            def current(wanted=wanted, step=step, began=began) -> bool:
                is_old = self.shown.step != step and self.shown.clock() > began + pace.refresh
                return self.wanted is wanted and not is_old
            self.measured, before, seconds = None, None, pace.frame
            if self.shown.training:
                seconds = pace.training_frame if self.moving else pace.training_rest
            camera = camera_of(wanted, self.shown.scene, self.shown.speed.rays_in(seconds))
            while camera is not None and current():
                if before and (self.moving or self.shown.training):
                    yield False, None
                    continue
                next_one = finer(wanted, self.shown.scene, camera)
                drawing = Drawing(self.shown, wanted, camera, before, last=next_one is None)
                before, camera = (yield from self._drawn(drawing, not before)), next_one
            if current() and wanted.photograph is not None and not self.measured:
                yield from self._measure(wanted, current)
            while current():
                yield False, None

    def _drawn(self, drawing: Drawing, first: bool) -> Steps:
        """Steps of one drawing, which return it. They end early when the page wants another view, except the first
        drawing of a view: otherwise a moving camera would never show a picture."""
        clock, shown_at = self.shown.clock, self.shown.clock()
        for share in drawing:
            if not first and self.wanted is not drawing.wanted:
                return drawing
            unfinished = not first and share < 1.0 and clock() > shown_at + self.shown.pace.unfinished
            yield True, drawing.frame(False) if unfinished else None
            shown_at = clock() if unfinished else shown_at
        frame = drawing.frame(drawing.last)
        if drawing.wanted.compares:
            self.measured = compared(frame, self.shown.scene)
        yield True, frame
        return drawing

    def _measure(self, wanted: Wanted, current: Callable[[], bool]) -> Steps:
        """Steps that compare the photograph at the camera with the field seen by its own camera."""
        drawing = Drawing(self.shown, wanted, self.shown.scene.cameras.take([wanted.photograph]))
        for _ in drawing:
            if not current() or self.shown.training:
                return
            yield True, None
        self.measured = compared(drawing.frame(True), self.shown.scene)
        yield True, None
