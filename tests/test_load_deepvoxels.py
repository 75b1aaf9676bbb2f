"""load_deepvoxels.py: scenes in the DeepVoxels format, and the Scene that run_nerf.py makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import run_nerf
from load_deepvoxels import load_dv_data, load_intrinsics
from nerf.runtime.errors import UserError
from nerf.scene import Scene, deepvoxels_scene
from nerf.space import Bounded

SPLITS = ('train', 'validation', 'test')
CAMERA = '525. 256. 256. 0.\n0. 0. 0.\n1.\n1.\n512 512\n'  # f cx cy 0, a grid's centre, near and scale, height width
SMALL = ['--dataset_type', 'deepvoxels', '--shape', 'cube', '--white_bkgd', '--use_viewdirs', '--netdepth', '3',
         '--netwidth', '16', '--netdepth_fine', '2', '--netwidth_fine', '16', '--multires', '4', '--multires_views',
         '2', '--N_samples', '8', '--N_importance', '8', '--N_rand', '32', '--lrate', '1e-2', '--device', 'cpu',
         '--precision', 'fp32']


def camera_at(azimuth: float, elevation: float, distance: float) -> np.ndarray:
    """[4, 4] camera-to-world, OpenGL axes, that looks from a place (degrees, z up) past the origin, rolled a little."""
    a, e = np.radians([azimuth, elevation])
    backward = np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
    right = np.cross([0.1, 0.2, 1.0], backward)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(backward, right), backward, distance * backward + [0.05, -0.1, 0.15]], 1)
    return pose


def opencv(pose: np.ndarray) -> np.ndarray:
    """The pose with y down and z forward, as DeepVoxels' files have it: the second and third column negated."""
    flipped = pose.copy()
    flipped[:, 1:3] *= -1
    return flipped


def default_cameras(counts) -> list[np.ndarray]:
    return [camera_at(360.0 * i / sum(counts), 20.0 + 3 * i, 2.0 + 0.25 * i) for i in range(sum(counts))]


@pytest.fixture
def write_scene(tmp_path):
    """Writes the shape 'cube' in the published layout and returns datadir; images are numbered by their grey level.

    write_scene(counts=(train, validation, test), size=(height, width), camera=text of intrinsics.txt, cameras=OpenGL
    poses of all splits, world_to_camera=their inverses go into the files, one_line=all 16 numbers on a line,
    channels=3 or 4 (fully transparent))
    """
    def write(counts=(4, 3, 5), size=(24, 24), camera=CAMERA, cameras=None, world_to_camera=False, one_line=False,
              channels=3) -> Path:
        cameras = default_cameras(counts) if cameras is None else cameras
        level = 0
        for split, count in zip(SPLITS, counts):
            folder = tmp_path / split / 'cube'
            for name in ('pose', 'rgb'):
                (folder / name).mkdir(parents=True)
            (folder / 'intrinsics.txt').write_text(camera, encoding='utf-8')
            for i in range(count):
                matrix = opencv(cameras[level])
                matrix = np.linalg.inv(matrix) if world_to_camera else matrix
                lines = [' '.join(map(repr, row)) for row in matrix.tolist()]
                (folder / 'pose' / f'{i:06d}.txt').write_text((' ' if one_line else '\n').join(lines) + '\n')
                colour = (level, level, level, 0)[:channels]
                Image.new('RGBA'[:channels], size[::-1], colour).save(folder / 'rgb' / f'{i:06d}.png')
                level += 1
        return tmp_path
    return write


def flags_of(datadir: Path, *extra: str) -> list[str]:
    return [*SMALL, '--datadir', str(datadir), '--expname', 'run', *extra]


def scene_of(datadir: Path, testskip: int = 8, white_bkgd: bool = True) -> Scene:
    return deepvoxels_scene(str(datadir), white_bkgd, 'cube', testskip)


# Poses and images


