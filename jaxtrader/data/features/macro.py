"""The economy, as it was published: a value serves bars from the day after its release."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from jaxtrader.data.features.registry import FeatureInputs, feature
from jaxtrader.data.macro import MacroSeries


def log_change(values: np.ndarray, lag: int) -> np.ndarray:
    """log(value / value `lag` observations ago), float64[N]; 0 before there are as many."""
    moves = np.zeros(len(values))
    moves[lag:] = np.log(values[lag:] / values[: max(len(values) - lag, 0)])
    return moves


def _log_change_of_a_year(days: int) -> Callable[[MacroSeries], np.ndarray]:
    """log(value / the value so many days ago): by dates, as months may be missing; 0 at first."""

    def change(series: MacroSeries) -> np.ndarray:
        before = np.searchsorted(series.date, series.date - days, side="right") - 1
        ratio = series.value / series.value[np.maximum(before, 0)]
        return np.where(before >= 0, np.log(ratio), 0.0)

    return change


@feature(warm_up=0, macro=("FEDFUNDS",))
def macro_fed_funds(inputs: FeatureInputs) -> np.ndarray:
    """Effective federal funds rate of the month, as a share. Source: FRED FEDFUNDS."""
    return inputs.macro("FEDFUNDS") / 100


@feature(warm_up=0, macro=("DGS10",))
def macro_yield_10y(inputs: FeatureInputs) -> np.ndarray:
    """10-year Treasury yield, as a share. Source: FRED DGS10."""
    return inputs.macro("DGS10") / 100


@feature(warm_up=0, macro=("T10Y3M",))
def macro_term_spread(inputs: FeatureInputs) -> np.ndarray:
    """10-year less 3-month Treasury yield, as a share. Source: FRED T10Y3M."""
    return inputs.macro("T10Y3M") / 100


@feature(warm_up=0, macro=("CPIAUCSL",))
def macro_inflation(inputs: FeatureInputs) -> np.ndarray:
    """log(consumer prices / those of a year ago). Source: FRED CPIAUCSL."""
    return inputs.macro("CPIAUCSL", _log_change_of_a_year(365))


@feature(warm_up=0, macro=("UNRATE",))
def macro_unemployment(inputs: FeatureInputs) -> np.ndarray:
    """Unemployment rate, as a share. Source: FRED UNRATE."""
    return inputs.macro("UNRATE") / 100


@feature(warm_up=0, macro=("ICSA",))
def macro_claims(inputs: FeatureInputs) -> np.ndarray:
    """log(initial jobless claims of the week / those of 52 weeks ago). Source: FRED ICSA."""
    return inputs.macro("ICSA", _log_change_of_a_year(364))


@feature(warm_up=0, macro=("INDPRO",))
def macro_production(inputs: FeatureInputs) -> np.ndarray:
    """log(industrial production / that of a year ago). Source: FRED INDPRO."""
    return inputs.macro("INDPRO", _log_change_of_a_year(365))


@feature(warm_up=0, macro=("WALCL",))
def macro_balance_sheet(inputs: FeatureInputs) -> np.ndarray:
    """log(assets of the Federal Reserve / those of 52 weeks ago). Source: FRED WALCL."""
    return inputs.macro("WALCL", _log_change_of_a_year(364))


@feature(warm_up=0, macro=("DTWEXBGS",))
def macro_dollar(inputs: FeatureInputs) -> np.ndarray:
    """log(broad dollar index / that of 20 days ago). Source: FRED DTWEXBGS."""
    return inputs.macro("DTWEXBGS", lambda each: log_change(each.value, 20))


@feature(warm_up=0, macro=("WTI",))
def macro_oil(inputs: FeatureInputs) -> np.ndarray:
    """Change of crude oil over 20 days / mean of its absolute prices then. Source: EIA, WTI.

    Not a log: on 20 April 2020 the price was below zero.
    """

    def change(series: MacroSeries) -> np.ndarray:
        price = pd.Series(series.value)
        moves = price.diff(20) / price.abs().rolling(21).mean()
        return moves.fillna(0.0).to_numpy()

    return inputs.macro("WTI", change)
