"""Files of every vendor, as they write them, against bars worked out by hand."""

import gzip
import json
import os
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_simulator import ReferenceParameters
from trading_episodes import Episode, play, script

from envs.actions import Action
from jaxtrader.data import read_bars
from jaxtrader.data.importing import ImportOptions, import_files
from jaxtrader.data.importing.run import METADATA, symbol_by_name
from jaxtrader.errors import ConfigError, DataError, JaxtraderError

DATA_DIR = os.environ.get("JAXTRADER_DATA_DIR")
NEW_YORK = ZoneInfo("America/New_York")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace(" | ", "\n"), encoding="utf-8")
    return path


def run(tmp_path: Path, *sources: Path, **options):
    return import_files(sources, tmp_path / "into", ImportOptions(**options))


def stamps(imported) -> list[str]:
    column = pq.read_table(imported.path)["timestamp"].to_pandas()
    return [f"{moment:%Y-%m-%d %H:%M}" for moment in column]


# Each a file as the vendor writes it, and what becomes of it: symbol, timeframe, UTC starts of
# the bars, closes, and what is said of zone, label and prices.
VENDORS = {
    "yahoo": (
        "AAPL.csv",
        "Date,Open,High,Low,Close,Adj Close,Volume | 2020-08-28,126.01,126.44,124.58,124.81,122.5,"
        "187630000 | 2020-08-31,127.58,131,126,129.04,126.7,225702700 | "
        "2020-09-01,132.76,134.8,130.53,134.18,131.7,151948100",
        {},
        ("AAPL", "1Day", ["2020-08-28 00:00", "2020-08-31 00:00", "2020-09-01 00:00"]),
        [124.81, 129.04, 134.18],
        {"prices": "split_adjusted (known of Yahoo)"},
    ),
    "yfinance history": (
        "SPY_1h.csv",
        "Datetime,Open,High,Low,Close,Volume,Dividends,Stock Splits,Capital Gains | "
        "2024-03-08 14:30:00-05:00,512,513,511,512.5,100,0.0,0.0,0.0 | "
        "2024-03-08 15:30:00-05:00,512.5,513,511,511.5,100,0.0,0.0,0.0 | "
        "2024-03-11 09:30:00-04:00,510,513,509,512,100,0.0,0.0,0.0 | "
        "2024-03-11 10:30:00-04:00,512,513,511,512.5,100,0.0,0.0,0.0",
        {},
        (
            "SPY",
            "1Hour",
            ["2024-03-08 19:30", "2024-03-08 20:30", "2024-03-11 13:30", "2024-03-11 14:30"],
        ),
        [512.5, 511.5, 512, 512.5],
        {"zone": "UTC (said by the file: ISO 8601)", "prices": "adjusted (known of yfinance)"},
    ),
    "yfinance download": (
        "download.csv",
        "Price,Close,High,Low,Open,Volume | Ticker,MSFT,MSFT,MSFT,MSFT,MSFT | Date,,,,, | "
        "2024-01-02,370.9,375.9,366.8,373.9,25258600 | 2024-01-03,370.6,373.3,368.5,369,23083500",
        {},
        ("MSFT", "1Day", ["2024-01-02 00:00", "2024-01-03 00:00"]),
        [370.9, 370.6],
        {"prices": "adjusted (known of yfinance's download)"},
    ),
    "stooq": (
        "aapl.us.txt",
        "<TICKER>,<PER>,<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>,<OPENINT> | "
        "AAPL.US,D,20200102,000000,71.72,72.77,71.46,72.71,138000000,0 | "
        "AAPL.US,D,20200103,000000,71.94,72.77,71.78,72.0,146000000,0",
        {},
        ("AAPL", "1Day", ["2020-01-02 00:00", "2020-01-03 00:00"]),
        [72.71, 72.0],
        {"prices": "adjusted (known of Stooq)"},
    ),
    "stooq by the hour, times that lost their zeros": (
        "h.txt",
        "<TICKER>,<PER>,<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>,<OPENINT> | "
        "BTC.V,60,20200102,90000,7,8,6,7.5,1,0 | BTC.V,60,20200102,100000,7,8,6,7.25,1,0",
        {"zone": "Europe/Warsaw"},
        ("BTC.V", "1Hour", ["2020-01-02 08:00", "2020-01-02 09:00"]),
        [7.5, 7.25],
        {"zone": "Europe/Warsaw (given)"},
    ),
    "kaggle, every stock of an index in one file": (
        "all_stocks_5yr.csv",
        "date,open,high,low,close,volume,Name | 2013-02-08,15.07,15.12,14.63,14.75,8407500,AAL | "
        "2013-02-11,14.89,15.01,14.26,14.46,8882000,AAL",
        {},
        ("AAL", "1Day", ["2013-02-08 00:00", "2013-02-11 00:00"]),
        [14.75, 14.46],
        {"prices": "raw (assumed)"},
    ),
    "kaggle bitcoin, empty minutes": (
        "btcusd_1-min_data.csv",
        "Timestamp,Open,High,Low,Close,Volume_(BTC),Volume_(Currency),Weighted_Price | "
        "1325317920,4.39,4.39,4.39,4.39,0.45558087,2.0,4.39 | 1325317980,NaN,NaN,NaN,NaN,NaN,NaN,"
        "NaN | 1325318040,4.4,4.4,4.4,4.4,1.5,6.6,4.4",
        {"symbol": "BTCUSD"},
        ("BTCUSD", "1Min", ["2011-12-31 07:52", "2011-12-31 07:53", "2011-12-31 07:54"]),
        [4.39, np.nan, 4.4],
        {"zone": "UTC (said by the file: epoch in seconds)"},
    ),
    "binance, milliseconds and then microseconds": (
        "BTCUSDT-1h-2024-12.csv",
        "1735686000000,93000.1,93500,92900,93300,12.5,1735689599999,1165000,900,6,559000,0 | "
        "1735689600000000,93300,94000,93200,93900,10,1735693199999999,936000,800,5,468000,0",
        {},
        ("BTCUSDT", "1Hour", ["2024-12-31 23:00", "2025-01-01 00:00"]),
        [93300, 93900],
        {
            "zone": "UTC (said by the file: epoch in milliseconds and microseconds)",
            "prices": "raw (known of Binance)",
        },
    ),
    "alpaca": (
        "alpaca.csv",
        "symbol,timestamp,open,high,low,close,volume,trade_count,vwap | "
        "TSLA,2022-08-24T19:00:00Z,892,893,888,891.3,1000,50,890.1 | "
        "TSLA,2022-08-24T20:00:00Z,891,892,890,891.0,1000,50,890.9",
        {},
        ("TSLA", "1Hour", ["2022-08-24 19:00", "2022-08-24 20:00"]),
        [891.3, 891.0],
        {"prices": "raw (known of Alpaca)"},
    ),
    "cryptodatadownload, newest first below an address": (
        "Coinbase_BTCUSD_1h.csv",
        "https://www.CryptoDataDownload.com | unix,date,symbol,open,high,low,close,Volume BTC,"
        "Volume USD | 1646092800,2022-03-01 00:00:00,BTC/USD,43221,43626,43185,43312,49.0,2120000 |"
        " 1646089200,2022-02-28 23:00:00,BTC/USD,43085,43364,42892,43178,57.3,2478000",
        {},
        ("BTC-USD", "1Hour", ["2022-02-28 23:00", "2022-03-01 00:00"]),
        [43178, 43312],
        {"prices": "raw (known of CryptoDataDownload)"},
    ),
    "alpha vantage, newest first": (
        "daily_adjusted_IBM.csv",
        "timestamp,open,high,low,close,adjusted_close,volume,dividend_amount,split_coefficient | "
        "2024-05-10,167.13,168.07,166.32,167.15,167.15,3000000,0.0,1.0 | "
        "2024-05-09,167.5,167.55,165.88,166.27,166.27,4000000,1.67,1.0 | "
        "2024-05-08,168.01,170.26,167.9,169.9,168.23,3500000,0.0,1.0",
        {"symbol": "IBM"},
        ("IBM", "1Day", ["2024-05-08 00:00", "2024-05-09 00:00", "2024-05-10 00:00"]),
        [169.9, 166.27, 167.15],
        {"prices": "raw (known of Alpha Vantage)"},
    ),
    "nasdaq, dollars and American dates, newest first": (
        "HistoricalData_SPY.csv",
        "Date,Close/Last,Volume,Open,High,Low | 02/01/2024,$186.86,64885410,$183.985,$186.95,"
        "$183.82 | 01/31/2024,$184.40,55467800,$187.04,$187.095,$184.35",
        {"symbol": "SPY"},
        ("SPY", "1Day", ["2024-01-31 00:00", "2024-02-01 00:00"]),
        [184.40, 186.86],
        {"prices": "split_adjusted (known of Nasdaq)"},
    ),
    "european, semicolons and commas": (
        "SAP.csv",
        "Date;Open;High;Low;Close;Volume | 02.01.2024;1.139,50;141,2;138;140,08;1.200.000 | "
        "03.01.2024;140;141;135,5;136,1;900.000",
        {"decimal": ","},
        ("SAP", "1Day", ["2024-01-02 00:00", "2024-01-03 00:00"]),
        [140.08, 136.1],
        {"prices": "raw (assumed)"},
    ),
    "metatrader, no headers, New York's clocks across the change of 2024": (
        "EURUSD_60m.csv",
        "2024.03.08,16:00,1.09,1.1,1.08,1.0935,5 | 2024.03.10,17:00,1.09,1.1,1.08,1.0936,6 | "
        "2024.03.10,18:00,1.09,1.1,1.08,1.0937,6",
        {"zone": "America/New_York"},
        ("EURUSD", "1Hour", ["2024-03-08 21:00", "2024-03-10 21:00", "2024-03-10 22:00"]),
        [1.0935, 1.0936, 1.0937],
        {"zone": "America/New_York (given)"},
    ),
    "ends of bars, the last of them of half an hour": (
        "SPY.csv",
        "time,open,high,low,close,volume | "
        + " | ".join(
            f"2024-01-0{day} {clock},1,1,1,1,1"
            for day in (2, 3)
            for clock in ("10:30", "11:30", "12:30", "13:30", "14:30", "15:30", "16:00")
        ),
        {"zone": "America/New_York"},
        (
            "SPY",
            "1Hour",
            [f"2024-01-0{day} {hour}:30" for day in (2, 3) for hour in range(14, 21)],
        ),
        [1.0] * 14,
        {"label": "end (seen: sessions begin after 09:30 and end with 16:00)"},
    ),
}


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendor_s_file_becomes_bars(vendor, tmp_path):
    name, text, options, (symbol, timeframe, starts), closes, said = VENDORS[vendor]
    [imported] = run(tmp_path, write(tmp_path / name, text), **options)
    assert (imported.symbol, imported.timeframe) == (symbol, timeframe)
    assert imported.path == tmp_path / "into" / "historical" / symbol / timeframe / "data.parquet"
    assert stamps(imported) == starts
    np.testing.assert_array_equal(pq.read_table(imported.path)["close"].to_numpy(), closes)
    assert said.items() <= imported.provenance.items()
    assert json.loads(pq.read_schema(imported.path).metadata[METADATA]) == imported.provenance


