"""Hostile input: whatever a file of a scene, a checkpoint or a config holds, it is read, or refused in one line.

NERF_FUZZ is the number of cases of each test (200 where it is not set).
"""

from __future__ import annotations

import copy
import io
import json
import math
import os
import re
import shutil
import struct
import zipfile
import zlib
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from conftest import trainer_of
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_checkpoints import model_of, networks, saved
from test_keras_weights import keras_arrays, save_keras
from test_load_deepvoxels import CAMERA, SPLITS, default_cameras, opencv

import run_nerf
from load_blender import load_blender_data
from load_deepvoxels import load_dv_data, load_intrinsics
from load_llff import load_llff_data
from load_photos import load_colmap, load_transforms
from nerf.fields.grid import model as grid
from nerf.files import checkpoints
from nerf.files.packing import packed
from nerf.flags import config_parser, parse_flags
from nerf.optimiser import Optimiser
from nerf.rendering import draw_view
from nerf.runtime.errors import UserError
from nerf.scene import photographs_scene
from nerf.train_log import peak_memory

CASES = int(os.environ.get('NERF_FUZZ', 200))
fuzzed = settings(max_examples=CASES, suppress_health_check=list(HealthCheck))
LONGEST_MESSAGE = 1000

# What is done to files

PLACES = st.integers(0, 2 ** 32)  # modulo what there is
EDITS = st.lists(st.tuples(st.sampled_from(['set', 'flip', 'insert', 'delete', 'cut', 'repeat']), PLACES,
                           st.binary(min_size=1, max_size=8)), min_size=1, max_size=4)
ODD_NUMBERS = st.sampled_from([
    math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 0.5, 1.0, 3.0, 5e-324, 1e-310, 1e-30, 1e-18, 1e-10, 1e10, 1e19,
    1e30, 3e38, 1e39, 1e155, 1e308, -1e19, -1e308, 2.0 ** 53, 1e-7, 1.00001]) | st.floats()
WORDS = st.text(max_size=8) | st.sampled_from([
    '', '\0', 'a\nb', '\u2028', '\ud800', 'x' * 3000, '..', '/', '~', '.', 'nan', 'inf', '1e400', '1_0', '٣', '-1',
    '0x10', '9' * 5000, 'None', 'True', 'False', 'train/r_0', 'train', '%s', '{}', '../' * 9, '[', '[1, 2]', '"',
    "'", '#', '='])
WHOLE_NUMBERS = st.sampled_from([0, 1, -1, 2, 2 ** 31, -2 ** 31, 2 ** 63, 2 ** 64, 10 ** 400]) | st.integers()
SCALARS = st.none() | st.booleans() | WHOLE_NUMBERS | ODD_NUMBERS | WORDS
JSON_VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=8)
TENSORS = st.builds(
    lambda shape, dtype, value: torch.full(shape, value).to(dtype),
    st.lists(st.sampled_from([0, 1, 2, 3, 8]), max_size=3), st.sampled_from([
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool,
        torch.complex64]), st.sampled_from([0.0, 1.0, -1.0, 1e30, math.nan, math.inf]))
PLAIN_VALUES = st.recursive(
    SCALARS | TENSORS, lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(st.sampled_from(['state', 'params', 'step', 'lr', 'coarse', '']) | st.integers(0, 9), inner,
                      max_size=3), max_leaves=8)
REMOVED = object()
CHANGES = st.lists(st.tuples(PLACES, JSON_VALUES | st.just(REMOVED)), min_size=1, max_size=3)
PLAIN_CHANGES = st.lists(st.tuples(PLACES, PLAIN_VALUES | st.just(REMOVED)), min_size=1, max_size=3)


def edited(data: bytes, edits) -> bytes:
    """Bytes set, flipped, put in, taken out or repeated at some places, or all behind a place cut off."""
    for kind, place, content in edits:
        at = place % (len(data) + 1)
        end = at + len(content)
        flipped = bytes(a ^ b for a, b in zip(data[at:end], content[:1] + bytes(7)))
        data = {'set': data[:at] + content + data[end:], 'flip': data[:at] + flipped + data[at + len(flipped):],
                'insert': data[:at] + content + data[at:], 'delete': data[:at] + data[end:], 'cut': data[:at],
                'repeat': data[:end] + data[at:]}[kind]
    return data


