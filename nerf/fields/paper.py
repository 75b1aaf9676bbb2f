"""The paper's model: a coarse and a fine MLP, sampled stratified and hierarchically (sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nerf.fields.dead_networks import DeadNetworkGuard
from nerf.fields.lattice_view import LatticeView
from nerf.fields.mlp import MLPField
from nerf.fields.model import Model, Numbers, Picture, pieces
from nerf.optimiser import Optimiser, is_real
from nerf.runtime.errors import UserError
from run_nerf_helpers import (
    Composite, Draws, NeRF, Rays, Sampling, coarse_depths, draw, img2mse, ray_points, render_rays,
)

KEYS = {'coarse': 'network_fn_state_dict', 'fine': 'network_fine_state_dict'}  # in checkpoints, as in nerf-pytorch's


class PaperModel(Model):
    """Coarse and fine field, and how rays go through them.

    Args:
        coarse: the first pass.
        fine: the second pass; None: one pass only.
        sampling: how a ray is sampled and composited.
        chunk, view_chunk: most rays at once, in training and of a view.
        seed: networks that die start afresh from the seeds behind it.
    """

    shape_flags = ('netdepth', 'netwidth', 'netdepth_fine', 'netwidth_fine', 'i_embed', 'multires', 'multires_views',
                   'use_viewdirs', 'N_importance')

    def __init__(self, coarse: MLPField, fine: MLPField | None, sampling: Sampling, chunk: int,
                 view_chunk: int | None = None, seed: int = 0):
        super().__init__()
        self.coarse, self.fine, self.sampling = coarse, fine, sampling
        self.chunk, self.view_chunk = chunk, view_chunk or chunk
        self.dtype, self.white_bkgd = coarse.dtype, sampling.white_bkgd
        self.loss_names = ('mse',) if fine is None else ('mse0', 'mse')
        self.guard = DeadNetworkGuard(self.networks(), seed)

    def networks(self) -> dict[str, NeRF]:
        fields = {'coarse': self.coarse, 'fine': self.fine}
        return {name: field.network for name, field in fields.items() if field is not None}

    @property
    def best(self) -> MLPField:
        return self.coarse if self.fine is None else self.fine

    def random_numbers(self, n_rays: int, generator: torch.Generator) -> Numbers:
        return draw(n_rays, self.sampling, generator)

    def forward(self, rays: Rays, numbers: Numbers, target: Tensor) -> dict[str, Tensor]:
        """The mean squared error of each pass (section 5.3)."""
        shown = render_rays(rays, self.coarse, self.fine, self.sampling, Draws(*numbers))
        losses, seen = {'mse': img2mse(shown.final.rgb, target)}, [shown.final.rgb, target]
        if shown.coarse is not None:
            losses, seen = {'mse0': img2mse(shown.coarse.rgb, target), **losses}, [shown.coarse.rgb, *seen]
        self.guard.see(seen)
        return losses

    def after_step(self, step: int, optimiser: Optimiser) -> list[str]:
        return self.guard.watch(step, optimiser)

    def render(self, rays: Rays) -> Composite:
        return render_rays(rays, self.coarse, self.fine, self.sampling).final

    def show(self, rays: Rays, height: int, width: int) -> Iterator[Picture]:
        """Rays that show nothing are skipped where there is a fine field; see `LatticeView`."""
        if self.fine is None:
            return super().show(rays, height, width)
        return LatticeView(self.coarse, self.fine, self.sampling, self.view_chunk, rays, height, width).draw()

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        return self.best(points, viewdirs)

    def density(self, points: Tensor) -> Tensor:
        return self.best.density(points)

    @torch.inference_mode()
    def histograms(self, rays: Rays) -> dict[str, Tensor]:
        """Densities evenly along the rays, and the weights of what they show."""
        z = coarse_depths(rays, self.sampling)
        weights = [self.render(rays.part(tile)).weights for tile in pieces(len(rays.near), self.chunk)]
        return {'density': self.density(ray_points(rays, z).reshape(-1, 3)), 'weights': torch.cat(weights)}

    def weights(self) -> dict:
        networks = self.networks()
        return {key: networks[name].state_dict() if name in networks else None for name, key in KEYS.items()}

    def load_weights(self, checkpoint: dict) -> None:
        for name, network in self.networks().items():
            saved, ours = checkpoint.get(KEYS[name]), network.state_dict()
            if not isinstance(saved, dict) or not all(map(is_real, saved.values())):
                raise UserError(f'it has no {KEYS[name]}; set N_importance = 0 or use another checkpoint')
            if not network.use_viewdirs:  # a layer without use, which a Keras file does not have
                saved = {key: weight for key, weight in ours.items() if key.startswith('views_linears')} | saved
            for key in [*ours, *saved]:
                there, here = (tuple(state[key].shape) if key in state else 'absent' for state in (saved, ours))
                if there != here:
                    raise UserError(f'it does not fit the flags: {key} is {there} there and {here} here; '
                                    f'check {", ".join(self.shape_flags)}')
            network.load_state_dict(saved)

    def training_state(self) -> dict:
        return {'guard': self.guard.state_dict()}

    def load_training_state(self, state: dict) -> None:
        self.guard.load_state_dict(state['guard'])

    def describe(self) -> str:
        counts = (f'{name} {sum(p.numel() for p in network.parameters()):,} parameters'
                  for name, network in self.networks().items())
        return f"networks  {', '.join(counts)}"
