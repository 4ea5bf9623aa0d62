"""Files are complete or absent, and nothing that was there is lost."""

import errno
import os
import re

import pytest

from jaxtrader import files
from jaxtrader.errors import JaxtraderError
from jaxtrader.files import move_aside, timestamp, write_whole


def test_write_whole_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "reports" / "new" / "summary.md"
    write_whole(path, "first, é\n")
    assert path.read_bytes() == "first, é\n".encode()
    write_whole(path, "second\n")
    assert path.read_text() == "second\n"
    assert list(path.parent.iterdir()) == [path]


def test_write_whole_takes_bytes_too(tmp_path):
    write_whole(tmp_path / "figure.png", b"\x89PNG\r\n\x1a\n")
    assert (tmp_path / "figure.png").read_bytes() == b"\x89PNG\r\n\x1a\n"


def fails_with(number):
    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO])
def test_a_failed_rename_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, number):
    path = tmp_path / "summary.json"
    write_whole(path, "old")
    monkeypatch.setattr(files.os, "replace", fails_with(number))
    with pytest.raises(JaxtraderError, match="cannot be written") as caught:
        write_whole(path, "new")
    assert str(path) in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert "--output-dir" in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_whole(path, "old")

    def half_written(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(path), "write_bytes", half_written)
    with pytest.raises(JaxtraderError, match="No space left"):
        write_whole(path, "new and longer")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(JaxtraderError, match=r"summary\.json: cannot be written"):
        write_whole(tmp_path / "summary.json", "text")
    assert (tmp_path / "summary.json").is_dir()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_where_a_folder_should_be(tmp_path):
    """Nothing can be written, nor looked for, below a file."""
    (tmp_path / "reports").write_text("mine")
    with pytest.raises(JaxtraderError, match=r"summary\.json: cannot be written"):
        write_whole(tmp_path / "reports" / "now" / "summary.json", "text")
    assert (tmp_path / "reports").read_text() == "mine"


def test_move_aside_keeps_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "timestamp", lambda: "20260131T235959Z")
    folder = tmp_path / "seed_42"
    kept = []
    for content in ("first", "second", "third"):
        folder.mkdir()
        (folder / "state").write_text(content)
        kept.append(move_aside(folder))
        assert not folder.exists()
    assert [path.name for path in kept] == [
        "seed_42.until-20260131T235959Z",
        "seed_42.until-20260131T235959Z-2",
        "seed_42.until-20260131T235959Z-3",
    ]
    assert [(path / "state").read_text() for path in kept] == ["first", "second", "third"]


def test_move_aside_of_nothing(tmp_path):
    assert move_aside(tmp_path / "absent") is None
    assert list(tmp_path.iterdir()) == []


def test_move_aside_that_fails_says_so(tmp_path, monkeypatch):
    folder = tmp_path / "seed_42"
    folder.mkdir()
    monkeypatch.setattr(type(folder), "rename", fails_with(errno.EACCES))
    with pytest.raises(JaxtraderError, match="seed_42: cannot be moved aside") as caught:
        move_aside(folder)
    assert "--output-dir" in str(caught.value)
    assert folder.is_dir()


def test_timestamps_are_utc_and_sort_like_time():
    assert re.fullmatch(r"\d{8}T\d{6}Z", timestamp())
