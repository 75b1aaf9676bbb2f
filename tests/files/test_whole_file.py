"""nerf/files/whole_file.py: a file or folder is whole, or as it was."""

import pytest

from nerf.files.whole_file import PARTIAL, whole_file, whole_folder
from nerf.runtime.errors import UserError


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / 'new' / 'file.txt'
    with whole_file(path) as partial:
        partial.write_text('one')
        assert not path.exists()
        assert partial.name == PARTIAL + 'file.txt'
        assert partial.suffix == '.txt'
    assert path.read_text() == 'one'

    def crash():
        with whole_file(path) as partial:
            partial.write_text('tw')
            raise RuntimeError('crash')
    with pytest.raises(RuntimeError):
        crash()
    assert path.read_text() == 'one'
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(('needed', 'size'), [(None, ''), (1234567, ', which needs 1,234,567 bytes,')])
def test_a_file_that_cannot_be_written_is_a_users_error(tmp_path, needed, size):
    occupied = tmp_path / 'occupied'
    occupied.write_text('a file where a folder is needed')
    message = f'^{occupied / "x.txt"}{size} cannot be written .*; free some space'
    with pytest.raises(UserError, match=message), whole_file(occupied / 'x.txt', needed):
        pass


def test_a_folder_is_whole_or_not_there(tmp_path):
    def interrupted():
        with whole_folder(tmp_path / 'new' / 'images') as partial:
            (partial / '1.jpg').touch()
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list((tmp_path / 'new').iterdir())
    with whole_folder(tmp_path / 'new' / 'images') as partial:
        (partial / '2.jpg').touch()
        assert not (tmp_path / 'new' / 'images').exists()
    assert [path.name for path in (tmp_path / 'new').rglob('*')] == ['images', '2.jpg']


def test_a_folder_that_another_process_made_meanwhile_stays(tmp_path):
    with whole_folder(tmp_path / 'images') as partial:
        (partial / '1.jpg').touch()
        (tmp_path / 'images').mkdir()
        (tmp_path / 'images' / '2.jpg').touch()
    assert [path.name for path in tmp_path.rglob('*')] == ['images', '2.jpg']


def test_a_folder_that_cannot_be_written_is_a_users_error(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=r'images cannot be written \(.*; free some space'), \
            whole_folder(tmp_path / 'file' / 'images'):
        pass
