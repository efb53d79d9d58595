"""atomic_write(): whole or not at all, and what the system refuses is one line."""
import pytest

from conftest import fails
from minibd.atomic import atomic_write


def write(path, text="new", error=None):
    with atomic_write(path) as draft:
        draft.write_text(text[:1])
        if error:
            raise error
        draft.write_text(text)


def test_a_file_appears_whole_in_a_folder_that_was_not_there(tmp_path):
    write(tmp_path / "a" / "b.txt")
    assert [f.name for f in (tmp_path / "a").iterdir()] == ["b.txt"] and (tmp_path / "a" / "b.txt").read_text() == "new"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("mine")])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "b.txt"
    path.write_text("old")
    if isinstance(error, OSError):
        fails(lambda: write(path, error=error), str(path), "No space left on device")
    else:
        with pytest.raises(type(error)):
            write(path, error=error)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    fails(lambda: write(tmp_path / "file" / "below.txt"), "below.txt")
    fails(lambda: write(tmp_path / "folder"), "folder")
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2
