"""Pretended GPU: CUDA tensors with their values in the CPU's memory, for a process on a machine without a GPU.

All Python code for CUDA runs as on a GPU: `device.type` is 'cuda', values are real, and a captured graph replays the
operations of its capture. The kernels are those of the CPU, so nothing is learned about CUDA's kernels, time or memory.

Operations that a GPU refuses are errors here: tensors of different devices in one operation and, where waiting is
forbidden (in a capture, or by `torch.cuda.set_sync_debug_mode`), an operation that waits for the device. In a capture
every tensor must be on CUDA: a GPU takes a scalar of the CPU, but replays would repeat its value. As on a GPU, ending a
capture with such an error is a second error, the capture's stream stays current, and its memory pool stays open.

`install` needs a process that loaded device.cpp's library before it imported torch, and that ends by `os._exit`:
torch's threads would abort it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch._dynamo  # which looks through torch.cuda's functions, and so comes before `install`
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device('cuda', 0)
aten = torch.ops.aten
INDEXING = aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default


class Forbidden(RuntimeError):
    """An operation that a GPU refuses."""


class OnGpu(Tensor):
    """Tensor that claims to be on CUDA; `values` is a tensor of its values on the CPU."""

    @staticmethod
    def __new__(cls, values: Tensor) -> OnGpu:
        tensor = Tensor._make_wrapper_subclass(cls, values.shape, strides=values.stride(), dtype=values.dtype,
                                               storage_offset=values.storage_offset(), device=GPU)
        tensor.values = values
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return STATE.run(function, args, kwargs or {})

    def __repr__(self, **_) -> str:
        return f'on CUDA: {self.values!r}'

    def __deepcopy__(self, memo: dict) -> OnGpu:
        copy = OnGpu(self.values.clone())
        copy._is_param = getattr(self, '_is_param', False)
        return memo.setdefault(id(self), copy.requires_grad_(self.requires_grad))

    def __reduce_ex__(self, protocol):
        return self.values.__reduce_ex__(protocol)  # files are read onto the CPU

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, **_):
        raise TypeError('a CUDA tensor has no NumPy array; use cpu() first')

    __array__ = numpy


class Dispatch(TorchDispatchMode):
    """Mode that sees the operations which bring tensors to CUDA: none of their arguments is on CUDA yet."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # a wrapper around each operation, for torch.compile

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if _is_composite(function):  # of tensors without a gradient: else it was taken apart before
            with self:
                return function.decompose(*args, **(kwargs or {}))
        return STATE.run(function, args, kwargs or {})


class State:
    """State of the device."""

    waiting = 'default'  # effect of an operation that waits: nothing, 'warn' or 'error'
    graph: Graph | None = None  # under capture
    stream: Stream  # the current one
    pools = 0  # made so far

    def __init__(self):
        self.open_pools = set()  # memory pools in which a capture allocates

    def run(self, function, args: tuple, kwargs: dict):
        """One operation, on CUDA where `device` says so or, without it, where one of its tensors is."""
        tensors = [*_tensors(args), *_tensors(kwargs.values())]
        device, on_gpu = kwargs.get('device'), [isinstance(x, OnGpu) for x in tensors]
        to_gpu = any(on_gpu) if device is None else torch.device(device).type == 'cuda'
        self._check(function, args, tensors, to_gpu)
        if not to_gpu and not any(on_gpu):
            return function(*args, **kwargs)
        args, kwargs = _mapped(_on_cpu, args), {name: _mapped(_on_cpu, x) for name, x in kwargs.items()}
        if device is not None:
            kwargs['device'] = torch.device('cpu')
        if self.graph is not None:
            self.graph.before(function, args, kwargs)
        result = function(*args, **kwargs)
        if self.graph is not None:
            self.graph.record(function, args, kwargs, result)
        same = {id(_on_cpu(x)): x for x in tensors}  # tensors that an operation can change in place
        return _mapped(lambda x: _wrapped(x, same, to_gpu), result)

    def _check(self, function, args: tuple, tensors: list[Tensor], to_gpu: bool) -> None:
        on_gpu = [x for x in tensors if isinstance(x, OnGpu)]
        elsewhere = [x for x in tensors if not isinstance(x, OnGpu)]
        if self.graph is not None and elsewhere:
            raise Forbidden(f'{function}: a tensor of the CPU in a capture')
        copies = function in (aten._to_copy.default, aten.copy_.default)
        crosses = bool(elsewhere) if to_gpu else bool(on_gpu)
        if crosses and on_gpu and not copies and function not in INDEXING and any(x.dim() for x in elsewhere):
            raise Forbidden(f'{function}: tensors of the CPU and of CUDA')
        if (self.waiting == 'default' and self.graph is None) or not (on_gpu or to_gpu):
            return
        tags, waits = function.tags, copies and crosses
        if function in INDEXING:
            waits = bool(elsewhere) or any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        elif torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags:
            waits = True
        if waits and self.waiting == 'warn':
            warnings.warn(f'{function}: it waits for the device', stacklevel=1)
        elif waits:
            raise Forbidden(f'{function}: it waits for the device')


STATE = State()


@functools.cache
def _is_composite(function) -> bool:
    return function._can_decompose()


