"""Photographs and videos of a scene's folder: which files they are, and where they lie."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nerf.files.images import ENDINGS, HEIF_ENDINGS, can_read_heif
from nerf.runtime.errors import UserError

VIDEO_ENDINGS = ('.mp4', '.mov', '.m4v', '.avi', '.mkv', '.webm', '.mpg', '.mpeg', '.mts', '.m2ts', '.3gp', '.wmv')
PLACES = ('images', 'input')  # folders of a scene that are looked into first, the latter of 3D Gaussian splatting
# Folders without a scene's photographs: hidden; of this program or others; of other formats; of macOS and Synology
OTHER_FOLDERS = re.compile(r'\..*|images_\d+|masks?|depths?|sparse|colmap|logs|outputs|renders|train|val|validation|'
                           r'test|__MACOSX|@eaDir')
MOST_NAMES = 10  # in a message


@dataclass(frozen=True)
class Pictures:
    """Photographs and videos of a scene. Paths are as they are named, with links in them; photographs are sorted."""

    home: Path  # folder in which the photographs lie, or frames of videos can lie
    photographs: list[Path]
    videos: dict[str, Path]  # by a name for the frames that is unique
    others: list[Path]  # further files in `home`, those of Live Photos for example

    def relative(self, path: Path) -> str:
        """Path of a photograph in `home`, for messages."""
        return path.relative_to(self.home).as_posix()


def scene_folder(datadir: Path) -> Path:
    """Folder of a scene; of a video that is the scene by itself, a folder beside it with its name. The video is needed
    only to take its frames."""
    video = datadir.is_file() or (datadir.suffix.lower() in VIDEO_ENDINGS and not datadir.is_dir())
    return datadir.with_suffix('' if datadir.suffix else '.scene') if video else datadir


def find_pictures(datadir: Path, enough: int) -> Pictures:
    """Photographs of the first folder that has some, with its subfolders: datadir/images, datadir/input, or datadir;
    and videos anywhere in datadir. A `datadir` that is a video counts too, besides what is in its scene's folder.
    Folders can be links. UserError: `datadir` is neither a folder nor a video, or has several scenes.

    Args:
        enough: number of photographs from which on videos with the name of a photograph are left out. They are the
            seconds that a phone keeps of a Live Photo.
    """
    scene = scene_folder(datadir)
    if datadir.is_file() and datadir.suffix.lower() in ENDINGS + HEIF_ENDINGS:
        raise UserError(f'datadir {datadir} is one photograph; name the folder that it is in')
    if datadir == scene and not scene.is_dir():
        raise UserError(f'datadir {datadir} is not a folder; make it, and put photographs or a video into it')
    files = sorted(_files(scene, set()))
    for home in (*(scene / place for place in PLACES), scene):
        photographs = [path for path in files if path.suffix.lower() in ENDINGS + HEIF_ENDINGS
                       and path.is_relative_to(home)]
        if photographs:
            break
    else:
        home = scene / PLACES[0]
    _check_one_scene(scene, home, photographs)
    live = {path.with_suffix('') for path in photographs} if len(photographs) >= enough else ()
    videos = [path for path in files if path.suffix.lower() in VIDEO_ENDINGS and path.with_suffix('') not in live]
    videos += [datadir] if datadir != scene else []
    used = {*photographs, *videos}
    others = [path for path in files if path.is_relative_to(home) and path not in used]
    return Pictures(home, photographs, _named(videos, home, scene), others)


def _files(folder: Path, known: set[Path]) -> Iterator[Path]:
    """Files in a folder and its subfolders that can be photographs or videos. Links are followed, to each folder once;
    `known` has the folders so far."""
    place = folder.resolve()
    if place in known or not folder.is_dir():
        return
    known.add(place)
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            if not OTHER_FOLDERS.fullmatch(entry.name):
                yield from _files(entry, known)
        elif not entry.name.startswith('.'):
            yield entry


def _check_one_scene(scene: Path, home: Path, photographs: list[Path]) -> None:
    """Raises UserError if photographs lie in several subfolders images/ or input/, as those of several scenes do."""
    folders = {parent for path in photographs for parent in path.relative_to(home).parents}
    scenes = {folder.parent for folder in folders if folder.name in PLACES}
    if len(scenes) > 1:
        raise UserError(f'{scene} has the photographs of {len(scenes)} scenes, '
                        f'{listed(sorted(map(str, scenes)))}; name the folder of one')


def _named(videos: list[Path], *folders: Path) -> dict[str, Path]:
    """Videos by names for their frames: the video's own with those of its subfolders in the first of `folders` that it
    is in, without its ending unless another video has the same name."""
    names = {}
    for video in videos:
        folder = next((folder for folder in folders if video.is_relative_to(folder)), video.parent)
        names[video] = '_'.join(video.relative_to(folder).with_suffix('').parts)
    counts = Counter(names.values())
    return {name if counts[name] == 1 else f'{name}_{video.suffix[1:]}': video for video, name in names.items()}


def readable(pictures: Pictures, fewest: int) -> list[Path]:
    """Photographs that can be read as far as their endings and links tell. What is left out is said."""
    lost = [path for path in pictures.photographs if not path.is_file()]
    heif = [path for path in pictures.photographs if path.suffix.lower() in HEIF_ENDINGS and not can_read_heif()]
    left = [path for path in pictures.photographs if path not in {*lost, *heif}]
    if lost:
        print(f'warning: {pictures.home}: {len(lost)} photographs are links to files that do not exist: '
              f'{listed([pictures.relative(path) for path in lost])}; they are left out', file=sys.stderr)
    if heif:
        what = (f'{pictures.home} has {len(heif)} HEIC photographs, {pictures.relative(heif[0])} for one; run: pip '
                'install pillow-heif, or convert them to JPEG')
        if len(left) < fewest:
            raise UserError(what)
        print(f'warning: {what}. They are left out', file=sys.stderr)
    return left


def listed(names: list[str]) -> str:
    """The first names of a list, for a message."""
    more = f' and {len(names) - MOST_NAMES} more' if len(names) > MOST_NAMES else ''
    return ', '.join(names[:MOST_NAMES]) + more
