"""Features of what surrounds a symbol: the economy as published, the regime, and the mood."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from jaxtrader.cli import main
from jaxtrader.data import (
    FEATURE_NAMES,
    Bars,
    DailySentiment,
    MacroSeries,
    Universe,
    compute_features,
    find_lookahead,
    load_dataset,
    read_macro,
    sessions_of,
    synthetic_bars,
    warm_up_bars,
)
from jaxtrader.data.features import FEATURES
from jaxtrader.data.macro import RELEASES
from jaxtrader.errors import DataError

DATA_DIR = os.environ.get("JAXTRADER_DATA_DIR")
REGIME = tuple(name for name, each in FEATURES.items() if each.group == "regime")
MACRO = tuple(name for name, each in FEATURES.items() if each.group == "macro")
MOOD = tuple(name for name, each in FEATURES.items() if each.group == "sentiment")
OURS = (*FEATURE_NAMES, *(n for n in (*REGIME, *MACRO, *MOOD) if n not in FEATURE_NAMES))

STOCKS = [synthetic_bars(name, 3, sessions=200) for name in ("AAA", "BBB", "CCC")]
BARS = STOCKS[0]
DAYS = np.arange(np.datetime64("1998-01-01"), np.datetime64("2002-01-01"))


def economy(step: int = 1) -> dict[str, MacroSeries]:
    """Every series that a feature looks at, a value a day, published as `RELEASES` says."""
    series = {}
    for number, name in enumerate(sorted({m for each in FEATURES.values() for m in each.macro})):
        rng = np.random.default_rng(number)
        value = 20 * np.exp(np.cumsum(rng.normal(0, 0.02, len(DAYS[::step]))))
        if name.startswith("T10"):  # a spread may be below zero
            value = np.log(value / 20)
        date = DAYS[::step]
        usable = date + RELEASES[name].days + 1
        series[name] = MacroSeries(name, date, usable, value, 75, name, "")
    return series


def universe() -> Universe:
    return Universe.of(STOCKS, [sessions_of(each) for each in STOCKS])


def one(name: str, bars=BARS, **given) -> np.ndarray:
    return compute_features(bars, names=(name,), **given)[:, 0]


def scores(days=DAYS) -> DailySentiment:
    rng = np.random.default_rng(5)
    counts = rng.integers(1, 50, len(days)).astype(float)
    return DailySentiment(days, rng.uniform(-1, 1, len(days)), "test", "", count=counts)


# ------------------------------------------------------------------------------ no look-ahead


def test_no_feature_of_the_library_looks_ahead():
    """All of them, with everything that they look at, probed at a hundred bars."""
    assert find_lookahead(BARS, OURS, scores(), macro=economy(), universe=universe()) == {}


@pytest.mark.parametrize("name", [*REGIME, *MACRO, *MOOD])
def test_a_day_of_look_ahead_is_found(name, monkeypatch):
    """The same features, given what is public a day later."""
    early = {
        key: dataclasses.replace(each, usable=each.usable - 1) for key, each in economy().items()
    }
    original = FEATURES[name]

    def compute(inputs):
        values = original.compute(inputs)
        return np.concatenate([values[7:], np.repeat(values[-1:], 7)])

    monkeypatch.setitem(FEATURES, name, dataclasses.replace(original, compute=compute))
    found = find_lookahead(
        BARS, (name,), scores(DAYS[::9]), macro=early, universe=universe(), probes=60
    )
    if name == "regime_drawdown":  # it is 1 at each new high, whatever comes
        assert len(found.get(name, ())) > 3
    else:
        assert len(found[name]) > 10


@pytest.mark.parametrize("name", [*REGIME, *MACRO, *MOOD])
def test_every_feature_says_what_it_is(name):
    assert len(FEATURES[name].formula) > 40
    assert FEATURES[name].group in ("regime", "macro", "sentiment")


# --------------------------------------------------------------------------------- the economy


def stored(folder: Path, name: str, **columns) -> Path:
    path = folder / "macro" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    (folder / "historical").mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def days(*texts: str) -> pa.Array:
    return pa.array(np.array(texts, "M8[D]"))


def test_a_value_serves_from_the_day_after_its_publication(tmp_path):
    """A close of the VIX the next day, the consumer prices of March sixty days after its first."""
    stored(tmp_path, "VIX", date=days("2024-03-04", "2024-03-05"), value=[13.0, 14.0])
    vix = read_macro(tmp_path, "VIX")
    assert vix.usable.astype(str).tolist() == ["2024-03-05", "2024-03-06"]
    stored(tmp_path, "CPIAUCSL", date=days("2024-03-01"), value=[312.0])
    assert str(read_macro(tmp_path, "CPIAUCSL").usable[0]) == "2024-05-01"
    # Published on 10 April 2024, as the file may say itself.
    stored(
        tmp_path,
        "CPIAUCSL",
        date=days("2024-03-01"),
        value=[312.0],
        release_date=days("2024-04-10"),
    )
    assert str(read_macro(tmp_path, "CPIAUCSL").usable[0]) == "2024-04-11"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"date": days("2024-01-02", "2024-01-02"), "value": [1.0, 2.0]}, "row 1, .*come after"),
        ({"date": days("2024-01-03", "2024-01-02"), "value": [1.0, 2.0]}, "row 1, .*come after"),
        ({"date": ["2024-01-03"], "value": [1.0]}, "column 'date' holds string"),
        ({"date": days("2024-01-03"), "value": ["1"]}, "column 'value' holds string"),
        ({"date": days("2024-01-03"), "value": [float("nan")]}, "no row has a value"),
        ({"day": days("2024-01-03"), "value": [1.0]}, "column 'date' is missing"),
    ],
)
def test_a_damaged_series_is_refused(tmp_path, columns, message):
    stored(tmp_path, "VIX", **columns)
    with pytest.raises(DataError, match=message):
        read_macro(tmp_path, "VIX")


def test_a_series_of_unknown_release_is_refused(tmp_path):
    stored(tmp_path, "LUMBER", date=days("2024-01-03"), value=[1.0])
    with pytest.raises(DataError, match="add a column release_date"):
        read_macro(tmp_path, "LUMBER")
    with pytest.raises(DataError, match="Series there: LUMBER"):
        read_macro(tmp_path, "VIX")


def test_holidays_are_left_out(tmp_path):
    stored(
        tmp_path,
        "DGS10",
        date=days("2024-01-01", "2024-01-02", "2024-01-03"),
        value=[None, 3.9, float("nan")],
    )
    series = read_macro(tmp_path, "DGS10")
    assert series.value.tolist() == [3.9]


def test_the_latest_published_value_is_joined():
    """By hand: monthly values of a rate, usable on the 12th; the bars of one session are alike."""
    months = np.arange("1998-01", "2002-01", dtype="M8[M]").astype("M8[D]")
    value = np.arange(len(months)) / 10
    usable = months + 11
    series = {"FEDFUNDS": MacroSeries("FEDFUNDS", months, usable, value, 75, "test", "")}
    got = one("macro_fed_funds", macro=series)
    for t in range(0, len(BARS), 50):
        day = pd.Timestamp(sessions_of(BARS).date[t])
        month = (day.year - 1998) * 12 + day.month - 1 - (day.day < 12)
        assert got[t] == month / 10 / 100


def test_a_year_is_counted_by_dates_though_a_month_is_missing():
    """The consumer prices of October 2025 were never published."""
    months = np.arange("1998-01", "2002-01", dtype="M8[M]").astype("M8[D]")
    months = np.delete(months, 20)
    value = 100 * 1.01 ** np.round((months - months[0]).astype(int) / 30.44)
    series = {"CPIAUCSL": MacroSeries("CPIAUCSL", months, months + 61, value, 75, "test", "")}
    got = one("macro_inflation", macro=series)
    np.testing.assert_allclose(got[200:], 12 * np.log(1.01), rtol=1e-12)


def test_what_was_published_late_in_2025_is_known_late(tmp_path):
    stored(tmp_path, "UNRATE", date=days("2025-08-01", "2025-09-01"), value=[4.3, 4.4])
    usable = read_macro(tmp_path, "UNRATE").usable.astype(str).tolist()
    assert usable == ["2025-10-01", "2025-11-21"]


def test_a_series_that_begins_late_or_has_ended_is_refused():
    vix = economy()["VIX"]
    keep = {name: getattr(vix, name) for name in ("date", "usable", "value")}
    date = sessions_of(BARS).date
    late = dataclasses.replace(vix, **{k: v[vix.date >= date[0]] for k, v in keep.items()})
    with pytest.raises(DataError, match="cut the bars, get a longer series"):
        one("regime_vix", macro={"VIX": late})
    stop = int(np.searchsorted(vix.usable, date[0])) + 5
    ended = dataclasses.replace(vix, patience=12, **{k: v[:stop] for k, v in keep.items()})
    with pytest.raises(DataError, match=r"had been public for 1[3-6] days"):
        one("regime_vix", macro={"VIX": ended})
    with pytest.raises(DataError, match=r"looks at macro/VIX.parquet, which was not given"):
        one("regime_vix")


# ---------------------------------------------------------------------------------- the regime


def test_every_regime_indicator_is_between_nought_and_one():
    values = compute_features(BARS, names=REGIME, macro=economy(), universe=universe())
    settled = values[warm_up_bars(REGIME) :]
    assert settled.min() >= 0.0
    assert settled.max() <= 1.0
    assert len(REGIME) == 10
    assert np.all(settled.std(axis=0) > 0.01)


def percentile(values: np.ndarray, t: int, window: int = 252 * 7) -> float:
    """Share of the window's values that are not above the last, by SciPy."""
    seen = values[max(t - window + 1, 0) : t + 1]
    seen = seen[~np.isnan(seen)]
    return stats.percentileofscore(seen, values[t], kind="weak") / 100


