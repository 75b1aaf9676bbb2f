"""nerf/flags.py and nerf/flag_types.py: every flag, its checks, and the config files that ship."""

from __future__ import annotations

import re
from argparse import Namespace
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from nerf.fields.grid.schedule import GridSchedule
from nerf.flag_types import box_of
from nerf.flags import config_parser, config_text, parse_flags

CONFIGS = Path(__file__).parents[1] / 'configs'

FLAGS = {  # name: (type, default, another value)
    'expname': (str, None, 'a_run'),
    'field': (str, 'mlp', 'grid'),
    'basedir': (str, './logs/', 'elsewhere'),
    'datadir': (str, './data/llff/fern', 'data/lego'),
    'netdepth': (int, 8, 4),
    'netdepth_fine': (int, 8, 5),
    'netwidth': (int, 256, 64),
    'netwidth_fine': (int, 256, 32),
    'N_rand': (int, 4096, 1024),
    'lrate': (float, 5e-4, 0.00123456789),
    'lrate_decay': (int, 250, 500),
    'ema_decay': (float, 0.0, 0.999),
    'chunk': (int, 32768, 1000),
    'netchunk': (int, 65536, 2000),
    'no_batching': (bool, False, True),
    'no_reload': (bool, False, True),
    'ft_path': (str, None, 'logs/a/200000.tar'),
    'N_samples': (int, 64, 32),
    'N_importance': (int, 0, 128),
    'perturb': (float, 1.0, 0.0),
    'use_viewdirs': (bool, False, True),
    'i_embed': (int, 0, -1),
    'multires': (int, 10, 6),
    'multires_views': (int, 4, 2),
    'guided_test': (bool, False, True),
    'raw_noise_std': (float, 0.0, 1.0),
    'render_only': (bool, False, True),
    'render_test': (bool, False, True),
    'render_factor': (int, 0, 4),
    'supersample': (int, 1, 2),
    'precrop_iters': (int, 0, 500),
    'precrop_frac': (float, 0.5, 0.25),
    'dataset_type': (str, 'llff', 'blender'),
    'outside_files': (bool, False, True),
    'estimate_only': (bool, False, True),
    'frames': (int, None, 90),
    'testskip': (int, 8, 1),
    'shape': (str, 'greek', 'vase'),
    'white_bkgd': (bool, False, True),
    'half_res': (bool, False, True),
    'factor': (int, 8, 4),
    'no_ndc': (bool, False, True),
    'lindisp': (bool, False, True),
    'contract': (str, 'auto', 'on'),
    'spherify': (bool, False, True),
    'llffhold': (int, 8, 4),
    'rays_through': (str, 'corner', 'center'),
    'exposure': (str, 'auto', 'on'),
    'refine_cameras': (str, 'auto', 'on'),
    'i_print': (int, 100, 10),
    'i_img': (int, 500, 50),
    'i_weights': (int, 10000, 100),
    'i_testset': (int, 50000, 1000),
    'i_video': (int, 50000, 2000),
    'N_iters': (int, 200000, 600),
    'seed': (int, 0, 7),
    'device': (str, 'auto', 'cuda:1'),
    'precision': (str, 'auto', 'bf16'),
    'mesh_only': (bool, False, True),
    'mesh_grid_size': (int, 256, 64),
    'mesh_method': (str, 'auto', 'density'),
    'mesh_threshold': (float, None, 10.5),
    'mesh_faces': (int, 0, 40000),
    'mesh_texture': (int, 0, 2048),
    'mesh_file': (str, None, 'chair.glb'),
    'mesh_bounds': (str, None, '-1 -2 0 1 2.5 1e1'),
    'mesh_coordinates': (str, 'scene', 'capture'),
    'render_path': (str, None, 'camera_path.json'),
    'view': (bool, False, True),
    'view_host': (str, '127.0.0.1', '0.0.0.0'),
    'view_port': (int, 8080, 9000),
    'view_origin': (str, None, 'https://name.example:8443'),
    'kernels': (str, 'auto', 'torch'),
    **{f'grid_{part.name}': (type(part.default), None, part.default) for part in fields(GridSchedule)},
}
GRID = {  # defaults of field grid
    'N_iters': 4500, 'N_rand': 9000, 'lrate': 5e-3, 'lrate_decay': None, 'i_print': 250, 'i_img': 1000,
    'i_weights': 2500, 'i_testset': 4500, 'i_video': 4500, 'supersample': 2, 'rays_through': 'center'}

