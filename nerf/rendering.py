"""From a model and cameras to pictures: views drawn tile by tile, paths of views, and test metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from nerf.cameras import Cameras
from nerf.exposure import MEASURED, right_halves
from nerf.fields.interface import Model, Picture
from nerf.files.images import save_png, video_file
from nerf.files.whole_file import whole_file
from nerf.metrics import compare
from nerf.pixels import smooth_edges
from nerf.runtime import ranks
from nerf.runtime.errors import UserError
from nerf.scene import Scene
from run_nerf_helpers import Rays, disparity, ndc_disparity, to8b


class View(NamedTuple):
    """What a camera sees: [H, W] or [H, W, 3] float32."""

    rgb: np.ndarray
    disp: np.ndarray  # 1 / depth, in NDC too
    acc: np.ndarray
    passes: dict[str, View]  # what earlier passes alone would have shown, by name
    spread: np.ndarray | None = None  # of the samples along the ray, where the model knows one


def view_rays(model: Model, scene: Scene, camera: Cameras) -> Rays:
    """The rays of one camera, row by row, on the model's device."""
    camera = camera.to(model.device)
    return scene.rays(*camera.view_rays(0), camera.bounds)


@torch.inference_mode()
def draw_view(model: Model, scene: Scene, camera: Cameras) -> Iterator[Picture]:
    """Draws what one camera sees and yields the picture after each tile of rays, at last when it is whole.

    `render_view` takes the last one. Whoever shows a picture while it is drawn takes `as_view` of any,
    and stops by not asking for the next.
    """
    yield from model.show(view_rays(model, scene, camera), *camera.size(0))


def as_view(picture: Picture, scene: Scene, height: int, width: int) -> View:
    """A picture as it is now, as arrays of their own, which drawing on does not change; this waits for the GPU."""
    disp = (ndc_disparity if scene.ndc else disparity)(picture.depth, picture.acc)
    rgb, disp, acc, spread = (
        None if part is None else part.to('cpu', copy=True).numpy().reshape(height, width, *part.shape[1:])
        for part in (picture.rgb, disp, picture.acc, picture.spread))
    return View(rgb, disp, acc, {name: as_view(part, scene, height, width) for name, part in picture.passes.items()},
                spread)


def render_view(model: Model, scene: Scene, camera: Cameras, bar: tqdm | None = None) -> View:
    """Renders what one camera sees, with smooth edges where the model has them; `bar` counts its pixels."""
    done = 0
    for picture in draw_view(model, scene, camera):
        if bar is not None and not bar.disable:
            now = int(picture.final.sum())  # waits for the GPU
            bar.update(now - done)
            done = now
    for _ in smooth_edges(model, scene, camera, picture):
        pass
    return as_view(picture, scene, *camera.size(0))


@contextmanager
def surveyed(model: Model, scene: Scene, cache: Path | None = None):
    """Lets a model prepare for pictures of a scene; its weights must not change meanwhile. Rank 0 alone uses files."""
    model.survey(scene.seen_box(), cache if ranks.first() else None)
    try:
        yield
    finally:
        model.forget_survey()


class Rendered(NamedTuple):
    """Views of several cameras."""

    rgbs: list[np.ndarray]  # [H, W, 3] uint8 each
    disps: list[np.ndarray]  # [H, W] float32 each
    accs: list[np.ndarray]  # [H, W] float32 each


