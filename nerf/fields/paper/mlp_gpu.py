"""The MLP as a field on a GPU, where products are cheap and passes over memory are not: few kernels, each layer and its
ReLU in one, and whole rays at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from nerf.fields.paper.mlp import ALIGN, FastMLPField

COLUMN_PARTS = 512  # in which biases' gradients are summed first: one sum over all points keeps few processors busy


class GpuMLPField(FastMLPField):
    """The fast field without what helps a CPU alone: all points go through the whole network.

    What the colour's hidden layer gets of a direction stands beside what it gets of the point. In training all rays of
    a call go through at once, as what they leave is kept in any case; else whole rays of at most `netchunk` points.
    """

    def raw(self, points: Tensor, viewdirs: Tensor | None, noise: Tensor | None = None) -> Tensor:
        n_rays, n_samples = points.shape[:2]
        at_once = max(n_rays if torch.is_grad_enabled() else self.netchunk // n_samples, 1)
        weights, alarm, dirs = self._layers(), self._alarm(points), None
        if self.embed_dirs is not None:
            alarm, dirs = alarm + 0.0 * viewdirs.detach().sum(-1)[:, None], self.embed_dirs(viewdirs)
        noise = alarm if noise is None else alarm + noise
        parts = []
        for start in range(0, n_rays, at_once):
            rows = slice(start, start + at_once)
            x, some = self._embedded(points[rows].flatten(0, 1)), None if dirs is None else dirs[rows]
            parts.append(_DenseMLP.apply(x, some, noise[rows].flatten(), n_samples, self._outputs, self.network.skips,
                                         self._depth, self.dtype, *weights))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(n_rays, n_samples, -1)

    @torch.no_grad()
    def density(self, points: Tensor) -> Tensor:
        weights, alarm, parts = _cast(self._layers(), self.dtype), self._alarm(points), []
        for part in points.split(self.netchunk):
            x = _padded_to(self._embedded(part), weights[0].shape[1], self.dtype)
            h = _trunk(x, weights[:2 * self._depth], self.network.skips)[1][-1]
            parts.append(F.linear(h, *weights[-2:])[:, 3])
        return (torch.cat(parts).float() + alarm).relu()

    @property
    def _outputs(self) -> int:
        return 4 if self.network.use_viewdirs else self.network.output_linear.out_features

    @property
    def _depth(self) -> int:
        return len(self.network.pts_linears)

    def _alarm(self, points: Tensor) -> Tensor:
        """[...]: 0, but NaN where a point [..., 3] or any weight is not finite, of which a layer's ReLU makes 0."""
        norms = torch._foreach_norm([parameter.detach() for parameter in self.network.parameters()])
        return 0.0 * (points.detach().sum(-1) + torch.stack(norms).sum())

    def _layers(self) -> list[Tensor]:
        """Float32 weights and biases, channels padded to multiples of ALIGN: of the trunk; with view directions of the
        colour's hidden layer, which takes the trunk's output and a direction, and of the colour; and of what the
        trunk's output has in raw itself."""
        network, layers = self.network, []
        n_points = network.pts_linears[0].in_features
        for i, layer in enumerate(network.pts_linears):
            weight = layer.weight
            if i == 0 or i - 1 in network.skips:
                weight = torch.cat([weight[:, :n_points], weight.new_zeros(len(weight), -n_points % ALIGN),
                                    weight[:, n_points:]], 1)
            layers += [weight, layer.bias]
        if not network.use_viewdirs:
            head = network.output_linear
            rows = -head.out_features % ALIGN
            return [*layers, F.pad(head.weight, (0, 0, 0, rows)), F.pad(head.bias, (0, rows))]
        views, feature, rgb, density = (network.views_linears[0], network.feature_linear, network.rgb_linear,
                                        network.alpha_linear)
        onto, dirs = views.weight.split([feature.out_features, views.in_features - feature.out_features], 1)
        hidden = torch.cat([onto @ feature.weight, F.pad(dirs, (0, -dirs.shape[1] % ALIGN))], 1)
        return [*layers, hidden, torch.addmv(views.bias, onto, feature.bias),
                F.pad(rgb.weight, (0, 0, 0, ALIGN - 3)), F.pad(rgb.bias, (0, ALIGN - 3)),
                F.pad(density.weight, (0, 0, 3, ALIGN - 4)), F.pad(density.bias, (3, ALIGN - 4))]


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Contiguous tensors in another precision, by one kernel for all."""
    if all(part.dtype == dtype for part in tensors):
        return list(tensors)
    cast = [torch.empty_like(part, dtype=dtype) for part in tensors]
    torch._foreach_copy_(cast, list(tensors))
    return cast


def _padded_to(x: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """x [N, C] in a precision, with zeros behind it: [N, channels]."""
    padded = torch.zeros(len(x), channels, dtype=dtype, device=x.device)
    padded[:, :x.shape[1]] = x
    return padded


def _linear_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch._addmm_activation(bias, x, weight.t())


def _trunk(x: Tensor, layers: Sequence[Tensor], skips: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of the layers, of encoded points x."""
    inputs, outputs = [x], []
    for i, (weight, bias) in enumerate(zip(layers[::2], layers[1::2])):
        outputs.append(_linear_relu(inputs[-1], weight, bias))
        inputs.append(torch.cat([x, outputs[-1]], 1) if i in skips else outputs[-1])
    return inputs[:-1], outputs


