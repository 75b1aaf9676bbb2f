"""run_nerf_helpers.py: the paper's maths."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nerf.fields.paper.mlp import FastMLPField
from run_nerf_helpers import (
    BEYOND, NO_DRAWS, Composite, Draws, Embedder, NeRF, Rays, Sampling, bundle_rays, coarse_depths, composite,
    composite_packed, disparity, draw, fine_depths, get_embedder, get_rays, get_rays_np, img2mse, mse2psnr,
    ndc_disparity, ndc_points, ndc_rays, pixel_rays, raw2colour, raw2density, raw2outputs, ray_points, render_pass,
    render_rays, sample_pdf, stratified_z, to8b, world_points,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, low: float = 0.0, high: float = 1.0, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=seeded(seed), dtype=dtype)


def some_rays(n: int, near: float = 2.0, far: float = 6.0) -> Rays:
    return bundle_rays(rand(n, 3, low=-1.0), rand(n, 3, low=-1.0, seed=1), near, far)


def small_field(seed: int = 0, use_viewdirs: bool = True, **kwargs) -> FastMLPField:
    points, n_points = get_embedder(4)
    dirs, n_dirs = get_embedder(2) if use_viewdirs else (None, 0)
    network = NeRF(D=3, W=16, input_ch=n_points, input_ch_views=n_dirs, skips=[1], use_viewdirs=use_viewdirs,
                   generator=seeded(seed))
    return FastMLPField(network, points, dirs, **kwargs)


ORANGE = torch.tensor([100.0, 0.0, -100.0])  # raw colour of (1, 0.5, 0)


def ball(points: torch.Tensor, viewdirs: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """An opaque ball of radius 1 at the origin, with colour (1, 0.5, 0)."""
    density = torch.where(points.norm(dim=-1) < 1.0, 1e4, -1.0)
    return torch.cat([ORANGE.expand(points.shape), density[..., None]], -1)


class Recorder:
    """A field that remembers the depths it was asked for; its rays start at the origin and go along x."""

    def __init__(self, field):
        self.field, self.z = field, []

    def __call__(self, points, viewdirs, noise=None):
        self.z.append(points[..., 0])
        return self.field(points, viewdirs, noise)


def assert_golden(ours, reference: np.ndarray) -> None:
    """To 1e-5 where the reference is finite; 0 where it is not a number."""
    ours, finite = np.asarray(ours), np.isfinite(reference)
    assert ours.shape == reference.shape
    np.testing.assert_allclose(ours[finite], reference[finite], rtol=1e-5, atol=1e-5)
    assert (ours[~finite] == 0).all()


# Metrics


@pytest.mark.parametrize('convert', [np.array, torch.tensor])
def test_to8b_rounds_to_the_nearest_level_and_clips(convert):
    colours = convert([[-1.0, 0.0, 1.4 / 255, 1.6 / 255], [0.5, 254.6 / 255, 1.0, 7.0]])
    levels = to8b(colours)
    assert levels.dtype == np.uint8
    assert levels.tolist() == [[0, 0, 1, 2], [128, 255, 255, 255]]


def test_mse_and_psnr_by_hand():
    mse = img2mse(torch.tensor([[0.5, 0.0], [1.0, 0.2]]), torch.tensor([[0.5, 0.0], [1.0, 0.0]]))
    assert mse.item() == pytest.approx(0.01)
    assert mse2psnr(mse).item() == pytest.approx(20.0)


# Positional encoding


@pytest.mark.parametrize(('multires', 'key', 'dim'), [(10, 'embed10', 0), (4, 'embed4', 1)])
def test_encoding_agrees_with_the_reference(golden, multires, key, dim):
    embed, out_dim = get_embedder(multires, 0)
    assert out_dim == golden['embed_dims'][dim]
    assert_golden(embed(torch.from_numpy(golden['embed_x'])), golden[key])


def test_encoding_is_the_input_then_sines_and_cosines_of_doubling_frequency():
    p = [0.1, -0.7, 2.0]
    waves = [wave(f * x) for f in (1, 2) for wave in (math.sin, math.cos) for x in p]
    torch.testing.assert_close(Embedder(2)(torch.tensor(p)), torch.tensor(p + waves))


def test_no_encoding_leaves_the_input_alone():
    embed, out_dim = get_embedder(10, -1)
    x = rand(5, 3)
    assert out_dim == 3
    assert torch.equal(embed(x), x)


# The network


def shapes(network: NeRF) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(parameter.shape)) for name, parameter in network.named_parameters()]


def layer(name: str, outputs: int, inputs: int) -> list[tuple[str, tuple[int, ...]]]:
    return [(f'{name}.weight', (outputs, inputs)), (f'{name}.bias', (outputs,))]


def trunk(D: int, W: int, inputs: int, after_skip: int | None) -> list[tuple[str, tuple[int, ...]]]:
    widths = [inputs] + [W + inputs if i == after_skip else W for i in range(1, D)]
    return [row for i, width in enumerate(widths) for row in layer(f'pts_linears.{i}', W, width)]


def test_parameters_with_view_directions_are_those_of_the_reference():
    network = NeRF(input_ch=63, input_ch_views=27, use_viewdirs=True)
    assert shapes(network) == (trunk(8, 256, 63, 5) + layer('views_linears.0', 128, 256 + 27)
                               + layer('feature_linear', 256, 256) + layer('alpha_linear', 1, 256)
                               + layer('rgb_linear', 3, 128))


def test_parameters_without_view_directions_are_those_of_the_reference():
    network = NeRF(input_ch=63, input_ch_views=0, output_ch=5)
    assert shapes(network) == (trunk(8, 256, 63, 5) + layer('views_linears.0', 128, 256)
                               + layer('output_linear', 5, 256))


def test_a_skip_that_would_land_on_the_heads_is_left_out():
    network = NeRF(D=5, W=16, input_ch=9, input_ch_views=6, use_viewdirs=True)
    assert shapes(network)[:10] == trunk(5, 16, 9, None)
    assert network(rand(7, 15)).shape == (7, 4)


@pytest.mark.parametrize('use_viewdirs', [True, False])
def test_network_agrees_with_figure_7_written_out(use_viewdirs):
    network = NeRF(D=8, W=16, input_ch=9, input_ch_views=6, use_viewdirs=use_viewdirs, generator=seeded())
    x = rand(11, 15, low=-3.0, high=3.0)
    linear = {name: lambda h, name=name, layer=layer: h @ layer.weight.T + layer.bias
              for name, layer in network.named_modules() if isinstance(layer, torch.nn.Linear)}
    h = x[:, :9]
    for i in range(8):
        h = linear[f'pts_linears.{i}'](torch.cat([x[:, :9], h], -1) if i == 5 else h).clamp(min=0)
    if use_viewdirs:
        density = linear['alpha_linear'](h)
        h = linear['views_linears.0'](torch.cat([linear['feature_linear'](h), x[:, 9:]], -1)).clamp(min=0)
        expected = torch.cat([linear['rgb_linear'](h), density], -1)
    else:
        expected = linear['output_linear'](h)
    torch.testing.assert_close(network(x), expected)


def test_density_does_not_depend_on_the_view_direction_but_colour_does():
    field, points = small_field(), rand(4, 5, 3)
    raw, other = field.raw(points, rand(4, 3)), field.raw(points, rand(4, 3, seed=1))
    assert raw[..., 3].max() > 0
    assert torch.equal(raw[..., 3], other[..., 3])
    assert not torch.allclose(raw[..., :3], other[..., :3], atol=1e-3)


def test_initial_weights_follow_from_the_generator():
    first, again, other = (NeRF(D=2, W=8, generator=seeded(seed)) for seed in (0, 0, 1))
    for parameter, same, different in zip(first.parameters(), again.parameters(), other.parameters()):
        assert torch.equal(parameter, same)
        assert not torch.equal(parameter, different)
    other.reset_parameters(seeded(0))
    assert torch.equal(other.output_linear.weight, first.output_linear.weight)


@pytest.mark.parametrize('use_viewdirs', [True, False])
def test_lifting_density_adds_to_raw_density_everywhere_and_to_nothing_else(use_viewdirs):
    network = NeRF(D=3, W=16, input_ch=9, input_ch_views=6, output_ch=5, use_viewdirs=use_viewdirs, generator=seeded())
    x = rand(11, 15)
    before = network(x)
    network.lift_density(0.75)
    expected = before.clone()
    expected[:, 3] += 0.75
    torch.testing.assert_close(network(x), expected)


# Precision


def test_encoding_of_half_precision_input_is_computed_in_float32():
    x = rand(9, 3, high=100.0).bfloat16()
    assert Embedder(10)(x).dtype == torch.float32
    assert torch.equal(Embedder(10)(x), Embedder(10)(x.float()))


def test_compositing_of_a_bf16_network_is_float32():
    raw, z, rays_d = rand(4, 8, 4, low=-1.0).bfloat16(), rand(4, 8).sort(-1).values, rand(4, 3)
    for ours, expected in zip(raw2outputs(raw, z, rays_d), raw2outputs(raw.float(), z, rays_d)):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, expected)
    result = render_rays(some_rays(5), small_field(dtype=torch.bfloat16).raw, small_field(1, dtype=torch.bfloat16).raw,
                         Sampling(8, 8))
    assert {part.dtype for one in (result.coarse, result.final) for part in one} == {torch.float32}


# Rays


def test_rays_agree_with_the_reference(golden):
    size_and_camera = (int(golden['rays_H']), int(golden['rays_W']), golden['rays_K'])
    for ours, key in zip(get_rays(*size_and_camera, torch.from_numpy(golden['rays_c2w'])), ('rays_o', 'rays_d')):
        assert_golden(ours, golden[key])
    for ours, key in zip(get_rays_np(*size_and_camera, golden['rays_c2w']), ('rays_o', 'rays_d')):
        assert isinstance(ours, np.ndarray)
        assert ours.dtype == np.float32
        assert_golden(ours, golden[key])


K = np.array([[20.0, 0.0, 5.0], [0.0, 30.0, 3.0], [0.0, 0.0, 1.0]])


def test_the_top_row_looks_up_and_the_left_column_left():
    origins, directions = get_rays(7, 11, K, torch.eye(4))
    assert origins.shape == directions.shape == (7, 11, 3)
    assert (directions[0, :, 1] > 0).all()
    assert (directions[-1, :, 1] < 0).all()
    assert (directions[:, 0, 0] < 0).all()
    assert (directions[:, -1, 0] > 0).all()
    assert (directions[..., 2] == -1).all()


def camera(seed: int = 0) -> torch.Tensor:
    """[3, 4], some rotation and place."""
    rotation = torch.linalg.qr(rand(3, 3, low=-1.0, seed=seed)).Q
    return torch.cat([rotation, rand(3, 1, low=-5.0, high=5.0, seed=seed + 1)], -1)


def test_the_ray_through_the_principal_point_goes_along_minus_z_of_the_camera():
    c2w = camera()
    origins, directions = get_rays(7, 11, K, c2w)
    torch.testing.assert_close(directions[3, 5], -c2w[:, 2])
    assert torch.equal(origins, c2w[:, 3].expand(7, 11, 3))


def test_rays_of_single_pixels_project_back_onto_them_each_through_its_own_camera():
    rows, columns = torch.tensor([0, 6, 2, 3]), torch.tensor([0, 10, 7, 5])
    cameras = torch.stack([camera(seed) for seed in range(4)])
    origins, directions = pixel_rays(rows, columns, torch.from_numpy(K).float(), cameras)
    point = (cameras[:, :, :3].mT @ (origins + 2.5 * directions - cameras[:, :, 3])[..., None])[..., 0]
    torch.testing.assert_close(-20.0 * point[:, 0] / point[:, 2] + 5.0, columns.float())
    torch.testing.assert_close(30.0 * point[:, 1] / point[:, 2] + 3.0, rows.float())
    torch.testing.assert_close(point[:, 2], torch.full((4,), -2.5))


def test_bundled_rays_have_unit_view_directions_and_bounds():
    origins, directions = get_rays(7, 11, K, camera())
    rays = bundle_rays(origins, directions, 2.0, 6.0)
    assert [tuple(part.shape) for part in rays] == [(77, 3), (77, 3), (77, 3), (77, 1), (77, 1)]
    assert torch.equal(rays.directions, directions.reshape(-1, 3))
    torch.testing.assert_close(rays.viewdirs * directions.reshape(-1, 3).norm(dim=-1, keepdim=True), rays.directions)
    assert (rays.near == 2.0).all()
    assert (rays.far == 6.0).all()
    for part, whole in zip(rays.part(slice(3, 9)), rays):
        assert torch.equal(part, whole[3:9])
    rows = torch.tensor([70, 2, 2])
    for part, whole in zip(rays.part(rows), rays):
        assert torch.equal(part, whole[rows])


# Normalised device coordinates


def test_ndc_agrees_with_the_reference(golden):
    origins, directions = (torch.from_numpy(golden[key]) for key in ('ndc_in_o', 'ndc_in_d'))
    H, W, focal = golden['fern_poses'][0, :, 4].tolist()
    for ours, key in zip(ndc_rays(H, W, focal, 1.0, origins, directions), ('ndc_o', 'ndc_d')):
        assert_golden(ours, golden[key])


def forward_rays(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Origins about the world's origin, directions along -z, float64."""
    origins, directions = (rand(n, 3, low=-1.0, seed=seed, dtype=torch.float64) for seed in (0, 1))
    directions[:, 2] -= 2.0
    return origins, directions


