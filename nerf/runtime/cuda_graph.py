"""Training steps captured once as a CUDA graph and replayed, so that the GPU does not wait for Python."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

EAGER_CALLS = 3  # calls before the capture: libraries and the optimiser allocate the memory that they keep


class CapturedStep:
    """Function of tensors or None whose fourth call is captured; later calls replay the captured kernels. If the
    capture fails, `failed` is called with the reason, `graph` stays None, and all calls run like the first ones.

    The function must be fit for a capture: its shapes do not change, it does not wait for the GPU, it decides nothing
    by values, its random numbers are arguments, and it changes tensors in place only.
    """

    def __init__(self, function: Callable[..., dict[str, Tensor]], failed: Callable[[str], None]):
        self.function, self.failed, self.stream = function, failed, torch.cuda.Stream()
        self.calls, self.graph, self.inputs, self.outputs = 0, None, None, None

    def __call__(self, *inputs: Tensor | None) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls == EAGER_CALLS + 1:
            self._capture(inputs)
        if self.graph is None:  # on the stream of the capture, which then finds the memory that these calls freed
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                outputs = self.function(*inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
            return outputs
        for kept, new in zip(self.inputs, inputs):
            if kept is not None:
                kept.copy_(new)
        self.graph.replay()
        return {name: x.clone() for name, x in self.outputs.items()}  # the next replay overwrites the outputs

    def _capture(self, inputs: tuple[Tensor | None, ...]) -> None:
        self.inputs = [None if x is None else x.clone() for x in inputs]
        graph, pool, stream = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool, self.stream, 'thread_local'):  # NCCL has threads of its own
                self.outputs = self.function(*self.inputs)
            self.graph = graph
        except RuntimeError as error:
            # If ending the capture fails too, torch leaves its stream current and its memory pool open. The allocator
            # would fail an assertion when it next empties its cache.
            torch.cuda.set_stream(stream)
            self.outputs = None
            with suppress(RuntimeError):  # torch has ended the pool
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
                torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
            cause = error.__context__ or error
            self.failed((str(cause) or repr(cause)).splitlines()[0])
