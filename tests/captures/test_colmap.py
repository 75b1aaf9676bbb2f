"""colmap.py: COLMAP's models, against what COLMAP itself wrote."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from captured import refused

from nerf.captures.colmap import read_model


@pytest.mark.parametrize('text', [False, True])
def test_a_model_is_read_as_colmap_wrote_it(tiny_colmap, tmp_path, text):
    folder, expected = tiny_colmap(tmp_path, text)
    model = read_model(folder)
    assert model.folder == folder / 'sparse/0'
    assert model.cameras[1].intrinsics.tolist() == [40, 41, 17, 11]
    assert model.cameras[1].distortion.tolist() == [0.05, -0.01, 0.001, 0.002, 0, 0, 0, 0]
    assert model.cameras[2].intrinsics.tolist() == [42, 43, 15, 13]
    assert model.cameras[2].size == (32, 24)
    assert sorted(image.name for image in model.images) == ['0.png', '2.png', '4.png', 'some more/1.png',
                                                            'some more/3.png', 'some more/5.png']
    for image in model.images:
        other = expected.find_image_with_name(image.name)
        assert image.camera_id == other.camera_id
        x, y, z, w = other.cam_from_world().rotation.quat
        np.testing.assert_allclose(image.quaternion, [w, x, y, z], atol=1e-12)
        np.testing.assert_allclose(image.translation, other.cam_from_world().translation, atol=1e-12)
        ids = [point.point3D_id if point.has_point3D() else -1 for point in other.points2D]
        assert image.point_ids.tolist() == ids
    assert sorted(model.points.ids) == sorted(expected.points3D)
    for point_id, place, error, track in zip(*model.points):
        other = expected.points3D[point_id]
        np.testing.assert_allclose(place, other.xyz, atol=1e-12)
        assert error == other.error
        assert track == other.track.length()


def test_the_model_is_found_in_each_of_its_places_and_binary_comes_before_text(tiny_colmap, tmp_path):
    folder, _ = tiny_colmap(tmp_path / 'a', text=True)
    (folder / 'sparse/0').rename(tmp_path / 'model')
    for place in ('sparse', 'colmap/sparse/0', '.'):
        scene = tmp_path / place.replace('/', '_') / 'scene'
        scene.mkdir(parents=True)
        for path in (tmp_path / 'model').iterdir():
            (scene / place).mkdir(parents=True, exist_ok=True)
            (scene / place / path.name).write_bytes(path.read_bytes())
        assert len(read_model(scene).images) == 6
    for path in (tmp_path / 'model').glob('*.bin'):
        path.unlink()
    other, _ = tiny_colmap(tmp_path / 'b', count=4)
    for path in (tmp_path / 'model').iterdir():
        (other / 'sparse/0' / path.name).write_bytes(path.read_bytes())
    assert len(read_model(other).images) == 4


def test_points_need_not_be_known(tiny_colmap, tmp_path):
    for text in (False, True):
        folder, _ = tiny_colmap(tmp_path / str(text), text)
        (folder / 'sparse/0' / f'points3D.{"txt" if text else "bin"}').unlink()
        model = read_model(folder)
        assert model.points is None
        assert len(model.images) == 6


def test_an_image_without_features_has_an_empty_line(tmp_path):
    (tmp_path / 'cameras.txt').write_text('1 SIMPLE_PINHOLE 20 10 30 10 5\n')
    (tmp_path / 'images.txt').write_text('# comment\n1 1 0 0 0 1 2 3 1 a b.png\n\n2 1 0 0 0 4 5 6 1 c.png\n'
                                         '1.5 2.5 7 3 4 -1\n3 1 0 0 0 7 8 9 1 d.png\n')
    images = read_model(tmp_path).images
    assert [image.name for image in images] == ['a b.png', 'c.png', 'd.png']
    assert [image.point_ids.tolist() for image in images] == [[], [7, -1], []]
    assert images[2].translation.tolist() == [7, 8, 9]


def test_a_folder_without_a_model_is_an_error(tmp_path):
    refused(lambda: read_model(tmp_path), str(tmp_path), 'no COLMAP model', 'sparse/0')


def damaged(folder: Path, name: str, capsys, *words: str) -> None:
    """Asserts that a file of a model is damaged: an error with some words or, of points, a line with them."""
    if name == 'points3D':
        assert read_model(folder).points is None
        line, = capsys.readouterr().err.splitlines()
        assert all(word in line for word in ('points3D.', 'used without sparse points', *words))
    else:
        refused(lambda: read_model(folder), f'{name}.', *words)


@pytest.mark.parametrize('name', ['cameras', 'images', 'points3D'])
def test_a_binary_file_that_ends_anywhere_else_is_damaged(tiny_colmap, tmp_path, capsys, name):
    folder, _ = tiny_colmap(tmp_path, count=3)
    path = folder / 'sparse/0' / f'{name}.bin'
    whole = path.read_bytes()
    for length in {0, 7, 8, 40, len(whole) // 2, len(whole) - 1}:
        path.write_bytes(whole[:length])
        damaged(folder, name, capsys, 'damaged')
    path.write_bytes(whole + b'\0')
    damaged(folder, name, capsys, 'something is left')
    path.write_bytes(whole)
    assert len(read_model(folder).images) == 3


@pytest.mark.parametrize('name', ['cameras', 'images', 'points3D'])
def test_counts_of_nearly_infinitely_many_things_take_no_memory(tiny_colmap, tmp_path, capsys, name):
    folder, _ = tiny_colmap(tmp_path, count=2)
    path = folder / 'sparse/0' / f'{name}.bin'
    whole = path.read_bytes()
    path.write_bytes(struct.pack('<Q', 2 ** 64 - 1) + whole[8:])
    damaged(folder, name, capsys, 'ends too early')
    place = {'cameras': None, 'images': 8 + 64 + len('0.png') + 1, 'points3D': 8 + 43}[name]
    if place:
        count = struct.unpack_from('<Q', whole, place)[0]
        assert count == {'images': 22, 'points3D': 1}[name]  # of features; of features that show the first point
        path.write_bytes(whole[:place] + struct.pack('<Q', 2 ** 61 + 1) + whole[place + 8:])
        damaged(folder, name, capsys, 'ends too early')


def test_a_lens_that_cannot_be_held_is_named_with_what_to_do(tiny_colmap, tmp_path):
    for text in (False, True):
        folder, _ = tiny_colmap(tmp_path / str(text), text, model='FOV', parameters=(40.0, 40.0, 16.0, 12.0, 0.9))
        refused(lambda folder=folder: read_model(folder), 'camera 1', 'FOV', 'image_undistorter')
    path = folder / 'sparse/0/cameras.txt'
    path.write_text('1 LENSBABY 20 10 30 10 5\n')
    refused(lambda: read_model(folder), 'LENSBABY', 'image_undistorter')


@pytest.mark.parametrize(('line', 'words'), [
    ('1 PINHOLE 20 10 30 30 10', ['3 parameters', 'PINHOLE has 4']), ('1 PINHOLE 20 0 30 30 10 5', ['20x0']),
    ('1 PINHOLE 20 10 nan 30 10 5', ['fx is nan']), ('1 PINHOLE 20 ten 30 30 10 5', ['20 ten 30']),
    ('1 PINHOLE', ['1 PINHOLE']), ('1 SIMPLE_RADIAL 20 10 -30 10 5 0', ['fx is -30'])])
def test_a_broken_camera_is_named(tmp_path, line, words):
    (tmp_path / 'cameras.txt').write_text(line + '\n')
    (tmp_path / 'images.txt').write_text('1 1 0 0 0 1 2 3 1 a.png\n\n')
    refused(lambda: read_model(tmp_path), 'cameras.txt', *words)


@pytest.mark.parametrize(('name', 'text'), [
    ('images', '1 1 0 0 0 1 2 3 1\n\n'), ('images', '1 1 0 0 0 1 2 x 1 a.png\n\n'),
    ('images', '1 1 0 0 0 1 2 3 1 a.png\n1 2 3.5\n'), ('images', '1 1 0 0 0 1 2 3 1 a.png\n1 2 3 4\n'),
    ('points3D', '99999999999999999999 1 2 3 0 0 0 1 1 0\n'), ('points3D', '1 2 3 four 0 0 0 1 1 0\n')])
def test_a_broken_line_is_named(tmp_path, capsys, name, text):
    (tmp_path / 'cameras.txt').write_text('1 SIMPLE_PINHOLE 20 10 30 10 5\n')
    (tmp_path / 'images.txt').write_text('1 1 0 0 0 1 2 3 1 a.png\n\n')
    (tmp_path / f'{name}.txt').write_text(text)
    damaged(tmp_path, name, capsys, 'damaged')
