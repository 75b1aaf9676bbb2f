"""The folder of a run: whose it is, what an earlier run left in it, and the record of its flags."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from nerf.files.whole_file import PARTIAL, whole_file
from nerf.runtime.errors import UserError

LOCK = '.lock'


@contextmanager
def locked(run_dir: Path):
    """Keeps other training runs out of a run's folder, which is made, and removes what a killed one left half written.

    The lock is the kernel's: it goes with the process, however that ends.

    Raises:
        UserError: another process trains there.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    with _open_locked(run_dir, fcntl) as file:
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
        file.flush()
        for left in run_dir.rglob(PARTIAL + '*'):
            with suppress(OSError):
                left.unlink()
        try:
            yield
        finally:
            with suppress(OSError):
                (run_dir / LOCK).unlink()
                run_dir.rmdir()  # where nothing else is in it


def _open_locked(run_dir: Path, fcntl):
    """The lock's file, open and locked."""
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
            print(f'warning: {path} cannot be locked ({error}); see to it that no other run uses it', file=sys.stderr)
            return file
        file.close()  # of a run that ended meanwhile and took its file away


def set_aside(run_dir: Path) -> Path | None:
    """Moves all that an earlier run left into a folder previous_N of its own, so that a fresh start cannot mix with it;
    None where there is nothing.

    Raises:
        UserError: the folder cannot be written.
    """
    left = [path for path in Path(run_dir).glob('*') if not path.name.startswith('previous_') and path.name != LOCK]
    if not left:
        return None
    number = 1
    while (aside := run_dir / f'previous_{number}').exists():
        number += 1
    try:
        aside.mkdir()
        for path in left:
            path.rename(aside / path.name)
    except OSError as error:
        raise UserError(f'{run_dir} cannot be set aside ({error}); choose another expname') from error
    return aside


def record_flags(run_dir: Path, flags: str, config: str | None) -> None:
    """Writes args.txt, what ran the run and its flags as lines of a config, and config.txt, the config as given."""
    ran_by = f'# python {platform.python_version()}\n# torch {torch.__version__}\n# code {code_version()}\n'
    with whole_file(run_dir / 'args.txt') as partial:
        partial.write_text(ran_by + flags, encoding='utf-8')
    if config and Path(config).resolve().parent != run_dir.resolve():
        with whole_file(run_dir / 'config.txt') as partial:
            partial.write_bytes(Path(config).read_bytes())


def code_version() -> str:
    """The git commit of this code, with '-dirty' behind it where tracked files differ from it; else 'unknown'."""
    command = ['git', '-C', str(Path(__file__).parent), 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or a copy without its history
        return 'unknown'