@pytest.mark.parametrize('one_line', [False, True])
def test_poses_are_the_known_cameras_in_opengl_axes(write_scene, one_line):
    images, poses, render_poses, _, i_split = load_dv_data('cube', write_scene(one_line=one_line), testskip=1)
    expected = np.stack(default_cameras((4, 3, 5)))
    assert poses.shape == (12, 3, 4)
    assert poses.dtype == render_poses.dtype == np.float32
    assert np.array_equal(poses, expected[:, :3].astype(np.float32))
    assert np.array_equal(render_poses, expected[7:, :3].astype(np.float32))
    assert images.shape == (12, 24, 24, 3)
    assert images.dtype == np.uint8
    assert images[:, 5, 7].tolist() == [[level] * 3 for level in range(12)]
    assert [part.tolist() for part in i_split] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9, 10, 11]]


def test_a_camera_on_the_z_axis_by_hand(write_scene):
    datadir = write_scene()
    (datadir / 'validation' / 'cube' / 'pose' / '000000.txt').write_text('1 0 0 2\n0 1 0 3\n0 0 1 -4\n0 0 0 1')
    pose = load_dv_data('cube', datadir)[1][4]  # it looks along +z with y down
    assert pose.tolist() == [[1, 0, 0, 2], [0, -1, 0, 3], [0, 0, -1, -4]]


def test_a_last_line_of_1_makes_the_files_world_to_camera(write_scene):
    datadir = write_scene(camera=CAMERA + '1\n', world_to_camera=True)
    poses = load_dv_data('cube', datadir, testskip=1)[1]
    np.testing.assert_allclose(poses, np.stack(default_cameras((4, 3, 5)))[:, :3], rtol=0, atol=1e-6)


@pytest.mark.parametrize('last', ['0\n', '0', '\n', ' \n'])
def test_a_last_line_of_0_or_nothing_leaves_the_poses_as_they_are(write_scene, last):
    poses = load_dv_data('cube', write_scene(camera=CAMERA + last), testskip=1)[1]
    assert np.array_equal(poses, np.stack(default_cameras((4, 3, 5)))[:, :3].astype(np.float32))


def test_each_split_has_its_own_last_line(write_scene):
    datadir = write_scene(camera=CAMERA + '1\n', world_to_camera=True)
    folder = datadir / 'test' / 'cube'
    (folder / 'intrinsics.txt').write_text(CAMERA + '0\n')
    for path in folder.glob('pose/*.txt'):
        path.write_text(' '.join(map(str, np.linalg.inv(np.loadtxt(path)).ravel())))
    poses = load_dv_data('cube', datadir, testskip=1)[1]
    np.testing.assert_allclose(poses, np.stack(default_cameras((4, 3, 5)))[:, :3], rtol=0, atol=1e-6)


def test_views_are_paired_and_ordered_by_name(write_scene):
    datadir = write_scene(counts=(1, 1, 1))
    folder = datadir / 'train' / 'cube'
    for path in (*folder.glob('pose/*'), *folder.glob('rgb/*')):
        path.unlink()
    names = [f'{i:06d}' for i in range(12)]
    rng = np.random.default_rng(0)
    for i in rng.permutation(12):
        np.savetxt(folder / 'pose' / f'{names[i]}.txt', opencv(camera_at(30.0 * i, 10.0, 4.0)))
    for i in rng.permutation(12):
        Image.new('RGB', (24, 24), (100 + int(i),) * 3).save(folder / 'rgb' / f'{names[i]}.png')
    (folder / 'rgb' / '._000000.png').write_bytes(b'\0\5\x16\7')  # what macOS leaves behind
    (folder / 'pose' / 'readme.md').write_text('not a pose')
    images, poses, _, _, i_split = load_dv_data('cube', datadir)
    assert i_split[0].tolist() == list(range(12))
    assert images[:12, 0, 0, 0].tolist() == list(range(100, 112))
    np.testing.assert_allclose(poses[:12], [camera_at(30.0 * i, 10.0, 4.0)[:3] for i in range(12)], atol=1e-6)


@pytest.mark.parametrize(('testskip', 'kept'), [
    (0, [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9, 10, 11]]), (1, [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9, 10, 11]]),
    (2, [[0, 1, 2, 3], [4, 6], [7, 9, 11]]), (8, [[0, 1, 2, 3], [4], [7]])])
