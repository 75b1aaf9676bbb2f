"""A scene of any format as one structure: posed images, and the cameras to render them with."""

from __future__ import annotations

import sys
import zlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from load_photos import Capture
from nerf.cameras import Cameras
from nerf.contraction import Contraction
from nerf.captures.placement import Placement, cameras_of, path_capture, place
from nerf.runtime.errors import UserError
from run_nerf_helpers import Rays, bundle_rays

BEYOND_NEAR = 1.0  # near bounds from the outermost camera to where the contraction begins, if the cameras look forward
BOX_RAYS = 17  # along both sides of each view, that find the box of what is seen without bounds


@dataclass(frozen=True)
class Images:
    """N images of any sizes as one flat list of pixels: image after image, row after row."""

    pixels: np.ndarray  # [P, 3 or 4] uint8 as read; alpha is not premultiplied
    sizes: np.ndarray  # [N, 2] int64: height, width
    masks: np.ndarray | None = None  # [P] bool: pixels to train on; None: all

    @classmethod
    def of_one_size(cls, images: np.ndarray) -> Images:
        """Images [N, H, W, 3 or 4], which are not copied."""
        return cls(images.reshape(-1, images.shape[-1]), np.tile(images.shape[1:3], (len(images), 1)))

    @classmethod
    def of_any_size(cls, images: list[np.ndarray], masks: list[np.ndarray] | None = None) -> Images:
        """Images [H, W, C] with one C, and masks [H, W] bool."""
        sizes = np.array([image.shape[:2] for image in images]).reshape(-1, 2)
        return cls(np.concatenate([image.reshape(-1, image.shape[-1]) for image in images]), sizes,
                   None if masks is None else np.concatenate([mask.ravel() for mask in masks]))

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def starts(self) -> np.ndarray:
        """[N + 1] int64: where each image begins among the pixels, and where the last one ends."""
        return np.concatenate([[0], np.cumsum(self.sizes.prod(1))])

    def __getitem__(self, i: int) -> np.ndarray:
        """Image i: [H, W, 3 or 4]."""
        return self.pixels[self.starts[i]:self.starts[i + 1]].reshape(*self.sizes[i], -1)

    def take(self, index: np.ndarray) -> Images:
        """Some of the images, in that order."""
        def of(values: np.ndarray) -> np.ndarray:
            return np.concatenate([values[self.starts[i]:self.starts[i + 1]] for i in index])
        return Images(of(self.pixels), self.sizes[index], None if self.masks is None else of(self.masks))


