"""nerf/captures/refining.py: when cameras are refined, which changes are kept, and what a run leaves of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_same
from corners import CornerSampler, cameras_around, picture
from PIL import Image
from test_alignment import disturbed, off

from nerf.cameras import Cameras
from nerf.captures.alignment import AlignmentRules
from nerf.captures.refining import CameraRefinement, RefinementRules, lenses
from nerf.captures.transforms import read_transforms
from nerf.scene import Images, Scene
from nerf.space import Bounded

RULES = RefinementRules(begin=0.2, every=0.1, until=0.5, side=80, patience=2, alignment=AlignmentRules(
    turn=0.05, shift=0.05, focal=0.05))


def scene_of(cameras: Cameras, true: Cameras, **changes) -> Scene:
    """Photographs that the true cameras took, with other cameras; the first one is a test view."""
    pictures = [(255.0 * picture(true.take([i]))[0]).round().byte().numpy() for i in range(len(true))]
    train = np.arange(1, len(true))
    return replace(Scene(Images.of_any_size(pictures), cameras, cameras, Bounded(0.1, 20.0), False, train, train[:0],
                         np.array([0])), **changes)


def refinement_of(scene: Scene, rules: RefinementRules = RULES) -> CameraRefinement:
    return CameraRefinement(scene, scene.cameras.take(scene.i_train), 100, rules)


@pytest.fixture(scope='module')
def wrong() -> tuple[Scene, Cameras]:
    """A scene whose cameras are disturbed, and the true cameras."""
    true = cameras_around(6)
    return scene_of(disturbed(true, 0.01), true), true


# When


def test_cameras_are_aligned_every_tenth_of_the_run_from_a_fifth_to_its_middle(wrong):
    refinement = refinement_of(wrong[0])
    assert [step for step in range(101) if step and refinement.is_due(step)] == [20, 30, 40, 50]


def test_good_cameras_stay_and_a_line_says_so_at_the_second_time():
    true = cameras_around(6)
    refinement = refinement_of(scene_of(true, true))
    assert refinement.refine(10, CornerSampler()) == []
    assert refinement.is_due(20)
    line, = refinement.refine(20, CornerSampler())
    assert line.startswith('step 20: cameras stay as they are given: another alignment')
    assert not refinement.is_due(30)
    assert torch.equal(refinement.cameras.poses, true.poses[1:])


# What


def test_disturbed_cameras_come_near_the_true_ones(wrong):
    scene, true = wrong
    refinement, before = refinement_of(scene), off(scene.cameras.take(scene.i_train), true.take(scene.i_train))
    line, = refinement.refine(10, CornerSampler())
    assert line.startswith('step 10: 5 of 5 cameras aligned with their photographs: turned by 0.')
    for step in (20, 30, 40, 50):
        refinement.refine(step, CornerSampler())
    # The test view has a part in the disturbance, so training views have a common motion, which stays.
    assert off(refinement.cameras, true.take(scene.i_train)) < 0.3 * before
    torch.testing.assert_close(refinement.cameras.intrinsics, true.take(scene.i_train).intrinsics, rtol=3e-3, atol=0.0)
    assert float((refinement.cameras.poses - scene.cameras.poses[1:])[:, :, 3].mean(0).abs().max()) < 1e-5


def test_a_camera_whose_picture_would_fit_less_stays(wrong):
    scene, true = wrong
    pixels = scene.images.pixels.copy()
    pixels[scene.images.starts[2]:scene.images.starts[3]] = np.random.default_rng(0).integers(0, 256, (4800, 3))
    refinement = refinement_of(replace(scene, images=replace(scene.images, pixels=pixels)))
    line, = refinement.refine(10, CornerSampler())
    moved = (refinement.cameras.poses - scene.cameras.poses[1:]).abs().amax((1, 2)) > 0.0
    assert f'{int(moved.sum())} of 5 cameras' in line
    assert moved.tolist().count(False) <= 1
    assert off(refinement.cameras.take([0, 2, 3, 4]), true.take([1, 3, 4, 5])) < off(
        scene.cameras.take([1, 3, 4, 5]), true.take([1, 3, 4, 5]))


def test_photographs_of_another_brightness_are_aligned_with_exposure(wrong):
    scene, true = wrong
    plain, gained = (refinement_of(replace(scene, exposure=exposure)) for exposure in (False, True))
    for refinement in (plain, gained):
        for step in (10, 20, 30):
            refinement.refine(step, CornerSampler(brightness=0.8))
    assert off(gained.cameras, true.take(scene.i_train)) < 0.7 * off(plain.cameras, true.take(scene.i_train))


def test_masked_pixels_have_no_part(wrong):
    scene, _ = wrong
    mask, pixels = np.ones(len(scene.images.pixels), bool), scene.images.pixels.copy()
    mask.reshape(6, 60, 80)[:, :32, :] = False
    ours = refinement_of(replace(scene, images=replace(scene.images, masks=mask)))
    kept_back = [photograph.kept_back for photograph in ours.training.photographs]
    assert all(len(part) and part.min() >= 32 * 80 for part in kept_back)
    pixels.reshape(6, 60, 80, 3)[:, :24, :] = 77  # farther from the mask's edge than the filter reaches
    theirs = refinement_of(replace(scene, images=replace(scene.images, pixels=pixels, masks=mask)))
    for refinement in (ours, theirs):
        refinement.refine(10, CornerSampler())
    assert torch.equal(ours.cameras.poses, theirs.cameras.poses)


def test_a_test_view_is_aligned_with_its_own_photograph_and_has_the_refined_lens(wrong):
    scene, true = wrong
    refinement = refinement_of(scene)
    refinement.refine(10, CornerSampler())
    test = refinement.test_cameras(CornerSampler())
    assert torch.equal(test.intrinsics[0], refinement.cameras.intrinsics[0])
    assert off(test, true.take([0])) < 0.2 * off(scene.cameras.take([0]), true.take([0]))
    given = refinement.all_cameras()
    assert torch.equal(given.poses[0], scene.cameras.poses[0])
    assert torch.equal(given.poses[1:], refinement.cameras.poses)


def test_cameras_of_one_lens_have_its_number():
    cameras = cameras_around(5)
    cameras.intrinsics[3, 0] += 1.0
    numbers = lenses(replace(cameras, distortion=torch.zeros(5, 8)))
    assert numbers[0] == numbers[1] == numbers[2] == numbers[4] != numbers[3]


# What is kept


def test_a_refinement_goes_on_from_its_state_bit_for_bit(wrong):
    scene, _ = wrong
    whole, ours = refinement_of(scene), refinement_of(scene)
    whole.refine(10, CornerSampler())
    ours.load_state({name: part.clone() if isinstance(part, torch.Tensor) else part
                     for name, part in whole.state().items()})
    for refinement in (whole, ours):
        refinement.refine(20, CornerSampler())
    assert_same(whole.state(), ours.state())


def test_alignments_in_vain_are_counted_on():
    true = cameras_around(6)
    scene = scene_of(true, true)
    before, after = refinement_of(scene), refinement_of(scene)
    assert before.refine(20, CornerSampler()) == []
    after.load_state(before.state())
    assert len(after.refine(30, CornerSampler())) == 1


@pytest.mark.parametrize('change', [{'poses': None}, {'poses': torch.zeros(2, 3, 4)}, {'in_vain': 'x'}])
def test_a_broken_state_is_refused(wrong, change):
    refinement = refinement_of(wrong[0])
    with pytest.raises((ValueError, TypeError)):
        refinement.load_state(refinement.state() | change)


def test_cameras_are_written_as_transforms_that_can_take_the_place_of_the_original(wrong, tmp_path):
    scene, _ = wrong
    scene = replace(scene, names=[f'{i}.png' for i in range(6)])
    folder = tmp_path / 'scene'
    (folder / 'pictures').mkdir(parents=True)
    for i in range(6):
        Image.fromarray(scene.images[i]).save(folder / 'pictures' / f'{i}.png')
    (folder / 'transforms.json').write_text(json.dumps({'ply_file_path': 'points.ply', 'fl_x': 1.0, 'frames': [
        {'file_path': f'./pictures/{i}.png', 'mask_path': f'{i}m.png'} for i in range(6)]}))
    refinement = refinement_of(scene)
    refinement.refine(10, CornerSampler())
    refinement.save(folder / 'refined.json', folder)
    refinement.save(tmp_path / 'video.json', folder.with_suffix('.mp4'))  # of which the folder has the frames
    assert (tmp_path / 'video.json').read_text() == (folder / 'refined.json').read_text()
    (folder / 'transforms.json').write_text((folder / 'refined.json').read_text())
    read, wanted = read_transforms(folder / 'transforms.json'), refinement.all_cameras()
    assert read.points == folder / 'points.ply'
    for i, photograph in enumerate(read.photographs):
        assert photograph.mask == folder / f'{i}m.png'
        np.testing.assert_allclose(photograph.pose, wanted.poses[i], atol=1e-6)
        assert photograph.lens.intrinsics.tolist() == wanted.intrinsics[i].tolist()