def test_testskip_thins_the_last_two_splits_and_the_render_path(write_scene, testskip, kept):
    scene = scene_of(write_scene(), testskip)
    i_split = scene.i_train, scene.i_val, scene.i_test
    assert [[int(scene.images[i][0, 0, 0]) for i in part] for part in i_split] == kept
    assert np.concatenate(i_split).tolist() == list(range(len(scene.images)))
    cameras = np.stack(default_cameras((4, 3, 5)))[:, :3].astype(np.float32)
    assert np.array_equal(scene.cameras.poses, cameras[[i for part in kept for i in part]])
    assert np.array_equal(scene.render_cameras.poses, cameras[kept[-1]])


# Intrinsics


@pytest.mark.parametrize(('line_1', 'line_5', 'size', 'fx', 'fy', 'cx', 'cy'), [
    ('525. 256. 256. 0.', '512 512', (24, 24), 24.609375, 24.609375, 12.0, 12.0),  # a 512th of 24 each
    ('500. 330. 230. 0.', '480 640', (24, 32), 25.0, 25.0, 16.5, 11.5),  # a 20th
    ('512. 384. 128.', '512. 512.', (16, 32), 32.0, 16.0, 24.0, 4.0),  # a 16th across, a 32nd down
    ('500. 330. 230. 0.', '480 640', (48, 12), 9.375, 50.0, 6.1875, 23.0)])
def test_intrinsics_are_scaled_from_the_files_size_to_the_images(write_scene, line_1, line_5, size, fx, fy, cx, cy):
    datadir = write_scene(size=size, camera=f'{line_1}\n0.1 0.2 0.3\n0.5\n2.\n{line_5}\n')
    expected = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
    np.testing.assert_allclose(load_intrinsics('cube', datadir, *size), expected, rtol=1e-12)
    scene = scene_of(datadir)
    for cameras in (scene.cameras, scene.render_cameras):
        np.testing.assert_allclose(cameras.intrinsics, [[fx, fy, cx, cy]] * len(cameras), rtol=1e-12)
        assert cameras.one_size() == size
    assert scene.images.sizes.tolist() == [list(size)] * len(scene.cameras)
    assert load_dv_data('cube', datadir)[3] == pytest.approx([*size, fy], rel=1e-12)


@pytest.mark.parametrize('world_to_camera', [False, True])
def test_splits_without_intrinsics_have_those_of_train(write_scene, world_to_camera):
    datadir = write_scene(camera=f'500. 330. 230. 0.\n0 0 0\n1\n1\n480 640\n{int(world_to_camera)}\n', size=(24, 32),
                          world_to_camera=world_to_camera)
    with_all = scene_of(datadir, 1)
    for split in ('validation', 'test'):
        (datadir / split / 'cube' / 'intrinsics.txt').unlink()
    scene = scene_of(datadir, 1)
    np.testing.assert_allclose(scene.cameras.intrinsics, [[25, 25, 16.5, 11.5]] * 12, rtol=1e-12)
    assert np.array_equal(scene.cameras.poses, with_all.cameras.poses)
    np.testing.assert_allclose(scene.cameras.poses, np.stack(default_cameras((4, 3, 5)))[:, :3], rtol=0, atol=1e-6)


def test_the_same_camera_may_be_given_for_another_size(write_scene):
    datadir = write_scene()
    (datadir / 'test' / 'cube' / 'intrinsics.txt').write_text('262.5 128 128\n0 0 0\n1\n1\n256 256\n')
    assert scene_of(datadir).cameras.intrinsics[0].tolist() == [24.609375, 24.609375, 12, 12]


@pytest.mark.parametrize('split', ['validation', 'test'])
@pytest.mark.parametrize('other', ['526. 256. 256. 0.', '525. 257. 256. 0.', '525. 256. 255. 0.'])
def test_different_cameras_between_the_splits_are_an_error(write_scene, split, other):
    path = write_scene() / split / 'cube' / 'intrinsics.txt'
    path.write_text(CAMERA.replace('525. 256. 256. 0.', other))
    datadir = path.parents[2]
    assert_refused(datadir, str(path), str(datadir / 'train' / 'cube' / 'intrinsics.txt'), 'different cameras')


# Rays

