"""nerf/cameras.py: rays of pinholes, lenses and fisheyes, against get_rays and OpenCV's published formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import forward_cameras, turn
from test_run_nerf_helpers import assert_golden, rand, seeded

from nerf.cameras import Cameras, fisheye_direction, same_rays, single_rays_agree, undistorted
from nerf.runtime.errors import UserError
from nerf.scene import blender_scene, llff_scene
from run_nerf_helpers import get_rays

H, W = 60, 80
FX, FY, CX, CY = 70.0, 72.0, 41.5, 28.25
K = np.array([[FX, 0.0, CX], [0.0, FY, CY], [0.0, 0.0, 1.0]])

LENSES = {  # k1, k2, p1, p2, k3, k4, k5, k6
    'barrel': (-0.35, 0.12, 2e-3, -1e-3, -0.01, 0.0, 0.0, 0.0),
    'pincushion': (0.4, 0.15, -1e-3, 2e-3, 0.05, 0.0, 0.0, 0.0),
    'moustache': (-0.2, 0.25, 0.0, 0.0, -0.05, 0.0, 0.0, 0.0),
    'tangential': (0.0, 0.0, 0.02, -0.015, 0.0, 0.0, 0.0, 0.0),
    'rational': (0.3, 0.1, 1e-3, -5e-4, 0.02, 0.6, 0.2, 0.03),
    'phone': (0.0578, -0.0805, -0.000983, 0.00022, 0.0, 0.0, 0.0, 0.0),
}
FISHEYES = {'equidistant': (0.0, 0.0, 0.0, 0.0), 'weak': (0.02, -0.005, 0.002, -0.0005),
            'barrel': (-0.04, 0.01, -0.006, 0.001), 'pincushion': (0.08, 0.02, -0.003, 0.001)}
every_lens = pytest.mark.parametrize('lens', LENSES.values(), ids=LENSES)
every_fisheye = pytest.mark.parametrize('lens', FISHEYES.values(), ids=FISHEYES)


def opencv_lens(points: np.ndarray, lens) -> np.ndarray:
    """Where a lens puts points [..., 2], as OpenCV's documentation has it; both in focal lengths from the centre."""
    k1, k2, p1, p2, k3, k4, k5, k6 = lens
    x, y = np.moveaxis(points, -1, 0)
    r2 = x ** 2 + y ** 2
    factor = (1 + k1 * r2 + k2 * r2 ** 2 + k3 * r2 ** 3) / (1 + k4 * r2 + k5 * r2 ** 2 + k6 * r2 ** 3)
    return np.stack([x * factor + 2 * p1 * x * y + p2 * (r2 + 2 * x ** 2),
                     y * factor + p1 * (r2 + 2 * y ** 2) + 2 * p2 * x * y], -1)


def opencv_fisheye(directions: np.ndarray, lens) -> np.ndarray:
    """Where a fisheye puts directions [..., 3] (right, down, forward); in focal lengths from the centre."""
    k1, k2, k3, k4 = lens
    across = np.hypot(directions[..., 0], directions[..., 1])
    angle = np.arctan2(across, directions[..., 2])
    bent = angle * (1 + k1 * angle ** 2 + k2 * angle ** 4 + k3 * angle ** 6 + k4 * angle ** 8)
    return directions[..., :2] * (bent / np.maximum(across, 1e-12))[..., None]


def pixels_of(bent: np.ndarray) -> np.ndarray:
    """[..., 2]: column and row of places in focal lengths from the centre."""
    return bent * [FX, FY] + [CX, CY]


def cameras_with(lens=None, fisheye=False, count=1, size=(H, W)) -> Cameras:
    """The same camera at several places."""
    cameras = Cameras.of_one_kind(forward_cameras(count), K, *size)
    if lens is None:
        return cameras
    lens = lens if len(lens) == 8 else (*lens[:2], 0.0, 0.0, *lens[2:], 0.0, 0.0)
    return Cameras(cameras.poses, cameras.intrinsics, cameras.sizes, torch.tensor([lens] * count),
                   torch.tensor([True] * count) if fisheye else None)


def in_camera(cameras: Cameras, view: int, directions: torch.Tensor) -> np.ndarray:
    """World directions [..., 3] in OpenCV's axes of the camera: right, down, forward."""
    return directions.double().numpy() @ cameras.poses[view, :, :3].double().numpy() * [1, -1, -1]


def grid() -> np.ndarray:
    """[H, W, 2]: column and row of each pixel."""
    return np.stack(np.meshgrid(np.arange(W), np.arange(H)), -1).astype(float)


# Pinholes


