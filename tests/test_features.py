"""Features: independent formulas, published values, and a proof by noise that none looks ahead."""

import dataclasses
import os

import numpy as np
import pandas as pd
import pytest

from jaxtrader.data import (
    FEATURE_NAMES,
    Bars,
    DailySentiment,
    compute_features,
    find_lookahead,
    read_bars,
    read_sentiment,
    sessions_of,
    synthetic_bars,
    warm_up_bars,
)
from jaxtrader.data.lookahead import noise_after
from jaxtrader.errors import ConfigError, DataError

DATA_DIR = os.environ.get("JAXTRADER_DATA_DIR")

GUIDE_ORDER = (
    "open", "high", "low", "close", "volume", "vwap", "sma_10", "sma_20", "macd", "macd_signal",
    "macd_hist", "rsi_14", "stoch_k", "stoch_d", "adx_14", "atr_14", "bollinger_bandwidth", "obv",
    "volume_sma_20", "return_1h", "sentiment", "day_of_week_sin", "day_of_week_cos",
)  # fmt: skip

# Wilder averages forget their start by (13/14) a bar: after this many bars how they started is
# below 1e-12 of them, and any way of starting gives the oracle's value.
SETTLED = 420


def stock() -> Bars:
    return synthetic_bars(sessions=130)


def coin() -> Bars:
    """Round the clock, with fractional volume, hours without trade and a stretch of flat prices."""
    bars = synthetic_bars("COIN", sessions=130)
    volume = bars.volume / 1e5 + 0.1
    volume[::5] = 0.0
    volume[400:460] = 0.0
    price = {name: getattr(bars, name).copy() for name in ("open", "high", "low", "close")}
    for values in price.values():
        values[600:640] = bars.close[600]
    return Bars("COIN", "1Hour", hourly(len(bars)), **price, volume=volume, source="", sha256="")


def hourly(rows: int) -> np.ndarray:
    return np.datetime64("2024-03-01T00:00", "us") + np.arange(rows) * np.timedelta64(1, "h")


def sentiment_for(bars: Bars) -> DailySentiment:
    days = np.unique(bars.timestamps.astype("M8[D]"))[::2]
    score = np.random.default_rng(5).uniform(-1, 1, len(days))
    return DailySentiment(days, score, "test", "")


def column(bars: Bars, name: str, **given) -> np.ndarray:
    return compute_features(bars, names=(name,), **given)[:, 0]


def cut(bars: Bars, rows: slice) -> Bars:
    names = ("timestamps", "open", "high", "low", "close", "volume")
    return dataclasses.replace(
        bars, **{name: getattr(bars, name)[rows] for name in names}, notes=()
    )


def test_names_and_order_are_the_guides():
    assert GUIDE_ORDER == FEATURE_NAMES
    assert len(FEATURE_NAMES) == 23
    assert warm_up_bars() == 33


@pytest.mark.parametrize(
    ("timeframe", "per_session", "expected"),
    [("1Hour", 7, 33), ("15Min", 26, 33), ("5Min", 78, 33), ("1Min", 390, 60), ("1Day", 1, 33)],
)
def test_warm_up_is_exactly_the_rows_that_are_not_numbers(timeframe, per_session, expected):
    bars = synthetic_bars(
        sessions=200 // per_session + 1, bars_per_session=per_session, timeframe=timeframe
    )
    features = compute_features(bars)
    assert features.dtype == np.float64
    for name, values in zip(FEATURE_NAMES, features.T, strict=True):
        rows = warm_up_bars((name,), timeframe)
        assert np.isnan(values[:rows]).all(), name
        assert np.isfinite(values[rows:]).all(), name
    assert warm_up_bars(timeframe=timeframe) == expected


def test_fewer_bars_than_the_warm_up_are_all_nan():
    features = compute_features(cut(stock(), slice(0, 5)))
    assert features.shape == (5, 23)
    assert np.isnan(features[:, FEATURE_NAMES.index("macd")]).all()
    assert np.isnan(features[:, FEATURE_NAMES.index("obv")]).all()


# --------------------------------------------------------------------------------- no look-ahead


