"""New files from files with blemishes, and a log of every row that was changed or left out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxtrader.data.checking.coverage import coverage_of, runs
from jaxtrader.data.checking.findings import Limits
from jaxtrader.data.checking.run import CheckedFile
from jaxtrader.data.checking.series import RawFile, Series, read_raw, series_of
from jaxtrader.errors import DataError
from jaxtrader.files import staged, staging_folder, write_whole

METADATA = b"jaxtrader.remediated"
LOG = "remediation.csv"
COLUMNS = ("symbol", "timeframe", "row", "timestamp", "change", "open", "high", "low", "close",
           "volume")  # fmt: skip


@dataclass(frozen=True)
class Remediated:
    """A new file, and what was done for it."""

    symbol: str
    timeframe: str
    path: Path
    bars: int
    calendar: str | None  # by which sessions were told
    changes: dict[str, int]  # how many rows of each kind of change


def remediate(
    checked: Sequence[CheckedFile], into: str | Path, limits: Limits | None = None
) -> list[Remediated]:
    """Writes mended copies of files under `into`/historical, and `into`/remediation.csv.

    Rows are put in order; of rows that repeat a time the last is kept, as it corrects the earlier;
    rows with impossible numbers and bars that begin outside their session are left out; and of a
    file that a long hole divides, the part with more bars is kept. No number is ever changed, and
    no bar made up: a file that nothing of this makes fit for training stays unfit, and a check of
    the new files says so. Files that cannot be read are left out.

    Args:
        checked: what `check_folder` or `check_file` said of the files.
        into: another folder than the one that holds them.
        limits: where a hole is long.

    Returns:
        One entry for each file written.

    Raises:
        DataError: `into` is where the files are, or holds some of theirs already.
        JaxtraderError: it cannot be written.
    """
    limits = Limits() if limits is None else limits
    into = Path(into)
    readable = [each for each in checked if each.sha256 is not None]
    targets = [
        into / "historical" / each.symbol / each.timeframe / "data.parquet" for each in readable
    ]
    for target in (*targets, into / LOG):
        if target.exists():
            raise DataError(f"{target}: is there already; name an empty folder for the new files")
    log, done = [], []
    staging = staging_folder(into)
    with staged(into) as files:
        for each, target in zip(readable, targets, strict=True):
            raw = read_raw(each.path, each.symbol, each.timeframe)
            kept, changes = _kept(raw, each.calendar, limits)
            table = pq.read_table(each.path)
            log += _log(raw, table, changes)
            if len(kept) == 0:
                continue
            counts = {name: len(rows) for name, rows in changes.items()}
            files[target] = staging / each.symbol / each.timeframe
            write_whole(files[target], _copy(table, each.path, kept, counts))
            done.append(
                Remediated(each.symbol, each.timeframe, target, len(kept), each.calendar, counts)
            )
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(log)
        files[into / LOG] = staging / LOG
        write_whole(files[into / LOG], text.getvalue())
    return done


def _kept(
    raw: RawFile, calendar: str | None, limits: Limits
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rows of the file to keep, in order, and the rows of each change."""
    rows = np.arange(len(raw.stamps))
    changes = {}
    bad = np.flatnonzero(raw.bad)
    if len(bad):
        changes["left out: impossible number"] = bad
        rows = rows[~raw.bad]
    order = np.argsort(raw.stamps[rows], kind="stable")
    moved = rows[_moved(raw.stamps[rows])]
    if len(moved):
        changes["moved: not in order of time"] = moved
    rows = rows[order]
    again = np.append(np.diff(raw.stamps[rows]).astype(np.int64) == 0, False)
    if again.any():
        changes["left out: a later row has the same time"] = rows[again]
        rows = rows[~again]
    series = series_of(_only(raw, rows), calendar)
    if series is None:
        return rows[:0], changes
    if not series.by_week and not series.inside.all():
        changes["left out: begins outside the session"] = rows[~series.inside]
        rows = rows[series.inside]
        series = series_of(_only(raw, rows), calendar)
        if series is None:
            return rows[:0], changes
    part = _longest_part(series, limits)
    if not part.all():
        changes["left out: beyond a long hole"] = rows[~part]
        rows = rows[part]
    return rows, changes


def _moved(stamps: np.ndarray) -> np.ndarray:
    """bool[T]: rows that are earlier than one before them."""
    return stamps < np.maximum.accumulate(stamps)


def _only(raw: RawFile, rows: np.ndarray) -> RawFile:
    return RawFile(
        raw.path,
        raw.symbol,
        raw.timeframe,
        raw.sha256,
        raw.stamps[rows],
        {name: values[rows] for name, values in raw.values.items()},
        None,
    )


def _longest_part(series: Series, limits: Limits) -> np.ndarray:
    """bool[T]: bars of the longest part that no long hole divides."""
    missing = runs(coverage_of(series).missing_sessions)
    long = [first for first, last in missing if last - first + 1 > limits.longest_hole]
    part = np.searchsorted(np.array(long, np.int64), series.session, side="right")
    return part == np.bincount(part).argmax()


def _log(raw: RawFile, table: pa.Table, changes: dict[str, np.ndarray]) -> list[list[object]]:
    lines: list[list[object]] = []
    for change, rows in changes.items():
        numbers = table.select(COLUMNS[5:]).take(pa.array(rows)).to_pylist()
        for row, values in zip(rows, numbers, strict=True):
            moment = f"{np.datetime_as_string(raw.stamps[row], unit='s')}Z"
            lines.append([raw.symbol, raw.timeframe, int(row), moment, change, *values.values()])
    return lines


def _copy(table: pa.Table, path: Path, rows: np.ndarray, changes: dict[str, int]) -> bytes:
    """The file with these rows alone: every column, and what the file says of itself."""
    table = table.take(pa.array(rows))
    metadata = dict(table.schema.metadata or {})
    metadata[METADATA] = json.dumps({"from": str(path), "changes": changes}).encode()
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd")
    return buffer.getvalue()
