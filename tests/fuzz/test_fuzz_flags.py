"""Configs with hostile lines: they are read, or refused with exit code 2 and one line."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hostile import EDITS, JSON_VALUES, LONGEST_MESSAGE, SCALARS, WORDS, edited, files_in, fuzzed
from hypothesis import example, given
from hypothesis import strategies as st

from nerf.flags import parse_flags

pytestmark = pytest.mark.fuzz
KEYS = sorted([*vars(parse_flags(['--expname', 'x'])), 'help'])
VALUES = SCALARS.map(lambda value: '9' * 400 if value == 10 ** 400 else str(value)) | JSON_VALUES.filter(
    lambda value: isinstance(value, list)).map(json.dumps) | st.builds(str.__add__, st.sampled_from(
        ['cuda:', '-', '--', '"', '[', '1e', 'True', 'x/', ' # ', '; ']), WORDS)
ENDS = st.sampled_from([' = ', ': ', ' ', '=', '', ' = ='])


def flags_or_refused(path: Path) -> None:
    """parse_flags of a config ends well, or with exit code 2 and one line beside warnings."""
    streams = io.StringIO(), io.StringIO()
    before = files_in(path.parent)
    try:
        with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
            args = parse_flags(['--config', str(path)])
        assert set(vars(args)) == set(vars(parse_flags(['--expname', 'x'])))
    except SystemExit as ended:
        assert ended.code == 2  # noqa: PT017 (it may end well too)
        *said, end = streams[1].getvalue().split('\n')
        assert [line.startswith('warning: ') for line in said] == [True] * (len(said) - 1) + [False]
        assert end == ''
        assert len(said[-1]) < LONGEST_MESSAGE
    assert streams[0].getvalue() == ''
    assert files_in(path.parent) == before


@fuzzed
@given(lines=st.lists(st.builds(''.join, st.tuples(st.sampled_from(KEYS), ENDS, VALUES)) | st.text(max_size=20) | WORDS,
                      min_size=1, max_size=4))
@example(lines=['help'])
@example(lines=['config = /dev/null'])
@example(lines=['config = another', 'help = None'])
@example(lines=['device = cuda:' + '1' * 5000])
def test_a_config_of_any_lines(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / 'config' / 'any.txt'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes('\n'.join(lines).encode('utf-8', 'surrogatepass'))
    flags_or_refused(path)


@fuzzed
@given(edits=EDITS)
def test_an_edited_config(tmp_path_factory, edits):
    path = tmp_path_factory.getbasetemp() / 'config' / 'edited.txt'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(edited((Path(__file__).parents[2] / 'configs' / 'lego.txt').read_bytes(), edits))
    flags_or_refused(path)


def test_a_config_that_names_itself_is_an_error_and_one_that_names_another_is_told_that_they_do_not_nest(
        tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, other = tmp_path / 'a.txt', tmp_path / 'b.txt'
    other.write_text('N_samples = 7\n')
    for itself in (path, 'a.txt', './b/../a.txt'):
        path.write_text(f'config = {itself}\nN_samples = 5\n')
        with pytest.raises(SystemExit) as exit_:
            parse_flags(['--config', str(path)])
        assert exit_.value.code == 2
        assert re.fullmatch(r'.*a\.txt names itself.*\n', capsys.readouterr().err)
    for another in (other, 'gone.txt'):
        path.write_text(f'config = {another}\nN_samples = 5\n')
        args = parse_flags(['--config', str(path)])
        assert (args.config, args.N_samples, args.N_rand) == (str(path), 5, 4096)
        assert re.fullmatch(rf'warning: .*config = {another}.*nest.*\n', capsys.readouterr().err)


@pytest.mark.parametrize('text', [
    'N_rand = ' + '9' * 1_000_000, 'datadir = ' + '[' * 100_000 + ']', 'N_rand = ' + '[' * 900 + ']' * 900,
    'a =' + ' #' * 3000, 'a = "' + '" ' * 3000, 'x' * 1_000_000, 'datadir = a\0b', 'basedir = \0', 'expname = a\0',
    'no_batching = []', 'N_rand = [1, 2]', 'device = cuda:' + '1' * 5000])
def test_a_config_line_made_to_do_harm_is_refused_in_one_line(tmp_path, capsys, text):
    (tmp_path / 'a.txt').write_text(text)
    with pytest.raises(SystemExit) as ended:
        parse_flags(['--config', str(tmp_path / 'a.txt')])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count('\n')) == ('', 1)
    assert len(err) < LONGEST_MESSAGE
