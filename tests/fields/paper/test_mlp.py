"""mlp.py: both fields give what NeRF.forward and its autograd give, whatever is merged, left out or done by hand."""

from __future__ import annotations

import pytest
import torch
from test_run_nerf_helpers import rand, seeded
from torch.nn import functional as F

from nerf.fields.paper.mlp import FUSED, FastMLPField, MLPField, linear_relu, padded_rows
from nerf.space import Unbounded
from run_nerf_helpers import Embedder, NeRF, get_embedder, img2mse, raw2colour, raw2density, raw2outputs

FIELDS = {
    'no skip': {'skips': ()},
    'many skips': {'D': 6, 'skips': (0, 1, 3)},
    'no encoding': {'i_embed': -1},
    'no view directions': {'use_viewdirs': False},
    'five outputs': {'use_viewdirs': False, 'output_ch': 5, 'D': 4},
    'neither encoding nor directions': {'use_viewdirs': False, 'i_embed': -1},
    '1 layer': {'D': 1, 'skips': (4,)},
    '5 layers': {'D': 5, 'skips': (4,)},
    '6 layers': {'D': 6, 'skips': (4,)},
    'contracted': {'space': Unbounded(0.1, 1.0, centre=(0.5, -0.25, 0.0), radius=0.8)},
}
every_field = pytest.mark.parametrize('options', FIELDS.values(), ids=FIELDS)
with_or_without_viewdirs = pytest.mark.parametrize('use_viewdirs', [True, False])
RAYS, SAMPLES = 40, 50  # so many points that a tenth of them are worth leaving out


class Recorder:
    """An encoding that notes how many points it was asked for each time."""

    def __init__(self, embed):
        self.embed, self.sizes, self.last = embed, [], None

    def __call__(self, x):
        self.sizes.append(len(x))
        self.last = self.embed(x)
        return self.last


def a_field(points, share, D=3, skips=(1,), use_viewdirs=True, i_embed=0, output_ch=4, kind=FastMLPField,
            **kwargs) -> MLPField:
    """A small one with density at this share of the points; its encoding of points is a Recorder."""
    embed, n_points = get_embedder(4, i_embed)
    embed_dirs, n_dirs = get_embedder(2, i_embed) if use_viewdirs else (None, 0)
    network = NeRF(D, 16, n_points, n_dirs, output_ch, skips, use_viewdirs, seeded())
    field = kind(network, Recorder(embed), embed_dirs, **kwargs)
    with torch.no_grad():
        bias = network.alpha_linear.bias if use_viewdirs else network.output_linear.bias[3]
        density = plain(field)(points, torch.zeros_like(points[..., 0, :]))[..., 3]
        bias -= density.quantile(1 - share) + {0.0: 1.0, 1.0: -1.0}.get(share, 0.0)
    field.embed_points.sizes.clear()
    return field