def test_the_regime_of_a_symbol_by_hand():
    r = np.append(np.nan, np.diff(np.log(BARS.close)))
    volatility = np.array([np.nan] * 140 + [r[t - 139 : t + 1].std() for t in range(140, len(r))])
    momentum = np.array(
        [np.nan] * 420 + [np.log(BARS.close[t] / BARS.close[t - 420]) for t in range(420, len(r))]
    )
    price = np.abs(r) / (BARS.close * BARS.volume)
    illiquidity = np.array(
        [np.nan] * 140 + [price[t - 139 : t + 1].mean() for t in range(140, len(r))]
    )
    got = {name: one(name) for name in REGIME if not FEATURES[name].macro}
    for t in (840, 1000, 1399):
        way = np.abs(r[t - 139 : t + 1]).sum()
        wanted = {
            "regime_volatility": percentile(volatility, t),
            "regime_momentum": percentile(momentum, t),
            "regime_liquidity": 1 - percentile(illiquidity, t),
            "regime_trend": abs(np.log(BARS.close[t] / BARS.close[t - 140])) / way,
            "regime_drawdown": BARS.close[t] / BARS.close[: t + 1].max(),
        }
        for name, value in wanted.items():
            np.testing.assert_allclose(got[name][t], value, atol=2e-3, err_msg=name)


