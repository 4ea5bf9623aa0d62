"""Datasets: no future in scaler or features, no NaN within reach, every source named."""

import dataclasses
import hashlib
import json
import os
import pathlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtrader.data import (
    FEATURE_NAMES,
    Bars,
    Dataset,
    Scaler,
    compute_features,
    dataset_from_bars,
    load_dataset,
    sessions_of,
    synthetic_bars,
    synthetic_dataset,
)
from jaxtrader.data.markets import split_market
from jaxtrader.errors import ConfigError, DataError

DATA_DIR = os.environ.get("JAXTRADER_DATA_DIR")
COLUMNS = ("open", "high", "low", "close", "volume")


def cut(bars: Bars, rows: slice) -> Bars:
    kept = {name: getattr(bars, name)[rows] for name in ("timestamps", *COLUMNS)}
    return dataclasses.replace(bars, **kept, notes=())


def two_stocks() -> list[Bars]:
    """One of 2100 bars, and one listed later that also ends earlier."""
    return [
        synthetic_bars("AAA", sessions=300),
        cut(synthetic_bars("BBB", sessions=300), slice(350, 2000)),
    ]


def store(folder: pathlib.Path, bars: Bars, scores: dict[str, float] | None = None) -> pathlib.Path:
    path = folder / "historical" / bars.symbol / bars.timeframe / "data.parquet"
    path.parent.mkdir(parents=True)
    stamps = pd.DatetimeIndex(bars.timestamps).tz_localize("UTC")
    table = pd.DataFrame({"timestamp": stamps} | {name: getattr(bars, name) for name in COLUMNS})
    table.to_parquet(path, index=False)
    if scores is not None:
        beside = folder / "sentiment" / bars.symbol / "daily_sentiment.parquet"
        beside.parent.mkdir(parents=True)
        days = pd.to_datetime(list(scores)).date
        pd.DataFrame({"date": days, "sentiment_score": list(scores.values())}).to_parquet(beside)
    return path


def test_shapes_types_and_padding():
    bars = two_stocks()
    data = dataset_from_bars(bars)
    assert data.symbols == ("AAA", "BBB")
    assert data.n_bars.tolist() == [2100, 1650]
    assert data.raw_features.shape == (2, 2100, 23)
    expected = {
        "timestamps": np.int64, "n_bars": np.int32, "open": np.float64, "high": np.float64,
        "low": np.float64, "close": np.float64, "volume": np.float64, "tradable": np.bool_,
        "session": np.int32, "raw_features": np.float32, "periods_per_year": np.int32,
    }  # fmt: skip
    for name, kind in expected.items():
        array = getattr(data, name)
        assert array.dtype == kind, name
        assert not array.flags.writeable, name
    for s, series in enumerate(bars):
        n = len(series)
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(data, name)[s, :n], getattr(series, name))
        stamps = data.timestamps[s, :n].astype("M8[us]")
        np.testing.assert_array_equal(stamps, series.timestamps)
        np.testing.assert_array_equal(data.session[s, :n], sessions_of(series).ordinal)
        assert data.tradable[s, :n].all()
    assert (data.timestamps[1, 1650:] == -1).all()
    assert (data.close[1, 1650:] == bars[1].close[-1]).all()
    assert (data.volume[1, 1650:] == 0).all()
    assert not data.tradable[1, 1650:].any()
    assert (data.session[1, 1650:] == data.session[1, 1649]).all()
    assert np.isnan(data.raw_features[1, 1650:]).all()
    assert (np.diff(data.session, axis=1) >= 0).all()


def test_features_are_those_of_each_symbol():
    bars = two_stocks()
    data = dataset_from_bars(bars)
    for s, series in enumerate(bars):
        wanted = compute_features(series).astype(np.float32)
        np.testing.assert_array_equal(data.raw_features[s, : len(series)], wanted)


@pytest.mark.parametrize("receptive_field", [1, 24, 64])
def test_no_observation_of_any_split_holds_nan(receptive_field):
    data = dataset_from_bars(two_stocks(), receptive_field=receptive_field)
    for first, last in data.splits.values():
        for s in range(2):
            window = data.raw_features[s, first[s] - receptive_field + 1 : last[s] + 1]
            assert np.isfinite(window).all()
            assert last[s] < data.n_bars[s]
    train = data.splits["train"][0]
    assert np.isnan(data.raw_features[0, train[0] - receptive_field]).any()


def change_bar(bars: Bars, row: int) -> Bars:
    higher = bars.high.copy()
    higher[row] *= 1.01
    return dataclasses.replace(bars, high=higher)


