"""Which bars there should be, by the exchange's real calendar, and which there are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxtrader.data.checking.series import DAY_MINUTES, Series

_WEEK = 7 * DAY_MINUTES
_COMMON = 0.5  # a slot of the week counts where most weeks have a bar in it


@dataclass(frozen=True, eq=False)
class Coverage:
    """What the calendar expects from a file's first bar to its last, and what is there."""

    expected: int  # bars
    present: int  # of those
    missing_sessions: np.ndarray  # int64[.] rows of sessions without a bar
    partial_sessions: np.ndarray  # int64[.] rows of sessions that lack some of their bars
    offset: int  # minutes from the open of a session to the first bar expected of it

    @property
    def share(self) -> float:
        """Of the expected bars, 0 to 1."""
        return self.present / self.expected if self.expected else 0.0


def coverage_of(series: Series) -> Coverage:
    """Counts expected bars and those present.

    A bar is expected every so many minutes from the open of each session, beginning where most of
    the file's bars do: with the open, or on the clock's hours. What begins before the open or after
    the close is not expected. A market that trades from Sunday's evening to Friday's has no such
    calendar: there a bar is expected in each slot of the week in which most weeks have one.
    """
    if series.by_week:
        return _by_week(series)
    sessions = series.sessions
    if series.minutes >= DAY_MINUTES:
        expected, offset, counted = np.ones(len(sessions), np.int64), 0, series.inside
    else:
        into = (series.stamps - sessions.open[series.session]).astype(np.int64) // 60_000_000
        offset = _commonest(into[series.inside] % series.minutes)
        slots = [
            _slots_before(series, moment, offset)
            for moment in (sessions.close, sessions.pause_start, sessions.pause_end)
        ]
        paused = np.where(np.isnat(sessions.pause_start), 0, slots[2] - slots[1])
        expected = np.maximum(slots[0] - paused, 0)
        # Not what lies before the first bar of the file, or after the last.
        expected[-1] = min(expected[-1], (into[-1] - offset) // series.minutes + 1)
        expected[0] -= max(-(-(into[0] - offset) // series.minutes), 0)
        expected = np.maximum(expected, 0)
        counted = series.inside & (into % series.minutes == offset)
    present = np.bincount(series.session[counted], minlength=len(sessions))
    present = np.minimum(present, expected)
    return Coverage(
        expected=int(expected.sum()),
        present=int(present.sum()),
        missing_sessions=np.flatnonzero((present == 0) & (expected > 0)),
        partial_sessions=np.flatnonzero((present > 0) & (present < expected)),
        offset=offset,
    )


def _slots_before(series: Series, moment: np.ndarray, offset: int) -> np.ndarray:
    """How many bars of a session begin before a moment, int64[N]."""
    into = (moment - series.sessions.open).astype(np.int64) // 60_000_000
    return -(-(into - offset) // series.minutes)


def _by_week(series: Series) -> Coverage:
    minute = series.stamps.astype(np.int64) // 60_000_000
    slot = (minute % _WEEK) // series.minutes
    week = minute // _WEEK
    weeks = int(week[-1] - week[0] + 1)
    slots = np.unique(np.stack([week, slot], 1), axis=0)[:, 1]
    common = np.bincount(slots, minlength=_WEEK // series.minutes) > _COMMON * weeks
    each = week[0] + np.arange(weeks)
    expected = each[:, None] * (_WEEK // series.minutes) + np.flatnonzero(common)
    expected = expected[
        (expected >= minute[0] // series.minutes) & (expected <= minute[-1] // series.minutes)
    ]
    there = np.isin(expected, minute // series.minutes)
    dates = series.sessions.date.astype(np.int64)
    day = expected * series.minutes // DAY_MINUTES
    row = np.searchsorted(dates, day)
    on_session = dates[np.minimum(row, len(dates) - 1)] == day
    wanted = np.bincount(row[on_session], minlength=len(dates))
    seen = np.bincount(row[on_session & there], minlength=len(dates))
    return Coverage(
        expected=len(expected),
        present=int(there.sum()),
        missing_sessions=np.flatnonzero((seen == 0) & (wanted > 0)),
        partial_sessions=np.flatnonzero((seen > 0) & (seen < wanted)),
        offset=0,
    )


def _commonest(values: np.ndarray) -> int:
    if len(values) == 0:
        return 0
    found, counts = np.unique(values, return_counts=True)
    return int(found[counts.argmax()])


def runs(rows: np.ndarray) -> list[tuple[int, int]]:
    """(first, last) of each stretch of consecutive integers in `rows`, which are in order."""
    if len(rows) == 0:
        return []
    cuts = np.flatnonzero(np.diff(rows) > 1)
    starts, ends = np.append(0, cuts + 1), np.append(cuts, len(rows) - 1)
    return [(int(rows[a]), int(rows[b])) for a, b in zip(starts, ends, strict=True)]
