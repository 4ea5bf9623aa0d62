"""Episode counters to metrics, against numbers worked by hand."""

import io
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from envs.actions import Action, Reason
from envs.episode import EpisodeStatistics
from envs.reward import RewardComponents
from jaxtrader.telemetry import (
    EPISODE_MEANS,
    audit_warnings,
    episode_means,
    episode_table,
    host_table,
    reward_audit,
)


def counts(kind, **by_name):
    row = np.zeros(len(kind), np.int32)
    for name, count in by_name.items():
        row[kind[name]] = count
    return row


def components(**values):
    zero = np.zeros(3, np.float32)
    given = {name: np.asarray(value, np.float32) for name, value in values.items()}
    return RewardComponents(**{name: given.get(name, zero) for name in RewardComponents.names()})


def weights(**values):
    return RewardComponents(
        **{name: np.float32(values.get(name, 0.0)) for name in RewardComponents.names()}
    )


def three_episodes() -> EpisodeStatistics:
    """A busy one of 10 steps, an idle one of 4, and one of 8 whose trade only the end closed."""
    return EpisodeStatistics(
        steps=np.array([10, 4, 8], np.int32),
        policy_counts=np.stack(
            [
                counts(Action, HOLD=6, BUY_SMALL=2, SELL_ALL=2),
                counts(Action, HOLD=4),
                counts(Action, HOLD=7, BUY_LARGE=1),
            ]
        ),
        executed_counts=np.stack(
            [
                counts(Action, HOLD=7, BUY_SMALL=1, SELL_ALL=2),
                counts(Action, HOLD=4),
                counts(Action, HOLD=6, BUY_LARGE=1, SELL_ALL=1),
            ]
        ),
        reason_counts=np.stack(
            [
                counts(Reason, NONE=7, STOP_LOSS=1, ILLEGAL=2),
                counts(Reason, NONE=4),
                counts(Reason, NONE=7, END_OF_DATA=1),
            ]
        ),
        repeat_violations=np.array([1, 0, 0], np.int32),
        voluntary_exits=np.array([1, 0, 0], np.int32),
        forced_exits=np.array([1, 0, 0], np.int32),
        ended_exits=np.array([0, 0, 1], np.int32),
        winning_trades=np.array([1, 0, 0], np.int32),
        gross_profit=np.array([0.02, 0.0, 0.0], np.float32),
        gross_loss=np.array([0.01, 0.0, 0.005], np.float32),
        costs=np.array([0.001, 0.0, 0.0002], np.float32),
        traded_value=np.array([0.4, 0.0, 0.18], np.float32),
        long_steps=np.array([5, 0, 6], np.int32),
        max_drawdown=np.array([0.03, 0.0, 0.01], np.float32),
        reward=np.array([1.5, 0.0, -0.25], np.float32),
        components=components(
            realized_pnl=[2.0, 0.0, -0.5], hold=[-0.03, 0.0, 0.0], diversity_bonus=[0.8, 0.0, 0.0]
        ),
        magnitudes=components(
            realized_pnl=[3.0, 0.0, 0.5], hold=[0.03, 0.0, 0.0], diversity_bonus=[0.8, 0.0, 0.0]
        ),
        final_equity=np.array([1.01, 1.0, 0.9], np.float32),
    )


@pytest.fixture
def table():
    return episode_table(
        three_episodes(),
        np.array([12.5, 4.0, 6.0], np.float32),
        weights(realized_pnl=1.0, diversity_bonus=0.07, hold=-2.0),
        {"symbol": np.full(3, "SPY"), "update": np.array([1, 1, 2])},
    )


