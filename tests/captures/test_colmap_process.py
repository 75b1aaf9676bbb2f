"""colmap_process.py: what COLMAP is asked for. test_estimation.py checks what it finds."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

from nerf.captures.colmap_process import EstimationRules, new_in_each, pairs_to_match

ROOT = Path(__file__).parents[2]
RULES = EstimationRules(all_pairs=80, neighbours=10, anchors=20)


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
    class Reconstruction:
        def __init__(self, *ids):
            self.ids = ids

        def reg_image_ids(self):
            return self.ids

        def num_reg_images(self):
            return len(self.ids)

    models = [Reconstruction(*ids) for ids in ((4, 5, 6, 7), (1, 2, 3, 4, 5), (3, 6, 8, 9), (9, 10, 11, 12, 13))]
    assert new_in_each(models, 3) == [5, 5]  # of 4, 5, 6, 7 only 6 and 7 are new
    assert new_in_each([*models, Reconstruction(6, 7, 8)], 3) == [5, 5, 3]
    assert new_in_each(models, 1) == [5, 5, 2, 1]


def test_the_process_needs_no_torch():
    code = 'import sys, nerf.captures.colmap_process; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
