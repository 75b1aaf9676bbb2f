"""Training of the paper's field: the losses of section 5.3, and a watch for dead networks."""

from __future__ import annotations

import torch
from torch import Tensor

from nerf.fields.interface import Changes, Losses, Numbers, Target, Training, exposed
from nerf.fields.paper.dead_networks import DeadNetworks, seen
from nerf.fields.paper.field import PaperField
from run_nerf_helpers import Composite, Draws, Rays, draw, img2mse


class PaperTraining(Training):
    """Training in which both passes learn the same colours.

    Args:
        field: the networks.
        chunk: most rays through the networks at once.
    """

    field: PaperField

    def __init__(self, field: PaperField, chunk: int):
        super().__init__(field)
        self.chunk, self.sampler = chunk, field.sampler()
        self.ahead = field.shortcuts.u_ahead and field.shortcuts.noise_ahead
        self.captured = self.ahead  # a captured step can draw no random numbers
        self.dead_networks = DeadNetworks(list(field.networks()), field.device)

    def random_numbers(self, n_rays: int, generator: torch.Generator) -> Numbers:
        """`Draws`, and seeds [n_rays] of random numbers that edited functions draw (None: all are drawn ahead)."""
        draws, seeds = draw(n_rays, self.field.sampling, generator), None
        if not self.field.shortcuts.u_ahead:
            draws = draws._replace(u=None)
        if not self.field.shortcuts.noise_ahead:
            draws = draws._replace(noise=None, noise_fine=None)
        if not self.ahead:
            seeds = torch.randint(2 ** 62, (n_rays,), generator=generator, device=generator.device)
        return *draws, seeds

    def losses(self, rays: Rays, numbers: Numbers, target: Target) -> Losses:
        """The mean squared error of each pass."""
        *draws, seeds = numbers
        generator = None if seeds is None else torch.Generator(seeds.device).manual_seed(int(seeds[0]))
        shown = self.sampler.render(rays, Draws(*draws), generator)
        passes = [shown.final] if shown.coarse is None else [shown.coarse, shown.final]
        errors = [self._error(each, target) for each in passes]
        return Losses(dict(zip(('mse',) if shown.coarse is None else ('mse0', 'mse'), errors)),
                      {'seen': seen([*(each.rgb for each in passes), target.rgb])})

    def _error(self, shown: Composite, target: Target) -> Tensor:
        background = float(self.field.white_bkgd) * (1.0 - shown.acc[:, None])
        return img2mse(exposed(shown.rgb, background, target.gains), target.rgb)

    def after_step(self, step: int, notes: dict[str, Tensor]) -> Changes:
        return Changes(self.dead_networks.watch(step, notes['seen']))

    def state(self) -> dict:
        return {'guard': self.dead_networks.state()}

    def load_state(self, state: dict) -> None:
        self.dead_networks.load_state(state['guard'])