# ------------------------------------------------------------------------------------- refusals

ROWS = "2024-01-02,1,2,1,1.5,10 | 2024-01-03,1,2,1,1.6,10"
HEADERS = "Date,Open,High,Low,Close,Volume | "
INTRADAY = (
    "time,open,high,low,close,volume | 2024-01-02 09:30,1,2,1,1.5,1 | 2024-01-02 10:30,1,2,1,1,1"
)

REFUSED = {
    "times of nowhere": ({"SPY.csv": INTRADAY}, {}, r"SPY.csv: line 2: .*--zone America/New_York"),
    "a zone that is none": ({"SPY.csv": INTRADAY}, {"zone": "Nowhere/Land"}, "Nowhere/Land"),
    "a word among prices": (
        {"SPY.csv": HEADERS + ROWS + " | 2024-01-04,1,x,1,1,1"},
        {},
        r"SPY.csv: line 4, column 'High': 'x' is no number",
    ),
    "thousands": (
        {"SPY.csv": HEADERS + '2024-01-02,1,2,1,"1,500.5",1'},
        {},
        "'1,500.5' is no number",
    ),
    "a line cut short": ({"SPY.csv": HEADERS + ROWS + " | 2024-01-04,1,2"}, {}, "Expected 6 col"),
    "a line too long": ({"SPY.csv": HEADERS + ROWS + ",9,9"}, {}, "Expected 6 columns, got 8"),
    "an empty line": ({"SPY.csv": HEADERS + ROWS + " |  | " + ROWS}, {}, "line 4: no time"),
    "no headers": ({"SPY.csv": "hello | world"}, {}, "no line of headers"),
    "no file of bars": ({"SPY.csv": ""}, {}, "no line of headers"),
    "headers alone": ({"SPY.csv": HEADERS}, {}, "no rows"),
    "no column of lows": ({"SPY.csv": "date,open,high,close | 2024-01-02,1,2,1"}, {}, "for low"),
    "two closes": (
        {"SPY.csv": "date,open,high,low,close,Close | 2024-01-02,1,2,1,1,1"},
        {},
        "'close' and 'Close' are called alike",
    ),
    "an empty time": ({"SPY.csv": HEADERS + ROWS + " | ,1,2,1,1,1"}, {}, "line 4: no time"),
    "a time that is none": (
        {"SPY.csv": HEADERS + ROWS + " | yesterday,1,2,1,1,1"},
        {},
        "line 4: 'yesterday' is not a time",
    ),
    "a day of which months": (
        {"SPY.csv": HEADERS + "01/02/2024,1,2,1,1,1"},
        {},
        r"--date-format '%m/%d/%Y' or '%d/%m/%Y'",
    ),
    "another format": (
        {"SPY.csv": HEADERS + ROWS},
        {"date_format": "%d.%m.%Y"},
        r"line 2: '2024-01-02' is not written as '%d.%m.%Y'",
    ),
    "a format that is none": ({"SPY.csv": HEADERS + ROWS}, {"date_format": "%Q"}, "date format"),
    "one bar": ({"SPY.csv": HEADERS + "2024-01-02,1,2,1,1.5,10"}, {}, "--timeframe 1Hour"),
    "weeks": (
        {"SPY.csv": HEADERS + "2024-01-01,1,2,1,1.5,1 | 2024-01-08,1,2,1,1.5,1"},
        {},
        "7 days apart",
    ),
    "a file of nobody": ({"prices.csv": HEADERS + ROWS}, {}, "--symbol SPY"),
    "a symbol that leads out": (
        {"x.csv": "date,open,high,low,close,symbol | 2024-01-02,1,2,1,1,../../etc"},
        {"timeframe": "1Day"},
        "is not a symbol",
    ),
    "an hour that clocks skipped": (
        {"EURUSD.csv": INTRADAY.replace("2024-01-02 09:30", "2024-03-10 02:30")},
        {"zone": "America/New_York", "timeframe": "1Hour"},
        "never showed 2024-03-10T02:30",
    ),
    "an hour that clocks showed twice": (
        {"EURUSD.csv": INTRADAY.replace("2024-01-02 09:30", "2024-11-03 01:30")},
        {"zone": "America/New_York", "timeframe": "1Hour"},
        "twice",
    ),
    "raw that does not jump": (
        {"X.csv": "date,open,high,low,close,split | 2024-01-02,1,1,1,1,1 | 2024-01-03,1,1,1,1,2"},
        {"prices": "raw"},
        "said to be raw, but do not jump at the split of 2",
    ),
    "a dividend that eats the price": (
        {
            "X.csv": "date,open,high,low,close,dividend | 2024-01-02,1,1,1,1,0 | "
            "2024-01-03,1,1,1,1,2"
        },
        {},
        "a dividend of 2 at a price of 1",
    ),
    "a good file beside a bad one": (
        {"A.csv": HEADERS + ROWS, "Z.csv": HEADERS + ROWS.replace("1.5", "x")},
        {},
        "Z.csv: line 2",
    ),
    "no file at all": ({"notes.md": "x"}, {}, "no .csv"),
    "longer bars of longer ones": (
        {"SPY.csv": HEADERS + ROWS},
        {"resample": "1Hour"},
        "make no bars of 1Hour",
    ),
    "a calendar that is none": (
        {"SPY.csv": INTRADAY},
        {"zone": "America/New_York", "resample": "2Hour", "calendar": "XNYSE"},
        "the nearest are .*XNYS",
    ),
    "not UTF-8": ({"SPY.csv": "Date,Open,Close,Größe\n".encode("utf-16")}, {}, "UTF-8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_understood_is_refused_and_nothing_is_written(case, tmp_path):
    files, options, message = REFUSED[case]
    for name, text in files.items():
        if isinstance(text, bytes):
            (tmp_path / "from").mkdir()
            (tmp_path / "from" / name).write_bytes(text)
        else:
            write(tmp_path / "from" / name, text)
    with pytest.raises((DataError, ConfigError), match=message):
        run(tmp_path, tmp_path / "from", **options)
    assert not [path for path in (tmp_path / "into").rglob("*") if path.is_file()]
    assert not list(tmp_path.glob("into/.*"))


def test_what_is_there_is_not_overwritten_unless_that_is_said(tmp_path):
    first = write(tmp_path / "a" / "SPY.csv", HEADERS + ROWS)
    [imported] = run(tmp_path, first)
    before = imported.path.read_bytes()
    second = write(tmp_path / "b" / "SPY.csv", HEADERS + ROWS.replace("1.6", "1.7"))
    with pytest.raises(DataError, match="is there already; say --replace"):
        run(tmp_path, second)
    assert imported.path.read_bytes() == before
    run(tmp_path, second, replace=True)
    assert read_bars(tmp_path / "into", "SPY", "1Day").close.tolist() == [1.5, 1.7]


def test_the_same_files_give_the_same_bytes(tmp_path):
    file = write(tmp_path / "SPY.csv", HEADERS + ROWS)
    [first] = import_files([file], tmp_path / "one")
    [second] = import_files([file], tmp_path / "two")
    assert first.path.read_bytes() == second.path.read_bytes()


def test_the_files_of_a_symbol_become_one_series(tmp_path):
    """Months that overlap by a day; a row that two of them have alike stands there once."""
    hour = "{},93000,93500,92900,{},12.5,{},1165000,900,6,559000,0"
    january = [hour.format(1704067200000 + 3_600_000 * i, 93000 + i, i) for i in range(5)]
    february = [hour.format(1704067200000 + 3_600_000 * i, 93000 + i, i) for i in range(3, 8)]
    write(tmp_path / "from" / "ETHUSDT-1h-2024-01.csv", " | ".join(january))
    write(tmp_path / "from" / "ETHUSDT-1h-2024-02.csv", " | ".join(february))
    [imported] = run(tmp_path, tmp_path / "from")
    assert read_bars(tmp_path / "into", "ETHUSDT").close.tolist() == [93000 + i for i in range(8)]
    assert "2 rows stand there several times alike: kept once" in imported.provenance["notes"]
    sources = pq.read_table(imported.path)["source"].to_pylist()
    assert sources == ["ETHUSDT-1h-2024-01.csv"] * 5 + ["ETHUSDT-1h-2024-02.csv"] * 3


@pytest.mark.parametrize(
    ("name", "symbol"),
    [
        ("BTCUSDT-1h-2024-01.csv", "BTCUSDT"),
        ("aapl.us.txt", "AAPL"),
        ("BRK-B_1d.csv", "BRK-B"),
        ("BTC-USD.csv", "BTC-USD"),
        ("SPY_hourly.csv.gz", "SPY"),
        ("Coinbase_BTCUSD_1h.csv", "COINBASE"),
        ("SPY/1Hour/data.parquet", "SPY"),
        ("elsewhere/data.parquet", None),
        ("prices.csv", None),
    ],
)
def test_a_file_is_named_after_its_symbol(name, symbol):
    assert symbol_by_name(Path(name)) == symbol


@pytest.mark.parametrize("clock", ["0930", "930", "093000", "93000", "09:30", "09:30:00"])
def test_clocks_beside_dates(tmp_path, clock):
    later = clock.replace("930", "1030").replace("01030", "1030").replace("9:30", "10:30")
    later = later.replace("010:30", "10:30")
    rows = f"date,time,open,high,low,close | 20240102,{clock},1,1,1,1 | 20240102,{later},1,1,1,1"
    [imported] = run(tmp_path, write(tmp_path / "SPY.csv", rows), zone="America/New_York")
    assert stamps(imported) == ["2024-01-02 14:30", "2024-01-02 15:30"]


def test_decimals_of_the_other_kind_are_refused(tmp_path):
    file = write(tmp_path / "X.csv", "date;open;high;low;close | 2024-01-02;1,5;1,5;1,5;140.08")
    with pytest.raises(DataError, match=r"line 2, column 'close': '140.08' is no number"):
        run(tmp_path, file, decimal=",", timeframe="1Day")


def test_a_doubled_end_of_a_bar_stays_doubled(tmp_path):
    rows = [f"2024-01-02 {clock},1,1,1,1" for clock in ("14:30", "15:30", "16:00", "16:00")]
    file = write(tmp_path / "SPY.csv", " | ".join(["time,open,high,low,close", *rows, rows[0]]))
    [imported] = run(tmp_path, file, zone="America/New_York", label="end", timeframe="1Hour")
    assert stamps(imported) == ["2024-01-02 18:30", "2024-01-02 19:30", "2024-01-02 20:30"]
    rows[-1] = "2024-01-02 16:00,1,2,1,2"
    write(file, " | ".join(["time,open,high,low,close", *rows]))
    [imported] = run(
        tmp_path, file, zone="America/New_York", label="end", timeframe="1Hour", replace=True
    )
    assert stamps(imported)[2:] == ["2024-01-02 20:30", "2024-01-02 20:30"]


def test_days_with_offsets_keep_their_own_dates(tmp_path):
    """Midnight in Tokyo is the day before in UTC, and the session of neither is that day's."""
    rows = "Date,Open,High,Low,Close,Volume,Dividends,Stock Splits | "
    rows += " | ".join(f"2024-07-0{day} 00:00:00+09:00,1,1,1,1,1,0,0" for day in (2, 3, 4))
    [imported] = run(tmp_path, write(tmp_path / "7203.T.csv", rows))
    assert stamps(imported) == [f"2024-07-0{day} 00:00" for day in (2, 3, 4)]


def test_the_library_s_own_file_comes_back_as_it_was(tmp_path):
    rows = [
        "timestamp,open,high,low,close,volume,dividend_amount,split_coefficient,adjusted_close",
        "2024-01-02,100,100,100,100,1000,0,1,0",
        "2024-01-03,25,25,25,25,4000,0,4,0",
    ]
    [first] = run(tmp_path, write(tmp_path / "X.csv", " | ".join(rows)))
    [again] = import_files([first.path], tmp_path / "again", ImportOptions(symbol="X"))
    one, two = (read_bars(tmp_path / name, "X", "1Day") for name in ("into", "again"))
    assert again.bars == 2
    assert one.close.tolist() == two.close.tolist() == [25, 25]
    assert one.volume.tolist() == two.volume.tolist() == [4000, 4000]


def test_adjusted_closes_of_different_days_are_not_joined(tmp_path):
    """The first file was downloaded before the dividend that the second one knows of."""
    head = "Date,Open,High,Low,Close,Adj Close,Volume | "
    write(tmp_path / "from" / "X_2022.csv", head + "2022-12-29,10,10,10,10,10,1 | "
          "2022-12-30,10,10,10,10,10,1")  # fmt: skip
    write(tmp_path / "from" / "X_2023.csv", head + "2023-01-03,10,10,10,10,9.85,1 | "
          "2023-01-04,10,10,10,10,9.85,1")  # fmt: skip
    with pytest.raises(DataError, match=r"X_2023.csv: line 2: the adjusted close falls"):
        run(tmp_path, tmp_path / "from")


def test_one_symbol_is_not_said_of_files_of_many(tmp_path):
    rows = "date,open,high,low,close,Name | 2024-01-02,1,1,1,1,A | 2024-01-03,1,1,1,1,B"
    with pytest.raises(DataError, match="its column says 'A', not 'SPY'"):
        run(tmp_path, write(tmp_path / "all.csv", rows), symbol="SPY")


def test_a_place_that_is_taken_by_a_folder_leaves_everything_as_it_was(tmp_path):
    for name in ("A", "B"):
        write(tmp_path / "from" / f"{name}.csv", HEADERS + ROWS)
    taken = tmp_path / "into" / "historical" / "B" / "1Day" / "data.parquet"
    taken.mkdir(parents=True)
    with pytest.raises(JaxtraderError, match="is a folder"):
        run(tmp_path, tmp_path / "from", replace=True)
    assert not [path for path in (tmp_path / "into").rglob("*") if path.is_file()]


# ------------------------------------------------------------------------------------- archives


def test_archives_are_read_where_they_lie(tmp_path):
    text = (HEADERS + ROWS).replace(" | ", "\n")
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        archive.writestr("../../../SPY.csv", text)  # a name that leads out leads nowhere
        archive.writestr("stocks/QQQ.csv", text)
        archive.writestr("README.md", "about")
    (tmp_path / "DIA.csv.gz").write_bytes(gzip.compress(text.encode()))
    found = run(tmp_path, tmp_path / "many.zip", tmp_path / "DIA.csv.gz")
    assert [imported.symbol for imported in found] == ["DIA", "QQQ", "SPY"]
    inside = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert inside == {"many.zip", "DIA.csv.gz", "data.parquet"}


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("SPY.csv", b"0" * 30_000_000)


def test_archives_that_are_not_what_they_should_be_are_refused(tmp_path):
    bomb(tmp_path / "bomb.zip")
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(b"0" * 30_000_000))
    (tmp_path / "cut.zip").write_bytes((tmp_path / "bomb.zip").read_bytes()[:1000])
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(HEADERS.encode())[:-9])
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    for name, message in {
        "bomb.zip": "unpacks to more than",
        "bomb.csv.gz": "unpacks to more than",
        "cut.zip": "cannot be read",
        "cut.csv.gz": "cannot be read",
        "empty.zip": "no .csv or .txt in it, but nothing",
    }.items():
        with pytest.raises(DataError, match=message):
            run(tmp_path, tmp_path / name)
    assert not (tmp_path / "into").exists()