OFF_CENTRE = '480. 200. 300. 0.\n0 0 0\n1\n1\n480 640\n'  # of 640x480; at 32x24 a 20th: f 24, cx 10, cy 15


def test_a_point_is_on_the_ray_of_the_pixel_that_it_shows_in_by_hand(write_scene):
    datadir = write_scene(size=(24, 32), camera=OFF_CENTRE)
    # OpenCV axes: the camera at (1, 2, -4) looks along the world's -x with its x along z and its y along the world's -y
    (datadir / 'train' / 'cube' / 'pose' / '000000.txt').write_text('0 0 -1 1  0 -1 0 2  1 0 0 -4  0 0 0 1')
    scene = scene_of(datadir)
    origins, directions = scene.cameras.view_rays(0)
    point = np.array([-2.0, 2.5, -2.5])  # in the camera: X = 1.5 (right), Y = -0.5 (up), Z = 3
    row, column = 11, 22  # v = 24 * -0.5 / 3 + 15, u = 24 * 1.5 / 3 + 10
    assert origins[row, column].tolist() == [1, 2, -4]
    np.testing.assert_allclose(origins[row, column] + 3.0 * directions[row, column], point, atol=1e-6)


@pytest.mark.parametrize('world_to_camera', [False, True])
@pytest.mark.parametrize('size', [(24, 32), (16, 40)])
def test_the_points_of_every_ray_project_to_its_pixel(write_scene, size, world_to_camera):
    datadir = write_scene(counts=(2, 1, 2), size=size, camera=OFF_CENTRE + f'{int(world_to_camera)}\n',
                          world_to_camera=world_to_camera)
    scene = scene_of(datadir, 1)
    paths = [path for split in SPLITS for path in sorted((datadir / split / 'cube' / 'pose').iterdir())]
    assert len(paths) == len(scene.cameras)
    for view, path in enumerate(paths):
        origins, directions = scene.cameras.view_rays(view)
        for depth in (0.5, 4.0):
            points = (origins + depth * directions).double().numpy()
            matrix = np.loadtxt(path)
            matrix = matrix if world_to_camera else np.linalg.inv(matrix)
            X, Y, Z = np.moveaxis(points @ matrix[:3, :3].T + matrix[:3, 3], -1, 0)
            v, u = np.mgrid[:size[0], :size[1]]
            np.testing.assert_allclose((480 * X / Z + 200) * size[1] / 640, u, atol=1e-4)
            np.testing.assert_allclose((480 * Y / Z + 300) * size[0] / 480, v, atol=1e-4)
            np.testing.assert_allclose(Z, depth, atol=1e-5)


# Scene


def at_distances(*distances: float) -> list[np.ndarray]:
    """Cameras exactly so far from the origin, each in another direction."""
    cameras = [camera_at(70.0 * i, 15.0, 1.0) for i in range(len(distances))]
    for camera, distance in zip(cameras, distances):
        camera[:3, 3] *= distance / np.linalg.norm(camera[:3, 3])
    return cameras


def test_bounds_are_one_before_and_one_behind_the_mean_distance_of_the_cameras(write_scene):
    scene = scene_of(write_scene(counts=(2, 1, 2), cameras=at_distances(2, 3, 7, 8, 100)))
    assert isinstance(scene.space, Bounded)
    assert (scene.space.near, scene.space.far) == pytest.approx((4.0, 6.0), abs=1e-6)  # testskip leaves all but 100


@pytest.mark.parametrize('white', [True, False])
def test_white_bkgd_shows_white_through_what_is_transparent(write_scene, white):
    scene = scene_of(write_scene(channels=4), white_bkgd=white)
    assert scene.images.pixels.shape == (6 * 24 * 24, 4)
    assert scene.white_bkgd == white
    np.testing.assert_allclose(scene.target(3), 1.0 if white else 3 / 255, atol=1e-6)


# Errors


def assert_refused(datadir: Path, *words: str) -> None:
    with pytest.raises(UserError) as error:
        scene_of(datadir)
    for word in words:
        assert word in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('split', SPLITS)
def test_a_missing_split_is_an_error_that_says_where_scenes_come_from(write_scene, split):
    datadir = write_scene()
    (datadir / split / 'cube').rename(datadir / split / 'greek')
    assert_refused(datadir, f'{datadir / split / "cube"} is not a folder', 'https://drive.google.com/')


