"""The environment as its users meet it: gymnax's contract, auto-reset, compilation, smoke."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import chex
import gymnax.experimental
import gymnax.wrappers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from markets import market_of, params_for, random_walk

from envs.actions import NUM_ACTIONS, Action, Reason, trading_limits
from envs.curriculum import start_distribution
from envs.execution import execution_params
from envs.market import FILL_MODES, close_price, quote, window
from envs.trading import ACCOUNT_FEATURES, TradingEnv, TradingParams, TradingState

WINDOW, FEATURES, EPISODE = 4, 3, 12
OBSERVATION = WINDOW * FEATURES + len(ACCOUNT_FEATURES)


@functools.cache
def world() -> tuple[TradingEnv, TradingParams]:
    """Two symbols, eighty bars, episodes of twelve."""
    params = params_for(random_walk(), episode_length=EPISODE, receptive_field=WINDOW)
    return TradingEnv(params, window=WINDOW), params


def world_of(closes: np.ndarray, opens: np.ndarray | None = None, **changes: Any) -> TradingParams:
    """Both symbols at these prices, in the shapes of `world`: nothing is compiled again."""
    closes = np.resize(np.append(closes, np.full(80 - len(closes), closes[-1])), (2, 80))
    opens = np.full((2, 80), closes[0, 0]) if opens is None else np.resize(opens, (2, 80))
    market = market_of(opens, closes, np.zeros((2, 80, FEATURES)))
    return params_for(market, episode_length=EPISODE, receptive_field=WINDOW, **changes)


@functools.cache
def compiled_step() -> Callable[..., Any]:
    """`step_env`, failing when it is traced a second time."""
    return jax.jit(chex.assert_max_traces(world()[0].step_env, n=1))


def start(symbol: int = 0, bar: int = 10, stop_bar: int = 22) -> TradingState:
    return world()[0].initial_state(jnp.int32(symbol), jnp.int32(bar), jnp.int32(stop_bar))


def act(env: TradingEnv, params: TradingParams, state: TradingState, *actions: int) -> Any:
    """The last of several steps; keys count up."""
    result = None
    for number, action in enumerate(actions):
        result = env.step(jax.random.key(number), state, jnp.int32(action), params)
        state = result[1]
    return result


# ---------------------------------------------------------------------------------------- contract


def test_reset_and_step_have_gymnaxs_shapes_and_types() -> None:
    env, params = world()
    observation, state = env.reset(jax.random.key(0), params)
    chex.assert_shape(observation, (OBSERVATION,))
    chex.assert_type(observation, jnp.float32)
    results = env.step(jax.random.key(1), state, jnp.int32(Action.BUY_SMALL), params)
    observation, after, reward, terminated, truncated, info = results
    chex.assert_shape(observation, (OBSERVATION,))
    chex.assert_type([observation, reward], jnp.float32)
    chex.assert_type([terminated, truncated], bool)
    chex.assert_shape([reward, terminated, truncated], ())
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert set(info) >= {"terminated", "truncated", "final_observation"}
    assert int(info["executed_action"]) == Action.BUY_SMALL
    assert int(after.time) == 1
    assert env.num_actions == NUM_ACTIONS
    assert env.name == "TradingEnv"


def test_default_parameters_are_used_where_none_are_given() -> None:
    env, params = world()
    seed, action = jax.random.key, jnp.int32(Action.BUY_LARGE)
    chex.assert_trees_all_equal(env.reset(seed(0)), env.reset(seed(0), params))
    state = start()
    without, given = env.step(seed(1), state, action), env.step(seed(1), state, action, params)
    chex.assert_trees_all_equal(without, given)


def test_spaces_contain_what_comes_out() -> None:
    env, params = world()
    space, actions = env.observation_space(params), env.action_space(params)
    observation, state = env.reset(jax.random.key(0))
    assert space.shape == observation.shape
    assert space.dtype == observation.dtype
    assert space.contains(observation)
    for action in (Action.BUY_LARGE, Action.HOLD, Action.SELL_ALL):
        assert actions.contains(jnp.int32(action))
        observation, state, *_ = act(env, params, state, action)
        assert space.contains(observation)
    assert not actions.contains(jnp.int32(NUM_ACTIONS))
    assert actions.contains(actions.sample(jax.random.key(0)))
    described = {
        name: (box.shape, box.dtype) for name, box in env.state_space(params).spaces.items()
    }
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    assert described == {jax.tree_util.keystr(path): (x.shape, x.dtype) for path, x in leaves}


def test_account_half_of_the_observation() -> None:
    """Bought 6 % of 1 at 100 without costs, marked at 102, two bars later."""
    params = world_of(np.asarray([100.0] * 12 + [102.0]), costs="free")
    env, state = world()[0], start(0, 10, 19)
    observation, *_ = act(env, params, state, Action.BUY_MEDIUM, Action.HOLD)
    equity = 0.94 + 0.06 * 1.02
    expected = {
        "is_long": 1.0,
        "unrealized_return": 0.02 / 0.05,
        "bars_held": 2 / 140,
        "weight": 0.0612 / equity / 0.20,
        "adds": 0.0,
        "partial_taken": 0.0,
        "cash_share": 0.94 / equity,
        "exposure": 0.0612 / equity,
        "drawdown": 0.0,
        "return_since_start": 0.0012 / 0.05,
        "streak": 0.0,
        "session_trades": 1 / 50,
    }
    assert tuple(expected) == ACCOUNT_FEATURES
    found = np.asarray(observation[WINDOW * FEATURES :])
    np.testing.assert_allclose(found, list(expected.values()), rtol=1e-4, atol=1e-6)


def test_market_half_of_the_observation() -> None:
    """The last four bars of features, oldest first, the decision bar's among them."""
    env, params = world()
    observation = env.observe(None, start(1, 10), None, params)
    expected = np.asarray(params.market.features)[1, 7:11].reshape(-1)
    np.testing.assert_array_equal(observation[: WINDOW * FEATURES], expected)


