"""Networks that cannot learn any more: noticed within a few steps and started afresh."""

from __future__ import annotations

import torch

from nerf.runtime.errors import UserError
from run_nerf_helpers import NeRF

CHECK_STEPS = 25  # steps between checks for a dead network
ONE_COLOUR = 1e-3  # colours that differ by less, over all rays of those steps, are one colour
TRIES = 5  # fresh starts a network gets
FRESH_DENSITY = 0.5  # raw density that a fresh start begins around, in 1/scene unit: thin fog, which gradients reach


class DeadNetworkGuard:
    """Starts a network afresh that shows one colour and nothing else.

    A network whose density is zero everywhere, or whose colours all saturate to the background's, gets no gradient
    through its ReLU or sigmoid and would stay white (or black) for the rest of the run. Where most of the picture is
    background, a draw like the first would often die again, so a fresh start begins as thin fog.

    Args:
        networks: by name, in the order of the passes.
        optimizer: whose running means of a dead network are dropped.
        seed: the run's seed; a fresh start takes the next ones.
    """

    def __init__(self, networks: dict[str, NeRF], optimizer: torch.optim.Optimizer, seed: int):
        self.networks, self.optimizer, self.seed = networks, optimizer, seed
        self.tries = dict.fromkeys(networks, 0)
        self.ranges = None

    def state_dict(self) -> dict:
        return {'tries': self.tries, 'ranges': self.ranges}

    def load_state_dict(self, state: dict) -> None:
        tries, ranges = state['tries'], state['ranges']
        if tries.keys() != self.tries.keys() or not all(type(n) is int and 0 <= n <= TRIES for n in tries.values()):
            raise ValueError(f'{tries} tries')
        if ranges is not None and tuple(ranges.shape) != (2, len(tries) + 1, 3):
            raise ValueError(f'ranges of shape {tuple(ranges.shape)}')
        self.tries, self.ranges = dict(tries), None if ranges is None else ranges.float()

    def watch(self, step: int, ranges: torch.Tensor) -> list[str]:
        """Takes in a step; every CHECK_STEPS steps starts dead networks afresh.

        Args:
            step: counted from 1.
            ranges: [2, P + 1, 3], the least and the most of each channel in what each pass showed and, last, in what
                it should have shown.

        Returns:
            a line for each network started afresh.

        Raises:
            UserError: a network died again after TRIES fresh starts.
        """
        if self.ranges is not None:
            low, high = self.ranges.to(ranges.device)
            ranges = torch.stack([torch.minimum(low, ranges[0]), torch.maximum(high, ranges[1])])
        self.ranges = ranges
        if step % CHECK_STEPS:
            return []
        self.ranges = None
        *shown, wanted = (ranges[1] - ranges[0]).amax(-1).tolist()  # waits for the GPU
        if wanted < ONE_COLOUR:  # only background was drawn: a good network shows one colour too
            return []
        return [self._revive(name, step) for name, spread in zip(self.networks, shown) if spread < ONE_COLOUR]

    def _revive(self, name: str, step: int) -> str:
        if self.tries[name] == TRIES:
            raise UserError(f'step {step}: the {name} network shows one colour and nothing else again after '
                            f'{TRIES} fresh starts; try a lower lrate, raw_noise_std = 1, precrop_iters = 500 '
                            'with no_batching, or another seed, and check that the images are not empty')
        self.tries[name] += 1
        seed = self.seed + sum(self.tries.values())
        self.networks[name].reset_parameters(torch.Generator().manual_seed(seed), FRESH_DENSITY)
        for parameter in self.networks[name].parameters():
            for mean in self.optimizer.state.get(parameter, {}).values():
                mean.zero_()  # in place: a captured step holds on to them
        return (f'step {step}: the {name} network is dead (it shows one colour and nothing else) and cannot learn; '
                f'started afresh from seed {seed} (try {self.tries[name]} of {TRIES})')
