"""What can be trained and shown: a field, and how it is trained.

A `Field` has density and colour at points. A `Sampler` shows it along rays. Its `Training` has the losses, the schedule
and what changes the field between steps. Renderer, viewer, meshes, trainer, logs and checkpoints know no more of a
field than these three.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from run_nerf_helpers import Rays, RenderResult

Numbers = tuple[Tensor | None, ...]  # random numbers, each [R, ...]: a row for each ray


class Target(NamedTuple):
    """What R rays should show."""

    rgb: Tensor  # [R, 3] colours of the pixels, on the scene's background
    coverage: Tensor | None = None  # [R] share of the pixel that the scene covers, below 0: unknown; None: all unknown
    gains: Tensor | None = None  # [R, 3] exposure of the photograph, which multiplies what a field shows; None: 1

    def part(self, rows: slice) -> Target:
        """Some of the rays."""
        return Target(*(None if part is None else part[rows] for part in self))


class Losses(NamedTuple):
    """What a training step computed."""

    terms: dict[str, Tensor]  # scalars by name; training minimises their sum. 'mse' is that of the final picture
    notes: dict[str, Tensor]  # further numbers by name, for `Training.after_step` and the log


class Changes(NamedTuple):
    """What became of a field after a step."""

    lines: list[str]  # for the log
    replaced: bool = False  # tensors are others than before: a captured step must be captured anew


class Field(nn.Module):
    """Density and colour at points."""

    dtype: torch.dtype = torch.float32  # precision of the products; fp16 gets a gradient scaler
    white_bkgd: bool = False  # rays end on white
    shape_flags: tuple[str, ...] = ()  # flags that decide the shapes of the weights, for messages
    has_slim_weights: bool = False  # its weights can be had in much less room than a checkpoint takes

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        """Colour [R, S, 3] in [0, 1] and density [R, S] in 1/scene unit.

        Args:
            points: [R, S, 3] in ray coordinates.
            viewdirs: [R, 3] unit directions in which the rays look.

        Returns:
            colours, which mean nothing at points without density, and densities.
        """
        raise NotImplementedError

    def density(self, points: Tensor) -> Tensor:
        """Density [N] in 1/scene unit at points [N, 3] in ray coordinates."""
        raise NotImplementedError

    @torch.inference_mode()
    def density_array(self, points: np.ndarray) -> np.ndarray:
        """`density` of an array of any length: float32 [N, 3] to float32 [N]."""
        parts = torch.from_numpy(points).to(self.device).split(2 ** 18)
        return torch.cat([self.density(part) for part in parts]).cpu().numpy()

    # Samplers

    def sampler(self) -> Sampler:
        """The sampler that the flags describe: training and test views go through it."""
        raise NotImplementedError

    def guided(self, box: np.ndarray, cache: Path | None = None) -> Sampler:
        """The fastest sampler for many pictures, or a mesh, of weights that do not change meanwhile.

        Args:
            box: [2, 3] corners, in ray coordinates, of what will be looked at.
            cache: a file for what was found out about these weights; it need not be there, nor can be written.
        """
        return self.sampler()

    def histograms(self, rays: Rays) -> dict[str, Tensor]:
        """Values [...] along some of a view's rays that a log shows as histograms, by name."""
        return {}

    # Checkpoints

    def weights(self) -> dict:
        """Entries of the field at the top level of a checkpoint. At least one name ends in '_state_dict', because files
        without such a name are not read as checkpoints."""
        raise NotImplementedError

    def load_weights(self, checkpoint: dict) -> None:
        """Takes the weights of a checkpoint whose entries `weights` made. A field that grows replaces parameters of
        another shape here, by setting the attribute: the optimiser is made later.

        Raises:
            UserError: they are missing or have other shapes; the message names the first that differs.
        """
        raise NotImplementedError

    def slim_weights(self) -> dict:
        """`weights` in less room, to be shared: `load_weights` takes them, and views hardly differ."""
        raise NotImplementedError

    def describe(self) -> str:
        """One line for the start of a run."""
        raise NotImplementedError


