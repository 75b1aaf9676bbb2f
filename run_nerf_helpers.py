"""The maths of NeRF (Mildenhall et al. 2020, arXiv:2003.08934) in the paper's order: pure functions and modules.

Training and pictures run the functions of this file, so an edit to `raw2outputs`, `get_rays`, `get_rays_np`,
`pixel_rays`, `sample_pdf`, `render_rays` or `NeRF.forward` changes the program. Some functions have a faster twin: a
fused network, skipped samples, random numbers drawn ahead. A run compares both at its start. If they differ, the run
says so in one line and uses the function of this file.

Shapes: R rays, S samples on a ray, N points. Lengths are in scene units, angles in radians, colours in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

# Metrics


def img2mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of two arrays of colours with the same shape: a scalar."""
    return torch.mean((x - y) ** 2)


def mse2psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of a mean squared error between colours in [0, 1]."""
    return -10.0 * torch.log10(mse)


def to8b(x: np.ndarray | Tensor) -> np.ndarray:
    """Colours in [0, 1], of any shape, as uint8: the nearest level. Colours outside [0, 1] are clipped."""
    return np.rint(255.0 * np.clip(np.asarray(x), 0.0, 1.0)).astype(np.uint8)


# Positional encoding (section 5.1)

class Embedder:
    """Encoding gamma(p) of equation 4 with n_freqs frequencies, the input itself in front: (p, sin p, cos p, sin 2p,
    cos 2p, sin 4p, ...). As in the authors' code, angles have no factor pi, and each sine or cosine is of the three
    coordinates together."""

    def __init__(self, n_freqs: int):
        self.n_freqs, self.out_dim = n_freqs, 3 * (1 + 2 * n_freqs)

    def __call__(self, x: Tensor) -> Tensor:
        """Encoding [..., 3 * (1 + 2 * n_freqs)] of x [..., 3], float32 in any precision of the network."""
        x = x.float()
        freqs = 2.0 ** torch.arange(self.n_freqs, dtype=x.dtype, device=x.device)
        angles = x[..., None, :] * freqs[:, None]  # [..., L, 3]
        waves = torch.stack([angles.sin(), angles.cos()], -2)  # [..., L, 2, 3]
        return torch.cat([x, waves.flatten(-3)], -1)


def get_embedder(multires: int, i: int = 0) -> tuple[nn.Module | Embedder, int]:
    """Encoding with `multires` frequencies, and its number of channels; i = -1: no encoding."""
    if i == -1:
        return nn.Identity(), 3
    embedder = Embedder(multires)
    return embedder, embedder.out_dim


# The network (figure 7)

class NeRF(nn.Module):
    """MLP from an encoded point and an encoded viewing direction to raw colour and raw density.

    Parameters have the names and the order of the reference code, so checkpoints fit both programs.

    Args:
        D: number of layers in the trunk.
        W: channels of each layer.
        input_ch: channels of an encoded point.
        input_ch_views: channels of an encoded direction.
        output_ch: output channels without viewing directions: three of colour, one of density, the rest unused.
        skips: layers of the trunk whose output gets the encoded point appended.
        use_viewdirs: whether colour depends on the viewing direction. Density never does.
        generator: source of the initial weights; None: torch's global generator.
    """

    def __init__(self, D=8, W=256, input_ch=3, input_ch_views=3, output_ch=4, skips=(4,), use_viewdirs=False,
                 generator: torch.Generator | None = None):
        super().__init__()
        self.input_ch, self.input_ch_views = input_ch, input_ch_views
        self.skips = [i for i in skips if i < D - 1]  # a skip into the heads would not fit them
        self.use_viewdirs = use_viewdirs
        self.pts_linears = nn.ModuleList([nn.Linear(input_ch, W)] + [
            nn.Linear(W + input_ch if i in self.skips else W, W) for i in range(D - 1)])
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
        """Draws all weights as nn.Linear does, but from a generator on the CPU: all devices get the same weights."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                bound = layer.in_features ** -0.5
                for parameter in (layer.weight, layer.bias):
                    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))

    @torch.no_grad()
    def lift_density(self, by: float) -> None:
        """Adds a constant, in 1/scene unit, to raw density everywhere. A fresh network then begins as thin fog, which
        gradients reach; without it a third of all fresh networks have no density anywhere and never learn."""
        density_bias = self.alpha_linear.bias if self.use_viewdirs else self.output_linear.bias[3]
        density_bias += by

    def forward(self, x: Tensor) -> Tensor:
        """Colour before its sigmoid and density before its ReLU, [..., 4 or output_ch], of encoded points and
        directions x [..., input_ch + input_ch_views]. Without viewing directions, channels behind input_ch are ignored
        and may be absent. A run uses nerf/fields/paper/mlp.py instead, which is faster, while both give the same."""
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


