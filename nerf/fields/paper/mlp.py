"""MLP of the paper as a field of points and directions: by the network's own `forward`, and faster on a CPU."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nerf.fields.interface import pieces
from nerf.space import Space
from run_nerf_helpers import NeRF, raw2colour, raw2density

ALIGN = 8  # channels of encodings are padded to a multiple of this number: GPUs are slow with odd numbers in 16 bits
ROWS = 512  # kept points are padded to a multiple of this number: each new size costs oneDNN new code, time and memory


class MLPField(nn.Module):
    """Raw colour and raw density of points seen from directions (section 3), by the network's own `forward`.

    Args:
        embed_points, embed_dirs: encodings of points and of directions; embed_dirs None: no directions.
        netchunk: most points through the network at once.
        dtype: precision of the MLP's products. Encodings and outputs are float32 in any case.
        space: gives points the coordinates that are encoded; None: points stay as they are.
    """

    def __init__(self, network: NeRF, embed_points, embed_dirs, netchunk: int = 65536,
                 dtype: torch.dtype = torch.float32, space: Space | None = None):
        super().__init__()
        self.network, self.embed_points, self.embed_dirs = network, embed_points, embed_dirs
        self.netchunk, self.dtype, self.space = netchunk, dtype, space

    def raw(self, points: Tensor, viewdirs: Tensor | None, noise: Tensor | None = None) -> Tensor:
        """Raw colour and raw density [R, S, 4 or 5] float32, as for `raw2outputs`.

        Args:
            points: [R, S, 3] in ray coordinates.
            viewdirs: [R, 3] of unit length; None: the network uses no directions.
            noise: [R, S] noise of the compositor, which is not added here. Points without density behind the noise need
                no colour, and faster fields give them none.
        """
        n_samples, flat = points.shape[-2], points.reshape(-1, 3)
        dirs = None if self.embed_dirs is None else self.embed_dirs(viewdirs)
        parts = []
        for rows in torch.arange(len(flat), device=points.device).split(self.netchunk):
            x = self.embedded(flat[rows])
            if dirs is not None:
                x = torch.cat([x, dirs[rows // n_samples]], -1)
            with torch.autocast(points.device.type, self.dtype, enabled=self.dtype != torch.float32):
                parts.append(self.network(x).float())
        return torch.cat(parts).reshape(*points.shape[:-1], -1)

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        """Colour [R, S, 3] and density [R, S] at points [R, S, 3] seen from directions [R, 3]."""
        raw = self.raw(points, viewdirs)
        return raw2colour(raw[..., :3]), raw2density(raw[..., 3])

    @torch.no_grad()
    def density(self, points: Tensor) -> Tensor:
        """Density [N] in 1/scene unit, float32, at points [N, 3] in ray coordinates."""
        return raw2density(self.raw(points[:, None], torch.zeros_like(points))[:, 0, 3])

    def embedded(self, points: Tensor) -> Tensor:
        """Encoding [N, C] of points [N, 3]."""
        return self.embed_points(points if self.space is None else self.space.to_field(points))

    def alarm(self, points: Tensor) -> Tensor:
        """Alarm [...]: NaN if a point [..., 3] or any weight is not finite, else 0. A fused ReLU would make NaN a 0."""
        norms = torch._foreach_norm([parameter.detach() for parameter in self.network.parameters()])
        return 0.0 * (points.detach().sum(-1) + torch.stack(norms).sum())


class FastMLPField(MLPField):
    """`MLPField` on a CPU, with forward and backward pass by hand.

    The feature layer has no activation, so it is merged with the layer behind it. The direction's part of that layer is
    computed once for each ray. Points without density get no colour, and points without a gradient have no part in the
    backward pass."""

    def raw(self, points: Tensor, viewdirs: Tensor | None, noise: Tensor | None = None) -> Tensor:
        weights, terms, keep = self._weights(), self._ray_terms(viewdirs), torch.is_grad_enabled()
        depth, flat, n_samples, parts = len(self.network.pts_linears), points.reshape(-1, 3), points.shape[-2], []
        alarm, noise = self.alarm(flat), None if noise is None else noise.flatten()
        for part in pieces(len(flat), self.netchunk):
            ray = torch.arange(part.start, part.stop, device=points.device) // n_samples
            parts.append(_MLP.apply(self._encoded(flat[part]), alarm[part], None if noise is None else noise[part],
                                    terms, ray, self.network.skips, depth, keep, *weights))
        return torch.cat(parts).reshape(*points.shape[:-1], -1)

    @torch.no_grad()
    def density(self, points: Tensor) -> Tensor:
        weights, depth, parts = self._weights(), len(self.network.pts_linears), []
        density = 0 if self.network.use_viewdirs else 3  # row of density among the outputs of the first head
        for part in points.split(self.netchunk):
            _, h = _trunk(self._encoded(part), weights[:2 * depth], self.network.skips, False)
            parts.append(F.linear(h, *weights[2 * depth:2 * depth + 2])[:, density])
        return raw2density(torch.cat(parts).float() + self.alarm(points))

    def _encoded(self, points: Tensor) -> Tensor:
        """Input [N, C] of the trunk for points [N, 3]: the encoding, padded to a multiple of ALIGN."""
        return padded_channels(self.embedded(points).to(self.dtype))

    def _weights(self) -> list[Tensor]:
        """Weights and biases in the products' precision: those of the trunk's layers, then those of the heads."""
        network, weights = self.network, trunk_layers(self.network)
        if network.use_viewdirs:
            onto, _ = split_views_weight(network)
            weights += [network.alpha_linear.weight, network.alpha_linear.bias, onto @ network.feature_linear.weight,
                        network.rgb_linear.weight, network.rgb_linear.bias]
        else:
            weights += [network.output_linear.weight, network.output_linear.bias]
        return [part.to(self.dtype) for part in weights]

    def _ray_terms(self, viewdirs: Tensor | None) -> Tensor | None:
        """Part [R, W / 2] of the input of the colour's hidden layer that all points of a ray share."""
        if self.embed_dirs is None:
            return None
        onto, dirs = split_views_weight(self.network)
        bias = self.network.views_linears[0].bias + onto @ self.network.feature_linear.bias
        return F.linear(self.embed_dirs(viewdirs), dirs, bias).to(self.dtype)


