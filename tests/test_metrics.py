"""Point metrics against empyrical, published examples, hand-computed numbers and a slow account."""

import dataclasses
import json
import math

import empyrical
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from jaxtrader.errors import DataError
from jaxtrader.evaluation import metrics
from jaxtrader.evaluation.metrics import ClosedTrades, performance

# One daily return in basis points: a grid keeps spreads either exactly 0 or far above rounding.
basis_points = st.integers(-3_000, 3_000)
daily = st.lists(basis_points, min_size=2, max_size=80).map(lambda bps: np.array(bps) / 1e4)

# The empyrical project's own example, percent.
MIXED = np.array([1.0, 10.0, -4.0, 2.0, 3.0, 2.0, 1.0, -10.0]) / 100

# (ours, empyrical's)
RATIOS = {
    "sharpe_ratio": empyrical.sharpe_ratio,
    "sortino_ratio": empyrical.sortino_ratio,
    "annual_volatility": empyrical.annual_volatility,
    "annual_return": empyrical.annual_return,
    "calmar_ratio": empyrical.calmar_ratio,
}


# --- daily returns -------------------------------------------------------------------------------


def test_daily_equity_takes_the_last_bar_of_each_session_after_the_start():
    equity = [1.0, 1.01, 1.02, 1.00, 0.99, 1.05]
    session = [7, 7, 7, 8, 8, 11]
    assert_allclose(metrics.daily_equity(equity, session), [1.0, 1.02, 0.99, 1.05], rtol=0)


def test_the_start_is_not_a_day_of_its_own():
    """Daily bars: a return for each bar after the first, as prices give, and no leading zero."""
    prices = np.array([50.0, 51.0, 49.0, 49.5])
    returns = metrics.daily_returns(prices / 50.0, np.arange(4))
    assert_allclose(returns, empyrical.simple_returns(prices), atol=1e-15)


def test_daily_returns_compound_to_the_whole_run():
    rng = np.random.default_rng(0)
    equity = np.cumprod(1 + rng.normal(0, 0.01, 100))
    session = np.sort(rng.integers(0, 20, 100))
    returns = metrics.daily_returns(equity, session)
    assert returns.dtype == np.float64
    assert_allclose(np.prod(1 + returns), equity[-1] / equity[0], rtol=1e-13)


def test_equity_of_one_bar_has_no_return():
    assert metrics.daily_equity([1.0], [0]).tolist() == [1.0]
    assert metrics.daily_returns([1.0], [0]).size == 0


@pytest.mark.parametrize(
    ("equity", "session", "says"),
    [
        ([], [], "empty"),
        ([1.0, 1.1], [0], "one per bar"),
        ([1.0, np.nan], [0, 1], r"equity\[1\] is nan"),
        ([1.0, 0.0], [0, 1], r"equity\[1\] is 0"),
        ([1.0, 1.0, 1.0], [0, 2, 1], "backwards at bar 2"),
        ([[1.0, 1.0]], [[0, 1]], "1-D"),
    ],
)
def test_daily_equity_names_what_is_wrong(equity, session, says):
    with pytest.raises(DataError, match=says):
        metrics.daily_equity(equity, session)


# --- against empyrical ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(RATIOS))
@pytest.mark.parametrize("periods_per_year", [252, 365])
@settings(max_examples=60, deadline=None)
@given(returns=daily)
def test_annualised_metrics_match_empyrical(name, periods_per_year, returns):
    ours = getattr(metrics, name)(returns, periods_per_year)
    theirs = RATIOS[name](returns, annualization=periods_per_year)
    if math.isinf(theirs):  # a ratio over nothing: documented as undefined
        assert name in ("sharpe_ratio", "sortino_ratio")
        assert math.isnan(ours)
    else:
        assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9, equal_nan=True)


@settings(max_examples=100, deadline=None)
@given(returns=st.lists(basis_points, min_size=1, max_size=130).map(lambda b: np.array(b) / 1e4))
def test_drawdown_and_cvar_match_empyrical(returns):
    assert_allclose(metrics.max_drawdown(returns), empyrical.max_drawdown(returns), atol=1e-12)
    expected = empyrical.conditional_value_at_risk(returns, 0.05)
    assert_allclose(metrics.cvar_95(returns), expected, atol=1e-12)


