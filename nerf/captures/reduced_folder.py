"""Folders of photographs at 1/N of their size, beside those of the full size."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from nerf.files.images import read_image
from nerf.runtime.errors import UserError


def make_reduced(paths: Sequence[Path], names: Sequence[Path | str], folder: Path, factor: int,
                 read: Callable[[Path], np.ndarray] = read_image) -> list[Path]:
    """Writes photographs at 1/factor of their size into `folder`, which appears only when it is complete.

    Each new pixel is the mean of those that it covers, weighted by alpha where there is one.

    Args:
        paths: of the photographs.
        names: of the reduced ones, in `folder`; all end in .png.
        folder: to make.
        factor: their sides are divided by it, and rounded.
        read: what reads a photograph: [H, W, 3 or 4] uint8.

    Returns:
        The paths of the reduced photographs.

    Raises:
        UserError: a photograph cannot be read or is too small, or the folder cannot be written.
    """
    from PIL import Image
    from tqdm import tqdm

    def reduce(path: Path, name: Path | str) -> None:
        image = Image.fromarray(read(path))
        size = [round(side / factor) for side in image.size]
        if not min(size):
            raise UserError(f'{path} is {image.width}x{image.height} pixels, of which factor {factor} leaves '
                            f'{size[0]}x{size[1]}; lower factor')
        (beside / name).parent.mkdir(parents=True, exist_ok=True)
        image.resize(size, Image.Resampling.BOX).save(beside / name)

    try:
        with tempfile.TemporaryDirectory(prefix=f'.partial-{folder.name}-', dir=folder.parent) as temporary:
            beside = Path(temporary) / folder.name
            beside.mkdir()
            with ThreadPoolExecutor() as pool:
                list(tqdm(pool.map(reduce, paths, names), f'writing {folder}', len(paths), disable=None))
            try:
                beside.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another run was faster
                    raise
    except OSError as error:
        raise UserError(f'{folder} cannot be written ({error}); free some space, or copy the scene to a folder that '
                        'can be written to') from None
    return [folder / name for name in names]
