"""From fields and cameras to pictures: views, paths, test metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from nerf.runtime import ranks
from nerf.files.checkpoints import whole_file
from nerf.runtime.errors import UserError
from nerf.files.images import compare, video_writer, write_png
from nerf.fields.radiance_field import RadianceField
from run_nerf_helpers import (
    NO_DRAWS, Composite, Draws, NeRF, Rays, RenderResult, Sampling, bundle_rays, coarse_depths, filled_rows,
    fine_depths, get_rays, ndc_disparity, raw2outputs, render_pass, render_rays, to8b,
)
from nerf.scene import Scene

MARGIN = 2  # pixels around what was seen in which more of it is looked for
STRETCHES = 3  # of a ray, front to back
HIDDEN = 9.2  # optical depth behind which samples are left out: 1e-4 of the light gets there
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

    Rays that show nothing are left out: the fields are asked for density at the coarse depths of one ray in five, and
    what is found is followed until MARGIN pixels around it are empty. Only what is thinner than the coarse depths are
    apart, or has no five pixels in a line and lies between the asked rays away from all else, can be lost.
    """
    H, W, _ = scene.scaled(factor)
    bar = tqdm(disable=True) if bar is None else bar
    picture = _Picture(model, view_rays(model, scene, pose, factor), scene.ndc, bar)
    if model.fine is None:
        picture.draw_coarse(torch.ones_like(picture.seen))
        return picture.view(H, W)
    asked, drawn = _lattice(H, W).to(model.device), torch.zeros_like(picture.seen)
    picture.draw_coarse(asked)
    picture.look_closer(asked & ~picture.seen)
    while (rest := _around(picture.seen, H, W) & ~drawn).any():
        picture.draw_coarse(rest & ~asked)
        picture.draw_fine(rest)
        drawn |= rest
    return picture.view(H, W)


def _lattice(H: int, W: int) -> torch.Tensor:
    """[H * W]: one pixel in five, a knight's move apart: one in any five of a row, a column or a diagonal."""
    return ((torch.arange(H)[:, None] + 2 * torch.arange(W)) % 5 == 0).flatten()


def _around(pixels: torch.Tensor, H: int, W: int) -> torch.Tensor:
    """Those of a mask [H * W] and their neighbours up to MARGIN away."""
    return torch.nn.functional.max_pool2d(pixels.float().reshape(1, H, W), 2 * MARGIN + 1, 1, MARGIN).flatten() > 0


class _Picture:
    """A view of N rays while it is drawn: background at first."""

    def __init__(self, model: Model, rays: Rays, ndc: bool, bar: tqdm):
        self.model, self.rays, self.ndc, self.bar = model, rays, ndc, bar
        white, n_rays, device = float(model.sampling.white_bkgd), len(rays.near), model.device
        self.seen = torch.zeros(n_rays, dtype=torch.bool, device=device)  # rays on which something was found
        self.weights = torch.zeros(n_rays, model.sampling.N_samples, device=device)  # of the coarse pass
        self.coarse = torch.tensor([white, white, white, 0.0, 0.0], device=device).repeat(n_rays, 1)  # see _columns
        self.final, self.n_drawn = self.coarse.clone(), 0
        if model.fine is not None:
            z = coarse_depths(rays.slice(0, 1), model.sampling)
            unguided = fine_depths(z, torch.zeros_like(z), model.sampling.N_importance)
            self.z_std = unguided.std(-1, unbiased=False).repeat(n_rays)

    def draw_coarse(self, mask: torch.Tensor) -> None:
        """Draws the coarse pass on the rays of a mask [N]; all methods mark those on which they find something."""
        for rows, rays, z in self._tiles(mask):
            shown = render_pass(self.model.coarse, rays, z, self.model.sampling.white_bkgd)
            self.weights[rows], self.coarse[rows] = shown.weights, self._columns(shown)
            self._mark(rows, shown)

    def look_closer(self, mask: torch.Tensor) -> None:
        """Asks the fine field at the coarse depths, and draws nothing."""
        for rows, rays, z in self._tiles(mask):
            self._mark(rows, render_pass(self.model.fine, rays, z, False))

    def draw_fine(self, mask: torch.Tensor) -> None:
        """Draws the fine pass, guided by the coarse pass."""
        sampling = self.model.sampling
        for rows, rays, z in self._tiles(mask):
            z_fine = fine_depths(z, self.weights[rows], sampling.N_importance)
            z = torch.cat([z, z_fine], -1).sort(-1).values
            shown = _front_to_back(self.model.fine, rays, z, sampling.white_bkgd)
            self.final[rows], self.z_std[rows] = self._columns(shown), z_fine.std(-1, unbiased=False)
            self._mark(rows, shown)
            self.bar.update(len(rows))
            self.n_drawn += len(rows)

    def _tiles(self, mask: torch.Tensor) -> Iterator[tuple[torch.Tensor, Rays, torch.Tensor]]:
        """(indices, rays, coarse depths) of a mask's rays, piece by piece."""
        rows = filled_rows(mask, RAYS)
        for part in (rows[start:end] for start, end in self.model.tiles(len(rows), of_view=True)):
            rays = self.rays.take(part)
            yield part, rays, coarse_depths(rays, self.model.sampling)

    def _mark(self, rows: torch.Tensor, shown: Composite) -> None:
        self.seen[rows] |= shown.acc != 0  # NaN is to be seen too

    def _columns(self, shown: Composite) -> torch.Tensor:
        """[R, 5]: colour, disparity and opacity."""
        disparity = ndc_disparity(shown) if self.ndc else shown.disp
        return torch.cat([shown.rgb, disparity[:, None], shown.acc[:, None]], -1)

    def view(self, H: int, W: int) -> View:
        """The picture as it is, which is to be the last."""
        self.bar.update(H * W - self.n_drawn)
        coarse, final = (View(image[..., :3], image[..., 3], image[..., 4]) for image in (
            columns.reshape(H, W, 5).cpu().numpy() for columns in (self.coarse, self.final)))
        if self.model.fine is None:
            return coarse
        return final._replace(coarse=coarse, z_std=self.z_std.reshape(H, W).cpu().numpy())


def _front_to_back(field: RadianceField, rays: Rays, z: torch.Tensor, white_bkgd: bool) -> Composite:
    """`render_pass`, but samples that less than 1e-4 of the light gets through to are left out."""
    n_rays, n_samples = z.shape
    raw = torch.zeros(n_rays, n_samples, 4, device=z.device)
    optical = torch.zeros(n_rays, device=z.device)  # in front of the samples to come
    spans = z.diff(append=z[:, -1:]) * rays.directions.norm(dim=-1, keepdim=True)
    step = -(-n_samples // STRETCHES)
    for samples in (slice(start, start + step) for start in range(0, n_samples, step)):
        lit = optical < HIDDEN
        rows = filled_rows(lit, RAYS)
        if len(rows) == 0:
            break
        some = rays.take(rows)
        points = some.origins[:, None] + some.directions[:, None] * z[rows, samples, None]
        asked = field(points, some.viewdirs)[..., :4]
        raw[rows, samples] = torch.where(lit[rows, None, None], asked, 0.0)  # not of those that fill up
        optical += (raw[:, samples, 3].relu() * spans[:, samples]).sum(-1)
    return raw2outputs(raw, z, rays.directions, white_bkgd=white_bkgd)


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
