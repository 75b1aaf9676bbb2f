"""Scenes in the Blender format of the NeRF paper: transforms_{train,val,test}.json and pictures."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nerf.captures.capture import SPLITS
from nerf.captures.lenses import Lens, with_sound_lenses
from nerf.captures.transforms import lens_of_frame
from nerf.files.images import image_size, read_images, same_proportions
from nerf.files.scene_files import Found, SceneFolder, contents, read_json, usable
from nerf.poses import AXES_OFF, axes_length, rigid, say_unusual
from nerf.runtime.errors import UserError

OF_THE_PAPER = ('chair', 'drums', 'ficus', 'hotdog', 'lego', 'materials', 'mic', 'ship')
WHERE_FROM = ('the Blender scenes come in nerf_synthetic.zip, linked at https://www.matthewtancik.com/nerf; '
              'configs/toy_chair.txt needs no download')
FILES = [f'transforms_{split}.json' for split in SPLITS]
ROUNDED = 0.02  # deviation of axes from a rotation that is accepted, because some files have few digits


@dataclass(frozen=True)
class BlenderImages:
    """Images of a scene and their cameras, in the coordinates of the files."""
    images: np.ndarray  # [N, H, W, 3 or 4] uint8, alpha not premultiplied
    poses: np.ndarray  # [N, 4, 4] float32 camera-to-world, OpenGL axes
    lenses: list[Lens]  # N lenses for images of H x W
    path: np.ndarray | None  # [M, 4, 4] float32 test poses without pictures, a path to render; None: there are none
    i_split: list[np.ndarray]  # indices of the training, validation and test images


def load_blender_data(basedir: str | Path, half_res: bool = False, testskip: int = 1):
    """Loads the training, validation and test images of a scene; a UserError names a missing or broken file.

    Args:
        basedir: folder of transforms_train.json, transforms_val.json and transforms_test.json.
        half_res: shrink images to half their height and width by area averaging.
        testskip: keep every testskip-th validation and test image; 0 or 1 keeps all.

    Returns:
        images: [N, H, W, 3 or 4] uint8, alpha not premultiplied.
        poses: [N, 4, 4] float32 camera-to-world, OpenGL axes.
        render_poses: [40, 4, 4] float32, a turntable 30 degrees above the equator, or test poses without pictures.
        hwf: [H, W, focal], focal length in pixels; `read_blender_images` has the whole lenses.
        i_split: indices of the training, validation and test images, three arrays.
    """
    scene = read_blender_images(basedir, half_res, testskip)
    hwf = [*scene.images.shape[1:3], float(scene.lenses[0].intrinsics[0])]
    return scene.images, scene.poses, turntable() if scene.path is None else scene.path, hwf, scene.i_split


def read_blender_images(basedir: str | Path, half_res: bool, testskip: int, hold: int = 8) -> BlenderImages:
    """Images and cameras of a scene. Arguments are those of `load_blender_data`. If there is no validation image, every
    `hold`-th training image is held out for it; if there is no test image, the validation images are it too."""
    basedir = Path(basedir)
    if not basedir.is_dir():
        known = f'; {WHERE_FROM}' if basedir.name in OF_THE_PAPER else ''
        raise UserError(f'datadir {basedir} is not a folder{known}')
    named = [_read_split(basedir / name) for name in FILES]
    splits = [_with_pictures(frames, each) for frames, each in zip(named, (1, *[max(testskip, 1)] * 2))]
    path = None if splits[2] or not named[2] else np.stack([frame.pose for frame in named[2]])
    full = image_size(splits[0][0].found.path)[::-1]
    splits = [_with_sound_lenses(some, full) for some in splits]
    frames = [frame for some in splits for frame in some]
    say_unusual(basedir, np.stack([frame.matrix[:3] for frame in frames]))
    images = read_images([frame.found.path for frame in frames], half_res)
    size = images.shape[2:0:-1]
    return BlenderImages(images, np.stack([frame.pose for frame in frames]),
                         [frame.lens(full, size) for frame in frames], path,
                         _held_out(basedir, list(map(len, splits)), hold))


def turntable(radius: float = 4.0) -> np.ndarray:
    """Poses [40, 4, 4] float32 around the origin, 30 degrees above the equator."""
    return np.stack([pose_spherical(theta, -30.0, radius) for theta in np.linspace(-180, 180, 40, endpoint=False)])


def pose_spherical(theta: float, phi: float, radius: float) -> np.ndarray:
    """Pose [4, 4] float32 of a camera on a sphere, looking at the origin, with z up. Theta and phi are azimuth and
    elevation in degrees, the latter negative above the equator."""
    theta, phi = math.radians(theta), math.radians(phi)
    backward = np.array([math.sin(theta) * math.cos(phi), math.cos(theta) * math.cos(phi), -math.sin(phi)])
    right = np.array([-math.cos(theta), math.sin(theta), 0.0])
    pose = np.eye(4, dtype=np.float32)
    pose[:3] = np.stack([right, np.cross(backward, right), backward, radius * backward], 1)
    return pose


class _Frame(NamedTuple):
    """Frame of a transforms file."""

    source: Path
    index: int
    values: dict
    top: dict
    found: Found  # its picture
    matrix: np.ndarray  # [4, 4] float64 as in the file

    @property
    def pose(self) -> np.ndarray:
        """Pose [4, 4] float32; a scale of its axes is divided out."""
        length = axes_length(self.matrix[:3])
        if abs(length - 1.0) <= AXES_OFF:
            return self.matrix.astype(np.float32)
        return (self.matrix / [length, length, length, 1.0]).astype(np.float32)

    def lens(self, full: tuple[int, int], size: tuple[int, int]) -> Lens:
        """Lens for an image of a size (width, height) of a picture of another, `full`."""
        lens = lens_of_frame(self.source, f'frame {self.index}', self.values, self.top, full)
        if not same_proportions(lens.size, full):
            raise UserError(f'{self.found.path} is {full[0]}x{full[1]} pixels, but its camera in {self.source.name} is '
                            f'for {lens.size[0]:g}x{lens.size[1]:g}; was it rotated or cropped afterwards?')
        return lens._replace(intrinsics=lens.intrinsics * np.tile(np.array(size) / lens.size, 2), size=size)


def _read_split(path: Path) -> list[_Frame]:
    """Frames of a transforms file; only that of the training images must exist and have any."""
    needed = path.name == FILES[0]
    if not (needed or path.exists()):
        return []
    top = read_json(path, f'datadir must hold {", ".join(FILES)}; it has {contents(path.parent)}')
    frames = top.get('frames') if isinstance(top, dict) else None
    if not isinstance(frames, list) or (needed and not frames):
        raise UserError(f'{path}: "frames" must be a list with at least one frame')
    folder = SceneFolder(path.parent, links=True)
    return [_read_frame(path, i, frame, top, folder) for i, frame in enumerate(frames)]


def _read_frame(path: Path, i: int, frame: Any, top: dict, folder: SceneFolder) -> _Frame:
    """Frame i of the transforms file at `path`."""
    name = frame.get('file_path') if isinstance(frame, dict) else None
    try:
        found = folder.find(name)
    except ValueError as error:
        raise UserError(f'{path}: frame {i} has file_path {name!r}; {error}') from None
    rows = frame.get('transform_matrix')
    if not (isinstance(rows, list) and len(rows) == 4 and all(isinstance(row, list) and len(row) == 4 for row in rows)
            and all(type(number) in (int, float) and abs(number) < 1e30 for row in rows for number in row)):
        raise UserError(f'{path}: frame {i} ({name}) has a transform_matrix that is not a finite 4x4 matrix; '
                        f'export the scene again')
    matrix = np.array(rows, np.float64)
    try:
        rigid(matrix[:3], ROUNDED)
    except ValueError as error:
        raise UserError(f'{path}: frame {i} ({name}) has a transform_matrix that is no camera: it {error}') from None
    return _Frame(path, i, frame, top, found, matrix)


def _with_pictures(frames: list[_Frame], each: int) -> list[_Frame]:
    """Every `each`-th frame of a transforms file, without those that have no picture. Lines tell about these."""
    source = frames[0].source if frames else None
    if frames and source.name != FILES[0] and all(frame.found.missing for frame in frames):
        use = 'its poses are the path to render' if source.name == FILES[2] else 'it is not used'
        print(f'warning: {source}: none of its {len(frames)} pictures exists, {frames[0].found.name!r} for one; {use}',
              file=sys.stderr)
        return []
    some = frames[::each]
    if frames and all(frame.found.missing for frame in some):
        some = [frame for frame in frames if not frame.found.missing][::each] or frames
    return [some[i] for i in usable(source, [frame.found for frame in some], 'pictures')]


def _with_sound_lenses(frames: list[_Frame], size: tuple[int, int]) -> list[_Frame]:
    """Frames of a transforms file whose lens can be used for pictures of a size (width, height); lines tell more."""
    if not frames:
        return []
    lenses = [frame.lens(size, size) for frame in frames]
    return [frames[i] for i in with_sound_lenses(frames[0].source, [frame.found.name for frame in frames], lenses)]


def _held_out(basedir: Path, counts: list[int], hold: int) -> list[np.ndarray]:
    """Indices of the training, validation and test images of a scene with these numbers of each."""
    train, val, test = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    if not len(val):
        if len(train) > 1:
            val, train = train[::hold], np.delete(train, np.s_[::hold])
            what = 'validation' if len(test) else 'validation and testing'
            print(f'warning: {basedir}: no pictures for {what}; every {hold}th training view, {len(val)} of '
                  f'{counts[0]}, is held out', file=sys.stderr)
        else:
            val = train
    elif not len(test):
        print(f'warning: {basedir}: no pictures for testing; those for validation are used', file=sys.stderr)
    return [train, val, test if len(test) else val]