# -(0.6 ln 0.6 + 2 * 0.2 ln 0.2), and so on, with a calculator.
BY_HAND = {
    "steps": [10, 4, 8],
    "reward": [1.5, 0.0, -0.25],
    "log_return": [0.00995033, 0.0, -0.10536052],
    "max_drawdown": [0.03, 0.0, 0.01],
    "policy_action_entropy": [0.95027054, 0.0, 0.37677016],
    "executed_action_entropy": [0.80181855, 0.0, 0.73562224],
    "policy_distribution_entropy": [1.25, 1.0, 0.75],
    "voluntary_trade_rate": [0.5, 0.0, 0.0],
    "forced_exit_ratio": [0.5, 0.0, 0.0],
    # The first: 4 orders wanted, 3 executed, one of them forced: (4 - 2) / 10. The last: 1 wanted,
    # 2 executed, one of them by the end of the data.
    "sanitizer_trade_delta": [20.0, 0.0, 0.0],
    "action_repeat_violations": [0.1, 0.0, 0.0],
    "diversity_bonus": [0.08, 0.0, 0.0],  # unweighted, a step
    "unique_actions": [3, 1, 3],
    "closed_trades": [2, 0, 0],
    "voluntary_exits": [1, 0, 0],
    "forced_exits": [1, 0, 0],
    "ended_exits": [0, 0, 1],
    "winning_trades": [1, 0, 0],
    "gross_profit": [0.02, 0.0, 0.0],
    "gross_loss": [0.01, 0.0, 0.005],
    "costs": [0.001, 0.0, 0.0002],
    "traded_value": [0.4, 0.0, 0.18],
    "long_share": [0.5, 0.0, 0.75],
    "policy_HOLD": [6, 4, 7],
    "policy_BUY_SMALL": [2, 0, 0],
    "policy_SELL_ALL": [2, 0, 0],
    "policy_ADD_POSITION": [0, 0, 0],
    "executed_HOLD": [7, 4, 6],
    "executed_BUY_LARGE": [0, 0, 1],
    "executed_SELL_ALL": [2, 0, 1],
    "reason_NONE": [7, 4, 7],
    "reason_STOP_LOSS": [1, 0, 0],
    "reason_ILLEGAL": [2, 0, 0],
    "reason_END_OF_DATA": [0, 0, 1],
    "reward_realized_pnl": [2.0, 0.0, -0.5],
    "reward_diversity_bonus": [0.056, 0.0, 0.0],
    "reward_hold": [0.06, 0.0, 0.0],
    "magnitude_realized_pnl": [3.0, 0.0, 0.5],
    "magnitude_diversity_bonus": [0.056, 0.0, 0.0],
    "magnitude_hold": [-0.06, 0.0, 0.0],
}


@pytest.mark.parametrize("column", BY_HAND)
def test_columns_by_hand(table, column):
    np.testing.assert_allclose(table[column], BY_HAND[column], rtol=2e-6, atol=1e-9)


def test_columns_are_complete_and_in_order(table):
    assert list(table.columns[:3]) == ["symbol", "update", "steps"]
    assert {f"policy_{a.name}" for a in Action} <= set(table)
    assert {f"executed_{a.name}" for a in Action} <= set(table)
    assert {f"reason_{r.name}" for r in Reason} <= set(table)
    named = {c for c in table if c.startswith(("reward_", "magnitude_"))}
    expected = ("realized_pnl", "diversity_bonus", "hold")  # a weight of 0 has no column
    assert named == {f"{kind}_{name}" for kind in ("reward", "magnitude") for name in expected}
    assert set(EPISODE_MEANS.values()) <= set(table)


def test_every_number_has_64_bits(table):
    assert {kind.name for kind in table.select_dtypes("number").dtypes} == {"float64", "int64"}


def test_means_are_plain_means_over_episodes(table):
    means = episode_means(table)
    assert set(means) == set(EPISODE_MEANS)
    assert means["policy_action_entropy_mean"] == pytest.approx((0.95027054 + 0.37677016) / 3)
    assert means["voluntary_trade_rate"] == pytest.approx(0.5 / 3)
    assert means["forced_exit_ratio"] == pytest.approx(0.5 / 3)
    assert means["sanitizer_trade_delta"] == pytest.approx(20 / 3)
    assert means["unique_actions_mean"] == pytest.approx(7 / 3)
    assert means["episode_log_return_mean"] == pytest.approx((0.00995033 - 0.10536052) / 3)
    assert means["long_share_mean"] == pytest.approx(1.25 / 3)


def test_means_of_nothing_are_undefined(table):
    means = episode_means(table.iloc[:0])
    assert set(means) == set(EPISODE_MEANS)
    assert all(math.isnan(value) for value in means.values())


def test_no_episodes_make_a_table_without_rows():
    import jax

    empty = jax.tree.map(lambda x: x[:0], three_episodes())
    table = episode_table(empty, np.zeros(0), weights(realized_pnl=1.0), {"symbol": np.zeros(0)})
    assert len(table) == 0
    assert set(EPISODE_MEANS.values()) <= set(table)


# ------------------------------------------------------------------------------ is reward money?


def audited(reward, log_return, **magnitudes):
    columns = {f"magnitude_{name}": value for name, value in magnitudes.items()}
    return reward_audit(pd.DataFrame({"reward": reward, "log_return": log_return, **columns}))


def test_shares_and_dominance_by_hand():
    audit = audited([1.0, 2.0, 0.0], [0.1, 0.2, 0.0], pnl=[3.0, 2.0, 1.0], hold=[-1.0, -2.0, -1.0])
    assert audit["component_shares"] == {"pnl": pytest.approx(0.6), "hold": pytest.approx(0.4)}
    assert audit["dominant"] is None  # 60 % is not above 60 %

    audit = audited([1.0, 2.0, 0.0], [0.1, 0.2, 0.0], pnl=[3.0, 2.1, 1.0], hold=[1.0, 2.0, 1.0])
    assert audit["dominant"] == "pnl"

    audit = audited([1.0, 2.0, 0.0], [0.1, 0.2, 0.0], pnl=[0.0, 0.0, 0.0], hold=[0.0, 0.0, 0.0])
    assert audit["component_shares"] == {"pnl": 0.0, "hold": 0.0}
    assert audit["dominant"] is None


