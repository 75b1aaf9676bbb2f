"""colmap.py: COLMAP's models, against what COLMAP itself wrote."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from captured import refused
from PIL import Image

from nerf.captures.colmap import posed_photographs, read_model, reliable_points
from nerf.captures.colmap_files import ColmapImage, ColmapPoints


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


# What other programs write


IMAGE_LINES = ['1 1 0 0 0 1 2 3 1 a.png', '2 1 0 0 0 4 5 6 1 b c.png', '3 1 0 0 0 7 8 9 1 000012']
FEATURES = ['1.5 2.5 7', '3 4 -1 5 6 8 1e1 2 9', '0 0 7 0 0 7']


def text_model(folder: Path, images: str, points: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'cameras.txt').write_text('1 SIMPLE_PINHOLE 20 10 30 10 5\n')
    (folder / 'images.txt').write_text(images)
    if points is not None:
        (folder / 'points3D.txt').write_text(points)
    return folder


@pytest.mark.parametrize('between', ['\n', '\n\n', '\n# comment\n\n', '\r\n', '\n   \n'])
@pytest.mark.parametrize(('features', 'ids'), [
    (['', '', ''], [[], [], []]), (FEATURES, [[7], [-1, 8, 9], [7, 7]]), (['', FEATURES[1], ''], [[], [-1, 8, 9], []]),
    ([FEATURES[0], '', FEATURES[2]], [[7], [], [7, 7]])])
def test_images_are_told_from_their_features_with_any_lines_between(tmp_path, between, features, ids):
    lines = [line for pair in zip(IMAGE_LINES, features) for line in pair if line]
    for head in ('', '\ufeff', '\ufeff# Image list\n\n', '\n\n'):
        images = read_model(text_model(tmp_path, head + between.join(lines) + between)).images
        assert [(image.name, image.translation[0], image.point_ids.tolist()) for image in images] == [
            ('000012', 7, ids[2]), ('a.png', 1, ids[0]), ('b c.png', 4, ids[1])]


def test_a_byte_order_mark_is_no_part_of_cameras_and_points(tmp_path):
    text_model(tmp_path, f'{IMAGE_LINES[0]}\n\n', '\ufeff5 1 2 3 0 0 0 0.5\n\n')
    (tmp_path / 'cameras.txt').write_text('\ufeff1 SIMPLE_PINHOLE 20 10 30 10 5\n')
    model = read_model(tmp_path)
    assert model.cameras[1].intrinsics.tolist() == [30, 30, 10, 5]
    assert model.points.places.tolist() == [[1, 2, 3]]


def test_sizes_and_models_of_cameras_can_be_written_otherwise(tmp_path):
    text_model(tmp_path, f'{IMAGE_LINES[0]}\n\n')
    (tmp_path / 'cameras.txt').write_text('1\tsimple_pinhole 20.0 10.0 30 10 5')
    lens = read_model(tmp_path).cameras[1]
    assert (lens.size, lens.intrinsics.tolist()) == ((20, 10), [30, 30, 10, 5])


def test_points_of_seven_columns_are_left_out_with_a_line(tmp_path, capsys):
    lines = ['1 1 2 3 0 0 0 0.5', '2 4 5 6 9 9 9', '3 7 8 9 9 9 9 0.5 1 0 2 4', '4 7 8 9']
    model = read_model(text_model(tmp_path, f'{IMAGE_LINES[0]}\n\n', '\n'.join(lines)))
    assert model.points.ids.tolist() == [1, 3]
    assert model.points.tracks.tolist() == [0, 2]
    line, = capsys.readouterr().err.splitlines()
    assert 'points3D.txt: 2 of 4 points are left out' in line


def test_points_without_tracks_are_used_and_then_nobody_knows_who_sees_them():
    images = [ColmapImage('a', 1, np.ones(4), np.zeros(3), np.array([5, 6, 7]))]
    places = np.arange(12.0).reshape(4, 3)
    points = ColmapPoints(np.array([5, 6, 7, 8]), places, np.zeros(4), np.array([0, 1, 2, 0]))
    good, seen = reliable_points(points, images)
    assert good.tolist() == places[[0, 2, 3]].tolist()
    assert [each.tolist() for each in seen] == [[0, 1]]
    assert reliable_points(points, [images[0]._replace(point_ids=np.array([-1]))])[1] is None


# Several models


def test_the_largest_model_is_used_and_a_line_names_the_others(tmp_path, capsys):
    for place, count in (('sparse/0', 1), ('sparse/1', 3), ('sparse/2', 2), ('colmap_text', 3)):
        text_model(tmp_path / place, '\n'.join(IMAGE_LINES[:count]))
    model = read_model(tmp_path)
    assert (model.folder, len(model.images)) == (tmp_path / 'sparse/1', 3)
    line, = capsys.readouterr().err.splitlines()
    assert 'has 3 COLMAP models' in line
    assert 'the largest is used, sparse/1 with 3 images; left out: sparse/0 with 1 images, sparse/2 with 2' in line
    (tmp_path / 'sparse/1/images.txt').write_text('1 2 3')
    assert read_model(tmp_path).folder == tmp_path / 'sparse/2'
    assert "sparse/1/images.txt is damaged" in capsys.readouterr().err
    for number in (0, 2):
        (tmp_path / f'sparse/{number}/images.txt').unlink()
    refused(lambda: read_model(tmp_path), 'sparse/1/images.txt is damaged')
    (tmp_path / 'sparse/1/images.txt').unlink()
    assert read_model(tmp_path).folder == tmp_path / 'colmap_text'


@pytest.mark.parametrize(('place', 'pictures'), [
    ('sparse/1', 'images'), ('sparse', 'images'), ('colmap/sparse/0', 'images'), ('dense/0/sparse', 'dense/0/images'),
    ('dense/sparse', 'images'), ('distorted/sparse/0', 'input'), ('colmap_sparse/0', 'images'), ('.', 'images'),
    ('0', 'images'), ('sparse/0', 'input'), ('sparse/0', '.')])
def test_a_model_and_its_photographs_are_found_where_programs_put_them(tmp_path, place, pictures):
    text_model(tmp_path / place, f'{IMAGE_LINES[0]}\n')
    (tmp_path / pictures).mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (20, 10)).save(tmp_path / pictures / 'a.png')
    model = read_model(tmp_path)
    assert (model.folder, model.pictures) == (tmp_path / place, tmp_path / pictures)
    (photograph,) = posed_photographs(tmp_path, model)
    assert photograph.path == tmp_path / pictures / 'a.png'


# Photographs and masks


def scene(folder: Path, *names: str, masks: tuple[str, ...] = ()) -> Path:
    """Scene with photographs of some names, and masks of others."""
    text_model(folder / 'sparse/0', '\n'.join(f'{i} 1 0 0 0 {i} 2 3 1 {name}' for i, name in enumerate(names)))
    for name in (*(f'images/{name}' for name in names), *(f'masks/{name}' for name in masks)):
        path = folder / name.replace('\\', '/')
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (20, 10), 255).save(path)
    return folder


def test_names_with_windows_separators_are_those_of_subfolders(tmp_path):
    scene(tmp_path, 'left\\a.png', 'right\\a.png')
    photographs = posed_photographs(tmp_path, read_model(tmp_path))
    assert [each.path for each in photographs] == [tmp_path / 'images/left/a.png', tmp_path / 'images/right/a.png']
    assert [each.pose[0, 3] for each in photographs] == [0, -1]


def test_a_missing_photograph_is_not_taken_for_another_of_its_name(tmp_path):
    scene(tmp_path, 'left/a.png', 'a.png')
    (tmp_path / 'images/left/a.png').unlink()
    photographs = posed_photographs(tmp_path, read_model(tmp_path))
    assert [each.path for each in photographs] == [tmp_path / 'images/a.png', tmp_path / 'images/left/a.png']


def test_links_that_leave_the_scene_need_the_flag(tmp_path):
    folder = scene(tmp_path / 'scene', 'a.png', masks=('a.png',))
    for name in ('images', 'masks'):
        path = folder / name / 'a.png'
        path.rename(tmp_path / name)
        path.symlink_to(tmp_path / name)
    refused(lambda: posed_photographs(folder, read_model(folder)), "'a.png'", f"is a link to '{tmp_path / 'images'}'",
            '--outside_files')
    (photograph,) = posed_photographs(folder, read_model(folder), outside_files=True)
    assert (photograph.path, photograph.mask) == (folder / 'images/a.png', folder / 'masks/a.png')


@pytest.mark.parametrize(('mask', 'of'), [
    ('left/a.jpg.png', 'left/a.jpg'), ('left/a.png', 'left/a.jpg'), ('left/a.jpg', 'left/a.jpg'),
    ('left/a.JPG.PNG', 'left/a.jpg'), ('a.jpg.png', None), ('right/a.jpg.png', None)])
def test_masks_beside_the_photographs_have_colmaps_names_or_their_own(tmp_path, capsys, mask, of):
    scene(tmp_path, 'left/a.jpg', 'b.jpg', masks=('b.jpg.png', mask))
    b, a = posed_photographs(tmp_path, read_model(tmp_path))
    assert b.mask == tmp_path / 'masks/b.jpg.png'
    assert a.mask == tmp_path / 'masks' / (mask if of else 'left/a.jpg.png')
    assert a.mask.is_file() == (of is not None)
    assert f'masks of {2 if of else 1} photographs' in capsys.readouterr().out


def test_a_folder_of_masks_that_fit_no_photograph_gets_a_line(tmp_path, capsys):
    scene(tmp_path, 'a.jpg', masks=('x.png',))
    assert posed_photographs(tmp_path, read_model(tmp_path))[0].mask is None
    assert 'masks has no masks of the photographs, a.jpg.png for one' in capsys.readouterr().err
