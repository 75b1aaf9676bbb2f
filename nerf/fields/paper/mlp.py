"""The MLP as a field: points and directions to colour and density, through the module or by hand and faster."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nerf.space import Space
from run_nerf_helpers import NeRF

FUSED = ()  # precisions in which oneDNN has a layer and its ReLU in one, as torch.compile calls them
if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_linear_pointwise'):
    FUSED = (torch.float32, torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)
ALIGN = 8  # an encoding's channels are padded to a multiple of this: GPUs are slow with odd numbers in 16 bits
ROWS = 512  # kept points are padded to a multiple of this: each new size costs oneDNN new code, time and memory


class MLPField(nn.Module):
    """F(x, d) -> (c, sigma) of section 3, computed by the network's own `forward`.

    Args:
        network: the MLP.
        embed_points, embed_dirs: encodings of points and of directions (the latter None without view directions).
        netchunk: most points through the network at once.
        dtype: precision of the MLP's products; encoding and output are float32 in any case.
        space: gives the coordinates that are encoded; None: those of the points. Density stays in 1/scene unit.
    """

    def __init__(self, network: NeRF, embed_points, embed_dirs, netchunk: int = 65536,
                 dtype: torch.dtype = torch.float32, space: Space | None = None):
        super().__init__()
        self.network, self.embed_points, self.embed_dirs = network, embed_points, embed_dirs
        self.netchunk, self.dtype, self.space = netchunk, dtype, space

    def forward(self, points: Tensor, viewdirs: Tensor | None, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Colour in [0, 1] and density in 1/scene unit.

        Args:
            points: [R, S, 3].
            viewdirs: [R, 3] of unit length; None where the network does not use them.
            noise: [R, S], added to raw density; None: none.

        Returns:
            [R, S, 3] and [R, S], float32. The colour of a point without density means nothing.
        """
        rgb, density, _ = self.raw(points, viewdirs, noise).tensor_split((3, 4), -1)
        return torch.sigmoid(rgb), density[..., 0].relu()

    def raw(self, points: Tensor, viewdirs: Tensor | None, noise: Tensor | None = None) -> Tensor:
        """What `forward` has before sigmoid and ReLU: [R, S, 4 or 5] float32."""
        n_samples, flat = points.shape[-2], points.reshape(-1, 3)
        dirs = self.embed_dirs(viewdirs) if self.embed_dirs is not None else None
        parts = []
        for rows in torch.arange(len(flat), device=points.device).split(self.netchunk):
            x = self._embedded(flat[rows])
            if dirs is not None:
                x = torch.cat([x, dirs[rows // n_samples]], -1)
            with torch.autocast(points.device.type, self.dtype, enabled=self.dtype != torch.float32):
                parts.append(self.network(x).float())
        raw = torch.cat(parts).reshape(*points.shape[:-1], -1)
        return raw if noise is None else torch.cat([raw[..., :3], (raw[..., 3] + noise)[..., None], raw[..., 4:]], -1)

    def _embedded(self, points: Tensor) -> Tensor:
        """The encoding [N, C] of points [N, 3]."""
        return self.embed_points(points if self.space is None else self.space.to_field(points))

    @torch.no_grad()
    def density(self, points: Tensor) -> Tensor:
        """points [N, 3] to density [N] as volume rendering has it: non-negative, in 1/scene unit, float32."""
        return self.raw(points[:, None], torch.zeros_like(points))[:, 0, 3].relu()


def fast_where_equal(network: NeRF, embed_points, embed_dirs, netchunk: int, dtype: torch.dtype,
                     space: Space | None = None, kind: type[FastMLPField] | None = None) -> MLPField:
    """The field of a network on the CPU: a fast one, unless the network's `forward` or layers were edited.

    Both are asked for colours, densities and the weights' gradients at a few points; an edit that has no effect on
    these with the present weights is not noticed.

    Args:
        network, embed_points, embed_dirs, netchunk, dtype, space: as of `MLPField`.
        kind: the fast one; None: the CPU's.
    """
    kind = kind or FastMLPField
    fields = [each(network, embed_points, embed_dirs, netchunk) for each in (MLPField, kind)]
    generator = torch.Generator().manual_seed(0)
    points = 2.0 * torch.rand(16, 8, 3, generator=generator) - 1.0
    viewdirs = F.normalize(torch.randn(16, 3, generator=generator), dim=-1)
    noise = 20.0 * torch.rand(16, 8, generator=generator) - 10.0  # so that half of the points have density
    try:
        plain, fast = (_answers(field, points, viewdirs, noise) for field in fields)
        same = all(torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()) + 1e-9)
                   for a, b in zip(plain, fast))
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # layers that the fast field cannot use
        same = False
    return (kind if same else MLPField)(network, embed_points, embed_dirs, netchunk, dtype, space)


def _answers(field: MLPField, points: Tensor, viewdirs: Tensor, noise: Tensor) -> list[Tensor]:
    """Densities, colours where there is density, and the gradients of a mixture of both for all weights."""
    rgb, density = field(points, viewdirs, noise)
    seen = torch.where(density[..., None] > 0, rgb, 0.0)
    weights = [parameter for parameter in field.parameters() if parameter.requires_grad]
    mixture = (density * torch.sin(3.0 * points[..., 0])).sum() + (seen * torch.cos(3.0 * points)).sum()
    gradients = torch.autograd.grad(mixture, weights, allow_unused=True)
    return [density.detach(), seen.detach(),
            *(torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients))]


