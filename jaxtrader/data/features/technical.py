"""The technical set: prices, volume and the calendar of one symbol, through TA-Lib where it can."""

from __future__ import annotations

import numpy as np
import pandas as pd

from jaxtrader.data.features.registry import FeatureInputs, feature
from jaxtrader.data.layout import timeframe_minutes
from jaxtrader.data.sessions import weekday_of

_OBV_BARS = 20


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
def day_of_week_sin(inputs: FeatureInputs) -> np.ndarray:
    """sin(2 pi * weekday / 7), Monday 0, of the session's own date."""
    return np.sin(2 * np.pi * weekday_of(inputs.sessions) / 7)


@feature(warm_up=0)
def day_of_week_cos(inputs: FeatureInputs) -> np.ndarray:
    """cos(2 pi * weekday / 7), Monday 0, of the session's own date."""
    return np.cos(2 * np.pi * weekday_of(inputs.sessions) / 7)