@pytest.mark.parametrize("make", [stock, coin])
def test_no_feature_sees_a_later_bar(make):
    bars = make()
    score = sentiment_for(bars)
    features = compute_features(bars, score)
    for last in [*range(0, 80, 7), *range(80, len(bars) - 1, 37), len(bars) - 2]:
        other = compute_features(noise_after(bars, last, seed=last), score)
        for i, name in enumerate(FEATURE_NAMES):
            same = features[: last + 1, i].tobytes() == other[: last + 1, i].tobytes()
            assert same, f"{name} at bar {last} depends on later bars"
    assert not np.array_equal(features, other, equal_nan=True)
    assert find_lookahead(bars, sentiment=score) == {}


@pytest.mark.parametrize("make", [stock, coin])
def test_the_last_row_is_the_same_whether_or_not_more_bars_follow(make):
    bars = make()
    score = sentiment_for(bars)
    sessions = sessions_of(bars)
    features = compute_features(bars, score)
    for last in range(40, len(bars), 61):
        rows = slice(0, last + 1)
        known = dataclasses.replace(
            sessions, date=sessions.date[rows], ordinal=sessions.ordinal[rows]
        )
        live = compute_features(cut(bars, rows), score, sessions=known)
        assert live.tobytes() == features[rows].tobytes(), last


def test_the_beginning_of_the_series_is_forgotten():
    bars = stock()
    late = compute_features(cut(bars, slice(210, None)))
    np.testing.assert_allclose(
        late[SETTLED:], compute_features(bars)[210 + SETTLED :], rtol=0, atol=1e-9
    )


def test_a_score_serves_later_sessions_only():
    bars = stock()
    sessions = sessions_of(bars).date
    days = np.unique(sessions)
    score = DailySentiment(days, np.linspace(-0.9, 0.9, len(days)), "test", "")
    before = compute_features(bars, score)
    for day in days[[0, 3, 50, -2]]:
        changed = score.score.copy()
        changed[days == day] = 0.987
        after = compute_features(bars, dataclasses.replace(score, score=changed))
        moved = np.flatnonzero((before != after) & ~np.isnan(before))
        rows, columns = np.unravel_index(moved, before.shape)
        assert set(columns) == {FEATURE_NAMES.index("sentiment")}
        assert (sessions[rows] > day).all()
        np.testing.assert_array_equal(np.unique(sessions[rows]), [days[days > day][0]])


def test_a_score_expires_after_seven_days():
    bars = coin()
    day = np.datetime64("2024-03-10")
    score = DailySentiment(np.array([day]), np.array([0.4]), "test", "")
    values = column(bars, "sentiment", sentiment=score)
    dates = bars.timestamps.astype("M8[D]")
    served = (dates > day) & (dates <= day + 7)
    assert served.sum() == 7 * 24
    np.testing.assert_array_equal(values, np.where(served, 0.4, 0.0))


def test_scores_of_a_weekend_serve_monday():
    bars = stock()  # begins Monday 2000-01-03
    score = DailySentiment(np.array(["2000-01-08"], "M8[D]"), np.array([0.5]), "test", "")
    values = column(bars, "sentiment", sentiment=score)
    served = np.unique(bars.timestamps.astype("M8[D]")[values == 0.5]).astype(str)
    assert served.tolist() == [f"2000-01-{day}" for day in (10, 11, 12, 13, 14)]


def test_without_sentiment_the_feature_is_zero():
    np.testing.assert_array_equal(column(stock(), "sentiment"), 0.0)


# ------------------------------------------------------------------------- independent formulas


def test_ratios_of_one_bar_by_hand():
    times = hourly(2)
    rows = np.array([[10.0, 13.0, 9.0, 11.0, 99.0], [12.0, 14.0, 11.0, 13.0, 399.0]])
    bars = Bars("X", "1Hour", times, *rows.T, source="", sha256="")
    wanted = {
        "open": 12 / 11, "high": 14 / 13, "low": 11 / 13, "close": 13 / 12, "volume": 400 / 100,
        "return_1h": 13 / 11,
        "vwap": 13 / ((99 * 11 + 399 * (14 + 11 + 13) / 3) / (99 + 399)),
    }  # fmt: skip
    for name, ratio in wanted.items():
        assert column(bars, name)[1] == pytest.approx(np.log(ratio), abs=1e-14), name


