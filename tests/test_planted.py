"""Planted markets: what they promise of their law, and that learners find what is there to find."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from envs.oracle import replay, solve
from jaxtrader.config import TrainingConfig, replace_settings
from jaxtrader.data import Dataset, Scaler
from jaxtrader.data.planted import PROBES, null, planted_dataset, stationary
from jaxtrader.errors import ConfigError
from jaxtrader.evaluation.probes import (
    learn_probe,
    log_wealth_out_of_sample,
    probe_config,
    whole_episodes,
)
from jaxtrader.program import build_program

MARKETS = {**PROBES, "null": null}
LOG_WEALTH = replace_settings(TrainingConfig(), "reward", preset="log_wealth")

# -------------------------------------------------------------------------------------- their law


@pytest.mark.parametrize("name", MARKETS)
def test_prices_and_states_follow_the_stated_law(name: str) -> None:
    market = MARKETS[name]()
    path = market.draw(3, 60_000)
    before, after = path.states[:-1], path.states[1:]
    returns = np.diff(path.close) / path.close[:-1]
    for state in range(market.num_states):
        here = before == state
        count = here.sum()
        # Two points, the drift more or less the deviation, and both equally often.
        distance = np.abs(returns[here] - market.drift[state])
        np.testing.assert_allclose(distance, market.deviation[state], atol=1e-12)
        ups = (returns[here] > market.drift[state]).sum()
        assert stats.binomtest(int(ups), int(count)).pvalue > 1e-5
        seen = np.bincount(after[here], minlength=market.num_states)
        expected = market.transition[state]
        assert (seen[expected == 0] == 0).all()
        if (expected > 0).sum() > 1:
            test = stats.chisquare(seen[expected > 0], count * expected[expected > 0])
            assert test.pvalue > 1e-5
    np.testing.assert_array_equal(
        path.features[:, market.noise_features :], market.emission[path.states].astype(np.float32)
    )


@pytest.mark.parametrize("name", MARKETS)
def test_the_outlook_is_the_same_law(name: str) -> None:
    """Mean and variance of the return, and every transition, recomputed from the branches."""
    market = MARKETS[name]()
    outlook = jax.tree.map(np.asarray, market.outlook())
    probability, gains = outlook.probability[0], outlook.gap[0] * outlook.move[0] - 1.0
    np.testing.assert_allclose((probability * gains).sum(axis=1), market.drift, atol=1e-7)
    second = (probability * (gains - market.drift[:, None]) ** 2).sum(axis=1)
    np.testing.assert_allclose(np.sqrt(second), market.deviation, rtol=1e-4)
    moves = np.zeros_like(market.transition)
    for state in range(market.num_states):
        np.add.at(moves[state], outlook.next_state[0, state], probability[state])
    np.testing.assert_allclose(moves, market.transition, atol=1e-6)


@pytest.mark.parametrize("name", MARKETS)
def test_rows_are_laws_and_log_prices_have_no_trend(name: str) -> None:
    market = MARKETS[name]()
    np.testing.assert_allclose(market.transition.sum(axis=1), 1.0)
    assert (market.transition >= 0).all()
    share = stationary(market.transition)
    np.testing.assert_allclose(share @ market.transition, share, atol=1e-9)
    up, down = market.drift + market.deviation, market.drift - market.deviation
    growth = share @ (np.log1p(up) + np.log1p(down)) / 2
    assert abs(growth) * 200_000 < 20.0  # float32 prices reach from e^-87 to e^88


def test_the_same_seed_draws_the_same_history_and_another_another() -> None:
    market = PROBES["trend"]()
    one, again, other = market.draw(1, 500), market.draw(1, 500), market.draw(2, 500)
    np.testing.assert_array_equal(one.close, again.close)
    np.testing.assert_array_equal(one.features, again.features)
    assert not np.array_equal(one.states, other.states)


def test_a_dataset_of_histories() -> None:
    market = PROBES["trend"]()
    dataset, states = planted_dataset(market, 5, histories=2, bars=(400, 300, 350))
    assert dataset.symbols == ("trend_0", "trend_1")
    assert dataset.provenance["kind"] == "synthetic"
    for i in range(2):
        path = market.draw(5 + i, states.shape[1])
        np.testing.assert_array_equal(dataset.close[i], path.close)
        np.testing.assert_array_equal(states[i], path.states)
    sizes = {name: int(last[0] - first[0] + 1) for name, (first, last) in dataset.splits.items()}
    assert sizes == {"train": 400, "validation": 300, "test": 350}
    ends = {name: int(last[0]) for name, (_, last) in dataset.splits.items()}
    firsts = {name: int(first[0]) for name, (first, _) in dataset.splits.items()}
    reach = dataset.receptive_field
    assert firsts["train"] >= reach - 1
    # No window of a split reaches into the one before it.
    assert firsts["validation"] - (reach - 1) > ends["train"]
    assert firsts["test"] - (reach - 1) > ends["validation"]
    assert ends["test"] == states.shape[1] - 1


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="histories 0"):
        planted_dataset(PROBES["trend"](), histories=0)
    with pytest.raises(ConfigError, match="bars"):
        planted_dataset(PROBES["trend"](), bars=(400, 1, 400))


# ------------------------------------------------------------------------------ value and replay


def test_the_expected_optimum_is_what_optimal_play_earns_on_average() -> None:
    """Backward induction against the mean of 1,500 episodes in the real environment."""
    market = PROBES["trap"]()
    steps = 24
    config = replace_settings(probe_config(market), "environment", episode_length=steps)
    dataset, states = planted_dataset(market, bars=(100, 100, 1_500 * steps + 1))
    program = build_program(config, dataset)
    params = jax.tree.map(lambda x: x[0], program.params["test"])
    starts, _ = whole_episodes(program)
    offset = int(dataset.splits["test"][0][0]) - (dataset.receptive_field - 1)
    information = np.stack([states[0, offset + bar : offset + bar + steps] for bar in starts])
    plan = solve(market.outlook(), params, steps)
    played = jax.vmap(replay, (None, None, None, None, 0, 0))(
        plan,
        program.learner.env,
        params,
        jnp.int32(0),
        jnp.asarray(starts + steps, jnp.int32),
        jnp.asarray(information),
    )
    gains = np.asarray(played.log_wealth, np.float64)
    # Given its first state, an episode is independent of the others.
    promised = np.asarray(plan.value, np.float64)[information[:, 0]]
    error = stats.sem(gains - promised)
    assert abs(np.mean(gains - promised)) < 4 * error + 0.002 * promised.mean()
    assert promised.mean() > 20 * error  # the comparison can fail


# -------------------------------------------------------------------------------------- learning


@pytest.mark.slow
def test_ppo_learns_to_leave_a_rise_before_its_crash() -> None:
    """A small version of `python -m benchmarks.learning`: all defaults, few steps."""
    probe = learn_probe(PROBES["trap"](), (1, 2), 160_000, bars=(40_000, 2_000, 12_801))
    assert probe.learnt.shape == (2, 50)
    assert (probe.shares >= 0.90).all(), probe.shares
    assert (probe.shares < 1.05).all(), probe.shares  # nobody beats the optimum
    low, high = probe.intervals().T
    assert (low < probe.shares).all()
    assert (probe.shares < high).all()


HISTORIES, BARS = 20, (8_000, 600, 6_401)  # one shape: one compilation for all that follow


def gains(dataset: Dataset, costs: str = "free") -> np.ndarray:
    """Out-of-sample log wealth of 20 agents, each on a history of its own, in one program.

    Hot learning and a start that trades, so that few steps are enough to find what is there.
    """
    config = replace_settings(LOG_WEALTH, "environment", costs=costs)
    config = replace_settings(config, "network", hold_bias=0.0)
    config = replace_settings(
        config, "ppo", learning_rate=2e-3, num_envs=16, rollout_steps=64, num_epochs=5
    )
    return log_wealth_out_of_sample(dataset, (1,), 16_384, config)[:, 0]


def significant(sample: np.ndarray) -> bool:
    """Whether the mean is above zero by a one-sided t test at 2.5 %."""
    assert np.count_nonzero(sample) >= 15, "who never trades proves nothing"
    return stats.ttest_1samp(sample, 0.0, alternative="greater").pvalue < 0.025


def with_features(dataset: Dataset, features: np.ndarray) -> Dataset:
    first, last = (int(bar[0]) for bar in dataset.splits["train"])
    rows = features[:, first : last + 1].reshape(-1, features.shape[-1])
    return dataclasses.replace(dataset, raw_features=features, scaler=Scaler.fit(rows))


@pytest.mark.slow
def test_nobody_gains_on_a_martingale_but_who_sees_the_future() -> None:
    """20 agents in one program, each on a history of its own; then with one bar of look-ahead."""
    dataset, _ = planted_dataset(null(), histories=HISTORIES, bars=BARS)
    honest = gains(dataset)
    assert len(honest) == 20
    assert not significant(honest), honest

    leaked = np.array(dataset.raw_features)
    leaked[:, :-1, 0] = np.sign(np.diff(dataset.close))  # the next bar's move
    cheating = gains(with_features(dataset, leaked))
    assert significant(cheating)
    assert cheating.mean() > 20 * abs(honest.mean())


@pytest.mark.slow
def test_costs_only_ever_take() -> None:
    dataset, _ = planted_dataset(null(), histories=HISTORIES, bars=BARS)
    assert not significant(gains(dataset, costs="retail"))


@pytest.mark.slow
def test_shuffled_features_give_no_edge() -> None:
    """The same prices with a signal (learnt), and with its features dealt out to other bars.

    The signal is drawn anew at every bar. Were it to last, prices would have momentum, and an agent
    may see that, features or not, in the unrealised return of its own position.
    """
    fleeting = dataclasses.replace(PROBES["trend"](), transition=np.full((3, 3), 1 / 3))
    dataset, _ = planted_dataset(fleeting, histories=HISTORIES, bars=BARS)
    told = gains(dataset)
    assert significant(told)
    rng = np.random.default_rng(1)
    shuffled = np.stack([rng.permutation(rows) for rows in dataset.raw_features])
    untold = gains(with_features(dataset, shuffled))
    assert not significant(untold), untold
    assert untold.mean() < 0.1 * told.mean()
