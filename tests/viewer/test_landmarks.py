"""nerf/viewer/landmarks.py: training cameras and mesh in the scene of a page."""

import io
from dataclasses import replace

import numpy as np
import pytest
import trimesh
from viewer_client import draw_until, wait_until
from viewer_scene import POSES, SCENE

from nerf.meshes.export import write_mesh
from nerf.scene import Images
from nerf.viewer.landmarks import newest_mesh, thumbnail

pytest_plugins = 'viewer_fixtures'


def test_a_page_flies_to_a_training_camera(viewer, open_page):
    page = open_page(viewer, 0)
    page.set('Training camera', 2)
    draw_until(viewer, lambda: viewer.visitors[0].reading.now().photograph == 2, 'the camera')
    wait_until(lambda: bool(page.placed) and np.allclose(page.placed[-1], POSES[2][:, 3], atol=1e-6))


def test_training_cameras_are_shown_when_asked_for_and_the_one_looked_through_is_not(viewer, open_page):
    page = open_page(viewer, 0)
    page.set('Training cameras', True)
    landmarks = viewer.visitors[0].landmarks
    draw_until(viewer, lambda: len(landmarks.frustums) == 3 and not landmarks.frustums[0].visible, 'the frustums')
    assert landmarks.frustums[1].visible
    assert landmarks.visible
    np.testing.assert_allclose(landmarks.frustums[1].position, POSES[1][:, 3])
    assert landmarks.frustums[1].image[..., :3].mean() == pytest.approx(40, abs=1)
    page.set('Training cameras', False)
    wait_until(lambda: not any(frustum.visible for frustum in landmarks.frustums.values()), 'their end')
    assert not landmarks.visible


def test_a_click_on_a_training_camera_flies_there(viewer, open_page):
    page = open_page(viewer, 0)
    page.set('Training cameras', True)
    wait_until(lambda: '/cameras/2' in page.things, 'the frustum')
    page.click('/cameras/2')
    draw_until(viewer, lambda: viewer.visitors[0].reading.now().photograph == 2, 'the camera')
    wait_until(lambda: bool(page.placed) and np.allclose(page.placed[-1], POSES[2][:, 3], atol=1e-6))


def test_the_newest_mesh_of_a_run_is_shown_beside_the_field_when_asked_for(viewer, open_page, tmp_path):
    trimesh.creation.box().export(tmp_path / 'mesh_000200.ply')
    write_mesh(tmp_path / 'mesh_001000.glb', trimesh.creation.box((1.0, 2.0, 3.0)), np.array([0.0, 0.0, 1.0]))
    page = open_page(viewer, 0)
    page.set('Mesh', True)
    wait_until(lambda: '/mesh' in page.things, 'the mesh')
    landmarks = viewer.visitors[0].landmarks
    shown = trimesh.load(io.BytesIO(page.things['/mesh']['props']['glb_data']), file_type='glb')
    np.testing.assert_allclose(shown.extents, [1.0, 2.0, 3.0])
    wait_until(lambda: landmarks.visible and landmarks.mesh.visible)
    page.set('Mesh', False)
    wait_until(lambda: not landmarks.mesh.visible and not landmarks.visible, 'the end of the mesh')


def test_without_a_mesh_there_is_nothing_to_choose(viewer, open_page, tmp_path):
    assert newest_mesh(tmp_path) is None
    page = open_page(viewer, 0)
    wait_until(lambda: 'Training cameras' in page.inputs, 'the panel')
    assert 'Mesh' not in page.inputs


def test_a_thumbnail_is_small_and_on_the_background():
    half = np.tile(np.uint8([100, 200, 0, 51]), (96, 128, 1))  # a fifth opaque
    scene = replace(SCENE, images=Images.of_one_size(half[None]))
    picture = thumbnail(scene, 0)
    assert picture.shape == (48, 64, 3)
    assert picture[0, 0].tolist() == [224, 244, 204]
    assert thumbnail(replace(scene, white_bkgd=False), 0)[0, 0].tolist() == [100, 200, 0]
