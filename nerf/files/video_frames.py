"""Frames of video files, decoded by ffmpeg (the package imageio-ffmpeg): upright, with square pixels."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nerf.runtime.errors import UserError

HDR = ('arib-std-b67', 'smpte2084')  # ffmpeg's names of the transfer functions HLG and PQ
TONE_MAPPED = ('zscale=transferin={}:primariesin=2020:matrixin=2020_ncl:transfer=linear:npl=100,format=gbrpf32le,'
               'zscale=primaries=709,tonemap=hable:desat=0,zscale=transfer=709:matrix=709:range=full')
KEY_FRAMES = '-discard', 'nokey', '-skip_frame', 'nokey'  # of containers that tell them, and of decoders
SQUARE_PIXELS = "scale=w='round(iw*sar)':h=ih,setsar=1"


class Header(NamedTuple):
    """What a video says of itself."""

    seconds: float  # 0: unknown
    frames: int  # by length and rate; 0: unknown
    hdr: str | None  # transfer function, in HDR
    interlaced: bool


def read_header(video: Path) -> Header:
    """Header of a video; a UserError if the file is none, or has no pictures."""
    text = subprocess.run([_ffmpeg(), '-hide_banner', '-i', f'file:{video}'], stdin=subprocess.DEVNULL,
                          capture_output=True).stderr.decode('utf-8', 'replace')
    streams = [line for line in text.splitlines() if re.match(r'\s*Stream #0', line)]
    stream = next((line for line in streams if ' Video: ' in line and 'attached pic' not in line), None)
    if stream is None:
        why = 'it has sound but no pictures' if streams else _last_words(text)
        raise UserError(f'{video} cannot be read as a video ({why}); copy it again, or convert it to an MP4')
    length, rate = re.search(r'Duration: (\d+):(\d+):([\d.]+)', text), re.search(r'([\d.]+) fps', stream)
    seconds = sum(unit * float(part) for unit, part in zip((3600, 60, 1), length.groups())) if length else 0.0
    return Header(seconds, round(seconds * float(rate.group(1))) if rate else 0,
                  next((name for name in HDR if name in stream), None), 'first' in stream)


def small_frames(video: Path, header: Header, side: int, keys: bool = False) -> Iterator[np.ndarray]:
    """Grey frames [H, W] uint8 of a video, or only its key frames, with at most `side` pixels along the longer side. A
    damaged part is skipped, and a warning says so. UserError: there are no frames."""
    shrunk = f"scale=w='min(iw,{side})':h='min(ih,{side})':force_original_aspect_ratio=decrease:flags=area"
    errors = yield from _decoded(video, header, [shrunk], 'gray', keys)
    if errors:
        print(f'warning: {video} is damaged ({_last_words(errors)}); what can be decoded is used', file=sys.stderr)


def full_frames(video: Path, header: Header, numbers: list[int], keys: bool = False) -> Iterator[np.ndarray]:
    """Frames [H, W, 3] uint8 of a video at its size and in the usual dynamic range, by their ascending numbers among
    all frames or among the key frames. UserError: there are none."""
    chosen = f"select='{_any_of(numbers)}'"
    yield from _decoded(video, header, [chosen, *_tone_mapping(video, header), SQUARE_PIXELS], 'rgb24', keys,
                        ['-frames:v', str(len(numbers))])


def _tone_mapping(video: Path, header: Header) -> list[str]:
    """Filters that turn high dynamic range into the usual one."""
    if not header.hdr:
        return []
    known = subprocess.run([_ffmpeg(), '-hide_banner', '-filters'], stdin=subprocess.DEVNULL, capture_output=True)
    if b' zscale ' in known.stdout:
        return [TONE_MAPPED.format(header.hdr)]
    print(f'warning: {video} has high dynamic range, and this ffmpeg cannot map its colours; they will look dull',
          file=sys.stderr)
    return []


def _any_of(numbers: list[int]) -> str:
    """Expression of ffmpeg for frames with some ascending numbers: a search tree, since ffmpeg limits the depth."""
    if len(numbers) == 1:
        return f'eq(n,{numbers[0]})'
    half = len(numbers) // 2
    return f'if(lt(n,{numbers[half]}),{_any_of(numbers[:half])},{_any_of(numbers[half:])})'


def _decoded(video: Path, header: Header, filters: list[str], pixels: str, keys: bool, options: Sequence[str] = ()
             ) -> Generator[np.ndarray, None, str]:
    """Frames of a video after ffmpeg's filters, with the pixel format gray or rgb24; returns what ffmpeg complained of.
    """
    filters = (['bwdif=mode=send_frame:deint=interlaced'] if header.interlaced else []) + filters
    command = [_ffmpeg(), '-v', 'error', *(KEY_FRAMES if keys else ()), '-i', f'file:{video}', '-map', '0:V:0',
               '-vf', ','.join(filters), '-fps_mode', 'passthrough', *options, '-f', 'image2pipe',
               '-c:v', {'gray': 'pgm', 'rgb24': 'ppm'}[pixels], '-pix_fmt', pixels, '-']
    count = 0
    with tempfile.TemporaryFile() as log, subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True) as process:
        try:
            while (frame := _read_netpbm(process.stdout)) is not None:
                count += 1
                yield frame
        finally:
            process.kill()
        log.seek(0)
        errors = log.read().decode('utf-8', 'replace')
    if not count:
        raise UserError(f'{video} has no frames that can be decoded ({_last_words(errors)}); copy it again, or convert '
                        'it to an MP4')
    return errors


def _read_netpbm(stream) -> np.ndarray | None:
    """Next picture of a stream of binary PGM [H, W] or PPM [H, W, 3]; None at its end."""
    kind, size, _ = (stream.readline() for _ in range(3))
    if not size:
        return None
    width, height = map(int, size.split())
    shape = (height, width, 3) if kind == b'P6\n' else (height, width)
    pixels = stream.read(int(np.prod(shape)))
    return np.frombuffer(pixels, np.uint8).reshape(shape) if len(pixels) == np.prod(shape) else None


def _last_words(text: str) -> str:
    """The last error that a part of ffmpeg reported, without the part's name."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [words for line in lines if (words := re.sub(r'^(\[[^]]* @ 0x\w+\] )+', '', line)) != line]
    return ([words for words in said if not words.startswith('Error opening')] or said or lines or ['no reason'])[-1]


def _ffmpeg() -> str:
    import imageio_ffmpeg
    return imageio_ffmpeg.get_ffmpeg_exe()
