"""Features by name: what one may look at, how it is registered, and how all are computed.

Row t is a function of what was known when bar t had closed, to the last bit, whether or not
anything later exists: `jaxtrader.data.find_lookahead` tells whether it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from jaxtrader.data.bars import Bars
from jaxtrader.data.layout import timeframe_minutes
from jaxtrader.data.macro import MacroAt, MacroSeries
from jaxtrader.data.sentiment import DailySentiment, SentimentAt, sentiment_at
from jaxtrader.data.sessions import Sessions, sessions_of
from jaxtrader.data.universe import Universe, UniverseAt
from jaxtrader.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class FeatureInputs:
    """What a feature may look at: T bars, and what else was public at each of them."""

    bars: Bars
    sessions: Sessions
    sentiment: SentimentAt  # score, age and count, each float64[T]
    macro: MacroAt  # `macro("VIX")` is float64[T]
    universe: UniverseAt  # `universe(indicator)` is float64[T], of all symbols together


@dataclass(frozen=True)
class Feature:
    """A registered feature."""

    name: str
    compute: Callable[[FeatureInputs], np.ndarray]  # -> float64[T]
    warm_up: Callable[[str], int]  # timeframe -> number of leading NaN rows
    macro: tuple[str, ...] = ()  # series of the economy that it looks at

    @property
    def group(self) -> str:
        """Of the library's own: the module it stands in, such as "technical"; else "your own"."""
        package, _, module = self.compute.__module__.rpartition(".")
        return module if package == __package__ else "your own"

    @property
    def formula(self) -> str:
        """What its docstring says, in one line."""
        return " ".join((self.compute.__doc__ or "").split())


FEATURES: dict[str, Feature] = {}

# What training looks at unless it is told otherwise.
FEATURE_NAMES: tuple[str, ...] = (
    "open", "high", "low", "close", "volume", "vwap", "sma_10", "sma_20", "macd", "macd_signal",
    "macd_hist", "rsi_14", "stoch_k", "stoch_d", "adx_14", "atr_14", "bollinger_bandwidth", "obv",
    "volume_sma_20", "return_1h", "sentiment", "day_of_week_sin", "day_of_week_cos",
)  # fmt: skip


def feature(
    warm_up: int | Callable[[str], int], macro: tuple[str, ...] = ()
) -> Callable[[Callable[[FeatureInputs], np.ndarray]], Callable[[FeatureInputs], np.ndarray]]:
    """Registers a function under its own name.

    A trailing underscore, there to spare a builtin, is not part of the name. A function of one's
    own is computed where its name is asked for: `feature_names=(*FEATURE_NAMES, "mine")`. Defined
    again in its module, as a notebook's cell is when it runs again, it replaces itself.

    Args:
        warm_up: how many rows at the start are NaN, or that number for a timeframe.
        macro: names of the series of the economy that it looks at, which are read for it.

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
        FEATURES[name] = Feature(name, compute, rows, macro)
        return compute

    return register


def compute_features(
    bars: Bars,
    sentiment: DailySentiment | None = None,
    names: tuple[str, ...] | None = None,
    sessions: Sessions | None = None,
    *,
    macro: Mapping[str, MacroSeries] | None = None,
    universe: Universe | None = None,
) -> np.ndarray:
    """Computes the named features of every bar.

    Args:
        bars: T bars.
        sentiment: daily scores; None for none.
        names: F registered names, in the order wanted; None for all of `FEATURE_NAMES`.
        sessions: the session of every bar; None to find them with `sessions_of`.
        macro: series by name, for the features that look at them.
        universe: the symbols that are looked at together; None for this one alone.

    Returns:
        float64[T, F], dimensionless, not yet scaled. The first `warm_up_bars` rows hold NaN where
        a feature does not have enough bars behind it; no later row does.

    Raises:
        ConfigError: a name is unknown or given twice.
        DataError: a feature is not one finite number a bar, its warm-up apart, or a series that it
            looks at is missing, begins too late or has ended too early.
    """
    chosen = chosen_features(names)
    sessions = sessions_of(bars) if sessions is None else sessions
    universe = Universe.of([bars], [sessions]) if universe is None else universe
    inputs = FeatureInputs(
        bars,
        sessions,
        sentiment_at(sessions.date, sentiment),
        MacroAt(macro or {}, sessions.date),
        UniverseAt(universe, bars.timestamps),
    )
    return np.stack([_column(each, inputs) for each in chosen], axis=1)


def chosen_features(names: tuple[str, ...] | None = None) -> list[Feature]:
    """The named features, or those of `FEATURE_NAMES`.

    Raises:
        ConfigError: a name is unknown or given twice, or there is none.
    """
    names = FEATURE_NAMES if names is None else names
    if len(names) == 0:
        raise ConfigError("no features named; give at least one of " + ", ".join(FEATURE_NAMES))
    for name in names:
        if name not in FEATURES:
            nearest = difflib.get_close_matches(name, FEATURES, n=1, cutoff=0.0)
            raise ConfigError(f"unknown feature {name!r}; the nearest is {nearest[0]!r}")
        if names.count(name) > 1:
            raise ConfigError(f"feature {name!r} is named twice; name it once")
    return [FEATURES[name] for name in names]


def warm_up_bars(names: tuple[str, ...] | None = None, timeframe: str = "1Hour") -> int:
    """Number of leading rows in which at least one of the named features is NaN.

    Raises:
        ConfigError: a name is unknown or given twice, or `timeframe` is not a timeframe.
    """
    timeframe_minutes(timeframe)
    return max(each.warm_up(timeframe) for each in chosen_features(names or None))


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
