"""Measurements on a GPU, in one command: python tests/benchmarks/on_gpu.py [--pretend] [--paper]
[--parts A B] [--out FOLDER] [flags of a run]

Runs the tests marked `gpu`, then measures at the paper's settings (1024 rays, 64 + 128 samples, two networks of 8x256,
view directions) on the scene that ships, or by the given flags. A table goes to the screen and to FOLDER/on_gpu.md, the
same as JSON to FOLDER/on_gpu.json. A part that fails leaves its reason in the table.

With --pretend all parts run at a toy's size on a machine without a GPU (tests/fake_cuda). Their figures mean nothing.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

if library := os.environ.get('PRETENDED_GPU'):
    ctypes.CDLL(library)  # before torch is imported

import torch
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
PRETENDED = bool(library)
if PRETENDED:
    from fake_cuda import pretended
    pretended.install()

from conftest import trainer_of  # noqa: E402
from rivals import LEGO, SCENE  # noqa: E402

from nerf.metrics import psnr  # noqa: E402
from nerf.rendering import render_view  # noqa: E402

PAPER = ['--device', 'cuda', '--expname', 'on_gpu', *SCENE, *LEGO]
TOY = ['--N_rand', '64', '--N_samples', '8', '--N_importance', '8', '--netdepth', '3', '--netwidth', '16',
       '--netdepth_fine', '3', '--netwidth_fine', '16']  # of a pretended GPU
STEPS = 8 if PRETENDED else 300  # timed ones
RUN_STEPS = 6 if PRETENDED else 5000
GRID_STEPS = 20 if PRETENDED else 1500
TIMEOUT = 300  # seconds of a run or of the tests


def table(parts: dict[str, list[dict]]) -> str:
    """Figures of each part, as Markdown."""
    lines = [f'{torch.cuda.get_device_name()}, torch {torch.__version__}, {time.strftime("%Y-%m-%d")}'
             if not PRETENDED else 'a pretended GPU: these figures mean nothing', '']
    for name, rows in parts.items():
        lines.append(f'### {name}')
        for row in rows:
            lines.append('- ' + ', '.join(f'{key} {value}' for key, value in row.items()))
        lines.append('')
    return '\n'.join(lines)


def seconds_of(do, count: int) -> tuple[float, float]:
    """Seconds of a call, mean of `count`, and the part of it that the host needs to launch its work."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        do()
    host = time.perf_counter() - began
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / count, host / count


def forget_peak() -> None:
    torch.cuda.empty_cache()
    if not PRETENDED:
        torch.cuda.reset_peak_memory_stats()


def peak_mb() -> int:
    return round(torch.cuda.max_memory_allocated() / 2 ** 20)


# The parts


def tests(flags: list[str]) -> Iterator[dict]:
    """Tests marked `gpu`."""
    command = [sys.executable, '-m', 'pytest', '-m', 'gpu', '-q', '-p', 'no:cacheprovider', '-n', 'auto', '--dist',
               'load', 'tests']
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=TIMEOUT, env={k: v for k, v in os.environ.items() if k != 'PRETENDED_GPU'})
    print(done.stdout[-20000:])
    yield {'': (done.stdout.strip().splitlines() or ['nothing printed'])[-1].strip('= ')}


def ceilings(flags: list[str]) -> Iterator[dict]:
    """Highest rates of the device: products and copies."""
    n, mb = (64, 1) if PRETENDED else (8192, 2048)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        a, b = torch.randn(2, n, n, device='cuda').to(dtype).unbind()
        seconds, _ = seconds_of(partial(torch.matmul, a, b), 10)
        yield {'product of': str(dtype)[6:], 'TFLOP/s': round(2e-12 * n ** 3 / seconds, 1)}
    x = torch.randn(mb * 2 ** 18, device='cuda')
    y = torch.empty_like(x)
    seconds, _ = seconds_of(partial(y.copy_, x), 10)
    yield {'copy, read and written, TB/s': round(2 * mb * 2 ** 20 / seconds / 1e12, 2)}


def training(flags: list[str]) -> Iterator[dict]:
    """Steps in each precision, captured in a CUDA graph and not."""
    for precision in ('bf16', 'fp16', 'fp32'):
        for captured in (True, False):
            yield steps_by([*flags, '--precision', precision], captured) | {'precision': precision}


