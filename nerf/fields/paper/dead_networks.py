"""Networks that cannot learn any more: noticed within a few steps and started afresh."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nerf.optimiser import Optimiser
from nerf.runtime import ranks
from nerf.runtime.errors import UserError
from run_nerf_helpers import NeRF

CHECK_STEPS = 25  # steps between checks for a dead network
ONE_COLOUR = 1e-3  # colours that differ by less, over all rays of those steps, are one colour
TRIES = 5  # fresh starts that a network gets
FOG = 0.5  # raw density in 1/scene unit that is added to a fresh network: thin fog, which gradients reach


class DeadNetworkGuard:
    """Starts a network afresh that shows one colour and nothing else.

    A network whose density is zero everywhere, or whose colours all saturate to the background's, gets no gradient
    through its ReLU or sigmoid and would stay white (or black) for the rest of the run.

    Args:
        networks: by name, in the order of the passes; on their device.
        seed: the run's seed; fresh starts take the next ones.
    """

    def __init__(self, networks: dict[str, NeRF], seed: int):
        self.networks, self.seed = networks, seed
        self.tries = dict.fromkeys(networks, 0)
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

    def watch(self, step: int, optimiser: Optimiser) -> list[str]:
        """Every CHECK_STEPS steps starts dead networks afresh.

        Args:
            step: counted from 1.
            optimiser: its running means of a dead network are cleared.

        Returns:
            a line for each network started afresh.

        Raises:
            UserError: a network died again after TRIES fresh starts.
        """
        if ranks.count() > 1:
            self.ranges[0], self.ranges[1] = -ranks.largest(-self.ranges[0]), ranks.largest(self.ranges[1].clone())
        if step % CHECK_STEPS:
            return []
        *shown, wanted = (self.ranges[1] - self.ranges[0]).amax(-1).tolist()  # waits for the GPU
        self._forget_ranges()
        if wanted < ONE_COLOUR:  # only background was drawn: a good network shows one colour too
            return []
        return [self._revive(name, step, optimiser) for name, spread in zip(self.networks, shown)
                if spread < ONE_COLOUR]

    def _revive(self, name: str, step: int, optimiser: Optimiser) -> str:
        if self.tries[name] == TRIES:
            raise UserError(f'step {step}: the {name} network shows one colour and nothing else again after '
                            f'{TRIES} fresh starts; try a lower lrate, raw_noise_std = 1, precrop_iters = 500 '
                            'with no_batching, or another seed, and check that the images are not empty')
        self.tries[name] += 1
        seed = self.seed + sum(self.tries.values())
        self.networks[name].reset_parameters(torch.Generator().manual_seed(seed))
        self.networks[name].lift_density(FOG)
        optimiser.forget(self.networks[name])
        return (f'step {step}: the {name} network is dead (it shows one colour and nothing else) and cannot learn; '
                f'started afresh from seed {seed} (try {self.tries[name]} of {TRIES})')

    def state_dict(self) -> dict:
        return {'tries': self.tries, 'ranges': self.ranges}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError, LookupError or TypeError where the state is broken."""
        tries, ranges = state['tries'], state['ranges']
        if tries.keys() != self.tries.keys() or not all(type(n) is int and 0 <= n <= TRIES for n in tries.values()):
            raise ValueError(f'{tries} tries')
        if ranges is not None and ranges.shape != self.ranges.shape:
            raise ValueError(f'ranges of shape {tuple(ranges.shape)}')
        self.tries = dict(tries)
        if ranges is None:  # an older checkpoint: it was taken right after a check
            self._forget_ranges()
        else:
            self.ranges.copy_(ranges)
