"""From fields and cameras to pictures: views, paths, test metrics."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import ranks
from checkpoints import whole_file
from errors import UserError
from images import compare, video_writer, write_png
from radiance_field import RadianceField
from run_nerf_helpers import (
    NO_DRAWS, Composite, Draws, NeRF, Rays, RenderResult, Sampling, bundle_rays, coarse_depths, filled_rows,
    fine_depths, get_rays, ndc_disparity, render_pass, render_rays, to8b,
)
from scene import Scene

MARGIN = 2  # pixels around what was seen where the fine pass is not left out
RAYS = 8  # where rays are left out, a multiple of this stays: see radiance_field.ROWS


@dataclass
class Model:
    """The two fields and how rays go through them."""

    coarse: RadianceField
    fine: RadianceField | None  # None: one pass only
    sampling: Sampling
    chunk: int  # most rays rendered at once
    view_chunk: int | None = None  # of views, for which no activations are kept; None: as many

    def networks(self) -> dict[str, NeRF]:
        fields = {'coarse': self.coarse, 'fine': self.fine}
        return {name: field.network for name, field in fields.items() if field is not None}

    def parameters(self) -> list[torch.nn.Parameter]:
        """Coarse first, as the reference code's optimiser counts them."""
        return [parameter for network in self.networks().values() for parameter in network.parameters()]

    @property
    def device(self) -> torch.device:
        return next(self.coarse.parameters()).device

    def tiles(self, n_rays: int, of_view: bool = False) -> list[tuple[int, int]]:
        """(start, end) of the pieces in which n_rays are rendered; how they are cut does not change the result."""
        chunk = (of_view and self.view_chunk) or self.chunk
        return [(start, min(start + chunk, n_rays)) for start in range(0, n_rays, chunk)]

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
    """Renders what a camera [3, 4] sees, at 1/factor of the size; `bar` counts its rays.

    The fine pass is left out where it would show nothing, as far as `_seen` can tell.
    """
    H, W, _ = scene.scaled(factor)
    rays, sampling = view_rays(model, scene, pose, factor), model.sampling
    bar = tqdm(disable=True) if bar is None else bar

    def columns(one: Composite) -> torch.Tensor:
        disparity = ndc_disparity(one) if scene.ndc else one.disp
        return torch.cat([one.rgb, disparity[:, None], one.acc[:, None]], -1)  # [R, 5]

    def view(image: torch.Tensor, *rest) -> View:
        image = image.reshape(H, W, 5).cpu().numpy()
        return View(image[..., :3], image[..., 3], image[..., 4], *rest)

    coarse, z_std = [], []
    for start, end in model.tiles(len(rays.near), of_view=True):
        part = rays.slice(start, end)
        z = coarse_depths(part, sampling)
        coarse.append(render_pass(model.coarse, part, z, sampling.white_bkgd))
        if model.fine is not None:
            z_std.append(fine_depths(z, coarse[-1].weights, sampling.N_importance).std(-1, unbiased=False))
    coarse = Composite(*map(torch.cat, zip(*coarse)))
    shown = columns(coarse)
    if model.fine is None:
        bar.update(len(shown))
        return view(shown)
    rows = filled_rows(_seen(model, rays, coarse.acc > 0, H, W), RAYS)
    final = shown.clone()
    bar.update(len(shown) - len(rows))
    for part in (rows[start:end] for start, end in model.tiles(len(rows), of_view=True)):
        z = coarse_depths(rays.take(part), sampling)
        z = torch.cat([z, fine_depths(z, coarse.weights[part], sampling.N_importance)], -1).sort(-1).values
        final[part] = columns(render_pass(model.fine, rays.take(part), z, sampling.white_bkgd))
        bar.update(len(part))
    return view(final, view(shown), torch.cat(z_std).reshape(H, W).cpu().numpy())


