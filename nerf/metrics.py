"""Metrics of a rendered picture against an image: PSNR, SSIM and, if the lpips package is installed, LPIPS."""

from __future__ import annotations

import functools
import importlib.util
import sys
import warnings
from collections.abc import Callable

import numpy as np

LPIPS_NETWORKS = {'lpips_alex': 'alex', 'lpips_vgg': 'vgg'}  # by metric, as the lpips package names them
SMALLEST = 32  # height and width in pixels that the networks need
NAMES = {'psnr': 'psnr {:.2f} dB', 'ssim': 'ssim {:.4f}', 'lpips_alex': 'lpips (alex) {:.4f}',
         'lpips_vgg': 'lpips (vgg) {:.4f}', 'psnr_aligned': 'psnr {:.2f} dB aligned'}  # text of each metric in the log


def psnr(rendered: np.ndarray, target: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1], at most 100. Equal pictures would have infinity."""
    return -10.0 * float(np.log10(max(float(np.mean((rendered - target) ** 2)), 1e-10)))


def compare(rendered: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Metrics of pictures [H, W, 3] float32 in [0, 1], by name: PSNR in dB, SSIM (Wang et al. 2004:
    Gaussian window, sigma 1.5, mean of the channels) and, with the lpips package, LPIPS (Zhang et al. 2018, version
    0.1, by AlexNet and VGG; lower is better)."""
    from skimage.metrics import structural_similarity
    ssim = structural_similarity(rendered, target, channel_axis=-1, gaussian_weights=True, sigma=1.5,
                                 use_sample_covariance=False, data_range=1.0)
    return {'psnr': psnr(rendered, target), 'ssim': float(ssim), **_lpips(rendered, target)}


def in_words(metrics: dict[str, float]) -> str:
    """Text of metrics by name, for a line of the log."""
    return ', '.join(NAMES[name].format(value) for name, value in metrics.items() if name in NAMES)


def _lpips(rendered: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """LPIPS by each network; empty if pictures are too small for the networks."""
    import torch
    if min(rendered.shape[:2]) < SMALLEST:
        return {}
    pictures = [torch.from_numpy(np.ascontiguousarray(picture, np.float32)).permute(2, 0, 1)[None] * 2.0 - 1.0
                for picture in (rendered, target)]
    with torch.inference_mode():
        return {name: float(network(*pictures)) for name, network in networks().items()}


@functools.cache
def networks() -> dict[str, Callable]:
    """Networks of lpips by metric, on the CPU; empty, with a message, if the package or its weights are missing."""
    if importlib.util.find_spec('lpips') is None:
        print('LPIPS is not measured; "pip install lpips" adds it')
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of torchvision, about the way lpips asks for weights
            import lpips
            return {name: lpips.LPIPS(net=network, verbose=False).eval() for name, network in LPIPS_NETWORKS.items()}
    except Exception as error:  # a download of weights or a broken installation can raise any error
        reason = str(error).partition('\n')[0][:200]
        print(f'warning: LPIPS is not measured: the lpips package cannot be used ({reason})', file=sys.stderr)
        return {}
