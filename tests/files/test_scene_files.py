"""nerf/files/scene_files.py: JSON, names and places of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from nerf.files.scene_files import (
    SceneFolder, clean_name, contents, first_file, is_file, is_inside, is_there, leaves, none_there, read_json,
    say_assumed, told_apart, usable,
)
from nerf.runtime.errors import UserError


def test_json_is_read_as_it_is(tmp_path):
    (tmp_path / 'a.json').write_text('{"a": [1, null, "\u00e4"]}', encoding='utf-8')
    assert read_json(tmp_path / 'a.json', 'make it') == {'a': [1, None, 'ä']}


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-32'])
def test_json_of_any_unicode_encoding_is_read(tmp_path, encoding):
    (tmp_path / 'a.json').write_bytes('{"a": "ä"}'.encode(encoding))
    assert read_json(tmp_path / 'a.json', 'make it') == {'a': 'ä'}


@pytest.mark.parametrize('content', [b'', b'{', b'\xff\xfe', b'[' * 100000, None])
def test_a_file_that_is_no_json_or_missing_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / 'a.json'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_json(path, 'make it')
    assert str(path) in str(error.value)
    assert ('does not exist; make it' if content is None else 'cannot be read as JSON') in str(error.value)


def test_a_folder_is_no_json(tmp_path):
    with pytest.raises(UserError, match='cannot be read as JSON'):
        read_json(tmp_path, 'make it')


@pytest.mark.parametrize(('name', 'clean'), [
    ('a.png', 'a.png'), ('./a/./b.png', 'a/b.png'), ('a\\b.png', 'a/b.png'), ('../a', '../a'), ('/a', '/a'),
    ('.', '.')])
def test_names_have_slashes_and_no_dots(name, clean):
    assert clean_name(name) == clean


@pytest.mark.parametrize('name', ['', None, 3, ['a'], 'x' * 4097])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ValueError, match='it must be the name of a file'):
        clean_name(name)


def test_a_file_is_inside_once_links_are_followed(tmp_path):
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in/loop').symlink_to(tmp_path / 'in/loop')
    (tmp_path / 'in/out').symlink_to(tmp_path)
    (tmp_path / 'link').symlink_to(tmp_path / 'in')
    assert is_inside(tmp_path / 'in/a.png', tmp_path / 'link')
    assert is_inside(tmp_path / 'link/a.png', tmp_path / 'in')
    for name in ('in/out/a.png', 'in/../a.png', 'inside/a.png', 'in/\0', '/'):
        assert not is_inside(tmp_path / name, tmp_path / 'in')


def test_without_following_links_a_name_alone_decides(tmp_path):
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in/out').symlink_to(tmp_path)
    for name in ('a.png', 'out/a.png', 'b/c.png'):
        assert is_inside(tmp_path / 'in' / name, tmp_path / 'in', follow_links=False)
    for name in ('../a.png', 'b/../../a.png', '/etc/passwd', '../inside/a.png'):
        assert not is_inside(tmp_path / 'in' / name, tmp_path / 'in', follow_links=False)


def test_the_first_file_is_taken(tmp_path):
    paths = [tmp_path / 'a', tmp_path / 'b', tmp_path / '\0', tmp_path / 'c']
    assert first_file(*paths) == paths[0]
    for path in (paths[3], paths[1]):
        path.write_text('')
    assert first_file(*paths) == paths[1]
    assert [is_file(path) for path in paths] == [False, True, False, True]
    assert not any(map(is_there, [*paths, None]))  # they are empty
    paths[1].write_text('b')
    assert is_there(paths[1])


def test_if_no_file_is_there_the_message_says_what_is(tmp_path):
    scene_of(tmp_path, 'c.png')
    assert none_there([tmp_path / 'a.png', tmp_path / 'b.png'], 'masks') == (
        f"2 of 2 masks are missing, the first is '{tmp_path / 'a.png'}', but '{tmp_path}' has c.png; copy the masks "
        'there')
    assert (f"but '{tmp_path / 'gone'}' has nothing, and '{tmp_path}' has c.png; copy the photographs there"
            in none_there([tmp_path / 'gone/a.png']))


def test_a_guess_that_another_name_means_too_is_no_file(tmp_path):
    folder = SceneFolder(scene_of(tmp_path, 'images/a.png', 'images/b.png'))
    found = [folder.find(name) for name in ('images/a.png', '/x/a.png', '/x/b.png')]
    assert [each.missing for each in told_apart(folder, found)] == [False, True, False]
    assert [each.missing for each in told_apart(folder, found, {found[2].path})] == [False, True, True]
    found = [folder.find(name) for name in ('/x/a.png', '/y/a.png')]
    assert [each.path for each in told_apart(folder, found)] == [Path('/x/a.png'), Path('/y/a.png')]


def test_links_and_names_that_leave_a_folder_are_told_apart(tmp_path):
    scene_of(tmp_path, 'a.png', 'scene/b.png')
    (tmp_path / 'scene/link.png').symlink_to(tmp_path / 'a.png')
    assert leaves(tmp_path / 'scene/link.png', tmp_path / 'scene').startswith(f"is a link to '{tmp_path / 'a.png'}'")
    assert leaves(tmp_path / 'scene/../a.png', tmp_path / 'scene') == f"leaves the folder {tmp_path / 'scene'}"


def scene_of(folder: Path, *names: str) -> Path:
    """Folder with empty files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


