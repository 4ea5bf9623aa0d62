"""The compiled environment against the float64 reference: random episodes, step by step.

The two share nothing but the rules. Where a rule compares two numbers that float32 cannot tell
apart, both answers are right and the episodes part: they are compared up to that step.
"""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import replace

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from reference_simulator import (
    COMPONENTS,
    COSTS,
    WEIGHTS,
    Action,
    Reason,
    ReferenceParameters,
    ReferenceSimulator,
    StepRecord,
)
from trading_episodes import BARS, BATCH, STEPS, Episode, Played, play

from envs.position import new_account

# Closer than this and float32 may decide either way. Float32 resolves 6e-8; a compared number is
# the result of up to a hundred rounded steps, and the environment grants a quantity one part in a
# million when it counts whole lots.
TIE = 2e-6


# ------------------------------------------------------------------------------- what is compared


def money_of(record: StepRecord) -> list[float]:
    """Amounts of the order of the initial equity."""
    return [
        record.cash,
        record.equity,
        record.peak_equity,
        record.drawdown,
        record.cost_basis,
        record.peak_basis,
        record.fill_costs,
        record.realised_profit,
    ]


def env_money(played: Played) -> np.ndarray:
    """The same amounts, [E, N, 8]."""
    state, fill = played.state, played.outcome.fill
    columns = [
        state.account.cash,
        state.account.equity,
        state.account.peak_equity,
        state.account.drawdown,
        state.position.cost_basis,
        state.position.peak_basis,
        fill.costs,
        fill.realized_profit,
    ]
    return np.stack(columns, axis=-1)


def counts_of(record: StepRecord) -> list[int]:
    """Everything that is an integer or a flag: these agree exactly or not at all."""
    account = record.account
    return [
        record.policy_action,
        record.executed_action,
        record.reason,
        record.terminated,
        record.truncated,
        record.streak,
        record.trades_today,
        account.held,
        account.bars_held,
        account.adds,
        account.partial_taken,
        *record.legal,
    ]


def env_counts(played: Played) -> np.ndarray:
    """The same numbers, [E, N, 18]."""
    state, outcome = played.state, played.outcome
    columns = [
        played.action,
        outcome.executed,
        outcome.reason,
        outcome.terminated,
        outcome.truncated,
        state.conduct.streak,
        state.conduct.session_trades,
        state.position.is_long,
        state.position.bars_held,
        state.position.adds,
        state.position.partial_taken,
    ]
    return np.concatenate([np.stack(columns, axis=-1), played.mask], axis=-1).astype(int)


def prices_of(record: StepRecord) -> list[float]:
    """Shares and prices, whose scale is the market's."""
    return [record.shares, record.fill_shares, record.fill_price]


def env_prices(played: Played) -> np.ndarray:
    """The same numbers, [E, N, 3]."""
    fill = played.outcome.fill
    return np.stack([played.state.position.shares, fill.shares, fill.price], axis=-1)


def observation_of(record: StepRecord, rules: ReferenceParameters) -> list[float]:
    """The account half of the observation: each number over the limit that gives it a scale."""
    account = record.account
    return [
        account.held,
        account.unrealised_return / rules.stop_loss,
        account.bars_held / rules.max_holding,
        account.weight / rules.position_cap,
        account.adds / rules.max_adds,
        account.partial_taken,
        account.cash_share,
        account.exposure,
        account.drawdown / rules.max_drawdown,
        account.return_since_start / rules.stop_loss,
        account.streak / rules.repeat_limit,
        account.trades_today / rules.daily_trade_limit,
    ]


def env_components(played: Played) -> np.ndarray:
    """Reward components, [E, N, 11]."""
    values = [getattr(played.outcome.components, name) for name in COMPONENTS]
    return np.stack(values, axis=-1)