def wilder(values: pd.Series) -> pd.Series:
    return values.ewm(alpha=1 / 14, adjust=False).mean()


def true_range(high: pd.Series, low: pd.Series, before: pd.Series) -> pd.Series:
    return pd.concat([high, before], axis=1).max(axis=1) - pd.concat([low, before], axis=1).min(
        axis=1
    )


def oracles(bars: Bars) -> dict[str, pd.Series]:
    """The indicators from their definitions, in pandas."""
    o, h, low, c, v = (
        pd.Series(getattr(bars, name)) for name in ("open", "high", "low", "close", "volume")
    )
    line = c.ewm(span=12, adjust=False).mean() - c.ewm(span=26, adjust=False).mean()
    signal = line.ewm(span=9, adjust=False).mean()
    change = c.diff()
    gain, loss = wilder(change.clip(lower=0).fillna(0)), wilder((-change).clip(lower=0).fillna(0))
    fast_k = 100 * (c - low.rolling(14).min()) / (h.rolling(14).max() - low.rolling(14).min())
    slow_k = fast_k.rolling(3).mean()
    up, down = h.diff(), -low.diff()
    plus = wilder(up.where((up > down) & (up > 0), 0.0))
    minus = wilder(down.where((down > up) & (down > 0), 0.0))
    on_balance = (np.sign(change).fillna(0) * v).cumsum()
    return {
        "open": np.log(o) - np.log(c.shift()),
        "high": np.log(h) - np.log(c),
        "low": np.log(low) - np.log(c),
        "close": np.log(c) - np.log(o),
        "volume": np.log1p(v).diff(),
        "sma_10": np.log(c) - np.log(c.rolling(10).mean()),
        "sma_20": np.log(c) - np.log(c.rolling(20).mean()),
        "macd": line / c,
        "macd_signal": signal / c,
        "macd_hist": (line - signal) / c,
        "rsi_14": (100 - 100 / (1 + gain / loss)) / 100 - 0.5,
        "stoch_k": slow_k / 100 - 0.5,
        "stoch_d": slow_k.rolling(3).mean() / 100 - 0.5,
        "adx_14": wilder(((plus - minus).abs() / (plus + minus)).fillna(0)),
        "atr_14": wilder(true_range(h, low, c.shift())) / c,
        "bollinger_bandwidth": 4 * c.rolling(20).std(ddof=0) / c.rolling(20).mean(),
        "obv": on_balance.diff(20) / v.rolling(20).sum(),
        "volume_sma_20": np.log1p(v) - np.log1p(v.rolling(20).mean()),
        "return_1h": np.log(c).diff(),
    }


@pytest.mark.parametrize("name", [n for n in FEATURE_NAMES if n in oracles(stock())])
def test_against_the_definition(name):
    bars = stock()
    np.testing.assert_allclose(
        column(bars, name)[SETTLED:], oracles(bars)[name].to_numpy()[SETTLED:], rtol=0, atol=1e-10
    )


def test_rsi_of_the_published_example():
    # StockCharts ChartSchool, "Relative Strength Index", spreadsheet of 33 closes of QQQQ.
    closes = np.array(
        [
            44.3389, 44.0902, 44.1497, 43.6124, 44.3278, 44.8264, 45.0955, 45.4245, 45.8433,
            46.0826, 45.8931, 46.0328, 45.6140, 46.2820, 46.2820, 46.0028, 46.0328, 46.4116,
            46.2222, 45.6439, 46.2122, 46.2521, 45.7137, 46.4515, 45.7835, 45.3548, 44.0288,
            44.1783, 44.2181, 44.5672, 43.4205, 42.6628, 43.1314,
        ]
    )  # fmt: skip
    published = [
        70.53, 66.32, 66.55, 69.41, 66.36, 57.97, 62.93, 63.26, 56.06, 62.38, 54.71, 50.42,
        39.99, 41.46, 41.87, 45.46, 37.30, 33.08, 37.77,
    ]  # fmt: skip
    bars = Bars("QQQQ", "1Day", hourly(33), closes, closes, closes, closes, closes, "", "")
    rsi = (column(bars, "rsi_14") + 0.5) * 100
    np.testing.assert_allclose(rsi[14:], published, atol=0.006)