E_COMPOSED, E_DECOMPOSED = '\u00e9', 'e\u0301'
BY_THE_END, ENDING, SPELLING = 'by the end of their path', 'under another ending', 'in another spelling'


@pytest.mark.parametrize(('there', 'name', 'assumed'), [
    ('train/a.png', 'train/a.png', ''),
    ('train/a.png', './train/a', ''),
    ('train/a.webp', 'train\\a', ''),
    ('train/a.png', '.\\train\\a.png', ''),
    ('a.b.0001.png', 'a.b.0001', ''),
    ('train/a.png.png', 'train/a.png', ENDING),
    ('train/a.jpg', 'train/a.png', ENDING),
    ('train/a.jpg', 'train/a.HEIC', ENDING),
    ('train/a.PNG', 'train/a', SPELLING),
    ('Train/A.png', 'train/a.png', SPELLING),
    (f'caf{E_DECOMPOSED}.png', f'caf{E_COMPOSED}.png', SPELLING),
    (f'CAF{E_COMPOSED}.JPG', f'caf{E_DECOMPOSED}.png', f'{SPELLING}, {ENDING}'),
    ('train/a.png', '/home/somebody/scene/train/a.png', BY_THE_END),
    ('train/a.png', 'C:\\Users\\Some Body\\scene\\train\\a.png', BY_THE_END),
    ('images/a.png', '/elsewhere/frames/a.png', BY_THE_END),
    ('images/a.jpg', '../other/a.png', f'{BY_THE_END}, {ENDING}'),
    ('images/a.png', 'a.png', BY_THE_END),
])
def test_a_file_is_found_by_what_its_name_means(tmp_path, there, name, assumed):
    found = SceneFolder(scene_of(tmp_path, there, 'other/b.png')).find(name)
    assert found == (name, tmp_path / there, assumed, False, False)


def test_the_longest_end_of_a_path_and_the_nearest_spelling_are_taken(tmp_path):
    folder = SceneFolder(scene_of(tmp_path, 'a.png', 'x/a.png', 'y/x/a.png', 'b.JPG', 'b.png', 'c.PNG', 'C.png'))
    assert folder.find('/home/y/x/a.png').path == tmp_path / 'y/x/a.png'
    assert folder.find('/home/z/x/a.png').path == tmp_path / 'x/a.png'
    assert folder.find('b.jpg').path == tmp_path / 'b.JPG'
    assert folder.find('C.png').path == tmp_path / 'C.png'
    assert folder.find('c.png').missing  # two files have that name but for their case


