"""Whether the paper's functions in run_nerf_helpers.py were edited: they are compared with their faster twins."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nerf.fields.paper.mlp import MLPField
from nerf.samplers import front_to_back
from run_nerf_helpers import BEYOND, Composite, Rays, Sampling, raw2outputs, render_pass, sample_pdf

RAYS, SAMPLES = 64, 24  # of the comparison; with fewer points the fast field would leave none out
DENSE = 40.0  # factor on raw density in pictures: the fog of a fresh network then hides most samples
WRONG_USE = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)  # errors of a twin that an edit broke


class Shortcuts(NamedTuple):
    """Faster twins that give what the functions in run_nerf_helpers.py give."""

    fast: bool = True  # fast networks and skipped samples
    u_ahead: bool = True  # u of `sample_pdf` drawn before rays are tiled
    noise_ahead: bool = True  # noise of `raw2outputs` drawn before rays are tiled

    def lines(self) -> list[str]:
        """Lines for the log about twins that cannot be used."""
        slowly = 'without the faster nerf/fields/paper/mlp.py and without skipping samples'
        lines = []
        if not self.u_ahead:
            lines.append('the random branch of sample_pdf was edited: u is drawn there, so results depend on chunk')
        if not self.noise_ahead:
            lines.append('the random branch of raw2outputs was edited: noise is drawn there, so results depend on '
                         f'chunk; the run goes on {slowly}')
        elif not self.fast:
            lines.append(f'NeRF.forward or raw2outputs was edited: the run goes through it as it stands, {slowly}')
        return lines


ALL_SHORTCUTS = Shortcuts()


def shortcuts_of(pairs: list[tuple[MLPField, MLPField]]) -> Shortcuts:
    """The shortcuts that a run can take.

    Args:
        pairs: the plain and the fast field of each network, in float32 on the CPU.
    """
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
    """Whether two fields of one network show the same, with the same gradients, in training and in pictures.

    An edit that changes nothing with the present weights is not noticed.

    Args:
        plain: goes through `NeRF.forward`.
        fast: goes past it.
    """
    try:
        return _same(_trained(plain), _trained(fast)) and _pictures_are_same(plain, fast)
    except WRONG_USE:
        return False


def _trained(field: MLPField) -> list[Tensor]:
    """What some rays show with noise, and the gradients of a mixture of it for all weights."""
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
    """Whether pictures of both are the same where hidden samples are skipped, and where samples' lengths are given."""
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
