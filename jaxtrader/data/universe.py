"""Symbols looked at together: what the market as a whole did until the session before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxtrader.data.bars import Bars
from jaxtrader.data.layout import timeframe_minutes
from jaxtrader.data.sessions import Sessions

_CARRIED = 5  # dates for which a close serves while others trade: holidays elsewhere, a halt


@dataclass(frozen=True, eq=False)
class Universe:
    """The last close of each session of N symbols, on the D dates on which any of them trades."""

    date: np.ndarray  # datetime64[D][D], increasing
    # datetime64[us][D], non-decreasing, UTC: when the last of the symbols has closed that session.
    # Markets give the same date to different hours, so dates alone would not tell.
    known: np.ndarray
    close: np.ndarray  # float64[D, N]; NaN before a symbol's first session and after its last
    _known: dict[Callable, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, bars: Sequence[Bars], sessions: Sequence[Sessions]) -> Universe:
        """The universe of these series.

        Args:
            bars: one series for each of N symbols.
            sessions: the session of every bar of each.
        """
        date = np.unique(np.concatenate([each.date for each in sessions]))
        close = np.full((len(date), len(bars)), np.nan)
        known = np.full(len(date), np.datetime64(-(2**62), "us"))
        for column, (each, when) in enumerate(zip(bars, sessions, strict=True)):
            last = np.append(np.flatnonzero(np.diff(when.ordinal)), len(each) - 1)
            rows = np.searchsorted(date, when.date[last])
            close[rows, column] = each.close[last]
            ends = each.timestamps[last] + np.timedelta64(timeframe_minutes(each.timeframe), "m")
            known[rows] = np.maximum(known[rows], ends)
        return cls(date, np.maximum.accumulate(known), _carried(close))

    def indicator(self, compute: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """`compute` of the closes, float64[D]: the same for every symbol, so it is done once."""
        if compute not in self._known:
            self._known[compute] = np.asarray(compute(self.close), np.float64)
        return self._known[compute]


def _carried(close: np.ndarray) -> np.ndarray:
    """Each close carried over the next few dates on which its symbol does not trade."""
    rows = np.arange(len(close))[:, None]
    latest = np.maximum.accumulate(np.where(np.isnan(close), -1, rows), axis=0)
    carried = np.take_along_axis(close, np.maximum(latest, 0), axis=0)
    return np.where((latest >= 0) & (rows - latest <= _CARRIED), carried, np.nan)


@dataclass(frozen=True, eq=False)
class UniverseAt:
    """What was known of a universe at each of T bars of one symbol."""

    universe: Universe
    start: np.ndarray  # datetime64[us][T], UTC, of the bar

    def __call__(
        self, compute: Callable[[np.ndarray], np.ndarray], before: float = np.nan
    ) -> np.ndarray:
        """An indicator as of the last session that all had closed when a bar began, float64[T].

        Args:
            compute: closes float64[D, N] -> float64[D], each from its date and those before.
            before: what it is at first, when there is no such session.
        """
        latest = np.searchsorted(self.universe.known, self.start, side="right") - 1
        values = self.universe.indicator(compute)
        return np.where(latest >= 0, values[np.maximum(latest, 0)], before)
