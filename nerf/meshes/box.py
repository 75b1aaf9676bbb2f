"""Box in which a mesh is made: around the surface, and in a scene without bounds around what the cameras look at."""

from __future__ import annotations

import functools

import numpy as np

from nerf.cameras import Cameras
from nerf.captures.placement import in_view
from nerf.fields.interface import Sampler
from nerf.meshes.extraction import grid_axes, tighten
from nerf.meshes.options import DEFAULTS, MeshSettings
from nerf.scene import Scene


def box_of_surface(sampler: Sampler, scene: Scene, level: float, bounds: np.ndarray | None = None,
                   settings: MeshSettings = DEFAULTS) -> np.ndarray:
    """Box [2, 3], in ray coordinates, around all of the surface that the training cameras see, or look at if the scene
    has no bounds; prints a line about it. Bounds [2, 3] are a box of the world, outside of which no surface is looked
    for. No surface is a UserError."""
    space, cameras = scene.space, scene.training_cameras
    endless = not space.has_far and bounds is None
    box = space.box(cameras) if bounds is None else space.box_within(bounds, cameras)
    if endless:
        box = looked_at(box, cameras, space.near, settings)
    box = tighten(functools.partial(sampler.density_array, least=settings.halo * level), box, level, settings)
    hint = ', which most cameras look at; the scene goes on: --mesh_bounds takes another part' if endless else ''
    print(f"box       {', '.join(f'{low:.3f} to {high:.3f}' for low, high in box.T)}{space.note}{hint}")
    return box


def looked_at(box: np.ndarray, cameras: Cameras, near: float, settings: MeshSettings = DEFAULTS) -> np.ndarray:
    """Part [2, 3] of a box [2, 3] of the world around the places that at least a share `looking` of the cameras have in
    their pictures, behind their near bounds; `near` is that of cameras without one. The box as it is, if there are no
    such places. Distortion of lenses is neglected."""
    axes = grid_axes(box, settings.looked_points)
    points = np.stack(np.meshgrid(*axes, indexing='ij'), -1).reshape(-1, 3)
    count = np.zeros(len(points), np.int64)
    nears = np.full(len(cameras), near) if cameras.bounds is None else cameras.bounds[:, 0].tolist()
    for view, nearest in enumerate(nears):
        shown = in_view(cameras, view, points)
        count[shown.index[shown.depth > nearest]] += 1
    seen = points[count >= settings.looking * len(cameras)]
    if not len(seen):
        return box
    step = np.array([axis[1] - axis[0] for axis in axes])
    return np.stack([np.maximum(seen.min(0) - step, box[0]), np.minimum(seen.max(0) + step, box[1])])
