"""structure_from_motion.py: COLMAP in a process of its own. test_estimation.py checks what it finds."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import turn
from PIL import Image

from nerf.captures.structure_from_motion import structure_from_motion
from nerf.runtime.errors import UserError


@pytest.fixture
def grey_pictures(tmp_path) -> Path:
    """A folder of three plain pictures, in which there is nothing to find."""
    (tmp_path / 'images').mkdir()
    for i in range(3):
        Image.new('RGB', (64, 48), (90, 90, 90)).save(tmp_path / 'images' / f'{i:04d}.jpg')
    return tmp_path


def program(text: str) -> list[str]:
    """The command of a program that is run in COLMAP's place; `folder` is its folder."""
    return [sys.executable, '-c', 'import os, sys, time; folder = sys.argv[1]\n' + text]


@pytest.mark.slow
def test_photographs_without_texture_have_no_cameras_and_each_stage_leaves_a_line(grey_pictures, capsys):
    assert structure_from_motion(grey_pictures, [0, 0, 0]) is None
    lines = [line.partition(' in ')[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ['features: 3 of 3', 'pairs: 3 of 3', 'cameras: 0 of 3', 'cameras, all at once: 0 of 3']


@pytest.mark.slow
def test_a_failure_of_colmap_is_one_line_with_its_last_words(grey_pictures):
    shutil.rmtree(grey_pictures / 'images')
    with pytest.raises(UserError, match=r'failed at its stage "start" \(exit code 1\); its last lines: .*images'):
        structure_from_motion(grey_pictures, [0, 0, 0])


def test_a_crash_is_named_with_its_stage(grey_pictures):
    crash = program('print("pairs\\t1\\t3", flush=True); print("wrong memory", file=sys.stderr, flush=True)\n'
                    'os.kill(os.getpid(), 11)')
    with pytest.raises(UserError, match=r'stage "pairs" \(SIGSEGV\); its last lines: wrong memory'):
        structure_from_motion(grey_pictures, [0, 0, 0], command=crash)


def test_whoever_is_interrupted_leaves_no_process_behind(grey_pictures):
    forever = program('open(folder + "/pid", "w").write(str(os.getpid())); print("pairs\\t1\\t3", flush=True)\n'
                      'os.kill(os.getppid(), 2); time.sleep(1000)')  # SIGINT, as by Ctrl-C
    with pytest.raises(KeyboardInterrupt):
        structure_from_motion(grey_pictures, [0, 0, 0], command=forever)
    assert not Path('/proc', (grey_pictures / 'pid').read_text()).exists()


def test_a_missing_pycolmap_is_named_before_any_work(grey_pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pycolmap', None)  # as if it were not installed
    with pytest.raises(UserError, match='pip install pycolmap'):
        structure_from_motion(grey_pictures, [0, 0, 0])
    assert [path.name for path in grey_pictures.iterdir()] == ['images']


def test_the_result_is_that_of_the_process_with_poses_in_opengl_axes(grey_pictures, capsys):
    rotation, position = turn([0, 1, 0], 17.0), np.array([1.0, 2.0, 3.0])  # of a camera, OpenCV axes
    numbers = {'index': np.array([0, 2]), 'lenses': np.arange(16.0).reshape(2, 8), 'points': np.ones((1, 3)),
               'colours': np.full((1, 3), 7, np.uint8), 'error': 0.25, 'sizes': np.array([2]),
               'world_to_camera': np.stack([np.column_stack([rotation.T, -rotation.T @ position]), np.eye(3, 4)])}
    np.savez(grey_pictures / 'made.npz', **numbers)
    made = program('import json; job = json.load(open(folder + "/job.json")); assert job["groups"] == [0, 1, 0]\n'
                   'os.rename(folder + "/made.npz", folder + "/result.npz"); print("cameras\\t2\\t3")')
    cameras = structure_from_motion(grey_pictures, [0, 1, 0], command=made)
    for name in ('index', 'lenses', 'points', 'colours', 'error', 'sizes'):
        assert np.array_equal(getattr(cameras, name), numbers[name])
    pose = cameras.poses[0]
    np.testing.assert_allclose(pose[:, 3], position)
    np.testing.assert_allclose(pose[:, 0], rotation[:, 0])  # right
    np.testing.assert_allclose(pose[:, 1], -rotation[:, 1])  # up: COLMAP's y points down
    np.testing.assert_allclose(pose[:, 2], -rotation[:, 2])  # backward: COLMAP's z points forward
    assert capsys.readouterr().out.startswith('cameras: 2 of 3 in ')
