"""reduced.py: where reduced photographs lie, that their folder appears whole or not at all, and that it fits."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from captured import refused
from PIL import Image

from nerf.captures.reduced import make_missing, make_reduced, reduced_places
from nerf.files.images import read_image



def pictures(*paths: Path, size=(16, 12), grey: int = 90) -> list[Path]:
    """Writes grey pictures."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', size, (grey, grey, grey)).save(path)
    return list(paths)


def reduced_paths(paths: list[Path], scene: Path, factor: int, upright: bool = False) -> list[Path]:
    """Where photographs are once they are reduced."""
    return make_missing(paths, reduced_places(paths, scene, factor), scene, factor, upright)


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


def test_photographs_that_another_machine_has_do_not_decide_where_the_others_are(tmp_path):
    paths = [*pictures(tmp_path / 'images/a.png'), Path('/home/somebody/scene/images/b.png')]
    assert reduced_places(paths, tmp_path, 2) == [tmp_path / 'images_2/a.png', tmp_path / 'images_2/b.png']


def test_photographs_whose_reduced_names_would_coincide_are_an_error(tmp_path):
    refused(lambda: reduced(tmp_path, 'images/a.png', 'images/a.jpg'), str(tmp_path), 'coincide')
    assert not (tmp_path / 'images_2').exists()


def test_a_factor_that_leaves_nothing_is_an_error(tmp_path):
    refused(lambda: reduced_paths(pictures(tmp_path / 'images/a.png'), tmp_path, 100), '16x12', 'factor 100')
    assert [path.name for path in tmp_path.iterdir()] == ['images']


def test_reduced_photographs_of_others_are_found_with_any_ending(tmp_path):
    paths = pictures(*(tmp_path / f'images/{name}.png' for name in 'abc'))
    pictures(*(tmp_path / f'images_4/{name}' for name in ('a.png', 'b.JPG', 'c.jpeg')), size=(4, 3))
    assert [path.name for path in reduced_paths(paths, tmp_path, 4)] == ['a.png', 'b.JPG', 'c.jpeg']


@pytest.mark.parametrize('upright', [False, True])
def test_reduced_photographs_fit_readers_that_turn_pictures_and_those_that_do_not(tmp_path, upright):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = np.zeros((12, 16, 3), np.uint8)
    picture[:, :8] = 200
    Image.fromarray(picture).save(tmp_path / 'a.png', exif=exif)
    for _ in range(2):
        (path,) = reduced_paths([tmp_path / 'a.png'], tmp_path, 2, upright)
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


# Whether they fit the photographs


def age(*paths: Path) -> None:
    """Makes files as old as can be."""
    for path in paths:
        os.utime(path, (1e9, 1e9))


def test_reduced_photographs_that_are_missing_are_added_and_the_others_stay(tmp_path, capsys):
    paths = pictures(*(tmp_path / f'images/{name}.png' for name in 'abc'))
    (old,) = pictures(tmp_path / 'images_2/a.JPG', size=(8, 6), grey=10)
    before = old.read_bytes()
    made = reduced_paths(paths, tmp_path, 2)
    assert [path.name for path in made] == ['a.JPG', 'b.png', 'c.png']
    assert [Image.open(path).getpixel((0, 0))[0] for path in made] == [10, 90, 90]
    assert old.read_bytes() == before
    assert 'images_2: 2 of 3 photographs were missing in it' in capsys.readouterr().err
    assert reduced_paths(paths, tmp_path, 2) == made
    assert capsys.readouterr().err == ''


def test_a_folder_of_other_pictures_is_not_added_to(tmp_path):
    paths = pictures(tmp_path / 'images/IMG_1.JPG')
    pictures(tmp_path / 'images_2/image000.png', size=(8, 6))
    refused(lambda: reduced_paths(paths, tmp_path, 2), 'images_2 has image000.png, but none of', 'IMG_1.JPG', 'rename')
    assert [path.name for path in (tmp_path / 'images_2').iterdir()] == ['image000.png']


def test_older_reduced_photographs_are_used_if_they_show_the_same(tmp_path):
    paths = pictures(*(tmp_path / f'images/{i:02d}.png' for i in range(20)))
    small = pictures(*(tmp_path / f'images_2/{path.name}' for path in paths), size=(8, 6), grey=92)
    age(*small)
    assert reduced_paths(paths, tmp_path, 2) == small
    pictures(*paths, grey=200)
    refused(lambda: reduced_paths(paths, tmp_path, 2), 'is older than', 'images/', 'shows something else',
            f"delete {tmp_path / 'images_2'}")
    pictures(*small, size=(8, 6))  # newer ones are somebody's choice
    assert reduced_paths(paths, tmp_path, 2) == small
    for path in paths:
        path.unlink()
    age(*small)
    assert reduced_paths(paths, tmp_path, 2) == small


@pytest.mark.parametrize(('size', 'fits'), [((8, 6), True), ((9, 6), True), ((6, 8), False), ((4, 3), False),
                                            ((16, 12), False)])
def test_reduced_photographs_of_another_size_are_refused(tmp_path, size, fits):
    paths = pictures(tmp_path / 'images/a.png')
    small = pictures(tmp_path / 'images_2/a.png', size=size)
    if fits:
        assert reduced_paths(paths, tmp_path, 2) == small
    else:
        refused(lambda: reduced_paths(paths, tmp_path, 2), 'images_2/a.png is not 1/2 of the size of',
                f"delete {tmp_path / 'images_2'}")
