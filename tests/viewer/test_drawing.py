"""nerf/viewer/drawing.py: pictures that are drawn tile by tile, the cost of tiles, and what a page shows of a frame."""

import math

import numpy as np
import pytest

from nerf.camera_path import pinholes
from nerf.rendering import View, render_view
from nerf.viewer.drawing import (
    FAR, PROBE, Drawing, Frame, Pace, ShownField, Speed, compared, depth_of, fitted, picture_of)
from nerf.viewer.wanted import Wanted
from viewer_scene import SCENE, Sky, sky_scene, wanted_of

TILE = Pace().tile


def whole(drawing: Drawing) -> Drawing:
    for _ in drawing:
        pass
    return drawing


def test_a_drawing_is_what_render_view_shows_at_the_same_pose():
    sky, wanted = Sky(), wanted_of(SCENE, 1)
    camera = pinholes([wanted], 21, 28)
    view = whole(Drawing(ShownField(SCENE, lambda: sky), wanted, camera)).frame(True).view
    expected = render_view(sky, SCENE.space, camera)
    for name in ('rgb', 'acc', 'disp'):
        np.testing.assert_array_equal(getattr(view, name), getattr(expected, name))


def test_a_finer_drawing_begins_with_the_coarse_one_and_keeps_it_until_it_is_drawn_over():
    shown, wanted = ShownField(SCENE, Sky), wanted_of(SCENE)
    coarse = whole(Drawing(shown, wanted, pinholes([wanted], 3, 4)))
    shown.speed.per_ray = 1e-3  # 24 rays in a tile
    fine = Drawing(shown, wanted, pinholes([wanted], 9, 12), coarse)
    before = fine.picture.rgb.clone().reshape(9, 12, 3)
    np.testing.assert_array_equal(before[::3, ::3], coarse.picture.rgb.reshape(3, 4, 3))
    np.testing.assert_array_equal(before[2::3, 2::3], coarse.picture.rgb.reshape(3, 4, 3))
    share = next(iter(fine))
    changed = (fine.picture.rgb.reshape(9, 12, 3) != before).any(-1)
    assert 0.0 < share < 1.0
    assert 0 < changed.sum() <= math.ceil(share * 108)


def test_the_last_drawing_of_a_camera_is_the_smooth_view_and_those_before_are_not():
    wanted = Wanted(SCENE.cameras.poses[1].double().numpy(), 1.5, 60, 80)  # the horizon is in it
    camera, sky = pinholes([wanted], 21, 28), Sky(supersample=5)
    plain, smooth = (render_view(sampler, SCENE.space, camera) for sampler in (Sky(), sky))
    assert (smooth.rgb != plain.rgb).any()
    shown = ShownField(SCENE, lambda: sky)
    for last, expected in ((True, smooth), (False, plain)):
        shown.speed.per_ray, drawing = 1e-3, Drawing(shown, wanted, camera, last=last)  # as if drawing were slow
        shares = list(drawing)
        for name in ('rgb', 'acc', 'disp'):
            np.testing.assert_array_equal(getattr(drawing.frame(True).view, name), getattr(expected, name))
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert len(shares) > 10


def test_a_camera_closer_by_sees_closer_things_and_one_farther_away_still_sees_the_scene():
    shown = ShownField(SCENE, Sky)  # cameras 4 away, bounds 2 and 6

    def bounds(distance: float, **more) -> tuple[float, float]:
        pose = np.column_stack([np.eye(3), [0.0, 0.0, distance]])
        space = shown.space_of(Wanted(pose, 0.7, 10, 10, **more))
        return space.near, space.far
    assert bounds(4.0) == pytest.approx((2.0, 6.0))
    assert bounds(3.0) == pytest.approx((1.0, 6.0))
    assert bounds(0.5) == pytest.approx((0.02, 6.0))
    assert bounds(9.0) == pytest.approx((2.0, 11.0))
    assert bounds(4.0, near=3.0, far=5.0) == pytest.approx((3.0, 5.0))
    assert bounds(4.0, near=5.0, far=1.0)[0] == 5.0  # and far is not below it


def test_rays_that_look_backwards_in_ndc_show_the_background():
    scene = sky_scene(ndc=True)
    sideways = np.column_stack([[[0, 0, 1], [0, 1, 0], [-1, 0, 0]], [0.0, 0.0, 0.0]])  # looks along -x
    wanted = Wanted(sideways, 1.0, 10, 20)
    view = whole(Drawing(ShownField(scene, Sky), wanted, pinholes([wanted], 10, 20))).frame(True).view
    _, directions = pinholes([wanted], 10, 20).view_rays(0)
    backward = directions[..., 2].numpy() > -1e-3
    assert backward.any()
    assert not backward.all()
    assert (view.rgb[backward] == 1.0).all()
    assert np.isfinite(view.rgb).all()
    assert (view.acc[~backward] > 0).any()


# Speed


