"""nerf/fields/grid/schedule.py: defaults of each kind of space, values of flags, and the numbers that follow."""

from __future__ import annotations

import argparse
import dataclasses

import pytest
from small_grids import BOX, FORWARD, OPEN

from nerf.fields.grid.schedule import GridSchedule, Stage, stages_of
from nerf.space import Space

FIELDS = dataclasses.fields(GridSchedule)
SCHEDULES = [GridSchedule.defaults(space, n_iters) for space in (BOX, OPEN, FORWARD) for n_iters in (600, 4500)]


def test_stages_are_read_from_text():
    assert stages_of('0:89 0.08:178  0.25:320') == [Stage(0.0, 89), Stage(0.08, 178), Stage(0.25, 320)]


BROKEN = ['', '89', '0:', ':89', '0.1:89', '0:89 0.1:89', '0:89 0.1:50', '0:89 0:100', '0:89 1.0:100', '0:0', '0:-4',
          '0:8.5', '0:89, 0.1:178', '0:8:9', 'nan:8', '0:89 nan:99', '0:89 0.1:178:3']


@pytest.mark.parametrize('text', BROKEN)
def test_text_that_is_no_list_of_stages_is_an_error_that_says_what_one_is(text):
    convert, = (part.metadata['type'] for part in FIELDS if part.name == 'stages')
    for function in (stages_of, convert):
        with pytest.raises(argparse.ArgumentTypeError,
                           match=r'is no list of stages: "0:89 0\.08:178" begins with 89 cells'):
            function(text)


def test_stages_depend_on_the_space_and_on_the_length_of_the_run():
    stages = {(space.name, n_iters): GridSchedule.defaults(space, n_iters).stages
              for space in (BOX, OPEN, FORWARD) for n_iters in (3999, 4000)}
    short, long = '0:89 0.08:178 0.25:320', '0:89 0.06:178 0.20:320 0.45:471'
    assert stages == {('bounded', 3999): short, ('bounded', 4000): long, ('unbounded', 3999): short,
                      ('unbounded', 4000): long.replace('471', '640'), ('ndc', 3999): '0:120 0.15:240 0.4:480',
                      ('ndc', 4000): '0:120 0.15:240 0.4:480'}


def test_closed_spaces_are_smoothed_more_and_not_limited_by_pixels_and_ndc_is_not_pruned_by_weight():
    box, unbounded, ndc = (GridSchedule.defaults(space, 600) for space in (BOX, OPEN, FORWARD))
    assert (box.hidden, box.voxel_pixels, box.smooth_density, box.captured_rays) == (0.2, 0.8, 1e-9, 9000)
    assert (ndc.hidden, ndc.voxel_pixels, ndc.smooth_density, ndc.captured_rays) == (0, 0, 2e-7, 4096)
    assert (unbounded.voxel_pixels, unbounded.smooth_density, unbounded.captured_rays) == (0, 6e-7, 4096)
    assert 0.0 < unbounded.hidden < box.hidden
    assert [part.hidden_margin for part in (box, unbounded, ndc)] == [0, 2, 0]
    assert [part.seen_by for part in (box, unbounded, ndc)] == [0, 2, 0]


def test_a_kind_of_space_that_has_no_defaults_of_its_own_has_those_of_closed_ones_if_it_is():
    class Other(Space):
        name, closed = 'other', True
    assert GridSchedule.defaults(Other(1.0, 2.0), 600).hidden == 0.0
    Other.closed = False
    assert GridSchedule.defaults(Other(1.0, 2.0), 600) == GridSchedule()


def test_given_flags_win_and_others_stay():
    schedule = GridSchedule.defaults(OPEN, 600)
    changed = schedule.with_flags({'thin': 0.1, 'samples': None, 'seen_by': 0})
    assert changed == dataclasses.replace(schedule, thin=0.1, seen_by=0)


@pytest.mark.parametrize('schedule', SCHEDULES)
def test_each_value_is_plain_and_comes_back_from_its_text(schedule):
    for part in FIELDS:
        value = getattr(schedule, part.name)
        assert type(value) in (int, float, str)
        assert part.metadata['type'](str(value)) == value
        assert type(part.metadata['type'](str(value))) is type(value)


def test_each_field_has_one_line_of_help():
    for part in FIELDS:
        assert 20 < len(part.metadata['help']) < 250
        assert '\n' not in part.metadata['help']
        assert '%' not in part.metadata['help'].replace('%%', '')  # argparse would take it for a format


@pytest.mark.parametrize(('name', 'text'), [
    ('thin', 'x'), ('thin', '-1'), ('thin', 'nan'), ('thin', 'inf'), ('samples', '3.5'), ('samples', '0'),
    ('samples', '1e3'), ('hidden', '1.1'), ('decay', '1'), ('seen_by', '-1')])
def test_a_value_out_of_bounds_is_an_error_with_the_bounds(name, text):
    convert, = (part.metadata['type'] for part in FIELDS if part.name == name)
    with pytest.raises(argparse.ArgumentTypeError, match=r"^'.*' is not a (whole number from \S+ to|"
                                                         r"number of at least \S+ and at most) \S+$"):
        convert(text)


def test_voxels_are_left_out_where_they_are_smaller_than_a_pixel_allows():
    schedule = GridSchedule(stages='0:10 0.1:20 0.2:40', voxel_pixels=0.5)
    assert schedule.voxels(4.0, 0.0) == [0.4, 0.2, 0.1]
    assert schedule.voxels(4.0, 0.3) == [0.4, 0.2]
    assert schedule.voxels(4.0, 9.0) == [0.4]  # the first stage stays


def test_steps_follow_from_shares_of_the_run():
    schedule = GridSchedule(stages='0:10 0.1:20 0.5:40', pruning=0.12, pruning_steps=8, decay=100.0)
    assert [schedule.pruning_interval(n_iters) for n_iters in (10, 100, 1000)] == [8, 12, 120]
    assert [schedule.begins(stage, 1000) for stage in (1, 2)] == [100.0, 500.0]
    assert schedule.begins(1, 20) == 8
    assert schedule.lrate_decay(2000) == pytest.approx(1.0)  # two tenths in 2,000 steps


@pytest.mark.parametrize(('blur', 'voxel', 'pixel', 'side'), [
    (0.0, 8.0, 1.0, 1), (1.0, 8.0, 1.0, 8), (1.0, 7.9, 1.0, 4), (0.5, 8.0, 1.0, 4), (1.0, 0.8, 0.1, 8),
    (1.0, 0.5, 1.0, 1), (1.0, 1.0, 0.0, 1)])
def test_squares_of_pixels_are_the_largest_power_of_two_within_blur_voxels(blur, voxel, pixel, side):
    assert GridSchedule(blur=blur).pixels_per_ray(voxel, pixel) == side
