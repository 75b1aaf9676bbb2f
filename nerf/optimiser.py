"""Adam for any field: changing learning rates, skipped steps, and an average of the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from operator import itemgetter

import torch
from torch import Tensor, nn

from nerf.fields.interface import Training
from nerf.runtime.errors import UserError

BROKEN_STEPS = 10  # skipped steps in a row that end a run


class Optimiser:
    """Adam (Kingma & Ba 2015) with a gradient scaler in fp16, and the further optimisers of a training. A step is
    skipped, and changes no weight, if a loss or the gradient is not finite. A flag on the device tells the fused Adam,
    so that nothing waits for the GPU. `ema_decay` is the decay per step of the exponential moving average of the
    weights; 0: no average. `more_groups` are groups of parameters outside the field, with 'params' and 'rate'."""

    def __init__(self, training: Training, ema_decay: float = 0.0, more_groups: Iterable[dict] = ()):
        self.training, self.ema_decay, device = training, ema_decay, training.field.device
        groups = [*training.parameter_groups(), *more_groups]
        self.multiples = [1.0, *(group.pop('rate') for group in groups)]  # of the rate, for `more` and for groups
        self.rates = [torch.zeros((), device=device) for _ in self.multiples]  # tensors: a captured step reads them
        self.adam = torch.optim.Adam(groups, betas=(0.9, 0.999), fused=True, capturable=device.type == 'cuda')
        self.more = training.more_optimisers()
        self.scaler = torch.amp.GradScaler(device.type, enabled=training.field.dtype == torch.float16)
        self.names, self.broken = [], torch.zeros(0, device=device)  # broken steps in a row, by loss and gradient
        self.averages = [p.detach().clone() for p in self._parameters()] if ema_decay else []
        self.share = torch.zeros((), device=device)  # of the newest weights in the average

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.adam.param_groups for parameter in group['params']]

    def prepare(self, step: int, rate: float) -> None:
        """Sets the learning rate of a step, counted from 1, and the share of the newest weights in the average. The
        share is larger in the first steps, so that the average soon forgets the initial weights."""
        for tensor, multiple in zip(self.rates, self.multiples):
            tensor.fill_(rate * multiple)
        self.share.fill_(1.0 - min(self.ema_decay, step / (step + 9.0)))

    def zero_grad(self) -> None:
        """Forgets the gradient of the step before."""
        for optimiser in (self.adam, *self.more):
            optimiser.zero_grad()

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a scalar loss to the gradient of the weights."""
        self.scaler.scale(loss).backward()

    def gradients(self) -> list[Tensor]:
        """Gradients of the parameters. A parameter without a gradient is left out."""
        return [parameter.grad for parameter in self._parameters() if parameter.grad is not None]

    def step(self, losses: dict[str, Tensor]) -> None:
        """Changes the weights by their gradient, or skips the step. Losses are scalars by name."""
        if not self.names:
            self.names = [*(f'the loss {name}' for name in losses), 'the gradient']
            self.broken = torch.zeros(len(self.names), device=self.broken.device)
        for optimiser in self.more:
            self.scaler.unscale_(optimiser)
            optimiser.param_groups[0]['lr'] = self.rates[0]
        for group, rate in zip(self.adam.param_groups, self.rates[1:]):
            group['lr'] = rate
        values = torch.stack([*losses.values()])
        size = torch.stack([*torch._foreach_norm(self.gradients()),
                            *(optimiser.complete_gradients() for optimiser in self.more)]).sum()
        if self.scaler.is_enabled():  # overflows in the gradient are how the scaler finds its scale
            size = torch.zeros_like(size)
        else:
            found_inf = (~torch.isfinite(values.sum() + size)).float()
            for optimiser in (self.adam, *self.more):
                optimiser.found_inf = found_inf
        self.broken.copy_((self.broken + 1) * ~torch.isfinite(torch.cat([values, size[None]])))
        for optimiser in (self.adam, *self.more):
            self.scaler.step(optimiser)
        self.scaler.update()
        for average, parameter in zip(self.averages, self._parameters()):
            average.lerp_(parameter.detach(), self.share)

    def check(self, step: int) -> list[str]:
        """Line for the log if the last step was skipped, else none. On a GPU, for which this waits, one step in
        BROKEN_STEPS is checked. UserError: BROKEN_STEPS steps in a row were skipped."""
        if self.broken.device.type != 'cpu' and step % BROKEN_STEPS:
            return []
        count, name = max(zip(self.broken.tolist(), self.names), key=itemgetter(0))  # waits for the GPU
        if count >= BROKEN_STEPS:
            raise UserError(f'step {step}: {name} was not finite {count:.0f} times in a row; the newest checkpoint is '
                            f'good: start again with a lower lrate, or in fp32')
        return [f'step {step}: {name} is not finite; the step was skipped'] if count else []

    def capture_failed(self) -> None:
        """Clears the traces of a step that was broken off between scaler and Adam."""
        for name in ('grad_scale', 'found_inf'):
            for optimiser in (self.adam, *self.more):
                vars(optimiser).pop(name, None)
        state = self.scaler.state_dict()
        self.scaler = torch.amp.GradScaler(self.broken.device.type, enabled=self.scaler.is_enabled())
        if state:
            self.scaler.load_state_dict(state)

    @torch.no_grad()
    def averaged_field(self) -> nn.Module:
        """Copy of the field with averaged weights; without an average, the field itself."""
        field = self.training.field
        if not self.averages:
            return field
        shown, averages = copy.deepcopy(field), dict(zip(map(id, self._parameters()), self.averages))
        for ours, theirs in zip(field.parameters(), shown.parameters()):
            theirs.copy_(averages.get(id(ours), ours))  # parameters outside all groups are not trained
        return shown

    @torch.no_grad()
    def load_average(self, checkpoint: dict) -> None:
        """Takes the average of a checkpoint, its entry 'averaged'; without it, the average starts from the weights."""
        if not self.averages:
            return
        field = copy.deepcopy(self.training.field)
        if isinstance(averaged := checkpoint.get('averaged'), dict):
            field.load_weights(averaged)
        theirs = dict(zip(map(id, self.training.field.parameters()), field.parameters()))
        self.averages = [theirs.get(id(parameter), parameter).detach().clone() for parameter in self._parameters()]

    def state_dict(self) -> dict:
        """Adam's state for a checkpoint. Learning rates are plain numbers, as the reference code reads them."""
        state = self.adam.state_dict()
        for group in state['param_groups']:
            group['lr'] = float(group['lr'])  # a tensor while training
        return state

    def load_state_dict(self, saved: dict) -> None:
        """Takes Adam's running means from a saved state. ValueError, LookupError, TypeError, ...: it is broken."""
        state, parameters = {}, self._parameters()
        keys = [key for group in saved['param_groups'] for key in group['params']]
        if len(keys) != len(parameters):
            raise ValueError(f'it has {len(keys)} parameters, not {len(parameters)}')
        for i, (key, parameter) in enumerate(zip(keys, parameters)):
            if key not in saved['state']:
                continue
            mean, square, step = (saved['state'][key][name] for name in ('exp_avg', 'exp_avg_sq', 'step'))
            if not all(is_real(part) and part.shape == parameter.shape for part in (mean, square)):
                raise ValueError(f'parameter {i} is not of shape {tuple(parameter.shape)}')
            if not 0 <= (step := float(step)) < 2 ** 31:
                raise ValueError(f'parameter {i} has step {step}')
            state[i] = {'step': torch.tensor(step), 'exp_avg': mean, 'exp_avg_sq': square}
        self.adam.load_state_dict({'state': state, 'param_groups': self.adam.state_dict()['param_groups']})


def is_real(value) -> bool:
    """Whether a value is a dense tensor of real numbers on the CPU, as fused Adam needs and does not check."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.layout == torch.strided and value.is_cpu