def measured(per_tile: float, per_ray: float) -> Speed:
    """Speed after many tiles whose cost in seconds is known."""
    speed = Speed()
    for _ in range(60):
        for n_rays in (PROBE, speed.rays_in(TILE)):
            speed.took(n_rays, per_tile + per_ray * n_rays)
    return speed


def test_tiles_take_the_time_that_they_should():
    speed = measured(2e-3, 1e-5)
    n_rays = speed.rays_in(TILE)
    assert 2e-3 + 1e-5 * n_rays == pytest.approx(TILE, rel=0.05)
    assert speed.rays_per_second(TILE) == pytest.approx(n_rays / TILE, rel=0.05)


def test_the_first_tile_which_compiles_does_not_count_and_a_slow_probe_is_soon_forgotten():
    speed = Speed()
    speed.took(PROBE, 7.0)
    assert speed.rays_in(TILE) == Speed().rays_in(TILE)
    for seconds in (2e-3, 0.5, 2e-3):
        speed.took(PROBE, seconds)
    assert speed.per_tile == pytest.approx(2e-3)


def test_tiles_do_not_vanish_where_each_takes_long_however_small():
    assert measured(0.1, 1e-5).rays_in(TILE) == pytest.approx(0.1 / 1e-5, rel=0.1)


def test_a_probe_is_due_once_a_second():
    speed = Speed()
    assert [speed.probe_due(now) for now in (50.0, 50.9, 51.0, 51.1, 60.0)] == [True, False, True, False, True]


# Pictures of a frame


def frame_of(rgb, acc, disp=0.0, size=(20, 30), **wanted) -> Frame:
    ones = np.ones(size, np.float32)
    view = View(ones[..., None] * np.float32(rgb), disp * ones, acc * ones, 0.0 * ones, {})
    return Frame(view, wanted_of(SCENE, 1, **wanted), True)


def test_colours_stand_on_the_background_that_is_chosen():
    half = frame_of([0.6, 0.5, 0.5], 0.5, white=True)  # of the 0.5 of light that is the white background's
    assert picture_of(half, SCENE)[0, 0].tolist() == [153, 128, 128]
    half = frame_of([0.6, 0.5, 0.5], 0.5, white=False)
    assert picture_of(half, SCENE)[0, 0].tolist() == pytest.approx([26, 0, 0], abs=1)


def test_opacity_and_disparity_are_grey():
    assert (picture_of(frame_of(0.3, 0.4, kind='opacity'), SCENE) == 102).all()
    frame = frame_of(0.3, 1.0, kind='disparity')
    frame.view.disp[:, :15], frame.view.disp[:, 15:] = 0.2, 0.5
    picture = picture_of(frame, SCENE)
    assert (picture[:, 15:] == 255).all()  # nearest
    assert (picture[:, :15] == 26).all()


def test_the_kind_nothing_is_the_background():
    assert (picture_of(frame_of(0.3, 0.4, kind='nothing', white=True), SCENE) == 255).all()
    assert (picture_of(frame_of(0.3, 0.4, kind='nothing'), SCENE) == 0).all()


def test_the_error_is_shown_in_the_middle_of_the_window():
    frame = frame_of(40 / 255 + 0.125, 1.0, kind='error', photograph=1, height=60, width=180)
    picture = picture_of(frame, SCENE)  # 20 x 30 pixels in a window three times as wide as high
    assert picture.shape == (20, 60, 3)
    assert (abs(picture[:, 15:45].astype(int) - 128) <= 1).all()  # 0.25 is white
    assert (picture[:, :15] == 0).all()
    assert (picture[:, 45:] == 0).all()


def test_without_a_photograph_the_error_is_the_colour():
    assert (picture_of(frame_of(0.2, 1.0, kind='error'), SCENE) == 51).all()


def test_a_narrow_window_cuts_the_sides():
    grey = np.arange(6, dtype=np.uint8)[None].repeat(2, 0)
    assert fitted(grey, 1.0)[0, :, 0].tolist() == [2, 3]
    assert fitted(grey, 3.0)[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_psnr_is_that_of_the_photograph():
    psnr, size = compared(frame_of(40 / 255 + 0.1, 1.0, photograph=1), SCENE)
    assert psnr == pytest.approx(20.0, abs=0.2)  # to the nearest level
    assert size == (20, 30)
    psnr, size = compared(frame_of(40 / 255 + 0.1, 1.0, photograph=1, size=(10, 15)), SCENE)
    assert psnr == pytest.approx(20.0, abs=0.2)
    assert size == (10, 15)


def test_depth_is_far_where_opacity_is_low():
    assert (depth_of(frame_of(0.5, 0.9, disp=0.25).view) == 4.0).all()
    assert (depth_of(frame_of(0.5, 0.3, disp=0.25).view) == FAR).all()
    assert (depth_of(frame_of(0.5, 0.9, disp=0.0).view) == FAR).all()
