"""From files of any vendor to `historical/<SYMBOL>/<timeframe>/data.parquet`, all or nothing."""

from __future__ import annotations

import importlib.metadata
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from jaxtrader.data.bars import FACTORS
from jaxtrader.data.exchange import guess_calendar, schedule
from jaxtrader.data.importing.adjustments import adjustment_of
from jaxtrader.data.importing.archives import members
from jaxtrader.data.importing.conventions import ASSUMED, Known
from jaxtrader.data.importing.convert import (
    Converted,
    ImportOptions,
    bar_minutes,
    convert,
    timeframe_of,
)
from jaxtrader.data.importing.lean import LeanFile, is_quotes, lean_file, read_lean, symbols_of
from jaxtrader.data.importing.resampling import resample
from jaxtrader.data.importing.tables import Table, read_csv, read_parquet
from jaxtrader.data.layout import check_symbol, timeframe_minutes
from jaxtrader.errors import ConfigError, DataError
from jaxtrader.files import staged, staging_folder, write_whole

_SUFFIXES = (".csv", ".txt", ".gz", ".zip", ".parquet")
# Names that say what is in a file, not of whom.
_NAMELESS = (
    "bar", "bars", "candles", "daily", "data", "download", "export", "historical", "historicaldata",
    "history", "hourly", "intraday", "ohlc", "ohlcv", "prices", "quotes", "stocks", "table",
)  # fmt: skip
_TIMEFRAME_PART = r"(\d+(m|min|mins|minute|h|hr|hour|d|day)|daily|hourly|minute|klines|full|trade)"
METADATA = b"jaxtrader.import"


@dataclass(frozen=True)
class Imported:
    """A file that was written, and what was taken for granted."""

    symbol: str
    timeframe: str
    path: Path
    bars: int
    first: str  # UTC
    last: str  # UTC
    provenance: dict[str, Any]  # as in the file's metadata: sources, conventions, notes


