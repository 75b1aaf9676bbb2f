"""nerf/files/packing.py: large tensors in fewer bytes, bit for bit, and broken ones as errors."""

from __future__ import annotations

import math
import zlib

import pytest
import torch
from conftest import assert_same

from nerf.files.packing import packed, unpacked

ODD = [0.0, -0.0, 1.0, -1.5, 1e-45, 3e38, math.inf, -math.inf, math.nan, 1 / 3, 2 ** -14, 65504.0]


def bits(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(torch.uint8)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.float64, torch.uint8])
@pytest.mark.parametrize('shape', [(3, 4), (12,), (0, 16), (2, 3, 2)])
def test_each_bit_comes_back(dtype, shape):
    values = torch.tensor([part if dtype.is_floating_point else n for n, part in enumerate(ODD)]).to(dtype)
    values = values[:math.prod(shape)].reshape(shape)
    again = unpacked(packed(values), shape, dtype)
    assert (again.dtype, again.shape) == (dtype, torch.Size(shape))
    assert_same(bits(again), bits(values))


def test_of_a_tensor_that_is_not_contiguous_the_values_come_back():
    values = torch.arange(12.0).reshape(3, 4).T
    assert_same(unpacked(packed(values), (4, 3), torch.float32), values)


def test_a_plain_tensor_is_returned_as_it_is_if_it_has_the_shape():
    values = torch.ones(3)
    assert unpacked(values, (3,), torch.float16) is values
    with pytest.raises(ValueError, match='shape'):
        unpacked(values, (5,), torch.float16)


@pytest.mark.parametrize(('dtype', 'share'), [(torch.float32, 0.9), (torch.float16, 0.87)])
def test_numbers_of_like_size_take_less_room(dtype, share):
    values = torch.randn(20000, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    parts = packed(values)
    assert sum(part.nbytes for part in parts.values()) < share * values.nbytes
    assert parts['low'].nbytes == values.nbytes // dtype.itemsize * (dtype.itemsize - 1)


def test_bytes_that_repeat_take_next_to_no_room():
    parts = packed(torch.zeros(10 ** 6, dtype=torch.uint8))
    assert sum(part.nbytes for part in parts.values()) < 10 ** 4


BOMB = torch.frombuffer(bytearray(zlib.compress(bytes(10 ** 7))), dtype=torch.uint8)


@pytest.mark.parametrize(('name', 'value'), [
    ('high', None), ('high', torch.zeros(0, dtype=torch.uint8)), ('high', torch.zeros(9, dtype=torch.uint8)),
    ('high', 'text'), ('high', BOMB), ('high', packed(torch.zeros(5))['high']), ('high', torch.zeros(3, device='meta')),
    ('low', None), ('low', torch.zeros(6, 2, dtype=torch.uint8)), ('low', torch.zeros(6, 3)),
    ('low', torch.zeros(5, 3, dtype=torch.uint8)), ('low', 'text')])
def test_broken_parts_are_errors(name, value):
    parts = packed(torch.arange(6.0))
    for changed in ({**parts, name: value}, {key: part for key, part in parts.items() if key != name}):
        with pytest.raises((AttributeError, LookupError, TypeError, ValueError, RuntimeError)):
            unpacked(changed, (6,), torch.float32)


def test_high_bytes_that_were_cut_off_are_an_error():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    parts = packed(values)
    with pytest.raises(ValueError, match='high bytes'):
        unpacked(parts | {'high': parts['high'][:len(parts['high']) // 2]}, (1000,), torch.float32)
