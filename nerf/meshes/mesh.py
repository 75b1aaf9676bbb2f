"""From a model to a coloured triangle mesh: its surface, without floaters, as a file and as a picture."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nerf.fields.interface import Sampler, pieces
from nerf.files.images import save_png
from nerf.files.whole_file import whole_file
from nerf.meshes.faces import FACES_AT_ONCE, Density, fewer_faces, onto_level, simplified, vertex_normals
from nerf.meshes.level import surface_level
from nerf.meshes.topology import closedness, parted, without_floaters, without_others
from nerf.meshes.views import RAYS, TEXTURE_RAYS, SeenFrom, drawn_views
from nerf.poses import up_direction
from nerf.runtime.errors import UserError
from nerf.scene import Scene
from nerf.space import Space, corners_in_words
from run_nerf_helpers import Rays, composite, ray_points, stratified_z, to8b

SURVEY = 193  # points along the longest side of the grid that looks for the box in which there is density
SMALL_GRID = 129  # points along the longest side, up to which blocks have 2 cells along an edge, and 4 above
BLOCKS_AT_ONCE = 2 ** 14  # so that their points' indices need tens of megabytes
HALO = 0.5  # a block outside can hold surface where a corner has this share of the threshold: thin things are blurred
COLOUR_SAMPLES, COLOUR_RAYS = 8, 2048  # samples on the ray that gives a vertex its colour, and rays at once
PICTURE_CELLS = 200  # along the longest side, for the picture: what is finer would be finer than its pixels
TEXTURED_FACES = 50_000  # at most, where nobody says how many: to lay out a texture takes time that grows faster


def export_mesh(sampler: Sampler, scene: Scene, path: Path, grid_size: int, threshold: float | None = None,
                fused: bool = False, most_faces: int = 0, texture: int = 0, to_file: np.ndarray | None = None,
                bounds: np.ndarray | None = None):
    """Writes the surface as a coloured mesh, and beside it a picture of it.

    Args:
        sampler: of a trained field.
        scene: tells where to look.
        path: a .ply, .obj or .glb.
        grid_size: points along the longest side of the box around the surface.
        threshold: density at the surface, in 1/scene unit; None: `surface_level`.
        fused: the surface is what the training cameras see; else that of a density.
        most_faces: faces of the mesh; 0: see `fewer_faces`.
        texture: texels along a side of the texture, which a .glb or .obj can have; 0: the vertices have colours.
        to_file: [4, 4] that carries the scene's coordinates to those of the file; None: they are the same.
        bounds: [2, 3] corners of a box in the world, to which the mesh is cut; None: of what the training cameras see.

    Returns:
        a trimesh.Trimesh fit for looking at, in the scene's coordinates.

    Raises:
        UserError: there is no surface, or a file cannot be written.
    """
    need_libraries('fast_simplification', 'numba', *['xatlas'] * bool(texture))
    from nerf.meshes.picture import mesh_views

    level = threshold or surface_level(sampler, scene)
    box = _box_of_surface(sampler, scene, level, bounds)
    step = (box[1] - box[0]).max() / (grid_size - 1)
    views = drawn_views(sampler, scene, step, TEXTURE_RAYS if texture else RAYS) if fused or texture else []
    if fused:
        surface = _fused_surface(views, grid_axes(box, grid_size), step, sampler.density_array, level)
    else:
        surface = _density_surface(sampler, box, grid_size, level)
        print(f'surface   at density {level:.4g}' + ', where half of the light of the training rays has stopped'
              * (threshold is None))
    if scene.space.projective and bounds is not None:  # what is a box in the world is none there
        surface = surface.within(bounds, scene.space)
    vertices, faces = fewer_faces(surface.values, surface.vertices, surface.faces, step, surface.level, most_faces)
    if texture and not most_faces and len(faces) > TEXTURED_FACES:
        vertices, faces = simplified(vertices, faces, TEXTURED_FACES)
    vertices, faces = parted(vertices, faces)
    mesh = coloured_mesh(sampler, vertices, faces, 2.0 * step, scene.space)
    small, cameras = coarsened(mesh, vertices), scene.render_cameras
    drawn = mesh_views(mesh, cameras.take(np.arange(4) * len(cameras) // 4))
    closed = closedness(mesh.faces)  # the pieces of a texture have borders of their own
    if texture:
        from nerf.meshes.texture import textured
        mesh = textured(mesh, vertices, texture, views, 3.0 * step)
    if to_file is not None:
        mesh.apply_transform(to_file)
    write_mesh(path, mesh, None if to_file is not None else up_direction(scene.training_cameras))
    save_png(picture := path.with_name(f'{path.stem}_views.png'), drawn)
    print(f'{describe_mesh(mesh, closed, len(surface.faces), surface.dropped)}\n'
          f'mesh in {path}, four views of it in {picture}')
    return small


def need_libraries(*names: str) -> None:
    """Imports what a mesh needs and other runs do not.

    Raises:
        UserError: one cannot be imported.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f'this mesh needs {name}, which cannot be imported ({error}); '
                            'pip install -r requirements.txt') from None


