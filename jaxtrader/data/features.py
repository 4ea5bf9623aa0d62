"""The market's features: causal, stationary and dimensionless, one function each.

Row t is a function of bars <= t alone, to the last bit, whether or not later bars exist:
`jaxtrader.data.find_lookahead` tells whether it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from jaxtrader.data.bars import Bars
from jaxtrader.data.layout import timeframe_minutes
from jaxtrader.data.sentiment import DailySentiment, sentiment_at
from jaxtrader.data.sessions import Sessions, sessions_of, weekday_of
from jaxtrader.errors import ConfigError, DataError

_OBV_BARS = 20


@dataclass(frozen=True, eq=False)
class FeatureInputs:
    """What a feature may look at: T bars, their sessions, and the score known at each bar."""

    bars: Bars
    sessions: Sessions
    sentiment: np.ndarray  # float64[T]


@dataclass(frozen=True)
class Feature:
    """A registered feature."""

    name: str
    compute: Callable[[FeatureInputs], np.ndarray]  # -> float64[T]
    warm_up: Callable[[str], int]  # timeframe -> number of leading NaN rows


FEATURES: dict[str, Feature] = {}


def feature(
    warm_up: int | Callable[[str], int],
) -> Callable[[Callable[[FeatureInputs], np.ndarray]], Callable[[FeatureInputs], np.ndarray]]:
    """Registers a function under its own name; the order of registration is the default order.

    A trailing underscore, there to spare a builtin, is not part of the name. A function of one's
    own is computed where its name is asked for: `feature_names=(*FEATURE_NAMES, "mine")`. Defined
    again in its module, as a notebook's cell is when it runs again, it replaces itself.

    Args:
        warm_up: how many rows at the start are NaN, or that number for a timeframe.

    Raises:
        ConfigError: a feature of another module has that name.
    """
    rows = warm_up if callable(warm_up) else lambda timeframe: warm_up

    def register(compute: Callable[[FeatureInputs], np.ndarray]):
        name = compute.__name__.removesuffix("_")
        taken = FEATURES.get(name)
        if taken is not None and taken.compute.__module__ != compute.__module__:
            raise ConfigError(
                f"feature {name!r} is already defined in {taken.compute.__module__}; rename yours"
            )
        FEATURES[name] = Feature(name, compute, rows)
        return compute

    return register


def compute_features(
    bars: Bars,
    sentiment: DailySentiment | None = None,
    names: tuple[str, ...] | None = None,
    sessions: Sessions | None = None,
) -> np.ndarray:
    """Computes the named features of every bar.

    Args:
        bars: T bars.
        sentiment: daily scores; None for zeros.
        names: F registered names, in the order wanted; None for all of `FEATURE_NAMES`.
        sessions: the session of every bar; None to find them with `sessions_of`.

    Returns:
        float64[T, F], dimensionless, not yet scaled. The first `warm_up_bars` rows hold NaN where
        a feature does not have enough bars behind it; no later row does.

    Raises:
        ConfigError: a name is unknown or given twice.
        DataError: a feature is not one finite number a bar, its warm-up apart.
    """
    chosen = _features(FEATURE_NAMES if names is None else names)
    sessions = sessions_of(bars) if sessions is None else sessions
    inputs = FeatureInputs(bars, sessions, sentiment_at(sessions.date, sentiment))
    return np.stack([_column(each, inputs) for each in chosen], axis=1)


def warm_up_bars(names: tuple[str, ...] | None = None, timeframe: str = "1Hour") -> int:
    """Number of leading rows in which at least one of the named features is NaN.

    Raises:
        ConfigError: a name is unknown or given twice, or `timeframe` is not a timeframe.
    """
    timeframe_minutes(timeframe)
    return max(each.warm_up(timeframe) for each in _features(names or FEATURE_NAMES))


def _features(names: tuple[str, ...]) -> list[Feature]:
    if len(names) == 0:
        raise ConfigError("no features named; give at least one of " + ", ".join(FEATURE_NAMES))
    for name in names:
        if name not in FEATURES:
            nearest = difflib.get_close_matches(name, FEATURES, n=1, cutoff=0.0)
            raise ConfigError(f"unknown feature {name!r}; the nearest is {nearest[0]!r}")
        if names.count(name) > 1:
            raise ConfigError(f"feature {name!r} is named twice; name it once")
    return [FEATURES[name] for name in names]


def _column(each: Feature, inputs: FeatureInputs) -> np.ndarray:
    """The feature's values, float64[T], held to what it was registered as."""
    bars, values = inputs.bars, np.asarray(each.compute(inputs), np.float64)
    if values.shape != (len(bars),):
        raise DataError(
            f"feature {each.name!r} gave shape {values.shape} for {len(bars)} bars of "
            f"{bars.symbol}; return one number a bar"
        )
    warm_up = each.warm_up(bars.timeframe)
    wrong = warm_up + np.flatnonzero(~np.isfinite(values[warm_up:]))
    if len(wrong):
        raise DataError(
            f"feature {each.name!r} is {values[wrong[0]]} at bar {wrong[0]} of {bars.symbol} "
            f"({len(wrong)} such bars) after a warm-up of {warm_up}; register it with a longer "
            "warm-up, or define it there"
        )
    return values


