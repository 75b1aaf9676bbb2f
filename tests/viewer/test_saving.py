"""nerf/viewer/saving.py: pictures and videos that pages ask for."""

import os
from collections import deque

import numpy as np
import pytest
from viewer_client import draw_until, wait_until
from viewer_scene import POSES, SCENE, Sky, wanted_of

from nerf.camera_path import CameraPath, KeyFrame, pinholes
from nerf.files.images import read_image
from nerf.rendering import render_view
from nerf.runtime.errors import UserError
from nerf.viewer.drawing import ShownField
from nerf.viewer.saving import Job, free_name, save_film, save_view
from nerf.viewer.wanted import Wanted
from run_nerf_helpers import to8b

pytest_plugins = 'viewer_fixtures'


def ended(job: Job) -> Job:
    while not job.ended:
        assert job.advance()
    return job


def test_a_job_says_how_far_it_is_and_what_became_of_it():
    def work():
        yield 'half'
        yield 'soon after, which is not said'
        return 'done'
    said = []
    ended(Job(work(), said.append))
    assert said == ['half', 'done']


def test_a_job_that_failed_has_ended_and_says_why(capsys):
    said, job = [], Job(iter(['half']), lambda line: said.append(line))
    job.failed(UserError('the disk is full'))
    assert job.ended
    assert said == ['the disk is full']
    assert 'warning: a picture or video cannot be made (the disk is full)' in capsys.readouterr().err


def test_a_saved_view_has_the_width_that_is_asked_for_and_is_offered(tmp_path):
    offered, said, sky = {}, deque(maxlen=1), Sky()
    work = save_view(ShownField(SCENE, lambda: sky), wanted_of(SCENE, 1), 64.0, tmp_path / 'views', offered.__setitem__)
    ended(Job(work, said.append))
    file = tmp_path / 'views' / 'view_0000.png'
    expected = render_view(sky, SCENE.space, pinholes([wanted_of(SCENE, 1)], 48, 64)).rgb
    np.testing.assert_array_equal(read_image(file), to8b(expected))
    assert offered == {'view_0000.png': file.read_bytes()}
    assert said[0] == f'view_0000.png is in {tmp_path / "views"}'


def test_the_error_is_saved_at_the_size_of_the_photograph(tmp_path):
    wanted = wanted_of(SCENE, 1, 600, 900, kind='error', photograph=1)
    ended(Job(save_view(ShownField(SCENE, Sky), wanted, 4000.0, tmp_path, lambda *_: None), lambda _: None))
    assert read_image(tmp_path / 'view_0000.png').shape == (20, 30, 3)


def test_a_film_has_the_frames_of_the_path(tmp_path):
    import imageio.v2 as imageio

    path = CameraPath([KeyFrame(POSES[0], 0.7), KeyFrame(POSES[1], 0.7)], seconds=0.1)
    sky = Sky()
    shown = ShownField(SCENE, lambda: sky, step=20)
    views = [Wanted(frame.pose, frame.fov, 48, 64, white=True) for frame in path.frames()]
    ended(Job(save_film(shown, views, tmp_path), lambda _: None))
    frames = imageio.mimread(tmp_path / 'camera_path_000020.mp4')
    assert len(frames) == 4
    for frame, camera in ((frames[0], wanted_of(SCENE, 0)), (frames[-1], wanted_of(SCENE, 1))):
        expected = to8b(render_view(sky, SCENE.space, pinholes([camera], 48, 64)).rgb)
        assert np.abs(frame.astype(int) - expected).mean() < 4  # the video is compressed


def test_names_of_views_are_counted_on(tmp_path):
    for name in ('view_0003.png', 'view_x.png', 'other.png'):
        (tmp_path / name).touch()
    assert free_name(tmp_path) == tmp_path / 'view_0004.png'
    assert free_name(tmp_path / 'none') == tmp_path / 'none' / 'view_0000.png'


def test_a_folder_that_cannot_be_written_is_an_error_of_the_user(tmp_path):
    (tmp_path / 'views').write_text('no folder', encoding='utf-8')
    work = save_view(ShownField(SCENE, Sky), wanted_of(SCENE), 16.0, tmp_path / 'views', lambda *_: None)
    with pytest.raises(UserError, match='cannot be written'):
        ended(Job(work, lambda _: None))


# The panel, by pages that speak viser's protocol


def wanted_in(viewer):
    return viewer.visitors[0].reading.now()


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


def test_a_page_reads_the_name_of_a_folder_that_is_no_text(open_viewer, open_page, tmp_path):
    folder = os.fsdecode(b'\xe9t\xe9')
    viewer = open_viewer(folder=folder)
    page = open_page(viewer, 1)
    page.set('Width', 64)
    page.press('Save this view')
    draw_until(viewer, lambda: 'view_0000.png is in ' in page.text(), 'the line')
    assert str(tmp_path / '\\udce9t\\udce9' / 'views') in page.text()
    assert (tmp_path / folder / 'views' / 'view_0000.png').is_file()


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
