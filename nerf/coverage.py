"""How much of each pixel the scene covers, in pictures on white with an alpha channel or with a plain background."""

from __future__ import annotations

import numpy as np

EMPTY, OPAQUE, UNKNOWN = 0, 255, -1
PLAIN, BRIGHT = 250, 225  # all channels of white that noise or JPEG has changed, and of what could be partly white


def covered(image: np.ndarray) -> np.ndarray:
    """The alpha channel of a picture; without one, what its plain white background tells.

    Without an alpha channel the white region that reaches the picture's border is EMPTY. Other bright pixels and those
    next to white are UNKNOWN, as they can be mixed with it.

    Args:
        image: [H, W, 3 or 4] uint8.

    Returns:
        [H, W] int16: EMPTY to OPAQUE, or UNKNOWN.
    """
    if image.shape[-1] == 4:
        return image[..., 3].astype(np.int16)
    from skimage.measure import label

    white = (image >= PLAIN).all(-1)
    regions = label(np.pad(white, 1, constant_values=True), connectivity=1)
    background = regions[1:-1, 1:-1] == regions[0, 0]
    unknown = _beside(white) | (image >= BRIGHT).all(-1)
    return np.where(background, EMPTY, np.where(unknown, UNKNOWN, OPAQUE)).astype(np.int16)


def _beside(mask: np.ndarray) -> np.ndarray:
    """[H, W] bool: pixels of which one in the 3x3 around them is in the mask [H, W]."""
    framed, (height, width) = np.pad(mask, 1), mask.shape
    return np.any([framed[i:i + height, j:j + width] for i in range(3) for j in range(3)], axis=0)
