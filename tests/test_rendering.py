"""nerf/rendering.py: views of a sampler whose picture is known, smooth edges, and the files of a render."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from conftest import trainer_of
from known_pictures import BALLS, RADIUS, Painted, balls, scene_of
from PIL import Image
from skimage.metrics import structural_similarity
from tqdm import tqdm

import run_nerf
from nerf.cameras import Cameras
from nerf.files.checkpoints import read_checkpoint
from nerf.rendering import (
    EDGE, Picture, as_view, draw, draw_pixels, edges, render_path, render_view, save_metrics, smooth_edges, view_rays,
)
from nerf.runtime.errors import UserError
from nerf.scene import Images, Scene, centred_intrinsics
from nerf.space import NDC, Bounded
from run_nerf_helpers import Rays, bundle_rays, get_rays, ndc_rays, render_rays

HEIGHT, WIDTH, FOCAL = 6, 8, 10.0  # of the camera of `striped`


def centre_of(mask: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return rows.mean(), columns.mean()


def expected_pixel(camera: Cameras, centre: tuple[float, float, float]) -> tuple[float, float]:
    """Row and column of a point in the camera of `scene_of`."""
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
def test_things_show_where_the_camera_sees_them_at_every_render_factor(factor):
    scene = scene_of(48, 64)
    camera = scene.cameras.scaled(factor)
    (rgb,), (disp,), (acc,) = render_path(Painted(balls), scene.space, camera)
    shrink = max(factor, 1)
    assert rgb.shape == (48 // shrink, 64 // shrink, 3)
    assert rgb.dtype == np.uint8
    for centre, channel in BALLS:
        others = [c for c in range(3) if c != channel]
        mask = (rgb[..., channel] == 255) & (rgb[..., others].max(-1) == 0)
        assert centre_of(mask) == pytest.approx(expected_pixel(camera, centre), abs=0.7)
        row, column = (round(value) for value in centre_of(mask))
        assert disp[row, column] == pytest.approx(1 / (4.0 + centre[1] - RADIUS), rel=0.02)
        assert acc[row, column] == 1.0
    assert (rgb[0, 0] == 255).all()
    assert disp[0, 0] == 0.0
    assert acc[0, 0] == 0.0


@pytest.mark.parametrize('white', [True, False])
def test_tiles_do_not_change_a_view_and_cover_every_ray_once(white):
    scene, samplers = scene_of(20, 30), [Painted(balls, tile, white_bkgd=white) for tile in (1000, 7)]
    whole, tiled = (render_view(sampler, scene.space, scene.cameras) for sampler in samplers)
    for a, b in zip(whole[:4], tiled[:4]):
        np.testing.assert_array_equal(a, b)
    assert [sampler.tiles for sampler in samplers] == [[600], [7] * 85 + [5]]
    assert (whole.rgb[0, 0] == float(white)).all()


def test_the_bar_counts_every_ray_once_as_it_is_done():
    scene, counts = scene_of(20, 24), []

    class Bar(tqdm):
        def update(self, count=1):
            super().update(count)
            counts.append(self.n)
    with Bar(total=480, file=io.StringIO()) as bar:
        render_view(Painted(balls, tile=40), scene.space, scene.cameras, bar)
    assert counts == list(range(40, 481, 40))


def test_a_view_has_earlier_passes_and_the_spread_of_samples_where_the_sampler_has_them():
    scene = scene_of(20, 24)

    def fog(rays: Rays):
        half = torch.full((len(rays.near),), 0.5)
        return torch.zeros_like(rays.origins), half, 4.0 * half / half
    view = render_view(Painted(balls, tile=40, coarse=fog), scene.space, scene.cameras)
    assert view.passes.keys() == {'coarse'}
    coarse = view.passes['coarse']
    for part, value in ((coarse.rgb, 0.5), (coarse.acc, 0.5), (coarse.disp, 0.25), (coarse.spread, 0.0)):
        np.testing.assert_allclose(part, value)
    spread = view_rays(Painted(balls), scene.space, scene.cameras).viewdirs[:, 0].abs()
    np.testing.assert_array_equal(view.spread, spread.reshape(20, 24))
    plain = render_view(Painted(balls), scene.space, scene.cameras)
    np.testing.assert_array_equal(view.rgb, plain.rgb)
    assert plain.passes == {}
    assert (plain.spread == 0).all()


def test_disparity_in_ndc_is_that_of_the_world():
    """A wall at t = 0.75 of every ray: at a world depth of 1 / (1 - 0.75) = 4."""
    scene = scene_of(6, 8, space=NDC(height=6, width=8, focal=1.4 * 8))
    cameras = replace(scene.cameras, poses=torch.eye(4)[None, :3])
    wall = Painted(lambda rays: (torch.zeros_like(rays.origins), torch.ones(len(rays.near)),
                                 torch.full((len(rays.near),), 0.75)))
    np.testing.assert_allclose(render_view(wall, scene.space, cameras).disp, 0.25, rtol=1e-6)
    expected, _ = ndc_rays(6, 8, 1.4 * 8, 1.0, *cameras.view_rays(0))
    torch.testing.assert_close(view_rays(wall, scene.space, cameras).origins, expected.reshape(-1, 3))


def test_the_rays_of_a_view_have_the_bounds_of_its_camera():
    scene = scene_of(6, 8)
    cameras = replace(scene.cameras, bounds=torch.tensor([[1.0, 9.0]]))
    rays = view_rays(Painted(balls), scene.space, cameras)
    assert (rays.near == 1.0).all()
    assert (rays.far == 9.0).all()


# Pictures while they are drawn


def drawing(tile: int = 40) -> tuple[Painted, Scene, Rays]:
    """Sampler, scene and rays of a view of 20x24 pixels."""
    sampler, scene = Painted(balls, tile), scene_of(20, 24)
    return sampler, scene, view_rays(sampler, scene.space, scene.cameras)


def test_pictures_grow_until_all_rays_are_final():
    sampler, scene, rays = drawing()
    counts, whole = [], render_view(sampler, scene.space, scene.cameras)
    for picture in draw(sampler, rays):
        assert not torch.is_inference_mode_enabled()
        counts.append(int(picture.final.sum()))
        final, view = picture.final.reshape(20, 24).numpy(), as_view(picture, scene.space, 20, 24)
        np.testing.assert_array_equal(view.rgb[final], whole.rgb[final])
        np.testing.assert_array_equal(view.disp[final], whole.disp[final])
        assert (view.rgb[~final] == 1.0).all()
        assert (view.disp[~final] == 0.0).all()
    assert counts == list(range(40, 481, 40))


def test_drawing_that_is_broken_off_asks_the_sampler_for_nothing_more():
    sampler, scene, rays = drawing()
    pictures = draw(sampler, rays)
    for _ in range(6):
        picture = next(pictures)
    pictures.close()
    assert next(pictures, None) is None
    assert sampler.tiles == [40] * 6
    view, whole = as_view(picture, scene.space, 20, 24), render_view(sampler, scene.space, scene.cameras)
    np.testing.assert_array_equal(view.rgb[:10], whole.rgb[:10])


def test_a_view_taken_midway_stays_as_it_is_while_drawing_goes_on():
    sampler, scene, rays = drawing()
    pictures = draw(sampler, rays)
    for _ in range(6):
        picture = next(pictures)
    view, before = as_view(picture, scene.space, 20, 24), picture.acc.clone().numpy().reshape(20, 24)
    *_, picture = pictures
    assert (picture.acc.numpy().reshape(20, 24) != before).any()
    np.testing.assert_array_equal(view.acc, before)


# Single pixels, and edges


def striped(place: float, supersample: int = 1) -> Painted:
    """What is left of a place, in pixels from the picture's left side, is solid, red and 3 away; the rest is empty."""
    def paint(rays: Rays):
        solid = (rays.directions[:, 0] * FOCAL + 0.5 * WIDTH < place).float()
        return torch.tensor([1.0, 0.0, 0.0]).expand(len(solid), 3), solid, 3.0 * solid
    return Painted(paint, 24, supersample, white_bkgd=False)


