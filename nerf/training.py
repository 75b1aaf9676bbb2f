"""A training step, and all that it changes."""

from __future__ import annotations

from collections import Counter

from torch import Tensor

from nerf.exposure import Exposure
from nerf.fields.interface import Field, Losses, Numbers, Training
from nerf.optimiser import Optimiser
from nerf.ray_batcher import RayBatcher
from nerf.runtime import ranks
from nerf.runtime.cuda_graph import CapturedStep

LOSS, NOTE = 'loss ', 'note '  # begin the names of what a captured step returns


class Trainer:
    """Takes training steps: draw, losses, backward, optimiser.

    Args:
        training: how what is trained is trained.
        batcher: draws each step's pixels; its generator draws the training's numbers too.
        lrate: the initial learning rate.
        lrate_decay: thousand steps in which it falls to a tenth; None: the training's own.
        ema_decay: of the average of the weights; 0: none.
    """

    def __init__(self, training: Training, batcher: RayBatcher, lrate: float, lrate_decay: float | None = None,
                 ema_decay: float = 0.0):
        self.training, self.batcher, self.lrate = training, batcher, lrate
        self.lrate_decay = lrate_decay or training.lrate_decay
        self.field = training.field
        # Of each training image, where the scene's differ in brightness; else None.
        self.exposure = Exposure(len(batcher.cameras), self.field.device) if batcher.scene.exposure else None
        self.optimiser = Optimiser(training, ema_decay, [self.exposure.parameter_group()] if self.exposure else [])
        self._capture()

    def _capture(self) -> None:
        """Sets up the captured step, which holds on to the tensors of the field as they are now."""
        self.update = self._update
        if self.field.device.type == 'cuda' and self.training.captured:
            self.update = CapturedStep(self._update, self._capture_failed)

    def shown_field(self) -> Field:
        """The field to show, with averaged weights if there is an average."""
        return self.optimiser.averaged_field()

    def learning_rate(self, step: int) -> float:
        """The rate of a step: it falls to a tenth in lrate_decay thousand steps."""
        return self.lrate * 0.1 ** (step / (1000 * self.lrate_decay))

    def step(self, step: int) -> Losses:
        """One training step, counted from 1. Nothing waits for the GPU.

        Each process draws all rays, so that the run is the same on any number of them, and takes its share.
        """
        self.n_rays = self.training.rays_per_step(self.batcher.n_rays)
        pixels = self.batcher.pixels(step, self.n_rays)
        numbers = self.training.random_numbers(self.n_rays, self.batcher.generator)
        self.optimiser.prepare(step, self.learning_rate(step))
        results = self.update(*pixels, *numbers)
        return Losses(*({name.removeprefix(kind): value for name, value in results.items() if name.startswith(kind)}
                        for kind in (LOSS, NOTE)))

    def _update(self, image: Tensor, row: Tensor, column: Tensor, *numbers: Tensor | None) -> dict[str, Tensor]:
        """The step from its pixels [R] and random numbers on; on a GPU it runs as a captured CUDA graph."""
        share = ranks.share(len(image))
        mine = image[share]
        rays, target = self.batcher.rays(mine, row[share], column[share])
        numbers = rows_of(numbers, share)
        self.optimiser.zero_grad()
        losses, notes = Counter(), Counter()
        for tile in self.training.tiles(len(mine)):  # their gradients add up
            gains = self.exposure.gains(mine[tile]) if self.exposure else None
            terms, noted = self.training.losses(rays.part(tile), rows_of(numbers, tile),
                                                target.part(tile)._replace(gains=gains))
            terms = {name: loss * ((tile.stop - tile.start) / len(image)) for name, loss in terms.items()}
            self.optimiser.backward(sum(terms.values()))
            for total, parts in ((losses, terms), (notes, noted)):
                for name, part in parts.items():
                    total[name] = total[name] + part.detach()
        ranks.add_up([*self.optimiser.gradients(), *losses.values()])
        self.optimiser.step(losses)  # skipped where a loss or the gradient is not finite
        return {LOSS + name: loss for name, loss in losses.items()} | {NOTE + name: x for name, x in notes.items()}

    def after_step(self, step: int, losses: Losses) -> list[str]:
        """What is to be done and said about a step that was taken: lines for the log.

        Raises:
            UserError: training cannot go on.
        """
        lines, changes = self.optimiser.check(step), self.training.after_step(step, losses.notes)
        if changes.replaced:
            self._capture()
        return [*lines, *changes.lines]

    def _capture_failed(self, reason: str) -> None:
        print(f'CUDA graph capture failed ({reason}); training continues without it: same results, slower')
        self.optimiser.capture_failed()

    def checkpoint(self, step: int) -> dict:
        """All that decides the next steps, as a checkpoint's dictionary."""
        checkpoint = {'global_step': step, **self.field.weights(), 'optimizer_state_dict': self.optimiser.state_dict(),
                      'run_state': {'scaler': self.optimiser.scaler.state_dict(), 'batcher': self.batcher.state_dict(),
                                    **self.training.state()}}
        if self.exposure:
            checkpoint['run_state']['exposure'] = self.exposure.state()
        if self.optimiser.averages:
            checkpoint['averaged'] = self.optimiser.averaged_field().weights()
        return checkpoint

    def load_state(self, state: dict, step: int) -> None:
        """Takes the 'run_state' of a checkpoint of that step.

        Raises:
            ValueError, LookupError, TypeError, ...: it is broken.
        """
        if state['scaler']:  # empty where the run was not in fp16
            self.optimiser.scaler.load_state_dict(state['scaler'])
        self.batcher.load_state_dict(state['batcher'], step)
        self.training.load_state(state)
        if self.exposure:
            self.exposure.load_state(state['exposure'])


def rows_of(numbers: Numbers, rows: slice) -> Numbers:
    """The same rows of each tensor; None stays None."""
    return tuple(part if part is None else part[rows] for part in numbers)