def test_cvar_counts_the_tail_as_empyrical_at_every_length():
    rng = np.random.default_rng(1)
    for size in range(1, 600):
        returns = rng.normal(0, 0.02, size)
        expected = empyrical.conditional_value_at_risk(returns, 0.05)
        assert_allclose(metrics.cvar_95(returns), expected, rtol=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    returns=st.lists(st.floats(-0.2, 0.2), min_size=30, max_size=60).map(np.array),
    noise=st.integers(0, 2**32 - 1),
)
def test_arbitrary_floats_match_empyrical(returns, noise):
    returns = returns + np.random.default_rng(noise).normal(0, 0.01, returns.size)
    for name, oracle in RATIOS.items():
        ours = getattr(metrics, name)(returns)
        assert_allclose(ours, oracle(returns), rtol=1e-9, equal_nan=True)


# --- published and hand-computed -----------------------------------------------------------------


def test_empyrical_published_values():
    """Constants of empyrical's own test suite (`mixed_returns`)."""
    assert_allclose(metrics.sharpe_ratio(MIXED), 1.7238613961706866, rtol=1e-12)
    assert_allclose(metrics.sortino_ratio(MIXED), 2.605531251673693, rtol=1e-12)
    assert_allclose(metrics.annual_volatility(MIXED), 0.9136465399704637, rtol=1e-12)
    assert_allclose(metrics.max_drawdown(MIXED), -0.1, rtol=1e-12)


def test_sortino_published_example():
    """Rollinger and Hoffman (2013), "Sortino: A 'Sharper' Ratio": 10 % over 2.264 % is 4.417."""
    annual = np.array([17, 15, 23, -5, 12, 9, 13, -4]) / 100
    assert_allclose(metrics.sortino_ratio(annual, periods_per_year=1), 4.417, atol=5e-4)


def test_sharpe_by_hand():
    # mean 1 %, deviations +-1 % of two days: std(ddof=1) = sqrt(2) %
    assert_allclose(metrics.sharpe_ratio([0.0, 0.02], periods_per_year=2), 1.0, rtol=1e-12)


def test_drawdown_includes_the_start():
    assert_allclose(metrics.max_drawdown([-0.1, 0.05]), -0.1, rtol=1e-12)
    # 1 -> 2 -> 1 -> 3 -> 1.2: the second fall, 60 %, is the deepest
    assert_allclose(metrics.max_drawdown([1.0, -0.5, 2.0, -0.6]), -0.6, rtol=1e-12)
    assert metrics.max_drawdown([-1.0]) == -1.0


def test_growth_and_calmar_by_hand():
    half_years = [0.21, 0.0]  # 21 % over one year
    assert_allclose(metrics.annual_return(half_years, 2), 0.21, rtol=1e-12)
    assert_allclose(metrics.annual_return([0.1] * 24, 12), 1.1**12 - 1, rtol=1e-12)
    # 0.8 * 1.5 = 1.2 over one year, 20 % down on the way
    assert_allclose(metrics.calmar_ratio([-0.2, 0.5], 2), 1.0, rtol=1e-12)
    assert metrics.annual_return([-1.0, 0.5]) == -1.0


def test_cvar_by_hand():
    returns = np.arange(40) / 100 - 0.2  # floor(39 / 20) + 1 = the worst two
    assert_allclose(metrics.cvar_95(returns[::-1]), (-0.20 - 0.19) / 2, rtol=1e-12)


# --- undefined -----------------------------------------------------------------------------------


def test_flat_equity():
    returns = metrics.daily_returns(np.ones(10), np.arange(10))
    for ratio in (metrics.sharpe_ratio, metrics.sortino_ratio, metrics.calmar_ratio):
        assert math.isnan(ratio(returns))
    for figure in (
        metrics.annual_volatility,
        metrics.max_drawdown,
        metrics.annual_return,
        metrics.cvar_95,
    ):
        assert figure(returns) == 0.0


def test_growth_that_does_not_vary_has_no_sharpe_despite_rounding():
    equity = 1.001 ** np.arange(300)
    returns = metrics.daily_returns(equity, np.arange(300))
    assert np.ptp(returns) > 0  # rounding
    assert math.isnan(metrics.sharpe_ratio(returns))
    assert math.isnan(metrics.sortino_ratio(returns))
    assert math.isnan(metrics.calmar_ratio(returns))


def test_one_day_and_no_day():
    for ratio in (metrics.sharpe_ratio, metrics.sortino_ratio, metrics.annual_volatility):
        assert math.isnan(ratio([0.01]))
        assert math.isnan(ratio([]))
    assert metrics.max_drawdown([-0.01]) == pytest.approx(-0.01)
    assert metrics.cvar_95([-0.01]) == -0.01
    for figure in (
        metrics.max_drawdown,
        metrics.annual_return,
        metrics.calmar_ratio,
        metrics.cvar_95,
    ):
        assert math.isnan(figure([]))
    assert math.isnan(metrics.benchmark_excess([], []))


