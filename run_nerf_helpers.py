"""The maths of NeRF (Mildenhall et al. 2020, arXiv:2003.08934): pure functions and modules, no flags, no files.

Shapes: R rays, S samples on a ray, N points. Lengths are in scene units, angles in radians, colours in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

# Metrics


def img2mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of two colour arrays of the same shape; a scalar."""
    return torch.mean((x - y) ** 2)


def mse2psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of a mean squared error of colours in [0, 1]."""
    return -10.0 * torch.log10(mse)


def to8b(x: np.ndarray | Tensor) -> np.ndarray:
    """Colours in [0, 1] of any shape to uint8, to the nearest level; values outside are clipped."""
    return np.rint(255.0 * np.clip(np.asarray(x), 0.0, 1.0)).astype(np.uint8)


# Positional encoding (section 5.1)


class Embedder:
    """gamma(p) of equation 4 with the input itself in front: (p, sin p, cos p, sin 2p, cos 2p, sin 4p, ...).

    As in the authors' code there is no factor pi, and each sine or cosine is taken of the three coordinates together.
    """

    def __init__(self, n_freqs: int, input_dims: int = 3):
        self.n_freqs = n_freqs
        self.out_dim = input_dims * (1 + 2 * n_freqs)

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., 3] to [..., 3 * (1 + 2 * n_freqs)], in float32 whatever the precision of the network behind it."""
        x = x.float()
        freqs = 2.0 ** torch.arange(self.n_freqs, dtype=x.dtype, device=x.device)
        angles = x[..., None, :] * freqs[:, None]  # [..., L, 3]
        waves = torch.stack([angles.sin(), angles.cos()], -2)  # [..., L, 2, 3]
        return torch.cat([x, waves.flatten(-3)], -1)


def get_embedder(multires: int, i: int = 0) -> tuple[nn.Module | Embedder, int]:
    """The encoding with `multires` frequencies and its number of output channels; i = -1 is no encoding."""
    if i == -1:
        return nn.Identity(), 3
    embedder = Embedder(multires)
    return embedder, embedder.out_dim


# The network (section 5.3 and figure 7 of the paper)


