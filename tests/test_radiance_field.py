"""radiance_field.py: what NeRF.forward and its autograd give, whatever is merged, left out or done by hand."""

from __future__ import annotations

import pytest
import torch
from test_maths import rand, seeded
from torch.nn import functional as F

from nerf.fields import radiance_field
from nerf.fields.radiance_field import RadianceField
from run_nerf_helpers import Embedder, NeRF, get_embedder, img2mse, raw2outputs

FIELDS = {
    'no skip': {'skips': ()},
    'many skips': {'D': 6, 'skips': (0, 1, 3)},
    'no encoding': {'i_embed': -1},
    'no view directions': {'use_viewdirs': False},
    'five outputs': {'use_viewdirs': False, 'output_ch': 5, 'D': 4},
    'neither encoding nor directions': {'use_viewdirs': False, 'i_embed': -1},
    **{f'{D} layers': {'D': D, 'skips': (4,)} for D in range(1, 9)},
}
every_field = pytest.mark.parametrize('options', FIELDS.values(), ids=FIELDS)
with_or_without_viewdirs = pytest.mark.parametrize('use_viewdirs', [True, False])


def a_field(points, share, D=3, skips=(1,), use_viewdirs=True, i_embed=0, output_ch=4, **kwargs) -> RadianceField:
    """A small one with density at this share of the points."""
    embed, n_points = get_embedder(4, i_embed)
    embed_dirs, n_dirs = get_embedder(2, i_embed) if use_viewdirs else (None, 0)
    network = NeRF(D, 16, n_points, n_dirs, output_ch, skips, use_viewdirs, seeded())
    with torch.no_grad():
        bias = network.alpha_linear.bias if use_viewdirs else network.output_linear.bias[3]
        density = network(F.pad(embed(points), (0, n_dirs)))[..., 3]
        bias -= density.quantile(1 - share) + {0.0: 1.0, 1.0: -1.0}.get(share, 0.0)
    return RadianceField(network, embed, embed_dirs, **kwargs)


def places(rays: int, samples: int, low: float = -2.0, high: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points [R, S, 3] and view directions [R, 3]."""
    return rand(rays, samples, 3, low=low, high=high), F.normalize(rand(rays, 3, low=-1.0, seed=1), dim=-1)


def plain(field: RadianceField):
    """The field by its network's own forward pass."""
    def forward(points, viewdirs, noise=0.0):
        x = field.embed_points(points)
        if field.embed_dirs is not None:
            x = torch.cat([x, field.embed_dirs(viewdirs)[:, None].expand(*points.shape[:-1], -1)], -1)
        raw = field.network(x)
        return torch.cat([raw[..., :3], (raw[..., 3] + noise)[..., None], raw[..., 4:]], -1)
    return forward


def gradients(field: RadianceField, forward, points, viewdirs, noise=None) -> dict[str, torch.Tensor]:
    """Of a volume rendering loss with respect to all that it depends on, inputs and parameters."""
    noise = torch.zeros(points.shape[:2]) if noise is None else noise
    inputs = {'points': points.clone(), 'viewdirs': viewdirs.clone(), 'noise': noise.clone()}
    leaves = {name: leaf.requires_grad_() for name, leaf in (*inputs.items(), *field.network.named_parameters())}
    z, rays_d, colours = (rand(*shape, seed=3) for shape in (noise.shape, viewdirs.shape, viewdirs.shape))
    shown = raw2outputs(forward(*inputs.values()), z.sort(-1).values, rays_d)
    loss = img2mse(shown.rgb, colours) + shown.depth.mean()
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {name: grad for name, grad in zip(leaves, grads) if grad is not None}


def assert_same_gradients(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], share=0.5) -> None:
    assert ours.keys() == expected.keys()
    for name, grad in expected.items():
        assert (grad.norm() > 0) == (share > 0), name
        assert (ours[name] - grad).norm() <= 1e-5 * grad.norm(), name


