"""nerf/metrics.py: PSNR, SSIM and LPIPS against their formulas, and messages where LPIPS cannot be measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nerf.metrics import compare, in_words, networks, psnr

FAKE = '''
"""Stands in for the lpips package: its distances tell what came in."""
import torch

class LPIPS(torch.nn.Module):
    made = []

    def __init__(self, net, verbose=True):
        super().__init__()
        assert not verbose
        self.net = net
        self.made.append(net)

    def forward(self, first, second):
        assert not self.training
        assert first.shape == second.shape and first.shape[:2] == (1, 3)
        assert first.dtype == second.dtype == torch.float32
        colours = torch.tensor([1.0, 10.0, 100.0])[:, None, None]
        distance = (first * colours).mean() + 1000.0 * (second * colours).mean()
        return {'alex': 1.0, 'vgg': -1.0}[self.net] * distance.reshape(1, 1, 1, 1)
'''


# Measures two test views with the lpips package, as a run does.
SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from known_pictures import Painted, balls, scene_of
from nerf.rendering import save_metrics
images = np.stack([np.full((32, 33, 3), level, np.uint8) for level in (0, 255)])
mean = save_metrics(Path(sys.argv[1]), 5, Painted(balls), scene_of(32, 33, images), [images[1]] * 2)
print(mean['lpips_alex'], mean['lpips_vgg'], sys.modules['lpips'].LPIPS.made)
"""


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture
def lpips_package(tmp_path, monkeypatch):
    """Puts a package of that name, with this text, where Python looks first; None: there is none."""
    def put(text: str | None) -> None:
        networks.cache_clear()
        monkeypatch.delitem(sys.modules, 'lpips', raising=False)
        if text is None:
            monkeypatch.setitem(sys.modules, 'lpips', None)
        else:
            (tmp_path / 'packages').mkdir()
            (tmp_path / 'packages' / 'lpips.py').write_text(text)
            monkeypatch.syspath_prepend(tmp_path / 'packages')
    before = sys.modules.get('lpips')
    yield put
    networks.cache_clear()
    monkeypatch.undo()
    sys.modules.pop('lpips', None)
    if before is not None:
        sys.modules['lpips'] = before


# PSNR and SSIM


def test_a_picture_compared_with_itself_has_psnr_100_and_ssim_1():
    picture = noise(16, 20, 3).astype(np.float32) / 255
    assert compare(picture, picture) == pytest.approx({'psnr': 100.0, 'ssim': 1.0})


def test_a_constant_offset_has_the_psnr_and_ssim_of_the_formulas():
    flat = np.full((16, 20, 3), 0.4, np.float32)
    c1 = 0.01 ** 2  # without variance only SSIM's luminance term is left
    ssim = (2 * 0.4 * 0.5 + c1) / (0.4 ** 2 + 0.5 ** 2 + c1)
    assert compare(flat + 0.1, flat) == pytest.approx({'psnr': 20.0, 'ssim': ssim}, abs=1e-4)


def test_ssim_is_that_of_a_gaussian_window_written_out():
    x, y = (np.random.default_rng(seed).random((16, 20, 3)) for seed in (0, 1))
    bell = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(bell, bell) / bell.sum() ** 2

    def blur(a):
        return np.einsum('hwcij,ij', np.lib.stride_tricks.sliding_window_view(a, (11, 11), (0, 1)), window)

    mx, my, c1, c2 = blur(x), blur(y), 0.01 ** 2, 0.03 ** 2
    vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    ssim = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx ** 2 + my ** 2 + c1) * (vx + vy + c2))
    assert compare(x, y)['ssim'] == pytest.approx(ssim.mean())


@pytest.mark.parametrize(('offset', 'expected'), [(1.0, 0.0), (0.1, 20.0), (0.01, 40.0), (1e-4, 80.0), (1e-9, 100.0)])
def test_psnr_falls_by_20_db_for_ten_times_the_error_and_ends_at_100(offset, expected):
    black = np.zeros((4, 5, 3))
    assert psnr(black + offset, black) == pytest.approx(expected)


