"""A step of training captured once as a CUDA graph and replayed: the GPU then waits for no Python."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

EAGER_CALLS = 3  # before the capture, in which libraries and the optimiser take the memory that they keep


class CapturedStep:
    """Calls a function of tensors; from the fourth call on replays the kernels that it launched in that one.

    The function must be fit for that: shapes that do not change, no waiting for the GPU, no decision by values, random
    numbers among its arguments, and all that it changes changed in place.

    Args:
        function: called with tensors, or None where there is nothing to pass; returns tensors by name.
        failed: called once, with the reason, where it cannot be captured; later calls then run like the first ones.
    """

    def __init__(self, function: Callable[..., dict[str, Tensor]], failed: Callable[[str], None]):
        self.function, self.failed = function, failed
        self.calls, self.graph, self.inputs, self.outputs = 0, None, None, None
        self.stream = torch.cuda.Stream()

    def __call__(self, *inputs: Tensor | None) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls == EAGER_CALLS + 1:
            self._capture(inputs)
        if self.graph is None:
            return self._eagerly(inputs)
        for kept, new in zip(self.inputs, inputs):
            if kept is not None:
                kept.copy_(new)
        self.graph.replay()
        return {name: x.clone() for name, x in self.outputs.items()}  # the next replay overwrites them

    def _eagerly(self, inputs: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
        """On the stream of the capture, so that memory which one call leaves behind is the next one's too."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = self.function(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return outputs

    def _capture(self, inputs: tuple[Tensor | None, ...]) -> None:
        self.inputs = [None if x is None else x.clone() for x in inputs]
        graph, pool, stream = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool, self.stream, 'thread_local'):  # NCCL has threads of its own
                self.outputs = self.function(*self.inputs)
            self.graph = graph
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # torch leaves the capture's where ending it fails too
            self.outputs = None
            _close(pool)
            cause = error.__context__ or error
            self.failed((str(cause) or repr(cause)).splitlines()[0])


def _close(pool: tuple[int, int]) -> None:
    """Ends a failed capture's memory pool. torch does not where ending the capture fails too, and the allocator would
    stop at an assertion of its own when it next empties its cache."""
    device = torch.cuda.current_device()
    with suppress(RuntimeError):  # torch has ended it
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
