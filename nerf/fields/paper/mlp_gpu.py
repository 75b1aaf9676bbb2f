"""MLP of the paper as a field on a GPU: few kernels, because passes over memory cost more there than products."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from nerf.fields.interface import pieces
from nerf.fields.paper.mlp import ALIGN, MLPField, padded_channels, split_views_weight, through_relu, trunk_layers
from run_nerf_helpers import raw2density

COLUMN_PARTS = 512  # partial sums of the biases' gradients: a single sum over all points keeps few processors busy


class GpuMLPField(MLPField):
    """`MLPField` on a GPU, with forward and backward pass by hand: all points go through the whole network.

    The colour's hidden layer takes the encoded direction beside the trunk's output. In training, all rays of a call go
    through at once, as their activations are kept in any case; else whole rays of at most `netchunk` points."""

    def raw(self, points: Tensor, viewdirs: Tensor | None, noise: Tensor | None = None) -> Tensor:
        n_rays, n_samples = points.shape[:2]
        at_once = max(n_rays if torch.is_grad_enabled() else self.netchunk // n_samples, 1)
        n_outputs = 4 if self.network.use_viewdirs else self.network.output_linear.out_features
        depth, weights, alarm, dirs = len(self.network.pts_linears), self._layers(), self.alarm(points), None
        if self.embed_dirs is not None:
            alarm, dirs = alarm + 0.0 * viewdirs.detach().sum(-1)[:, None], self.embed_dirs(viewdirs)
        parts = []
        for rows in pieces(n_rays, at_once):
            x, some = self.embedded(points[rows].flatten(0, 1)), None if dirs is None else dirs[rows]
            parts.append(_DenseMLP.apply(x, some, alarm[rows].flatten(), n_samples, n_outputs, self.network.skips,
                                         depth, self.dtype, *weights))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(n_rays, n_samples, -1)

    @torch.no_grad()
    def density(self, points: Tensor) -> Tensor:
        weights, alarm, parts = _cast(self._layers(), self.dtype), self.alarm(points), []
        trunk = weights[:2 * len(self.network.pts_linears)]
        for part in points.split(self.netchunk):
            x = _padded_to(self.embedded(part), weights[0].shape[1], self.dtype)
            h = _trunk(x, trunk, self.network.skips)[1][-1]
            parts.append(F.linear(h, *weights[-2:])[:, 3])
        return raw2density(torch.cat(parts).float() + alarm)

    def _layers(self) -> list[Tensor]:
        """Float32 weights and biases, with channels padded to multiples of ALIGN: the trunk's; with directions those of
        the colour's hidden layer, which takes the trunk's output and a direction, and of the colour; then the head's
        from the trunk's output to raw output."""
        network, layers = self.network, trunk_layers(self.network)
        if not network.use_viewdirs:
            head = network.output_linear
            rows = -head.out_features % ALIGN
            return [*layers, F.pad(head.weight, (0, 0, 0, rows)), F.pad(head.bias, (0, rows))]
        feature, rgb, density = network.feature_linear, network.rgb_linear, network.alpha_linear
        onto, dirs = split_views_weight(network)
        hidden = torch.cat([onto @ feature.weight, padded_channels(dirs)], 1)
        return [*layers, hidden, torch.addmv(network.views_linears[0].bias, onto, feature.bias),
                F.pad(rgb.weight, (0, 0, 0, ALIGN - 3)), F.pad(rgb.bias, (0, ALIGN - 3)),
                F.pad(density.weight, (0, 0, 3, ALIGN - 4)), F.pad(density.bias, (3, ALIGN - 4))]


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Tensors in another precision, contiguous, by one kernel for all of them."""
    if all(part.dtype == dtype for part in tensors):
        return list(tensors)
    cast = [torch.empty_like(part, dtype=dtype) for part in tensors]
    torch._foreach_copy_(cast, list(tensors))
    return cast


def _padded_to(x: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """x [N, C] in another precision, with zeros behind it: [N, channels]."""
    padded = torch.zeros(len(x), channels, dtype=dtype, device=x.device)
    padded[:, :x.shape[1]] = x
    return padded


def _trunk(x: Tensor, layers: Sequence[Tensor], skips: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of the trunk's layers for encoded points x [N, C]."""
    inputs, outputs = [x], []
    for i, (weight, bias) in enumerate(zip(layers[::2], layers[1::2])):
        outputs.append(torch._addmm_activation(bias, inputs[-1], weight.t()))
        inputs.append(torch.cat([x, outputs[-1]], 1) if i in skips else outputs[-1])
    return inputs[:-1], outputs