def test_a_reward_of_one_component_is_not_dominated_by_it():
    audit = audited([1.0, 2.0, 0.0], [0.1, 0.2, 0.0], log_wealth=[0.1, 0.2, 0.0])
    assert audit["component_shares"] == {"log_wealth": 1.0}
    assert audit["dominant"] is None


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    reward = rng.standard_normal(40)
    log_return = np.round(0.5 * reward + rng.standard_normal(40), 1)  # with ties
    expected = scipy.stats.spearmanr(reward, log_return).statistic
    audit = audited(reward, log_return, pnl=np.ones(40))
    assert audit["rank_correlation"] == pytest.approx(expected, abs=1e-12)
    assert audited([1.0, 2.0, 3.0], [5.0, 6.0, 9.0], pnl=np.ones(3))["rank_correlation"] == 1.0


@pytest.mark.parametrize(
    ("reward", "log_return"),
    [
        ([1.0, 2.0], [0.1, 0.2]),  # two points always agree
        ([1.0, 1.0, 1.0], [0.1, 0.2, 0.3]),
        ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]),
        ([], []),
    ],
)
def test_rank_correlation_is_none_where_it_means_nothing(reward, log_return):
    audit = audited(reward, log_return, pnl=np.ones(len(reward)))
    assert audit["rank_correlation"] is None


# --------------------------------------------------------------------------------------- on disk


def test_a_table_survives_csv_to_the_bit():
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    wide = rng.integers(0, 2**64, 20_000, dtype=np.uint64).view(np.float64)
    special = np.array([0.0, -0.0, 1e-45, np.float32(0.1), np.finfo(np.float32).max, np.nan])
    single = np.concatenate([bits[np.isfinite(bits)][:10_000], special.astype(np.float32)])
    double = np.concatenate([wide[np.isfinite(wide)][:10_000], special])
    table = host_table({"single": single, "double": double, "count": np.arange(len(single))})

    text = table.to_csv(index=False, lineterminator="\n")
    back = pd.read_csv(io.StringIO(text))

    np.testing.assert_array_equal(
        back["double"].to_numpy().view(np.uint64)[:-1], double.view(np.uint64)[:-1]
    )
    np.testing.assert_array_equal(
        back["single"].to_numpy(np.float32).view(np.uint32)[:-1], single.view(np.uint32)[:-1]
    )
    assert back.iloc[-1].isna().tolist() == [True, True, False]
    assert back.to_csv(index=False, lineterminator="\n") == text


# -------------------------------------------------------------------------- warnings of the audit

HEALTHY = {"dominant": None, "component_shares": {"pnl": 0.5, "hold": 0.5}}


def training(rewards, log_returns):
    return pd.DataFrame({"reward": rewards, "log_return": log_returns})


def test_a_dominant_component_is_named_with_its_share():
    audit = {"dominant": "pnl", "component_shares": {"pnl": 0.72, "hold": 0.28}}
    [warning] = audit_warnings(audit, training([], []))
    assert warning == "reward component pnl makes 72% of the reward (limit 60 %)"


def test_a_reward_that_rises_while_equity_falls_is_warned_of():
    rng = np.random.default_rng(0)
    trend, noise = np.linspace(0.0, 1.0, 200), rng.normal(0.0, 0.1, (2, 200))
    up, down = 1.0 + trend + noise[0], 0.01 - 0.02 * trend + 0.01 * noise[1]
    [warning] = audit_warnings(HEALTHY, training(up, down))
    assert warning == (
        "reward rose in training while equity fell: episode reward "
        f"{up[:50].mean():.3f} to {up[-50:].mean():.3f}, episode log return "
        f"{100 * down[:50].mean():.4f}% to {100 * down[-50:].mean():.4f}%"
    )
    for other in ((up, -down), (-up, down), (-up, -down)):
        assert audit_warnings(HEALTHY, training(*other)) == []


def test_chance_is_rarely_warned_of():
    """Stationary training, reward and money all but unrelated: it was nearly one run in five."""
    rng = np.random.default_rng(1)
    runs = (training(*rng.standard_normal((2, 200))) for _ in range(400))
    assert sum(bool(audit_warnings(HEALTHY, run)) for run in runs) <= 2  # expected: 0.05 %


def test_too_few_episodes_or_none_that_differ_say_nothing():
    assert audit_warnings(HEALTHY, training([], [])) == []
    assert audit_warnings(HEALTHY, training([0.0] * 7, [0.0] * 7)) == []
    assert audit_warnings(HEALTHY, training([0.0] * 40, [0.0] * 40)) == []
    constant = training([0.0] * 20 + [1.0] * 20, [0.0] * 20 + [-1.0] * 20)
    assert len(audit_warnings(HEALTHY, constant)) == 1
