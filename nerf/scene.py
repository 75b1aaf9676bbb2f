"""Scenes: posed images in a space, from data of any format."""

from __future__ import annotations

import sys
import zlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from load_blender import read_blender_images, turntable
from load_deepvoxels import load_dv_data, load_intrinsics
from load_llff import load_llff_data
from nerf.cameras import Cameras
from nerf.captures.capture import Capture, Lens, held_out
from nerf.captures.free_space import FreeSpace
from nerf.captures.placement import (
    OBJECT_RULES, Placement, at_poses, leave_out_strays, nearest_and_farthest, path_of, place, place_object,
    spreads_little,
)
from nerf.runtime.errors import UserError
from nerf.space import NDC, Bounded, Space, Unbounded, looking_sideways
from run_nerf_helpers import Rays

SAME_TURN, SAME_PLACE = 2e-3, 1e-3  # deviations of rotations' entries, and of positions as shares of the distance


@dataclass(frozen=True)
class Images:
    """N images of any sizes as one list of pixels: image after image, row after row."""
    pixels: np.ndarray  # [P, 3 or 4] uint8 as read; alpha is not premultiplied
    sizes: np.ndarray  # [N, 2] int64: height, width
    masks: np.ndarray | None = None  # [P] bool: pixels to train on; None: all pixels

    @classmethod
    def of_one_size(cls, images: np.ndarray) -> Images:
        """Images [N, H, W, 3 or 4] of one size, without a copy."""
        return cls(images.reshape(-1, images.shape[-1]), np.tile(images.shape[1:3], (len(images), 1)))

    @classmethod
    def of_any_size(cls, images: list[np.ndarray], masks: list[np.ndarray] | None = None) -> Images:
        """Images [H, W, C] of one number of channels, and their masks [H, W] bool."""
        sizes = np.array([image.shape[:2] for image in images])
        return cls(np.concatenate([image.reshape(-1, image.shape[-1]) for image in images]), sizes,
                   None if masks is None else np.concatenate([mask.ravel() for mask in masks]))

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def starts(self) -> np.ndarray:
        """Indices [N + 1] int64 of each image's first pixel, and the number of all pixels."""
        return np.concatenate([[0], np.cumsum(self.sizes.prod(1))])

    def __getitem__(self, i: int) -> np.ndarray:
        """Image i: [H, W, 3 or 4]."""
        return self.pixels[self.starts[i]:self.starts[i + 1]].reshape(*self.sizes[i], -1)

    def take(self, index: np.ndarray) -> Images:
        """Some of the images, in that order."""
        def taken(values: np.ndarray) -> np.ndarray:
            return np.concatenate([values[self.starts[i]:self.starts[i + 1]] for i in index])
        return Images(taken(self.pixels), self.sizes[index], None if self.masks is None else taken(self.masks))


@dataclass(frozen=True)
class Scene:
    """Posed images, their space, and the cameras of the render path."""
    images: Images
    cameras: Cameras  # one for each image
    render_cameras: Cameras  # of the render path
    space: Space
    white_bkgd: bool
    i_train: np.ndarray
    i_val: np.ndarray
    i_test: np.ndarray
    exposure: bool = False  # each image has a gain per colour channel (nerf/exposure.py)
    placement: Placement | None = None  # of a capture of photographs in the scene
    names: list[str] | None = None  # of the images' files, if they are known
    free_space: FreeSpace | None = None  # of the images' views; None: unknown

    def rays_within(self, share: float) -> Scene:
        """The same scene with rays through another point of their pixels, as `Cameras.within`."""
        return replace(self, cameras=replace(self.cameras, within=share),
                       render_cameras=replace(self.render_cameras, within=share))

    def name_of(self, i: int) -> str:
        """Name of image i for a message."""
        return f'image {i}' if self.names is None else self.names[i]

    @cached_property
    def training_cameras(self) -> Cameras:
        """The cameras of the training images."""
        return self.cameras.take(self.i_train)

    def rays(self, origins: Tensor, directions: Tensor, bounds: Tensor | None = None) -> Rays:
        """Rays of the space."""
        return self.space.rays(origins, directions, bounds)

    def spread_rays(self, views: np.ndarray, side: int) -> Rays:
        """Rays of some views, side x side evenly spread over each picture, view after view."""
        cameras = self.cameras.take(views)
        return self.rays(*cameras.spread_rays(side), None if cameras.bounds is None else cameras.bounds[:, None])

    def seen_box(self) -> np.ndarray:
        """Box [2, 3] in ray coordinates of everything that the images' and the render path's cameras see."""
        return self.space.seen_box(self.cameras, self.render_cameras)

    def fingerprint(self) -> int:
        """Checksum of everything in the scene that decides training."""
        images, cameras = self.images.take(self.i_train), self.training_cameras
        parts, numbers = [images.pixels, cameras.poses], [*self.space.numbers(), self.white_bkgd]
        if cameras.within:  # rays of the first checkpoints went through the pixels' corners
            numbers.append(cameras.within)
        fx, fy, cx, cy = cameras.intrinsics[0].tolist()
        if cameras.one_size() and bool((cameras.intrinsics == cameras.intrinsics[0]).all()):
            numbers = [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0, *numbers]  # one K, as in the first checkpoints
        else:
            parts += [cameras.intrinsics, images.sizes]
        parts += [cameras.distortion, cameras.fisheye, images.masks, cameras.bounds, np.array(numbers, np.float64)]
        checksum = 0
        for part in parts:
            if part is not None:
                checksum = zlib.crc32(np.ascontiguousarray(part), checksum)
        return checksum

    def background(self, i: int) -> np.ndarray:
        """Share of the white background in `target` [H, W, 1] float32, 0 without one."""
        alpha = self.images[i][..., 3:].astype(np.float32) / 255.0
        return 1.0 - alpha if self.white_bkgd and alpha.shape[-1] else np.zeros((*alpha.shape[:2], 1), np.float32)

    def target(self, i: int) -> np.ndarray:
        """Colours [H, W, 3] float32 in [0, 1] that image i should render to."""
        return target_colours(torch.from_numpy(self.images[i]), self.white_bkgd).numpy()


