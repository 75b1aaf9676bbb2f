"""Views of a field whose look is known, and the files that rendering leaves behind."""

import io
import json
import math

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from tqdm import tqdm

from nerf import rendering
import run_nerf
from nerf.runtime.errors import UserError
from load_blender import pose_spherical
from nerf.rendering import View, render_view, view_rays
from run_nerf import Model, Scene, render_path, save_metrics
from run_nerf_helpers import Rays, Sampling, bundle_rays, get_rays


class Balls(torch.nn.Module):
    """Opaque balls of radius 0.2: red at the origin's left (-x), green up (+z), blue nearer to the camera (-y)."""

    dtype = torch.float32
    balls = (((-0.7, 0.0, 0.0), 0), ((0.0, 0.0, 0.7), 1), ((0.6, -0.9, -0.4), 2))

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))  # a model's device is its parameters'

    def forward(self, points, viewdirs, noise=None):
        raw = torch.full((*points.shape[:-1], 4), -20.0)
        for centre, channel in self.balls:
            inside = (points - torch.tensor(centre)).norm(dim=-1) < 0.2
            raw[..., channel] = torch.where(inside, 20.0, raw[..., channel])
            raw[..., 3] = torch.where(inside, 300.0, raw[..., 3])
        return raw


def scene_of(H: int, W: int, images=None, white_bkgd=True) -> Scene:
    K = np.array([[1.4 * W, 0.0, 0.5 * W], [0.0, 1.4 * W, 0.5 * H], [0.0, 0.0, 1.0]])
    pose = pose_spherical(180.0, 0.0, 4.0)[None, :3]  # at y = -4, looking along +y, x to the right
    index = np.arange(0 if images is None else len(images))
    return Scene(images=images, poses=np.repeat(pose, max(len(index), 1), 0), K=K, H=H, W=W, near=2.0, far=6.0,
                 ndc=False, white_bkgd=white_bkgd, render_poses=pose, i_train=index, i_val=index, i_test=index)


@pytest.fixture
def model():
    return Model(coarse=Balls(), fine=Balls(), sampling=Sampling(64, 64, white_bkgd=True), chunk=100)