def test_the_scaler_knows_the_training_rows_only():
    bars = two_stocks()
    data = dataset_from_bars(bars)
    last = data.splits["train"][1]
    for s in range(2):
        changed = list(bars)
        changed[s] = change_bar(bars[s], last[s] + 1)
        same = dataset_from_bars(changed).scaler
        assert same.mean.tobytes() == data.scaler.mean.tobytes()
        assert same.scale.tobytes() == data.scaler.scale.tobytes()
        changed[s] = change_bar(bars[s], last[s])
        assert not np.array_equal(dataset_from_bars(changed).scaler.mean, data.scaler.mean)


def test_the_scaler_is_the_mean_and_deviation_of_all_symbols_together():
    data = dataset_from_bars(two_stocks())
    rows = pd.concat(
        [pd.DataFrame(data.raw_features[s, 33 : data.splits["train"][1][s] + 1]) for s in range(2)]
    ).astype(float)
    np.testing.assert_allclose(data.scaler.mean, rows.mean(), rtol=1e-10, atol=1e-15)
    deviation = rows.std(ddof=0).where(lambda std: std > 0, 1.0)  # no sentiment: constant
    np.testing.assert_allclose(data.scaler.scale, deviation, rtol=1e-10)


def test_symbols_share_the_moments_at_which_splits_begin():
    data = dataset_from_bars(two_stocks())
    for earlier, later in (("train", "validation"), ("validation", "test")):
        ends = data.timestamps[np.arange(2), data.splits[earlier][1]]
        starts = data.timestamps[np.arange(2), data.splits[later][0]]
        assert ends.max() < starts.min()
    assert data.provenance["notes"] == []


def test_symbols_on_their_own_clocks_note_the_overlap():
    bars = [
        cut(synthetic_bars("OLD", sessions=600), slice(0, 2000)),
        cut(synthetic_bars("NEW", sessions=600), slice(2000, None)),
    ]
    with pytest.raises(DataError, match=r"OLD \(synthetic.*split_clock='own'"):
        dataset_from_bars(bars)
    data = dataset_from_bars(bars, split_clock="own")
    notes = data.provenance["notes"]
    assert len(notes) == 3
    assert notes[0].startswith("validation of OLD begins")
    assert "before train of NEW ends" in notes[0]
    assert any("not out of sample" in line for line in data.describe())


def test_the_fingerprint_follows_the_content():
    bars = two_stocks()
    base = dataset_from_bars(bars)
    assert len(base.fingerprint) == 64
    assert dataset_from_bars(two_stocks()).fingerprint == base.fingerprint
    moved = [dataclasses.replace(each, source="elsewhere") for each in bars]
    assert dataset_from_bars(moved).fingerprint == base.fingerprint
    others = [
        dataset_from_bars([bars[0], change_bar(bars[1], 1649)]),
        dataset_from_bars([bars[0], dataclasses.replace(bars[1], symbol="CCC")]),
        dataset_from_bars([dataclasses.replace(each, synthetic=False) for each in bars]),
        dataset_from_bars(bars, receptive_field=31),
        dataset_from_bars(bars, fractions=(0.6, 0.2, 0.2)),
        dataset_from_bars(bars, feature_names=FEATURE_NAMES[:-1]),
        dataset_from_bars(bars[::-1]),
    ]
    assert len({data.fingerprint for data in [base, *others]}) == 1 + len(others)


@pytest.mark.parametrize("fractions", [(0.7, 0.15, 0.15), (0.6, 0.15, 0.25), (0.6, 0.25, 0.15)])
def test_a_split_as_a_market_holds_its_bars_and_its_history_scaled(fractions):
    data = dataset_from_bars(two_stocks(), fractions=fractions)
    shapes = {split: split_market(data, split)[0].features.shape for split in data.splits}
    assert shapes["validation"] == shapes["test"]  # one compiled pass serves both
    history = data.receptive_field - 1
    for split in ("train", "validation", "test"):
        market, first, last = split_market(data, split)
        for s in range(2):
            begin, end = (int(bars[s]) for bars in data.splits[split])
            rows = slice(begin - history, end + 1)
            assert (first[s], last[s]) == (history, end - begin + history)
            own = slice(0, last[s] + 1)
            for name in ("open", "close"):
                values = np.asarray(getattr(market, name))[s, own]
                assert values.dtype == np.float32
                np.testing.assert_array_equal(values, getattr(data, name)[s, rows].astype("f4"))
            np.testing.assert_array_equal(market.session[s, own], data.session[s, rows])
            features = np.asarray(market.features)
            assert np.isfinite(features).all()
            assert not np.asarray(market.tradable)[s, last[s] + 1 :].any()
            kept = np.abs(features[s, own]) < 5
            restored = features[s, own] * data.scaler.scale + data.scaler.mean
            raw = data.raw_features[s, rows]
            np.testing.assert_allclose(restored[kept], raw[kept], rtol=1e-5, atol=1e-6)
            assert kept.mean() > 0.99


