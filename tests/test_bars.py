"""Bars: what is accepted is exact, what is refused is named. Sessions: known calendars."""

import contextlib
import dataclasses
import hashlib
import os
import re

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtrader.data import Bars, read_bars, sessions_of
from jaxtrader.data.layout import timeframe_minutes
from jaxtrader.data.sentiment import read_sentiment
from jaxtrader.errors import ConfigError, DataError

DATA_DIR = os.environ.get("JAXTRADER_DATA_DIR")
needs_real_data = pytest.mark.skipif(DATA_DIR is None, reason="JAXTRADER_DATA_DIR is not set")


def frame(rows: int = 6) -> pd.DataFrame:
    """Valid hourly bars, with a column that is none of our business."""
    close = 100 + np.arange(rows) * 0.5
    return pd.DataFrame(
        {
            "timestamp": pd.date_range(
                "2024-03-04 14:30", periods=rows, freq="h", tz="UTC", unit="us"
            ),
            "open": close - 0.25,
            "high": close + 1.0,
            "low": close - 1.0,
            "close": close,
            "volume": np.arange(rows) * 10.0,
            "source": ["vendor"] * rows,
        }
    )


def store(folder, data: pd.DataFrame, symbol="SPY", timeframe="1Hour", root="historical"):
    path = folder / root / symbol / timeframe / "data.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    data.to_parquet(path, index=False)
    return path


def make_bars(timestamps, timeframe="1Hour", **columns) -> Bars:
    price = np.full(len(timestamps), 10.0)
    values = {"open": price, "high": price, "low": price, "close": price, "volume": price} | columns
    return Bars("X", timeframe, timestamps, **values, source="test", sha256="")


@pytest.mark.parametrize("root", ["historical", "data/historical"])
def test_reads_the_file_exactly(tmp_path, root):
    path = store(tmp_path, frame(), root=root)
    bars = read_bars(tmp_path, "SPY")
    assert len(bars) == 6
    assert bars.timestamps.dtype == np.dtype("M8[us]")
    assert bars.timestamps[0] == np.datetime64("2024-03-04T14:30")
    for name in ("open", "high", "low", "close", "volume"):
        values = getattr(bars, name)
        assert values.dtype == np.float64
        np.testing.assert_array_equal(values, frame()[name])
        assert not values.flags.writeable
    assert bars.source == str(path)
    assert bars.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (bars.synthetic, bars.notes) == (False, ())


def test_the_historical_folder_itself_will_do(tmp_path):
    store(tmp_path, frame())
    assert len(read_bars(tmp_path / "historical", "SPY")) == 6


def test_float32_and_integer_columns_are_widened(tmp_path):
    data = frame().astype({"open": "float32", "volume": "int64"})
    store(tmp_path, data)
    bars = read_bars(tmp_path, "SPY")
    np.testing.assert_array_equal(bars.open, frame()["open"])
    np.testing.assert_array_equal(bars.volume, frame()["volume"])


def test_another_time_zone_is_the_same_instant(tmp_path):
    data = frame()
    data["timestamp"] = (
        data["timestamp"]
        .dt.tz_convert("America/New_York")
        .astype("datetime64[ns, America/New_York]")
    )
    store(tmp_path, data)
    assert read_bars(tmp_path, "SPY").timestamps[0] == np.datetime64("2024-03-04T14:30")


def spoil(column, row, value):
    def change(data: pd.DataFrame) -> pd.DataFrame:
        data.loc[row, column] = value
        return data

    return change


def stamps(change):
    return lambda data: data.assign(timestamp=change(data["timestamp"]))


