"""nerf/space.py: each kind of space by hand-worked values, and its maps against their inverses and Jacobians."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from load_blender import pose_spherical
from nerf.cameras import Cameras
from nerf.runtime.errors import UserError
from nerf.scene import centred_intrinsics
from nerf.space import NDC, Bounded, Space, Unbounded, contracted, even_depths, looking_sideways, shrinkage
from run_nerf_helpers import ndc_points, ndc_rays

BOUNDED, FORWARD = Bounded(2.0, 6.0), Bounded(2.0, 6.0, surrounded=False)
IN_NDC = NDC(height=60, width=80, focal=50.0, farthest=10.0)
UNBOUNDED = Unbounded(2.0, 6.0, centre=(0.5, -1.0, 2.0), radius=4.0)
KINDS = pytest.mark.parametrize('space', [BOUNDED, FORWARD, IN_NDC, UNBOUNDED], ids=lambda space: space.name)


def cameras_at(*positions, size=(60, 80), focal=50.0) -> Cameras:
    """Cameras that look along -z."""
    poses = np.stack([np.column_stack([np.eye(3), position]) for position in positions])
    return Cameras.of_one_kind(poses, centred_intrinsics(*size, focal), *size)


def orbit(*distances: float) -> Cameras:
    """Cameras that look at the origin from several distances."""
    poses = np.stack([pose_spherical(30.0 * distance, -30.0, distance)[:3] for distance in distances])
    return Cameras.of_one_kind(poses, centred_intrinsics(60, 80, 50.0), 60, 80)


def some_points(n: int = 200, seed: int = 0) -> Tensor:
    """[n, 3] float64, from 0.1 to 100 away from the origin."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator, dtype=torch.float64), dim=-1)
    return directions * torch.logspace(-1, 2, n, dtype=torch.float64)[:, None]


def jacobians(function, points: Tensor) -> Tensor:
    """[N, 3, 3] of a map of points [N, 3]."""
    return torch.stack([torch.autograd.functional.jacobian(function, point) for point in points])


def in_front(points: Tensor) -> Tensor:
    """Points moved before the near plane of NDC, z < -1."""
    return torch.cat([points[:, :2], -1.0 - points[:, 2:].abs()], -1)


# Rays


def test_rays_of_a_space_with_bounds_stay_in_the_world_and_have_its_bounds():
    origins, directions = cameras_at([0, 0, 0], [1, 2, 3]).spread_rays(3)
    for space in (BOUNDED, UNBOUNDED):
        rays = space.rays(origins, directions)
        assert torch.equal(rays.origins, origins.reshape(-1, 3))
        assert torch.equal(rays.directions, directions.reshape(-1, 3))
        assert rays.near.tolist() == [[2.0]] * 18
        assert rays.far.tolist() == [[6.0]] * 18
        torch.testing.assert_close(rays.viewdirs.norm(dim=-1), torch.ones(18))
        torch.testing.assert_close(rays.viewdirs, rays.directions / rays.directions.norm(dim=-1, keepdim=True))


def test_rays_have_the_bounds_of_their_view():
    origins, directions = cameras_at([0, 0, 0], [1, 2, 3]).spread_rays(3)
    bounds = torch.tensor([[3.0, 9.0], [1.0, 5.0]])
    rays = BOUNDED.rays(origins, directions, bounds[:, None])
    assert rays.near.tolist() == [[3.0]] * 9 + [[1.0]] * 9
    assert rays.far.tolist() == [[9.0]] * 9 + [[5.0]] * 9


def test_rays_in_ndc_are_those_of_appendix_c_and_have_no_bounds_of_views():
    origins, directions = cameras_at([0.1, 0.2, 0.3]).view_rays(0)
    rays = IN_NDC.rays(origins, directions, torch.tensor([[2.0, 7.0]]))
    expected = ndc_rays(60, 80, 50.0, 1.0, origins.reshape(-1, 3), directions.reshape(-1, 3))
    torch.testing.assert_close((rays.origins, rays.directions), expected)
    assert (rays.near == 0.0).all()
    assert (rays.far == 1.0).all()
    world = BOUNDED.rays(origins, directions)
    assert torch.equal(rays.viewdirs, world.viewdirs)


