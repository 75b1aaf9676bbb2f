"""nerf/viewer/live_view.py: when a page's picture is drawn, at which size, and when that is broken off."""

import numpy as np
import pytest

from nerf.viewer.drawing import Pace, ShownField
from nerf.viewer.live_view import LiveView
from nerf.viewer.wanted import Wanted
from viewer_scene import SCENE, Sky, wanted_of

TILE_COST, RAY_COST = 1e-3, 4e-6  # seconds
PACE = Pace()


class Timed:
    """Live view in a world where only drawing takes time."""

    def __init__(self, training: bool = False):
        self.now, self.longest, self.wanted = 100.0, 0.0, None
        self.shown = ShownField(SCENE, lambda: Sky(self.draw), training, PACE, clock=lambda: self.now)
        self.view = LiveView(self.shown)

    def look(self, wanted: Wanted, moving: bool = True) -> None:
        if moving:
            self.view.move()
        self.wanted = wanted

    def draw(self, n_rays: int) -> None:
        self.now += TILE_COST + RAY_COST * n_rays

    def run(self, seconds: float, changes: bool = False) -> list:
        """Frames of some seconds, each with the time at which it came."""
        end, frames = self.now + seconds, []
        while self.now < end:
            began = self.now
            drew, frame = self.view.advance(self.wanted)
            self.longest = max(self.longest, self.now - began)
            if frame:
                frames.append((self.now, frame))
            if not drew:
                self.now += 0.005
            if changes:
                self.shown.step += 1
        return frames


@pytest.fixture
def timed():
    """Live view that has drawn for a while, so that the cost of a tile is known."""
    world = Timed()
    world.look(wanted_of(SCENE, height=600, width=800), moving=False)
    world.run(10.0)
    return world


def sizes(frames: list) -> list[tuple[int, int]]:
    return [frame.view.acc.shape for _, frame in frames]


def test_a_moving_camera_gets_more_than_fifteen_small_pictures_a_second(timed):
    times = []
    for i in range(20):  # the camera moves fifty times a second
        timed.look(wanted_of(SCENE, i % 3, 600, 800))
        for time, frame in timed.run(0.02):
            times.append(time)
            height, width = frame.view.acc.shape
            assert not frame.sharp
            assert height * width < 0.06 / RAY_COST
            assert width / height == pytest.approx(4 / 3, rel=0.05)
    assert len(times) / (times[-1] - times[0]) > 15


def test_at_rest_the_picture_is_refined_to_the_size_of_the_window_and_then_nothing_is_drawn(timed):
    timed.look(wanted_of(SCENE, 1, 600, 800))
    began = timed.now
    frames = timed.run(8.0)
    assert sizes(frames)[0] < (120, 160)
    assert sizes(frames) == sorted(sizes(frames))
    assert [frame.sharp for _, frame in frames] == [False] * (len(frames) - 1) + [True]
    assert sizes(frames)[-1] == (600, 800)
    assert frames[1][0] > began + PACE.moving  # not before it rests
    assert frames[-1][0] < began + 2.7  # 600 * 800 rays take 1.9 s
    drawn = timed.now
    assert timed.view.advance(timed.wanted) == (False, None)
    assert timed.now == drawn


def test_a_movement_breaks_off_a_fine_picture_within_fifty_milliseconds(timed):
    timed.look(wanted_of(SCENE, 1, 600, 800))
    timed.longest = 0.0
    timed.run(1.0)
    assert timed.longest < 0.05  # tiles are short
    wanted = wanted_of(SCENE, 2, 600, 800)
    timed.look(wanted)
    moved = timed.now
    time, frame = timed.run(0.2)[0]
    assert frame.wanted is wanted
    assert time < moved + 0.05 + 0.06  # broken off, and the first small picture drawn


def test_a_small_picture_is_finished_although_the_camera_moves_on(timed):
    timed.shown.speed.per_ray, timed.shown.speed.probed = 1e-3, timed.now  # as if drawing were slow: many tiles
    first, second = (wanted_of(SCENE, i, 600, 800) for i in (1, 2))
    timed.look(first)
    timed.view.advance(first)
    timed.look(second)
    assert timed.run(1.0)[0][1].wanted is first


def test_a_field_that_trains_is_drawn_anew_every_second_and_small_enough():
    world = Timed(training=True)
    world.look(wanted_of(SCENE, height=600, width=800), moving=False)
    frames = world.run(12.0, changes=True)
    gaps = np.diff([time for time, _ in frames[2:]])
    assert len(frames) >= 9
    assert all(gap == pytest.approx(PACE.refresh, abs=0.2) for gap in gaps)
    height, width = sizes(frames)[-1]
    assert height * width * RAY_COST == pytest.approx(PACE.training_rest, rel=0.3)


def test_a_field_that_trains_no_more_is_drawn_sharp():
    world = Timed(training=True)
    world.look(wanted_of(SCENE, height=60, width=80), moving=False)
    world.run(3.0, changes=True)
    world.shown.training = False
    assert world.run(3.0)[-1][1].sharp


def test_nothing_is_drawn_before_anything_is_wanted():
    world = Timed()
    assert world.run(1.0) == []


def test_the_photograph_under_the_camera_is_measured_at_its_own_size(timed):
    timed.look(wanted_of(SCENE, 1, 60, 80, photograph=1))
    timed.run(2.0)
    psnr, size = timed.view.measured
    assert size == (20, 30)
    assert 0 < psnr < 20  # grey is not the sky
    timed.look(wanted_of(SCENE, 1, 60, 80))
    timed.run(2.0)
    assert timed.view.measured is None


def test_a_choice_that_is_no_movement_is_drawn_sharp_at_once(timed):
    timed.look(wanted_of(SCENE, 1, 60, 80, kind='opacity'), moving=False)
    began = timed.now
    frames = timed.run(1.0)
    assert frames[-1][1].sharp
    assert frames[-1][0] < began + PACE.moving
