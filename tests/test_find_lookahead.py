"""The look-ahead probe for features finds what has looked ahead, and registration is held to it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxtrader.data import (
    FEATURE_NAMES,
    Bars,
    DailySentiment,
    FeatureInputs,
    compute_features,
    feature,
    find_lookahead,
    synthetic_bars,
)
from jaxtrader.data.features import FEATURES, Feature
from jaxtrader.data.lookahead import noise_after
from jaxtrader.errors import ConfigError, DataError

BARS = synthetic_bars(sessions=130)
DAYS = np.unique(BARS.timestamps.astype("M8[D]"))
SCORES = DailySentiment(DAYS, np.random.default_rng(5).uniform(-1, 1, len(DAYS)), "test", "")


@pytest.fixture
def registry(monkeypatch):
    """Features that a test registers are gone after it."""
    for name in list(FEATURES):
        monkeypatch.setitem(FEATURES, name, FEATURES[name])
    before = set(FEATURES)
    yield FEATURES
    for name in set(FEATURES) - before:
        del FEATURES[name]


def registered(monkeypatch, compute, name: str = "mine", warm_up: int = 0) -> str:
    monkeypatch.setitem(FEATURES, name, Feature(name, compute, lambda timeframe: warm_up))
    return name


def shifted(original: Feature, bars: int) -> Feature:
    """The feature as it will be `bars` bars later; the last value stands for those that fail."""

    def compute(inputs: FeatureInputs) -> np.ndarray:
        values = original.compute(inputs)
        return np.concatenate([values[bars:], np.repeat(values[-1:], bars)])

    return Feature(original.name, compute, original.warm_up)


@pytest.mark.parametrize("bars", [1, 3])
@pytest.mark.parametrize("name", FEATURE_NAMES)
def test_a_feature_from_the_future_is_found(monkeypatch, name, bars):
    monkeypatch.setitem(FEATURES, name, shifted(FEATURES[name], bars))
    found = find_lookahead(BARS, sentiment=SCORES, probes=30)
    assert set(found) == {name}
    assert len(found[name]) >= 10
    assert np.all(np.diff(found[name]) > 0)


def test_no_feature_of_the_library_is_found():
    assert find_lookahead(BARS, sentiment=SCORES) == {}
    assert find_lookahead(BARS) == {}


def test_the_rows_named_are_those_that_knew(monkeypatch):
    """One bar of future: nothing but the probed bars themselves. All of it: everything."""
    name = registered(monkeypatch, lambda inputs: np.append(inputs.bars.close[1:], 1.0))
    rows = find_lookahead(BARS, (name,), probes=20)[name]
    assert 10 <= len(rows) <= 20
    name = registered(monkeypatch, lambda inputs: inputs.bars.close / inputs.bars.close.max())
    rows = find_lookahead(BARS, (name,), probes=20)[name]
    np.testing.assert_array_equal(rows, np.arange(rows[-1] + 1))
    assert rows[-1] > 0.8 * len(BARS)


@pytest.mark.parametrize(
    "compute",
    [
        lambda inputs: np.arange(len(inputs.bars)) / len(inputs.bars),  # how much data there is
        lambda inputs: np.arange(len(inputs.bars))[::-1] < 7.0,  # the last day of the data
        lambda inputs: np.append(np.diff(inputs.sessions.ordinal), 0),  # the session's last bar
        lambda inputs: inputs.bars.close / inputs.bars.close.mean(),
        lambda inputs: inputs.bars.close > np.median(inputs.bars.close),
        lambda inputs: np.append(inputs.bars.open[1:], inputs.bars.close[-1:]),  # the next open
        lambda inputs: np.gradient(inputs.bars.close),  # central differences
        lambda inputs: np.convolve(inputs.bars.volume, np.ones(3) / 3, "same"),
    ],
)
def test_quieter_ways_of_looking_ahead_are_found(monkeypatch, compute):
    assert find_lookahead(BARS, (registered(monkeypatch, compute),))


def test_a_score_of_the_same_day_is_found(monkeypatch):
    """The inputs' own scores are a day late, as they must be: read a day too early, they tell."""

    def same_day(inputs: FeatureInputs) -> np.ndarray:
        day = inputs.sessions.ordinal
        first_of_next = np.searchsorted(day, day + 1)
        return inputs.sentiment.score[np.minimum(first_of_next, len(day) - 1)]

    name = registered(monkeypatch, same_day)
    assert find_lookahead(BARS, (name,), SCORES)
    assert find_lookahead(BARS, (name,)) == {}  # no scores, nothing to know