def test_vwap_by_a_plain_loop_that_starts_again_each_session():
    bars = coin()
    values = column(bars, "vwap")
    today, money, shares, prices = None, 0.0, 0.0, []
    for t in range(len(bars)):
        date = bars.timestamps[t].astype("M8[D]")
        if date != today:
            today, money, shares, prices = date, 0.0, 0.0, []
        typical = (bars.high[t] + bars.low[t] + bars.close[t]) / 3
        money += typical * bars.volume[t]
        shares += bars.volume[t]
        prices.append(typical)
        average = money / shares if shares > 0 else sum(prices) / len(prices)
        assert values[t] == pytest.approx(np.log(bars.close[t] / average), abs=1e-12), t


def test_an_hour_of_bars_is_four_quarters():
    bars = synthetic_bars(sessions=3, bars_per_session=26, timeframe="15Min")
    values = column(bars, "return_1h")
    np.testing.assert_allclose(values[4:], np.log(bars.close[4:] / bars.close[:-4]), atol=1e-15)


def test_day_of_week_is_that_of_the_session():
    bars = stock()
    angle = np.arctan2(column(bars, "day_of_week_sin"), column(bars, "day_of_week_cos"))
    days = np.round(angle / (2 * np.pi) * 7) % 7
    assert days[:35:7].tolist() == [0, 1, 2, 3, 4]  # from Monday 2000-01-03
    np.testing.assert_array_equal(days.reshape(-1, 7), days.reshape(-1, 7)[:, :1] * np.ones(7))
    utc_days = pd.DatetimeIndex(coin().timestamps).day_of_week
    sine = column(coin(), "day_of_week_sin")
    np.testing.assert_allclose(sine, np.sin(utc_days * 2 * np.pi / 7), atol=1e-15)


# ------------------------------------------------------------------------------------ properties


def test_nothing_depends_on_the_unit_of_price():
    bars = stock()
    doubled = {name: getattr(bars, name) * 1024 for name in ("open", "high", "low", "close")}
    np.testing.assert_allclose(
        compute_features(dataclasses.replace(bars, **doubled)), compute_features(bars), atol=1e-12
    )


def test_little_depends_on_the_unit_of_volume():
    bars = stock()
    tenth = compute_features(dataclasses.replace(bars, volume=bars.volume / 8))
    np.testing.assert_allclose(tenth, compute_features(bars), atol=2e-4)


@pytest.mark.parametrize("pattern", ["never", "seldom", "once"])
def test_bars_without_volume_give_numbers(pattern):
    bars = stock()
    volume = np.zeros(len(bars))
    if pattern == "seldom":
        volume[::50] = 1e9 / 3
    if pattern == "once":
        volume[100] = 1e15
    features = compute_features(dataclasses.replace(bars, volume=volume))
    assert np.isfinite(features[warm_up_bars() :]).all()
    change = features[20:, FEATURE_NAMES.index("obv")]
    assert (np.abs(change) <= 1).all()
    if pattern == "once":
        np.testing.assert_array_equal(np.flatnonzero(change) + 20, np.arange(100, 120))


def test_a_price_that_never_moves_gives_numbers():
    price = np.full(200, 31.7)
    bars = Bars("FLAT", "1Hour", hourly(200), price, price, price, price, np.zeros(200), "", "")
    features = compute_features(bars)[warm_up_bars() :]
    assert np.isfinite(features).all()
    assert np.abs(features).max() <= 1


def test_extreme_prices_give_numbers():
    for factor in (1e-7, 1e7):
        bars = stock()
        scaled = {name: getattr(bars, name) * factor for name in ("open", "high", "low", "close")}
        features = compute_features(dataclasses.replace(bars, **scaled))
        assert np.isfinite(features[warm_up_bars() :]).all()


