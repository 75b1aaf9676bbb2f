"""mlp_gpu.py: what NeRF.forward and its autograd give. It runs on a CPU too; test_on_cuda.py is on CUDA."""

from __future__ import annotations

import pytest
import torch
from test_mlp import a_field, assert_nan_is_seen, assert_same_gradients, every_field, gradients, places, plain
from test_mlp import with_or_without_viewdirs
from test_run_nerf_helpers import rand

from nerf.fields.paper.mlp_gpu import COLUMN_PARTS, GpuMLPField


@every_field
@pytest.mark.parametrize('share', [0.0, 0.5, 1.0])
def test_raw_density_and_gradients_are_those_of_the_network(options, share):
    points, viewdirs = places(16, 8)
    field, noise = a_field(points, share, kind=GpuMLPField, **options), 0.1 * rand(16, 8, low=-1.0, seed=2)
    raw = field.raw(points, viewdirs if field.embed_dirs else None)
    torch.testing.assert_close(raw, plain(field)(points, viewdirs), rtol=0, atol=1e-6)
    torch.testing.assert_close(field.density(points.reshape(-1, 3)), raw[..., 3].relu().flatten(), rtol=0, atol=1e-6)
    ours, expected = (gradients(field, way, points, viewdirs, noise) for way in (field.raw, plain(field)))
    assert_same_gradients(ours, expected, share)


@with_or_without_viewdirs
def test_whole_rays_of_at_most_netchunk_points_go_through_at_once_and_in_training_all(use_viewdirs):
    points, viewdirs = places(6, 7)
    field = a_field(points, 0.5, kind=GpuMLPField, use_viewdirs=use_viewdirs, netchunk=17)
    sizes = field.embed_points.sizes
    trained = field.raw(points, viewdirs)
    assert sizes == [42]
    with torch.no_grad():
        shown = field.raw(points, viewdirs)
    assert sizes == [42, 14, 14, 14]
    torch.testing.assert_close(shown, trained, rtol=0, atol=1e-6)
    field.netchunk = 3  # a ray at a time all the same
    with torch.no_grad():
        torch.testing.assert_close(field.raw(points, viewdirs), trained, rtol=0, atol=1e-6)
    field.density(points.reshape(-1, 3))
    assert sizes[4:] == [7] * 6 + [3] * 14


@with_or_without_viewdirs
def test_points_get_a_gradient_only_where_they_ask_for_one(use_viewdirs):
    points, viewdirs = places(16, 8)
    field = a_field(points, 0.5, kind=GpuMLPField, use_viewdirs=use_viewdirs)
    field.raw(points, viewdirs).sum().backward()
    assert points.grad is None
    assert field.network.pts_linears[0].weight.grad.norm() > 0


@with_or_without_viewdirs
def test_a_bf16_field_is_near_the_float32_one_and_gives_float32_gradients(use_viewdirs):
    points, viewdirs = places(16, 8)
    full = a_field(points, 0.3, kind=GpuMLPField, use_viewdirs=use_viewdirs)
    half = GpuMLPField(full.network, full.embed_points, full.embed_dirs, dtype=torch.bfloat16)
    raw, expected, density = half.raw(points, viewdirs), full.raw(points, viewdirs), half.density(points.reshape(-1, 3))
    assert raw.dtype == density.dtype == torch.float32
    assert not torch.equal(raw, expected)
    torch.testing.assert_close(raw, expected, rtol=0, atol=0.02)
    torch.testing.assert_close(density, raw[..., 3].relu().flatten())
    upstream = rand(16, 8, 4, low=-1.0)
    parameters = [parameter for parameter in full.network.parameters() if parameter.requires_grad]
    for ours, exact in zip(*(torch.autograd.grad(part, parameters, upstream) for part in (raw, expected))):
        assert ours.dtype == torch.float32
        assert (ours - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize('n', [1, COLUMN_PARTS - 1, COLUMN_PARTS, COLUMN_PARTS + 1, 3 * COLUMN_PARTS + 40])
def test_gradients_of_biases_are_sums_over_all_points_however_many_are_left_over(n):
    points, viewdirs = places(n, 1)
    field = a_field(points, 1.0, kind=GpuMLPField)
    raws = field.raw(points, viewdirs), plain(field)(points, viewdirs)
    biases = [weight for name, weight in field.network.named_parameters() if name.endswith('bias')]
    upstream = rand(n, 1, 4, low=-1.0)
    for ours, expected in zip(*(torch.autograd.grad(raw, biases, upstream) for raw in raws)):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('where', [
    'points', 'pts_linears.0.weight', 'pts_linears.1.bias', 'pts_linears.2.weight', 'viewdirs',
    'views_linears.0.weight', 'views_linears.0.bias', 'feature_linear.weight', 'feature_linear.bias',
    'alpha_linear.weight', 'alpha_linear.bias', 'rgb_linear.weight', 'rgb_linear.bias', 'output_linear.weight'])
def test_nan_reaches_raw_and_the_gradient(where):
    assert_nan_is_seen(where, 'output' not in where, GpuMLPField)
