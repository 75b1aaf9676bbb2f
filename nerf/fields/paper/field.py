"""The paper's field: a coarse and a fine MLP (sections 4 and 5), its samplers and its part of a checkpoint."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nerf.fields.interface import Field, Sampler, pieces
from nerf.fields.paper.mlp import MLPField
from nerf.fields.paper.survey import SURVEY, DensityGrid, survey
from nerf.files.remade import read_arrays, write_arrays
from nerf.optimiser import is_real
from nerf.runtime.errors import UserError
from nerf.samplers import GuidedSampler, HierarchicalSampler, samples_of_view
from nerf.space import Space
from run_nerf_helpers import NeRF, Rays, Sampling, coarse_depths, ray_points

POINTS = 2 ** 14  # points of a guided view through a network at once on a CPU: more are no faster
KEYS = {'coarse': 'network_fn_state_dict', 'fine': 'network_fine_state_dict'}  # of checkpoints, as in nerf-pytorch


class Shortcuts(NamedTuple):
    """Faster twins with the same results as the functions in run_nerf_helpers.py."""
    fast: bool = True  # fast networks and skipped samples
    u_ahead: bool = True  # u of `sample_pdf` drawn before rays are tiled
    noise_ahead: bool = True  # noise of `raw2outputs` drawn before rays are tiled

    def lines(self) -> list[str]:
        """Lines for the log about twins with other results."""
        slowly, lines = 'without the faster nerf/fields/paper/mlp.py and without skipping samples', []
        if not self.u_ahead:
            lines.append('the random branch of sample_pdf was edited: u is drawn there, so results depend on chunk')
        if not self.noise_ahead:
            lines.append('the random branch of raw2outputs was edited: noise is drawn there, so results depend on '
                         f'chunk; the run goes on {slowly}')
        elif not self.fast:
            lines.append(f'NeRF.forward or raw2outputs was edited: the run goes through it as it stands, {slowly}')
        return lines


ALL_SHORTCUTS = Shortcuts()


class PaperField(Field):
    """Field of a coarse and a fine network (None: one pass).

    Args:
        view_chunk: most rays of a picture at once.
        shortcuts: faster twins of the functions in run_nerf_helpers.py for this field.
    """
    shape_flags = ('netdepth', 'netwidth', 'netdepth_fine', 'netwidth_fine', 'i_embed', 'multires', 'multires_views',
                   'use_viewdirs', 'N_importance')

    def __init__(self, coarse: MLPField, fine: MLPField | None, sampling: Sampling, view_chunk: int,
                 supersample: int = 1, shortcuts: Shortcuts = ALL_SHORTCUTS):
        super().__init__()
        self.coarse, self.fine, self.sampling, self.shortcuts = coarse, fine, sampling, shortcuts
        self.view_chunk, self.supersample = view_chunk, supersample
        self.dtype, self.white_bkgd = coarse.dtype, sampling.white_bkgd

    def networks(self) -> dict[str, NeRF]:
        """Networks by name, in the order of the passes."""
        fields = {'coarse': self.coarse, 'fine': self.fine}
        return {name: field.network for name, field in fields.items() if field is not None}

    @property
    def space(self) -> Space | None:
        return self.best.space

    @property
    def best(self) -> MLPField:
        """Network of the final picture."""
        return self.coarse if self.fine is None else self.fine

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        return self.best.radiance(points, viewdirs)

    def density(self, points: Tensor) -> Tensor:
        return self.best.density(points)

    # Samplers

    def sampler(self) -> HierarchicalSampler:
        return HierarchicalSampler(self, self.coarse, self.fine, self.sampling, self.view_chunk, self.supersample,
                                   self.shortcuts.fast)

    def guided(self, box: np.ndarray, cache: Path | None = None) -> Sampler:
        """Sampler by a survey of the box. Samples even in disparity get no survey: in a box up to the far bound its
        cells would be too large for near surfaces, and rays to infinity end in no box. Edited compositing gets none
        either, because it may give density another meaning."""
        if self.sampling.lindisp or self.sampling.horizon or not self.shortcuts.fast:
            return self.sampler()
        fingerprint = self._fingerprint(box)
        grid = DensityGrid.of_arrays(read_arrays(cache, fingerprint), self.device)
        if grid is None:
            grid = survey(self.density, box, self.device)
            write_arrays(cache, fingerprint, grid.arrays())
        at_once = self.view_chunk
        if self.device.type == 'cpu':
            at_once = min(at_once, POINTS // samples_of_view(self.sampling))
        return GuidedSampler(self, self.best, grid, self.sampling, at_once, self.supersample)

    def _fingerprint(self, box: np.ndarray) -> str:
        """Checksum of all inputs of a survey."""
        digest = hashlib.sha256(f'{self.dtype} {SURVEY}'.encode())
        for part in (np.float64(box), *(p.detach().float().cpu().numpy() for p in self.best.network.parameters())):
            digest.update(np.ascontiguousarray(part))
        return digest.hexdigest()

    @torch.inference_mode()
    def histograms(self, rays: Rays) -> dict[str, Tensor]:
        """Densities at the coarse depths of rays, and the weights of the final picture."""
        z, sampler = coarse_depths(rays, self.sampling), self.sampler()
        weights = [sampler.render(rays.part(tile)).final.weights for tile in pieces(len(rays.near), sampler.tile)]
        return {'density': self.density(ray_points(rays, z).reshape(-1, 3)), 'weights': torch.cat(weights)}

    # Checkpoints

    @property
    def _ball_numbers(self) -> list[float] | None:
        """Numbers of the contracted space for a checkpoint; None: space is not contracted."""
        return None if self.space is None else self.space.ball_numbers()

    def weights(self) -> dict:
        networks = self.networks()
        weights = {key: networks[name].state_dict() if name in networks else None for name, key in KEYS.items()}
        return weights if self._ball_numbers is None else weights | {'contraction': self._ball_numbers}

    def load_weights(self, checkpoint: dict) -> None:
        self._take_ball(checkpoint.get('contraction'))
        for name, network in self.networks().items():
            saved, ours = checkpoint.get(KEYS[name]), network.state_dict()
            if not isinstance(saved, dict) or not all(map(is_real, saved.values())):
                raise UserError(f'it has no {KEYS[name]}; set N_importance = 0 or use another checkpoint')
            if not network.use_viewdirs:  # a Keras file does not have the unused layer
                saved = {key: weight for key, weight in ours.items() if key.startswith('views_linears')} | saved
            for key in [*ours, *saved]:
                there, here = (tuple(state[key].shape) if key in state else 'absent' for state in (saved, ours))
                if there != here:
                    raise UserError(f'it does not fit the flags: {key} is {there} there and {here} here; '
                                    f'check {", ".join(self.shape_flags)}')
            network.load_state_dict(saved)

    def _take_ball(self, numbers: list[float] | None) -> None:
        """Takes the unit ball of a checkpoint's contracted space (None: not contracted). Broken numbers, or spaces of
        which one alone is contracted, are a UserError."""
        if (numbers is None) != (self._ball_numbers is None):
            words = ('not contracted', 'off') if numbers is None else ('contracted', 'on')
            raise UserError('its networks see space {}; set contract = {}'.format(*words))
        try:
            space = self.space if numbers is None else self.space.with_ball(numbers)
        except (TypeError, ValueError) as error:
            raise UserError(f'its contraction is broken ({error!r}); remove it or use another checkpoint') from None
        for field in filter(None, (self.coarse, self.fine)):
            field.space = space

    def describe(self) -> str:
        counts = (f'{name} {sum(p.numel() for p in network.parameters()):,} parameters'
                  for name, network in self.networks().items())
        space = '' if self._ball_numbers is None else ', of contracted space'
        return f"networks  {', '.join(counts)}{space}"
