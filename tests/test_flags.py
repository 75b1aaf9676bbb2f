"""nerf/flags.py: every flag, its checks, and the config files that ship."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from nerf.flags import GRID_DEFAULTS, box_of, config_parser, config_text, parse_flags

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
    'occupancy': (bool, False, True),
    'raw_noise_std': (float, 0.0, 1.0),
    'render_only': (bool, False, True),
    'render_test': (bool, False, True),
    'render_factor': (int, 0, 4), 'supersample': (int, 1, 2),
    'precrop_iters': (int, 0, 500),
    'precrop_frac': (float, 0.5, 0.25),
    'dataset_type': (str, 'llff', 'blender'),
    'outside_files': (bool, False, True),
    'estimate_only': (bool, False, True),
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
}

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


def test_each_flag_has_one_short_help_line():
    for action in config_parser()._actions:
        assert action.help
        assert '\n' not in action.help


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_flags(['--help'])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f'--{name} ' in text or f'--{name}]' in text for name in FLAGS)


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
        defaults |= GRID_DEFAULTS | {'i_testset': values['N_iters'], 'i_video': values['N_iters']}
    assert values == defaults | CONFIG_FILES[name] | NOT_IN_LINES.get(name, {}) | {'config': path}
    assert {flag: type(values[flag]) for flag in CONFIG_FILES[name]} == {
        flag: FLAGS[flag][0] for flag in CONFIG_FILES[name]}


@pytest.mark.parametrize('name', sorted(CONFIG_FILES.keys() - PAPER_CONFIGS.keys()))
def test_a_config_of_our_own_repeats_no_default(name):
    assert [key for key, value in CONFIG_FILES[name].items()
            if value == FLAGS[key][1] and key != 'rays_through'] == []  # which the grid has another default for


# The grid's defaults


def given(args: Namespace, names=(*GRID_DEFAULTS, 'i_testset', 'i_video')) -> dict:
    return {name: getattr(args, name) for name in names}


@pytest.fixture
def grid_defaults() -> dict:
    return GRID_DEFAULTS | {'i_testset': GRID_DEFAULTS['N_iters'], 'i_video': GRID_DEFAULTS['N_iters']}


def test_the_grid_has_defaults_of_its_own_and_the_mlp_keeps_its(grid_defaults):
    grid, mlp = (parse_flags(['--expname', 'x', '--field', field]) for field in ('grid', 'mlp'))
    assert given(grid) == grid_defaults
    assert given(mlp) == {name: FLAGS[name][1] for name in given(mlp)}
    assert {name: type(value) for name, value in given(grid).items()} == {name: FLAGS[name][0] for name in given(grid)}
    others = FLAGS.keys() - given(grid).keys() - {'field', 'expname', 'rays_through'}
    assert {name: getattr(grid, name) for name in others} == {name: FLAGS[name][1] for name in others}


@pytest.mark.parametrize('line', ['', 'field = mlp\n'])
def test_a_config_of_the_mlp_does_not_change_the_grids_defaults(config, line, grid_defaults):
    path = config(f'{line}N_iters = 7\nN_rand = 8\nlrate = 1e-6\ni_video = 3\ni_testset = 4\nnetwidth = 32\n')
    args = parse_flags(['--config', path, '--field', 'grid'])
    assert given(args) == grid_defaults
    assert args.netwidth == 32


@pytest.mark.parametrize('name', sorted(CONFIG_FILES.keys() - {'toy_chair_grid'}))
def test_every_shipped_config_of_the_mlp_gives_the_grid_its_defaults(name, grid_defaults):
    assert given(parse_flags(['--config', str(CONFIGS / f'{name}.txt'), '--field', 'grid'])) == grid_defaults


def test_the_grids_rays_go_through_the_centers_of_pixels_unless_somebody_says_otherwise(config):
    path = config('rays_through = corner\n')
    for argv, expected in ((['--field', 'grid', '--expname', 'x'], 'center'), (['--expname', 'x'], 'corner'),
                           (['--field', 'grid', '--config', path], 'corner'),
                           (['--field', 'grid', '--config', path, '--rays_through', 'center'], 'center')):
        assert parse_flags(argv).rays_through == expected


@pytest.mark.parametrize('argv', [['--N_rand', '77', '--lrate=0.25', '--i_video', '5'],
                                  ['--lrate=0.25', '--i_video=5', '--N_rand=77']])
def test_the_command_line_changes_the_grids_defaults(config, argv, grid_defaults):
    path = config('N_rand = 1024\ni_print = 3\n')
    for before, after in ((['--field', 'grid', '--config', path], []), (['--config', path], ['--field=grid'])):
        args = parse_flags([*before, *argv, *after])
        assert given(args) == grid_defaults | {'N_rand': 77, 'lrate': 0.25, 'i_video': 5}


def test_flags_taken_from_the_command_line_of_the_process_count_too(monkeypatch, grid_defaults):
    monkeypatch.setattr('sys.argv', ['run_nerf.py', '--expname', 'x', '--field', 'grid', '--N_rand', '77'])
    assert given(parse_flags()) == grid_defaults | {'N_rand': 77}


def test_test_sets_and_videos_come_at_the_end_of_the_run(config):
    for argv in (['--field', 'grid', '--N_iters', '50'], ['--config', config('field = grid\nN_iters = 50\n')]):
        args = parse_flags(['--expname', 'x', *argv])
        assert (args.i_testset, args.i_video) == (50, 50)


@pytest.mark.parametrize('again', [[], ['--field', 'grid']])
def test_a_config_of_the_grid_changes_its_defaults_and_the_command_line_wins(config, again, grid_defaults):
    path = config('field = grid\nN_rand = 1024\nlrate = 1e-3\n--i_img = 5\n')
    args = parse_flags(['--config', path, '--lrate', '0.25', *again])
    assert given(args) == grid_defaults | {'N_rand': 1024, 'lrate': 0.25, 'i_img': 5}
    assert parse_flags(['--config', path, '--field', 'mlp']).N_iters == FLAGS['N_iters'][1]


@pytest.mark.parametrize('argv', [[], ['--N_iters', '50', '--lrate', '1e-7', '--i_video', '20']])
@pytest.mark.parametrize('again', [[], ['--field', 'grid']])
def test_written_out_flags_of_a_grids_run_give_the_same_again(config, capsys, argv, again):
    args = parse_flags(['--config', str(CONFIGS / 'lego.txt'), '--field', 'grid', *argv])
    path = config(config_text(args), 'args.txt')
    other = parse_flags(['--config', path, *again])
    assert vars(other) | {'config': args.config} == vars(args)
    assert parse_flags(['--config', path, '--N_rand', '5']).i_testset == args.i_testset
    assert capsys.readouterr().err == ''


# The defaults of photographs


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
        assert parse_flags([*argv, '--expname', 'x']).N_iters == (GRID_DEFAULTS if field == 'grid' else
                                                                  {'N_iters': FLAGS['N_iters'][1]})['N_iters']
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
    ('field', 'hash'), ('ema_decay', '-0.1'), ('ema_decay', '1'), ('ema_decay', 'nan'),
    ('netdepth', '0'), ('chunk', '-1'), ('netchunk', '0'), ('i_print', '0'), ('render_factor', '-2'),
    ('mesh_bounds', '1 2 3'), ('mesh_bounds', '0 0 0 1 1 x'), ('mesh_bounds', '0 0 0 1 1 0'),
    ('mesh_bounds', '0 0 0 1 1 inf'),
    ('mesh_file', 'x.stl'), ('mesh_threshold', 'nan'), ('device', 'tpu'), ('device', 'cuda:x'), ('expname', 'a/b'),
    ('expname', '..')])
def test_a_value_that_makes_no_sense_is_one_line_with_flag_and_value(refuse, config, name, value):
    refuse(['--expname', 'a_run', f'--{name}={value}'], name, value)
    if value:
        refuse(['--config', config(f'{name} = {value}\n')], name, value)


def test_a_box_is_six_numbers_between_spaces_or_commas():
    for text in ('-1 -2 0 1 2.5 10', '-1,-2, 0,1,2.5,1e1'):
        args = parse_flags(['--expname', 'a_run', '--mesh_only', f'--mesh_bounds={text}'])
        assert box_of(args.mesh_bounds).tolist() == [[-1.0, -2.0, 0.0], [1.0, 2.5, 10.0]]


def test_what_shows_and_what_writes_exclude_each_other(refuse):
    refuse(['--expname', 'a_run', '--view', '--mesh_only'], 'view and mesh_only')
    refuse(['--expname', 'a_run', '--render_only', '--render_test', '--render_path', 'x.json'],
           'render_path and render_test')


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
LLFF = ['--N_importance', '64', '--use_viewdirs']


@pytest.mark.parametrize(('argv', 'idle'), [
    (['--precrop_iters', '500'], ['precrop_iters']),
    (['--precrop_frac', '0.3'], ['precrop_frac']),
    (['--half_res'], ['half_res']),
    (['--lindisp'], ['lindisp']),
    (['--occupancy', '--field', 'grid'], ['occupancy']),
    (['--occupancy', '--no_ndc', '--lindisp'], ['occupancy']),
    (['--occupancy', '--no_ndc', '--contract', 'on'], ['occupancy']),
    (['--contract', 'on'], ['contract']),
    (['--contract', 'on', '--no_ndc', '--field', 'grid'], ['contract']),
    ([*BLENDER, '--contract', 'on'], ['contract']),
    (['--ema_decay', '0.9', '--field', 'grid'], ['ema_decay']),
    (['--shape', 'vase'], ['shape']),
    (['--outside_files'], ['outside_files']),
    (['--dataset_type', 'photos', '--outside_files', '--factor', '2', '--no_ndc', '--testskip', '2'], ['testskip']),
    (['--dataset_type', 'colmap', '--outside_files', '--testskip', '2', '--spherify'],
     ['outside_files', 'testskip', 'spherify']),
    (['--testskip', '1'], ['testskip']),
    (['--render_test'], ['render_test']),
    (['--render_path', 'x.json'], ['render_path']),
    (['--view', '--render_only', '--render_test'], ['render_test']),
    (['--view_host', '::1', '--view_port', '90'], ['view_host', 'view_port']),
    (['--mesh_grid_size', '64', '--mesh_file', 'x.ply'], ['mesh_grid_size', 'mesh_file']),
    (['--mesh_threshold', '5'], ['mesh_threshold']),
    (['--mesh_bounds', '0 0 0 1 1 1'], ['mesh_bounds']),
    (['--mesh_only', '--mesh_coordinates', 'capture'], ['mesh_coordinates']),
    (['--dataset_type', 'colmap', '--mesh_coordinates', 'capture'], ['mesh_coordinates']),
    ([*BLENDER, '--factor', '4', '--no_ndc', '--spherify', '--llffhold', '4'],
     ['factor', 'no_ndc', 'spherify', 'llffhold']),
    (['--N_importance', '0', '--netdepth_fine', '4', '--netwidth_fine', '64'], ['netdepth_fine', 'netwidth_fine'])])
def test_flags_without_effect_get_a_warning_each(capsys, argv, idle):
    parse_flags(['--expname', 'a_run', *LLFF, *argv])
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split(' = ')[0] for line in lines) == sorted(f'warning: {name}' for name in idle)
    assert all('no effect' in line for line in lines)


def test_multires_views_has_no_effect_without_view_directions(capsys):
    parse_flags(['--expname', 'a_run', '--multires_views', '2'])
    assert capsys.readouterr().err.startswith('warning: multires_views = 2 has no effect')


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
    [*LLFF, '--netdepth_fine', '4', '--netwidth_fine', '64', '--multires_views', '2'], ['--ema_decay', '0.9']])
def test_flags_with_effect_get_no_warning(capsys, argv):
    parse_flags(['--expname', 'a_run', *argv])
    assert capsys.readouterr().err == ''