BLENDER_SCENE = {
    'basedir': './logs', 'dataset_type': 'blender', 'no_batching': True, 'use_viewdirs': True, 'white_bkgd': True,
    'lrate_decay': 500, 'N_samples': 64, 'N_importance': 128, 'N_rand': 1024, 'precrop_iters': 500,
    'precrop_frac': 0.5, 'half_res': True,
}
FORWARD_FACING_SCENE = {
    'basedir': './logs', 'dataset_type': 'llff', 'factor': 8, 'llffhold': 8, 'N_rand': 1024, 'N_samples': 64,
    'N_importance': 64, 'use_viewdirs': True, 'raw_noise_std': 1.0,
}
DEEPVOXELS_SCENE = {
    'basedir': './logs', 'datadir': './data/deepvoxels', 'dataset_type': 'deepvoxels', 'no_batching': True,
    'use_viewdirs': True, 'white_bkgd': True, 'lrate_decay': 200, 'N_samples': 64, 'N_importance': 128, 'N_rand': 4096,
}
PAPER_CONFIGS = {  # config: what its lines set, which are those of the reference code
    **{scene: BLENDER_SCENE | {'expname': f'blender_paper_{scene}', 'datadir': f'./data/nerf_synthetic/{scene}'}
       for scene in ('chair', 'drums', 'ficus', 'hotdog', 'lego', 'materials', 'mic', 'ship')},
    **{scene: FORWARD_FACING_SCENE | {'expname': f'{scene}_test', 'datadir': f'./data/nerf_llff_data/{scene}'}
       for scene in ('fern', 'flower', 'fortress', 'horns', 'leaves', 'orchids', 'room', 'trex')},
    **{f'deepvoxels_{shape}': DEEPVOXELS_SCENE | {'expname': f'dvox_paper_{shape}', 'shape': shape}
       for shape in ('armchair', 'cube', 'greek', 'vase')},
}
CONFIG_FILES = PAPER_CONFIGS | {
    'toy_chair': {
        'expname': 'toy_chair', 'basedir': './logs', 'datadir': './data/toy_chair', 'dataset_type': 'blender',
        'testskip': 1, 'rays_through': 'corner',
        'use_viewdirs': True, 'white_bkgd': True, 'lrate': 5e-3, 'lrate_decay': 3, 'netdepth': 4,
        'netdepth_fine': 5, 'netwidth': 64, 'netwidth_fine': 64, 'multires': 6, 'multires_views': 2, 'N_samples': 32,
        'N_importance': 32, 'N_rand': 256, 'N_iters': 3000, 'i_testset': 3000, 'i_video': 3000, 'render_factor': 2,
    },
    'toy_chair_grid': {
        'expname': 'toy_chair_grid', 'basedir': './logs', 'datadir': './data/toy_chair', 'dataset_type': 'blender',
        'testskip': 1, 'rays_through': 'corner', 'field': 'grid', 'white_bkgd': True, 'N_iters': 600,
    },
    'photos': {'datadir': './data/my_scene', 'dataset_type': 'photos', 'field': 'grid'},
}
NOT_IN_LINES = {'photos': {'expname': 'photos', 'factor': 1, 'rays_through': 'center'}}  # from name and dataset type


@pytest.fixture
def config(tmp_path):
    """Writes a config file of some text and returns its path."""
    def write(text: str, name: str = 'my_scene.txt') -> str:
        (tmp_path / name).write_text(text, encoding='utf-8')
        return str(tmp_path / name)
    return write


@pytest.fixture
def refuse(capsys):
    """Asserts that flags end with exit code 2 and one line on stderr with some words in it."""
    def check(argv: list[str], *words: str) -> None:
        with pytest.raises(SystemExit) as ended:
            parse_flags(argv)
        streams = capsys.readouterr()
        assert ended.value.code == 2
        assert streams.out == ''
        assert streams.err.endswith('\n')
        assert streams.err.count('\n') == 1
        for word in words:
            assert word in streams.err
    return check


# Names, types and defaults


def test_the_parser_has_these_flags_with_these_defaults_and_no_others():
    defaults = vars(config_parser().parse_args([]))
    assert defaults.pop('config') is None
    assert defaults == {name: default for name, (_, default, _) in FLAGS.items()}
    assert {name: type(value) for name, value in defaults.items() if value is not None} == {
        name: kind for name, (kind, default, _) in FLAGS.items() if default is not None}


@pytest.mark.parametrize('name', FLAGS)
def test_a_flag_gives_a_value_of_its_type(name, capsys):
    kind, _, other = FLAGS[name]
    value = getattr(config_parser().parse_args([f'--{name}'] + [str(other)] * (kind is not bool)), name)
    assert value == other
    assert type(value) is kind
    if kind is int:
        with pytest.raises(SystemExit):
            config_parser().parse_args([f'--{name}', '8.5'])