# Rays (section 4)

class Rays(NamedTuple):
    """R rays r(t) = origins + t * directions, with depth t from near to far."""
    origins: Tensor  # [R, 3]
    directions: Tensor  # [R, 3] of any length: t is depth along the camera's axis (in NDC: NDC depth)
    viewdirs: Tensor  # [R, 3] of unit length, in world coordinates for rays in NDC too
    near: Tensor  # [R, 1]
    far: Tensor  # [R, 1]

    def part(self, rows: slice | Tensor) -> Rays:
        """Rays of some rows."""
        return Rays(*(each[rows] for each in self))


def to_world(dirs: Tensor, c2w: Tensor) -> tuple[Tensor, Tensor]:
    """World rays, origins and directions [..., 3], from directions [..., 3] in the axes of cameras (x right, y up, z
    backward), by camera-to-world matrices [..., 3 or 4, 4]."""
    dirs = dirs.to(c2w.dtype)
    directions = (c2w[..., :3, :3] * dirs[..., None, :]).sum(-1)
    return c2w[..., :3, 3].expand_as(directions), directions


def pixel_rays(rows: Tensor, columns: Tensor, K: Tensor, c2w: Tensor) -> tuple[Tensor, Tensor]:
    """World rays through single pixels, for training: origins and directions [..., 3], the latter with length 1 along
    the camera's axis.

    Args:
        rows, columns: [...] places in pixels, counted from the top left; fractions lie between pixels.
        K: [3, 3] or [..., 3, 3] intrinsics in pixels, of one camera or of each pixel's.
        c2w: [3 or 4, 4] or [..., 3 or 4, 4] camera-to-world, OpenGL axes (x right, y up, looking along -z).
    """
    x = (columns - K[..., 0, 2]) / K[..., 0, 0]
    y = -(rows - K[..., 1, 2]) / K[..., 1, 1]
    return to_world(torch.stack([x, y, -torch.ones_like(x)], -1), c2w)


def get_rays(H: int, W: int, K: Tensor | np.ndarray, c2w: Tensor) -> tuple[Tensor, Tensor]:
    """World rays through all H x W pixels of a picture: origins and directions, [H, W, 3] each, by intrinsics K [3, 3]
    in pixels and the camera-to-world matrix c2w [3 or 4, 4], OpenGL axes."""
    K = torch.as_tensor(K, dtype=torch.float32, device=c2w.device)
    rows, columns = torch.meshgrid(torch.arange(H, device=c2w.device), torch.arange(W, device=c2w.device),
                                   indexing='ij')
    return pixel_rays(rows, columns, K, c2w)


