"""Bars as a file gives them: columns told apart, texts made numbers and moments, nothing judged."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from jaxtrader.data.bars import FACTORS
from jaxtrader.data.importing.archives import Member
from jaxtrader.data.importing.columns import (
    HEADERLESS,
    find_columns,
    is_header,
    simple,
    vendor_of,
)
from jaxtrader.data.importing.conventions import Conventions, Known
from jaxtrader.data.importing.times import Row, Times, parse_times
from jaxtrader.data.parquet import MOST_ROWS
from jaxtrader.errors import DataError

VALUES = ("open", "high", "low", "close", "volume", "adj_close", "dividend", "split")
_MOST_CELLS = 500_000_000  # of a parquet file: a few bytes can claim any number
_EMPTY = ["", "null", "NULL", "None", "NA", "N/A", "nan", "NaN"]
_DOWNLOAD = "known of yfinance's download"
_HEADER_LINES = 5  # a line with the vendor's address may stand above the headers


@dataclass(frozen=True, eq=False)
class Table:
    """N bars of one symbol, in the order of the file."""

    where: str  # the file, for people
    file: str  # its name, within its archive where it is in one
    sha256: str  # of what was parsed
    symbol: str | None  # as the file says; None where it does not
    times: Times
    values: pd.DataFrame  # float64[N, .], of VALUES: prices, and what else the file has
    extras: pd.DataFrame  # float64[N, .], further columns of numbers, by the file's own names
    lines: np.ndarray  # int64[N], where in the file a row stands
    counted: str = "line"  # what `lines` counts
    minutes: int | None = None  # length of a bar, where the file says it
    vendor: str | None = None
    conventions: Conventions = field(default_factory=Conventions)
    factors: pd.DataFrame | None = None  # float64[N, 2], adjustment_factor and split_factor
    listed: str | None = None  # first and last day of the symbol at its exchange, where the
    delisted: str | None = None  # source says it
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.lines)

    def take(self, rows: np.ndarray) -> Table:
        """The table of these rows, int64[.]."""
        parts = {
            name: None if frame is None else frame.iloc[rows].reset_index(drop=True)
            for name in ("values", "extras", "factors")
            for frame in (getattr(self, name),)
        }
        return replace(self, times=self.times.take(rows), lines=self.lines[rows], **parts)

    def row(self, i: int) -> str:
        """The place of a row, for people."""
        return f"{self.where}: {self.counted} {self.lines[i]}"


def read_csv(member: Member, date_format: str | None = None, decimal: str = ".") -> list[Table]:
    """Tables of a text of separated values, one for each symbol in it.

    Args:
        member: the text, in UTF-8.
        date_format: as of `datetime.strptime`; None to find out.
        decimal: the sign before the decimals.

    Raises:
        DataError: it is no such text, a column is missing, a line is too short or too long, or a
            cell is no number or no time.
    """
    head = [_text(line, member.where) for line in member.content[:65536].split(b"\n")[:6]]
    if re.match(r'"?Price"?[,;\t]', head[0]) and len(head) > 3:
        return _read_yfinance(member, head, date_format, decimal)
    skipped, delimiter, headers, named = _find_headers(head, member.where)
    cells = _parse(member, delimiter, skipped + named, headers)
    lines = np.arange(len(cells)) + skipped + named + 1
    return _tables(cells, member, lines, "line", date_format, decimal)


def read_parquet(member: Member, date_format: str | None = None, decimal: str = ".") -> list[Table]:
    """Tables of a parquet file, one for each symbol in it; the arguments are those of `read_csv`.

    Raises:
        DataError: it is damaged, claims more than `MOST_ROWS` rows, or see `read_csv`.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(member.content))
        rows, columns = file.metadata.num_rows, file.metadata.num_columns
        if rows > MOST_ROWS or rows * columns > _MOST_CELLS:
            raise DataError(
                f"{member.where}: claims {rows:,} rows of {columns:,} columns; write it again, or "
                "split it"
            )
        cells = file.read()
        cells.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise DataError(
            f"{member.where}: not a readable parquet file, perhaps cut short ({error}); write or "
            "download it again"
        ) from error
    index = [
        name
        for name, column in zip(cells.column_names, cells.columns, strict=True)
        if name == "__index_level_0__" and pa.types.is_temporal(column.type)
    ]
    names = ["timestamp" if name in index else name for name in cells.column_names]
    lines = np.arange(len(cells))
    return _tables(cells.rename_columns(names), member, lines, "row", date_format, decimal)


def _text(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not a text in UTF-8 ({error.reason}); save it as CSV in UTF-8"
        ) from error