def centre_of(mask: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return rows.mean(), columns.mean()


def expected_pixel(scene: Scene, centre: tuple[float, float, float], factor: int = 1) -> tuple[float, float]:
    """Row and column where a point shows in front of the camera of `scene_of`."""
    x, y, z = centre
    depth, focal = 4.0 + y, scene.K[0, 0] / factor
    return scene.H / factor / 2 - focal * z / depth, scene.W / factor / 2 + focal * x / depth


@pytest.mark.parametrize('factor', [0, 1, 2])
def test_things_show_where_the_camera_sees_them_at_every_render_factor(model, factor):
    scene = scene_of(48, 64)
    rgbs, disps, accs = render_path(model, scene, scene.render_poses, factor)
    shrink = max(factor, 1)
    assert rgbs.shape == (1, 48 // shrink, 64 // shrink, 3)
    assert rgbs.dtype == np.uint8
    for centre, channel in Balls.balls:
        others = [c for c in range(3) if c != channel]
        mask = (rgbs[0, ..., channel] > 200) & (rgbs[0][..., others].max(-1) < 60)
        assert centre_of(mask) == pytest.approx(expected_pixel(scene, centre, shrink), abs=0.7)
        row, column = (round(value) for value in centre_of(mask))
        assert disps[0, row, column] == pytest.approx(1 / (4.0 + centre[1] - 0.2), rel=0.05)
        assert accs[0, row, column] == pytest.approx(1.0, abs=1e-3)
    assert (rgbs[0, 0, 0] == 255).all()
    assert disps[0, 0, 0] == 0.0
    assert accs[0, 0, 0] == 0.0


def test_chunk_does_not_change_a_view(model):
    scene = scene_of(20, 30)
    whole = render_path(model, scene, scene.render_poses)
    model.chunk = 7
    for a, b in zip(whole, render_path(model, scene, scene.render_poses)):
        np.testing.assert_allclose(a, b, atol=1e-6)


# What a view leaves out


class Shown(torch.nn.Module):
    """A slab, y = -0.1 to 0.1, that shows the pixels of a mask [H, W] to the camera of `scene_of`; counts points."""

    dtype = torch.float32

    def __init__(self, mask: np.ndarray, density: float = 100.0):
        super().__init__()
        self.unused, self.mask, self.density = torch.nn.Parameter(torch.zeros(())), torch.from_numpy(mask), density
        self.asked, self.most, self.deepest = 0, 0, -math.inf

    def forward(self, points, viewdirs, noise=None):
        self.asked += points[..., 0].numel()
        self.most = max(self.most, points[..., 0].numel())
        self.deepest = max(self.deepest, points[..., 1].max().item())
        H, W = self.mask.shape
        x, y, z = points.unbind(-1)
        row, column = (0.5 * side + sign * 1.4 * W * part / (4.0 + y) for side, sign, part in ((H, -1, z), (W, 1, x)))
        shown = self.mask[row.round().long().clamp(0, H - 1), column.round().long().clamp(0, W - 1)] & (y.abs() < 0.1)
        return torch.stack([x, z, y, torch.where(shown, self.density, -1.0)], -1)


def model_of(coarse: np.ndarray, fine: np.ndarray | None = None, **kwargs) -> Model:
    return Model(Shown(coarse, **kwargs), Shown(coarse if fine is None else fine, **kwargs),
                 Sampling(64, 64, white_bkgd=True), chunk=100)


def view_of(model: Model) -> View:
    H, W = model.coarse.mask.shape
    scene = scene_of(H, W)
    return render_view(model, scene, scene.poses[0])


def mask_of(*pixels: tuple[int, int], shape=(20, 24)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(np.transpose(pixels))] = True
    return mask


@pytest.mark.parametrize('density', [1.0, 100.0])
def test_a_view_is_what_all_of_its_rays_show(density):
    """Half of the picture, and a speck that the coarse field alone sees and one for the fine field."""
    blocks = np.zeros((20, 24), bool)
    blocks[:, 12:] = True
    model = model_of(blocks | mask_of((4, 2), (4, 3), (5, 2), (5, 3), (3, 2)),
                     blocks | mask_of((14, 2), (14, 3), (15, 2), (15, 3), (13, 2)), density=density)
    view = view_of(model)
    scene = scene_of(20, 24)
    whole = model.render(view_rays(model, scene, scene.poses[0]))
    for ours, theirs in ((view, whole.final), (view.coarse, whole.coarse)):
        for name in ('rgb', 'disp', 'acc'):
            np.testing.assert_allclose(getattr(ours, name).reshape(480, -1), getattr(theirs, name).reshape(480, -1),
                                       atol=2e-4, err_msg=name)
    np.testing.assert_allclose(view.z_std.ravel(), whole.z_std, atol=1e-6)


@pytest.mark.parametrize('step', [(0, 1), (1, 0), (1, 1), (1, -1)])
@pytest.mark.parametrize('start', range(5))
@pytest.mark.parametrize('where', ['both', 'fine'])
def test_five_pixels_in_a_line_are_found_by_either_field(step, start, where):
    mask = mask_of(*((3 + i * step[0], 8 + start + i * step[1]) for i in range(5)))
    model = model_of(mask if where == 'both' else np.zeros_like(mask), mask)
    np.testing.assert_array_equal(view_of(model).acc > 0.5, mask)


def test_what_is_found_is_followed_to_its_end():
    spiral = mask_of(*((0, column) for column in range(24)), *((row, 23) for row in range(20)),
                     *((19, column) for column in range(8, 24)), *((row, 8) for row in range(7, 19, 2)))
    np.testing.assert_array_equal(view_of(model_of(spiral)).acc > 0.5, spiral)


def test_an_empty_view_asks_a_fifth_of_its_rays_and_a_full_one_asks_each_once():
    empty, full = model_of(np.zeros((20, 25), bool)), model_of(np.ones((20, 25), bool), density=0.1)
    assert (view_of(empty).rgb == 1.0).all()
    assert (empty.coarse.asked, empty.fine.asked) == (104 * 64, 104 * 64)  # filled to a multiple of 8
    view_of(full)
    assert (full.coarse.asked, full.fine.asked) == ((104 + 400) * 64, 500 * 128)


def test_nothing_is_asked_behind_a_wall():
    model = model_of(np.ones((20, 25), bool), density=1000.0)
    view_of(model)
    assert model.coarse.deepest > 1.9  # the coarse pass goes to the end of each ray
    assert model.fine.deepest < 1.0
    assert model.fine.asked < 500 * 90


@pytest.mark.parametrize(('density', 'last'), [(25.0, 5.5), (50.0, 4.1)])  # optical depths of 5, and of 10
def test_what_hides_the_rest_does_not_hang_on_how_long_directions_are(monkeypatch, density, last):
    monkeypatch.setattr(rendering, 'STRETCHES', 50)
    field = Shown(np.ones((20, 24), bool), density)
    ahead = torch.tensor([[0.0, 1.0, 0.0]])
    rays = Rays(-4.0 * ahead, 2.0 * ahead, viewdirs=ahead, near=torch.tensor([[1.0]]), far=torch.tensor([[3.0]]))
    rendering._front_to_back(field, rays, torch.linspace(1.75, 2.75, 400)[None], True)
    assert field.deepest + 4.0 == pytest.approx(last, abs=0.05)


def test_a_broken_field_does_not_show_an_empty_view():
    for broken in ('coarse', 'fine'):
        model = model_of(np.zeros((20, 24), bool), np.zeros((20, 24), bool))
        getattr(model, broken).density = math.nan
        getattr(model, broken).mask[:] = True
        assert np.isnan(view_of(model).coarse.acc if broken == 'coarse' else view_of(model).acc).all()


def test_the_bar_counts_every_ray_and_view_chunk_is_the_most_at_once():
    model = model_of(mask_of((4, 5)))
    model.chunk, model.view_chunk = 7, 40
    scene = scene_of(20, 24)
    with tqdm(total=480, file=io.StringIO()) as bar:
        render_view(model, scene, scene.poses[0], bar=bar)
        assert bar.n == 480
    assert model.coarse.most == 40 * 64
    model.view_chunk = None
    model.coarse.most = 0
    view_of(model)
    assert model.coarse.most == 7 * 64


def test_a_view_without_a_fine_pass_draws_every_ray():
    mask = mask_of((4, 5))
    model = Model(Shown(mask), None, Sampling(64, 0, white_bkgd=True), chunk=100)
    view = view_of(model)
    np.testing.assert_array_equal(view.acc > 0.5, mask)
    assert view.coarse is None
    assert model.coarse.asked == 480 * 64


# Files


def test_a_render_factor_that_leaves_nothing_is_an_error(model):
    scene = scene_of(20, 30)
    with pytest.raises(UserError, match='render_factor 21 leaves nothing of 30x20 pixels'):
        render_path(model, scene, scene.render_poses, 21)


def test_views_are_written_as_they_are_done(model, tmp_path):
    scene = scene_of(20, 30)
    poses = np.repeat(scene.render_poses, 2, 0)
    rgbs, _, _ = render_path(model, scene, poses, savedir=tmp_path / 'views')
    assert sorted(path.name for path in (tmp_path / 'views').iterdir()) == ['000.png', '001.png']
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'views' / '001.png')), rgbs[1])


