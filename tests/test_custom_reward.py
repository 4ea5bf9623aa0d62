"""A reward of one's own: one function, one component, and nothing else changes."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from markets import params_for, random_walk
from small_runs import CONFIG, market

import jaxtrader as jt
from envs import Action, RewardComponents, RewardStep, TradingEnv, reward_params
from envs.reward import CustomComponents
from envs.trading import TradingState, Transition
from jaxtrader.checkpoints import check_meta
from jaxtrader.errors import CheckpointError, ConfigError
from jaxtrader.gates import STAGE5_GATES
from jaxtrader.program import build_program
from jaxtrader.runs import run_identity

STEPS = 60
PARAMS = params_for(random_walk(1, 80, volatility=0.03), episode_length=STEPS)

ACTIONS = np.random.default_rng(0).integers(0, len(Action), STEPS)


def log_growth(step: RewardStep) -> jax.Array:
    return jnp.log(step.account_after.equity / step.account_before.equity) / 0.01


def nothing(step: RewardStep) -> jax.Array:
    return jnp.float32(0.0)


def walk(reward=None, **weights: float) -> tuple[TradingState, Transition, TradingState]:
    """Random actions from bar 3 on: states before, outcomes and states after, [STEPS, ...]."""
    made = reward_params("log_wealth", weights=weights, custom=reward is not None)
    params = replace(PARAMS, reward=made)
    env = TradingEnv(params, window=4, reward=reward)

    def step(state, action):
        after, outcome = env.transition(state, action, params)
        return after, (state, outcome, after)

    start = env.initial_state(jnp.int32(0), jnp.int32(3), jnp.int32(3 + STEPS))
    return jax.jit(partial(jax.lax.scan, step))(start, ACTIONS)[1]


def test_a_function_in_place_of_a_preset_pays_what_the_preset_paid():
    before, standard, after = walk()
    _, custom, _ = walk(log_growth)
    assert np.sum(standard.executed != 0) > 10
    np.testing.assert_array_equal(custom.executed, standard.executed)
    np.testing.assert_allclose(custom.reward, standard.reward, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        custom.components.custom, 100 * np.log(after.account.equity / before.account.equity),
        rtol=1e-3, atol=1e-5,
    )  # fmt: skip
    for name in RewardComponents.names():  # which stay to be looked at
        expected, found = (getattr(o.components, name) for o in (standard, custom))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9, err_msg=name)
    assert CustomComponents.names() == (*RewardComponents.names(), "custom")


def test_single_weights_are_added_and_the_clip_stands():
    _, outcome, _ = walk(lambda step: 20.0 * step.time - 600.0, transaction_cost=2.0)
    parts = outcome.components
    np.testing.assert_array_equal(parts.custom, 20.0 * np.arange(STEPS) - 600.0)
    total = parts.custom + 2.0 * parts.transaction_cost
    np.testing.assert_allclose(outcome.reward, np.clip(total, -10, 10), rtol=1e-6)
    assert (np.abs(total) > 10).any()
    assert (np.abs(total) < 10).any()


def test_the_function_sees_the_step_as_it_was():
    """Field by field: a sum of its leaves, against the states and the outcome around the step."""
    names = [field.name for field in dataclasses.fields(RewardStep)]

    def total(tree):
        return sum(jnp.asarray(leaf, jnp.float32).sum() for leaf in jax.tree.leaves(tree))

    def shown(which):
        return walk(lambda step: jnp.stack([total(getattr(step, name)) for name in names])[which])

    before, outcome, after = jax.device_get(jax.vmap(shown)(jnp.arange(len(names))))
    found = dict(zip(names, outcome.components.custom, strict=True))
    before, outcome, after = jax.tree.map(lambda x: x[0], (before, outcome, after))
    close, next_close = (np.asarray(PARAMS.market.close[0])[before.bar + ahead] for ahead in (0, 1))
    expected = {
        "before": before.position,
        "after": after.position,
        "account_before": before.account,
        "account_after": after.account,
        "conduct": after.conduct,
        "action": ACTIONS,
        "executed": outcome.executed,
        "reason": outcome.reason,
        "fill": outcome.fill,
        "close": close,
        "next_close": next_close,
        "time": np.arange(STEPS),
        "terminated": outcome.terminated,
    }
    for name in names:
        sums = jax.vmap(total)(expected[name])
        np.testing.assert_allclose(found[name], sums, rtol=1e-5, atol=1e-5, err_msg=name)


def test_the_function_tells_environments_and_programs_apart():
    plain, twin = TradingEnv(PARAMS, window=4), TradingEnv(PARAMS, window=4)
    one, other = (TradingEnv(PARAMS, window=4, reward=f) for f in (log_growth, nothing))
    assert plain == twin
    assert len({plain, twin, one, other, TradingEnv(PARAMS, window=4, reward=log_growth)}) == 3
    traced = []

    @partial(jax.jit, static_argnums=0)
    def is_custom(env, x):
        traced.append(env)
        return x

    for env in (plain, one, other, twin, one):
        is_custom(env, jnp.float32(0))
    assert traced == [plain, one, other]


# ---------------------------------------------------------------------------------- whole runs


@pytest.mark.slow
def test_a_run_learns_from_the_function_alone():
    def likes_small(step: RewardStep) -> jax.Array:
        small = (step.action == Action.BUY_SMALL).astype(jnp.float32)
        other = (step.action == Action.BUY_MEDIUM) | (step.action == Action.BUY_LARGE)
        return small - other.astype(jnp.float32)

    ppo = replace(CONFIG.ppo, learning_rate=1e-2, total_timesteps=3840)
    config = replace(CONFIG, ppo=ppo, reward=replace(CONFIG.reward, weights={"drawdown": 1.0}))
    run = jt.train(market("BBB"), (5,), config, reward=likes_small, quiet=True)
    episodes = run.episodes_table()
    rewards = [name for name in episodes if name.startswith("reward_")]
    assert rewards == ["reward_drawdown", "reward_custom"]
    total = episodes["reward_custom"] + episodes["reward_drawdown"]
    np.testing.assert_allclose(episodes["reward"], total, rtol=1e-4, atol=1e-4)
    counts = [episodes[f"policy_BUY_{size}"] for size in ("SMALL", "MEDIUM", "LARGE")]
    np.testing.assert_allclose(episodes["reward_custom"], counts[0] - counts[1] - counts[2])
    first, last = (
        episodes["reward_custom"].iloc[:4].mean(),
        episodes["reward_custom"].iloc[-4:].mean(),
    )
    assert last > first + 5
    [evaluation] = jt.evaluate(run, split="test")
    assert {gate.metric for gate in STAGE5_GATES} <= set(evaluation.metrics)


def test_the_functions_name_belongs_to_the_run():
    assert build_program(CONFIG, market("BBB")).reward_function is None
    program = build_program(CONFIG, market("BBB"), reward=log_growth)
    assert program.reward_function == f"{__name__}.log_growth"
    bound = build_program(CONFIG, market("BBB"), reward=partial(log_growth))
    assert bound.reward_function == "functools.partial"
    other = build_program(CONFIG, market("BBB"), reward=nothing)
    with pytest.raises(
        CheckpointError, match=r"reward_function = '.*log_growth', and now .*nothing"
    ):
        check_meta(run_identity(program), run_identity(other), "here")


def test_a_function_that_returns_more_than_a_number_is_refused_before_training():
    def vector(step: RewardStep) -> jax.Array:
        return jnp.stack([step.close, step.next_close])

    with pytest.raises(ConfigError, match=r"vector returned shape \(2,\): return one number"):
        jt.train(market("BBB"), config=CONFIG, reward=vector)


def test_a_mistake_inside_the_function_is_told_as_it_is():
    def typo(step):
        return step.acount_after.equity

    with pytest.raises(AttributeError, match="acount_after"):
        build_program(CONFIG, market("BBB"), reward=typo)


def test_settings_cannot_ask_for_a_function_that_is_not_there():
    with pytest.raises(ConfigError, match="unknown key 'custom'"):
        replace(CONFIG.reward, weights={"custom": 1.0})