def test_points_on_a_ray_in_ndc_are_on_the_same_ray_of_the_world():
    origin, direction = torch.tensor([[0.5, -0.3, 1.0]]), torch.tensor([[0.2, 0.1, -1.0]])
    rays = IN_NDC.rays(origin, direction)
    for t in (0.0, 0.25, 0.9):
        point = IN_NDC.to_world(rays.origins + t * rays.directions)
        along = (point - origin) / direction
        torch.testing.assert_close(along, along[:, :1].expand(1, 3))
        assert point[0, 2] == pytest.approx(-1.0 / (1.0 - t))


@KINDS
def test_only_ndc_has_directions_without_rays(space):
    directions = torch.tensor([[0.0, 0.0, -1.0], [5.0, 5.0, -0.01], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    expected = [True, True, False, False] if space is IN_NDC else [True] * 4
    assert space.has_rays(directions).tolist() == expected


# Coordinates


@KINDS
def test_points_come_back_to_the_world(space):
    points = in_front(some_points())
    torch.testing.assert_close(space.to_world(space.from_world(points)), points)
    if not space.projective:
        assert torch.equal(space.from_world(points), points)


def test_points_in_ndc_by_hand():
    """Equation 24 with 2 * 50 / 80 = 1.25 and 2 * 50 / 60 = 5 / 3: (2, 3, -4) becomes (0.625, 1.25, 0.5)."""
    torch.testing.assert_close(IN_NDC.from_world(torch.tensor([2.0, 3.0, -4.0])), torch.tensor([0.625, 1.25, 0.5]))
    behind = IN_NDC.from_world(torch.tensor([[2.0, 3.0, -0.5], [2.0, 3.0, 7.0]]))
    torch.testing.assert_close(behind, torch.tensor([[2.5, 5.0, -1.0]] * 2))  # on the near plane


@KINDS
def test_grid_coordinates_lead_back_to_the_points(space):
    points = some_points() * torch.tensor([1.0, 1.0, 0.01 if space.name == 'ndc' else 1.0], dtype=torch.float64)
    torch.testing.assert_close(space.from_grid(space.to_grid(points)), points, rtol=1e-6, atol=1e-6)


@KINDS
def test_a_grid_scale_is_the_cube_root_of_the_jacobians_determinant(space):
    points = some_points()
    expected = torch.linalg.det(jacobians(space.to_field, points)).abs() ** (1 / 3)
    if space is IN_NDC:  # a voxel is four times as long
        assert torch.equal(space.to_field(points), points)
        expected = expected / 4.0 ** (1 / 3)
    torch.testing.assert_close(space.grid_scale(points), expected)


@pytest.mark.parametrize(('point', 'expected'), [
    ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)), ((0.3, -0.4, 0.5), (0.3, -0.4, 0.5)), ((0.0, 1.0, 0.0), (0.0, 1.0, 0.0)),
    ((0.0, 0.0, -4.0), (0.0, 0.0, -1.75)), ((3.0, 4.0, 0.0), (1.08, 1.44, 0.0)), ((1e6, 0.0, 0.0), (2.0, 0.0, 0.0))])
def test_contracted_points_are_those_of_equation_10(point, expected):
    torch.testing.assert_close(contracted(torch.tensor(point)), torch.tensor(expected), rtol=0, atol=2e-6)
    moved = 4.0 * torch.tensor(point) + torch.tensor([0.5, -1.0, 2.0])
    torch.testing.assert_close(UNBOUNDED.to_field(moved), torch.tensor(expected), rtol=0, atol=2e-6)
    torch.testing.assert_close(UNBOUNDED.from_centre(moved), torch.tensor(point))


def test_a_step_shrinks_as_the_jacobian_of_the_contraction_says():
    x, directions = some_points(), 3.0 * some_points(seed=1).flip(0)
    expected = (jacobians(contracted, x) @ directions[..., None])[..., 0].norm(dim=-1) / directions.norm(dim=-1)
    torch.testing.assert_close(shrinkage(x, directions), expected)
    assert (expected[x.norm(dim=-1) < 1] == 1.0).all()
    assert expected.min() < 0.01
    torch.testing.assert_close(shrinkage(x, x)[-1], torch.tensor(1e-4, dtype=torch.float64))  # away from the centre
    assert shrinkage(torch.zeros(3), torch.ones(3)) == 1.0


# Depth