def render_path(model: Model, scene: Scene, cameras: Cameras, savedir: Path | None = None,
                video: Path | None = None, cache: Path | None = None) -> Rendered:
    """Surveys the model and renders a view of each camera, with a progress bar; one is written while the next is
    rendered.

    Several processes share the views, all get them, and rank 0 writes.

    Args:
        model: what to render.
        scene: its bounds.
        cameras: of one size where there is to be a video.
        savedir: where each view is written as 000.png, ... as soon as it is done, and an earlier render's are removed.
        video: where they become a video.
        cache: where it is kept what the survey found.
    """
    rendered, written, append = Rendered([], [], []), [], None

    def write(i: int) -> None:
        nonlocal append
        if i == 0:
            append = opened.enter_context(video_file(video)) if video else None
            if savedir:
                _remove_earlier(savedir)
        if savedir:
            save_png(savedir / f'{i:03d}.png', rendered.rgbs[i])
        if append:
            append(rendered.rgbs[i])

    def check_written() -> None:
        error = next(filter(None, (job.exception() for job in written)), None)
        if ranks.maximum(error is not None):
            raise error or UserError('rank 0 could not write a view')

    with surveyed(model, scene, cache), ExitStack() as opened, ThreadPoolExecutor(1) as writer, tqdm(
            total=int(cameras.sizes.prod(1).sum()), desc='rendering', unit='ray', unit_scale=True, disable=None,
            leave=False) as bar:
        for start in range(0, len(cameras), ranks.count()):  # a view for each process; surplus ones are dropped
            mine = min(start + ranks.rank(), len(cameras) - 1)
            view = render_view(model, scene, cameras.take([mine]), bar)
            check_written()
            for shown in _from_all(view, cameras.sizes[start:start + ranks.count()].tolist()):
                rendered.rgbs.append(to8b(shown[..., :3]))
                rendered.disps.append(shown[..., 3])
                rendered.accs.append(shown[..., 4])
            written = [writer.submit(write, i) for i in range(start, len(rendered.rgbs)) if ranks.first()]
        check_written()
    return rendered


def _from_all(view: View, sizes: list[list[int]]) -> list[np.ndarray]:
    """The views that the processes have rendered, in the order of their ranks: [H, W, 5] colour, disparity, opacity.

    Args:
        view: this process's.
        sizes: height and width of each.
    """
    mine = torch.from_numpy(np.dstack([view.rgb, view.disp, view.acc]).reshape(-1, 5))
    longest = max([len(mine), *(height * width for height, width in sizes)])
    padded = torch.nn.functional.pad(mine, (0, 0, 0, longest - len(mine)))
    return [part[:height * width].reshape(height, width, 5).numpy()
            for part, (height, width) in zip(ranks.gathered(padded), sizes)]


def _remove_earlier(folder: Path) -> None:
    """Removes the pictures and numbers of an earlier render, which a smaller one would leave in between."""
    for pattern in ('*.png', '*.mp4', 'metrics.json'):
        for path in folder.glob(pattern):
            path.unlink()


def save_metrics(folder: Path, step: int, scene: Scene, rgbs: list[np.ndarray]) -> dict[str, float]:
    """Compares the rendered test views as saved, [H, W, 3] uint8 each, with the images; writes and returns the mean."""
    views = tqdm(zip(rgbs, scene.i_test), 'measuring', len(rgbs), disable=None, leave=False)
    measured = [measure(scene, rgb, i) for rgb, i in views]
    mean = {key: float(np.mean([metrics[key] for metrics, _ in measured])) for key in measured[0][0]}
    rows = [{'file': f'{n:03d}.png', **metrics, **fitted} for n, (metrics, fitted) in enumerate(measured)]
    how = {'measured_on': MEASURED} if scene.exposure else {}
    with whole_file(folder / 'metrics.json') as partial:
        partial.write_text(json.dumps({'step': step, **how, 'mean': mean, 'images': rows}, indent=1) + '\n',
                           encoding='utf-8')
    return mean


def measure(scene: Scene, rgb: np.ndarray, i: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The metrics of a rendered view, [H, W, 3] uint8, of image i; and the gain that was fitted before, if any."""
    shown, target = rgb.astype(np.float32) / 255.0, scene.target(i)
    if not scene.exposure:
        return compare(shown, target), {}
    shown, target, gain = right_halves(shown, target, scene.background(i))
    return compare(shown, target), {'gain': gain.tolist()}
