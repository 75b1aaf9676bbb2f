"""Exposure of photographs that differ in brightness: a gain for each photograph and colour channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nerf.optimiser import is_real

MEASURED = 'right half of each image, after a gain per colour channel was fitted on its left half'


@dataclass(frozen=True)
class ExposureSettings:
    """Numbers that decide the gains, tried on the toy chair with random gains (docs/measurements.md, "Exposure")."""
    rate: float = 1.0  # learning rate of the gains' logarithms, as a multiple of the learning rate
    penalty: float = 1e-4  # weight of a gain's squared logarithm, beside the mean squared error of its image


class Exposure:
    """Gains of training images, learned with the field. They multiply its colours without the background, and begin
    at 1. Their logarithms have mean 0 over the images in each channel, or the scene's brightness would drift."""

    def __init__(self, n_images: int, device: torch.device, settings: ExposureSettings | None = None):
        self.settings = settings or ExposureSettings()
        self.raw = nn.Parameter(torch.zeros(n_images, 3, device=device))  # logarithms before their mean is subtracted

    def gains(self, image: Tensor) -> Tensor:
        """Gains [R, 3] of R pixels of images [R] int64."""
        # index_select: the gradient of an index in brackets is summed in random order on several threads.
        return (self.raw - self.raw.mean(0)).exp().index_select(0, image)

    def parameter_group(self) -> dict:
        """Parameter group for Adam. Its weight decay is the gradient of the penalty: an image has 1 / N of the rays."""
        penalty = self.settings.penalty / len(self.raw)
        return {'params': [self.raw], 'rate': self.settings.rate, 'weight_decay': penalty}

    def state(self) -> Tensor:
        """Logarithms [N, 3] for a checkpoint."""
        return self.raw.detach().cpu()

    @torch.no_grad()
    def load_state(self, raw: Tensor) -> None:
        """Takes the result of `state`. A broken one, or one of another number of images, is a ValueError."""
        if not is_real(raw) or raw.shape != self.raw.shape:
            raise ValueError('gains that do not fit the training images')
        self.raw.copy_(raw)


def right_halves(rendered: np.ndarray, target: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, ...]:
    """Right halves [H, W - W // 2, 3] float32 of a rendered test view, times its gain and clipped to [0, 1], and of its
    image, from [H, W, 3] in [0, 1]; and the gain [3] float64 per channel. The gain has the least squared error on the
    left halves, as NeRF-W fits an image's appearance (arXiv:2008.02268). The background's light [H, W, 1] has none.
    """
    middle = target.shape[1] // 2
    fitted, gain = with_gain(rendered, target, background, slice(middle))
    return fitted[:, middle:], target[:, middle:], gain


def with_gain(rendered: np.ndarray, target: np.ndarray, background: np.ndarray,
              columns: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
    """Rendered view [H, W, 3] float32, times its gain and clipped to [0, 1], and the gain [3] float64 per channel with
    the least squared error on `columns`; arguments are those of `right_halves`."""
    shown, seen = (np.float64(picture) - background for picture in (rendered, target))
    power = (shown[:, columns] ** 2).sum((0, 1))
    gain = (shown[:, columns] * seen[:, columns]).sum((0, 1)) / np.where(power > 0, power, 1.0)
    gain[power == 0] = 1.0
    return (background + gain * shown).clip(0.0, 1.0).astype(np.float32), gain
