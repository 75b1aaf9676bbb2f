"""Adam for the rows of a grid: a step changes only rows that its rays touched."""

from __future__ import annotations

import torch
from torch import Tensor

from nerf.fields.grid.backend import CHANNELS, Backend, row_tensor
from nerf.fields.grid.schedule import GridSchedule


class RowAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015) of the rows that a step touched; other rows and their running means stay.

    The learning rate is `lr` of its one group; each channel has a multiple of it. As for fused optimisers of PyTorch, a
    step with a `found_inf` other than 0 changes no row. Unlike there, gradients are unscaled before
    `complete_gradients`.

    Args:
        backend: the grid and its rows.
        schedule: rates, betas, epsilon and smoothness.
        rise: steps in which the rate of densities rises to its full value; 0: it is full from the start.
    """

    _step_supports_amp_scaling = True  # a gradient scaler sets `found_inf`, and does not wait for the device

    def __init__(self, backend: Backend, schedule: GridSchedule, rise: float = 0.0):
        super().__init__([backend.rows], {'lr': torch.zeros((), device=backend.rows.device)})
        device, others = backend.rows.device, CHANNELS - 4
        self.rates = torch.tensor([schedule.rate_density, *3 * [schedule.rate_colour],
                                   *others * [schedule.rate_features]], device=device)
        self.smoothness = torch.tensor([schedule.smooth_density, *(CHANNELS - 1) * [schedule.smooth_others]],
                                       device=device)
        self.schedule = schedule
        self.take(backend, rise)

    def take(self, backend: Backend, rise: float = 0.0) -> None:
        """Begins anew, with the rows of another grid."""
        self.backend, self.rise = backend, rise
        self.param_groups[0]['params'] = [backend.rows]
        self.state.clear()
        n_rows, device = len(backend.rows), backend.rows.device
        self.state[backend.rows] = {
            'step': torch.zeros((), dtype=torch.long, device=device),
            'exp_avg': row_tensor(None, (n_rows, CHANNELS), device),
            'exp_avg_sq': row_tensor(None, (n_rows, CHANNELS), device),
            'strongest': row_tensor(None, (n_rows,), device)}  # largest weight of a sample around a row

    @property
    def running(self) -> dict[str, Tensor]:
        """State of the rows: 'step', the running means 'exp_avg' and 'exp_avg_sq', and 'strongest'."""
        return self.state[self.backend.rows]

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.backend.clear_gradient()

    @torch.no_grad()
    def complete_gradients(self) -> Tensor:
        """Adds the pull of neighbouring rows, along one axis: x, y and z take turns.

        Returns:
            a scalar that is finite if all gradients are.
        """
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