@dataclass(frozen=True)
class Scene:
    """Posed images and the cameras to render them with."""

    images: Images
    cameras: Cameras  # of the images
    render_cameras: Cameras  # of the render path
    near: float  # bounds of the rays, in scene units, of cameras that have none of their own
    far: float
    ndc: bool
    white_bkgd: bool
    i_train: np.ndarray
    i_val: np.ndarray
    i_test: np.ndarray
    around: bool = True  # the cameras surround the origin; else they look at a scene in front of them
    farthest: float | None = None  # in NDC, whose rays reach to infinity: depth of the farthest thing that is known of
    exposure: bool = False  # the images differ in brightness: each has a gain per colour channel (nerf/exposure.py)
    bounded: bool = True  # all that is seen lies between near and far, or is in NDC; else there is a background
    placement: Placement | None = None  # of a capture, whose coordinates are others than the scene's

    @cached_property
    def ndc_camera(self) -> tuple[int, int, float] | None:
        """Height, width and focal length of normalised device coordinates; None where rays stay in the world."""
        return (*self.cameras.size(0), float(self.cameras.intrinsics[0, 0])) if self.ndc else None

    def rays_within(self, share: float) -> Scene:
        """The same scene with rays through another point of their pixels: `Cameras.within`."""
        cameras, render_cameras = (replace(part, within=share) for part in (self.cameras, self.render_cameras))
        return replace(self, cameras=cameras, render_cameras=render_cameras)

    def rays(self, origins: Tensor, directions: Tensor, bounds: Tensor | None = None) -> Rays:
        """World origins and directions [..., 3] as rays, in NDC where the scene is.

        Args:
            bounds: [..., 2] near and far bound of each, broadcast over the rays; None, and in NDC: the scene's.
        """
        if bounds is None or self.ndc:
            return bundle_rays(origins, directions, self.near, self.far, self.ndc_camera)
        near, far = bounds.expand(*origins.shape[:-1], 2).reshape(-1, 2).split(1, -1)
        return bundle_rays(origins, directions, near, far)

    @property
    def contraction(self) -> Contraction | None:
        """How space is drawn together where the scene has no bounds; else None.

        Where the training cameras surround the origin, they are just inside the unit ball around it. Else the ball is
        around the cameras' mean position, and reaches BEYOND_NEAR near bounds beyond the farthest of them: what is
        near is in it.
        """
        if self.bounded:
            return None
        positions = self.cameras.take(self.i_train).poses[:, :, 3].double()
        centre = torch.zeros(3) if self.around else positions.mean(0)
        farthest = float((positions - centre).norm(dim=-1).max())
        radius = max(1.01 * farthest, self.near) if self.around else farthest + BEYOND_NEAR * self.near
        return Contraction(tuple(centre.tolist()), radius)

    def contracted_box(self) -> np.ndarray:
        """[2, 3] corners of what the training cameras see from near to infinity, in contracted coordinates."""
        rays, contraction = self.spread_rays(self.i_train, BOX_RAYS), self.contraction
        far = contraction.radius * torch.logspace(-1.0, 6.0, 100)
        depths = rays.near + torch.cat([torch.zeros(1), far])
        ends = contraction(rays.origins[:, None] + depths[..., None] * rays.viewdirs[:, None]).flatten(0, 1)
        return torch.stack([ends.amin(0), ends.amax(0)]).double().numpy()

    def spread_rays(self, views: np.ndarray, side: int) -> Rays:
        """Rays spread evenly over each of some views, side x side, view after view."""
        cameras = self.cameras.take(views)
        return self.rays(*cameras.spread_rays(side), None if cameras.bounds is None else cameras.bounds[:, None])

    def box(self, to_infinity: bool = False) -> np.ndarray:
        """[2, 3] corners of what the training cameras see from near to far, in the field's coordinates.

        Where they surround the origin it is the cube inside them, half as wide as from the origin to their near bound;
        else it holds the ends of all corners' rays, in NDC up to the farthest thing or `to_infinity`.
        """
        cameras = self.cameras.take(self.i_train)
        half = np.linalg.norm(cameras.poses[:, :, 3].numpy(), axis=-1).mean() - self.near
        if self.around and half > 0:
            return np.array([[-half] * 3, [half] * 3])
        far = 1.0 - 1.0 / self.farthest if self.ndc and not to_infinity else self.far
        ends = self._ends(cameras, far)
        return torch.stack([ends.amin(0), ends.amax(0)]).double().numpy()

    def seen_box(self) -> np.ndarray:
        """[2, 3] corners of all that the cameras of the images and of the render path see from near to far, in the
        field's coordinates: what is outside is in no picture of theirs."""
        corners = []
        for cameras in (self.cameras, self.render_cameras):
            if self.ndc:
                cameras = cameras.take(np.setdiff1d(np.arange(len(cameras)), _looking_sideways(cameras)))
            corners.append(self._ends(cameras, self.far))
        ends = torch.cat(corners)
        return torch.stack([ends.amin(0), ends.amax(0)]).double().numpy()

    def _ends(self, cameras: Cameras, far: float) -> Tensor:
        """[M, 3] both ends of the rays of all cameras' corners, in the field's coordinates."""
        rays = bundle_rays(*cameras.corner_rays(), self.near, far, self.ndc_camera)
        return torch.cat([rays.origins + t * rays.directions for t in (rays.near, rays.far)])

    def pixel_size(self) -> float:
        """Side of a pixel of the training cameras at the origin, which they surround, in scene units: the median."""
        cameras = self.cameras.take(self.i_train)
        return float((cameras.poses[:, :, 3].double().norm(dim=-1) / cameras.intrinsics[:, 0]).median())

    def fingerprint(self) -> int:
        """A checksum of all that training sees of the scene."""
        images, cameras = self.images.take(self.i_train), self.cameras.take(self.i_train)
        numbers = [self.near, self.far, self.ndc, self.white_bkgd]
        numbers += [cameras.within] * (cameras.within != 0.0)
        parts = [images.pixels, cameras.poses]
        fx, fy, cx, cy = cameras.intrinsics[0].tolist()
        if cameras.one_size() and bool((cameras.intrinsics == cameras.intrinsics[0]).all()):
            numbers = [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0, *numbers]  # one K, as in the first checkpoints
        else:
            parts += [cameras.intrinsics, images.sizes]
        parts += [part for part in (cameras.distortion, cameras.fisheye, images.masks, cameras.bounds)
                  if part is not None]
        checksum = 0
        for part in (*parts, np.array(numbers, np.float64)):
            checksum = zlib.crc32(np.ascontiguousarray(part), checksum)
        return checksum

    def background(self, i: int) -> np.ndarray:
        """What of `target` is the light of a white background: [H, W, 1] float32."""
        alpha = self.images[i][..., 3:].astype(np.float32) / 255.0
        return 1.0 - alpha if self.white_bkgd and alpha.shape[-1] else np.zeros((*alpha.shape[:2], 1), np.float32)

    def target(self, i: int) -> np.ndarray:
        """What image i should render to: [H, W, 3] float32 in [0, 1]."""
        return target_colours(torch.from_numpy(self.images[i]), self.white_bkgd).numpy()


