"""Estimation of the cameras of a folder of photographs, written as transforms.json of nerfstudio and instant-ngp."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nerf.captures.photographs import find_pictures, listed, readable, scene_folder
from nerf.captures.structure_from_motion import (
    IMAGES, RULES, EstimatedCameras, EstimationRules, image_name, structure_from_motion,
)
from nerf.captures.video import frames_folder, take_frames
from nerf.files.images import MOST_TO_REDUCE, in_parallel, read_image
from nerf.files.scene_files import read_json
from nerf.files.whole_file import whole_file
from nerf.poses import colmap_pose
from nerf.runtime import ranks
from nerf.runtime.errors import UserError

EXIF_CAMERA = (0x010F, 0x0110)  # tags: make, model
EXIF_PART, EXIF_LENS = 0x8769, (0x920A, 0xA405)  # tags: Exif part; focal length in mm, as on 35 mm film
CAMERAS, POINTS = 'transforms.json', 'sparse_points.ply'
ADVICE = ('neighbours must overlap by two thirds and show things with texture; leave out blurred ones, and photograph '
          'from different places rather than turning on one')

Solver = Callable[[Path, Sequence[int], EstimationRules], EstimatedCameras | None]


@dataclass(frozen=True)
class UprightCopy:
    """Copy of a photograph for COLMAP."""

    path: Path  # of the photograph
    size: tuple[int, int]  # width and height in pixels of the photograph as it stands upright
    scale: tuple[float, float]  # width and height of the photograph, as multiples of the copy's
    camera: tuple[str, ...]  # make, model and focal lengths by EXIF, as far as it has them


def estimate_cameras(datadir: str | Path, rules: EstimationRules = RULES,
                     solve: Solver = structure_from_motion, frames: int | None = None) -> Path:
    """Writes transforms.json and sparse_points.ply into the scene's folder, unless the former exists, and returns the
    folder. If there are too few photographs, or too few get a camera, it is a UserError.

    Args:
        datadir: folder of the scene, with photographs and videos as `find_pictures` finds them, or a video, which gets
            a folder. Photographs and videos are not changed.
        frames: as for `take_frames`.
        solve: finds the cameras of copies 0000.jpg, 0001.jpg, ... in a folder, as `structure_from_motion`.
    """
    given, datadir = Path(datadir), scene_folder(Path(datadir))
    if (datadir / CAMERAS).exists():
        _say_known(given, datadir, rules.fewest_photographs)
        return datadir
    if ranks.count() > 1:
        raise UserError(f'{datadir} has no {CAMERAS}, and one process must make it; start with --estimate_only '
                        'first, without torchrun')
    paths = _photographs(given, frames, rules.fewest_photographs)
    _check_count(datadir, len(paths), rules.fewest_photographs)
    with tempfile.TemporaryDirectory(prefix='nerf-photographs-') as temporary:
        copies = _make_copies(paths, Path(temporary) / IMAGES, rules.longest_side)
        _check_count(datadir, len(copies), rules.fewest_photographs)
        lenses = _lenses(copies, rules.fewest_photographs)
        several = f', taken with {max(lenses) + 1} lenses or sizes' if max(lenses) else ''
        print(f'estimating the cameras of {len(copies)} photographs{several}')
        try:
            cameras = solve(Path(temporary), lenses, rules)
        except ChildProcessError as error:
            raise UserError(str(error)) from None
    _judge(datadir, copies, cameras, rules.fewest_photographs)
    _write_points(datadir / POINTS, cameras)
    _write_cameras(datadir / CAMERAS, paths, [copies[i] for i in cameras.index], cameras)
    print(f'{datadir / CAMERAS}: {len(cameras.index)} of {len(paths)} photographs, {len(cameras.points)} points, mean '
          f'error {cameras.error:.2f} pixels; delete it to estimate again')
    return datadir


def _photographs(given: Path, frames: int | None, fewest: int) -> list[Path]:
    """Paths of the photographs of a scene, by name. First, frames of its videos are written among them. Ignored files
    are named."""
    pictures = find_pictures(given, fewest)
    take_frames(pictures.videos, pictures.home, frames)
    pictures = find_pictures(given, fewest) if pictures.videos else pictures
    if ignored := [pictures.relative(path) for path in pictures.others if path.name != POINTS]:
        print(f'{pictures.home}: ignored, as they are no photographs: {listed(ignored)}')
    return readable(pictures, fewest)


def _check_count(datadir: Path, count: int, fewest: int) -> None:
    if count < fewest:
        raise UserError(f'{datadir} has {count} photographs (JPEG, PNG, WebP, TIFF, BMP, HEIC) that can be read, in '
                        f'images/, in input/ or elsewhere; take at least {fewest}, better 20 to 100, or a video: '
                        f'{ADVICE}')


def _make_copies(paths: Sequence[Path], folder: Path, longest_side: int) -> list[UprightCopy]:
    """Writes upright copies of photographs into `folder`, and warns of unreadable ones."""
    def read(number: int, path: Path) -> UprightCopy | UserError:
        try:
            return copy_upright(path, folder / f'copy {number}', longest_side)
        except UserError as error:
            return error
    folder.mkdir()
    copies = []
    for number, result in enumerate(in_parallel('reading photographs', read, range(len(paths)), paths)):
        if isinstance(result, UserError):
            print(f'warning: {result}; it is left out', file=sys.stderr)
        else:
            os.rename(folder / f'copy {number}', folder / image_name(len(copies)))
            copies.append(result)
    return copies


def copy_upright(path: Path, copy: Path, longest_side: int = RULES.longest_side) -> UprightCopy:
    """Writes an upright JPEG of a photograph, with `longest_side` pixels along its longer side at most. EXIF's camera
    and lens are kept, because COLMAP takes its first guess of the focal length from them."""
    from PIL import Image
    image = Image.fromarray(read_image(path, True, MOST_TO_REDUCE)[..., :3])
    size = width, height = image.size
    camera, lens = _camera_and_lens(path)
    kept = Image.Exif()
    kept.update(camera)
    kept.get_ifd(EXIF_PART).update(lens)
    image.thumbnail((longest_side, longest_side), Image.Resampling.BOX)
    image.save(copy, 'JPEG', quality=95, subsampling=0, exif=kept)
    return UprightCopy(path, size, (width / image.width, height / image.height),
                       tuple(f'{tag} {value}' for tag, value in (camera | lens).items()))


def _camera_and_lens(path: Path) -> tuple[dict[int, Any], dict[int, Any]]:
    """EXIF tags of a photograph's camera and of its lens, as far as it has them."""
    from PIL import Image
    try:
        with Image.open(path) as file:
            exif = file.getexif()
            lens = exif.get_ifd(EXIF_PART)
            return ({tag: exif[tag] for tag in EXIF_CAMERA if tag in exif},
                    {tag: lens[tag] for tag in EXIF_LENS if tag in lens})
    except Exception:  # TIFFs of floats are none of Pillow's, and it passes on whatever broken EXIF data raise
        return {}, {}


