"""The processes that share a run: `torchrun --nproc_per_node=N run_nerf.py ...` starts N of them, each on its device.

A process that was started alone has rank 0 of 1, and nothing here costs it anything. Only rank 0 writes files and
prints.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

VARIABLES = {'RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'}  # that torchrun sets for each process
TIMEOUT = timedelta(hours=12)  # the others wait while rank 0 renders a view or saves
CUDA_TIMEOUT = timedelta(minutes=30)  # of NCCL: the others are in a step by then, and wait for rank 0 there
_on_cuda: dist.ProcessGroup | None = None  # the processes, exchanging CUDA tensors


def count() -> int:
    return int(os.environ['WORLD_SIZE']) if os.environ.keys() >= VARIABLES else 1


def rank() -> int:
    return int(os.environ['RANK']) if count() > 1 else 0


def local_rank() -> int:
    """This process's rank among those on its machine."""
    return int(os.environ.get('LOCAL_RANK', 0)) if count() > 1 else 0


def first() -> bool:
    """Whether this is rank 0, which writes files and prints."""
    return rank() == 0


@contextmanager
def joined(device: torch.device):
    """In this context the processes can exchange tensors: over NCCL where they train on CUDA, else over gloo."""
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


def _group(x: torch.Tensor) -> dist.ProcessGroup | None:
    """The processes, as they exchange tensors on x's device."""
    return _on_cuda if x.device.type == 'cuda' else None


def leave(code: int) -> None:
    """Ends the process. One of several skips the interpreter's shutdown: gloo's threads are left running, and one that
    frees a tensor during the shutdown would abort the process."""
    if count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@contextmanager
def one_voice():
    """In this context only rank 0 prints."""
    with ExitStack() as opened:
        if not first():
            nowhere = opened.enter_context(open(os.devnull, 'w', encoding='utf-8'))
            opened.enter_context(redirect_stdout(nowhere))
            opened.enter_context(redirect_stderr(nowhere))
        yield


def say_error(message: str) -> None:
    """One line on standard error, in one write, so that those of several processes do not mix; ranks other than 0 are
    named."""
    sys.stderr.write(f'error{"" if first() else f" (process {rank()})"}: {message}\n')


def share(n: int) -> slice:
    """This process's part of n rows: all of them where it is the only one."""
    return slice(n * rank() // count(), n * (rank() + 1) // count())


def add_up(tensors: list[torch.Tensor]) -> None:
    """Sums of tensors over all processes, in their places, by one exchange."""
    if count() > 1:
        total = torch.cat([x.flatten() for x in tensors])
        dist.all_reduce(total, group=_group(total))
        parts = total.split([x.numel() for x in tensors])
        torch._foreach_copy_(tensors, [part.view_as(x) for part, x in zip(parts, tensors)])


def largest(x: torch.Tensor) -> torch.Tensor:
    """The maximum of x over all processes, element by element, in its place."""
    if count() > 1:
        dist.all_reduce(x, dist.ReduceOp.MAX, _group(x))
    return x


def maximum(number: int) -> int:
    """The maximum of the processes' numbers, on all of them."""
    return int(largest(torch.tensor(number))) if count() > 1 else number


def lost_one(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone."""
    return count() > 1 and (isinstance(error, dist.DistError) or 'gloo' in str(error) or 'Connection' in str(error))


def broadcast(value: list) -> list:
    """Rank 0's value, on all processes."""
    values = [value]
    if count() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def gathered(x: torch.Tensor) -> list[torch.Tensor]:
    """The processes' tensors of one shape, in the order of their ranks, on all of them."""
    if count() == 1:
        return [x]
    parts = [torch.empty_like(x) for _ in range(count())]
    dist.all_gather(parts, x)
    return parts