def target_colours(pixels: Tensor, white_bkgd: bool) -> Tensor:
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
    cameras = Cameras.of_one_kind(poses[:, :3], centred_intrinsics(H, W, focal), H, W)
    return Scene(images=Images.of_one_size(images), cameras=cameras, render_cameras=cameras.posed(render_poses[:, :3]),
                 near=2.0, far=6.0, ndc=False, white_bkgd=white_bkgd, i_train=i_train, i_val=i_val, i_test=i_test)


def llff_scene(datadir: str, white_bkgd: bool, factor: int, spherify: bool, llffhold: int, ndc: bool) -> Scene:
    """Photographs from one side, in NDC, or with spherify all around; every llffhold-th is a test image (0: only that
    nearest to the mean camera)."""
    from load_llff import held_out, load_llff_data

    if spherify and ndc:
        raise UserError(f'{datadir}: spherify is for captures all around an object, which normalised device '
                        'coordinates cannot hold; set no_ndc too (and lindisp, as is usual)')
    images, poses, bds, render_poses, central = load_llff_data(datadir, factor, spherify=spherify)
    i_train, i_test = held_out(datadir, len(images), llffhold, central)
    H, W = images.shape[1:3]
    near, far = (0.0, 1.0) if ndc else (0.9 * float(bds.min()), float(bds.max()))
    cameras = Cameras.of_one_kind(poses[..., :4], centred_intrinsics(H, W, float(poses[0, 2, 4])), H, W)
    scene = Scene(images=Images.of_one_size(images), cameras=cameras,
                  render_cameras=cameras.posed(render_poses[..., :4]),
                  near=near, far=far, ndc=ndc, white_bkgd=white_bkgd, i_train=i_train, i_val=i_test, i_test=i_test,
                  around=spherify, farthest=float(bds.max()) if ndc else None, bounded=ndc)
    if ndc:
        check_forward_facing(scene, datadir)
    return scene


def check_forward_facing(scene: Scene, datadir: str) -> None:
    """Raises UserError where a pixel's ray does not go forward, to -z: it has no normalised device coordinates."""
    if len(sideways := _looking_sideways(scene.cameras)):
        raise UserError(f"{datadir}: image {sideways[0]} looks sideways or backwards from the cameras' mean direction, "
                        'where normalised device coordinates end; set no_ndc (and spherify for a capture all around an '
                        'object)')
    if len(sideways := _looking_sideways(scene.render_cameras)):
        print(f'warning: {datadir}: {len(sideways)} views of the render path look sideways, where normalised device '
              'coordinates end; their pictures will make no sense', file=sys.stderr)


def _looking_sideways(cameras: Cameras) -> np.ndarray:
    """Indices of the cameras of which a corner's ray, the most oblique of all pixels', does not go to -z."""
    _, directions = cameras.corner_rays()
    return np.flatnonzero((directions[..., 2] > -1e-6).any(-1))


def deepvoxels_scene(datadir: str, white_bkgd: bool, shape: str, testskip: int) -> Scene:
    """Cameras around an object at the origin, seen from 1 before it to 1 behind; the path is that of the test views."""
    from load_deepvoxels import load_dv_data, load_intrinsics

    images, poses, render_poses, (H, W, _), (i_train, i_val, i_test) = load_dv_data(shape, datadir, testskip)
    distance = float(np.linalg.norm(poses[:, :, 3], axis=-1).mean())
    if distance <= 1.0:
        raise UserError(f'{datadir}: the cameras of {shape} are {distance:g} from the origin in the mean, '
                        'but rays begin 1 before it; a DeepVoxels scene has its object there and cameras farther away')
    cameras = Cameras.of_one_kind(poses, load_intrinsics(shape, datadir, H, W), H, W)
    return Scene(images=Images.of_one_size(images), cameras=cameras, render_cameras=cameras.posed(render_poses),
                 near=distance - 1.0, far=distance + 1.0, ndc=False, white_bkgd=white_bkgd, i_train=i_train,
                 i_val=i_val, i_test=i_test)


def photographs_scene(capture: Capture, white_bkgd: bool, ndc: bool) -> Scene:
    """Photographs with lenses and sizes of their own, placed by placement.py; with `ndc` forward-facing ones are
    in normalised device coordinates. All others have no bounds."""
    placement = place(capture)
    ndc = ndc and placement.forward_facing
    cameras = cameras_of(capture, placement.poses, None if ndc else placement.bounds)
    path = path_capture(capture, placement.render_poses)
    path = cameras_of(path, path.poses, None if ndc else placement.render_bounds)
    near, far = float(placement.bounds[:, 0].min()), float(placement.bounds[:, 1].max())
    return Scene(images=Images.of_any_size(capture.images, capture.masks), cameras=cameras, render_cameras=path,
                 near=0.0 if ndc else near, far=1.0 if ndc else far, ndc=ndc, white_bkgd=white_bkgd,
                 i_train=capture.i_train, i_val=capture.i_val, i_test=capture.i_test,
                 around=not placement.forward_facing, farthest=far if ndc else None, bounded=ndc, placement=placement)