class _DenseMLP(torch.autograd.Function):
    """Encoded points to raw colour and density, with the backward pass written out."""
    @staticmethod
    def forward(ctx, x: Tensor, dirs: Tensor | None, alarm: Tensor, n_samples: int, n_outputs: int, skips: list[int],
                depth: int, dtype: torch.dtype, *weights: Tensor) -> Tensor:
        """Raw output [N, n_outputs] of encoded points x [N, C] of rays with n_samples points each, encoded directions
        [R, D] of the rays, `alarm` [N] and `_layers`, by products in `dtype`."""
        layers = _cast(weights, dtype)
        inputs, outputs = _trunk(_padded_to(x, layers[0].shape[1], dtype), layers[:2 * depth], skips)
        h, joined, hidden = outputs[-1], None, None
        raw = F.linear(h, *layers[-2:])
        if dirs is not None:
            into_hidden, hidden_bias, rgb_weight, rgb_bias = layers[2 * depth:-2]
            of_ray = _padded_to(dirs, into_hidden.shape[1] - h.shape[1], dtype)
            joined = torch.cat([h, of_ray[:, None].expand(-1, n_samples, -1).flatten(0, 1)], 1)
            hidden = torch._addmm_activation(hidden_bias, joined, into_hidden.t())
            raw += F.linear(hidden, rgb_weight, rgb_bias)
        ctx.widths = x.shape[1], None if dirs is None else dirs.shape[1]
        ctx.n_samples, ctx.skips, ctx.depth, ctx.dtypes = n_samples, skips, depth, (x.dtype, weights[0].dtype)
        ctx.save_for_backward(joined, hidden, *inputs, *outputs, *layers)
        raw = raw[:, :n_outputs].to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        raw[:, 3] += alarm
        return raw

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Gradients of forward's arguments, from the gradient [N, n_outputs] of raw output."""
        joined, hidden, *saved = ctx.saved_tensors
        depth, (n_x, n_dirs) = ctx.depth, ctx.widths
        inputs, outputs, layers = saved[:depth], saved[depth:2 * depth], saved[2 * depth:]
        h, dirs_grad = outputs[-1], None
        raw_grad = F.pad(grad.to(h.dtype), (0, layers[-1].shape[0] - grad.shape[1]))
        grads, sums, grad = [raw_grad.t() @ h], [_part_sums(raw_grad)], raw_grad @ layers[-2]
        if hidden is not None:
            into_hidden, _, rgb_weight, _ = layers[2 * depth:-2]
            hidden_grad = through_relu(raw_grad @ rgb_weight, hidden)
            grads = [hidden_grad.t() @ joined, raw_grad.t() @ hidden, *grads]
            sums = [_part_sums(hidden_grad), *sums, *sums]
            width = h.shape[1]
            grad = torch.addmm(grad, hidden_grad, into_hidden[:, :width])
            if ctx.needs_input_grad[1]:
                dirs_grad = (hidden_grad @ into_hidden[:, width:width + n_dirs]).float().unflatten(
                    0, (-1, ctx.n_samples)).sum(1)
        x_grad = torch.zeros_like(inputs[0]) if ctx.needs_input_grad[0] else None
        for i in reversed(range(depth)):
            grad, weight = through_relu(grad, outputs[i]), layers[2 * i]
            grads, sums = [grad.t() @ inputs[i], *grads], [_part_sums(grad), *sums]
            fed = inputs[0].shape[1] if i == 0 or i - 1 in ctx.skips else 0  # channels that come from x itself
            if fed and x_grad is not None:
                x_grad = x_grad + grad @ weight[:, :fed]
            if i > 0:
                grad = grad @ weight[:, fed:]
        if x_grad is not None:
            x_grad = x_grad[:, :n_x].to(ctx.dtypes[0])
        sums = torch.cat(sums, 1).sum(0).split([part.shape[1] for part in sums])
        of_layers = [part.contiguous() for pair in zip(grads, sums) for part in pair]
        return (x_grad, dirs_grad, None, None, None, None, None, None, *_cast(of_layers, ctx.dtypes[1]))


def _part_sums(x: Tensor) -> Tensor:
    """Partial sums of x [N, C] over its N points: [P, C] float32, whose sum is the sum over all points."""
    n_rows = len(x) - len(x) % COLUMN_PARTS
    parts = x[:n_rows].view(COLUMN_PARTS, n_rows // COLUMN_PARTS, x.shape[1]).sum(1, dtype=torch.float32)
    return parts if n_rows == len(x) else torch.cat([parts, x[n_rows:].sum(0, keepdim=True, dtype=torch.float32)])
