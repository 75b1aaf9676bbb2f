"""Fixtures of the viewer's tests, for `pytest_plugins`: viewers of the sky, and pages that connect to them."""

import pytest
from viewer_client import Page, wait_until
from viewer_scene import POSES, SCENE, Sky

from nerf.viewer.drawing import ShownField
from nerf.viewer.server import Address
from nerf.viewer.viewer import Viewer


@pytest.fixture
def open_viewer(tmp_path):
    """Opens a viewer: open_viewer(sampler=a function that returns one, status=a function, folder=a name below tmp_path,
    **more for ShownField)."""
    opened, sky = [], Sky()

    def open_(sampler=lambda: sky, status=lambda: 'a line', folder='', **more) -> Viewer:
        opened.append(Viewer(ShownField(SCENE, sampler, **more), tmp_path / folder, Address(port=0), status))
        return opened[-1]
    yield open_
    for viewer in opened:
        viewer.close()


@pytest.fixture
def viewer(open_viewer) -> Viewer:
    """Viewer of the finished sky."""
    return open_viewer()


@pytest.fixture
def open_page():
    """Opens a page at the pose of camera i, and waits for the viewer to know it: open_page(viewer, i, **more)."""
    pages = []

    def connect(viewer: Viewer, i: int = 0, **more) -> Page:
        before = len(viewer.visitors)
        pages.append(Page(viewer.server.get_port(), POSES[i], **more))
        wait_until(lambda: len(viewer.visitors) > before, 'the visitor')
        return pages[-1]
    yield connect
    for page in pages:
        page.close()