MALFORMED = {
    "no such column": (lambda d: d.drop(columns="low"), r"'low' is missing.*rename or add"),
    "no rows": (lambda d: d.iloc[:0], r"no rows"),
    "duplicate": (
        lambda d: pd.concat([d.iloc[:3], d.iloc[2:]]),
        r"row 3 \(2024-03-04T16:30:00Z\), column 'timestamp' repeats.*drop_duplicates",
    ),
    "unsorted": (lambda d: d.iloc[::-1], r"row 1 .*earlier than.*\(5 such rows\); sort"),
    "naive": (stamps(lambda t: t.dt.tz_localize(None)), r"no time zone.*tz_localize\('UTC'\)"),
    "text times": (stamps(lambda t: t.astype(str)), r"'timestamp' holds .*string.*tz=UTC"),
    "epoch times": (stamps(lambda t: t.astype("int64")), r"'timestamp' holds int64"),
    "empty time": (spoil("timestamp", 2, pd.NaT), r"row 2, column 'timestamp': empty"),
    "text price": (lambda d: d.assign(open=d["open"].astype(str)), r"'open' holds .*float64"),
    "NaN price": (spoil("close", 4, np.nan), r"row 4 .*'close' is not a finite"),
    "zero price": (spoil("low", 1, 0.0), r"row 1 .*'low' is not above 0"),
    "negative price": (spoil("low", 1, -37.63), r"row 1 .*'low' is not above 0"),
    "infinite price": (spoil("high", 1, np.inf), r"row 1 .*'high' is not a finite"),
    "high below low": (spoil("high", 3, 90.0), r"row 3 .*'high' is below the low"),
    "open above high": (spoil("open", 5, 150.0), r"row 5 .*'open' is outside"),
    "close below low": (spoil("close", 0, 50.0), r"row 0 .*'close' is outside"),
    "negative volume": (spoil("volume", 2, -1.0), r"row 2 .*'volume' is negative"),
    "mixed offsets": (
        lambda d: d.assign(timestamp=["2024-03-04T14:30+00:00", "2024-03-04T10:30-05:00"] * 3),
        r"'timestamp' holds .*string.*even different ones.*pd.to_datetime.*utc=True",
    ),
    "nanoseconds for microseconds": (
        stamps(lambda t: (t.astype("int64") * 1000).astype("M8[us]").dt.tz_localize("UTC")),
        r"row 0 \(56143.*'timestamp' is not in the years.*another unit",
    ),
    "price beyond 32 bits": (spoil("high", 2, 1e39), r"row 2 .*'high' is not between 1e-15"),
    "price too small to divide by": (spoil("low", 2, 1e-300), r"row 2 .*'low' is not between"),
    "endless volume": (spoil("volume", 2, 1e300), r"row 2 .*'volume' is above 1e\+18"),
    "NaN volume in part": (spoil("volume", 2, np.nan), r"row 2 .*'volume' is not a finite"),
    "infinite volume": (spoil("volume", 2, np.inf), r"row 2 .*'volume' is not a finite"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused_by_name(tmp_path, case):
    change, message = MALFORMED[case]
    path = store(tmp_path, change(frame()))
    with pytest.raises(DataError, match=message) as caught:
        read_bars(tmp_path, "SPY")
    assert str(path) in str(caught.value)


def twice(path, name: str) -> None:
    """Writes a column a second time, which pandas would not."""
    table = pq.read_table(path)
    pq.write_table(table.append_column(name, table[name]), path)


@pytest.mark.parametrize("column", ["timestamp", "close"])
def test_a_column_that_is_there_twice_is_refused_by_name(tmp_path, column):
    path = store(tmp_path, frame())
    twice(path, column)
    with pytest.raises(DataError, match=f"'{column}' is there 2 times; rename or drop") as caught:
        read_bars(tmp_path, "SPY")
    assert str(path) in str(caught.value)


def test_a_sentiment_column_that_is_there_twice_is_refused_by_name(tmp_path):
    store(tmp_path, frame())
    path = tmp_path / "sentiment" / "SPY" / "daily_sentiment.parquet"
    path.parent.mkdir(parents=True)
    days = pd.to_datetime(["2024-01-02"])
    pd.DataFrame({"date": days, "sentiment_score": [0.1]}).to_parquet(path)
    twice(path, "sentiment_score")
    with pytest.raises(DataError, match="'sentiment_score' is there 2 times; rename") as caught:
        read_sentiment(tmp_path, "SPY")
    assert str(path) in str(caught.value)


def test_a_column_that_is_none_of_our_business_may_be_there_twice(tmp_path):
    twice(store(tmp_path, frame()), "source")
    np.testing.assert_array_equal(read_bars(tmp_path, "SPY").close, frame()["close"])


def test_a_time_finer_than_a_microsecond_is_refused(tmp_path):
    data = frame()
    data["timestamp"] = data["timestamp"].dt.as_unit("ns") + pd.Timedelta(1, "ns")
    store(tmp_path, data)
    with pytest.raises(DataError, match="does not fit microseconds"):
        read_bars(tmp_path, "SPY")


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = store(tmp_path, frame())
    whole = path.read_bytes()
    for length in [0, 1, 4, 100, len(whole) // 2, len(whole) - 9, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="cut short") as caught:
            read_bars(tmp_path, "SPY")
        assert str(path) in str(caught.value)


def test_damage_anywhere_is_read_as_bars_or_refused_by_name(tmp_path):
    """Bits turned and stretches overwritten, at random places of compressed and plain files."""
    rng = np.random.default_rng(0)
    path = store(tmp_path, frame(300))
    plain = tmp_path / "plain.parquet"
    frame(300).to_parquet(plain, index=False, compression=None)
    refused = 0
    for whole in (path.read_bytes(), plain.read_bytes()):
        for _ in range(150):
            content = bytearray(whole)
            place, length = int(rng.integers(len(content))), int(rng.integers(1, 9))
            content[place : place + length] = rng.bytes(length)
            path.write_bytes(bytes(content))
            refused += 1
            with contextlib.suppress(DataError):
                assert len(read_bars(tmp_path, "SPY")) > 0
                refused -= 1
    assert refused > 50


def test_a_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / "historical" / "SPY" / "1Hour" / "data.parquet").mkdir(parents=True)
    with pytest.raises(DataError, match=r"data\.parquet: is not a file; write the bars as one"):
        read_bars(tmp_path, "SPY")


def test_a_folder_that_may_not_be_looked_into(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    store(tmp_path, frame())
    monkeypatch.setattr(type(tmp_path), "is_dir", refuse)
    with pytest.raises(DataError, match=r"cannot be looked at \(Permission denied\); check"):
        read_bars(tmp_path, "SPY")
    monkeypatch.undo()
    monkeypatch.setattr(type(tmp_path), "is_file", refuse)
    with pytest.raises(DataError, match=r"data\.parquet: cannot be looked at"):
        read_bars(tmp_path, "SPY")


def test_a_name_longer_than_a_disk_allows(tmp_path):
    with pytest.raises(DataError, match="File name too long"):
        read_bars(tmp_path / ("x" * 300), "SPY")


def test_a_damaged_page_is_an_error_of_ours(tmp_path):
    path = store(tmp_path, frame(500))
    content = bytearray(path.read_bytes())
    content[4:300] = bytes(296)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError):
        read_bars(tmp_path, "SPY")


def test_a_column_without_any_volume_is_zeros_and_a_note(tmp_path):
    for nothing in (frame().assign(volume=np.nan), frame().assign(volume=None)):
        store(tmp_path, nothing)
        bars = read_bars(tmp_path, "SPY")
        np.testing.assert_array_equal(bars.volume, 0.0)
        assert bars.notes == ("no volume in the source: every volume is taken as 0",)


def test_a_hole_is_noted_once():
    days = np.array(["2024-01-05", "2024-01-15", "2024-12-20", "2024-12-23"], "M8[us]")
    bars = make_bars(days)
    assert bars.notes == ("no bars between 2024-01-15 and 2024-12-20 (340 days)",)
    assert dataclasses.replace(bars, close=bars.open).notes == bars.notes


def test_rounding_of_adjusted_prices_is_no_fault():
    times = np.array(["2024-01-05"], "M8[us]")
    price = np.array([31.7])
    bars = make_bars(times, open=price, high=price, low=price, close=np.nextafter(price, 99))
    assert bars.close[0] > bars.high[0]


def test_unequal_columns_are_refused():
    times = np.array(["2024-01-05"], "M8[us]")
    with pytest.raises(DataError, match="'close' has shape"):
        make_bars(times, close=np.ones(2))
    with pytest.raises(DataError, match="row of timestamps"):
        make_bars(times[:0])


def test_a_missing_symbol_names_the_nearest(tmp_path):
    for symbol in ("AAPL", "AMD", "MSFT", "SPY"):
        store(tmp_path, frame(), symbol)
    with pytest.raises(DataError, match=r"AAP: no such symbol\. Nearest of the 4 there: AAPL"):
        read_bars(tmp_path, "AAP")
    with pytest.raises(DataError, match=r"Nearest of the 4 there: SPY"):
        read_bars(tmp_path, "spy")
    with pytest.raises(DataError, match=r"There are 4: AAPL, AMD, MSFT, SPY$"):
        read_bars(tmp_path, "ZZZZZ")


def test_a_missing_timeframe_names_those_there(tmp_path):
    store(tmp_path, frame())
    with pytest.raises(DataError, match="Timeframes of SPY there: 1Hour"):
        read_bars(tmp_path, "SPY", "1Day")
    (tmp_path / "historical" / "SPY" / "1Day").mkdir()
    (tmp_path / "historical" / "SPY" / "1Day" / "data.csv").touch()
    with pytest.raises(DataError, match=r"There is data\.csv: bars are read from parquet alone"):
        read_bars(tmp_path, "SPY", "1Day")
    with pytest.raises(ConfigError, match="'hourly' is not a number followed by"):
        read_bars(tmp_path, "SPY", "hourly")


def test_a_folder_without_data_says_what_it_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"neither .*historical nor .*historical"):
        read_bars(tmp_path, "SPY")
    (tmp_path / "historical").mkdir()
    with pytest.raises(DataError, match="no symbols at all"):
        read_bars(tmp_path, "SPY")


@pytest.mark.parametrize(
    "name", ["../SPY", "..", ".", "", "/etc/passwd", "SPY/../SPY", "A\\B", "SPY\n", "A..B", "A\0"]
)
def test_a_symbol_cannot_leave_the_folder(tmp_path, name):
    store(tmp_path, frame())
    store(tmp_path, frame(), root="elsewhere")
    with pytest.raises(DataError, match="is not a symbol"):
        read_bars(tmp_path, name)
    with pytest.raises(ConfigError):
        read_bars(tmp_path, "SPY", name)


def test_timeframes():
    assert [timeframe_minutes(name) for name in ("1Min", "15Min", "4Hour", "1Day")] == [
        1,
        15,
        240,
        1440,
    ]


prices = st.floats(1e-3, 1e6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(prices, prices, prices, prices, st.floats(0, 1e12)), min_size=1))
def test_every_consistent_bar_is_accepted_unchanged(rows):
    table = np.array(rows)
    table[:, :4].sort(axis=1)
    low, open_, close, high, volume = table.T
    times = np.datetime64("2020-01-01", "us") + np.arange(len(rows)) * np.timedelta64(1, "h")
    columns = {"open": open_, "high": high, "low": low, "close": close, "volume": volume}
    bars = make_bars(times, **columns)
    for name, values in columns.items():
        np.testing.assert_array_equal(getattr(bars, name), values)