def test_test_metrics_are_those_of_the_written_pictures_against_the_images_on_white(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 16, 20, 4), dtype=np.uint8)
    scene = scene_of(16, 20, images)
    rgbs = rng.integers(0, 256, (3, 16, 20, 3), dtype=np.uint8)
    mean = save_metrics(tmp_path, 70, scene, rgbs)
    written = json.loads((tmp_path / 'metrics.json').read_text())
    assert written['step'] == 70
    assert written['mean'] == mean
    assert [row['file'] for row in written['images']] == ['000.png', '001.png', '002.png']
    for row, rgb, image in zip(written['images'], rgbs, images / 255.0):
        target = image[..., :3] * image[..., 3:] + 1.0 - image[..., 3:]
        assert row['psnr'] == pytest.approx(-10 * np.log10(np.mean((rgb / 255.0 - target) ** 2)), abs=1e-4)
        assert row['ssim'] == pytest.approx(structural_similarity(
            rgb / 255.0, target, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
            data_range=1.0), abs=1e-4)
    for key in ('psnr', 'ssim'):
        assert mean[key] == pytest.approx(np.mean([row[key] for row in written['images']]))


def test_the_reference_codes_checkpoint_renders_as_it_does_there(shared):
    folder = shared / 'interop' / 'nerf_pytorch_small'
    if not folder.is_dir():
        pytest.skip(f'needs {folder}')
    args = run_nerf.parse_flags(['--config', str(folder / 'config.txt'), '--ft_path', str(folder / '003000.tar'),
                                 '--precision', 'fp32', '--device', 'cpu'])
    model = run_nerf.create_nerf(args, torch.device('cpu'), torch.float32)
    step, own = run_nerf.restore_model(args, folder / 'no such run', model)
    assert step == 2999
    assert own is None
    with np.load(folder / 'reference.npz') as reference:
        rays_o, rays_d = get_rays(50, 50, reference['K'], torch.from_numpy(reference['c2w']))
        with torch.no_grad():
            result = model.render(bundle_rays(rays_o, rays_d, 2.0, 6.0))
            points, viewdirs = (torch.from_numpy(reference[key]) for key in ('pts', 'viewdirs'))
            raws = [field(points[:, None], viewdirs)[:, 0] for field in (model.coarse, model.fine)]
        ours = {'rgb': result.final.rgb, 'acc': result.final.acc, 'disp': result.final.disp, 'rgb0': result.coarse.rgb,
                'z_std': result.z_std, 'raw_coarse': raws[0], 'raw_fine': raws[1]}
        for key, value in ours.items():
            expected = reference[key]
            value = value.numpy().reshape(expected.shape)
            known = np.isfinite(expected)  # the reference's disparity is 0/0 on empty rays
            np.testing.assert_allclose(value[known], expected[known], atol=1e-4, err_msg=key)
            assert (value[~known] == 0).all()


def test_a_video_shows_the_frames_in_order(tmp_path):
    frames = np.stack([np.full((32, 48, 3), level, np.uint8) for level in (20, 120, 220)])
    run_nerf.save_video(tmp_path / 'v.mp4', frames)
    assert [path.name for path in tmp_path.iterdir()] == ['v.mp4']
    read = np.stack(imageio.mimread(tmp_path / 'v.mp4'))
    assert read.shape == (3, 32, 48, 3)
    np.testing.assert_allclose(read.mean((1, 2, 3)), [20, 120, 220], atol=4)