@pytest.mark.parametrize(('name', 'least'), [
    ('testskip', '0'), ('N_importance', '0'), ('render_factor', '0'), ('precrop_iters', '0'), ('multires', '0'),
    ('multires_views', '0'), ('raw_noise_std', '0'), ('ema_decay', '0'), ('ema_decay', '0.999999'),
    ('llffhold', '0'), ('seed', '0'), ('N_rand', '1'),
    ('netdepth', '1'), ('precrop_frac', '1'), ('lrate', '1e-30')])
def test_the_least_and_largest_sensible_values_are_taken(name, least):
    assert getattr(config_parser().parse_args([f'--{name}', least]), name) == float(least)


def test_help_has_words_about_every_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_flags(['--help'])
    assert ended.value.code == 0
    options = re.split(r'\n  (?=--)', capsys.readouterr().out)[1:]
    words = {re.match(r'--(\w+)', option).group(1): len(option.split()) for option in options}
    assert words.keys() == FLAGS.keys() | {'config'}
    assert min(words.values()) > 4


def test_help_names_the_formats_and_kinds_that_read_a_flag_and_their_defaults(capsys):
    with pytest.raises(SystemExit):
        parse_flags(['--help'])
    text = ' '.join(capsys.readouterr().out.split())
    for words in ('samples per ray (mlp)', 'photographs are reduced to 1/N of their size. Default: 8 for llff, else 1 '
                  '(llff, transforms, colmap and photos)', 'N_iters 4500, N_rand 9000, lrate 0.005, lrate_decay None',
                  'i_testset N_iters, i_video N_iters', 'defaults: factor 1, rays_through center'):
        assert words in text


# Config files


def test_a_config_of_the_reference_code_is_read(config):
    args = parse_flags(['--config', config('''
expname = fern_test
basedir = ./logs
datadir = ./data/nerf_llff_data/fern
dataset_type = llff

# rays
factor = 8
N_rand = 1024
N_importance=64

use_viewdirs = True
no_batching = False
raw_noise_std = 1e0  # a regulariser
''')])
    changed = {'config': args.config, 'expname': 'fern_test', 'basedir': './logs',
               'datadir': './data/nerf_llff_data/fern', 'N_rand': 1024, 'N_importance': 64, 'use_viewdirs': True,
               'raw_noise_std': 1.0}
    assert vars(args) == {name: default for name, (_, default, _) in FLAGS.items()} | changed


def test_the_command_line_wins_over_the_config_wherever_it_stands(config):
    path = config('N_rand = 1024\nlrate = 1e-3\n')
    for argv in (['--config', path, '--N_rand', '7'], ['--N_rand=7', '--config', path]):
        args = parse_flags(argv)
        assert (args.N_rand, args.lrate) == (7, 1e-3)


def test_expname_is_the_configs_name_where_none_is_given(config):
    path = config('N_rand = 1024\n', 'chair.v2.txt')
    assert parse_flags(['--config', path]).expname == 'chair.v2'
    assert parse_flags(['--config', path, '--expname', 'other']).expname == 'other'
    assert parse_flags(['--config', config('expname = inside\n')]).expname == 'inside'


@pytest.mark.parametrize('column', [1, 2], ids=['defaults', 'other values'])
def test_written_out_flags_parse_back_to_the_same_values(config, column):
    values = {name: row[column] for name, row in FLAGS.items()}
    args = config_parser().parse_args(['--config', config(config_text(Namespace(config='configs/gone.txt', **values)))])
    assert {name: getattr(args, name) for name in FLAGS} == values


def test_written_out_flags_of_a_run_parse_back_without_complaint(config, capsys):
    args = parse_flags(['--config', str(CONFIGS / 'lego.txt'), '--lrate', '1e-7'])
    again = parse_flags(['--config', config(config_text(args), 'args.txt')])
    assert vars(again) | {'config': args.config} == vars(args)
    assert capsys.readouterr().err == ''


def test_every_shipped_config_is_in_the_table():
    assert {path.name for path in CONFIGS.glob('*.txt')} == {f'{name}.txt' for name in CONFIG_FILES}


@pytest.mark.parametrize('name', CONFIG_FILES)
def test_the_lines_of_a_shipped_config_are_these_and_no_more(name):
    lines = [line for line in (CONFIGS / f'{name}.txt').read_text(encoding='utf-8').split('\n') if line]
    written = {'raw_noise_std': '1e0', 'lrate': '5e-3'}  # where it is not as Python prints it
    assert sorted(lines) == sorted(f'{key} = {written.get(key, value)}' for key, value in CONFIG_FILES[name].items())