@pytest.fixture
def camera() -> Cameras:
    """A camera that looks along -z, whose rays go through the centres of pixels."""
    cameras = Cameras.of_one_kind(np.eye(4)[None, :3], centred_intrinsics(HEIGHT, WIDTH, FOCAL), HEIGHT, WIDTH)
    return replace(cameras, within=0.5)


SPACE = Bounded(2.0, 6.0)


def test_a_pixel_shows_the_share_of_it_that_is_covered(camera):
    """A quarter, of 4x4 rays: colour, opacity and depth alike."""
    sampler = striped(5.25)
    picture = Picture.background(HEIGHT * WIDTH, sampler)
    index = torch.tensor([3, 5, WIDTH + 5, 2 * WIDTH + 6])
    assert draw_pixels(sampler, SPACE, camera, picture, index, side=4) == 64
    np.testing.assert_allclose(picture.rgb[index, 0], [1.0, 0.25, 0.25, 0.0])
    np.testing.assert_allclose(picture.acc[index], [1.0, 0.25, 0.25, 0.0])
    np.testing.assert_allclose(picture.depth[index], [3.0, 0.75, 0.75, 0.0])
    assert picture.final.nonzero()[:, 0].tolist() == index.tolist()
    assert picture.rgb.sum() == 1.5