def places(rays: int, samples: int, low: float = -2.0, high: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points [R, S, 3] and view directions [R, 3]."""
    return rand(rays, samples, 3, low=low, high=high), F.normalize(rand(rays, 3, low=-1.0, seed=1), dim=-1)


def plain(field: MLPField):
    """The field's raw output by its network's own forward pass."""
    def forward(points, viewdirs, noise=None):
        x = field.embed_points(points if field.space is None else field.space.to_field(points))
        if field.embed_dirs is not None:
            x = torch.cat([x, field.embed_dirs(viewdirs)[:, None].expand(*points.shape[:-1], -1)], -1)
        return field.network(x)
    return forward


def gradients(field: MLPField, forward, points, viewdirs, noise=None) -> dict[str, torch.Tensor]:
    """Of a volume rendering loss for points, directions and parameters."""
    inputs = {'points': points.clone(), 'viewdirs': viewdirs.clone()}
    leaves = {name: leaf.requires_grad_() for name, leaf in (*inputs.items(), *field.network.named_parameters())}
    z, rays_d, colours = (rand(*shape, seed=3) for shape in (points.shape[:2], viewdirs.shape, viewdirs.shape))
    std = 0.0 if noise is None else 1.0
    shown = raw2outputs(forward(*inputs.values(), noise), z.sort(-1).values, rays_d, std, noise=noise)
    loss = img2mse(shown.rgb, colours) + shown.depth.mean()
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {name: grad for name, grad in zip(leaves, grads) if grad is not None}


def assert_same_gradients(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], share=0.5) -> None:
    assert ours.keys() == expected.keys()
    for name, grad in expected.items():
        assert (grad.norm() > 0) == (share > 0), name
        assert (ours[name] - grad).norm() <= 1e-5 * grad.norm(), name


def assert_same_raw(ours: torch.Tensor, expected: torch.Tensor, noise: float | torch.Tensor = 0.0) -> None:
    """Density everywhere, colour where there is some."""
    seen = expected[..., 3] + noise > 0
    torch.testing.assert_close(ours[..., 3], expected[..., 3], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours[seen], expected[seen], rtol=0, atol=1e-6)


both_kinds = pytest.mark.parametrize('kind', [MLPField, FastMLPField])


@both_kinds
def test_points_are_encoded_in_field_coordinates(kind):
    space = Unbounded(0.1, 1.0, centre=(1.0, 0.0, 0.0), radius=2.0)
    points = torch.tensor([[[1.0, 8.0, 0.0], [2.0, 0.0, 1.0]]])
    drawn = torch.tensor([[[0.0, 1.75, 0.0], [0.5, 0.0, 0.5]]])  # 4 radii away; in the unit ball
    field, viewdirs = a_field(points, 0.5, kind=kind, space=space), torch.tensor([[0.0, 1.0, 0.0]])
    same = kind(field.network, field.embed_points, field.embed_dirs)
    for ours, expected in zip(field.radiance(points, viewdirs), same.radiance(drawn, viewdirs)):
        torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(field.density(points[0]), same.density(drawn[0]))
    assert not torch.allclose(same.raw(points, viewdirs), same.raw(drawn, viewdirs))


@every_field
@both_kinds
def test_raw_is_that_of_the_network_whatever_netchunk(options, kind):
    points, viewdirs = places(6, 7)
    for netchunk, sizes in ((1, [1] * 42), (5, [5] * 8 + [2]), (42, [42]), (43, [42])):
        field = a_field(points, 0.5, netchunk=netchunk, kind=kind, **options)
        raw = field.raw(points, viewdirs if field.embed_dirs else None)
        assert field.embed_points.sizes == sizes
        assert raw.shape == (6, 7, options.get('output_ch', 4))
        expected = plain(field)(points, viewdirs)
        assert (expected[..., 3] > 0).sum() == 21
        assert_same_raw(raw, expected)


@every_field
@pytest.mark.parametrize('share', [0.0, 0.1, 0.5, 1.0])
def test_gradients_of_rendering_are_those_of_autograd(options, share):
    points, viewdirs = places(RAYS, SAMPLES)
    field, noise = a_field(points, share, **options), 0.1 * rand(RAYS, SAMPLES, low=-1.0, seed=2)
    ours = gradients(field, field.raw, points, viewdirs, noise)
    assert_same_gradients(ours, gradients(field, plain(field), points, viewdirs, noise), share)
    used = {name for name, _ in field.network.named_parameters() if field.network.use_viewdirs or 'views' not in name}
    assert used | {'points'} <= ours.keys()


@with_or_without_viewdirs
@pytest.mark.parametrize('netchunk', [13, 700])
def test_gradients_of_chunks_that_cut_rays_are_those_of_autograd(use_viewdirs, netchunk):
    points, viewdirs = places(RAYS, SAMPLES)
    field = a_field(points, 0.1, use_viewdirs=use_viewdirs, netchunk=netchunk)
    assert_same_gradients(gradients(field, field.raw, points, viewdirs),
                          gradients(field, plain(field), points, viewdirs))


@with_or_without_viewdirs
def test_points_have_colour_where_noise_lifts_their_density_above_zero(use_viewdirs):
    points, viewdirs = places(RAYS, SAMPLES)
    field = a_field(points, 0.0, use_viewdirs=use_viewdirs)
    noise = torch.where(rand(RAYS, SAMPLES, seed=2) < 0.3, 5.0, 0.1)
    raw, expected = field.raw(points, viewdirs, noise), plain(field)(points, viewdirs)
    assert torch.equal(expected[..., 3] + noise > 0, noise > 1)
    assert_same_raw(raw, expected, noise)


def test_points_without_density_get_one_colour_whose_place_nobody_computed():
    points, viewdirs = places(RAYS, SAMPLES)
    field = a_field(points, 0.1)
    raw, expected = field.raw(points, viewdirs), plain(field)(points, viewdirs)
    assert_same_raw(raw, expected)
    left_out = (raw[..., :3] == field.network.rgb_linear.bias).all(-1)
    assert left_out.sum() == RAYS * SAMPLES - 512
    assert not (left_out & (raw[..., 3] > 0)).any()


@pytest.mark.parametrize('n', [1, 511, 512, 513, 2500])
@pytest.mark.parametrize('share', [0.0, 0.01, 0.45, 1.0])
def test_kept_rows_are_padded_to_a_multiple_or_to_all(n, share):
    mask = rand(n) < share
    rows, wanted = padded_rows(mask, 512), mask.sum().item()
    assert len(rows) == len(rows.unique()) == min(n, wanted + -wanted % 512)
    assert torch.equal(rows[:wanted], mask.nonzero()[:, 0])


@every_field
def test_density_is_that_of_raw_without_a_gradient_in_chunks(options):
    points, viewdirs = places(6, 7)
    field = a_field(points, 0.5, netchunk=5, **options)
    density = field.density(points.reshape(-1, 3))
    assert field.embed_points.sizes == [5] * 8 + [2]
    assert not density.requires_grad
    torch.testing.assert_close(density, plain(field)(points, viewdirs)[..., 3].relu().flatten(), rtol=0, atol=1e-6)


def test_points_get_a_gradient_where_they_ask_for_one():
    points, viewdirs = places(6, 7)
    field = a_field(points, 0.5)
    with torch.no_grad():
        assert not field.raw(points, viewdirs).requires_grad
    field.raw(points, viewdirs).sum().backward()
    assert points.grad is None
    field.raw(points.requires_grad_(), viewdirs).sum().backward()
    assert (points.grad != 0).any()


@pytest.mark.parametrize('dtype', FUSED)
def test_a_fused_layer_is_the_layer_and_its_relu(dtype):
    x, weight, bias = (rand(*shape, low=-1.0, seed=i).to(dtype) for i, shape in enumerate(((300, 24), (16, 24), (16,))))
    fused, apart = linear_relu(x, weight, bias), linear_relu(x, weight, bias, fused=())
    assert (fused > 0).any()
    torch.testing.assert_close(fused, apart, rtol=0, atol=1e-6 if dtype == torch.float32 else 0.02)


@every_field
@both_kinds
def test_radiance_is_what_raw_output_means(options, kind):
    points, viewdirs = places(6, 7)
    field = a_field(points, 0.5, kind=kind, **options)
    raw = plain(field)(points, viewdirs)
    rgb, density = field.radiance(points, viewdirs if field.embed_dirs else None)
    assert (rgb.shape, density.shape) == ((6, 7, 3), (6, 7))
    torch.testing.assert_close(density, raw2density(raw[..., 3]), rtol=0, atol=1e-6)
    seen = raw[..., 3] > 0
    assert 5 < seen.sum() < 37
    torch.testing.assert_close(rgb[seen], raw2colour(raw[..., :3][seen]), rtol=0, atol=1e-6)
    torch.testing.assert_close(field.density(points.reshape(-1, 3)), density.flatten(), rtol=0, atol=1e-6)


# Precision


def test_the_plain_field_in_bf16_is_near_float32_and_encodes_in_float32():
    points, viewdirs = places(16, 8)
    full = a_field(points, 0.3, kind=MLPField)
    half = MLPField(full.network, full.embed_points, full.embed_dirs, dtype=torch.bfloat16)
    raw, expected = half.raw(points, viewdirs), full.raw(points, viewdirs)
    assert raw.dtype == torch.float32
    assert not torch.equal(raw, expected)
    torch.testing.assert_close(raw, expected, rtol=0, atol=0.02)
    far, viewdirs = places(6, 7, 900.0, 1000.0)
    seen = []
    full.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    half.raw(far, viewdirs)
    assert torch.equal(seen[0][:, :27], Embedder(4)(far).reshape(-1, 27))


@with_or_without_viewdirs
def test_a_bf16_field_is_near_the_float32_one_and_gives_float32_gradients(use_viewdirs):
    points, viewdirs = places(RAYS, SAMPLES)
    full = a_field(points, 0.3, use_viewdirs=use_viewdirs)
    half = FastMLPField(full.network, full.embed_points, full.embed_dirs, dtype=torch.bfloat16)
    raw, expected, density = half.raw(points, viewdirs), full.raw(points, viewdirs), half.density(points.reshape(-1, 3))
    assert raw.dtype == density.dtype == torch.float32
    seen = (raw[..., 3] > 0) & (expected[..., 3] > 0)
    torch.testing.assert_close(raw[seen], expected[seen], rtol=0, atol=0.015)
    torch.testing.assert_close(density, raw[..., 3].relu().flatten())
    upstream = rand(RAYS, SAMPLES, 4, low=-1.0) * seen[..., None]
    parameters = [parameter for name, parameter in full.network.named_parameters()
                  if use_viewdirs or 'views' not in name]
    for ours, exact in zip(*(torch.autograd.grad(part, parameters, upstream) for part in (raw, expected))):
        assert ours.dtype == torch.float32
        assert (ours - exact).norm() < 0.1 * exact.norm()


@with_or_without_viewdirs
def test_points_are_encoded_in_float32_for_a_bf16_network(use_viewdirs):
    points, viewdirs = places(6, 7, 900.0, 1000.0)
    field = a_field(points, 0.5, use_viewdirs=use_viewdirs, dtype=torch.bfloat16)
    flat = points.reshape(-1, 3)
    assert not torch.allclose(Embedder(4)(flat), Embedder(4)(flat.bfloat16()), atol=0.5)
    field.raw(points, viewdirs)
    assert torch.equal(field.embed_points.last, Embedder(4)(flat))
    field.density(flat)
    assert torch.equal(field.embed_points.last, Embedder(4)(flat))


# Not a number


def assert_nan_is_seen(where: str, use_viewdirs: bool, kind: type[MLPField] = FastMLPField) -> None:
    points, viewdirs = places(RAYS, SAMPLES)
    field = a_field(points, 0.1, use_viewdirs=use_viewdirs, kind=kind)
    inputs = {'points': points, 'viewdirs': viewdirs, **dict(field.network.named_parameters())}
    inputs[where].detach().view(-1)[3 % inputs[where].numel()] = torch.nan
    raw = field.raw(points, viewdirs)
    assert raw.isnan().any()
    assert raw2outputs(raw, rand(RAYS, SAMPLES).sort(-1).values, viewdirs).rgb.isnan().any()
    grads = gradients(field, field.raw, points, viewdirs)
    assert not all(grads[name].isfinite().all() for name, _ in field.network.named_parameters() if name in grads)


@with_or_without_viewdirs
@pytest.mark.parametrize('where', ['points', 'pts_linears.0.weight', 'pts_linears.1.bias', 'pts_linears.2.weight'])
def test_nan_in_the_trunk_or_its_input_reaches_raw_and_the_gradient(where, use_viewdirs):
    assert_nan_is_seen(where, use_viewdirs)


@pytest.mark.parametrize('where', [
    'viewdirs', 'views_linears.0.weight', 'views_linears.0.bias', 'feature_linear.weight', 'feature_linear.bias',
    'alpha_linear.weight', 'alpha_linear.bias', 'rgb_linear.weight', 'rgb_linear.bias', 'output_linear.weight'])
def test_nan_in_the_heads_or_their_input_reaches_raw_and_the_gradient(where):
    assert_nan_is_seen(where, 'output' not in where)


@with_or_without_viewdirs
def test_one_gradient_that_is_nan_reaches_the_trunk(use_viewdirs):
    points, viewdirs = places(RAYS, SAMPLES)
    field, grad = a_field(points, 0.5, use_viewdirs=use_viewdirs), torch.zeros(RAYS, SAMPLES, 4)
    grad[5, 6, 3] = torch.nan
    field.raw(points, viewdirs).backward(grad)
    assert all(parameter.grad.isnan().any() for parameter in field.network.pts_linears.parameters())
