"""orbit.py: the path around rings, arcs and groups of cameras."""

from __future__ import annotations

import numpy as np
import pytest
from captured import ring

from nerf.captures.orbit import covered_arc, render_path_orbit
from nerf.captures.rules import PlacementRules


def angle_of(poses: np.ndarray) -> np.ndarray:
    """Azimuths in degrees."""
    return np.degrees(np.arctan2(poses[:, 1, 3], poses[:, 0, 3]))


def check_upright(path: np.ndarray) -> None:
    np.testing.assert_allclose(path[:, 2, 0], 0.0, atol=1e-9)
    assert (path[:, 2, 1] > 0.0).all()


def test_the_orbit_closes_where_cameras_surround_the_origin_and_is_as_far_and_as_high_as_they_are():
    path = render_path_orbit(ring(np.linspace(0.0, 330.0, 12), 30.0, 5.0))
    assert path.shape == (120, 3, 4)
    check_upright(path)
    np.testing.assert_allclose(np.linalg.norm(path[:, :, 3], axis=1), 5.0)
    np.testing.assert_allclose(path[:, 2, 3], 2.5)
    np.testing.assert_allclose(path[:, :, 2], path[:, :, 3] / 5.0, atol=1e-9)  # they look at the origin
    np.testing.assert_allclose(np.diff(np.unwrap(angle_of(path), period=360.0)), 3.0)


def test_the_orbit_goes_to_and_fro_where_an_arc_was_photographed():
    path = render_path_orbit(ring(np.linspace(130.0, 230.0, 11), 10.0))  # across the cut at 180 degrees
    check_upright(path)
    angles = angle_of(path) % 360.0
    assert angles.min() == pytest.approx(130.0)
    assert angles.max() == pytest.approx(230.0)
    assert angles[0] == pytest.approx(130.0)
    assert angles[60] == pytest.approx(230.0)
    assert np.abs(np.diff(angles)).max() < 3.0


def test_the_orbit_follows_cameras_that_are_nearer_on_one_side():
    azimuths = np.linspace(0.0, 345.0, 24)
    path = render_path_orbit(ring(azimuths, 0.0, np.where(azimuths < 180.0, 3.0, 6.0)))
    distance = dict(zip(angle_of(path).round().astype(int) % 360, np.linalg.norm(path[:, :, 3], axis=1)))
    assert distance[90] == pytest.approx(3.0, abs=0.01)
    assert distance[270] == pytest.approx(6.0, abs=0.01)
    assert min(distance.values()) >= 3.0
    assert max(distance.values()) <= 6.0


def test_the_orbit_stays_with_the_largest_group_and_does_not_heed_cameras_overhead():
    poses = np.concatenate([ring(np.linspace(0.0, 40.0, 5), 20.0), ring(np.linspace(170.0, 250.0, 9), 20.0),
                            ring([100.0], 89.0), ring([300.0], 88.0)])
    angles = angle_of(render_path_orbit(poses)) % 360.0
    assert angles.min() == pytest.approx(170.0)
    assert angles.max() == pytest.approx(250.0)


def test_the_orbit_looks_outwards_where_the_cameras_do():
    poses = ring(np.linspace(0.0, 330.0, 12), 0.0, 1.0)
    poses[:, :, [0, 2]] *= -1.0
    path = render_path_orbit(poses)
    check_upright(path)
    np.testing.assert_allclose(path[:, :, 2], -path[:, :, 3] / np.linalg.norm(path[:, :, 3], axis=1)[:, None],
                               atol=0.02)


@pytest.mark.parametrize(('degrees', 'start', 'reach'), [
    ([0, 90, 180, 270], 0, 0), ([0, 59, 118, 177, 236, 301], 301, 236 + 59), ([10, 20, 30], 10, 20), ([5], 5, 0),
    ([0, 10, 100, 110, 120, 200], 100, 20), ([350, 0, 10, 100], -10, 20),
    ([0, 50, 100, 150, 200, 250, 310], None, None)])
def test_the_covered_arc_is_that_of_the_largest_group_without_a_gap(degrees, start, reach):
    first, length = covered_arc(np.radians(degrees))
    if reach is None:
        assert length is None
    else:
        assert np.degrees(first) % 360 == pytest.approx(start % 360)
        assert np.degrees(length) == pytest.approx(reach)


def test_gaps_and_views_are_rules():
    poses = ring([0.0, 50.0, 100.0, 150.0, 200.0, 250.0, 310.0], 10.0)
    assert render_path_orbit(poses, PlacementRules(path_views=7)).shape == (7, 3, 4)
    angles = angle_of(render_path_orbit(poses, PlacementRules(open_gap=55.0))) % 360.0
    assert not ((angles > 251.0) & (angles < 309.0)).any()  # with 60 degrees, the orbit is closed