def get_rays_np(H: int, W: int, K: np.ndarray, c2w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`get_rays` with arrays: float32 origins and directions, [H, W, 3] each. If an edit makes them differ from
    `pixel_rays`, training looks its rays up in these arrays."""
    origins, directions = get_rays(H, W, K, torch.as_tensor(np.asarray(c2w), dtype=torch.float32))
    return origins.numpy(), directions.numpy()


# Normalised device coordinates (appendix C)

def ndc_rays(H: int, W: int, focal: float, near: float, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor]:
    """Origins and directions [..., 3] in normalised device coordinates (NDC, equations 25 and 26) of world rays of a
    forward-facing scene. Origins first move to the plane z = -near: it is at depth t = 0, and infinity at t = 1.

    Args:
        H, W, focal: height, width and focal length of the picture in pixels.
        near: distance of the near plane.
        rays_o, rays_d: [..., 3] origins and directions. No direction may lie in the near plane.
    """
    t = -(near + rays_o[..., 2]) / rays_d[..., 2]
    ox, oy, oz = (rays_o + t[..., None] * rays_d).unbind(-1)
    dx, dy, dz = rays_d.unbind(-1)
    ax, ay = -2.0 * focal / W, -2.0 * focal / H
    origins = torch.stack([ax * ox / oz, ay * oy / oz, 1.0 + 2.0 * near / oz], -1)
    directions = torch.stack([ax * (dx / dz - ox / oz), ay * (dy / dz - oy / oz), -2.0 * near / oz], -1)
    return origins, directions


def ndc_points(H: int, W: int, focal: float, near: float, points: Tensor) -> Tensor:
    """NDC (equation 24) of world points [..., 3] in front of the camera, z < 0: ax x / z, ay y / z and 1 + 2 near / z,
    with ax = -2 focal / W and ay = -2 focal / H."""
    x, y, z = points.unbind(-1)
    return torch.stack([-2.0 * focal / W * x / z, -2.0 * focal / H * y / z, 1.0 + 2.0 * near / z], -1)


def world_points(H: int, W: int, focal: float, near: float, points: Tensor) -> Tensor:
    """World points of NDC points [..., 3] with z' < 1, by the inverse of `ndc_points`: z = 2 near / (z' - 1),
    x = -x' z W / (2 focal) and y = -y' z H / (2 focal)."""
    x, y, z = points.unbind(-1)
    z = 2.0 * near / (z - 1.0)
    return torch.stack([-0.5 * W / focal * x * z, -0.5 * H / focal * y * z, z], -1)


def bundle_rays(origins: Tensor, directions: Tensor, near: float | Tensor, far: float | Tensor,
                viewdirs: Tensor | None = None) -> Rays:
    """Rays from origins and directions [..., 3], with bounds of all rays, or of each, [R, 1]. viewdirs are unit
    directions [..., 3] in world coordinates; None: those of `directions`."""
    viewdirs = nn.functional.normalize(directions, dim=-1) if viewdirs is None else viewdirs
    origins, directions, viewdirs = (x.reshape(-1, 3) for x in (origins, directions, viewdirs))
    bound = torch.ones_like(origins[:, :1])
    return Rays(origins, directions, viewdirs, near * bound, far * bound)


# Sampling: stratified (section 4, equation 2) and hierarchical (section 5.2)

class Sampling(NamedTuple):
    """Settings for the sampling and the compositing of rays."""

    N_samples: int  # coarse samples of a ray
    N_importance: int = 0  # further samples of the fine pass; 0: no fine pass
    perturb: bool = False  # whether training jitters samples
    lindisp: bool = False  # whether coarse samples lie evenly in disparity instead of depth
    raw_noise_std: float = 0.0  # standard deviation of the noise on raw density in training, in 1/scene unit
    white_bkgd: bool = False  # whether the background is white, else black
    horizon: float = 0.0  # depth, in near bounds, up to which samples lie evenly in disparity; 0: up to the far bound


class Draws(NamedTuple):
    """Random numbers of one training step. They are drawn ahead for all rays, so tiles of rays change nothing."""
    jitter: Tensor | None  # [R, N_samples] in [0, 1): place of each coarse sample in its bin
    u: Tensor | None  # [R, N_importance] in [0, 1): values of the coarse pass's CDF at the fine samples
    noise: Tensor | None  # [R, N_samples] standard normal: noise on the coarse network's raw density
    noise_fine: Tensor | None  # [R, N_samples + N_importance]: noise on the fine network's


NO_DRAWS = Draws(None, None, None, None)  # nothing is random: pictures


def draw(n_rays: int, sampling: Sampling, generator: torch.Generator) -> Draws:
    """Random numbers of n_rays training rays, on the generator's device."""
    n_coarse, n_fine = sampling.N_samples, sampling.N_importance
    noisy, where = sampling.raw_noise_std > 0, {'generator': generator, 'device': generator.device}
    return Draws(
        jitter=torch.rand(n_rays, n_coarse, **where) if sampling.perturb else None,
        u=torch.rand(n_rays, n_fine, **where) if sampling.perturb and n_fine else None,
        noise=torch.randn(n_rays, n_coarse, **where) if noisy else None,
        noise_fine=torch.randn(n_rays, n_coarse + n_fine, **where) if noisy and n_fine else None)


