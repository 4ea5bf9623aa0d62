"""Trading sessions: which day a bar belongs to, and how many such days make a year."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from jaxtrader.data.bars import Bars
from jaxtrader.data.layout import timeframe_minutes

EXCHANGE_ZONE = "America/New_York"
_DAY_MINUTES = 24 * 60
_SATURDAY = 5
_SATURDAY_SHARE = 0.05


@dataclass(frozen=True, eq=False)
class Sessions:
    """The trading session of every bar."""

    date: np.ndarray  # datetime64[D][T], non-decreasing, in the market's own calendar
    ordinal: np.ndarray  # int32[T], 0 for the first session of the series, then 1, 2, ...
    periods_per_year: int  # sessions a year: 252, or 365 for a market that never closes


def sessions_of(bars: Bars, round_the_clock: bool | None = None) -> Sessions:
    """Finds the session of every bar from its timestamp alone.

    A market that closes is read in New York time, and its weekend bars (currencies open on Sunday
    evening) belong to Monday. A market that trades round the clock is read in UTC. Daily bars
    stamped 00:00 UTC carry the date as a label: it is taken as it stands.

    Args:
        bars: T bars.
        round_the_clock: None to find out: at least one bar in twenty falls on a Saturday. Give it
            when the series may be shorter than a week.
    """
    labels = _are_date_labels(bars)
    local = bars.timestamps if labels else exchange_time(bars.timestamps)
    if round_the_clock is None:
        saturday = _weekday(local.astype("M8[D]")) == _SATURDAY
        round_the_clock = bool(saturday.mean() >= _SATURDAY_SHARE)
    if round_the_clock:
        date = bars.timestamps.astype("M8[D]")
    else:
        date = np.busday_offset(local.astype("M8[D]"), 0, roll="forward")
    ordinal = np.cumsum(np.diff(date, prepend=date[:1]) > np.timedelta64(0, "D"))
    return Sessions(date, ordinal.astype(np.int32), 365 if round_the_clock else 252)


def weekday_of(sessions: Sessions) -> np.ndarray:
    """Day of the week of each bar's session: int64[T], 0 for Monday to 6 for Sunday."""
    return _weekday(sessions.date)


def _weekday(date: np.ndarray) -> np.ndarray:
    return (date.astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday


def _are_date_labels(bars: Bars) -> bool:
    if timeframe_minutes(bars.timeframe) < _DAY_MINUTES:
        return False
    return bool(np.all(bars.timestamps == bars.timestamps.astype("M8[D]")))


def exchange_time(timestamps: np.ndarray) -> np.ndarray:
    """What New York's clocks say at these instants, datetime64[us][T]."""
    utc = pd.DatetimeIndex(timestamps).tz_localize("UTC")
    return utc.tz_convert(EXCHANGE_ZONE).tz_localize(None).to_numpy().astype("M8[us]")
