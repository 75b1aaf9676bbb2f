"""reduced_folder.py: where reduced photographs lie, and that their folder appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from captured import refused
from PIL import Image

from nerf.captures.reduced_folder import make_reduced, reduced_paths


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


def test_reduced_photographs_stand_upright_or_as_they_are_stored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (16, 12)).save(tmp_path / 'a.png', exif=exif)
    for factor, upright, size in ((2, True, (6, 8)), (4, False, (4, 3))):
        (path,) = reduced_paths([tmp_path / 'a.png'], tmp_path, factor, upright)
        assert Image.open(path).size == size


def test_colours_are_reduced_by_how_opaque_they_are(tmp_path):
    picture = np.zeros((4, 4, 4), np.uint8)
    picture[:, ::2], picture[:, 1::2] = [200, 0, 0, 255], [100, 50, 0, 0]
    Image.fromarray(picture).save(tmp_path / 'a.png')
    make_reduced([tmp_path / 'a.png'], ['a.png'], tmp_path / 'images_2', 2)
    small = np.asarray(Image.open(tmp_path / 'images_2/a.png'))
    assert small.shape == (2, 2, 4)
    assert np.abs(small.astype(int) - [200, 0, 0, 128]).max() <= 1