def test_missing_intrinsics_are_an_error(write_scene):
    datadir = write_scene()
    for split in SPLITS:
        (datadir / split / 'cube' / 'intrinsics.txt').unlink()
    assert_refused(datadir, f'{datadir / "train" / "cube" / "intrinsics.txt"} cannot be read', 'No such file')


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize(('text', 'word'), [
    ('a cube\n', '1 lines'), ('', ''),
    ('525. 256. 256. 0.\n0 0 0\n1\n1\n', ''), ('525. 256.\n0 0 0\n1\n1\n512 512\n', ''),
    ('525. 256. 256. 0.\n0 0 0\n1\n1\n512\n', ''), (CAMERA.replace('525.', 'nan'), 'focal length nan'),
    (CAMERA.replace('525.', 'inf'), 'focal length inf'), (CAMERA.replace('525.', '-525.'), 'focal length -525'),
    (CAMERA.replace('525.', '0.'), 'focal length 0'), (CAMERA.replace('256. 256.', 'nan 256.'), 'centre nan 256'),
    (CAMERA.replace('256. 256.', '256. inf'), 'centre 256 inf'), (CAMERA.replace('512 512', '0 512'), 'size 512x0'),
    (CAMERA.replace('512 512', '512 0'), 'size 0x512'), (CAMERA.replace('512 512', '-512 512'), 'size 512x-512'),
    (CAMERA.replace('512 512', '512 nan'), 'size nanx512'), (CAMERA.replace('512 512', '512 1e9'), 'size 1e+09x512'),
    (CAMERA + 'yes\n', "'yes'"), (CAMERA + 'nan\n', 'flag nan'), (CAMERA + '0.5\n', 'flag 0.5'),
    (CAMERA + '2\n', 'flag 2')])
def test_intrinsics_that_are_not_a_camera_are_an_error(write_scene, split, text, word):
    datadir = write_scene(counts=(1, 1, 1))
    path = datadir / split / 'cube' / 'intrinsics.txt'
    path.write_text(text)
    assert_refused(datadir, f'{path} is not a DeepVoxels camera', word, 'height and width')


ROW = '1 0 0 0\n'
BAD_POSES = [(ROW * 3, 'size 12'), ('1 ' * 15, 'size 15'), ('1 ' * 17, 'size 17'), ('', 'size 0'),
             (ROW * 3 + '0 0 0 one', "'one'"), (ROW * 3 + '0,0,0,1', "'0,0,0,1'"),
             (ROW * 3 + '0 0 0 nan', 'not finite'), (ROW * 3 + '0 0 0 -inf', 'not finite'),
             ('0 0 0 1e400\n' + ROW * 3, 'not finite'), ('0 ' * 16, 'rotation'),
             ('1 2 3 0 4 5 6 0 7 8 9 0 0 0 0 1', 'rotation'), ('3 0 0 0 0 3 0 0 0 0 3 -4 0 0 0 1', 'rotation'),
             ('1 0 0 0 0 1 0 0 0 0 1 -4 5 6 7 8', 'rotation'), ('1 0 0 1e25 0 1 0 0 0 0 1 0 0 0 0 1', 'rotation')]


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize(('text', 'word'), BAD_POSES)
def test_a_pose_that_is_not_a_finite_4x4_matrix_is_an_error(write_scene, split, text, word):
    datadir = write_scene(counts=(1, 1, 1))
    path = datadir / split / 'cube' / 'pose' / '000000.txt'
    path.write_text(text)
    assert_refused(datadir, f'{path} is not the 4x4 matrix of a camera', word)


@pytest.mark.parametrize('text', ['0 ' * 16, ROW * 4, '1 2 3 0\n2 4 6 0\n0 0 1 0\n0 0 0 1\n'])
def test_a_world_to_camera_matrix_without_inverse_is_an_error(write_scene, text):
    datadir = write_scene(camera=CAMERA + '1\n', world_to_camera=True)
    path = datadir / 'train' / 'cube' / 'pose' / '000002.txt'
    path.write_text(text)
    assert_refused(datadir, f'{path} is not the 4x4 matrix of a camera', 'Singular')


