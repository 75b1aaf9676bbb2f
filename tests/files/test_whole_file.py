"""nerf/files/whole_file.py: a file is whole, or as it was."""

import pytest

from nerf.files.whole_file import PARTIAL, whole_file
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
