"""Evaluation against the independent simulator, and against its own tables."""

import dataclasses

import jax
import numpy as np
import pandas as pd
import pytest
import reference_simulator as reference
from small_runs import CONFIG, SEEDS, market, program, with_settings

from jaxtrader.errors import ConfigError
from jaxtrader.evaluation.evaluate import (
    evaluate_agents,
    full_split_bars,
    random_starts,
    validation_sharpe,
)
from jaxtrader.program import agent_keys, build_program, hyperparameters

CASH = CONFIG.environment.initial_cash
AGENTS = [(s, k) for s in range(2) for k in range(len(SEEDS))]
SPLITS = ("train", "validation", "test")


def jittered_agents(program):
    """Untrained agents whose action layers are noisy enough for many kinds of behaviour."""
    keys = agent_keys(program.dataset.symbols, SEEDS)
    state = program.initialize(keys, program.params["train"], hyperparameters(CONFIG, 1))
    params = jax.tree.map(np.array, state.params)
    rng = np.random.default_rng(0)
    actor = params["heads"]["actor"]
    params["heads"]["actor"] = jax.tree.map(
        lambda x: x + 0.5 * rng.standard_normal(x.shape).astype(np.float32), actor
    )
    return params


@pytest.fixture(scope="module")
def params():
    return jittered_agents(program())


@pytest.fixture(scope="module")
def evaluations(params):
    """By split, symbol and seed place."""
    return {split: evaluate_agents(program(), params, SEEDS, split, 4) for split in SPLITS}


def replayed(evaluation, **rules):
    """The recorded policy actions, once more, by the float64 simulator on the dataset's bars."""
    dataset = market()
    s = dataset.symbols.index(evaluation.symbol)
    first, last = (int(bars[s]) for bars in dataset.splits[evaluation.split])
    simulator = reference.ReferenceSimulator(
        dataset.open[s].astype(np.float32)[: last + 1],
        dataset.close[s].astype(np.float32)[: last + 1],
        session=dataset.session[s][: last + 1],
        parameters=reference.ReferenceParameters(**rules),
        last_bar=last,
    )
    simulator.reset(first, last)
    for action in evaluation.steps["action"]:
        simulator.step(reference.Action[action])
    return simulator


def assert_replay_agrees(evaluation, **rules):
    simulator = replayed(evaluation, **rules)
    assert simulator.done
    records, steps = simulator.records, evaluation.steps
    assert min(record.margin for record in records) > 1e-6, "a near tie: choose another seed"
    assert [r.executed_action.name for r in records] == steps["executed"].tolist()
    assert [r.reason.name for r in records] == steps["reason"].tolist()
    for column, attribute, scale in (
        ("equity", "equity", CASH),
        ("cash", "cash", CASH),
        ("shares", "shares", CASH),
        ("fill_shares", "fill_shares", CASH),
        ("fill_price", "fill_price", 1.0),
        ("costs", "fill_costs", CASH),
        ("reward", "reward", 1.0),
    ):
        expected = np.array([getattr(record, attribute) for record in records]) * scale
        tolerance = 1e-3 if column == "reward" else 2e-5 * max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(steps[column], expected, rtol=0, atol=tolerance)

    stamps = pd.to_datetime(
        market().timestamps[market().symbols.index(evaluation.symbol)], unit="us", utc=True
    )
    trades = evaluation.trades
    assert len(trades) == len(simulator.ledger)
    for (_, trade), expected in zip(trades.iterrows(), simulator.ledger, strict=True):
        assert trade["entry_time"] == stamps[expected.entry_bar]
        assert trade["exit_time"] == stamps[expected.exit_bar]
        assert trade["profit"] == pytest.approx(expected.net_profit * CASH, abs=1.0)
        assert (trade["exit"], trade["reason"]) == (expected.kind, expected.reason.name)
        assert trade["bars_held"] == expected.exit_bar - expected.entry_bar

    counted = simulator.telemetry()
    [row] = evaluation.full_split.to_dict("records")
    for name in ("policy_action_entropy", "executed_action_entropy", "voluntary_trade_rate",
                 "forced_exit_ratio", "sanitizer_trade_delta", "action_repeat_violations",
                 "log_return", "max_drawdown", "unique_actions", "steps"):  # fmt: skip
        assert row[name] == pytest.approx(counted[name], abs=2e-5), name
    assert row["reward"] == pytest.approx(counted["total_reward"], abs=1e-2)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("s", "k"), AGENTS)