@pytest.mark.parametrize('name', CONFIG_FILES)
def test_a_shipped_config_sets_this_and_no_more_without_warning(name, capsys):
    path = str(CONFIGS / f'{name}.txt')
    values = vars(parse_flags(['--config', path]))
    assert capsys.readouterr() == ('', '')
    defaults = {flag: default for flag, (_, default, _) in FLAGS.items()}
    if CONFIG_FILES[name].get('field') == 'grid':
        defaults |= GRID | {'i_testset': values['N_iters'], 'i_video': values['N_iters']}
    assert values == defaults | CONFIG_FILES[name] | NOT_IN_LINES.get(name, {}) | {'config': path}
    assert {flag: type(values[flag]) for flag in CONFIG_FILES[name]} == {
        flag: FLAGS[flag][0] for flag in CONFIG_FILES[name]}


@pytest.mark.parametrize('name', sorted(CONFIG_FILES.keys() - PAPER_CONFIGS.keys()))
def test_a_config_of_our_own_repeats_no_default(name):
    assert [key for key, value in CONFIG_FILES[name].items()
            if value == FLAGS[key][1] and key != 'rays_through'] == []  # the grid's default is another


# Defaults of the grid


def given(args: Namespace, names=tuple(GRID)) -> dict:
    return {name: getattr(args, name) for name in names}


def test_the_grid_has_defaults_of_its_own_and_the_mlp_keeps_the_flags_own():
    grid, mlp = (parse_flags(['--expname', 'x', '--field', field]) for field in ('grid', 'mlp'))
    assert given(grid) == GRID
    assert given(mlp) == {name: FLAGS[name][1] for name in GRID}
    assert all(type(value) is FLAGS[name][0] for name, value in given(grid).items() if value is not None)
    others = FLAGS.keys() - GRID.keys() - {'field', 'expname'}
    assert {name: getattr(grid, name) for name in others} == {name: FLAGS[name][1] for name in others}


@pytest.mark.parametrize('line', ['', 'field = mlp\n'])
def test_values_of_a_config_count_for_the_grid_too(config, capsys, line):
    values = {'N_iters': 700, 'N_rand': 4096, 'lrate': 0.002, 'lrate_decay': None, 'i_print': 7, 'i_img': 8,
              'i_weights': 9, 'i_testset': 4, 'i_video': 3, 'supersample': 1, 'rays_through': 'corner'}
    path = config(line + ''.join(f'{name} = {value}\n' for name, value in values.items()))
    assert given(parse_flags(['--config', path, '--field', 'grid'])) == values
    assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize(('lines', 'said', 'used'), [
    ('N_rand = 1024\n', 'N_rand = 1024', 'N_rand = 9000'),
    ('lrate = 5e-4\n', 'lrate = 0.0005', 'lrate = 0.005'),
    ('lrate_decay = 500\n', 'lrate_decay = 500', 'lrate_decay = None'),
    ('N_rand = 4095\nlrate = 0.00099\nlrate_decay = 5\n', 'N_rand = 4095, lrate = 0.00099 and lrate_decay = 5',
     'N_rand = 9000, lrate = 0.005 and lrate_decay = None')])
@pytest.mark.parametrize('first', ['', 'field = mlp\n'])
def test_values_that_cannot_be_meant_for_the_grid_are_replaced_and_told_in_one_line(config, capsys, lines, said, used,
                                                                                   first):
    path = config(first + lines)
    assert given(parse_flags(['--config', path, '--field', 'grid'])) == GRID
    assert capsys.readouterr() == (f'{said} of {path} cannot be meant for field grid; used: {used}\n', '')


def test_a_decay_within_the_run_counts(config):
    path = config('N_iters = 6000\nlrate_decay = 6\n')
    assert parse_flags(['--config', path, '--field', 'grid']).lrate_decay == 6
    assert parse_flags(['--config', path, '--field', 'grid', '--N_iters', '5999']).lrate_decay is None


def test_everything_on_the_command_line_counts_for_the_grid(config, capsys):
    path = config('N_rand = 1024\nlrate = 5e-4\ni_print = 3\n')
    argv = ['--N_rand', '77', '--lrate=5e-4', '--lrate_decay', '500', '--i_video', '5']
    for before, after in ((['--field', 'grid', '--config', path], []), (['--config', path], ['--field=grid'])):
        assert given(parse_flags([*before, *argv, *after])) == GRID | {
            'N_rand': 77, 'lrate': 5e-4, 'lrate_decay': 500, 'i_video': 5, 'i_print': 3}
    assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize('again', [[], ['--field', 'grid']])
