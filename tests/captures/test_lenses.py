"""lenses.py: camera models, against COLMAP itself, and where a lens is not one-to-one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captured import refused

from nerf.cameras import Cameras
from nerf.captures.colmap_files import NUMBERS
from nerf.captures.lenses import FISHEYE, PARAMETERS, Lens, lens_of, one_to_one_share, with_sound_lenses

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


# Where a lens is one-to-one


def opencv(focal: float = 400.0, size: tuple[int, int] = SIZE, model: str = 'OPENCV', **coefficients) -> Lens:
    return lens_of(model, size, {'fx': focal, 'fy': focal, 'cx': size[0] / 2, 'cy': size[1] / 2} | coefficients)


@pytest.mark.parametrize('k1', [-0.6, -2.0, -45.0])
def test_a_barrel_folds_where_its_radial_function_is_largest(k1):
    radius = np.sqrt(-1.0 / (3.0 * k1))  # r (1 + k1 r^2) has the derivative 0 here
    expected = radius * (1.0 + k1 * radius ** 2) / (500.0 / 400.0)  # the corner is 500 pixels from the middle
    assert one_to_one_share(opencv(k1=k1)) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize('lens', [
    opencv(), opencv(k1=0.3), opencv(focal=2000.0, k1=-0.6), opencv(k1=-0.3, k2=0.1), opencv(size=(80, 60), k1=-1.5),
    opencv(model='FULL_OPENCV', k1=-0.3, k2=0.05, k4=0.02), opencv(model='OPENCV_FISHEYE'),
    opencv(model='OPENCV_FISHEYE', k1=0.02, k2=-0.003, k3=0.001)])
def test_usual_lenses_are_one_to_one(lens):
    assert one_to_one_share(lens) == 1.0


def test_a_tangential_lens_folds_though_its_radial_function_grows():
    radius = np.linspace(0.0, 2.0, 1000)
    assert (1 + 3 * -44.85 * radius ** 2 + 5 * 1017.4 * radius ** 4 > 0).all()
    radial, tangential = (opencv(k1=-44.85, k2=1017.4, **more) for more in ({}, {'p1': 0.62, 'p2': 0.94}))
    assert one_to_one_share(radial) == 1.0
    assert one_to_one_share(tangential) < 0.2
    # with p1 alone, along y: y (1 + 3 p1 y) is largest in size at y = -1 / (6 p1)
    assert 0.95 < one_to_one_share(opencv(p1=0.5)) / (1 / (12 * 0.5) / (300.0 / 400.0)) < 1.001  # less far aslant


@pytest.mark.parametrize(('coefficients', 'focal', 'reached'), [
    ({'k4': 5.0}, 200.0, 1 / (2 * np.sqrt(5.0))),  # r / (1 + 5 r^2) is largest here, and then it falls
    ({'k1': 0.6, 'k4': 5.0}, 20.0, 0.12 * np.tan(np.radians(89.0)))])  # it grows, but no ray from ahead gets there
def test_a_lens_that_never_reaches_the_border_is_as_good_as_folded(coefficients, focal, reached):
    lens = opencv(focal, model='FULL_OPENCV', **coefficients)
    assert one_to_one_share(lens) == pytest.approx(reached / (500.0 / focal), rel=5e-2)


@pytest.mark.parametrize(('name', 'power'), [('k1', 2), ('k2', 4), ('k3', 6), ('k4', 8)])
def test_a_fisheye_folds_where_its_angle_no_longer_grows(name, power):
    value, focal = -0.1, 200.0
    angle = (-1.0 / ((power + 1) * value)) ** (1 / power)
    expected = angle * (1.0 + value * angle ** power) / (500.0 / focal)
    lens = opencv(focal, model='OPENCV_FISHEYE', **{name: value})
    assert one_to_one_share(lens) == pytest.approx(expected, rel=2e-3)


def test_a_line_names_lenses_that_fold_and_those_of_no_use_are_left_out(capsys):
    good, bent, wild = opencv(), opencv(k1=-0.3), opencv(k1=-45.0)
    assert with_sound_lenses('scene', 'abc', [good, good, good]) == [0, 1, 2]
    assert capsys.readouterr().err == ''
    assert with_sound_lenses('scene', 'abcd', [good, bent, wild, bent]) == [0, 1, 3]
    left_out, warned = capsys.readouterr().err.splitlines()
    assert left_out.startswith('warning: scene: the lens of 1 of 4 photographs, c for one (k1 -45)')
    assert 'left out' in left_out
    assert warned.startswith('warning: scene: the lens of 2 of 4 photographs, b for one (k1 -0.3)')
    assert '56% of the way' in warned
    refused(lambda: with_sound_lenses('scene', 'ab', [wild, wild]), '2 of 2 photographs', 'k1 -45', 'undistort')


@pytest.mark.parametrize(('values', 'size', 'unusual'), [
    ('700 700 400 300', SIZE, False), ('110 110 400 300', SIZE, False), ('100 100 400 300', SIZE, True),
    ('700 700 400 300', (1600, 1200), True), ('700 700 800 600', SIZE, True), ('0.9 0.9 0.5 0.5', SIZE, True),
    ('700 700 250 410', SIZE, False), ('700 700 400 430', SIZE, True)])
def test_lenses_for_another_size_get_a_line(values, size, unusual, capsys):
    lens = lens_of('PINHOLE', size, dict(zip(PARAMETERS['PINHOLE'], map(float, values.split()))))
    usual = lens_of('PINHOLE', SIZE, {'fx': 700.0, 'fy': 700.0, 'cx': 400.0, 'cy': 300.0})
    assert with_sound_lenses('scene', ['a.png', 'b.png'], [usual, lens]) == [0, 1]
    fx, fy, cx, cy = values.split()
    assert capsys.readouterr().err == unusual * (
        'warning: scene: the focal length or principal point of 1 of 2 photographs, b.png for one, is unusual for its '
        f'size, {size[0]}x{size[1]}: fx {fx}, fy {fy}, cx {cx}, cy {cy}. If the scene stays blurred, see whether they '
        'are for another size, or shares of a side\n')


def test_a_fisheye_can_see_more_than_half_of_everything(capsys):
    fisheye = lens_of('SIMPLE_FISHEYE', SIZE, {'f': 60.0, 'cx': 400.0, 'cy': 300.0})
    assert with_sound_lenses('scene', ['a.png'], [fisheye]) == [0]
    assert not capsys.readouterr().err