@settings(max_examples=100, deadline=None)
@given(
    row=st.integers(0, 5),
    column=st.sampled_from(["open", "high", "low", "close", "volume"]),
    value=st.sampled_from([np.nan, np.inf, -np.inf, -1e-300, -5.0]),
)
def test_one_bad_number_is_found_where_it_is(row, column, value):
    data = frame()
    data.loc[row, column] = value
    columns = {name: data[name].to_numpy() for name in ("open", "high", "low", "close", "volume")}
    times = data["timestamp"].dt.tz_localize(None).to_numpy()
    with pytest.raises(DataError, match=rf"test: row {row} \(.*column '{column}'"):
        make_bars(times, **columns)


# ------------------------------------------------------------------------------------- sessions


def utc(local: str, zone: str = "America/New_York") -> np.datetime64:
    return pd.Timestamp(local, tz=zone).tz_convert("UTC").tz_localize(None).to_datetime64()


def test_sessions_of_a_stock_follow_new_york_through_daylight_saving():
    # 2024-03-08 is a Friday in winter time, 2024-03-11 a Monday in summer time. After-hours trading
    # of Friday reaches Saturday in UTC.
    local = ["2024-03-08 09:30", "2024-03-08 15:30", "2024-03-08 19:30", "2024-03-11 09:30"]
    times = np.array([utc(moment) for moment in local])
    assert times.astype("M8[m]").astype(str)[2:].tolist() == [
        "2024-03-09T00:30",
        "2024-03-11T13:30",
    ]
    sessions = sessions_of(make_bars(times))
    assert sessions.date.astype(str).tolist() == ["2024-03-08"] * 3 + ["2024-03-11"]
    assert sessions.ordinal.tolist() == [0, 0, 0, 1]
    assert sessions.ordinal.dtype == np.int32
    assert sessions.periods_per_year == 252


