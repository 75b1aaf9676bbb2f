"""A run that is killed again and again ends bit for bit as one that was not. kill_harness.py has longer trials."""

from __future__ import annotations

import pytest
from kill_harness import compare_runs

pytestmark = pytest.mark.slow


def test_a_run_killed_ten_times_ends_as_one_that_was_not(scene_dir, tmp_path):
    result = compare_runs(scene_dir, tmp_path, kills=12, steps=1000, seed=0)
    assert result['differences'] == []
    assert result['kills'] >= 10, result


def test_a_grids_run_killed_four_times_ends_as_one_that_was_not(scene_dir, tmp_path):
    pytest.importorskip('numba')
    result = compare_runs(scene_dir, tmp_path, kills=5, steps=800, seed=1, field='grid')
    assert result['differences'] == []
    assert result['kills'] >= 4, result