# Parts that the fields of all devices share

def padded_channels(x: Tensor) -> Tensor:
    """x [N, C] with channels of zeros behind it, up to a multiple of ALIGN."""
    return F.pad(x, (0, -x.shape[-1] % ALIGN))


def trunk_layers(network: NeRF) -> list[Tensor]:
    """Weight and bias of each layer of the trunk, with columns of zeros for the padding of an encoded point."""
    n, layers = network.pts_linears[0].in_features, []
    for i, layer in enumerate(network.pts_linears):
        weight = layer.weight
        if i == 0 or i - 1 in network.skips:
            weight = torch.cat([padded_channels(weight[:, :n]), weight[:, n:]], 1)
        layers += [weight, layer.bias]
    return layers


def split_views_weight(network: NeRF) -> tuple[Tensor, Tensor]:
    """Weight of the colour's hidden layer in two parts: columns of the feature, and columns of the direction."""
    views, feature = network.views_linears[0], network.feature_linear
    return views.weight.split([feature.out_features, views.in_features - feature.out_features], 1)


def through_relu(grad: Tensor, output: Tensor) -> Tensor:
    """Gradient before a ReLU, from the gradient behind it and the ReLU's output."""
    return torch.ops.aten.threshold_backward(grad, output, 0.0)


def padded_rows(mask: Tensor, multiple: int) -> Tensor:
    """Indices of the set rows of a mask [N], then of others until their number is a multiple of `multiple` or N."""
    rows = mask.nonzero()[:, 0]
    return torch.cat([rows, (~mask).nonzero()[:-len(rows) % multiple, 0]])


# Forward and backward pass on a CPU

def _fused_precisions() -> tuple[torch.dtype, ...]:
    """Precisions in which oneDNN has one kernel for a layer and its ReLU, by its name in torch.compile."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_linear_pointwise')):
        return ()
    return (torch.float32, torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)


FUSED = _fused_precisions()


def linear_relu(x: Tensor, weight: Tensor, bias: Tensor, fused: Sequence[torch.dtype] = FUSED) -> Tensor:
    """relu(x W^T + b), in one pass over the memory in the `fused` precisions: a network is then 1.2 times as fast."""
    if x.dtype in fused:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'relu', [], '')
    return F.linear(x, weight, bias).relu_()


def _trunk(x: Tensor, layers: Sequence[Tensor], skips: list[int], keep: bool) -> tuple[list[Tensor], Tensor]:
    """Inputs of the trunk's layers (without `keep`: none) for encoded points x [N, C], and the last output [N, W]."""
    inputs, h = [], x
    for i, (weight, bias) in enumerate(zip(layers[::2], layers[1::2])):
        if keep:
            inputs.append(h)
        h = linear_relu(h, weight, bias)
        if i in skips:
            h = torch.cat([x, h], -1)
    return inputs, h


