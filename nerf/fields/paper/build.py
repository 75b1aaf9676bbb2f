"""A fresh paper's field from plain settings, with the faster twins that still match run_nerf_helpers.py."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nerf.fields.paper.field import PaperField, Shortcuts
from nerf.fields.paper.mlp import FastMLPField, MLPField
from nerf.fields.paper.mlp_gpu import GpuMLPField
from nerf.samplers import front_to_back
from nerf.space import Space
from run_nerf_helpers import (BEYOND, Composite, NeRF, Rays, Sampling, get_embedder, raw2outputs, render_pass,
                              sample_pdf)

FOG = 0.5  # raw density, in 1/scene unit, that a fresh network gets everywhere: thin fog, which gradients reach
CPU_TILE = 24576 * 256  # points times channels through a layer at once on a CPU: more is no faster and takes memory
VIEW_TILES = 4  # factor on a tile's rays in pictures, which keep no activations
RAYS, SAMPLES = 64, 24  # of a comparison; the fast network would skip no point if there were fewer
DENSE = 40.0  # factor on raw density in pictures of a comparison: the fog of a fresh network then hides most samples
WRONG_USE = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)  # errors of a twin after an edit


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
    """Field with a coarse and, if N_importance > 0, a fine network, with weights from the seed. A printed line names
    each faster twin that differs from run_nerf_helpers.py after an edit.

    Args:
        space: gives points the coordinates of the networks; None: points stay as they are.
        dtype: precision of the networks' products.
        chunk: most rays through the networks at once.
        netchunk: most points through a network at once.
        fast: kind of fast network; None: the device's.
    """
    embed_points, input_ch = get_embedder(networks.multires, networks.i_embed)
    embed_dirs, input_ch_views = None, 0
    if networks.use_viewdirs:
        embed_dirs, input_ch_views = get_embedder(networks.multires_views, networks.i_embed)
    shapes = [(networks.netdepth, networks.netwidth)]
    if sampling.N_importance:
        shapes.append((networks.netdepth_fine, networks.netwidth_fine))
    fast = fast or (GpuMLPField if device.type == 'cuda' else FastMLPField)
    generator = torch.Generator().manual_seed(seed)
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


def rays_at_once(field: PaperField, chunk: int) -> int:
    """Rays of a tile in training: `chunk`, but on a CPU at most CPU_TILE, for its caches."""
    if field.device.type != 'cpu':
        return chunk
    channels = max(network.pts_linears[0].out_features for network in field.networks().values())
    return min(chunk, max(1, CPU_TILE // (channels * (field.sampling.N_samples + field.sampling.N_importance))))


# Comparison of the functions in run_nerf_helpers.py with their faster twins

def shortcuts_of(pairs: list[tuple[MLPField, MLPField]]) -> Shortcuts:
    """Shortcuts of a run, from the plain and the fast field of each network, in float32 on the CPU."""
    noise_ahead = noise_can_be_drawn_ahead()
    return Shortcuts(noise_ahead and all(fast_is_plain(plain, fast) for plain, fast in pairs),
                     u_can_be_drawn_ahead(), noise_ahead)


def u_can_be_drawn_ahead() -> bool:
    """Whether `sample_pdf` with random u drawn ahead gives what it gives with a generator."""
    generator = torch.Generator().manual_seed(0)
    bins = torch.rand(RAYS, SAMPLES + 1, generator=generator).sort(-1).values
    weights = torch.rand(RAYS, SAMPLES, generator=generator)
    try:
        ahead = sample_pdf(bins, weights, SAMPLES, u=torch.rand(RAYS, SAMPLES, generator=_seeded()))
        return torch.equal(ahead, sample_pdf(bins, weights, SAMPLES, generator=_seeded()))
    except WRONG_USE:
        return False


def noise_can_be_drawn_ahead() -> bool:
    """Whether `raw2outputs` with noise drawn ahead gives what it gives with a generator."""
    rays, z = _rays_and_depths()
    raw = torch.randn(RAYS, SAMPLES, 4, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(RAYS, SAMPLES, generator=_seeded())
    try:
        ahead = raw2outputs(raw, z, rays.directions, 0.7, noise=noise)
        return _same(ahead, raw2outputs(raw, z, rays.directions, 0.7, generator=_seeded()))
    except WRONG_USE:
        return False


def fast_is_plain(plain: MLPField, fast: MLPField) -> bool:
    """Whether two fields of one network, by `NeRF.forward` and faster, give the same colours and gradients in training,
    and the same pictures. An edit without effect on the present weights is not noticed."""
    try:
        return _same(_trained(plain), _trained(fast)) and _pictures_are_same(plain, fast)
    except WRONG_USE:
        return False


def _trained(field: MLPField) -> list[Tensor]:
    """Composite of some rays with noise, and the gradients of all weights for a mixture of its parts."""
    rays, z = _rays_and_depths()
    noise = 2.0 * torch.rand(z.shape, generator=_seeded()) - 1.5  # half of a fresh network's points are then empty
    shown = render_pass(field.raw, rays, z, Sampling(SAMPLES, raw_noise_std=1.0, white_bkgd=True), noise)
    mixture = (shown.rgb * torch.cos(3.0 * rays.origins)).sum() + shown.depth.sum() + shown.acc.sum()
    weights = [parameter for parameter in field.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(mixture, weights, allow_unused=True)
    return [*(part.detach() for part in shown),
            *(torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients))]


@torch.no_grad()
def _pictures_are_same(plain: MLPField, fast: MLPField) -> bool:
    """Whether pictures of both are the same with hidden samples skipped, and with given lengths of samples."""
    def dense(field: MLPField) -> Callable:
        return lambda *place: field.raw(*place)[..., :4] * torch.tensor([1.0, 1.0, 1.0, DENSE])

    (rays, z), sampling = _rays_and_depths(), Sampling(SAMPLES)
    whole = render_pass(dense(plain), rays, z, sampling)
    skipped = render_pass(front_to_back(dense(fast)), rays, z, sampling)
    lengths = torch.cat([z.diff(dim=-1), torch.full_like(z[:, :1], BEYOND)], -1)
    measured = render_pass(dense(fast), rays, z, sampling, deltas=lengths)
    return _same(whole, skipped, 1e-3) and _same(whole, measured, 1e-3)


def _rays_and_depths() -> tuple[Rays, Tensor]:
    """RAYS rays from about the origin, and depths [RAYS, SAMPLES]."""
    generator = torch.Generator().manual_seed(0)
    origins = 2.0 * torch.rand(RAYS, 3, generator=generator) - 1.0
    directions = F.normalize(torch.randn(RAYS, 3, generator=generator), dim=-1)
    z = (0.03 + 0.1 * torch.rand(RAYS, SAMPLES, generator=generator)).cumsum(-1)
    return Rays(origins, directions, directions, z[:, :1], z[:, -1:]), z


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def _same(ours: list[Tensor] | Composite, theirs: list[Tensor] | Composite, share: float = 1e-4) -> bool:
    """Whether pairs of tensors differ by rounding alone; `share` of the largest value is allowed."""
    return all(torch.allclose(a, b, rtol=1e-3, atol=share * float(a.abs().max()) + 1e-9) for a, b in zip(ours, theirs))
