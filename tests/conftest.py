"""Fixtures of several test files: golden values, scenes that are written in a moment, and short runs."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_cuda.gpu_tests import pytest_collection_finish, pytest_pyfunc_call  # noqa: F401
from hypothesis import settings
from PIL import Image

from nerf.fields.kinds import FIELDS
from nerf.flags import parse_flags
from nerf.formats import load_scene
from nerf.runtime.devices import choose_device, choose_precision
from nerf.scene import Scene
from nerf.training import Trainer
from run_nerf import create_trainer

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / 'shared'

if 'PYTEST_XDIST_WORKER' in os.environ:  # each worker has a core; more threads would wait for each other
    os.environ |= {'OMP_NUM_THREADS': '1', 'NUMBA_NUM_THREADS': '1'}
    torch.set_num_threads(1)

# No deadline: it would measure the machine's load. Derandomised: a red run is red again.
settings.register_profile('nerf', deadline=None, derandomize=True, database=None)
settings.load_profile('nerf')


@pytest.fixture(scope='session')
def shared() -> Path:
    """Folder of golden values and real scenes, which is not part of the repository."""
    if not SHARED.is_dir():
        pytest.skip(f'needs {SHARED}')
    return SHARED


@pytest.fixture(scope='session')
def golden(shared) -> dict[str, np.ndarray]:
    """Inputs and outputs of the reference code, by name."""
    path = shared / 'interop' / 'golden.npz'
    if not path.is_file():
        pytest.skip(f'needs {path}')
    with np.load(path) as arrays:
        return dict(arrays)


def look_at_origin(azimuth: float, elevation: float, distance: float) -> np.ndarray:
    """Pose [4, 4], camera-to-world, OpenGL axes, z up; angles in radians."""
    away = np.array([math.cos(azimuth) * math.cos(elevation), math.sin(azimuth) * math.cos(elevation),
                     math.sin(elevation)])
    right = np.cross([0.0, 0.0, 1.0], away)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(away, right), away, distance * away], 1)
    return pose


@pytest.fixture(scope='session')
def tiny_scene():
    """Writes a scene in the Blender format, an orange ball seen from all around, and returns its folder.

    tiny_scene(folder, size=16 or (height, width), counts=(train, val, test), channels=4 or 3 (white background),
    angle=camera_angle_x in radians)
    """
    def write(folder: Path, size=16, counts=(4, 2, 2), channels=4, angle=0.69) -> Path:
        height, width = np.broadcast_to(size, 2).tolist()
        row, column = np.mgrid[:height, :width] + 0.5
        disc = np.hypot(row - height / 2, column - width / 2) < 0.3 * min(height, width)
        picture = np.where(disc[..., None], np.uint8([230, 120, 40, 255]), np.uint8([255, 255, 255, 0]))[..., :channels]
        for n, (split, count) in enumerate(zip(('train', 'val', 'test'), counts)):
            (folder / split).mkdir(parents=True)
            frames = []
            for i in range(count):
                Image.fromarray(picture).save(folder / split / f'r_{i}.png')
                pose = look_at_origin(2 * math.pi * (i / count + n / 30), 0.5, 4.0)
                frames.append({'file_path': f'./{split}/r_{i}', 'transform_matrix': pose.tolist()})
            (folder / f'transforms_{split}.json').write_text(
                json.dumps({'camera_angle_x': angle, 'frames': frames}), encoding='utf-8')
        return folder
    return write


def turn(axis, degrees: float) -> np.ndarray:
    """Rotation [3, 3] about an axis, counterclockwise when the axis points at the viewer."""
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    angle = math.radians(degrees)
    return np.eye(3) + math.sin(angle) * cross + (1.0 - math.cos(angle)) * cross @ cross


def forward_cameras(count: int = 5) -> np.ndarray:
    """Poses [count, 3, 4], camera-to-world, OpenGL axes: roughly side by side, each turned a little, far from the
    world's origin and along none of its axes."""
    world, places = turn([1, 2, 3], 70.0), np.arange(count) - (count - 1) / 2
    return np.stack([np.column_stack([world @ turn([0.3, 1.0, 0.2 * place], 4.0 * place),
                                      world @ [0.5 * place, 0.1 * place ** 2, 0.15 * (i % 2)] + [4.0, -3.0, 2.0]])
                     for i, place in enumerate(places)])


