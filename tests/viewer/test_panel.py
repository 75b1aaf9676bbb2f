"""nerf/viewer/panel.py: choices, texts and buttons, pressed by pages that speak viser's protocol."""

import re

import numpy as np
import pytest
from viewer_client import draw_until, wait_until
from viewer_scene import POSES, SCENE, Sky

from nerf.camera_path import CameraPath
from nerf.files.images import read_image
from nerf.metrics import psnr
from nerf.rendering import render_view
from run_nerf_helpers import to8b

pytest_plugins = 'viewer_fixtures'


def wanted_in(viewer):
    return viewer.visitors[0].reading.now()


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
    draw_until(viewer, lambda: wanted_in(viewer).far == 5.0)
    page.set('Near clip', 4.5)
    draw_until(viewer, lambda: wanted_in(viewer).near == 4.5)
    page.set('Far clip', 12.0)  # the slider's end
    draw_until(viewer, lambda: wanted_in(viewer).far == np.inf)


def test_a_saved_view_is_in_the_runs_folder_and_is_offered_to_the_page(viewer, open_page, tmp_path):
    page = open_page(viewer, 1, size=(30, 40))
    page.set('Width', 64)
    page.press('Save this view')
    file = tmp_path / 'views' / 'view_0000.png'
    draw_until(viewer, lambda: 'view_0000.png' in page.files and 'is in' in page.text(), 'the file')
    assert read_image(file).shape == (48, 64, 3)
    wait_until(lambda: page.files['view_0000.png'] == file.read_bytes(), 'the download')
    page.press('Save this view')
    draw_until(viewer, (tmp_path / 'views' / 'view_0001.png').exists, 'the next name')


def test_wild_numbers_make_no_huge_pictures(viewer, open_page, tmp_path):
    page = open_page(viewer, 0, size=(2, 199))
    page.set('Width', 16)
    page.press('Save this view')
    draw_until(viewer, (tmp_path / 'views' / 'view_0000.png').exists)
    assert read_image(tmp_path / 'views' / 'view_0000.png').shape == (1, 16, 3)


def test_a_camera_path_is_recorded_saved_played_and_filmed(viewer, open_page, tmp_path):
    page = open_page(viewer, 0)
    page.press('Save path')
    draw_until(viewer, lambda: 'add key frames first' in page.text())
    for i in (0, 1):
        page.look(POSES[i])
        wait_until(lambda i=i: np.allclose(wanted_in(viewer).pose, POSES[i], atol=1e-6))
        page.press('Add key frame')
        wait_until(lambda i=i: f'key frames: {i + 1}' in page.text())
    page.set('Seconds between', 0.1)
    page.set('Video width', 32)
    page.press('Save path')
    wait_until((tmp_path / 'camera_path.json').exists, 'the file')
    path = CameraPath.read(tmp_path / 'camera_path.json')
    assert (path.height, path.width, path.seconds) == (24, 32, 0.1)
    np.testing.assert_allclose(path.keys[1].pose, POSES[1], atol=1e-6)
    page.press('Render video')
    draw_until(viewer, (tmp_path / 'camera_path_000000.mp4').exists, 'the video')
    page.press('Preview')
    wait_until(lambda: bool(page.placed) and np.allclose(page.placed[-1], POSES[1][:, 3], atol=1e-4), 'the last frame')
    page.press('Clear')
    wait_until(lambda: 'no key frames' in page.text())
    page.press('Save path')
    wait_until(lambda: 'add key frames first' in page.text())


def test_a_preview_ends_when_it_is_asked_for_again_or_the_page_closes(viewer, open_page):
    page = open_page(viewer, 0)
    saving = viewer.visitors[0].saving
    for i in (0, 1):
        page.look(POSES[i])
        wait_until(lambda i=i: np.allclose(wanted_in(viewer).pose, POSES[i], atol=1e-6))
        page.press('Add key frame')
        wait_until(lambda i=i: f'key frames: {i + 1}' in page.text())
    page.set('Seconds between', 60.0)
    for end in (lambda: page.press('Preview'), page.close):
        page.press('Preview')
        wait_until(lambda: saving.playing, 'the preview')
        end()
        wait_until(lambda: not saving.playing, 'its end')