@pytest.mark.parametrize('tiny', ['1e-12', '1e-40', '1e-310'])
def test_a_world_to_camera_matrix_that_is_nearly_singular_is_an_error_without_a_warning(write_scene, tiny, recwarn):
    datadir = write_scene(camera=CAMERA + '1\n', world_to_camera=True)
    path = datadir / 'train' / 'cube' / 'pose' / '000002.txt'
    path.write_text(f'{tiny} 0 0 0 0 {tiny} 0 0 0 0 {tiny} 0 0 0 0 1')
    assert_refused(datadir, f'{path} is not the 4x4 matrix of a camera')
    assert not recwarn


def test_what_other_systems_leave_behind_does_not_matter(write_scene):
    datadir = write_scene(camera='\ufeff' + CAMERA + '\n1\n', world_to_camera=True)  # a byte-order mark, a blank line
    for name in ('pose/._000000.txt', 'rgb/._000000.png'):
        (datadir / 'train' / 'cube' / name).write_bytes(b'\0\5')
    expected = [default_cameras((4, 3, 5))[i] for i in (0, 1, 2, 3, 4, 7)]  # testskip 8
    np.testing.assert_allclose(scene_of(datadir).cameras.poses, np.stack(expected)[:, :3], atol=1e-5)


def test_a_long_word_in_a_file_does_not_make_a_long_message(write_scene):
    datadir = write_scene()
    for name in ('pose/000000.txt', 'intrinsics.txt'):
        (datadir / 'train' / 'cube' / name).write_text('x' * 300000)
        with pytest.raises(UserError) as error:
            scene_of(datadir)
        assert len(str(error.value)) < 600


