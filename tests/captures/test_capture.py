"""capture.py: photographs of one camera each, read with lenses that fit them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from captured import capture_of, refused
from PIL import Image

from nerf.captures.capture import (
    Capture, PosedPhotograph, every_nth, held_out, make_reduced, named_splits, read_capture, reduced_paths,
)
from nerf.captures.colmap import lens_of
from nerf.files.images import read_image

GREY = Image.new('RGB', (16, 12), (90, 90, 90))


def photographs(*paths: Path, size=(16, 12)) -> list[PosedPhotograph]:
    """Photographs with the same camera, once there are pictures at the paths."""
    lens = lens_of('PINHOLE', size, {'fx': 20.0, 'fy': 21.0, 'cx': 9.0, 'cy': 5.0})
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        GREY.save(path)
    return [PosedPhotograph(path.name, path, np.eye(3, 4), lens) for path in paths]


def read(several: list[PosedPhotograph], scene: Path, factor: int, upright: bool = False) -> Capture:
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
    assert read(several, tmp_path, 1, upright=True).images[0].shape == (16, 12, 3)
    refused(lambda: read(several, tmp_path, 1), '16x12', 'rotated')


def test_a_photograph_with_two_cameras_is_an_error(tmp_path):
    several = photographs(tmp_path / 'a.png', tmp_path / 'a.png')
    refused(lambda: read(several, tmp_path, 1), 'a.png', 'has 2 cameras')


def test_some_photographs_of_a_capture_keep_their_splits_points_and_masks():
    poses = np.tile(np.eye(3, 4), (6, 1, 1))
    poses[:, 0, 3] = np.arange(6)
    capture = capture_of(poses, points=np.ones((4, 3)), seen=[np.array([i % 4]) for i in range(6)],
                         masks=[np.full((30, 40), i == 4) for i in range(6)])
    some = replace(capture, i_test=np.array([0, 3]), i_train=np.array([1, 2, 4, 5])).take(np.array([1, 3, 4]))
    assert [path.name for path in some.paths] == ['001.png', '003.png', '004.png']
    assert some.cameras.poses[:, 0, 3].tolist() == [1.0, 3.0, 4.0]
    assert (some.i_train.tolist(), some.i_val.tolist(), some.i_test.tolist()) == ([0, 2], [], [1])
    assert [part.tolist() for part in some.seen] == [[1], [3], [0]]
    assert [mask.all() for mask in some.masks] == [False, False, True]
    assert some.points is capture.points
    assert capture.take(np.array([2])).masks is not None
    assert capture_of(poses).take(np.array([2])).masks is None


def test_masks_need_not_be_there_for_all(tmp_path):
    one, other = photographs(tmp_path / 'a.png', tmp_path / 'b.png')
    assert read([one, other], tmp_path, 1).masks is None
    Image.new('L', (16, 12), 0).save(tmp_path / 'mask.png')
    masks = read([one, other._replace(mask=tmp_path / 'mask.png')], tmp_path, 1).masks
    assert masks[0].all()
    assert not masks[1].any()
    refused(lambda: read([one, other._replace(mask=tmp_path / 'gone.png')], tmp_path, 1), '1 of 1 masks are missing')


# Where reduced photographs lie, and that their folder appears whole or not at all


def pictures(*paths: Path) -> list[Path]:
    """Writes grey pictures of 16x12 pixels."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (16, 12), (90, 90, 90)).save(path)
    return list(paths)


def reduced(scene: Path, *names: str) -> list[str]:
    """Where photographs of such names are once they are reduced, relative to the scene."""
    paths = reduced_paths(pictures(*(scene / name for name in names)), scene, 2)
    assert {Image.open(path).size for path in paths} == {(8, 6)}
    return [str(path.relative_to(scene)) for path in paths]


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
    paths = pictures(scene / 'images/a.png', tmp_path / 'scene/images/b.png')
    assert reduced_paths(paths, scene, 2) == [scene / 'images_2/a.png', scene / 'images_2/b.png']


def test_photographs_whose_reduced_names_would_coincide_are_an_error(tmp_path):
    refused(lambda: reduced(tmp_path, 'images/a.png', 'images/a.jpg'), str(tmp_path / 'images'), 'coincide')
    assert not (tmp_path / 'images_2').exists()


