"""nerf/config_file.py: configs as people and other programs write them."""

from __future__ import annotations

import codecs

import pytest
from conftest import ROOT

from nerf.config_file import edits_between, misspelt, value_of
from nerf.flags import config_parser, parse_flags

FLAGS = [*vars(config_parser().parse_args([]))]
SCENE = 'expname = a\ndataset_type = blender\n'


@pytest.fixture
def read(tmp_path, capsys):
    """Flags and warnings of a config of some text or bytes."""
    def parse(text: str | bytes, *argv: str):
        path = tmp_path / 'config.txt'
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        args = parse_flags(['--config', str(path), *argv])
        out, error = capsys.readouterr()
        assert out == ''
        return args, [line.removeprefix(f'warning: {path}: ') for line in error.splitlines()]
    return parse


@pytest.fixture
def refused(read, capsys):
    """The line with which a config is refused."""
    def parse(text: str) -> str:
        with pytest.raises(SystemExit) as ended:
            read(text)
        line = capsys.readouterr().err
        assert (ended.value.code, line.count('\n')) == (2, 1)
        return line
    return parse


# Values


@pytest.mark.parametrize(('text', 'value'), [
    ('64', '64'), ('64 # rays', '64'), ('64\t# rays', '64'), ('64 ; rays', '64'), ('64#rays', '64'), ('64;', '64'),
    ('5e-4#rate', '5e-4'), ('True# on white', 'True'), ('data/a#1', 'data/a#1'), ('data/a;b # c', 'data/a;b'),
    ('run1#2', 'run1#2'), ('"a # b"', 'a # b'), ("'a' # b", 'a'), ("'it's'", "it's"), ('"a', '"a'), ('a"b"', 'a"b"'),
    ('', ''), ('# nothing', ''), ('""', ''), ('a b', 'a b'), ('[1, 2]', '[1, 2]'), ('C:\\data', 'C:\\data')])
def test_a_value_ends_before_its_comment_and_has_no_quotes(text, value):
    assert value_of(text) == value