def test_ndc_rays_run_from_the_near_plane_at_minus_one_to_infinity_at_plus_one():
    origins, directions = ndc_rays(40, 60, 50.0, 1.5, *forward_rays(9))
    minus_one = torch.full((9,), -1.0, dtype=torch.float64)
    torch.testing.assert_close(origins[:, 2], minus_one)
    torch.testing.assert_close((origins + directions)[:, 2], -minus_one)


def test_ndc_rays_pass_through_the_projections_of_the_world_rays_points():
    H, W, focal, near = 40, 60, 50.0, 1.5
    origins, directions = forward_rays(9)
    for distance in (near, 2.0, 10.0, 1e6):  # of the plane z = -distance
        t = -(distance + origins[:, 2:]) / directions[:, 2:]
        x, y, z = (origins + t * directions).unbind(-1)
        projected = torch.stack([-focal / (W / 2) * x / z, -focal / (H / 2) * y / z, 1 + 2 * near / z], -1)
        ndc_o, ndc_d = ndc_rays(H, W, focal, near, origins, directions)
        torch.testing.assert_close(ndc_o + (1 - near / distance) * ndc_d, projected)


def test_bundled_rays_keep_viewing_directions_that_are_given():
    viewdirs = torch.nn.functional.normalize(rand(3, 3, 3, low=-1.0, seed=2), dim=-1)
    rays = bundle_rays(rand(3, 3, 3), rand(3, 3, 3, seed=1), 0.0, rand(9, 1, seed=3), viewdirs)
    assert torch.equal(rays.viewdirs, viewdirs.reshape(9, 3))
    assert torch.equal(rays.far, rand(9, 1, seed=3))