class NeRF(nn.Module):
    """The MLP: an encoded point, and an encoded direction, to raw colour and raw density.

    Parameter names and their order are those of the reference code, so that checkpoints go both ways.

    Args:
        D: number of layers of the trunk.
        W: channels per layer.
        input_ch: channels of an encoded point.
        input_ch_views: channels of an encoded direction.
        output_ch: outputs without view directions (the first three are colour, the fourth density).
        skips: the input is concatenated to the output of these layers of the trunk.
        use_viewdirs: colour depends on the direction; density never does.
        generator: where the initial weights come from; None is torch's global one.
    """

    def __init__(self, D=8, W=256, input_ch=3, input_ch_views=3, output_ch=4, skips=(4,), use_viewdirs=False,
                 generator: torch.Generator | None = None):
        super().__init__()
        self.input_ch, self.input_ch_views = input_ch, input_ch_views
        self.skips = [i for i in skips if i < D - 1]  # a skip into the heads would not fit them
        self.use_viewdirs = use_viewdirs
        self.pts_linears = nn.ModuleList(
            [nn.Linear(input_ch, W)]
            + [nn.Linear(W + input_ch if i in self.skips else W, W) for i in range(D - 1)])
        # Unused without view directions, but the reference code's checkpoints hold it in both cases.
        self.views_linears = nn.ModuleList([nn.Linear(input_ch_views + W, W // 2)]).requires_grad_(use_viewdirs)
        if use_viewdirs:
            self.feature_linear = nn.Linear(W, W)
            self.alpha_linear = nn.Linear(W, 1)
            self.rgb_linear = nn.Linear(W // 2, 3)
        else:
            self.output_linear = nn.Linear(W, output_ch)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws all weights anew, as nn.Linear does, but from `generator` (on the CPU: the same on every device)."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                bound = layer.in_features ** -0.5
                for parameter in (layer.weight, layer.bias):
                    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))

    @torch.no_grad()
    def lift_density(self, by: float) -> None:
        """Adds a constant in 1/scene unit to raw density everywhere: a fresh network then begins as thin fog, while a
        third of all draws have no density anywhere."""
        density_bias = self.alpha_linear.bias if self.use_viewdirs else self.output_linear.bias[3]
        density_bias += by

    def forward(self, x: Tensor) -> Tensor:
        """x [..., input_ch + input_ch_views] to raw [..., 4 or output_ch]: colour before sigmoid, density before ReLU.

        Without view directions the channels past `input_ch` are not used and need not be there. Training and rendering
        compute this faster, in fields/paper/mlp.py. Whoever edits it need not edit that: at its start a run compares
        the two, and where they differ it says so and goes through this method.
        """
        points = h = x[..., :self.input_ch]
        for i, layer in enumerate(self.pts_linears):
            h = layer(h).relu_()
            if i in self.skips:
                h = torch.cat([points, h], -1)
        if not self.use_viewdirs:
            return self.output_linear(h)
        density = self.alpha_linear(h)
        h = torch.cat([self.feature_linear(h), x[..., self.input_ch:]], -1)
        for layer in self.views_linears:
            h = layer(h).relu_()
        return torch.cat([self.rgb_linear(h), density], -1)


# Rays (section 4; NDC in appendix C)


class Rays(NamedTuple):
    """R rays r(t) = origins + t * directions for t from near to far."""

    origins: Tensor  # [R, 3]
    directions: Tensor  # [R, 3], not normalised: t is depth along the camera's axis (in NDC: NDC depth)
    viewdirs: Tensor  # [R, 3], unit length, in world coordinates also where the ray is in NDC
    near: Tensor  # [R, 1]
    far: Tensor  # [R, 1]

    def part(self, rows: slice | Tensor) -> Rays:
        return Rays(*(each[rows] for each in self))


def to_world(dirs: Tensor, c2w: Tensor) -> tuple[Tensor, Tensor]:
    """Directions [..., 3] in the axes of cameras c2w [..., 3 or 4, 4] to world rays: origins, directions [..., 3]."""
    dirs = dirs.to(c2w.dtype)
    directions = (c2w[..., :3, :3] * dirs[..., None, :]).sum(-1)
    return c2w[..., :3, 3].expand_as(directions), directions


def pixel_rays(rows: Tensor, columns: Tensor, K: Tensor, c2w: Tensor) -> tuple[Tensor, Tensor]:
    """World rays through single pixels; each pixel may have a camera of its own.

    Args:
        rows, columns: [...] pixel indices, from the top left.
        K: [3, 3] intrinsics in pixels.
        c2w: [3 or 4, 4] or [..., 3 or 4, 4] camera-to-world, OpenGL axes (x right, y up, looking along -z).

    Returns:
        origins, directions: [..., 3] each; directions have length 1 along the camera's axis.
    """
    x = (columns - K[0, 2]) / K[0, 0]
    y = -(rows - K[1, 2]) / K[1, 1]
    return to_world(torch.stack([x, y, -torch.ones_like(x)], -1), c2w)


def get_rays(H: int, W: int, K: Tensor | np.ndarray, c2w: Tensor) -> tuple[Tensor, Tensor]:
    """The rays of a whole image: origins and directions, [H, W, 3] each, as `pixel_rays` has them."""
    K = torch.as_tensor(K, dtype=torch.float32, device=c2w.device)
    rows, columns = torch.meshgrid(torch.arange(H, device=c2w.device), torch.arange(W, device=c2w.device),
                                   indexing='ij')
    return pixel_rays(rows, columns, K, c2w)


def get_rays_np(H: int, W: int, K: np.ndarray, c2w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`get_rays` for arrays: float32 origins and directions, [H, W, 3] each."""
    origins, directions = get_rays(H, W, K, torch.as_tensor(np.asarray(c2w), dtype=torch.float32))
    return origins.numpy(), directions.numpy()


def ndc_rays(H: int, W: int, focal: float, near: float, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor]:
    """World rays of a forward-facing scene to normalised device coordinates (appendix C, equations 25 and 26).

    The origins are first moved to the plane z = -near, which becomes t = 0; infinity becomes t = 1.

    Args:
        H, W, focal: image height, width and focal length in pixels.
        near: distance of the near plane.
        rays_o, rays_d: [..., 3] origins and directions; no direction may lie in the near plane.

    Returns:
        origins, directions in NDC: [..., 3] each.
    """
    t = -(near + rays_o[..., 2]) / rays_d[..., 2]
    ox, oy, oz = (rays_o + t[..., None] * rays_d).unbind(-1)
    dx, dy, dz = rays_d.unbind(-1)
    ax, ay = -2.0 * focal / W, -2.0 * focal / H
    origins = torch.stack([ax * ox / oz, ay * oy / oz, 1.0 + 2.0 * near / oz], -1)
    directions = torch.stack([ax * (dx / dz - ox / oz), ay * (dy / dz - oy / oz), -2.0 * near / oz], -1)
    return origins, directions


def ndc_points(H: int, W: int, focal: float, near: float, points: Tensor) -> Tensor:
    """World points [..., 3] in front of the camera, z < 0, to NDC (appendix C, equation 24): ax x / z, ay y / z and
    1 + 2 near / z with ax = -2 focal / W, ay = -2 focal / H."""
    x, y, z = points.unbind(-1)
    return torch.stack([-2.0 * focal / W * x / z, -2.0 * focal / H * y / z, 1.0 + 2.0 * near / z], -1)


def world_points(H: int, W: int, focal: float, near: float, points: Tensor) -> Tensor:
    """NDC points [..., 3] with z' < 1 back to the world: the exact inverse of `ndc_points`.

    z' = 1 + 2 near / z gives z = 2 near / (z' - 1); x' = -2 focal / W * x / z then gives x = -x' z W / (2 focal), and y
    likewise with H.
    """
    x, y, z = points.unbind(-1)
    z = 2.0 * near / (z - 1.0)
    return torch.stack([-0.5 * W / focal * x * z, -0.5 * H / focal * y * z, z], -1)


def bundle_rays(origins: Tensor, directions: Tensor, near: float | Tensor, far: float | Tensor,
                viewdirs: Tensor | None = None) -> Rays:
    """Origins and directions [..., 3] as `Rays`, with bounds of all or of each, [R, 1].

    Args:
        viewdirs: [..., 3] unit directions in world coordinates; None: those of `directions`.
    """
    viewdirs = torch.nn.functional.normalize(directions, dim=-1) if viewdirs is None else viewdirs
    origins, directions, viewdirs = (x.reshape(-1, 3) for x in (origins, directions, viewdirs))
    bound = torch.ones_like(origins[:, :1])
    return Rays(origins, directions, viewdirs, near * bound, far * bound)


# Sampling: stratified (section 4, equation 2) and hierarchical (section 5.2)


class Sampling(NamedTuple):
    """How a ray is sampled and composited."""

    N_samples: int  # coarse samples
    N_importance: int = 0  # further samples of the fine pass; 0: no fine pass
    perturb: bool = False  # jitter the samples in training
    lindisp: bool = False  # coarse samples evenly in disparity instead of depth
    raw_noise_std: float = 0.0  # noise added to raw density in training
    white_bkgd: bool = False  # composite on white
    horizon: float = 0.0  # above 0: samples evenly in disparity, from near to so many near bounds, whatever far is


class Draws(NamedTuple):
    """The random numbers of one training step, drawn at once: how rays are then tiled cannot change the result."""

    jitter: Tensor | None  # [R, N_samples] in [0, 1), place within each coarse bin
    u: Tensor | None  # [R, N_importance] in [0, 1), where the coarse CDF is inverted
    noise: Tensor | None  # [R, N_samples], added to the coarse network's raw density
    noise_fine: Tensor | None  # [R, N_samples + N_importance], added to the fine network's


def draw(n_rays: int, sampling: Sampling, generator: torch.Generator) -> Draws:
    """All random numbers that `render_rays` needs for `n_rays` training rays, on the generator's device."""
    n_coarse, n_fine = sampling.N_samples, sampling.N_importance
    where = {'generator': generator, 'device': generator.device}
    std = sampling.raw_noise_std
    return Draws(
        jitter=torch.rand(n_rays, n_coarse, **where) if sampling.perturb else None,
        u=torch.rand(n_rays, n_fine, **where) if sampling.perturb and n_fine else None,
        noise=torch.randn(n_rays, n_coarse, **where) * std if std > 0 else None,
        noise_fine=torch.randn(n_rays, n_coarse + n_fine, **where) * std if std > 0 and n_fine else None)


NO_DRAWS = Draws(None, None, None, None)  # deterministic: previews and test views


def stratified_z(near: Tensor, far: Tensor, N_samples: int, lindisp: bool = False,
                 jitter: Tensor | None = None) -> Tensor:
    """Depths of the coarse samples, ascending (equation 2).

    Args:
        near, far: [R, 1] bounds.
        N_samples: samples per ray, from near to far inclusive.
        lindisp: evenly spaced in 1 / depth.
        jitter: [R, N_samples] in [0, 1), the place in each sample's bin; None leaves the samples in place.

    Returns:
        [R, N_samples].
    """
    s = torch.linspace(0.0, 1.0, N_samples, device=near.device)
    z = 1.0 / ((1.0 - s) / near + s / far) if lindisp else near * (1.0 - s) + far * s
    if jitter is None:
        return z
    middles = 0.5 * (z[:, 1:] + z[:, :-1])
    lower, upper = torch.cat([z[:, :1], middles], -1), torch.cat([middles, z[:, -1:]], -1)
    return lower + (upper - lower) * jitter


def invert_cdf(bins: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Places where the piecewise linear CDF of a histogram reaches u (inverse transform sampling, section 5.2).

    Args:
        bins: [R, B + 1] edges, ascending.
        weights: [R, B] non-negative heights; all zero stands for a uniform distribution.
        u: [R, M] in [0, 1].

    Returns:
        [R, M], within the edges.
    """
    weights = weights + 1e-5  # no bin is quite empty, so no ray divides by zero
    cdf = torch.cumsum(weights / weights.sum(-1, keepdim=True), -1)
    cdf = torch.cat([torch.zeros_like(cdf[..., :1]), cdf], -1)  # [R, B + 1]
    index = torch.searchsorted(cdf, u.contiguous(), right=True)
    below, above = (index - 1).clamp(min=0), index.clamp(max=cdf.shape[-1] - 1)
    cdf_below, cdf_above = cdf.gather(-1, below), cdf.gather(-1, above)
    bin_below, bin_above = bins.gather(-1, below), bins.gather(-1, above)
    step = cdf_above - cdf_below
    step = torch.where(step < 1e-5, torch.ones_like(step), step)
    return bin_below + (u - cdf_below) / step * (bin_above - bin_below)


def sample_pdf(bins: Tensor, weights: Tensor, N_samples: int, det: bool = False,
               generator: torch.Generator | None = None) -> Tensor:
    """`invert_cdf` at N_samples evenly spaced (det) or random u: bins [R, B + 1], weights [R, B] to [R, N_samples]."""
    shape = (*weights.shape[:-1], N_samples)
    if det:
        u = torch.linspace(0.0, 1.0, N_samples, device=bins.device).expand(shape)
    else:
        u = torch.rand(shape, generator=generator, device=bins.device)
    return invert_cdf(bins, weights, u)


# Volume rendering (section 4, equation 3)

BEYOND = 1e10  # length of a ray's last sample, which stands for all that is behind it

class Composite(NamedTuple):
    """What a ray shows."""

    rgb: Tensor  # [R, 3] colour
    disp: Tensor  # [R] disparity, 1 / depth of what was hit; 0 where nothing was
    acc: Tensor  # [R] opacity, the sum of the weights
    weights: Tensor  # [R, S] share of each sample in the colour
    depth: Tensor  # [R] expected depth, not divided by opacity


def composite(rgb: Tensor, density: Tensor, z_vals: Tensor, rays_d: Tensor, white_bkgd: bool = False,
              deltas: Tensor | None = None) -> Composite:
    """Numerical quadrature of the volume rendering integral (equation 3).

    Args:
        rgb: [R, S, 3] colours.
        density: [R, S] non-negative, in 1 / scene unit.
        z_vals: [R, S] ascending depths.
        rays_d: [R, 3] directions, whose length turns depth into distance.
        white_bkgd: what light is left falls on white.
        deltas: [R, S] length of each sample in depth. None: up to the next sample, the last to infinity.
    """
    if deltas is None:
        deltas = torch.cat([z_vals[:, 1:] - z_vals[:, :-1], torch.full_like(z_vals[:, :1], BEYOND)], -1)
    optical = density * deltas * rays_d.norm(dim=-1, keepdim=True)
    before = torch.cat([torch.zeros_like(optical[:, :1]), optical[:, :-1].cumsum(-1)], -1)
    weights = torch.exp(-before) * (1.0 - torch.exp(-optical))  # T_i * alpha_i
    return _composited((weights[..., None] * rgb).sum(-2), weights, (weights * z_vals).sum(-1), weights.sum(-1),
                       white_bkgd)


def composite_packed(rgb: Tensor, density: Tensor, z_vals: Tensor, ray: Tensor, rays_d: Tensor,
                     white_bkgd: bool = False, deltas: Tensor | None = None) -> Composite:
    """`composite` of rays with different numbers of samples, which are in one list, ray after ray.

    Args:
        rgb: [N, 3] colours.
        density: [N] non-negative, in 1 / scene unit.
        z_vals: [N] depths, ascending along each ray.
        ray: [N] int64, ascending: the ray that each sample is on. A ray may have none.
        rays_d: [R, 3] directions, whose length turns depth into distance.
        white_bkgd: what light is left falls on white.
        deltas: [N] length of each sample in depth. None: up to the ray's next sample, the last to infinity.

    Returns:
        what R rays show; weights are [N].
    """
    last = torch.ones_like(ray, dtype=torch.bool)  # samples behind which their ray ends
    last[:-1] = ray[1:] != ray[:-1]
    if deltas is None:
        deltas = torch.where(last, BEYOND, torch.cat([z_vals[1:] - z_vals[:-1], z_vals[-1:]]))
    optical = density * deltas * rays_d.norm(dim=-1)[ray]
    # One sum runs over all rays, in float64, and what it was at a ray's start is taken off. Each term is bounded so
    # that no ray can spoil the precision of those behind it: no light gets through a depth of 100 either.
    passed = torch.where(last | optical.isnan(), 0.0, optical.clamp(max=100.0)).double().cumsum(0)
    passed = torch.nn.functional.pad(passed, (1, 0))  # [N + 1] before each sample, and behind all
    start = passed[torch.searchsorted(ray, torch.arange(len(rays_d), device=ray.device))]
    weights = torch.exp(-(passed[:-1] - start[ray]).float()) * (1.0 - torch.exp(-optical))

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(len(rays_d), *values.shape[1:]).index_add(0, ray, values)
    return _composited(total(weights[:, None] * rgb), weights, total(weights * z_vals), total(weights), white_bkgd)


def _composited(rgb: Tensor, weights: Tensor, depth: Tensor, acc: Tensor, white_bkgd: bool) -> Composite:
    """A `Composite` of the sums over each ray's samples."""
    return Composite(rgb + (1.0 - acc[..., None]) if white_bkgd else rgb, disparity(depth, acc), acc, weights, depth)


def disparity(depth: Tensor, acc: Tensor) -> Tensor:
    """1 / depth of what rays hit, from expected depth and opacity [R]; 0 where nothing was hit."""
    hit = acc > 1e-10
    # The inner where keeps the gradient of an empty ray, 0 / 0, finite too.
    return torch.where(hit, 1.0 / (depth / torch.where(hit, acc, 1.0)).clamp(min=1e-10), 0.0)


def ndc_disparity(depth: Tensor, acc: Tensor) -> Tensor:
    """1 / depth [R] along the world's -z axis of what rays in NDC, near plane at 1, hit, from expected NDC depth and
    opacity [R]; 0 where nothing was hit.

    By equation 25 a point at depth z has the NDC depth 1 - 2 / z, which is -1 + 2 t at t along its ray: 1 / z = 1 - t.
    """
    hit = acc > 1e-10
    return torch.where(hit, 1.0 - depth / torch.where(hit, acc, 1.0), 0.0)


def raw2outputs(raw: Tensor, z_vals: Tensor, rays_d: Tensor, raw_noise_std: float = 0.0, white_bkgd: bool = False,
                generator: torch.Generator | None = None) -> Composite:
    """A network's raw output to what the rays show: sigmoid, ReLU and `composite`.

    Args:
        raw: [R, S, 4 or more] colour before sigmoid, density before ReLU.
        z_vals: [R, S] ascending depths.
        rays_d: [R, 3] directions.
        raw_noise_std: standard deviation of the noise added to raw density (a regulariser in training).
        white_bkgd: composite on white.
        generator: where that noise comes from.

    Returns:
        rgb [R, 3], disp [R], acc [R], weights [R, S], depth [R].
    """
    density = raw[..., 3].float()
    if raw_noise_std > 0:
        density = density + raw_noise_std * torch.randn(density.shape, generator=generator, device=raw.device)
    return composite(torch.sigmoid(raw[..., :3].float()), density.relu(), z_vals, rays_d, white_bkgd)


class RenderResult(NamedTuple):
    """What the rays show, and what the coarse pass alone would have shown."""

    final: Composite  # of the fine pass, or of the only one
    coarse: Composite | None  # None without a fine pass
    z_std: Tensor | None  # [R] spread of the fine samples; None without a fine pass


def coarse_depths(rays: Rays, sampling: Sampling, jitter: Tensor | None = None) -> Tensor:
    """`stratified_z` of rays: [R, N_samples].

    Samples up to a horizon are even in the normalised distance of mip-NeRF 360 (arXiv:2111.12077, equation 11), which
    is linear in disparity, jitter included.
    """
    if sampling.horizon:
        return 1.0 / stratified_z(1.0 / rays.near, 1.0 / (sampling.horizon * rays.near), sampling.N_samples,
                                  jitter=jitter)
    return stratified_z(rays.near, rays.far, sampling.N_samples, sampling.lindisp, jitter)


def ray_points(rays: Rays, z: Tensor) -> Tensor:
    """The points [R, S, 3] at depths z [R, S]."""
    return rays.origins[:, None] + rays.directions[:, None] * z[..., None]


def render_pass(field: Callable, rays: Rays, z: Tensor, white_bkgd: bool, noise: Tensor | None = None) -> Composite:
    """What a field shows of R rays at depths z [R, S]; noise [R, S] is added to raw density."""
    rgb, density = field(ray_points(rays, z), rays.viewdirs, noise)
    return composite(rgb, density, z, rays.directions, white_bkgd)


def fine_depths(z: Tensor, weights: Tensor, N_importance: int, u: Tensor | None = None,
                in_disparity: bool = False) -> Tensor:
    """Depths [R, N_importance] where the coarse pass, of depths z [R, S] and weights [R, S], saw something; u as in
    `Draws`, None: evenly spaced in the CDF. They are spread over bins of depth, or of disparity."""
    if in_disparity:
        return 1.0 / fine_depths(1.0 / z, weights, N_importance, u)
    bins, weights = 0.5 * (z[:, 1:] + z[:, :-1]), weights[:, 1:-1].detach()
    return sample_pdf(bins, weights, N_importance, det=True) if u is None else invert_cdf(bins, weights, u)


def render_rays(rays: Rays, coarse: Callable, fine: Callable | None, sampling: Sampling,
                draws: Draws = NO_DRAWS) -> RenderResult:
    """Renders rays by the coarse pass and, where N_importance > 0, the fine pass guided by it (section 5.2).

    Args:
        rays: R rays.
        coarse, fine: the two fields, (points [R, S, 3], unit viewdirs [R, 3], noise [R, S] or None) to colours
            [R, S, 3] in [0, 1] and densities [R, S] in 1 / scene unit; fine None: no fine pass.
        sampling: how a ray is sampled and composited.
        draws: the step's random numbers in training.
    """
    z = coarse_depths(rays, sampling, draws.jitter)
    coarse_pass = render_pass(coarse, rays, z, sampling.white_bkgd, draws.noise)
    if fine is None:
        return RenderResult(coarse_pass, None, None)
    z_fine = fine_depths(z, coarse_pass.weights, sampling.N_importance, draws.u, sampling.horizon > 0)
    z_all = torch.cat([z, z_fine], -1).sort(-1).values
    fine_pass = render_pass(fine, rays, z_all, sampling.white_bkgd, draws.noise_fine)
    return RenderResult(fine_pass, coarse_pass, z_fine.std(-1, unbiased=False))
