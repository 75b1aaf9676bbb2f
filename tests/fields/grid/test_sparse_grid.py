"""nerf/fields/grid/sparse_grid.py: which vertices have rows, and what lies between them, by hand and by plain loops."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from nerf.fields.grid.sparse_grid import SparseGrid, cells_around, dilated, vertices_of
from nerf.runtime.errors import UserError

LOW = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
CORNERS = list(product((0, 1), repeat=3))


def mask_of(shape: tuple[int, ...], *places: tuple[int, int, int]) -> torch.Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    for place in places:
        mask[place] = True
    return mask


def places_of(mask: torch.Tensor) -> set[tuple[int, ...]]:
    return set(map(tuple, mask.nonzero().tolist()))


def some_cells(shape: tuple[int, int, int], share: float, seed: int = 0) -> torch.Tensor:
    """Random cells, none at the last vertex along an axis."""
    cells = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
    cells[-1], cells[:, -1], cells[:, :, -1] = False, False, False
    return cells


def a_grid(shape=(6, 5, 9), share: float = 0.2, voxel: float = 0.25) -> SparseGrid:
    return SparseGrid.of_cells(LOW, voxel, some_cells(shape, share))


def index_of(grid: SparseGrid) -> torch.Tensor:
    """[X, Y, Z] int32: row of each vertex, -1 for none, by the order of the vertices."""
    index = torch.full(grid.cells.shape, -1, dtype=torch.int32)
    index.view(-1)[grid.vertices] = torch.arange(grid.n_rows, dtype=torch.int32)
    return index


# Which cells and vertices


def test_one_cell_has_eight_vertices_whose_rows_are_in_the_order_of_their_indices():
    grid = SparseGrid.of_cells(LOW, 0.5, mask_of((4, 3, 5), (1, 0, 2)))
    assert grid.n_rows == 8
    assert places_of(grid.cells) == {(1, 0, 2)}
    for row, (i, j, k) in enumerate(CORNERS):
        assert index_of(grid)[1 + i, j, 2 + k] == row
    assert (index_of(grid) == -1).sum() == 4 * 3 * 5 - 8


def test_neighbouring_cells_share_vertices():
    grid = SparseGrid.of_cells(LOW, 0.5, mask_of((4, 4, 4), (0, 1, 1), (1, 1, 1), (2, 2, 1)))
    assert grid.n_rows == 12 + 8 - 2  # cells 1 and 2 share a face of 4, cells 2 and 3 an edge of 2


def test_no_cell_begins_at_the_last_vertex_and_the_mask_that_is_given_stays():
    given = torch.ones((3, 4, 2), dtype=torch.bool)
    grid = SparseGrid.of_cells(LOW, 0.5, given)
    assert places_of(grid.cells) == set(product(range(2), range(3), range(1)))
    assert given.all()
    assert index_of(grid).flatten().tolist() == list(range(24))


def test_a_grid_without_cells_has_no_rows():
    grid = SparseGrid.of_cells(LOW, 0.5, mask_of((3, 3, 3)))
    assert grid.n_rows == 0
    assert len(grid.vertex_points()) == len(grid.centres()) == 0


@pytest.mark.parametrize('shape', [(6, 5, 9), (4, 8, 12), (2, 3, 13)])
def test_rows_are_those_of_plain_loops(shape):
    grid = SparseGrid.of_cells(LOW, 0.25, some_cells(shape, 0.03, seed=sum(shape)))
    cells = places_of(grid.cells)
    assert cells
    vertices = sorted({(i + di, j + dj, k + dk) for i, j, k in cells for di, dj, dk in CORNERS})
    assert [index_of(grid)[vertex].item() for vertex in vertices] == list(range(len(vertices)))
    assert grid.n_rows == len(vertices) == (index_of(grid) >= 0).sum()


def test_a_filled_box_has_all_cells_that_reach_into_it():
    box = np.array([[-1.0, 0.0, 2.0], [1.0, 0.9, 2.5]])
    grid = SparseGrid.filled(box, 0.25, torch.device('cpu'))
    assert grid.cells.shape == (9, 5, 3)  # 8, 3.6 and 2 cells
    assert grid.cells.sum() == 8 * 4 * 2
    assert grid.low.tolist() == [-1.0, 0.0, 2.0]
    assert grid.voxel == 0.25
    seventh = SparseGrid.filled(np.array([[0.0] * 3, [4.9, 0.7, 0.7]]), 0.7, torch.device('cpu'))
    assert seventh.cells.shape == (8, 2, 2)  # though 4.9 / 0.7 is above 7 by rounding


def test_centres_and_vertices_are_at_their_places_in_the_scene():
    grid = SparseGrid.of_cells(LOW, 0.5, mask_of((4, 4, 4), (2, 0, 1), (0, 1, 0)))
    torch.testing.assert_close(grid.centres(), torch.tensor([[-0.75, 1.25, 2.25], [0.25, 0.75, 2.75]]))
    expected = {(x, y, z) for x in (-1.0, -0.5) for y in (1.0, 1.5) for z in (2.0, 2.5)}
    expected |= {(x, y, z) for x in (0.0, 0.5) for y in (0.5, 1.0) for z in (2.5, 3.0)}
    points = grid.vertex_points()
    assert points.dtype == torch.float32
    assert set(map(tuple, points.tolist())) == expected
    scaled = grid.scaled(points)
    assert [index_of(grid)[tuple(vertex)].item() for vertex in scaled.round().long().tolist()] == list(range(16))
    torch.testing.assert_close(scaled, scaled.round())


def test_vertices_of_cells_and_cells_around_vertices_are_those_of_plain_loops():
    shape = (5, 4, 6)
    cells = some_cells(shape, 0.1, seed=1)
    expected = {(i + di, j + dj, k + dk) for i, j, k in places_of(cells) for di, dj, dk in CORNERS}
    assert places_of(vertices_of(cells)) == expected
    vertices = mask_of(shape, (0, 0, 0), (2, 3, 1), (4, 1, 5), (3, 2, 2))
    expected = {(i - di, j - dj, k - dk) for i, j, k in places_of(vertices) for di, dj, dk in CORNERS}
    assert places_of(cells_around(vertices)) == {place for place in expected if min(place) >= 0}


def test_dilated_cells_have_all_26_neighbours_too():
    cells = mask_of((6, 6, 6), (2, 3, 1), (0, 0, 4))
    around = list(product((-1, 0, 1), repeat=3))
    expected = {(i + di, j + dj, k + dk) for i, j, k in places_of(cells) for di, dj, dk in around}
    assert places_of(dilated(cells)) == {place for place in expected if min(place) >= 0}
    assert len(places_of(dilated(mask_of((6, 6, 6), (2, 3, 1))))) == 27


# Grids that follow from others


def test_keeping_some_cells_tells_which_row_each_row_was():
    grid = a_grid()
    wanted = some_cells((6, 5, 9), 0.5, seed=2)
    kept, rows = grid.keeping(wanted)
    assert places_of(kept.cells) == places_of(wanted) & places_of(grid.cells)
    assert 0 < kept.n_rows < grid.n_rows
    assert len(rows) == kept.n_rows
    torch.testing.assert_close(kept.vertex_points(), grid.vertex_points()[rows])
    assert torch.equal(kept.low, grid.low)
    assert kept.voxel == grid.voxel


def test_keeping_everything_changes_nothing():
    grid = a_grid()
    kept, rows = grid.keeping(torch.ones_like(grid.cells))
    assert torch.equal(kept.vertices, grid.vertices)
    assert rows.tolist() == list(range(grid.n_rows))


def test_half_as_large_voxels_cut_each_cell_in_eight_and_the_box_to_the_cells():
    grid = SparseGrid.of_cells(LOW, 0.5, mask_of((9, 9, 9), (3, 2, 5), (4, 4, 5)))
    fine = grid.refined(0.25)
    assert fine.low.tolist() == [-1.0 + 3 * 0.5, 0.5 + 2 * 0.5, 2.0 + 5 * 0.5]
    assert fine.cells.shape == (5, 7, 3)
    assert fine.voxel == 0.25
    first, last = set(product((0, 1), repeat=3)), set(product((2, 3), (4, 5), (0, 1)))
    assert places_of(fine.cells) == first | last


@pytest.mark.parametrize('ratio', [1.0, 1.3, 1.9, 2.4, 3.0])
def test_finer_cells_are_those_whose_centres_are_in_a_kept_cell(ratio):
    grid = a_grid(share=0.1)
    fine = grid.refined(grid.voxel / ratio)
    size = np.array(fine.cells.shape)
    kept, first = places_of(grid.cells), grid.cells.nonzero().amin(0).numpy()
    expected = set()
    for place in product(*map(range, size)):
        cell = first + np.floor((np.array(place) + 0.5) / ratio).astype(int)
        if tuple(cell.tolist()) in kept:
            expected.add(place)
    assert places_of(fine.cells) == expected
    end = grid.low.numpy() + (grid.cells.nonzero().amax(0).numpy() + 1) * grid.voxel
    reach = fine.low.numpy() + (size - 1) * fine.voxel
    assert (reach > end - 1e-9).all()  # the box holds all kept cells
    assert (reach < end + fine.voxel * (1.0 + 1e-6)).all()  # and no more than a voxel beside them


def test_as_large_voxels_keep_the_cells():
    grid = SparseGrid.of_cells(LOW, 0.3, torch.ones((8, 4, 5), dtype=torch.bool))
    same = grid.refined(0.3)
    assert torch.equal(same.cells, grid.cells)
    assert torch.equal(same.low, grid.low)


def test_too_many_vertices_are_an_error_with_their_number():
    grid = SparseGrid.of_cells(LOW, 0.5, mask_of((9, 9, 9), (0, 0, 0), (1, 2, 3)))
    assert grid.refined(0.5, most=60).cells.shape == (3, 4, 5)
    with pytest.raises(UserError, match='a grid of 5x7x9 vertices is too large'):
        grid.refined(0.25, most=5 * 7 * 9 - 1)


# Values between vertices


def test_trilinear_weights_of_one_point_worked_by_hand():
    grid = SparseGrid.of_cells(LOW, 0.5, torch.ones((3, 4, 5), dtype=torch.bool))
    rows, weights = grid.trilinear(torch.tensor([[1.25, 0.5, 3.75]]))
    assert rows.tolist() == [[20 + 3, 20 + 4, 25 + 3, 25 + 4, 40 + 3, 40 + 4, 45 + 3, 45 + 4]]
    assert rows.dtype == torch.int64
    expected = [0.75 * 0.5 * 0.25, 0.75 * 0.5 * 0.75] * 2 + [0.25 * 0.5 * 0.25, 0.25 * 0.5 * 0.75] * 2
    torch.testing.assert_close(weights, torch.tensor([expected]))


@pytest.mark.parametrize(('point', 'vertex'), [
    ((0.0, 0.0, 0.0), (0, 0, 0)), ((2.0, 3.0, 4.0), (2, 3, 4)), ((1.0, 3.0, 2.0), (1, 3, 2)),
    ((-5.0, 1.0, 9.0), (0, 1, 4)), ((7.0, -0.5, 2.0), (2, 0, 2))])
def test_at_a_vertex_all_weight_is_its_and_points_outside_are_moved_to_the_surface(point, vertex):
    grid = SparseGrid.of_cells(LOW, 0.5, torch.ones((3, 4, 5), dtype=torch.bool))
    rows, weights = grid.trilinear(torch.tensor([point]))
    assert weights.sum() == 1.0
    assert rows[0, weights[0].argmax()] == torch.arange(3 * 4 * 5).reshape(3, 4, 5)[vertex]
    assert weights.max() == 1.0


@pytest.mark.parametrize('shape', [(6, 5, 9), (17, 8, 20), (9, 30, 3)])
def test_bricks_find_the_row_of_every_vertex_and_store_no_empty_brick(shape):
    grid = SparseGrid.of_cells(LOW, 0.5, some_cells(shape, 0.01, seed=sum(shape)))
    everywhere = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing='ij')).reshape(3, -1)
    rows = grid.bricks.row_at(*everywhere)
    assert rows.tolist() == index_of(grid).flatten().tolist()
    full = {tuple(part // 8 for part in place) for place in grid.places.t().tolist()}
    assert len(grid.bricks.origin) == len(full)
    assert len(grid.bricks.index) == 512 * len(full)


def test_interpolation_of_a_trilinear_function_is_exact():
    def function(points: torch.Tensor) -> torch.Tensor:
        x, y, z = points.unbind(-1)
        return torch.stack([1.0 + x - 2.0 * y, x * y * z - z, torch.full_like(x, 3.0)], -1)

    grid = SparseGrid.of_cells(LOW, 0.5, torch.ones((4, 6, 3), dtype=torch.bool))
    rows = function(grid.places.t().float())
    points = torch.rand((200, 3), generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 5.0, 2.0])
    values, weight = grid.interpolated(rows, points)
    torch.testing.assert_close(values, function(points), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight, torch.ones(200))


def test_interpolation_is_the_mean_over_the_corners_that_have_rows_as_in_plain_loops():
    grid = a_grid((5, 4, 6), share=0.12)
    generator = torch.Generator().manual_seed(3)
    rows = torch.rand((grid.n_rows, 2), generator=generator)
    points = torch.rand((300, 3), generator=generator) * 6.0 - 0.5
    values, weight = grid.interpolated(rows, points)
    last = np.array(grid.cells.shape) - 1
    some, none = 0, 0
    for point, value, total in zip(points.double().numpy(), values.double().numpy(), weight.tolist()):
        point = point.clip(0.0, last)
        lowest = np.minimum(point.astype(int), last - 1)
        expected, share_of_all = np.zeros(2), 0.0
        for corner in CORNERS:
            share = np.prod([f if c else 1.0 - f for f, c in zip(point - lowest, corner)])
            if (row := index_of(grid)[tuple(lowest + corner)].item()) >= 0:
                expected, share_of_all = expected + share * rows[row].double().numpy(), share_of_all + share
        assert total == pytest.approx(share_of_all, abs=1e-6)
        if share_of_all > 1e-3:
            np.testing.assert_allclose(value, expected / share_of_all, rtol=1e-3, atol=1e-5)
            some += share_of_all < 0.999
        elif share_of_all == 0.0:
            assert (value == 0.0).all()
            none += 1
    assert some > 20
    assert none > 5
