"""Cameras refined while a scene trains: between some steps its pictures are drawn and aligned with the taken ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nerf.cameras import Cameras
from nerf.captures.alignment import AlignmentRules, Pair, aligned, moved, without_drift
from nerf.captures.photographs import scene_folder
from nerf.captures.transforms import write_transforms
from nerf.exposure import with_gain
from nerf.fields.interface import Sampler
from nerf.files.images import area_resize
from nerf.optimiser import is_real
from nerf.poses import transform_poses
from nerf.rendering import draw, view_rays
from nerf.scene import Scene


@dataclass(frozen=True)
class RefinementRules:
    """Numbers that decide when cameras are refined, and which changes are kept; tried on 5 views of fox_pinhole that
    were held out of 21, with its own cameras and with disturbed ones."""

    begin: float = 0.1  # share of the run after which cameras are aligned; at 0.05 fog drew good cameras 1 pixel away
    every: float = 0.05  # share of the run between alignments
    until: float = 0.6  # share of the run after which cameras stay as they are
    side: int = 120  # pixels of the longer side of compared pictures; up to twice as many, as they are 1/n of the whole
    tile: int = 8  # pixels along the sides of the tiles of a compared picture
    kept_back: int = 4  # every n-th tile has no part in an alignment, and tells whether it helps
    # Share of the squared error of all views' tiles that an alignment must remove. It was 0.6% at most of good cameras,
    # and 8 to 16% of cameras disturbed by half a degree and half a percent
    start: float = 0.025  # while cameras are as given
    gain: float = 0.01  # afterwards
    patience: int = 4  # alignments in a row without that gain, after which there are no more; young scenes need some
    test_rounds: int = 3  # alignments of test views
    alignment: AlignmentRules = field(default_factory=AlignmentRules)


class Photograph(NamedTuple):
    """Photograph that is small enough to be drawn often."""
    taken: np.ndarray  # [H, W, 3] float32
    background: np.ndarray  # [H, W, 1] float32, as `Scene.background`
    inside: Tensor  # [H, W] bool: pixels within the mask
    kept_back: Tensor  # [P] indices of such pixels that have no part in an alignment

    def error(self, shown: np.ndarray) -> float:
        """Mean squared error of the pixels that are kept back, from their colours [P, 3]; 0 if there are none."""
        return float(((shown - self.taken.reshape(-1, 3)[self.kept_back]) ** 2).mean()) if len(shown) else 0.0


class Trial(NamedTuple):
    """Changed cameras of V views, and mean squared errors [V] of the pixels that were kept back from the alignment."""
    twists: Tensor  # [V, 6] float64
    focal: Tensor  # [V] float64, changes of the focal lengths' logarithms
    before: np.ndarray  # [V]
    after: np.ndarray  # [V]


class SmallViews:
    """Views of a scene at the size of small photographs, and the alignment of their cameras."""

    def __init__(self, scene: Scene, views: np.ndarray, rules: RefinementRules):
        self.scene, self.views, self.rules = scene, views, rules

    @cached_property
    def photographs(self) -> list[Photograph]:
        return [self._photograph(i) for i in self.views]

    def _photograph(self, i: int) -> Photograph:
        scene, (height, width) = self.scene, self.small(self.scene.cameras.take([i])).size(0)

        def reduced(picture: np.ndarray) -> np.ndarray:
            return area_resize(255.0 * picture, height, width).astype(np.float32) / 255.0
        inside = torch.ones(height, width, dtype=torch.bool)
        if scene.images.masks is not None:
            mask = scene.images.masks[scene.images.starts[i]:scene.images.starts[i + 1]]
            inside = torch.from_numpy(reduced(mask.reshape(*scene.images.sizes[i], 1))[..., 0] > 0.5)
        row, column = (torch.arange(n) // self.rules.tile for n in (height, width))
        kept_back = ((row[:, None] + column) % self.rules.kept_back == 0) & inside
        return Photograph(reduced(scene.target(i)), reduced(scene.background(i)), inside,
                          kept_back.flatten().nonzero()[:, 0])

    def small(self, camera: Cameras) -> Cameras:
        """One camera at the size of its small photograph; rays go through the middles of squares of pixels."""
        factor = max(1, int(camera.sizes.max()) // self.rules.side)
        return replace(camera.scaled(factor), within=(0.5 * (factor - 1) + camera.within) / factor)

    def improved(self, sampler: Sampler, cameras: Cameras, lens: Tensor | None) -> Trial:
        """Trial of changes to the views' cameras, which share a focal length by their lens [V] int64, and together do
        not drift. None: each view for itself, and focal lengths stay."""
        cameras, rules = cameras.to(torch.device('cpu')), self.rules.alignment
        drawn = [self._drawn(sampler, n, cameras.take([n])) for n in range(len(self.views))]
        change = aligned([pair for pair, *_ in drawn], lens, rules)
        twists = change[:, :6] if lens is None else without_drift(cameras.poses.double(), change[:, :6])
        trial = changed(cameras, twists, change[:, 6])
        after = [self._error_at(sampler, n, trial.take([n]), gain) for n, (_, _, gain) in enumerate(drawn)]
        return Trial(twists, change[:, 6], np.array([error for _, error, _ in drawn]), np.array(after))

    def _drawn(self, sampler: Sampler, n: int, camera: Cameras) -> tuple[Pair, float, np.ndarray]:
        """Pair of view n for an alignment, its error, and the gain [3] of its exposure."""
        camera, photograph, space = self.small(camera), self.photographs[n], self.scene.space
        *_, picture = draw(sampler, view_rays(sampler, space, camera))
        disparity = space.disparity(picture.depth, picture.acc)
        rgb, disparity, acc = (part.cpu().clone().unflatten(0, camera.size(0)) for part in (
            picture.rgb, disparity, picture.acc))  # copies, because inference tensors have no part in views
        shown, gain = rgb.numpy(), np.ones(3)
        if self.scene.exposure:
            shown, gain = with_gain(shown, photograph.taken, photograph.background)
        counts = photograph.inside & (acc > self.rules.alignment.opaque)
        counts.view(-1)[photograph.kept_back] = False
        pair = Pair.of(torch.from_numpy(photograph.taken), torch.from_numpy(shown), disparity, counts, camera,
                       self.rules.alignment)
        return pair, photograph.error(shown.reshape(-1, 3)[photograph.kept_back]), gain

    def _error_at(self, sampler: Sampler, n: int, camera: Cameras, gain: np.ndarray) -> float:
        """Error of view n from another camera, whose pixels that are kept back alone are drawn."""
        photograph = self.photographs[n]
        if not len(photograph.kept_back):
            return 0.0
        rays = view_rays(sampler, self.scene.space, self.small(camera))
        *_, picture = draw(sampler, rays.part(photograph.kept_back.to(sampler.device)))
        background = photograph.background.reshape(-1, 1)[photograph.kept_back]
        return photograph.error((background + gain * (picture.rgb.cpu().numpy() - background)).clip(0.0, 1.0))


def changed(cameras: Cameras, twists: Tensor, focal: Tensor) -> Cameras:
    """Cameras after twists [V, 6] and changes [V] of their focal lengths' logarithms."""
    grown = torch.stack([focal.exp()] * 2 + [torch.ones_like(focal)] * 2, 1)
    return replace(cameras, poses=moved(cameras.poses.double(), twists).float(), intrinsics=cameras.intrinsics * grown)