def _seen(model: Model, rays: Rays, seen: torch.Tensor, H: int, W: int) -> torch.Tensor:
    """Which of a picture's rays [H * W] the fine pass is needed for.

    Those that the coarse pass has seen something on, those on which the fine field has density at any of the coarse
    depths, and their neighbours up to MARGIN pixels away. Of the others it would show nothing, but for what is thinner
    than the coarse depths are apart and that far from everything else.
    """
    seen = seen.clone()
    rows = filled_rows(~seen, RAYS)
    for part in (rows[start:end] for start, end in model.tiles(len(rows), of_view=True)):
        some = rays.take(part)
        seen[part] |= render_pass(model.fine, some, coarse_depths(some, model.sampling), False).acc > 0
    return torch.nn.functional.max_pool2d(seen.float().reshape(1, H, W), 2 * MARGIN + 1, 1, MARGIN).flatten() > 0


def render_path(model: Model, scene: Scene, poses: np.ndarray, factor: int = 0, savedir: Path | None = None,
                video: Path | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Renders a view from each pose, with a progress bar; one is written while the next is rendered.

    Several processes of a run share the views out, all get them, and the first writes.

    Args:
        model: the trained fields.
        scene: its intrinsics and bounds.
        poses: [N, 3, 4] camera-to-world.
        factor: render at 1/factor of the size.
        savedir: where each view is written as 000.png, ... as soon as it is done, and an earlier render's are removed.
        video: where they become a video.

    Returns:
        rgbs [N, h, w, 3] uint8, disparities [N, h, w] and opacities [N, h, w] float32.
    """
    H, W, _ = scene.scaled(factor)
    rgbs = np.empty((len(poses), H, W, 3), np.uint8)
    disps, accs = np.empty((2, len(poses), H, W), np.float32)
    append, written = None, []

    def write(i: int) -> None:
        nonlocal append
        if i == 0:
            append = opened.enter_context(video_file(video)) if video else None
            if savedir:
                empty(savedir)
        if savedir:
            save_png(savedir / f'{i:03d}.png', rgbs[i])
        if append:
            append(rgbs[i])

    def check_written() -> None:
        error = next(filter(None, (job.exception() for job in written)), None)
        if ranks.agreed(error is not None):
            raise error or UserError('the first process could not write a view')

    with ExitStack() as opened, ThreadPoolExecutor(1) as writer, tqdm(
            total=len(poses) * H * W, desc='rendering', unit='ray', unit_scale=True, disable=None, leave=False) as bar:
        for i in range(0, len(poses), ranks.count()):  # a view for each process; surplus ones are dropped
            view = render_view(model, scene, poses[min(i + ranks.rank(), len(poses) - 1)], factor, bar)
            check_written()
            views = ranks.gathered(torch.from_numpy(np.dstack([view.rgb, view.disp, view.acc])))[:len(poses) - i]
            for n, shown in enumerate(views, i):
                rgbs[n], disps[n], accs[n] = to8b(shown[..., :3]), shown[..., 3], shown[..., 4]
            written = [writer.submit(write, n) for n in range(i, i + len(views)) if ranks.first()]
        check_written()
    return rgbs, disps, accs


def empty(folder: Path) -> None:
    """Removes the pictures and numbers of an earlier render, which a smaller one would leave in between."""
    for pattern in ('*.png', '*.mp4', 'metrics.json'):
        for path in folder.glob(pattern):
            path.unlink()


def save_png(path: Path, picture: np.ndarray) -> None:
    with whole_file(path) as partial:
        write_png(partial, picture)


@contextmanager
def video_file(path: Path):
    """`video_writer`, but the file is there only once it is whole."""
    with whole_file(path) as partial, video_writer(partial) as append:
        yield append


def save_video(path: Path, frames: np.ndarray) -> None:
    with video_file(path) as append:
        for frame in frames:
            append(frame)


def save_metrics(folder: Path, step: int, scene: Scene, rgbs: np.ndarray) -> dict[str, float]:
    """Compares the rendered test views as saved, [N, H, W, 3] uint8, with the images; writes and returns the mean."""
    views = tqdm(zip(rgbs, scene.i_test), 'measuring', len(rgbs), disable=None, leave=False)
    rows = [{'file': f'{n:03d}.png', **compare(rgb.astype(np.float32) / 255.0, scene.target(i))}
            for n, (rgb, i) in enumerate(views)]
    mean = {key: float(np.mean([row[key] for row in rows])) for key in ('psnr', 'ssim')}
    with whole_file(folder / 'metrics.json') as partial:
        partial.write_text(json.dumps({'step': step, 'mean': mean, 'images': rows}, indent=1) + '\n', encoding='utf-8')
    return mean