def test_one_ray_for_a_pixel_is_its_own(camera):
    sampler = striped(5.25)
    picture = Picture.background(HEIGHT * WIDTH, sampler)
    assert draw_pixels(sampler, SPACE, camera, picture, torch.arange(HEIGHT * WIDTH)) == HEIGHT * WIDTH
    expected = render_view(sampler, SPACE, camera)
    np.testing.assert_array_equal(picture.rgb.reshape(HEIGHT, WIDTH, 3), expected.rgb)
    assert expected.rgb[:, :5, 0].min() == 1.0  # the centre of the next pixel is right of the place
    assert expected.rgb[:, 5:].max() == 0.0


@pytest.mark.parametrize('index', [[], [0, 1]])
def test_pixels_that_look_backwards_in_ndc_are_not_drawn(camera, index):
    backwards = replace(camera, poses=torch.diag(torch.tensor([-1.0, 1.0, -1.0, 0.0]))[None, :3])
    sampler = striped(5.0)
    picture = Picture.background(HEIGHT * WIDTH, sampler)
    space = NDC(height=HEIGHT, width=WIDTH, focal=FOCAL)
    assert draw_pixels(sampler, space, backwards, picture, torch.tensor(index, dtype=torch.long), side=2) == 0
    assert not picture.final.any()
    assert sampler.tiles == []


@pytest.mark.parametrize('channel', [0, 1, 2])
def test_pixels_on_both_sides_of_a_change_are_at_an_edge(channel):
    picture = Picture.background(20, striped(0.0))
    picture.rgb[7, channel] = 1.5 * EDGE  # row 1, column 2 of 4x5
    picture.rgb[14, channel] = 0.5 * EDGE
    assert edges(picture, 4, 5).tolist() == [2, 6, 7, 8, 12]


def test_pictures_of_one_row_or_column_have_edges_too():
    picture = Picture.background(4, Painted(balls))
    picture.rgb[3] = 0.0
    assert edges(picture, 1, 4).tolist() == edges(picture, 4, 1).tolist() == [2, 3]
    assert edges(Picture.background(1, Painted(balls)), 1, 1).tolist() == []


