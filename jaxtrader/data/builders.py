"""Make a `Dataset` from files, from an artificial market, or from any bars."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from jaxtrader.data.bars import PRICES, Bars, read_bars
from jaxtrader.data.dataset import Dataset
from jaxtrader.data.features import (
    FEATURE_NAMES,
    Feature,
    chosen_features,
    compute_features,
    warm_up_bars,
)
from jaxtrader.data.macro import MacroSeries, read_macro
from jaxtrader.data.scaler import Scaler
from jaxtrader.data.sentiment import (
    MAXIMUM_AGE_DAYS,
    DailySentiment,
    read_sentiment,
    sentiment_age,
)
from jaxtrader.data.sessions import Sessions, sessions_of
from jaxtrader.data.splits import (
    DEFAULT_FRACTIONS,
    SPLIT_NAMES,
    Split,
    chronological_splits,
    split_boundaries,
)
from jaxtrader.data.synthetic import synthetic_bars
from jaxtrader.data.universe import Universe
from jaxtrader.errors import ConfigError, DataError

SplitClock = Literal["shared", "own"]
DEFAULT_RECEPTIVE_FIELD = 32


def load_dataset(
    data_dir: str | Path,
    symbols: Sequence[str],
    timeframe: str = "1Hour",
    *,
    receptive_field: int = DEFAULT_RECEPTIVE_FIELD,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    minimum_bars: int = 2,
    feature_names: tuple[str, ...] = FEATURE_NAMES,
    split_clock: SplitClock = "shared",
) -> Dataset:
    """Reads the bars of `symbols` from `data_dir`, and what else their features look at.

    That is sentiment where there is any, and series of the economy, which must be there.

    Args:
        data_dir: folder that holds `historical` (or `data/historical`), or is it.
        symbols: names of S symbols.
        timeframe: name of the timeframe's folder.
        receptive_field, fractions, minimum_bars, feature_names, split_clock: see
            `dataset_from_bars`.

    Raises:
        DataError: a file is missing, damaged or malformed, or the bars are too few.
        ConfigError: an argument is out of range or unknown.
    """
    features = chosen_features(feature_names)
    sentiment = {} if _look_at_sentiment(features) else None
    series = sorted({name for each in features for name in each.macro})
    macro = {name: read_macro(data_dir, name) for name in series}
    bars = []
    for symbol in symbols:
        bars.append(read_bars(data_dir, symbol, timeframe))
        if sentiment is not None:
            sentiment[symbol] = read_sentiment(data_dir, symbol)
    return dataset_from_bars(
        bars,
        sentiment,
        macro,
        receptive_field=receptive_field,
        fractions=fractions,
        minimum_bars=minimum_bars,
        feature_names=feature_names,
        split_clock=split_clock,
    )


def synthetic_dataset(
    symbols: Sequence[str] = ("SYNTH",),
    seed: int = 0,
    *,
    sessions: int = 900,
    bars_per_session: int = 7,
    timeframe: str = "1Hour",
    receptive_field: int = DEFAULT_RECEPTIVE_FIELD,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    minimum_bars: int = 2,
    feature_names: tuple[str, ...] = FEATURE_NAMES,
) -> Dataset:
    """A dataset of artificial stocks; the arguments are those of the functions it calls.

    Args:
        symbols: names of S stocks, each an independent series.
        seed, sessions, bars_per_session, timeframe: see `synthetic_bars`.
        receptive_field, fractions, minimum_bars, feature_names: see `dataset_from_bars`.

    Raises:
        DataError: a name is not a symbol, or the bars are too few.
        ConfigError: an argument is out of range or unknown.
    """
    return dataset_from_bars(
        [synthetic_bars(name, seed, sessions, bars_per_session, timeframe) for name in symbols],
        receptive_field=receptive_field,
        fractions=fractions,
        minimum_bars=minimum_bars,
        feature_names=feature_names,
    )


def dataset_from_bars(
    bars: Sequence[Bars],
    sentiment: Mapping[str, DailySentiment | None] | None = None,
    macro: Mapping[str, MacroSeries] | None = None,
    *,
    receptive_field: int = DEFAULT_RECEPTIVE_FIELD,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    minimum_bars: int = 2,
    feature_names: tuple[str, ...] = FEATURE_NAMES,
    split_clock: SplitClock = "shared",
) -> Dataset:
    """Computes features and splits, and fits one scaler on the training rows of all symbols.

    Args:
        bars: one series for each of S symbols, of one timeframe.
        sentiment: daily scores by symbol; a symbol without an entry, or with None, gets zeros.
        macro: series of the economy by name, for the features that look at them.
        receptive_field: bars an observation looks back on, itself included (R).
        fractions: shares of train, validation and test.
        minimum_bars: smallest acceptable split of a symbol: an episode's steps + 1.
        feature_names: the F features, in order.
        split_clock: "shared" cuts all symbols at the same two moments, so that no symbol trains on
            days that another is tested on; "own" cuts each by its own bars, for symbols whose
            histories barely overlap, and notes where splits then overlap in time.

    Raises:
        DataError: no bars, a symbol given twice, timeframes or real and artificial bars mixed, or
            too few bars.
        ConfigError: an argument is out of range or unknown.
    """
    _check_series(bars)
    scores = {} if sentiment is None else sentiment
    sessions = [sessions_of(each) for each in bars]
    universe = Universe.of(bars, sessions)
    features = [
        compute_features(
            each, scores.get(each.symbol), feature_names, when, macro=macro, universe=universe
        ).astype(np.float32)
        for each, when in zip(bars, sessions, strict=True)
    ]
    warm_up = warm_up_bars(feature_names, bars[0].timeframe)
    splits = _split(bars, warm_up, receptive_field, fractions, minimum_bars, split_clock)
    train_rows = [
        rows[warm_up : train.last_bar + 1]
        for rows, (train, *_) in zip(features, splits, strict=True)
    ]
    return Dataset(
        symbols=tuple(each.symbol for each in bars),
        timeframe=bars[0].timeframe,
        n_bars=np.array([len(each) for each in bars], np.int32),
        feature_names=tuple(feature_names),
        scaler=Scaler.fit(np.concatenate(train_rows)),
        splits=_columns(splits),
        periods_per_year=np.array([each.periods_per_year for each in sessions], np.int32),
        receptive_field=receptive_field,
        provenance=_provenance(
            bars, sessions, scores, macro or {}, splits, chosen_features(feature_names)
        ),
        **_padded(bars, sessions, features),
    )


def _check_series(bars: Sequence[Bars]) -> None:
    symbols = [each.symbol for each in bars]
    if not symbols:
        raise DataError("no symbols given; name at least one")
    twice = sorted({symbol for symbol in symbols if symbols.count(symbol) > 1})
    if twice:
        raise DataError(f"symbol {twice[0]} is given twice; name it once")
    timeframes = sorted({each.timeframe for each in bars})
    if len(timeframes) > 1:
        raise DataError(f"bars of {', '.join(timeframes)} in one dataset; give one timeframe")
    if len({each.synthetic for each in bars}) > 1:
        raise DataError("real and synthetic bars in one dataset; give one kind")


def _split(
    bars: Sequence[Bars],
    warm_up: int,
    receptive_field: int,
    fractions: tuple[float, float, float],
    minimum_bars: int,
    split_clock: SplitClock,
) -> list[tuple[Split, Split, Split]]:
    if split_clock not in get_args(SplitClock):
        raise ConfigError(f"split_clock {split_clock!r} must be 'shared' or 'own'")
    usable = [each.timestamps[warm_up + receptive_field - 1 :] for each in bars]
    groups = [usable] * len(bars) if split_clock == "shared" else [[mine] for mine in usable]
    labels = [f"{each.symbol} ({each.source})" for each in bars]
    names = [", ".join(labels)] * len(bars) if split_clock == "shared" else labels
    return [
        chronological_splits(
            each.timestamps,
            split_boundaries(group, fractions, name),
            warm_up=warm_up,
            receptive_field=receptive_field,
            minimum_bars=minimum_bars,
            label=label,
        )
        for each, group, name, label in zip(bars, groups, names, labels, strict=True)
    ]


def _columns(
    splits: Sequence[tuple[Split, Split, Split]],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per-symbol splits turned into name -> (first_bar int32[S], last_bar int32[S])."""
    columns = {}
    for name, parts in zip(SPLIT_NAMES, zip(*splits, strict=True), strict=True):
        first = np.array([part.first_bar for part in parts], np.int32)
        last = np.array([part.last_bar for part in parts], np.int32)
        first.setflags(write=False)
        last.setflags(write=False)
        columns[name] = (first, last)
    return columns