def test_metrics_in_words_have_units_and_are_those_that_were_measured():
    assert in_words({'psnr': 21.005, 'ssim': 0.91234}) == 'psnr 21.00 dB, ssim 0.9123'
    assert in_words({'psnr': 21.0, 'ssim': 0.5, 'lpips_alex': 0.12345, 'lpips_vgg': 0.25}) == (
        'psnr 21.00 dB, ssim 0.5000, lpips (alex) 0.1235, lpips (vgg) 0.2500')


# LPIPS


def test_lpips_gets_pictures_from_minus_1_to_1_the_rendered_one_first(lpips_package):
    lpips_package(FAKE)
    rendered = np.broadcast_to(np.float32([0.75, 0.5, 1.0]), (32, 40, 3))  # 0.5, 0, 1 for the networks
    target = np.broadcast_to(np.float32([0.0, 1.0, 0.5]), (32, 40, 3))  # -1, 1, 0
    expected = (0.5 + 0 + 100) / 3 + 1000 * (-1 + 10 + 0) / 3
    found = compare(rendered, target)
    assert list(found) == ['psnr', 'ssim', 'lpips_alex', 'lpips_vgg']
    assert found['lpips_alex'] == pytest.approx(expected, rel=1e-5)
    assert found['lpips_vgg'] == pytest.approx(-expected, rel=1e-5)
    assert all(type(value) is float for value in found.values())


@pytest.mark.slow
def test_lpips_is_in_metrics_json_for_each_picture_and_in_the_mean_of_networks_that_are_made_once(tmp_path):
    (tmp_path / 'lpips.py').write_text(FAKE)
    tests = Path(__file__).parent
    path = os.pathsep.join(map(str, (tmp_path, tests.parent, tests)))
    done = subprocess.run([sys.executable, '-c', SCRIPT, tmp_path], capture_output=True, text=True, check=True,
                          env=os.environ | {'PYTHONPATH': path})
    alex, vgg, made = done.stdout.split(' ', 2)
    assert made == "['alex', 'vgg']\n"
    written = json.loads((tmp_path / 'metrics.json').read_text())
    assert [row['lpips_alex'] for row in written['images']] == pytest.approx([37 - 37000, 37 + 37000])
    assert [row['lpips_vgg'] for row in written['images']] == pytest.approx([37000 - 37, -37000 - 37])
    assert written['mean']['lpips_alex'] == float(alex) == pytest.approx(37.0, abs=0.01)
    assert written['mean']['lpips_vgg'] == float(vgg) == pytest.approx(-37.0, abs=0.01)


@pytest.mark.parametrize('size', [(31, 40), (40, 31)])
def test_pictures_that_are_too_small_for_the_networks_have_no_lpips(lpips_package, size, capsys):
    lpips_package(FAKE)
    picture = np.zeros((*size, 3), np.float32)
    assert list(compare(picture, picture)) == ['psnr', 'ssim']
    assert capsys.readouterr() == ('', '')
    assert 'lpips' not in sys.modules


@pytest.mark.parametrize('text', [
    'raise ImportError("no torchvision\\nhere")',
    'def LPIPS(**options):\n    raise RuntimeError("no torchvision\\nhere")',
    'from urllib.error import URLError\ndef LPIPS(**options):\n    raise URLError("no torchvision\\nhere")'])
def test_a_package_that_cannot_be_used_is_one_warning(lpips_package, text, capsys):
    lpips_package(text)
    assert networks() == {}
    said = capsys.readouterr()
    assert said.out == ''
    assert said.err.startswith('warning: LPIPS is not measured: the lpips package cannot be used (')
    assert 'no torchvision' in said.err
    assert said.err.count('\n') == 1


def test_without_the_package_one_line_says_how_to_get_it(lpips_package, capsys):
    lpips_package(None)
    assert networks() == {}
    assert capsys.readouterr() == ('LPIPS is not measured; "pip install lpips" adds it\n', '')


def test_without_networks_psnr_and_ssim_are_measured_alone(lpips_package):
    lpips_package(None)
    picture = noise(32, 32, 3).astype(np.float32) / 255
    assert list(compare(picture, picture)) == ['psnr', 'ssim']
