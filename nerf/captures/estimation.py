"""From a folder of photographs to their cameras, in transforms.json as nerfstudio and instant-ngp have it."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nerf.files.images import can_read_heif, read_image
from nerf.files.whole_file import whole_file
from nerf.runtime import ranks
from nerf.runtime.errors import UserError
from nerf.captures.structure_from_motion import Model, image_name, structure_from_motion

ENDINGS = ('.jpg', '.jpeg', '.png')
HEIF_ENDINGS = ('.heic', '.heif')
VIDEO_ENDINGS = ('.mp4', '.mov', '.m4v', '.avi', '.mkv', '.webm')
LEAST = 8  # photographs that a scene can be trained on
LONGEST_SIDE = 1200  # of what features are found in, in pixels: more takes time and finds no better cameras
CAMERA_TAGS = (0x010F, 0x0110)  # of EXIF: make, model
LENS_TAGS = (0x920A, 0xA405)  # of its Exif part: focal length in mm, and as on 35 mm film
CAMERAS, POINTS = 'transforms.json', 'sparse_points.ply'
ADVICE = ('neighbours must overlap by two thirds and show things with texture; leave out those that are blurred, and '
          'photograph from different places rather than turning on one')


@dataclass(frozen=True)
class Photograph:
    path: Path
    width: int  # in pixels, as it stands upright
    height: int
    scale: tuple[float, float]  # of width and height, against the copy that COLMAP sees
    camera: tuple  # what EXIF says of camera and zoom, whose values are equal for photographs with the same lens


def estimate_cameras(datadir: str | Path) -> None:
    """Writes `datadir`/transforms.json and sparse_points.ply, unless that file is there already.

    Args:
        datadir: holds the photographs, or a folder images with them. They are not changed.

    Raises:
        UserError: there are too few photographs, or too few of which the cameras can be found.
    """
    datadir = Path(datadir)
    if (datadir / CAMERAS).exists():
        _say_known(datadir)
        return
    if ranks.count() > 1:
        raise UserError(f'{datadir} has no {CAMERAS}, and one process must make it; start with --estimate_only '
                        'first, without torchrun')
    paths = find_photographs(datadir)
    with tempfile.TemporaryDirectory(prefix='nerf-photographs-') as temporary:
        photographs = _prepare(paths, Path(temporary) / 'images')
        _check_count(datadir, photographs)
        cameras = [(photo.width, photo.height, *photo.camera) for photo in photographs]
        kinds = list(dict.fromkeys(cameras))
        print(f'estimating the cameras of {len(photographs)} photographs'
              + f', taken with {len(kinds)} lenses or sizes' * (len(kinds) > 1))
        model = structure_from_motion(Path(temporary), [kinds.index(camera) for camera in cameras])
    _judge(datadir, photographs, model)
    _write_points(datadir / POINTS, model)
    _write_cameras(datadir / CAMERAS, paths, [photographs[i] for i in model.index], model)
    print(f'{datadir / CAMERAS}: {len(model.index)} of {len(paths)} photographs, {len(model.points)} points, mean '
          f'error {model.error:.2f} pixels; delete it to estimate again')


# Photographs


def find_photographs(datadir: Path) -> list[Path]:
    """The photographs in `datadir`/images or, without that folder, in `datadir`, by name. Says what is ignored.

    Raises:
        UserError: there are none, or too few, or of a kind that cannot be read here.
    """
    if not datadir.is_dir():
        raise UserError(f'datadir {datadir} is not a folder; make it, and put photographs into {datadir / "images"}')
    folder = datadir / 'images' if (datadir / 'images').is_dir() else datadir
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith('.'))
    found = [path for path in files if path.suffix.lower() in ENDINGS + HEIF_ENDINGS]
    videos = [path for place in dict.fromkeys((folder, datadir)) for path in sorted(place.iterdir())
              if path.suffix.lower() in VIDEO_ENDINGS]
    if not found and videos:
        raise UserError(f'{folder} has no photographs but a video; take frames from it: '
                        f'{frames_command(videos[0], datadir / "images")}')
    heif = [path for path in found if path.suffix.lower() in HEIF_ENDINGS]
    if heif and not can_read_heif():
        raise UserError(f'{folder} has {len(heif)} HEIC photographs, {heif[0].name} for one; run: pip install '
                        'pillow-heif, or convert them to JPEG')
    ignored = [path.name for path in files if path not in found and path.name != POINTS]
    if ignored:
        print(f'{folder}: ignored, as they are no photographs: {_listed(ignored)}')
    _check_count(datadir, found)
    return found


def frames_command(video: Path, images: Path) -> str:
    """The shell command that takes two frames a second from a video."""
    import imageio_ffmpeg

    ffmpeg, video, folder, frames = (shlex.quote(str(word)) for word in (
        imageio_ffmpeg.get_ffmpeg_exe(), video, images, images / '%04d.jpg'))
    return f'mkdir -p {folder} && {ffmpeg} -i {video} -vf fps=2 -q:v 2 {frames}'


def _check_count(datadir: Path, photographs: Sequence) -> None:
    if len(photographs) < LEAST:
        raise UserError(f'{datadir} has {len(photographs)} photographs (.jpg, .jpeg, .png, .heic) that can be read; '
                        f'take at least {LEAST}, better 20 to 100: {ADVICE}')


def _prepare(paths: Sequence[Path], folder: Path) -> list[Photograph]:
    """Writes upright copies of the photographs into `folder`, and says which ones cannot be read."""
    from tqdm import tqdm

    folder.mkdir()

    def read(path: Path) -> Photograph | UserError:
        try:
            return _copy(path, folder / path.name)
        except UserError as error:
            return error

    with ThreadPoolExecutor() as pool:
        results = list(tqdm(pool.map(read, paths), 'reading photographs', len(paths), disable=None, leave=False))
    readable = [result for result in results if isinstance(result, Photograph)]
    for error in results:
        if isinstance(error, UserError):
            print(f'warning: {error}; it is left out', file=sys.stderr)
    for i, photo in enumerate(readable):
        os.rename(folder / photo.path.name, folder / image_name(i))
    return readable


def _copy(path: Path, copy: Path) -> Photograph:
    """Writes a photograph as a JPEG, upright, of at most LONGEST_SIDE, with what EXIF says of its lens, which COLMAP
    takes the first focal length from."""
    from PIL import Image

    image = Image.fromarray(read_image(path)[..., :3])
    width, height = image.size
    with Image.open(path) as file:
        exif = file.getexif()
    lens = exif.get_ifd(0x8769)
    kept = Image.Exif()
    kept.update({tag: exif[tag] for tag in CAMERA_TAGS if tag in exif})
    kept.get_ifd(0x8769).update({tag: lens[tag] for tag in LENS_TAGS if tag in lens})
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BOX)
    image.save(copy, 'JPEG', quality=95, subsampling=0, exif=kept)
    camera = [str(exif.get(tag)) for tag in CAMERA_TAGS] + [str(lens.get(tag)) for tag in LENS_TAGS]
    return Photograph(path, width, height, (width / image.width, height / image.height), tuple(camera))


# What is said of the result


def _judge(datadir: Path, photographs: list[Photograph], model: Model | None) -> None:
    """Warns of photographs without a camera; raises UserError where too few have one."""
    registered = 0 if model is None else len(model.index)
    if registered < LEAST:
        raise UserError(f'{datadir}: the cameras of only {registered} of {len(photographs)} photographs could be '
                        f'found, and {LEAST} are needed; take more: {ADVICE}')
    if missing := [photo.path.name for i, photo in enumerate(photographs) if i not in model.index]:
        print(f'warning: {datadir}: no camera was found for {_listed(missing)}; usually such a photograph is blurred, '
              'overlaps too little with others or shows little texture. It is left out', file=sys.stderr)
    if len(model.sizes) > 1:
        print(f'warning: {datadir}: the photographs fall into {len(model.sizes)} groups that do not connect, of '
              f'{", ".join(map(str, model.sizes))}; the largest is used. Take photographs that lead from one group to '
              'the other', file=sys.stderr)
    elif registered < len(photographs) * 2 / 3:
        print(f'warning: {datadir}: less than two thirds of the photographs have a camera; the scene will have holes. '
              f'Take more: {ADVICE}', file=sys.stderr)


def _say_known(datadir: Path) -> None:
    """Says that the cameras are known, and where the folder's photographs are not those that they are of."""
    print(f'{datadir / CAMERAS} has the cameras; delete it to estimate them again')
    try:
        known = json.loads((datadir / CAMERAS).read_text(encoding='utf-8'))['estimated_from']
        now = [_relative(path, datadir) for path in find_photographs(datadir)]
        added, removed = len(set(now) - set(known)), len(set(known) - set(now))
    except (UserError, OSError, ValueError, RecursionError, KeyError, TypeError):
        return  # another program's, or broken; or the photographs are elsewhere: who reads the file says so
    if added or removed:
        print(f'warning: {datadir}: since then {added} photographs were added and {removed} removed', file=sys.stderr)


