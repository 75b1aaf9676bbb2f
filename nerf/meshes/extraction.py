"""Extraction of a surface from a density, by marching cubes on a grid that is evaluated near the surface alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from skimage import measure
from tqdm import tqdm

from nerf.fields.interface import pieces
from nerf.meshes.options import DEFAULTS, MeshSettings
from nerf.runtime.errors import UserError

Density = Callable[[np.ndarray], np.ndarray]  # points [N, 3] to densities [N], both float32

SURVEY_MARGIN = 2  # grid points of the survey around what is dense
BLOCKS_AT_ONCE = 2 ** 14  # so that the indices of their points need tens of megabytes
POINTS_AT_ONCE = 2 ** 18
MOVES = 4  # steps of the search for the threshold along a normal


def grid_axes(box: np.ndarray, grid_size: int) -> list[np.ndarray]:
    """Coordinates x [X], y [Y] and z [Z] of grid points from a box's lowest to its highest corner, box [2, 3]. The
    longest side has `grid_size` points. Other sides have as many points as make their steps no longer."""
    step = (box[1] - box[0]).max() / (grid_size - 1)
    return [np.linspace(low, high, max(int(np.ceil((high - low) / step - 1e-6)) + 1, 2)) for low, high in box.T]


def tighten(density: Density, box: np.ndarray, threshold: float, settings: MeshSettings = DEFAULTS) -> np.ndarray:
    """Part [2, 3] of a box [2, 3] in which the density is above a threshold, on a grid of `survey` points along a side.
    Its corners are SURVEY_MARGIN grid steps outside the outermost dense points, but inside the box."""
    axes = grid_axes(box, settings.survey)
    dense = density_near_surface(density, axes, threshold, settings) > threshold
    corners = []
    for i, axis in enumerate(axes):
        where = np.flatnonzero(dense.any(tuple({0, 1, 2} - {i})))
        corners.append((axis[max(where[0] - SURVEY_MARGIN, 0)], axis[min(where[-1] + SURVEY_MARGIN, len(axis) - 1)]))
    return np.array(corners).T


def extract_surface(density: Density, axes: list[np.ndarray], threshold: float, settings: MeshSettings = DEFAULTS,
                    blocks_at_once: int = BLOCKS_AT_ONCE) -> tuple[np.ndarray, np.ndarray]:
    """Surface at which a density has a threshold's value: `marching_cubes` of `density_near_surface`."""
    return marching_cubes(density_near_surface(density, axes, threshold, settings, blocks_at_once), axes, threshold)


