"""nerf/rendering.py: views of a field whose look is known, and the files that rendering leaves behind."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from known_fields import Balls, Shown, balls_model, mask_of, scene_of, shown_model
from PIL import Image
from skimage.metrics import structural_similarity
from tqdm import tqdm

import run_nerf
from nerf.cameras import Cameras
from nerf.fields.paper.model import PaperModel
from nerf.rendering import as_view, draw_view, render_path, render_view, save_metrics, surveyed, view_rays
from nerf.runtime.errors import UserError
from nerf.scene import Images, Scene
from run_nerf_helpers import Sampling, bundle_rays, get_rays, ndc_rays, render_rays

MIDWAY = 240  # rays of 480, half of a view of 20x24


@pytest.fixture
def model() -> PaperModel:
    return balls_model()


def centre_of(mask: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return rows.mean(), columns.mean()


def expected_pixel(camera: Cameras, centre: tuple[float, float, float]) -> tuple[float, float]:
    """Row and column where a point shows in front of the camera of `scene_of`."""
    x, y, z = centre
    depth, (height, width) = 4.0 + y, camera.size(0)
    return height / 2 - 1.4 * width * z / depth, width / 2 + 1.4 * width * x / depth


def two_sizes(scene: Scene) -> Cameras:
    """A camera of the scene, one of half its size and the first again."""
    cameras, half = scene.cameras, scene.cameras.scaled(2)
    return Cameras(*(torch.cat(parts) for parts in (
        (cameras.poses, half.poses, cameras.poses), (cameras.intrinsics, half.intrinsics, cameras.intrinsics),
        (cameras.sizes, half.sizes, cameras.sizes))))


# Views


@pytest.mark.parametrize('factor', [0, 1, 2])
def test_things_show_where_the_camera_sees_them_at_every_render_factor(model, factor):
    scene = scene_of(48, 64)
    camera = scene.cameras.scaled(factor)
    (rgb,), (disp,), (acc,) = render_path(model, scene, camera)
    shrink = max(factor, 1)
    assert rgb.shape == (48 // shrink, 64 // shrink, 3)
    assert rgb.dtype == np.uint8
    for centre, channel in Balls.balls:
        others = [c for c in range(3) if c != channel]
        mask = (rgb[..., channel] > 200) & (rgb[..., others].max(-1) < 60)
        assert centre_of(mask) == pytest.approx(expected_pixel(camera, centre), abs=0.7)
        row, column = (round(value) for value in centre_of(mask))
        assert disp[row, column] == pytest.approx(1 / (4.0 + centre[1] - 0.2), rel=0.05)
        assert acc[row, column] == pytest.approx(1.0, abs=1e-3)
    assert (rgb[0, 0] == 255).all()
    assert disp[0, 0] == 0.0
    assert acc[0, 0] == 0.0


def test_chunk_does_not_change_a_view(model):
    scene = scene_of(20, 30)
    whole, tiled = (render_path(each, scene, scene.cameras) for each in (model, balls_model(chunk=7)))
    for a, b in zip(whole, tiled):
        np.testing.assert_allclose(a[0], b[0], atol=1e-6)


def test_the_bar_counts_every_ray_once_as_it_is_done():
    mask = np.zeros((20, 24), bool)
    mask[:, 4:20] = True
    scene, counts = scene_of(20, 24), []
    with tqdm(total=480, file=io.StringIO()) as bar:
        update = bar.update
        bar.update = lambda count: update(count) or counts.append(bar.n)
        render_view(shown_model(mask, chunk=7, view_chunk=40), scene, scene.cameras, bar)
    assert counts[-1] == 480
    assert counts == sorted(counts)
    assert len(set(counts)) > 5


def test_a_view_without_a_fine_pass_draws_every_ray():
    mask = mask_of((4, 5))
    model, scene = PaperModel(Shown(mask), None, Sampling(64, 0, white_bkgd=True), chunk=100), scene_of(20, 24)
    view = render_view(model, scene, scene.cameras)
    np.testing.assert_array_equal(view.acc > 0.5, mask)
    assert view.passes == {}
    assert view.spread is None
    assert model.coarse.asked == 480 * 64


def test_disparity_in_ndc_is_that_of_the_world():
    """A wall in NDC from z' = 0.5 on, a depth of 2 / (1 - 0.5) = 4; the first of 256 samples in it is the 193rd."""
    class Wall(Shown):
        def raw(self, points):
            return torch.where(points[..., 2:] > 0.5, torch.full((4,), 3000.0), torch.full((4,), -1.0))
    model = PaperModel(Wall(mask_of((0, 0))), None, Sampling(256, 0), chunk=100)
    scene = scene_of(6, 8)
    pose = torch.eye(4)[None, :3]
    scene = replace(scene, cameras=replace(scene.cameras, poses=pose), near=0.0, far=1.0, ndc=True)
    view = render_view(model, scene, scene.cameras)
    np.testing.assert_allclose(view.disp, 1 - 192 / 255, rtol=1e-5)
    origins, directions = scene.cameras.view_rays(0)
    expected, _ = ndc_rays(6, 8, 1.4 * 8, 1.0, origins, directions)
    torch.testing.assert_close(view_rays(model, scene, scene.cameras).origins, expected.reshape(-1, 3))