def test_other_files_are_no_photographs(tmp_path):
    folder = SceneFolder(scene_of(tmp_path, 'masks/a.png', 'a.txt', 'cam.png', 'points.ply'))
    for name in ('images/a.png', 'a', 'cam.left'):
        assert folder.find(name).missing
    assert folder.find('/home/points.ply', endings=()).path == tmp_path / 'points.ply'


def test_files_outside_the_folder_are_told_from_missing_ones(tmp_path):
    scene_of(tmp_path, 'a.png', 'scene/b.png')
    (tmp_path / 'scene/link.png').symlink_to(tmp_path / 'a.png')
    for name in ('../a.png', str(tmp_path / 'a.png'), 'link.png', 'link'):
        found = SceneFolder(tmp_path / 'scene').find(name)
        assert (found.outside, found.missing) == (True, False)
        assert SceneFolder(tmp_path / 'scene', outside_files=True).find(name)[3:] == (False, False)
    assert SceneFolder(tmp_path / 'scene', links=True).find('link.png')[3:] == (False, False)
    assert SceneFolder(tmp_path / 'scene', links=True).find('../a.png').outside
    for name in ('../c.png', '/c.png', 'c\0.png', '.', '/', 'x' * 300):
        assert SceneFolder(tmp_path / 'scene', outside_files=True).find(name).missing
    with pytest.raises(ValueError, match='it must be the name of a file'):
        SceneFolder(tmp_path).find(None)


def test_one_line_says_what_was_assumed_for_all_files_of_a_kind(tmp_path, capsys):
    folder = SceneFolder(scene_of(tmp_path, 'images/a.png', 'images/b.png', 'images/C.png', 'images/d.png'))
    names = '/x/a.png', '/x/b.png', 'images/c.png', 'images/d'
    say_assumed(tmp_path / 't.json', [folder.find(name) for name in names])
    first, second = capsys.readouterr().err.splitlines()
    assert first == (f"warning: {tmp_path / 't.json'}: 2 of 4 photographs were found by the end of their path; "
                     f"'/x/a.png' is '{tmp_path / 'images/a.png'}'")
    assert second.startswith(f"warning: {tmp_path / 't.json'}: 1 of 4 photographs were found in another spelling")


def test_what_is_missing_is_left_out_with_its_names_and_what_two_names_mean_is_nobodys(tmp_path, capsys):
    folder = SceneFolder(scene_of(tmp_path, 'a.png', 'b.png', 'images/c.png'))
    names = ['a', 'x/b.png', 'x', 'left/c.png', 'right/c.png', 'y', 'b.png', 'a']
    assert usable(tmp_path / 't.json', [folder.find(name) for name in names]) == [0, 6, 7]
    assert capsys.readouterr().err == (f"warning: {tmp_path / 't.json'}: 5 of 8 photographs are missing and left out: "
                                       "'x/b.png', 'x', 'left/c.png' ...\n")


def test_files_that_are_all_missing_or_outside_are_an_error_that_names_what_is_there(tmp_path):
    folder = SceneFolder(scene_of(tmp_path / 'scene', 'a.png', 'b/c.png'))
    with pytest.raises(UserError) as error:
        usable(tmp_path / 'scene/t.json', [folder.find(name) for name in 'xy'], 'masks')
    assert str(error.value) == (f"{tmp_path / 'scene/t.json'}: all 2 masks that it names are missing: 'x', 'y'; "
                                f"{tmp_path / 'scene'} has a.png, b")
    scene_of(tmp_path, 'd.png')
    with pytest.raises(UserError, match=r"names '\.\./d\.png', which leaves the folder"):
        usable(tmp_path / 'scene/t.json', [folder.find(name) for name in ('a', '../d.png')])


def test_contents_are_a_few_names_and_a_count(tmp_path):
    assert contents(tmp_path) == contents(tmp_path / 'missing') == 'nothing'
    assert contents(scene_of(tmp_path, *'abcdefgh', '.hidden')) == 'a, b, c, d, e, f and 2 more'
