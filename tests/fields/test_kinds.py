"""nerf/fields/kinds.py: a third kind of field, on a seventh data format, is an entry and a file and has all that others
have."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import third_kind
import torch
from conftest import ROOT, assert_same, state_of_run
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import run_nerf
from nerf.fields.kinds import FIELDS
from nerf.flags import config_text, parse_flags
from nerf.formats import FORMATS, data_flags

FLAGS = ['--dataset_type', 'numpy', '--field', 'plain', '--device', 'cpu', '--i_print', '5', '--i_img', '10',
         '--i_weights', '10']


@pytest.fixture(scope='module', autouse=True)
def registered():
    """Both registries have an entry more in the tests of this file."""
    third_kind.register()
    yield
    del FORMATS['numpy'], FIELDS['plain']


@pytest.fixture(scope='module')
def scene(tmp_path_factory) -> Path:
    return third_kind.write_scene(tmp_path_factory.mktemp('numpy') / 'scene')


def plain_flags(scene: Path, logs: Path, *more: str, expname: str = 'run') -> list[str]:
    return [*FLAGS, '--datadir', str(scene), '--basedir', str(logs), '--expname', expname, *more]


@pytest.fixture(scope='module')
def logs(scene, tmp_path_factory) -> Path:
    """Folder of runs: `run`, of 60 steps, and `parts`, which went on from step 20 to 60."""
    logs = tmp_path_factory.mktemp('logs')
    for expname, steps in (('run', '60'), ('parts', '20'), ('parts', '60')):
        assert run_nerf.main(plain_flags(scene, logs, '--N_iters', steps, '--seed', '3', expname=expname)) == 0
    return logs


def lines_of(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / 'metrics.jsonl').read_text().splitlines()]


# Flags


def test_flags_of_the_entries_are_parsed_with_their_types_and_the_entries_defaults(scene, tmp_path):
    args = parse_flags(plain_flags(scene, tmp_path, '--plain_start', '0.25', '--held_out', '3', '--N_iters', '70'))
    assert (args.plain_start, args.held_out, args.plain_breaks) == (0.25, 3, 10 ** 6)
    assert (args.N_rand, args.lrate, args.lrate_decay) == (40, 0.02, None)
    assert (args.i_testset, args.i_video) == (70, 70)
    assert parse_flags(plain_flags(scene, tmp_path, '--N_rand', '7')).N_rand == 7


def test_help_describes_the_entries_and_their_flags(capsys):
    with pytest.raises(SystemExit):
        parse_flags(['--help'])
    text = ' '.join(capsys.readouterr().out.split())
    for words in ('numpy: images and poses in one .npz (defaults: N_rand 40)',
                  'plain: a field of one colour (defaults: lrate 0.02, lrate_decay None, i_testset N_iters, i_video '
                  'N_iters)', 'grey level in which the field begins (plain)', 'that are test images (numpy)'):
        assert words in text


def test_flags_of_the_entries_are_idle_for_other_formats_and_kinds(capsys):
    parse_flags(['--expname', 'x', '--held_out', '3', '--plain_start', '0.25', '--plain_breaks', '9'])
    assert capsys.readouterr().err.splitlines() == [
        'warning: held_out = 3 has no effect unless dataset_type is numpy',
        'warning: plain_start = 0.25 and plain_breaks = 9 have no effect unless field is plain']
    parse_flags([*FLAGS, '--expname', 'x', '--N_importance', '8', '--factor', '2'])
    assert capsys.readouterr().err.splitlines() == [
        'warning: factor = 2 has no effect unless dataset_type is llff, transforms, colmap or photos',
        'warning: N_importance = 8 has no effect unless field is mlp']


def test_a_wrong_value_of_an_entrys_flag_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_flags(['--expname', 'x', '--plain_start', '2'])
    assert ended.value.code == 2
    assert "--plain_start: '2' is not a number" in capsys.readouterr().err


def test_written_out_flags_of_such_a_run_give_the_same_again(scene, tmp_path):
    args = parse_flags(plain_flags(scene, tmp_path, '--plain_start', '0.25', '--N_iters', '70'))
    (tmp_path / 'args.txt').write_text(config_text(args))
    again = parse_flags(['--config', str(tmp_path / 'args.txt')])
    assert vars(again) | {'config': None} == vars(args)


def test_flags_that_decide_the_data_are_known_by_their_entries():
    assert 'held_out' in data_flags()
    assert not data_flags() & {'plain_start', 'N_rand', 'testskip'}


# Training


def test_a_run_learns_and_leaves_what_every_run_leaves(logs):
    run_dir = logs / 'run'
    names = {path.name for path in run_dir.iterdir() if not path.name.startswith('events')}
    assert names == {'args.txt', 'metrics.jsonl', 'summary.png', 'testset_000060', 'run_spiral_000060_rgb.mp4',
                     'run_spiral_000060_disp.mp4', *(f'{step:06d}.tar' for step in range(10, 61, 10))}
    colour = torch.load(run_dir / '000060.tar', weights_only=True)['plain_state_dict']['colour']
    torch.testing.assert_close(colour, torch.tensor(third_kind.BLUE), rtol=0, atol=0.03)


def test_losses_are_logged_by_their_names_and_no_psnr_is_made_up(logs, capsys):
    lines = lines_of(logs / 'run')
    assert [line['step'] for line in lines] == list(range(5, 61, 5))
    assert list(lines[0]) == ['step', 'loss', 'photometric', 'brightness', 'lr', 'rays_per_s', 'seconds', 'blue']
    for line in lines:
        assert line['loss'] == pytest.approx(line['photometric'] + line['brightness'])
        assert line['lr'] == pytest.approx(0.02 * 0.1 ** (line['step'] / 1000))  # lrate_decay of the training itself
    assert lines[-1]['photometric'] < 0.1 * lines[0]['photometric'] + 0.03
    board = EventAccumulator(str(logs / 'run')).Reload()
    assert {tag for tag in board.Tags()['scalars'] if tag.startswith(('train', 'field'))} == {
        'train/loss', 'train/photometric', 'train/brightness', 'train/lr', 'train/rays_per_second', 'field/blue'}
    assert [event.value for event in board.Scalars('train/photometric')] == pytest.approx(
        [line['photometric'] for line in lines])


def test_the_test_set_is_rendered_and_measured_and_names_the_sampler(logs):
    folder = logs / 'run' / 'testset_000060'
    metrics = json.loads((folder / 'metrics.json').read_text())
    assert metrics['sampler'] == 'wall'
    assert [row['file'] for row in metrics['images']] == ['000.png', '001.png']
    shown = np.asarray(Image.open(folder / '000.png')) / 255.0
    expected = -10 * np.log10(((shown - np.rint(255 * np.array(third_kind.BLUE)) / 255) ** 2).mean())
    assert metrics['mean']['psnr'] == pytest.approx(expected, abs=1e-4)


def test_the_video_shows_the_render_path(logs):
    import imageio.v2 as imageio

    frames = np.stack(imageio.mimread(logs / 'run' / 'run_spiral_000060_rgb.mp4'))
    assert frames.shape == (2, 12, 14, 3)
    np.testing.assert_allclose(frames.mean((0, 1, 2)) / 255, third_kind.BLUE, atol=0.05)


def test_a_resumed_run_is_the_run_it_would_have_been(logs):
    states = [state_of_run(logs / name, 60) for name in ('run', 'parts')]
    assert states[0]['run_state']['plain_steps'] == 60
    assert_same(*states)
    timeless = [[{key: value for key, value in line.items() if key not in ('rays_per_s', 'seconds')}
                 for line in lines_of(logs / name)] for name in ('run', 'parts')]
    assert timeless[0] == timeless[1]


def test_a_start_says_what_the_field_is_and_a_step_what_its_training_tells(scene, tmp_path, capsys):
    assert run_nerf.main(plain_flags(scene, tmp_path, '--N_iters', '20', '--plain_start', '0.75')) == 0
    said = capsys.readouterr().out.splitlines()
    assert f'scene     {scene}: 6 images of 14x12, 4 train / 2 val / 2 test, near 2, far 6' in said
    assert 'plain     grey 0.75 at first' in said
    assert 'step 10: 40 rays' in said
    line = next(line for line in said if line.startswith('step 5/20'))
    assert re.fullmatch(r'step 5/20  loss 0\.\d+  lr 1\.98e-02  \d+ rays/s  \d+ s', line)


def test_ten_steps_whose_loss_is_nan_end_the_run_with_the_losss_name(scene, tmp_path, capsys):
    assert run_nerf.main(plain_flags(scene, tmp_path, '--N_iters', '40', '--plain_breaks', '12')) == 1
    streams = capsys.readouterr()
    assert streams.err == ('error: step 22: the loss photometric was not finite 10 times in a row; the newest '
                           'checkpoint is good: start again with a lower lrate, or in fp32\n')
    assert streams.out.count('the loss photometric is not finite; the step was skipped') == 9
    states = [state_of_run(tmp_path / 'run', step) for step in (10, 20)]
    assert torch.isfinite(states[1]['plain_state_dict']['colour']).all()
    assert [line['step'] for line in lines_of(tmp_path / 'run')] == [5, 10]


def test_weights_are_rendered_and_taken_as_initial_ones(scene, logs, tmp_path, capsys):
    assert run_nerf.main(plain_flags(scene, logs, '--render_only', '--render_test')) == 0
    metrics = json.loads((logs / 'run' / 'renderonly_test_000060' / 'metrics.json').read_text())
    assert metrics == json.loads((logs / 'run' / 'testset_000060' / 'metrics.json').read_text())
    start = str(logs / 'run' / '000060.tar')
    assert run_nerf.main(plain_flags(scene, tmp_path, '--ft_path', start, '--N_iters', '1', '--lrate', '1e-9')) == 0
    wanted, found = (torch.load(path, weights_only=True)['plain_state_dict']['colour']
                     for path in (start, tmp_path / 'run' / '000001.tar'))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_other_data_by_a_flag_of_the_format_are_an_error_that_names_it(scene, tmp_path, capsys):
    assert run_nerf.main(plain_flags(scene, tmp_path, '--N_iters', '2')) == 0
    assert run_nerf.main(plain_flags(scene, tmp_path, '--N_iters', '4', '--held_out', '3')) == 1
    assert '(changed since then: held_out 2 -> 3)' in capsys.readouterr().err


def test_a_missing_file_of_the_format_is_one_line(tmp_path, capsys):
    assert run_nerf.main(plain_flags(tmp_path, tmp_path, '--N_iters', '1')) == 1
    assert capsys.readouterr().err == f'error: {tmp_path}/scene.npz does not exist; check datadir\n'


@pytest.mark.slow
def test_the_file_is_started_as_a_script(scene, tmp_path):
    command = [sys.executable, ROOT / 'tests' / 'third_kind.py', *plain_flags(scene, tmp_path, '--N_iters', '20')]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False,
                          env=os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    assert '2 test views, psnr ' in done.stdout
    assert f'everything is in {tmp_path / "run"}' in done.stdout
    assert json.loads((tmp_path / 'run' / 'testset_000020' / 'metrics.json').read_text())['sampler'] == 'wall'


# The kinds that ship


def test_each_kind_that_ships_says_which_flags_it_reads():
    mlp, grid = FIELDS['mlp'], FIELDS['grid']
    assert all(map(mlp.reads, ('netwidth', 'N_importance', 'no_batching', 'ema_decay', 'contract', 'guided_test')))
    assert not any(map(grid.reads, ('netwidth', 'N_importance', 'no_batching', 'ema_decay', 'contract', 'guided_test')))
    assert (mlp.finds_foreground, grid.finds_foreground) == (False, True)