def test_rays_of_pinholes_are_those_of_get_rays_bit_for_bit():
    cameras = cameras_with(count=3)
    expected = [get_rays(H, W, K, pose) for pose in cameras.poses]
    for view in range(3):
        for ours, theirs in zip(cameras.view_rays(view), expected[view]):
            assert ours.dtype == torch.float32
            assert torch.equal(ours, theirs)
    view, row, column = (torch.randint(high, (2, 50), generator=seeded(i)) for i, high in enumerate((3, H, W)))
    origins, directions = cameras.rays(view, row, column)
    assert origins.shape == directions.shape == (2, 50, 3)
    for ours, i in ((origins, 0), (directions, 1)):
        whole = torch.stack([pair[i] for pair in expected])
        assert torch.equal(ours, whole[view, row, column])


def test_as_shipped_single_rays_agree_with_those_of_whole_views():
    assert single_rays_agree()
    cameras = cameras_with(count=1)
    origins, directions = cameras.view_rays(0)
    assert same_rays((origins, directions), (origins, directions + 1e-6))
    assert not same_rays((origins, directions), (origins, directions + 1e-3))
    assert not same_rays((origins, directions), (origins[1:], directions[1:]))


def test_a_view_is_a_pinholes_where_its_lens_distorts_nothing():
    assert cameras_with().is_pinhole(0)
    assert [mixed().is_pinhole(view) for view in range(4)] == [True, False, False, False]
    assert not cameras_with(FISHEYES['equidistant'], fisheye=True).is_pinhole(0)


