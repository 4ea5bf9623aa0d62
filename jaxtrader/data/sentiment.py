"""Daily sentiment, joined to bars only after the day it describes has ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from jaxtrader.data.layout import sentiment_path
from jaxtrader.data.parquet import read_columns
from jaxtrader.errors import DataError

MAXIMUM_AGE_DAYS = 7


@dataclass(frozen=True, eq=False)
class DailySentiment:
    """One score a day."""

    date: np.ndarray  # datetime64[D][N], strictly increasing
    score: np.ndarray  # float64[N], -1 (bad) to 1 (good)
    source: str  # path as given
    sha256: str
    notes: tuple[str, ...] = ()
    count: np.ndarray | None = None  # float64[N], texts that a score rests on; None: one each


@dataclass(frozen=True, eq=False)
class SentimentAt:
    """What is known of the mood at each of T bars: the latest score of an earlier day."""

    score: np.ndarray  # float64[T], -1 to 1; 0 where none is young enough
    age: np.ndarray  # float64[T], calendar days since the day of the latest score; inf without one
    count: np.ndarray  # float64[T], texts that the score rests on; 0 where none is young enough


def read_sentiment(data_dir: str | Path, symbol: str) -> DailySentiment | None:
    """Reads `sentiment/<symbol>/daily_sentiment.parquet`; None when there is no such file.

    Several rows of one date are averaged, and a note says so.

    Raises:
        DataError: the file is damaged or empty, a column is missing or of the wrong type, or a
            score is not a number in [-1, 1].
    """
    path = sentiment_path(data_dir, symbol)
    if not path.is_file():
        return None
    table, sha256 = read_columns(path, ("date", "sentiment_score"), ("n_articles",))
    rows = whole_days(path, "date", table["date"])
    scores = _scores(path, table["sentiment_score"])
    date, day, count = np.unique(rows, return_inverse=True, return_counts=True)
    score = np.bincount(day, weights=scores) / count
    texts = count.astype(np.float64)
    if "n_articles" in table.column_names:
        texts = np.bincount(day, weights=_counts(path, table["n_articles"]))
    repeated = len(rows) - len(date)
    notes = (f"{repeated} sentiment rows repeat a date: averaged",) if repeated else ()
    return DailySentiment(date, score, str(path), sha256, notes, texts)


def sentiment_at(sessions: np.ndarray, sentiment: DailySentiment | None) -> SentimentAt:
    """What is known at each bar.

    The score of day d is public when d is over, so it serves sessions with a later date only. The
    latest such score counts while it is at most seven calendar days old.

    Args:
        sessions: datetime64[D][T], the session date of every bar.
        sentiment: the daily scores, or None.
    """
    nothing = np.zeros(len(sessions))
    if sentiment is None:
        return SentimentAt(nothing, np.full(len(sessions), np.inf), nothing)
    latest, age = _latest_before(sessions, sentiment), sentiment_age(sessions, sentiment)
    fresh = age <= MAXIMUM_AGE_DAYS
    count = np.ones(len(sentiment.date)) if sentiment.count is None else sentiment.count
    return SentimentAt(
        np.where(fresh, sentiment.score[latest], 0.0), age, np.where(fresh, count[latest], 0.0)
    )


def sentiment_age(sessions: np.ndarray, sentiment: DailySentiment) -> np.ndarray:
    """Calendar days since the latest score of an earlier date: float64[T], infinite without one."""
    latest = _latest_before(sessions, sentiment)
    age = (sessions - sentiment.date[latest]).astype(np.float64)
    return np.where(latest >= 0, age, np.inf)


def _latest_before(sessions: np.ndarray, sentiment: DailySentiment) -> np.ndarray:
    """Row of the last score dated before each session; -1 without one."""
    return np.searchsorted(sentiment.date, sessions, side="left") - 1


def whole_days(path: Path, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """A column of days as datetime64[D][N].

    Raises:
        DataError: it holds something else, or an empty row.
    """
    kind = column.type
    if not (pa.types.is_date(kind) or pa.types.is_timestamp(kind)):
        raise DataError(f"{path}: column {name!r} holds {kind}; write it as date32")
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise DataError(f"{path}: row {row}, column {name!r}: empty; drop or repair the row")
    moments = column.to_numpy().astype("M8[us]")
    days = moments.astype("M8[D]")
    if np.any(days != moments):
        row = int(np.flatnonzero(days != moments)[0])
        raise DataError(
            f"{path}: row {row}, column {name!r}: {moments[row]} is not a whole day; "
            "write one row per day, as date32"
        )
    return days


def _scores(path: Path, column: pa.ChunkedArray) -> np.ndarray:
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise DataError(
            f"{path}: column 'sentiment_score' holds {column.type}; write it as float64 (double)"
        )
    scores = column.cast(pa.float64(), safe=False).to_numpy()
    wrong = np.flatnonzero(~(np.abs(scores) <= 1))
    if len(wrong):
        raise DataError(
            f"{path}: row {wrong[0]}, column 'sentiment_score': {scores[wrong[0]]} is not in "
            f"[-1, 1] ({len(wrong)} such rows); drop or rescale"
        )
    return scores


def _counts(path: Path, column: pa.ChunkedArray) -> np.ndarray:
    kind = column.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise DataError(f"{path}: column 'n_articles' holds {kind}; write it as int64")
    counts = column.cast(pa.float64(), safe=False).to_numpy()
    wrong = np.flatnonzero(~((counts >= 0) & (counts < np.inf)))
    if len(wrong):
        raise DataError(
            f"{path}: row {wrong[0]}, column 'n_articles': {counts[wrong[0]]} is no count "
            f"({len(wrong)} such rows); correct it, or drop the column"
        )
    return counts