def target_colours(pixels: Tensor, white_bkgd: bool) -> Tensor:
    """Colours [..., 3] float32 of pixels [..., 3 or 4] uint8, with `white_bkgd` on white."""
    colours = pixels.float() / 255.0
    rgb, alpha = colours[..., :3], colours[..., 3:]
    return rgb * alpha + (1.0 - alpha) if white_bkgd and alpha.shape[-1] else rgb


def camera_at(scene: Scene, pose: np.ndarray) -> int | None:
    """Index of a training image whose camera has a pose [3, 4] up to rounding (`SAME_TURN`, `SAME_PLACE`), or None."""
    poses = scene.training_cameras.poses.double().numpy()
    turned = np.abs(poses[:, :, :3] - pose[:, :3]).max((1, 2))
    shifted = np.linalg.norm(poses[:, :, 3] - pose[:, 3], axis=1) / scene.space.looking_distance(pose)
    there = np.flatnonzero((turned < SAME_TURN) & (shifted < SAME_PLACE))
    return int(scene.i_train[there[0]]) if len(there) else None


def centred_intrinsics(H: int, W: int, focal: float) -> np.ndarray:
    """Intrinsics [3, 3] of a camera whose axis goes through the image's centre."""
    return np.array([[focal, 0.0, 0.5 * W], [0.0, focal, 0.5 * H], [0.0, 0.0, 1.0]])


def blender_scene(datadir: str, white_bkgd: bool, half_res: bool, testskip: int) -> Scene:
    """Scene of `read_blender_images`: cameras at distance 4 from an object at the origin, rays from 2 to 6. A scene of
    other proportions is placed by `place_object`."""
    read = read_blender_images(datadir, half_res, testskip)
    cameras = _with_lenses(read.poses[:, :3], read.lenses)
    placement = place_object(datadir, cameras, read.i_split[0], None if read.path is None else read.path[:, :3])
    path = turntable() if read.path is None else read.path
    if placement is None:
        path, space = _pinholes(cameras, path[:, :3]), Bounded(2.0, 6.0)
    else:
        path = at_poses(_pinholes(cameras, path), placement.render_poses, placement.render_bounds)
        cameras = at_poses(cameras, placement.poses, placement.bounds)
        distance = float(np.linalg.norm(placement.poses[:, :, 3], axis=-1).mean())
        space = Bounded(distance - OBJECT_RULES.half, distance + OBJECT_RULES.half)
    return Scene(Images.of_one_size(read.images), cameras, path, space, white_bkgd, *read.i_split, placement=placement)


def _with_lenses(poses: np.ndarray, lenses: list[Lens]) -> Cameras:
    """Cameras at poses [N, 3, 4], with N lenses."""
    intrinsics, distortion, fisheye, sizes = map(np.array, zip(*lenses))
    return Cameras(torch.from_numpy(poses), torch.from_numpy(intrinsics), torch.from_numpy(sizes[:, ::-1].copy()),
                   torch.from_numpy(distortion).float() if distortion.any() or fisheye.any() else None,
                   torch.from_numpy(fisheye) if fisheye.any() else None)


def _pinholes(cameras: Cameras, poses: np.ndarray) -> Cameras:
    """Pinholes at poses [M, 3, 4], with intrinsics and size of the first camera."""
    return replace(cameras.posed(poses), distortion=None, fisheye=None)