def test_synthetic_data_says_that_it_is():
    data = synthetic_dataset(("A", "B"), seed=3, sessions=200)
    assert data.provenance["kind"] == "synthetic"
    lines = data.describe()
    assert lines[0].startswith("SYNTHETIC data: 2 symbols, 2,800 bars of 1Hour, 23 features")
    assert data.fingerprint[:12] in lines[0]
    np.testing.assert_array_equal(data.close[0], synthetic_bars("A", 3, 200).close)
    assert synthetic_dataset(("A",), seed=4, sessions=200).fingerprint != data.fingerprint


def test_a_folder_becomes_a_dataset(tmp_path):
    source = synthetic_bars("SPY", sessions=300)
    path = store(tmp_path, source, {"2000-01-04": 0.5, "2000-01-05": -0.5})
    data = load_dataset(tmp_path, ["SPY"], receptive_field=24)
    assert data.provenance["kind"] == "real"
    origin = data.provenance["symbols"]["SPY"]
    assert origin["source"] == str(path)
    assert origin["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert origin["first_timestamp"] == "2000-01-03T14:30:00Z"
    assert origin["bars"] == 2100
    assert origin["sentiment"]["source"].endswith("sentiment/SPY/daily_sentiment.parquet")
    assert origin["notes"] == [
        "sentiment of 2000-01-04 to 2000-01-05 serves 2 % of the bars; "
        "in the others the feature is 0"
    ]
    np.testing.assert_array_equal(data.close[0], source.close)
    served = data.raw_features[0, :, FEATURE_NAMES.index("sentiment")]
    # 0.5 on Wednesday 5 January; -0.5 from Thursday 6 to Wednesday 12, seven days old.
    assert served[:77:7].tolist() == [0, 0, 0.5, -0.5, -0.5, -0.5, -0.5, -0.5, 0, 0, 0]
    assert json.loads(json.dumps(data.provenance)) == data.provenance
    assert data.describe() == [
        f"REAL data: 1 symbol, 2,100 bars of 1Hour, 23 features, receptive field 24 bars, "
        f"fingerprint {data.fingerprint[:12]}",
        f"SPY: 2,100 bars, 2000-01-03 to 2001-03-12, from {path}",
        "  train: 1,431 bars (56 to 1486), 2000-01-13 to 2000-11-02",
        "  validation: 282 bars (1511 to 1792), 2000-11-07 to 2001-01-08",
        "  test: 283 bars (1817 to 2099), 2001-01-11 to 2001-03-12",
        f"  note: {origin['notes'][0]}",
    ]


def test_missing_sentiment_is_recorded(tmp_path):
    store(tmp_path, synthetic_bars("SPY", sessions=300))
    origin = load_dataset(tmp_path, ["SPY"]).provenance["symbols"]["SPY"]
    assert origin["sentiment"] is None
    assert origin["notes"] == ["no sentiment: the feature is 0"]
    without = tuple(name for name in FEATURE_NAMES if name != "sentiment")
    data = load_dataset(tmp_path, ["SPY"], feature_names=without)
    assert data.provenance["symbols"]["SPY"]["notes"] == []
    assert data.raw_features.shape == (1, 2100, 22)


def test_symbols_that_do_not_go_together_are_refused(tmp_path):
    bars = synthetic_bars(sessions=200)
    with pytest.raises(DataError, match="no symbols given"):
        dataset_from_bars([])
    with pytest.raises(DataError, match="SYNTH is given twice"):
        dataset_from_bars([bars, bars])
    with pytest.raises(DataError, match="15Min, 1Hour in one dataset"):
        dataset_from_bars([bars, synthetic_bars("B", 0, 200, 7, "15Min")])
    with pytest.raises(DataError, match="real and synthetic"):
        dataset_from_bars([bars, dataclasses.replace(bars, symbol="B", synthetic=False)])
    with pytest.raises(DataError, match=r"SYNTH .*1400 bars leave .*each split needs 300"):
        dataset_from_bars([bars], minimum_bars=300)
    for clock, name in (("own", r"SYNTH \(synthetic"), ("shared", r"SYNTH \(synth.*, B \(synth")):
        short = [cut(bars, slice(0, 40)), cut(synthetic_bars("B", sessions=200), slice(0, 40))]
        with pytest.raises(DataError, match=f"^{name}.*: no bar is left after the warm-up"):
            dataset_from_bars(short, split_clock=clock)
    with pytest.raises(ConfigError, match="split_clock 'theirs'"):
        dataset_from_bars([bars], split_clock="theirs")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="unknown feature"):
        synthetic_dataset(feature_names=("opne",))


