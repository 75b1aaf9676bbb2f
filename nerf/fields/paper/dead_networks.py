"""Networks that cannot learn any more: noticed within a few steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nerf.runtime import ranks
from run_nerf_helpers import NeRF

CHECK_STEPS = 25  # steps between checks for a dead network
ONE_COLOUR = 1e-3  # colours that differ by less, over all rays of those steps, are one colour
FOG = 0.5  # raw density in 1/scene unit that is added to a fresh network: thin fog, which gradients reach


class DeadNetworkGuard:
    """Notices a network that shows one colour and nothing else.

    A network whose density is zero everywhere, or whose colours all saturate to the background's, gets no gradient
    through its ReLU or sigmoid and stays white (or black) for the rest of the run.

    Args:
        networks: by name, in the order of the passes; on their device.
    """

    def __init__(self, networks: dict[str, NeRF]):
        self.names, self.told = list(networks), set()
        device = next(next(iter(networks.values())).parameters()).device
        self.ranges = torch.empty(2, len(networks) + 1, 3, device=device)
        self._forget_ranges()

    def _forget_ranges(self) -> None:
        self.ranges[0], self.ranges[1] = float('inf'), -float('inf')

    def see(self, colours: Sequence[Tensor]) -> None:
        """Takes in what a tile of rays showed in each pass, [R, 3] each, and, last, what it should have shown.

        Only the least and the most of each channel are kept, in place, so that a captured step can do it.
        """
        colours = [part.detach() for part in colours]
        low, high = torch.stack([part.amin(0) for part in colours]), torch.stack([part.amax(0) for part in colours])
        self.ranges.copy_(torch.stack([torch.minimum(self.ranges[0], low), torch.maximum(self.ranges[1], high)]))

    def watch(self, step: int) -> list[str]:
        """Checks every CHECK_STEPS steps, counted from 1; gives a line for each dead network, once."""
        if ranks.count() > 1:
            self.ranges[0], self.ranges[1] = -ranks.largest(-self.ranges[0]), ranks.largest(self.ranges[1].clone())
        if step % CHECK_STEPS:
            return []
        *shown, wanted = (self.ranges[1] - self.ranges[0]).amax(-1).tolist()  # waits for the GPU
        self._forget_ranges()
        if wanted < ONE_COLOUR:  # only background was drawn: a good network shows one colour too
            return []
        dead = [name for name, spread in zip(self.names, shown) if spread < ONE_COLOUR and name not in self.told]
        self.told.update(dead)
        return [f'warning: step {step}: the {name} network is dead: it shows one colour and cannot learn; start again '
                'with another seed or a lower lrate, and check that the images are not empty' for name in dead]

    def state_dict(self) -> dict:
        return {'ranges': self.ranges}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError, LookupError or TypeError where the state is broken."""
        ranges = state['ranges']
        if ranges is None:  # an older checkpoint: it was taken right after a check
            self._forget_ranges()
            return
        if ranges.shape != self.ranges.shape:
            raise ValueError(f'ranges of shape {tuple(ranges.shape)}')
        self.ranges.copy_(ranges)
