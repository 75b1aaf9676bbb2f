"""Programs that the benchmarks compare: this one, a plain float32 program written from the paper's formulas, and a
checkout of nerf-pytorch. Each runs in a process of its own, which has its own peak of memory, and works when it is told
to, so that they take turns.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import types
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional as F

ROOT = Path(__file__).parents[2]
LEGO = ['--N_rand', '1024', '--N_samples', '64', '--N_importance', '128', '--use_viewdirs', '--white_bkgd']
SCENE = ['--dataset_type', 'blender', '--datadir', str(ROOT / 'data' / 'toy_chair'), '--testskip', '1']


# The plain program


def encode(x: torch.Tensor, n_freqs: int) -> torch.Tensor:
    """Equation 4."""
    return torch.cat([x] + [wave(2.0 ** i * x) for i in range(n_freqs) for wave in (torch.sin, torch.cos)], -1)


class Plain:
    """Sections 4 and 5 as written: no tiles, no bf16, all samples through the whole network, torch's default Adam.

    Only `netchunk` and `chunk` cut the work into pieces, as in the reference code.
    """

    def __init__(self, coarse, fine, args: Namespace, near: float, far: float):
        self.coarse, self.fine, self.args, self.near, self.far = coarse, fine, args, near, far
        self.adam = torch.optim.Adam([*coarse.parameters(), *fine.parameters()], lr=args.lrate)

    def raw(self, network, points: torch.Tensor, dirs: torch.Tensor) -> torch.Tensor:
        flat, dirs = points.reshape(-1, 3), dirs[:, None].expand(points.shape).reshape(-1, 3)
        x = torch.cat([encode(flat, self.args.multires), encode(dirs, self.args.multires_views)], -1)
        return torch.cat([network(part) for part in x.split(self.args.netchunk)]).reshape(*points.shape[:-1], 4)

    def shown(self, network, origins, directions, dirs, z) -> tuple[torch.Tensor, torch.Tensor]:
        """Equation 3 on white: colours and weights."""
        raw = self.raw(network, origins[:, None] + directions[:, None] * z[..., None], dirs)
        deltas = torch.cat([z[:, 1:] - z[:, :-1], torch.full_like(z[:, :1], 1e10)], -1)
        alpha = 1.0 - torch.exp(-F.relu(raw[..., 3]) * deltas * directions.norm(dim=-1, keepdim=True))
        passed = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1.0 - alpha + 1e-10], -1), -1)[:, :-1]
        weights = alpha * passed
        rgb = (weights[..., None] * torch.sigmoid(raw[..., :3])).sum(1) + 1.0 - weights.sum(1, keepdim=True)
        return rgb, weights

    def render(self, origins, directions, dirs, jitter: bool) -> list[torch.Tensor]:
        """Colours of both passes."""
        n_coarse, n_fine = self.args.N_samples, self.args.N_importance
        z = torch.linspace(self.near, self.far, n_coarse).expand(len(origins), n_coarse)
        if jitter:
            edges = torch.cat([z[:, :1], 0.5 * (z[:, 1:] + z[:, :-1]), z[:, -1:]], -1)
            z = edges[:, :-1] + (edges[:, 1:] - edges[:, :-1]) * torch.rand_like(z)
        rgb, weights = self.shown(self.coarse, origins, directions, dirs, z)
        middles, inner = 0.5 * (z[:, 1:] + z[:, :-1]), weights[:, 1:-1].detach() + 1e-5
        cdf = F.pad((inner / inner.sum(-1, keepdim=True)).cumsum(-1), (1, 0))
        u = torch.rand(len(z), n_fine) if jitter else torch.linspace(0.0, 1.0, n_fine).expand(len(z), n_fine)
        above = torch.searchsorted(cdf, u.contiguous(), right=True).clamp(1, cdf.shape[-1] - 1)
        low, high = cdf.gather(1, above - 1), cdf.gather(1, above)
        share = (u - low) / torch.where(high - low < 1e-5, torch.ones_like(low), high - low)
        z_fine = torch.lerp(middles.gather(1, above - 1), middles.gather(1, above), share)
        z = torch.cat([z, z_fine], -1).sort(-1).values
        return [rgb, self.shown(self.fine, origins, directions, dirs, z)[0]]

    def step(self, origins, directions, dirs, target) -> None:
        loss = sum(((rgb - target) ** 2).mean() for rgb in self.render(origins, directions, dirs, True))
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()


class Reference(Plain):
    """The functions of a nerf-pytorch checkout at REFERENCE, with weights of this program.

    The constructor does the set-up of its main program, which is not run.
    """

    def __init__(self, coarse, fine, args: Namespace, near: float, far: float):
        theirs = imported_from(Path(os.environ['REFERENCE']))
        theirs.device = next(coarse.parameters()).device
        if theirs.device.type == 'cuda':
            torch.set_default_tensor_type(torch.cuda.FloatTensor)
        alone = Namespace(**vars(args) | {'no_reload': True, 'ft_path': None, 'basedir': tempfile.mkdtemp()})
        (Path(alone.basedir) / alone.expname).mkdir()
        self.training, self.testing, _, _, self.adam = theirs.create_nerf(alone)
        for name, network in {'network_fn': coarse, 'network_fine': fine}.items():
            self.training[name].load_state_dict(network.state_dict())
        self.draw_rays, self.chunk = theirs.render, args.chunk
        self.bounds = {'near': near, 'far': far, 'ndc': False}  # the rays that it gets are in NDC where they are to be

    def render(self, origins, directions, dirs, jitter: bool) -> list[torch.Tensor]:
        settings = (self.training if jitter else self.testing) | self.bounds
        rgb, _, _, more = self.draw_rays(0, 0, None, chunk=self.chunk, rays=(origins, directions), **settings)
        return [more['rgb0'], rgb]


def imported_from(folder: Path):
    """Module run_nerf of another program, beside the module of the same name here."""
    ours = {name: sys.modules.pop(name) for name in list(sys.modules)
            if name.split('.')[0] in {path.stem for path in folder.glob('*.py')}}
    sys.path.insert(0, str(folder))
    missing = types.ModuleType('cv2')  # resizes images there, which is not needed
    sys.modules.setdefault('cv2', missing)
    theirs = importlib.import_module('run_nerf')
    sys.path.remove(str(folder))
    if sys.modules['cv2'] is missing:
        del sys.modules['cv2']  # viser looks for it too
    sys.modules.update(ours)
    return theirs


# Jobs


RIVALS = {'plain': Plain, 'reference': Reference}


def our_trainer(flags: list[str], precision: str):
    """Flags and trainer of a run that starts from the weights of ft_path, if that is set."""
    sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
    from conftest import trainer_of
    from nerf.files.checkpoints import read_checkpoint
    from nerf.flags import parse_flags
    from nerf.runtime.devices import keep_freed_memory

    flags = [*flags, '--precision', precision]
    args = parse_flags(flags)
    keep_freed_memory()
    trainer = trainer_of(flags)
    if args.ft_path:
        trainer.field.load_weights(read_checkpoint(args.ft_path))
    return args, trainer


def synchronised(trainer) -> None:
    if trainer.field.device.type == 'cuda':
        torch.cuda.synchronize()


def job(kind: str, name: str, flags: list[str]):
    """A function that does a job once, and the job's numbers of rays and of multiplications.

    Args:
        kind: 'train' or 'render'.
        name: 'bf16', 'fp32', 'plain' or 'reference'.
        flags: of a run.
    """
    args, trainer = our_trainer(flags, 'fp32' if name in RIVALS else name)
    from nerf.rendering import render_view, view_rays

    scene, networks = trainer.batcher.scene, trainer.field.networks()
    coarse, fine = (sum(weight.numel() for weight in network.parameters() if weight.ndim == 2)
                    for network in networks.values())
    per_ray = coarse * args.N_samples + fine * (args.N_samples + args.N_importance)
    steps = iter(range(args.precrop_iters + 1, 2 ** 31))
    sampler, camera = trainer.field.sampler(), scene.cameras.take(scene.i_test[:1])
    rays = view_rays(sampler, scene.space, camera)
    n_rays = len(rays.near)
    if name not in RIVALS:
        def train() -> None:
            trainer.step(next(steps))
            synchronised(trainer)

        def render() -> None:
            render_view(sampler, scene.space, camera)
    else:
        rival = RIVALS[name](networks['coarse'], networks['fine'], args, scene.space.near, scene.space.far)

        def train() -> None:
            some, target = trainer.batcher.next(next(steps))
            with trainer.field.device:  # these programs make tensors on the default device
                rival.step(some.origins, some.directions, some.viewdirs, target.rgb)
            synchronised(trainer)

        @torch.no_grad()
        def render() -> None:
            for start in range(0, n_rays, args.chunk):
                some = rays.part(slice(start, start + args.chunk))
                with trainer.field.device:
                    rival.render(some.origins, some.directions, some.viewdirs, False)
            synchronised(trainer)
    if kind == 'train':
        return train, args.N_rand, 3 * per_ray * args.N_rand
    return render, n_rays, per_ray * n_rays


def product_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of products of a layer's size, 12288 x 256 by 256 x 256 on a CPU: the median of 30."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    a, b = (torch.randn(n, 256, device=device).to(dtype) for n in (12288 if device == 'cpu' else 262144, 256))
    seconds = []
    for _ in range(33):
        began = time.perf_counter()
        a @ b
        if device == 'cuda':
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2e-9 * len(a) * 256 * 256 / median(seconds[3:])


def work(kind: str, name: str, flags: list[str]) -> None:
    """Does a job once to warm up, then once for each line of standard input; answers with a line of JSON."""
    do, n_rays, macs = job(kind, name, flags)
    do()
    rate = product_rate(torch.bfloat16 if name == 'bf16' else torch.float32)
    print(json.dumps({'rays': n_rays, 'macs': macs, 'product_gflops': round(rate)}), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        do()
        seconds = time.perf_counter() - began
        used = torch.cuda.max_memory_allocated() / 2 ** 20 if torch.cuda.is_available() else (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        print(json.dumps({'seconds': seconds, 'peak_mb': round(used)}), flush=True)


class Worker:
    """Process that does a job when it is told to."""

    def __init__(self, kind: str, name: str, flags: list[str]):
        self.name, self.seconds, self.peak = name, [], 0
        self.process = subprocess.Popen([sys.executable, __file__, kind, name, *flags], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.about = self.answer()

    def answer(self) -> dict:
        while not (line := self.process.stdout.readline()).startswith('{'):
            if not line:
                raise SystemExit(f'the worker {self.name} ended: {" ".join(self.process.args)}')
        return json.loads(line)

    def go(self) -> None:
        print(file=self.process.stdin, flush=True)
        answer = self.answer()
        self.seconds.append(answer['seconds'])
        self.peak = answer['peak_mb']

    def result(self) -> dict:
        """Figures of the job. The GFLOP/s count all products of the paper's algorithm, also skipped ones."""
        seconds, about = median(self.seconds), self.about
        return {'rays_per_s': round(about['rays'] / seconds, 1),
                'algorithm_gflops': round(2e-9 * about['macs'] / seconds),
                'product_gflops': about['product_gflops'], 'peak_mb': self.peak}