def test_disparity_is_that_of_the_world():
    """Depth is weighted by opacity: half an opacity and a depth of 2 are something at depth 4."""
    acc = torch.tensor([1.0, 0.5, 0.0])
    torch.testing.assert_close(BOUNDED.disparity(torch.tensor([4.0, 2.0, 0.0]), acc), torch.tensor([0.25, 0.25, 0.0]))
    # In NDC t = 1 - 1 / z: 0.75 at a world depth of 4.
    torch.testing.assert_close(IN_NDC.disparity(torch.tensor([0.75, 0.375, 0.0]), acc),
                               torch.tensor([0.25, 0.25, 0.0]))


@KINDS
def test_even_depths_go_from_the_near_to_the_far_bound_in_equal_steps(space):
    rays = space.rays(torch.zeros(2, 3), torch.tensor([[0.0, 0.0, -1.0], [0.3, 0.0, -1.0]]),
                      torch.tensor([[2.0, 6.0], [1.0, 5.0]]))
    depths = space.even_depths(rays, 5)
    expected = [[0.0, 0.25, 0.5, 0.75, 1.0]] * 2 if space is IN_NDC else [[2.0, 3.0, 4.0, 5.0, 6.0],
                                                                          [1.0, 2.0, 3.0, 4.0, 5.0]]
    torch.testing.assert_close(depths, torch.tensor(expected))


def test_even_depths_in_contracted_space_are_a_step_apart():
    generator = torch.Generator().manual_seed(0)
    origins, directions = (torch.randn(300, 3, generator=generator) for _ in range(2))
    near = 0.2 * torch.rand(300, generator=generator)
    far, jitter, step = 400.0 / directions.norm(dim=-1), torch.rand(300, 1, generator=generator), math.tau / 1000
    t = even_depths(origins, directions, near, far, step * (jitter + torch.arange(1000)))
    points = contracted(origins[:, None] + t[..., None] * directions[:, None])
    steps, beyond = points.diff(dim=1).norm(dim=-1) / step, t == far[:, None]
    first = (points[:, 0] - contracted(origins + near[:, None] * directions)).norm(dim=-1) / step
    torch.testing.assert_close(first, jitter[:, 0], rtol=0, atol=0.01)
    torch.testing.assert_close(steps[~beyond[:, 1:]], torch.ones(int((~beyond[:, 1:]).sum())), rtol=0, atol=0.01)
    assert beyond[:, -1].all()
    ends = contracted(origins + far[:, None] * directions)
    last = torch.stack([row[~out][-1] for row, out in zip(points, beyond)])
    assert ((ends - last).norm(dim=-1) < 1.01 * step).all()
    inside = torch.tensor([[0.1, 0.0, 0.0]]), torch.tensor([[0.0, 2.0, 0.0]])  # nothing is contracted
    t = even_depths(*inside, torch.tensor([0.05]), torch.tensor([0.3]), torch.tensor([[0.1, 0.2, 0.4, 0.6]]))
    torch.testing.assert_close(t, torch.tensor([[0.1, 0.15, 0.25, 0.3]]))


# A camera anywhere


def pose_at(*position: float) -> np.ndarray:
    return np.column_stack([np.eye(3), position])


def test_looking_distance_is_that_to_the_origin_or_halfway_in_disparity():
    pose = pose_at(0.0, 3.0, 4.0)
    assert BOUNDED.looking_distance(pose) == UNBOUNDED.looking_distance(pose) == pytest.approx(5.0)
    assert BOUNDED.looking_distance(pose_at(0.0, 0.0, 0.0)) == 1e-3
    assert FORWARD.looking_distance(pose) == pytest.approx(3.0)  # 1 / 3 is halfway between 1 / 2 and 1 / 6
    assert IN_NDC.looking_distance(pose) == pytest.approx(2.0 / (1.0 + 1.0 / 10.0))
    assert replace(IN_NDC, farthest=math.inf).looking_distance(pose) == pytest.approx(2.0)
    assert (FORWARD.world_bounds, IN_NDC.world_bounds) == ((2.0, 6.0), (1.0, 10.0))
    assert (FORWARD.farthest_clip, IN_NDC.farthest_clip) == (12.0, 1.0)


