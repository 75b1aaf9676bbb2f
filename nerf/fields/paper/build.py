"""Builds the paper's field."""

from __future__ import annotations

import argparse

import torch

from nerf.fields.interface import Field
from nerf.fields.paper.dead_networks import FOG
from nerf.fields.paper.field import PaperField
from nerf.fields.paper.mlp import FastMLPField, MLPField, fast_where_equal
from nerf.fields.paper.mlp_gpu import GpuMLPField
from nerf.space import Space
from run_nerf_helpers import NeRF, Sampling, get_embedder

CPU_TILE = 24576 * 256  # points times channels through a layer at once on a CPU: more is no faster and takes memory
VIEW_TILES = 4  # times more rays in a tile of a view, as no activations are kept for it


def create_nerf(args: argparse.Namespace, device: torch.device, dtype: torch.dtype, space: Space) -> Field:
    """Builds the coarse and, where N_importance > 0, the fine network, with weights drawn from the seed."""
    embed_points, input_ch = get_embedder(args.multires, args.i_embed)
    embed_dirs, input_ch_views = get_embedder(args.multires_views, args.i_embed) if args.use_viewdirs else (None, 0)
    generator = torch.Generator().manual_seed(args.seed)

    def field(depth: int, width: int) -> MLPField:
        network = NeRF(D=depth, W=width, input_ch=input_ch, input_ch_views=input_ch_views,
                       output_ch=5 if args.N_importance else 4, skips=[4], use_viewdirs=args.use_viewdirs,
                       generator=generator)
        network.lift_density(FOG)
        return fast_where_equal(network, embed_points, embed_dirs, args.netchunk, dtype, space,
                                GpuMLPField if device.type == 'cuda' else FastMLPField).to(device)

    model = PaperField(
        coarse=field(args.netdepth, args.netwidth),
        fine=field(args.netdepth_fine, args.netwidth_fine) if args.N_importance else None,
        sampling=Sampling(args.N_samples, args.N_importance, bool(args.perturb),
                          args.lindisp and not space.projective, args.raw_noise_std, args.white_bkgd, space.horizon),
        view_chunk=min(args.chunk, VIEW_TILES * rays_at_once(args, device)), supersample=args.supersample)
    if not isinstance(model.best, FastMLPField):
        print('NeRF.forward was edited: the run goes through it, and not through the faster nerf/fields/paper/mlp.py')
    return model


def rays_at_once(args: argparse.Namespace, device: torch.device) -> int:
    """Rays in a tile: `chunk`, and on a CPU no more than make good use of it."""
    if device.type != 'cpu':
        return args.chunk
    channels = max(args.netwidth, args.netwidth_fine if args.N_importance else 0)
    return min(args.chunk, max(1, CPU_TILE // (channels * (args.N_samples + args.N_importance))))
