"""Splits: in time order, apart by the embargo, and no window reaches into an earlier split."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtrader.data import chronological_splits, split_boundaries
from jaxtrader.errors import ConfigError, DataError

START = np.datetime64("2024-01-01", "us")


def clock(bars: int, step_hours: int = 1) -> np.ndarray:
    return START + np.arange(bars) * np.timedelta64(step_hours, "h")


def split(bars: int, fractions=(0.7, 0.15, 0.15), warm_up=33, receptive_field=32, **given):
    times = clock(bars)
    boundaries = split_boundaries([times[warm_up + receptive_field - 1 :]], fractions)
    return chronological_splits(
        times, boundaries, warm_up=warm_up, receptive_field=receptive_field, **given
    )


def test_a_thousand_bars_by_hand():
    # Bars 33 to 64 are the first full window; 936 bars remain; 0.7 of them are 655.
    train, validation, test = split(1000)
    assert (train.name, train.first_bar, train.last_bar) == ("train", 64, 718)
    assert (validation.name, validation.first_bar, validation.last_bar) == ("validation", 751, 859)
    assert (test.name, test.first_bar, test.last_bar) == ("test", 892, 999)
    assert [len(part) for part in (train, validation, test)] == [655, 109, 108]


shares = st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))


@settings(max_examples=200, deadline=None)
@given(
    bars=st.integers(50, 3000),
    warm_up=st.integers(0, 60),
    receptive_field=st.integers(1, 64),
    minimum_bars=st.integers(2, 300),
    weights=shares,
)
def test_no_window_holds_a_bar_of_an_earlier_split(
    bars, warm_up, receptive_field, minimum_bars, weights
):
    fractions = tuple(weight / sum(weights) for weight in weights)
    usable = max(bars - (warm_up + receptive_field - 1), 0)
    sizes = np.array(fractions) * usable - [0, receptive_field, receptive_field]
    try:
        parts = split(bars, fractions, warm_up, receptive_field, minimum_bars=minimum_bars)
    except DataError:
        assert sizes.min() < minimum_bars + 2
        return
    assert [part.name for part in parts] == ["train", "validation", "test"]
    assert parts[0].first_bar == warm_up + receptive_field - 1
    assert parts[-1].last_bar == bars - 1
    for earlier, later in itertools.pairwise(parts):
        assert later.first_bar - receptive_field + 1 > earlier.last_bar
        assert later.first_bar - earlier.last_bar - 1 == receptive_field
    for part, size in zip(parts, sizes, strict=True):
        assert len(part) >= minimum_bars
        assert abs(len(part) - size) <= 1.5


def test_symbols_that_share_boundaries_never_train_on_anothers_test_days():
    long, late = clock(2000), clock(2400)[900:]
    boundaries = split_boundaries([long[64:], late[64:]])
    parts = [
        chronological_splits(times, boundaries, warm_up=33, receptive_field=32)
        for times in (long, late)
    ]
    for i in range(2):
        last = max(times[p[i].last_bar] for times, p in zip((long, late), parts, strict=True))
        first = min(times[p[i + 1].first_bar] for times, p in zip((long, late), parts, strict=True))
        assert last < boundaries[i] < first
    trained = sum(len(p[0]) for p in parts)
    assert trained == pytest.approx(0.7 * (2000 + 1500 - 2 * 64), abs=2)


def test_too_few_bars_are_counted():
    with pytest.raises(
        DataError,
        match=r"SPY: 200 bars leave train 95, validation 0, test 0, and each split needs 100 "
        r"\(33 bars of warm-up and 31 of first window .* 32 bars of embargo",
    ):
        split(200, minimum_bars=100, label="SPY")
    with pytest.raises(DataError, match="no bar is left after the warm-up"):
        split(64)
    with pytest.raises(DataError, match=r"^SPY: no bar is left"):
        split_boundaries([clock(0)], label="SPY")


def test_a_split_has_at_least_the_bars_asked_for():
    train, validation, test = split(1000, minimum_bars=108)
    assert min(len(train), len(validation), len(test)) == 108
    with pytest.raises(DataError, match="test 108, and each split needs 109"):
        split(1000, minimum_bars=109)


@pytest.mark.parametrize(
    "fractions", [(0.7, 0.3), (0.7, 0.3, 0.0), (0.7, 0.2, 0.2), (1.2, -0.1, -0.1), (np.nan,) * 3]
)
def test_fractions_that_make_no_whole_are_refused(fractions):
    with pytest.raises(ConfigError, match="whose sum is 1"):
        split(1000, fractions)


def test_a_split_needs_a_decision_and_a_mark():
    with pytest.raises(ConfigError, match="minimum_bars 1 at least 2"):
        split(1000, minimum_bars=1)
    with pytest.raises(ConfigError, match="receptive_field 0 must be"):
        chronological_splits(clock(9), (START, START), warm_up=0, receptive_field=0)
