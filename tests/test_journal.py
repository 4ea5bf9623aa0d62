"""Tables that grow on disk, and go back to their checkpoint when a run is resumed."""

import errno
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxtrader.errors import JaxtraderError
from jaxtrader.journal import Journal, TableFile
from jaxtrader.telemetry import host_table


def rows(first, last, symbol="SPY"):
    """One row for each update."""
    update = np.arange(first, last + 1)
    rng = np.random.default_rng(first)
    return host_table(
        {
            "symbol": np.full(len(update), symbol),
            "seed": np.full(len(update), 42),
            "update": update,
            "loss": rng.standard_normal(len(update)).astype(np.float32),
            "triggered": update % 2 == 0,
            "validation_sharpe": np.where(update % 3 == 0, 1.5, np.nan),
        }
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logs" / "42" / "updates.csv"


def test_appended_rows_are_in_memory_and_on_disk(path):
    file = TableFile(path)
    assert len(file.table) == 0
    file.append(rows(1, 3))
    file.append(rows(4, 4))
    file.append(rows(5, 5).iloc[:0])  # nothing happened: nothing is written
    assert file.table["update"].tolist() == [1, 2, 3, 4]
    assert path.read_text().count("\n") == 5
    assert path.read_text().count("symbol,seed,update") == 1

    again = TableFile(path)
    again.load(99)
    pd.testing.assert_frame_equal(again.table, file.table)


def test_nothing_is_written_before_the_first_row(path):
    TableFile(path).append(rows(1, 1).iloc[:0])
    assert not path.exists()


def test_in_memory_only():
    file = TableFile(None)
    file.append(rows(1, 2))
    file.rewrite()
    assert file.table["update"].tolist() == [1, 2]
    file.load(1)  # there is nothing to read back
    assert len(file.table) == 0


def test_load_drops_what_came_after_the_checkpoint(path):
    whole = TableFile(path)
    whole.append(rows(1, 3))
    whole.append(rows(4, 6))

    resumed = TableFile(path)
    resumed.load(4)
    assert resumed.table["update"].tolist() == [1, 2, 3, 4]
    assert path.read_text().count("\n") == 7  # loading alone touches nothing
    resumed.rewrite()
    assert path.read_text().count("\n") == 5


def test_an_interrupted_file_ends_like_an_uninterrupted_one(tmp_path):
    straight, broken = TableFile(tmp_path / "straight.csv"), TableFile(tmp_path / "broken.csv")
    for first in (1, 4, 7):
        straight.append(rows(first, first + 2))
    broken.append(rows(1, 3))
    broken.append(rows(4, 6))

    resumed = TableFile(broken.path)
    resumed.load(3)
    resumed.rewrite()
    for first in (4, 7):
        resumed.append(rows(first, first + 2))
    assert resumed.path.read_bytes() == straight.path.read_bytes()
    pd.testing.assert_frame_equal(resumed.table, straight.table)


@pytest.mark.parametrize("lost", [1, 7, 40])
def test_a_last_line_cut_short_is_dropped(path, lost):
    file = TableFile(path)
    file.append(rows(1, 4))
    text = path.read_text()
    last_line = len(text) - text.rstrip("\n").rfind("\n") - 1
    path.write_text(text[: -min(lost, last_line)])

    again = TableFile(path)
    again.load(99)
    assert again.table["update"].tolist() == [1, 2, 3]
    again.rewrite()
    again.append(rows(4, 4))
    assert path.read_text().count("\n") == 5


def test_a_header_cut_short_is_an_empty_table(path):
    """Killed while the very first rows were written; training had a checkpoint from before."""
    path.parent.mkdir(parents=True)
    path.write_text("symbol,seed,upd")
    file = TableFile(path)
    file.load(10)
    assert len(file.table) == 0
    file.rewrite()
    file.append(rows(1, 2))
    assert path.read_text().startswith("symbol,seed,update,")
    assert path.read_text().count("\n") == 3


def test_going_back_to_before_the_first_row(path):
    file = TableFile(path)
    file.append(rows(5, 6))
    file.load(4)
    assert len(file.table) == 0
    file.rewrite()
    assert not path.exists()
    file.append(rows(5, 5))
    assert path.read_text().count("symbol,seed,update") == 1


@pytest.mark.parametrize("symbol", ["NA", "NULL", "nan", "0700", "TRUE", "1e5"])
def test_symbols_that_look_like_something_else(path, symbol):
    file = TableFile(path)
    file.append(rows(1, 3, symbol))
    text = path.read_text()
    again = TableFile(path)
    again.load(3)
    assert again.table["symbol"].tolist() == [symbol] * 3
    assert again.table["validation_sharpe"].isna().tolist() == [True, True, False]
    again.rewrite()
    assert path.read_text() == text


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b'"open quote\n1,2\n', b"\xff\xfe\n1\n"])
def test_a_file_that_is_not_the_table_is_an_error(path, content):
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(JaxtraderError, match="cannot be read") as caught:
        TableFile(path).load(1)
    assert str(path) in str(caught.value)
    assert "--output-dir" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "change", "found"),
    [
        (3, lambda line: line[: len(line) // 2] + "\n", "line 3 has"),
        (3, lambda line: line.replace(",42,", ",42,42,"), "line 3 has"),
        (3, lambda line: line.replace(",42,2,", ",42,two,"), "two"),
        (3, lambda line: line.replace(",42,2,", ",42,2.5,"), "cannot be read"),
        (3, lambda line: line.replace(",42,2,", ",42,,"), "column 2"),
        (3, lambda line: line.replace(",42,2,", f",{'9' * 400},2,"), "cannot be read"),
        (3, lambda line: line.replace(",42,2,", ",42,1e999,"), "cannot be read"),
        (1, lambda line: line.replace("update", "updating"), "its columns are"),
        (1, lambda line: line.replace("symbol", "ticker"), "its columns are"),
    ],
)
def test_a_damaged_row_is_an_error_and_not_a_row_of_nothing(path, line, change, found):
    file = TableFile(path)
    file.append(rows(1, 4))
    lines = path.read_text().splitlines(keepends=True)
    lines[line - 1] = change(lines[line - 1])
    path.write_text("".join(lines))
    damaged = path.read_bytes()
    with pytest.raises(JaxtraderError, match=f"updates.csv: is needed .*{found}") as caught:
        TableFile(path).load(4)
    assert "--output-dir" in str(caught.value)
    assert path.read_bytes() == damaged


def test_rows_of_another_version_are_not_mixed_in(path):
    """Without their header they would stand under the wrong names."""
    TableFile(path).append(rows(1, 2))
    before = path.read_bytes()
    resumed = TableFile(path)
    resumed.load(2)
    with pytest.raises(JaxtraderError, match=r"other columns than are to be added \(novelty"):
        resumed.append(rows(3, 3).assign(novelty=1.0))
    with pytest.raises(JaxtraderError, match="other columns"):
        resumed.append(rows(3, 3)[["symbol", "seed", "loss", "update", "triggered"]])
    assert path.read_bytes() == before


def test_a_table_that_cannot_be_written_is_an_error(path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = TableFile(path)
    file.append(rows(1, 1))
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(JaxtraderError, match="No space left on device") as caught:
        file.append(rows(2, 2))
    assert str(path) in str(caught.value)
    assert file.table["update"].tolist() == [1]


def test_a_table_that_the_disk_does_not_keep_is_an_error(path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    journal = Journal((1, 2), {1: (path, path.with_name("a")), 2: (path.with_name("b"),) * 2})
    journal.sync()  # there are no files yet
    journal.append(1, rows(1, 1), rows(1, 1).iloc[:0])
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(JaxtraderError, match=r"Input/output error.*--output-dir") as caught:
        journal.sync()
    assert str(path) in str(caught.value)
    Journal((1,), None).sync()


def test_a_table_that_cannot_be_removed_is_an_error(path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    file = TableFile(path)
    file.append(rows(5, 6))
    file.load(4)
    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(JaxtraderError, match=r"cannot be removed \(Read-only .*--output-dir"):
        file.rewrite()
    assert path.exists()


def test_a_folder_in_the_way_is_an_error(path):
    path.mkdir(parents=True)
    with pytest.raises(JaxtraderError, match="cannot be written"):
        TableFile(path).append(rows(1, 1))


def test_a_journal_keeps_seeds_apart(tmp_path):
    paths = {
        seed: (tmp_path / str(seed) / "updates.csv", tmp_path / str(seed) / "telemetry.csv")
        for seed in (1, 2)
    }
    journal = Journal((1, 2), paths)
    journal.append(1, rows(1, 2), rows(1, 1))
    journal.append(2, rows(1, 2), rows(1, 2).iloc[:0])
    journal.append(1, rows(3, 4), rows(3, 3))

    resumed = Journal((1, 2), paths)
    resumed.load(2)
    assert resumed.updates[1].table["update"].tolist() == [1, 2]
    assert resumed.updates[2].table["update"].tolist() == [1, 2]
    assert resumed.episodes[1].table["update"].tolist() == [1]
    assert len(resumed.episodes[2].table) == 0
    resumed.rewrite()
    assert paths[1][0].read_text().count("\n") == 3
    assert not paths[2][1].exists()
