"""Adam for the rows of a grid: a step changes only rows that its rays touched."""

import torch
from torch import Tensor

from nerf.fields.grid.backend import CHANNELS, Backend, row_tensor
from nerf.fields.grid.schedule import GridSchedule
from nerf.files.packing import packed, unpacked
from nerf.optimiser import is_real

PACKED = {'means': 'exp_avg', 'squares': 'exp_avg_sq', 'strongest': 'strongest'}  # names in a checkpoint, and here


class RowAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015) of the rows that a step touched; other rows and their running means stay.

    The learning rate is `lr` of its one group; each channel has a multiple of it. As for fused optimisers of PyTorch, a
    step with a `found_inf` other than 0 changes no row. Unlike there, gradients are unscaled before
    `complete_gradients`. The rate of densities rises for `rise` steps; 0: it is full from the start."""
    _step_supports_amp_scaling = True  # a gradient scaler sets `found_inf`, and does not wait for the device

    def __init__(self, backend: Backend, schedule: GridSchedule, rise: float = 0.0):
        super().__init__([backend.rows], {'lr': torch.zeros((), device=backend.rows.device)})
        device, rates = backend.rows.device, (schedule.rate_density, schedule.rate_colour, schedule.rate_features)
        self.rates = torch.tensor(rates, device=device)[[0, 1, 1, 1, *[2] * (CHANNELS - 4)]]
        self.smoothness = torch.tensor([schedule.smooth_density, *[schedule.smooth_others] * (CHANNELS - 1)],
                                       device=device)
        self.schedule = schedule
        self.take(backend, rise)

    def take(self, backend: Backend, rise: float = 0.0) -> None:
        """Begins anew with the rows of another grid."""
        self.backend, self.rise = backend, rise
        self.param_groups[0]['params'] = [backend.rows]
        self.state.clear()
        n_rows, device = len(backend.rows), backend.rows.device
        self.state[backend.rows] = {
            'step': torch.zeros((), dtype=torch.long, device=device),
            'exp_avg': row_tensor(None, (n_rows, CHANNELS), device),
            'exp_avg_sq': row_tensor(None, (n_rows, CHANNELS), device),
            'strongest': row_tensor(None, (n_rows,), device)}  # largest weight of a sample around a row

    def release(self) -> None:
        """Frees the memory of the state, before `take`."""
        self.state.clear()
        self.backend, self.param_groups[0]['params'] = None, []

    @property
    def running(self) -> dict[str, Tensor]:
        """State of the rows: 'step', the running means 'exp_avg' and 'exp_avg_sq', and 'strongest'."""
        return self.state[self.backend.rows]

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.backend.clear_gradient()

    @torch.no_grad()
    def complete_gradients(self) -> Tensor:
        """Adds the pull of neighbouring rows along x, y or z in turn. Returns a finite scalar if all gradients are."""
        self.running['step'] += 1
        return self.backend.smooth(self.smoothness, self.running['step'] % 3)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Moves the touched rows and clears their gradients. `complete_gradients` comes before."""
        rates, state, schedule = self.rates * self.param_groups[0]['lr'], self.running, self.schedule
        if self.rise:
            rates[0] *= (schedule.slow_start + state['step'] / self.rise).clamp(max=1.0)
        skip = getattr(self, 'found_inf', None)
        self.backend.adam(state, rates, (schedule.beta_mean, schedule.beta_square), schedule.epsilon,
                          torch.zeros_like(rates[0]) if skip is None else skip)

    def packed_state(self) -> dict:
        """Running means of the rows that a ray touched since they began; they are 0 in all others. After a skipped step
        some rows have a weight alone."""
        means, squares, strongest = (self.running[name] for name in PACKED.values())
        touched = ((means != 0) | (squares != 0)).any(-1) | (strongest != 0)
        return {**{name: packed(self.running[ours][touched].cpu()) for name, ours in PACKED.items()},
                'touched': packed(touched.cpu()), 'adam_steps': int(self.running['step'])}

    def load_packed_state(self, state: dict) -> None:
        """Takes a result of `packed_state`. A broken one raises AttributeError, LookupError, RuntimeError, TypeError or
        ValueError, and changes nothing."""
        strongest, values = self.running['strongest'], {}
        touched = unpacked(state['touched'], strongest.shape, torch.uint8).to(strongest.device) != 0
        if not 0 <= state['adam_steps'] < 2 ** 31:
            raise ValueError(f"{state['adam_steps']} steps")
        for name, ours in PACKED.items():
            shape = (int(touched.sum()), *self.running[ours].shape[1:])
            values[ours] = unpacked(state[name], shape, torch.float32)
            if not is_real(values[ours]):
                raise ValueError(f'{name} that are no real numbers')
        self.running['step'].fill_(int(state['adam_steps']))
        for name, part in values.items():
            self.running[name].zero_()
            self.running[name][touched] = part.to(self.running[name])
