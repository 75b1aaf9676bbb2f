"""Scenes in the Blender, LLFF and DeepVoxels formats with hostile files: they are read, or refused in one line."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
from conftest import look_at_origin
from hostile import (
    CHANGES, EDITS, JSON_VALUES, MEGABYTES, ODD_NUMBERS, PLACES, WHOLE_NUMBERS, WORDS, assert_cameras, assert_refused,
    changed, edited, edited_png, files_in, fuzzed, huge_png, megabytes, png_chunk, read_or_refused, replaced,
)
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from load_blender import load_blender_data
from load_deepvoxels import load_dv_data, load_intrinsics
from load_llff import load_llff_data
from nerf.runtime.errors import UserError

pytestmark = pytest.mark.fuzz

# Pictures


def rich_png(path: Path, **options) -> bytes:
    """Replaces the picture at a path by a PNG with text, EXIF data and a colour profile; returns its bytes."""
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
@example(edits=[('set', 225, b'\x01')], whole_chunks=True, kind='16 bits')  # ffmpeg makes no frame of it
@example(edits=[('cut', 2117, b'\x00')], whole_chunks=True, kind='P')  # Pillow cannot unpack its EXIF data
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
    for n, split in enumerate(('train', 'validation', 'test')):
        folder = datadir / split / 'cube'
        for name in ('pose', 'rgb'):
            (folder / name).mkdir(parents=True)
        (folder / 'intrinsics.txt').write_text('525. 256. 256. 0.\n0. 0. 0.\n1.\n1.\n512 512\n1\n')
        for i in range(2):
            pose = look_at_origin(1.0 * i + 0.3 * n, 0.4, 4.0) * [1, -1, -1, 1]  # OpenCV's axes
            np.savetxt(folder / 'pose' / f'{i:06d}.txt', np.linalg.inv(pose))
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


# Files made to do harm; test_load_llff.py has those that would run code


def test_a_picture_that_claims_to_be_huge_is_refused_by_each_loader(blender, llff, deepvoxels):
    for name, folder, job in [
            ('val/r_0.png', blender, lambda: load_blender_data(blender)),
            ('images_2/003.png', llff, lambda: load_llff_data(llff, 2)),
            ('test/cube/rgb/000001.png', deepvoxels, lambda: load_dv_data('cube', deepvoxels, 1))]:
        path = folder / name
        with replaced(path, huge_png()):
            assert_refused(folder, job, f'{path} cannot be read as a picture', 'exceed the limit')


@pytest.mark.slow
@pytest.mark.parametrize('kind', MEGABYTES)
def test_transforms_of_50_megabytes_of_nothing_are_refused(blender, kind):
    with replaced(blender / 'transforms_val.json', megabytes(kind)):
        assert_refused(blender, lambda: load_blender_data(blender), 'transforms')
