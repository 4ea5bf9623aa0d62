"""When an exchange trades: opens and closes of its sessions, with holidays and half days."""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass

import numpy as np
import pandas as pd

from jaxtrader.errors import ConfigError, DataError

NEW_YORK = "XNYS"
WEEKDAYS = "24/5"
ROUND_THE_CLOCK = "24/7"
_DAY_MINUTES = 24 * 60
_SATURDAY = 5
_SATURDAY_SHARE = 0.05
# New York's shares trade between these hours of its clocks, with what comes before and after.
_EXTENDED_HOURS = (4, 20)
_OUTSIDE_SHARE = 0.3


@dataclass(frozen=True, eq=False)
class Schedule:
    """N sessions in order of time."""

    calendar: str  # as exchange_calendars calls it
    zone: str  # IANA name
    date: np.ndarray  # datetime64[D][N]
    open: np.ndarray  # datetime64[us][N], UTC
    close: np.ndarray  # datetime64[us][N], UTC
    # datetime64[us][N], UTC, of the pause at noon; NaT where a session has none
    pause_start: np.ndarray
    pause_end: np.ndarray

    def __len__(self) -> int:
        return len(self.date)

    def cut(self, first: int, last: int) -> Schedule:
        """The sessions from row `first` up to row `last`, which is left out."""
        rows = slice(first, last)
        columns = (self.date, self.open, self.close, self.pause_start, self.pause_end)
        return Schedule(self.calendar, self.zone, *(column[rows] for column in columns))

    def contains(self, moments: np.ndarray, session: np.ndarray) -> np.ndarray:
        """bool[.]: whether each moment lies in its session (row), and not in its pause."""
        pause = (moments >= self.pause_start[session]) & (moments < self.pause_end[session])
        return (moments >= self.open[session]) & (moments < self.close[session]) & ~pause

    def session_at(self, moments: np.ndarray) -> np.ndarray:
        """Row of the session that each moment is in or nearest to: int64[.].

        A moment before the open belongs to that session, one after the close to the session that
        has closed, up to half way to the next.
        """
        if len(self) == 0:
            raise DataError(f"the calendar {self.calendar} has no session then")
        border = self.close[:-1] + (self.open[1:] - self.close[:-1]) // 2
        return np.searchsorted(border, moments, side="right")


def schedule(calendar: str, first: np.datetime64, last: np.datetime64) -> Schedule:
    """The sessions of the days from `first` to `last`, both included.

    Raises:
        ConfigError: exchange_calendars knows no such calendar.
        DataError: the calendar does not reach so far back, or so far ahead.
    """
    years = int(str(first.astype("M8[Y]"))), int(str(last.astype("M8[Y]")))
    whole = _years(calendar, *years)
    return whole.cut(*np.searchsorted(whole.date, [first, last + np.timedelta64(1, "D")]))


@functools.lru_cache(maxsize=64)
def _years(calendar: str, first: int, last: int) -> Schedule:
    import exchange_calendars
    from exchange_calendars.errors import CalendarError

    known_calendar(calendar)
    try:
        found = exchange_calendars.get_calendar(
            calendar, start=f"{first}-01-01", end=f"{last}-12-31"
        )
    except (CalendarError, ValueError, OverflowError) as error:
        raise DataError(f"calendar {calendar} does not cover {first} to {last}: {error}") from error
    table = found.schedule
    utc = [
        table[name].dt.tz_convert(None).to_numpy().astype("M8[us]")
        for name in ("open", "close", "break_start", "break_end")
    ]
    return Schedule(calendar, str(found.tz), table.index.to_numpy().astype("M8[D]"), *utc)


def known_calendar(calendar: str) -> str:
    """Returns the name of a calendar.

    Raises:
        ConfigError: exchange_calendars has none of that name; the nearest are named.
    """
    import exchange_calendars

    names = exchange_calendars.get_calendar_names()
    if calendar not in names:
        nearest = difflib.get_close_matches(calendar[:20], names, n=3, cutoff=0.0)
        raise ConfigError(
            f"calendar {calendar[:20]!r} is not known; the nearest are {', '.join(nearest)}. New "
            f"York's is {NEW_YORK}, around the clock {ROUND_THE_CLOCK}, on weekdays {WEEKDAYS}"
        )
    return calendar


def guess_calendar(moments: np.ndarray, minutes: int) -> str:
    """The calendar that bars look like, by their hours and weekdays.

    Args:
        moments: datetime64[us][T], UTC, starts of bars.
        minutes: length of a bar.

    Returns:
        "24/7" where one bar in twenty is of a Saturday; "24/5" where many are of the night in New
        York, or of a Sunday's evening; else "XNYS".
    """
    if minutes >= _DAY_MINUTES and bool((moments == moments.astype("M8[D]")).all()):
        return ROUND_THE_CLOCK if _share_of(moments, _SATURDAY) else NEW_YORK
    utc = pd.DatetimeIndex(moments).tz_localize("UTC")
    local = utc.tz_convert("America/New_York").tz_localize(None)
    if _share_of(local.to_numpy(), _SATURDAY):
        return ROUND_THE_CLOCK
    opens, closes = _EXTENDED_HOURS
    outside = (local.hour < opens) | (local.hour >= closes)
    return WEEKDAYS if outside.mean() > _OUTSIDE_SHARE else NEW_YORK


def _share_of(moments: np.ndarray, weekday: int) -> bool:
    days = (moments.astype("M8[D]").astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday
    return bool((days == weekday).mean() >= _SATURDAY_SHARE)