def _box_of_surface(sampler: Sampler, scene: Scene, level: float, bounds: np.ndarray | None) -> np.ndarray:
    """[2, 3] in the field's coordinates, and a line about it."""
    box = scene.space.box(scene.training_cameras) if bounds is None else scene.space.box_within(
        bounds, scene.training_cameras)
    box = tighten(functools.partial(sampler.density_array, least=HALO * level), box, level)
    print(f"box       {', '.join(f'{low:.3f} to {high:.3f}' for low, high in box.T)}"
          + scene.space.note
          + '; the scene goes on: --mesh_bounds cuts a part out of it' * (not scene.space.has_far and bounds is None))
    return box


class Surface(NamedTuple):
    """Where `values` reach a level, without floaters."""

    values: Density  # larger inside
    level: float
    vertices: np.ndarray  # [V, 3] float32
    faces: np.ndarray  # [F, 3], counterclockwise seen from outside
    dropped: int  # floaters

    def within(self, bounds: np.ndarray, space: Space) -> Surface:
        """The faces that are in a box [2, 3] of the world, from the ray coordinates of a space.

        Raises:
            UserError: there are none.
        """
        places = space.to_world(torch.from_numpy(self.vertices)).numpy()
        inside = ((places >= bounds[0]) & (places <= bounds[1])).all(1)
        faces = self.faces[inside[self.faces].all(1)]
        if not len(faces):
            raise UserError(f'mesh_bounds {corners_in_words(bounds)} holds no surface; that is from '
                            f'{corners_in_words(np.stack([places.min(0), places.max(0)]))}')
        vertices, faces = without_others(self.vertices, faces)
        return self._replace(vertices=vertices, faces=faces)


def _fused_surface(views: list[SeenFrom], axes: list[np.ndarray], step: float, density: Density,
                   density_level: float) -> Surface:
    """What views show, on a grid of a step with these coordinates along its axes; see `fused_depths`."""
    from nerf.meshes.depth_fusion import fused_depths
    from nerf.meshes.outlines import outline_shift

    fused = fused_depths(views, axes, density, density_level)
    shift, level, coarse = 0.0, 0.0, fused.values[::2, ::2, ::2].copy()
    if not views[0].in_ndc and min(coarse.shape) > 1 and coarse.min() < 0.0 < coarse.max():  # in NDC few outlines show
        vertices, faces = marching_cubes(coarse, [axis[::2] for axis in axes], level)
        normals = vertex_normals(vertices, faces)
        shift = outline_shift(views, vertices, normals, step)
        level = float(np.median(fused(vertices + shift * normals)))
    print('surface   as the training cameras see it'
          + f', moved outwards by {shift / step:.2f} grid steps to its outlines' * (shift != 0.0))
    return Surface(fused, level, *without_floaters(*marching_cubes(fused.values, axes, level)))


def _density_surface(sampler: Sampler, box: np.ndarray, grid_size: int, level: float) -> Surface:
    """Where a field's density reaches a level."""
    density = functools.partial(sampler.density_array, least=HALO * level)
    vertices, faces, dropped = without_floaters(*extract_surface(density, box, grid_size, level))
    step = (box[1] - box[0]).max() / (grid_size - 1)
    moved = onto_level(density, vertices, vertex_normals(vertices, faces), step, level)
    return Surface(density, level, moved, faces, dropped)


def tighten(density: Density, box: np.ndarray, threshold: float) -> np.ndarray:
    """The part of a box in which the density reaches the threshold, with a margin of two steps of the survey's grid.

    Args:
        density: the field.
        box: [2, 3] lowest and highest corner.

    Returns:
        [2, 3].

    Raises:
        UserError: it reaches the threshold nowhere, or everywhere.
    """
    axes = grid_axes(box, SURVEY)
    dense = _evaluate_near_surface(density, axes, threshold) > threshold
    corners = []
    for i, axis in enumerate(axes):
        where = np.flatnonzero(dense.any(tuple({0, 1, 2} - {i})))
        corners.append((axis[max(where[0] - 2, 0)], axis[min(where[-1] + 2, len(axis) - 1)]))
    return np.array(corners).T