def test_ndc_points_are_the_projection_and_world_points_its_inverse():
    H, W, focal, near = 40, 60, 50.0, 1.5
    points = rand(20, 3, low=-1.0, dtype=torch.float64) - torch.tensor([0.0, 0.0, 3.0])
    x, y, z = points.unbind(-1)
    projected = ndc_points(H, W, focal, near, points)
    torch.testing.assert_close(projected[:, 0], -focal / (W / 2) * x / z)
    torch.testing.assert_close(projected[:, 1], -focal / (H / 2) * y / z)
    torch.testing.assert_close(projected[:, 2], 1 + 2 * near / z)
    torch.testing.assert_close(world_points(H, W, focal, near, projected), points)


# Sampling


BOUNDS = torch.tensor([[2.0], [1.0]]), torch.tensor([[6.0], [4.0]])  # near, far of two rays


def test_stratified_depths_without_jitter_are_linear_in_depth_or_in_disparity():
    z = stratified_z(*BOUNDS, 5)
    torch.testing.assert_close(z, torch.tensor([[2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 1.75, 2.5, 3.25, 4.0]]))
    z = stratified_z(*BOUNDS, 3, lindisp=True)
    torch.testing.assert_close(1 / z, torch.tensor([[1 / 2, 1 / 3, 1 / 6], [1.0, 5 / 8, 1 / 4]]))


@pytest.mark.parametrize('lindisp', [False, True])
def test_jitter_moves_each_depth_within_its_own_bin(lindisp):
    z = stratified_z(*BOUNDS, 5, lindisp)
    edges = torch.cat([z[:, :1], (z[:, 1:] + z[:, :-1]) / 2, z[:, -1:]], -1)
    for value, expected in ((0.0, edges[:, :-1]), (0.5, (edges[:, 1:] + edges[:, :-1]) / 2), (1.0, edges[:, 1:])):
        torch.testing.assert_close(stratified_z(*BOUNDS, 5, lindisp, torch.full((2, 5), value)), expected)
    jittered = stratified_z(*BOUNDS, 5, lindisp, rand(2, 5))
    assert (jittered > edges[:, :-1]).all()
    assert (jittered < edges[:, 1:]).all()


def test_sample_pdf_agrees_with_the_reference(golden):
    bins, weights = torch.from_numpy(golden['pdf_bins']), torch.from_numpy(golden['pdf_weights'])
    assert_golden(sample_pdf(bins, weights, golden['pdf_det'].shape[1], det=True), golden['pdf_det'])


def test_places_of_given_u_by_hand():
    u = torch.tensor([[0.0, 0.125, 0.25, 0.625, 1.0]])
    z = sample_pdf(torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[1.0, 3.0]]), 5, u=u)
    torch.testing.assert_close(z, torch.tensor([[0.0, 0.5, 1.0, 2.0, 3.0]]), rtol=0, atol=1e-4)


def test_no_weight_at_all_is_a_uniform_distribution():
    z = sample_pdf(torch.tensor([[2.0, 3.0, 4.0, 5.0, 6.0]]), torch.zeros(1, 4), 9, det=True)
    torch.testing.assert_close(z, torch.linspace(2.0, 6.0, 9)[None])


@given(data=st.data(), n=st.integers(1, 12))
def test_places_stay_within_the_bins(data, n):
    def floats(size, high):
        return torch.tensor([data.draw(st.lists(st.floats(0, high, width=32), min_size=size, max_size=size))])

    bins, weights, u = floats(n + 1, 1000).sort(-1).values, floats(n, 65536), floats(6, 1)
    z = sample_pdf(bins, weights, 8, u=torch.cat([u, torch.tensor([[0.0, 1.0]])], -1))
    slack = 1e-6 * bins.max()  # one rounding
    assert (z >= bins.min() - slack).all()
    assert (z <= bins.max() + slack).all()


def test_random_samples_follow_the_histogram():
    bins, weights = torch.tensor([[0.0, 1.0, 3.0, 4.0, 8.0]]), torch.tensor([[0.1, 0.4, 0.0, 0.5]])
    z = sample_pdf(bins, weights, 40000, generator=seeded())
    counts = torch.histogram(z[0], bins[0]).hist
    torch.testing.assert_close(counts / 40000, weights[0], rtol=0, atol=0.01)
    for low, high in ((1.0, 3.0), (4.0, 8.0)):  # evenly within a bin
        within = z[(z > low) & (z < high)]
        torch.testing.assert_close(torch.histogram(within, 4, range=(low, high)).hist / len(within),
                                   torch.full((4,), 0.25), rtol=0, atol=0.015)