def test_a_view_is_smooth_at_its_edges_and_the_same_elsewhere(camera):
    plain, smooth = (render_view(striped(5.25, side), SPACE, camera) for side in (1, 4))
    assert (plain.rgb[:, 4:6, 0] == [1.0, 0.0]).all()
    np.testing.assert_allclose(smooth.rgb[:, 4:6, 0], np.broadcast_to([1.0, 0.25], (HEIGHT, 2)))
    np.testing.assert_allclose(smooth.acc, smooth.rgb[..., 0])
    for part in ('rgb', 'acc', 'disp'):
        np.testing.assert_array_equal(np.delete(getattr(plain, part), 5, 1), np.delete(getattr(smooth, part), 5, 1))


@pytest.mark.parametrize(('side', 'tiles'), [
    (3, [18] * 6),  # 12 pixels at the edge, two of which are in a tile of 24 rays
    (8, [24, 24, 16] * 12)])  # a pixel has more rays than a tile
def test_tiles_of_edges_have_no_more_rays_than_those_of_a_view(camera, side, tiles):
    sampler = striped(5.25, side)
    render_view(sampler, SPACE, camera)
    assert sampler.tiles == [24, 24, *tiles]


def test_a_picture_without_edges_is_not_drawn_again(camera):
    sampler = striped(-5.0, supersample=2)
    picture = Picture.background(HEIGHT * WIDTH, sampler)
    assert list(smooth_edges(sampler, SPACE, camera, picture)) == []


# Paths and their files


def test_a_render_factor_that_leaves_nothing_is_an_error():
    with pytest.raises(UserError, match='render_factor 21 leaves nothing of 30x20 pixels'):
        scene_of(20, 30).cameras.scaled(21)


def test_views_are_written_as_they_are_done(tmp_path):
    scene = scene_of(20, 30)
    rgbs = render_path(Painted(balls), scene.space, scene.cameras.take([0, 0]), tmp_path / 'views').rgbs
    assert sorted(path.name for path in (tmp_path / 'views').iterdir()) == ['000.png', '001.png']
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'views' / '001.png')), rgbs[1])