def test_distances_of_rays_are_depths_as_far_away_as_the_scene():
    origins = torch.tensor([[3.0, 0.0, 4.0], [0.0, 2.0, 0.0]])
    directions = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 4.0]])
    for space in (BOUNDED, UNBOUNDED):
        assert space.distances(space.rays(origins, directions)).tolist() == pytest.approx([5.0, 0.5])
    assert FORWARD.distances(FORWARD.rays(origins, directions)).tolist() == pytest.approx([3.0, 3.0])
    depth = 2.0 / (1.0 + 1.0 / 10.0)  # of the world; NDC depth is 1 - 1 / depth
    assert IN_NDC.distances(IN_NDC.rays(-origins, -directions.abs())).tolist() == pytest.approx([1.0 - 1.0 / depth] * 2)



@pytest.mark.parametrize(('distance', 'near', 'far'), [
    (4.0, 2.0, 6.0),  # as far away as the cameras
    (3.0, 1.0, 6.0), (2.0, 0.02, 6.0), (0.5, 0.02, 6.0),  # closer: what is seen begins at 2 from the origin
    (7.0, 2.0, 8.0), (20.0, 2.0, 21.0)])  # farther away: what is seen ends at 1 behind the origin
def test_bounds_follow_a_camera_where_cameras_surround_the_origin(distance, near, far):
    """Training cameras are 4 to 5 away, and see from 2 to 6."""
    moved = BOUNDED.seen_from(pose_at(0.0, distance, 0.0), 4.0, 5.0)
    assert (moved.near, moved.far) == pytest.approx((near, far))


@pytest.mark.parametrize('space', [FORWARD, IN_NDC, UNBOUNDED])
def test_other_bounds_do_not_depend_on_the_camera(space):
    assert space.seen_from(pose_at(0.0, 0.1, 0.0), 4.0, 5.0) == space


# Boxes


def test_the_box_inside_cameras_is_a_cube_up_to_where_their_rays_begin():
    np.testing.assert_allclose(BOUNDED.box(orbit(4.0, 4.0)), [[-2.0] * 3, [2.0] * 3], atol=1e-6)
    box = replace(BOUNDED, near=2.5).box(orbit(3.0, 5.0))  # 4 in the mean
    np.testing.assert_allclose(box, [[-1.5] * 3, [1.5] * 3], atol=1e-6)
    np.testing.assert_array_equal(BOUNDED.grid_box(orbit(4.0)), BOUNDED.box(orbit(4.0)))


@pytest.mark.parametrize('space', [FORWARD, BOUNDED])
def test_the_box_before_cameras_holds_the_ends_of_their_corners_rays(space):
    """Pixels go from 0 to 79 and from 0 to 59, to depth 6. So it is too where rays begin behind the origin."""
    cameras = cameras_at([0, 0, 0], [0, 0, 0])
    expected = [[-4.8, -29 / 50 * 6, -6], [39 / 50 * 6, 3.6, -2]]
    np.testing.assert_allclose(space.box(cameras), expected, rtol=1e-6)
    if not space.surrounded:
        shifted = space.box(cameras_at([0, 0, 0], [0.5, 0, 0]))
        np.testing.assert_allclose(shifted, np.array(expected) + [[0, 0, 0], [0.5, 0, 0]], rtol=1e-6)


def test_the_box_holds_what_each_camera_sees_by_its_own_intrinsics_and_size():
    cameras = cameras_at([0, 0, 0], [0, 0, 0])
    sizes, intrinsics = cameras.sizes.clone(), cameras.intrinsics.clone()
    sizes[1] = torch.tensor([20, 60])
    intrinsics[1] = torch.tensor([10.0, 50.0, 20.0, 10.0])  # fx, fy, cx, cy: from -2 to 3.9 in x / depth
    box = FORWARD.box(replace(cameras, sizes=sizes, intrinsics=intrinsics))
    np.testing.assert_allclose(box, [[-12, -29 / 50 * 6, -6], [3.9 * 6, 3.6, -2]], rtol=1e-6)


