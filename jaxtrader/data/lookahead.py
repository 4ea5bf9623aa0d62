"""A lie detector for features: what changes in the past when only the future does, has seen it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxtrader.data.bars import PRICES, Bars
from jaxtrader.data.features import FEATURE_NAMES, compute_features, warm_up_bars
from jaxtrader.data.layout import timeframe_minutes
from jaxtrader.data.macro import MacroSeries
from jaxtrader.data.sentiment import DailySentiment
from jaxtrader.data.sessions import Sessions, sessions_of
from jaxtrader.data.universe import Universe
from jaxtrader.errors import ConfigError, DataError


def find_lookahead(
    bars: Bars,
    names: tuple[str, ...] | None = None,
    sentiment: DailySentiment | None = None,
    *,
    macro: Mapping[str, MacroSeries] | None = None,
    universe: Universe | None = None,
    probes: int = 100,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Finds features that know a bar before it has closed.

    At each of several bars t, the features are computed again with every later bar replaced by
    noise, and with every later bar taken away; scores, values of the economy and other symbols'
    closes that are not public by the close of t become noise too. A row up to t that changes by a
    bit has looked ahead. Half of the bars probed end a session, where a calendar's look-ahead
    shows.

    Args:
        bars: at least two more than the features' warm-up.
        names: features to examine; None for all of `FEATURE_NAMES`.
        sentiment: daily scores; without them the feature `sentiment` is 0 and knows nothing.
        macro: series of the economy by name, for the features that look at them.
        universe: the symbols that are looked at together; None for this one alone.
        probes: how many bars t, at most.
        seed: of the choice of bars and of the noise.

    Returns:
        feature name -> int64[N] bars whose row changed, in order, for those features only that
        have looked ahead: empty when none has.

    Raises:
        DataError: there are fewer bars.
        ConfigError: a name is unknown or given twice, or `probes` is not above 0.
    """
    if probes < 1:
        raise ConfigError(f"probes {probes} must be above 0: the number of bars to probe at")
    names = FEATURE_NAMES if names is None else tuple(names)
    warm_up = warm_up_bars(names, bars.timeframe)
    if len(bars) < warm_up + 2:
        raise DataError(
            f"{bars.source}: of {len(bars)} bars none is warmed up and has a future to probe with; "
            f"give at least {warm_up + 2}"
        )
    sessions = sessions_of(bars)
    honest = compute_features(bars, sentiment, names, sessions, macro=macro, universe=universe)
    changed = np.zeros(honest.shape, bool)
    ends = bars.timestamps + np.timedelta64(timeframe_minutes(bars.timeframe), "m")
    for t in _probed(sessions, warm_up, probes, seed):
        known = slice(0, t + 1)
        day = sessions.date[t]
        scores = _noise_from(sentiment, day, seed)
        public = {
            "macro": {
                name: _unpublished(series, day, seed) for name, series in (macro or {}).items()
            },
            "universe": None if universe is None else _unclosed(universe, ends[t], seed),
        }
        noisy = compute_features(noise_after(bars, t, seed), scores, names, sessions, **public)
        until = _sessions_until(sessions, t)
        ended = compute_features(_until(bars, t), scores, names, until, **public)
        changed[known] |= _differ(honest[known], noisy[known]) | _differ(honest[known], ended)
    return {
        name: np.flatnonzero(rows) for name, rows in zip(names, changed.T, strict=True) if any(rows)
    }


def noise_after(bars: Bars, t: int, seed: int = 0) -> Bars:
    """`bars` with all that is later than bar t replaced by prices and volumes of another scale.

    The timestamps stay. The same arguments give the same noise.
    """
    rng = np.random.default_rng([seed, t])
    later = len(bars) - t - 1
    prices = np.sort(np.exp(rng.normal(3.0, 2.0, (4, later))), axis=0)
    columns: dict[str, np.ndarray] = dict(
        zip(("low", "open", "close", "high"), prices, strict=True)
    )
    columns["volume"] = np.where(rng.random(later) < 0.3, 0.0, rng.lognormal(5.0, 5.0, later))
    return dataclasses.replace(
        bars,
        **{
            name: np.concatenate([getattr(bars, name)[: t + 1], values])
            for name, values in columns.items()
        },
    )


def _probed(sessions: Sessions, warm_up: int, probes: int, seed: int) -> list[int]:
    """Bars that have a past and a future: about half of them the last of a session."""
    rng = np.random.default_rng(seed)
    last_of_session = warm_up + np.flatnonzero(np.diff(sessions.ordinal[warm_up:]))
    anywhere = np.arange(warm_up, len(sessions.ordinal) - 1)
    chosen = [
        rng.choice(some, min(len(some), -(-probes // 2)), replace=False)
        for some in (last_of_session, anywhere)
    ]
    return np.unique(np.concatenate(chosen)).tolist()


def _noise_from(
    sentiment: DailySentiment | None, day: np.datetime64, seed: int
) -> DailySentiment | None:
    """Scores of `day` and later replaced: the score of a day is public once the day is over."""
    if sentiment is None:
        return None
    noise = np.random.default_rng(seed).uniform(-1.0, 1.0, len(sentiment.score))
    late = sentiment.date >= day
    score = np.where(late, noise, sentiment.score)
    count = np.ones(len(late)) if sentiment.count is None else sentiment.count
    count = np.where(late, 1.0 + 1_000.0 * np.abs(noise), count)
    return dataclasses.replace(sentiment, score=score, count=count)


def _unpublished(series: MacroSeries, day: np.datetime64, seed: int) -> MacroSeries:
    """Values that no session up to `day` may know replaced by others of the same sign."""
    noise = np.exp(np.random.default_rng(seed).normal(0.0, 2.0, len(series.value)))
    value = np.where(series.usable > day, series.value * noise, series.value)
    return dataclasses.replace(series, value=value)


def _unclosed(universe: Universe, moment: np.datetime64, seed: int) -> Universe:
    """Closes of sessions that some symbol had not closed at `moment` replaced by others."""
    noise = np.exp(np.random.default_rng(seed).normal(0.0, 2.0, universe.close.shape))
    late = (universe.known > moment)[:, None]
    close = np.where(late, universe.close * noise, universe.close)
    return Universe(universe.date, universe.known, close)


def _until(bars: Bars, t: int) -> Bars:
    columns = ("timestamps", *PRICES, "volume")
    return dataclasses.replace(bars, **{name: getattr(bars, name)[: t + 1] for name in columns})


def _sessions_until(sessions: Sessions, t: int) -> Sessions:
    return dataclasses.replace(
        sessions, date=sessions.date[: t + 1], ordinal=sessions.ordinal[: t + 1]
    )


def _differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two arrays differ; NaN equals NaN."""
    return (a != b) & ~(np.isnan(a) & np.isnan(b))
