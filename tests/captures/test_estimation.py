"""estimation.py: from photographs to transforms.json."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compare_cameras import compare
from conftest import turn
from make_capture import FOCAL, LENS, make_capture
from make_video import blurred, ffmpeg, moving, shown, write_video
from PIL import Image
from skimage.io import imsave

from load_photos import load_transforms
from nerf.captures.estimation import copy_upright, estimate_cameras
from nerf.captures.structure_from_motion import RULES, EstimatedCameras, EstimationRules
from nerf.files.images import can_read_heif, read_image
from nerf.runtime.errors import UserError
from run_nerf import main

LEAST = RULES.fewest_photographs


@pytest.fixture(scope='module')
def capture(tmp_path_factory) -> Path:
    """Twenty photographs of the toy chair, with the true cameras and those that were estimated."""
    folder = make_capture(tmp_path_factory.mktemp('capture'))
    estimate_cameras(folder)
    return folder


def photographs(folder: Path, count: int = 9, size=(64, 48), ending='.jpg', **options) -> Path:
    """Pictures in `folder`/images that nothing is found in."""
    (folder / 'images').mkdir(exist_ok=True)
    for i in range(count):
        Image.new('RGB', size, (20 * i, 0, 0)).save(folder / 'images' / f'{i:03d}{ending}', **options)
    return folder


def cameras_of(index, sizes=None) -> EstimatedCameras:
    """Cameras, all the same, of the photographs of `index`, and two points."""
    count, lens = len(index), [50.0, 51.0, 32.0, 24.0, 0.1, 0.2, 0.3, 0.4]
    return EstimatedCameras(
        index=np.array(index), world_to_camera=np.tile(np.eye(3, 4), (count, 1, 1)), lenses=np.tile(lens, (count, 1)),
        points=np.arange(6.0).reshape(2, 3) / 3.0, colours=np.full((2, 3), 7, np.uint8), error=0.5,
        sizes=np.array([count] if sizes is None else sizes))


class Found:
    """Structure from motion that gives known cameras, and notes the groups of lenses that it was asked for."""

    def __init__(self, cameras: EstimatedCameras | None):
        self.cameras, self.asked = cameras, []

    def __call__(self, folder: Path, groups: list[int], rules: EstimationRules) -> EstimatedCameras | None:
        self.asked.append(list(groups))
        return self.cameras


def transforms(folder: Path) -> dict:
    return json.loads((folder / 'transforms.json').read_text())


# A capture of which the truth is known


@pytest.mark.slow
def test_the_cameras_are_the_true_ones(capture):
    figures = compare(capture / 'transforms.json', capture / 'true_transforms.json')
    assert figures['frames'] == 20
    assert figures['only_there'] == 0
    assert figures['rotation_max'] < 0.5
    assert figures['position_max'] < 1.0
    meta = transforms(capture)
    assert abs(meta['fl_x'] / FOCAL - 1.0) < 0.02
    assert abs(meta['fl_y'] / FOCAL - 1.0) < 0.02
    assert abs(meta['k1'] - LENS['k1']) < 0.02  # without the lens's bend: 0.16


@pytest.mark.slow
def test_estimate_only_gives_the_same_bit_for_bit_with_a_photograph_stored_on_its_side(capture, tmp_path, capsys):
    shutil.copytree(capture / 'images', tmp_path / 'images')
    upright = Image.open(tmp_path / 'images' / '007.jpg')
    exif = upright.getexif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    on_its_side = upright.transpose(Image.Transpose.ROTATE_90)
    on_its_side.save(tmp_path / 'images' / '007.png', exif=exif)  # not a JPEG, whose pixels would be others
    (tmp_path / 'images' / '007.jpg').unlink()
    assert main(['--dataset_type', 'photos', '--datadir', str(tmp_path), '--estimate_only']) == 0
    assert '20 of 20 photographs' in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'images', 'sparse_points.ply', 'transforms.json']
    text = (tmp_path / 'transforms.json').read_text()
    assert text.count('007.png') == 2
    assert text.replace('007.png', '007.jpg') == (capture / 'transforms.json').read_text()
    assert (tmp_path / 'sparse_points.ply').read_bytes() == (capture / 'sparse_points.ply').read_bytes()


@pytest.mark.slow
def test_a_video_on_its_side_with_blurred_frames_has_the_true_cameras(capture, tmp_path):
    frames = [read_image(path) for path in sorted((capture / 'images').iterdir())]
    filmed = [shot for frame in frames for shot in (blurred(frame), frame, frame)]
    write_video(tmp_path / 'stored.mp4', [np.rot90(shot) for shot in filmed])
    ffmpeg('-display_rotation', '-90', '-i', str(tmp_path / 'stored.mp4'), '-c', 'copy', str(tmp_path / 'clip.mp4'))
    assert main(['--dataset_type', 'photos', '--datadir', str(tmp_path / 'clip.mp4'), '--estimate_only', '--frames',
                 '20']) == 0
    truth = (capture / 'true_transforms.json').read_text()
    for i in range(20):
        truth = truth.replace(f'images/{i:03d}.jpg', f'images/clip_{i + 1:04d}.jpg')
    (tmp_path / 'true.json').write_text(truth)
    figures = compare(tmp_path / 'clip' / 'transforms.json', tmp_path / 'true.json')
    assert figures['frames'] == 20
    assert figures['rotation_max'] < 1.0
    assert figures['position_max'] < 2.0


@pytest.mark.slow
def test_the_file_is_read_with_cameras_and_points_in_one_frame(capture):
    scene = load_transforms(capture)
    assert [path.name for path in scene.paths] == [f'{i:03d}.jpg' for i in range(20)]
    # The points are what the pictures show: those before a camera have the colours of the pixels that they fall on.
    lines = (capture / 'sparse_points.ply').read_text().splitlines()
    rows = np.array([line.split() for line in lines[lines.index('end_header') + 1:]], np.float64)
    assert np.allclose(scene.points, rows[:, :3])
    fx, fy, cx, cy = scene.cameras.intrinsics[0].tolist()
    pose = scene.cameras.poses[0].numpy()
    local = (rows[:, :3] - pose[:, 3]) @ pose[:, :3]
    x, y = local[:, 0] / -local[:, 2], local[:, 1] / local[:, 2]
    radial = 1.0 + (x * x + y * y) * transforms(capture)['k1']
    column, row = np.floor(fx * x * radial + cx).astype(int), np.floor(fy * y * radial + cy).astype(int)
    seen = (local[:, 2] < 0) & (column >= 0) & (column < 400) & (row >= 0) & (row < 300)
    assert seen.sum() > 200
    off = np.abs(scene.images[0][row[seen], column[seen]] - rows[seen, 3:]).mean(1)
    shuffled = np.abs(scene.images[0][row[seen], column[seen]] - rows[seen, 3:][::-1]).mean(1)
    assert np.median(off) < 0.6 * np.median(shuffled)


@pytest.mark.slow
def test_photographs_are_not_changed_and_nothing_else_is_left(capture):
    assert sorted(path.name for path in capture.iterdir()) == ['images', 'sparse_points.ply', 'transforms.json',
                                                              'true_transforms.json']
    assert len(list((capture / 'images').iterdir())) == 20


@pytest.mark.slow
def test_cameras_are_estimated_once(capture, capsys):
    found = Found(None)
    before = (capture / 'transforms.json').read_bytes()
    estimate_cameras(capture, solve=found)
    assert not found.asked
    assert (capture / 'transforms.json').read_bytes() == before
    said = capsys.readouterr()
    assert 'delete it to estimate them again' in said.out
    assert not said.err


# The file


def test_cameras_that_differ_are_given_with_each_frame(tmp_path):
    photographs(tmp_path)
    Image.new('RGB', (48, 64)).save(tmp_path / 'images' / '003.jpg')  # upright among pictures that are wide
    found = Found(cameras_of(range(9)))
    estimate_cameras(tmp_path, solve=found)
    assert found.asked == [[0, 0, 0, 1, 0, 0, 0, 0, 0]]
    meta = transforms(tmp_path)
    assert 'fl_x' not in meta
    assert [(frame['w'], frame['h']) for frame in meta['frames']] == [(64, 48)] * 3 + [(48, 64)] + [(64, 48)] * 5


def test_photographs_of_one_size_with_other_focal_lengths_have_cameras_of_their_own(tmp_path):
    photographs(tmp_path)
    for i, focal in ((2, 26), (3, 52), (4, 26)):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0xA405] = focal
        Image.new('RGB', (64, 48)).save(tmp_path / 'images' / f'{i:03d}.jpg', exif=exif)
    found = Found(cameras_of(range(9)))
    estimate_cameras(tmp_path, solve=found)
    assert found.asked == [[0, 0, 1, 2, 1, 0, 0, 0, 0]]


def test_photographs_of_one_size_without_exif_have_a_lens_for_each_folder_that_has_enough(tmp_path):
    for folder, count in (('a', LEAST), ('b', LEAST - 1), ('c', LEAST + 1)):
        photographs(tmp_path, count)
        (tmp_path / 'images').rename(tmp_path / folder)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 26
    Image.new('RGB', (64, 48)).save(tmp_path / 'c' / '999.jpg', exif=exif)
    found = Found(cameras_of(range(9)))
    estimate_cameras(tmp_path, solve=found)
    assert found.asked == [[0] * LEAST + [1] * (LEAST - 1) + [2] * (LEAST + 1) + [3]]


def test_intrinsics_are_of_the_photograph_at_full_size(tmp_path):
    photographs(tmp_path, size=(300, 150))  # COLMAP sees 120x60
    estimate_cameras(tmp_path, EstimationRules(longest_side=120), Found(cameras_of(range(9))))
    meta = transforms(tmp_path)
    assert [meta[key] for key in ('w', 'h', 'fl_x', 'fl_y', 'cx', 'cy')] == [300, 150, 125.0, 127.5, 80.0, 60.0]
    assert [meta[key] for key in ('k1', 'k2', 'p1', 'p2')] == [0.1, 0.2, 0.3, 0.4]
    assert meta['camera_model'] == 'OPENCV'


def test_poses_are_camera_to_world_in_opengl_axes(tmp_path):
    rotation, position = turn([0, 1, 0], 17.0), np.array([1.0, 2.0, 3.0])  # of a camera, OpenCV axes
    cameras = cameras_of(range(9))
    cameras.world_to_camera[4] = np.column_stack([rotation.T, -rotation.T @ position])
    estimate_cameras(photographs(tmp_path), solve=Found(cameras))
    pose = np.array(transforms(tmp_path)['frames'][4]['transform_matrix'])
    np.testing.assert_allclose(pose[:3, 3], position)
    np.testing.assert_allclose(pose[:3, 0], rotation[:, 0])  # right
    np.testing.assert_allclose(pose[:3, 1], -rotation[:, 1])  # up: COLMAP's y points down
    np.testing.assert_allclose(pose[:3, 2], -rotation[:, 2])  # backward: COLMAP's z points forward
    assert pose[3].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_what_colmap_fails_at_is_said(tmp_path):
    def solve(folder: Path, groups: list[int], rules: EstimationRules) -> EstimatedCameras:
        raise ChildProcessError('COLMAP failed')

    with pytest.raises(UserError, match='COLMAP failed'):
        estimate_cameras(photographs(tmp_path), solve=solve)
    assert [path.name for path in tmp_path.iterdir()] == ['images']


def test_points_are_a_ply_file_beside_it(tmp_path):
    estimate_cameras(photographs(tmp_path), solve=Found(cameras_of(range(9))))
    lines = (tmp_path / transforms(tmp_path)['ply_file_path']).read_text().splitlines()
    assert lines[:3] == ['ply', 'format ascii 1.0', 'element vertex 2']
    assert lines[-2:] == ['0 0.3333333 0.6666667 7 7 7', '1 1.333333 1.666667 7 7 7']


def test_copies_have_the_longest_side_of_the_rules(tmp_path):
    sizes = []

    def solve(folder: Path, groups: list[int], rules: EstimationRules) -> EstimatedCameras:
        sizes.extend(Image.open(path).size for path in sorted((folder / 'images').iterdir()))
        return cameras_of(range(9))

    estimate_cameras(photographs(tmp_path, size=(200, 100)), EstimationRules(longest_side=50), solve)
    assert sizes == [(50, 25)] * 9
    assert [transforms(tmp_path)[key] for key in ('w', 'fl_x')] == [200, 200.0]


def test_copies_are_in_the_order_of_the_photographs_whatever_their_names(tmp_path):
    levels = []

    def solve(folder: Path, groups: list[int], rules: EstimationRules) -> EstimatedCameras:
        levels.extend(int(read_image(path)[0, 0, 0]) for path in sorted((folder / 'images').iterdir()))
        return cameras_of(range(9))

    photographs(tmp_path)
    for i, name in enumerate(('!.jpg', '0000.jpg', '0001.jpg')):  # names of copies, after another name
        (tmp_path / 'images' / f'{i:03d}.jpg').rename(tmp_path / 'images' / name)
    estimate_cameras(tmp_path, solve=solve)
    assert levels == pytest.approx([20 * i for i in range(9)], abs=3)


def test_colmap_sees_upright_copies_with_what_exif_says_of_the_lens(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30] = 255  # stored upper left
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x927C] = 6, 'Toys', 'x' * 70000
    exif.get_ifd(0x8769)[0xA405] = 28
    Image.fromarray(pixels).save(tmp_path / 'side.png', exif=exif)
    photo = copy_upright(tmp_path / 'side.png', tmp_path / 'copy.jpg')
    assert (photo.size, photo.scale) == ((40, 60), (1.0, 1.0))
    copy = Image.open(tmp_path / 'copy.jpg')
    assert copy.getexif().get(0x0112) is None
    assert copy.getexif()[0x010F] == 'Toys'
    assert copy.getexif().get_ifd(0x8769)[0xA405] == 28
    white = np.asarray(copy).mean(-1) > 128
    assert white[:30, 20:].all()  # now upper right
    assert white.sum() == 30 * 20


@pytest.mark.parametrize('ending', ['.png', '.webp', '.tif', '.bmp', '.JPG'])
def test_photographs_of_each_kind_are_estimated_from(tmp_path, ending):
    levels = []

    def solve(folder: Path, groups: list[int], rules: EstimationRules) -> EstimatedCameras:
        levels.extend(int(read_image(path)[0, 0, 0]) for path in sorted((folder / 'images').iterdir()))
        return cameras_of(range(9))

    estimate_cameras(photographs(tmp_path, ending=ending), solve=solve)
    assert levels == pytest.approx([20 * i for i in range(9)], abs=3)
    assert transforms(tmp_path)['frames'][8]['file_path'] == f'images/008{ending}'


def test_tiffs_of_floats_are_photographs_without_exif(tmp_path):
    imsave(tmp_path / '0.tif', np.full((40, 60, 3), 0.5, np.float32), check_contrast=False)
    photo = copy_upright(tmp_path / '0.tif', tmp_path / 'copy.jpg')
    assert (photo.size, photo.camera) == ((60, 40), ())
    assert read_image(tmp_path / 'copy.jpg').mean() == pytest.approx(127.5, abs=1.0)


def test_photographs_can_lie_in_the_folder_itself(tmp_path):
    photographs(tmp_path)
    for path in (tmp_path / 'images').iterdir():
        path.rename(tmp_path / path.name)
    (tmp_path / 'images').rmdir()
    estimate_cameras(tmp_path, solve=Found(cameras_of(range(9))))
    assert [frame['file_path'] for frame in transforms(tmp_path)['frames']] == [f'{i:03d}.jpg' for i in range(9)]


def test_photographs_in_a_linked_folder_are_estimated_and_read(tmp_path):
    store, scene = tmp_path / 'disk', tmp_path / 'scene'
    for folder in (store, scene):
        folder.mkdir()
    photographs(store)
    (scene / 'images').symlink_to(store / 'images', target_is_directory=True)
    cameras = cameras_of(range(9))
    cameras.lenses[:, 4:] = 0.0
    estimate_cameras(scene, solve=Found(cameras))
    for factor in (1, 2):
        capture = load_transforms(scene, factor)
        assert [int(image[0, 0, 0]) for image in capture.images] == pytest.approx([20 * i for i in range(9)], abs=3)
    assert sorted(path.name for path in scene.iterdir()) == ['images', 'images_2', 'sparse_points.ply',
                                                            'transforms.json']


# What is said


def test_photographs_without_a_camera_are_named_up_to_ten(tmp_path, capsys):
    estimate_cameras(photographs(tmp_path, 32), solve=Found(cameras_of(range(20))))
    said = capsys.readouterr()
    assert ', '.join(f'{i:03d}.jpg' for i in range(20, 30)) + ' and 2 more; usually' in said.err
    assert 'less than two thirds' in said.err
    assert '20 of 32 photographs, 2 points, mean error 0.50 pixels' in said.out
    assert len(transforms(tmp_path)['frames']) == 20
    assert len(transforms(tmp_path)['estimated_from']) == 32


def test_two_thirds_with_a_camera_are_enough_to_keep_quiet(tmp_path, capsys):
    estimate_cameras(photographs(tmp_path, 12), solve=Found(cameras_of(range(8))))
    assert 'two thirds' not in capsys.readouterr().err


def test_photographs_whose_cameras_disagree_are_named_once_and_left_out(tmp_path, capsys):
    cameras = replace(cameras_of([0, 1, 2, 3, 4, 5, 7, 8]), disagreeing=np.array([6, 9]))
    estimate_cameras(photographs(tmp_path, 11), solve=Found(cameras))
    disagree, missing = capsys.readouterr().err.splitlines()
    assert 'found for 006.jpg, 009.jpg does not agree with the others' in disagree
    assert 'no camera was found for 010.jpg;' in missing
    assert len(transforms(tmp_path)['frames']) == 8


def test_groups_that_do_not_connect_are_reported(tmp_path, capsys):
    estimate_cameras(photographs(tmp_path, 14), solve=Found(cameras_of(range(9), sizes=[9, 5])))
    assert '2 groups that do not connect, of 9, 5; the largest is used' in capsys.readouterr().err


@pytest.mark.parametrize('model', [None, cameras_of(range(LEAST - 1))])
def test_too_few_cameras_are_an_error_with_advice_and_leave_no_file(tmp_path, model):
    count = 0 if model is None else LEAST - 1
    with pytest.raises(UserError, match=rf'only {count} of 9 photographs could be found, and 8 are needed; .*overlap'):
        estimate_cameras(photographs(tmp_path), solve=Found(model))
    assert [path.name for path in tmp_path.iterdir()] == ['images']


def test_too_few_photographs_are_an_error_before_any_work(tmp_path):
    found = Found(cameras_of(range(7)))
    with pytest.raises(UserError, match=r'has 7 photographs .* take at least 8'):
        estimate_cameras(photographs(tmp_path, 7), solve=found)
    assert not found.asked


def test_other_files_are_ignored_and_named(tmp_path, capsys):
    photographs(tmp_path)
    for name in ('notes.txt', 'more/raw.dng', '.DS_Store'):
        (tmp_path / 'images' / name).parent.mkdir(exist_ok=True)
        (tmp_path / 'images' / name).write_text('x')
    estimate_cameras(tmp_path, solve=Found(cameras_of(range(9))))
    assert 'ignored, as they are no photographs: more/raw.dng, notes.txt\n' in capsys.readouterr().out


def test_photographs_that_cannot_be_read_are_named_and_left_out(tmp_path, capsys):
    found = Found(cameras_of(range(8)))
    photographs(tmp_path)
    (tmp_path / 'images' / '004.jpg').write_text('no picture')
    estimate_cameras(tmp_path, solve=found)
    assert re.search(r'warning: .*004\.jpg cannot be read as a picture .* it is left out', capsys.readouterr().err)
    assert found.asked == [[0] * 8]
    assert '004.jpg' not in str(transforms(tmp_path)['frames'])


def test_too_few_that_can_be_read_are_an_error(tmp_path):
    found = Found(cameras_of(range(7)))
    photographs(tmp_path, 8)
    (tmp_path / 'images' / '004.jpg').write_text('no picture')
    with pytest.raises(UserError, match=r'has 7 photographs .* that can be read'):
        estimate_cameras(tmp_path, solve=found)
    assert not found.asked


@pytest.mark.skipif(can_read_heif(), reason='pillow-heif is installed')
def test_heic_photographs_name_the_package_that_reads_them(tmp_path, capsys):
    (photographs(tmp_path, 7) / 'images' / 'a.HEIC').write_text('x')
    words = r'1 HEIC photographs, a\.HEIC for one; run: pip install pillow-heif, or convert them'
    with pytest.raises(UserError, match=words):
        estimate_cameras(tmp_path)
    estimate_cameras(photographs(tmp_path, 8), solve=Found(cameras_of(range(8))))
    assert re.search(rf'warning: .*{words} to JPEG\. They are left out', capsys.readouterr().err)
    assert 'HEIC' not in str(transforms(tmp_path))


# Videos


def test_a_video_becomes_photographs_once(tmp_path, capsys):
    frames = moving(30)
    write_video(tmp_path / 'clip.MOV', frames)
    found = Found(cameras_of(range(10)))
    assert estimate_cameras(tmp_path, solve=found, frames=10) == tmp_path
    assert found.asked == [[0] * 10]
    names = [frame['file_path'] for frame in transforms(tmp_path)['frames']]
    assert names == [f'images/clip_{i:04d}.jpg' for i in range(1, 11)]
    stretches = [shown(read_image(tmp_path / name), frames) // 3 for name in names]
    assert stretches == list(range(10))
    capsys.readouterr()
    (tmp_path / 'transforms.json').unlink()
    (tmp_path / 'images' / 'clip_0010.jpg').unlink()  # by the user, for example
    estimate_cameras(tmp_path, solve=Found(cameras_of(range(9))))
    assert 'images has the frames of clip.MOV; delete them to take them again' in capsys.readouterr().out
    assert len(transforms(tmp_path)['frames']) == 9


def test_a_video_by_itself_gets_a_folder_with_its_name(tmp_path):
    video = write_video(tmp_path / 'clip.mp4', moving(30))
    write_video(tmp_path / 'other.mp4', moving(30))
    assert estimate_cameras(video, solve=Found(cameras_of(range(10))), frames=10) == tmp_path / 'clip'
    assert transforms(tmp_path / 'clip')['frames'][9]['file_path'] == 'images/clip_0010.jpg'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['clip', 'clip.mp4', 'other.mp4']
    video.unlink()
    assert estimate_cameras(video, solve=Found(None)) == tmp_path / 'clip'


def test_videos_and_photographs_are_all_used_with_a_lens_for_each(tmp_path):
    photographs(tmp_path, 8, size=(160, 120))
    write_video(tmp_path / 'a.mp4', moving(30))
    write_video(tmp_path / 'images' / 'b.mp4', moving(30, seed=1))
    found = Found(cameras_of(range(26)))
    estimate_cameras(tmp_path, solve=found, frames=18)
    assert found.asked == [[0] * 8 + [1] * 9 + [2] * 9]
    assert [path.partition('/')[2] for path in transforms(tmp_path)['estimated_from'][::8]] == [
        '000.jpg', 'a/a_0001.jpg', 'a/a_0009.jpg', 'b/b_0008.jpg']


def test_photographs_in_the_folder_itself_stay_in_use_beside_a_video(tmp_path):
    photographs(tmp_path)
    for path in (tmp_path / 'images').iterdir():
        path.rename(tmp_path / path.name)
    (tmp_path / 'images').rmdir()
    write_video(tmp_path / 'clip.mp4', moving(30))
    for known in (False, True):
        estimate_cameras(tmp_path, solve=Found(cameras_of(range(17))), frames=8)
        assert len(transforms(tmp_path)['estimated_from']) == 17, known
        (tmp_path / 'transforms.json').unlink()


def test_a_video_added_since_is_counted(tmp_path, capsys):
    estimate_cameras(photographs(tmp_path), solve=Found(cameras_of(range(9))))
    write_video(tmp_path / 'clip.mp4', moving(30))
    estimate_cameras(tmp_path, solve=Found(None))
    assert '0 photographs and 1 videos were added and 0 removed' in capsys.readouterr().err


def test_photographs_added_and_removed_since_are_counted(tmp_path, capsys):
    estimate_cameras(photographs(tmp_path), solve=Found(cameras_of(range(9))))
    for name in ('new.jpg', 'newer.png'):
        shutil.copy(tmp_path / 'images' / '003.jpg', tmp_path / 'images' / name)
    (tmp_path / 'images' / '004.jpg').unlink()
    estimate_cameras(tmp_path, solve=Found(cameras_of(range(9))))
    said = capsys.readouterr()
    assert '2 photographs were added and 1 removed' in said.err
    assert 'delete it' in said.out


@pytest.mark.parametrize('text', ['{', '[]', '{"frames": []}', '{"estimated_from": 3}'])
def test_a_file_of_others_is_left_alone(tmp_path, capsys, text):
    found = Found(None)
    (photographs(tmp_path) / 'transforms.json').write_text(text)
    estimate_cameras(tmp_path, solve=found)
    assert not found.asked
    assert (tmp_path / 'transforms.json').read_text() == text
    assert not capsys.readouterr().err


def test_of_several_processes_none_estimates(tmp_path, as_rank):
    found = Found(cameras_of(range(9)))
    as_rank(0, 2)
    with pytest.raises(UserError, match='--estimate_only'):
        estimate_cameras(photographs(tmp_path), solve=found)
    assert not found.asked


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match='nowhere is not a folder'):
        estimate_cameras(tmp_path / 'nowhere')


# From the command line


def test_estimate_only_does_nothing_where_the_cameras_are_known(tmp_path, capsys):
    estimate_cameras(photographs(tmp_path), solve=Found(cameras_of(range(9))))
    assert main(['--dataset_type', 'photos', '--datadir', str(tmp_path), '--estimate_only']) == 0
    assert 'has the cameras' in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'images', 'sparse_points.ply', 'transforms.json']
    assert read_image(tmp_path / 'images' / '001.jpg').shape == (48, 64, 3)


def test_estimate_only_needs_photographs_and_no_name(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(['--dataset_type', 'transforms', '--datadir', str(tmp_path), '--estimate_only'])
    assert 'estimate_only is set, but dataset_type is transforms' in capsys.readouterr().err
    assert main(['--dataset_type', 'photos', '--datadir', str(tmp_path), '--estimate_only']) == 1
    assert 'has 0 photographs' in capsys.readouterr().err