def test_parquet_from_elsewhere(tmp_path):
    """A DataFrame's index as pandas writes it, a clock without an offset, prices in 32 bits."""
    index = pd.date_range("2024-07-01 09:30", periods=7, freq="h")
    frame = pd.DataFrame({name: np.arange(1, 8, dtype=np.float32) for name in "ohlc"}, index=index)
    frame.to_parquet(tmp_path / "AMD.parquet")
    with pytest.raises(DataError, match="--zone"):
        run(tmp_path, tmp_path / "AMD.parquet")
    [imported] = run(tmp_path, tmp_path / "AMD.parquet", zone="America/New_York")
    assert stamps(imported) == [f"2024-07-01 {hour}:30" for hour in range(13, 20)]
    bars = read_bars(tmp_path / "into", "AMD")
    assert bars.close.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert bars.notes[0] == "no volume in the source: every volume is taken as 0"


# ----------------------------------------------------------------------------- splits, dividends


def test_factors_of_a_split_and_a_dividend_by_hand(tmp_path):
    """100 falls to 99 by a dividend of 1; then one share becomes four at a quarter."""
    rows = [
        "timestamp,open,high,low,close,volume,dividend_amount,split_coefficient,adjusted_close",
        "2024-01-02,100,100,100,100,1000,0,1,0",
        "2024-01-03,99,99,99,99,1000,1,1,0",
        "2024-01-04,24.75,24.75,24.75,24.75,4000,0,4,0",
    ]
    [imported] = run(tmp_path, write(tmp_path / "X.csv", " | ".join(rows)))
    raw = pq.read_table(imported.path)
    assert raw["close"].to_pylist() == [100, 99, 24.75]
    np.testing.assert_allclose(raw["adjustment_factor"], [0.99 / 4, 1 / 4, 1], rtol=1e-15)
    assert raw["split_factor"].to_pylist() == [0.25, 0.25, 1]
    assert "adj_close" not in raw.column_names
    bars = read_bars(tmp_path / "into", "X", "1Day")
    np.testing.assert_allclose(bars.close, 24.75, rtol=1e-15)  # its owner has lost nothing
    assert bars.volume.tolist() == [4000, 4000, 4000]
    assert bars.notes[0] == "prices are those of the file times its adjustment_factor"


