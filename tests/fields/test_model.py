"""The one interface of models, by a model that nothing else knows: a voxel grid that grows while it is trained."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import trimesh
from conftest import assert_same, state_of_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F

import run_nerf
from nerf.fields.interface import Model, Numbers, Picture, pieces
from nerf.flags import parse_flags
from nerf.meshes.mesh import export_mesh
from nerf.metrics import psnr
from nerf.optimiser import Optimiser
from nerf.ray_batcher import RayBatcher
from nerf.rendering import draw_view, render_view
from nerf.runtime.errors import UserError
from nerf.training import Trainer
from run_nerf_helpers import Composite, Rays, composite, img2mse, ray_points, stratified_z

REACH = 1.5  # half the side of the grid's cube, in scene units; there is nothing outside
SAMPLES = 24  # on a ray


def finer(values: Tensor) -> Tensor:
    """Values [1, C, n, n, n] at the points of a grid with half the step, [1, C, 2n - 1, 2n - 1, 2n - 1]."""
    return F.interpolate(values, size=2 * values.shape[-1] - 1, mode='trilinear', align_corners=True)


class Voxels(Model):
    """Raw colour and density at the points of a grid, trilinear in between.

    Args:
        points: along each side of the grid.
        grow_at: step after which it gets half the step.
        chunk: most rays at once.
    """

    white_bkgd, loss_names = True, ('mse', 'roughness')
    shape_flags = ('netwidth',)

    def __init__(self, points: int = 9, grow_at: int = 10, chunk: int = 1000):
        super().__init__()
        self.grid = nn.Parameter(torch.zeros(1, 4, points, points, points))
        self.grow_at, self.chunk, self.view_chunk = grow_at, chunk, chunk

    def random_numbers(self, n_rays: int, generator: torch.Generator) -> Numbers:
        return None, torch.rand(n_rays, SAMPLES, generator=generator, device=generator.device)

    def forward(self, rays: Rays, numbers: Numbers, target: Tensor, gains: Tensor | None = None) -> dict[str, Tensor]:
        roughness = sum(self.grid.diff(dim=axis).square().mean() for axis in (2, 3, 4))
        return {'roughness': 1e-3 * roughness, 'mse': img2mse(self._shown(rays, numbers[1]).rgb, target)}

    def after_step(self, step: int, optimiser: Optimiser) -> list[str]:
        if step != self.grow_at:
            return []
        grown = nn.Parameter(finer(self.grid.detach()))
        optimiser.replace(self.grid, grown, finer)
        self.grid = grown
        return [f'step {step}: the grid has {grown.shape[-1]} points on a side']

    def render(self, rays: Rays) -> Composite:
        return self._shown(rays, None)

    def _shown(self, rays: Rays, jitter: Tensor | None) -> Composite:
        z = stratified_z(rays.near, rays.far, SAMPLES, jitter=jitter)
        return composite(*self.radiance(ray_points(rays, z), rays.viewdirs), z, rays.directions, self.white_bkgd)

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        raw = F.grid_sample(self.grid, points.reshape(1, -1, 1, 1, 3) / REACH, align_corners=True)
        raw = raw.reshape(4, *points.shape[:-1])
        inside = (points.abs() <= REACH).all(-1)
        return torch.sigmoid(raw[:3]).movedim(0, -1), inside * F.softplus(10.0 * raw[3] - 2.0)

    def density(self, points: Tensor) -> Tensor:
        return self.radiance(points[:, None], points)[1][:, 0]

    def weights(self) -> dict:
        return {'voxels_state_dict': self.state_dict()}

    def load_weights(self, checkpoint: dict) -> None:
        saved = checkpoint.get('voxels_state_dict')
        if not isinstance(saved, dict) or saved['grid'].shape[1] != 4:
            raise UserError('it has no voxels_state_dict; it is of another model')
        if saved['grid'].shape != self.grid.shape:
            self.grid = nn.Parameter(torch.empty_like(saved['grid']))
        self.load_state_dict(saved)

    def describe(self) -> str:
        return f'voxels    {self.grid.shape[-1]} points on a side'


def use_voxels(monkeypatch, **changes) -> None:
    """Lets run_nerf.py train such a grid in place of its own model."""
    monkeypatch.setattr(run_nerf, 'create_nerf', lambda args, device, *rest: Voxels(**changes).to(device))


def voxel_flags(flags: list[str]) -> list[str]:
    return [*flags, '--lrate', '0.1', '--N_rand', '128']


def voxel_trainer(flags: list[str], ema_decay: float = 0.0, **changes) -> Trainer:
    scene = run_nerf.load_scene(parse_flags(flags))
    batcher = RayBatcher(scene, 128, False, 0, 0.5, torch.Generator().manual_seed(0))
    return Trainer(Voxels(**changes), batcher, 0.1, 250, ema_decay)


def some_points(count: int) -> Tensor:
    return 3.0 * torch.rand(count, 3, generator=torch.Generator().manual_seed(1)) - 1.5


def ball_of_voxels(radius: float, points: int = 33) -> Voxels:
    """A grid with an orange ball that is dense inside and has density 5 on its surface."""
    model = Voxels(points)
    x, y, z = torch.meshgrid(*3 * [torch.linspace(-REACH, REACH, points)], indexing='ij')
    distance = torch.sqrt(x ** 2 + y ** 2 + z ** 2)
    with torch.no_grad():
        on_surface = (math.log(math.expm1(5.0)) + 2.0) / 10.0
        model.grid[0, 3] = on_surface + 5.0 * (radius - distance)
        model.grid[0, :3] = torch.logit(torch.tensor([0.9, 0.5, 0.2]))[:, None, None, None]
    return model


# Training


def test_a_trainer_trains_it_and_says_what_it_says(flags):
    trainer = voxel_trainer(flags())
    before, said = trainer.step(1), []
    assert list(before) == ['mse', 'roughness']
    for step in range(2, 61):
        losses = trainer.step(step)
        said += trainer.after_step(step)
    assert said == ['step 10: the grid has 17 points on a side']
    assert trainer.model.grid.shape == (1, 4, 17, 17, 17)
    assert losses['mse'] < 0.2 * before['mse']
    assert not trainer.optimiser.replaced


def test_growing_changes_nothing_that_can_be_seen_and_takes_adam_and_the_average_along(flags):
    trainer = voxel_trainer(flags(), ema_decay=0.9)
    for step in range(1, 11):
        trainer.step(step)
    model, optimiser = trainer.model, trainer.optimiser
    points, old = some_points(500), model.grid
    seen, averaged = model.radiance(points[:, None], points), optimiser.averaged_model().density(points)
    mean = optimiser.adam.state[old]['exp_avg']
    trainer.after_step(10)
    assert model.grid is not old
    torch.testing.assert_close(model.radiance(points[:, None], points), seen, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(optimiser.averaged_model().density(points), averaged, rtol=1e-4, atol=1e-5)
    grown = optimiser.adam.state[model.grid]
    torch.testing.assert_close(grown['exp_avg'][..., ::2, ::2, ::2], mean)
    assert float(grown['step']) == 10
    assert [p for group in optimiser.adam.param_groups for p in group['params']] == [model.grid]
    before = model.grid.detach().clone()
    trainer.step(11)
    assert not torch.equal(model.grid, before)


def test_tiles_change_neither_training_nor_views(flags):
    whole, cut = voxel_trainer(flags()), voxel_trainer(flags(), chunk=50)
    assert len(cut.model.tiles(128)) == 3
    for step in range(1, 4):
        torch.testing.assert_close(cut.step(step), whole.step(step), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(cut.model.grid, whole.model.grid, rtol=1e-3, atol=1e-4)
    cut.model.load_weights(whole.model.weights())
    scene = whole.batcher.scene
    views = [render_view(trainer.model, scene, scene.cameras.take([4])) for trainer in (whole, cut)]
    for name in ('rgb', 'disp', 'acc'):
        np.testing.assert_allclose(getattr(views[0], name), getattr(views[1], name), atol=1e-6)


# Views


def test_a_view_is_drawn_tile_by_tile_and_is_what_its_rays_show(flags):
    model, scene = ball_of_voxels(0.8), run_nerf.load_scene(parse_flags(flags()))
    model.view_chunk = 100
    camera = scene.cameras.take([0])
    done = [int(picture.final.sum()) for picture in draw_view(model, scene, camera)]
    assert done == [100, 200, 256]
    view = render_view(model, scene, camera)
    with torch.no_grad():
        shown = model.render(scene.rays(*camera.view_rays(0)))
    np.testing.assert_allclose(view.rgb, shown.rgb.reshape(16, 16, 3), atol=1e-6)
    np.testing.assert_allclose(view.disp, shown.disp.reshape(16, 16), atol=1e-6)
    np.testing.assert_allclose(view.acc, shown.acc.reshape(16, 16), atol=1e-6)
    assert view.passes == {}
    assert view.spread is None
    np.testing.assert_allclose(view.rgb[8, 8], [0.9, 0.5, 0.2], atol=1e-3)  # the ball
    np.testing.assert_allclose(view.rgb[0, 0], 1.0, atol=1e-3)  # the background
    assert view.disp[8, 8] == pytest.approx(1 / 3.2, rel=0.05)  # the ball's front is 3.2 away


def test_a_trained_grid_shows_a_view_that_it_was_not_trained_on(flags):
    trainer = voxel_trainer(flags(), grow_at=40)
    for step in range(1, 121):
        trainer.step(step)
        trainer.after_step(step)
    scene = trainer.batcher.scene
    held_out = scene.i_val[0]
    view = render_view(trainer.model, scene, scene.cameras.take([held_out]))
    white = psnr(np.ones_like(view.rgb), scene.target(held_out))
    assert psnr(view.rgb, scene.target(held_out)) > white + 5


def test_a_picture_begins_as_background_and_takes_what_rays_show():
    picture = Picture.background(4, True, torch.device('cpu'), ('coarse',))
    assert torch.equal(picture.rgb, torch.ones(4, 3))
    assert torch.equal(Picture.background(4, False, torch.device('cpu')).rgb, torch.zeros(4, 3))
    assert picture.passes.keys() == {'coarse'}
    shown = Composite(rgb=torch.full((2, 3), 0.25), disp=torch.tensor([9.0, 9.0]), acc=torch.tensor([0.5, 1.0]),
                      weights=torch.zeros(2, 1), depth=torch.tensor([2.0, 3.0]))
    picture.put(slice(1, 3), shown)
    assert picture.rgb[:, 0].tolist() == [1.0, 0.25, 0.25, 1.0]
    assert picture.depth.tolist() == [0.0, 2.0, 3.0, 0.0]
    assert picture.acc.tolist() == [0.0, 0.5, 1.0, 0.0]
    assert torch.equal(picture.passes['coarse'].acc, torch.zeros(4))
    assert not picture.final.any()


def test_pieces_are_of_the_size_but_for_the_last_and_leave_nothing_out():
    assert pieces(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert pieces(6, 3) == [slice(0, 3), slice(3, 6)]
    assert pieces(2, 3) == [slice(0, 2)]
    assert pieces(0, 3) == []


# Mesh


def test_the_densities_of_an_array_are_those_of_its_points_however_many_there_are():
    model, points = ball_of_voxels(0.8), some_points(2 ** 18 + 5)
    values = model.density_array(points.numpy())
    assert values.dtype == np.float32
    assert values.shape == (len(points),)
    for some in (slice(0, 9), slice(2 ** 18 - 4, 2 ** 18 + 5)):
        np.testing.assert_allclose(values[some], model.density(points[some]).detach().numpy(), rtol=1e-5)


def test_its_mesh_is_the_surface_in_its_colour(flags, tmp_path):
    scene = run_nerf.load_scene(parse_flags(flags()))
    export_mesh(ball_of_voxels(0.8), scene, tmp_path / 'ball.ply', 64, 5.0)
    mesh = trimesh.load(tmp_path / 'ball.ply', process=False)
    distance = np.linalg.norm(mesh.vertices, axis=1)
    np.testing.assert_allclose(distance, 0.8, atol=0.02)  # trilinear cells of 0.094 are flat inside
    assert mesh.is_watertight
    np.testing.assert_allclose(np.asarray(mesh.visual.vertex_colors)[:, :3],
                               np.broadcast_to([230, 128, 51], mesh.vertices.shape), atol=1)
    assert (tmp_path / 'ball_views.png').is_file()


# Runs


def test_a_run_logs_saves_renders_and_meshes_it(flags, tmp_path, monkeypatch, capsys):
    use_voxels(monkeypatch, grow_at=30)
    wanted = voxel_flags(flags('--N_iters', '60', '--i_print', '20', '--i_img', '60', '--i_testset', '60', '--i_video',
                               '60', '--render_factor', '2', '--ema_decay', '0.9'))
    assert run_nerf.main(wanted) == 0
    said, run = capsys.readouterr().out, tmp_path / 'run'
    assert 'voxels    9 points on a side' in said
    assert 'step 30: the grid has 17 points on a side' in said
    assert '(coarse' not in said
    lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines] == [20, 40, 60]
    for line in lines:
        assert line.keys() == {'step', 'loss', 'psnr', 'roughness', 'lr', 'rays_per_s', 'seconds'}
        assert line['loss'] == pytest.approx(10 ** (-0.1 * line['psnr']) + line['roughness'])
    board = EventAccumulator(str(run), size_guidance={'images': 0}).Reload()
    assert {'train/psnr', 'train/roughness', 'val/psnr', 'test/psnr'} <= set(board.Tags()['scalars'])
    assert 'train/psnr_coarse' not in board.Tags()['scalars']
    assert set(board.Tags()['images']) == {f'val/{name}' for name in (
        'rgb', 'disparity', 'opacity', 'target', 'error')}
    assert board.Tags()['histograms'] == []
    for name in ('testset_000060/metrics.json', 'testset_000060/001.png', 'run_spiral_000060_rgb.mp4',
                 'run_spiral_000060_disp.mp4', 'summary.png'):
        assert (run / name).is_file()

    capsys.readouterr()
    assert run_nerf.main([*wanted, '--render_only', '--render_test', '--render_factor', '0']) == 0
    measured = [json.loads((run / folder / 'metrics.json').read_text()) for folder in (
        'testset_000060', 'renderonly_test_000060')]
    assert measured[0] == measured[1]  # both of the average
    assert run_nerf.main([*wanted, '--mesh_only', '--mesh_threshold', '5', '--mesh_grid_size', '32']) == 0
    mesh = trimesh.load(run / 'mesh_000060.ply')
    assert np.abs(mesh.vertices).max() <= REACH


@pytest.mark.parametrize('grow_at', [4, 8, 16])  # before the run stops, when it stops, and after it has gone on
def test_a_run_that_grows_goes_on_bit_for_bit(flags, tmp_path, monkeypatch, grow_at):
    use_voxels(monkeypatch, grow_at=grow_at)
    extra = ('--i_print', '4', '--ema_decay', '0.9')
    for name, steps in (('whole', 24), ('parts', 8), ('parts', 24)):
        assert run_nerf.main(voxel_flags(flags(*extra, '--N_iters', str(steps), expname=name))) == 0
    whole, parts = (state_of_run(tmp_path / name, 24) for name in ('whole', 'parts'))
    assert whole['voxels_state_dict']['grid'].shape[-1] == 17
    assert not torch.equal(whole['voxels_state_dict']['grid'], whole['averaged']['voxels_state_dict']['grid'])
    assert_same(whole, parts)
    curves = [[json.loads(line)['psnr'] for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
              for name in ('whole', 'parts')]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 6


def test_a_checkpoint_of_another_model_is_one_line_that_names_it_and_the_changed_flags(flags, tmp_path, monkeypatch,
                                                                                       capsys):
    assert run_nerf.main(flags('--N_iters', '1')) == 0
    use_voxels(monkeypatch)
    capsys.readouterr()
    assert run_nerf.main(voxel_flags(flags('--N_iters', '2', '--netwidth', '8'))) == 1
    path = tmp_path / 'run' / '000001.tar'
    assert capsys.readouterr().err.splitlines()[-1] == (
        f'error: {path}: it has no voxels_state_dict; it is of another model (changed since then: netwidth 16 -> 8)')


def test_running_means_of_a_grid_of_another_size_are_one_line(flags, tmp_path, monkeypatch, capsys):
    use_voxels(monkeypatch, grow_at=3)
    assert run_nerf.main(voxel_flags(flags('--N_iters', '2'))) == 0
    path = tmp_path / 'run' / '000002.tar'
    checkpoint = torch.load(path, weights_only=True)
    checkpoint['voxels_state_dict']['grid'] = finer(checkpoint['voxels_state_dict']['grid'])
    torch.save(checkpoint, path)
    capsys.readouterr()
    assert run_nerf.main(voxel_flags(flags('--N_iters', '4'))) == 1
    error = capsys.readouterr().err
    assert f'error: {path}: its optimiser does not fit the flags' in error
    assert 'parameter 0 is not of shape (1, 4, 17, 17, 17)' in error


def test_what_a_model_does_not_say_has_a_default():
    class Least(Model):
        chunk, loss_names = 5, ('mse',)

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))

    model = Least()
    group, = model.parameter_groups()
    assert [*map(id, group['params'])] == [id(model.first), id(model.second)]
    assert group['rate'] == 1.0
    assert model.tiles(12) == pieces(12, 5)
    assert model.after_step(1, None) == []
    assert model.histograms(None) == {}
    assert model.training_state() == {}
    assert model.load_training_state({'scaler': {}}) is None
    assert model.device == torch.device('cpu')
    for unsaid in (lambda: model.render(None), lambda: model.density(None), model.weights, model.describe,
                   lambda: model.random_numbers(1, None), lambda: model(None, (), None)):
        with pytest.raises(NotImplementedError):
            unsaid()
