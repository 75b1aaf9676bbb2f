"""Adam for any field: rates that change, steps that are skipped, and an average of the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from operator import itemgetter

import torch
from torch import Tensor, nn

from nerf.fields.interface import Training
from nerf.runtime.errors import UserError

BROKEN_STEPS = 10  # steps in a row with a loss or gradient that is not finite, after which a run ends


class Optimiser:
    """Adam (Kingma & Ba 2015) with a gradient scaler in fp16, and what other optimisers a training has.

    A step whose losses or gradient are not finite changes no weights: a flag on the device tells the fused Adam, so
    nothing waits for the GPU.

    Args:
        training: its parameter groups are optimised.
        ema_decay: decay of the exponential moving average of the weights; 0: no average.
        more_groups: further groups like the training's, of parameters that are not the field's.
    """

    def __init__(self, training: Training, ema_decay: float = 0.0, more_groups: Iterable[dict] = ()):
        self.training, self.ema_decay, device = training, ema_decay, training.field.device
        groups = [*training.parameter_groups(), *more_groups]
        self.multiples = [group.pop('rate') for group in groups]
        self.rate = torch.zeros((), device=device)  # tensors: a captured step reads them
        self.rates = [torch.zeros((), device=device) for _ in groups]
        self.adam = torch.optim.Adam(groups, betas=(0.9, 0.999), fused=True, capturable=device.type == 'cuda')
        self.more = training.more_optimisers()
        self.scaler = torch.amp.GradScaler(device.type, enabled=training.field.dtype == torch.float16)
        self.names, self.broken = [], torch.zeros(0, device=device)  # steps in a row: of each loss, and of the gradient
        self.averages = [p.detach().clone() for p in self._parameters()] if ema_decay else []
        self.share = torch.zeros((), device=device)  # of the newest weights in the average

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.adam.param_groups for parameter in group['params']]

    def prepare(self, step: int, rate: float) -> None:
        """Sets what depends on the step, counted from 1: the learning rate, and the average's share, which is larger
        in the first steps so that the initial weights are soon forgotten."""
        self.rate.fill_(rate)
        for tensor, multiple in zip(self.rates, self.multiples):
            tensor.fill_(rate * multiple)
        self.share.fill_(1.0 - min(self.ema_decay, step / (step + 9.0)))

    def zero_grad(self) -> None:
        for optimiser in (self.adam, *self.more):
            optimiser.zero_grad()

    def backward(self, loss: Tensor) -> None:
        """Adds a scalar's gradient to that of the weights."""
        self.scaler.scale(loss).backward()

    def gradients(self) -> list[Tensor]:
        """Those of all parameters that have one."""
        return [parameter.grad for parameter in self._parameters() if parameter.grad is not None]

    def step(self, losses: dict[str, Tensor]) -> None:
        """Changes the weights by their gradient, unless it or a loss is not finite."""
        if not self.names:
            self.names = [*(f'the loss {name}' for name in losses), 'the gradient']
            self.broken = torch.zeros(len(self.names), device=self.broken.device)
        for optimiser in self.more:
            self.scaler.unscale_(optimiser)
            optimiser.param_groups[0]['lr'] = self.rate
        for group, rate in zip(self.adam.param_groups, self.rates):
            group['lr'] = rate
        values = torch.stack([*losses.values()])
        size = torch.stack([*torch._foreach_norm(self.gradients()),
                            *(optimiser.complete_gradients() for optimiser in self.more)]).sum()
        if self.scaler.is_enabled():  # it meets overflows in the gradient itself: they are how it finds its scale
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
        """A line where the last step was skipped; on a GPU, which this waits for, only every BROKEN_STEPS steps.

        Raises:
            UserError: it is the BROKEN_STEPS-th in a row.
        """
        if self.broken.device.type != 'cpu' and step % BROKEN_STEPS:
            return []
        count, name = max(zip(self.broken.tolist(), self.names), key=itemgetter(0))  # waits for the GPU
        if count >= BROKEN_STEPS:
            raise UserError(f'step {step}: {name} was not finite {count:.0f} times in a row; the newest checkpoint is '
                            f'good: start again with a lower lrate, or in fp32')
        return [f'step {step}: {name} is not finite; the step was skipped'] if count else []

    def capture_failed(self) -> None:
        """Clears what a step that was broken off between scaler and optimisers has left there."""
        for name in ('grad_scale', 'found_inf'):
            for optimiser in (self.adam, *self.more):
                vars(optimiser).pop(name, None)
        state = self.scaler.state_dict()
        self.scaler = torch.amp.GradScaler(self.broken.device.type, enabled=self.scaler.is_enabled())
        if state:
            self.scaler.load_state_dict(state)

    # The average

    @torch.no_grad()
    def averaged_field(self) -> nn.Module:
        """A copy of the field with the averaged weights; the field itself where there is no average."""
        field = self.training.field
        if not self.averages:
            return field
        shown, averages = copy.deepcopy(field), dict(zip(map(id, self._parameters()), self.averages))
        for ours, theirs in zip(field.parameters(), shown.parameters()):
            theirs.copy_(averages.get(id(ours), ours))  # a parameter in no group is not trained
        return shown

    @torch.no_grad()
    def load_average(self, checkpoint: dict) -> None:
        """Takes the average that a checkpoint holds under 'averaged', or starts one from the present weights."""
        if not self.averages:
            return
        field = copy.deepcopy(self.training.field)
        if isinstance(averaged := checkpoint.get('averaged'), dict):
            field.load_weights(averaged)
        theirs = dict(zip(map(id, self.training.field.parameters()), field.parameters()))
        self.averages = [theirs.get(id(parameter), parameter).detach().clone() for parameter in self._parameters()]

    # What checkpoints hold

    def state_dict(self) -> dict:
        """Adam's state with plain numbers as rates, as the reference code reads it."""
        state = self.adam.state_dict()
        for group in state['param_groups']:
            group['lr'] = float(group['lr'])  # a tensor in training
        return state

    def load_state_dict(self, saved: dict) -> None:
        """Restores Adam's running means.

        Raises:
            ValueError, LookupError, TypeError, ...: they are broken or of other weights.
        """
        state, parameters = {}, self._parameters()
        ours = self.adam.state_dict()['param_groups']
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
        self.adam.load_state_dict({'state': state, 'param_groups': ours})


def is_real(value) -> bool:
    """Whether it is a plain tensor of real numbers in memory: fused Adam does not look and would overwrite others."""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.layout == torch.strided and (
        value.device.type == 'cpu')
