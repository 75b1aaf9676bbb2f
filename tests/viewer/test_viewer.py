"""nerf/viewer/viewer.py and panel.py: people who connect, what they see, and what their buttons do; without a
browser, by pages that speak viser's protocol."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import trimesh
from PIL import Image

from conftest import ROOT
from nerf.camera_path import CameraPath
from nerf.files.images import read_image
from nerf.meshes.mesh import write_mesh
from nerf.metrics import psnr
from nerf.rendering import render_view
from nerf.viewer import viewer as module
from nerf.viewer.drawing import Field, pinhole
from nerf.viewer.viewer import SHARE, Viewer, free_name
from run_nerf_helpers import to8b
from viewer_client import Page, wait_until
from viewer_scene import Sky, sky_scene, wanted_of

SCENE = sky_scene()
POSES = SCENE.cameras.poses.double().numpy()


@pytest.fixture(params=[False])
def viewer(tmp_path, request):
    """A viewer of the sky; a parameter says whether it trains."""
    sky = Sky()
    opened = Viewer(Field(SCENE, lambda: sky, request.param), tmp_path, '127.0.0.1', 0)
    yield opened
    opened.close()


@pytest.fixture
def open_page(viewer):
    """Opens a page at the pose of a camera, and waits until the viewer knows it."""
    pages = []

    def connect(i: int = 0, **more) -> Page:
        before = len(viewer.visitors)
        pages.append(Page(viewer.server.get_port(), POSES[i], **more))
        wait_until(lambda: len(viewer.visitors) > before, 'the visitor')
        return pages[-1]
    yield connect
    for page in pages:
        page.close()


def draw_until(viewer: Viewer, true, what: str = 'this') -> None:
    wait_until(true, what, meanwhile=viewer._draw_or_wait)


def sharp(viewer: Viewer, page: Page, i: int, **more) -> bool:
    """Whether the newest picture of a page is what render_view shows at camera i."""
    wanted = wanted_of(SCENE, i, *page.size, **more)
    expected = to8b(render_view(viewer.field.model(), SCENE, pinhole(wanted, *page.size)).rgb)
    return bool(page.frames) and page.frames[-1][1].shape == expected.shape and psnr(
        page.frames[-1][1] / 255.0, expected / 255.0) > 38.0


def test_a_page_gets_what_render_view_shows_at_its_camera(viewer, open_page):
    page = open_page(1, size=(120, 160))
    draw_until(viewer, lambda: sharp(viewer, page, 1), 'the sharp picture')
    assert len(page.frames) > 1  # small ones before
    page.look(POSES[2])
    draw_until(viewer, lambda: sharp(viewer, page, 2), 'the picture of the other camera')


def test_several_pages_have_their_own_cameras_and_choices(viewer, open_page):
    first, second = open_page(0), open_page(1)
    draw_until(viewer, lambda: sharp(viewer, first, 0) and sharp(viewer, second, 1), 'both pictures')
    first.set('Show', 'opacity')
    draw_until(viewer, lambda: set(np.unique(first.frames[-1][1] // 255 * 255)) <= {0, 255} and
               np.ptp(first.frames[-1][1], -1).max() == 0, 'the opacity')
    draw_until(viewer, lambda: sharp(viewer, second, 1), "the other's picture")


def test_a_page_that_is_closed_leaves_no_trace_and_others_stay(viewer, open_page):
    leaver, stayer = open_page(0), open_page(1)
    leaver.close()
    wait_until(lambda: len(viewer.visitors) == 1, 'the end of the visit')
    draw_until(viewer, lambda: sharp(viewer, stayer, 1), 'the picture of who stays')
    again = open_page(2)
    draw_until(viewer, lambda: sharp(viewer, again, 2), 'the picture of who comes back')


def test_a_broken_camera_is_not_looked_through(viewer, open_page):
    page = open_page(0)
    draw_until(viewer, lambda: sharp(viewer, page, 0))
    page.look(np.column_stack([POSES[1][:, :3], [0.0, np.inf, 0.0]]))
    page.fov = float('nan')
    page.look(POSES[1])
    page.fov, page.size = 0.7, (10 ** 9, 1)
    page.look(POSES[1])
    page.size = (30, 40)
    page.look(POSES[2])
    draw_until(viewer, lambda: sharp(viewer, page, 2), 'the picture of a good camera')


def test_under_a_training_camera_the_photograph_is_compared(viewer, open_page):
    page = open_page(1)
    draw_until(viewer, lambda: 'at training image 1' in page.text() and 'PSNR' in page.text(), 'the PSNR')
    expected = to8b(render_view(viewer.field.model(), SCENE, SCENE.cameras.take([1])).rgb) / 255.0
    shown = float(re.search(r'PSNR ([\d.]+) dB at 30 x 20', page.text())[1])
    assert shown == pytest.approx(psnr(expected.astype(np.float32), SCENE.target(1)), abs=0.01)
    page.set('Show', 'error')
    draw_until(viewer, lambda: 'error: white is 0.25' in page.text())
    away = POSES[1].copy()
    away[:, 3] *= 1.1
    page.look(away)
    draw_until(viewer, lambda: 'at a training camera only' in page.text())


def test_the_background_and_the_clips_are_those_that_are_chosen(viewer, open_page):
    page = open_page(0, fov=1.2)  # its upper edge is above the horizon
    page.set('Background', 'black')
    draw_until(viewer, lambda: bool(page.frames) and (page.frames[-1][1][0, 0] < 3).all(), 'black above the horizon')
    page.set('Far clip', 5.0)
    draw_until(viewer, lambda: viewer.visitors[0].wanted.far == 5.0)
    page.set('Near clip', 4.5)
    draw_until(viewer, lambda: viewer.visitors[0].wanted.near == 4.5)
    assert viewer.field.clipped(viewer.visitors[0].wanted).near == 4.5


def test_a_page_flies_to_a_training_camera(viewer, open_page):
    page = open_page(0)
    page.set('Training camera', 2)
    draw_until(viewer, lambda: viewer.visitors[0].wanted.photograph == 2, 'the camera')
    wait_until(lambda: bool(page.placed) and np.allclose(page.placed[-1], POSES[2][:, 3], atol=1e-6))


def test_training_cameras_are_shown_when_asked_for_and_the_one_looked_through_is_not(viewer, open_page):
    page = open_page(0)
    page.set('Training cameras', True)
    panel = viewer.visitors[0].panel
    draw_until(viewer, lambda: len(panel.frustums) == 3 and not panel.frustums[0].visible, 'the frustums')
    assert panel.frustums[1].visible
    assert panel.shows_things()
    np.testing.assert_allclose(panel.frustums[1].position, POSES[1][:, 3])
    assert panel.frustums[1].image[..., :3].mean() == pytest.approx(40, abs=1)


def test_a_click_on_a_training_camera_flies_there(viewer, open_page):
    page = open_page(0)
    page.set('Training cameras', True)
    wait_until(lambda: '/cameras/2' in page.things, 'the frustum')
    page.click('/cameras/2')
    draw_until(viewer, lambda: viewer.visitors[0].wanted.photograph == 2, 'the camera')
    wait_until(lambda: bool(page.placed) and np.allclose(page.placed[-1], POSES[2][:, 3], atol=1e-6))


def test_the_newest_mesh_of_a_run_is_shown_beside_the_field_when_asked_for(viewer, open_page, tmp_path):
    trimesh.creation.box().export(tmp_path / 'mesh_000200.ply')
    write_mesh(tmp_path / 'mesh_001000.glb', trimesh.creation.box((1.0, 2.0, 3.0)), np.array([0.0, 0.0, 1.0]))
    page = open_page(0)
    page.set('Mesh', True)
    wait_until(lambda: '/mesh' in page.things, 'the mesh')
    panel = viewer.visitors[0].panel
    shown = trimesh.load(io.BytesIO(page.things['/mesh']['props']['glb_data']), file_type='glb')
    np.testing.assert_allclose(shown.extents, [1.0, 2.0, 3.0])
    assert panel.mesh.visible
    assert panel.shows_things()
    page.set('Mesh', False)
    wait_until(lambda: not panel.mesh.visible and not panel.shows_things(), 'the end of the mesh')


def test_without_a_mesh_there_is_nothing_to_choose(viewer, open_page):
    page = open_page(0)
    wait_until(lambda: 'Training cameras' in page.inputs, 'the panel')
    assert 'Mesh' not in page.inputs


# Buttons


def test_a_button_pressed_while_a_new_camera_is_read_gets_that_one(viewer, open_page):
    page = open_page(0)
    page.set('Training cameras', True)
    visitor = viewer.visitors[0]
    old, read, begun = visitor.wanted, visitor._wanted, threading.Event()

    def slowly():
        begun.set()
        time.sleep(0.2)
        return read()
    visitor._wanted = slowly
    visitor.look()
    drawing = threading.Thread(target=lambda: visitor.wanted)
    drawing.start()
    begun.wait()
    assert old is not None
    assert visitor.wanted is not old
    drawing.join()


def test_a_saved_view_is_in_the_runs_folder_and_is_offered_to_the_page(viewer, open_page, tmp_path):
    page = open_page(1, size=(30, 40))
    page.set('Width', 64)
    page.press('Save this view')
    file = tmp_path / 'views' / 'view_0000.png'
    draw_until(viewer, lambda: 'view_0000.png' in page.files and 'is in' in page.text(), 'the file')
    expected = render_view(viewer.field.model(), SCENE, pinhole(wanted_of(SCENE, 1), 48, 64)).rgb
    np.testing.assert_array_equal(read_image(file), to8b(expected))
    wait_until(lambda: page.files['view_0000.png'] == file.read_bytes(), 'the download')
    page.press('Save this view')
    draw_until(viewer, (tmp_path / 'views' / 'view_0001.png').exists, 'the next name')


def test_a_camera_path_is_recorded_saved_played_and_filmed(viewer, open_page, tmp_path):
    page = open_page(0)
    page.press('Save path')
    draw_until(viewer, lambda: 'add key frames first' in page.text())
    visitor = viewer.visitors[0]
    for i in (0, 1):
        page.look(POSES[i])
        wait_until(lambda i=i: np.allclose(visitor.wanted.pose, POSES[i], atol=1e-6))
        page.press('Add key frame')
        wait_until(lambda i=i: len(visitor.path.keys) == i + 1)
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
    wait_until(lambda: not visitor.path.keys)


def test_a_full_disk_is_said_on_the_page(viewer, open_page, tmp_path, capsys):
    (tmp_path / 'views').write_text('no folder', encoding='utf-8')
    page = open_page(0)
    page.press('Save this view')
    draw_until(viewer, lambda: 'cannot be written' in page.text(), 'the message')
    assert not viewer.jobs
    assert 'warning' in capsys.readouterr().err


def test_what_cannot_be_drawn_ends_nothing(viewer, open_page, monkeypatch, capsys):
    page = open_page(0)
    draw_until(viewer, lambda: sharp(viewer, page, 0))
    model = viewer.field.model()
    monkeypatch.setattr(viewer.field, 'model', lambda: None)
    page.look(POSES[1])
    draw_until(viewer, lambda: 'this cannot be drawn' in page.text(), 'the message')
    monkeypatch.setattr(viewer.field, 'model', lambda: model)
    page.look(POSES[2])
    draw_until(viewer, lambda: sharp(viewer, page, 2), 'the next picture')
    assert 'a view cannot be drawn' in capsys.readouterr().err


def test_names_of_views_are_counted_on(tmp_path):
    for name in ('view_0003.png', 'view_x.png', 'other.png'):
        (tmp_path / name).touch()
    assert free_name(tmp_path) == tmp_path / 'view_0004.png'
    assert free_name(tmp_path / 'none') == tmp_path / 'none' / 'view_0000.png'


# Training


@pytest.mark.parametrize('viewer', [True], indirect=True)
def test_nobody_there_costs_nothing(viewer, monkeypatch):
    monkeypatch.setattr(viewer, '_draw', lambda: pytest.fail('it draws'))
    viewer.spend(1)
    assert viewer.field.step == 1


@pytest.mark.parametrize('viewer', [True], indirect=True)
def test_training_gives_its_share_of_the_time(viewer, monkeypatch):
    """In a world where a step takes 0.2 s and a tile 0.03 s."""
    now, drawn = [50.0], [0.0]

    def draw() -> bool:
        now[0] += 0.03
        drawn[0] += 0.03
        return True
    monkeypatch.setattr(module, 'clock', lambda: now[0])
    monkeypatch.setattr(viewer, '_draw', draw)
    viewer.visitors[0] = None
    viewer.mark = now[0]
    for step in range(500):
        now[0] += 0.2
        viewer.spend(step)
    assert drawn[0] / (now[0] - 50.0) == pytest.approx(SHARE, abs=0.002)


@pytest.mark.parametrize('viewer', [True], indirect=True)
def test_training_pauses_and_goes_on_by_a_button_or_when_nobody_is_left(viewer, open_page):
    page, lines = open_page(0), []

    def status() -> str:  # is asked for once a second
        lines.append(viewer.field.training)
        if len(lines) == 3:
            page.press('Pause training')
        return f'line {len(lines)}'
    viewer.status = status
    page.press('Pause training')
    wait_until(lambda: viewer.paused, 'the pause')
    viewer.spend(1)  # until the button is pressed again
    assert len(lines) >= 3
    assert not any(lines[1:])
    assert not viewer.paused
    assert viewer.field.training
    viewer._pause(True)
    page.close()
    viewer.spend(2)  # ends as nobody is there
    assert not viewer.paused


# Safety


def test_scripts_of_other_pages_cannot_connect(viewer):
    page = Page(viewer.server.get_port(), POSES[0], headers={'Origin': 'http://evil.example'})
    wait_until(page.closed.is_set, 'the end of the connection')
    assert not viewer.visitors
    assert not page.inputs


def test_a_page_cannot_have_the_viewer_shown_through_another_server(viewer, open_page, monkeypatch):
    from viser import _messages, _viser

    monkeypatch.setattr(_viser, 'ViserTunnel', lambda *_: pytest.fail('a tunnel'))
    page = open_page(0)
    page._send(_messages.ShareUrlRequest())
    draw_until(viewer, lambda: sharp(viewer, page, 0))
    assert viewer.server._share_tunnel is None


def test_wild_numbers_make_no_huge_pictures(viewer, open_page, tmp_path):
    page = open_page(0, size=(2, 199))
    page.set('Width', 16)
    page.press('Save this view')
    draw_until(viewer, (tmp_path / 'views' / 'view_0000.png').exists)
    assert read_image(tmp_path / 'views' / 'view_0000.png').shape == (1, 16, 3)


# The program


def test_view_shows_a_checkpoint_until_ctrl_c_and_writes_no_pictures(flags, tmp_path):
    subprocess.run([sys.executable, ROOT / 'run_nerf.py', *flags('--N_iters', '2', '--i_weights', '2')], check=True,
                   capture_output=True)
    before = set((tmp_path / 'run').iterdir())
    command = [sys.executable, '-u', ROOT / 'run_nerf.py', *flags('--render_only', '--view', '--view_port', '0')]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        port = next(int(found[1]) for line in run.stdout if (found := re.search(r'http://127\.0\.0\.1:(\d+)', line)))
        page = Page(port, POSES[0])
        wait_until(lambda: bool(page.frames), 'the picture')
        os.kill(run.pid, signal.SIGINT)
        _, errors = run.communicate(timeout=60)
        page.close()
    assert run.returncode == 130
    assert errors == 'stopped by SIGINT\n'
    assert {path.name for path in set((tmp_path / 'run').iterdir()) - before} <= {'000002_occupancy.npz'}


def test_a_run_trains_with_a_viewer_and_then_shows_what_it_has(flags, tmp_path):
    command = [sys.executable, '-u', ROOT / 'run_nerf.py', *flags('--N_iters', '40', '--view', '--view_port', '0')]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        port = next(int(found[1]) for line in run.stdout if (found := re.search(r'http://127\.0\.0\.1:(\d+)', line)))
        page = Page(port, POSES[0])
        assert any('40 steps done' in line for line in run.stdout)
        count = len(page.frames)
        wait_until(lambda: len(page.frames) > count and 'step 40 of 40, PSNR' in page.text(), 'the end of training')
        os.kill(run.pid, signal.SIGTERM)
        run.communicate(timeout=60)
        page.close()
    assert run.returncode == 143
    assert (tmp_path / 'run' / '000040.tar').exists()
    assert '\nview = False' in (tmp_path / 'run' / 'args.txt').read_text(encoding='utf-8')
    assert Image.open(io.BytesIO((tmp_path / 'run' / 'summary.png').read_bytes())).size[0] > 100
