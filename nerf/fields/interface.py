"""The one interface behind which everything that can be trained and rendered stands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nerf.optimiser import Optimiser
from run_nerf_helpers import Composite, Rays

Numbers = tuple[Tensor | None, ...]  # random numbers, each [R, ...]: a row for each ray


class Picture(NamedTuple):
    """A view of N rays while it is drawn, row by row; its tensors change in place until the last tile is done."""

    rgb: Tensor  # [N, 3]
    depth: Tensor  # [N] expected depth, not divided by opacity
    acc: Tensor  # [N] opacity
    final: Tensor  # [N] bool: rays that will not change any more
    passes: dict[str, Picture]  # what earlier passes alone would have shown, by name
    spread: Tensor | None = None  # [N] spread of the samples along the ray, where the model knows one

    @classmethod
    def background(cls, n_rays: int, white: bool, device: torch.device, passes: tuple[str, ...] = ()) -> Picture:
        """A picture of nothing: white or black, depth and opacity 0."""
        return cls(torch.full((n_rays, 3), float(white), device=device), torch.zeros(n_rays, device=device),
                   torch.zeros(n_rays, device=device), torch.zeros(n_rays, dtype=torch.bool, device=device),
                   {name: cls.background(n_rays, white, device) for name in passes})

    def put(self, rows: Tensor | slice, shown: Composite) -> None:
        """Draws what rays show; `rows` says which rays they are."""
        self.rgb[rows], self.depth[rows], self.acc[rows] = shown.rgb, shown.depth, shown.acc


class Model(nn.Module):
    """A field, and how rays go through it. Trainer, renderer, mesh, logs and checkpoints know only what is here.

    A subclass sets the attributes and implements what raises NotImplementedError; the rest has a default. Several
    processes add up their gradients, whatever it is.
    """

    dtype: torch.dtype = torch.float32  # precision of the products; fp16 gets a gradient scaler
    white_bkgd: bool = False  # rays end on white
    chunk: int  # most rays at once in training
    view_chunk: int  # most rays of a view at once: no activations are kept for them
    supersample: int = 1  # pixels at the edges in pictures show the mean of supersample x supersample rays
    loss_names: tuple[str, ...]  # names of the losses: 'mse' is that of what is shown, 'mse0' of a coarse pass
    captured: bool = True  # on a GPU a step can run as a captured CUDA graph: it never waits
    shape_flags: tuple[str, ...] = ()  # flags that decide the shapes of the weights, for messages
    has_slim_weights: bool = False  # its weights can be had in much less room than a checkpoint takes

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def tiles(self, n_rays: int) -> list[slice]:
        """The pieces in which a step's rays go through the model; how they are cut does not change the result."""
        return pieces(n_rays, self.chunk)

    # A training step

    def rays_per_step(self, n_rays: int) -> int:
        """Rays of the next step, at most n_rays."""
        return n_rays

    def random_numbers(self, n_rays: int, generator: torch.Generator) -> Numbers:
        """All that a step draws at random beside its pixels, on the generator's device."""
        raise NotImplementedError

    def forward(self, rays: Rays, numbers: Numbers, target: Tensor, gains: Tensor | None = None) -> dict[str, Tensor]:
        """The losses of R rays, scalars by name; training minimises their sum.

        Args:
            rays: R rays.
            numbers: their rows of `random_numbers`.
            target: [R, 3] colours that they should show.
            gains: [R, 3], to be used by `exposed` before what they show is compared; None: 1.
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[dict]:
        """Groups for Adam: 'params', and 'rate' as a multiple of the learning rate."""
        return [{'params': list(self.parameters()), 'rate': 1.0}]

    def apply_gradients(self, rate: Tensor, finite: Tensor, scale: Tensor) -> None:
        """Changes what is in no group: the optimiser calls it in each step.

        Args:
            rate: scalar, the learning rate.
            finite: scalar bool; False: the step is skipped.
            scale: scalar, by which gradients are too large: not 1 in fp16 alone, where they may also be infinite.
        """

    def after_step(self, step: int, optimiser: Optimiser) -> list[str]:
        """What the model does to itself after step `step`, counted from 1: prune, grow, start a dead part afresh.

        It replaces a parameter by `optimiser.replace` and by setting the attribute.

        Returns:
            lines for the log.
        """
        return []

    # What it shows

    def render(self, rays: Rays) -> Composite:
        """What R rays show, without randomness. The caller cuts views into tiles."""
        raise NotImplementedError

    @torch.inference_mode()
    def show(self, rays: Rays, height: int, width: int) -> Iterator[Picture]:
        """Draws a view, whose rays come row by row, and yields it after each tile, the last time when it is whole."""
        picture = Picture.background(len(rays.near), self.white_bkgd, self.device)
        for tile in pieces(height * width, self.view_chunk):
            picture.put(tile, self.render(rays.part(tile)))
            picture.final[tile] = True
            yield picture

    def survey(self, box: np.ndarray, cache: Path | None = None) -> None:
        """Prepares for many views, or a mesh, of what is in a box; the weights must not change until `forget_survey`.

        Args:
            box: [2, 3] corners, in the coordinates of rays.
            cache: a file for what was found, of these weights or others; it need not be there, nor can be written.
        """

    def forget_survey(self) -> None:
        """Ends what `survey` began."""

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        """Colour [R, S, 3] in [0, 1] and density [R, S] in 1/scene unit of points [R, S, 3] on rays that look along
        unit viewdirs [R, 3]. The colour of a point without density means nothing."""
        raise NotImplementedError

    def density(self, points: Tensor) -> Tensor:
        """Density [N] in 1/scene unit at points [N, 3]."""
        raise NotImplementedError

    @torch.inference_mode()
    def density_array(self, points: np.ndarray, least: float = 0.0) -> np.ndarray:
        """`density` of an array of any length: float32 [N, 3] to float32 [N]. Densities below `least` may become 0."""
        parts = torch.from_numpy(points).to(self.device).split(2 ** 18)
        return torch.cat([self.density(part) for part in parts]).cpu().numpy()

    def histograms(self, rays: Rays) -> dict[str, Tensor]:
        """Values [...] along some of a view's rays that a log shows as histograms, by name."""
        return {}

    def scalars(self) -> dict[str, float]:
        """Numbers that a log shows every i_print steps, by name: the last step's, or of the model as it is."""
        return {}

    # What checkpoints hold

    def weights(self) -> dict:
        """The model's entries at the top level of a checkpoint."""
        raise NotImplementedError

    def load_weights(self, checkpoint: dict) -> None:
        """Takes the weights of a checkpoint whose entries `weights` made. A model that grows replaces parameters of
        another shape here, by setting the attribute: the optimiser is made later.

        Raises:
            UserError: they are missing or have other shapes; the message names the first that differs.
        """
        raise NotImplementedError

    def slim_weights(self) -> dict:
        """`weights` in less room, to be shared: `load_weights` takes them, and views hardly differ."""
        raise NotImplementedError

    def training_state(self) -> dict:
        """What else decides the next steps, as numbers and tensors by name."""
        return {}

    def load_training_state(self, state: dict) -> None:
        """Takes what `training_state` gave.

        Raises:
            ValueError, LookupError, TypeError: it is broken.
        """

    def describe(self) -> str:
        """One line for the start of a run."""
        raise NotImplementedError


def exposed(rgb: Tensor, background: Tensor, gains: Tensor | None) -> Tensor:
    """Colours [R, 3] times gains [R, 3] (None: 1), but for the part [R, 1 or 3] of them that is the background's."""
    return rgb if gains is None else background + gains * (rgb - background)


def pieces(count: int, size: int) -> list[slice]:
    """Slices of at most `size` that together are range(count)."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
