"""Layout of a mesh in a texture: charts seen along the axes, packed by xatlas. xatlas can find charts too, but takes a
minute for a mesh of 50,000 uneven faces where this takes seconds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from nerf.meshes.options import DEFAULTS, MeshSettings
from nerf.meshes.picture import rasterised
from nerf.meshes.triangles import neighbours


class Layout(NamedTuple):
    """Places of a mesh in its texture. Vertices are doubled where charts meet."""
    of: np.ndarray  # [V'] index of the mesh's vertex for each vertex here
    faces: np.ndarray  # [F, 3] indices of the vertices here
    uv: np.ndarray  # [V', 2] in [0, 1], v upwards
    shown: np.ndarray  # [S, S] index of the face at each texel, the first row for v = 0; -1: none
    weights: np.ndarray  # [S, S, 3] barycentric weights of the texel in its face


def laid_out(vertices: np.ndarray, faces: np.ndarray, size: int, settings: MeshSettings = DEFAULTS) -> Layout:
    """Layout of a mesh in a texture of `size` texels along a side."""
    pairs = neighbours(faces)
    axis, layer = _main_axes(vertices, faces, pairs, settings), np.zeros(len(faces), np.int64)
    while True:
        label = 6 * layer + axis
        joined = _joined(pairs[label[pairs[:, 0]] == label[pairs[:, 1]]], len(faces))
        chart = csgraph.connected_components(joined, directed=False)[1]
        layout, depth = _packed(vertices, faces, size, axis, chart, settings.chart_padding)
        folded = _folded(layout, depth, settings.folded_texels)
        if folded.mean() <= settings.folded_share or layer.max() == settings.chart_layers:
            return layout
        layer += folded  # these faces get charts of their own


def _main_axes(vertices: np.ndarray, faces: np.ndarray, pairs: np.ndarray, settings: MeshSettings) -> np.ndarray:
    """Axis [F] of each face's chart, one of x, y, z, -x, -y, -z: the one that the face and the faces around it face
    most. If the face itself hardly faces it, the one that the face alone faces most."""
    corners = vertices[faces].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    own = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)
    joined = _joined(pairs, len(faces))
    joined = joined + joined.T
    for _ in range(settings.chart_rounds):
        normals = normals + joined @ normals
    towards = np.concatenate([own, -own], 1)
    axis = np.concatenate([normals, -normals], 1).argmax(1)
    steep = np.take_along_axis(towards, axis[:, None], 1)[:, 0] < settings.chart_cosine
    return np.where(steep, towards.argmax(1), axis)


def _joined(pairs: np.ndarray, count: int) -> sparse.csr_matrix:
    """Matrix [F, F] of faces that is 1 at pairs [N, 2]."""
    return sparse.coo_matrix((np.ones(len(pairs)), pairs.T), shape=(count, count)).tocsr()


def _packed(vertices: np.ndarray, faces: np.ndarray, size: int, axis: np.ndarray, chart: np.ndarray,
            padding: int) -> tuple[Layout, np.ndarray]:
    """Layout of charts, each seen along its axis, with `padding` texels in between, and depths [V'] of its vertices
    along their charts' axes, in texels."""
    import xatlas  # only a mesh with a texture needs it

    corners, along = vertices[faces], axis % 3
    depth, u, v = (np.take_along_axis(corners, ((along + turn) % 3)[:, None, None].repeat(3, 1), 2)[..., 0]
                   for turn in range(3))
    u = np.where((axis >= 3)[:, None], -u, u)  # seen from the other side
    _, first, corner = np.unique(chart[:, None] * np.int64(len(vertices)) + faces, return_index=True,
                                 return_inverse=True)
    flat = np.stack([u.ravel()[first], v.ravel()[first]], 1).astype(np.float32)
    atlas, options = xatlas.Atlas(), xatlas.PackOptions()
    options.resolution, options.padding = size, padding
    atlas.add_uv_mesh(flat, corner.reshape(-1, 3).astype(np.uint32), chart[:, None].astype(np.uint32))
    atlas.generate(xatlas.ChartOptions(), options)
    index, corner, uv = atlas.get_mesh(0)
    places, corner = uv.astype(np.float64) * size - 0.5, corner.astype(np.int64)
    shown, weights = rasterised(np.column_stack([places, np.ones(len(places))]), corner, size, size)
    scale = _length(places, corner) / max(_length(flat[index], corner), 1e-20)  # texels per unit
    layout = Layout(faces.ravel()[first][index], corner, uv, shown, weights)
    return layout, depth.ravel()[first][index] * scale


def _length(points: np.ndarray, faces: np.ndarray) -> float:
    """Sum of the lengths of all faces' edges."""
    return float(np.linalg.norm(points[faces] - points[np.roll(faces, 1, 1)], axis=-1).sum())


def _folded(layout: Layout, depth: np.ndarray, apart: float) -> np.ndarray:
    """Faces [F] bool that lie more than `apart` texels above or below the face shown at the texel of their middle."""
    size = len(layout.shown)
    middle = (layout.uv[layout.faces].mean(1) * size).astype(np.int64).clip(0, size - 1)
    row, column = middle[:, 1], middle[:, 0]
    there = (layout.weights[row, column] * depth[layout.faces[layout.shown[row, column]]]).sum(1)
    return (np.abs(depth[layout.faces].mean(1) - there) > apart) & (layout.shown[row, column] >= 0)
