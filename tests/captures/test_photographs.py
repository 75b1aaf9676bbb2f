"""photographs.py: which files of a scene's folder are photographs and videos."""

from __future__ import annotations

from pathlib import Path

import pytest

from nerf.captures.photographs import find_pictures, listed, readable, scene_folder
from nerf.runtime.errors import UserError

ENOUGH = 3  # photographs, so that a video of the same name is that of a Live Photo


def scene(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(folder: Path) -> tuple[str, list[str], dict[str, str]]:
    """Folder of the photographs, photographs in it, and videos by their names, all relative to the scene's folder."""
    pictures = find_pictures(folder, ENOUGH)
    return (pictures.home.relative_to(folder).as_posix(), [pictures.relative(path) for path in pictures.photographs],
            {name: path.relative_to(folder).as_posix() for name, path in pictures.videos.items()})


@pytest.mark.parametrize(('names', 'home', 'photographs'), [
    (['images/b.jpg', 'images/a.JPG', 'cover.jpg', 'input/c.jpg'], 'images', ['a.JPG', 'b.jpg']),
    (['input/b.jpg', 'input/a.jpg', 'cover.jpg', 'images/notes.txt'], 'input', ['a.jpg', 'b.jpg']),
    (['a.jpg', 'b.webp', 'c.tif', 'd.TIFF', 'e.bmp', 'f.heic', 'g.png', 'h.txt'], '.',
     ['a.jpg', 'b.webp', 'c.tif', 'd.TIFF', 'e.bmp', 'f.heic', 'g.png']),
    (['images/right/1.jpg', 'images/left/1.jpg'], 'images', ['left/1.jpg', 'right/1.jpg']),
    (['day 2/1.jpg', 'day 1/x/1.jpg', 'top.jpg'], '.', ['day 1/x/1.jpg', 'day 2/1.jpg', 'top.jpg']),
    (['unzipped/images/1.jpg'], '.', ['unzipped/images/1.jpg']),
    ([], 'images', []),
    (['1.jpg', 'images_4/1.jpg', 'masks/1.png', '.trash/1.jpg', '._1.jpg', '__MACOSX/1.jpg', '@eaDir/1.jpg',
      'train/r_0.png', 'logs/run/1.png', 'logs/run/1.mp4'], '.',
     ['1.jpg'])])
def test_where_photographs_are(tmp_path, names, home, photographs):
    assert found(scene(tmp_path, *names)) == (home, photographs, {})


def test_photographs_of_several_scenes_are_not_one(tmp_path):
    scene(tmp_path, 'fox/images/1.jpg', 'can/images/1.jpg', 'can/images/2.jpg')
    with pytest.raises(UserError, match='has the photographs of 2 scenes, can, fox; name the folder of one'):
        find_pictures(tmp_path, ENOUGH)


def test_videos_have_names_that_differ(tmp_path):
    scene(tmp_path, 'clip.mp4', 'clip.MOV', 'day 1/a.mkv', 'images/b.mp4', 'images/1.jpg', 'images/b/c.mp4')
    assert found(tmp_path)[2] == {'clip_mp4': 'clip.mp4', 'clip_MOV': 'clip.MOV', 'day 1_a': 'day 1/a.mkv',
                                  'b': 'images/b.mp4', 'b_c': 'images/b/c.mp4'}


def test_seconds_of_live_photos_are_no_videos(tmp_path):
    names = [f'IMG_{i}.{ending}' for i in range(ENOUGH) for ending in ('HEIC', 'MOV')]
    scene(tmp_path, *names, 'IMG_9.MOV')
    assert found(tmp_path)[2] == {'IMG_9': 'IMG_9.MOV'}
    assert [path.name for path in find_pictures(tmp_path, ENOUGH).others] == ['IMG_0.MOV', 'IMG_1.MOV', 'IMG_2.MOV']


def test_a_video_beside_its_thumbnail_is_a_video(tmp_path):
    assert found(scene(tmp_path, 'clip.mp4', 'clip.jpg'))[2] == {'clip': 'clip.mp4'}


def test_a_video_by_itself_is_a_scene_beside_it(tmp_path):
    scene(tmp_path, 'clip.mp4', 'other.mp4', 'photo.jpg')
    assert scene_folder(tmp_path / 'clip.mp4') == tmp_path / 'clip'
    assert scene_folder(tmp_path) == tmp_path
    pictures = find_pictures(tmp_path / 'clip.mp4', ENOUGH)
    assert (pictures.home, pictures.photographs) == (tmp_path / 'clip' / 'images', [])
    assert pictures.videos == {'clip': tmp_path / 'clip.mp4'}


def test_a_video_without_an_ending_gets_a_folder_of_another_name(tmp_path):
    assert scene_folder(scene(tmp_path, 'clip') / 'clip') == tmp_path / 'clip.scene'


@pytest.mark.parametrize(('name', 'words'), [('nowhere', 'is not a folder'), ('1.jpg', 'is one photograph')])
def test_what_is_no_scene_is_refused(tmp_path, name, words):
    with pytest.raises(UserError, match=f'{name} {words}'):
        find_pictures(scene(tmp_path, '1.jpg') / name, ENOUGH)


# Links


def test_linked_folders_and_photographs_keep_their_names_in_the_scene(tmp_path):
    store = scene(tmp_path / 'disk', 'one/1.jpg', 'two/2.jpg', 'clip.mp4')
    folder = tmp_path / 'scene'
    folder.mkdir()
    (folder / 'images').symlink_to(store / 'one', target_is_directory=True)
    (store / 'one' / '0.jpg').symlink_to(store / 'two' / '2.jpg')
    (folder / 'film.mp4').symlink_to(store / 'clip.mp4')
    assert found(folder) == ('images', ['0.jpg', '1.jpg'], {'film': 'film.mp4'})


def test_folders_that_link_to_one_another_are_read_once(tmp_path):
    scene(tmp_path, 'images/a/1.jpg')
    (tmp_path / 'images' / 'a' / 'up').symlink_to(tmp_path / 'images', target_is_directory=True)
    (tmp_path / 'images' / 'b').symlink_to(tmp_path / 'images' / 'a', target_is_directory=True)
    assert found(tmp_path)[1] == ['a/1.jpg']


def test_links_to_nothing_are_named_and_left_out(tmp_path, capsys):
    scene(tmp_path, 'images/1.jpg')
    (tmp_path / 'images' / '0.jpg').symlink_to(tmp_path / 'gone.jpg')
    assert [path.name for path in readable(find_pictures(tmp_path, ENOUGH), 1)] == ['1.jpg']
    assert '1 photographs are links to files that do not exist: 0.jpg; they are left out' in capsys.readouterr().err


def test_ten_names_are_listed():
    names = [str(i) for i in range(12)]
    assert listed(names[:10]) == '0, 1, 2, 3, 4, 5, 6, 7, 8, 9'
    assert listed(names) == '0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more'
