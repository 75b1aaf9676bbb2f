"""The shipped scene: its views, its cameras and its true mesh."""

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh

from load_blender import load_blender_data

FOLDER = Path(__file__).parents[1] / 'data' / 'toy_chair'


@pytest.fixture(scope='module')
def chair():
    return load_blender_data(FOLDER)


def test_it_has_its_views_with_soft_edges_within_four_megabytes(chair):
    images, _, _, (H, W, focal), i_split = chair
    assert [len(split) for split in i_split] == [60, 8, 12]
    assert images.shape == (80, 128, 128, 4)
    assert (H, W) == (128, 128)
    assert focal == pytest.approx(64 / np.tan(0.6911112070083618 / 2))
    alpha = images[..., 3]
    assert (alpha[:, [0, -1]] == 0).all()  # nothing is cut off
    assert (alpha[:, :, [0, -1]] == 0).all()
    assert 0.01 < ((alpha > 0) & (alpha < 255)).mean() < 0.1
    assert sum(path.stat().st_size for path in FOLDER.rglob('*') if path.is_file()) < 4e6


def test_its_cameras_are_on_the_upper_hemisphere_and_look_at_the_origin(chair):
    poses = chair[1]
    positions = poses[:, :3, 3]
    np.testing.assert_allclose(np.linalg.norm(positions, axis=-1), 4.0, rtol=1e-5)
    assert (positions[:, 2] > 0).all()
    np.testing.assert_allclose(poses[:, :3, 2], positions / 4.0, atol=1e-5)  # they look along their own -z
    names = [frame['file_path'] for split in ('train', 'val', 'test')
             for frame in json.loads((FOLDER / f'transforms_{split}.json').read_text())['frames']]
    assert len(set(names)) == len(np.unique(positions.round(4), axis=0)) == 80


def test_the_true_mesh_is_where_the_pictures_show_it(chair):
    images, poses, _, (H, W, focal), _ = chair
    mesh = trimesh.load(FOLDER / 'toy_chair.ply', process=False)
    assert mesh.visual.kind == 'vertex'
    for image, pose in zip(images, poses):
        local = (mesh.vertices - pose[:3, 3]) @ pose[:3, :3]
        column = np.rint(W / 2 + focal * local[:, 0] / -local[:, 2]).astype(int)
        row = np.rint(H / 2 - focal * local[:, 1] / -local[:, 2]).astype(int)
        assert (image[row, column, 3] > 0).mean() > 0.99
        rows, columns = np.nonzero(image[..., 3])  # and they show no more than it
        assert abs(row.min() - rows.min()) <= 1
        assert abs(row.max() - rows.max()) <= 1
        assert abs(column.min() - columns.min()) <= 1
        assert abs(column.max() - columns.max()) <= 1


def test_its_gloss_moves_with_the_view(chair):
    """Seen from another side, the same vertex in full view has another colour where it is glossy."""
    images, poses, _, (H, W, focal), _ = chair
    mesh = trimesh.load(FOLDER / 'toy_chair.ply', process=False)
    matte = mesh.visual.vertex_colors[:, :3].astype(float)
    brighter = []
    for image, pose in zip(images, poses):
        local = (mesh.vertices - pose[:3, 3]) @ pose[:3, :3]
        column = np.rint(W / 2 + focal * local[:, 0] / -local[:, 2]).astype(int)
        row = np.rint(H / 2 - focal * local[:, 1] / -local[:, 2]).astype(int)
        facing = (mesh.vertex_normals * (pose[:3, 3] - mesh.vertices)).sum(-1) > 0
        seen = facing & (image[row, column, 3] == 255)
        brighter.append(seen & ((image[row, column, :3] - matte).min(-1) > 40))
    often = np.mean(brighter, 0)
    assert ((often > 0.05) & (often < 0.5)).sum() > 100
