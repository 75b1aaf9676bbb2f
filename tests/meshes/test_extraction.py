"""nerf/meshes/extraction.py: grids, boxes around a surface, and marching cubes near it, against the whole grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from known_surfaces import (
    BOX, LEVEL, NDC_SPACE, RADIUS, SMALL_BOX, THRESHOLD, ball_distance, density_of, distance, steep_ball,
)
from skimage.measure import marching_cubes

from nerf.meshes.extraction import Density, extract_surface, grid_axes, onto_level, tighten
from nerf.meshes.options import MeshSettings
from nerf.meshes.triangles import vertex_normals
from nerf.runtime.errors import UserError


class Counted:
    """Density that notes how many points it is asked for at a time."""

    def __init__(self, density: Density):
        self.density, self.counts = density, []

    def __call__(self, points: np.ndarray) -> np.ndarray:
        self.counts.append(len(points))
        return self.density(points)


def whole_grid(density: Density, axes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Marching cubes on all points of the grid."""
    points = np.stack(np.meshgrid(*axes, indexing='ij'), -1)
    values = density(points.reshape(-1, 3).astype(np.float32)).reshape(points.shape[:3])
    vertices, faces, _, _ = marching_cubes(values, THRESHOLD, gradient_direction='ascent')
    low, steps = np.array([axis[0] for axis in axes]), np.array([axis[1] - axis[0] for axis in axes])
    return (low + steps * vertices).astype(np.float32), faces


def assert_that_of_the_whole_grid(density: Density, axes: list[np.ndarray], **limits) -> None:
    ours, whole = extract_surface(density, axes, THRESHOLD, **limits), whole_grid(density, axes)
    for a, b in zip(ours, whole):
        np.testing.assert_array_equal(a, b)


def sheet(points: np.ndarray) -> np.ndarray:
    """Signed distance to a tilted round sheet, thinner than a block of the coarse pass."""
    height = points @ np.array([0.36, 0.48, 0.8])
    return np.maximum(np.abs(height) - 0.03, np.linalg.norm(points, axis=-1) - 1.2)


def test_vertices_lie_on_the_surface_and_faces_look_outwards():
    vertices, faces = extract_surface(density_of(distance), grid_axes(BOX, 64), THRESHOLD)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert np.abs(distance(vertices)).max() < 0.3 * 3.0 / 63
    assert mesh.is_watertight
    block = 0.105 + 0.15 * 1.42 + np.pi * 0.15 ** 2 * 1.5 + 4 / 3 * np.pi * 0.15 ** 3  # Steiner's formula
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.5 ** 3 + block, rel=0.01)
    np.testing.assert_allclose(mesh.bounds, [[-0.9, -0.5, -0.4], [1.2, 0.7, 0.6]], atol=0.02)


@pytest.mark.parametrize(('shape', 'grid_size', 'share'), [
    (distance, 64, 0.4), (distance, 101, 0.3), (sheet, 90, 0.5),
    pytest.param(distance, 150, 0.25, marks=pytest.mark.slow)])
def test_the_result_is_that_of_the_whole_grid_from_a_part_of_its_points(shape, grid_size, share):
    density, axes = Counted(density_of(shape)), grid_axes(BOX * [1.0, 0.9, 0.83], grid_size)  # of unequal sides
    ours, whole = extract_surface(density, axes, THRESHOLD), whole_grid(density_of(shape), axes)
    for a, b in zip(ours, whole):
        np.testing.assert_array_equal(a, b)
    assert sum(density.counts) < share * np.prod([len(axis) for axis in axes])


def test_a_thin_part_that_the_coarse_pass_meets_at_one_end_is_followed_to_the_other():
    def spike(points):  # a ball with a thorn of a third of a block's width
        along = points[:, 0].clip(0.0, 1.3)
        thorn = np.linalg.norm(points - np.stack([along, 0.21 * along, 0.37 * along], -1), axis=-1) - 0.03
        return np.minimum(np.linalg.norm(points, axis=-1) - 0.3, thorn)

    def density(points):
        return np.where(spike(points) < 0, 50.0, 0.0).astype(np.float32)  # no blur that would give it away
    assert_that_of_the_whole_grid(density, grid_axes(BOX, 100))


@pytest.mark.slow
def test_work_grows_with_the_surface_not_the_volume():
    counts = []
    for grid_size in (131, 261):
        density = Counted(density_of(ball_distance))
        extract_surface(density, grid_axes(BOX, grid_size), THRESHOLD)
        counts.append(sum(density.counts))
    assert counts[1] < 6.0 * counts[0]  # eight times the volume


def test_a_small_part_far_from_the_rest_is_found_if_a_coarse_point_lies_in_it():
    def pair(points):
        small = np.linalg.norm(points - [1.2, 1.2, 1.2], axis=-1) - 2.1 * 3.0 / 127
        return np.minimum(ball_distance(points), small)

    def density(points):
        return np.where(pair(points) < 0, 50.0, 0.0).astype(np.float32)
    assert_that_of_the_whole_grid(density, grid_axes(BOX, 128))