@pytest.mark.parametrize('name', ['intrinsics.txt', 'pose/000000.txt'])
@pytest.mark.parametrize('content', [b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR', bytes(range(256)), b'\xff\xfe1\0 \0', b'\0\1\2'])
def test_binary_garbage_in_a_text_file_is_an_error(write_scene, name, content):
    datadir = write_scene()
    path = datadir / 'test' / 'cube' / name
    path.write_bytes(content)
    assert_refused(datadir, str(path))


@pytest.mark.parametrize('gone', ['pose/000001.txt', 'rgb/000001.png'])
def test_a_pose_without_image_and_an_image_without_pose_are_left_out_and_named(write_scene, capsys, gone):
    folder = write_scene(counts=(3, 3, 3)) / 'train' / 'cube'
    (folder / gone).unlink()
    *_, i_split = load_dv_data('cube', folder.parents[1], 1)
    assert [len(part) for part in i_split] == [2, 3, 3]
    assert capsys.readouterr().err == (f'warning: {folder}: 1 views have a pose or a picture only and are left out: '
                                       '000001\n')


def test_images_may_have_any_picture_ending(write_scene):
    datadir = write_scene()
    expected = load_dv_data('cube', datadir, 1)[0]
    for path in (datadir / 'train/cube/rgb').iterdir():
        Image.open(path).save(path.with_suffix('.BMP'))
        path.unlink()
    assert np.array_equal(load_dv_data('cube', datadir, 1)[0], expected)


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('remove', [False, True])
def test_empty_folders_are_an_error(write_scene, split, remove):
    datadir = write_scene()
    folder = datadir / split / 'cube'
    for name in ('pose', 'rgb'):
        for path in (folder / name).iterdir():
            path.unlink()
        if remove:
            (folder / name).rmdir()
    assert_refused(datadir, f'{folder} has 0 files pose/*.txt and 0 pictures')


@pytest.mark.parametrize('content', [b'', b'not a picture', None])
def test_an_unreadable_image_is_an_error(write_scene, content):
    path = write_scene() / 'test' / 'cube' / 'rgb' / '000000.png'
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    assert_refused(path.parents[3], f'{path} cannot be read')


def test_an_image_of_another_size_is_an_error(write_scene):
    datadir = write_scene()
    path = datadir / 'test' / 'cube' / 'rgb' / '000000.png'
    Image.new('RGB', (24, 12)).save(path)
    assert_refused(datadir, f'{path} is 24x12', f'{datadir / "train" / "cube" / "rgb" / "000000.png"} is 24x24')


def test_cameras_closer_than_1_to_the_origin_are_an_error(write_scene):
    datadir = write_scene(counts=(2, 1, 1), cameras=at_distances(0.5, 0.25, 1.5, 0.75))
    assert_refused(datadir, str(datadir), 'cube are 0.75 from the origin')


@pytest.fixture
def fails(write_scene, tmp_path, capsys):
    """Breaks a scene, starts a run on it and asserts one line on stderr, exit code 1 and no run folder."""
    def check(break_scene, *words: str, size=(24, 24)) -> None:
        datadir = write_scene(counts=(2, 1, 1), size=size)
        break_scene(datadir)
        assert run_nerf.main(flags_of(datadir, '--basedir', str(tmp_path / 'logs'))) == 1
        streams = capsys.readouterr()
        assert streams.err.startswith('error: ')
        assert streams.err.count('\n') == 1
        for word in words:
            assert word in streams.err
        assert not (tmp_path / 'logs').exists()
    return check


@pytest.mark.parametrize(('name', 'content'), [
    ('train/cube/intrinsics.txt', b'525. 256.\n'), ('test/cube/intrinsics.txt', CAMERA.replace('525', '600').encode()),
    ('validation/cube/pose/000000.txt', b'one\ntwo'), ('train/cube/rgb/000001.png', b'\x89PNG\r\n')])
def test_a_run_on_a_broken_scene_ends_with_one_line_and_leaves_nothing(fails, name, content):
    fails(lambda datadir: (datadir / name).write_bytes(content), name)


def test_a_run_on_a_missing_shape_ends_with_one_line_and_leaves_nothing(fails):
    fails(lambda datadir: (datadir / 'train' / 'cube').rename(datadir / 'train' / 'vase'), 'train/cube', 'https://')


@pytest.mark.parametrize('size', [(10, 24), (24, 10)])
def test_a_run_on_images_too_small_for_the_metrics_ends_with_one_line(fails, size):
    fails(lambda datadir: None, f'{size[1]}x{size[0]}', '11x11', size=size)


# The whole run


@pytest.mark.slow
def test_a_run_trains_resumes_and_renders_its_test_views(write_scene, tmp_path, capsys):
    flags = flags_of(write_scene(size=(16, 20), camera=OFF_CENTRE), '--testskip', '2', '--basedir',
                     str(tmp_path / 'logs'))
    run = tmp_path / 'logs' / 'run'
    assert run_nerf.main([*flags, '--N_iters', '4', '--no_batching']) == 0
    assert '9 images of 20x16, 4 train / 2 val / 3 test, near ' in capsys.readouterr().out
    assert run_nerf.main([*flags, '--N_iters', '8', '--no_batching']) == 0
    assert 'going on at step 4' in capsys.readouterr().out
    assert sorted(path.name for path in run.glob('*.tar')) == ['000004.tar', '000008.tar']

    assert run_nerf.main([*flags, '--render_only']) == 0
    assert run_nerf.main([*flags, '--render_only', '--render_test']) == 0
    path, test = run / 'renderonly_path_000008', run / 'renderonly_test_000008'
    pictures = [f'{kind}{i:03d}.png' for kind in ('', 'disp_') for i in range(3)]
    assert {file.name for file in path.iterdir()} == {*pictures, 'video.mp4', 'video_disp.mp4'}
    assert {file.name for file in test.iterdir()} == {*pictures, 'video.mp4', 'video_disp.mp4', 'metrics.json'}
    metrics = json.loads((test / 'metrics.json').read_text())
    assert [row['file'] for row in metrics['images']] == pictures[:3]
    for row, level in zip(metrics['images'], (7, 9, 11)):  # the path is the test views, and those are the images' grey
        shown = np.asarray(Image.open(test / row['file']), np.float64)
        assert shown.shape == (16, 20, 3)
        assert np.abs(shown - np.asarray(Image.open(path / row['file']))).max() <= 2  # by another sampler
        assert row['psnr'] == pytest.approx(-10 * np.log10((((shown - level) / 255) ** 2).mean()), abs=1e-3)