def test_yahoo_s_adjusted_close_takes_the_dividends_out(tmp_path):
    name, text, *_ = VENDORS["yahoo"]
    run(tmp_path, write(tmp_path / name, text))
    bars = read_bars(tmp_path / "into", "AAPL", "1Day")
    np.testing.assert_allclose(bars.close, [122.5, 126.7, 131.7], rtol=1e-15)
    np.testing.assert_allclose(bars.open[1], 127.58 * 126.7 / 129.04, rtol=1e-15)
    assert bars.volume.tolist() == [187630000, 225702700, 151948100]


@pytest.mark.parametrize("factor", [0.0, -1.0, np.nan, np.inf])
def test_a_factor_that_is_none_is_refused(tmp_path, factor):
    path = tmp_path / "historical" / "X" / "1Day" / "data.parquet"
    path.parent.mkdir(parents=True)
    columns = {name: [1.0] for name in ("open", "high", "low", "close", "volume")}
    stamp = pa.array([datetime(2024, 1, 2, tzinfo=UTC)], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"timestamp": stamp, **columns, "adjustment_factor": [factor]}), path)
    with pytest.raises(DataError, match=r"row 0, column 'adjustment_factor': .* is not above 0"):
        read_bars(tmp_path, "X", "1Day")


def apple(tmp_path: Path) -> pd.DataFrame:
    """Apple's as-traded days, imported from a file as Alpha Vantage writes it; and as they are."""
    path = Path(str(DATA_DIR)) / "historical_raw" / "AAPL" / "1Day" / "data.parquet"
    raw = pd.read_parquet(path)
    table = raw.rename(
        columns={
            "adj_close": "adjusted_close",
            "dividend": "dividend_amount",
            "split": "split_coefficient",
        }
    )
    table = table.assign(timestamp=raw["timestamp"].dt.date)
    table[::-1].to_csv(tmp_path / "AAPL.csv", index=False)
    [imported] = run(tmp_path, tmp_path / "AAPL.csv")
    assert imported.provenance["prices"] == "raw (known of Alpha Vantage)"
    return raw