def test_the_full_split_is_what_the_independent_simulator_says(evaluations, split, s, k):
    assert_replay_agrees(evaluations[split][s][k])


def test_these_agents_do_nearly_everything(evaluations):
    """So that the comparison above means something."""
    steps = pd.concat([evaluations["train"][s][k].steps for s, k in AGENTS])
    assert set(steps["executed"]) == {action.name for action in reference.Action}
    reasons = set(steps["reason"])
    assert {"STOP_LOSS", "TAKE_PROFIT", "MAX_HOLDING", "REPEAT_LIMIT", "END_OF_DATA"} <= reasons
    assert sum(len(evaluations["train"][s][k].trades) for s, k in AGENTS) > 100


# ------------------------------------------------------------------------------------ one agent


@pytest.fixture(params=[(0, 0), (1, 1)], ids=["AAA", "BBB"])
def evaluation(evaluations, request):
    s, k = request.param
    return evaluations["test"][s][k]


def bars_of(evaluation):
    """Timestamps of the split's bars, all of which but the first are marked."""
    dataset = market()
    s = dataset.symbols.index(evaluation.symbol)
    first, last = (int(bars[s]) for bars in dataset.splits[evaluation.split])
    return s, first, pd.to_datetime(dataset.timestamps[s, first : last + 1], unit="us", utc=True)


def test_timestamps(evaluation):
    """A decision is taken at the close of one bar and fills in the next, where it is marked."""
    s, first, stamps = bars_of(evaluation)
    steps = evaluation.steps
    assert steps.index.equals(stamps[:-1].rename("timestamp"))
    assert pd.DatetimeIndex(steps["fill_time"]).equals(stamps[1:].rename("fill_time"))
    assert evaluation.equity.index.equals(stamps)
    assert steps.index.tz is not None

    filled = steps[steps["fill_shares"] > 0].iloc[0]
    bar = first + list(stamps).index(filled["fill_time"])
    assert filled["fill_price"] == pytest.approx(market().open[s, bar] * 1.00025, rel=1e-6)
    marked = evaluation.equity[filled["fill_time"]]
    expected = filled["cash"] + filled["shares"] * market().close[s, bar]
    assert marked == filled["equity"] == pytest.approx(expected, rel=1e-6)


def test_equity_starts_with_the_cash_and_ends_flat(evaluation):
    assert evaluation.equity.iloc[0] == CASH
    assert evaluation.equity.iloc[-1] == evaluation.steps["cash"].iloc[-1]
    assert evaluation.steps["shares"].iloc[-1] == 0.0
    assert not evaluation.ended_early


def test_trades_add_up_to_the_steps(evaluation):
    steps, trades = evaluation.steps, evaluation.trades
    assert trades["profit"].sum() == pytest.approx(evaluation.equity.iloc[-1] - CASH, abs=2.0)
    assert trades["costs"].sum() == pytest.approx(steps["costs"].sum(), rel=1e-6)
    assert len(trades) == steps["closed"].sum() == evaluation.performance.closed_trades
    assert (trades["exit_time"] > trades["entry_time"]).all()
    assert (trades["entry_time"].iloc[1:].to_numpy() > trades["exit_time"].iloc[:-1]).all()
    partial = (steps["executed"] == "SELL_PARTIAL").sum()
    assert trades["partial_sales"].sum() == partial
    assert trades["shares"].sum() == pytest.approx(steps["fill_shares"].clip(lower=0).sum())
    kinds = evaluation.full_split.iloc[0]
    for kind in ("voluntary", "forced", "ended"):
        assert (trades["exit"] == kind).sum() == kinds[f"{kind}_exits"]
    assert (trades["profit"] > 0).sum() == kinds["winning_trades"]


