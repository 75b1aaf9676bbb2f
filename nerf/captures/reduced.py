"""Reduced photographs: images_<factor>/ of a scene, found, made, and compared with the photographs."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nerf.files.images import ENDINGS, image_size, in_parallel, read_image, write_reduced
from nerf.files.scene_files import NOTHING, contents, first_file, is_file
from nerf.runtime.errors import UserError

ANY_ENDING = tuple(ending for lower in ENDINGS for ending in (lower, lower.upper()))


@dataclass(frozen=True)
class ReducedRules:
    """Numbers that decide whether a reduced photograph still fits, set by hand."""

    size_error: float = 0.02  # of a side, beyond a pixel of rounding
    compared: int = 6  # photographs that are newer than reduced ones are compared with them, if there are more
    side: int = 16  # pixels of the small pictures that are compared
    difference: float = 6.0  # of 255, root mean square: from here they show something else


RULES = ReducedRules()


def reduced_places(paths: Sequence[Path], datadir: Path, factor: int) -> list[Path]:
    """Where photographs at 1/factor of their size are, with any ending, or will be, in datadir/images_<factor>/.

    Args:
        paths: paths of all photographs of the scene, which need not exist. Their names in the folder are relative to
            datadir/images or, if a photograph is elsewhere, to the folder that all photographs share.
    """
    folder, scene = datadir / f'images_{factor}', Path(os.path.abspath(datadir))
    full = [Path(os.path.abspath(path)) for path in paths]
    here = [path for path in full if path.is_relative_to(scene) or is_file(path)] or full  # not those of other machines
    root = scene / 'images'
    if not all(path.is_relative_to(root) for path in here):
        root = Path(os.path.commonpath([path.parent for path in here]))
    names = [path.relative_to(root) if path.is_relative_to(root) else Path(path.name) for path in full]
    places = [first_file(folder / name, *((folder / name).with_suffix(ending) for ending in ANY_ENDING))
              for name in names]
    return [place if is_file(place) else place.with_suffix('.png') for place in places]


def make_missing(paths: Sequence[Path], places: Sequence[Path], datadir: Path, factor: int, upright: bool,
                 rules: ReducedRules = RULES) -> list[Path]:
    """Paths of reduced photographs, once those are made that are missing. A UserError says so if others do not fit
    their photographs. Where a photograph itself is missing, its reduced one is taken as it is.

    Args:
        paths, places: paths of the photographs, and their `reduced_places`.
        upright: the pictures are compared as they stand upright; as for `read_image`.
    """
    folder = datadir / f'images_{factor}'
    pairs = [(path, place) for path, place in zip(paths, places) if is_file(path)]
    missing = [pair for pair in pairs if not is_file(pair[1])]
    check_fit(folder, [pair for pair in pairs if is_file(pair[1])], factor, upright, rules)
    if missing:
        if len(set(places)) < len(places):
            raise UserError(f'{datadir} has photographs whose names would coincide with the ending .png; rename them, '
                            f'or make {folder} yourself')
        if len(missing) == len(paths) and (others := contents(folder)) != NOTHING:
            raise UserError(f'{folder} has {others}, but none of the photographs, {missing[0][0].name} for one; rename '
                            'that folder, and it is made again')
        if folder.is_dir():
            print(f'warning: {folder}: {len(missing)} of {len(paths)} photographs were missing in it, and are added',
                  file=sys.stderr)
        full, small = zip(*missing)
        make_reduced(full, [place.relative_to(folder) for place in small], folder, factor)
    return list(places)


def check_fit(folder: Path, pairs: Sequence[tuple[Path, Path]], factor: int, upright: bool,
              rules: ReducedRules = RULES) -> None:
    """Raises UserError if reduced photographs in a folder have another size than 1/factor of the photographs', or if
    they are older and show something else. `pairs` has paths of photographs and of reduced ones, which exist."""
    advice = f'delete {folder}, and it is made again'
    sizes = in_parallel(f'checking {folder}', lambda pair: _has_size(*pair, factor, upright, rules), pairs)
    for (path, place), fits in zip(pairs, sizes):
        if not fits:
            raise UserError(f'{place} is not 1/{factor} of the size of {path}; was the photograph taken or turned '
                            f'anew? Then {advice}')
    older = [pair for pair in pairs if pair[1].stat().st_mtime < pair[0].stat().st_mtime]
    for path, place in older[::max(len(older) // rules.compared, 1)]:
        if not _shows_the_same(path, place, upright, rules):
            raise UserError(f'{place} is older than {path} and shows something else; {advice}')


def _has_size(path: Path, place: Path, factor: int, upright: bool, rules: ReducedRules) -> bool:
    """Whether a reduced photograph is as large as it should be. Broken pictures are reported where they are needed."""
    try:
        return all(abs(full / factor - side) <= 1.0 + rules.size_error * side
                   for full, side in zip(image_size(path, upright), image_size(place, upright)))
    except UserError:
        return True


def _shows_the_same(path: Path, place: Path, upright: bool, rules: ReducedRules) -> bool:
    """Whether a photograph and a reduced one differ little once both are very small."""
    from PIL import Image
    try:
        one, other = (Image.fromarray(read_image(file, upright)[..., :3]) for file in (path, place))
    except UserError:  # broken or too large
        return True
    one, other = (np.asarray(image.resize((rules.side, rules.side), Image.Resampling.BOX), np.float64)
                  for image in (one, other))
    return np.sqrt(np.mean((one - other) ** 2)) < rules.difference


def make_reduced(paths: Sequence[Path], names: Sequence[Path | str], folder: Path, factor: int, alpha: bool = True
                 ) -> list[Path]:
    """Writes photographs at 1/factor of their size into `folder`, by `write_reduced`; a new folder appears only when it
    is complete. `names` of the reduced photographs in it end in .png; the result has their paths."""
    def reduce(path: Path, name: Path | str) -> None:
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        write_reduced(path, partial / name, factor, alpha)

    try:
        with tempfile.TemporaryDirectory(prefix=f'.partial-{folder.name}-', dir=folder.parent) as temporary:
            partial = Path(temporary) / folder.name
            partial.mkdir()
            in_parallel(f'writing {folder}', reduce, paths, names)
            try:
                partial.rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise it was there, or another run has made it meanwhile
                    raise
                for name in names:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(partial / name, folder / name)
    except OSError as error:
        raise UserError(f'{folder} cannot be written ({error}); free some space, or copy the scene to a folder that '
                        'can be written to') from None
    return [folder / name for name in names]