@pytest.fixture(scope='session')
def tiny_llff():
    """Writes a scene in the LLFF format and returns its folder.

    tiny_llff(folder, poses=[N, 3, 4] camera-to-world in OpenGL axes, size=(height, width) and focal length as loaded,
    factor=2, bounds=(near, far) or [N, 2], reduced=True: images_<factor>, False: images/ at full size)

    Image i has 10 * i of red; green grows downwards and blue to the right.
    """
    def write(folder: Path, poses=None, size=(12, 16), focal=20.0, factor=2, bounds=(2.0, 20.0), reduced=True) -> Path:
        poses = forward_cameras() if poses is None else np.asarray(poses)
        height, width = np.asarray(size) if reduced else np.asarray(size) * factor
        images = folder / (f'images_{factor}' if reduced and factor > 1 else 'images')
        images.mkdir(parents=True)
        row, column = np.mgrid[:height, :width]
        for i in range(len(poses)):
            picture = np.stack([np.full_like(row, 10 * i), 250 * row // height, 250 * column // width], -1)
            Image.fromarray(picture.astype(np.uint8)).save(images / f'{i:03d}.png')
        right, up, backward, position = np.moveaxis(poses, -1, 0)
        camera = np.broadcast_to(factor * np.array([*size, focal]), right.shape)
        columns = np.stack([-up, right, backward, position, camera], -1)  # LLFF has down, right, backward
        bounds = np.broadcast_to(bounds, (len(poses), 2))
        np.save(folder / 'poses_bounds.npy', np.column_stack([columns.reshape(-1, 15), bounds]))
        return folder
    return write


@pytest.fixture(scope='session')
def tiny_transforms():
    """Writes a scene as nerfstudio does, transforms.json and photographs of an orange ball, and returns its folder.

    tiny_transforms(folder, count=6, size=(height, width), ending='.png', **more for the top of the file)

    Photograph i, images/c_<i>, has 10 * i of blue in its first pixel.
    """
    def write(folder: Path, count=6, size=(24, 32), ending='.png', **top) -> Path:
        height, width = size
        (folder / 'images').mkdir(parents=True)
        row, column = np.mgrid[:height, :width] + 0.5
        disc = np.hypot(row - height / 2, column - width / 2) < 0.3 * min(height, width)
        frames = []
        for i in range(count):
            picture = np.where(disc[..., None], np.uint8([230, 120, 40]), np.uint8([90, 160, 200]))
            picture[0, 0] = 0, 0, 10 * i
            Image.fromarray(picture).save(folder / 'images' / f'c_{i}{ending}')
            pose = look_at_origin(2 * math.pi * i / count, 0.3 + 0.1 * (i % 2), 4.0)
            frames.append({'file_path': f'images/c_{i}{ending}', 'transform_matrix': pose.tolist()})
        meta = {'fl_x': 1.2 * width, 'fl_y': 1.1 * width, 'cx': 0.5 * width + 1, 'cy': 0.5 * height - 1, 'w': width,
                'h': height, 'frames': frames} | top
        (folder / 'transforms.json').write_text(json.dumps(meta), encoding='utf-8')
        return folder
    return write


@pytest.fixture(scope='session')
def tiny_colmap():
    """Writes a scene with a COLMAP model in sparse/0, made by COLMAP itself, and returns its folder and the model.

    tiny_colmap(folder, text=False, count=6, size=(height, width), model=the lens, parameters=its numbers)

    Every second camera is of the model PINHOLE. Each image shows all of 20 points but for the image's first, whose
    errors are 0.5 pixels; point 20 is shown once, and point 21 has an error of 50 pixels.
    """
    pycolmap = pytest.importorskip('pycolmap')

    def write(folder: Path, text=False, count=6, size=(24, 32), model='OPENCV',
              parameters=(40.0, 41.0, 17.0, 11.0, 0.05, -0.01, 0.001, 0.002)):
        height, width = size
        reconstruction = pycolmap.Reconstruction()
        for number, name, values in ((1, model, parameters), (2, 'PINHOLE', (42.0, 43.0, 15.0, 13.0))):
            reconstruction.add_camera_with_trivial_rig(
                pycolmap.Camera(camera_id=number, model=name, width=width, height=height, params=values))
        points = np.random.default_rng(0).uniform(-0.5, 0.5, (22, 3))
        tracks = [pycolmap.Track() for _ in points]
        (folder / 'images' / 'some more').mkdir(parents=True)
        for i in range(count):
            name = f'some more/{i}.png' if i % 2 else f'{i}.png'
            Image.new('RGB', (width, height), (10 * i, 100, 100)).save(folder / 'images' / name)
            world_to_camera = np.linalg.inv(look_at_origin(1.1 * i, 0.2 + 0.1 * (i % 3), 4.0) * [1, -1, -1, 1])
            in_camera = points @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
            image = pycolmap.Image(name=name, camera_id=1 + i % 2, image_id=i + 1,
                                   keypoints=reconstruction.cameras[1 + i % 2].img_from_cam(in_camera))
            reconstruction.add_image_with_trivial_frame(image, pycolmap.Rigid3d(world_to_camera[:3]))
            for j, track in enumerate(tracks):
                if j != i and (j != 20 or i == 0):
                    track.add_element(i + 1, j)
        for j, (point, track) in enumerate(zip(points, tracks)):
            reconstruction.points3D[reconstruction.add_point3D(point, track)].error = 50.0 if j == 21 else 0.5
        (folder / 'sparse' / '0').mkdir(parents=True)
        (reconstruction.write_text if text else reconstruction.write_binary)(folder / 'sparse' / '0')
        return folder, reconstruction
    return write


# Small training runs

SMALL_SCENE = ['--dataset_type', 'blender', '--white_bkgd', '--testskip', '1', '--device', 'cpu', '--precision', 'fp32']
SMALL_RUN = [*SMALL_SCENE, '--use_viewdirs', '--netdepth', '3', '--netwidth', '16', '--netdepth_fine', '2',
             '--netwidth_fine', '16', '--multires', '4', '--multires_views', '2', '--N_samples', '8', '--N_importance',
             '8', '--N_rand', '32', '--lrate', '1e-2']


@pytest.fixture(scope='session')
def scene_dir(tiny_scene, tmp_path_factory) -> Path:
    """Folder of a tiny scene. Tests only read it."""
    return tiny_scene(tmp_path_factory.mktemp('scene'))


@pytest.fixture
def flags(scene_dir, tmp_path):
    """Makes the flags of a run on the tiny scene, and further ones, which override them."""
    def make(*extra: str, expname: str = 'run') -> list[str]:
        return [*SMALL_RUN, '--datadir', str(scene_dir), '--basedir', str(tmp_path), '--expname', expname, *extra]
    return make


def trainer_of(flags: list[str], scene: Scene | None = None, captured: bool = True) -> Trainer:
    """Trainer that run_nerf.py makes of these flags.

    Args:
        flags: of a run.
        scene: of the run; None: it is read from datadir.
        captured: steps on a GPU may run as a captured CUDA graph.
    """
    args = parse_flags(flags)
    scene, device = load_scene(args) if scene is None else scene, choose_device(args.device)
    field = FIELDS[args.field].build(args, scene, device, choose_precision(args.precision, device))
    trainer = create_trainer(args, scene, field)
    if captured:
        return trainer
    trainer.training.captured = False
    return Trainer(trainer.training, trainer.batcher, args.lrate, args.lrate_decay, args.ema_decay)


def state_of_run(folder: Path, step: int) -> dict:
    """Checkpoint of a run, without the flags in it."""
    checkpoint = torch.load(folder / f'{step:06d}.tar', weights_only=True)
    del checkpoint['run_state']['flags']
    return checkpoint


def assert_same(a, b) -> None:
    """Checks that nested values are equal bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


# A run that was cut off and went on

LOGGED_RUN = ['--dataset_type', 'blender', '--white_bkgd', '--use_viewdirs', '--netdepth', '2', '--netwidth', '16',
              '--netdepth_fine', '2', '--netwidth_fine', '16', '--multires', '3', '--multires_views', '2',
              '--N_samples', '8', '--N_importance', '8', '--N_rand', '64', '--lrate', '5e-3', '--testskip', '1',
              '--device', 'cpu', '--i_print', '4', '--i_img', '10', '--i_weights', '10', '--i_testset', '20',
              '--i_video', '1000', '--seed', '3']


@pytest.fixture(scope='session')
def made_once(tmp_path_factory):
    """Makes a folder once for all test processes of a session.

    made_once(name, make): `make` gets the path of a new folder and fills it; returns the path. Tests only read there.
    """
    def made(name: str, make) -> Path:
        if 'PYTEST_XDIST_WORKER' not in os.environ:
            make(folder := tmp_path_factory.mktemp(name))
            return folder
        import fcntl

        folder = tmp_path_factory.getbasetemp().parent / name
        with open(folder.with_suffix('.lock'), 'a+') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed: other processes wait for the folder
            lock.seek(0)
            if lock.read() != 'made':
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                lock.write('made')
        return folder
    return made


@pytest.fixture(scope='session')
def logged_run(tiny_scene, made_once) -> Path:
    """Folder of a run that was cut off after step 34, with its newest checkpoint of step 30, and went on to step 44.

    Two folders up lie its scene, and first.txt and second.txt: the output of the two starts.
    """
    return made_once('user', lambda folder: run_twice(folder, tiny_scene(folder / 'scene'))) / 'logs' / 'run'


def run_twice(folder: Path, scene: Path) -> None:
    """Trains `logged_run` into a folder."""
    command = [sys.executable, ROOT / 'run_nerf.py', *LOGGED_RUN, '--datadir', scene, '--basedir', folder / 'logs',
               '--expname', 'run']
    for name, steps in (('first', 34), ('second', 44)):
        with open(folder / f'{name}.txt', 'wb') as out:  # as in: python run_nerf.py ... > first.txt 2>&1
            subprocess.run([*command, '--N_iters', str(steps)], stdout=out, stderr=subprocess.STDOUT, check=True,
                           env=os.environ | {'OMP_NUM_THREADS': '1'})
        if name == 'first':
            (folder / 'logs' / 'run' / '000034.tar').unlink()


@pytest.fixture(scope='session')
def board(logged_run):
    """EventAccumulator of `logged_run` with all its pictures, scalars and histograms, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logged_run), size_guidance={'images': 0, 'scalars': 0, 'histograms': 0})
    return events.Reload()


@pytest.fixture
def as_rank(monkeypatch):
    """Sets the environment variables of one of several processes: as_rank(rank, count)."""
    def become(rank: int, count: int) -> None:
        for name, value in {'RANK': rank, 'WORLD_SIZE': count, 'MASTER_ADDR': 'localhost', 'MASTER_PORT': 1}.items():
            monkeypatch.setenv(name, str(value))
    return become
