"""agreement.py: which cameras fit to the others, and which of several mappings is best."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from captured import ring

from nerf.captures.agreement import (
    AgreementRules, MappedCameras, MappingRules, agreeing, best_mapping, disagreeing, group_sizes,
)

RULES = MappingRules(widest_gap=5.0, fewest_seen=20, error_ratio=3.0, least_error=1.0,
                     similar_size=0.9, worse_error=1.25)


def rings(far: int = 0, scale: float = 15.0) -> np.ndarray:
    """Positions of 30 cameras around a thing, 10 of them in a far ring; the last `far` are `scale` times too far."""
    positions = ring(np.linspace(0.0, 348.0, 30), [10.0, 30.0, 50.0] * 10, [2.0, 2.0, 6.0] * 10)[:, :, 3]
    positions[30 - far:] *= scale
    return positions


def mapped(positions: np.ndarray, error: float = 0.6, **changes) -> MappedCameras:
    count = len(positions)
    return replace(MappedCameras(np.arange(count), positions, np.linalg.norm(positions, axis=1), np.full(count, 800),
                                 np.full(count, error)), **changes)


def without(i: int, mapping: MappedCameras) -> MappedCameras:
    return MappedCameras(**{name: np.delete(part, i, 0) for name, part in vars(mapping).items()})


# Cameras of a mapping


def test_cameras_of_near_and_far_rings_agree():
    assert agreeing(mapped(rings()), RULES).all()


@pytest.mark.parametrize('scale', [10.0, 15.0, 30.0])
@pytest.mark.parametrize('far', [1, 3])
def test_cameras_that_are_many_times_too_far_away_do_not_agree(far, scale):
    assert np.flatnonzero(~agreeing(mapped(rings(far, scale)), RULES)).tolist() == [*range(30 - far, 30)]


def test_overviews_from_twice_and_four_times_the_distance_agree():
    positions = rings()
    positions[3] *= 2.0
    positions[7] *= 4.0
    positions[11] *= 2.0  # of the far ring
    assert agreeing(mapped(positions), RULES).all()


def test_a_walk_away_from_the_thing_agrees_however_far_it_leads():
    walk = np.outer(np.arange(2.0, 60.0, 3.0), [1.0, 0.0, 0.0])
    assert agreeing(mapped(np.concatenate([rings(), walk])), RULES).all()


def test_cameras_with_few_points_or_large_errors_do_not_agree():
    points, errors = np.full(30, 800), np.full(30, 0.6)
    points[4], points[5], errors[6], errors[7] = 19, 20, 1.9, 1.7
    assert np.flatnonzero(~agreeing(mapped(rings(), points=points, errors=errors), RULES)).tolist() == [4, 6]
    assert agreeing(mapped(rings(), points=points, errors=errors), replace(
        RULES, fewest_seen=19, error_ratio=4.0)).all()
    assert agreeing(mapped(rings(), errors=0.3 * errors), replace(RULES, error_ratio=1.0)).all()  # under one pixel
    points[:] = 19
    assert not agreeing(mapped(rings(), points=points), RULES).any()


# Mappings


def test_of_two_mappings_the_one_with_more_agreeing_cameras_is_better():
    grown, at_once = without(0, without(0, without(0, mapped(rings())))), mapped(rings(3))
    assert best_mapping([grown, at_once], RULES) == 0  # 27 of both agree
    assert best_mapping([grown, mapped(rings(1))], RULES) == 1  # 29 of the second
    assert best_mapping([without(0, grown), at_once], RULES) == 1
    assert best_mapping([at_once, mapped(rings())], RULES) == 1


def test_a_mapping_that_lacks_few_cameras_is_better_if_its_error_is_much_less():
    grown = without(0, mapped(rings(), 0.5))
    assert best_mapping([grown, mapped(rings(), 0.6)], RULES) == 1
    assert best_mapping([grown, mapped(rings(), 0.7)], RULES) == 0
    few = without(0, without(0, without(0, grown)))  # 26 of 30
    assert best_mapping([few, mapped(rings(), 0.7)], RULES) == 1


# Cameras of a capture


CROSSING = np.zeros(3)


def strays(positions: np.ndarray, depths=None, **rules) -> list[list[int]]:
    return [part.tolist() for part in disagreeing(positions, CROSSING, depths, AgreementRules(**rules))]


def test_a_capture_without_strays_keeps_all_cameras():
    assert strays(rings()) == [[], []]
    assert strays(rings(), [np.full(50, 2.0)] * 30) == [[], []]


def test_far_and_blind_cameras_of_a_capture_are_told_apart():
    positions, depths = rings(1), [np.full(50, 2.0)] * 30
    depths[2] = np.full(3, 2.0)
    assert strays(positions, depths) == [[29], [2]]
    assert strays(positions, depths, fewest_seen=3) == [[29], []]
    assert strays(positions, depths, widest_gap=50.0) == [[], [2]]


def test_where_many_cameras_would_be_left_out_none_is():
    scattered = np.concatenate([rings(), 500.0 * np.arange(1, 13)[:, None] * np.eye(3)[0]])
    assert strays(scattered) == [[], []]
    assert strays(scattered, most_left_out=0.3) == [[*range(30, 42)], []]
    depths = [np.full(50, 2.0)] * 30
    depths[:8] = [np.zeros(0)] * 8
    assert strays(rings(), depths) == [[], []]
    assert strays(rings(), depths, most_left_out=0.3) == [[], [*range(8)]]


def test_photographs_from_the_air_stay_beside_more_from_the_ground():
    above = 0.5 * rings()[:5] + [0.0, 0.0, 100.0]
    assert strays(np.concatenate([rings(), above])) == [[], []]
    assert strays(np.concatenate([rings(), above[:4]])) == [[30, 31, 32, 33], []]
    assert strays(np.concatenate([rings(), above]), fewest_together=6) == [[30, 31, 32, 33, 34], []]


def test_cameras_before_a_far_subject_may_stand_far_apart():
    """Sparse points 20 away say so where axes are parallel and cross nowhere."""
    row = np.outer(np.linspace(-0.5, 0.5, 9), [1.0, 0.0, 0.0])
    stepped_back = np.concatenate([row, [[0.0, 0.0, 8.0]]])
    assert strays(stepped_back) == [[9], []]
    assert strays(stepped_back, [np.full(50, 20.0)] * 10) == [[], []]


# Geometry


def test_a_group_is_linked_by_steps_within_the_gap():
    positions = np.outer([0.0, 1.0, 2.0, 3.5, 10.0, 11.0], [0.0, 1.0, 0.0])
    assert group_sizes(positions, 1.5).tolist() == [4] * 4 + [2] * 2
    assert group_sizes(positions, 1.4).tolist() == [3] * 3 + [1] + [2] * 2
    assert group_sizes(positions, 6.5).tolist() == [6] * 6
