"""The entropy coefficient's schedule and the guard, step by step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from learners import bits, guard_params, hyperparameters, member, run, start_three, tiny

from agents.entropy import (
    EntropySchedule,
    check_entropy,
    entropy_coefficient,
    histogram_entropy,
    new_guard,
)
from agents.learner import HALTED_BY_GUARD, RUNNING

BASE = 0.01
LOW, HIGH = 0.1, 1.0  # nats, either side of the threshold of 0.22
check = jax.jit(check_entropy)
coefficient = jax.jit(entropy_coefficient)


# ------------------------------------------------------------------------- entropy, schedule


@settings(max_examples=60, deadline=None)
@given(arrays(np.int32, (4, 7), elements=st.integers(0, 1_000_000)))
def test_histogram_entropy_is_scipys(counts):
    nats = histogram_entropy(jnp.asarray(counts))
    chex.assert_shape(nats, (4,))
    for row, value in zip(counts, nats, strict=True):
        expected = scipy.stats.entropy(row) if row.sum() else 0.0
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_histogram_entropy_by_hand():
    counts = jnp.asarray([[5, 0, 0, 0], [1, 1, 0, 0], [2, 2, 2, 2], [0, 0, 0, 0]])
    expected = [0.0, np.log(2), np.log(4), 0.0]
    np.testing.assert_allclose(histogram_entropy(counts), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, 0.02), (0.3, 0.02), (0.5, 0.02), (0.6, 0.016), (0.75, 0.01), (1.0, 0.0), (1.5, 0.0)],
)
def test_the_schedule_holds_and_then_falls_in_a_straight_line(progress, expected):
    schedule = EntropySchedule(jnp.float32(0.02), jnp.float32(0.0), jnp.float32(0.5))
    np.testing.assert_allclose(schedule(jnp.float32(progress)), expected, atol=1e-8)


def test_a_schedule_may_hold_to_the_end_or_not_at_all():
    for hold, middle in ((1.0, 0.02), (0.0, 0.015)):
        schedule = EntropySchedule(jnp.float32(0.02), jnp.float32(0.01), jnp.float32(hold))
        np.testing.assert_allclose(schedule(jnp.float32(0.5)), middle, rtol=1e-6)
        np.testing.assert_allclose(schedule(jnp.float32(0.0)), 0.02, rtol=1e-6)


# --------------------------------------------------------------------------------- the guard


def watch(entropies, **params):
    """The guard after each of the updates 1, 2, ... with these entropies."""
    guard, params, history = new_guard(), guard_params(**params), []
    for update, nats in enumerate(entropies, start=1):
        guard = check(guard, jnp.float32(nats), jnp.int32(update), params)
        history.append(guard)
    return history


def rescued_at(history):
    return [update for update, guard in enumerate(history, start=1) if guard.triggered]


def exhausted_at(history):
    return [update for update, guard in enumerate(history, start=1) if guard.exhausted][:1]


def test_nothing_happens_while_the_entropy_is_high():
    history = watch([HIGH] * 8, warm_up=0)
    assert rescued_at(history) == exhausted_at(history) == []
    chex.assert_trees_all_equal(history[-1], new_guard())


def test_the_first_checks_come_after_the_warm_up():
    assert rescued_at(watch([LOW] * 5, warm_up=0, max_rescues=1)) == [2]
    assert rescued_at(watch([LOW] * 5, warm_up=3, max_rescues=1)) == [5]
    assert rescued_at(watch([LOW, LOW, LOW, HIGH, LOW, HIGH, LOW], warm_up=3)) == []


def test_only_failures_in_a_row_count():
    assert rescued_at(watch([LOW, HIGH, LOW, HIGH, LOW], warm_up=0)) == []
    assert rescued_at(watch([LOW, HIGH, LOW, LOW, HIGH], warm_up=0)) == [4]
    assert rescued_at(watch([LOW] * 4, warm_up=0, patience=4)) == [4]
    assert rescued_at(watch([LOW], warm_up=0, patience=1)) == [1]


def test_the_threshold_itself_passes():
    assert rescued_at(watch([0.22] * 6, warm_up=0)) == []
    assert rescued_at(watch([np.nextafter(np.float32(0.22), np.float32(0))] * 2, warm_up=0)) == [2]


@pytest.mark.parametrize("cool_down", [1, 2, 5])
def test_nothing_is_checked_during_the_cool_down(cool_down):
    history = watch([LOW] * 20, warm_up=0, cool_down=cool_down)
    first = 2
    second = first + cool_down + 2  # two failing checks, after `cool_down` updates without any
    assert rescued_at(history) == [first, second]
    assert exhausted_at(history) == [second + cool_down + 2]
    quiet = [LOW, LOW] + [LOW] * cool_down + [HIGH, LOW, HIGH, LOW]
    assert rescued_at(watch(quiet, warm_up=0, cool_down=cool_down)) == [2]


def test_the_seed_is_given_up_when_its_rescues_have_failed():
    history = watch([LOW] * 12, warm_up=1, cool_down=1, max_rescues=2)
    assert rescued_at(history) == [3, 6]
    assert exhausted_at(history) == [9]
    assert int(history[-1].rescues) == 2
    history = watch([LOW] * 3, warm_up=0, max_rescues=0)
    assert rescued_at(history) == []
    assert exhausted_at(history) == [2]


def test_a_rescue_that_worked_does_not_count_against_the_seed():
    # Rescues at 2 and 5 fail; a check passes at 7; rescues at 9 and 12 fail, and there is no third.
    entropies = [LOW, LOW, LOW, LOW, LOW, LOW, HIGH, *[LOW] * 8]
    history = watch(entropies, warm_up=0, cool_down=1, max_rescues=2)
    assert rescued_at(history) == [2, 5, 9, 12]
    assert exhausted_at(history) == [15]
    assert int(history[-1].rescues) == 4


def test_exhaustion_is_for_good():
    history = watch([LOW] * 9 + [HIGH] * 3, warm_up=1, cool_down=1, max_rescues=2)
    assert [bool(guard.exhausted) for guard in history[8:]] == [True] * 4


def test_a_rescue_multiplies_the_coefficient_within_its_floor_and_ceiling():
    def coefficients(base, scheduled, **params):
        history = watch([LOW] * 12, warm_up=0, max_rescues=4, **params)
        by_rescues = {int(guard.rescues): guard for guard in history}
        return [
            float(
                coefficient(
                    jnp.float32(scheduled), by_rescues[n], guard_params(**params), jnp.float32(base)
                )
            )
            for n in range(4)
        ]

    # 0.02, x 1.7, x 1.7^2 = 0.0578, x 1.7^3 = 0.098 but at most 3 x 0.02
    np.testing.assert_allclose(coefficients(0.02, 0.02), [0.02, 0.034, 0.0578, 0.06], rtol=1e-5)
    # 0.017 and 0.0289 are lifted to the floor; 0.049 is cut to 3 x 0.01, which is the floor too
    np.testing.assert_allclose(coefficients(0.01, 0.01), [0.01, 0.03, 0.03, 0.03], rtol=1e-5)
    # the ceiling has the last word
    np.testing.assert_allclose(coefficients(0.004, 0.004), [0.004, 0.012, 0.012, 0.012], rtol=1e-5)
    # late in training the schedule is what is multiplied
    np.testing.assert_allclose(coefficients(0.05, 0.04), [0.04, 0.068, 0.1156, 0.15], rtol=1e-5)
    np.testing.assert_allclose(coefficients(0.02, 0.0), [0.0, 0.03, 0.03, 0.03], rtol=1e-5)


def test_a_rescue_never_lowers_the_coefficient():
    # 1.7 x 0.05, cut to 3 x 0.01, would be less than the schedule asks for.
    rescued = watch([LOW] * 2, warm_up=0)[-1]
    value = coefficient(jnp.float32(0.05), rescued, guard_params(), jnp.float32(0.01))
    assert float(value) == np.float32(0.05)


def test_without_a_rescue_the_schedule_stands_even_outside_the_limits():
    for scheduled in (0.0, 0.001, 5.0):
        value = coefficient(jnp.float32(scheduled), new_guard(), guard_params(), jnp.float32(BASE))
        assert float(value) == np.float32(scheduled)


# ------------------------------------------------------------- the guard in a train state

ALWAYS, NEVER = 10.0, -1.0  # thresholds that every or no entropy is below


def eleven_updates(threshold):
    """(state, metrics) of three agents, of which the middle one has this threshold."""
    hypers = [
        hyperparameters(guard=guard_params(threshold=value), final_entropy_coef=BASE / 5, hold=1.0)
        for value in (NEVER, threshold, NEVER)
    ]
    states, hypers = start_three((7, 8, 9), hypers)
    return run(tiny().update_three, states, tiny().env_params, hypers, 11)


def test_a_halted_agent_is_frozen_and_the_others_never_notice():
    history = bits(eleven_updates(ALWAYS))
    undisturbed = bits(eleven_updates(NEVER))

    # Failing checks at 2 and 3, 5 and 6, 8 and 9: two rescues, and no third.
    middle = [member(state, 1) for state, _ in history]
    assert [bool(state.guard.triggered) for state in middle[:9]] == [
        update in (3, 6) for update in range(1, 10)
    ]
    assert [int(state.halt) for state in middle] == [RUNNING] * 8 + [HALTED_BY_GUARD] * 3
    assert [int(state.halted_at) for state in middle] == [0] * 8 + [9] * 3
    assert [int(state.update) for state in middle] == [*range(1, 10), 9, 9]
    coefficients = [float(metrics.entropy_coef[1]) for _, metrics in history[:9]]
    np.testing.assert_allclose(coefficients, [0.01] * 3 + [0.03] * 6, rtol=1e-6)

    # Frozen: not a bit changes after the halt. Before the first rescue it was like any other.
    chex.assert_trees_all_equal(middle[9], middle[8])
    chex.assert_trees_all_equal(middle[10], middle[8])
    chex.assert_trees_all_equal(middle[2].params, member(undisturbed[2][0], 1).params)

    for other in (0, 2):
        chex.assert_trees_all_equal(member(history, other), member(undisturbed, other))