def stratified_z(near: Tensor, far: Tensor, N_samples: int, lindisp: bool = False,
                 jitter: Tensor | None = None) -> Tensor:
    """Depths [R, N_samples] of stratified samples, ascending (equation 2), between bounds [R, 1], both included. With
    lindisp, samples lie evenly in 1 / depth. The jitter [R, N_samples] in [0, 1) is the place of each sample in its
    bin; None: samples stay where they are."""
    s = torch.linspace(0.0, 1.0, N_samples, device=near.device)
    z = 1.0 / ((1.0 - s) / near + s / far) if lindisp else near * (1.0 - s) + far * s
    if jitter is None:
        return z
    middles = 0.5 * (z[:, 1:] + z[:, :-1])
    lower, upper = torch.cat([z[:, :1], middles], -1), torch.cat([middles, z[:, -1:]], -1)
    return lower + (upper - lower) * jitter


def coarse_depths(rays: Rays, sampling: Sampling, jitter: Tensor | None = None) -> Tensor:
    """Depths [R, N_samples] of the coarse pass; jitter as for `stratified_z`. Up to a horizon, samples and their bins
    lie evenly in the normalised distance of mip-NeRF 360 (arXiv:2111.12077, equation 11): in disparity."""
    if sampling.horizon:
        return 1.0 / stratified_z(1.0 / rays.near, 1.0 / (sampling.horizon * rays.near), sampling.N_samples,
                                  jitter=jitter)
    return stratified_z(rays.near, rays.far, sampling.N_samples, sampling.lindisp, jitter)


def sample_pdf(bins: Tensor, weights: Tensor, N_samples: int, det: bool = False,
               generator: torch.Generator | None = None, u: Tensor | None = None) -> Tensor:
    """Places [R, N_samples], in the order of u, at which the piecewise linear CDF of a histogram reaches u: inverse
    transform sampling (section 5.2).

    Args:
        bins: [R, B + 1] edges of the bins, ascending.
        weights: [R, B] heights, not negative; all zero stands for a uniform distribution.
        det: u is spread evenly over [0, 1], ends included; else it is random.
        generator: source of random u.
        u: [R, N_samples] in [0, 1] that were drawn ahead; None: as `det` says.
    """
    if u is None:
        shape = (*weights.shape[:-1], N_samples)
        if det:
            u = torch.linspace(0.0, 1.0, N_samples, device=bins.device).expand(shape)
        else:
            u = torch.rand(shape, generator=generator, device=bins.device)
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


def fine_depths(z: Tensor, weights: Tensor, sampling: Sampling, u: Tensor | None = None,
                generator: torch.Generator | None = None) -> Tensor:
    """Depths [R, N_importance] by depths z and weights of the coarse pass, [R, N_samples] each. Up to a horizon, bins
    are bins of disparity. u and generator are as for `sample_pdf`; without both, u is spread evenly."""
    det = u is None and (generator is None or not sampling.perturb)
    places, weights = 1.0 / z if sampling.horizon else z, weights[:, 1:-1].detach()
    bins = 0.5 * (places[:, 1:] + places[:, :-1])
    found = sample_pdf(bins, weights, sampling.N_importance, det, generator, u)
    return 1.0 / found if sampling.horizon else found