def test_boxes_in_ndc_end_at_the_farthest_thing_or_at_infinity():
    cameras = cameras_at([0, 0, 0])
    expected = ndc_points(60, 80, 50.0, 1.0, torch.tensor([[-8.0, -5.8, -10.0], [7.8, 6.0, -10.0]]))
    box = IN_NDC.box(cameras)
    np.testing.assert_allclose(box[:, :2], expected[:, :2], atol=1e-6)
    np.testing.assert_allclose(box[:, 2], [-1.0, 0.8], atol=1e-6)
    # Seen from the origin a direction has one place in NDC: 2 * 50 / 80 * x / depth and 2 * 50 / 60 * y / depth.
    to_infinity = [[-1.0, -29 / 30, -1.0], [39 / 40, 1.0, 1.0]]
    np.testing.assert_allclose(IN_NDC.seen_box(cameras), to_infinity, atol=1e-6)
    voxel = [1.0, 1.0, 4.0]  # longer along depth
    np.testing.assert_allclose(IN_NDC.grid_box(cameras), np.divide(to_infinity, voxel), atol=1e-6)


@pytest.mark.parametrize('space', [BOUNDED, UNBOUNDED, FORWARD])
def test_the_seen_box_holds_the_rays_of_all_cameras(space):
    first, second = orbit(3.0, 5.0), orbit(9.0)
    box = space.seen_box(first, second)
    for cameras in (first, second):
        for i in range(len(cameras)):
            rays = space.rays(*cameras.view_rays(i))
            for t in (space.near, 4.0, space.far):
                points = (rays.origins + t * rays.directions).numpy()
                assert (points >= box[0] - 1e-5).all()
                assert (points <= box[1] + 1e-5).all()
    shifted = space.seen_box(first.posed(first.poses + torch.tensor([0, 0, 0, 7.0])))
    np.testing.assert_allclose(shifted, space.seen_box(first) + 7.0, atol=1e-5)


def test_cameras_that_look_sideways_are_left_out_of_boxes_in_ndc():
    turned = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    poses = np.stack([pose_at(0, 0, 0), np.column_stack([turned, [0, 0, 0]]), pose_at(0.1, 0, 0)])
    cameras = cameras_at([0, 0, 0]).posed(poses)
    assert looking_sideways(cameras).tolist() == [1]
    np.testing.assert_array_equal(IN_NDC.seen_box(cameras), IN_NDC.seen_box(cameras.take([0, 2])))


def test_the_box_of_contracted_space_holds_what_is_seen_up_to_infinity():
    cameras = cameras_at([0, 0, 0])
    space = Unbounded.around(cameras, 2.0, 6.0, surrounded=False)  # the ball reaches to the near bound, 2
    box = space.grid_box(cameras)

    def edge(*direction: float) -> np.ndarray:
        """Where a ray from the centre is at infinity."""
        return 2.0 * np.array(direction) / np.linalg.norm(direction)
    lowest = edge(-0.8, 0.0, -1.0)[0], edge(0.0, -0.58, -1.0)[1]
    highest = edge(0.78, 0.0, -1.0)[0], edge(0.0, 0.6, -1.0)[1]
    np.testing.assert_allclose(box[:, :2], [lowest, highest], atol=0.01)
    assert box[0, 2] == pytest.approx(-2.0, abs=0.01)
    assert box[1, 2] == pytest.approx(-1.0 / np.sqrt(1.0 + 0.8 ** 2 + 0.6 ** 2), abs=0.01)  # a corner's near bound
    later = space.grid_box(replace(cameras, bounds=torch.tensor([[8.0, 9.0]])))
    assert later[1, 2] == pytest.approx(-(2.0 - 1.0 / 4.0) / np.sqrt(2.0), abs=0.01)  # four radii away
    np.testing.assert_allclose(later[0], box[0], atol=0.01)


BOX = np.array([[-1.0, -1.0, -4.0], [1.0, 2.0, -2.0]])


@pytest.mark.parametrize('space', [BOUNDED, FORWARD, UNBOUNDED])
def test_a_box_of_the_world_is_itself_where_rays_are_in_the_world(space):
    np.testing.assert_array_equal(space.box_within(BOX, cameras_at([0, 0, 0])), BOX)


def test_a_box_of_the_world_in_ndc_is_cut_to_what_cameras_see():
    cameras = cameras_at([0, 0, 0])
    seen = IN_NDC.box(cameras)
    # x / depth is 0.5 and y / depth 1 at most, at z = -2; z' = 1 + 2 / z.
    np.testing.assert_allclose(IN_NDC.box_within(BOX, cameras), [[-0.625, -5 / 6, 0.0], [0.625, seen[1, 1], 0.5]],
                               atol=1e-6)
    np.testing.assert_allclose(IN_NDC.box_within(np.array([[-99.0] * 3, [99.0, 99.0, 0.0]]), cameras), seen)


