"""nerf/fields/grid/build.py: with which cells the grid of a scene begins, and what it knows of the pictures."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_grids import CELLS, OPEN, a_field, schedule_of

from nerf.captures.free_space import FreeSpace, FreeSpaceRules
from nerf.coverage import knows_coverage
from nerf.fields.grid.build import build_field, choose_backend, free_cells, seen_cells
from nerf.fields.grid.field import GridField
from nerf.fields.grid.torch_backend import TorchBackend
from nerf.fields.grid.training import prune
from nerf.runtime.errors import UserError
from nerf.scene import Scene, blender_scene, llff_scene
from nerf.space import Unbounded
from run_nerf_helpers import Rays

CPU = torch.device('cpu')


def built(scene: Scene, **numbers) -> GridField:
    return build_field(scene, schedule_of(scene.space, **numbers), 0, CPU, torch.float32, 10000, 2)


@pytest.fixture
def balls(tiny_scene, tmp_path):
    """balls(white_bkgd, channels): a scene of an orange ball."""
    def make(white: bool = True, channels: int = 4) -> Scene:
        folder = tmp_path / f'{channels}'
        if not folder.exists():
            tiny_scene(folder, channels=channels)
        return blender_scene(str(folder), white, half_res=False, testskip=1)
    return make


def test_a_grid_on_white_begins_with_its_visual_hull_with_or_without_alpha(balls):
    hulled = built(balls(), stages='0:24')
    assert 100 < hulled.grid.cells.sum() < 0.7 * 24 ** 3
    assert hulled.density(torch.zeros(1, 3)).item() > 0
    assert torch.equal(built(balls(channels=3), stages='0:24').grid.cells, hulled.grid.cells)
    assert hulled.sampler().supersample == 2


@pytest.mark.parametrize('channels', [3, 4])
def test_without_white_bkgd_it_begins_with_all_cells(balls, channels):
    scene = balls(False, channels)
    assert not knows_coverage(scene)
    field = built(scene)
    assert field.grid.cells.sum() == CELLS ** 3
    assert not field.white_bkgd


def test_densities_start_slowly_only_where_training_rays_end_on_random_colours(balls, tiny_llff, tmp_path):
    assert built(balls()).schedule.slow_start == 0.02
    assert built(balls(False)).schedule.slow_start == 1.0
    masked = balls()
    masked = replace(masked, images=replace(masked.images, masks=np.ones(len(masked.images.pixels), bool)))
    assert built(masked).schedule.slow_start == 1.0  # pixels are drawn from masks, and their coverage is not known
    scene = llff_scene(str(tiny_llff(tmp_path / 'llff')), False, 2, False, 8, True, False)
    assert built(scene).schedule.slow_start == 0.02


def test_voxels_are_not_smaller_than_the_pictures_pixels_allow(balls):
    scene = balls()
    pixel = float(scene.space.pixel_sides(scene.training_cameras).median())
    assert len(built(scene, voxel_pixels=0.0).voxels) == 3
    some = built(scene, voxel_pixels=0.9 * 4.0 / 12 / pixel).voxels  # the box has sides of 4
    assert some == pytest.approx([4.0 / CELLS, 4.0 / 12])


@pytest.mark.parametrize('kind', ['NDC', 'forward', 'around'])
def test_photographs_without_ndc_have_a_grid_of_all_that_is_seen_up_to_infinity(tiny_llff, tmp_path, kind):
    folder = str(tiny_llff(tmp_path / 'scene'))
    scene = llff_scene(folder, False, 2, kind == 'around', 8, ndc=kind == 'NDC',
                       unbounded=kind != 'NDC').rays_within(0.5)
    field = build_field(scene, schedule_of(scene.space, stages='0:16'), 0, CPU, torch.float32, 10000)
    assert field.space is scene.space
    if kind != 'NDC':
        centres = field.grid.centres()
        assert centres.norm(dim=-1).max() < 2.0 + 2.0 * field.grid.voxel
        assert field.grid.cells.sum() < 0.9 * field.grid.cells.numel()
        rays = scene.rays(*scene.cameras.view_rays(int(scene.i_train[0])))
        far = rays.origins + 1e4 * rays.viewdirs
        assert field.grid.holds(scene.space.to_grid(far)).all()  # all that is far away can be shown
        everything = build_field(scene, schedule_of(scene.space, stages='0:16', seen_by=0), 0, CPU, torch.float32, 999)
        assert everything.grid.cells.sum() > field.grid.cells.sum()


@pytest.mark.parametrize('ndc', [True, False])
def test_views_that_meet_nothing_show_the_mean_colour_of_photographs(tiny_llff, tmp_path, ndc):
    scene = llff_scene(str(tiny_llff(tmp_path / 'scene')), False, 2, not ndc, 8, ndc=ndc, unbounded=not ndc)
    field = build_field(scene, schedule_of(scene.space, stages='0:16'), 0, CPU, torch.float32, 10000)
    mean = np.mean([scene.target(i)[::4, ::4].mean((0, 1)) for i in scene.i_train], 0)
    with torch.no_grad():
        field.rows[:, 0] = -9.0  # no density
    rays = scene.rays(*scene.cameras.view_rays(0))
    picture = field.sampler().render(Rays(*(part.reshape(-1, part.shape[-1]) for part in rays))).final
    np.testing.assert_allclose(picture.rgb, np.tile(mean, (len(picture.rgb), 1)), atol=1e-5)
    other = build_field(scene, schedule_of(scene.space, stages='0:16'), 0, CPU, torch.float32, 10000)
    other.backdrop.zero_()
    other.load_weights(field.slim_weights())
    assert torch.equal(other.backdrop, field.backdrop)
    older = field.slim_weights()
    del older['grid_state_dict']['backdrop']
    other.load_weights(older)
    for broken in (None, [0.1, 0.2, 0.3], torch.zeros(2)):
        older['grid_state_dict']['backdrop'] = broken
        with pytest.raises(UserError, match='is broken'):
            other.load_weights(older)


def test_views_that_meet_nothing_are_white_where_the_pictures_show_a_white_background(balls):
    scene = balls()
    endless = replace(scene, space=Unbounded.around(scene.cameras, 2.0, 6.0, surrounded=True))
    assert knows_coverage(endless)
    assert built(endless).backdrop.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize('ndc', [True, False])
def test_the_cell_of_a_point_is_never_free_however_far_away(tiny_llff, tmp_path, ndc):
    scene = llff_scene(str(tiny_llff(tmp_path / 'scene')), False, 2, False, 8, ndc=ndc, unbounded=not ndc)
    field = build_field(scene, schedule_of(scene.space, stages='0:60', seen_by=0), 0, CPU, torch.float32, 10000)
    cameras, found = replace(scene.cameras, bounds=torch.full((len(scene.cameras), 2), 0.1)), 0
    for depth in np.geomspace(2.0, 200.0, 24):
        point = torch.tensor([[0.0, 0.0, -depth]], dtype=torch.float32)
        space = FreeSpace(cameras, point.double().numpy(), FreeSpaceRules(tiles=1))
        free = free_cells(field, replace(scene, free_space=space), 2)
        cell = field.grid.cell_of(field.grid.scaled(scene.space.to_grid(scene.space.from_world(point))))
        assert not free.view(-1)[cell].any(), depth
        found += int(free.any())
    assert found > 20


def test_cells_that_views_see_through_are_dropped(tiny_llff, tmp_path):
    scene = llff_scene(str(tiny_llff(tmp_path / 'scene')), False, 2, True, 8, ndc=False, unbounded=True)
    cameras = replace(scene.cameras, bounds=torch.full((len(scene.cameras), 2), 0.1))
    known = replace(scene, free_space=FreeSpace(cameras, np.zeros((1, 3)), FreeSpaceRules(tiles=1)))  # at the origin
    numbers = schedule_of(scene.space, stages='0:80')

    def grid(scene: Scene, free_by: int):
        return build_field(scene, replace(numbers, free_by=free_by), 0, CPU, torch.float32, 10000).grid

    everything, kept = grid(known, 0), grid(known, 2)
    assert torch.equal(grid(scene, 2).cells, everything.cells)  # nothing is known of free space
    half_way = 0.5 * scene.cameras.poses[scene.i_train, :, 3]
    towards = scene.space.to_grid(half_way)
    reach = 2.0 * float((everything.voxel / scene.space.grid_scale(half_way)).max())  # of a cell around such a place
    several = known.free_space.views_through(half_way.double().numpy(), np.full(len(half_way), reach),
                                             scene.i_train) >= 2
    assert several.any()
    assert everything.holds(towards)[several].all()
    assert not kept.holds(towards)[several].any()
    assert kept.holds(scene.space.to_grid(torch.zeros(1, 3))).all()
    assert (everything.cells | ~kept.cells).all()


@pytest.mark.parametrize('compiled', [True, False], ids=['kernels', 'plain'])
def test_cells_that_no_view_sees_are_dropped_and_in_the_ball_those_that_one_alone_does(compiled):
    field, spread = a_field(compiled, OPEN, stages='0:24'), torch.linspace(-0.5, 0.5, 33)
    y, z = (part.flatten() for part in torch.meshgrid(spread, spread, indexing='ij'))
    views = []
    for side in (-1.0, 1.0):  # both look to +x, the second from farther right
        origins = torch.tensor([[0.6 * (1.0 + side), 0.0, 0.0]]).expand(len(y), 3)
        directions = torch.stack([torch.ones_like(y), y, z], -1)
        bounds = torch.full((len(y), 1), 0.75), torch.full((len(y), 1), 2.0)
        views.append(Rays(origins, directions, torch.nn.functional.normalize(directions, dim=-1), *bounds))

    def kept(field: GridField, x: float, y: float = 0.0, z: float = 0.0) -> bool:
        return bool(field.grid.holds(OPEN.to_grid(torch.tensor([[x, y, z]]))))
    one = a_field(compiled, OPEN, stages='0:24')
    prune(one, seen_cells(one, views[:1], 2))
    assert kept(one, 1.2)  # there is no second view that could see it
    prune(field, seen_cells(field, views, 2))
    assert [kept(field, x) for x in (-1.0, 0.3, 1.2)] == [False] * 3  # behind, before a near bound, seen by one alone
    assert all(kept(field, x) for x in (2.3, 10.0, 1000.0))
    assert not kept(field, 20.0, 15.0)
    assert kept(field, 20.0, 8.0)
    assert not kept(field, 0.0, 1000.0)


def test_a_grid_that_no_camera_sees_enough_of_is_one_line(balls):
    scene = balls(False)
    away = scene.cameras.poses.clone()
    away[:, :, 2] *= -1.0  # all look away from the box
    away[:, :, 0] *= -1.0
    scene = replace(scene, cameras=replace(scene.cameras, poses=away))
    with pytest.raises(UserError, match='the grid is empty'):
        built(scene, seen_by=1)


def test_a_gpu_has_plain_pytorch_and_a_cpu_the_kernels():
    pytest.importorskip('numba')
    assert choose_backend(torch.device('cuda')) is TorchBackend
    assert choose_backend(CPU).name == 'kernels'


def test_without_numba_a_line_says_that_plain_pytorch_is_slower(monkeypatch, capsys):
    for name in ('nerf.fields.grid.kernels', 'nerf.fields.grid.numba_backend', 'numba'):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert choose_backend(CPU) is TorchBackend
    error = capsys.readouterr().err
    assert error.startswith('the grid runs in plain PyTorch, many times slower: Numba cannot be used (')
    assert error.endswith('; pip install numba\n')