@pytest.mark.filterwarnings("error")
def test_growth_beyond_float64_is_infinite_without_a_warning():
    assert metrics.annual_return([1e3]) == math.inf
    assert math.isnan(metrics.calmar_ratio([1e3, -0.1]))


@pytest.mark.parametrize("bad", [[0.1, np.nan], [0.1, np.inf], [0.1, -1.01], [[0.1, 0.2]]])
def test_returns_that_are_no_returns(bad):
    for name in (*RATIOS, "max_drawdown", "cvar_95"):
        with pytest.raises(DataError, match="returns"):
            getattr(metrics, name)(bad)


@pytest.mark.parametrize("periods", [0, -252, math.nan, math.inf])
def test_periods_per_year_is_checked(periods):
    with pytest.raises(DataError, match="periods_per_year"):
        metrics.sharpe_ratio([0.1, -0.1], periods)


# --- trades --------------------------------------------------------------------------------------


def test_trade_metrics_by_hand():
    profit = [30.0, -10.0, 0.0, 20.0, -15.0]
    assert metrics.hit_rate(profit) == pytest.approx(0.4)  # breaking even is no hit
    assert metrics.profit_factor(profit) == pytest.approx(50 / 25)
    assert metrics.average_duration([1, 2, 6]) == pytest.approx(3.0)
    assert metrics.trades_per_year(30, 126) == pytest.approx(60.0)
    assert metrics.trades_per_year(0, 126) == 0.0
    # before costs 32, -9, 1, 21, -13: 54 won, 7 paid
    assert metrics.cost_ratio(profit, [2.0, 1.0, 1.0, 1.0, 2.0]) == pytest.approx(7 / 54)


def test_profit_factor_published_example():
    """Dormeier (2011), "Investing with Volume Analysis", p. 198: 50 over 40, 20 over 10."""
    assert metrics.profit_factor([50_000, -40_000]) == pytest.approx(1.25)
    assert metrics.profit_factor([20_000, -10_000]) == pytest.approx(2.0)


def test_cost_ratio_of_winners_is_the_gap_between_gross_and_net():
    net, cost = np.array([3.0, 5.0]), np.array([1.0, 1.0])
    gross = net + cost
    assert metrics.cost_ratio(net, cost) == pytest.approx(1 - net.sum() / gross.sum())


def test_no_trades():
    for figure in (metrics.hit_rate, metrics.profit_factor, metrics.average_duration):
        assert math.isnan(figure([]))
    assert math.isnan(metrics.cost_ratio([], []))
    assert math.isnan(metrics.trades_per_year(0, 0))


def test_trades_of_one_kind():
    assert metrics.profit_factor([1.0, 2.0]) == math.inf
    assert metrics.hit_rate([1.0, 2.0]) == 1.0
    assert metrics.profit_factor([-1.0, -2.0]) == 0.0
    assert math.isnan(metrics.profit_factor([0.0]))
    assert math.isnan(metrics.cost_ratio([-5.0], [1.0]))  # lost before costs too


def test_turnover_of_one_round_trip_a_year_is_two():
    assert metrics.turnover([100.0, 100.0], [100.0] * 253, 252) == pytest.approx(2.0)
    assert metrics.turnover(50.0, [80.0, 120.0], 63) == pytest.approx(50 / 100 * 4)
    assert metrics.turnover([], [1.0, 1.0], 1) == 0.0
    assert math.isnan(metrics.turnover(0.0, [1.0], 0))
    with pytest.raises(DataError, match="traded_value"):
        metrics.turnover([-1.0], [1.0, 1.0], 1)
    with pytest.raises(DataError, match="mean equity"):
        metrics.turnover([1.0], [], 1)


def test_herfindahl():
    """Shares 30, 30, 20, 20 make 2,600 points of 10,000: the US Department of Justice's example."""
    assert metrics.herfindahl_index([30, 30, 20, 20]) == pytest.approx(0.26)
    assert metrics.herfindahl_index([0.3, 0.0]) == pytest.approx(1.0)  # cash is no position
    assert metrics.herfindahl_index(np.full(8, 0.05)) == pytest.approx(1 / 8)
    bars = [[0.0, 0.0], [0.2, 0.2], [0.1, 0.0]]  # the bar in cash counts for nothing
    assert metrics.herfindahl_index(bars) == pytest.approx(0.75)
    assert math.isnan(metrics.herfindahl_index([0.0, 0.0]))
    with pytest.raises(DataError, match="negative"):
        metrics.herfindahl_index([0.5, -0.5])
    with pytest.raises(DataError, match=r"\[T, S\]"):
        metrics.herfindahl_index(0.5)


