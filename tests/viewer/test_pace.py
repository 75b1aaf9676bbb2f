"""nerf/viewer/pace.py: the measured cost of tiles."""

import pytest

from nerf.viewer.pace import PROBE, Pace, Speed

TILE = Pace().tile


def measured(per_tile: float, per_ray: float) -> Speed:
    """Speed after many tiles whose cost in seconds is known."""
    speed = Speed()
    for _ in range(60):
        for n_rays in (PROBE, speed.rays_in(TILE)):
            speed.took(n_rays, per_tile + per_ray * n_rays)
    return speed


def test_tiles_take_the_time_that_they_should():
    speed = measured(2e-3, 1e-5)
    n_rays = speed.rays_in(TILE)
    assert 2e-3 + 1e-5 * n_rays == pytest.approx(TILE, rel=0.05)
    assert speed.rays_per_second(TILE) == pytest.approx(n_rays / TILE, rel=0.05)


def test_the_first_tile_which_compiles_does_not_count_and_a_slow_probe_is_soon_forgotten():
    speed = Speed()
    speed.took(PROBE, 7.0)
    assert speed.rays_in(TILE) == Speed().rays_in(TILE)
    for seconds in (2e-3, 0.5, 2e-3):
        speed.took(PROBE, seconds)
    assert speed.per_tile == pytest.approx(2e-3)


def test_tiles_do_not_vanish_where_each_takes_long_however_small():
    assert measured(0.1, 1e-5).rays_in(TILE) == pytest.approx(0.1 / 1e-5, rel=0.1)


def test_a_probe_is_due_once_a_second():
    speed = Speed()
    assert [speed.probe_due(now) for now in (50.0, 50.9, 51.0, 51.1, 60.0)] == [True, False, True, False, True]
