"""nerf/coverage.py: how much of pixels is covered, by hand."""

from __future__ import annotations

import numpy as np

from nerf.coverage import BRIGHT, EMPTY, OPAQUE, PLAIN, UNKNOWN, covered

WORDS = {'.': EMPTY, '?': UNKNOWN, '#': OPAQUE}


def picture(rows: list[str]) -> np.ndarray:
    """White where there is a dot or o, else green."""
    green = np.array([[letter not in '.o' for letter in row] for row in rows])
    return np.where(green[..., None], np.uint8([10, 200, 30]), np.uint8(255))


def shown(rows: list[str]) -> np.ndarray:
    return np.array([[WORDS[letter] for letter in row] for row in rows], np.int16)


def test_an_alpha_channel_is_taken_as_it_is():
    image = np.full((1, 4, 4), 255, np.uint8)  # white, which then means nothing
    image[0, :, 3] = [0, 1, 254, 255]
    assert covered(image).tolist() == [[EMPTY, 1, 254, OPAQUE]]


def test_white_that_reaches_the_border_is_empty_and_what_is_beside_white_unknown():
    image = picture(['.......',
                     '.#####.',
                     '.#####.',
                     '.#####.',
                     '.#####.',
                     '.......'])
    np.testing.assert_array_equal(covered(image), shown(['.......',
                                                         '.?????.',
                                                         '.?###?.',
                                                         '.?###?.',
                                                         '.?????.',
                                                         '.......']))


def test_white_inside_an_object_and_around_a_corner_is_unknown():
    image = picture(['#######',
                     '#######',
                     '##o####',
                     '#######',
                     '#####o#',
                     '######.'])
    np.testing.assert_array_equal(covered(image), shown(['#######',
                                                         '#???###',
                                                         '#???###',
                                                         '#??????',
                                                         '####???',
                                                         '####??.']))


def test_white_may_be_noisy():
    image = np.full((3, 3, 3), 255, np.uint8)
    image[0, 0], image[1, 1], image[2] = PLAIN, [255, PLAIN, 252], [254, 251, 253]
    assert (covered(image) == EMPTY).all()
    assert (covered(np.full((3, 3, 3), 255, np.uint8)) == EMPTY).all()


def test_bright_is_unknown_unless_a_channel_is_darker():
    image = np.full((5, 5, 3), 100, np.uint8)  # nothing beside white
    image[0, 0], image[2, 2], image[4, 4] = PLAIN - 1, BRIGHT, [255, 255, BRIGHT - 1]
    expected = np.full((5, 5), OPAQUE)
    expected[0, 0] = expected[2, 2] = UNKNOWN
    np.testing.assert_array_equal(covered(image), expected)