def compare(kind: str, description: str, default_turns: int) -> None:
    """Program of a benchmark: all settings in turns, and a line of JSON for each."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('--turns', type=int, default=default_turns, help='measured, after one to warm up')
    parser.add_argument('--reference', metavar='PATH', help='a checkout of nerf-pytorch to take turns with')
    parser.add_argument('--settings', nargs='+', default=['bf16', 'fp32', 'plain'], help='some of bf16, fp32 and plain')
    parser.add_argument('--after', type=int, default=300, help='steps of 128 rays that the weights are trained for '
                        'before: 0 measures the first steps')
    options, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as logs:
        flags = [*SCENE, *LEGO, *flags, '--basedir', logs]
        if options.after:
            subprocess.run([sys.executable, str(ROOT / 'run_nerf.py'), *flags, '--expname', 'before', '--N_rand', '128',
                            '--N_iters', str(options.after)], check=True, stdout=subprocess.DEVNULL)
            flags += ['--ft_path', f'{logs}/before/{options.after:06d}.tar']
        if options.reference:
            os.environ['REFERENCE'] = options.reference
            options.settings.append('reference')
        workers = [Worker(kind, name, [*flags, '--expname', name]) for name in options.settings]
        for _ in range(options.turns):
            for worker in workers:
                worker.go()
    slowest = next((worker for worker in reversed(workers) if worker.name in RIVALS), None)
    for worker in workers:
        ratio = {} if slowest is None else {f'times_{slowest.name}': round(
            worker.result()['rays_per_s'] / slowest.result()['rays_per_s'], 2)}
        print(json.dumps({'benchmark': kind, 'setting': worker.name, 'after': options.after, **worker.result(),
                          **ratio}))


if __name__ == '__main__':
    work(sys.argv[1], sys.argv[2], sys.argv[3:])
