"""Training step of any field: rays, losses, gradients, new weights."""

from __future__ import annotations

from collections import Counter

from torch import Tensor

from nerf.captures.refining import CameraRefinement
from nerf.exposure import Exposure
from nerf.fields.interface import Field, Losses, Numbers, Training
from nerf.optimiser import Optimiser
from nerf.ray_batcher import RayBatcher
from nerf.runtime import ranks
from nerf.runtime.cuda_graph import CapturedStep

LOSS, NOTE = 'loss ', 'note '  # prefixes of names in the result of a captured step


class Trainer:
    """Training of a field on the pixels of a batcher, whose generator draws the random numbers too. The learning rate
    is `lrate` at first, and falls to a tenth in `lrate_decay` thousand steps; None: `training.lrate_decay`. `ema_decay`
    is the decay per step of the average of the weights; 0: no average. `refinement` changes the batcher's cameras."""

    def __init__(self, training: Training, batcher: RayBatcher, lrate: float, lrate_decay: float | None = None,
                 ema_decay: float = 0.0, refinement: CameraRefinement | None = None):
        self.refinement = refinement
        self.training, self.batcher, self.lrate = training, batcher, lrate
        self.lrate_decay, self.field = lrate_decay or training.lrate_decay, training.field
        self.exposure = Exposure(len(batcher.cameras), self.field.device) if batcher.scene.exposure else None
        self.optimiser = Optimiser(training, ema_decay, [self.exposure.parameter_group()] if self.exposure else [])
        self._capture()

    def _capture(self) -> None:
        """Sets up the step for the present tensors of the field. On a GPU it is captured as a CUDA graph."""
        self.update = self._update
        if self.field.device.type == 'cuda' and self.training.captured:
            self.update = CapturedStep(self._update, self._capture_failed)

    @property
    def is_captured(self) -> bool:
        """Whether steps are replayed from a CUDA graph."""
        return isinstance(self.update, CapturedStep) and self.update.graph is not None

    def shown_field(self) -> Field:
        """Field to show: with averaged weights, if the run averages them."""
        return self.optimiser.averaged_field()

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step. It falls to a tenth in `lrate_decay` thousand steps."""
        return self.lrate * 0.1 ** (step / (1000 * self.lrate_decay))

    def step(self, step: int) -> Losses:
        """Takes a step, counted from 1; returns its losses and notes. Nothing here waits for the GPU."""
        return self.take(step, *self.draw(step))

    def draw(self, step: int) -> tuple[Tensor | None, ...]:
        """Pixels and random numbers of a step. Each of several processes draws all rays and trains on its share, so a
        run does not depend on their number."""
        self.n_rays = self.training.rays_per_step(self.batcher.n_rays)
        pixels = self.batcher.pixels(step, self.n_rays)
        return (*pixels, *self.training.random_numbers(self.n_rays, self.batcher.generator))

    def take(self, step: int, *drawn: Tensor | None) -> Losses:
        """Takes a step of drawn pixels and random numbers."""
        self.optimiser.prepare(step, self.learning_rate(step))
        results = self.update(*drawn)
        return Losses(*({name.removeprefix(kind): value for name, value in results.items() if name.startswith(kind)}
                        for kind in (LOSS, NOTE)))

    def _update(self, image: Tensor, row: Tensor, column: Tensor, *numbers: Tensor | None) -> dict[str, Tensor]:
        """Changes the weights by pixels [R] int64 and numbers [R, ...]; returns losses and notes by prefixed name."""
        n_rays = len(image)
        image, row, column, *numbers = rows_of((image, row, column, *numbers), ranks.share(n_rays))
        rays, target = self.batcher.rays(image, row, column, self.training.pixels_per_ray())
        self.optimiser.zero_grad()
        losses, notes = Counter(), Counter()
        for tile in self.training.tiles(len(image)):  # gradients of the tiles add up
            gains = self.exposure.gains(image[tile]) if self.exposure else None
            terms, noted = self.training.losses(rays.part(tile), rows_of(numbers, tile),
                                                target.part(tile)._replace(gains=gains))
            terms = {name: loss * ((tile.stop - tile.start) / n_rays) for name, loss in terms.items()}
            self.optimiser.backward(sum(terms.values()))
            for total, parts in ((losses, terms), (notes, noted)):
                for name, part in parts.items():
                    total[name] = total[name] + part.detach()
        ranks.add_up([*self.optimiser.gradients(), *losses.values()])
        self.optimiser.step(losses)  # skipped if a loss or the gradient is not finite
        return {LOSS + name: loss for name, loss in losses.items()} | {NOTE + name: x for name, x in notes.items()}

    def after_step(self, step: int, losses: Losses) -> list[str]:
        """Changes the field after a step, counted from 1; returns lines for the log. UserError: training must end."""
        lines = self.optimiser.check(step)
        if self.refinement and self.refinement.is_due(step):
            lines += self.refinement.refine(step, self.field.sampler())
        changes = self.training.after_step(step, losses.notes)
        if changes.replaced:
            self._capture()
        return [*lines, *changes.lines]

    def _capture_failed(self, reason: str) -> None:
        print(f'CUDA graph capture failed ({reason}); training continues without it: same results, slower')
        self.optimiser.capture_failed()

    def checkpoint(self, step: int) -> dict:
        """Checkpoint of a step. With the scene and the flags it decides all further steps."""
        checkpoint = {'global_step': step, **self.field.weights(), 'optimizer_state_dict': self.optimiser.state_dict(),
                      'run_state': {'scaler': self.optimiser.scaler.state_dict(), 'batcher': self.batcher.state_dict(),
                                    **self.training.state()}}
        if self.exposure:
            checkpoint['run_state']['exposure'] = self.exposure.state()
        if self.refinement:
            checkpoint['run_state']['cameras'] = self.refinement.state()
        if self.optimiser.averages:
            checkpoint['averaged'] = self.optimiser.averaged_field().weights()
        return checkpoint

    def load_state(self, state: dict, step: int) -> None:
        """Takes the 'run_state' of a checkpoint of a step. ValueError, LookupError, TypeError, ...: it is broken."""
        if state['scaler']:  # empty unless the run was in fp16
            self.optimiser.scaler.load_state_dict(state['scaler'])
        self.batcher.load_state_dict(state['batcher'], step)
        self.training.load_state(state)
        if self.exposure:
            self.exposure.load_state(state['exposure'])
        if self.refinement and 'cameras' in state:  # else they are the given ones, as in a run without refinement
            self.refinement.load_state(state['cameras'])


def rows_of(numbers: Numbers, rows: slice) -> Numbers:
    """Some rows of each tensor; None stays None."""
    return tuple(part if part is None else part[rows] for part in numbers)
