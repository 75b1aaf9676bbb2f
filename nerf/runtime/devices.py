"""Device and precision of a run."""

from __future__ import annotations

import ctypes
import functools
from contextlib import suppress

import torch
from torch import Tensor

from nerf.runtime import ranks
from nerf.runtime.errors import UserError


def keep_freed_memory() -> None:
    """Lets the C library keep memory that a tile of rays freed, for the next tile. Paging it in again would take a
    tenth of a training step on a CPU."""
    with suppress(AttributeError, OSError, TypeError):  # the C library is not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2 ** 25)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD


@functools.lru_cache(256)
def constant(numbers: tuple[float, ...], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Tensor of numbers on a device, made once. Bringing numbers to a GPU waits for it."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, device=device, dtype=dtype)


def device_name(name: str, gpus: int) -> str:
    """Device of this process by the flag `device`, 'cpu' or 'cuda:N', on a machine with some number of GPUs. Each of
    several processes has a GPU of its own; a UserError says if there are too few."""
    if name == 'cpu' or (name == 'auto' and not gpus):
        return 'cpu'
    name = 'cuda' if name == 'auto' else name
    index = int(name.partition(':')[2] or ranks.local_rank())
    if ranks.count() > 1 and (name != 'cuda' or index >= gpus):
        raise UserError(f'device is {name}, with {gpus} GPUs here, for each of several processes; give --device auto, '
                        'and nproc_per_node no more processes than GPUs')
    return f'cuda:{index}'


def choose_device(name: str) -> torch.device:
    """Device of this process by the flag `device`. A GPU is made the current one, for CUDA's streams and graphs."""
    device = torch.device(device_name(name, torch.cuda.device_count() if torch.cuda.is_available() else 0))
    if device.type == 'cuda':
        torch.cuda.set_device(device.index)
        torch.set_float32_matmul_precision('highest')  # no TF32, also where a container's environment asks for it
        for name in ('bf16', 'fp16'):  # partial sums of a product, such as a weight's gradient, are added in fp32
            setattr(torch.backends.cuda.matmul, f'allow_{name}_reduced_precision_reduction', False)
    return device


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for products in bf16. Emulated products are slow."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return any(torch.cpu.get_capabilities().get(name) for name in ('avx512_bf16', 'amx_bf16'))


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Precision of the MLP's products by the flag `precision`; auto: bf16 where the device multiplies it."""
    if name == 'auto':
        name = 'bf16' if multiplies_bf16(device) else 'fp32'
    return {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}[name]
