"""nerf/viewer/drawing.py: pictures that are drawn tile by tile, their cameras, and what tiles cost."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from nerf.rendering import render_view
from nerf.viewer import drawing
from nerf.viewer.drawing import TILE, Drawing, Field, Speed, camera_of, finer, pinhole, size_of
from viewer_scene import Sky, sky_scene, wanted_of


def whole(picture: Drawing) -> Drawing:
    for _ in picture:
        pass
    return picture


def test_a_drawing_is_what_render_view_shows_at_the_same_pose():
    scene, model = sky_scene(), Sky()
    wanted = wanted_of(scene, 1)
    camera = pinhole(wanted, 21, 28)
    view, expected = whole(Drawing(Field(scene, lambda: model), wanted, camera)).frame(True).view, render_view(
        model, scene, camera)
    for name in ('rgb', 'acc', 'disp'):
        np.testing.assert_array_equal(getattr(view, name), getattr(expected, name))


def test_the_middle_of_a_picture_looks_along_the_axis_and_its_edges_along_the_field_of_view():
    wanted = wanted_of(sky_scene())
    camera = pinhole(wanted, 40, 60)
    row, column = torch.tensor([19.5, -0.5]), torch.tensor([29.5, 29.5])  # the middle, and the top edge
    _, directions = camera.rays(torch.zeros(2, dtype=torch.int64), row, column)
    forward, up = -wanted.pose[:, 2], wanted.pose[:, 1]
    np.testing.assert_allclose(directions[0], forward, atol=1e-6)
    np.testing.assert_allclose(directions[1], forward + math.tan(0.35) * up, atol=1e-6)


def test_a_finer_drawing_begins_with_the_coarse_one_and_keeps_it_until_it_is_drawn_over():
    scene, tiles = sky_scene(), []
    field = Field(scene, lambda: Sky(tiles.append))
    wanted = wanted_of(scene)
    coarse = whole(Drawing(field, wanted, pinhole(wanted, 3, 4)))
    field.speed.per_ray = 1e-3  # 24 rays in a tile
    fine = Drawing(field, wanted, pinhole(wanted, 9, 12), coarse)
    before = fine.picture.rgb.clone().reshape(9, 12, 3)
    np.testing.assert_array_equal(before[::3, ::3], coarse.picture.rgb.reshape(3, 4, 3))
    np.testing.assert_array_equal(before[2::3, 2::3], coarse.picture.rgb.reshape(3, 4, 3))
    share = next(iter(fine))
    changed = (fine.picture.rgb.reshape(9, 12, 3) != before).any(-1)
    assert 0.0 < share < 1.0
    assert 0 < changed.sum() <= math.ceil(share * 108)


def test_tiles_take_the_time_that_they_should():
    """Of a model that takes 2 ms for each tile and 10 us for each ray."""
    speed = Speed()
    for _ in range(60):
        for n_rays in (drawing.PROBE, speed.rays_in(TILE)):
            speed.took(n_rays, 2e-3 + 1e-5 * n_rays)
    n_rays = speed.rays_in(TILE)
    assert 2e-3 + 1e-5 * n_rays == pytest.approx(TILE, rel=0.05)
    assert speed.rays_per_second == pytest.approx(n_rays / TILE, rel=0.05)


def test_what_is_compiled_at_first_does_not_count_and_a_slow_probe_is_soon_forgotten():
    speed = Speed()
    speed.took(drawing.PROBE, 7.0)
    assert speed.rays_in(TILE) == Speed().rays_in(TILE)
    for seconds in (2e-3, 0.5, 2e-3):
        speed.took(drawing.PROBE, seconds)
    assert speed.per_tile == pytest.approx(2e-3)


def test_tiles_do_not_vanish_where_each_takes_long_however_small():
    speed = Speed()
    for _ in range(60):
        for n_rays in (drawing.PROBE, speed.rays_in(TILE)):
            speed.took(n_rays, 0.1 + 1e-5 * n_rays)
    assert speed.rays_in(TILE) == pytest.approx(0.1 / 1e-5, rel=0.1)


def test_pictures_have_the_shape_of_the_window_and_grow_to_its_size():
    scene = sky_scene()
    wanted = wanted_of(scene, height=600, width=800)
    camera, sizes = camera_of(wanted, scene, 3000), []
    while camera is not None:
        sizes.append(camera.size(0))
        camera = finer(wanted, scene, camera)
    assert sizes == [(47, 63), (141, 188), (600, 800)]
    assert camera_of(wanted, scene, 1).size(0) == (24, 32)  # no smaller
    assert camera_of(wanted_of(scene, height=3000, width=1500), scene, 10 ** 9).size(0) == (1280, 640)  # no larger


def test_an_error_is_drawn_through_the_pixels_of_the_photograph():
    scene = sky_scene()
    wanted = wanted_of(scene, 2, kind='error', photograph=2)
    camera = camera_of(wanted, scene, 10 ** 9)
    assert camera.size(0) == (20, 30)
    np.testing.assert_array_equal(camera.intrinsics[0], scene.cameras.intrinsics[2])
    assert camera_of(wanted, scene, 160).size(0) == (10, 15)
    assert finer(wanted, scene, camera) is None
    assert camera_of(wanted_of(scene, kind='error'), scene, 10 ** 9).size(0) == (60, 80)  # no photograph


def test_who_comes_closer_sees_what_is_closer_and_who_goes_back_still_sees_the_scene():
    scene = sky_scene()  # cameras 4 away, bounds 2 and 6
    field = Field(scene, Sky)

    def bounds(distance: float, **more) -> tuple[float, float]:
        pose = np.column_stack([np.eye(3), [0.0, 0.0, distance]])
        clipped = field.clipped(drawing.Wanted(pose, 0.7, 10, 10, **more))
        return clipped.near, clipped.far
    assert bounds(4.0) == pytest.approx((2.0, 6.0))
    assert bounds(3.0) == pytest.approx((1.0, 6.0))
    assert bounds(0.5) == pytest.approx((0.02, 6.0))
    assert bounds(9.0) == pytest.approx((2.0, 11.0))
    assert bounds(4.0, near=3.0, far=5.0) == pytest.approx((3.0, 5.0))
    assert bounds(4.0, near=5.0, far=1.0)[0] == 5.0  # and far is not below it


def test_a_picture_through_a_photographs_own_pixels_is_cut_off_as_others_are():
    """Views of photographs have bounds of their own."""
    scene = sky_scene()
    own = torch.tensor([[2.0 + i, 50.0] for i in range(len(scene.cameras))])
    scene = replace(scene, cameras=replace(scene.cameras, bounds=own))

    def bounds(**more) -> list[float]:
        return camera_of(wanted_of(scene, kind='error', photograph=2, **more), scene, 160).bounds.tolist()
    assert bounds() == [[4.0, 50.0]]
    assert bounds(near=1.0, far=60.0) == [[4.0, 50.0]]
    assert bounds(near=5.0, far=7.0) == [[5.0, 7.0]]
    np.testing.assert_allclose(bounds(near=5.0, far=1.0), [[5.0, 5.001]])


def test_rays_that_look_backwards_in_ndc_show_the_background():
    scene = sky_scene(ndc=True)
    sideways = np.column_stack([[[0, 0, 1], [0, 1, 0], [-1, 0, 0]], [0.0, 0.0, 0.0]])  # looks along -x
    wanted = drawing.Wanted(sideways, 1.0, 10, 20)
    view = whole(Drawing(Field(scene, Sky), wanted, pinhole(wanted, 10, 20))).frame(True).view
    _, directions = pinhole(wanted, 10, 20).view_rays(0)
    backward = directions[..., 2].numpy() > -1e-3
    assert backward.any()
    assert not backward.all()
    assert (view.rgb[backward] == 1.0).all()
    assert np.isfinite(view.rgb).all()
    assert (view.acc[~backward] > 0).any()


def test_a_picture_that_is_asked_for_has_no_more_pixels_than_can_be_had():
    scene = sky_scene()
    assert size_of(wanted_of(scene), 1000) == (750, 1000)
    height, width = size_of(wanted_of(scene, height=1000, width=10), 8192)
    assert height * width <= 1.01 * drawing.MOST_PIXELS
    assert height / width == pytest.approx(100, rel=0.01)