def test_sessions_of_a_market_without_a_close_are_utc_days():
    times = np.datetime64("2024-03-08T00:00", "us") + np.arange(24 * 8) * np.timedelta64(1, "h")
    sessions = sessions_of(make_bars(times))
    assert sessions.periods_per_year == 365
    np.testing.assert_array_equal(np.bincount(sessions.ordinal), 24)
    assert str(sessions.date[-1]) == "2024-03-15"


def test_a_short_series_can_be_told_that_it_never_closes():
    times = np.datetime64("2024-03-05T00:00", "us") + np.arange(30) * np.timedelta64(1, "h")
    assert sessions_of(make_bars(times)).periods_per_year == 252
    sessions = sessions_of(make_bars(times), round_the_clock=True)
    assert sessions.periods_per_year == 365
    assert np.bincount(sessions.ordinal).tolist() == [24, 6]


def test_a_currency_week_that_opens_on_sunday_evening_belongs_to_monday():
    times = np.array([utc("2024-03-08 16:00"), utc("2024-03-10 18:00"), utc("2024-03-11 01:00")])
    sessions = sessions_of(make_bars(times))
    assert sessions.date.astype(str).tolist() == ["2024-03-08", "2024-03-11", "2024-03-11"]


def test_daily_bars_stamped_midnight_utc_keep_their_date():
    times = np.array(["2024-03-08", "2024-03-11", "2024-03-12"], "M8[us]")
    sessions = sessions_of(make_bars(times, "1Day"))
    assert sessions.date.astype(str).tolist() == ["2024-03-08", "2024-03-11", "2024-03-12"]
    assert sessions.ordinal.tolist() == [0, 1, 2]


