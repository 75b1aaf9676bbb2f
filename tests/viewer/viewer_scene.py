"""Scene whose pictures are known in advance, for the viewer's tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from conftest import look_at_origin
from nerf.cameras import Cameras
from nerf.fields.interface import Sampler
from nerf.scene import Images, Scene, centred_intrinsics
from nerf.space import NDC, Bounded
from nerf.viewer.wanted import Wanted
from run_nerf_helpers import Composite, Rays, RenderResult


class Sky(Sampler):
    """Sampler of a sky whose colours depend on the view direction alone; rays that look up, z > 0, show nothing. Depth
    is the far bound.

    Args:
        draws: is called with the number of rays of each tile.
        supersample: as of `Sampler`.
    """

    device, white_bkgd = torch.device('cpu'), True

    def __init__(self, draws: Callable[[int], None] = lambda n_rays: None, supersample: int = 1):
        super().__init__(None, 2 ** 20, supersample)
        self.draws = draws

    def render(self, rays: Rays) -> RenderResult:
        self.draws(len(rays.near))
        acc = (rays.viewdirs[:, 2] < 0).float()
        rgb = (0.5 + 0.5 * rays.viewdirs) * acc[:, None] + (1.0 - acc[:, None])
        depth = acc * rays.far[:, 0]
        return RenderResult(Composite(rgb, torch.zeros_like(acc), acc, acc[:, None], depth), None, None)


def sky_scene(count: int = 3, height: int = 20, width: int = 30, ndc: bool = False) -> Scene:
    """Scene of cameras 4 away from the origin, or of cameras that look along -z. Image i is of the grey 40 i."""
    poses = np.stack([look_at_origin(2.0 * i, 0.4, 4.0)[:3] for i in range(count)])
    space = Bounded(2.0, 6.0)
    if ndc:
        poses = np.stack([np.column_stack([np.eye(3), [0.1 * i, 0.0, 0.0]]) for i in range(count)])
        space = NDC(height=height, width=width, focal=1.5 * width, farthest=10.0)
    images = np.stack([np.full((height, width, 3), 40 * (i % 6), np.uint8) for i in range(count)])
    cameras = Cameras.of_one_kind(poses, centred_intrinsics(height, width, 1.5 * width), height, width)
    everything = np.arange(count)
    return Scene(Images.of_one_size(images), cameras, cameras, space, white_bkgd=True, i_train=everything,
                 i_val=everything[:1], i_test=everything[:1])


def wanted_of(scene: Scene, i: int = 0, height: int = 60, width: int = 80, **more) -> Wanted:
    """View of a page at camera i."""
    return Wanted(scene.cameras.poses[i].double().numpy(), 0.7, height, width, **more)


SCENE = sky_scene()
POSES = SCENE.cameras.poses.double().numpy()
