"""interface.py, by a field that nothing else knows: a dense voxel grid with a sampler and a training of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_run_nerf_helpers import rand
from torch import Tensor, nn
from torch.nn import functional as F

from nerf.fields.interface import Changes, Field, Losses, Numbers, Sampler, Target, Training, exposed, pieces
from nerf.flags import parse_flags
from nerf.metrics import psnr
from nerf.ray_batcher import RayBatcher
from nerf.rendering import render_view
from nerf.scene import Scene
from nerf.training import Trainer
from run_nerf import load_scene
from run_nerf_helpers import Composite, Rays, RenderResult, composite, img2mse, ray_points, stratified_z

REACH = 1.5  # half the side of the grid's cube, in scene units; there is nothing outside
SAMPLES = 24  # on a ray


class Voxels(Field):
    """Raw colour and density at the points of a grid, trilinear in between."""

    white_bkgd, shape_flags = True, ('netwidth',)

    def __init__(self, points: int = 17, tile: int = 1000):
        super().__init__()
        self.grid, self.tile = nn.Parameter(torch.zeros(1, 4, points, points, points)), tile

    def radiance(self, points: Tensor, viewdirs: Tensor) -> tuple[Tensor, Tensor]:
        raw = F.grid_sample(self.grid, points.reshape(1, -1, 1, 1, 3) / REACH, align_corners=True)
        raw = raw.reshape(4, *points.shape[:-1])
        inside = (points.abs() <= REACH).all(-1)
        return torch.sigmoid(raw[:3]).movedim(0, -1), inside * F.softplus(10.0 * raw[3] - 2.0)

    def density(self, points: Tensor) -> Tensor:
        return self.radiance(points[:, None], points)[1][:, 0]

    def sampler(self) -> Even:
        return Even(self, self.tile)

    def weights(self) -> dict:
        return {'voxels_state_dict': self.state_dict()}

    def load_weights(self, checkpoint: dict) -> None:
        self.load_state_dict(checkpoint['voxels_state_dict'])

    def describe(self) -> str:
        return f'voxels    {self.grid.shape[-1]} points on a side'


class Even(Sampler):
    """Evenly spaced samples."""

    name = 'even'

    def render(self, rays: Rays, jitter: Tensor | None = None) -> RenderResult:
        return RenderResult(self.shown(rays, jitter), None, None)

    def shown(self, rays: Rays, jitter: Tensor | None) -> Composite:
        z = stratified_z(rays.near, rays.far, SAMPLES, jitter=jitter)
        return composite(*self.field.radiance(ray_points(rays, z), rays.viewdirs), z, rays.directions, self.white_bkgd)


class EvenTraining(Training):
    """The error of the colours, and of a rough grid."""

    def __init__(self, field: Voxels, chunk: int = 1000):
        super().__init__(field)
        self.chunk, self.sampler, self.seen = chunk, field.sampler(), []

    def random_numbers(self, n_rays: int, generator: torch.Generator) -> Numbers:
        return None, torch.rand(n_rays, SAMPLES, generator=generator, device=generator.device)

    def losses(self, rays: Rays, numbers: Numbers, target: Target) -> Losses:
        roughness = sum(self.field.grid.diff(dim=axis).square().mean() for axis in (2, 3, 4))
        shown = self.sampler.render(rays, numbers[1]).final
        return Losses({'roughness': 1e-3 * roughness, 'mse': img2mse(shown.rgb, target.rgb)},
                      {'opacity': shown.acc.sum()})

    def after_step(self, step: int, notes: dict[str, Tensor]) -> Changes:
        self.seen.append(notes['opacity'])
        return Changes([f'step {step} is done'] if step == 10 else [])


@pytest.fixture
def scene(flags) -> Scene:
    return load_scene(parse_flags(flags()))


def trainer_of(scene: Scene, chunk: int = 1000) -> Trainer:
    batcher = RayBatcher(scene, 128, False, 0, 0.5, torch.Generator().manual_seed(0))
    return Trainer(EvenTraining(Voxels(), chunk), batcher, 0.1, 250)


@pytest.mark.slow
def test_a_trainer_trains_it_says_its_lines_and_hands_on_its_notes(scene):
    trainer, said, losses = trainer_of(scene), [], []
    for step in range(1, 61):
        losses.append(trainer.step(step))
        said += trainer.after_step(step, losses[-1])
    assert list(losses[0].terms) == ['roughness', 'mse']
    assert said == ['step 10 is done']
    assert losses[-1].terms['mse'] < 0.2 * losses[0].terms['mse']
    assert len(trainer.training.seen) == 60
    assert 0 < trainer.training.seen[-1] <= 128.0


def test_tiles_change_neither_training_nor_notes_nor_views(scene):
    whole, cut = trainer_of(scene), trainer_of(scene, chunk=50)
    assert len(cut.training.tiles(128)) == 3
    for step in range(1, 4):
        ours, theirs = cut.step(step), whole.step(step)
        torch.testing.assert_close(ours.terms, theirs.terms, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ours.notes, theirs.notes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cut.field.grid, whole.field.grid, rtol=1e-3, atol=1e-4)
    small = Voxels(tile=100)
    small.load_weights(whole.field.weights())
    views = [render_view(field.sampler(), scene.space, scene.cameras.take([4])) for field in (whole.field, small)]
    for name in ('rgb', 'disp', 'acc'):
        np.testing.assert_allclose(getattr(views[0], name), getattr(views[1], name), atol=1e-6)
    assert views[0].passes == {}


@pytest.mark.slow
def test_it_shows_a_view_that_it_was_not_trained_on(scene):
    trainer = trainer_of(scene)
    for step in range(1, 121):
        trainer.step(step)
    held_out = scene.i_val[0]
    view = render_view(trainer.field.sampler(), scene.space, scene.cameras.take([held_out]))
    white = psnr(np.ones_like(view.rgb), scene.target(held_out))
    assert psnr(view.rgb, scene.target(held_out)) > white + 5


def test_the_densities_of_an_array_are_those_of_its_points_however_many_there_are():
    field, points = Voxels(33), rand(2 ** 18 + 5, 3, low=-1.6, high=1.6)
    x, y, z = torch.meshgrid(*3 * [torch.linspace(-REACH, REACH, 33)], indexing='ij')
    with torch.no_grad():
        field.grid[0, 3] = (math.log(math.expm1(5.0)) + 2.0) / 10.0 + 5.0 * (0.8 - torch.sqrt(x ** 2 + y ** 2 + z ** 2))
    values = field.density_array(points.numpy())
    assert values.dtype == np.float32
    assert values.shape == (len(points),)
    for some in (slice(0, 9), slice(2 ** 18 - 4, 2 ** 18 + 5)):
        np.testing.assert_allclose(values[some], field.density(points[some]).detach().numpy(), rtol=1e-5)


def test_pieces_are_of_the_size_but_for_the_last_and_leave_nothing_out():
    assert pieces(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert pieces(6, 3) == [slice(0, 3), slice(3, 6)]
    assert pieces(2, 3) == [slice(0, 2)]
    assert pieces(0, 3) == []


def test_gains_multiply_colours_but_not_the_background():
    rgb, background, gains = torch.tensor([[0.8, 0.6, 0.5]]), torch.tensor([[0.4]]), torch.tensor([[2.0, 1.0, 0.0]])
    torch.testing.assert_close(exposed(rgb, background, gains), torch.tensor([[1.2, 0.6, 0.4]]))
    assert exposed(rgb, background, None) is rgb


def test_a_target_is_cut_with_its_rays():
    whole = Target(rand(5, 3), None, rand(5, 3, seed=1))
    part = whole.part(slice(1, 3))
    assert torch.equal(part.rgb, whole.rgb[1:3])
    assert part.coverage is None
    assert torch.equal(part.gains, whole.gains[1:3])


def test_what_a_field_a_sampler_and_a_training_do_not_say_has_a_default():
    field = Field()
    field.first, field.second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    training, sampler = Training(field), Sampler(field, 10)
    group, = training.parameter_groups()
    assert [*map(id, group['params'])] == [id(field.first), id(field.second)]
    assert group['rate'] == 1.0
    assert training.tiles(12) == [slice(0, 12)]
    assert training.rays_per_step(12) == 12
    assert training.after_step(1, {}) == Changes([], False)
    assert training.state() == training.scalars() == field.histograms(None) == {}
    assert training.more_optimisers() == []
    assert training.load_state({}) is None
    assert field.device == sampler.device == torch.device('cpu')
    assert not sampler.white_bkgd
    for unsaid in (lambda: field.radiance(None, None), lambda: field.density(None), field.weights, field.describe,
                   field.sampler, field.slim_weights, lambda: field.guided(None), lambda: sampler.render(None),
                   lambda: training.random_numbers(1, None), lambda: training.losses(None, (), None)):
        with pytest.raises(NotImplementedError):
            unsaid()