class FastMLPField(MLPField):
    """The same field on a CPU with its products by hand, forward and backward.

    The feature layer, which has no activation, is merged with the layer behind it; what a direction adds to that layer
    is computed once per ray; points without density get no colour, which nobody would see, and points without a
    gradient are left out of the backward pass.
    """

    def raw(self, points: Tensor, viewdirs: Tensor | None, noise: Tensor | None = None) -> Tensor:
        weights, terms = self._weights(), self._ray_terms(viewdirs)
        depth, keep = len(self.network.pts_linears), torch.is_grad_enabled()
        flat, n_samples = points.reshape(-1, 3), points.shape[-2]
        noise = _alarm(flat, weights) + (0.0 if noise is None else noise.reshape(-1))
        raw = []
        for start in range(0, len(flat), self.netchunk):
            end = min(start + self.netchunk, len(flat))
            x = self._encoded(flat[start:end])
            ray = torch.arange(start, end, device=points.device) // n_samples
            raw.append(_MLP.apply(x, noise[start:end], terms, ray, self.network.skips, depth, keep, *weights))
        return torch.cat(raw).reshape(*points.shape[:-1], -1)

    @torch.no_grad()
    def density(self, points: Tensor) -> Tensor:
        weights, depth = self._weights(), len(self.network.pts_linears)
        density = 0 if self.network.use_viewdirs else 3  # its row of the first head's outputs
        parts = []
        for part in points.split(self.netchunk):
            _, h = _trunk(self._encoded(part), weights[:2 * depth], self.network.skips, False)
            parts.append(F.linear(h, *weights[2 * depth:2 * depth + 2])[:, density])
        return (torch.cat(parts).float() + _alarm(points, weights)).relu()

    def _encoded(self, points: Tensor) -> Tensor:
        """Points [N, 3] to what the trunk takes, [N, C]: their encoding, and zeros to a multiple of ALIGN."""
        x = self._embedded(points).to(self.dtype)
        return F.pad(x, (0, -x.shape[-1] % ALIGN))

    def _weights(self) -> list[Tensor]:
        """Weights and biases in the products' precision: of the trunk's layers, with columns of zeros for what
        `_encoded` adds, then of the heads."""
        network, weights = self.network, []
        for i, layer in enumerate(network.pts_linears):
            weight, n = layer.weight, network.pts_linears[0].in_features
            if i == 0 or i - 1 in network.skips:
                weight = torch.cat([weight[:, :n], weight.new_zeros(len(weight), -n % ALIGN), weight[:, n:]], 1)
            weights += [weight, layer.bias]
        if network.use_viewdirs:
            onto = network.views_linears[0].weight[:, :network.feature_linear.out_features]
            weights += [network.alpha_linear.weight, network.alpha_linear.bias, onto @ network.feature_linear.weight,
                        network.rgb_linear.weight, network.rgb_linear.bias]
        else:
            weights += [network.output_linear.weight, network.output_linear.bias]
        return [part.to(self.dtype) for part in weights]

    def _ray_terms(self, viewdirs: Tensor | None) -> Tensor | None:
        """[R, W / 2]: what is the same for all points of a ray in the input of the colour's hidden layer."""
        if self.embed_dirs is None:
            return None
        views, feature = self.network.views_linears[0], self.network.feature_linear
        onto, dirs = views.weight.split([feature.out_features, views.in_features - feature.out_features], 1)
        return F.linear(self.embed_dirs(viewdirs), dirs, views.bias + onto @ feature.bias).to(self.dtype)


def _trunk(x: Tensor, layers: Sequence[Tensor], skips: list[int], keep: bool) -> tuple[list[Tensor], Tensor]:
    """Encoded points [N, C] through weight and bias of each layer: the layers' inputs, where they are to be kept for
    the backward pass, and the last one's output [N, W]."""
    inputs, h = [], x
    for i, (weight, bias) in enumerate(zip(layers[::2], layers[1::2])):
        if keep:
            inputs.append(h)
        h = _linear_relu(h, weight, bias)
        if i in skips:
            h = torch.cat([x, h], -1)
    return inputs, h


def _alarm(points: Tensor, weights: list[Tensor]) -> Tensor:
    """[N]: 0, but NaN where a point [N, 3] or any weight is not finite, of which oneDNN's ReLU makes 0."""
    return 0.0 * (points.detach().sum(-1) + sum(part.detach().sum(dtype=torch.float32) for part in weights))


