"""Where a run computes and how precisely, and the memory that it keeps for that."""

from __future__ import annotations

import ctypes
import functools
from contextlib import suppress

import torch
from torch import Tensor

from nerf.runtime import ranks
from nerf.runtime.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def keep_freed_memory() -> None:
    """Lets the C library keep what a tile of rays freed for the next one. Given back to the system it would be paged in
    again, which is a tenth of the time of a training step on a CPU."""
    with suppress(AttributeError, OSError, TypeError):  # it is not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2 ** 25)
        libc.mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)


@functools.lru_cache(256)
def constant(numbers: tuple[float, ...], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers on a device; they are kept, as a GPU has to be waited for to bring them there."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, device=device, dtype=dtype)


def choose_device(name: str) -> torch.device:
    """The device of this process, on which CUDA's streams and graphs are made from now on; of several each has its
    own GPU.

    Raises:
        UserError: there are more processes than GPUs.
    """
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    if name == 'cpu':
        return torch.device(name)
    index = int(name.partition(':')[2] or ranks.local_rank())
    if ranks.count() > 1 and (name != 'cuda' or index >= torch.cuda.device_count()):
        raise UserError(f'device is {name}, with {torch.cuda.device_count()} GPUs here, for each of several '
                        'processes; give --device auto, and nproc_per_node no more processes than GPUs')
    torch.cuda.set_device(index)
    torch.set_float32_matmul_precision('highest')  # no TF32, also where a container's environment asks for it
    for name in ('bf16', 'fp16'):  # parts of a product, of a weight's gradient over all points say, are added in fp32
        setattr(torch.backends.cuda.matmul, f'allow_{name}_reduced_precision_reduction', False)
    return torch.device('cuda', index)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the MLP's products; auto is bf16 only where it is multiplied natively, as emulation is slow."""
    if name == 'auto':
        if device.type == 'cuda':
            native = torch.cuda.get_device_capability(device) >= (8, 0)
        else:
            found = torch.cpu.get_capabilities()
            native = found.get('avx512_bf16') or found.get('amx_bf16')
        name = 'bf16' if native else 'fp32'
    return {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}[name]