def steps_by(flags: list[str], captured: bool) -> dict:
    """Time and memory of a step."""
    forget_peak()
    trainer = trainer_of(flags, captured=captured)
    steps = map(trainer.step, range(trainer.batcher.precrop_iters + 1, 2 ** 31))
    for _ in range(8):
        next(steps)
    seconds, host = seconds_of(steps.__next__, STEPS)
    return {'captured': captured and trainer.update.graph is not None, 'ms': round(1e3 * seconds, 3),
            'host ms': round(1e3 * host, 3), 'rays/s': round(trainer.n_rays / seconds), 'MB': peak_mb()}


def launched(graph) -> tuple[dict[str, int], dict[str, int]]:
    """Number of launches of each operation in a pretended graph, without views, and bytes read and written by it."""
    counts, sizes = defaultdict(int), defaultdict(int)
    for function, args, kwargs, result in graph.launches:
        read, written = ([x for x in tree_leaves(part) if isinstance(x, torch.Tensor)]
                         for part in ((args, kwargs), result))
        places = {x.untyped_storage().data_ptr() for x in read}
        name = str(function).removeprefix('aten.')
        if name.startswith(('empty', 'new_empty')):  # these launch nothing
            continue
        if function._schema.is_mutable or not all(x.untyped_storage().data_ptr() in places for x in written):
            counts[name] += 1
            sizes[name] += sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in [*read, *written])
    return counts, sizes


def counted(flags: list[str]) -> Iterator[dict]:
    """Operations of a step at the settings of the flags, counted with few rays: bytes grow evenly with the rays."""
    wanted, found = trainer_of(flags).batcher.n_rays, []
    for n_rays in (32, 64):
        trainer = trainer_of([*flags, '--precision', 'bf16', '--N_rand', str(n_rays)])
        for step in range(1, 6):
            trainer.step(step)
        found.append(launched(trainer.update.graph))
    (_, few), (counts, sizes) = found
    sizes = {name: size + (wanted - 64) * (size - few[name]) / 32 for name, size in sizes.items()}
    yield {'operations': sum(counts.values()), 'GB': round(sum(sizes.values()) / 1e9, 2)}
    for name in sorted(counts, key=sizes.get, reverse=True)[:40]:
        yield {'GB': round(sizes[name] / 1e9, 3), 'times': counts[name], 'operation': name}


def replay(flags: list[str]) -> Iterator[dict]:
    """Kernels of one captured step in bf16."""
    if PRETENDED:
        yield from counted(flags)
        return
    trainer = trainer_of([*flags, '--precision', 'bf16'])
    for step in range(1, 8):
        trainer.step(step)
    yield from kernels_of(trainer.update.graph.replay)


def kernels_of(do: Callable[[], object]) -> Iterator[dict]:
    """Kernels that a call launches; the longest 25 one by one."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        do()
        torch.cuda.synchronize()
    times, counts = defaultdict(float), defaultdict(int)
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times[event.name] += event.self_device_time_total
            counts[event.name] += 1
    yield {'kernels': sum(counts.values()), 'their ms': round(sum(times.values()) / 1e3, 3)}
    for name in sorted(times, key=times.get, reverse=True)[:25]:
        yield {'ms': round(times[name] / 1e3, 3), 'times': counts[name], 'kernel': f'`{name[:150]}`'}


def rendering(flags: list[str]) -> Iterator[dict]:
    """Networks trained for RUN_STEPS steps: a test view with both passes, and guided by a survey."""
    for precision in ('bf16', 'fp32'):
        trainer = trainer_of([*flags, '--precision', precision])
        field, scene = trainer.field, trainer.batcher.scene
        seconds, _ = seconds_of(all_steps(trainer, 1, RUN_STEPS), RUN_STEPS)
        row = {'precision': precision, 'steps': RUN_STEPS, 'steps/s': round(1.0 / seconds, 1)}
        row |= {f'both passes {name}': value for name, value in view_by(field.sampler(), scene).items()}
        began = time.perf_counter()
        guided = field.guided(scene.seen_box())
        row['survey s'] = round(time.perf_counter() - began, 2)
        row |= {f'guided {name}': value for name, value in view_by(guided, scene).items()}
        yield row


def all_steps(trainer, first: int, count: int) -> Callable[[], object]:
    """Function that takes the next step at each call."""
    def taken():
        for step in range(first, first + count):
            yield trainer.after_step(step, trainer.step(step))
    return taken().__next__


def view_by(sampler, scene) -> dict:
    """Speed and PSNR of a test view."""
    i = int(scene.i_test[0])
    draw = partial(render_view, sampler, scene.space, scene.cameras.take([i]))
    view = draw()
    seconds, _ = seconds_of(draw, 3)
    return {'rays/s': round(view.acc.size / seconds), 'dB': round(float(psnr(view.rgb, scene.target(i))), 2)}


def run_of(flags: list[str], *more: str) -> dict:
    """Time and test views of a whole run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, 'run', *flags, '--basedir', folder, *more]
        began = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=TIMEOUT)
        said = re.findall(r'\d+ steps done, .*', done.stdout)
        found = {'exit': done.returncode, 'seconds in all': round(time.perf_counter() - began, 1), 'said': said}
        for path in Path(folder).rglob('metrics.json'):
            found[path.parent.name] = json.loads(path.read_text())['mean']
        if done.returncode:
            found['said'] = done.stdout[-1500:]
        return found


