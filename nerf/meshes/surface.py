"""Surface of a field: either what the training cameras see, or where the density has one value, its level."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from nerf.fields.interface import Sampler
from nerf.meshes.confirmation import confirmed, seen_faces
from nerf.meshes.depth_fusion import fused_depths
from nerf.meshes.extraction import Density, extract_surface, marching_cubes, onto_level
from nerf.meshes.options import DEFAULTS, MeshSettings
from nerf.meshes.triangles import vertex_normals, without_floaters, without_others
from nerf.meshes.views import SeenFrom
from nerf.runtime.errors import UserError
from nerf.scene import Scene
from nerf.space import Space, corners_in_words
from run_nerf_helpers import ray_points

HALF = math.log(2.0)  # optical depth at which half of the light has stopped
ROUNDS = 30  # rounds of bisection: far more than float32 has digits
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
        """Surface with the faces alone that lie in a box [2, 3] of the world; UserError if there are none."""
        places = space.to_world(torch.from_numpy(self.vertices)).numpy()
        inside = ((places >= bounds[0]) & (places <= bounds[1])).all(1)
        faces = self.faces[inside[self.faces].all(1)]
        if not len(faces):
            raise UserError(f'mesh_bounds {corners_in_words(bounds)} holds no surface; that is from '
                            f'{corners_in_words(np.stack([places.min(0), places.max(0)]))}')
        vertices, faces = without_others(self.vertices, faces)
        return self._replace(vertices=vertices, faces=faces)


def surface_level(sampler: Sampler, scene: Scene, settings: MeshSettings = DEFAULTS) -> float:
    """Density that training rays reach where half of their light has stopped, in the median over the rays. Rays that
    end on the surface of this density end neither too early, where a field is blurred, nor behind objects. The density
    is in 1/scene unit, in NDC in 1/NDC unit. A field that stops no training ray is a UserError."""
    rays = scene.spread_rays(scene.i_train, max(int(math.sqrt(settings.level_rays / len(scene.i_train))), 2))
    some = np.linspace(0, len(rays.near) - 1, min(settings.level_rays, len(rays.near)))
    rays = rays.part(torch.from_numpy(some.astype(np.int64)))
    depths, lengths = scene.space.even_depths(rays, settings.level_samples), rays.directions.norm(dim=-1, keepdim=True)
    points = ray_points(rays, depths).reshape(-1, 3).numpy()
    densities = torch.from_numpy(sampler.density_array(points)).reshape(depths.shape)
    optical = torch.nn.functional.pad((0.5 * (densities[:, 1:] + densities[:, :-1]) * depths.diff(dim=1)
                                       * lengths).cumsum(1), (1, 0))
    stopped = optical[:, -1] > HALF
    if not stopped.any():
        raise UserError('the field stops no training ray, so it has no surface; train longer')
    depths, densities = depths[stopped], densities[stopped]
    half = _first_crossing(optical[stopped], depths, HALF)
    low, high = 1e-3 * float(densities.amax()), float(densities.amax())
    for _ in range(ROUNDS):  # rays reach a higher level later
        level = math.sqrt(low * high)
        if _first_crossing(densities, depths, level).sub(half).median() > 0:
            high = level
        else:
            low = level
    return low


def density_surface(sampler: Sampler, axes: list[np.ndarray], step: float, level: float,
                    settings: MeshSettings = DEFAULTS) -> Surface:
    """Surface where a field's density has one value, on a grid with coordinates `axes` and a longest step."""
    density = functools.partial(sampler.density_array, least=settings.halo * level)
    whole = extract_surface(density, axes, level, settings)
    vertices, faces, dropped = without_floaters(*whole, settings.floater_share)
    moved = onto_level(density, vertices, vertex_normals(vertices, faces), step, level)
    return Surface(density, level, moved, faces, dropped, f'at density {level:.4g}')


