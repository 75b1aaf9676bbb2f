"""nerf/files/scene_files.py: JSON, names and places of files."""

from __future__ import annotations

import pytest

from nerf.files.scene_files import check_all_there, clean_name, first_file, is_file, is_inside, read_json
from nerf.runtime.errors import UserError


def test_json_is_read_as_it_is(tmp_path):
    (tmp_path / 'a.json').write_text('{"a": [1, null, "\u00e4"]}', encoding='utf-8')
    assert read_json(tmp_path / 'a.json', 'make it') == {'a': [1, None, 'ä']}


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


def test_the_first_file_is_taken_and_missing_ones_are_counted(tmp_path):
    paths = [tmp_path / 'a', tmp_path / 'b', tmp_path / '\0', tmp_path / 'c']
    assert first_file(*paths) == paths[0]
    for path in (paths[3], paths[1]):
        path.write_text('')
    assert first_file(*paths) == paths[1]
    assert [is_file(path) for path in paths] == [False, True, False, True]
    with pytest.raises(UserError, match=r'2 of 4 photographs are missing, the first is .*/a'):
        check_all_there(paths, 'photographs')
    check_all_there(paths[1::2], 'photographs')