def test_everything_in_a_config_of_the_grid_counts(config, capsys, again):
    path = config('field = grid\nN_rand = 1024\nlrate = 5e-4\nlrate_decay = 500\n--i_img = 5\n')
    assert given(parse_flags(['--config', path, *again])) == GRID | {
        'N_rand': 1024, 'lrate': 5e-4, 'lrate_decay': 500, 'i_img': 5}
    assert capsys.readouterr() == ('', '')
    assert parse_flags(['--config', path, '--field', 'mlp']).N_iters == FLAGS['N_iters'][1]


@pytest.mark.parametrize('name', sorted(PAPER_CONFIGS))
def test_a_config_of_the_paper_gives_the_grid_its_defaults(name, capsys):
    values = given(parse_flags(['--config', str(CONFIGS / f'{name}.txt'), '--field', 'grid']))
    meant = {'N_rand': 4096} if name.startswith('deepvoxels') else {}
    assert values == GRID | meant
    assert capsys.readouterr().out.count('\n') == 1


def test_flags_taken_from_the_command_line_of_the_process_count_too(monkeypatch):
    monkeypatch.setattr('sys.argv', ['run_nerf.py', '--expname', 'x', '--field', 'grid', '--N_rand', '77'])
    assert given(parse_flags()) == GRID | {'N_rand': 77}


def test_test_sets_and_videos_come_at_the_end_of_a_grids_run(config):
    for argv in (['--field', 'grid', '--N_iters', '50'], ['--config', config('field = grid\nN_iters = 50\n')],
                 ['--config', config('N_iters = 50\n', 'other.txt'), '--field', 'grid']):
        args = parse_flags(['--expname', 'x', *argv])
        assert (args.i_testset, args.i_video) == (50, 50)


@pytest.mark.parametrize('argv', [[], ['--N_iters', '50', '--lrate', '1e-7', '--N_rand', '30', '--i_video', '20']])
@pytest.mark.parametrize('again', [[], ['--field', 'grid']])
def test_written_out_flags_of_a_grids_run_give_the_same_again(config, capsys, argv, again):
    args = parse_flags(['--config', str(CONFIGS / 'lego.txt'), '--field', 'grid', *argv])
    path = config(config_text(args), 'args.txt')
    capsys.readouterr()
    other = parse_flags(['--config', path, *again])
    assert vars(other) | {'config': args.config} == vars(args)
    assert parse_flags(['--config', path, '--N_rand', '5']).i_testset == args.i_testset
    assert capsys.readouterr().out == ''


# Defaults of photographs


@pytest.mark.parametrize('kind', ['transforms', 'colmap'])
def test_photographs_are_read_at_full_size_and_through_the_centers_of_pixels_by_default(config, kind):
    def of(*argv: str) -> tuple[int, str]:
        args = parse_flags(['--expname', 'x', *argv])
        return args.factor, args.rays_through

    path = config('factor = 8\nrays_through = corner\n')
    for field in ('mlp', 'grid'):
        argv = ['--dataset_type', kind, '--field', field]
        assert of(*argv) == (1, 'center')
        assert of(*argv, '--factor', '4', '--rays_through=corner') == (4, 'corner')
        assert of(*argv, '--config', path) == (8, 'corner')
        assert of(*argv, '--config', path, '--factor=2') == (2, 'corner')
        assert parse_flags([*argv, '--expname', 'x']).N_iters == (4500 if field == 'grid' else 200000)
    assert of('--config', config(f'dataset_type = {kind}\n')) == (1, 'center')
    assert of() == (8, 'corner')


@pytest.mark.parametrize('field', ['mlp', 'grid'])
def test_written_out_flags_of_a_run_on_photographs_give_the_same_again(config, capsys, field):
    args = parse_flags(['--expname', 'x', '--dataset_type', 'transforms', '--field', field])
    assert vars(parse_flags(['--config', config(config_text(args))])) | {'config': None} == vars(args)
    assert capsys.readouterr().err == ''


# Wrong flags