def _bars_per_hour(timeframe: str) -> int:
    return max(1, 60 // timeframe_minutes(timeframe))


def _log_change(values: np.ndarray, base: np.ndarray, lag: int) -> np.ndarray:
    """log(values[t] / base[t - lag]), NaN in the first `lag` rows."""
    change = np.full(len(values), np.nan)
    change[lag:] = np.log(values[lag:] / base[: max(len(base) - lag, 0)])
    return change


def _window_sum(values: np.ndarray, length: int) -> np.ndarray:
    """Sum over the last `length` rows, NaN before there are as many.

    Every window is added up afresh and in the same order: a running total would keep a residue of
    volumes that have left the window, and the ratio of two residues is noise.
    """
    total = np.full(len(values), np.nan)
    rows = len(values) - length + 1
    if rows > 0:
        total[length - 1 :] = sum(values[k : k + rows] for k in range(length))
    return total


@feature(warm_up=1)
def open_(inputs: FeatureInputs) -> np.ndarray:
    """log(open / previous close): the gap into the bar."""
    return _log_change(inputs.bars.open, inputs.bars.close, 1)


@feature(warm_up=0)
def high(inputs: FeatureInputs) -> np.ndarray:
    """log(high / close), >= 0."""
    return np.log(inputs.bars.high / inputs.bars.close)


@feature(warm_up=0)
def low(inputs: FeatureInputs) -> np.ndarray:
    """log(low / close), <= 0."""
    return np.log(inputs.bars.low / inputs.bars.close)


@feature(warm_up=0)
def close(inputs: FeatureInputs) -> np.ndarray:
    """log(close / open): the body of the bar."""
    return np.log(inputs.bars.close / inputs.bars.open)


@feature(warm_up=1)
def volume(inputs: FeatureInputs) -> np.ndarray:
    """log((volume + 1) / (previous volume + 1))."""
    return _log_change(inputs.bars.volume + 1, inputs.bars.volume + 1, 1)


@feature(warm_up=0)
def vwap(inputs: FeatureInputs) -> np.ndarray:
    """log(close / VWAP), VWAP = sum(typical * volume) / sum(volume) since the session opened.

    typical = (high + low + close) / 3. A session that has not traded yet weighs its bars equally.
    Source: Berkowitz, Logue & Noser (1988), The Total Cost of Transactions on the NYSE.
    """
    bars = inputs.bars
    typical = (bars.high + bars.low + bars.close) / 3
    value = typical * bars.volume
    columns = {"value": value, "volume": bars.volume, "typical": typical, "bars": 1.0}
    so_far = pd.DataFrame(columns).groupby(inputs.sessions.ordinal).cumsum()
    traded = so_far["volume"].to_numpy() > 0
    numerator = np.where(traded, so_far["value"], so_far["typical"])
    denominator = np.where(traded, so_far["volume"], so_far["bars"])
    return np.log(bars.close / (numerator / denominator))


@feature(warm_up=9)
def sma_10(inputs: FeatureInputs) -> np.ndarray:
    """log(close / mean of the last 10 closes). Source: TA-Lib SMA."""
    return _log_over_average(inputs.bars.close, 10)


@feature(warm_up=19)
def sma_20(inputs: FeatureInputs) -> np.ndarray:
    """log(close / mean of the last 20 closes). Source: TA-Lib SMA."""
    return _log_over_average(inputs.bars.close, 20)


def _log_over_average(values: np.ndarray, length: int) -> np.ndarray:
    import talib

    return np.log(values / talib.SMA(values, length))


def _macd(inputs: FeatureInputs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import talib

    closes = inputs.bars.close
    line, signal, histogram = talib.MACD(closes, fastperiod=12, slowperiod=26, signalperiod=9)
    return line / closes, signal / closes, histogram / closes


@feature(warm_up=33)
def macd(inputs: FeatureInputs) -> np.ndarray:
    """(EMA 12 of close - EMA 26 of close) / close. Source: Appel (1979); TA-Lib MACD."""
    return _macd(inputs)[0]


@feature(warm_up=33)
def macd_signal(inputs: FeatureInputs) -> np.ndarray:
    """EMA 9 of the MACD line / close. Source: Appel (1979); TA-Lib MACD."""
    return _macd(inputs)[1]


@feature(warm_up=33)
def macd_hist(inputs: FeatureInputs) -> np.ndarray:
    """(MACD line - signal) / close. Source: Appel (1979); TA-Lib MACD."""
    return _macd(inputs)[2]


@feature(warm_up=14)
def rsi_14(inputs: FeatureInputs) -> np.ndarray:
    """RSI / 100 - 0.5, in [-0.5, 0.5]; -0.5 (RSI 0) while the price has never moved.

    RSI = 100 * gain / (gain + loss), Wilder averages of 14 changes of close.
    Source: Wilder (1978), New Concepts in Technical Trading Systems; TA-Lib RSI.
    """
    import talib

    return talib.RSI(inputs.bars.close, 14) / 100 - 0.5


def _stochastic(inputs: FeatureInputs) -> tuple[np.ndarray, np.ndarray]:
    import talib

    bars = inputs.bars
    slow_k, slow_d = talib.STOCH(
        bars.high, bars.low, bars.close, fastk_period=14, slowk_period=3, slowd_period=3
    )
    return slow_k / 100 - 0.5, slow_d / 100 - 0.5


@feature(warm_up=17)
def stoch_k(inputs: FeatureInputs) -> np.ndarray:
    """%K / 100 - 0.5: where close lies in the 14-bar range, mean of 3; a flat range counts as 0.

    Source: Lane (1984), Lane's Stochastics; TA-Lib STOCH (14, 3, 3), rows from the first %D on.
    """
    return _stochastic(inputs)[0]


@feature(warm_up=17)
def stoch_d(inputs: FeatureInputs) -> np.ndarray:
    """%D / 100 - 0.5: mean of the last 3 %K. Source: Lane (1984); TA-Lib STOCH (14, 3, 3)."""
    return _stochastic(inputs)[1]


@feature(warm_up=27)
def adx_14(inputs: FeatureInputs) -> np.ndarray:
    """ADX / 100, in [0, 1]: strength of the trend, whatever its direction.

    Source: Wilder (1978), New Concepts in Technical Trading Systems; TA-Lib ADX.
    """
    import talib

    return talib.ADX(inputs.bars.high, inputs.bars.low, inputs.bars.close, 14) / 100


@feature(warm_up=14)
def atr_14(inputs: FeatureInputs) -> np.ndarray:
    """Average true range (Wilder average of 14) / close.

    Source: Wilder (1978), New Concepts in Technical Trading Systems; TA-Lib ATR.
    """
    import talib

    bars = inputs.bars
    return talib.ATR(bars.high, bars.low, bars.close, 14) / bars.close


@feature(warm_up=19)
def bollinger_bandwidth(inputs: FeatureInputs) -> np.ndarray:
    """(upper - lower) / middle band: 4 population standard deviations of 20 closes / their mean.

    Source: Bollinger (2001), Bollinger on Bollinger Bands; TA-Lib BBANDS.
    """
    import talib

    upper, middle, lower = talib.BBANDS(inputs.bars.close, 20, nbdevup=2.0, nbdevdn=2.0)
    return (upper - lower) / middle


@feature(warm_up=_OBV_BARS)
def obv(inputs: FeatureInputs) -> np.ndarray:
    """Change of on-balance volume over 20 bars / their volume, in [-1, 1]; 0 without volume.

    OBV adds the volume of a bar that closes up and takes away that of one that closes down.
    Source: Granville (1963), New Key to Stock Market Profits.
    """
    volumes = inputs.bars.volume
    direction = np.sign(np.diff(inputs.bars.close, prepend=np.nan))
    change = _window_sum(direction * volumes, _OBV_BARS)
    traded = _window_sum(volumes, _OBV_BARS)
    return np.where(traded == 0, change, change / np.where(traded == 0, 1.0, traded))


@feature(warm_up=19)
def volume_sma_20(inputs: FeatureInputs) -> np.ndarray:
    """log((volume + 1) / (mean of the last 20 volumes + 1))."""
    volumes = inputs.bars.volume
    return np.log((volumes + 1) / (_window_sum(volumes, 20) / 20 + 1))


@feature(warm_up=_bars_per_hour)
def return_1h(inputs: FeatureInputs) -> np.ndarray:
    """log(close / close one hour of bars ago); one bar ago when bars last an hour or longer."""
    closes = inputs.bars.close
    return _log_change(closes, closes, _bars_per_hour(inputs.bars.timeframe))


@feature(warm_up=0)
def sentiment(inputs: FeatureInputs) -> np.ndarray:
    """The latest daily score of an earlier day, in [-1, 1]; see `sentiment_at`."""
    return inputs.sentiment


@feature(warm_up=0)
def day_of_week_sin(inputs: FeatureInputs) -> np.ndarray:
    """sin(2 pi * weekday / 7), Monday 0, of the session's own date."""
    return np.sin(2 * np.pi * weekday_of(inputs.sessions) / 7)


@feature(warm_up=0)
def day_of_week_cos(inputs: FeatureInputs) -> np.ndarray:
    """cos(2 pi * weekday / 7), Monday 0, of the session's own date."""
    return np.cos(2 * np.pi * weekday_of(inputs.sessions) / 7)


FEATURE_NAMES: tuple[str, ...] = tuple(FEATURES)
