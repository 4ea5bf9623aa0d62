"""Any bytes at all: a reader reads them, or says in words what is wrong with which file.

No other exception leaves it, nothing is written beside the target folder, and of what fails nothing
is left there.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxtrader.data import read_bars, read_macro, read_sentiment
from jaxtrader.data.checking import check_folder, remediate
from jaxtrader.data.importing import ImportOptions, import_files
from jaxtrader.errors import JaxtraderError

CSV = {
    "yahoo": b"Date,Open,High,Low,Close,Adj Close,Volume\n2024-01-02,1,2,1,1.5,1.4,10\n"
    b"2024-01-03,1,2,1,1.5,1.4,10\n2024-01-04,1,2,1,1.6,1.5,10\n",
    "binance": b"1735686000000,9,9,9,9,1,1735689599999,1,9,6,5,0\n"
    b"1735689600000000,9,9,9,9,1,1735693199999999,1,8,5,4,0\n",
    "stooq": b"<TICKER>,<PER>,<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>,<OPENINT>\n"
    b"A.US,60,20200102,090000,7,8,6,7.5,1,0\nA.US,60,20200102,100000,7,8,6,7.2,1,0\n",
    "alpha vantage": b"timestamp,open,high,low,close,adjusted_close,volume,dividend_amount,"
    b"split_coefficient\n2024-05-10,10,11,9,10,10,3,0,2\n2024-05-09,20,21,19,20,10,3,1,1\n",
    "yfinance": b"Price,Close,High,Low,Open,Volume\nTicker,M,M,M,M,M\nDate,,,,,\n"
    b"2024-01-02,1,2,1,1,5\n2024-01-03,1,2,1,1,5\n",
    "symbols": b"date,open,high,low,close,volume,Name\n2013-02-08,1,1,1,1,8,AAL\n"
    b"2013-02-11,1,1,1,1,8,AAL\n2013-02-08,1,1,1,1,8,BBL\n2013-02-11,1,1,1,1,8,BBL\n",
    "offsets": b"time;open;high;low;close\n2024-03-08 14:30:00-05:00;1;1;1;1\n"
    b"2024-03-11 09:30:00-04:00;1;1;1;1\n",
}
# What is written over a piece of a file: numbers that are none, moments far away, other signs.
PIECES = st.one_of(
    st.binary(max_size=6),
    st.sampled_from(
        [b",", b"\n", b'"', b"\r", b"\x00", b"\xff\xfe", b"-", b".", b"e999", b"nan", b"inf", b"-1",
         b"0", b"1e-320", b"9" * 25, b"1677-09-21", b"9999-12-31", b"0000-00-00", b"24:00",
         b"+99:99", b"Z", "١٢".encode(), "é".encode(), b"../../x", b"CON", b";", b"\t", b"#"]
    ),
)  # fmt: skip


def written_over(content: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """The content with pieces of other bytes in it, each at a share of its length."""
    for place, length, piece in edits:
        at = int(place * len(content))
        content = content[:at] + piece + content[at + length :]
    return content


EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8), PIECES), min_size=1, max_size=4)


def try_import(folder: Path, name: str, content: bytes, **options) -> None:
    """Imports a file of these bytes, and sees that all is as this module's first lines say."""
    source, into = folder / "from" / name, folder / "into"
    source.parent.mkdir(parents=True)
    source.write_bytes(content)
    found = []
    with contextlib.suppress(JaxtraderError):
        found = import_files([source], into, ImportOptions(**options))
    files = {path for path in folder.rglob("*") if path.is_file()}
    assert files == {source, *(imported.path for imported in found)}
    assert all(imported.path.is_relative_to(into / "historical") for imported in found)
    for imported in found:
        with contextlib.suppress(JaxtraderError):
            read_bars(into, imported.symbol, imported.timeframe)
    if found:
        check_folder(into)


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(sorted(CSV)), edits=EDITS, zone=st.sampled_from([None, "Europe/Paris"]))
def test_texts(tmp_path_factory, kind, edits, zone):
    content = written_over(CSV[kind], edits)
    try_import(tmp_path_factory.mktemp("csv"), "ABC.csv", content, zone=zone)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(CSV)),
    edits=EDITS,
    options=st.fixed_dictionaries(
        {
            "zone": st.just("America/New_York"),
            "timeframe": st.sampled_from(["1Min", "1Hour", "1Day"]),
            "label": st.sampled_from(["start", "end"]),
            "resample": st.sampled_from([None, "4Hour", "1Day"]),
            "hours": st.sampled_from(["regular", "all"]),
            "decimal": st.sampled_from([".", ","]),
        }
    ),
)
def test_texts_with_options(tmp_path_factory, kind, edits, options):
    content = written_over(CSV[kind], edits)
    try_import(tmp_path_factory.mktemp("csv"), "ABC.csv", content, **options)


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


