"""A fresh paper's field from plain settings: the fast networks of its device, or the plain ones of edited code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from nerf.fields.paper.edited import shortcuts_of
from nerf.fields.paper.field import PaperField
from nerf.fields.paper.mlp import FastMLPField, MLPField
from nerf.fields.paper.mlp_gpu import GpuMLPField
from nerf.space import Space
from run_nerf_helpers import NeRF, Sampling, get_embedder

FOG = 0.5  # raw density, in 1/scene unit, that a fresh network gets everywhere: thin fog, which gradients reach
CPU_TILE = 24576 * 256  # points times channels through a layer at once on a CPU: more is no faster and takes memory
VIEW_TILES = 4  # factor on a tile's rays in pictures, which keep no activations


@dataclass(frozen=True)
class Networks:
    """Shapes of the coarse and the fine network. Fields have the names of their flags."""

    netdepth: int = 8  # layers of the coarse network's trunk
    netwidth: int = 256  # channels of its layers
    netdepth_fine: int = 8
    netwidth_fine: int = 256
    i_embed: int = 0  # -1: no encoding
    multires: int = 10  # frequencies of the encoding of points
    multires_views: int = 4  # frequencies of the encoding of directions
    use_viewdirs: bool = False  # whether colour depends on the viewing direction


def create_nerf(networks: Networks, sampling: Sampling, space: Space | None, device: torch.device, dtype: torch.dtype,
                seed: int, chunk: int, netchunk: int, supersample: int = 1,
                fast: type[MLPField] | None = None) -> PaperField:
    """The coarse and, where N_importance > 0, the fine network, with weights from the seed.

    Where run_nerf_helpers.py was edited and a faster twin shows something else, a line is printed for each twin.

    Args:
        networks: shapes of both networks.
        sampling: how rays are sampled and composited.
        space: gives points the coordinates that networks see; None: points stay as they are.
        device, dtype: where the networks are, and the precision of their products.
        seed: of the initial weights.
        chunk: most rays through the networks at once.
        netchunk: most points through a network at once.
        supersample: as for `Sampler`.
        fast: the fast field; None: the device's.
    """
    embed_points, input_ch = get_embedder(networks.multires, networks.i_embed)
    embed_dirs, input_ch_views = None, 0
    if networks.use_viewdirs:
        embed_dirs, input_ch_views = get_embedder(networks.multires_views, networks.i_embed)
    shapes = [(networks.netdepth, networks.netwidth)]
    if sampling.N_importance:
        shapes.append((networks.netdepth_fine, networks.netwidth_fine))
    fast, generator = fast or fast_field_of(device), torch.Generator().manual_seed(seed)
    mlps = [NeRF(D=depth, W=width, input_ch=input_ch, input_ch_views=input_ch_views,
                 output_ch=5 if sampling.N_importance else 4, skips=[4], use_viewdirs=networks.use_viewdirs,
                 generator=generator) for depth, width in shapes]
    for mlp in mlps:
        mlp.lift_density(FOG)
    shortcuts = shortcuts_of([tuple(kind(mlp, embed_points, embed_dirs, netchunk) for kind in (MLPField, fast))
                              for mlp in mlps])
    for line in shortcuts.lines():
        print(line)
    kind = fast if shortcuts.fast else MLPField
    fields = [kind(mlp, embed_points, embed_dirs, netchunk, dtype, space).to(device) for mlp in mlps]
    field = PaperField(fields[0], fields[1] if len(fields) > 1 else None, sampling, chunk, supersample, shortcuts)
    field.view_chunk = min(chunk, VIEW_TILES * rays_at_once(field, chunk))
    return field


def fast_field_of(device: torch.device) -> Callable[..., MLPField]:
    """The kind of fast field for a device."""
    return GpuMLPField if device.type == 'cuda' else FastMLPField


def rays_at_once(field: PaperField, chunk: int) -> int:
    """Rays of a tile in training: `chunk`, but on a CPU no more than make good use of its caches."""
    if field.device.type != 'cpu':
        return chunk
    channels = max(network.pts_linears[0].out_features for network in field.networks().values())
    return min(chunk, max(1, CPU_TILE // (channels * (field.sampling.N_samples + field.sampling.N_importance))))
