"""structure_from_motion.py: COLMAP in a process of its own. test_estimation.py checks what it finds."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from nerf.captures import structure_from_motion as module
from nerf.runtime.errors import UserError
from nerf.captures.structure_from_motion import ALL_PAIRS, ANCHORS, NEIGHBOURS, pairs_to_match, structure_from_motion


@pytest.fixture
def grey_pictures(tmp_path):
    """A folder of three plain pictures, in which there is nothing to find."""
    (tmp_path / 'images').mkdir()
    for i in range(3):
        Image.new('RGB', (64, 48), (90, 90, 90)).save(tmp_path / 'images' / f'{i:04d}.jpg')
    return tmp_path


@pytest.fixture
def processes(monkeypatch):
    """The processes that are started."""
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(module.subprocess, 'Popen', Recorded)
    return started


def test_of_a_few_photographs_all_pairs_are_matched():
    assert pairs_to_match(4) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert len(pairs_to_match(ALL_PAIRS)) == ALL_PAIRS * (ALL_PAIRS - 1) // 2


def test_of_many_photographs_neighbours_are_matched_and_some_with_all():
    count = 300
    pairs = set(pairs_to_match(count))
    assert len(pairs) == len(pairs_to_match(count)) < count * (NEIGHBOURS + ANCHORS)
    assert pairs >= {(i, i + step) for step in range(1, NEIGHBOURS + 1) for i in range(count - step)}
    met = [sum(i in pair for pair in pairs) for i in range(count)]
    assert met.count(count - 1) == ANCHORS
    # Of two stretches of a path that meet again, each photograph is matched with one close to where the other one is.
    assert all(any((min(i, k), max(i, k)) in pairs for k in range(j - 10, j + 11))
               for i, j in itertools.product(range(20, 280, 7), repeat=2) if abs(i - j) > 30)


def test_photographs_without_texture_have_no_cameras(grey_pictures):
    assert structure_from_motion(grey_pictures, [0, 0, 0]) is None


def test_a_failure_of_colmap_is_one_line_with_its_last_words(grey_pictures):
    shutil.rmtree(grey_pictures / 'images')
    with pytest.raises(UserError, match=r'failed at its stage "start" \(exit code 1\); its last lines: .*images'):
        structure_from_motion(grey_pictures, [0, 0, 0])


def test_a_crash_of_colmap_is_named(grey_pictures, monkeypatch):
    program = grey_pictures / 'python'
    program.write_text('#!/bin/sh\necho wrong memory >&2\nkill -SEGV $$\n')
    program.chmod(0o755)
    monkeypatch.setattr(module.sys, 'executable', str(program))
    with pytest.raises(UserError, match=r'stage "start" \(SIGSEGV\); its last lines: wrong memory'):
        structure_from_motion(grey_pictures, [0, 0, 0])


def test_whoever_is_interrupted_leaves_no_process_behind(grey_pictures, processes, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module._Stages, 'show', interrupted)
    with pytest.raises(KeyboardInterrupt):
        structure_from_motion(grey_pictures, [0, 0, 0])
    assert [process.returncode for process in processes] == [-9]


def test_a_missing_pycolmap_is_named_before_any_work(grey_pictures, processes, monkeypatch):
    monkeypatch.setattr(module.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='pip install pycolmap'):
        structure_from_motion(grey_pictures, [0, 0, 0])
    assert not processes


def test_each_stage_leaves_a_line_with_its_seconds(grey_pictures, capsys):
    structure_from_motion(grey_pictures, [0, 0, 0])
    lines = [line.partition(' in ')[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ['features: 3 of 3', 'pairs: 3 of 3', 'cameras: 0 of 3', 'cameras, all at once: 0 of 3']


def test_poses_have_opengl_axes():
    angle = 0.3  # a camera that stands at (1, 2, 3) and is turned about its y axis
    to_world = np.array([[np.cos(angle), 0.0, np.sin(angle)], [0.0, 1.0, 0.0], [-np.sin(angle), 0.0, np.cos(angle)]])
    position = np.array([1.0, 2.0, 3.0])
    pose = module._pose(np.column_stack([to_world.T, -to_world.T @ position]))
    assert np.allclose(pose[:, 3], position)
    assert np.allclose(pose[:, 0], to_world[:, 0])  # right
    assert np.allclose(pose[:, 1], -to_world[:, 1])  # up: COLMAP's y points down
    assert np.allclose(-pose[:, 2], to_world[:, 2])  # forward


def test_photographs_in_two_models_count_once_and_very_few_not_at_all():
    class Found:
        def __init__(self, *ids):
            self.ids = ids

        def reg_image_ids(self):
            return self.ids

        def num_reg_images(self):
            return len(self.ids)

    models = [Found(4, 5, 6, 7), Found(1, 2, 3, 4, 5), Found(3, 6, 8, 9), Found(9, 10, 11, 12, 13)]
    assert module._new_in_each(models) == [5, 5]  # of 4, 5, 6, 7 only 6 and 7 are new
    assert module._new_in_each([*models, Found(6, 7, 8)]) == [5, 5, 3]


def test_the_process_needs_no_torch():
    code = 'import sys, nerf.captures.structure_from_motion; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=module.Path(module.__file__).parents[2]).returncode == 0