# --------------------------------------------------------------------------------------- scaler

numbers = st.floats(-1e6, 1e6, allow_subnormal=False)


def test_a_scaler_by_hand():
    scaler = Scaler.fit(np.array([[1.0, 7.0], [3.0, 7.0], [5.0, 7.0], [7.0, 7.0]]), clip=2.0)
    assert scaler.mean.tolist() == [4.0, 7.0]
    assert scaler.scale.tolist() == [5**0.5, 1.0]
    values = scaler.transform(np.array([[4.0, 7.0], [1e9, 8.0], [-1e9, np.nan]]))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, np.array([[0, 0], [2, 1], [-2, np.nan]], np.float32))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30))
def test_a_scaler_survives_json_bit_for_bit(rows):
    scaler = Scaler.fit(np.array(rows))
    again = Scaler.from_dict(json.loads(json.dumps(scaler.to_dict())))
    assert again.mean.tobytes() == scaler.mean.tobytes()
    assert again.scale.tobytes() == scaler.scale.tobytes()
    assert again.clip == scaler.clip
    scaled = scaler.transform(np.array(rows))
    assert np.isfinite(scaled).all()
    assert np.abs(scaled).max() <= 5


def test_a_feature_that_never_changes_becomes_zero():
    rows = np.full((1000, 1), np.float32(0.1), np.float64)
    np.testing.assert_allclose(Scaler.fit(rows).transform(rows), 0, atol=1e-12)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": [0.0], "scale": [1.0]}, "needs the keys"),
        ({"mean": [0.0], "scale": [1.0, 2.0], "clip": 5}, "differ"),
        ({"mean": [0.0], "scale": [0.0], "clip": 5}, "above 0"),
        ({"mean": [0.0], "scale": [1.0], "clip": -1}, "above 0"),
        ({"mean": [float("nan")], "scale": [1.0], "clip": 5}, "finite"),
        ({"mean": ["x"], "scale": [1.0], "clip": 5}, "must be numbers"),
    ],
)
def test_a_damaged_scaler_is_refused(values, message):
    with pytest.raises(DataError, match=message):
        Scaler.from_dict(values)


def test_a_scaler_is_fitted_on_numbers_and_keeps_to_its_features():
    with pytest.raises(DataError, match=r"training row 1, feature 0 is nan; leave the warm-up"):
        Scaler.fit(np.array([[0.0, 1.0], [np.nan, 1.0]]))
    with pytest.raises(DataError, match="needs rows"):
        Scaler.fit(np.empty((0, 2)))
    with pytest.raises(DataError, match="made for 1 features"):
        Scaler.fit(np.ones((3, 1))).transform(np.ones((3, 2)))


# ------------------------------------------------------------------------------------ real data


@pytest.fixture(scope="module")
def real() -> Dataset:
    if DATA_DIR is None:
        pytest.skip("JAXTRADER_DATA_DIR is not set")
    return load_dataset(DATA_DIR, ["SPY", "QQQ", "MSFT"], minimum_bars=200)


@pytest.mark.real_data
def test_a_real_dataset_is_finite_in_reach_and_traceable(real):
    assert real.describe()[0].startswith("REAL data: 3 symbols")
    for first, last in real.splits.values():
        for s in range(3):
            window = real.raw_features[s, first[s] - real.receptive_field + 1 : last[s] + 1]
            assert np.isfinite(real.scaler.transform(window)).all()
    for symbol in real.symbols:
        origin = real.provenance["symbols"][symbol]
        content = pathlib.Path(origin["source"]).read_bytes()
        assert origin["sha256"] == hashlib.sha256(content).hexdigest()
    assert real.periods_per_year.tolist() == [252] * 3


@pytest.mark.real_data
def test_few_real_values_are_clipped(real):
    scaled = real.scaler.transform(real.raw_features)
    share = np.mean(np.abs(scaled[np.isfinite(scaled)]) >= real.scaler.clip)
    assert share < 0.01
