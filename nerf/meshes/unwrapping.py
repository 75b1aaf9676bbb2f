"""A mesh laid out flat in a texture: charts seen along the axes, packed by xatlas.

xatlas can find charts too. For a mesh of 50,000 wobbly faces that takes a minute; this takes seconds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from nerf.meshes.raster import rasterised

ROUNDS = 2  # in which faces take on the direction of their neighbours, so that charts are few
STEEP = 0.3  # cosine between a face and the axis of its chart, from which on the chart may show it
PADDING = 2  # texels between charts
FOLDED = 4.0  # texels by which a face lies above or below another one of its chart
FEW = 1e-3  # share of such faces that is left: they have the others' colours
LAYERS = 3  # times at most that they are cut off


class Layout(NamedTuple):
    """Where a mesh is in its texture. Vertices are doubled where charts meet."""

    of: np.ndarray  # [V'] which vertices these are
    faces: np.ndarray  # [F, 3] of them
    uv: np.ndarray  # [V', 2] in [0, 1], v upwards
    shown: np.ndarray  # [S, S] the face at each texel, the first row for v = 0; -1: none
    weights: np.ndarray  # [S, S, 3] of its corners there


def laid_out(vertices: np.ndarray, faces: np.ndarray, size: int) -> Layout:
    """Vertices [V, 3] and faces [F, 3] in a square of `size` texels along a side."""
    neighbours = _neighbours(faces, len(vertices))
    axis, layer = _main_axes(vertices, faces, neighbours), np.zeros(len(faces), np.int64)
    while True:
        layout, depth = _packed(vertices, faces, size, axis, _charts(neighbours, 6 * layer + axis))
        folded = _folded(layout, depth)
        if folded.mean() <= FEW or layer.max() == LAYERS:
            return layout
        layer += folded  # these get charts of their own


def _neighbours(faces: np.ndarray, n_vertices: int) -> np.ndarray:
    """Pairs [N, 2] of faces with a common edge."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), 1).astype(np.int64)
    of, key = np.tile(np.arange(len(faces)), 3), edges[:, 0] * n_vertices + edges[:, 1]
    order = np.argsort(key, kind='stable')
    same = np.flatnonzero(key[order][1:] == key[order][:-1])
    return np.stack([of[order][same], of[order][same + 1]], 1)


def _main_axes(vertices: np.ndarray, faces: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """For each face which of x, y, z, -x, -y, -z it and those around it face most, or it alone, if it hardly faces
    that."""
    corners = vertices[faces].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    own = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)
    joined = sparse.coo_matrix((np.ones(len(neighbours)), neighbours.T), shape=(len(faces),) * 2).tocsr()
    joined = joined + joined.T
    for _ in range(ROUNDS):
        normals = normals + joined @ normals
    towards = np.concatenate([own, -own], 1)
    axis = np.concatenate([normals, -normals], 1).argmax(1)
    steep = np.take_along_axis(towards, axis[:, None], 1)[:, 0] < STEEP
    return np.where(steep, towards.argmax(1), axis)


def _charts(neighbours: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Numbers of the charts that faces [F] are in: those with one label that are connected."""
    a, b = neighbours[label[neighbours[:, 0]] == label[neighbours[:, 1]]].T
    graph = sparse.coo_matrix((np.ones(len(a)), (a, b)), shape=(len(label),) * 2)
    return csgraph.connected_components(graph, directed=False)[1]


def _packed(vertices: np.ndarray, faces: np.ndarray, size: int, axis: np.ndarray,
            chart: np.ndarray) -> tuple[Layout, np.ndarray]:
    """The layout of charts that are each seen along an axis, and the vertices' depths [V'] along it, in texels."""
    import xatlas

    corners, along = vertices[faces], axis % 3
    depth, u, v = (np.take_along_axis(corners, ((along + turn) % 3)[:, None, None].repeat(3, 1), 2)[..., 0]
                   for turn in range(3))
    u = np.where((axis >= 3)[:, None], -u, u)  # seen from the other side
    _, first, corner = np.unique(chart[:, None] * np.int64(len(vertices)) + faces, return_index=True,
                                 return_inverse=True)
    flat = np.stack([u.ravel()[first], v.ravel()[first]], 1).astype(np.float32)
    atlas, options = xatlas.Atlas(), xatlas.PackOptions()
    options.resolution, options.padding = size, PADDING
    atlas.add_uv_mesh(flat, corner.reshape(-1, 3).astype(np.uint32), chart[:, None].astype(np.uint32))
    atlas.generate(xatlas.ChartOptions(), options)
    index, corner, uv = atlas.get_mesh(0)
    places, corner = uv.astype(np.float64) * size - 0.5, corner.astype(np.int64)
    shown, weights = rasterised(np.column_stack([places, np.ones(len(places))]), corner, size, size)
    scale = _length(places, corner) / max(_length(flat[index], corner), 1e-20)  # texels in a unit
    layout = Layout(faces.ravel()[first][index], corner, uv, shown, weights)
    return layout, depth.ravel()[first][index] * scale


def _length(points: np.ndarray, faces: np.ndarray) -> float:
    """The length of all edges."""
    return float(np.linalg.norm(points[faces] - points[np.roll(faces, 1, 1)], axis=-1).sum())


def _folded(layout: Layout, depth: np.ndarray) -> np.ndarray:
    """Which faces [F] lie far above or below what is shown where their middle is."""
    size = len(layout.shown)
    middle = (layout.uv[layout.faces].mean(1) * size).astype(np.int64).clip(0, size - 1)
    row, column = middle[:, 1], middle[:, 0]
    there = (layout.weights[row, column] * depth[layout.faces[layout.shown[row, column]]]).sum(1)
    apart = np.abs(depth[layout.faces].mean(1) - there) > FOLDED
    return apart & (layout.shown[row, column] >= 0)