def as_grid(flags: list[str]) -> list[str]:
    """Flags of a grid's run, with more rays per step than the paper's."""
    flags = [*flags, '--field', 'grid', '--N_iters', str(GRID_STEPS)]
    return flags if PRETENDED else [*flags, '--N_rand', '9000']


def grid(flags: list[str]) -> Iterator[dict]:
    """Steps and views of the grid."""
    forget_peak()
    trainer, taken = trainer_of(as_grid(flags)), 0
    for share in (0.05, 0.2, 0.5, 1.0):
        count = round(share * GRID_STEPS) - taken
        seconds, _ = seconds_of(all_steps(trainer, taken + 1, count), count)
        taken += count
        yield {'up to step': taken, 'ms a step': round(1e3 * seconds, 2), 'rays a step': trainer.n_rays,
               **trainer.training.scalars(), 'MB': peak_mb(),
               'view rays/s': view_by(trainer.field.sampler(), trainer.batcher.scene)['rays/s']}
    if not PRETENDED:
        yield from kernels_of(partial(trainer.step, taken))


def runs(flags: list[str]) -> Iterator[dict]:
    """Whole runs of the program."""
    yield {'paper': run_of(flags, '--N_iters', str(RUN_STEPS), '--i_print', str(RUN_STEPS // 5), '--i_testset',
                           str(RUN_STEPS), '--i_weights', str(RUN_STEPS))}
    yield {'grid': run_of(as_grid(flags))}


def several(flags: list[str]) -> Iterator[dict]:
    """A run on two GPUs."""
    if torch.cuda.device_count() < 2:
        yield {'': 'there is one GPU'}
        return
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', 'run_nerf.py', *flags,
               '--device', 'auto', '--N_iters', '2000', '--i_print', '500', '--basedir', tempfile.mkdtemp()]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=TIMEOUT)
    yield {'exit': done.returncode, 'said': done.stdout[-500:]}


PARTS = {part.__name__: part for part in (tests, ceilings, training, replay, rendering, grid, runs, several)}


def measured(names: list[str], flags: list[str], out: Path) -> int:
    """Runs the parts and writes all figures after each; returns the number of failed parts."""
    found, failures = {}, 0
    for name in names:
        rows = found[name] = []
        began = time.perf_counter()
        try:
            for row in PARTS[name](flags):
                rows.append(row)
                print(name, row, flush=True)
        except Exception:
            failures += 1
            rows.append({'failed': traceback.format_exc()[-1500:]})
            print(rows[-1]['failed'], flush=True)
        rows.append({'took s': round(time.perf_counter() - began, 1)})
        (out / 'on_gpu.json').write_text(json.dumps(found, indent=1), encoding='utf-8')
        (out / 'on_gpu.md').write_text(table(found), encoding='utf-8')
    print(table(found))
    return failures


def main() -> int:
    if sys.argv[1:2] == ['run']:
        import run_nerf
        return run_nerf.main(sys.argv[2:])
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('--pretend', action='store_true')
    parser.add_argument('--paper', action='store_true', help="with --pretend: the paper's settings, in minutes")
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS))
    parser.add_argument('--out', type=Path, default=Path('.'))
    args, flags = parser.parse_known_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.pretend and not PRETENDED:
        from fake_cuda.gpu_tests import pretended_library
        os.environ['PRETENDED_GPU'] = str(pretended_library())
        return subprocess.call([sys.executable, *sys.argv])
    return measured(args.parts, [*PAPER, *(TOY if PRETENDED and not args.paper else []), *flags], args.out)


if __name__ == '__main__':
    code = main()
    sys.stdout.flush()
    os._exit(code)  # torch's threads would abort a pretended GPU's process