def sharpe_uncertainty(mean: float, square: float, step_return: float, noise: float) -> float:
    """How far the differential Sharpe ratio moves when each return is off by `noise`.

    To first order, from the derivatives of (B (R - A) - A (R^2 - B) / 2) / (B - A^2)^1.5. Infinite
    where the variance B - A^2 is within a factor of ten of what the environment calls zero, and
    where it may be nothing but noise.
    """
    variance = square - mean**2
    if variance < max(1e-5 * square, noise**2, 1e-12):
        return np.inf
    numerator = square * (step_return - mean) - 0.5 * mean * (step_return**2 - square)
    spread = 2.0 * np.sqrt(square) * noise  # of the second moment
    by_return = abs(square - mean * step_return) * noise
    by_mean = abs(square + 0.5 * (step_return**2 - square)) * noise
    by_square = abs(step_return - 0.5 * mean) * spread
    by_variance = 1.5 * abs(numerator) / variance * (spread + 2.0 * abs(mean) * noise)
    return (by_return + by_mean + by_square + by_variance) / variance**1.5


# ------------------------------------------------------------------------------------- comparison


def compare(
    episodes: list[Episode], played: Played, tolerance: float, tally: Counter[str]
) -> list[ReferenceSimulator]:
    """Replays the environment's policy actions in the reference and compares every step.

    `tolerance` is relative, on money in units of the initial equity; reward components are returns
    over `pnl_scale`, and so is their tolerance.
    """
    theirs = {"money": env_money(played), "counts": env_counts(played)}
    theirs |= {"prices": env_prices(played), "components": env_components(played)}
    simulators = []
    for number, episode in enumerate(episodes):
        simulator = episode.reference()
        simulators.append(simulator)
        ours: dict[str, list[list[float]]] = {"money": [], "counts": [], "prices": []}
        ours |= {"components": [], "observation": [], "reward": [], "sharpe_noise": []}
        traded = False
        for action in played.action[number]:
            mean, square = simulator.sharpe_mean, simulator.sharpe_square
            before = simulator.equity()
            record = simulator.step(action)
            if record.margin < TIE:
                tally["ties"] += 1
                tally["skipped"] += simulator.stop_bar - record.bar
                break
            step_return = record.equity / before - 1.0
            # Before the first fill every return is 0, and so is the ratio, exactly.
            noise = sharpe_uncertainty(mean, square, step_return, tolerance) if traded else 0.0
            traded = traded or record.fill_shares != 0.0
            ours["money"].append(money_of(record))
            ours["counts"].append(counts_of(record))
            ours["prices"].append(prices_of(record))
            ours["components"].append([record.components[name] for name in COMPONENTS])
            ours["observation"].append(observation_of(record, episode.rules))
            ours["reward"].append([record.reward])
            ours["sharpe_noise"].append([noise])
            tally["sharpe_skipped"] += np.isinf(noise)
            tally[f"reason_{record.reason.name}"] += 1
            tally[f"executed_{record.executed_action.name}"] += 1
            if simulator.done:
                tally["finished"] += 1
                tally["terminated"] += record.terminated
                break
        steps = len(ours["money"])
        tally["steps"] += steps
        if steps:
            mine = {name: np.asarray(rows, np.float64) for name, rows in ours.items()}
            rows = {name: values[number, :steps] for name, values in theirs.items()}
            rows["observation"] = played.account[number, :steps]
            rows["reward"] = played.outcome.reward[number, :steps, None]
            check_rows(f"episode {number}", mine, rows, episode.rules, tolerance)
    return simulators


