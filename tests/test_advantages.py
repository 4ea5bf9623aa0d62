"""Generalised advantage estimation across terminations, truncations and auto-resets."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agents.advantages import gae

STEPS, ENVS = 7, 3
jitted = jax.jit(gae)


def estimate(stream, discount=0.9, trace_decay=0.8):
    """(advantages, returns) of a stream, a dictionary of NumPy arrays."""
    arguments = {name: jnp.asarray(array) for name, array in stream.items()}
    return jitted(**arguments, discount=jnp.float32(discount), trace_decay=jnp.float32(trace_decay))


def random_stream(seed=0, steps=STEPS, envs=ENVS):
    """Rewards and values of order one, nothing ever ends."""
    rng = np.random.default_rng(seed)
    numbers = {
        name: rng.standard_normal((steps, envs)).astype(np.float32)
        for name in ("rewards", "values", "final_values")
    }
    return numbers | {
        "terminated": np.zeros((steps, envs), bool),
        "truncated": np.zeros((steps, envs), bool),
        "last_value": rng.standard_normal(envs).astype(np.float32),
    }


def one_env(rewards, values, last_value, *, terminated=(), truncated=(), final_values=None):
    """A stream of one environment; the ends are given as steps, the bootstraps by step."""
    steps = len(rewards)
    final = np.full((steps, 1), np.nan, np.float32)
    for step, value in (final_values or {}).items():
        final[step] = value
    return {
        "rewards": np.asarray(rewards, np.float32)[:, None],
        "values": np.asarray(values, np.float32)[:, None],
        "terminated": np.isin(np.arange(steps), terminated)[:, None],
        "truncated": np.isin(np.arange(steps), truncated)[:, None],
        "final_values": final,
        "last_value": np.asarray([last_value], np.float32),
    }


def explicit_sum(stream, discount, trace_decay):
    """A_t = sum over l of (gamma lambda)^l delta_{t + l}, up to the end of the episode of t."""
    s = {name: np.asarray(array, np.float64) for name, array in stream.items()}
    steps, envs = s["rewards"].shape
    advantages = np.zeros((steps, envs))
    for env in range(envs):
        for start in range(steps):
            weight = 1.0
            for t in range(start, steps):
                terminated, truncated = stream["terminated"][t, env], stream["truncated"][t, env]
                if terminated:
                    after = 0.0
                elif truncated:
                    after = s["final_values"][t, env]
                elif t + 1 < steps:
                    after = s["values"][t + 1, env]
                else:
                    after = s["last_value"][env]
                delta = s["rewards"][t, env] + discount * after - s["values"][t, env]
                advantages[start, env] += weight * delta
                weight *= discount * trace_decay
                if terminated or truncated:
                    break
    return advantages


# ------------------------------------------------------------------------------- by hand


def test_no_end():
    # deltas: 1 + 0.5 x 2 - 1 = 1; 2 + 0.5 x 3 - 2 = 1.5; 3 + 0.5 x 4 - 3 = 2. gamma lambda = 0.25
    advantages, returns = estimate(one_env([1, 2, 3], [1, 2, 3], 4), 0.5, 0.5)
    np.testing.assert_allclose(advantages[:, 0], [1.5, 2.0, 2.0])  # 1 + (1.5 + 2 / 4) / 4
    np.testing.assert_allclose(returns[:, 0], [2.5, 4.0, 5.0])


def test_a_termination_is_worth_nothing_afterwards():
    # deltas: 1 + 1 - 1 = 1; 2 - 2 = 0, its episode over; 3 + 2 - 3 = 2
    stream = one_env([1, 2, 3], [1, 2, 3], 4, terminated=[1])
    advantages, returns = estimate(stream, 0.5, 0.5)
    np.testing.assert_allclose(advantages[:, 0], [1.0, 0.0, 2.0])
    np.testing.assert_allclose(returns[:, 0], [2.0, 2.0, 5.0])


def test_a_truncation_is_worth_its_final_observation():
    # deltas: 1; 2 + 0.5 x 10 - 2 = 5, its episode cut; 2
    stream = one_env([1, 2, 3], [1, 2, 3], 4, truncated=[1], final_values={1: 10})
    advantages, returns = estimate(stream, 0.5, 0.5)
    np.testing.assert_allclose(advantages[:, 0], [2.25, 5.0, 2.0])  # 1 + 5 / 4
    np.testing.assert_allclose(returns[:, 0], [3.25, 7.0, 5.0])


def test_a_termination_in_the_step_of_a_truncation_wins():
    stream = one_env([1, 2], [1, 2], 4, terminated=[1], truncated=[1], final_values={1: 10})
    advantages, _ = estimate(stream, 0.5, 0.5)
    np.testing.assert_allclose(advantages[:, 0], [1.0, 0.0])


@pytest.mark.parametrize(
    ("end", "advantage"),
    [({}, 3.0), ({"terminated": [0]}, 1.0), ({"truncated": [0], "final_values": {0: 8}}, 5.0)],
)
def test_the_last_step_of_a_rollout(end, advantage):
    advantages, _ = estimate(one_env([2], [1], 4, **end), 0.5, 0.5)
    np.testing.assert_allclose(advantages[:, 0], [advantage])


# --------------------------------------------------------------------------- properties

floats = st.floats(-5.0, 5.0, width=32)
rates = st.floats(0.0, 1.0, width=32)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_equals_the_explicit_sum(data):
    shape = (STEPS, ENVS)
    stream = {
        name: data.draw(arrays(np.float32, shape, elements=floats), label=name)
        for name in ("rewards", "values", "final_values")
    }
    for name in ("terminated", "truncated"):
        stream[name] = data.draw(arrays(bool, shape), label=name)
    stream["last_value"] = data.draw(arrays(np.float32, (ENVS,), elements=floats))
    discount, trace_decay = data.draw(rates), data.draw(rates)
    advantages, returns = estimate(stream, discount, trace_decay)
    chex.assert_shape([advantages, returns], shape)
    expected = explicit_sum(stream, discount, trace_decay)
    np.testing.assert_allclose(advantages, expected, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(returns, expected + stream["values"], rtol=1e-4, atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000), st.integers(0, STEPS - 1), st.sampled_from(["terminated", "truncated"])
)
def test_nothing_leaks_across_an_end(seed, end, kind):
    """Bit for bit: what happens after an end, and the value after the reset, change nothing."""
    before = random_stream(seed)
    before[kind][end] = True
    other = random_stream(seed + 5000)
    after = {name: array.copy() for name, array in before.items()}
    for name in ("rewards", "values", "final_values"):
        after[name][end + 1 :] = other[name][end + 1 :]
    after["last_value"] = other["last_value"]
    a, _ = estimate(before)
    b, _ = estimate(after)
    np.testing.assert_array_equal(a[: end + 1], b[: end + 1])
    if end + 1 < STEPS:
        assert not np.array_equal(a[end + 1 :], b[end + 1 :])


def test_only_truncations_read_the_final_values():
    stream = random_stream(3)
    stream["truncated"][2, 0] = stream["terminated"][4, 1] = True
    stream["truncated"][4, 1] = True
    expected, _ = estimate(stream)
    keep = stream["truncated"] & ~stream["terminated"]
    stream["final_values"] = np.where(keep, stream["final_values"], np.nan).astype(np.float32)
    np.testing.assert_array_equal(estimate(stream)[0], expected)
    stream["final_values"][2, 0] += 1.0
    moved = np.asarray(estimate(stream)[0]) != np.asarray(expected)
    np.testing.assert_array_equal(np.argwhere(moved), [[0, 0], [1, 0], [2, 0]])


def test_with_lambda_one_the_returns_are_discounted_sums_of_rewards():
    stream = random_stream(4)
    stream["terminated"][3, 0] = stream["truncated"][3, 1] = True
    _, returns = estimate(stream, 0.9, 1.0)
    powers = 0.9 ** np.arange(STEPS + 1)
    rewards = stream["rewards"].astype(np.float64)
    np.testing.assert_allclose(returns[0, 0], powers[:4] @ rewards[:4, 0], rtol=1e-5)
    cut = powers[:4] @ rewards[:4, 1] + powers[4] * stream["final_values"][3, 1]
    np.testing.assert_allclose(returns[0, 1], cut, rtol=1e-5)
    going_on = powers[:STEPS] @ rewards[:, 2] + powers[STEPS] * stream["last_value"][2]
    np.testing.assert_allclose(returns[0, 2], going_on, rtol=1e-5)


def test_with_lambda_zero_the_advantages_are_one_step_errors():
    stream = random_stream(5)
    advantages, _ = estimate(stream, 0.9, 0.0)
    after = np.concatenate([stream["values"][1:], stream["last_value"][None]])
    expected = stream["rewards"] + 0.9 * after - stream["values"]
    np.testing.assert_allclose(advantages, expected, rtol=1e-5, atol=1e-6)