def test_the_matrix_of_a_view_has_its_intrinsics_and_the_place_of_rays_in_pixels():
    cameras = cameras_with(count=2)
    np.testing.assert_allclose(cameras.matrix(1), K)
    np.testing.assert_allclose(replace(cameras, within=0.5).matrix(0), K - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    assert cameras.matrix(torch.zeros(3, 4, dtype=torch.int64)).shape == (3, 4, 3, 3)


def test_rays_through_centres_are_those_of_a_principal_point_half_a_pixel_away_and_stay_so():
    corner = cameras_with(count=2)
    centre = replace(corner, within=0.5)
    moved = replace(corner, intrinsics=corner.intrinsics - torch.tensor([0.0, 0.0, 0.5, 0.5]))
    for changed in (centre, centre.take([0, 1]), centre.to(torch.device('cpu'))):
        for ours, theirs in zip(changed.view_rays(1), moved.view_rays(1)):
            torch.testing.assert_close(ours, theirs)
    # The middle of a view of half the size is where it is in the whole view: between four pixels of both.
    for cameras in (centre, centre.scaled(2)):
        height, width = cameras.size(0)
        directions = cameras.view_rays(0)[1]
        around = directions[height // 2 - 1:height // 2 + 1, width // 2 - 1:width // 2 + 1].mean((0, 1))
        torch.testing.assert_close(around, centre.view_rays(0)[1].mean((0, 1)), rtol=0, atol=1e-5)


def test_a_pinhole_beside_lenses_keeps_its_rays_bit_for_bit():
    cameras = mixed()
    for ours, theirs in zip(cameras.view_rays(0), get_rays(H, W, K, cameras.poses[0])):
        assert torch.equal(ours, theirs)


def test_a_view_with_other_intrinsics_and_another_size_has_the_rays_of_its_own():
    one = cameras_with(count=2)
    intrinsics, sizes = one.intrinsics.clone(), one.sizes.clone()
    intrinsics[1] = torch.tensor([9.0, 8.0, 2.25, 3.5], dtype=torch.float64)
    sizes[1] = torch.tensor([7, 5])
    cameras = Cameras(one.poses, intrinsics, sizes)
    other = np.array([[9.0, 0.0, 2.25], [0.0, 8.0, 3.5], [0.0, 0.0, 1.0]])
    assert cameras.size(0) == (H, W)
    assert cameras.size(1) == (7, 5)
    for view, expected in enumerate([get_rays(H, W, K, one.poses[0]), get_rays(7, 5, other, one.poses[1])]):
        for ours, theirs in zip(cameras.view_rays(view), expected):
            assert torch.equal(ours, theirs)


def test_rays_agree_with_the_reference(golden):
    size = int(golden['rays_H']), int(golden['rays_W'])
    cameras = Cameras.of_one_kind(golden['rays_c2w'][None], golden['rays_K'], *size)
    for ours, key in zip(cameras.view_rays(0), ('rays_o', 'rays_d')):
        assert_golden(ours, golden[key])


@pytest.mark.parametrize('kind', ['lego', 'lego_half', 'fern', 'fern_spherify'])
def test_rays_of_scenes_are_those_of_the_references_cameras(golden, shared, kind):
    folder = shared / 'data' / ('nerf_synthetic/lego' if 'lego' in kind else 'nerf_llff_data/fern')
    if not folder.is_dir():
        pytest.skip(f'needs {folder}')
    if 'lego' in kind:
        scene = blender_scene(str(folder), True, kind == 'lego_half', 8)
        poses, path = golden['lego_poses'], golden['lego_render_poses']
        height, width, focal = golden[f'{kind}_hwf']
    else:
        scene = llff_scene(str(folder), False, 8, kind == 'fern_spherify', 8, kind == 'fern', unbounded=False)
        poses, path = golden[f'{kind}_poses'], golden[f'{kind}_render_poses']
        height, width, focal = poses[0, :, 4]
    height, width = int(height), int(width)
    row, column = np.mgrid[:height, :width]
    here = np.stack([(column - width / 2) / focal, -(row - height / 2) / focal, -np.ones((height, width))], -1)
    for cameras, expected in ((scene.cameras, poses), (scene.render_cameras, path)):
        assert len(cameras) == len(expected)
        for view in (0, len(expected) - 1):
            origins, directions = cameras.view_rays(view)
            np.testing.assert_allclose(directions, here @ expected[view, :3, :3].T, rtol=0, atol=1e-5)
            np.testing.assert_allclose(origins[3, 4], expected[view, :3, 3], rtol=0, atol=1e-5)
            assert torch.equal(origins, origins[:1, :1].expand_as(origins))


# Lenses


def assert_seen_in_their_pixels(cameras: Cameras, view: int, lens, fisheye: bool) -> None:
    """Each pixel's ray, bent by OpenCV's formulas, comes out in that pixel."""
    _, directions = cameras.view_rays(view)
    here = in_camera(cameras, view, directions)
    bent = opencv_fisheye(here, lens) if fisheye else opencv_lens(here[..., :2] / here[..., 2:], lens)
    assert np.abs(pixels_of(bent) - grid()).max() < 1e-3


@every_lens
def test_the_ray_of_each_pixel_is_bent_back_into_it_by_the_lens(lens):
    cameras = cameras_with(lens, count=2)
    straight = cameras_with(count=2).view_rays(1)[1]
    origins, directions = cameras.view_rays(1)
    assert_seen_in_their_pixels(cameras, 1, lens, False)
    assert (in_camera(cameras, 1, directions)[..., 2] == pytest.approx(1.0, abs=1e-6))  # length along the axis
    assert torch.equal(origins, cameras.poses[1, :, 3].expand(H, W, 3))
    assert 70 * (directions - straight).norm(dim=-1).max() > 0.2  # pixels by which the lens moves a ray


@every_lens
@pytest.mark.parametrize('scale', [1, 20])
def test_known_points_come_back_from_where_the_lens_puts_them(lens, scale):
    cameras = cameras_with(lens)
    cameras = Cameras(cameras.poses, scale * cameras.intrinsics, scale * cameras.sizes, cameras.distortion)
    points = np.stack(np.meshgrid(np.linspace(-0.8, 0.8, 41), np.linspace(-0.6, 0.6, 31)), -1)
    column, row = torch.from_numpy(scale * np.moveaxis(pixels_of(opencv_lens(points, lens)), -1, 0))
    _, directions = cameras.rays(torch.zeros(31, 41, dtype=torch.int64), row, column)
    here = in_camera(cameras, 0, directions)
    assert np.abs((here[..., :2] / here[..., 2:] - points) * [scale * FX, scale * FY]).max() < 1e-3


@pytest.mark.parametrize('share', [0.5, 0.9, 0.99])
def test_a_strong_barrel_comes_back_up_to_near_where_it_folds_over(share):
    k1 = -0.3
    fold = (1 / (3 * -k1)) ** 0.5  # r (1 + k1 r^2) has its maximum there
    angle = np.linspace(0, 2 * np.pi, 33)
    points = share * fold * np.stack([np.cos(angle), np.sin(angle)], -1)
    lens = (k1, *[0.0] * 7)
    goal = torch.from_numpy(opencv_lens(points, lens))
    x, y = undistorted(goal[:, 0], goal[:, 1], torch.tensor(lens, dtype=torch.float64))
    np.testing.assert_allclose(torch.stack([x, y], -1), points, rtol=0, atol=1e-6)


@every_fisheye
def test_the_ray_of_each_pixel_is_bent_back_into_it_by_the_fisheye(lens):
    cameras = cameras_with(lens, fisheye=True, count=2)
    directions = cameras.view_rays(1)[1]
    assert_seen_in_their_pixels(cameras, 1, lens, True)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(H, W))


@every_fisheye
def test_directions_up_to_85_degrees_off_the_axis_of_a_fisheye_come_back(lens):
    cameras = cameras_with(lens, fisheye=True)
    angle, turned = np.meshgrid(np.radians(np.linspace(0, 85, 35)), np.linspace(0, 2 * np.pi, 24))
    known = np.stack([np.sin(angle) * np.cos(turned), np.sin(angle) * np.sin(turned), np.cos(angle)], -1)
    column, row = torch.from_numpy(np.moveaxis(pixels_of(opencv_fisheye(known, lens)), -1, 0))
    _, directions = cameras.rays(torch.zeros(24, 35, dtype=torch.int64), row, column)
    assert np.abs((in_camera(cameras, 0, directions) - known) * FX).max() < 1e-3


def test_a_fisheye_sees_behind_itself():
    direction = fisheye_direction(torch.tensor(0.0), torch.tensor(2.0), torch.zeros(8))
    assert torch.stack(direction).tolist() == pytest.approx([0.0, np.sin(2.0), np.cos(2.0)], abs=1e-6)


def test_the_middle_of_a_fisheye_looks_along_its_axis():
    cameras = cameras_with(FISHEYES['weak'], fisheye=True)
    _, direction = cameras.rays(torch.tensor(0), torch.tensor(CY), torch.tensor(CX))
    torch.testing.assert_close(direction, -cameras.poses[0, :, 2])


# Several kinds in one structure


def mixed() -> Cameras:
    """A pinhole, two lenses and a fisheye."""
    kinds = [cameras_with((0.0,) * 8), cameras_with(LENSES['barrel']), cameras_with(LENSES['rational']),
             cameras_with(FISHEYES['barrel'], fisheye=True)]
    return Cameras(torch.from_numpy(forward_cameras(4)).float(), torch.cat([one.intrinsics for one in kinds]),
                   torch.cat([one.sizes for one in kinds]), torch.cat([one.distortion for one in kinds]),
                   torch.tensor([False, False, False, True]))


def test_each_view_of_a_mixture_has_its_own_lens():
    cameras = mixed()
    for view, lens in enumerate([(0.0,) * 8, LENSES['barrel'], LENSES['rational']]):
        assert_seen_in_their_pixels(cameras, view, lens, False)
    assert_seen_in_their_pixels(cameras, 3, FISHEYES['barrel'], True)
    views = [cameras.view_rays(view) for view in range(4)]
    view, row, column = (torch.randint(high, (200,), generator=seeded(i)) for i, high in enumerate((4, H, W)))
    for ours, i in zip(cameras.rays(view, row, column), (0, 1)):
        assert torch.equal(ours, torch.stack([pair[i] for pair in views])[view, row, column])


def every_part(cameras: Cameras) -> list[torch.Tensor]:
    return [cameras.poses, cameras.intrinsics, cameras.sizes, cameras.distortion, cameras.fisheye]


@pytest.mark.parametrize('index', [[2, 0, 2], np.array([3]), torch.tensor([1, 3]), []])
def test_take_gives_the_cameras_asked_for_in_that_order(index):
    cameras = mixed()
    taken = cameras.take(index)
    assert len(taken) == len(index)
    for ours, whole in zip(every_part(taken), every_part(cameras)):
        assert ours.dtype == whole.dtype
        assert torch.equal(ours, whole[[int(i) for i in index]])
    plain = cameras_with(count=3).take([1])
    assert plain.distortion is None
    assert plain.fisheye is None


def test_posed_moves_the_first_camera():
    poses = forward_cameras(5)
    cameras = mixed().take([3, 0]).posed(poses)
    assert len(cameras) == 5
    assert np.array_equal(cameras.poses, poses.astype(np.float32))
    for view in range(5):
        assert_seen_in_their_pixels(cameras, view, FISHEYES['barrel'], True)


def test_to_the_same_device_changes_nothing():
    cameras = mixed().to(torch.device('cpu'))
    assert cameras.device == torch.device('cpu')
    assert all(torch.equal(ours, whole) for ours, whole in zip(every_part(cameras), every_part(mixed())))


@pytest.mark.parametrize('factor', [2, 3, 7])
def test_scaled_views_show_the_same_field_of_view(factor):
    cameras, small = mixed(), mixed().scaled(factor)
    height, width = H // factor, W // factor
    assert small.sizes.tolist() == [[height, width]] * 4
    assert torch.equal(small.distortion, cameras.distortion)
    assert torch.equal(small.poses, cameras.poses)
    for view in range(4):
        row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
        there = (torch.full_like(row, view), row * (H / height), column * (W / width))  # of the full size
        for ours, theirs in zip(small.view_rays(view), cameras.rays(*there)):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize('factor', [0, 1])
def test_a_factor_of_0_or_1_leaves_the_views_as_they_are(factor):
    for ours, whole in zip(every_part(mixed().scaled(factor)), every_part(mixed())):
        assert torch.equal(ours, whole)


def of_sizes(*sizes: tuple[int, int]) -> Cameras:
    cameras = cameras_with(count=len(sizes))
    return Cameras(cameras.poses, cameras.intrinsics, torch.tensor(sizes))


def test_sizes_that_differ_are_scaled_each():
    small = of_sizes((60, 80), (41, 20)).scaled(4)
    assert small.sizes.tolist() == [[15, 20], [10, 5]]
    np.testing.assert_allclose(small.intrinsics[0], [FX / 4, FY / 4, CX / 4, CY / 4], rtol=1e-12)
    np.testing.assert_allclose(small.intrinsics[1], [FX / 4, FY * 10 / 41, CX / 4, CY * 10 / 41], rtol=1e-12)


def test_one_size_is_none_where_sizes_differ():
    assert of_sizes((60, 80), (60, 80)).one_size() == (60, 80)
    assert of_sizes((60, 80)).one_size() == (60, 80)
    assert of_sizes((60, 80), (80, 60)).one_size() is None
    assert of_sizes((60, 80)).take([]).one_size() is None


@pytest.mark.parametrize(('sizes', 'factor', 'named'), [
    ([(60, 80)], 61, '80x60'), ([(60, 80), (10, 90), (5, 5)], 20, '90x10'), ([(60, 3)], 4, '3x60')])
def test_a_factor_that_leaves_nothing_of_a_view_is_an_error_that_names_its_size(sizes, factor, named):
    with pytest.raises(UserError, match=f'render_factor {factor} leaves nothing of {named} pixels') as error:
        of_sizes(*sizes).scaled(factor)
    assert '\n' not in str(error.value)


def test_spread_rays_go_through_pixels_from_corner_to_corner():
    cameras = of_sizes((9, 5), (3, 13))
    for ours, i in zip(cameras.spread_rays(3), (0, 1)):
        assert ours.shape == (2, 9, 3)
        for view in range(2):
            height, width = cameras.size(view)
            whole = cameras.view_rays(view)[i][::(height - 1) // 2, ::(width - 1) // 2]
            assert torch.equal(ours[view], whole.reshape(9, 3))


def test_corner_rays_are_those_of_the_four_corner_pixels():
    cameras = mixed()
    sizes = torch.tensor([[60, 80], [17, 9], [1, 30], [60, 80]])
    cameras = Cameras(cameras.poses, cameras.intrinsics, sizes, cameras.distortion, cameras.fisheye)
    for ours, i in zip(cameras.corner_rays(), (0, 1)):
        assert ours.shape == (4, 4, 3)
        for view in range(4):
            whole = cameras.view_rays(view)[i]
            expected = torch.stack([whole[0, 0], whole[0, -1], whole[-1, 0], whole[-1, -1]])
            assert torch.equal(ours[view], expected)


def test_a_turned_camera_turns_its_rays():
    rotation = turn([1, 2, 3], 50.0)
    poses = np.stack([np.eye(4)[:3], np.column_stack([rotation, [1.0, -2.0, 3.0]])])
    lens = torch.tensor([LENSES['barrel']] * 2)
    cameras = Cameras.of_one_kind(poses, K, H, W)
    cameras = Cameras(cameras.poses, cameras.intrinsics, cameras.sizes, lens)
    (_, still), (origins, turned) = cameras.view_rays(0), cameras.view_rays(1)
    torch.testing.assert_close(turned, (still.double() @ torch.from_numpy(rotation).T).float())
    assert (origins == torch.tensor([1.0, -2.0, 3.0])).all()
    assert (still[0, :, 1] > 0).all()  # the top row looks up
    assert (still[:, 0, 0] < 0).all()  # the left column left


@pytest.mark.parametrize('lens', [*LENSES.values()], ids=LENSES)
def test_undistorting_what_a_lens_made_of_random_points_gives_them_back(lens):
    points = 0.5 * rand(500, 2, low=-1.0, dtype=torch.float64)
    x, y = torch.from_numpy(opencv_lens(points.numpy(), lens)).unbind(-1)
    back = undistorted(x, y, torch.tensor(lens, dtype=torch.float64))
    torch.testing.assert_close(torch.stack(back, -1), points, rtol=0, atol=1e-12)
