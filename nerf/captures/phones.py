"""Raw exports of phone apps, Polycam's keyframes/ and Record3D's metadata.json, as contents of a transforms.json.

Both have the cameras of ARKit: camera-to-world, OpenGL axes, y up, lengths in metres.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nerf.files.images import ENDINGS
from nerf.files.scene_files import is_file, read_json
from nerf.poses import rotation_matrix
from nerf.runtime.errors import UserError

# Folders of Polycam's cameras and of their photographs: those that Polycam has optimised come first
KEYFRAMES = {'corrected_cameras': 'corrected_images', 'cameras': 'images'}
METADATA = ('metadata.json', 'metadata', 'EXR_RGBD/metadata.json')  # files of Record3D's export
RECORDED = ('rgb', 'rgbd')  # folders of its photographs, beside that file
PHONE_MARKS = (*(f'keyframes/{name}/*.json' for name in KEYFRAMES), METADATA[-1], *(f'{name}/0.*' for name in RECORDED))
NUMBERS = {'fl_x': 'fx', 'fl_y': 'fy', 'cx': 'cx', 'cy': 'cy', 'w': 'width', 'h': 'height'}  # Polycam's names of them


def phone_export(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Where a phone app's raw export in a folder has its cameras, and what a transforms.json would hold; None if there
    is no export. A broken one is a UserError."""
    for place in (folder / 'keyframes', folder):
        for cameras, pictures in KEYFRAMES.items():
            if (place / pictures).is_dir() and (files := sorted((place / cameras).glob('*.json'))):
                return place / cameras, {'frames': [
                    _polycam_frame(file, (place / pictures).relative_to(folder)) for file in files]}
    for path in (folder / name for name in METADATA):
        if is_file(path) and isinstance(top := read_json(path, ''), dict) and 'poses' in top:
            try:
                return path, {'w': top.get('w'), 'h': top.get('h'), 'frames': list(_record3d_frames(folder, path, top))}
            except (TypeError, ValueError, LookupError, OverflowError) as error:
                raise UserError(f'{path} cannot be read as the cameras of Record3D ({error}); export the recording '
                                'again, as EXR and RGB') from None
    for path in folder.glob('*.r3d'):
        raise UserError(f'{path} is a recording of Record3D, which is a zip archive; unpack it into a folder, and set '
                        'datadir to that folder')
    return None


def _polycam_frame(file: Path, pictures: Path) -> dict[str, Any]:
    camera = read_json(file, '')
    if not isinstance(camera, dict) or 't_00' not in camera:
        raise UserError(f'{file} is no camera of Polycam, which has t_00 to t_23; export the raw data again')
    rows = [[camera.get(f't_{row}{column}') for column in range(4)] for row in range(3)]
    return {'file_path': (pictures / file.stem).as_posix(), 'transform_matrix': rows,
            **{ours: camera.get(theirs) for ours, theirs in NUMBERS.items()}}


def _record3d_frames(folder: Path, path: Path, top: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Frames of Record3D's metadata: pose i is that of photograph i. Each pose is x, y, z, w of a quaternion, and the
    position; intrinsics are fx, fy, cx, cy of each frame, or K, column by column."""
    pictures = next((place for name in RECORDED if (place := path.parent / name).is_dir()), path.parent)
    names = {int(file.stem): file.name for file in pictures.iterdir()
             if file.stem.isdecimal() and file.suffix.lower() in ENDINGS}
    each = top.get('perFrameIntrinsicCoeffs') or [[top['K'][place] for place in (0, 4, 6, 7)]] * len(top['poses'])
    for i, (pose, intrinsics) in enumerate(zip(top['poses'], each, strict=True)):
        x, y, z, w, *position = np.array(pose, np.float64)
        if len(position) != 3:
            raise ValueError(f'pose {i} has not 7 numbers')
        matrix = np.column_stack([rotation_matrix(np.array([w, x, y, z])), position])
        yield {'file_path': (pictures.relative_to(folder) / names.get(i, str(i))).as_posix(),
               'transform_matrix': matrix.tolist(), **dict(zip(('fl_x', 'fl_y', 'cx', 'cy'), intrinsics))}
