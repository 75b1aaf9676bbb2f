"""The processes that share a run: `torchrun --nproc_per_node=N run_nerf.py ...` starts N of them, each on its device.

A process that was started alone is the first and only one, and nothing here costs it anything.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

TOLD = {'RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'}  # to each process by torchrun, and how they find each other
PATIENCE = timedelta(hours=12)  # that the others wait while the first renders a view or saves


def count() -> int:
    return int(os.environ['WORLD_SIZE']) if os.environ.keys() >= TOLD else 1


def rank() -> int:
    return int(os.environ['RANK']) if count() > 1 else 0


def place() -> int:
    """This process's number among those on its machine."""
    return int(os.environ.get('LOCAL_RANK', 0)) if count() > 1 else 0


def first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


@contextmanager
def joined(device: torch.device):
    """Within, the processes of a run can exchange tensors: over NCCL where they train on CUDA, else over gloo."""
    if count() == 1:
        yield
        return
    dist.init_process_group('cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo', timeout=PATIENCE)
    try:
        yield
    finally:
        with suppress(RuntimeError):
            dist.destroy_process_group()


def leave(code: int) -> None:
    """Ends the process. One of several does so at once: DistributedDataParallel keeps gloo's threads beyond its own
    end, and one that lets go of a tensor while the interpreter shuts down would abort the process."""
    if count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@contextmanager
def one_voice():
    """Within, only the first process prints."""
    with ExitStack() as opened:
        if not first():
            nowhere = opened.enter_context(open(os.devnull, 'w', encoding='utf-8'))
            opened.enter_context(redirect_stdout(nowhere))
            opened.enter_context(redirect_stderr(nowhere))
        yield


def say_error(message: str) -> None:
    """A line on standard error, written at once, so that several do not mix; the others say who they are."""
    sys.stderr.write(f'error{"" if first() else f" (process {rank()})"}: {message}\n')


def share(n: int) -> tuple[int, int]:
    """(start, end) of this process's part of n things."""
    return n * rank() // count(), n * (rank() + 1) // count()


def summed(x: torch.Tensor) -> torch.Tensor:
    """The sum of x over all processes, in its place."""
    if count() > 1:
        dist.all_reduce(x)
    return x


def largest(x: torch.Tensor) -> torch.Tensor:
    """The largest of x over all processes, element by element, in its place."""
    if count() > 1:
        dist.all_reduce(x, dist.ReduceOp.MAX)
    return x


def agreed(number: int) -> int:
    """The largest of the processes' numbers, which all get."""
    return int(largest(torch.tensor(number))) if count() > 1 else number


def lost_one(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone."""
    return count() > 1 and (isinstance(error, dist.DistError) or 'gloo' in str(error) or 'Connection' in str(error))


def told(value: list) -> list:
    """The first process's value, which all get."""
    values = [value]
    if count() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def gathered(x: torch.Tensor) -> list[torch.Tensor]:
    """The processes' tensors of one shape, in the order of their ranks; all get them."""
    if count() == 1:
        return [x]
    parts = [torch.empty_like(x) for _ in range(count())]
    dist.all_gather(parts, x)
    return parts