class _DenseMLP(torch.autograd.Function):
    """Encoded points to raw colour and density, with the backward pass written out."""

    @staticmethod
    def forward(ctx, x: Tensor, dirs: Tensor | None, noise: Tensor, n_samples: int, n_outputs: int, skips: list[int],
                depth: int, dtype: torch.dtype, *weights: Tensor) -> Tensor:
        """x [N, C] of rays with n_samples points each, encoded directions [R, D] of the rays, noise [N] on density, and
        what `_layers` gave, to raw [N, n_outputs]."""
        layers = _cast(weights, dtype)
        inputs, outputs = _trunk(_padded_to(x, layers[0].shape[1], dtype), layers[:2 * depth], skips)
        h, joined, hidden = outputs[-1], None, None
        raw = F.linear(h, *layers[-2:])
        if dirs is not None:
            into_hidden, hidden_bias, rgb_weight, rgb_bias = layers[2 * depth:-2]
            of_ray = _padded_to(dirs, into_hidden.shape[1] - h.shape[1], dtype)
            joined = torch.cat([h, of_ray[:, None].expand(-1, n_samples, -1).flatten(0, 1)], 1)
            hidden = _linear_relu(joined, into_hidden, hidden_bias)
            raw += F.linear(hidden, rgb_weight, rgb_bias)
        ctx.widths = x.shape[1], None if dirs is None else dirs.shape[1]
        ctx.n_samples, ctx.skips, ctx.depth, ctx.dtypes = n_samples, skips, depth, (x.dtype, weights[0].dtype)
        ctx.save_for_backward(joined, hidden, *inputs, *outputs, *layers)
        raw = raw[:, :n_outputs].to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        raw[:, 3] += noise
        return raw

    @staticmethod
    def backward(ctx, grad: Tensor):
        """The gradients of forward's arguments, from that of raw [N, n_outputs]."""
        joined, hidden, *saved = ctx.saved_tensors
        depth, (n_x, n_dirs) = ctx.depth, ctx.widths
        inputs, outputs, layers = saved[:depth], saved[depth:2 * depth], saved[2 * depth:]
        h, noise_grad, dirs_grad = outputs[-1], grad[:, 3], None
        raw_grad = F.pad(grad.to(h.dtype), (0, layers[-1].shape[0] - grad.shape[1]))
        grads, sums, grad = [raw_grad.t() @ h], [_part_sums(raw_grad)], raw_grad @ layers[-2]
        if hidden is not None:
            into_hidden, _, rgb_weight, _ = layers[2 * depth:-2]
            hidden_grad = _through_relu(raw_grad @ rgb_weight, hidden)
            grads = [hidden_grad.t() @ joined, raw_grad.t() @ hidden, *grads]
            sums = [_part_sums(hidden_grad), *sums, *sums]
            width = h.shape[1]
            grad = torch.addmm(grad, hidden_grad, into_hidden[:, :width])
            if ctx.needs_input_grad[1]:
                dirs_grad = (hidden_grad @ into_hidden[:, width:width + n_dirs]).float().unflatten(
                    0, (-1, ctx.n_samples)).sum(1)
        x_grad = torch.zeros_like(inputs[0]) if ctx.needs_input_grad[0] else None
        for i in reversed(range(depth)):
            grad, weight = _through_relu(grad, outputs[i]), layers[2 * i]
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
        return x_grad, dirs_grad, noise_grad, *[None] * 5, *_cast(of_layers, ctx.dtypes[1])


def _part_sums(x: Tensor) -> Tensor:
    """Sums over parts of N points of x [N, C], which together are the sum over all: [P, C] float32."""
    n_rows = len(x) - len(x) % COLUMN_PARTS
    parts = x[:n_rows].view(COLUMN_PARTS, n_rows // COLUMN_PARTS, x.shape[1]).sum(1, dtype=torch.float32)
    return parts if n_rows == len(x) else torch.cat([parts, x[n_rows:].sum(0, keepdim=True, dtype=torch.float32)])


def _through_relu(grad: Tensor, output: Tensor) -> Tensor:
    """The gradient before a ReLU of that behind it, where its output was positive."""
    return torch.ops.aten.threshold_backward(grad, output, 0.0)