def test_the_files_of_an_earlier_render_are_removed(tmp_path):
    for name in ('002.png', 'video.mp4', 'metrics.json', 'notes.txt'):
        (tmp_path / name).write_text('earlier')
    scene = scene_of(12, 16)
    render_path(Painted(balls), scene.space, scene.cameras, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['000.png', 'notes.txt']


def test_cameras_of_several_sizes_each_render_at_their_own(tmp_path):
    scene = scene_of(40, 60)
    cameras, sampler = two_sizes(scene), Painted(balls)
    rgbs, disps, accs = render_path(sampler, scene.space, cameras, tmp_path)
    assert [rgb.shape for rgb in rgbs] == [(40, 60, 3), (20, 30, 3), (40, 60, 3)]
    for i in range(3):
        alone = render_view(sampler, scene.space, cameras.take([i]))
        np.testing.assert_array_equal(disps[i], alone.disp)
        np.testing.assert_array_equal(accs[i], alone.acc)
        written = np.asarray(Image.open(tmp_path / f'{i:03d}.png'))
        np.testing.assert_array_equal(written, rgbs[i])
        np.testing.assert_array_equal(written, np.rint(255 * alone.rgb.clip(0, 1)))


def test_a_path_becomes_a_video_of_its_views_in_order(tmp_path):
    scene = scene_of(32, 48, np.zeros((3, 32, 48, 3), np.uint8))
    poses = scene.cameras.poses.clone()
    poses[1, 0, 3], poses[2, 0, 3] = 0.6, 20.0  # the last looks past everything
    cameras = replace(scene.cameras, poses=poses)
    path = render_path(Painted(balls), scene.space, cameras, video=tmp_path / 'v.mp4')
    assert [file.name for file in tmp_path.iterdir()] == ['v.mp4']
    frames = np.stack(imageio.mimread(tmp_path / 'v.mp4'))
    assert frames.shape == (3, 32, 48, 3)
    off = np.abs(frames[:, None].astype(float) - np.stack(path.rgbs)).mean((2, 3, 4))  # [frame, view]
    assert off.argmin(1).tolist() == [0, 1, 2]
    assert off.diagonal().max() < 3
    assert (path.rgbs[2] == 255).all()


@pytest.mark.parametrize('count', [1, 3])
def test_a_view_that_cannot_be_written_ends_the_render(tmp_path, count):
    scene = scene_of(12, 16)
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(UserError, match=r'000\.png cannot be written'):
        render_path(Painted(balls), scene.space, scene.cameras.take([0] * count), tmp_path / 'file')


# Test metrics


def test_test_metrics_are_those_of_the_written_pictures_against_the_images_on_white(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 16, 20, 4), dtype=np.uint8)
    scene = scene_of(16, 20, images)
    rgbs = rng.integers(0, 256, (3, 16, 20, 3), dtype=np.uint8)
    mean = save_metrics(tmp_path, 70, Painted(balls), scene, list(rgbs))
    written = json.loads((tmp_path / 'metrics.json').read_text())
    assert list(written) == ['step', 'sampler', 'mean', 'images']
    assert (written['step'], written['sampler']) == (70, 'painted')
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
    save_metrics(tmp_path, 1, Painted(balls), scene, [images[2], np.full_like(images[1], 128)])
    rows = json.loads((tmp_path / 'metrics.json').read_text())['images']
    assert rows[0]['psnr'] == 100.0
    error = np.mean((images[1] / 255.0 - 128 / 255.0) ** 2)
    assert rows[1]['psnr'] == pytest.approx(-10 * np.log10(error), abs=1e-4)


def test_views_of_aligned_cameras_have_metrics_of_their_own(tmp_path):
    images = np.random.default_rng(2).integers(0, 256, (3, 16, 20, 3), dtype=np.uint8)
    grey = [np.full((16, 20, 3), 128, np.uint8)] * 3
    plain = save_metrics(tmp_path, 1, Painted(balls), scene_of(16, 20, images), grey)
    mean = save_metrics(tmp_path, 1, Painted(balls), scene_of(16, 20, images), grey, list(images))
    assert mean['psnr_aligned'] == 100.0
    assert mean['ssim_aligned'] == pytest.approx(1.0)
    assert {name: mean[name] for name in plain} == plain
    rows = json.loads((tmp_path / 'metrics.json').read_text())['images']
    assert [row['psnr_aligned'] for row in rows] == [100.0] * 3


# The program


SIZES = [(16, 20), (12, 14), (16, 20), (12, 14), (16, 20), (12, 14)]


@pytest.fixture
def several_sizes(tiny_transforms, tmp_path) -> Path:
    """The folder of photographs of two sizes, of which the first two are test images."""
    folder, rng = tiny_transforms(tmp_path / 'scene', len(SIZES), (16, 20)), np.random.default_rng(0)
    meta = json.loads((folder / 'transforms.json').read_text())
    for i, (frame, (height, width)) in enumerate(zip(meta['frames'], SIZES)):
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / 'images' / f'c_{i}.png')
        frame |= {'w': width, 'h': height, 'cx': 0.5 * width, 'cy': 0.5 * height}
    names = [frame['file_path'] for frame in meta['frames']]
    meta |= {'test_filenames': names[:2], 'train_filenames': names[2:]}
    (folder / 'transforms.json').write_text(json.dumps(meta))
    return folder