# ---------------------------------------------------------------------------------------- wrappers


def test_gymnaxs_wrappers_accept_the_environment() -> None:
    """LogWrapper over FlattenObservationWrapper over StickyActionWrapper, two episodes long."""
    env, params = world()
    wrapped = gymnax.wrappers.LogWrapper(
        gymnax.wrappers.FlattenObservationWrapper(gymnax.wrappers.StickyActionWrapper(env, 0.1))
    )

    @jax.jit
    def run(key: jax.Array, params: TradingParams) -> Any:
        key_reset, key_steps = jax.random.split(key)
        _, state = wrapped.reset(key_reset, params)

        def step(state: Any, key: jax.Array) -> Any:
            key_action, key_step = jax.random.split(key)
            action = env.action_space(params).sample(key_action)
            _, state, reward, terminated, truncated, info = wrapped.step(
                key_step, state, action, params
            )
            done = terminated | truncated
            return state, (reward, done, info["returned_episode_returns"])

        return jax.lax.scan(step, state, jax.random.split(key_steps, 2 * EPISODE))[1]

    reward, done, returns = jax.device_get(run(jax.random.key(0), params))
    assert np.flatnonzero(done).tolist() == [EPISODE - 1, 2 * EPISODE - 1]
    np.testing.assert_allclose(returns[EPISODE - 1], reward[:EPISODE].sum(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(returns[-1], reward[EPISODE:].sum(), rtol=1e-4, atol=1e-5)
    assert wrapped.num_actions == NUM_ACTIONS


def test_gymnaxs_legacy_and_dm_env_wrappers() -> None:
    env, params = world()
    key, action = jax.random.key(0), jnp.int32(0)

    def legacy(key: jax.Array) -> Any:
        wrapped = gymnax.wrappers.LegacyStepAPIWrapper(env)
        _, state = wrapped.reset(key, params)
        return wrapped.step(key, state, action, params)

    def dm_env(key: jax.Array) -> Any:
        wrapped = gymnax.wrappers.GymnaxToDmEnvWrapper(env)
        return wrapped.step(key, wrapped.reset(key, params), action, params)

    with jax.debug_key_reuse(False):
        _, _, _, done, _ = jax.eval_shape(legacy, key)
        step = jax.eval_shape(dm_env, key)
    assert done.dtype == bool
    assert step.observation.shape == step.final_observation.shape == (OBSERVATION,)
    assert step.discount.shape == ()


def test_gymnaxs_gymnasium_wrapper() -> None:
    wrapped = gymnax.wrappers.GymnaxToGymWrapper(*world(), seed=3)
    observation, _ = wrapped.reset(seed=1)
    assert wrapped.observation_space.contains(np.asarray(observation))
    assert wrapped.action_space.n == NUM_ACTIONS
    for number in range(EPISODE):
        action = jnp.int32(number % NUM_ACTIONS)
        observation, reward, terminated, truncated, info = wrapped.step(action)
        assert wrapped.observation_space.contains(np.asarray(observation))
        assert np.isfinite(float(reward))
    assert (bool(terminated), bool(truncated)) == (False, True)
    assert info["final_observation"].shape == observation.shape


def test_gymnaxs_vector_and_rollout_utilities() -> None:
    """Both accept the environment as it is; traced, not run."""
    env, params = world()
    with jax.debug_key_reuse(False):
        vector = gymnax.wrappers.GymnaxToVectorGymWrapper(env, num_envs=3, params=params)
        stepped = jax.eval_shape(
            vector._env.step, vector.key, vector.env_state, jnp.zeros(3, jnp.int32), params
        )
    assert vector.observation_space.shape == stepped[0].shape == (3, OBSERVATION)
    rollout = gymnax.experimental.RolloutWrapper(
        env=env, env_params=params, num_env_steps=EPISODE, model_forward=None
    )
    keys = jax.random.split(jax.random.key(0), 5)
    observation, _, reward, _, done, total = jax.eval_shape(rollout.batch_rollout, keys, None)
    assert observation.shape == (5, EPISODE, OBSERVATION)
    assert reward.shape == done.shape == (5, EPISODE)
    assert total.shape == (5, 1)


# -------------------------------------------------------------------------------------- auto-reset


def test_truncation_starts_somewhere_else() -> None:
    env, params = world()
    state = start(0, 10, 13)
    last = act(env, params, state, Action.BUY_SMALL, Action.HOLD)
    before = last[1]
    observations = set()
    for seed in range(6):
        key = jax.random.key(seed)
        observation, after, _, terminated, truncated, info = env.step(
            key, before, jnp.int32(Action.HOLD), params
        )
        assert (bool(terminated), bool(truncated)) == (False, True)
        assert int(info["reason"]) == Reason.EPISODE_END
        # The fresh account, at a start that leaves room for a whole episode.
        fresh = env.initial_state(after.symbol, after.bar, after.bar + EPISODE)
        chex.assert_trees_all_equal(after, fresh)
        assert WINDOW - 1 <= int(after.bar) <= params.market.num_bars - 1 - EPISODE
        np.testing.assert_array_equal(observation, env.observe(None, after, None, params))
        # What was reached is in the info: bar 13, sold out.
        final = replace(before, bar=before.bar + 1)
        reached = np.asarray(info["final_observation"])
        market_half = np.asarray(env.observe(None, final, None, params))[: WINDOW * FEATURES]
        np.testing.assert_array_equal(reached[: WINDOW * FEATURES], market_half)
        assert reached[WINDOW * FEATURES + ACCOUNT_FEATURES.index("is_long")] == 0.0
        assert reached[WINDOW * FEATURES + ACCOUNT_FEATURES.index("cash_share")] == 1.0
        assert reached[WINDOW * FEATURES + ACCOUNT_FEATURES.index("return_since_start")] != 0.0
        done, _ = env.transition(before, jnp.int32(Action.HOLD), params)
        assert int(done.time) == 3
        account = env.account_features(done, params)
        np.testing.assert_allclose(reached[WINDOW * FEATURES :], account, rtol=1e-6, atol=1e-7)
        observations.add((int(after.symbol), int(after.bar)))
    assert len(observations) > 3


def crash() -> tuple[TradingEnv, TradingParams]:
    """A price that halves on bar 12, and an account that puts 90 % into it."""
    closes = np.asarray([100.0] * 12 + [50.0] * 68)
    params = world_of(
        closes,
        np.append(100.0, closes[:-1]),
        limits={"position_cap": 2.0, "buy_fractions": (0.1, 0.5, 0.9)},
    )
    return world()[0], params


def test_termination_goes_on_from_the_same_bar_with_a_new_account() -> None:
    env, params = crash()
    state = start(0, 10, 30)
    *_, info = act(env, params, state, Action.BUY_LARGE, Action.HOLD)
    assert not info["terminated"]
    observation, after, _, terminated, truncated, info = act(
        env, params, state, Action.BUY_LARGE, Action.HOLD, Action.HOLD
    )
    assert (bool(terminated), bool(truncated)) == (True, False)
    assert int(info["reason"]) == Reason.DRAWDOWN_BREAKER
    chex.assert_trees_all_equal(
        after, env.initial_state(state.symbol, jnp.int32(13), state.stop_bar)
    )
    np.testing.assert_array_equal(observation, env.observe(None, after, None, params))
    # The market half is contiguous, the account half is the dead one's.
    total = WINDOW * FEATURES + ACCOUNT_FEATURES.index("return_since_start")
    lost = float(info["final_observation"][total]) * 0.05  # the stop loss it is told in
    assert 1.0 + lost == pytest.approx(0.55, abs=0.01)
    assert float(observation[total]) == 0.0


def test_a_state_says_itself_whether_its_episode_is_over() -> None:
    """As gymnax's API has it; a step without auto-reset ends in such a state."""
    env, params = crash()
    states = [start(0, 10, 13)]
    for action in (Action.BUY_LARGE, Action.HOLD, Action.HOLD):
        states.append(env.transition(states[-1], jnp.int32(action), params)[0])
    # Ruined at bar 12, it is over once the position is sold: at bar 13, the stop bar.
    assert [bool(env.is_terminated(s, params)) for s in states] == [False, False, False, True]
    assert [bool(env.is_truncated(s, params)) for s in states] == [False, False, False, True]


def test_ended_both_ways_starts_somewhere_else() -> None:
    """Ruined on the last step: terminated, so nothing is bootstrapped, and a new start is drawn."""
    env, params = crash()
    actions = (Action.BUY_LARGE, Action.HOLD, Action.HOLD)
    _, after, _, terminated, truncated, _ = act(env, params, start(0, 10, 13), *actions)
    assert (bool(terminated), bool(truncated)) == (True, True)
    assert int(after.stop_bar - after.bar) == EPISODE
    assert int(after.time) == 0


def test_steps_without_an_end_are_not_reset() -> None:
    env, params = world()
    state = start()
    results = act(env, params, state, Action.BUY_SMALL)
    np.testing.assert_array_equal(results[0], results[-1]["final_observation"])
    assert int(results[1].bar) == 11
    assert int(results[1].stop_bar) == 22
    assert float(results[1].position.shares) > 0.0


def test_an_unsellable_end_still_starts_the_next_episode_flat() -> None:
    """The next state is a flat account even where the position could not be sold."""
    env, params = world()
    tradable = params.market.tradable.at[:, 13].set(False)
    params = replace(params, market=replace(params.market, tradable=tradable))
    _, after, *_ = act(env, params, start(0, 10, 13), Action.BUY_SMALL, Action.HOLD, Action.HOLD)
    mask = np.asarray(env.action_mask(after, params))
    assert mask.tolist() == [True, True, True, True, False, False, False]


# ------------------------------------------------------------------------------------- compilation


def test_no_weak_types_and_one_trace() -> None:
    """A Python scalar in the state would be weakly typed, and traced again on the second step."""
    env, params = world()
    step = compiled_step()
    _, state = env.reset(jax.random.key(0), params)
    first = jax.tree.map(lambda leaf: leaf.aval, state)
    assert not any(aval.weak_type for aval in jax.tree.leaves(first))
    for number in range(6):
        action = jnp.int32(number % NUM_ACTIONS)
        _, state, reward, terminated, _ = step(jax.random.key(number), state, action, params)
        assert jax.tree.map(lambda leaf: leaf.aval, state) == first
        assert not reward.aval.weak_type
        assert not terminated.aval.weak_type


def test_numbers_may_change_without_compiling_again() -> None:
    params, step = world()[1], compiled_step()
    action, state = jnp.int32(Action.BUY_LARGE), start()

    def equity(**changes: Any) -> float:
        after = step(jax.random.key(0), state, action, replace(params, **changes))[1]
        return float(after.account.equity)

    assert equity(execution=execution_params(commission=0.01)) < equity()
    assert equity(limits=trading_limits(position_cap=0.05)) == 1.0
    assert equity(max_steps_in_episode=jnp.int32(7)) == equity()
    doubled = replace(params.market, close=2.0 * params.market.close)
    assert equity(market=doubled) > equity() + 0.05


def test_environments_that_differ_do_not_share_a_compiled_step() -> None:
    """The compiled step is found by the environment's equality: a subclass is another one."""
    env, params = world()

    class Generous(TradingEnv):
        """Adds 100 to every reward."""

        def step_env(self, *args: Any) -> Any:
            observation, state, reward, terminated, info = super().step_env(*args)
            return observation, state, reward + 100.0, terminated, info

    generous, state, action = Generous(params, window=WINDOW), start(), jnp.int32(Action.HOLD)
    plain = env.step(jax.random.key(0), state, action, params)[2]
    more = generous.step(jax.random.key(0), state, action, params)[2]
    assert float(more) == pytest.approx(float(plain) + 100.0)
    twin = TradingEnv(params, window=WINDOW)
    assert twin == env
    assert hash(twin) == hash(env)
    assert TradingEnv(params, window=WINDOW + 1) != env


# ----------------------------------------------------------------------------- edges of the data


@pytest.mark.parametrize(
    ("symbol", "bar"), [(0, -1), (0, 80), (0, 10**6), (2, 10), (-1, 10)], ids=str
)
def test_bars_outside_the_data_are_nan_and_not_a_neighbour(symbol: int, bar: int) -> None:
    market = world()[1].market
    where = jnp.int32(symbol), jnp.int32(bar)
    assert np.isnan(close_price(market, *where))
    assert np.isnan(window(market, *where, 1)).all()
    for fill in ("next_open", "same_close"):
        seen = quote(market, *where, world()[1].starts.last_bar, fill)
        assert np.isnan(seen.close)
        if fill == "same_close":
            assert np.isnan(seen.fill_price)
            assert not seen.fill_tradable


def test_windows_are_filled_with_nan_before_the_first_bar() -> None:
    market = world()[1].market
    rows = np.asarray(window(market, jnp.int32(0), jnp.int32(1), WINDOW))
    assert np.isnan(rows[:2]).all()
    np.testing.assert_array_equal(rows[2:], np.asarray(market.features)[0, :2])
    rows = np.asarray(window(market, jnp.int32(0), jnp.int32(80), WINDOW))
    assert np.isnan(rows[-1]).all()
    assert np.isfinite(rows[:-1]).all()


def test_nothing_trades_after_the_last_bar() -> None:
    """The order of the last bar finds no market, and the mark is NaN: never the last price."""
    env, params = world()
    last = params.market.num_bars - 1
    state = env.initial_state(jnp.int32(0), jnp.int32(last), jnp.int32(last + 5))
    key, action = jax.random.key(0), jnp.int32(Action.BUY_LARGE)
    _, after, reward, _, info = compiled_step()(key, state, action, params)
    assert int(info["executed_action"]) == Action.HOLD
    assert int(info["reason"]) == Reason.UNTRADABLE
    assert np.isnan(after.account.equity)
    assert np.isnan(reward)
    seen = env.quote(jnp.int32(0), jnp.int32(last), params)
    assert seen.last
    assert np.isnan(seen.next_close)
    assert np.isnan(seen.fill_price)
    assert not seen.fill_tradable


def test_starts_without_room_are_errors() -> None:
    with pytest.raises(ValueError, match="symbol 1 has 5 steps between bars 3 and 8"):
        start_distribution(np.asarray([3, 3]), np.asarray([20, 8]), 6, 4)
    with pytest.raises(ValueError, match="needs at least bar 3"):
        start_distribution(np.asarray([2]), np.asarray([20]), 6, 4)
    starts = start_distribution(np.asarray([3, 5]), np.asarray([20, 11]), 6, 4)
    draw = jax.jit(jax.vmap(starts.sample, (0, None)))
    symbol, bar, stop = jax.device_get(draw(jax.random.split(jax.random.key(0), 400), 6))
    assert set(bar[symbol == 0].tolist()) == set(range(3, 15))
    assert set(bar[symbol == 1].tolist()) == {5}
    assert 150 < np.sum(symbol == 0) < 250
    np.testing.assert_array_equal(stop - bar, 6)


def test_starts_of_any_shape_are_uniform_within_their_bounds() -> None:
    starts = start_distribution(np.asarray([3, 5, 9]), np.asarray([20, 11, 40]), 6, 4)
    key, shape = jax.random.key(1), (30, 100)
    symbol, bar, stop = jax.device_get(jax.jit(starts.sample, static_argnums=2)(key, 6, shape))
    assert symbol.shape == bar.shape == stop.shape == shape
    assert symbol.dtype == bar.dtype == stop.dtype == np.int32
    for number, bars in enumerate((range(3, 15), range(5, 6), range(9, 35))):
        drawn = bar[symbol == number]
        assert set(drawn.tolist()) == set(bars)
        if len(bars) > 1:
            assert scipy.stats.chisquare(np.bincount(drawn)[bars]).pvalue > 1e-3
    assert scipy.stats.chisquare(np.bincount(symbol.ravel())).pvalue > 1e-3
    np.testing.assert_array_equal(stop - bar, 6)
    # Each by itself: no row repeats another, and no column.
    assert np.unique(bar, axis=0).shape == np.unique(bar, axis=1).shape == shape


def test_bad_execution_parameters_are_errors() -> None:
    with pytest.raises(ValueError, match="unknown cost preset 'cheap'"):
        execution_params("cheap")
    with pytest.raises(ValueError, match="unknown fill mode 'next_close'"):
        execution_params(fill="next_close")
    with pytest.raises(ValueError, match="slippage"):
        execution_params(slippage=-0.1)
    with pytest.raises(ValueError, match="commission"):
        execution_params(commission=0.5, cost_multiplier=2.0)


# ------------------------------------------------------------------------------- blocks of quotes


@pytest.mark.parametrize("fill", FILL_MODES)
def test_quotes_of_a_block_are_those_of_the_market(fill: str) -> None:
    """Three environments and six bars at once, also beyond the data, against NumPy's indexing."""
    tradable = np.random.default_rng(3).random((2, 80)) < 0.7
    market = replace(world()[1].market, tradable=jnp.asarray(tradable))
    symbol, last_bar = np.asarray([1, 0, 1]), np.asarray([42, 78])
    bars = np.asarray([5, 38, 76]) + np.arange(6)[:, None]
    seen = quote(market, jnp.asarray(symbol), jnp.asarray(bars), jnp.asarray(last_bar), fill)

    def at(values: jax.Array, bars: np.ndarray, missing: Any = np.nan) -> np.ndarray:
        rows = np.asarray(values)
        return np.append(rows, np.full((2, 9), missing, rows.dtype), axis=1)[symbol, bars]

    after = bars + 1
    np.testing.assert_array_equal(seen.close, at(market.close, bars))
    np.testing.assert_array_equal(seen.next_close, at(market.close, after))
    np.testing.assert_array_equal(seen.last, after >= last_bar[symbol])
    fills = after if fill == "next_open" else bars
    price = market.open if fill == "next_open" else market.close
    np.testing.assert_array_equal(seen.fill_price, at(price, fills))
    np.testing.assert_array_equal(seen.fill_tradable, at(market.tradable, fills, False))
    opens = at(market.session, bars, 0) != at(market.session, after, 0)
    np.testing.assert_array_equal(seen.new_session[after < 80], opens[after < 80])
    assert 0 < seen.last.sum() < seen.last.size
    assert 0 < seen.new_session.sum() < seen.new_session.size


@pytest.mark.parametrize("fill", FILL_MODES)
def test_steps_with_quotes_at_hand_are_the_same_steps_bit_for_bit(fill: str) -> None:
    """A block's quotes looked up at once, against steps that look up their own.

    Without fusion: what is fused with what decides where a product and a sum are rounded as one.
    """
    env, _ = world()
    compiled = functools.partial(
        jax.jit, compiler_options={"xla_disable_hlo_passes": "fusion,priority-fusion"}
    )
    num_envs, length = 32, 40
    rng = np.random.default_rng(8)
    market = random_walk(volatility=0.06, seed=8)
    market = replace(market, tradable=jnp.asarray(rng.random((2, 80)) < 0.9))
    limits = {"max_trades_per_session": 3, "add_threshold": 0.0, "max_drawdown": 0.01}
    params = params_for(market, episode_length=EPISODE, receptive_field=WINDOW, limits=limits)
    params = replace(params, execution=execution_params(fill=fill))
    symbol, first = rng.integers(0, 2, num_envs), rng.integers(3, 40, num_envs)
    first[:16] = 39  # to the last bar
    first_state = state = jax.vmap(env.initial_state)(symbol, first, first + length)
    actions = rng.integers(0, NUM_ACTIONS, (length, num_envs), np.int32)
    actions[rng.random(actions.shape) < 0.4] = Action.HOLD

    @compiled
    def block(state: TradingState, params: TradingParams) -> Any:
        quotes = env.quote(state.symbol, state.bar + jnp.arange(length)[:, None], params)

        def step(state: TradingState, inputs: Any) -> Any:
            action, seen = inputs
            account = jax.vmap(env.account_features, (0, None, 0))(state, params, seen.close)
            mask = jax.vmap(env.action_mask, (0, None, 0))(state, params, seen.close)
            after, outcome = jax.vmap(env.advance, (0, 0, 0, None))(state, action, seen, params)
            return after, (account, mask, after, outcome)

        return jax.lax.scan(step, state, (actions, quotes))[1]

    @compiled
    @functools.partial(jax.vmap, in_axes=(0, 0, None))
    def one(state: TradingState, action: jax.Array, params: TradingParams) -> Any:
        account, mask = env.account_features(state, params), env.action_mask(state, params)
        return account, mask, *env.transition(state, action, params)

    rows = []
    for action in actions:
        rows.append(one(state, action, params))
        state = rows[-1][2]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    chex.assert_trees_all_equal(jax.device_get(block(first_state, params)), expected)
    outcome = expected[3]
    assert len(np.unique(outcome.executed)) == NUM_ACTIONS
    assert len(np.unique(outcome.reason)) >= 9
    assert {Reason.END_OF_DATA, Reason.EPISODE_END} <= set(outcome.reason.ravel().tolist())
    assert outcome.terminated.any()


@settings(max_examples=100, deadline=None)
@given(
    action=st.integers(-(2**31), 2**31 - 1).filter(lambda a: not 0 <= a < NUM_ACTIONS),
    is_long=st.booleans(),
)
def test_a_number_that_is_no_action_is_refused(action: int, is_long: bool) -> None:
    """No index out of the legality mask wraps or clamps to a legal action."""
    step, params, state = compiled_step(), world()[1], start()
    if is_long:
        state = step(jax.random.key(0), state, jnp.int32(Action.BUY_LARGE), params)[1]
    _, after, *_, info = step(jax.random.key(1), state, jnp.int32(action), params)
    _, held, *_ = step(jax.random.key(1), state, jnp.int32(Action.HOLD), params)
    assert int(info["reason"]) == Reason.ILLEGAL
    assert int(info["executed_action"]) == Action.HOLD
    assert bool(after.position.is_long) is is_long
    chex.assert_trees_all_equal((after.position, after.account), (held.position, held.account))


# -------------------------------------------------------------------------------------------- smoke


def histogram_entropy(actions: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Entropy in nats and number of distinct actions of every window of `size` steps."""
    taken = np.cumsum(np.eye(NUM_ACTIONS)[actions], axis=0)
    counts = taken[size - 1 :] - np.vstack([np.zeros(NUM_ACTIONS), taken[:-size]])
    shares = counts / size
    nats = -np.sum(shares * np.log(np.where(shares > 0, shares, 1.0)), axis=1)
    return nats, np.sum(counts > 0, axis=1)


def uniform_steps(env: TradingEnv, num_steps: int) -> Callable[..., Any]:
    """A run of uniformly random legal actions, with auto-reset."""

    def step(carry: Any, key: jax.Array) -> Any:
        state, params = carry
        key_action, key_step = jax.random.split(key)
        mask = env.action_mask(state, params)
        action = jax.random.categorical(key_action, jnp.where(mask, 0.0, -jnp.inf))
        observation, after, reward, terminated, truncated, info = env.step(
            key_step, state, action.astype(jnp.int32), params
        )
        done = terminated | truncated
        return (after, params), (action, observation, after, reward, done, info)

    @jax.jit
    def run(key: jax.Array, params: TradingParams) -> Any:
        key_reset, key_steps = jax.random.split(key)
        state = env.reset(key_reset, params)[1]
        return jax.lax.scan(step, (state, params), jax.random.split(key_steps, num_steps))[1]

    return run


def test_smoke_10_000_random_steps() -> None:
    """Everything finite, equity is cash plus shares, and every 120 steps are varied."""
    market = random_walk(num_symbols=2, num_bars=1500, volatility=0.008, seed=1)
    params = params_for(market, episode_length=480, receptive_field=WINDOW)
    env = TradingEnv(params, window=WINDOW)
    rows = jax.device_get(uniform_steps(env, 10_000)(jax.random.key(0), params))
    actions, observation, state, reward, done, info = rows
    chex.assert_tree_all_finite((observation, state, reward, info))
    closes = np.float64(market.close)[state.symbol, state.bar]
    worth = np.float64(state.account.cash) + np.float64(state.position.shares) * closes
    np.testing.assert_allclose(state.account.equity, worth, rtol=2.5e-7)
    assert state.account.cash.min() >= 0.0
    assert np.all(info["reason"] != Reason.ILLEGAL)
    assert np.sum(done) >= 20
    nats, distinct = histogram_entropy(actions, 120)
    assert nats.min() >= 1.3, f"{nats.min():.3f} nats in the least varied window"
    assert distinct.min() >= 4