def test_random_samples_follow_from_the_generator():
    bins, weights = rand(3, 9).sort(-1).values, rand(3, 8)
    first, again, other = (sample_pdf(bins, weights, 16, generator=seeded(seed)) for seed in (0, 0, 1))
    assert first.shape == (3, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first, sample_pdf(bins, weights, 16, u=torch.rand(3, 16, generator=seeded())))


def test_draws_have_the_shapes_of_what_was_asked_for_and_are_none_else():
    draws = draw(5, Sampling(8, 4, perturb=True, raw_noise_std=2.0), seeded())
    assert [tuple(part.shape) for part in draws] == [(5, 8), (5, 4), (5, 8), (5, 12)]
    assert draw(5, Sampling(8, 4), seeded()) == NO_DRAWS
    assert [part is None for part in draw(5, Sampling(8, 0, True, False, 1.0), seeded())] == [False, True, False, True]
    assert [part is None for part in draw(5, Sampling(8, 4, True), seeded())] == [False, False, True, True]


def test_draws_follow_from_the_generator_in_range_and_noise_is_standard_normal():
    sampling = Sampling(64, 64, perturb=True, raw_noise_std=2.0)
    draws, again = draw(100, sampling, seeded()), draw(100, sampling, seeded())
    for part, same in zip(draws, again):
        assert torch.equal(part, same)
    for part in (draws.jitter, draws.u):
        assert 0 <= part.min() < 0.01
        assert 0.99 < part.max() < 1
    for part in (draws.noise, draws.noise_fine):
        assert part.std().item() == pytest.approx(1.0, rel=0.03)
        assert abs(part.mean().item()) < 0.05


# Compositing


@pytest.mark.parametrize('background', ['black', 'white'])
def test_compositing_agrees_with_the_reference(golden, background):
    raw, z, rays_d = (torch.from_numpy(golden[f'comp_{key}']) for key in ('raw', 'z', 'rays_d'))
    result = raw2outputs(raw, z, rays_d, 0.0, background == 'white')
    for ours, key in zip(result, ('rgb', 'disp', 'acc', 'weights', 'depth'), strict=True):
        assert_golden(ours, golden[f'comp_{background}_{key}'])


@pytest.mark.parametrize(('white_bkgd', 'rgb'), [(False, [0.5, 0.125, 0.0]), (True, [0.875, 0.5, 0.375])])
def test_compositing_two_samples_by_hand(white_bkgd, rgb):
    # Opacities 1/2 and 1/4, so weights 1/2 and 1/8; the ray is 2 long per unit of depth, the last interval is 1e10.
    density = torch.tensor([[math.log(2) / (0.5 * 2), math.log(4 / 3) / (1e10 * 2)]])
    colours = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    result = composite(colours, density, torch.tensor([[3.0, 3.5]]), torch.tensor([[0.0, 0.0, -2.0]]), white_bkgd)
    depth = 0.5 * 3.0 + 0.125 * 3.5
    expected = ([rgb], [0.625 / depth], [0.625], [[0.5, 0.125]], [depth])
    for ours, value in zip(result, expected, strict=True):
        torch.testing.assert_close(ours, torch.tensor(value))


@pytest.mark.parametrize('white_bkgd', [False, True])
def test_an_empty_ray_shows_the_background_without_disparity(white_bkgd):
    result = raw2outputs(torch.full((1, 6, 4), -3.0), torch.linspace(2, 6, 6)[None], torch.ones(1, 3),
                         white_bkgd=white_bkgd)
    assert result.rgb.tolist() == [[float(white_bkgd)] * 3]
    for part in (result.disp, result.acc, result.weights, result.depth):
        assert (part == 0).all()


def composite_loop(raw, z, rays_d, white_bkgd):
    """Equation 3, one sample after the other, in Python floats."""
    rows = []
    for ray_raw, ray_z, ray_d in zip(raw.tolist(), z.tolist(), rays_d.tolist()):
        length, light, rgb, acc, depth, weights = math.hypot(*ray_d), 1.0, [0.0] * 3, 0.0, 0.0, []
        for i, (*colour, density) in enumerate(ray_raw):
            delta = (ray_z[i + 1] - ray_z[i] if i + 1 < len(ray_z) else 1e10) * length
            alpha = 1.0 - math.exp(-max(density, 0.0) * delta)
            weights.append(light * alpha)
            rgb = [c + weights[-1] / (1.0 + math.exp(-x)) for c, x in zip(rgb, colour)]
            acc, depth, light = acc + weights[-1], depth + weights[-1] * ray_z[i], light * (1.0 - alpha)
        rgb = [c + (1.0 - acc) * white_bkgd for c in rgb]
        rows.append((rgb, acc / depth if depth else 0.0, acc, weights, depth))
    return [torch.tensor(column) for column in zip(*rows)]


@pytest.mark.parametrize('white_bkgd', [False, True])
def test_compositing_agrees_with_a_loop_over_samples(white_bkgd):
    raw, z = rand(40, 20, 4, low=-6.0, high=4.0), rand(40, 20, low=2.0, high=6.0).sort(-1).values
    raw[:, -1, 3] -= 5.0  # else the last sample makes every ray opaque
    raw[0, :, 3] = -1.0
    rays_d = rand(40, 3, low=-2.0, high=2.0)
    expected = composite_loop(raw, z, rays_d, white_bkgd)
    assert expected[2].min() == 0
    assert 0.01 < expected[2][1:].min() < 0.9
    for ours, value in zip(raw2outputs(raw, z, rays_d, 0.0, white_bkgd), expected, strict=True):
        torch.testing.assert_close(ours, value, rtol=1e-5, atol=1e-6)


def test_noise_is_added_to_raw_density_before_its_relu():
    raw, z, rays_d = rand(4, 8, 4, low=-1.0), rand(4, 8).sort(-1).values, rand(4, 3)
    noisy = raw.clone()
    noisy[..., 3] += 0.7 * torch.randn(4, 8, generator=seeded(3))
    expected = raw2outputs(noisy, z, rays_d)
    for more in ({'generator': seeded(3)}, {'noise': torch.randn(4, 8, generator=seeded(3))}):
        for ours, theirs in zip(raw2outputs(raw, z, rays_d, 0.7, **more), expected):
            torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(raw2outputs(raw, z, rays_d, noise=rand(4, 8)), raw2outputs(raw, z, rays_d)):
        assert torch.equal(ours, theirs)  # without a standard deviation there is no noise


