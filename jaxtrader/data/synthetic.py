"""An artificial market with the stylised facts of a real one, for tests and first runs."""

from __future__ import annotations

import functools
import hashlib
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd

from jaxtrader.data.bars import Bars
from jaxtrader.data.layout import check_symbol, timeframe_minutes
from jaxtrader.data.sessions import EXCHANGE_ZONE
from jaxtrader.errors import ConfigError

_SESSIONS_PER_YEAR = 252
_FIRST_DAY = "2000-01-03"
_OPENING_MINUTE = 9 * 60 + 30
_DAY_MINUTES = 24 * 60

_DRIFT = np.array([0.18, 0.05, -0.20, -0.55])  # a year, by regime
_VOLATILITY = np.array([0.11, 0.17, 0.25, 0.50])  # a year, by regime
_TRANSITION = np.array(  # by session: calm bull, choppy, bear, crisis
    [
        [0.988, 0.009, 0.002, 0.001],
        [0.022, 0.968, 0.008, 0.002],
        [0.004, 0.014, 0.977, 0.005],
        [0.000, 0.035, 0.025, 0.940],
    ]
)
_GARCH_SHOCK, _GARCH_MEMORY = 0.06, 0.91
_TAIL = 5.0  # degrees of freedom of Student's t
_OVERNIGHT_SHARE = 0.25  # of a session's variance
_QUOTE_NOISE = 0.02  # an open's distance from the close before it, in deviations of the bar
_MEAN_VOLUME = 1e6
_DECIMALS = 4


@dataclass(frozen=True, eq=False)
class _Path:
    """Log returns and deviations; column 0 is the night before the session, then B bars."""

    returns: np.ndarray  # float64[D, 1 + B]
    deviation: np.ndarray  # float64[D, 1 + B], of each return before it was drawn
    level: np.ndarray  # float64[D], the regime's volatility relative to the calmest regime's


def synthetic_bars(
    symbol: str = "SYNTH",
    seed: int = 0,
    sessions: int = 900,
    bars_per_session: int = 7,
    timeframe: str = "1Hour",
) -> Bars:
    """Generates bars of an artificial stock; the same arguments give the same bars.

    Sessions are those of the New York Stock Exchange from January 2000, every one of full length,
    with bars from 09:30 New York time (daily bars: 00:00 UTC of the date). The price starts at 100
    and has four decimals.

    The log return of the night and of each bar is `drift + deviation * sqrt(h) * z`:

    - a Markov chain of regimes by session: calm bull, choppy, bear, crisis, with drifts of 18, 5,
      -20, -55 % and volatilities of 11, 17, 25, 50 % a year, present 54, 26, 17, 3 % of the time;
    - h is GARCH(1, 1) of mean 1 with coefficients 0.06 and 0.91 (Bollerslev 1986);
    - z is Student's t with 5 degrees of freedom, scaled to variance 1;
    - the night holds a quarter of a session's variance, the bars share the rest in a U shape, and
      so does volume (Admati & Pfleiderer 1988), which also rises with `|z|` and with volatility.

    Highs and lows are the extremes of a Brownian bridge from open to close. Over many seeds
    of 900 sessions the price grows by 7 % a year with a volatility of 18 %; daily returns have a
    kurtosis of 12, their absolute values an autocorrelation of 0.26 at one day. One seed may be far
    from these. There is nothing in it for a policy to predict but drift and volatility.

    Args:
        symbol: name of the stock; each name is an independent series.
        seed: any integer >= 0.
        sessions: number of trading days, at least 1.
        bars_per_session: bars a day, at least 1 (and 1 for daily bars).
        timeframe: length of a bar; a session must end before midnight.

    Returns:
        `sessions * bars_per_session` bars with `synthetic=True`.

    Raises:
        ConfigError: an argument is out of range.
        DataError: `symbol` is not a symbol.
    """
    check_symbol(symbol)
    _check_arguments(seed, sessions, bars_per_session, timeframe)
    name_key = int.from_bytes(hashlib.sha256(symbol.encode()).digest()[:8], "big")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, name_key])))
    path = _draw_path(rng, sessions, bars_per_session)
    columns = [
        _timestamps(sessions, bars_per_session, timeframe),
        *_draw_prices(rng, path),
        _draw_volume(rng, path),
    ]
    return Bars(
        symbol,
        timeframe,
        *columns,
        source=f"synthetic_bars(symbol={symbol!r}, seed={seed}, sessions={sessions}, "
        f"bars_per_session={bars_per_session}, timeframe={timeframe!r})",
        sha256=hashlib.sha256(b"".join(column.tobytes() for column in columns)).hexdigest(),
        synthetic=True,
    )


def _check_arguments(seed: int, sessions: int, bars_per_session: int, timeframe: str) -> None:
    for name, value, least in (
        ("seed", seed, 0),
        ("sessions", sessions, 1),
        ("bars_per_session", bars_per_session, 1),
    ):
        if value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")
    minutes = timeframe_minutes(timeframe)
    if minutes >= _DAY_MINUTES:
        if minutes != _DAY_MINUTES or bars_per_session != 1:
            raise ConfigError(
                f"timeframe {timeframe!r} with bars_per_session {bars_per_session}: "
                "synthetic bars are at most '1Day', one a session"
            )
    elif _OPENING_MINUTE + (bars_per_session - 1) * minutes >= _DAY_MINUTES:
        raise ConfigError(
            f"bars_per_session {bars_per_session} of {timeframe} do not fit between 09:30 and "
            "midnight; give fewer or shorter bars"
        )