class CameraRefinement:
    """Refinement of the training cameras of a scene, whose tensors it changes in place.

    Args:
        cameras: the training cameras that rays are made from, on any device.
        n_iters: steps of the run.
    """

    def __init__(self, scene: Scene, cameras: Cameras, n_iters: int, rules: RefinementRules | None = None):
        self.scene, self.cameras, self.n_iters, self.rules = scene, cameras, n_iters, rules or RefinementRules()
        self.training = SmallViews(scene, scene.i_train, self.rules)
        self.testing = SmallViews(scene, scene.i_test, self.rules)
        self.lens = lenses(scene.cameras)
        self.in_vain = 0  # alignments in a row without a gain

    def is_due(self, step: int) -> bool:
        """Whether cameras are aligned after a step, counted from 1."""
        interval, share = max(round(self.rules.every * self.n_iters), 1), step / self.n_iters
        return (step % interval == 0 and self.rules.begin <= share <= self.rules.until
                and self.in_vain < self.rules.patience)

    def refine(self, step: int, sampler: Sampler) -> list[str]:
        """Aligns the training cameras with what a sampler draws after a step; returns lines for the log."""
        lens = self.lens[self.scene.i_train].unique(return_inverse=True)[1]
        trial = self.training.improved(sampler, self.cameras, lens)
        before = trial.before.sum()  # 0 without pixels to compare
        gain = 1.0 - trial.after.sum() / before if before else 0.0
        kind, least = ('refined', self.rules.gain) if self.has_changed else ('given', self.rules.start)
        if gain < least:
            self.in_vain += 1
            if self.in_vain < self.rules.patience:
                return []
            return [f'step {step}: cameras stay as they are {kind}: another alignment changes the squared error by '
                    f'{-100 * gain:+.1f}%, and {-100 * least:+.1f}% are asked for']
        self.in_vain, better = 0, torch.from_numpy(trial.after < trial.before)
        twists, poses = torch.zeros_like(trial.twists), self.cameras.poses.cpu().double()
        twists[better] = without_drift(poses[better], trial.twists[better])
        after = changed(self.cameras.to(torch.device('cpu')), twists, trial.focal)
        self.cameras.poses.copy_(after.poses)
        self.cameras.intrinsics.copy_(after.intrinsics)
        turn, shift = twists[:, :3].norm(dim=1), twists[:, 3:].norm(dim=1)
        return [f'step {step}: {int(better.sum())} of {len(better)} cameras aligned with their photographs: turned by '
                f'{np.degrees(float(turn.median())):.2g} degrees, shifted by {float(shift.median()):.2g}, focal length '
                f'{100 * float(trial.focal.exp().median() - 1.0):+.2g}%; squared error {-100 * gain:+.1f}%']

    @property
    def has_changed(self) -> bool:
        """Whether any camera differs from the given one."""
        return not torch.equal(self.cameras.poses.cpu(), self.scene.training_cameras.poses)

    def all_cameras(self) -> Cameras:
        """Cameras of all images: refined ones of the training images, and given poses of others with refined lenses."""
        scene, given = self.scene, self.scene.cameras
        poses, intrinsics = given.poses.clone(), given.intrinsics.clone()
        for lens, row in zip(self.lens[scene.i_train].tolist(), self.cameras.intrinsics.cpu()):
            intrinsics[self.lens == lens] = row
        poses[scene.i_train] = self.cameras.poses.cpu()
        return replace(given, poses=poses, intrinsics=intrinsics)

    def test_cameras(self, sampler: Sampler) -> Cameras:
        """Cameras of the test images, each aligned with its own photograph, because refined training cameras may differ
        from the given ones by a common motion that no training photograph shows."""
        cameras = self.all_cameras().take(self.scene.i_test)
        for _ in range(self.rules.test_rounds):
            trial = self.testing.improved(sampler, cameras, None)
            better = torch.from_numpy(trial.after < trial.before)
            cameras = changed(cameras, torch.where(better[:, None], trial.twists, 0.0), torch.zeros(len(better)))
        return cameras

    def save(self, path: Path, datadir: Path) -> None:
        """Writes all cameras as a transforms.json, in the coordinates of the capture in a folder or a video."""
        scene, cameras = self.scene, self.all_cameras()
        if scene.placement:
            poses = transform_poses(scene.placement.to_capture(), cameras.poses.double().numpy())
            cameras = replace(cameras, poses=torch.from_numpy(poses))
        names = [scene.name_of(i) for i in range(len(cameras))]
        write_transforms(path, cameras, names, scene_folder(datadir) / 'transforms.json')

    def state(self) -> dict:
        """State for a checkpoint."""
        return {'poses': self.cameras.poses.cpu(), 'intrinsics': self.cameras.intrinsics.cpu(), 'in_vain': self.in_vain}

    def load_state(self, state: dict) -> None:
        """Takes the result of `state`. A broken one is a ValueError, LookupError or TypeError."""
        for name in ('poses', 'intrinsics'):
            own = getattr(self.cameras, name)
            if not is_real(state[name]) or state[name].shape != own.shape:
                raise ValueError(f'{name} that do not fit the training cameras')
            own.copy_(state[name])
        self.in_vain = int(state['in_vain'])


def lenses(cameras: Cameras) -> Tensor:
    """Number [V] int64 of each camera's lens: cameras of one lens have the same intrinsics, distortion and size."""
    parts = [cameras.intrinsics, cameras.sizes, cameras.distortion, cameras.fisheye]
    rows = torch.cat([part.double().reshape(len(cameras), -1) for part in parts if part is not None], 1)
    return rows.unique(dim=0, return_inverse=True)[1]