def test_buy_and_hold_is_worked_by_hand(evaluation):
    """On the same bars: bought at the second bar's open, sold at the last one's, 7.5 bps a side."""
    s, first, stamps = bars_of(evaluation)
    opens = market().open[s, first : first + len(stamps)]
    closes = market().close[s, first : first + len(stamps)]
    shares = CASH / (opens[1] * 1.00025 * 1.0005)
    benchmark = evaluation.benchmark
    assert benchmark.index.equals(stamps)
    assert benchmark.iloc[0] == CASH
    np.testing.assert_allclose(benchmark.iloc[1:-1], shares * closes[1:-1], rtol=1e-6)
    assert benchmark.iloc[-1] == pytest.approx(shares * opens[-1] * 0.99975 * 0.9995, rel=1e-6)
    figures = evaluation.benchmark_performance
    assert figures.closed_trades == 1
    # 7.5 bps of what is bought and of what is sold, over the gain before them.
    costs = shares * (opens[1] * (1.00025 * 1.0005 - 1) + opens[-1] * (1 - 0.99975 * 0.9995))
    gain = benchmark.iloc[-1] - CASH + costs
    if gain > 0:
        assert figures.cost_ratio == pytest.approx(costs / gain, rel=1e-6)
    assert evaluation.benchmark_performance.days == evaluation.performance.days


def test_sharpe_from_the_equity_series_with_pandas(evaluation):
    for series, figures in (
        (evaluation.equity, evaluation.performance),
        (evaluation.benchmark, evaluation.benchmark_performance),
    ):
        days = series.index.tz_convert("America/New_York").date
        daily = pd.concat([series.iloc[:1], series.groupby(days).last()])
        returns = daily.pct_change().dropna()
        assert figures.sharpe_ratio == pytest.approx(
            returns.mean() / returns.std(ddof=1) * np.sqrt(252), rel=1e-9
        )
        assert figures.max_drawdown == pytest.approx((daily / daily.cummax() - 1).min(), rel=1e-9)


def test_validation_sharpe_is_the_evaluations(params, evaluations):
    sharpe = validation_sharpe(program(), params)
    assert sharpe.shape == (2, 3)
    for s, k in AGENTS:
        own = evaluations["validation"][s][k].performance.sharpe_ratio
        np.testing.assert_equal(sharpe[s, k], own)


def test_twice_the_same_bits(params, evaluations):
    again = evaluate_agents(program(), params, SEEDS, "test", 4)
    for s, k in AGENTS:
        one, other = evaluations["test"][s][k], again[s][k]
        for name in ("steps", "trades", "episodes", "full_split"):
            pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))
        pd.testing.assert_series_equal(one.equity, other.equity)
        assert one.audit == other.audit
        assert one.metrics == other.metrics


# ------------------------------------------------------------------------- random-start episodes


def test_every_random_episode_is_counted_once(evaluations):
    for s, k in AGENTS:
        episodes = evaluations["test"][s][k].episodes
        assert len(episodes) == 4
        assert episodes["start"].is_unique
        assert (episodes["steps"] == 64).all()
        counts = episodes[[c for c in episodes if c.startswith("executed_") and c[9:].isupper()]]
        assert (counts.sum(axis=1) == 64).all()


def test_random_starts_are_distinct_in_range_and_depend_on_the_seed_alone():
    first, last = full_split_bars(program(), "test")
    starts, stops = random_starts(program(), "test", 20, seed=3)
    assert starts.shape == stops.shape == (2, 20)
    for s in range(2):
        assert len(set(starts[s])) == 20
        assert starts[s].min() >= first[s, 0]
        assert stops[s].max() <= last[s, 0]
    assert (stops - starts == 64).all()
    again, _ = random_starts(program(), "test", 20, seed=3)
    np.testing.assert_array_equal(starts, again)
    other, _ = random_starts(program(), "test", 20, seed=4)
    assert not np.array_equal(starts, other)


def test_all_starts_there_are_and_not_one_more():
    first, last = full_split_bars(program(), "test")
    room = int(last[1, 0] - 64 - first[1, 0] + 1)  # the shorter symbol's
    starts, _ = random_starts(program(), "test", room, seed=0)
    np.testing.assert_array_equal(starts[1], np.arange(first[1, 0], last[1, 0] - 64 + 1))
    with pytest.raises(ConfigError, match=f"BBB has only {room} different starts"):
        random_starts(program(), "test", room + 1, seed=0)


