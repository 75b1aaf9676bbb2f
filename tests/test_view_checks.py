"""nerf/view_checks.py: runs that say which views do not fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_outputs import Wall, outputs_of, psnr_of, scene_of

from nerf.scene import Images, Scene
from nerf.view_checks import CheckRules, ViewChecks, small_psnr, whole_psnr

RULES = CheckRules(behind=6.0, views=3, misfit=8.0, side=8)
GREY = np.full((16, 20, 3), 128, np.uint8)


def shown(level: int) -> np.ndarray:
    return np.full((16, 20, 3), level, np.uint8)


def below(dB: float) -> float:
    """PSNR of training that lies above that of a view which is 28 levels off."""
    return dB + psnr_of(128 / 255, 100 / 255)


# Held-out views


def test_a_test_set_far_below_training_is_said_once():
    checks = ViewChecks(scene_of((100, 100)), RULES)
    assert checks.test_set([GREY, GREY], below(5.9)) == []
    assert checks.test_set([GREY, GREY], None) == []
    line, = checks.test_set([GREY, GREY], below(6.1))
    assert line.startswith(f'warning: held-out views have {below(0.0):.1f} dB and training {below(6.1):.1f} dB')
    assert 'take more' in line
    assert checks.test_set([GREY, GREY], below(20.0)) == checks.view(GREY, 0, below(20.0)) == []


def test_the_mean_of_the_views_of_a_test_set_counts():
    checks = ViewChecks(scene_of((100, 128)), RULES)
    assert checks.test_set([GREY, GREY], below(20.0)) == []  # the second view fits
    assert checks.test_set([shown(128), shown(156)], below(20.0))


def test_single_views_count_when_there_are_some():
    checks = ViewChecks(scene_of((100, 110)), RULES)
    assert checks.view(GREY, 0, None) == []
    assert checks.view(GREY, 0, below(9.0)) == []
    assert checks.view(GREY, 0, below(9.0)) == []
    assert len(checks.view(GREY, 0, below(1.0))) == 1  # 6.3 in the mean
    easier = ViewChecks(scene_of((100, 110)), replace(RULES, views=1))
    assert len(easier.view(GREY, 0, below(7.0))) == 1


def test_brightness_that_nobody_knows_is_no_error():
    plain = scene_of((64,))
    gained = Scene(**vars(plain) | {'exposure': True})
    assert whole_psnr(plain, GREY, 0) == pytest.approx(psnr_of(128 / 255, 64 / 255))
    assert whole_psnr(gained, GREY, 0) == 100.0
    assert small_psnr(gained, Wall(0.5).sampler(), 0, 8) == 100.0


# Training views


def test_training_views_that_do_not_fit_are_named_once():
    scene = replace(scene_of((128, 110, 10, 128, 250, 150)), names=[f'{i}.jpg' for i in range(6)],
                    i_train=np.array([0, 1, 2, 3, 5]))
    checks, sampler = ViewChecks(scene, RULES), Wall(0.5).sampler()
    line, = checks.training_views(sampler)
    assert f': 2.jpg ({psnr_of(0.5, 10 / 255):.1f} dB);' in line
    assert checks.training_views(sampler) == []
    line, = ViewChecks(replace(scene, names=None), RULES).training_views(sampler)
    assert ': image 2 (' in line
    assert ViewChecks(scene, replace(RULES, misfit=30.0)).training_views(sampler) == []
    assert ViewChecks(replace(scene, i_train=np.array([2, 4])), RULES).training_views(sampler) == []  # nothing fits


def test_a_small_view_is_compared_with_the_mean_of_its_pixels_inside_the_mask():
    image = np.where(np.arange(20)[None, :, None] % 2, 255, 0).repeat(16, 0).repeat(3, 2).astype(np.uint8)
    image[8:] = 10
    mask = np.zeros((16, 20), bool)
    scene = scene_of((0,))
    scene = replace(scene, images=Images.of_any_size([image], [mask]))
    sampler = Wall(0.5).sampler()
    assert np.isnan(small_psnr(scene, sampler, 0, 10))
    mask[:8] = True
    scene = replace(scene, images=Images.of_any_size([image], [mask]))
    assert small_psnr(scene, sampler, 0, 10) > 60.0  # stripes are grey at half the size
    assert small_psnr(scene, sampler, 0, 20) < 7.0
    mask[8:] = True
    scene = replace(scene, images=Images.of_any_size([image], [mask]))
    assert small_psnr(scene, sampler, 0, 10) < 10.0


# In a run


def test_outputs_say_it(tmp_path):
    outputs = outputs_of(tmp_path, Wall(0.5), scene_of((128, 128, 10)))
    outputs.log.training = 90.0
    outputs.make(['test_set'], 20)
    of_set, behind, misfit = outputs.log.said
    assert of_set.startswith('step 20: 3 test views')
    assert behind.startswith('warning: held-out views have')
    assert 'image 2 (' in misfit
    outputs.make(['test_set', 'view', 'view', 'view'], 40)
    assert len(outputs.log.said) == 4


def test_outputs_say_it_of_held_out_views_alone(tmp_path):
    outputs = outputs_of(tmp_path, Wall(0.5), scene_of((10, 10, 10)))
    outputs.log.training = 20.0
    for step in (10, 20):
        outputs.make(['view'], step)
    assert not outputs.log.said
    outputs.make(['view'], 30)
    assert len(outputs.log.said) == 1
