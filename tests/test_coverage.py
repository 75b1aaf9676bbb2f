"""nerf/coverage.py: how much of pixels is covered, by hand, and where something can be, against plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import look_at_origin

from nerf.cameras import Cameras
from nerf.coverage import BRIGHT, EMPTY, OPAQUE, PLAIN, UNKNOWN, covered, has_hull, inside_hull, knows_coverage
from nerf.scene import Images, Scene, blender_scene, centred_intrinsics
from nerf.space import NDC, Bounded, Unbounded

WORDS = {'.': EMPTY, '?': UNKNOWN, '#': OPAQUE}
FOCAL, SIZE = 30.0, (24, 32)


def picture(rows: list[str]) -> np.ndarray:
    """White where there is a dot or o, else green."""
    green = np.array([[letter not in '.o' for letter in row] for row in rows])
    return np.where(green[..., None], np.uint8([10, 200, 30]), np.uint8(255))


def shown(rows: list[str]) -> np.ndarray:
    return np.array([[WORDS[letter] for letter in row] for row in rows], np.int16)


def test_an_alpha_channel_is_taken_as_it_is():
    image = np.full((1, 4, 4), 255, np.uint8)  # white, which then means nothing
    image[0, :, 3] = [0, 1, 254, 255]
    assert covered(image).tolist() == [[EMPTY, 1, 254, OPAQUE]]


def test_white_that_reaches_the_border_is_empty_and_what_is_beside_white_unknown():
    image = picture(['.......',
                     '.#####.',
                     '.#####.',
                     '.#####.',
                     '.#####.',
                     '.......'])
    np.testing.assert_array_equal(covered(image), shown(['.......',
                                                         '.?????.',
                                                         '.?###?.',
                                                         '.?###?.',
                                                         '.?????.',
                                                         '.......']))


def test_white_inside_an_object_and_around_a_corner_is_unknown():
    image = picture(['#######',
                     '#######',
                     '##o####',
                     '#######',
                     '#####o#',
                     '######.'])
    np.testing.assert_array_equal(covered(image), shown(['#######',
                                                         '#???###',
                                                         '#???###',
                                                         '#??????',
                                                         '####???',
                                                         '####??.']))


def test_white_may_be_noisy():
    image = np.full((3, 3, 3), 255, np.uint8)
    image[0, 0], image[1, 1], image[2] = PLAIN, [255, PLAIN, 252], [254, 251, 253]
    assert (covered(image) == EMPTY).all()
    assert (covered(np.full((3, 3, 3), 255, np.uint8)) == EMPTY).all()


def test_bright_is_unknown_unless_a_channel_is_darker():
    image = np.full((5, 5, 3), 100, np.uint8)  # nothing beside white
    image[0, 0], image[2, 2], image[4, 4] = PLAIN - 1, BRIGHT, [255, 255, BRIGHT - 1]
    expected = np.full((5, 5), OPAQUE)
    expected[0, 0] = expected[2, 2] = UNKNOWN
    np.testing.assert_array_equal(covered(image), expected)


def scene_of(alphas: np.ndarray, poses: np.ndarray, focal: float = FOCAL, **changes) -> Scene:
    """Images [N, H, W] of alpha alone, in black; all but the last are trained on."""
    n, height, width = alphas.shape
    pixels = np.zeros((n, height, width, 4), np.uint8)
    pixels[..., 3] = alphas
    cameras = Cameras.of_one_kind(poses[:, :3], centred_intrinsics(height, width, focal), height, width)
    scene = Scene(Images.of_one_size(pixels), cameras, cameras, Bounded(2.0, 6.0), white_bkgd=True,
                  i_train=np.arange(n - 1), i_val=np.array([n - 1]), i_test=np.array([n - 1]))
    return replace(scene, **changes)


def at_origin(alpha: np.ndarray, focal: float = FOCAL) -> Scene:
    """One training camera at the origin that looks along -z, and one with an empty image that is not trained on."""
    return scene_of(np.stack([alpha, np.zeros_like(alpha)]), np.eye(4)[None].repeat(2, 0), focal)


def one_pixel(row: int, column: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    alpha = np.zeros(size, np.uint8)
    alpha[row, column] = 1
    return alpha


def point_at(row: float, column: float, depth: float) -> torch.Tensor:
    """[1, 3]: what the camera at the origin sees at a place in its image."""
    return torch.tensor([[(column - 16.0) / FOCAL * depth, (12.0 - row) / FOCAL * depth, -depth]])


# The visual hull: which scenes have one


def test_a_scene_has_a_hull_where_some_training_pixel_is_transparent():
    clear, full = np.zeros((1, *SIZE), np.uint8), np.full((1, *SIZE), 255, np.uint8)
    poses = np.eye(4)[None].repeat(3, 0)
    one_hole = full.copy()
    one_hole[0, 3, 4] = 0
    assert has_hull(scene_of(np.concatenate([full, one_hole, full]), poses))
    assert not has_hull(scene_of(np.concatenate([full, full, clear]), poses))  # the last is not trained on
    almost = np.full((1, *SIZE), 1, np.uint8)
    assert not has_hull(scene_of(np.concatenate([almost, almost, full]), poses))


def test_closed_scenes_and_those_with_distortion_without_alpha_or_not_on_white_have_no_hull():
    scene = at_origin(one_pixel(3, 4))
    assert has_hull(scene)
    for space in (NDC(), Unbounded(2.0, 6.0)):
        assert not has_hull(replace(scene, space=space))
    assert not has_hull(replace(scene, cameras=replace(scene.cameras, distortion=torch.zeros(2, 8))))
    assert not has_hull(replace(scene, images=Images(scene.images.pixels[:, :3], scene.images.sizes)))
    assert not has_hull(replace(scene, white_bkgd=False))


def test_coverage_is_known_where_pictures_on_white_have_empty_pixels_and_others():
    scene = at_origin(one_pixel(3, 4))
    assert knows_coverage(scene)
    assert knows_coverage(replace(scene, space=NDC()))
    assert not knows_coverage(replace(scene, white_bkgd=False))
    masks = np.ones(len(scene.images.pixels), bool)
    assert not knows_coverage(replace(scene, images=replace(scene.images, masks=masks)))
    for alpha in (0, 1, 255):
        assert not knows_coverage(at_origin(np.full(SIZE, alpha, np.uint8)))


# What is inside


def test_points_on_the_ray_of_an_opaque_pixel_are_inside_and_those_beside_it_are_not():
    scene = at_origin(one_pixel(5, 20))
    for depth in (0.5, 3.0, 40.0):
        assert inside_hull(scene, point_at(5, 20, depth), 1e-6).all()
        assert inside_hull(scene, point_at(5.4, 19.6, depth), 1e-6).all()
        for row, column in ((5, 23), (5, 17), (2, 20), (8, 20), (20, 5)):
            assert not inside_hull(scene, point_at(row, column, depth), 1e-6).any()


def test_rays_through_centres_carve_half_a_pixel_away():
    scene = at_origin(one_pixel(5, 20)).rays_within(0.5)
    for row, column, inside in ((5.5, 20.5, True), (7.9, 20.5, True), (2.9, 20.5, False), (8.1, 20.5, False),
                                (5.5, 22.9, True), (5.5, 17.9, False)):  # a point reaches two pixels
        assert inside_hull(scene, point_at(row, column, 3.0), 1e-6).item() == inside


def test_points_that_a_camera_does_not_see_are_not_outside_for_it():
    scene = at_origin(one_pixel(5, 20))
    for row, column in ((-2, 3), (26, 3), (4, -2), (4, 34)):
        assert inside_hull(scene, point_at(row, column, 3.0), 1e-6).all()
    assert inside_hull(scene, -point_at(15, 9, 3.0), 1e-6).all()  # behind it
    assert inside_hull(scene, torch.zeros(1, 3), 1e-6).all()  # at its centre
    assert not inside_hull(scene, point_at(23, 31, 3.0), 1e-6).any()


def test_a_ball_around_a_camera_is_inside_and_huge_in_its_image():
    scene = at_origin(one_pixel(0, 0))
    points = torch.cat([point_at(20, 30, depth) for depth in (0.01, 0.29, 0.31, 0.6, 50.0)])
    assert inside_hull(scene, points, 0.3).tolist() == [True, True, True, True, False]


def test_images_that_are_not_trained_on_carve_nothing():
    full = np.full(SIZE, 255, np.uint8)
    scene = at_origin(full)
    assert inside_hull(scene, point_at(5, 5, 3.0), 0.01).all()
    carving = replace(scene, i_train=np.array([0, 1]))
    assert not inside_hull(carving, point_at(5, 5, 3.0), 0.01).any()


def test_each_training_camera_can_carve_alone_and_no_points_are_no_answer():
    full, empty = np.full(SIZE, 255, np.uint8), np.zeros(SIZE, np.uint8)
    points = torch.cat([point_at(5, 5, 3.0), point_at(20, 28, 4.0)])
    poses = np.eye(4)[None].repeat(4, 0)
    for i in range(3):
        scene = scene_of(np.stack([empty if i == n else full for n in range(4)]), poses)
        assert not inside_hull(scene, points, 0.01).any()
        assert inside_hull(scene, points[:0], 0.01).shape == (0,)


@pytest.mark.parametrize(('focal', 'share'), [(8.0, 0.15), (16.0, 0.12), (30.0, 0.06), (90.0, 0.005)])
def test_a_ball_that_is_outside_reaches_into_no_opaque_pixel(focal, share):
    """Points on the balls, projected one by one, by wide and narrow lenses; some are around or behind a camera."""
    rng = np.random.default_rng(round(focal))
    alphas = np.uint8(255) * (rng.random((5, *SIZE)) < share).astype(np.uint8)
    poses = np.stack([look_at_origin(azimuth, 0.4, 2.2) for azimuth in (0.0, 1.0, 2.5, 4.0, 5.0)])
    scene, radius = scene_of(alphas, poses, focal), 0.12
    points = rng.uniform(-1.5, 1.5, (800, 3))
    inside = inside_hull(scene, torch.from_numpy(points).float(), radius).numpy()
    on_ball = rng.normal(size=(300, 3))
    on_ball *= radius / np.linalg.norm(on_ball, axis=1, keepdims=True)
    for point in points[~inside]:
        unseen = []
        for i in range(4):
            places = np.concatenate([[point], point + on_ball])
            x, y, z = np.linalg.inv(poses[i])[:3] @ np.column_stack([places, np.ones(len(places))]).T
            column, row = np.round(focal * x / -z + 16).astype(int), np.round(12 - focal * y / -z).astype(int)
            within = (z < 0) & (column >= 0) & (column < 32) & (row >= 0) & (row < 24)
            unseen.append(within[0] and (alphas[i, row[within], column[within]] == 0).all())
        assert any(unseen)
    assert 20 < inside.sum() < 780


def test_a_ball_is_inside_where_every_camera_that_sees_its_centre_has_an_opaque_pixel_near_it():
    rng = np.random.default_rng(0)
    alphas = np.uint8(255) * (rng.random((4, *SIZE)) < 0.01).astype(np.uint8)
    poses = np.stack([look_at_origin(azimuth, 0.4, 4.0) for azimuth in (0.0, 1.0, 2.5, 4.0)])
    points, radius, found = rng.uniform(-1.8, 1.8, (1500, 3)), 0.15, []
    for point in points:
        far_from_all = False
        for i in range(3):
            x, y, z = np.linalg.inv(poses[i])[:3] @ np.append(point, 1.0)
            column, row = round(FOCAL * x / -z + 16), round(12 - FOCAL * y / -z)
            if not (0 <= column < 32 and 0 <= row < 24):
                continue
            reach = 1 + math.ceil(FOCAL * radius * math.sqrt(x * x + y * y + z * z) / (z * (z + radius)))
            window = alphas[i, max(row - reach, 0):row + reach + 1, max(column - reach, 0):column + reach + 1]
            far_from_all |= not window.any()
        found.append(not far_from_all)
    inside = inside_hull(scene_of(alphas, poses), torch.from_numpy(points).float(), radius).numpy()
    assert (inside != found).mean() < 2e-3  # float32 can round to another pixel
    assert 0.05 < inside.mean() < 0.95


def test_the_hull_of_a_ball_seen_from_all_around_holds_it_and_little_more(tiny_scene, tmp_path):
    folder = tiny_scene(tmp_path / 'ball', size=64, counts=(12, 1, 1))
    scene = blender_scene(str(folder), white_bkgd=True, half_res=False, testskip=1)
    assert has_hull(scene)
    radius = 4.0 * math.sin(math.atan(0.3 * 64 / float(scene.cameras.intrinsics[0, 0])))  # of what the images show
    axis = torch.linspace(-1.3, 1.3, 41)
    points = torch.cartesian_prod(axis, axis, axis)
    points = points[points.norm(dim=-1) < 1.3]  # which all cameras see
    inside, distance = inside_hull(scene, points, 0.05), points.norm(dim=-1)
    assert inside[distance < radius].all()
    thinner = inside_hull(scene, points, 1e-6)
    pixel = 4.0 / float(scene.cameras.intrinsics[0, 0])
    around = points[:, 2].abs() < 0.2  # above and below, where no camera is, it has a tip
    assert not thinner[around & (distance > 1.05 * (radius + 2.5 * pixel))].any()
    assert not (thinner & ~inside).any()
    assert thinner.sum() < inside.sum()