def fused_surface(views: list[SeenFrom], space: Space, axes: list[np.ndarray], step: float, density: Density,
                  density_level: float, settings: MeshSettings = DEFAULTS) -> Surface:
    """Surface that views of a field show, on a grid with a longest step, moved to the outlines in the views. Density
    decides about points that no camera sees; it is `density_level` at the surface. Views in a projective space show few
    outlines, so that the surface does not move there. Fields without bounds have fog, so depths need confirmation."""
    if not space.has_far:
        views = confirmed(views, space, step, settings)
    fused = fused_depths(views, space, axes, density, density_level, settings)
    shift, level, coarse = 0.0, 0.0, fused.values[::2, ::2, ::2].copy()
    if not space.projective and min(coarse.shape) > 1 and coarse.min() < 0.0 < coarse.max():
        vertices, faces = _seen_surface(coarse, [axis[::2] for axis in axes], level, views, space, 2 * step, settings)
        normals = vertex_normals(vertices, faces)
        shift = outline_shift(views, vertices, normals, step, settings)
        level = float(np.median(fused(vertices + shift * normals)))
    moved = f', moved outwards by {shift / step:.2f} grid steps to its outlines' if shift else ''
    whole = _seen_surface(fused.values, axes, level, views, space, step, settings)
    vertices, faces, dropped = without_floaters(*whole, settings.floater_share)
    return Surface(fused, level, vertices, faces, dropped, f'as the training cameras see it{moved}')


def _seen_surface(values: np.ndarray, axes: list[np.ndarray], level: float, views: list[SeenFrom], space: Space,
                  step: float, settings: MeshSettings) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces where values [X, Y, Z] have a level. Without bounds, all that is hidden is inside, and its
    border with what views see is no surface, so faces are those that the views show. UserError: there are none."""
    vertices, faces = marching_cubes(values, axes, level)
    if not space.has_far:
        vertices, faces = seen_faces(vertices, faces, views, space, step, settings)
    if not len(faces):
        raise UserError('the training cameras see no surface in the box of the mesh; train longer')
    return vertices, faces


def outline_shift(views: list[SeenFrom], vertices: np.ndarray, normals: np.ndarray, step: float,
                  settings: MeshSettings = DEFAULTS) -> float:
    """Distance outwards from a surface to the one whose outlines the views show: there half of the light passes. Rays
    that meet a blurred surface head on are stopped deeper in it than rays that pass along it. Outlines are what
    pictures show most clearly, so the surface is moved to them. The distance is in world units, like vertices [V, 3]
    and their outward normals, and at most `outline_shift` grid steps; it is 0 if too few outlines are seen."""
    some = np.random.default_rng(0).permutation(len(vertices))[:settings.outline_points]
    points, normals, most = vertices[some].astype(np.float64), normals[some].astype(np.float64), settings.outline_shift
    shifts, opacities = np.append(np.linspace(-most, most, 17), 2.0 * most) * step, []
    for view in views:
        away = points - view.place
        along = np.abs((away * normals).sum(1)) < settings.outline_cosine * np.linalg.norm(away, axis=1)
        places = points[along] + shifts[:, None, None] * normals[along]
        row, column, depth = view.to_pixels[:3] @ np.vstack([places.reshape(-1, 3).T, np.ones(places.size // 3)])
        shown = ndimage.map_coordinates(view.opacity, np.stack([row, column]) / depth, order=1, mode='constant',
                                        cval=np.nan)  # no outline, but the picture's edge
        shown = shown.reshape(len(shifts), -1)
        clear = (shown[-1] < BLUR) & (shown[0] > settings.solid_opacity)  # nothing else lies behind the outline
        opacities.append(shown[:-1, clear])
    means = np.concatenate(opacities, 1)
    if means.shape[1] < settings.outline_fewest:
        return 0.0
    return float(np.interp(0.5, means.mean(1)[::-1], shifts[-2::-1]))  # opacity falls outwards


def _first_crossing(values: Tensor, depths: Tensor, level: float) -> Tensor:
    """Depths [R] at which values [R, S] first reach a level, interpolated linearly; infinite if they never do."""
    reached = values >= level
    at = reached.int().argmax(1, keepdim=True)  # the first one
    before = (at - 1).clamp(min=0)
    low, high = values.gather(1, before), values.gather(1, at)
    share = torch.where(at > 0, (level - low) / (high - low).clamp(min=1e-12), 1.0).clamp(0.0, 1.0)
    depth = torch.lerp(depths.gather(1, before), depths.gather(1, at), share)
    return torch.where(reached.any(1), depth[:, 0], torch.inf)
