"""Kinds of field as entries of a registry: builder, training, flags, defaults. A new kind is one entry and one file.
The parser of flags, its help and warnings are derived from the entries."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from nerf.fields.grid.build import build_field
from nerf.fields.grid.schedule import GridSchedule
from nerf.fields.grid.training import GridTraining
from nerf.fields.interface import Field, Training
from nerf.fields.paper.build import Networks, create_nerf, rays_at_once
from nerf.fields.paper.training import PaperTraining
from nerf.flag_types import Flag, number, optional, whole
from nerf.runtime import ranks
from nerf.runtime.errors import UserError
from nerf.scene import Scene
from run_nerf_helpers import Sampling


@dataclass(frozen=True)
class FieldKind:
    """Kind of field, as an entry of the registry."""
    name: str  # value of the flag `field`
    help: str  # the kind in words
    # Fresh field of a scene, on a device, in a precision. Flags without a value may get one, so that args.txt holds it.
    build: Callable[[argparse.Namespace, Scene, torch.device, torch.dtype], Field]
    train: Callable[[argparse.Namespace, Field], Training]
    flags: tuple[Flag, ...] = ()  # flags that this kind reads and others do not
    defaults: dict[str, Any] = field(default_factory=dict)  # defaults of flags that differ from the flags' own
    follows_run: tuple[str, ...] = ()  # names of flags whose default is N_iters
    # By name of a flag: whether its value, in a config for another kind, makes no sense for this kind.
    not_meant: dict[str, Callable[[Any, argparse.Namespace], bool]] = field(default_factory=dict)
    # Most pixels of a step show the foreground of images on white, and targets have a coverage.
    finds_foreground: bool = False
    quick: bool = False  # pictures take little time against a step, so some can be drawn while training

    def reads(self, name: str) -> bool:
        """Whether this kind reads a flag."""
        return any(flag.name == name for flag in self.flags)


# The paper's networks

CONTRACT = Flag('contract', 'space of photographs that are not in NDC, as the mlp sees it. on: without bounds, '
                'contracted as in mip-NeRF 360, with samples to infinity, evenly in disparity; off: up to the far '
                'bound; auto: off for llff, as in nerf-pytorch, else on. The grid always sees it without bounds',
                default='auto', choices=('auto', 'on', 'off'))
PAPER = (
    CONTRACT,
    Flag('netdepth', 'layers of the coarse MLP', whole(1), 8),
    Flag('netwidth', 'channels per layer of the coarse MLP', whole(2), 256),
    Flag('netdepth_fine', 'layers of the fine MLP', whole(1), 8),
    Flag('netwidth_fine', 'channels per layer of the fine MLP', whole(2), 256),
    Flag('use_viewdirs', 'colour depends on the view direction: highlights'),
    Flag('i_embed', '0: positional encoding, -1: none', int, 0, (0, -1)),
    Flag('multires', 'frequencies (powers of two) for positions: detail', whole(0, 32), 10),
    Flag('multires_views', 'frequencies for directions: sharpness of highlights', whole(0, 32), 4),
    Flag('no_batching', "rays of a step come from one image instead of from all"),
    Flag('precrop_iters', "steps that sample only an image's centre (no_batching)", whole(0), 0),
    Flag('precrop_frac', 'share of each side that the centre has', number(0.0, 1.0, above=True), 0.5),
    Flag('N_samples', 'coarse samples per ray', whole(3), 64),
    Flag('N_importance', 'further samples for the fine network; 0: no fine network', whole(0), 0),
    Flag('perturb', '1: samples are jittered in training, 0: they are not', float, 1.0, (0.0, 1.0)),
    Flag('lindisp', 'samples lie evenly in disparity (1/depth) instead of depth'),
    Flag('raw_noise_std', 'noise added to raw density in training: fewer floaters', number(), 0.0),
    Flag('netchunk', 'most points through a network at once', whole(1), 65536),
    Flag('ema_decay', 'decay per step of an exponential moving average of the weights. Test sets, previews and meshes '
         'use the average; 0: no average', number(0.0, 0.999999), 0.0),
    Flag('guided_test', 'test views are sampled by a survey of the density, as previews and videos are: faster, but '
         'not comparable with other programs. metrics.json names the sampler'),
)


def _build_paper(args: argparse.Namespace, scene: Scene, device: torch.device, dtype: torch.dtype) -> Field:
    networks = Networks(*(getattr(args, part.name) for part in fields(Networks)))
    sampling = Sampling(args.N_samples, args.N_importance, bool(args.perturb),
                        args.lindisp and not scene.space.projective, args.raw_noise_std, args.white_bkgd,
                        scene.space.horizon)
    return create_nerf(networks, sampling, scene.space, device, dtype, args.seed, args.chunk, args.netchunk,
                       args.supersample)


# The voxel grid

GRID = (
    Flag('kernels', 'loops of the grid. auto: compiled by Numba on a CPU, PyTorch on a GPU; torch: PyTorch, many times '
         'slower on a CPU', default='auto', choices=('auto', 'torch')),
    *(Flag(f'grid_{part.name}', part.metadata['help'], optional(part.metadata['type']))
      for part in fields(GridSchedule)))


def _build_grid(args: argparse.Namespace, scene: Scene, device: torch.device, dtype: torch.dtype) -> Field:
    if ranks.count() > 1:
        raise UserError('field grid trains in one process; start it without torchrun, or use field mlp')
    schedule = GridSchedule.defaults(scene.space, args.N_iters).with_flags(
        {part.name: getattr(args, f'grid_{part.name}') for part in fields(GridSchedule)})
    vars(args).update({f'grid_{name}': value for name, value in asdict(schedule).items()})
    return build_field(scene, schedule, args.seed, device, dtype, args.chunk, args.supersample, args.kernels)


FEWEST_RAYS = 4096  # rays per step. Fewer rays hold back a grid, whose step takes about 65,000 samples
LEAST_RATE = 1e-3  # learning rate. A lower one is for networks
FIELDS = {kind.name: kind for kind in (
    FieldKind('mlp', "the paper's networks", _build_paper,
              lambda args, field: PaperTraining(field, rays_at_once(field, args.chunk)), PAPER),
    FieldKind(
        'grid', 'a sparse voxel grid, which trains in minutes on a CPU', _build_grid,
        lambda args, field: GridTraining(field, args.N_iters), GRID,
        defaults={'N_iters': 4500, 'N_rand': 9000, 'lrate': 5e-3, 'lrate_decay': None, 'i_print': 250, 'i_img': 1000,
                  'i_weights': 2500, 'supersample': 2, 'rays_through': 'center'},
        follows_run=('i_testset', 'i_video'),
        not_meant={'N_rand': lambda value, args: value < FEWEST_RAYS, 'lrate': lambda value, args: value < LEAST_RATE,
                   'lrate_decay': lambda value, args: value is not None and 1000 * value > args.N_iters},
        finds_foreground=True, quick=True))}