def test_the_regime_of_the_universe_by_hand():
    """Closes of whole sessions, as of the session before: breadth by counting, rho by corrcoef."""
    close = np.stack([each.close[6::7] for each in STOCKS], axis=1)  # 7 bars a session
    breadth = one("regime_breadth", universe=universe())
    correlation = one("regime_correlation", universe=universe())
    assert set(breadth[:7]) == {0.5}
    for session in (70, 150, 199):
        seen = close[:session]  # up to the session before
        above = (seen[-1] > seen[-50:].mean(axis=0)).mean()
        assert breadth[7 * session : 7 * session + 7].tolist() == [above] * 7
        matrix = np.corrcoef(np.diff(np.log(seen[-61:]), axis=0).T)
        rho = (matrix.sum() - 3) / 6
        np.testing.assert_allclose(correlation[7 * session + 3], (1 + rho) / 2, rtol=1e-9)


def test_markets_that_date_their_hours_differently_see_no_future():
    """Around the clock, and on weekdays by New York's clocks, where a date ends hours later."""
    hours = np.arange(
        np.datetime64("2024-01-01"), np.datetime64("2024-04-01"), np.timedelta64(1, "h")
    )
    hours = hours.astype("M8[us]")
    weekday = (hours.astype("M8[D]").astype(int) + 3) % 7 < 5
    series = []
    for name, kept in (("COIN", hours), ("PAIR", hours[weekday])):
        rng = np.random.default_rng(len(kept))
        close = np.exp(np.cumsum(rng.normal(0, 0.01, len(kept))))
        columns = dict.fromkeys(("open", "high", "low", "close"), close)
        series.append(Bars(name, "1Hour", kept, **columns, volume=close, source=name, sha256=""))
    sessions = [sessions_of(each) for each in series]
    assert [each.periods_per_year for each in sessions] == [365, 252]
    coin, pair = series
    honest = one("regime_breadth", coin, universe=Universe.of(series, sessions))
    changed = 0
    for t in range(500, 2000, 37):
        end = coin.timestamps[t] + np.timedelta64(60, "m")
        known = pair.timestamps + np.timedelta64(60, "m") <= end
        later = {
            name: np.where(known, getattr(pair, name), 50.0)
            for name in ("open", "high", "low", "close")
        }
        other = Universe.of([coin, dataclasses.replace(pair, **later)], sessions)
        noisy = one("regime_breadth", coin, universe=other)
        np.testing.assert_array_equal(noisy[: t + 1], honest[: t + 1])
        changed += (noisy[t + 1 :] != honest[t + 1 :]).any()
    assert changed > 10