@pytest.mark.parametrize(('name', 'value'), [
    ('N_rand', '0'), ('N_rand', 'abc'), ('N_rand', '1e3'), ('N_rand', ''), ('precrop_frac', '2'), ('precrop_frac', '0'),
    ('dataset_type', 'foo'), ('shape', 'chair'), ('precision', 'fp8'), ('lrate', '-1'), ('lrate', '0'),
    ('lrate', 'nan'), ('lrate', 'inf'), ('perturb', '0.5'), ('raw_noise_std', '-0.1'), ('i_embed', '1'),
    ('field', 'hash'), ('lrate_decay', '0'), ('lrate_decay', '2.5'), ('supersample', '9'),
    ('ema_decay', '-0.1'), ('ema_decay', '1'), ('ema_decay', 'nan'),
    ('netdepth', '0'), ('chunk', '-1'), ('netchunk', '0'), ('i_print', '-1'), ('render_factor', '-2'),
    ('mesh_bounds', '1 2 3'), ('mesh_bounds', '0 0 0 1 1 x'), ('mesh_bounds', '0 0 0 1 1 0'),
    ('mesh_bounds', '0 0 0 1 1 inf'),
    ('mesh_file', 'x.stl'), ('mesh_threshold', 'nan'), ('device', 'tpu'), ('device', 'cuda:x'), ('expname', 'a/b'),
    ('expname', '..')])
def test_a_value_that_makes_no_sense_is_one_line_with_flag_and_value(refuse, config, name, value):
    refuse(['--expname', 'a_run', f'--{name}={value}'], name, value)
    if value:
        refuse(['--config', config(f'{name} = {value}\n')], name, value)


def test_a_run_in_a_folder_of_its_own_is_what_basedir_is_for(refuse):
    refuse(['--expname', 'blender/lego'], "'blender/lego' is not a plain folder name", 'use basedir')


def test_an_interval_of_0_is_longer_than_any_run(config):
    names = 'i_print', 'i_img', 'i_weights', 'i_testset', 'i_video'
    args = parse_flags(['--config', config(''.join(f'{name} = 0\n' for name in names)), '--field', 'grid'])
    assert all(getattr(args, name) > 10 ** 9 for name in names)


@pytest.mark.parametrize('name', ['basedir', 'datadir', 'ft_path', 'render_path'])
def test_a_tilde_is_the_home_folder_in_every_path(config, monkeypatch, name):
    monkeypatch.setenv('HOME', '/home/somebody')
    assert vars(parse_flags(['--expname', 'x', f'--{name}=~/a b']))[name] == '/home/somebody/a b'
    assert vars(parse_flags(['--config', config(f'{name} = ~/a\n')]))[name] == '/home/somebody/a'
    assert vars(parse_flags(['--expname', 'x', f'--{name}=a/~b']))[name] == 'a/~b'


def test_a_box_is_six_numbers_between_spaces_or_commas():
    for text in ('-1 -2 0 1 2.5 10', '-1,-2, 0,1,2.5,1e1'):
        args = parse_flags(['--expname', 'a_run', '--mesh_only', f'--mesh_bounds={text}'])
        assert box_of(args.mesh_bounds).tolist() == [[-1.0, -2.0, 0.0], [1.0, 2.5, 10.0]]


def test_what_shows_and_what_writes_exclude_each_other(refuse):
    refuse(['--expname', 'a_run', '--view', '--mesh_only'], 'view and mesh_only')
    refuse(['--expname', 'a_run', '--render_only', '--render_test', '--render_path', 'x.json'],
           'render_path and render_test')


def test_estimating_cameras_is_for_photos_and_a_texture_for_files_that_have_one(refuse):
    refuse(['--estimate_only', '--dataset_type', 'colmap'], 'estimate_only is set, but dataset_type is colmap')
    assert parse_flags(['--estimate_only', '--dataset_type', 'photos']).expname is None
    refuse(['--expname', 'x', '--mesh_only', '--mesh_texture', '64', '--mesh_file', 'a.PLY'], 'a .ply has no texture')


def test_render_only_and_mesh_only_exclude_each_other(refuse, config):
    refuse(['--expname', 'a_run', '--render_only', '--mesh_only'], 'render_only', 'mesh_only')
    refuse(['--config', config('mesh_only = True\nrender_only = True\n')], 'render_only', 'mesh_only')


@pytest.mark.parametrize(('argv', 'name', 'nearest'), [
    (['--N_rnd', '5'], 'N_rnd', 'N_rand'), (['--N_rnd=5'], 'N_rnd', 'N_rand'), (['--use_viewdir'], 'use_viewdir',
     'use_viewdirs'), (['--no_batch'], 'no_batch', 'no_batching'), (['--xyzzy', '1'], 'xyzzy', '--help')])
