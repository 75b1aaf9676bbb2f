"""What stands beside the picture in the browser: choices, buttons, and the training cameras and mesh in the scene."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nerf.camera_path import KeyFrame
from nerf.files.images import area_resize
from nerf.plots import LARGEST_ERROR
from nerf.poses import opencv_quaternion, vertical_fov
from nerf.scene import Scene
from nerf.viewer.drawing import KINDS, Frame, size_of

if TYPE_CHECKING:
    from nerf.viewer.viewer import Visitor

MOST_CAMERAS = 100  # that are shown, spread evenly over the training cameras
THUMBNAIL = 64  # pixels of the longer side
FRUSTUM = 0.06  # of the distance to what a camera looks at


class StatusPanel:
    """What all visitors see: how the run goes, and the button that pauses it."""

    def __init__(self, gui, training: bool, pause: Callable[[bool], None]):
        self.line = gui.add_markdown('')
        self.button = gui.add_button('Pause training', visible=training, hint='Training goes on when you press again, '
                                     'or when nobody is connected any more')
        self.is_paused = False

        @self.button.on_click
        def _(_) -> None:
            self.paused(not self.is_paused)
            pause(self.is_paused)

    def say(self, line: str) -> None:
        if self.line.content != line:
            self.line.content = line

    def paused(self, paused: bool) -> None:
        self.is_paused = paused
        self.button.label = 'Go on training' if paused else 'Pause training'

    def trained(self) -> None:
        self.button.visible = False


class Panel:
    """One visitor's choices and buttons. Everything here only notes what is wanted."""

    def __init__(self, visitor: Visitor):
        self.visitor, self.scene, gui = visitor, visitor.scene, visitor.client.gui
        self.frustums, self.mesh, self.size = {}, None, ''
        self.kind = gui.add_dropdown('Show', KINDS)
        self.background = gui.add_dropdown('Background', ('white', 'black'),
                                           initial_value='white' if self.scene.white_bkgd else 'black')
        unit, most = self.scene.space.unit, self.scene.space.farthest_clip
        self.near = gui.add_slider('Near clip' + unit, 0.0, most, most / 200, 0.0)
        self.far = gui.add_slider('Far clip' + unit, 0.0, most, most / 200, most, visible=self.scene.space.has_far)
        for choice in (self.kind, self.background, self.near, self.far):
            choice.on_update(lambda _: visitor.look(moving=False))
        self.picture = gui.add_markdown('')
        self.cameras = gui.add_checkbox('Training cameras', False, hint='Click one to go there')
        self.cameras.on_update(lambda _: self._show_cameras())
        self.go = gui.add_number('Training camera', 0, min=0, max=len(self.scene.i_train) - 1, step=1)
        self.go.on_update(lambda _: visitor.fly_to(int(self.scene.i_train[self.go.value])))
        self._add_mesh(gui)
        self._add_saving(gui)
        self._add_path(gui)
        self.said = gui.add_markdown('')

    @property
    def white(self) -> bool:
        return self.background.value == 'white'

    @property
    def far_bound(self) -> float:
        return self.far.value if self.far.value < self.scene.space.farthest_clip else math.inf

    def say(self, line: str) -> None:
        """Shows what became of the last button that was pressed."""
        self.said.content = line

    def note(self, frame: Frame | None, measured: tuple[float, tuple[int, int]] | None, rays_per_second: float) -> None:
        """Says what is known of the picture; a frame of None is the one before."""
        under = self.visitor.view.wanted.photograph
        if frame is not None:
            height, width = frame.view.acc.shape
            self.size = f'{width} x {height} pixels{", sharp" * frame.sharp}; {rays_per_second:,.0f} rays/s'
        lines = [self.size]
        if under is not None:
            lines.append(f'at training image {under}')
        if measured is not None:
            psnr, (height, width) = measured
            exposure = ', without its exposure' * self.scene.exposure
            lines.append(f'PSNR {psnr:.2f} dB at {width} x {height} pixels{exposure}')
        if self.kind.value == 'error':
            lines.append(f'error: white is {LARGEST_ERROR} or more' if under is not None else
                         'the error can be seen at a training camera only; this is the colour')
        self.picture.content = '  \n'.join(lines)

    # Cameras and mesh

    def shows_things(self) -> bool:
        """Whether something in the scene could be in front of the field or behind it."""
        return self.cameras.value or (self.mesh is not None and self.mesh.visible)

    def _show_cameras(self) -> None:
        if self.cameras.value and not self.frustums:
            views = self.scene.i_train
            for i in views[np.linspace(0, len(views) - 1, min(len(views), MOST_CAMERAS)).astype(int)].tolist():
                self.frustums[i] = self._frustum(i)
        for frustum in self.frustums.values():
            frustum.visible = self.cameras.value
        self.visitor.look(moving=False)

    def _frustum(self, i: int):
        camera = self.scene.cameras.take([i])
        (height, width), pose = camera.size(0), camera.poses[0].double().numpy()
        frustum = self.visitor.client.scene.add_camera_frustum(
            f'/cameras/{i}', vertical_fov(camera), width / height,
            scale=FRUSTUM * self.scene.space.looking_distance(pose),
            thickness=1.5, thickness_units='screen', image=thumbnail(self.scene, i), format='jpeg',
            wxyz=opencv_quaternion(pose), position=pose[:, 3])
        frustum.on_click(lambda _: self.visitor.fly_to(i))
        return frustum

    def under(self, i: int | None) -> None:
        """Hides the frustum of the camera that one looks through."""
        for j, frustum in self.frustums.items():
            visible = self.cameras.value and j != i
            if frustum.visible != visible:
                frustum.visible = visible

    def _add_mesh(self, gui) -> None:
        path = newest_mesh(self.visitor.viewer.run_dir)
        if path is None:
            return
        box = gui.add_checkbox('Mesh', False, hint=f'{path.name}, where it is in front of the field')

        @box.on_update
        def _(_) -> None:
            if self.mesh is None:
                self.mesh = self.visitor.client.scene.add_mesh_trimesh('/mesh', mesh_of(path))
            self.mesh.visible = box.value
            self.visitor.look(moving=False)

    # Pictures and paths

    def _add_saving(self, gui) -> None:
        with gui.add_folder('Picture', expand_by_default=False):
            width = gui.add_number('Width', 1920, min=16, max=8192, step=1)
            gui.add_button('Save this view').on_click(lambda _: self.visitor.save_view(width.value))

    def _add_path(self, gui) -> None:
        visitor, path = self.visitor, self.visitor.path

        def add() -> None:
            path.keys.append(KeyFrame(visitor.wanted.pose, visitor.wanted.fov))
            self.say(f'key frames: {len(path.keys)}')

        def clear() -> None:
            path.keys.clear()
            self.say('no key frames')

        def with_path(action: Callable[[], None]) -> None:
            if not path.keys:
                self.say('add key frames first')
                return
            path.seconds = min(max(float(seconds.value), 0.1), 60.0)
            path.height, path.width = size_of(visitor.wanted, width.value)
            action()

        with gui.add_folder('Camera path', expand_by_default=False):
            seconds = gui.add_number('Seconds between', 2.0, min=0.1, max=60.0, step=0.1)
            width = gui.add_number('Video width', 960, min=16, max=4096, step=1)
            for label, action in {'Add key frame': add, 'Clear': clear, 'Preview': lambda: with_path(visitor.play),
                                  'Save path': lambda: with_path(visitor.save_path),
                                  'Render video': lambda: with_path(visitor.film)}.items():
                gui.add_button(label).on_click(lambda _, action=action: action())


def thumbnail(scene: Scene, i: int) -> np.ndarray:
    """A small picture [h, w, 3] uint8 of image i, on its background."""
    image = scene.images[i]
    height, width = image.shape[:2]
    share = min(THUMBNAIL / max(height, width), 1.0)
    small = area_resize(image, max(round(share * height), 1), max(round(share * width), 1)).astype(np.float32)
    if scene.white_bkgd and small.shape[-1] == 4:
        alpha = small[..., 3:] / 255.0
        small = small[..., :3] * alpha + 255.0 * (1.0 - alpha)
    return small[..., :3].astype(np.uint8)


def mesh_of(path: Path):
    """The trimesh.Trimesh of a file, in the scene's coordinates: a .glb's node turns it upright for other programs."""
    import trimesh

    found = trimesh.load(path)
    return next(iter(found.geometry.values())) if isinstance(found, trimesh.Scene) else found


def newest_mesh(run_dir: Path) -> Path | None:
    """The mesh of the latest step in a run's folder; None: there is none."""
    return max((path for path in run_dir.glob('mesh_*') if path.suffix in ('.ply', '.glb')), default=None)
