"""From a sampler and cameras to pictures: views drawn tile by tile, smooth edges, paths of views, and test metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nerf.cameras import Cameras
from nerf.exposure import MEASURED, right_halves
from nerf.fields.interface import Sampler, pieces
from nerf.files.images import save_png, video_file
from nerf.files.whole_file import whole_file
from nerf.metrics import compare
from nerf.runtime import ranks
from nerf.runtime.errors import UserError
from nerf.scene import Scene
from nerf.space import Space
from run_nerf_helpers import Composite, Rays, to8b

EDGE = 0.05  # difference of a colour from a neighbour's from which on a pixel is at an edge


class Picture(NamedTuple):
    """View of N rays while it is drawn, row by row. Its tensors change in place until the last tile is done."""
    rgb: Tensor  # [N, 3]
    depth: Tensor  # [N] expected depth, not divided by opacity
    acc: Tensor  # [N] opacity
    spread: Tensor  # [N] standard deviation of the fine samples' depths; 0 without a fine pass
    final: Tensor  # [N] bool: rays that are done
    passes: dict[str, Picture]  # pictures of earlier passes alone, by name

    @classmethod
    def background(cls, n_rays: int, sampler: Sampler, passes: tuple[str, ...] = ()) -> Picture:
        """Picture of the background alone: white or black, depth and opacity 0."""
        where = {'device': sampler.device}
        return cls(torch.full((n_rays, 3), float(sampler.white_bkgd), **where), *torch.zeros(3, n_rays, **where),
                   torch.zeros(n_rays, dtype=torch.bool, **where),
                   {name: cls.background(n_rays, sampler) for name in passes})

    def put(self, rows: Tensor | slice, shown: Composite) -> None:
        """Draws the results of the rays `rows`."""
        self.rgb[rows], self.depth[rows], self.acc[rows] = shown.rgb, shown.depth, shown.acc


class View(NamedTuple):
    """Picture as arrays, [H, W] or [H, W, 3] float32."""
    rgb: np.ndarray
    disp: np.ndarray  # 1 / depth in the world
    acc: np.ndarray  # opacity
    spread: np.ndarray  # standard deviation of the fine samples' depths
    passes: dict[str, View]  # views of earlier passes alone, by name


def view_rays(sampler: Sampler, space: Space, camera: Cameras) -> Rays:
    """Rays of one camera, row by row, on the sampler's device."""
    camera = camera.to(sampler.device)
    return space.rays(*camera.view_rays(0), camera.bounds)


@torch.inference_mode()
def draw(sampler: Sampler, rays: Rays) -> Iterator[Picture]:
    """Draws N rays and yields the picture after each tile. The last picture is whole; `as_view` copies any of them."""
    picture = Picture.background(len(rays.near), sampler, sampler.passes)
    for tile in pieces(len(rays.near), sampler.tile):
        shown = sampler.render(rays.part(tile))
        picture.put(tile, shown.final)
        for name in sampler.passes:
            picture.passes[name].put(tile, shown.coarse)
        if shown.z_std is not None:
            picture.spread[tile] = shown.z_std
        picture.final[tile] = True
        yield picture


def as_view(picture: Picture, space: Space, height: int, width: int) -> View:
    """Copy of a picture as arrays. It waits for the GPU."""
    disp = space.disparity(picture.depth, picture.acc)
    parts = (part.to('cpu', copy=True).numpy().reshape(height, width, *part.shape[1:])
             for part in (picture.rgb, disp, picture.acc, picture.spread))
    return View(*parts, {name: as_view(part, space, height, width) for name, part in picture.passes.items()})


def render_view(sampler: Sampler, space: Space, camera: Cameras, bar: tqdm | None = None) -> View:
    """View of one camera, with smooth edges if the sampler supersamples. `bar` counts its pixels."""
    done = 0
    for picture in draw(sampler, view_rays(sampler, space, camera)):
        if bar is not None and not bar.disable:
            done, before = int(picture.final.sum()), done  # waits for the GPU
            bar.update(done - before)
    for _ in smooth_edges(sampler, space, camera, picture):
        pass
    return as_view(picture, space, *camera.size(0))


@torch.inference_mode()
def draw_pixels(sampler: Sampler, space: Space, camera: Cameras, picture: Picture, index: Tensor, side: int = 1) -> int:
    """Draws pixels [N], counted row by row, into one camera's picture; returns the number of rays. A pixel is the mean
    of side x side rays, spread evenly over it around its own ray, or stays as it is if the space lacks these rays."""
    width, camera = camera.size(0)[1], camera.to(sampler.device)
    steps = (torch.arange(side, device=sampler.device) + 0.5) / side - 0.5
    down, right = torch.cartesian_prod(steps, steps).unbind(-1)
    row, column = index[:, None] // width + down, index[:, None] % width + right  # [N, side * side]
    origins, directions = camera.rays(torch.zeros_like(row, dtype=torch.long), row, column)
    seen = space.has_rays(directions).all(-1)
    index, origins, directions = index[seen], origins[seen], directions[seen]
    if not len(index):
        return 0
    rays = space.rays(origins, directions, camera.bounds)
    *_, drawn = draw(sampler, rays)
    for whole, part in zip((picture.rgb, picture.depth, picture.acc), (drawn.rgb, drawn.depth, drawn.acc)):
        whole[index] = part.view(len(index), side * side, *part.shape[1:]).mean(1)
    picture.final[index] = True
    return len(rays.near)


