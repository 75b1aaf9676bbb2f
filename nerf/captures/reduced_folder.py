"""Folders images_N/ of photographs at 1/N of their size."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from nerf.files.images import ENDINGS, read_image
from nerf.files.scene_files import check_all_there, first_file
from nerf.runtime.errors import UserError

ANY_ENDING = tuple(ending for lower in ENDINGS for ending in (lower, lower.upper()))


def reduced_paths(paths: Sequence[Path], datadir: Path, factor: int, upright: bool = True) -> list[Path]:
    """Paths of photographs at 1/factor of their size, in datadir/images_<factor>/, which is made if it is missing.

    Args:
        paths: paths of the photographs. Their names in the folder are relative to datadir/images or, if a photograph
            is elsewhere, to the folder that all photographs share.
        datadir: folder of the scene.
        upright: as for `read_image`.

    Raises:
        UserError: a photograph is missing or unreadable, two names are equal, or the folder cannot be written.
    """
    folder, root = datadir / f'images_{factor}', Path(os.path.abspath(datadir / 'images'))
    full = [Path(os.path.abspath(path)) for path in paths]
    if not all(path.is_relative_to(root) for path in full):
        root = Path(os.path.commonpath([path.parent for path in full]))
    names = [path.relative_to(root) for path in full]
    if folder.is_dir():
        return [first_file(folder / name, *((folder / name).with_suffix(ending) for ending in ANY_ENDING))
                for name in names]
    check_all_there(paths, 'photographs')
    names = [name.with_suffix('.png') for name in names]
    if len(set(names)) < len(names):
        raise UserError(f'{root} has photographs whose names would coincide with the ending .png; rename them, or make '
                        f'{folder} yourself')
    return make_reduced(paths, names, folder, factor, lambda path: read_image(path, upright))


def make_reduced(paths: Sequence[Path], names: Sequence[Path | str], folder: Path, factor: int,
                 read: Callable[[Path], np.ndarray] = read_image) -> list[Path]:
    """Writes photographs at 1/factor of their size, rounded, into `folder`, which appears only when it is complete.

    A new pixel is the mean of the old ones, weighted by alpha.

    Args:
        paths: paths of the photographs.
        names: names of the reduced photographs in `folder`, ending in .png; the result has their paths.
        read: function that reads a photograph: [H, W, 3 or 4] uint8.

    Raises:
        UserError: a photograph is unreadable or too small, or the folder cannot be written.
    """
    from PIL import Image
    from tqdm import tqdm

    def reduce(path: Path, name: Path | str) -> None:
        image = Image.fromarray(read(path))
        size = [round(side / factor) for side in image.size]
        if not min(size):
            raise UserError(f'{path} is {image.width}x{image.height} pixels, and factor {factor} leaves '
                            f'{size[0]}x{size[1]}; lower factor')
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        image.resize(size, Image.Resampling.BOX).save(partial / name)

    try:
        with tempfile.TemporaryDirectory(prefix=f'.partial-{folder.name}-', dir=folder.parent) as temporary:
            partial = Path(temporary) / folder.name
            partial.mkdir()
            with ThreadPoolExecutor() as pool:
                list(tqdm(pool.map(reduce, paths, names), f'writing {folder}', len(paths), disable=None))
            try:
                partial.rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another run has made it meanwhile
                    raise
    except OSError as error:
        raise UserError(f'{folder} cannot be written ({error}); free some space, or copy the scene to a folder that '
                        'can be written to') from None
    return [folder / name for name in names]