def _find_headers(head: Sequence[str], where: str) -> tuple[int, str, list[str], bool]:
    """Lines above the headers, the delimiter, the headers, and whether they stand in the file."""
    for number, line in enumerate(head[:_HEADER_LINES]):
        delimiter, cells = _split(line)
        if is_header(cells):
            return number, delimiter, cells, True
    delimiter, cells = _split(head[0])
    numbers = [cell for cell in cells[-5:] if re.fullmatch(r"\s*[-+.eE0-9]+\s*", cell)]
    if len(cells) in HEADERLESS and len(numbers) == 5:
        return 0, delimiter, list(HEADERLESS[len(cells)]), False
    raise DataError(
        f"{where}: no line of headers with open and close among the first {_HEADER_LINES}, which "
        f"begin with {head[0][:80]!r}; is it a file of bars? Write the headers time, open, high, "
        "low, close, volume above the rows"
    )


def _split(line: str) -> tuple[str, list[str]]:
    delimiter = max(",;\t|", key=line.count)
    try:
        cells = next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        cells = []
    return delimiter, [cell.strip() for cell in cells]


def _parse(member: Member, delimiter: str, skip: int, headers: Sequence[str]) -> pa.Table:
    """The cells below the first `skip` lines as texts; an empty cell is null."""
    names = [header or f"column {i}" for i, header in enumerate(headers)]
    try:
        return pacsv.read_csv(
            pa.BufferReader(member.content.rstrip(b"\r\n") + b"\n"),
            pacsv.ReadOptions(
                use_threads=False, block_size=2**24, skip_rows=skip, column_names=names
            ),
            pacsv.ParseOptions(delimiter=delimiter, ignore_empty_lines=False),
            pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                null_values=_EMPTY,
                strings_can_be_null=True,
            ),
        )
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{member.where}: {error}; every line must have the {len(names)} columns that the "
            "headers name"
        ) from error


def _tables(
    cells: pa.Table,
    member: Member,
    lines: np.ndarray,
    counted: str,
    date_format: str | None,
    decimal: str,
    symbol: str | None = None,
) -> list[Table]:
    if len(cells) == 0:
        raise DataError(f"{member.where}: no rows; write it again or leave it out")

    def row(i: int) -> str:
        return f"{member.where}: {counted} {lines[i]}"

    roles = find_columns(cells.column_names, member.where)
    factors = None
    if set(FACTORS) <= set(cells.column_names):  # as this library writes them
        roles.pop("split", None)
        factors = pd.DataFrame({n: read_numbers(cells[n], n, row, ".") for n in FACTORS})
        cells = cells.drop_columns(list(FACTORS))
    times = _times(cells, roles, row, date_format)
    values = {
        role: read_numbers(cells[roles[role]], roles[role], row, decimal)
        for role in VALUES
        if role in roles
    }
    extras, dropped = _extras(cells, roles)
    vendor = vendor_of(cells.column_names)
    notes = (f"columns left out: {', '.join(dropped)}",) if dropped else ()
    whole = Table(
        where=member.where,
        file=member.file,
        sha256=hashlib.sha256(member.content).hexdigest(),
        symbol=symbol,
        times=times,
        values=pd.DataFrame(values),
        extras=pd.DataFrame(extras, index=range(len(cells))),
        lines=lines,
        counted=counted,
        minutes=_stooq_minutes(cells),
        vendor=vendor.name if vendor else None,
        conventions=vendor.conventions() if vendor else Conventions(),
        factors=factors,
        notes=notes,
    )
    if symbol is not None or "symbol" not in roles:
        return [whole]
    return _by_symbol(whole, cells[roles["symbol"]].cast(pa.string()).to_pandas(), row)


def _by_symbol(whole: Table, symbols: pd.Series, row: Row) -> list[Table]:
    empty = np.flatnonzero(symbols.isna())
    if len(empty):
        raise DataError(f"{row(int(empty[0]))}: no symbol; fill it in or delete the row")
    codes, names = pd.factorize(symbols)
    return [
        replace(whole.take(np.flatnonzero(codes == code)), symbol=str(name))
        for code, name in enumerate(names)
    ]


