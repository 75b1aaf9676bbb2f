"""Picture and video files: reading, resizing and writing."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from nerf.files.whole_file import whole_file
from nerf.runtime.errors import UserError

VIDEO_FPS = 30
HEIF_ENDINGS = ('.heic', '.heif')
ENDINGS = ('.png', '.jpg', '.jpeg', '.webp', '.tif', '.tiff', '.bmp',  # of photographs, in lower case
           *(HEIF_ENDINGS if find_spec('pillow_heif') else ()))
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values for pictures that are stored on a side
HIT = 0.5  # opacity from which a pixel has a disparity
EXTREMES = (1, 99)  # percentiles of disparity that are darkest and brightest: a few floaters would stretch the scale
FARTHEST_GREY = 0.1  # grey level of the lowest disparity; black is for pixels without any


def read_images(paths: Sequence[Path], half_res: bool = False) -> np.ndarray:
    """Reads pictures of one size: [N, H, W, 3] uint8, or [N, H, W, 4] if any has an alpha channel; others are opaque.

    With `half_res`, `area_resize` shrinks pictures to half their height and width, rounded down. A picture that is
    missing, unreadable or of another size than the first is a UserError with its name.
    """
    def read(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
        image = read_image(path)
        height, width = image.shape[:2]
        return area_resize(image, max(height // 2, 1), max(width // 2, 1)) if half_res else image, (height, width)

    images, sizes = zip(*in_parallel('reading images', read, paths))
    check_one_size(paths, sizes)
    return np.stack(_with_equal_channels(images))


def read_images_of_any_size(paths: Sequence[Path], upright: bool = True) -> list[np.ndarray]:
    """Reads pictures [H, W, C] uint8 as `read_images` does, but of several sizes; `upright` is that of `read_image`."""
    return _with_equal_channels(in_parallel('reading images', lambda path: read_image(path, upright), paths))


def in_parallel(title: str, work: Callable[..., Any], *parts: Sequence) -> list:
    """Results of `work` for each item of `parts`, by threads, with a progress bar."""
    from tqdm import tqdm
    with ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(work, *parts), title, len(parts[0]), disable=None, leave=False))


def _with_equal_channels(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Images [H, W, 3], or [H, W, 4] if any of them has an alpha channel; added channels are opaque."""
    if all(image.shape[-1] == 3 for image in images):
        return list(images)
    return [image if image.shape[-1] == 4 else np.pad(image, ((0, 0), (0, 0), (0, 1)), constant_values=255)
            for image in images]


def check_one_size(paths: Sequence[Path], sizes: Sequence[tuple[int, ...]]) -> None:
    """Raises UserError if a picture's size (height, width) differs from that of the first."""
    for path, size in zip(paths, sizes):
        if size != sizes[0]:
            raise UserError(f'{path} is {size[1]}x{size[0]} pixels but {paths[0]} is {sizes[0][1]}x{sizes[0][0]}; '
                            'all images of a scene must have one size')


@contextmanager
def _opened(path: Path):
    """Yields Pillow's picture, without its pixels; every error becomes a UserError."""
    from PIL import Image
    can_read_heif()
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise UserError(f'{path} does not exist; the scene is incomplete, download or export it again') from None
    except Exception as error:  # Pillow passes on whatever its parsers raise, struct.error for example
        raise UserError(f'{path} cannot be read as a picture ({error}); replace that file') from None


@functools.cache
def can_read_heif() -> bool:
    """Whether Pillow can read HEIC photographs, which needs the package pillow-heif."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def image_size(path: Path, upright: bool = True) -> tuple[int, int]:
    """Height and width in pixels of the result of `read_image`, from the file's header."""
    with _opened(path) as image:
        width, height = image.size
        return (width, height) if upright and image.getexif().get(ORIENTATION) in SIDEWAYS else (height, width)


def read_image(path: Path, upright: bool = True) -> np.ndarray:
    """Reads a picture of 8 or 16 bits per channel: [H, W, 3] uint8, or [H, W, 4] if it has transparency. With
    `upright`, the picture is turned as its EXIF orientation says; otherwise it stays as it is stored. A picture that is
    missing, broken or a decompression bomb is a UserError."""
    from PIL import ImageOps
    with _opened(path) as image:
        deep = image.tile and image.tile[0][3] in ('RGB;16B', 'RGBA;16B')
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
        image.load()
        if image.mode.startswith('I'):  # 16-bit grey, which convert() would clip instead of scale
            grey = np.rint(np.asarray(image, np.float32) / 257.0).astype(np.uint8)
            return np.repeat(grey[..., None], 3, -1)
        if deep:
            return _read_16_bit(path)[..., :len(image.mode)]
        return np.asarray(image.convert('RGBA' if image.has_transparency_data else 'RGB'))


