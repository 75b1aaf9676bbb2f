"""Training of the paper's field: the losses of section 5.3, with a watch for networks that cannot learn any more."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nerf.fields.interface import Changes, Losses, Numbers, Target, Training, exposed
from nerf.fields.paper.field import PaperField
from nerf.runtime import ranks
from run_nerf_helpers import Draws, Rays, draw, img2mse

CHECK_STEPS = 25  # steps between two checks for dead networks
ONE_COLOUR = 1e-3  # colours whose squared differences from their mean sum up to less than its square are one colour


class PaperTraining(Training):
    """Training of both passes by the same colours. At most `chunk` rays go through the networks at once."""
    field: PaperField

    def __init__(self, field: PaperField, chunk: int):
        super().__init__(field)
        self.chunk, self.sampler = chunk, field.sampler()
        self.ahead = field.shortcuts.u_ahead and field.shortcuts.noise_ahead
        self.captured = self.ahead  # a captured step can draw no random numbers
        self.dead_networks = DeadNetworks(list(field.networks()), field.device)

    def random_numbers(self, n_rays: int, generator: torch.Generator) -> Numbers:
        """`Draws`, and seeds [n_rays] of random numbers that edited functions draw (None: all are drawn ahead)."""
        draws, seeds = draw(n_rays, self.field.sampling, generator), None
        if not self.field.shortcuts.u_ahead:
            draws = draws._replace(u=None)
        if not self.field.shortcuts.noise_ahead:
            draws = draws._replace(noise=None, noise_fine=None)
        if not self.ahead:
            seeds = torch.randint(2 ** 62, (n_rays,), generator=generator, device=generator.device)
        return *draws, seeds

    def losses(self, rays: Rays, numbers: Numbers, target: Target) -> Losses:
        """The mean squared error of each pass."""
        *draws, seeds = numbers
        generator = None if seeds is None else torch.Generator(seeds.device).manual_seed(int(seeds[0]))
        shown = self.sampler.render(rays, Draws(*draws), generator)
        passes = {'mse': shown.final} if shown.coarse is None else {'mse0': shown.coarse, 'mse': shown.final}
        white, terms = float(self.field.white_bkgd), {}
        for name, each in passes.items():
            background = white * (1.0 - each.acc[:, None])
            terms[name] = img2mse(exposed(each.rgb, background, target.gains), target.rgb)
        return Losses(terms, {'seen': seen([*(each.rgb for each in passes.values()), target.rgb])})

    def after_step(self, step: int, notes: dict[str, Tensor]) -> Changes:
        return Changes(self.dead_networks.watch(step, notes['seen']))

    def state(self) -> dict:
        return {'guard': self.dead_networks.state()}

    def load_state(self, state: dict) -> None:
        self.dead_networks.load_state(state['guard'])


class DeadNetworks:
    """Watch for networks, named in the order of the passes, of one colour alone.

    A network is dead if its density is zero everywhere, or if all its colours saturate to the background's. Gradients
    then pass no ReLU or sigmoid of it, and it stays white (or black) to the end of the run."""

    def __init__(self, names: list[str], device: torch.device):
        self.names, self.told = names, set()
        self.sums = torch.zeros(3, len(names) + 1, 3, dtype=torch.float64, device=device)  # `seen` since the last check

    def watch(self, step: int, seen_now: Tensor) -> list[str]:
        """Lines for the log, one for each dead network, once, after a step counted from 1 with this process's `seen`.
        The check every CHECK_STEPS steps waits for the GPU."""
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
        """Colours since the last check, for a checkpoint."""
        return {'sums': self.sums.clone()}

    def load_state(self, state: dict) -> None:
        """Takes a state of `state`. One of an earlier version starts with no colours; a broken one is a ValueError."""
        sums = state.get('sums', torch.zeros_like(self.sums))
        if sums.shape != self.sums.shape:
            raise ValueError(f'sums of shape {tuple(sums.shape)}')
        self.sums.copy_(sums)


def seen(colours: Sequence[Tensor]) -> Tensor:
    """Number, sum and sum of squares of colours [R, 3] of each pass and, last, of the targets: [3, P + 1, 3] float64.
    They add up over tiles, steps and processes. Float64 shows one differing ray among a million."""
    values = torch.stack([part.detach() for part in colours]).double()  # [P + 1, R, 3]
    total = values.sum(1)
    return torch.stack([torch.full_like(total, values.shape[1]), total, values.square().sum(1)])