def _padded(
    bars: Sequence[Bars], sessions: Sequence[Sessions], features: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    longest = max(len(each) for each in bars)
    stamps = [each.timestamps.astype(np.int64) for each in bars]
    arrays = {
        "timestamps": _pad(stamps, longest, -1),
        "volume": _pad([each.volume for each in bars], longest, 0.0),
        "tradable": _pad([np.ones(len(each), bool) for each in bars], longest, False),
        "session": _pad([each.ordinal for each in sessions], longest, None),
        "raw_features": _pad(features, longest, np.nan),
    }
    for name in PRICES:
        arrays[name] = _pad([getattr(each, name) for each in bars], longest, None)
    return arrays


def _pad(rows: Sequence[np.ndarray], length: int, fill: float | None) -> np.ndarray:
    """Stacks rows [T_s, ...] to [S, length, ...]; the padding is `fill`, or the last entry."""
    stacked = []
    for row in rows:
        padded = np.full((length, *row.shape[1:]), row[-1] if fill is None else fill, row.dtype)
        padded[: len(row)] = row
        stacked.append(padded)
    return np.stack(stacked)


def _provenance(
    bars: Sequence[Bars],
    sessions: Sequence[Sessions],
    scores: Mapping[str, DailySentiment | None],
    macro: Mapping[str, MacroSeries],
    splits: Sequence[tuple[Split, Split, Split]],
    features: Sequence[Feature],
) -> dict[str, Any]:
    wants_sentiment = _look_at_sentiment(features)
    return {
        "kind": "synthetic" if bars[0].synthetic else "real",
        "symbols": {
            each.symbol: _origin(each, when, scores.get(each.symbol), wants_sentiment)
            for each, when in zip(bars, sessions, strict=True)
        },
        "macro": {
            name: {"source": series.source, "sha256": series.sha256}
            for name, series in sorted(macro.items())
        },
        "notes": _overlaps(bars, splits),
    }


def _look_at_sentiment(features: Sequence[Feature]) -> bool:
    """Whether any of them may: of the library's own features it is known."""
    return any(each.group in ("sentiment", "your own") for each in features)


def _origin(
    bars: Bars, sessions: Sessions, sentiment: DailySentiment | None, wants_sentiment: bool
) -> dict[str, Any]:
    notes = list(bars.notes)
    origin: dict[str, Any] = {
        "source": bars.source,
        "sha256": bars.sha256,
        "first_timestamp": _utc(bars.timestamps[0]),
        "last_timestamp": _utc(bars.timestamps[-1]),
        "bars": len(bars),
        "sentiment": None,
        "notes": notes,
    }
    if sentiment is not None:
        notes += [*sentiment.notes, _coverage(sentiment, sessions)]
        origin["sentiment"] = {"source": sentiment.source, "sha256": sentiment.sha256}
    elif wants_sentiment:
        notes.append("no sentiment: the feature is 0")
    return origin


def _coverage(sentiment: DailySentiment, sessions: Sessions) -> str:
    served = sentiment_age(sessions.date, sentiment) <= MAXIMUM_AGE_DAYS
    return (
        f"sentiment of {sentiment.date[0]} to {sentiment.date[-1]} serves "
        f"{100 * served.mean():.0f} % of the bars; in the others the feature is 0"
    )


def _utc(moment: np.datetime64) -> str:
    return f"{np.datetime_as_string(moment, unit='s')}Z"


def _overlaps(bars: Sequence[Bars], splits: Sequence[tuple[Split, Split, Split]]) -> list[str]:
    """One note for each split that begins, for some symbol, before an earlier one has ended."""
    notes = []
    for (i, earlier), (j, later) in itertools.combinations(enumerate(SPLIT_NAMES), 2):
        ends = [
            each.timestamps[parts[i].last_bar] for each, parts in zip(bars, splits, strict=True)
        ]
        starts = [
            each.timestamps[parts[j].first_bar] for each, parts in zip(bars, splits, strict=True)
        ]
        last, first = int(np.argmax(ends)), int(np.argmin(starts))
        if ends[last] >= starts[first]:
            notes.append(
                f"{later} of {bars[first].symbol} begins {_utc(starts[first])}, before {earlier} "
                f"of {bars[last].symbol} ends {_utc(ends[last])}: results on {later} are not "
                "out of sample"
            )
    return notes
