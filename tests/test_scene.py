"""nerf/scene.py: images of any sizes, targets, rays, and the checksum by which a run knows its scene."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from captured import capture_of
from conftest import forward_cameras, look_at_origin, turn

from nerf.cameras import Cameras
from nerf.captures.capture import Capture
from nerf.scene import Images, Scene, camera_at, centred_intrinsics, open_space, photographs_scene, target_colours
from nerf.space import NDC, Bounded, Unbounded
from run_nerf_helpers import ndc_points, ndc_rays

SIZES = [(4, 6), (5, 3), (1, 7)]
NDC_SPACE = NDC(height=12, width=16, focal=20.0)
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
    scene = Scene(images=images, cameras=cameras, render_cameras=cameras.take([0]), space=Bounded(2.0, 6.0),
                  white_bkgd=False, i_train=np.array([0, 2]), i_val=np.array([1]), i_test=np.array([1]))
    return replace(scene, **changes)


def test_rays_have_the_scenes_bounds_and_stay_in_the_world_without_ndc():
    scene = a_scene()
    origins, directions = scene.cameras.view_rays(1)
    rays = scene.rays(origins, directions)
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
    own = scene.cameras.take([1])
    shown = scene.rays(*own.view_rays(0), own.bounds)
    assert shown.near.tolist() == [[2.0]] * 12 * 16
    assert scene.cameras.posed(forward_cameras(2)).bounds is None  # nobody knows what they see
    assert (scene.rays(*own.view_rays(0)).near == 2.0).all()
    ndc = replace(scene, space=NDC(height=12, width=16, focal=20.0))
    assert (ndc.spread_rays(np.array([2]), 3).near == 0.0).all()


def test_rays_are_in_ndc_where_the_scene_is():
    scene = a_scene(space=NDC(height=12, width=16, focal=20.0))
    origins, directions = torch.zeros(5, 3), torch.tensor([[0.1, -0.2, -1.0]]).expand(5, 3)
    rays = scene.rays(origins, directions)
    for ours, expected in zip(rays, ndc_rays(12, 16, 20.0, 1.0, origins, directions)):
        torch.testing.assert_close(ours, expected)


def test_rays_within_go_through_another_point_of_all_pixels():
    scene = a_scene().rays_within(0.5)
    assert scene.cameras.within == scene.render_cameras.within == scene.training_cameras.within == 0.5
    _, corner = a_scene().cameras.rays(torch.tensor(0), torch.tensor(0.5), torch.tensor(0.5))
    _, centre = scene.cameras.rays(torch.tensor(0), torch.tensor(0), torch.tensor(0))
    torch.testing.assert_close(centre, corner)


def test_the_seen_box_is_that_of_the_images_and_the_path():
    scene = a_scene()
    poses = scene.cameras.poses + torch.tensor([0.0, 0.0, 0.0, 7.0])
    moved = replace(scene, render_cameras=scene.cameras.posed(poses))
    np.testing.assert_allclose(moved.seen_box()[1], scene.seen_box()[1] + 7.0, atol=1e-5)
    np.testing.assert_allclose(moved.seen_box()[0], scene.seen_box()[0], atol=1e-5)


def test_a_pose_is_that_of_a_training_camera_up_to_rounding():
    poses = np.stack([look_at_origin(2.0 * i, 0.4, 4.0)[:3] for i in range(3)])
    scene = a_scene(cameras=Cameras.of_one_kind(poses, centred_intrinsics(12, 16, 20.0), 12, 16))  # trained on 0 and 2
    pose = scene.cameras.poses[2].double().numpy()
    assert camera_at(scene, pose + 1e-5) == 2
    assert camera_at(scene, scene.cameras.poses[1].double().numpy()) is None
    assert camera_at(scene, np.column_stack([turn([0, 0, 1], 1.0) @ pose[:, :3], pose[:, 3]])) is None
    assert camera_at(scene, pose + np.column_stack([np.zeros((3, 3)), [0.02, 0, 0]])) is None


@pytest.mark.parametrize(('ndc', 'unbounded', 'kind'), [
    (True, False, NDC), (True, True, NDC), (False, True, Unbounded), (False, False, Bounded)])
def test_the_space_of_photographs_is_what_is_asked_for(ndc, unbounded, kind):
    cameras = Cameras.of_one_kind(np.tile(np.eye(3, 4), (2, 1, 1)), centred_intrinsics(12, 16, 20.0), 12, 16)
    space = open_space(cameras, np.array([1]), 2.0, 30.0, False, ndc, unbounded)
    assert type(space) is kind
    assert space.world_bounds == ((1.0 if ndc else 2.0), 30.0)
    assert not space.surrounded


# Scenes of photographs


def a_capture(poses: np.ndarray, sizes=((30, 40),) * 4, **changes) -> Capture:
    """Photographs of some sizes and focal lengths."""
    generator = np.random.default_rng(0)
    intrinsics = np.array([[40.0 + i, 41.0 + i, width / 2, height / 2] for i, (height, width) in enumerate(sizes)])
    images = [generator.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    return capture_of(poses, images, intrinsics, **changes)


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
    capture = a_capture(around(), sizes, distortion=lens, fisheye=[False, False, True, False], masks=masks)
    scene = photographs_scene(capture, white_bkgd=False, ndc=True)
    assert isinstance(scene.space, Unbounded)
    assert scene.space.surrounded
    assert scene.images.sizes.tolist() == [list(size) for size in sizes]
    assert all(np.array_equal(scene.images[i], image) for i, image in enumerate(capture.images))
    assert np.array_equal(scene.images.masks, np.concatenate([mask.ravel() for mask in masks]))
    assert scene.cameras.sizes.tolist() == [list(size) for size in sizes]
    assert torch.equal(scene.cameras.intrinsics, capture.cameras.intrinsics)
    assert scene.cameras.poses.dtype == scene.cameras.bounds.dtype == torch.float32
    np.testing.assert_allclose(scene.cameras.distortion, lens, rtol=1e-6)
    assert scene.cameras.fisheye.tolist() == [False, False, True, False]
    np.testing.assert_allclose(scene.cameras.poses, scene.placement.poses, atol=1e-6)
    np.testing.assert_allclose(scene.cameras.poses[:, :, 3].norm(dim=1), 4.0, rtol=1e-4)
    np.testing.assert_allclose(scene.cameras.bounds, scene.placement.bounds, rtol=1e-6)
    assert scene.space.near == pytest.approx(scene.placement.bounds[:, 0].min())
    assert scene.space.far == pytest.approx(scene.placement.bounds[:, 1].max())
    assert scene.space.centre == (0.0, 0.0, 0.0)
    assert scene.space.radius == pytest.approx(4.04, rel=1e-4)
    cut_off = photographs_scene(capture, white_bkgd=False, ndc=True, unbounded=False)
    assert cut_off.space == Bounded(scene.space.near, scene.space.far, surrounded=True)
    path = scene.render_cameras
    assert len(path) == 120
    assert path.distortion is None
    assert path.fisheye is None
    assert path.one_size() == (40, 30)  # that of the first training view
    assert path.intrinsics[7].tolist() == capture.cameras.intrinsics[1].tolist()
    assert path.bounds is None
    points = np.random.default_rng(0).normal(size=(500, 3))
    known = photographs_scene(replace(capture, points=points), white_bkgd=False, ndc=True)
    np.testing.assert_allclose(known.render_cameras.bounds, known.placement.render_bounds, rtol=1e-6)


def test_forward_facing_photographs_are_in_ndc_unless_it_is_turned_off():
    sizes = [(30, 40), (40, 30), (12, 16), (30, 40)]
    capture = a_capture(in_front(), sizes)
    scene = photographs_scene(capture, white_bkgd=False, ndc=True)
    assert scene.space == NDC(height=30, width=40, focal=40.0, farthest=scene.placement.bounds[:, 1].max())
    assert scene.cameras.bounds is scene.render_cameras.bounds is None
    for view, (height, width) in enumerate(sizes):  # rays of all sizes go from the near plane to infinity, as they see
        origins, directions = scene.cameras.take([view]).view_rays(0)
        rays, depth = scene.rays(origins, directions), torch.tensor(7.0)
        start = -(1.0 + origins[..., 2]) / directions[..., 2]
        points = origins + (start + depth)[..., None] * directions
        expected = ndc_points(30, 40, 40.0, 1.0, points).reshape(height * width, 3)
        t = (expected - rays.origins)[:, 2] / rays.directions[:, 2]
        torch.testing.assert_close(rays.origins + t[:, None] * rays.directions, expected, rtol=1e-4, atol=1e-4)
    plain = photographs_scene(capture, white_bkgd=False, ndc=False)
    assert isinstance(plain.space, Unbounded)
    assert not plain.space.surrounded
    assert plain.space.near == pytest.approx(0.9 / 0.75)


# The checksum


def checksum(*parts: np.ndarray) -> int:
    return zlib.crc32(b''.join(part.tobytes() for part in parts))


@pytest.mark.parametrize('channels', [3, 4])
@pytest.mark.parametrize('ndc', [False, True])
def test_the_fingerprint_of_a_scene_of_one_size_is_that_of_the_first_checkpoints(channels, ndc):
    array = random_pixels(3, 12, 16, channels)
    K = np.array([[21.5, 0.0, 7.75], [0.0, 20.25, 6.5], [0.0, 0.0, 1.0]])
    cameras = Cameras.of_one_kind(forward_cameras(3), K, 12, 16)
    scene = a_scene(Images.of_one_size(array), cameras=cameras, white_bkgd=channels == 4,
                    space=replace(NDC_SPACE, near=2.0, far=6.0) if ndc else Bounded(2.0, 6.0))
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
    'near': lambda scene: replace(scene, space=Bounded(2.5, 6.0)),
    'far': lambda scene: replace(scene, space=Bounded(2.0, 6.5)),
    'ndc': lambda scene: replace(scene, space=replace(NDC_SPACE, near=2.0, far=6.0)),
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