def test_a_choice_of_features_keeps_its_order():
    bars = stock()
    names = ("rsi_14", "open")
    chosen = compute_features(bars, names=names)
    everything = compute_features(bars)
    for i, name in enumerate(names):
        np.testing.assert_array_equal(chosen[:, i], everything[:, FEATURE_NAMES.index(name)])
    assert warm_up_bars(names) == 14


def test_unknown_or_repeated_features_are_named():
    with pytest.raises(ConfigError, match="unknown feature 'rsi'; the nearest is 'rsi_14'"):
        compute_features(stock(), names=("open", "rsi"))
    with pytest.raises(ConfigError, match="'open' is named twice"):
        warm_up_bars(("open", "open"))
    with pytest.raises(ConfigError, match="no features named"):
        compute_features(stock(), names=())


# ------------------------------------------------------------------------------- sentiment files


def store_sentiment(folder, **columns):
    (folder / "historical").mkdir(exist_ok=True)
    path = folder / "sentiment" / "SPY" / "daily_sentiment.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_parquet(path, index=False)
    return path


def test_sentiment_is_read_sorted_and_averaged(tmp_path):
    dates = pd.to_datetime(["2024-01-03", "2024-01-02", "2024-01-03", "2024-01-05"])
    scores = [0.5, -0.25, 1.0, 0.0]
    for stored in (dates.date, dates, dates.tz_localize("UTC")):
        path = store_sentiment(tmp_path, date=stored, sentiment_score=scores)
        sentiment = read_sentiment(tmp_path, "SPY")
        assert sentiment is not None
        assert sentiment.date.astype(str).tolist() == ["2024-01-02", "2024-01-03", "2024-01-05"]
        assert sentiment.score.tolist() == [-0.25, 0.75, 0.0]
        assert sentiment.source == str(path)
        assert sentiment.notes == ("1 sentiment rows repeat a date: averaged",)


def test_a_symbol_without_sentiment_is_none(tmp_path):
    (tmp_path / "historical").mkdir()
    assert read_sentiment(tmp_path, "SPY") is None
    with pytest.raises(DataError, match="not a symbol"):
        read_sentiment(tmp_path, "../SPY")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"date": pd.to_datetime(["2024-01-02"])}, "'sentiment_score' is missing"),
        ({"date": [1], "sentiment_score": [0.1]}, "'date' holds int64"),
        ({"date": pd.to_datetime(["2024-01-02 16:00"]), "sentiment_score": [0.1]}, "whole day"),
        ({"date": pd.to_datetime([None]), "sentiment_score": [0.1]}, "row 0, column 'date'"),
        ({"date": pd.to_datetime(["2024-01-02"]), "sentiment_score": ["good"]}, "holds .*string"),
        ({"date": pd.to_datetime(["2024-01-02"]), "sentiment_score": [np.nan]}, "row 0.*nan"),
        ({"date": pd.to_datetime(["2024-01-02"]), "sentiment_score": [1.5]}, r"not in \[-1, 1\]"),
    ],
)
def test_malformed_sentiment_is_refused_by_name(tmp_path, columns, message):
    path = store_sentiment(tmp_path, **columns)
    with pytest.raises(DataError, match=message) as caught:
        read_sentiment(tmp_path, "SPY")
    assert str(path) in str(caught.value)


@pytest.mark.real_data
@pytest.mark.skipif(DATA_DIR is None, reason="JAXTRADER_DATA_DIR is not set")
def test_real_features_of_spy():
    bars = read_bars(DATA_DIR, "SPY")
    features = compute_features(bars, read_sentiment(DATA_DIR, "SPY"))
    assert np.isfinite(features[warm_up_bars() :]).all()
    expected = oracles(bars)
    for name in ("macd", "rsi_14", "adx_14", "atr_14", "stoch_d", "obv"):
        values = features[SETTLED:, FEATURE_NAMES.index(name)]
        np.testing.assert_allclose(values, expected[name][SETTLED:], rtol=0, atol=1e-10)
