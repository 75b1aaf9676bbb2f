"""Folder of a run: its lock, the files of an earlier run in it, and the record of the run's flags."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import torch

from nerf.files.whole_file import PARTIAL, whole_file
from nerf.runtime.errors import UserError

LOCK = '.lock'


@contextmanager
def locked(run_dir: Path):
    """Context that makes a run's folder, locks it against other training runs, and removes partial files of a killed
    run. The kernel releases the lock when the process ends, however it ends. If another process has it, a UserError
    says so."""
    try:
        import fcntl
    except ImportError:  # Windows has no fcntl
        yield
        return
    with _open_locked(run_dir, fcntl) as file:
        file.truncate(0)
        print(f'process {os.getpid()} on {socket.gethostname()}', file=file, flush=True)
        for left in run_dir.rglob(PARTIAL + '*'):
            with suppress(OSError):
                left.unlink()
        try:
            yield
        finally:
            with suppress(OSError):
                (run_dir / LOCK).unlink()
                run_dir.rmdir()  # fails unless the folder is empty


def _open_locked(run_dir: Path, fcntl):
    """File of the lock, open and locked."""
    path = run_dir / LOCK
    while True:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            file = open(path, 'a+', encoding='utf-8')  # noqa: SIM115 (the caller closes it)
        except OSError as error:
            raise UserError(f'{run_dir} cannot be written to ({error}); choose another basedir') from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BlockingIOError:
            file.seek(0)
            raise UserError(f'{run_dir} is in use by {file.read().strip() or "another process"}; wait until it is '
                            'done, stop it, or choose another expname') from None
        except OSError as error:
            print(f'warning: {path} cannot be locked ({error}); let no other run use this folder', file=sys.stderr)
            return file
        file.close()  # removed by another run, which ended meanwhile


def set_aside(run_dir: Path) -> Path | None:
    """New folder previous_N, into which the files of an earlier run are moved, so that they do not mix with the files
    of a fresh start; None: there are no files."""
    left = [path for path in Path(run_dir).glob('*') if not path.name.startswith('previous_') and path.name != LOCK]
    if not left:
        return None
    aside = next(path for path in (run_dir / f'previous_{n}' for n in count(1)) if not path.exists())
    try:
        aside.mkdir()
        for path in left:
            path.rename(aside / path.name)
    except OSError as error:
        raise UserError(f'{run_dir} cannot be set aside ({error}); choose another expname') from error
    return aside


def record_flags(run_dir: Path, flags: str, config: str | None) -> None:
    """Writes args.txt, with versions and all flags as a config, and config.txt, the config as given."""
    versions = f'# python {platform.python_version()}\n# torch {torch.__version__}\n# code {code_version()}\n'
    with whole_file(run_dir / 'args.txt') as partial:
        partial.write_text(versions + flags, encoding='utf-8', errors='surrogateescape')
    if config and Path(config).resolve().parent != run_dir.resolve():
        with whole_file(run_dir / 'config.txt') as partial:
            partial.write_bytes(Path(config).read_bytes())


def code_version(folder: Path = Path(__file__).parent) -> str:
    """Git commit of the code in a folder, with '-dirty' behind it if tracked files differ from the commit; 'unknown'
    without git or its history."""
    command = ['git', '-C', str(folder), 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return 'unknown'
