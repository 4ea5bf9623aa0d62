"""The environment sees no bar before its time: bars after t are replaced by noise, for every t.

What is determined by bars up to t, and must not change by a bit:

- every decision at a close up to t: observation, legality mask, the policy's action and value;
- everything that a decision at a close before t led to: its order, reason, fill, reward, flags and
  the account at the next close, which is t at the latest.

The decision at close t itself fills in bar t + 1, so its fill may change; but of that bar it may
use no more than the open, the session and whether it trades. With a fill at the same close, it is
settled by bars up to t.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from markets import params_for, random_walk

from agents.networks import ActorCritic, NetworkConfig, greedy
from envs.execution import execution_params
from envs.market import Market
from envs.trading import TradingEnv, TradingParams

NETWORKS = ActorCritic(NetworkConfig(channels=8, dilations=(1, 2), hidden=8, account_hidden=8))
BARS, FIRST = 72, NETWORKS.receptive_field - 1
STEPS = BARS - 1 - FIRST
PROBED = np.arange(FIRST, BARS - 1)  # every t that has a future


def base_market() -> Market:
    """One symbol that moves enough for stops and targets, with halts, and sessions of five bars."""
    market = random_walk(1, BARS, volatility=0.025, seed=5)
    rng = np.random.default_rng(5)
    return replace(
        market,
        tradable=jnp.asarray(rng.random((1, BARS)) > 0.1),
        session=jnp.asarray(np.arange(BARS)[None] // 5, jnp.int32),
    )


def noise() -> Market:
    """Something else altogether."""
    rng = np.random.default_rng(6)
    return Market(
        open=jnp.asarray(np.exp(rng.normal(3, 2, (1, BARS))), jnp.float32),
        close=jnp.asarray(np.exp(rng.normal(3, 2, (1, BARS))), jnp.float32),
        tradable=jnp.asarray(rng.random((1, BARS)) > 0.5),
        session=jnp.asarray(100 + 3 * np.arange(BARS)[None], jnp.int32),
        features=jnp.asarray(10.0 * rng.standard_normal((1, BARS, 3)), jnp.float32),
    )


def replaced_after(bar: jax.Array, *, keep_open: bool) -> Market:
    """The base market with noise after `bar`; `keep_open`: all but what bar + 1 opens with."""
    number = jnp.arange(BARS)

    def mixed(base: jax.Array, other: jax.Array, last: jax.Array) -> jax.Array:
        late = (number > last).reshape(1, BARS, *[1] * (base.ndim - 2))
        return jnp.where(late, other, base)

    base, other = base_market(), noise()
    opening = bar + 1 if keep_open else bar
    return Market(
        open=mixed(base.open, other.open, opening),
        close=mixed(base.close, other.close, bar),
        tradable=mixed(base.tradable, other.tradable, opening),
        session=mixed(base.session, other.session, opening),
        features=mixed(base.features, other.features, bar),
    )


def walk(env: TradingEnv, weights: Any, params: TradingParams) -> dict[str, Any]:
    """Greedy steps through all bars, by decision bar: `decided` at the close, and `led_to`.

    A terminated account starts again on the next bar.
    """
    table = NETWORKS.encode_market(weights, params.market)
    state = env.initial_state(jnp.int32(0), jnp.int32(FIRST), jnp.int32(BARS - 1))

    def step(state: Any, key: jax.Array) -> Any:
        observation = env.observe(None, state, None, params)
        mask = env.action_mask(state, params)
        embedding = NETWORKS.embedding_at(table, state.symbol, state.bar)
        account = env.account_features(state, params)
        logits, value = NETWORKS.heads(weights, embedding, account, mask)
        action = greedy(logits)
        after, outcome = env.transition(state, action, params)
        rows = {
            "decided": (observation, mask, logits, value, action),
            "ordered": (outcome.executed, outcome.reason, outcome.fill, after.account.cash),
            "led_to": (outcome, after),
        }
        not_truncated = jnp.bool_(False)
        return env.auto_reset(key, after, outcome.terminated, not_truncated, params), rows

    return jax.lax.scan(step, state, jax.random.split(jax.random.key(0), STEPS))[1]


@functools.cache
def probed(fill: str, *, keep_open: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rows of the base market, and of all others stacked by t."""
    # Never replaced: after the last bar there is nothing to replace.
    cuts = jnp.asarray([BARS, *PROBED])
    markets = jax.vmap(functools.partial(replaced_after, keep_open=keep_open))(cuts)
    params = params_for(base_market(), episode_length=STEPS, receptive_field=FIRST + 1)
    params = replace(params, execution=execution_params(fill=fill, lot_size=1.0))
    weights = NETWORKS.init(jax.random.key(2), 3)
    # An untrained actor holds whatever it sees: sharper logits without a bias make it trade.
    actor = weights["heads"]["actor"]
    actor["kernel"], actor["bias"] = 30.0 * actor["kernel"], jnp.zeros_like(actor["bias"])
    env = TradingEnv(params, window=FIRST + 1)
    rows = jax.device_get(_walk_all(env, weights, params, markets))
    return jax.tree.map(lambda x: x[0], rows), jax.tree.map(lambda x: x[1:], rows)