def marching_cubes(volume: np.ndarray, axes: list[np.ndarray], threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Surface between values above and below a threshold (Lewiner et al. 2003). The volume [X, Y, Z] float32 is larger
    inside; values equal to the threshold are changed. Vertices [V, 3] float32 are in the coordinates of the axes. Faces
    [F, 3] are counterclockwise seen from outside."""
    # A grid point exactly at the threshold would be a separate vertex of each edge there, with cracks in between.
    volume[volume == np.float32(threshold)] = np.nextafter(np.float32(threshold), np.float32(np.inf))
    # skimage calls a field that is denser inside 'descent', but its faces are then clockwise seen from outside.
    vertices, faces, _, _ = measure.marching_cubes(volume, threshold, gradient_direction='ascent')
    low, steps = ([axis[0] for axis in axes], [axis[1] - axis[0] for axis in axes])
    return (np.array(low) + np.array(steps) * vertices).astype(np.float32), faces


def onto_level(density: Density, vertices: np.ndarray, normals: np.ndarray, step: float,
               threshold: float) -> np.ndarray:
    """Moves vertices along their normals to where the density crosses a threshold. Marching cubes takes the density
    between grid points to be linear, so its vertices are a little off. A vertex moves by half a grid step at most. A
    vertex without a crossing so near stays."""
    low, high = (np.full(len(vertices), part, np.float32) for part in (-0.5 * step, 0.5 * step))  # inside, outside

    def excess(shift: np.ndarray) -> np.ndarray:
        return density(vertices + shift[:, None] * normals) - threshold
    at_low, at_high = excess(low), excess(high)
    crosses = (at_low > 0) & (at_high <= 0)
    shift = np.zeros(len(vertices), np.float32)
    for move in range(MOVES):  # chords and halves by turns: a chord alone can stay near one end
        middle = 0.5 * (low + high) if move % 2 else low + (high - low) * np.clip(
            at_low / np.maximum(at_low - at_high, 1e-12), 0.05, 0.95)
        shift = np.where(crosses, middle, 0.0).astype(np.float32)
        here = excess(shift)
        inside = here > 0
        low, at_low = np.where(inside, shift, low), np.where(inside, here, at_low)
        high, at_high = np.where(inside, high, shift), np.where(inside, at_high, here)
    return (vertices + shift[:, None] * normals).astype(np.float32)


def density_near_surface(density: Density, axes: list[np.ndarray], threshold: float, settings: MeshSettings = DEFAULTS,
                         blocks_at_once: int = BLOCKS_AT_ONCE) -> np.ndarray:
    """Densities [X, Y, Z] float32 at grid points of blocks that hold surface; else 0 outside, 2 thresholds inside. A
    coarse pass over every fourth grid point (every second one of a small grid) finds blocks that can hold surface. From
    them the surface is followed through faces of blocks into their neighbours. The surface is that of the whole grid,
    except for a component that no coarse point lies in and that touches no found block. At most `blocks_at_once` blocks
    are in memory at once. UserError: the density is nowhere, or everywhere, above the threshold."""
    shape = [len(axis) for axis in axes]
    size = 2 if max(shape) <= settings.small_grid else 4  # cells along a block's edge
    knots = [np.unique(np.append(np.arange(0, n, size), n - 1)) for n in shape]
    volume = np.full(shape, np.nan, np.float32)
    _evaluate(density, axes, np.ravel_multi_index(np.ix_(*knots), shape).ravel(), volume, 'coarse pass')
    lowest, highest = (extreme(volume[np.ix_(*knots)], 2, origin=-1)[:-1, :-1, :-1]  # of a block's eight corners
                       for extreme in (ndimage.minimum_filter, ndimage.maximum_filter))
    todo = np.argwhere((lowest <= threshold) & (highest > settings.halo * threshold))
    _follow_surface(density, axes, threshold, volume, knots, size, todo, blocks_at_once)
    least, most = np.nanmin(volume), np.nanmax(volume)
    if not least <= threshold < most:
        hint = 'train longer' if most < 1e-3 else f'try --mesh_threshold {0.5 * (least + most):.2g}'
        raise UserError(f'the density has no surface at mesh_threshold {threshold:g}: it is from {least:.3g} to '
                        f'{most:.3g} where it was looked for, on {np.count_nonzero(~np.isnan(volume))} points; {hint}')
    block = [np.minimum(np.arange(n) // size, len(knot) - 2) for knot, n in zip(knots, shape)]
    for i, plane in enumerate(volume):  # plane by plane, because masks of the whole volume are large
        inside = lowest[block[0][i]][np.ix_(*block[1:])] > threshold
        np.copyto(plane, np.where(inside, 2.0 * threshold, 0.0), where=np.isnan(plane))
    return volume


def _follow_surface(density: Density, axes: list[np.ndarray], threshold: float, volume: np.ndarray,
                    knots: list[np.ndarray], size: int, todo: np.ndarray, blocks_at_once: int) -> None:
    """Sets the volume [X, Y, Z] to the density in blocks `todo` [B, 3] and in blocks into which the surface leads."""
    flat, done = volume.reshape(-1), np.zeros([len(knot) - 1 for knot in knots], bool)
    while len(todo):
        done[tuple(todo.T)] = True
        found = []
        for part in pieces(len(todo), blocks_at_once):
            points = _points_of(todo[part], knots, volume.shape, size)  # [B, (size + 1) ** 3]
            missing = np.unique(points)
            _evaluate(density, axes, missing[np.isnan(flat[missing])], volume, 'near the surface')
            found.append(_entered_neighbours(flat[points] > threshold, todo[part], size))
        todo = np.unique(np.concatenate(found), axis=0)
        todo = todo[((todo >= 0) & (todo < done.shape)).all(1)]
        todo = todo[~done[tuple(todo.T)]]


def _points_of(blocks: np.ndarray, knots: list[np.ndarray], shape: tuple[int, ...], size: int) -> np.ndarray:
    """Flat indices [B, (size + 1) ** 3] of the grid points in blocks [B, 3]; short blocks repeat their last point."""
    offsets = np.indices((size + 1,) * 3).reshape(3, -1)
    index = [np.minimum(knot[block, None] + offset, knot[block + 1, None])
             for knot, block, offset in zip(knots, blocks.T, offsets)]
    return np.ravel_multi_index(index, shape)


def _entered_neighbours(inside: np.ndarray, blocks: np.ndarray, size: int) -> np.ndarray:
    """Places [M, 3] beside blocks [B, 3], also outside the grid, into which the surface goes through a face, where
    `inside` [B, (size + 1) ** 3] says of each point whether it is inside."""
    inside = inside.reshape(-1, size + 1, size + 1, size + 1)
    found = []
    for axis in range(3):
        for end, move in ((0, -1), (size, 1)):
            face = inside.take(end, axis + 1).reshape(len(blocks), -1)
            found.append(blocks[face.any(1) & ~face.all(1)] + move * np.eye(3, dtype=int)[axis])
    return np.concatenate(found)


def _evaluate(density: Density, axes: list[np.ndarray], index: np.ndarray, volume: np.ndarray, what: str) -> None:
    """Sets the volume [X, Y, Z] to the density at grid points of flat indices [N], with a progress bar named `what`."""
    flat = volume.reshape(-1)
    with tqdm(total=len(index), desc=what, unit='point', unit_scale=True, disable=None, leave=False) as bar:
        for piece in pieces(len(index), POINTS_AT_ONCE):
            part = index[piece]
            points = np.stack([axis[at] for axis, at in zip(axes, np.unravel_index(part, volume.shape))], -1)
            flat[part] = density(points.astype(np.float32))
            bar.update(len(part))
