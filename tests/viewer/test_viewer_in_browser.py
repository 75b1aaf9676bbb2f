"""Viewer in a real browser: headless Chromium, driven by Selenium. These tests skip where it is missing."""

import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from nerf.camera_path import pinholes
from nerf.files.images import read_image
from nerf.metrics import psnr
from nerf.rendering import render_view
from nerf.viewer.drawing import ShownField
from nerf.viewer.server import Address
from nerf.viewer.viewer import Viewer
from nerf.viewer.wanted import Wanted
from run_nerf_helpers import to8b
from viewer_client import draw_until, wait_until
from viewer_scene import POSES, SCENE, Sky

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
WIDTH, HEIGHT = 900, 620  # of the browser's window
SKY = Sky()

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def viewer(tmp_path_factory):
    shown = ShownField(SCENE, lambda: SKY)
    opened = Viewer(shown, tmp_path_factory.mktemp('run'), Address(port=0), lambda: 'a line')
    yield opened
    opened.close()


@pytest.fixture(scope='module')
def browser(viewer):
    """A browser that has opened the viewer's page."""
    webdriver = pytest.importorskip('selenium.webdriver', reason='needs selenium')
    driver = shutil.which('chromedriver')
    if not (CHROMIUM and driver):
        pytest.skip('needs chromium and chromedriver')
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ('headless=new', 'no-sandbox', 'disable-dev-shm-usage', 'use-gl=angle', 'use-angle=swiftshader',
                 'enable-unsafe-swiftshader', f'window-size={WIDTH},{HEIGHT}'):
        options.add_argument(f'--{flag}')
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    opened.get(f'http://127.0.0.1:{viewer.server.get_port()}')
    draw_until(viewer, lambda: len(viewer.visitors) == 1, 'the visitor')
    yield opened
    opened.quit()


def wanted_in(viewer: Viewer) -> Wanted:
    """View of the one page."""
    return next(iter(viewer.visitors.values())).reading.now()


def canvas_of(browser) -> np.ndarray:
    """Middle of the canvas on the screen, away from the notes at its edges: [H, W, 3] uint8."""
    picture = np.asarray(Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert('RGB'))
    top, left, bottom, right = frame_of(browser)
    return picture[top + 150:bottom, left:right]


def frame_of(browser) -> list[int]:
    """Top, left, bottom and right of the canvas in the window. The panel is to the right of it."""
    return browser.execute_script('const box = document.querySelector("canvas").getBoundingClientRect();'
                                  'return [box.top, box.left, box.bottom, box.right].map(Math.round)')


def expected(viewer: Viewer, browser) -> np.ndarray:
    """Picture of `render_view` at the page's camera, cut to the part that `canvas_of` has."""
    top, left, bottom, right = frame_of(browser)
    wanted = wanted_in(viewer)
    view = render_view(SKY, SCENE.space, pinholes([wanted], bottom - top, right - left))
    return to8b(view.rgb)[150:]


def is_sharp(viewer: Viewer, browser) -> bool:
    shown, rendered = canvas_of(browser), expected(viewer, browser)
    return shown.shape == rendered.shape and psnr(shown / 255.0, rendered / 255.0) > 35.0


def text_of(browser) -> str:
    """All text of the page."""
    return browser.find_element('tag name', 'body').text


def press(browser, label: str) -> None:
    """Clicks a button or opens a folder of the panel."""
    element = browser.find_element('xpath', f'//*[text()="{label}"]')
    browser.execute_script('arguments[0].click()', element)


def test_the_picture_appears_and_is_sharp_at_rest(viewer, browser):
    draw_until(viewer, lambda: wanted_in(viewer).photograph == 0, 'the first training camera')
    draw_until(viewer, lambda: is_sharp(viewer, browser), 'the sharp picture')
    assert np.ptp(canvas_of(browser), (0, 1)).max() > 50  # it is no plain colour


def test_dragging_turns_the_camera_and_the_picture(viewer, browser):
    from selenium.webdriver.common.action_chains import ActionChains

    before, pose = canvas_of(browser), wanted_in(viewer).pose
    canvas = browser.find_element('tag name', 'canvas')
    ActionChains(browser).move_to_element(canvas).click_and_hold().move_by_offset(90, 20).release().perform()
    draw_until(viewer, lambda: np.abs(wanted_in(viewer).pose - pose).max() > 0.1, 'the new camera')
    draw_until(viewer, lambda: is_sharp(viewer, browser), 'the sharp picture')
    assert psnr(canvas_of(browser) / 255.0, before / 255.0) < 30.0
    assert np.linalg.norm(wanted_in(viewer).pose[:, 3]) == pytest.approx(4.0, abs=0.01)  # an orbit


def test_the_choice_of_what_is_shown_changes_the_picture(viewer, browser):
    browser.find_element('xpath', '//label[text()="Show"]/following::input[1]').click()
    wait_until(lambda: bool(browser.find_elements('xpath', '//*[@role="option"]')))
    browser.find_element('xpath', '//*[@role="option"][.//text()="opacity"]').click()
    draw_until(viewer, lambda: wanted_in(viewer).kind == 'opacity')
    draw_until(viewer, lambda: np.ptp(canvas_of(browser), -1).max() == 0, 'the grey picture')


def test_buttons_do_what_they_say(viewer, browser):
    press(browser, 'Picture')
    press(browser, 'Save this view')
    file = viewer.run_dir / 'views' / 'view_0000.png'
    draw_until(viewer, file.exists, 'the file')
    assert read_image(file).shape[1] == 1920
    press(browser, 'Camera path')
    press(browser, 'Add key frame')
    draw_until(viewer, lambda: 'key frames: 1' in text_of(browser))
    press(browser, 'Save path')
    draw_until(viewer, (viewer.run_dir / 'camera_path.json').exists)
    press(browser, 'Clear')
    draw_until(viewer, lambda: 'no key frames' in text_of(browser))


def test_a_page_that_is_loaded_again_is_as_at_first(viewer, browser):
    browser.refresh()
    draw_until(viewer, lambda: len(viewer.visitors) == 1 and wanted_in(viewer).kind == 'colour')
    draw_until(viewer, lambda: is_sharp(viewer, browser), 'the sharp picture')
    draw_until(viewer, lambda: re.search(r'PSNR \d', text_of(browser)), 'the PSNR')
    assert POSES[0] == pytest.approx(wanted_in(viewer).pose, abs=1e-3)
