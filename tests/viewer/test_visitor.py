"""nerf/viewer/visitor.py: pages that connect, and the pictures they get; without a browser, by pages that speak viser's
protocol."""

import re
import threading

import numpy as np
import pytest
from viewer_client import draw_until, is_sharp, wait_until
from viewer_scene import POSES, SCENE, Sky, wanted_of

from nerf.metrics import psnr
from nerf.rendering import render_view
from nerf.viewer.visitor import Reading
from run_nerf_helpers import to8b

pytest_plugins = 'viewer_fixtures'
SKY = Sky()


def test_a_page_gets_what_render_view_shows_at_its_camera(viewer, open_page):
    page = open_page(viewer, 1, size=(120, 160))
    draw_until(viewer, lambda: is_sharp(page, SCENE, SKY, 1), 'the sharp picture')
    assert len(page.frames) > 1  # small ones before
    page.look(POSES[2])
    draw_until(viewer, lambda: is_sharp(page, SCENE, SKY, 2), 'the picture of the other camera')


def test_several_pages_have_their_own_cameras_and_choices(viewer, open_page):
    first, second = open_page(viewer, 0), open_page(viewer, 1)
    draw_until(viewer, lambda: is_sharp(first, SCENE, SKY, 0) and is_sharp(second, SCENE, SKY, 1), 'both pictures')
    first.set('Show', 'opacity')
    draw_until(viewer, lambda: set(np.unique(first.frames[-1][1] // 255 * 255)) <= {0, 255} and
               np.ptp(first.frames[-1][1], -1).max() == 0, 'the opacity')
    draw_until(viewer, lambda: is_sharp(second, SCENE, SKY, 1), "the other's picture")


def test_a_broken_camera_is_not_looked_through(viewer, open_page):
    page = open_page(viewer, 0)
    draw_until(viewer, lambda: is_sharp(page, SCENE, SKY, 0))
    page.look(np.column_stack([POSES[1][:, :3], [0.0, np.inf, 0.0]]))
    page.fov = float('nan')
    page.look(POSES[1])
    page.fov, page.size = 0.7, (10 ** 9, 1)
    page.look(POSES[1])
    page.size = (30, 40)
    page.look(POSES[2])
    draw_until(viewer, lambda: is_sharp(page, SCENE, SKY, 2), 'the picture of a good camera')


def test_a_view_that_cannot_be_drawn_ends_nothing(open_viewer, open_page, capsys):
    samplers = [SKY]
    viewer = open_viewer(lambda: samplers[-1])
    page = open_page(viewer, 0)
    draw_until(viewer, lambda: is_sharp(page, SCENE, SKY, 0))
    samplers.append(None)
    page.look(POSES[1])
    draw_until(viewer, lambda: 'this cannot be drawn' in page.text(), 'the message')
    samplers.append(SKY)
    page.look(POSES[2])
    draw_until(viewer, lambda: is_sharp(page, SCENE, SKY, 2), 'the next picture')
    assert 'a view cannot be drawn' in capsys.readouterr().err


# Choices


def test_under_a_training_camera_the_photograph_is_compared(viewer, open_page):
    page = open_page(viewer, 1)
    draw_until(viewer, lambda: 'at training image 1' in page.text() and 'PSNR' in page.text(), 'the PSNR')
    expected = to8b(render_view(Sky(), SCENE.space, SCENE.cameras.take([1])).rgb) / 255.0
    shown = float(re.search(r'PSNR ([\d.]+) dB at 30 x 20', page.text())[1])
    assert shown == pytest.approx(psnr(expected.astype(np.float32), SCENE.target(1)), abs=0.01)
    page.set('Show', 'error')
    draw_until(viewer, lambda: 'error: white is 0.25' in page.text())
    away = POSES[1].copy()
    away[:, 3] *= 1.1
    page.look(away)
    draw_until(viewer, lambda: 'at a training camera only' in page.text())


def test_the_background_and_the_clips_are_those_that_are_chosen(viewer, open_page):
    page = open_page(viewer, 0, fov=1.2)  # its upper edge is above the horizon
    page.set('Background', 'black')
    draw_until(viewer, lambda: bool(page.frames) and (page.frames[-1][1][0, 0] < 3).all(), 'black above the horizon')
    page.set('Far clip', 5.0)
    draw_until(viewer, lambda: viewer.visitors[0].reading.now().far == 5.0)
    page.set('Near clip', 4.5)
    draw_until(viewer, lambda: viewer.visitors[0].reading.now().near == 4.5)
    page.set('Far clip', 12.0)  # the slider's end
    draw_until(viewer, lambda: viewer.visitors[0].reading.now().far == np.inf)


# Readings


def test_a_thread_that_asks_while_another_one_reads_gets_the_new_value():
    begun, may_end, values, got = threading.Event(), threading.Event(), [], []

    def slowly():
        begun.set()
        may_end.wait(10.0)
        values.append(wanted_of(SCENE))
        return values[-1]
    reading = Reading(slowly)
    assert reading.now() is None  # nothing has changed yet
    reading.changed = True
    threads = [threading.Thread(target=lambda: got.append(reading.now())) for _ in range(2)]
    threads[0].start()
    begun.wait(10.0)
    threads[1].start()
    threads[1].join(0.1)
    assert not got  # the second one waits
    may_end.set()
    for thread in threads:
        thread.join()
    assert len(values) == 1
    assert [value is values[0] for value in got] == [True, True]


def test_an_invalid_value_keeps_the_one_before_and_a_removed_one_comes_with_the_next_change():
    values = iter([wanted_of(SCENE), None, wanted_of(SCENE)])
    reading = Reading(lambda: next(values))
    reading.changed = True
    first = reading.now()
    reading.changed = True
    assert reading.now() is first
    reading.value = None
    assert reading.now() is None
    reading.changed = True
    wait_until(lambda: reading.now() is not None)
    assert reading.now() is not first
