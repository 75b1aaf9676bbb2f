"""Processes that share a run: `torchrun --nproc_per_node=N run_nerf.py ...` starts N processes, each on its device. A
process that was started alone has rank 0 of 1 and exchanges nothing. Only rank 0 writes files and prints."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

VARIABLES = {'RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'}  # set by torchrun for each process
TIMEOUT = timedelta(hours=12)  # other ranks wait while rank 0 renders a view or saves
CUDA_TIMEOUT = timedelta(minutes=30)  # of NCCL: other ranks can be in the next step already, and wait there
_on_cuda: dist.ProcessGroup | None = None  # for CUDA tensors; the default group is for tensors on the CPU


def count() -> int:
    """Number of processes."""
    return int(os.environ['WORLD_SIZE']) if os.environ.keys() >= VARIABLES else 1


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ['RANK']) if count() > 1 else 0


def local_rank() -> int:
    """Rank of this process among the processes of its machine."""
    return int(os.environ.get('LOCAL_RANK', 0)) if count() > 1 else 0


def first() -> bool:
    """Whether this process is rank 0, which writes files and prints."""
    return rank() == 0


@contextmanager
def joined(device: torch.device):
    """Context in which the processes can exchange tensors: CUDA tensors over NCCL, others over gloo."""
    if count() == 1:
        yield
        return
    global _on_cuda
    dist.init_process_group('gloo', timeout=TIMEOUT)
    if device.type == 'cuda':
        _on_cuda = dist.new_group(backend='nccl', timeout=CUDA_TIMEOUT)
    try:
        yield
    finally:
        _on_cuda = None
        with suppress(RuntimeError):
            dist.destroy_process_group()


def leave(code: int) -> None:
    """Ends the process. One of several processes skips the interpreter's shutdown, in which a thread of gloo could free
    a tensor and abort it."""
    if count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@contextmanager
def one_voice():
    """Context in which only rank 0 prints."""
    if first():
        yield
        return
    with open(os.devnull, 'w', encoding='utf-8') as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def say_error(message: str) -> None:
    """Writes a line to standard error, with the rank if it is not 0, in one write: lines of processes do not mix."""
    sys.stderr.write(f'error{"" if first() else f" (process {rank()})"}: {message}\n')


def share(n: int) -> slice:
    """Part of n rows for this process; the parts differ by one row at most."""
    return slice(n * rank() // count(), n * (rank() + 1) // count())


def add_up(tensors: list[torch.Tensor]) -> None:
    """Replaces tensors by their sums over all processes, in one exchange."""
    if count() > 1:
        total = torch.cat([x.flatten() for x in tensors])
        dist.all_reduce(total, group=_on_cuda if total.is_cuda else None)
        parts = total.split([x.numel() for x in tensors])
        torch._foreach_copy_(tensors, [part.view_as(x) for part, x in zip(parts, tensors)])


def largest(x: torch.Tensor) -> torch.Tensor:
    """Replaces x by its element-wise maximum over all processes, and returns it."""
    if count() > 1:
        dist.all_reduce(x, dist.ReduceOp.MAX, _on_cuda if x.is_cuda else None)
    return x


def maximum(number: int) -> int:
    """Maximum of a number over all processes, on each of them."""
    return int(largest(torch.tensor(number)))


def lost_one(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone."""
    return count() > 1 and (isinstance(error, dist.DistError) or 'gloo' in str(error) or 'Connection' in str(error))


def broadcast(value: list) -> list:
    """Value of rank 0, on all processes."""
    values = [value]
    if count() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def gathered(x: torch.Tensor) -> list[torch.Tensor]:
    """Tensors of all processes, which have one shape, in the order of their ranks, on each process."""
    if count() == 1:
        return [x]
    parts = [torch.empty_like(x) for _ in range(count())]
    dist.all_gather(parts, x)
    return parts