# Pictures while they are drawn


@pytest.fixture(params=['with a fine pass', 'without'])
def drawn(request) -> tuple[PaperModel, Scene]:
    """A model that shows most of the view of a scene, in tiles of 40 rays."""
    mask = np.zeros((20, 24), bool)
    mask[:, 4:20] = True
    model = shown_model(mask, chunk=40)
    if request.param == 'without':
        model = PaperModel(Shown(mask), None, Sampling(64, 0, white_bkgd=True), chunk=40)
    return model, scene_of(20, 24)


def test_pictures_grow_until_all_rays_are_final(drawn):
    model, scene = drawn
    counts, whole = [], render_view(model, scene, scene.cameras)
    for picture in draw_view(model, scene, scene.cameras):
        counts.append(int(picture.final.sum()))
        final, view = picture.final.reshape(20, 24).numpy(), as_view(picture, scene, 20, 24)
        np.testing.assert_array_equal(view.rgb[final], whole.rgb[final])
        np.testing.assert_array_equal(view.disp[final], whole.disp[final])
    assert len(counts) > 5
    assert counts == sorted(counts)
    assert 0 < counts[len(counts) // 2 + 1] < 480
    assert counts[-1] == 480


def test_drawing_that_is_broken_off_asks_the_field_for_nothing_more(drawn):
    model, scene = drawn
    drawing = draw_view(model, scene, scene.cameras)
    picture = next(picture for picture in drawing if picture.final.sum() >= MIDWAY)
    fields = [field for field in (model.coarse, model.fine) if field is not None]
    asked = [field.asked for field in fields]
    drawing.close()
    assert next(drawing, None) is None
    assert [field.asked for field in fields] == asked
    whole = render_view(model, scene, scene.cameras)
    assert all(2 * before <= field.asked for before, field in zip(asked, fields))
    assert any(2 * before < field.asked for before, field in zip(asked, fields))
    view, final = as_view(picture, scene, 20, 24), picture.final.reshape(20, 24).numpy()
    assert MIDWAY <= final.sum() < 480
    np.testing.assert_array_equal(view.rgb[final], whole.rgb[final])
    assert np.isfinite(view.rgb).all()
    assert np.isfinite(view.disp).all()


def test_a_view_taken_midway_stays_as_it_is_while_drawing_goes_on(drawn):
    model, scene = drawn
    drawing = draw_view(model, scene, scene.cameras)
    picture = next(picture for picture in drawing if picture.final.sum() >= MIDWAY)
    view, before = as_view(picture, scene, 20, 24), picture.acc.clone().numpy().reshape(20, 24)
    picture = list(drawing)[-1]
    assert (picture.acc.numpy().reshape(20, 24) != before).any()
    np.testing.assert_array_equal(view.acc, before)


def test_inference_mode_ends_with_each_picture(drawn):
    model, scene = drawn
    for _ in draw_view(model, scene, scene.cameras):
        assert not torch.is_inference_mode_enabled()


# Paths and their files


def test_a_render_factor_that_leaves_nothing_is_an_error():
    with pytest.raises(UserError, match='render_factor 21 leaves nothing of 30x20 pixels'):
        scene_of(20, 30).cameras.scaled(21)


def test_views_are_written_as_they_are_done(model, tmp_path):
    scene = scene_of(20, 30)
    rgbs = render_path(model, scene, scene.cameras.take([0, 0]), savedir=tmp_path / 'views').rgbs
    assert sorted(path.name for path in (tmp_path / 'views').iterdir()) == ['000.png', '001.png']
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'views' / '001.png')), rgbs[1])


