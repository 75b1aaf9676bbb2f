"""Photographs of one scene that differ in brightness: a gain for each of them and each colour channel."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from nerf.optimiser import is_real

RATE = 1.0  # of the gains' logarithms, as a multiple of the learning rate
PENALTY = 1e-4  # on the squared logarithm of a gain, beside a mean squared error of its image
MEASURED = 'right half of each image, after a gain per colour channel was fitted on its left half'


class Exposure:
    """The gains of N training images, learned with the model. What the model shows is multiplied by them,
    but for a background.

    In each channel the mean of their logarithms over the images is 0: else the brightness of the scene itself would
    drift. At first all gains are 1.
    """

    def __init__(self, n_images: int, device: torch.device):
        self.raw = nn.Parameter(torch.zeros(n_images, 3, device=device))  # logarithms, but for their mean

    def gains(self, image: Tensor) -> Tensor:
        """The gains [R, 3] of R pixels, of the images [R] int64."""
        # An index in brackets would add up its gradient in any order where there are several threads.
        return (self.raw - self.raw.mean(0)).exp().index_select(0, image)

    def parameter_group(self) -> dict:
        """The group for Adam, whose weight decay is the gradient of the penalty; an image has 1 / N of the rays."""
        return {'params': [self.raw], 'rate': RATE, 'weight_decay': PENALTY / len(self.raw)}

    def state(self) -> Tensor:
        """What a checkpoint holds of it: [N, 3]."""
        return self.raw.detach().cpu()

    @torch.no_grad()
    def load_state(self, raw: Tensor) -> None:
        """Takes what `state` gave.

        Raises:
            ValueError: it is broken, or of another number of images.
        """
        if not is_real(raw) or raw.shape != self.raw.shape:
            raise ValueError('gains that do not fit the training images')
        self.raw.copy_(raw)


def right_halves(rendered: np.ndarray, target: np.ndarray,
                 background: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is compared of a held-out view whose gain nobody knows.

    The gain is fitted on one half of the image and the view is measured on the other, as NeRF-W does with what it knows
    of an image (arXiv:2008.02268).

    Args:
        rendered, target: [H, W, 3] in [0, 1].
        background: [H, W, 1], what of both is light of a background, which has no gain.

    Returns:
        the right half of both, [H, W - W // 2, 3] float32, the rendered one times the gain and within [0, 1]; and the
        gain [3] float64: of each channel, that with the least squared error on the left half.
    """
    middle = target.shape[1] // 2
    shown, seen = (np.float64(picture) - background for picture in (rendered, target))
    power = (shown[:, :middle] ** 2).sum((0, 1))
    gain = (shown[:, :middle] * seen[:, :middle]).sum((0, 1)) / np.where(power > 0, power, 1.0)
    gain[power == 0] = 1.0
    fitted = background[:, middle:] + gain * shown[:, middle:]
    return fitted.clip(0.0, 1.0).astype(np.float32), target[:, middle:], gain
