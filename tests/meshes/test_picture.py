"""nerf/meshes/picture.py: a mesh as cameras see it, and the face that a pixel shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from load_blender import pose_spherical
from nerf.cameras import Cameras
from nerf.meshes.picture import mesh_views, rasterised
from nerf.scene import centred_intrinsics


def test_the_picture_shows_the_mesh_as_each_camera_sees_it():
    red, blue = trimesh.creation.icosphere(radius=0.4), trimesh.creation.icosphere(radius=0.4)
    red.visual.vertex_colors, blue.visual.vertex_colors = [255, 0, 0, 255], [0, 0, 255, 255]
    red.apply_translation([1.0, 0.0, 0.5])
    mesh = red + blue
    poses = np.stack([pose_spherical(180.0, 0.0, 4.0)[:3], pose_spherical(0.0, 0.0, 4.0)[:3],
                      pose_spherical(90.0, 0.0, 4.0)[:3]])  # at -y, +y and +x, where red is before blue
    picture = mesh_views(mesh, Cameras.of_one_kind(poses, centred_intrinsics(120, 160, 200.0), 120, 160)).astype(int)
    views = np.split(picture, 3, axis=1)
    scale = views[0].shape[1] / 160

    def centre(view, channel):
        others = [c for c in range(3) if c != channel]
        rows, columns = np.nonzero((view[..., channel] > 100) & (view[..., others].max(-1) < 60))
        return np.array([rows.mean(), columns.mean()]) / scale
    np.testing.assert_allclose(centre(views[0], 0), [60 - 25, 80 + 50], atol=2)
    np.testing.assert_allclose(centre(views[1], 0), [60 - 25, 80 - 50], atol=2)
    np.testing.assert_allclose(centre(views[0], 2), [60, 80], atol=2)
    np.testing.assert_allclose(centre(views[2], 0), [60 - 200 * 0.5 / 3, 80], atol=2)
    assert views[2][round(scale * 40), round(scale * 80), 2] < 60  # where both are, red hides blue
    assert (picture[0, 0] == 255).all()


def test_each_view_of_a_mesh_has_the_intrinsics_of_its_own_camera():
    ball = trimesh.creation.icosphere(radius=0.4)
    ball.visual.vertex_colors = [255, 0, 0, 255]
    poses = np.repeat(pose_spherical(180.0, 0.0, 4.0)[None, :3], 3, 0)
    cameras = Cameras.of_one_kind(poses, centred_intrinsics(120, 160, 200.0), 120, 160)
    cameras.intrinsics[1, :2] *= 2
    cameras.intrinsics[2, 2:] += torch.tensor([30.0, -20.0])
    whole = mesh_views(ball, cameras)
    assert whole.shape[:2] == (300, 1200)
    views = [np.argwhere(view[..., 2] < 60) / 2.5 for view in np.split(whole, 3, axis=1)]
    for view, expected in zip(views, ([60, 80], [60, 80], [40, 110])):
        np.testing.assert_allclose(view.mean(0), expected, atol=1)
    assert len(views[1]) == pytest.approx(4 * len(views[0]), rel=0.05)
    assert len(views[2]) == pytest.approx(len(views[0]), rel=0.05)


def test_what_is_behind_the_camera_is_not_drawn():
    ball = trimesh.creation.icosphere(radius=0.4)
    ball.visual.vertex_colors = [255, 0, 0, 255]
    ball.apply_translation([0.0, -8.0, 0.0])
    poses = pose_spherical(180.0, 0.0, 4.0)[None, :3]
    assert (mesh_views(ball, Cameras.of_one_kind(poses, centred_intrinsics(120, 160, 200.0), 120, 160)) == 255).all()


def test_faces_are_not_seen_from_behind_and_those_at_a_slant_are_darker():
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.4)
    ball.visual.vertex_colors = [255, 0, 0, 255]
    pose = pose_spherical(180.0, 0.0, 4.0)[None, :3]
    camera = Cameras.of_one_kind(pose, centred_intrinsics(120, 160, 200.0), 120, 160)
    picture = mesh_views(ball, camera)
    middle = picture[150, 200].astype(int)
    assert middle[0] > 250
    assert middle[1:].max() < 5
    assert picture[150, 200 + 46, 0] < 160  # near its outline, at 50 pixels
    ball.faces = ball.faces[:, ::-1]
    behind = mesh_views(ball, camera)
    assert behind[150, 200, 0] > 250  # the far side, from within
    assert (behind.min(-1) < 200).sum() > 0.9 * (picture.min(-1) < 200).sum()


def test_pixels_have_the_nearest_face_and_weights_in_space():
    points = np.array([[0.0, 0.0, 1.0], [10.0, 0.0, 1.0], [0.0, 10.0, 3.0],  # tilted away
                       [0.0, 0.0, 2.0], [9.0, 0.0, 2.0], [0.0, 9.0, 2.0], [20.0, 20.0, -1.0]])
    face, weights = rasterised(points, np.array([[0, 1, 2], [3, 5, 4], [0, 1, 6]]), 12, 12)
    assert face[0, 0] == 0
    assert face[8, 1] == 1  # there the tilted one is behind
    assert face[11, 11] == -1
    np.testing.assert_allclose(weights.sum(-1)[face >= 0], 1.0)
    share = 5 / 3 / (5 / 3 + 5)  # halfway up the picture, at depths 1 and 3
    np.testing.assert_allclose(weights[5, 0], [1 - share, 0.0, share], atol=1e-9)
