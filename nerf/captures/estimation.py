"""Estimation of the cameras of a folder of photographs, written as transforms.json of nerfstudio and instant-ngp."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nerf.captures.structure_from_motion import (
    IMAGES, RULES, EstimatedCameras, EstimationRules, image_name, structure_from_motion,
)
from nerf.files.images import ENDINGS, HEIF_ENDINGS, MOST_TO_REDUCE, can_read_heif, in_parallel, read_image
from nerf.files.scene_files import read_json
from nerf.files.whole_file import whole_file
from nerf.poses import colmap_pose
from nerf.runtime import ranks
from nerf.runtime.errors import UserError

VIDEO_ENDINGS = ('.mp4', '.mov', '.m4v', '.avi', '.mkv', '.webm')
EXIF_CAMERA = (0x010F, 0x0110)  # tags: make, model
EXIF_PART, EXIF_LENS = 0x8769, (0x920A, 0xA405)  # tags: Exif part; focal length in mm, as on 35 mm film
CAMERAS, POINTS, TRACKS = 'transforms.json', 'sparse_points.ply', 'sparse_tracks.npz'
MOST_NAMES = 10  # in a message
ADVICE = ('neighbours must overlap by two thirds and show things with texture; leave out blurred ones, and photograph '
          'from different places rather than turning on one')

Solver = Callable[[Path, Sequence[int], EstimationRules], EstimatedCameras | None]


@dataclass(frozen=True)
class UprightCopy:
    """Copy of a photograph for COLMAP."""

    path: Path  # of the photograph
    size: tuple[int, int]  # width and height in pixels of the photograph as it stands upright
    scale: tuple[float, float]  # width and height of the photograph, as multiples of the copy's
    lens: tuple  # the size, and make, model and focal lengths by EXIF, equal for photographs with one lens


def estimate_cameras(datadir: str | Path, rules: EstimationRules = RULES,
                     solve: Solver = structure_from_motion) -> None:
    """Writes datadir/transforms.json, sparse_points.ply and sparse_tracks.npz, unless the first exists. If there are
    too few photographs, or too few get a camera, it is a UserError.

    Args:
        datadir: folder of the photographs, or of a folder images/ with them. Photographs are not changed.
        solve: finds the cameras of copies 0000.jpg, 0001.jpg, ... in a folder, as `structure_from_motion`.
    """
    datadir = Path(datadir)
    if (datadir / CAMERAS).exists():
        _say_known(datadir, rules.fewest_photographs)
        return
    if ranks.count() > 1:
        raise UserError(f'{datadir} has no {CAMERAS}, and one process must make it; start with --estimate_only '
                        'first, without torchrun')
    paths = _photographs(datadir, rules.fewest_photographs)
    with tempfile.TemporaryDirectory(prefix='nerf-photographs-') as temporary:
        copies = _make_copies(paths, Path(temporary) / IMAGES, rules.longest_side)
        _check_count(datadir, len(copies), rules.fewest_photographs)
        kinds = list(dict.fromkeys(copy.lens for copy in copies))
        several = f', taken with {len(kinds)} lenses or sizes' if len(kinds) > 1 else ''
        print(f'estimating the cameras of {len(copies)} photographs{several}')
        try:
            cameras = solve(Path(temporary), [kinds.index(copy.lens) for copy in copies], rules)
        except ChildProcessError as error:
            raise UserError(str(error)) from None
    _judge(datadir, copies, cameras, rules.fewest_photographs)
    _write_points(datadir / POINTS, cameras)
    _write_tracks(datadir / TRACKS, [_relative(copies[i].path, datadir) for i in cameras.index], cameras)
    _write_cameras(datadir / CAMERAS, paths, [copies[i] for i in cameras.index], cameras)
    print(f'{datadir / CAMERAS}: {len(cameras.index)} of {len(paths)} photographs, {len(cameras.points)} points, mean '
          f'error {cameras.error:.2f} pixels; delete it to estimate again')


def _photographs(datadir: Path, fewest: int) -> list[Path]:
    """Paths of the photographs in datadir/images or, without that folder, in datadir, by name. Names ignored files."""
    if not datadir.is_dir():
        raise UserError(f'datadir {datadir} is not a folder; make it, and put photographs into {datadir / "images"}')
    folder = datadir / 'images' if (datadir / 'images').is_dir() else datadir
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith('.'))
    found = [path for path in files if path.suffix.lower() in ENDINGS + HEIF_ENDINGS]
    videos = [path for place in dict.fromkeys((folder, datadir)) for path in sorted(place.iterdir())
              if path.suffix.lower() in VIDEO_ENDINGS]
    if not found and videos:
        import imageio_ffmpeg
        target, ffmpeg, video, frames = (shlex.quote(str(word)) for word in (
            datadir / 'images', imageio_ffmpeg.get_ffmpeg_exe(), videos[0], datadir / 'images' / '%04d.jpg'))
        raise UserError(f'{folder} has no photographs but a video; take frames from it: mkdir -p {target} && {ffmpeg} '
                        f'-i {video} -vf fps=2 -q:v 2 {frames}')
    heif = [path for path in found if path.suffix.lower() in HEIF_ENDINGS]
    if heif and not can_read_heif():
        raise UserError(f'{folder} has {len(heif)} HEIC photographs, {heif[0].name} for one; run: pip install '
                        'pillow-heif, or convert them to JPEG')
    if ignored := [path.name for path in files if path not in found and path.name not in (POINTS, TRACKS)]:
        print(f'{folder}: ignored, as they are no photographs: {_listed(ignored)}')
    _check_count(datadir, len(found), fewest)
    return found


def _check_count(datadir: Path, count: int, fewest: int) -> None:
    if count < fewest:
        raise UserError(f'{datadir} has {count} photographs (.jpg, .jpeg, .png, .heic) that can be read; take at least '
                        f'{fewest}, better 20 to 100: {ADVICE}')


def _make_copies(paths: Sequence[Path], folder: Path, longest_side: int) -> list[UprightCopy]:
    """Writes upright copies of photographs into `folder`, and warns of unreadable ones."""
    def read(path: Path) -> UprightCopy | UserError:
        try:
            return copy_upright(path, folder / f'copy of {path.name}', longest_side)
        except UserError as error:
            return error
    folder.mkdir()
    copies = []
    for result in in_parallel('reading photographs', read, paths):
        if isinstance(result, UserError):
            print(f'warning: {result}; it is left out', file=sys.stderr)
        else:
            os.rename(folder / f'copy of {result.path.name}', folder / image_name(len(copies)))
            copies.append(result)
    return copies


def copy_upright(path: Path, copy: Path, longest_side: int = RULES.longest_side) -> UprightCopy:
    """Writes an upright JPEG of a photograph, with `longest_side` pixels along its longer side at most. EXIF's camera
    and lens are kept, because COLMAP takes its first guess of the focal length from them."""
    from PIL import Image
    image = Image.fromarray(read_image(path, True, MOST_TO_REDUCE)[..., :3])
    size = width, height = image.size
    with Image.open(path) as file:
        exif = file.getexif()
    lens = exif.get_ifd(EXIF_PART)
    kept = Image.Exif()
    kept.update({tag: exif[tag] for tag in EXIF_CAMERA if tag in exif})
    kept.get_ifd(EXIF_PART).update({tag: lens[tag] for tag in EXIF_LENS if tag in lens})
    image.thumbnail((longest_side, longest_side), Image.Resampling.BOX)
    image.save(copy, 'JPEG', quality=95, subsampling=0, exif=kept)
    camera = [str(exif.get(tag)) for tag in EXIF_CAMERA] + [str(lens.get(tag)) for tag in EXIF_LENS]
    return UprightCopy(path, size, (width / image.width, height / image.height), (size, *camera))


def _judge(datadir: Path, copies: list[UprightCopy], cameras: EstimatedCameras | None, fewest: int) -> None:
    """Warns of photographs without a camera; raises UserError if fewer than `fewest` have one."""
    registered = 0 if cameras is None else len(cameras.index)
    if registered < fewest:
        raise UserError(f'{datadir}: the cameras of only {registered} of {len(copies)} photographs could be found, and '
                        f'{fewest} are needed; take more: {ADVICE}')
    if len(cameras.disagreeing):
        wrong = _listed([copies[i].path.name for i in cameras.disagreeing])
        print(f'warning: {datadir}: the camera that was found for {wrong} does not agree with the others (far from all '
              'of them, or few points and large errors); such a photograph is left out', file=sys.stderr)
    placed = {*cameras.index.tolist(), *cameras.disagreeing.tolist()}
    if missing := [copy.path.name for i, copy in enumerate(copies) if i not in placed]:
        print(f'warning: {datadir}: no camera was found for {_listed(missing)}; usually such a photograph is blurred, '
              'overlaps too little with others or shows little texture. It is left out', file=sys.stderr)
    if len(cameras.sizes) > 1:
        print(f'warning: {datadir}: the photographs fall into {len(cameras.sizes)} groups that do not connect, of '
              f'{", ".join(map(str, cameras.sizes))}; the largest is used. Take photographs that lead from one group '
              'to the other', file=sys.stderr)
    elif registered < len(copies) * 2 / 3:
        print(f'warning: {datadir}: less than two thirds of the photographs have a camera; the scene will have holes. '
              f'Take more: {ADVICE}', file=sys.stderr)


def _say_known(datadir: Path, fewest: int) -> None:
    """Says that the cameras are known, and warns if photographs were added or removed since."""
    print(f'{datadir / CAMERAS} has the cameras; delete it to estimate them again')
    try:
        known = set(read_json(datadir / CAMERAS, '')['estimated_from'])
        now = {_relative(path, datadir) for path in _photographs(datadir, fewest)}
    except (UserError, LookupError, TypeError):
        return  # another program's file, a broken one, or photographs elsewhere; the loader reports what is wrong
    if now != known:
        print(f'warning: {datadir}: since then {len(now - known)} photographs were added and {len(known - now)} '
              'removed', file=sys.stderr)


def _listed(names: list[str]) -> str:
    more = f' and {len(names) - MOST_NAMES} more' if len(names) > MOST_NAMES else ''
    return ', '.join(names[:MOST_NAMES]) + more


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


def _write_tracks(path: Path, names: list[str], cameras: EstimatedCameras) -> None:
    """Writes which photograph, by its name in transforms.json, observes which point of the file of points."""
    photograph, point = cameras.tracks.T.astype(np.int32)
    with whole_file(path) as partial, open(partial, 'wb') as file:
        np.savez_compressed(file, names=np.array(names), photograph=photograph, point=point)


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
    text = json.dumps({'camera_model': 'OPENCV', **shared, 'ply_file_path': POINTS, 'tracks_file_path': TRACKS,
                       'estimated_from': [_relative(each, path.parent) for each in paths], 'frames': frames}, indent=1)
    with whole_file(path) as partial:
        partial.write_text(text + '\n', encoding='utf-8')