def test_lengths_of_samples_can_be_given():
    raw, z, rays_d = rand(4, 8, 4, low=-1.0), rand(4, 8).sort(-1).values, rand(4, 3)
    lengths = torch.cat([z.diff(dim=-1), torch.full((4, 1), BEYOND)], -1)
    for ours, theirs in zip(raw2outputs(raw, z, rays_d, deltas=lengths), raw2outputs(raw, z, rays_d)):
        assert torch.equal(ours, theirs)
    lengths = rand(4, 8, seed=1)
    expected = composite(raw2colour(raw[..., :3]), raw2density(raw[..., 3]), z, rays_d, deltas=lengths)
    for ours, theirs in zip(raw2outputs(raw, z, rays_d, deltas=lengths), expected):
        assert torch.equal(ours, theirs)


any_density = st.one_of(st.just(0.0), st.floats(-5, 5, width=32), st.floats(-2.0 ** 120, 2.0 ** 120, width=32))


@given(densities=st.lists(any_density, min_size=1, max_size=8), data=st.data(), white_bkgd=st.booleans())
def test_any_density_gives_weights_of_at_most_one_and_finite_disparity_and_gradient(densities, data, white_bkgd):
    n = len(densities)
    z = data.draw(st.lists(st.floats(0.125, 1024, width=32), min_size=n, max_size=n))
    raw = torch.zeros(1, n, 4)
    raw[0, :, 3] = torch.tensor(densities)
    raw.requires_grad_()
    result = raw2outputs(raw, torch.tensor([z]).sort(-1).values, torch.tensor([[0.6, 0.0, -1.0]]), 0.0, white_bkgd)
    assert (result.weights >= 0).all()
    assert (result.weights <= 1).all()
    assert result.weights.sum() <= 1 + 1e-5
    assert all(part.isfinite().all() for part in result)
    sum(part.sum() for part in result).backward()
    assert raw.grad.isfinite().all()


def test_compositing_has_the_gradient_of_finite_differences():
    double = {'dtype': torch.float64}
    colours, density = rand(3, 5, 3, **double), rand(3, 5, low=0.1, high=2.0, **double)
    z, rays_d = rand(3, 5, low=2.0, high=3.0, **double).sort(-1).values, rand(3, 3, **double)
    assert torch.autograd.gradcheck(lambda *leaves: tuple(composite(*leaves, z, rays_d, True)),
                                    (colours.requires_grad_(), density.requires_grad_()))


def test_an_empty_ray_has_the_gradient_of_finite_differences_and_it_is_finite():
    double = {'dtype': torch.float64}
    colours, z, rays_d = rand(1, 5, 3, **double), rand(1, 5, **double).sort(-1).values, rand(1, 3, **double)
    density = torch.zeros(1, 4, **double, requires_grad=True)

    def smooth(density):  # all but disparity, which jumps, and the last sample, which fills its 1e10 at once
        rgb, _, *rest = composite(colours, torch.nn.functional.pad(density, (0, 1)), z, rays_d)
        return rgb, *rest

    assert torch.autograd.gradcheck(smooth, (density,))
    density = torch.zeros(1, 5, requires_grad=True)
    sum(part.sum() for part in composite(colours.float(), density, z.float(), rays_d.float())).backward()
    assert density.grad.isfinite().all()
    assert (density.grad[0, :4] != 0).all()


# Disparity


def test_disparity_is_opacity_over_depth_and_0_on_an_empty_ray():
    depth, acc = torch.tensor([6.0, 1.5, 0.0, 0.0]), torch.tensor([1.0, 0.5, 0.0, 0.5])
    depth.requires_grad_()
    shown = disparity(depth, acc)
    torch.testing.assert_close(shown, torch.tensor([1 / 6, 1 / 3, 0.0, 1e10]))  # the last one was hit at no distance
    shown.sum().backward()
    torch.testing.assert_close(depth.grad, torch.tensor([-1 / 36, -2 / 9, 0.0, 0.0]))  # of acc / depth: -acc / depth^2


def composite_at(t: list[float], place: int, density: float = 1e9) -> Composite:
    """What a ray in NDC shows whose only matter is at one of its samples."""
    z_vals = torch.tensor([t])
    densities = torch.zeros_like(z_vals)
    densities[0, place] = density
    return composite(torch.full((1, len(t), 3), 0.5), densities, z_vals, torch.tensor([[0.0, 0.0, 2.0]]))


def ndc_disparity_of(shown: Composite) -> float:
    return ndc_disparity(shown.depth, shown.acc).item()


@pytest.mark.parametrize('place', [0, 1, 2, 3])
def test_ndc_disparity_is_1_minus_t_of_what_was_hit(place):
    t = [0.0, 0.25, 0.7, 1.0]
    assert ndc_disparity_of(composite_at(t, place)) == pytest.approx(1 - t[place], abs=1e-6)


def test_ndc_disparity_of_thin_and_of_empty_rays():
    thin = composite_at([0.0, 0.25, 0.7, 1.0], 2, density=0.5)
    assert thin.acc.item() == pytest.approx(1 - math.exp(-0.5 * 0.3 * 2), rel=1e-5)
    assert ndc_disparity_of(thin) == pytest.approx(0.3, abs=1e-6)
    assert ndc_disparity_of(composite_at([0.0, 0.5, 1.0], 1, density=0.0)) == 0.0


@pytest.mark.parametrize('position', [(0.0, 0.0, 0.0), (0.3, -0.2, 0.5)])
@pytest.mark.parametrize('z', [1.0, 1.5, 4.0, 100.0])
def test_ndc_disparity_is_the_inverse_of_the_depth_in_the_world(position, z):
    H, W, focal = 40, 60, 50.0
    centred = torch.tensor([[focal, 0.0, W / 2], [0.0, focal, H / 2], [0.0, 0.0, 1.0]])
    c2w = torch.cat([torch.eye(3), torch.tensor(position)[:, None]], -1)
    for row, column in ((3.0, 5.0), (20.0, 30.0), (33.0, 59.0)):
        origins, directions = pixel_rays(torch.tensor([row]), torch.tensor([column]), centred, c2w)
        x, y, _ = (origins + (z + position[2]) * directions)[0].tolist()
        projected = torch.tensor([focal / (W / 2) * x / z, focal / (H / 2) * y / z, 1 - 2 / z])  # equation 25
        rays = bundle_rays(*ndc_rays(H, W, focal, 1.0, origins, directions), 0.0, 1.0)
        t = ((projected - rays.origins[0]) @ rays.directions[0] / rays.directions[0].square().sum()).item()
        torch.testing.assert_close(rays.origins[0] + t * rays.directions[0], projected, rtol=0, atol=1e-5)
        assert ndc_disparity_of(composite_at([t - 1e-3, t, t + 1e-3], 1)) == pytest.approx(1 / z, abs=1e-5)


