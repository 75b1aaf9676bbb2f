"""build.py: fresh networks from plain settings, sizes of tiles, and edits found by the comparison with faster twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_run_nerf_helpers import seeded
from torch.nn import functional as F

from nerf.fields.paper.build import (
    CPU_TILE, FOG, VIEW_TILES, Networks, create_nerf, fast_is_plain, noise_can_be_drawn_ahead, rays_at_once,
    shortcuts_of, u_can_be_drawn_ahead,
)
from nerf.fields.paper.field import Shortcuts
from nerf.fields.paper.mlp import FastMLPField, MLPField
from nerf.fields.paper.mlp_gpu import GpuMLPField
from nerf.files.checkpoints import read_checkpoint
from nerf.rendering import draw
from run_nerf_helpers import NeRF, Sampling, bundle_rays, get_embedder, get_rays, render_rays

CPU = torch.device('cpu')
SMALL = Networks(3, 16, 2, 8, multires=4, multires_views=2, use_viewdirs=True)


def built(networks: Networks = SMALL, fine: int = 8, seed: int = 0, chunk: int = 32768, **more):
    return create_nerf(networks, Sampling(8, fine), None, CPU, torch.float32, seed, chunk, 65536, **more)


def test_networks_have_the_shapes_of_the_settings_and_say_nothing(capsys):
    field = built(supersample=2)
    coarse, fine = field.coarse.network, field.fine.network
    assert [(len(each.pts_linears), each.pts_linears[0].out_features) for each in (coarse, fine)] == [(3, 16), (2, 8)]
    assert coarse.pts_linears[0].in_features == 27
    assert coarse.views_linears[0].in_features == 16 + 15
    assert field.supersample == 2
    assert type(field.coarse) is type(field.fine) is FastMLPField
    assert capsys.readouterr().out == ''
    assert built(fine=0).fine is None


@pytest.mark.parametrize(('fine', 'outputs'), [(8, 5), (0, 4)])
def test_without_directions_there_are_five_outputs_where_there_is_a_fine_network(fine, outputs):
    assert built(Networks(2, 8, 2, 8), fine).coarse.network.output_linear.out_features == outputs


def test_weights_follow_from_the_seed_and_fresh_networks_begin_as_fog():
    field, generator = built(seed=8), torch.Generator().manual_seed(8)
    for network in field.networks().values():
        plain = {name: weight.clone() for name, weight in network.state_dict().items()}
        network.reset_parameters(generator)
        drawn = network.state_dict()
        assert all(torch.equal(drawn[name], plain[name]) for name in plain if name != 'alpha_linear.bias')
        torch.testing.assert_close(plain['alpha_linear.bias'], drawn['alpha_linear.bias'] + FOG)


def test_a_fast_field_can_be_asked_for_and_one_that_shows_something_else_is_refused_in_one_line(capsys):
    assert type(built(fast=GpuMLPField).fine) is GpuMLPField
    assert capsys.readouterr().out == ''

    class Wrong(FastMLPField):
        def raw(self, points, viewdirs, noise=None):
            return 1.1 * super().raw(points, viewdirs, noise)

    field = built(fast=Wrong)
    assert type(field.coarse) is type(field.fine) is MLPField
    assert not field.shortcuts.fast
    (line,) = capsys.readouterr().out.splitlines()
    assert 'NeRF.forward or raw2outputs was edited' in line


def test_a_tile_on_a_cpu_has_no_more_points_than_make_use_of_it():
    wide = built(Networks(2, 64, 2, 128, multires=2, multires_views=1, use_viewdirs=True), fine=24)
    assert rays_at_once(wide, 32768) == CPU_TILE // (128 * 32)
    assert rays_at_once(wide, 7) == 7
    assert wide.view_chunk == VIEW_TILES * rays_at_once(wide, 32768)
    assert built(chunk=7).view_chunk == 7
    assert rays_at_once(built(Networks(1, 64, 2, 8), fine=0), 10 ** 9) == CPU_TILE // (64 * 8)


REFERENCE = Networks(8, 64, 8, 64, use_viewdirs=True)


@pytest.mark.parametrize('fast', [FastMLPField, pytest.param(GpuMLPField, marks=pytest.mark.slow)])
def test_the_reference_codes_checkpoint_shows_what_it_shows_there(shared, fast):
    folder = shared / 'interop' / 'nerf_pytorch_small'
    if not folder.is_dir():
        pytest.skip(f'needs {folder}')
    field = create_nerf(REFERENCE, Sampling(32, 32, white_bkgd=True), None, CPU, torch.float32, 0, 32768, 65536,
                        fast=fast)
    field.load_weights(read_checkpoint(folder / '003000.tar'))
    with np.load(folder / 'reference.npz') as reference:
        rays_o, rays_d = get_rays(50, 50, reference['K'], torch.from_numpy(reference['c2w']))
        rays = bundle_rays(rays_o, rays_d, float(reference['near']), float(reference['far']))
        *_, picture = draw(field.sampler(), rays)
        assert (picture.rgb.reshape(50, 50, 3) - torch.from_numpy(reference['rgb'])).abs().max() < 0.002
        assert (picture.acc.reshape(50, 50) - torch.from_numpy(reference['acc'])).abs().max() < 0.002
        rgb0 = picture.passes['coarse'].rgb.reshape(50, 50, 3)
        assert (rgb0 - torch.from_numpy(reference['rgb0'])).abs().max() < 0.002
        assert (picture.spread.reshape(50, 50) - torch.from_numpy(reference['z_std'])).abs().max() < 0.002
        with torch.no_grad():
            result = render_rays(rays, field.coarse.raw, field.fine.raw, field.sampling).final
            points, viewdirs = (torch.from_numpy(reference[key]) for key in ('pts', 'viewdirs'))
            for network, key in ((field.coarse, 'raw_coarse'), (field.fine, 'raw_fine')):
                raw, expected = network.raw(points[:, None], viewdirs)[:, 0], torch.from_numpy(reference[key])
                seen = expected[:, 3] > 0
                torch.testing.assert_close(raw[:, 3], expected[:, 3], rtol=0, atol=1e-3)
                torch.testing.assert_close(raw[seen], expected[seen], rtol=0, atol=1e-3)
        known = np.isfinite(reference['disp'])  # the reference's disparity is 0/0 on empty rays
        np.testing.assert_allclose(result.disp.reshape(50, 50)[known], reference['disp'][known], atol=1e-4)
        assert (result.disp.reshape(50, 50)[~known] == 0).all()


# Comparison with faster twins

VARIANTS = {
    'usual': {}, 'no skip': {'skips': ()}, 'many skips': {'D': 6, 'skips': (0, 1, 3)}, 'no encoding': {'i_embed': -1},
    'no view directions': {'use_viewdirs': False}, '1 layer': {'D': 1},
    'five outputs': {'use_viewdirs': False, 'output_ch': 5}, 'eight layers and a skip': {'D': 8, 'skips': (4,)},
    'five outputs and view directions': {'output_ch': 5}}
every_kind = pytest.mark.parametrize('kind', [FastMLPField, GpuMLPField])


def pair(network: NeRF, kind: type[MLPField] = FastMLPField, i_embed: int = 0) -> tuple[MLPField, MLPField]:
    """The plain and the fast field of a network."""
    embed_dirs = get_embedder(2, i_embed)[0] if network.use_viewdirs else None
    return tuple(each(network, get_embedder(4, i_embed)[0], embed_dirs, 1000) for each in (MLPField, kind))


def network_of(kind: type[NeRF] = NeRF, D=3, skips=(1,), use_viewdirs=True, i_embed=0, output_ch=4, seed=0,
               fog=0.5) -> NeRF:
    n_points, n_dirs = get_embedder(4, i_embed)[1], get_embedder(2, i_embed)[1] if use_viewdirs else 0
    network = kind(D=D, W=32, input_ch=n_points, input_ch_views=n_dirs, output_ch=output_ch, skips=skips,
                   use_viewdirs=use_viewdirs, generator=seeded(seed))
    network.lift_density(fog)
    return network


@pytest.mark.parametrize('options', VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('fog', [0.0, 0.5])
@every_kind
def test_the_networks_as_shipped_pass_and_with_a_hook_on_a_layer_they_do_not(options, seed, fog, kind):
    network = network_of(seed=seed, fog=fog, **options)
    fields = pair(network, kind, options.get('i_embed', 0))
    assert fast_is_plain(*fields)
    assert all(parameter.grad is None for parameter in network.parameters())  # the comparison leaves nothing behind
    network.pts_linears[-1].register_forward_hook(lambda layer, inputs, output: 1.1 * output)
    assert not fast_is_plain(*fields)


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

    def rename(self):
        self.head = self.alpha_linear
        del self.alpha_linear

    def density(self, h):
        return self.head(h)


class SequentialHead(Edited):
    """A head that is not one layer."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rgb_linear = torch.nn.Sequential(self.rgb_linear, torch.nn.Linear(3, 3))


