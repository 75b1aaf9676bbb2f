"""Training, validation and test images of a capture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nerf.runtime.errors import UserError

SPLITS = ('train', 'val', 'test')


def held_out(datadir: str | Path, count: int, llffhold: int, central: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and the test images of `count` images.

    Args:
        datadir: folder of the scene, for the message.
        count: number of images.
        llffhold: every llffhold-th image is a test image; 0: only the image `central`.
        central: image that is nearest to the mean camera.

    Raises:
        UserError: no image is left to train on.
    """
    everything = np.arange(count)
    i_test = everything[::llffhold] if llffhold else everything[[central]]
    i_train = np.setdiff1d(everything, i_test)
    if not len(i_train):
        raise UserError(f'{datadir}: llffhold {llffhold} takes all {count} images for testing and leaves none to train '
                        'on; raise llffhold or add images')
    return i_train, i_test


def every_nth(datadir: Path, positions: np.ndarray, llffhold: int) -> list[np.ndarray]:
    """Indices of training, validation and test images of cameras at positions [N, 3]; the last two are the same.

    Args:
        datadir, llffhold: as for `held_out`, whose central image is that nearest to the mean position.
    """
    central = np.linalg.norm(positions - positions.mean(0), axis=-1).argmin()
    i_train, i_test = held_out(datadir, len(positions), llffhold, int(central))
    return [i_train, i_test, i_test]


def named_splits(path: Path, names: Sequence[str], splits: Mapping[str, Sequence[str]]) -> list[np.ndarray] | None:
    """Indices of training, validation and test images as a file lists them; None if all its lists are empty.

    An empty list of training images stands for all images that no other list has. Of validation and test images, an
    empty list stands for the other one, or else for all images that are not trained on.

    Args:
        path: of the file, for messages.
        names: of the images, in their order.
        splits: lists of names for some of SPLITS.

    Raises:
        UserError: a name is unknown, or no image is left to train or to test on.
    """
    index = {name: i for i, name in enumerate(names)}
    for split, listed in splits.items():
        if unknown := [name for name in listed if name not in index]:
            raise UserError(f'{path}: {split}_filenames has {len(unknown)} names that no frame has, the first is '
                            f'{unknown[0]!r}')
    train, val, test = (np.array(sorted({index[name] for name in splits.get(split, ())}), np.int64) for split in SPLITS)
    if not any(map(len, (train, val, test))):
        return None
    rest = np.setdiff1d(np.arange(len(names)), np.concatenate([train, val, test]))
    train, test = train if len(train) else rest, test if len(test) else val if len(val) else rest
    if not (len(train) and len(test)):
        raise UserError(f'{path}: its lists of file names leave no image to {"test" if len(train) else "train"} on')
    return [train, val if len(val) else test, test]
