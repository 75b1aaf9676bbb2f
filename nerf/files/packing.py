"""Large tensors packed into fewer bytes without loss, for checkpoints.

The highest byte of each number, with its sign and most of its exponent, is deflated. The other bytes look random.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def packed(values: Tensor) -> dict[str, Tensor]:
    """Tensor on the CPU as two tensors of bytes: 'high', the deflated highest bytes, and 'low' [N, size - 1], the other
    bytes."""
    numbers = np.ascontiguousarray(values.numpy()).reshape(-1, 1).view(np.uint8)  # [N, size], lowest byte first
    deflate = zlib.compressobj(1, strategy=zlib.Z_RLE)  # three times as fast as the default and no larger here
    high = deflate.compress(np.ascontiguousarray(numbers[:, -1])) + deflate.flush()
    return {'high': torch.frombuffer(bytearray(high), dtype=torch.uint8),
            'low': torch.from_numpy(np.ascontiguousarray(numbers[:, :-1]))}


def unpacked(parts: dict[str, Tensor] | Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Tensor that `packed` took; a plain tensor of this shape is returned as it is. Broken bytes cannot make it take
    more memory than the tensor needs. Parts that are broken or of another shape raise an AttributeError, LookupError,
    TypeError or ValueError."""
    if isinstance(parts, Tensor):
        if parts.shape != tuple(shape):
            raise ValueError(f'a tensor of shape {tuple(parts.shape)}, not {tuple(shape)}')
        return parts
    count, size, low = math.prod(shape), dtype.itemsize, parts['low']
    if low.dtype != torch.uint8 or low.shape != (count, size - 1):
        raise ValueError(f'low bytes of shape {tuple(low.shape)}, not {(count, size - 1)}')
    inflate = zlib.decompressobj()
    try:
        high = inflate.decompress(parts['high'].numpy().tobytes(), count + 1)
    except zlib.error as error:
        raise ValueError(f'high bytes that cannot be inflated: {error}') from None
    if len(high) != count:
        raise ValueError(f'{len(high)} high bytes or more, not {count}')
    numbers = np.empty((count, size), np.uint8)
    numbers[:, :-1], numbers[:, -1] = low.numpy(), np.frombuffer(high, np.uint8)
    return torch.from_numpy(numbers.reshape(-1)).view(dtype).reshape(tuple(shape))