def test_fog_below_the_threshold_does_not_need_memory_for_all_blocks_at_once():
    density = Counted(lambda points: np.maximum(density_of(ball_distance)(points), 18.0))
    axes = grid_axes(BOX, 48)
    counts = {}
    for blocks_at_once in (10 ** 6, 1000):
        density.counts.clear()
        extract_surface(density, axes, THRESHOLD, blocks_at_once=blocks_at_once)
        counts[blocks_at_once] = density.counts[1:]  # without the coarse pass
    assert max(counts[10 ** 6]) > 90_000
    assert max(counts[1000]) <= 1000 * 3 ** 3  # blocks of two cells along an edge have 27 points
    assert sum(counts[1000]) == sum(counts[10 ** 6])
    assert_that_of_the_whole_grid(density.density, axes, blocks_at_once=1000)


def test_densities_at_the_threshold_itself_leave_no_cracks():
    def steps(points):  # as of few bits
        return np.round(density_of(ball_distance)(points) / 12.5) * np.float32(12.5)
    vertices, faces = extract_surface(steps, grid_axes(BOX, 40), THRESHOLD)
    assert trimesh.Trimesh(vertices, faces, process=False).is_watertight


def test_grid_axes_end_at_the_box_and_have_grid_size_points_along_the_longest_side():
    axes = grid_axes(np.array([[0.0, 1.0, -1.0], [2.0, 1.9, 3.0]]), 9)
    assert [len(axis) for axis in axes] == [5, 3, 9]
    assert [(axis[0], axis[-1]) for axis in axes] == [(0.0, 2.0), (1.0, 1.9), (-1.0, 3.0)]
    for axis, step in zip(axes, (0.5, 0.45, 0.5)):
        assert np.diff(axis) == pytest.approx(step)


def test_vertices_are_moved_to_where_the_density_crosses_the_threshold():
    vertices, faces = extract_surface(steep_ball, grid_axes(SMALL_BOX, 24), LEVEL)
    step = 1.6 / 23
    moved = onto_level(steep_ball, vertices, vertex_normals(vertices, faces), step, LEVEL)
    before, after = (np.abs(np.linalg.norm(part, axis=1) - RADIUS) for part in (vertices, moved))
    assert after.max() < 0.05 * step
    assert after.mean() < 0.3 * before.mean()


def test_vertices_without_a_crossing_within_half_a_step_stay():
    vertices = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    stay = onto_level(lambda points: np.zeros(len(points), np.float32), vertices.numpy(), vertices.numpy(), 0.1, LEVEL)
    np.testing.assert_array_equal(stay, vertices.numpy())


# The box


def test_the_box_is_tightened_to_the_density_with_a_margin():
    settings = MeshSettings(survey=97)
    box, step = tighten(density_of(ball_distance), 2 * BOX, THRESHOLD, settings), 6.0 / 96
    assert (box[0] <= [0.2, -0.3, -0.4]).all()
    assert (box[1] >= [1.2, 0.7, 0.6]).all()
    assert (np.abs(box - [[0.2, -0.3, -0.4], [1.2, 0.7, 0.6]]) < 3.01 * step).all()
    quarter = np.array([[0.7, 0.2, 0.1], [0.9, 1.0, 1.2]])  # reaches out of the ball on two sides alone
    tight = tighten(density_of(ball_distance), quarter, THRESHOLD)
    np.testing.assert_array_equal(tight[0], quarter[0])
    np.testing.assert_allclose(tight[1], [0.9, 0.7, 0.6], atol=0.02)


def test_the_tightened_box_holds_a_sheet_thinner_than_the_surveys_coarse_steps():
    box = tighten(density_of(sheet), 2 * BOX, THRESHOLD)
    reach = 1.2 * np.sqrt(1 - np.array([0.36, 0.48, 0.8]) ** 2)  # of a disc across that normal
    assert (box[0] < -reach).all()
    assert (box[1] > reach).all()


def test_the_far_end_in_ndc_stays_in_front_of_infinity():
    box = np.array([[-1.3, -1.2, -1.0], [1.3, 1.2, 1.0 - 2.0 / 100.0]])
    seen = []

    def density(points):
        seen.append(points[:, 2].max())
        return (50.0 * (points[:, 2] > 0.5)).astype(np.float32)  # up to the far end
    box = tighten(density, box, THRESHOLD, MeshSettings(survey=65))
    vertices, _ = extract_surface(density, grid_axes(box, 24), THRESHOLD)
    assert max(seen) <= np.float32(0.98)
    assert NDC_SPACE.to_world(torch.from_numpy(vertices))[:, 2].min() >= -100.1


@pytest.mark.parametrize('find', [lambda density: tighten(density, BOX, THRESHOLD, MeshSettings(survey=65)),
                                  lambda density: extract_surface(density, grid_axes(BOX, 33), THRESHOLD)])
def test_no_surface_is_an_error_with_the_range_and_a_threshold_to_try(find):
    def thin(points):
        return (8.0 - np.linalg.norm(points, axis=-1)).clip(0.0).astype(np.float32)
    with pytest.raises(UserError, match=r'threshold 25: it is from 5\.4 to 8 .*; try --mesh_threshold 6\.7') as error:
        find(thin)
    assert '\n' not in str(error.value)
    with pytest.raises(UserError, match='train longer'):
        find(lambda points: np.zeros(len(points), np.float32))
    with pytest.raises(UserError, match=r'from 45\.4 to 48 .*; try --mesh_threshold 47'):
        find(lambda points: thin(points) + 40)