# Compositing of packed samples


def packed_leaves(density: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Colours [..., 3] for densities [...], both of which take gradients."""
    return rand(*density.shape, 3, seed=seed).requires_grad_(), density.clone().requires_grad_()


def mixture(shown: Composite) -> torch.Tensor:
    """A number to which every part of what rays show adds, each value with another factor."""
    return sum((part.flatten() * rand(part.numel(), low=0.5, high=1.5, seed=7)).sum() for part in shown)


@pytest.mark.parametrize('white_bkgd', [False, True])
@pytest.mark.parametrize('high', [0.5, 3.0, 1e4])
def test_packed_rays_of_equal_length_show_what_they_show_in_a_dense_array(white_bkgd, high):
    colours, density = packed_leaves(rand(50, 20, low=-high, high=high, seed=1).relu())
    with torch.no_grad():
        density[:25, -1] = 0.0  # else the last sample makes every ray opaque
        density[7] = 0.0
    z, rays_d = rand(50, 20, low=2.0, high=6.0, seed=2).sort(-1).values, rand(50, 3, low=-2.0, high=2.0, seed=3)
    ray = torch.arange(50).repeat_interleave(20)
    packed = composite_packed(colours.reshape(-1, 3), density.flatten(), z.flatten(), ray, rays_d, white_bkgd)
    dense = composite(colours, density, z, rays_d, white_bkgd)
    packed = packed._replace(weights=packed.weights.reshape(50, 20))
    for ours, expected in zip(packed, dense, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    grads, expected = (torch.autograd.grad(mixture(shown), (colours, density)) for shown in (packed, dense))
    assert all(grad.abs().max() > 0 for grad in expected)
    for grad, value in zip(grads, expected):
        torch.testing.assert_close(grad, value, rtol=1e-4, atol=1e-5)


def packed_loop(colours, density, z, ray, rays_d, white_bkgd=False, deltas=None):
    """Equation 3, one sample after the other, in Python floats: rgb, disp, acc, weights, depth."""
    rows, all_weights = [], []
    for number, direction in enumerate(rays_d.tolist()):
        mine = [i for i, owner in enumerate(ray.tolist()) if owner == number]
        light, rgb, acc, depth = 1.0, [0.0] * 3, 0.0, 0.0
        for i in mine:
            length = 1e10 if i == mine[-1] else z[i + 1].item() - z[i].item()
            length = length if deltas is None else deltas[i].item()
            alpha = 1.0 - math.exp(-density[i].item() * length * math.hypot(*direction))
            all_weights.append(light * alpha)
            rgb = [c + all_weights[-1] * x for c, x in zip(rgb, colours[i].tolist())]
            acc, depth = acc + all_weights[-1], depth + all_weights[-1] * z[i].item()
            light *= 1.0 - alpha
        rows.append(([c + (1.0 - acc) * white_bkgd for c in rgb], acc / depth if acc else 0.0, acc, depth))
    rgb, disp, acc, depth = (torch.tensor(column) for column in zip(*rows))
    return rgb, disp, acc, torch.tensor(all_weights), depth


def ragged(counts: list[int], seed: int = 0):
    """Colours, densities, depths and rays of samples, so many on each ray; directions of the rays."""
    n = sum(counts)
    ray = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    z = torch.cat([rand(count, low=2.0, high=6.0, seed=seed + i).sort().values for i, count in enumerate(counts)])
    density = rand(n, low=-1.0, high=2.0, seed=seed + 104).relu()
    return rand(n, 3, seed=seed), density, z, ray, rand(len(counts), 3, low=-2.0, high=2.0, seed=seed + 200)


COUNTS = {'some empty': [3, 0, 5, 1, 0, 0, 7, 2], 'first empty': [0, 0, 4, 2], 'last empty': [4, 2, 0, 0],
          'both ends empty': [0, 3, 0, 1, 0], 'one ray': [6], 'one sample': [1], 'one sample each': [1, 1, 1]}


@pytest.mark.parametrize('counts', COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize('white_bkgd', [False, True])
@pytest.mark.parametrize('explicit', [False, True])
def test_packed_rays_agree_with_a_loop_over_samples(counts, white_bkgd, explicit):
    colours, density, z, ray, rays_d = ragged(counts)
    if not explicit:  # else the last sample, which reaches to infinity, makes every ray opaque
        density[::2] = 0.0
    deltas = rand(len(z), low=0.1, high=0.8, seed=9) if explicit else None
    shown = composite_packed(colours, density, z, ray, rays_d, white_bkgd, deltas)
    expected = packed_loop(colours, density, z, ray, rays_d, white_bkgd, deltas)
    assert expected[2].max() > 0.1 or not explicit
    for ours, value in zip(shown, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, value, rtol=1e-5, atol=1e-6)
    for i, count in enumerate(counts):
        if count == 0:
            assert shown.rgb[i].tolist() == [float(white_bkgd)] * 3
            assert shown.disp[i] == shown.acc[i] == shown.depth[i] == 0


@pytest.mark.parametrize('n_rays', [0, 3])
@pytest.mark.parametrize('explicit', [False, True])
def test_packed_rays_without_any_sample_show_the_background(n_rays, explicit):
    colours, density = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, requires_grad=True)
    empty = torch.zeros(0)
    shown = composite_packed(colours, density, empty, torch.zeros(0, dtype=torch.int64), rand(n_rays, 3), True,
                             empty if explicit else None)
    assert [tuple(part.shape) for part in shown] == [(n_rays, 3), (n_rays,), (n_rays,), (0,), (n_rays,)]
    assert (shown.rgb == 1).all()
    assert all((part == 0).all() for part in (shown.disp, shown.acc, shown.depth))
    mixture(shown).backward()
    assert density.grad.shape == (0,)


def test_packed_compositing_has_the_gradient_of_finite_differences():
    colours, density, z, ray, rays_d = (part.double() if part.is_floating_point() else part
                                        for part in ragged([3, 0, 4, 1, 0]))
    density = 0.3 + density
    deltas = rand(len(z), low=0.1, high=0.8, seed=9, dtype=torch.float64)

    def shown(colours, density, z):
        return tuple(composite_packed(colours, density, z, ray, rays_d, True, deltas))

    # float32 in between, so wide differences and wide bounds
    assert torch.autograd.gradcheck(shown, [part.requires_grad_() for part in (colours, density, z)],
                                    eps=1e-3, atol=2e-3, rtol=2e-2)


def test_packed_rays_whose_light_runs_out_do_not_dim_the_rays_behind_them():
    n_rays, n_samples = 2000, 16
    colours, density, z, ray, rays_d = ragged([n_samples] * n_rays)
    density[:-n_samples] *= 1e6  # all rays but the last
    last = ray == n_rays - 1
    shown = composite_packed(colours, density, z, ray, rays_d)
    alone = composite_packed(colours[last], density[last], z[last], torch.zeros(n_samples, dtype=torch.int64),
                             rays_d[-1:])
    torch.testing.assert_close(shown.weights[last], alone.weights, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(shown.rgb[-1:], alone.rgb, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('spoilt', [0, 1, 4, 6])
@pytest.mark.parametrize('place', ['first', 'last'])
@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_a_packed_ray_with_a_density_that_is_not_finite_spoils_no_other_ray(spoilt, place, value):
    counts = [4, 3, 0, 2, 5, 0, 3]
    colours, density, z, ray, rays_d = ragged(counts)
    whole = composite_packed(colours, density, z, ray, rays_d)
    start = sum(counts[:spoilt])
    density[start if place == 'first' else start + counts[spoilt] - 1] = value
    shown = composite_packed(colours, density.requires_grad_(), z, ray, rays_d)
    others = torch.arange(len(counts)) != spoilt
    for name in ('rgb', 'disp', 'acc', 'depth'):
        torch.testing.assert_close(getattr(shown, name)[others], getattr(whole, name)[others])
    torch.testing.assert_close(shown.weights[ray != spoilt], whole.weights[ray != spoilt])
    if math.isnan(value):
        assert shown.rgb[spoilt].isnan().all()  # and it does not go unnoticed
    else:
        assert shown.acc[spoilt].item() == pytest.approx(1.0)
        mixture(shown).backward()
        assert density.grad.isfinite().all()


# Rendering


FULL = Sampling(N_samples=12, N_importance=9, perturb=True, raw_noise_std=1.0, white_bkgd=True)


def test_tiles_of_rays_render_as_all_rays_at_once():
    rays, coarse, fine = some_rays(23), small_field(0).raw, small_field(1).raw
    draws = draw(23, FULL, seeded())
    whole = render_rays(rays, coarse, fine, FULL, draws)
    tiles = [render_rays(rays.part(rows), coarse, fine, FULL, Draws(*(part[rows] for part in draws)))
             for rows in torch.arange(23).split(7)]
    for get_pass in ('final', 'coarse'):
        for ours, expected in zip(zip(*(getattr(tile, get_pass) for tile in tiles)), getattr(whole, get_pass)):
            torch.testing.assert_close(torch.cat(ours), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.cat([tile.z_std for tile in tiles]), whole.z_std, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('use_draws', [False, True])
def test_fine_depths_are_the_coarse_ones_and_more_sorted_between_near_and_far(use_draws):
    rays = Rays(torch.zeros(6, 3), torch.tensor([[1.0, 0.0, 0.0]]).expand(6, 3), torch.ones(6, 3), *(
        torch.full((6, 1), bound) for bound in (2.0, 6.0)))
    coarse, fine = Recorder(small_field(0).raw), Recorder(small_field(1).raw)
    result = render_rays(rays, coarse, fine, FULL, draw(6, FULL, seeded()) if use_draws else NO_DRAWS)
    z_coarse, z = coarse.z[0], fine.z[0]
    assert z.shape == (6, 21)
    assert (z.diff() >= 0).all()
    assert (z >= 2.0).all()
    assert (z <= 6.0).all()
    place = torch.searchsorted(z.contiguous(), z_coarse.contiguous())
    assert torch.equal(z.gather(-1, place), z_coarse)
    new = z[torch.ones_like(z, dtype=torch.bool).scatter(-1, place, False)].reshape(6, 9)
    torch.testing.assert_close(result.z_std, new.std(-1, unbiased=False))


def test_fine_depths_gather_where_the_coarse_pass_saw_something():
    rays = Rays(torch.tensor([[-4.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]),
                torch.tensor([[2.0]]), torch.tensor([[6.0]]))
    fine = Recorder(ball)
    render_rays(rays, ball, fine, Sampling(33, 64))
    near_surface = (fine.z[0] + 1.0).abs() < 0.25  # x of the points; the ball's front is at -1
    assert near_surface.sum() > 60


def rays_from(near: list[float], far: float = 3.0) -> Rays:
    """Rays from the origin along x, with a length of 1 per unit of depth."""
    near = torch.tensor(near)[:, None]
    ahead = torch.tensor([[1.0, 0.0, 0.0]]).expand(len(near), 3)
    return Rays(torch.zeros(len(near), 3), ahead, ahead, near, torch.full_like(near, far))


TO_INFINITY = Sampling(5, 4, horizon=1e5)


def test_samples_to_infinity_are_even_in_disparity_whatever_the_far_bound_is():
    z = coarse_depths(rays_from([2.0, 0.5]), TO_INFINITY)
    # s-space: 1/z falls evenly from 1/near to nearly 0 at 1e5 near
    expected = torch.tensor([1.0, 4 / 3, 2.0, 4.0])
    torch.testing.assert_close(z[:, :4], torch.tensor([[2.0], [0.5]]) * expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(z[:, 4], torch.tensor([2e5, 0.5e5]), rtol=1e-2, atol=0)
    assert torch.equal(z, coarse_depths(rays_from([2.0, 0.5], far=100.0), TO_INFINITY))


def test_jitter_of_samples_to_infinity_moves_each_within_its_bin_of_disparity():
    rays = rays_from([2.0])
    s = 2.0 / coarse_depths(rays, TO_INFINITY)  # 1, 3/4, 1/2, 1/4, 1e-5
    for value, expected in ((0.0, [1.0, 0.875, 0.625, 0.375, 0.125]), (1.0, [0.875, 0.625, 0.375, 0.125, 1e-5])):
        jittered = 2.0 / coarse_depths(rays, TO_INFINITY, torch.full((1, 5), value))
        torch.testing.assert_close(jittered, torch.tensor([expected]), rtol=0, atol=1e-5)
    torch.testing.assert_close(s, torch.tensor([[1.0, 0.75, 0.5, 0.25, 1e-5]]), rtol=0, atol=1e-5)


def test_fine_samples_to_infinity_are_spread_over_bins_of_disparity():
    z = 1.0 / torch.tensor([[1.0, 0.75, 0.5, 0.25, 1e-5]])
    weights = torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0]])  # its bin is from 1/0.375 to 1/0.125
    u = torch.tensor([[0.25, 0.5, 0.75, 0.875]])
    expected = 0.375 - 0.25 * u
    torch.testing.assert_close(1.0 / fine_depths(z, weights, TO_INFINITY, u), expected, rtol=1e-3, atol=0)
    even = 1.0 / fine_depths(z, weights, TO_INFINITY)
    torch.testing.assert_close(even[:, 1:3], torch.tensor([[0.375 - 0.25 / 3, 0.375 - 0.5 / 3]]), rtol=1e-3, atol=0)
    assert (fine_depths(z, weights, Sampling(5, 4), u) != 1.0 / expected).all()


def test_both_passes_of_rays_to_infinity_are_sampled_in_disparity():
    rays, sampling = rays_from([0.5, 2.0]), Sampling(16, 12, horizon=1e5)
    z = coarse_depths(rays, sampling)
    result = render_rays(rays, small_field(0).raw, small_field(1).raw, sampling)
    expected, other = (fine_depths(z, result.coarse.weights, each).std(-1, unbiased=False)
                       for each in (sampling, Sampling(16, 12)))
    torch.testing.assert_close(result.z_std, expected)
    assert not torch.allclose(expected, other)


def test_what_is_far_behind_the_far_bound_is_seen_by_samples_to_infinity_alone():
    def wall(points, viewdirs, noise=None):  # orange, from x = 1,000 on
        density = torch.where(points[..., 0] > 1000.0, 1.0, 0.0)
        return torch.cat([ORANGE.expand(points.shape), density[..., None]], -1)
    rays = rays_from([0.5, 1.0])
    shown = render_rays(rays, wall, wall, Sampling(64, 64, horizon=1e5)).final
    torch.testing.assert_close(shown.rgb, torch.tensor([[1.0, 0.5, 0.0]] * 2))
    assert (shown.disp < 1e-3).all()
    assert (render_rays(rays, wall, wall, Sampling(64, 64)).final.rgb == 0).all()


def test_an_opaque_ball_is_seen_at_its_depth_in_its_colour_on_white():
    c2w = torch.eye(4)
    c2w[2, 3] = 4.0
    rays = bundle_rays(*get_rays(9, 9, np.array([[9.0, 0.0, 4.0], [0.0, 9.0, 4.0], [0.0, 0.0, 1.0]]), c2w), 2.0, 6.0)
    result = render_rays(rays, ball, ball, Sampling(64, 128, white_bkgd=True))
    for one, slack in ((result.coarse, 4 / 63), (result.final, 0.01)):
        centre = 4 * 9 + 4
        assert one.depth[centre].item() == pytest.approx(3.0, abs=slack)
        assert one.disp[centre].item() == pytest.approx(1 / 3.0, abs=slack)
        torch.testing.assert_close(one.rgb[centre], torch.tensor([1.0, 0.5, 0.0]))
        assert one.rgb[0].tolist() == [1.0, 1.0, 1.0]
        assert one.disp[0] == one.acc[0] == 0
        hit = one.acc.reshape(9, 9) > 0.5
        assert torch.equal(hit, torch.flip(hit, (0,)))
        assert torch.equal(hit, hit.T)


def test_without_a_fine_field_there_is_one_pass():
    result = render_rays(some_rays(4), small_field().raw, None, Sampling(8))
    assert result.coarse is None
    assert result.z_std is None
    assert result.final.weights.shape == (4, 8)


def test_with_a_fine_field_the_coarse_pass_is_what_it_would_show_alone():
    result = render_rays(some_rays(4), small_field(0).raw, small_field(1).raw, Sampling(8, 5))
    assert [one.weights.shape[1] for one in (result.coarse, result.final)] == [8, 13]
    alone = render_rays(some_rays(4), small_field(0).raw, None, Sampling(8)).final
    assert torch.equal(result.coarse.rgb, alone.rgb)


def test_noise_and_jitter_reach_both_passes_only_where_drawn():
    rays, fields = some_rays(4), (small_field(0).raw, small_field(1).raw)
    plain, again = (render_rays(rays, *fields, FULL) for _ in range(2))
    for name in ('jitter', 'u', 'noise', 'noise_fine'):
        draws = NO_DRAWS._replace(**{name: getattr(draw(4, FULL, seeded()), name)})
        changed = render_rays(rays, *fields, FULL, draws)
        assert torch.equal(plain.final.rgb, again.final.rgb)
        assert not torch.equal(changed.final.rgb, plain.final.rgb)
        assert torch.equal(changed.coarse.rgb, plain.coarse.rgb) == (name in ('u', 'noise_fine'))


def test_the_fine_loss_does_not_train_the_coarse_network():
    coarse, fine = small_field(0), small_field(1)
    render_rays(some_rays(4), coarse.raw, fine.raw, Sampling(8, 5)).final.rgb.sum().backward()
    assert all(parameter.grad is None for parameter in coarse.parameters())
    assert all(parameter.grad is not None for parameter in fine.parameters())


def test_a_pass_is_its_points_raw_output_through_raw2outputs():
    rays, field = some_rays(4), small_field()
    z, noise = stratified_z(rays.near, rays.far, 8), rand(4, 8, low=-1.0)
    raw = field.raw(ray_points(rays, z), rays.viewdirs, 2.0 * noise)
    ours = render_pass(field.raw, rays, z, Sampling(8, raw_noise_std=2.0, white_bkgd=True), noise)
    for part, expected in zip(ours, raw2outputs(raw, z, rays.directions, 2.0, True, noise=noise)):
        assert torch.equal(part, expected)
    ours = render_pass(field.raw, rays, z, Sampling(8, raw_noise_std=2.0))  # pictures have no noise
    for part, expected in zip(ours, raw2outputs(field.raw(ray_points(rays, z), rays.viewdirs), z, rays.directions)):
        assert torch.equal(part, expected)


def test_a_generator_gives_what_draws_do_not_have():
    rays, fields = some_rays(4), (small_field(0).raw, small_field(1).raw)
    jitter = draw(4, FULL, seeded())._replace(u=None, noise=None, noise_fine=None)
    first, again, other = (render_rays(rays, *fields, FULL, jitter, seeded(seed)).final.rgb for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    still = FULL._replace(perturb=False, raw_noise_std=0.0)
    for ours, expected in zip(render_rays(rays, *fields, still, NO_DRAWS, seeded()).final,
                              render_rays(rays, *fields, still).final):
        assert torch.equal(ours, expected)
