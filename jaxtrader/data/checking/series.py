"""A file of bars laid out for its checks: what can be told of it although it may be wrong."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from jaxtrader.data.bars import (
    COLUMNS,
    FACTORS,
    PRICES,
    YEARS,
    float_column,
    row_faults,
    utc_timestamps,
)
from jaxtrader.data.exchange import (
    ROUND_THE_CLOCK,
    WEEKDAYS,
    Schedule,
    guess_calendar,
    schedule,
)
from jaxtrader.data.layout import timeframe_minutes
from jaxtrader.data.parquet import read_columns
from jaxtrader.data.sessions import exchange_time

DAY_MINUTES = 24 * 60


@dataclass(frozen=True, eq=False)
class RawFile:
    """Columns as they stand in a file of T rows."""

    path: Path
    symbol: str
    timeframe: str
    sha256: str
    stamps: np.ndarray  # datetime64[us][T], UTC
    values: dict[str, np.ndarray]  # float64[T]: open, high, low, close, volume; adjusted
    source: np.ndarray | None  # object[T], names; None where the file has no such column

    @cached_property
    def bad(self) -> np.ndarray:
        """bool[T]: rows with an impossible number, whatever their time."""
        out = (self.stamps < YEARS[0]) | (self.stamps >= YEARS[1])
        wrong = np.isnat(self.stamps) | out
        for column, rows, _, _ in row_faults(self.stamps, self.values):
            if column != "timestamp":
                wrong |= rows
        return wrong


def read_raw(path: Path, symbol: str, timeframe: str) -> RawFile:
    """Reads a file without asking whether its rows make sense.

    Raises:
        DataError: it cannot be read, or lacks a column.
    """
    table, sha256 = read_columns(path, COLUMNS, ("source", *FACTORS))
    stamps = utc_timestamps(path, table["timestamp"])
    values = {name: float_column(path, name, table[name]) for name in (*PRICES, "volume")}
    if FACTORS[0] in table.column_names:
        factor = float_column(path, FACTORS[0], table[FACTORS[0]])
        values |= {name: values[name] * factor for name in PRICES}
    if FACTORS[1] in table.column_names:
        values["volume"] = values["volume"] / float_column(path, FACTORS[1], table[FACTORS[1]])
    if np.isnan(values["volume"]).all():
        values["volume"] = np.zeros(len(stamps))
    source = None
    if "source" in table.column_names and not pa.types.is_nested(table["source"].type):
        source = table["source"].cast(pa.string()).to_pandas().fillna("").to_numpy(object)
    return RawFile(path, symbol, timeframe, sha256, stamps, values, source)


@dataclass(frozen=True, eq=False)
class Series:
    """The T bars of a file that can be looked at: in order of time, each once and whole."""

    raw: RawFile
    rows: np.ndarray  # int64[T] of the file
    stamps: np.ndarray  # datetime64[us][T], UTC
    open: np.ndarray  # float64[T], and so on
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray
    minutes: int  # length of a bar
    sessions: Schedule  # N sessions from the first bar to the last
    session: np.ndarray  # int64[T] row of the session that a bar is in, or nearest to
    inside: np.ndarray  # bool[T] whether a bar begins inside its session

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def by_week(self) -> bool:
        """Whether no exchange says when there are bars, but the week's own pattern."""
        return self.sessions.calendar == WEEKDAYS

    @cached_property
    def first_of_session(self) -> np.ndarray:
        """bool[T]: bars that are the first of their session."""
        return np.diff(self.session, prepend=-1) != 0

    @cached_property
    def jump(self) -> np.ndarray:
        """float64[T]: log return of a bar's close since the close before it; 0 for the first."""
        return np.diff(np.log(self.close), prepend=np.log(self.close[:1]))

    def when(self, i: int) -> str:
        """The time of a bar, for people."""
        unit = "D" if self.minutes >= DAY_MINUTES else "m"
        return str(np.datetime_as_string(self.stamps[i], unit=unit)).replace("T", " ")


def series_of(raw: RawFile, calendar: str | None = None) -> Series | None:
    """The bars of a file that can be looked at; None when there are less than two.

    Args:
        raw: a file.
        calendar: as exchange_calendars calls it; None to go by the hours and weekdays of the bars.
    """
    good = np.flatnonzero(~raw.bad)
    good = good[np.argsort(raw.stamps[good], kind="stable")]
    again = np.diff(raw.stamps[good], prepend=np.datetime64("NaT")).astype(np.int64) == 0
    rows = good[~again]
    if len(rows) < 2:
        return None
    stamps, minutes = raw.stamps[rows], timeframe_minutes(raw.timeframe)
    name = calendar or guess_calendar(stamps, minutes)
    days = stamps[[0, -1]].astype("M8[D]")
    around = schedule(name, days[0] - 7, days[1] + 7)
    session, inside = _sessions(stamps, minutes, around)
    first, last = session[0], session[-1] + 1
    return Series(
        raw=raw,
        rows=rows,
        stamps=stamps,
        **{column: values[rows] for column, values in raw.values.items()},
        minutes=minutes,
        sessions=around.cut(first, last),
        session=session - first,
        inside=inside,
    )


def _sessions(stamps: np.ndarray, minutes: int, around: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """The session that each bar belongs to, and whether it begins inside it."""
    if minutes < DAY_MINUTES:
        session = around.session_at(stamps)
        return session, around.contains(stamps, session)
    days = stamps.astype("M8[D]")
    if not (days == stamps).all():
        # New York's date; days that begin with its evening at 17:00 are those of the next date.
        days = (exchange_time(stamps) + np.timedelta64(7, "h")).astype("M8[D]")
        if around.calendar != ROUND_THE_CLOCK:
            days = np.busday_offset(days, 0, roll="forward")
    session = np.minimum(np.searchsorted(around.date, days), len(around) - 1)
    return session, around.date[session] == days
