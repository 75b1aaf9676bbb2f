"""nerf/captures/alignment.py: cameras found again from pictures of a made scene, lenses, and the whole that stays."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from corners import cameras_around, picture
from torch import Tensor

from nerf.cameras import Cameras
from nerf.captures.alignment import AlignmentRules, Pair, aligned, moved, pixel_motion, sampled, without_drift

RULES = AlignmentRules(turn=0.05, shift=0.05, focal=0.05)
ONE_LENS = torch.zeros(5, dtype=torch.int64)
LENSES = {'pinhole': {}, 'distorting': {'lens': [-0.15, 0.03, 0.001, -0.002, 0.0, 0.0, 0.0, 0.0]},
          'fisheye': {'lens': [-0.02, 0.003, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 'fisheye': True}}


def pairs_of(cameras: Cameras, true: Cameras, counts: Tensor | None = None) -> list[Pair]:
    """Pairs of what cameras see and of what the true ones took."""
    pairs = []
    for i in range(len(cameras)):
        (drawn, disparity), (taken, _) = (picture(each.take([i])) for each in (cameras, true))
        counted = torch.ones_like(disparity, dtype=torch.bool) if counts is None else counts
        pairs.append(Pair.of(taken, drawn, disparity, counted, cameras.take([i]), RULES))
    return pairs


def disturbed(true: Cameras, focal: float | list[float] = 0.0) -> Cameras:
    """Cameras turned by half a degree and shifted by 0.02 (a half percent of the distance), without a common motion;
    focal lengths smaller by a share."""
    twists = torch.randn(len(true), 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    twists = twists * torch.tensor([math.radians(0.5)] * 3 + [0.02] * 3) / math.sqrt(3.0)
    poses = true.poses.double()
    scale = torch.as_tensor(focal, dtype=torch.float64).expand(len(true)).neg().exp()
    grown = torch.stack([scale, scale, torch.ones_like(scale), torch.ones_like(scale)], 1)
    return replace(true, poses=moved(poses, without_drift(poses, twists)).float(), intrinsics=true.intrinsics * grown)


def realigned(cameras: Cameras, true: Cameras, lens: Tensor = ONE_LENS, times: int = 2) -> Cameras:
    """Cameras after alignments with what the true ones took."""
    for _ in range(times):
        change = aligned(pairs_of(cameras, true), lens, RULES)
        grown = torch.cat([change[:, 6:].exp()] * 2 + [torch.ones(len(change), 2)], 1)
        cameras = replace(cameras, poses=moved(cameras.poses.double(), change[:, :6]).float(),
                          intrinsics=cameras.intrinsics * grown)
    return cameras


def off(cameras: Cameras, true: Cameras) -> float:
    """Largest deviation of a pose's number."""
    return float((cameras.poses - true.poses).abs().max())


# Alignment


@pytest.mark.parametrize('lens', LENSES)
def test_a_disturbance_is_found_to_a_fiftieth_with_any_lens(lens):
    true = cameras_around(**LENSES[lens])
    cameras = disturbed(true, 0.01)
    found = realigned(cameras, true)
    assert off(found, true) < 0.02 * off(cameras, true)
    torch.testing.assert_close(found.intrinsics, true.intrinsics, rtol=1e-4, atol=0.0)


def test_lenses_have_focal_lengths_of_their_own_and_their_cameras_share_them():
    true, lens = cameras_around(), torch.tensor([0, 1, 0, 1, 1])
    cameras = disturbed(true, [0.01, -0.005, 0.01, -0.005, -0.005])
    change = aligned(pairs_of(cameras, true), lens, RULES)[:, 6]
    assert change[0] == change[2] != change[1] == change[3] == change[4]
    torch.testing.assert_close(realigned(cameras, true, lens).intrinsics, true.intrinsics, rtol=1e-4, atol=0.0)
    assert (aligned(pairs_of(cameras, true), None, RULES)[:, 6] == 0.0).all()


def test_equal_pictures_move_nothing():
    true = cameras_around()
    assert float(aligned(pairs_of(true, true), ONE_LENS, RULES).abs().max()) < 1e-6


def test_pictures_without_texture_move_nothing():
    camera = cameras_around().take([0])
    flat, disparity = torch.full((60, 80, 3), 0.5), torch.ones(60, 80)
    pair = Pair.of(flat + 0.1, flat, disparity, torch.ones(60, 80, dtype=torch.bool), camera, RULES)
    assert float(aligned([pair], ONE_LENS[:1], RULES).abs().max()) < 1e-6