def test_one_symbol_has_no_correlation_and_no_volume_no_liquidity():
    assert set(one("regime_correlation")) == {0.5}
    silent = dataclasses.replace(BARS, volume=np.zeros(len(BARS)))
    assert set(one("regime_liquidity", silent)[warm_up_bars(("regime_liquidity",)) :]) == {0.5}


def test_a_price_that_stands_still_has_no_trend():
    still = dataclasses.replace(
        BARS, **{n: np.append(getattr(BARS, n)[:700], np.full(700, BARS.close[699]))
                 for n in ("open", "high", "low", "close")}
    )  # fmt: skip
    assert set(one("regime_trend", still)[840:]) == {0.0}


def test_symbols_enter_and_leave_the_universe():
    """A symbol counts from its first session to a few dates after its last."""
    young = dataclasses.replace(
        STOCKS[1],
        **{
            name: getattr(STOCKS[1], name)[350:700]
            for name in ("timestamps", "open", "high", "low", "close", "volume")
        },
    )
    series = [STOCKS[0], young]
    both = Universe.of(series, [sessions_of(each) for each in series])
    known = ~np.isnan(both.close)
    assert known[:, 0].all()
    assert np.flatnonzero(known[:, 1]).tolist() == list(range(50, 105))
    assert one("regime_breadth", universe=both).min() >= 0.0


# ------------------------------------------------------------------------------------ the mood


def test_the_age_and_the_number_of_texts_of_a_score():
    date = sessions_of(BARS).date
    first = int(np.flatnonzero(np.diff(date))[0]) + 1
    mood = DailySentiment(date[:1], np.array([0.4]), "test", "", count=np.array([19.0]))
    age, count, missing = (one(name, sentiment=mood) for name in MOOD[1:])
    assert (age[0], count[0], missing[0]) == (1.0, 0.0, 1.0)  # the day is not over yet
    gap = (date[first] - date[0]).astype(int)
    assert (age[first], count[first], missing[first]) == (gap / 7, np.log(20), 0.0)
    assert (age[-1], count[-1], missing[-1]) == (1.0, 0.0, 1.0)
    nothing = compute_features(BARS, names=MOOD)
    np.testing.assert_array_equal(nothing[0], [0.0, 1.0, 0.0, 1.0])
    assert (nothing == nothing[0]).all()


