"""nerf/robust.py: statistics that a few wrong positions change little."""

from __future__ import annotations

import numpy as np

from nerf.robust import axes_missed_by, farthest_usual, middle_of


def test_the_middle_is_the_mean_without_what_is_far_away():
    angle = np.linspace(0.0, 2.0 * np.pi, 30, endpoint=False)
    positions = np.stack([2.0 * np.cos(angle), 2.0 * np.sin(angle), 1.0 + 0.1 * np.cos(7.0 * angle)], 1)
    np.testing.assert_array_equal(middle_of(positions), positions.mean(0))
    wrong = np.concatenate([positions, [[300.0, 200.0, 3.0]] * 5])
    np.testing.assert_allclose(middle_of(wrong), positions.mean(0))
    assert np.linalg.norm(middle_of(wrong, usual=1000.0) - wrong.mean(0)) < 1e-9
    np.testing.assert_allclose(middle_of(np.ones((3, 3))), 1.0)


def test_the_farthest_usual_distance_is_within_some_medians():
    assert farthest_usual(np.array([1.0, 2.0, 3.0, 8.0, 8.1, 0.5, 2.0])) == 8.0
    assert farthest_usual(np.array([1.0, 2.0, 3.0]), usual=1.2) == 2.0


def test_axes_miss_a_point_by_its_distance_aside_of_them():
    poses = np.tile(np.eye(4)[:3], (3, 1, 1))  # they look along -z
    poses[:, :, 3] = [[0, 0, 5], [3, 4, 5], [0, 1, -5]]
    depth, missed = axes_missed_by(np.zeros(3), poses)
    assert depth.tolist() == [5, 5, -5]
    assert missed.tolist() == [0, 5, 1]