def test_a_random_episode_is_a_stretch_of_the_market(params, evaluations):
    """Replayed by the independent simulator from its start; its end is no end of data."""
    evaluation = evaluations["test"][0][0]
    s, first, stamps = bars_of(evaluation)
    starts, stops = random_starts(program(), "test", 4, 0)
    offset = first - (market().receptive_field - 1)
    labels = [market().timestamps[s, offset + bar] for bar in starts[0]]
    expected = pd.to_datetime(labels, unit="us", utc=True).strftime("%Y-%m-%dT%H:%MZ")
    assert evaluation.episodes["start"].tolist() == expected.tolist()
    ended = evaluation.episodes[["reason_EPISODE_END", "reason_END_OF_DATA"]].sum()
    assert (
        ended["reason_END_OF_DATA"] == (stops[0] == full_split_bars(program(), "test")[1][0]).sum()
    )


# --------------------------------------------------------------------------------- other settings


def test_the_drawdown_breaker_ends_the_pass(params):
    """Terminated long before the last bar: nothing after it counts, and it is said."""
    fragile = with_settings(program(), "environment", max_drawdown=0.003)
    rows = evaluate_agents(fragile, params, SEEDS, "train", 4)
    early = [rows[s][k] for s, k in AGENTS if rows[s][k].ended_early]
    assert early
    for evaluation in early:
        assert_replay_agrees(evaluation, max_drawdown=0.003)
        s, first, stamps = bars_of(evaluation)
        steps = evaluation.steps
        assert len(steps) < len(stamps) - 1
        assert evaluation.equity.index.equals(stamps)  # in cash from the end to the last bar
        assert (evaluation.equity.iloc[len(steps) :] == evaluation.equity.iloc[-1]).all()
        assert steps["shares"].iloc[-1] == 0.0
        assert (evaluation.equity / evaluation.equity.cummax() - 1).min() <= -0.003
        assert len(evaluation.benchmark) == len(stamps)  # buy-and-hold goes on to the end
        assert evaluation.performance.days == evaluation.benchmark_performance.days
    for s, k in AGENTS:
        assert rows[s][k].ended_early or len(rows[s][k].steps) == len(bars_of(rows[s][k])[2]) - 1


def test_same_close_fills_in_the_bar_of_the_decision(params):
    same = with_settings(program(), "environment", fill="same_close")
    evaluation = evaluate_agents(same, params, SEEDS, "test", 4)[0][0]
    assert (evaluation.steps["fill_time"] == evaluation.steps.index).all()
    s, first, stamps = bars_of(evaluation)
    bought = evaluation.steps[evaluation.steps["fill_shares"] > 0]
    for time, row in bought.iterrows():
        close = market().close[s, first + list(stamps).index(time)]
        assert row["fill_price"] == pytest.approx(close * 1.00025, rel=1e-6)
    assert set(evaluation.trades["entry_time"]) <= set(bought.index)


def test_the_cost_multiplier_reaches_agent_and_benchmark(params):
    dear = with_settings(program(), "environment", cost_multiplier=2.0)
    evaluation = evaluate_agents(dear, params, SEEDS, "test", 4)[0][0]
    assert_replay_agrees(evaluation, cost_multiplier=2.0)
    s, first, stamps = bars_of(evaluation)
    shares = CASH / (market().open[s, first + 1] * 1.0005 * 1.001)
    np.testing.assert_allclose(
        evaluation.benchmark.iloc[1], shares * market().close[s, first + 1], rtol=1e-6
    )


def test_buy_and_hold_waits_for_a_bar_that_trades(params):
    dataset = market()
    first = int(dataset.splits["test"][0][0])
    tradable = dataset.tradable.copy()
    tradable[0, first + 1] = False
    halted = build_program(CONFIG, dataclasses.replace(dataset, tradable=tradable))
    evaluation = evaluate_agents(halted, params, SEEDS, "test", 4)[0][0]
    assert evaluation.benchmark.iloc[1] == CASH
    shares = CASH / (dataset.open[0, first + 2] * 1.00025 * 1.0005)
    expected = shares * dataset.close[0, first + 2]
    assert evaluation.benchmark.iloc[2] == pytest.approx(expected, rel=1e-6)
    assert evaluation.steps["executed"].iloc[0] == "HOLD"
