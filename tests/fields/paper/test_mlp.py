"""mlp.py: what NeRF.forward and its autograd give, whatever is merged, left out or done by hand."""

from __future__ import annotations

import pytest
import torch
from test_run_nerf_helpers import rand, seeded
from torch.nn import functional as F

import run_nerf
from nerf.contraction import Contraction
from nerf.fields.paper import mlp
from nerf.fields.paper.mlp import FastMLPField, MLPField, fast_where_equal
from run_nerf_helpers import Embedder, NeRF, composite, get_embedder, img2mse, raw2outputs

FIELDS = {
    'no skip': {'skips': ()},
    'many skips': {'D': 6, 'skips': (0, 1, 3)},
    'no encoding': {'i_embed': -1},
    'no view directions': {'use_viewdirs': False},
    'five outputs': {'use_viewdirs': False, 'output_ch': 5, 'D': 4},
    'neither encoding nor directions': {'use_viewdirs': False, 'i_embed': -1},
    **{f'{D} layers': {'D': D, 'skips': (4,)} for D in range(1, 9)},
}
CONTRACTED = {'contracted': {'contraction': Contraction((0.5, -0.25, 0.0), 0.8)}}
every_field = pytest.mark.parametrize('options', (FIELDS | CONTRACTED).values(), ids=FIELDS | CONTRACTED)
with_or_without_viewdirs = pytest.mark.parametrize('use_viewdirs', [True, False])


def a_field(points, share, D=3, skips=(1,), use_viewdirs=True, i_embed=0, output_ch=4, kind=FastMLPField,
            **kwargs) -> MLPField:
    """A small one with density at this share of the points."""
    embed, n_points = get_embedder(4, i_embed)
    embed_dirs, n_dirs = get_embedder(2, i_embed) if use_viewdirs else (None, 0)
    network = NeRF(D, 16, n_points, n_dirs, output_ch, skips, use_viewdirs, seeded())
    field = kind(network, embed, embed_dirs, **kwargs)
    with torch.no_grad():
        bias = network.alpha_linear.bias if use_viewdirs else network.output_linear.bias[3]
        density = plain(field)(points, torch.zeros_like(points[..., 0, :]))[..., 3]
        bias -= density.quantile(1 - share) + {0.0: 1.0, 1.0: -1.0}.get(share, 0.0)
    return field


