"""Rewards are divided by the running scale of the discounted return, and nothing else."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.normalize import (
    discounted_returns,
    new_return_scale,
    normalize_rewards,
    update_return_scale,
)

ENVS, STEPS, DISCOUNT = 3, 8, 0.9
update = jax.jit(update_return_scale)


def stream(seed, batches, scale=1.0, offset=0.3):
    """Rewards and ends of several rollouts, f32[batches, STEPS, ENVS] and bool of that shape."""
    rng = np.random.default_rng(seed)
    shape = (batches, STEPS, ENVS)
    rewards = (scale * (rng.standard_normal(shape) + offset)).astype(np.float32)
    return rewards, rng.random(shape) < 0.15


def fold(rewards, done, discount=DISCOUNT):
    """The scale after all rollouts."""
    scale = new_return_scale(ENVS)
    for batch, ends in zip(rewards, done, strict=True):
        scale = update(scale, jnp.asarray(batch), jnp.asarray(ends), jnp.float32(discount))
    return scale


def returns_of(rewards, done, discount=DISCOUNT):
    """Discounted return at every step of the concatenated stream, by its definition.

    The sum over the steps of the episode so far of gamma^age times the reward.
    """
    rewards = rewards.reshape(-1, ENVS).astype(np.float64)
    done = done.reshape(-1, ENVS)
    returns = np.zeros_like(rewards)
    for env in range(ENVS):
        begin = 0
        for t in range(len(rewards)):
            ages = np.arange(t - begin, -1, -1)
            returns[t, env] = np.sum(discount**ages * rewards[begin : t + 1, env])
            if done[t, env]:
                begin = t + 1
    return returns


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([1e-3, 1.0, 50.0]))
def test_moments_are_those_of_the_whole_stream(seed, batches, size):
    rewards, done = stream(seed, batches, size)
    scale = fold(rewards, done)
    returns = returns_of(rewards, done)
    np.testing.assert_allclose(scale.mean, returns.mean(), rtol=1e-4, atol=1e-5 * size)
    np.testing.assert_allclose(scale.variance, returns.var(), rtol=1e-4)
    assert int(scale.batches) == batches
    chex.assert_type([scale.mean, scale.variance, scale.returns], jnp.float32)


def test_a_finished_episode_does_not_reach_into_the_next():
    rewards = jnp.asarray([[1.0], [1.0], [1.0], [1.0]])
    done = jnp.asarray([[False], [True], [False], [False]])
    running, returns = discounted_returns(jnp.zeros(1), rewards, done, jnp.float32(0.5))
    np.testing.assert_array_equal(returns[:, 0], [1.0, 1.5, 1.0, 1.5])
    np.testing.assert_array_equal(running, [1.5])


def test_an_episode_goes_on_from_one_rollout_to_the_next_unless_it_ended():
    rewards = np.ones((1, STEPS, ENVS), np.float32)
    done = np.zeros((1, STEPS, ENVS), bool)
    done[0, -1, 1] = True
    scale = fold(rewards, done, discount=1.0)
    np.testing.assert_array_equal(scale.returns, [STEPS, 0.0, STEPS])
    _, returns = discounted_returns(
        scale.returns, jnp.ones((1, ENVS)), jnp.zeros((1, ENVS), bool), jnp.float32(1.0)
    )
    np.testing.assert_array_equal(returns, [[STEPS + 1, 1, STEPS + 1]])


def test_rewards_are_scaled_and_never_recentred():
    rewards, done = stream(1, 4, offset=5.0)  # returns far from zero
    scale = fold(rewards, done)
    assert float(scale.mean) > 5.0
    deviation = np.sqrt(returns_of(rewards, done).var())
    given_rewards = jnp.asarray([-3.0, -0.1, 0.0, 0.1, 3.0])
    normalized = normalize_rewards(given_rewards, scale)
    np.testing.assert_allclose(normalized, np.asarray(given_rewards) / deviation, rtol=1e-4)
    assert float(normalized[2]) == 0.0


def test_extremes_are_clipped_and_no_data_is_not_divided_by():
    scale = new_return_scale(ENVS)
    rewards = normalize_rewards(jnp.asarray([-1.0, 0.0, 1.0]), scale)
    np.testing.assert_array_equal(rewards, [-10.0, 0.0, 10.0])
    scale = scale.replace(variance=jnp.float32(4.0))
    rewards = normalize_rewards(jnp.asarray([-100.0, 1.0, 19.0]), scale)
    np.testing.assert_allclose(rewards, [-10.0, 0.5, 9.5], rtol=1e-6)
