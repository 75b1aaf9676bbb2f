"""Videos of a known picture: frames, files of them in various forms, and which frame a picture shows."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageFilter

WIDTH, HEIGHT = 160, 120


def moving(count: int, step: int = 4, width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> list[np.ndarray]:
    """Frames [height, width, 3] uint8 of a camera that moves along a wall, by `step` pixels a frame."""
    rng = np.random.default_rng(seed)
    shape = height, width + step * count
    wall = np.zeros((*shape, 3))
    for cell in (2, 8, 32):
        coarse = rng.integers(0, 256, (shape[0] // cell + 2, shape[1] // cell + 2, 3), np.uint8)
        wall += np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC)) / 3.0
    return [wall[:, step * i:step * i + width].astype(np.uint8) for i in range(count)]


def blurred(frame: np.ndarray, radius: float = 2.0) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(radius)))


def write_video(path: Path, frames: Sequence[np.ndarray], *options: str, before: Sequence[str] = ()) -> Path:
    """Writes frames at 30 a second, nearly without loss. `options` are ffmpeg's for the output, `before` those for the
    frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    ffmpeg('-f', 'rawvideo', '-pix_fmt', 'rgb24', '-s', f'{width}x{height}', '-r', '30', *before, '-i', '-',
           *('-c:v', 'libx264', '-crf', '4', '-preset', 'ultrafast', '-pix_fmt', 'yuv444p'), *options, str(path),
           given=b''.join(frame.tobytes() for frame in frames))
    return path


def ffmpeg(*words: str, given: bytes = b'') -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), '-v', 'error', '-y', *words], input=given, check=True,
                   capture_output=True)


def shown(picture: np.ndarray, frames: Sequence[np.ndarray]) -> int:
    """Number of the frame that a picture shows. Frames are compared in colour, or in grey with a grey picture."""
    pixels = picture.astype(np.float32)
    return int(np.argmin([np.abs(pixels - (frame if pixels.ndim == 3 else frame.mean(-1))).mean()
                          for frame in frames]))