@pytest.mark.real_data
@pytest.mark.skipif(DATA_DIR is None, reason="JAXTRADER_DATA_DIR is not set")
def test_apple_s_real_splits(tmp_path):
    """As-traded prices of 2007 to 2021, with 7:1 in 2014, 4:1 in 2020, and 35 dividends."""
    raw = apple(tmp_path)
    bars = read_bars(tmp_path / "into", "AAPL", "1Day")
    days = bars.timestamps.astype("M8[D]").astype(str).tolist()
    for day in ("2014-06-09", "2020-08-31"):
        t = days.index(day)
        unadjusted = np.log(raw["close"].iloc[t] / raw["close"].iloc[t - 1])
        assert unadjusted < -1.3
        assert abs(np.log(bars.close[t] / bars.close[t - 1])) < 0.04
        assert abs(np.log(bars.volume[t] / bars.volume[t - 1])) < 1.0
    # The vendor's own adjusted close is another way to the same returns.
    ours = np.diff(np.log(bars.close))
    theirs = np.diff(np.log(raw["adj_close"].to_numpy()))
    assert np.median(np.abs(ours - theirs)) < 1e-6
    assert np.quantile(np.abs(ours - theirs), 0.99) < 1e-4


@pytest.mark.real_data
@pytest.mark.skipif(DATA_DIR is None, reason="JAXTRADER_DATA_DIR is not set")
@pytest.mark.parametrize(("day", "split"), [("2014-06-09", 7), ("2020-08-31", 4)])
def test_fills_across_apple_s_real_splits_are_an_owner_s(tmp_path, day, split):
    """Bought before, sold after: the account is that of somebody who got more shares on the way."""
    raw = apple(tmp_path)
    bars = read_bars(tmp_path / "into", "AAPL", "1Day")
    t = raw.index[raw["timestamp"] == day][0]
    window = slice(t - 4, t + 4)  # without a dividend
    assert (raw["dividend"][window] == 0).all()
    rules = ReferenceParameters(
        commission=0.001, slippage=0.0005, stop_loss=np.inf, take_profit=np.inf, weights={}
    )
    actions = [Action.BUY_LARGE, *[Action.HOLD] * 4, Action.SELL_ALL, Action.HOLD]
    episode = Episode(bars.open[window], bars.close[window], script(actions), rules=rules)
    played = play([episode])
    equity = np.asarray(played.state.account.equity[0], np.float64)

    bought, sold = raw["open"][t - 3] * 1.0005, raw["open"][t + 2] * 0.9995
    # 9 % of the equity, commission included, in today's terms.
    shares = 0.09 / (bought * 1.001)
    cash = 1.0 - shares * bought * 1.001
    before = cash + shares * raw["close"][t - 1]
    after = cash + shares * split * raw["close"][t]
    at_last = cash + shares * split * sold * 0.999
    np.testing.assert_allclose(equity[[2, 3, 6]], [before, after, at_last], rtol=2e-6)