def test_pixels_that_do_not_count_have_no_part():
    true = cameras_around()
    cameras, counts = disturbed(true), torch.ones(60, 80, dtype=torch.bool)
    counts[20:35, 10:40] = False
    pairs = pairs_of(cameras, true, counts)
    spoilt = [pair._replace(drawn=torch.where(counts, pair.drawn, 0.0)) for pair in pairs]
    change = aligned(pairs, ONE_LENS, RULES)
    inner = torch.nn.functional.max_pool2d((~counts).float()[None], 3, 1, 1)[0] == 0.0  # whose gradients are whole
    whole, less = (aligned([pair._replace(counts=inner) for pair in some], ONE_LENS, RULES) for some in (pairs, spoilt))
    assert torch.equal(whole, less)
    assert not torch.equal(whole, change)


def test_something_in_front_of_one_camera_hardly_matters():
    true = cameras_around()
    cameras = disturbed(true)
    pairs = pairs_of(cameras, true)
    hand = pairs[0].taken.clone()
    hand[:, 40:, 50:] = 0.9
    found = aligned([pairs[0]._replace(taken=hand), *pairs[1:]], ONE_LENS, RULES)
    clean = aligned(pairs, ONE_LENS, RULES)
    assert float((found - clean)[0].abs().max()) < 0.1 * float(clean[0].abs().max())


# The motion of pixels


@pytest.mark.parametrize('lens', LENSES)
def test_the_motion_of_pixels_is_that_of_points_that_a_moved_camera_sees(lens):
    camera = cameras_around(**LENSES[lens]).take([1])
    origins, directions = camera.view_rays(0)
    _, disparity = picture(camera)
    points = origins + directions / disparity[..., None]
    motion, step = pixel_motion(camera, disparity), 1e-3
    for i in range(6):
        twist = torch.zeros(1, 6, dtype=torch.float64)
        twist[0, i] = step
        other = replace(camera, poses=moved(camera.poses.double(), twist).float())
        # The moved camera's rays through the moved places meet the same points.
        row, column = (part.double() for part in torch.meshgrid(torch.arange(60), torch.arange(80), indexing='ij'))
        row, column = row + step * motion[..., 1, i], column + step * motion[..., 0, i]
        start, ahead = other.single_rays(torch.zeros(60, 80, dtype=torch.int64), row, column)
        gap = torch.linalg.cross(points - start, torch.nn.functional.normalize(ahead.float(), dim=-1)).norm(dim=-1)
        assert float((70.0 * gap * disparity).max()) < 0.01  # pixels, where a step moves some by 0.07


def test_the_motion_by_a_focal_length_is_away_from_the_principal_point():
    camera = cameras_around().take([0])
    motion = pixel_motion(camera, torch.ones(60, 80))[..., 6]
    assert motion[10, 70].tolist() == [70.5 - 40.0, 10.5 - 30.0]


def test_places_between_pixels_and_outside():
    ramp = torch.arange(12.0).reshape(1, 3, 4)
    move = torch.zeros(3, 4, 2)
    move[0, 0] = torch.tensor([0.5, 1.0])
    move[2, 3] = torch.tensor([0.1, 0.0])
    values, inside = sampled(ramp, move)
    assert float(values[0, 0, 0]) == pytest.approx(4.5)
    assert inside.sum() == 11
    assert not inside[2, 3]


# The whole


def test_a_motion_and_growth_of_all_cameras_together_is_no_twist():
    poses = cameras_around().poses.double()
    turn, around = torch.tensor([0.01, -0.02, 0.005], dtype=torch.float64), poses[:, :, 3] - poses[:, :, 3].mean(0)
    shift = torch.linalg.cross(turn.expand_as(around), around) + 0.03 * around + torch.tensor([1.0, 2.0, 3.0])
    back = poses[:, :, :3].transpose(1, 2)
    common = torch.cat([back @ turn, (back @ shift[..., None])[..., 0]], 1)
    assert float(without_drift(poses, common).abs().max()) < 1e-6


def test_twists_without_drift_have_no_mean():
    poses = cameras_around().poses.double()
    twists = without_drift(poses, torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    axes, around = poses[:, :, :3], poses[:, :, 3] - poses[:, :, 3].mean(0)
    turns, shifts = ((axes @ part[..., None])[..., 0] for part in twists.split(3, 1))
    for mean in (turns.mean(0), shifts.mean(0), (shifts * around).sum()):
        assert float(mean.abs().max()) < 1e-6
    torch.testing.assert_close(without_drift(poses, twists), twists, rtol=0.0, atol=1e-6)


def test_twists_turn_and_shift_along_the_cameras_own_axes():
    pose = torch.tensor([[[0.0, -1.0, 0.0, 5.0], [1.0, 0.0, 0.0, 6.0], [0.0, 0.0, 1.0, 7.0]]], dtype=torch.float64)
    up = math.pi / 2  # a quarter turn about the camera's up axis, which is the world's -x
    after = moved(pose, torch.tensor([[0.0, up, 0.0, 2.0, 0.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(after, torch.tensor(
        [[[0.0, -1.0, 0.0, 5.0], [0.0, 0.0, 1.0, 8.0], [-1.0, 0.0, 0.0, 7.0]]], dtype=torch.float64))
