"""The artificial market: the same bits for the same seed, and the stylised facts of real ones."""

import numpy as np
import pandas as pd
import pytest

from jaxtrader.data import sessions_of, synthetic_bars
from jaxtrader.errors import ConfigError, DataError

SEEDS = range(12)
GOLDEN_CLOSES = [100.0775, 99.8529, 99.6353, 125.147]
GOLDEN_VOLUMES = [1123691.0, 724825.0]


def returns(seed: int) -> np.ndarray:
    return np.diff(np.log(synthetic_bars(seed=seed).close))


def autocorrelation(values: np.ndarray, lag: int) -> float:
    return float(np.corrcoef(values[lag:], values[:-lag])[0, 1])


def kurtosis(values: np.ndarray) -> float:
    return float(np.mean((values - values.mean()) ** 4) / values.var() ** 2)


def test_the_same_arguments_give_the_same_bits():
    first, again = synthetic_bars("A", 7), synthetic_bars("A", 7)
    for name in ("timestamps", "open", "high", "low", "close", "volume"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()
    assert first.sha256 == again.sha256
    assert first.source == again.source


def test_the_bits_do_not_change_between_versions():
    bars = synthetic_bars()
    assert bars.close[[0, 1, 2, -1]].tolist() == GOLDEN_CLOSES
    assert bars.volume[[0, -1]].tolist() == GOLDEN_VOLUMES


def test_seeds_and_symbols_are_independent():
    base = synthetic_bars("A", 1)
    for other in (synthetic_bars("A", 2), synthetic_bars("B", 1)):
        assert base.sha256 != other.sha256
        pair = [np.diff(np.log(bars.close)) for bars in (base, other)]
        assert abs(np.corrcoef(pair)[0, 1]) < 0.06


def test_bars_carry_their_origin():
    bars = synthetic_bars("ABC", 3, 10)
    assert bars.synthetic
    assert bars.symbol == "ABC"
    assert bars.source.startswith("synthetic_bars(symbol='ABC', seed=3, sessions=10,")


def test_bars_are_consistent_and_of_the_size_asked_for():
    bars = synthetic_bars(sessions=300, bars_per_session=26, timeframe="15Min")
    assert len(bars) == 300 * 26
    assert (bars.low <= np.minimum(bars.open, bars.close)).all()
    assert (bars.high >= np.maximum(bars.open, bars.close)).all()
    assert (bars.volume > 0).all()
    assert (bars.volume == np.round(bars.volume)).all()


def test_the_clock_is_new_yorks_through_daylight_saving():
    bars = synthetic_bars(sessions=260)
    local = pd.DatetimeIndex(bars.timestamps).tz_localize("UTC").tz_convert("America/New_York")
    minutes = (local.hour * 60 + local.minute).to_numpy().reshape(-1, 7)
    np.testing.assert_array_equal(minutes, np.tile(570 + 60 * np.arange(7), (260, 1)))
    assert set(pd.DatetimeIndex(bars.timestamps).hour[::7]) == {13, 14}
    sessions = sessions_of(bars)
    np.testing.assert_array_equal(np.bincount(sessions.ordinal), 7)
    dates = np.unique(sessions.date)
    assert np.is_busday(dates).all()
    for holiday in ("2000-01-17", "2000-07-04", "2000-12-25"):  # Martin Luther King, 4 July, Xmas
        assert np.datetime64(holiday) not in dates


def test_daily_bars_are_dates():
    bars = synthetic_bars(sessions=300, bars_per_session=1, timeframe="1Day")
    assert len(bars) == 300
    np.testing.assert_array_equal(bars.timestamps, bars.timestamps.astype("M8[D]"))
    np.testing.assert_array_equal(sessions_of(bars).date, bars.timestamps.astype("M8[D]"))


def test_tails_are_fat():
    for seed in SEEDS:
        assert kurtosis(returns(seed)) > 5
    daily = [kurtosis(np.diff(np.log(synthetic_bars(seed=seed).close[6::7]))) for seed in SEEDS]
    assert min(daily) > 3.5


def test_volatility_clusters_and_returns_do_not():
    clustering, memory = [], []
    for seed in SEEDS:
        daily = np.diff(np.log(synthetic_bars(seed=seed).close[6::7]))
        clustering += [[autocorrelation(np.abs(daily), lag) for lag in (1, 5, 10)]]
        memory.append(autocorrelation(daily, 1))
    assert (np.mean(clustering, axis=0) > [0.15, 0.1, 0.05]).all()
    assert min(row[0] for row in clustering) > 0
    assert abs(np.mean(memory)) < 0.05


def test_nights_move_more_than_the_seconds_between_bars():
    bars = synthetic_bars()
    gap = np.log(bars.open[1:] / bars.close[:-1])
    night = sessions_of(bars).ordinal[1:] > sessions_of(bars).ordinal[:-1]
    assert gap[night].std() > 10 * gap[~night].std()
    assert gap[night].std() == pytest.approx(0.5 * 0.175 / 252**0.5, rel=0.5)


def test_volatility_and_volume_smile_over_the_day():
    size = np.zeros(7)
    volume = np.zeros(7)
    for seed in SEEDS:
        bars = synthetic_bars(seed=seed)
        size += np.abs(np.log(bars.close / bars.open)).reshape(-1, 7).mean(axis=0)
        volume += bars.volume.reshape(-1, 7).mean(axis=0)
    for smile in (size, volume):
        assert smile[0] > 1.3 * smile[3]
        assert smile[-1] > 1.2 * smile[3]
        assert smile[0] > smile[-1]


def test_volume_rises_with_movement():
    for seed in SEEDS:
        bars = synthetic_bars(seed=seed)
        assert np.corrcoef(np.abs(np.log(bars.close / bars.open)), bars.volume)[0, 1] > 0.3


def test_the_figures_of_the_docstring():
    daily = np.array(
        [np.diff(np.log(synthetic_bars(seed=seed).close[6::7])) for seed in range(100)]
    )
    volatility = daily.std(axis=1) * 252**0.5
    assert np.sqrt(np.mean(volatility**2)) == pytest.approx(0.18, abs=0.01)
    growth = np.log(np.mean(np.exp(daily.sum(axis=1)))) / 900 * 252
    assert growth == pytest.approx(0.07, abs=0.03)
    assert np.mean([kurtosis(row) for row in daily]) == pytest.approx(12, abs=2)
    memory = [autocorrelation(np.abs(row), 1) for row in daily]
    assert np.mean(memory) == pytest.approx(0.26, abs=0.03)


def test_highs_and_lows_reach_as_far_as_a_random_walk_does():
    # Parkinson (1980): E[log(high / low)^2] = 4 ln 2 * variance. The two extremes are drawn apart
    # from each other, which leaves each one's law and nearly this moment.
    bars = synthetic_bars(sessions=4000)
    span = np.log(bars.high / bars.low) ** 2
    body = np.log(bars.close / bars.open) ** 2
    assert span.mean() / (4 * np.log(2)) == pytest.approx(body.mean(), rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sessions": 0}, "sessions is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"bars_per_session": 0}, "bars_per_session is 0"),
        ({"timeframe": "1Day"}, "at most '1Day', one a session"),
        ({"timeframe": "2Day", "bars_per_session": 1}, "at most '1Day'"),
        ({"timeframe": "4Hour"}, "do not fit"),
        ({"timeframe": "Hour"}, "is not a number followed by"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        synthetic_bars(**arguments)
    with pytest.raises(DataError, match="is not a symbol"):
        synthetic_bars("a/b", **arguments)
