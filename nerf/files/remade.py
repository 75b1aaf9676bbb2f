"""Files of arrays that can be computed again, so that a broken or unwritable file is no error."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from nerf.files.whole_file import whole_file
from nerf.runtime.errors import UserError


def read_arrays(path: Path | None, fingerprint: str) -> dict[str, np.ndarray] | None:
    """Arrays of a file by name; None: there is no path, or the file is missing, broken, or has another fingerprint."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        return arrays if str(arrays.pop('fingerprint')) == fingerprint else None
    except Exception:  # a broken file can raise nearly anything
        return None


def write_arrays(path: Path | None, fingerprint: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays by name and a fingerprint of their source; does nothing without a path that can be written."""
    if path is not None:
        with suppress(UserError), whole_file(path) as partial, open(partial, 'wb') as file:
            np.savez(file, fingerprint=np.array(fingerprint), **arrays)