def _listed(names: list[str]) -> str:
    return ', '.join(names[:10]) + (f' and {len(names) - 10} more' if len(names) > 10 else '')


# Files


def _relative(path: Path, datadir: Path) -> str:
    return path.relative_to(datadir).as_posix()


def _write_points(path: Path, model: Model) -> None:
    header = ['ply', 'format ascii 1.0', f'element vertex {len(model.points)}',
              *(f'property float {name}' for name in 'xyz'),
              *(f'property uchar {name}' for name in ('red', 'green', 'blue')), 'end_header']
    rows = ['{:.7g} {:.7g} {:.7g} {} {} {}'.format(*point, *colour)
            for point, colour in zip(model.points, model.colours)]
    with whole_file(path) as partial:
        partial.write_text('\n'.join(header + rows) + '\n', encoding='ascii')


def _write_cameras(path: Path, paths: list[Path], photographs: list[Photograph], model: Model) -> None:
    """Writes the registered `photographs`, whose cameras the model has; `paths` are all that were there."""
    lenses = [_lens(photo, lens) for photo, lens in zip(photographs, model.lenses)]
    shared = lenses[0] if all(lens == lenses[0] for lens in lenses) else {}
    frames = [{'file_path': _relative(photo.path, path.parent)} | ({} if shared else lens)
              | {'transform_matrix': [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]}
              for photo, lens, pose in zip(photographs, lenses, model.poses)]
    text = json.dumps({'camera_model': 'OPENCV', **shared, 'ply_file_path': POINTS,
                       'estimated_from': [_relative(each, path.parent) for each in paths], 'frames': frames}, indent=1)
    with whole_file(path) as partial:
        partial.write_text(text + '\n', encoding='utf-8')


def _lens(photo: Photograph, lens: np.ndarray) -> dict[str, float]:
    """Size and intrinsics at the photograph's full size, of a lens [8] at the size of its copy."""
    (across, down), (fx, fy, cx, cy, *bent) = photo.scale, lens.tolist()
    return {'w': photo.width, 'h': photo.height, 'fl_x': across * fx, 'fl_y': down * fy, 'cx': across * cx,
            'cy': down * cy} | dict(zip(('k1', 'k2', 'p1', 'p2'), bent))
