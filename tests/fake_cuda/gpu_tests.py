"""Tests marked `gpu` run on a GPU where there is one, else on the pretended GPU of pretended.py.

The pretended GPU needs a process of its own. All marked tests of a file run in one process, at the first of them, and
each test is reported as passed, skipped, or failed with its traceback.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
TIMEOUT = 900  # seconds for all marked tests of a file


def pytest_collection_finish(session) -> None:
    session.gpu_nodes = tuple(item.nodeid for item in session.items if item.get_closest_marker('gpu'))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem) -> bool | None:
    if pyfuncitem.get_closest_marker('gpu') is None or torch.cuda.is_available():
        return None
    file = pyfuncitem.nodeid.partition('::')[0]
    nodes = tuple(node for node in pyfuncitem.session.gpu_nodes if node.partition('::')[0] == file)
    outcome, words = results(nodes, pyfuncitem.config.rootpath)[pyfuncitem.nodeid]
    if outcome == 'skipped':
        pytest.skip(words)
    elif outcome == 'failed':
        pytest.fail(f'on a pretended GPU:\n{words}', pytrace=False)
    return True


@functools.cache
def results(nodes: tuple[str, ...], root: Path) -> dict[str, tuple[str, str]]:
    """Outcome of each test, and the words to report with it."""
    with tempfile.TemporaryDirectory() as folder:
        found, said = Path(folder) / 'results.json', ''
        try:
            library = pretended_library()
        except NotImplementedError as reason:
            return dict.fromkeys(nodes, ('skipped', str(reason)))
        except subprocess.CalledProcessError as error:
            said = f'{HERE / "device.cpp"} does not compile:\n{error.stderr}'
        else:
            said = output_of([sys.executable, HERE / 'run.py', library, found, *nodes], root)
        outcomes = json.loads(found.read_text(encoding='utf-8')) if found.exists() else {}
    return dict.fromkeys(nodes, ('failed', f'its process ended before it:\n{said}')) | outcomes


def pretended_library() -> Path:
    """Library of device.cpp for the installed torch, compiled once for all processes of this user.

    Raises:
        NotImplementedError: this machine cannot pretend a GPU; the message says why.
        CalledProcessError: device.cpp does not compile.
    """
    compiler, source = shutil.which('c++') or shutil.which('g++'), HERE / 'device.cpp'
    if compiler is None or sys.platform != 'linux' or torch.version.cuda is not None:
        raise NotImplementedError('needs a GPU, or to pretend one: Linux, a C++ compiler (g++) and a PyTorch without '
                                  'CUDA')
    import fcntl

    torch_dir = Path(torch.__file__).parent
    options = ['-std=c++20', '-O0', '-shared', '-fPIC', f'-I{torch_dir}/include', f'-L{torch_dir}/lib', '-lc10',
               '-ltorch_cpu', f'-Wl,-rpath,{torch_dir}/lib']
    made_from = [source.read_bytes(), *map(str.encode, [torch.__version__, compiler, *options])]
    folder = Path(tempfile.gettempdir()) / f'pretended_gpu_{os.getuid()}'
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f'{folder} belongs to another user; remove it')
    library = folder / f'{hashlib.sha256(b"|".join(made_from)).hexdigest()[:16]}.so'
    with open(folder / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed: other processes wait for the library
        if not library.exists():
            partial = library.with_suffix('.partial')
            subprocess.run([compiler, source, *options, '-o', partial], capture_output=True, text=True, check=True)
            partial.rename(library)
    return library


def output_of(command: list, folder: Path) -> str:
    """Runs a command in a folder; the end of its output."""
    try:
        done = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=TIMEOUT, env=os.environ | {'OMP_NUM_THREADS': '1'})
    except subprocess.TimeoutExpired as error:
        return f'{error}'
    return done.stdout[-5000:]