# Volume rendering (section 4, equation 3)

BEYOND = 1e10  # length in depth of a ray's last sample, which stands for everything behind it


class Composite(NamedTuple):
    """Colour, disparity, opacity and depth of R rays."""
    rgb: Tensor  # [R, 3] colour
    disp: Tensor  # [R] disparity: 1 / depth of what the ray hits; 0 where it hits nothing
    acc: Tensor  # [R] opacity: the sum of the weights
    weights: Tensor  # [R, S], or [N] of a list of samples: share of each sample in the colour
    depth: Tensor  # [R] expected depth, not divided by opacity


def composite(rgb: Tensor, density: Tensor, z_vals: Tensor, rays_d: Tensor, white_bkgd: bool = False,
              deltas: Tensor | None = None) -> Composite:
    """Numerical quadrature of the volume rendering integral (equation 3).

    Args:
        rgb: [R, S, 3] colours.
        density: [R, S] densities, not negative, in 1/scene unit.
        z_vals: [R, S] depths, ascending.
        rays_d: [R, 3] directions, whose length turns depth into distance.
        white_bkgd: whether the background is white, else black.
        deltas: [R, S] length of each sample in depth; None: up to the next sample, and BEYOND for the last one.
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
    """`composite` of rays with different numbers of samples: all N samples in one list, ray after ray.

    Args:
        rgb, density, z_vals, deltas: [N, 3], [N], [N] and [N], as for `composite`.
        ray: [N] int64, ascending: each sample's ray. A ray may have no sample.
        rays_d, white_bkgd: as for `composite`.
    """
    last = torch.ones_like(ray, dtype=torch.bool)  # the last sample of each ray
    last[:-1] = ray[1:] != ray[:-1]
    if deltas is None:
        deltas = torch.where(last, BEYOND, torch.cat([z_vals[1:] - z_vals[:-1], z_vals[-1:]]))
    optical = density * deltas * rays_d.norm(dim=-1)[ray]
    # One sum in float64 runs over all rays; its value at a ray's start is subtracted. Each term is bounded, so all rays
    # keep their precision: an optical depth of 100 lets no light through either.
    passed = torch.where(last | optical.isnan(), 0.0, optical.clamp(max=100.0)).double().cumsum(0)
    passed = nn.functional.pad(passed, (1, 0))  # [N + 1] before each sample, and behind all
    start = passed[torch.searchsorted(ray, torch.arange(len(rays_d), device=ray.device))]
    weights = torch.exp(-(passed[:-1] - start[ray]).float()) * (1.0 - torch.exp(-optical))

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(len(rays_d), *values.shape[1:]).index_add(0, ray, values)
    return _composited(total(weights[:, None] * rgb), weights, total(weights * z_vals), total(weights), white_bkgd)


def _composited(rgb: Tensor, weights: Tensor, depth: Tensor, acc: Tensor, white_bkgd: bool) -> Composite:
    """A `Composite` from the sums over each ray's samples."""
    return Composite(rgb + (1.0 - acc[..., None]) if white_bkgd else rgb, disparity(depth, acc), acc, weights, depth)


def disparity(depth: Tensor, acc: Tensor) -> Tensor:
    """Disparity [R], 1 / depth of the hit surface, from expected depth and opacity [R]; 0 of rays without a hit."""
    hit = acc > 1e-10
    # The inner where keeps the gradient of an empty ray, 0 / 0, finite too.
    return torch.where(hit, 1.0 / (depth / torch.where(hit, acc, 1.0)).clamp(min=1e-10), 0.0)


def ndc_disparity(depth: Tensor, acc: Tensor) -> Tensor:
    """`disparity` along the world's -z axis, from expected NDC depth and opacity [R] with a near plane at 1.

    By equation 25 a point at depth z has the NDC depth 1 - 2 / z, and a ray is there at -1 + 2 t: 1 / z = 1 - t."""
    hit = acc > 1e-10
    return torch.where(hit, 1.0 - depth / torch.where(hit, acc, 1.0), 0.0)


