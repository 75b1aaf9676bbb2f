"""splits.py: training, validation and test images. test_load_photos.py has them through files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from captured import refused

from nerf.captures.splits import every_nth, held_out, named_splits


@pytest.mark.parametrize(('llffhold', 'test'), [(3, [0, 3, 6]), (8, [0]), (100, [0]), (0, [2])])
def test_every_nth_image_is_held_out_or_the_central_one(llffhold, test):
    i_train, i_test = held_out('scene', 7, llffhold, 2)
    assert i_test.tolist() == test
    assert i_train.tolist() == [i for i in range(7) if i not in test]


def test_no_training_image_is_an_error():
    refused(lambda: held_out('here', 5, 1, 0), 'here: llffhold 1 takes all 5 images')


def test_the_central_image_is_nearest_to_the_mean_position():
    positions = np.array([[0.0, 0, 0], [10, 0, 0], [4, 1, 0]])
    assert [part.tolist() for part in every_nth(Path('scene'), positions, 0)] == [[0, 1], [2], [2]]


@pytest.mark.parametrize(('lists', 'expected'), [
    ({}, None), ({'train': [], 'test': []}, None), ({'train': 'db', 'val': 'c', 'test': 'a'}, [[1, 3], [2], [0]]),
    ({'test': 'b'}, [[0, 2, 3], [1], [1]]), ({'train': 'ab'}, [[0, 1], [2, 3], [2, 3]]),
    ({'val': 'b'}, [[0, 2, 3], [1], [1]]), ({'train': 'aa', 'test': 'bb'}, [[0], [1], [1]])])
def test_lists_of_names_decide(lists, expected):
    splits = named_splits(Path('file'), 'abcd', lists)
    assert splits == expected if expected is None else [part.tolist() for part in splits] == expected


def test_lists_that_leave_nothing_or_name_nothing_are_errors():
    refused(lambda: named_splits(Path('file'), 'ab', {'train': 'ab'}), 'file', 'no image to test on')
    refused(lambda: named_splits(Path('file'), 'ab', {'test': 'ab'}), 'file', 'no image to train on')
    refused(lambda: named_splits(Path('file'), 'ab', {'val': 'xay'}), "val_filenames has 2 names", "'x'")
