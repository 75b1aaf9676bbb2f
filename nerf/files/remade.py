"""Files of arrays that can be made again: whatever is wrong with one is no error."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from nerf.files.whole_file import whole_file
from nerf.runtime.errors import UserError


def read_arrays(path: Path | None, fingerprint: str) -> dict[str, np.ndarray] | None:
    """The arrays of a file, by name; None where there is no file, or one that is broken or has another fingerprint."""
    if path is None:
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file) if str(file['fingerprint']) == fingerprint else None
    except Exception:  # a broken file can raise nearly anything
        return None
    if arrays is not None:
        del arrays['fingerprint']
    return arrays


def write_arrays(path: Path | None, fingerprint: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays and a fingerprint of what they were made from; nothing happens where that cannot be written."""
    if path is None:
        return
    with suppress(UserError), whole_file(path) as partial, open(partial, 'wb') as file:
        np.savez(file, fingerprint=np.array(fingerprint), **arrays)