def test_an_unknown_flag_is_one_line_with_the_nearest_real_name(refuse, argv, name, nearest):
    refuse(['--expname', 'a_run', *argv], f'--{name}', nearest)


@pytest.mark.parametrize(('line', 'name', 'nearest'), [
    ('N_rnd = 512', 'N_rnd', 'N_rand'), ('lrate_decy = 512', 'lrate_decy', 'lrate_decay'),
    ('use_viewdir = True', 'use_viewdir', 'use_viewdirs'), ('no_reloads = False', 'no_reloads', 'no_reload')])
def test_a_misspelt_config_key_is_one_line_with_the_nearest_real_one(refuse, config, line, name, nearest):
    value = line.split(' = ')[1].lower()
    refuse(['--config', config(f'N_samples = 32\n{line}\n')], name, *[value] * (value == '512'), nearest)


def test_a_stray_word_is_an_error(refuse):
    refuse(['--expname', 'a_run', 'lego.txt'], 'lego.txt')


def test_a_switch_that_is_neither_true_nor_false_is_an_error(refuse, config):
    refuse(['--config', config('no_batching = maybe\n')], 'no_batching', 'maybe')


def test_configs_do_not_nest(refuse, config, capsys):
    path = config('config = other.txt\nN_rand = 7\n')
    assert parse_flags(['--config', path]).N_rand == 7
    assert 'its line "config = other.txt" has no effect, as configs do not nest' in capsys.readouterr().err
    refuse(['--config', config(f'config = {path}\n')], f'{path} names itself as its config')


def test_a_missing_config_is_an_error(refuse, tmp_path):
    refuse(['--config', str(tmp_path / 'gone.txt')], str(tmp_path / 'gone.txt'))
    refuse(['--config', str(tmp_path)], str(tmp_path))


@pytest.mark.parametrize('content', [b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR', b'\x80\x03}q\0', bytes(range(256))])
def test_a_binary_config_is_an_error(refuse, tmp_path, content):
    (tmp_path / 'model.tar').write_bytes(content)
    refuse(['--config', str(tmp_path / 'model.tar')], 'config file', 'key = value')


def test_no_expname_and_no_config_is_an_error(refuse):
    refuse([], 'expname')


def set_cuda(monkeypatch, there: bool) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: there)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: int(there))


@pytest.mark.parametrize('device', ['cuda', 'cuda:1'])
def test_cuda_where_there_is_none_is_an_error(refuse, monkeypatch, device):
    set_cuda(monkeypatch, False)
    refuse(['--expname', 'a_run', '--device', device], f'device is {device}', 'cpu')


@pytest.mark.parametrize(('device', 'there'), [('cpu', True), ('cpu', False), ('auto', False)])
def test_fp16_on_a_cpu_is_an_error(refuse, monkeypatch, device, there):
    set_cuda(monkeypatch, there)
    refuse(['--expname', 'a_run', '--device', device, '--precision', 'fp16'], 'precision is fp16', 'CUDA')


def test_cuda_and_fp16_are_taken_where_cuda_is(monkeypatch):
    set_cuda(monkeypatch, True)
    args = parse_flags(['--expname', 'a_run', '--device', 'cuda:0', '--precision', 'fp16'])
    assert (args.device, args.precision) == ('cuda:0', 'fp16')


# Flags without effect