def read_mask(path: Path, height: int, width: int, upright: bool = True) -> np.ndarray:
    """Reads a mask, resized to [height, width] bool: True where it is white rather than black."""
    from PIL import Image, ImageOps
    with _opened(path) as picture:
        if upright:
            ImageOps.exif_transpose(picture, in_place=True)
        size = picture.size
        grey = picture.convert('L').resize((width, height), Image.Resampling.BOX)
    if not same_proportions(size, (width, height)):
        raise UserError(f'{path} is {size[0]}x{size[1]} pixels, but its photograph is {width}x{height}; a mask must '
                        'have the size of its photograph')
    return np.asarray(grey) > 127


def same_proportions(size: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two sizes (width, height) can be those of one picture, reduced and rounded."""
    (width, height), (other_width, other_height) = size, other
    rounding = max(1 / width + 1 / height, 1 / other_width + 1 / other_height)
    return abs(math.log(width * other_height / (height * other_width))) < rounding


def _read_16_bit(path: Path) -> np.ndarray:
    """Reads 16-bit colour: [H, W, 4] uint8. Pillow would drop the lower byte; here it is rounded."""
    from imageio_ffmpeg import read_frames
    frames = read_frames(str(path), pix_fmt='rgba64le', bits_per_pixel=64)
    width, height = next(frames)['source_size']
    frame = next(frames, None)
    frames.close()
    if frame is None:
        raise ValueError('its pixels cannot be decoded')
    return np.rint(np.frombuffer(frame, '<u2').reshape(height, width, 4) / 257.0).astype(np.uint8)


def area_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Image [height, width, C] uint8 of a larger one; a new pixel is the mean of the old ones that it covers, by area.
    Channels are averaged one by one, so colour is not weighted by alpha."""
    return np.rint(_averaged(_averaged(image, height, 0), width, 1)).astype(np.uint8)


def _averaged(image: np.ndarray, n_new: int, axis: int) -> np.ndarray:
    """`area_resize` along one axis, as float32."""
    n_old = image.shape[axis]
    edges = np.linspace(0.0, n_old, n_new + 1)  # of the new pixels, in old pixels
    first, total = edges[:-1].astype(int), np.float32(0.0)
    for i in range(math.ceil(n_old / n_new) + 1):
        old = first + i  # the i-th old pixel under each new one
        share = (np.minimum(edges[1:], old + 1) - np.maximum(edges[:-1], old)).clip(0.0) * n_new / n_old
        if share.any():
            share = share.astype(np.float32).reshape((-1,) + (1,) * (2 - axis))
            total = total + share * image.take(np.minimum(old, n_old - 1), axis)
    return total


def disparity_pictures(disps: Sequence[np.ndarray], accs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Grey pictures [H, W] uint8 of disparities and opacities [H, W]: nearest white, farthest dark grey, empty black.
    All pictures of a path share one scale, so that a video does not flicker."""
    hit = np.concatenate([disp[acc > HIT] for disp, acc in zip(disps, accs)])
    low, high = np.percentile(hit, EXTREMES) if hit.size else (0.0, 1.0)

    def picture(disp: np.ndarray, acc: np.ndarray) -> np.ndarray:
        share = np.clip((disp - low) / max(high - low, 1e-6), 0.0, 1.0)
        return np.rint(255.0 * acc.clip(0.0, 1.0) * (FARTHEST_GREY + (1.0 - FARTHEST_GREY) * share)).astype(np.uint8)
    return [picture(disp, acc) for disp, acc in zip(disps, accs)]


def save_png(path: Path, picture: np.ndarray) -> None:
    """Writes a picture [H, W] or [H, W, 3] uint8."""
    from PIL import Image
    with whole_file(path) as partial:
        Image.fromarray(picture).save(partial, 'PNG')


@contextmanager
def video_file(path: Path):
    """Yields a function that appends a frame, [H, W] or [H, W, 3] uint8, to an H.264 video, which appears at the end.
    An odd height or width is made even by repeating the last row or column."""
    import imageio.v2 as imageio
    def append(frame: np.ndarray) -> None:
        frame = np.repeat(frame[..., None], 3, -1) if frame.ndim == 2 else frame
        writer.append_data(np.pad(frame, [(0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)], 'edge'))
    with whole_file(path) as partial, imageio.get_writer(
            partial, format='FFMPEG', fps=VIDEO_FPS, quality=8, macro_block_size=2) as writer:
        yield append


def save_video(path: Path, frames: Iterable[np.ndarray]) -> None:
    """Writes a video of frames [H, W] or [H, W, 3] uint8."""
    with video_file(path) as append:
        for frame in frames:
            append(frame)
