"""Builds the voxel grid."""

from __future__ import annotations

import argparse

import torch

from nerf.fields.grid.model import GridModel, has_kernels
from nerf.fields.interface import Field
from nerf.hull import has_hull, inside_hull
from nerf.scene import Scene
from run_nerf_helpers import Rays

VOXEL_PIXELS = 0.8  # sides of a pixel, at the scene's centre, that a voxel has at least
SEEN_RAYS = 65  # along both sides of each view, that find the cells which are seen


def create_grid(args: argparse.Namespace, scene: Scene, device: torch.device, dtype: torch.dtype) -> Field:
    """Builds the voxel grid over the scene's box; where images show a plain background it begins with the visual hull.
    Without bounds it is over contracted space, and begins with what the training cameras see."""
    space, cameras = scene.space, scene.training_cameras
    model = GridModel(space.field_box(cameras), args.N_iters, args.white_bkgd, args.seed, device, dtype, args.chunk,
                      compiled=device.type == 'cpu' and has_kernels(), space=space,
                      finest=VOXEL_PIXELS * float(space.pixel_sides(cameras).median()) * (not space.closed))
    if not space.has_far:
        views = (scene.spread_rays(scene.i_train[[i]], SEEN_RAYS) for i in range(len(scene.i_train)))
        model.keep_seen(Rays(*(part.to(device) for part in rays)) for rays in views)
    elif scene.white_bkgd and has_hull(scene):  # else alpha is ignored, and there can be colours behind it
        centres, cells = model.grid.centres(), model.grid.cells.clone()
        cells[model.grid.cells] = inside_hull(scene, centres, 0.87 * model.grid.voxel).to(device)
        model.keep(cells)
    model.supersample = args.supersample
    return model