def grid_axes(box: np.ndarray, grid_size: int) -> list[np.ndarray]:
    """The coordinates of a grid from a box's lowest to its highest corner: grid_size points along the longest side, and
    on the others as many as make the steps no longer."""
    step = (box[1] - box[0]).max() / (grid_size - 1)
    return [np.linspace(low, high, max(int(np.ceil((high - low) / step - 1e-6)) + 1, 2)) for low, high in box.T]


def extract_surface(density: Density, box: np.ndarray, grid_size: int,
                    threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Marching cubes (Lewiner et al. 2003) on a grid of which only what lies near the surface is evaluated.

    A coarse pass over every fourth grid point (in small grids every second) finds the blocks that can hold surface;
    from them it is followed from block to block through their faces. The result is that of the whole grid, but for a
    component that no coarse point meets and that touches no other: one smaller than a block.

    Args:
        density: the field.
        box: [2, 3] lowest and highest corner.
        grid_size: points along the longest side.
        threshold: density at the surface.

    Returns:
        vertices [V, 3] float32 in the box's coordinates, and faces [F, 3], counterclockwise seen from outside.

    Raises:
        UserError: the density reaches the threshold nowhere, or everywhere.
    """
    axes = grid_axes(box, grid_size)
    return marching_cubes(_evaluate_near_surface(density, axes, threshold), axes, threshold)


def marching_cubes(volume: np.ndarray, axes: list[np.ndarray], threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The surface, as `extract_surface` has it, of values [X, Y, Z] at grid points that are larger inside."""
    from skimage import measure

    # A point at the threshold itself would be a vertex of its own for each edge there, with cracks between them.
    volume[volume == np.float32(threshold)] = np.nextafter(np.float32(threshold), np.float32(np.inf))
    # Its word for a field that is denser inside is 'descent', but that gives faces that are clockwise from outside.
    vertices, faces, _, _ = measure.marching_cubes(volume, threshold, gradient_direction='ascent')
    low, steps = ([axis[0] for axis in axes], [axis[1] - axis[0] for axis in axes])
    return (np.array(low) + np.array(steps) * vertices).astype(np.float32), faces


def _evaluate_near_surface(density: Density, axes: list[np.ndarray], threshold: float) -> np.ndarray:
    """Densities at all grid points of the blocks that hold surface; elsewhere 0 or twice the threshold."""
    shape = [len(axis) for axis in axes]
    size = 2 if max(shape) <= SMALL_GRID else 4  # cells along a block's edge
    knots = [np.unique(np.append(np.arange(0, n, size), n - 1)) for n in shape]
    volume = np.full(shape, np.nan, np.float32)
    flat = volume.reshape(-1)
    _evaluate(density, axes, np.ravel_multi_index(np.ix_(*knots), shape).ravel(), flat, 'coarse pass')
    lowest, highest = _extremes(volume[np.ix_(*knots)])

    todo, done = np.argwhere((lowest <= threshold) & (highest > HALO * threshold)), np.zeros(lowest.shape, bool)
    while len(todo):
        done[tuple(todo.T)] = True
        found = []
        for blocks in np.array_split(todo, -(-len(todo) // BLOCKS_AT_ONCE)):
            points = _points_of(blocks, knots, shape, size)  # [B, (size + 1) ** 3]
            missing = np.unique(points)
            _evaluate(density, axes, missing[np.isnan(flat[missing])], flat, 'near the surface')
            found.append(_entered_neighbours(flat[points] > threshold, blocks, size))
        todo = np.unique(np.concatenate(found), axis=0)
        todo = todo[((todo >= 0) & (todo < done.shape)).all(1)]
        todo = todo[~done[tuple(todo.T)]]

    least, most = np.nanmin(volume), np.nanmax(volume)
    if not least <= threshold < most:
        hint = 'train longer' if most < 1e-3 else f'try --mesh_threshold {0.5 * (least + most):.2g}'
        raise UserError(f'the density has no surface at mesh_threshold {threshold:g}: it is from {least:.3g} to '
                        f'{most:.3g} where it was looked for, on {np.count_nonzero(~np.isnan(volume))} points; {hint}')
    block = [np.minimum(np.searchsorted(knot, np.arange(n), 'right') - 1, len(knot) - 2)
             for knot, n in zip(knots, shape)]
    for i, plane in enumerate(volume):  # plane by plane, as masks of the whole volume are large
        inside = lowest[block[0][i]][np.ix_(*block[1:])] > threshold
        np.copyto(plane, np.where(inside, 2.0 * threshold, 0.0), where=np.isnan(plane))
    return volume


def _extremes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest of the eight corners of each block [I - 1, J - 1, K - 1], from values [I, J, K]."""
    low = high = values
    for axis in range(3):
        before, after = (slice(None),) * axis + (slice(None, -1),), (slice(None),) * axis + (slice(1, None),)
        low, high = np.minimum(low[before], low[after]), np.maximum(high[before], high[after])
    return low, high


def _points_of(blocks: np.ndarray, knots: list[np.ndarray], shape: list[int], size: int) -> np.ndarray:
    """Flat indices [B, (size + 1) ** 3] of the grid points in blocks [B, 3]; short blocks repeat their last."""
    offsets = np.indices((size + 1,) * 3).reshape(3, -1)
    index = [np.minimum(knot[block, None] + offset, knot[block + 1, None])
             for knot, block, offset in zip(knots, blocks.T, offsets)]
    return np.ravel_multi_index(index, shape)


def _entered_neighbours(inside: np.ndarray, blocks: np.ndarray, size: int) -> np.ndarray:
    """The places [M, 3] beside blocks [B, 3], also off the grid, to which the surface goes through a face."""
    inside = inside.reshape(-1, size + 1, size + 1, size + 1)
    found = []
    for axis in range(3):
        for end, move in ((0, -1), (size, 1)):
            face = inside.take(end, axis + 1).reshape(len(blocks), -1)
            found.append(blocks[face.any(1) & ~face.all(1)] + move * np.eye(3, dtype=int)[axis])
    return np.concatenate(found)


def _evaluate(density: Density, axes: list[np.ndarray], index: np.ndarray, values: np.ndarray, what: str) -> None:
    """Sets values, flat, to the density at the grid points of flat indices `index`, with a progress bar."""
    from tqdm import tqdm

    shape, flat = [len(axis) for axis in axes], values.reshape(-1)
    with tqdm(total=len(index), desc=what, unit='point', unit_scale=True, disable=None, leave=False) as bar:
        for start in range(0, len(index), 2 ** 18):
            part = index[start:start + 2 ** 18]
            places = np.unravel_index(part, shape)
            points = np.stack([axis[place] for axis, place in zip(axes, places)], -1)
            flat[part] = density(points.astype(np.float32))
            bar.update(len(part))


@torch.inference_mode()
def coloured_mesh(sampler: Sampler, vertices: np.ndarray, faces: np.ndarray, reach: float, space: Space):
    """A trimesh.Trimesh in world coordinates, each vertex in the colour that a view along the inward normal shows.

    The view is rendered over a short piece around the vertex, as right on the surface, where density only begins, the
    field's colour has hardly been trained.

    Args:
        sampler: its field's `radiance` is asked.
        vertices, faces: [V, 3] in ray coordinates, and [F, 3].
        reach: half the piece's length, in ray coordinates.
        space: of the scene.
    """
    import trimesh
    from tqdm import tqdm

    normals = torch.from_numpy(vertex_normals(vertices, faces))
    carried = space.to_world(torch.from_numpy(vertices)).numpy()
    mesh = trimesh.Trimesh(carried, faces[:, ::-1] if space.projective else faces, process=False)
    outward = torch.from_numpy(vertex_normals(mesh.vertices, mesh.faces))
    step = reach * normals
    ends = torch.zeros(len(vertices), 1), torch.ones(len(vertices), 1)
    rays = Rays(torch.from_numpy(vertices) + step, -2.0 * step, -outward, *ends)
    colours = []
    for tile in tqdm(pieces(len(vertices), COLOUR_RAYS), 'colouring', disable=None, leave=False):
        part = Rays(*(each.to(sampler.device) for each in rays.part(tile)))
        z = stratified_z(part.near, part.far, COLOUR_SAMPLES)
        seen = composite(*sampler.field.radiance(ray_points(part, z), part.viewdirs), z, part.directions)
        rgb = seen.rgb / seen.acc[:, None].clamp(min=1e-6)
        lost = seen.acc < 1e-6  # a corner of degenerate triangles alone has no normal
        if lost.any():
            rgb[lost] = _mean_colour(sampler, (part.origins + 0.5 * part.directions)[lost])
        colours.append(rgb.cpu())
    mesh.visual.vertex_colors = to8b(torch.cat(colours))
    return mesh


def _mean_colour(sampler: Sampler, points: torch.Tensor) -> torch.Tensor:
    """Colours [N, 3] of points [N, 3]: the mean over views along the axes, to and fro."""
    axes = torch.eye(3, device=points.device)
    views = torch.cat([axes, -axes])  # [6, 3]
    rgb, _ = sampler.field.radiance(points[:, None].repeat_interleave(6, 0), views.repeat(len(points), 1))
    return rgb[:, 0].reshape(-1, 6, 3).mean(1)


def write_mesh(path: Path, mesh, up: np.ndarray | None = None) -> None:
    """Writes a trimesh.Trimesh with its vertex colours or texture as .ply, .obj or .glb, by the name's ending.

    Programs take y for up in a .glb and an .obj. A .glb keeps its coordinates, and a node turns it; an .obj has no
    nodes, so that its vertices are turned; a texture is beside it, as .png, with an .mtl.

    Args:
        up: [3] the direction that is up in the mesh's coordinates; None: nothing is turned.
    """
    import trimesh

    kind = path.suffix[1:].lower()
    turned = np.eye(4) if up is None else _upright(up)
    if kind == 'glb':
        scene = trimesh.Scene()
        scene.add_geometry(mesh, geom_name=path.stem, node_name=path.stem, transform=turned)
        mesh = scene
    elif kind == 'obj':
        mesh = mesh.copy()
        mesh.apply_transform(turned)
        if mesh.visual.kind == 'texture':
            mesh.visual.material.name = path.stem
            text, assets = trimesh.exchange.obj.export_obj(mesh, return_texture=True, mtl_name=f'{path.stem}.mtl')
            for name, content in [*assets.items(), (path.name, text.encode())]:
                with whole_file(path.with_name(name)) as partial:
                    partial.write_bytes(content)
            return
    with whole_file(path) as partial:
        mesh.export(partial, file_type=kind)


def _upright(up: np.ndarray) -> np.ndarray:
    """The shortest turn [4, 4] that brings a unit vector to y; z comes there by one about x."""
    from trimesh.transformations import rotation_matrix

    axis = np.cross(up, [0.0, 1.0, 0.0])
    length = np.linalg.norm(axis)
    return rotation_matrix(np.arctan2(length, up[1]), axis if length > 1e-9 else [1.0, 0.0, 0.0])


def describe_mesh(mesh, closed: str, count: int, dropped: int) -> str:
    """Counts, closedness, bounds and area of a trimesh.Trimesh that had `count` faces, on two lines."""
    from trimesh import triangles

    (x, y, z), (X, Y, Z) = mesh.bounds
    parts = range(0, len(mesh.faces), FACES_AT_ONCE)
    area = sum(triangles.area(mesh.vertices[mesh.faces[start:start + FACES_AT_ONCE]]).sum() for start in parts)
    return (f'mesh      {len(mesh.vertices):,} vertices, {len(mesh.faces):,} of {count:,} faces, '
            f'{closed}, {dropped} floaters dropped\n'
            f'bounds    {x:.3f} {y:.3f} {z:.3f} to {X:.3f} {Y:.3f} {Z:.3f}, area {area:.4g}')


def coarsened(mesh, vertices: np.ndarray):
    """A trimesh.Trimesh fit for looking at: one vertex for all in a cell of a grid, by vertex clustering.

    Args:
        mesh: with vertex colours.
        vertices: its vertices [V, 3] in the field's coordinates, where PICTURE_CELLS are along the longest side.
    """
    import trimesh

    cell = np.ptp(vertices, axis=0).max() / PICTURE_CELLS
    _, first, cluster, count = np.unique(np.rint(vertices / cell).astype(np.int64), axis=0, return_index=True,
                                         return_inverse=True, return_counts=True)
    cluster = cluster.reshape(-1)
    means = np.stack([np.bincount(cluster, axis) for axis in mesh.vertices.T], 1) / count[:, None]
    faces = cluster[mesh.faces]
    faces = faces[(faces != np.roll(faces, 1, 1)).all(1)]
    return trimesh.Trimesh(means, faces, vertex_colors=mesh.visual.vertex_colors[first], process=False)
