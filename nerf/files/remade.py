"""Files of arrays that can be computed again, so that a broken or unwritable file is no error."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from nerf.files.whole_file import whole_file
from nerf.runtime.errors import UserError


def read_arrays(path: Path | None, fingerprint: str) -> dict[str, np.ndarray] | None:
    """Arrays of a file by name; None: the file is missing, broken, or has another fingerprint."""
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
    """Writes arrays by name and a fingerprint of their source; does nothing if the file cannot be written."""
    if path is None:
        return
    with suppress(UserError), whole_file(path) as partial, open(partial, 'wb') as file:
        np.savez(file, fingerprint=np.array(fingerprint), **arrays)
