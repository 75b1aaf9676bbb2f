"""Checks of a run's views while it trains: do held-out views keep up with training, and does each training view fit?"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from PIL import Image

from nerf.exposure import with_gain
from nerf.fields.interface import Sampler
from nerf.metrics import psnr
from nerf.rendering import render_view
from nerf.scene import Scene


@dataclass(frozen=True)
class CheckRules:
    """Numbers that decide what a run warns of, set by hand; results were looked at on alexander and fox_small."""

    behind: float = 6.0  # dB that held-out views lie below training
    views: int = 3  # newest single held-out views whose mean counts, because one view can be a hard one
    misfit: float = 8.0  # dB that a training view lies below the median of all
    side: int = 64  # pixels of the longer side of training views that are compared


class ViewChecks:
    """Checks of one run. Each speaks once. `training` is the PSNR of training in dB; None: it is unknown."""

    def __init__(self, scene: Scene, rules: CheckRules | None = None):
        self.scene, self.rules = scene, rules or CheckRules()
        self.behind: deque[float] = deque(maxlen=self.rules.views)
        self.fell_behind = self.misfitted = False

    def view(self, rgb: np.ndarray, i: int, training: float | None) -> list[str]:
        """Lines about a rendered held-out view of image i, [H, W, 3] uint8, and the views before it."""
        if training is None:
            return []
        self.behind.append(training - whole_psnr(self.scene, rgb, i))
        return self._keep_up(np.mean(self.behind), training) if len(self.behind) == self.rules.views else []

    def test_set(self, rgbs: list[np.ndarray], training: float | None) -> list[str]:
        """Lines about all rendered test views, [H, W, 3] uint8 each."""
        if training is None:
            return []
        held_out = np.mean([whole_psnr(self.scene, rgb, i) for rgb, i in zip(rgbs, self.scene.i_test)])
        return self._keep_up(training - held_out, training)

    def _keep_up(self, behind: float, training: float) -> list[str]:
        if self.fell_behind or behind < self.rules.behind:
            return []
        self.fell_behind = True
        return [f'warning: held-out views have {training - behind:.1f} dB and training {training:.1f} dB, so the scene '
                'holds for training views alone. Cameras do not agree, or views are too few or too far apart: estimate '
                'the cameras again, leave out blurred photographs, or take more between the others']

    def training_views(self, sampler: Sampler) -> list[str]:
        """A line that names training views that do not fit while most others do."""
        if self.misfitted:
            return []
        self.misfitted, scene = True, self.scene
        fits = np.array([small_psnr(scene, sampler, i, self.rules.side) for i in scene.i_train])
        usual = np.nanmedian(fits)
        wrong = np.flatnonzero(fits < usual - self.rules.misfit)
        if not len(wrong):
            return []
        named = ', '.join(f'{scene.name_of(scene.i_train[n])} ({fits[n]:.1f} dB)' for n in wrong)
        return [f'warning: training views that do not fit, though half of all have {usual:.1f} dB and more: {named}; '
                'their cameras are probably wrong, or something moved. Leave these photographs out']


def whole_psnr(scene: Scene, rgb: np.ndarray, i: int) -> float:
    """PSNR in dB of a whole rendered view of image i, [H, W, 3] uint8. In a scene with exposure a gain is fitted on all
    of it, as training views have gains too."""
    shown, target = rgb.astype(np.float32) / 255.0, scene.target(i)
    return psnr(with_gain(shown, target, scene.background(i))[0] if scene.exposure else shown, target)


def small_psnr(scene: Scene, sampler: Sampler, i: int, side: int) -> float:
    """PSNR in dB of image i, reduced to about `side` pixels; NaN if its mask leaves none."""
    factor = max(1, max(scene.images.sizes[i]) // side)
    camera = scene.cameras.take([i]).scaled(factor)
    height, width = camera.size(0)

    def reduced(picture: np.ndarray) -> np.ndarray:
        """Picture [height, width, C] of [H, W, C]."""
        channels = map(Image.fromarray, np.ascontiguousarray(np.moveaxis(picture, -1, 0), np.float32))
        return np.stack([channel.resize((width, height), Image.Resampling.BOX) for channel in channels], -1)

    shown, target = render_view(sampler, scene.space, camera).rgb, reduced(scene.target(i))
    if scene.exposure:
        shown = with_gain(shown, target, reduced(scene.background(i)))[0]
    kept = np.ones((height, width), bool)
    if scene.images.masks is not None:
        mask = scene.images.masks[scene.images.starts[i]:scene.images.starts[i + 1]].reshape(*scene.images.sizes[i], 1)
        kept = reduced(mask)[..., 0] > 0.5
    return psnr(shown[kept], target[kept]) if kept.any() else np.nan