# ---------------------------------------------------------------------------------- resampling


def minutes(day: str, first: str, last: str, zone: str = "America/New_York") -> pd.DataFrame:
    """A minute a row, with its number as price and 1 as volume."""
    times = pd.date_range(f"{day} {first}", f"{day} {last}", freq="min", inclusive="left")
    price = np.arange(1.0, len(times) + 1)
    frame = pd.DataFrame({"time": times.tz_localize(zone), "open": price, "high": price + 0.5})
    return frame.assign(low=price - 0.5, close=price, volume=1.0)


def test_hours_of_a_session_begin_with_its_open(tmp_path):
    """A whole day, then the half day after Thanksgiving with trades after its close at 13:00."""
    days = [minutes("2024-11-27", "04:00", "20:00"), minutes("2024-11-29", "09:30", "16:00")]
    pd.concat(days).to_csv(tmp_path / "SPY.csv", index=False)
    [imported] = run(tmp_path, tmp_path / "SPY.csv", resample="1Hour")
    wednesday = [f"2024-11-27 {hour}:30" for hour in range(14, 21)]
    friday = [f"2024-11-29 {hour}:30" for hour in range(14, 18)]
    assert stamps(imported) == wednesday + friday
    table = pq.read_table(imported.path)
    assert table["n_sub"].to_pylist() == [60] * 6 + [30] + [60] * 3 + [30]
    assert table["volume"].to_pylist() == table["n_sub"].to_pylist()
    # 09:30 is 330 minutes after 04:00, whose price is 1.
    assert table["open"].to_pylist()[:2] == [331, 391]
    assert table["high"].to_pylist()[:2] == [390.5, 450.5]
    assert table["low"].to_pylist()[:2] == [330.5, 390.5]
    assert table["close"].to_pylist()[6] == 720
    assert imported.provenance["calendar"] == "XNYS"


