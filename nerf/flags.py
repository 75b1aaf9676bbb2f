"""Every flag: names, types, bounds, defaults and help in one place, and the checks that make wrong ones one line."""

from __future__ import annotations

import argparse
import difflib
import functools
import os
import re
import sys
from pathlib import Path

import configargparse
import numpy as np
import torch

from nerf.runtime.errors import UserError


class FlagParser(configargparse.ArgumentParser):
    """A parser whose errors are one line, without the page of usage before it; exit code 2."""

    def error(self, message: str):
        self.exit(2, f'{self.prog}: error: {UserError(message)}\n')


class ConfigText(configargparse.DefaultConfigFileParser):
    """A config's keys and values; no flag takes a list, so what looks like one is text. Configs do not nest."""

    def __init__(self):
        super().__init__()
        self.values = {}  # of the config that was read

    def parse(self, stream):
        values = {key: str(value) for key, value in super().parse(stream).items()}
        if (other := values.pop('config', None)) is not None:
            if os.path.abspath(other) == os.path.abspath(stream.name):
                raise UserError(f'the config file {stream.name} names itself as its config; remove that line')
            print(f'warning: {stream.name}: its line "config = {other}" has no effect, as configs do not nest; copy '
                  'the lines that it is to have', file=sys.stderr)
        self.values = values
        return values


def whole(low: int, high: int = 2 ** 31 - 1):
    """A flag's type: whole numbers from `low` to `high`."""
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from {low} to {high}')
        return value
    return convert


def number(low: float = 0.0, high: float = float('inf'), above: bool = False):
    """A flag's type: finite numbers from `low` (`above`: not `low` itself) to `high`."""
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float('nan')
        if not low <= value <= high or (above and value == low) or abs(value) == float('inf'):
            bounds = f"{'above' if above else 'of at least'} {low:g}" + (f' and at most {high:g}' * (high < 1e300))
            raise argparse.ArgumentTypeError(f'{text!r} is not a number {bounds}')
        return value
    return convert


def corners(text: str) -> str:
    """A flag's type: six numbers, the lowest and the highest corner of a box; `box_of` reads what it gives."""
    parts = text.replace(',', ' ').split()
    try:
        low, high = np.array(parts, np.float64).reshape(2, 3)
        good = bool(np.isfinite([low, high]).all() and (low < high).all())
    except ValueError:
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f'{text!r} is no box: "X Y Z X Y Z", the lowest corner and the highest one')
    return ' '.join(parts)


def box_of(corners: str) -> np.ndarray:
    """The corners [2, 3] of a flag's box."""
    return np.array(corners.split(), np.float64).reshape(2, 3)


def optional(convert):
    """A flag's type: what `convert` takes, or None, args.txt's word for a flag that was not given."""
    return lambda text: None if text == 'None' else convert(text)


def matching(pattern: str, allowed: str, optional: bool = False):
    """A flag's type: text of a pattern, which `allowed` puts into words; where optional, None (args.txt's word for a
    flag that was not given) or nothing stands for no value."""
    def convert(text: str) -> str | None:
        if optional and text in ('', 'None'):
            return None
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f'{text!r} is not {allowed}')
        return text
    return convert


PATH = r'[^\[\r\n\0][^\r\n\0]*', 'a path on one line that does not begin with "[", which a config reads as a list'


RAYS_THROUGH = {'corner': 0.0, 'center': 0.5}  # the share of a pixel's sides
PHOTOGRAPHS = ('transforms', 'colmap', 'photos')  # dataset types whose cameras have their own lenses and sizes
GRID_DEFAULTS = {'N_iters': 4500, 'N_rand': 9000, 'lrate': 5e-3, 'i_print': 250, 'i_img': 1000, 'i_weights': 2500,
                 'supersample': 2}


