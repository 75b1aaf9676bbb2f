"""From fields and cameras to pictures: views, paths, test metrics."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from checkpoints import whole_file
from images import compare, write_png, write_video
from radiance_field import RadianceField
from run_nerf_helpers import (
    NO_DRAWS, Draws, NeRF, Rays, RenderResult, Sampling, bundle_rays, get_rays, ndc_disparity,
    render_rays, to8b,
)
from scene import Scene


@dataclass
class Model:
    """The two fields and how rays go through them."""

    coarse: RadianceField
    fine: RadianceField | None  # None: one pass only
    sampling: Sampling
    chunk: int  # most rays rendered at once

    def networks(self) -> dict[str, NeRF]:
        fields = {'coarse': self.coarse, 'fine': self.fine}
        return {name: field.network for name, field in fields.items() if field is not None}

    def parameters(self) -> list[torch.nn.Parameter]:
        """Coarse first, as the reference code's optimiser counts them."""
        return [parameter for network in self.networks().values() for parameter in network.parameters()]

    @property
    def device(self) -> torch.device:
        return next(self.coarse.parameters()).device

    def tiles(self, n_rays: int) -> list[tuple[int, int]]:
        """(start, end) of the pieces in which n_rays are rendered; how they are cut does not change the result."""
        return [(start, min(start + self.chunk, n_rays)) for start in range(0, n_rays, self.chunk)]

    @property
    def best(self) -> RadianceField:
        return self.coarse if self.fine is None else self.fine

    @torch.inference_mode()
    def density(self, points: np.ndarray) -> np.ndarray:
        """points [N, 3] to the best field's density [N], float32."""
        tile = self.chunk * (self.sampling.N_samples + self.sampling.N_importance)
        parts = torch.from_numpy(points).to(self.device).split(tile)
        return torch.cat([self.best.density(part) for part in parts]).cpu().numpy()

    def render(self, rays: Rays, draws: Draws = NO_DRAWS) -> RenderResult:
        """Renders rays all at once: the caller tiles them."""
        return render_rays(rays, self.coarse, self.fine, self.sampling, draws)


class View(NamedTuple):
    """What a camera sees: [H, W] or [H, W, 3] float32."""

    rgb: np.ndarray
    disp: np.ndarray  # 1 / depth, in NDC too
    acc: np.ndarray
    coarse: View | None = None  # what the coarse pass alone would have shown; None without a fine pass
    z_std: np.ndarray | None = None  # spread of the fine samples along the ray


def view_rays(model: Model, scene: Scene, pose: np.ndarray, factor: int = 0) -> Rays:
    """The rays of a camera [3, 4], row by row, at 1/factor of the size, on the model's device."""
    origins, directions = get_rays(*scene.scaled(factor), torch.from_numpy(pose).to(model.device))
    return bundle_rays(origins, directions, scene.near, scene.far, scene.ndc_camera)


@torch.inference_mode()
def render_view(model: Model, scene: Scene, pose: np.ndarray, factor: int = 0, bar: tqdm | None = None) -> View:
    """Renders what a camera [3, 4] sees, at 1/factor of the size; `bar` counts its rays."""
    rays = view_rays(model, scene, pose, factor)
    parts = []
    for start, end in model.tiles(len(rays.near)):
        seen = model.render(rays.slice(start, end))
        columns = [part for one in reversed(seen.passes())
                   for part in (one.rgb, (ndc_disparity(one) if scene.ndc else one.disp)[:, None], one.acc[:, None])]
        parts.append(torch.cat(columns if seen.z_std is None else [*columns, seen.z_std[:, None]], -1))
        if bar is not None:
            bar.update(end - start)
    image = torch.cat(parts).reshape(*scene.scaled(factor)[:2], -1).cpu().numpy()

    def view(first: int, *rest) -> View:
        return View(image[..., first:first + 3], image[..., first + 3], image[..., first + 4], *rest)
    return view(0) if image.shape[-1] == 5 else view(0, view(5), image[..., 10])


def render_path(model: Model, scene: Scene, poses: np.ndarray, factor: int = 0,
                savedir: Path | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Renders a view from each pose, with a progress bar.

    Args:
        model: the trained fields.
        scene: its intrinsics and bounds.
        poses: [N, 3, 4] camera-to-world.
        factor: render at 1/factor of the size.
        savedir: where each view is written as 000.png, ... as soon as it is done.

    Returns:
        rgbs [N, h, w, 3] uint8, disparities [N, h, w] and opacities [N, h, w] float32.
    """
    H, W, _ = scene.scaled(factor)
    rgbs = np.empty((len(poses), H, W, 3), np.uint8)
    disps, accs = np.empty((2, len(poses), H, W), np.float32)
    with tqdm(total=len(poses) * H * W, desc='rendering', unit='ray', unit_scale=True, disable=None,
              leave=False) as bar:
        for i, pose in enumerate(poses):
            view = render_view(model, scene, pose, factor, bar)
            rgbs[i], disps[i], accs[i] = to8b(view.rgb), view.disp, view.acc
            if savedir:
                save_png(savedir / f'{i:03d}.png', rgbs[i])
    return rgbs, disps, accs


def emptied(folder: Path) -> Path:
    """The folder without the pictures and numbers of an earlier render, which a smaller one would leave in between."""
    for pattern in ('*.png', '*.mp4', 'metrics.json'):
        for path in folder.glob(pattern):
            path.unlink()
    return folder


def save_png(path: Path, picture: np.ndarray) -> None:
    with whole_file(path) as partial:
        write_png(partial, picture)


def save_video(path: Path, frames: np.ndarray) -> None:
    with whole_file(path) as partial:
        write_video(partial, frames)


def save_metrics(folder: Path, step: int, scene: Scene, rgbs: np.ndarray) -> dict[str, float]:
    """Compares the rendered test views as saved, [N, H, W, 3] uint8, with the images; writes and returns the mean."""
    views = tqdm(zip(rgbs, scene.i_test), 'measuring', len(rgbs), disable=None, leave=False)
    rows = [{'file': f'{n:03d}.png', **compare(rgb.astype(np.float32) / 255.0, scene.target(i))}
            for n, (rgb, i) in enumerate(views)]
    mean = {key: float(np.mean([row[key] for row in rows])) for key in ('psnr', 'ssim')}
    with whole_file(folder / 'metrics.json') as partial:
        partial.write_text(json.dumps({'step': step, 'mean': mean, 'images': rows}, indent=1) + '\n', encoding='utf-8')
    return mean
