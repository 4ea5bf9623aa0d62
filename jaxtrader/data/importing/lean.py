"""Zip files of QuantConnect's LEAN, with the former names and the factors that lie beside them.

Formats: github.com/QuantConnect/Lean, Data/equity/readme.md, Data/forex/readme.md and
Data/crypto/readme.md, Data/equity/usa/map_files and factor_files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv

from jaxtrader.data.bars import PRICES
from jaxtrader.data.importing.archives import Member, members
from jaxtrader.data.importing.conventions import Conventions, Known
from jaxtrader.data.importing.tables import Table, read_numbers
from jaxtrader.data.importing.times import Times, parse_times
from jaxtrader.data.layout import check_symbol
from jaxtrader.errors import DataError

_MINUTES = {"minute": 1, "hour": 60, "daily": 24 * 60}
_ZONES = {"equity": "America/New_York", "crypto": "UTC", "forex": "UTC", "cfd": "UTC"}
_TRADES = ("time", "open", "high", "low", "close", "volume")
_QUOTES = (
    "time", "bid_open", "bid_high", "bid_low", "bid_close", "bid_size",
    "ask_open", "ask_high", "ask_low", "ask_close", "ask_size",
)  # fmt: skip
_FOREVER = np.datetime64("2050-12-31")
_LARGEST_TABLE = 2**24  # bytes of a map or factor file


@dataclass(frozen=True)
class LeanFile:
    """What the path of a zip file says."""

    path: Path
    market: Path  # folder of the market: .../equity/usa
    security: str  # equity, crypto, forex or cfd
    minutes: int  # length of a bar
    ticker: str  # in upper case, as it was called at the time
    day: np.datetime64 | None  # of a file of minutes


@dataclass(frozen=True)
class Name:
    """What a symbol was called, and when."""

    ticker: str
    first: np.datetime64  # day
    last: np.datetime64  # day, included


def lean_file(path: Path) -> LeanFile | None:
    """What a path says, as in `equity/usa/hour/spy.zip` or `.../minute/spy/20131007_trade.zip`.

    None for a file that is not one of LEAN's bars.
    """
    parts = path.parts
    for i in range(len(parts) - 3):
        if parts[i] in _ZONES and parts[i + 2] in _MINUTES and path.suffix == ".zip":
            rest = parts[i + 3 :]
            security, minutes = parts[i], _MINUTES[parts[i + 2]]
            name = path.stem.lower()
            name = name.removesuffix("_trade").removesuffix("_quote")
            market = Path(*parts[: i + 2])
            if minutes > 1 and len(rest) == 1:
                return LeanFile(path, market, security, minutes, name.upper(), None)
            if minutes == 1 and len(rest) == 2 and len(name) == 8 and name.isdigit():
                day = _day(name, str(path))
                return LeanFile(path, market, security, 1, rest[0].upper(), day)
    return None


def is_quotes(path: Path) -> bool:
    """Whether it is a file of bids and asks, of which there is one beside each file of trades."""
    return path.stem.endswith("_quote") and bool({"equity", "crypto"} & set(path.parts))


def symbols_of(files: Sequence[LeanFile]) -> dict[str, list[LeanFile]]:
    """The files of each symbol, by the name that it has today.

    What lies under a former name belongs to whoever bore it; `read_lean` takes the right days.
    """
    found: dict[str, list[LeanFile]] = {}
    for market in sorted({file.market for file in files}):
        own = _symbols_of_market(market, [file for file in files if file.market == market])
        twice = sorted(set(own) & set(found))
        if twice:
            raise DataError(
                f"{market}: {twice[0]} is also in {found[twice[0]][0].market}; import one of them"
            )
        found |= own
    return dict(sorted(found.items()))


def _symbols_of_market(market: Path, files: Sequence[LeanFile]) -> dict[str, list[LeanFile]]:
    by_ticker: dict[str, list[LeanFile]] = {}
    for file in files:
        by_ticker.setdefault(file.ticker, []).append(file)
    own: dict[str, list[LeanFile]] = {}
    claimed = set()
    for path in sorted((market / "map_files").glob("*.csv")):
        tickers = {name.ticker for name in _names(path)}
        mine = [file for ticker in sorted(tickers & set(by_ticker)) for file in by_ticker[ticker]]
        if mine:
            own[check_symbol(path.stem.upper())] = mine
            claimed |= tickers
    unclaimed = {ticker: mine for ticker, mine in by_ticker.items() if ticker not in claimed}
    return own | {check_symbol(ticker): mine for ticker, mine in unclaimed.items()}


def read_lean(symbol: str, files: Sequence[LeanFile]) -> list[Table]:
    """Tables of one symbol, one a file, with as-traded prices and the symbol's factors.

    Raises:
        DataError: a file is damaged, or a row is not as LEAN writes it.
    """
    tables = []
    for file in sorted(files, key=lambda file: str(file.path)):
        path = file.market / "map_files" / f"{symbol.lower()}.csv"
        names = _names(path) if path.is_file() else []
        spans = [(name.first, name.last) for name in names if name.ticker == file.ticker]
        for member in members(file.path):
            table = _read(symbol, file, member, names)
            days = table.times.moments.astype("M8[D]")
            inside = np.zeros(len(table), bool) | (not names)
            for first, last in spans:
                inside |= (days >= first) & (days <= last)
            if inside.any():
                tables.append(_with_factors(table.take(np.flatnonzero(inside)), symbol, file))
    return tables


def _read(symbol: str, file: LeanFile, member: Member, names: Sequence[Name]) -> Table:
    quotes = file.security in ("forex", "cfd")
    columns = _QUOTES if quotes else _TRADES
    cells = _cells(member, columns)
    lines = np.arange(len(cells)) + 1
    scale = 1e-4 if file.security == "equity" else 1.0
    numbers = {
        name: read_numbers(cells[name], name, lambda i: f"{member.where}: line {lines[i]}", ".")
        for name in columns[1:]
    }
    if quotes:
        sides = [[numbers[f"{side}_{price}"] for side in ("bid", "ask")] for price in PRICES]
        values = {name: (bid + ask) / 2 for name, (bid, ask) in zip(PRICES, sides, strict=True)}
        extras = {"spread_close": numbers["ask_close"] - numbers["bid_close"]}
    else:
        values = {name: numbers[name] * scale for name in PRICES} | {"volume": numbers["volume"]}
        extras = {}
    how = "known of LEAN"
    notes = [f"called {name.ticker} until {name.last}" for name in names if name.ticker != symbol]
    return Table(
        where=member.where,
        file=member.path.name,
        sha256=hashlib.sha256(member.content).hexdigest(),
        symbol=symbol,
        times=_times(cells["time"], file, member.where),
        values=pd.DataFrame(values),
        extras=pd.DataFrame(extras, index=range(len(cells))),
        lines=lines,
        minutes=file.minutes,
        vendor="LEAN",
        conventions=Conventions(
            Known(_ZONES[file.security], how), Known("start", how), Known("raw", how)
        ),
        listed=str(names[0].first) if names else None,
        delisted=str(names[-1].last) if names and names[-1].last < _FOREVER else None,
        notes=tuple(notes),
    )


def _cells(member: Member, columns: Sequence[str]) -> pa.Table:
    try:
        return pacsv.read_csv(
            pa.BufferReader(member.content),
            pacsv.ReadOptions(use_threads=False, column_names=list(columns)),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=True
            ),
        )
    except (pa.ArrowException, ValueError) as error:
        raise DataError(
            f"{member.where}: {error}; a line of LEAN's has the columns {', '.join(columns)}"
        ) from error


def _times(column: pa.ChunkedArray, file: LeanFile, where: str) -> Times:
    texts = column.to_pandas()

    def row(i: int) -> str:
        return f"{where}: line {i + 1}"

    if file.day is None:
        return parse_times(texts, row, "%Y%m%d %H:%M")
    milliseconds = read_numbers(column, "time", row, ".")
    wrong = np.flatnonzero(~((milliseconds >= 0) & (milliseconds < 86_400_000)))
    if len(wrong):
        i = int(wrong[0])
        raise DataError(f"{row(i)}: {texts.iloc[i]!r} is not a number of milliseconds of a day")
    midnight = file.day.astype("M8[us]")
    return Times(midnight + (milliseconds * 1000).astype("m8[us]"), False, "ms since midnight")


def _with_factors(table: Table, symbol: str, file: LeanFile) -> Table:
    """The table with the factors of its days; a symbol without a factor file has none."""
    path = file.market / "factor_files" / f"{symbol.lower()}.csv"
    if not path.is_file():
        missing = f"no factor file {path.name}: splits and dividends are not known"
        stock = file.security == "equity"
        return replace(table, notes=(*table.notes, missing)) if stock else table
    days, price, split = _factors(path)
    row = np.searchsorted(days, table.times.moments.astype("M8[D]"), side="left")
    price, split = np.append(price, 1.0)[row], np.append(split, 1.0)[row]
    factors = pd.DataFrame({"adjustment_factor": price * split, "split_factor": split})
    return replace(table, factors=factors)


def _factors(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Last day, price factor and split factor of each span of days, in order."""
    days, price, split = [], [], []
    for number, cells in _lines(path):
        days.append(_day(cells[0], f"{path}: line {number}"))
        try:
            price.append(float(cells[1]))
            split.append(float(cells[2]))
        except (IndexError, ValueError) as error:
            raise DataError(
                f"{path}: line {number}: {','.join(cells)[:60]!r} is not day, price factor, split "
                "factor"
            ) from error
        if not (0 < price[-1] < np.inf and 0 < split[-1] < np.inf):
            raise DataError(f"{path}: line {number}: a factor is not above 0")
    order = np.argsort(np.array(days, "M8[D]"), kind="stable")
    return tuple(np.array(column)[order] for column in (days, price, split))  # type: ignore