def _tensors(values) -> Iterator[Tensor]:
    """Tensors among an operation's arguments, or in lists among them."""
    for x in values:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, (list, tuple)):
            yield from _tensors(x)


def _mapped(change: Callable, x):
    """Result of `change` for an argument, or for each argument in a list."""
    return type(x)(_mapped(change, part) for part in x) if type(x) in (list, tuple) else change(x)


def _on_cpu(x):
    """Values of a tensor; for a generator its twin on the CPU, for one draw; other arguments as they are."""
    if isinstance(x, OnGpu):
        return x.values
    if isinstance(x, torch.Generator) and x.device.type == 'cuda':
        if STATE.graph is not None:
            raise Forbidden('a random number in a capture: each replay would have the same')
        offset = x.get_offset()
        x.set_offset(offset + 4)
        return torch.Generator().manual_seed((1_000_003 * x.initial_seed() + offset) % 2 ** 62)
    return x


def _wrapped(x, same: dict[int, Tensor], to_gpu: bool):
    if not isinstance(x, Tensor):
        return x
    if id(x) in same:
        if same[id(x)].shape != x.shape:
            raise NotImplementedError('a pretended tensor cannot change its shape in place')
        return same[id(x)]
    if not to_gpu:
        return x
    with torch.inference_mode(x.is_inference()):  # also in inference mode a view of a plain tensor is plain
        return OnGpu(x)


# torch.cuda


class Stream:
    """CUDA stream. All work is done at once, so waiting does nothing."""

    def wait_stream(self, other: Stream) -> None:
        pass


class Graph:
    """CUDA graph: the operations between begin and end. They change nothing then; each replay runs them."""

    def __init__(self):
        self.launches, self.before_capture = [], {}

    def capture_begin(self, pool=None, **_) -> None:
        STATE.graph = self

    def capture_end(self) -> None:
        STATE.graph = None
        for storage, content in self.before_capture.values():
            storage.copy_(content)

    def before(self, function, args: tuple, kwargs: dict) -> None:
        """Keeps the content that an operation is about to change: after the capture it is as it was."""
        if function._schema.is_mutable:
            for x in [*_tensors(args), *_tensors(kwargs.values())]:
                storage = x.untyped_storage()
                if storage.data_ptr() not in self.before_capture:
                    self.before_capture[storage.data_ptr()] = storage, storage.clone()

    def record(self, function, args: tuple, kwargs: dict, result) -> None:
        self.launches.append((function, args, kwargs, result))

    def replay(self) -> None:
        for function, args, kwargs, result in self.launches:
            for old, new in zip(_tensors([result]), _tensors([function(*args, **kwargs)])):
                if old.data_ptr() != new.data_ptr():  # neither a view nor changed in place
                    old.copy_(new)

    def reset(self) -> None:
        self.launches.clear()


@contextmanager
def capturing(graph: Graph, pool=None, stream: Stream | None = None, capture_error_mode: str = 'global'):
    before, pool = STATE.stream, pool or new_pool()
    STATE.stream = stream or Stream()
    STATE.open_pools.add(pool)
    graph.capture_begin(pool)
    try:
        yield
    except Forbidden:
        graph.capture_end()
        raise RuntimeError('operation failed due to a previous error during capture')  # noqa: B904 (as torch does)
    except BaseException:
        graph.capture_end()
        STATE.stream = before
        STATE.open_pools.remove(pool)
        raise
    graph.capture_end()
    STATE.stream = before
    STATE.open_pools.remove(pool)


@contextmanager
def on_stream(stream: Stream):
    before, STATE.stream = STATE.stream, stream
    try:
        yield
    finally:
        STATE.stream = before


def set_stream(stream: Stream) -> None:
    STATE.stream = stream


def new_pool() -> tuple[int, int]:
    STATE.pools += 1
    return 0, STATE.pools


def end_pool(device: int, pool: tuple[int, int]) -> None:
    if pool not in STATE.open_pools:
        raise RuntimeError('endAllocatePool: not currently recording to mempool_id')
    STATE.open_pools.remove(pool)


def set_sync_debug_mode(mode: str) -> None:
    STATE.waiting = mode


def nothing(*args, **kwargs) -> None:
    pass


def install() -> None:
    """Replaces torch.cuda by the pretended GPU, for the rest of the process."""
    STATE.stream = Stream()
    for name, value in {
            '_lazy_init': nothing, 'is_available': lambda: True, 'device_count': lambda: 1, 'set_device': nothing,
            'current_device': lambda: 0, 'get_device_capability': lambda device=None: (9, 0), 'synchronize': nothing,
            'is_bf16_supported': lambda *_: True, 'empty_cache': nothing, 'max_memory_allocated': lambda *_: 0,
            'Stream': Stream, 'current_stream': lambda *_: STATE.stream, 'set_stream': set_stream, 'stream': on_stream,
            'CUDAGraph': Graph, 'graph': capturing, 'graph_pool_handle': new_pool,
            'set_sync_debug_mode': set_sync_debug_mode}.items():
        setattr(torch.cuda, name, value)
    torch._C._cuda_endAllocateToPool, torch._C._cuda_releasePool = end_pool, nothing
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False  # the scaler of fp16 asks
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter's `data` cannot become of our class
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device='cuda') then copies where we see it
    Dispatch().__enter__()