def check_rows(
    name: str,
    mine: dict[str, np.ndarray],
    theirs: dict[str, np.ndarray],
    rules: ReferenceParameters,
    tolerance: float,
) -> None:
    """Asserts that the rows of one episode agree."""
    np.testing.assert_array_equal(theirs["counts"], mine["counts"].astype(int), err_msg=name)
    np.testing.assert_allclose(
        theirs["money"], mine["money"], rtol=tolerance, atol=tolerance, err_msg=name
    )
    np.testing.assert_allclose(
        theirs["prices"], mine["prices"], rtol=10 * tolerance, atol=0, err_msg=name
    )
    # The observation is float32 whatever the rest is.
    scale = 10 * max(tolerance, 1e-7) / min(rules.stop_loss, rules.max_drawdown)
    np.testing.assert_allclose(
        theirs["observation"], mine["observation"], rtol=0, atol=scale, err_msg=name
    )
    # A profit of the position is a small difference of its proceeds and its basis.
    points = 4 * tolerance / rules.pnl_scale
    noise = mine["sharpe_noise"]
    allowed = np.full_like(mine["components"], points)
    allowed += points * np.abs(mine["components"])
    allowed[:, -1:] += noise
    error = np.abs(theirs["components"] - mine["components"])
    late = np.argwhere(error > allowed)
    assert not len(late), (
        f"{name}: {COMPONENTS[late[0][1]]} at step {late[0][0]} is "
        f"{theirs['components'][tuple(late[0])]}, not {mine['components'][tuple(late[0])]}"
    )
    weights = np.asarray([rules.weights.get(each, 0.0) for each in COMPONENTS])
    with np.errstate(invalid="ignore"):
        slack = np.where(weights > 0, weights * allowed, 0.0).sum(axis=1, keepdims=True)
    assert np.all(np.abs(theirs["reward"] - mine["reward"]) <= slack + 1e-6), name


# --------------------------------------------------------------------------------- random episodes

RULES = st.builds(
    ReferenceParameters,
    cost_multiplier=st.sampled_from([1.0, 1.5, 4.0]),
    lot_size=st.sampled_from([0.0, 0.0, 1.0, 10.0]),
    initial_cash=st.sampled_from([100_000.0, 10_000.0]),
    min_notional=st.sampled_from([1.0, 1.0, 510.0]),
    stop_loss=st.sampled_from([0.05, 0.01, 0.3]),
    take_profit=st.sampled_from([0.10, 0.02, 0.5]),
    max_holding=st.sampled_from([140, 40, 5]),
    max_drawdown=st.sampled_from([0.25, 0.25, 0.1, 0.01]),
    bankruptcy_equity=st.sampled_from([0.5, 0.96, 0.99]),
    position_cap=st.sampled_from([0.2, 0.2, 0.1, 1.5, 1.5]),
    # Not 1: an account that is all spent is exposed to exactly 1.
    max_exposure=st.sampled_from([1.01, 2.0, 2.0, 0.07]),
    daily_trade_limit=st.sampled_from([50, 50, 3, 1]),
    add_threshold=st.sampled_from([0.02, 0.005, -0.04]),
    max_adds=st.integers(1, 3),
    risk_multiplier=st.sampled_from([1.0, 0.5, 2.0, 12.0]),
    allow_new_risk=st.sampled_from([True] * 14 + [False]),
    weights=st.sampled_from(list(WEIGHTS.values())),
)
RULES_PER_BATCH = 5


def random_episode(rng: np.random.Generator, rules: ReferenceParameters) -> Episode:
    """Prices with gaps, jumps, halts and sessions, and a policy with habits."""
    volatility = 10.0 ** rng.uniform(-3.0, -1.3)
    jumps = (rng.random(BARS) < 0.02) * rng.normal(0.0, 0.2, BARS)
    drift = volatility * rng.choice([-0.5, 0.0, 0.5])
    moves = drift + volatility * rng.standard_normal(BARS) + jumps
    gaps = volatility * rng.choice([0.0, 0.3, 2.0]) * rng.standard_normal(BARS)
    tradable = rng.random(BARS) >= rng.choice([0.0, 0.05, 0.3])
    price = 10.0 ** rng.uniform(1.0, 3.0)
    opens, closes = np.empty(BARS), np.empty(BARS)
    for bar in range(BARS):
        if tradable[bar]:
            opens[bar] = price * np.exp(gaps[bar])
            price = opens[bar] * np.exp(moves[bar])
        else:
            opens[bar] = price
        closes[bar] = price
    memory = rng.choice([0.0, 0.6, 0.95])
    scores = rng.standard_normal((STEPS, 7))
    for step in range(1, STEPS):
        scores[step] = memory * scores[step - 1] + np.sqrt(1 - memory**2) * scores[step]
    start = int(rng.integers(0, 6))
    stop = BARS - 1 if rng.random() < 0.5 else int(rng.integers(start + 1, BARS - 1))
    return Episode(
        opens=opens,
        closes=closes,
        tradable=tradable,
        session=np.cumsum(rng.random(BARS) < rng.choice([0.02, 0.15, 0.5])),
        start_bar=start,
        stop_bar=stop,
        scores=(scores + rng.normal(0.0, 0.7, 7)).astype(np.float32),
        masked=bool(rng.random() < 0.5),
        rules=rules,
    )