def _names(path: Path) -> list[Name]:
    """Names in order of time: the first line is the day of listing, each other a name's last."""
    rows = []
    for number, cells in _lines(path):
        if len(cells) < 2 or not cells[1]:
            raise DataError(f"{path}: line {number}: is not day, ticker")
        rows.append((_day(cells[0], f"{path}: line {number}"), cells[1].upper()))
    rows.sort(key=lambda row: row[0])
    first = [rows[0][0], *(day + 1 for day, _ in rows[1:-1])] if len(rows) > 1 else []
    return [Name(ticker, start, day) for start, (day, ticker) in zip(first, rows[1:], strict=True)]


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    try:
        text = path.read_bytes()[:_LARGEST_TABLE].decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy it again") from error
    lines = enumerate(text.splitlines(), start=1)
    rows = [(number, [cell.strip() for cell in line.split(",")]) for number, line in lines if line]
    if not rows:
        raise DataError(f"{path}: is empty; copy it again")
    return rows


def _day(text: str, where: str) -> np.datetime64:
    try:
        if len(text) != 8:
            raise ValueError
        return np.datetime64(f"{text[:4]}-{text[4:6]}-{text[6:]}", "D")
    except ValueError as error:
        raise DataError(f"{where}: {text[:20]!r} is not a day as 20140609") from error
