"""Flags of the program: the parser of all flags, defaults by data format and kind of field, and checks."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import configargparse
import torch

from nerf.config_file import ConfigText, open_config
from nerf.fields.kinds import FIELDS
from nerf.flag_types import Flag, FlagParser, corners, interval, matching, number, optional, path, whole
from nerf.formats import FORMATS, RAYS_THROUGH
from nerf.runtime.errors import UserError


def in_words(names: Iterable[str], last: str = 'and') -> str:
    """Names as a phrase: 'a, b and c'."""
    *most, end = names
    return f'{", ".join(most)} {last} {end}' if most else end


def described(registry: dict[str, Any]) -> str:
    """Entries of a registry for the help of a flag, with their own defaults of flags."""
    def one(name: str, entry) -> str:
        defaults = [f'{key} {value}' for key, value in entry.defaults.items()]
        defaults += [f'{key} N_iters' for key in getattr(entry, 'follows_run', ())]
        return f'{name}: {entry.help}' + (f' (defaults: {", ".join(defaults)})' if defaults else '')
    return '; '.join(one(*item) for item in registry.items())


GROUPS = {  # flags that every run reads, by the title of their group
    'run': (
        Flag('expname', 'folder under basedir. Default: the name of the config file',
             matching(r'(?!\[|\.+$)[^/\\\r\n\0]+', 'a plain folder name; for folders above it use basedir, as in '
                      'basedir = ./logs/blender and expname = lego', optional=True)),
        Flag('basedir', 'folder of all runs', path, './logs/'),
        Flag('N_iters', 'steps to train', whole(1), 200000),
        Flag('seed', 'seed of every random draw', whole(0), 0),
        Flag('device', 'auto (CUDA if there is a GPU, else CPU), cpu, cuda or cuda:N',
             matching(r'auto|cpu|cuda(:[0-9]{1,4})?', 'auto, cpu, cuda or cuda:N'), 'auto'),
        Flag('precision', 'precision of the MLP. auto: bf16 if the hardware multiplies it natively, else fp32; fp32 is '
             'never TF32; fp16 is for CUDA', default='auto', choices=('auto', 'fp32', 'bf16', 'fp16')),
        Flag('no_reload', 'training starts afresh; an earlier run is set aside'),
        Flag('ft_path', 'initial weights of a run without a checkpoint: a .tar of ours or nerf-pytorch, or a Keras '
             'model_NNNNNN.npy. Training starts at step 0', optional(path))),
    'scene': (
        Flag('datadir', 'folder of the scene or, for photos, a video', path, './data/llff/fern'),
        Flag('white_bkgd', 'background is white, as is usual for Blender scenes'),
        Flag('exposure', 'brightness of photographs. on: a gain per image and colour channel is learned, and test '
             'views are measured on their right half, after the gain was fitted on the left; auto: on for '
             f'{in_words(name for name, entry in FORMATS.items() if entry.exposure)}', default='auto',
             choices=('auto', 'on', 'off')),
        Flag('refine_cameras', 'poses and focal lengths are aligned with the photographs while the grid trains; test '
             'views are measured as they are and aligned. Not in NDC. auto: on for '
             f'{in_words(name for name, entry in FORMATS.items() if entry.refines)}', default='auto',
             choices=('auto', 'on', 'off')),
        Flag('rays_through', 'place of a ray in its pixel. corner: the upper left one, as in nerf-pytorch; center: as '
             'pictures of Blender scenes and photographs show them, sharper. Default: center for the grid, and for '
             'transforms, colmap and photos', default='corner', choices=tuple(RAYS_THROUGH))),
    'field': (),
    'training': (
        Flag('N_rand', 'rays per step', whole(1), 4096),
        Flag('lrate', 'initial learning rate of Adam', number(0.0, 1.0, above=True), 5e-4),
        Flag('lrate_decay', 'thousand steps in which the learning rate falls to a tenth. None: to a twentieth over the '
             'run, for the grid', optional(whole(1)), 250),
        Flag('chunk', 'most rays rendered at once; lower it if memory runs out', whole(1), 32768)),
    'rendering': (
        Flag('render_only', 'no training: the path is rendered from the newest checkpoint'),
        Flag('render_test', 'with render_only: the test views instead of the path'),
        Flag('render_path', "with render_only: camera_path.json, saved by the viewer, instead of the scene's path",
             optional(path)),
        Flag('render_factor', 'previews and videos at 1/N of the size; test sets in training stay at full size. 0: '
             'full size, but the render path of captures has at most 640 pixels on a side', whole(0), 0),
        Flag('supersample', 'rays along the side of a pixel at edges of pictures. 1: one ray per pixel, as in the '
             'paper; 2: smooth edges, in about twice the time', whole(1, 8), 1)),
    'mesh': (
        Flag('mesh_only', 'no training: a mesh is extracted from the newest checkpoint'),
        Flag('mesh_grid_size', 'grid points along the longest side of the box', whole(2), 256),
        Flag('mesh_method', 'surface of the mesh. fused: seen by training cameras, from their depths; density: of one '
             'density; auto: density if mesh_threshold is given, else fused', default='auto',
             choices=('auto', 'fused', 'density')),
        Flag('mesh_threshold', 'density at the surface, in 1/scene unit (in NDC: 1/NDC unit). Default: the density at '
             'which half of the light of the training rays has stopped', optional(number(above=True))),
        Flag('mesh_faces', 'most faces of the mesh; 0: as few as leave it within a quarter of a grid step of the '
             'surface', whole(0), 0),
        Flag('mesh_texture', 'texels along a side of a texture, 2048 for example, in a .glb or .obj; 0: the vertices '
             'have colours', whole(0, 16384), 0),
        Flag('mesh_file', "file of the mesh. Default: mesh_NNNNNN.ply, with a texture .glb, in the run's folder",
             matching(r'[^\[\r\n\0][^\r\n\0]*\.(?i:ply|obj|glb)', 'a name ending in .ply, .obj or .glb', True)),
        Flag('mesh_bounds', "lowest and highest corner of a box in the scene's coordinates, '-1 -1 -1 1 1 1' for "
             'example, to which the mesh is cut. Default: the box that the training cameras see or, without bounds, '
             'that at least half of them look at', optional(corners))),
    'viewer': (
        Flag('view', 'scene in the browser, while it trains and after that until Ctrl-C. Share of the time for drawing '
             'while training: 1/40; handling messages costs extra. With render_only: the newest checkpoint, without '
             'training or pictures'),
        Flag('view_host', 'address of the viewer: 127.0.0.1 for this machine alone, 0.0.0.0 for everybody who can '
             'reach it; there is no password', matching(r'[0-9A-Za-z.:_-]+', 'an address'), '127.0.0.1'),
        Flag('view_port', 'port of the viewer, or the next free one; 0: any free one', whole(0, 65535), 8080),
        Flag('view_origin', "start of the page's address, https://NAME[:PORT], where a tunnel or proxy gives the "
             'viewer a name of its own; pages of other names are refused',
             matching(r'https?://[^\s/]+/?', 'the start of an address, https://NAME[:PORT]', optional=True))),
    'logging': (
        Flag('i_print', 'steps between console and metric lines. 0, for each interval: never, but for the last step',
             interval, 100),
        Flag('i_img', 'steps between TensorBoard images', interval, 500),
        Flag('i_weights', 'steps between checkpoints', interval, 10000),
        Flag('i_testset', 'steps between renders of the test set', interval, 50000),
        Flag('i_video', 'steps between videos of the render path', interval, 50000)),
}
CHOICES = {  # flags that choose an entry of a registry, by the title of their group
    'scene': ('dataset_type', 'llff', 'format of the scene', FORMATS),
    'field': ('field', 'mlp', 'field to train', FIELDS),
}


def flags_of(registry: dict[str, Any]) -> dict[Flag, list[str]]:
    """Flags of the entries of a registry, each with the names of the entries that read it."""
    read_by = {}
    for name, entry in registry.items():
        for flag in entry.flags:
            read_by.setdefault(flag, []).append(name)
    return read_by


def config_parser() -> FlagParser:
    """Parser of every flag, with its type, bounds, default and one line of help."""
    parser = FlagParser(prog='run_nerf.py', description='Train, render or mesh a neural radiance field.',
                        allow_abbrev=False, config_file_open_func=open_config,
                        config_file_parser_class=ConfigText,
                        formatter_class=configargparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--config', is_config_file=True,
                        help='flat .txt file of "key = value" lines; the command line wins over it')
    known = parser.config_text.flags
    for title, flags in GROUPS.items():
        group, readers = parser.add_argument_group(title), {}
        if title in CHOICES:
            choice, default, what, registry = CHOICES[title]
            flags = (Flag(choice, f'{what}. {described(registry)}', None, default, tuple(registry)), *flags)
            readers = flags_of(registry)
        for flag in (*flags, *readers):
            if flag.name not in known:
                flag.add_to(group, f' ({in_words(readers[flag])})' if flag in readers else '')
                known[flag.name] = flag
    return parser


def parse_flags(argv: list[str] | None = None) -> argparse.Namespace:
    """Values of all flags, from words (None: the command line) and their config. Errors end the program with code 2."""
    parser = config_parser()
    argv = sys.argv[1:] if argv is None else argv
    try:
        args, unknown = parser.parse_known_args(argv)
    except UserError as error:
        parser.error(str(error))
    if unknown:
        name = unknown[0].split('=')[0].lstrip('-')
        near = difflib.get_close_matches(name, vars(args), 1, 0.5)
        hint = f'did you mean {near[0]}?' if near else 'run_nerf.py --help lists them all'
        parser.error(f'unknown flag {unknown[0]!r}; {hint}')
    set_defaults(args, parser.config_text.values, argv)
    args.expname = args.expname or (args.config and Path(args.config).stem)
    if message := contradiction(args):
        parser.error(message)
    for line in [*parser.config_text.notes, *idle_flags(args, parser)]:
        print(f'warning: {line}', file=sys.stderr)
    return args


def set_defaults(args: argparse.Namespace, config: dict[str, str], argv: list[str]) -> None:
    """Sets flags without a value to the defaults of the data format and the kind of field. A config for another kind of
    field can hold a value that makes no sense for this kind. It is replaced too, and one line names both values.
    `config` is the text of the config's values by key, `argv` the words of the command line."""
    command = {word.partition('=')[0].removeprefix('--') for word in argv if word.startswith('--')}
    kind, dropped = FIELDS[args.field], []
    foreign = config.get('field', 'mlp') != kind.name
    for name, value in (FORMATS[args.dataset_type].defaults | kind.defaults).items():
        if name in command:
            continue
        given = getattr(args, name)
        if name in config:
            if not (foreign and name in kind.not_meant and kind.not_meant[name](given, args)):
                continue
            dropped.append((name, given, value))
        setattr(args, name, value)
    for name in set(kind.follows_run) - command - config.keys():
        setattr(args, name, args.N_iters)
    if dropped:
        meant, used = (in_words(f'{name} = {row[i]}' for name, *row in dropped) for i in (0, 1))
        print(f'{meant} of {args.config} cannot be meant for field {kind.name}; used: {used}')