def test_all_hours_and_whole_days(tmp_path):
    minutes("2024-11-27", "04:00", "20:00").to_csv(tmp_path / "SPY.csv", index=False)
    [hours] = import_files(
        [tmp_path / "SPY.csv"], tmp_path / "a", ImportOptions(resample="1Hour", hours="all")
    )
    assert stamps(hours)[0] == "2024-11-27 08:30"  # half an hour of it, from 09:00 UTC
    assert sum(pq.read_table(hours.path)["n_sub"].to_pylist()) == 960
    [days] = import_files([tmp_path / "SPY.csv"], tmp_path / "b", ImportOptions(resample="1Day"))
    assert (days.timeframe, stamps(days)) == ("1Day", ["2024-11-27 00:00"])
    assert pq.read_table(days.path)["n_sub"].to_pylist() == [390]


def test_hours_around_the_clock(tmp_path):
    frame = pd.concat([minutes(f"2024-11-0{day}", "00:00", "23:59", "UTC") for day in (1, 2, 3)])
    frame.to_csv(tmp_path / "BTCUSDT.csv", index=False)
    [imported] = run(tmp_path, tmp_path / "BTCUSDT.csv", resample="1Hour")
    assert imported.provenance["calendar"] == "24/7"
    assert len(stamps(imported)) == 72
    assert stamps(imported)[25] == "2024-11-02 01:00"


# ---------------------------------------------------------------------------------------- LEAN


@pytest.fixture
def lean(tmp_path):
    """LEAN's folder of a company that was called FB until a Wednesday, with a split of two."""
    root = tmp_path / "Data" / "equity" / "usa"
    for name, text in {
        "map_files/meta.csv": "20240102,fb,Q | 20240103,fb,Q | 20501231,meta,Q",
        "factor_files/meta.csv": "20240102,0.9,0.5,1 | 20240104,0.9,0.5,100 | 20501231,1,1,0",
    }.items():
        write(root / name, text)
    for resolution, ticker, rows in [
        ("daily", "fb", "20240102 00:00,1000000,1010000,990000,1000000,100 | "
                        "20240103 00:00,1000000,1010000,990000,1000000,100 | "
                        "20240104 00:00,7,7,7,7,7"),  # another company's by then
        ("daily", "meta", "20240104 00:00,1000000,1010000,990000,1000000,100 | "
                          "20240105 00:00,500000,510000,490000,500000,200"),
        ("hour", "meta", "20240104 15:00,1000000,1010000,990000,1005000,100 | "
                         "20240105 09:00,500000,510000,490000,500000,200 | "
                         "20240105 10:00,500000,510000,490000,500000,200"),
    ]:  # fmt: skip
        path = root / resolution / f"{ticker}.zip"
        path.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{ticker}.csv", rows.replace(" | ", "\n"))
    minute = root / "minute" / "meta"
    minute.mkdir(parents=True)
    with zipfile.ZipFile(minute / "20240105_trade.zip", "w") as archive:
        archive.writestr(
            "20240105_meta_minute_trade.csv",
            "34200000,500000,5e5,490000,500000,1\n34260000,500000,5e5,490000,501000,1",
        )
    with zipfile.ZipFile(minute / "20240105_quote.zip", "w") as archive:
        archive.writestr("20240105_meta_minute_quote.csv", "34200000,1,1,1,1,1,1,1,1,1,1")
    return tmp_path / "Data"


