"""Symbols looked at together: what the market as a whole did until the session before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxtrader.data.bars import Bars
from jaxtrader.data.sessions import Sessions

_CARRIED = 5  # dates for which a close serves while others trade: holidays elsewhere, a halt


@dataclass(frozen=True, eq=False)
class Universe:
    """The last close of each session of N symbols, on the D dates on which any of them trades."""

    date: np.ndarray  # datetime64[D][D], increasing
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
        for column, (each, when) in enumerate(zip(bars, sessions, strict=True)):
            last = np.append(np.flatnonzero(np.diff(when.ordinal)), len(each) - 1)
            close[np.searchsorted(date, when.date[last]), column] = each.close[last]
        return cls(date, _carried(close))

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
    session: np.ndarray  # datetime64[D][T]

    def __call__(
        self, compute: Callable[[np.ndarray], np.ndarray], before: float = np.nan
    ) -> np.ndarray:
        """An indicator as of the last session before a bar's own, float64[T].

        Args:
            compute: closes float64[D, N] -> float64[D], each from its date and those before.
            before: what it is in the first session, which has none before.
        """
        latest = np.searchsorted(self.universe.date, self.session, side="left") - 1
        values = self.universe.indicator(compute)
        return np.where(latest >= 0, values[np.maximum(latest, 0)], before)
