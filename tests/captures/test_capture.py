"""capture.py: photographs of one camera each, read with lenses that fit them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from captured import refused
from PIL import Image

from nerf.captures.capture import Capture, PosedPhotograph, read_capture
from nerf.captures.lenses import lens_of

GREY = Image.new('RGB', (16, 12), (90, 90, 90))


def photographs(*paths: Path, size=(16, 12)) -> list[PosedPhotograph]:
    """Photographs with the same camera, once there are pictures at the paths."""
    lens = lens_of('PINHOLE', {'fx': 20.0, 'fy': 21.0, 'cx': 9.0, 'cy': 5.0})
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        GREY.save(path)
    return [PosedPhotograph(path.name, path, np.eye(3, 4), lens, size) for path in paths]


def read(several: list[PosedPhotograph], scene: Path, factor: int, upright: bool = True) -> Capture:
    return read_capture(several, scene, factor, [np.arange(len(several))] * 3, upright)


def test_where_one_picture_has_alpha_all_have(tmp_path):
    several = photographs(tmp_path / 'a.png', tmp_path / 'b.png')
    Image.new('RGBA', (16, 12), (1, 2, 3, 4)).save(tmp_path / 'a.png')
    images = read(several, tmp_path, 1).images
    assert [image[0, 0].tolist() for image in images] == [[1, 2, 3, 4], [90, 90, 90, 255]]


@pytest.mark.parametrize(('size', 'fits'), [
    ((16, 12), True), ((160, 120), True), ((1.6e5, 1.2e5), True), ((159, 121), True), ((8, 6), True), ((12, 16), False),
    ((16, 16), False), ((19, 12), False)])
def test_a_camera_is_for_pictures_of_its_proportions(tmp_path, size, fits):
    several = photographs(tmp_path / 'a.png', size=size)
    if fits:
        np.testing.assert_allclose(read(several, tmp_path, 1).cameras.intrinsics[0], [
            20 * 16 / size[0], 21 * 12 / size[1], 9 * 16 / size[0], 5 * 12 / size[1]])
    else:
        refused(lambda: read(several, tmp_path, 1), 'a.png is 16x12', f'for {size[0]}x{size[1]}')


def test_pictures_stand_upright_or_as_they_are_stored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    several = photographs(tmp_path / 'a.png', size=(12, 16))
    GREY.save(tmp_path / 'a.png', exif=exif)
    assert read(several, tmp_path, 1).images[0].shape == (16, 12, 3)
    refused(lambda: read(several, tmp_path, 1, upright=False), '16x12', 'rotated')


def test_a_photograph_with_two_cameras_is_an_error(tmp_path):
    several = photographs(tmp_path / 'a.png', tmp_path / 'a.png')
    refused(lambda: read(several, tmp_path, 1), 'a.png', 'has 2 cameras')


def test_masks_need_not_be_there_for_all(tmp_path):
    one, other = photographs(tmp_path / 'a.png', tmp_path / 'b.png')
    assert read([one, other], tmp_path, 1).masks is None
    Image.new('L', (16, 12), 0).save(tmp_path / 'mask.png')
    masks = read([one, other._replace(mask=tmp_path / 'mask.png')], tmp_path, 1).masks
    assert masks[0].all()
    assert not masks[1].any()
    refused(lambda: read([one, other._replace(mask=tmp_path / 'gone.png')], tmp_path, 1), '1 of 1 masks are missing')
