"""nerf/viewer/pictures.py: pictures that a page shows of a frame."""

import numpy as np
import pytest

from nerf.rendering import View
from nerf.viewer.drawing import Frame
from nerf.viewer.pictures import FAR, compared, depth_of, fitted, picture_of
from viewer_scene import SCENE, wanted_of


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
