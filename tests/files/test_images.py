"""nerf/files/images.py: pictures and videos, read, resized and written."""

from __future__ import annotations

import re
import struct
import zlib

import imageio.v2 as imageio
import numpy as np
import pytest
from PIL import Image, ImageOps

from nerf.files.images import (
    ENDINGS, area_resize, disparity_pictures, image_size, read_image, read_images, read_mask, save_png, save_video,
    video_file, write_reduced,
)
from nerf.runtime.errors import UserError


def noise(*shape: int, levels: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, levels, shape).astype(np.uint8 if levels == 256 else np.uint16)


def write_png16(path, pixels: np.ndarray) -> None:
    """[H, W, 3 or 4] uint16 as a PNG, which Pillow cannot write."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    height, width, channels = pixels.shape
    header = struct.pack('>IIBBBBB', width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows))
                     + chunk(b'IEND', b''))


def saved(tmp_path, picture: Image.Image, **options):
    picture.save(tmp_path / 'picture.png', **options)
    return tmp_path / 'picture.png'


# Reading


@pytest.mark.parametrize('channels', [3, 4])
def test_8_bit_colour_is_read_as_it_is(tmp_path, channels):
    pixels = noise(5, 7, channels)
    image = read_image(saved(tmp_path, Image.fromarray(pixels)))
    assert image.dtype == np.uint8
    assert np.array_equal(image, pixels)


@pytest.mark.parametrize('orientation', [1, 3, 6, 8])
def test_a_size_is_known_without_reading_the_pixels(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(noise(50, 70, 3)), exif=exif)
    size = image_size(path, upright=True)
    assert size == ((70, 50) if orientation in (6, 8) else (50, 70))
    assert size == read_image(path, upright=True).shape[:2]
    assert read_image(path).shape[:2] == image_size(path) == (50, 70)
    path.write_bytes(path.read_bytes()[:200])
    assert image_size(path, upright=True) == size
    path.write_bytes(b'no picture')
    with pytest.raises(UserError, match='cannot be read as a picture'):
        image_size(path)


@pytest.mark.parametrize('orientation', range(10))
def test_pictures_stay_as_they_are_stored_or_are_turned_as_pillow_does(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = noise(5, 7, 3)
    path = saved(tmp_path, Image.fromarray(pixels), exif=exif)
    assert np.array_equal(read_image(path), pixels)
    assert np.array_equal(read_image(path, upright=True), np.asarray(ImageOps.exif_transpose(Image.open(path))))
    exif[0x0112] = 6
    mask = saved(tmp_path, Image.fromarray(pixels[..., 0]), exif=exif)
    assert np.array_equal(read_mask(mask, 5, 7), pixels[..., 0] > 127)
    assert np.array_equal(read_mask(mask, 7, 5, upright=True), np.rot90(pixels[..., 0], 3) > 127)


@pytest.mark.parametrize('ending', ['webp', 'tif', 'bmp'])
def test_other_formats_are_read_as_they_are(tmp_path, ending):
    pixels = noise(5, 7, 3)
    Image.fromarray(pixels).save(tmp_path / f'a.{ending}', **({'lossless': True} if ending == 'webp' else {}))
    assert f'.{ending}' in ENDINGS
    assert np.array_equal(read_image(tmp_path / f'a.{ending}'), pixels)


def write_float_tiff(path, pixels: np.ndarray) -> None:
    """[H, W, C] float32 as a TIFF, uncompressed, which Pillow cannot write."""
    height, width, channels = pixels.shape
    data, of_each, short, long = pixels.astype('<f4').tobytes(), 8 + 2 + 10 * 12 + 4, 3, 4
    bits, kinds = of_each, of_each + 2 * channels
    tags = [(256, long, 1, width), (257, long, 1, height), (258, short, channels, bits), (259, short, 1, 1),
            (262, short, 1, 2), (273, long, 1, kinds + 2 * channels), (277, short, 1, channels), (278, long, 1, height),
            (279, long, 1, len(data)), (339, short, channels, kinds)]
    path.write_bytes(b'II*\0' + struct.pack('<IH', 8, len(tags)) + b''.join(struct.pack('<HHII', *tag) for tag in tags)
                     + bytes(4) + struct.pack(f'<{2 * channels}H', *[32] * channels, *[3] * channels) + data)


@pytest.mark.parametrize(('top', 'levels'), [(1.0, 255.0), (0.4, 102.0), (255.0, 255.0), (65535.0, 255.0)])
@pytest.mark.parametrize('channels', [1, 3])
def test_floats_keep_their_values(tmp_path, channels, top, levels):
    pixels = np.linspace(0.0, top, 20 * 30 * channels, dtype=np.float32).reshape(20, 30, channels)
    expected = np.linspace(0.0, levels, pixels.size).reshape(pixels.shape)
    pixels[0, 0] = np.nan
    if channels == 1:
        Image.fromarray(pixels[..., 0]).save(tmp_path / 'a.tif')
    else:
        write_float_tiff(tmp_path / 'a.tif', pixels)
    image = read_image(tmp_path / 'a.tif')
    assert image.shape == (20, 30, 3)
    assert image_size(tmp_path / 'a.tif') == (20, 30)
    assert np.abs(image - expected).max() <= 0.51


def test_lights_above_1_are_cut_off(tmp_path):
    pixels = np.full((20, 30), 0.2, np.float32)
    pixels[3, 4] = 50.0
    Image.fromarray(pixels).save(tmp_path / 'a.tif')
    assert read_image(tmp_path / 'a.tif')[3, 3:6, 0].tolist() == [51, 255, 51]


@pytest.mark.parametrize('ending', ['jpg', pytest.param('png', marks=pytest.mark.slow)])
def test_a_picture_too_large_to_read_can_be_reduced(tmp_path, ending):
    picture = Image.new('L', (20000, 9000), 50)
    picture.paste(200, (0, 0, 10000, 9000))
    picture.save(tmp_path / f'a.{ending}', **({'compress_level': 1} if ending == 'png' else {}))
    assert image_size(tmp_path / f'a.{ending}') == (9000, 20000)
    with pytest.raises(UserError, match='20000x9000 pixels exceed the limit of 178,956,970 pixels; with --factor'):
        read_image(tmp_path / f'a.{ending}')
    write_reduced(tmp_path / f'a.{ending}', tmp_path / 'b.png', 100)
    small = read_image(tmp_path / 'b.png')
    assert small.shape == (90, 200, 3)
    assert np.abs(small[:, :99].astype(int) - 200).max() <= 1
    assert np.abs(small[:, 101:].astype(int) - 50).max() <= 1


@pytest.mark.parametrize('value', [1, 2, 100, 255])
def test_a_mask_of_zeros_and_another_value_is_true_where_it_is_not_zero(tmp_path, value):
    ones = noise(4, 6) % 2
    assert np.array_equal(read_mask(saved(tmp_path, Image.fromarray(value * ones)), 4, 6), ones == 1)
    assert read_mask(saved(tmp_path, Image.fromarray(np.ones((4, 6), np.uint8))), 4, 6).all()
    labels = Image.fromarray(ones, 'P')
    labels.putpalette([0, 0, 0, 128, 0, 0])  # as programs that segment pictures write it
    assert np.array_equal(read_mask(saved(tmp_path, labels), 4, 6), ones == 1)


def test_a_mask_is_true_where_more_than_half_is_white(tmp_path):
    grey = np.zeros((4, 6), np.uint8)
    grey[:2, :3], grey[2:, 4:], grey[2, 0] = 255, 128, 255
    path = saved(tmp_path, Image.fromarray(grey))
    assert np.array_equal(read_mask(path, 4, 6), grey > 127)
    assert read_mask(path, 2, 3).tolist() == [[True, True, False], [False, False, True]]  # the middle one is half
    path = saved(tmp_path, Image.fromarray(np.stack([grey] * 3 + [255 - grey], -1)))
    assert np.array_equal(read_mask(path, 4, 6), grey > 127)
    with pytest.raises(UserError, match='6x4 pixels, but its photograph is 6x12'):
        read_mask(path, 12, 6)


def test_grey_is_read_as_three_equal_channels(tmp_path):
    pixels = noise(5, 7)
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(pixels))), np.stack([pixels] * 3, -1))


def test_palette_is_read_as_its_colours_with_alpha_where_one_is_transparent(tmp_path):
    colours, index = noise(4, 3), noise(5, 7) % 4
    picture = Image.fromarray(index)
    picture.putpalette(colours.tobytes())
    assert np.array_equal(read_image(saved(tmp_path, picture)), colours[index])
    image = read_image(saved(tmp_path, picture, transparency=2))
    assert np.array_equal(image[..., :3], colours[index])
    assert np.array_equal(image[..., 3], np.where(index == 2, 0, 255))


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_16_bits_are_read_to_the_nearest_level(tmp_path, channels):
    pixels = noise(5, 7, channels, levels=65536)
    pixels[0, :3] = [[0], [65535], [256]]
    if channels == 1:
        path = saved(tmp_path, Image.fromarray(pixels[..., 0]))
        with Image.open(path) as picture:
            assert picture.mode == 'I;16'
    else:
        write_png16(path := tmp_path / 'picture.png', pixels)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.shape == (5, 7, max(channels, 3))
    assert np.abs(image - pixels / 257.0).max() <= 0.51
    assert image[0, :2].min(-1).tolist() == [0, 255]


def test_pictures_without_alpha_are_opaque_among_those_with_it(tmp_path):
    paths, pixels = [tmp_path / 'rgb.png', tmp_path / 'rgba.png'], [noise(5, 7, 3), noise(5, 7, 4)]
    for path, picture in zip(paths, pixels):
        write = Image.fromarray(picture)
        write.save(path)
    images = read_images(paths)
    assert images.shape == (2, 5, 7, 4)
    assert np.array_equal(images[0, ..., :3], pixels[0])
    assert (images[0, ..., 3] == 255).all()
    assert np.array_equal(images[1], pixels[1])
    assert read_images(paths[:1]).shape == (1, 5, 7, 3)


def test_pictures_come_in_the_order_of_their_paths(tmp_path):
    paths = [tmp_path / f'{i}.png' for i in range(40)]
    for i, path in enumerate(paths):
        Image.new('L', (64 - i % 2, 2), i).crop((0, 0, 3, 2)).save(path)
    assert read_images(paths[::-1])[:, 0, 0, 0].tolist() == list(range(40))[::-1]


@pytest.mark.parametrize('size', [(5, 7), (7, 6), (8, 5)])
def test_pictures_of_different_sizes_are_an_error_that_names_both(tmp_path, size):
    paths = [tmp_path / name for name in ('a.png', 'b.png', 'c.png')]
    for path, its_size in zip(paths, ((7, 5), (7, 5), size)):
        Image.new('RGB', its_size).save(path)
    with pytest.raises(UserError) as error:
        read_images(paths)
    assert f'{paths[2]} is {size[0]}x{size[1]}' in str(error.value)
    assert f'{paths[0]} is 7x5' in str(error.value)


@pytest.mark.parametrize('fault', [
    'missing', 'empty', 'truncated', 'only a header', 'text', 'wrong checksum', 'broken chunk', 'huge'])
def test_a_broken_picture_is_an_error_that_names_it(tmp_path, fault):
    path = saved(tmp_path, Image.fromarray(noise(20, 20, 3)))
    whole = path.read_bytes()
    header = whole[12:16] + struct.pack('>II', 30000, 30000) + whole[24:29]
    path.write_bytes({
        'missing': b'', 'empty': b'', 'truncated': whole[:len(whole) // 2], 'only a header': whole[:20],
        'text': b'<html>not found</html>', 'wrong checksum': whole[:29] + b'\0\0\0\0' + whole[33:],
        'broken chunk': whole[:33] + struct.pack('>I', 50) + whole[37:],
        'huge': whole[:12] + header + struct.pack('>I', zlib.crc32(header)) + whole[33:]}[fault])
    if fault == 'missing':
        path.unlink()
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_images([path])


# Resizing


def test_halving_takes_the_mean_of_2x2_pixels():
    image = np.uint8([[0, 1, 10, 20], [1, 1, 30, 41], [200, 255, 4, 4], [255, 255, 4, 8]])[..., None]
    assert area_resize(image, 2, 2)[..., 0].tolist() == [[1, 25], [241, 5]]


def test_five_columns_to_two_share_the_middle_one():
    image = np.uint8([[10, 20, 40, 80, 160]])[..., None]
    assert area_resize(image, 1, 2)[..., 0].tolist() == [[20, 104]]  # (10 + 20 + 40 / 2) / 2.5, ...
    assert area_resize(image.transpose(1, 0, 2), 2, 1)[..., 0].tolist() == [[20], [104]]


@pytest.mark.parametrize(('n_old', 'n_new'), [
    (2, 1), (3, 1), (5, 3), (7, 7), (9, 4), (25, 6), (401, 200), (800, 400)])
def test_every_new_pixel_is_the_mean_of_what_it_covers(n_old, n_new):
    image = noise(n_old, 2, 3)
    fine = image.repeat(n_new, 0).reshape(n_new, n_old, 2, 3)  # n_new by n_old parts of pixels, all of one size
    np.testing.assert_allclose(area_resize(image, n_new, 2), fine.mean(1), atol=0.5 + 1e-4)
    turned = area_resize(image.transpose(1, 0, 2), 2, n_new).transpose(1, 0, 2)
    assert np.array_equal(turned, area_resize(image, n_new, 2))


def test_channels_are_averaged_one_by_one():
    image = np.uint8([[[255, 0, 100, 0], [1, 10, 100, 254]]])
    assert area_resize(image, 1, 1).tolist() == [[[128, 5, 100, 127]]]


def test_resizing_to_the_same_size_changes_nothing():
    image = noise(6, 5, 4)
    resized = area_resize(image, 6, 5)
    assert resized.dtype == np.uint8
    assert np.array_equal(resized, image)


@pytest.mark.parametrize('size', [(8, 6), (7, 9), (1, 3)])
def test_pictures_are_halved_as_they_are_read(tmp_path, size):
    paths = [tmp_path / f'{i}.png' for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(noise(3, *size, 3)[i]).save(path)
    halved = read_images(paths, half_res=True)
    assert halved.shape == (3, max(size[0] // 2, 1), size[1] // 2, 3)
    for whole, half in zip(read_images(paths), halved):
        assert np.array_equal(half, area_resize(whole, *half.shape[:2]))


# Disparity pictures


def test_empty_views_have_black_disparity_pictures():
    empty = [np.zeros((5, 7), np.float32), np.zeros((8, 6), np.float32)]
    pictures = disparity_pictures(empty, empty)
    assert [picture.shape for picture in pictures] == [(5, 7), (8, 6)]
    for picture in pictures:
        assert picture.dtype == np.uint8
        assert not picture.any()


def test_nearer_is_brighter_and_nothing_hit_is_black():
    disps = np.float32([[[0.0, 0.2, 0.25, 0.3, 0.5]]])
    pictures = disparity_pictures(disps, np.float32([[[0, 1, 1, 1, 1]]]))[0][0].astype(int)
    assert pictures[0] == 0
    assert pictures[1] > 0  # what is farthest can still be told from nothing
    assert (np.diff(pictures[1:]) > 0).all()
    assert pictures[-1] == 255


def test_empty_pixels_do_not_take_the_contrast_from_the_rest():
    disps = np.zeros((1, 20, 50), np.float32)
    disps[0, 0] = np.linspace(0.2, 0.5, 50)
    grey = disparity_pictures(disps, (disps > 0).astype(np.float32))[0][0]
    assert grey[0] < 40
    assert grey[-1] == 255


def test_all_views_of_a_path_share_one_scale():
    disps = np.float32([0.2, 0.3, 0.4])[:, None, None] * np.ones((1, 4, 4), np.float32)
    grey = [int(picture[0, 0]) for picture in disparity_pictures(disps, np.ones_like(disps))]
    assert grey[0] < grey[1] < grey[2]
    assert [grey[0], grey[2]] == [26, 255]


def test_views_of_several_sizes_share_one_scale_too():
    disps = [np.full((4, 6), 0.2, np.float32), np.full((3, 5), 0.4, np.float32)]
    first, second = disparity_pictures(disps, [np.ones_like(disp) for disp in disps])
    assert first.shape == (4, 6)
    assert second.shape == (3, 5)
    assert (first == 26).all()  # a tenth of white
    assert (second == 255).all()


def test_a_floater_does_not_take_the_contrast_from_the_rest():
    disps = np.linspace(0.2, 0.5, 1000, dtype=np.float32).reshape(1, 20, 50)
    disps[0, 3, 4] = 1e10
    (grey,) = disparity_pictures(disps, np.ones_like(disps))
    assert grey[-1, -1] - grey[0, 0].astype(int) > 200


def test_the_same_disparity_everywhere_is_a_picture_too():
    flat = np.full((1, 4, 4), 0.25, np.float32)
    (grey,) = disparity_pictures(flat, np.ones_like(flat))
    assert grey.min() == grey.max() > 0


# Writing


@pytest.mark.parametrize('shape', [(5, 7), (5, 7, 3)])
def test_a_written_png_reads_back_the_same(tmp_path, shape):
    pixels = noise(*shape)
    save_png(tmp_path / 'picture.tmp', pixels)  # the ending does not decide the format
    with Image.open(tmp_path / 'picture.tmp') as picture:
        assert picture.format == 'PNG'
        assert np.array_equal(np.asarray(picture), pixels)


@pytest.mark.parametrize('shape', [(16, 16, 3), (37, 51, 3), (37, 51)])
def test_a_written_video_reads_back_at_30_fps_padded_to_an_even_size(tmp_path, shape):
    height, width = shape[0] + shape[0] % 2, shape[1] + shape[1] % 2
    levels = np.linspace(40, 220, 7).astype(np.uint8)
    frames = levels.reshape(7, *[1] * len(shape)) * np.ones(shape, np.uint8)
    if len(shape) == 3:
        frames[..., 0] = 0  # red
    save_video(tmp_path / 'video.mp4', frames)
    with imageio.get_reader(tmp_path / 'video.mp4') as video:
        assert video.get_meta_data()['fps'] == 30
        assert video.get_meta_data()['codec'] == 'h264'
    read = np.stack(imageio.mimread(tmp_path / 'video.mp4'))
    assert read.shape == (7, height, width, 3)
    expected = np.stack([levels * (len(shape) == 2), levels, levels], -1)
    np.testing.assert_allclose(read[:, -1, -1], expected, atol=12)  # the padding repeats the picture
    np.testing.assert_allclose(read.mean((1, 2)), expected, atol=12)


def test_an_odd_row_and_column_are_repeated_not_scaled(tmp_path):
    frames = np.full((3, 37, 51), 40, np.uint8)
    frames[:, -1], frames[:, :, -1] = 220, 220
    save_video(tmp_path / 'video.mp4', frames)
    first = imageio.mimread(tmp_path / 'video.mp4')[0].mean(-1)
    expected = np.pad(frames[0], ((0, 1), (0, 1)), 'edge').astype(float)
    assert np.abs(first - expected).mean() < 6
    np.testing.assert_allclose(first[-4:, 5].tolist() + first[5, -4:].tolist(), [40, 40, 220, 220] * 2, atol=40)


def test_a_video_shows_the_frames_in_order(tmp_path):
    frames = np.stack([np.full((32, 48, 3), level, np.uint8) for level in (20, 120, 220)])
    save_video(tmp_path / 'v.mp4', frames)
    assert [path.name for path in tmp_path.iterdir()] == ['v.mp4']
    read = np.stack(imageio.mimread(tmp_path / 'v.mp4'))
    assert read.shape == (3, 32, 48, 3)
    np.testing.assert_allclose(read.mean((1, 2, 3)), [20, 120, 220], atol=4)


def test_a_video_is_there_only_once_it_is_whole(tmp_path):
    frame = np.zeros((16, 16, 3), np.uint8)
    with video_file(tmp_path / 'v.mp4') as append:
        append(frame)
        assert not (tmp_path / 'v.mp4').exists()
        append(frame)
    assert (tmp_path / 'v.mp4').stat().st_size > 0
    whole = (tmp_path / 'v.mp4').read_bytes()
    with pytest.raises(ZeroDivisionError), video_file(tmp_path / 'v.mp4') as append:  # noqa: PT012
        append(frame)
        raise ZeroDivisionError
    assert (tmp_path / 'v.mp4').read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ['v.mp4']


@pytest.mark.parametrize('save', [save_png, lambda path, picture: save_video(path, [picture])])
def test_a_picture_or_video_in_a_folder_that_is_a_file_is_an_error(tmp_path, save):
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(UserError, match=r'picture cannot be written \('):
        save(tmp_path / 'file' / 'picture', np.zeros((16, 16, 3), np.uint8))
