"""nerf/files/remade.py: arrays come back where they fit, and nothing that is wrong with a file is an error."""

from __future__ import annotations

import numpy as np
import pytest

from nerf.files.remade import read_arrays, write_arrays


def test_arrays_come_back_where_the_fingerprint_is_the_same(tmp_path):
    path, arrays = tmp_path / 'some.npz', {'a': np.arange(5), 'b': np.float64(0.1)}
    write_arrays(path, 'mine', arrays)
    back = read_arrays(path, 'mine')
    assert back.keys() == arrays.keys()
    np.testing.assert_array_equal(back['a'], arrays['a'])
    assert back['b'] == 0.1
    assert read_arrays(path, 'other') is None
    assert [each.name for each in tmp_path.iterdir()] == ['some.npz']


@pytest.mark.parametrize('content', [b'', b'no archive', None, 'cut', 'flipped'])
def test_a_broken_or_missing_file_gives_nothing(tmp_path, content):
    path = tmp_path / 'some.npz'
    write_arrays(path, 'mine', {'a': np.arange(50)})
    whole = path.read_bytes()
    middle = whole.index(np.arange(50).tobytes()) + 100
    path.unlink()
    if content is not None:
        path.write_bytes({'cut': whole[:-30], 'flipped': whole[:middle] + b'\xff' + whole[middle + 1:]}.get(
            content, content))
    assert read_arrays(path, 'mine') is None


def test_objects_in_a_file_are_not_unpickled(tmp_path):
    path = tmp_path / 'some.npz'
    np.savez(path, fingerprint=np.array('mine'), a=np.array([{}], object))
    assert read_arrays(path, 'mine') is None


def test_what_cannot_be_written_is_left_and_no_path_is_no_file(tmp_path):
    (tmp_path / 'file').write_text('in the way')
    write_arrays(tmp_path / 'file' / 'some.npz', 'mine', {'a': np.arange(5)})
    write_arrays(None, 'mine', {'a': np.arange(5)})
    assert read_arrays(None, 'mine') is None
    assert [each.name for each in tmp_path.iterdir()] == ['file']