def test_benchmark_excess():
    assert metrics.benchmark_excess([0.1, 0.1], [0.0, 0.05], 2) == pytest.approx(0.21 - 0.05)
    with pytest.raises(DataError, match="same bars"):
        metrics.benchmark_excess([0.1, 0.1], [0.1])


def test_closed_trades_are_checked():
    with pytest.raises(DataError, match="one of each per trade"):
        ClosedTrades(np.ones(2), np.ones(1), np.ones(2))
    with pytest.raises(DataError, match=r"ClosedTrades.cost\[0\]"):
        ClosedTrades(np.ones(1), -np.ones(1), np.ones(1))
    with pytest.raises(DataError, match=r"ClosedTrades.profit\[1\] is nan"):
        ClosedTrades(np.array([1.0, np.nan]), np.ones(2), np.ones(2))


# --- buy and hold --------------------------------------------------------------------------------


def slow_account(opens, closes, commission, slippage, tradable):
    """Buy-and-hold order by order: decided at a close, filled at the next open, then marked."""
    cash, shares, equity = 1.0, 0.0, [1.0]
    last = len(closes) - 1
    for bar in range(last):
        fill = bar + 1
        if tradable[fill]:
            if fill == last:
                value = shares * opens[fill] * (1 - slippage)
                cash, shares = cash + value - value * commission, 0.0
            elif shares == 0.0:
                price = opens[fill] * (1 + slippage)
                shares = cash / (price + price * commission)
                cash = 0.0
        equity.append(cash + shares * closes[fill])
    return equity


@settings(max_examples=80, deadline=None)
@given(
    bars=st.integers(1, 12),
    seed=st.integers(0, 2**16),
    commission=st.sampled_from([0.0, 0.0005, 0.02]),
    slippage=st.sampled_from([0.0, 0.00025, 0.01]),
    halted=st.booleans(),
)
def test_buy_and_hold_is_an_account_run_order_by_order(bars, seed, commission, slippage, halted):
    rng = np.random.default_rng(seed)
    opens, closes = np.exp(rng.normal(3, 0.2, (2, bars)))
    tradable = rng.random(bars) < 0.6 if halted else np.ones(bars, dtype=bool)
    equity = metrics.buy_and_hold_equity(
        opens, closes, commission, slippage, tradable if halted else None
    )
    expected = slow_account(opens, closes, commission, slippage, tradable)
    assert_allclose(equity, expected, rtol=1e-12)


def test_buy_and_hold_by_hand():
    opens, closes = [9.0, 10.0, 11.0, 13.0], [9.5, 11.0, 12.0, 99.0]
    assert_allclose(
        metrics.buy_and_hold_equity(opens, closes, 0.0, 0.0), [1.0, 1.1, 1.2, 1.3], rtol=1e-12
    )
    # 10 bps commission and 1 % slippage: 1 / (10.1 * 1.001) shares, sold at 12.87 less 10 bps
    shares = 1 / 10.1101
    expected = [1.0, 11 * shares, 12 * shares, 12.85713 * shares]
    assert_allclose(metrics.buy_and_hold_equity(opens, closes, 0.001, 0.01), expected, rtol=1e-12)


def test_buy_and_hold_of_too_few_bars_never_buys():
    assert metrics.buy_and_hold_equity([1.0, 2.0], [1.5, 3.0], 0.0, 0.0).tolist() == [1.0, 1.0]
    assert metrics.buy_and_hold_equity([1.0], [1.5], 0.0, 0.0).tolist() == [1.0]