@pytest.mark.parametrize('box', [[[-1, -1, 1], [1, 1, 2]], [[-1, -1, -0.9], [1, 1, 5]], [[50, 0, -4], [60, 1, -3]],
                                 [[-1, -1, -30], [1, 1, -20]]])
def test_a_box_in_ndc_of_which_nothing_is_seen_is_an_error(box):
    with pytest.raises(UserError, match='is in no training view') as error:
        IN_NDC.box_within(np.array(box, float), cameras_at([0, 0, 0]))
    assert ' '.join(f'{part:g}' for part in box[0]) + ' to ' in str(error.value)


def test_sides_of_a_pixel_at_the_origin_at_the_far_bound_and_in_ndc():
    cameras = orbit(4.0, 5.0)
    torch.testing.assert_close(BOUNDED.pixel_sides(cameras), torch.tensor([0.08, 0.1], dtype=torch.float64))
    torch.testing.assert_close(FORWARD.pixel_sides(cameras), torch.full((2,), 6.0 / 50.0, dtype=torch.float64))
    torch.testing.assert_close(IN_NDC.pixel_sides(cameras), torch.full((2,), 2.0 / 80.0, dtype=torch.float64))


# The unit ball, and numbers


def test_cameras_around_the_origin_are_just_inside_the_unit_ball():
    space = Unbounded.around(orbit(3.0, 5.0), 2.0, 6.0, surrounded=True)
    assert (space.near, space.far, space.centre) == (2.0, 6.0, (0.0, 0.0, 0.0))
    assert space.radius == pytest.approx(5.05)
    assert Unbounded.around(orbit(1.0), 2.0, 6.0, surrounded=True).radius == 2.0  # at least up to the near bound


def test_a_camera_far_outside_the_others_hardly_changes_the_ball_and_may_lie_outside_it():
    space = Unbounded.around(orbit(3.0, 4.0, 4.0, 5.0, 100.0), 2.0, 6.0, surrounded=True)
    assert space.radius == pytest.approx(1.01 * 8.0)  # twice the median
    forward = cameras_at([0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0.5, 0.5, 40.0])
    space = Unbounded.around(forward, 2.0, 6.0, surrounded=False)
    assert np.linalg.norm(np.array(space.centre) - [0.5, 0.5, 0.0]) < 0.3
    assert space.radius < 2.0 + 2.0


def test_cameras_that_look_forward_have_the_ball_around_their_mean_and_what_is_near_in_it():
    space = Unbounded.around(cameras_at([3, 0, 0], [4, 0, 0]), 2.0, 6.0, surrounded=False)
    assert space == Unbounded(2.0, 6.0, False, (3.5, 0.0, 0.0), 2.5)  # 0.5 to a camera, 2 to its near bound


@pytest.mark.parametrize('numbers', [[], [1.0, 2.0, 3.0], [0.0] * 4, [0.0, math.nan, 0.0, 1.0], ['x'] * 4, 3,
                                     [0.0, 0.0, 0.0, math.inf], [0.0, 0.0, 0.0, -1.0], [0.0] * 4 + [1.0]])
def test_numbers_that_are_no_ball_are_an_error(numbers):
    with pytest.raises((TypeError, ValueError)):
        UNBOUNDED.with_ball(numbers)


def test_numbers_of_a_ball_give_it_back():
    assert UNBOUNDED.ball_numbers() == [0.5, -1.0, 2.0, 4.0]
    other = Unbounded(2.0, 6.0)
    assert other.with_ball(UNBOUNDED.ball_numbers()) == UNBOUNDED


@KINDS
def test_numbers_of_a_fingerprint_are_the_bounds_and_whether_it_is_ndc(space):
    """As in the first checkpoints, whose runs go on."""
    assert space.numbers() == ([0.0, 1.0, True] if space is IN_NDC else [2.0, 6.0, False])


def test_kinds_of_space_have_names_of_their_own():
    spaces = [BOUNDED, IN_NDC, UNBOUNDED]
    assert [space.name for space in spaces] == ['bounded', 'ndc', 'unbounded']
    assert [(space.closed, space.has_far, space.projective) for space in spaces] == [
        (False, True, False), (True, True, True), (True, False, False)]
    assert all(isinstance(space, Space) for space in spaces)
