"""Pace of drawing: the times that it keeps to, and the measured cost of a tile."""

from __future__ import annotations

import math
from dataclasses import dataclass

PROBE = 16  # most rays of a tile that is drawn only to measure what an empty tile costs


@dataclass(frozen=True)
class Pace:
    """Times that drawing keeps to, in seconds.

    They were tuned on two CPU cores by tests/benchmarks/bench_viewer.py; docs/measurements.md, "The viewer", has the
    results.
    """

    share: float = 0.025  # share of the time for drawing while the field trains; handling messages costs extra
    credit: float = 0.5  # most drawing time that training can owe
    tile: float = 0.025  # for a tile: a movement of the camera waits no longer
    moving: float = 0.15  # after its last change, during which a camera counts as moving
    frame: float = 0.05  # for a picture of a moving camera
    training_frame: float = 0.0075  # the same while the field trains
    training_rest: float = 0.05  # for a picture of a resting camera while the field trains
    refresh: float = 1.0  # between pictures of a field that trains
    unfinished: float = 0.3  # between unfinished states of a picture that are shown
    status: float = 1.0  # between lines about the run


class Speed:
    """Cost of drawing, from the times of the latest tiles: seconds per ray, and seconds per tile without rays."""

    def __init__(self):
        self.per_ray, self.per_tile, self.probed, self.started = 5e-5, 1e-3, -math.inf, False

    def took(self, rays: int, seconds: float) -> None:
        """Notes the time of a tile. The very first tile does not count, because it may have compiled something."""
        if not self.started:
            self.started = True
        elif rays <= PROBE:  # other programs make a tile longer, and nothing makes it shorter
            self.per_tile += (1.0 if seconds < self.per_tile else 0.3) * (seconds - self.per_tile)
        else:
            now = max(seconds - self.per_tile, 0.2 * seconds) / rays
            self.per_ray += (0.5 if now > self.per_ray else 0.2) * (now - self.per_ray)

    def rays_in(self, seconds: float) -> int:
        """Number of rays of a tile that takes some seconds. The rays take at least as long as the empty tile."""
        return max(int(max(seconds - self.per_tile, self.per_tile) / self.per_ray), 1)

    def rays_per_second(self, seconds: float) -> float:
        """Rays per second in tiles of some seconds each."""
        rays = self.rays_in(seconds)
        return rays / (self.per_tile + rays * self.per_ray)

    def probe_due(self, now: float) -> bool:
        """Whether a tile of PROBE rays should be drawn at a time `now` in seconds: once a second."""
        due = now >= self.probed + 1.0
        self.probed = now if due else self.probed
        return due
