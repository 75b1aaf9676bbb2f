"""nerf/viewer/viewer.py: which page is served next, the share of the time that training gives, and whole runs with a
viewer."""

import io
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from time import perf_counter

import numpy as np
import pytest
from PIL import Image
from viewer_client import Page, draw_until, is_sharp, wait_until
from viewer_scene import POSES, SCENE, Sky

from conftest import ROOT
from nerf.viewer.drawing import Pace
from nerf.viewer.saving import Job

pytest_plugins = 'viewer_fixtures'
SKY = Sky()


def test_a_page_that_is_closed_leaves_no_trace_and_others_stay(viewer, open_page):
    leaver, stayer = open_page(viewer, 0), open_page(viewer, 1)
    leaver.close()
    wait_until(lambda: len(viewer.visitors) == 1, 'the end of the visit')
    draw_until(viewer, lambda: is_sharp(stayer, SCENE, SKY, 1), 'the picture of the page that stays')
    again = open_page(viewer, 2)
    draw_until(viewer, lambda: is_sharp(again, SCENE, SKY, 2), 'the picture of the page that comes back')


def test_pages_begin_at_the_first_training_camera_and_turn_around_the_origin(viewer):
    first = viewer.server.initial_camera
    np.testing.assert_allclose(first.position, POSES[0][:, 3])
    np.testing.assert_allclose(first.look_at, np.zeros(3), atol=1e-6)
    assert first.fov == pytest.approx(2 * np.arctan(10 / 45))


def test_a_full_disk_is_said_on_the_page_and_ends_the_job(viewer, open_page, tmp_path, capsys):
    (tmp_path / 'views').write_text('no folder', encoding='utf-8')
    page = open_page(viewer, 0)
    page.set('Width', 16)
    page.press('Save this view')
    draw_until(viewer, lambda: 'cannot be written' in page.text(), 'the message')
    assert not viewer.jobs
    assert 'warning' in capsys.readouterr().err


def test_jobs_are_drawn_one_after_the_other(viewer):
    drawn = []

    def work(name: str):
        for _ in range(3):
            drawn.append(name)
            yield name
    for name in 'ab':
        viewer.ask(Job(work(name), lambda _: None))
    for _ in range(8):
        viewer.draw_or_wait()
    assert drawn == [*'aaabbb']
    assert not viewer.jobs


# Training


def test_a_viewer_without_pages_costs_nothing(open_viewer):
    def fails():
        pytest.fail('it draws')
    viewer = open_viewer(fails, fails, training=True)
    viewer.spend(1)
    assert viewer.shown.step == 1


def test_training_gives_its_share_of_the_time(open_viewer):
    """In a world where a step takes 0.2 s and a tile 0.03 s."""
    now, drawn = [50.0], [0.0]

    def endless():
        while True:
            now[0] += 0.03
            drawn[0] += 0.03
            yield 'drawing'
    pace = Pace(share=0.04)
    viewer = open_viewer(training=True, pace=pace, clock=lambda: now[0])
    viewer.ask(Job(endless(), lambda _: None))
    for step in range(500):
        now[0] += 0.2
        viewer.spend(step)
    assert drawn[0] / (now[0] - 50.0) == pytest.approx(pace.share, abs=0.002)


def test_training_pauses_and_goes_on_by_a_button_or_when_no_page_is_left(open_viewer, open_page):
    lines = []

    def status() -> str:
        lines.append(viewer.shown.training)
        if len(lines) == 3:
            page.press('Pause training')
        return f'line {len(lines)}'
    viewer = open_viewer(status=status, training=True, pace=Pace(status=0.02))
    page = open_page(viewer, 0)
    page.press('Pause training')
    wait_until(lambda: viewer.paused, 'the pause')
    viewer.spend(1)  # until the button is pressed again
    assert len(lines) >= 3
    assert not any(lines[1:])
    assert not viewer.paused
    assert viewer.shown.training
    page.press('Pause training')
    wait_until(lambda: viewer.paused, 'the other pause')
    page.close()
    viewer.spend(2)  # ends as no page is there
    assert not viewer.paused


