"""nerf/plots.py: the summary of a run, and error maps."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from nerf.plots import LARGEST_ERROR, SUMMARY_VIEWS, draw_summary, error_map, summary_figure


def picture_of(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert('RGB')).astype(int)


def test_an_error_map_shows_the_mean_absolute_error():
    target = np.zeros((1, 3, 3))
    rendered = np.array([[[0, 0, 0], [0.3, 0, 0], [0.5, 0.5, 0.5]]])
    np.testing.assert_allclose(error_map(rendered, target), [[0.0, 0.1 / LARGEST_ERROR, 1.0]])
    np.testing.assert_allclose(error_map(target, rendered), [[0.0, 0.1 / LARGEST_ERROR, 1.0]])


# The summary


def write_lines(run_dir, **others) -> None:
    """Writes metrics.jsonl of steps 100 to 1000."""
    lines = [{'step': 100 * n, 'seconds': 6.0 * n, 'psnr': 10.0 + n, **others} for n in range(1, 11)]
    (run_dir / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def write_test_set(run_dir, step: int, colours) -> None:
    folder = run_dir / f'testset_{step:06d}'
    folder.mkdir()
    for n, colour in enumerate(colours):
        Image.new('RGB', (16, 12), colour).save(folder / f'{n:03d}.png')
    (folder / 'metrics.json').write_text(json.dumps({
        'step': step, 'mean': {'psnr': 18.0},
        'images': [{'file': f'{n:03d}.png', 'psnr': 17.0} for n in range(len(colours))]}))


def rows_of(picture: np.ndarray, colour) -> np.ndarray:
    """Rows of a picture with more than 100 pixels of a colour."""
    return np.nonzero((np.abs(picture - colour).max(-1) <= 1).sum(1) > 100)[0]


@pytest.mark.slow
def test_summary_is_redrawn_with_curves_and_views(logged_run):
    picture = picture_of(logged_run / 'summary.png')
    assert picture.shape == (1200, 1200, 3)
    assert (picture < 128).any(-1)[:400].mean() > 0.01  # curves
    # The second row of views is the targets': orange discs on white.
    orange = (np.abs(picture - [230, 120, 40]).max(-1) < 12)
    rows = np.nonzero(orange.any(1))[0]
    assert 700 < rows.mean() < 950


def test_summary_of_a_known_run(tmp_path):
    write_lines(tmp_path)
    targets = [np.full((12, 16, 3), 0.2), np.full((12, 16, 3), 0.6)]
    draw_summary(tmp_path, 1000, 2, targets.__getitem__)  # no test set yet
    assert Image.open(tmp_path / 'summary.png').size == (1200, 400)
    write_test_set(tmp_path, 1000, [(0, 255, 0)] * 2)
    draw_summary(tmp_path, 1000, 2, targets.__getitem__)
    picture = picture_of(tmp_path / 'summary.png')
    for colour, row in (((0, 255, 0), 0), ((51, 51, 51), 1), ((153, 153, 153), 1)):
        where = rows_of(picture, colour)
        assert 400 + 260 * row < where.mean() < 400 + 270 * (row + 1), (colour, row)
    assert [path.name for path in tmp_path.glob('*.png')] == ['summary.png']
    for step, count, target in ((900, 2, targets.__getitem__), (1000, 3, targets.__getitem__),
                                (1000, 2, lambda n: np.zeros((6, 8, 3)))):  # later, of other images, of another size
        draw_summary(tmp_path, step, count, target)
        assert Image.open(tmp_path / 'summary.png').size == (1200, 400)


def test_the_summary_shows_the_newest_test_set_up_to_its_step(tmp_path):
    write_lines(tmp_path)
    for step, colour in ((200, (0, 255, 0)), (600, (255, 0, 255)), (800, (0, 255, 255))):
        write_test_set(tmp_path, step, [colour])
    for step, seen, colours in ((700, (255, 0, 255), ((0, 255, 0), (0, 255, 255))),
                                (800, (0, 255, 255), ((0, 255, 0), (255, 0, 255)))):
        draw_summary(tmp_path, step, 1, lambda n: np.zeros((12, 16, 3)))
        picture = picture_of(tmp_path / 'summary.png')
        assert len(rows_of(picture, seen)) > 50
        assert not any(len(rows_of(picture, other)) for other in colours)


def test_the_summary_has_the_first_views_alone(tmp_path):
    write_lines(tmp_path)
    write_test_set(tmp_path, 1000, [(0, 255, 0)] * SUMMARY_VIEWS + [(255, 0, 255)])
    asked = []
    draw_summary(tmp_path, 1000, SUMMARY_VIEWS + 1, lambda n: asked.append(n) or np.zeros((12, 16, 3)))
    assert asked == list(range(SUMMARY_VIEWS))
    picture = picture_of(tmp_path / 'summary.png')
    assert len(rows_of(picture, (0, 255, 0))) > 50
    assert not (np.abs(picture - [255, 0, 255]).max(-1) <= 1).any()


@pytest.mark.parametrize(('others', 'labels'), [({}, ['training']), ({'psnr0': 5.0}, ['training, coarse', 'training'])])
def test_curves_show_psnr_over_steps_and_minutes_and_that_of_the_coarse_pass_if_there_is_one(tmp_path, others, labels):
    write_lines(tmp_path, **others)
    over_steps, over_minutes = summary_figure(tmp_path, 1000, 1, None).axes
    for axes, x in ((over_steps, 100.0 * np.arange(1, 11)), (over_minutes, 0.1 * np.arange(1, 11))):
        assert [line.get_label() for line in axes.lines] == labels
        np.testing.assert_allclose(axes.lines[-1].get_xdata(), x)
        np.testing.assert_allclose(axes.lines[-1].get_ydata(), 10.0 + np.arange(1, 11))


def test_a_summary_before_the_first_line_is_drawn_too(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('')
    write_test_set(tmp_path, 10, [(0, 255, 0)])
    draw_summary(tmp_path, 10, 1, lambda n: np.zeros((12, 16, 3)))
    assert Image.open(tmp_path / 'summary.png').size == (1200, 1200)
