"""nerf/meshes/texture.py: colours that views show of a surface, and a mesh with a texture of them."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from known_surfaces import (
    AROUND, RADIUS, assert_red_and_blue, nine_cameras_in_ndc, scene_around, shell, two_coloured_ball_in_ndc,
    view_of_ball,
)

from nerf.meshes.colours import coloured_mesh
from nerf.meshes.options import MeshSettings
from nerf.meshes.texture import seen_colours, textured
from nerf.meshes.views import SeenFrom, drawn_views


@pytest.fixture(scope='module')
def views() -> list[SeenFrom]:
    """Views of a ball, red where x > 0 and else blue."""
    found = [view_of_ball(pose, RADIUS, RADIUS) for pose in scene_around().cameras.poses.double().numpy()]
    return [view._replace(rgb=np.where(view.points[..., :1] > 0, np.float32([1, 0, 0]), np.float32([0, 0, 1])))
            for view in found]


def test_a_point_has_the_median_colour_of_the_views_that_see_it(views):
    directions = np.float32([[1, 0.2, 0], [-1, 0, 0.3], [0.1, 0, 1], [-0.1, 1, 0]])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    colours, count = seen_colours(RADIUS * directions, directions, views, 0.06)
    assert (count > 2).all()
    np.testing.assert_allclose(colours, [[1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1]], atol=0.02)
    highlight = [view._replace(rgb=np.ones_like(view.rgb)) if i % 7 == 0 else view for i, view in enumerate(views)]
    again, _ = seen_colours(RADIUS * directions, directions, highlight, 0.06)
    np.testing.assert_allclose(again, colours, atol=0.02)
    _, hidden = seen_colours(0.3 * directions, directions, views, 0.06)
    assert (hidden == 0).all()


def test_colours_in_ndc_are_those_at_the_depth_that_is_seen():
    scene = nine_cameras_in_ndc()
    views = drawn_views(two_coloured_ball_in_ndc().sampler(), scene, 0.05, 100_000, MeshSettings(views=3))
    normals = np.float32([[0.3, 0.0, 1.0], [-0.3, 0.0, 1.0]])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    for centre, seen in ((-3.0, True), (-3.5, False)):
        colours, count = seen_colours(0.8 * normals + np.float32([0.0, 0.0, centre]), normals, views, 0.05)
        assert ((count > 0) == seen).all()
        if seen:
            np.testing.assert_allclose(colours, [[1, 0, 0], [0, 0, 1]], atol=0.02)


@pytest.fixture(scope='module')
def ball(views) -> trimesh.Trimesh:
    """Textured ball of few faces."""
    plain = trimesh.creation.icosphere(subdivisions=3, radius=RADIUS)
    mesh = coloured_mesh(shell().sampler(), np.float32(plain.vertices), plain.faces, 0.05, AROUND)
    return textured(mesh, np.float32(plain.vertices), 256, views, 0.06)


def test_a_texture_is_where_its_faces_are(ball):
    image = np.asarray(ball.visual.material.baseColorTexture)
    assert image.shape[:2] == (256, 256)
    assert_red_and_blue(ball, np.ones(len(ball.faces), bool), 300)
    assert not image[..., 1].any()  # neither red nor blue has green, also between charts


def test_texels_that_no_view_sees_have_the_colour_of_the_vertices():
    plain = trimesh.creation.icosphere(subdivisions=3, radius=RADIUS)
    plain.visual.vertex_colors = [10, 200, 30, 255]
    mesh = textured(plain, np.float32(plain.vertices), 128, [], 0.06)
    np.testing.assert_array_equal(np.asarray(mesh.visual.material.baseColorTexture)[..., :3].reshape(-1, 3),
                                  np.tile([10, 200, 30], (128 * 128, 1)))