def llff_scene(datadir: str, white_bkgd: bool, factor: int, spherify: bool, llffhold: int, ndc: bool,
               unbounded: bool) -> Scene:
    """Photographs from one side or, with `spherify`, all around. Arguments are those of `load_llff_data`, `held_out`
    (llffhold) and `open_space` (ndc, unbounded)."""
    if spherify and ndc:
        raise UserError(f'{datadir}: spherify is for captures all around an object, which normalised device '
                        'coordinates cannot hold; set no_ndc too (and lindisp, as is usual)')
    images, poses, bds, render_poses, central = load_llff_data(datadir, factor, spherify=spherify)
    i_train, i_test = held_out(datadir, len(images), llffhold, central)
    H, W = images.shape[1:3]
    cameras = Cameras.of_one_kind(poses[..., :4], centred_intrinsics(H, W, float(poses[0, 2, 4])), H, W)
    space = open_space(cameras, i_train, 0.9 * float(bds.min()), float(bds.max()), spherify, ndc, unbounded)
    path = cameras.posed(render_poses[..., :4])
    scene = Scene(Images.of_one_size(images), cameras, path, space, white_bkgd, i_train, i_test, i_test)
    if ndc:
        check_forward_facing(scene, datadir)
        if not spreads_little(poses, nearest_and_farthest(bds)[0]):
            print(f'warning: {datadir}: the cameras spread too far, against the nearest depth, for normalised device '
                  'coordinates, which leave little room for what is near; set no_ndc', file=sys.stderr)
    return scene


def deepvoxels_scene(datadir: str, white_bkgd: bool, shape: str, testskip: int) -> Scene:
    """Scene of `load_dv_data`: rays from 1 before the origin to 1 behind it; the path is the test views."""
    images, poses, render_poses, (H, W, _), splits = load_dv_data(shape, datadir, testskip)
    distance = float(np.linalg.norm(poses[:, :, 3], axis=-1).mean())
    if distance <= 1.0:
        raise UserError(f'{datadir}: the cameras of {shape} are {distance:g} from the origin in the mean, '
                        'but rays begin 1 before it; a DeepVoxels scene has its object there and cameras farther away')
    cameras = Cameras.of_one_kind(poses, load_intrinsics(shape, datadir, H, W), H, W)
    return Scene(Images.of_one_size(images), cameras, cameras.posed(render_poses),
                 Bounded(distance - 1.0, distance + 1.0), white_bkgd, *splits)


def photographs_scene(capture: Capture, white_bkgd: bool, ndc: bool, unbounded: bool = True) -> Scene:
    """Photographs with lenses and sizes of their own, placed by `place`; `ndc` is for forward-facing captures only.
    Cameras that do not agree with the others are left out."""
    capture = leave_out_strays(capture)
    placement = place(capture)
    ndc = ndc and placement.forward_facing
    cameras = at_poses(capture.cameras, placement.poses, None if ndc else placement.bounds)
    path = at_poses(path_of(capture, placement.render_poses), placement.render_poses,
                    None if ndc else placement.render_bounds)
    near, far = nearest_and_farthest(placement.bounds)
    space = open_space(cameras, capture.i_train, near, far, not placement.forward_facing, ndc, unbounded)
    return Scene(Images.of_any_size(capture.images, capture.masks), cameras, path, space, white_bkgd, capture.i_train,
                 capture.i_val, capture.i_test, placement=placement,
                 names=[path.name for path in capture.paths], free_space=_free_space(capture, placement, cameras))


def _free_space(capture: Capture, placement: Placement, cameras: Cameras) -> FreeSpace | None:
    """Free space of a capture in its scene; None: its points are unknown."""
    if not placement.has_points:
        return None
    linear, shift = placement.matrix[:3, :3], placement.matrix[:3, 3]
    bounded = replace(cameras, bounds=torch.from_numpy(placement.bounds))
    return FreeSpace(bounded, capture.points @ linear.T + shift)


def open_space(cameras: Cameras, i_train: np.ndarray, near: float, far: float, surrounded: bool, ndc: bool,
               unbounded: bool) -> Space:
    """Space of photographs: with `ndc`, NDC of the first camera, and otherwise unbounded or up to the depth `far`.
    Things are at depths of near to far, in scene units; `surrounded`: the cameras surround the origin."""
    if ndc:
        height, width = cameras.size(0)
        return NDC(height=height, width=width, focal=float(cameras.intrinsics[0, 0]), farthest=far)
    if unbounded:
        return Unbounded.around(cameras.take(i_train), near, far, surrounded)
    return Bounded(near, far, surrounded)


def check_forward_facing(scene: Scene, datadir: str) -> None:
    """Raises UserError if an image has a ray that does not go forward, to -z, so is not in NDC; warns of the path."""
    if len(sideways := looking_sideways(scene.cameras)):
        raise UserError(f"{datadir}: image {sideways[0]} looks sideways or backwards from the cameras' mean direction, "
                        'where normalised device coordinates end; set no_ndc (and spherify for a capture all around an '
                        'object)')
    if len(sideways := looking_sideways(scene.render_cameras)):
        print(f'warning: {datadir}: {len(sideways)} views of the render path look sideways, where normalised device '
              'coordinates end; their pictures will make no sense', file=sys.stderr)
