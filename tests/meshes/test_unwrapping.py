"""nerf/meshes/unwrapping.py: the layout of a mesh in a texture."""

from __future__ import annotations

import numpy as np
import trimesh

from nerf.meshes.unwrapping import Layout, laid_out


def layout_of(vertices: np.ndarray, faces: np.ndarray, size: int = 512) -> tuple[Layout, np.ndarray]:
    """Layout, and the texels [F] across which a unit is long at each face."""
    layout = laid_out(vertices.astype(np.float32), faces, size)
    np.testing.assert_array_equal(layout.of[layout.faces], faces)
    corners = np.pad(layout.uv[layout.faces] * size, ((0, 0), (0, 0), (0, 1)))
    flat, true = (np.linalg.norm(np.cross(part[:, 1] - part[:, 0], part[:, 2] - part[:, 0]), axis=1)
                  for part in (corners, vertices[faces]))
    return layout, np.sqrt(flat / true)


def own_texel(layout: Layout) -> np.ndarray:
    """Faces [F] bool that have the texel in which their middle lies."""
    column, row = (layout.uv[layout.faces].mean(1) * len(layout.shown)).astype(int).T
    return layout.shown[row, column] == np.arange(len(layout.faces))


def test_the_faces_of_a_ball_have_texels_of_their_own_of_much_the_same_size():
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.5)
    layout, scale = layout_of(ball.vertices, ball.faces)
    assert own_texel(layout).all()
    assert scale.max() < 1.8 * scale.min()  # the face farthest from all axes has a cosine of 0.58
    assert 0.5 < (layout.shown >= 0).mean() < 1.0
    assert len(layout.of) < 1.3 * len(ball.vertices)  # charts are few
    assert 0.0 <= layout.uv.min() + 1e-3 < layout.uv.max() <= 1.0


def test_a_ramp_that_winds_above_itself_is_no_chart_that_shows_its_upper_turn_alone():
    angle, across = np.meshgrid(np.linspace(0.0, 5.0 * np.pi, 121), np.linspace(0.4, 1.0, 5), indexing='ij')
    vertices = np.stack([across * np.cos(angle), across * np.sin(angle), 0.1 * angle], -1).reshape(-1, 3)
    corner = np.arange(120)[:, None] * 5 + np.arange(4)
    faces = np.stack([corner, corner + 5, corner + 6, corner, corner + 6, corner + 1], -1).reshape(-1, 3)
    layout, _ = layout_of(vertices, faces)
    assert own_texel(layout).mean() > 0.98
