"""Tests marked `gpu`: they run on a GPU where there is one, else on the pretended one of pretended.py.

The pretended GPU needs a process of its own. All marked tests of a file run in one, at the first of them, and each is
reported as what it is: passed, skipped, or failed with its traceback.
"""

from __future__ import annotations

import functools
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
TIMEOUT = 900  # seconds for all tests


def pytest_configure(config) -> None:
    config.addinivalue_line('markers', 'gpu: for CUDA; without a GPU it runs on a pretended one')


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
    """The outcome, and what is to be said about it, of each test."""
    with tempfile.TemporaryDirectory() as folder:
        found, said = Path(folder) / 'results.json', ''
        try:
            library = pretended_library(Path(folder))
        except NotImplementedError as reason:
            return dict.fromkeys(nodes, ('skipped', str(reason)))
        except subprocess.CalledProcessError as error:
            said = f'{HERE / "device.cpp"} does not compile:\n{error.stderr}'
        else:
            said = output_of([sys.executable, HERE / 'run.py', library, found, *nodes], root)
        outcomes = json.loads(found.read_text(encoding='utf-8')) if found.exists() else {}
    return dict.fromkeys(nodes, ('failed', f'its process ended before it:\n{said}')) | outcomes


def pretended_library(folder: Path) -> Path:
    """Compiles device.cpp against the installed torch, into a folder.

    Raises:
        NotImplementedError: no GPU can be pretended here; the message says why.
        CalledProcessError: it does not compile.
    """
    compiler, torch_dir, library = shutil.which('c++') or shutil.which('g++'), Path(torch.__file__).parent, (
        folder / 'device.so')
    if compiler is None or sys.platform != 'linux' or torch.version.cuda is not None:
        raise NotImplementedError('needs a GPU, or to pretend one: Linux, a C++ compiler (g++) and a PyTorch without '
                                  'CUDA')
    command = [compiler, '-std=c++20', '-O0', '-shared', '-fPIC', f'-I{torch_dir}/include', HERE / 'device.cpp',
               f'-L{torch_dir}/lib', '-lc10', '-ltorch_cpu', f'-Wl,-rpath,{torch_dir}/lib', '-o', library]
    subprocess.run(command, capture_output=True, text=True, check=True)
    return library


def output_of(command: list, folder: Path) -> str:
    """Runs a command in a folder; the end of what it printed."""
    try:
        done = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=TIMEOUT, env=os.environ | {'OMP_NUM_THREADS': '1'})
    except subprocess.TimeoutExpired as error:
        return f'{error}'
    return done.stdout[-5000:]
