"""The oracle against brute force: every sequence of actions on tiny markets, two simulators.

On six steps all sequences can be played. Where no threshold is in reach the plan must find the very
best one. Where stops, targets and the add gate are, the value is a step function of the unrealised
return, and interpolation may cost a little: how much is asserted.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from markets import params_for, random_walk
from reference_simulator import ReferenceParameters, ReferenceSimulator
from trading_episodes import env_rules

from envs import oracle
from envs.actions import Action
from envs.execution import execution_params
from envs.market import Market
from envs.oracle import (
    Grid,
    Outlook,
    Plan,
    Replay,
    foresight_bound,
    perfect_foresight,
    replay,
    solve,
)
from envs.trading import TradingEnv, TradingParams

STEPS = 6  # of the tiny markets: 7 bars
REPEATABLE = {"deadline": None, "database": None, "derandomize": True}
UNGATED = {"stop_loss": 10.0, "take_profit": 10.0, "add_threshold": 10.0}


# ------------------------------------------------------------------------------------- markets


def market_from(opens, closes, tradable=None) -> Market:
    """One symbol."""
    closes = np.asarray(closes, np.float32)
    tradable = np.ones(len(closes), bool) if tradable is None else np.asarray(tradable)
    return Market(
        open=jnp.asarray(opens, jnp.float32)[None],
        close=jnp.asarray(closes)[None],
        tradable=jnp.asarray(tradable)[None],
        session=jnp.zeros((1, len(closes)), jnp.int32),
        features=jnp.zeros((1, len(closes), 1), jnp.float32),
    )


def tiny_market(
    rng: np.random.Generator, volatility: float, gaps: float, halts: float, drift: float = 0.0
) -> Market:
    """`STEPS` moves of about `volatility`; a bar that does not trade repeats the last close."""
    closes = 100.0 * np.exp(np.cumsum(drift + volatility * rng.standard_normal(STEPS + 1)))
    opens = np.append(100.0, closes[:-1]) * np.exp(gaps * rng.standard_normal(STEPS + 1))
    tradable = rng.random(STEPS + 1) >= halts
    for bar in np.flatnonzero(~tradable[1:]) + 1:
        opens[bar] = closes[bar] = closes[bar - 1]
    return market_from(opens, closes, tradable)


def rules_on(market: Market, *, limits=None, **execution) -> TradingParams:
    params = params_for(market, episode_length=1, receptive_field=1, limits=limits)
    return replace(params, execution=execution_params(**execution))


def planned(params: TradingParams) -> tuple[Plan, Replay]:
    """What someone who has read all bars of symbol 0 would do, and what comes of it."""
    last = params.market.num_bars - 1
    plan = solve(perfect_foresight(params.market, 0, 0, last, params.execution.fill), params)
    return plan, replay(plan, ENV, params, jnp.int32(0), jnp.int32(last))


# ------------------------------------------------------------------------------- brute force

ENV = TradingEnv(params_for(random_walk(1)), window=1)


def choose(state, choice: jax.Array) -> jax.Array:
    """The legal actions by number; ADD_POSITION counts as legal whenever long."""
    flat, long = jnp.asarray([0, 1, 2, 3]), jnp.asarray([0, 4, 5, 6])
    return jnp.where(state.position.is_long, long[choice], flat[choice])


@partial(jax.jit, static_argnames="legal")
def brute_force(params: TradingParams, legal: bool = True) -> jax.Array:
    """Largest log wealth of all sequences of (legal) actions in the environment, f32[]."""
    sequences = itertools.product(range(4 if legal else 7), repeat=STEPS)

    def play(numbers):
        def step(state, number):
            action = choose(state, number) if legal else number
            return ENV.transition(state, action, params)[0], None

        start = ENV.initial_state(jnp.int32(0), jnp.int32(0), jnp.int32(STEPS))
        return jnp.log(jax.lax.scan(step, start, numbers)[0].account.equity)

    return jnp.max(jax.vmap(play)(jnp.asarray(list(sequences), jnp.int32)))


def branch(simulator: ReferenceSimulator, action: int) -> ReferenceSimulator:
    """The simulator one step later; the original is left as it is."""
    copied = copy.copy(simulator)
    copied.records, copied.ledger = list(simulator.records), list(simulator.ledger)
    copied.step(action)
    return copied


def best_in_reference(simulator: ReferenceSimulator) -> float:
    """Largest log wealth of all sequences of legal actions, in float64."""
    if simulator.done:
        return math.log(simulator.equity())
    legal = np.flatnonzero(simulator.legal_mask())
    return max(best_in_reference(branch(simulator, action)) for action in legal)


def test_illegal_actions_gain_nothing():
    """All 7^6 sequences are no better than the legal ones, which the other tests enumerate."""
    params = rules_on(tiny_market(np.random.default_rng(3), 0.03, 0.005, 0.0, drift=0.02))
    assert brute_force(params, legal=False) == brute_force(params) > 0.003


# -------------------------------------------------------------------------- perfect foresight


def test_two_bars_by_hand():
    """Buys 9 % at an open of 100, and the end of the episode sells at an open of 120."""
    params = rules_on(market_from([90, 100, 120], [95, 104, 150]))
    plan, played = planned(params)
    shares = 0.09 / (100 * 1.00025 * 1.0005)
    expected = math.log(0.91 + shares * 120 * 0.99975 * 0.9995)
    assert played.action.tolist() == [Action.BUY_LARGE, Action.HOLD]
    assert played.log_wealth == pytest.approx(expected, abs=1e-7)
    assert plan.value[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("basis_points", "action"), [(14, Action.HOLD), (16, Action.BUY_LARGE)])
def test_a_gain_below_the_costs_is_left_alone(basis_points, action):
    """A round trip costs 15 basis points."""
    params = rules_on(market_from([100, 100, 100 + basis_points / 100], [100, 100, 100]))
    plan, played = planned(params)
    assert played.action[0] == action
    assert (plan.value[0] > 0) == (action != Action.HOLD)


@pytest.mark.parametrize("fill", ["next_open", "same_close"])
@pytest.mark.parametrize("seed", range(8))
def test_out_of_reach_of_every_threshold_the_plan_is_the_best_sequence(seed, fill):
    """Nothing jumps: what is left is the interpolation of smooth functions of the weight."""
    rng = np.random.default_rng(seed)
    market = tiny_market(rng, volatility=0.02, gaps=0.01, halts=0.2)
    multiplier = float(rng.choice([0.0, 1.0, 5.0]))
    params = rules_on(market, limits=UNGATED, cost_multiplier=multiplier, fill=fill)
    best = brute_force(params)
    plan, played = planned(params)
    assert played.log_wealth == pytest.approx(float(best), abs=1e-6)
    assert plan.value[0] == pytest.approx(float(best), abs=2e-5)


def test_within_reach_of_every_threshold_little_is_lost():
    """120 wild markets on which stops, targets, add gates and caps decide, some with halts."""
    rng = np.random.default_rng(0)
    best, attained, value, bound = [], [], [], []
    for _ in range(120):
        volatility = rng.choice([0.005, 0.02, 0.05, 0.08])
        gaps, halts = rng.choice([0.0, 0.01, 0.04]), rng.choice([0.0, 0.2])
        market = tiny_market(rng, volatility, gaps, halts, drift=rng.choice([0.0, 0.01, 0.03]))
        params = rules_on(market, cost_multiplier=float(rng.choice([0.0, 1.0, 5.0, 20.0])))
        plan, played = planned(params)
        best.append(brute_force(params))
        attained.append(played.log_wealth)
        value.append(plan.value[0])
        bound.append(foresight_bound(plan.outlook, params))
    best, attained, value, bound = (np.asarray(x) for x in (best, attained, value, bound))
    assert (best > 0.001).mean() > 0.5  # there was something to find
    assert (attained <= best + 1e-6).all()
    assert (attained >= best - 1e-6).mean() > 0.97
    assert (best - attained).max() < 0.003
    assert attained.sum() > 0.995 * best.sum()
    assert np.abs(value - best).max() < 0.003
    assert value.sum() == pytest.approx(best.sum(), rel=0.005)
    assert (bound >= best - 1e-6).all()


@pytest.mark.parametrize("seed", range(6))
def test_the_plan_is_the_best_sequence_of_the_float64_reference(seed):
    """The other simulator, which shares no code: prices that reach the gate and the target."""
    rng = np.random.default_rng(100 + seed)
    market = tiny_market(rng, volatility=0.03, gaps=0.005, halts=0.1, drift=0.015)
    rules = ReferenceParameters(cost_multiplier=float(rng.choice([0.5, 2.0])))
    params = replace(rules_on(market), **env_rules(rules))
    simulator = ReferenceSimulator(
        market.open[0], market.close[0], market.tradable[0], parameters=rules
    )
    simulator.reset(0, STEPS)
    best = best_in_reference(simulator)
    _, played = planned(params)
    assert best > 0.001
    assert played.log_wealth == pytest.approx(best, abs=2e-6)


def test_over_many_bars_little_is_lost():
    """120 bars, gates and all: what is attained is what the plan expects."""
    params = rules_on(random_walk(1, 120, volatility=0.015, seed=4))
    plan, played = planned(params)
    assert played.log_wealth == pytest.approx(float(plan.value[0]), rel=0.01)
    assert played.log_wealth < foresight_bound(plan.outlook, params)


def test_rules_the_state_does_not_carry_can_only_lower_what_is_attained():
    """Held for two bars at most, three buys in a row, one trade a session: the value ignores it."""
    market = market_from([100] * 7, [100, 101, 102, 103, 104, 105, 106])
    market = replace(market, open=market.close)
    free, bound_to = (
        rules_on(market, limits=limits)
        for limits in (None, {"max_holding": 2, "max_trades_per_session": 1})
    )
    plan, played = planned(bound_to)
    assert plan.value[0] == planned(free)[0].value[0]
    assert played.log_wealth <= brute_force(bound_to) + 1e-6
    assert brute_force(bound_to) < brute_force(free) < plan.value[0] + 1e-5


def test_whole_lots_are_planned_as_fractions_and_played_as_lots():
    rng = np.random.default_rng(8)
    params = rules_on(tiny_market(rng, 0.02, 0.0, 0.0, drift=0.01), lot_size=10.0)
    fractions = replace(params, execution=execution_params())
    plan, played = planned(params)
    assert plan.value[0] == planned(fractions)[0].value[0]
    assert 0.9 * brute_force(params) < played.log_wealth <= brute_force(params) + 1e-6


@pytest.mark.parametrize("tradable", [True, False])
def test_what_is_left_over_when_the_last_bar_does_not_trade_is_marked(tradable):
    """Bought at 100; the last bar, at 110, sells it or leaves it as it is."""
    market = market_from([100, 100, 110], [100, 110, 110], [True, True, tradable])
    params = rules_on(market, costs="stage5")
    plan, played = planned(params)
    shares = 0.09 / (100 * 1.0001 * 1.00002)
    price = 110 * 0.9999 * 0.99998 if tradable else 110
    assert played.log_wealth == pytest.approx(math.log(0.91 + shares * price), abs=1e-7)
    assert plan.value[0] == pytest.approx(math.log(0.91 + shares * price), abs=1e-6)


# ---------------------------------------------------------------------------- the upper bound


def test_the_bound_by_hand():
    """Free trading, one jump of 20 %: the most that can be held is 0.22 of 1.02."""
    params = rules_on(market_from([100, 100, 120], [100, 100, 120]), costs="free")
    plan, _ = planned(params)
    expected = math.log(1 + 0.22 / 1.02 * 0.2)
    assert foresight_bound(plan.outlook, params) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("stop_loss", [0.05, 0.995, 2.0])
def test_looser_rules_never_lower_the_bound(stop_loss):
    """It was NaN with adds permitted at any loss (-1), and lower yet beyond that."""
    params = rules_on(tiny_market(np.random.default_rng(0), 0.02, 0.01, 0.0))
    outlook = perfect_foresight(params.market, 0, 0, STEPS)
    thresholds = [0.02, 0.0, -0.04, -0.2, -0.9, -1.0, -2.0]
    limits = [{"add_threshold": add, "stop_loss": stop_loss} for add in thresholds]
    bounds = [foresight_bound(outlook, rules_on(params.market, limits=each)) for each in limits]
    assert bounds == sorted(bounds)
    assert bounds[-1] < 10.0 * bounds[0]


def best_of_the_relaxation(
    outlook: Outlook, weight: np.ndarray, buying: float, selling: float
) -> float:
    """Log of the largest final equity if weights up to `weight` f[T] are all that limits trading.

    The linear program itself, solved by HiGHS: unknown are equity and position at each close, and
    what is bought and sold in each step.
    """
    gap, move = (np.asarray(x, np.float64)[:, 0, 0] for x in (outlook.gap, outlook.move))
    steps = len(gap)
    equity, position, bought, sold = np.eye(4 * (steps + 1)).reshape(4, steps + 1, -1)
    zero, at_most_zero = [position[0]], []
    for t in range(steps):
        found = gap[t] * position[t]
        kept = found + bought[t] - sold[t]
        profit = found - position[t] + (move[t] - 1.0) * kept
        costs = buying * bought[t] + selling * sold[t]
        zero += [equity[t + 1] - equity[t] - profit + costs, position[t + 1] - move[t] * kept]
        if not outlook.tradable[t]:
            zero += [bought[t], sold[t]]
        elif t == steps - 1:
            zero += [bought[t], kept]
        else:
            at_most_zero.append(kept - weight[t] * equity[t])
    solution = scipy.optimize.linprog(
        -equity[steps],
        A_ub=np.asarray(at_most_zero) if at_most_zero else None,
        b_ub=np.zeros(len(at_most_zero)) if at_most_zero else None,
        A_eq=np.asarray([*zero, equity[0]]),
        b_eq=np.append(np.zeros(len(zero)), 1.0),
    )
    assert solution.success
    return math.log(-solution.fun)


@settings(max_examples=40, **REPEATABLE)
@given(
    seed=st.integers(0, 2**32 - 1),
    volatility=st.sampled_from([0.005, 0.02, 0.05]),
    gaps=st.sampled_from([0.0, 0.03]),
    halts=st.sampled_from([0.0, 0.3]),
    multiplier=st.sampled_from([0.0, 1.0, 10.0]),
    add_threshold=st.sampled_from([0.02, -0.2]),
)
def test_the_bound_solves_its_linear_program(
    seed, volatility, gaps, halts, multiplier, add_threshold
):
    """Exactly, but for positions that drift above the largest weight and must be cut back."""
    market = tiny_market(np.random.default_rng(seed), volatility, gaps, halts)
    limits = {"add_threshold": add_threshold}
    params = rules_on(market, limits=limits, cost_multiplier=multiplier)
    outlook = perfect_foresight(market, 0, 0, STEPS)
    drifted = 0.2 * 1.1 / (1.0 if add_threshold > 0 else 0.95)  # the stop: no loser beyond 5 %
    weight = np.maximum(drifted / (0.8 + drifted) * np.asarray(outlook.gap)[:, 0, 0], 0.2)
    buying = (1 + 2.5e-4 * multiplier) * (1 + 5e-4 * multiplier) - 1
    selling = 1 - (1 - 2.5e-4 * multiplier) * (1 - 5e-4 * multiplier)
    best = best_of_the_relaxation(outlook, weight, buying, selling)
    assert best - 2e-6 <= foresight_bound(outlook, params) <= 1.015 * best + 2e-6


RATES = st.floats(0.0, 0.02)


@settings(max_examples=60, **REPEATABLE)
@given(
    seed=st.integers(0, 2**32 - 1),
    volatility=st.floats(0.001, 0.15),
    gaps=st.floats(0.0, 0.1),
    halts=st.floats(0.0, 0.5),
    commission=RATES,
    slippage=RATES,
    fractions=st.tuples(*[st.floats(0.01, 1.0)] * 3),
    limits=st.fixed_dictionaries(
        {
            "position_cap": st.floats(0.05, 1.0),
            # -1 and below: whatever the loss, where the stop permits it.
            "add_threshold": st.floats(-0.03, 0.05) | st.sampled_from([-0.2, -1.0, -2.0]),
            "take_profit": st.floats(0.01, 0.2),
            "stop_loss": st.floats(0.01, 0.2) | st.just(2.0),
        }
    ),
)
def test_no_sequence_of_actions_exceeds_the_bound(
    seed, volatility, gaps, halts, commission, slippage, fractions, limits
):
    market = tiny_market(np.random.default_rng(seed), volatility, gaps, halts, drift=0.01)
    limits = limits | {"buy_fractions": fractions}
    params = rules_on(market, limits=limits, commission=commission, slippage=slippage)
    bound = foresight_bound(perfect_foresight(market, 0, 0, STEPS), params)
    assert bound >= brute_force(params) - 2e-6


# -------------------------------------------------------------------------------- properties


@settings(max_examples=20, **REPEATABLE)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 3.0), st.floats(0.0, 3.0))
def test_lower_costs_never_lower_the_optimum(seed, multiplier, other):
    """Without gates and exits: those look at the return net of costs, and cheap is not tame."""
    market = tiny_market(np.random.default_rng(seed), 0.02, 0.01, 0.1)
    low, high = (
        rules_on(market, limits=UNGATED, cost_multiplier=rate)
        for rate in sorted((multiplier, other))
    )
    outlook = perfect_foresight(market, 0, 0, STEPS)
    assert solve(outlook, low).value[0] >= solve(outlook, high).value[0] - 1e-6
    assert foresight_bound(outlook, low) >= foresight_bound(outlook, high) - 1e-6


@settings(max_examples=10, **REPEATABLE)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1000.0))
def test_only_relative_prices_matter(seed, scale):
    market = tiny_market(np.random.default_rng(seed), 0.02, 0.01, 0.1)
    scaled = replace(market, open=scale * market.open, close=scale * market.close)
    (plan, _), (other, _) = planned(rules_on(market)), planned(rules_on(scaled))
    assert plan.value[0] == pytest.approx(float(other.value[0]), abs=5e-4)
    doubled = replace(market, open=2.0 * market.open, close=2.0 * market.close)
    np.testing.assert_array_equal(plan.value, planned(rules_on(doubled))[0].value)


def test_values_depend_on_what_is_ahead_and_on_nothing_else():
    """Bars up to t are replaced: the values after step t stay the same to the bit."""
    market, other = (tiny_market(np.random.default_rng(seed), 0.02, 0.01, 0.0) for seed in (1, 2))
    plan, _ = planned(rules_on(market))
    for bar in range(1, STEPS):
        later = jnp.arange(STEPS + 1) > bar
        spliced = replace(
            market,
            # The close of `bar` is the price that the next returns start from.
            open=jnp.where(later, market.open, other.open),
            close=jnp.where(later | (jnp.arange(STEPS + 1) == bar), market.close, other.close),
        )
        changed, _ = planned(rules_on(spliced))
        for name in ("flat_ahead", "long_ahead"):
            kept, new = getattr(plan, name), getattr(changed, name)
            np.testing.assert_array_equal(kept[bar - 1 :], new[bar - 1 :])
        assert (plan.long_ahead[: bar - 1] != changed.long_ahead[: bar - 1]).any() or bar == 1


def test_other_bars_rates_and_limits_do_not_recompile():
    market = tiny_market(np.random.default_rng(0), 0.02, 0.01, 0.0)
    planned(rules_on(market))
    compiled = [f._cache_size() for f in (oracle._solve, oracle._foresight_bound, oracle.replay)]
    market = tiny_market(np.random.default_rng(1), 0.05, 0.02, 0.3)
    plan, _ = planned(rules_on(market, cost_multiplier=2.0, limits={"stop_loss": 0.03}))
    assert compiled == [
        f._cache_size() for f in (oracle._solve, oracle._foresight_bound, oracle.replay)
    ]


# ------------------------------------------------------------------------------ a known law


def some_law(rng: np.random.Generator, steps: int, halted: int | None = None) -> Outlook:
    """Two states of information, two branches each: moves large enough for gates and stops."""
    shape = (steps, 2, 2)
    up = rng.uniform(0.2, 0.8, shape[:2])
    move = np.stack(
        [rng.uniform(1.0, 1.08, shape[:2]), rng.uniform(0.95, 1.01, shape[:2])], axis=-1
    )
    tradable = np.ones(steps, bool)
    if halted is not None:
        tradable[halted], move[halted] = False, 1.0
    return Outlook(
        probability=jnp.asarray(np.stack([up, 1.0 - up], axis=-1), jnp.float32),
        gap=jnp.asarray(np.where(tradable[:, None, None], rng.uniform(0.99, 1.01, shape), 1.0)),
        move=jnp.asarray(move, jnp.float32),
        next_state=jnp.asarray(rng.integers(0, 2, shape), jnp.int32),
        tradable=jnp.asarray(tradable),
    )


def expectimax(simulator: ReferenceSimulator, information: int, law: Outlook) -> float:
    """Largest expected log wealth in float64: the best action, weighted over what may follow it."""
    if simulator.done:
        return math.log(simulator.equity())
    bar = simulator.bar

    def expected(action: int) -> float:
        total = 0.0
        for probability, gap, move, following in zip(
            law.probability[bar, information],
            law.gap[bar, information],
            law.move[bar, information],
            law.next_state[bar, information],
            strict=True,
        ):
            copied = copy.copy(simulator)
            copied.records, copied.ledger = list(simulator.records), list(simulator.ledger)
            fill = simulator.closes[bar] * float(gap)
            copied.opens = [*simulator.opens[: bar + 1], fill, *simulator.opens[bar + 2 :]]
            close = fill * float(move)
            copied.closes = [*simulator.closes[: bar + 1], close, *simulator.closes[bar + 2 :]]
            copied.step(action)
            total += float(probability) * expectimax(copied, int(following), law)
        return total

    return max(expected(action) for action in np.flatnonzero(simulator.legal_mask()))


def all_paths(law: Outlook, information: int) -> tuple[Market, np.ndarray, np.ndarray]:
    """Every history the law permits: (market of 2^N symbols, information [2^N, N], probability)."""
    steps = law.num_bars
    opens, closes = np.full((2, 2**steps, steps + 1), 100.0)
    known = np.full((2**steps, steps + 1), information)
    probability = np.ones(2**steps)
    for path, branches in enumerate(itertools.product((0, 1), repeat=steps)):
        for bar, b in enumerate(branches):
            at = (bar, known[path, bar], b)
            opens[path, bar + 1] = closes[path, bar] * law.gap[at]
            closes[path, bar + 1] = opens[path, bar + 1] * law.move[at]
            known[path, bar + 1] = law.next_state[at]
            probability[path] *= law.probability[at]
    tradable = np.tile(np.append(True, law.tradable), (2**steps, 1))
    market = Market(
        open=jnp.asarray(opens, jnp.float32),
        close=jnp.asarray(closes, jnp.float32),
        tradable=jnp.asarray(tradable),
        session=jnp.zeros(opens.shape, jnp.int32),
        features=jnp.zeros((*opens.shape, 1), jnp.float32),
    )
    return market, known[:, :-1].astype(np.int32), probability


@pytest.mark.parametrize("seed", range(4))
def test_the_bayes_optimum_is_expectimax_in_the_reference(seed):
    """Four steps: the value, and what the policy earns on all 16 paths, weighted."""
    rng = np.random.default_rng(seed)
    law = jax.device_get(some_law(rng, 4, halted=2 if seed == 3 else None))
    simulator = ReferenceSimulator([100.0] * 5, [100.0] * 5, np.append(True, law.tradable))
    simulator.reset(0, 4)
    best = expectimax(simulator, 0, law)
    market, known, probability = all_paths(law, 0)
    params = replace(rules_on(market), **env_rules(ReferenceParameters()))
    plan = solve(law, params)
    each = jax.vmap(replay, (None, None, None, 0, None, 0))
    played = each(plan, ENV, params, jnp.arange(16), jnp.int32(4), jnp.asarray(known))
    assert best > 0.0005
    assert probability.sum() == pytest.approx(1.0)
    assert probability @ played.log_wealth == pytest.approx(best, abs=2e-6)
    assert plan.value[0] == pytest.approx(best, rel=0.01)


@settings(max_examples=15, **REPEATABLE)
@given(st.integers(0, 2**32 - 1))
def test_more_foresight_never_hurts(seed):
    """Signals drawn anew at each bar: to see them is worth at least as much as not to see them."""
    rng = np.random.default_rng(seed)
    seen = rng.dirichlet(np.ones(2))
    branch = rng.dirichlet(np.ones(2), (1, 2))  # of the move, given the signal
    move = np.broadcast_to([rng.uniform(1.0, 1.06), rng.uniform(0.96, 1.0)], (1, 2, 2))
    informed = Outlook(
        probability=(branch[..., None] * seen).reshape(1, 2, 4).astype(np.float32),
        gap=np.ones((1, 2, 4), np.float32),
        move=move.repeat(2, axis=-1).astype(np.float32),
        next_state=np.tile(np.arange(2, dtype=np.int32), (1, 2, 2)),
        tradable=np.ones(1, bool),
    )
    blind = Outlook(
        probability=(seen @ branch)[:, None].astype(np.float32),
        gap=np.ones((1, 1, 2), np.float32),
        move=move[:, :1].astype(np.float32),
        next_state=np.zeros((1, 1, 2), np.int32),
        tradable=np.ones(1, bool),
    )
    params = rules_on(tiny_market(rng, 0.01, 0.0, 0.0))
    grid = Grid(6, 24)
    with_signal = seen @ solve(informed, params, horizon=STEPS, grid=grid).value
    assert with_signal >= solve(blind, params, horizon=STEPS, grid=grid).value[0] - 1e-6


def test_one_bar_may_stand_for_all():
    """Broadcast or written out is the same; and a short plan lasts through a long episode."""
    rng = np.random.default_rng(5)
    one = jax.tree.map(lambda leaf: leaf[:1], some_law(rng, 1))
    params = rules_on(random_walk(1, 40, volatility=0.01))
    grid = Grid(6, 24)
    plan = solve(one, params, horizon=STEPS, grid=grid)
    written_out = jax.tree.map(lambda leaf: jnp.repeat(leaf, STEPS, axis=0), one)
    np.testing.assert_array_equal(plan.value, solve(written_out, params, grid=grid).value)
    state = ENV.initial_state(jnp.int32(0), jnp.int32(0), jnp.int32(39))
    first = replace(state, stop_bar=jnp.int32(STEPS))
    act = jax.jit(oracle.act)
    for information in (0, 1):
        # 39 steps remain; the plan acts as if its 6 did.
        assert act(plan, state, information, params) == act(plan, first, information, params)


def test_before_its_first_step_a_plan_of_particular_bars_holds():
    """Prices double at every bar; the plan of the last six knows nothing of those before."""
    closes = 2.0 ** np.arange(10)
    params = rules_on(market_from(closes, closes))
    plan = solve(perfect_foresight(params.market, 0, 3, 9), params)
    act = jax.jit(oracle.act)
    for bar, action in ((2, Action.HOLD), (3, Action.BUY_LARGE)):
        state = ENV.initial_state(jnp.int32(0), jnp.int32(bar), jnp.int32(9))
        assert act(plan, state, jnp.int32(0), params) == action


# ------------------------------------------------------------------------------------- errors


def test_what_cannot_be_solved_is_refused():
    market = tiny_market(np.random.default_rng(0), 0.02, 0.0, 0.0)
    params = rules_on(market)
    outlook = perfect_foresight(market, 0, 0, STEPS)
    for first, last in ((0, STEPS + 1), (-1, 3), (3, 3)):
        with pytest.raises(ValueError, match=r"do not lie in order inside 0 to 6"):
            perfect_foresight(market, 0, first, last)
    with pytest.raises(ValueError, match="no horizon of 7 steps"):
        solve(outlook, params, horizon=7)
    with pytest.raises(ValueError, match="permit 3 adds and the grid 2"):
        solve(outlook, rules_on(market, limits={"max_adds": 3}))
    with pytest.raises(ValueError, match=r"GiB, more than 2.0: use fewer bars or a coarser Grid"):
        solve(outlook, params, grid=Grid(1000, 10_000))
    with pytest.raises(ValueError, match="at least 2 weights and 6 returns"):
        Grid(1, 5)
    with pytest.raises(ValueError, match="needs one certain future"):
        foresight_bound(some_law(np.random.default_rng(0), 2), params)
