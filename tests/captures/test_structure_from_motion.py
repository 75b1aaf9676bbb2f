"""structure_from_motion.py: COLMAP in a process of its own. test_estimation.py checks what it finds."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nerf.captures.structure_from_motion import (
    EstimationRules, mapped_cameras, new_in_each, pairs_to_match, structure_from_motion,
)


ROOT = Path(__file__).parents[2]
RULES = EstimationRules(all_pairs=80, neighbours=10, anchors=20)


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
    with pytest.raises(ChildProcessError, match=r'at its stage "start" \(exit code 1\); its last lines: .*images'):
        structure_from_motion(grey_pictures, [0, 0, 0])


def test_a_crash_is_named_with_its_stage(grey_pictures):
    crash = program('print("pairs\\t1\\t3", flush=True); print("wrong memory", file=sys.stderr, flush=True)\n'
                    'os.kill(os.getpid(), 11)')
    with pytest.raises(ChildProcessError, match=r'stage "pairs" \(SIGSEGV\); its last lines: wrong memory'):
        structure_from_motion(grey_pictures, [0, 0, 0], command=crash)


def test_whoever_is_interrupted_leaves_no_process_behind(grey_pictures):
    forever = program('open(folder + "/pid", "w").write(str(os.getpid())); print("pairs\\t1\\t3", flush=True)\n'
                      'os.kill(os.getppid(), 2); time.sleep(1000)')  # SIGINT, as by Ctrl-C
    with pytest.raises(KeyboardInterrupt):
        structure_from_motion(grey_pictures, [0, 0, 0], command=forever)
    assert not Path('/proc', (grey_pictures / 'pid').read_text()).exists()


def test_a_missing_pycolmap_is_named_before_any_work(grey_pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pycolmap', None)  # as if it were not installed
    with pytest.raises(ChildProcessError, match='pip install pycolmap'):
        structure_from_motion(grey_pictures, [0, 0, 0])
    assert [path.name for path in grey_pictures.iterdir()] == ['images']


def test_the_result_is_that_of_the_process(grey_pictures, capsys):
    numbers = {'index': np.array([0, 2]), 'lenses': np.arange(16.0).reshape(2, 8), 'points': np.ones((1, 3)),
               'colours': np.full((1, 3), 7, np.uint8), 'error': 0.25, 'sizes': np.array([2]),
               'world_to_camera': np.arange(24.0).reshape(2, 3, 4)}
    np.savez(grey_pictures / 'made.npz', **numbers)
    made = program('import json; job = json.load(open(folder + "/job.json")); assert job["groups"] == [0, 1, 0]\n'
                   'os.rename(folder + "/made.npz", folder + "/result.npz"); print("cameras\\t2\\t3")')
    cameras = structure_from_motion(grey_pictures, [0, 1, 0], command=made)
    for name, value in numbers.items():
        assert np.array_equal(getattr(cameras, name), value)
    assert capsys.readouterr().out.startswith('cameras: 2 of 3 in ')


# The program


def test_of_a_few_photographs_all_pairs_are_matched():
    assert pairs_to_match(4) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert len(pairs_to_match(80, RULES)) == 80 * 79 // 2
    assert len(pairs_to_match(81, RULES)) < 80 * 79 // 2


def test_of_many_photographs_neighbours_are_matched_and_some_with_all():
    count = 300
    pairs = set(pairs_to_match(count, RULES))
    assert len(pairs) == len(pairs_to_match(count, RULES)) < count * 30
    assert pairs >= {(i, i + step) for step in range(1, 11) for i in range(count - step)}
    met = [sum(i in pair for pair in pairs) for i in range(count)]
    assert met.count(count - 1) == 20
    # Of two stretches of a path that meet again, each photograph is matched with one close to where the other one is.
    assert all(any((min(i, k), max(i, k)) in pairs for k in range(j - 10, j + 11))
               for i, j in itertools.product(range(20, 280, 7), repeat=2) if abs(i - j) > 30)


def test_neighbours_and_anchors_are_rules():
    assert pairs_to_match(6, EstimationRules(all_pairs=5, neighbours=1, anchors=1)) == [
        (0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 2), (2, 3), (3, 4), (4, 5)]


def test_photographs_in_two_models_count_once_and_very_few_not_at_all():
    models = [(1, 2, 3, 4, 5), (9, 10, 11, 12, 13), (4, 5, 6, 7), (3, 6, 8, 9)]
    assert new_in_each(models, 3) == [5, 5]  # of 4, 5, 6, 7 only 6 and 7 are new
    assert new_in_each([*models, (6, 7, 8)], 3) == [5, 5, 3]
    assert new_in_each(models, 1) == [5, 5, 2, 1]


def test_a_model_is_described_by_what_its_cameras_see(tiny_colmap, tmp_path):
    _, model = tiny_colmap(tmp_path)
    names = {image.name: i for i, image in enumerate(sorted(model.images.values(), key=lambda image: image.image_id))}
    for image in model.images.values():
        image.name = f'{7 - names[image.name]:04d}.jpg'  # the order of names is not that of the model
    moved = model.images[3].point2D(5)  # which is not the first, as that shows no point
    moved.xy = moved.xy + [60.0, 80.0]
    cameras = mapped_cameras(model)
    assert cameras.index.tolist() == [2, 3, 4, 5, 6, 7]
    np.testing.assert_allclose(np.linalg.norm(cameras.positions, axis=1), 4.0)
    assert cameras.points.tolist() == [20, 20, 20, 20, 20, 21]  # of 22 points, without its own and one of a single view
    np.testing.assert_allclose(cameras.depths, 4.0, atol=0.3)
    np.testing.assert_allclose(cameras.errors, [0, 0, 0, 100.0 / 20, 0, 0], atol=1e-6)


def test_the_process_needs_no_torch():
    code = 'import sys, nerf.captures.structure_from_motion; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