def test_lean_s_symbols_keep_their_history_under_former_names(lean, tmp_path):
    daily, hourly, minute = run(tmp_path, lean)
    assert [daily.timeframe, hourly.timeframe, minute.timeframe] == ["1Day", "1Hour", "1Min"]
    assert {each.symbol for each in (daily, hourly, minute)} == {"META"}
    assert stamps(daily) == [f"2024-01-0{day} 00:00" for day in (2, 3, 4, 5)]
    assert stamps(hourly) == ["2024-01-04 20:00", "2024-01-05 14:00", "2024-01-05 15:00"]
    assert stamps(minute) == ["2024-01-05 14:30", "2024-01-05 14:31"]
    assert pq.read_table(daily.path)["close"].to_pylist() == [100, 100, 100, 50]
    bars = read_bars(tmp_path / "into", "META", "1Day")
    np.testing.assert_allclose(bars.close, [45, 45, 45, 50], rtol=1e-15)
    assert bars.volume.tolist() == [200, 200, 200, 200]
    assert daily.provenance["listed"] == "2024-01-02"
    assert "delisted" not in daily.provenance
    assert "called FB until 2024-01-03" in daily.provenance["notes"]
    assert daily.provenance["zone"] == "UTC (dates, as they stand)"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("map_files/meta.csv", "yesterday,fb", "line 1: 'yesterday' is not a day"),
        ("map_files/meta.csv", "20240102", "line 1: is not day, ticker"),
        ("map_files/meta.csv", "", "is empty"),
        ("factor_files/meta.csv", "20240102,much", "price factor, split factor"),
        ("factor_files/meta.csv", "20240102,1,0", "a factor is not above 0"),
    ],
)
def test_damaged_lists_of_lean_s_are_refused(lean, tmp_path, file, text, message):
    write(lean / "equity" / "usa" / file, text)
    with pytest.raises(DataError, match=message):
        run(tmp_path, lean)


def test_a_symbol_of_lean_s_stays_in_its_folder(lean, tmp_path):
    write(lean / "equity" / "usa" / "map_files" / "...csv", "20240102,meta,Q | 20501231,meta,Q")
    with pytest.raises(DataError, match="is not a symbol"):
        run(tmp_path, lean)


def test_lean_s_currencies_are_the_middle_of_bid_and_ask(tmp_path):
    path = tmp_path / "Data" / "forex" / "oanda" / "hour" / "eurusd.zip"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        row = "20070101 {}:00,1.31,1.33,1.29,1.32,0,1.33,1.35,1.31,1.34,0\n"
        archive.writestr("eurusd.csv", row.format(21) + row.format(22))
    [imported] = run(tmp_path, tmp_path / "Data")
    assert (imported.symbol, stamps(imported)[0]) == ("EURUSD", "2007-01-01 21:00")
    table = pq.read_table(imported.path)
    np.testing.assert_allclose(table["open"], 1.32)
    np.testing.assert_allclose(table["close"], 1.33)
    np.testing.assert_allclose(table["spread_close"], 0.02)


# ------------------------------------------------------------------------------- any file at all

WRITTEN = {
    "iso": lambda moment: moment.isoformat().replace("+00:00", "Z"),
    "seconds": lambda moment: str(int(moment.timestamp())),
    "milliseconds": lambda moment: str(int(moment.timestamp()) * 1000),
    "New York": lambda moment: moment.astimezone(NEW_YORK).isoformat(),
    "reversed": lambda moment: moment.strftime("%d.%m.%Y %H:%M"),
}


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(0, 250_000),
    prices=st.lists(st.floats(1e-6, 1e6, allow_subnormal=False), min_size=3, max_size=30),
    written=st.sampled_from(sorted(WRITTEN)),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    order=st.sampled_from([1, -1]),
)
def test_bars_survive_however_they_are_written(
    tmp_path_factory, start, prices, written, delimiter, order
):
    moments = [
        datetime(1998, 1, 1, tzinfo=UTC) + timedelta(hours=start + i) for i in range(len(prices))
    ]
    rows = [
        delimiter.join([WRITTEN[written](moment), *[repr(price)] * 4, "1"])
        for moment, price in zip(moments, prices, strict=True)
    ]
    folder = tmp_path_factory.mktemp("any")
    headers = delimiter.join(["time", "open", "high", "low", "close", "volume"])
    file = write(folder / "X.csv", "\n".join([headers, *rows[::order]]))
    [imported] = run(folder, file, zone="UTC", label="start")
    bars = read_bars(folder / "into", "X")
    assert bars.close.tolist() == prices
    assert bars.timestamps.tolist() == [moment.replace(tzinfo=None) for moment in moments]