class _MLP(torch.autograd.Function):
    """Encoded points to raw colour and density, with the backward pass written out.

    Its gradient for points can be differentiated again, its gradient for weights cannot."""
    @staticmethod
    def forward(ctx, x: Tensor, alarm: Tensor, noise: Tensor | None, terms: Tensor | None, ray: Tensor,
                skips: list[int], depth: int, keep: bool, *weights: Tensor) -> Tensor:
        """Raw output [N, 4 or 5] of encoded points x [N, C] with `alarm` [N], the compositor's noise [N], `_ray_terms`
        [R, W / 2], each point's ray [N] int64 and `_weights`; keep: a backward pass follows."""
        heads = weights[2 * depth:]
        inputs, h = _trunk(x, weights[:2 * depth], skips, keep)
        if terms is None:
            raw, hidden = F.linear(h, *heads).float(), None
            raw[:, 3] += alarm
        else:
            density_weight, density_bias, merged, rgb_weight, rgb_bias = heads
            density = F.linear(h, density_weight, density_bias).float()[:, 0] + alarm
            shown = _needed_rows((density if noise is None else density + noise) > 0)
            hidden = _put(F.linear(_take(h, shown), merged).add_(terms[_take(ray, shown)]).relu_(), shown, len(x))
            raw = torch.cat([F.linear(hidden, rgb_weight, rgb_bias).float(), density[:, None]], -1)
        if keep:
            ctx.skips, ctx.depth = skips, depth
            ctx.save_for_backward(ray, terms, hidden, *inputs, h, *weights)
        return raw

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Gradients of forward's arguments, from the gradient [N, 4 or 5] of raw output."""
        ray, terms, hidden, *saved = ctx.saved_tensors
        inputs, h, weights = saved[:ctx.depth], saved[ctx.depth], saved[ctx.depth + 1:]
        rows = _needed_rows((grad != 0).any(-1))
        n_rows, grad = len(grad), _take(grad, rows).to(h.dtype)
        h, heads, terms_grad = _take(h, rows), weights[2 * ctx.depth:], None
        if terms is None:
            grads = [grad.t() @ h, grad.sum(0)]
            grad = grad @ heads[0]
        else:
            density_weight, _, merged, rgb_weight, _ = heads
            hidden, ray = _take(hidden, rows), _take(ray, rows)
            rgb_grad, density_grad = grad[:, :3], grad[:, 3:]
            hidden_grad = through_relu(rgb_grad @ rgb_weight, hidden)
            terms_grad = torch.zeros_like(terms, dtype=torch.float32).index_add_(0, ray, hidden_grad.float())
            grads = [density_grad.t() @ h, density_grad.sum(0), hidden_grad.t() @ h,
                     rgb_grad.t() @ hidden, rgb_grad.sum(0)]
            grad = (hidden_grad @ merged).addcmul_(density_grad, density_weight)
        x_grad = torch.zeros_like(inputs[0]) if ctx.needs_input_grad[0] else None
        for i in reversed(range(ctx.depth)):
            grad, below, weight = through_relu(grad, h), _take(inputs[i], rows), weights[2 * i]
            grads = [grad.t() @ below, grad.sum(0), *grads]
            fed = inputs[0].shape[1] if i == 0 or i - 1 in ctx.skips else 0  # channels that come from x itself
            if fed and x_grad is not None:
                x_grad += _put(grad @ weight[:, :fed], rows, n_rows)
            if i > 0:
                grad, h = grad @ weight[:, fed:], below[:, fed:]
        return x_grad, None, None, terms_grad, None, None, None, None, *grads


def _needed_rows(mask: Tensor) -> Tensor | None:
    """Rows that hold all set rows of a mask [N]; None: all rows, which are as fast."""
    rows = padded_rows(mask, ROWS)
    return rows if len(rows) <= len(mask) - ROWS else None


def _take(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _put(x: Tensor, rows: Tensor | None, n_rows: int) -> Tensor:
    """The inverse of `_take`; other rows are zero."""
    return x if rows is None else x.new_zeros(n_rows, *x.shape[1:]).index_copy_(0, rows, x)