def places(rays: int, samples: int, low: float = -2.0, high: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points [R, S, 3] and view directions [R, 3]."""
    return rand(rays, samples, 3, low=low, high=high), F.normalize(rand(rays, 3, low=-1.0, seed=1), dim=-1)


def plain(field: MLPField):
    """The field's raw output by its network's own forward pass."""
    def forward(points, viewdirs, noise=0.0):
        x = field.embed_points(points if field.contraction is None else field.contraction(points))
        if field.embed_dirs is not None:
            x = torch.cat([x, field.embed_dirs(viewdirs)[:, None].expand(*points.shape[:-1], -1)], -1)
        raw = field.network(x)
        return torch.cat([raw[..., :3], (raw[..., 3] + noise)[..., None], raw[..., 4:]], -1)
    return forward


def gradients(field: MLPField, forward, points, viewdirs, noise=None) -> dict[str, torch.Tensor]:
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


@pytest.mark.parametrize('kind', [MLPField, FastMLPField])
def test_points_are_contracted_before_their_encoding(kind):
    contraction = Contraction((1.0, 0.0, 0.0), 2.0)
    points = torch.tensor([[[1.0, 8.0, 0.0], [2.0, 0.0, 1.0]]])
    drawn = torch.tensor([[[0.0, 1.75, 0.0], [0.5, 0.0, 0.5]]])  # 4 radii away; in the unit ball
    field, viewdirs = a_field(points, 0.5, kind=kind, contraction=contraction), torch.tensor([[0.0, 1.0, 0.0]])
    same = kind(field.network, field.embed_points, field.embed_dirs)
    for ours, expected in zip(field(points, viewdirs), same(drawn, viewdirs)):
        torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(field.density(points[0]), same.density(drawn[0]))
    assert not torch.allclose(same.raw(points, viewdirs), same.raw(drawn, viewdirs))
    assert fast_where_equal(field.network, field.embed_points, field.embed_dirs, 10, torch.float32,
                            contraction).contraction == contraction


def recorded(monkeypatch, name: str) -> list[tuple]:
    """The first argument and the result of each call from now on."""
    calls, function = [], getattr(mlp, name)

    def wrapped(first, *args):
        calls.append((first, function(first, *args)))
        return calls[-1][1]
    monkeypatch.setattr(mlp, name, wrapped)
    return calls


@pytest.fixture
def left_out(monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Wanted and kept rows, each time that rows could be left out: as few as 8, not only 512."""
    monkeypatch.setattr(mlp, 'ROWS', 8)
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
        raw = field.raw(points, viewdirs if field.embed_dirs else None)
        assert raw.shape == (6, 7, options.get('output_ch', 4))
        assert_same_raw(raw, expected)
        assert [len(x) for x, _ in through_trunk[n_before:]] == sizes


@every_field
@pytest.mark.parametrize('share', [0.0, 0.1, 0.5, 1.0])
def test_gradients_of_rendering_are_those_of_autograd(options, share, left_out):
    points, viewdirs = places(16, 8)
    field, noise = a_field(points, share, **options), 0.1 * rand(16, 8, low=-1.0, seed=2)
    ours = gradients(field, field.raw, points, viewdirs, noise)
    assert [rows is None for _, rows in left_out] == [share == 1.0] * (1 + field.network.use_viewdirs)
    assert_same_gradients(ours, gradients(field, plain(field), points, viewdirs, noise), share)
    used = {name for name, _ in field.network.named_parameters() if field.network.use_viewdirs or 'views' not in name}
    assert used | {'points', 'noise'} <= ours.keys()


@with_or_without_viewdirs
@pytest.mark.parametrize('netchunk', [13, 700])
def test_gradients_of_chunks_that_cut_rays_are_those_of_autograd(use_viewdirs, netchunk):
    points, viewdirs = places(40, 40)
    field = a_field(points, 0.1, use_viewdirs=use_viewdirs, netchunk=netchunk)
    assert_same_gradients(gradients(field, field.raw, points, viewdirs),
                          gradients(field, plain(field), points, viewdirs))


@with_or_without_viewdirs
def test_noise_is_added_to_raw_density_and_points_have_colour_where_it_lifts_that_above_zero(use_viewdirs, left_out):
    points, viewdirs = places(16, 8)
    field = a_field(points, 0.0, use_viewdirs=use_viewdirs)
    noise = torch.where(rand(16, 8, seed=2) < 0.3, 5.0, 0.1)
    raw, expected = field.raw(points, viewdirs, noise), plain(field)(points, viewdirs, noise)
    assert torch.equal(expected[..., 3] > 0, noise > 1)
    assert_same_raw(raw, expected)
    assert [torch.equal(wanted, noise.flatten() > 1) for wanted, _ in left_out] == [True] * use_viewdirs


def test_rows_are_left_out_without_a_trace(left_out, monkeypatch):
    points, viewdirs = places(16, 8)
    field = a_field(points, 0.1)
    sparse, grads = field.raw(points, viewdirs), gradients(field, field.raw, points, viewdirs)
    assert [len(rows) for _, rows in left_out] == [16, 16, 16]
    monkeypatch.setattr(mlp, '_needed_rows', lambda mask: None)
    dense = field.raw(points, viewdirs)
    assert_same_raw(sparse, dense)
    assert not torch.allclose(sparse, dense, atol=1e-3)  # colours that nobody sees
    assert_same_gradients(grads, gradients(field, field.raw, points, viewdirs))


@pytest.mark.parametrize('n', [1, 511, 512, 513, 1023, 1024, 1025, 2500])
@pytest.mark.parametrize('share', [0.0, 0.01, 0.45, 0.9, 1.0])
def test_rows_are_kept_in_multiples_of_512_where_as_many_can_be_left_out(n, share):
    mask = rand(n) < share
    rows, n_rows = mlp._needed_rows(mask), -(-mask.sum().item() // 512) * 512
    if n - n_rows < 512:
        assert rows is None
    else:
        assert len(rows) == len(rows.unique()) == n_rows
        assert mask[rows].sum() == mask.sum()


def test_points_whose_density_is_zero_get_no_colour(left_out):
    points, viewdirs = places(16, 8)
    field = a_field(points, 0.5)
    for parameter in field.network.alpha_linear.parameters():
        torch.nn.init.zeros_(parameter)
    assert (field(points, viewdirs)[1] == 0).all()
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
        assert not field.raw(points, viewdirs).requires_grad
    assert field.raw(points, viewdirs).requires_grad
    assert [len(kept) for _, (kept, _) in through_trunk] == [0, 0, 3]


def test_points_get_a_gradient_only_where_they_ask_for_one(monkeypatch):
    points, viewdirs = places(6, 7)
    field, put = a_field(points, 0.5), recorded(monkeypatch, '_put')
    field.raw(points, viewdirs).sum().backward()
    assert len(put) == 1  # colours of the forward pass
    field.raw(points.requires_grad_(), viewdirs).sum().backward()
    assert len(put) == 1 + 1 + 2  # and what the first layer and the one after the skip hand back
    assert (points.grad != 0).any()


@with_or_without_viewdirs
def test_without_onednn_all_is_the_same(use_viewdirs, monkeypatch):
    points, viewdirs = places(40, 40)
    field = a_field(points, 0.2, use_viewdirs=use_viewdirs)
    raw, density = field.raw(points, viewdirs), field.density(points[0])
    grads = gradients(field, field.raw, points, viewdirs)
    monkeypatch.setattr(mlp, 'FUSED', ())
    torch.testing.assert_close(field.raw(points, viewdirs), raw, rtol=0, atol=1e-6)
    torch.testing.assert_close(field.density(points[0]), density, rtol=0, atol=1e-6)
    assert_same_gradients(gradients(field, field.raw, points, viewdirs), grads)


# Colour and density


@every_field
@pytest.mark.parametrize('kind', [MLPField, FastMLPField])
def test_a_field_gives_the_sigmoid_of_raw_colour_and_the_positive_part_of_raw_density(options, kind):
    points, viewdirs = places(6, 7)
    field, noise = a_field(points, 0.5, kind=kind, **options), rand(6, 7, low=-1.0, seed=2)
    raw = plain(field)(points, viewdirs, noise)
    rgb, density = field(points, viewdirs if field.embed_dirs else None, noise)
    assert (rgb.shape, density.shape) == ((6, 7, 3), (6, 7))
    torch.testing.assert_close(density, raw[..., 3].clamp(min=0), rtol=0, atol=1e-6)
    seen = raw[..., 3] > 0
    assert 5 < seen.sum() < 37
    torch.testing.assert_close(rgb[seen], 1 / (1 + torch.exp(-raw[..., :3][seen])), rtol=0, atol=1e-6)


@every_field
@pytest.mark.parametrize('kind', [MLPField, FastMLPField])
def test_the_density_of_points_alone_is_that_on_any_ray(options, kind):
    points, viewdirs = places(6, 7)
    field = a_field(points, 0.5, kind=kind, netchunk=5, **options)
    density = field.density(points.reshape(-1, 3))
    assert not density.requires_grad
    torch.testing.assert_close(density, field(points, viewdirs)[1].flatten(), rtol=0, atol=1e-6)


# The plain field and the fast one


def pair(points: torch.Tensor, share: float, **options) -> tuple[MLPField, FastMLPField]:
    """Both fields of one network."""
    slow = a_field(points, share, kind=MLPField, **options)
    return slow, FastMLPField(slow.network, slow.embed_points, slow.embed_dirs, slow.netchunk, slow.dtype,
                              slow.contraction)


@every_field
@pytest.mark.parametrize('netchunk', [13, 65536])
def test_the_fast_field_equals_the_plain_one_in_values_and_gradients(options, netchunk, left_out):
    points, viewdirs = places(16, 8)
    slow, fast = pair(points, 0.4, netchunk=netchunk, **options)
    noise, z, rays_d = 0.1 * rand(16, 8, low=-1.0, seed=2), rand(16, 8, seed=3).sort(-1).values, rand(16, 3, seed=4)
    (rgb, density), (fast_rgb, fast_density) = (field(points, viewdirs, noise) for field in (slow, fast))
    seen = density > 0
    torch.testing.assert_close(fast_density, density, rtol=0, atol=1e-6)
    torch.testing.assert_close(fast_rgb[seen], rgb[seen], rtol=0, atol=1e-6)

    def grads(field: MLPField) -> dict[str, torch.Tensor]:
        inputs = {'points': points.clone(), 'viewdirs': viewdirs.clone(), 'noise': noise.clone()}
        leaves = {name: leaf.requires_grad_() for name, leaf in (*inputs.items(), *field.network.named_parameters())}
        shown = composite(*field(*inputs.values()), z, rays_d, white_bkgd=True)
        loss = img2mse(shown.rgb, torch.full_like(shown.rgb, 0.3)) + shown.depth.mean()
        given = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return {name: grad for name, grad in zip(leaves, given) if grad is not None}

    assert_same_gradients(grads(fast), grads(slow))
    assert left_out


def test_the_plain_field_in_bf16_is_near_float32_and_encodes_in_float32():
    points, viewdirs = places(16, 8)
    full = a_field(points, 0.3, kind=MLPField)
    half = MLPField(full.network, full.embed_points, full.embed_dirs, dtype=torch.bfloat16)
    raw, expected = half.raw(points, viewdirs), full.raw(points, viewdirs)
    assert raw.dtype == torch.float32
    assert not torch.equal(raw, expected)
    torch.testing.assert_close(raw, expected, rtol=0, atol=0.02)
    assert torch.equal(half.raw(points, viewdirs, torch.full((16, 8), 1e-3))[..., 3], raw[..., 3] + 1e-3)
    far = places(6, 7, 900.0, 1000.0)
    seen = []
    full.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    half.raw(*far)
    expected = Embedder(4)(far[0]).reshape(-1, 27)
    assert torch.equal(seen[0][:, :27], expected)


# Which of the two a network gets

VARIANTS = {**FIELDS, 'usual': {}, 'eight layers and a skip': {'D': 8, 'skips': (4,)},
            'five outputs and view directions': {'output_ch': 5}}


def chosen(network: NeRF, use_viewdirs: bool = True, i_embed: int = 0, dtype=torch.float32) -> type[MLPField]:
    embed, _ = get_embedder(4, i_embed)
    embed_dirs = get_embedder(2, i_embed)[0] if use_viewdirs else None
    field = fast_where_equal(network, embed, embed_dirs, 1000, dtype)
    assert field.network is network
    assert (field.netchunk, field.dtype) == (1000, dtype)
    assert all(parameter.grad is None for parameter in network.parameters())  # the comparison leaves nothing behind
    return type(field)


@pytest.mark.parametrize('options', VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('fog', [0.0, 0.5])
def test_the_networks_as_shipped_get_the_fast_field_and_with_a_hook_on_a_layer_the_plain_one(options, seed, fog):
    options = {'D': 3, 'skips': (1,), 'use_viewdirs': True, 'i_embed': 0, 'output_ch': 4} | options
    use_viewdirs, i_embed = options['use_viewdirs'], options.pop('i_embed')
    n_points, n_dirs = get_embedder(4, i_embed)[1], get_embedder(2, i_embed)[1] if use_viewdirs else 0
    network = NeRF(W=32, input_ch=n_points, input_ch_views=n_dirs, generator=seeded(seed), **options)
    network.lift_density(fog)
    assert chosen(network, use_viewdirs, i_embed) is FastMLPField
    assert chosen(network, use_viewdirs, i_embed, torch.bfloat16) is FastMLPField
    network.pts_linears[-1].register_forward_hook(lambda layer, inputs, output: 1.1 * output)
    assert chosen(network, use_viewdirs, i_embed) is MLPField


class Edited(NeRF):
    """NeRF with view directions, its forward pass in pieces to edit."""

    def activation(self, h):
        return h.relu()

    def between(self, h):
        return h

    def density(self, h):
        return self.alpha_linear(h)

    def colour(self, h):
        return self.rgb_linear(h)

    def forward(self, x):
        points = h = x[..., :self.input_ch]
        for i, layer in enumerate(self.pts_linears):
            h = self.activation(layer(h))
            if i in self.skips:
                h = torch.cat([points, h], -1)
        h = self.between(h)
        density = self.density(h)
        h = torch.cat([self.feature_linear(h), x[..., self.input_ch:]], -1)
        return torch.cat([self.colour(self.views_linears[0](h).relu()), density], -1)


class Leaky(Edited):
    def activation(self, h):
        return F.leaky_relu(h, 0.01)


class Smooth(Edited):
    def activation(self, h):
        return F.softplus(h, beta=10.0)


class DetachedDensity(Edited):
    def density(self, h):
        return self.alpha_linear(h.detach())


class DetachedColour(Edited):
    def colour(self, h):
        return self.rgb_linear(h.detach())


class WeakGradient(Edited):
    def between(self, h):
        return 0.9 * h + 0.1 * h.detach()  # the same value


class ExtraLayer(Edited):
    """A layer more, which adds nothing at first."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = torch.nn.Linear(self.alpha_linear.in_features, self.alpha_linear.in_features)
        torch.nn.init.zeros_(self.extra.weight)
        torch.nn.init.zeros_(self.extra.bias)

    def between(self, h):
        return h + self.extra(h)


class ScaledDensity(Edited):
    def density(self, h):
        return 1.01 * self.alpha_linear(h)


class TwoViewLayers(Edited):
    """Another layer behind the views' one, by the loop in NeRF.forward."""

    forward = NeRF.forward

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        width = self.rgb_linear.in_features
        self.views_linears.append(torch.nn.Linear(width, width))


class Renamed(Edited):
    """A head of another name."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.head = self.alpha_linear
        del self.alpha_linear

    def density(self, h):
        return self.head(h)


class SequentialHead(Edited):
    """A head that is not one layer."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rgb_linear = torch.nn.Sequential(self.rgb_linear, torch.nn.Linear(3, 3))


def small(kind: type[NeRF]) -> NeRF:
    n_points, n_dirs = get_embedder(4)[1], get_embedder(2)[1]
    return kind(D=3, W=32, input_ch=n_points, input_ch_views=n_dirs, skips=(1,), use_viewdirs=True, generator=seeded())


def test_a_forward_pass_in_other_words_gets_the_fast_field():
    assert chosen(small(Edited)) is FastMLPField


EDITS = [Leaky, Smooth, DetachedDensity, DetachedColour, WeakGradient, ExtraLayer, ScaledDensity, TwoViewLayers,
         Renamed, SequentialHead]


@pytest.mark.parametrize('edit', EDITS, ids=[kind.__name__ for kind in EDITS])
def test_an_edited_network_gets_the_plain_field(edit):
    assert chosen(small(edit)) is MLPField


def test_the_plain_field_of_an_edited_network_is_its_forward_pass():
    points, viewdirs = places(6, 7)
    network = small(Smooth)
    embed, embed_dirs = get_embedder(4)[0], get_embedder(2)[0]
    field = fast_where_equal(network, embed, embed_dirs, 10, torch.float32)
    x = torch.cat([embed(points), embed_dirs(viewdirs)[:, None].expand(6, 7, 15)], -1)
    torch.testing.assert_close(field.raw(points, viewdirs), network(x))


EDITED_LINE = 'NeRF.forward was edited: the run goes through it'


def test_a_run_with_an_edited_network_says_so_and_trains_what_was_added(flags, tmp_path, capsys, monkeypatch):
    calls = []

    class Counted(ExtraLayer):
        def forward(self, x):
            calls.append(torch.is_grad_enabled())
            return super().forward(x)

    monkeypatch.setattr(run_nerf, 'NeRF', Counted)
    assert run_nerf.main(flags('--N_iters', '3')) == 0
    assert EDITED_LINE in capsys.readouterr().out
    assert calls.count(True) == 2 + 3 * 2  # one comparison for each network, then each network in each step
    checkpoint = torch.load(tmp_path / 'run' / '000003.tar', weights_only=True)
    for name in ('network_fn_state_dict', 'network_fine_state_dict'):
        assert (checkpoint[name]['extra.weight'] != 0).any()
    calls.clear()
    assert run_nerf.main(flags('--N_iters', '3', '--render_only', '--render_test')) == 0
    assert calls.count(False) >= 2  # rendering goes through it too
    assert EDITED_LINE in capsys.readouterr().out


def test_a_run_whose_forward_alone_was_edited_says_so_and_goes_through_it(flags, capsys, monkeypatch):
    calls, forward = [], NeRF.forward
    monkeypatch.setattr(NeRF, 'forward', lambda self, x: calls.append(len(x)) or 0.5 * forward(self, x))
    assert run_nerf.main(flags('--N_iters', '3', '--N_importance', '0')) == 0
    assert EDITED_LINE in capsys.readouterr().out
    assert calls == [128, *[32 * 8] * 3]  # the comparison's 16 x 8 points, then each step's rays and samples


def test_a_run_with_the_network_as_shipped_says_nothing_of_edits_and_goes_past_forward(flags, capsys, monkeypatch):
    calls, forward = [], NeRF.forward
    monkeypatch.setattr(NeRF, 'forward', lambda self, x: calls.append(len(x)) or forward(self, x))
    assert run_nerf.main(flags('--N_iters', '3')) == 0
    assert 'edited' not in capsys.readouterr().out
    assert calls == [128, 128]  # 16 x 8 points, at the comparison of each network


# Precision


@with_or_without_viewdirs
def test_a_bf16_field_is_near_the_float32_one_and_gives_float32_gradients(use_viewdirs, left_out):
    points, viewdirs = places(16, 8)
    full = a_field(points, 0.3, use_viewdirs=use_viewdirs)
    half = FastMLPField(full.network, full.embed_points, full.embed_dirs, dtype=torch.bfloat16)
    raw, expected, density = half.raw(points, viewdirs), full.raw(points, viewdirs), half.density(points.reshape(-1, 3))
    assert raw.dtype == density.dtype == torch.float32
    seen = (raw[..., 3] > 0) & (expected[..., 3] > 0)
    torch.testing.assert_close(raw[seen], expected[seen], rtol=0, atol=0.01)
    torch.testing.assert_close(density, raw[..., 3].relu().flatten())
    noise = torch.full((16, 8), 1e-3)  # less than bf16 resolves
    assert torch.equal(half.raw(points, viewdirs, noise)[..., 3], raw[..., 3] + noise)
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
    field.raw(points, viewdirs)
    field.density(flat)
    assert not torch.allclose(Embedder(4)(flat), Embedder(4)(flat.bfloat16()), atol=0.5)
    wanted = torch.nn.functional.pad(Embedder(4)(flat).bfloat16(), (0, 32 - 27))  # to a multiple of ALIGN
    assert [torch.equal(x, wanted) for x, _ in through_trunk] == [True, True]


# Not a number


def assert_nan_is_seen(where: str, use_viewdirs: bool, kind: type[MLPField] = FastMLPField) -> None:
    points, viewdirs = places(40, 40)
    field = a_field(points, 0.1, use_viewdirs=use_viewdirs, kind=kind)
    inputs = {'points': points, 'viewdirs': viewdirs, **dict(field.network.named_parameters())}
    inputs[where].detach().view(-1)[3 % inputs[where].numel()] = torch.nan
    raw = field.raw(points, viewdirs)
    assert raw.isnan().any()
    assert raw2outputs(raw, rand(40, 40).sort(-1).values, viewdirs).rgb.isnan().any()
    grads = gradients(field, field.raw, points, viewdirs)
    assert not all(grads[name].isfinite().all() for name, _ in field.network.named_parameters() if name in grads)


@pytest.mark.parametrize('fused', [mlp.FUSED, ()])
@with_or_without_viewdirs
@pytest.mark.parametrize('where', ['points', 'pts_linears.0.weight', 'pts_linears.1.bias', 'pts_linears.2.weight'])
def test_nan_in_the_trunk_or_its_input_reaches_raw_and_the_gradient(where, use_viewdirs, fused, monkeypatch):
    monkeypatch.setattr(mlp, 'FUSED', fused)
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
    field.raw(points, viewdirs).backward(grad)
    assert len(left_out[-1][1]) == 8
    assert all(parameter.grad.isnan().any() for parameter in field.network.pts_linears.parameters())
