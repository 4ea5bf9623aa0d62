"""The regime: in which weather a bar trades. Ten indicators, each in [0, 1].

Windows are counted in bars, as many as a New York session has: 20 sessions are 140 bars of an hour.
A percentile is the share of the last 252 sessions' values (of bars: at least 60 sessions') that are
not above the present one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from jaxtrader.data.features.macro import log_change
from jaxtrader.data.features.registry import FeatureInputs, feature
from jaxtrader.data.layout import timeframe_minutes

_SESSION_MINUTES = 390
_MONTH, _QUARTER, _YEAR = 20, 60, 252  # sessions
_NEUTRAL = 0.5  # where there is nothing to tell by
_NOTHING = 1e-12  # of a sum of log returns


def _bars(sessions: int, timeframe: str) -> int:
    """As many bars as that many New York sessions have."""
    return sessions * max(1, -(-_SESSION_MINUTES // timeframe_minutes(timeframe)))


def _rows(sessions: int, more: int = 0) -> Callable[[str], int]:
    """A warm-up of so many sessions and bars."""
    return lambda timeframe: _bars(sessions, timeframe) + more


def _returns(inputs: FeatureInputs) -> pd.Series:
    return pd.Series(np.log(inputs.bars.close)).diff()


def _percentile(values: pd.Series, inputs: FeatureInputs) -> np.ndarray:
    """Rank among the last year's values, at least a quarter's; NaN before."""
    window = _bars(_YEAR, inputs.bars.timeframe)
    least = _bars(_QUARTER, inputs.bars.timeframe)
    ranked = values.rolling(window, min_periods=least).rank(method="max", pct=True)
    return ranked.to_numpy()


@feature(warm_up=_rows(_MONTH + _QUARTER, -1))
def regime_volatility(inputs: FeatureInputs) -> np.ndarray:
    """Percentile of the realised volatility: deviation of 20 sessions' log returns.

    Source: Andersen, Bollerslev, Diebold & Labys (2003), Modeling and Forecasting Realized
    Volatility.
    """
    month = _bars(_MONTH, inputs.bars.timeframe)
    return _percentile(_returns(inputs).rolling(month).std(ddof=0), inputs)


@feature(warm_up=_rows(_MONTH))
def regime_trend(inputs: FeatureInputs) -> np.ndarray:
    """Efficiency ratio of 20 sessions: abs(log change) / sum(abs(log returns)); 0 at a standstill.

    Source: Kaufman (1995), Smarter Trading.
    """
    month = _bars(_MONTH, inputs.bars.timeframe)
    way = _returns(inputs).abs().rolling(month).sum()
    change = pd.Series(np.log(inputs.bars.close)).diff(month).abs()
    # A running sum keeps a residue of what has left it.
    ratio = (change / way.where(way > _NOTHING)).clip(upper=1.0)
    return ratio.where(way.isna() | (way > _NOTHING), 0.0).to_numpy()


@feature(warm_up=_rows(2 * _QUARTER, -1))
def regime_momentum(inputs: FeatureInputs) -> np.ndarray:
    """Percentile of log(close / close 60 sessions ago).

    Source: Moskowitz, Ooi & Pedersen (2012), Time Series Momentum.
    """
    lag = _bars(_QUARTER, inputs.bars.timeframe)
    return _percentile(pd.Series(np.log(inputs.bars.close)).diff(lag), inputs)


@feature(warm_up=_rows(_MONTH + _QUARTER, -1))
def regime_liquidity(inputs: FeatureInputs) -> np.ndarray:
    """1 - percentile of Amihud's illiquidity of 20 sessions: mean(abs(return) / (close * volume)).

    Bars without volume do not count; where no bar of the 20 sessions has any, 0.5.
    Source: Amihud (2002), Illiquidity and Stock Returns.
    """
    bars = inputs.bars
    traded = pd.Series(bars.close * bars.volume)
    month = _bars(_MONTH, bars.timeframe)
    returns = _returns(inputs).abs()
    price = (returns / traded.where(traded > 0)).fillna(0.0).where(returns.notna())
    total, counted = price.rolling(month).sum(), (traded > 0).astype(float).rolling(month).sum()
    illiquidity = total / counted.where(counted > 0)
    rank = 1.0 - _percentile(illiquidity, inputs)
    warm = np.arange(len(bars)) >= _bars(_MONTH + _QUARTER, bars.timeframe) - 1
    return np.where(warm & np.isnan(rank), _NEUTRAL, rank)


@feature(warm_up=0)
def regime_drawdown(inputs: FeatureInputs) -> np.ndarray:
    """close / highest close of the last 252 sessions, as far as they go."""
    closes = pd.Series(inputs.bars.close)
    year = _bars(_YEAR, inputs.bars.timeframe)
    return (closes / closes.rolling(year, min_periods=1).max()).to_numpy()


@feature(warm_up=0)
def regime_breadth(inputs: FeatureInputs) -> np.ndarray:
    """Share of the universe above its mean of 50 sessions, at the last close; 0.5 at first.

    Source: Zweig (1986), Winning on Wall Street.
    """
    return inputs.universe(_above_average, before=_NEUTRAL)


def _above_average(close: np.ndarray) -> np.ndarray:
    average = pd.DataFrame(close).rolling(50, min_periods=1).mean().to_numpy()
    known = ~np.isnan(close)
    count = known.sum(axis=1)
    above = ((close > average) & known).sum(axis=1)
    return np.where(count > 0, above / np.maximum(count, 1), _NEUTRAL)


@feature(warm_up=0)
def regime_correlation(inputs: FeatureInputs) -> np.ndarray:
    """Mean correlation of the universe's symbols over 60 sessions, (1 + rho) / 2; 0.5 at first.

    rho = (var(mean of z) - 1 / N) / (1 - 1 / N) of returns z standardised by symbol, as of the
    last session closed; 0.5 for one symbol and before 20 sessions.
    Source: Pollet & Wilson (2010), Average Correlation and Stock Market Returns.
    """
    return inputs.universe(_mean_correlation, before=_NEUTRAL)


def _mean_correlation(close: np.ndarray) -> np.ndarray:
    returns = np.diff(np.log(close), axis=0, prepend=np.nan)
    found = np.full(len(close), _NEUTRAL)
    for d in range(_MONTH, len(close)):
        window = returns[max(d - _QUARTER + 1, 1) : d + 1]
        window = window[:, ~np.isnan(window).any(axis=0)]
        deviation = window.std(axis=0)
        window, deviation = window[:, deviation > 0], deviation[deviation > 0]
        number = window.shape[1]
        if number > 1:
            z = (window - window.mean(axis=0)) / deviation
            rho = (z.mean(axis=1).var() - 1 / number) / (1 - 1 / number)
            found[d] = (1 + np.clip(rho, -1.0, 1.0)) / 2
    return found


def _rank_of_year(values: np.ndarray) -> np.ndarray:
    return pd.Series(values).rolling(_YEAR, min_periods=1).rank(method="max", pct=True).to_numpy()


@feature(warm_up=0, macro=("VIX",))
def regime_vix(inputs: FeatureInputs) -> np.ndarray:
    """Percentile of the VIX among its last 252 closes, or as many as there are.

    Source: Whaley (2000), The Investor Fear Gauge.
    """
    return inputs.macro("VIX", lambda each: _rank_of_year(each.value))


@feature(warm_up=0, macro=("VIX",))
def regime_vix_change(inputs: FeatureInputs) -> np.ndarray:
    """Percentile of the VIX's log change over 5 days among the last 252 such, or as many."""
    return inputs.macro("VIX", lambda each: _rank_of_year(log_change(each.value, 5)))


@feature(warm_up=0, macro=("T10Y2Y",))
def regime_yield_slope(inputs: FeatureInputs) -> np.ndarray:
    """1 / (1 + exp(-(10-year less 2-year yield, in percentage points))): below 0.5 when inverted.

    Source: Estrella & Hardouvelis (1991), The Term Structure as a Predictor of Real Activity.
    """
    return inputs.macro("T10Y2Y", lambda slope: 1.0 / (1.0 + np.exp(-slope.value)))