def _lenses(copies: Sequence[UprightCopy], least: int) -> list[int]:
    """Number of the lens of each photograph. Photographs without EXIF have the lens of their folder, if it holds at
    least `least` of them, because folders are often of one camera each; fewer would not tell a lens."""
    blank = Counter(copy.path.parent for copy in copies if not copy.camera)
    keys = [(copy.size, copy.camera, copy.path.parent if blank[copy.path.parent] >= least and not copy.camera else None)
            for copy in copies]
    kinds = list(dict.fromkeys(keys))
    return [kinds.index(key) for key in keys]


def _judge(datadir: Path, copies: list[UprightCopy], cameras: EstimatedCameras | None, fewest: int) -> None:
    """Warns of photographs without a camera; raises UserError if fewer than `fewest` have one."""
    registered = 0 if cameras is None else len(cameras.index)
    if registered < fewest:
        raise UserError(f'{datadir}: the cameras of only {registered} of {len(copies)} photographs could be found, and '
                        f'{fewest} are needed; take more: {ADVICE}')
    if len(cameras.disagreeing):
        wrong = listed([copies[i].path.name for i in cameras.disagreeing])
        print(f'warning: {datadir}: the camera that was found for {wrong} does not agree with the others (far from all '
              'of them, or few points and large errors); such a photograph is left out', file=sys.stderr)
    placed = {*cameras.index.tolist(), *cameras.disagreeing.tolist()}
    if missing := [copy.path.name for i, copy in enumerate(copies) if i not in placed]:
        print(f'warning: {datadir}: no camera was found for {listed(missing)}; usually such a photograph is blurred, '
              'overlaps too little with others or shows little texture. It is left out', file=sys.stderr)
    if len(cameras.sizes) > 1:
        print(f'warning: {datadir}: the photographs fall into {len(cameras.sizes)} groups that do not connect, of '
              f'{", ".join(map(str, cameras.sizes))}; the largest is used. Take photographs that lead from one group '
              'to the other', file=sys.stderr)
    elif registered < len(copies) * 2 / 3:
        print(f'warning: {datadir}: less than two thirds of the photographs have a camera; the scene will have holes. '
              f'Take more: {ADVICE}', file=sys.stderr)