def test_buy_and_hold_follows_the_price_between_its_fills():
    prices = np.array([100.0, 102.0, 99.0, 105.0, 103.0])
    opens = np.concatenate((prices[:1], prices[:-1]))  # each bar opens at the last close
    returns = metrics.daily_returns(
        metrics.buy_and_hold_equity(opens, prices, 0.0, 0.0), np.arange(5)
    )
    # free of costs: the market's own returns, but for the last bar, spent flat
    assert_allclose(returns[:-1], np.diff(prices[:-1]) / prices[:-2], rtol=1e-12)
    assert abs(returns[-1]) < 1e-15


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([], [], 0.0, 0.0), "at least one bar"),
        (([1.0, 1.0], [1.0], 0.0, 0.0), "one value per bar"),
        (([1.0], [1.0], 0.0, 0.0, [True, True]), "one value per bar"),
        (([1.0, 0.0], [1.0, 1.0], 0.0, 0.0), r"open\[1\] is 0"),
        (([1.0, 1.0], [np.nan, 1.0], 0.0, 0.0), r"close\[0\] is nan"),
        (([1.0], [1.0], 1.0, 0.0), "commission is 1"),
        (([1.0], [1.0], 0.0, -0.1), "slippage is -0.1"),
    ],
)
def test_buy_and_hold_names_what_is_wrong(arguments, says):
    with pytest.raises(DataError, match=says):
        metrics.buy_and_hold_equity(*arguments)


# --- all together --------------------------------------------------------------------------------

NO_TRADES = ClosedTrades(np.array([]), np.array([]), np.array([]))


def run(**changes):
    arguments = {
        "equity": np.array([1.0, 1.01, 1.02, 0.99, 1.03, 1.05]),
        "session": np.array([0, 0, 1, 1, 2, 2]),
        "trades": ClosedTrades(
            np.array([0.03, -0.01]), np.array([0.001, 0.002]), np.array([2, 4], dtype=np.float64)
        ),
        "traded_value": np.array([0.5, 0.5, 0.5, 0.5]),
        "weights": np.array([[0.0], [0.5], [0.5], [0.5], [0.5], [0.0]]),
        "benchmark_equity": np.array([1.0, 1.0, 1.0, 1.01, 1.01, 1.02]),
    }
    return performance(**{**arguments, **changes})


def test_performance_by_hand():
    figures = run(periods_per_year=252)
    returns = np.array([1.01 / 1.0, 0.99 / 1.01, 1.05 / 0.99]) - 1
    assert (figures.days, figures.closed_trades, figures.periods_per_year) == (3, 2, 252.0)
    for name, oracle in RATIOS.items():
        assert_allclose(getattr(figures, name), oracle(returns), rtol=1e-9)
    assert_allclose(figures.max_drawdown, 0.99 / 1.01 - 1, rtol=1e-12)  # days, not bars
    assert_allclose(figures.cvar_95, 0.99 / 1.01 - 1, rtol=1e-12)
    assert_allclose(figures.hit_rate, 0.5)
    assert_allclose(figures.profit_factor, 3.0)
    assert_allclose(figures.average_duration, 3.0)
    assert_allclose(figures.trades_per_year, 2 * 84)
    assert_allclose(figures.turnover, 2.0 * 84 / (6.10 / 6))
    assert_allclose(figures.cost_ratio, 0.003 / 0.031)
    assert_allclose(figures.herfindahl_index, 1.0)
    assert_allclose(figures.benchmark_excess, 1.05**84 - 1.02**84, rtol=1e-12)


def test_performance_of_crypto_uses_calendar_days():
    ratio = run(periods_per_year=365).sharpe_ratio / run().sharpe_ratio
    assert ratio == pytest.approx(math.sqrt(365 / 252))


def test_to_dict_is_strict_json():
    figures = run(
        equity=np.ones(6), trades=NO_TRADES, traded_value=0.0, weights=None, benchmark_equity=None
    )
    document = figures.to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert list(document) == [field.name for field in dataclasses.fields(figures)]
    undefined = {
        "sharpe_ratio",
        "sortino_ratio",
        "calmar_ratio",
        "hit_rate",
        "profit_factor",
        "average_duration",
        "cost_ratio",
        "herfindahl_index",
        "benchmark_excess",
    }
    assert {name for name, value in document.items() if value is None} == undefined
    assert document["trades_per_year"] == 0.0
    assert document["turnover"] == 0.0


def test_all_wins_is_an_infinite_profit_factor_and_null_in_json():
    figures = run(trades=ClosedTrades(np.array([0.01]), np.array([0.001]), np.array([1.0])))
    assert figures.profit_factor == math.inf
    document = figures.to_dict()
    assert document["profit_factor"] is None
    assert document["hit_rate"] == 1.0


def test_performance_is_frozen_and_in_python_numbers():
    figures = run(equity=np.array([1.0, 1.01, 1.02, 0.99, 1.03, 1.05], dtype=np.float32))
    assert all(type(value) in (int, float) for value in dataclasses.asdict(figures).values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        figures.days = 0  # pyright: ignore[reportAttributeAccessIssue]
