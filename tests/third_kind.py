"""A data format and a kind of field unknown to the program, added as a researcher would: one file with two entries.

    PYTHONPATH=. python tests/third_kind.py --dataset_type numpy --field plain --datadir ... --expname ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import run_nerf
from nerf import formats
from nerf.cameras import Cameras
from nerf.fields import kinds
from nerf.fields.interface import Changes, Field, Losses, Numbers, Sampler, Target, Training
from nerf.flag_types import Flag, number, whole
from nerf.runtime import ranks
from nerf.runtime.errors import UserError
from nerf.scene import Images, Scene, centred_intrinsics
from nerf.space import Bounded
from run_nerf_helpers import Composite, Rays, RenderResult

DEPTH = 4.0  # of the wall of one colour that every ray hits

HELD_OUT = Flag('held_out', 'images at the end of the file that are test images', whole(1), 2, decides_data=True)
PLAIN_START = Flag('plain_start', 'grey level in which the field begins', number(0.0, 1.0), 0.5)
PLAIN_BREAKS = Flag('plain_breaks', 'step after which the loss is NaN', whole(0), 10 ** 6)
BLUE = (0.1, 0.3, 0.9)  # colour of all images of `write_scene`


# Data format


def write_scene(folder: Path, count: int = 6, size: tuple[int, int] = (12, 14), colour=BLUE) -> Path:
    """Writes scene.npz, `count` images [H, W, 3] of one colour, to a folder; returns the folder."""
    poses = np.tile(np.eye(4)[:3], (count, 1, 1))
    poses[:, 2, 3] = DEPTH
    images = np.broadcast_to(np.rint(255 * np.array(colour)), (count, *size, 3)).astype(np.uint8)
    folder.mkdir(parents=True)
    np.savez(folder / 'scene.npz', images=images, poses=poses.astype(np.float32), focal=20.0)
    return folder


def load(args: argparse.Namespace) -> Scene:
    """Scene of a file scene.npz."""
    path = Path(args.datadir) / 'scene.npz'
    if not path.is_file():
        raise UserError(f'{path} does not exist; check datadir')
    with np.load(path) as file:
        images, poses, focal = file['images'], file['poses'], float(file['focal'])
    cameras = Cameras.of_one_kind(poses, centred_intrinsics(*images.shape[1:3], focal), *images.shape[1:3])
    i_train, i_test = np.split(np.arange(len(images)), [-args.held_out])
    return Scene(Images.of_one_size(images), cameras, cameras.take(i_train[:2]), Bounded(2.0, 6.0), args.white_bkgd,
                 i_train, i_test, i_test)


# Kind of field


class PlainField(Field):
    """Field of one colour, which is learned; each ray ends at one depth."""

    shape_flags = ()

    def __init__(self, grey: float):
        super().__init__()
        self.colour = nn.Parameter(torch.full((3,), grey))

    def density(self, points: Tensor) -> Tensor:
        return torch.ones_like(points[..., 0])

    def sampler(self) -> Sampler:
        return PlainSampler(self, tile=50)

    def weights(self) -> dict:
        return {'plain_state_dict': self.state_dict()}

    def load_weights(self, checkpoint: dict) -> None:
        if 'plain_state_dict' not in checkpoint:
            raise UserError('it has no plain_state_dict')
        self.load_state_dict(checkpoint['plain_state_dict'])

    def describe(self) -> str:
        return f'plain     grey {self.colour[0].item():g} at first'


class PlainSampler(Sampler):
    """One sample a ray, at DEPTH."""

    name = 'wall'

    def render(self, rays: Rays) -> RenderResult:
        ones = torch.ones_like(rays.near[:, 0])
        rgb = self.field.colour.expand(len(ones), 3)
        return RenderResult(Composite(rgb, ones / DEPTH, ones, ones[:, None], DEPTH * ones), None, None)


class PlainTraining(Training):
    """Training by mean absolute differences, with noise, and with a penalty on bright colours."""

    captured, lrate_decay = False, 1.0

    def __init__(self, field: PlainField, breaks: int = 10 ** 6):
        super().__init__(field)
        self.steps, self.breaks = 0, breaks

    def random_numbers(self, n_rays: int, generator: torch.Generator) -> Numbers:
        return (torch.rand(n_rays, 3, generator=generator), None)

    def losses(self, rays: Rays, numbers: Numbers, target: Target) -> Losses:
        shown = self.field.sampler().render(rays).final.rgb + 0.1 * (numbers[0] - 0.5)
        photometric = (shown - target.rgb).abs().mean()
        if self.steps >= self.breaks:
            photometric = photometric * float('nan')
        return Losses({'photometric': photometric, 'brightness': 0.001 * self.field.colour.sum()},
                      {'rays': torch.tensor(float(len(shown)))})

    def after_step(self, step: int, notes: dict[str, Tensor]) -> Changes:
        self.steps += 1
        return Changes([f'step {step}: {notes["rays"]:.0f} rays'] if step % 10 == 0 else [])

    def scalars(self) -> dict[str, float]:
        return {'blue': self.field.colour[2].item()}

    def state(self) -> dict:
        return {'plain_steps': self.steps}

    def load_state(self, state: dict) -> None:
        self.steps = int(state['plain_steps'])


# Entries

FORMAT = formats.Format('numpy', 'images and poses in one .npz', load, flags=(HELD_OUT,), defaults={'N_rand': 40})
KIND = kinds.FieldKind(
    'plain', 'a field of one colour', build=lambda args, scene, device, dtype: PlainField(args.plain_start),
    train=lambda args, field: PlainTraining(field, args.plain_breaks), flags=(PLAIN_START, PLAIN_BREAKS),
    defaults={'lrate': 0.02, 'lrate_decay': None}, follows_run=('i_testset', 'i_video'))


def register() -> None:
    """Adds both entries to the registries."""
    formats.FORMATS[FORMAT.name], kinds.FIELDS[KIND.name] = FORMAT, KIND


if __name__ == '__main__':
    register()
    ranks.leave(run_nerf.main())
