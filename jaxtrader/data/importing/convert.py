"""One file's bars in this library's terms: UTC, starts of bars, in order; and what was assumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd

from jaxtrader.data.bars import YEARS
from jaxtrader.data.exchange import NEW_YORK, guess_calendar
from jaxtrader.data.importing.conventions import (
    ASSUMED,
    GIVEN,
    Conventions,
    Known,
    Label,
    Prices,
)
from jaxtrader.data.importing.tables import Table
from jaxtrader.data.importing.times import check_zone, common_minutes, starts, to_utc
from jaxtrader.data.layout import timeframe_minutes
from jaxtrader.errors import ConfigError, DataError

_DAY_MINUTES = 24 * 60
_LONG_WEEKEND = 4 * _DAY_MINUTES  # between the only two days of a file
_EXCHANGE_ZONE = "America/New_York"
_OPEN, _CLOSE = 9 * 60 + 30, 16 * 60  # of New York's clocks, in minutes


@dataclass(frozen=True)
class ImportOptions:
    """What is known better than a file or a guess says. None leaves it to them."""

    symbol: str | None = None  # of files that neither say it nor are called by it
    timeframe: str | None = None  # of the files: "15Min", "1Hour", "1Day"
    zone: str | None = None  # IANA name of the zone of times without an offset
    label: Label | None = None  # whether a time is the start or the end of its bar
    prices: Prices | None = None  # as traded, adjusted for splits, or for dividends too
    date_format: str | None = None  # as of datetime.strptime
    decimal: Literal[".", ","] = "."
    resample: str | None = None  # timeframe of longer bars to make
    calendar: str | None = None  # an exchange's sessions, as exchange_calendars calls them
    hours: Literal["regular", "all"] = "regular"  # whether resampling takes bars between sessions
    replace: bool = False  # put new files in the place of files that are there

    def __post_init__(self) -> None:
        if self.zone is not None:
            check_zone(self.zone)
        for name in ("timeframe", "resample"):
            if getattr(self, name) is not None:
                timeframe_minutes(getattr(self, name))
        for name, known in (("label", get_args(Label)), ("prices", get_args(Prices))):
            if getattr(self, name) not in (None, *known):
                raise ConfigError(f"{name} {getattr(self, name)!r} must be {' or '.join(known)}")

    def conventions(self) -> Conventions:
        """What was said of times and prices."""
        said = (self.zone, self.label, self.prices)
        return Conventions(*(None if value is None else Known(value, GIVEN) for value in said))


@dataclass(frozen=True, eq=False)
class Converted:
    """Bars of one file."""

    minutes: int
    # N rows: timestamp datetime64[us] in UTC, start of the bar; prices, volume, events, factors
    frame: pd.DataFrame
    lines: np.ndarray  # int64[N] of the file
    zone: Known
    label: Known
    prices: Known | None
    notes: tuple[str, ...]


def timeframe_of(minutes: int) -> str:
    """The name of a bar's length: 60 is 1Hour."""
    for unit, length in (("Day", _DAY_MINUTES), ("Hour", 60)):
        if minutes % length == 0:
            return f"{minutes // length}{unit}"
    return f"{minutes}Min"


def convert(table: Table, minutes: int, options: ImportOptions) -> Converted:
    """Puts the bars in order, and their times in UTC at the start of the bar.

    Args:
        table: N bars.
        minutes: length of a bar.
        options: what a person said.

    Raises:
        DataError: nothing tells the zone, or a time never was.
    """
    conventions = options.conventions().or_else(table.conventions)
    rows, notes = np.arange(len(table)), [*table.notes]
    steps = np.diff(table.times.moments).astype(np.int64)
    if (steps <= 0).all() and (steps < 0).any():
        rows, notes = rows[::-1], [*notes, "rows were in reverse order"]
    table = table.take(rows)
    outside = np.flatnonzero((table.times.moments < YEARS[0]) | (table.times.moments >= YEARS[1]))
    if len(outside):
        raise DataError(
            f"{table.row(int(outside[0]))}: {table.times.moments[outside[0]]} is not in the years "
            "1800 to 2199; correct it, or say how times are written (--date-format)"
        )
    zone, moments = _instants(table, minutes, conventions.zone)
    if not (np.diff(moments).astype(np.int64) >= 0).all():
        order = np.argsort(moments, kind="stable")
        table, moments = table.take(order), moments[order]
        notes.append("rows were not in order of time: sorted")
    label = conventions.label or _seen_label(moments, minutes)
    if label.value == "end" and minutes < _DAY_MINUTES:
        moments = starts(moments, minutes)
    columns = [pd.DataFrame({"timestamp": moments}), _values(table), table.factors, table.extras]
    frame = pd.concat([each for each in columns if each is not None], axis=1)
    return Converted(minutes, frame, table.lines, zone, label, conventions.prices, tuple(notes))


