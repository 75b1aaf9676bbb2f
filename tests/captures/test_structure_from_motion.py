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
    EstimationRules, candidate_pairs, mapped_cameras, new_in_each, pairs_to_match, strong_matches,
    structure_from_motion,
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
    assert lines == ['features: 3 of 3', 'overlaps: 3 of 3', 'pairs: 3 of 3', 'cameras: 0 of 3',
                     'cameras, all at once: 0 of 3']


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


def test_of_a_few_photographs_all_pairs_are_candidates():
    assert candidate_pairs(4) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert len(candidate_pairs(80, RULES)) == 80 * 79 // 2
    assert len(candidate_pairs(81, RULES)) < 80 * 79 // 2


def test_of_many_photographs_neighbours_are_candidates_and_some_with_all():
    count = 300
    pairs = set(candidate_pairs(count, RULES))
    assert len(pairs) == len(candidate_pairs(count, RULES)) < count * 30
    assert pairs >= {(i, i + step) for step in range(1, 11) for i in range(count - step)}
    met = [sum(i in pair for pair in pairs) for i in range(count)]
    assert met.count(count - 1) == 20
    # Of two stretches of a path that meet again, each photograph is a candidate with one close to the other one.
    assert all(any((min(i, k), max(i, k)) in pairs for k in range(j - 10, j + 11))
               for i, j in itertools.product(range(20, 280, 7), repeat=2) if abs(i - j) > 30)


def test_neighbours_and_anchors_are_rules():
    assert candidate_pairs(6, EstimationRules(all_pairs=5, neighbours=1, anchors=1)) == [
        (0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 2), (2, 3), (3, 4), (4, 5)]


def descriptors(count: int) -> np.ndarray:
    """Descriptors like COLMAP's: bytes, with length 512 but for their rounding."""
    drawn = np.random.default_rng(0).exponential(size=(count, 128))
    return np.round(drawn * 512.0 / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def on_a_circle(count: int, seen: int) -> list[int]:
    """Strong matches of all pairs of `count` photographs around an object, of which neighbours share `seen` features,
    the next ones 10 fewer, and so on."""
    return [max(0, seen - 10 * (min(j - i, count - j + i) - 1)) for i, j in candidate_pairs(count)]


def test_strong_matches_are_the_features_that_both_photographs_show():
    world = descriptors(300)
    one, other = world[:200], np.random.default_rng(1).permutation(world[150:])
    assert strong_matches(one, other, 0.7) == strong_matches(other, one, 0.7) == 50
    assert strong_matches(one, world[200:], 0.7) == 0
    off = np.clip(other + np.random.default_rng(2).normal(size=other.shape, scale=8.0).round(), 0, 255)
    assert 45 <= strong_matches(one, off.astype(np.float32), 0.7) <= 50


def test_a_feature_that_is_there_twice_is_matched_at_most_once():
    world = descriptors(60)
    twice = np.concatenate([world, world[:20]])
    assert strong_matches(world, twice, 0.7) == 40
    assert strong_matches(twice, world, 0.7) == 60  # once each
    assert strong_matches(world, world[:1], 0.7) == strong_matches(world[:0], world, 0.7) == 0


def test_pairs_close_a_loop_and_leave_out_what_rivals_connect():
    rules = EstimationRules(rivals=3, always=1)
    count = 40
    pairs = pairs_to_match(count, candidate_pairs(count), on_a_circle(count, 100), rules)
    assert {(0, count - 1), (0, count - 2), (1, count - 1)} <= set(pairs)
    assert {(i, i + step) for step in (1, 2, 3) for i in range(count - step)} <= set(pairs)
    assert not {(0, 8), (5, 25)} & set(pairs)
    assert len(pairs) < count * 6
    assert pairs == sorted(pairs)


def test_a_loop_that_drifted_is_closed_by_a_weak_pair():
    # The path comes back to where it began with less in common than photographs eight apart have.
    count, candidates = 30, candidate_pairs(30)
    matches = [max(0, 100 - 10 * (j - i)) for i, j in candidates]
    matches[candidates.index((0, 29))] = 15
    assert (0, 29) in pairs_to_match(count, candidates, matches, EstimationRules(rivals=2, always=0))


def test_each_photograph_keeps_its_best_pairs_and_each_two_groups_theirs():
    count, rules = 30, EstimationRules(rivals=4, always=0)
    candidates = candidate_pairs(count)
    # Without equal numbers of matches; photographs 0 to 14 have little in common with the others.
    matches = [i + (0 if a < 15 <= b else 10000)
               for i, (a, b) in zip(np.random.default_rng(0).permutation(len(candidates)).tolist(), candidates)]
    kept = set(pairs_to_match(count, candidates, matches, rules))
    best = sorted(candidates, key=lambda pair: -matches[candidates.index(pair)])
    for i in range(count):
        assert kept >= set([pair for pair in best if i in pair][:4])
    assert kept >= set([pair for pair in best if pair[0] < 15 <= pair[1]][:4])
    assert len(kept) < len(candidates) / 2


def test_photographs_with_nothing_in_common_are_matched_in_the_order_of_names():
    candidates = candidate_pairs(12)
    pairs = pairs_to_match(12, candidates, [0] * len(candidates), EstimationRules(rivals=2, always=0))
    assert {(i, i + 1) for i in range(11)} <= set(pairs) <= {(i, i + step) for step in (1, 2) for i in range(12)}
    always = pairs_to_match(12, candidates, on_a_circle(12, 0), EstimationRules(rivals=1, always=3))
    assert set(always) >= {(i, i + step) for step in (1, 2, 3) for i in range(12 - step)}


def test_of_pairs_that_are_no_candidates_none_is_matched():
    rules = EstimationRules(all_pairs=10, neighbours=2, anchors=2, rivals=100)
    candidates = candidate_pairs(40, rules)
    assert pairs_to_match(40, candidates, [1] * len(candidates), rules) == candidates
    assert pairs_to_match(1, [], []) == []


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
