"""Page of the viewer without a browser. It speaks viser's protocol, moves its camera and keeps the messages it gets."""

from __future__ import annotations

import dataclasses
import io
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec
import numpy as np
import zstandard
from PIL import Image
from viser import __version__, _messages
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from nerf.camera_path import pinholes
from nerf.fields.interface import Sampler
from nerf.metrics import psnr
from nerf.poses import opencv_quaternion
from nerf.rendering import render_view
from nerf.scene import Scene
from nerf.viewer.wanted import Wanted
from run_nerf_helpers import to8b


class Page:
    """Page that is connected to the viewer at a port.

    Args:
        port: of the viewer.
        pose: [3, 4] of the page's first camera, OpenGL axes.
        size: height and width of the page's picture.
        fov: vertical, in radians.
        headers: of the connection, as a browser would send them.
    """

    def __init__(self, port: int, pose: np.ndarray, size=(30, 40), fov: float = 0.7, headers: dict | None = None):
        self.size, self.fov = size, fov
        self.frames: list[tuple[float, np.ndarray]] = []  # time and picture
        self.inputs: dict[str, dict] = {}  # the panel's messages by label
        self.lines: dict[str, str] = {}  # the panel's texts by id
        self.files: dict[str, bytes] = {}  # files that were offered for download, by name
        self.things: dict[str, dict] = {}  # messages of objects in the scene, by name
        self.closed, self.placed = threading.Event(), []
        self.connection = connect(f'ws://127.0.0.1:{port}', subprotocols=[f'viser-v{__version__}'], max_size=None,
                                  compression=None, additional_headers=headers)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        with suppress(ConnectionClosed):  # a page that is turned away has no camera
            self.look(pose)

    def look(self, pose: np.ndarray) -> None:
        """Moves the camera."""
        place = tuple(map(float, pose[:, 3]))
        ahead = tuple(map(float, pose[:, 3] - 4.0 * pose[:, 2]))
        self.send(_messages.ViewerCameraMessage(
            tuple(map(float, opencv_quaternion(pose))), place, self.fov, 0.01, 1000.0, *self.size, ahead,
            tuple(map(float, pose[:, 1]))))

    def set(self, label: str, value) -> None:
        """Sets a value of the panel, once the panel has come."""
        wait_until(lambda: label in self.inputs, label)
        self.send(_messages.GuiUpdateMessage(self.inputs[label]['uuid'], {'value': value}))

    def press(self, label: str) -> None:
        """Presses a button of the panel."""
        self.set(label, True)

    def click(self, thing: str) -> None:
        """Clicks on an object in the scene."""
        self.send(_messages.SceneNodeClickMessage(thing, None, (0.0,) * 3, (0.0, 0.0, 1.0), (0.5, 0.5), None,
                                                   self.things[thing]['owner']))

    def text(self) -> str:
        """All texts of the panel."""
        return '\n'.join(self.lines.values())

    def send(self, message) -> None:
        """Sends one of viser's messages."""
        values = {field.name: getattr(message, field.name) for field in dataclasses.fields(message) if field.init}
        self.connection.send(msgspec.msgpack.encode(values | {'type': type(message).__name__}))

    def _read(self) -> None:
        with suppress(ConnectionClosed):
            for data in self.connection:
                self._take(data)
        self.closed.set()

    def _take(self, data: bytes) -> None:
        """Reads a packet: 16 bytes of lengths, compressed messages, and the arrays to which they refer."""
        size = int.from_bytes(data[8:16], 'little')
        window = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(data[16:16 + size]))
        for message in window['messages']:
            kind, props = message['type'], message.get('props') or {}
            if kind == 'BackgroundImageMessage' and message['rgb_data']:
                picture = Image.open(io.BytesIO(message['rgb_data']))
                self.frames.append((time.perf_counter(), np.asarray(picture)))
            elif kind in ('CameraFrustumMessage', 'GlbMessage', 'MeshMessage'):
                self.things[message['name']] = message
            elif kind.startswith('Gui') and 'label' in props:
                self.inputs[props['label']] = message
            elif kind == 'GuiMarkdownMessage':
                self.lines[message['uuid']] = ''
            elif kind == 'GuiUpdateMessage':
                if '_markdown' in message['updates']:
                    self.lines[message['uuid']] = message['updates']['_markdown']
            elif kind == 'FileTransferStartDownload':
                self.files[message['filename']] = b''
            elif kind == 'FileTransferPart':
                self.files[list(self.files)[-1]] += bytes(message['content'])
            elif kind == 'SetCameraPositionMessage':
                self.placed.append(message['position'])

    def close(self) -> None:
        """Ends the connection."""
        self.connection.close()
        self.reader.join(5.0)


def wait_until(true: Callable[[], bool], what: str = 'this', seconds: float = 30.0,
               meanwhile: Callable[[], None] = lambda: time.sleep(0.01)) -> None:
    """Waits until something is true, and calls `meanwhile` again and again."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f'{what} did not come'
        meanwhile()


def draw_until(viewer, true: Callable[[], bool], what: str = 'this', seconds: float = 60.0) -> None:
    """Lets a viewer draw until something is true."""
    wait_until(true, what, seconds, viewer.draw_or_wait)


def is_sharp(page: Page, scene: Scene, sampler: Sampler, i: int, **more) -> bool:
    """Whether the newest picture of a page is what `render_view` shows at camera i."""
    camera = pinholes([Wanted(scene.cameras.poses[i].double().numpy(), page.fov, *page.size, **more)], *page.size)
    expected = to8b(render_view(sampler, scene.space, camera).rgb)
    return bool(page.frames) and page.frames[-1][1].shape == expected.shape and psnr(
        page.frames[-1][1] / 255.0, expected / 255.0) > 38.0