def edited_png(data: bytes, edits) -> bytes:
    """Edits inside the chunks of a PNG, whose lengths and checksums are made right again."""
    for kind, place, content in edits:
        chunks, at = [], 8
        while at < len(data):
            length = int.from_bytes(data[at:at + 4], 'big')
            chunks.append((data[at + 4:at + 8], data[at + 8:at + 8 + length]))
            at += 12 + length
        i = place % len(chunks)
        chunks[i] = (chunks[i][0], edited(chunks[i][1], [(kind, place // len(chunks), content)]))
        data = data[:8] + b''.join(png_chunk(*chunk) for chunk in chunks)
    return data


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def places(value, path=()) -> list[tuple]:
    """The keys that lead to each part of nested dictionaries and lists."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return [place for key, part in parts for place in [(*path, key), *places(part, (*path, key))]]


def changed(value, changes):
    """A copy of nested dictionaries and lists of which some parts are replaced or removed."""
    value = copy.deepcopy(value)
    for place, new in changes:
        if not (there := places(value)):
            return value
        *path, key = there[place % len(there)]
        holder = value
        for step in path:
            holder = holder[step]
        if isinstance(holder, tuple):
            continue
        if new is REMOVED:
            del holder[key]
        else:
            holder[key] = new
    return value


# What must come of it


def files_in(folder: Path) -> set[Path]:
    return set(folder.rglob('*'))


@contextmanager
def replaced(path: Path, content: bytes | None):
    """The file with other content, or None: without it; as it was again behind the block."""
    before = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def read_or_refused(folder: Path, job):
    """The result of a job, or None where it ends in a UserError of one line; neither leaves files in the folder."""
    before = files_in(folder)
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            result = job()
    except UserError as error:
        result = None
        text = str(error)
        assert text.splitlines() == [text]
        assert len(text) < LONGEST_MESSAGE
    assert files_in(folder) == before
    return result


def assert_refused(folder: Path, job, *words: str) -> None:
    with pytest.raises(UserError) as error:
        job()
    read_or_refused(folder, job)
    for word in words:
        assert word in str(error.value)


def assert_cameras(images, poses, render_poses, hwf) -> None:
    """A scene as read is one to compute with."""
    assert images.dtype == np.uint8
    assert np.isfinite(poses).all()
    assert np.isfinite(render_poses).all()
    assert 0 < np.float32(hwf[2]) < math.inf
    assert images.shape[1:3] == (hwf[0], hwf[1])


# Pictures


def rich_png(path: Path, **options) -> bytes:
    """The picture at a path as a PNG that has all that Pillow looks into, and in place of the one there."""
    from PIL.PngImagePlugin import PngInfo

    info, exif = PngInfo(), Image.Exif()
    info.add_text('Comment', 'a picture', zip=True)
    info.add_itxt('Title', 'a picture', 'en', 'ein Bild')
    exif[0x0112], exif[0x010E] = 3, 'upside down'
    with Image.open(path) as image:
        image.load()
    if 'P' in options.values():
        image = image.convert(options.pop('mode'))
    image.save(path, pnginfo=info, exif=exif, dpi=(72, 72), icc_profile=bytes(200), **options)
    return path.read_bytes()


@pytest.fixture(scope='module')
def blender(tiny_scene, tmp_path_factory):
    return tiny_scene(tmp_path_factory.mktemp('blender'), counts=(2, 1, 1))


def read_blender(folder: Path):
    result = read_or_refused(folder, lambda: load_blender_data(folder, half_res=True))
    if result:
        assert_cameras(*result[:4])


@fuzzed
@given(edits=EDITS, whole_chunks=st.booleans(), kind=st.sampled_from(['RGBA', 'P', '16 bits']))
@example(edits=[('set', 225, b'\x01')], whole_chunks=True, kind='16 bits')  # of which ffmpeg makes no frame
@example(edits=[('cut', 2117, b'\x00')], whole_chunks=True, kind='P')  # of which Pillow cannot unpack the EXIF data
def test_an_edited_picture(blender, edits, whole_chunks, kind):
    path = blender / 'train' / 'r_1.png'
    with replaced(path, path.read_bytes()):
        if kind == '16 bits':
            rows = np.random.default_rng(0).bytes(16 * (1 + 16 * 8))
            data = b'\x89PNG\r\n\x1a\n' + b''.join(png_chunk(*chunk) for chunk in [
                (b'IHDR', struct.pack('>IIBBBBB', 16, 16, 16, 6, 0, 0, 0)),
                (b'IDAT', zlib.compress(b''.join(b'\0' + rows[i:i + 128] for i in range(0, 2048, 128)))),
                (b'IEND', b'')])
        else:
            data = rich_png(path, **{'mode': 'P', 'transparency': 0} if kind == 'P' else {})
        path.write_bytes((edited_png if whole_chunks else edited)(data, edits))
        read_blender(blender)


def huge_png() -> bytes:
    """A few bytes that claim to be 100,000 x 100,000 pixels."""
    header = struct.pack('>IIBBBBB', 100000, 100000, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + png_chunk(b'IHDR', header) + png_chunk(
        b'IDAT', zlib.compress(bytes(1000))) + png_chunk(b'IEND', b'')


# Blender


@fuzzed
@given(changes=CHANGES, split=st.sampled_from(['train', 'val', 'test']))
def test_transforms_with_other_values(blender, changes, split):
    path = blender / f'transforms_{split}.json'
    text = json.dumps(changed(json.loads(path.read_text()), changes))
    with replaced(path, text.encode()):
        read_blender(blender)


@fuzzed
@given(angle=JSON_VALUES)
@example(angle=5e-324)
@example(angle=1e-300)
def test_one_angle_in_all_transforms(blender, angle):
    paths = [blender / f'transforms_{split}.json' for split in ('train', 'val', 'test')]
    texts = [json.dumps(json.loads(path.read_text()) | {'camera_angle_x': angle}).encode() for path in paths]
    with replaced(paths[0], texts[0]), replaced(paths[1], texts[1]), replaced(paths[2], texts[2]):
        read_blender(blender)


@fuzzed
@given(name=WORDS, ending=st.sampled_from(['', '.png', '/', '/..']))
def test_any_file_path(blender, name, ending):
    path = blender / 'transforms_val.json'
    meta = json.loads(path.read_text())
    meta['frames'][0]['file_path'] = name + ending
    with replaced(path, json.dumps(meta).encode()):
        read_blender(blender)


@fuzzed
@given(edits=EDITS)
def test_edited_transforms(blender, edits):
    path = blender / 'transforms_test.json'
    with replaced(path, edited(path.read_bytes(), edits)):
        read_blender(blender)


# LLFF


@pytest.fixture(scope='module')
def llff(tiny_llff, tmp_path_factory):
    return tiny_llff(tmp_path_factory.mktemp('llff'))


def read_llff(folder: Path, spherify: bool) -> None:
    result = read_or_refused(folder, lambda: load_llff_data(folder, 2, spherify=spherify))
    if result:
        images, poses, bds, render_poses, i_test = result
        assert_cameras(images, poses, render_poses, poses[0, :, 4])
        assert (bds > 0).all()
        assert np.isfinite(bds).all()
        assert 0 <= i_test < len(images)


@fuzzed
@given(edits=EDITS, spherify=st.booleans())
def test_an_edited_poses_bounds(llff, edits, spherify):
    path = llff / 'poses_bounds.npy'
    with replaced(path, edited(path.read_bytes(), edits)):
        read_llff(llff, spherify)


@fuzzed
@given(header=EDITS, spherify=st.booleans())
def test_an_edited_header_of_poses_bounds(llff, header, spherify):
    path = llff / 'poses_bounds.npy'
    data = path.read_bytes()
    text = edited(data[10:75].rstrip(), header)
    with replaced(path, data[:8] + struct.pack('<H', len(text) + 1) + text + b'\n' + data[128:]):
        read_llff(llff, spherify)


@fuzzed
@given(values=st.lists(st.tuples(PLACES, ODD_NUMBERS), min_size=1, max_size=6), whole_column=st.booleans(),
       spherify=st.booleans())
@example(values=[(15, 1e-19), (3, 1e19)], whole_column=True, spherify=False)
@example(values=[(15, 1e-19), (8, 1e19)], whole_column=False, spherify=True)
@example(values=[(14, 1e-60)], whole_column=True, spherify=False)
def test_poses_bounds_with_other_values(llff, values, whole_column, spherify):
    path = llff / 'poses_bounds.npy'
    array = np.load(path)
    for place, value in values:
        array[slice(None) if whole_column else place // 17 % len(array), place % 17] = value
    file = io.BytesIO()
    np.save(file, array)
    with replaced(path, file.getvalue()):
        read_llff(llff, spherify)


@fuzzed
@given(edits=EDITS, whole_chunks=st.booleans())
def test_an_edited_photograph(llff, edits, whole_chunks):
    path = llff / 'images_2' / '002.png'
    with replaced(path, (edited_png if whole_chunks else edited)(path.read_bytes(), edits)):
        read_llff(llff, False)


@fuzzed
@given(edits=EDITS)
def test_an_edited_photograph_that_is_to_be_reduced(tiny_llff, tmp_path_factory, edits):
    folder = tiny_llff(tmp_path_factory.mktemp('llff'), reduced=False)
    path = folder / 'images' / '002.png'
    path.write_bytes(edited_png(path.read_bytes(), edits))
    before = files_in(folder)
    try:
        with redirect_stderr(io.StringIO()):
            load_llff_data(folder, 2)
        made = {folder / 'images_2', *(folder / 'images_2' / f'{i:03d}.png' for i in range(5))}
    except UserError as error:
        assert '\n' not in str(error)  # noqa: PT017 (it may end well too)
        made = set()
    assert files_in(folder) - before == made
    shutil.rmtree(folder)


# DeepVoxels


@pytest.fixture(scope='module')
def deepvoxels(tmp_path_factory):
    datadir = tmp_path_factory.mktemp('deepvoxels')
    for n, split in enumerate(SPLITS):
        folder = datadir / split / 'cube'
        for name in ('pose', 'rgb'):
            (folder / name).mkdir(parents=True)
        (folder / 'intrinsics.txt').write_text(CAMERA + '1\n')
        for i, camera in enumerate(default_cameras((2, 2, 2))[2 * n:2 * n + 2]):
            np.savetxt(folder / 'pose' / f'{i:06d}.txt', np.linalg.inv(opencv(camera)))
            Image.new('RGB', (16, 12), (i, n, 0)).save(folder / 'rgb' / f'{i:06d}.png')
    return datadir


def read_deepvoxels(datadir: Path) -> None:
    def job():
        images, poses, render_poses, hwf, _ = load_dv_data('cube', datadir, 1)
        return images, poses, render_poses, hwf, load_intrinsics('cube', datadir, *hwf[:2])
    result = read_or_refused(datadir, job)
    if result:
        assert_cameras(*result[:4])
        assert np.isfinite(result[4]).all()


FILES = st.sampled_from(['train/cube/intrinsics.txt', 'test/cube/intrinsics.txt', 'train/cube/pose/000001.txt',
                         'validation/cube/pose/000000.txt'])


@fuzzed
@given(name=FILES, edits=EDITS)
def test_edited_text_files(deepvoxels, name, edits):
    with replaced(deepvoxels / name, edited((deepvoxels / name).read_bytes(), edits)):
        read_deepvoxels(deepvoxels)


@fuzzed
@given(name=FILES, values=st.lists(st.tuples(PLACES, ODD_NUMBERS.map(repr) | WHOLE_NUMBERS.map(
    lambda value: '9' * 400 if value == 10 ** 400 else str(value)) | WORDS), min_size=1, max_size=3))
def test_text_files_with_other_values(deepvoxels, name, values):
    rows = [line.split(' ') for line in (deepvoxels / name).read_text().splitlines()]
    for place, value in values:
        row = rows[place % len(rows)]
        row[place // len(rows) % len(row)] = value
    text = '\n'.join(map(' '.join, rows))
    with replaced(deepvoxels / name, text.encode('utf-8', 'surrogatepass')):
        read_deepvoxels(deepvoxels)


@fuzzed
@given(name=FILES, content=st.none() | st.binary(max_size=50) | st.text(max_size=50).map(str.encode))
def test_text_files_of_anything_or_missing(deepvoxels, name, content):
    with replaced(deepvoxels / name, content):
        read_deepvoxels(deepvoxels)


# Photographs


def read_capture(folder: Path, load, *options) -> None:
    capture = read_or_refused(folder, lambda: load(folder, *options))
    if capture:
        cameras = capture.cameras
        for numbers in (cameras.poses, cameras.intrinsics, cameras.distortion, capture.points):
            assert numbers is None or np.isfinite(np.asarray(numbers)).all()
        axes = cameras.poses[:, :, :3].numpy()
        np.testing.assert_allclose(axes.transpose(0, 2, 1) @ axes, np.tile(np.eye(3), (len(axes), 1, 1)), atol=1e-9)
        assert (cameras.intrinsics[:, :2] > 0).all()
        assert all(0 <= index < len(capture.points) for seen in capture.seen or [] for index in seen)
        assert len(capture.i_train)
        assert len(capture.i_test)
        read_or_refused(folder, lambda: photographs_scene(capture, False, True))


@pytest.fixture(scope='module')
def transforms(tiny_transforms, tmp_path_factory):
    """A scene with a mask, points and lists of images."""
    folder = tiny_transforms(
        tmp_path_factory.mktemp('transforms'), 3, (12, 16), k1=0.1, k2=0.01, camera_model='OPENCV',
        train_filenames=['images/c_0.png', 'images/c_2.png'], test_filenames=['images/c_1.png'], is_fisheye=False,
        ply_file_path='points.ply', camera_angle_x=0.8)
    path = folder / 'transforms.json'
    meta = json.loads(path.read_text())
    meta['frames'][1] |= {'mask_path': 'images/c_2.png', 'fl_x': 20.0, 'k1': 0.0}
    path.write_text(json.dumps(meta))
    points = trimesh.PointCloud(np.random.default_rng(0).normal(size=(9, 3)), np.full((9, 4), 9, np.uint8))
    points.export(folder / 'points.ply', encoding='ascii')
    return folder


@fuzzed
@given(changes=CHANGES, outside_files=st.booleans())
def test_one_transforms_with_other_values(transforms, changes, outside_files):
    path = transforms / 'transforms.json'
    text = json.dumps(changed(json.loads(path.read_text()), changes))
    with replaced(path, text.encode()):
        read_capture(transforms, load_transforms, 1, 8, outside_files)


@fuzzed
@given(edits=EDITS)
def test_edited_one_transforms(transforms, edits):
    path = transforms / 'transforms.json'
    with replaced(path, edited(path.read_bytes(), edits)):
        read_capture(transforms, load_transforms)


@fuzzed
@given(key=st.sampled_from(['file_path', 'mask_path', 'ply_file_path', 'camera_model', 'k1', 'w', 'fl_x',
                            'test_filenames', 'transform_matrix']),
       value=JSON_VALUES, in_frame=st.booleans(), outside_files=st.booleans())
def test_a_value_of_one_transforms_of_anything(transforms, key, value, in_frame, outside_files):
    path = transforms / 'transforms.json'
    meta = json.loads(path.read_text())
    (meta['frames'][0] if in_frame else meta)[key] = value
    with replaced(path, json.dumps(meta).encode()):
        read_capture(transforms, load_transforms, 1, 8, outside_files)


@fuzzed
@given(edits=EDITS)
@example(edits=[('set', 35, b'99999999')])
def test_edited_sparse_points(transforms, edits):
    path = transforms / 'points.ply'
    with replaced(path, edited(path.read_bytes(), edits)):
        read_capture(transforms, load_transforms)


@pytest.fixture(scope='module')
def colmap(tiny_colmap, tmp_path_factory):
    """The folders of a scene with a binary model and of one with a text model."""
    return {ending: tiny_colmap(tmp_path_factory.mktemp('colmap'), ending == 'txt', 3, (12, 16))[0]
            for ending in ('bin', 'txt')}


PARTS = st.sampled_from(['cameras', 'images', 'points3D'])


@fuzzed
@given(part=PARTS, ending=st.sampled_from(['bin', 'txt']), edits=EDITS)
def test_an_edited_colmap_model(colmap, part, ending, edits):
    path = colmap[ending] / 'sparse/0' / f'{part}.{ending}'
    with replaced(path, edited(path.read_bytes(), edits)):
        read_capture(colmap[ending], load_colmap)


@fuzzed
@given(part=PARTS, place=PLACES, value=ODD_NUMBERS.map(lambda value: struct.pack('<d', value)) | st.sampled_from(
    [0, 1, 255, 2 ** 31, 2 ** 32 - 1, 2 ** 61, 2 ** 63 - 1, 2 ** 64 - 1]).map(lambda value: struct.pack('<Q', value)))
def test_a_colmap_model_with_other_numbers(colmap, part, place, value):
    path = colmap['bin'] / 'sparse/0' / f'{part}.bin'
    data = path.read_bytes()
    at = place % (len(data) - 7)
    with replaced(path, data[:at] + value + data[at + 8:]):
        read_capture(colmap['bin'], load_colmap)


@fuzzed
@given(part=PARTS, place=PLACES, word=ODD_NUMBERS.map(repr) | WORDS | WHOLE_NUMBERS.map(
    lambda value: '9' * 400 if value == 10 ** 400 else str(value)))
def test_a_colmap_text_model_with_other_words(colmap, part, place, word):
    path = colmap['txt'] / 'sparse/0' / f'{part}.txt'
    lines = [line.split(' ') for line in path.read_text().split('\n')]
    words = lines[place % len(lines)]
    words[place // len(lines) % len(words)] = word
    with replaced(path, '\n'.join(map(' '.join, lines)).encode('utf-8', 'surrogatepass')):
        read_capture(colmap['txt'], load_colmap)


# Checkpoints


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A checkpoint with averaged weights."""
    path = tmp_path_factory.mktemp('checkpoint') / '000123.tar'
    saved(path, True, True, 0.9)
    return path


def use(path: Path) -> None:
    """What a run does with a checkpoint at its start, without a scene."""
    def job():
        content = checkpoints.read_checkpoint(path)
        model = model_of(*networks())
        model.load_weights(content)
        optimiser = Optimiser(model, 0.9)
        if path.suffix == '.tar':
            with run_nerf.broken('optimiser does not fit the flags'):
                optimiser.load_state_dict(content['optimizer_state_dict'])
            optimiser.load_average(content)
        return model, optimiser
    result = read_or_refused(path.parent, job)
    if result:
        model, optimiser = result
        optimiser.prepare(1, 1e-3)
        optimiser.backward(sum(p.sum() for p in model.parameters()))
        optimiser.step({name: torch.zeros(()) for name in model.loss_names})
        for shown in (model, optimiser.averaged_model()):
            shown.radiance(torch.zeros(2, 3, 3), torch.ones(2, 3))


@fuzzed
@given(edits=EDITS)
def test_an_edited_checkpoint(checkpoint, edits):
    with replaced(checkpoint, edited(checkpoint.read_bytes(), edits)):
        use(checkpoint)


@fuzzed
@given(edits=EDITS)
def test_an_edited_pickle_in_a_checkpoint(checkpoint, edits):
    """Edits of the pickle alone, in a zip file that is whole."""
    file = io.BytesIO()
    with zipfile.ZipFile(checkpoint) as before, zipfile.ZipFile(file, 'w') as after:
        for name in before.namelist():
            content = before.read(name)
            after.writestr(name, edited(content, edits) if name.endswith('data.pkl') else content)
    with replaced(checkpoint, file.getvalue()):
        use(checkpoint)


def as_tar(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@fuzzed
@given(changes=PLAIN_CHANGES)
def test_a_checkpoint_with_other_values(checkpoint, changes):
    content = torch.load(checkpoint, weights_only=True)
    with replaced(checkpoint, as_tar(changed(content, changes))):
        use(checkpoint)


@fuzzed
@given(changes=PLAIN_CHANGES)
def test_an_optimiser_with_other_values(checkpoint, changes):
    content = torch.load(checkpoint, weights_only=True)
    content['optimizer_state_dict'] = changed(content['optimizer_state_dict'], changes)
    with replaced(checkpoint, as_tar(content)):
        use(checkpoint)


@pytest.fixture(scope='module')
def keras(tmp_path_factory):
    folder = tmp_path_factory.mktemp('keras')
    for name, network in zip(('model_000050.npy', 'model_fine_000050.npy'), networks()):
        save_keras(folder / name, keras_arrays(network))
    return folder / 'model_000050.npy'


@fuzzed
@given(edits=EDITS, fine=st.booleans())
def test_edited_keras_weights(keras, edits, fine):
    path = keras.with_name('model_fine_000050.npy') if fine else keras
    with replaced(path, edited(path.read_bytes(), edits)):
        use(keras)


# Resuming

SMALL = ['--dataset_type', 'blender', '--white_bkgd', '--use_viewdirs', '--netdepth', '2', '--netwidth', '4',
         '--netdepth_fine', '2', '--netwidth_fine', '4', '--multires', '1', '--multires_views', '1', '--N_samples', '4',
         '--N_importance', '2', '--N_rand', '8', '--device', 'cpu', '--precision', 'fp32', '--expname', 'run']


@pytest.fixture(scope='module')
def run(blender, tmp_path_factory):
    """Flags, scene and a folder with a checkpoint of three steps, which has averaged weights."""
    folder = tmp_path_factory.mktemp('logs') / 'run'
    flags = [*SMALL, '--datadir', str(blender), '--basedir', str(folder.parent), '--N_iters', '3', '--ema_decay', '0.9']
    assert run_nerf.main(flags) == 0
    path = folder / '000003.tar'
    assert 'averaged' in torch.load(path, weights_only=True)
    for other in set(folder.iterdir()) - {path}:
        other.unlink()
    return flags, run_nerf.load_scene(parse_flags(flags)), path


def resume(flags: list[str], scene: run_nerf.Scene, folder: Path) -> None:
    """Resumes, and where that goes well takes the steps up to the guard's next look at the networks."""
    args, trainer = parse_flags(flags), trainer_of(flags, scene)

    def job():
        checkpoint = run_nerf.restore_model(args, folder, trainer.model)[1]
        return run_nerf.resume(args, scene, trainer, folder, checkpoint)
    result = read_or_refused(folder, job)
    if result:
        step, viewed = result
        for number in (step + 1, step + 25 - step % 25):
            read_or_refused(folder, lambda number=number: (trainer.step(number), trainer.after_step(number)))
        assert viewed % args.i_img >= 0
        trainer.checkpoint(step + 25)


def restore(flags: list[str], scene: run_nerf.Scene, folder: Path) -> None:
    """Takes the weights to show, and where that goes well shows something."""
    args = parse_flags([*flags, '--render_only'])
    model = run_nerf.create_model(args, scene, torch.device('cpu'), torch.float32)
    if read_or_refused(folder, lambda: run_nerf.restore_model(args, folder, model)):
        model.radiance(torch.zeros(2, 3, 3), torch.ones(2, 3))
        model.density(torch.zeros(2, 3))
        for _ in draw_view(model, scene, scene.cameras.take([0])):
            pass


@fuzzed
@given(changes=PLAIN_CHANGES, part=st.sampled_from(['all', 'run_state', 'batcher', 'guard', 'optimizer_state_dict',
                                                    'averaged']))
def test_resuming_with_other_values(run, changes, part):
    start_with_other_values(run, changes, part)


def start_with_other_values(run, changes, part):
    """Resumes and renders from a run's checkpoint of which a part has other values."""
    flags, scene, path = run
    content = torch.load(path, weights_only=True)
    if part == 'all':
        content = changed(content, changes)
    else:
        holder = content if part in content else content['run_state']
        holder[part] = changed(holder[part], changes)
    with replaced(path, as_tar(content)):
        resume(flags, scene, path.parent)
        restore(flags, scene, path.parent)


@fuzzed
@given(part=st.sampled_from(['run_state', 'batcher', 'guard', 'optimizer_state_dict', 'scene', 'scaler', 'flags',
                             'viewed', 'global_step', 'averaged']), value=PLAIN_VALUES)
@example(part='global_step', value=-1)
@example(part='global_step', value=10 ** 400)
@example(part='averaged', value={'network_fn_state_dict': {'': torch.zeros(2)}})
def test_resuming_with_a_part_replaced(run, part, value):
    flags, scene, path = run
    content = torch.load(path, weights_only=True)
    (content if part in content else content['run_state'])[part] = value
    with replaced(path, as_tar(content)):
        resume(flags, scene, path.parent)
        restore(flags, scene, path.parent)


@fuzzed
@given(network=st.sampled_from(['network_fn_state_dict', 'network_fine_state_dict']), place=PLACES, value=PLAIN_VALUES)
@example(network='network_fine_state_dict', place=0, value=torch.full((4, 9), math.nan))
@example(network='network_fine_state_dict', place=0, value=torch.full((4, 9), 1e300, dtype=torch.float64))
def test_averaged_weights_of_anything(run, network, place, value):
    flags, scene, path = run
    content = torch.load(path, weights_only=True)
    weights = content['averaged'][network]
    weights[sorted(weights)[place % len(weights)]] = value
    with replaced(path, as_tar(content)):
        resume(flags, scene, path.parent)
        restore(flags, scene, path.parent)


# A grid

NONSENSE = PLAIN_VALUES | st.lists(WHOLE_NUMBERS, min_size=3, max_size=3) | st.builds(
    lambda shape, value, dtype: torch.full(shape, value, dtype=torch.float64).to(dtype),
    st.sampled_from([(3,), (125, 16), (64, 16), (64,)]), ODD_NUMBERS, st.sampled_from([torch.float32, torch.float64])
    ) | st.builds(torch.full, st.sampled_from([(8,), (15,), (16,)]), st.integers(0, 255), dtype=st.just(torch.uint8))
PACKED = st.builds(
    lambda shape, value, dtype: packed(torch.full(shape, value, dtype=torch.float64).to(dtype)),
    st.sampled_from([(125, 16), (64, 16), (125,), (16,), (0, 16)]), ODD_NUMBERS,
    st.sampled_from([torch.float32, torch.float16, torch.uint8, torch.bool]))


@pytest.fixture(scope='module')
def grid_run(blender, tmp_path_factory):
    """Flags, scene and a folder with a checkpoint of three steps of a grid of 4 x 4 x 4 cells."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, 'STAGES', {0.0: 4, 0.9: 6})
        folder = tmp_path_factory.mktemp('logs') / 'run'
        flags = ['--dataset_type', 'blender', '--datadir', str(blender), '--basedir', str(folder.parent), '--expname',
                 'run', '--device', 'cpu', '--precision', 'fp32', '--field', 'grid', '--N_iters', '3', '--N_rand', '20',
                 '--i_video', '1000', '--i_testset', '1000']
        assert run_nerf.main(flags) == 0
        path = folder / '000003.tar'
        (slims := folder.parent / 'slim').mkdir()
        (folder / '000003_slim.tar').rename(slims / '000003_slim.tar')
        for other in set(folder.iterdir()) - {path}:
            shutil.rmtree(other) if other.is_dir() else other.unlink()
        yield flags, run_nerf.load_scene(parse_flags(flags)), path


@fuzzed
@given(changes=st.lists(st.tuples(PLACES, NONSENSE | st.just(REMOVED)), min_size=1, max_size=3),
       part=st.sampled_from(['grid_state_dict', 'grid']))
def test_a_grid_with_other_values(grid_run, changes, part):
    start_with_other_values(grid_run, changes, part)


@fuzzed
@given(name=st.sampled_from(['means', 'squares', 'strongest', 'touched', 'adam_steps', 'n_rays']),
       value=NONSENSE | PACKED)
@example(name='means', value=torch.zeros(16))
@example(name='touched', value=packed(torch.full((125,), 3, dtype=torch.uint8)))
@example(name='touched', value=torch.full((125,), math.nan))
def test_running_means_of_a_grid_of_anything(grid_run, name, value):
    flags, scene, path = grid_run
    content = torch.load(path, weights_only=True)
    content['run_state']['grid'][name] = value
    with replaced(path, as_tar(content)):
        resume(flags, scene, path.parent)


@fuzzed
@given(edits=EDITS)
@example(edits=[('cut', 2000, b'0')])
def test_edited_slim_weights(grid_run, edits):
    flags, scene, path = grid_run
    slim = path.parents[1] / 'slim' / '000003_slim.tar'
    with replaced(slim, edited(slim.read_bytes(), edits)):
        restore(flags, scene, slim.parent)


@fuzzed
@given(name=st.sampled_from(['rows', 'cells', 'shape', 'low', 'voxel', 'stage', 'network', 'high of rows',
                             'low of rows', 'high of cells', 'low of cells', 'all']), value=NONSENSE | PACKED)
@example(name='rows', value=packed(torch.full((125, 16), math.nan).half()))
@example(name='rows', value=torch.full((125, 16), math.inf).half())
@example(name='rows', value=torch.full((125, 16), 1.0).bfloat16())
@example(name='high of rows', value=torch.frombuffer(bytearray(zlib.compress(bytes(10 ** 8))), dtype=torch.uint8))
@example(name='high of cells', value=torch.frombuffer(bytearray(zlib.compress(bytes(10 ** 8))), dtype=torch.uint8))
@example(name='shape', value=[2 ** 11, 2 ** 11, 2 ** 11])
@example(name='voxel', value=1e30)
@example(name='all', value=None)
def test_an_entry_of_slim_weights_of_anything(grid_run, name, value):
    flags, scene, path = grid_run
    slim = path.parents[1] / 'slim' / '000003_slim.tar'
    content = torch.load(slim, weights_only=True)
    part, _, whole = name.partition(' of ')
    if name == 'all':
        content['grid_state_dict'] = value
    else:
        (content['grid_state_dict'][whole] if whole else content['grid_state_dict'])[part] = value
    with replaced(slim, as_tar(content)):
        restore(flags, scene, slim.parent)


def test_slim_weights_of_a_huge_grid_in_a_small_file_are_refused_before_they_take_memory(grid_run):
    flags, scene, path = grid_run
    slim = path.parents[1] / 'slim' / '000003_slim.tar'
    content = torch.load(slim, weights_only=True)
    cells = packed(torch.full((600 ** 3 // 8,), 255, dtype=torch.uint8))
    content['grid_state_dict'] |= {'shape': [600] * 3, 'cells': cells}
    model = run_nerf.create_model(parse_flags(flags), scene, torch.device('cpu'), torch.float32)
    before = peak_memory(torch.device('cpu'))
    assert_refused(path.parent, lambda: model.load_weights(content), 'cells but 125 rows')
    assert peak_memory(torch.device('cpu')) < before + 600  # in MB: the masks, and no row numbers


@fuzzed
@given(name=st.sampled_from(['rows', 'cells', 'shape', 'low', 'voxel', 'stage', 'network']), value=NONSENSE | PACKED)
@example(name='voxel', value=1e-7)
@example(name='voxel', value=3e-5)
@example(name='voxel', value=1e30)
@example(name='low', value=torch.full((3,), 1e30))
@example(name='low', value=torch.tensor([-1e6, -2.0, -2.0]))
@example(name='low', value=torch.full((3,), math.nan))
@example(name='cells', value=torch.zeros(16, dtype=torch.uint8))
@example(name='shape', value=[2 ** 32, 2 ** 32, 2])
@example(name='shape', value=[2, 2, 32])
@example(name='rows', value=torch.full((125, 16), math.nan))
@example(name='rows', value=torch.full((125, 16), math.inf))
@example(name='rows', value=torch.full((125, 16), 3e38))
@example(name='network', value={'0.weight': torch.zeros(2), 'x' * 3000: 1})
def test_an_entry_of_a_grid_of_anything(grid_run, name, value):
    flags, scene, path = grid_run
    content = torch.load(path, weights_only=True)
    content['grid_state_dict'][name] = value
    with replaced(path, as_tar(content)):
        resume(flags, scene, path.parent)
        restore(flags, scene, path.parent)


# Flags

KEYS = sorted(action.dest for action in config_parser()._actions)
VALUES = SCALARS.map(lambda value: '9' * 400 if value == 10 ** 400 else str(value)) | JSON_VALUES.filter(
    lambda value: isinstance(value, list)).map(json.dumps) | st.builds(str.__add__, st.sampled_from(
        ['cuda:', '-', '--', '"', '[', '1e', 'True', 'x/', ' # ', '; ']), WORDS)
ENDS = st.sampled_from([' = ', ': ', ' ', '=', '', ' = ='])


def flags_or_refused(path: Path) -> None:
    """parse_flags of a config ends well, or with exit code 2 and one line beside warnings."""
    streams = io.StringIO(), io.StringIO()
    before = files_in(path.parent)
    try:
        with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
            args = parse_flags(['--config', str(path)])
        assert set(vars(args)) == set(vars(parse_flags(['--expname', 'x'])))
    except SystemExit as ended:
        assert ended.code == 2  # noqa: PT017 (it may end well too)
        *said, end = streams[1].getvalue().split('\n')
        assert [line.startswith('warning: ') for line in said] == [True] * (len(said) - 1) + [False]
        assert end == ''
        assert len(said[-1]) < LONGEST_MESSAGE
    assert streams[0].getvalue() == ''
    assert files_in(path.parent) == before


@fuzzed
@given(lines=st.lists(st.builds(''.join, st.tuples(st.sampled_from(KEYS), ENDS, VALUES)) | st.text(max_size=20) | WORDS,
                      min_size=1, max_size=4))
@example(lines=['help'])
@example(lines=['config = /dev/null'])
@example(lines=['config = another', 'help = None'])
@example(lines=['device = cuda:' + '1' * 5000])
def test_a_config_of_any_lines(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / 'config' / 'any.txt'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes('\n'.join(lines).encode('utf-8', 'surrogatepass'))
    flags_or_refused(path)


@fuzzed
@given(edits=EDITS)
def test_an_edited_config(tmp_path_factory, edits):
    path = tmp_path_factory.getbasetemp() / 'config' / 'edited.txt'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(edited((Path(__file__).parents[1] / 'configs' / 'lego.txt').read_bytes(), edits))
    flags_or_refused(path)


# Files made to do harm; those that would run code are in test_checkpoints.py, test_keras_weights.py and
# test_load_llff.py


def test_a_picture_that_claims_to_be_huge_is_refused_by_each_loader(blender, llff, deepvoxels, transforms, colmap):
    for name, folder, job in [
            ('val/r_0.png', blender, lambda: load_blender_data(blender)),
            ('images_2/003.png', llff, lambda: load_llff_data(llff, 2)),
            ('test/cube/rgb/000001.png', deepvoxels, lambda: load_dv_data('cube', deepvoxels, 1)),
            ('images/c_1.png', transforms, lambda: load_transforms(transforms)),
            ('images/c_2.png', transforms, lambda: load_transforms(transforms, 2)),  # a mask, too
            ('images/0.png', colmap['bin'], lambda: load_colmap(colmap['bin']))]:
        path = folder / name
        with replaced(path, huge_png()):
            assert_refused(folder, job, f'{path} cannot be read as a picture', 'exceeds limit')


@pytest.mark.parametrize('text', [
    b'9' * 50_000_000, b'[' * 50_000_000, b'{"a":' * 1_000_000, b'{"camera_angle_x": ' + b'1' * 50_000_000 + b'}',
    b'{"camera_angle_x": 0.69, "frames": [{"file_path": "' + b'x' * 50_000_000 + b'"}]}',
    b'{"camera_angle_x": 0.69, "frames": [{"file_path": "val/r_0", "transform_matrix": ['
    + b'["' + b'x' * 50_000_000 + b'", 0, 0, 0], ' + b'[0, 0, 0, 0], ' * 2 + b'[0, 0, 0, 0]]}]}'],
    ids=['digits', 'lists', 'objects', 'angle', 'file_path', 'matrix'])
def test_transforms_of_50_megabytes_of_nothing_are_refused(blender, transforms, text):
    for path, load in ((blender / 'transforms_val.json', load_blender_data),
                       (transforms / 'transforms.json', load_transforms)):
        with replaced(path, text):
            assert_refused(path.parent, lambda path=path, load=load: load(path.parent), 'transforms')


def test_keras_weights_that_claim_a_huge_memo_are_refused(tmp_path):
    """The index, for which the unpickler in C would allot 64 GiB, of an object that a pickle remembers."""
    save_keras(path := tmp_path / 'model_1.npy', [])
    data = path.read_bytes()
    path.write_bytes(data[:data.index(b'\n') + 1] + b'\x80\x02Nr' + struct.pack('<I', 2 ** 31) + b'.')
    assert_refused(tmp_path, lambda: checkpoints.read_checkpoint(path), f'{path} cannot be read as Keras weights')


def test_keras_weights_of_a_made_up_dtype_are_refused(tmp_path):
    save_keras(path := tmp_path / 'model_1.npy', keras_arrays(networks()[0]))
    whole = path.read_bytes()
    for old, new in ((b'f4', b'V4'), (b'f4', b'O8'), (b'f4', b'f9'), (b'<', b'x')):
        at = whole.index(b'\n') + 1
        assert old in whole[at:]
        path.write_bytes(whole[:at] + whole[at:].replace(old, new))
        assert_refused(tmp_path, lambda: checkpoints.read_checkpoint(path), str(path))


@pytest.mark.parametrize('shape', [(1,), (0,), (8, 9, 1), (9, 8), (1000, 1000)])
@pytest.mark.parametrize('name', ['exp_avg', 'exp_avg_sq'])
def test_running_means_of_another_shape_are_refused(checkpoint, name, shape):
    """Fused Adam would write past their end."""
    content = torch.load(checkpoint, weights_only=True)
    content['optimizer_state_dict']['state'][0][name] = torch.zeros(shape)
    optimiser = Optimiser(model_of(*networks()))

    def load():
        with run_nerf.broken('optimiser does not fit the flags'):
            optimiser.load_state_dict(content['optimizer_state_dict'])
    assert_refused(checkpoint.parent, load, 'does not fit the flags', 'parameter 0 is not of shape (8, 9)')


def test_a_config_that_names_itself_is_an_error_and_one_that_names_another_is_told_that_they_do_not_nest(
        tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, other = tmp_path / 'a.txt', tmp_path / 'b.txt'
    other.write_text('N_samples = 7\n')
    for itself in (path, 'a.txt', './b/../a.txt'):
        path.write_text(f'config = {itself}\nN_samples = 5\n')
        with pytest.raises(SystemExit) as exit_:
            parse_flags(['--config', str(path)])
        assert exit_.value.code == 2
        assert re.fullmatch(r'.*a\.txt names itself.*\n', capsys.readouterr().err)
    for another in (other, 'gone.txt'):
        path.write_text(f'config = {another}\nN_samples = 5\n')
        args = parse_flags(['--config', str(path)])
        assert (args.config, args.N_samples, args.N_rand) == (str(path), 5, 4096)
        assert re.fullmatch(rf'warning: .*config = {another}.*nest.*\n', capsys.readouterr().err)


@pytest.mark.parametrize('text', [
    'N_rand = ' + '9' * 1_000_000, 'datadir = ' + '[' * 100_000 + ']', 'N_rand = ' + '[' * 900 + ']' * 900,
    'a =' + ' #' * 3000, 'a = "' + '" ' * 3000, 'x' * 1_000_000, 'datadir = a\0b', 'basedir = \0', 'expname = a\0',
    'no_batching = []', 'N_rand = [1, 2]', 'device = cuda:' + '1' * 5000])
def test_a_config_line_made_to_do_harm_is_refused_in_one_line(tmp_path, capsys, text):
    (tmp_path / 'a.txt').write_text(text)
    with pytest.raises(SystemExit) as ended:
        parse_flags(['--config', str(tmp_path / 'a.txt')])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count('\n')) == ('', 1)
    assert len(err) < LONGEST_MESSAGE
