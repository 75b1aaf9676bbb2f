"""nerf/viewer/drawing.py: pictures that are drawn tile by tile, and the bounds of their rays."""

import math

import numpy as np
import pytest

from nerf.rendering import render_view
from nerf.viewer.drawing import Drawing, ShownField
from nerf.viewer.wanted import Wanted, pinhole
from viewer_scene import SCENE, Sky, sky_scene, wanted_of


def whole(drawing: Drawing) -> Drawing:
    for _ in drawing:
        pass
    return drawing


def test_a_drawing_is_what_render_view_shows_at_the_same_pose():
    sky, wanted = Sky(), wanted_of(SCENE, 1)
    camera = pinhole(wanted, 21, 28)
    view = whole(Drawing(ShownField(SCENE, lambda: sky), wanted, camera)).frame(True).view
    expected = render_view(sky, SCENE.space, camera)
    for name in ('rgb', 'acc', 'disp'):
        np.testing.assert_array_equal(getattr(view, name), getattr(expected, name))


def test_a_finer_drawing_begins_with_the_coarse_one_and_keeps_it_until_it_is_drawn_over():
    shown, wanted = ShownField(SCENE, Sky), wanted_of(SCENE)
    coarse = whole(Drawing(shown, wanted, pinhole(wanted, 3, 4)))
    shown.speed.per_ray = 1e-3  # 24 rays in a tile
    fine = Drawing(shown, wanted, pinhole(wanted, 9, 12), coarse)
    before = fine.picture.rgb.clone().reshape(9, 12, 3)
    np.testing.assert_array_equal(before[::3, ::3], coarse.picture.rgb.reshape(3, 4, 3))
    np.testing.assert_array_equal(before[2::3, 2::3], coarse.picture.rgb.reshape(3, 4, 3))
    share = next(iter(fine))
    changed = (fine.picture.rgb.reshape(9, 12, 3) != before).any(-1)
    assert 0.0 < share < 1.0
    assert 0 < changed.sum() <= math.ceil(share * 108)


def test_the_last_drawing_of_a_camera_is_the_smooth_view_and_those_before_are_not():
    wanted = Wanted(SCENE.cameras.poses[1].double().numpy(), 1.5, 60, 80)  # the horizon is in it
    camera, sky = pinhole(wanted, 21, 28), Sky(supersample=5)
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
    view = whole(Drawing(ShownField(scene, Sky), wanted, pinhole(wanted, 10, 20))).frame(True).view
    _, directions = pinhole(wanted, 10, 20).view_rays(0)
    backward = directions[..., 2].numpy() > -1e-3
    assert backward.any()
    assert not backward.all()
    assert (view.rgb[backward] == 1.0).all()
    assert np.isfinite(view.rgb).all()
    assert (view.acc[~backward] > 0).any()


def test_a_finished_field_has_its_last_step_and_one_sampler():
    shown, guided = ShownField(SCENE, Sky, training=True), Sky()
    shown.finish(7, guided)
    assert (shown.step, shown.training) == (7, False)
    assert shown.sampler() is guided