@functools.partial(jax.jit, static_argnums=0)
def _walk_all(env: TradingEnv, weights: Any, params: TradingParams, markets: Market) -> Any:
    def one(market: Market) -> dict[str, Any]:
        return walk(env, weights, replace(params, market=market))

    # Not vmap: the last rows of a batch go through other instructions, and round differently.
    return jax.lax.map(one, markets)


def check_same(base: Any, other: Any, number: int, steps: int) -> None:
    """The first `steps` rows agree bit by bit, NaN with NaN."""
    for (path, expected), found in zip(
        jax.tree_util.tree_leaves_with_path(base), jax.tree.leaves(other), strict=True
    ):
        np.testing.assert_array_equal(
            expected[:steps],
            found[number, :steps],
            err_msg=f"t={PROBED[number]}{jax.tree_util.keystr(path)}",
        )


@pytest.mark.parametrize("fill", ["next_open", "same_close"])
def test_nothing_up_to_t_depends_on_bars_after_t(fill: str) -> None:
    base, others = probed(fill, keep_open=False)
    outcome = base["led_to"][0]
    assert np.sum(outcome.executed != 0) > 15
    assert len(np.unique(outcome.executed)) >= 5
    assert len(np.unique(outcome.reason)) >= 4
    for number, t in enumerate(PROBED):
        decided = t - FIRST + 1
        check_same(base["decided"], others["decided"], number, decided)
        check_same(base["led_to"], others["led_to"], number, decided - 1)
        if fill == "same_close":
            check_same(base["ordered"], others["ordered"], number, decided)


def test_a_fill_takes_no_more_than_the_open_of_its_bar() -> None:
    """With bar t + 1's open, session and halt left alone, the order of close t fills as it did."""
    base, others = probed("next_open", keep_open=True)
    for number, t in enumerate(PROBED):
        decided = t - FIRST + 1
        check_same(base["decided"], others["decided"], number, decided)
        check_same(base["ordered"], others["ordered"], number, decided)


@pytest.mark.parametrize("fill", ["next_open", "same_close"])
def test_the_probe_is_not_blind(fill: str) -> None:
    """Noise in bar t + 1 is seen in the account at its close, and in the next observation."""
    base, others = probed(fill, keep_open=False)
    after = others["led_to"][1]
    steps = PROBED - FIRST
    rows = np.arange(len(PROBED)), steps
    long = base["led_to"][1].position.shares[steps] > 0
    moved = after.account.equity[rows] != base["led_to"][1].account.equity[steps]
    assert np.sum(long) > 15
    assert np.mean(moved[long]) > 0.9
    seen = others["decided"][0][rows[0][:-1], steps[:-1] + 1] != base["decided"][0][steps[:-1] + 1]
    assert np.all(seen.any(axis=1))