# ----------------------------------------------------------------------------- the command line


@pytest.fixture
def data(tmp_path):
    """Two stocks with the economy beside them, on disk."""
    for bars in STOCKS[:2]:
        path = tmp_path / "historical" / bars.symbol / "1Hour" / "data.parquet"
        path.parent.mkdir(parents=True)
        columns = {name: getattr(bars, name) for name in ("open", "high", "low", "close", "volume")}
        stamps = pa.array(bars.timestamps, pa.timestamp("us", "UTC"))
        pq.write_table(pa.table({"timestamp": stamps, **columns}), path)
    for name, series in economy().items():
        stored(tmp_path, name, date=pa.array(series.date), value=series.value)
    return tmp_path


def test_the_command_lists_every_feature(capsys):
    assert main(["data", "features"]) == 0
    listed = capsys.readouterr().out
    assert all(name[:12] in listed for name in FEATURES)
    assert "Hardouvelis" in listed


def test_the_command_computes_writes_and_probes(data, capsys, monkeypatch):
    names = ["regime_breadth", "regime_vix", "close"]
    command = ["data", "features", str(data), "--symbols", "AAA", "BBB", "--names", *names]
    assert main([*command, "--into", str(data), "--probes", "10"]) == 0
    assert capsys.readouterr().out.count("none found") == 6
    path = data / "features" / "AAA" / "1Hour" / "features.parquet"
    table = pq.read_table(path)
    assert table.column_names == ["timestamp", *names]
    pair = Universe.of(STOCKS[:2], [sessions_of(each) for each in STOCKS[:2]])
    np.testing.assert_array_equal(table["regime_breadth"], one("regime_breadth", universe=pair))
    sources = json.loads(table.schema.metadata[b"jaxtrader.features"])["sources"]
    assert [Path(each["file"]).name for each in sources] == ["data.parquet", "VIX.parquet"]

    honest = FEATURES["close"]

    def tomorrow(inputs):
        return np.roll(honest.compute(inputs), -1)

    monkeypatch.setitem(FEATURES, "close", dataclasses.replace(honest, compute=tomorrow))
    assert main([*command, "--probes", "10"]) == 1
    assert "in " in capsys.readouterr().out


def test_the_command_says_what_is_missing(data, capsys):
    (data / "macro" / "VIX.parquet").unlink()
    command = ["data", "features", str(data), "--symbols", "AAA", "--names", "regime_vix"]
    assert main(command) == 2
    assert main([*command[:-1], "nope"]) == 2
    assert main([*command[:-1], "close", "--probes", "-2"]) == 2
    assert main(command) == 2
    assert "leave the features that look at VIX out" in " ".join(capsys.readouterr().err.split())


# ----------------------------------------------------------------------------------- real data


@pytest.mark.real_data
@pytest.mark.skipif(DATA_DIR is None, reason="JAXTRADER_DATA_DIR is not set")
def test_real_bars_with_the_whole_of_their_surroundings():
    names = tuple(name for name in OURS if name != "sentiment_count")
    dataset = load_dataset(
        Path(str(DATA_DIR)), ["SPY", "QQQ"], feature_names=names, receptive_field=8
    )
    assert dataset.raw_features.shape[-1] == len(names)
    assert set(dataset.provenance["macro"]) == {m for n in names for m in FEATURES[n].macro}
    regime = [names.index(name) for name in REGIME]
    settled = dataset.raw_features[0, warm_up_bars(names) : dataset.n_bars[0]]
    assert np.isfinite(settled).all()
    assert settled[:, regime].min() >= 0.0
    assert settled[:, regime].max() <= 1.0
    inflation = settled[:, names.index("macro_inflation")]
    assert 0.02 < inflation.min() < inflation.max() < 0.09  # of 2022 to 2025