def test_the_files_of_an_earlier_render_are_removed(model, tmp_path):
    for name in ('002.png', 'video.mp4', 'metrics.json', 'notes.txt'):
        (tmp_path / name).write_text('earlier')
    scene = scene_of(12, 16)
    render_path(model, scene, scene.cameras, savedir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['000.png', 'notes.txt']


def test_cameras_of_several_sizes_each_render_at_their_own(model, tmp_path):
    scene = scene_of(40, 60)
    cameras = two_sizes(scene)
    rgbs, disps, accs = render_path(model, scene, cameras, savedir=tmp_path)
    assert [rgb.shape for rgb in rgbs] == [(40, 60, 3), (20, 30, 3), (40, 60, 3)]
    for i in range(3):
        with surveyed(model, scene):
            alone = render_view(model, scene, cameras.take([i]))
        np.testing.assert_array_equal(disps[i], alone.disp)
        np.testing.assert_array_equal(accs[i], alone.acc)
        written = np.asarray(Image.open(tmp_path / f'{i:03d}.png'))
        np.testing.assert_array_equal(written, rgbs[i])
        np.testing.assert_array_equal(written, np.rint(255 * alone.rgb.clip(0, 1)))


def test_a_path_becomes_a_video_of_its_views_in_order(tmp_path):
    images = np.zeros((3, 32, 48, 3), np.uint8)
    scene = scene_of(32, 48, images)
    poses = scene.cameras.poses.clone()
    poses[1, 0, 3], poses[2, 0, 3] = 0.6, 20.0  # the last looks past everything
    cameras = replace(scene.cameras, poses=poses)
    path = render_path(balls_model(), scene, cameras, video=tmp_path / 'v.mp4')
    assert [file.name for file in tmp_path.iterdir()] == ['v.mp4']
    frames = np.stack(imageio.mimread(tmp_path / 'v.mp4'))
    assert frames.shape == (3, 32, 48, 3)
    off = np.abs(frames[:, None].astype(float) - np.stack(path.rgbs)).mean((2, 3, 4))  # [frame, view]
    assert off.argmin(1).tolist() == [0, 1, 2]
    assert off.diagonal().max() < 3
    assert (path.rgbs[2] == 255).all()


@pytest.mark.parametrize('count', [1, 3])
def test_a_view_that_cannot_be_written_ends_the_render(model, tmp_path, count):
    scene = scene_of(12, 16)
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(UserError, match=r'000\.png cannot be written'):
        render_path(model, scene, scene.cameras.take([0] * count), savedir=tmp_path / 'file')


# Test metrics


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


def test_each_view_is_measured_against_the_test_image_of_its_own_number_and_size(tmp_path):
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((16, 20), (12, 14), (16, 20))]
    scene = replace(scene_of(16, 20), images=Images.of_any_size(images), i_test=np.array([2, 1]))
    save_metrics(tmp_path, 1, scene, [images[2], np.full_like(images[1], 128)])
    rows = json.loads((tmp_path / 'metrics.json').read_text())['images']
    assert rows[0]['psnr'] == 100.0
    error = np.mean((images[1] / 255.0 - 128 / 255.0) ** 2)
    assert rows[1]['psnr'] == pytest.approx(-10 * np.log10(error), abs=1e-4)


