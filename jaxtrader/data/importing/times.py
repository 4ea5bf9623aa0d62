"""Times as files write them, turned into the UTC start of each bar."""

from __future__ import annotations

import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from jaxtrader.errors import ConfigError, DataError

_NUMBER = r"\d+(\.0*)?"
_COMPACT = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}  # digits -> a date written so
# An epoch shows its unit by its size: any moment from 1973 to 5138 lies in its own range.
_UNITS = ("seconds", "milliseconds", "microseconds", "nanoseconds")
_RANGES = np.array([10**11, 10**14, 10**17])
_EARLIEST = 100_000_000  # seconds; a smaller number is no epoch but something else
_ENDING = r" ?(Z|z|UTC|GMT|[+-]\d\d:?\d\d|[+-]\d\d)$"
_OFFSET = r".*\d" + _ENDING.removesuffix("$")
# What is tried in turn when it is neither a number nor ISO 8601.
_FORMATS = (
    "%Y-%m-%d %I-%p", "%Y%m%d %H:%M", "%Y%m%d %H:%M:%S", "%Y%m%d %H%M%S", "%Y%m%d %H%M",
    "%Y.%m.%d", "%Y.%m.%d %H:%M", "%Y.%m.%d %H:%M:%S", "%Y/%m/%d", "%Y/%m/%d %H:%M",
    "%Y/%m/%d %H:%M:%S", "%d.%m.%Y", "%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M:%S.%f", "%b %d, %Y", "%d-%b-%Y",
)  # fmt: skip
# Month first, as in America, or day first.
_EITHER_WAY = tuple(
    (f"%m/%d/%Y{clock}", f"%d/%m/%Y{clock}")
    for clock in ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
)

Row = Callable[[int], str]  # the place of the i-th row, for an error: file and line


@dataclass(frozen=True, eq=False)
class Times:
    """One moment a row."""

    moments: np.ndarray  # datetime64[us][N]: UTC where `instants`, else what a clock on a wall says
    instants: bool  # whether the file itself says which instants they are
    written: str  # how, for people to read
    # datetime64[us][N], what the clocks of the file say where it writes offsets beside them
    clocks: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Times:
        """Those of these rows, int64[.]."""
        clocks = None if self.clocks is None else self.clocks[rows]
        return Times(self.moments[rows], self.instants, self.written, clocks)


def parse_times(texts: pd.Series, row: Row, date_format: str | None = None) -> Times:
    """Reads moments, all written in the same way; epochs may change their unit from row to row.

    Args:
        texts: N texts.
        row: the place of a row.
        date_format: as of `datetime.strptime`; None to find out.

    Raises:
        DataError: a row is empty or no moment, or nothing tells the month from the day.
    """
    texts = texts.str.strip()
    empty = np.flatnonzero((texts.isna() | (texts == "")).to_numpy(bool))
    if len(empty):
        raise DataError(f"{row(int(empty[0]))}: no time; fill it in or delete the row")
    if date_format is not None:
        return _by_format(texts, date_format, row)
    if texts.str.fullmatch(_NUMBER).all():
        return _from_numbers(texts.str.replace(r"\..*", "", regex=True), row)
    for way in (_by_iso, *(_format(name) for name in _FORMATS)):
        if (times := way(texts)) is not None:
            return times
    return _either_way(texts, row)


def _from_numbers(texts: pd.Series, row: Row) -> Times:
    digits = texts.str.len()
    compact = _COMPACT.get(int(digits.iloc[0])) if digits.nunique() == 1 else None
    if compact is not None and (times := _format(compact)(texts)) is not None:
        return times
    if digits.max() > 19:
        i = int(digits.to_numpy().argmax())
        raise DataError(f"{row(i)}: {texts.iloc[i]!r} is too long for a time")
    numbers = texts.to_numpy(np.uint64).astype(np.int64)
    if numbers.min() < _EARLIEST:
        i = int(numbers.argmin())
        raise DataError(
            f"{row(i)}: {texts.iloc[i]!r} is neither a date nor an epoch; correct it, or say how "
            "all times are written (--date-format)"
        )
    unit = np.searchsorted(_RANGES, numbers, side="right")
    microseconds = np.select(
        [unit == 0, unit == 1, unit == 2],
        [numbers * 1_000_000, numbers * 1_000, numbers],
        numbers // 1_000,
    )
    written = " and ".join(_UNITS[u] for u in np.unique(unit))
    return Times(microseconds.astype("M8[us]"), True, f"epoch in {written}")


def _by_iso(texts: pd.Series) -> Times | None:
    instants = texts.str.fullmatch(_OFFSET) & (texts.str.len() > len("2020-01-02"))
    if instants.nunique() > 1:
        return None
    moments = pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce")
    if moments.isna().any():
        return None
    if not instants.iloc[0]:
        return _times(moments, False, "ISO 8601")
    wall = texts.str.replace(_ENDING, "", regex=True)
    clocks = pd.to_datetime(wall, format="ISO8601", utc=True, errors="coerce")
    times = _times(moments, True, "ISO 8601")
    return times if clocks.isna().any() else replace(times, clocks=_plain(clocks))