EDITS = [Leaky, Smooth, DetachedDensity, DetachedColour, WeakGradient, ExtraLayer, ScaledDensity, TwoViewLayers,
         Renamed, SequentialHead]


def test_a_forward_pass_in_other_words_passes():
    assert fast_is_plain(*pair(network_of(Edited)))


@pytest.mark.parametrize('edit', EDITS, ids=[kind.__name__ for kind in EDITS])
@every_kind
def test_an_edited_network_does_not_pass(edit, kind):
    network = network_of(edit if edit is not Renamed else Edited)
    if edit is Renamed:
        network.__class__ = Renamed
        network.rename()
    assert not fast_is_plain(*pair(network, kind))


class Wrong(FastMLPField):
    """A fast field that leaves out points which are seen, as after an edit of raw2outputs."""

    def raw(self, points, viewdirs, noise=None):
        raw = super().raw(points, viewdirs, noise)
        return torch.where(raw[..., 3:4] < 0.6, raw - torch.tensor([0.0, 0.0, 0.0, 1.0]), raw)


def test_a_fast_field_that_leaves_out_what_is_seen_does_not_pass():
    network = network_of()
    assert not fast_is_plain(pair(network)[0], pair(network, Wrong)[1])


def test_as_shipped_all_shortcuts_can_be_taken_and_nothing_is_said():
    shortcuts = shortcuts_of([pair(network_of()), pair(network_of(seed=1))])
    assert shortcuts == Shortcuts(True, True, True)
    assert shortcuts.lines() == []
    assert u_can_be_drawn_ahead()
    assert noise_can_be_drawn_ahead()


def test_one_edited_network_of_two_ends_the_shortcut_with_one_line():
    shortcuts = shortcuts_of([pair(network_of()), pair(network_of(Smooth))])
    assert shortcuts == Shortcuts(False, True, True)
    (line,) = shortcuts.lines()
    assert 'NeRF.forward or raw2outputs was edited' in line


def test_each_edited_random_branch_is_named():
    lines = Shortcuts(False, False, False).lines()
    assert len(lines) == 2
    for line, name in zip(lines, ('sample_pdf', 'raw2outputs')):
        assert f'the random branch of {name} was edited' in line
        assert 'results depend on chunk' in line
    assert 'mlp.py' not in lines[0]
    assert 'mlp.py' in lines[1]
