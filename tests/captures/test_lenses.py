"""lenses.py: COLMAP's camera models as our lenses, against COLMAP itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nerf.cameras import Cameras
from nerf.captures.lenses import FISHEYE, NUMBERS, PARAMETERS, lens_of

VALUES = {'f': 700.0, 'fx': 700.0, 'fy': 680.0, 'cx': 410.0, 'cy': 290.0, 'k1': -0.11, 'k2': 0.04, 'p1': 0.003,
          'p2': -0.002, 'k3': -0.015, 'k4': 0.02, 'k5': -0.01, 'k6': 0.004}
SIZE = WIDTH, HEIGHT = 800, 600


@pytest.fixture(scope='module')
def pycolmap():
    return pytest.importorskip('pycolmap')


def rays_of(lens, pixels: np.ndarray) -> np.ndarray:
    """[M, 3] float64 directions through pixels [M, 2] (x, y) of a camera at the origin, in COLMAP's axes."""
    camera = Cameras(torch.eye(4)[None, :3], torch.tensor(lens.intrinsics)[None], torch.tensor([[HEIGHT, WIDTH]]),
                     torch.tensor(lens.distortion, dtype=torch.float32)[None], torch.tensor([lens.fisheye]))
    column, row = torch.tensor(pixels.T)
    _, directions = camera.rays(torch.zeros(len(pixels), dtype=torch.int64), row, column)
    return directions.double().numpy() * [1, -1, -1]


@pytest.mark.parametrize('model', PARAMETERS)
def test_points_are_seen_where_colmap_sees_them(pycolmap, model):
    numbers = [VALUES[name] for name in PARAMETERS[model]]
    camera = pycolmap.Camera(model=model, width=WIDTH, height=HEIGHT, params=numbers)
    lens = lens_of(model, SIZE, dict(zip(PARAMETERS[model], numbers)))
    x, y = np.meshgrid(np.linspace(-0.55, 0.55, 9), np.linspace(-0.4, 0.4, 7))
    points = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3) * np.linspace(1.0, 9.0, 63)[:, None]
    pixels = camera.img_from_cam(points)
    assert np.ptp(pixels, 0).min() > 400  # they are spread over the picture
    assert np.abs(camera.img_from_cam(rays_of(lens, pixels)) - pixels).max() < 1e-3


def test_a_fisheye_sees_as_far_aside_as_with_colmap(pycolmap):
    numbers = [200.0, 210.0, 400.0, 300.0, 0.02, -0.003, 0.001, -0.0002]
    camera = pycolmap.Camera(model='OPENCV_FISHEYE', width=WIDTH, height=HEIGHT, params=numbers)
    lens = lens_of('OPENCV_FISHEYE', SIZE, dict(zip(PARAMETERS['OPENCV_FISHEYE'], numbers)))
    angles = np.radians(np.linspace(-85.0, 85.0, 35))
    points = np.stack([np.sin(angles), 0.1 * np.cos(angles), np.cos(angles)], -1)
    pixels = camera.img_from_cam(points)
    assert np.abs(camera.img_from_cam(rays_of(lens, pixels)) - pixels).max() < 1e-3


def test_models_have_colmaps_numbers_and_parameters(pycolmap):
    ids = pycolmap.CameraModelId.__members__
    for number, name in enumerate(NUMBERS):
        assert int(ids[name]) == number
    for name, parameters in PARAMETERS.items():
        camera = pycolmap.Camera.create_from_model_id(1, ids[name], 100.0, 64, 48)
        ours = [parameter.replace('k1', 'k') if 'k2' not in parameters else parameter for parameter in parameters]
        assert camera.params_info == ', '.join(ours)


def test_parameters_go_where_the_lens_has_them():
    lens = lens_of('FULL_OPENCV', SIZE, VALUES)
    assert lens.intrinsics.tolist() == [700.0, 680.0, 410.0, 290.0]
    assert lens.distortion.tolist() == [-0.11, 0.04, 0.003, -0.002, -0.015, 0.02, -0.01, 0.004]
    assert not lens.fisheye
    lens = lens_of('SIMPLE_RADIAL_FISHEYE', SIZE, {'f': 300.0, 'cx': 32.0, 'cy': 24.0, 'k1': 0.1})
    assert lens.intrinsics.tolist() == [300.0, 300.0, 32.0, 24.0]
    assert lens.distortion.tolist() == [0.1, 0, 0, 0, 0, 0, 0, 0]
    assert lens.fisheye
    assert FISHEYE.keys() < PARAMETERS.keys()


@pytest.mark.parametrize(('name', 'value'), [
    ('fx', 0.0), ('fy', -700.0), ('fx', np.nan), ('cx', np.inf), ('k1', 1e8), ('k1', np.nan)])
def test_a_value_that_no_camera_has_is_named(name, value):
    with pytest.raises(ValueError, match=f'{name} is'):
        lens_of('OPENCV', SIZE, VALUES | {name: value})
