"""Hostile input: changes of files, and the check that a reader takes a changed file or refuses it in one line."""

from __future__ import annotations

import copy
import io
import math
import os
import struct
import zlib
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from nerf.runtime.errors import UserError

CASES = int(os.environ.get('NERF_FUZZ', 10))  # of each test
fuzzed = settings(max_examples=CASES, suppress_health_check=list(HealthCheck))
LONGEST_MESSAGE = 1000

# Changes of files

PLACES = st.integers(0, 2 ** 32)  # modulo the number of places
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
    """Bytes with edits: at a place, bytes are set, flipped, inserted, deleted or repeated, or the rest is cut off."""
    for kind, place, content in edits:
        at = place % (len(data) + 1)
        end = at + len(content)
        flipped = bytes(a ^ b for a, b in zip(data[at:end], content[:1] + bytes(7)))
        data = {'set': data[:at] + content + data[end:], 'flip': data[:at] + flipped + data[at + len(flipped):],
                'insert': data[:at] + content + data[at:], 'delete': data[:at] + data[end:], 'cut': data[:at],
                'repeat': data[:end] + data[at:]}[kind]
    return data


def edited_png(data: bytes, edits) -> bytes:
    """PNG with edits inside its chunks, whose lengths and checksums are right."""
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
    """Keys that lead to each part of nested dictionaries and lists."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return [place for key, part in parts for place in [(*path, key), *places(part, (*path, key))]]


def changed(value, changes):
    """Copy of nested dictionaries and lists with some parts replaced or removed."""
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


# Results


def files_in(folder: Path) -> set[Path]:
    return set(folder.rglob('*'))


@contextmanager
def replaced(path: Path, content: bytes | None):
    """Context in which a file has other content (None: does not exist)."""
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
    """Result of a job; None: it ended in a UserError of one line. Neither leaves files in the folder."""
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
    """Checks that the numbers of a scene as read are finite."""
    assert images.dtype == np.uint8
    assert np.isfinite(poses).all()
    assert np.isfinite(render_poses).all()
    assert 0 < np.float32(hwf[2]) < math.inf
    assert images.shape[1:3] == (hwf[0], hwf[1])


def as_tar(content) -> bytes:
    """Bytes of a checkpoint file."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def huge_png() -> bytes:
    """PNG of a few bytes that claims 100,000 x 100,000 pixels."""
    header = struct.pack('>IIBBBBB', 100000, 100000, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + png_chunk(b'IHDR', header) + png_chunk(
        b'IDAT', zlib.compress(bytes(1000))) + png_chunk(b'IEND', b'')


def megabytes(kind: str) -> bytes:
    """Text of 50 MB for a transforms.json, by one of MEGABYTES."""
    many = 50_000_000
    return {'digits': b'9' * many, 'lists': b'[' * many, 'objects': b'{"a":' * 1_000_000,
            'angle': b'{"camera_angle_x": ' + b'1' * many + b'}',
            'file_path': b'{"camera_angle_x": 0.69, "frames": [{"file_path": "' + b'x' * many + b'"}]}',
            'matrix': b'{"camera_angle_x": 0.69, "frames": [{"file_path": "val/r_0", "transform_matrix": [["'
                      + b'x' * many + b'", 0, 0, 0], ' + b'[0, 0, 0, 0], ' * 2 + b'[0, 0, 0, 0]]}]}'}[kind]


MEGABYTES = 'digits', 'lists', 'objects', 'angle', 'file_path', 'matrix'
