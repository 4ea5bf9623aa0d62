"""Files are complete or absent, and nothing that was there is lost."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtrader import files
from jaxtrader.errors import JaxtraderError
from jaxtrader.files import (
    Lock,
    move_aside,
    new_folder,
    remove_leftovers,
    timestamp,
    write_whole,
)

ROOT = Path(__file__).resolve().parents[1]


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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_late_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, number):
    """A network disk may have taken the content, and be full when it comes to keeping it."""
    path = tmp_path / "summary.json"
    write_whole(path, "old")
    monkeypatch.setattr(files.os, "fsync", fails_with(number))
    with pytest.raises(JaxtraderError, match=rf"summary\.json: .*{os.strerror(number)}"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP])
def test_a_folder_that_cannot_sync_is_used_without(tmp_path, monkeypatch, number):
    """Some network folders."""
    monkeypatch.setattr(files.os, "fsync", fails_with(number))
    write_whole(tmp_path / "summary.json", "new")
    assert (tmp_path / "summary.json").read_text() == "new"


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


def test_a_new_folder_is_nobody_elses(tmp_path, monkeypatch):
    path = tmp_path / "reports" / "20260131T235959Z"
    assert new_folder(path) == path
    assert new_folder(path).name == "20260131T235959Z-2"
    # Another process makes it between the look and the making.
    taken = iter([path, path.with_name("20260131T235959Z-3")])
    monkeypatch.setattr(files, "unused", lambda path: next(taken))
    assert new_folder(path).name == "20260131T235959Z-3"
    assert len(list(path.parent.iterdir())) == 3


def test_a_new_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "reports").write_text("mine")
    with pytest.raises(JaxtraderError, match=r"now: cannot be made .*--output-dir"):
        new_folder(tmp_path / "reports" / "now")


def test_what_a_killed_process_wrote_aside_is_removed(tmp_path):
    for name in (".a.csv.17.tmp", ".policy_seed_1.pt.17.tmp", "a.csv", ".hidden", "my.tmp"):
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path, "policy_seed_1.*")
    assert not (tmp_path / ".policy_seed_1.pt.17.tmp").exists()
    assert (tmp_path / ".a.csv.17.tmp").exists()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", ".hidden", "my.tmp"}
    remove_leftovers(tmp_path / "absent")


# ------------------------------------------------------------------------------------------ locks


def test_a_lock_has_one_holder(tmp_path):
    path = tmp_path / "logs" / ".42.lock"
    lock = Lock(path, "trains seed 42 there")
    with pytest.raises(JaxtraderError) as caught:
        Lock(path, "trains seed 42 there")
    message = str(caught.value)
    assert f"{path}: another process trains seed 42 there" in message
    assert "--output-dir" in message
    Lock(tmp_path / "logs" / ".43.lock", "trains seed 43 there").close()
    lock.close()
    lock.close()  # once more does no harm
    Lock(path, "trains seed 42 there").close()


def test_a_forgotten_lock_is_let_go_of(tmp_path):
    Lock(tmp_path / "lock", "works")
    Lock(tmp_path / "lock", "works").close()


def test_a_killed_holder_is_none(tmp_path):
    """The file stays and means nothing: the lock was the kernel's."""
    path = tmp_path / "lock"
    code = f"""
import time
from pathlib import Path
from jaxtrader.files import Lock
held = Lock(Path({str(path)!r}), "works")
print("held", flush=True)
time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(JaxtraderError, match="another process works"):
        Lock(path, "works")
    holder.kill()
    holder.communicate()
    assert path.exists()
    Lock(path, "works").close()


def test_a_lock_that_cannot_be_written(tmp_path):
    (tmp_path / "logs").write_text("mine")
    with pytest.raises(JaxtraderError, match=r"lock: cannot be written .*--output-dir"):
        Lock(tmp_path / "logs" / "lock", "works")


def test_a_folder_that_cannot_lock_is_used_without(tmp_path, monkeypatch):
    """Some network folders."""
    import fcntl

    monkeypatch.setattr(fcntl, "flock", fails_with(errno.ENOLCK))
    Lock(tmp_path / "lock", "works").close()


def test_timestamps_are_utc_and_sort_like_time():
    assert re.fullmatch(r"\d{8}T\d{6}Z", timestamp())
