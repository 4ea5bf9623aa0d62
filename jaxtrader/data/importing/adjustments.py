"""Factors that take splits and dividends out of prices as they were traded.

`price * adjustment_factor` is a series whose returns are an owner's returns; `volume /
split_factor` counts in today's shares. Before the ex-day u of a split into s shares and of a
dividend d, prices are multiplied by 1/s and by 1 - d / (close[u-1] / s).
Source: CRSP Data Descriptions Guide, cumulative factors to adjust prices and shares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from jaxtrader.data.bars import FACTORS
from jaxtrader.data.importing.conventions import ASSUMED, GIVEN, Known
from jaxtrader.data.importing.times import Row
from jaxtrader.errors import DataError

_SAME_DOWNLOAD = 0.002  # a dividend in between is more, a rounding less


@dataclass(frozen=True, eq=False)
class Adjustment:
    """What prices are, and the factors that go with them."""

    prices: Known
    factors: pd.DataFrame | None  # float64[N, 2] of FACTORS; None where there is nothing to adjust
    notes: tuple[str, ...] = ()


def adjustment_of(values: pd.DataFrame, prices: Known | None, row: Row) -> Adjustment:
    """Factors of N bars in order of time, by their events or their adjusted closes.

    Whether prices still hold their splits shows at the splits themselves: there they jump, or not.

    Args:
        values: N rows with timestamp, open and close, and adj_close, dividend and split as far as
            they are known; events stand in the first bar that trades without them.
        prices: what is known of them; None for nothing.
        row: the place of a row.

    Raises:
        DataError: an event is impossible, or the prices at the splits are not what was given.
    """
    split = _events(values, "split", 1.0, row)
    dividend = _events(values, "dividend", 0.0, row)
    times = values["timestamp"]
    split, dividend = _once(times, split, 1.0), _once(times, dividend, 0.0)
    prices, notes = _checked(prices, values, split, row)
    adjusted_close = values["adj_close"].to_numpy() if "adj_close" in values else None
    if prices.value == "adjusted":
        return Adjustment(prices, None, notes)
    if prices.value == "split_adjusted" or "split" not in values:
        split = np.ones(len(values))
    if adjusted_close is not None and not ("split" in values and prices.value == "raw"):
        adjustment = adjusted_close / values["close"].to_numpy()
        _check_one_download(values, adjustment, row)
        volume = np.ones(len(values))
        if prices.value == "raw":
            notes += ("splits are not told from dividends: volume is left as it is",)
    else:
        adjustment, volume = event_factors(values["close"].to_numpy(), dividend, split, row)
    factors = pd.DataFrame(dict(zip(FACTORS, (adjustment, volume), strict=True)))
    return Adjustment(prices, None if (factors == 1).all(axis=None) else factors, notes)


def event_factors(
    close: np.ndarray, dividend: np.ndarray, split: np.ndarray, row: Row
) -> tuple[np.ndarray, np.ndarray]:
    """(adjustment factor, split factor), each float64[N], of N bars in order of time.

    Args:
        close: float64[N] as traded.
        dividend: float64[N], cash a share, of the bar that is the first without it.
        split: float64[N], shares that one became before the bar opened; 1 for none.

    Raises:
        DataError: a dividend is as large as the price before it.
    """
    before = pd.Series(close).shift().ffill().to_numpy() / split
    kept = np.ones(len(close))
    paid = np.flatnonzero((dividend > 0) & np.isfinite(before))
    kept[paid] = 1.0 - dividend[paid] / before[paid]
    if (kept <= 0).any():
        i = int(np.argmax(kept <= 0))
        raise DataError(
            f"{row(i)}: a dividend of {dividend[i]:g} at a price of {before[i]:g}; correct it, or "
            "the close before it"
        )
    return _after(kept / split), _after(1.0 / split)


def _once(times: pd.Series, events: np.ndarray, none: float) -> np.ndarray:
    """Events of N rows in order of time, those of rows at the same time counted once."""
    first = (~times.duplicated()).to_numpy()
    number = np.cumsum(first) - 1
    once = np.full(int(first.sum()), none)
    happens = events != none
    once[number[happens]] = events[happens]  # of several the last, which corrects the others
    return np.where(first, once[number], none)


def _check_one_download(values: pd.DataFrame, adjustment: np.ndarray, row: Row) -> None:
    """Adjusted closes count from the day of their download: those of two days do not join."""
    if "_part" not in values:
        return
    border = values["_part"].diff().fillna(0).to_numpy() != 0
    falls = np.append(False, adjustment[1:] < adjustment[:-1] * (1 - _SAME_DOWNLOAD))
    if (border & falls).any():
        i = int(np.argmax(border & falls))
        raise DataError(
            f"{row(i)}: the adjusted close falls behind that of the file before, as when they were "
            "downloaded on different days; import files of one download"
        )


def _after(steps: np.ndarray) -> np.ndarray:
    """Product of all later steps: float64[N]."""
    return np.append(np.cumprod(steps[:0:-1])[::-1], 1.0)


def _events(values: pd.DataFrame, name: str, none: float, row: Row) -> np.ndarray:
    """A column of events, float64[N]; `none` where nothing happens, which is 0 or empty as well."""
    if name not in values:
        return np.full(len(values), none)
    events = values[name].to_numpy()
    events = np.where(np.isnan(events) | (events == 0), none, events)
    wrong = np.flatnonzero((events < 0) | ~np.isfinite(events))
    if len(wrong):
        raise DataError(f"{row(int(wrong[0]))}: a {name} of {events[wrong[0]]:g}; correct it")
    return events


def _checked(
    prices: Known | None, values: pd.DataFrame, split: np.ndarray, row: Row
) -> tuple[Known, tuple[str, ...]]:
    """What prices are, by what is known and by what shows at their splits."""
    before = pd.Series(values["close"]).shift().ffill().to_numpy()
    opens, size = values["open"].to_numpy(), np.log(split)
    # A stock dividend of 5 % would be lost among the nights.
    at = np.flatnonzero((np.abs(size) > 0.2) & (opens > 0) & (before > 0))
    jump = np.full(len(values), np.nan)
    jump[at] = np.log(opens[at] / before[at])
    if len(at) == 0:
        return prices or Known("raw", ASSUMED), ()
    raw = np.abs(jump[at] + size[at]) < np.abs(jump[at])
    if raw.any() and not raw.all():
        i, j = int(at[np.argmax(raw)]), int(at[np.argmin(raw)])
        raise DataError(
            f"{row(j)}: prices do not jump at this split, but they do at that of {row(i)}: raw and "
            "adjusted prices are mixed; import files of one kind"
        )
    jumps = bool(raw.all())
    if prices is None:
        return Known("raw" if jumps else "split_adjusted", "seen at its splits"), ()
    if jumps == (prices.value == "raw"):
        return prices, ()
    seen = "jump" if jumps else "do not jump"
    if prices.how == GIVEN:
        raise DataError(
            f"{row(int(at[0]))}: prices are said to be {prices.value}, but {seen} at the split of "
            f"{split[at[0]]:g}; say --prices {'raw' if jumps else 'split_adjusted'}, or adjusted"
        )
    value = "raw" if jumps else "split_adjusted"
    note = f"prices {seen} at their splits, unlike what is {prices.how}"
    return Known(value, "seen at its splits"), (note,)
