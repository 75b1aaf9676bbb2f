"""Networks that cannot learn any more: they are noticed within a few steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nerf.runtime import ranks

CHECK_STEPS = 25  # steps between two checks
ONE_COLOUR = 1e-3  # colours whose squared differences from their mean sum up to less than its square are one colour


class DeadNetworks:
    """Watch for networks that show one colour and nothing else.

    A network is dead where its density is zero everywhere, or where all its colours saturate to the background's. No
    gradient passes its ReLU or its sigmoid then, and it stays white (or black) to the end of the run.

    Args:
        names: networks in the order of the passes.
        device: of their colours.
    """

    def __init__(self, names: list[str], device: torch.device):
        self.names, self.told = names, set()
        self.sums = torch.zeros(3, len(names) + 1, 3, dtype=torch.float64, device=device)  # `seen` since the last check

    def watch(self, step: int, seen_now: Tensor) -> list[str]:
        """Lines for the log, one for each dead network, once.

        Args:
            step: counted from 1; every CHECK_STEPS steps there is a check, which waits for the GPU.
            seen_now: what `seen` gave of this process's rays of the step.
        """
        seen_now = seen_now.clone()
        ranks.add_up([seen_now])
        self.sums += seen_now
        if step % CHECK_STEPS:
            return []
        (count, total, squares), self.sums = self.sums, torch.zeros_like(self.sums)
        *shown, wanted = (squares - total ** 2 / count).amax(-1).tolist()  # of the channel that differs most
        if wanted < ONE_COLOUR ** 2:  # all targets had one colour: a good network shows one colour too
            return []
        dead = [name for name, spread in zip(self.names, shown) if spread < ONE_COLOUR ** 2 and name not in self.told]
        self.told.update(dead)
        return [f'warning: step {step}: the {name} network is dead: it shows one colour and cannot learn; start again '
                'with another seed or a lower lrate, and check that the images are not empty' for name in dead]

    def state(self) -> dict:
        """The colours since the last check, for a checkpoint."""
        return {'sums': self.sums.clone()}

    def load_state(self, state: dict) -> None:
        """Takes what `state` gave. Earlier checkpoints hold something else; the next check then has fewer steps.

        Raises:
            ValueError: it is broken.
        """
        sums = state.get('sums', torch.zeros_like(self.sums))
        if sums.shape != self.sums.shape:
            raise ValueError(f'sums of shape {tuple(sums.shape)}')
        self.sums.copy_(sums)


def seen(colours: Sequence[Tensor]) -> Tensor:
    """Number, sum and sum of squares of colours [R, 3] of each pass and, last, of the targets: [3, P + 1, 3] float64.

    These add up over tiles, steps and processes. In float64 one ray that differs is noticed among a million.
    """
    values = torch.stack([part.detach() for part in colours]).double()  # [P + 1, R, 3]
    return torch.stack([torch.ones_like(values), values, values ** 2]).sum(2)
