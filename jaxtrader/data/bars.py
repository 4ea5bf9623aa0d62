"""`Bars`: one symbol's price bars, checked when made, so that no other code needs to ask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from jaxtrader.data.layout import bars_path
from jaxtrader.data.parquet import read_columns
from jaxtrader.errors import DataError

PRICES = ("open", "high", "low", "close")
COLUMNS = ("timestamp", *PRICES, "volume")
# Of files whose prices are as they were traded; see jaxtrader/data/importing/adjustments.py.
FACTORS = ("adjustment_factor", "split_factor")

# Adjusting prices for splits and dividends moves a close past its high by an ulp or two.
_ROUNDING = 1e-9
_HOLE_DAYS = 10
# Within these, ratios and products of features fit 32-bit numbers, and dates fit the calendars.
_PRICE_RANGE = (1e-15, 1e15)
_LARGEST_VOLUME = 1e18
YEARS = (np.datetime64("1800-01-01"), np.datetime64("2200-01-01"))


@dataclass(frozen=True, eq=False)
class Bars:
    """Price bars of one symbol, in time order, validated and read-only.

    Raises:
        DataError: on construction, for a bar that breaks a rule below; the message names the
            source, the row (counted from 0), the column and the remedy.
    """

    symbol: str
    timeframe: str  # "15Min", "1Hour", "1Day"
    timestamps: np.ndarray  # datetime64[us][T], UTC, start of the bar, strictly increasing
    open: np.ndarray  # float64[T], price, > 0
    high: np.ndarray  # float64[T], price, >= open, low and close
    low: np.ndarray  # float64[T], price, <= open, high and close
    close: np.ndarray  # float64[T], price, > 0
    volume: np.ndarray  # float64[T], shares or coins, >= 0; all NaN becomes all 0, with a note
    source: str  # path as given, or where else the bars come from
    sha256: str  # of the file, or of the numbers of a synthetic series
    synthetic: bool = False
    notes: tuple[str, ...] = ()  # what a reader of results should know about these bars

    def __post_init__(self) -> None:
        stamps = np.array(self.timestamps, "datetime64[us]")
        values = {name: np.array(getattr(self, name), np.float64) for name in (*PRICES, "volume")}
        _check_shapes(self.source, stamps, values)
        notes = list(self.notes)
        if np.isnan(values["volume"]).all():
            values["volume"] = np.zeros_like(values["volume"])
            notes.append("no volume in the source: every volume is taken as 0")
        _check_rows(self.source, stamps, values)
        # A copy made with dataclasses.replace brings its notes along.
        notes += [note for note in _holes(stamps) if note not in notes]
        for name, array in {"timestamps": stamps, **values}.items():
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        object.__setattr__(self, "notes", tuple(notes))

    def __len__(self) -> int:
        return len(self.timestamps)


def read_bars(data_dir: str | Path, symbol: str, timeframe: str = "1Hour") -> Bars:
    """Reads `historical/<symbol>/<timeframe>/data.parquet` under `data_dir`.

    Where the file has a column `adjustment_factor`, its prices are taken times it, and its volume
    divided by `split_factor`: across a split or a dividend, returns are then those of an owner.

    Args:
        data_dir: folder that holds `historical` (or `data/historical`), or is it.
        symbol: name of the symbol's folder.
        timeframe: name of the timeframe's folder.

    Raises:
        DataError: the symbol, the file or a column is missing, the file is damaged or empty, or a
            row breaks a rule of `Bars`.
        ConfigError: `timeframe` is not the name of a timeframe.
    """
    path = bars_path(data_dir, symbol, timeframe)
    table, sha256 = read_columns(path, COLUMNS, FACTORS)
    timestamps = utc_timestamps(path, table["timestamp"])
    values = {name: float_column(path, name, table[name]) for name in table.column_names[1:]}
    notes = []
    for name in FACTORS:
        factor = values.pop(name, None)
        if factor is None:
            continue
        wrong = np.flatnonzero(~((factor > 0) & (factor < np.inf)))
        if len(wrong):
            raise DataError(
                f"{path}: row {wrong[0]}, column {name!r}: {factor[wrong[0]]} is not above 0 "
                f"({len(wrong)} such rows); correct it, or drop the column from adjusted prices"
            )
        if name == "adjustment_factor":
            values |= {price: values[price] * factor for price in PRICES}
            notes.append("prices are those of the file times its adjustment_factor")
        else:
            values["volume"] = values["volume"] / factor
    columns = [values[name] for name in (*PRICES, "volume")]
    return Bars(
        symbol, timeframe, timestamps, *columns, source=str(path), sha256=sha256, notes=tuple(notes)
    )


def utc_timestamps(path: Path, column: pa.ChunkedArray) -> np.ndarray:
    """A column of instants as datetime64[us][T].

    Raises:
        DataError: it holds something else, has no time zone, or an empty row.
    """
    kind = column.type
    if not pa.types.is_timestamp(kind):
        raise DataError(
            f"{path}: column 'timestamp' holds {kind}; write it as timestamp[us, tz=UTC]. Texts "
            "that name their offsets, even different ones, become that with "
            "pd.to_datetime(df['timestamp'], utc=True)"
        )
    if kind.tz is None:
        raise DataError(
            f"{path}: column 'timestamp' has no time zone. If the times are UTC, write it with "
            "df['timestamp'].dt.tz_localize('UTC'); if they are New York's, with "
            ".dt.tz_localize('America/New_York').dt.tz_convert('UTC')"
        )
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise DataError(f"{path}: row {row}, column 'timestamp': empty; drop or repair the row")
    try:
        # Whatever zone is named, parquet stores instants in UTC: only the unit can change.
        return column.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy().view("M8[us]")
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path}: column 'timestamp' does not fit microseconds ({error}); "
            "write it as timestamp[us, tz=UTC]"
        ) from error


def float_column(path: Path, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers as float64[T]; NaN where it is empty.

    Raises:
        DataError: it holds something else.
    """
    kind = column.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise DataError(f"{path}: column {name!r} holds {kind}; write it as float64 (double)")
    return column.cast(pa.float64(), safe=False).to_numpy()


