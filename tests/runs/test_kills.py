"""A run that is killed again and again ends bit for bit as one that was not: minutes, so in a file of their own."""

from __future__ import annotations

import pytest
from kill_harness import compare_runs


def test_a_run_killed_thirty_times_ends_as_one_that_was_not(scene_dir, tmp_path):
    result = compare_runs(scene_dir, tmp_path, kills=33, steps=2500, seed=0)
    assert result['differences'] == []
    assert result['kills'] >= 30, result


def test_a_grids_run_killed_five_times_ends_as_one_that_was_not(scene_dir, tmp_path):
    pytest.importorskip('numba')
    result = compare_runs(scene_dir, tmp_path, kills=6, steps=1000, seed=1, field='grid')
    assert result['differences'] == []
    assert result['kills'] >= 5, result