def import_files(
    sources: Sequence[str | Path],
    into: str | Path,
    options: ImportOptions | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> list[Imported]:
    """Imports files and folders of bars into `into`/historical. Nothing is judged, only converted.

    Files of one symbol and timeframe become one series; a row that two of them share is kept once.
    Every file written carries in its metadata where it comes from, what was taken for granted and
    how that came to be known.

    Args:
        sources: .csv, .txt, .parquet, those in .gz or .zip, LEAN's zip files, or folders of them.
        into: folder that gets, or has, `historical`.
        options: what is known better than the files say.
        progress: told what is read, and how many of how many series are done.

    Returns:
        One entry for each file written, by symbol and timeframe.

    Raises:
        DataError: a file cannot be understood, or its place is taken (see `ImportOptions.replace`);
            then nothing is written at all.
        ConfigError: an option is not what it should be.
    """
    options = ImportOptions() if options is None else options
    into = Path(into)
    if not sources:
        raise DataError("nothing to import; name files, or folders that hold them")
    groups = _groups([Path(source) for source in sources], options)
    staging = staging_folder(into)
    written: dict[tuple[str, str], Imported] = {}
    with staged(into) as files:
        for done, (name, read) in enumerate(groups):
            progress(name, done, len(groups))
            for imported, content in _imported(name, read, into, options):
                key = (imported.symbol, imported.timeframe)
                if key in written:
                    raise DataError(
                        f"{imported.path}: both {_sources(written[key])} and {_sources(imported)} "
                        "hold it; import one of them, or all from files named alike"
                    )
                written[key] = imported
                files[imported.path] = staging / imported.symbol / imported.timeframe
                write_whole(files[imported.path], content)
        if not written:
            raise DataError(f"{', '.join(map(str, sources))}: no bars of a symbol that is known")
    progress("done", len(groups), len(groups))
    return [written[key] for key in sorted(written)]


def _imported(
    name: str, read: Callable[[], list[Table]], into: Path, options: ImportOptions
) -> Iterator[tuple[Imported, bytes]]:
    """The series of a group, each as a file's content."""
    try:
        for (symbol, minutes), tables in _series(read(), options).items():
            yield _one(symbol, minutes, tables, into, options)
    except (pa.ArrowException, ArithmeticError, LookupError, TypeError, ValueError) as error:
        # There are more ways to damage a file than can be told apart.
        raise DataError(
            f"{name}: cannot be understood ({type(error).__name__}: {str(error)[:200]}); is it a "
            "file of bars? Write or download it again"
        ) from error


Group = tuple[str, Callable[[], list[Table]]]


def _groups(sources: Sequence[Path], options: ImportOptions) -> list[Group]:
    """What belongs together, by name; read when its turn comes."""
    files = sorted({file for source in sources for file in _files(source)})
    lean: list[LeanFile] = []
    plain: dict[str, list[Path]] = {}
    for file in files:
        if is_quotes(file):
            continue
        if (known := lean_file(file)) is not None:
            lean.append(known)
        else:
            plain.setdefault(options.symbol or symbol_by_name(file) or str(file), []).append(file)
    groups: list[Group] = [
        (symbol, lambda symbol=symbol, mine=mine: read_lean(symbol, mine))
        for symbol, mine in symbols_of(lean).items()
        if options.symbol in (None, symbol)
    ]
    groups += [
        (name, lambda mine=mine: [t for path in mine for t in _read(path, options)])
        for name, mine in sorted(plain.items())
    ]
    if not groups:
        raise DataError(f"{', '.join(map(str, sources))}: no {', '.join(_SUFFIXES)} file there")
    return groups


def _files(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
    elif source.is_dir():
        for path in source.rglob("*"):
            hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
            lists = path.parent.name in ("map_files", "factor_files")
            if path.suffix.lower() in _SUFFIXES and path.is_file() and not hidden and not lists:
                yield path
    else:
        raise DataError(f"{source}: no such file or folder; check the path")


def _read(path: Path, options: ImportOptions) -> list[Table]:
    tables = []
    for member in members(path):
        reads = read_parquet if path.suffix.lower() == ".parquet" else read_csv
        for table in reads(member, options.date_format, options.decimal):
            named = table.symbol or options.symbol or symbol_by_name(Path(member.name or path))
            if table.symbol and options.symbol and _symbol(table.symbol) != _symbol(options.symbol):
                raise DataError(
                    f"{member.where}: its column says {table.symbol!r}, not {options.symbol!r}; "
                    "leave --symbol out"
                )
            if named is None:
                raise DataError(
                    f"{member.where}: neither a column nor the file's name tells the symbol; say "
                    "--symbol SPY, or name the file after it"
                )
            tables.append(replace(table, symbol=_symbol(named)))
    return tables


def _symbol(name: str) -> str:
    return check_symbol(name.strip().upper().removesuffix(".US").replace("/", "-"))


def symbol_by_name(path: Path) -> str | None:
    """The symbol that a path is named after; None for `data.csv` and the like.

    `BTCUSDT-1h-2024-01.zip` is of BTCUSDT, `aapl.us.txt` of AAPL, `BRK-B_1d.csv` of BRK-B, and
    `SPY/1Hour/data.parquet` of SPY.
    """
    name = path.name.lower()
    for suffix in (*_SUFFIXES, *_SUFFIXES):
        name = name.removesuffix(suffix)
    name = re.split(rf"[-_. ]{_TIMEFRAME_PART}([-_. ]|$)", name, maxsplit=1)[0]
    name = name.removesuffix(".us").split("_")[0].split(" ")[0]
    if name not in _NAMELESS:
        return name.upper()
    if name == "data" and re.fullmatch(r"\d+(Min|Hour|Day)", path.parent.name):
        return path.parent.parent.name
    return None


def _series(tables: Sequence[Table], options: ImportOptions) -> dict[tuple[str, int], list[Table]]:
    """Tables by symbol and length of a bar; one too short to tell goes with the others."""
    series: dict[tuple[str, int], list[Table]] = {}
    unknown = []
    for table in tables:
        minutes = bar_minutes(table, options)
        if minutes is None:
            unknown.append(table)
        else:
            series.setdefault((str(table.symbol), minutes), []).append(table)
    for table in unknown:
        keys = [key for key in series if key[0] == table.symbol]
        if len(keys) != 1:
            raise DataError(
                f"{table.where}: too short to tell how long a bar is; say --timeframe 1Hour"
            )
        series[keys[0]].append(table)
    return series


def _one(
    symbol: str, minutes: int, tables: Sequence[Table], into: Path, options: ImportOptions
) -> tuple[Imported, bytes]:
    """One series as a file's content."""
    parts = [convert(table, minutes, options) for table in tables]
    frame, notes = _merged(parts, tables)
    frame, prices, more = _adjusted(frame, parts, tables)
    calendar = None
    if options.resample is not None:
        before = len(frame)
        frame, calendar = _resampled(frame, symbol, minutes, options)
        minutes = timeframe_minutes(options.resample)
        outside = before - int(frame["n_sub"].sum())
        if outside:
            notes.append(f"{outside:,} bars outside the sessions of {calendar}: left out")
    timeframe = timeframe_of(minutes)
    path = into / "historical" / symbol / timeframe / "data.parquet"
    if path.exists() and not options.replace:
        raise DataError(f"{path}: is there already; say --replace to put the new file in its place")
    listing = {name: getattr(tables[0], name) for name in ("listed", "delisted")}
    provenance = {
        "symbol": symbol,
        "timeframe": timeframe,
        "zone": _all([part.zone for part in parts]),
        "label": _all([part.label for part in parts]),
        "prices": str(prices),
        "vendor": ", ".join(sorted({table.vendor or "unknown" for table in tables})),
        "calendar": calendar,
        **{name: day for name, day in listing.items() if day is not None},
        "notes": list(dict.fromkeys([*notes, *more, *(n for part in parts for n in part.notes)])),
        "sources": [{"file": table.where, "sha256": table.sha256} for table in tables],
        "jaxtrader": importlib.metadata.version("jaxtrader"),
    }
    moments = frame["timestamp"].to_numpy()
    first, last = (f"{np.datetime_as_string(m, unit='s')}Z" for m in (moments[0], moments[-1]))
    imported = Imported(symbol, timeframe, path, len(frame), first, last, provenance)
    return imported, _parquet(frame, provenance)


def _merged(parts: Sequence[Converted], tables: Sequence[Table]) -> tuple[pd.DataFrame, list[str]]:
    """All parts in order of time. A row that several files have alike is kept once.

    `_part` and `_line` say where each row comes from.
    """
    columns = list(dict.fromkeys(name for part in parts for name in part.frame))
    frames = [part.frame.assign(_part=i, _line=part.lines) for i, part in enumerate(parts)]
    frame = pd.concat(frames, ignore_index=True).sort_values("timestamp", kind="stable")
    kept = frame[~frame.duplicated(columns)].reset_index(drop=True)
    names = [table.file for table in tables]
    kept["source"] = pd.Categorical(np.array(names)[kept["_part"]])
    notes = []
    if len(kept) < len(frame):
        notes.append(f"{len(frame) - len(kept):,} rows stand there several times alike: kept once")
    twice = int(kept["timestamp"].duplicated().sum())
    if twice:
        notes.append(f"{twice:,} rows repeat a time with other numbers: jaxtrader data check")
    return kept, notes


def _adjusted(
    frame: pd.DataFrame, parts: Sequence[Converted], tables: Sequence[Table]
) -> tuple[pd.DataFrame, Known, tuple[str, ...]]:
    """The frame with its factors, and without what they were made from."""
    known = {part.prices and part.prices.value: part.prices for part in parts}
    if len(known) > 1:
        kinds = " and ".join(str(each or "of a kind that is not said") for each in known.values())
        raise DataError(
            f"{tables[0].where} and others: prices are {kinds}; import files of one kind, or say "
            "--prices"
        )
    prices = next(iter(known.values()), None)

    def row(i: int) -> str:
        table = tables[frame["_part"].iloc[i]]
        return f"{table.where}: {table.counted} {frame['_line'].iloc[i]}"

    notes: tuple[str, ...] = ()
    if FACTORS[0] not in frame:
        adjustment = adjustment_of(frame, prices, row)
        prices, notes = adjustment.prices, adjustment.notes
        if adjustment.factors is not None:
            frame = pd.concat([frame, adjustment.factors], axis=1)
    unwanted = ["_part", "_line", "adj_close"]
    return frame.drop(columns=unwanted, errors="ignore"), prices or Known("raw", ASSUMED), notes


def _resampled(
    frame: pd.DataFrame, symbol: str, minutes: int, options: ImportOptions
) -> tuple[pd.DataFrame, str]:
    """Longer bars, and the calendar that they were counted by."""
    longer = timeframe_minutes(str(options.resample))
    if longer % minutes or longer <= minutes:
        raise DataError(
            f"{symbol}: bars of {timeframe_of(minutes)} make no bars of {options.resample}; "
            "--resample takes a longer timeframe that is a multiple of it"
        )
    if longer > 24 * 60:
        raise ConfigError("resample takes up to '1Day': one bar a session")
    moments = frame["timestamp"].to_numpy()
    calendar = options.calendar or guess_calendar(moments, minutes)
    days = moments[[0, -1]].astype("M8[D]") + np.array([-7, 7])  # the sessions around them too
    sessions = schedule(calendar, *days)
    return resample(frame, longer, sessions, options.hours == "regular"), calendar


def _parquet(frame: pd.DataFrame, provenance: dict[str, Any]) -> bytes:
    columns = {
        name: pa.array(column, pa.timestamp("us", "UTC"))
        if name == "timestamp"
        else pa.array(column)
        for name, column in frame.items()
    }
    table = pa.table(columns).replace_schema_metadata({METADATA: json.dumps(provenance).encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _all(known: Sequence[Known]) -> str:
    return "; ".join(dict.fromkeys(map(str, known)))


def _sources(imported: Imported) -> str:
    return str(imported.provenance["sources"][0]["file"])