def _draw_path(rng: np.random.Generator, sessions: int, bars: int) -> _Path:
    regime = _draw_regimes(rng, sessions)
    share = np.concatenate([[_OVERNIGHT_SHARE], (1 - _OVERNIGHT_SHARE) * _u_shape(bars)])
    scale = np.sqrt(rng.standard_gamma(_TAIL / 2, (sessions, 1 + bars)) / (_TAIL / 2))
    z = rng.standard_normal((sessions, 1 + bars)) / scale * np.sqrt((_TAIL - 2) / _TAIL)
    variance = _VOLATILITY[regime, None] ** 2 / _SESSIONS_PER_YEAR * share
    deviation = np.sqrt(variance * _garch_variance(z.ravel()).reshape(z.shape))
    drift = _DRIFT[regime, None] / _SESSIONS_PER_YEAR * share - deviation**2 / 2
    return _Path(drift + deviation * z, deviation, _VOLATILITY[regime] / _VOLATILITY.min())


def _draw_regimes(rng: np.random.Generator, sessions: int) -> np.ndarray:
    """int[D]: a Markov chain that starts calm."""
    threshold = np.cumsum(_TRANSITION, axis=1)[:, :-1]
    regime = np.zeros(sessions, np.int64)
    for day, draw in enumerate(rng.random(sessions - 1), start=1):
        regime[day] = np.searchsorted(threshold[regime[day - 1]], draw, side="right")
    return regime


def _garch_variance(z: np.ndarray) -> np.ndarray:
    """Variance of each shock, mean 1, that the shocks before it have made: float64[N]."""
    base = 1 - _GARCH_SHOCK - _GARCH_MEMORY
    variance = np.empty(len(z))
    current = 1.0
    for i, draw in enumerate(z):
        variance[i] = current
        current = base + (_GARCH_SHOCK * draw * draw + _GARCH_MEMORY) * current
    return variance


def _u_shape(bars: int) -> np.ndarray:
    """Weights of the bars of a session, sum 1: high at both ends, highest at the open."""
    position = np.linspace(-1, 1, bars) if bars > 1 else np.zeros(1)
    weight = 1 + 2.0 * position**2 - 0.5 * position
    return weight / weight.sum()


def _draw_prices(rng: np.random.Generator, path: _Path) -> list[np.ndarray]:
    """open, high, low, close: float64[D * B], on the price grid."""
    sessions, columns = path.returns.shape
    walk = np.cumsum(path.returns.ravel()).reshape(sessions, columns)
    before, close = walk[:, :-1].ravel(), walk[:, 1:].ravel()
    deviation = path.deviation[:, 1:].ravel()
    open_ = before + _QUOTE_NOISE * deviation * rng.standard_normal(len(before))
    body = close - open_
    # Extremes of a Brownian bridge: Karatzas & Shreve (1991), Brownian Motion, section 4.3.
    reach = -2 * deviation**2 * np.log1p(-rng.random((2, len(body))))
    high = open_ + (body + np.sqrt(body**2 + reach[0])) / 2
    low = open_ + (body - np.sqrt(body**2 + reach[1])) / 2
    # The grid also hides the last bit of exp, in which processors differ.
    return [np.round(100 * np.exp(log), _DECIMALS) for log in (open_, high, low, close)]


def _draw_volume(rng: np.random.Generator, path: _Path) -> np.ndarray:
    """Whole shares: float64[D * B]."""
    sessions, columns = path.returns.shape
    surprise = np.abs(path.returns[:, 1:] / path.deviation[:, 1:])
    noise = rng.normal(0.0, 0.35, (sessions, columns - 1)) + rng.normal(0.0, 0.2, (sessions, 1))
    shape = _u_shape(columns - 1) * (columns - 1)
    volume = _MEAN_VOLUME * shape * np.sqrt(path.level)[:, None] * (0.6 + 0.5 * surprise)
    return np.round(volume * np.exp(noise)).ravel()


def _timestamps(sessions: int, bars: int, timeframe: str) -> np.ndarray:
    dates = _exchange_dates(sessions)
    minutes = timeframe_minutes(timeframe)
    if minutes >= _DAY_MINUTES:
        return dates.astype("M8[us]")
    start = _OPENING_MINUTE + minutes * np.arange(bars)
    local = (dates.astype("M8[m]")[:, None] + start).ravel().astype("M8[us]")
    utc = pd.DatetimeIndex(local).tz_localize(EXCHANGE_ZONE).tz_convert("UTC")
    return utc.tz_localize(None).to_numpy().astype("M8[us]")


@functools.lru_cache(maxsize=4)
def _exchange_dates(sessions: int) -> np.ndarray:
    """The first `sessions` trading days of New York from the year 2000 on: datetime64[D][D]."""
    import exchange_calendars

    days = int(sessions * 1.5) + 30  # 252 sessions take 365 days
    end = np.datetime64(_FIRST_DAY) + days
    with warnings.catch_warnings():
        # It calls parts of pandas that pandas will change; nothing a user could act on.
        warnings.simplefilter("ignore", DeprecationWarning)
        calendar = exchange_calendars.get_calendar("XNYS", start=_FIRST_DAY, end=str(end))
    dates = calendar.sessions.to_numpy().astype("M8[D]")[:sessions]
    dates.setflags(write=False)
    return dates
