"""Each step's pixels: which are drawn, the rays through them, and the colours that they should have."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nerf.cameras import Cameras
from nerf.coverage import OPAQUE, covered
from nerf.fields.interface import Target
from nerf.ray_batcher import ANYWHERE, RayBatcher, rays_were_edited
from nerf.runtime.errors import UserError
from nerf.scene import Images, Scene, target_colours
from nerf.space import Bounded
from run_nerf_helpers import get_rays

K = np.array([[10.0, 0, 4], [0, 10, 3], [0, 0, 1]])
SIZES = [(6, 8), (3, 5), (9, 4), (6, 8)]  # of the images of several sizes; image 1 is held out


def numbered(n: int, height: int, width: int) -> np.ndarray:
    """An image whose colours are (n, row, column)."""
    row, column = np.indices((height, width))
    return np.stack([np.full_like(row, n), row, column], -1).astype(np.uint8)


def scene_of(images: Images, cameras: Cameras) -> Scene:
    return Scene(images=images, cameras=cameras, render_cameras=cameras, space=Bounded(2.0, 6.0),
                 white_bkgd=False, i_train=np.array([0, 2, 3]), i_val=np.array([1]), i_test=np.array([1]))


def some_poses() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4, 3, 4)).astype(np.float32)


@pytest.fixture
def one_size() -> Scene:
    """Four numbered images of 6x8, each with a pose of its own."""
    return scene_of(Images.of_one_size(np.stack([numbered(n, 6, 8) for n in range(4)])),
                    Cameras.of_one_kind(some_poses(), K, 6, 8))


def scene_of_several_sizes(masks: list[np.ndarray] | None = None) -> Scene:
    """Four numbered images of SIZES, each with a pose and intrinsics of its own."""
    intrinsics = torch.tensor([[10.0, 11, 4, 3], [7, 7, 2.5, 1.5], [9, 8, 2, 4.5], [5, 6, 3, 2]], dtype=torch.float64)
    cameras = Cameras(torch.from_numpy(some_poses()), intrinsics, torch.tensor(SIZES))
    return scene_of(Images.of_any_size([numbered(n, *size) for n, size in enumerate(SIZES)], masks), cameras)


def all_pixels(images: tuple[int, ...] = (0, 2, 3)) -> set[tuple[int, int, int]]:
    """(image, row, column) of every pixel of images of SIZES."""
    return {(n, row, column) for n in images for row in range(SIZES[n][0]) for column in range(SIZES[n][1])}


def chequered() -> list[np.ndarray]:
    """Masks that keep the pixels whose row and column have an even sum."""
    return [np.indices(size).sum(0) % 2 == 0 for size in SIZES]


def batcher_of(scene: Scene, n_rays: int, no_batching: bool = False, precrop_iters: int = 0, precrop_frac: float = 0.5,
               seed: int = 0) -> RayBatcher:
    return RayBatcher(scene, n_rays, no_batching, precrop_iters, precrop_frac, torch.Generator().manual_seed(seed))


def pixels(target: Target) -> list[tuple[int, ...]]:
    """(image, row, column) of the numbered pixels that have these colours."""
    return [tuple(pixel) for pixel in (255 * target.rgb).round().int().tolist()]


def drawn(batcher: RayBatcher, steps: range) -> list[tuple[int, ...]]:
    return [pixel for step in steps for pixel in pixels(batcher.next(step)[1])]


# Images of one size


@pytest.mark.parametrize('no_batching', [False, True])
def test_each_ray_is_that_of_the_pixel_whose_colour_it_should_have(one_size, no_batching):
    rays, target = batcher_of(one_size, 20, no_batching).next(1)
    for i, (image, row, column) in enumerate(pixels(target)):
        origins, directions = get_rays(6, 8, K, one_size.cameras.poses[image])
        torch.testing.assert_close(rays.origins[i], origins[row, column])
        torch.testing.assert_close(rays.directions[i], directions[row, column])
    assert (rays.near == 2).all()
    assert (rays.far == 6).all()


def test_all_images_give_each_training_pixel_once_per_epoch_in_an_order_that_changes(one_size):
    found = drawn(batcher_of(one_size, 10), range(1, 44))  # 430 of 3 epochs of 144
    first, second = found[:144], found[144:288]
    everything = {(image, row, column) for image in (0, 2, 3) for row in range(6) for column in range(8)}
    assert set(first) == set(second) == everything
    assert first != second
    assert first != sorted(first)


def test_one_image_a_step_gives_no_pixel_twice_and_visits_every_training_image(one_size):
    batcher = batcher_of(one_size, 48, no_batching=True)
    images = set()
    for step in range(1, 30):
        found = pixels(batcher.next(step)[1])
        assert len(set(found)) == 48
        assert len({image for image, _, _ in found}) == 1
        images.add(found[0][0])
    assert images == {0, 2, 3}


def test_the_centre_crop_ends_after_precrop_iters(one_size):
    batcher = batcher_of(one_size, 12, no_batching=True, precrop_iters=10)
    cropped = {pixel[1:] for pixel in drawn(batcher, range(1, 11))}
    assert cropped == {(row, column) for row in (1, 2, 3) for column in (2, 3, 4, 5)}
    later = {pixel[1:] for pixel in drawn(batcher, range(11, 60))}
    assert later == {(row, column) for row in range(6) for column in range(8)}


@pytest.mark.parametrize(('no_batching', 'n_rays', 'precrop_iters'), [(False, 145, 0), (True, 49, 0), (True, 13, 5)])
def test_more_rays_than_pixels_is_an_error(one_size, no_batching, n_rays, precrop_iters):
    batcher_of(one_size, n_rays - 1, no_batching, precrop_iters)
    with pytest.raises(UserError, match=rf'N_rand is {n_rays} but a step can draw only {n_rays - 1} pixels'):
        batcher_of(one_size, n_rays, no_batching, precrop_iters)


def test_pixels_of_all_images_are_those_of_one_shuffled_list_of_images_rows_and_columns(one_size):
    generator = torch.Generator().manual_seed(7)
    orders = []
    for _ in range(2):  # the order of an epoch comes from a seed that the run's generator gives
        epoch_seed = torch.randint(2 ** 62, (), generator=generator).item()
        orders.append(torch.randperm(3 * 6 * 8, generator=torch.Generator().manual_seed(epoch_seed), dtype=torch.int32))
    flat, batcher = torch.cat(orders).long(), batcher_of(one_size, 10, seed=7)
    for step in range(1, 29):
        pixel = flat[10 * (step - 1):10 * step]
        image, row, column = batcher.pixels(step)
        assert torch.equal(image, pixel // 48)
        assert torch.equal(row, pixel // 8 % 6)
        assert torch.equal(column, pixel % 8)


def test_pixels_of_one_image_are_an_image_and_a_shuffle_of_its_centre_or_of_all_of_it(one_size):
    generator, batcher = torch.Generator().manual_seed(7), batcher_of(one_size, 9, True, precrop_iters=3, seed=7)
    for step in range(1, 8):
        (height, width), (top, left) = ((3, 4), (1, 2)) if step <= 3 else ((6, 8), (0, 0))
        expected = torch.randint(3, (1,), generator=generator)
        pixel = torch.randperm(height * width, generator=generator)[:9]
        image, row, column = batcher.pixels(step)
        assert torch.equal(image, expected.expand(9))
        assert torch.equal(row, top + pixel // width)
        assert torch.equal(column, left + pixel % width)


def test_as_shipped_rays_are_not_stored(one_size, capsys):
    for scene in (one_size, scene_of_several_sizes()):
        assert not rays_were_edited(scene.cameras)
        assert batcher_of(scene, 10).stored is None
    lens = replace(one_size.cameras, distortion=torch.full((4, 8), 0.01))  # no image has rays of get_rays_np
    assert not rays_were_edited(lens)
    assert capsys.readouterr().out == ''


# Images of several sizes, and masks


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('no_batching', [False, True])
def test_images_of_several_sizes_give_each_pixel_its_own_cameras_ray(no_batching, masked):
    scene = scene_of_several_sizes(chequered() if masked else None)
    batcher, images = batcher_of(scene, 20, no_batching), set()
    for step in range(1, 20):
        rays, target = batcher.next(step)
        for i, (image, row, column) in enumerate(pixels(target)):
            fx, fy, cx, cy = scene.cameras.intrinsics[image].tolist()
            origins, directions = get_rays(*SIZES[image], np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]),
                                           scene.cameras.poses[image])
            torch.testing.assert_close(rays.origins[i], origins[row, column])
            torch.testing.assert_close(rays.directions[i], directions[row, column])
            images.add(image)
    assert images == {0, 2, 3}


def test_images_of_several_sizes_give_each_training_pixel_once_per_epoch():
    n_pixels = 48 + 36 + 48
    found = drawn(batcher_of(scene_of_several_sizes(), 12), range(1, 23))  # two epochs
    first, second = found[:n_pixels], found[n_pixels:]
    assert sorted(first) == sorted(second) == sorted(all_pixels())
    assert first != second


def test_masked_pixels_are_never_drawn_and_all_others_once_per_epoch():
    allowed = {(n, row, column) for n, row, column in all_pixels() if (row + column) % 2 == 0}
    found = drawn(batcher_of(scene_of_several_sizes(chequered()), 11), range(1, 13))  # 132 of two epochs of 66
    assert sorted(found[:66]) == sorted(found[66:]) == sorted(allowed)


def test_masks_that_keep_everything_change_no_pixel_of_all_images(one_size):
    everything = np.ones(len(one_size.images.pixels), bool)
    masked = scene_of(Images(one_size.images.pixels, one_size.images.sizes, everything), one_size.cameras)
    steps = range(1, 40)
    assert drawn(batcher_of(masked, 10), steps) == drawn(batcher_of(one_size, 10), steps)


def test_masks_of_images_of_one_size_are_kept_too(one_size):
    masks = np.indices((4, 6, 8)).sum(0) % 3 == 0
    scene = scene_of(Images(one_size.images.pixels, one_size.images.sizes, masks.ravel()), one_size.cameras)
    allowed = sorted((n, row, column) for n, row, column in np.argwhere(masks).tolist() if n != 1)
    assert sorted(drawn(batcher_of(scene, len(allowed)), range(1, 2))) == allowed
    assert set(drawn(batcher_of(scene, 40, no_batching=True), range(1, 40))) == set(allowed)


@pytest.mark.parametrize('masked', [False, True])
def test_one_image_of_several_sizes_a_step_visits_every_pixel_of_every_training_image(masked):
    allowed = {pixel for pixel in all_pixels() if not masked or sum(pixel[1:]) % 2 == 0}
    batcher, found = batcher_of(scene_of_several_sizes(chequered() if masked else None), 60, no_batching=True), set()
    for step in range(1, 40):
        now = pixels(batcher.next(step)[1])
        assert len(now) == 60  # more than an image has pixels: some repeat
        assert len({image for image, _, _ in now}) == 1
        found.update(now)
    assert found == allowed


@pytest.mark.parametrize('masked', [False, True])
def test_the_centre_crop_of_images_of_several_sizes_is_a_part_of_each(masked):
    def centre(size: tuple[int, int]) -> tuple[range, range]:
        return {(6, 8): (range(1, 4), range(2, 6)), (9, 4): (range(2, 6), range(1, 3))}[size]

    batcher = batcher_of(scene_of_several_sizes(chequered() if masked else None), 50, True, precrop_iters=40)
    cropped, later = set(drawn(batcher, range(1, 41))), set(drawn(batcher, range(41, 80)))
    allowed = {pixel for pixel in all_pixels() if not masked or sum(pixel[1:]) % 2 == 0}
    assert cropped == {(n, row, column) for n, row, column in allowed
                       if row in centre(SIZES[n])[0] and column in centre(SIZES[n])[1]}
    assert later == allowed


def test_without_no_batching_there_is_no_centre_crop():
    found = drawn(batcher_of(scene_of_several_sizes(), 12, precrop_iters=40), range(1, 12))
    assert sorted(found) == sorted(all_pixels())


def test_too_many_rays_for_the_pixels_that_masks_leave_is_an_error():
    scene = scene_of_several_sizes(chequered())
    batcher_of(scene, 66)
    with pytest.raises(UserError, match=r'N_rand is 67 but a step can draw only 66 pixels; lower N_rand$'):
        batcher_of(scene, 67)


def test_an_empty_mask_is_an_error_only_where_its_image_must_be_drawn_from():
    masks = chequered()
    masks[2][:] = False  # the second of the training images
    scene = scene_of_several_sizes(masks)
    assert {image for image, _, _ in drawn(batcher_of(scene, 12), range(1, 10))} == {0, 3}
    with pytest.raises(UserError, match=r'training image 1 has no pixel .* its mask is empty; remove it'):
        batcher_of(scene, 12, no_batching=True)


def test_a_mask_that_is_empty_at_the_centre_is_an_error_only_with_a_centre_crop():
    masks = chequered()
    masks[3][1:4, 2:6] = False
    scene = scene_of_several_sizes(masks)
    batcher_of(scene, 12, no_batching=True)
    batcher_of(scene, 12, precrop_iters=5)
    with pytest.raises(UserError, match=r'training image 2 has no pixel .* at its centre; set precrop_iters = 0'):
        batcher_of(scene, 12, no_batching=True, precrop_iters=5)


# Mostly pixels that are not transparent


def scene_with_alpha(masks: np.ndarray | None = None) -> Scene:
    """Four numbered images of 6x8 whose pixels in rows 2 and 3 and columns 1 to 3 are not wholly transparent."""
    row, column = np.indices((6, 8))
    alpha = np.where((row // 2 == 1) & (column > 0) & (column < 4), np.uint8(1 + column + row), np.uint8(0))
    images = np.stack([np.dstack([numbered(n, 6, 8), alpha]) for n in range(4)])
    return scene_of(Images(images.reshape(-1, 4), np.tile([6, 8], (4, 1)), masks), Cameras.of_one_kind(
        some_poses(), K, 6, 8))


def foreground_batcher(scene: Scene, n_rays: int, no_batching: bool = False, precrop_iters: int = 0,
                       seed: int = 0) -> RayBatcher:
    return RayBatcher(scene, n_rays, no_batching, precrop_iters, 0.5, torch.Generator().manual_seed(seed),
                      foreground=True)


FRONT = {(n, row, column) for n in (0, 2, 3) for row in (2, 3) for column in (1, 2, 3)}


@pytest.mark.parametrize('no_batching', [False, True])
def test_most_pixels_are_not_transparent_and_the_others_are_from_everywhere(no_batching):
    batcher = foreground_batcher(scene_with_alpha(), 50, no_batching, precrop_iters=30)
    front, others = [], []
    for step in range(1, 61):
        found = pixels(batcher.next(step)[1])
        assert len(found) == 50
        others += found[::ANYWHERE]
        front += [pixel for i, pixel in enumerate(found) if i % ANYWHERE]
    assert set(front) == FRONT
    for pixel in FRONT:  # each of 18 is as likely as any other: five standard deviations
        assert abs(front.count(pixel) - len(front) / 18) < 5 * np.sqrt(len(front) / 18)
    everything = {(image, row, column) for image in (0, 2, 3) for row in range(6) for column in range(8)}
    assert set(others) <= everything
    assert len(set(others)) > 0.9 * len(everything)
    in_front = sum(pixel in FRONT for pixel in others) / len(others)
    assert in_front == pytest.approx(18 / 144, abs=0.07)


def test_foreground_pixels_have_the_rays_of_their_own_cameras():
    scene = scene_with_alpha()
    rays, target = foreground_batcher(scene, 40).next(1)
    assert (target.coverage[torch.arange(40) % ANYWHERE > 0] > 0).all()
    for i, (image, row, column) in enumerate(pixels(target)):
        origins, directions = get_rays(6, 8, K, scene.cameras.poses[image])
        torch.testing.assert_close(rays.origins[i], origins[row, column])
        torch.testing.assert_close(rays.directions[i], directions[row, column])
        assert target.coverage[i].item() == pytest.approx(covered(scene.images[image])[row, column] / OPAQUE)


def test_foreground_pixels_repeat_so_a_step_may_have_more_rays_than_there_are_pixels():
    batcher = foreground_batcher(scene_with_alpha(), 1000, no_batching=True, precrop_iters=5)
    assert len(batcher.next(1)[1].rgb) == 1000
    with pytest.raises(UserError, match='a step can draw only 12 pixels'):
        batcher_of(scene_with_alpha(), 1000, no_batching=True, precrop_iters=5)


@pytest.mark.parametrize('kind', ['no alpha', 'masks', 'all transparent'])
def test_without_an_alpha_channel_of_use_the_pixels_are_drawn_as_without_foreground(one_size, kind):
    scene = one_size
    if kind == 'masks':
        scene = scene_with_alpha(np.indices((4, 6, 8)).sum(0).ravel() % 3 == 0)
    elif kind == 'all transparent':
        scene = scene_with_alpha()
        scene.images.pixels[:, 3] = 0
    steps = range(1, 40)
    for no_batching in (False, True):
        found = drawn(foreground_batcher(scene, 10, no_batching, precrop_iters=5), steps)
        assert found == drawn(batcher_of(scene, 10, no_batching, precrop_iters=5), steps)


def test_images_of_several_sizes_give_foreground_pixels_too():
    images = [np.dstack([numbered(n, *size), 255 * (np.indices(size).sum(0) % 5 == 0)]).astype(np.uint8)
              for n, size in enumerate(SIZES)]
    plain = scene_of_several_sizes()
    batcher = foreground_batcher(scene_of(Images.of_any_size(images), plain.cameras), 20)
    front = set()
    for step in range(1, 40):
        rays, target = batcher.next(step)
        front.update(pixel for i, pixel in enumerate(pixels(target)) if i % ANYWHERE)
    assert front == {(n, row, column) for n, row, column in all_pixels() if (row + column) % 5 == 0}
    for i, (image, row, column) in enumerate(pixels(target)):
        at = torch.tensor(image), torch.tensor(row), torch.tensor(column)
        expected = plain.cameras.rays(*(part[None] for part in at))
        torch.testing.assert_close(rays.origins[i], expected[0][0])
        torch.testing.assert_close(rays.directions[i], expected[1][0])


def test_a_restored_batcher_goes_on_with_the_same_foreground_pixels():
    batcher, other = (foreground_batcher(scene_with_alpha(), 10, seed=seed) for seed in (0, 5))
    drawn(batcher, range(1, 8))
    other.load_state_dict(batcher.state_dict(), 7)
    assert drawn(other, range(8, 20)) == drawn(batcher, range(8, 20))


# A number of rays of its own in each step


@pytest.mark.parametrize('kind', ['all images', 'one image', 'several sizes', 'foreground'])
def test_a_step_can_ask_for_fewer_rays(one_size, kind):
    if kind == 'foreground':
        batcher = foreground_batcher(scene_with_alpha(), 30)
    else:
        scene = scene_of_several_sizes() if kind == 'several sizes' else one_size
        batcher = batcher_of(scene, 30, no_batching=kind != 'all images')
    for step, n_rays in enumerate((7, 30, 12, None, 1), start=1):
        found = batcher.pixels(step, n_rays)
        assert [len(part) for part in found] == [n_rays or 30] * 3
        assert len(batcher.rays(*found)[1].rgb) == (n_rays or 30)


def test_steps_of_changing_size_give_each_training_pixel_once_per_epoch_too(one_size):
    batcher, found = batcher_of(one_size, 40), []
    for step, n_rays in enumerate((7, 40, 25, 40, 32, 40, 40, 40, 24), start=1):  # two epochs of 144
        found += pixels(batcher.rays(*batcher.pixels(step, n_rays))[1])
    everything = sorted((image, row, column) for image in (0, 2, 3) for row in range(6) for column in range(8))
    assert sorted(found[:144]) == sorted(found[144:]) == everything


# Going on, and colours


@pytest.mark.parametrize('masked', [None, False, True])  # None: one size
@pytest.mark.parametrize('no_batching', [False, True])
@pytest.mark.parametrize('steps', [3, 17])  # in the first and in a later epoch
def test_a_restored_batcher_goes_on_with_the_same_pixels(one_size, no_batching, steps, masked):
    scene = one_size if masked is None else scene_of_several_sizes(chequered() if masked else None)
    batcher, other = (batcher_of(scene, 10, no_batching, precrop_iters=8, seed=seed) for seed in (0, 5))
    drawn(batcher, range(1, steps + 1))
    other.load_state_dict(batcher.state_dict(), steps)
    following = range(steps + 1, steps + 21)
    assert drawn(other, following) == drawn(batcher, following)


def test_a_state_that_has_used_more_pixels_than_there_are_is_an_error():
    batcher = batcher_of(scene_of_several_sizes(chequered()), 10)
    drawn(batcher, range(1, 3))
    state = batcher.state_dict()
    batcher.load_state_dict(state | {'used': 66}, 2)
    with pytest.raises(ValueError, match='67 pixels used of 66'):
        batcher.load_state_dict(state | {'used': 67}, 2)


def test_a_white_background_is_composited_on_the_sampled_pixels():
    pixel = torch.tensor([[100, 200, 0, 51], [9, 9, 9, 0]], dtype=torch.uint8)
    on_white = target_colours(pixel, white_bkgd=True)
    expected = torch.tensor([[100 / 255 * 0.2 + 0.8, 200 / 255 * 0.2 + 0.8, 0.8], [1, 1, 1]])
    torch.testing.assert_close(on_white, expected)
    torch.testing.assert_close(target_colours(pixel, white_bkgd=False), pixel[:, :3] / 255)


# Squares of pixels


@pytest.mark.parametrize('side', [2, 4, 16])
def test_rays_of_squares_have_the_mean_colour_and_the_middle_of_the_square_around_each_pixel(side):
    """The mean of (image, row, column) over a square is its middle, also where an edge cuts the square."""
    scene = scene_of_several_sizes()
    batcher, trained = batcher_of(scene, 20), torch.from_numpy(scene.i_train)
    for step in range(1, 8):
        image, row, column = batcher.pixels(step)
        rays, target = batcher.rays(image, row, column, side)
        shown, middle_row, middle_column = (255 * target.rgb).unbind(-1)
        torch.testing.assert_close(shown, trained[image].float())
        for middle, place, size in ((middle_row, row, 0), (middle_column, column, 1)):
            first = place // side * side
            last = torch.minimum(first + side, torch.tensor(SIZES)[trained[image], size]) - 1
            torch.testing.assert_close(middle, (first + last) / 2, rtol=0, atol=1e-3)
        _, directions = scene.cameras.single_rays(trained[image], middle_row, middle_column)
        torch.testing.assert_close(rays.directions, directions, rtol=1e-3, atol=1e-4)


def test_masked_pixels_have_no_part_in_the_colour_of_a_square():
    masks = [np.zeros(size, bool) for size in SIZES]
    for mask in masks:
        mask[1, 1] = mask[0, 2] = True
    batcher = batcher_of(scene_of_several_sizes(masks), 5)
    image, row, column = (torch.tensor(part) for part in ([1, 1, 2], [0, 1, 0], [0, 1, 2]))
    _, target = batcher.rays(image, row, column, 2)
    assert pixels(target) == [(2, 1, 1), (2, 1, 1), (3, 0, 2)]