def _times(cells: pa.Table, roles: dict[str, str], row: Row, date_format: str | None) -> Times:
    column = cells[roles["time"]]
    if pa.types.is_date(column.type) and "clock" not in roles:
        column = column.cast(pa.timestamp("us"))
    if not pa.types.is_timestamp(column.type):
        texts = column.cast(pa.string()).to_pandas()
        if "clock" in roles:
            clock = cells[roles["clock"]].cast(pa.string()).to_pandas().str.strip()
            if clock.str.fullmatch(r"\d{1,4}").all() and (clock.str.len() > 2).any():
                clock = clock.str.zfill(4) + "00"  # hours and minutes
            # Programs that take 093000 for a number write 93000.
            clock = clock.where(~clock.str.fullmatch(r"\d+"), clock.str.zfill(6))
            texts = texts.str.strip() + " " + clock
        return parse_times(texts, row, date_format)
    if column.null_count:
        i = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise DataError(f"{row(i)}: no time; fill it in or delete the row")
    zone = column.type.tz
    try:
        moments = column.cast(pa.timestamp("us", zone)).cast(pa.int64()).to_numpy().view("M8[us]")
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{row(0)}: column {roles['time']!r} does not fit microseconds ({error}); write it as "
            "timestamp[us, tz=UTC]"
        ) from error
    return Times(moments, zone is not None, f"{column.type}")


def read_numbers(column: pa.ChunkedArray, header: str, row: Row, decimal: str) -> np.ndarray:
    """A column as float64[N]; NaN where a cell is empty."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        texts = column.to_pandas().str.strip().str.lstrip("$")
        if decimal != ".":
            # A point may only stand between thousands: 140.08 is no number then.
            fits = texts.str.fullmatch(r"[-+]?(\d+|\d{1,3}(\.\d{3})+)(,\d*)?").fillna(False)
            plain = texts.str.replace(".", "", regex=False).str.replace(decimal, ".", regex=False)
            texts = plain.where(fits.astype(bool), "no number").where(texts.notna())
        numbers = pd.to_numeric(texts, errors="coerce").to_numpy(np.float64, na_value=np.nan)
        wrong = np.flatnonzero(np.isnan(numbers) & texts.notna().to_numpy())
        if len(wrong):
            i = int(wrong[0])
            raise DataError(
                f"{row(i)}, column {header!r}: {column[i].as_py()!r} is no number; write numbers "
                "as 1234.5, or as 1234,5 and say --decimal ,"
            )
        return numbers
    try:
        return column.cast(pa.float64(), safe=False).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{row(0)}, column {header!r}: holds {column.type}, no numbers; write it as float64"
        ) from error


def _extras(cells: pa.Table, roles: dict[str, str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Further columns by a plain name: those of numbers, and the headers of the others."""
    extras: dict[str, np.ndarray] = {}
    dropped = []
    for header in cells.column_names:
        name = re.sub(r"[^a-z0-9]+", "_", header.lower()).strip("_")
        if header in roles.values():
            continue
        try:
            if not name or name in (*VALUES, *extras, *FACTORS, "timestamp", "source"):
                raise ValueError
            extras[name] = read_numbers(cells[header], header, str, ".")
        except (DataError, ValueError):
            dropped.append(repr(header))
    return extras, dropped


def _stooq_minutes(cells: pa.Table) -> int | None:
    """Length of a bar by a column <PER>: D, or minutes."""
    header = next((name for name in cells.column_names if simple(name) == "per"), None)
    if header is None:
        return None
    periods = set(cells[header].cast(pa.string()).unique().to_pylist())
    period = periods.pop() if len(periods) == 1 else None
    if period is None:
        return None
    if period.upper() == "D":
        return 24 * 60
    return int(period) if re.fullmatch(r"[0-9]{1,4}", period) else None


def _read_yfinance(
    member: Member, head: Sequence[str], date_format: str | None, decimal: str
) -> list[Table]:
    """The three lines of headers of `yfinance.download(...).to_csv(...)`: prices, tickers, time."""
    delimiter, prices = _split(head[0])
    _, tickers = _split(head[1])
    _, names = _split(head[2])
    if tickers[:1] != ["Ticker"] or len(prices) != len(tickers):
        raise DataError(
            f"{member.where}: begins like a table of yfinance, but its second line does not name "
            "the ticker of every column; write it with to_csv() again"
        )
    cells = _parse(member, delimiter, 3, [str(i) for i in range(len(prices))])
    lines = np.arange(len(cells)) + 4
    tables = []
    for ticker in dict.fromkeys(tickers[1:]):
        mine = [0, *(i for i, name in enumerate(tickers) if i and name == ticker)]
        part = cells.select([str(i) for i in mine])
        time = names[0] if names and names[0] else "Date"
        part = part.rename_columns([time, *(prices[i] for i in mine[1:])])
        tables += _tables(part, member, lines, "line", date_format, decimal, symbol=ticker)
    # Unlike Ticker.history, download() leaves the events out: it is told by its lines of headers.
    return [_yfinance(table) for table in tables]


def _yfinance(table: Table) -> Table:
    if table.vendor is not None:
        return table
    adjusted = Conventions(None, Known("start", _DOWNLOAD), Known("adjusted", _DOWNLOAD))
    return replace(table, vendor="yfinance", conventions=adjusted)