def test_missing_photographs_are_counted_before_any_is_reduced(tmp_path):
    several = pictures(*(tmp_path / f'images/{name}.png' for name in 'abc'))
    for name in 'bc':
        (tmp_path / f'images/{name}.png').unlink()
    refused(lambda: reduced_paths(several, tmp_path, 2), '2 of 3 photographs', 'images/b.png')
    assert not (tmp_path / 'images_2').exists()


def test_a_factor_that_leaves_nothing_is_an_error(tmp_path):
    refused(lambda: reduced_paths(pictures(tmp_path / 'images/a.png'), tmp_path, 100), '16x12', 'factor 100')
    assert [path.name for path in tmp_path.iterdir()] == ['images']


def test_reduced_photographs_of_others_are_found_with_any_ending(tmp_path):
    paths = pictures(*(tmp_path / f'images/{name}.png' for name in 'abc'))
    pictures(tmp_path / 'images_4/a.png', tmp_path / 'images_4/b.JPG', tmp_path / 'images_4/c.jpeg')
    assert [path.name for path in reduced_paths(paths, tmp_path, 4)] == ['a.png', 'b.JPG', 'c.jpeg']


def test_reduced_photographs_fit_readers_that_turn_pictures_and_those_that_do_not(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = np.zeros((12, 16, 3), np.uint8)
    picture[:, :8] = 200
    Image.fromarray(picture).save(tmp_path / 'a.png', exif=exif)
    (path,) = reduced_paths([tmp_path / 'a.png'], tmp_path, 2)
    assert np.array_equal(read_image(path), picture[::2, ::2])
    assert np.array_equal(read_image(path, upright=True), np.rot90(picture[::2, ::2], 3))


def test_colours_are_reduced_by_how_opaque_they_are(tmp_path):
    picture = np.zeros((4, 4, 4), np.uint8)
    picture[:, ::2], picture[:, 1::2] = [200, 0, 0, 255], [100, 50, 0, 0]
    Image.fromarray(picture).save(tmp_path / 'a.png')
    make_reduced([tmp_path / 'a.png'], ['a.png'], tmp_path / 'images_2', 2)
    small = np.asarray(Image.open(tmp_path / 'images_2/a.png'))
    assert small.shape == (2, 2, 4)
    assert np.abs(small.astype(int) - [200, 0, 0, 128]).max() <= 1


# Training, validation and test images: test_load_photos.py has them through files


@pytest.mark.parametrize(('llffhold', 'test'), [(3, [0, 3, 6]), (8, [0]), (100, [0]), (0, [2])])
def test_every_nth_image_is_held_out_or_the_central_one(llffhold, test):
    i_train, i_test = held_out('scene', 7, llffhold, 2)
    assert i_test.tolist() == test
    assert i_train.tolist() == [i for i in range(7) if i not in test]


def test_no_training_image_is_an_error():
    refused(lambda: held_out('here', 5, 1, 0), 'here: llffhold 1 takes all 5 images')


def test_the_central_image_is_nearest_to_the_mean_position(tmp_path):
    several = photographs(*(tmp_path / name for name in ('a.png', 'b.png', 'c.png')))
    for photograph, position in zip(several, [[0.0, 0, 0], [10, 0, 0], [4, 1, 0]]):
        photograph.pose[:, 3] = position
    assert [part.tolist() for part in every_nth(tmp_path, several, 0)] == [[0, 1], [2], [2]]


@pytest.mark.parametrize(('lists', 'expected'), [
    ({}, None), ({'train': [], 'test': []}, None), ({'train': 'db', 'val': 'c', 'test': 'a'}, [[1, 3], [2], [0]]),
    ({'test': 'b'}, [[0, 2, 3], [1], [1]]), ({'train': 'ab'}, [[0, 1], [2, 3], [2, 3]]),
    ({'val': 'b'}, [[0, 2, 3], [1], [1]]), ({'train': 'aa', 'test': 'bb'}, [[0], [1], [1]])])
def test_lists_of_names_decide(lists, expected):
    splits = named_splits(Path('file'), 'abcd', lists)
    assert splits == expected if expected is None else [part.tolist() for part in splits] == expected


def test_lists_that_leave_nothing_or_name_nothing_are_errors():
    refused(lambda: named_splits(Path('file'), 'ab', {'train': 'ab'}), 'file', 'no image to test on')
    refused(lambda: named_splits(Path('file'), 'ab', {'test': 'ab'}), 'file', 'no image to train on')
    refused(lambda: named_splits(Path('file'), 'ab', {'val': 'xay'}), "val_filenames has 2 names", "'x'")