def config_parser() -> FlagParser:
    """Every flag, with its type, bounds, default and one line of help."""
    parser = FlagParser(prog='run_nerf.py', description='Train, render or mesh a neural radiance field.',
                        allow_abbrev=False, config_file_open_func=functools.partial(open, encoding='utf-8-sig'),
                        config_file_parser_class=ConfigText,
                        formatter_class=configargparse.ArgumentDefaultsHelpFormatter)

    group = parser.add_argument_group('run')
    flag = group.add_argument
    flag('--config', is_config_file=True, help='flat .txt file of "key = value" lines; the command line wins over it')
    flag('--expname', type=matching(r'(?!\[|\.+$)[^/\\\r\n\0]+', 'a plain folder name', optional=True),
         help="folder under basedir; the config file's name where it is not given")
    flag('--basedir', type=matching(*PATH), default='./logs/', help='where runs are kept')
    flag('--N_iters', type=whole(1), default=200000, help='steps to train')
    flag('--seed', type=whole(0), default=0, help='every random draw follows from it')
    flag('--device', type=matching(r'auto|cpu|cuda(:[0-9]{1,4})?', 'auto, cpu, cuda or cuda:N'), default='auto',
         help='auto (CUDA where there is one, else CPU), cpu, cuda or cuda:N')
    flag('--precision', choices=('auto', 'fp32', 'bf16', 'fp16'), default='auto',
         help='of the MLP: auto is bf16 where the hardware multiplies it natively, else fp32, whose products are never '
              'TF32; fp16 is for CUDA')
    flag('--no_reload', action='store_true', help='start afresh although a checkpoint is there (it is set aside)')
    flag('--ft_path', type=matching(*PATH, optional=True), help='weights to start from, at step 0, where the run has '
         'no checkpoint yet: a .tar of ours or nerf-pytorch, or a Keras model_NNNNNN.npy')

    group = parser.add_argument_group('scene')
    flag = group.add_argument
    flag('--datadir', type=matching(*PATH), default='./data/llff/fern', help='folder of the scene')
    flag('--dataset_type', choices=('llff', 'blender', 'deepvoxels', *PHOTOGRAPHS), default='llff',
         help='format of the scene: transforms is one transforms.json, as nerfstudio and instant-ngp write it; colmap '
              'is a model of COLMAP beside its images; photos is a folder of photographs, whose cameras are estimated '
              'once and kept as transforms.json')
    flag('--estimate_only', action='store_true', help='photos: estimate the cameras and stop')
    flag('--outside_files', action='store_true', help='transforms.json may name files outside datadir; set it only if '
         'you know who wrote it')
    flag('--testskip', type=whole(0), default=8, help='keep every Nth validation and test image (0 or 1: all)')
    flag('--white_bkgd', action='store_true', help='composite on white, as is usual for Blender scenes')
    flag('--half_res', action='store_true', help='load Blender images at half size: a quarter of the rays')
    flag('--shape', choices=('armchair', 'cube', 'greek', 'vase'), default='greek', help='DeepVoxels scene')
    flag('--factor', type=whole(1), default=8, help='photographs (llff, transforms, colmap, photos) are reduced '
         'to 1/N of their size. For all of these but llff the default is 1')
    flag('--no_ndc', action='store_true', help='photographs without normalised device coordinates, which are for '
         'forward-facing captures; transforms, colmap and photos have them in no others')
    flag('--contract', choices=('auto', 'on', 'off'), default='auto',
         help='where a scene has no bounds (photographs that are not in NDC), the mlp sees space drawn '
              'together as in mip-NeRF 360, and samples reach to infinity, evenly in disparity. auto: off for llff, as '
              'in nerf-pytorch, else on. The grid does so in any case')
    flag('--lindisp', action='store_true', help='sample evenly in disparity (1/depth) instead of depth')
    flag('--spherify', action='store_true', help='LLFF capture all around an object')
    flag('--llffhold', type=whole(0), default=8,
         help='every Nth photograph (llff, transforms, colmap, photos) is a test image; 0: only the one nearest to the '
              'mean camera. A transforms.json can name them itself')
    flag('--exposure', choices=('auto', 'on', 'off'), default='auto',
         help='on: photographs differ in brightness. A gain per image and colour channel is learned, and test views '
              'are measured on their right half, after the gain was fitted on the left. auto: on for photos')
    flag('--rays_through', choices=tuple(RAYS_THROUGH), default='corner',
         help="where in its pixel a ray goes: the pictures of Blender's scenes and photographs show the center; "
              "nerf-pytorch's rays go through the upper left corner, and so do the mlp's. For the grid, and for "
              'transforms, colmap and photos, the default is center, whose pictures are sharper')

    group = parser.add_argument_group('network')
    flag = group.add_argument
    flag('--field', choices=('mlp', 'grid'), default='mlp',
         help="what is trained: mlp, the paper's networks; or grid, a sparse voxel grid that trains in minutes on a "
              'CPU. For the grid some flags have other defaults, and a config of the mlp does not change them: '
              + ', '.join(f'{name} {value}' for name, value in GRID_DEFAULTS.items())
              + '; i_testset and i_video N_iters. It has no use for no_batching and ema_decay, nor for flags '
              'about networks, samples and precrop')
    flag('--netdepth', type=whole(1), default=8, help='layers of the coarse MLP')
    flag('--netwidth', type=whole(2), default=256, help='channels per layer of the coarse MLP')
    flag('--netdepth_fine', type=whole(1), default=8, help='layers of the fine MLP')
    flag('--netwidth_fine', type=whole(2), default=256, help='channels per layer of the fine MLP')
    flag('--use_viewdirs', action='store_true', help='colour depends on the view direction: highlights')
    flag('--i_embed', type=int, choices=(0, -1), default=0, help='0: positional encoding, -1: none')
    flag('--multires', type=whole(0, 32), default=10, help='frequencies (powers of two) for positions: detail')
    flag('--multires_views', type=whole(0, 32), default=4, help='frequencies for directions: sharpness of highlights')

    group = parser.add_argument_group('training')
    flag = group.add_argument
    flag('--N_rand', type=whole(1), default=4096, help='rays per step')
    flag('--lrate', type=number(0.0, 1.0, above=True), default=5e-4, help="Adam's initial rate")
    flag('--lrate_decay', type=whole(1), default=250, help='thousand steps in which the rate falls to a tenth')
    flag('--ema_decay', type=number(0.0, 0.999999), default=0.0,
         help='decay per step of an exponential moving average of the weights, which test sets, previews and meshes '
              'then use; 0: no average')
    flag('--no_batching', action='store_true', help="a step's rays from one image instead of from all")
    flag('--precrop_iters', type=whole(0), default=0, help="steps that sample only an image's centre (no_batching)")
    flag('--precrop_frac', type=number(0.0, 1.0, above=True), default=0.5, help='how much of each side that centre is')
    flag('--N_samples', type=whole(3), default=64, help='coarse samples per ray')
    flag('--N_importance', type=whole(0), default=0, help='further samples for the fine network; 0: no fine network')
    flag('--perturb', type=float, choices=(0.0, 1.0), default=1.0, help='1: jitter the samples in training, 0: do not')
    flag('--occupancy', action='store_true',
         help='after 500 steps, sample only cells in which the network has density: it is another algorithm, with more '
              'rays per second. On CUDA its steps are not captured in a graph')
    flag('--raw_noise_std', type=number(), default=0.0, help='noise added to raw density in training: fewer floaters')
    flag('--chunk', type=whole(1), default=32768, help='most rays rendered at once; lower it if memory runs out')
    flag('--netchunk', type=whole(1), default=65536, help='most points through a network at once')

    group = parser.add_argument_group('rendering and mesh')
    flag = group.add_argument
    flag('--render_only', action='store_true', help='no training: render the path from the newest checkpoint')
    flag('--render_test', action='store_true', help='with render_only: the test views instead of the path')
    flag('--render_path', type=matching(*PATH, optional=True),
         help="with render_only: a camera path that the viewer saved, camera_path.json, instead of the scene's path")
    flag('--render_factor', type=whole(0), default=0,
         help='previews and videos at 1/N of the size; test sets in training stay full size, as they are measured. 0: '
              'full size, but the render path of transforms, colmap and photos has at most 640 pixels on a side')
    flag('--supersample', type=whole(1, 8), default=1,
         help='smooth edges in pictures: where colours change, a pixel shows the mean of N x N rays. 1: one ray for '
              'each, as in the paper; 2 takes about twice as long')
    flag('--mesh_only', action='store_true', help='no training: extract a mesh from the newest checkpoint')
    flag('--mesh_grid_size', type=whole(2), default=256, help='grid points along the longest side of the box')
    flag('--mesh_method', choices=('auto', 'fused', 'density'), default='auto',
         help='fused: the surface that training cameras see, from their depths; density: that of one density; auto: '
              'density where mesh_threshold is given, else fused')
    flag('--mesh_threshold', type=optional(number(above=True)), default=None,
         help='density at the surface, in 1/scene unit (in NDC: 1/NDC unit); without it the one at which half of the '
              'light of the training rays has stopped')
    flag('--mesh_faces', type=whole(0), default=0,
         help='most faces of the mesh; 0: as few as leave it within a quarter of a grid step of the surface')
    flag('--mesh_texture', type=whole(0, 16384), default=0,
         help='texels along a side of a texture, 2048 say, for a .glb or .obj; 0: the vertices have colours')
    flag('--mesh_file', type=matching(r'[^\[\r\n\0][^\r\n\0]*\.(?i:ply|obj|glb)', 'a name ending in .ply, .obj or .glb',
                                      True),
         help="mesh_NNNNNN.ply, with a texture .glb, in the run's folder where it is not given")
    flag('--mesh_bounds', type=optional(corners), default=None,
         help="lowest and highest corner of a box in the scene's coordinates, as '-1 -1 -1 1 1 1', to which the mesh "
              'is cut; without it the box is what the training cameras see')
    flag('--mesh_coordinates', choices=('scene', 'capture'), default='scene',
         help='capture: those of transforms.json or the COLMAP model, where the mesh fits to other results from them')

    group = parser.add_argument_group('viewer')
    flag = group.add_argument
    flag('--view', action='store_true',
         help='show the scene in the browser while it trains, for a twentieth of the time, and after that until '
              'Ctrl-C; with render_only: show the newest checkpoint, without training or writing pictures')
    flag('--view_host', type=matching(r'[0-9A-Za-z.:_-]+', 'an address'), default='127.0.0.1',
         help='address that the viewer listens at: 127.0.0.1 for this machine alone, 0.0.0.0 for everybody who can '
              'reach it; there is no password')
    flag('--view_port', type=whole(0, 65535), default=8080,
         help='port of the viewer, or the next free one; 0: any free one')

    group = parser.add_argument_group('logging')
    flag = group.add_argument
    flag('--i_print', type=whole(1), default=100, help='steps between console and metric lines')
    flag('--i_img', type=whole(1), default=500, help='steps between TensorBoard images')
    flag('--i_weights', type=whole(1), default=10000, help='steps between checkpoints')
    flag('--i_testset', type=whole(1), default=50000, help='steps between renders of the test set')
    flag('--i_video', type=whole(1), default=50000, help='steps between videos of the render path')
    return parser


