"""Views of a field whose look is known, and the files that rendering leaves behind."""

import json

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity

import run_nerf
from errors import UserError
from load_blender import pose_spherical
from run_nerf import Model, Scene, render_path, save_metrics
from run_nerf_helpers import Sampling, bundle_rays, get_rays


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
