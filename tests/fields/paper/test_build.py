"""build.py: fresh networks from plain settings, and the sizes of tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nerf.fields.paper.build import CPU_TILE, FOG, VIEW_TILES, Networks, create_nerf, rays_at_once
from nerf.fields.paper.mlp import FastMLPField, MLPField
from nerf.fields.paper.mlp_gpu import GpuMLPField
from nerf.files.checkpoints import read_checkpoint
from nerf.rendering import draw
from run_nerf_helpers import Sampling, bundle_rays, get_rays, render_rays

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
