"""Only regular files of a bounded size are opened, and at once refused are those that would wait or never end."""

import os

import pytest

from conftest import fails
from minibd import checkpoint, data
from minibd.digest import file_digest
from minibd.regular import check_regular, open_regular, read_regular

pytestmark = pytest.mark.skipif(os.name != "posix", reason="FIFOs and devices are posix's")


def place(file, kind: str) -> None:
    if kind == "FIFO":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to({"device": "/dev/zero", "loop": file.name, "dangling": "nowhere"}[kind])


@pytest.mark.parametrize("kind, word", [
    ("FIFO", "a FIFO"), ("folder", "a folder"), ("device", "a device"), ("loop", "symbolic links"),
    ("dangling", "No such file"),
])
def test_what_is_no_regular_file(tmp_path, kind, word):
    place(tmp_path / "x.tsv", kind)
    for read in (check_regular, open_regular, read_regular, file_digest, data.read):
        fails(lambda: read(tmp_path / "x.tsv"), "x.tsv", word)


def test_regular_files_links_to_them_and_limits(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").symlink_to("a")
    assert read_regular(tmp_path / "b") == b"12345" == read_regular(tmp_path / "a", 5)
    fails(lambda: read_regular(tmp_path / "b", 4, "take a smaller one"), "5 bytes", "at most 4", "take a smaller one")
    fails(lambda: check_regular("nul\0"), "null")
    fails(lambda: check_regular("\ud800"), "<U+D800>")


@pytest.mark.parametrize("name", [
    "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "minibd.json", "model.safetensors",
    "special_tokens_map.json",
])
@pytest.mark.parametrize("kind", ["FIFO", "device"])
def test_a_checkpoint_of_them(tiny, tmp_path, name, kind):
    checkpoint.save(tiny, tmp_path / "m")
    (tmp_path / "m" / name).unlink(missing_ok=True)
    place(tmp_path / "m" / name, kind)
    fails(lambda: checkpoint.load(tmp_path / "m"), str(tmp_path / "m"))


def test_a_sparse_file_of_many_gigabytes(tiny, tmp_path):
    checkpoint.save(tiny, tmp_path / "m")
    for name in ("tokenizer.json", "vocab.txt", "merges.txt"):      # the last is read by nobody here
        with open(tmp_path / "m" / name, "ab") as opened:
            opened.truncate(40 << 30)
        fails(lambda: checkpoint.load(tmp_path / "m"), name, "bytes")
        os.truncate(tmp_path / "m" / name, 10)
