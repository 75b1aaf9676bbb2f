"""Interface of a field: `Field` has density and colour, `Sampler` shows it along rays, `Training` trains it. Renderer,
viewer, meshes, trainer, logs and checkpoints know no more of a field than these three classes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from run_nerf_helpers import Rays, RenderResult

Numbers = tuple[Tensor | None, ...]  # random numbers, each [R, ...]: a row for each ray


class Target(NamedTuple):
    """Colours that R rays should show."""
    rgb: Tensor  # [R, 3] colours of the pixels, on the scene's background
    coverage: Tensor | None = None  # [R] share of a pixel that the scene covers; below 0: unknown. None: all unknown
    gains: Tensor | None = None  # [R, 3] exposure of the photographs: factors of the field's colours. None: 1

    def part(self, rows: slice) -> Target:
        """Some of the rays."""
        return Target(*(None if part is None else part[rows] for part in self))


class Losses(NamedTuple):
    """Losses of a training step."""
    terms: dict[str, Tensor]  # scalars by name. Training minimises their sum. 'mse' is the error of the final pass
    notes: dict[str, Tensor]  # further numbers by name, for `Training.after_step`


class Changes(NamedTuple):
    """Changes of a field after a step."""
    lines: list[str]  # text for the log
    replaced: bool = False  # tensors of the field were replaced, so a captured step must be captured again


class Field(nn.Module):
    """Density and colour at points."""
    dtype: torch.dtype = torch.float32  # precision of matrix products. fp16 needs a gradient scaler
    white_bkgd: bool = False  # background is white
    shape_flags: tuple[str, ...] = ()  # flags that decide the shapes of the weights, for error messages
    has_slim_weights: bool = False  # `slim_weights` are much smaller than a checkpoint

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        """Colour [R, S, 3] in [0, 1] and density [R, S] in 1/scene unit at points [R, S, 3] in ray coordinates, seen
        along unit directions [R, 3] in world coordinates. Colours without density have no meaning."""
        raise NotImplementedError

    def density(self, points: Tensor) -> Tensor:
        """Density [N] in 1/scene unit at points [N, 3] in ray coordinates."""
        raise NotImplementedError

    @torch.inference_mode()
    def density_array(self, points: np.ndarray) -> np.ndarray:
        """`density` of an array of any length: float32 [N, 3] to float32 [N]."""
        parts = torch.from_numpy(points).to(self.device).split(2 ** 18)
        return torch.cat([self.density(part) for part in parts]).cpu().numpy()

    def sampler(self) -> Sampler:
        """Sampler that the flags describe. Training and test views go through it."""
        raise NotImplementedError

    def guided(self, box: np.ndarray, cache: Path | None = None) -> Sampler:
        """Fastest sampler for many pictures, or a mesh, of a box [2, 3] in ray coordinates, while the weights do not
        change. `cache` keeps facts about these weights between runs; the file may be missing or not writable."""
        return self.sampler()

    def histograms(self, rays: Rays) -> dict[str, Tensor]:
        """Values [...] by name, along some rays of a view, for the histograms of a log."""
        return {}

    def weights(self) -> dict:
        """Entries of the field at the top level of a checkpoint. At least one name ends in '_state_dict', because files
        without such a name are not read as checkpoints."""
        raise NotImplementedError

    def load_weights(self, checkpoint: dict) -> None:
        """Takes the weights of a checkpoint with the entries of `weights`. Parameters may be replaced by parameters of
        another shape, because the optimiser is made later. UserError: the first missing weight, or wrong shape."""
        raise NotImplementedError

    def slim_weights(self) -> dict:
        """Entries of `weights` in reduced precision, to be shared. `load_weights` takes them."""
        raise NotImplementedError

    def describe(self) -> str:
        """One line for the start of a run."""
        raise NotImplementedError


class Sampler:
    """Places of samples along rays, and the colours that the rays show. At most `tile` rays of a picture are rendered
    at once. Pixels at edges of a picture have `supersample` rays along their side."""
    name: str  # name of the sampler in metrics.json
    passes: tuple[str, ...] = ()  # names of earlier passes in the results of `render`: 'coarse', or none

    def __init__(self, field: Field, tile: int, supersample: int = 1):
        self.field, self.tile, self.supersample = field, tile, supersample

    @property
    def device(self) -> torch.device:
        return self.field.device

    @property
    def white_bkgd(self) -> bool:
        return self.field.white_bkgd

    def render(self, rays: Rays) -> RenderResult:
        """Colours, depths and opacities of R rays, without randomness. Tiles of a picture have at most `tile` rays."""
        raise NotImplementedError

    def density_array(self, points: np.ndarray, least: float = 0.0) -> np.ndarray:
        """Density float32 [N] at points float32 [N, 3] in ray coordinates. Densities below `least` may become 0."""
        return self.field.density_array(points)


class Training:
    """Losses of a field, its schedule, and its changes between steps."""
    captured: bool = True  # a step on a GPU can run as a captured CUDA graph, because it never waits for the GPU
    chunk: int = 2 ** 31  # most rays through the field at once
    lrate_decay: float = 250.0  # thousand steps in which the learning rate falls to a tenth, if no flag says it

    def __init__(self, field: Field):
        self.field = field

    def tiles(self, n_rays: int) -> list[slice]:
        """Pieces in which a step's rays go through the field. The result does not depend on their size."""
        return pieces(n_rays, self.chunk)

    def rays_per_step(self, n_rays: int) -> int:
        """Rays of the next step, at most n_rays."""
        return n_rays

    def pixels_per_ray(self) -> int:
        """Side, in pixels, of the square whose mean colour a ray of the next step should show. It changes only when
        `after_step` has replaced tensors."""
        return 1

    def random_numbers(self, n_rays: int, generator: torch.Generator) -> Numbers:
        """Random numbers of a step, but for its pixels, on the generator's device."""
        raise NotImplementedError

    def losses(self, rays: Rays, numbers: Numbers, target: Target) -> Losses:
        """Losses of R rays, with their rows of `random_numbers` and the colours that they should show."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict]:
        """Parameter groups for Adam: 'params', and 'rate' as a multiple of the learning rate."""
        return [{'params': list(self.field.parameters()), 'rate': 1.0}]

    def more_optimisers(self) -> list[torch.optim.Optimizer]:
        """Optimisers beside Adam, for parameters in no group. Each reads the learning rate from 'lr' of its group, and
        skips a step if its `found_inf` is not 0; both are scalar tensors. `complete_gradients()` is called before each
        step. It may add to the gradients, and returns a scalar that is finite if they are."""
        return []

    def after_step(self, step: int, notes: dict[str, Tensor]) -> Changes:
        """Prunes, grows or checks the field after a step, from 1, by its summed notes. UserError: training must end."""
        return Changes([])

    def scalars(self) -> dict[str, float]:
        """Numbers by name, of the last step or of the field, for a log every i_print steps."""
        return {}

    def state(self) -> dict:
        """State beside the weights that decides the next steps: numbers and tensors by name."""
        return {}

    def load_state(self, state: dict) -> None:
        """Takes a state that `state` returned. ValueError, LookupError or TypeError: the state is broken."""


def exposed(rgb: Tensor, background: Tensor, gains: Tensor | None) -> Tensor:
    """Colours [R, 3] times gains [R, 3] (None: 1). The background's part [R, 1 or 3] of the colours has no gain."""
    return rgb if gains is None else background + gains * (rgb - background)


def pieces(count: int, size: int) -> list[slice]:
    """Slices of at most `size` elements that cover range(count)."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
