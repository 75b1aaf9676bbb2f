"""Picture and video files: reading, resizing and writing."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from nerf.files.whole_file import whole_file
from nerf.runtime.errors import UserError

VIDEO_FPS = 30
HEIF_ENDINGS = ('.heic', '.heif')
ENDINGS = ('.png', '.jpg', '.jpeg', '.webp', '.tif', '.tiff', '.bmp',  # of photographs, in lower case
           *(HEIF_ENDINGS if find_spec('pillow_heif') else ()))
ORIENTATION = 0x0112  # EXIF's tag
TURNS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}
MOST_PIXELS, MOST_TO_REDUCE = 178_956_970, 2 ** 30  # of a picture, as in Pillow, and of one that is reduced
_alone = Lock()  # held by a thread that reads a picture of more than MOST_PIXELS, for the sake of memory
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


def read_images_of_any_size(paths: Sequence[Path], upright: bool = False) -> list[np.ndarray]:
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
def _opened(path: Path, most_pixels: int = MOST_PIXELS):
    """Yields Pillow's picture, without its pixels; every error becomes a UserError."""
    from PIL import Image
    Image.MAX_IMAGE_PIXELS = None  # its limit is the same for pictures that are reduced while they are read
    can_read_heif()
    try:
        with _open(path) as image, _alone if image.width * image.height > MOST_PIXELS else nullcontext():
            if image.width * image.height > most_pixels:
                raise ValueError(f'its {image.width}x{image.height} pixels exceed the limit of {most_pixels:,} pixels; '
                                 f'with --factor 2 or more it is {MOST_TO_REDUCE:,}')
            yield image
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f'{path} does not exist; the scene is incomplete, download or export it again') from None
    except Exception as error:  # Pillow passes on whatever its parsers raise, struct.error for example
        raise UserError(f'{path} cannot be read as a picture ({error}); replace that file') from None


def _open(path: Path):
    """Pillow's picture; also of a TIFF of several channels of floats, which Pillow cannot read."""
    from PIL import Image, UnidentifiedImageError
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        if path.suffix.lower() not in ('.tif', '.tiff'):
            raise
        from skimage.io import imread
        return Image.fromarray(_as_bytes(imread(path)))


@functools.cache
def can_read_heif() -> bool:
    """Whether Pillow can read HEIC photographs, which needs the package pillow-heif."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def image_size(path: Path, upright: bool = False) -> tuple[int, int]:
    """Height and width in pixels of the result of `read_image`, from the file's header."""
    with _opened(path, MOST_TO_REDUCE) as image:
        turns, _ = TURNS.get(orientation_of(image) if upright else 1, (0, False))
        return image.size if turns % 2 else image.size[::-1]


def orientation_of(image) -> int:
    """EXIF orientation of Pillow's picture, from 1 to 8; 1 stands for pixels that are stored upright."""
    value = image.getexif().get(ORIENTATION)
    return value if value in TURNS else 1


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H, W, ...] as they are stored, turned upright by their EXIF orientation."""
    turns, mirrored = TURNS.get(orientation, (0, False))
    pixels = np.rot90(pixels, turns)
    return np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)


def read_image(path: Path, upright: bool = False, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Reads a picture: [H, W, 3] uint8, or [H, W, 4] if it has transparency.

    The pixels stay as they are stored, because other programs estimate cameras for stored pixels; with `upright`, they
    are turned as the EXIF orientation says. 16-bit values are scaled by 1/257. Floats are values from 0 to 1, to 255 or
    to 65535: the smallest range that holds 99% of them. A picture that is missing, broken or too large is a UserError.
    """
    with _opened(path, most_pixels) as image:
        return turned(_pixels(image, path), orientation_of(image) if upright else 1)


def _pixels(image, path: Path) -> np.ndarray:
    """Pixels [H, W, 3 or 4] uint8 of Pillow's picture of a file, as they are stored."""
    tiles = getattr(image, 'tile', ())  # none where pixels are there already
    deep = tiles and tiles[0][3] in ('RGB;16B', 'RGBA;16B')
    image.load()
    if image.mode.startswith(('I', 'F')):  # grey of more than 8 bits, which convert() would clip instead of scale
        grey = np.asarray(image, np.float32)
        return np.repeat(_as_bytes(grey if image.mode == 'F' else grey / 65535.0)[..., None], 3, -1)
    if deep:
        return _read_16_bit(path)[..., :len(image.mode)]
    return np.asarray(image.convert('RGBA' if image.has_transparency_data else 'RGB'))


def _as_bytes(values: np.ndarray) -> np.ndarray:
    """Values of a picture as uint8; the range of floats is that of `read_image`. What is not finite becomes 0."""
    if values.dtype.kind != 'f':
        return np.rint(values * (255.0 / np.iinfo(values.dtype).max)).astype(np.uint8)
    values = np.where(np.isfinite(values), values, 0.0)
    most = np.percentile(values, 99)
    scale = next((255.0 / top for top in (1.0, 255.0) if most <= top), 255.0 / 65535.0)
    return np.rint((scale * values).clip(0.0, 255.0)).astype(np.uint8)


def write_reduced(path: Path, target: Path, factor: int, alpha: bool = True) -> None:
    """Writes a photograph at 1/factor of its size, rounded, as PNG. A new pixel is the mean of the old ones, weighted
    by alpha; without `alpha`, that channel is dropped before. Pixels stay as they are stored, with their EXIF
    orientation, so that every reader can use the file."""
    from PIL import Image
    exif = Image.Exif()
    with _opened(path, MOST_TO_REDUCE) as image:
        width, height = size = [round(side / factor) for side in image.size]
        if not min(size):
            raise UserError(f'{path} is {image.width}x{image.height} pixels, and factor {factor} leaves {width}x'
                            f'{height}; lower factor')
        if (orientation := orientation_of(image)) > 1:
            exif[ORIENTATION] = orientation
        if image.width * image.height > MOST_PIXELS:
            image.draft(None, size)  # a JPEG is decoded at 1/2, 1/4 or 1/8 of its size
        pixels = _pixels(image, path)
        reduced = Image.fromarray(pixels if alpha else pixels[..., :3]).resize(size, Image.Resampling.BOX)
    reduced.save(target, 'PNG', exif=exif)


def read_mask(path: Path, height: int, width: int, upright: bool = False) -> np.ndarray:
    """Reads a mask, resized to [height, width] bool: True where it is white rather than black. In a mask of zeros and
    one other value, 1 for example, it is True where it is not 0."""
    from PIL import Image
    with _opened(path, MOST_TO_REDUCE) as picture:
        grey = turned(np.asarray(picture.convert('L')), orientation_of(picture) if upright else 1)
    levels = np.flatnonzero(np.bincount(grey.ravel()))
    if levels[-1] <= 1 or (levels[0] == 0 and len(levels) == 2):
        grey = np.where(grey > 0, np.uint8(255), np.uint8(0))
    grey = Image.fromarray(grey)
    if not same_proportions(grey.size, (width, height)):
        raise UserError(f'{path} is {grey.width}x{grey.height} pixels, but its photograph is {width}x{height}; a mask '
                        'must have the size of its photograph')
    return np.asarray(grey.resize((width, height), Image.Resampling.BOX)) > 127


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
