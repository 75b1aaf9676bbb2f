"""The paper's model: a coarse and a fine MLP, sampled stratified and hierarchically (sections 4 and 5)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nerf.contraction import Contraction
from nerf.fields.paper import guided_view
from nerf.fields.paper.dead_networks import DeadNetworkGuard
from nerf.fields.paper.mlp import MLPField, padded_rows
from nerf.fields.interface import Model, Numbers, Picture, exposed, pieces
from nerf.fields.paper.occupied_rays import FollowedOccupancy, Paths, render_occupied
from nerf.fields.paper.survey import SETTINGS, DensityGrid, survey
from nerf.files.remade import read_arrays, write_arrays
from nerf.optimiser import Optimiser, is_real
from nerf.runtime.errors import UserError
from run_nerf_helpers import (
    Composite, Draws, NeRF, Rays, RenderResult, Sampling, coarse_depths, composite, draw, fine_depths, img2mse,
    ray_points, render_pass, render_rays,
)

STRETCHES = 3  # parts of a ray that are asked one after the other, front to back
HIDDEN = 9.2  # optical depth behind which samples are skipped: 1e-4 of the light gets there
RAYS = 8  # rays are padded to a multiple of this: see ROWS in mlp.py
POINTS = 2 ** 14  # of a surveyed view that go through a network at once on a CPU: more are no faster
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
        self.followed: FollowedOccupancy | None = None  # where training takes its samples; None: everywhere
        self.seed_of_step = 0
        self.surveyed: DensityGrid | None = None  # where the network has density, while its weights do not change

    def networks(self) -> dict[str, NeRF]:
        fields = {'coarse': self.coarse, 'fine': self.fine}
        return {name: field.network for name, field in fields.items() if field is not None}

    @property
    def contraction(self) -> Contraction | None:
        return self.best.contraction

    @property
    def in_boxes(self) -> bool:
        """Whether cells of a box between near and far bounds can tell what of rays is occupied."""
        return not (self.sampling.lindisp or self.sampling.to_infinity)

    @property
    def best(self) -> MLPField:
        return self.coarse if self.fine is None else self.fine

    def follow_occupancy(self, box: np.ndarray) -> None:
        """Training takes samples in those cells of a box [2, 3] only in which the best network has density."""
        self.followed = FollowedOccupancy(box, self.device)
        self.captured = False  # how many rays meet such a cell is known only when the device has told

    def random_numbers(self, n_rays: int, generator: torch.Generator) -> Numbers:
        if self.followed is not None:
            self.seed_of_step = int(torch.randint(2 ** 31, (1,), generator=generator, device=generator.device))
        return draw(n_rays, self.sampling, generator)

    def forward(self, rays: Rays, numbers: Numbers, target: Tensor, gains: Tensor | None = None) -> dict[str, Tensor]:
        """The mean squared error of each pass (section 5.3)."""
        shown = self._shown(rays, Draws(*numbers))
        losses, seen = {'mse': self._error(shown.final, target, gains)}, [shown.final.rgb, target]
        if shown.coarse is not None:
            losses, seen = {'mse0': self._error(shown.coarse, target, gains), **losses}, [shown.coarse.rgb, *seen]
        self.guard.see(seen)
        return losses

    def _error(self, shown: Composite, target: Tensor, gains: Tensor | None) -> Tensor:
        background = float(self.white_bkgd) * (1.0 - shown.acc[:, None])
        return img2mse(exposed(shown.rgb, background, gains), target)

    def _shown(self, rays: Rays, draws: Draws) -> RenderResult:
        """What training rays show; of those that meet no occupied cell, the background."""
        if self.followed is not None and self.followed.occupied is not None:
            paths = Paths.of(self.followed.occupied.steps(rays), rays)
            if paths.n_rays:  # else all: a loss without a gradient is no step
                draws = Draws(*(part if part is None else part[paths.rows] for part in draws))
                shown = render_occupied(rays.part(paths.rows), paths, self.coarse, self.fine, self.sampling, draws)
                return shown._replace(final=self._on_background(shown.final, paths, len(rays.near)),
                                      coarse=self._on_background(shown.coarse, paths, len(rays.near)))
        return render_rays(rays, self.coarse, self.fine, self.sampling, draws)

    def _on_background(self, shown: Composite | None, paths: Paths, n_rays: int) -> Composite | None:
        """A composite of the paths' rays, with the colours and opacities of all n_rays instead of theirs."""
        if shown is None:
            return None
        rows = paths.rows[:paths.n_rays]
        background = torch.full((n_rays, 3), float(self.white_bkgd), device=self.device)
        return shown._replace(rgb=background.index_put((rows,), shown.rgb[:paths.n_rays]),
                              acc=torch.zeros_like(background[:, 0]).index_put((rows,), shown.acc[:paths.n_rays]))

    def after_step(self, step: int, optimiser: Optimiser) -> list[str]:
        tries = dict(self.guard.tries)
        lines = self.guard.watch(step, optimiser)
        if self.followed is not None:
            if self.guard.tries != tries:
                self.followed.begin_anew()
            self.followed.after_step(step, self.density, self.seed_of_step)
        return lines

    def render(self, rays: Rays) -> Composite:
        return render_rays(rays, self.coarse, self.fine, self.sampling).final

    def survey(self, box: np.ndarray, cache: Path | None = None) -> None:
        """Finds where there is density: views are then drawn through what was found, and `density_array` uses it.

        Where samples are even in disparity nothing is done: in a box up to the far bound the cells would be too large
        for what is near. Rays to infinity end in no box.
        """
        if not self.in_boxes or self.surveyed is not None:
            return
        fingerprint = self._fingerprint(box)
        self.surveyed = DensityGrid.of_arrays(read_arrays(cache, fingerprint), self.device)
        if self.surveyed is None:
            self.surveyed = survey(self.density, box, self.device)
            write_arrays(cache, fingerprint, self.surveyed.arrays())

    def _fingerprint(self, box: np.ndarray) -> str:
        """Of all that a survey depends on."""
        numbers = [np.float64(box), *(part.detach().float().cpu().numpy() for part in self.best.network.parameters())]
        digest = hashlib.sha256(f'{self.dtype} {SETTINGS}'.encode())
        for part in numbers:
            digest.update(np.ascontiguousarray(part))
        return digest.hexdigest()

    def forget_survey(self) -> None:
        self.surveyed = None

    def show(self, rays: Rays, height: int, width: int) -> Iterator[Picture]:
        """Where there was a survey, the better field is sampled where it has density; else both passes are drawn."""
        if self.surveyed is None:
            return super().show(rays, height, width) if self.fine is None else self._show_passes(rays)
        return self._show_surveyed(rays)

    @torch.inference_mode()
    def _show_surveyed(self, rays: Rays) -> Iterator[Picture]:
        n_samples = samples_of_view(self.sampling)
        at_once = min(self.view_chunk, POINTS // n_samples) if self.device.type == 'cpu' else self.view_chunk
        yield from guided_view.draw(self.best, self.surveyed, rays, n_samples, at_once, self.white_bkgd)

    @torch.inference_mode()
    def _show_passes(self, rays: Rays) -> Iterator[Picture]:
        """Both passes of all rays; samples of the fine one that are hidden are skipped."""
        picture = Picture.background(len(rays.near), self.white_bkgd, self.device, ('coarse',))._replace(
            spread=torch.zeros_like(rays.near[:, 0]))
        for tile in pieces(len(rays.near), self.view_chunk):
            part = rays.part(tile)
            z = coarse_depths(part, self.sampling)
            shown = render_pass(self.coarse, part, z, self.white_bkgd)
            picture.passes['coarse'].put(tile, shown)
            z_fine = fine_depths(z, shown.weights, self.sampling.N_importance, in_disparity=self.sampling.to_infinity)
            z = torch.cat([z, z_fine], -1).sort(-1).values
            picture.put(tile, front_to_back(self.fine, part, z, self.white_bkgd))
            picture.spread[tile] = z_fine.std(-1, unbiased=False)
            picture.final[tile] = True
            yield picture

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        return self.best(points, viewdirs)

    def density(self, points: Tensor) -> Tensor:
        return self.best.density(points)

    @torch.inference_mode()
    def density_array(self, points: np.ndarray, least: float = 0.0) -> np.ndarray:
        if self.surveyed is None or least < self.surveyed.least:
            return super().density_array(points)
        kept = self.surveyed.may_hold(torch.from_numpy(points).to(self.device)).cpu().numpy()
        density = np.zeros(len(points), np.float32)
        if kept.any():
            density[kept] = super().density_array(points[kept])
        return density

    @torch.inference_mode()
    def histograms(self, rays: Rays) -> dict[str, Tensor]:
        """Densities evenly along the rays, and the weights of what they show."""
        z = coarse_depths(rays, self.sampling)
        weights = [self.render(rays.part(tile)).weights for tile in pieces(len(rays.near), self.chunk)]
        return {'density': self.density(ray_points(rays, z).reshape(-1, 3)), 'weights': torch.cat(weights)}

    def weights(self) -> dict:
        networks = self.networks()
        weights = {key: networks[name].state_dict() if name in networks else None for name, key in KEYS.items()}
        return weights if self.contraction is None else {**weights, 'contraction': self.contraction.numbers()}

    def load_weights(self, checkpoint: dict) -> None:
        self._take_contraction(checkpoint.get('contraction'))
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

    def _take_contraction(self, numbers: list[float] | None) -> None:
        """Takes the contraction of a checkpoint's weights.

        Raises:
            UserError: those have one and these have none, or the other way round, or it is broken.
        """
        if (numbers is None) != (self.contraction is None):
            words = ('not contracted', 'off') if numbers is None else ('contracted', 'on')
            raise UserError('its networks see space {}; set contract = {}'.format(*words))
        try:
            contraction = None if numbers is None else Contraction.of_numbers(numbers)
        except (TypeError, ValueError) as error:
            raise UserError(f'its contraction is broken ({error!r}); remove it or use another checkpoint') from None
        for field in filter(None, (self.coarse, self.fine)):
            field.contraction = contraction

    def training_state(self) -> dict:
        followed = {} if self.followed is None else {'occupancy': self.followed.state_dict()}
        return {'guard': self.guard.state_dict(), **followed}

    def load_training_state(self, state: dict) -> None:
        self.guard.load_state_dict(state['guard'])
        if self.followed is not None and 'occupancy' in state:
            self.followed.load_state_dict(state['occupancy'])

    def describe(self) -> str:
        counts = (f'{name} {sum(p.numel() for p in network.parameters()):,} parameters'
                  for name, network in self.networks().items())
        return (f"networks  {', '.join(counts)}" + ', trained in occupied cells' * (self.followed is not None)
                + ', of contracted space' * (self.contraction is not None))


def samples_of_view(sampling: Sampling) -> int:
    """Samples of a ray of a surveyed view: where they lie is better known than to a coarse pass, so they are fewer."""
    return 8 + 4 * -(-(sampling.N_samples + sampling.N_importance) // 32)


def front_to_back(field: MLPField, rays: Rays, z: Tensor, white_bkgd: bool) -> Composite:
    """`render_pass`, but samples that less than 1e-4 of the light gets through to are skipped."""
    n_rays, n_samples = z.shape
    rgb, density = torch.zeros(n_rays, n_samples, 3, device=z.device), torch.zeros_like(z)
    optical = torch.zeros(n_rays, device=z.device)  # in front of the samples to come
    spans = z.diff(append=z[:, -1:]) * rays.directions.norm(dim=-1, keepdim=True)
    step = -(-n_samples // STRETCHES)
    for samples in (slice(start, start + step) for start in range(0, n_samples, step)):
        lit = optical < HIDDEN
        rows = padded_rows(lit, RAYS)
        if len(rows) == 0:
            break
        some = rays.part(rows)
        colours, densities = field(ray_points(some, z[rows, samples]), some.viewdirs)
        rgb[rows, samples] = colours
        density[rows, samples] = torch.where(lit[rows, None], densities, 0.0)  # padding adds nothing
        optical += (density[:, samples] * spans[:, samples]).sum(-1)
    return composite(rgb, density, z, rays.directions, white_bkgd)