def _say_known(given: Path, datadir: Path, fewest: int) -> None:
    """Says that the cameras are known, and warns if photographs or videos were added or removed since."""
    print(f'{datadir / CAMERAS} has the cameras; delete it to estimate them again')
    try:
        known = set(read_json(datadir / CAMERAS, '')['estimated_from'])
        pictures = find_pictures(given, fewest)
    except (UserError, LookupError, TypeError):
        return  # another program's file, a broken one, or photographs elsewhere; the loader reports what is wrong
    now = {_relative(path, datadir) for path in pictures.photographs}
    videos = sum(frames_folder(name, pictures.home) is None for name in pictures.videos)
    if now != known or videos:
        filmed = f' and {videos} videos' if videos else ''
        print(f'warning: {datadir}: since then {len(now - known)} photographs{filmed} were added and '
              f'{len(known - now)} removed', file=sys.stderr)


def _relative(path: Path, datadir: Path) -> str:
    return path.relative_to(datadir).as_posix()


def _write_points(path: Path, cameras: EstimatedCameras) -> None:
    header = ['ply', 'format ascii 1.0', f'element vertex {len(cameras.points)}',
              *(f'property float {name}' for name in 'xyz'),
              *(f'property uchar {name}' for name in ('red', 'green', 'blue')), 'end_header']
    rows = ['{:.7g} {:.7g} {:.7g} {} {} {}'.format(*point, *colour)
            for point, colour in zip(cameras.points, cameras.colours)]
    with whole_file(path) as partial:
        partial.write_text('\n'.join(header + rows) + '\n', encoding='ascii')


def _write_cameras(path: Path, paths: list[Path], copies: list[UprightCopy], cameras: EstimatedCameras) -> None:
    """Writes transforms.json of all photographs' paths, and of the cameras of the photographs in `copies`."""
    lenses = []
    for copy, (fx, fy, cx, cy, *bent) in zip(copies, cameras.lenses.tolist()):
        (width, height), (across, down) = copy.size, copy.scale
        lenses.append({'w': width, 'h': height, 'fl_x': across * fx, 'fl_y': down * fy, 'cx': across * cx,
                       'cy': down * cy} | dict(zip(('k1', 'k2', 'p1', 'p2'), bent)))
    shared = lenses[0] if all(lens == lenses[0] for lens in lenses) else {}
    frames = [{'file_path': _relative(copy.path, path.parent)} | ({} if shared else lens)
              | {'transform_matrix': [*colmap_pose(moved[:, :3], moved[:, 3]).tolist(), [0.0, 0.0, 0.0, 1.0]]}
              for copy, lens, moved in zip(copies, lenses, cameras.world_to_camera)]
    text = json.dumps({'camera_model': 'OPENCV', **shared, 'ply_file_path': POINTS,
                       'estimated_from': [_relative(each, path.parent) for each in paths], 'frames': frames}, indent=1)
    with whole_file(path) as partial:
        partial.write_text(text + '\n', encoding='utf-8')