def bar_minutes(table: Table, options: ImportOptions) -> int | None:
    """Length of a bar: what was said, what the file says, or the commonest distance of its rows."""
    if options.timeframe is not None:
        return timeframe_minutes(options.timeframe)
    minutes = table.minutes or common_minutes(table.times.moments)
    if minutes is not None and minutes > _DAY_MINUTES:
        if minutes <= _LONG_WEEKEND:
            return _DAY_MINUTES
        raise DataError(
            f"{table.where}: most rows are {minutes / _DAY_MINUTES:.3g} days apart, and bars "
            "longer than a day are not read; is the file sorted and whole? Say --timeframe 1Day "
            "if these are days with gaps"
        )
    return minutes


def _instants(table: Table, minutes: int, zone: Known | None) -> tuple[Known, np.ndarray]:
    """The zone, and the moments in UTC: a day that stands for a session is 00:00 of its date."""
    times = table.times
    if minutes < _DAY_MINUTES:
        if times.instants:
            return Known("UTC", f"said by the file: {times.written}"), times.moments
        if zone is None:
            raise DataError(
                f"{table.row(0)}: {times.moments[0]} has no offset, and nothing tells the zone of "
                "this file; say --zone America/New_York, UTC or another. The first regular bar of "
                "a New York session starts at 09:30 there"
            )
        return zone, to_utc(times.moments, zone.value, table.row)
    if times.clocks is not None and (times.clocks == _days(times.clocks)).all():
        return Known("UTC", "dates, as the file's own clocks have them"), times.clocks
    days = _days(times.moments)
    if (days == times.moments).all() or not times.instants:
        return Known("UTC", "dates, as they stand"), days
    local = pd.DatetimeIndex(times.moments).tz_localize("UTC").tz_convert(_EXCHANGE_ZONE)
    if (local == local.normalize()).all():
        return Known(_EXCHANGE_ZONE, "seen: days begin there"), _dates(local)
    return Known("UTC", f"said by the file: {times.written}"), times.moments


def _days(moments: np.ndarray) -> np.ndarray:
    return moments.astype("M8[D]").astype("M8[us]")


def _dates(local: pd.DatetimeIndex) -> np.ndarray:
    return local.tz_localize(None).to_numpy().astype("M8[D]").astype("M8[us]")


def _seen_label(moments: np.ndarray, minutes: int) -> Known:
    """Start or end, by the first and last bar of New York's sessions where they show it."""
    if minutes < _DAY_MINUTES and guess_calendar(moments, minutes) == NEW_YORK:
        local = pd.DatetimeIndex(moments).tz_localize("UTC").tz_convert(_EXCHANGE_ZONE)
        clock = pd.Series(local.hour * 60 + local.minute).groupby(local.date)
        first, last = clock.min().mode()[0], clock.max().mode()[0]
        if last == _CLOSE and first == _OPEN + minutes:
            return Known("end", "seen: sessions begin after 09:30 and end with 16:00")
        if first == _OPEN and last < _CLOSE:
            return Known("start", "seen: sessions begin with 09:30")
    return Known("start", ASSUMED)


def _values(table: Table) -> pd.DataFrame:
    """Prices, volume and events, with 0 for no dividend and 1 for no split."""
    values = table.values.copy()
    if "dividend" in values:
        values["dividend"] = values["dividend"].fillna(0.0)
    if "split" in values:
        values["split"] = values["split"].fillna(1.0).replace(0.0, 1.0)
    if "volume" not in values:
        values["volume"] = np.nan
    return values
