"""A minibatch in several passes has the value and the gradient of the whole one.

Oracles: a loss whose gradient is known by hand, and `ppo_loss` in one pass, which test_ppo.py holds
against a float64 reference.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from learners import NETWORKS, bits, hyperparameters, ppo_params, tiny
from markets import random_walk
from small_runs import CONFIG

from agents.networks import ActorCritic
from agents.passes import in_passes
from agents.ppo import Blocks, PPOShape, ppo_loss
from envs.trading import NUM_ACCOUNT_FEATURES
from jaxtrader.config import replace_settings
from jaxtrader.errors import ConfigError
from jaxtrader.memory import footprint
from jaxtrader.program import build_program, ppo_shape

# Rounding of a few dozen float32 products, summed in an order that depends on the parts.
CLOSE = {"rtol": 2e-5, "atol": 2e-6}
R = NETWORKS.receptive_field
LENGTH = 4


@pytest.fixture(scope="module", autouse=True)
def full_precision():
    """Accelerators round the factors of a matrix product unless told not to."""
    with jax.default_matmul_precision("highest"):
        yield


# ------------------------------------------------------------------------------------- by hand


def quadratic(w: jax.Array, shift: Any, rows: Any, power: jax.Array) -> tuple[jax.Array, Any]:
    """Mean of (w x + shift)^power over rows x, and two means to be told with it."""
    x, count = rows
    error = w * x + (0.0 if shift is None else shift)
    return jnp.mean(error**power), {"error": jnp.mean(error), "count": jnp.mean(count * 1.0)}


@pytest.mark.parametrize("passes", [1, 2, 3, 6])
def test_value_and_gradient_by_hand(passes: int) -> None:
    x = np.array([1.0, 2.0, 3.0, 5.0, 7.0, 11.0])
    shift = np.array([0.5, 0.0, -1.0, 2.0, 0.0, 1.0])
    w = 0.25
    error = w * x + shift
    rows = (jnp.asarray(x, jnp.float32), jnp.arange(6))

    def loss(w: jax.Array, shift: jax.Array) -> tuple[jax.Array, Any]:
        value, told = in_passes(quadratic, passes, w, shift, rows, (jnp.float32(2.0),))
        return 3.0 * value, told  # what comes after it scales the gradient

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, told), (by_w, by_shift) = grad(jnp.float32(w), jnp.asarray(shift, jnp.float32))
    assert value == pytest.approx(3.0 * np.mean(error**2), rel=1e-6)
    assert told["error"] == pytest.approx(error.mean(), rel=1e-6)
    assert told["count"] == pytest.approx(2.5)
    assert by_w == pytest.approx(3.0 * np.mean(2 * error * x), rel=1e-6)
    np.testing.assert_allclose(by_shift, 3.0 * 2 * error / 6, rtol=1e-6)


def test_under_vmap_and_in_a_scan() -> None:
    """Each of several w has its own gradient, also where updates follow each other."""
    x = np.array([1.0, 2.0, 3.0, 4.0])
    rows, start = (jnp.asarray(x, jnp.float32), jnp.arange(4)), np.array([0.1, -0.2, 0.3])

    def loss(w: jax.Array) -> jax.Array:
        return in_passes(quadratic, 2, w, None, rows, (jnp.float32(2.0),))[0]

    def descend(w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda w, _: (w - 0.01 * jax.grad(loss)(w), None), w, length=3)[0]

    found = jax.jit(jax.vmap(descend))(jnp.asarray(start, jnp.float32))
    np.testing.assert_allclose(found, start * (1 - 0.02 * np.mean(x**2)) ** 3, rtol=1e-5)


# ------------------------------------------------------------------------------------ PPO's loss


def minibatch(bars: int) -> tuple[Any, Blocks]:
    """A market of so many bars and twelve blocks of it."""
    rng = np.random.default_rng(bars)
    market = random_walk(2, bars, 3, seed=5)
    shape = (12, LENGTH)
    mask = rng.random((*shape, 7)) < 0.7
    mask[..., 0] = True

    def normal(*tail: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape + tail), jnp.float32)

    return market, Blocks(
        symbol=jnp.asarray(rng.integers(0, 2, 12), jnp.int32),
        first_bar=jnp.asarray(rng.integers(R - 1, bars - LENGTH, 12), jnp.int32),
        account=normal(NUM_ACCOUNT_FEATURES),
        mask=jnp.asarray(mask),
        action=jnp.asarray(np.argmax(rng.random(mask.shape) * mask, axis=-1), jnp.int32),
        log_prob=-1.5 + 0.3 * normal(),
        advantage=2.0 + normal(),  # no part of it has mean 0
        returns=normal(),
    )


def whole_market_is_encoded(bars: int) -> bool:
    market, _ = minibatch(bars)
    return NETWORKS.table_is_less(market, 12, LENGTH)


BARS = [20, 400]  # fewer than the blocks' own, and more


def test_both_ways_of_encoding_are_tried() -> None:
    assert [whole_market_is_encoded(bars) for bars in BARS] == [True, False]


@pytest.mark.parametrize("bars", BARS)
@pytest.mark.parametrize(
    ("passes", "switches"),
    [(3, {}), (12, {}), (3, {"frozen_encoder": True}), (3, {"precision": "bfloat16"})],
)
def test_the_loss_is_that_of_one_pass(bars: int, passes: int, switches: dict[str, Any]) -> None:
    networks = ActorCritic(replace(NETWORKS.config, **switches))
    market, blocks = minibatch(bars)
    params = jax.jit(networks.init, static_argnums=1)(jax.random.key(3), 3)
    table = networks.encode_market(params, market) if networks.config.frozen_encoder else None

    def of(passes: int) -> Any:
        def loss(trained: Any) -> Any:
            whole = {**params, **trained}
            ppo, entropy_coef = ppo_params(), jnp.float32(0.3)
            return ppo_loss(whole, networks, market, blocks, ppo, entropy_coef, table, passes)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(networks.split(params)[0])

    close = CLOSE if "precision" not in switches else {"rtol": 0.05, "atol": 0.01}
    whole = of(1)
    chex.assert_trees_all_close(of(passes), whole, **close)
    assert float(whole[0][1].clip_fraction) > 0.1  # there is something to be clipped


# ---------------------------------------------------------------------------- how many, and why


@given(
    blocks=st.integers(1, 60),
    at_once=st.integers(1, 300),
    groups=st.integers(1, 4),
    block=st.sampled_from([1, 4]),
)
def test_a_minibatch_is_dealt_evenly_or_the_setting_is_refused(
    blocks: int, at_once: int, groups: int, block: int
) -> None:
    def passes(microbatch_size: int) -> int:
        config = replace_settings(
            CONFIG,
            "ppo",
            num_envs=groups,
            rollout_steps=blocks * block,
            block_length=block,
            batch_size=groups * blocks * block,
            microbatch_size=microbatch_size,
            env_shards=groups,
        )
        return ppo_shape(replace_settings(config, "environment", episode_length=block)).passes

    share = blocks * block
    if at_once >= share:
        assert passes(at_once) == 1
    elif at_once in [n * block for n in range(1, blocks) if blocks % n == 0]:
        assert passes(at_once) * at_once == share
    else:
        with pytest.raises(ConfigError, match=rf"microbatch_size = {at_once}.*would do") as told:
            passes(at_once)
        advised = int(str(told.value).split()[-3])
        assert passes(advised) * advised == share


def test_a_minibatch_is_one_pass_unless_asked_for_more() -> None:
    def passes(batch_size: int, **changes: Any) -> int:
        settings = {"num_envs": 64, "rollout_steps": 256, "batch_size": batch_size, **changes}
        return ppo_shape(replace_settings(CONFIG, "ppo", **settings)).passes

    assert passes(256) == passes(8192) == 1
    assert passes(8192, microbatch_size=8192) == 1
    assert passes(8192, microbatch_size=1024) == 8


def test_what_cannot_be_dealt_is_refused() -> None:
    with pytest.raises(ValueError, match=r"6 blocks in 2 groups .* 2 equal passes"):
        PPOShape(4, 3, 4, 2, 6, True, env_shards=2, passes=2)
    with pytest.raises(ConfigError, match=r"microbatch_size.*greater than 0"):
        replace_settings(CONFIG, "ppo", microbatch_size=0)


def test_fewer_steps_at_a_time_take_less_memory() -> None:
    """By shapes, and by what the compiler sets aside."""
    market = random_walk(1, 4_000, 3, seed=1)
    _, blocks = minibatch(400)
    blocks = jax.tree.map(lambda x: jnp.tile(x, (20,) + (1,) * (x.ndim - 1)), blocks)
    params = NETWORKS.init(jax.random.key(0), 3)

    def planned(passes: int) -> int:
        def gradient(params: Any) -> Any:
            arguments = (NETWORKS, market, blocks, ppo_params(), jnp.float32(0.1), None, passes)
            return jax.grad(ppo_loss, has_aux=True)(params, *arguments)

        found: Any = jax.jit(gradient).lower(params).compile().memory_analysis()
        return found.temp_size_in_bytes

    assert planned(20) < planned(1) / 3


# --------------------------------------------------------------------------------- whole updates


def test_an_update_in_passes_is_the_update_to_rounding() -> None:
    learner, hyper = tiny().learner, hyperparameters()
    state = tiny().init(jax.random.key(7), tiny().env_params, hyper)
    results = []
    for passes in (1, 4):
        shape = replace(learner.shape, passes=passes)
        update = jax.jit(replace(learner, shape=shape).update)
        results.append(bits(update(state, tiny().env_params, hyper)))
    (one, its_metrics), (other, other_metrics) = results
    chex.assert_trees_all_close(one.params, other.params, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_equal(one.walkers, other.walkers)
    chex.assert_trees_all_close(its_metrics.loss, other_metrics.loss, rtol=1e-3, atol=1e-5)


def test_the_footprint_is_of_a_pass() -> None:
    from small_runs import market

    def minibatch_bytes(**changes: int) -> int:
        config = replace_settings(CONFIG, "ppo", **changes)
        return footprint(build_program(config, market("BBB")), 1).minibatch

    size = CONFIG.ppo.num_envs * CONFIG.ppo.rollout_steps
    whole = minibatch_bytes(batch_size=size)
    assert minibatch_bytes(batch_size=size, microbatch_size=size // 4) < whole / 2
