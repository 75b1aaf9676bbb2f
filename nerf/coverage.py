"""Which pixels of a picture on white show nothing but the background, and which show none of it."""

from __future__ import annotations

import numpy as np

EMPTY, UNKNOWN, OPAQUE = 0, 1, 2  # UNKNOWN: the pixel may show something before the background, or through it


def covered(image: np.ndarray) -> np.ndarray:
    """What a picture's pixels show, by its alpha channel, or without one by its plain white background.

    Without an alpha channel the background is the exactly white region that reaches the picture's border; next to
    white pixels nothing is known, as they can be mixed with it.

    Args:
        image: [H, W, 3 or 4] uint8; white is what its background will be, or is.

    Returns:
        [H, W] uint8: EMPTY, UNKNOWN or OPAQUE.
    """
    if image.shape[-1] == 4:
        alpha = image[..., 3]
        return (alpha > 0).astype(np.uint8) + (alpha == 255)
    white = (image == 255).all(-1)
    if not white.any():
        return np.full(white.shape, OPAQUE, np.uint8)
    from skimage.measure import label

    regions = label(np.pad(white, 1, constant_values=True), connectivity=1)
    background = regions[1:-1, 1:-1] == regions[0, 0]
    return np.where(background, EMPTY, np.where(_beside(white), UNKNOWN, OPAQUE)).astype(np.uint8)


def _beside(mask: np.ndarray) -> np.ndarray:
    """[H, W] bool: pixels of which one in the 3x3 around them is in the mask [H, W]."""
    framed, (height, width) = np.pad(mask, 1), mask.shape
    return np.any([framed[i:i + height, j:j + width] for i in range(3) for j in range(3)], axis=0)