def _check_shapes(source: str, stamps: np.ndarray, values: dict[str, np.ndarray]) -> None:
    if stamps.ndim != 1 or len(stamps) == 0:
        raise DataError(f"{source}: needs a row of timestamps, got shape {stamps.shape}")
    for name, array in values.items():
        if array.shape != stamps.shape:
            raise DataError(
                f"{source}: column {name!r} has shape {array.shape}, timestamps {stamps.shape}"
            )


def _check_rows(source: str, stamps: np.ndarray, values: dict[str, np.ndarray]) -> None:
    for column, wrong, what, remedy in row_faults(stamps, values):
        rows = np.flatnonzero(wrong)
        if len(rows):
            when = np.datetime_as_string(stamps[rows[0]], unit="s")
            more = f" ({len(rows)} such rows)" if len(rows) > 1 else ""
            raise DataError(
                f"{source}: row {rows[0]} ({when}Z), column {column!r} {what}{more}; {remedy}"
            )


def row_faults(
    stamps: np.ndarray, values: dict[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray, str, str]]:
    """Every rule as (column, bool[T] where it is broken, what is wrong, remedy)."""
    repair = "repair or drop the row"
    yield "timestamp", np.isnat(stamps), "is empty", repair
    unit = "was it written in another unit (seconds, milliseconds, nanoseconds)?"
    outside = (stamps < YEARS[0]) | (stamps >= YEARS[1])
    yield "timestamp", outside, "is not in the years 1800 to 2199", unit
    step = np.diff(stamps, prepend=stamps[:1] - 1).astype(np.int64)
    keep_one = "keep one row per timestamp (df.drop_duplicates('timestamp', keep='last'))"
    yield "timestamp", step == 0, "repeats the row before it", keep_one
    yield "timestamp", step < 0, "is earlier than the row before it", "sort the file by timestamp"
    for name in PRICES:
        yield name, ~np.isfinite(values[name]), "is not a finite number", repair
        yield name, values[name] <= 0, "is not above 0", repair
        smallest, largest = _PRICE_RANGE
        outside = (values[name] < smallest) | (values[name] > largest)
        yield name, outside, f"is not between {smallest:g} and {largest:g}", repair
    high, low = values["high"], values["low"]
    yield "high", high < low, "is below the low", repair
    for name in ("open", "close"):
        too_high = values[name] > high * (1 + _ROUNDING)
        too_low = values[name] < low * (1 - _ROUNDING)
        yield name, too_high | too_low, "is outside [low, high]", repair
    volume = values["volume"]
    some = "repair the row (only a column that is NaN throughout is read as no volume)"
    yield "volume", ~np.isfinite(volume), "is not a finite number", some
    yield "volume", volume < 0, "is negative", repair
    yield "volume", volume > _LARGEST_VOLUME, f"is above {_LARGEST_VOLUME:g}", repair


def _holes(stamps: np.ndarray) -> list[str]:
    """One note for each stretch of more than ten days without a bar."""
    after = np.flatnonzero(np.diff(stamps) > np.timedelta64(_HOLE_DAYS, "D"))
    days = stamps.astype("M8[D]")
    return [
        f"no bars between {days[i]} and {days[i + 1]} ({(days[i + 1] - days[i]).astype(int)} days)"
        for i in after
    ]
