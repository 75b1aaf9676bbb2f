"""nerf/pixels.py: pixels drawn alone, edges, and the mean of several rays there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from viewer_scene import Sky, sky_scene, wanted_of

from nerf.cameras import Cameras
from nerf.fields.interface import Model, Picture
from nerf.pixels import EDGE, draw_pixels, edges, smooth_edges
from nerf.rendering import render_view
from nerf.scene import Scene, centred_intrinsics
from nerf.viewer.drawing import Drawing, Field, pinhole
from run_nerf_helpers import Composite, Rays

HEIGHT, WIDTH, FOCAL = 6, 8, 10.0


class Stripes(Model):
    """What is left of a place, in pixels from the picture's left side, is solid, red and 3 away; the rest is empty."""

    view_chunk, white_bkgd = 24, False

    def __init__(self, place: float):
        super().__init__()
        self.place, self.tiles, self.weight = place, [], torch.nn.Parameter(torch.zeros(1))

    def render(self, rays: Rays) -> Composite:
        self.tiles.append(len(rays.near))
        solid = (rays.directions[:, 0] * FOCAL + 0.5 * WIDTH < self.place).float()
        rgb = torch.stack([solid, torch.zeros_like(solid), torch.zeros_like(solid)], -1)
        return Composite(rgb, solid, solid, solid[:, None], 3.0 * solid)


@pytest.fixture
def scene() -> Scene:
    """One camera that looks along -z, whose rays go through the centres of pixels."""
    cameras = Cameras.of_one_kind(np.eye(4)[None, :3], centred_intrinsics(HEIGHT, WIDTH, FOCAL), HEIGHT, WIDTH)
    return replace(sky_scene(), cameras=cameras, white_bkgd=False).rays_within(0.5)


def test_a_pixel_shows_the_share_of_it_that_is_covered(scene):
    """A quarter, of 4x4 rays: colour, opacity and depth alike."""
    model, picture = Stripes(5.25), Picture.background(HEIGHT * WIDTH, False, torch.device('cpu'))
    index = torch.tensor([3, 5, WIDTH + 5, 2 * WIDTH + 6])
    assert draw_pixels(model, scene, scene.cameras, picture, index, side=4) == 64
    np.testing.assert_allclose(picture.rgb[index, 0], [1.0, 0.25, 0.25, 0.0])
    np.testing.assert_allclose(picture.acc[index], [1.0, 0.25, 0.25, 0.0])
    np.testing.assert_allclose(picture.depth[index], [3.0, 0.75, 0.75, 0.0])
    assert picture.final.nonzero()[:, 0].tolist() == index.tolist()
    assert picture.rgb.sum() == 1.5


def test_one_ray_for_a_pixel_is_its_own(scene):
    model, picture = Stripes(5.25), Picture.background(HEIGHT * WIDTH, False, torch.device('cpu'))
    assert draw_pixels(model, scene, scene.cameras, picture, torch.arange(HEIGHT * WIDTH)) == HEIGHT * WIDTH
    expected = render_view(model, scene, scene.cameras)
    np.testing.assert_array_equal(picture.rgb.reshape(HEIGHT, WIDTH, 3), expected.rgb)
    assert expected.rgb[:, :5, 0].min() == 1.0  # the centre of the next one is behind the place
    assert expected.rgb[:, 5:].max() == 0.0


@pytest.mark.parametrize('index', [[], [0, 1]])
def test_nothing_is_drawn_of_what_looks_backwards_in_ndc(index):
    scene = sky_scene(ndc=True)
    camera = replace(scene.cameras.take([0]), poses=torch.diag(torch.tensor([-1.0, 1.0, -1.0, 0.0]))[None, :3])
    model, picture = Sky(), Picture.background(600, True, torch.device('cpu'))
    assert draw_pixels(model, scene, camera, picture, torch.tensor(index, dtype=torch.long), side=2) == 0
    assert not picture.final.any()


@pytest.mark.parametrize('channel', [0, 1, 2])
def test_pixels_on_both_sides_of_a_change_are_at_an_edge(channel):
    picture = Picture.background(20, False, torch.device('cpu'))
    picture.rgb[7, channel] = 1.5 * EDGE  # row 1, column 2 of 4x5
    picture.rgb[14, channel] = 0.5 * EDGE
    assert edges(picture, 4, 5).tolist() == [2, 6, 7, 8, 12]


def test_pictures_of_one_row_or_column_have_edges_too():
    picture = Picture.background(4, True, torch.device('cpu'))
    picture.rgb[3] = 0.0
    assert edges(picture, 1, 4).tolist() == edges(picture, 4, 1).tolist() == [2, 3]
    assert edges(Picture.background(1, True, torch.device('cpu')), 1, 1).tolist() == []


def test_a_view_is_smooth_at_its_edges_and_the_same_elsewhere(scene):
    plain, smooth = Stripes(5.25), Stripes(5.25)
    smooth.supersample = 4
    plain, smooth = (render_view(model, scene, scene.cameras) for model in (plain, smooth))
    assert (plain.rgb[:, 4:6, 0] == [1.0, 0.0]).all()
    np.testing.assert_allclose(smooth.rgb[:, 4:6, 0], np.broadcast_to([1.0, 0.25], (HEIGHT, 2)))
    np.testing.assert_allclose(smooth.acc, smooth.rgb[..., 0])
    for part in ('rgb', 'acc', 'disp'):
        np.testing.assert_array_equal(np.delete(getattr(plain, part), 5, 1), np.delete(getattr(smooth, part), 5, 1))


def test_tiles_of_edges_have_no_more_rays_than_those_of_a_view(scene):
    model = Stripes(5.25)
    model.supersample = 3
    render_view(model, scene, scene.cameras)
    assert model.tiles == [24, 24, 18, 18, 18, 18, 18, 18]  # 12 pixels at the edge, two of which are in a tile
    model.supersample, model.tiles = 8, []
    render_view(model, scene, scene.cameras)
    assert len(model.tiles) == 2 + 12 * 3  # more rays for a pixel than a tile has


def test_a_picture_without_edges_is_not_drawn_again(scene):
    model = Stripes(-5.0)
    model.supersample = 2
    picture = Picture.background(HEIGHT * WIDTH, False, torch.device('cpu'))
    assert list(smooth_edges(model, scene, scene.cameras, picture)) == []


def test_the_viewers_last_drawing_of_a_camera_is_the_smooth_view_and_those_before_are_not():
    scene, model = sky_scene(), Sky()
    wanted = replace(wanted_of(scene, 1), fov=1.5)  # the horizon is in it
    camera = pinhole(wanted, 21, 28)
    plain = render_view(model, scene, camera)
    model.supersample = 5
    smooth, field = render_view(model, scene, camera), Field(scene, lambda: model)
    assert (smooth.rgb != plain.rgb).any()
    for last, expected in ((True, smooth), (False, plain)):
        field.speed.per_ray, drawing = 1e-3, Drawing(field, wanted, camera, last=last)  # as if drawing were slow
        shares = list(drawing)
        for name in ('rgb', 'acc', 'disp'):
            np.testing.assert_array_equal(getattr(drawing.frame(True).view, name), getattr(expected, name))
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert len(shares) > 10
