"""Data formats as entries of a registry: loader, flags, defaults. A new format is one entry and one file. The parser of
flags, its help and warnings, and `load_scene` are derived from the entries."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from load_photos import load_colmap, load_transforms
from nerf.captures.colmap import PLACES
from nerf.captures.estimation import estimate_cameras
from nerf.captures.phones import PHONE_MARKS
from nerf.captures.photographs import VIDEO_ENDINGS
from nerf.fields.kinds import CONTRACT, FIELDS
from nerf.files.images import ENDINGS
from nerf.files.scene_files import has_file
from nerf.flag_types import Flag, optional, whole
from nerf.runtime.errors import UserError
from nerf.scene import Scene, blender_scene, deepvoxels_scene, llff_scene, photographs_scene
from nerf.space import Space

LONGEST_PREVIEW = 640  # side in pixels. Larger videos of photographs would take longer than the training of a grid
RAYS_THROUGH = {'corner': 0.0, 'center': 0.5}  # place of a ray in its pixel, as a share of the pixel's sides
SSIM_WINDOW = 11  # height and width in pixels


@dataclass(frozen=True)
class Format:
    """Data format, as an entry of the registry."""
    name: str  # value of the flag dataset_type
    help: str  # the format in words
    load: Callable[[argparse.Namespace], Scene]  # reads the scene. UserError: the scene is missing or broken
    marks: tuple[str, ...] = ()  # patterns of files in datadir by which the format is known
    flags: tuple[Flag, ...] = ()  # flags that this format reads and others do not
    defaults: dict[str, Any] = field(default_factory=dict)  # defaults of flags that differ from the flags' own
    contracts: bool = True  # with contract = auto the paper's networks see space without bounds
    exposure: bool = False  # with exposure = auto a gain is learned for each image
    refines: bool = False  # with refine_cameras = auto cameras are refined while training


def load_scene(args: argparse.Namespace) -> Scene:
    """Scene named by the flags, with rays_through and exposure applied. UserError: the scene is missing or broken, its
    images are too small for SSIM, or render_factor is too large."""
    try:
        scene = FORMATS[args.dataset_type].load(args)
    except UserError as error:
        raise UserError(f'{error}{_other_format(args)}') from None
    scene = replace(scene.rays_within(RAYS_THROUGH[args.rays_through]), exposure=learns_exposure(args))
    height, width = scene.images.sizes.min(0)
    least = 2 * SSIM_WINDOW if scene.exposure else SSIM_WINDOW  # width: with exposure its half is measured
    if height < SSIM_WINDOW or width < least:
        raise UserError(f"{args.datadir}: images are {width}x{height} pixels; SSIM's window needs at least "
                        f'{least}x{SSIM_WINDOW}')
    scene.render_cameras.scaled(args.render_factor)  # raises an error now rather than at the first video
    return scene


def _other_format(args: argparse.Namespace) -> str:
    """Words for an error about the folder of a scene, if it has no file of the format named: about another format whose
    files it has, a scene in a folder in it or around it, or photographs alone."""
    folder = Path(args.datadir)
    if args.dataset_type in (fitting := formats_of(folder)):
        return ''
    if fitting:
        return f'. {folder} looks like a scene of another format; set dataset_type to {" or ".join(fitting)}'
    for other in (*sorted(path for path in folder.glob('*') if path.is_dir()), folder.absolute().parent):
        if fitting := formats_of(other):
            return f'. A scene is in {other}; set datadir to it and dataset_type to {" or ".join(fitting)}'
    pictures = (f'{place}*{ending}' for place in ('', 'images/', 'input/') for ending in ENDINGS + VIDEO_ENDINGS)
    filmed = folder.suffix.lower() in VIDEO_ENDINGS or any(has_file(folder, picture) for picture in pictures)
    if args.dataset_type != 'photos' and filmed:
        return f'. {folder} has photographs or a video without cameras; set dataset_type to photos'
    return ''


def formats_of(folder: Path) -> list[str]:
    """Names of the formats whose files a folder has."""
    return [name for name, entry in FORMATS.items() if any(has_file(folder, mark) for mark in entry.marks)]


def data_flags() -> frozenset[str]:
    """Names of flags that decide what a run trains on."""
    return frozenset({'dataset_type', 'datadir', 'white_bkgd', 'rays_through'}).union(
        flag.name for entry in FORMATS.values() for flag in entry.flags if flag.decides_data)


def learns_exposure(args: argparse.Namespace) -> bool:
    """Whether a gain is learned for each training image."""
    return args.exposure == 'on' or (args.exposure == 'auto' and FORMATS[args.dataset_type].exposure)


def refines_cameras(args: argparse.Namespace, space: Space, edited: bool) -> bool:
    """Whether cameras are refined while training. `edited`: `get_rays` was. UserError: it is asked for in vain."""
    against = ('normalised device coordinates are those of the given cameras; set no_ndc' if space.projective else
               f'pictures of field {args.field} take too long to be drawn while it trains; use field grid'
               if not FIELDS[args.field].quick else
               'rays come from an edited get_rays, which is asked only once' if edited else '')
    if against and args.refine_cameras == 'on':
        raise UserError(f'refine_cameras is on, but {against}, or leave it out')
    return not against and (args.refine_cameras == 'on' or (
        args.refine_cameras == 'auto' and FORMATS[args.dataset_type].refines))


def sees_beyond(args: argparse.Namespace) -> bool:
    """Whether photographs outside NDC have a space without bounds, as for each field that ignores the flag contract."""
    return not FIELDS[args.field].reads('contract') or args.contract == 'on' or (
        args.contract == 'auto' and FORMATS[args.dataset_type].contracts)


# Flags of some formats

HALF_RES = Flag('half_res', 'Blender images are loaded at half size: a quarter of the rays', decides_data=True)
TESTSKIP = Flag('testskip', 'every Nth validation and test image is kept (0 or 1: all)', whole(0), 8)
SHAPE = Flag('shape', 'name of the DeepVoxels scene', default='greek', choices=('armchair', 'cube', 'greek', 'vase'),
             decides_data=True)
FACTOR = Flag('factor', 'photographs are reduced to 1/N of their size. Default: 8 for llff, else 1', whole(1),
              8, decides_data=True)
LLFFHOLD = Flag('llffhold', 'every Nth photograph is a test image; 0: only the one nearest to the mean camera. A '
                'transforms.json can name test images itself', whole(0), 8, decides_data=True)
NO_NDC = Flag('no_ndc', 'photographs without normalised device coordinates, which are for forward-facing captures. '
              'transforms, colmap and photos use them for no others', decides_data=True)
SPHERIFY = Flag('spherify', 'LLFF capture all around an object', decides_data=True)
OUTSIDE_FILES = Flag('outside_files', 'files may be outside datadir, by their names or by links; set it only if you '
                     'know who made the scene')
ESTIMATE_ONLY = Flag('estimate_only', 'cameras of photographs are estimated, and nothing else is done')
FRAMES = Flag('frames', 'frames taken from the videos in datadir, shared by length. Default: 120, fewer if short',
              optional(whole(8, 2000)))
MESH_COORDINATES = Flag('mesh_coordinates', 'coordinates of the mesh. capture: those of the files of cameras, for use '
                        'with other results from them', default='scene', choices=('scene', 'capture'))
COLMAP_MARKS = tuple(f'{place}/{below}cameras.{ending}' for place in PLACES  # a folder of scenes is no scene
                     for below in (('',) if place == '.' else ('', '*/')) for ending in ('bin', 'txt'))
OPEN = (FACTOR, LLFFHOLD, NO_NDC, CONTRACT)
CAPTURE = (*OPEN, MESH_COORDINATES)
OF_CAPTURES = {'factor': 1, 'rays_through': 'center'}


# Entries


def _capture(args: argparse.Namespace, capture) -> Scene:
    """Scene of a capture. Without render_factor, its render path has at most LONGEST_PREVIEW pixels on a side."""
    scene = photographs_scene(capture, args.white_bkgd, not args.no_ndc, sees_beyond(args))
    if args.render_factor:
        return scene
    factor = math.ceil(int(scene.render_cameras.sizes.max()) / LONGEST_PREVIEW)
    return replace(scene, render_cameras=scene.render_cameras.scaled(factor))


def _transforms(args: argparse.Namespace, datadir: str | Path | None = None) -> Scene:
    return _capture(args, load_transforms(datadir or args.datadir, args.factor, args.llffhold, args.outside_files))


def _photos(args: argparse.Namespace) -> Scene:
    return _transforms(args, estimate_cameras(args.datadir, frames=args.frames))


FORMATS = {entry.name: entry for entry in (
    Format('llff', 'photographs and poses_bounds.npy', lambda args: llff_scene(
        args.datadir, args.white_bkgd, args.factor, args.spherify, args.llffhold, not args.no_ndc, sees_beyond(args)),
        ('poses_bounds.npy',), (*OPEN, SPHERIFY), contracts=False),
    Format('blender', "the NeRF paper's synthetic scenes", lambda args: blender_scene(
        args.datadir, args.white_bkgd, args.half_res, args.testskip), ('transforms_train.json',),
        (HALF_RES, TESTSKIP, MESH_COORDINATES)),
    Format('deepvoxels', 'synthetic scenes of the DeepVoxels paper', lambda args: deepvoxels_scene(
        args.datadir, args.white_bkgd, args.shape, args.testskip), ('train/*/intrinsics.txt',), (SHAPE, TESTSKIP)),
    Format('transforms', 'one transforms.json, as nerfstudio and instant-ngp write it', _transforms,
           ('transforms.json', *PHONE_MARKS), (*CAPTURE, OUTSIDE_FILES), OF_CAPTURES),
    Format('colmap', 'a model of COLMAP beside its images', lambda args: _capture(args, load_colmap(
        args.datadir, args.factor, args.llffhold, args.outside_files)), COLMAP_MARKS, (*CAPTURE, OUTSIDE_FILES),
           OF_CAPTURES),
    Format('photos', 'photographs, or frames of videos; their cameras are estimated once and kept as transforms.json',
           _photos, (), (*CAPTURE, OUTSIDE_FILES, ESTIMATE_ONLY, FRAMES), OF_CAPTURES, exposure=True,
           refines=True))}
