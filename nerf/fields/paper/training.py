"""Training of the paper's field: the losses of section 5.3, and the check for dead networks."""

from __future__ import annotations

import torch
from torch import Tensor

from nerf.fields.interface import Changes, Losses, Numbers, Target, Training, exposed
from nerf.fields.paper.dead_networks import DeadNetworkGuard
from nerf.fields.paper.field import PaperField
from run_nerf_helpers import Composite, Draws, Rays, draw, img2mse


class PaperTraining(Training):
    """Both passes learn the same colours.

    Args:
        field: the networks.
        chunk: most rays that go through them at once.
    """

    field: PaperField

    def __init__(self, field: PaperField, chunk: int):
        super().__init__(field)
        self.chunk, self.guard, self.sampler = chunk, DeadNetworkGuard(field.networks()), field.sampler()

    def random_numbers(self, n_rays: int, generator: torch.Generator) -> Numbers:
        return draw(n_rays, self.field.sampling, generator)

    def losses(self, rays: Rays, numbers: Numbers, target: Target) -> Losses:
        """The mean squared error of each pass."""
        shown = self.sampler.train(rays, Draws(*numbers))
        terms, seen = {'mse': self._error(shown.final, target)}, [shown.final.rgb, target.rgb]
        if shown.coarse is not None:
            terms, seen = {'mse0': self._error(shown.coarse, target), **terms}, [shown.coarse.rgb, *seen]
        self.guard.see(seen)
        return Losses(terms, {})

    def _error(self, shown: Composite, target: Target) -> Tensor:
        background = float(self.field.white_bkgd) * (1.0 - shown.acc[:, None])
        return img2mse(exposed(shown.rgb, background, target.gains), target.rgb)

    def after_step(self, step: int, notes: dict[str, Tensor]) -> Changes:
        return Changes(self.guard.watch(step))

    def state(self) -> dict:
        return {'guard': self.guard.state_dict()}

    def load_state(self, state: dict) -> None:
        self.guard.load_state_dict(state['guard'])