BLENDER = ['--dataset_type', 'blender', '--testskip', '2']
MLP = 'unless field is mlp'
OPEN = 'unless dataset_type is llff, transforms, colmap or photos'
IDLE = [  # flags, names of those without effect, the reason
    (['--precrop_iters', '500', '--precrop_frac', '0.3'], 'precrop_iters precrop_frac', 'without no_batching'),
    (['--half_res'], 'half_res', 'unless dataset_type is blender'),
    (['--contract', 'on', '--lindisp'], 'contract lindisp', 'in normalised device coordinates; set no_ndc'),
    (['--guided_test', '--ema_decay', '0.9', '--field', 'grid', '--no_ndc'], 'ema_decay guided_test', MLP),
    (['--contract', 'on', '--no_ndc', '--field', 'grid'], 'contract', MLP),
    ([*BLENDER, '--contract', 'on', '--factor', '4', '--no_ndc', '--llffhold', '4'], 'factor llffhold no_ndc contract',
     OPEN),
    ([*BLENDER, '--spherify'], 'spherify', 'unless dataset_type is llff'),
    (['--shape', 'vase'], 'shape', 'unless dataset_type is deepvoxels'),
    (['--outside_files'], 'outside_files', 'unless dataset_type is transforms, colmap or photos'),
    (['--testskip', '1'], 'testskip', 'unless dataset_type is blender or deepvoxels'),
    (['--dataset_type', 'photos', '--outside_files', '--factor', '2', '--no_ndc', '--testskip', '2'], 'testskip',
     'unless dataset_type is blender or deepvoxels'),
    (['--render_test'], 'render_test', 'without render_only, or with view'),
    (['--render_path', 'x.json'], 'render_path', 'without render_only, or with view'),
    (['--view', '--render_only', '--render_test'], 'render_test', 'without render_only, or with view'),
    (['--view_host', '::1', '--view_port', '90'], 'view_host view_port', 'without view'),
    (['--mesh_grid_size', '64', '--mesh_threshold', '5', '--mesh_bounds', '0 0 0 1 1 1', '--mesh_file', 'x.ply'],
     'mesh_grid_size mesh_threshold mesh_file mesh_bounds', 'without mesh_only'),
    (['--mesh_only', '--mesh_coordinates', 'capture'], 'mesh_coordinates',
     'unless dataset_type is blender, transforms, colmap or photos'),
    (['--dataset_type', 'colmap', '--mesh_coordinates', 'capture'], 'mesh_coordinates', 'without mesh_only'),
    (['--netdepth_fine', '4', '--netwidth_fine', '64'], 'netdepth_fine netwidth_fine', 'where N_importance is 0'),
    (['--i_embed', '-1', '--multires', '6'], 'multires', 'where i_embed is -1'),
    (['--multires_views', '2'], 'multires_views', 'without use_viewdirs or where i_embed is -1'),
    (['--use_viewdirs', '--i_embed', '-1', '--multires_views', '2'], 'multires_views',
     'without use_viewdirs or where i_embed is -1')]


@pytest.mark.parametrize(('argv', 'idle', 'because'), IDLE, ids=[' '.join(argv) for argv, *_ in IDLE])
def test_flags_without_effect_get_one_warning_for_each_reason(capsys, argv, idle, because):
    args = parse_flags(['--expname', 'a_run', *argv])
    *most, last = (f'{name} = {getattr(args, name)}' for name in idle.split())
    flags = f'{", ".join(most)} and {last} have' if most else f'{last} has'
    assert capsys.readouterr().err == f'warning: {flags} no effect {because}\n'


def test_two_reasons_are_two_lines_and_a_flag_is_told_once(capsys):
    parse_flags(['--expname', 'a_run', '--dataset_type', 'llff', '--outside_files', '--testskip', '2', '--half_res'])
    assert capsys.readouterr().err.splitlines() == [
        'warning: half_res = True has no effect unless dataset_type is blender',
        'warning: testskip = 2 has no effect unless dataset_type is blender or deepvoxels',
        'warning: outside_files = True has no effect unless dataset_type is transforms, colmap or photos']
    parse_flags(['--expname', 'a_run', *BLENDER, '--contract', 'on', '--field', 'grid'])
    assert capsys.readouterr().err == f'warning: contract = on has no effect {OPEN}\n'


@pytest.mark.parametrize('argv', [
    [], ['--no_batching', '--precrop_iters', '500', '--precrop_frac', '0.3'],
    [*BLENDER, '--half_res', '--lindisp'], ['--no_ndc', '--lindisp', '--factor', '4', '--llffhold', '4', '--spherify'],
    ['--dataset_type', 'deepvoxels', '--shape', 'vase', '--testskip', '1'],
    ['--dataset_type', 'transforms', '--factor', '4', '--llffhold', '4', '--outside_files'],
    ['--dataset_type', 'colmap', '--factor', '4', '--llffhold', '4'],
    ['--render_only', '--render_test'],
    ['--view', '--view_host', '0.0.0.0', '--view_port', '0'], ['--render_only', '--render_path', 'x.json'],
    ['--mesh_only', '--mesh_bounds', '-1 -1 -1 1 1 1', '--mesh_texture', '512'],
    ['--mesh_only', '--mesh_grid_size', '64', '--mesh_threshold', '5', '--mesh_file', 'x.obj'],
    ['--dataset_type', 'transforms', '--no_ndc', '--mesh_only', '--mesh_coordinates', 'capture'],
    ['--use_viewdirs', '--multires_views', '2'],
    ['--N_importance', '9', '--netdepth_fine', '4', '--netwidth_fine', '4'],
    ['--ema_decay', '0.9', '--guided_test'], ['--dataset_type', 'photos', '--estimate_only']])
def test_flags_with_effect_get_no_warning(capsys, argv):
    parse_flags(['--expname', 'a_run', *argv])
    assert capsys.readouterr().err == ''
