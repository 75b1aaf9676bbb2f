"""nerf/files/run_folder.py: a run's folder has one run at a time, and says what ran it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys

import pytest
import torch

from nerf.files.run_folder import LOCK, code_version, locked, record_flags, set_aside
from nerf.files.whole_file import PARTIAL
from nerf.runtime.errors import UserError

# The lock


def test_a_lock_ends_with_its_block_also_by_an_error(tmp_path):
    run_dir = tmp_path / 'run'
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(run_dir):  # noqa: PT012
            assert set_aside(run_dir) is None  # the lock is nothing that an earlier run left
            with pytest.raises(UserError, match=f'{run_dir} is in use by process {os.getpid()} on '), locked(run_dir):
                pass
            raise ZeroDivisionError
    assert not run_dir.exists()  # nothing else was in it


def test_what_a_killed_run_left_half_written_goes_and_all_else_stays(tmp_path):
    (tmp_path / 'testset_000020').mkdir()
    for name in (f'{PARTIAL}000010.tar', f'testset_000020/{PARTIAL}000.png', 'testset_000020/001.png', '000009.tar'):
        (tmp_path / name).write_bytes(b'x')
    with locked(tmp_path):
        files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*') if path.is_file())
        assert files == [LOCK, '000009.tar', 'testset_000020/001.png']
    assert not (tmp_path / LOCK).exists()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / 'logs').touch()
    message = 'cannot be written to .* choose another basedir'
    with pytest.raises(UserError, match=message), locked(tmp_path / 'logs' / 'run'):
        pass


# What an earlier run left


def test_an_earlier_run_is_set_aside_in_the_next_free_folder(tmp_path):
    assert set_aside(tmp_path) is None
    for number in (1, 2):
        (tmp_path / '000010.tar').write_text(f'run {number}')
        (tmp_path / 'testset_000010').mkdir()
        with locked(tmp_path):
            assert set_aside(tmp_path) == tmp_path / f'previous_{number}'
            assert sorted(path.name for path in tmp_path.iterdir()) == [
                LOCK, *(f'previous_{n}' for n in range(1, number + 1))]
        assert (tmp_path / f'previous_{number}' / '000010.tar').read_text() == f'run {number}'
        assert (tmp_path / f'previous_{number}' / 'testset_000010').is_dir()


# The record


def test_flags_are_recorded_with_versions_beside_the_config_as_given(tmp_path):
    config, run_dir = tmp_path / 'mine.txt', tmp_path / 'run'
    config.write_bytes(b'N_rand = 5\r\n')
    record_flags(run_dir, 'N_rand = 5\n', str(config))
    assert (run_dir / 'args.txt').read_text() == (
        f'# python {platform.python_version()}\n# torch {torch.__version__}\n# code {code_version()}\nN_rand = 5\n')
    assert (run_dir / 'config.txt').read_bytes() == b'N_rand = 5\r\n'
    record_flags(run_dir, 'N_rand = 6\n', str(run_dir / 'args.txt'))  # its own flags are no new config
    assert (run_dir / 'args.txt').read_text().endswith('\nN_rand = 6\n')
    assert (run_dir / 'config.txt').read_bytes() == b'N_rand = 5\r\n'


@pytest.mark.slow
def test_args_txt_has_the_versions(logged_run):
    lines = (logged_run / 'args.txt').read_text().splitlines()
    assert lines[0] == f'# python {sys.version.split()[0]}'
    assert lines[1] == f'# torch {torch.__version__}'
    assert re.fullmatch(r'# code ([0-9a-f]{40}(-dirty)?|unknown)', lines[2])
    assert all(' = ' in line for line in lines[3:])


def test_code_version_tells_a_changed_tree_and_a_copy_without_history(tmp_path, monkeypatch):
    file = tmp_path / 'code.py'
    file.write_text('print()\n')
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
    assert code_version(tmp_path) == 'unknown'
    if not shutil.which('git'):
        pytest.skip('needs git')

    def git(*words: str) -> str:
        settings = ['user.name=a', 'user.email=a@b.c', 'commit.gpgsign=false', 'tag.gpgsign=false']
        command = ['git', *[word for setting in settings for word in ('-c', setting)], *words]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()
    git('init', '-q')
    git('add', '.')
    git('commit', '-q', '-m', 'first')
    git('tag', 'v1')
    assert code_version(tmp_path) == git('rev-parse', 'HEAD')
    file.write_text('print(1)\n')
    assert code_version(tmp_path) == git('rev-parse', 'HEAD') + '-dirty'
    monkeypatch.setenv('PATH', '')
    assert code_version(tmp_path) == 'unknown'
