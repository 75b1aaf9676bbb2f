"""tests/benchmarks/mesh_pictures.py: meshes are drawn where cameras see them, and compared inside the object."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from mesh_pictures import figures, seen_mesh
from nerf.cameras import Cameras

SIZE = 64


def camera_before(distortion: float = 0.0) -> Cameras:
    """Camera 4 before the origin, that looks along -z, with a principal point beside the middle."""
    pose = torch.eye(4)[:3]
    pose[2, 3] = 4.0
    lens = torch.tensor([[distortion, *[0.0] * 7]]) if distortion else None
    return Cameras(pose[None], torch.tensor([[80.0, 90.0, 30.0, 34.0]]).double(), torch.tensor([[SIZE, SIZE]]), lens,
                   within=0.5)


def square(x: float, y: float, half: float, colour: tuple[int, int, int]) -> trimesh.Trimesh:
    """Square in the plane z = 0."""
    corners = np.array([[x - half, y - half, 0], [x + half, y - half, 0], [x + half, y + half, 0],
                        [x - half, y + half, 0]])
    mesh = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)
    mesh.visual.vertex_colors = np.tile([*colour, 255], (4, 1))
    return mesh


@pytest.mark.parametrize('distortion', [0.0, -0.2])
def test_a_mesh_covers_the_pixels_whose_rays_meet_it(distortion):
    """Rays are those of the camera, in single precision."""
    camera, half = camera_before(distortion), 0.5
    colours, cover = seen_mesh(square(0.4, -0.3, half, (255, 0, 0)), camera)
    origins, directions = camera.view_rays(0)
    met = (origins - origins[..., 2:] / directions[..., 2:] * directions)[..., :2].numpy() - [0.4, -0.3]
    inside = np.abs(met).max(-1) - half
    pixel = 4.0 / 80.0
    np.testing.assert_allclose(cover[inside < -pixel], 1.0)
    np.testing.assert_allclose(cover[inside > 2 * pixel], 0.0)
    np.testing.assert_allclose(colours[inside < -pixel], [[1.0, 0.0, 0.0]] * (inside < -pixel).sum(), atol=1e-6)
    assert (inside < -pixel).sum() > 200


def test_figures_are_of_the_object_and_of_the_mesh(tmp_path):
    """The object is twice as wide as the mesh, and red as the mesh. Around it the photograph is green."""
    camera = replace(camera_before(), intrinsics=torch.tensor([[80.0, 80.0, 32.0, 32.0]]).double())
    target, chosen = np.zeros((SIZE, SIZE, 3)), np.zeros((SIZE, SIZE), bool)
    target[..., 1] = 1.0
    chosen[12:52, 12:52] = True  # half of 40 pixels is 1 at the square's distance
    target[chosen] = [1.0, 0.0, 0.0]
    found = figures(square(0.0, 0.0, 0.5, (255, 0, 0)), [camera], [target], [chosen], tmp_path)
    assert found['object_covered'] == pytest.approx(0.25, abs=0.03)
    assert found['object_psnr'] == pytest.approx(-10.0 * np.log10(0.75 / 3.0), abs=0.2)  # red where black is drawn
    assert found['mesh_psnr'] == pytest.approx(100.0)
    assert found['mesh_covered'] == pytest.approx(400 / SIZE ** 2, abs=0.01)
    assert (tmp_path / '000.png').exists()