@settings(max_examples=80, deadline=None)
@given(
    edits=EDITS, name=st.sampled_from(["A.csv", "../../B.csv", "/etc/C.csv", "D\x00.csv", "ü.txt"])
)
def test_archives(tmp_path_factory, edits, name):
    content = written_over(zipped(name, CSV["yahoo"]), edits)
    try_import(tmp_path_factory.mktemp("zip"), "archive.zip", content)


def table(**changes) -> bytes:
    """Three daily bars as parquet, or what the changes make of them."""
    stamps = pa.array(np.array(["2024-01-02", "2024-01-03", "2024-01-04"], "M8[us]"))
    columns = {name: [1.0, 1.0, 1.0] for name in ("open", "high", "low", "close", "volume")}
    buffer = io.BytesIO()
    pq.write_table(pa.table({"timestamp": stamps, **columns, **changes}), buffer)
    return buffer.getvalue()


@settings(max_examples=120, deadline=None)
@given(edits=EDITS)
@example([(0.0, 0, b"")])
def test_parquet(tmp_path_factory, edits):
    content = written_over(table(), edits)
    try_import(tmp_path_factory.mktemp("parquet"), "ABC.parquet", content)


COLUMNS = st.one_of(
    st.just([None, None, None]),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.lists(st.binary(max_size=3), min_size=3, max_size=3),
    st.lists(st.text(max_size=5), min_size=3, max_size=3),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=3),
    st.lists(st.floats(), min_size=3, max_size=3),
    st.lists(st.lists(st.integers(0, 9), max_size=2), min_size=3, max_size=3),
    st.lists(st.dates(), min_size=3, max_size=3),
    st.lists(st.datetimes(), min_size=3, max_size=3),
    st.lists(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-999,
                         max_value=999), min_size=3, max_size=3),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["timestamp", "open", "close", "volume", "symbol", "split", "source"]),
    column=COLUMNS,
)
def test_parquet_of_other_types(tmp_path_factory, name, column):
    folder = tmp_path_factory.mktemp("types")
    content = table(**{name: column})
    try_import(folder, "ABC.parquet", content, zone="UTC")
    # The same as a file that is there already.
    path = folder / "there" / "historical" / "ABC" / "1Day" / "data.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    checked = check_folder(folder / "there")
    with contextlib.suppress(JaxtraderError):
        remediate(checked, folder / "mended")


@settings(max_examples=80, deadline=None)
@given(edits=EDITS, column=COLUMNS, name=st.sampled_from(["date", "value", "sentiment_score"]))
def test_what_lies_beside_bars(tmp_path_factory, edits, column, name):
    folder = tmp_path_factory.mktemp("beside")
    (folder / "historical").mkdir()
    day = np.array(["2024-01-02", "2024-01-03", "2024-01-04"], "M8[D]")
    columns = {"date": day, "value": [1.0, 2.0, 3.0], "sentiment_score": [0.1, 0.2, 0.3]}
    buffer = io.BytesIO()
    pq.write_table(pa.table({**columns, name: column}), buffer)
    for content in (buffer.getvalue(), written_over(buffer.getvalue(), edits)):
        for path in (
            folder / "macro" / "VIX.parquet",
            folder / "sentiment" / "SPY" / "daily_sentiment.parquet",
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for read, what in ((read_macro, "VIX"), (read_sentiment, "SPY")):
            with contextlib.suppress(JaxtraderError):
                read(folder, what)


LEAN = {
    "map_files/meta.csv": b"20240102,fb,Q\n20240103,fb,Q\n20501231,meta,Q",
    "factor_files/meta.csv": b"20240102,0.9,0.5,1\n20240104,0.9,0.5,100\n20501231,1,1,0",
    "hour/meta.zip": b"20240104 15:00,1000000,1010000,990000,1005000,100\n"
    b"20240105 09:00,500000,510000,490000,500000,200",
}


@settings(max_examples=80, deadline=None)
@given(spoilt=st.sampled_from(sorted(LEAN)), edits=EDITS)
def test_lean(tmp_path_factory, spoilt, edits):
    folder = tmp_path_factory.mktemp("lean")
    for name, content in LEAN.items():
        path = folder / "Data" / "equity" / "usa" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == spoilt:
            content = written_over(content, edits)
        path.write_bytes(zipped("meta.csv", content) if name.endswith(".zip") else content)
    found = []
    with contextlib.suppress(JaxtraderError):
        found = import_files([folder / "Data"], folder / "into")
    files = {path for path in (folder / "into").rglob("*") if path.is_file()}
    assert files == {imported.path for imported in found}


@pytest.mark.parametrize(
    "symbol", ["..", "a/../b", "", " ", "ä", "A" * 33, "-x", "A\x00", "💰", "CON/.."]
)
def test_symbols_that_are_no_folder(tmp_path, symbol):
    text = f"date,open,high,low,close,symbol\n2024-01-02,1,1,1,1,{symbol}\n"
    folder = tmp_path / "here"
    folder.mkdir()
    try_import(folder, "ABC.csv", text.encode(), timeframe="1Day")
    assert not list(tmp_path.rglob("data.parquet"))
