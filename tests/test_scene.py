"""nerf/scene.py: images of any sizes, targets, the box that cameras see, and the checksum by which a run knows it."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import forward_cameras, look_at_origin, turn

from load_blender import pose_spherical
from load_photos import Capture
from nerf.cameras import Cameras
from nerf.contraction import Contraction
from nerf.ray_batcher import RayBatcher
from nerf.scene import Images, Scene, centred_intrinsics, photographs_scene, target_colours
from run_nerf_helpers import ndc_points, ndc_rays

SIZES = [(4, 6), (5, 3), (1, 7)]
OF_FIRST_CHECKPOINTS = 352494364  # the fingerprint of one scene, by the code that wrote them


def random_pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def several_sizes(channels: int = 3) -> list[np.ndarray]:
    return [random_pixels(*size, channels, seed=i) for i, size in enumerate(SIZES)]


def some_masks() -> list[np.ndarray]:
    return [random_pixels(*size, seed=10 + i) > 100 for i, size in enumerate(SIZES)]


# Images


@pytest.mark.parametrize('channels', [3, 4])
def test_images_of_one_size_are_not_copied(channels):
    array = random_pixels(3, 4, 6, channels)
    images = Images.of_one_size(array)
    assert np.shares_memory(images.pixels, array)
    assert images.pixels.shape == (72, channels)
    assert len(images) == 3
    assert images.sizes.tolist() == [[4, 6]] * 3
    assert images.starts.tolist() == [0, 24, 48, 72]
    assert images.masks is None
    for i in range(3):
        assert np.array_equal(images[i], array[i])
        assert np.shares_memory(images[i], array)


@pytest.mark.parametrize('channels', [3, 4])
@pytest.mark.parametrize('masked', [False, True])
def test_images_of_any_size_are_one_list_of_pixels_and_come_out_whole(channels, masked):
    arrays, masks = several_sizes(channels), some_masks()
    images = Images.of_any_size(arrays, masks if masked else None)
    assert len(images) == 3
    assert images.pixels.shape == (24 + 15 + 7, channels)
    assert images.pixels.dtype == np.uint8
    assert images.sizes.tolist() == [list(size) for size in SIZES]
    assert images.starts.tolist() == [0, 24, 39, 46]
    for i, array in enumerate(arrays):
        assert np.array_equal(images[i], array)
        if masked:
            assert np.array_equal(images.masks[images.starts[i]:images.starts[i + 1]].reshape(SIZES[i]), masks[i])
    assert masked or images.masks is None


def test_a_pixels_place_in_the_list_is_row_after_row():
    images = Images.of_any_size(several_sizes())
    assert np.array_equal(images.pixels[24 + 3 * 4 + 2], images[1][4, 2])  # image 1, row 4 of 3 columns, column 2


@pytest.mark.parametrize('index', [[2, 0], np.array([1]), np.array([0, 1, 2]), [1, 1]])
@pytest.mark.parametrize('masked', [False, True])
def test_take_gives_the_images_and_masks_asked_for_in_that_order(index, masked):
    arrays, masks = several_sizes(), some_masks()
    images = Images.of_any_size(arrays, masks if masked else None).take(index)
    assert len(images) == len(index)
    assert images.sizes.tolist() == [list(SIZES[i]) for i in index]
    for n, i in enumerate(index):
        assert np.array_equal(images[n], arrays[i])
    if masked:
        assert np.array_equal(images.masks, np.concatenate([masks[i].ravel() for i in index]))
    else:
        assert images.masks is None


def test_one_size_may_have_masks_too():
    array, masks = random_pixels(2, 4, 6, 3), random_pixels(2, 4, 6) > 100
    images = Images.of_any_size(list(array), list(masks))
    assert np.array_equal(images.masks, masks.ravel())
    assert np.array_equal(images.take([1]).masks, masks[1].ravel())


# Target colours


@pytest.mark.parametrize(('pixel', 'white', 'expected'), [
    ([51, 102, 255], False, [0.2, 0.4, 1.0]), ([51, 102, 255], True, [0.2, 0.4, 1.0]),
    ([51, 102, 255, 0], False, [0.2, 0.4, 1.0]), ([51, 102, 255, 0], True, [1.0, 1.0, 1.0]),
    ([51, 102, 255, 255], True, [0.2, 0.4, 1.0]), ([51, 102, 255, 51], True, [0.84, 0.88, 1.0])])
def test_white_shows_through_what_is_transparent_where_asked(pixel, white, expected):
    colours = target_colours(torch.tensor([[pixel]], dtype=torch.uint8), white)
    assert colours.dtype == torch.float32
    torch.testing.assert_close(colours, torch.tensor([[expected]]))


@pytest.mark.parametrize('white', [False, True])
def test_a_target_is_its_image_at_its_own_size(white):
    images = Images.of_any_size(several_sizes(4))
    scene = a_scene(images, sizes=SIZES, white_bkgd=white)
    for i, size in enumerate(SIZES):
        target, pixels = scene.target(i), images[i].astype(np.float64) / 255
        assert target.shape == (*size, 3)
        assert target.dtype == np.float32
        alpha = pixels[..., 3:] if white else 1.0
        np.testing.assert_allclose(target, pixels[..., :3] * alpha + 1.0 - alpha, rtol=0, atol=1e-6)


# Rays


def a_scene(images: Images | None = None, sizes=None, **changes) -> Scene:
    """Three views; of one size and without masks or distortion where nothing else is said. Two are trained on."""
    images = Images.of_one_size(random_pixels(3, 12, 16, 3)) if images is None else images
    cameras = Cameras.of_one_kind(forward_cameras(3), centred_intrinsics(12, 16, 20.0), 12, 16)
    if sizes is not None:
        cameras = replace(cameras, sizes=torch.tensor(sizes))
    scene = Scene(images=images, cameras=cameras, render_cameras=cameras.take([0]), near=2.0, far=6.0, ndc=False,
                  white_bkgd=False, i_train=np.array([0, 2]), i_val=np.array([1]), i_test=np.array([1]))
    return replace(scene, **changes)


def test_rays_have_the_scenes_bounds_and_stay_in_the_world_without_ndc():
    scene = a_scene()
    origins, directions = scene.cameras.view_rays(1)
    rays = scene.rays(origins, directions)
    assert scene.ndc_camera is None
    assert torch.equal(rays.origins, origins.reshape(-1, 3))
    assert torch.equal(rays.directions, directions.reshape(-1, 3))
    assert (rays.near == 2.0).all()
    assert (rays.far == 6.0).all()
    torch.testing.assert_close(rays.viewdirs.norm(dim=-1), torch.ones(12 * 16))


def test_rays_have_the_bounds_of_their_view_where_it_has_any():
    bounds = torch.tensor([[1.0, 5.0], [2.0, 7.0], [3.0, 9.0]])
    scene = a_scene()
    scene = replace(scene, cameras=replace(scene.cameras, bounds=bounds))
    rays = scene.spread_rays(np.array([2, 0]), 3)
    assert rays.near.tolist() == [[3.0]] * 9 + [[1.0]] * 9
    assert rays.far.tolist() == [[9.0]] * 9 + [[5.0]] * 9
    batcher = RayBatcher(scene, 30, False, 0, 0.5, torch.Generator())
    image, row, column = batcher.pixels(1)
    drawn, _ = batcher.rays(image, row, column)
    assert torch.equal(drawn.near[:, 0], bounds[[0, 2]][image, 0])  # of the training views
    assert torch.equal(drawn.far[:, 0], bounds[[0, 2]][image, 1])
    own = scene.cameras.take([1])
    shown = scene.rays(*own.view_rays(0), own.bounds)
    assert shown.near.tolist() == [[2.0]] * 12 * 16
    assert scene.cameras.posed(forward_cameras(2)).bounds is None  # nobody knows what they see
    assert (scene.rays(*own.view_rays(0)).near == scene.near).all()
    ndc = replace(scene, ndc=True, near=0.0, far=1.0)
    assert (ndc.spread_rays(np.array([2]), 3).near == 0.0).all()


def test_rays_are_in_ndc_where_the_scene_is():
    scene = a_scene(ndc=True, near=0.0, far=1.0)
    assert scene.ndc_camera == (12, 16, 20.0)
    origins, directions = torch.zeros(5, 3), torch.tensor([[0.1, -0.2, -1.0]]).expand(5, 3)
    rays = scene.rays(origins, directions)
    for ours, expected in zip(rays, ndc_rays(12, 16, 20.0, 1.0, origins, directions)):
        torch.testing.assert_close(ours, expected)


# The box


def orbit(poses: np.ndarray | None = None, **changes) -> Scene:
    """Three cameras, of which the last is not a training camera."""
    poses = np.stack([pose_spherical(a, -30.0, 4.0)[:3] for a in (0, 120, 240)]) if poses is None else poses
    cameras = Cameras.of_one_kind(poses, centred_intrinsics(60, 80, 50.0), 60, 80)
    images = Images.of_one_size(np.zeros((len(poses), 60, 80, 3), np.uint8))
    values = dict(images=images, cameras=cameras, render_cameras=cameras, near=2.0, far=6.0, ndc=False,
                  white_bkgd=False, i_train=np.array([0, 1]), i_val=np.array([2]), i_test=np.array([2]))
    return Scene(**values | changes)


def test_the_box_of_cameras_around_the_origin_is_the_cube_inside_them():
    np.testing.assert_allclose(orbit().box(), [[-2, -2, -2], [2, 2, 2]], atol=1e-6)


def test_the_cube_ends_where_the_rays_of_a_training_camera_in_the_mean_begin():
    poses = np.stack([pose_spherical(30.0 * radius, -30.0, radius)[:3] for radius in (3.0, 5.0, 90.0)])
    np.testing.assert_allclose(orbit(poses, near=2.5).box(), [[-1.5] * 3, [1.5] * 3], atol=1e-6)


def test_the_box_of_cameras_whose_rays_begin_behind_the_origin_holds_what_they_see():
    poses = np.eye(4)[None, :3].repeat(3, 0)  # at the origin
    np.testing.assert_allclose(orbit(poses, around=True).box(), orbit(poses, around=False).box())
    np.testing.assert_allclose(orbit(poses).box(), [[-4.8, -29 / 50 * 6, -6], [39 / 50 * 6, 3.6, -2]], rtol=1e-6)


def test_the_box_in_front_of_cameras_holds_the_corners_of_what_they_see():
    shifted = np.eye(4)[None, :3].repeat(3, 0)
    shifted[1, 0, 3], shifted[2, 0, 3] = 0.5, 9.0  # the last is not a training camera
    scene = orbit(poses=shifted.astype(np.float32), around=False)
    # From pixel 0 to pixel 79 and 0 to 59, at depth 6.
    np.testing.assert_allclose(scene.box(), [[-4.8, -29 / 50 * 6, -6], [0.5 + 39 / 50 * 6, 3.6, -2]], rtol=1e-6)


def test_the_box_in_ndc_ends_at_the_farthest_thing():
    shifted = np.eye(4)[None, :3].repeat(3, 0).astype(np.float32)
    scene = orbit(poses=shifted, around=False, ndc=True, near=0.0, far=1.0, farthest=10.0)
    expected = ndc_points(60, 80, 50.0, 1.0, torch.tensor([[-8.0, -29 / 5, -10.0], [39 / 5, 6.0, -1.0]]))
    box = scene.box()
    np.testing.assert_allclose(box[:, 2], [-1.0, 0.8], atol=1e-6)
    np.testing.assert_allclose(box[0, :2], expected[0, :2], atol=1e-6)


def test_the_box_in_ndc_reaches_to_infinity_where_asked():
    shifted = np.eye(4)[None, :3].repeat(3, 0).astype(np.float32)
    box = orbit(poses=shifted, around=False, ndc=True, near=0.0, far=1.0, farthest=10.0).box(to_infinity=True)
    # Seen from the origin a direction has one place in NDC: 2 * 50 / 80 * x / depth and 2 * 50 / 60 * y / depth.
    np.testing.assert_allclose(box, [[-1.0, -29 / 30, -1.0], [39 / 40, 1.0, 1.0]], atol=1e-6)
    world = orbit(poses=shifted, around=False)
    np.testing.assert_array_equal(world.box(to_infinity=True), world.box())


# Scenes without bounds


def test_a_scene_with_bounds_has_no_contraction():
    assert orbit().contraction is None


def test_cameras_around_the_origin_are_just_inside_the_unit_ball():
    poses = np.stack([pose_spherical(30.0 * radius, -30.0, radius)[:3] for radius in (3.0, 5.0, 90.0)])
    centre, radius = orbit(poses, bounded=False).contraction
    assert centre == (0.0, 0.0, 0.0)
    assert radius == pytest.approx(5.05)  # the last is not a training camera


def test_cameras_that_look_forward_have_the_ball_around_their_mean_and_what_is_near_in_it():
    shifted = np.eye(4)[None, :3].repeat(3, 0)
    shifted[:, 0, 3] = 3.0, 4.0, 99.0
    scene = orbit(shifted, around=False, bounded=False)
    assert scene.contraction == Contraction((3.5, 0.0, 0.0), 2.5)  # 0.5 to a camera, 2 to its near bound


def test_the_contracted_box_holds_what_is_seen_up_to_infinity():
    poses = np.eye(4)[None, :3].repeat(3, 0)  # at the origin
    box = orbit(poses, around=False, bounded=False).contracted_box()  # the ball reaches to the near bound, 2

    def edge(*direction: float) -> np.ndarray:
        """Where a ray from the centre is at infinity."""
        return 2.0 * np.array(direction) / np.linalg.norm(direction)
    expected = [edge(-0.8, 0.0, -1.0)[0], edge(0.0, -0.58, -1.0)[1], -2.0], [edge(0.78, 0.0, -1.0)[0],
                                                                              edge(0.0, 0.6, -1.0)[1], 0.0]
    np.testing.assert_allclose(box[:, :2], np.array(expected)[:, :2], atol=0.01)
    assert box[0, 2] == pytest.approx(-2.0, abs=0.01)
    assert box[1, 2] == pytest.approx(-1.0 / np.sqrt(1.0 + 0.8 ** 2 + 0.6 ** 2), abs=0.01)  # a corner's near bound


def test_what_all_cameras_see_is_more_than_the_cube_and_holds_the_views_of_the_render_path_too():
    scene = orbit()
    for cameras in (scene.cameras, scene.render_cameras):
        for i in range(len(cameras)):
            rays = scene.rays(*cameras.view_rays(i))
            for t in (scene.near, 4.0, scene.far):
                points = (rays.origins + t * rays.directions).numpy()
                assert (points >= scene.seen_box()[0] - 1e-5).all()
                assert (points <= scene.seen_box()[1] + 1e-5).all()
    turned = replace(scene, render_cameras=scene.cameras.posed(scene.cameras.poses + torch.tensor([0, 0, 0, 7.0])))
    np.testing.assert_allclose(turned.seen_box()[1], scene.seen_box()[1] + 7.0, atol=1e-5)
    np.testing.assert_allclose(turned.seen_box()[0], scene.seen_box()[0], atol=1e-5)


def test_the_box_holds_what_each_camera_sees_by_its_own_intrinsics_and_size():
    cameras = orbit(np.eye(4)[None, :3].repeat(3, 0)).cameras
    cameras.sizes[1] = torch.tensor([20, 60])
    cameras.intrinsics[1] = torch.tensor([10.0, 50.0, 20.0, 10.0])  # fx, fy, cx, cy: from -2 to 3.9 in x / depth
    cameras.intrinsics[2, 0] = 1.0  # not a training camera
    box = orbit(cameras=cameras, around=False).box()
    np.testing.assert_allclose(box, [[-12, -29 / 50 * 6, -6], [3.9 * 6, 3.6, -2]], rtol=1e-6)


# Scenes of photographs


def a_capture(poses: np.ndarray, sizes=((30, 40),) * 4, **changes) -> Capture:
    everything, generator = np.arange(len(poses)), np.random.default_rng(0)
    intrinsics = np.array([[40.0 + i, 41.0 + i, width / 2, height / 2] for i, (height, width) in enumerate(sizes)])
    capture = Capture(paths=[Path(f'{i}.png') for i in everything],
                      images=[generator.integers(0, 256, (*size, 3), np.uint8) for size in sizes], masks=None,
                      poses=np.asarray(poses, np.float64), intrinsics=intrinsics, distortion=None, fisheye=None,
                      i_train=everything[1:], i_val=everything[:1], i_test=everything[:1])
    return replace(capture, **changes)


def around(count: int = 4) -> np.ndarray:
    return np.stack([look_at_origin(2.0 * np.pi * i / count, 0.4, 8.0)[:3] for i in range(count)])


def in_front(count: int = 4) -> np.ndarray:
    """Cameras side by side that look at a point 6 before them."""
    poses = np.stack([np.eye(4)[:3] for _ in range(count)])
    poses[:, 0, 3] = np.linspace(-1.0, 1.0, count)
    for pose in poses:
        pose[:, :3] = turn([0, 1, 0], np.degrees(np.arctan2(pose[0, 3], 6.0)))
    return poses


def test_photographs_from_all_around_are_a_scene_without_bounds_with_lenses_and_sizes_of_their_own():
    sizes = [(30, 40), (40, 30), (12, 16), (30, 40)]
    lens = np.zeros((4, 8))
    lens[0, 0], lens[2, 3] = -0.1, 0.02
    masks = [np.ones(size, bool) for size in sizes]
    masks[1][:5] = False
    capture = a_capture(around(), sizes, distortion=lens, fisheye=np.array([False, False, True, False]), masks=masks)
    scene = photographs_scene(capture, white_bkgd=False, ndc=True)
    assert (scene.ndc, scene.bounded, scene.around) == (False, False, True)
    assert scene.images.sizes.tolist() == [list(size) for size in sizes]
    assert all(np.array_equal(scene.images[i], image) for i, image in enumerate(capture.images))
    assert np.array_equal(scene.images.masks, np.concatenate([mask.ravel() for mask in masks]))
    assert scene.cameras.sizes.tolist() == [list(size) for size in sizes]
    assert np.array_equal(scene.cameras.intrinsics, capture.intrinsics)
    np.testing.assert_allclose(scene.cameras.distortion, lens, rtol=1e-6)
    assert scene.cameras.fisheye.tolist() == [False, False, True, False]
    np.testing.assert_allclose(scene.cameras.poses, scene.placement.poses, atol=1e-6)
    np.testing.assert_allclose(scene.cameras.poses[:, :, 3].norm(dim=1), 4.0, rtol=1e-4)
    np.testing.assert_allclose(scene.cameras.bounds, scene.placement.bounds, rtol=1e-6)
    assert scene.near == pytest.approx(scene.placement.bounds[:, 0].min())
    assert scene.far == pytest.approx(scene.placement.bounds[:, 1].max())
    assert scene.contraction.centre == (0.0, 0.0, 0.0)
    assert scene.contraction.radius == pytest.approx(4.04, rel=1e-4)
    path = scene.render_cameras
    assert len(path) == 120
    assert path.distortion is None
    assert path.fisheye is None
    assert path.one_size() == (40, 30)  # that of the first training view
    assert path.intrinsics[7].tolist() == capture.intrinsics[1].tolist()
    assert path.bounds is None
    points = np.random.default_rng(0).normal(size=(500, 3))
    known = photographs_scene(replace(capture, points=points), white_bkgd=False, ndc=True)
    np.testing.assert_allclose(known.render_cameras.bounds, known.placement.render_bounds, rtol=1e-6)


def test_a_fisheye_without_a_lens_is_still_a_fisheye():
    cameras = photographs_scene(a_capture(around(), fisheye=np.array([True, False, False, False])), False, True).cameras
    corner = torch.tensor(0)
    for view, length in ((0, 1.0), (1, None)):
        _, direction = cameras.rays(torch.tensor(view), corner, corner)
        if length:
            assert float(direction.norm()) == pytest.approx(length, rel=1e-5)
        else:
            assert float(direction.norm()) > 1.1


def test_forward_facing_photographs_are_in_ndc_unless_it_is_turned_off():
    sizes = [(30, 40), (40, 30), (12, 16), (30, 40)]
    capture = a_capture(in_front(), sizes)
    scene = photographs_scene(capture, white_bkgd=False, ndc=True)
    assert (scene.ndc, scene.bounded, scene.around, scene.near, scene.far) == (True, True, False, 0.0, 1.0)
    assert scene.ndc_camera == (30, 40, 40.0)
    assert scene.cameras.bounds is None
    assert scene.contraction is None
    assert scene.farthest == pytest.approx(scene.placement.bounds[:, 1].max())
    for view, (height, width) in enumerate(sizes):  # rays of all sizes go from the near plane to infinity, as they see
        origins, directions = scene.cameras.take([view]).view_rays(0)
        rays, depth = scene.rays(origins, directions), torch.tensor(7.0)
        start = -(1.0 + origins[..., 2]) / directions[..., 2]
        points = origins + (start + depth)[..., None] * directions
        expected = ndc_points(30, 40, 40.0, 1.0, points).reshape(height * width, 3)
        t = (expected - rays.origins)[:, 2] / rays.directions[:, 2]
        torch.testing.assert_close(rays.origins + t[:, None] * rays.directions, expected, rtol=1e-4, atol=1e-4)
    plain = photographs_scene(capture, white_bkgd=False, ndc=False)
    assert (plain.ndc, plain.bounded, plain.around, plain.ndc_camera) == (False, False, False, None)
    assert plain.near == pytest.approx(0.9 / 0.75)
    assert plain.contraction.radius > 0.0


def test_the_contracted_box_begins_at_the_bounds_of_each_view():
    scene = photographs_scene(a_capture(around()), False, True)
    far_off = replace(scene.cameras, bounds=torch.tensor([[1e4, 1e6]]).repeat(4, 1))
    whole, beyond = scene.contracted_box(), replace(scene, cameras=far_off).contracted_box()
    assert (beyond[0] >= whole[0] - 1e-6).all()
    assert np.abs(whole[1] - beyond[1]).max() > 1e-3


# The checksum


def checksum(*parts: np.ndarray) -> int:
    return zlib.crc32(b''.join(part.tobytes() for part in parts))


@pytest.mark.parametrize('channels', [3, 4])
@pytest.mark.parametrize('ndc', [False, True])
def test_the_fingerprint_of_a_scene_of_one_size_is_that_of_the_first_checkpoints(channels, ndc):
    array = random_pixels(3, 12, 16, channels)
    K = np.array([[21.5, 0.0, 7.75], [0.0, 20.25, 6.5], [0.0, 0.0, 1.0]])
    cameras = Cameras.of_one_kind(forward_cameras(3), K, 12, 16)
    scene = a_scene(Images.of_one_size(array), cameras=cameras, ndc=ndc, white_bkgd=channels == 4)
    poses = forward_cameras(3).astype(np.float32)
    numbers = np.array([*K.ravel(), 2.0, 6.0, ndc, channels == 4], np.float64)
    assert scene.fingerprint() == checksum(array[[0, 2]], poses[[0, 2]], numbers)


def test_the_fingerprint_of_a_scene_of_one_size_has_not_changed():
    array = (np.arange(3 * 12 * 16 * 3) % 251).astype(np.uint8).reshape(3, 12, 16, 3)
    cameras = Cameras.of_one_kind(np.tile(np.eye(4)[:3], (3, 1, 1)), centred_intrinsics(12, 16, 20.0), 12, 16)
    assert a_scene(Images.of_one_size(array), cameras=cameras).fingerprint() == OF_FIRST_CHECKPOINTS


def with_lens(scene: Scene, view: int, coefficient: int, value: float) -> Scene:
    distortion = torch.zeros(3, 8)
    distortion[view, coefficient] = value
    return replace(scene, cameras=replace(scene.cameras, distortion=distortion))


def with_pixel(scene: Scene, view: int) -> Scene:
    pixels = scene.images.pixels.copy()
    pixels[scene.images.starts[view], 1] ^= 1
    return replace(scene, images=replace(scene.images, pixels=pixels))


def with_mask(scene: Scene, view: int | None) -> Scene:
    masks = np.ones(len(scene.images.pixels), bool)
    if view is not None:
        masks[scene.images.starts[view] + 3] = False
    return replace(scene, images=replace(scene.images, masks=masks))


def with_part(scene: Scene, part: str, view: int, by: float) -> Scene:
    """One camera's pose or intrinsics changed in one number."""
    values = getattr(scene.cameras, part).clone()
    values[view].view(-1)[3] += by
    return replace(scene, cameras=replace(scene.cameras, **{part: values}))