def contradiction(args: argparse.Namespace) -> str | None:
    """Error about flags that exclude each other, or that this machine cannot satisfy; None: no error."""
    estimates = getattr(args, 'estimate_only', False)
    if estimates and not any(flag.name == 'estimate_only' for flag in FORMATS[args.dataset_type].flags):
        return f'estimate_only is set, but dataset_type is {args.dataset_type}; cameras are estimated for photos'
    if not args.expname and not estimates:
        return 'expname is not given and there is no config file to take it from; add --expname NAME'
    for first, second in (('render_only', 'mesh_only'), ('view', 'mesh_only'), ('render_path', 'render_test')):
        if getattr(args, first) and getattr(args, second):
            return f'{first} and {second} are both set; choose one'
    if args.mesh_texture and (args.mesh_file or '').lower().endswith('.ply'):
        return (f'mesh_file is {args.mesh_file}, and a .ply has no texture; name a .glb or .obj, or leave mesh_texture '
                'out')
    if args.device.startswith('cuda') and int(args.device.partition(':')[2] or 0) >= torch.cuda.device_count():
        return (f'device is {args.device} but PyTorch finds {torch.cuda.device_count()} CUDA devices here; allowed are '
                'auto, cpu and those')
    if args.precision == 'fp16' and (args.device == 'cpu' or not torch.cuda.is_available()):
        return 'precision is fp16, which needs CUDA; allowed on a CPU are auto, fp32 and bf16'
    return None


