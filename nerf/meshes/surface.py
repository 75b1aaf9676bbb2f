"""Surface of a field: either what the training cameras see, or where the density has one value."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage

from nerf.fields.interface import Sampler
from nerf.meshes.depth_fusion import fused_depths
from nerf.meshes.extraction import Density, extract_surface, marching_cubes, tighten
from nerf.meshes.geometry import vertex_normals
from nerf.meshes.level import onto_level
from nerf.meshes.options import DEFAULTS, MeshSettings
from nerf.meshes.topology import without_floaters, without_others
from nerf.meshes.views import SeenFrom
from nerf.runtime.errors import UserError
from nerf.scene import Scene
from nerf.space import Space, corners_in_words

BLUR = 0.02  # opacity below which a view shows nothing outside an outline


class Surface(NamedTuple):
    """Triangles where some values in space reach a level, without floaters."""

    values: Density  # values [N] at points [N, 3] in ray coordinates, larger inside
    level: float  # value at the surface
    vertices: np.ndarray  # [V, 3] float32 in ray coordinates
    faces: np.ndarray  # [F, 3], counterclockwise seen from outside
    dropped: int  # number of floaters that were dropped
    words: str  # description for the log

    def within(self, bounds: np.ndarray, space: Space) -> Surface:
        """Keeps the faces that lie in a box of the world.

        Args:
            bounds: [2, 3] corners of the box in world coordinates.
            space: space of the scene.

        Raises:
            UserError: no face lies in the box.
        """
        places = space.to_world(torch.from_numpy(self.vertices)).numpy()
        inside = ((places >= bounds[0]) & (places <= bounds[1])).all(1)
        faces = self.faces[inside[self.faces].all(1)]
        if not len(faces):
            raise UserError(f'mesh_bounds {corners_in_words(bounds)} holds no surface; that is from '
                            f'{corners_in_words(np.stack([places.min(0), places.max(0)]))}')
        vertices, faces = without_others(self.vertices, faces)
        return self._replace(vertices=vertices, faces=faces)


def box_of_surface(sampler: Sampler, scene: Scene, level: float, bounds: np.ndarray | None = None,
                   settings: MeshSettings = DEFAULTS) -> np.ndarray:
    """Box around all of the surface that the training cameras see; prints a line about it.

    Args:
        sampler: shows the field.
        scene: scene of the field.
        level: density at the surface.
        bounds: [2, 3] corners, in world coordinates, of a box in which alone surface is looked for; None: everywhere.

    Returns:
        [2, 3] corners in ray coordinates.

    Raises:
        UserError: there is no surface in the box.
    """
    space, cameras = scene.space, scene.training_cameras
    box = space.box(cameras) if bounds is None else space.box_within(bounds, cameras)
    box = tighten(functools.partial(sampler.density_array, least=settings.halo * level), box, level, settings)
    endless = not space.has_far and bounds is None
    hint = '; the scene goes on: --mesh_bounds cuts a part out of it' if endless else ''
    print(f"box       {', '.join(f'{low:.3f} to {high:.3f}' for low, high in box.T)}{space.note}{hint}")
    return box


def density_surface(sampler: Sampler, axes: list[np.ndarray], step: float, level: float, by_light: bool = False,
                    settings: MeshSettings = DEFAULTS) -> Surface:
    """Surface where a field's density has one value.

    Args:
        sampler: shows the field.
        axes: coordinates of the grid points along each axis.
        step: longest grid step.
        level: density at the surface.
        by_light: the level comes from `surface_level`, which the description says.

    Raises:
        UserError: the density does not reach the level.
    """
    density = functools.partial(sampler.density_array, least=settings.halo * level)
    whole = extract_surface(density, axes, level, settings)
    vertices, faces, dropped = without_floaters(*whole, settings.floater_share)
    moved = onto_level(density, vertices, vertex_normals(vertices, faces), step, level)
    why = ', where half of the light of the training rays has stopped' if by_light else ''
    return Surface(density, level, moved, faces, dropped, f'at density {level:.4g}{why}')


def fused_surface(views: list[SeenFrom], space: Space, axes: list[np.ndarray], step: float, density: Density,
                  density_level: float, settings: MeshSettings = DEFAULTS) -> Surface:
    """Surface that views of a field show, moved to the outlines in the views.

    Views in a projective space show few outlines, so that the surface does not move there.

    Args:
        views: views from training cameras.
        space: space of the scene.
        axes: coordinates of the grid points along each axis.
        step: longest grid step.
        density: density of the field, for points that no camera sees.
        density_level: density at the surface.

    Raises:
        UserError: the views show no surface.
    """
    fused = fused_depths(views, space, axes, density, density_level, settings)
    shift, level, coarse = 0.0, 0.0, fused.values[::2, ::2, ::2].copy()
    if not space.projective and min(coarse.shape) > 1 and coarse.min() < 0.0 < coarse.max():
        vertices, faces = marching_cubes(coarse, [axis[::2] for axis in axes], level)
        normals = vertex_normals(vertices, faces)
        shift = outline_shift(views, vertices, normals, step, settings)
        level = float(np.median(fused(vertices + shift * normals)))
    moved = f', moved outwards by {shift / step:.2f} grid steps to its outlines' if shift else ''
    vertices, faces, dropped = without_floaters(*marching_cubes(fused.values, axes, level), settings.floater_share)
    return Surface(fused, level, vertices, faces, dropped, f'as the training cameras see it{moved}')


def outline_shift(views: list[SeenFrom], vertices: np.ndarray, normals: np.ndarray, step: float,
                  settings: MeshSettings = DEFAULTS) -> float:
    """Distance outwards from a surface to the one whose outlines the views show: there half of the light passes.

    Rays that meet a blurred surface head on are stopped deeper in it than rays that pass along it. Outlines are what
    pictures show most clearly, so the surface is moved to them.

    Args:
        views: views from training cameras.
        vertices, normals: [V, 3] in world coordinates, the normals outwards.
        step: longest grid step.

    Returns:
        Distance in world units, between plus and minus `outline_shift` grid steps; 0 if too few outlines are seen.
    """
    some = np.random.default_rng(0).permutation(len(vertices))[:settings.outline_points]
    points, normals, most = vertices[some].astype(np.float64), normals[some].astype(np.float64), settings.outline_shift
    shifts, opacities = np.append(np.linspace(-most, most, 17), 2.0 * most) * step, []
    for view in views:
        away = points - view.place
        along = np.abs((away * normals).sum(1)) < settings.outline_cosine * np.linalg.norm(away, axis=1)
        places = points[along] + shifts[:, None, None] * normals[along]
        shown = _opacity(view, places.reshape(-1, 3)).reshape(len(shifts), -1)
        clear = (shown[-1] < BLUR) & (shown[0] > settings.solid_opacity)  # nothing else lies behind the outline
        opacities.append(shown[:-1, clear])
    means = np.concatenate(opacities, 1)
    if means.shape[1] < settings.outline_fewest:
        return 0.0
    return float(np.interp(0.5, means.mean(1)[::-1], shifts[-2::-1]))  # opacity falls outwards


def _opacity(view: SeenFrom, points: np.ndarray) -> np.ndarray:
    """Opacity [N] that a view shows at world points [N, 3]; 0 outside its picture."""
    row, column, away = view.to_pixels[:3] @ np.vstack([points.T, np.ones(len(points))])
    return ndimage.map_coordinates(view.opacity, np.stack([row / away, column / away]), order=1, mode='constant')
