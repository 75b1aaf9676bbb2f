"""photographs.py and the folders of reduced photographs that it makes (nerf/captures/reduced_folder.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_load_photos import refused

from nerf.captures.lenses import lens_of
from nerf.captures.photographs import Photograph, is_inside, read_pictures, rigid
from nerf.captures.reduced_folder import make_reduced

GREY = Image.new('RGB', (16, 12), (90, 90, 90))


def photographs(*paths: Path, size=(16, 12)) -> list[Photograph]:
    """Photographs with the same camera, once there are pictures at the paths."""
    lens = lens_of('PINHOLE', {'fx': 20.0, 'fy': 21.0, 'cx': 9.0, 'cy': 5.0})
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        GREY.save(path)
    return [Photograph(path.name, path, np.eye(3, 4), lens, size) for path in paths]


def reduced(scene: Path, *names: str) -> list[str]:
    """Where photographs of such names are once they are reduced, relative to the scene."""
    pictures = read_pictures(photographs(*(scene / name for name in names)), scene, 2)
    assert {image.shape for image in pictures.images} == {(6, 8, 3)}
    assert pictures.intrinsics[0].tolist() == [10, 10.5, 4.5, 2.5]
    return [str(path.relative_to(scene)) for path in pictures.paths]


@pytest.mark.parametrize(('names', 'expected'), [
    (['images/a.png', 'images/b.jpg'], ['images_2/a.png', 'images_2/b.png']),
    (['images/left/a.png', 'images/left/b.png'], ['images_2/left/a.png', 'images_2/left/b.png']),
    (['rgb/a.png', 'rgb/b.png'], ['images_2/a.png', 'images_2/b.png']),
    (['a.png', 'b.png'], ['images_2/a.png', 'images_2/b.png']),
    (['images/a.png', 'more/b.png'], ['images_2/images/a.png', 'images_2/more/b.png']),
    (['../other/a.png', '../other/b.png'], ['images_2/a.png', 'images_2/b.png'])])
def test_reduced_photographs_stand_in_one_folder_as_the_others_do(tmp_path, names, expected):
    scene = tmp_path / 'scene'
    scene.mkdir()
    assert reduced(scene, *names) == expected
    assert reduced(scene, *names) == expected  # now they are there
    assert sorted(path.name for path in scene.iterdir() if path.name.startswith('.')) == []


def test_reduced_photographs_of_relative_folders_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scene = Path('scene')
    pictures = read_pictures(photographs(scene / 'images/a.png', tmp_path / 'scene/images/b.png'), scene, 2)
    assert pictures.paths == [scene / 'images_2/a.png', scene / 'images_2/b.png']


def test_photographs_whose_reduced_names_would_coincide_are_an_error(tmp_path):
    refused(lambda: reduced(tmp_path, 'images/a.png', 'images/a.jpg'), str(tmp_path / 'images'), 'coincide')
    assert not (tmp_path / 'images_2').exists()


def test_missing_photographs_are_counted_before_any_is_reduced(tmp_path):
    several = photographs(*(tmp_path / f'images/{name}.png' for name in 'abc'))
    for name in 'bc':
        (tmp_path / f'images/{name}.png').unlink()
    for factor in (1, 2):
        refused(lambda factor=factor: read_pictures(several, tmp_path, factor), '2 of 3 photographs', 'images/b.png')
    assert not (tmp_path / 'images_2').exists()


def test_a_factor_that_leaves_nothing_is_an_error(tmp_path):
    refused(lambda: read_pictures(photographs(tmp_path / 'images/a.png'), tmp_path, 100), '16x12', 'factor 100')
    assert [path.name for path in tmp_path.iterdir()] == ['images']


def test_where_one_picture_has_alpha_all_have(tmp_path):
    several = photographs(tmp_path / 'a.png', tmp_path / 'b.png')
    Image.new('RGBA', (16, 12), (1, 2, 3, 4)).save(tmp_path / 'a.png')
    images = read_pictures(several, tmp_path, 1).images
    assert [image[0, 0].tolist() for image in images] == [[1, 2, 3, 4], [90, 90, 90, 255]]


def test_colours_are_reduced_by_how_opaque_they_are(tmp_path):
    picture = np.zeros((4, 4, 4), np.uint8)
    picture[:, ::2], picture[:, 1::2] = [200, 0, 0, 255], [100, 50, 0, 0]
    Image.fromarray(picture).save(tmp_path / 'a.png')
    make_reduced([tmp_path / 'a.png'], ['a.png'], tmp_path / 'images_2', 2)
    small = np.asarray(Image.open(tmp_path / 'images_2/a.png'))
    assert small.shape == (2, 2, 4)
    assert np.abs(small.astype(int) - [200, 0, 0, 128]).max() <= 1


@pytest.mark.parametrize(('size', 'fits'), [
    ((16, 12), True), ((160, 120), True), ((1.6e5, 1.2e5), True), ((159, 121), True), ((8, 6), True), ((12, 16), False),
    ((16, 16), False), ((19, 12), False)])
def test_a_camera_is_for_pictures_of_its_proportions(tmp_path, size, fits):
    several = photographs(tmp_path / 'a.png', size=size)
    if fits:
        np.testing.assert_allclose(read_pictures(several, tmp_path, 1).intrinsics[0], [
            20 * 16 / size[0], 21 * 12 / size[1], 9 * 16 / size[0], 5 * 12 / size[1]])
    else:
        refused(lambda: read_pictures(several, tmp_path, 1), 'a.png is 16x12', f'for {size[0]}x{size[1]}')


def test_pictures_stand_upright_or_as_they_are_stored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    several = photographs(tmp_path / 'a.png', size=(12, 16))
    GREY.save(tmp_path / 'a.png', exif=exif)
    assert read_pictures(several, tmp_path, 1).images[0].shape == (16, 12, 3)
    refused(lambda: read_pictures(several, tmp_path, 1, upright=False), '16x12', 'rotated')


def test_a_pose_far_away_or_mirrored_is_none():
    for matrix, word in ((np.full((3, 4), 1e11), 'above'), (np.diag([1.0, 1, -1, 1])[:3], 'mirrored'),
                         (np.diag([1.0, 1, 1.002, 1])[:3], 'length')):
        with pytest.raises(ValueError, match=word):
            rigid(matrix)


def test_a_file_is_inside_once_links_are_followed(tmp_path):
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in/loop').symlink_to(tmp_path / 'in/loop')
    (tmp_path / 'in/out').symlink_to(tmp_path)
    (tmp_path / 'link').symlink_to(tmp_path / 'in')
    assert is_inside(tmp_path / 'in/a.png', tmp_path / 'link')
    assert is_inside(tmp_path / 'link/a.png', tmp_path / 'in')
    for name in ('in/out/a.png', 'in/../a.png', 'inside/a.png', 'in/\0', '/'):
        assert not is_inside(tmp_path / name, tmp_path / 'in')
