"""nerf/formats.py: the registry of data formats, and what `load_scene` does for all of them."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import SMALL_RUN

import run_nerf
from nerf.flags import parse_flags
from nerf.formats import (
    FORMATS, data_flags, learns_exposure, load_scene, refines_cameras, sees_beyond,
)
from nerf.runtime.errors import UserError
from nerf.space import NDC, Bounded, Unbounded


def parsed(*argv: str):
    return parse_flags(['--expname', 'x', *argv])


def scene_of(folder, *argv: str):
    return load_scene(parsed('--datadir', str(folder), *argv))


BLENDER = ('--dataset_type', 'blender', '--testskip', '1')


# Entries


def test_there_are_six_formats_with_the_flags_that_each_reads():
    assert {name: {flag.name for flag in entry.flags} for name, entry in FORMATS.items()} == {
        'llff': {'factor', 'llffhold', 'no_ndc', 'contract', 'spherify'},
        'blender': {'half_res', 'testskip', 'mesh_coordinates'},
        'deepvoxels': {'shape', 'testskip'},
        'transforms': {'factor', 'llffhold', 'no_ndc', 'contract', 'mesh_coordinates', 'outside_files'},
        'colmap': {'factor', 'llffhold', 'no_ndc', 'contract', 'mesh_coordinates', 'outside_files'},
        'photos': {'factor', 'llffhold', 'no_ndc', 'contract', 'mesh_coordinates', 'outside_files', 'estimate_only',
                   'frames'}}


def test_flags_that_decide_the_data_are_the_general_ones_and_those_of_formats():
    assert data_flags() == {'dataset_type', 'datadir', 'white_bkgd', 'rays_through', 'half_res', 'shape', 'factor',
                            'llffhold', 'no_ndc', 'spherify'}


@pytest.mark.parametrize(('kind', 'exposure', 'expected'), [
    ('photos', 'auto', True), ('photos', 'off', False), ('transforms', 'auto', False), ('transforms', 'on', True),
    ('blender', 'auto', False)])
def test_exposure_is_learned_for_photos_unless_a_flag_says_otherwise(kind, exposure, expected):
    assert learns_exposure(parsed('--dataset_type', kind, '--exposure', exposure)) == expected


@pytest.mark.parametrize(('kind', 'field', 'refine', 'expected'), [
    ('photos', 'grid', 'auto', True), ('photos', 'grid', 'off', False), ('photos', 'mlp', 'auto', False),
    ('transforms', 'grid', 'auto', False), ('transforms', 'grid', 'on', True)])
def test_cameras_of_photos_are_refined_by_the_grid_unless_a_flag_says_otherwise(kind, field, refine, expected):
    args = parsed('--dataset_type', kind, '--field', field, '--refine_cameras', refine)
    assert refines_cameras(args, Bounded(1.0, 2.0), False) == expected


@pytest.mark.parametrize(('field', 'space', 'edited', 'advice'), [
    ('mlp', Bounded(1.0, 2.0), False, 'use field grid'), ('grid', Bounded(1.0, 2.0), True, 'edited get_rays'),
    ('grid', NDC(height=3, width=4, focal=5.0, farthest=9.0), False, 'set no_ndc')])
def test_cameras_that_cannot_be_refined_are_an_error_if_a_flag_asks_for_it(field, space, edited, advice):
    args = parsed('--dataset_type', 'photos', '--field', field)
    assert not refines_cameras(args, space, edited)
    args.refine_cameras = 'on'
    with pytest.raises(UserError, match=f'refine_cameras is on, but .*{advice}'):
        refines_cameras(args, space, edited)


@pytest.mark.parametrize(('argv', 'expected'), [
    ((), False), (('--contract', 'on'), True), (('--field', 'grid'), True), (('--dataset_type', 'colmap'), True),
    (('--dataset_type', 'colmap', '--contract', 'off'), False),
    (('--dataset_type', 'colmap', '--contract', 'off', '--field', 'grid'), True)])
def test_space_without_bounds_is_seen_by_the_grid_and_by_the_mlp_as_contract_says(argv, expected):
    assert sees_beyond(parsed(*argv)) == expected


# Wrong formats


@pytest.fixture(scope='module')
def one_of_each(tiny_scene, tiny_llff, tiny_transforms, tiny_colmap, tmp_path_factory) -> dict:
    """Folders of scenes by format."""
    folder = tmp_path_factory.mktemp('scenes')
    tiny_llff(folder / 'llff', reduced=False)
    shutil.copytree(folder / 'llff/images', folder / 'of_no_format/photos')
    (folder / 'deepvoxels/train/cube').mkdir(parents=True)
    (folder / 'deepvoxels/train/cube/intrinsics.txt').touch()
    for name, make in (('blender', tiny_scene), ('transforms', tiny_transforms), ('colmap', tiny_colmap)):
        make(folder / name)
    return {path.name: path for path in (*folder.iterdir(), folder / 'of_no_format/photos') if path.name in FORMATS}


@pytest.mark.parametrize('named', ['llff', 'blender', 'deepvoxels', 'transforms', 'colmap'])
def test_a_scene_of_another_format_is_recognised_by_every_reader(one_of_each, named):
    for fits, folder in one_of_each.items():
        if fits != named:
            with pytest.raises(UserError) as error:
                scene_of(folder, '--dataset_type', named)
            assert str(error.value).endswith(f'set dataset_type to {fits}')
            assert 'zip' not in str(error.value)


def test_photographs_that_are_not_there_are_looked_for_in_scenes_of_other_formats(one_of_each):
    with pytest.raises(UserError, match=r'0 photographs.* set dataset_type to blender$'):
        scene_of(one_of_each['blender'], '--dataset_type', 'photos')


@pytest.mark.parametrize(('name', 'datadir'), [('clip.mov', ''), ('clip.mp4', 'clip.mp4'), ('input/1.webp', '')])
def test_photographs_and_videos_without_cameras_are_for_photos(tmp_path, name, datadir):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=r'a video without cameras; set dataset_type to photos$'):
        scene_of(tmp_path / datadir, '--dataset_type', 'transforms')


@pytest.mark.parametrize('place', ['', 'blender/train'])
def test_a_scene_one_folder_below_or_above_is_named(one_of_each, tmp_path, place):
    shutil.copytree(one_of_each['blender'], tmp_path / 'blender')
    with pytest.raises(UserError, match=rf'A scene is in {re.escape(str(tmp_path / "blender"))}; set datadir to it and '
                                        'dataset_type to blender$'):
        scene_of(tmp_path / place, '--dataset_type', 'colmap')


def test_an_error_in_a_scene_of_the_right_format_says_nothing_of_others(tiny_scene, tmp_path):
    (tiny_scene(tmp_path) / 'poses_bounds.npy').write_bytes(b'')
    (tmp_path / 'transforms_train.json').write_text('{}')
    with pytest.raises(UserError) as error:
        scene_of(tmp_path, *BLENDER)
    assert 'another format' not in str(error.value)


def test_the_scene_of_a_video_is_the_folder_beside_it(tiny_transforms, tmp_path):
    tiny_transforms(tmp_path / 'clip')
    argv = '--dataset_type', 'photos', '--exposure', 'off'
    of_video, of_folder = (scene_of(tmp_path / name, *argv) for name in ('clip.mp4', 'clip'))
    assert np.array_equal(of_video.images.pixels, of_folder.images.pixels)


# What all formats share


@pytest.mark.parametrize(('argv', 'within'), [
    ((), 0.0), (('--rays_through', 'center'), 0.5), (('--field', 'grid'), 0.5)])
def test_rays_go_through_the_place_in_a_pixel_that_the_flag_names(scene_dir, argv, within):
    scene = scene_of(scene_dir, *BLENDER, *argv)
    assert (scene.cameras.within, scene.render_cameras.within) == (within, within)


def test_exposure_is_noted_in_the_scene(scene_dir, tiny_scene, tmp_path):
    wide = tiny_scene(tmp_path / 'scene', size=(16, 24))
    assert not scene_of(scene_dir, *BLENDER).exposure
    assert scene_of(wide, *BLENDER, '--exposure', 'on').exposure


@pytest.mark.parametrize(('size', 'argv', 'least'), [
    ((12, 10), (), '11x11'), ((10, 12), (), '11x11'), ((30, 21), ('--exposure', 'on'), '22x11')])
def test_images_too_small_to_measure_are_an_error_before_training(tiny_scene, tmp_path, capsys, size, argv, least):
    scene = tiny_scene(tmp_path / 'scene', size=size)
    assert run_nerf.main([*SMALL_RUN, '--datadir', str(scene), '--basedir', str(tmp_path), '--expname', 'run',
                          '--N_iters', '1', *argv]) == 1
    assert capsys.readouterr().err == (f"error: {scene}: images are {size[1]}x{size[0]} pixels; SSIM's window needs at "
                                       f'least {least}\n')
    assert not (tmp_path / 'run').exists()


def test_a_render_factor_that_leaves_nothing_is_an_error_before_training(flags, tmp_path, capsys):
    assert run_nerf.main(flags('--render_factor', '17', '--N_iters', '1')) == 1
    assert 'render_factor 17 leaves nothing of 16x16 pixels' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


def test_the_render_path_of_photographs_has_640_pixels_at_most_unless_a_size_is_asked_for(tiny_transforms, tmp_path):
    folder = tiny_transforms(tmp_path / 'scene', count=4, size=(12, 1300))

    def size(*more: str) -> tuple[int, int]:
        return scene_of(folder, '--dataset_type', 'transforms', *more).render_cameras.one_size()
    assert size() == (4, 433)  # a third
    assert size('--render_factor', '1') == size('--render_factor', '2') == (12, 1300)  # scaled while it is rendered


# Spaces


def test_a_format_and_its_flags_decide_the_space(scene_dir, tiny_llff, tiny_transforms, tmp_path):
    forward, around = tiny_llff(tmp_path / 'llff'), tiny_transforms(tmp_path / 'transforms')
    llff, transforms = ('--factor', '2'), ('--dataset_type', 'transforms')
    assert isinstance(scene_of(scene_dir, *BLENDER).space, Bounded)
    assert isinstance(scene_of(forward, *llff).space, NDC)
    assert isinstance(scene_of(forward, *llff, '--no_ndc').space, Bounded)
    assert isinstance(scene_of(forward, *llff, '--no_ndc', '--contract', 'on').space, Unbounded)
    assert isinstance(scene_of(forward, *llff, '--no_ndc', '--field', 'grid').space, Unbounded)
    assert isinstance(scene_of(around, *transforms).space, Unbounded)
    assert isinstance(scene_of(around, *transforms, '--contract', 'off').space, Bounded)


@pytest.mark.parametrize('kind', ['transforms', 'colmap', 'photos'])
def test_a_wrong_camera_of_a_capture_is_left_out_in_every_format(kind, tiny_transforms, tiny_colmap, tmp_path, capsys):
    if kind == 'colmap':
        folder, model = tiny_colmap(tmp_path)
        model.images[4].frame.rig_from_world.translation *= 30.0
        model.write(folder / 'sparse' / '0')
    else:
        folder = tiny_transforms(tmp_path)
        meta = json.loads((folder / 'transforms.json').read_text())
        for row in meta['frames'][3]['transform_matrix'][:3]:
            row[3] *= 30.0
        (folder / 'transforms.json').write_text(json.dumps(meta))
    scene = scene_of(folder, '--dataset_type', kind)
    assert len(scene.images) == 5
    assert scene.cameras.poses[:, :, 3].norm(dim=1).max() < 5.0
    assert scene.space.radius < 5.0
    assert '3.png; the camera stands far from all others' in capsys.readouterr().err


def test_photographs_are_read_at_full_size_and_a_format_gives_its_images_as_read(tiny_transforms, tmp_path):
    folder = tiny_transforms(tmp_path / 'scene', count=5, size=(24, 32))
    scene = scene_of(folder, '--dataset_type', 'transforms', '--llffhold', '3')
    assert scene.images.sizes.tolist() == [[24, 32]] * 5
    assert scene.images[2][0, 0].tolist() == [0, 0, 20]
    assert scene.i_test.tolist() == [0, 3]
    assert np.array_equal(np.sort(np.concatenate([scene.i_train, scene.i_test])), np.arange(5))
    assert scene_of(folder, '--dataset_type', 'transforms', '--factor', '2').images.sizes.tolist() == [[12, 16]] * 5
    assert scene.cameras.poses.dtype == torch.float32
