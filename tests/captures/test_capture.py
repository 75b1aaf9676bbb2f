"""capture.py: photographs of one camera each, read with lenses that fit them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from captured import capture_of, refused
from PIL import Image

from nerf.captures.capture import Capture, PosedPhotograph, every_nth, held_out, named_splits, read_capture
from nerf.captures.lenses import lens_of

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
    refused(lambda: named_splits(Path('file'), 'ab', {'test': 'ab'}), 'file', 'no image to train on')
    refused(lambda: named_splits(Path('file'), 'ab', {'val': 'xy'}), 'val_filenames has 2 names', 'no frame has: x, y')


def test_lists_that_train_on_all_images_hold_none_out(capsys):
    assert named_splits(Path('file'), 'abc', {'train': 'acb', 'val': '', 'test': ''}) is None
    assert capsys.readouterr().err == (
        'warning: file: its lists of file names leave no image to test on; llffhold decides instead\n')
    assert named_splits(Path('file'), 'ab', {'train': 'ab', 'test': 'g'}, gone={'g'}) is None


def test_names_that_no_image_has_are_left_out_of_lists(capsys):
    splits = named_splits(Path('file'), 'abcd', {'test': 'xay', 'train': 'bg'}, gone={'g'})
    assert [part.tolist() for part in splits] == [[1], [0], [0]]
    line, = capsys.readouterr().err.splitlines()  # those that are gone have had a line of their own
    assert line == 'warning: file: 2 names in test_filenames that no frame has are left out: x, y'
    splits = named_splits(Path('file'), 'abc', {'test': 'g'}, gone={'g'})
    assert splits is None
