"""The economy, as it was published: a value serves bars from the day after its release."""

from __future__ import annotations

import numpy as np

from jaxtrader.data.features.registry import FeatureInputs, feature


def _log_change(lag: int):
    """log(value / value `lag` observations ago); 0 before there are as many."""

    def change(values: np.ndarray) -> np.ndarray:
        moves = np.zeros(len(values))
        moves[lag:] = np.log(values[lag:] / values[:-lag])
        return moves

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
    """log(consumer prices / those of 12 months ago). Source: FRED CPIAUCSL."""
    return inputs.macro("CPIAUCSL", _log_change(12))


@feature(warm_up=0, macro=("UNRATE",))
def macro_unemployment(inputs: FeatureInputs) -> np.ndarray:
    """Unemployment rate, as a share. Source: FRED UNRATE."""
    return inputs.macro("UNRATE") / 100


@feature(warm_up=0, macro=("ICSA",))
def macro_claims(inputs: FeatureInputs) -> np.ndarray:
    """log(initial jobless claims of the week / those of 52 weeks ago). Source: FRED ICSA."""
    return inputs.macro("ICSA", _log_change(52))


@feature(warm_up=0, macro=("INDPRO",))
def macro_production(inputs: FeatureInputs) -> np.ndarray:
    """log(industrial production / that of 12 months ago). Source: FRED INDPRO."""
    return inputs.macro("INDPRO", _log_change(12))


@feature(warm_up=0, macro=("WALCL",))
def macro_balance_sheet(inputs: FeatureInputs) -> np.ndarray:
    """log(assets of the Federal Reserve / those of 52 weeks ago). Source: FRED WALCL."""
    return inputs.macro("WALCL", _log_change(52))


@feature(warm_up=0, macro=("DTWEXBGS",))
def macro_dollar(inputs: FeatureInputs) -> np.ndarray:
    """log(broad dollar index / that of 20 days ago). Source: FRED DTWEXBGS."""
    return inputs.macro("DTWEXBGS", _log_change(20))


@feature(warm_up=0, macro=("WTI",))
def macro_oil(inputs: FeatureInputs) -> np.ndarray:
    """Change of crude oil over 20 days / mean of its absolute prices then. Source: EIA, WTI.

    Not a log: on 20 April 2020 the price was below zero.
    """

    def change(prices: np.ndarray) -> np.ndarray:
        moves = np.zeros(len(prices))
        size = np.lib.stride_tricks.sliding_window_view(np.abs(prices), 21).mean(axis=1)
        moves[20:] = (prices[20:] - prices[:-20]) / size
        return moves

    return inputs.macro("WTI", change)