def test_an_honest_feature_is_not_accused(monkeypatch):
    def expanding(inputs: FeatureInputs) -> np.ndarray:
        return inputs.bars.close / np.maximum.accumulate(inputs.bars.close)

    def since_open(inputs: FeatureInputs) -> np.ndarray:
        first = np.searchsorted(inputs.sessions.ordinal, inputs.sessions.ordinal)
        return np.log(inputs.bars.close / inputs.bars.open[first])

    for compute in (expanding, since_open):
        assert find_lookahead(BARS, (registered(monkeypatch, compute),), probes=400) == {}


def test_noise_leaves_the_past_alone_and_nothing_else():
    noisy = noise_after(BARS, 100)
    for name in ("open", "high", "low", "close", "volume"):
        old, new = getattr(BARS, name), getattr(noisy, name)
        np.testing.assert_array_equal(old[:101], new[:101])
        assert np.mean(old[101:] != new[101:]) > 0.99
    np.testing.assert_array_equal(BARS.timestamps, noisy.timestamps)
    np.testing.assert_array_equal(noisy.close, noise_after(BARS, 100).close)
    assert not np.array_equal(noisy.close, noise_after(BARS, 100, seed=1).close)


def momentum_5(inputs: FeatureInputs) -> np.ndarray:
    """It fails on fewer than five bars, as anything may that is registered with such a warm-up."""
    closes = inputs.bars.close
    return np.append(np.full(5, np.nan), np.log(closes[5:] / closes[:-5]))


@pytest.mark.parametrize("timeframe", ["1Min", "15Min", "1Hour"])
def test_no_feature_is_asked_about_bars_before_it_is_warm(monkeypatch, timeframe):
    """Found on 15-minute bars, where `return_1h` looks back four bars and some probes had fewer."""
    bars = dataclasses.replace(first_bars(150), timeframe=timeframe)
    name = registered(monkeypatch, momentum_5, warm_up=5)
    for seed in range(20):
        assert find_lookahead(bars, ("return_1h", name), probes=10, seed=seed) == {}


def first_bars(count: int) -> Bars:
    columns = ("timestamps", "open", "high", "low", "close", "volume")
    return dataclasses.replace(BARS, **{name: getattr(BARS, name)[:count] for name in columns})


def test_bars_without_a_past_or_a_future_cannot_be_probed():
    assert find_lookahead(first_bars(2), ("close",)) == {}
    with pytest.raises(DataError, match=r"of 1 bars none is warmed up .* give at least 2"):
        find_lookahead(first_bars(1), ("close",))
    with pytest.raises(DataError, match=r"of 34 bars none is warmed up .* give at least 35"):
        find_lookahead(first_bars(34), ("close", "macd_signal"))
    with pytest.raises(ConfigError, match="the nearest is 'close'"):
        find_lookahead(BARS, ("closed",))


# --------------------------------------------------------------------- features of one's own


def test_a_registered_function_is_a_feature(registry):
    @feature(warm_up=5)
    def momentum(inputs: FeatureInputs) -> np.ndarray:
        closes = inputs.bars.close
        return np.append(np.full(5, np.nan), np.log(closes[5:] / closes[:-5]))

    values = compute_features(BARS, names=("close", "momentum"))
    np.testing.assert_array_equal(np.isnan(values).sum(axis=0), [0, 5])
    assert values[-1, 1] == np.log(BARS.close[-1] / BARS.close[-6])
    assert "momentum" not in FEATURE_NAMES  # the default does not depend on what a script imports

    @feature(warm_up=0)
    def momentum(inputs: FeatureInputs) -> np.ndarray:  # noqa: F811, a notebook's cell run again
        return np.zeros(len(inputs.bars))

    assert not compute_features(BARS, names=("momentum",)).any()


def test_the_librarys_own_names_are_taken(registry):
    with pytest.raises(ConfigError, match=r"'close' is already defined in jaxtrader\.data\.feat"):

        @feature(warm_up=0)
        def close(inputs: FeatureInputs) -> np.ndarray:
            return inputs.bars.close

    assert np.abs(compute_features(BARS, names=("close",))).max() < 1.0


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda i: np.zeros(3), r"'mine' gave shape \(3,\) for 910 bars of SYNTH; return one"),
        (lambda i: np.zeros((910, 2)), r"gave shape \(910, 2\)"),
        (lambda i: np.where(np.arange(910) == 7, np.inf, 0), r"is inf at bar 7 of SYNTH \(1 such"),
        (lambda i: np.append(np.ones(909), np.nan), r"is nan at bar 909 .* after a warm-up of 4"),
    ],
)
def test_a_feature_is_one_finite_number_a_bar(monkeypatch, compute, message):
    with pytest.raises(DataError, match=message):
        compute_features(BARS, names=(registered(monkeypatch, compute, warm_up=4),))
    ones = registered(monkeypatch, lambda inputs: np.ones(len(inputs.bars), int))
    assert compute_features(BARS, names=(ones,)).dtype == np.float64