def assert_same_raw(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Density everywhere, colour where there is some."""
    seen = expected[..., 3] > 0
    torch.testing.assert_close(ours[..., 3], expected[..., 3], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours[seen], expected[seen], rtol=0, atol=1e-6)


def recorded(monkeypatch, name: str) -> list[tuple]:
    """The first argument and the result of each call from now on."""
    calls, function = [], getattr(radiance_field, name)

    def wrapped(first, *args):
        calls.append((first, function(first, *args)))
        return calls[-1][1]
    monkeypatch.setattr(radiance_field, name, wrapped)
    return calls


@pytest.fixture
def left_out(monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Wanted and kept rows, each time that rows could be left out: as few as 8, not only 512."""
    monkeypatch.setattr(radiance_field, 'ROWS', 8)
    return recorded(monkeypatch, '_needed_rows')


@pytest.fixture
def through_trunk(monkeypatch) -> list[tuple[torch.Tensor, tuple[list[torch.Tensor], torch.Tensor]]]:
    """What went into the trunk each time; what was kept for a backward pass, and what came out."""
    return recorded(monkeypatch, '_trunk')


@every_field
def test_raw_is_that_of_the_network_whatever_netchunk(options, through_trunk):
    points, viewdirs = places(6, 7)
    for netchunk, sizes in ((1, [1] * 42), (5, [5] * 8 + [2]), (42, [42]), (43, [42])):
        field = a_field(points, 0.5, netchunk=netchunk, **options)
        expected, n_before = plain(field)(points, viewdirs), len(through_trunk)
        assert (expected[..., 3] > 0).sum() == 21
        raw = field(points, viewdirs if field.embed_dirs else None)
        assert raw.shape == (6, 7, options.get('output_ch', 4))
        assert_same_raw(raw, expected)
        assert [len(x) for x, _ in through_trunk[n_before:]] == sizes


@every_field
@pytest.mark.parametrize('share', [0.0, 0.1, 0.5, 1.0])
def test_gradients_of_rendering_are_those_of_autograd(options, share, left_out):
    points, viewdirs = places(16, 8)
    field, noise = a_field(points, share, **options), 0.1 * rand(16, 8, low=-1.0, seed=2)
    ours = gradients(field, field, points, viewdirs, noise)
    assert [rows is None for _, rows in left_out] == [share == 1.0] * (1 + field.network.use_viewdirs)
    assert_same_gradients(ours, gradients(field, plain(field), points, viewdirs, noise), share)
    used = {name for name, _ in field.network.named_parameters() if field.network.use_viewdirs or 'views' not in name}
    assert used | {'points', 'noise'} <= ours.keys()


@with_or_without_viewdirs
@pytest.mark.parametrize('netchunk', [13, 700])
def test_gradients_of_chunks_that_cut_rays_are_those_of_autograd(use_viewdirs, netchunk):
    points, viewdirs = places(40, 40)
    field = a_field(points, 0.1, use_viewdirs=use_viewdirs, netchunk=netchunk)
    assert_same_gradients(gradients(field, field, points, viewdirs), gradients(field, plain(field), points, viewdirs))


@with_or_without_viewdirs
def test_noise_is_added_to_raw_density_and_points_have_colour_where_it_lifts_that_above_zero(use_viewdirs, left_out):
    points, viewdirs = places(16, 8)
    field = a_field(points, 0.0, use_viewdirs=use_viewdirs)
    noise = torch.where(rand(16, 8, seed=2) < 0.3, 5.0, 0.1)
    raw, expected = field(points, viewdirs, noise), plain(field)(points, viewdirs, noise)
    assert torch.equal(expected[..., 3] > 0, noise > 1)
    assert_same_raw(raw, expected)
    assert [torch.equal(wanted, noise.flatten() > 1) for wanted, _ in left_out] == [True] * use_viewdirs


def test_rows_are_left_out_without_a_trace(left_out, monkeypatch):
    points, viewdirs = places(16, 8)
    field = a_field(points, 0.1)
    sparse, grads = field(points, viewdirs), gradients(field, field, points, viewdirs)
    assert [len(rows) for _, rows in left_out] == [16, 16, 16]
    monkeypatch.setattr(radiance_field, '_needed_rows', lambda mask: None)
    dense = field(points, viewdirs)
    assert_same_raw(sparse, dense)
    assert not torch.allclose(sparse, dense, atol=1e-3)  # colours that nobody sees
    assert_same_gradients(grads, gradients(field, field, points, viewdirs))


@pytest.mark.parametrize('n', [1, 511, 512, 513, 1023, 1024, 1025, 2500])
@pytest.mark.parametrize('share', [0.0, 0.01, 0.45, 0.9, 1.0])
def test_rows_are_kept_in_multiples_of_512_where_as_many_can_be_left_out(n, share):
    mask = rand(n) < share
    rows, n_rows = radiance_field._needed_rows(mask), -(-mask.sum().item() // 512) * 512
    if n - n_rows < 512:
        assert rows is None
    else:
        assert len(rows) == len(rows.unique()) == n_rows
        assert mask[rows].sum() == mask.sum()


def test_rows_are_left_out_on_a_cpu_only():
    assert radiance_field._needed_rows(torch.zeros(5000, dtype=torch.bool, device='meta')) is None


def test_points_whose_density_is_zero_get_no_colour(left_out):
    points, viewdirs = places(16, 8)
    field = a_field(points, 0.5)
    for parameter in field.network.alpha_linear.parameters():
        torch.nn.init.zeros_(parameter)
    assert (field(points, viewdirs)[..., 3] == 0).all()
    assert [len(rows) for _, rows in left_out] == [0]


@every_field
def test_density_is_that_of_raw_without_a_gradient_in_chunks(options, through_trunk):
    points, viewdirs = places(6, 7)
    field = a_field(points, 0.5, netchunk=5, **options)
    density = field.density(points.reshape(-1, 3))
    assert [len(x) for x, _ in through_trunk] == [5] * 8 + [2]
    assert not density.requires_grad
    torch.testing.assert_close(density, plain(field)(points, viewdirs)[..., 3].relu().flatten(), rtol=0, atol=1e-6)


def test_nothing_is_kept_where_there_will_be_no_backward_pass(through_trunk):
    points, viewdirs = places(6, 7)
    field = a_field(points, 0.5)
    field.density(points.reshape(-1, 3))
    with torch.no_grad():
        assert not field(points, viewdirs).requires_grad
    assert field(points, viewdirs).requires_grad
    assert [len(kept) for _, (kept, _) in through_trunk] == [0, 0, 3]


def test_points_get_a_gradient_only_where_they_ask_for_one(monkeypatch):
    points, viewdirs = places(6, 7)
    field, put = a_field(points, 0.5), recorded(monkeypatch, '_put')
    field(points, viewdirs).sum().backward()
    assert len(put) == 1  # colours of the forward pass
    field(points.requires_grad_(), viewdirs).sum().backward()
    assert len(put) == 1 + 1 + 2  # and what the first layer and the one after the skip hand back
    assert (points.grad != 0).any()


@with_or_without_viewdirs
def test_without_onednn_all_is_the_same(use_viewdirs, monkeypatch):
    points, viewdirs = places(40, 40)
    field = a_field(points, 0.2, use_viewdirs=use_viewdirs)
    raw, density = field(points, viewdirs), field.density(points[0])
    grads = gradients(field, field, points, viewdirs)
    monkeypatch.setattr(radiance_field, 'FUSED', ())
    torch.testing.assert_close(field(points, viewdirs), raw, rtol=0, atol=1e-6)
    torch.testing.assert_close(field.density(points[0]), density, rtol=0, atol=1e-6)
    assert_same_gradients(gradients(field, field, points, viewdirs), grads)


# Precision


@with_or_without_viewdirs
def test_a_bf16_field_is_near_the_float32_one_and_gives_float32_gradients(use_viewdirs, left_out):
    points, viewdirs = places(16, 8)
    full = a_field(points, 0.3, use_viewdirs=use_viewdirs)
    half = RadianceField(full.network, full.embed_points, full.embed_dirs, dtype=torch.bfloat16)
    raw, expected, density = half(points, viewdirs), full(points, viewdirs), half.density(points.reshape(-1, 3))
    assert raw.dtype == density.dtype == torch.float32
    seen = (raw[..., 3] > 0) & (expected[..., 3] > 0)
    torch.testing.assert_close(raw[seen], expected[seen], rtol=0, atol=0.01)
    torch.testing.assert_close(density, raw[..., 3].relu().flatten())
    noise = torch.full((16, 8), 1e-3)  # less than bf16 resolves
    assert torch.equal(half(points, viewdirs, noise)[..., 3], raw[..., 3] + noise)
    upstream = rand(16, 8, 4, low=-1.0) * seen[..., None]
    parameters = [parameter for name, parameter in full.network.named_parameters()
                  if use_viewdirs or 'views' not in name]
    for ours, exact in zip(*(torch.autograd.grad(part, parameters, upstream) for part in (raw, expected))):
        assert ours.dtype == torch.float32
        assert (ours - exact).norm() < 0.1 * exact.norm()
    assert all(rows is not None for _, rows in left_out)


@with_or_without_viewdirs
def test_points_are_encoded_in_float32_for_a_bf16_network(use_viewdirs, through_trunk):
    points, viewdirs = places(6, 7, 900.0, 1000.0)
    field = a_field(points, 0.5, use_viewdirs=use_viewdirs, dtype=torch.bfloat16)
    flat = points.reshape(-1, 3)
    field(points, viewdirs)
    field.density(flat)
    assert not torch.allclose(Embedder(4)(flat), Embedder(4)(flat.bfloat16()), atol=0.5)
    wanted = torch.nn.functional.pad(Embedder(4)(flat).bfloat16(), (0, 32 - 27))  # to a multiple of ALIGN
    assert [torch.equal(x, wanted) for x, _ in through_trunk] == [True, True]


# Not a number


def assert_nan_is_seen(where: str, use_viewdirs: bool) -> None:
    points, viewdirs = places(40, 40)
    field = a_field(points, 0.1, use_viewdirs=use_viewdirs)
    inputs = {'points': points, 'viewdirs': viewdirs, **dict(field.network.named_parameters())}
    inputs[where].detach().view(-1)[3 % inputs[where].numel()] = torch.nan
    raw = field(points, viewdirs)
    assert raw.isnan().any()
    assert raw2outputs(raw, rand(40, 40).sort(-1).values, viewdirs).rgb.isnan().any()
    grads = gradients(field, field, points, viewdirs)
    assert not all(grads[name].isfinite().all() for name, _ in field.network.named_parameters() if name in grads)


@pytest.mark.parametrize('fused', [radiance_field.FUSED, ()])
@with_or_without_viewdirs
@pytest.mark.parametrize('where', ['points', 'pts_linears.0.weight', 'pts_linears.1.bias', 'pts_linears.2.weight'])
def test_nan_in_the_trunk_or_its_input_reaches_raw_and_the_gradient(where, use_viewdirs, fused, monkeypatch):
    monkeypatch.setattr(radiance_field, 'FUSED', fused)
    assert_nan_is_seen(where, use_viewdirs)


@pytest.mark.parametrize('where', [
    'viewdirs', 'views_linears.0.weight', 'views_linears.0.bias', 'feature_linear.weight', 'feature_linear.bias',
    'alpha_linear.weight', 'alpha_linear.bias', 'rgb_linear.weight', 'rgb_linear.bias', 'output_linear.weight'])
def test_nan_in_the_heads_or_their_input_reaches_raw_and_the_gradient(where):
    assert_nan_is_seen(where, 'output' not in where)


@with_or_without_viewdirs
def test_one_gradient_that_is_nan_reaches_the_trunk_and_its_neighbours_are_left_out(use_viewdirs, left_out):
    points, viewdirs = places(16, 8)
    field, grad = a_field(points, 0.5, use_viewdirs=use_viewdirs), torch.zeros(16, 8, 4)
    grad[5, 6, 3] = torch.nan
    field(points, viewdirs).backward(grad)
    assert len(left_out[-1][1]) == 8
    assert all(parameter.grad.isnan().any() for parameter in field.network.pts_linears.parameters())
