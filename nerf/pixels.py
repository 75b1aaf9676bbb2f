"""Single pixels of a picture: drawn in any order, and where colours change by several rays each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nerf.cameras import Cameras
from nerf.fields.interface import Model, Picture, pieces
from nerf.scene import Scene

EDGE = 0.05  # difference of a colour from a neighbour's from which on a pixel is at an edge


@torch.inference_mode()
def draw_pixels(model: Model, scene: Scene, camera: Cameras, picture: Picture, index: Tensor, side: int = 1) -> int:
    """Draws some pixels [N] of one camera's picture, counted row by row; the number of rays. In normalised device
    coordinates those that look backwards stay as they are.

    Args:
        side: each pixel shows the mean of side x side rays, spread evenly over a pixel's size around its own ray.
    """
    width, camera = camera.size(0)[1], camera.to(model.device)
    steps = (torch.arange(side, device=model.device) + 0.5) / side - 0.5
    down, right = torch.cartesian_prod(steps, steps).unbind(-1)
    row, column = index[:, None] // width + down, index[:, None] % width + right  # [N, side * side]
    origins, directions = camera.rays(torch.zeros_like(row, dtype=torch.long), row, column)
    if scene.ndc:
        forward = (directions[..., 2] < -1e-3).all(-1)
        index, origins, directions = index[forward], origins[forward], directions[forward]
    if not len(index):
        return 0
    rays = scene.rays(origins, directions, camera.bounds)
    *_, drawn = model.show(rays, 1, len(rays.near))
    for whole, part in zip((picture.rgb, picture.depth, picture.acc), (drawn.rgb, drawn.depth, drawn.acc)):
        whole[index] = part.view(len(index), side * side, *part.shape[1:]).mean(1)
    picture.final[index] = True
    return len(rays.near)


def edges(picture: Picture, height: int, width: int) -> Tensor:
    """Pixels [N], counted row by row, of which a colour differs from that of one above, below or beside by more than
    EDGE. This waits for the device."""
    rgb = picture.rgb.view(height, width, 3)
    is_edge = torch.zeros(height, width, dtype=torch.bool, device=rgb.device)
    for axis in (0, 1):
        size = rgb.shape[axis] - 1
        change = ((rgb.narrow(axis, 1, size) - rgb.narrow(axis, 0, size)).abs() > EDGE).any(-1)
        is_edge.narrow(axis, 0, size).logical_or_(change)
        is_edge.narrow(axis, 1, size).logical_or_(change)
    return is_edge.flatten().nonzero()[:, 0]


def smooth_edges(model: Model, scene: Scene, camera: Cameras, picture: Picture) -> Iterator[int]:
    """Draws the pixels at edges of a whole picture again, by `supersample` x `supersample` rays each, where these are
    more than one; yields the number of rays after each tile."""
    if (side := model.supersample) > 1:
        index = edges(picture, *camera.size(0))
        for tile in pieces(len(index), max(model.view_chunk // side ** 2, 1)):
            yield draw_pixels(model, scene, camera, picture, index[tile], side)
