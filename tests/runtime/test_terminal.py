"""nerf/runtime/terminal.py: a program's lines can go nowhere, and it does its work and ends with its own exit code."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nerf.runtime.terminal import Lasting, as_text, lasting_streams

ROOT = Path(__file__).parents[2]
# Prints more than a stream keeps in memory, and writes a file that is opened after the streams were looked at.
PROGRAM = """
import os, sys
from contextlib import suppress
from nerf.runtime.terminal import lasting_streams
with lasting_streams():
    with open(sys.argv[1], 'w') as file:
        for number in (1, 2):
            with suppress(OSError):
                os.write(number, b'of a library\\n')
        for line in range(3000):
            print('a line é 椅 \\udce9')
            print('an error é 椅 \\udce9', file=sys.stderr, flush=True)
        file.write('done')
sys.exit(3)
"""
CLOSED = {'out': '>&-', 'error': '2>&-', 'both': '>&- 2>&-', 'all three': '<&- >&- 2>&-'}


def run_program(tmp_path: Path, shell: str, **options) -> subprocess.CompletedProcess:
    """Runs the program with a shell's redirections behind it."""
    options = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL} | options
    options['env'] = {name: value for name, value in options.get('env', os.environ).items()
                      if name != 'PYTHONUNBUFFERED'}  # what is left in the buffer is written last
    return subprocess.run(['bash', '-c', f'exec "$0" -c "$1" "$2" {shell}', sys.executable, PROGRAM,
                           str(tmp_path / 'file')], cwd=ROOT, check=False, **options)


@pytest.mark.parametrize('missing', CLOSED)
def test_a_program_without_streams_does_its_work_and_no_file_gets_their_lines(tmp_path, missing):
    assert run_program(tmp_path, CLOSED[missing]).returncode == 3
    assert (tmp_path / 'file').read_text() == 'done'


@pytest.mark.parametrize('stream', ['stdout', 'stderr'])
def test_a_pipe_whose_reader_is_gone_ends_nothing(tmp_path, stream):
    reader, writer = os.pipe()
    os.close(reader)
    assert run_program(tmp_path, '', **{stream: writer}).returncode == 3  # 120 is Python's own for a failed flush
    os.close(writer)
    assert (tmp_path / 'file').read_text() == 'done'


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_log_file_on_a_full_disk_ends_nothing(tmp_path):
    assert run_program(tmp_path, '>/dev/full 2>&1').returncode == 3
    assert (tmp_path / 'file').read_text() == 'done'


@pytest.mark.parametrize(('page', 'line'), [
    ('ascii', b'a line \\xe9 \\u6905 \\udce9'), ('latin-1', b'a line \xe9 \\u6905 \\udce9'),
    ('utf-8', b'a line \xc3\xa9 \xe6\xa4\x85 \\udce9')])
def test_letters_that_a_code_page_lacks_are_numbers(tmp_path, page, line):
    done = run_program(tmp_path, '', stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       env=os.environ | {'PYTHONIOENCODING': page})
    assert done.returncode == 3
    assert done.stdout.splitlines()[1:] == [line] * 3000
    assert done.stderr.splitlines()[1:] == [line.replace(b'a line', b'an error')] * 3000


def test_a_line_from_a_signal_handler_in_the_middle_of_a_write_ends_nothing():
    """Python refuses a second write within the first one by an error."""
    class Slow(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            if not seen:
                os.kill(os.getpid(), signal.SIGUSR1)
            return len(data)

    stream, seen = io.TextIOWrapper(io.BufferedWriter(Slow(), 1)), []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(Lasting(stream).write('from the handler')))
    try:
        Lasting(stream).write('a line that is longer than the buffer' * 500)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen


def test_streams_are_as_before_afterwards_and_have_what_was_printed(capsys):
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyError), lasting_streams():  # noqa: PT012
        print('a line')
        print('an error', file=sys.stderr)
        assert sys.stdout.isatty() is False
        raise KeyError
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == ('a line\n', 'an error\n')


def test_a_stream_that_is_hardly_one_gets_the_lines_too(monkeypatch):
    class Kept:
        """A stream as people write one to keep what is printed: it can do nothing else."""
        text = ''

        def write(self, text):
            self.text += text

    monkeypatch.setattr(sys, 'stdout', kept := Kept())
    with lasting_streams():
        print('a line')
    assert kept.text == 'a line\n'
    assert sys.stdout is kept


def test_text_is_text_in_every_code_page():
    assert as_text('é 椅') == 'é 椅'
    assert as_text(os.fsdecode(b'\xe9t\xe9')) == '\\udce9t\\udce9'
    assert as_text('é 椅', 'latin-1') == 'é \\u6905'
