"""nerf/fields/lattice_view.py: what a view that skips empty rays shows, and how little it asks for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from known_fields import Shown, mask_of, scene_of, shown_model

from nerf.fields import lattice_view
from nerf.fields.lattice_view import around, front_to_back, lattice
from nerf.fields.paper import PaperModel
from nerf.rendering import View, render_view, view_rays
from run_nerf_helpers import Rays, render_rays


def view_of(model: PaperModel) -> View:
    scene = scene_of(*model.coarse.mask.shape)
    return render_view(model, scene, scene.cameras)


def test_the_lattice_meets_any_five_pixels_in_a_line():
    asked = lattice(15, 20).reshape(15, 20).numpy()
    assert asked.sum() == 60
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        for row in range(10):
            for column in range(5, 15):
                assert sum(asked[row + i * down, column + i * right] for i in range(5)) == 1


def test_around_a_pixel_are_those_up_to_two_away():
    expected = np.zeros((9, 12), bool)
    expected[3:8, 0:4] = True  # the picture ends one column to the left
    found = around(torch.from_numpy(mask_of((5, 1), shape=(9, 12))).flatten(), 9, 12)
    np.testing.assert_array_equal(found.reshape(9, 12), expected)


def assert_same_as_all_rays(model: PaperModel) -> None:
    view, scene = view_of(model), scene_of(20, 24)
    whole = render_rays(view_rays(model, scene, scene.cameras), model.coarse, model.fine, model.sampling)
    for ours, theirs in ((view, whole.final), (view.passes['coarse'], whole.coarse)):
        for name in ('rgb', 'disp', 'acc'):
            np.testing.assert_allclose(getattr(ours, name).reshape(480, -1), getattr(theirs, name).reshape(480, -1),
                                       atol=2e-4, err_msg=name)
    np.testing.assert_allclose(view.spread.ravel(), whole.z_std, atol=1e-6)


@pytest.mark.parametrize('density', [1.0, 100.0])
def test_a_view_is_what_all_of_its_rays_show(density):
    """Half of the picture, and a speck that the coarse field alone sees and one for the fine field."""
    blocks = np.zeros((20, 24), bool)
    blocks[:, 12:] = True
    model = shown_model(blocks | mask_of((4, 2), (4, 3), (5, 2), (5, 3), (3, 2)),
                        blocks | mask_of((14, 2), (14, 3), (15, 2), (15, 3), (13, 2)), density=density)
    assert_same_as_all_rays(model)


def test_a_ray_that_pads_a_tile_before_it_is_found_is_drawn_again_with_its_coarse_pass():
    """Only (7, 4) is on the lattice; it is followed upwards. (0, 4) pads the first fine tile."""
    assert_same_as_all_rays(shown_model(mask_of((7, 4), (5, 4), (3, 4), (1, 4), (0, 4)), density=1.0))


@pytest.mark.parametrize('step', [(0, 1), (1, 0), (1, 1), (1, -1)])
@pytest.mark.parametrize('start', range(5))
@pytest.mark.parametrize('where', ['both', 'fine'])
def test_five_pixels_in_a_line_are_found_by_either_field(step, start, where):
    mask = mask_of(*((3 + i * step[0], 8 + start + i * step[1]) for i in range(5)))
    model = shown_model(mask if where == 'both' else np.zeros_like(mask), mask)
    np.testing.assert_array_equal(view_of(model).acc > 0.5, mask)


def test_what_is_found_is_followed_to_its_end():
    spiral = mask_of(*((0, column) for column in range(24)), *((row, 23) for row in range(20)),
                     *((19, column) for column in range(8, 24)), *((row, 8) for row in range(7, 19, 2)))
    np.testing.assert_array_equal(view_of(shown_model(spiral)).acc > 0.5, spiral)


def test_an_empty_view_asks_a_fifth_of_its_rays_and_a_full_one_asks_each_once():
    empty, full = shown_model(np.zeros((20, 25), bool)), shown_model(np.ones((20, 25), bool), density=0.1)
    assert (view_of(empty).rgb == 1.0).all()
    assert (empty.coarse.asked, empty.fine.asked) == (104 * 64, 104 * 64)  # padded to a multiple of 8
    view_of(full)
    assert (full.coarse.asked, full.fine.asked) == ((104 + 400) * 64, 500 * 128)


def test_nothing_is_asked_behind_a_wall():
    model = shown_model(np.ones((20, 25), bool), density=1000.0)
    view_of(model)
    assert model.coarse.deepest > 1.9  # the coarse pass goes to the end of each ray
    assert model.fine.deepest < 1.0
    assert model.fine.asked < 500 * 90


@pytest.mark.parametrize(('density', 'last'), [(25.0, 5.5), (50.0, 4.1)])  # optical depths of 5, and of 10
def test_what_hides_the_rest_does_not_depend_on_how_long_directions_are(monkeypatch, density, last):
    monkeypatch.setattr(lattice_view, 'STRETCHES', 50)
    field = Shown(np.ones((20, 24), bool), density)
    ahead = torch.tensor([[0.0, 1.0, 0.0]])
    rays = Rays(-4.0 * ahead, 2.0 * ahead, viewdirs=ahead, near=torch.tensor([[1.0]]), far=torch.tensor([[3.0]]))
    front_to_back(field, rays, torch.linspace(1.75, 2.75, 400)[None], True)
    assert field.deepest + 4.0 == pytest.approx(last, abs=0.05)


@pytest.mark.parametrize('broken', ['coarse', 'fine'])
def test_a_broken_field_does_not_show_an_empty_view(broken):
    model = shown_model(np.zeros((20, 24), bool), np.zeros((20, 24), bool))
    getattr(model, broken).inside = math.nan
    getattr(model, broken).mask[:] = True
    view = view_of(model)
    assert np.isnan((view.passes['coarse'] if broken == 'coarse' else view).acc).all()


def test_view_chunk_is_the_most_at_once_and_chunk_where_there_is_none():
    model = shown_model(mask_of((4, 5)), chunk=7, view_chunk=40)
    view_of(model)
    assert model.coarse.most == 40 * 64
    model = shown_model(mask_of((4, 5)), chunk=7)
    view_of(model)
    assert model.coarse.most == 7 * 64


def test_the_picture_grows_until_all_rays_are_final():
    mask = np.zeros((20, 24), bool)
    mask[:, 4:20] = True
    model, scene = shown_model(mask, chunk=50), scene_of(20, 24)
    counts = [int(picture.final.sum()) for picture in model.show(view_rays(model, scene, scene.cameras), 20, 24)]
    assert counts == sorted(counts)
    assert counts[0] == 0  # the coarse pass of the lattice comes first
    assert 0 < counts[len(counts) // 2] < 480
    assert counts[-1] == 480


def test_what_a_final_ray_shows_changes_no_more():
    mask = np.zeros((20, 24), bool)
    mask[:, 4:20] = True
    model, scene = shown_model(mask, chunk=50, density=1.0), scene_of(20, 24)
    early = []
    for picture in model.show(view_rays(model, scene, scene.cameras), 20, 24):
        final = picture.final.clone()
        early.append((final, picture.rgb[final].clone(), picture.acc[final].clone(), picture.depth[final].clone()))
    for final, *parts in early:
        for part, whole in zip(parts, (picture.rgb, picture.acc, picture.depth)):
            assert torch.equal(part, whole[final])