def with_fisheye(scene: Scene, view: int) -> Scene:
    cameras = replace(scene.cameras, distortion=torch.full((3, 8), 0.01), fisheye=torch.arange(3) == view)
    return replace(scene, cameras=cameras)


def with_size(scene: Scene, view: int, size: tuple[int, int]) -> Scene:
    """One image of another shape and as many pixels."""
    sizes = scene.images.sizes.copy()
    sizes[view] = size
    return replace(scene, images=replace(scene.images, sizes=sizes),
                   cameras=replace(scene.cameras, sizes=torch.from_numpy(sizes)))


def with_bounds(scene: Scene, view: int) -> Scene:
    bounds = torch.tensor([[2.0, 6.0]]).repeat(3, 1)
    bounds[view, 0] = 3.0
    return replace(scene, cameras=replace(scene.cameras, bounds=bounds))


CHANGES = {
    'where in a pixel its ray goes': lambda scene: scene.rays_within(0.5),
    'a pixel': lambda scene: with_pixel(scene, 2),
    'a pose': lambda scene: with_part(scene, 'poses', 2, 1e-3),
    'the intrinsics of one camera': lambda scene: with_part(scene, 'intrinsics', 2, 0.25),
    'the intrinsics of another camera': lambda scene: with_part(scene, 'intrinsics', 0, 0.25),
    'distortion': lambda scene: with_lens(scene, 2, 0, -0.1),
    'distortion of another camera': lambda scene: with_lens(scene, 0, 0, -0.1),
    'another coefficient': lambda scene: with_lens(scene, 2, 3, -0.1),
    'a fisheye': lambda scene: with_fisheye(scene, 2),
    'another fisheye': lambda scene: with_fisheye(scene, 0),
    'a mask': lambda scene: with_mask(scene, 2),
    'the mask of another image': lambda scene: with_mask(scene, 0),
    'the shape of an image': lambda scene: with_size(scene, 2, (16, 12)),
    'another shape of an image': lambda scene: with_size(scene, 2, (24, 8)),
    'the shape of another image': lambda scene: with_size(scene, 0, (16, 12)),
    'the bounds of one camera': lambda scene: with_bounds(scene, 2),
    'the bounds of another camera': lambda scene: with_bounds(scene, 0),
    'near': lambda scene: replace(scene, near=2.5),
    'far': lambda scene: replace(scene, far=6.5),
    'ndc': lambda scene: replace(scene, ndc=True),
    'the background': lambda scene: replace(scene, white_bkgd=True),
    'the images to train on': lambda scene: replace(scene, i_train=np.array([0])),
    'the order of the images': lambda scene: replace(scene, i_train=np.array([2, 0])),
}


