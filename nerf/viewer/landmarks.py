"""Objects in the scene of a page: frustums of the training cameras, and the run's mesh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from nerf.poses import opencv_quaternion, vertical_fov
from nerf.scene import Scene
from nerf.viewer.drawing import photograph_of
from run_nerf_helpers import to8b

MOST_CAMERAS = 100  # frustums that are shown, spread evenly over the training cameras
THUMBNAIL = 64  # pixels of the longer side
FRUSTUM = 0.06  # length of a frustum over the distance to what its camera looks at


class Landmarks:
    """Training cameras and mesh, if there is one, that checkboxes of one page show. `place` moves the page's camera to
    a pose [3, 4] and a vertical field of view; `redraw` draws its view again."""

    def __init__(self, client, scene: Scene, mesh: Path | None, place: Callable[[np.ndarray, float], None],
                 redraw: Callable[[], None]):
        self.client, self.scene, self.place, self.redraw = client, scene, place, redraw
        self.frustums, self.mesh, gui = {}, None, client.gui
        self.cameras = gui.add_checkbox('Training cameras', False, hint='Click one to go there')
        self.cameras.on_update(lambda _: self._show_cameras())
        number = gui.add_number('Training camera', 0, min=0, max=len(scene.i_train) - 1, step=1)
        number.on_update(lambda _: self._fly_to(int(scene.i_train[number.value])))
        if mesh:
            box = gui.add_checkbox('Mesh', False, hint=f'{mesh.name}, where it is in front of the field')
            box.on_update(lambda _: self._show_mesh(mesh, box.value))

    @property
    def visible(self) -> bool:
        """Whether an object can be in front of the field or behind it."""
        return self.cameras.value or (self.mesh is not None and self.mesh.visible)

    def hide_at(self, i: int | None) -> None:
        """Hides the frustum of image i, through which the page looks, and no other one."""
        for j, frustum in self.frustums.items():
            visible = self.cameras.value and j != i
            if frustum.visible != visible:
                frustum.visible = visible

    def _fly_to(self, i: int) -> None:
        camera = self.scene.cameras.take([i])
        self.place(camera.poses[0].double().numpy(), vertical_fov(camera))

    def _show_cameras(self) -> None:
        if self.cameras.value and not self.frustums:
            views = self.scene.i_train
            views = views[np.linspace(0, len(views) - 1, min(len(views), MOST_CAMERAS)).astype(int)].tolist()
            self.frustums = {i: self._frustum(i) for i in views}  # at once: the thread that draws may iterate over them
        self.hide_at(None)
        self.redraw()

    def _frustum(self, i: int):
        camera = self.scene.cameras.take([i])
        (height, width), pose = camera.size(0), camera.poses[0].double().numpy()
        frustum = self.client.scene.add_camera_frustum(
            f'/cameras/{i}', vertical_fov(camera), width / height,
            scale=FRUSTUM * self.scene.space.looking_distance(pose),
            thickness=1.5, thickness_units='screen', image=thumbnail(self.scene, i), format='jpeg',
            wxyz=opencv_quaternion(pose), position=pose[:, 3])
        frustum.on_click(lambda _: self._fly_to(i))
        return frustum

    def _show_mesh(self, path: Path, visible: bool) -> None:
        if self.mesh is None:
            import trimesh

            found = trimesh.load(path)
            if isinstance(found, trimesh.Scene):  # a .glb has a node that turns the mesh upright for other programs
                found = next(iter(found.geometry.values()))
            self.mesh = self.client.scene.add_mesh_trimesh('/mesh', found)
        self.mesh.visible = visible
        self.redraw()


def thumbnail(scene: Scene, i: int) -> np.ndarray:
    """Small picture [h, w, 3] uint8 of image i, on its background."""
    height, width = scene.images[i].shape[:2]
    share = min(THUMBNAIL / max(height, width), 1.0)
    return to8b(photograph_of(scene, i, max(round(share * height), 1), max(round(share * width), 1)))


def newest_mesh(run_dir: Path) -> Path | None:
    """Path of the mesh of the latest step in a run's folder; None: there is none."""
    return max((path for path in run_dir.glob('mesh_*') if path.suffix in ('.ply', '.glb')), default=None)