def raw2colour(raw: Tensor) -> Tensor:
    """Colour in [0, 1] from raw colour [..., 3]."""
    return torch.sigmoid(raw)


def raw2density(raw: Tensor) -> Tensor:
    """Density in 1/scene unit from raw density [...]. Meshes and surveys of the density take it from here too."""
    return raw.relu()


def raw2outputs(raw: Tensor, z_vals: Tensor, rays_d: Tensor, raw_noise_std: float = 0.0, white_bkgd: bool = False,
                generator: torch.Generator | None = None, noise: Tensor | None = None,
                deltas: Tensor | None = None) -> Composite:
    """Composite of a network's raw output: the compositor of training and of pictures.

    Args:
        raw: [R, S, 4 or more] raw colour and raw density.
        z_vals, rays_d, white_bkgd, deltas: as for `composite`.
        raw_noise_std: standard deviation, in 1/scene unit, of noise on raw density; a regulariser of training.
        generator: source of the noise.
        noise: [R, S] standard normal noise that was drawn ahead; None: it is drawn here.
    """
    rgb, density, _ = raw.float().tensor_split((3, 4), -1)
    density = density[..., 0]
    if raw_noise_std > 0:
        noise = torch.randn(density.shape, generator=generator, device=raw.device) if noise is None else noise
        density = density + raw_noise_std * noise
    return composite(raw2colour(rgb), raw2density(density), z_vals, rays_d, white_bkgd, deltas)


# Rendering: sample rays, ask the field, composite

class RenderResult(NamedTuple):
    """Composites of the passes over R rays."""
    final: Composite  # of the fine pass, or of the only pass
    coarse: Composite | None  # of the coarse pass; None without a fine pass
    z_std: Tensor | None  # [R] spread of the fine samples in depth; None without a fine pass


def ray_points(rays: Rays, z: Tensor) -> Tensor:
    """Points [R, S, 3] at depths z [R, S]."""
    return rays.origins[:, None] + rays.directions[:, None] * z[..., None]


def render_pass(field: Callable, rays: Rays, z: Tensor, sampling: Sampling, noise: Tensor | None = None,
                generator: torch.Generator | None = None, deltas: Tensor | None = None) -> Composite:
    """Composite of a field, as for `render_rays`, at depths z [R, S]: one pass. noise, generator and deltas are as for
    `raw2outputs`. Without noise and generator, raw density gets no noise."""
    std = 0.0 if noise is None and generator is None else sampling.raw_noise_std
    raw = field(ray_points(rays, z), rays.viewdirs, None if noise is None else std * noise)
    return raw2outputs(raw, z, rays.directions, std, sampling.white_bkgd, generator, noise, deltas)


def render_rays(rays: Rays, coarse: Callable, fine: Callable | None, sampling: Sampling, draws: Draws = NO_DRAWS,
                generator: torch.Generator | None = None) -> RenderResult:
    """Composites of a coarse field and, in a second pass guided by the first one, of a fine field (section 5.2).

    Args:
        coarse, fine: fields, as functions from points [R, S, 3], unit viewing directions [R, 3] and noise [R, S] (or
            None) to raw colour and raw density [R, S, 4 or more]. The noise is not part of raw density; a point
            without density behind the noise needs no colour. fine None: one pass.
        generator: source of u and noise if `draws` has none. Results then depend on the tiles of rays.
    """
    z = coarse_depths(rays, sampling, draws.jitter)
    coarse_pass = render_pass(coarse, rays, z, sampling, draws.noise, generator)
    if fine is None:
        return RenderResult(coarse_pass, None, None)
    z_fine = fine_depths(z, coarse_pass.weights, sampling, draws.u, generator)
    z_all = torch.cat([z, z_fine], -1).sort(-1).values
    fine_pass = render_pass(fine, rays, z_all, sampling, draws.noise_fine, generator)
    return RenderResult(fine_pass, coarse_pass, z_fine.std(-1, unbiased=False))