def test_the_fingerprint_changes_with_anything_that_training_sees():
    seen = {'nothing': a_scene().fingerprint()}
    for name, change in CHANGES.items():
        fingerprint = change(a_scene()).fingerprint()
        assert fingerprint == change(a_scene()).fingerprint()
        assert fingerprint not in seen.values(), name
        seen[name] = fingerprint


@pytest.mark.parametrize('change', [
    lambda scene: with_pixel(scene, 1), lambda scene: with_part(scene, 'poses', 1, 1e-3),
    lambda scene: with_part(scene, 'intrinsics', 1, 0.25), lambda scene: with_size(scene, 1, (16, 12)),
    lambda scene: replace(scene, i_test=np.array([0])),
    lambda scene: replace(scene, render_cameras=scene.cameras.take([2]))],
    ids=['a pixel', 'a pose', 'intrinsics', 'a size', 'the split', 'the path'])
def test_the_fingerprint_does_not_depend_on_what_only_tests_see(change):
    assert change(a_scene()).fingerprint() == a_scene().fingerprint()


def test_the_fingerprint_of_masks_and_lenses_beside_other_sizes_changes_too():
    several = Images.of_any_size(several_sizes(), some_masks())
    scene = a_scene(several, sizes=SIZES)
    fingerprints = [one.fingerprint() for one in (
        scene, with_lens(scene, 2, 0, -0.1), with_fisheye(scene, 2), with_part(scene, 'intrinsics', 2, 0.25),
        replace(scene, images=Images.of_any_size(several_sizes())),
        replace(scene, images=Images.of_any_size(several_sizes(), [~mask for mask in some_masks()])))]
    assert len(set(fingerprints)) == len(fingerprints)


def test_a_pixel_at_the_origin_is_as_large_as_the_cameras_distance_over_the_focal_length():
    scene = a_scene()
    cameras = scene.cameras.take(scene.i_train)
    sizes = [float(pose[:, 3].norm()) / float(intrinsics[0]) for pose, intrinsics in zip(cameras.poses,
                                                                                          cameras.intrinsics)]
    assert scene.pixel_size() == pytest.approx(np.median(sizes), rel=0.3)
    far = replace(scene, cameras=replace(scene.cameras, poses=scene.cameras.poses * 2.0))
    assert far.pixel_size() == pytest.approx(2.0 * scene.pixel_size())
