"""How alike a rendered picture and a photograph are: PSNR, SSIM and, where the lpips package is installed, LPIPS."""

from __future__ import annotations

import functools
import importlib.util
import sys
import warnings

import numpy as np

LPIPS_NETWORKS = {'lpips_alex': 'alex', 'lpips_vgg': 'vgg'}  # metric: its network in the lpips package
SMALLEST = 32  # pixels of height and width from which the networks have an output
NAMES = {'psnr': 'psnr {:.2f} dB', 'ssim': 'ssim {:.4f}', 'lpips_alex': 'lpips (alex) {:.4f}',
         'lpips_vgg': 'lpips (vgg) {:.4f}'}  # how each metric is printed


def psnr(rendered: np.ndarray, target: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]; at most 100, so that it stays a number."""
    return -10.0 * float(np.log10(max(float(np.mean((rendered - target) ** 2)), 1e-10)))


def compare(rendered: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """PSNR in dB, SSIM and, where it can be computed, LPIPS.

    SSIM is that of Wang et al. 2004: Gaussian window, sigma 1.5, on the three channels' mean. LPIPS is that of Zhang et
    al. 2018, version 0.1, with AlexNet and with VGG; lower is better.

    Args:
        rendered, target: [H, W, 3] float32 in [0, 1].
    """
    from skimage.metrics import structural_similarity

    ssim = structural_similarity(rendered, target, channel_axis=-1, gaussian_weights=True, sigma=1.5,
                                 use_sample_covariance=False, data_range=1.0)
    return {'psnr': psnr(rendered, target), 'ssim': float(ssim), **_lpips(rendered, target)}


def in_words(metrics: dict[str, float]) -> str:
    """Metrics by name as text for a log's line."""
    return ', '.join(NAMES[name].format(value) for name, value in metrics.items() if name in NAMES)


def _lpips(rendered: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """LPIPS by each network; empty without the package, and for pictures that are too small for the networks."""
    import torch

    if min(rendered.shape[:2]) < SMALLEST:
        return {}
    pictures = [torch.from_numpy(np.ascontiguousarray(picture, np.float32)).permute(2, 0, 1)[None] * 2.0 - 1.0
                for picture in (rendered, target)]
    with torch.inference_mode():
        return {name: float(network(*pictures)) for name, network in _lpips_networks().items()}


@functools.cache
def _lpips_networks() -> dict:
    """The networks of the lpips package by metric; empty, and said once, where the package or its weights are missing.

    They stay on the CPU: test views are measured one by one, and a GPU's memory is the field's.
    """
    if importlib.util.find_spec('lpips') is None:
        print('LPIPS is not measured; "pip install lpips" adds it')
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torchvision's, about how lpips asks for weights
            import lpips
            return {name: lpips.LPIPS(net=network, verbose=False).eval() for name, network in LPIPS_NETWORKS.items()}
    except Exception as error:  # whatever a download of weights or a broken installation raises
        print(f'warning: LPIPS is not measured: the lpips package cannot be used '
              f'({str(error).partition(chr(10))[0][:200]})', file=sys.stderr)
        return {}
