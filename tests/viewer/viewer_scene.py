"""A scene whose look is known at once, for the viewer's tests."""

from __future__ import annotations

import numpy as np
import torch

from conftest import look_at_origin
from nerf.cameras import Cameras
from nerf.fields.interface import Model
from nerf.scene import Images, Scene, centred_intrinsics
from nerf.viewer.drawing import Wanted
from run_nerf_helpers import Composite, Rays


class Sky(Model):
    """Colours that depend on the view direction alone; what looks up, z > 0, is empty. Depth is the far bound.

    `draws` is called with the number of rays of each tile.
    """

    view_chunk, white_bkgd = 2 ** 20, True

    def __init__(self, draws=lambda n_rays: None):
        super().__init__()
        self.draws, self.weight = draws, torch.nn.Parameter(torch.zeros(1))

    def render(self, rays: Rays) -> Composite:
        self.draws(len(rays.near))
        acc = (rays.viewdirs[:, 2] < 0).float()
        rgb = (0.5 + 0.5 * rays.viewdirs) * acc[:, None] + (1.0 - acc[:, None])
        depth = acc * rays.far[:, 0]
        return Composite(rgb, torch.zeros_like(acc), acc, acc[:, None], depth)


def sky_scene(count: int = 3, height: int = 20, width: int = 30, ndc: bool = False) -> Scene:
    """Cameras around the origin, 4 away, whose grey images tell their number; or looking forward to -z."""
    poses = np.stack([look_at_origin(2.0 * i, 0.4, 4.0)[:3] for i in range(count)])
    if ndc:
        poses = np.stack([np.column_stack([np.eye(3), [0.1 * i, 0.0, 0.0]]) for i in range(count)])
    images = np.stack([np.full((height, width, 3), 40 * (i % 6), np.uint8) for i in range(count)])
    cameras = Cameras.of_one_kind(poses, centred_intrinsics(height, width, 1.5 * width), height, width)
    everything = np.arange(count)
    return Scene(images=Images.of_one_size(images), cameras=cameras, render_cameras=cameras, near=0.0 if ndc else 2.0,
                 far=1.0 if ndc else 6.0, ndc=ndc, white_bkgd=True, i_train=everything, i_val=everything[:1],
                 i_test=everything[:1], around=not ndc, farthest=10.0 if ndc else None)


def wanted_of(scene: Scene, i: int = 0, height: int = 60, width: int = 80, **more) -> Wanted:
    """What a page at camera i wants."""
    return Wanted(scene.cameras.poses[i].double().numpy(), 0.7, height, width, **more)