def edges(picture: Picture, height: int, width: int) -> Tensor:
    """Pixels [N] at edges, counted row by row: a colour channel differs from a neighbour's by more than EDGE."""
    rgb = picture.rgb.view(height, width, 3)
    is_edge = torch.zeros(height, width, dtype=torch.bool, device=rgb.device)
    for axis in (0, 1):
        size = rgb.shape[axis] - 1
        change = ((rgb.narrow(axis, 1, size) - rgb.narrow(axis, 0, size)).abs() > EDGE).any(-1)
        is_edge.narrow(axis, 0, size).logical_or_(change)
        is_edge.narrow(axis, 1, size).logical_or_(change)
    return is_edge.flatten().nonzero()[:, 0]  # waits for the GPU


def smooth_edges(sampler: Sampler, space: Space, camera: Cameras, picture: Picture) -> Iterator[int]:
    """Draws the pixels at edges of a whole picture again, with `supersample` x `supersample` rays each, and yields the
    number of rays of each tile. A sampler with supersample 1 has none."""
    if (side := sampler.supersample) > 1:
        index = edges(picture, *camera.size(0))
        for tile in pieces(len(index), max(sampler.tile // side ** 2, 1)):
            yield draw_pixels(sampler, space, camera, picture, index[tile], side)


class Rendered(NamedTuple):
    """Views of several cameras, for files."""
    rgbs: list[np.ndarray]  # [H, W, 3] uint8 each
    disps: list[np.ndarray]  # [H, W] float32 each
    accs: list[np.ndarray]  # [H, W] float32 each


def render_path(sampler: Sampler, space: Space, cameras: Cameras, savedir: Path | None = None,
                video: Path | None = None) -> Rendered:
    """Renders a view of each camera, with a progress bar. Each is written while the next is rendered: as 000.png, ...
    to `savedir`, where pictures of an earlier render are removed, and, for cameras of one size, to `video`. Several
    processes share the views; all of them get all views, and rank 0 writes."""
    rendered, written, append = Rendered([], [], []), [], None

    def write(i: int) -> None:
        nonlocal append
        if i == 0 and video:
            append = opened.enter_context(video_file(video))
        if i == 0 and savedir:  # a shorter render would leave some files of an earlier one
            for path in (path for pattern in ('*.png', '*.mp4', 'metrics.json') for path in savedir.glob(pattern)):
                path.unlink()
        if savedir:
            save_png(savedir / f'{i:03d}.png', rendered.rgbs[i])
        if append:
            append(rendered.rgbs[i])

    def check_written() -> None:
        error = next(filter(None, (job.exception() for job in written)), None)
        if ranks.maximum(error is not None):
            raise error or UserError('rank 0 could not write a view')
    bar = tqdm(total=int(cameras.sizes.prod(1).sum()), desc='rendering', unit='ray', unit_scale=True, disable=None,
               leave=False)
    with ExitStack() as opened, ThreadPoolExecutor(1) as writer, bar:
        for start in range(0, len(cameras), ranks.count()):  # a view for each process; surplus ones are dropped
            mine = min(start + ranks.rank(), len(cameras) - 1)
            view = render_view(sampler, space, cameras.take([mine]), bar)
            check_written()
            for shown in _from_all(view, cameras.sizes[start:start + ranks.count()].tolist()):
                for views, part in zip(rendered, (to8b(shown[..., :3]), shown[..., 3], shown[..., 4])):
                    views.append(part)
            written = [writer.submit(write, i) for i in range(start, len(rendered.rgbs)) if ranks.first()]
        check_written()
    return rendered


def _from_all(view: View, sizes: list[list[int]]) -> list[np.ndarray]:
    """Views of all processes, in the order of ranks, from their sizes: [H, W, 5] colour, disparity and opacity."""
    mine = torch.from_numpy(np.dstack([view.rgb, view.disp, view.acc]).reshape(-1, 5))
    longest = max([len(mine), *(height * width for height, width in sizes)])
    padded = torch.nn.functional.pad(mine, (0, 0, 0, longest - len(mine)))
    return [part[:height * width].reshape(height, width, 5).numpy()
            for part, (height, width) in zip(ranks.gathered(padded), sizes)]


def save_metrics(folder: Path, step: int, sampler: Sampler, scene: Scene, rgbs: list[np.ndarray],
                 aligned: list[np.ndarray] | None = None) -> dict[str, float]:
    """Mean metrics of rendered test views, [H, W, 3] uint8 each as saved. It writes metrics.json beside them. Views of
    cameras that were aligned with their photographs have metrics of their own, psnr_aligned and so on."""
    views = tqdm(zip(rgbs, scene.i_test), 'measuring', len(rgbs), disable=None, leave=False)
    measured = [measure(scene, rgb, i) for rgb, i in views]
    for (metrics, _), rgb, i in zip(measured, aligned or [], scene.i_test):
        metrics |= {f'{name}_aligned': value for name, value in measure(scene, rgb, i)[0].items()}
    mean = {key: float(np.mean([metrics[key] for metrics, _ in measured])) for key in measured[0][0]}
    rows = [{'file': f'{n:03d}.png', **metrics, **fitted} for n, (metrics, fitted) in enumerate(measured)]
    how = {'sampler': sampler.name} | ({'measured_on': MEASURED} if scene.exposure else {})
    with whole_file(folder / 'metrics.json') as partial:
        partial.write_text(json.dumps({'step': step, **how, 'mean': mean, 'images': rows}, indent=1) + '\n',
                           encoding='utf-8')
    return mean


def measure(scene: Scene, rgb: np.ndarray, i: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Metrics of a rendered view of image i, [H, W, 3] uint8, and the gain that was fitted before, if any."""
    shown, target = rgb.astype(np.float32) / 255.0, scene.target(i)
    if not scene.exposure:
        return compare(shown, target), {}
    shown, target, gain = right_halves(shown, target, scene.background(i))
    return compare(shown, target), {'gain': gain.tolist()}