def parse_flags(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags of the command line and the config file, checked; exit code 2 and one line where they make no sense."""
    parser = config_parser()
    try:
        args, unknown = parser.parse_known_args(argv)
    except (UnicodeDecodeError, configargparse.ConfigFileParserException) as error:
        parser.error(f'the config file is not a text file of "key = value" lines ({error})')
    except UserError as error:
        parser.error(str(error))
    if unknown:
        name = unknown[0].split('=')[0].lstrip('-')
        near = difflib.get_close_matches(name, vars(args), 1, 0.5)
        hint = f'did you mean {near[0]}?' if near else 'run_nerf.py --help lists them all'
        parser.error(f'unknown flag or config key {unknown[0]!r}; {hint}')
    set_other_defaults(args, parser, sys.argv[1:] if argv is None else argv)
    args.expname = args.expname or (args.config and Path(args.config).stem)
    if args.estimate_only and args.dataset_type != 'photos':
        parser.error(f'estimate_only is set, but dataset_type is {args.dataset_type}; cameras are estimated for photos')
    if not args.expname and not args.estimate_only:
        parser.error('expname is not given and there is no config file to take it from; add --expname NAME')
    if args.render_only and args.mesh_only:
        parser.error('render_only and mesh_only are both set; choose one')
    if args.mesh_texture and (args.mesh_file or '').lower().endswith('.ply'):
        parser.error(f'mesh_file is {args.mesh_file}, which can have no texture; name a .glb or .obj, or leave '
                     'mesh_texture out')
    if args.view and args.mesh_only:
        parser.error('view and mesh_only are both set; choose one')
    if args.render_path and args.render_test:
        parser.error('render_path and render_test are both set; choose one')
    if args.device.startswith('cuda') and int(args.device.partition(':')[2] or 0) >= torch.cuda.device_count():
        parser.error(f'device is {args.device} but PyTorch finds {torch.cuda.device_count()} CUDA devices here; '
                     'allowed are auto, cpu and those')
    if args.precision == 'fp16' and (args.device == 'cpu' or not torch.cuda.is_available()):
        parser.error('precision is fp16, which needs CUDA; allowed on a CPU are auto, fp32 and bf16')
    for line in idle_flags(args, parser):
        print(f'warning: {line}', file=sys.stderr)
    return args


def set_other_defaults(args: argparse.Namespace, parser: FlagParser, argv: list[str]) -> None:
    """Sets what is not given to the defaults of the dataset type and the field, where they have others.

    For field grid a config of another field gives nothing but what is about the pictures.
    """
    command = {word.partition('=')[0].removeprefix('--') for word in argv if word.startswith('--')}
    config = parser._config_file_parser.values  # get_source_to_settings_dict leaves out what argv has too
    given = command | {key.removeprefix('--') for key in config}
    grid, photographs = args.field == 'grid', args.dataset_type in PHOTOGRAPHS
    if photographs and 'factor' not in given:
        args.factor = 1
    if (grid or photographs) and 'rays_through' not in given:
        args.rays_through = 'center'
    if not grid:
        return
    if config.get('field') != 'grid':
        given = command
    for name, value in GRID_DEFAULTS.items():
        if name not in given:
            setattr(args, name, value)
    for name in {'i_testset', 'i_video'} - given:
        setattr(args, name, args.N_iters)


def uses_ndc(args: argparse.Namespace) -> bool:
    """Whether rays are in normalised device coordinates."""
    return args.dataset_type == 'llff' and not args.no_ndc


def sees_beyond(args: argparse.Namespace) -> bool:
    """Whether a field sees the whole space of photographs that are not in NDC, contracted."""
    return args.field == 'grid' or args.contract == 'on' or (args.contract == 'auto' and args.dataset_type != 'llff')


def learns_exposure(args: argparse.Namespace) -> bool:
    """Whether each training image gets a gain of its own."""
    return args.exposure == 'on' or (args.exposure == 'auto' and args.dataset_type == 'photos')


def idle_flags(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """A line for each flag that is set but has no effect in this run."""
    blender, llff = args.dataset_type == 'blender', args.dataset_type == 'llff'
    photographs = llff or args.dataset_type in PHOTOGRAPHS
    idle = {  # flags: (have no effect, because)
        'precrop_iters precrop_frac': (not args.no_batching, 'without no_batching'),
        'half_res': (not blender, 'unless dataset_type is blender'),
        'factor llffhold': (not photographs, 'unless dataset_type is llff, transforms, colmap or photos'),
        'no_ndc': (not photographs, 'unless dataset_type is llff, transforms, colmap or photos'),
        'spherify': (not llff, 'unless dataset_type is llff'),
        'outside_files': (args.dataset_type not in ('transforms', 'photos'),
                          'unless dataset_type is transforms or photos'),
        'shape': (args.dataset_type != 'deepvoxels', 'unless dataset_type is deepvoxels'),
        'testskip': (photographs, 'where dataset_type is llff, transforms, colmap or photos'),
        'contract': (args.field == 'grid' or uses_ndc(args) or args.dataset_type in ('blender', 'deepvoxels'),
                     'where field is grid or in a scene with bounds'),
        'occupancy': (args.field == 'grid' or ((args.lindisp or args.contract == 'on') and not uses_ndc(args)
                                               and args.dataset_type not in PHOTOGRAPHS),
                      'where field is grid, with lindisp or without bounds'),
        'ema_decay': (args.field == 'grid', 'where field is grid: its falling learning rate averages enough'),
        'lindisp': (uses_ndc(args), 'in normalised device coordinates; set no_ndc'),
        'netdepth_fine netwidth_fine': (args.N_importance == 0, 'where N_importance is 0'),
        'multires': (args.i_embed == -1, 'where i_embed is -1'),
        'multires_views': (not args.use_viewdirs or args.i_embed == -1, 'without use_viewdirs or where i_embed is -1'),
        'render_test render_path': (not args.render_only or args.view, 'without render_only, or with view'),
        'view_host view_port': (not args.view, 'without view'),
        'mesh_grid_size mesh_method mesh_threshold mesh_faces mesh_texture mesh_file mesh_bounds': (
            not args.mesh_only, 'without mesh_only'),
        'mesh_coordinates': (not args.mesh_only or args.dataset_type not in PHOTOGRAPHS,
                             'without mesh_only, or unless dataset_type is transforms or colmap'),
    }
    return [f'{name} = {getattr(args, name)} has no effect {because}'
            for names, (without_effect, because) in idle.items() if without_effect
            for name in names.split() if getattr(args, name) != parser.get_default(name)]


def config_text(args: argparse.Namespace) -> str:
    """Every flag's final value as the lines of a config file that gives the same flags again.

    The config that they come from is a comment there: configs do not nest.
    """
    def quoted(value) -> str:
        return f'"{value}"' if isinstance(value, str) and re.search('[#;\'"]', value) else str(value)
    return ''.join(f'{"# " * (key == "config")}{key} = {quoted(value)}\n' for key, value in sorted(vars(args).items()))