@pytest.mark.slow
def test_render_test_of_images_of_several_sizes_measures_them_and_writes_no_video(several_sizes, tmp_path, capsys):
    flags = ['--dataset_type', 'transforms', '--datadir', str(several_sizes), '--exposure', 'off', '--netdepth', '2',
             '--netwidth', '16', '--netdepth_fine', '2', '--netwidth_fine', '16', '--multires', '2', '--N_samples', '8',
             '--N_importance', '8', '--N_rand', '32', '--device', 'cpu', '--expname', 'run', '--basedir', str(tmp_path),
             '--field', 'mlp', '--N_iters', '3', '--i_testset', '3', '--i_video', '3', '--i_img', '2']
    assert run_nerf.main(flags) == 0
    said = capsys.readouterr().out
    assert '6 images of 14x12 and 20x16, 4 train' in said
    assert (tmp_path / 'run' / 'run_spiral_000003_rgb.mp4').is_file()  # the render path has one size

    assert run_nerf.main([*flags, '--render_only', '--render_test']) == 0
    folder = tmp_path / 'run' / 'renderonly_test_000003'
    said = capsys.readouterr().out
    assert f'2 views (of several sizes, so no video) are in {folder}' in said
    assert '2 test views: psnr ' in said
    assert sorted(path.name for path in folder.iterdir()) == [
        '000.png', '001.png', 'disp_000.png', 'disp_001.png', 'metrics.json']
    for i, (height, width) in enumerate(SIZES[:2]):
        assert Image.open(folder / f'{i:03d}.png').size == Image.open(folder / f'disp_{i:03d}.png').size == (
            width, height)
        shown, image = (np.asarray(Image.open(path)) / 255.0
                        for path in (folder / f'{i:03d}.png', several_sizes / 'images' / f'c_{i}.png'))
        psnr = -10 * np.log10(np.mean((shown - image) ** 2))
        assert json.loads((folder / 'metrics.json').read_text())['images'][i]['psnr'] == pytest.approx(psnr, abs=1e-4)

    assert run_nerf.main([*flags, '--render_only']) == 0
    assert ' views and their videos are in ' in capsys.readouterr().out
    assert (tmp_path / 'run' / 'renderonly_path_000003' / 'video_disp.mp4').is_file()


def test_the_reference_codes_checkpoint_renders_as_it_does_there(shared):
    folder = shared / 'interop' / 'nerf_pytorch_small'
    if not folder.is_dir():
        pytest.skip(f'needs {folder}')
    flags = ['--config', str(folder / 'config.txt'), '--precision', 'fp32', '--device', 'cpu']
    field = trainer_of(flags, scene_of(50, 50)).field
    checkpoint = read_checkpoint(folder / '003000.tar')
    assert checkpoint['global_step'] == 2999
    field.load_weights(checkpoint)
    with np.load(folder / 'reference.npz') as reference:
        rays_o, rays_d = get_rays(50, 50, reference['K'], torch.from_numpy(reference['c2w']))
        rays = bundle_rays(rays_o, rays_d, 2.0, 6.0)
        with torch.no_grad():
            result = render_rays(rays, field.coarse.raw, field.fine.raw, field.sampling)
            shown = field.sampler().render(rays).final
            points, viewdirs = (torch.from_numpy(reference[key]) for key in ('pts', 'viewdirs'))
            raws = [part.raw(points[:, None], viewdirs)[:, 0] for part in (field.coarse, field.fine)]
        torch.testing.assert_close(shown.rgb, result.final.rgb, rtol=0, atol=1e-3)  # hidden samples are skipped
        ours = {'rgb': result.final.rgb, 'acc': result.final.acc, 'disp': result.final.disp, 'rgb0': result.coarse.rgb,
                'z_std': result.z_std, 'raw_coarse': raws[0], 'raw_fine': raws[1]}
        for key, value in ours.items():
            expected = reference[key]
            value = value.numpy().reshape(expected.shape)
            known = np.isfinite(expected)  # the reference's disparity is 0/0 on empty rays
            np.testing.assert_allclose(value[known], expected[known], atol=1e-4, err_msg=key)
            assert (value[~known] == 0).all()
