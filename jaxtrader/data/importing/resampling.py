"""Longer bars from shorter ones, counted from the open of each session."""

from __future__ import annotations

import numpy as np
import pandas as pd

from jaxtrader.data.exchange import Schedule
from jaxtrader.errors import DataError


def resample(frame: pd.DataFrame, minutes: int, schedule: Schedule, regular: bool) -> pd.DataFrame:
    """Bars of `minutes` from shorter bars; the last of a session may be shorter.

    A New York session from 09:30 to 16:00 gives seven bars an hour, the last of half an hour. What
    lies before the open or after the close is counted from the open as well, backwards and onwards.

    Args:
        frame: N bars in order of time: timestamp datetime64[us] in UTC at the start of the bar,
            open, high, low, close, volume; dividend and split, adjustment_factor and split_factor,
            and source where they are known. Other columns are left out.
        minutes: length of the new bars; whole days for one bar a session, labelled by its date.
        schedule: the sessions of these days.
        regular: whether to leave out what lies outside the sessions.

    Returns:
        M bars with the same columns, and `n_sub`: how many bars went into each.

    Raises:
        DataError: no bar lies inside a session, a time stands there twice, or bars between sessions
            cannot be counted in such a length.
    """
    moments = frame["timestamp"].to_numpy().astype("M8[us]")
    if frame["timestamp"].duplicated().any():
        again = frame["timestamp"][frame["timestamp"].duplicated()].iloc[0]
        raise DataError(
            f"{again} stands there twice with other numbers; import without --resample, see "
            "jaxtrader data check, and keep one of each"
        )
    if not regular and (24 * 60) % minutes:
        raise DataError(f"--hours all takes a length that divides a day, not {minutes} minutes")
    session = schedule.session_at(moments)
    opens = schedule.open[session]
    inside = schedule.contains(moments, session) if regular else np.ones(len(frame), bool)
    if not inside.any():
        raise DataError(
            f"no bar lies inside a session of {schedule.calendar}; is the --zone right, and the "
            "--calendar? --hours all takes every bar"
        )
    daily = minutes >= 24 * 60
    length = np.timedelta64(minutes, "m")
    number = np.zeros(len(frame), np.int64) if daily else (moments - opens) // length
    start = schedule.date[session].astype("M8[us]") if daily else opens + number * length
    kept = frame[inside].assign(timestamp=start[inside])
    first_of_bar = np.flatnonzero(np.diff(kept["timestamp"].to_numpy(), prepend=start[:1] - length))
    groups = kept.groupby(np.searchsorted(first_of_bar, np.arange(len(kept)), side="right"))
    how = {
        "timestamp": "first", "open": "first", "high": "max", "low": "min", "close": "last",
        "volume": "sum", "dividend": "sum", "split": "prod", "adjustment_factor": "last",
        "split_factor": "last", "source": "last",
    }  # fmt: skip
    bars = groups.agg({name: rule for name, rule in how.items() if name in kept})
    bars["volume"] = groups["volume"].sum(min_count=1)
    # Where the last close is empty, an earlier one is not the close of the bar.
    bars["close"] = groups["close"].nth(-1).to_numpy()
    return bars.assign(n_sub=groups.size()).reset_index(drop=True)