# The program


def test_render_test_of_images_of_several_sizes_measures_them_and_writes_no_video(tmp_path, monkeypatch, capsys):
    flags = ['--dataset_type', 'blender', '--white_bkgd', '--netdepth', '2', '--netwidth', '16', '--multires', '2',
             '--N_samples', '8', '--N_rand', '32', '--device', 'cpu', '--expname', 'run', '--basedir', str(tmp_path),
             '--N_iters', '3', '--i_testset', '3', '--i_video', '3', '--i_img', '2']
    rng = np.random.default_rng(0)
    sizes = [(16, 20), (12, 14), (16, 20), (12, 14)]
    cameras = two_sizes(replace(scene_of(16, 20), cameras=scene_of(24, 28).cameras)).take([1, 0, 1, 0])
    cameras = replace(cameras, sizes=torch.tensor(sizes))
    everything = np.arange(4)
    images = Images.of_any_size([rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes])
    scene = Scene(images=images, cameras=cameras, render_cameras=cameras.take([1, 1]), near=2.0, far=6.0, ndc=False,
                  white_bkgd=True, i_train=everything, i_val=everything, i_test=everything[:2])
    monkeypatch.setattr(run_nerf, 'load_scene', lambda args: scene)
    assert run_nerf.main(flags) == 0
    said = capsys.readouterr().out
    assert '4 images of 14x12 and 20x16, 4 train' in said
    assert (tmp_path / 'run' / 'run_spiral_000003_rgb.mp4').is_file()  # the render path has one size

    assert run_nerf.main([*flags, '--render_only', '--render_test']) == 0
    folder = tmp_path / 'run' / 'renderonly_test_000003'
    said = capsys.readouterr().out
    assert f'2 views (of several sizes, so no video) are in {folder}' in said
    assert '2 test views: psnr ' in said
    assert sorted(path.name for path in folder.iterdir()) == [
        '000.png', '001.png', 'disp_000.png', 'disp_001.png', 'metrics.json']
    for i, (height, width) in enumerate(sizes[:2]):
        assert Image.open(folder / f'{i:03d}.png').size == Image.open(folder / f'disp_{i:03d}.png').size == (
            width, height)
        shown = np.asarray(Image.open(folder / f'{i:03d}.png')) / 255.0
        psnr = -10 * np.log10(np.mean((shown - images[i] / 255.0) ** 2))
        assert json.loads((folder / 'metrics.json').read_text())['images'][i]['psnr'] == pytest.approx(psnr, abs=1e-4)

    assert run_nerf.main([*flags, '--render_only']) == 0
    assert '2 views and their videos are in ' in capsys.readouterr().out
    assert (tmp_path / 'run' / 'renderonly_path_000003' / 'video_disp.mp4').is_file()


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
        rays = bundle_rays(rays_o, rays_d, 2.0, 6.0)
        with torch.no_grad():
            result, shown = render_rays(rays, model.coarse, model.fine, model.sampling), model.render(rays)
            points, viewdirs = (torch.from_numpy(reference[key]) for key in ('pts', 'viewdirs'))
            raws = [field.raw(points[:, None], viewdirs)[:, 0] for field in (model.coarse, model.fine)]
        assert all(torch.equal(a, b) for a, b in zip(shown, result.final))
        ours = {'rgb': result.final.rgb, 'acc': result.final.acc, 'disp': result.final.disp, 'rgb0': result.coarse.rgb,
                'z_std': result.z_std, 'raw_coarse': raws[0], 'raw_fine': raws[1]}
        for key, value in ours.items():
            expected = reference[key]
            value = value.numpy().reshape(expected.shape)
            known = np.isfinite(expected)  # the reference's disparity is 0/0 on empty rays
            np.testing.assert_allclose(value[known], expected[known], atol=1e-4, err_msg=key)
            assert (value[~known] == 0).all()