def _linear_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """relu(x W^T + b), in one pass over the memory where oneDNN can: a network is 1.2 times as fast."""
    if x.dtype in FUSED:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'relu', [], '')
    return F.linear(x, weight, bias).relu_()


class _MLP(torch.autograd.Function):
    """Encoded points to raw colour and density, with the backward pass written out.

    Its gradient for the points can be differentiated again; that for the weights cannot.
    """

    @staticmethod
    def forward(ctx, x: Tensor, noise: Tensor, terms: Tensor | None, ray: Tensor, skips: list[int], depth: int,
                keep: bool, *weights: Tensor) -> Tensor:
        """x [N, C], noise [N], terms [R, W / 2] of the rays, and which ray [N] each point is on, to raw [N, 4 or 5].

        weights: those of the trunk's `depth` layers, then the heads'; keep: there will be a backward pass.
        """
        heads = weights[2 * depth:]
        inputs, h = _trunk(x, weights[:2 * depth], skips, keep)
        if terms is None:
            raw, hidden = F.linear(h, *heads).float(), None
            raw[:, 3] += noise
        else:
            density_weight, density_bias, merged, rgb_weight, rgb_bias = heads
            density = F.linear(h, density_weight, density_bias).float()[:, 0] + noise
            shown = _needed_rows(density > 0)
            hidden = _put(F.linear(_take(h, shown), merged).add_(terms[_take(ray, shown)]).relu_(), shown, len(x))
            raw = torch.cat([F.linear(hidden, rgb_weight, rgb_bias).float(), density[:, None]], -1)
        if keep:
            ctx.skips, ctx.depth = skips, depth
            ctx.save_for_backward(ray, terms, hidden, *inputs, h, *weights)
        return raw

    @staticmethod
    def backward(ctx, grad: Tensor):
        """The gradients of forward's arguments, from that of raw [N, 4 or 5]."""
        ray, terms, hidden, *saved = ctx.saved_tensors
        inputs, h, weights = saved[:ctx.depth], saved[ctx.depth], saved[ctx.depth + 1:]
        rows = _needed_rows((grad != 0).any(-1))
        n_rows, x_channels = len(grad), inputs[0].shape[1]
        noise_grad, grad = grad[:, 3], _take(grad, rows).to(h.dtype)
        h, heads, terms_grad = _take(h, rows), weights[2 * ctx.depth:], None
        if terms is None:
            grads = [grad.t() @ h, grad.sum(0)]
            grad = grad @ heads[0]
        else:
            density_weight, _, merged, rgb_weight, _ = heads
            hidden, ray = _take(hidden, rows), _take(ray, rows)
            rgb_grad, density_grad = grad[:, :3], grad[:, 3:]
            hidden_grad = _through_relu(rgb_grad @ rgb_weight, hidden)
            terms_grad = torch.zeros_like(terms, dtype=torch.float32).index_add_(0, ray, hidden_grad.float())
            grads = [density_grad.t() @ h, density_grad.sum(0), hidden_grad.t() @ h,
                     rgb_grad.t() @ hidden, rgb_grad.sum(0)]
            grad = (hidden_grad @ merged).addcmul_(density_grad, density_weight)
        x_grad = torch.zeros_like(inputs[0]) if ctx.needs_input_grad[0] else None
        for i in reversed(range(ctx.depth)):
            grad, below, weight = _through_relu(grad, h), _take(inputs[i], rows), weights[2 * i]
            grads = [grad.t() @ below, grad.sum(0), *grads]
            fed = x_channels if i == 0 or i - 1 in ctx.skips else 0  # channels that come from x itself
            if fed and x_grad is not None:
                x_grad += _put(grad @ weight[:, :fed], rows, n_rows)
            if i > 0:
                grad, h = grad @ weight[:, fed:], below[:, fed:]
        return x_grad, noise_grad, terms_grad, None, None, None, None, *grads


def _through_relu(grad: Tensor, output: Tensor) -> Tensor:
    """The gradient before a ReLU of that behind it, where its output was positive."""
    return torch.ops.aten.threshold_backward(grad, output, 0.0)


def _needed_rows(mask: Tensor) -> Tensor | None:
    """Rows among which are all those of a mask [N] that are set; None: all rows, where that is as fast."""
    rows = padded_rows(mask, ROWS)
    return rows if len(rows) <= len(mask) - ROWS else None


def padded_rows(mask: Tensor, multiple: int) -> Tensor:
    """Indices of the rows that a mask [N] keeps, padded by others until they are a multiple of `multiple` or all N."""
    rows = mask.nonzero()[:, 0]
    return torch.cat([rows, (~mask).nonzero()[:-len(rows) % multiple, 0]])


def _take(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _put(x: Tensor, rows: Tensor | None, n_rows: int) -> Tensor:
    """The inverse of `_take`; zero elsewhere."""
    return x if rows is None else x.new_zeros(n_rows, *x.shape[1:]).index_copy_(0, rows, x)