class Sampler:
    """Shows a field along rays: where along them samples lie, and what they show.

    Args:
        field: what is shown.
        tile: most rays of a picture that are rendered at once.
        supersample: where colours change in a picture, a pixel is the mean of supersample x supersample rays.
    """

    name: str  # in metrics.json
    passes: tuple[str, ...] = ()  # names of what `render` gives beside the final picture: 'coarse', or nothing

    def __init__(self, field: Field, tile: int, supersample: int = 1):
        self.field, self.tile, self.supersample = field, tile, supersample

    @property
    def device(self) -> torch.device:
        return self.field.device

    @property
    def white_bkgd(self) -> bool:
        return self.field.white_bkgd

    def render(self, rays: Rays) -> RenderResult:
        """What R rays show, without randomness. A picture's rays come in tiles of at most `tile`."""
        raise NotImplementedError

    def density_array(self, points: np.ndarray, least: float = 0.0) -> np.ndarray:
        """Density float32 [N] at points float32 [N, 3] in ray coordinates; densities below `least` may become 0."""
        return self.field.density_array(points)


class Training:
    """How a field is trained. It holds nothing that the field shows.

    Args:
        field: what is trained.
    """

    captured: bool = True  # on a GPU a step can run as a captured CUDA graph: it never waits
    chunk: int = 2 ** 31  # most rays that go through the field at once
    lrate_decay: float = 250.0  # thousand steps in which the learning rate falls to a tenth, where no flag says

    def __init__(self, field: Field):
        self.field = field

    def tiles(self, n_rays: int) -> list[slice]:
        """The pieces in which a step's rays go through the field; how they are cut does not change the result."""
        return pieces(n_rays, self.chunk)

    def rays_per_step(self, n_rays: int) -> int:
        """Rays of the next step, at most n_rays."""
        return n_rays

    def random_numbers(self, n_rays: int, generator: torch.Generator) -> Numbers:
        """All that a step draws at random beside its pixels, on the generator's device."""
        raise NotImplementedError

    def losses(self, rays: Rays, numbers: Numbers, target: Target) -> Losses:
        """The losses of R rays.

        Args:
            rays: R rays.
            numbers: their rows of `random_numbers`.
            target: what they should show.
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[dict]:
        """Groups for Adam: 'params', and 'rate' as a multiple of the learning rate."""
        return [{'params': list(self.field.parameters()), 'rate': 1.0}]

    def more_optimisers(self) -> list[torch.optim.Optimizer]:
        """Optimisers beside Adam, of parameters that are in no group. They read the learning rate from their groups'
        'lr'."""
        return []

    def after_step(self, step: int, notes: dict[str, Tensor]) -> Changes:
        """Changes the field after step `step`, counted from 1: it is pruned, grows, or is looked over.

        Args:
            notes: those of the step's `Losses`, summed over its tiles.

        Raises:
            UserError: training cannot go on.
        """
        return Changes([])

    def scalars(self) -> dict[str, float]:
        """Numbers that a log shows every i_print steps, by name: of the last step, or of the field as it is."""
        return {}

    def state(self) -> dict:
        """What else decides the next steps, as numbers and tensors by name."""
        return {}

    def load_state(self, state: dict) -> None:
        """Takes what `state` gave.

        Raises:
            ValueError, LookupError, TypeError: it is broken.
        """


def exposed(rgb: Tensor, background: Tensor, gains: Tensor | None) -> Tensor:
    """Colours [R, 3] times gains [R, 3] (None: 1), but for the part [R, 1 or 3] of them that is the background's."""
    return rgb if gains is None else background + gains * (rgb - background)


def pieces(count: int, size: int) -> list[slice]:
    """Slices of at most `size` that together are range(count)."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