def check_identity(episodes: list[Episode], played: Played) -> None:
    """Equity is cash + shares x close to float32's last digits, and cash is never negative."""
    account, position = played.state.account, played.state.position
    bars = np.minimum(played.state.bar, BARS - 1)
    closes = np.stack(
        [np.float32(episode.closes)[row] for episode, row in zip(episodes, bars, strict=True)]
    )
    holdings = position.shares.astype(np.float64) * closes
    inside = played.state.bar <= BARS - 1
    identity = account.cash.astype(np.float64) + holdings
    np.testing.assert_allclose(account.equity[inside], identity[inside], rtol=2.5e-7)
    assert account.cash[inside].min() >= 0.0
    assert position.shares[inside].min() >= 0.0


def check_statistics(
    episodes: list[Episode], played: Played, simulators: list[ReferenceSimulator]
) -> None:
    """Counters of finished episodes, from the reference's own ledger and records."""
    for number, simulator in enumerate(simulators):
        if not simulator.done or min(record.margin for record in simulator.records) < TIE:
            continue
        last = len(simulator.records) - 1
        counted = jax.tree.map(lambda leaf: leaf[number], played.statistics)  # noqa: B023
        expected = simulator.telemetry()
        profits = np.asarray([trade.net_profit for trade in simulator.ledger])
        assert counted.steps == len(simulator.records)
        assert counted.voluntary_exits == expected["voluntary_trades"]
        assert counted.forced_exits == expected["forced_trades"]
        assert counted.ended_exits == expected["ended_trades"]
        assert counted.repeat_violations == round(
            expected["action_repeat_violations"] * expected["steps"]
        )
        for reason in Reason:
            assert counted.reason_counts[reason] == expected[f"reason_{reason.name.lower()}"]
        np.testing.assert_allclose(counted.costs, expected["total_costs"], rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(
            [counted.gross_profit, counted.gross_loss],
            [profits[profits > 0].sum(), -profits[profits < 0].sum()],
            atol=1e-5,
        )
        paid = played.outcome.reward[number, : last + 1].astype(np.float64)
        np.testing.assert_allclose(counted.reward, paid.sum(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(counted.max_drawdown, expected["max_drawdown"], atol=1e-5)


@pytest.mark.parametrize(("batches", "double"), [(40, False), (6, True)], ids=["f32", "f64"])
def test_random_episodes_agree_with_the_reference(batches: int, double: bool) -> None:
    """A thousand episodes in float32, and some in float64, where rounding hides nothing.

    Each batch has five sets of rules, and five price paths of up to 63 steps for each.
    """
    tally: Counter[str] = Counter()

    @settings(
        max_examples=batches,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        rules=st.lists(RULES, min_size=RULES_PER_BATCH, max_size=RULES_PER_BATCH),
        costs=st.lists(
            st.sampled_from(list(COSTS)), min_size=RULES_PER_BATCH, max_size=RULES_PER_BATCH
        ),
        fill=st.sampled_from(["next_open", "same_close"]),
    )
    def agree(rules: list[ReferenceParameters], costs: list[str], fill: str) -> None:
        kinds = [
            replace(each, fill=fill, **COSTS[preset])
            for each, preset in zip(rules, costs, strict=True)
        ]
        # Hypothesis likes to draw one seed again and again; the rules do for a seed.
        rng = np.random.default_rng(zlib.crc32(repr(kinds).encode()))
        episodes = [random_episode(rng, kinds[n % RULES_PER_BATCH]) for n in range(BATCH)]
        played = play(episodes, double=double)
        tally["episodes"] += len(episodes)
        simulators = compare(episodes, played, 1e-9 if double else 2e-6, tally)
        check_identity(episodes, played)
        check_statistics(episodes, played, simulators)

    agree()
    assert tally["episodes"] == batches * BATCH
    assert tally["skipped"] < 0.01 * tally["steps"]
    assert tally["sharpe_skipped"] < 0.02 * tally["steps"]
    if not double:
        # The comparison means little for what never happens.
        for reason in Reason:
            assert tally[f"reason_{reason.name}"] >= 5, reason
        for action in Action:
            assert tally[f"executed_{action.name}"] >= 100, action


# ------------------------------------------------------------------------------------ the long run


def test_equity_stays_true_over_20_000_bars() -> None:
    """Within 1e-5 of float64, relative, trading on nine bars of ten; rounding must not add up.

    Three cost presets, fractional shares and lots. Nothing ends the episode or forces an exit.
    """
    bars = 20_001
    rng = np.random.default_rng(7)
    closes = 100.0 * np.exp(np.cumsum(0.004 * rng.standard_normal(bars)))
    opens = np.append(100.0, closes[:-1]) * np.exp(0.001 * rng.standard_normal(bars))
    scores = rng.standard_normal((bars - 1, 7)) - np.eye(7)[Action.HOLD]
    unlimited = ReferenceParameters(
        stop_loss=1e6,
        take_profit=1e6,
        max_holding=10**9,
        max_drawdown=1e6,
        bankruptcy_equity=-1e6,
        daily_trade_limit=10**9,
        add_threshold=0.0,
    )
    kinds = [
        replace(unlimited, **COSTS["retail"]),
        replace(unlimited, **COSTS["stage5"]),
        replace(unlimited, **COSTS["free"]),
        replace(unlimited, **COSTS["retail"], lot_size=1.0, initial_cash=1e6),
    ]
    episodes = [
        Episode(opens, closes, scores.astype(np.float32), masked=True, rules=rules)
        for rules in kinds
    ]
    played = play(episodes)
    for number, episode in enumerate(episodes):
        simulator = episode.reference()
        records = [simulator.step(action) for action in played.action[number]]
        executed = np.asarray([record.executed_action for record in records])
        np.testing.assert_array_equal(played.outcome.executed[number], executed)
        assert np.mean(executed != Action.HOLD) > 0.85
        equity = np.asarray([record.equity for record in records])
        error = np.abs(played.state.account.equity[number] / equity - 1.0)
        assert error.max() <= 1e-5, f"episode {number} is off by {error.max():.1e}"


def test_an_account_never_owes_a_rounding_error() -> None:
    """Whoever receives a sum and then spends every cent has nothing left, and owes nothing."""
    rng = np.random.default_rng(0)
    shape = 1_000_000
    cash, flow = (jnp.asarray(rng.random(shape), jnp.float32) for _ in range(2))

    @jax.jit
    @jax.vmap
    def left(cash: jax.Array, flow: jax.Array) -> jax.Array:
        account = replace(new_account(), cash=cash).receive(flow)
        return account.receive(-account.cash).cash

    after = np.asarray(left(cash, flow))
    assert after.min() >= 0.0, f"{np.sum(after < 0)} of {shape} accounts owe {after.min()}"
    assert after.max() < 1e-6


def test_spending_all_cash_over_and_over() -> None:
    """Buys and adds that ask for more than there is take what there is."""
    rng = np.random.default_rng(0)
    greedy = ReferenceParameters(
        risk_multiplier=12.0,
        position_cap=1.5,
        max_exposure=2.0,
        max_drawdown=0.9,
        bankruptcy_equity=0.05,
        stop_loss=0.3,
        take_profit=0.5,
        max_adds=100,
        add_threshold=-0.2,
    )
    kinds = [replace(greedy, **COSTS[name], lot_size=lot) for name in COSTS for lot in (0.0, 1.0)]
    spent = 0
    for _ in range(30):
        episodes = [random_episode(rng, kinds[n % len(kinds)]) for n in range(BATCH)]
        episodes = [replace(episode, stop_bar=BARS - 1, masked=True) for episode in episodes]
        played = play(episodes)
        check_identity(episodes, played)
        spent += np.sum(played.state.account.cash < 1e-6)
    assert spent > 1000
