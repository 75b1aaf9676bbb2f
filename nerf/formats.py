"""Data formats: one entry each, with its loader, its flags and its defaults. A further format is an entry and a file.

Flags, their help, warnings about flags without effect, and `load_scene` follow from the entries.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from load_photos import load_colmap, load_transforms
from nerf.captures.estimation import estimate_cameras
from nerf.fields.kinds import CONTRACT, FIELDS
from nerf.flag_types import SWITCH, Flag, whole
from nerf.runtime.errors import UserError
from nerf.scene import Scene, blender_scene, deepvoxels_scene, llff_scene, photographs_scene

LONGEST_PREVIEW = 640  # pixels; larger videos of photographs would take longer than a grid's training
RAYS_THROUGH = {'corner': 0.0, 'center': 0.5}  # place of a ray in its pixel, as a share of the pixel's sides
SSIM_WINDOW = 11  # pixels of height and width


@dataclass(frozen=True)
class Format:
    """Entry of one data format.

    Args:
        name: value of the flag dataset_type.
        help: the format in words.
        load: reads the scene that the flags name; raises UserError where it is missing or broken.
        flags: flags that only some formats read.
        defaults: values of flags that are not given, where they are not the flags' own.
        contracts: contract = auto lets the paper's networks see space without bounds.
        exposure: exposure = auto learns a gain for each image.
    """

    name: str
    help: str
    load: Callable[[argparse.Namespace], Scene]
    flags: tuple[Flag, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    contracts: bool = True
    exposure: bool = False


FORMATS: dict[str, Format] = {}


def register(entry: Format) -> None:
    """Adds a format to the registry."""
    FORMATS[entry.name] = entry


def load_scene(args: argparse.Namespace) -> Scene:
    """Scene that the flags name, with what all formats share: the place of rays in pixels, exposure and previews.

    Raises:
        UserError: the scene is missing or broken, or its images are too small to be measured.
    """
    scene = FORMATS[args.dataset_type].load(args)
    scene = replace(scene.rays_within(RAYS_THROUGH[args.rays_through]), exposure=learns_exposure(args))
    height, width = scene.images.sizes.min(0)
    least = 2 * SSIM_WINDOW if scene.exposure else SSIM_WINDOW  # of the width: with exposure half of it is measured
    if height < SSIM_WINDOW or width < least:
        raise UserError(f"{args.datadir}: images are {width}x{height} pixels; SSIM's window needs at least "
                        f'{least}x{SSIM_WINDOW}')
    scene.render_cameras.scaled(args.render_factor)  # an error now rather than at the first video
    return scene


def data_flags() -> frozenset[str]:
    """Names of the flags that decide what a run trains on."""
    return frozenset({'dataset_type', 'datadir', 'white_bkgd', 'rays_through'}).union(
        flag.name for entry in FORMATS.values() for flag in entry.flags if flag.decides_data)


def learns_exposure(args: argparse.Namespace) -> bool:
    """Whether each training image gets a gain of its own."""
    return args.exposure == 'on' or (args.exposure == 'auto' and FORMATS[args.dataset_type].exposure)


def sees_beyond(args: argparse.Namespace) -> bool:
    """Whether a field sees the whole space of photographs that are not in NDC, contracted. Kinds of field without the
    flag contract always do."""
    return not FIELDS[args.field].reads('contract') or args.contract == 'on' or (
        args.contract == 'auto' and FORMATS[args.dataset_type].contracts)


# Flags that only some formats read

HALF_RES = Flag('half_res', 'Blender images are loaded at half size: a quarter of the rays', SWITCH, decides_data=True)
TESTSKIP = Flag('testskip', 'every Nth validation and test image is kept (0 or 1: all)',
                {'type': whole(0), 'default': 8})
SHAPE = Flag('shape', 'name of the DeepVoxels scene',
             {'choices': ('armchair', 'cube', 'greek', 'vase'), 'default': 'greek'}, decides_data=True)
FACTOR = Flag('factor', 'photographs are reduced to 1/N of their size. Default: 8 for llff, else 1',
              {'type': whole(1), 'default': 8}, decides_data=True)
LLFFHOLD = Flag('llffhold', 'every Nth photograph is a test image; 0: only the one nearest to the mean camera. A '
                'transforms.json can name test images itself', {'type': whole(0), 'default': 8}, decides_data=True)
NO_NDC = Flag('no_ndc', 'photographs without normalised device coordinates, which are for forward-facing captures. '
              'transforms, colmap and photos use them for no others', SWITCH, decides_data=True)
SPHERIFY = Flag('spherify', 'LLFF capture all around an object', SWITCH, decides_data=True)
OUTSIDE_FILES = Flag('outside_files', 'transforms.json may name files outside datadir; set it only if you know who '
                     'wrote the file', SWITCH)
ESTIMATE_ONLY = Flag('estimate_only', 'cameras of photographs are estimated, and nothing else is done', SWITCH)
MESH_COORDINATES = Flag('mesh_coordinates', 'coordinates of the mesh. capture: those of transforms.json or of the '
                        'COLMAP model, for use with other results from them',
                        {'choices': ('scene', 'capture'), 'default': 'scene'})
OPEN = (FACTOR, LLFFHOLD, NO_NDC, CONTRACT)
CAPTURE = (*OPEN, MESH_COORDINATES)
OF_CAPTURES = {'factor': 1, 'rays_through': 'center'}


# Entries


def _blender(args: argparse.Namespace) -> Scene:
    return blender_scene(args.datadir, args.white_bkgd, args.half_res, args.testskip)


def _llff(args: argparse.Namespace) -> Scene:
    return llff_scene(args.datadir, args.white_bkgd, args.factor, args.spherify, args.llffhold, not args.no_ndc,
                      sees_beyond(args))


def _deepvoxels(args: argparse.Namespace) -> Scene:
    return deepvoxels_scene(args.datadir, args.white_bkgd, args.shape, args.testskip)


def _transforms(args: argparse.Namespace) -> Scene:
    return _capture(args, load_transforms(args.datadir, args.factor, args.llffhold, args.outside_files))


def _colmap(args: argparse.Namespace) -> Scene:
    return _capture(args, load_colmap(args.datadir, args.factor, args.llffhold))


def _photos(args: argparse.Namespace) -> Scene:
    estimate_cameras(args.datadir)
    return _transforms(args)


def _capture(args: argparse.Namespace, capture) -> Scene:
    """Scene of a capture. Without render_factor, its render path has at most LONGEST_PREVIEW pixels on a side."""
    scene = photographs_scene(capture, args.white_bkgd, not args.no_ndc, sees_beyond(args))
    if args.render_factor:
        return scene
    factor = math.ceil(int(scene.render_cameras.sizes.max()) / LONGEST_PREVIEW)
    return replace(scene, render_cameras=scene.render_cameras.scaled(factor))


register(Format('llff', 'photographs and poses_bounds.npy', _llff, (*OPEN, SPHERIFY), contracts=False))
register(Format('blender', "the NeRF paper's synthetic scenes", _blender, (HALF_RES, TESTSKIP)))
register(Format('deepvoxels', 'synthetic scenes of the DeepVoxels paper', _deepvoxels, (SHAPE, TESTSKIP)))
register(Format('transforms', 'one transforms.json, as nerfstudio and instant-ngp write it', _transforms,
                (*CAPTURE, OUTSIDE_FILES), OF_CAPTURES))
register(Format('colmap', 'a model of COLMAP beside its images', _colmap, CAPTURE, OF_CAPTURES))
register(Format('photos', 'a folder of photographs; their cameras are estimated once and kept as transforms.json',
                _photos, (*CAPTURE, OUTSIDE_FILES, ESTIMATE_ONLY), OF_CAPTURES, exposure=True))