def _format(name: str) -> Callable[[pd.Series], Times | None]:
    def way(texts: pd.Series) -> Times | None:
        moments = pd.to_datetime(texts, format=name, errors="coerce", utc=True)
        return None if moments.isna().any() else _times(moments, "%z" in name.lower(), name)

    return way


def _by_format(texts: pd.Series, name: str, row: Row) -> Times:
    try:
        moments = pd.to_datetime(texts, format=name, errors="coerce", utc=True)
    except ValueError as error:
        raise ConfigError(
            f"date format {name!r}: {error}; write it as in '%Y-%m-%d %H:%M:%S'"
        ) from error
    wrong = np.flatnonzero(moments.isna())
    if len(wrong):
        i = int(wrong[0])
        raise DataError(
            f"{row(i)}: {texts.iloc[i]!r} is not written as {name!r} ({len(wrong)} such rows); "
            "give the --date-format of all rows, or repair them"
        )
    return _times(moments, "%z" in name.lower(), name)


def _either_way(texts: pd.Series, row: Row) -> Times:
    """Dates such as 01/02/2020: read in the way in which the rows are in order."""
    for names in _EITHER_WAY:
        found = [times for name in names if (times := _format(name)(texts)) is not None]
        ordered = [times for times in found if _in_order(times.moments)]
        if len(found) == 1 or len(ordered) == 1:
            return (ordered or found)[0]
        if found and np.array_equal(found[0].moments, found[1].moments):
            return found[0]
        if found:
            raise DataError(
                f"{row(0)}: {texts.iloc[0]!r} may be of two days, and no row tells which number "
                f"is the month; say so with --date-format '{names[0]}' or '{names[1]}'"
            )
    bad = pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce").isna().to_numpy()
    i = int(bad.argmax())
    raise DataError(
        f"{row(i)}: {texts.iloc[i]!r} is not a time in a way that is known, or not in that of the "
        "other rows; say how all of them are written with --date-format, as in '%d.%m.%Y %H:%M'"
    )


def _in_order(moments: np.ndarray) -> bool:
    steps = np.diff(moments).astype(np.int64)
    return bool((steps >= 0).all() or (steps <= 0).all())


def _times(moments: pd.Series, instants: bool, written: str) -> Times:
    # Whatever unit pandas chose; years that do not fit microseconds cannot be written as text.
    return Times(_plain(moments), instants, written)


def _plain(moments: pd.Series) -> np.ndarray:
    return moments.dt.tz_localize(None).to_numpy().astype("M8[us]")


def check_zone(zone: str) -> str:
    """Returns the IANA name of a time zone.

    Raises:
        ConfigError: there is no such zone.
    """
    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"zone {zone!r} is not known; write it as UTC, America/New_York or Europe/Berlin"
        ) from error
    return zone


def to_utc(moments: np.ndarray, zone: str, row: Row) -> np.ndarray:
    """The instants at which clocks in `zone` show `moments`: datetime64[us][N], UTC.

    The hour that clocks show twice in autumn is told by the order of the rows.

    Raises:
        DataError: clocks never showed a moment, or showed it twice and the order does not tell.
    """
    if zone == "UTC":
        return moments
    local = pd.DatetimeIndex(moments)
    never = local.tz_localize(zone, ambiguous=np.ones(len(local), bool), nonexistent="NaT").isna()
    if never.any():
        i = int(np.argmax(never))
        raise DataError(
            f"{row(i)}: clocks in {zone} never showed {moments[i]}, they were put forward; is "
            "--zone right? Times with an offset, or in UTC, have no such hour"
        )
    try:
        utc = local.tz_localize(zone, ambiguous="infer").tz_convert("UTC")
    except ValueError as error:
        twice = local.tz_localize(zone, ambiguous="NaT").isna()
        i = int(np.argmax(twice))
        raise DataError(
            f"{row(i)}: clocks in {zone} showed {moments[i]} twice, and the order of the rows does "
            "not tell which is meant; write the times with an offset, or in UTC"
        ) from error
    return utc.tz_localize(None).to_numpy().astype("M8[us]")


def starts(ends: np.ndarray, minutes: int) -> np.ndarray:
    """Starts of bars that are labelled by their ends, datetime64[us][N], in order.

    A bar that ends sooner than its length after the one before it is a short one, such as the half
    hour before a close: it starts where that one ends.
    """
    each, row = np.unique(ends, return_inverse=True)
    begin = each - np.timedelta64(minutes, "m")
    begin[1:] = np.maximum(begin[1:], each[:-1])
    return begin[row]


def common_minutes(moments: np.ndarray) -> int | None:
    """The commonest distance between neighbours, in whole minutes; None when there is none."""
    steps = np.diff(np.sort(moments)).astype(np.int64) // 60_000_000
    steps = steps[steps > 0]
    if len(steps) == 0:
        return None
    values, counts = np.unique(steps, return_counts=True)
    return int(values[counts.argmax()])
