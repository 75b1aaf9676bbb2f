"""Draws meshes of a capture from its test cameras, and compares them with the photographs.

    python tests/benchmarks/mesh_pictures.py RUN MESH... [--masks FOLDER]

A line of JSON for each mesh has means over the test views:

- object_psnr: PSNR inside the object, in dB. The object is white in the view's mask, a picture in FOLDER with the name
  of the photograph. Without masks, the object is what the run's field shows within `Rules.middle` of the distance to
  the scene's centre, so that meshes of one run are compared on the same pixels.
- object_covered: share of the object's pixels that the mesh covers. Other pixels are black.
- mesh_psnr, mesh_covered: the same for all pixels of the mesh, and their share of the picture.

Pictures of the views are written beside the mesh: photograph, drawn mesh, and the error inside the object.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import trimesh
from PIL import Image
from scipy.ndimage import map_coordinates

sys.path.insert(0, str(Path(__file__).parents[2]))
from compare_meshes import loaded, projected, shaded
from nerf.cameras import Cameras
from nerf.fields.interface import Sampler
from nerf.meshes.picture import rasterised
from nerf.metrics import psnr
from nerf.rendering import draw, view_rays
from nerf.scene import Scene
from run_nerf_helpers import to8b


@dataclass(frozen=True)
class Rules:
    """Numbers that decide the figures, set by hand."""

    middle: float = 0.35  # distance from the scene's centre up to which things are the object, in those of the camera
    finer: float = 2.0  # pixels of the drawn pinhole picture along a pixel of the photograph
    opaque: float = 0.5  # opacity from which a pixel shows something


RULES = Rules()


def seen_mesh(mesh: trimesh.Trimesh, camera: Cameras, rules: Rules = RULES) -> tuple[np.ndarray, np.ndarray]:
    """Mesh as one camera sees it, through its lens: colours [H, W, 3] in [0, 1], 0 without a mesh, and the share
    [H, W] of a pixel that the mesh covers."""
    pose, focal = camera.poses[0].double().numpy(), rules.finer * float(camera.intrinsics[0, :2].mean())
    _, directions = camera.view_rays(0)
    local = directions.double().numpy() @ pose[:, :3]
    x, y = local[..., 0] / -local[..., 2], local[..., 1] / local[..., 2]
    half = np.ceil(focal * np.array([np.abs(y).max(), np.abs(x).max()])) + 1.0
    height, width = (2 * half).astype(int).tolist()
    face, weights = rasterised(projected(np.asarray(mesh.vertices), pose, focal, height, width),
                               np.asarray(mesh.faces), height, width)
    colours = np.zeros((height, width, 4))
    colours[face >= 0, :3] = shaded(mesh, face[face >= 0], weights[face >= 0])
    colours[face >= 0, 3] = 1.0
    places = np.stack([focal * y + half[0] - 0.5, focal * x + half[1] - 0.5])
    steps = (np.arange(rules.finer) + 0.5) / rules.finer - 0.5  # a pixel is the mean over its area
    seen = np.mean([[map_coordinates(part, places + rules.finer * np.array([down, right])[:, None, None], order=1,
                                     mode='nearest') for part in np.moveaxis(colours, -1, 0)]
                    for down in steps for right in steps], 0)
    return np.moveaxis(seen[:3], 0, -1), seen[3]


@torch.inference_mode()
def middle_of_view(sampler: Sampler, scene: Scene, camera: Cameras, rules: Rules = RULES) -> np.ndarray:
    """[H, W] bool: pixels of one camera that show something near the scene's centre."""
    rays = view_rays(sampler, scene.space, camera)
    *_, picture = draw(sampler, rays)
    depth = (picture.depth / picture.acc.clamp(min=1e-6))[:, None]
    away = scene.space.to_world(rays.origins + depth * rays.directions).norm(dim=-1)
    near = (away < rules.middle * camera.poses[0, :, 3].norm()) & (picture.acc > rules.opaque)
    return near.cpu().numpy().reshape(camera.size(0))


def mask_of(folder: Path, name: str, height: int, width: int) -> np.ndarray:
    """[H, W] bool: white pixels of the mask of a photograph, at the size of the view."""
    with Image.open(folder / f'{Path(name).stem}.png') as file:
        return np.asarray(file.convert('L').resize((width, height), Image.Resampling.BOX)) > 127


def figures(mesh: trimesh.Trimesh, cameras: list[Cameras], targets: list[np.ndarray], objects: list[np.ndarray],
            folder: Path, rules: Rules = RULES) -> dict[str, float]:
    """Figures of the module's docstring, of views with colours [H, W, 3] in [0, 1] and objects [H, W] bool."""
    rows = []
    for i, (camera, target, chosen) in enumerate(zip(cameras, targets, objects)):
        colours, cover = seen_mesh(mesh, camera, rules)
        covered = cover > rules.opaque
        error = np.abs(colours - target) * chosen[..., None]
        Image.fromarray(to8b(np.concatenate([target, colours, error], 1))).save(folder / f'{i:03d}.png')
        whole = covered & (cover > 1.0 - 1e-6)  # not the mesh's outlines, mixed with black
        rows.append({'object_psnr': psnr(colours[chosen], target[chosen]), 'object_covered': covered[chosen].mean(),
                     'mesh_psnr': psnr(colours[whole], target[whole]), 'mesh_covered': covered.mean()})
    return {key: round(float(np.mean([row[key] for row in rows])), 4) for key in rows[0]}


def trained(run: Path) -> tuple[Scene, Sampler]:
    """Scene of a run, and sampler of its newest field."""
    from nerf.fields.kinds import FIELDS
    from nerf.flags import parse_flags
    from nerf.formats import load_scene
    from nerf.resume import restore_trained
    from nerf.runtime.devices import choose_device, choose_precision
    from run_nerf import origin_of

    args = parse_flags(['--config', str(run / 'args.txt'), '--render_only'])
    scene, device = load_scene(args), choose_device(args.device)
    field = FIELDS[args.field].build(args, scene, device, choose_precision(args.precision, device))
    restore_trained(origin_of(args, run), field)
    return scene, field.sampler()


def main() -> None:
    """Prints the figures of meshes of one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', type=Path, help="run's folder")
    parser.add_argument('meshes', nargs='+', type=Path, metavar='MESH', help='mesh in the coordinates of the scene')
    parser.add_argument('--masks', type=Path, help='folder of masks of the photographs')
    args = parser.parse_args()
    scene, sampler = trained(args.run)
    cameras, targets = [scene.cameras.take([i]) for i in scene.i_test], [scene.target(i) for i in scene.i_test]
    if args.masks:
        objects = [mask_of(args.masks, scene.name_of(i), *camera.size(0)) for i, camera in zip(scene.i_test, cameras)]
    else:
        objects = [middle_of_view(sampler, scene, camera) for camera in cameras]
    for path in args.meshes:
        folder = path.with_name(f'{path.stem}_test_views')
        folder.mkdir(exist_ok=True)
        print(json.dumps({'mesh': path.name, **figures(loaded(str(path)), cameras, targets, objects, folder)}))


if __name__ == '__main__':
    main()