@pytest.mark.parametrize('line', ['N_rand = 64', 'N_rand=64', 'N_rand: 64', 'N_rand 64', '--N_rand 64', 'N_rand\t=\t64',
                                  '  N_rand = 64  ', 'N_rand = "64"', "N_rand = '64' # rays", 'N_rand = 64#rays'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r', ''])
def test_a_line_has_many_spellings(read, line, end):
    args, said = read(f'[run]{end or chr(10)}---{end or chr(10)}; note{end or chr(10)}{line}{end}')
    assert (args.N_rand, said) == (64, [])


@pytest.mark.parametrize(('line', 'value'), [
    ('white_bkgd', True), ('white_bkgd # on white', True), ('--white_bkgd', True), ('white_bkgd = 1', True),
    ('white_bkgd = yes', True), ('white_bkgd = no', False), ("white_bkgd = 'True'", True),
    ('white_bkgd = False ; off', False)])
def test_a_switch_alone_or_with_a_word(read, line, value):
    args, said = read(SCENE + line)
    assert (args.white_bkgd, said) == (value, [])


def test_keys_without_a_value_keep_the_default_and_are_listed_once(read):
    args, said = read(SCENE + 'lrate =\nN_rand\nwhite_bkgd = None\ni_print = None\nft_path =\nlrate_decay = None\n'
                      'precision = ""\n')
    assert (args.lrate, args.N_rand, args.white_bkgd, args.i_print, args.precision) == (5e-4, 4096, False, 100, 'auto')
    assert (args.ft_path, args.lrate_decay) == (None, None)  # None is a value of these
    assert said == ['without a value, so the default counts: lrate, N_rand, white_bkgd, i_print, precision']


def test_of_keys_twice_the_last_counts_and_a_line_names_the_values(read):
    args, said = read(SCENE + 'N_rand = 64\nwhite_bkgd = True\nN_rand = 128\n--N_rand 32\nwhite_bkgd = True\n')
    assert (args.N_rand, args.white_bkgd) == (32, True)
    assert said == ['with several values, of which the last counts: N_rand (64, 128, 32)']


@pytest.mark.parametrize('data', [
    'datadir = data/stühle\n'.encode('utf-16'), codecs.BOM_UTF16_BE + 'datadir = data/stühle\n'.encode('utf-16-be'),
    codecs.BOM_UTF8 + 'datadir = data/stühle\n'.encode(), 'datadir = data/stühle\n'.encode()])
def test_unicode_with_and_without_a_mark(read, data):
    args, said = read(data)
    assert (args.datadir, said) == ('data/stühle', [])


def test_bytes_that_are_no_unicode_are_read_and_stay_as_they_are_in_names(read):
    args, said = read('# für den Stuhl\nexpname = x\nN_rand = 7\ndatadir = \xe9t\xe9\n'.encode('latin-1'))
    assert (args.N_rand, args.datadir.encode('utf-8', 'surrogateescape'), said) == (7, b'\xe9t\xe9', [])


# Keys of other programs, and misspelt ones


@pytest.mark.parametrize(('one', 'other', 'edits'), [
    ('', '', 0), ('abc', 'abc', 0), ('abc', 'abd', 1), ('abc', 'ab', 1), ('abc', 'abcd', 1), ('abc', 'acb', 1),
    ('abc', 'cab', 2), ('kitten', 'sitting', 3), ('', 'abc', 3)])
def test_edits_are_letters_added_left_out_replaced_and_swapped(one, other, edits):
    assert edits_between(one, other) == edits_between(other, one) == edits


@pytest.mark.parametrize(('key', 'flag'), [
    ('N_rnd', 'N_rand'), ('n_rand', 'N_rand'), ('N-rand', 'N_rand'), ('N_rnad', 'N_rand'), ('white-bkgd', 'white_bkgd'),
    ('White_Bkgd', 'white_bkgd'), ('white_bg', 'white_bkgd'), ('presicion', 'precision'), ('lratedecay', 'lrate_decay'),
    ('no_reloads', 'no_reload'), ('use_viewdir', 'use_viewdirs'), ('N_iter', 'N_iters'), ('xview', 'view'),
    ('nrnd', None), ('precrop_iters_time', None), ('finest_res', None), ('tbdir', None), ('scene', None),
    ('kernel_type', None), ('chunk_size', None), ('max_freq_log2', None), ('white_background', None),
    ('views_up', None), ('x' * 1000, None)])
def test_a_misspelling_is_one_or_two_letters_away_from_a_flag(key, flag):
    assert misspelt(key, FLAGS) == flag


@pytest.mark.parametrize('flag', FLAGS)
def test_every_flag_with_one_letter_missing_is_a_misspelling_of_a_flag(flag):
    assert all(misspelt(flag[:i] + flag[i + 1:], FLAGS) for i in range(len(flag)))


def test_keys_of_other_programs_are_one_warning_with_the_nearest_flags(read):
    args, said = read(SCENE + 'finest_res = 512\nN_rand = 64\nlog2_hashmap_size = 19\nprecrop_iters_time = 9\n'
                      'i_embed_x\n')
    assert args.N_rand == 64
    assert said == ['ignored, as they are no flags of this program: finest_res, log2_hashmap_size, precrop_iters_time '
                    '(nearest flag: precrop_iters), i_embed_x (nearest flag: i_embed)']


def test_a_misspelt_flag_stops_a_run_among_keys_of_other_programs_too(refused):
    line = refused(SCENE + 'finest_res = 512\nN_rand = 64\nN_smaples = 32\n')
    assert 'N_smaples = 32' in line
    assert 'did you mean N_samples?' in line


def test_the_steps_of_another_program_are_steps_here_unless_both_are_given(read, refused):
    args, said = read(SCENE + 'N_iter = 700\n')
    assert (args.N_iters, said) == (700, ['N_iter is read as N_iters'])
    assert read(SCENE + 'N_iter = 700\n', '--N_iters', '5')[0].N_iters == 5
    assert 'did you mean N_iters?' in refused(SCENE + 'N_iter = 700\nN_iters = 800\n')


def test_a_kind_of_data_of_another_program_is_read_as_ours(read):
    args, said = read('expname = a\ndataset_type = colmap_llff\n')
    assert (args.dataset_type, said) == ('llff', ['dataset_type = colmap_llff is read as llff'])


def test_a_file_without_any_flag_is_no_config(refused):
    assert 'none of its keys is a flag of this program: This, method' in refused('This is a text\nmethod: nerfacto\n')


def test_words_on_the_command_line_have_no_other_program(read, capsys):
    with pytest.raises(SystemExit):
        read(SCENE, '--finest_res', '512')
    assert "unknown flag '--finest_res'" in capsys.readouterr().err


@pytest.mark.parametrize(('name', 'ignored', 'expected'), [
    ('D-NeRF__lego', 'nerf_type', {'N_iters': 800000, 'N_rand': 500, 'white_bkgd': True, 'no_batching': True}),
    ('Deblur-NeRF__demo_blurball', 'kernel_shortcut', {'basedir': 'results', 'datadir': 'scene', 'llffhold': 7}),
    ('Deblur-NeRF__tx_blurpool_full_crf', 'tone_mapping_type', {'factor': 1, 'raw_noise_std': 1.0}),
    ('Deblur-NeRF__tx_defocuscake_naive', 'render_focuspoint_scale', {'llffhold': 9, 'N_iters': 200000}),
    ('HashNeRF-pytorch__chair', None, {'expname': 'blender_chair', 'half_res': True}),
    ('SCNeRF__materials_as_llff', None, {'factor': 8, 'N_importance': 64}),
    ('SCNeRF__nerfpp_tat_truck', 'ckpt_path', {'config': None, 'N_iters': 1500001, 'testskip': 1, 'no_reload': False}),
    ('bmild_nerf__deepvoxels_config', None, {'shape': 'cube', 'lrate_decay': 200}),
    ('DSNeRF__fern_2v', 'depth_lambda', {'dataset_type': 'llff', 'i_testset': 5000, 'no_ndc': True})])
def test_configs_of_other_programs_load(read, shared, name, ignored, expected):
    text = (shared / 'data' / 'inputs' / 'configs' / f'{name}.txt').read_bytes()
    args, said = read(text)
    values = vars(args) | {'config': None}
    assert {key: values[key] for key in expected} == expected
    ours = [line for line in said if line.startswith('ignored')]
    assert len(ours) == (ignored is not None)
    assert not ignored or ignored in ours[0]


def test_help_and_readme_say_how_a_misspelling_is_told_from_a_key_of_another_program(capsys):
    with pytest.raises(SystemExit):
        parse_flags(['--help'])
    for text in (capsys.readouterr().out, (ROOT / 'README.md').read_text(encoding='utf-8')):
        words = ' '.join(text.split())
        assert 'differs from a flag by one letter (by two, if the flag has 8 or more)' in words