def test_daily_bars_stamped_midnight_new_york_are_read_there():
    times = np.array([utc("2024-03-08"), utc("2024-03-11")])
    sessions = sessions_of(make_bars(times, "1Day"))
    assert sessions.date.astype(str).tolist() == ["2024-03-08", "2024-03-11"]


# ------------------------------------------------------------------------------------ real data


@pytest.mark.real_data
@needs_real_data
def test_real_bars_of_spy():
    bars = read_bars(DATA_DIR, "SPY")
    stored = pq.read_table(bars.source).to_pandas()
    assert len(bars) == len(stored)
    np.testing.assert_array_equal(bars.close, stored["close"])
    sessions = sessions_of(bars)
    assert sessions.periods_per_year == 252
    local = stored["timestamp"].dt.tz_convert("America/New_York")
    assert sessions.ordinal[-1] + 1 == local.dt.date.nunique()
    assert np.bincount(sessions.ordinal).max() == 7


@pytest.mark.real_data
@needs_real_data
@pytest.mark.parametrize("timeframe", ["1Hour", "1Day"])
def test_every_real_file_is_read_or_refused_by_row(timeframe):
    historical = os.path.join(DATA_DIR or "", "historical")
    symbols = [
        name
        for name in sorted(os.listdir(historical))
        if os.path.isfile(os.path.join(historical, name, timeframe, "data.parquet"))
    ]
    refused = {}
    for symbol in symbols:
        try:
            sessions_of(read_bars(DATA_DIR, symbol, timeframe))
        except DataError as error:
            refused[symbol] = str(error)
    assert len(refused) < 0.1 * len(symbols)
    for symbol, message in refused.items():
        assert re.search(rf"{symbol}.*row \d+ .*column '\w+'", message)