def idle_flags(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """Warnings about flags without effect in this run: one line for each reason."""
    ndc = args.dataset_type == 'llff' and not args.no_ndc
    idle = [([flag.name], getattr(args, choice) not in names, f'unless {choice} is {in_words(names, "or")}')
            for choice, *_, registry in CHOICES.values() for flag, names in flags_of(registry).items()]
    idle += [(names.split(), without_effect, because) for names, without_effect, because in (
        ('precrop_iters precrop_frac', not args.no_batching, 'without no_batching'),
        ('contract lindisp', ndc, 'in normalised device coordinates; set no_ndc'),
        ('netdepth_fine netwidth_fine', args.N_importance == 0, 'where N_importance is 0'),
        ('multires', args.i_embed == -1, 'where i_embed is -1'),
        ('multires_views', not args.use_viewdirs or args.i_embed == -1, 'without use_viewdirs or where i_embed is -1'),
        ('render_test render_path', not args.render_only or args.view, 'without render_only, or with view'),
        ('view_host view_port view_origin', not args.view, 'without view'),
        ('mesh_grid_size mesh_method mesh_threshold mesh_faces mesh_texture mesh_file mesh_bounds mesh_coordinates',
         not args.mesh_only, 'without mesh_only'))]
    lines, told = {}, set()
    for names, without_effect, because in idle:
        for name in names:
            value = getattr(args, name)
            if without_effect and name not in told and value != parser.get_default(name):
                told.add(name)
                lines.setdefault(because, []).append(f'{name} = {value}')
    return [f'{in_words(some)} {"has" if len(some) == 1 else "have"} no effect {because}'
            for because, some in lines.items()]


def config_text(args: argparse.Namespace) -> str:
    """Values of all flags as lines of a config. The line of the flag config is a comment, as configs do not nest."""
    def quoted(value) -> str:
        return f'"{value}"' if isinstance(value, str) and re.search('[#;\'"]', value) else str(value)
    return ''.join(f'{"# " if key == "config" else ""}{key} = {quoted(value)}\n'
                   for key, value in sorted(vars(args).items()))