def test_after_training_another_sampler_draws_until_a_signal(open_viewer, open_page):
    class Signal(BaseException):
        """Ends the viewer, as a signal does."""

    drawn, page, began = [], None, perf_counter()

    def clock() -> float:
        now = perf_counter()
        if (drawn and 'step 5' in page.text() and is_sharp(page, SCENE, SKY, 1)) or now > began + 30.0:
            raise Signal
        return now
    viewer = open_viewer(status=lambda: 'step 5 of 5', training=True, clock=clock)
    page = open_page(viewer, 1)
    with pytest.raises(Signal):
        viewer.serve(5, Sky(drawn.append))
    assert is_sharp(page, SCENE, SKY, 1)
    assert viewer.shown.step == 5
    assert not viewer.shown.training
    assert not viewer.button.visible


# Safety


def test_scripts_of_other_pages_cannot_connect_and_the_terminal_says_so_once(viewer, capsys):
    for _ in range(3):
        page = Page(viewer.server.get_port(), POSES[0], headers={'Origin': 'http://evil.example'})
        wait_until(page.closed.is_set, 'the end of the connection')
        assert not viewer.visitors
        assert not page.inputs
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "refused a page of 'http://evil.example', which asked for '127.0.0.1:" in said[0]


def test_a_page_cannot_have_the_viewer_shown_through_another_server(viewer, open_page, monkeypatch):
    from viser import _messages, _viser

    tunnels = []
    monkeypatch.setattr(_viser, 'ViserTunnel', lambda *_: tunnels.append('a tunnel'))
    page = open_page(viewer, 0)
    page.send(_messages.ShareUrlRequest())
    draw_until(viewer, lambda: is_sharp(page, SCENE, SKY, 0))
    assert not tunnels


# The program


@contextmanager
def program(*flags: str):
    """run_nerf.py with a viewer: yields the process and a page that is connected to it. Ends both."""
    command = [sys.executable, '-u', ROOT / 'run_nerf.py', *flags, '--view', '--view_port', '0']
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        try:
            port = next(int(found[1]) for line in run.stdout
                        if (found := re.search(r'http://127\.0\.0\.1:(\d+)', line)))
            page = Page(port, POSES[0])
            yield run, page
            page.close()
        finally:
            run.kill()


@pytest.mark.slow
def test_view_shows_a_checkpoint_until_ctrl_c_and_writes_no_pictures(flags, tmp_path):
    subprocess.run([sys.executable, ROOT / 'run_nerf.py', *flags('--N_iters', '2', '--i_weights', '2')], check=True,
                   capture_output=True)
    before = set((tmp_path / 'run').iterdir())
    with program(*flags('--render_only')) as (run, page):
        wait_until(lambda: bool(page.frames), 'the picture')
        os.kill(run.pid, signal.SIGINT)
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    assert errors == 'stopped by SIGINT\n'
    assert {path.name for path in set((tmp_path / 'run').iterdir()) - before} <= {'000002_occupancy.npz'}


@pytest.mark.slow
def test_a_run_trains_with_a_viewer_and_then_shows_what_it_has(flags, tmp_path):
    with program(*flags('--N_iters', '40')) as (run, page):
        assert any('40 steps done' in line for line in run.stdout)
        count = len(page.frames)
        wait_until(lambda: len(page.frames) > count and 'step 40 of 40, PSNR' in page.text(), 'the end of training')
        os.kill(run.pid, signal.SIGTERM)
        run.communicate(timeout=60)
    assert run.returncode == 143
    assert (tmp_path / 'run' / '000040.tar').exists()
    assert '\nview = False' in (tmp_path / 'run' / 'args.txt').read_text(encoding='utf-8')
    assert Image.open(io.BytesIO((tmp_path / 'run' / 'summary.png').read_bytes())).size[0] > 100
