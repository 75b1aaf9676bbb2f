"""A scene of any format as one structure: posed images, and the cameras to render them with."""

from __future__ import annotations

import sys
import zlib
from dataclasses import dataclass

import numpy as np
import torch

from nerf.runtime.errors import UserError
from run_nerf_helpers import pixel_rays


@dataclass(frozen=True)
class Scene:
    """Posed images and the cameras to render them with."""

    images: np.ndarray  # [N, H, W, 3 or 4] uint8 as read; alpha is not premultiplied
    poses: np.ndarray  # [N, 3, 4] float32 camera-to-world, OpenGL axes
    K: np.ndarray  # [3, 3] intrinsics in pixels
    H: int
    W: int
    near: float  # bounds of every ray, in scene units
    far: float
    ndc: bool
    white_bkgd: bool
    render_poses: np.ndarray  # [M, 3, 4] float32
    i_train: np.ndarray
    i_val: np.ndarray
    i_test: np.ndarray
    around: bool = True  # the cameras surround the origin; else they look at a scene in front of them
    farthest: float | None = None  # in NDC, whose rays reach to infinity: depth of the farthest thing that is known of

    def scaled(self, factor: int) -> tuple[int, int, np.ndarray]:
        """H, W and K at 1/factor of the size (0 or 1: full size)."""
        H, W = self.H // max(factor, 1), self.W // max(factor, 1)
        if not H or not W:
            raise UserError(f'render_factor {factor} leaves nothing of {self.W}x{self.H} pixels; choose a smaller one')
        return H, W, np.diag([W / self.W, H / self.H, 1.0]) @ self.K

    @property
    def ndc_camera(self) -> tuple[int, int, float] | None:
        return (self.H, self.W, float(self.K[0, 0])) if self.ndc else None

    def fingerprint(self) -> int:
        """A checksum of all that training sees of the scene."""
        numbers = np.array([*self.K.ravel(), self.near, self.far, self.ndc, self.white_bkgd], np.float64)
        checksum = 0
        for array in (self.images[self.i_train], self.poses[self.i_train], numbers):
            checksum = zlib.crc32(np.ascontiguousarray(array), checksum)
        return checksum

    def corner_rays(self, poses: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """World origins and directions [M, 4, 3] of the rays through the corner pixels of cameras [M, 3, 4]."""
        rows, columns = torch.tensor([[0, 0, self.H - 1, self.H - 1], [0, self.W - 1, 0, self.W - 1]])
        return pixel_rays(rows, columns, torch.from_numpy(self.K), torch.from_numpy(poses)[:, None])

    def target(self, i: int) -> np.ndarray:
        """What image i should render to: [H, W, 3] float32 in [0, 1]."""
        return target_colours(torch.from_numpy(self.images[i]), self.white_bkgd).numpy()


def target_colours(pixels: torch.Tensor, white_bkgd: bool) -> torch.Tensor:
    """Pixels [..., 3 or 4] uint8 to colours [..., 3] float32; on white where asked and there is an alpha channel."""
    colours = pixels.float() / 255.0
    rgb, alpha = colours[..., :3], colours[..., 3:]
    return rgb * alpha + (1.0 - alpha) if white_bkgd and alpha.shape[-1] else rgb


def centred_intrinsics(H: int, W: int, focal: float) -> np.ndarray:
    """[3, 3] of a camera whose axis goes through the image's centre."""
    return np.array([[focal, 0.0, 0.5 * W], [0.0, focal, 0.5 * H], [0.0, 0.0, 1.0]])


def blender_scene(datadir: str, white_bkgd: bool, half_res: bool, testskip: int) -> Scene:
    """The NeRF paper's synthetic scenes: cameras 4 away from an object at the origin, seen from 2 to 6."""
    from load_blender import load_blender_data

    images, poses, render_poses, (H, W, focal), (i_train, i_val, i_test) = load_blender_data(
        datadir, half_res, testskip)
    return Scene(images=images, poses=poses[:, :3], K=centred_intrinsics(H, W, focal), H=H, W=W, near=2.0, far=6.0,
                 ndc=False, white_bkgd=white_bkgd, render_poses=render_poses[:, :3], i_train=i_train, i_val=i_val,
                 i_test=i_test)


def llff_scene(datadir: str, white_bkgd: bool, factor: int, spherify: bool, llffhold: int, ndc: bool) -> Scene:
    """Photographs from one side, in NDC, or with spherify all around; every llffhold-th is a test image (0: only that
    nearest to the mean camera)."""
    from load_llff import load_llff_data

    if spherify and ndc:
        raise UserError(f'{datadir}: spherify is for captures all around an object, which normalised device '
                        'coordinates cannot hold; set no_ndc too (and lindisp, as is usual)')
    images, poses, bds, render_poses, central = load_llff_data(datadir, factor, spherify=spherify)
    everything = np.arange(len(images))
    i_test = everything[::llffhold] if llffhold else everything[[central]]
    i_train = np.setdiff1d(everything, i_test)
    if not len(i_train):
        raise UserError(f'{datadir}: llffhold {llffhold} takes all {len(images)} images for testing and '
                        'leaves none to train on; raise llffhold or add images')
    H, W = images.shape[1:3]
    near, far = (0.0, 1.0) if ndc else (0.9 * float(bds.min()), float(bds.max()))
    scene = Scene(images=images, poses=poses[..., :4], K=centred_intrinsics(H, W, float(poses[0, 2, 4])), H=H, W=W,
                  near=near, far=far, ndc=ndc, white_bkgd=white_bkgd, render_poses=render_poses[..., :4],
                  i_train=i_train, i_val=i_test, i_test=i_test, around=spherify,
                  farthest=float(bds.max()) if ndc else None)
    if ndc:
        check_forward_facing(scene, datadir)
    return scene


def check_forward_facing(scene: Scene, datadir: str) -> None:
    """Raises UserError where a pixel's ray does not go forward, to -z: it has no normalised device coordinates."""
    if len(sideways := _looking_sideways(scene, scene.poses)):
        raise UserError(f"{datadir}: image {sideways[0]} looks sideways or backwards from the cameras' mean direction, "
                        'where normalised device coordinates end; set no_ndc (and spherify for a capture all around an '
                        'object)')
    if len(sideways := _looking_sideways(scene, scene.render_poses)):
        print(f'warning: {datadir}: {len(sideways)} views of the render path look sideways, where normalised device '
              'coordinates end; their pictures will make no sense', file=sys.stderr)


def _looking_sideways(scene: Scene, poses: np.ndarray) -> np.ndarray:
    """Indices of the cameras [M, 3, 4] of which a corner's ray, the most oblique of all pixels', does not go to -z."""
    _, directions = scene.corner_rays(poses)
    return np.flatnonzero((directions[..., 2] > -1e-6).any(-1))


def deepvoxels_scene(datadir: str, white_bkgd: bool, shape: str, testskip: int) -> Scene:
    """Cameras around an object at the origin, seen from 1 before it to 1 behind; the path is that of the test views."""
    from load_deepvoxels import load_dv_data, load_intrinsics

    images, poses, render_poses, (H, W, _), (i_train, i_val, i_test) = load_dv_data(shape, datadir, testskip)
    distance = float(np.linalg.norm(poses[:, :, 3], axis=-1).mean())
    if distance <= 1.0:
        raise UserError(f'{datadir}: the cameras of {shape} are {distance:g} from the origin in the mean, '
                        'but rays begin 1 before it; a DeepVoxels scene has its object there and cameras farther away')
    return Scene(images=images, poses=poses, K=load_intrinsics(shape, datadir, H, W), H=H, W=W,
                 near=distance - 1.0, far=distance + 1.0, ndc=False, white_bkgd=white_bkgd,
                 render_poses=render_poses, i_train=i_train, i_val=i_val, i_test=i_test)
